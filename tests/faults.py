"""Runs of the command line in which one system call goes wrong: the process is killed at it, or it fails as on a full or broken disk.

    with faulty(tmp_path) as asked:
        ask = asked.ask
        ask(project, "run")                                     # Outcome(code=0, calls=214, said="..")
        ask(project, "run", fault=Fault(at=17))                 # killed before its 17th call that changes a file: code -9
        ask(project, "run", fault=Fault(at=17, error=errno.ENOSPC, lasting=True))

Only calls that change something in the project's folder are counted (see faults.c, which is compiled here and preloaded; needs a C
compiler). ``asked.race(project, 8, "run")`` starts so many at once. One process imports everything and forks a child for each run, so a
run costs what its work costs. A child's own processes (crews, engines) are not faulty themselves.
"""

import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = Path(__file__).with_name("faults.c")
KILLED = -9


@dataclass(frozen=True)
class Fault:
    """What goes wrong at call number ``at`` (from 1; 0: nothing): the process is killed, or the call fails with ``error``.

    ``lasting``: so do all calls after it. ``log``: a file for all calls with their bytes.
    """

    at: int = 0
    error: int = 0
    lasting: bool = False
    log: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: its exit code (negative: the signal), how many calls it made, its seconds, and all that it said."""

    code: int
    calls: int
    seconds: float
    said: str


Ask = Callable[..., Outcome]
Race = Callable[..., list[Outcome]]


class Asked(NamedTuple):
    """``ask(folder, *arguments, fault=Fault())`` runs once, ``race(folder, times, *arguments)`` so many times at once."""

    ask: Ask
    race: Race


def library() -> Path:
    """faults.c, compiled; once for each version of it."""
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None:
        told = "no C compiler (cc, gcc or clang) on the PATH; `apt-get install gcc`"
        if "CI" in os.environ:
            raise RuntimeError(told)
        pytest.skip(told)
    target = (
        Path(tempfile.gettempdir()) / f"stepdistill-faults-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}.so"
    )
    if not target.exists():
        part = target.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", part, SOURCE, "-ldl"], check=True)
        part.replace(target)
    return target


@contextmanager
def faulty(scratch: Path) -> Iterator[Asked]:
    """What runs the command line in a project's folder; ``scratch`` is for what runs say."""
    scratch.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library()),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    server = subprocess.Popen(
        [sys.executable, "-c", "from tests.faults import serve; serve()"],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    asked, answers = server.stdin, server.stdout

    def race(folder: Path, times: int, *arguments: str, fault: Fault = Fault()) -> list[Outcome]:
        said = [scratch / f"said-{number}" for number in range(times)]
        print(json.dumps([str(folder), arguments, asdict(fault), [str(one) for one in said]]), file=asked, flush=True)
        answer = answers.readline()
        assert answer, "the process that forks has ended"
        ends = json.loads(answer)
        return [
            Outcome(code, calls, seconds, one.read_text(errors="replace"))
            for (code, calls, seconds), one in zip(ends, said, strict=True)
        ]

    def ask(folder: Path, *arguments: str, fault: Fault = Fault()) -> Outcome:
        return race(folder, 1, *arguments, fault=fault)[0]

    try:
        yield Asked(ask, race)
    finally:
        server.kill()
        server.wait()


def serve() -> None:
    """One run a line; one line with its exit code and its number of calls."""
    import httpx
    import numba
    import scipy.stats
    import sklearn.feature_extraction.text
    from anyio.from_thread import start_blocking_portal

    import pipeline.cli
    import pipeline.decontaminate
    import pipeline.dedup
    import pipeline.report
    import pipeline.runner

    assert all((httpx, numba, scipy.stats, sklearn, pipeline.dedup, pipeline.report))
    with start_blocking_portal():
        pass
    del os.environ["LD_PRELOAD"]  # it is loaded here; what a child starts is not to be faulty
    calls = ctypes.CDLL(None)
    for line in sys.stdin:
        folder, arguments, fault, said = json.loads(line)
        children: dict[int, tuple[int, float]] = {}
        for path in said:
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(reading)
                _run(folder, arguments, Fault(**fault), path, writing, calls)
            os.close(writing)
            children[child] = (reading, time.monotonic())
        ends = {}
        for _ in said:
            child, status = os.wait()
            reading, began = children[child]
            seconds = time.monotonic() - began
            with os.fdopen(reading) as told:
                seen = told.read()
            ends[child] = (os.waitstatus_to_exitcode(status), int(seen or -1), seconds)
        print(json.dumps([ends[child] for child in children]), flush=True)


def _run(folder: str, arguments: list[str], fault: Fault, said: str, told: int, calls: ctypes.CDLL) -> None:
    """In the child: never returns."""
    import pipeline.cli

    code = 99
    try:
        os.chdir(folder)
        log = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = ["stepdistill", *arguments]
        under = os.fsencode(os.path.realpath(folder))
        calls.faults_arm(under, ctypes.c_long(fault.at), fault.error, int(fault.lasting), os.fsencode(fault.log))
        try:
            pipeline.cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        calls.faults_seen.restype = ctypes.c_long
        os.write(told, str(calls.faults_seen()).encode())
        os._exit(code)
