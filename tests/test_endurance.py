"""The harness of endurance, small: nothing is lost on the way to the shards, or between a misbehaving server, kills and a forced run.

The long runs are `python -m benchmarks.endurance rows DATA` and `.. sampling`; with TORTURE=1 the tests try a tenth of their prompts.
"""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.endurance import Ended, accounted, by_stage, growth, many_prompts, many_rows, memory_figures
from pipeline import outputs
from tests.conftest import write_jsonl
from tests.counting import counted

LARGE = "TORTURE" in os.environ
ROWS = 20_000 if LARGE else 300
PROMPTS, KILLS = (10_000, 3) if LARGE else (300, 1)
WORDS = [f"{first}{middle}{last}" for first in "bdgk" for middle in "aeiou" for last in "lmnrst"]


def recorded(folder: Path) -> Path:
    """Data as the benchmarks take it: questions with choices, and what a teacher said of them."""
    chance = random.Random(0)
    (folder / "cqa").mkdir(parents=True)
    for part in ("train", "test"):
        asked, said = [], []
        for number in range(50):
            choices = chance.sample(WORDS, 5)
            asked.append(
                {"id": f"{part}-{number}", "question": " ".join(chance.choices(WORDS, k=15)), "choices": choices}
            )
            rationale = " ".join(chance.choices(WORDS, k=20))
            said.append({"id": f"{part}-{number}", "completion": f"{rationale} So the answer is (a) {choices[0]}."})
        write_jsonl(folder / "cqa" / f"{part}.jsonl", asked)
        write_jsonl(folder / "cqa" / f"palm540b-{part}.jsonl", said)
    return folder


def test_every_row_of_many_is_accounted_for(tmp_path: Path) -> None:
    folder = tmp_path / "project"
    found = many_rows(recorded(tmp_path / "data"), folder, ROWS, every=0.2, eval_rows=50)
    assert found["rows"]["ingest"]["in"] == ROWS
    assert found["rows"]["dedup"]["dropped"] > 0
    assert found["memory"]["parse .. shard"]["peak"] > 10
    assert {"parse", "dedup", "decontaminate", "quality", "shard"} <= found["memory"].keys()
    counted("rows followed from their answers to the shards", ROWS)

    run = folder / "run"
    dropped = current(run, "dedup") / "dropped.jsonl"
    part = current(run, "quality") / "part-00000.jsonl"
    broken: list[tuple[Path, Callable[[list[bytes]], list[bytes]]]] = [
        (dropped, lambda lines: lines[1:]),  # a drop that left no line
        (dropped, lambda lines: [lines[-1], *lines[1:]]),  # one twice, and another not at all
        (part, lambda lines: lines[:-1]),  # a row that was lost
        (part, lambda lines: [*lines[:-1], lines[0]]),  # one in the place of another
    ]
    for path, change in broken:
        whole = path.read_bytes()
        path.write_bytes(b"".join(change(whole.splitlines(keepends=True))))
        with pytest.raises(AssertionError):
            accounted(folder)
        path.write_bytes(whole)
    assert accounted(folder) == found["rows"]
    shutil.rmtree(folder)


def current(run: Path, stage: str) -> Path:
    folder = outputs.current(run, stage)
    assert folder is not None
    return folder


def test_every_prompt_is_answered_once_or_fails_with_its_reason(tmp_path: Path) -> None:
    found = many_prompts(tmp_path / "project", PROMPTS, kills=KILLS, share=0.005, every=0.05, timeout=0.3)
    first, last = found["first result"]["sample"], found["with --force"]["sample"]
    assert first["in"] == last["in"] == PROMPTS
    assert last["dropped"] < first["dropped"]
    assert found["misbehaved"]["kinds"] > 20
    assert len(found["committed at the kills"]) == KILLS
    assert 0 < found["committed at the kills"][-1] < first["kept"]
    counted("prompts asked of a server that misbehaves in every way", PROMPTS)


def test_memory_that_grows_is_told_from_memory_that_does_not() -> None:
    flat = [(float(second), 100 << 20) for second in range(30)]
    growing = [(float(second), (100 + 10 * second) << 20) for second in range(30)]
    assert memory_figures(flat) == {
        "first": 100, "median": 100, "last": 100, "peak": 100, "last third over middle": 1
    }  # fmt: skip
    assert memory_figures(growing)["last third over middle"] == round(390 / 290, 3)
    assert memory_figures([]) == {}
    lines = [(0.5, "parse: running (ab)"), (9.0, "parse: 5 responses in"), (9.5, "shard: running (cd)")]
    apart = by_stage(Ended(0, lines, growing))
    assert (apart["parse"]["peak"], apart["shard"]["peak"]) == (190, 390)
    assert growth({"memory": apart}, {"memory": apart}) == {"parse": 1, "shard": 1}
