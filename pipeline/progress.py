"""Progress of long work: a bar on a terminal, now and then a plain line where there is none. Everything goes to stderr."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PLAIN_EVERY = 15.0  # seconds between two plain lines


class Advance(Protocol):
    """Call it with how many more units are done, and optionally a few words on the state."""

    def __call__(self, amount: int = 1, note: str = "") -> None:  # noqa: D102
        ...


@contextmanager
def bar(description: str, total: int | None, unit: str = "rows") -> Iterator[Advance]:
    """A progress bar for the block: ``with bar("sample", 400, "prompts") as advance: ... advance(64)``. ``total`` None: unknown."""
    done = 0
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(unit),
            TimeElapsedColumn(),
        )
        with Progress(
            *columns,
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            transient=True,
        ) as progress:
            task = progress.add_task(description, total=total, note="")

            def advance(amount: int = 1, note: str = "") -> None:
                progress.update(task, advance=amount, note=note)

            yield advance
        return

    last = time.monotonic()

    def say(amount: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += amount
        if time.monotonic() - last >= PLAIN_EVERY:
            last = time.monotonic()
            say_line(f"{description}: {done:,}{f' of {total:,}' if total else ''} {unit}{f', {note}' if note else ''}")

    yield say


def say_line(line: str) -> None:
    """One plain line of progress."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
