"""A function over many tasks, its results in the order of the tasks: in this process, in several, or as Ray tasks on several machines.

    with Crew("local", processes=None) as crew:
        for written in crew.in_order(work, tasks, weight=total_bytes): ..

Results are the same wherever they were made, so neither the engine nor the number of processes changes a byte. Little work stays in this
process. Processes are started once, for the first work that is large enough (half a second), and are used for all that comes after it;
``rest`` ends them. Only so many results are held as keep everybody at work. Functions and tasks are pickled: functions stand at the top of
a module, and what the caller's own main module does is not done again.

Ctrl-C ends the processes at once, and so does the death of the one that started them, however it comes.

Limits: a limit on CPU time, as containers have it, is not seen: set ``processes`` there. With Ray all nodes must see the run's folder under
the same path, on a file system that they share; a task whose node dies is done again by another.
"""

import gc
import multiprocessing
import os
import pickle
import platform
import signal
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from multiprocessing import resource_tracker
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal, TypeVar

from pipeline import cluster
from pipeline.cluster import Cluster
from pipeline.files import InputError, RunError, plain

R = TypeVar("R")

WORTH_IT = 48 << 20  # bytes of rows from which starting processes saves time
AHEAD: Final = 3  # tasks a process that are under way or waiting to be taken
OBJECT_STORE: Final = 512 << 20  # bytes of shared memory of a Ray that is started here
KILLED: Final = "a process that worked on rows was killed, most likely for want of memory; set `processes: 1` or free memory, and run again"

Engine = Literal["local", "ray"]


class Crew:
    """Where the rows of a run are worked on. ``processes``: at most so many, None is one for each core; of a joined cluster, all it has."""

    def __init__(self, engine: Engine = "local", processes: int | None = None, cluster: Cluster | None = None) -> None:
        self.engine, self.processes, self.cluster = engine, processes, cluster or Cluster()
        self._place: _Processes | _Tasks | None = None

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.rest(at_once=kind is not None)

    def rest(self, *, at_once: bool = False) -> None:
        """End the processes until there is work again; others may need the memory. ``at_once`` does not wait for what they work on."""
        place, self._place = self._place, None
        if place is not None:
            place.close(at_once=at_once)

    def in_order(
        self, function: Callable[..., R], tasks: Iterable[tuple[Any, ...]], *, weight: int, shared: Any = None
    ) -> Iterator[R]:
        """``function(shared, *task)`` for each task, in order. ``weight``: bytes of rows that all of them hold; little work stays here.

        Raises what the function raised; RunError where a process was killed; InputError where Ray cannot be used.
        """
        if weight < WORTH_IT or (self.engine == "local" and (self.processes or cores()) == 1):
            for task in tasks:
                yield _uncollected(function, shared, task)
            return
        if self._place is None:
            self._place = _Processes(self.processes) if self.engine == "local" else _Tasks(self.processes, self.cluster)
        yield from self._place.results(function, shared, tasks)


class _Processes:
    """Processes of this machine."""

    def __init__(self, processes: int | None) -> None:
        self.number = processes or cores()
        self.others = set(multiprocessing.active_children())
        resource_tracker.ensure_running()  # later it would let Ctrl-C through to the processes
        self.pool = ProcessPoolExecutor(
            self.number, multiprocessing.get_context("spawn"), initializer=_born, initargs=(Path.cwd(),)
        )

    def results(self, function: Callable[..., R], shared: Any, tasks: Iterable[tuple[Any, ...]]) -> Iterator[R]:
        waiting: deque[Future[R]] = deque()
        with tempfile.NamedTemporaryFile(prefix="stepdistill-") as file:
            pickle.dump(shared, file, protocol=pickle.HIGHEST_PROTOCOL)  # once, not with each task
            file.flush()
            try:
                for task in tasks:
                    with _bare_start():  # a process is started where there is a task for it
                        waiting.append(self.pool.submit(_with_file, function, Path(file.name), task))
                    if len(waiting) >= AHEAD * self.number:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            except BrokenProcessPool:
                raise RunError(KILLED) from None

    def close(self, *, at_once: bool) -> None:
        if at_once:
            for process in set(multiprocessing.active_children()) - self.others:
                process.kill()
        self.pool.shutdown(cancel_futures=not at_once)  # the thread that sees them die stumbles over cancelled futures


class _Tasks:
    """Ray tasks, each on one CPU."""

    def __init__(self, processes: int | None, where: Cluster) -> None:
        self.open = ExitStack()
        self.ray = self.open.enter_context(
            cluster.connected(where.address, setting="", num_cpus=processes or cores(), memory=OBJECT_STORE)
        )
        self.number = processes or max(1, int(self.ray.cluster_resources().get("CPU", 1)))
        self.task = self.ray.remote(_on_a_node).options(num_cpus=1)

    def results(self, function: Callable[..., R], shared: Any, tasks: Iterable[tuple[Any, ...]]) -> Iterator[R]:
        ray, waiting = self.ray, deque[Any]()
        there, folder, version = ray.put(shared), Path.cwd(), cluster.version()
        try:
            for task in tasks:
                waiting.append(self.task.remote(function, there, task, folder, version))
                if len(waiting) >= AHEAD * self.number:
                    yield pickle.loads(ray.get(waiting.popleft()))
            while waiting:
                yield pickle.loads(ray.get(waiting.popleft()))
        except ray.exceptions.RayTaskError as error:
            raise cluster.own(error) or error from None
        except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
            raise RunError(KILLED) from None
        except ray.exceptions.RayError as error:
            problem = plain(str(error).strip().rpartition("\n")[2])
            raise RunError(f"engine: ray: {problem}; run again to go on") from None
        finally:
            if ray.is_initialized():
                for reference in waiting:
                    ray.cancel(reference, force=True)

    def close(self, *, at_once: bool) -> None:
        self.open.close()


def _on_a_node(function: Callable[..., R], shared: Any, task: tuple[Any, ...], folder: Path, version: str) -> bytes:
    """The pickled result: what Ray unpickles itself would stand in its shared memory for as long as it is held."""
    cluster.check_version(version, "")
    try:
        os.chdir(folder)
        return pickle.dumps(_uncollected(function, shared, task), protocol=pickle.HIGHEST_PROTOCOL)
    except FileNotFoundError as error:
        node = plain(platform.node())
        raise InputError(
            f"engine: the node {node} does not see {plain(str(error.filename))}; with ray all nodes need a shared file system"
        ) from None


def _with_file(function: Callable[..., R], shared: Path, task: tuple[Any, ...]) -> R:
    return _uncollected(function, _shared(shared), task)


@lru_cache(maxsize=1)
def _shared(path: Path) -> Any:
    """What the process that started this one wrote there, under a name that is used once."""
    return pickle.loads(path.read_bytes())


def _uncollected(function: Callable[..., R], shared: Any, task: tuple[Any, ...]) -> R:
    """One result. Rows hold no cycles, and to look for some among many takes several times as long as to read them."""
    collects = gc.isenabled()
    gc.disable()
    try:
        return function(shared, *task)
    finally:
        if collects:
            gc.enable()


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _bare_start() -> Iterator[None]:
    """A process that is started here does not run the main module again, and Ctrl-C is not for it from its first moment on."""
    main = sys.modules["__main__"]
    signals = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, signals)


def _born(folder: Path) -> None:
    os.chdir(folder)
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent: Any) -> None:
    """A process whose parent was killed would wait for its next task forever."""
    parent.join()
    os._exit(1)
