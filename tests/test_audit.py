"""audit and trace: one changed byte anywhere is named; every row leads both ways."""

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import outputs
from pipeline.audit import audit
from pipeline.files import InputError
from pipeline.runner import is_run_fact, run
from pipeline.trace import trace
from tests.conftest import write_project


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small finished project."""
    settings_file = write_project(tmp_path_factory.mktemp("audited") / "project")
    run(settings_file)
    return settings_file.parent / "runs/small"


def test_a_fresh_run_is_whole(finished: Path) -> None:
    assert list(audit(finished)) == []
    assert list(audit(finished, full=True, sample=3)) == []


def watched(run_folder: Path) -> list[Path]:
    """Every file whose bytes the audit vouches for."""
    return sorted(
        path
        for path in run_folder.rglob("*")
        if path.is_file()
        and not is_run_fact(path.name)
        and path.name not in (".lock", "lock", "current")
        and not path.name.endswith(".lock")
        and "report" not in path.parts
    )


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_changed_byte_is_found_and_its_file_named(finished: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(watched(finished)))
    before = path.read_bytes()
    if not before:
        return
    at = data.draw(st.integers(0, len(before) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda value: value != before[at]))
    path.write_bytes(before[:at] + bytes([other]) + before[at + 1 :])
    try:
        problems = [str(finding) for finding in audit(finished)]
    finally:
        path.write_bytes(before)
    assert any(str(path) in problem for problem in problems)


@pytest.mark.parametrize("stage", ["ingest", "sample", "parse", "dedup", "decontaminate", "quality", "shard"])
def test_a_changed_row_is_named_by_its_line(finished: Path, stage: str) -> None:
    folder = outputs.current(finished, stage)
    assert folder is not None
    path = folder / outputs.row_files(folder)[0].path
    before = path.read_bytes()
    lines = before.split(b"\n")
    lines[2] = lines[2].replace(b"i", b"j", 1)
    path.write_bytes(b"\n".join(lines))
    try:
        problems = [str(finding) for finding in audit(finished)]
    finally:
        path.write_bytes(before)
    assert f"{path}:3: this row was changed since its manifest was written" in problems


def test_a_changed_drop_and_a_changed_response_are_named_by_their_line(finished: Path) -> None:
    drops = outputs.current(finished, "dedup") / "dropped.jsonl"  # type: ignore[operator]
    segment = next(path for path in (finished / "responses").iterdir() if path.suffix == ".jsonl")
    for path, line, old in ((drops, 1, b"r0"), (segment, 2, b"speaks")):
        before = path.read_bytes()
        lines = before.split(b"\n")
        assert old in lines[line - 1]
        lines[line - 1] = lines[line - 1].replace(old, old.swapcase())
        path.write_bytes(b"\n".join(lines))
        try:
            problems = [str(finding) for finding in audit(finished)]
        finally:
            path.write_bytes(before)
        assert any(problem.startswith(f"{path}:{line}: ") for problem in problems)


def test_missing_and_additional_files_are_found(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    folder = outputs.current(copy, "quality")
    assert folder is not None
    (folder / "part-00000.jsonl").unlink()
    (folder / "part-00009.jsonl").write_bytes(b"{}\n")
    problems = [str(finding) for finding in audit(copy)]
    assert f"{folder / 'part-00000.jsonl'}: missing" in problems
    assert f"{folder / 'part-00009.jsonl'}: not in the manifest" in problems


def test_a_consistently_forged_row_is_still_found(finished: Path, tmp_path: Path) -> None:
    """A forger who rewrites row, digest file and manifest is caught by the stage before, whose rows a filter must pass through."""
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    folder = outputs.current(copy, "shard")
    assert folder is not None
    manifest = outputs.read_manifest(folder)
    file = outputs.row_files(folder)[0]
    lines = (folder / file.path).read_bytes().splitlines()
    row = json.loads(lines[0])
    row["completion"] = "something else"
    lines[0] = json.dumps(row, separators=(",", ":"), ensure_ascii=False).encode()
    writer = outputs.RowWriter(folder, "train", 50_000)
    for line in lines:
        writer.write(line)
    files = {item.path: item for item in writer.close()}
    forged = manifest.model_copy(update={"outputs": [files.get(item.path, item) for item in manifest.outputs]})
    forged = forged.model_copy(update={"digest": outputs.manifest_digest(forged)})
    outputs.write_manifest(folder, forged)
    assert any(row["id"] in problem and "of its example" in problem for problem in map(str, audit(copy)))


def test_nothing_to_audit_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run here"):
        list(audit(tmp_path))


def test_a_kept_row_is_followed_from_source_to_shard_by_any_id(finished: Path) -> None:
    events = trace(finished, "r0/label")
    told = [(event.stage, event.verdict) for event in events]
    assert told[0] == ("ingest", "kept")
    assert ("sample", "stored") in told
    assert [stage for stage, verdict in told if verdict == "kept"] == [
        "ingest", "sample", "parse", "dedup", "decontaminate", "quality", "shard", "shard",
    ]  # fmt: skip
    assert events[0].row["source"] == "inputs.jsonl:1"
    stored = next(event for event in events if event.verdict == "stored")
    assert stored.row["text"].endswith("So the answer is sports.")
    assert [event.row for event in trace(finished, stored.row["key"])] == [event.row for event in events]
    for event in events[-2:]:
        path, _, line = event.place.rpartition(":")
        assert json.loads(Path(path).read_bytes().splitlines()[int(line) - 1]) == event.row


@pytest.mark.parametrize(
    ("row", "stage", "reason"),
    [
        ("r24#0", "dedup", "exact_duplicate"),
        ("r25#0", "decontaminate", "contaminated"),
        ("r26#0", "parse", "unparsed"),
        ("r28#0", "quality", "min_words"),
    ],
)
def test_a_dropped_row_says_where_it_ended_and_why(finished: Path, row: str, stage: str, reason: str) -> None:
    last = trace(finished, row)[-1]
    assert (last.stage, last.verdict, last.row["reason"]) == (stage, "dropped", reason)


@pytest.mark.parametrize(("name", "message"), [("zzzzzz", "no row of"), ("r", "no row of")])
def test_an_unknown_id_is_one_line(finished: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        trace(finished, name)
