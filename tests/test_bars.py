"""What a run ends with: bars that say no more than the figures, within 80 columns, and nothing but text where there is no terminal."""

import io
import re
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import bars, printed
from pipeline.records import Counts

SHARES = st.floats(0, 1, allow_nan=False)
WIDTHS = st.integers(2, 40)


@given(SHARES, SHARES, WIDTHS, st.sampled_from([bars.BLOCKS, bars.ASCII]))
def test_a_larger_share_is_never_a_shorter_bar(one: float, other: float, width: int, drawn: bars.Marks) -> None:
    def filled(share: float) -> float:
        bar = bars.share(share, width, drawn)
        assert len(bar) == width
        parts = sum((drawn.parts.index(mark) + 1) / 8 for mark in bar if drawn.parts and mark in drawn.parts)
        return bar.count(drawn.full) + parts

    low, high = sorted((one, other))
    assert filled(low) <= filled(high)
    assert (filled(one) == 0) == (one == 0)
    assert (filled(one) == width) == (one == 1)


@given(SHARES, SHARES, SHARES, WIDTHS)
def test_an_interval_stands_around_its_value(a: float, b: float, c: float, width: int) -> None:
    low, value, high = sorted((a, b, c))
    bar = bars.interval(low, value, high, width, bars.ASCII)
    assert len(bar) == width
    assert bar.count("#") == 1
    assert re.fullmatch(r"\.*=*#=*\.*", bar)
    assert bar.index("#") == min(int(value * width), width - 1)


@dataclass
class Said:
    text: str
    widest: int


def shown(
    monkeypatch: pytest.MonkeyPatch, *, encoding: str = "utf-8", terminal: bool = True, **environment: str
) -> Said:
    """The end of a run with long figures, on 80 columns."""

    class Stream(io.TextIOWrapper):
        def isatty(self) -> bool:
            return terminal

    raw = io.BytesIO()
    stream = Stream(raw, encoding=encoding)
    for name in ("NO_COLOR", "FORCE_COLOR", "COLORTERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"COLUMNS": "80", "TERM": "xterm-256color", **environment}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stdout", stream)
    counts = {
        "decontaminate": ("examples", 442_000, 441_011, {"contaminated\x1b[31m": 989}),
        "train": ("training rows", 834, 834, {}),
        "quality": ("examples", 0, 0, {}),
    }
    outcomes: list[Any] = [
        SimpleNamespace(
            stage=stage,
            ran=stage == "train",
            seconds=168.2,
            manifest=SimpleNamespace(
                counts=Counts(
                    unit=unit, rows_in=rows_in, kept=kept, dropped=rows_in - kept, reasons=reasons, rows_out=kept
                )
            ),
        )
        for stage, (unit, rows_in, kept, reasons) in counts.items()
    ]
    names = ("accuracy", "accuracy_interval", "macro_f1", "calibration", "parameters", "rows")
    models = {
        "student": (0.74, (0.664, 0.804), 0.7, SimpleNamespace(ece=0.031), 135_000_000, 150),
        "majority": (0.2, (0.144, 0.271), None, None, None, 150),
    }
    measured = {model: SimpleNamespace(**dict(zip(names, told, strict=True))) for model, told in models.items()}
    figures: Any = SimpleNamespace(eval_sets={"test": SimpleNamespace(models=measured)})
    printed.summary(outcomes)
    printed.models(figures, {"student": 31.8})
    stream.flush()
    text = raw.getvalue().decode(encoding)
    bare = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return Said(text, max(len(line.rstrip()) for line in bare.splitlines()))


def test_bars_and_colours_on_a_terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    said = shown(monkeypatch)
    assert said.widest <= 80
    assert "█" * 9 in said.text
    assert "▒" in said.text
    assert re.search(r"\x1b\[[0-9;]*m█", said.text)
    assert "contaminated\\x1b[31m 989" in said.text
    assert all(figure in said.text for figure in ("442,000", "74.0% [66.4, 80.4]", "0.700", "31.8", "135 M", "168.2 s"))


def test_no_colour_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    said = shown(monkeypatch, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", said.text)
    assert "█" in said.text


def test_ascii_where_the_terminal_has_no_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    said = shown(monkeypatch, encoding="ascii", NO_COLOR="1")
    assert said.text.isascii()
    assert "#" * 9 in said.text


def test_nothing_but_text_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    said = shown(monkeypatch, terminal=False)
    assert "\x1b" not in said.text
    assert not set("█▒░#") & set(said.text)
    assert "99.8%" in said.text
