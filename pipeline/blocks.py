r"""Rows in blocks: the row files of a folder cut into runs of whole lines, which are read, judged and encoded apart from each other.

    for block in cut(folder):              # some megabytes each, in order
        for row in block.rows(Example): ..

A block names its bytes and does not hold them, so that it can be sent to another process for next to nothing. ``Written`` is what came
of one: encoded rows, drops, counts. What stands in which block changes no byte of a stage's result.

A filter that needs the whole corpus is a ``Corpus``: ``sketch`` turns one block into arrays, wherever that runs, and ``resolve`` gives
one verdict a row from the sketches of all blocks, in order.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import xxhash

from pipeline import outputs
from pipeline.files import RunError, plain
from pipeline.records import Drop, Row, decoded, decoder
from pipeline.shift import Figures, Seen, Truth, measured

BYTES: Final = 8 << 20
_TEXTS: Final = Truth()

V = TypeVar("V", bound=msgspec.Struct)
Verdicts = Generator[Drop | None, None, Mapping[str, Any] | None]
"""One verdict a row, in order; at its end, facts for the manifest."""


@dataclass(frozen=True)
class Span:
    """Bytes ``start`` to ``end`` of a row file: whole lines."""

    path: Path
    start: int
    end: int


@dataclass(frozen=True)
class Block:
    """Some rows that stand next to each other, possibly from the end of one file to the beginning of the next."""

    spans: tuple[Span, ...]

    def __len__(self) -> int:
        """Its bytes."""
        return sum(span.end - span.start for span in self.spans)

    def read(self) -> bytes:
        """Its lines, with their newlines."""
        return b"".join(_bytes(span) for span in self.spans)

    def rows(self, row: type[V], data: bytes | None = None) -> list[V]:
        """Its rows. ``data`` is what ``read`` gave. Raises RunError that names the line where one is no such row."""
        try:
            return decoder(row).decode_lines(self.read() if data is None else data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            for span in self.spans:
                _check(span, row)
            raise


def cut(folder: Path, *, together: str | None = None, size: int = BYTES) -> Iterator[Block]:
    """The kept rows of a finished folder in blocks of about ``size`` bytes, in order.

    Rows next to each other that are equal in the field ``together`` stand in one block.
    """
    spans: list[Span] = []
    held = 0
    for file in outputs.row_files(folder):
        path = folder / file.path
        end = path.stat().st_size
        start = 0
        with path.open("rb") as lines:
            while (place := _place(lines, start, start + max(0, size - held), end, together)) is not None:
                yield Block((*spans, Span(path, start, place)))
                spans, held, start = [], 0, place
        if start < end:
            spans.append(Span(path, start, end))
            held += end - start
    if spans:
        yield Block(tuple(spans))


def _place(lines: Any, start: int, target: int, end: int, together: str | None) -> int | None:
    """Where the block that begins at ``start`` can end, at ``target`` or soon after it; None where that is not in this file."""
    if target >= end:
        return None
    lines.seek(target)
    if target > start:
        lines.readline()
    last: str | None = None
    while (place := lines.tell()) < end:
        if together is None:
            return int(place)
        value = _value(lines.readline(), together)
        if None not in (value, last) and value != last:
            return int(place)
        last = value
    return None


def _value(line: bytes, name: str) -> str | None:
    """The field of that name; None where the line cannot be read, which whoever reads the block will say."""
    try:
        value: str = getattr(decoded(_grouping(name), line), name)
    except msgspec.DecodeError:
        return None
    return value


@lru_cache
def _grouping(name: str) -> type[msgspec.Struct]:
    return msgspec.defstruct("Group", [(name, str)])


def _bytes(span: Span) -> bytes:
    with span.path.open("rb") as file:
        file.seek(span.start)
        return file.read(span.end - span.start)


def _check(span: Span, row: type[msgspec.Struct]) -> None:
    """Raises RunError at the first line of ``span`` that is no such row."""
    with span.path.open("rb") as file:
        number = 0
        while file.tell() < span.end:
            number += 1
            start, line = file.tell(), file.readline()
            if start < span.start:
                continue
            try:
                decoded(row, line)
            except msgspec.DecodeError as error:
                problem = f"not a {row.__name__} row ({plain(str(error))})"
                raise RunError(f"{span.path}:{number}: {problem}; run `stepdistill audit`") from None


@dataclass
class Lines:
    """Encoded rows: their lines and, a line each, their digests."""

    data: bytes = b""
    digests: bytes = b""
    rows: int = 0

    @classmethod
    def of(cls, lines: list[bytes], data: bytes | None = None) -> "Lines":
        """From lines without their newlines. ``data`` is all of them with their newlines, where that is at hand."""
        if not lines:
            return cls()
        digests = "\n".join([xxhash.xxh3_64_hexdigest(line) for line in lines])
        return cls(b"\n".join([*lines, b""]) if data is None else data, digests.encode() + b"\n", len(lines))


@dataclass
class Written:
    """What a stage made of one block. ``kept`` is by the prefix of the row file; ``units`` is what its kept rows stand for.

    Where the stage gives examples, ``dropped`` counts the rows that it dropped and, if it made them, ``came`` what it read, ``made`` them.
    """

    rows_in: int = 0
    units: int = 0
    kept: dict[str, Lines] = field(default_factory=dict)
    drops: Lines = field(default_factory=Lines)
    reasons: Counter[str] = field(default_factory=Counter)
    came: Figures = field(default_factory=Figures)
    made: Figures = field(default_factory=Figures)
    dropped: Figures = field(default_factory=Figures)


def mapped(
    rows: Iterable[Row], rows_in: int, prefix: Callable[[Any], str], stands_for: Callable[[Any], int]
) -> Written:
    """What a map gave for ``rows_in`` rows, encoded."""
    written = Written(rows_in)
    kept: dict[str, list[bytes]] = {}
    drops: list[bytes] = []
    for row in rows:
        if isinstance(row, Drop):
            drops.append(row.line())
            written.reasons[row.reason] += 1
        else:
            kept.setdefault(prefix(row), []).append(row.line())
            written.units += stands_for(row)
    written.kept = {name: Lines.of(lines) for name, lines in kept.items()}
    written.drops = Lines.of(drops)
    return written


def judged(data: bytes, verdicts: Iterable[Drop | None], stage: str, truth: Truth = _TEXTS) -> Written:
    """The lines of a block split by a filter's verdicts; kept ones pass through as they are, dropped ones are counted.

    Raises RunError where verdicts do not fit, or a dropped line is no Example.
    """
    lines = data.split(b"\n")[:-1]
    found = list(verdicts)
    if len(found) != len(lines):
        problem = f"as many verdicts as rows are needed, there were {len(found):,} for {len(lines):,}"
        raise RunError(f"{stage}: {problem}")
    kept = [line for line, drop in zip(lines, found, strict=True) if drop is None]
    drops = [drop for drop in found if drop is not None]
    try:
        gone = [decoded(Seen, line) for line, drop in zip(lines, found, strict=True) if drop is not None]
    except msgspec.DecodeError as error:
        raise RunError(f"{stage}: a row is no Example row ({plain(str(error))}); run `stepdistill audit`") from None
    return Written(
        rows_in=len(lines),
        units=len(kept),
        kept={"part": Lines.of(kept, None if drops else data)} if kept else {},
        drops=Lines.of([drop.line() for drop in drops]),
        reasons=Counter(drop.reason for drop in drops),
        dropped=measured(gone, truth),
    )


@dataclass(frozen=True)
class Corpus:
    """A filter that needs the whole corpus, in parts that can run apart. All take the stage's settings as keyword arguments.

    ``view``: the fields of a row that it looks at; unknown ones are passed over. ``prepare(**settings)``: what every block needs, made
    once. ``sketch(rows, prepared, **settings)``: one block as arrays, which can be pickled. ``resolve(sketches, prepared, **settings)``:
    the verdicts on all rows, in order, and at its end facts for the manifest.
    """

    view: type[msgspec.Struct]
    sketch: Callable[..., Any]
    resolve: Callable[..., Verdicts]
    prepare: Callable[..., Any] = lambda **settings: None

    def judge(self, rows: Iterable[Any], settings: Mapping[str, Any]) -> Verdicts:
        """The verdicts on rows that are at hand, as one block."""
        prepared = self.prepare(**settings)
        return self.resolve([self.sketch(list(rows), prepared, **settings)], prepared, **settings)
