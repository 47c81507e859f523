"""What asking takes: tokens, time and money of each teacher, and the budget that stops it in time.

    budget: {usd: 5.0, tokens: 2_000_000, hours: 1.5}

A budget is what one call of `stepdistill run` may spend; the next call goes on with a fresh one. Before a request is sent, the most that
it can take is set aside (its prompt and ``max_tokens``), so that the sum is never passed; what it took comes in the place of that when its
answer is there. Hours cannot be set aside: a request is sent only where the longest that one has taken so far would still end in time.

Limits: where a prompt's tokens cannot be counted beforehand, its UTF-8 bytes are taken for them, which is more. Requests that failed for
good count only where the server said what they took, and a server that says less than it takes is believed. What ``soft_labels`` take
beside the answer is in no backend's count of tokens, so it is not set aside either; only its time counts.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.teachers import Answer, Failure, Price, Request

TURN_TOKENS = 16  # what a chat template puts around a message, at most, where the tokens cannot be counted
Count = Callable[[Request], int]


class Budget(BaseModel):
    """The most that one call may spend. ``usd`` is in the currency of the prices."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    usd: float | None = Field(default=None, gt=0)
    tokens: int | None = Field(default=None, gt=0)
    hours: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _something(self) -> "Budget":
        if self.usd is None and self.tokens is None and self.hours is None:
            raise ValueError("set at least one of usd, tokens, hours")
        return self


@dataclass
class Meter:
    """What one teacher was asked in this call, and what that took. ``seconds`` leave the teacher's start out."""

    price: Price | None = None
    requests: int = 0
    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    seconds: float = 0.0
    failures: Counter[str] = field(default_factory=Counter)
    finish_reasons: Counter[str] = field(default_factory=Counter)

    def add(self, result: Answer | Failure) -> None:
        """Note one result."""
        self.requests += 1
        self.prompt_tokens += result.prompt_tokens
        self.completion_tokens += result.completion_tokens
        if isinstance(result, Answer):
            self.answers += 1
            self.cached_tokens += result.cached_tokens
            self.finish_reasons[result.finish_reason] += 1
        else:
            self.failures[result.reason] += 1

    @property
    def cost(self) -> float:
        """In the currency of the prices; 0 without a price."""
        return cost(self.price, self.prompt_tokens, self.completion_tokens, self.seconds)


def priced(price: Price | None, engines: int) -> Price | None:
    """The price where so many engines work at once: an hour is paid for each of them."""
    return None if price is None else price.model_copy(update={"hour": price.hour * engines})


def cost(price: Price | None, prompt_tokens: float, completion_tokens: float, seconds: float) -> float:
    """What so many tokens and seconds cost, in the currency of the price."""
    if price is None:
        return 0.0
    tokens = prompt_tokens * price.prompt_tokens + completion_tokens * price.completion_tokens
    return tokens / 1e6 + seconds / 3600 * price.hour


def prompt_bound(request: Request, count: Count | None) -> int:
    """The tokens of the request's prompt as ``count`` says, or where it is None its UTF-8 bytes, which are more."""
    if count is not None:
        return count(request)
    if request.messages is None:
        return 0
    texts = [message.content for message in request.messages.messages] + [request.messages.assistant_prefix]
    return sum(len(text.encode()) + TURN_TOKENS for text in texts)


def at_most(request: Request, prompt_tokens: int) -> tuple[int, int]:
    """The most tokens that a request with such a prompt can take: read, and written. Recorded completions take nothing."""
    return (0, 0) if request.messages is None else (prompt_tokens, request.max_tokens)


class Purse:
    """Says for each request whether the budget still allows it. ``meters`` are those of all teachers of the call.

    Everything is counted in whole tokens, and money is reckoned from their sums, so that nothing drifts however many requests there are.
    ``too_large`` counts those that a fresh budget would not hold either.
    """

    def __init__(
        self, budget: Budget | None, meters: Mapping[str, Meter], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.budget = budget
        self.refused = ""
        self.too_large = 0
        self._meters, self._clock, self._began = meters, clock, clock()
        self._aside: dict[str, tuple[Meter, int, int, float]] = {}
        self._sums: dict[int, list[int]] = {id(meter): [0, 0] for meter in meters.values()}
        self._longest = 0.0
        self._last: tuple[str, tuple[int, int]] = ("", (0, 0))
        self._counted: tuple[tuple[str, int], int] = (("", 0), 0)

    def admits(self, request: Request, meter: Meter, count: Count | None) -> bool:
        """Set aside what the request can take at most; False where the budget does not hold that, and ``refused`` says which part."""
        if self.budget is None:
            return True
        prompt, completion = self._most(request, meter, count)
        now = self._clock()
        self.refused = self._passed(meter, prompt, completion, now)
        if self.refused:
            return False
        self._aside[request.key] = (meter, prompt, completion, now)
        sums = self._sums[id(meter)]
        sums[0] += prompt
        sums[1] += completion
        return True

    def never(self, request: Request, meter: Meter, count: Count | None) -> bool:
        """Whether not even a fresh budget would hold this request."""
        if self.budget is None:
            return False
        prompt, completion = self._most(request, meter, count)
        tokens, usd = self.budget.tokens, self.budget.usd
        return (tokens is not None and prompt + completion > tokens) or (
            usd is not None and cost(meter.price, prompt, completion, 0.0) > usd
        )

    def settle(self, request: Request) -> None:
        """The request has its result, and the meter knows what it took."""
        found = self._aside.pop(request.key, None)
        if found is not None:
            meter, prompt, completion, sent = found
            sums = self._sums[id(meter)]
            sums[0] -= prompt
            sums[1] -= completion
            self._longest = max(self._longest, self._clock() - sent)

    @property
    def used(self) -> float | None:
        """The part of the budget that is used up, 0 to 1: of its scarcest resource; None without a budget."""
        if self.budget is None:
            return None
        meters = self._meters.values()
        parts = [(self._clock() - self._began) / 3600 / self.budget.hours] if self.budget.hours else []
        if self.budget.tokens:
            parts.append(sum(meter.prompt_tokens + meter.completion_tokens for meter in meters) / self.budget.tokens)
        if self.budget.usd:
            parts.append(sum(meter.cost for meter in meters) / self.budget.usd)
        return max(parts)

    @property
    def spent(self) -> str:
        """What this call took, in words."""
        meters = self._meters.values()
        asked, answers = sum(meter.requests for meter in meters), sum(meter.answers for meter in meters)
        tokens = sum(meter.prompt_tokens + meter.completion_tokens for meter in meters)
        money = f", cost {sum(meter.cost for meter in meters):,.4g}" if any(meter.price for meter in meters) else ""
        return f"{asked:,} were asked now ({tokens:,} tokens{money}) and {answers:,} answers are in the response store"

    def _most(self, request: Request, meter: Meter, count: Count | None) -> tuple[int, int]:
        """As ``at_most``. Without tokens or money in the budget nothing is counted; samples of one prompt are counted once."""
        assert self.budget is not None
        if self.budget.tokens is None and self.budget.usd is None:
            return 0, 0
        if self._last[0] != request.key:
            prompt = (request.prompt_digest, id(meter))
            if self._counted[0] != prompt:
                self._counted = (prompt, prompt_bound(request, count))
            self._last = (request.key, at_most(request, self._counted[1]))
        return self._last[1]

    def _passed(self, asked: Meter, prompt: int, completion: int, now: float) -> str:
        """The part of the budget that one more such request could pass, in words; empty where there is none."""
        assert self.budget is not None
        tokens, money = 0, 0.0
        for meter in self._meters.values():
            sums = self._sums[id(meter)]
            mine = meter is asked
            read = meter.prompt_tokens + sums[0] + (prompt if mine else 0)
            written = meter.completion_tokens + sums[1] + (completion if mine else 0)
            tokens += read + written
            money += cost(meter.price, read, written, meter.seconds + (self._longest if mine else 0.0))
        if self.budget.tokens is not None and tokens > self.budget.tokens:
            return f"{self.budget.tokens:,} tokens"
        if self.budget.usd is not None and money > self.budget.usd:
            return f"{self.budget.usd:g} usd"
        if self.budget.hours is not None and now - self._began + self._longest > self.budget.hours * 3600:
            return f"{self.budget.hours:g} hours"
        return ""
