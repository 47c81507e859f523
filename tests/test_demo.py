"""The demo, small but real: vLLM engine, embedded teacher, TRL training, evaluation and report; killed in training, and gone on from."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import outputs
from pipeline.records import Drop, Response, TrainingRow
from pipeline.responses import read_store
from tests.test_docs import commands, run

ROOT = Path(__file__).parents[1]
COMMAND = str(Path(sys.executable).with_name("stepdistill"))
ENVIRONMENT = {**os.environ, "PATH": f"{Path(COMMAND).parent}{os.pathsep}{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
PLANTED = 22  # duplicates and leaked test rows in the demo's training inputs, as data/topics/README.md lists them


def planted_lines() -> dict[int, str]:
    """Line of train.jsonl -> 'duplicate' or 'leak', from the lists in data/topics/README.md."""
    text = (ROOT / "data/topics/README.md").read_text()
    duplicates, leaks = text.split("### Test rows that leaked in")
    rows = {int(number): "duplicate" for number in re.findall(r"^\| (\d+) \|", duplicates, re.MULTILINE)}
    return rows | {int(number): "leak" for number in re.findall(r"^\| (\d+) \|", leaks, re.MULTILINE)}


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, *arguments], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=600
    )


def engines_of(process: int) -> list[str]:
    """The command lines of vLLM's engines among a process's children."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    names = [Path(f"/proc/{child}/cmdline").read_text() for child in children]
    return [name for name in names if "EngineCore" in name]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`stepdistill init`, cut to 60 inputs and 24 eval rows and a student of two layers, run to its end after a kill in training."""
    folder = tmp_path_factory.mktemp("demo") / "project"
    assert subprocess.run([COMMAND, "init", str(folder)], check=False).returncode == 0
    train, test = folder / "data/topics/train.jsonl", folder / "data/topics/test.jsonl"
    inputs, eval_rows = train.read_bytes().splitlines(keepends=True), test.read_bytes().splitlines(keepends=True)
    train.write_bytes(b"".join(inputs[:60]))
    test.write_bytes(b"".join(eval_rows[:24]))
    settings = (folder / "stages.yaml").read_text()
    settings = re.sub(r"\{from: embedded, layers: 8\}", "{from: embedded, layers: 2}", settings)
    settings = re.sub(r"epochs: \d+", "epochs: 1, checkpoint_seconds: 0", settings)
    small = (
        "evaluate: {latency: 2, rationales: 6, safety: false}"  # without gates, which so small a student need not reach
    )
    settings = re.sub(r"evaluate: \{gates: .*\}\}", small, settings)
    (folder / "stages.yaml").write_text(settings)

    process = subprocess.Popen([COMMAND, "run"], cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    told = []
    for line in process.stderr:
        told.append(line)
        if line.startswith("train: running"):
            assert engines_of(process.pid) == []  # it was gone when the rows were there
            process.kill()
            break
    process.communicate(timeout=60)
    assert any(line.startswith("sample: 60 requests in, 60 kept") for line in told), told
    ran = call(folder, "run")
    assert ran.returncode == 0, ran.stderr
    assert "sample: unchanged" in ran.stderr
    assert "train: running" in ran.stderr
    return folder


@pytest.mark.slow
def test_the_killed_run_ends_whole(demo: Path) -> None:
    audited = call(demo, "audit", "--full")
    assert audited.returncode == 0, audited.stdout
    again = json.loads(call(demo, "run", "--json").stdout)
    assert [stage["ran"] for stage in again["stages"]] == [False] * 9


@pytest.mark.slow
def test_models_are_measured_side_by_side(demo: Path) -> None:
    ran = json.loads(call(demo, "run", "--json").stdout)
    models = ran["models"]["eval_sets"]["test"]["models"]
    assert set(models) == {"teacher", "student", "baseline", "nearest", "majority"}
    for figures in models.values():
        low, high = figures["accuracy_interval"]
        assert figures["rows"] == 24
        assert 0 <= low <= figures["accuracy"] <= high <= 1
    assert models["teacher"]["accuracy"] > 0.4
    page = (demo / ran["report"]).read_text()
    assert all(f"{model}" in page for model in models)
    assert not re.search(r"(?:src|href)=[\"']https?:", page)


@pytest.mark.slow
def test_every_row_is_accounted_for_and_trains_both_tasks(demo: Path) -> None:
    status = json.loads(call(demo, "status", "--json").stdout)
    assert [stage["state"] for stage in status] == ["done"] * 9
    for stage in status:
        assert stage["counts"]["rows_in"] == stage["counts"]["kept"] + stage["counts"]["dropped"]
    shard = outputs.current(demo / "runs/topics", "shard")
    assert shard is not None
    rows = list(outputs.read(shard, TrainingRow))
    assert {row.task for row in rows} == {"label", "rationale"}
    stored = {record.key for _, _, record in read_store(demo / "runs/topics/responses")}
    sample = outputs.current(demo / "runs/topics", "sample")
    assert sample is not None
    assert {row.request for row in outputs.read(sample, Response)} <= stored
    assert all(row.prompt.startswith(f"[{row.task}] ") for row in rows)


def drops(folder: Path, stage: str) -> list[Drop]:
    result = outputs.current(folder / "runs/topics", stage)
    assert result is not None
    return list(outputs.read_drops(result))


@pytest.mark.slow
def test_the_commands_of_the_readme_run(demo: Path) -> None:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    commands = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()]
    assert len(commands) >= 8
    for command in commands:
        assert command[0] == "stepdistill"
        done = call(demo, *command[1:])
        assert done.returncode == 0, (command, done.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("page", ["tutorial.md", "audit.md"])
def test_the_commands_of_the_tutorial_and_of_the_audit_run(demo: Path, tmp_path: Path, page: str) -> None:
    """As they stand on the page, in a copy of the demo that has run: what is unchanged there is not run again."""
    started = "stepdistill init topics\ncd topics\n"
    typed = commands(page) if page == "tutorial.md" else started + commands(page)
    assert typed.startswith(started)
    printed = run(typed.replace(started, f"{started}cp -r {demo}/. .\n"), tmp_path)
    assert "whole; read" in printed
    if page == "tutorial.md":
        assert "quality.filters" in printed  # what compare tells


@pytest.mark.slow
def test_shards_train_alone_and_any_model_is_measured(demo: Path) -> None:
    shard = outputs.current(demo / "runs/topics", "shard")
    train = outputs.current(demo / "runs/topics", "train")
    settings = ["--set", "epochs=1", "--set", "batch_size=8", "--set", "baseline=false"]
    done = call(
        demo, "train", "--shards", str(shard), "--student", f"{train}/student", "--out", "again", *settings, "--json"
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["rows"] > 0
    measured = call(demo, "evaluate", "--model", "again/student", "--json")
    assert measured.returncode == 0, measured.stderr
    assert json.loads(measured.stdout)["eval_sets"]["test"]["models"]["student"]["rows"] == 24


def test_all_planted_rows_are_found_with_the_right_evidence(tmp_path: Path) -> None:
    """Without a teacher: the demo's inputs with one recorded answer for all go through dedup and decontaminate."""
    folder = tmp_path / "project"
    assert subprocess.run([COMMAND, "init", str(folder)], check=False).returncode == 0
    settings = (folder / "stages.yaml").read_text()
    settings = re.sub(r"teacher: \{.*\}\n", "teacher: {backend: replay, completions: said.jsonl}\n", settings, count=1)
    settings = re.sub(r"  train: .*\n  evaluate: .*\n", "  train: false\n  evaluate: false\n", settings)
    (folder / "stages.yaml").write_text(settings)
    (folder / "said.jsonl").write_text('{"id": "none", "completion": "none"}\n')
    assert call(folder, "run", "--until", "ingest").returncode == 0
    ingest = outputs.current(folder / "runs/topics", "ingest")
    assert ingest is not None
    prompts = [json.loads(line) for line in outputs.lines(ingest)]
    said = [
        {"id": row["id"], "completion": f"The text is about thing {n}, which belongs to food. So the answer is food."}
        for n, row in enumerate(prompts)
    ]
    (folder / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    assert call(folder, "run", "--until", "quality").returncode == 0
    line_of = {row["id"]: int(row["source"].partition(":")[2]) for row in prompts}
    text = (ROOT / "data/topics/README.md").read_text()
    listed = {int(a): int(b) for a, b in re.findall(r"^\| (\d+) \| (\d+) \|", text, re.MULTILINE)}
    planted = planted_lines()
    assert len(planted) == PLANTED
    twins = {line_of[drop.id]: line_of[str(drop.evidence["twin"])] for drop in drops(folder, "dedup")}
    assert twins == {line: listed[line] for line, kind in planted.items() if kind == "duplicate"}
    eval_lines = {
        line_of[drop.id]: int(str(drop.evidence["eval_source"]).partition(":")[2])
        for drop in drops(folder, "decontaminate")
    }
    assert eval_lines == {line: listed[line] for line, kind in planted.items() if kind == "leak"}
