"""Pages of the rows of a stage: the next so many that fit what is looked for, from any place on, in bounded time and memory.

    found = page(parts(folder, dropped=False), START, Wanted(text="late goal"))
    found.rows        # at most SIZE
    found.next        # the Place from which the next page begins; None where nothing is left
    found.passed      # how many rows lie before it, exact at the ends of files, else reckoned from bytes

Files are read in blocks of ``BLOCK`` bytes from a place (number of the file, byte in it), and a page ends when it is full or its time is
up; it then says how far it looked. No index is needed and nothing is written. A row fits a text where the text stands in one of its
values (keys and numbers are not searched), whatever the case of the letters A to Z.

Most lines are never decoded: what a row must hold to fit stands in its line as bytes, and only lines that have all of it are looked at.

Limits: a line is held in memory as a whole. A place is good for the files that it was given for; in others it is refused or leads
elsewhere.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal, NamedTuple

import msgspec

from pipeline import outputs
from pipeline.files import InputError, RunError, plain
from pipeline.records import decoded

SIZE: Final = 50  # rows on a page
BLOCK: Final = 1 << 20
SECONDS: Final = 0.5  # that a page may look for rows

Differ = Literal["", "votes", "gold", "wrong", "teacher"]
"""What disagrees: the votes with each other, the label with the true one, a model's answer with the true one or with the teacher's."""


class Place(NamedTuple):
    """Where a line begins."""

    file: int
    offset: int

    def __str__(self) -> str:
        return f"{self.file}.{self.offset}"


START: Final = Place(0, 0)


@dataclass(frozen=True)
class Part:
    """A row file. ``rows`` is what the manifest says."""

    path: Path
    rows: int
    bytes: int


@dataclass(frozen=True)
class Wanted:
    """What a row must have; an empty text or None asks for nothing. ``teacher`` is a model's name where rows are predictions."""

    text: str = ""
    reason: str = ""
    label: str = ""
    teacher: str = ""
    score: int | None = None
    differ: Differ = ""
    eval_set: str = ""
    row: str = ""


@dataclass(frozen=True)
class Found:
    """A row on a page; ``row`` is None where its line holds none."""

    place: Place
    line: bytes
    row: dict[str, Any] | None


@dataclass(frozen=True)
class Page:
    """Some rows, and how far was looked. ``passed`` counts rows before ``next``."""

    rows: list[Found]
    next: Place | None
    passed: int
    total: int


class _Vote(msgspec.Struct):
    teacher: str = ""


class _Judgement(msgspec.Struct):
    score: int | None = None


class Slim(msgspec.Struct):
    """What is looked at of a row of any kind, to tell whether it fits."""

    label: str | msgspec.UnsetType | None = msgspec.UNSET
    gold: str | None = None
    agreement: float | None = None
    teacher: str | None = None
    votes: list[_Vote] = []
    judgement: _Judgement | None = None
    reason: str = ""
    evidence: dict[str, Any] = {}
    correct: bool | None = None
    model: str | None = None
    eval_set: str = ""
    row: str = ""


def parts(folder: Path, *, dropped: bool) -> list[Part]:
    """The files of a result's kept rows, or of its drops. Raises RunError where one is missing or lies elsewhere."""
    manifest = outputs.read_manifest(folder)
    listed = (
        [file for file in manifest.outputs if file.path == f"{outputs.DROPPED}.jsonl"]
        if dropped
        else outputs.row_files(folder)
    )
    found = []
    for file in listed:
        path = folder / file.path
        if "/" in file.path or path.is_symlink() or not path.is_file():
            raise RunError(f"{folder / plain(file.path)}: missing, or not a file of its own; run `stepdistill audit`")
        found.append(Part(path, file.rows or 0, path.stat().st_size))
    return found


def place(text: str, files: Sequence[Part]) -> Place:
    """The place that an address names. Raises InputError where no line of these files begins there."""
    file, point, offset = text.partition(".")
    if not (point and file.isascii() and file.isdigit() and offset.isascii() and offset.isdigit()) or len(text) > 40:
        raise InputError(f"{plain(text, 40)}: no place in the rows; begin at the first page")
    found = Place(int(file), int(offset))
    if found == START:
        return found
    if found.file >= len(files) or found.offset > files[found.file].bytes:
        raise InputError(f"{plain(text, 40)}: beyond the end of the rows; begin at the first page")
    if found.offset:
        with files[found.file].path.open("rb") as rows:
            rows.seek(found.offset - 1)
            if rows.read(1) != b"\n":
                raise InputError(
                    f"{plain(text, 40)}: no row begins there, the result has changed; begin at the first page"
                )
    return found


def at_row(number: int, files: Sequence[Part]) -> Place:
    """Where row ``number`` (from 1) begins; the last row's place where there are fewer. The rows before it in its file are counted."""
    before = 0
    for index, part in enumerate(files):
        if number <= before + part.rows or index == len(files) - 1:
            return Place(index, _after_lines(part.path, number - before - 1))
        before += part.rows
    return START


def _after_lines(path: Path, lines: int) -> int:
    """Where the line begins before which there are so many; 0 where there are not so many."""
    position = 0
    with path.open("rb") as rows:
        while lines > 0 and (block := rows.read(BLOCK)):
            here = block.count(b"\n")
            if here >= lines:
                start = 0
                for _ in range(lines):
                    start = block.index(b"\n", start) + 1
                return position + start
            lines -= here
            position += len(block)
    return 0


def row_number(found: Place, files: Sequence[Part]) -> int:
    """Which row, from 1, begins at a place: those before it in its file are counted."""
    number = 1 + sum(part.rows for part in files[: found.file])
    if not found.offset:
        return number
    left = found.offset
    with files[found.file].path.open("rb") as rows:
        while left and (block := rows.read(min(left, BLOCK))):
            number += block.count(b"\n")
            left -= len(block)
    return number


def page(
    files: Sequence[Part],
    start: Place,
    wanted: Wanted,
    *,
    size: int = SIZE,
    seconds: float | None = SECONDS,
    fits: Callable[[Slim], bool] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Page:
    """The next rows from ``start`` on that fit; ``seconds`` None: however long it takes.

    ``fits`` is a further condition. At least one line is looked at, so that whoever goes on comes to the end.
    """
    end = None if seconds is None else clock() + seconds
    needles, text = needles_of(wanted), _encoded(wanted.text).lower()
    rows: list[Found] = []
    total = sum(part.rows for part in files)
    for index in range(start.file, len(files)):
        offset = start.offset if index == start.file else 0
        with files[index].path.open("rb") as file:
            file.seek(offset)
            for block in _blocks(file):
                position = 0
                for begin, line in _candidates(block, needles, text):
                    if _fit(line, wanted, fits):
                        rows.append(Found(Place(index, offset + begin), line, _row(line)))
                    position = begin + len(line) + 1
                    late = end is not None and clock() > end
                    if len(rows) == size or late:
                        return _ended(rows, Place(index, offset + position), files, total)
                offset += len(block)
                if end is not None and clock() > end:
                    return _ended(rows, Place(index, offset), files, total)
    return Page(rows, None, total, total)


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    """The rest of a file in blocks of whole lines."""
    while block := file.read(BLOCK):
        yield block if block.endswith(b"\n") else block + file.readline()


def _candidates(block: bytes, needles: Sequence[bytes], text: bytes) -> Iterator[tuple[int, bytes]]:
    """The lines in which all needles stand, and the text in any case, without newline, each with where it begins."""
    if not (needles or text):
        begin = 0
        while begin < len(block):
            end = block.find(b"\n", begin)
            end = len(block) if end < 0 else end
            yield begin, block[begin:end]
            begin = end + 1
        return
    looked, (first, *others) = (block, needles) if needles else (block.lower(), [text])
    position = looked.find(first)
    while position >= 0:
        begin = looked.rfind(b"\n", 0, position) + 1
        end = looked.find(b"\n", position)
        end = len(looked) if end < 0 else end
        line = block[begin:end]
        if all(other in line for other in others) and (not needles or not text or text in line.lower()):
            yield begin, line
        position = looked.find(first, end)


def _ended(rows: list[Found], here: Place, files: Sequence[Part], total: int) -> Page:
    """The page that ends at ``here``, which may be the end of a file, or of all."""
    passed = sum(part.rows for part in files[: here.file])
    part = files[here.file]
    if here.offset < part.bytes:
        return Page(rows, here, passed + round(part.rows * here.offset / part.bytes), total)
    left = any(later.bytes for later in files[here.file + 1 :])
    return Page(rows, Place(here.file + 1, 0) if left else None, passed + part.rows, total)


def needles_of(wanted: Wanted) -> list[bytes]:
    """What stands in the line of every row that fits, beside the text; the longest first."""
    found = []
    if wanted.reason:
        found.append(b'"reason":"' + _encoded(wanted.reason) + b'"')
    if wanted.label:
        found.append(b'"' + _encoded(wanted.label) + b'"')
    if wanted.teacher:
        found.append(b'"' + _encoded(wanted.teacher) + b'"')
    if wanted.eval_set:
        found.append(b'"eval_set":"' + _encoded(wanted.eval_set) + b'"')
    if wanted.row:
        found.append(b'"row":"' + _encoded(wanted.row) + b'"')
    if wanted.score is not None:
        found.append(b'"judgement":{"score":%d,' % wanted.score)
    if wanted.differ == "votes":
        found.append(b'"agreement":0')  # below 1; the winner has at least one of the labels' number as its share
    if wanted.differ == "wrong":
        found.append(b'"correct":false')
    return sorted(found, key=len, reverse=True)


def _encoded(text: str) -> bytes:
    """A text as it stands in a line's JSON. Raises InputError for what no row can hold."""
    try:
        return msgspec.json.encode(text)[1:-1]
    except UnicodeEncodeError:
        raise InputError("the text to look for is no Unicode; give it in UTF-8") from None


def _fit(line: bytes, wanted: Wanted, fits: Callable[[Slim], bool] | None) -> bool:
    """Whether a line with all needles is a row that fits. Of a line that is no row only the text is looked for."""
    if wanted.text and not _has(line, ascii_lower(wanted.text)):
        return False
    if fits is None and wanted == Wanted(text=wanted.text):
        return True
    try:
        row = decoded(Slim, line)
    except msgspec.DecodeError:
        return False
    return (
        wanted.reason in ("", row.reason)
        and wanted.label in ("", label_of(row))
        and wanted.eval_set in ("", row.eval_set)
        and wanted.row in ("", row.row)
        and (not wanted.teacher or wanted.teacher in _teachers(row))
        and (wanted.score is None or (row.judgement is not None and row.judgement.score == wanted.score))
        and (not wanted.differ or _differs(row, wanted.differ))
        and (fits is None or fits(row))
    )


def _has(line: bytes, text: str) -> bool:
    row = _row(line)
    return row is None or any(text in ascii_lower(value) for _, value in texts(row))


def texts(value: Any) -> Iterator[tuple[str, str]]:
    """All texts in a row, in order, each with the names that lead to it: ``evidence.twin_text``."""
    waiting = [("", value)]  # nesting of any depth
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, str):
            yield name, value
        elif isinstance(value, dict):
            waiting += [(f"{name}.{key}" if name else key, inner) for key, inner in reversed(value.items())]
        elif isinstance(value, list):
            waiting += [(name, inner) for inner in reversed(value)]


def ascii_lower(text: str) -> str:
    """``text`` with A to Z in lower case, and of the same length."""
    return text.encode(errors="surrogatepass").lower().decode(errors="surrogatepass")


def label_of(row: Slim) -> str | None:
    """The row's label: of a drop the one in its evidence, of a row without labels the true one."""
    if row.reason:
        found = row.evidence.get("label")
        return found if isinstance(found, str) else None
    return row.gold if isinstance(row.label, msgspec.UnsetType) else row.label


def _teachers(row: Slim) -> set[str | None]:
    return {row.teacher, row.model, *(vote.teacher for vote in row.votes)}


def _differs(row: Slim, how: Differ) -> bool:
    if how == "votes":
        return row.agreement is not None and row.agreement < 1
    if how == "gold":
        label = label_of(row)
        return row.gold is not None and label is not None and label.strip().casefold() != row.gold.strip().casefold()
    return how == "teacher" or row.correct is False  # "teacher" is for ``fits`` to tell


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        found = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
