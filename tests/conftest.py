"""A small project with recorded completions: the whole pipeline up to the shards in well under a second, no engine needed."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from pipeline import environment
from tests.forked import Forked, forking

settings.register_profile(
    "untimed", deadline=None
)  # speed is measured by benchmarks; tests run on machines of any speed
settings.register_profile("mutants", deadline=None, max_examples=20, derandomize=True, database=None)  # `make mutants`
settings.load_profile("untimed")

ROOT = Path(__file__).parents[1]
TOPICS = {
    "sports": "goal match keeper league striker coach referee penalty stadium trophy".split(),
    "food": "soup bread garlic kitchen recipe butter dinner pastry noodles cheese".split(),
}
SETTINGS = """\
run: runs/small
task:
  name: small
  inputs: inputs.jsonl
  input: "{{ text }}"
  labels: [sports, food]
  gold: topic
  id: id
eval_sets:
  test: {path: test.jsonl}
stages:
  sample:
    teacher: {backend: replay, completions: completions.jsonl}
  parse: {pattern: '(?P<rationale>.+?) So the answer is (?P<label>.+?)\\.'}
  dedup: {near: 0.8}
  decontaminate: {ngram: 8}
  quality:
    filters:
      - label_in_set
      - {min_words: 3}
  shard: {validation: 0.2}
  train: false
  evaluate: false
"""


def text(topic: str, number: int) -> str:
    """Ten distinct words in an order that no other number has."""
    words = TOPICS[topic]
    return " ".join(f"{words[(number * 7 + step * 3) % 10]}{number if step % 2 else ''}" for step in range(10))


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_bytes(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))


def write_project(folder: Path) -> Path:
    """24 plain rows, and five to find.

    r24 repeats r0, r25 is a test row, r26 has no answer to read, r27's label is outside the set, r28's rationale is short.
    """
    folder.mkdir(parents=True, exist_ok=True)
    topics = list(TOPICS)
    inputs = [{"id": f"r{n}", "text": text(topics[n % 2], n), "topic": topics[n % 2]} for n in range(24)]
    test = [{"id": f"t{n}", "text": text(topics[n % 2], 100 + n), "topic": topics[n % 2]} for n in range(6)]
    said = {
        row["id"]: f"It speaks of {row['text'].split()[0]} and more. So the answer is {row['topic']}." for row in inputs
    }
    inputs += [
        {"id": "r24", "text": inputs[0]["text"].upper(), "topic": "sports"},
        {"id": "r25", "text": f"I read that {test[0]['text']} today", "topic": "sports"},
        {"id": "r26", "text": text("food", 26), "topic": "food"},
        {"id": "r27", "text": text("food", 27), "topic": "food"},
        {"id": "r28", "text": text("food", 28), "topic": "food"},
    ]
    said |= {
        "r24": said["r0"],
        "r25": "It speaks of a game. So the answer is sports.",
        "r26": "I do not know.",
        "r27": "It speaks of plants and more. So the answer is gardening.",
        "r28": "Food. So the answer is food.",
    }
    write_jsonl(folder / "inputs.jsonl", inputs)
    write_jsonl(folder / "test.jsonl", test)
    write_jsonl(
        folder / "completions.jsonl", [{"id": name, "completion": completion} for name, completion in said.items()]
    )
    (folder / "stages.yaml").write_text(SETTINGS)
    return folder / "stages.yaml"


@pytest.fixture(scope="session", autouse=True)
def surroundings() -> None:
    """What manifests say of the code and the machine is worked out once a process: before any test puts something else in its place."""
    environment.environment()
    environment.code()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The settings file of a fresh small project."""
    return write_project(tmp_path / "project")


@pytest.fixture(scope="session")
def recorded_data() -> Path:
    """The folder of real inputs with PaLM 540B's recorded completions; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("STEPDISTILL_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "svamp" / "palm540b-train.jsonl").is_file():
        pytest.skip(f"no recorded completions in {folder}; name their folder in STEPDISTILL_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forked]:
    """Calls functions in processes of their own, one at a time."""
    with forking(tmp_path_factory.mktemp("forked") / "log") as call:
        yield call


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """So small a model gains nothing by a second thread, and its sums are the same whoever else uses the machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
