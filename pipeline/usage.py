"""What each teacher was asked for a result, and what that took: the figures that a stage's manifest and run-speed.json hold.

The manifest has what follows from the answers alone and is the same whenever they were asked (``Figures``); run-speed.json has what the
asking took (``Facts``): time, and tokens that were paid for.
"""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pipeline.files import atomic, canonical_json, strict_json
from pipeline.records import Drop, Manifest, Record, Response
from pipeline.spending import Meter, cost
from pipeline.teachers import Price

SPEED: Final = "run-speed.json"  # in the stage's folder: what was asked for this result, how fast, and what it cost


class Facts(Record):
    """What run-speed.json holds of one teacher: all that it was asked for this result, in one call of `stepdistill run` or in several.

    ``seconds`` leave its start out; rates are those of all of them. ``cost`` is in the currency of the prices, 0 without a price. A call
    that was killed (SIGKILL, power) is not in it, though its answers are in the store.
    """

    requests: int
    answers: int
    seconds: float
    requests_per_second: float
    tokens_per_second: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    finish_reasons: dict[str, int]
    failures: dict[str, int]
    cost: float


class Figures(Record):
    """What came of one teacher's requests, whenever they were asked: ``details["teachers"]`` of the stage's manifest, by its name.

    ``answers`` are the distinct ones behind the ``responses`` (rows with the same rendered prompt share one), tokens are theirs.
    """

    requests: int
    responses: int
    answers: int
    prompt_tokens: int
    completion_tokens: int
    failures: dict[str, int]
    cost_of_tokens: float


@dataclass
class Tally:
    """What comes of one teacher's requests. Of each answer 8 bytes of its key are held, to count it once."""

    requests: int = 0
    responses: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    seen: set[int] = field(default_factory=set)

    def add(self, row: Response | Drop) -> None:
        """Note one row of the result."""
        self.requests += 1
        if isinstance(row, Drop):
            self.failures[row.reason] += 1
            return
        self.responses += 1
        key = int(row.request[:16], 16)
        if key not in self.seen:
            self.seen.add(key)
            self.prompt_tokens += row.prompt_tokens
            self.completion_tokens += row.completion_tokens

    def details(self, price: Price | None) -> dict[str, Any]:
        """The ``Figures``, as a manifest holds them."""
        return Figures(
            requests=self.requests,
            responses=self.responses,
            answers=len(self.seen),
            prompt_tokens=self.prompt_tokens,
            completion_tokens=self.completion_tokens,
            failures=dict(sorted(self.failures.items())),
            cost_of_tokens=round(cost(price, self.prompt_tokens, self.completion_tokens, 0.0), 6),
        ).model_dump()


def keep(folder: Path, meters: Mapping[str, Meter], before: Mapping[str, Facts]) -> None:
    """Write run-speed.json, where anything was asked; ``before`` is what an earlier call for the same result took.

    Where it cannot be written nothing happens: it is but a measurement, and on a full disk the reason why the work failed counts.
    """
    if not any(meter.requests for meter in meters.values()):
        return
    found = {name: _facts(meter, before.get(name)).model_dump() for name, meter in meters.items()}
    with suppress(OSError), atomic(folder / SPEED) as file:
        file.write(canonical_json(found) + b"\n")


def _facts(meter: Meter, before: Facts | None) -> Facts:
    seconds = max(meter.seconds + (before.seconds if before else 0.0), 1e-3)
    requests = meter.requests + (before.requests if before else 0)
    completion_tokens = meter.completion_tokens + (before.completion_tokens if before else 0)
    return Facts(
        requests=requests,
        answers=meter.answers + (before.answers if before else 0),
        seconds=seconds,
        requests_per_second=requests / seconds,
        tokens_per_second=completion_tokens / seconds,
        prompt_tokens=meter.prompt_tokens + (before.prompt_tokens if before else 0),
        cached_tokens=meter.cached_tokens + (before.cached_tokens if before else 0),
        completion_tokens=completion_tokens,
        finish_reasons=dict(meter.finish_reasons + Counter(before.finish_reasons if before else {})),
        failures=dict(meter.failures + Counter(before.failures if before else {})),
        cost=meter.cost + (before.cost if before else 0.0),
    )


def measured(folder: Path) -> dict[str, Facts]:
    """What was measured of each teacher, by its name; empty where nothing was asked for this result, or by an earlier version."""
    try:
        found = strict_json((folder / SPEED).read_bytes())
        return {name: Facts.model_validate(facts) for name, facts in found.items()}
    except (OSError, ValueError, AttributeError):  # no part of the result: without it only its figures are missing
        return {}


def figures(manifest: Manifest) -> dict[str, Figures]:
    """What came of each teacher's requests, by its name; empty for a result of an earlier version."""
    found: Any = manifest.details.get("teachers", {})
    try:
        return {str(name): Figures.model_validate(one) for name, one in found.items()}
    except (ValueError, AttributeError):
        return {}
