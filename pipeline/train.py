"""train: training rows become a student that answers and explains, and a baseline that only answers.

    -> {"id": "9f../label", "example": "9f..", "task": "label", "split": "train", "tokens": 2}      for each row that reached the trainer

Beside these rows the folder holds::

    student/            a checkpoint like any other: config, weights (in the type they were stored in), tokenizer; what it was trained on
    baseline/           the same start trained on the labels alone, as plain fine-tuning would: same examples, epochs and seed
    metrics.jsonl       {"model": "student", "step": 24, "epoch": 1.0, "loss": .., "label_loss": .., "validation_label_loss": .., ..}
    run-train.json      speeds, which no result depends on

While it works, ``checkpoints-<model>`` holds what an interrupted training goes on from; started again with the same settings it ends with
the same metrics as if it had not been stopped.

A row that is longer than ``max_length`` tokens is dropped, with its example's other rows, never cut. Limits: rows and their tokens are
held in memory; on a machine with several GPUs one is used. Two machines of different kind do not train to the same bytes.
"""

import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import msgspec
from pydantic import Field, JsonValue

from pipeline import terms
from pipeline.binding import From
from pipeline.files import (
    InputError,
    RunError,
    atomic,
    canonical_json,
    plain,
    read_jsonl,
    sha256,
    strict_json,
    sync_folder,
    write_json,
)
from pipeline.outputs import MANIFEST, Job, Totals, read_manifest
from pipeline.progress import bar, say_line
from pipeline.records import Drop, Target, Trained, TrainingRow
from pipeline.shard import SPLITS
from pipeline.student import Student, StudentSettings, completion_ids, facts, identity, load, prompt_ids, quiet
from pipeline.terms import OutputTerms

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["fit", "identity", "models", "permitted", "train", "train_on_shards"]

STUDENT, BASELINE = "student", "baseline"
MODELS = (STUDENT, BASELINE)
CITATION = "provenance.json"  # in each model's folder
METRICS = "metrics.jsonl"
SPEEDS = "run-train.json"
SETTINGS = "settings.json"
SHORT = 256  # tokens; up to here plain attention's memory does not matter
DEFAULT_STUDENT = StudentSettings.model_validate({"from": "embedded", "layers": 8})
Precision = Literal["auto", "bfloat16", "float32"]
Positive = Annotated[int, Field(gt=0)]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; `train` says what each setting means."""

    alpha: float
    epochs: float
    learning_rate: float
    warmup: float
    batch_size: int
    accumulation: int
    max_length: int | None
    seed: int
    precision: Precision
    gradient_checkpointing: bool
    log_every: int
    checkpoint_seconds: float
    report_to: tuple[str, ...]


@dataclass(frozen=True)
class Fitted:
    """What became of each row, in the order of the rows, and facts about the models."""

    rows: list[Trained | Drop]
    details: dict[str, object]


@dataclass(frozen=True)
class Example:
    """One example's tokens by task, and how many at the end of each are learned."""

    ids: dict[Target, list[int]]
    targets: dict[Target, int]


def train(
    job: Job,
    *,
    student: Student = DEFAULT_STUDENT,
    alpha: Annotated[float, Field(ge=0, le=1)] = 0.5,
    epochs: Annotated[float, Field(gt=0)] = 3,
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4,
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1,
    batch_size: Positive = 16,
    accumulation: Positive = 1,
    max_length: Positive | None = None,
    seed: Annotated[int, Field(ge=0)] = 0,
    baseline: bool = True,
    precision: Precision = "auto",
    gradient_checkpointing: bool = False,
    log_every: Positive = 5,
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 60,
    report_to: list[str] | None = None,
    accept_terms: Annotated[str, Field(min_length=1, pattern=r"\S")] | None = None,
    targets: Annotated[list[Target] | None, From("task.targets")],
    output_terms: Annotated[Mapping[str, OutputTerms], From("stages.sample.teacher.terms")],
) -> Generator[Trained | Drop, None, Totals]:
    """Train the student and, where there are labels and rationales to learn, the label-only baseline.

    ``alpha`` weighs the label loss against the rationale loss (1: labels only); other combinations of targets weigh the same. The learning
    rate rises over the share ``warmup`` of all steps, then falls to 0. A step takes ``batch_size`` x ``accumulation`` examples, each with
    all its rows. ``max_length`` counts the tokens of prompt and completion; None is the student's context. ``precision`` "auto" computes in
    bfloat16 where the hardware does; weights are kept in float32 meanwhile. ``log_every`` counts steps; a checkpoint is made at a logged
    step when the last is older than ``checkpoint_seconds``. ``report_to`` names transformers' integrations ("tensorboard", "wandb").
    ``accept_terms``: why it is trained on outputs of a teacher whose terms forbid that, or are unknown. ``targets`` None takes the tasks
    that the rows have. Raises InputError where student, rows or settings cannot be used, and without a reason where terms ask for one.
    """
    permitted({"output_terms": output_terms, "accept_terms": accept_terms})
    for condition in terms.conditions(output_terms):
        say_line(f"train: obligations of {condition}")
    recipe = Recipe(
        alpha=alpha,
        epochs=epochs,
        learning_rate=learning_rate,
        warmup=warmup,
        batch_size=batch_size,
        accumulation=accumulation,
        max_length=max_length,
        seed=seed,
        precision=precision,
        gradient_checkpointing=gradient_checkpointing,
        log_every=log_every,
        checkpoint_seconds=checkpoint_seconds,
        report_to=tuple(report_to or ()),
    )
    rows = read_shards(job.inputs["shard"])
    fitted = fit(
        rows,
        student=student,
        out=job.folder,
        targets=targets,
        baseline=baseline,
        recipe=recipe,
        shards=job.inputs["shard"],
    )
    yield from fitted.rows
    return Totals(len(fitted.rows), fitted.details)


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
    stated = {name: terms.recorded(one) for name, one in found.items()}
    asked = {
        "identity": identity(student),
        "settings": {"student": student.model_dump(mode="json"), **settings, "output_terms": stated},
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


def fit(
    rows: Iterable[TrainingRow],
    *,
    student: StudentSettings,
    out: Path,
    targets: list[Target] | None,
    baseline: bool,
    recipe: Recipe,
    shards: Path,
) -> Fitted:
    """Train into ``out``, going on from what an interrupted call with the same arguments left there. Raises InputError and RunError."""
    for left in out.glob(".*.tmp"):  # half-written by a process that was killed
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    rows = list(rows)
    tasks: list[Target] = targets or [task for task in get_args(Target) if any(row.task == task for row in rows)]
    models: dict[str, dict[Target, float]] = {STUDENT: _weights(tasks, recipe.alpha)}
    if baseline and {"label", "rationale"} <= set(tasks):
        models[BASELINE] = {"label": 1.0}
    with quiet():
        model, tokenizer, stored = load(student)
        context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if recipe.max_length and context and recipe.max_length > context:
            problem = f"{recipe.max_length} is more than the student's context of {context} tokens; lower it"
            raise InputError(f"train.max_length: {problem}")
        fates, examples = encode(rows, tasks, tokenizer, recipe.max_length or context)
        if not examples["train"]:
            reasons = Counter(row.reason for row in fates if isinstance(row, Drop))
            told = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items()) or "all are validation rows"
            raise InputError(f"train: no rows to train on are left of {len(fates):,} ({told})")
        facts: dict[str, JsonValue] = {}
        for name, weights in models.items():
            if not (out / name).is_dir():
                _fit_one(name, weights, examples, model or load(student)[0], tokenizer, stored, out, recipe, shards)
            model = None  # it has been trained, so the next one starts from a fresh copy
            shutil.rmtree(out / f"checkpoints-{name}", ignore_errors=True)
            facts[name] = _facts(out, name)
    tokens = {task: sum(row.tokens for row in fates if isinstance(row, Trained) and row.task == task) for task in tasks}
    counts = {split: len(examples[split]) for split in SPLITS}
    return Fitted(
        fates, {"models": facts, "examples": counts, "target_tokens": tokens, "precision": _precision(recipe.precision)}
    )


def encode(
    rows: list[TrainingRow], tasks: list[Target], tokenizer: "PreTrainedTokenizerBase", max_length: int | None
) -> tuple[list[Trained | Drop], dict[str, list[Example]]]:
    """What becomes of each row, in order, and the examples of each split as tokens.

    An example is trained on with all its tasks or dropped with all its rows. Raises InputError where rows contradict one another.
    """
    groups: dict[str, dict[Target, TrainingRow]] = {}
    for row in rows:
        if row.task in groups.setdefault(row.example, {}):
            raise InputError(
                f"train: row {plain(row.id)}: task '{row.task}' of its example stands there twice; remove one"
            )
        groups[row.example][row.task] = row
    fates: dict[str, Trained | Drop] = {}
    examples: dict[str, list[Example]] = {split: [] for split in SPLITS}
    for name, group in groups.items():
        if len({row.split for row in group.values()}) > 1:
            raise InputError(f"train: example {plain(name)}: its rows stand in different splits; make the shards anew")
        reason, evidence, example = _judge(group, tasks, tokenizer, max_length)
        for task, row in group.items():
            if task not in tasks:
                fates[row.id] = Drop(id=row.id, reason="not_a_target", evidence={"targets": [*tasks]})
            elif reason:
                fates[row.id] = Drop(id=row.id, reason=reason, evidence=evidence)
            else:
                fates[row.id] = Trained(
                    id=row.id, example=name, task=task, split=row.split, tokens=example.targets[task]
                )
        if not reason:
            examples[next(iter(group.values())).split].append(example)
    return [fates[row.id] for row in rows], examples


def _judge(
    group: Mapping[Target, TrainingRow],
    tasks: list[Target],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int | None,
) -> tuple[str, dict[str, JsonValue], Example]:
    """Why an example cannot be trained on ("" where it can), the evidence, and its tokens."""
    example = Example({}, {})
    missing: list[JsonValue] = [task for task in tasks if task not in group]
    if missing:
        return "missing_task", {"missing": missing}, example
    empty: list[JsonValue] = [task for task in tasks if not group[task].completion.strip()]
    if empty:
        return "empty_completion", {"empty": empty}, example
    for task in tasks:
        completion = completion_ids(tokenizer, group[task].completion)
        example.ids[task] = prompt_ids(tokenizer, group[task].prompt) + completion
        example.targets[task] = len(completion)
    lengths: dict[str, JsonValue] = {task: len(ids) for task, ids in example.ids.items()}
    if max_length is not None and max(len(ids) for ids in example.ids.values()) > max_length:
        return "too_long", {"tokens": lengths, "max_length": max_length}, example
    return "", {}, example


def _weights(tasks: list[Target], alpha: float) -> dict[Target, float]:
    if set(tasks) == {"label", "rationale"}:
        return {task: alpha if task == "label" else 1 - alpha for task in tasks}
    return {task: 1 / len(tasks) for task in tasks}


def _fit_one(
    name: str,
    weights: Mapping[Target, float],
    examples: Mapping[str, list[Example]],
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    stored: str,
    out: Path,
    recipe: Recipe,
    shards: Path,
) -> None:
    """Train one model into ``out/<name>``, which appears when it is whole."""
    import torch
    from datasets import Dataset
    from trl import SFTConfig

    from pipeline.trainer import Pace, StepByStepTrainer

    work = out / f"checkpoints-{name}"
    tables = {
        split: Dataset.from_dict(
            {
                "ids": [[example.ids[task] for task in weights] for example in examples[split]],
                "targets": [[example.targets[task] for task in weights] for example in examples[split]],
            }
        )
        for split in SPLITS
    }
    longest = max(len(ids) for table in examples.values() for example in table for ids in example.ids.values())
    if not torch.cuda.is_available() and longest <= SHORT:
        model.set_attn_implementation(
            "eager"
        )  # on a CPU the fused attention is slower on its way back: a quarter of a step with short rows
    arguments = SFTConfig(
        output_dir=str(work),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        gradient_accumulation_steps=recipe.accumulation,
        gradient_checkpointing=recipe.gradient_checkpointing,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=recipe.warmup,  # below 1, so a share
        seed=recipe.seed,
        data_seed=recipe.seed,
        bf16=_precision(recipe.precision) == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        max_length=None,
        include_num_input_tokens_seen="non_padding",
        # `Pace` decides when to log, to validate and to save.
        logging_strategy="no",
        eval_strategy="no",
        save_strategy="no",
        save_total_limit=1,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        report_to=list(recipe.report_to) or "none",
        run_name=name,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # TRL refuses transformers' way of using several in one process
    began = time.monotonic()
    done = 0
    with bar(f"train {name}", _steps(len(examples["train"]), recipe), "steps") as advance:

        def tell(state: Any) -> None:
            nonlocal done
            loss = next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), None)
            advance(state.global_step - done, "" if loss is None else f"loss {loss:.3f}")
            done = state.global_step

        trainer = StepByStepTrainer(
            model=model,
            args=arguments,
            weights=dict(weights.items()),
            padding=tokenizer.pad_token_id,
            processing_class=tokenizer,
            train_dataset=tables["train"],
            eval_dataset=tables["validation"] if examples["validation"] else None,
            callbacks=[
                Pace(
                    log_every=recipe.log_every,
                    checkpoint_seconds=recipe.checkpoint_seconds,
                    validates=bool(examples["validation"]),
                    tell=tell,
                    note=lambda state: _write_metrics(out, name, state.log_history),
                )
            ],
        )
        checkpoint = _checkpoint(work)
        if checkpoint is not None:
            say_line(f"train {name}: going on from step {checkpoint.name.rpartition('-')[2]}")
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except torch.OutOfMemoryError:
            raise RunError(
                "train: out of GPU memory; lower 'batch_size' and raise 'accumulation' by the same factor"
            ) from None
    _write_metrics(out, name, trainer.state.log_history)
    _keep(trainer.model.to(getattr(torch, stored)), tokenizer, out / name, shards)
    seconds = time.monotonic() - began
    tokens = trainer.state.num_input_tokens_seen - trainer.tokens_before
    speed = {"seconds": round(seconds, 1), "tokens": tokens, "tokens_per_second": round(tokens / seconds, 1)}
    _write_speed(out, name, speed)
    say_line(
        f"train {name}: {trainer.state.global_step:,} steps, {tokens:,} tokens in {seconds:.0f} s ({tokens / seconds:,.0f} a second)"
    )


def _steps(examples: int, recipe: Recipe) -> int:
    """Optimizer steps of the whole training on one device, for the progress bar."""
    return math.ceil(recipe.epochs * math.ceil(math.ceil(examples / recipe.batch_size) / recipe.accumulation))


def _keep(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", target: Path, shards: Path) -> None:
    """Save a checkpoint, with what it was trained on, in one move: under a temporary name, synced, then renamed."""
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    write_json(temporary / CITATION, citation(shards))
    for path in temporary.iterdir():
        path.chmod(0o644)  # safetensors writes 0600, which would lock out others who read the run
        with path.open("rb") as file:
            os.fsync(file.fileno())
    temporary.rename(target)
    sync_folder(target.parent)


def _checkpoint(work: Path) -> Path | None:
    """The newest complete checkpoint in ``work``; incomplete ones, and older ones, are removed."""
    found = sorted(work.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    newest: Path | None = None
    for path in found:
        try:
            state = strict_json((path / "trainer_state.json").read_bytes())  # transformers writes it last
            complete = newest is None and bool(state)
        except (OSError, ValueError):
            complete = False
        if complete:
            newest = path
        else:
            shutil.rmtree(path)
    return newest


def _write_metrics(out: Path, name: str, history: list[dict[str, Any]]) -> None:
    """``metrics.jsonl`` with this model's lines replaced by its history; the student's come first."""
    path = out / METRICS
    others = [row for _, row in read_jsonl(path) if row["model"] != name] if path.is_file() else []
    lines = []
    for entry in history:
        figures = {
            _METRIC.get(field, field): _rounded(entry[field])
            for field in sorted(entry)
            if field not in ("step", "epoch")
        }
        lines.append({"model": name, "step": entry["step"], "epoch": _rounded(entry["epoch"]), **figures})
    with atomic(path) as file:
        for line in sorted([*others, *lines], key=lambda row: row["model"] != STUDENT):
            file.write(json.dumps(line).encode() + b"\n")


_METRIC = {"num_input_tokens_seen": "tokens"}


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.6g}")


def _write_speed(out: Path, name: str, speed: dict[str, float]) -> None:
    path = out / SPEEDS
    known = strict_json(path.read_bytes()) if path.is_file() else {}
    write_json(path, {**known, name: speed})


def _facts(out: Path, name: str) -> dict[str, JsonValue]:
    """What the manifest says of a finished model: its size, and the last figure of each kind in its metrics."""
    config = strict_json((out / name / "config.json").read_bytes())
    facts: dict[str, JsonValue] = {"layers": config.get("num_hidden_layers"), "parameters": _parameters(out / name)}
    for _, row in read_jsonl(out / METRICS):
        if row["model"] == name:
            facts |= {
                field: value
                for field, value in row.items()
                if field.endswith("loss") or field in ("step", "epoch", "tokens")
            }
    return facts


def _parameters(folder: Path) -> int:
    """The number of weights in a checkpoint's files (tied ones stand there once)."""
    from safetensors import safe_open

    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            count += sum(math.prod(file.get_slice(field).get_shape()) for field in file.keys())  # noqa: SIM118 - no mapping
    return count


def _precision(asked: Precision) -> str:
    """'bfloat16' or 'float32': what "auto" stands for on this machine."""
    import torch

    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "float32"
