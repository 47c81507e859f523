import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.outputs import RowWriter
from pipeline.records import Drop, TrainingRow
from pipeline.shard import data_card, shard, split, student_prompt
from tests.rows import example

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
