"""evaluate: the student beside its teacher, the label-only baseline and the most frequent label, on the same rows of each eval set.

    -> {"id": "test/student/5f0c..", "eval_set": "test", "model": "student", "row": "5f0c..", "gold": "sports", "label": "sports", ...}

Beside the predictions the stage's folder holds::

    metrics.json        Metrics: accuracy with its interval, macro-F1, each label's precision and recall, confusion matrix, comparisons
    rationales.jsonl    Rationale: what the student writes when it is asked why, for a few rows drawn by ``seed``
    run-speed.json      Speeds: a measurement, so it is no part of the result and stands in no manifest

The teacher is asked as the sample stage asked it (same prompt, same sampling, same vote) through the response store, so a second
evaluation costs nothing; where its prompt shows the true label (``rationalise``), it is left out. Student and baseline answer
greedily, the way they were trained: prefix, input, separator.

Limits: a row without an answer counts as wrong, so a model that answers rarely looks bad, not good; ``unanswered`` says how often. An
answer is read as a whole: a student that goes on talking after its label, or had to be cut off, is wrong. Intervals speak of other
rows from the same source, not of other training seeds. Answers may differ in rare near-ties between machines and batch sizes.
"""

import math
import random
import time
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue

from pipeline import embedded
from pipeline.binding import From
from pipeline.files import InputError, atomic, write_json
from pipeline.formats import Format
from pipeline.generate import Answer, greedy
from pipeline.ingest import prompts as read_prompts
from pipeline.labels import LabelType, normalise, same, value
from pipeline.outputs import Job, Totals, read
from pipeline.parse import parse as parse_responses
from pipeline.progress import Advance, bar, say_line
from pipeline.records import Drop, Example, Prediction, Prompt, Record, Response, Row, Target, TrainingRow
from pipeline.sample import answers
from pipeline.shard import said_label, student_prompt
from pipeline.sources import EvalSet
from pipeline.spending import Meter
from pipeline.student import EMBEDDED, StudentSettings, quiet
from pipeline.student import load as load_student
from pipeline.teachers import TeacherSettings, Vllm

METRICS = "metrics.json"
RATIONALES = "rationales.jsonl"
MOST_RESAMPLES = 100_000  # behind a comparison; intervals no longer move from there on
SPEEDS = "run-speed.json"
INTERVAL = "95% Wilson score interval"
Z95 = 1.959963984540054  # the normal distribution's 97.5th percentile
Interval = tuple[float, float]
Precision = Literal["float32", "bfloat16"]
Positive = Annotated[int, Field(gt=0)]


class LabelScores(Record):
    """How one label fared. Precision is None where it was never answered, recall where it is no row's true label."""

    precision: float | None
    recall: float | None
    gold: int = Field(description="rows with this true label")
    answered: int = Field(description="rows that the model gave this label")


class ModelMetrics(Record):
    """One model on one eval set. Shares run from 0 to 1 and count every row with a true label, answered or not."""

    rows: int
    answered: int = Field(description="rows whose answer could be read as a label")
    unanswered: int = Field(description="rows for which the model gave no text at all; counted as wrong")
    correct: int
    accuracy: float
    accuracy_interval: Interval
    macro_f1: float | None = Field(
        description="over the labels that are some row's truth or answer; None without a closed set"
    )
    labels: dict[str, LabelScores]
    confusion: list[list[int]] = Field(
        description="a row for each true label, a column for each answered one, and a last one: anything else"
    )
    same_as_teacher: int | None = Field(description="rows answered as the teacher answered them, right or wrong")
    teacher_rows: int | None = Field(description="rows that the teacher answered")
    parameters: int | None = Field(description="None for a teacher whose weights do not lie in a local folder")


class Comparison(Record):
    """Two models on the same rows: the first's accuracy minus the second's, with a paired bootstrap interval."""

    first: str
    second: str
    difference: float
    interval: Interval
    only_first: int = Field(description="rows that the first alone has right")
    only_second: int


class SetMetrics(Record):
    """All models on one eval set."""

    rows: int = Field(description="rows that count; those without a usable true label are among the drops")
    dropped: int
    classes: list[str] = Field(description="the closed label set, in order; empty for open answers")
    majority: str | None = Field(description="the label that the model 'majority' always gives")
    models: dict[str, ModelMetrics]
    comparisons: list[Comparison]


class Metrics(Record):
    """What metrics.json holds."""

    label_type: str
    interval: str
    eval_sets: dict[str, SetMetrics]


class Rationale(Row, frozen=True):
    """A line of rationales.jsonl: the student asked why."""

    eval_set: str
    row: str
    input: str
    gold: str
    label: str | None
    rationale: str
    finished: bool = Field(description="False where the rationale was cut off at its longest")


class Speed(Record):
    """How fast a model answered, its start not counted; for the teacher, the requests that the store could not answer."""

    rows: int
    seconds: float
    examples_per_second: float


class Speeds(Record):
    """What run-speed.json holds. The teacher is missing where all of its answers came from the response store."""

    device: str
    models: dict[str, Speed]


@dataclass(frozen=True)
class Checkpoint:
    """A language model with its tokenizer and the way it is asked, ready to answer."""

    model: Any
    tokenizer: Any
    format: Format = field(default_factory=Format)

    @property
    def parameters(self) -> int:
        """How many weights it has, shared ones counted once."""
        return sum(weights.numel() for weights in self.model.parameters())


@dataclass(frozen=True)
class _Row:
    """An eval row that counts, with its normalised true label."""

    eval_set: str
    prompt: Prompt
    gold: str

    @property
    def place(self) -> str:
        return f"{self.eval_set}/{self.prompt.id}"


@dataclass(frozen=True)
class _Answered:
    """What a model said to each row, in the rows' order: text and label."""

    model: str
    texts: list[str | None]
    labels: list[str | None]
    parameters: int | None = None
    speed: Speed | None = None


def evaluate(
    job: Job,
    *,
    batch_size: Positive = 32,
    max_new_tokens: Positive = 32,
    precision: Precision = "float32",
    rationales: Annotated[int, Field(ge=0)] = 12,
    max_rationale_tokens: Positive = 96,
    bootstrap: Annotated[int, Field(gt=0, le=MOST_RESAMPLES)] = 2000,
    seed: int = 0,
    eval_sets: Annotated[dict[str, EvalSet], From("eval_sets")],
    labels: Annotated[list[str] | None, From("task.labels")],
    label_type: Annotated[LabelType, From("stages.parse.label_type")],
    targets: Annotated[list[Target], From("task.targets")],
    sample: Annotated[dict[str, Any], From("stages.sample")],
    parse: Annotated[dict[str, Any], From("stages.parse")],
) -> Generator[Prediction | Drop, None, Totals]:
    """Ask every model for every eval row.

    ``max_new_tokens`` bounds a label, ``max_rationale_tokens`` a rationale; ``rationales`` is how many the student writes for each eval
    set; ``bootstrap`` the number of resamples behind each comparison. An eval row without a true label, or with one outside the label
    set, is dropped once for each model. Raises InputError where an eval set cannot be read.
    """
    rows, drops = _eval_rows(eval_sets, label_type, labels)
    trained = job.inputs.get("train")
    folders = {name: trained / name for name in ("student", "baseline")} if trained is not None else {}
    classes = closed_set(label_type, labels)
    majority = _majority(job) if classes else None

    answered: list[_Answered] = []
    if sample["rationalise"]:
        say_line("evaluate: the teacher is left out; its prompt shows the true label (stages.sample.rationalise)")
    else:
        asked = _ask_teacher(rows, sample, parse, job.responses, label_type, labels)
        # A recording that holds no answer to any eval row says nothing about the teacher.
        answered += [asked] if any(text is not None for text in asked.texts) else []
    told: list[Rationale] = []
    for name, folder in folders.items():
        if not folder.is_dir():
            continue
        checkpoint = load(str(folder), precision)
        found = _ask_student(name, checkpoint, rows, label_type, labels, targets, batch_size, max_new_tokens)
        answered.append(found)
        if name == "student" and "rationale" in targets:
            chosen = _drawn(rows, rationales, seed)
            told = _explain(checkpoint, rows, found.labels, chosen, batch_size, max_rationale_tokens)
        del checkpoint
    if majority is not None:
        answered.append(_Answered("majority", [majority] * len(rows), [majority] * len(rows), parameters=0))

    predictions = {found.model: _predictions(rows, found, label_type) for found in answered}
    parameters = {found.model: found.parameters for found in answered}
    found_sets = {}
    for name in eval_sets:
        here = {model: [row for row in given if row.eval_set == name] for model, given in predictions.items()}
        dropped = sum(drop.id.startswith(f"{name}/") for drop in drops)
        found_sets[name] = set_metrics(here, classes, label_type, majority, parameters, dropped, bootstrap, seed)
    metrics = Metrics(label_type=label_type, interval=INTERVAL, eval_sets=found_sets)
    write_json(job.folder / METRICS, metrics.model_dump(mode="json"))
    with atomic(job.folder / RATIONALES) as file:
        file.writelines(rationale.line() + b"\n" for rationale in told)
    speeds = Speeds(device=device(), models={found.model: found.speed for found in answered if found.speed is not None})
    write_json(job.folder / SPEEDS, speeds.model_dump(mode="json"))

    for model, given in predictions.items():
        yield from given
        for drop in drops:
            eval_set, _, row = drop.id.partition("/")
            yield drop.changed(id=f"{eval_set}/{model}/{row}")
    return Totals(
        (len(rows) + len(drops)) * len(answered), {"models": list(predictions), "summary": summary(found_sets)}
    )


def evaluate_model(
    model: str,
    eval_set: EvalSet,
    *,
    name: str = "eval",
    labels: list[str] | None = None,
    label_type: LabelType = "text",
    targets: Sequence[Target] = ("label",),
    batch_size: int = 32,
    max_new_tokens: int = 32,
    precision: Precision = "float32",
) -> dict[str, Any]:
    """Metrics of any checkpoint (folder, hub name or ``embedded``) on one file of eval rows, asked as a student is.

    The fields are those of ModelMetrics, and ``model``, ``eval_set``, ``dropped``, ``interval``, ``classes`` and ``examples_per_second``
    beside them. Raises InputError where model or rows cannot be read, or no row has a usable true label.
    """
    rows, drops = _eval_rows({name: eval_set}, label_type, labels)
    if not rows:
        raise InputError(
            f"{eval_set.path}: none of {len(drops)} rows has a usable true label; name their column with gold"
        )
    checkpoint = load(model, precision)
    found = _ask_student(name, checkpoint, rows, label_type, labels, targets, batch_size, max_new_tokens)
    assert found.speed is not None
    classes = closed_set(label_type, labels)
    metrics = _model_metrics(_predictions(rows, found, label_type), classes, label_type, None, checkpoint.parameters)
    return {
        "model": model,
        "eval_set": name,
        "dropped": dict(Counter(drop.reason for drop in drops)),
        "interval": INTERVAL,
        "classes": classes,
        "examples_per_second": found.speed.examples_per_second,
        **metrics.model_dump(mode="json"),
    }


def read_label(
    text: str, kind: LabelType, labels: Sequence[str] | None = None, choices: Sequence[str] | None = None
) -> str | None:
    """The label that ``text`` says, or None where it says none that could be right: outside the set, or no number or equation."""
    said = normalise(text, kind, labels, choices)
    if said is None or (kind in ("number", "equation") and value(said, kind) is None):
        return None
    options = choices or closed_set(kind, labels)
    return said if not options or said in options else None


def closed_set(kind: LabelType, labels: Sequence[str] | None) -> list[str]:
    """The labels that macro-F1 and confusion matrix are over: the task's own for texts and choices, none where answers are open."""
    return list(dict.fromkeys(labels or ())) if kind in ("text", "choice") else []


def accuracy_interval(correct: int, rows: int, z: float = Z95) -> Interval:
    """The Wilson score interval of a share, both ends in [0, 1]; ``z`` 1.96 for 95%.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927). Raises ValueError unless
    ``0 <= correct <= rows`` and ``rows > 0``.
    """
    if not 0 <= correct <= rows or rows == 0:
        raise ValueError(f"{correct} correct of {rows} rows is no share")
    share = correct / rows
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * ((share * (1 - share) + z * z / (4 * rows)) / rows) ** 0.5
    return (max(0.0, centre - half) if correct else 0.0, min(1.0, centre + half) if correct < rows else 1.0)


def paired_difference(
    first: Sequence[bool], second: Sequence[bool], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, Interval]:
    """The first's accuracy minus the second's on the same rows, and its 95% percentile bootstrap interval over rows.

    Pairs are drawn together, so what both have right or wrong takes nothing from the precision. Raises ValueError for lists that are
    empty or not equally long.
    """
    import numpy

    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} rows cannot be compared in pairs")
    differences = numpy.asarray(first, dtype=numpy.int64) - numpy.asarray(second, dtype=numpy.int64)
    # A resample's mean depends only on how often +1, 0 and -1 were drawn, so one multinomial draw stands for all its rows.
    counts = [int((differences == value).sum()) for value in (1, 0, -1)]
    drawn = numpy.random.default_rng(seed).multinomial(
        len(first), [count / len(first) for count in counts], size=resamples
    )
    means = (drawn[:, 0] - drawn[:, 2]) / len(first)
    low, high = numpy.quantile(means, [0.025, 0.975])
    return float(differences.mean()), (float(low), float(high))


def macro_f1(golds: Sequence[str], answers: Sequence[str | None], classes: Sequence[str]) -> float:
    """The mean F1 of the classes that are some row's truth or answer; an answer outside ``classes`` is simply wrong."""
    from sklearn.metrics import f1_score

    truths, given = _numbered(golds, answers, classes)
    present = sorted({*truths, *given} - {len(classes)})
    return float(f1_score(truths, given, labels=present, average="macro", zero_division=0))


def confusion(golds: Sequence[str], answers: Sequence[str | None], classes: Sequence[str]) -> list[list[int]]:
    """A row for each true class, a column for each answered one, and a last column for answers outside ``classes`` or none."""
    from sklearn.metrics import confusion_matrix

    truths, given = _numbered(golds, answers, classes)
    matrix = confusion_matrix(truths, given, labels=range(len(classes) + 1))
    return [[int(count) for count in row] for row in matrix[: len(classes)]]


def _numbered(
    golds: Sequence[str], answers: Sequence[str | None], classes: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Labels as positions in ``classes``; an answer that is none of them gets the position after the last.

    Raises ValueError for a truth outside ``classes``.
    """
    places: dict[str | None, int] = {name: place for place, name in enumerate(classes)}
    if strange := set(golds).difference(classes):
        raise ValueError(f"{min(strange)!r} is none of the classes")
    return [places[gold] for gold in golds], [places.get(answer, len(classes)) for answer in answers]


def label_scores(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> dict[str, LabelScores]:
    """Each class's precision and recall out of a confusion matrix."""
    scores = {}
    for index, name in enumerate(classes):
        gold, answered = sum(matrix[index]), sum(row[index] for row in matrix)
        hits = matrix[index][index]
        scores[name] = LabelScores(
            precision=hits / answered if answered else None,
            recall=hits / gold if gold else None,
            gold=gold,
            answered=answered,
        )
    return scores


def device() -> str:
    """Where models run here: 'cuda' or 'cpu'."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load(model: str, precision: Precision = "float32") -> Checkpoint:
    """A checkpoint folder, Hub name or ``embedded``, on the GPU where there is one. Raises InputError where it cannot be used."""
    import torch

    try:
        with quiet():
            loaded, tokenizer, _ = load_student(StudentSettings.model_validate({"from": model}))
    except InputError as error:
        raise InputError(str(error).removeprefix("train.student: ")) from None
    asked = Format.of(model).model_copy(update={"encoder_decoder": bool(loaded.config.is_encoder_decoder)})
    return Checkpoint(loaded.to(device(), getattr(torch, precision)).eval(), tokenizer, asked)


def generate(
    checkpoint: Checkpoint,
    texts: Sequence[str],
    *,
    batch_size: int = 32,
    max_new_tokens: int = 32,
    description: str = "generate",
) -> list[Answer]:
    """One greedy answer for each text, in order; none for a text that leaves less than ``max_new_tokens`` of the model's context."""
    prompts = [checkpoint.format.prompt_ids(checkpoint.tokenizer, text) for text in texts]
    with bar(description, len(texts)) as advance:
        return complete(checkpoint, prompts, batch_size=batch_size, max_new_tokens=max_new_tokens, advance=advance)


def complete(
    checkpoint: Checkpoint, prompts: Sequence[Sequence[int]], *, batch_size: int, max_new_tokens: int, advance: Advance
) -> list[Answer]:
    """``generate`` for prompts that are tokens already; ``advance`` is told how many more of them are done."""
    end = checkpoint.format.end_token_id(checkpoint.tokenizer)
    return greedy(
        checkpoint.model,
        checkpoint.tokenizer,
        prompts,
        end=end,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        advance=advance,
    )


def _eval_rows(
    eval_sets: dict[str, EvalSet], label_type: LabelType, labels: list[str] | None
) -> tuple[list[_Row], list[Drop]]:
    """The rows that count, and a drop for each that does not; ids are ``<eval set>/<row id>``."""
    if not eval_sets:
        raise InputError(
            "eval_sets: there is nothing to evaluate on; name an eval set in stages.yaml, or switch it off: 'evaluate: false'"
        )
    rows: list[_Row] = []
    drops: list[Drop] = []
    for name, eval_set in eval_sets.items():
        given = read_prompts(
            eval_set.path, input=eval_set.input or "", gold=eval_set.gold, choices=eval_set.choices, id=eval_set.id
        )
        for prompt in given:
            if isinstance(prompt, Drop):
                drops.append(prompt.changed(id=f"{name}/{prompt.id}"))
                continue
            if not (prompt.gold or "").strip():
                evidence: dict[str, JsonValue] = {"source": prompt.source, "column": eval_set.gold}
                drops.append(Drop(id=f"{name}/{prompt.id}", reason="no_gold", evidence=evidence))
                continue
            gold = read_label(prompt.gold or "", label_type, labels, prompt.choices)
            if gold is None:
                evidence = {"source": prompt.source, "gold": prompt.gold}
                drops.append(Drop(id=f"{name}/{prompt.id}", reason="gold_is_no_label", evidence=evidence))
            else:
                rows.append(_Row(name, prompt, gold))
    return rows, drops


def _ask_teacher(
    rows: list[_Row],
    sample: dict[str, Any],
    parse: dict[str, Any],
    responses: Path,
    label_type: LabelType,
    labels: list[str] | None,
) -> _Answered:
    """The teacher's voted answers, as the sample and parse stages would have taken them."""
    rounds: list[list[_Row]] = []  # one, unless eval sets share ids: recorded answers are found by a row's own id
    seen: Counter[str] = Counter()
    for row in rows:
        if seen[row.prompt.id] == len(rounds):
            rounds.append([])
        rounds[seen[row.prompt.id]].append(row)
        seen[row.prompt.id] += 1
    found: dict[str, tuple[str, str | None]] = {}
    meters: dict[str, Meter] = {}
    for asked in rounds:
        given = [
            response
            for response in answers(
                [row.prompt for row in asked], **sample, responses=responses, meters=meters, stage="evaluate"
            )
            if isinstance(response, Response)
        ]
        texts = {response.prompt: response.text for response in reversed(given)}
        examples = {example.id: example for example in parse_responses(given, **parse) if isinstance(example, Example)}
        for row in asked:
            example = examples.get(row.prompt.id)
            if example is not None:
                said = example.text if example.label is None else example.label
                found[row.place] = example.text, read_label(said, label_type, labels, row.prompt.choices)
            elif row.prompt.id in texts:
                found[row.place] = texts[row.prompt.id], None
    given_none: tuple[str | None, str | None] = (None, None)
    said_to = [found.get(row.place, given_none) for row in rows]
    speed = _speed(sum(meter.requests for meter in meters.values()), sum(meter.seconds for meter in meters.values()))
    size = _stored_parameters(sample["teacher"][0]) if len(sample["teacher"]) == 1 else None
    return _Answered("teacher", [text for text, _ in said_to], [label for _, label in said_to], size, speed)


def _stored_parameters(teacher: TeacherSettings) -> int | None:
    """How many weights the checkpoint of a local teacher holds; the weights are not read."""
    from safetensors import safe_open

    if not isinstance(teacher, Vllm):
        return None
    folder = embedded.folder() if teacher.model == EMBEDDED else Path(teacher.model)
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - not a dict
    return total or None


def _ask_student(
    name: str,
    checkpoint: Checkpoint,
    rows: list[_Row],
    label_type: LabelType,
    labels: list[str] | None,
    targets: Sequence[Target],
    batch_size: int,
    max_new_tokens: int,
) -> _Answered:
    task = asked_task(targets)
    texts = [student_prompt(task, row.prompt.input) for row in rows]
    began = time.perf_counter()
    found = generate(
        checkpoint, texts, batch_size=batch_size, max_new_tokens=max_new_tokens, description=f"evaluate {name}"
    )
    speed = _speed(len(rows), time.perf_counter() - began)
    read_as = [
        read_label(
            said_label(answer.text) if task == "chain_of_thought" else answer.text,
            label_type,
            labels,
            row.prompt.choices,
        )
        if answer.text and answer.finished
        else None
        for answer, row in zip(found, rows, strict=True)
    ]
    return _Answered(name, [answer.text for answer in found], read_as, checkpoint.parameters, speed)


def asked_task(targets: Sequence[Target]) -> Target:
    """The task by which a student of these targets is asked for its answer."""
    return next((task for task in ("label", "response", "chain_of_thought") if task in targets), "label")


def _speed(rows: int, seconds: float) -> Speed | None:
    if not rows:
        return None
    return Speed(rows=rows, seconds=round(seconds, 3), examples_per_second=round(rows / max(seconds, 1e-3), 2))


def _explain(
    checkpoint: Checkpoint,
    rows: list[_Row],
    labels: list[str | None],
    chosen: list[int],
    batch_size: int,
    max_new_tokens: int,
) -> list[Rationale]:
    texts = [student_prompt("rationale", rows[index].prompt.input) for index in chosen]
    found = generate(
        checkpoint, texts, batch_size=batch_size, max_new_tokens=max_new_tokens, description="evaluate rationales"
    )
    return [
        Rationale(
            eval_set=rows[index].eval_set,
            row=rows[index].prompt.id,
            input=rows[index].prompt.input,
            gold=rows[index].gold,
            label=labels[index],
            rationale=(answer.text or "").strip(),
            finished=answer.finished,
        )
        for index, answer in zip(chosen, found, strict=True)
    ]


def _drawn(rows: list[_Row], number: int, seed: int) -> list[int]:
    """Positions of up to ``number`` rows of each eval set, drawn without looking at them."""
    chosen: list[int] = []
    for name in dict.fromkeys(row.eval_set for row in rows):
        here = [index for index, row in enumerate(rows) if row.eval_set == name]
        chosen += sorted(random.Random(f"{seed}/{name}").sample(here, min(number, len(here))))
    return chosen


def _majority(job: Job) -> str | None:
    """The most frequent label of the training rows (the first in the alphabet of those), or None where there are none."""
    if "shard" not in job.inputs:
        return None
    counts = Counter(
        row.completion.strip()
        for row in read(job.inputs["shard"], TrainingRow)
        if row.task == "label" and row.split == "train"
    )
    return min(counts, key=lambda label: (-counts[label], label), default=None)


def _predictions(rows: list[_Row], answered: _Answered, label_type: LabelType) -> list[Prediction]:
    return [
        Prediction(
            id=f"{row.eval_set}/{answered.model}/{row.prompt.id}",
            eval_set=row.eval_set,
            model=answered.model,
            row=row.prompt.id,
            input=row.prompt.input,
            gold=row.gold,
            label=label,
            correct=label is not None and same(label, row.gold, label_type),
            text=text or "",
        )
        for row, text, label in zip(rows, answered.texts, answered.labels, strict=True)
    ]


def set_metrics(
    predictions: dict[str, list[Prediction]],
    classes: list[str],
    label_type: LabelType,
    majority: str | None,
    parameters: dict[str, int | None],
    dropped: int,
    resamples: int,
    seed: int,
) -> SetMetrics:
    """What the predictions on one eval set come to, by model; all models have the same rows in the same order.

    ``parameters`` are the models' sizes, ``dropped`` the rows that do not count, ``resamples`` those of each bootstrap.
    """
    rows = max((len(given) for given in predictions.values()), default=0)
    teacher = predictions.get("teacher")
    models = {
        model: _model_metrics(given, classes, label_type, teacher, parameters[model])
        for model, given in predictions.items()
        if given
    }
    right = {model: [row.correct for row in given] for model, given in predictions.items() if given}
    pairs = [
        ("student", other) for other in ("baseline", "teacher", "majority") if "student" in right and other in right
    ]
    comparisons = []
    for first, second in pairs:
        difference, interval = paired_difference(right[first], right[second], resamples=resamples, seed=seed)
        both = list(zip(right[first], right[second], strict=True))
        comparisons.append(
            Comparison(
                first=first,
                second=second,
                difference=difference,
                interval=interval,
                only_first=both.count((True, False)),
                only_second=both.count((False, True)),
            )
        )
    return SetMetrics(
        rows=rows, dropped=dropped, classes=classes, majority=majority, models=models, comparisons=comparisons
    )


def _model_metrics(
    predictions: list[Prediction],
    classes: list[str],
    label_type: LabelType,
    teacher: list[Prediction] | None,
    parameters: int | None,
) -> ModelMetrics:
    golds, labels = [row.gold for row in predictions], [row.label for row in predictions]
    correct = sum(row.correct for row in predictions)
    matrix = confusion(golds, labels, classes) if classes else []
    pairs = [(row.label, other.label) for row, other in zip(predictions, teacher or predictions, strict=True)]
    agreed = [first is not None and same(first, second, label_type) for first, second in pairs if second is not None]
    return ModelMetrics(
        rows=len(predictions),
        answered=sum(label is not None for label in labels),
        unanswered=sum(not row.text for row in predictions),
        correct=correct,
        accuracy=correct / len(predictions),
        accuracy_interval=accuracy_interval(correct, len(predictions)),
        macro_f1=macro_f1(golds, labels, classes) if classes else None,
        labels=label_scores(matrix, classes),
        confusion=matrix,
        same_as_teacher=sum(agreed) if teacher else None,
        teacher_rows=len(agreed) if teacher else None,
        parameters=parameters,
    )


def summary(eval_sets: dict[str, SetMetrics]) -> dict[str, dict[str, str]]:
    """Each eval set's accuracies in one line a model, for the manifest and the terminal."""
    return {
        name: {
            model: f"{found.accuracy:.1%} ({found.accuracy_interval[0]:.1%} to {found.accuracy_interval[1]:.1%}) of {found.rows} rows"
            for model, found in metrics.models.items()
        }
        for name, metrics in eval_sets.items()
    }
