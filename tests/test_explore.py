"""Looking before a run: a dry run counts what the run would, and planted wrong labels are the first suspects."""

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import pytest

from pipeline import outputs, processes, quality
from pipeline.config import load
from pipeline.explore import DryRun, Suspects, dry_run, suspects
from pipeline.files import InputError
from pipeline.records import Example
from pipeline.runner import run
from tests.conftest import TOPICS, write_jsonl, write_project
from tests.test_cli import call

FILTERS = "quality.filters=[{min_words: 4}, label_in_set, repeats_label, {max_words: 9}]"
SAID = [
    "It speaks of a thing and more. So the answer is sports.",
    "Sports. So the answer is sports.",  # short, and repeats the label
    "Plants. So the answer is gardening.",  # short, and the label is outside the set
    "It speaks of plants and of more. So the answer is gardening.",
    "The answer is sports because sports. So the answer is sports.",  # repeats the label
    "It goes on and on and on and on and on. So the answer is food.",  # long
]


@pytest.fixture
def mixed(project: Path) -> Path:
    """The small project, its answers taken from ``SAID`` in turn, run as far as quality's input."""
    rows = [json.loads(line) for line in (project.parent / "inputs.jsonl").read_text().splitlines()]
    write_jsonl(
        project.parent / "completions.jsonl",
        [{"id": row["id"], "completion": said} for row, said in zip(rows, itertools.cycle(SAID), strict=False)],
    )
    run(project, until="decontaminate")
    return project


def looked_at(project: Path, stage: str, *overrides: str) -> DryRun:
    return dry_run(load(project, overrides), stage, overrides)


def files(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_quality_is_counted_as_the_filters_say_and_nothing_is_written(mixed: Path) -> None:
    before = files(mixed.parent)
    found = looked_at(mixed, "quality", FILTERS)
    assert files(mixed.parent) == before
    config = load(mixed, [FILTERS])
    calls = config.stages["quality"]["filters"]
    folder = outputs.current(config.run, "decontaminate")
    assert folder is not None
    rows = [[call.name for call in calls if quality.judge(example, call)] for example in outputs.read(folder, Example)]
    assert Counter(map(len, rows)).keys() == {0, 1, 2}
    configured = [reason for reason in found.reasons if reason.configured]
    assert [reason.name for reason in configured] == [call.name for call in calls]
    for reason in configured:
        assert reason.alone == sum(reason.name in row for row in rows) > 0
        assert reason.first == sum(row[:1] == [reason.name] for row in rows)
        assert reason.only == sum(row == [reason.name] for row in rows)
        assert {drop["reason"] for drop in reason.examples} == {reason.name}
        assert len(reason.examples) == min(2, reason.alone)
    pairs = Counter(pair for row in rows for pair in itertools.combinations(row, 2))
    assert {(one, other): count for one, other, count in found.together} == pairs
    assert (found.rows, found.dropped) == (len(rows), sum(map(bool, rows)))


def test_what_a_dry_run_says_the_run_does(mixed: Path) -> None:
    for stage in ("quality", "dedup", "decontaminate"):
        found = looked_at(mixed, stage, FILTERS)
        (outcome,) = run(mixed, [stage], overrides=[FILTERS], force=True)
        counts = outcome.manifest.counts
        assert (found.rows, found.dropped) == (counts.rows_in, counts.dropped)
        assert {reason.name: reason.first for reason in found.reasons if reason.first} == counts.reasons
        assert counts.dropped


def test_a_filter_that_is_not_configured_is_tried_with_its_defaults(mixed: Path) -> None:
    found = looked_at(mixed, "quality", "quality.filters=[{min_words: 4}]")
    others = {reason.name: reason for reason in found.reasons if not reason.configured}
    assert "min_words" not in others
    inside = others["label_in_set"]
    assert (inside.alone, inside.only, inside.first) == (10, 5, 0)
    assert inside.settings == {"labels": ["sports", "food"]}
    assert found.not_tried["min_judge_score"].startswith("min_judge_score needs a judge")


def test_several_processes_count_the_same(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = {stage: looked_at(mixed, stage, FILTERS) for stage in ("quality", "dedup")}
    monkeypatch.setattr(processes, "WORTH_IT", 0)
    config = load(mixed, [FILTERS])
    assert {stage: dry_run(config, stage, [FILTERS], processes=2) for stage in alone} == alone


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("parse", "parse: --dry-run is for train and for filter stages; here these are dedup, decontaminate, quality"),
        ("train", "this stage is switched off"),
        ("qualitty", "qualitty: unknown stage"),
        ("quality", "quality: reads decontaminate, which has no result yet"),
    ],
)
def test_what_cannot_be_looked_at_is_one_line(project: Path, stage: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        looked_at(project, stage)


def test_the_command_line_shows_a_dry_run(mixed: Path) -> None:
    shown = call(mixed, "run", "quality", "dedup", "--dry-run", "--set", FILTERS)
    assert shown.returncode == 0
    lines = shown.stdout.splitlines()
    assert lines[0].endswith("dropped (85.2%); nothing was written")
    assert any(line.split() == ["min_words", "minimum", "4", "9", "33.3%", "9", "0"] for line in lines)
    assert any(line.split() == ["min_words,", "label_in_set", "5", "18.5%"] for line in lines)
    assert any(line.startswith("label_in_set: ") and "'gardening' is not among sports, food" in line for line in lines)
    assert any(line.startswith("dedup: of ") for line in lines)
    told = json.loads(call(mixed, "run", "quality", "--dry-run", "--set", FILTERS, "--json").stdout)
    assert [one["stage"] for one in told] == ["quality"]
    assert not (mixed.parent / "runs/small/quality").exists()
    for arguments in ([], ["quality", "--force"], ["--until", "quality"]):
        assert call(mixed, "run", *arguments, "--dry-run").returncode == 2


def test_a_wrong_reason_lists_those_there_are(mixed: Path) -> None:
    run(mixed, ["quality"], overrides=[FILTERS])
    told = call(mixed, "show", "quality", "--reason", "min_wrods").stderr
    assert "nothing was dropped for 'min_wrods'; did you mean 'min_words'? it was for: min_words 9, " in told
    shown = call(mixed, "show", "quality", "--reason", "min_words", "-n", "1").stdout
    assert "evidence:\n    why: the rationale has 1 words, fewer than 4\n" in shown
    assert "    settings:\n        minimum: 4\n" in shown


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """A run of 60 rows whose words tell their topic, and the five of them whose answers were swapped."""
    project = write_project(tmp_path_factory.mktemp("noisy") / "project")
    random.seed(3)
    topics = list(TOPICS)
    rows = [
        {"id": f"n{n}", "text": " ".join(random.sample(TOPICS[topics[n % 2]], 6)), "topic": topics[n % 2]}
        for n in range(60)
    ]
    swapped = {"n3", "n10", "n25", "n40", "n51"}
    labels = {row["id"]: topics[(topics.index(row["topic"]) + (row["id"] in swapped)) % 2] for row in rows}
    write_jsonl(project.parent / "inputs.jsonl", rows)
    write_jsonl(
        project.parent / "completions.jsonl",
        [{"id": name, "completion": f"It speaks of it. So the answer is {label}."} for name, label in labels.items()],
    )
    run(project, until="quality", overrides=["dedup=false", "decontaminate=false"])
    return project, swapped


def doubted(project: Path, **more: int) -> Suspects:
    return suspects(load(project, ["dedup=false", "decontaminate=false"]), **more)


def test_swapped_labels_are_the_suspects(noisy: tuple[Path, set[str]]) -> None:
    project, swapped = noisy
    found = doubted(project)
    assert (found.stage, found.by, found.rows, found.total) == ("quality", "words", 60, 5)
    assert {row.id for row in found.suspects} == swapped
    assert all(row.neighbours == row.gold != row.label for row in found.suspects)
    assert [row.score for row in found.suspects] == sorted((row.score for row in found.suspects), reverse=True)
    told = found.agreement
    assert told is not None
    assert (told.rows, told.wrong, told.suspects, told.found, told.first) == (60, 5 / 60, 1.0, 1.0, {})


def test_a_score_can_be_worked_out_from_its_evidence(noisy: tuple[Path, set[str]]) -> None:
    found = doubted(noisy[0], k=3)
    for row in found.suspects:
        weights = Counter[str]()
        for near in row.nearest:
            weights[near.label] += near.similarity  # type: ignore[assignment]
        assert row.neighbours == max(weights, key=weights.__getitem__)
        assert row.votes == sum(near.label == row.neighbours for near in row.nearest)
        assert row.score == pytest.approx((weights[row.neighbours] - weights[row.label]) / weights.total(), abs=1e-3)
    assert found.suspects
    first = doubted(noisy[0], k=3, number=2)
    assert (first.suspects, first.total) == (found.suspects[:2], found.total)


def test_the_command_line_shows_suspects(noisy: tuple[Path, set[str]]) -> None:
    project, swapped = noisy
    off = project.read_text().replace("dedup: {near: 0.8}", "dedup: false")
    project.write_text(off.replace("decontaminate: {ngram: 8}", "decontaminate: false"))
    shown = call(project, "suspects", "-n", "1")
    assert shown.returncode == 0
    lines = shown.stdout.splitlines()
    assert lines[0].split(":")[0] in swapped
    assert "quality: 5 of 60 rows are suspects by the words they share" in shown.stdout
    assert "nothing was dropped" in shown.stdout
    assert lines[-1] == (
        "measured against gold: 8.3% of the 60 rows that have it have another label; "
        "of the suspects 100.0%, and 100.0% of all such rows are among them"
    )
    assert {row["id"] for row in json.loads(call(project, "suspects", "--json").stdout)["suspects"]} == swapped


@pytest.mark.parametrize(
    ("stage", "overrides", "message"),
    [
        (None, [], "no filter stage has a result yet"),
        ("ingest", [], "ingest: holds no examples; the stages that do are parse, dedup, decontaminate, quality"),
        ("parse", ["parse.label_type=number"], "every row has answers of its own here \\(number\\)"),
    ],
)
def test_where_nothing_can_be_suspected_is_one_line(
    project: Path, stage: str | None, overrides: list[str], message: str
) -> None:
    run(project, until="parse")
    with pytest.raises(InputError, match=message):
        suspects(load(project, overrides), stage)
