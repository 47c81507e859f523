"""What commands print: tables, rows and JSON."""

import json
import sys
from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from rich.text import Text

    from pipeline.explore import DryRun, Suspects
    from pipeline.gates import Verdict
    from pipeline.metrics import Metrics
    from pipeline.preview import Piece, Preview
    from pipeline.resample import Report
    from pipeline.results import Allowance, Estimate
    from pipeline.revocations import Revocation
    from pipeline.revoke import Reach, Reached
    from pipeline.runner import Outcome
    from pipeline.sweeps import Planned, Swept

    Cell = str | Text


def would_drop(found: "DryRun") -> None:
    """One stage's dry run: counts in tables, then examples of each reason."""
    from pipeline.files import plain

    def share(rows: int) -> str:
        return f"{rows / found.rows:.1%}" if found.rows else ""

    print(
        f"{found.stage}: of {found.rows:,} rows of {found.reads}, {found.rows - found.dropped:,} would be kept and "
        f"{found.dropped:,} dropped{f' ({share(found.dropped)})' if found.dropped else ''}; nothing was written"
    )
    inside = [one for one in found.reasons if one.configured]
    outside = [one for one in found.reasons if not one.configured]
    if found.stage == "quality":
        table(
            ("filter", "settings", "alone", "share", "first", "only"),
            [
                (
                    one.name,
                    _brief(one.settings),
                    f"{one.alone:,}",
                    share(one.alone or 0),
                    f"{one.first:,}",
                    f"{one.only:,}",
                )
                for one in inside
            ],
            right=(2, 3, 4, 5),
        )
        print(
            "alone: whatever the others do; first: as the run counts it, in this order; only: no other of these objects"
        )
    elif inside:
        table(
            ("reason", "rows", "share"),
            [(one.name, f"{one.first:,}", share(one.first)) for one in inside],
            right=(1, 2),
        )
    if found.together:
        table(
            ("both object", "rows", "share"),
            [(f"{one}, {other}", f"{rows:,}", share(rows)) for one, other, rows in found.together],
            right=(1, 2),
        )
    if outside:
        table(
            ("not configured", "settings", "alone", "share", "besides"),
            [
                (one.name, _brief(one.settings), f"{one.alone:,}", share(one.alone or 0), f"{one.only:,}")
                for one in outside
            ],
            right=(2, 3, 4),
        )
        print("besides: rows that none of the configured filters drops, and this one would")
    for name, why in found.not_tried.items():
        print(f"not tried: {name}: {plain(why)}")
    for one in found.reasons:
        for drop in one.examples:
            if found.stage == "quality":
                print(f"{one.name}: {plain(drop['id'])}: {plain(drop['evidence']['why'])}")
            else:
                print(f"{one.name}: {plain(drop['id'])}")
                fields(drop["evidence"], indent="    ")


def _brief(settings: dict[str, Any] | None) -> str:
    """``minimum 4``: the settings that are single values."""
    return ", ".join(f"{name} {value}" for name, value in (settings or {}).items() if isinstance(value, int | float))


SHOWN = 4  # examples of the first batch
MARKS = {"⟦": "⟧", "⟨": "⟩"}  # around what is learned, where there are no colours, and around special tokens


def first_batch(found: "Preview", command: list[str]) -> None:
    """What a training would begin with: counts in tables, then the first examples, and ``command``, which trains.

    What is learned is green; without colours (no terminal, NO_COLOR) it stands in ⟦ ⟧.
    """
    import shlex

    from rich.console import Console
    from rich.text import Text

    from pipeline.files import plain

    said = f"train: {plain(found.student)} would be trained as {' and '.join(one.name for one in found.models)}"
    print(f"{said}, computing in {found.precision}; nothing was trained or written")
    dropped = ", ".join(f"{reason} {number:,}" for reason, number in found.dropped.items())
    counted = " and ".join(f"{number:,} {split}" for split, number in found.rows.items())
    print(
        f"rows: {counted} of {sum(found.rows.values()) + sum(found.dropped.values()):,}"
        f"{f', {found.cut:,} of them without their end' if found.cut else ''}"
        f"{f'; dropped: {dropped}' if dropped else ''}"
    )
    table(
        ("model", "task", "weight", "sequences", "mean tokens", "longest", "targets an epoch", "in the first step"),
        [
            (
                model.name,
                one.task,
                f"{one.weight:.2g}",
                f"{one.sequences:,}",
                f"{one.mean_length:,.1f}",
                f"{one.longest:,}",
                f"{one.epoch:,.0f}",
                f"{one.first_step:,.0f}",
            )
            for model in found.models
            for one in model.tasks
        ],
        right=(2, 3, 4, 5, 6, 7),
    )
    for model in found.models:
        batch = model.batch
        accumulated = f" of {found.accumulation:,} batches" if found.accumulation > 1 else ""
        print(
            f"{model.name}: {model.steps:,} steps{accumulated}; in the first batch {batch.examples:,} examples, their {batch.sequences:,} "
            f"sequences {'packed' if batch.packed else 'padded'} in {batch.rows:,} rows of {batch.positions:,} positions together, "
            f"{batch.padding:.1%} of them padding"
        )
    console = Console(width=None if sys.stdout.isatty() else 120)
    colours = console.color_system is not None and not console.no_color
    shown = list(dict.fromkeys(one.example for one in found.sequences))[:SHOWN]
    learned = "green" if colours else "in ⟦ ⟧"
    print(f"the first {len(shown):,} examples: what is learned is {learned}, ⟨ ⟩ is a special token, ↵ a new line")
    for one in found.sequences:
        if one.example in shown:
            share = "" if one.share == 1 else f", share {one.share:.3g}"
            console.print(Text(f"{plain(one.example)} {one.task}{share}"), soft_wrap=True)
            console.print(Text("    ").append(_masked(one.pieces, colours=colours)), soft_wrap=True)
    if found.refused is not None:
        print(f"a training would be refused: {found.refused}")
    print(f"to train: {plain(shlex.join(command), 10_000)}")


def _masked(pieces: "list[Piece]", *, colours: bool) -> "Text":
    """The pieces in one line, a ``|`` where what is learned begins."""
    from rich.text import Text

    shown = Text()
    for learned, part in groupby(pieces, lambda piece: piece.learned):
        if learned:
            shown.append("|" if colours else "|⟦")
        for special, together in groupby(part, lambda piece: piece.special):
            style = f"{'bold green' if learned else 'dim'}{' reverse' if special else ''}"
            shown.append("".join(_inert(piece.text, special=special) for piece in together), style)
        if learned and not colours:
            shown.append("⟧")
    return shown


def _inert(text: str, *, special: bool) -> str:
    """A piece's text on one line; what is text in it cannot pass for a mark."""
    from pipeline.files import plain

    marks = {*MARKS, *MARKS.values(), "↵"}
    shown = "".join(
        f"\\u{ord(character):04x}" if character in marks else "↵" if character == "\n" else plain(character)
        for character in text
    )
    return f"⟨{shown}⟩" if special else shown


def suspects(found: "Suspects") -> None:
    """Rows whose label their neighbours contradict, and what the ranking is worth."""
    from pipeline.files import plain

    for row in found.suspects:
        gold = f", gold {plain(row.gold)}" if row.gold is not None else ""
        print(
            f"{plain(row.id)}: score {row.score:.2f}: label {plain(row.label)}, "
            f"{row.votes} of {found.k} neighbours {plain(row.neighbours)}{gold}"
        )
        print(f"    {plain(row.input)}")
        for other in row.nearest:
            print(f"    {other.similarity:.2f} {plain(other.label)}: {plain(other.input)} ({plain(other.id)})")
        print()
    by = (
        "the words they share (weak evidence of short texts; an embedding model, --model, sees more)"
        if found.by == "words"
        else f"embeddings of {plain(found.by)}"
    )
    print(
        f"{found.stage}: {found.total:,} of {found.rows:,} rows are suspects by {by}: the {found.k} rows most like each speak for another "
        "label. That is evidence to look at; nothing was dropped."
    )
    told = found.agreement
    if told is None:
        return
    line = f"measured against gold: {told.wrong:.1%} of the {told.rows:,} rows that have it have another label"
    if told.suspects is not None and told.found is not None:
        line += f"; of the suspects {told.suspects:.1%}, and {told.found:.1%} of all such rows are among them"
    print(line)
    if told.first:
        print("    of the first " + ", ".join(f"{rank:,} {rate:.1%}" for rank, rate in told.first.items()))


def revoked(known: "list[Revocation]", held: "list[Reached]", not_looked_through: "list[Path]") -> None:
    """What is revoked, and the results that still hold it."""
    if not known:
        print("nothing is revoked")
        return
    table(("revoked", "id", "source", "reason"), [(one.kind, one.id, one.source or "", one.reason) for one in known])
    _reached(held)
    _not_looked_through(not_looked_through)


def reach(run: "Path", found: "Reach", *, dry_run: bool) -> None:
    """What a revocation reached, and what to do about it."""
    from pipeline.files import plain

    one = found.revocation
    print(f"{one.kind} {plain(one.id)}{f' ({plain(one.source)})' if one.source else ''}: {plain(one.reason, 1000)}")
    _reached(found.results)
    places: dict[str, Iterable[object]] = {
        "students and baselines": found.checkpoints,
        "evaluations": found.evaluations,
        "exports and signatures": found.documents,
    }
    for title, paths in places.items():
        print(f"{title}: {plain(', '.join(map(str, paths)), 2000) or 'none'}")
    stored = plain(", ".join(found.stored[:3]), 2000) or "none"
    many = f"{found.stored_total:,}, the first: {stored}, .." if found.stored_total > 3 else stored
    print(f"answers in the response store, which stay, so that none is asked for again: {many}")
    _not_looked_through(found.not_looked_through)
    if found.duplicates:
        told = f"{', '.join(found.duplicates[:3])}{', ..' if len(found.duplicates) > 3 else ''}"
        print(
            f"dropped as its duplicates, and back without it: {len(found.duplicates):,} ({plain(told)}); revoke them, too, if they are bad"
        )
    if dry_run:
        print("nothing was written")
        return
    said = "was revoked before, and stays as it stands, in" if found.known else "recorded in"
    print(f"{said} {run / 'revoked.jsonl'}; `stepdistill run` builds without it")
    old = [str(one.folder) for one in found.results if one.kept] + list(map(str, found.evaluations))
    if old:
        print(
            f"then these results are no longer in force, but lie on disk until you remove them: {plain(' '.join(old), 10_000)}"
        )


def _not_looked_through(folders: "list[Path]") -> None:
    for folder in folders:
        print(f"moved away by repair, not looked through: {folder}")


def _reached(results: "list[Reached]") -> None:
    rows = [
        (
            one.stage,
            one.folder.name[:8],
            "in force" if one.in_force else "earlier",
            f"{one.kept:,}",
            f"{one.dropped:,}",
            ", ".join(row["id"] for row in one.rows[:3]) + (", .." if len(one.rows) > 3 else ""),
        )
        for one in results
    ]
    table(("stage", "result", "", "kept", "dropped", "rows"), rows, right=(3, 4))


def resampled(report: "Report") -> None:
    """How often teachers that were asked again gave the same answer."""
    from pipeline.files import plain

    for name, why in report.absent.items():
        print(f"asked again: not {plain(name, 80)}: {why}")
    print(
        f"asked again: {report.asked:,} rows, {report.same_text:,} with the same text, {report.same_label:,} with the same label, "
        f"{report.failed:,} failed"
    )
    rows = [
        (
            plain(one.id, 60),
            plain(one.label_before or "none", 30),
            "failed" if one.failed else plain(one.label_now or "none", 30),
            plain(one.before, 60),
            plain(one.now, 60),
        )
        for one in report.differing
    ]
    if rows:
        table(("row", "label", "label now", "text", "text now"), rows)


BAR, INTERVAL = 10, 12  # characters of bars in tables: what a run ends with fits into 80 columns


def summary(outcomes: Iterable["Outcome"]) -> None:
    """A row for each stage of a run, with what part of its rows it kept, and a line for each that dropped any."""
    from pipeline import bars
    from pipeline.files import plain
    from pipeline.runner import reasons_line

    drawn = bars.marks()
    rows: list[tuple[Cell, ...]] = []
    dropped = []
    for outcome in outcomes:
        counts = outcome.manifest.counts
        kept = counts.kept / counts.rows_in if counts.rows_in else None
        share: Cell = ""
        if kept is not None:
            share = f"{kept:.1%}" if drawn is None else coloured(bars.share(kept, BAR, drawn), "green")
        when = f"{outcome.seconds:.1f} s" if outcome.ran else "unchanged"
        figures = (f"{counts.rows_in:,}", counts.unit, f"{counts.kept:,}", f"{counts.dropped:,}")
        rows.append((outcome.stage, *figures, share, when))
        if counts.reasons:
            dropped.append(f"{outcome.stage} dropped {reasons_line(counts)}")
    right = (1, 3, 4, 6) if drawn is not None else (1, 3, 4, 5, 6)
    table(("stage", "in", "", "kept", "dropped", "share kept", "time"), rows, right, whole=(5, 6))
    for line in dropped:
        print(plain(line, 1000))


def estimated(estimate: "Estimate") -> None:
    """What sampling will take: a row for each teacher, and what the figures rest on."""
    from pipeline.files import plain
    from pipeline.progress import duration

    rows = []
    for one in estimate.teachers:
        known = one.completion_tokens < one.completion_tokens_at_most
        cost = "" if one.cost is None else f"about {one.cost:,.2f}"
        rows.append(
            (
                one.teacher,
                f"{one.to_ask:,}",
                f"{one.stored:,}",
                f"{'' if one.prompt_tokens_exact else 'about '}{one.prompt_tokens:,}",
                f"{f'about {one.completion_tokens:,}, ' if known else ''}at most {one.completion_tokens_at_most:,}",
                "not known" if one.seconds is None else f"about {duration(one.seconds)}",
                cost,
            )
        )
    table(("teacher", "to ask", "stored", "prompt tokens", "completion tokens", "time", "cost"), rows, right=(1, 2, 3))
    needed = "not known before a first run" if estimate.seconds is None else f"about {duration(estimate.seconds)}"
    print(
        f"teacher: {estimate.to_ask:,} requests to ask ({estimate.stored:,} more are answered in the store), "
        f"{'' if estimate.prompt_tokens_exact else 'about '}{estimate.prompt_tokens:,} prompt tokens; time {needed}"
    )
    for one in estimate.teachers:
        if one.to_ask and not one.prompt_tokens_exact:
            print(f"{plain(one.teacher)}: has no tokenizer here, so prompt tokens are reckoned from characters")
        if one.foreseen < one.to_ask:
            print(
                f"{plain(one.teacher)}: no answer of known length in the store yet for {one.to_ask - one.foreseen:,} requests, "
                "so max_tokens is expected of them"
            )
    if estimate.cost is not None and estimate.cost_at_most is not None:
        print(
            f"cost: about {estimate.cost:,.2f}, at most {estimate.cost_at_most:,.2f} at the prices of stages.sample.teacher.price"
        )
    if estimate.budget is not None:
        print(_allowed(estimate.budget, estimate.to_ask))


def _allowed(allowance: "Allowance", to_ask: int) -> str:
    """``budget: 5 usd hold about 3,100 of the 5,000 requests; 2 runs``."""
    parts = " and ".join(f"{value:,g} {part}" for part, value in allowance.budget.items())
    if allowance.runs is None and not allowance.requests:
        told = "do not hold one request; raise stages.sample.budget or lower max_tokens"
    elif allowance.runs is None:
        told = f"hold about {allowance.requests:,} of the {to_ask:,} requests, but not one of some teacher; raise stages.sample.budget"
    elif allowance.runs == 1:
        told = f"hold all {to_ask:,} requests; 1 run"
    else:
        told = f"hold about {allowance.requests:,} of the {to_ask:,} requests; {allowance.runs:,} runs"
    if allowance.not_reckoned:
        told += f" (without {' and '.join(allowance.not_reckoned)}: not known before a first run)"
    return f"budget: {parts} {told}"


def asked(teachers: dict[str, dict[str, Any]]) -> None:
    """What each teacher was asked for this result, and what that took."""
    rows = []
    for name, found in teachers.items():
        asked = found["asked"]
        if asked is None:
            continue
        failures = ", ".join(f"{reason} {number:,}" for reason, number in sorted(asked["failures"].items()))
        cached = f" ({asked['cached_tokens']:,} cached)" if asked["cached_tokens"] else ""
        rows.append(
            (
                name,
                f"{asked['requests']:,}",
                f"{asked['answers']:,}",
                failures,
                f"{asked['prompt_tokens']:,}{cached}",
                f"{asked['completion_tokens']:,}",
                f"{asked['tokens_per_second']:,.0f}",
                f"{asked['cost']:,.4g}" if asked["cost"] else "",
            )
        )
    if rows:
        header = ("teacher", "asked", "answered", "failed", "tokens in", "tokens out", "tokens/s", "cost")
        table(header, rows, right=(1, 2, 4, 5, 6, 7))


def models(figures: "Metrics", speeds: dict[str, float]) -> None:
    """A table of models for each eval set, each accuracy with its interval, which is drawn on a terminal."""
    from pipeline import bars
    from pipeline.measure import in_order

    drawn = bars.marks()
    for name, eval_set in figures.eval_sets.items():
        rows: list[tuple[Cell, ...]] = []
        for model in in_order(eval_set.models):
            found = eval_set.models[model]
            low, high = found.accuracy_interval
            accuracy = f"{found.accuracy:.1%} [{low * 100:.1f}, {high * 100:.1f}]"
            bar: tuple[Cell, ...] = ()
            if drawn is not None:
                bar = (coloured(bars.interval(low, found.accuracy, high, INTERVAL, drawn), "cyan"),)
            macro = "" if found.macro_f1 is None else f"{found.macro_f1:.3f}"
            error = "" if found.calibration is None else f"{found.calibration.ece:.3f}"
            speed = f"{speeds[model]:,.1f}" if model in speeds else ""
            size = f"{found.parameters / 1e6:,.0f} M" if found.parameters else ""
            rows.append((model, accuracy, *bar, macro, error, speed, size, f"{found.rows:,}"))
        scale = ("macro-F1",) if drawn is None else (f"{'0':<{INTERVAL - 1}}1", "macro\nF1")
        header = (f"on {name}", "accuracy [95%]", *scale, "ECE", "rows/s", "size", "rows")
        count = len(header)
        table(header, rows, right=tuple(range(count - 5, count)), whole=tuple(range(1, count)))


def compared(figures: "Metrics") -> None:
    """What can be said of one model beside another, in a sentence each."""
    from pipeline.files import plain
    from pipeline.measure import comparisons

    for name, one in comparisons(figures):
        print(f"{plain(name)}: {plain(one.sentence, 400)}")


def gates(verdicts: "list[Verdict]") -> None:
    """A line for each gate."""
    from pipeline.files import plain

    for verdict in verdicts:
        print(f"gate: {plain(verdict.told(), 300)}")


def planned_sweep(name: str, points: "list[Planned]") -> None:
    """The points of a sweep, and what would run for each."""
    from pipeline.sweeps import described

    rows = [
        (f"{number:,}", described(point.knobs), ", ".join(point.runs) or "nothing")
        for number, point in enumerate(points, 1)
    ]
    table(("point", "settings", "runs"), rows, right=(0,))
    trainings = sum("train" in point.runs for point in points)
    print(
        f"{name}: {len(points):,} points, {trainings:,} trainings; what an earlier point runs is shared; nothing was written"
    )


def swept(found: "Swept") -> None:
    """A row for each setting and eval set, what to know about them, and which points have no result."""
    from pipeline.files import plain
    from pipeline.sweeps import described, notes
    from pipeline.sweeps import table as cells

    if found.settings:
        header, rows, right = cells(found)
        table(header, rows, right)
        for note in notes(found):
            print(plain(note, 1000))
    for one in found.failures:
        print(f"failed: {described(one.knobs)}: {one.stage}: {plain(one.error, 1000)}")
    done = found.points - len(found.failures)
    print(
        f"{found.name}: {done:,} of {found.points:,} points have a result, {found.trained:,} trained now: {found.folder}"
    )


def coloured(text: str, style: str) -> "Text":
    """A cell in a colour, where there are colours: not without a terminal, and not with NO_COLOR."""
    from rich.text import Text

    return Text(text, style)


def table(
    header: tuple[str, ...],
    rows: "Iterable[tuple[Cell, ...]]",
    right: tuple[int, ...] = (),
    whole: tuple[int, ...] = (),
) -> None:
    """A table, its texts free of control characters; columns numbered in ``right`` are aligned there, those in ``whole`` never folded."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pipeline.files import plain

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, name in enumerate(header):
        side: Literal["left", "right"] = "right" if index in right else "left"
        table.add_column(name, justify=side, overflow="fold", no_wrap=index in whole)
    for row in rows:
        table.add_row(*(Text(plain(cell)) if isinstance(cell, str) else cell for cell in row))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def fields(row: dict[str, Any], indent: str = "") -> None:
    """``name: value`` a line, values on one line and free of control characters; the fields of a value stand below it, further in."""
    from pipeline.files import plain

    for name, value in row.items():
        if isinstance(value, dict) and value:
            print(f"{indent}{plain(name)}:")
            fields(value, indent=f"{indent}    ")
            continue
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        print(f"{indent}{plain(name)}: {plain(shown, 2000)}")


def as_json(value: object) -> None:
    """Indented JSON."""
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))
