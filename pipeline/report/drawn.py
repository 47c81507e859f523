"""Rows drawn at random in one pass, so that a run of any size fits into memory: reservoir sampling, the same for the same seed.

drawn(rows, 8, "0/kept")        up to 8 of the rows, in their order
by_reason(drops, 4, "0/dedup")  up to 4 drops of each reason
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pipeline.records import Drop

T = TypeVar("T")


@dataclass
class Sample:
    """Rows drawn so far, each with its place, and out of how many."""

    seen: int = 0
    rows: list[tuple[int, Any]] = field(default_factory=list)


def offer(sample: Sample, row: object, size: int, chance: random.Random) -> None:
    """Offer one more row to a sample of at most ``size``: every row that was offered is as likely to stay."""
    if len(sample.rows) < size:
        sample.rows.append((sample.seen, row))
    elif (place := chance.randrange(sample.seen + 1)) < size:
        sample.rows[place] = (sample.seen, row)
    sample.seen += 1


def drawn(rows: Iterable[T], size: int, seed: str) -> list[T]:
    """Up to ``size`` of the rows, in their order."""
    sample, chance = Sample(), random.Random(seed)
    for row in rows:
        offer(sample, row, size, chance)
    return _in_order(sample)


def by_reason(drops: Iterable[Drop], size: int, seed: str) -> dict[str, list[Drop]]:
    """Up to ``size`` drops of each reason, in their order; the most frequent reason first."""
    samples: dict[str, Sample] = {}
    chances: dict[str, random.Random] = {}
    for drop in drops:
        chance = chances.setdefault(drop.reason, random.Random(f"{seed}/{drop.reason}"))
        offer(samples.setdefault(drop.reason, Sample()), drop, size, chance)
    order = sorted(samples, key=lambda reason: (-samples[reason].seen, reason))
    return {reason: _in_order(samples[reason]) for reason in order}


def _in_order(sample: Sample) -> list[Any]:
    return [row for _, row in sorted(sample.rows, key=lambda entry: entry[0])]
