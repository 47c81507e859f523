"""No row came or went without a word: filters keep or drop exactly what they read, and drops are as many as the manifest says."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from msgspec import DecodeError

from pipeline import outputs
from pipeline.audits import Audited, Finding, Result
from pipeline.files import RunError, plain
from pipeline.records import Example
from pipeline.stages import STAGES


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on the rows of filters, and on drops."""
    for result in (*audited.results.values(), *audited.others):
        yield from _check_drops(result)
    for stage, result in audited.results.items():
        if STAGES[stage].kind == "filter" or STAGES[stage].adds:
            parents = [found.folder for name, found in audited.ancestors(stage) if name in result.manifest.parents]
            try:
                yield from _check_filter(stage, result.folder, parents)
            except RunError as error:
                yield Finding(result.folder, str(error))
            except FileNotFoundError as error:
                yield Finding(Path(error.filename), "missing")


def _check_drops(result: Result) -> Iterator[Finding]:
    path = result.folder / f"{outputs.DROPPED}.jsonl"
    try:
        reasons = Counter(drop.reason for drop in outputs.read_drops(result.folder))
    except (RunError, OSError) as error:
        yield Finding(path, plain(str(error)))
        return
    if dict(reasons) != result.manifest.counts.reasons:
        yield Finding(path, "counts by reason are not the manifest's")


def _check_filter(stage: str, folder: Path, parents: list[Path]) -> Iterator[Finding]:
    """A filter passes lines through: kept lines are the input's lines in order, and the rest are its drops.

    In a stage that adds something, the same holds for the rows without it.
    """
    dropped = {drop.id for drop in outputs.read_drops(folder)}
    kept = outputs.lines(folder)
    added = STAGES[stage].adds
    if added:
        kept = (_without(added, line) for line in kept)
    for parent in parents:
        for line in outputs.lines(parent):
            try:
                row = Example.read(line).id
            except DecodeError:
                return  # a row that cannot be read was named already, with its line
            if row in dropped:
                dropped.remove(row)
            elif next(kept, None) != (_without(added, line) if added else line):
                yield Finding(folder, f"row {plain(row)} of {parent.parent.name} is neither kept as it was nor dropped")
                return
    if dropped or next(kept, None) is not None:
        yield Finding(folder, f"holds rows that {stage} never read")


def _without(fields: tuple[str, ...], line: bytes) -> bytes:
    """The line of an example without what a later stage sets in it."""
    try:
        return Example.read(line).changed(**dict.fromkeys(fields)).line()
    except DecodeError:
        return line
