"""Reads a run folder into a ``Report``: manifests, figures, measurements, and samples of rows, each file in one pass.

    read(Path("runs/topics"), "topics").headline.made
    -> "SmolLM2-135M-Instruct, cut to 8 layers, with 56.6M weights, learned from 417 examples that SmolLM2-135M-Instruct answered."

Limits: the manifests are believed; `stepdistill audit` is what verifies them. Rows are drawn with a fixed seed in one pass, so a run of any
size fits into memory. Figures that an earlier version of evaluate wrote are passed over.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
from pydantic import ValidationError
from pydantic_core import to_json

from pipeline import outputs, shift, sweeps, usage
from pipeline.ask_teachers import SPEEDS
from pipeline.files import RunError, plain, read_jsonl
from pipeline.gates import Verdict
from pipeline.measure import METRICS, RATIONALES
from pipeline.metrics import Costs, Metrics, ModelMetrics, Rationale
from pipeline.records import Drop, Example, Manifest, Prompt
from pipeline.report import marks
from pipeline.report.drawn import by_reason, drawn
from pipeline.report.shape import (
    Asked,
    Audit,
    Ballot,
    Bar,
    Chart,
    Contaminated,
    Curve,
    DropGroup,
    Gain,
    Headline,
    Kept,
    Level,
    Line,
    Pair,
    Reason,
    Report,
    Said,
    Searched,
    ShownDrop,
    Spot,
    Stamp,
    Swept,
    Told,
    Voted,
    Votes,
)
from pipeline.report.written import LONGEST_TEXT, compact, cut, is_number, money, size
from pipeline.shift import Shift
from pipeline.stages import STAGES
from pipeline.text import excerpt

S = TypeVar("S", bound=msgspec.Struct)
LOSSES: Final = {
    "label_loss": "Label loss",
    "rationale_loss": "Rationale loss",
    "response_loss": "Response loss",
    "chain_of_thought_loss": "Chain-of-thought loss",
}
OTHER_TEXTS: Final = {
    "twin_text": ("the row that was kept for it", None),
    "eval_text": ("the eval row", "eval_overlap"),
}  # in the evidence of dedup and decontaminate; and where its overlap with the row stands
CHART_POINTS: Final = 240
SHOWN_METHODS: Final = 20
SHOWN_RATIONALES: Final = 8  # eval rows
AGREEMENT: Final = ((1000, "unanimous"), (800, "80 to 99%"), (600, "60 to 79%"), (400, "40 to 59%"), (0, "under 40%"))
ENTROPY: Final = ((0, "0"), (500, "up to 0.5"), (1000, "0.5 to 1"), (1500, "1 to 1.5"), (1 << 30, "above 1.5"))

_FIRST_ID = re.compile(rb'\{"id":("(?:[^"\\]|\\.)*")')
_UNANIMOUS, _NO_VOTES, _NO_SOFT_LABELS = b'"agreement":1.0,', b'"agreement":null,', b'"soft_labels":null,'


def read(
    run: Path,
    title: str | None = None,
    *,
    kept_rows: int = 8,
    rows_per_reason: int = 4,
    seed: int = 0,
    gates: Sequence[Verdict] = (),
    audit: Audit | None = None,
) -> Report:
    """The report of a run. ``kept_rows`` rows of the last filter and ``rows_per_reason`` drops of every reason are drawn.

    Raises RunError where the run has no finished stage, or one of its files is damaged.
    """
    try:
        return _read_run(run, title or run.resolve().name, kept_rows, rows_per_reason, seed, gates, audit)
    except OSError as error:
        raise RunError(f"{error.filename}: cannot be read ({error.strerror}); run `stepdistill audit`") from None


def _read_run(
    run: Path,
    title: str,
    kept_rows: int,
    rows_per_reason: int,
    seed: int,
    gates: Sequence[Verdict],
    audit: Audit | None,
) -> Report:
    folders = {name: folder for name in STAGES if (folder := outputs.current(run, name)) is not None}
    if not folders:
        raise RunError(f"{run}: no finished stage to report on; run `stepdistill run`")
    manifests = {name: outputs.read_manifest(folder) for name, folder in folders.items()}
    evaluated, trained, sampled = (folders.get(name) for name in ("evaluate", "train", "sample"))
    earlier = evaluated is not None and manifests["evaluate"].version != STAGES["evaluate"].version
    metrics = _metrics(evaluated) if evaluated is not None and not earlier else None
    costs = _costs(evaluated) if metrics is not None and evaluated is not None else None
    asked = _asked(sampled, manifests.get("sample"))
    drops = _drops(folders, manifests, rows_per_reason, seed)
    return Report(
        title=title,
        headline=headline(manifests, metrics, costs, asked),
        gates=list(gates),
        side_by_side=None,
        out_of_date=out_of_date(manifests),
        funnel=funnel(manifests),
        shifts=shifts(manifests),
        asked=asked,
        votes=_votes(folders.get("parse"), manifests.get("sample"), rows_per_reason, seed),
        contaminated=_contaminated(manifests.get("decontaminate"), drops),
        metrics=metrics,
        earlier_metrics=earlier,
        costs=costs,
        training=charts(read_curves(trained)) if trained is not None else [],
        sweeps=read_sweeps(run),
        rationales=_rationales(evaluated) if metrics is not None else [],
        kept=_kept({name: folder for name, folder in folders.items() if not unread(name, manifests)}, kept_rows, seed),
        drops=drops,
        audit=audit,
        stamps=[_stamp(manifest) for manifest in manifests.values()],
    )


# Counts


def funnel(manifests: Mapping[str, Manifest]) -> list[Bar]:
    """The stages from the source rows to the training, each as wide as what of the input still reaches it.

    Units differ between stages (a prompt may get several responses, an example becomes two training rows), so widths are shares: a
    stage begins where its parent ended and ends at its own kept share of that.
    """
    bars: list[Bar] = []
    for name, manifest in manifests.items():
        if name == "evaluate":
            continue
        parents = [bar.end for bar in bars if bar.stage in manifest.parents]
        start = parents[-1] if parents else 1.0
        counts = manifest.counts
        order = sorted(counts.reasons.items(), key=lambda one: (-one[1], one[0]))
        bars.append(
            Bar(
                stage=name,
                what=STAGES[name].what.replace("`", ""),
                unit=counts.unit,
                rows_in=counts.rows_in,
                kept=counts.kept,
                dropped=counts.dropped,
                rows_out=counts.rows_out,
                reasons=[Reason(name=reason, dropped=dropped) for reason, dropped in order],
                start=start,
                end=start * counts.kept / counts.rows_in if counts.rows_in else 0.0,
            )
        )
    return bars


def out_of_date(manifests: Mapping[str, Manifest]) -> dict[str, str]:
    """Why a stage's result does not belong to those of the others, for the stages of which that is so."""
    found: dict[str, str] = {}
    for name, manifest in manifests.items():
        for parent, made_from in manifest.parents.items():
            if parent not in manifests or manifests[parent].key != made_from.key:
                found[name] = f"made from an earlier result of {parent}"
            elif parent in found:
                found[name] = f"made from {parent}, which is out of date"
        if unread(name, manifests):
            found.setdefault(name, "read by no later stage")
    return found


def unread(name: str, manifests: Mapping[str, Manifest]) -> bool:
    """Whether later stages have results and none of them reads this one's: it was switched off since."""
    order = list(manifests)
    later = [manifests[other] for other in order[order.index(name) + 1 :]]
    return bool(later) and not any(name in other.parents for other in later)


def shifts(manifests: Mapping[str, Manifest]) -> dict[str, Shift]:
    """What filtering did, for the stages that dropped any of their rows."""
    found = {name: shift.of(manifest) for name, manifest in manifests.items()}
    return {name: one for name, one in found.items() if one is not None and one.rows.after < one.rows.before}


def _asked(folder: Path | None, manifest: Manifest | None) -> list[Asked]:
    if folder is None or manifest is None:
        return []
    facts = usage.measured(folder)
    return [
        Asked(teacher=name, figures=found, facts=facts.get(name)) for name, found in usage.figures(manifest).items()
    ]


def _stamp(manifest: Manifest) -> Stamp:
    return Stamp(
        stage=manifest.stage,
        version=manifest.version,
        key=manifest.key,
        digest=manifest.digest,
        reads=list(manifest.parents),
        files=len(manifest.outputs),
        settings=manifest.settings,
        models=manifest.identities,
        details=manifest.details,
        sources=manifest.sources,
    )


# What was distilled from what


def headline(
    manifests: Mapping[str, Manifest], metrics: Metrics | None, costs: Costs | None, asked: Sequence[Asked]
) -> Headline:
    """Who taught whom, on how many rows, and what the student saves."""
    sampled, trained = manifests.get("sample"), manifests.get("train")
    teachers = _teachers(sampled)
    student = layers = examples = None
    if trained is not None:
        student = _name(trained.identities.get("student"))
        settings: Any = trained.settings.get("student")
        layers = (
            settings.get("layers") if isinstance(settings, dict) and isinstance(settings.get("layers"), int) else None
        )
        counts: Any = trained.details.get("examples")
        if isinstance(counts, dict) and all(isinstance(count, int) for count in counts.values()):
            examples = sum(counts.values())
    found = _first_set(metrics)
    weights = found["student"].parameters if "student" in found else None
    made = None
    if trained is not None:
        told = ", ".join(
            [
                *([f"cut to {layers} layers"] if layers else []),
                *([f"with {compact(weights)} weights"] if weights else []),
            ]
        )
        on = "" if examples is None else f" from {examples:,} examples"
        by = (
            f" that {' and '.join(teachers[:3])}{' and others' if len(teachers) > 3 else ''} answered"
            if teachers
            else ""
        )
        made = f"{student or 'The student'}{f', {told},' if told else ''} learned{on}{by}."
    return Headline(
        made=made,
        teachers=teachers,
        student=student,
        layers=layers,
        examples=examples,
        gains=list(_gains(found, costs, asked)),
    )


def _first_set(metrics: Metrics | None) -> dict[str, ModelMetrics]:
    """The models of the first eval set that measured any: the figures taken from it (weights) are the same in all."""
    sets = metrics.eval_sets.values() if metrics is not None else ()
    return next((found.models for found in sets if found.models), {})


def _gains(found: Mapping[str, ModelMetrics], costs: Costs | None, asked: Sequence[Asked]) -> Iterator[Gain]:
    """Weights, rows a second and cost of the student beside its teacher, each where it is known."""
    weights, teachers = (found[name].parameters if name in found else None for name in ("student", "teacher"))
    cost, other = (costs.models.get(name) if costs is not None else None for name in ("student", "teacher"))
    if weights and teachers:
        disk = f" ({size(cost.bytes_on_disk)} on disk)" if cost is not None and cost.bytes_on_disk else ""
        told = f"{compact(weights)} weights{disk}, where the teacher has {compact(teachers)}."
        yield Gain(what="smaller", times=teachers / weights, sentence=told)
    if costs is not None and cost is not None and cost.throughput:
        before = other.throughput if other is not None else None
        told = (
            f"{cost.throughput:,.1f} rows a second ({costs.device}){f', the teacher {before:,.1f}' if before else ''}."
        )
        yield Gain(what="faster", times=cost.throughput / before if before else None, sentence=told)
    if cost is not None and cost.cost_per_1000 is not None:
        before = other.cost_per_1000 if other is not None else None
        if before is None:
            answers = sum(one.figures.answers for one in asked)
            spent = sum(one.figures.cost_of_tokens for one in asked)
            before = 1000 * spent / answers if answers and spent else None
        told = f"1,000 answers cost {money(cost.cost_per_1000)}{'' if before is None else f', the teacher’s {money(before)}'}."
        times = before / cost.cost_per_1000 if before is not None and cost.cost_per_1000 > 0 else None
        yield Gain(what="cheaper", times=times, sentence=told)


def _teachers(sampled: Manifest | None) -> list[str]:
    identities = sampled.identities if sampled is not None else {}
    names = [_name(identity) or key for key, identity in identities.items() if key.startswith("teacher")]
    return list(dict.fromkeys(names))


def _name(identity: Any) -> str | None:
    """What a model is called in a manifest's identity of it: ``{"model": {"name": ..}}``, ``{"model": ..}``, ``{"name": ..}``."""
    if not isinstance(identity, dict):
        return None
    model = identity.get("model", identity)
    if isinstance(model, dict):
        model = model.get("name") or model.get("from")
    return model if isinstance(model, str) and model else None


# Votes


def _votes(folder: Path | None, sampled: Manifest | None, size: int, seed: int) -> Votes | None:
    """From the stage's own counts; rows are only read where votes differ or there are soft labels. None where each row has one vote."""
    if folder is None or not (folder / shift.COUNTS).is_file():
        return None
    counts = shift.read(folder)
    agreement, entropy = counts.counts.get("agreement", Counter()), counts.counts.get("entropy", Counter())
    if not agreement or None in agreement or None in entropy:
        return None
    settings = sampled.settings if sampled is not None else {}
    soft = settings.get("soft_labels") is not None
    teachers = settings.get("teacher")
    several = settings.get("n") not in (None, 1) or (isinstance(teachers, list) and len(teachers) > 1)
    rows, unanimous = agreement.total(), agreement[1000]
    if unanimous == rows and not soft and not several:
        return None
    differing = _examples(folder, (_UNANIMOUS, _NO_VOTES), size, f"{seed}/votes") if unanimous < rows else []
    return Votes(
        rows=rows,
        agreement=_levels(agreement, [name for _, name in AGREEMENT], _agreed),
        entropy=_levels(entropy, [name for _, name in ENTROPY], _spread_out),
        unanimous=unanimous,
        split=[_voted(one) for one in differing],
        soft=[_voted(one) for one in _examples(folder, (_NO_SOFT_LABELS,), size, f"{seed}/soft")] if soft else [],
    )


def _agreed(value: int) -> int:
    return next(place for place, (least, _) in enumerate(AGREEMENT) if value >= least)


def _spread_out(value: int) -> int:
    return next(place for place, (most, _) in enumerate(ENTROPY) if value <= most)


def _levels(counts: Counter[Any], names: Sequence[str], place: Any) -> list[Level]:
    rows = [0] * len(names)
    for value, number in counts.items():
        rows[place(value)] += number
    return [Level(name=name, rows=number) for name, number in zip(names, rows, strict=True)]


def _examples(folder: Path, without: Sequence[bytes], size: int, seed: str) -> list[Example]:
    """Some of the rows whose line has none of these; in a text inside of it a quote would stand behind a backslash."""
    lines = (line for line in outputs.lines(folder) if not any(mark in line for mark in without))
    return [_decoded(line, Example, folder) for line in drawn(lines, size, seed)]


def _voted(row: Example) -> Voted:
    return Voted(
        id=row.id,
        input=row.input,
        label=row.label,
        gold=row.gold,
        agreement=row.agreement,
        entropy=row.entropy,
        votes=[Ballot(teacher=vote.teacher, label=vote.label, weight=vote.weight) for vote in row.votes],
        soft_labels=row.soft_labels,
    )


# The training and its sweeps


def read_curves(folder: Path) -> list[dict[str, Any]]:
    """The rows of the training's metrics.jsonl, or none where it left no such file."""
    path = folder / "metrics.jsonl"
    return [row for _, row in read_jsonl(path)] if path.is_file() else []


def charts(rows: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """For each loss that was logged its lines, those on validation rows named as such."""
    found = []
    for column, title in LOSSES.items():
        lines = []
        for model in dict.fromkeys(str(row.get("model")) for row in rows):
            own = [row for row in rows if str(row.get("model")) == model]
            for prefix, suffix in (("", ""), ("validation_", ", validation")):
                points = [
                    (float(row["step"]), float(row[prefix + column]))
                    for row in own
                    if is_number(row.get("step")) and is_number(row.get(prefix + column))
                ]
                if points:
                    lines.append(Line(name=model + suffix, style=model, points=thinned(points, CHART_POINTS)))
        if lines:
            found.append(Chart(title=title, x="step", y="loss", lines=lines))
    return found


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most ``most`` points: each the mean of equally many neighbours."""
    size = -(-len(points) // most)
    groups = [points[start : start + size] for start in range(0, len(points), max(size, 1))]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def read_sweeps(run: Path) -> list[Swept]:
    """What the run's sweeps measured, by name and eval set; none where only seeds were swept.

    Raises RunError where a sweep's results cannot be read.
    """
    found = []
    for path in sorted((run / sweeps.FOLDER).glob(f"*/{sweeps.RESULTS}")):
        rows = list(outputs.read_file(path, sweeps.Measured))
        overs: dict[str, list[Any]] = {}
        for row in rows:
            for knob, value in row.knobs.items():
                values = overs.setdefault(knob, [])
                if value not in values:
                    values.append(value)
        axis = _axis(overs)
        if axis is None:
            continue
        settings = sweeps.pooled(rows)
        for name in dict.fromkeys(one.eval_set for one in settings):
            here = [one for one in settings if one.eval_set == name and axis in one.knobs]
            curves = [
                Curve(
                    label=curve.label,
                    spots=[
                        Spot(at=spot.at, mean=spot.mean, interval=spot.interval, single=list(spot.single))
                        for spot in curve.spots
                    ],
                )
                for curve in sweeps.curves(here, axis, overs)
            ]
            seeds = all(one.interval is not None for one in here)
            some = any(one.interval is not None for one in here)
            over = (
                "95% t interval over training seeds"
                if seeds
                else "95% Wilson interval over eval rows, one training seed"
            )
            if some and not seeds:
                over = "95% t interval over training seeds; where there is one seed, 95% Wilson interval over eval rows"
            trainings = sum(row.eval_set == name for row in rows)
            found.append(
                Swept(name=path.parent.name, eval_set=name, axis=axis, trainings=trainings, curves=curves, note=over)
            )
    return found


def _axis(overs: Mapping[str, Sequence[Any]]) -> str | None:
    """The setting on the axis: the fraction of the rows, the first with numbers, or the first; seeds are pooled."""
    knobs = [knob for knob in overs if knob != sweeps.SEED]
    if sweeps.FRACTION in knobs:
        return sweeps.FRACTION
    numbers = [knob for knob in knobs if not knob.endswith(".seed") and all(map(is_number, overs[knob]))]
    return next(iter([*numbers, *knobs]), None)


# Rows


def source_id(id: str) -> str:
    """The source row's id in the id of what became of it: a response's ``9f..#0``, a training row's ``9f../label``."""
    return id.partition("#")[0].partition("/")[0]


def shown_drop(drop: Drop, source: str | None) -> ShownDrop:
    """A drop for the report; ``source`` is the input of its source row, where that is known."""
    rest = dict(drop.evidence)
    own = rest.get("text")
    where = rest.get("where") if rest.get("where") in ("rationale", "prompt") else "input"
    pair = None
    for name, (whose, overlap) in OTHER_TEXTS.items():
        if not isinstance(rest.get(name), str):
            continue
        whole = source if where == "input" and source is not None and len(source) <= LONGEST_TEXT else None
        compared = whole if whole is not None else own if isinstance(own, str) else source
        if not isinstance(compared, str):
            continue
        compared, other = cut(compared), cut(str(rest.pop(name)))
        within, other_within = (rest.get(key) for key in ("overlap", overlap)) if overlap else (None, None)
        first, second = marks.pair(
            compared,
            other,
            within=within if isinstance(within, str) else None,
            other_within=other_within if isinstance(other_within, str) else None,
        )
        pair = Pair(own=first, other=second, where=str(where), whose=whose)
    text = source if source is not None else own if isinstance(own, str) else None
    told = text if pair is None or pair.where == "input" else own
    if own == told or (isinstance(own, str) and own == excerpt(str(told or ""))):
        rest.pop("text", None)
    if pair is not None and pair.where == "input":
        text = None  # it stands in the pair
    return ShownDrop(id=drop.id, text=text, pair=pair, evidence=rest)


def _drops(folders: Mapping[str, Path], manifests: Mapping[str, Manifest], size: int, seed: int) -> list[DropGroup]:
    """By stage and reason, most frequent reason first, a sample of the rows dropped for it."""
    found = {stage: by_reason(outputs.read_drops(folder), size, f"{seed}/{stage}") for stage, folder in folders.items()}
    wanted = {source_id(drop.id) for reasons in found.values() for drops in reasons.values() for drop in drops}
    texts = _inputs(folders.get("ingest"), wanted)
    return [
        DropGroup(
            stage=stage,
            reason=reason,
            dropped=manifests[stage].counts.reasons.get(reason, len(drops)),
            rows=[shown_drop(drop, texts.get(source_id(drop.id))) for drop in drops],
        )
        for stage, reasons in found.items()
        for reason, drops in reasons.items()
    ]


def _contaminated(manifest: Manifest | None, drops: Sequence[DropGroup]) -> Contaminated | None:
    """What decontaminate's manifest counts, with the findings among the drops that were drawn; None for one of another shape."""
    details: Any = manifest.details if manifest is not None else {}
    try:
        sets = [Searched(name=name, **found) for name, found in details["eval_sets"].items()]
        methods = {str(name): int(rows) for name, rows in list(details["methods"].items())[:SHOWN_METHODS]}
        passages = int(details["shared_passages"]["rows"])
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    findings = [row for group in drops if group.stage == "decontaminate" for row in group.rows]
    return Contaminated(eval_sets=sets, methods=methods, passages=passages, findings=findings)


def _kept(folders: Mapping[str, Path], size: int, seed: int) -> list[Kept]:
    """A sample of the examples that all filters kept."""
    examples = [name for name in folders if STAGES[name].gives is Example]
    if not examples:
        return []
    folder = folders[examples[-1]]
    rows = [_decoded(line, Example, folder) for line in drawn(outputs.lines(folder), size, f"{seed}/kept")]
    return [
        Kept(
            id=row.id,
            input=row.input,
            label=row.label,
            gold=row.gold,
            why=row.rationale if row.rationale is not None else row.text,
        )
        for row in rows
    ]


def _inputs(ingested: Path | None, wanted: set[str]) -> dict[str, str]:
    """The inputs of the source rows with these ids, found in one pass."""
    if ingested is None or not wanted:
        return {}
    names = {to_json(name): name for name in wanted}
    found: dict[str, str] = {}
    for line in outputs.lines(ingested):
        start = _FIRST_ID.match(line)
        if start is not None and start[1] in names:
            found[names[start[1]]] = _decoded(line, Prompt, ingested).input
            if len(found) == len(names):
                break
    return found


def _rationales(folder: Path | None) -> list[Told]:
    path = folder / RATIONALES if folder is not None else None
    if path is None or not path.is_file():
        return []
    rows: dict[tuple[str, str], Told] = {}
    for one in outputs.read_file(path, Rationale):
        if (one.eval_set, one.row) not in rows:
            if len(rows) == SHOWN_RATIONALES:
                continue
            rows[one.eval_set, one.row] = Told(
                eval_set=one.eval_set, row=one.row, input=one.input, gold=one.gold, said=[]
            )
        said = Said(
            model=one.model,
            label=one.label,
            rationale=one.rationale,
            finished=one.finished,
            asked_again=one.asked_again,
            label_after=one.label_after,
            score=one.score,
        )
        rows[one.eval_set, one.row].said.append(said)
    return list(rows.values())


# Files


def _metrics(folder: Path) -> Metrics:
    path = folder / METRICS
    try:
        return Metrics.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = plain(error.errors(include_url=False)[0]["msg"])
        raise RunError(f"{path}: not Metrics ({problem}); run `stepdistill audit`") from None


def _costs(folder: Path) -> Costs | None:
    """What was measured of the models; None where it is gone or of another shape, for it is no part of the result."""
    try:
        return Costs.model_validate_json((folder / SPEEDS).read_bytes())
    except (OSError, ValidationError):
        return None


def _decoded(line: bytes, kind: type[S], place: Path) -> S:
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RunError(f"{place}: not a {kind.__name__} ({plain(str(error))}); run `stepdistill audit`") from None
