"""Look before a training: the first batch as the trainer would see it, what of it is learned, and how much there is. Nothing is trained.

    found = preview_of_shards(Path("runs/topics/shard/9f.."), settings)
    for one in found.sequences: print(one.example, one.task, "".join(piece.text for piece in one.pieces if piece.learned))

    -> Masked(example="9f..", task="label", share=1.0, pieces=[Piece(61, "[", False, False), .., Piece(9, "sports", True, False), ..])

The student is loaded and the rows are encoded, laid out and put in order by the functions that train it.

Limits: where ``accelerate`` names a file, the number of processes that it says is not known here, and figures are those of one. A
training that stops early takes fewer steps. Loading and encoding take as long, and as much memory, as they take a training.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline.encoding import Example, TokenSequence
from pipeline.fit import Start, counts, for_each, laid_out, precision, total_steps
from pipeline.records import Drop, Target, Trained, TrainingRow
from pipeline.student import quiet
from pipeline.train import Plan, planned, prepare, read_shards, wanted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PART = "\ufffd"  # what a part of a character is decoded to


@dataclass(frozen=True)
class Piece:
    """A token and its text. ``learned``: it is a target. ``special``: it is no text, but a token with a name, as the end of an answer.

    A token that is only a part of a character has no text; the last of its parts has it whole.
    """

    token: int
    text: str
    learned: bool
    special: bool


@dataclass(frozen=True)
class Masked:
    """A token sequence of the first batch: what an example's task is given, then what it learns. ``share`` is how much it counts."""

    example: str
    task: Target
    share: float
    pieces: list[Piece]


@dataclass(frozen=True)
class Learned:
    """What a model learns of one task: its weight in the loss, the sequences of an epoch and their lengths in tokens, and the targets.

    ``epoch`` and ``first_step`` count target tokens, each by its sequence's share, as `metrics.jsonl` does.
    """

    task: Target
    weight: float
    sequences: int
    mean_length: float
    longest: int
    epoch: float
    first_step: float


@dataclass(frozen=True)
class Batch:
    """How the first batch lies in memory, over all processes: ``padding`` is the share of the ``positions`` that hold no token."""

    examples: int
    sequences: int
    packed: bool
    rows: int
    positions: int
    padding: float


@dataclass(frozen=True)
class Model:
    """One model that would be trained: the student, or the label-only baseline. ``steps`` are those of the optimizer."""

    name: str
    tasks: list[Learned]
    steps: int
    batch: Batch


@dataclass(frozen=True)
class Preview:
    """What a training would be. ``rows`` counts those that would be trained, by split, ``dropped`` the others, by reason.

    ``cut``: rows that would be trained without their end. A step takes ``accumulation`` batches of ``batch_size`` examples.
    ``sequences`` are those of the first batch, in order; of the baseline's they hold the label's. ``refused``: why it would not be done.
    """

    stage: Literal["train"]
    student: str
    precision: str
    batch_size: int
    accumulation: int
    processes: int
    rows: dict[str, int]
    dropped: dict[str, int]
    cut: int
    examples: dict[str, int]
    models: list[Model]
    sequences: list[Masked]
    refused: str | None


def preview_of_shards(shards: Path, settings: Mapping[str, Any], *, refused: str | None = None) -> Preview:
    """`preview` of a folder of shards; ``settings`` are all those of `train`, by name."""
    rows = list(read_shards(shards))
    return preview(rows, planned(rows, settings), baseline=settings["baseline"], refused=refused)


def preview(rows: Sequence[TrainingRow], plan: Plan, *, baseline: bool, refused: str | None = None) -> Preview:
    """What `train` would begin with. ``refused`` is passed on: whoever calls knows the terms of the rows.

    Raises InputError as a training does: student, rows or settings cannot be used, or no rows are left to train on.
    """
    size = for_each(plan.recipe.batch_size, plan.processes)
    with quiet():
        start, encoded = prepare(rows, plan)
        examples = encoded.examples["train"]
        first = _first(len(examples), plan)
        models = [
            _model(name, weights, start, examples, first, plan, size)
            for name, weights in wanted(plan, baseline=baseline).items()
        ]
        sequences = [
            Masked(examples[place].id, plan.tasks[one.task], one.share, _pieces(start, one))
            for place in first[: plan.recipe.batch_size]
            for one in examples[place].sequences
        ]
    trained = Counter(fate.split for fate in encoded.fates if isinstance(fate, Trained))
    return Preview(
        stage="train",
        student=plan.student.source,
        precision=precision(plan.recipe.precision),
        batch_size=plan.recipe.batch_size,
        accumulation=plan.recipe.accumulation,
        processes=plan.processes,
        rows={split: trained[split] for split in ("train", "validation")},
        dropped=dict(Counter(fate.reason for fate in encoded.fates if isinstance(fate, Drop)).most_common()),
        cut=encoded.cut,
        examples=counts(encoded.examples),
        models=models,
        sequences=sequences,
        refused=refused,
    )


def _first(examples: int, plan: Plan) -> list[int]:
    """The examples of the first optimizer step, in the trainer's order."""
    from pipeline.trainer import Order

    order = Order(examples, seed=plan.recipe.seed, together=1, empty=examples)
    return list(islice(order, plan.recipe.batch_size * plan.recipe.accumulation))


def _model(
    name: str,
    weights: Mapping[Target, float],
    start: Start,
    examples: Sequence[Example],
    first: Sequence[int],
    plan: Plan,
    size: int,
) -> Model:
    """``first``: the examples of the first step; each process takes ``size`` of those of a batch."""
    from pipeline.trainer import IGNORED, collate, collate_pairs, item

    chosen = [plan.tasks.index(task) for task in weights]
    items = [item(example, chosen) for example in examples]
    layout = laid_out(name, start, items, plan.recipe)
    together = [items[place] for place in first[: plan.recipe.batch_size]]
    rows = positions = tokens = 0
    for begin in range(0, len(together), size):
        part = together[begin : begin + size]
        if start.model.config.is_encoder_decoder:
            batch = collate_pairs(part, layout, layout.padding)
            positions += batch["labels"].numel()
            tokens += int((batch["labels"] != IGNORED).sum())
        else:
            batch = collate(part, layout)
        rows += len(batch["input_ids"])
        positions += batch["input_ids"].numel()
        tokens += int(batch["attention_mask"].sum())
    return Model(
        name,
        [_learned(task, weight, plan.tasks.index(task), examples, first) for task, weight in weights.items()],
        total_steps(len(examples), plan.recipe),
        Batch(
            examples=len(together),
            sequences=sum(len(given["ids"]) for given in together),
            packed=layout.packed,
            rows=rows,
            positions=positions,
            padding=1 - tokens / positions,
        ),
    )


def _learned(task: Target, weight: float, number: int, examples: Sequence[Example], first: Sequence[int]) -> Learned:
    found = [[one for one in example.sequences if one.task == number] for example in examples]
    every = [one for sequences in found for one in sequences]
    lengths = [len(one.ids) for one in every]
    return Learned(
        task=task,
        weight=weight,
        sequences=len(every),
        mean_length=sum(lengths) / len(lengths),
        longest=max(lengths),
        epoch=_targets(every),
        first_step=_targets([one for place in first for one in found[place]]),
    )


def _targets(sequences: Sequence[TokenSequence]) -> float:
    return round(sum(one.targets * one.share for one in sequences), 3)


def _pieces(start: Start, sequence: TokenSequence) -> list[Piece]:
    """Prompt and completion are decoded apart, as the student is asked and answers."""
    boundary = len(sequence.ids) - sequence.targets
    texts = [
        *texts_of(start.tokenizer, sequence.ids[:boundary]),
        *texts_of(start.tokenizer, sequence.ids[boundary:]),
    ]
    special = {start.end, *start.tokenizer.all_special_ids}
    special |= {token for token, added in start.tokenizer.added_tokens_decoder.items() if added.special}
    return [
        Piece(token, text, place >= boundary, token in special)
        for place, (token, text) in enumerate(zip(sequence.ids, texts, strict=True))
    ]


def texts_of(tokenizer: "PreTrainedTokenizerBase", ids: Sequence[int]) -> list[str]:
    """The text of each token, all together that of ``ids``; "" for one that is only a part of a character, but the last of its parts."""

    def decoded(begin: int, end: int) -> str:
        text: str = tokenizer.decode(
            list(ids[begin:end]), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    texts: list[str] = []
    before = begin = (
        0  # where the last whole text began, and where it ended: white space can depend on what stands before
    )
    for place in range(len(ids)):
        known, text = decoded(before, begin), decoded(before, place + 1)
        whole = len(text) > len(known) and not text.endswith(PART)
        if whole or place == len(ids) - 1:
            texts.append(text[len(known) :])
            before, begin = begin, place + 1
        else:
            texts.append("")
    return texts
