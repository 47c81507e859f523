"""The driver of engines: always full, each request answered once, and those that kill the engine set apart from all others."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, repeat
from math import ceil, log2

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.files import RunError
from pipeline.teachers.continuous import Engine, EngineDied, running


@dataclass
class Factory:
    """Starts engines in memory. ``poison``: requests that kill in the step after they came; ``lives``: after how many steps each engine

    dies of something else, None for never; ``at_start``: which starts fail. ``at_once``: how many are answered by one step."""

    poison: set[int] = field(default_factory=set)
    lives: Iterator[int | None] = field(default_factory=lambda: repeat(None))
    at_start: Iterator[bool] = field(default_factory=lambda: repeat(False))
    room: int = 4
    at_once: int = 2
    starts: int = 0
    closed: int = 0
    others: int = 0
    most: int = 0
    submitted: list[int] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)

    def start(self) -> Engine[int, str]:
        self.starts += 1
        if next(self.at_start):
            raise EngineDied("no memory")
        return InMemory(self, next(self.lives))

    def running(self, restarts: int = 3, apart_in_a_row: int = 10):
        def apart(deaths: int, error: str) -> str:
            return f"died {deaths} times: {error}"

        return running(
            self.start, apart=apart, restarts=restarts, apart_in_a_row=apart_in_a_row, sleep=self.pauses.append
        )


class InMemory:
    def __init__(self, factory: Factory, life: int | None) -> None:
        self.factory, self.life = factory, life
        self.has: dict[int, int] = {}
        self.dead = self.closed = False

    @property
    def room(self) -> int:
        return self.factory.room

    def submit(self, number: int, request: int) -> str | None:
        assert not self.closed
        if self.dead or self.life == 0:
            raise EngineDied("it was dead already")
        assert number not in self.has
        if request < 0:
            return "refused"
        self.has[number] = request
        self.factory.submitted.append(request)
        self.factory.most = max(self.factory.most, len(self.has))
        return None

    def step(self) -> list[tuple[int, str]]:
        assert self.has
        assert not self.closed
        if self.life is not None:
            self.life -= 1
        if self.life == 0:
            self.factory.others += 1
            self.dead = True
            raise EngineDied("something else")
        if self.factory.poison & set(self.has.values()):
            self.dead = True
            raise EngineDied("signal 9")
        done = list(self.has.items())[-self.factory.at_once :]
        for number, _ in done:
            del self.has[number]
        return [(number, f"about {request}") for number, request in done]

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self.factory.closed += 1


def results(factory: Factory, requests: list[int], **settings: int) -> list[tuple[int, str]]:
    with factory.running(**settings) as answers:
        return list(answers(iter(requests)))


def test_it_is_kept_full_and_nothing_is_taken_that_it_has_no_room_for() -> None:
    factory = Factory(room=8, at_once=3)
    taken: list[int] = []
    answered = 0

    def endless() -> Iterator[int]:
        for number in range(10**9):
            assert len(taken) - answered < 8
            taken.append(number)
            yield number

    with factory.running() as answers:
        for request, result in answers(endless()):
            answered += 1
            assert result == f"about {request}"
            assert len(taken) >= 8
            if answered == 200:
                break
    assert factory.starts == factory.closed == 1
    assert factory.most == 8


def test_it_can_be_asked_again_and_a_result_without_the_engine_is_given_at_once() -> None:
    factory = Factory(room=100)
    with factory.running() as answers:
        stream = answers(chain([-1], iter([5])))
        assert next(stream) == (-1, "refused")
        assert factory.submitted == []
        assert list(stream) == [(5, "about 5")]
        assert list(answers(iter([6, 6]))) == [(6, "about 6")] * 2
        assert list(answers(iter([]))) == []
    assert factory.starts == factory.closed == 1


@given(
    requests=st.lists(st.integers(-1, 12), max_size=60),
    poison=st.sets(st.integers(0, 12)),
    room=st.integers(1, 40),
    at_once=st.integers(1, 5),
    # Two deaths of other causes in a row could look like the fault of a request that was there alone: between them one engine lives on.
    lives=st.lists(st.integers(0, 6), max_size=12),
    starts=st.lists(st.booleans(), max_size=12),
)
@example(requests=[5, 1], poison={5}, room=2, at_once=1, lives=[1, 1], starts=[])
def test_each_request_has_one_result_whatever_dies(
    requests: list[int], poison: set[int], room: int, at_once: int, lives: list[int], starts: list[bool]
) -> None:
    alive: Iterator[int | None] = chain(chain.from_iterable((life, None) for life in lives), repeat(None))
    at_start = chain(chain.from_iterable((fails, False) for fails in starts), repeat(False))
    factory = Factory(poison=poison, lives=alive, at_start=at_start, room=room, at_once=at_once)
    found = results(factory, requests, apart_in_a_row=len(requests))
    assert sorted(request for request, _ in found) == sorted(requests)
    for request, result in found:
        if request in poison:
            assert result.startswith("died ")
        else:
            assert result == ("refused" if request < 0 else f"about {request}")
    killers = sum(request in poison for request in requests)
    paths = killers * (ceil(log2(room)) + 3)
    assert factory.starts <= 1 + paths + len(lives) + sum(starts)
    assert factory.closed == factory.starts - sum(starts[: (factory.starts + 1) // 2])
    assert factory.most <= room


def test_one_killer_among_many_costs_few_starts_and_says_how_often_it_killed() -> None:
    factory = Factory(poison={700}, room=512, at_once=64)
    found = dict(results(factory, list(range(1000))))
    assert found.pop(700).startswith("died ")
    assert found == {request: f"about {request}" for request in range(1000) if request != 700}
    assert factory.starts <= 12
    assert len(factory.submitted) < 1000 + 512 + 512  # what was answered is not asked again


def test_pauses_grow_until_there_is_an_answer() -> None:
    factory = Factory(at_start=iter([False, True, True, False, False]), lives=iter([2, 2, None]), at_once=1, room=1)
    assert len(results(factory, [1, 2, 3])) == 3
    assert factory.pauses == [1.0, 2.0, 4.0, 1.0]


def test_an_engine_that_does_not_start_stops_the_run() -> None:
    factory = Factory(at_start=repeat(True))
    with pytest.raises(RunError, match="4 times in a row: no memory"):
        results(factory, [1])
    assert factory.starts == 4
    factory = Factory(lives=repeat(0))  # it starts, and is dead when the first request comes
    with pytest.raises(RunError, match="2 times in a row: it was dead already"):
        results(factory, [1], restarts=1)
    assert factory.starts == factory.closed == 2


def test_an_engine_that_dies_of_everything_stops_the_run() -> None:
    factory = Factory(poison=set(range(100)), room=8)
    with pytest.raises(RunError, match="of 4 requests one after the other"):
        results(factory, list(range(100)), apart_in_a_row=3)
    assert factory.starts == factory.closed < 20


def test_what_is_left_half_way_is_dropped_with_the_engine() -> None:
    factory = Factory(room=8, at_once=1)
    with factory.running() as answers:
        stream = answers(iter(range(100)))
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert factory.closed == 1
        assert list(answers(iter([200]))) == [(200, "about 200")]
    assert factory.starts == factory.closed == 2


def test_an_interrupt_closes_the_engine() -> None:
    factory = Factory(room=8)

    def interrupted() -> Iterator[int]:
        yield 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), factory.running() as answers:
        list(answers(interrupted()))
    assert factory.closed == 1
