"""Killed before any call that changes a file in the stages train and evaluate, or with any of them failing: the same weights and figures.

So too after a power loss while checkpoints are written. By default some calls of each stage, and two losses, are tried; `TORTURE=1 python
-m pytest tests/test_faults_training.py` kills at every call, lets every 8th fail, and tries 40 losses. Every case starts with the shards
done, from a copy. The student is real and tiny: 6 steps of it, and in the long run 6 of its baseline, a checkpoint at every second one.
"""

import errno
import os
import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.audit import audit
from tests.conftest import SETTINGS, TOPICS, text, write_jsonl
from tests.counting import counted, every
from tests.faults import KILLED, Ask, Fault, Outcome, faulty
from tests.models import make_model
from tests.power_loss import Call, Disk, read, write
from tests.test_faults import UNSURE, one_clear_line, reached, tree, trying, whole

ALL = "TORTURE" in os.environ
ROWS = 14
TRIED = 2  # of the calls in each of the two stages, by default
STATES = 40  # of the disk after a power loss, in the long run
FAILED = 8  # in the long run every so-manieth call fails; every one is killed
FAILING = {  # by default the first two, at one call of each stage
    "ENOSPC from then on": (errno.ENOSPC, True),
    "EIO once": (errno.EIO, False),
    **({"ENOSPC once": (errno.ENOSPC, False), "EIO from then on": (errno.EIO, True)} if ALL else {}),
}
STAGES = f"""\
  train:
    student: student
    baseline: {str(ALL).lower()}
    epochs: 2
    batch_size: 4
    log_every: 2
    checkpoint_seconds: 0
    precision: float32
    accept_terms: the rows are made up
  evaluate:
    backend: transformers
    max_new_tokens: 4
    rationales: 2
    max_rationale_tokens: 4
    temperature_rows: 4
    latency: 1
    bootstrap: 20
    safety: false
"""


def write_project(folder: Path) -> Path:
    """14 rows, of which some validate; 4 eval rows, which the recorded teacher has answered too."""
    folder.mkdir(parents=True)
    topics = list(TOPICS)
    rows = [{"id": f"r{n}", "text": text(topics[n % 2], n), "topic": topics[n % 2]} for n in range(ROWS)]
    tests = [{"id": f"t{n}", "text": text(topics[n % 2], 1000 + n), "topic": topics[n % 2]} for n in range(4)]
    said = [
        {"id": row["id"], "completion": f"It speaks of it. So the answer is {row['topic']}."} for row in rows + tests
    ]
    write_jsonl(folder / "inputs.jsonl", rows)
    write_jsonl(folder / "test.jsonl", tests)
    write_jsonl(folder / "completions.jsonl", said)
    (folder / "stages.yaml").write_text(SETTINGS.partition("  train: false")[0] + STAGES)
    make_model(folder / "student")
    return folder


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    with faulty(tmp_path_factory.mktemp("said"), training=True) as found:
        yield found.ask


@dataclass(frozen=True)
class Begun:
    """A project in which all stages before ``stage`` are done; what it holds when that is done too, and the calls that this takes.

    ``saving``: the call that moves a whole model to its name; ``writing``: the first writes of torch, safetensors and tokenizers. ``log``:
    all calls of the run in ``folder``, also those before the stage.
    """

    stage: str
    project: Path
    folder: Path
    log: list[Call]
    wanted: dict[str, bytes]
    calls: list[int]
    saving: list[int]
    writing: list[int]

    def again(self, ask: Ask, folder: Path, fault: Fault = Fault()) -> Outcome:  # noqa: B008 - frozen
        return ask(folder, "run", "--until", self.stage, fault=fault)

    def ends_whole(self, ask: Ask, folder: Path) -> None:
        last = self.again(ask, folder)
        assert last.code == 0, last.said
        assert "Traceback" not in last.said
        whole(folder, self.wanted)


@pytest.fixture(scope="module")
def begun(ask: Ask, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Begun]:
    """Both stages without any fault; in the long run each is done twice, to the same bytes."""
    folder = tmp_path_factory.mktemp("begun")
    project = write_project(folder / "shard")
    done = ask(project, "run", "--until", "shard")
    assert done.code == 0, done.said
    found = {}
    for stage in ("train", "evaluate"):
        first = shutil.copytree(project, folder / stage)
        log = folder / f"{stage}.log"
        done = ask(first, "run", "--until", stage, fault=Fault(log=str(log)))
        assert done.code == 0, done.said
        if ALL:
            again = shutil.copytree(project, folder / f"{stage}-again")
            assert ask(again, "run", "--until", stage).code == 0
            assert tree(first) == tree(again)
        assert list(audit(first / "runs" / "small")) == []
        calls = list(read(log))
        begins = next(number for number, call in enumerate(calls, 1) if f"/runs/small/{stage}/" in call.path)
        saving = [number for number, call in enumerate(calls, 1) if call.path.endswith("/.student.tmp") and call.second]
        writes = [(number, call.path) for number, call in enumerate(calls, 1) if call.name == "write"]
        ends = (".pt", "/.tmp[^/]*", "/tokenizer.json") if stage == "train" else ()
        writing = [next(number for number, path in writes if re.search(f"{end}$", path)) for end in ends]
        found[stage] = Begun(
            stage, project, first, [*with_names(calls)], tree(first), [*range(begins, len(calls) + 1)], saving, writing
        )
        project = first
    return found


def with_names(calls: list[Call]) -> Iterator[Call]:
    """The calls, with those by which safetensors gives a file its name once it is written: it asks the kernel itself, past the log."""
    for call in calls:
        yield call
        path = Path(call.path)
        if call.name == "write" and re.fullmatch(r"\.tmp\w{6}", path.name):
            name = ".best.safetensors.tmp" if path.parent.name.startswith("checkpoints-") else "model.safetensors"
            yield Call("rename", call.path, str(path.with_name(name)), 0, b"")


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def where(outcome: Outcome) -> str:
    """How far a run came; the report is one on a student too."""
    return reached(outcome).replace("the report", "the report on students")


def tried(calls: list[int], seed: int | str, number: int) -> list[int]:
    """Which calls: all, or so many, one of each stretch."""
    if ALL:
        return every(calls)
    chance = random.Random(seed)
    edges = [len(calls) * part // number for part in range(number + 1)]
    return [calls[chance.randrange(low, high)] for low, high in pairwise(edges)]


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_killed_before_any_call_it_ends_with_the_same_weights_and_figures(
    ask: Ask, begun: dict[str, Begun], tmp_path: Path, stage: str
) -> None:
    case = begun[stage]
    broken: list[str] = []
    for at in sorted({*tried(case.calls, seed=1, number=TRIED), *case.saving}):
        folder = shutil.copytree(case.project, tmp_path / f"killed-{at}")
        with trying(broken, f"call {at}"):
            killed = case.again(ask, folder, Fault(at=at))
            assert killed.code in (KILLED, 0 if at > case.calls[-1] - UNSURE else KILLED), killed.said
            counted(f"killed before a call that changes a file, {where(killed)}")
            case.ends_whole(ask, folder)
        shutil.rmtree(folder)
    assert not broken


@pytest.mark.parametrize("failing", [*FAILING])
@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_a_call_that_fails_is_one_line_and_the_next_run_goes_on(
    ask: Ask, begun: dict[str, Begun], tmp_path: Path, stage: str, failing: str
) -> None:
    case = begun[stage]
    error, lasting = FAILING[failing]
    broken: list[str] = []
    chosen = tried(case.calls, seed=f"{stage} {failing}", number=1)[:: FAILED if ALL else 1]
    for at in sorted({*chosen, *(case.writing if lasting else ())}):
        folder = shutil.copytree(case.project, tmp_path / f"failed-{at}")
        with trying(broken, f"call {at}"):
            failed = case.again(ask, folder, Fault(at=at, error=error, lasting=lasting))
            counted(f"calls that failed (ENOSPC, EIO; once, and from then on; every {FAILED}th), {where(failed)}")
            if failed.code != 0:
                one_clear_line(failed)
            case.ends_whole(ask, folder)
        shutil.rmtree(folder)
    assert not broken


def disk_at(case: Begun, start: dict[str, bytes], moment: int) -> Disk:
    """The disk after so many calls."""
    disk = Disk(case.folder, start)
    for call in case.log[:moment]:
        disk.apply(call)
    return disk


def test_after_a_power_loss_training_goes_on_from_a_whole_checkpoint(
    ask: Ask, begun: dict[str, Begun], tmp_path: Path
) -> None:
    case, chance = begun["train"], random.Random(7)
    start = everything(case.project)
    disk = disk_at(case, start, len(case.log))
    for path in {case.folder, *case.folder.rglob("*")}:
        disk.apply(Call("fsync", str(path), "", 0, b""))
    assert disk.lose_power(chance) == everything(case.folder)  # the log holds all that was done

    marks = [number for number, call in enumerate(case.log, 1) if call.second.endswith("/whole")]
    assert len(marks) > 1
    marked = disk_at(case, start, marks[1] + 1)  # and the mark's name is synced
    draws = [marked.lose_power(chance) for _ in range(20)]
    kept = [{name: one[name] for name in one if "/checkpoints-" in name} for one in draws]
    assert all(one == kept[0] for one in kept), "something that it goes on from was not synced before the mark"

    half = str(Path(case.log[marks[1] - 1].path).parent)
    named = f"{Path(half).relative_to(case.folder)}/"
    written = next(n for n, call in enumerate(case.log) if call.name == "fsync" and call.path.startswith(half))
    unmarked = disk_at(case, start, written)  # all of it, and nothing synced
    some = (unmarked.lose_power(chance) for _ in range(1000))
    draws = [draws[0], next(one for one in some if any(name.startswith(named) for name in one))]
    if ALL:
        begins = next(number for number, call in enumerate(case.log) if "/checkpoints-" in call.path)
        moments = (chance.randrange(begins, len(case.log)) for _ in range(STATES - len(draws)))
        draws += [disk_at(case, start, moment).lose_power(chance) for moment in moments]
    broken: list[str] = []
    for number, found in enumerate(draws):
        here = tmp_path / f"state-{number}"
        write(found, here)
        with trying(broken, f"state {number}"):
            last = case.again(ask, here)
            assert last.code == 0, last.said
            assert number > 0 or f"going on from step {half.rpartition('-')[2]}" in last.said
            whole(here, case.wanted)
            counted("states after a power loss, in train")
        shutil.rmtree(here)
    assert not broken
