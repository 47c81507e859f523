"""Places that fail a run: a file system that is really full, or read-only; folders it may not write to; folders that vanish under it.

By default a few cases of each; `TORTURE=1 python -m pytest tests/test_places.py` lets the file system fill up at every 8 KiB, and takes the
folders away before every call that changes a file. Real file systems are mounted where that is possible (see tests/faults.py).
"""

import os
import random
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.responses import read_store
from tests.counting import counted, every
from tests.faults import Asked, Fault, Outcome, faulty
from tests.test_faults import UNSURE, reached, tree, trying, whole, write_project

ALL = "TORTURE" in os.environ
PAGE = 4096  # bytes: what a small tmpfs is counted in
TRIED = 4
POWERLESS = Fault(powerless=True)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    with faulty(tmp_path_factory.mktemp("said")) as found:
        yield found


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    """Runs that see what is mounted for them."""
    with faulty(tmp_path_factory.mktemp("said"), mounts=True) as found:
        yield found


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each run begins with; its inputs lie in a folder of their own."""
    folder = write_project(tmp_path_factory.mktemp("project") / "project", judge=False)
    (folder / "data").mkdir()
    settings = (folder / "stages.yaml").read_text()
    for name in ("inputs.jsonl", "test.jsonl", "completions.jsonl"):
        (folder / name).rename(folder / "data" / name)
        settings = settings.replace(name, f"data/{name}")
    (folder / "stages.yaml").write_text(settings)
    return folder


@pytest.fixture(scope="module")
def undisturbed(asked: Asked, project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], int]:
    """The run as it is where nothing fails, and how many calls it makes."""
    folder = shutil.copytree(project, tmp_path_factory.mktemp("undisturbed") / "project")
    done = asked.ask(folder, "run")
    assert done.code == 0, done.said
    return tree(folder), done.calls


def one_line(outcome: Outcome, named: str) -> None:
    """It failed, and says so in one line, its last, in which ``named`` stands; nothing looks like a crash."""
    assert outcome.code in (1, 2), (outcome.code, outcome.said)
    assert "Traceback" not in outcome.said, outcome.said
    lines = outcome.said.strip().splitlines()
    assert sum(line.startswith("stepdistill: ") for line in lines) == 1, outcome.said
    assert lines[-1].startswith("stepdistill: ") and named in lines[-1], outcome.said
    assert "None" not in lines[-1], outcome.said


def committed(folder: Path) -> set[str]:
    """The requests that the store of a run has the answers to."""
    store = folder / "runs" / "small" / "responses"
    return {record.key for _, _, record in read_store(store)} if store.is_dir() else set()


def goes_on(asked: Asked, folder: Path, wanted: dict[str, bytes], before: set[str], fault: Fault = Fault()) -> None:  # noqa: B008
    """The next run ends well, asks for no answer that was committed ``before``, and leaves the bytes of an undisturbed run."""
    last = asked.ask(folder, "run", fault=fault)
    assert last.code == 0, last.said
    assert "Traceback" not in last.said
    copy = folder.with_name(f"{folder.name}-copy")
    asked.inside("cp", "-a", folder, copy)
    whole(copy, wanted)
    for line in re.findall(r"^sample: ([\d,]+) of [\d,]+ requests asked", last.said, re.MULTILINE):
        assert int(line.replace(",", "")) <= 200 - len(before), last.said
    shutil.rmtree(copy)


def seen(asked: Asked, folder: Path, copy: Path) -> set[str]:
    """``committed`` of a folder that only the runs see."""
    shutil.rmtree(copy, ignore_errors=True)
    asked.inside("cp", "-a", folder, copy)
    return committed(copy)


def mount(asked: Asked, folder: Path, options: str) -> None:
    folder.mkdir(exist_ok=True)
    asked.inside("mount", "-t", "tmpfs", "-o", options, "tmpfs", folder)


def spread(last: int, seed: int, number: int = TRIED) -> list[int]:
    """Numbers up to ``last``, one of each stretch; all of them in the long run."""
    if ALL:
        return every([*range(1, last + 1)])
    chance = random.Random(seed)
    edges = [last * part // number for part in range(number + 1)]
    return [chance.randint(low + 1, high) for low, high in pairwise(edges)]


@pytest.mark.parametrize("limit", ["bytes", "files"])
def test_a_file_system_that_is_full(
    apart: Asked, project: Path, undisturbed: tuple[dict[str, bytes], int], tmp_path: Path, limit: str
) -> None:
    """Full of bytes, or of files; where it ends depends on the size. Once it is larger, the run goes on in it."""
    wanted, _ = undisturbed
    most = sum(-(-len(content) // PAGE) for content in wanted.values()) if limit == "bytes" else len(wanted)
    sizes = every([*range(2, most, 2)]) if ALL else [most * part // TRIED for part in range(1, TRIED)]
    places = set()
    for size in sizes:
        folder = shutil.copytree(project, tmp_path / f"full-{size}")
        mount(apart, folder / "runs", f"size={size * PAGE}" if limit == "bytes" else f"nr_inodes={size}")
        failed = apart.ask(folder, "run")
        one_line(failed, "runs")
        before = seen(apart, folder, tmp_path / "seen")
        again = apart.ask(folder, "run")
        one_line(again, "runs")
        assert seen(apart, folder, tmp_path / "seen") >= before
        apart.inside("mount", "-o", "remount,size=1g,nr_inodes=100000", folder / "runs")
        goes_on(apart, folder, wanted, before)
        apart.inside("umount", folder / "runs")
        counted(f"runs on a file system that was full of {limit}, {reached(failed)}")
        places.add(reached(failed))
        shutil.rmtree(folder)
    assert len(places) > 2 or len(sizes) < 4, places


@pytest.mark.parametrize("until", [None, "sample", "dedup", "shard"])
def test_a_file_system_that_is_read_only(
    apart: Asked, project: Path, undisturbed: tuple[dict[str, bytes], int], tmp_path: Path, until: str | None
) -> None:
    """A run cannot begin or go on there, but what is done can be looked at and audited."""
    wanted, _ = undisturbed
    folder = shutil.copytree(project, tmp_path / "project")
    mount(apart, folder / "runs", "size=64m")
    if until is not None:
        assert apart.ask(folder, "run", "--until", until).code == 0
    before = seen(apart, folder, tmp_path / "seen")
    apart.inside("mount", "-o", "remount,ro", folder / "runs")
    one_line(apart.ask(folder, "run"), "runs")
    for command in ("status", "plan", "audit") if until else ("plan",):
        looked = apart.ask(folder, command)
        assert looked.code == 0, looked.said
    assert seen(apart, folder, tmp_path / "seen") == before
    apart.inside("mount", "-o", "remount,rw", folder / "runs")
    goes_on(apart, folder, wanted, before)
    apart.inside("umount", folder / "runs")
    counted("runs on a read-only file system")


PLACES = [
    ".",
    "runs",
    "runs/small",
    "runs/small/responses",
    "runs/small/dedup",
    "runs/small/shard",
    "runs/small/report",
]


@pytest.mark.parametrize("place", PLACES)
def test_a_folder_that_may_not_be_written_to(
    asked: Asked, project: Path, undisturbed: tuple[dict[str, bytes], int], tmp_path: Path, place: str
) -> None:
    """Rights bind: root gives up its own for these runs."""
    wanted, _ = undisturbed
    folder = shutil.copytree(project, tmp_path / "project")
    (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / place).chmod(0o555)
    failed = asked.ask(folder, "run", fault=POWERLESS)
    one_line(failed, "runs")
    before = committed(folder)
    (folder / place).chmod(0o755)
    goes_on(asked, folder, wanted, before, POWERLESS)
    counted("runs with a folder that might not be written to")


@pytest.mark.parametrize("place", ["data", "data/inputs.jsonl", "data/test.jsonl", "data/completions.jsonl"])
def test_a_file_that_may_not_be_read(
    asked: Asked, project: Path, undisturbed: tuple[dict[str, bytes], int], tmp_path: Path, place: str
) -> None:
    wanted, _ = undisturbed
    folder = shutil.copytree(project, tmp_path / "project")
    (folder / place).chmod(0)
    one_line(asked.ask(folder, "run", fault=POWERLESS), place)
    (folder / place).chmod(0o755)
    goes_on(asked, folder, wanted, set(), POWERLESS)
    counted("runs with a file that might not be read")


@pytest.mark.parametrize("to", ["", "elsewhere"], ids=["removed", "renamed"])
@pytest.mark.parametrize("place", ["runs/small", "runs", "data"])
def test_a_folder_that_vanishes_under_a_run(
    asked: Asked, project: Path, undisturbed: tuple[dict[str, bytes], int], tmp_path: Path, place: str, to: str
) -> None:
    """It is gone before some call, and comes back after the run: as it was, or, where it was removed, as it was at first."""
    wanted, calls = undisturbed
    broken: list[str] = []
    for at in spread(calls, seed=len(place) + len(to), number=2):
        folder = shutil.copytree(project, tmp_path / f"gone-{at}")
        away = tmp_path / f"away-{at}"
        with trying(broken, f"call {at}"):
            taken = Fault(at=at, taken=str(folder / place), taken_to=str(away) if to else "")
            ended = asked.ask(folder, "run", fault=taken)
            if ended.code:
                one_line(ended, place)
            elif place != "data" and at <= calls - UNSURE:  # after that all was done
                whole(folder, wanted)  # it may only say that all went well where all is there
            if place == "data":
                shutil.copytree(project / place, folder / place, dirs_exist_ok=True)
            elif to and away.exists():
                shutil.rmtree(folder / place, ignore_errors=True)
                (folder / "runs").mkdir(exist_ok=True)
                away.rename(folder / place)
            goes_on(asked, folder, wanted, committed(folder))
            counted(f"folders that vanished under a run ({place}), {reached(ended)}")
        shutil.rmtree(folder)
        shutil.rmtree(away, ignore_errors=True)
    assert not broken
