"""SIGKILL at a random moment of the whole pipeline, with random settings, and again while it recovers: the same bytes, no answer twice.

By default two cases; `TORTURE=1 python -m pytest tests/test_random_kills.py` has a thousand: 700 are killed once, 300 again and again. Half
of the kills come from outside at a random time, whatever the threads are at; half before a random call that changes a file.
"""

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.counting import counted, every
from tests.faults import KILLED, Ask, Fault, Outcome, faulty
from tests.test_faults import ends_whole, reached, tree, trying, write_project

ONCE, AGAIN = 700, 300
SEEDS = every([*range(ONCE + AGAIN)]) if "TORTURE" in os.environ else [0, ONCE]
CHUNKS = (7, 64, 256)  # requests between commits
ROWS = (40, 100_000)  # in each file of shards
CREWS = 10  # one of so many cases works on its rows in two processes


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    with faulty(tmp_path_factory.mktemp("said")) as found:
        yield found.ask


def write_variant(folder: Path, chunk: int, rows: int) -> Path:
    """The project with these settings."""
    settings = write_project(folder) / "stages.yaml"
    text = settings.read_text()
    for old, new in (
        ("completions: completions.jsonl}", f"completions: completions.jsonl}}\n    chunk: {chunk}"),
        ("shard: {validation: 0.2", f"shard: {{rows_per_shard: {rows}, validation: 0.2"),
    ):
        assert old in text
        text = text.replace(old, new)
    settings.write_text(text)
    return folder


def drawn(chance: random.Random, whole: Outcome, crew: bool) -> Fault:
    """One kill of a run that takes as long, and makes as many calls, as ``whole``."""
    if chance.random() < 0.5:
        return Fault(at=chance.randint(1, whole.calls), crew=crew)
    return Fault(after=chance.uniform(0.01, 1.0) * whole.seconds, crew=crew)


def test_killed_at_random_it_goes_on_as_if_nothing_had_happened(ask: Ask, tmp_path: Path) -> None:
    known: dict[tuple[int, int], tuple[Path, dict[str, bytes], Outcome]] = {}
    broken: list[str] = []
    for seed in SEEDS:
        chance = random.Random(seed)
        chunk, rows, crew = chance.choice(CHUNKS), chance.choice(ROWS), chance.randrange(CREWS) == 0
        if (chunk, rows) not in known:
            project = write_variant(tmp_path / f"project-{chunk}-{rows}", chunk, rows)
            undisturbed = shutil.copytree(project, tmp_path / f"undisturbed-{chunk}-{rows}")
            done = ask(undisturbed, "run")
            assert done.code == 0, done.said
            known[chunk, rows] = project, tree(undisturbed), done
        project, wanted, done = known[chunk, rows]
        folder = shutil.copytree(project, tmp_path / f"killed-{seed}")
        times = 1 if seed < ONCE else chance.randint(2, 4)
        with trying(broken, f"seed {seed}"):
            for number in range(times):
                fault = drawn(chance, done, crew)
                if number:  # what is left is less
                    fault = replace(fault, at=fault.at // 2, after=fault.after / 2)
                killed = ask(folder, "run", *(["--processes", "2"] if crew else []), fault=fault)
                assert killed.code in (KILLED, 0), killed.said
                assert "Traceback" not in killed.said, killed.said
                if killed.code == KILLED:
                    counted("killed again, while it recovered" if number else f"killed at random, {reached(killed)}")
            ends_whole(ask, folder, wanted)
        shutil.rmtree(folder)
    assert not broken
