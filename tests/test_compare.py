"""Two runs side by side: every difference is told, and nothing else; what changed makes the one of the other."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from typer.testing import CliRunner

from pipeline import compare as comparing
from pipeline import outputs, runner
from pipeline.cli import app
from pipeline.compare import compare
from pipeline.differences import applied, differences
from pipeline.files import InputError, RunError, canonical_json, digest, write_json
from pipeline.measure import METRICS
from pipeline.printed_compare import compared
from pipeline.records import Counts, Manifest, Prediction, features
from tests.conftest import write_jsonl, write_project
from tests.rows import MADE_BY

LEAVES = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([0.5, 1.0, "a", "b"])
VALUES = st.recursive(
    LEAVES,
    lambda values: st.lists(values, max_size=5) | st.dictionaries(st.sampled_from("abc"), values, max_size=3),
    max_leaves=12,
)


@given(VALUES, VALUES)
@example({"f": [{"a": 1}, {"b": 2}]}, {"f": [{"c": 0}, {"a": 2}, {"b": 2}]})
@example([1, 2, 3], [])
def test_differences_make_the_one_of_the_other_and_are_the_same_from_both_sides(first: Any, second: Any) -> None:
    found = differences(first, second)
    assert canonical_json(applied(first, found)) == canonical_json(second)
    assert differences(second, first) == [one.mirrored() for one in found]
    assert (found == []) == (canonical_json(first) == canonical_json(second))


def test_an_element_put_in_front_is_one_difference() -> None:
    before = {"filters": [{"min_words": {"minimum": 4}}, {"refusal": {}}]}
    now = {"filters": [{"tokens": {}}, {"min_words": {"minimum": 6}}, {"refusal": {}}]}
    told = [(one.place, one.first, one.second) for one in differences(before, now)]
    assert [(place, after) for place, _, after in told] == [
        ("filters[0]", {"tokens": {}}),
        ("filters[0].min_words.minimum", 6),
    ]


def test_lists_too_long_to_be_matched_are_held_against_each_other_place_by_place() -> None:
    before = list(range(600))
    found = differences(before, [*before[:599], 7, 8])
    assert (found[0].place, found[0].first) == ("[599]", 599)
    assert applied(before, found) == [*before[:599], 7, 8]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run up to the shards, and one with another filter and another source."""
    project = write_project(tmp_path_factory.mktemp("two") / "project")
    runner.run(project, until="shard")
    folder = project.parent
    shutil.copytree(folder / "runs/small", folder / "runs/again")
    inputs, said = folder / "inputs.jsonl", folder / "completions.jsonl"
    rows = [json.loads(line) for line in inputs.read_text().splitlines()]
    answers = [json.loads(line) for line in said.read_text().splitlines()]
    new = {"id": "new", "text": "a ball that nobody else has in any of these texts", "topic": "sports"}
    write_jsonl(inputs, [*rows[1:], new])
    write_jsonl(
        said,
        [
            *(
                one | {"completion": one["completion"].replace("speaks", "talks")} if one["id"] == "r3" else one
                for one in answers
            ),
            {"id": "new", "completion": "It speaks of one ball and all of its friends. So the answer is sports."},
        ],
    )
    project.write_text(project.read_text().replace("runs/small", "runs/again").replace("min_words: 3", "min_words: 7"))
    runner.run(project, until="shard")
    return folder / "runs/small", folder / "runs/again"


def test_settings_inputs_and_rows_that_differ_are_told(two: tuple[Path, Path]) -> None:
    found = compare(*two)
    assert [(one.place, one.first, one.second) for one in found.settings["quality"]] == [
        ("filters[1].min_words.minimum", "3", "7")
    ]
    assert any(one.place.endswith(".sha256") for one in found.inputs["ingest"])
    assert found.made_by == []
    assert found.only_first == found.only_second == []
    assert found.same == []
    kept = {one.stage: one for one in found.rows}
    assert kept["ingest"].first == kept["ingest"].second == {"in": 29, "kept": 29, "dropped": 0}
    first, second = (
        list(outputs.lines(folder)) for folder in (outputs.current(run, "quality") for run in two) if folder
    )
    assert kept["quality"].first is not None
    assert kept["quality"].first["kept"] == len(first)
    assert kept["quality"].second is not None
    assert kept["quality"].second["kept"] == len(second)


def test_what_became_of_rows_that_only_one_side_kept(two: tuple[Path, Path]) -> None:
    rows = compare(*two).examples
    assert rows is not None
    kept = [
        {json.loads(line)["id"]: line for line in outputs.lines(folder)}
        for run in two
        if (folder := outputs.current(run, "quality")) is not None
    ]
    both = kept[0].keys() & kept[1].keys()
    assert rows.both == len(both)
    assert rows.changed == sum(kept[0][name] != kept[1][name] for name in both)
    assert (rows.only_first.rows, rows.only_second.rows) == (len(kept[0].keys() - both), len(kept[1].keys() - both))
    assert set(rows.only_first.ids) <= kept[0].keys() - both
    assert "new" in rows.only_second.ids
    assert rows.only_second.became["not among its rows"] == 1
    assert rows.only_first.became["not among its rows"] == 1  # r0, whose line was taken out
    assert rows.only_first.became["quality: min_words"] == rows.only_first.rows - 1 > 0


def test_a_run_is_like_itself(two: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    found = compare(two[0], two[0])
    assert found.settings == found.inputs == {}
    assert found.examples is not None
    assert (found.examples.only_first.rows, found.examples.changed) == (0, 0)
    compared(found)
    assert "made alike" in capsys.readouterr().out


def test_an_earlier_result_is_compared_with_the_run_up_to_its_stage(project: Path) -> None:
    runner.run(project, until="shard")
    run = project.parent / "runs/small"
    before = outputs.current(run, "quality")
    runner.run(project, ["quality"], overrides=["quality.filters=[label_in_set, {min_words: 7}]"])
    assert before is not None
    found = compare(before, run)
    assert found.same == ["ingest", "sample", "parse", "dedup", "decontaminate"]
    assert [one.place for one in found.settings["quality"]] == ["filters[1].min_words.minimum"]
    assert found.only_first == found.only_second == []  # the shards are behind what is compared
    whole = compare(run, run)
    assert any("shard: made from an earlier result of quality" in note for note in whole.notes)


def predictions(right: dict[str, list[bool]], text: str = "x") -> list[Prediction]:
    return [
        Prediction(
            id=f"test/{model}/{n}",
            eval_set="test",
            model=model,
            row=str(n),
            input=f"{text} {n}",
            gold="sports",
            label="sports" if one else "food",
            correct=one,
            text="sports" if one else "food",
        )
        for model, verdicts in right.items()
        for n, one in enumerate(verdicts)
    ]


def measured(run: Path, right: dict[str, list[bool]], text: str = "x", **more: Any) -> Path:
    """A run of which only the evaluation is there."""
    models = {model: {"accuracy": sum(one) / len(one), "macro_f1": None, **more} for model, one in right.items()}
    rows = predictions(right, text)
    folder = run / "evaluate" / digest([row.plain() for row in rows])
    folder.mkdir(parents=True)
    write_json(folder / METRICS, {"eval_sets": {"test": {"models": models}}})
    writer = outputs.RowWriter(folder, "part", 1000)
    for row in rows:
        writer.write(row.line())
    counts = Counts(unit="predictions", rows_in=len(rows), kept=len(rows), dropped=0, reasons={}, rows_out=len(rows))
    manifest = Manifest(
        stage="evaluate",
        version=1,
        key=folder.name,
        settings={},
        parents={},
        identities={},
        counts=counts,
        outputs=writer.close(),
        features=features(Prediction),
        details={},
        digest="0" * 64,
        **MADE_BY,
    )
    outputs.write_manifest(folder, manifest.model_copy(update={"digest": outputs.manifest_digest(manifest)}))
    outputs.point(run, "evaluate", folder.name)
    return run


def test_figures_are_compared_and_answers_row_by_row(tmp_path: Path) -> None:
    first = measured(tmp_path / "a", {"student": [True] * 20 + [False] * 20, "nearest": [True] * 40})
    second = measured(
        tmp_path / "b",
        {"student": [True] * 36 + [False] * 4, "baseline": [True] * 40},
        rouge_l={"value": 0.5, "interval": [0.4, 0.6]},
        calibration={"ece": 0.1},
    )
    [found] = compare(first, second).eval_sets
    told = {(one.model, one.name): (one.first, one.second) for one in found.figures}
    assert told["student", "accuracy"] == (0.5, 0.9)
    assert told["student", "rouge_l"] == (None, 0.5)
    assert told["student", "calibration.ece"] == (None, 0.1)
    assert told["nearest", "accuracy"] == (1.0, None)
    assert ("student", "macro_f1") not in told
    assert found.paired_rows == {"student": 40}
    paired = found.paired["student"]
    assert (paired.only_first, paired.only_second) == (16, 0)  # the first is what there is now
    assert paired.difference == pytest.approx(0.4)
    assert paired.interval[0] > 0
    assert paired.sentence.endswith("the difference is shown")


def test_other_eval_rows_are_never_paired(tmp_path: Path) -> None:
    first = measured(tmp_path / "a", {"student": [True, False]})
    second = measured(tmp_path / "b", {"student": [True, True]}, text="another text under the same id")
    [found] = compare(first, second).eval_sets
    assert found.paired == {}
    assert found.note is not None


def test_what_is_no_run_is_refused(tmp_path: Path, two: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="neither a run folder"):
        compare(tmp_path / "nothing", two[0])
    evaluation = measured(tmp_path / "a", {"student": [True]})
    with pytest.raises(InputError, match="evaluate has no result there"):
        compare(next((evaluation / "evaluate").glob("*/")), two[0])
    (next((evaluation / "evaluate").glob("*/")) / METRICS).write_text("[]")
    with pytest.raises(RunError, match=r"metrics\.json"):
        compare(evaluation, evaluation)


def test_the_command_prints_no_control_character(tmp_path: Path) -> None:
    first = measured(tmp_path / "a", {"student\x1b[31m": [True, False]})
    second = measured(tmp_path / "b", {"student\x1b[31m": [True, True]})
    done = CliRunner().invoke(app, ["compare", str(first), str(second)])
    assert done.exit_code == 0
    assert "\x1b" not in done.output
    assert "100.0%" in done.output
    found = json.loads(CliRunner().invoke(app, ["compare", str(first), str(second), "--json"]).output)
    assert found["eval_sets"][0]["paired_rows"] == {"student\x1b[31m": 2}
    assert comparing.compare(first, second).plain() | {"eval_sets": []} == json.loads(json.dumps(found)) | {
        "eval_sets": []
    }
