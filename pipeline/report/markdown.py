"""The report as Markdown (GitHub's), without the drawings: sentences, tables, examples.

    inert("plain words")          ->  plain words
    inert("<b>*x*</b> @someone")  ->  `<b>*x*</b> @someone`

Text of a run becomes a code span unless it is made of letters, digits, spaces and a few marks that mean nothing, so that nothing in it is a
tag, a link, a mention, a heading, a formula or the end of a table cell, whoever renders it.

Limits: rows are cut at ``LONGEST`` characters, and line ends in them become spaces.
"""

import re
from collections.abc import Iterator
from typing import Final

from pipeline.report import tables
from pipeline.report.shape import Gain, Report, ShownDrop, Told, Voted
from pipeline.report.tables import Table
from pipeline.report.written import CHECKS, number, percent, shown, times, words

LONGEST: Final = 400  # characters of a text
_HARMLESS = (
    re.compile(  # letters, digits, marks that mean nothing; an interval in brackets; a comparison between spaces
        r"(?:[^\W_]|[ ,;:%+–−…·→()'’“”?.—-]|\[[-+\d., ]+\](?![\[(:])|(?<=[\w%] )[<>]?=?(?= -?\d))*"
    )
)
_MARKS = re.compile(  # a list's mark, a rule, a domain's name, an emoji's
    r"(?:[-+]|\d{1,9}[.)])(?:\s|$)|[\s-]*$|.*(?:[^\W\d]\.[^\W\d]|:[^\W\d])", re.DOTALL
)


def inert(text: str) -> str:
    """A text on one line in which nothing is markup: as it is, or as a code span. Also fit for a table's cell."""
    line = " ".join(shown(text).split())
    line = line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
    if line and _HARMLESS.fullmatch(line) and not _MARKS.match(line):
        return line
    longest = max((len(run) for run in re.findall("`+", line)), default=0)
    fence = "`" * (longest + 1)
    room = " " if line.startswith("`") or line.endswith("`") or not line else ""
    cell = line.replace("|", "\\|")
    return f"{fence}{room}{cell}{room}{fence}"


def page(report: Report) -> str:
    """The whole text; the same for the same report."""
    return "\n\n".join(_parts(report)) + "\n"


def table(found: Table) -> str:
    """A table in GitHub's form, with its note."""
    header = " | ".join(inert(column.name) for column in found.columns)
    rule = "|".join("---:" if column.right else "---" for column in found.columns)
    rows = [" | ".join(_cell(cell) for cell in row.cells) for row in found.rows]
    text = "\n".join([f"| {header} |", f"|{rule}|", *(f"| {row} |" for row in rows)])
    return f"{text}\n\n{found.note}" if found.note else text


def _cell(cell: tables.Cell) -> str:
    text = inert(cell.text) if cell.text else ""
    return f"{text} ({inert(cell.sub)})" if cell.sub else text


def _parts(report: Report) -> Iterator[str]:
    yield f"# Report of {inert(report.title)}"
    yield from _headline(report)
    if report.gates:
        yield "## Gates"
        yield table(tables.gates(report.gates))
    if report.side_by_side is not None:
        yield "## Runs side by side"
        found = report.side_by_side
        if found.models:
            yield table(tables.side_models(found))
            yield (
                "Differences are to the first run, with the interval of independent rows (Newcombe); on the same rows it is too wide, and "
                "`stepdistill compare` pairs them."
            )
        yield table(tables.side_counts(found))
        yield table(tables.side_settings(found)) if found.settings else "Their settings are the same."
    yield from _models(report)
    yield from _rows(report)
    yield from _examples(report)
    yield from _provenance(report)


def _headline(report: Report) -> Iterator[str]:
    if report.headline.made:
        yield inert(report.headline.made)
    if report.metrics is None:
        yield (
            "This run was measured by an earlier version; `stepdistill run evaluate` measures it anew."
            if report.earlier_metrics
            else "This run has not been evaluated yet: what follows is what its stages did with the rows."
        )
    for name, found in (report.metrics.eval_sets if report.metrics is not None else {}).items():
        student = found.models.get("student")
        if student is not None:
            low, high = student.accuracy_interval
            yield (
                f"The student gives the right answer to **{percent(student.accuracy)}** ({percent(low)} to {percent(high)}) of the "
                f"{number(found.rows)} rows of {inert(name)}."
            )
        told = [f"- {inert(one.sentence)}" for one in found.comparisons]
        if told:
            yield "\n".join(told)
    if report.headline.gains:
        yield "\n".join(f"- {inert(_gain(gain))}" for gain in report.headline.gains)
    if report.out_of_date:
        told = [f"{stage} was {why}" for stage, why in report.out_of_date.items()]
        yield f"Not all of this belongs together: {inert('; '.join(told))}. `stepdistill run` brings it in step."


def _gain(found: Gain) -> str:
    return found.sentence if found.times is None else f"{times(found.times)} times {found.what}: {found.sentence}"


def _models(report: Report) -> Iterator[str]:
    if report.metrics is None:
        return
    yield "## The models"
    for name, found in report.metrics.eval_sets.items():
        dropped = f" ({number(found.dropped)} more have no usable true label)" if found.dropped else ""
        yield f"### On {inert(name)}, {number(found.rows)} rows{dropped}"
        if not found.models:
            yield "None of its rows has a usable true label, so nothing was measured on it."
            continue
        yield table(tables.models(found, report.costs))
        yield f"Accuracy with its {inert(report.metrics.interval)}."
        free = tables.texts(found)
        if free is not None:
            yield table(free)
        if found.comparisons:
            yield table(tables.comparisons(found))
        if found.contamination is not None:
            yield table(tables.contamination(found.contamination))
        if found.classes:
            yield table(tables.labels(found))
        for one in tables.slices(found):
            yield table(one)
        known = tables.calibrated(found)
        if known:
            yield table(tables.calibration(known))
        told = tables.rationales(found.models)
        if told is not None:
            yield table(told)
    if report.costs is not None and report.costs.models:
        yield "## What answering costs"
        yield table(tables.costs(report.costs))
        yield f"As measured on this machine ({inert(report.costs.device)})."
    if report.metrics.safety is not None:
        yield "## Safety"
        yield table(tables.safety(report.metrics.safety))
        yield "\n".join(f"- {inert(sentence)}" for sentence in report.metrics.safety.sentences)


def _rows(report: Report) -> Iterator[str]:
    yield "## Where the rows went"
    lines = [
        f"| {inert(bar.stage)} | {number(bar.rows_in)} | {number(bar.kept)} | {number(bar.dropped)} | {inert(bar.unit)} | "
        f"{', '.join(f'{inert(words(reason.name))} {number(reason.dropped)}' for reason in bar.reasons)} |"
        for bar in report.funnel
    ]
    yield "\n".join(["| stage | in | kept | dropped | unit | reasons |", "|---|---:|---:|---:|---|---|", *lines])
    if report.shifts:
        yield "## What filtering did"
    for stage, found in report.shifts.items():
        gone = found.rows.before - found.rows.after
        yield f"### {inert(stage)}: {number(gone)} of {number(found.rows.before)} dropped"
        if found.warnings:
            yield "\n".join(f"- {inert(warning)}" for warning in found.warnings)
        for one in (*tables.shift_tables(found), tables.lengths(found)):
            yield table(one)
    if report.asked:
        yield "## What the teachers were asked"
        yield table(tables.asked(report.asked))
    if report.votes is not None:
        votes = report.votes
        yield "## Votes and soft labels"
        yield f"The votes on {number(votes.unanimous)} of {number(votes.rows)} rows are unanimous."
        yield table(tables.levels("agreement", votes.agreement))
        yield table(tables.levels("vote entropy, bits", votes.entropy))
        rows = [_voted(row) for row in (*votes.split, *votes.soft)]
        if rows:
            yield "\n".join(rows)
    if report.contaminated is not None:
        yield "## What overlaps the eval sets"
        yield table(tables.searched(report.contaminated))
    if report.training:
        yield "## The training"
        for chart in report.training:
            yield table(tables.curve(chart))
    if report.sweeps:
        yield "## Sweeps"
    for sweep in report.sweeps:
        yield f"### {inert(sweep.name)} on {inert(sweep.eval_set)}"
        yield table(tables.sweep(sweep))
        yield f"With {inert(sweep.note)}."


def _examples(report: Report) -> Iterator[str]:
    if report.rationales:
        yield "## What the student says when asked why"
        yield "\n".join(_told(row) for row in report.rationales)
    if report.kept:
        yield "## Rows that were kept"
        yield "\n".join(
            f"- {inert(row.input)}\n"
            + (f"  - label: {inert(row.label)}\n" if row.label is not None else "")
            + f"  - teacher: {inert(row.why)}"
            for row in report.kept
        )
    yield "## Rows that were dropped"
    if not report.drops:
        yield "None: every row that came in went on."
    for group in report.drops:
        yield f"### {inert(group.stage)}: {inert(words(group.reason))}, {number(group.dropped)} dropped"
        if group.rows:
            yield "\n".join(_drop(row) for row in group.rows)


def _told(row: Told) -> str:
    lines = [f"- {inert(row.input)}", f"  - true label {inert(row.gold)}"]
    lines += [
        f"  - {inert(one.model)} says {inert(one.label or 'no label')}, because: {inert(one.rationale)}"
        for one in row.said
    ]
    return "\n".join(lines)


def _drop(row: ShownDrop) -> str:
    lines = [f"- id {inert(row.id)}"]
    if row.text is not None:
        lines.append(f"  - {inert(row.text)}")
    if row.pair is not None:
        lines.append(f"  - {inert(row.pair.where)}: {inert(''.join(piece.text for piece in row.pair.own))}")
        lines.append(f"  - {inert(row.pair.whose)}: {inert(''.join(piece.text for piece in row.pair.other))}")
    return "\n".join(lines)


def _voted(row: Voted) -> str:
    votes = ", ".join(f"{vote.teacher}: {vote.label if vote.label is not None else 'no label'}" for vote in row.votes)
    lines = [f"- {inert(row.input)}", f"  - {inert(votes)}"]
    if row.soft_labels:
        lines.append(f"  - {inert(', '.join(f'{label} {percent(value)}' for label, value in row.soft_labels.items()))}")
    return "\n".join(lines)


def _provenance(report: Report) -> Iterator[str]:
    yield "## Where it comes from"
    verdict = report.audit
    if verdict is None:
        yield "Nobody had audited the run when this was written; `stepdistill audit` does."
    else:
        told = "whole" if verdict.whole else f"{number(verdict.findings)} findings"
        yield (
            f"An audit when this was written: **{told}**. It read {number(verdict.files)} files, {number(verdict.rows)} rows and "
            f"{number(verdict.responses)} responses. {inert(verdict.signature)}."
        )
        if verdict.shown:
            yield "\n".join(f"- {inert(finding)}" for finding in verdict.shown)
    yield "To check it yourself, in the folder of the project:"
    yield "\n".join(f"    {command}" for command, _ in CHECKS)
    yield table(tables.stamps(report))
    yield table(tables.sources(report))
