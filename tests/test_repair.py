"""repair: damage of every kind is undone to the byte, no teacher is asked, and what cannot be undone is named."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline import asking, outputs
from pipeline.audit import audit
from pipeline.cli import app
from pipeline.config import load
from pipeline.repair import Repaired, repair
from pipeline.runner import is_run_fact, run
from tests.conftest import write_jsonl, write_project

SHARED = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The settings file of a small finished project, of which ``small/`` beside the run folder is a copy."""
    file = write_project(tmp_path_factory.mktemp("repaired") / "project")
    run(file)
    shutil.copytree(file.parent / "runs/small", file.parent / "copy")
    return file


@pytest.fixture
def config(whole: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The settings file of the project, its run folder as it was written; whoever asks a teacher fails."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a teacher was asked")

    monkeypatch.setattr(asking.teachers, "connect", refuse)
    restore(whole)
    return whole


def restore(file: Path) -> Path:
    folder = file.parent / "runs/small"
    shutil.rmtree(folder)
    shutil.copytree(file.parent / "copy", folder)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    """Every file that is no measurement, by its path, but for what was moved away."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and path.relative_to(folder).parts[0] != "damaged"
        and not is_run_fact(path.name)
        and path.name not in (".lock", "lock")
    }


def is_as_it_was(file: Path, done: Repaired) -> bool:
    return content(file.parent / "runs/small") == content(file.parent / "copy") and not done.findings and not done.lost


def harm(path: Path, how: str, place: float = 0.5) -> None:
    data = path.read_bytes()
    at = min(int(len(data) * place), max(len(data) - 1, 0))
    if how == "flip" and data:
        path.write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
    elif how == "truncate":
        path.write_bytes(data[:at])
    elif how == "append":
        path.write_bytes(data + b"{}\n")
    elif how == "newline":
        path.write_bytes(data[:at] + b"\n" + data[at + 1 :])
    elif how == "join":
        first, _, rest = data.partition(b"\n")
        path.write_bytes(first + b" " + rest)
    elif how == "delete":
        path.unlink()
    elif how == "link":
        path.unlink()
        path.symlink_to("/etc/hostname")


KINDS = [
    "ingest/*/part-00000.jsonl",
    "sample/*/part-00000.jsonl",
    "parse/*/dropped.jsonl",
    "dedup/*/part-00000.xxh3",
    "decontaminate/*/manifest.json",
    "quality/*/counts.json",
    "quality/current",
    "shard/*/README.md",
    "shard/*/train-00000.jsonl",
    "shard/*/manifest.json",
    "responses/segment-00000.jsonl",
    "responses/teachers/*.json",
]


@pytest.mark.parametrize(
    ("pattern", "how"), [*zip(KINDS, ["flip", "truncate", "delete"] * 4, strict=True), (KINDS[-2], "delete")]
)
def test_every_kind_of_file_comes_back_to_the_byte(config: Path, pattern: str, how: str) -> None:
    (path,) = (config.parent / "runs/small").glob(pattern)
    harm(path, how)
    done = repair(load(config))
    assert done.steps
    assert is_as_it_was(config, done)
    assert repair(load(config)) == Repaired([], [])


@given(data=st.data())
@settings(SHARED, max_examples=10)
def test_any_damage_is_undone(config: Path, data: st.DataObject) -> None:
    folder = restore(config)
    names = sorted(content(folder))
    for name in data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
        how = data.draw(st.sampled_from(["flip", "truncate", "append", "newline", "join", "delete", "link"]))
        harm(folder / name, how, data.draw(st.floats(0, 1)))
    harmed = not list(audit(folder))
    done = repair(load(config))
    if not done.lost:
        assert harmed or is_as_it_was(config, done)
    else:  # a response and the row made from it
        assert any(name.startswith("responses/segment") for name in names)
        assert done.findings


@given(data=st.data())
@settings(SHARED, max_examples=6)
def test_interrupted_at_any_moment_the_next_call_goes_on(config: Path, data: st.DataObject) -> None:
    folder = restore(config)
    for pattern in ("responses/segment-00000.jsonl", "sample/*/part-00000.jsonl", "quality/*/part-00000.jsonl"):
        (path,) = folder.glob(pattern)
        harm(path, "flip", 0.1 if pattern.startswith("responses") else 0.9)
    left = data.draw(st.integers(0, 60))

    def stopping(original: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                raise KeyboardInterrupt
            return original(*arguments, **named)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in ("rename", "replace", "unlink"):
            patch.setattr(Path, name, stopping(getattr(Path, name)))
        try:
            repair(load(config))
        except KeyboardInterrupt:
            patch.undo()
    assert is_as_it_was(config, (done := repair(load(config)))), done


def test_what_is_lost_for_good_is_named_and_nothing_else_is_touched(config: Path) -> None:
    folder = config.parent / "runs/small"
    (rows,) = folder.glob("sample/*/part-00000.jsonl")
    segment = folder / "responses/segment-00000.jsonl"
    for path in (rows, segment):
        lines = path.read_bytes().split(b"\n")
        for number in (3, 7):
            assert b"It speaks" in lines[number]
            lines[number] = lines[number].replace(b"It speaks", b"It squeaks")
        path.write_bytes(b"\n".join(lines))
    shown = CliRunner().invoke(app, ["repair", "-c", str(config), "--dry-run"])
    assert shown.exit_code == 1
    assert not (folder / "damaged").exists()
    done = repair(load(config))
    assert {"sample: the answer r3#0", "sample: the answer r7#0"} <= set(done.lost)
    assert sum(name.startswith("response ") for name in done.lost) == 2
    assert any("`stepdistill run sample --force` asks its teacher 2 requests again" in step.told for step in done.steps)
    assert rows.read_bytes().count(b"It squeaks") == 2
    cut = (folder / "damaged/responses/segment-00000.jsonl").read_bytes()
    assert cut.count(b"It squeaks") == 2
    assert CliRunner().invoke(app, ["repair", "-c", str(config)]).exit_code == 1


def test_lost_answers_are_asked_for_by_run_alone_and_then_all_is_whole(whole: Path) -> None:
    folder = restore(whole)
    (rows,) = folder.glob("sample/*/part-00000.jsonl")
    for path in (rows, folder / "responses/segment-00000.jsonl"):
        path.write_bytes(path.read_bytes().replace(b"It speaks of goal3 ", b"It squeaks of goal3 "))
        path.write_bytes(path.read_bytes().replace(b"It speaks", b"It squeaks", 1))
    assert repair(load(whole)).lost
    run(whole, ["sample"], force=True)
    done = repair(load(whole))
    assert not done.findings
    assert content(folder).keys() == content(whole.parent / "copy").keys()
    restore(whole)


def test_settings_that_no_longer_match_are_named_and_the_result_is_left(config: Path) -> None:
    folder = config.parent / "runs/small"
    (path,) = folder.glob("quality/*/part-00000.jsonl")
    harm(path, "flip")
    changed = config.with_name("changed.yaml")
    changed.write_text(config.read_text().replace("min_words: 3", "min_words: 2"))
    harmed = path.read_bytes()
    done = repair(load(changed))
    (step,) = done.steps
    assert step.outcome == "left"
    assert "stages.yaml does not give this result any more: quality.filters" in step.told
    assert done.findings
    assert path.read_bytes() == harmed
    changed.unlink()


def test_what_does_not_belong_there_is_moved_away(config: Path) -> None:
    folder = config.parent / "runs/small"
    (result,) = (path for path in (folder / "dedup").iterdir() if path.is_dir())
    (result / ".hidden").write_text("x")
    (result / "part-00001.jsonl").write_text("{}\n")
    (result / "link").symlink_to("/etc")
    (folder / "notes.txt").write_text("mine")
    assert is_as_it_was(config, repair(load(config)))
    kept = {
        path.relative_to(folder / "damaged").as_posix() for path in (folder / "damaged").rglob("*") if path.is_file()
    }
    assert kept == {"notes.txt", *(f"dedup/{result.name}/{name}" for name in (".hidden", "part-00001.jsonl", "link"))}
    assert (folder / "damaged/dedup" / result.name / "link").read_text() == "/etc\n"


def test_a_forged_result_is_built_again(config: Path) -> None:
    """Row, digests and manifest were all written anew: only the stage before tells, and it is believed."""
    folder = outputs.current(config.parent / "runs/small", "shard")
    assert folder is not None
    manifest = outputs.read_manifest(folder)
    writer = outputs.RowWriter(folder, "train", None, tree=True)
    writer.prefix = "train-00000"
    lines = [line for line in (folder / "train-00000.jsonl").read_bytes().split(b"\n") if line]
    for line in [json.dumps({**json.loads(lines[0]), "completion": "x"}, separators=(",", ":")).encode(), *lines[1:]]:
        writer.write(line)
    files = {item.path: item for item in writer.close()}
    forged = manifest.model_copy(update={"outputs": [files.get(item.path, item) for item in manifest.outputs]})
    forged = forged.model_copy(update={"root": outputs.root(forged.outputs)})
    outputs.write_manifest(folder, forged.model_copy(update={"digest": outputs.manifest_digest(forged)}))
    assert list(audit(config.parent / "runs/small"))
    done = repair(load(config))
    assert not done.findings


def test_a_damaged_student_is_left_until_training_is_asked_for(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result of `train` stands in for here by any costly stage."""
    monkeypatch.setattr("pipeline.repair.COSTLY", ("quality",))
    (path,) = (config.parent / "runs/small").glob("quality/*/part-00000.jsonl")
    harm(path, "flip")
    done = repair(load(config))
    assert [(step.outcome, step.told) for step in done.steps] == [
        ("left", "quality must run again; `stepdistill repair --train` does that")
    ]
    assert is_as_it_was(config, repair(load(config), train=True))


def test_a_judges_lost_answer_is_named(tmp_path: Path) -> None:
    file = write_project(tmp_path / "project")
    said = json.dumps({"reason": "clear", "score": 4})
    write_jsonl(file.parent / "judged.jsonl", [{"id": f"r{n}", "completion": said} for n in range(29)])
    file.write_text(
        file.read_text().replace(
            "  quality:", "  judge:\n    teacher: {backend: replay, completions: judged.jsonl}\n  quality:"
        )
    )
    run(file)
    folder = file.parent / "runs/small"
    segment = folder / "responses/segment-00000.jsonl"
    lines = segment.read_bytes().split(b"\n")
    number = next(n for n, line in enumerate(lines) if b"clear" in line)
    lines[number] = lines[number].replace(b"clear", b"blear")
    segment.write_bytes(b"\n".join(lines))
    done = repair(load(file))
    assert len(done.lost) == 1
    assert done.findings
