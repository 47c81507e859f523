"""What changed between two runs: settings, what made them, rows, and the models' figures.

    stepdistill compare runs/topics runs/again
    stepdistill compare runs/topics/quality/3ef04456e6f0096fcbdf1bdb3bc3eb19 runs/topics

Either is a run folder, whose results in force are compared, or the folder of one result (``runs/<run>/<stage>/<key>``: an earlier one, or
one that a sweep made aside), which brings the results along that it was made from. Nothing is run, written or guessed: manifests, rows
and predictions are read as they lie there, and `stepdistill audit` is what verifies them.

Limits: rows are matched by their ids, so two runs over other sources have none in common. Ids are held as 8 bytes each, so that two among
many millions may be taken for one. A paired difference says what these two models do on these rows, and nothing of another training seed.
"""

import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import xxhash

from pipeline import intervals, outputs
from pipeline.differences import ABSENT, Difference, differences
from pipeline.files import InputError, RunError, digest, plain, strict_json
from pipeline.measure import METRICS
from pipeline.metrics import Comparison
from pipeline.records import Counts, Drop, Example, Manifest, Prediction, decoded
from pipeline.report.view import out_of_date, unread
from pipeline.stages import STAGES

SHOWN = 5  # ids of rows that only one of them has
FIGURES = ("accuracy", "macro_f1", "exact_match", "rouge_l", "chrf", "calibration.ece", "calibration.brier")


@dataclass(frozen=True)
class Changed:
    """One difference: where, and what stands there on either side as JSON; None where there is nothing."""

    place: str
    first: str | None
    second: str | None


@dataclass(frozen=True)
class MadeBy:
    """A difference in the code, the packages or the machine, and the stages that differ in it."""

    place: str
    first: str | None
    second: str | None
    stages: list[str]


@dataclass(frozen=True)
class StageRows:
    """One stage's counts on either side, None where it has no result; ``reasons`` are those of its drops, with both counts."""

    stage: str
    unit: str
    first: dict[str, int] | None
    second: dict[str, int] | None
    reasons: dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Missing:
    """Rows that only one side kept: how many, the ids of the first of them, and what became of them on the other side.

    ``became``: ``quality: min_words`` and the like -> rows; what the other side never had is ``not among its rows``.
    """

    rows: int
    ids: list[str]
    became: dict[str, int]


@dataclass(frozen=True)
class Rows:
    """The examples that are left behind the last filter of either side, by id; ``changed`` are those of both with another content."""

    first_stage: str
    second_stage: str
    both: int
    changed: int
    only_first: Missing
    only_second: Missing


@dataclass(frozen=True)
class Figure:
    """One figure of one model on either side; None where that side does not have it."""

    model: str
    name: str
    first: float | None
    second: float | None


@dataclass(frozen=True)
class EvalSetCompared:
    """The models' figures on one eval set, and each model now beside itself before, on the ``paired_rows`` that both have."""

    eval_set: str
    figures: list[Figure]
    paired_rows: dict[str, int]
    paired: dict[str, Comparison]
    note: str | None


@dataclass(frozen=True)
class Compared:
    """All that differs. ``settings``: stage -> differences; ``notes`` are what to know before anything is concluded."""

    first: str
    second: str
    only_first: list[str]
    only_second: list[str]
    same: list[str]
    settings: dict[str, list[Changed]]
    inputs: dict[str, list[Changed]]
    made_by: list[MadeBy]
    rows: list[StageRows]
    examples: Rows | None
    eval_sets: list[EvalSetCompared]
    notes: list[str]

    def plain(self) -> dict[str, Any]:
        """As JSON's own types."""
        found = asdict(self)
        for one, written in zip(self.eval_sets, found["eval_sets"], strict=True):
            written["paired"] = {model: told.model_dump(mode="json") for model, told in one.paired.items()}
        return found


class _Named(msgspec.Struct, frozen=True):
    """What is read of a row: decoding the rest of it would take most of the time."""

    id: str


@dataclass(frozen=True)
class _Side:
    """The results that are compared, in the order of the stages."""

    folders: dict[str, Path]
    manifests: dict[str, Manifest]


def compare(first: Path, second: Path, *, resamples: int = 2000) -> Compared:
    """What differs between two runs, or between two results and what they were made from.

    Where one of them is the result of a stage, of the other no more is looked at than that stage's result and what that was made from.
    ``resamples`` are those of the bootstrap. Raises InputError where either is neither a run folder with a finished stage nor a finished
    result, and RunError where something in them cannot be read.
    """
    of_stage = _stage_of(first) or _stage_of(second)
    one, other = _side(first, of_stage), _side(second, of_stage)
    shared = [stage for stage in STAGES if stage in one.manifests and stage in other.manifests]
    settings = {stage: _settings(one.manifests[stage], other.manifests[stage]) for stage in shared}
    inputs = {stage: _inputs(one.manifests[stage], other.manifests[stage]) for stage in shared}
    notes = [
        f"{path}: {stage}: {why}"
        for path, side in ((first, one), (second, other))
        for stage, why in out_of_date(side.manifests).items()
    ]
    return Compared(
        first=str(first),
        second=str(second),
        only_first=[stage for stage in one.manifests if stage not in other.manifests],
        only_second=[stage for stage in other.manifests if stage not in one.manifests],
        same=[stage for stage in shared if one.manifests[stage].key == other.manifests[stage].key],
        settings={stage: found for stage, found in settings.items() if found},
        inputs={stage: found for stage, found in inputs.items() if found},
        made_by=_made_by({stage: (one.manifests[stage], other.manifests[stage]) for stage in shared}),
        rows=[
            _stage_rows(stage, one.manifests.get(stage), other.manifests.get(stage))
            for stage in STAGES
            if stage in one.manifests or stage in other.manifests
        ],
        examples=_examples(one, other),
        eval_sets=_eval_sets(one.folders.get("evaluate"), other.folders.get("evaluate"), resamples),
        notes=notes,
    )


def _stage_of(path: Path) -> str | None:
    """The stage whose finished result a folder is, or None."""
    return outputs.read_manifest(path).stage if (path / outputs.MANIFEST).is_file() else None


def _side(path: Path, of_stage: str | None) -> _Side:
    if (path / outputs.MANIFEST).is_file():
        folders = _made_from(path)
    else:
        folders = {stage: folder for stage in STAGES if (folder := outputs.current(path, stage)) is not None}
        if not folders:
            raise InputError(
                f"{plain(str(path))}: neither a run folder with a finished stage nor a result; give runs/NAME or runs/NAME/STAGE/KEY"
            )
        if of_stage is not None:
            if of_stage not in folders:
                raise InputError(
                    f"{plain(str(path))}: {of_stage} has no result there that could be compared; give a folder that has one"
                )
            folders = _made_from(folders[of_stage])
    return _Side(folders, {stage: outputs.read_manifest(folder) for stage, folder in folders.items()})


def _made_from(result: Path) -> dict[str, Path]:
    """A result and all that it was made from, as far as that lies in its run folder, in the order of the stages."""
    found: dict[str, Path] = {}
    left = [result]
    while left:
        folder = left.pop()
        manifest = outputs.read_manifest(folder)
        if manifest.stage not in STAGES or manifest.stage in found:
            continue
        found[manifest.stage] = folder
        for stage, read in manifest.parents.items():
            parent = result.resolve().parent.parent / stage / read.key
            if stage in STAGES and Path(read.key).name == read.key and (parent / outputs.MANIFEST).is_file():
                left.append(parent)
    return {stage: found[stage] for stage in STAGES if stage in found}


def _settings(first: Manifest, second: Manifest) -> list[Changed]:
    return [_changed(one) for one in differences(first.settings, second.settings)]


def _inputs(first: Manifest, second: Manifest) -> list[Changed]:
    """What was read besides the rows of other stages, and who answered: source files by content, models by identity."""
    return [
        _changed(one)
        for name in ("sources", "identities")
        for one in differences(*(_dumped(manifest, name) for manifest in (first, second)))
    ]


def _dumped(manifest: Manifest, name: str) -> dict[str, Any]:
    return manifest.model_dump(mode="json", include={name})


def _changed(one: Difference) -> Changed:
    return Changed(one.place, _shown(one.first), _shown(one.second))


def _shown(value: Any) -> str | None:
    return None if value is ABSENT else json.dumps(value, ensure_ascii=False)


def _made_by(stages: Mapping[str, tuple[Manifest, Manifest]]) -> list[MadeBy]:
    """Differences of code and environment, each with the stages that have it."""
    found: dict[tuple[str, str | None, str | None], list[str]] = {}
    for stage, pair in stages.items():
        for name in ("version", "code", "environment"):
            for one in differences(*(_dumped(manifest, name) for manifest in pair)):
                changed = _changed(one)
                found.setdefault((changed.place, changed.first, changed.second), []).append(stage)
    return [MadeBy(*place, among) for place, among in found.items()]


def _stage_rows(stage: str, first: Manifest | None, second: Manifest | None) -> StageRows:
    one, other = (None if manifest is None else manifest.counts for manifest in (first, second))
    told: dict[str, int] = {}
    for counts in (one, other):
        if counts is not None:
            told |= dict.fromkeys(counts.reasons, 0)
    reasons = {
        reason: ((one.reasons.get(reason, 0) if one else 0), (other.reasons.get(reason, 0) if other else 0))
        for reason in sorted(told)
    }
    return StageRows(stage, STAGES[stage].unit, _figures_of(one), _figures_of(other), reasons)


def _figures_of(counts: Counts | None) -> dict[str, int] | None:
    return None if counts is None else {"in": counts.rows_in, "kept": counts.kept, "dropped": counts.dropped}


def _examples(first: _Side, second: _Side) -> Rows | None:
    """What is left behind the last filters of both, held against each other; None where a side has no examples."""
    import numpy

    last, other_last = _last(first), _last(second)
    if last is None or other_last is None:
        return None
    one, other = _ids(first.folders[last]), _ids(second.folders[other_last])
    both, here, there = numpy.intersect1d(one[0], other[0], assume_unique=True, return_indices=True)
    return Rows(
        first_stage=last,
        second_stage=other_last,
        both=len(both),
        changed=int(numpy.count_nonzero(one[1][here] != other[1][there])),
        only_first=_missing(numpy.setdiff1d(one[0], other[0], assume_unique=True), first.folders[last], second),
        only_second=_missing(numpy.setdiff1d(other[0], one[0], assume_unique=True), second.folders[other_last], first),
    )


def _last(side: _Side) -> str | None:
    """The last stage whose rows are examples; one that was switched off since, and that no later stage read, does not count."""
    names = [stage for stage in side.manifests if STAGES[stage].gives is Example and not unread(stage, side.manifests)]
    return names[-1] if names else None


def _ids(folder: Path) -> tuple[Any, Any]:
    """A digest of each row's id, in ascending order, and beside it a digest of the row; 16 bytes a row."""
    import numpy

    ids, lines = array("Q"), array("Q")
    for line, row in _rows(folder):
        ids.append(xxhash.xxh3_64_intdigest(row.encode()))
        lines.append(xxhash.xxh3_64_intdigest(line))
    known, places = numpy.unique(numpy.frombuffer(ids, dtype=numpy.uint64), return_index=True)
    return known, numpy.frombuffer(lines, dtype=numpy.uint64)[places]


def _rows(folder: Path) -> Iterator[tuple[bytes, str]]:
    """Each kept row's line and id."""
    for line in outputs.lines(folder):
        try:
            yield line, decoded(_Named, line).id
        except msgspec.DecodeError:
            raise RunError(f"{folder}: a row that cannot be read; run `stepdistill audit`") from None


def _missing(ids: Any, folder: Path, other: _Side) -> Missing:
    """``ids`` are the digests of rows in ``folder`` that the other side has not kept, in ascending order."""
    import numpy

    def place(row: str) -> int | None:
        wanted = numpy.uint64(xxhash.xxh3_64_intdigest(row.encode()))
        found = int(numpy.searchsorted(ids, wanted))
        return found if found < len(ids) and ids[found] == wanted else None

    if not len(ids):
        return Missing(0, [], {})
    shown = list(islice((row for _, row in _rows(folder) if place(row) is not None), SHOWN))
    became: dict[str, int] = {}
    told = numpy.zeros(len(ids), dtype=bool)
    for stage, result in other.folders.items():
        if STAGES[stage].gives is Example or stage in ("ingest", "sample"):
            for drop in outputs.read_drops(result):
                found = next((at for name in _names(drop, stage) if (at := place(name)) is not None), None)
                if found is not None and not told[found]:
                    told[found] = True
                    because = f"{stage}: {drop.reason}"
                    became[because] = became.get(because, 0) + 1
    if rest := len(ids) - int(told.sum()):
        became["not among its rows"] = rest
    return Missing(len(ids), shown, became)


def _names(drop: Drop, stage: str) -> tuple[str, ...]:
    """The ids of examples that a drop can be about: in sample and parse, those of responses (``<row>#<number>``) are dropped."""
    return (drop.id, drop.id.rpartition("#")[0]) if stage in ("sample", "parse") else (drop.id,)


def _eval_sets(first: Path | None, second: Path | None, resamples: int) -> list[EvalSetCompared]:
    if first is None or second is None:
        return []
    one, other = (_metrics(folder) for folder in (first, second))
    said, also = (_answers(folder) for folder in (first, second))
    found = []
    for name in one:
        if name not in other:
            continue
        models = list(dict.fromkeys([*one[name], *other[name]]))
        figures = []
        for model in models:
            for figure in FIGURES:
                pair = _figure(one[name].get(model), figure), _figure(other[name].get(model), figure)
                if pair != (None, None):
                    figures.append(Figure(model, figure, *pair))
        paired: dict[str, Comparison] = {}
        rows: dict[str, int] = {}
        for model in models:
            before, now = said.get((name, model), {}), also.get((name, model), {})
            if both := [row for row in before if row in now]:
                rows[model] = len(both)
                right = [now[row] for row in both], [before[row] for row in both]
                paired[model] = intervals.compare(f"{model} now", "before", *right, resamples=resamples)
        note = (
            None if rows else "no eval row is in both with the same input and true label: the figures are of other rows"
        )
        found.append(EvalSetCompared(name, figures, rows, paired, note))
    return found


def _metrics(folder: Path) -> dict[str, dict[str, Any]]:
    """Eval set -> model -> figures, as metrics.json holds them, whatever else it holds."""
    path = folder / METRICS
    try:
        found = strict_json(path.read_bytes())["eval_sets"]
        return {name: dict(measured["models"]) for name, measured in found.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise RunError(f"{path}: cannot be read as the figures of evaluate; run `stepdistill audit`") from None


def _figure(model: Any, name: str) -> float | None:
    """A figure by its name (``calibration.ece``); an estimate's value stands for it. None where it was not measured."""
    for step in name.split("."):
        model = model.get(step) if isinstance(model, dict) else None
    if isinstance(model, dict):
        model = model.get("value")
    return float(model) if isinstance(model, int | float) and not isinstance(model, bool) else None


def _answers(folder: Path) -> dict[tuple[str, str], dict[str, bool]]:
    """(eval set, model) -> digest of an eval row's id, input and true label -> whether the model was right."""
    found: dict[tuple[str, str], dict[str, bool]] = {}
    for row in outputs.read(folder, Prediction):
        found.setdefault((row.eval_set, row.model), {})[digest([row.row, row.input, row.gold])] = row.correct
    return found
