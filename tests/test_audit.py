"""audit and trace: one changed byte anywhere is named; every row leads both ways."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import audits, environment, outputs, responses, revocations, shift
from pipeline.audit import CHECKS, audit, auditing, found_by
from pipeline.audits import Finding, manifests, misplaced, revoked, scan
from pipeline.audits.laws import positions
from pipeline.audits.places import AT_TOP
from pipeline.files import InputError, canonical_json, digest, line_digest
from pipeline.merkle import Tree, leaves
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


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A run folder that a test may change."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def told(run_folder: Path, **how: Any) -> list[tuple[str, int | None, str]]:
    """Path within the run folder, line and problem of each finding."""
    return [(str(one.path.relative_to(run_folder)), one.line, one.problem) for one in audit(run_folder, **how)]


def in_force(run_folder: Path, stage: str) -> Path:
    folder = outputs.current(run_folder, stage)
    assert folder is not None
    return folder


def linked(path: Path) -> None:
    """The same content, by a symbolic link."""
    moved = path.rename(path.with_name(f".{path.name}"))
    path.symlink_to(moved)


def piped(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


INTRUDERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a hidden file in a result": ("{dedup}/.hidden", Path.touch),
    "a temporary file": ("{dedup}/.part-00000.jsonl.tmp", Path.touch),
    "an empty folder in a result": ("{dedup}/more", Path.mkdir),
    "a link in a result": ("{dedup}/link", lambda path: path.symlink_to("/etc/passwd")),
    "a pipe in a result": ("{dedup}/pipe", os.mkfifo),
    "run facts in a link": ("{dedup}/run-speed.json", lambda path: path.symlink_to("run.json")),
    "run facts in a folder": ("{dedup}/run-more.json", Path.mkdir),
    "a file beside the results": ("dedup/notes.txt", Path.touch),
    "a folder beside the results": ("dedup/old", Path.mkdir),
    "a folder that no run finished": (f"dedup/{'0' * 32}", Path.mkdir),
    "a link to a result": (f"dedup/{'1' * 32}", lambda path: path.symlink_to(".")),
    "a file at the top": ("notes.txt", Path.touch),
    "a hidden file at the top": (".notes", Path.touch),
    "a link at the top": ("report", lambda path: path.symlink_to("dedup")),
    "a pipe at the top": ("revoked.jsonl", os.mkfifo),
    "a file in the store": ("responses/segment-1.jsonl", Path.touch),
    "a pipe in the store": ("responses/segment-00001.jsonl", os.mkfifo),
    "a hidden file in the store": ("responses/.segments.json.1.tmp", Path.touch),
    "a file beside the teachers": ("responses/teachers/me.json", Path.touch),
}


TOLD = {
    "a hidden file in a result": "not in the manifest",
    "a temporary file": "not in the manifest",
    "an empty folder in a result": "a folder; not in the manifest",
    "a link in a result": "a symbolic link; not in the manifest",
    "a pipe in a result": "neither a file nor a folder; not in the manifest",
    "run facts in a link": "a symbolic link; not in the manifest",
    "run facts in a folder": "a folder; not in the manifest",
    "a file beside the results": "not a result of dedup",
    "a folder beside the results": "not a result of dedup",
    "a folder that no run finished": "unfinished, and no process works on it; run again to finish it, or remove it",
    "a link to a result": "not a folder; it was not opened",
    "a file at the top": "nothing of this name belongs in a run folder",
    "a hidden file at the top": "nothing of this name belongs in a run folder",
    "a link at the top": "not a folder; it was not opened",
    "a pipe at the top": "not a file; it was not opened",
    "a file in the store": "not a file of the response store",
    "a pipe in the store": "not a file",
    "a hidden file in the store": "not a file of the response store",
    "a file beside the teachers": "not a file of the response store",
}


@pytest.mark.parametrize("name", INTRUDERS)
def test_what_has_no_business_there_is_named_and_not_opened(copy: Path, name: str) -> None:
    place, put = INTRUDERS[name]
    path = copy / place.format(dedup=in_force(copy, "dedup").relative_to(copy))
    put(path)
    assert (str(path.relative_to(copy)), None, TOLD[name]) in told(copy)


@pytest.mark.parametrize("put", [linked, piped], ids=["linked", "piped"])
@pytest.mark.parametrize("name", ["manifest.json", "part-00000.jsonl", "dropped.xxh3", "../current"])
def test_a_link_or_pipe_in_place_of_a_file_is_named_and_not_opened(copy: Path, name: str, put: Any) -> None:
    path = copy / os.path.normpath(in_force(copy, "quality").relative_to(copy) / name)
    put(path)
    assert str(path.relative_to(copy)) in [found for found, _, _ in told(copy, full=True)]


@pytest.mark.parametrize("name", ["responses/segment-00000.jsonl", "responses", "dedup", ".lock"])
def test_a_link_in_place_of_what_stands_above_is_named(copy: Path, name: str) -> None:
    moved = (copy / name).rename(copy.parent / "moved")
    (copy / name).symlink_to(moved)
    assert name in [found for found, _, _ in told(copy)]


def test_what_a_run_at_work_has_not_finished_is_passed_over(copy: Path) -> None:
    (copy / "dedup" / ("0" * 32)).mkdir()
    with (copy / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert told(copy) == []
    assert [path for path, _, _ in told(copy)] == [f"dedup/{'0' * 32}"]


def test_every_name_at_the_top_is_what_the_table_says(copy: Path) -> None:
    for name, kind in AT_TOP.items():
        if not (copy / name).exists():
            (copy / name).touch() if kind == "file" else (copy / name).mkdir()
    assert [path for path, _, problem in told(copy) if "nothing of this name" in problem] == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "names no finished"),
        ("..\n", "names no finished"),
        ("../dedup\n", "names no finished"),
        (f"{'0' * 32}\n", "names no"),
    ],
)
def test_a_current_that_names_nothing_is_found(copy: Path, text: str, problem: str) -> None:
    (copy / "quality/current").write_text(text)
    assert ("quality/current", problem) in [(path, found[: len(problem)]) for path, _, found in told(copy)]


def test_a_finding_is_one_line() -> None:
    assert str(Finding(Path("a/b"), "gone")) == "a/b: gone"
    assert str(Finding(Path("a\nb"), "gone", 7, "files")) == "a\\x0ab:7: gone"
    assert len(str(Finding(Path("x" * 2000), "gone"))) == 1000 + len(": gone")


def test_kinds_of_paths_are_told_without_opening_any(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nosuch")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    cases = {
        "file": ("file", None),
        "nosuch": (None, None),
        "a\0b": (None, None),
        "file/below": (None, None),
        "folder": ("folder", "a folder where a file was written"),
        "link": ("link", "a symbolic link where a file was written"),
        "dangling": ("link", "a symbolic link where a file was written"),
        "pipe": ("other", "neither a file nor a folder; it was not opened"),
    }
    assert {name: (audits.kind(tmp_path / name), misplaced(tmp_path / name)) for name in cases} == cases


def test_what_names_the_result_in_force_is_looked_at_closely(copy: Path) -> None:
    path = copy / "quality/current"
    key = path.read_text().strip()
    place = "quality/current"
    for text, shown in [
        (key.upper(), key.upper()),
        (f"{key}0", f"{key}0"),
        (f"{key}\n\n", f"{key}\\x0a"),
        (f"{key}\n{' ' * 968}", ""),
        ("x" * 90, "x" * 79 + "…"),
    ]:
        path.write_text(text)
        assert (place, None, f"names no finished result: {shown}") in told(copy)
    path.write_text(key)  # without a newline it is as good
    assert told(copy) == []
    path.unlink()
    missing = "missing, though there are results; restore the file, or run again"
    assert (place, None, missing) in told(copy)
    facts = in_force(copy, "decontaminate").parents[1] / "quality" / key / "run.json"
    facts.write_text(json.dumps({"aside": True}))
    assert (place, None, missing) not in told(copy)
    for content in (json.dumps({"aside": True}) + " " * 1000, '{"aside": 1}', "[]", "{"):
        facts.write_text(content)
        assert (place, None, missing) in told(copy)


def test_a_manifest_that_cannot_be_one_is_not_read(copy: Path) -> None:
    path = in_force(copy, "quality") / outputs.MANIFEST
    place = str(path.relative_to(copy))
    with path.open("r+b") as file:
        file.truncate((256 << 20) + 1)  # takes no room on the disk
    assert (place, None, "larger than any manifest; the manifest cannot be used") in told(copy)
    path.unlink()
    path.mkdir()
    assert (place, None, "a folder where a file was written") in told(copy)


def edited(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change a manifest and make its own digest fit again."""
    path = folder / outputs.MANIFEST
    found = json.loads(path.read_bytes())
    change(found)
    found["digest"] = "0" * 64
    manifest = outputs.Manifest.model_validate(found)
    outputs.write_manifest(folder, manifest.model_copy(update={"digest": outputs.manifest_digest(manifest)}))
    return path


def put(*steps: str | int, value: object) -> Callable[[dict[str, Any]], object]:
    """Set what stands at these steps."""

    def change(found: Any) -> None:
        for step in steps[:-1]:
            found = found[step]
        found[steps[-1]] = value

    return change


CONTRADICTIONS: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("quality", put("version", value=99), "version: "),
    ("quality", put("counts", "unit", value="rows"), "counts.unit: "),
    ("quality", put("counts", "rows_in", value=25), "counts: 25 in"),
    ("quality", put("counts", "rows_out", value=23), "counts.rows_out: 23"),
    ("quality", put("features", "label", value="int64"), "features: "),
    ("quality", put("parents", value={}), "parents: quality cannot"),
    ("quality", put("asked", "filters", value=[]), "asked.filters: "),
    ("quality", put("asked", "filers", value=[]), "asked: "),
    ("quality", put("settings", "filters", 1, "min_words", "minimum", value=9), "asked.filters: "),
    ("quality", put("settings", "judged", value=True), "settings.judged: "),
    ("quality", put("settings", "more", value=1), "settings.more: "),
    ("quality", lambda found: found["settings"].pop("gold"), "settings.gold: missing"),
    ("quality", lambda found: found["outputs"].reverse(), "outputs: not in the order"),
    ("quality", lambda found: found["outputs"].pop(), "outputs: counts.json is missing"),
    (
        "quality",
        lambda found: found["outputs"].append(found["outputs"][0]),
        "outputs: part-00000.jsonl stands there twice",
    ),
    ("quality", put("outputs", 0, "path", value="/etc/passwd"), "outputs: /etc/passwd points out"),
    ("quality", put("outputs", 0, "path", value="../part-00000.jsonl"), "outputs: ../part"),
    ("quality", put("outputs", 0, "path", value="./part-00000.jsonl"), "outputs: ./part"),
    ("quality", put("outputs", 0, "rows", value=None), "outputs: part-00000.jsonl: rows are counted"),
    ("quality", put("outputs", 4, "rows", value=1), "outputs: counts.json: rows are counted"),
    ("quality", put("outputs", 1, "bytes", value=1), "outputs: part-00000.xxh3 has not"),
    ("quality", put("details", "shift", "rows", "before", value=1), "details.shift: "),
    ("ingest", put("sources", 0, "sha256", value="0" * 64), "sources: "),
    ("ingest", put("sources", 0, "rows", value=3), "counts.rows_in: "),
    ("ingest", put("sources", 0, "revision", value="main"), "sources: "),
    ("ingest", put("sources", 0, "bytes", value=None), "sources: "),
    ("ingest", put("sources", value=[]), "sources: "),
    ("sample", put("settings", "n", value=2), "counts.rows_in: "),
    (
        "sample",
        put("identities", "teacher recorded", "name", value="else"),
        "identities.teacher recorded: the response store",
    ),
    ("sample", put("details", "seed", value=1), "details: "),
    ("sample", put("details", "teachers", "recorded", "responses", value=1), "details.teachers: "),
    ("decontaminate", put("settings", "eval_sets", "test", "path", value="test.jsonl"), "settings.eval_sets: "),
    ("decontaminate", put("settings", "eval_sets", "test", "path", value={}), "settings.eval_sets.test.path: "),
    (
        "quality",
        lambda found: found["outputs"].append({**found["outputs"][4], "path": "z.py"}),
        "outputs: z.py: no file",
    ),
    ("shard", put("outputs", 0, "root", value="0" * 64), "root: "),
    ("shard", put("root", value=None), "root: "),
    ("shard", put("code", "package", value="else"), "code.package: "),
    ("shard", put("code", "commit", value="else"), "code: "),
    ("shard", put("code", "version", value="9"), "code.version: "),
    ("shard", put("environment", "python", value="three"), "environment: "),
    ("shard", put("environment", "packages", "numpy", value=""), "environment.packages: "),
]


@pytest.mark.parametrize(
    ("stage", "change", "problem"), CONTRADICTIONS, ids=[f"{one[0]}: {one[2]}" for one in CONTRADICTIONS]
)
def test_an_entry_that_contradicts_another_is_found(
    copy: Path, stage: str, change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    path = edited(in_force(copy, stage), change)
    assert any(found == str(path.relative_to(copy)) and text.startswith(problem) for found, _, text in told(copy))


@pytest.mark.parametrize(("stage", "name"), [("quality", "gold"), ("shard", "labels")])
def test_stages_that_were_told_other_things_of_the_task_are_noted(copy: Path, stage: str, name: str) -> None:
    edited(in_force(copy, stage), put("settings", name, value=["a"] if name == "labels" else "else"))
    with auditing(copy) as (audited, _):
        list(manifests.check(audited))
    assert any(f"settings: task.{name} is not what" in note.problem for note in audited.notes)


def test_a_later_stage_that_was_run_alone_under_other_settings_is_whole(project: Path) -> None:
    run(project)
    project.write_text(project.read_text().replace("[sports, food]", "[sports, food, travel]"))
    run(project, ["quality"])
    assert told(project.parent / "runs/small", full=True) == []


def test_labels_that_look_like_digests_are_none(project: Path) -> None:
    for path in project.parent.iterdir():
        path.write_text(path.read_text().replace("sports", "a" * 64))
    run(project)
    assert told(project.parent / "runs/small", full=True) == []


def test_a_result_made_anew_is_a_finding_only_for_what_is_in_force(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(project)
    project.write_text(project.read_text().replace("min_words: 3", "min_words: 2"))
    run(project)
    made_on = environment.environment()
    other = made_on.model_copy(update={"packages": {**made_on.packages, "msgspec": "99.1"}})
    monkeypatch.setattr(environment, "environment", lambda: other)
    run(project, force=True)
    assert told(project.parent / "runs/small", full=True) == []


def test_a_revocation_that_a_result_knows_and_the_file_no_longer_has_is_noted(project: Path) -> None:
    run_folder = project.parent / "runs/small"
    run(project)
    revocations.write(run_folder, [revocations.Revocation(kind="row", id="r3", reason="withdrawn")])
    run(project)
    (run_folder / revocations.FILE).unlink()
    with auditing(run_folder) as (audited, _):
        assert list(revoked.check(audited)) == []
    assert ["r3" in note.problem for note in audited.notes] == [True]


@pytest.mark.parametrize("content", [b"[" * 1000, b'{"rows": 1e999}'])
def test_damaged_counts_are_named_themselves(copy: Path, content: bytes) -> None:
    path = in_force(copy, "dedup") / shift.COUNTS
    path.write_bytes(content)
    found = [one for one in audit(copy, full=True) if "cannot" in one.problem]
    assert {one.path.name for one in found} == {shift.COUNTS}
    assert not any("stepdistill audit" in one.problem for one in found)


def rewritten(folder: Path, name: str, lines: list[bytes]) -> None:
    """Other rows, with digests, sizes, counts and the manifest's digest made to fit."""
    (folder / f"{name}.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    (folder / f"{name}.xxh3").write_bytes(b"".join(line_digest(line).encode() + b"\n" for line in lines))

    def change(found: dict[str, Any]) -> None:
        for file in found["outputs"]:
            path = folder / file["path"]
            file |= {"bytes": path.stat().st_size, "sha256": outputs.sha256(path)}
            if path.name == f"{name}.jsonl":
                file["rows"] = len(lines)

    edited(folder, change)


def rows_of(folder: Path, name: str) -> list[bytes]:
    return (folder / f"{name}.jsonl").read_bytes().splitlines()


def test_a_filter_that_passes_other_rows_is_found(copy: Path) -> None:
    folder = in_force(copy, "quality")
    kept, drops = rows_of(folder, "part-00000"), rows_of(folder, "dropped")
    part = str((folder / "part-00000.jsonl").relative_to(copy))
    dropped = str((folder / "dropped.jsonl").relative_to(copy))
    row = json.loads(kept[3])
    cases: list[tuple[str, list[bytes], tuple[str, int | None, str]]] = [
        (
            "part-00000",
            [*kept[:3], kept[3].replace(b"speaks", b"speakz"), *kept[4:]],
            (part, 4, "not a row of decontaminate"),
        ),
        ("part-00000", [kept[1], kept[0], *kept[2:]], (part, 2, "not a row of decontaminate")),
        (
            "part-00000",
            [*kept[:3], *kept[4:]],
            (str(folder.relative_to(copy)), None, f"row {row['id']} of decontaminate"),
        ),
        ("part-00000", [*kept, kept[-1]], (part, 25, "this row stands in the result twice")),
        ("dropped", drops[:1], (str(folder.relative_to(copy)), None, "row ")),
        ("dropped", drops[::-1], (dropped, 1, "not a row of decontaminate")),
        ("dropped", [*drops, drops[0].replace(b"r2", b"x2")], (dropped, 3, "drops rows that are no row")),
        ("dropped", [drops[0], b"{}"], (dropped, 2, "not a Drop row")),
        ("dropped", [drops[0], drops[1].replace(b"min_words", b"min_wards")], (dropped, None, "counts by reason")),
    ]
    for name, lines, (path, line, problem) in cases:
        before = {file: file.read_bytes() for file in folder.iterdir()}
        rewritten(folder, name, lines)
        found = [(place, number, text[: len(problem)]) for place, number, text in told(copy)]
        assert (path, line, problem) in found
        for file, content in before.items():
            file.write_bytes(content)


def test_removed_added_and_moved_rows_are_told_apart(copy: Path) -> None:
    path = in_force(copy, "dedup") / "part-00000.jsonl"
    place = str(path.relative_to(copy))
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    for content, line, problem in [
        (lines[:3] + lines[4:], None, "the rows that were written as line 4 are gone"),
        ([*lines[:3], b"{}\n", *lines[3:]], 4, "this row was not written here"),
        ([lines[1], lines[0], *lines[2:]], 1, "another row stands here"),
        ([*lines, lines[0]], 28, "from here on rows stand twice"),
        ([lines[0].rstrip(b"\n"), b"\r\n", *lines[1:]], 1, "this row was changed"),
        ([whole[:-1]], None, "changed since its manifest was written (line endings)"),
        ([b"x\n"] * len(lines), None, f"so it is with {len(lines) - 5} more"),
    ]:
        path.write_bytes(b"".join(content))
        found = [(name, number, text[: len(problem)]) for name, number, text in told(copy)]
        assert (place, line, problem) in found
        assert len([one for one in found if one[0] == place]) < 10


def test_digests_that_are_not_those_of_the_rows_are_found(copy: Path) -> None:
    folder = in_force(copy, "shard")
    path = folder / "train-00000.xxh3"
    path.write_bytes(path.read_bytes().translate(bytes.maketrans(b"0123456789abcdef", b"1023456789abcdef")))
    edited(
        folder,
        lambda found: [
            file.update(sha256=outputs.sha256(path)) for file in found["outputs"] if file["path"] == path.name
        ],
    )
    assert (str(path.relative_to(copy)), None, "not the digests of the rows in train-00000.jsonl") in told(copy)


def test_counts_that_are_not_those_of_the_rows_are_found_in_full(copy: Path) -> None:
    folder = in_force(copy, "quality")
    path = folder / shift.COUNTS
    path.write_bytes(path.read_bytes().replace(b'"food",', b'"foot",', 1))
    edited(folder, lambda found: found["outputs"][-1].update(sha256=outputs.sha256(path)))
    assert any(place == str(path.relative_to(copy)) for place, _, _ in told(copy, full=True))


def test_a_record_of_another_request_or_teacher_is_found(copy: Path) -> None:
    path = copy / "responses/segment-00000.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines()
    for change, line, problem in [
        ({"seed": 5}, 2, "key: is not that of the request"),
        ({"identity": "0" * 32}, 2, "key: is not that of the request"),
        ({"key": "0" * 32}, 2, "key: is not that of the request"),
        ({"text": 5}, 2, "not a record of the response store"),
        ({"more": 5}, 2, "not a record of the response store"),
    ]:
        record = {**json.loads(lines[1]), **change}
        record.pop("check")
        body = json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode()
        forged = body[:-1] + b',"check":"' + line_digest(body).encode() + b'"}'
        path.write_bytes(b"\n".join([lines[0], forged, *lines[2:], b""]))
        found = [
            (number, text[: len(problem)])
            for place, number, text in told(copy)
            if place.startswith("responses/segment")
        ]
        assert (line, problem) in found
    key = json.loads(lines[0])["key"][:16]
    for content, problem in [
        (whole + lines[0] + b"\n", f"its key ({key}..) stands in the store twice"),
        (b"\n".join(lines[1:]) + b"\n", "answers that rows of sample name are not there: 1, "),
        (whole[:-9], "cut short"),
        (b"", "answers that rows of sample name are not there: 29, "),
    ]:
        path.write_bytes(content)
        assert any(text.startswith(problem) for place, _, text in told(copy) if place.startswith("responses/segment"))


@given(
    sampling=st.dictionaries(
        st.text(), st.one_of(st.text(), st.integers(), st.booleans(), st.none(), st.lists(st.text()))
    ),
    seed=st.integers(),
    sample=st.integers(0),
    most=st.integers(0),
)
def test_keys_are_the_digests_of_what_they_name(sampling: dict[str, Any], seed: int, sample: int, most: int) -> None:
    try:
        encoded = canonical_json(sampling).decode()
    except UnicodeEncodeError:
        return
    about = {"identity": "a" * 32, "prompt": "b" * 32, "seed": seed, "sample": sample}
    family = responses.family_key(sampling=sampling, **about)  # type: ignore[arg-type]
    assert responses.encoded_family_key(sampling=encoded, **about) == family  # type: ignore[arg-type]
    assert responses.request_key(family, most) == digest({"family": family, "max_tokens": most})


@given(
    lines=st.lists(st.binary().map(lambda line: line.replace(b"\n", b"")), max_size=40),
    piece=st.integers(1, 50),
    part=st.sampled_from([1, 2, 4, 64]),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_pass_tells_what_several_would(tmp_path: Path, lines: list[bytes], piece: int, part: int) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    path.with_suffix(".xxh3").write_bytes(b"".join(line_digest(line).encode() + b"\n" for line in lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scan, "PIECE", piece)
        patch.setattr(scan, "LEAVES", part)
        found = scan.scan(b"secret", scan.Wanted(path, path.with_suffix(".xxh3"), rows=True, tree=True, marked=True))
    assert (found.rows, found.sha256, found.digests_fit, found.ended) == (len(lines), outputs.sha256(path), True, True)
    assert found.root == Tree(leaves(lines)).root.hex()
    assert found.marks is not None
    assert len({*found.marks.tolist()}) == len({*lines})
    assert found.lengths is not None
    assert [*scan.line_at(path, found.lengths, range(len(lines)))] == lines


@given(came=st.lists(st.integers(0, 30), unique=True), kept=st.lists(st.integers(0, 30)))
def test_rows_are_found_in_order_or_the_first_that_is_not_is_named(came: list[int], kept: list[int]) -> None:
    import numpy

    found = positions(numpy.array(came, numpy.uint64), numpy.array(kept, numpy.uint64))
    rest: Iterator[int] = iter(came)
    first = next((number for number, one in enumerate(kept) if one not in rest), None)
    if isinstance(found, int):
        assert found == first
    else:
        assert first is None
        assert [came[place] for place in found] == kept


def test_every_finding_names_its_check_and_the_bytes_are_counted(copy: Path) -> None:
    (copy / "notes").touch()
    with auditing(copy) as (audited, opened):
        found = [*opened, *(one for check in CHECKS for one in found_by(check, audited))]
    assert [(one.check, one.path.name) for one in found] == [("places", "notes")]
    files = [file for stage in audited.results.values() for file in stage.manifest.outputs]
    assert audited.covered["files"] == len(files) + 1
    assert audited.covered["rows"] == sum(file.rows or 0 for file in files)
    stored = (copy / "responses" / "segment-00000.jsonl").read_bytes()
    assert audited.covered["responses"] == stored.count(b"\n")
    read = [file.bytes for file in files if not file.path.endswith(".xxh3")]
    assert audited.covered["bytes"] == sum(read) + len(stored)


def test_as_many_training_rows_are_followed_back_as_were_asked_for(copy: Path) -> None:
    """Those of all files, each at most once; other seeds choose others."""
    folder = outputs.current(copy, "shard")
    assert folder is not None
    files = [folder / file.path for file in outputs.row_files(folder)]
    for path in files:
        path.write_bytes(path.read_bytes().replace(b'"completion":"', b'"completion":"~'))
    rows = sum(path.read_bytes().count(b"\n") for path in files)

    def followed(**asked: Any) -> list[tuple[Path, int | None]]:
        found = [(one.path, one.line) for one in audit(copy, **asked) if one.check == "rows"]
        assert len({*found}) == len(found)
        return found

    assert len(files) > 1 and rows > 20
    assert len(followed()) == len(followed(sample=rows)) == len(followed(sample=rows + 5)) == rows
    assert len(followed(sample=5)) == 5
    assert followed(sample=5, seed=1) != followed(sample=5, seed=2)
    assert {path for path, _ in followed(sample=rows - 1)} == {*files}


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
