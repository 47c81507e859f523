"""The counts that each stage left over its examples are those of its rows, and what parse says of its drops is so (``--full``).

    dedup/302a..../counts.json: label: not the counts of the rows beside it

From these counts every filter's ``details.shift`` follows, which the check of manifests computes again without a look at rows.

Limits: where a column has more than ``shift.MOST`` different values only their number is known, and compared.
"""

from collections.abc import Iterator
from typing import Any

from pipeline import outputs, shift
from pipeline.audits import Audited, Finding, Result
from pipeline.blocks import Block, cut
from pipeline.files import RunError, canonical_json, plain
from pipeline.records import Example, Response
from pipeline.stages import STAGES


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on figures over rows, where rows are looked at."""
    for result in audited.all if audited.full else ():
        if STAGES[result.folder.parent.name].gives is Example:
            try:
                yield from _counts(audited, result)
            except (RunError, OSError, LookupError, TypeError, ValueError) as error:
                yield Finding(result.folder / shift.COUNTS, f"cannot be compared with the rows ({plain(str(error))})")


def _counts(audited: Audited, result: Result) -> Iterator[Finding]:
    chain = dict(audited.before(result)) | {result.folder.parent.name: result}
    parsed: Any = chain["parse"].manifest.settings
    truth = shift.Truth(parsed["label_type"], None if parsed["labels"] is None else tuple(parsed["labels"]))
    written, found = shift.read(result.folder), _measured(audited, result, Example, truth, None)[0]
    for name in sorted({*written.counts, *found.counts}):
        one, other = written.counts.get(name), found.counts.get(name)
        if one is not None and other is not None and (None in one or None in other):
            one, other = type(one)({None: one.total()}), type(other)({None: other.total()})
        if one != other:
            yield Finding(result.folder / shift.COUNTS, f"{plain(name)}: not the counts of the rows beside it")
    if written.rows != found.rows:
        yield Finding(result.folder / shift.COUNTS, f"rows: {written.rows}, but there are {found.rows}")
    if result.folder.parent.name == "parse" and "sample" in chain:
        drops = audited.scans.get(result.folder / f"{outputs.DROPPED}.jsonl")
        gone = frozenset(() if drops is None else drops.ids)
        came, dropped = _measured(audited, chain["sample"], Response, truth, gone)
        told = shift.change(came, dropped).model_dump(mode="json")
        if canonical_json(told) != canonical_json(result.manifest.details.get("shift")):
            yield Finding(result.folder / outputs.MANIFEST, "details.shift: not what the responses and drops give")


def _measured(
    audited: Audited, result: Result, row: type[Any], truth: shift.Truth, gone: frozenset[str] | None
) -> tuple[shift.Figures, shift.Figures]:
    """The counts over all rows of a result, and over those with the ids ``gone``."""
    blocks = list(cut(result.folder))
    every, some = shift.Figures(), shift.Figures()
    tasks = ((block,) for block in blocks)
    for found in audited.crew.in_order(measured, tasks, weight=sum(map(len, blocks)), shared=(row, truth, gone)):
        shift.add(every, found[0])
        shift.add(some, found[1])
    return every, some


def measured(
    shared: tuple[type[Any], shift.Truth, frozenset[str] | None], block: Block
) -> tuple[shift.Figures, shift.Figures]:
    """The same of one block."""
    row, truth, gone = shared
    rows = block.rows(row)
    return shift.measured(rows, truth), shift.measured([one for one in rows if gone and one.id in gone], truth)
