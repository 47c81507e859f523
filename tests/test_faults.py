"""Killed before any call that changes a file, or with any of them failing: a run goes on from there, and nothing is lost or repeated.

By default some calls are tried, spread over the run; `TORTURE=1 python -m pytest tests/test_faults.py` tries every one.
"""

import errno
import json
import os
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.audit import audit
from pipeline.responses import read_store
from tests.conftest import SETTINGS, TOPICS, text, write_jsonl
from tests.counting import counted
from tests.faults import KILLED, Ask, Fault, Outcome, faulty

ALL = "TORTURE" in os.environ
ROWS = 200
TRIED = 8  # of the calls of a run, by default
UNSURE = 12  # calls: into how many commits answers fall is a matter of time
ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO}


def write_project(folder: Path, *, judge: bool = True) -> Path:
    """200 rows with something for every stage to drop; balance is on, and ``judge``, where that is wanted."""
    folder.mkdir(parents=True)
    topics = list(TOPICS)
    rows = [{"id": f"r{n}", "text": text(topics[n % 2], n), "topic": topics[n % 2]} for n in range(ROWS)]
    rows[7]["text"] = rows[5]["text"].upper()  # a duplicate
    tests = [{"id": f"t{n}", "text": text(topics[n % 2], 1000 + n), "topic": topics[n % 2]} for n in range(6)]
    rows[9]["text"] = f"I read that {tests[0]['text']} today"  # an eval row
    said = {row["id"]: f"It speaks of {row['text'].split()[0]} here. So the answer is {row['topic']}." for row in rows}
    said |= {"r11": "Hm.", "r13": "It speaks of plants here. So the answer is gardening."}
    del said["r17"]  # a request without an answer
    write_jsonl(folder / "inputs.jsonl", rows)
    write_jsonl(folder / "test.jsonl", tests)
    write_jsonl(folder / "completions.jsonl", [{"id": name, "completion": one} for name, one in said.items()])
    settings = SETTINGS.replace(
        "  shard: {validation: 0.2}\n", "  balance: {most_per_label: 80}\n  shard: {validation: 0.2}\n"
    )
    (folder / "stages.yaml").write_text(settings)
    if judge:
        add_judge(folder, [row["id"] for row in rows])
    return folder


def add_judge(folder: Path, rows: list[str]) -> None:
    """The stage judge, which a recorded judge answers, and a filter for what it finds poor."""
    scores = {name: json.dumps({"reason": "It names a word.", "score": 4}) for name in rows}
    scores |= {"r19": json.dumps({"reason": "It is vague.", "score": 1}), "r21": "five of five"}
    write_jsonl(folder / "judgements.jsonl", [{"id": name, "completion": one} for name, one in scores.items()])
    settings = (folder / "stages.yaml").read_text()
    for before, after in (
        (
            "  quality:\n",
            "  judge: {teacher: {backend: replay, name: judge, completions: judgements.jsonl}}\n  quality:\n",
        ),
        ("      - {min_words: 3}\n", "      - {min_words: 3}\n      - {min_judge_score: 2}\n"),
    ):
        assert before in settings
        settings = settings.replace(before, after)
    (folder / "stages.yaml").write_text(settings)


def tree(folder: Path) -> dict[str, bytes]:
    """The run as it must come out, whatever happened on the way: all but times, the report that shows them, and locks."""
    run = folder / "runs" / "small"
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file()
        and not path.name.startswith("run")
        and path.name not in ("lock", ".lock")
        and path.relative_to(run).parts[0] != "report"
    }


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    with faulty(tmp_path_factory.mktemp("said")) as found:
        yield found.ask


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What each run begins with."""
    return write_project(tmp_path_factory.mktemp("project") / "project")


@pytest.fixture(scope="module")
def undisturbed(ask: Ask, project: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], int]:
    """The run as it is without any fault, and how many calls it makes."""
    folder = shutil.copytree(project, tmp_path_factory.mktemp("undisturbed") / "project")
    first = ask(folder, "run")
    assert first.code == 0, first.said
    again = shutil.copytree(project, folder.with_name("again"))
    second = ask(again, "run")
    assert second.code == 0, second.said
    assert abs(second.calls - first.calls) <= UNSURE
    assert tree(folder) == tree(again)
    assert list(audit(folder / "runs" / "small")) == []
    return tree(folder), first.calls


def tried(calls: int, seed: int) -> list[int]:
    """Which calls: all, or one of each stretch of the run."""
    if ALL:
        return [*range(1, calls + 1)]
    chance = random.Random(seed)
    edges = [calls * part // TRIED for part in range(TRIED + 1)]
    return [chance.randint(low + 1, high) for low, high in pairwise(edges)]


@contextmanager
def trying(broken: list[str], what: str) -> Iterator[None]:
    """One case of many: what it breaks is noted in ``broken``, and the next one is tried."""
    try:
        yield
    except AssertionError as error:
        broken.append(f"{what}: {error}")


def reached(outcome: Outcome) -> str:
    """How far a run came, by what it said: the stage it was in, or what lies before and after them all."""
    told = re.findall(r"^(\w+): (running|[\d,]+ \w+ in,)", outcome.said, re.MULTILINE)
    if not told:
        return "before the first stage"
    stage, state = told[-1]
    return f"in {stage}" if state == "running" else "in the report"


def ends_whole(ask: Ask, folder: Path, wanted: dict[str, bytes]) -> None:
    """The next run ends well and leaves what ``whole`` asks for."""
    last = ask(folder, "run")
    assert last.code == 0, last.said
    assert "Traceback" not in last.said
    whole(folder, wanted)


def whole(folder: Path, wanted: dict[str, bytes]) -> None:
    """The very bytes of an undisturbed run lie there; each answer is stored once, and the audit finds nothing."""
    found = tree(folder)
    assert {name for name in {*found, *wanted} if found.get(name) != wanted.get(name)} == set()
    run = folder / "runs" / "small"
    for store in ("responses", "answers"):
        if store == "responses" or (run / store).is_dir():
            keys = Counter(record.key for _, _, record in read_store(run / store))
            assert set(keys.values()) == {1}
    assert [str(one) for one in audit(run)] == []


def test_killed_before_any_call_it_goes_on_as_if_nothing_had_happened(
    ask: Ask, project: Path, undisturbed: tuple[dict[str, bytes], int], tmp_path: Path
) -> None:
    wanted, calls = undisturbed
    broken: list[str] = []
    for at in tried(calls, seed=1):
        folder = shutil.copytree(project, tmp_path / f"killed-{at}")
        with trying(broken, f"call {at}"):
            killed = ask(folder, "run", fault=Fault(at=at))
            assert killed.code in (KILLED, 0 if at > calls - UNSURE else KILLED)
            counted(f"killed before a call that changes a file, {reached(killed)}")
            ends_whole(ask, folder, wanted)
        shutil.rmtree(folder)
    assert not broken


def one_clear_line(outcome: Outcome) -> None:
    """It failed, says so in its last line, which names the place, and nothing looks like a crash."""
    assert outcome.code in (1, 2), (outcome.code, outcome.said)
    assert "Traceback" not in outcome.said, outcome.said
    lines = outcome.said.strip().splitlines()
    assert lines[-1].startswith("stepdistill: "), outcome.said
    assert sum(line.startswith("stepdistill: ") for line in lines) == 1, outcome.said
    assert lines[-1].startswith("stepdistill: runs"), outcome.said


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
@pytest.mark.parametrize("error", [*ERRORS])
def test_a_call_that_fails_is_one_line_and_the_next_run_goes_on(
    ask: Ask, project: Path, undisturbed: tuple[dict[str, bytes], int], tmp_path: Path, error: str, lasting: bool
) -> None:
    wanted, calls = undisturbed
    broken: list[str] = []
    for at in tried(calls, seed=2 + lasting)[:: 1 if ALL else 2]:
        folder = shutil.copytree(project, tmp_path / f"{error}-{at}")
        with trying(broken, f"call {at}"):
            failed = ask(folder, "run", fault=Fault(at=at, error=ERRORS[error], lasting=lasting))
            counted(f"calls that failed (ENOSPC, EIO; once, and from then on), {reached(failed)}")
            if failed.code != 0:  # what only measures, and what is removed for tidiness, may fail in silence
                one_clear_line(failed)
            ends_whole(ask, folder, wanted)
        shutil.rmtree(folder)
    assert not broken


def test_what_is_committed_survives_a_disk_that_stays_full(
    ask: Ask, project: Path, undisturbed: tuple[dict[str, bytes], int], tmp_path: Path
) -> None:
    """Answers that a failed run had committed are there for the next one, which does not ask for them."""
    _, calls = undisturbed
    first = shutil.copytree(project, tmp_path / "first")
    all_asked = asked(ask(first, "run"))
    answers = len(list(read_store(first / "runs" / "small" / "responses")))
    folder = shutil.copytree(project, tmp_path / "full")
    store = folder / "runs" / "small" / "responses"
    for at in tried(calls, seed=5)[::4]:
        ask(folder, "run", fault=Fault(at=at, error=errno.ENOSPC, lasting=True))
        before = {record.key for _, _, record in read_store(store)} if store.is_dir() else set()
        last = ask(folder, "run")
        assert last.code == 0, last.said
        after = [record.key for _, _, record in read_store(store)]
        assert before <= set(after) and len(set(after)) == len(after) == answers
        assert asked(last) <= all_asked - len(before), last.said
        shutil.rmtree(folder / "runs")


def asked(outcome: Outcome) -> int:
    """How many requests a run put to its teachers, as it says."""
    found = re.findall(r"^\w+: ([\d,]+) of [\d,]+ requests asked", outcome.said, re.MULTILINE)
    return sum(int(number.replace(",", "")) for number in found)


def test_calls_are_counted_as_they_are_made(ask: Ask, project: Path, tmp_path: Path) -> None:
    """The harness itself: the log names every call, and what only looks at a run changes nothing."""
    folder = shutil.copytree(project, tmp_path / "logged")
    log = tmp_path / "log"
    done = ask(folder, "run", "--until", "ingest", fault=Fault(log=str(log)))
    assert done.code == 0
    names = [line.split(b" ", 1)[0] for line in log.read_bytes().replace(b"\0", b"\n").splitlines() if line]
    assert names.count(b"rename") >= 4 and b"fsync" in names
    status = ask(folder, "status", "--json")
    assert status.calls == 0 and json.loads(status.said)[0]["state"]
