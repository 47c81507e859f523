"""Training rows become token sequences, and every row's fate is known before the first step.

    "[label] Late goal sinks .." -> "sports"        TokenSequence(ids=[61, 72, .., 9, 2], targets=2, task=0, share=1.0)

The last ``targets`` tokens of ``ids`` are what is learned. A row whose target is a distribution over labels becomes one sequence for
each label, which counts by its ``share``. Prompt and completion are tokenised apart, so that no token reaches over their boundary.

Limits: all rows and their tokens are held in memory, about 10 bytes a token.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import xxhash
from pydantic import Field, JsonValue, TypeAdapter

from pipeline.files import InputError, plain
from pipeline.losses.soft_labels import tempered
from pipeline.records import Drop, Target, Trained, TrainingRow

SPLITS: tuple[Literal["train", "validation"], ...] = ("train", "validation")
Tokens = Callable[[str], list[int]]
TooLong = Literal["drop", "cut"]
Fraction = Annotated[float, Field(gt=0, le=1)]


class TokenSequence(NamedTuple):
    """One answer to one task of an example."""

    ids: list[int]
    targets: int
    task: int
    share: float


@dataclass(frozen=True)
class Example:
    """One example: its sequences, task by task, and for validation the prompt of its first task and the text that answers it."""

    id: str
    sequences: list[TokenSequence]
    prompt: list[int]
    answer: str
    cut: int = 0  # rows that lost their end


@dataclass(frozen=True)
class Encoding:
    """How rows are encoded: what makes tokens of prompts and completions, and what is learned of which examples.

    ``max_length`` counts the tokens of prompt and completion. ``fraction`` is the share of the training examples that are used: those
    whose ids come first in an order that ``seed`` draws, so that a smaller share is part of a larger one. ``temperature`` is for targets
    that are distributions. ``apart``: an encoder reads the prompt and a decoder writes the completion, so that each may be so long.
    """

    prompt_ids: Tokens
    completion_ids: Tokens
    tasks: Sequence[Target]
    max_length: int | None = None
    too_long: TooLong = "drop"
    fraction: float = 1.0
    seed: int = 0
    temperature: float = 1.0
    apart: bool = False


@dataclass(frozen=True)
class Encoded:
    """What became of each row, in the order of the rows, and the examples of each split."""

    fates: list[Trained | Drop]
    examples: dict[str, list[Example]]
    cut: int  # rows that were trained without their end


class _Refused(NamedTuple):
    reason: str
    evidence: dict[str, JsonValue]


def encode(rows: Iterable[TrainingRow], encoding: Encoding) -> Encoded:
    """The rows as token sequences. An example is trained on with all its tasks or dropped with all its rows.

    Raises InputError where rows contradict one another, or one cannot be read.
    """
    rows = list(rows)
    groups = _groups(rows)
    used = _used(groups, encoding)
    fates: dict[str, Trained | Drop] = {}
    examples: dict[str, list[Example]] = {split: [] for split in SPLITS}
    cut = 0
    for name, group in groups.items():
        found: Example | _Refused = (
            _example(name, group, encoding)
            if name in used
            else _Refused("outside_fraction", {"fraction": encoding.fraction})
        )
        for task, row in group.items():
            if task not in encoding.tasks:
                fates[row.id] = Drop(id=row.id, reason="not_a_target", evidence={"targets": [*encoding.tasks]})
            elif isinstance(found, _Refused):
                fates[row.id] = Drop(id=row.id, reason=found.reason, evidence=found.evidence)
            else:
                tokens = sum(one.targets for one in found.sequences if encoding.tasks[one.task] == task)
                fates[row.id] = Trained(id=row.id, example=name, task=task, split=row.split, tokens=tokens)
        if isinstance(found, Example):
            examples[next(iter(group.values())).split].append(found)
            cut += found.cut
    return Encoded([fates[row.id] for row in rows], examples, cut)


def _groups(rows: Iterable[TrainingRow]) -> dict[str, dict[Target, TrainingRow]]:
    groups: dict[str, dict[Target, TrainingRow]] = {}
    for row in rows:
        if row.task in groups.setdefault(row.example, {}):
            raise InputError(
                f"train: row {plain(row.id)}: task '{row.task}' of its example stands there twice; remove one"
            )
        groups[row.example][row.task] = row
    for name, group in groups.items():
        if len({row.split for row in group.values()}) > 1:
            raise InputError(f"train: example {plain(name)}: its rows stand in different splits; make the shards anew")
    return groups


def _used(groups: Mapping[str, Mapping[Target, TrainingRow]], encoding: Encoding) -> set[str]:
    """The examples that are not left aside: all validation examples, and of the others the share ``fraction``."""
    if encoding.fraction == 1:
        return set(groups)
    drawn = sorted(
        (name for name, group in groups.items() if next(iter(group.values())).split == "train"),
        key=lambda name: (xxhash.xxh3_64_intdigest(f"{encoding.seed}:{name}".encode()), name),
    )
    return set(groups).difference(drawn[max(1, round(encoding.fraction * len(drawn))) :])


def _example(name: str, group: Mapping[Target, TrainingRow], encoding: Encoding) -> Example | _Refused:
    missing: list[JsonValue] = [task for task in encoding.tasks if task not in group]
    if missing:
        return _Refused("missing_task", {"missing": missing})
    empty: list[JsonValue] = [task for task in encoding.tasks if not group[task].completion.strip()]
    if empty:
        return _Refused("empty_completion", {"empty": empty})
    sequences: list[TokenSequence] = []
    lengths: dict[str, int] = {}
    limit, cut = encoding.max_length, set()
    for number, task in enumerate(encoding.tasks):
        row = group[task]
        prompt = encoding.prompt_ids(row.prompt)
        for completion, share in _answers(row, encoding.temperature).items():
            said = encoding.completion_ids(completion)
            length = max(len(prompt), len(said)) if encoding.apart else len(prompt) + len(said)
            lengths[task] = max(length, lengths.get(task, 0))
            if limit is not None and length > limit and encoding.too_long == "cut":
                said = said[: max(0, limit - len(prompt))] if not encoding.apart else said[:limit]
                cut.add(task)
                if not said or len(prompt) > limit:
                    return _Refused("no_target_left", {"task": task, "prompt_tokens": len(prompt), "max_length": limit})
            sequences.append(TokenSequence(prompt + said, len(said), number, share))
    if limit is not None and encoding.too_long == "drop" and max(lengths.values()) > limit:
        return _Refused("too_long", {"tokens": {**lengths}, "max_length": limit})
    first = group[encoding.tasks[0]]
    return Example(name, sequences, encoding.prompt_ids(first.prompt), first.completion, len(cut))


def _answers(row: TrainingRow, temperature: float) -> dict[str, float]:
    """The texts that the row's task is to be answered with, and how much each counts."""
    if row.distribution is None:
        return {row.completion: 1.0}
    try:
        return tempered(TypeAdapter(dict[str, float]).validate_json(row.distribution, strict=True), temperature)
    except ValueError:
        raise InputError(
            f"train: row {plain(row.id)}: distribution: not a JSON object of label -> probability; make the shards anew"
        ) from None
