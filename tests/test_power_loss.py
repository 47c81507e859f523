"""The power goes at any moment: what a disk may then hold comes up as the old state or the new one, and answers that were committed stay.

By default some moments are tried; `TORTURE=1 python -m pytest tests/test_power_loss.py` tries a thousand.
"""

import os
import random
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.responses import read_store
from tests.counting import counted
from tests.faults import Ask, Fault, faulty
from tests.power_loss import Call, Disk, read, write
from tests.test_faults import ends_whole, tree, write_project

STATES = 1000 if "TORTURE" in os.environ else 6


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    with faulty(tmp_path_factory.mktemp("said")) as found:
        yield found.ask


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def logged(ask: Ask, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes], list[Call]]:
    """A project before its run, as a folder and as files, and all calls of the run."""
    top = tmp_path_factory.mktemp("logged")
    start = write_project(top / "start", judge=False)
    folder = shutil.copytree(start, top / "project")
    log = top / "log"
    done = ask(folder, "run", fault=Fault(log=str(log)))
    assert done.code == 0, done.said
    calls = list(read(log))
    assert len(calls) == done.calls
    return folder, everything(start), calls


def test_the_model_ends_where_the_disk_does(logged: tuple[Path, dict[str, bytes], list[Call]]) -> None:
    """With all calls made and synced, what the model holds is what lies there."""
    folder, start, calls = logged
    disk = Disk(folder, start)
    for call in calls:
        disk.apply(call)
    for call in calls:
        disk.apply(Call("fsync", call.path, "", 0, b""))
    for name in (
        "",
        "runs",
        "runs/small",
        *(f"runs/small/{path.name}" for path in (folder / "runs" / "small").iterdir()),
    ):
        disk.apply(Call("fsync", str(folder / name), "", 0, b""))
    found = disk.lose_power(random.Random(0))
    assert {name: content for name, content in found.items() if not name.endswith("/")} == everything(folder)


def test_what_was_committed_is_there_and_the_rest_is_made_again(
    ask: Ask, logged: tuple[Path, dict[str, bytes], list[Call]], tmp_path: Path
) -> None:
    folder, start, calls = logged
    wanted = tree(folder)
    segments = [
        number for number, call in enumerate(calls) if call.name == "fsync" and "/responses/segment-" in call.path
    ]
    assert segments
    chance = random.Random(20)
    edges = [len(calls) * part // STATES for part in range(STATES + 1)]
    for state, (low, high) in enumerate(pairwise(edges)):
        moment = chance.randint(low, max(low, high - 1)) + 1
        disk = Disk(folder, start)
        for call in calls[:moment]:
            disk.apply(call)
        here = tmp_path / f"state-{state}"
        write(disk.lose_power(chance), here)
        committed = sum(
            calls[number].data.count(b"\n")
            for number in range(moment)
            if calls[number].name == "write"
            and any(number < after < moment for after in segments)
            and "/responses/segment-" in calls[number].path
        )
        store = here / "runs" / "small" / "responses"
        if committed:
            last = ask(here, "run", "--until", "sample")
            assert last.code == 0, last.said
            asked = [
                int(line.split()[1].replace(",", "")) for line in last.said.splitlines() if " requests asked" in line
            ]
            assert sum(asked) <= 200 - committed, (state, moment, committed, last.said)
            assert len({record.key for _, _, record in read_store(store)}) == 199
        ends_whole(ask, here, wanted)
        counted("states after a power loss")
        shutil.rmtree(here)


NAMES = st.sampled_from(["a", "b", "c"])
CALLS = st.lists(
    st.one_of(
        st.tuples(st.just("create"), NAMES),
        st.tuples(st.just("write"), NAMES, st.binary(min_size=1, max_size=4)),
        st.tuples(st.just("fsync"), NAMES),
        st.tuples(st.just("folder"), st.just("")),
        st.tuples(st.just("rename"), NAMES, NAMES),
        st.tuples(st.just("unlink"), NAMES),
    ),
    max_size=14,
)


@given(CALLS, st.integers(0, 1000))
def test_synced_is_durable_and_nothing_comes_from_nowhere(steps: list[tuple], seed: int) -> None:
    """The model itself: what was synced under a name that was synced is there whole, unless its name was changed since."""
    disk = Disk(Path("/disk"), {})
    held: dict[str, bytes] = {}
    for step in steps:
        name = str(step[1])
        if step[0] == "folder":
            disk.apply(Call("fsync", "/disk", "", 0, b""))
            held = {
                known: entry.now()
                for known, entry in disk.top.durable.items()
                if not entry.pending  # type: ignore[union-attr]
            }
        elif step[0] == "write":
            disk.apply(Call("write", f"/disk/{name}", "", -1, step[2]))
            held.pop(name, None)
        elif step[0] == "rename":
            disk.apply(Call("rename", f"/disk/{name}", f"/disk/{step[2]}", 0, b""))
            held.pop(name, None)
            held.pop(str(step[2]), None)
        else:
            disk.apply(Call(str(step[0]), f"/disk/{name}", "", 0, b""))
            if step[0] != "fsync":
                held.pop(name, None)
    found = disk.lose_power(random.Random(seed))
    assert {name: found.get(name) for name in held} == held
    assert set(found) <= {"a", "b", "c"}
