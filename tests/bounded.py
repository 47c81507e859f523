"""The command line in children that may take so many seconds and so much memory, and no more.

    with bounded(tmp_path) as ask:
        ask(project, "check")     # Outcome(code=0, said="..", seconds=0.1, megabytes=210)

One process imports everything and forks a child for each run, so a run costs what its work costs. A child that takes longer is killed
(code -24, or -14 where it only waited), one that wants more memory gets a MemoryError, as it would on a smaller machine.
"""

import io
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SECONDS = 60  # of the processor
WAITING = 2  # times as long by the clock
MEGABYTES = 1500  # of address space, beside what the libraries take


class Outcome(NamedTuple):
    """Exit code (negative: the signal), what was said, seconds, and the most memory it had at one time."""

    code: int
    said: str
    seconds: float
    megabytes: int


Ask = Callable[..., Outcome]


@contextmanager
def bounded(scratch: Path) -> Iterator[Ask]:
    """What runs the command line in a project's folder; ``scratch`` is for what runs say."""
    said = scratch / "said"
    server = subprocess.Popen(
        [sys.executable, "-c", "from tests.bounded import serve; serve()"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "1000"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    asked, answers = server.stdin, server.stdout

    def ask(folder: Path, *arguments: str, seconds: int = SECONDS, megabytes: int = MEGABYTES) -> Outcome:
        print(json.dumps([str(folder), arguments, str(said), seconds, megabytes]), file=asked, flush=True)
        answer = answers.readline()
        assert answer, "the process that forks has ended"
        code, took, most = json.loads(answer)
        return Outcome(code, said.read_text(errors="replace"), took, most)

    try:
        yield ask
    finally:
        server.kill()  # it only waits
        server.wait()


def serve() -> None:
    """One run a line; one line with its exit code, seconds and megabytes."""
    import pyarrow.parquet

    import pipeline.cli
    from pipeline import limits
    from tests.malformed import write_small

    assert pyarrow.parquet
    vars(limits)["SECONDS"] = 0.5  # so that what would never end ends soon
    here = Path.cwd()
    with (
        tempfile.TemporaryDirectory() as folder,
        redirect_stdout(io.StringIO()),
        redirect_stderr(io.StringIO()) as said,
    ):
        os.chdir(write_small(Path(folder)))  # once here, so that children find everything imported
        for arguments in ("check", "plan", "run", "audit", "responses verify", "show ingest"):
            sys.argv = ["stepdistill", *arguments.split()]
            try:
                pipeline.cli.main()
            except SystemExit as end:
                assert not end.code, said.getvalue()
        os.chdir(here)
    for line in sys.stdin:
        folder, arguments, said, seconds, megabytes = json.loads(line)
        began = time.monotonic()
        child = os.fork()
        if child == 0:
            _run(folder, arguments, said, seconds, megabytes)
        _, status, used = os.wait4(child, 0)
        told = (os.waitstatus_to_exitcode(status), time.monotonic() - began, used.ru_maxrss >> 10)
        print(json.dumps(told), flush=True)


def _run(folder: str, arguments: list[str], said: str, seconds: int, megabytes: int) -> None:
    """In the child: never returns."""
    import pipeline.cli

    code = 99
    try:
        os.chdir(folder)
        log = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + (megabytes << 20)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        signal.alarm(WAITING * seconds)
        sys.argv = ["stepdistill", *arguments]
        try:
            pipeline.cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001 - a child must never return into its parent's code
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)
