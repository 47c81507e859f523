"""Ask teachers through the response store: what is answered there is not asked, and every answer is there before it counts.

First every request is looked up, and what is missing goes to its teacher, as fast as that takes it; the answers are committed as they
come, by a thread of its own, so that no teacher waits for the disk. What was revoked is neither asked nor used. Then, with every request
answered or failed, the rows are given in the order of the prompts. What is held in memory is the store's index, 16 bytes a request, and
the failures.

Limits: several teachers are asked one after the other. Two rows with the same rendered prompt share one answer.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Final

from pipeline import teachers, workers
from pipeline.files import RunError, plain
from pipeline.progress import Advance, bar, say_line
from pipeline.records import Drop, Prompt, Response
from pipeline.requests import Asking, Respondent, requests_of
from pipeline.responses import Store, Stored, open_store, request_key
from pipeline.revocations import REASON, why_not
from pipeline.spending import Meter, Purse, priced
from pipeline.teachers import Answer, Failure, Request

RECENT_SECONDS: Final = 30.0
FAMILY_BYTES: Final = 16

Rows = Callable[[], Iterable[Prompt]]
"""Gives the prompts anew each time that it is called: they are gone through once a teacher, and once for the result."""


def ask(
    asking: Asking, rows: Rows, responses: Path, *, total: int | None = None, meters: dict[str, Meter] | None = None
) -> Iterator[Response | Drop]:
    """Ask the teachers about the prompts; one row a request, in the order of the prompts, then of the teachers, then of the samples.

    ``responses`` is the store's folder, ``total`` the number of prompts where it is known. ``meters`` is filled with what each teacher
    was asked now. Raises InputError for requests that cannot be made, and RunError where a teacher fails or the budget is used up; what
    was answered before stays in the store.
    """
    meters = {} if meters is None else meters
    for respondent in asking.respondents:
        assert respondent.settings is not None
        meters.setdefault(respondent.name, Meter(priced(respondent.settings.price, asking.workers)))
    purse = Purse(asking.budget, meters)
    with open_store(responses) as store:
        asked = [
            _fill(asking, respondent, rows, store, meters[respondent.name], purse, total)
            for respondent in asking.respondents
        ]
        _say_what_was_asked(asking.stage, asked, meters)
        if purse.too_large:
            raise RunError(
                f"{asking.stage}: {purse.too_large:,} requests can each take more than the whole budget and were not asked; "
                f"{purse.spent}; raise stages.{asking.stage}.budget or lower max_tokens"
            )
        places = [0] * len(asked)
        for prompt in rows():
            number = 0
            for position, respondent in enumerate(asking.respondents):
                if not respondent.takes(prompt):
                    continue
                families, failures = asked[position]
                for _ in range(asking.n):
                    start = places[position]
                    family = bytes(families[start : start + FAMILY_BYTES])
                    places[position] += FAMILY_BYTES
                    name = f"{prompt.id}#{number}"
                    number += 1
                    stored = store.get(family, asking.max_tokens)
                    key = request_key(family.hex(), asking.max_tokens) if stored is None else stored.key
                    because = why_not(asking.revoked, key=key, family=family.hex())
                    if because is not None:
                        asked_for = stored is not None or key in asking.revoked  # else nobody ever was asked this
                        which = {"request": key} if asked_for else {"family": family.hex()}
                        why = Failure(REASON, {**which, "because": because})
                        yield _drop(name, prompt, respondent, why)
                    elif stored is None:
                        yield _drop(name, prompt, respondent, failures[family])
                    else:
                        yield response_of(name, prompt, respondent, stored, rationalised=asking.rationalise)
        if places != [len(families) for families, _ in asked]:
            raise RunError(f"{asking.stage}: the prompts are others than when they were asked about; run again")


Asked = tuple[bytearray, dict[bytes, Failure]]
"""The families of a teacher's requests, in order, and the failures among them."""


def _fill(
    asking: Asking, respondent: Respondent, rows: Rows, store: Store, meter: Meter, purse: Purse, total: int | None
) -> Asked:
    """See to it that each of a teacher's requests is in the store or has failed."""
    settings = respondent.settings
    assert settings is not None
    families = bytearray()
    failures: dict[bytes, Failure] = {}
    under_way: set[bytes] = set()

    def missing(advance: Advance) -> Iterator[Request]:
        for prompt in rows():
            if not respondent.takes(prompt):
                continue
            for request in requests_of(asking, respondent, prompt):
                family = bytes.fromhex(request.family)
                families.extend(family)
                known = family in under_way or family in failures
                refused = why_not(asking.revoked, key=request.key, family=request.family) is not None
                if known or refused or store.has(family, asking.max_tokens):
                    advance()
                else:
                    under_way.add(family)
                    yield request

    expected = None if total is None or not respondent.takes_all else total * asking.n
    with bar(f"{asking.stage} ({plain(respondent.name, 24)})", expected, "requests") as advance:
        wanted = missing(advance)
        first = next(wanted, None)
        if first is None:
            return families, failures
        budget = asking.budget
        by_token = budget is not None and (budget.tokens is not None or budget.usd is not None)
        count = teachers.counter(settings) if by_token else None
        if settings.backend == "vllm":
            say_line(f"{asking.stage}: starting the teacher ({plain(respondent.name)})")
        if asking.engine == "local":
            connected = teachers.connect(settings, first.sampling)
        else:
            connected = workers.connect(
                settings, first.sampling, asking.workers, asking.cluster, identity=respondent.identity
            )
        with _Commits(store, asking.chunk, under_way) as commits, connected as teacher:
            identity = store.add_teacher(respondent.identity)
            waiting = chain([first], wanted)
            held: Request | None = None
            began = time.monotonic()
            before = meter.seconds
            note = _note(meter, purse)

            def admitted() -> Iterator[Request]:
                nonlocal held
                held = held or next(waiting, None)
                while held is not None:
                    meter.seconds = before + time.monotonic() - began
                    if purse.admits(held, meter, count):
                        request, held = held, None
                        yield request
                    elif purse.never(held, meter, count):
                        purse.too_large += 1
                    else:
                        return
                    held = next(waiting, None)

            while True:
                answered = False
                for request, result in teacher(admitted()):
                    answered = True
                    meter.add(result)
                    meter.seconds = before + time.monotonic() - began
                    purse.settle(request)
                    family = bytes.fromhex(request.family)
                    if isinstance(result, Failure):
                        failures[family] = result
                        under_way.discard(family)
                    else:
                        commits.add(record_of(respondent, identity, request, result))
                    advance(1, note)
                if held is None:
                    break
                if not answered:
                    raise RunError(
                        f"{asking.stage}: the budget of {purse.refused} does not hold another request; {purse.spent}; "
                        f"run again to go on with a fresh budget, or raise stages.{asking.stage}.budget"
                    )
    return families, failures


class _Commits:
    """Answers on their way into the store: a thread commits what has come, up to ``chunk`` together, while the next are waited for."""

    def __init__(self, store: Store, chunk: int, under_way: set[bytes]) -> None:
        self.store, self.chunk, self.under_way = store, chunk, under_way
        self.came: SimpleQueue[Stored | None] = SimpleQueue()  # None: there will be no more
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="commits")

    def __enter__(self) -> "_Commits":
        self.writing = self.thread.submit(self._write)
        return self

    def __exit__(self, *_: object) -> None:
        self.came.put(None)
        self.thread.shutdown()
        self.writing.result()

    def add(self, record: Stored) -> None:
        """Take one answer. Raises RunError where an earlier one could not be written."""
        if self.writing.done():
            self.writing.result()
        self.came.put(record)

    def _write(self) -> None:
        more = True
        while more:
            came = [self.came.get()]
            with suppress(Empty):
                while len(came) < self.chunk:
                    came.append(self.came.get_nowait())
            more = came[-1] is not None
            records = [record for record in came if record is not None]
            self.store.append(records)
            for record in records:
                self.under_way.discard(bytes.fromhex(record.family))


def _note(meter: Meter, purse: Purse) -> Callable[[], str]:
    """Gives a few words on how it goes, where they are shown: tokens a second are those of the last RECENT_SECONDS or so."""
    seen = deque([(meter.seconds, meter.completion_tokens)])

    def words() -> str:
        while len(seen) > 1 and meter.seconds - seen[1][0] >= RECENT_SECONDS:
            seen.popleft()
        seconds, tokens = meter.seconds - seen[0][0], meter.completion_tokens - seen[0][1]
        seen.append((meter.seconds, meter.completion_tokens))
        parts = [f"{tokens / max(seconds, 1e-3):,.0f} tokens/s"]
        if meter.answers:
            parts.append(f"mean length {meter.completion_tokens / meter.answers:,.0f}")
            parts += [f"{plain(name, 12)} {n / meter.answers:.0%}" for name, n in meter.finish_reasons.most_common(3)]
        if failed := meter.requests - meter.answers:
            parts.append(f"{failed:,} failed")
        if purse.used is not None:
            parts.append(f"budget {purse.used:.0%} used")
        return ", ".join(parts)

    return words


def _say_what_was_asked(stage: str, asked: list[Asked], meters: dict[str, Meter]) -> None:
    total = sum(len(families) // FAMILY_BYTES for families, _ in asked)
    now = sum(meter.requests for meter in meters.values())
    say_line(f"{stage}: {now:,} of {total:,} requests asked, {total - now:,} answered from the response store")


def record_of(respondent: Respondent, identity: str, request: Request, answer: Answer) -> Stored:
    """An answer as the store keeps it; ``identity`` is the name that the store gave the teacher's."""
    return Stored(
        key=request.key,
        family=request.family,
        max_tokens=request.max_tokens,
        finish_reason=answer.finish_reason,
        teacher=respondent.name,
        identity=identity,
        prompt=request.prompt_digest,
        sampling={name: value for name, value in request.sampling.items() if name != "max_tokens"},
        seed=request.seed,
        sample=request.sample,
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        text=answer.text,
        mean_logprob=answer.mean_logprob,
        label_logprobs=answer.label_logprobs,
    )


def _drop(name: str, prompt: Prompt, respondent: Respondent, failure: Failure) -> Drop:
    evidence = {"source": prompt.source, "teacher": respondent.name, **failure.evidence}
    return Drop(id=name, reason=failure.reason, evidence=evidence)


def response_of(name: str, prompt: Prompt, respondent: Respondent, stored: Stored, *, rationalised: bool) -> Response:
    """The row that a stored answer gives."""
    return Response(
        id=name,
        prompt=prompt.id,
        sample=stored.sample,
        request=stored.key,
        teacher=respondent.name,
        text=stored.text,
        finish_reason=stored.finish_reason,
        prompt_tokens=stored.prompt_tokens,
        completion_tokens=stored.completion_tokens,
        mean_logprob=stored.mean_logprob,
        label_logprobs=stored.label_logprobs,
        rationalised=rationalised,
        input=prompt.input,
        gold=prompt.gold,
        choices=prompt.choices,
        slices=prompt.slices,
    )
