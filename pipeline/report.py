"""The page: one self-contained HTML file that shows what a run did, built from what lies in the run folder and from nothing else.

    runs/<run>/report/index.html     how many rows went where and why, what that did to labels, slices, lengths and difficulty, what
                                     the teachers were asked, the models side by side, the
                                     curves of the training, what was confused with what, rows that were kept and rows that were not,
                                     and where it all came from

The page holds no script and loads nothing. Every text is escaped, whoever wrote it. The same run folder always gives the same page.

Limits: rows shown are a sample, drawn with a fixed seed in one pass, so a run of any size fits into memory; texts longer than
``LONGEST_TEXT`` characters are shown cut, and say so. The page believes the manifests; `stepdistill audit` is what verifies them.
"""

import json
import math
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from markupsafe import Markup, escape
from pydantic import ValidationError
from pydantic_core import to_json

from pipeline import outputs, shift, usage
from pipeline.evaluate import SPEEDS
from pipeline.files import RunError, atomic, plain, read_jsonl
from pipeline.measure import METRICS, RATIONALES
from pipeline.metrics import Comparison, Costs, Interval, Metrics, Rationale
from pipeline.records import Drop, Example, Manifest, Prompt, Record, Row
from pipeline.shift import Shift, Spread, Value
from pipeline.stages import STAGES
from pipeline.text import excerpt

T = TypeVar("T")
R = TypeVar("R", bound=Record)
AnyRow = TypeVar("AnyRow", bound=Row)
LONGEST_TEXT = 1200
MODELS = {
    "student": "labels and rationales",
    "baseline": "labels alone",
    "teacher": "as the pipeline asks it",
    "majority": "always the most frequent label",
}
LOSSES = {
    "label_loss": "Label loss",
    "rationale_loss": "Rationale loss",
    "response_loss": "Response loss",
    "chain_of_thought_loss": "Chain-of-thought loss",
}
OTHER_TEXTS = {
    "twin_text": "the row that was kept for it",
    "eval_text": "the eval row",
}  # in the evidence of dedup and decontaminate
FIRST_ID = re.compile(rb'\{"id":("(?:[^"\\]|\\.)*")')
CHART_POINTS = 240
SHOWN_VALUES = 10  # of a column, in the tables of what filtering did
MEASURES = {
    "input": "input, characters",
    "rationale": "rationale, characters",
    "text": "text, characters",
    "entropy": "vote entropy, bits",
    "agreement": "vote agreement",
}


@dataclass(frozen=True)
class Bar:
    """One stage of the funnel. ``start`` and ``end`` are the shares of the first stage's input that came in and went on."""

    manifest: Manifest
    start: float
    end: float

    @property
    def svg(self) -> Markup:
        """The bar itself."""
        return funnel_bar(self.start, self.end)


@dataclass(frozen=True)
class Series:
    """A line of a chart: its name, the CSS class that colours it, and its points."""

    name: str
    style: str
    points: list[tuple[float, float]]


@dataclass(frozen=True)
class ShiftTable:
    """How often the values of one column occur before and after a stage; ``warned`` are the names of those that are mostly gone."""

    title: str
    rows: list[Value]
    before: int
    after: int
    warned: list[str]
    note: str

    def share(self, value: Value) -> tuple[float, float]:
        """Of all rows, before and after."""
        return value.before / max(self.before, 1), value.after / max(self.after, 1)

    @property
    def most(self) -> float:
        """The largest share."""
        return max((max(self.share(value)) for value in self.rows), default=0.0)


@dataclass(frozen=True)
class ShownDrop:
    """A dropped row: what it said, what another row said that it was held against and who that is, and the rest of the evidence."""

    drop: Drop
    text: str | None
    other: str | None
    whose: str
    evidence: dict[str, Any]


@dataclass
class Sample:
    """Rows drawn so far, and out of how many."""

    seen: int = 0
    rows: list[tuple[int, Any]] = field(default_factory=list)


def build(run: Path, title: str | None = None, *, kept_rows: int = 8, rows_per_reason: int = 4, seed: int = 0) -> Path:
    """Write the page of a run and return its path.

    ``kept_rows`` rows of the last filter and ``rows_per_reason`` drops of every reason are shown. Raises RunError where the run has no
    finished stage, or one of its files is damaged.
    """
    try:
        page = _page(run, title or run.name, kept_rows, rows_per_reason, seed)
    except OSError as error:
        raise RunError(f"{error.filename}: cannot be read ({error.strerror}); run `stepdistill audit`") from None
    target = run / "report" / "index.html"
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic(target) as file:
        file.write(page.encode("utf-8", "backslashreplace"))
    return target


def _page(run: Path, title: str, kept_rows: int, rows_per_reason: int, seed: int) -> str:
    import jinja2

    folders = {name: folder for name in STAGES if (folder := outputs.current(run, name)) is not None}
    if not folders:
        raise RunError(f"{run}: no finished stage to report on; run `stepdistill run`")
    manifests = {name: outputs.read_manifest(folder) for name, folder in folders.items()}
    trained, evaluated = folders.get("train"), folders.get("evaluate")
    sampled = folders.get("sample")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    shown_as = (number, percent, points, decimal, brief, compact, money, words, cut, flat, pretty)
    environment.filters |= {function.__name__: function for function in shown_as}
    template = environment.from_string(resources.files("pipeline").joinpath("report.jinja").read_text(encoding="utf-8"))
    return template.render(
        title=title,
        stages=STAGES,
        manifests=manifests,
        funnel=funnel(manifests),
        out_of_date=out_of_date(manifests),
        shifts=shifts(manifests),
        shift_tables=shift_tables,
        measures=MEASURES,
        share_bars=share_bars,
        drop_bar=drop_bar,
        spread_bar=spread_bar,
        teachers=usage.figures(manifests["sample"]) if sampled else {},
        asked=usage.measured(sampled) if sampled else {},
        metrics=_metrics(evaluated),
        speeds=_speeds(evaluated),
        models=MODELS,
        told_apart=told_apart,
        interval_bar=interval_bar,
        charts=charts(read_curves(trained)) if trained else [],
        rationales=_rationales(evaluated),
        kept=_kept({name: folder for name, folder in folders.items() if not unread(name, manifests)}, kept_rows, seed),
        drops=_drops(folders, rows_per_reason, seed),
    )


def funnel(manifests: Mapping[str, Manifest]) -> list[Bar]:
    """The stages from the source rows to the training, each as wide as what of the input still reaches it.

    Units differ between stages (a prompt may get several responses, an example becomes two training rows), so widths are shares: a
    stage begins where its parent ended and ends at its own kept share of that.
    """
    bars: list[Bar] = []
    for name, manifest in manifests.items():
        if name == "evaluate":
            continue
        parents = [bar.end for bar in bars if bar.manifest.stage in manifest.parents]
        start = parents[-1] if parents else 1.0
        counts = manifest.counts
        bars.append(Bar(manifest, start, start * counts.kept / counts.rows_in if counts.rows_in else 0.0))
    return bars


def out_of_date(manifests: Mapping[str, Manifest]) -> dict[str, str]:
    """Why a stage's result does not belong to those of the others, for the stages of which that is so."""
    found: dict[str, str] = {}
    for name, manifest in manifests.items():
        for parent, read in manifest.parents.items():
            if parent not in manifests or manifests[parent].key != read.key:
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


def shift_tables(found: Shift) -> list[ShiftTable]:
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
        note = (
            f"{different} different"
            if values.moved is None
            else (f"{different} different; {percent(values.moved)} of the rows moved from one to another")
        )
        if values.p is not None and values.cramers_v is not None:
            note += f"; dropped against kept: p {brief(values.p)}, Cramér's V {values.cramers_v:.2f}"
        tables.append(ShiftTable(title, rows, values.before, values.after, [value.name for value in values.gone], note))
    if len(found.difficulty) > 1:
        before, after = (sum(getattr(value, side) for value in found.difficulty) for side in ("before", "after"))
        note = (
            "how far the votes on a row are spread over labels: 0 is unanimous, 1 is two labels with half of them each"
        )
        tables.append(ShiftTable("vote entropy, bits", found.difficulty, before, after, [], note))
    return tables


def told_apart(comparison: Comparison) -> bool:
    """Whether the interval of a difference leaves out zero."""
    low, high = comparison.interval
    return low > 0 or high < 0


def read_curves(folder: Path) -> list[dict[str, Any]]:
    """The rows of the training's metrics.jsonl, or none where it left no such file."""
    path = folder / "metrics.jsonl"
    return [row for _, row in read_jsonl(path)] if path.is_file() else []


def charts(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, Markup, list[Series]]]:
    """For each loss that was logged: its title, its chart, and the lines in it. Validation lines are named as such."""
    found = []
    for column, title in LOSSES.items():
        lines = []
        for model in dict.fromkeys(str(row.get("model")) for row in rows):
            own = [row for row in rows if str(row.get("model")) == model]
            style = model if model in MODELS else "other"
            for prefix, suffix in (("", ""), ("validation_", ", validation")):
                drawn = [
                    (float(row["step"]), float(row[prefix + column]))
                    for row in own
                    if _is_number(row.get("step")) and _is_number(row.get(prefix + column))
                ]
                if drawn:
                    lines.append(
                        Series(model + suffix, f"{style} validation" if prefix else style, thinned(drawn, CHART_POINTS))
                    )
        if lines:
            found.append((title, line_chart(lines, "step", "loss"), lines))
    return found


def line_chart(series: Sequence[Series], x_label: str, y_label: str) -> Markup:
    """An SVG of lines over a common pair of axes; y starts at 0. Colours come from the page's CSS by ``Series.style``."""
    width, height, left, right, top, bottom = 440, 270, 46, 12, 12, 42
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    x_ticks, y_ticks = ticks(min(xs, default=0.0), max(xs, default=1.0)), ticks(0.0, max(ys, default=1.0))
    x_low, x_high, y_high = x_ticks[0], x_ticks[-1], y_ticks[-1]

    def across(x: float) -> float:
        return round(left + (x - x_low) / (x_high - x_low) * (width - left - right), 1)

    def down(y: float) -> float:
        return round(height - bottom - y / y_high * (height - top - bottom), 1)

    parts = []
    for y in y_ticks:
        parts.append(f'<line class="grid" x1="{left}" x2="{width - right}" y1="{down(y)}" y2="{down(y)}"/>')
        parts.append(f'<text x="{left - 7}" y="{down(y) + 4}" text-anchor="end">{y:g}</text>')
    parts += [f'<text x="{across(x)}" y="{height - bottom + 18}" text-anchor="middle">{x:g}</text>' for x in x_ticks]
    parts.append(
        f'<text class="axis" x="{(left + width - right) / 2}" y="{height - 6}" text-anchor="middle">{escape(x_label)}</text>'
    )
    middle = (top + height - bottom) / 2
    parts.append(
        f'<text class="axis" transform="translate(11 {middle}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    for line in reversed(series):  # the first lies on top
        places = " ".join(f"{across(x)},{down(y)}" for x, y in line.points)
        parts.append(f'<polyline class="line {escape(line.style)}" points="{places}"/>')
        if len(line.points) <= 40:
            parts += [
                f'<circle class="dot {escape(line.style)}" cx="{across(x)}" cy="{down(y)}" r="2.6"/>'
                for x, y in line.points
            ]
    names = ", ".join(line.name for line in series)
    label = escape(f"{y_label} over {x_label}: {names}")
    return Markup(
        f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{"".join(parts)}</svg>'
    )


def funnel_bar(start: float, end: float) -> Markup:
    """A bar from 0 to ``end`` in the colour of what is kept, on to ``start`` in that of what is dropped; shares of the full width."""
    kept, came = end * 1000, start * 1000
    lost = (
        min(came, max(came - kept, 4.0)) if came > kept else 0.0
    )  # what was dropped can be seen, be it ever so little
    return Markup(
        '<svg class="bar" viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="1000" height="10"/>'
        f'<rect class="kept" width="{came - lost:.1f}" height="10"/>'
        f'<rect class="dropped" x="{came - lost:.1f}" width="{lost:.1f}" height="10"/></svg>'
    )


def interval_bar(value: float, interval: Interval, style: str) -> Markup:
    """A bar from 0 to ``value`` with its interval as a whisker, on a scale from 0 to 1 with a tick at each quarter."""
    low, high = interval
    grid = "".join(f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="24"/>' for x in (0, 50, 100, 150, 200))
    return Markup(
        f'<svg class="interval" viewBox="-2 0 204 24" role="img" aria-label="{percent(value)}, {percent(low)} to {percent(high)}">{grid}'
        f'<rect class="fill {escape(style)}" y="6" width="{value * 200:.1f}" height="12"/>'
        f'<path class="whisker" d="M{low * 200:.1f} 12H{high * 200:.1f}M{low * 200:.1f} 8v8M{high * 200:.1f} 8v8"/></svg>'
    )


def share_bars(before: float, after: float, most: float) -> Markup:
    """Two bars, before above after, of shares on a scale from 0 to ``most``."""
    scale = 100 / most if most else 0.0
    return Markup(
        '<svg class="shares" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="before" width="{before * scale:.1f}" height="5"/>'
        f'<rect class="kept" y="6" width="{after * scale:.1f}" height="5"/></svg>'
    )


def drop_bar(value: Value) -> Markup:
    """A bar as wide as the share of a value's rows that was dropped."""
    rate = 1 - value.after / value.before if value.before else 0.0
    return Markup(
        f'<svg class="shares" viewBox="0 0 100 12" preserveAspectRatio="none" role="img" aria-label="{percent(rate)} dropped">'
        f'<rect class="track" y="3" width="100" height="6"/><rect class="dropped" y="3" width="{rate * 100:.1f}" height="6"/></svg>'
    )


def spread_bar(spread: Spread, most: float, style: str) -> Markup:
    """A box from the first to the third quartile, with a line at the median and a dot at the mean, on a scale from 0 to ``most``."""
    scale = 200 / most if most else 0.0
    first, median, third = (place * scale for place in spread.quartiles)
    return Markup(
        '<svg class="spread" viewBox="-4 0 208 12" aria-hidden="true">'
        '<line class="grid" x1="0" x2="200" y1="6" y2="6"/>'
        f'<rect class="{escape(style)}" x="{first:.1f}" y="1" width="{max(third - first, 1.5):.1f}" height="10"/>'
        f'<path class="whisker" d="M{median:.1f} 1v10"/>'
        f'<circle class="mean" cx="{min(spread.mean * scale, 200.0):.1f}" cy="6" r="2.5"/></svg>'
    )


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers, evenly spaced, from at most ``low`` to at least ``high``; about so many of them."""
    if high - low < 1e-6 * max(1.0, abs(low), abs(high)):
        high = low + max(1.0, abs(low))
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


def thinned(drawn: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most ``most`` points: each the mean of equally many neighbours."""
    size = -(-len(drawn) // most)
    groups = [drawn[start : start + size] for start in range(0, len(drawn), max(size, 1))]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def draw(sample: Sample, row: object, size: int, chance: random.Random) -> None:
    """Offer one more row to a sample of at most ``size`` (reservoir sampling: every row offered is as likely to stay)."""
    if len(sample.rows) < size:
        sample.rows.append((sample.seen, row))
    elif (place := chance.randrange(sample.seen + 1)) < size:
        sample.rows[place] = (sample.seen, row)
    sample.seen += 1


def drawn(rows: Iterable[T], size: int, seed: str) -> list[T]:
    """Up to ``size`` of the rows, in their order, drawn in one pass."""
    sample, chance = Sample(), random.Random(seed)
    for row in rows:
        draw(sample, row, size, chance)
    return [row for _, row in sorted(sample.rows, key=lambda entry: entry[0])]


def source_id(id: str) -> str:
    """The source row's id in the id of what became of it: a response's ``9f..#0``, a training row's ``9f../label``."""
    return id.partition("#")[0].partition("/")[0]


def shown_drop(drop: Drop, source: str | None) -> ShownDrop:
    """A drop for the page; ``source`` is the input of its source row, where that is known."""
    rest = dict(drop.evidence)
    other, whose = None, ""
    for name, title in OTHER_TEXTS.items():
        if isinstance(rest.get(name), str):
            other, whose = str(rest.pop(name)), title
    own = rest.get("text")
    text = source if source is not None else own if isinstance(own, str) else None
    if own == text or (isinstance(own, str) and own == excerpt(text or "")):
        rest.pop("text", None)
    return ShownDrop(drop, text, other, whose, rest)


def number(value: float | None) -> str:
    """``12,345``, ``2.5``, or a dash for None."""
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def percent(value: float | None) -> str:
    """``61.3%``, or a dash for None."""
    return "–" if value is None else f"{value * 100:.1f}%"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign: ``+3.3``."""
    return f"{value * 100:+.1f}".replace("-", "−")


def brief(value: float) -> str:
    """Two or three digits: ``0.083``, ``157``, ``2e-09``."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 or not value else f"{value:.0e}"


def compact(value: int | None) -> str:
    """``134.5M``, ``8.1B``, or a dash for None."""
    if value is None:
        return "–"
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return str(value)


def money(value: float) -> str:
    """``12.30``, or where it is little its first digits: ``0.0042``."""
    return f"{value:,.2f}" if value >= 0.1 or not value else f"{value:.2g}"


def cut(text: str) -> str:
    """The text, or its beginning and how long it is."""
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} … (cut here; {len(text):,} characters in all)"


def decimal(value: float | None) -> str:
    """``0.613``, or a dash for None."""
    return "–" if value is None else f"{value:.3f}"


def words(name: str) -> str:
    """``near_duplicate`` as people write it."""
    return name.replace("_", " ")


def pretty(value: object) -> str:
    """JSON over several lines."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, indent=2)


def flat(value: object) -> str:
    """A JSON value as people read it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _metrics(folder: Path | None) -> Metrics | None:
    return _read(folder / METRICS, Metrics) if folder is not None else None


def _speeds(folder: Path | None) -> Costs | None:
    path = folder / SPEEDS if folder is not None else None
    return _read(path, Costs) if path is not None and path.is_file() else None


def _read(path: Path, record: type[R]) -> R:
    try:
        return record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        problem = plain(error.errors(include_url=False)[0]["msg"])
        raise RunError(f"{path}: not a {record.__name__} ({problem}); run `stepdistill audit`") from None


def _row(line: bytes, kind: type[AnyRow], place: Path) -> AnyRow:
    try:
        return kind.read(line)
    except msgspec.DecodeError as error:
        problem = plain(str(error))
        raise RunError(f"{place}: not a {kind.__name__} ({problem}); run `stepdistill audit`") from None


def _rationales(folder: Path | None) -> list[Rationale]:
    path = folder / RATIONALES if folder is not None else None
    return list(outputs.read_file(path, Rationale)) if path is not None and path.is_file() else []


def _kept(folders: Mapping[str, Path], size: int, seed: int) -> list[Example]:
    """A sample of the examples that all filters kept."""
    examples = [name for name in folders if STAGES[name].gives is Example]
    if not examples:
        return []
    folder = folders[examples[-1]]
    return [_row(line, Example, folder) for line in drawn(outputs.lines(folder), size, f"{seed}/kept")]


def _drops(folders: Mapping[str, Path], size: int, seed: int) -> dict[str, dict[str, list[ShownDrop]]]:
    """Stage -> reason -> a sample of the rows dropped there for it, most frequent reason first."""
    found: dict[str, dict[str, list[Drop]]] = {}
    for stage, folder in folders.items():
        samples: dict[str, Sample] = {}
        chances: dict[str, random.Random] = {}
        for drop in outputs.read_drops(folder):
            chance = chances.setdefault(drop.reason, random.Random(f"{seed}/{stage}/{drop.reason}"))
            draw(samples.setdefault(drop.reason, Sample()), drop, size, chance)
        if samples:
            order = sorted(samples, key=lambda reason: (-samples[reason].seen, reason))
            found[stage] = {
                reason: [drop for _, drop in sorted(samples[reason].rows, key=lambda entry: entry[0])]
                for reason in order
            }
    wanted = {source_id(drop.id) for reasons in found.values() for drops in reasons.values() for drop in drops}
    texts = _inputs(folders.get("ingest"), wanted)
    return {
        stage: {
            reason: [shown_drop(drop, texts.get(source_id(drop.id))) for drop in drops]
            for reason, drops in reasons.items()
        }
        for stage, reasons in found.items()
    }


def _inputs(ingested: Path | None, wanted: set[str]) -> dict[str, str]:
    """The inputs of the source rows with these ids, found in one pass."""
    if ingested is None or not wanted:
        return {}
    names = {to_json(name): name for name in wanted}
    found: dict[str, str] = {}
    for line in outputs.lines(ingested):
        start = FIRST_ID.match(line)
        if start is not None and start[1] in names:
            found[names[start[1]]] = _row(line, Prompt, ingested).input
            if len(found) == len(names):
                break
    return found
