"""Progress as it is shown: a bar with its note on a terminal of any width, plain lines elsewhere; texts from outside stay texts."""

import io
import re
import sys
import threading

import pytest

from pipeline import progress

NOTE = "412 tokens/s, mean length 48, stop 96%, length 4%, 3 failed, budget 31% used"
NAME = "sample ([bold]red[/bold] :smile:)"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(terminal: io.StringIO) -> list[str]:
    """The lines that were drawn, without what moves the cursor and colours them."""
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    return [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_a_bar_fits_its_terminal_and_its_note_stands_below(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    with progress.bar(NAME, 5000, "requests") as advance:
        for _ in range(1200):
            advance(1, lambda: NOTE)
    lines = shown(terminal)
    assert max(map(len, lines)) <= columns
    assert any(line.startswith(NAME) and "1200/5000" in line for line in lines)
    assert lines[-1].strip() == NOTE
    assert "\x1b[2K" in terminal.getvalue(), "it is drawn in place"


def test_plain_lines_say_all_of_it_in_a_hundred_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.0)
    with progress.bar(NAME, 1_234_567, "requests") as advance:
        advance(1_000_000, NOTE)
        advance(1, lambda: "one word")
    first, second, third = capsys.readouterr().err.splitlines()
    assert re.fullmatch(re.escape(NAME) + r": 1,000,000 of 1,234,567 requests", first)
    assert second == f"  {NOTE}"
    assert re.fullmatch(re.escape(NAME) + r": 1,000,001 of 1,234,567 requests, [\w ]+ left, one word", third)
    assert max(map(len, (first, second))) <= 100


def test_nothing_is_said_of_what_is_quickly_done(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar("sample", None, "requests") as advance:
        advance(7, lambda: pytest.fail("no note is made where none is shown"))
    assert capsys.readouterr().err == ""


def test_units_are_counted_whichever_thread_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    with progress.bar("sample", 4000, "requests") as advance:
        threads = [threading.Thread(target=lambda: [advance() for _ in range(1000)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert any("4000/4000" in line for line in shown(terminal))


def test_a_terminal_that_cannot_draw_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setattr(progress, "PLAIN_EVERY", 0.0)
    with progress.bar("sample", 10, "requests") as advance:
        advance(3)
    assert terminal.getvalue() == "sample: 3 of 10 requests\n"


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0 s"), (119, "119 s"), (150, "2 min"), (7300, "2 h"), (200_000, "2 days")]
)
def test_durations(seconds: float, words: str) -> None:
    assert progress.duration(seconds) == words
