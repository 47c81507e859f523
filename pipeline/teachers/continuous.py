"""Keep an engine full, and outlive its death: what any backend with an engine of its own needs beside the engine.

    with running(start, apart=lambda deaths, error: Failure("engine_died", {"deaths": deaths, "error": error})) as answers:
        for request, result in answers(requests): ..

The engine always has as many requests as it says it has room for: after each of its steps, as many more are taken from the iterator as
it has answered. When it dies it is started anew, and what it had not answered is asked again: the requests that it had are its suspects,
and halves of them are asked alone, until those that kill it are found. Such a request is set apart, all others are answered. A request is
set apart only after it was the engine's only one at two deaths in a row, so that a death of another cause fails none.

Limits: an engine that hangs is waited for. While suspects are looked into, nothing else is asked.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Final, Generic, Protocol, TypeVar

from pipeline.files import RunError
from pipeline.progress import say_line

Asked = TypeVar("Asked")
Result = TypeVar("Result")
Takes_contra = TypeVar("Takes_contra", contravariant=True)
Gives_co = TypeVar("Gives_co", covariant=True)

ALONE: Final = 2  # deaths in a row with one request and no other: two causes at once are not to be expected
APART_IN_A_ROW: Final = 10  # requests set apart without an answer in between: then it is not the requests
FIRST_PAUSE: Final = 1.0  # seconds before the first restart, doubled for each further one without an answer in between
LONGEST_PAUSE: Final = 60.0


class EngineDied(Exception):
    """The engine is gone and so is all that it had not answered. The message is one line: how it died."""


class Engine(Protocol[Takes_contra, Gives_co]):
    """Something that works on many requests at once. Each has a number; a number is used once."""

    @property
    def room(self) -> int:
        """How many requests it should have so that it never runs dry, at least 1."""

    def submit(self, number: int, request: Takes_contra) -> Gives_co | None:
        """Take a request, or give its result at once. Raises EngineDied where it was dead already: this request is not to blame."""

    def step(self) -> Iterable[tuple[int, Gives_co]]:
        """Work on, and give what is finished, by number. Called only while there are requests. Raises EngineDied."""

    def close(self) -> None:
        """End it, dead or alive, and drop what it has; its memory is free afterwards."""


Answers = Callable[[Iterator[Asked]], Iterator[tuple[Asked, Result]]]


@contextmanager
def running(
    start: Callable[[], Engine[Asked, Result]],
    *,
    apart: Callable[[int, str], Result],
    restarts: int = 3,
    apart_in_a_row: int = APART_IN_A_ROW,
    sleep: Callable[[float], None] = time.sleep,
    who: str = "teacher",
) -> Iterator[Answers[Asked, Result]]:
    """An engine, started, as a function from requests to their results, for the time of the block.

    ``start`` gives a new engine, or raises EngineDied where that does not succeed. ``apart`` makes the result of a request that kills
    engines, from how many deaths it was there for and how the last was. ``restarts`` deaths in a row without an answer are borne at
    start-up or where the engine had no request; ``apart_in_a_row`` requests may kill it one after the other. ``who`` begins its messages.

    The function gives one result for each request, in any order; requests are not compared and may be equal. Where it is left before all
    are answered, the engine is closed, and started anew should it be called again. It raises RunError where no engine lives long enough.
    """
    keeper = _Keeper(start, apart, restarts, apart_in_a_row, sleep, who)
    try:
        keeper.engine_at_hand()
        yield keeper.answers
    finally:
        keeper.close()


@dataclass
class _Wanted(Generic[Asked]):
    """A request, and at how many deaths the engine had it."""

    request: Asked
    deaths: int = 0


class _Keeper(Generic[Asked, Result]):
    """Holds the engine, or none where the last one is dead and nothing had to be asked since."""

    def __init__(
        self,
        start: Callable[[], Engine[Asked, Result]],
        apart: Callable[[int, str], Result],
        restarts: int,
        apart_in_a_row: int,
        sleep: Callable[[float], None],
        who: str,
    ) -> None:
        self.start, self.apart, self.sleep, self.who = start, apart, sleep, who
        self.restarts, self.apart_in_a_row = restarts, apart_in_a_row
        self.engine: Engine[Asked, Result] | None = None
        self.room = 1
        self.numbers = count()
        # All of these since the last answer.
        self.deaths = 0
        self.idle_deaths = 0
        self.set_apart = 0
        self.error = ""

    def engine_at_hand(self) -> Engine[Asked, Result]:
        """The engine, started where there is none. Raises RunError where it does not start."""
        while self.engine is None:
            if self.deaths:
                self.sleep(min(FIRST_PAUSE * 2 ** (self.deaths - 1), LONGEST_PAUSE))
            try:
                self.engine = self.start()
                self.room = max(1, self.engine.room)
            except EngineDied as death:
                self._died(death, 0)
        return self.engine

    def close(self) -> None:
        """End the engine where there is one."""
        engine, self.engine = self.engine, None
        if engine is not None:
            engine.close()

    def answers(self, requests: Iterator[Asked]) -> Iterator[tuple[Asked, Result]]:
        """One result for each request."""
        wanted = map(_Wanted, requests)
        waiting: deque[_Wanted[Asked]] = deque()
        finished = False
        try:
            while (suspects := (yield from self._ask(waiting, wanted))) is not None:
                yield from self._look_into(suspects)
            finished = True
        finally:
            if not finished:
                self.close()

    def _ask(
        self, waiting: deque[_Wanted[Asked]], more: Iterator[_Wanted[Asked]]
    ) -> Generator[tuple[Asked, Result], None, list[_Wanted[Asked]] | None]:
        """Ask those that wait, then more. Returns None where all are answered, or what the engine had when it died."""
        under_way: dict[int, _Wanted[Asked]] = {}
        try:
            while True:
                while len(under_way) < self.room:
                    if not waiting:
                        wanted = next(more, None)
                        if wanted is None:
                            break
                        waiting.append(wanted)
                    number = next(self.numbers)
                    result = self.engine_at_hand().submit(number, waiting[0].request)
                    wanted = waiting.popleft()
                    if result is None:
                        under_way[number] = wanted
                    else:
                        yield wanted.request, result
                if not under_way:
                    return None
                for number, result in self.engine_at_hand().step():
                    self.deaths = self.idle_deaths = self.set_apart = 0
                    yield under_way.pop(number).request, result
        except EngineDied as death:
            self._died(death, len(under_way))
            for wanted in under_way.values():
                wanted.deaths += 1
            return list(under_way.values())

    def _died(self, death: EngineDied, under_way: int) -> None:
        """Take note of a death. Raises RunError where there were too many."""
        self.close()
        self.error = str(death)
        self.deaths += 1
        self.idle_deaths = 0 if under_way else self.idle_deaths + 1
        if self.idle_deaths > self.restarts:
            raise RunError(
                f"{self.who}: the engine did not start or died without a request {self.idle_deaths} times in a row: {self.error}; "
                "what it had answered before is stored"
            ) from None
        say_line(
            f"{self.who}: the engine died ({self.error}); it is started anew"
            + (f", and what it had is asked again (requests: {under_way:,})" if under_way else "")
        )

    def _look_into(self, suspects: Sequence[_Wanted[Asked]]) -> Generator[tuple[Asked, Result], None, None]:
        """Answer the requests that the engine had when it died, and set apart those that it dies of."""
        if not suspects:
            return
        if len(suspects) == 1:
            yield from self._look_into_one(suspects[0])
            return
        middle = len(suspects) // 2
        rest = suspects[middle:]
        left = yield from self._ask_alone(suspects[:middle])
        if left:
            yield from self._look_into(left)
            rest = yield from self._ask_alone(rest)
        # Where the first half is well the culprit is in the second, which need not die once more as a whole to show that.
        yield from self._look_into(rest)

    def _ask_alone(
        self, group: Sequence[_Wanted[Asked]]
    ) -> Generator[tuple[Asked, Result], None, list[_Wanted[Asked]]]:
        """Ask these and no others. Returns those that were not answered when the engine died, if it did."""
        waiting = deque(group)
        left = yield from self._ask(waiting, iter(()))
        return [] if left is None else [*left, *waiting]

    def _look_into_one(self, wanted: _Wanted[Asked]) -> Generator[tuple[Asked, Result], None, None]:
        died = 0
        while died < ALONE:
            left = yield from self._ask(deque([wanted]), iter(()))
            if left is None:
                return
            died += len(left)
        self.set_apart += 1
        if self.set_apart > self.apart_in_a_row:
            raise RunError(
                f"{self.who}: the engine died of each of {self.set_apart} requests one after the other, and answered none between them: "
                f"{self.error}; it is hardly the requests; what it had answered before is stored"
            )
        yield wanted.request, self.apart(wanted.deaths, self.error)
