"""Sweeps over a tiny model: shared stages, nothing done twice, nothing put in force, failures apart, and figures that hold."""

import itertools
import json
import math
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import pipeline
from pipeline import outputs, provenance, runner, sweep_plot, sweeps
from pipeline.audit import audit
from pipeline.cli import app
from pipeline.config import load, read_yaml
from pipeline.files import InputError
from pipeline.intervals import accuracy_interval
from pipeline.sweeps import Measured, prepare, read_over, sweep
from tests.conftest import write_project
from tests.test_train import make_model

ROOT = Path(__file__).parents[1]
OVER = {"train.alpha": [0.1, 0.9], "train.seed": [0, 1]}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


def trained_project(folder: Path, tiny: Path) -> Path:
    """A project whose trainings take three steps."""
    settings_file = write_project(folder)
    train = f"{{student: {tiny}, epochs: 1, batch_size: 8, precision: float32, accept_terms: the rows are made up}}"
    written = settings_file.read_text().replace("  train: false", f"  train: {train}")
    evaluation = "  evaluate: {rationales: 0, max_new_tokens: 4, bootstrap: 5, latency: 0, safety: false}"
    settings_file.write_text(written.replace("  evaluate: false", evaluation))
    return settings_file


@pytest.fixture
def fresh(tmp_path: Path, tiny: Path) -> Path:
    return trained_project(tmp_path / "project", tiny)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> tuple[Path, sweeps.Swept]:
    """A project where shards and another filter's settings were in force before the sweep."""
    config = trained_project(tmp_path_factory.mktemp("swept") / "project", tiny)
    runner.run(config, until="shard", overrides=["quality.filters=[label_in_set]"])
    return config, sweep(config, OVER, name="weights")


def pointers(run: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in run.glob("*/current")}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def keys(run: Path, stage: str) -> set[str]:
    return {path.parent.name for path in run.glob(f"{stage}/*/manifest.json")}


# Which points


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S", "Zs")), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=2),
    max_leaves=5,
)


@given(
    st.lists(VALUES, min_size=1, max_size=5, unique_by=lambda value: json.dumps(sweeps.normal(value), sort_keys=True))
)
def test_values_come_out_as_they_were_written(values: list[Any]) -> None:
    written = ",".join(json.dumps(value) for value in values)
    expected: list[Any] = []
    for value in values:  # a text that reads as a range stands for one
        ends = sweeps._RANGE.fullmatch(value) if isinstance(value, str) else None
        expected += [value] if ends is None else []
    if len(expected) == len(values):
        assert (
            read_over([f"stages.train.alpha={written}"])
            == {"train.alpha": values}
            == read_over({"train.alpha": values})
        )


@given(st.integers(-50, 50), st.integers(0, 60), st.integers(1000, 2000))
def test_ranges_have_both_ends(first: int, more: int, other: int) -> None:
    assert read_over([f"train.seed={first}..{first + more},{other}"]) == {
        "train.seed": [*range(first, first + more + 1), other]
    }


@given(st.text(max_size=30))
def test_any_text_is_values_or_one_line(text: str) -> None:
    try:
        found = read_over([f"train.alpha={text}"])
    except InputError as error:
        assert str(error).startswith("--over train.alpha")
        assert len(str(error).splitlines()) == 1
    else:
        assert found["train.alpha"]


@given(st.floats(allow_nan=False, allow_infinity=False) | VALUES)
def test_a_value_reaches_the_settings_as_it_is(value: Any) -> None:
    assert read_yaml(sweeps._yaml(value), "a test", mapping=False)[0] == value


@pytest.mark.parametrize(
    ("over", "problem"),
    [
        (["trian.alpha=1"], "--over trian.alpha: trian: unknown stage; did you mean 'train'?"),
        (["train.alfa=0.5"], "stages.train.alfa: unknown setting; did you mean 'alpha'?"),
        (["train.alpha=0.5,2"], "at train.alpha=2: "),
        (["train.alpha"], "write it as stage.knob=value,value"),
        (["train=1"], "write it as stage.knob=value,value"),
        (["train.alpha="], "no values"),
        (["train.alpha=0.1,"], "ends with a comma"),
        (["train.alpha=0.1,,0.5"], "not valid YAML"),
        (["train.alpha=1] # ["], "not valid YAML"),
        (["train.seed=1,1.0"], "1.0 stands there twice"),
        (["train.seed=4..0"], "ends before it begins; write 0..4"),
        (["train.seed=0..1.5"], "a range is made of two whole numbers"),
        (["train.seed=0..5000"], "more than 1,000 values"),
        (["train.seed=0..99", "train.alpha=0,0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8,0.9,1"], "1,100 points"),
        (["train.alpha=0.1", "stages.train.alpha=0.5"], "stands there twice"),
        (["train.student=embedded", "train.student.layers=2"], "one setting holds the other"),
        (["train.alpha=.nan"], "not a value that stages.yaml could hold"),
        ([], "nothing is swept"),
        ({"train.seed": [{1, 2}]}, "not a value"),
    ],
)
def test_what_cannot_be_swept_is_one_line_and_nothing_runs(fresh: Path, over: Any, problem: str) -> None:
    with pytest.raises(InputError) as raised:
        sweep(fresh, over)
    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (fresh.parent / "runs").exists()


def test_settings_around_the_sweep_must_fit(fresh: Path) -> None:
    with pytest.raises(InputError, match="it is swept as well"):
        prepare(fresh, OVER, overrides=["stages.train.alpha=1"])
    with pytest.raises(InputError, match=r"stages\.train: it is switched off"):
        prepare(fresh, OVER, overrides=["train=false"])
    with pytest.raises(InputError, match="did you mean 'train.alpha'"):
        prepare(fresh, OVER, plot="train.alfa")
    with pytest.raises(InputError, match="seeds are pooled"):
        prepare(fresh, OVER, plot="train.seed")
    for name in ("../away", ".hidden", "", "a/b"):
        with pytest.raises(InputError, match="a name is made of"):
            prepare(fresh, OVER, name=name)


def test_the_axis_is_the_first_setting_with_numbers(fresh: Path) -> None:
    labels = {"shard.label": ["gold", "vote"]}
    assert prepare(fresh, {**labels, "shard.seed": [0, 1], **OVER}).plot == "train.alpha"
    assert prepare(fresh, {**labels, **OVER}, plot="shard.label").plot == "shard.label"
    assert prepare(fresh, {**labels, "train.seed": [0]}).plot == "shard.label"
    assert prepare(fresh, {"train.seed": [0, 1]}).plot is None


def test_the_baseline_is_trained_only_where_it_is_asked_for(fresh: Path) -> None:
    def baselines(*arguments: Any, **named: Any) -> list[bool]:
        return [point.config.stages["train"]["baseline"] for point in prepare(fresh, *arguments, **named).points]

    assert baselines({"train.seed": [0]}) == [False]
    assert baselines({"train.seed": [0]}, overrides=["train.baseline=true"]) == [True]
    assert baselines({"train.baseline": [True, False]}) == [True, False]


def test_another_grid_has_another_name(fresh: Path) -> None:
    assert prepare(fresh, OVER).name == prepare(fresh, ["train.alpha=0.1,0.9", "train.seed=0..1"]).name
    assert prepare(fresh, OVER).name != prepare(fresh, ["train.alpha=0.1,0.9", "train.seed=0..2"]).name


def test_a_dry_run_counts_shared_work_once_and_writes_nothing(fresh: Path) -> None:
    over = ["--over", "shard.label=gold,vote", "--over", "train.seed=0,1", "-c", str(fresh)]
    shown = CliRunner().invoke(app, ["sweep", *over, "--dry-run", "--json"])
    planned = json.loads(shown.stdout)
    everything = ["ingest", "sample", "parse", "dedup", "decontaminate", "quality", "shard", "train", "evaluate"]
    assert [point["runs"] for point in planned] == [
        everything,
        ["train", "evaluate"],
        ["shard", "train", "evaluate"],
        ["train", "evaluate"],
    ]
    assert "4 points, 4 trainings" in CliRunner().invoke(app, ["sweep", *over, "--dry-run"]).stdout
    assert not (fresh.parent / "runs").exists()


# What it leaves


def test_every_point_has_its_line(swept: tuple[Path, sweeps.Swept]) -> None:
    config, found = swept
    lines = [Measured.read(line) for line in (found.folder / "results.jsonl").read_bytes().splitlines()]
    assert lines == found.measured
    assert [line.knobs for line in lines] == [
        {"train.alpha": alpha, "train.seed": seed} for alpha in (0.1, 0.9) for seed in (0, 1)
    ]
    run = load(config).run
    assert {line.train for line in lines} == keys(run, "train")
    for line in lines:
        manifest = outputs.read_manifest(run / "train" / line.train)
        assert {f"train.{name}": manifest.settings[name] for name in ("alpha", "seed")} == line.knobs
        assert (line.eval_set, line.rows) == ("test", 6)
        assert line.steps and line.steps >= 3 and line.tokens and line.label_loss and line.seconds
        assert line.accuracy == line.correct / line.rows
    assert found.trained == 4 and not found.failures
    assert (found.folder / "failures.jsonl").read_bytes() == b""


def test_stages_before_the_first_difference_are_shared(swept: tuple[Path, sweeps.Swept]) -> None:
    run = load(swept[0]).run
    assert [len(keys(run, stage)) for stage in ("ingest", "sample", "dedup")] == [1, 1, 1]
    assert [len(keys(run, stage)) for stage in ("quality", "shard")] == [2, 2]  # those in force have another filter


def test_what_was_in_force_is_in_force(swept: tuple[Path, sweeps.Swept]) -> None:
    run = load(swept[0]).run
    assert set(pointers(run)) == {"ingest", "sample", "parse", "dedup", "decontaminate", "quality", "shard"}
    before = load(swept[0], ["quality.filters=[label_in_set]"])
    assert not any(step.runs or step.reasons for step in provenance.plan(before) if step.stage in pointers(run))


def test_likenesses_tell_results_apart_as_keys_do(swept: tuple[Path, sweeps.Swept]) -> None:
    points = prepare(swept[0], OVER).points
    for stage in ("shard", "train", "evaluate"):
        made = {
            (point.likenesses[stage], step.ask.key)
            for point in points
            for step in point.steps
            if step.stage == stage and step.ask
        }
        assert len(made) == len({likeness for likeness, _ in made}) == len({key for _, key in made})


def test_the_same_sweep_again_does_nothing_and_writes_the_same(swept: tuple[Path, sweeps.Swept]) -> None:
    config, found = swept
    before = files(found.folder)
    assert {"results.jsonl", "failures.jsonl", "results.md", "accuracy-test.svg", "accuracy-test.png"} == set(before)
    again = pipeline.sweep(config, OVER, name="weights")
    assert again.trained == 0
    assert files(found.folder) == before


def test_a_point_is_what_run_gives_with_its_settings(
    swept: tuple[Path, sweeps.Swept], tmp_path: Path, tiny: Path
) -> None:
    config, found = swept
    other = trained_project(tmp_path / "other", tiny)
    point = ["train.baseline=false", "train.alpha=0.9", "train.seed=1"]
    here = {outcome.stage: outcome.folder for outcome in runner.run(other, overrides=point)}
    assert (here["train"].name, here["evaluate"].name) == (found.measured[3].train, found.measured[3].evaluate)
    for stage in ("train", "evaluate"):
        there = load(config).run / stage / here[stage].name
        assert (there / "manifest.json").read_bytes() == (here[stage] / "manifest.json").read_bytes()


def test_the_page_and_the_terminal_have_the_same_table(swept: tuple[Path, sweeps.Swept]) -> None:
    config, found = swept
    shown = CliRunner().invoke(
        app,
        ["sweep", "-c", str(config), "--over", "train.alpha=0.1,0.9", "--over", "train.seed=0..1", "--name", "weights"],
    )
    assert shown.exit_code == 0
    page = (found.folder / "results.md").read_text()
    for note in sweeps.notes(found):
        assert note.splitlines()[0] in shown.stdout
    assert "t, over seeds" in shown.stdout and "Wilson, pooled rows" in shown.stdout
    assert "| test | 0.1 | 2 | " in page and "train.alpha=0.9 minus 0.1, paired by seed" in page.replace("\\", "")
    assert "--over train.alpha=0.1,0.9 --over train.seed=0,1 --name weights" in page
    assert "![accuracy](accuracy-test.svg)" in page


def test_the_command_in_the_page_is_this_sweep(swept: tuple[Path, sweeps.Swept]) -> None:
    config, _ = swept
    over = {"train.targets": [["label"], ["label", "rationale"]], "shard.label": ["a b", "it's"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeps, "_point", lambda config, knobs, *_: sweeps.Point(knobs, load(config), [], {}))
        command = prepare(config, over, overrides=["quality.filters=[label_in_set]"]).command
    assert read_over([word for option, word in itertools.pairwise(command) if option == "--over"]) == over


# When something goes wrong


def test_a_point_that_fails_costs_no_other(fresh: Path) -> None:
    over = ["--over", "train.max_length=8,200", "--name", "lengths"]
    done = CliRunner().invoke(app, ["sweep", "-c", str(fresh), *over])
    assert done.exit_code == 1
    assert "failed: train.max_length=8: train: train: no rows to train on" in done.stdout
    assert "lengths: 1 of 2 points have a result, 1 trained now" in done.stdout
    folder = fresh.parent / "runs/small/sweeps/lengths"
    (failed,) = [json.loads(line) for line in (folder / "failures.jsonl").read_text().splitlines()]
    assert (failed["knobs"], failed["stage"]) == ({"train.max_length": 8}, "train")
    assert [json.loads(line)["knobs"] for line in (folder / "results.jsonl").read_text().splitlines()] == [
        {"train.max_length": 200}
    ]
    assert "train.max_length=8: train: train: no rows" in (folder / "results.md").read_text().replace("\\", "")


def test_what_failed_for_all_is_tried_once(fresh: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fresh.parent / "runs/small"
    run.mkdir(parents=True)
    (run / "parse").write_text("a file where results go")
    found = sweep(fresh, {"train.seed": [0, 1, 2]})
    assert [(one.stage, one.knobs) for one in found.failures] == [("parse", {"train.seed": seed}) for seed in range(3)]
    assert capsys.readouterr().err.count("parse: running") == 1
    assert not found.measured and not found.plots


def test_an_unexpected_error_is_told_and_private(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any) -> Iterator[runner.Outcome]:
        raise ZeroDivisionError(f"in {Path.home()}/secret\n\x1b[31m")
        yield

    monkeypatch.setattr(runner, "aside", broken)
    (failed,) = sweep(fresh, {"train.seed": [0]}).failures
    assert failed.error == "ZeroDivisionError: in ~/secret\\x0a\\x1b[31m"


def test_ctrl_c_keeps_what_is_finished(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aside = runner.aside

    def stopped(config: Any, crew: Any) -> Iterator[runner.Outcome]:
        if config.stages["train"]["seed"] == 1:
            raise KeyboardInterrupt
        yield from aside(config, crew)

    monkeypatch.setattr(runner, "aside", stopped)
    with pytest.raises(KeyboardInterrupt):
        sweep(fresh, {"train.seed": [0, 1]}, name="seeds")
    monkeypatch.undo()
    run = load(fresh).run
    assert len((run / "sweeps/seeds/results.jsonl").read_bytes().splitlines()) == 1
    assert pointers(run) == {}
    found = sweep(fresh, {"train.seed": [0, 1]}, name="seeds")
    assert (found.trained, len(found.measured)) == (1, 2)


KILLED = """
import os, signal, sys
from pipeline import outputs, runner, sweeps
written = outputs.write_manifest

def write_manifest(folder, manifest):
    if manifest.stage == "shard":
        os.kill(os.getpid(), signal.SIGKILL)
    written(folder, manifest)

outputs.write_manifest = write_manifest
sweeps.sweep(sys.argv[1], {"train.seed": [0]}, name="seeds")
"""


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on_and_put_nothing_in_force(fresh: Path) -> None:
    runner.run(fresh, until="parse")
    run = load(fresh).run
    before = pointers(run)
    done = subprocess.run([sys.executable, "-c", KILLED, fresh], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert pointers(run) == before
    (shards,) = (run / "shard").iterdir()
    assert [finding.path for finding in audit(run)] == [shards]  # unfinished, as after any run that was killed
    found = sweep(fresh, {"train.seed": [0]}, name="seeds")
    assert (found.trained, pointers(run)) == (1, before)
    assert list(audit(run)) == []


def test_nobody_else_writes_meanwhile(fresh: Path) -> None:
    from pipeline.files import RunError, held_alone

    run = fresh.parent / "runs/small"
    run.mkdir(parents=True)
    with held_alone(run / ".lock", run), pytest.raises(RunError, match="is writing to it"):
        sweep(fresh, {"train.seed": [0]})
    assert [path.name for path in run.iterdir()] == [".lock"]


# What an audit says


def changed(path: Path, **fields: Any) -> Iterator[None]:
    before = path.read_bytes()
    first, *others = [json.loads(line) for line in before.splitlines()]
    path.write_bytes(b"".join(json.dumps(line).encode() + b"\n" for line in [{**first, **fields}, *others]))
    yield
    path.write_bytes(before)


def test_an_audit_of_a_run_with_sweeps_is_clean(swept: tuple[Path, sweeps.Swept]) -> None:
    run = load(swept[0]).run
    assert list(audit(run)) == []
    assert list(audit(run, full=True)) == []


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"accuracy": 0.9}, "accuracy: is 0.9, but evaluate/"),
        ({"correct": 5}, "correct: is 5"),
        ({"label_loss": 0.001}, "label_loss: is 0.001"),
        ({"knobs": {"train.alpha": 0.9, "train.seed": 0}}, "knobs: train.alpha is 0.9, but train/"),
        ({"knobs": {"train.alpha": 0.1, "train.seed": 7}}, "knobs: train.seed is 7"),
        ({"eval_set": "other"}, "has no eval set other"),
        ({"evaluate": "0" * 32}, "no such result"),
        ({"evaluate": "../../../etc"}, "no such result"),
        ({"train": "0" * 32}, "is not about the training"),
        ({"more": 1}, "cannot be compared"),
        ({"seconds": 1e9}, None),
    ],
)
def test_an_edited_result_is_found(
    swept: tuple[Path, sweeps.Swept], fields: dict[str, Any], problem: str | None
) -> None:
    path = swept[1].folder / "results.jsonl"
    for _ in changed(path, **fields):
        findings = list(audit(load(swept[0]).run))
        if problem is None:
            assert findings == []
        else:
            assert findings and all((one.path, one.line, one.check) == (path, 1, "sweeps") for one in findings)
            assert any(problem in one.problem for one in findings)


def test_figures_changed_with_the_evaluation_are_found(swept: tuple[Path, sweeps.Swept]) -> None:
    config, found = swept
    metrics = load(config).run / "evaluate" / found.measured[0].evaluate / "metrics.json"
    before = metrics.read_bytes()
    metrics.write_bytes(before.replace(b'"accuracy": 0.0', b'"accuracy": 1.0'))
    assert metrics.read_bytes() != before
    findings = [one for one in audit(load(config).run) if one.check == "sweeps"]
    metrics.write_bytes(before)
    assert [one.line for one in findings] == [1]
    assert "changed since its manifest was written" in findings[0].problem


def test_a_pointer_that_is_gone_is_still_found(swept: tuple[Path, sweeps.Swept]) -> None:
    pointer = load(swept[0]).run / "quality/current"
    before = pointer.read_bytes()
    pointer.unlink()
    findings = [one for one in audit(load(swept[0]).run) if one.path == pointer]
    pointer.write_bytes(before)
    assert len(findings) == 1 and "missing, though there are results" in findings[0].problem


# Figures


def line(accuracy: int, rows: int = 100, eval_set: str = "test", **knobs: Any) -> Measured:
    named = {f"train.{name}": value for name, value in knobs.items()}
    share = accuracy / rows
    return Measured(
        **{"knobs": named, "eval_set": eval_set, "train": "0" * 32, "evaluate": "0" * 32, "rows": rows},
        **{"correct": accuracy, "accuracy": share, "interval": accuracy_interval(accuracy, rows)},
        **{"steps": 1, "label_loss": 0.1, "tokens": 1, "seconds": 1.0},
    )


CORRECT = st.lists(st.integers(0, 100), min_size=2, max_size=12)


@given(CORRECT)
def test_pooled_figures_are_those_of_scipy(correct: list[int]) -> None:
    import numpy
    from scipy import stats

    (found,) = sweeps.pooled([line(count, seed=seed) for seed, count in enumerate(correct)])
    shares = [count / 100 for count in correct]
    assert found.mean == pytest.approx(sum(shares) / len(shares))
    assert found.deviation == pytest.approx(numpy.std(shares, ddof=1), abs=1e-12)
    if len(set(shares)) > 1:
        error = numpy.std(shares, ddof=1) / math.sqrt(len(shares))
        interval = stats.t.interval(0.95, len(shares) - 1, loc=numpy.mean(shares), scale=error)
        assert found.interval == pytest.approx((max(0, interval[0]), min(1, interval[1])))
    else:
        assert found.interval == pytest.approx((shares[0], shares[0]))
    wilson = stats.binomtest(sum(correct), 100 * len(correct)).proportion_ci(0.95, method="wilson")
    assert found.rows_interval == pytest.approx((wilson.low, wilson.high))
    assert (found.rows, found.correct, found.seeds) == (100 * len(correct), sum(correct), list(range(len(correct))))


@given(st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100)), min_size=2, max_size=8))
def test_paired_differences_are_those_of_scipy(pairs: list[tuple[int, int]]) -> None:
    from scipy import stats

    lines = [
        line(count, alpha=alpha, seed=seed)
        for seed, pair in enumerate(pairs)
        for alpha, count in zip((0.1, 0.9), pair, strict=True)
    ]
    (found,) = sweeps.paired(lines, {"train.seed": range(len(pairs)), "train.alpha": [0.1, 0.9]})
    first, second = [[count / 100 for count in side] for side in zip(*pairs, strict=True)]
    assert (found.first, found.second, found.seeds) == (0.1, 0.9, len(pairs))
    assert found.difference == pytest.approx(sum(second) / len(pairs) - sum(first) / len(pairs))
    if len({after - before for before, after in pairs}) > 1:
        interval = stats.ttest_rel(second, first).confidence_interval(0.95)
        assert found.interval == pytest.approx((max(-1, interval.low), min(1, interval.high)))


def test_only_seeds_that_both_have_are_paired() -> None:
    lines = [line(50, alpha=0.1, seed=0), line(60, alpha=0.9, seed=0), line(90, alpha=0.9, seed=1)]
    over = {"train.alpha": [0.1, 0.9], "train.seed": [0, 1]}
    (found,) = sweeps.paired(lines, over)
    assert (found.seeds, found.difference, found.interval) == (1, pytest.approx(0.1), None)
    assert sweeps.paired(lines[:1], over) == []
    assert sweeps.paired(lines, {**over, "train.epochs": [1, 2]}) == []
    assert sweeps.paired(lines, {**over, "train.alpha": [0.1, 0.5, 0.9]}) == []


def test_one_seed_has_no_interval_over_seeds() -> None:
    (found,) = sweeps.pooled([line(50, alpha=0.1)])
    assert (found.deviation, found.interval, found.seeds) == (None, None, [])
    with pytest.raises(ValueError, match="no mean"):
        sweeps.spread([], 0, 1)


def test_settings_and_eval_sets_are_kept_apart() -> None:
    lines = [
        line(10 * n, eval_set=name, alpha=alpha, seed=n) for name in ("a", "b") for alpha in (1, 2) for n in (1, 2)
    ]
    found = sweeps.pooled(lines)
    assert [(one.eval_set, one.knobs) for one in found] == [
        (name, {"train.alpha": alpha}) for name in ("a", "b") for alpha in (1, 2)
    ]
    assert all(math.isclose(one.mean, 0.15) for one in found)


# Plots


def test_curves_are_in_order_with_seeds_as_points() -> None:
    over = {"train.alpha": [0.9, 0.1], "train.label": ["gold", "vote"], "train.seed": [0, 1]}
    lines = [
        line(50 + seed, alpha=a, label=b, seed=seed)
        for a in over["train.alpha"]
        for b in over["train.label"]
        for seed in (0, 1)
    ]
    found = sweeps.curves(sweeps.pooled(lines), "train.alpha", over)
    assert [(curve.label, [spot.at for spot in curve.spots]) for curve in found] == [
        ("train.label=gold", [0.1, 0.9]),
        ("train.label=vote", [0.1, 0.9]),
    ]
    assert found[0].spots[0].single == (0.5, 0.51)
    by_label = sweeps.curves(sweeps.pooled(lines), "train.label", over)
    assert [[spot.at for spot in curve.spots] for curve in by_label] == [["gold", "vote"]] * 2


@pytest.mark.parametrize("values", [["<b>&\"'</b>", "$x^2$", "\x1b[31m\n"], [1e-5, 1e-4, 1.0], [0.5]])
def test_a_plot_shows_any_text_as_it_is_and_is_always_the_same(tmp_path: Path, values: list[Any]) -> None:
    names = ["<script>alert(1)</script>", "$\\frac{", "标签"]
    curves = [
        sweep_plot.Curve(name, tuple(sweep_plot.Spot(value, 0.5, (0.4, 0.6), (0.5, 0.52)) for value in values))
        for name in names
    ]
    first = sweep_plot.draw(tmp_path / "one", "on <test> $", "train.alpha", curves, "bars: <&>")
    again = sweep_plot.draw(tmp_path / "two", "on <test> $", "train.alpha", curves, "bars: <&>")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    svg, png = first
    assert png.read_bytes().startswith(b"\x89PNG")
    drawn = ElementTree.parse(svg)
    texts = {element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")}
    assert {*names, "on <test> $", "bars: <&>"} <= texts
    assert not {element.tag.rpartition("}")[2] for element in drawn.iter()} & {"script", "b"}
    assert b"\x1b" not in svg.read_bytes()
    if isinstance(values[0], str):
        assert {values[0], values[1], "\\x1b[31m\\x0a"} <= texts
