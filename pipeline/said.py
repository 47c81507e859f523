"""What a model said to each eval row, whichever kind of model it is, and how students are asked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from pipeline.answering import Backend, Precision
from pipeline.eval_rows import Asked
from pipeline.labels import LabelType
from pipeline.metrics import Cost, Rationale, Validation
from pipeline.records import Target

DIGITS: Final = 6  # of a probability


@dataclass(frozen=True)
class How:
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
class Said:
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


def rounded(given: Mapping[str, float] | None) -> dict[str, float] | None:
    """Probabilities as they are written down."""
    return None if given is None else {label: round(value, DIGITS) for label, value in given.items()}


def rationale(row: Asked, model: str, label: str | None, text: str, *, finished: bool = True) -> Rationale:
    """A line of rationales.jsonl."""
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


def weights(folder: Path) -> int | None:
    """How many weights lie in a folder's safetensors files, which are not read; None where there are none."""
    from safetensors import safe_open

    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            total += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - not a dict
    return total or None
