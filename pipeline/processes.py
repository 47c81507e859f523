"""A function over many tasks, its results in the order of the tasks: in this process, or in several where the work is worth it.

    with Crew("local", processes=None) as crew:
        for written in crew.in_order(work, tasks, weight=total_bytes): ..

Results are the same wherever they were made, so how many processes there are changes no byte. Processes are started once, for the first
work that is large enough (about a second), and are used for all that comes after it. Functions and tasks are pickled: functions stand at
the top of a module.
"""

import multiprocessing
import os
import pickle
import signal
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from pipeline.files import RunError

R = TypeVar("R")

WORTH_IT: Final = 48 << 20  # bytes of rows from which starting processes saves time
AHEAD: Final = 3  # tasks a process that are under way or waiting to be taken

Engine = Literal["local", "ray"]


class Crew:
    """Where the rows of a run are worked on. ``processes``: at most so many, None is one for each core."""

    def __init__(self, engine: Engine = "local", processes: int | None = None) -> None:
        self.engine = engine
        self.processes = cores() if processes is None else processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def in_order(
        self, function: Callable[..., R], tasks: Iterable[tuple[Any, ...]], *, weight: int, shared: Any = None
    ) -> Iterator[R]:
        """``function(shared, *task)`` for each task, in order. ``weight``: bytes of rows that all of them hold; little work stays here.

        Raises what the function raised; RunError where a process was killed.
        """
        if self.processes <= 1 or weight < WORTH_IT:
            for task in tasks:
                yield function(shared, *task)
            return
        pool = self._started()
        with tempfile.NamedTemporaryFile(prefix="stepdistill-") as file:
            pickle.dump(shared, file, protocol=pickle.HIGHEST_PROTOCOL)  # once, not with each task
            file.flush()
            yield from self._results(pool, function, Path(file.name), tasks)

    def _results(
        self, pool: ProcessPoolExecutor, function: Callable[..., R], shared: Path, tasks: Iterable[tuple[Any, ...]]
    ) -> Iterator[R]:
        waiting: deque[Future[R]] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(_call, function, shared, task))
                if len(waiting) >= AHEAD * self.processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise RunError(
                "a process that worked on rows was killed, most likely for want of memory; set `processes: 1` or free memory, "
                "and run again"
            ) from None
        finally:
            for future in waiting:
                future.cancel()

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(
                self.processes, mp_context=multiprocessing.get_context("spawn"), initializer=_quiet
            )
        return self._pool


def _call(function: Callable[..., R], shared: Path, task: tuple[Any, ...]) -> R:
    return function(_shared(shared), *task)


@lru_cache(maxsize=1)
def _shared(path: Path) -> Any:
    """What the process that started this one wrote there, under a name that is used once."""
    return pickle.loads(path.read_bytes())


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def _quiet() -> None:
    """Ctrl-C is for the process that started this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
