"""TRL's SFTTrainer with the loss of Distilling Step-by-Step: every task of every example in each step, in one forward.

An item of its data set is an example with one token sequence for each task; a batch of B examples is flattened to B times tasks sequences::

    {"ids": [[61, 72, ..], [83, 72, ..]], "targets": [2, 19]}     # the last 2 and the last 19 tokens are what is learned

The counts that the means are taken over are those of the whole optimizer step, so the loss is the same whatever the size of the
micro-batches. Only positions with a target go through the vocabulary head: with a vocabulary of 49,000 and short answers that head is
most of the work otherwise.

Limits: the auxiliary loss of mixture-of-experts models is left out. Validation under several processes may count a few examples twice
where their number does not divide evenly.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import SFTConfig, SFTTrainer

from pipeline.files import RunError
from pipeline.losses.step_by_step import step_by_step

IGNORED = -100
Batch = dict[str, torch.Tensor]


def collate(examples: Sequence[Mapping[str, Any]], padding: int) -> Batch:
    """``input_ids``, ``attention_mask`` and ``labels`` (IGNORED but for targets), padded on the right, and each sequence's task."""
    rows = [
        (ids, count, task)
        for example in examples
        for task, (ids, count) in enumerate(zip(example["ids"], example["targets"], strict=True))
    ]
    longest = max(len(ids) for ids, _, _ in rows)
    return {
        "input_ids": torch.tensor([[*ids, *[padding] * (longest - len(ids))] for ids, _, _ in rows]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _, _ in rows]),
        "labels": torch.tensor(
            [
                [IGNORED] * (len(ids) - count) + list(ids[len(ids) - count :]) + [IGNORED] * (longest - len(ids))
                for ids, count, _ in rows
            ]
        ),
        "tasks": torch.tensor([task for _, _, task in rows]),
    }


class StepByStepTrainer(SFTTrainer):  # type: ignore[misc, unused-ignore]
    """Trains on prepared token sequences and notes each task's mean loss beside the weighted one.

    ``weights`` gives each task's name and weight, in the order in which the examples hold them. Raises RunError when the loss is no longer
    a number.
    """

    loss_is_scaled_for_ga = True  # the loss is divided by the counts of the whole step, below

    def __init__(self, *, weights: Mapping[str, float], args: SFTConfig, padding: int, **kwargs: Any) -> None:
        args.dataset_kwargs = {"skip_prepare_dataset": True}
        args.remove_unused_columns = False
        super().__init__(args=args, data_collator=lambda examples: collate(examples, padding), **kwargs)
        self.remove_callback(PrinterCallback)
        self.tasks = list(weights)
        self._weights = torch.tensor(list(weights.values()), device=args.device)
        self._means, self._steps = torch.zeros_like(self._weights), 0  # of the steps since the last log
        self._predicting: torch.Tensor | None = None
        self.model.get_output_embeddings().register_forward_pre_hook(self._keep_predicting)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: Any
    ) -> tuple[list[Batch], Any]:
        """The micro-batches of one optimizer step, and the number of targets of each task in all of them."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        self._steps += 1
        tokens = torch.stack([self._count(batch) for batch in batches]).sum(0).to(device)
        return batches, self.accelerator.reduce(tokens, "sum")

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """This micro-batch's part of the step's loss."""
        tokens = self._count(inputs) if num_items_in_batch is None else num_items_in_batch
        loss, means = self._forward(model, inputs, tokens)
        self._means += means
        return (
            loss * self.accelerator.num_processes
        )  # gradients are averaged over the processes, but the counts are of all of them

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "validation"
    ) -> dict[str, float]:
        """Each task's mean loss over all targets of the validation rows, and the weighted loss."""
        tokens = sums = torch.zeros_like(self._weights, dtype=torch.float64)
        self.model.eval()
        with torch.no_grad():
            for batch in self.get_eval_dataloader(eval_dataset):
                inputs = self._prepare_inputs(batch)
                count = self._count(inputs)
                _, means = self._forward(self.model, inputs, count)
                tokens, sums = tokens + count, sums + means * count
        tokens, sums = (self.accelerator.reduce(part, "sum") for part in (tokens, sums))
        means = sums / tokens.clamp(min=1)
        found = {
            f"{metric_key_prefix}_{task}_loss": mean for task, mean in zip(self.tasks, means.tolist(), strict=True)
        }
        found = {f"{metric_key_prefix}_loss": (self._weights * means).sum().item(), **found}
        self.log(found)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        return found

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep what was measured, each task's loss with it; nothing that depends on the clock."""
        if "loss" in logs:
            means = (self.accelerator.reduce(self._means, "sum") / self._steps).tolist()
            logs |= {f"{task}_loss": mean for task, mean in zip(self.tasks, means, strict=True)}
            self._means, self._steps = torch.zeros_like(self._means), 0
            if not math.isfinite(logs["loss"]):
                raise RunError(
                    f"train: the loss is no longer a number at step {self.state.global_step}; lower 'learning_rate'"
                )
        elif "train_runtime" in logs:
            return
        super(SFTTrainer, self).log(logs)  # SFTTrainer's own adds its token accuracy, which is not computed here

    @property
    def tokens_before(self) -> int:
        """Tokens that were read before this start of the training."""
        return int(self._initial_num_input_tokens_seen)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: a checkpoint here is only there to go on from."""

    def _send_telemetry(self) -> None:
        """Training tells nobody."""

    def _forward(self, model: Any, inputs: Batch, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        targets = inputs["labels"][:, 1:]
        # A position predicts the token after it, so the last one predicts none.
        predicting = torch.nn.functional.pad(targets != IGNORED, (0, 1))
        self._predicting = predicting
        try:
            logits = model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False
            ).logits
        finally:
            self._predicting = None
        tasks = inputs["tasks"][:, None].expand_as(predicting)[predicting]
        return step_by_step(logits, targets[targets != IGNORED], tasks, tokens=tokens, weights=self._weights)

    def _keep_predicting(self, head: Any, arguments: tuple[torch.Tensor, ...]) -> Any:
        """Before the vocabulary head: the hidden states that have a target, in a row. What the model does after it is left as it is."""
        if self._predicting is None:
            return None
        return (arguments[0][self._predicting], *arguments[1:])

    def _count(self, batch: Batch) -> torch.Tensor:
        targets = (batch["labels"][:, 1:] != IGNORED).sum(1)
        return torch.stack([targets[batch["tasks"] == task].sum() for task in range(len(self.tasks))])


class Pace(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """When to log, validate and save, and what to tell meanwhile.

    A checkpoint is only made at a step that was logged (and at the end of an epoch, validated): what went before it is then complete in
    the checkpoint's own history, and a training that goes on from there leaves the same metrics as one that was never interrupted.
    """

    def __init__(
        self,
        *,
        log_every: int,
        checkpoint_seconds: float,
        validates: bool,
        tell: Callable[[Any], None],
        note: Callable[[Any], None],
    ) -> None:
        self.log_every, self.checkpoint_seconds, self.validates = log_every, checkpoint_seconds, validates
        self.tell, self.note = (
            tell,
            note,
        )  # each is given the trainer's state: after every step, and when there is something to keep
        self._saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After each optimizer step."""
        last = state.global_step >= state.max_steps
        epoch_ends = last or float(state.epoch).is_integer()
        control.should_log = epoch_ends or state.global_step % self.log_every == 0
        control.should_evaluate = self.validates and epoch_ends
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
        """An epoch's figures are complete."""
        self.note(state)
