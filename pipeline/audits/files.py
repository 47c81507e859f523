"""Every file of a result is as its manifest says; a changed row is named by its line.

    quality/05be..../part-00000.jsonl:17: this row was changed since its manifest was written

Each file is read once, in several processes where there is much to read; what that gave (``Audited.scans``) serves the checks after this
one. Limits: of a file's changed rows the first ``SHOWN`` are named, and how many there are.
"""

import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline import outputs
from pipeline.audits import Audited, Finding, Result, kind
from pipeline.audits.scan import Scan, Wanted, scan
from pipeline.files import plain
from pipeline.processes import WORTH_IT
from pipeline.progress import Note, bar
from pipeline.records import Example, OutputFile
from pipeline.stages import STAGES

if TYPE_CHECKING:
    from numpy.typing import NDArray

SHOWN: Final = 5
SECRET: Final = 16  # bytes


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on the bytes of every file."""
    tasks = [(result, wanted) for result in audited.all for wanted in _wanted(result)]
    for path in (folder / file.path for folder, manifest in audited.all for file in manifest.outputs):
        if kind(path) is None:
            yield Finding(path, "missing")
    weight = sum(wanted.path.stat().st_size for _, wanted in tasks)
    secret = os.urandom(SECRET)
    with bar("audit", weight >> 20, "MiB") if weight >= WORTH_IT else nullcontext(_silent) as advance:
        scans = audited.crew.in_order(scan, [(wanted,) for _, wanted in tasks], weight=weight, shared=secret)
        done = 0
        for (result, wanted), found in zip(tasks, scans, strict=True):
            audited.scans[wanted.path] = found
            advance(((done + found.bytes) >> 20) - (done >> 20))
            done += found.bytes
            audited.covered["files"] += 1 if wanted.beside is None else 2
            audited.covered["rows"] += found.rows
            audited.covered["bytes"] += found.bytes
            yield from _compared(result, wanted, found)


def _silent(amount: int = 1, note: Note = "") -> None:
    """No bar at all."""


def _wanted(result: Result) -> Iterator[Wanted]:
    """What is to be read of a result, each file once."""
    folder, manifest = result
    stage = STAGES[folder.parent.name]
    files = {file.path: file for file in manifest.outputs if kind(folder / file.path) == "file"}
    beside = {name: name.removesuffix(".jsonl") + ".xxh3" for name, file in files.items() if file.rows is not None}
    read_along = {name for name in beside.values() if name in files}
    for name in files:
        if name in read_along:
            continue
        drops = name == f"{outputs.DROPPED}.jsonl"
        rows = name in beside
        yield Wanted(
            folder / name,
            folder / beside[name] if beside.get(name) in read_along else None,
            rows=rows,
            tree=rows and stage.tree and not drops,
            marked=rows and stage.gives is Example and not drops,
            without=stage.adds if rows and not drops else (),
            drops=drops,
            requests=rows and (stage.name == "sample" or bool(stage.adds)),
        )


def _compared(result: Result, wanted: Wanted, found: Scan) -> Iterator[Finding]:
    """What was read beside what the manifest says."""
    folder, manifest = result
    written = {folder / file.path: file for file in manifest.outputs}
    file = written[wanted.path]
    if found.problem is not None:
        yield Finding(wanted.path, *found.problem)
    changed = (found.bytes, found.sha256) != (file.bytes, file.sha256)
    beside = wanted.beside is not None and found.beside_sha256 is not None
    beside_changed = beside and found.beside_sha256 != written[wanted.beside].sha256  # type: ignore[index]
    if changed:
        yield from _changed(wanted, found, trusted=beside and not beside_changed)
    if beside_changed:
        assert wanted.beside is not None
        yield Finding(wanted.beside, "changed since its manifest was written")
    if changed or beside_changed:
        return
    yield from _contradictions(wanted, file, found)
    if beside:
        assert wanted.beside is not None
        if written[wanted.beside].bytes != wanted.beside.stat().st_size:
            yield Finding(folder / outputs.MANIFEST, f"outputs: {plain(wanted.beside.name)} has not the bytes it says")
        if not found.digests_fit:
            yield Finding(wanted.beside, f"not the digests of the rows in {plain(wanted.path.name)}")


def _contradictions(wanted: Wanted, file: OutputFile, found: Scan) -> Iterator[Finding]:
    """What an unchanged file says against the rest of its entry in the manifest."""
    if wanted.rows and found.rows != file.rows:
        yield Finding(wanted.path, f"has {found.rows} rows, not the {file.rows} that the manifest says")
    if wanted.rows and not found.ended:
        yield Finding(wanted.path, "its last row has no newline", found.rows)
    if file.root != found.root:
        yield Finding(
            wanted.path, "root: not that of its rows" if wanted.tree else "root: no file of this kind has one"
        )


def _changed(wanted: Wanted, found: Scan, *, trusted: bool) -> Iterator[Finding]:
    """Which rows of a changed file differ, by the digests beside it where those are as they were written."""
    if not trusted or (not found.digests_fit and found.written is None):
        yield Finding(wanted.path, "changed since its manifest was written")
    elif found.digests_fit:
        yield Finding(wanted.path, "changed since its manifest was written (line endings)")
    else:
        assert found.digests is not None
        assert found.written is not None
        yield from _changed_rows(wanted.path, found.digests, found.written)


def _changed_rows(path: Path, now: "NDArray[Any]", then: "NDArray[Any]") -> Iterator[Finding]:
    """Rows that were changed, added, removed or moved: the first of them by line, and how many."""
    import numpy

    new = numpy.flatnonzero(~numpy.isin(now, then))
    gone = numpy.flatnonzero(~numpy.isin(then, now))
    if len(now) == len(then):
        told, places = "this row was changed since its manifest was written", new
        if not len(new):
            told, places = "another row stands here than was written: rows were moved", numpy.flatnonzero(now != then)
    else:
        told, places = "this row was not written here: it was added, or changed", new
        yield Finding(path, f"has {len(now)} rows, was written with {len(then)}")
        if not len(new) and len(now) > len(then):
            told, places = "from here on rows stand twice, or were moved", _first_difference(now, then)
        elif len(gone):
            lines = ", ".join(str(place + 1) for place in gone[:SHOWN])
            more = f" and {len(gone) - SHOWN} more" if len(gone) > SHOWN else ""
            yield Finding(path, f"the rows that were written as line {lines}{more} are gone")
        elif not len(new):
            told, places = "from here on rows are gone, or were moved", _first_difference(now, then)
    for place in places[:SHOWN]:
        yield Finding(path, told, int(place) + 1)
    if len(places) > SHOWN:
        yield Finding(path, f"so it is with {len(places) - SHOWN} more of its rows")


def _first_difference(now: "NDArray[Any]", then: "NDArray[Any]") -> "NDArray[Any]":
    import numpy

    shorter = min(len(now), len(then))
    different = numpy.flatnonzero(now[:shorter] != then[:shorter])[:1]
    return different if len(different) else numpy.array([min(shorter, len(now) - 1)]) if len(now) else different
