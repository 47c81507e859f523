"""Several processes start on one run at once: one works, the others leave at once and name who has it; the dead hold nothing.

By default two rounds; `TORTURE=1 python -m pytest tests/test_concurrent.py` has two hundred.
"""

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.counting import counted
from tests.faults import KILLED, Asked, Fault, faulty
from tests.test_faults import tree, write_project

ROUNDS = 200 if "TORTURE" in os.environ else 2
HELD = re.compile(r"stepdistill: runs/small: process (\d+) on \S+ is writing to it; wait until it is done or stop it")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    with faulty(tmp_path_factory.mktemp("said")) as found:
        yield found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_project(tmp_path_factory.mktemp("project") / "project", judge=False)


@pytest.fixture(scope="module")
def wanted(asked: Asked, project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The run as one process alone leaves it."""
    folder = shutil.copytree(project, tmp_path_factory.mktemp("alone") / "project")
    assert asked.ask(folder, "run").code == 0
    return tree(folder)


@pytest.mark.parametrize("number", range(ROUNDS))
def test_one_works_and_the_others_say_who(
    asked: Asked, project: Path, wanted: dict[str, bytes], tmp_path: Path, number: int
) -> None:
    folder = shutil.copytree(project, tmp_path / "project")
    ends = asked.race(folder, 2 + number % 7, "run")
    done = [end for end in ends if end.code == 0]
    assert done
    last = max(end.seconds for end in done)
    for end in ends:
        assert "Traceback" not in end.said, end.said
        if end.code == 0:
            continue  # the one that worked, or one that began when it was done
        assert end.code == 1, end.said
        assert HELD.fullmatch(end.said.strip().splitlines()[-1]), end.said
        assert end.seconds < last  # nobody waits for it
        assert "running" not in end.said
    assert tree(folder) == wanted
    counted("starts of several processes on one run")


def test_a_dead_holder_is_no_obstacle(asked: Asked, project: Path, wanted: dict[str, bytes], tmp_path: Path) -> None:
    folder = shutil.copytree(project, tmp_path / "project")
    assert asked.ask(folder, "run", fault=Fault(at=40)).code == KILLED
    assert (folder / "runs" / "small" / ".lock").read_text().startswith("process ")  # as it was left
    assert asked.ask(folder, "run").code == 0
    assert tree(folder) == wanted


def test_looking_needs_no_lock(asked: Asked, project: Path, tmp_path: Path) -> None:
    """Status, show and audit look at a run that another process holds."""
    import fcntl

    folder = shutil.copytree(project, tmp_path / "project")
    assert asked.ask(folder, "run", "--until", "parse").code == 0
    with (folder / "runs" / "small" / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for arguments in (("status",), ("show", "parse", "-n", "1"), ("audit",), ("plan",)):
            end = asked.ask(folder, *arguments)
            assert end.code == 0, (arguments, end.said)
