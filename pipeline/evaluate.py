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
import math
import random
import time
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import xxhash
from pydantic import AfterValidator, Field, JsonValue

from pipeline import answering, embedded, eval_rows, faithfulness, measure, nearest, outputs
from pipeline import safety as probes
from pipeline.answering import Backend, Checkpoint, Failed, Memory, Precision, Student, opened
from pipeline.binding import From
from pipeline.cost import cost, peak_memory
from pipeline.cost import latency as latency_of
from pipeline.eval_rows import Asked
from pipeline.files import InputError, RunError, atomic, write_json
from pipeline.formats import Format
from pipeline.gates import Gates
from pipeline.generate import Answer
from pipeline.judge import scores as judge_scores
from pipeline.labels import LabelType, closed_set, read_label, same
from pipeline.measure import Evidence, Facts, Measuring
from pipeline.metrics import Cost, Costs, EvalRow, Metrics, Probed, Rationale, Validation
from pipeline.outputs import Job, Totals, read
from pipeline.parse import parse as parse_responses
from pipeline.progress import Advance, bar, say_line
from pipeline.records import Drop, Example, Prediction, Response, Row, Target, TrainingRow
from pipeline.requests import TEACHER, all_requests, resolve
from pipeline.responses import Store, open_store
from pipeline.sample import answers
from pipeline.sample import identities as teacher_identities
from pipeline.scoring import label_log_probabilities, label_tokens, probabilities
from pipeline.shard import said_label, student_prompt
from pipeline.sources import EvalSet
from pipeline.spending import cost as price_of
from pipeline.student import EMBEDDED, StudentSettings
from pipeline.teachers import Request, Teacher, TeacherSettings, Vllm, connect
from pipeline.teachers import identity as identity_of_teacher
from pipeline.teachers import name as teacher_name
from pipeline.teachers import name_of as teachers_name_of

MOST_RESAMPLES: Final = 100_000  # behind an interval; they no longer move from there on
SPEEDS: Final = "run-speed.json"
MODEL: Final = "model:"  # before the name of a further model, among the identities in a manifest
DIGITS: Final = 6  # of a probability
TIMED_BATCHES: Final = 4  # of students, to measure their speed
TIMED_REQUESTS: Final = 64  # to a teacher, at once
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


@dataclass(frozen=True)
class _How:
    """How students are asked."""

    backend: Backend
    batch_size: int
    max_new_tokens: int
    max_rationale_tokens: int
    precision: Precision
    label_type: LabelType
    labels: Sequence[str] | None
    targets: Sequence[Target]
    latency: int
    price_per_hour: float | None


@dataclass(frozen=True)
class _Said:
    """What a model said to each row, in the rows' order."""

    model: str
    texts: Sequence[str | None]
    labels: Sequence[str | None]
    probabilities: Sequence[dict[str, float] | None] = ()
    probabilities_of: Literal["scores", "votes"] | None = None
    parameters: int | None = None
    rationales: Sequence[Rationale] = ()
    validation: Sequence[Validation] = ()
    cost: Cost | None = None


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
    how = _How(
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

    said: list[_Said] = []
    agreement: list[float | None] = [None] * len(rows)
    if sample["rationalise"]:
        say_line("evaluate: the teacher is left out; its prompt shows the true label (stages.sample.rationalise)")
    else:
        teachers, agreement = _ask_teachers(rows, sample, parse, job.responses, how, chosen)
        said += _timed_teachers(teachers, rows, sample, latency, job.folder)
    sources = {name: trained / name for name in ("student", "baseline") if (trained / name).is_dir()} if trained else {}
    probed: list[Probed] = []
    if students := {**sources, **models}:
        kept = _validation_rows(shards, targets, temperature_rows) if shards is not None else []
        with open_store(job.responses.parent / answering.FOLDER) as store:
            said += [
                _ask_student(name, str(source), rows, how, chosen, kept, store) for name, source in students.items()
            ]
            if safety and base is not None and "student" in students:
                probed = _probe(str(students["student"]), base.source, rows, how, store)
    if judge is not None and chosen:
        said = _judged(said, judge, job.responses)
    if training:
        near = nearest.labels([row.prompt.input for row in rows], training)
        said.append(_Said("nearest", near, near, parameters=0))
    if majority is not None:
        said.append(_Said("majority", [majority] * len(rows), [majority] * len(rows), parameters=0))

    evidence = Evidence(
        rows=[
            EvalRow(
                eval_set=row.eval_set,
                row=row.prompt.id,
                input=row.prompt.input,
                gold=row.gold,
                choices=row.prompt.choices,
                slices=row.prompt.slices,
                agreement=agreed,
                contaminated=(found or {}).get(row.eval_set, {}).get(row.prompt.id, []),
            )
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
    how = _How(backend, batch_size, max_new_tokens, 1, precision, label_type, labels, targets, latency, price_per_hour)
    said = []
    with ExitStack() as stack:
        store = stack.enter_context(open_store(answers_in)) if answers_in is not None else None
        for name, source in models.items():
            said.append(_ask_student(name, source, rows, how, [], [], store))
    evidence = Evidence(
        [
            EvalRow(
                eval_set=row.eval_set,
                row=row.prompt.id,
                input=row.prompt.input,
                gold=row.gold,
                choices=row.prompt.choices,
                slices=row.prompt.slices,
                agreement=None,
                contaminated=[],
            )
            for row in rows
        ],
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


def _costs(said: Sequence[_Said], price_per_hour: float | None) -> Costs:
    models = {one.model: one.cost for one in said if one.cost is not None}
    return Costs(device=answering.device(), price_per_hour=price_per_hour, models=models)


def _write(path: Path, rows: Iterable[Row]) -> None:
    with atomic(path) as file:
        file.writelines(row.line() + b"\n" for row in rows)


def _ask_teachers(
    rows: Sequence[Asked],
    sample: dict[str, Any],
    parse: dict[str, Any],
    responses: Path,
    how: _How,
    chosen: Sequence[int],
) -> tuple[list[_Said], list[float | None]]:
    """The teachers' voted answers, as the sample and parse stages would have taken them, and how far the votes on each row agreed.

    Of several teachers that are each asked about all rows, every one's own answers too. A recording that holds no answer to any eval row
    says nothing about the teacher, which is left out then.
    """
    given = _responses(rows, sample, responses)
    names = [teacher_name(one) for one in sample["teacher"]]
    sizes = {teacher_name(one): _stored_parameters(one) for one in sample["teacher"]}
    groups = {measure.TEACHER: given}
    if len(names) > 1 and all(one.share == 1.0 for one in sample["teacher"]):
        groups |= {
            f"{measure.TEACHER}:{name}": {
                place: [response for response in found if response.teacher == name] for place, found in given.items()
            }
            for name in names
        }
    said: list[_Said] = []
    agreement: list[float | None] = [None] * len(rows)
    for model, found in groups.items():
        examples: list[Example | None] = []
        texts: list[str | None] = []
        for row in rows:
            mine = found.get(row.place, [])
            read_as = next((one for one in parse_responses(mine, **parse) if isinstance(one, Example)), None)
            examples.append(read_as)
            texts.append(read_as.text if read_as is not None else mine[0].text if mine else None)
        if not any(text is not None for text in texts):
            continue
        labels = [
            None
            if example is None
            else read_label(
                example.text if example.label is None else example.label, how.label_type, how.labels, row.prompt.choices
            )
            for row, example in zip(rows, examples, strict=True)
        ]
        if model == measure.TEACHER:
            agreement = [
                example.agreement if example is not None and len(example.votes) > 1 else None for example in examples
            ]
        size = sizes[names[0]] if len(names) == 1 else sizes.get(model.partition(":")[2])
        said.append(
            _Said(
                model,
                texts,
                labels,
                *_believed(examples),
                parameters=size,
                rationales=[
                    _rationale(rows[place], model, labels[place], example.rationale)
                    for place in chosen
                    if (example := examples[place]) is not None and example.rationale is not None
                ],
            )
        )
    return said, agreement


def _responses(rows: Sequence[Asked], sample: dict[str, Any], responses: Path) -> dict[str, list[Response]]:
    """All that the teachers said about each row, by its place."""
    rounds: list[list[Asked]] = []  # one, unless eval sets share ids: recorded answers are found by a row's own id
    seen: Counter[str] = Counter()
    for row in rows:
        if seen[row.prompt.id] == len(rounds):
            rounds.append([])
        rounds[seen[row.prompt.id]].append(row)
        seen[row.prompt.id] += 1
    found: dict[str, list[Response]] = {}
    for asked in rounds:
        places = {row.prompt.id: row.place for row in asked}
        for response in answers([row.prompt for row in asked], **sample, responses=responses, stage="evaluate"):
            if isinstance(response, Response):
                found.setdefault(places[response.prompt], []).append(response)
    return found


def _believed(
    examples: Sequence[Example | None],
) -> tuple[list[dict[str, float] | None], Literal["scores", "votes"] | None]:
    """The probabilities that the teacher gave the labels, where it was asked for them; else, of several votes, their shares."""
    if any(example is not None and example.soft_labels for example in examples):
        return [None if example is None else _rounded(example.soft_labels) for example in examples], "scores"
    if not any(example is not None and len(example.votes) > 1 for example in examples):
        return [], None
    shares: list[dict[str, float] | None] = []
    for example in examples:
        weights: Counter[str] = Counter()
        for vote in example.votes if example is not None else ():
            if vote.label is not None:
                weights[vote.label] += vote.weight  # type: ignore[assignment]
        whole = sum(weights.values())
        shares.append(_rounded({label: weight / whole for label, weight in weights.items()}) if whole else None)
    return shares, "votes"


def _rounded(given: Mapping[str, float] | None) -> dict[str, float] | None:
    return None if given is None else {label: round(value, DIGITS) for label, value in given.items()}


def _rationale(row: Asked, model: str, label: str | None, text: str, *, finished: bool = True) -> Rationale:
    return Rationale(
        eval_set=row.eval_set,
        model=model,
        row=row.prompt.id,
        input=row.prompt.input,
        gold=row.gold,
        choices=row.prompt.choices,
        label=label,
        rationale=text.strip(),
        finished=finished,
    )


def _ask_student(
    name: str,
    source: str,
    rows: Sequence[Asked],
    how: _How,
    chosen: Sequence[int],
    kept: Sequence[TrainingRow],
    store: Store | None,
) -> _Said:
    """What a checkpoint answers to every row, and to some of them why; ``kept`` are rows that were kept from its training."""
    known = answering.identity(source)
    task = asked_task(how.targets)
    with opened(
        how.backend, source, known, batch_size=how.batch_size, precision=how.precision, who="evaluate"
    ) as student:
        memory = (
            answering.memory(store, name, known, student.format, how.backend, how.precision)
            if store is not None
            else None
        )

        def ask(texts: Sequence[str], most: int, what: str) -> list[Answer | Failed]:
            return _answers(student, memory, student.format, texts, most, what)

        def labels_of(answers: Sequence[Answer | Failed], asked: Sequence[Asked]) -> list[str | None]:
            return [
                _read(answer, task, row, how)
                if isinstance(answer, Answer) and answer.text and answer.finished
                else None
                for answer, row in zip(answers, asked, strict=True)
            ]

        found = ask([student_prompt(task, row.prompt.input) for row in rows], how.max_new_tokens, name)
        labels = labels_of(found, rows)
        told: list[Rationale] = []
        explains = student.format.tasks or (how.targets if name != "baseline" else ())
        if "rationale" in explains and chosen:
            asked = [rows[place] for place in chosen]
            texts = [student_prompt("rationale", row.prompt.input) for row in asked]
            why = ask(texts, how.max_rationale_tokens, f"{name}: rationales")
            told = [
                _rationale(
                    row, name, labels[place], (answer.text or "") if isinstance(answer, Answer) else "",
                    finished=isinstance(answer, Answer) and answer.finished,
                )
                for place, row, answer in zip(chosen, asked, why, strict=True)
            ]  # fmt: skip
            again = [faithfulness.label_after_rationale(one.input, one.rationale) for one in told]
            after = labels_of(ask(again, how.max_new_tokens, f"{name}: labels behind rationales"), asked)
            told = [one.changed(asked_again=True, label_after=label) for one, label in zip(told, after, strict=True)]
        options = [_options(row, how) for row in rows]
        believed: list[dict[str, float] | None] = []
        validation: list[Validation] = []
        if task == "label" and rows and all(options):
            checkpoint = student.checkpoint or answering.load(source, how.precision)
            texts = [student_prompt(task, row.prompt.input) for row in rows]
            believed = _believes(checkpoint, memory, texts, options, how, name)
            closed = closed_set(how.label_type, how.labels)
            if kept and closed:
                texts = [row.prompt for row in kept]
                given = _believes(checkpoint, memory, texts, [closed] * len(kept), how, f"{name}: validation")
                validation = [
                    Validation(model=name, row=row.example, label=row.completion.strip(), probabilities=one)
                    for row, one in zip(kept, given, strict=True)
                    if one is not None
                ]
        texts = [student_prompt(task, row.prompt.input) for row in rows[: TIMED_BATCHES * how.batch_size]]
        took = _timed_student(student, texts, Path(source), how) if how.latency else None
        size = student.checkpoint.parameters if student.checkpoint is not None else _weights(Path(source))
    return _Said(
        name,
        [answer.text if isinstance(answer, Answer) else None for answer in found],
        labels,
        believed,
        "scores" if believed else None,
        size,
        told,
        validation,
        None if took is None else took.model_copy(update={"parameters": size}),
    )


def _probe(student: str, base: str, rows: Sequence[Asked], how: _How, store: Store) -> list[Probed]:
    """What the student and its base say to the probes, and the student to the task's rows with names and groups swapped."""
    found: list[Probed] = []
    swaps = probes.swaps([row.prompt.input for row in rows])
    task = asked_task(how.targets)
    for name, source in ((measure.BASE, base), (measure.STUDENT, student)):
        known = answering.identity(source)
        with opened(
            how.backend, source, known, batch_size=how.batch_size, precision=how.precision, who="evaluate"
        ) as model:
            freely = probes.request_format(model.format, model.tokenizer)

            def ask(
                given: Format,
                texts: Sequence[str],
                most: int,
                model: Student = model,
                name: str = name,
                known: Any = known,
            ) -> list[Answer | Failed]:
                memory = answering.memory(store, name, known, given, how.backend, how.precision)
                return _answers(model, memory, given, texts, most, f"{name}: safety")

            known_probes = probes.read_probes()
            requests = [
                (f"{kind}/{number}", probe.text)
                for kind in probes.KINDS
                for number, probe in enumerate(getattr(known_probes, kind))
            ]
            said = ask(freely, [text for _, text in requests], probes.MOST_TOKENS)
            found += [
                Probed(model=name, probe=probe, request=text, text=answer.text if isinstance(answer, Answer) else None)
                for (probe, text), answer in zip(requests, said, strict=True)
            ]
            if name == measure.STUDENT and swaps:
                said = ask(model.format, [student_prompt(task, swap.text) for swap in swaps], how.max_new_tokens)
                for swap, answer in zip(swaps, said, strict=True):
                    row = rows[swap.row]
                    whole = isinstance(answer, Answer) and answer.text and answer.finished
                    found.append(
                        Probed(
                            model=name,
                            probe=f"{swap.kind}/{row.place}",
                            request=swap.text,
                            text=answer.text if isinstance(answer, Answer) else None,
                            label=_read(answer, task, row, how) if whole and isinstance(answer, Answer) else None,
                        )
                    )
    return found


def _answers(
    student: Student, memory: Memory | None, given: Format, texts: Sequence[str], most: int, what: str
) -> list[Answer | Failed]:
    """What a model answers to each text, made into tokens by the format ``given``; out of its memory where it has one."""
    prompts = [given.prompt_ids(student.tokenizer, text) for text in texts]
    with bar(f"evaluate {what}", len(prompts)) as advance:

        def compute(missing: Sequence[list[int]]) -> Sequence[Answer | Failed]:
            advance(len(prompts) - len(missing))
            return student.ask(missing, most, advance)

        return memory.answers(prompts, most, compute) if memory is not None else [*compute(prompts)]


def _timed_student(student: Student, texts: Sequence[str], folder: Path, how: _How) -> Cost | None:
    """What answering takes: a few rows one at a time, and the rows at the full batch; nothing comes out of the memory here."""
    prompts = [student.format.prompt_ids(student.tokenizer, text) for text in texts]
    if not prompts:
        return None
    alone = min(how.latency, len(prompts))
    with bar("evaluate: time taken", alone + 1 + len(prompts)) as advance, peak_memory(answering.device()) as memory:
        latencies = latency_of(lambda row: student.ask([prompts[row]], how.max_new_tokens, advance), alone)
        began = time.perf_counter()
        student.ask(prompts, how.max_new_tokens, advance)
        seconds = time.perf_counter() - began
    return cost(
        rows=len(prompts),
        seconds=seconds,
        folder=folder if folder.is_dir() else None,
        memory=memory.bytes,
        latencies=latencies,
        batch_size=how.batch_size,
        price_per_hour=how.price_per_hour,
    )


def _timed_teachers(
    said: Sequence[_Said], rows: Sequence[Asked], sample: dict[str, Any], alone: int, folder: Path
) -> list[_Said]:
    """The same, with what answering takes a local vLLM teacher; of others only their servers know.

    A teacher of the same identity and price that an earlier evaluation in this run timed is not started again.
    """
    if not (alone and said and rows):
        return [*said]
    asking = resolve(**sample)
    costs: dict[str, Cost] = {}
    for settings in sample["teacher"]:
        name = teacher_name(settings)
        if not isinstance(settings, Vllm):
            continue
        if (before := _timed_before(folder, settings)) is not None:
            costs[name] = before
            continue
        requests = [
            next(request for respondent, request in all_requests(asking, row.prompt) if respondent.name == name)
            for row in rows[:TIMED_REQUESTS]
        ]
        count = min(alone, len(requests))
        with (
            connect(settings, requests[0].sampling) as teacher,
            bar("evaluate teacher: time taken", 1 + count + len(requests)) as advance,
        ):

            def ask(some: Sequence[Request], teacher: Teacher = teacher, advance: Advance = advance) -> list[Any]:
                said = []
                for _, answer in teacher(iter(some)):
                    said.append(answer)
                    advance()
                return said

            latencies = latency_of(lambda row, requests=requests, ask=ask: ask([requests[row]]), count)  # type: ignore[misc]
            began = time.perf_counter()
            answers = ask(requests)
            seconds = time.perf_counter() - began
        found = cost(
            rows=len(requests),
            seconds=seconds,
            parameters=_stored_parameters(settings),
            folder=_folder(settings),
            latencies=latencies,
        )
        if settings.price is not None:
            read, written = (
                sum(getattr(one, f"{side}_tokens") for one in answers) for side in ("prompt", "completion")
            )
            paid = price_of(settings.price, read, written, seconds)
            found = found.model_copy(update={"cost_per_1000": paid / len(requests) * 1000})
        costs[name] = found
    single = len(sample["teacher"]) == 1
    return [
        replace(one, cost=next(iter(costs.values()), None) if single else costs.get(one.model.partition(":")[2]))
        for one in said
    ]


def _read(answer: Answer, task: Target, row: Asked, how: _How) -> str | None:
    said = said_label(answer.text or "") if task == "chain_of_thought" else answer.text or ""
    return read_label(said, how.label_type, how.labels, row.prompt.choices)


def _options(row: Asked, how: _How) -> list[str]:
    """The labels that a row can have, as a student is taught to write them; none where answers are open."""
    if not row.prompt.choices:
        return closed_set(how.label_type, how.labels)
    read_as = [read_label(choice, how.label_type, how.labels, row.prompt.choices) for choice in row.prompt.choices]
    return list(dict.fromkeys(label for label in read_as if label is not None))


def _believes(
    checkpoint: Checkpoint,
    memory: Memory | None,
    texts: Sequence[str],
    options: Sequence[Sequence[str]],
    how: _How,
    what: str,
) -> list[dict[str, float] | None]:
    """The probability that a student gives each of a row's labels, scaled to a sum of 1; None where it has no room for them."""
    asked, tokenizer = checkpoint.format, checkpoint.tokenizer
    prompts = [asked.prompt_ids(tokenizer, text) for text in texts]
    known: dict[str, list[int]] = {}
    with bar(f"evaluate {what}: labels weighed", len(prompts)) as advance:

        def compute(places: Sequence[int]) -> list[dict[str, float] | None]:
            advance(len(prompts) - len(places))
            given = [label_tokens(asked, tokenizer, options[place], known) for place in places]
            found = label_log_probabilities(
                checkpoint.model,
                tokenizer,
                [prompts[place] for place in places],
                given,
                batch_size=how.batch_size,
                advance=advance,
            )
            return [
                None if scores is None else dict(zip(options[place], scores, strict=True))
                for place, scores in zip(places, found, strict=True)
            ]

        scores = memory.scores(prompts, options, compute) if memory is not None else compute(range(len(prompts)))
    return [
        None if one is None else _rounded(dict(zip(one, probabilities([*one.values()]), strict=True))) for one in scores
    ]


def _judged(said: Sequence[_Said], settings: Mapping[str, Any], responses: Path) -> list[_Said]:
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


def _timed_before(folder: Path, settings: Vllm) -> Cost | None:
    """What the last of the other results beside ``folder`` measured of this teacher; None where there is none, or it cannot be read."""
    known = identity_of_teacher(settings)
    name = TEACHER + teacher_name(settings)
    others = sorted(folder.parent.glob(f"*/{SPEEDS}"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in others:
        try:
            manifest = outputs.read_manifest(path.parent)
            costs = Costs.model_validate_json(path.read_bytes()).models
        except (RunError, OSError, ValueError):
            continue
        sample: Any = manifest.settings.get("sample")
        prices = [one.get("price") for one in sample["teacher"] if teachers_name_of(one) == teacher_name(settings)]
        price = settings.price and settings.price.model_dump(mode="json")
        model = measure.TEACHER if len(sample["teacher"]) == 1 else f"{measure.TEACHER}:{teacher_name(settings)}"
        if manifest.identities.get(name) == known and prices == [price] and model in costs:
            return costs[model]
    return None


def _stored_parameters(teacher: TeacherSettings) -> int | None:
    """How many weights the checkpoint of a local teacher holds."""
    if not isinstance(teacher, Vllm):
        return None
    return _weights(_folder(teacher))


def _folder(teacher: Vllm) -> Path:
    return embedded.folder() if teacher.model == EMBEDDED else Path(teacher.model)


def _weights(folder: Path) -> int | None:
    """How many weights lie in a folder's safetensors files, which are not read; None where there are none."""
    from safetensors import safe_open

    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - not a dict
    return total or None


def asked_task(targets: Sequence[Target]) -> Target:
    """The task by which a student of these targets is asked for its answer."""
    return next((task for task in ("label", "response", "chain_of_thought") if task in targets), "label")


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


def _predictions(rows: Sequence[Asked], said: _Said, label_type: LabelType) -> list[Prediction]:
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
