"""The runner: conservation, drops with evidence, skipping, resuming, plans."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline import outputs, provenance, results
from pipeline.audit import audit
from pipeline.config import load
from pipeline.files import InputError, RunError, held_alone
from pipeline.records import Example, TrainingRow
from pipeline.runner import LOCK, is_run_fact, run
from pipeline.stages import STAGES as STAGES_TABLE

STAGES = ["ingest", "sample", "parse", "dedup", "decontaminate", "quality", "shard"]
GONE = {
    "dedup": {"r24": "exact_duplicate"},
    "decontaminate": {"r25": "contaminated"},
    "parse": {"r26#0": "unparsed"},
    "quality": {"r27": "label_in_set", "r28": "min_words"},
}


def tree(folder: Path) -> dict[str, bytes]:
    """Every file of a run that holds results (not times, not the lock)."""
    files = (
        path for path in folder.rglob("*") if path.is_file() and path.name != ".lock" and not is_run_fact(path.name)
    )
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if "responses" not in path.parts}


def test_every_row_is_kept_or_dropped_with_its_reason(project: Path) -> None:
    outcomes = run(project)
    assert [outcome.stage for outcome in outcomes] == STAGES
    config = load(project)
    for outcome in outcomes:
        counts = outcome.manifest.counts
        assert counts.rows_in == counts.kept + counts.dropped
        drops = {drop.id: drop.reason for drop in outputs.read_drops(outcome.folder)}
        assert drops == GONE.get(outcome.stage, {})
    kept = {row.id for row in outputs.read(results.result(config, "quality"), Example)}
    assert kept == {f"r{n}" for n in range(24)}
    rows = list(outputs.read(results.result(config, "shard"), TrainingRow))
    assert {row.id for row in rows} == {f"r{n}/{task}" for n in range(24) for task in ("label", "rationale")}
    assert len({row.example: row.split for row in rows}) == len({(row.example, row.split) for row in rows}) == 24


def test_evidence_names_the_twin_and_the_eval_row(project: Path) -> None:
    run(project)
    config = load(project)
    (twin,) = results.rows(config, "dedup", dropped=True)
    assert twin["evidence"]["twin"] == "r0"
    (leak,) = results.rows(config, "decontaminate", dropped=True)
    assert (leak["evidence"]["eval_set"], leak["evidence"]["eval_row"]) == ("test", "t0")


def test_a_second_run_does_nothing(project: Path) -> None:
    run(project)
    before = tree(project.parent / "runs")
    assert not any(outcome.ran for outcome in run(project))
    assert tree(project.parent / "runs") == before


def test_two_runs_elsewhere_have_the_same_bytes(project: Path, tmp_path: Path) -> None:
    from tests.conftest import write_project

    other = write_project(tmp_path / "elsewhere")
    run(project)
    run(other)
    assert tree(project.parent / "runs") == tree(other.parent / "runs")


def test_forcing_writes_the_same_bytes_again(project: Path) -> None:
    run(project)
    before = tree(project.parent / "runs")
    assert all(outcome.ran for outcome in run(project, force=True))
    assert tree(project.parent / "runs") == before


def test_one_changed_setting_reruns_its_stage_and_what_follows(project: Path) -> None:
    run(project)
    config = load(project, ["quality.filters=[label_in_set, {min_words: 2}]"])
    steps = {step.stage: step for step in provenance.plan(config)}
    assert [name for name, step in steps.items() if step.runs] == ["quality", "shard"]
    assert len(steps["quality"].reasons) == 1
    assert steps["quality"].reasons[0].startswith("quality.filters")
    assert steps["shard"].reasons == ["quality runs"]
    assert [outcome.stage for outcome in run(config) if outcome.ran] == ["quality", "shard"]


def test_going_back_to_old_settings_runs_nothing(project: Path) -> None:
    run(project)
    run(project, overrides=["quality.filters=[label_in_set]"])
    assert not any(step.runs for step in provenance.plan(load(project)))
    outcomes = {outcome.stage: outcome.ran for outcome in run(project)}
    assert not any(outcomes.values())


def test_a_changed_input_file_is_the_reason(project: Path) -> None:
    run(project)
    path = project.parent / "test.jsonl"
    path.write_bytes(
        path.read_bytes()
        + b'{"id": "t99", "text": "one two three four five six seven eight nine ten", "topic": "food"}\n'
    )
    steps = [step for step in provenance.plan(load(project)) if step.runs]
    assert [step.stage for step in steps] == ["decontaminate", "quality", "shard"]
    assert steps[0].reasons[0].startswith("decontaminate.eval_sets.test.path")


def test_named_stages_run_on_what_lies_on_disk(project: Path) -> None:
    with pytest.raises(InputError, match="quality: reads decontaminate, which has no result yet"):
        run(project, ["quality"])
    run(project, until="decontaminate")
    assert [outcome.stage for outcome in run(project, ["quality"])] == ["quality"]
    with pytest.raises(InputError, match="unknown stage"):
        run(project, ["qualitty"])
    with pytest.raises(InputError, match="switched off"):
        run(project, ["train"])


def test_what_an_interrupted_run_left_is_cleared(project: Path) -> None:
    run(project, until="parse")
    asked = provenance.ask(load(project), "dedup")
    assert asked is not None
    left = project.parent / "runs/small/dedup" / asked.key
    left.mkdir(parents=True)
    (left / "part-00000.jsonl").write_bytes(b"half a row")
    (left / ".part-00001.jsonl.tmp").write_bytes(b"half")
    run(project)
    assert not (left / ".part-00001.jsonl.tmp").exists()
    assert len(list(outputs.read(left, Example))) == 27


def test_what_an_interrupted_job_left_is_cleared_folders_too(project: Path) -> None:
    """A job goes on in its folder, where a model is saved in a temporary folder."""
    (sampled,) = [outcome for outcome in run(project) if outcome.stage == "sample"]
    whole = tree(project.parent)
    (sampled.folder / outputs.MANIFEST).unlink()
    saving = sampled.folder / ".student.tmp"
    saving.mkdir()
    for name in ("model.safetensors", ".README.md.7.tmp"):
        (saving / name).write_bytes(b"half")
    run(project)
    assert tree(project.parent) == whole


def test_a_bad_row_stops_with_its_place_or_is_dropped(project: Path) -> None:
    path = project.parent / "inputs.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[3] = b'{"id": "r3", "text": }\n'
    lines[5] = b'{"id": "r4", "text": "the id of another row", "topic": "food"}\n'
    path.write_bytes(b"".join(lines))
    with pytest.raises(InputError, match=r"inputs\.jsonl:4: "):
        run(project)
    outcome = run(project, ["ingest"], overrides=["ingest.on_bad_row=drop"])[0]
    assert outcome.manifest.counts.reasons == {"bad_row": 2}
    assert [drop.evidence["source"] for drop in outputs.read_drops(outcome.folder)] == [
        "inputs.jsonl:4",
        "inputs.jsonl:6",
    ]


def test_rows_without_an_id_get_one_from_their_content_and_twins_stay_apart(project: Path) -> None:
    path = project.parent / "inputs.jsonl"
    path.write_bytes(b'{"text": "one", "topic": "food"}\n' * 3)
    project.write_text(project.read_text().replace("  id: id\n", ""))
    outcome = run(project, ["ingest"])[0]
    ids = [json.loads(line)["id"] for line in outputs.lines(outcome.folder)]
    assert ids == [ids[0], f"{ids[0]}.2", f"{ids[0]}.3"]


def test_a_second_process_is_told_who_works(project: Path) -> None:
    folder = project.parent / "runs/small"
    folder.mkdir(parents=True)
    with held_alone(folder / LOCK, folder), pytest.raises(RunError, match=f"process {os.getpid()} on .* is writing"):
        run(project)
    run(project)


def test_rows_of_a_stage_are_a_dataset(project: Path) -> None:
    pipeline.run(project)
    rows = pipeline.rows(project, "shard")
    assert rows.column_names == ["id", "example", "task", "split", "prompt", "completion", "difficulty", "distribution"]
    assert rows.num_rows == 48
    assert pipeline.rows(project, "quality")[0]["label"] == "sports"


def test_shards_load_as_they_are(project: Path, tmp_path: Path) -> None:
    import datasets

    run(project)
    folder = results.result(load(project), "shard")
    loaded = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert sum(split.num_rows for split in loaded.values()) == 48
    assert set(loaded) == {"train", "validation"}


@pytest.mark.parametrize("kind", ["csv", "parquet", "folder"])
def test_other_kinds_of_sources_give_the_same_rows(project: Path, kind: str) -> None:
    rows = [json.loads(line) for line in (project.parent / "inputs.jsonl").read_bytes().splitlines()]
    jsonl = run(project, ["ingest"])[0]
    target = project.parent / ("folder" if kind == "folder" else f"inputs.{kind}")
    if kind == "csv":
        import csv

        with target.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), target)
    else:
        target.mkdir()
        lines = (project.parent / "inputs.jsonl").read_bytes().splitlines(keepends=True)
        (target / "a.jsonl").write_bytes(b"".join(lines[:10]))
        (target / "b.jsonl").write_bytes(b"".join(lines[10:]))
    project.write_text(project.read_text().replace("inputs.jsonl", target.name))
    other = run(project, ["ingest"])[0]

    def strip(folder: Path) -> list[dict]:
        return [{**json.loads(line), "source": None} for line in outputs.lines(folder)]

    assert strip(other.folder) == strip(jsonl.folder)


@pytest.mark.parametrize(
    ("stage", "problem"), [("parse", "a row is unaccounted for"), ("quality", "as many verdicts as rows")]
)
def test_a_stage_that_loses_a_row_leaves_no_result(
    project: Path, monkeypatch: pytest.MonkeyPatch, stage: str, problem: str
) -> None:
    whole = STAGES_TABLE[stage]

    def losing(rows: Iterable[Any], **settings: Any) -> Iterator[Any]:
        return islice(whole.function(rows, **settings), 5)

    config = load(project)
    monkeypatch.setitem(STAGES_TABLE, stage, replace(whole, function=losing))
    with pytest.raises(RunError, match=problem):
        run(config)
    assert outputs.current(config.run, stage) is None


def test_what_a_killed_process_was_writing_is_cleared_before_the_next_run(project: Path) -> None:
    run(project, until="dedup")
    folder = project.parent / "runs/small"
    (folder / "exports").mkdir()
    (folder / "signatures").mkdir()
    places = (
        ".revoked.jsonl.7.tmp",
        "dedup/.current.7.tmp",
        "exports/.croissant.json.7.tmp",
        "signatures/.a.dsse.json.7.tmp",
    )
    for name in (*places, "dedup/.mine.tmp"):
        (folder / name).write_bytes(b"half")
    assert {finding.path for finding in audit(folder)} == {folder / name for name in (*places, "dedup/.mine.tmp")}
    assert not any(outcome.ran for outcome in run(project, until="dedup"))
    assert [finding.path for finding in audit(folder)] == [folder / "dedup/.mine.tmp"]  # nothing but names of its own
