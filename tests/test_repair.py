"""repair: damage of every kind is undone to the byte, no teacher is asked, and what cannot be undone is named."""

import json
import shutil
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline import asking, environment, outputs, revoke
from pipeline import repair as module
from pipeline.audit import audit
from pipeline.cli import app
from pipeline.config import load
from pipeline.files import RunError, line_digest
from pipeline.outputs import Totals
from pipeline.records import Trained, TrainingRow
from pipeline.repair import Repaired, repair
from pipeline.runner import is_run_fact, run
from pipeline.signing import generate, private_key, sign
from pipeline.stages import STAGES
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


@pytest.fixture
def upgraded(config: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, and what is made from now on is made by other code."""
    upgrade(monkeypatch)
    return config


def upgrade(patch: pytest.MonkeyPatch) -> None:
    other = environment.code().model_copy(update={"modules": "0" * 64})
    patch.setattr(environment, "code", lambda: other)


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
def test_every_kind_of_file_comes_back_to_the_byte(
    config: Path, pattern: str, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if pattern != "shard/*/manifest.json":  # which nothing cites: it is as it was only where the same code makes it
        upgrade(monkeypatch)
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
def test_interrupted_at_any_moment_the_next_call_goes_on(upgraded: Path, data: st.DataObject) -> None:
    config = upgraded
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
    assert [name.partition(" (response ")[0] for name in done.lost] == [
        "sample: the answer r3#0",
        "sample: the answer r7#0",
    ]
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


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate(tmp_path_factory.mktemp("keys") / "ada").private.parent


def signed(file: Path, folder: Path) -> Path:
    """Sign the run; the public key."""
    sign(file.parent / "runs/small", private_key(folder / "ada.private.pem"))
    return folder / "ada.public.pem"


def forge_answer(file: Path) -> None:
    """One stored answer says something else, and its check says so too."""
    segment = file.parent / "runs/small/responses/segment-00000.jsonl"
    first, _, rest = segment.read_bytes().partition(b"\n")
    record = json.loads(first)
    record.pop("check")
    body = json.dumps({**record, "text": "Forged. " + record["text"]}, separators=(",", ":")).encode()
    segment.write_bytes(body[:-1] + b',"check":"' + line_digest(body).encode() + b'"}\n' + rest)


def test_what_was_revoked_is_no_damage_and_a_signature_outlives_repair(upgraded: Path, keys: Path) -> None:
    folder = upgraded.parent / "runs/small"
    public = signed(upgraded, keys)
    before = content(folder)
    revoke.record(folder, revoke.asked(folder, source="r9"))
    for dry_run in (True, False):
        done = repair(load(upgraded), dry_run=dry_run)
        assert not done.steps
        assert {finding.check for finding in done.findings} == {"revoked"}
    assert not (folder / "damaged").exists()
    revoke.undo(folder, "r9")
    assert not any(outcome.ran for outcome in run(upgraded))
    assert not list(audit(folder, keys=[public]))
    after = content(folder)
    assert {name: after[name] for name in before} == before


def test_a_suspect_that_comes_out_the_same_is_as_it_was(upgraded: Path, keys: Path) -> None:
    """The store was forged: the rows that contradict it are whole, and the signature on them stays good."""
    folder = upgraded.parent / "runs/small"
    public = signed(upgraded, keys)
    forge_answer(upgraded)
    before = content(folder)
    (planned,) = repair(load(upgraded), dry_run=True).steps
    assert (planned.place.partition("/")[0], planned.outcome) == ("shard", "rebuilt")
    assert planned.damage.startswith("contradicts another result: ")
    assert content(folder) == before
    done = repair(load(upgraded))
    assert [(step.place, step.damage, step.outcome, step.told) for step in done.steps] == [
        (planned.place, planned.damage, "rebuilt", "byte for byte as it was")
    ]
    assert content(folder) == before
    assert "signature" not in {finding.check for finding in audit(folder, keys=[public])}


@pytest.mark.parametrize("stage", ["ingest", "quality", "shard"])
def test_interrupted_before_its_manifest_is_back_a_result_is_finished(upgraded: Path, stage: str) -> None:
    folder = upgraded.parent / "runs/small"
    for pattern in ("quality", "shard", "ingest"):
        if pattern in (stage, "shard"):
            harm(next(folder.glob(f"{pattern}/*/*-00000.jsonl")), "flip")
    real = module._as_it_was

    def stop(run: Path, result: Path, *others: Any, **named: Any) -> str:
        if result.parent.name == stage:
            raise KeyboardInterrupt
        return real(run, result, *others, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_as_it_was", stop)
        with pytest.raises(KeyboardInterrupt):
            repair(load(upgraded))
    planned = repair(load(upgraded), dry_run=True)
    done = repair(load(upgraded))
    assert planned.steps[0].damage == done.steps[0].damage == "a repair of it was interrupted"
    assert is_as_it_was(upgraded, done)
    assert repair(load(upgraded)) == Repaired([], [])


def test_what_a_dry_run_says_is_what_is_done(upgraded: Path) -> None:
    folder = upgraded.parent / "runs/small"
    (result,) = (path for path in (folder / "sample").iterdir() if path.is_dir())
    shutil.rmtree(result)
    segment = folder / "responses/segment-00000.jsonl"
    segment.write_bytes(segment.read_bytes().replace(b"It speaks", b"It squeaks", 1))
    planned = repair(load(upgraded), dry_run=True)
    done = repair(load(upgraded))
    assert planned.steps == done.steps
    assert planned.lost == done.lost
    (lost,) = done.lost
    assert lost.startswith("sample: the answer r0#0 (response ")
    assert any("asks its teacher 1 requests again" in step.told for step in planned.steps)


def test_where_a_stage_cannot_run_what_was_there_is_put_back(upgraded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = upgraded.parent / "runs/small"
    harm(next(folder.glob("quality/*/part-00000.jsonl")), "flip")
    before = content(folder)

    def fail(*_: Any, **__: Any) -> None:
        raise RunError("no space left")

    with monkeypatch.context() as patch:
        patch.setitem(STAGES, "quality", replace(STAGES["quality"], function=fail, schema=STAGES["quality"].settings))
        (step,) = repair(load(upgraded)).steps
    assert (step.outcome, step.told) == ("left", "cannot be rebuilt: no space left")
    assert content(folder) == before
    assert is_as_it_was(upgraded, repair(load(upgraded)))


def student(job: outputs.Job, **settings: Any) -> Generator[Trained, None, Totals]:
    """Stands in for training."""
    (job.folder / "metrics.jsonl").write_text("{}\n")
    rows = [*outputs.read(job.inputs["shard"], TrainingRow)]
    for row in rows:
        yield Trained(id=row.id, example=row.example, task=row.task, split=row.split, tokens=2)
    return Totals(rows_in=len(rows))


def test_a_student_is_trained_again_for_the_reason_that_it_was_trained_for(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = STAGES["train"]
    quick = replace(
        stage, function=student, schema=stage.settings, identities=lambda _: {"student": {}}, models=lambda *_: {}
    )
    monkeypatch.setitem(STAGES, "train", quick)
    project.write_text(project.read_text().replace("  train: false\n", ""))
    run(load(project, accept_terms="for a test"))
    folder = project.parent / "runs/small"
    before = content(folder)
    upgrade(monkeypatch)
    (weights,) = folder.glob("train/*/metrics.jsonl")
    weights.write_text("[]\n")
    (step,) = repair(load(project), dry_run=True, train=True).steps
    assert step.outcome == "rebuilt"
    done = repair(load(project), train=True)
    assert not done.findings
    assert content(folder) == before
    (weights,) = folder.glob("train/*/metrics.jsonl")
    weights.with_name(outputs.MANIFEST).write_text("{")  # nobody knows the reason any more
    harmed = content(folder)
    shutil.rmtree(folder / "damaged")
    for dry_run in (True, False):
        (step,) = repair(load(project), dry_run=dry_run, train=True).steps
        assert step.outcome == "left"
        assert "accept_terms" in step.told
    assert content(folder) == harmed


def test_the_last_line_names_where_damaged_files_lie(upgraded: Path) -> None:
    folder = upgraded.parent / "runs/small"
    harm(next(folder.glob("quality/*/part-00000.jsonl")), "flip")
    shown = CliRunner().invoke(app, ["repair", "-c", str(upgraded)])
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[-1].endswith(
        f"whole; nothing was lost; what was damaged lies in {folder / 'damaged'}"
    )
