"""A filter by what was marked by hand in `stepdistill view`.

    - marked_bad: {file: runs/topics/marks.jsonl}

The file's content is part of the stage's key, so that a new mark makes quality, and what follows it, run again. See ``pipeline.marks``.
"""

from functools import lru_cache
from pathlib import Path

from pipeline import marks
from pipeline.binding import InputPath
from pipeline.filters.reading import quoted
from pipeline.records import Example


def marked_bad(example: Example, *, file: InputPath) -> str | None:
    """The row was marked bad by hand in the ``file`` of marks, which `stepdistill view` writes; the note says why."""
    mark = bad(file).get(example.id)
    if mark is None:
        return None
    return f"marked bad: {quoted(mark.note, 200)}" if mark.note.strip() else "marked bad, without a note"


@lru_cache(maxsize=4)
def bad(file: Path) -> dict[str, marks.Mark]:
    """The rows that the file marks bad, by id. Raises InputError where it cannot be used."""
    return {id: mark for id, mark in marks.read(file, missing=False).items() if mark.mark == "bad"}
