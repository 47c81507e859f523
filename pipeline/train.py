"""train: training rows become a student that answers and explains, and a baseline that only answers.

    -> {"id": "9f../label", "example": "9f..", "task": "label", "split": "train", "tokens": 2}      for each row that reached the trainer

Beside these rows the folder holds::

    student/            a checkpoint like any other: config, weights (in the type they were stored in), tokenizer; what it was trained on
    baseline/           the same start trained on the labels alone, as plain fine-tuning would: same examples, epochs and seed
    metrics.jsonl       {"model": "student", "step": 24, "epoch": 1.0, "loss": .., "label_loss": .., "validation_label_loss": .., ..}
    run-train.json      speeds, which no result depends on

While it works, ``checkpoints-<model>`` holds what an interrupted training goes on from; started again with the same settings it ends with
the same weights and metrics as if it had not been stopped.

A row that is longer than ``max_length`` tokens is dropped, with its example's other rows, unless ``too_long: cut`` says otherwise.
Limits: rows and their tokens are held in memory. Two machines of different kind do not train to the same bytes.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import msgspec
from pydantic import Field, JsonValue, TypeAdapter
from pydantic_core import to_jsonable_python

from pipeline import labels, terms
from pipeline.adapters import Adapter, merge, wrap
from pipeline.binding import From, InputPath
from pipeline.encoding import SPLITS, Encoded, Encoding, Fraction, TooLong, encode
from pipeline.files import InputError, RunError, canonical_json, plain, read_jsonl, sha256, strict_json, write_json
from pipeline.fit import (
    CITATION,
    METRICS,
    SPEEDS,
    Attention,
    Keep,
    Precision,
    Recipe,
    Start,
    counts,
    fit,
    for_each,
    parameters,
)
from pipeline.fit import (
    precision as computed_in,
)
from pipeline.formats import Format, add_prefixes
from pipeline.labels import LabelType
from pipeline.launch import launch
from pipeline.model_folder import finish
from pipeline.outputs import MANIFEST, Job, Totals, read_manifest
from pipeline.progress import say_line
from pipeline.records import Drop, Target, Trained, TrainingRow
from pipeline.student import Student, StudentSettings, facts, identity, load, quiet
from pipeline.terms import OutputTerms

__all__ = ["CITATION", "METRICS", "SPEEDS", "identity", "models", "permitted", "train", "train_on_shards"]

STUDENT, BASELINE = "student", "baseline"
MODELS = (STUDENT, BASELINE)
SETTINGS = "settings.json"
DEFAULT_STUDENT = StudentSettings.model_validate({"from": "embedded", "layers": 8})
IN_CARD = ("alpha", "epochs", "learning_rate", "warmup", "batch_size", "accumulation", "seed", "precision", "keep")
Positive = Annotated[int, Field(gt=0)]


@dataclass(frozen=True)
class Plan:
    """All that a training needs beside its rows: which student, what it learns of them, and how."""

    student: StudentSettings
    tasks: list[Target]
    recipe: Recipe
    label_type: LabelType
    max_length: int | None
    too_long: TooLong
    fraction: float
    temperature: float
    template: Literal["text", "chat"]
    prefixes: Literal["text", "tokens"]
    adapter: Adapter | None
    processes: int
    accelerate: Path | None
    card: dict[str, Any] = field(default_factory=dict)


def train(
    job: Job,
    *,
    student: Student = DEFAULT_STUDENT,
    template: Literal["text", "chat"] = "text",
    prefixes: Literal["text", "tokens"] = "text",
    adapter: Adapter | None = None,
    targets: Annotated[list[Target], Field(min_length=1)] | None = None,
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5,
    temperature: Annotated[float, Field(gt=0)] = 1.0,
    fraction: Fraction = 1.0,
    epochs: Annotated[float, Field(gt=0)] = 3,
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4,
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    batch_size: Positive = 16,
    accumulation: Positive = 1,
    max_length: Positive | None = None,
    too_long: TooLong = "drop",
    seed: Annotated[int, Field(ge=0)] = 0,
    baseline: bool = True,
    evaluate_every: Positive | None = None,
    patience: Positive | None = None,
    keep: Keep = "best",
    precision: Precision = "auto",
    gradient_checkpointing: bool = False,
    compile: bool = False,
    liger: bool = False,
    attention: Attention = "auto",
    packing: bool = True,
    processes: Positive = 1,
    accelerate: InputPath | None = None,
    log_every: Positive = 5,
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 60,
    report_to: list[str] | None = None,
    accept_terms: Annotated[str, Field(min_length=1, pattern=r"\S")] | None = None,
    task_targets: Annotated[list[Target] | None, From("task.targets")],
    label_type: Annotated[LabelType | None, From("stages.parse.label_type")],
    output_terms: Annotated[Mapping[str, OutputTerms], From("stages.sample.teacher.terms")],
) -> Generator[Trained | Drop, None, Totals]:
    """Train the student and, where there are labels and rationales to learn, the label-only baseline.

    ``template``: rows are given as text, or as the user's turn in the student's chat template. ``prefixes``: they are text, or tokens
    of their own. ``adapter``: lora, dora or qlora is trained instead of all weights, and merged afterwards. ``targets``: the tasks that
    are learned, of those that the rows have; all of them where none is named. ``alpha`` weighs the label loss against the rationale
    loss (1: labels only); other combinations of targets weigh the same. ``temperature`` flattens (above 1) or sharpens distributions
    over labels, where the shards have them. ``fraction``: the share of the training examples that is used; a smaller one is part of a
    larger one with the same seed. The learning rate rises over the share ``warmup`` of all steps, then falls to 0. A step takes
    ``batch_size`` x ``accumulation`` examples, over all processes, each with all its rows. ``max_length`` counts the tokens of prompt
    and completion; None is the student's context. ``too_long``: such rows are dropped, or trained without their end. Validation, every
    ``evaluate_every`` steps or at the end of each epoch, measures losses and how many labels (or whatever the first target is) the
    student writes right; ``patience``: after so many validations without a better one training ends; ``keep``: the weights of the best
    validation, or the last. ``precision`` "auto" computes in bfloat16 where the hardware does; weights are kept in float32 meanwhile.
    ``compile`` (torch.compile), ``liger`` (Liger kernels), ``attention`` and ``gradient_checkpointing`` pass through to transformers.
    ``packing``: sequences of unlike length share rows. ``processes``: so many on this machine, which share each step; ``accelerate``: a
    file that `accelerate config` wrote, for FSDP, DeepSpeed or several machines. ``log_every`` counts steps; a checkpoint is made at a
    logged step when the last is older than ``checkpoint_seconds``. ``report_to`` names transformers' integrations ("tensorboard",
    "wandb"). ``accept_terms``: why it is trained on outputs of a teacher whose terms forbid that, or are unknown. Raises InputError
    where student, rows or settings cannot be used, and without a reason where terms ask for one.
    """
    settings = dict(locals())  # by their names, as `planned` takes them
    permitted(settings)
    for condition in terms.conditions(output_terms):
        say_line(f"train: obligations of {condition}")
    shards = job.inputs["shard"]
    rows = list(read_shards(shards))
    plan = planned(rows, settings)
    plan = replace(plan, card=_card(shards, student, plan.recipe, output_terms, accept_terms))
    fates, details = _train(rows, plan, job.folder, shards, baseline=baseline)
    yield from fates
    return Totals(len(fates), details)


def planned(rows: Sequence[TrainingRow], settings: Mapping[str, Any]) -> Plan:
    """How ``rows`` are trained by ``settings``, all those of `train` by name, but for what cards say. Raises InputError."""
    for_each(settings["batch_size"], settings["processes"])
    asked = {
        **settings,
        "tasks": _tasks(rows, settings["targets"], settings["task_targets"]),
        "label_type": settings["label_type"] or "text",
        "report_to": tuple(settings["report_to"] or ()),
    }
    asked["recipe"] = Recipe(**{one.name: asked[one.name] for one in fields(Recipe)})
    return Plan(**{one.name: asked[one.name] for one in fields(Plan) if one.name in asked})


def permitted(settings: Mapping[str, Any]) -> None:
    """Raises InputError where the terms of a teacher's outputs forbid the training or are unknown, and no reason is given."""
    terms.permit(settings["output_terms"], settings["accept_terms"], "stages.train.accept_terms")


def models(settings: Mapping[str, Any], identities: Mapping[str, Any]) -> dict[str, dict[str, JsonValue]]:
    """Further facts about the student's start: its files or commit, its licence where it is known, which of its layers were kept."""
    return {STUDENT: facts(settings["student"], identities[STUDENT])}


def train_on_shards(shards: Path, *, out: Path, student: StudentSettings, **settings: Any) -> dict[str, Any]:
    """What the stage does, on any folder of shards and into any folder; ``settings`` are those of `train`. Facts about the models.

    ``out`` is a new folder, or one where the same training was interrupted or finished; ``settings.json`` there says what was trained,
    on what, under which terms. Raises InputError, also where ``out`` holds anything else.
    """
    files = shard_files(shards)
    found = terms_of_shards(shards)
    terms.permit(found, settings.get("accept_terms"), str(shards))
    settings["output_terms"] = found
    if settings.get("label_type") is None and (shards / MANIFEST).is_file():
        settings["label_type"] = read_manifest(shards).settings.get("label_type")
    stated = {name: terms.recorded(one) for name, one in found.items()}
    asked = {
        "identity": identity(student),
        "settings": to_jsonable_python({"student": student, **settings, "output_terms": stated}),
        "shards": {path.name: sha256(path) for path in files},
    }
    note = out / SETTINGS
    if note.is_file():
        if canonical_json(strict_json(note.read_bytes())) != canonical_json(asked):
            raise InputError(f"{out}: holds a training with other settings or rows; remove it or choose another folder")
    elif out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: this folder is not empty; choose another")
    elif out.exists() and not out.is_dir():
        raise InputError(f"{out}: not a folder; choose another")
    else:
        out.mkdir(parents=True, exist_ok=True)
        write_json(note, asked)
    rows = train(Job(out, {"shard": shards}, out), student=student, **settings)
    dropped: dict[str, int] = {}
    while True:
        try:
            row = next(rows)
        except StopIteration as end:
            totals: Totals = end.value
            return {"rows": totals.rows_in, "dropped": dropped, **totals.details}
        if isinstance(row, Drop):
            dropped[row.reason] = dropped.get(row.reason, 0) + 1


def terms_of_shards(shards: Path) -> dict[str, OutputTerms]:
    """The terms by teacher that the manifest beside the shards names; unknown where there is none. Raises RunError for a damaged one."""
    there = (shards / MANIFEST).is_file()
    return terms.of_manifest(read_manifest(shards).settings if there else {})


def citation(shards: Path) -> dict[str, JsonValue]:
    """What a model's folder says of the rows it was trained on: their manifest, or where there is none, their files' SHA-256."""
    if not (shards / MANIFEST).is_file():
        return {"files": {path.name: sha256(path) for path in shard_files(shards)}}
    manifest = read_manifest(shards)
    return {"stage": manifest.stage, "key": manifest.key, "manifest": sha256(shards / MANIFEST), "root": manifest.root}


def shard_files(folder: Path) -> list[Path]:
    """The row files of a folder of shards, training rows first. Raises InputError where there are none to train on."""
    found = [path for split in SPLITS for path in sorted(folder.glob(f"{split}-*.jsonl"))]
    if not any(path.name.startswith("train-") for path in found):
        raise InputError(f"{folder}: no train-*.jsonl here; name a folder that the shard stage wrote")
    return found


def read_shards(folder: Path) -> Iterator[TrainingRow]:
    """The rows of a folder of shards. Raises InputError that names file, line and field where one is not a training row."""
    for path in shard_files(folder):
        for number, row in read_jsonl(path):
            try:
                yield msgspec.convert(row, TrainingRow)
            except msgspec.ValidationError as error:
                raise InputError(f"{path}:{number}: {plain(str(error))}; name a folder of training rows") from None


def _tasks(
    rows: Sequence[TrainingRow], targets: list[Target] | None, task_targets: list[Target] | None
) -> list[Target]:
    """What is learned, the first of it what validation asks for. Raises InputError for a target that no row has."""
    there: list[Target] = [task for task in get_args(Target) if any(row.task == task for row in rows)]
    for target in targets or ():
        if target not in there:
            known = ", ".join(there) or "none"
            raise InputError(f"train.targets: {target}: no row has this task (there are: {known}); see task.targets")
    return list(dict.fromkeys(targets or task_targets or there))


def _train(
    rows: list[TrainingRow], plan: Plan, out: Path, shards: Path, *, baseline: bool
) -> tuple[list[Trained | Drop], dict[str, object]]:
    """Train all models into ``out``, going on from what an interrupted call with the same arguments left there.

    What became of each row, and facts about the models. Raises InputError and RunError.
    """
    for left in out.glob(".*.tmp"):  # half-written by a process that was killed
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    with quiet():
        first, encoded = prepare(rows, plan)
        start: Start | None = first
        found: dict[str, JsonValue] = {}
        for name, weights in wanted(plan, baseline=baseline).items():
            if not (out / name).is_dir():
                _fit(name, weights, start or _start(plan), encoded, plan, out, shards)
            start = None  # it has been trained, so the next one starts from a fresh copy
            _clear(out / f"checkpoints-{name}")
            found[name] = _facts(out, name)
    fates = encoded.fates
    tokens = {
        task: sum(row.tokens for row in fates if isinstance(row, Trained) and row.task == task) for task in plan.tasks
    }
    details: dict[str, object] = {
        "models": found,
        "examples": counts(encoded.examples),
        "target_tokens": tokens,
        "cut": encoded.cut,
        "precision": computed_in(plan.recipe.precision),
    }
    return fates, details


def _clear(folder: Path) -> None:
    """Remove a folder of checkpoints, whole: what is left of it would count as part of the result. Raises OSError that names it."""
    try:
        if folder.exists():
            shutil.rmtree(folder)
    except OSError as error:  # of a file inside, by its bare name
        raise OSError(error.errno, error.strerror, str(folder)) from None


def wanted(plan: Plan, *, baseline: bool) -> dict[str, dict[Target, float]]:
    """Which models are trained, and how much each task weighs in their loss."""
    found: dict[str, dict[Target, float]] = {STUDENT: _weights(plan.tasks, plan.recipe.alpha)}
    if baseline and {"label", "rationale"} <= set(plan.tasks):
        found[BASELINE] = {"label": 1.0}
    return found


def _card(
    shards: Path,
    student: StudentSettings,
    recipe: Recipe,
    output_terms: Mapping[str, OutputTerms] | None,
    accept_terms: str | None,
) -> dict[str, Any]:
    """What the cards of all models say alike."""
    settings = read_manifest(shards).settings if (shards / MANIFEST).is_file() else {}
    known = identity(student)
    return {
        "title": settings.get("task"),
        "base": known,
        "start": facts(student, known),
        "settings": {name: value for name, value in asdict(recipe).items() if name in IN_CARD},
        "terms": {name: terms.recorded(one) for name, one in (output_terms or {}).items()},
        "accept_terms": accept_terms,
    }


def prepare(rows: Iterable[TrainingRow], plan: Plan) -> tuple[Start, Encoded]:
    """The student before its training, and the rows as its tokens. Raises InputError where nothing can be trained."""
    start = _start(plan)
    context = getattr(start.model.config.get_text_config(), "max_position_embeddings", None)
    if plan.max_length and context and plan.max_length > context:
        problem = f"{plan.max_length} is more than the student's context of {context} tokens; lower it"
        raise InputError(f"train.max_length: {problem}")
    encoding = Encoding(
        prompt_ids=lambda text: start.format.prompt_ids(start.tokenizer, text),
        completion_ids=lambda text: start.format.completion_ids(start.tokenizer, text),
        tasks=plan.tasks,
        max_length=plan.max_length or context,
        too_long=plan.too_long,
        fraction=plan.fraction,
        seed=plan.recipe.seed,
        temperature=plan.temperature,
        apart=start.format.encoder_decoder,
    )
    encoded = encode(rows, encoding)
    reasons = Counter(row.reason for row in encoded.fates if isinstance(row, Drop))
    if not encoded.examples["train"]:
        told = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items()) or "all are validation rows"
        raise InputError(f"train: no rows to train on are left of {len(encoded.fates):,} ({told})")
    if reasons["too_long"]:
        limit = "max_length" if plan.max_length else "the student's context"
        say_line(
            f"train: {reasons['too_long']:,} rows are dropped: their example is longer than {limit}, {encoding.max_length} tokens"
        )
    if encoded.cut:
        say_line(f"train: {encoded.cut:,} rows are trained without their end: longer than {encoding.max_length} tokens")
    return start, encoded


def _start(plan: Plan) -> Start:
    model, tokenizer, stored = load(plan.student)
    asked = Format(
        template=plan.template,
        prefixes=plan.prefixes,
        tasks=tuple(plan.tasks),
        encoder_decoder=bool(model.config.is_encoder_decoder),
    )
    tokens = add_prefixes(model, tokenizer, asked)
    if plan.adapter is not None:
        computed: Literal["float32", "bfloat16"] = (
            "float32" if computed_in(plan.recipe.precision) == "float32" else "bfloat16"
        )
        model = wrap(model, plan.adapter, tokens=tokens, seed=plan.recipe.seed, compute=computed)
    return Start(model, tokenizer, stored, asked)


def _fit(
    name: str, weights: Mapping[Target, float], start: Start, encoded: Encoded, plan: Plan, out: Path, shards: Path
) -> None:
    """Train one model in this process, or in several others."""
    say_line(f"train {name}: computes in {computed_in(plan.recipe.precision)}")
    if plan.processes > 1 or plan.accelerate is not None:
        job = Shared(name, {**weights}, plan, out, shards)
        launch(TypeAdapter(Shared).dump_json(job), out / f"checkpoints-{name}", plan.processes, plan.accelerate)
        if not (out / name).is_dir():
            raise RunError(f"train {name}: its processes ended without a model; what they said stands above")
        return
    fit_here(name, weights, start, encoded, plan, out, shards)


def fit_here(
    name: str, weights: Mapping[Target, float], start: Start, encoded: Encoded, plan: Plan, out: Path, shards: Path
) -> None:
    """Train one model, this process being the only one or one of several that do the same."""

    def save(model: Any, folder: Path) -> None:
        import torch

        whole = model if plan.adapter is None else merge(model)
        whole.to(getattr(torch, start.stored)).save_pretrained(folder)
        own = [one for example in encoded.examples["train"] for one in example.sequences]
        told = {
            **plan.card,
            "name": name,
            "tasks": [*weights],
            "examples": counts(encoded.examples),
            "target_tokens": {
                task: sum(one.targets for one in own if plan.tasks[one.task] == task) for task in weights
            },
            "trained_on": citation(shards),
        }
        finish(
            folder,
            tokenizer=start.tokenizer,
            asked=start.format.model_copy(update={"tasks": tuple(weights)}),
            card=told,
        )

    fit(name, weights, plan.tasks, encoded.examples, start, out, plan.recipe, citation(shards), _judge(plan), save)


@dataclass(frozen=True)
class Shared:
    """What each of several processes is told of the training that they share."""

    name: str
    weights: dict[Target, float]
    plan: Plan
    out: Path
    shards: Path


def share(job: bytes) -> None:
    """Be one of the processes of a training. Raises InputError and RunError as `train` does."""
    told = TypeAdapter(Shared).validate_json(job)
    with quiet():
        start, encoded = prepare(read_shards(told.shards), told.plan)
        fit_here(told.name, told.weights, start, encoded, told.plan, told.out, told.shards)


def _judge(plan: Plan) -> Callable[[str, str], bool] | None:
    """Whether a text that the student wrote for its first target is right; None for targets that have no single right answer."""
    if plan.tasks[0] != "label":
        return None
    return lambda said, true: labels.same(said.strip(), true.strip(), plan.label_type)


def _weights(tasks: Sequence[Target], alpha: float) -> dict[Target, float]:
    if set(tasks) == {"label", "rationale"}:
        return {task: alpha if task == "label" else 1 - alpha for task in tasks}
    return {task: 1 / len(tasks) for task in tasks}


def _facts(out: Path, name: str) -> dict[str, JsonValue]:
    """What the manifest says of a finished model: its size, and the last figure of each kind in its metrics."""
    config = strict_json((out / name / "config.json").read_bytes())
    facts: dict[str, JsonValue] = {"layers": config.get("num_hidden_layers"), "parameters": parameters(out / name)}
    for _, row in read_jsonl(out / METRICS):
        if row["model"] == name:
            facts |= {
                field: value
                for field, value in row.items()
                if field.endswith(("loss", "accuracy")) or field in ("step", "epoch", "tokens")
            }
    return facts
