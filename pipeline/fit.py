"""One model is trained: from encoded examples to a folder that appears when it is whole, going on from what an interrupted call left.

While it works, ``checkpoints-<model>`` beside that folder holds what it goes on from: checkpoints of the trainer, the weights of the best
validation so far, and which rows it has seen. Limits: under FSDP or DeepSpeed the best weights are gathered on one process.
"""

import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import JsonValue

from pipeline.encoding import SPLITS, Example
from pipeline.files import (
    InputError,
    RunError,
    atomic,
    canonical_json,
    make_folder,
    plain,
    read_jsonl,
    strict_json,
    sync_files,
    sync_folder,
    write_json,
)
from pipeline.formats import Format
from pipeline.progress import bar, say_line
from pipeline.records import Target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from pipeline.trainer import Layout

CITATION = "provenance.json"  # in each model's folder, and in that of its checkpoints
METRICS = "metrics.jsonl"
SPEEDS = "run-train.json"
BEST = "best.safetensors"
SHORT = 256  # tokens; up to here plain attention's memory does not matter
FLASH = "flash"
Precision = Literal["auto", "bfloat16", "float16", "float32"]
Attention = Literal["auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"]
Keep = Literal["best", "last"]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; `train` says what each setting means."""

    alpha: float
    epochs: float
    learning_rate: float
    warmup: float
    batch_size: int
    accumulation: int
    seed: int
    precision: Precision
    gradient_checkpointing: bool
    compile: bool
    liger: bool
    attention: Attention
    packing: bool
    log_every: int
    evaluate_every: int | None
    patience: int | None
    keep: Keep
    checkpoint_seconds: float
    report_to: tuple[str, ...]


@dataclass(frozen=True)
class Start:
    """What a training starts from: the model, its tokenizer, the type its weights were stored in, and how it is asked."""

    model: Any  # of transformers, or wrapped by peft
    tokenizer: "PreTrainedTokenizerBase"
    stored: str
    format: Format

    @property
    def end(self) -> int:
        """The token that ends an answer."""
        return self.format.end_token_id(self.tokenizer)


def fit(
    name: str,
    weights: Mapping[Target, float],
    tasks: Sequence[Target],
    examples: Mapping[str, list[Example]],
    start: Start,
    out: Path,
    recipe: Recipe,
    citation: Mapping[str, JsonValue],
    right: Callable[[str, str], bool] | None,
    save: Callable[[Any, Path], None],
) -> None:
    """Train one model on the tasks that ``weights`` names into ``out/<name>``, which appears when it is whole.

    ``tasks`` are those of the examples, in order. ``citation`` says what rows these are. ``right`` says whether a generated text answers a
    validation example. ``save`` writes the trained model into a folder. Raises InputError where the checkpoints there are of other rows,
    RunError where the training fails.
    """
    import torch
    from datasets import Dataset
    from transformers import Seq2SeqTrainingArguments
    from trl import SFTConfig

    from pipeline.trainer import EMPTY, DecoderTrainer, EncoderDecoderTrainer, Pace, item, newest_checkpoint

    work = out / f"checkpoints-{name}"
    _cite(work, citation)
    model, pairs = start.model, bool(start.model.config.is_encoder_decoder)
    chosen = [tasks.index(task) for task in weights]
    items = [item(example, chosen) for example in examples["train"]]
    validation = [_only(example, chosen) for example in examples["validation"]]
    layout = laid_out(name, start, items, recipe)
    told = _arguments(name, work, recipe)
    try:
        arguments: Any = Seq2SeqTrainingArguments(**told) if pairs else SFTConfig(**told, max_length=None)
    except (ImportError, ValueError) as error:
        raise InputError(f"train: {plain(str(error), 300)}; see train.precision and train.compile") from None
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # TRL refuses transformers' way of using several in one process
    began = time.monotonic()
    steps = total_steps(len(items), recipe)
    done = 0
    with bar(f"train {name}", steps, "steps") as advance:

        def tell(state: Any) -> None:
            nonlocal done
            loss = next((entry["loss"] for entry in reversed(state.log_history) if "loss" in entry), None)
            advance(state.global_step - done, "" if loss is None else f"loss {loss:.3f}")
            done = state.global_step

        def note(state: Any) -> None:
            if state.is_world_process_zero:
                _write_metrics(out, name, state.log_history)

        def ends(state: Any) -> bool:
            best = best_step(state.log_history)
            if recipe.keep == "best" and best == state.global_step:
                _write_best(trainer, work)
            return recipe.patience is not None and since(state.log_history, best) >= recipe.patience

        kind = EncoderDecoderTrainer if pairs else DecoderTrainer
        pace = Pace(
            log_every=recipe.log_every,
            evaluate_every=recipe.evaluate_every,
            checkpoint_seconds=recipe.checkpoint_seconds,
            validates=bool(validation),
            tell=tell,
            note=note,
            ends=ends,
        )
        try:
            trainer: Any = kind(
                model=model,
                args=arguments,
                weights=dict(weights.items()),
                examples=len(items),
                validation=validation,
                right=right if validation and next(iter(weights)) == tasks[0] else None,
                end=start.end,
                layout=layout,
                processing_class=start.tokenizer,
                train_dataset=Dataset.from_dict(
                    {field: [given[field] for given in [*items, EMPTY]] for field in EMPTY}
                ),
                callbacks=[pace],
            )
        except (ImportError, RuntimeError, ValueError) as error:  # a package or a device that a setting asks for
            raise InputError(
                f"train: {plain(str(error), 300)}; see train.liger, train.compile and train.report_to"
            ) from None
        checkpoint = newest_checkpoint(work)
        if checkpoint is not None:
            say_line(f"train {name}: going on from step {checkpoint.name.rpartition('-')[2]}")
        try:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except ImportError as error:
            raise InputError(f"train: {plain(str(error), 300)}") from None
        except torch.OutOfMemoryError:
            raise RunError(
                "train: out of GPU memory; lower 'batch_size' and raise 'accumulation' by the same factor"
            ) from None
    history = trainer.state.log_history
    best = best_step(history)
    kept = best if recipe.keep == "best" and best is not None else trainer.state.global_step
    trained = _trained(trainer, work / BEST if kept == best and recipe.keep == "best" else None)
    if trained is None:
        return  # another process has it
    _write_metrics(out, name, history)
    _keep(trained, out / name, citation, save)
    _tell(out, name, trainer, steps, kept, time.monotonic() - began)


def laid_out(name: str, start: Start, items: Sequence[Mapping[str, Any]], recipe: Recipe) -> "Layout":
    """How the sequences of ``items`` will lie in batches; the model is given the attention that it will be trained with.

    Raises InputError where it does not have the attention that is asked for.
    """
    import torch

    from pipeline.trainer import Layout, packs

    model, pairs = start.model, bool(start.model.config.is_encoder_decoder)
    longest = max((len(ids) for given in items for ids in given["ids"]), default=1)
    if recipe.attention != "auto":
        _attend(model, recipe.attention)
    elif not torch.cuda.is_available() and longest <= SHORT and not pairs:
        # On a CPU the fused attention is slower on its way back: a quarter of a step with short rows.
        model.set_attn_implementation("eager")
    packed = recipe.packing and not pairs and packs(model)
    if recipe.packing and not pairs and not packed:
        say_line(f"train {name}: rows are padded, not packed: this model does not keep sequences in one row apart")
    attention = str(getattr(model.config, "_attn_implementation", ""))
    padding = start.tokenizer.pad_token_id
    return Layout(padding if padding is not None else start.end, packed, packed and attention.startswith(FLASH))


def _arguments(name: str, work: Path, recipe: Recipe) -> dict[str, Any]:
    """What transformers' trainers are told. `Pace` decides when to log, to validate and to save."""
    import torch

    size = for_each(recipe.batch_size, int(os.environ.get("WORLD_SIZE", "1")))
    computed = precision(recipe.precision)
    return {
        "output_dir": str(work),
        "num_train_epochs": recipe.epochs,
        "per_device_train_batch_size": size,
        "per_device_eval_batch_size": size,
        "gradient_accumulation_steps": recipe.accumulation,
        "gradient_checkpointing": recipe.gradient_checkpointing,
        "torch_compile": recipe.compile,
        "use_liger_kernel": recipe.liger,
        "learning_rate": recipe.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": recipe.warmup,  # below 1, so a share
        "optim": "adamw_torch_fused",
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "bf16": computed == "bfloat16",
        "fp16": computed == "float16",
        "ddp_find_unused_parameters": False,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": torch.cuda.is_available(),
        "include_num_input_tokens_seen": "non_padding",
        "logging_strategy": "no",
        "eval_strategy": "no",
        "save_strategy": "no",
        "logging_nan_inf_filter": False,
        "disable_tqdm": True,
        "report_to": list(recipe.report_to) or "none",
        "run_name": name,
    }


def for_each(batch_size: int, processes: int) -> int:
    """How many of the examples of a batch each process takes. Raises InputError where they do not divide."""
    if batch_size % processes:
        problem = f"{batch_size} examples do not divide among {processes} processes"
        raise InputError(f"train.batch_size: {problem}; give a multiple")
    return batch_size // processes


def precision(asked: Precision) -> str:
    """'bfloat16', 'float16' or 'float32': what "auto" stands for on this machine."""
    import torch

    if asked != "auto":
        return asked
    if torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "float32"


def _attend(model: Any, attention: Attention) -> None:
    try:
        model.set_attn_implementation(attention)
    except (ImportError, ValueError) as error:
        raise InputError(f"train.attention: {attention}: {plain(str(error), 160)}; leave it at auto") from None


def _only(example: Example, tasks: Sequence[int]) -> Example:
    """The example with the sequences of these tasks, numbered anew."""
    from dataclasses import replace

    kept = [one._replace(task=tasks.index(one.task)) for one in example.sequences if one.task in tasks]
    return replace(example, sequences=kept)


def total_steps(examples: int, recipe: Recipe) -> int:
    """Optimizer steps of the whole training, where it is not stopped early."""
    return math.ceil(recipe.epochs * math.ceil(math.ceil(examples / recipe.batch_size) / recipe.accumulation))


def best_step(history: Sequence[Mapping[str, Any]]) -> int | None:
    """The step of the best validation: the highest accuracy, then the lowest loss, then the first; None where there was none."""
    found = [entry for entry in history if "validation_loss" in entry]

    def good(entry: Mapping[str, Any]) -> tuple[float, float]:
        accuracy = next((value for field, value in entry.items() if field.endswith("_accuracy")), 0.0)
        return accuracy, -entry["validation_loss"]

    return max(found, key=good)["step"] if found else None


def since(history: Sequence[Mapping[str, Any]], step: int | None) -> int:
    """How many validations came after that step."""
    return sum("validation_loss" in entry and entry["step"] > (step or 0) for entry in history)


def _cite(work: Path, citation: Mapping[str, JsonValue]) -> None:
    """Note in a folder of checkpoints which rows they have seen. Raises InputError where they have seen others."""
    path = work / CITATION
    if path.is_file():
        if canonical_json(strict_json(path.read_bytes())) != canonical_json(dict(citation)):
            raise InputError(f"{work}: these checkpoints were trained on other rows; remove the folder")
        return
    make_folder(work)
    write_json(path, dict(citation))


def _write_best(trainer: Any, work: Path) -> None:
    """The weights that are trained, as they are now."""
    from safetensors.torch import save_file

    from pipeline.trainer import written_in

    weights = _weights(trainer)
    if weights is None:
        return
    temporary = work / f".{BEST}.tmp"
    with written_in(work):
        save_file(weights, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # a checkpoint that is whole goes on from these weights too
        temporary.replace(work / BEST)


def _weights(trainer: Any) -> dict[str, Any] | None:
    """The trained weights by name on the first process, None on the others."""
    import torch

    sharded = trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled
    model = trainer.accelerator.unwrap_model(trainer.model)
    names = {name for name, values in model.named_parameters() if values.requires_grad}
    if sharded:
        gathered = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        found = {name: values for name, values in gathered.items() if name in names}
    else:
        found = {name: values for name, values in model.named_parameters() if name in names}
    if not trainer.is_world_process_zero():
        return None
    return {name: values.detach().to("cpu", torch.float32).contiguous() for name, values in found.items()}


def _trained(trainer: Any, best: Path | None) -> Any:
    """The trained model on the first process, with the weights in ``best`` if that is given; None on the others."""
    weights = _weights(trainer) if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled else {}
    if not trainer.is_world_process_zero():
        return None
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    if best is not None:
        from safetensors.torch import load_file

        weights = load_file(best)
    if weights:
        model = model.cpu()
        model.load_state_dict(weights, strict=False)
    return model


def _keep(model: Any, target: Path, citation: Mapping[str, JsonValue], save: Callable[[Any, Path], None]) -> None:
    """Save a checkpoint, with what it was trained on, in one move: under a temporary name, synced, then renamed."""
    from pipeline.trainer import written_in

    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with written_in(target):
        save(model, temporary)
    write_json(temporary / CITATION, dict(citation))
    for path in temporary.iterdir():
        path.chmod(0o644)  # safetensors writes 0600, which would lock out others who read the run
    sync_files(temporary)
    temporary.rename(target)
    sync_folder(target.parent)


def _write_metrics(out: Path, name: str, history: list[dict[str, Any]]) -> None:
    """``metrics.jsonl`` with this model's lines replaced by its history; the student's come first. No figure depends on the clock."""
    from pipeline.trainer import SPEED

    path = out / METRICS
    others = [row for _, row in read_jsonl(path) if row["model"] != name] if path.is_file() else []
    lines = []
    for entry in history:
        figures = {
            _METRIC.get(field, field): _rounded(entry[field])
            for field in sorted(entry)
            if field not in ("step", "epoch", SPEED)
        }
        lines.append({"model": name, "step": entry["step"], "epoch": _rounded(entry["epoch"]), **figures})
    with atomic(path) as file:
        for line in sorted([*others, *lines], key=lambda row: row["model"] != "student"):
            file.write(json.dumps(line).encode() + b"\n")


_METRIC = {"num_input_tokens_seen": "tokens"}


def _rounded(value: float) -> float | None:
    """Six digits of it; None for the norm of a gradient that float16 could not hold, which is such a step's own."""
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _tell(out: Path, name: str, trainer: Any, steps: int, kept: int, seconds: float) -> None:
    """How fast it went, beside the other models' speeds, and in a line what came of it."""
    from pipeline.trainer import SPEED

    tokens = trainer.state.num_input_tokens_seen - trainer.tokens_before
    history = [entry for entry in trainer.state.log_history if SPEED in entry]
    path = out / SPEEDS
    known = strict_json(path.read_bytes()) if path.is_file() else {}
    speed = {
        "seconds": round(seconds, 1),
        "tokens": tokens,
        "tokens_per_second": round(tokens / seconds, 1),
        "logged": [{"step": entry["step"], "tokens_per_second": entry[SPEED]} for entry in history],
    }
    write_json(path, {**known, name: speed})
    taken = trainer.state.global_step
    early = f", stopped early of {steps:,}" if taken < steps else ""
    best = f", the best at step {kept:,} kept" if kept != taken else ""
    say_line(
        f"train {name}: {taken:,} steps{early}{best}; {tokens:,} tokens in {seconds:.0f} s ({tokens / seconds:,.0f} a second)"
    )


def parameters(folder: Path) -> int:
    """The number of weights in a checkpoint's files (tied ones stand there once)."""
    from safetensors import safe_open

    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            count += sum(math.prod(file.get_slice(field).get_shape()) for field in file.keys())  # noqa: SIM118 - no mapping
    return count


def counts(examples: Mapping[str, Sequence[Example]]) -> dict[str, int]:
    """Examples by split."""
    return {split: len(examples[split]) for split in SPLITS}
