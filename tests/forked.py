"""Functions called in processes of their own, which can be killed, for the price of one import of the libraries.

One process imports everything, forks a child for each call and waits for it. A child is like a fresh process: nothing was trained, and no
thread was started, before it was forked.
"""

import importlib
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
Forked = Callable[..., int]


@contextmanager
def forking(log: Path) -> Iterator[Forked]:
    """What calls a function of a module with arguments that JSON can hold; the child's exit code, negative for the signal that ended it.

    What the children say, tracebacks too, goes to ``log``.
    """
    with log.open("w") as said:
        server = subprocess.Popen(
            [sys.executable, "-c", "from tests.forked import serve; serve()"],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
    assert server.stdin is not None
    assert server.stdout is not None
    asked, answers = server.stdin, server.stdout

    def call(function: Callable[..., object], **arguments: Any) -> int:
        print(json.dumps([function.__module__, function.__qualname__, arguments]), file=asked, flush=True)
        code = int(answers.readline())
        if code > 0:
            print(log.read_text()[-4000:])  # pytest shows it where the test fails
        return code

    try:
        yield call
    finally:
        server.kill()  # it only waits
        server.wait()


def serve() -> None:
    """One call a line, one exit code a line."""
    import datasets
    import torch
    import transformers
    import trl

    import pipeline.train
    import pipeline.trainer

    assert all((datasets, transformers, trl, pipeline.train, pipeline.trainer))
    torch.set_num_threads(1)
    for line in sys.stdin:
        module, name, arguments = json.loads(line)
        print(waited([forked(getattr(importlib.import_module(module), name), **arguments)]), flush=True)


def forked(function: Callable[..., object], **arguments: Any) -> int:
    """The process id of a child that calls ``function`` and ends with 0, or with 1 where that raises."""
    child = os.fork()
    if child:
        return child
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    code = 1
    try:
        function(**arguments)
        code = 0
    except BaseException:  # noqa: BLE001 - a child must never return into its parent's code
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def waited(children: list[int]) -> int:
    """The exit code of the first child that failed, 0 where none did."""
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return next((code for code in codes if code), 0)
