"""sweep: ablations in one call; every combination of the settings in question is trained and measured in the same run folder.

    sweep("stages.yaml", {"train.alpha": [0.1, 0.5, 0.9], "train.seed": range(5)})       # 15 points
    sweep("stages.yaml", ["train.alpha=0.1,0.5,0.9", "train.seed=0..4"])                  # the same, as `--over` has it

A point is a run of all stages with its settings, so stages before the first difference are shared, and whatever is finished is never
done again: the same call goes on after it was stopped or killed, and a larger grid trains only what is new. What is in force stays in
force, because a point never writes a stage's ``current``. The baseline is not trained unless it is swept or set.

    runs/<run>/sweeps/<name>/results.jsonl      Measured: a line for each point and eval set
    runs/<run>/sweeps/<name>/failures.jsonl     Failed: points without a result, and why
    runs/<run>/sweeps/<name>/results.md         the table, and the commands
    runs/<run>/sweeps/<name>/accuracy-<eval set>.svg, .png

``train.seed`` is what settings are repeated over: one row of the table is one setting with its seeds pooled.

Limits: points are trained one after the other. Intervals over seeds speak of other seeds on the same training and eval rows, and take the
seeds' accuracies to be about normal; with two or three of them they are as wide as they look. Each point keeps its student on disk.
"""

import gc
import itertools
import math
import re
import shlex
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

from msgspec import Meta
from pydantic import ValidationError

from pipeline import measure, outputs, provenance, runner, sweep_plot
from pipeline.binding import suggestion
from pipeline.config import Config, load, permit, read_yaml, verify
from pipeline.files import InputError, RunError, atomic, canonical_json, clear, digest, plain, private, strict_json
from pipeline.intervals import accuracy_interval
from pipeline.metrics import Metrics
from pipeline.progress import say_line
from pipeline.records import Row
from pipeline.shard import escaped
from pipeline.stages import STAGES
from pipeline.train import SPEEDS, STUDENT

FOLDER: Final = "sweeps"  # of a run
RESULTS: Final = "results.jsonl"
FAILURES: Final = "failures.jsonl"
PAGE: Final = "results.md"
SEED: Final = "train.seed"
FRACTION: Final = "train.fraction"
BASELINE: Final = "train.baseline"
MOST: Final = 1000  # points
Interval = tuple[float, float]
Over = Mapping[str, Iterable[Any]] | Iterable[str]

_RANGE = re.compile(r"(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")


class Measured(Row, frozen=True):
    """A line of results.jsonl: the student of one point on one eval set."""

    knobs: Annotated[dict[str, Any], Meta(description="the point: each swept setting with its value")]
    eval_set: str
    train: Annotated[str, Meta(description="key of the training, a folder in train/")]
    evaluate: Annotated[str, Meta(description="key of the evaluation, a folder in evaluate/")]
    rows: int
    correct: int
    accuracy: float
    interval: Annotated[Interval, Meta(description="of the accuracy: 95% Wilson score interval over the rows")]
    steps: int | None
    label_loss: Annotated[float | None, Meta(description="the last of the training, where labels were learned")]
    tokens: Annotated[int | None, Meta(description="read in training")]
    seconds: Annotated[float | None, Meta(description="of the training, since it was last started")]


class Failed(Row, frozen=True):
    """A line of failures.jsonl: a point without a result."""

    knobs: dict[str, Any]
    stage: str
    error: str


@dataclass(frozen=True)
class Point:
    """One combination: its settings, bound; what would run for it now; and per stage what tells whether two points share a result."""

    knobs: dict[str, Any]
    config: Config = field(repr=False)
    steps: list[provenance.Step] = field(repr=False)
    likenesses: dict[str, str] = field(repr=False)


@dataclass(frozen=True)
class Grid:
    """All points of a sweep, in order, every one of them checked. ``plot`` is the setting on the axis; None where only seeds are swept."""

    name: str
    overs: dict[str, list[Any]]
    points: list[Point]
    plot: str | None
    command: list[str]
    fixed: list[str]  # what every point has besides: stage.knob=value

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.points[0].config.run

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return self.run / FOLDER / self.name


@dataclass(frozen=True)
class Planned:
    """A point of a dry run: the stages that would run for it, those apart that an earlier point shares."""

    knobs: dict[str, Any]
    runs: list[str]


@dataclass(frozen=True)
class Pooled:
    """One setting on one eval set, over its seeds.

    ``deviation`` is the standard deviation of the seeds' accuracies, ``interval`` the 95% t interval of their mean; None for one seed.
    ``rows_interval`` is the Wilson interval of ``correct`` of ``rows``, both summed over the seeds as if all rows were different ones.
    """

    eval_set: str
    knobs: dict[str, Any]
    seeds: list[Any]
    accuracies: list[float]
    mean: float
    deviation: float | None
    interval: Interval | None
    rows: int
    correct: int
    rows_interval: Interval


@dataclass(frozen=True)
class Paired:
    """Two values of the one swept setting on the same seeds: mean of the second's accuracy minus the first's, 95% t interval over seeds."""

    eval_set: str
    knob: str
    first: Any
    second: Any
    seeds: int
    difference: float
    interval: Interval | None


@dataclass(frozen=True)
class Swept:
    """What a sweep left: ``trained`` is how many trainings this call did."""

    name: str
    folder: Path
    points: int
    trained: int
    measured: list[Measured]
    settings: list[Pooled]
    paired: list[Paired]
    failures: list[Failed]
    plots: list[Path]

    def plain(self) -> dict[str, Any]:
        """All of it as JSON's own types."""
        rows = {"measured": [one.plain() for one in self.measured], "failures": [one.plain() for one in self.failures]}
        return {
            **{"name": self.name, "folder": str(self.folder), "points": self.points, "trained": self.trained},
            **rows,
            "settings": [asdict(one) for one in self.settings],
            "paired": [asdict(one) for one in self.paired],
            "plots": [str(path) for path in self.plots],
        }


def sweep(
    config: Path | str,
    over: Over,
    *,
    overrides: Iterable[str] = (),
    name: str | None = None,
    plot: str | None = None,
    accept_terms: str | None = None,
) -> Swept:
    """Train and measure every point that has no result yet. A point that fails is recorded, and the others go on.

    ``over`` gives the values of each setting, ``overrides`` what all points have besides (``stage.knob=value``). ``name`` is the folder
    under sweeps/; without one it follows from the settings and their values. Raises InputError, before anything runs, for settings that
    cannot be used at any one of the points; RunError where another process has the run folder.
    """
    grid = prepare(config, over, overrides=overrides, name=name, plot=plot, accept_terms=accept_terms)
    found: dict[int, list[Measured]] = {}
    failures: dict[int, Failed] = {}
    broken: dict[str, Failed] = {}
    trained = 0
    with runner.at_work(grid.points[0].config) as crew:
        grid.folder.mkdir(parents=True, exist_ok=True)
        clear(grid.folder)
        for number, point in enumerate(grid.points):
            if not any(step.runs for step in point.steps):
                keys = {step.stage: step.ask.key for step in point.steps if step.ask is not None}
                with suppress(RunError):  # told below, as that point's failure
                    found[number] = measured(grid.run, point.knobs, keys["train"], keys["evaluate"])
        _write(grid.folder, found, failures)
        for number, point in enumerate(grid.points):
            if number in found:
                continue
            say_line(f"sweep: point {number + 1} of {len(grid.points)}: {described(point.knobs)}")
            stuck = next((broken[one] for one in point.likenesses.values() if one in broken), None)
            keys = {}
            try:
                if stuck is None:
                    for outcome in runner.aside(point.config, crew):
                        keys[outcome.stage] = outcome.folder.name
                        trained += outcome.stage == "train" and outcome.ran
                    found[number] = measured(grid.run, point.knobs, keys["train"], keys["evaluate"])
            except Exception as error:  # noqa: BLE001 - whatever stops one training must not cost the others
                stage = next((stage for stage in point.config.stages if stage not in keys), "evaluate")
                told = str(error) if isinstance(error, InputError | RunError) else f"{type(error).__name__}: {error}"
                stuck = Failed(knobs=private(point.knobs), stage=stage, error=plain(private(told), 1000))
                broken[point.likenesses[stage]] = stuck
            if stuck is not None:
                failures[number] = stuck.changed(knobs=private(point.knobs))
                say_line(f"sweep: failed: {stuck.stage}: {stuck.error}")
            _write(grid.folder, found, failures)
            gc.collect()  # a trainer is a knot of references, and holds its model until then
        return _views(grid, found, failures, trained)


def prepare(
    config: Path | str,
    over: Over,
    *,
    overrides: Iterable[str] = (),
    name: str | None = None,
    plot: str | None = None,
    accept_terms: str | None = None,
) -> Grid:
    """Every point, bound and checked as `run` would check it. Raises InputError for the first that cannot be used; nothing is written."""
    overs, overrides = read_over(over), list(overrides)
    given = [override.partition("=")[0].strip().removeprefix("stages.") for override in overrides]
    for knob in overs:
        if knob in given:
            raise InputError(f"--set {knob}: it is swept as well; leave one of the two out")
    base = load(config, overrides, accept_terms=accept_terms)
    for stage in ("train", "evaluate"):
        if stage not in base.stages:
            raise InputError(f"{base.file}: stages.{stage}: it is switched off, and a sweep needs it; remove it there")
    if not base.eval_sets:
        raise InputError(f"{base.file}: eval_sets: there is nothing to measure on; add one")
    axis = _axis(overs, plot)
    if name is not None and not _NAME.fullmatch(name):
        raise InputError(f"--name {plain(name, 80)}: a name is made of up to 100 letters, digits, '-', '_' and '.'")
    asked = digest({"over": overs, "set": sorted(overrides)})
    told = re.sub(r"[^A-Za-z0-9_-]", "", "-".join(knob.rpartition(".")[2] for knob in overs))[:80]
    named = name or f"{told}-{asked[:8]}"
    fixed = [*overrides, *([] if BASELINE in (*overs, *given) else [f"{BASELINE}=false"])]
    checked: set[str] = set()
    points = [
        _point(config, dict(zip(overs, values, strict=True)), fixed, accept_terms, checked)
        for values in itertools.product(*overs.values())
    ]
    command = ["stepdistill", "sweep"]
    command += [] if str(config) == "stages.yaml" else ["-c", str(config)]
    command += [word for knob, values in overs.items() for word in ("--over", f"{knob}={','.join(map(_yaml, values))}")]
    command += [word for override in overrides for word in ("--set", override)]
    command += [] if accept_terms is None else ["--accept-terms", accept_terms]
    command += [] if name is None else ["--name", name]
    command += [] if plot is None else ["--plot", plot]
    return Grid(named, overs, points, axis, command, fixed)


def _point(
    config: Path | str, knobs: dict[str, Any], fixed: list[str], accept_terms: str | None, checked: set[str]
) -> Point:
    """``checked`` holds what a thorough look was taken at: it takes a while, and says nothing of train and evaluate."""
    try:
        overrides = [*fixed, *(f"{knob}={_yaml(value)}" for knob, value in knobs.items())]
        bound = load(config, overrides, accept_terms=accept_terms)
        verify(bound)
        likenesses = provenance.likenesses(bound)
        before = likenesses["shard"]
        if before not in checked:
            verify(bound, thorough=True)
            checked.add(before)
        steps = provenance.plan(bound)
        permit(bound, [step.stage for step in steps if step.runs])
    except InputError as error:
        raise InputError(f"sweep: at {described(knobs)}: {error}") from None
    return Point(knobs, bound, steps, likenesses)


def plan(grid: Grid) -> list[Planned]:
    """What the sweep would run, point after point; nothing is written."""
    shared: set[str] = set()
    found = []
    for point in grid.points:
        runs = [step.stage for step in point.steps if step.runs and point.likenesses[step.stage] not in shared]
        shared.update(point.likenesses.values())
        found.append(Planned(point.knobs, runs))
    return found


def read_over(over: Over) -> dict[str, list[Any]]:
    """The values of each swept setting: from ``stage.knob=value,value`` as `--over` takes it, or as they are. Raises InputError."""
    if isinstance(over, str):
        over = [over]
    pairs = list(over.items()) if isinstance(over, Mapping) else [_parsed(text) for text in over]
    found: dict[str, list[Any]] = {}
    for given, values in pairs:
        knob = str(given).strip().removeprefix("stages.")
        start, (stage, *steps) = f"--over {plain(knob, 100)}", knob.split(".")
        if not all((stage, *steps)) or not steps:
            raise InputError(f"{start}: write it as stage.knob=value,value, for example train.alpha=0.1,0.5,0.9")
        if stage not in STAGES:
            raise InputError(f"{start}: {plain(stage)}: unknown stage{suggestion(stage, STAGES)}")
        for other in found:
            if other == knob:
                raise InputError(f"{start}: stands there twice; give all of its values at once, with commas")
            if f"{other}.".startswith(f"{knob}.") or f"{knob}.".startswith(f"{other}."):
                raise InputError(f"{start}: one setting holds the other: {other}; sweep one of the two")
        listed = list(values)
        if not listed:
            raise InputError(f"{start}: no values; write them behind '=', with commas")
        seen: set[bytes] = set()
        for value in listed:
            try:
                same_as = canonical_json(normal(value))
            except (TypeError, ValueError):
                raise InputError(
                    f"{start}: {plain(repr(value), 60)}: not a value that stages.yaml could hold"
                ) from None
            if same_as in seen:
                raise InputError(f"{start}: {plain(_shown(value), 60)} stands there twice; remove one")
            seen.add(same_as)
        found[knob] = listed
    if not found:
        raise InputError("--over: nothing is swept; name a setting, for example --over train.seed=0..4")
    points = math.prod(map(len, found.values()))
    if points > MOST:
        raise InputError(f"--over: {points:,} points, and at most {MOST:,} are allowed; leave values out")
    return found


def _parsed(text: str) -> tuple[str, list[Any]]:
    knob, equals, values = text.partition("=")
    start = f"--over {plain(knob.strip(), 100)}"
    if not equals:
        raise InputError(f"{start}: write it as stage.knob=value,value, for example train.alpha=0.1,0.5,0.9")
    if values.rstrip().endswith(","):
        raise InputError(f"{start}: ends with a comma; write a value behind it, or remove it")
    # In a line of its own the bracket stands behind any comment, so whatever closes the list before it is an error.
    parsed, _ = read_yaml(f"[{values}\n]", start, mapping=False)
    found: list[Any] = []
    for value in parsed:
        ends = _RANGE.fullmatch(value) if isinstance(value, str) else None
        if ends is None:
            if isinstance(value, str) and ".." in value and re.fullmatch(r"[-+0-9. ]+", value):
                raise InputError(f"{start}: {plain(value, 60)}: a range is made of two whole numbers, for example 0..4")
            found.append(value)
            continue
        first, last = int(ends[1]), int(ends[2])
        if first > last:
            raise InputError(f"{start}: {value}: ends before it begins; write {last}..{first}")
        if last - first >= MOST:
            raise InputError(f"{start}: {value}: more than {MOST:,} values; leave some out")
        found += range(first, last + 1)
    return knob, found


def normal(value: Any) -> Any:
    """With equal numbers alike, however they are written."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [normal(item) for item in value]
    return {name: normal(item) for name, item in value.items()} if isinstance(value, dict) else value


def _yaml(value: Any) -> str:
    """A value as `--set` and `--over` read it: JSON, which YAML contains."""
    return canonical_json(value).decode()


def _shown(value: Any) -> str:
    """A value as one would write it: texts without quotes."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return value if isinstance(value, str) else _yaml(value)


def described(knobs: Mapping[str, Any]) -> str:
    """``train.alpha=0.5, train.seed=2``, on one line."""
    return plain(", ".join(f"{knob}={_shown(private(value))}" for knob, value in knobs.items()))


def _axis(overs: Mapping[str, list[Any]], plot: str | None) -> str | None:
    """The setting to plot against: the one asked for, the fraction of the rows, the first with numbers, or the first."""
    knobs = [knob for knob in overs if knob != SEED]
    if plot is not None:
        asked = plot.strip().removeprefix("stages.")
        if asked not in knobs:
            told = (
                "seeds are pooled" if asked == SEED else f"it is not swept{suggestion(asked, knobs) if knobs else ''}"
            )
            raise InputError(f"--plot {plain(asked, 100)}: {told}")
        return asked
    if FRACTION in knobs:
        return FRACTION
    numbers = [knob for knob in knobs if not knob.endswith(".seed") and all(map(_is_number, overs[knob]))]
    return next(iter([*numbers, *knobs]), None)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def measured(run: Path, knobs: Mapping[str, Any], train: str, evaluation: str) -> list[Measured]:
    """What the results with these keys say of their student, a line for each eval set. Raises RunError where they cannot be read."""
    trained, judged = run / "train" / train, run / "evaluate" / evaluation
    details: Any = outputs.read_manifest(trained).details
    try:
        metrics = Metrics.model_validate_json((judged / measure.METRICS).read_bytes())
        facts: dict[str, Any] = details["models"][STUDENT]
    except ValidationError:
        raise RunError(f"{judged / measure.METRICS}: not the metrics of this version; run the sweep again") from None
    except (OSError, LookupError, TypeError) as error:
        raise RunError(f"{judged}: {plain(str(error))}; run `stepdistill audit`") from None
    found = []
    for name, eval_set in metrics.eval_sets.items():
        student = eval_set.models.get(STUDENT)
        if student is not None:
            found.append(
                Measured(
                    knobs=private(dict(knobs)),
                    eval_set=name,
                    train=train,
                    evaluate=evaluation,
                    rows=student.rows,
                    correct=student.correct,
                    accuracy=student.accuracy,
                    interval=student.accuracy_interval,
                    steps=facts.get("step"),
                    label_loss=facts.get("label_loss"),
                    tokens=facts.get("tokens"),
                    seconds=_seconds(trained),
                )
            )
    if not found:
        raise RunError(f"{judged}: no eval set has a row that counts; see its dropped.jsonl")
    return found


def _seconds(trained: Path) -> float | None:
    """How long the training took, where it is known: no result depends on it."""
    try:
        seconds = strict_json((trained / SPEEDS).read_bytes())[STUDENT]["seconds"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return float(seconds) if _is_number(seconds) else None


def pooled(found: Iterable[Measured]) -> list[Pooled]:
    """One for each eval set and setting, in the order in which they first occur."""
    groups: dict[str, dict[bytes, list[Measured]]] = {}
    for one in found:
        key = canonical_json(_but(one.knobs, SEED))
        groups.setdefault(one.eval_set, {}).setdefault(key, []).append(one)
    settings = []
    for name, by_setting in groups.items():
        for ones in by_setting.values():
            mean, deviation, interval = spread([one.accuracy for one in ones], 0.0, 1.0)
            rows, correct = sum(one.rows for one in ones), sum(one.correct for one in ones)
            settings.append(
                Pooled(
                    eval_set=name,
                    knobs=_but(ones[0].knobs, SEED),
                    seeds=[one.knobs[SEED] for one in ones if SEED in one.knobs],
                    accuracies=[one.accuracy for one in ones],
                    mean=mean,
                    deviation=deviation,
                    interval=interval,
                    rows=rows,
                    correct=correct,
                    rows_interval=accuracy_interval(correct, rows),
                )
            )
    return settings


def _but(knobs: Mapping[str, Any], knob: str) -> dict[str, Any]:
    return {name: value for name, value in knobs.items() if name != knob}


def spread(values: Sequence[float], low: float, high: float) -> tuple[float, float | None, Interval | None]:
    """Mean, standard deviation (n - 1) and 95% t interval of the mean, within ``low`` and ``high``; the last two None for one value.

    Raises ValueError for no values.
    """
    if not values:
        raise ValueError("no values have no mean")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, None, None
    from scipy.special import stdtrit

    deviation = statistics.stdev(values)
    half = float(stdtrit(len(values) - 1, 0.975)) * deviation / math.sqrt(len(values))
    return mean, deviation, (max(low, mean - half), min(high, mean + half))


def paired(found: Iterable[Measured], overs: Mapping[str, Sequence[Any]]) -> list[Paired]:
    """The second value minus the first on the seeds that both have, where exactly one setting besides the seed has exactly two values."""
    knobs = [knob for knob in overs if knob != SEED]
    if len(knobs) != 1 or len(overs[knobs[0]]) != 2:
        return []
    (knob,) = knobs
    first, second = map(private, overs[knob])
    by_seed: dict[str, dict[bytes, dict[bytes, float]]] = {}
    for one in found:
        seed, value = canonical_json(one.knobs.get(SEED)), canonical_json(one.knobs[knob])
        by_seed.setdefault(one.eval_set, {}).setdefault(seed, {})[value] = one.accuracy
    pairs = []
    for name, seeds in by_seed.items():
        both = [canonical_json(first), canonical_json(second)]
        differences = [has[both[1]] - has[both[0]] for has in seeds.values() if set(both) <= set(has)]
        if differences:
            mean, _, interval = spread(differences, -1.0, 1.0)
            pairs.append(Paired(name, knob, first, second, len(differences), mean, interval))
    return pairs


def table(swept: Swept) -> tuple[tuple[str, ...], list[tuple[str, ...]], tuple[int, ...]]:
    """Header, rows, and which columns are aligned on the right: a row for each setting and eval set."""
    knobs = list(dict.fromkeys(knob for one in swept.settings for knob in one.knobs))
    rows = [
        (
            one.eval_set,
            *(_shown(one.knobs.get(knob)) for knob in knobs),
            f"{len(one.accuracies)}",
            f"{one.mean:.1%}",
            "" if one.deviation is None else f"{one.deviation:.1%}",
            "" if one.interval is None else f"{one.interval[0]:.1%} to {one.interval[1]:.1%}",
            f"{one.rows_interval[0]:.1%} to {one.rows_interval[1]:.1%}",
            f"{one.rows:,}",
        )
        for one in swept.settings
    ]
    header = ("on", *knobs, "seeds", "accuracy", "deviation", "t, over seeds", "Wilson, pooled rows", "rows")
    return header, rows, tuple(range(len(knobs) + 1, len(header)))


def notes(swept: Swept) -> list[str]:
    """What to know about the table: what its intervals are, and how two settings compare."""
    told = []
    if any(one.interval is not None for one in swept.settings):
        told.append("t, over seeds: 95% t interval of the mean, for other training seeds on these same eval rows")
    told.append(
        "Wilson, pooled rows: 95% score interval of all seeds' answers, each taken as a row of its own; with more than one seed "
        "the same eval rows are counted again, so for other eval rows it is too narrow"
        if any(len(one.accuracies) > 1 for one in swept.settings)
        else "Wilson, pooled rows: 95% score interval, for other eval rows and this one training seed"
    )
    for one in swept.paired:
        over = "over 1 seed, so there is no interval"
        if one.interval is not None:
            over = f"over {one.seeds} seeds, 95% t interval {_signed(one.interval[0])} to {_signed(one.interval[1])}"
        pair = f"{one.knob}={_shown(one.second)} minus {_shown(one.first)}"
        told.append(f"on {one.eval_set}: {pair}, paired by seed: {_signed(one.difference)} points {over}")
    return told


def _signed(share: float) -> str:
    return f"{100 * share:+.1f}"


def _write(folder: Path, found: Mapping[int, list[Measured]], failures: Mapping[int, Failed]) -> None:
    """Both files of rows, in the order of the points."""
    lines = {
        RESULTS: [one.line() for _, ones in sorted(found.items()) for one in ones],
        FAILURES: [one.line() for _, one in sorted(failures.items())],
    }
    for name, rows in lines.items():
        with atomic(folder / name) as file:
            file.writelines(row + b"\n" for row in rows)


def _views(grid: Grid, found: dict[int, list[Measured]], failures: dict[int, Failed], trained: int) -> Swept:
    """The page and the plots."""
    lines = [one for _, ones in sorted(found.items()) for one in ones]
    settings = pooled(lines)
    plots = [] if grid.plot is None else _plots(grid, grid.plot, settings)
    numbered = [one for _, one in sorted(failures.items())]
    swept = Swept(
        *(grid.name, grid.folder, len(grid.points), trained, lines),
        *(settings, paired(lines, grid.overs), numbered, plots),
    )
    outputs.write_text(grid.folder / PAGE, _page(grid, swept))
    return swept


def _plots(grid: Grid, axis: str, settings: Sequence[Pooled]) -> list[Path]:
    for old in grid.folder.glob("accuracy-*.*"):
        old.unlink()
    plots = []
    for name in dict.fromkeys(one.eval_set for one in settings):
        here = [one for one in settings if one.eval_set == name]
        alone = [one for one in here if one.interval is None]
        bars = "bars: 95% t interval over seeds; small marks: single seeds"
        if alone:
            bars = "bars: 95% Wilson interval over eval rows; one training seed"
        if alone and len(alone) < len(here):
            bars = "bars: 95% t interval over seeds; where there is one seed, Wilson interval over eval rows"
        target = grid.folder / f"accuracy-{name}"
        plots += sweep_plot.draw(target, f"accuracy on {name}", axis, curves(here, axis, grid.overs), bars)
    return plots


def curves(settings: Sequence[Pooled], knob: str, overs: Mapping[str, Sequence[Any]]) -> list[sweep_plot.Curve]:
    """A curve for each combination of the other settings; ``settings`` are of one eval set."""
    order = [canonical_json(private(value)) for value in overs[knob]]
    is_number = all(map(_is_number, overs[knob]))
    groups: dict[str, list[Pooled]] = {}
    for one in settings:
        groups.setdefault(described(_but(one.knobs, knob)), []).append(one)
    found = []
    for label, ones in groups.items():
        ones.sort(key=lambda one: one.knobs[knob] if is_number else order.index(canonical_json(one.knobs[knob])))
        spots = tuple(
            sweep_plot.Spot(
                at=one.knobs[knob] if is_number else _shown(one.knobs[knob]),
                mean=one.mean,
                interval=one.rows_interval if one.interval is None else one.interval,
                single=tuple(one.accuracies),
            )
            for one in ones
        )
        found.append(sweep_plot.Curve(label, spots))
    return found


def _page(grid: Grid, swept: Swept) -> str:
    """results.md. What settings and errors say is escaped."""
    parts = [f"# Sweep {escaped(grid.name)}"]
    parts.append(f"{len(grid.points):,} points, {len(grid.points) - len(swept.failures):,} of them with a result.")
    if swept.settings:
        header, rows, right = table(swept)
        rule = "|".join("---:" if column in right else "---" for column in range(len(header)))
        lines = [f"| {' | '.join(map(escaped, row))} |" for row in (header, *rows)]
        parts.append("\n".join([lines[0], f"|{rule}|", *lines[1:]]))
        parts.append("\n".join(f"- {escaped(note)}" for note in notes(swept)))
    parts += [f"![accuracy]({path.name})" for path in swept.plots if path.suffix == ".svg"]
    if swept.failures:
        parts += ["## Without a result"]
        failed = [f"- {described(one.knobs)}: {one.stage}: {one.error}" for one in swept.failures]
        parts.append("\n".join(f"- {escaped(line[2:])}" for line in failed))
    first = grid.points[0].knobs
    settings = [*grid.fixed, *(f"{knob}={_yaml(value)}" for knob, value in first.items())]
    chosen = [*("stepdistill", "run"), *(word for setting in settings for word in ("--set", setting))]
    chosen += grid.command[2:4] if grid.command[2] == "-c" else []
    parts += ["## Commands", "This sweep, and, as an example, its first point put in force:"]
    parts.append("\n".join(f"    {plain(private(shlex.join(words)), 20_000)}" for words in (grid.command, chosen)))
    return "\n\n".join(parts) + "\n"
