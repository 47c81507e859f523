import json
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import labels, outputs
from pipeline.audit import audit
from pipeline.config import load, verify
from pipeline.files import InputError
from pipeline.outputs import RowWriter
from pipeline.records import Drop, Example, TrainingRow, Vote
from pipeline.runner import run
from pipeline.shard import completions, data_card, said_label, shard, split, student_prompt, terms_of
from pipeline.train import read_shards
from tests.rows import example, votes

BOTH = ["label", "rationale"]
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def test_an_example_becomes_a_row_for_each_task() -> None:
    label, rationale = shard([example("r1", input="Late goal", label="sports", rationale="A goal.")], targets=BOTH)
    assert (label.id, label.example, label.task, label.prompt, label.completion) == (
        "r1/label",
        "r1",
        "label",
        "[label] Late goal",
        "sports",
    )
    assert (rationale.id, rationale.example, rationale.task) == ("r1/rationale", "r1", "rationale")
    assert (rationale.prompt, rationale.completion) == ("[rationale] Late goal", "A goal.")
    assert label.split == rationale.split


def test_a_student_of_free_responses_gets_the_bare_input_and_the_whole_text() -> None:
    (row,) = shard(
        [example("r1", input="Late goal", text="It was late.", label=None, rationale=None)], targets=["response"]
    )
    assert (row.id, row.prompt, row.completion) == ("r1/response", "Late goal", "It was late.")
    assert student_prompt("response", "Late goal") == "Late goal"


def test_an_example_that_lacks_a_target_is_dropped_with_all_its_rows() -> None:
    given = [example("r1", rationale=None), example("r2", label=" "), example("r3")]
    found = list(shard(given, targets=BOTH))
    drops = [row for row in found if isinstance(row, Drop)]
    assert [(drop.id, drop.reason) for drop in drops] == [
        ("r1/label", "no_rationale"),
        ("r1/rationale", "no_rationale"),
        ("r2/label", "no_label"),
        ("r2/rationale", "no_label"),
    ]
    assert drops[0].evidence == {"missing": ["rationale"], "response": "r1#0"}
    assert [row.id for row in found if isinstance(row, TrainingRow)] == ["r3/label", "r3/rationale"]


@given(
    st.lists(st.tuples(TEXT, TEXT | st.none(), TEXT | st.none()), max_size=20),
    st.sampled_from([["label"], ["rationale"], BOTH, ["response"]]),
    st.integers(0, 3),
)
def test_every_example_is_accounted_for_and_judged_by_itself(fields: list, targets: list, seed: int) -> None:
    examples = [
        example(f"r{number}", input=text, label=label, rationale=why)
        for number, (text, label, why) in enumerate(fields)
    ]
    found = list(shard(examples, validation=0.4, seed=seed, targets=targets))
    assert [row.id for row in found] == [f"{one.id}/{target}" for one in examples for target in targets]
    assert found == [row for one in examples for row in shard([one], validation=0.4, seed=seed, targets=targets)]
    splits = {(row.example, row.split) for row in found if isinstance(row, TrainingRow)}
    assert len(splits) == len({name for name, _ in splits})


def test_the_split_takes_its_share_and_the_seed_another_draw() -> None:
    names = [f"r{number}" for number in range(20_000)]
    drawn = [split(name, validation=0.1, seed=0) for name in names]
    assert Counter(drawn)["validation"] == pytest.approx(2000, abs=200)
    assert drawn != [split(name, validation=0.1, seed=1) for name in names]
    assert {split(name, validation=0.0, seed=0) for name in names} == {"train"}
    more = [split(name, validation=0.2, seed=0) for name in names]
    assert all(later == "validation" for now, later in zip(drawn, more, strict=True) if now == "validation")


def completions_of(*examples: Example, targets: list = BOTH, **settings: Any) -> list[str]:
    """What is trained on, and in brackets why an example is not, one of each example's rows after the other."""
    found = shard(examples, targets=targets, **settings)
    return [row.completion if isinstance(row, TrainingRow) else f"({row.reason})" for row in found]


def test_the_label_that_is_trained_on_is_the_vote_the_true_one_or_a_teachers() -> None:
    said = [
        Vote(response=f"r1#{n}", request=f"q{n}", teacher=name, label=label)
        for n, (name, label) in enumerate([("small", "food"), ("large", None), ("large", "travel"), ("large", "food")])
    ]
    one = example("r1", label="food", gold=" Sports. ", votes=said)
    given: dict[str, Any] = {
        "targets": ["label"],
        "labels": ["sports", "food", "travel"],
        "teachers": ["small", "large"],
    }
    assert completions_of(one, **given) == ["food"]
    assert completions_of(one, label="gold", **given) == ["sports"]
    assert completions_of(one, label="teacher", **given) == ["food"]
    assert completions_of(one, label="teacher", teacher="large", **given) == ["travel"]
    assert completions_of(one.changed(votes=said[:2]), label="teacher", teacher="large", **given) == [
        "(no_teacher_label)"
    ]


@pytest.mark.parametrize(
    ("kind", "gold", "choices", "label"),
    [
        ("choice", "(b)", ["river", "bank"], "bank"),
        ("number", "$1,200.50", None, "1200.5"),
        ("equation", "x = ((84.0/2))", None, "84 / 2"),
        ("text", "  Two  words. ", None, "Two words"),
    ],
)
def test_true_labels_are_put_into_their_one_spelling(kind: Any, gold: str, choices: Any, label: str) -> None:
    one = example("r1", gold=gold, choices=choices)
    assert completions_of(one, targets=["label"], label="gold", label_type=kind) == [label]


@pytest.mark.parametrize(("gold", "reason"), [(None, "no_gold"), (" ", "no_gold"), ("gardening", "gold_not_in_set")])
def test_an_example_without_a_true_label_is_dropped(gold: str | None, reason: str) -> None:
    one = example("r1", label="sports", gold=gold)
    label, rationale = shard([one], label="gold", labels=["sports", "food"], targets=BOTH)
    assert isinstance(label, Drop)
    assert isinstance(rationale, Drop)
    assert (label.id, label.reason, rationale.reason) == ("r1/label", reason, reason)
    assert label.evidence == {"voted": "sports", "gold": gold, "response": "r1#0"} | (
        {"options": ["sports", "food"]} if gold == "gardening" else {}
    )


def test_a_rationale_is_not_trained_with_a_label_that_it_does_not_argue_for() -> None:
    right = example("r1", label="sports", gold="Sports", rationale="A goal.")
    wrong = example("r2", label="sports", gold="food", rationale="A goal.")
    given: dict[str, Any] = {"label": "gold", "labels": ["sports", "food"]}
    other = "(rationale_of_other_label)"
    assert completions_of(right, wrong, **given) == ["sports", "A goal.", other, other]
    assert completions_of(right, wrong, targets=["rationale"], **given) == ["A goal.", other]
    assert completions_of(right, wrong, targets=["response"], **given) == [right.text, other]
    assert completions_of(right, wrong, targets=["label"], **given) == ["sports", "food"]
    kept = completions_of(right, wrong, rationale_of_other_label="keep", **given)
    assert kept == ["sports", "A goal.", "food", "A goal."]
    drop = next(shard([wrong], targets=BOTH, **given))
    assert isinstance(drop, Drop)
    said = {"voted": "sports", "gold": "food", "response": "r2#0", "trained_on": "food", "label_from": "gold"}
    assert drop.evidence == said


LABELS = st.sampled_from(["sports", "food", "Food", None])


@given(LABELS.filter(bool), LABELS, st.lists(LABELS, max_size=3), st.sampled_from(["vote", "gold", "teacher"]))
def test_with_its_rationale_goes_the_label_that_it_argues_for(
    label: str, gold: str | None, said: list, source: Any
) -> None:
    one = example("r1", label=label, gold=gold, votes=votes(*said), rationale="A reason.")
    found = list(shard([one], targets=BOTH, label=source, teachers=["a teacher"]))
    assert [row.id for row in found] == ["r1/label", "r1/rationale"]
    first = found[0]
    if isinstance(first, TrainingRow):
        assert labels.same(first.completion, label, "text")


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"label": "gold", "gold": None}, "stages.shard.label: gold needs task.gold"),
        ({"teacher": "small"}, "stages.shard.teacher: it counts only with label: teacher"),
        (
            {"label": "teacher", "teacher": "smal", "teachers": ["small"]},
            "stages.shard.teacher: .*did you mean 'small'",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(settings: dict, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        shard([], targets=BOTH, **settings)


def test_what_does_not_go_together_is_found_before_a_run(project: Path) -> None:
    with pytest.raises(InputError, match=r"stages\.yaml:\d+: stages\.shard\.teacher: no such teacher"):
        verify(load(project, ["shard.label=teacher", "shard.teacher=x"]))


def test_difficulty_is_how_much_the_votes_disagree_where_there_are_several() -> None:
    told = [
        example("r1", votes=votes("a", "b"), entropy=1.0),
        example("r2", votes=votes("a", "a"), entropy=0.0),
        example("r3", votes=votes("a"), entropy=0.0),
        example("r4", votes=votes("a", "a"), entropy=0.0, rationalised=True),
        example("r5", votes=votes("a", "a"), entropy=None),
    ]
    rows = [row for row in shard(told, targets=BOTH) if isinstance(row, TrainingRow)]
    assert [row.difficulty for row in rows] == [1.0, 1.0, 0.0, 0.0, None, None, None, None, None, None]


def test_soft_labels_stand_in_the_row_of_the_label_beside_the_voted_one() -> None:
    told = [example("r1", label="a", soft_labels={"a": 0.75, "b": 0.25}), example("r2", label="a")]
    rows = list(shard(told, targets=BOTH, label="soft", labels=["a", "b"]))
    assert [row.completion for row in rows[:2]] == ["a", told[0].rationale]
    assert json.loads(rows[0].distribution) == {"a": 0.75, "b": 0.25}
    assert rows[1].distribution is None
    assert [row.reason for row in rows[2:]] == ["no_soft_labels"] * 2
    assert {row.distribution for row in shard(told, targets=BOTH, labels=["a", "b"])} == {None}


@given(
    st.text(min_size=1).filter(str.strip) | st.just("It is so. So the answer is b. But no."),
    st.sampled_from(["a", "7 * 3", "x. y"]),
)
def test_a_chain_of_thought_ends_in_the_label_that_is_read_from_it(rationale: str, label: str) -> None:
    (row,) = shard([example("r1", label=label, rationale=rationale)], targets=["chain_of_thought"])
    assert row.prompt == example("r1").input
    assert row.completion.startswith(rationale.strip())
    assert said_label(row.completion) == label
    assert said_label("I do not know.") == ""


def test_shards_from_before_the_column_are_trained_on_as_before(tmp_path: Path) -> None:
    rows = [row for row in shard([example("r1"), example("r2")], targets=BOTH) if isinstance(row, TrainingRow)]
    lines = [
        {name: value for name, value in row.plain().items() if name not in ("difficulty", "distribution")}
        for row in rows
    ]
    (tmp_path / "train-00000.jsonl").write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    assert list(read_shards(tmp_path)) == rows


@pytest.mark.parametrize("label", ["vote", "gold"])
def test_the_audit_knows_which_label_was_trained_on(project: Path, label: str) -> None:
    rows = [json.loads(line) for line in (project.parent / "inputs.jsonl").read_bytes().splitlines()]
    rows[2]["topic"] = "food"  # the teacher says sports
    (project.parent / "inputs.jsonl").write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    outcome = run(load(project, [f"shard.label={label}", "shard.rationale_of_other_label=keep"]))[-1]
    (trained,) = [row.completion for row in outputs.read(outcome.folder, TrainingRow) if row.id == "r2/label"]
    assert trained == {"vote": "sports", "gold": "food"}[label]
    assert list(audit(project.parent / "runs/small")) == []
    assert outcome.manifest.features["difficulty"] == "float64"
    again = run(load(project, [f"shard.label={label}"]))[-1]
    assert again.manifest.counts.reasons == ({"rationale_of_other_label": 2} if label == "gold" else {})
    assert list(audit(project.parent / "runs/small")) == []


def test_the_terms_of_an_older_manifest_are_the_defaults() -> None:
    old = {"validation": 0.05, "rows_per_shard": 50_000, "seed": 0, "targets": BOTH}
    assert completions(example("r1", label="sports", rationale="A goal."), terms_of(old)) == {
        "label": "sports",
        "rationale": "A goal.",
    }


def write_shards(folder: Path, rows: list[TrainingRow], name: str = "topics", details: dict | None = None) -> None:
    folder.mkdir()
    counts = Counter(row.split for row in rows)
    for part in counts:
        writer = RowWriter(folder, part, 7)
        for row in rows:
            if row.split == part:
                writer.write(row.line())
        writer.close()
    drops = RowWriter(folder, "dropped", None)
    drops.write(Drop(id="r99", reason="no_label", evidence={"missing": ["label"]}).line())
    drops.close()
    (folder / "manifest.json").write_text("{}")
    (folder / "README.md").write_text(data_card(name, dict(counts), details or {}))


@pytest.mark.parametrize(
    "name", ["topics", 'a: "b"\n---\nconfigs: []\n', "| <script>alert(1)</script> `x` [y](z)", "ünïcode \u2028 # x"]
)
def test_the_folder_loads_as_a_data_set(tmp_path: Path, name: str) -> None:
    import datasets

    rows = list(
        shard([example(f"r{n}", rationale=f"{n} U+2028 \u2028") for n in range(40)], validation=0.3, targets=BOTH)
    )
    write_shards(tmp_path / "shards", rows, name, {"teacher": name, "settings": {name: [1, name]}})
    loaded = datasets.load_dataset(str(tmp_path / "shards"), cache_dir=str(tmp_path / "cache"))
    assert set(loaded) == {"train", "validation"}
    for part in loaded:
        assert list(loaded[part]) == [row.plain() for row in rows if row.split == part]
        assert loaded[part].features["difficulty"] == datasets.Value("float64")  # though there is none in any row


def test_loaded_rows_are_sorted_by_difficulty_in_a_line(tmp_path: Path) -> None:
    import datasets

    told = [
        example(f"r{n}", votes=votes("a", "b") if n else [], entropy=entropy)
        for n, entropy in enumerate([None, 1.0, 0.0, 0.5])
    ]
    write_shards(tmp_path / "shards", list(shard(told, validation=0.0, targets=["label"])))
    loaded = datasets.load_dataset(str(tmp_path / "shards"), split="train", cache_dir=str(tmp_path / "cache"))
    assert list(loaded.sort("difficulty")["difficulty"]) == [0.0, 0.5, 1.0, None]


def test_a_folder_without_validation_rows_loads_too(tmp_path: Path) -> None:
    import datasets

    rows = list(shard([example("r1")], validation=0.0, targets=BOTH))
    write_shards(tmp_path / "shards", rows)
    loaded = datasets.load_dataset(str(tmp_path / "shards"), cache_dir=str(tmp_path / "cache"))
    assert {part: len(loaded[part]) for part in loaded} == {"train": 2}


def test_the_card_says_what_is_there_and_no_fact_can_alter_it() -> None:
    hostile = "x |\n| evil | 1 |\n# Heading <b>"
    card = data_card(
        "topics",
        {"train": 1200, "validation": 60},
        {"teacher": hostile, "settings": {"validation": 0.05, "note": hostile}},
    )
    assert "| train | 1,200 |" in card
    assert "| validation | 60 |" in card
    assert "0.05" in card
    assert "unknown" in card
    assert "<b>" not in card
    assert not [line for line in card.splitlines() if line.startswith(("| evil", "# Heading"))]
    assert card == data_card(
        "topics",
        {"validation": 60, "train": 1200},
        {"teacher": hostile, "settings": json.loads(json.dumps({"note": hostile, "validation": 0.05}))},
    )
