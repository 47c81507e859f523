"""No row came or went without a word: filters keep or drop exactly what they read, and drops are as many as the manifest says.

    quality/05be..../part-00000.jsonl:17: not a row of dedup, or not in its place there

A filter passes lines through, so that its rows are lines of the stage before, in their order, and its drops have the ids of the others,
in their order. In a stage that adds something, the same holds for the rows without it. Rows are compared by their marks
(``pipeline.audits.scan``); only those that a filter dropped are read again, for their ids.

Limits: what a map made of each row is for ``--full``.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pipeline import outputs
from pipeline.audits import Audited, Finding, Result
from pipeline.audits.scan import Scan, line_at
from pipeline.files import plain
from pipeline.records import Example, decoded
from pipeline.stages import STAGES

if TYPE_CHECKING:
    from numpy.typing import NDArray

DROPS: Final = f"{outputs.DROPPED}.jsonl"


class _Id(msgspec.Struct, frozen=True):
    id: str


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on the rows of filters, and on drops."""
    for result in audited.all:
        yield from _check_drops(audited, result)
        yield from _check_doubles(audited, result)
        stage = STAGES[result.folder.parent.name]
        if stage.kind == "filter" or stage.adds:
            yield from _check_filter(audited, result)


def _check_drops(audited: Audited, result: Result) -> Iterator[Finding]:
    drops = audited.scans.get(result.folder / DROPS)
    if drops is None:
        yield Finding(result.folder / DROPS, "missing, or not read")
    elif drops.problem is None and dict(drops.reasons) != result.manifest.counts.reasons:
        yield Finding(result.folder / DROPS, "counts by reason are not the manifest's")


class _Rows:
    """The kept rows of a result, over all of its files."""

    def __init__(self, audited: Audited, result: Result) -> None:
        import numpy

        written = [result.folder / file.path for file in outputs.row_files(result.folder)]
        self.files = [(path, audited.scans[path]) for path in written if path in audited.scans]
        self.whole = len(self.files) == len(written) and all(one.problem is None for _, one in self.files)
        self.ends = numpy.cumsum([0, *(scan.rows for _, scan in self.files)])

    def marks(self, *, bare: bool = False) -> "NDArray[Any]":
        """One mark a row; ``bare``: those of the rows without what the stage added."""
        import numpy

        found = [scan.bare if bare else scan.marks for _, scan in self.files]
        return numpy.concatenate([numpy.zeros(0, numpy.uint64), *(one for one in found if one is not None)])

    def place(self, row: int) -> tuple[Path, int]:
        """File and line (from 1) of a row (from 0)."""
        import numpy

        number = int(numpy.searchsorted(self.ends, row, side="right")) - 1
        return self.files[number][0], row - int(self.ends[number]) + 1

    def lines(self, rows: "NDArray[Any]") -> Iterator[bytes]:
        """The lines of these rows (rising)."""
        for number, (path, found) in enumerate(self.files):
            here = rows[(rows >= self.ends[number]) & (rows < self.ends[number + 1])] - self.ends[number]
            assert found.lengths is not None
            yield from line_at(path, found.lengths, here)

    def ids(self, rows: "NDArray[Any]") -> Iterator[str | None]:
        """The ids of these rows (rising); None for one that cannot be read."""
        for line in self.lines(rows):
            try:
                yield decoded(_Id, line).id
            except msgspec.DecodeError:
                yield None


def _check_doubles(audited: Audited, result: Result) -> Iterator[Finding]:
    """No row stands in a result twice."""
    import numpy

    if STAGES[result.folder.parent.name].gives is not Example:
        return
    rows = _Rows(audited, result)
    marks = rows.marks()
    order = numpy.argsort(marks, kind="stable")
    doubled = order[1:][marks[order][1:] == marks[order][:-1]]
    if len(doubled):
        path, line = rows.place(int(doubled.min()))
        yield Finding(path, f"this row stands in the result twice ({len(doubled)} such rows)", line)


def _passed(audited: Audited, result: Result) -> tuple[_Rows, _Rows] | None:
    """The rows that a filter read and those that it kept; None where some of them could not be read."""
    parents = [audited.parent(result, name) for name in result.manifest.parents]
    if len(parents) != 1 or parents[0] is None:
        return None
    came, kept = _Rows(audited, parents[0]), _Rows(audited, result)
    return (came, kept) if came.whole and kept.whole else None


def dropped_lines(audited: Audited, result: Result) -> Iterator[bytes] | None:
    """The rows that a filter read and did not keep; None where it keeps others as well, or some could not be read."""
    stage = STAGES[result.folder.parent.name]
    passed = _passed(audited, result) if stage.kind == "filter" or stage.adds else None
    if passed is None:
        return None
    gone = _without(passed[0].marks(), passed[1].marks(bare=bool(stage.adds)))
    return None if isinstance(gone, int) else passed[0].lines(gone)


def _check_filter(audited: Audited, result: Result) -> Iterator[Finding]:
    import numpy

    folder, manifest = result
    drops, passed = audited.scans.get(folder / DROPS), _passed(audited, result)
    if passed is None or drops is None or drops.problem is not None:
        return  # was named already
    source = next(iter(manifest.parents))
    came, kept = passed
    before, after = came.marks(), kept.marks(bare=bool(STAGES[folder.parent.name].adds))
    gone = _without(before, after)
    if isinstance(gone, int):
        path, line = kept.place(gone)
        yield Finding(path, f"not a row of {source}, or not in its place there", line)
        dropped = set(drops.ids)
        lost = (row for row in came.ids(numpy.flatnonzero(~numpy.isin(before, after))) if row not in dropped)
        for row in islice(lost, 1):
            yield Finding(folder, f"row {plain(str(row))} of {source} is neither kept as it was nor dropped")
        return
    yield from _check_ids(folder, source, came, gone, drops)


def _check_ids(folder: Path, source: str, came: _Rows, gone: "NDArray[Any]", drops: Scan) -> Iterator[Finding]:
    """The rows that a filter did not keep are its drops, in order."""
    for number, row in enumerate(came.ids(gone)):
        if number == len(drops.ids) or drops.ids[number] != row:
            path, line = came.place(int(gone[number]))
            if row is not None and row not in drops.ids:
                yield Finding(folder, f"row {plain(row)} of {source} is neither kept as it was nor dropped")
            elif row is None:
                yield Finding(path, "the row has no id", line)
            else:
                yield Finding(
                    folder / DROPS, f"not a row of {source} that is missing here, or not in its place", number + 1
                )
            return
    if len(drops.ids) > len(gone):
        yield Finding(folder / DROPS, f"drops rows that are no row of {source}, or were kept", len(gone) + 1)


def _without(came: "NDArray[Any]", kept: "NDArray[Any]") -> "NDArray[Any] | int":
    """Which rows of ``came`` are not kept; or the first of ``kept`` (from 0) that does not stand there in order."""
    import numpy

    places = positions(came, kept)
    return places if isinstance(places, int) else numpy.delete(numpy.arange(len(came)), places)


def positions(came: "NDArray[Any]", kept: "NDArray[Any]") -> "NDArray[Any] | int":
    """Where each of ``kept`` stands in ``came``, in order; or the first of them (from 0) that does not stand there in order."""
    import numpy

    if not len(kept):
        return numpy.zeros(0, numpy.int64)
    if not len(came):
        return 0
    order = numpy.argsort(came, kind="stable")
    ranks = numpy.minimum(numpy.searchsorted(came, kept, sorter=order), len(came) - 1)
    places = order[ranks]
    good = came[places] == kept
    good[1:] &= places[1:] > places[:-1]
    return places if good.all() else int(numpy.argmin(good))
