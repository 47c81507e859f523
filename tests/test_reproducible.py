"""The same inputs, settings and stored responses give byte-identical stages, manifests and roots wherever and however they run."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import outputs
from pipeline.audit import audit
from pipeline.runner import is_run_fact, run
from tests.conftest import write_project

ROOT = Path(__file__).parents[1]


def results(folder: Path) -> dict[str, bytes]:
    """Every file of every stage that is no measurement, and which result is in force."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.relative_to(folder).parts[0] not in ("responses", "report", ".lock")
        and not is_run_fact(path.name)
    }


def with_data_outside(file: Path) -> Path:
    """The project with its inputs in a folder beside it, as several projects share their data."""
    data = file.parent.parent / "data"
    data.mkdir()
    for name in ("inputs.jsonl", "test.jsonl", "completions.jsonl"):
        (file.parent / name).rename(data / name)
    settings = file.read_text()
    for name in ("inputs.jsonl", "test.jsonl", "completions.jsonl"):
        settings = settings.replace(name, f"../data/{name}")
    file.write_text(settings)
    return file


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished project."""
    file = with_data_outside(write_project(tmp_path_factory.mktemp("first") / "project"))
    run(file, processes=1)
    return file.parent / "runs/small"


def shuffled(store: Path, copy: Path, seed: int) -> None:
    """The records of a store in another order, in two segments."""
    lines = [line for path in sorted(store.glob("segment-*.jsonl")) for line in path.read_bytes().splitlines(True)]
    random.Random(seed).shuffle(lines)
    copy.mkdir(parents=True)
    half = len(lines) // 2
    (copy / "segment-00000.jsonl").write_bytes(b"".join(lines[:half]))
    (copy / "segment-00001.jsonl").write_bytes(b"".join(lines[half:]))
    (copy / "teachers").mkdir()
    for path in (store / "teachers").iterdir():
        (copy / "teachers" / path.name).write_bytes(path.read_bytes())


RUN = """\
import sys
from pipeline import processes
from pipeline.runner import run

if __name__ == "__main__":
    processes.WORTH_IT = 0  # so that several processes work on the little that there is
    run(sys.argv[1], processes=int(sys.argv[2]))
"""


def test_another_folder_process_and_surrounding_give_the_same_bytes(first: Path, tmp_path: Path) -> None:
    """Deeper, made in another order, with other times, rights, working directory, hash seed, locale and time zone, two processes."""
    file = with_data_outside(write_project(tmp_path / "further/down/project"))
    shuffled(first / "responses", file.parent / "runs/small/responses", seed=5)
    inputs = sorted((file.parent.parent / "data").iterdir(), reverse=True)
    for number, path in enumerate(inputs):
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        path.chmod(0o600)
        os.utime(path, (10**9 + number, 10**9 + number))
    surroundings = {
        **os.environ,
        "PYTHONHASHSEED": "4242",
        "LC_ALL": "C",
        "LANG": "C",
        "PYTHONUTF8": "0",
        "TZ": "Pacific/Kiritimati",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", RUN, "../project/stages.yaml", "2"]
    (tmp_path / "further/down/elsewhere").mkdir()
    done = subprocess.run(
        command,
        cwd=tmp_path / "further/down/elsewhere",
        env=surroundings,
        umask=0o077,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "0 of 29 requests asked" in done.stderr
    second = file.parent / "runs/small"
    assert results(second) == results(first)
    assert list(audit(second)) == []
    folder = outputs.current(second, "shard")
    assert folder is not None
    assert outputs.read_manifest(folder).root is not None


@pytest.mark.parametrize("given", ["absolute", "relative", "by a link"])
def test_however_the_settings_file_is_named_the_bytes_are_the_same(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    file = with_data_outside(write_project(tmp_path / "project"))
    shuffled(first / "responses", file.parent / "runs/small/responses", seed=6)
    named = file
    if given == "relative":
        monkeypatch.chdir(file.parent)
        named = Path("stages.yaml")
    elif given == "by a link":
        (tmp_path / "linked").symlink_to(file.parent)
        named = tmp_path / "linked/stages.yaml"
    run(named)
    assert results(file.parent / "runs/small") == results(first)


def test_no_manifest_tells_where_the_project_lies(first: Path) -> None:
    for path in first.rglob("manifest.json"):
        manifest = json.loads(path.read_bytes())
        assert all(source["uri"].startswith("../data/") for source in manifest["sources"])
        assert str(first.parents[2]) not in path.read_text()


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_rows_that_cannot_be_read_are_dropped_with_the_same_bytes_in_every_folder(tmp_path: Path, kind: str) -> None:
    found = []
    for place in ("one", "somebody/else/two"):
        file = write_project(tmp_path / place)
        settings = file.read_text().replace("stages:\n", "stages:\n  ingest: {on_bad_row: drop}\n")
        if kind == "jsonl":
            with (file.parent / "inputs.jsonl").open("ab") as inputs:
                inputs.write(b'{"id": 1\n')
        else:
            (file.parent / "inputs.csv").write_text("id,text,topic\nr0,some words,food\nr1,too few\n")
            settings = settings.replace("inputs.jsonl", "inputs.csv")
        file.write_text(settings)
        assert run(file, until="sample")[0].manifest.counts.reasons == {"bad_row": 1}
        found.append(results(file.parent / "runs/small"))
    assert found[0] == found[1]
