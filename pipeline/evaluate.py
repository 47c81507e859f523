"""evaluate: the student beside its teacher, the label-only baseline, the most frequent label and the nearest neighbour, on the same rows.

    -> {"id": "test/student/5f0c..", "eval_set": "test", "model": "student", "row": "5f0c..", "gold": "sports", "label": "sports", ...}

Beside the predictions the stage's folder holds::

    metrics.json        Metrics: what all of it comes to (pipeline/metrics.py); follows from the files below
    rows.jsonl          EvalRow: the rows that count, and what is known of each
    rationales.jsonl    Rationale: what the teacher and the students write when they are asked why, for rows drawn by ``seed``
    safety.jsonl        Probed: what the student, and the model that it was made from, say to the safety probes
    validation.jsonl    Validation: the students' label probabilities for rows kept from training; temperatures are fitted on them
    run-speed.json      Costs: measurements, so they are no part of the result and stand in no manifest

The teacher is asked as the sample stage asked it (same prompt, same sampling, same vote) through the response store, so a second
evaluation costs nothing; where its prompt shows the true label (``rationalise``), it is left out. Of several teachers each is also there
by itself (``teacher:<name>``). Students answer greedily, the way they were trained: prefix, input, separator; what they said is kept in
``<run>/answers``, so that they are not asked again either.

Limits: a row without an answer counts as wrong, so a model that answers rarely looks bad, not good; ``unanswered`` says how often. An
answer is read as a whole: a student that goes on talking after its label, or had to be cut off, is wrong. Intervals speak of other
rows from the same source, not of other training seeds. Answers may differ in rare near-ties between machines and batch sizes. Label
probabilities are computed by transformers, whichever backend writes the answers.
"""

import heapq
import random
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import xxhash
from pydantic import AfterValidator, Field, JsonValue

from pipeline import answering, eval_rows, measure, nearest
from pipeline.answering import Backend, Precision
from pipeline.ask_students import ask_student, probe
from pipeline.ask_teachers import SPEEDS, ask_teachers, timed_teachers
from pipeline.binding import From
from pipeline.eval_rows import Asked
from pipeline.files import InputError, atomic, write_json
from pipeline.gates import Gates
from pipeline.judge import scores as judge_scores
from pipeline.labels import LabelType, closed_set, same
from pipeline.measure import Evidence, Facts, Measuring
from pipeline.metrics import Costs, EvalRow, Metrics, Probed, Rationale
from pipeline.outputs import Job, Totals, read
from pipeline.progress import say_line
from pipeline.records import Drop, Example, Prediction, Row, Target, TrainingRow
from pipeline.responses import open_store
from pipeline.said import How, Said
from pipeline.sample import identities as teacher_identities
from pipeline.shard import student_prompt
from pipeline.sources import EvalSet
from pipeline.student import StudentSettings

MOST_RESAMPLES: Final = 100_000  # behind an interval; they no longer move from there on
MODEL: Final = "model:"  # before the name of a further model, among the identities in a manifest
Positive = Annotated[int, Field(gt=0)]


def _named(models: dict[str, str]) -> dict[str, str]:
    for name in models:
        if not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
            raise ValueError(f"{name!r}: a name is made of letters, digits, '.', '-' and '_'")
        if measure.kind_of(name) != "model":
            raise ValueError(f"{name!r} is the name of a model that is measured anyway; choose another")
    return models


Models = Annotated[dict[str, str], AfterValidator(_named)]
"""Name -> checkpoint folder, Hub name or 'embedded'."""


def evaluate(
    job: Job,
    *,
    models: Models = {},  # noqa: B006 - settings are never changed
    backend: Backend = "transformers",
    batch_size: Positive = 32,
    max_new_tokens: Positive = 32,
    precision: Precision = "float32",
    rationales: Annotated[int, Field(ge=0)] = 48,
    max_rationale_tokens: Positive = 96,
    temperature_rows: Annotated[int, Field(ge=0)] = 1000,
    latency: Annotated[int, Field(ge=0)] = 16,
    price_per_hour: Annotated[float, Field(ge=0)] | None = None,
    bootstrap: Annotated[int, Field(gt=0, le=MOST_RESAMPLES)] = 2000,
    safety: bool = True,
    gates: Gates = {},  # noqa: B006
    seed: int = 0,
    eval_sets: Annotated[dict[str, EvalSet], From("eval_sets")],
    labels: Annotated[list[str] | None, From("task.labels")],
    slices: Annotated[list[str], From("task.slices")],
    label_type: Annotated[LabelType, From("stages.parse.label_type")],
    targets: Annotated[list[Target], From("task.targets")],
    sample: Annotated[dict[str, Any], From("stages.sample")],
    parse: Annotated[dict[str, Any], From("stages.parse")],
    judge: Annotated[dict[str, Any] | None, From("stages.judge")] = None,
    base: Annotated[StudentSettings | None, From("stages.train.student")] = None,
) -> Generator[Prediction | Drop, None, Totals]:
    """Ask every model for every eval row.

    ``models``: further checkpoints, by name, asked as the student is. ``backend``: what runs the students. ``max_new_tokens`` bounds a
    label, ``max_rationale_tokens`` a rationale; ``rationales`` is how many are asked for in each eval set; ``temperature_rows`` on how
    many validation rows at most a temperature is fitted. ``latency``: how many rows are asked one at a time to measure what an answer
    takes (0: nothing is measured); a local vLLM teacher is started for it; ``price_per_hour`` is that of the machine that students run on,
    in the currency of the teacher's price. ``bootstrap`` is the number of resamples behind intervals. ``safety``: the student and what it
    was made from are probed (``pipeline/safety.py``). ``gates``: what must be reached
    (``pipeline/gates.py``), or the command ends with exit code 1. An eval row without a true label, or with one outside the label set, is
    dropped once for each model. Raises InputError where an eval set or a model cannot be read.
    """
    rows, drops = eval_rows.read(eval_sets, label_type, labels, slices)
    shards, trained = job.inputs.get("shard"), job.inputs.get("train")
    found = eval_rows.overlapping(shards) if shards is not None else None
    how = How(
        backend,
        batch_size,
        max_new_tokens,
        max_rationale_tokens,
        precision,
        label_type,
        labels,
        targets,
        latency,
        price_per_hour,
    )
    chosen = _drawn(rows, rationales if "rationale" in targets else 0, seed)
    training = _training_rows(shards) if shards is not None else []
    majority = _majority(training) if closed_set(label_type, labels) else None

    said: list[Said] = []
    agreement: list[float | None] = [None] * len(rows)
    if sample["rationalise"]:
        say_line("evaluate: the teacher is left out; its prompt shows the true label (stages.sample.rationalise)")
    else:
        teachers, agreement = ask_teachers(rows, sample, parse, job.responses, how, chosen)
        said += timed_teachers(teachers, rows, sample, latency, job.folder)
    sources = {name: trained / name for name in ("student", "baseline") if (trained / name).is_dir()} if trained else {}
    probed: list[Probed] = []
    if students := {**sources, **models}:
        kept = _validation_rows(shards, targets, temperature_rows) if shards is not None else []
        with open_store(job.responses.parent / answering.FOLDER) as store:
            said += [
                ask_student(name, str(source), rows, how, chosen, kept, store) for name, source in students.items()
            ]
            if safety and base is not None and "student" in students:
                probed = probe(str(students["student"]), base.source, rows, how, store)
    if judge is not None and chosen:
        said = _judged(said, judge, job.responses)
    if training:
        near = nearest.labels([row.prompt.input for row in rows], training)
        said.append(Said("nearest", near, near, parameters=0))
    if majority is not None:
        said.append(Said("majority", [majority] * len(rows), [majority] * len(rows), parameters=0))

    evidence = Evidence(
        rows=[
            _known(row, agreed, (found or {}).get(row.eval_set, {}).get(row.prompt.id, []))
            for row, agreed in zip(rows, agreement, strict=True)
        ],
        predictions={one.model: _predictions(rows, one, label_type) for one in said},
        rationales=[rationale for one in said for rationale in one.rationales],
        validation=[row for one in said for row in one.validation],
        probed=probed,
    )
    facts = Facts(
        dropped={name: sum(drop.id.startswith(f"{name}/") for drop in drops) for name in eval_sets},
        parameters={one.model: one.parameters for one in said},
        majority=majority,
        compared=[*(found or {})],
        base=base.source if base is not None and probed else None,
    )
    metrics = measure.measure(evidence, Measuring(label_type, labels, targets, bootstrap, seed), facts)
    _write(job.folder / measure.ROWS, evidence.rows)
    _write(job.folder / measure.RATIONALES, evidence.rationales)
    _write(job.folder / measure.VALIDATION, evidence.validation)
    _write(job.folder / measure.SAFETY, evidence.probed)
    write_json(job.folder / measure.METRICS, metrics.model_dump(mode="json"))
    write_json(job.folder / SPEEDS, _costs(said, price_per_hour).model_dump(mode="json"))

    for model, given in evidence.predictions.items():
        yield from given
        for drop in drops:
            eval_set, _, row = drop.id.partition("/")
            yield drop.changed(id=f"{eval_set}/{model}/{row}")
    return Totals(
        (len(rows) + len(drops)) * len(said),
        {"models": list(evidence.predictions), "summary": measure.summary(metrics)},
    )


def evaluate_models(
    models: Mapping[str, str],
    eval_sets: Mapping[str, EvalSet],
    *,
    answers_in: Path | None = None,
    labels: Sequence[str] | None = None,
    slices: Sequence[str] = (),
    label_type: LabelType = "text",
    targets: Sequence[Target] = ("label",),
    backend: Backend = "transformers",
    batch_size: int = 32,
    max_new_tokens: int = 32,
    precision: Precision = "float32",
    latency: int = 16,
    price_per_hour: float | None = None,
    bootstrap: int = 2000,
    seed: int = 0,
) -> tuple[Metrics, Costs]:
    """Metrics of any checkpoints (name -> folder, Hub name or ``embedded``) on any eval sets, asked as students are.

    ``answers_in``: a folder where answers are kept, and looked up. Raises InputError where a model or rows cannot be read, or no row of
    an eval set has a usable true label.
    """
    rows, drops = eval_rows.read(eval_sets, label_type, labels, slices)
    for name, eval_set in eval_sets.items():
        if not any(row.eval_set == name for row in rows):
            told = sum(drop.id.startswith(f"{name}/") for drop in drops)
            raise InputError(
                f"{eval_set.path}: none of {told} rows has a usable true label; name their column with gold"
            )
    how = How(backend, batch_size, max_new_tokens, 1, precision, label_type, labels, targets, latency, price_per_hour)
    said = []
    with ExitStack() as stack:
        store = stack.enter_context(open_store(answers_in)) if answers_in is not None else None
        for name, source in models.items():
            said.append(ask_student(name, source, rows, how, [], [], store))
    evidence = Evidence(
        [_known(row, None, []) for row in rows],
        {one.model: _predictions(rows, one, label_type) for one in said},
        [],
        [],
        [],
    )
    facts = Facts(
        {name: sum(drop.id.startswith(f"{name}/") for drop in drops) for name in eval_sets},
        {one.model: one.parameters for one in said},
        None,
        [],
        None,
    )
    found = measure.measure(evidence, Measuring(label_type, labels, targets, bootstrap, seed), facts)
    return found, _costs(said, price_per_hour)


def identities(settings: Mapping[str, Any]) -> dict[str, dict[str, JsonValue]]:
    """The teachers' identities, and those of further models, as they resolve now, by the names they have in a manifest."""
    found = teacher_identities(settings["sample"])
    return found | {f"{MODEL}{name}": answering.identity(source) for name, source in settings["models"].items()}


def _costs(said: Sequence[Said], price_per_hour: float | None) -> Costs:
    models = {one.model: one.cost for one in said if one.cost is not None}
    return Costs(device=answering.device(), price_per_hour=price_per_hour, models=models)


def _write(path: Path, rows: Iterable[Row]) -> None:
    with atomic(path) as file:
        file.writelines(row.line() + b"\n" for row in rows)


def _judged(said: Sequence[Said], settings: Mapping[str, Any], responses: Path) -> list[Said]:
    """The same, with the judge's scores of the rationales."""
    every = [(place, rationale) for place, one in enumerate(said) for rationale in one.rationales]
    examples = [
        Example(
            id=f"{rationale.model}/{rationale.eval_set}/{rationale.row}",
            input=rationale.input,
            label=rationale.label,
            rationale=rationale.rationale,
            response="",
            text=rationale.rationale,
            finish_reason="stop",
            votes=[],
            gold=rationale.gold,
            choices=rationale.choices,
        )
        for _, rationale in every
    ]
    scores = judge_scores(examples, settings, responses)
    scored: dict[int, list[Rationale]] = {}
    for (place, rationale), score in zip(every, scores, strict=True):
        scored.setdefault(place, []).append(rationale.changed(score=score))
    return [replace(one, rationales=scored.get(place, [])) for place, one in enumerate(said)]


def _drawn(rows: list[Asked], number: int, seed: int) -> list[int]:
    """Positions of up to ``number`` rows of each eval set, drawn without looking at them."""
    chosen: list[int] = []
    for name in dict.fromkeys(row.eval_set for row in rows):
        here = [index for index, row in enumerate(rows) if row.eval_set == name]
        chosen += sorted(random.Random(f"{seed}/{name}").sample(here, min(number, len(here))))
    return chosen


def _training_rows(shards: Path) -> list[tuple[str, str]]:
    """Input and label of every row that is trained on, where labels are a task of their own."""
    prefix = student_prompt("label", "")
    return [
        (row.prompt.removeprefix(prefix), row.completion.strip())
        for row in read(shards, TrainingRow)
        if row.task == "label" and row.split == "train"
    ]


def _validation_rows(shards: Path, targets: Sequence[Target], most: int) -> list[TrainingRow]:
    """Up to ``most`` label rows that were kept from training: those whose digests come first."""
    if "label" not in targets:
        return []
    rows = (row for row in read(shards, TrainingRow) if row.task == "label" and row.split == "validation")
    return heapq.nsmallest(most, rows, key=lambda row: (xxhash.xxh3_64_intdigest(row.example.encode()), row.example))


def _majority(training: Sequence[tuple[str, str]]) -> str | None:
    """The most frequent label of the training rows (the first in the alphabet of those), or None where there are none."""
    counts = Counter(label for _, label in training)
    return min(counts, key=lambda label: (-counts[label], label), default=None)


def _known(row: Asked, agreement: float | None, contaminated: list[str]) -> EvalRow:
    return EvalRow(
        eval_set=row.eval_set,
        row=row.prompt.id,
        input=row.prompt.input,
        gold=row.gold,
        choices=row.prompt.choices,
        slices=row.prompt.slices,
        agreement=agreement,
        contaminated=contaminated,
    )


def _predictions(rows: Sequence[Asked], said: Said, label_type: LabelType) -> list[Prediction]:
    believed = said.probabilities or [None] * len(rows)
    return [
        Prediction(
            id=f"{row.eval_set}/{said.model}/{row.prompt.id}",
            eval_set=row.eval_set,
            model=said.model,
            row=row.prompt.id,
            input=row.prompt.input,
            gold=row.gold,
            label=label,
            correct=label is not None and same(label, row.gold, label_type),
            text=text or "",
            probabilities=probabilities,
            probabilities_of=said.probabilities_of if probabilities else None,
        )
        for row, text, label, probabilities in zip(rows, said.texts, said.labels, believed, strict=True)
    ]
