r"""marks: what a reader thought of rows, in the file ``marks.jsonl`` of a run folder. `stepdistill view` writes it, a filter can read it.

    {"id":"5f0c..","mark":"bad","note":"the rationale is about another match","stage":"quality"}

One line a row, in the order in which rows were first marked; a row that is marked again has its line changed, and one that is marked no
more has none. ``id`` is the input row's, so that a mark stays with the row through all stages; of a row of an eval set it is
``<eval set>/<row>``, with the stage ``evaluate``. The file is written anew as a whole, atomically and synced, by one process at a time.

    stages.quality.filters: [{marked_bad: {file: runs/topics/marks.jsonl}}]       # drops what was marked bad, with the note

Limits: the file is no part of a result and stands in no manifest, until a filter reads it: then its content is part of that stage's key.
All marks are held in memory; they are made by hand.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, Literal

from msgspec import DecodeError, Meta

from pipeline.files import InputError, RunError, atomic, plain, strict_json
from pipeline.records import Row

FILE: Final = "marks.jsonl"
LONGEST_NOTE: Final = 2000  # characters
LINE_BYTES: Final = 100_000
EVAL: Final = "evaluate"  # the stage of marks on rows of eval sets

Verdict = Literal["good", "bad"]


class Mark(Row, frozen=True):
    """One line of the file."""

    id: Annotated[str, Meta(min_length=1)]
    mark: Verdict
    note: Annotated[str, Meta(max_length=LONGEST_NOTE)] = ""
    stage: Annotated[str | None, Meta(description="the stage in which the row was looked at")] = None


def read(path: Path, *, missing: bool = True) -> dict[str, Mark]:
    """The marks in a file by their ids, in its order. Raises InputError with the line that cannot be used.

    Where there is no file there are no marks, or, unless it may be ``missing``, InputError is raised.
    """
    found: dict[str, Mark] = {}
    try:
        with path.open("rb") as lines:
            number = 0
            while raw := lines.readline(LINE_BYTES):
                number += 1
                one = _read(raw, f"{path}:{number}")
                if one.id in found:
                    raise InputError(f"{path}:{number}: {plain(one.id, 80)} is marked above; remove one of the lines")
                found[one.id] = one
    except OSError as error:
        if missing and isinstance(error, FileNotFoundError):
            return {}
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    return found


def _read(raw: bytes, place: str) -> Mark:
    try:
        if not raw.endswith(b"\n"):
            raise ValueError("too long, or without a newline at its end")
        strict_json(raw)
        return Mark.read(raw)
    except (DecodeError, ValueError) as error:
        raise InputError(
            f'{place}: {plain(str(error))}; a line is {{"id": .., "mark": "good" or "bad", "note": .., "stage": ..}}'
        ) from None


def lines(marks: Iterable[Mark]) -> bytes:
    """The lines of a file with these marks: ASCII, so that no note can drive the terminal that shows it."""
    return b"".join(json.dumps(mark.plain()).encode() + b"\n" for mark in marks)


def put(run: Path, id: str, mark: Mark | None) -> None:
    """Give a row of a run its mark, or with None take it away.

    Raises InputError where the file cannot be read, RunError where it cannot be written.
    """
    path = run / FILE
    with _alone(run):
        found = read(path)
        if mark is None:
            found.pop(id, None)
        else:
            found[id] = mark
        if not found and not path.exists():
            return
        try:
            with atomic(path) as file:
                file.write(lines(found.values()))
        except OSError as error:
            raise RunError(
                f"{path}: cannot be written ({error.strerror}); check the rights and the space there"
            ) from None


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Hold the marks of a run for the length of one change, without a file for it: the folder itself is locked."""
    try:
        folder = os.open(run, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise RunError(f"{run}: cannot be opened ({error.strerror}); check the path") from None
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
