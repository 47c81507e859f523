"""The counts that each stage left over its examples are those of its rows, and what parse says of its drops is so (``--full``).

    dedup/302a..../counts.json: label: not the counts of the rows beside it

From these counts every filter's ``details.shift`` follows, which the check of manifests computes again without a look at rows. All rows
are counted where parse made them. What a filter kept is that less what it dropped, once the rows' marks show that it dropped just these.

Limits: where a column has more than ``shift.MOST`` different values only their number is known, and compared.
"""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

import msgspec

from pipeline import outputs, shift
from pipeline.audits import Audited, Finding, Result
from pipeline.audits.laws import dropped_lines
from pipeline.blocks import Block, cut
from pipeline.files import RunError, canonical_json, plain
from pipeline.records import Example, decoded
from pipeline.stages import STAGES

AT_ONCE: Final = 10_000  # dropped rows that are held


class _Came(msgspec.Struct, frozen=True):
    """The fields of a Response that are counted."""

    id: str
    input: str
    text: str
    gold: str | None
    slices: dict[str, str] = msgspec.field(default_factory=dict)


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on figures over rows, where rows are looked at."""
    known: dict[Path, shift.Figures] = {}
    for result in audited.all if audited.full else ():
        if STAGES[result.folder.parent.name].gives is Example:
            try:
                yield from _counts(audited, result, known)
            except (RunError, OSError, LookupError, TypeError, ValueError) as error:
                told = plain(str(error).removesuffix("; run `stepdistill audit`"))
                yield Finding(result.folder / shift.COUNTS, f"cannot be compared with the rows ({told})")


def _counts(audited: Audited, result: Result, known: dict[Path, shift.Figures]) -> Iterator[Finding]:
    chain = dict(audited.before(result)) | {result.folder.parent.name: result}
    if "parse" not in chain:
        return  # the check of the chain names what is missing
    parsed: Any = chain["parse"].manifest.settings
    truth = shift.Truth(parsed["label_type"], None if parsed["labels"] is None else tuple(parsed["labels"]))
    written, found = shift.read(result.folder), _found(audited, result, truth, known)
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
        came, dropped = _measured(audited, chain["sample"], _Came, truth, gone)
        told = shift.change(came, dropped).model_dump(mode="json")
        if canonical_json(told) != canonical_json(result.manifest.details.get("shift")):
            yield Finding(result.folder / outputs.MANIFEST, "details.shift: not what the responses and drops give")


def _found(audited: Audited, result: Result, truth: shift.Truth, known: dict[Path, shift.Figures]) -> shift.Figures:
    """The counts over the rows of a result, each counted once."""
    if result.folder not in known:
        parents = [audited.parent(result, name) for name in result.manifest.parents]
        gone = dropped_lines(audited, result)
        if gone is None or len(parents) != 1 or parents[0] is None:
            known[result.folder] = _measured(audited, result, shift.Seen, truth, frozenset())[0]
        else:
            dropped = shift.Figures()
            while some := [decoded(shift.Seen, line) for line in islice(gone, AT_ONCE)]:
                shift.add(dropped, shift.measured(some, truth))
            known[result.folder] = shift.less(_found(audited, parents[0], truth, known), dropped)
    return known[result.folder]


def _measured(
    audited: Audited, result: Result, row: type[Any], truth: shift.Truth, gone: frozenset[str]
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
    shared: tuple[type[Any], shift.Truth, frozenset[str]], block: Block
) -> tuple[shift.Figures, shift.Figures]:
    """The same of one block."""
    row, truth, gone = shared
    rows = block.rows(row)
    return shift.measured(rows, truth), shift.measured([one for one in rows if one.id in gone] if gone else [], truth)
