"""audit --full, --recompute and --resample: what stages wrote is what their input makes, even where every digest was made to fit."""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline import outputs, provenance, responses
from pipeline.audit import CHECKS, auditing
from pipeline.audits import Finding, answers, checkpoint, derivation, inputs, outcomes, rows, verdicts
from pipeline.cli import app
from pipeline.config import load
from pipeline.files import line_digest, sha256
from pipeline.processes import Crew
from pipeline.records import Parent
from pipeline.resample import resample
from pipeline.runner import run
from pipeline.stages import STAGES
from pipeline.train import CITATION, citation
from tests.chat_server import chat_server, completion
from tests.conftest import write_project

STAGES_HERE = ("ingest", "sample", "parse", "dedup", "decontaminate", "quality", "shard")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small finished project."""
    settings_file = write_project(tmp_path_factory.mktemp("derived") / "project")
    run(settings_file)
    return settings_file.parent


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """The run folder of a copy of it."""
    shutil.copytree(finished, tmp_path / "project")
    return tmp_path / "project/runs/small"


def derived(folder: Path, *, recompute: bool = False) -> tuple[list[Finding], list[Finding]]:
    """Findings and notes of the checks that make rows again."""
    with auditing(folder, full=True, recompute=recompute) as (audited, found):
        assert not found
        mine = (derivation.check, verdicts.check, inputs.check, checkpoint.check)
        assert set(mine) < set(CHECKS)
        return [finding for check in mine for finding in check(audited)], audited.notes


def rewritten(folder: Path, stage: str, file: str, change: Callable[[list[bytes]], list[bytes]]) -> Path:
    """Change rows of a stage as a forger does who makes every digest in that stage and in all after it fit. The file that was changed."""
    here = outputs.current(folder, stage)
    assert here is not None
    path = here / file
    lines = change(path.read_bytes().split(b"\n")[:-1])
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    path.with_suffix(".xxh3").write_text("".join(line_digest(line) + "\n" for line in lines))
    refit(folder)
    return outputs.current(folder, stage) / file  # type: ignore[operator]


def refit(folder: Path, changed: dict[str, dict[str, Any]] | None = None) -> None:
    """Manifests, keys and folders that fit the files as they are. ``changed`` are settings by stage."""
    parents: dict[str, Parent] = {}
    for stage in STAGES_HERE:
        here = outputs.current(folder, stage)
        assert here is not None
        manifest = outputs.read_manifest(here)
        files = [
            file.model_copy(
                update={
                    "bytes": (here / file.path).stat().st_size,
                    "sha256": sha256(here / file.path),
                    "rows": file.rows if file.rows is None else len((here / file.path).read_bytes().splitlines()),
                }
            )
            for file in manifest.outputs
        ]
        new = {**manifest.settings, **(changed or {}).get(stage, {})}
        named = {name: parents[name] for name in manifest.parents}
        key = provenance.key_of(stage, manifest.version, new, named, manifest.identities)
        update = {"outputs": files, "parents": named, "key": key, "settings": new}
        manifest = manifest.model_copy(update=update)
        manifest = manifest.model_copy(update={"digest": outputs.manifest_digest(manifest)})
        outputs.write_manifest(here, manifest)
        here = here.rename(here.parent / key)
        outputs.point(folder, stage, key)
        parents[stage] = Parent(key=key, manifest=sha256(here / outputs.MANIFEST))


def edited(place: int, **fields: Any) -> Callable[[list[bytes]], list[bytes]]:
    """A row with other values in these fields."""

    def change(lines: list[bytes]) -> list[bytes]:
        row = {**json.loads(lines[place]), **fields}
        line = json.dumps(row, separators=(",", ":"), ensure_ascii=False).encode()
        return [*lines[:place], line, *lines[place + 1 :]]

    return change


def test_a_clean_run_is_derived_without_a_finding(finished: Path) -> None:
    assert derived(finished / "runs/small") == ([], [])
    assert derived(finished / "runs/small", recompute=True) == ([], [])


@pytest.mark.parametrize(
    ("stage", "fields", "told"),
    [
        ("ingest", {"input": "another text"}, "input"),
        ("ingest", {"gold": "food"}, "gold"),
        ("sample", {"text": "So the answer is food."}, "text"),
        ("sample", {"request": "0" * 32}, "request"),
        ("sample", {"finish_reason": "length"}, "finish_reason"),
        ("sample", {"completion_tokens": 3}, "completion_tokens"),
        ("sample", {"teacher": "another"}, "teacher"),
        ("parse", {"label": "food"}, "label"),
        ("parse", {"agreement": 0.5}, "agreement"),
        ("shard", {"completion": "something else"}, "completion"),
        ("shard", {"difficulty": 0.5}, "difficulty"),
    ],
)
def test_a_row_that_is_edited_with_all_digests_is_named(
    copied: Path, stage: str, fields: dict[str, Any], told: str
) -> None:
    file = "train-00000.jsonl" if stage == "shard" else "part-00000.jsonl"
    path = rewritten(copied, stage, file, edited(4, **fields))
    found = [str(finding) for finding in derived(copied)[0]]
    assert any(line.startswith(f"{path}:5: row ") and told in line for line in found), found


@pytest.mark.parametrize("stage", ["sample", "parse", "shard"])
@pytest.mark.parametrize(
    "change",
    [
        lambda lines: lines[:3] + lines[4:],
        lambda lines: [*lines, lines[-1]],
        lambda lines: [lines[1], lines[0], *lines[2:]],
        lambda lines: lines[:-1],
    ],
    ids=["removed", "added", "swapped", "cut off"],
)
def test_rows_that_come_go_or_move_are_found(
    copied: Path, stage: str, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    file = "train-00000.jsonl" if stage == "shard" else "part-00000.jsonl"
    path = rewritten(copied, stage, file, change)
    assert any(finding.path in (path, path.parent) for finding in derived(copied)[0])


@pytest.mark.parametrize(
    ("stage", "evidence", "told"),
    [
        ("parse", {"problem": "no reason"}, "evidence"),
        ("quality", {"why": "no reason"}, "evidence"),
        ("dedup", {"similarity": 0.3}, "below the threshold"),
        ("dedup", {"twin": "r1"}, "twin"),
        ("dedup", {"text": "other"}, "text"),
        ("decontaminate", {"score": 0.1}, "below the threshold"),
        ("decontaminate", {"eval_set": "other"}, "eval set"),
        ("decontaminate", {"text": "other"}, "text"),
    ],
)
def test_evidence_that_is_edited_is_named(copied: Path, stage: str, evidence: dict[str, Any], told: str) -> None:
    def change(lines: list[bytes]) -> list[bytes]:
        return edited(0, evidence={**json.loads(lines[0])["evidence"], **evidence})(lines)

    path = rewritten(copied, stage, "dropped.jsonl", change)
    found = [str(finding) for finding in derived(copied)[0]]
    assert any(line.startswith(f"{path}:1: ") and told in line for line in found), found


@pytest.mark.parametrize("stage", ["dedup", "decontaminate"])
def test_recompute_finds_a_drop_that_is_gone(copied: Path, stage: str) -> None:
    path = rewritten(copied, stage, "dropped.jsonl", lambda lines: lines[1:])
    assert not derived(copied)[0]
    assert any(finding.path == path.parent for finding in derived(copied, recompute=True)[0])


def test_a_setting_that_is_changed_with_all_keys_shows_in_the_rows(copied: Path) -> None:
    refit(copied, {"parse": {"pattern": "(?P<rationale>.+?) and more. So the answer is (?P<label>.+?)\\."}})
    parse = outputs.current(copied, "parse")
    assert parse is not None
    assert any(f"{parse}/part" in str(finding) and "rationale" in finding.problem for finding in derived(copied)[0])


def test_an_answer_that_is_edited_in_store_and_row_is_told_by_its_record(copied: Path) -> None:
    """Rows and store agree after this; only that the model said so is nobody's to prove."""
    segment = next((copied / "responses").glob("segment-*.jsonl"))
    lines = segment.read_bytes().splitlines()
    body = lines[2].replace(b"speaks", b"tells!")
    body = body[: -responses.CHECK_BYTES + 1] + b"}"
    lines[2] = body[:-1] + b',"check":"' + line_digest(body).encode() + b'"}'
    segment.write_bytes(b"".join(line + b"\n" for line in lines))
    found = [str(finding) for finding in derived(copied)[0]]
    assert len(found) == 1
    assert "text: not what sample makes of ingest" in found[0]


def test_an_answer_that_is_gone_is_named_by_its_request(copied: Path) -> None:
    segment = next((copied / "responses").glob("segment-*.jsonl"))
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join(lines[1:]))
    assert any("has no answer in the response store" in str(finding) for finding in derived(copied)[0])


def test_files_that_are_not_at_hand_are_notes_and_others_are_findings(copied: Path) -> None:
    project = copied.parents[1]
    test = project / "test.jsonl"
    (project / "elsewhere").mkdir()
    kept = test.rename(project / "elsewhere/test.jsonl")
    found, notes = derived(copied, recompute=True)
    assert found == []
    assert any("is not at hand" in str(note) for note in notes)
    test.write_bytes(kept.read_bytes() + b"\n")
    found, notes = derived(copied)
    assert found == []
    assert any("lies beside the run with another content" in note.problem for note in notes)


def test_a_path_in_a_manifest_is_never_opened(copied: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    shown = str(pipe)[:79]  # a long path is cut
    os.mkfifo(pipe)  # whoever opens it waits for ever
    words = {"block_list": {"phrases": [], "patterns": [], "file": str(pipe), "where": ["rationale"]}}
    refit(copied, {"quality": {"filters": [words]}})
    assert any(shown in one.problem and ": a path, where" in one.problem for one in derived(copied)[0])


def test_a_template_that_takes_all_memory_is_a_finding(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_memory(*given: object) -> None:
        raise MemoryError

    monkeypatch.setattr(derivation, "_compared", without_memory)
    assert any("MemoryError" in finding.problem for finding in derived(copied)[0])


def test_far_more_samples_than_rows_are_not_asked_for(copied: Path) -> None:
    refit(copied, {"sample": {"n": 9_999}})
    assert any("far more than its 29 requests" in finding.problem for finding in derived(copied)[0])


def test_a_card_that_does_not_follow_from_the_manifest_is_found(copied: Path) -> None:
    card = outputs.current(copied, "shard") / "README.md"  # type: ignore[operator]
    card.write_text(card.read_text().replace("license: unknown", "license: mit"))
    with auditing(copied, full=True) as (audited, _):
        assert [finding.path for finding in outcomes.check(audited)] == [card]


def test_an_eval_set_in_a_folder_is_compared_again(project: Path) -> None:
    (project.parent / "evals").mkdir()
    test = (project.parent / "test.jsonl").rename(project.parent / "evals/a.jsonl")
    (project.parent / "evals/b.jsonl").write_bytes(test.read_bytes().replace(b'"id": "t', b'"id": "b'))
    project.write_text(project.read_text().replace("path: test.jsonl", "path: evals"))
    run(project)
    folder = project.parent / "runs/small"
    assert derived(folder, recompute=True) == ([], [])
    (project.parent / "evals/c.jsonl").write_bytes(b"")
    found, notes = derived(folder, recompute=True)
    assert found == []
    assert any("is not at hand" in note.problem for note in notes)


def test_options_that_contradict_each_other_or_the_run_are_refused_first(finished: Path, tmp_path: Path) -> None:
    config = ["-c", str(finished / "stages.yaml")]
    done = CliRunner().invoke(app, ["audit", "--full", "--sample", "2", *config])
    assert "give one of them" in str(done.exception)
    shutil.copytree(finished / "runs/small", tmp_path / "run")
    done = CliRunner().invoke(app, ["audit", str(tmp_path / "run"), "--resample", "2", *config])
    assert "name the stages.yaml of this run" in str(done.exception)
    assert "read" not in done.stdout


def test_who_has_the_run_folder_alone_can_follow_rows_in_it(copied: Path) -> None:
    for arguments in (["trace", "r3"], ["revoke", "--source", "r3", "--dry-run"], ["export", "summary"]):
        done = CliRunner().invoke(app, [*arguments, "--run", str(copied), "--json"])
        assert done.exit_code == 0, arguments
        assert json.loads(done.stdout)


def test_a_result_of_another_version_is_a_note(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = STAGES["parse"].__class__(**{**STAGES["parse"].__dict__, "version": 99})
    monkeypatch.setitem(STAGES, "parse", other)
    found, notes = derived(copied)
    assert found == []
    assert any("cannot make its rows again" in note.problem for note in notes)


def test_a_filter_whose_file_is_gone_is_passed_over(project: Path) -> None:
    (project.parent / "words.txt").write_text("stadium\n")
    text = project.read_text().replace("- label_in_set", "- label_in_set\n      - {block_list: {file: words.txt}}")
    project.write_text(text)
    run(project)
    folder = project.parent / "runs/small"
    assert derived(folder) == ([], [])
    (project.parent / "words.txt").unlink()
    found, notes = derived(folder)
    assert found == []
    assert ["block_list" in note.problem for note in notes] == [True]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_the_array_index_answers_as_the_store_does(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("store") / "responses"
    asked = st.tuples(st.integers(0, 3), st.sampled_from([8, 16, 32]))
    given_answers = data.draw(st.lists(st.tuples(asked, st.sampled_from(["stop", "length"]), st.text(max_size=5))))
    with responses.open_store(folder) as store:
        for (prompt, max_tokens), reason, text in given_answers:
            store.append([record(prompt, max_tokens, reason, text)])
        found = answers.located(folder, Crew(processes=1))
        for prompt in range(4):
            for max_tokens in (8, 16, 32):
                wanted = store.get(record(prompt, max_tokens, "stop", "").family, max_tokens)
                family = bytes.fromhex(record(prompt, max_tokens, "stop", "").family)
                (answer,) = found.of([family], max_tokens)
                assert (None if wanted is None else (wanted.key, wanted.text)) == (answer and (answer.key, answer.text))


def record(prompt: int, max_tokens: int, finish_reason: str, text: str) -> responses.Stored:
    asked: dict[str, Any] = {"identity": "0" * 32, "prompt": str(prompt), "sampling": {}, "seed": 0, "sample": 0}
    family = responses.family_key(**asked)
    key = responses.request_key(family, max_tokens)
    told = {"teacher": "t", "prompt_tokens": 1, "completion_tokens": 1, "text": text, "finish_reason": finish_reason}
    return responses.Stored(key=key, family=family, max_tokens=max_tokens, **asked, **told)


def test_a_recording_is_compared_with_its_file(finished: Path) -> None:
    report = resample(load(finished / "stages.yaml"), 5)
    assert (report.asked, report.same_text, report.same_label, report.differing) == (5, 5, 5, [])


def test_another_recording_is_not_asked(copied: Path) -> None:
    file = copied.parents[1] / "completions.jsonl"
    file.write_bytes(file.read_bytes().replace(b"speaks", b"tells!"))
    report = resample(load(copied.parents[1] / "stages.yaml"), 5)
    assert report.asked == 0
    assert "another model, revision or file" in report.absent["recorded"]


@pytest.fixture
def served(project: Path) -> Iterator[tuple[Path, list[str]]]:
    """A project whose teacher is a server, and what the server says."""
    said = ["It speaks of this and more. So the answer is sports."]
    with chat_server(lambda body: completion(said[-1])) as chat:
        (project.parent / "prompt.jinja").write_text("{% block user %}{{ text }}{% endblock %}")
        teacher = f"{{backend: server, base_url: {chat.url}, model: some/model, revision: abc}}"
        text = project.read_text().replace("{backend: replay, completions: completions.jsonl}", teacher)
        project.write_text(text.replace("  labels:", "  prompt: prompt.jinja\n  labels:"))
        yield project, said


def test_a_server_is_asked_again_and_nothing_is_written(served: tuple[Path, list[str]]) -> None:
    project, said = served
    run(project)
    config = load(project)
    before = {path: path.read_bytes() for path in config.run.rglob("*") if path.is_file()}
    report = resample(config, 4, seed=1)
    assert (report.asked, report.same_text, report.same_label) == (4, 4, 4)
    said.append("It speaks of that and more. So the answer is sports.")
    report = resample(config, 4, seed=1)
    assert (report.asked, report.same_text, report.same_label, len(report.differing)) == (4, 0, 4, 4)
    said.append("So the answer is food.")
    assert resample(config, 4).same_label == 0
    assert before == {path: path.read_bytes() for path in config.run.rglob("*") if path.is_file()}
    assert derived(config.run)[0] == []


def test_a_judge_s_verdicts_are_derived(project: Path) -> None:
    scores = [
        json.dumps({"id": f"r{n}", "completion": json.dumps({"reason": "It fits.", "score": 4})}) for n in range(28)
    ]
    scores[3] = json.dumps({"id": "r3", "completion": "no JSON"})
    (project.parent / "scores.jsonl").write_text("\n".join(scores) + "\n")
    judging = "  judge: {teacher: {backend: replay, name: judge, completions: scores.jsonl}}\n  shard:"
    project.write_text(project.read_text().replace("  shard:", judging, 1))
    run(project)
    folder = project.parent / "runs/small"
    assert outputs.read_manifest(outputs.current(folder, "judge")).counts.dropped > 0  # type: ignore[arg-type]
    assert derived(folder) == ([], [])
    here = outputs.current(folder, "judge")
    assert here is not None
    path = here / "part-00000.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"score":4', b'"score":5', 1))
    assert any(finding.path == path and "judgement" in finding.problem for finding in derived(folder)[0])


def trained(run_folder: Path, said: Callable[[dict[str, Any]], Any]) -> Path:
    """The folder of a training as its record makes it look: no weights, but what they say of their shards."""
    shards = outputs.current(run_folder, "shard")
    assert shards is not None
    parents = {"shard": Parent(key=shards.name, manifest=sha256(shards / outputs.MANIFEST))}
    version = STAGES["train"].version
    key = provenance.key_of("train", version, {}, parents, {})
    student = run_folder / "train" / key / "student"
    student.mkdir(parents=True)
    (student / CITATION).write_text(json.dumps(said(citation(shards))))
    update = {"stage": "train", "version": version, "key": key, "settings": {}, "parents": parents, "outputs": []}
    manifest = outputs.read_manifest(shards).model_copy(update={**update, "root": None})
    manifest = manifest.model_copy(update={"digest": outputs.manifest_digest(manifest)})
    outputs.write_manifest(student.parent, manifest)
    outputs.point(run_folder, "train", key)
    return student / CITATION


def test_a_student_cites_the_shards_it_was_trained_on(copied: Path) -> None:
    trained(copied, lambda said: said)
    assert derived(copied) == ([], [])


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (lambda said: {**said, "manifest": "0" * 64}, "manifest: names 0000"),
        (lambda said: {**said, "root": None}, "root: names None"),
        (lambda said: {**said, "more": 1}, "more: names 1"),
        (lambda said: [said], "no record"),
    ],
)
def test_a_student_that_cites_another_manifest_is_found(
    copied: Path, said: Callable[[dict[str, Any]], Any], told: str
) -> None:
    path = trained(copied, said)
    assert any(finding.path == path and told in finding.problem for finding in derived(copied)[0])


def test_a_student_without_a_citation_is_found(copied: Path) -> None:
    path = trained(copied, lambda said: said)
    path.unlink()
    assert [finding.path for finding in derived(copied)[0]] == [path]


def test_shards_without_a_manifest_are_cited_by_their_files(copied: Path, tmp_path: Path) -> None:
    shards = outputs.current(copied, "shard")
    assert shards is not None
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(shards / "train-00000.jsonl", bare)
    assert citation(bare) == {"files": {"train-00000.jsonl": sha256(shards / "train-00000.jsonl")}}


def test_of_a_large_data_set_none_or_so_many_rows_are_followed(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "FEW", 3)
    with auditing(copied) as (audited, _):
        assert list(rows.check(audited)) == []
        assert any("--sample K" in note.problem for note in audited.notes)
    path = rewritten(copied, "shard", "train-00000.jsonl", lambda lines: [*map(forged, lines)])
    with auditing(copied, sample=4) as (audited, _):
        found = list(rows.check(audited))
    assert len(found) == 4
    assert {finding.path.parent for finding in found} == {path.parent}


def forged(line: bytes) -> bytes:
    return edited(0, completion="something else")([line])[0]


def test_the_command_tells_what_was_asked_again(finished: Path) -> None:
    config = str(finished / "stages.yaml")
    done = CliRunner().invoke(app, ["audit", "--full", "--resample", "4", "-c", config])
    assert done.exit_code == 0
    assert "asked again: 4 rows, 4 with the same text, 4 with the same label, 0 failed" in done.output
    done = CliRunner().invoke(app, ["audit", "--recompute", "--resample", "4", "--json", "-c", config])
    assert json.loads(done.output)["resampled"]["same_text"] == 4
    done = CliRunner().invoke(app, ["audit", str(finished / "runs"), "--resample", "4", "-c", config])
    assert done.exit_code != 0
