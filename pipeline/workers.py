"""Past one machine: the same teacher in several Ray workers at once, on this machine or on a cluster.

    sample: {engine: ray, workers: 4, ray: {num_gpus: 1}}                          # Ray is started here, for as long as it is needed
    sample: {engine: ray, workers: 32, ray: {address: "10.0.0.1:6379", num_gpus: 8}}

Each worker is a Ray actor that connects to the teacher as one process would and is fed without a pause: behind what its teacher has taken
some requests wait at the worker, 16 at first and twice as many each time that they run out. Answers travel back as they come, and whoever
asked commits them; a worker writes nothing. One that dies costs what it had not given back: others are asked for that, and another worker
starts in its place. A request that was there at two deaths is asked in ever smaller groups, then alone; when it was there at three and
alone at the last it becomes the failure ``worker_died``.

The first requests are handed out when every worker that Ray has found a place for is up (a minute after the first at the latest), so that
a short run is spread evenly. A worker without a place is waited for, and a line says so; the others work meanwhile.

Limits: the driver runs on a machine of the cluster (``ray://`` is refused) and nodes need the same version of this package. What a worker
reads it reads on its node: the model's files, whose identity must be the driver's, and the environment, API keys included; a relative path
is taken from the driver's folder where the node has that. Ray pickles requests and answers between its processes, and whoever reaches its
ports can run code there: keep a cluster to yourself. Ray hides GPUs from workers with ``num_gpus: 0``. What a worker's teacher prints is in
Ray's logs (``/tmp/ray/session_latest/logs``), and Ray itself prints a line when a worker dies. A worker whose driver is slower than its
teacher runs dry for moments. Keys of requests that are under way together must differ.
"""

import concurrent.futures
import math
import os
import platform
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final

from pydantic import JsonValue

from pipeline import teachers
from pipeline.cluster import check_version, connected, in_use, own, version
from pipeline.files import InputError, RunError, plain
from pipeline.progress import say_line
from pipeline.requests import RayCluster
from pipeline.teachers import Answer, Failure, Request, Sampling, Teacher, TeacherSettings

FIRST_AHEAD: Final = 16  # requests that wait at a worker behind those that its teacher has taken
MOST_AHEAD: Final = 1024
PATIENCE: Final = (
    0.05  # seconds that a teacher waits for the next request, its engine idle; then it finishes what it has
)
EXCHANGE_SECONDS: Final = 60.0  # a worker without news says so
FIRST_SECONDS: Final = 60.0  # those that are up wait no longer for others that start
PLACE_SECONDS: Final = 10.0  # after which it is said that a worker has no place
STOP_SECONDS: Final = 10.0  # for a worker to end its engine by itself
ABANDON_SECONDS: Final = 2.0  # where it has requests that nobody waits for any more
MOST_STARTS: Final = 3  # deaths at the start, one after the other, that a worker is replaced for
MOST_DEATHS: Final = 3  # of a request
MOST_BARREN: Final = 20  # deaths in a row without one answer: more than finding one request among 1,024 takes
OBJECT_STORE: Final = 128 << 20  # bytes of shared memory of a Ray that is started here; what goes through it is text

Result = Answer | Failure


@contextmanager
def connect(
    settings: TeacherSettings,
    sampling: Sampling,
    workers: int,
    cluster: RayCluster,
    *,
    identity: Mapping[str, JsonValue] | None = None,
) -> Iterator[Teacher]:
    """The teacher in ``workers`` Ray actors, for the time of the block. ``identity`` is what each of them must resolve it to, if given.

    A Ray that this process is connected to already is used, and left as it is. Raises InputError where the package ray is missing, the
    cluster cannot be reached or this machine cannot hold the workers; and, as the teacher does, InputError and RunError of a worker.
    """
    with _room(workers, cluster) as ray:
        worker = ray.remote(_Worker).options(
            num_cpus=cluster.num_cpus,
            num_gpus=cluster.num_gpus,
            resources=cluster.resources or None,
            max_concurrency=2,  # a worker can be told to stop while it waits for answers
            max_restarts=0,
        )
        folder, here = str(Path.cwd()), version()

        def start() -> Any:
            return worker.remote(settings, sampling, None if identity is None else dict(identity), folder, here)

        say_line(f"sample: starting {workers:,} worker{'s' if workers > 1 else ''} in Ray")
        crew = _Crew(ray, start, workers, cluster)
        try:
            crew.begin()
            yield crew.answers
        finally:
            crew.close()


@contextmanager
def _room(workers: int, cluster: RayCluster) -> Iterator[Any]:
    """The package ray, connected, with room for the workers where it is started here. Raises InputError and RunError."""
    here = cluster.address is None and not in_use()
    with connected(
        cluster.address,
        setting="stages.sample.",
        num_cpus=max(1, math.ceil(workers * cluster.num_cpus)),
        resources={name: amount * workers for name, amount in cluster.resources.items()},
        memory=OBJECT_STORE,
    ) as ray:
        there = ray.cluster_resources().get("GPU", 0.0)
        if here and there < workers * cluster.num_gpus:
            raise InputError(
                f"stages.sample.workers: {workers:,} workers with num_gpus: {cluster.num_gpus:g} need more than the {there:g} GPUs "
                "of this machine; set fewer workers or another num_gpus, or give the address of a cluster"
            )
        yield ray


class _Worker:
    """The actor: a teacher, in a thread of its own, between a queue of requests and a list of results."""

    def __init__(
        self,
        settings: TeacherSettings,
        sampling: Sampling,
        identity: dict[str, JsonValue] | None,
        folder: str,
        version: str,
    ) -> None:
        self.queue: deque[Request] = deque()
        self.results: list[tuple[str, Result]] = []
        self.ahead = FIRST_AHEAD
        self.up = self.closing = False
        self.changed = threading.Condition()
        if Path(folder).is_dir():
            os.chdir(folder)
        self.work = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="teacher").submit(
            self._work, settings, sampling, identity, version
        )
        self.work.add_done_callback(self._notify)

    def placed(self) -> None:
        """Returns as soon as there is this worker."""

    def exchange(self, requests: list[Request], more: bool) -> tuple[list[tuple[str, Result]], int]:
        """Take requests; give results by their requests' keys, and how many further requests are welcome (0: the teacher is not up).

        Waits until there is a result or, where the caller has ``more``, until more are welcome. Raises what the teacher raised.
        """
        with self.changed:
            self.queue.extend(requests)
            self.changed.notify_all()
            self.changed.wait_for(
                lambda: self.results or self.closing or self.work.done() or (more and self._welcome()),
                timeout=EXCHANGE_SECONDS,
            )
            results, self.results = self.results, []
            if not results and self.work.done():
                self.work.result()
            return results, self._welcome()

    def stop(self) -> None:
        """End the teacher, and wait for that."""
        with self.changed:
            self.closing = True
            self.changed.notify_all()
        concurrent.futures.wait([self.work], timeout=STOP_SECONDS)

    def _welcome(self) -> int:
        return self.ahead - len(self.queue) if self.up and len(self.queue) <= self.ahead // 2 else 0

    def _notify(self, _: object) -> None:
        with self.changed:
            self.changed.notify_all()

    def _work(
        self, settings: TeacherSettings, sampling: Sampling, identity: dict[str, JsonValue] | None, version: str
    ) -> None:
        check_version(version, "stages.sample.")
        if identity is not None and teachers.identity(settings) != identity:
            node = plain(platform.node())
            raise InputError(
                f"stages.sample.teacher: on the node {node} it is another one than on this machine; put the same files there"
            )
        with teachers.connect(settings, sampling) as teacher:
            with self.changed:
                self.up = True
                self.changed.notify_all()
            while self._has_work():
                for request, result in teacher(self._pull()):
                    with self.changed:
                        self.results.append((request.key, result))
                        self.changed.notify_all()
                        if self.closing:
                            return

    def _has_work(self) -> bool:
        """Waits for a request. False where there will be none."""
        with self.changed:
            self.changed.wait_for(lambda: self.queue or self.closing)
            return not self.closing

    def _pull(self) -> Iterator[Request]:
        """The requests, until there is none for a moment: one that waited for longer would hold up the engine."""
        while True:
            with self.changed:
                if not self.queue:
                    self.ahead = min(2 * self.ahead, MOST_AHEAD)
                self.changed.notify_all()
                self.changed.wait_for(lambda: self.queue or self.closing, timeout=PATIENCE)
                if self.closing or not self.queue:
                    return
                request = self.queue.popleft()
            yield request


@dataclass
class _Seat:
    """One of the workers, whichever actor that is now."""

    actor: Any
    call: Any  # what it was asked last and has not answered; None where it has nothing to do
    since: float
    placed: bool = False
    told: bool = False  # that it has no place
    up: bool = False
    alone: bool = False  # it has a group of suspects, and gets nothing else
    welcome: int = 0
    failed_starts: int = 0
    in_flight: dict[str, Request] = field(default_factory=dict)


class _Crew:
    """The workers, and what goes back and forth."""

    def __init__(self, ray: Any, start: Callable[[], Any], workers: int, cluster: RayCluster) -> None:
        self.ray, self.start, self.workers, self.cluster = ray, start, workers, cluster
        self.again: deque[Request] = deque()  # were in flight when a worker died
        self.suspects: deque[list[Request]] = deque()  # when two did; a group is asked with no others
        self.deaths: Counter[str] = Counter()
        self.barren = 0
        self.seats = [self._seat() for _ in range(workers)]

    def answers(self, requests: Iterator[Request]) -> Iterator[tuple[Request, Result]]:
        """See ``Teacher``. Raises InputError and RunError of the workers, and RunError where no worker lives long enough."""
        more = True

        def take(amount: int) -> list[Request]:
            nonlocal more
            taken = [self.again.popleft() for _ in range(min(amount, len(self.again)))]
            if more and len(taken) < amount:
                taken += islice(requests, amount - len(taken))
                more = len(taken) == amount
            return taken

        def feed(seat: _Seat) -> None:
            given = [] if seat.alone else take(seat.welcome)
            if not given and not seat.in_flight and self.suspects:
                given, seat.alone = self.suspects.popleft(), True
            if given or seat.in_flight:
                seat.in_flight |= {request.key: request for request in given}
                seat.call = seat.actor.exchange.remote(given, more and not seat.alone)

        while True:
            for seat in self.seats:
                if seat.call is None:
                    feed(seat)
            if not (more or self.again or self.suspects or any(seat.in_flight for seat in self.seats)):
                return
            yield from self._turn(feed)

    def begin(self) -> None:
        """Wait until the workers are up that Ray has a place for, but not long for the last. Raises as ``answers`` does."""
        first_up = math.inf
        while not (
            any(seat.up for seat in self.seats)
            and (all(seat.up or seat.told for seat in self.seats) or time.monotonic() - first_up > FIRST_SECONDS)
        ):
            for _ in self._turn(lambda _: None):
                pass
            if any(seat.up for seat in self.seats):
                first_up = min(first_up, time.monotonic())

    def close(self) -> None:
        """End all workers."""
        ray = self.ray
        with suppress(ray.exceptions.RayError):
            stops = [seat.actor.stop.remote() for seat in self.seats if seat.placed]
            if stops:
                abandoned = any(seat.in_flight for seat in self.seats)
                ray.wait(stops, num_returns=len(stops), timeout=ABANDON_SECONDS if abandoned else STOP_SECONDS)
        for seat in self.seats:
            with suppress(ray.exceptions.RayError):
                ray.kill(seat.actor)

    def _seat(self, failed_starts: int = 0) -> _Seat:
        actor = self.start()
        return _Seat(actor, actor.placed.remote(), time.monotonic(), failed_starts=failed_starts)

    def _turn(self, feed: Callable[[_Seat], None]) -> Iterator[tuple[Request, Result]]:
        """Wait for news of the workers, and give the results in them."""
        ray = self.ray
        calls = {seat.call: seat for seat in self.seats if seat.call is not None}
        answered, _ = ray.wait(list(calls), num_returns=1, timeout=1.0)
        if answered:
            answered, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        self._tell_who_waits()
        for call in answered:
            seat = calls[call]
            try:
                found = ray.get(call)
            except ray.exceptions.RayTaskError as error:
                raise own(error) or error from None
            except ray.exceptions.RayError as error:
                yield from self._died(seat, error)
                continue
            results = self._noted(seat, found)
            if seat.call is None:
                feed(seat)  # first, so that it has work while its results are looked after
            yield from results

    def _noted(self, seat: _Seat, found: Any) -> list[tuple[Request, Result]]:
        """What a worker's answer says of it, and the results in it."""
        seat.call = None
        if not seat.placed:
            seat.placed = True
            found = [], 0
        results, seat.welcome = found
        if not seat.up and not seat.welcome:
            seat.call = seat.actor.exchange.remote([], True)  # answered when it is up
            return []
        if not seat.up:
            seat.up, seat.failed_starts = True, 0
        if results:
            self.barren = 0
        noted = [(seat.in_flight.pop(key), result) for key, result in results]
        if not seat.in_flight:
            seat.alone = False
        return noted

    def _died(self, seat: _Seat, error: Exception) -> Iterator[tuple[Request, Result]]:
        """Put a new worker in the place of one that is gone, and what it had back into the queues. Raises RunError."""
        problem = plain(str(error).strip().rpartition("\n")[2], 200)
        lost = list(seat.in_flight.values())
        with suppress(self.ray.exceptions.RayError):
            self.ray.kill(seat.actor)  # it may only be out of reach, and would keep its place
        self.barren += 1
        if self.barren >= MOST_BARREN:
            raise RunError(
                f"teacher: workers died {self.barren} times in a row without one answer: {problem}; what was answered is stored"
            )
        failed_starts = 0 if seat.up else seat.failed_starts + 1
        place = self.seats.index(seat)
        if failed_starts < MOST_STARTS:
            self.seats[place] = self._seat(failed_starts)
            say_line(f"sample: a worker died ({problem}); another starts, {len(lost):,} requests go back to the queue")
        else:
            del self.seats[place]
            if not self.seats:
                raise RunError(f"teacher: the workers die at their start: {problem}; what was answered is stored")
            say_line(f"sample: a worker died {failed_starts} times at its start ({problem}); it is given up")
        self.deaths.update(request.key for request in lost)
        self.again.extend(request for request in lost if self.deaths[request.key] == 1)
        suspects = [request for request in lost if self.deaths[request.key] > 1]
        if len(suspects) == 1 and seat.alone and self.deaths[suspects[0].key] >= MOST_DEATHS:
            yield suspects[0], Failure("worker_died", {"deaths": self.deaths[suspects[0].key]})
        elif suspects:
            middle = (len(suspects) + 1) // 2
            self.suspects.extend(half for half in (suspects[:middle], suspects[middle:]) if half)

    def _tell_who_waits(self) -> None:
        """Say it, once, of workers that Ray finds no place for."""
        late = [
            seat
            for seat in self.seats
            if not seat.placed and not seat.told and time.monotonic() - seat.since > PLACE_SECONDS
        ]
        if not late:
            return
        for seat in late:
            seat.told = True
        needs = {"CPU": self.cluster.num_cpus, "GPU": self.cluster.num_gpus, **self.cluster.resources}
        free = self.ray.available_resources()
        wanted = ", ".join(f"{amount:g} {plain(name)}" for name, amount in needs.items() if amount)
        there = ", ".join(f"{free.get(name, 0.0):g} {plain(name)}" for name, amount in needs.items() if amount)
        say_line(
            f"sample: {len(late):,} of {self.workers:,} workers wait for a place: each needs {wanted or 'nothing'}, "
            f"free in the whole cluster are {there or 'all'}; they join when there is room"
        )
