"""Runs of the command line in which one system call goes wrong: the process is killed at it, or it fails as on a full or broken disk.

    with faulty(tmp_path) as asked:
        ask = asked.ask
        ask(project, "run")                                     # Outcome(code=0, calls=214, said="..")
        ask(project, "run", fault=Fault(at=17))                 # killed before its 17th call that changes a file: code -9
        ask(project, "run", fault=Fault(at=17, error=errno.ENOSPC, lasting=True))
        ask(project, "run", fault=Fault(at=17, taken=run))      # the folder is removed before that call, which is made
        ask(project, "run", fault=Fault(after=0.2))             # killed from outside after so many seconds

Only calls that change something in the project's folder are counted (see faults.c, which is compiled here and preloaded; needs a C
compiler). ``asked.race(project, 8, "run")`` starts so many at once. One process imports everything and forks a child for each run, so a
run costs what its work costs; ``training=True`` imports torch and its kin too. A child's own processes (crews, engines) are not faulty
themselves. ``mounts=True``: they are in a mount namespace of their own, where ``asked.inside("mount", ..)`` mounts what they alone see.
"""

import ctypes
import gc
import hashlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
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

    ``lasting``: so do all calls after it. ``taken``: instead, this folder is renamed to ``taken_to``, or removed where that is empty.
    ``after``: seconds until the process is killed from outside. ``powerless``: root's rights to write everywhere are given up.
    ``crew``: little work is enough for processes of its own. ``log``: a file for all calls with their bytes.
    """

    at: int = 0
    error: int = 0
    lasting: bool = False
    taken: str = ""
    taken_to: str = ""
    after: float = 0.0
    powerless: bool = False
    crew: bool = False
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
Inside = Callable[..., None]


class Asked(NamedTuple):
    """``ask(folder, *arguments, fault=Fault())`` runs once, ``race(folder, times, *arguments)`` so many times at once.

    ``inside(*command)`` runs a program that must succeed where the runs are: with ``mounts`` it sees and changes what they see mounted.
    """

    ask: Ask
    race: Race
    inside: Inside


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


def namespace() -> list[str]:
    """The beginning of a command that runs in a mount namespace of its own, in which it may mount; the test is skipped without one."""
    for rights in ([], ["--map-root-user"]):
        command = ["unshare", "--mount", "--propagation", "private", *rights]
        trial = [*command, "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tempfile.gettempdir()]
        if shutil.which("unshare") and subprocess.run(trial, capture_output=True, check=False).returncode == 0:
            return command
    pytest.skip(
        "nothing can be mounted here: that takes root with CAP_SYS_ADMIN, or user namespaces (unshare --map-root-user)"
    )


@contextmanager
def faulty(scratch: Path, *, training: bool = False, mounts: bool = False) -> Iterator[Asked]:
    """What runs the command line in a project's folder; ``scratch`` is for what runs say."""
    apart = namespace() if mounts else []
    scratch.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "LD_PRELOAD": str(library()),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TMPDIR": str(scratch),  # what the killed leave there is nobody's
    }
    server = subprocess.Popen(
        [*apart, sys.executable, "-c", f"from tests.faults import serve; serve(training={training})"],
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

    def inside(*command: str | Path) -> None:
        user = ["--user", "--preserve-credentials"] if "--map-root-user" in apart else []
        enter = ["nsenter", f"--target={server.pid}", "--mount", *user] if apart else []
        done = subprocess.run([*enter, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stderr)

    try:
        yield Asked(ask, race, inside)
    finally:
        server.kill()
        server.wait()


def serve(*, training: bool) -> None:
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
    if training:
        _import_training()
    with start_blocking_portal():
        pass
    _warm_up()
    gc.collect()
    gc.freeze()  # a child that looks for garbage would copy all that was imported
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
        if fault["after"]:
            _kill_after(fault["after"], list(children))
        ends = {}
        for _ in said:
            child, status = os.wait()
            reading, began = children[child]
            seconds = time.monotonic() - began
            with os.fdopen(reading) as told:
                seen = told.read()
            ends[child] = (os.waitstatus_to_exitcode(status), int(seen or -1), seconds)
        print(json.dumps([ends[child] for child in children]), flush=True)


def _warm_up() -> None:
    """One run here, so that its compiled loops, templates and facts of the machine need not be worked out by each child: half its time."""
    import pipeline.report
    from tests.conftest import write_project

    with tempfile.TemporaryDirectory() as scratch, Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        settings = write_project(Path(scratch) / "project")
        pipeline.run(settings)
        pipeline.report.build(settings.parent / "runs/small")
    assert threading.active_count() == 1


def _import_training() -> None:
    """All that training and asking a student import, without a thread being started."""
    import datasets
    import safetensors.torch
    import torch
    import transformers
    import trl

    import pipeline.ask_students
    import pipeline.evaluate
    import pipeline.train
    import pipeline.trainer

    assert all((datasets, safetensors, transformers, trl, pipeline.train, pipeline.evaluate))
    torch.set_num_threads(1)


def _kill_after(seconds: float, children: list[int]) -> None:
    """End with SIGKILL those that run for longer."""
    for child in children:
        ended = os.pidfd_open(child)
        if not select.select([ended], [], [], seconds)[0]:
            os.kill(child, signal.SIGKILL)
        os.close(ended)


def _give_up_rights(calls: ctypes.CDLL) -> None:
    """No capability is left: the rights of files and folders bind root as they bind everybody."""
    version = (ctypes.c_uint32 * 2)(0x20080522, 0)
    assert calls.capset(version, (ctypes.c_uint32 * 6)()) == 0


def _run(folder: str, arguments: list[str], fault: Fault, said: str, told: int, calls: ctypes.CDLL) -> None:
    """In the child: never returns."""
    import pipeline.cli
    import pipeline.processes

    code = 99
    try:
        if fault.crew:
            pipeline.processes.WORTH_IT = 0
        if fault.powerless:
            _give_up_rights(calls)
        os.chdir(folder)
        log = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.argv = ["stepdistill", *arguments]
        under = os.fsencode(os.path.realpath(folder))
        calls.faults_take(os.fsencode(fault.taken), os.fsencode(fault.taken_to))
        calls.faults_arm(under, ctypes.c_long(fault.at), fault.error, int(fault.lasting), os.fsencode(fault.log))
        try:
            pipeline.cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        except BaseException:  # noqa: BLE001 - as the interpreter would
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        calls.faults_seen.restype = ctypes.c_long
        os.write(told, str(calls.faults_seen()).encode())
        os._exit(code)
