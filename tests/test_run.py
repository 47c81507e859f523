"""The runner: conservation, drops with evidence, skipping, resuming, plans."""

import calendar
import json
import os
import platform
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

import pipeline
from pipeline import environment, outputs, provenance, results, runner, shard, shift
from pipeline.audit import audit
from pipeline.config import load
from pipeline.files import InputError, RunError, held_alone
from pipeline.records import Counts, Example, TrainingRow
from pipeline.runner import LOCK, aside, at_work, choose, counts_line, is_run_fact, reasons_line, run
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


def test_a_job_finds_what_it_left_when_it_was_interrupted(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = STAGES_TABLE["sample"]
    found: list[bool] = []

    @wraps(whole.function)
    def function(job: Any, **settings: Any) -> Any:
        found.append((job.folder / "checkpoint").exists())
        (job.folder / "checkpoint").unlink(missing_ok=True)
        return (yield from whole.function(job, **settings))

    monkeypatch.setitem(STAGES_TABLE, "sample", replace(whole, function=function))
    (_, sampled) = run(project, until="sample")
    (sampled.folder / "checkpoint").touch()
    run(project, ["sample"], force=True)
    (sampled.folder / outputs.MANIFEST).unlink()
    (sampled.folder / "checkpoint").touch()
    run(project, ["sample"])
    assert found == [False, False, True]


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


def test_a_run_is_whole_and_its_manifests_say_what_was_asked_by_what_code(project: Path) -> None:
    before = int(time.time())
    outcomes = run(project)
    config = load(project)
    assert list(audit(config.run, full=True)) == []
    for outcome in outcomes:
        manifest = outcome.manifest
        asked = provenance.ask(config, outcome.stage)
        assert asked is not None
        assert (manifest.key, manifest.asked, manifest.settings) == (asked.key, asked.asked, asked.settings)
        assert (manifest.parents, manifest.identities) == (asked.parents, asked.identities)
        assert (manifest.code, manifest.environment) == (environment.code(), environment.environment())
        assert outcome.folder == config.run / outcome.stage / asked.key == outputs.current(config.run, outcome.stage)
        assert (outcome.ran, outcome.seconds > 0) == (True, True)
        assert manifest.digest == outputs.manifest_digest(manifest)
        facts = json.loads((outcome.folder / "run.json").read_bytes())
        assert set(facts) == {"started", "seconds", "host", "cores"}
        assert (facts["host"], facts["cores"]) == (platform.node(), os.cpu_count())
        started = time.strptime(facts["started"], "%Y-%m-%dT%H:%M:%SZ")
        assert before <= calendar.timegm(started) <= time.time()
        assert 0 <= facts["seconds"] < 60
        assert facts["seconds"] == round(facts["seconds"], 3)
    by_stage = {outcome.stage: outcome for outcome in outcomes}
    assert [(source.uri, source.rows) for source in by_stage["ingest"].manifest.sources] == [("inputs.jsonl", 29)]
    assert by_stage["sample"].manifest.models["teacher recorded"]
    assert [file.path for file in by_stage["quality"].manifest.outputs] == [
        "part-00000.jsonl", "part-00000.xxh3", "dropped.jsonl", "dropped.xxh3", "counts.json",
    ]  # fmt: skip
    names = [file.path for file in by_stage["shard"].manifest.outputs]
    assert [name for name in names if name.endswith(".jsonl")] == [
        "train-00000.jsonl", "validation-00000.jsonl", "dropped.jsonl",
    ]  # fmt: skip
    assert names[-1] == shard.CARD
    card = (by_stage["shard"].folder / shard.CARD).read_text()
    assert by_stage["shard"].manifest.key in card
    extra = by_stage["shard"].manifest.outputs[-1]
    assert (extra.bytes, extra.rows) == (len(card.encode()), None)


def test_what_is_done_is_said_line_by_line(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = {outcome.stage: outcome.manifest.key[:8] for outcome in run(project, until="parse")}
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"ingest: running ({keys['ingest']})"
    assert re.fullmatch(r"ingest: 29 rows in, 29 kept, 0 dropped in \d\.\d s", said[1])
    assert re.fullmatch(r"parse: 29 responses in, 28 kept, 1 dropped \(unparsed 1\) in \d\.\d s", said[-1])
    assert [line.partition(":")[0] for line in said] == ["ingest"] * 2 + ["sample"] * 3 + ["parse"] * 2
    again = run(project, until="parse")
    assert capsys.readouterr().err.splitlines() == [f"{stage}: unchanged ({key})" for stage, key in keys.items()]
    assert {(outcome.ran, outcome.seconds) for outcome in again} == {(False, 0.0)}
    assert [outcome.manifest.key[:8] for outcome in again] == list(keys.values())


def test_counts_are_said_with_the_most_frequent_reason_first() -> None:
    counts = Counts(
        unit="examples", rows_in=4200, kept=2185, dropped=2015, rows_out=4370, reasons={"b": 3, "a": 2000, "c": 12}
    )
    assert reasons_line(counts) == "a 2,000, c 12, b 3"
    assert counts_line(counts) == "4,200 examples in, 2,185 kept, 2,015 dropped (a 2,000, c 12, b 3)"
    whole = counts.model_copy(update={"kept": 4200, "dropped": 0, "reasons": {}})
    assert counts_line(whole) == "4,200 examples in, 4,200 kept, 0 dropped"


def test_stages_are_chosen_in_their_order_with_both_ends(project: Path) -> None:
    config = load(project)
    assert choose(config, None, None, None) == STAGES
    assert choose(config, ["shard", "parse"], None, None) == ["parse", "shard"]
    assert choose(config, None, "parse", "dedup") == ["parse", "dedup"]
    assert choose(config, iter(["ingest", "dedup", "shard"]), "parse", None) == ["dedup", "shard"]
    assert choose(config, None, None, "sample") == ["ingest", "sample"]
    with pytest.raises(InputError) as caught:
        choose(config, None, None, "par\nse")
    assert str(caught.value).startswith("par\\x0ase: unknown stage; the stages are ingest, sample, parse, dedup,")
    with pytest.raises(InputError) as caught:
        choose(config, None, "train", None)
    problem = "stages.train: this stage is switched off; remove 'train: false' to run it"
    assert str(caught.value) == f"{config.file}: {problem}"
    with pytest.raises(InputError, match="stages.judge: this stage is switched off; write down its settings to run it"):
        choose(config, ["judge"], None, None)


def test_what_is_made_aside_is_whole_and_not_in_force(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(project)
    folders = {stage: outputs.current(project.parent / "runs/small", stage) for stage in STAGES}
    other = load(project, ["quality.filters=[label_in_set]"])
    capsys.readouterr()
    for made in (True, False):
        with at_work(other) as crew:
            outcomes = list(aside(other, crew))
        assert [outcome.stage for outcome in outcomes if outcome.ran] == (["quality", "shard"] if made else [])
        said = capsys.readouterr().err.splitlines()
        assert [line.split(" (")[0] for line in said if "running" in line] == (
            ["quality: running", "shard: running"] if made else []
        )
        assert not any("unchanged" in line for line in said)
        assert {stage: outputs.current(other.run, stage) for stage in STAGES} == folders
        for outcome in outcomes:
            facts = json.loads((outcome.folder / "run.json").read_bytes())
            assert facts.get("aside", False) == (outcome.stage in ("quality", "shard"))
        assert outcomes[-1].manifest.parents["quality"].key == outcomes[-2].manifest.key
        assert outcomes[-2].manifest.counts.kept == 25
    assert list(audit(other.run)) == []
    assert [outcome.stage for outcome in run(other) if outcome.ran] == []
    assert outputs.current(other.run, "quality") == outcomes[-2].folder


def test_a_stage_is_cut_into_files_of_so_many_rows(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "ROWS_PER_FILE", 10)
    outcomes = {outcome.stage: outcome for outcome in run(project, overrides=["shard.rows_per_shard=20"])}
    files = {
        stage: [file.rows for file in outcome.manifest.outputs if file.path.startswith(("part", "train"))]
        for stage, outcome in outcomes.items()
    }
    assert [rows for rows in files["ingest"] if rows is not None] == [10, 10, 9]
    assert [rows for rows in files["dedup"] if rows is not None] == [10, 10, 7]
    assert next(rows for rows in files["shard"] if rows is not None) == 20


def test_every_source_file_counts_its_own_rows(project: Path) -> None:
    lines = (project.parent / "inputs.jsonl").read_bytes().splitlines(keepends=True)
    folder = project.parent / "folder"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b"".join(lines[:10]))
    (folder / "b.jsonl").write_bytes(b"".join(lines[10:]))
    project.write_text(project.read_text().replace("inputs.jsonl", "folder"))
    (outcome,) = run(project, ["ingest"])
    assert [(Path(source.uri).name, source.rows) for source in outcome.manifest.sources] == [
        ("a.jsonl", 10),
        ("b.jsonl", 19),
    ]


def test_rows_that_went_away_since_their_manifest_stop_the_stage(project: Path) -> None:
    run(project, until="dedup")
    folder = outputs.current(project.parent / "runs/small", "dedup")
    assert folder is not None
    path = folder / "part-00000.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(RunError, match="dedup.*; .*run `stepdistill audit`"):
        run(project, ["decontaminate"])
    assert outputs.current(project.parent / "runs/small", "decontaminate") is None


def test_a_damaged_row_that_a_filter_drops_is_named_with_its_stage(project: Path) -> None:
    (*_, parsed) = run(project, until="parse")
    path = parsed.folder / "part-00000.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    (place,) = [number for number, line in enumerate(lines) if b'"r24"' in line]
    lines[place] = lines[place].replace(b'"agreement":', b'"agrees":')
    path.write_bytes(b"".join(lines))
    with pytest.raises(RunError, match=r"^dedup: a row is no Example row \(.*agreement.*run `stepdistill audit`"):
        run(project, ["dedup"])


def test_a_true_label_in_another_spelling_is_the_one_of_the_set(project: Path) -> None:
    """Dropped and kept rows, of filters that see a row alone or all of them."""
    wanted = {outcome.stage: shift.read(outcome.folder).counts["right"] for outcome in run(project)[2:6]}
    path = project.parent / "inputs.jsonl"
    text = path.read_text()
    for label, spelling in (("sports", "-Sports!-"), ("food", "(food)")):
        text = text.replace(f'"topic": "{label}"', f'"topic": "{spelling}"')
    path.write_text(text)
    assert {outcome.stage: shift.read(outcome.folder).counts["right"] for outcome in run(project)[2:6]} == wanted
    assert len(wanted) == 4


def test_a_task_need_not_have_a_set_of_labels(project: Path) -> None:
    text = project.read_text()
    for line in ("  labels: [sports, food]\n", "      - label_in_set\n"):
        assert line in text
        text = text.replace(line, "")
    project.write_text(text)
    counts = shift.read(run(project, until="quality")[-1].folder).counts["right"]
    assert counts[True] > counts[False]


def test_what_filters_found_last_time_is_used_only_where_its_drops_are_as_they_were(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = STAGES_TABLE["quality"]
    knew: list[bool] = []
    used: list[bool] = []

    @wraps(whole.function)  # its signature says which settings there are
    def function(rows: Any, *known: Any, **settings: Any) -> Any:
        used.append(bool(known))
        return whole.function(rows, *known, **settings)

    def again(*given: Any) -> Any:
        assert whole.again is not None
        found = whole.again(*given)
        knew.append(found is not None)
        return found

    monkeypatch.setitem(STAGES_TABLE, "quality", replace(whole, again=again, function=function))
    run(project, until="quality")
    assert (knew, used) == ([], [False])  # there was no last time
    other = ["quality.filters=[label_in_set, {min_words: 2}]"]
    run(project, ["quality"], overrides=other)
    assert (knew, used) == ([True], [False, True])
    last = outputs.current(project.parent / "runs/small", "quality")
    assert last is not None
    (last / "dropped.jsonl").write_bytes(b"")
    run(project, ["quality"], overrides=["quality.filters=[label_in_set, {min_words: 1}]"])
    (last / "dropped.jsonl").unlink()
    run(project, ["quality"], overrides=other)
    run(project, ["quality"], overrides=other, force=True)
    assert knew == [True]
    run(project, ["quality"], overrides=other, force=True)  # what it is to make anew is no help
    assert knew == [True]


def test_run_facts_are_known_by_their_names() -> None:
    assert [name for name in ("run.json", "run-speed.json", "run-.json", "rerun.json", "run-a.jsonl", "runs.json")
            if is_run_fact(name)] == ["run.json", "run-speed.json", "run-.json"]  # fmt: skip


def test_a_wrong_row_that_is_dropped_for_another_reason_is_counted_as_wrong(project: Path) -> None:
    path = project.parent / "completions.jsonl"
    path.write_bytes(
        path.read_bytes().replace(b"of a game. So the answer is sports.", b"of a game. So the answer is food.")
    )
    outcomes = {outcome.stage: outcome for outcome in run(project, until="decontaminate")}
    assert [drop.id for drop in outputs.read_drops(outcomes["decontaminate"].folder)] == ["r25"]
    before, after = (shift.read(outcomes[stage].folder).counts["right"] for stage in ("dedup", "decontaminate"))
    assert before - after == {False: 1}
