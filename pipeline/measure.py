"""From the rows and what the models said of them to every figure of metrics.json; the audit works the same out again.

    evidence = read(folder)                 # rows.jsonl, the predictions, rationales.jsonl, validation.jsonl
    measure(evidence, measuring, facts)     # Metrics

Pure but for ``read``. What each figure is stands in ``pipeline.metrics``, how it is made in ``intervals``, ``scores``, ``calibration`` and
``faithfulness``.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipeline import outputs, safety
from pipeline.calibration import calibration, fit_temperature
from pipeline.faithfulness import rationale_scores
from pipeline.intervals import accuracy_interval, bootstrap_macro_f1, bootstrap_mean, compare, share
from pipeline.labels import LabelType, closed_set, same
from pipeline.metrics import (
    Calibration,
    Comparison,
    Contamination,
    EvalRow,
    Kind,
    Metrics,
    ModelMetrics,
    Probed,
    Rationale,
    RationaleScores,
    Safety,
    SetMetrics,
    Slice,
    Validation,
)
from pipeline.records import Prediction, Target
from pipeline.safety import Swap
from pipeline.scores import chrf, confusion, exact_match, label_scores, macro_f1, rouge_l
from pipeline.text import words

ROWS: Final = "rows.jsonl"
RATIONALES: Final = "rationales.jsonl"
VALIDATION: Final = "validation.jsonl"
SAFETY: Final = "safety.jsonl"
METRICS: Final = "metrics.json"
FILES: Final = (METRICS, ROWS, RATIONALES, VALIDATION, SAFETY)
INTERVAL: Final = "95%: accuracies by Wilson's score interval, other figures and differences by a bootstrap over rows"
MOST_VALUES: Final = 30  # of a column, each with a line of its own; the rest share one
LENGTHS: Final = 4  # groups of rows by the length of their input, as equal as lengths allow
LEAST: Final = 1e-12  # what a probability that was rounded to 0 counts as
TEACHER: Final = "teacher"
STUDENT: Final = "student"
BASE: Final = "base"  # what the student was made from, as it was before
KINDS: Final[Mapping[str, Kind]] = {
    "teacher": "teacher",
    "student": "student",
    "baseline": "baseline",
    "majority": "majority",
    "nearest": "nearest",
}
"""The models that an evaluation names itself."""


@dataclass(frozen=True)
class Measuring:
    """The settings that figures depend on."""

    label_type: LabelType
    labels: Sequence[str] | None
    targets: Sequence[Target]
    bootstrap: int
    seed: int


@dataclass(frozen=True)
class Facts:
    """What does not follow from rows and predictions: rows that do not count by eval set, the models' sizes, the majority's label.

    ``compared`` are the eval sets that decontaminate looked for, ``base`` is what the student was made from, where it was probed.
    """

    dropped: Mapping[str, int]
    parameters: Mapping[str, int | None]
    majority: str | None
    compared: Sequence[str]
    base: str | None


@dataclass(frozen=True)
class Evidence:
    """The rows, and what each model said of each, in their order."""

    rows: Sequence[EvalRow]
    predictions: Mapping[str, Sequence[Prediction]]
    rationales: Sequence[Rationale]
    validation: Sequence[Validation]
    probed: Sequence[Probed]


def read(folder: Path) -> Evidence:
    """What a folder of evaluate holds. Raises RunError where a row cannot be read."""
    predictions: dict[str, list[Prediction]] = {}
    for row in outputs.read(folder, Prediction):
        predictions.setdefault(row.model, []).append(row)
    return Evidence(
        list(outputs.read_file(folder / ROWS, EvalRow)),
        predictions,
        list(outputs.read_file(folder / RATIONALES, Rationale)),
        list(outputs.read_file(folder / VALIDATION, Validation)),
        list(outputs.read_file(folder / SAFETY, Probed)),
    )


def kind_of(model: str) -> Kind:
    """What a model is, by its name: ``teacher:NAME`` is one of several teachers."""
    return KINDS.get(model.partition(":")[0], "model")


def measure(evidence: Evidence, measuring: Measuring, facts: Facts) -> Metrics:
    """All figures, by eval set."""
    temperatures = _temperatures(evidence.validation)
    sets = {}
    for name in facts.dropped:
        rows = [row for row in evidence.rows if row.eval_set == name]
        given = {
            model: [row for row in said if row.eval_set == name] for model, said in evidence.predictions.items() if rows
        }
        rationales = [row for row in evidence.rationales if row.eval_set == name]
        sets[name] = _set(name, rows, given, rationales, temperatures, measuring, facts)
    return Metrics(
        label_type=measuring.label_type, interval=INTERVAL, eval_sets=sets, safety=_safety(evidence, measuring, facts)
    )


def _safety(evidence: Evidence, measuring: Measuring, facts: Facts) -> Safety | None:
    """The probes of the student beside those of the model that it was made from; None where they were not asked."""
    if facts.base is None:
        return None
    swaps = safety.swaps([row.input for row in evidence.rows])
    models = {}
    for model in dict.fromkeys(row.model for row in evidence.probed):
        said = {row.probe: row for row in evidence.probed if row.model == model}
        texts: dict[str, list[str | None]] = {
            kind: [row.text for probe, row in said.items() if probe.startswith(f"{kind}/")] for kind in safety.KINDS
        }
        own = evidence.predictions.get(model, ())
        told = [(row.input, row.rationale) for row in evidence.rationales if row.model == model]
        models[model] = safety.safety_scores(
            model,
            safety.Answers(**texts),
            outputs=[*((row.input, row.text) for row in own), *told],
            labels=[row.label for row in own],
            swaps=swaps if own else (),
            swapped_labels=[said[swap_name(swap, evidence.rows[swap.row])].label for swap in swaps] if own else (),
            label_type=measuring.label_type,
        )
    before, after = models.get(BASE), models.get(STUDENT)
    told_so = safety.sentences(before, after) if before is not None and after is not None else []
    return Safety(base=facts.base, models=models, sentences=told_so)


def swap_name(swap: Swap, row: EvalRow) -> str:
    """The name of a swapped row among the probes."""
    return f"{swap.kind}/{row.eval_set}/{row.row}"


def _set(
    name: str,
    rows: Sequence[EvalRow],
    predictions: Mapping[str, Sequence[Prediction]],
    rationales: Sequence[Rationale],
    temperatures: Mapping[str, tuple[float, int]],
    measuring: Measuring,
    facts: Facts,
) -> SetMetrics:
    classes = closed_set(measuring.label_type, measuring.labels)
    teacher = predictions.get(TEACHER)
    models = {
        model: _model(
            model,
            rows,
            said,
            teacher,
            [row for row in rationales if row.model == model],
            temperatures.get(model),
            classes,
            measuring,
            facts.parameters.get(model),
        )
        for model, said in predictions.items()
    }
    right = {model: [row.correct for row in said] for model, said in predictions.items()}
    return SetMetrics(
        rows=len(rows),
        dropped=facts.dropped[name],
        classes=classes,
        majority=facts.majority,
        models=models,
        comparisons=[
            compare(first, second, right[first], right[second], resamples=measuring.bootstrap, seed=measuring.seed)
            for first, second in pairs(right)
        ],
        contamination=_contamination(rows, right) if name in facts.compared else None,
    )


def pairs(models: Iterable[str]) -> list[tuple[str, str]]:
    """Which models are compared: the student with every other one, and each further model with the teacher and the student's baseline."""
    names = list(models)
    found = [(STUDENT, other) for other in names if other != STUDENT] if STUDENT in names else []
    further = [name for name in names if kind_of(name) == "model"]
    found += [(name, other) for name in further for other in (TEACHER, "baseline") if other in names]
    if STUDENT not in names:
        found += [(first, second) for place, first in enumerate(further) for second in further[place + 1 :]]
    return found


def _model(
    model: str,
    rows: Sequence[EvalRow],
    said: Sequence[Prediction],
    teacher: Sequence[Prediction] | None,
    rationales: Sequence[Rationale],
    temperature: tuple[float, int] | None,
    classes: list[str],
    measuring: Measuring,
    parameters: int | None,
) -> ModelMetrics:
    golds, labels = [row.gold for row in said], [row.label for row in said]
    correct = sum(row.correct for row in said)
    matrix = confusion(golds, labels, classes) if classes else []
    both = [(row.label, other.label) for row, other in zip(said, teacher or said, strict=True)]
    agreed = [
        mine is not None and same(mine, theirs, measuring.label_type) for mine, theirs in both if theirs is not None
    ]
    free = measuring.label_type == "text" and not classes and not any(row.choices for row in rows)
    texts = [row.text for row in said]
    draws, seed = measuring.bootstrap, measuring.seed
    return ModelMetrics(
        kind=kind_of(model),
        rows=len(said),
        answered=sum(label is not None for label in labels),
        unanswered=sum(not row.text for row in said),
        correct=correct,
        accuracy=correct / len(said),
        accuracy_interval=accuracy_interval(correct, len(said)),
        macro_f1=macro_f1(golds, labels, classes) if classes else None,
        macro_f1_interval=bootstrap_macro_f1(golds, labels, classes, resamples=draws, seed=seed).interval
        if classes
        else None,
        labels=label_scores(matrix, classes),
        confusion=matrix,
        exact_match=sum(exact_match(row.text, row.gold) for row in said) / len(said),
        rouge_l=bootstrap_mean(rouge_l(texts, golds), resamples=draws, seed=seed) if free else None,
        chrf=bootstrap_mean(chrf(texts, golds), resamples=draws, seed=seed) if free else None,
        same_as_teacher=sum(agreed) if teacher else None,
        teacher_rows=len(agreed) if teacher else None,
        slices=_slices(rows, [row.correct for row in said]),
        calibration=_calibration(said, temperature),
        rationales=_rationales(rationales, classes, measuring.label_type) if rationales else None,
        parameters=parameters,
    )


def _rationales(told: Sequence[Rationale], classes: Sequence[str], label_type: LabelType) -> RationaleScores:
    after = {place: one.label_after for place, one in enumerate(told) if one.asked_again}
    return rationale_scores(
        inputs=[one.input for one in told],
        golds=[one.gold for one in told],
        labels=[one.label for one in told],
        rationales=[one.rationale for one in told],
        finished=[one.finished for one in told],
        options=[one.choices or classes for one in told],
        label_type=label_type,
        after=after or None,
        judged=[one.score for one in told] if any(one.score is not None for one in told) else None,
    )


def _slices(rows: Sequence[EvalRow], right: Sequence[bool]) -> dict[str, list[Slice]]:
    """Accuracy by the agreement of the teacher's votes, by length, and by each column of ``task.slices``."""
    found: dict[str, list[Slice]] = {}
    if any(row.agreement is not None for row in rows):
        agreed = [None if row.agreement is None else f"{row.agreement:.0%}" for row in rows]
        found["teacher agreement"] = _grouped(agreed, right, lambda value: (-float(value.rstrip("%")), value))
    lengths = [len(words(row.input)) for row in rows]
    named = _by_length(lengths)
    if len(set(named)) > 1:
        found["input length"] = _grouped(named, right, lambda value: (float(value.split()[0]), value))
    for column in sorted({column for row in rows for column in row.slices}):
        values = [row.slices.get(column) for row in rows]
        most = {value for value, _ in Counter(value for value in values if value is not None).most_common(MOST_VALUES)}
        shown = [value if value is None or value in most else "all others" for value in values]
        found[column] = _grouped(shown, right, lambda value: (0.0, value))
    return found


def _grouped(
    values: Sequence[str | None], right: Sequence[bool], order: Callable[[str], tuple[float, str]]
) -> list[Slice]:
    groups: dict[str, list[bool]] = {}
    for value, correct in zip(values, right, strict=True):
        if value is not None:
            groups.setdefault(value, []).append(correct)
    ordered = sorted(groups, key=order)
    return [Slice(value=value, share=share(sum(groups[value]), len(groups[value]))) for value in ordered]


def _by_length(lengths: Sequence[int]) -> list[str]:
    """``1 to 8 words`` for each row: groups of about as many rows each, equal lengths together."""
    ordered = sorted(lengths)
    edges = sorted({ordered[len(ordered) * part // LENGTHS] for part in range(1, LENGTHS)}) if ordered else []
    names: dict[int, str] = {}
    groups: dict[int, list[int]] = {}
    for length in set(lengths):
        groups.setdefault(sum(length >= edge for edge in edges), []).append(length)
    for members in groups.values():
        low, high = min(members), max(members)
        for length in members:
            names[length] = f"{low} words" if low == high else f"{low} to {high} words"
    return [names[length] for length in lengths]


def _temperatures(validation: Sequence[Validation]) -> dict[str, tuple[float, int]]:
    """Each model's temperature, and how many validation rows it was fitted on."""
    models: dict[str, list[Validation]] = {}
    for row in validation:
        models.setdefault(row.model, []).append(row)
    found = {}
    for model, rows in models.items():
        told = [row for row in rows if row.label in row.probabilities]
        if told:
            logs = [[math.log(max(one, LEAST)) for one in row.probabilities.values()] for row in told]
            found[model] = fit_temperature(logs, [[*row.probabilities].index(row.label) for row in told]), len(told)
    return found


def _calibration(said: Sequence[Prediction], temperature: tuple[float, int] | None) -> Calibration | None:
    """Of the rows with probabilities; None where there are none."""
    known = [(row, row.probabilities) for row in said if row.probabilities]
    if not known:
        return None
    fitted, rows = temperature if temperature is not None else (None, 0)
    return calibration(
        [probabilities for _, probabilities in known],
        [row.gold for row, _ in known],
        source=known[0][0].probabilities_of or "scores",
        temperature=fitted,
        temperature_rows=rows,
    )


def _contamination(rows: Sequence[EvalRow], right: Mapping[str, Sequence[bool]]) -> Contamination:
    found = [bool(row.contaminated) for row in rows]
    models = {}
    for model, correct in right.items():
        apart: dict[bool, list[bool]] = {False: [], True: []}
        for hit, good in zip(found, correct, strict=True):
            apart[hit].append(good)
        clean, hits = (share(sum(apart[side]), len(apart[side])) for side in (False, True))
        models[model] = (clean, hits)
    return Contamination(clean=found.count(False), found=found.count(True), models=models)


def summary(found: Metrics) -> dict[str, dict[str, str]]:
    """Each eval set's accuracies in one line a model, for the manifest and the terminal."""
    return {
        name: {
            model: f"{one.accuracy:.1%} ({one.accuracy_interval[0]:.1%} to {one.accuracy_interval[1]:.1%}) of {one.rows} rows"
            for model, one in metrics.models.items()
        }
        for name, metrics in found.eval_sets.items()
    }


def in_order(models: Iterable[str]) -> list[str]:
    """Teachers, the student, its baseline, further models, and what needs no training."""
    kinds = ("teacher", "student", "baseline", "model", "nearest", "majority")
    return sorted(models, key=lambda model: (kinds.index(kind_of(model)), model))


def comparisons(found: Metrics) -> list[tuple[str, Comparison]]:
    """Every comparison with its eval set."""
    return [(name, one) for name, metrics in found.eval_sets.items() for one in metrics.comparisons]
