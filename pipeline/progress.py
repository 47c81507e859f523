"""Progress of long work: a bar on a terminal, now and then a plain line where there is none. Everything goes to stderr."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

PLAIN_EVERY = 15.0  # seconds between two plain lines
DRAWN_EVERY = 0.1  # seconds between two updates of a bar; advancing costs next to nothing in between
COLUMNS = 100  # are enough for everything

Note = str | Callable[[], str]


class Advance(Protocol):
    """Call it with how many more units are done, and optionally a few words on the state, or what gives them where they are shown."""

    def __call__(self, amount: int = 1, note: Note = "") -> None:  # noqa: D102
        ...


@contextmanager
def bar(description: str, total: int | None, unit: str = "rows") -> Iterator[Advance]:
    """A progress bar for the block: ``with bar("sample", 400, "prompts") as advance: ... advance(64)``. ``total`` None: unknown.

    The note stands in a line of its own below the bar. ``advance`` may be called in any thread.
    """
    show, every = _plain(description, total, unit), PLAIN_EVERY
    if sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        with _drawn(description, total, unit) as draw, _counting(draw, DRAWN_EVERY) as advance:
            yield advance
        return
    with _counting(show, every, at_the_end=False) as advance:
        yield advance


Show = Callable[[int, str], None]
"""Shows how many units are done, and the note."""


@contextmanager
def _counting(show: Show, every: float, *, at_the_end: bool = True) -> Iterator[Advance]:
    done, last, latest = 0, time.monotonic(), ""  # type: int, float, Note
    lock = threading.Lock()

    def advance(amount: int = 1, note: Note = "") -> None:
        nonlocal done, last, latest
        with lock:
            done += amount
            latest = note or latest
            if time.monotonic() - last >= every:
                last = time.monotonic()
                show(done, latest if isinstance(latest, str) else latest())

    yield advance
    if at_the_end:
        show(done, latest if isinstance(latest, str) else latest())


@contextmanager
def _drawn(description: str, total: int | None, unit: str) -> Iterator[Show]:
    from collections.abc import Iterable

    from rich.console import Console, RenderableType
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class WithNote(Progress):
        """The bar, and below it the note, which would not fit beside it."""

        note = ""

        def get_renderables(self) -> Iterable[RenderableType]:
            yield self.make_tasks_table(self.tasks)
            if self.note:
                yield Text(f"  {self.note}", overflow="ellipsis", no_wrap=True)

    console = Console(stderr=True)
    narrow = console.width <= COLUMNS
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None if narrow else 40),
        MofNCompleteColumn(),
        TextColumn(unit, markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with WithNote(*columns, console=console, transient=True, expand=narrow) as progress:
        task = progress.add_task(description, total=total)

        def show(done: int, note: str) -> None:
            progress.note = note
            progress.update(task, completed=done)

        yield show


def _plain(description: str, total: int | None, unit: str) -> Show:
    before, then = 0, time.monotonic()

    def show(done: int, note: str) -> None:
        nonlocal before, then
        now = time.monotonic()
        left = ""
        if total and 0 < before < done < total:  # the first units often wait for something to start
            left = f", {duration((total - done) * (now - then) / (done - before))} left"
        before, then = done, now
        line = f"{description}: {done:,}{f' of {total:,}' if total else ''} {unit}{left}"
        between = ", " if len(line) + len(note) + 2 <= COLUMNS else "\n  "
        say_line(f"{line}{between}{note}" if note else line)

    return show


def duration(seconds: float) -> str:
    """``3 h``, ``12 min``, ``40 s``: two of a unit at least, so that the rounding is small."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def say_line(line: str) -> None:
    """One plain line of progress."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
