"""The tables of a report, once for the page and for Markdown: the same cells, on the page with a drawing in some of them.

    models(found, costs).rows[0].cells[2]  ->  Cell(text="74.0%", sub="66.4% to 80.4%", ..)

A cell's text may be a run's own: who shows it escapes it.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from markupsafe import Markup

from pipeline import shift
from pipeline.gates import Verdict
from pipeline.metrics import Calibration, Contamination, Costs, ModelMetrics, Safety, SetMetrics, Share
from pipeline.report import charts
from pipeline.report.shape import (
    Asked,
    Chart,
    Contaminated,
    Level,
    Report,
    SideBySide,
    Swept,
)
from pipeline.report.written import (
    DASH,
    between,
    brief,
    compact,
    decimal,
    duration,
    money,
    number,
    part,
    percent,
    points,
    size,
    words,
)
from pipeline.shift import Shift, Spread, Value

MODELS: Final = {
    "student": "labels and rationales",
    "baseline": "labels alone",
    "teacher": "as the pipeline asks it",
    "nearest": "the label of the most similar training row",
    "majority": "always the most frequent label",
}
MEASURES: Final = {
    "input": "input, characters",
    "rationale": "rationale, characters",
    "text": "text, characters",
    "entropy": "vote entropy, bits",
    "agreement": "vote agreement",
}
SHOWN_VALUES: Final = 10  # of a column, in the tables of what filtering did
SHOWN_LABELS: Final = 40  # in the table of labels
SHOWN_SLICES: Final = 25  # values of a column
SHOWN_SETTINGS: Final = 60  # that differ between runs
CONFUSED: Final = 5  # pairs of labels


@dataclass(frozen=True)
class Cell:
    """A figure, what stands below it in small print, and on the page a drawing before it."""

    text: str
    sub: str = ""
    picture: Markup | None = None
    strong: bool = False


@dataclass(frozen=True)
class Column:
    """The name of a column; numbers stand on the right."""

    name: str
    right: bool = True


@dataclass(frozen=True)
class Row:
    """The cells of a row, the first of which names it; ``style`` is a model's class, ``warned`` marks what is not well."""

    cells: Sequence[Cell]
    style: str = ""
    warned: bool = False


@dataclass(frozen=True)
class Table:
    """Columns and rows; ``title`` says what it holds, ``note`` what to know."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Row]
    note: str = ""
    dense: bool = field(default=False)


def columns(first: str, *others: str, left: Collection[int] = ()) -> list[Column]:
    """A first column of names, and others of numbers; of these, the ones with a number in ``left``, from 1, hold text."""
    return [
        Column(first, right=False),
        *(Column(name, right=place not in left) for place, name in enumerate(others, 1)),
    ]


def in_order(names: Iterable[str]) -> list[str]:
    """Models in the order in which they are told: those that every run has first."""
    found = list(names)
    return [name for name in MODELS if name in found] + [name for name in found if name not in MODELS]


# Verdicts


def gates(found: Sequence[Verdict]) -> Table:
    """The conditions, and whether they are met."""
    rows = [
        Row(
            [
                Cell(one.gate, sub=f"on {one.eval_set}"),
                Cell(one.condition.strip()),
                Cell("not known" if one.value is None else f"{one.value:.4g}"),
                Cell("passed" if one.passed else "failed", strong=True),
            ],
            warned=not one.passed,
        )
        for one in found
    ]
    return Table("Gates", columns("figure", "wanted", "measured", "verdict", left=(1, 3)), rows)


# Rows


def shift_tables(found: Shift) -> list[Table]:
    """A table for labels, true labels, each slice and, where votes differ, their entropy.

    Of a column the most frequent values are shown, those that are mostly gone, and the sum of the rest.
    """
    titles = {"label": "label", "gold": "true label"}
    titles |= {name: f"slice: {name.removeprefix(shift.SLICE)}" for name in found.values if name not in titles}
    tables = []
    for name, title in titles.items():
        if name not in found.values:
            continue
        values = found.values[name]
        rows = values.top[:SHOWN_VALUES]
        rows += [value for value in values.gone if value not in rows][:SHOWN_VALUES]
        before = values.before - sum(value.before for value in rows)
        after = values.after - sum(value.after for value in rows)
        if before:
            rows = [*rows, Value(name="all others", before=before, after=after)]
        different = "very many" if values.distinct is None else number(values.distinct)
        note = f"{different} different"
        if values.moved is not None:
            note += f"; {percent(values.moved)} of the rows moved from one to another"
        if values.p is not None and values.cramers_v is not None:
            note += f"; dropped against kept: p {brief(values.p)}, Cramér's V {values.cramers_v:.2f}"
        gone = {value.name for value in values.gone}
        tables.append(_shifted(title, rows, (values.before, values.after), gone, f"{note}."))
    if len(found.difficulty) > 1:
        before, after = (sum(getattr(value, side) for value in found.difficulty) for side in ("before", "after"))
        note = (
            "How far the votes on a row are spread over labels: 0 is unanimous, 1 is two labels with half of them each."
        )
        tables.append(_shifted("vote entropy, bits", found.difficulty, (before, after), set(), note))
    return tables


def _shifted(title: str, values: Sequence[Value], rows: tuple[int, int], gone: set[str], note: str) -> Table:
    shares = [(value.before / max(rows[0], 1), value.after / max(rows[1], 1)) for value in values]
    most = max((max(share) for share in shares), default=0.0)
    lines = []
    for value, (before, after) in zip(values, shares, strict=True):
        warned = value.name in gone
        dropped = 1 - value.after / max(value.before, 1)
        lines.append(
            Row(
                [
                    Cell(f"{value.name}{' (mostly gone)' if warned else ''}"),
                    Cell(number(value.before)),
                    Cell(number(value.after)),
                    Cell(f"{percent(before)} → {percent(after)}", picture=charts.share_bars(before, after, most)),
                    Cell(percent(dropped), picture=charts.drop_bar(value)),
                ],
                warned=warned,
            )
        )
    named = columns(title, "rows in", "kept", "share, before and after", "dropped")
    return Table(title, named, lines, note, dense=True)


def lengths(found: Shift) -> Table:
    """Lengths and votes of the rows that came in, were kept, were dropped: mean and quartiles."""
    rows = []
    for name, title in MEASURES.items():
        if name not in found.measures or (name == "text" and "rationale" in found.measures):
            continue
        measure = found.measures[name]
        spreads = (measure.before, measure.after, measure.dropped)
        most = max(max(spread.quartiles[2], spread.mean) for spread in spreads if spread is not None)
        styles = ("before", "kept", "dropped")
        rows.append(
            Row([Cell(title), *(_spread(one, most, style) for one, style in zip(spreads, styles, strict=True))])
        )
    return Table(
        "lengths and votes", columns("lengths and votes", "before", "after", "of the dropped"), rows, dense=True
    )


def _spread(spread: Spread | None, most: float, style: str) -> Cell:
    if spread is None:
        return Cell(DASH)
    return Cell(
        brief(spread.mean),
        sub=" · ".join(map(brief, spread.quartiles)),
        picture=charts.spread_bar(spread, most, style),
        strong=True,
    )


def asked(found: Sequence[Asked]) -> Table:
    """What each teacher was asked, and what that took."""
    rows = []
    for one in found:
        figures, facts = one.figures, one.facts
        failed = sorted(figures.failures.items(), key=lambda pair: (-pair[1], pair[0]))
        cost = "–" if not (figures.cost_of_tokens or (facts and facts.cost)) else money(figures.cost_of_tokens)
        rows.append(
            Row(
                [
                    Cell(one.teacher, sub=", ".join(f"{words(reason)} {count:,}" for reason, count in failed)),
                    Cell(
                        number(figures.requests),
                        sub=f"{number(facts.requests) if facts else 'none'} asked for this result",
                        strong=True,
                    ),
                    Cell(
                        number(figures.responses),
                        sub="" if figures.answers == figures.responses else f"by {number(figures.answers)} answers",
                    ),
                    Cell(
                        number(figures.prompt_tokens),
                        sub=f"{number(facts.cached_tokens)} cached" if facts and facts.cached_tokens else "",
                    ),
                    Cell(
                        number(figures.completion_tokens),
                        sub=f"{number(figures.completion_tokens / figures.answers)} an answer"
                        if figures.answers
                        else "",
                    ),
                    Cell(
                        number(facts.tokens_per_second) if facts and facts.completion_tokens else DASH,
                        sub=f"in {number(facts.seconds)} s" if facts else "",
                    ),
                    Cell(cost, sub=f"{money(facts.cost)} for what was asked" if facts and cost != DASH else ""),
                ],
                style="teacher",
            )
        )
    named = columns("teacher", "requests", "answered", "tokens in", "tokens out", "tokens/s", "cost")
    return Table("What the teachers were asked", named, rows)


def levels(title: str, found: Sequence[Level]) -> Table:
    """How many rows lie in each class."""
    total = sum(level.rows for level in found)
    rows = [
        Row(
            [
                Cell(level.name),
                Cell(number(level.rows)),
                Cell(percent(level.rows / max(total, 1)), picture=charts.share_bar(level.rows / max(total, 1))),
            ]
        )
        for level in found
        if total
    ]
    return Table(title, columns(title, "rows", "share"), rows, dense=True)


def searched(found: Contaminated) -> Table:
    """What of each eval set stood in the rows."""
    rows = [
        Row([Cell(one.name), *(Cell(number(value)) for value in (one.rows, one.found, one.dropped, one.too_short))])
        for one in found.eval_sets
    ]
    named = columns("eval set", "eval rows", "found in some row", "rows dropped for it", "too short to be looked for")
    return Table("Eval sets that were searched for", named, rows)


def contamination(found: Contamination) -> Table:
    """Accuracy on eval rows that were found among the rows, and on the others."""
    rows = []
    for model in in_order(found.models):
        clean, leaked = found.models[model]
        style = charts.style_of(model)
        rows.append(Row([Cell(model), _share(clean, style), _share(leaked, style)], style=style))
    named = columns("model", f"accuracy on {found.clean:,} clean rows", f"on {found.found:,} rows that were found")
    return Table("Clean and contaminated eval rows", named, rows)


def _share(share: Share | None, style: str) -> Cell:
    """A share with its interval, and the rows that it is of."""
    if share is None or share.value is None:
        return Cell(DASH)
    return Cell(
        percent(share.value),
        sub=f"{between(share.interval)}; {share.right:,} of {share.rows:,}",
        picture=charts.interval_dot(share.value, share.interval, style),
        strong=True,
    )


# Models


def models(found: SetMetrics, costs: Costs | None) -> Table:
    """Every model on one eval set."""
    rows = []
    for model in in_order(found.models):
        figures, style = found.models[model], charts.style_of(model)
        about = MODELS.get(model, "")
        cost = costs.models.get(model) if costs is not None else None
        same = figures.same_as_teacher
        rows.append(
            Row(
                [
                    Cell(model, sub=f"always “{found.majority}”" if model == "majority" and found.majority else about),
                    Cell(
                        percent(figures.accuracy),
                        sub=between(figures.accuracy_interval),
                        picture=charts.interval_bar(figures.accuracy, figures.accuracy_interval, style),
                        strong=True,
                    ),
                    Cell(
                        number(figures.answered),
                        sub=f"{figures.unanswered:,} without any text" if figures.unanswered else "",
                    ),
                    Cell(
                        decimal(figures.macro_f1),
                        sub=f"{figures.macro_f1_interval[0]:.3f} to {figures.macro_f1_interval[1]:.3f}"
                        if figures.macro_f1_interval
                        else "",
                    ),
                    Cell(
                        percent(same / figures.teacher_rows)
                        if model != "teacher" and figures.teacher_rows and same is not None
                        else DASH
                    ),
                    Cell(number(cost.throughput) if cost is not None else DASH),
                    Cell(DASH if model in ("majority", "nearest") else compact(figures.parameters)),
                ],
                style=style,
            )
        )
    named = columns("model", "accuracy, 0 to 100%", "answered", "macro-F1", "as the teacher", "rows/s", "weights")
    return Table(f"The models on {found.rows:,} rows", named, rows)


def texts(found: SetMetrics) -> Table | None:
    """How near free answers come to the true ones; None for labels, which are right or wrong."""
    if not any(one.rouge_l or one.chrf for one in found.models.values()):
        return None
    rows = []
    for model in in_order(found.models):
        figures = found.models[model]
        scores = (figures.rouge_l, figures.chrf)
        cells = [
            Cell(decimal(one.value), sub=f"{one.interval[0]:.3f} to {one.interval[1]:.3f}") if one else Cell(DASH)
            for one in scores
        ]
        rows.append(Row([Cell(model), Cell(percent(figures.exact_match)), *cells], style=charts.style_of(model)))
    return Table("Free answers", columns("model", "exact match", "ROUGE-L", "chrF"), rows)


def comparisons(found: SetMetrics) -> Table:
    """Pairs of models on the same rows."""
    rows = [
        Row(
            [
                Cell(f"{one.first} − {one.second}"),
                Cell(
                    f"{points(one.difference)} points",
                    sub=f"{points(one.interval[0])} to {points(one.interval[1])}",
                    picture=charts.difference_bar(one.difference, one.interval),
                    strong=True,
                ),
                Cell(brief(one.p)),
                Cell(number(one.both)),
                Cell(number(one.only_first)),
                Cell(number(one.only_second)),
                Cell(number(one.neither)),
            ]
        )
        for one in found.comparisons
    ]
    named = columns(
        "pair", "difference, −50 to +50", "p (McNemar)", "both right", "first alone", "second alone", "neither"
    )
    return Table("Pairs of models on the same rows", named, rows)


def labels(found: SetMetrics) -> Table:
    """Precision and recall of each label by student and teacher, or by whom there is."""
    asked_of = ("student", "teacher", "baseline")
    shown = [model for model in in_order(found.models) if model in asked_of][:2] or in_order(found.models)[:2]
    rows = []
    for label in found.classes[:SHOWN_LABELS]:
        cells = [Cell(label)]
        gold = 0
        for model in shown:
            scores = found.models[model].labels.get(label)
            gold = scores.gold if scores is not None else gold
            cells += [
                Cell(percent(scores.precision if scores else None)),
                Cell(percent(scores.recall if scores else None)),
            ]
        rows.append(Row([cells[0], Cell(number(gold)), *cells[1:]]))
    named = columns("label", "rows", *(f"{model}, {what}" for model in shown for what in ("precision", "recall")))
    rest = len(found.classes) - SHOWN_LABELS
    return Table("Labels", named, rows, f"{rest:,} more labels are in report.json." if rest > 0 else "", dense=True)


def confused(found: SetMetrics, model: str) -> list[tuple[str, str, int]]:
    """The most frequent confusions of a model: true label, answer, rows."""
    pairs = [
        (found.classes[truth], found.classes[answer] if answer < len(found.classes) else "anything else", count)
        for truth, row in enumerate(found.models[model].confusion[: len(found.classes)])
        for answer, count in enumerate(row)
        if answer != truth and count
    ]
    return sorted(pairs, key=lambda pair: (-pair[2], pair[0], pair[1]))[:CONFUSED]


def slices(found: SetMetrics) -> list[Table]:
    """Accuracy on the rows that share a value, of student and teacher side by side."""
    shown = [model for model in ("student", "teacher") if model in found.models] or in_order(found.models)[:2]
    tables = []
    for column in dict.fromkeys(column for model in shown for column in found.models[model].slices):
        by_model = [{one.value: one.share for one in found.models[model].slices.get(column, [])} for model in shown]
        values = list(dict.fromkeys(value for shares in by_model for value in shares))
        rows = []
        for value in values[:SHOWN_SLICES]:
            cells = [
                _share(shares.get(value), charts.style_of(model)) for model, shares in zip(shown, by_model, strict=True)
            ]
            rows.append(Row([Cell(value), *cells]))
        rest = len(values) - SHOWN_SLICES
        note = f"{rest:,} more values are in report.json." if rest > 0 else ""
        named = columns(f"by {column}", *(f"{model}, 0 to 100%" for model in shown))
        tables.append(Table(f"Accuracy by {column}", named, rows, note, dense=True))
    return tables


def calibrated(found: SetMetrics) -> dict[str, Calibration]:
    """The calibration of the models that have one."""
    known = {model: found.models[model].calibration for model in in_order(found.models)}
    return {model: one for model, one in known.items() if one is not None}


def calibration(found: Mapping[str, Calibration]) -> Table:
    """How far each model's probabilities can be believed."""
    rows = []
    for model, one in found.items():
        source = "its own probabilities of the labels" if one.source == "scores" else "shares of the teacher's votes"
        scaled = one.scaled_ece is not None and one.scaled_brier is not None
        rows.append(
            Row(
                [
                    Cell(model, sub=source),
                    Cell(number(one.rows)),
                    Cell(decimal(one.ece), strong=True),
                    Cell(decimal(one.brier)),
                    Cell(
                        DASH if one.temperature is None else f"{one.temperature:.2f}",
                        sub="" if one.temperature is None else f"from {one.temperature_rows:,} validation rows",
                    ),
                    Cell(decimal(one.scaled_ece) if scaled else DASH),
                    Cell(decimal(one.scaled_brier) if scaled else DASH),
                ],
                style=charts.style_of(model),
            )
        )
    named = columns("model", "rows", "ECE", "Brier", "temperature", "ECE with it", "Brier with it")
    return Table("Calibration", named, rows)


def bins(model: str, found: Calibration) -> Table:
    """The values of a reliability diagram."""
    rows = [
        Row(
            [
                Cell(f"{one.low:.0%} to {one.high:.0%}"),
                Cell(number(one.rows)),
                Cell(percent(one.confidence)),
                Cell(percent(one.accuracy)),
            ]
        )
        for one in found.bins
    ]
    return Table(f"Reliability of {model}", columns("bin", "rows", "mean confidence", "accuracy"), rows, dense=True)


def rationales(found: Mapping[str, ModelMetrics]) -> Table | None:
    """What the rationales are worth, a column for each model that wrote any; None where none did."""
    known = {model: found[model].rationales for model in in_order(found)}
    scored = {model: one for model, one in known.items() if one is not None}
    if not scored:
        return None
    told = list(scored.values())
    lines: list[tuple[str, list[str]]] = [
        ("asked for one", [number(one.rows) for one in told]),
        ("ended before the limit", [part(one.finished, one.rows) for one in told]),
        ("name exactly one label", [part(one.concludes, one.rows) for one in told]),
        (".. the one that the model answers", [part(one.concludes_label, one.concludes) for one in told]),
        (".. the true one", [part(one.concludes_gold, one.concludes) for one in told]),
        (
            "label changes when asked behind the rationale",
            [part(one.changed, one.asked_first) if one.changed is not None else DASH for one in told],
        ),
        (
            "right before, and after that",
            [
                f"{part(one.right_before, one.asked_first)} → {part(one.right_after, one.asked_first)}"
                if one.right_before is not None and one.right_after is not None and one.asked_first
                else DASH
                for one in told
            ],
        ),
        ("mean length, words", [number(one.words) for one in told]),
        ("copied from the input (4-grams)", [percent(one.copied) for one in told]),
        ("different from each other", [percent(one.distinct) for one in told]),
        (
            "judge's mean score, 1 to 5",
            [DASH if one.judge_score is None else f"{one.judge_score:.2f} ({number(one.judged)})" for one in told],
        ),
    ]
    rows = [Row([Cell(name), *map(Cell, cells)]) for name, cells in lines if any(cell != DASH for cell in cells)]
    return Table("Rationales", columns("rationales", *scored), rows, dense=True)


def costs(found: Costs) -> Table:
    """What answering took."""
    rows = []
    for model in in_order(found.models):
        one = found.models[model]
        latency = [duration((one.latency or {}).get(name)) for name in ("p50", "p95", "p99")]
        rows.append(
            Row(
                [
                    Cell(model),
                    Cell(
                        number(one.throughput), sub=f"{one.batch_size:,} at once" if one.batch_size else "", strong=True
                    ),
                    *map(Cell, latency),
                    Cell(compact(one.parameters)),
                    Cell(size(one.bytes_on_disk)),
                    Cell(size(one.peak_memory)),
                    Cell(DASH if one.cost_per_1000 is None else money(one.cost_per_1000)),
                ],
                style=charts.style_of(model),
            )
        )
    named = columns(
        "model",
        "rows/s",
        "median of one row",
        "95% under",
        "99% under",
        "weights",
        "on disk",
        "memory at most",
        "cost of 1,000",
    )
    return Table("What answering costs", named, rows)


def safety(found: Safety) -> Table:
    """The students beside the model that they were made from."""
    rows = []
    order = [name for name in ("base", *MODELS) if name in found.models]
    for name in (*order, *(name for name in found.models if name not in order)):
        one = found.models[name]
        rows.append(
            Row(
                [
                    Cell(name, sub=one.model if one.model != name else ""),
                    Cell(part(one.refused, one.harmful)),
                    Cell(part(one.refused_harmless, one.harmless)),
                    Cell(part(one.toxic, one.outputs)),
                    Cell(part(one.private, one.outputs)),
                    Cell(part(one.swapped_changed, one.swapped)),
                ],
                style=charts.style_of(name),
            )
        )
    named = columns(
        "model", "harmful refused", "harmless refused", "toxic outputs", "private data", "label moves with a name"
    )
    return Table("Safety", named, rows)


# Curves


def curve(chart: Chart) -> Table:
    """The values of a training's chart: each line's first, lowest and last."""
    rows = []
    for line in chart.lines:
        values = [y for _, y in line.points]
        rows.append(
            Row(
                [
                    Cell(line.name),
                    *(Cell(f"{value:.4g}") for value in (values[0], min(values), values[-1])),
                    Cell(number(len(values))),
                ]
            )
        )
    named = columns(chart.title, "first", "lowest", "last", "points")
    return Table(chart.title, named, rows, dense=True)


def sweep(found: Swept) -> Table:
    """The values of a sweep's chart."""
    rows = [
        Row(
            [
                Cell(spot.at if isinstance(spot.at, str) else f"{spot.at:g}", sub=curve.label),
                Cell(percent(spot.mean), sub=between(spot.interval), strong=True),
                Cell(number(len(spot.single))),
            ]
        )
        for curve in found.curves
        for spot in curve.spots
    ]
    return Table(
        f"Sweep {found.name} on {found.eval_set}", columns(found.axis, "accuracy", "trainings"), rows, dense=True
    )


# Runs side by side


def side_models(found: SideBySide) -> Table:
    """Accuracy of each model in each run, and how far it is from the first's."""
    rows = []
    for one in found.models:
        cells = [Cell(one.model, sub=f"on {one.eval_set}")]
        for figures in one.figures:
            if figures is None:
                cells.append(Cell(DASH))
                continue
            sub = f"{between(figures.interval)}; {figures.rows:,} rows"
            if figures.difference is not None and figures.difference_interval is not None:
                low, high = figures.difference_interval
                sub += f"; {points(figures.difference)} points ({points(low)} to {points(high)})"
            style = charts.style_of(one.model)
            cells.append(
                Cell(
                    percent(figures.accuracy),
                    sub=sub,
                    strong=True,
                    picture=charts.interval_dot(figures.accuracy, figures.interval, style),
                )
            )
        rows.append(Row(cells, style=charts.style_of(one.model)))
    return Table("Models of the runs", columns("model", *found.runs), rows)


def side_counts(found: SideBySide) -> Table:
    """Rows in and kept of each stage in each run."""
    rows = [
        Row([Cell(one.stage), *(Cell(DASH if pair is None else f"{pair[1]:,} of {pair[0]:,}") for pair in one.rows)])
        for one in found.counts
    ]
    return Table("Rows kept by the runs' stages", columns("rows kept", *found.runs), rows, dense=True)


def side_settings(found: SideBySide) -> Table:
    """The settings in which the runs differ."""
    rows = [
        Row([Cell(f"{one.stage}.{one.setting}"), *(Cell(DASH if value is None else value) for value in one.values)])
        for one in found.settings[:SHOWN_SETTINGS]
    ]
    rest = len(found.settings) - SHOWN_SETTINGS
    note = f"{rest:,} more differences are in report.json." if rest > 0 else ""
    named = columns("setting", *found.runs, left=range(1, len(found.runs) + 1))
    return Table("Settings in which the runs differ", named, rows, note, dense=True)


# Provenance


def stamps(report: Report) -> Table:
    """Stage by stage what its result is bound to."""
    rows = [
        Row(
            [
                Cell(one.stage),
                Cell(str(one.version)),
                Cell(one.key),
                Cell(one.digest),
                Cell(", ".join(one.reads) or "source"),
                Cell(str(one.files)),
            ]
        )
        for one in report.stamps
    ]
    named = columns("stage", "version", "key", "manifest digest", "reads", "files", left=(2, 3, 4))
    return Table("Keys and manifests", named, rows)


def sources(report: Report) -> Table:
    """Every file and data set that was read besides the rows of stages."""
    rows = {
        (one.uri, one.sha256 or one.revision or ""): Row(
            [
                Cell(one.uri),
                Cell(DASH if one.bytes is None else number(one.bytes)),
                Cell(one.license or DASH),
                Cell(one.sha256 or one.revision or ""),
            ]
        )
        for stamp in report.stamps
        for one in stamp.sources
    }
    return Table("Sources", columns("source", "bytes", "licence", "SHA-256", left=(2, 3)), list(rows.values()))
