"""The loss of Distilling Step-by-Step in the trainers of TRL and transformers: every task of every example in each step, in one forward.

An item of the data set is an example with all its token sequences::

    {"ids": [[61, 72, ..], [83, 72, ..]], "targets": [2, 19], "tasks": [0, 1], "shares": [1.0, 1.0]}

The last 2 and the last 19 tokens are what is learned. The sums that the means are taken over are those of the whole optimizer step, so
the loss is the same whatever the micro-batches, the number of processes, the padding or the order. Only positions with a target go
through the vocabulary head: with a vocabulary of 49,000 and short answers that head is most of the work otherwise. Sequences of a decoder
are packed, several in a row, where the model gives the same answers then.

Limits: the auxiliary loss of mixture-of-experts models is left out.
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import Seq2SeqTrainer, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import SFTTrainer

from pipeline.encoding import Example
from pipeline.files import InputError, RunError, atomic, naming, plain, sync_files, sync_folder
from pipeline.generate import greedy
from pipeline.losses.step_by_step import step_by_step
from pipeline.packing import closest, pack

IGNORED = -100
WHOLE = "whole"  # an empty file in a checkpoint, made when all else in it is written and synced
Batch = dict[str, torch.Tensor]
EMPTY: dict[str, list[Any]] = {"ids": [], "targets": [], "tasks": [], "shares": []}  # adds nothing to any step
NOT_FOR_THE_MODEL = ("labels", "tasks", "shares")


class Layout(NamedTuple):
    """How sequences lie in a batch: the padding token, whether they share rows, and whether one row holds them all."""

    padding: int
    packed: bool = False
    one_row: bool = False


def item(example: Example, tasks: Sequence[int]) -> dict[str, list[Any]]:
    """An example as the data set holds it, with the sequences of ``tasks`` alone; these are numbered anew."""
    kept = [one for one in example.sequences if one.task in tasks]
    return {
        "ids": [one.ids for one in kept],
        "targets": [one.targets for one in kept],
        "tasks": [tasks.index(one.task) for one in kept],
        "shares": [one.share for one in kept],
    }


def collate(items: Sequence[Mapping[str, Any]], layout: Layout) -> Batch:
    """A batch for a decoder: everything is (rows, tokens).

    ``labels`` holds at each position the token that is to be predicted there, IGNORED where none is; ``tasks`` and ``shares`` belong to
    it. Packed batches have ``position_ids``, which start at 0 for each sequence.
    """
    sequences = [one for given in items for one in zip(*(given[field] for field in EMPTY), strict=True)]
    lengths = [len(ids) for ids, *_ in sequences]
    width = max(lengths, default=1)
    if layout.packed:
        rows = pack(lengths, sum(lengths)) if layout.one_row else closest(lengths)
        width = max((sum(lengths[place] for place in row) for row in rows), default=1)
    else:
        rows = [[place] for place in range(len(sequences))]
    shape = (max(len(rows), 1), width)
    batch = {
        "input_ids": torch.full(shape, layout.padding),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, IGNORED),
        "tasks": torch.zeros(shape, dtype=torch.long),
        "shares": torch.zeros(shape),
    }
    positions = torch.arange(width).repeat(shape[0], 1)
    for number, row in enumerate(rows):
        start = 0
        for place in row:
            ids, count, task, share = sequences[place]
            end = start + len(ids)
            batch["input_ids"][number, start:end] = torch.tensor(ids)
            batch["attention_mask"][number, start:end] = 1
            learned = slice(end - count - 1, end - 1)  # a token is predicted at the position before it
            batch["labels"][number, learned] = torch.tensor(ids[-count:])
            batch["tasks"][number, learned] = task
            batch["shares"][number, learned] = share
            positions[number, start:] = torch.arange(width - start)
            start = end
        positions[number, start:] = torch.arange(width - start)
    return {**batch, "position_ids": positions} if layout.packed else batch


def collate_pairs(items: Sequence[Mapping[str, Any]], layout: Layout, decoder_start: int) -> Batch:
    """A batch for an encoder-decoder: prompts go to the encoder, targets to the decoder, which sees the ones before."""
    sequences = [one for given in items for one in zip(*(given[field] for field in EMPTY), strict=True)]
    rows = max(len(sequences), 1)
    asked = max((len(ids) - count for ids, count, *_ in sequences), default=1)
    said = max((count for _, count, *_ in sequences), default=1)
    batch = {
        "input_ids": torch.full((rows, asked), layout.padding),
        "attention_mask": torch.zeros((rows, asked), dtype=torch.long),
        "decoder_input_ids": torch.full((rows, said), layout.padding),
        "labels": torch.full((rows, said), IGNORED),
        "tasks": torch.zeros((rows, said), dtype=torch.long),
        "shares": torch.zeros((rows, said)),
    }
    if not sequences:
        batch["attention_mask"][:] = 1
    batch["decoder_input_ids"][:, 0] = decoder_start
    for row, (ids, count, task, share) in enumerate(sequences):
        prompt, targets = torch.tensor(ids[:-count]), torch.tensor(ids[-count:])
        batch["input_ids"][row, : len(prompt)] = prompt
        batch["attention_mask"][row, : len(prompt)] = 1
        batch["decoder_input_ids"][row, 1:count] = targets[:-1]
        batch["labels"][row, :count] = targets
        batch["tasks"][row, :count] = task
        batch["shares"][row, :count] = share
    return batch


class Order(torch.utils.data.Sampler[int]):
    """The examples of an epoch in an order that ``seed`` and the epoch draw, filled up with ``empty`` to a multiple of ``together``."""

    def __init__(self, examples: int, *, seed: int, together: int, empty: int) -> None:
        self.examples, self.seed, self.together, self.empty, self.epoch = examples, seed, together, empty, 0

    def set_epoch(self, epoch: int) -> None:
        """Which epoch comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.examples / self.together) * self.together

    def __iter__(self) -> Iterator[int]:
        drawn = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        yield from torch.randperm(self.examples, generator=drawn).tolist()
        yield from [self.empty] * (len(self) - self.examples)


class _StepByStep(Trainer):  # type: ignore[misc, unused-ignore]
    """What both trainers share; it stands before one of transformers' trainers in a class's bases."""

    loss_is_scaled_for_ga = True  # the loss is divided by the sums of the whole step, below

    def __init__(
        self,
        *,
        weights: Mapping[str, float],
        examples: int,
        validation: Sequence[Example],
        right: Callable[[str, str], bool] | None,
        end: int,
        layout: Layout,
        args: Any,
        **kwargs: Any,
    ) -> None:
        """``weights``: each task's name and weight, in the order of their numbers. ``examples``: without the empty one, the last.

        ``right`` says whether a text that was generated for the first task answers a validation example; None generates nothing. ``end``
        is the token that ends an answer.
        """
        args.remove_unused_columns = False
        super().__init__(args=args, data_collator=self._collate, **kwargs)
        self.remove_callback(PrinterCallback)
        self.tasks = list(weights)
        self.examples, self.validation, self.right, self.end, self.layout = examples, validation, right, end, layout
        self.longest_answer = max((one.targets for example in validation for one in example.sequences), default=0)
        self._weights = torch.tensor(list(weights.values()), device=args.device)
        self._means, self._tokens, self._steps = torch.zeros_like(self._weights), torch.zeros_like(self._weights), 0
        self._since: tuple[float, int] | None = (
            None  # when the last figures were logged, and the tokens read until then
        )
        self._predicting: torch.Tensor | None = None
        self.model.get_output_embeddings().register_forward_pre_hook(self._keep_predicting)

    def _collate(self, items: Sequence[Mapping[str, Any]]) -> Batch:
        return collate(items, self.layout)

    def _get_train_sampler(self, train_dataset: Any = None) -> Order:
        together = self.args.per_device_train_batch_size * self.accelerator.num_processes
        if self.accelerator.num_processes == 1:
            together = 1
        return Order(self.examples, seed=self.args.seed, together=together, empty=self.examples)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: Any
    ) -> tuple[list[Batch], Any]:
        """The micro-batches of one optimizer step, and the sum of the shares of each task in all of them, on all processes."""
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        if not batches:
            return batches, None
        tokens = torch.stack([self._count(batch) for batch in batches]).sum(0).to(device)
        tokens = self.accelerator.reduce(tokens, "sum")
        self._steps += 1
        self._tokens = self._tokens + tokens
        if self._since is None:
            self._since = time.perf_counter(), self.state.num_input_tokens_seen
        return batches, tokens

    def _track_num_input_tokens(self, inputs: Batch) -> None:
        # A batch of nothing, which fills up the last step of several processes, may have a mask for the encoder's sake.
        filled = (inputs["labels"] != IGNORED).any()
        super()._track_num_input_tokens({**inputs, "attention_mask": inputs["attention_mask"] * filled})

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This micro-batch's part of the step's loss."""
        tokens = self._count(inputs) if num_items_in_batch is None else num_items_in_batch
        loss, means = self._forward(model, inputs, tokens)
        self._means += means
        # Gradients are averaged over the processes, but the sums are of all of them.
        return loss * self.accelerator.num_processes

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "validation"
    ) -> dict[str, float]:
        """Each task's mean loss over all targets of the validation rows, the weighted loss, and the first task's accuracy.

        The accuracy is of texts that the model writes itself, from the prompt on.
        """
        tokens = sums = torch.zeros_like(self._weights)
        size, ranks, rank = (
            self.args.per_device_eval_batch_size,
            self.accelerator.num_processes,
            self.args.process_index,
        )
        own = self.validation[rank::ranks]
        training = self.model.training
        self.model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            for start in range(0, math.ceil(len(self.validation) / ranks), size):
                items = [item(example, range(len(self.tasks))) for example in own[start : start + size]]
                inputs = self._prepare_inputs(self._collate(items))
                count = self._count(inputs)
                _, means = self._forward(self.model, inputs, count)
                tokens, sums = tokens + count, sums + means * count
            hits = self._hits(own) if self.right is not None else None
        self.model.train(training)
        tokens, sums = (self.accelerator.reduce(part, "sum") for part in (tokens, sums))
        means = sums / tokens.where(tokens > 0, 1)
        found = {
            f"{metric_key_prefix}_{task}_loss": mean for task, mean in zip(self.tasks, means.tolist(), strict=True)
        }
        if hits is not None:
            right = self.accelerator.reduce(torch.tensor(float(hits), device=self.args.device), "sum").item()
            found[f"{metric_key_prefix}_{self.tasks[0]}_accuracy"] = right / len(self.validation)
        found = {f"{metric_key_prefix}_loss": (self._weights * means).sum().item(), **found}
        self._check("loss", found[f"{metric_key_prefix}_loss"])
        self.log(found)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        self._since = None  # what validating takes is no part of the training's speed
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep what was measured, each task's loss and tokens with it. Raises RunError where loss or gradient is no number."""
        if "loss" in logs:
            means = (self.accelerator.reduce(self._means, "sum") / self._steps).tolist()
            logs |= {f"{task}_loss": mean for task, mean in zip(self.tasks, means, strict=True)}
            logs |= {
                f"{task}_tokens": round(count, 3) for task, count in zip(self.tasks, self._tokens.tolist(), strict=True)
            }
            self._means, self._tokens, self._steps = torch.zeros_like(self._means), torch.zeros_like(self._tokens), 0
            if self.args.fp16 and not math.isfinite(logs.get("grad_norm") or 0.0):
                del logs["grad_norm"]  # such a step is skipped, and the loss scaled down from then on
            self._check("loss", logs["loss"])
            self._check("gradient", logs.get("grad_norm") or 0.0)
            if self._since is not None:
                began, read = self._since
                seconds = max(time.perf_counter() - began, 1e-9)
                logs[SPEED] = round((self.state.num_input_tokens_seen - read) / seconds, 1)
            self._since = None
        elif "train_runtime" in logs:
            return
        self._plain_log(logs)

    def _check(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise RunError(
                f"train: the {what} is no longer a number at step {self.state.global_step}; lower 'learning_rate'"
            )

    def _plain_log(self, logs: dict[str, float]) -> None:
        super().log(logs)

    @property
    def tokens_before(self) -> int:
        """Tokens that were read before this start of the training."""
        return int(self._initial_num_input_tokens_seen)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        work = Path(self.args.output_dir)
        with written_in(work):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # each process writes a part of it
            if self.is_world_process_zero():
                saved = work / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
                sync_files(saved)
                sync_folder(work)
                with atomic(saved / WHOLE):
                    pass
                newest_checkpoint(work)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: a checkpoint here is only there to go on from."""

    def _send_telemetry(self) -> None:
        """Training tells nobody."""

    def _forward(self, model: Any, inputs: Batch, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        given = {name: values for name, values in inputs.items() if name not in NOT_FOR_THE_MODEL}
        if self.layout.packed:
            del given["attention_mask"]  # the positions tell where sequences begin
        predicting = inputs["labels"] != IGNORED
        with self._predicts(predicting):
            logits = model(**given, use_cache=False).logits
        targets, tasks, shares = (inputs[name][predicting] for name in NOT_FOR_THE_MODEL)
        return step_by_step(logits, targets, tasks, shares, tokens=tokens, weights=self._weights)

    @contextmanager
    def _predicts(self, positions: torch.Tensor) -> Iterator[None]:
        self._predicting = positions
        try:
            yield
        finally:
            self._predicting = None

    def _keep_predicting(self, head: Any, arguments: tuple[torch.Tensor, ...]) -> Any:
        """Before the vocabulary head: the hidden states that have a target, in a row. What the model does after it is left as it is."""
        if self._predicting is None:
            return None
        return (arguments[0][self._predicting], *arguments[1:])

    def _count(self, batch: Batch) -> torch.Tensor:
        return torch.stack([batch["shares"][batch["tasks"] == task].sum() for task in range(len(self.tasks))])

    def _hits(self, examples: Sequence[Example]) -> int:
        assert self.right is not None
        # A CPU would cast all weights anew for each token; so it writes in the weights' own precision.
        kind = self.args.device.type
        with torch.autocast(kind, enabled=kind != "cpu" and torch.is_autocast_enabled(kind)):
            said = greedy(
                self.accelerator.unwrap_model(self.model),
                self.processing_class,
                [example.prompt for example in examples],
                end=self.end,
                batch_size=2 * self.args.per_device_eval_batch_size,
                max_new_tokens=self.longest_answer,
            )
        return sum(
            answer.finished and self.right(answer.text or "", example.answer)
            for answer, example in zip(said, examples, strict=True)
        )


SPEED = "tokens_per_second"


class DecoderTrainer(_StepByStep, SFTTrainer):  # type: ignore[misc, unused-ignore]
    """For causal language models."""

    def __init__(self, *, args: Any, **kwargs: Any) -> None:
        args.dataset_kwargs = {"skip_prepare_dataset": True}
        super().__init__(args=args, **kwargs)

    def _plain_log(self, logs: dict[str, float]) -> None:
        super(SFTTrainer, self).log(logs)  # SFTTrainer's own adds its token accuracy, which is not computed here


class EncoderDecoderTrainer(_StepByStep, Seq2SeqTrainer):
    """For encoder-decoders: T5, FLAN-T5, BART."""

    def _collate(self, items: Sequence[Mapping[str, Any]]) -> Batch:
        start = self.model.config.decoder_start_token_id
        return collate_pairs(items, self.layout, self.layout.padding if start is None else start)


def newest_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint in ``work`` that is whole and synced; all others are removed."""
    found = sorted(
        work.glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True
    )
    newest = next((path for path in found if (path / WHOLE).is_file()), None)
    for path in found:
        if path != newest:
            shutil.rmtree(path, ignore_errors=True)
    return newest


@contextmanager
def written_in(folder: Path) -> Iterator[None]:
    """What torch, safetensors and tokenizers raise where a file cannot be written, each in its own way, as an error that names it."""
    try:
        with naming(folder):
            yield
    except (OSError, InputError, RunError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # noqa: BLE001 - tokenizers raises nothing narrower
        problem = plain(" ".join(str(error).split()), 160)
        raise RunError(
            f"{folder}: cannot be written ({problem}); check the path, its rights and the space there"
        ) from None


def packs(model: Any) -> bool:
    """Whether a decoder answers the same when sequences share a row, by trying: models with other memory than attention do not.

    What stands before a sequence must also leave no trace in it. A convolution of a young model leaves a faint one, so the two answers to
    the same sequence behind different ones are compared far more closely than those in a row of its own and in a shared one, where other
    shapes bring other sums.
    """
    words = min(model.config.get_text_config().vocab_size, 1000)
    drawn = torch.Generator().manual_seed(0)
    first, other, second = (torch.randint(words, (length,), generator=drawn) for length in (7, 7, 5))
    positions = torch.cat([torch.arange(len(one)) for one in (first, second)])[None].to(model.device)

    def answers(*sequences: torch.Tensor, **more: Any) -> torch.Tensor:
        given = torch.cat(sequences)[None].to(model.device)
        found: torch.Tensor = model(input_ids=given, use_cache=False, **more).logits[0].float()
        return found

    training, attention = model.training, str(getattr(model.config, "_attn_implementation", ""))
    model.eval()
    try:
        if attention.startswith("flash"):
            model.set_attn_implementation("sdpa")  # the model is not on a GPU yet; what it remembers by is the same
        with torch.no_grad():
            apart = torch.cat([answers(first), answers(second)])
            together, behind = (answers(one, second, position_ids=positions) for one in (first, other))
    except (TypeError, ValueError, RuntimeError):  # it takes no positions
        return False
    finally:
        model.train(training)
        if attention.startswith("flash"):
            model.set_attn_implementation(attention)
    trace = (together - behind)[len(first) :].abs().max()
    return torch.allclose(together, apart, atol=1e-3, rtol=1e-3) and bool(trace <= 1e-5 * apart.abs().max())


class Pace(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """When to log, validate, save and stop, and what to tell meanwhile.

    A checkpoint is only made at a step that was logged (and validated, where that is due): what went before it is then complete in the
    checkpoint's own history, and a training that goes on from there leaves the same metrics as one that was never interrupted.
    """

    def __init__(
        self,
        *,
        log_every: int,
        evaluate_every: int | None,
        checkpoint_seconds: float,
        validates: bool,
        tell: Callable[[Any], None],
        note: Callable[[Any], None],
        ends: Callable[[Any], bool],
    ) -> None:
        """``evaluate_every`` None: at the end of each epoch.

        ``tell`` and ``note`` are given the trainer's state: after every step, and when there is something to keep. ``ends``: after a
        validation, whether it is enough.
        """
        self.log_every, self.evaluate_every, self.checkpoint_seconds = log_every, evaluate_every, checkpoint_seconds
        self.validates, self.tell, self.note, self.ends = validates, tell, note, ends
        self._saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After each optimizer step."""
        last = state.global_step >= state.max_steps
        epoch_ends = last or float(state.epoch).is_integer()
        due = epoch_ends if self.evaluate_every is None else last or state.global_step % self.evaluate_every == 0
        control.should_evaluate = self.validates and due
        control.should_log = epoch_ends or control.should_evaluate or state.global_step % self.log_every == 0
        control.should_save = (
            control.should_log and not last and time.monotonic() - self._saved >= self.checkpoint_seconds
        )
        self.tell(state)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Nothing more: the epoch's last step did it all."""
        control.should_log = control.should_evaluate = control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The next checkpoint is due that much later."""
        self._saved = time.monotonic()
        self.note(state)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The figures of a validation are complete."""
        self.note(state)
        if self.ends(state):
            control.should_training_stop = True
            control.should_save = False  # a training that goes on from there would go on beyond its end
