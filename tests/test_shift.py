"""What filtering did: the counts are those of the rows however they are cut, and a warning stands where there is reason for one."""

import random
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import outputs, runner, shift
from pipeline.blocks import cut, judged
from pipeline.files import RunError, canonical_json
from pipeline.records import Drop, Example, Response
from pipeline.runner import run
from pipeline.shift import Figures, Truth, add, change, encoded, less, measured
from tests.chat_server import Reply, chat_server, completion
from tests.conftest import write_jsonl
from tests.rows import example, response
from tests.test_judge import add_judge, score

TRUTH = Truth()
LABELS = st.none() | st.sampled_from(["sports", "food", "", "Sports"]) | st.text(max_size=100)
EXAMPLES = st.lists(
    st.builds(
        partial(example, "r"),
        input=st.text(max_size=30) | st.integers(4000, 9000).map("x".__mul__),
        label=LABELS,
        gold=LABELS,
        rationale=st.none() | st.text(max_size=30),
        text=st.text(max_size=30),
        entropy=st.none() | st.floats(0, 3),
        agreement=st.none() | st.floats(0, 1),
        slices=st.dictionaries(st.sampled_from(["source", "x.y", "ä"]), st.sampled_from(["", "wiki", "a\nb"])),
        choices=st.none() | st.just(["sports", "food"]),
    ),
    max_size=25,
)


def summed(*blocks: list[Example]) -> Figures:
    total = Figures()
    for block in blocks:
        add(total, measured(block, TRUTH))
    return total


def labelled(before: dict[str, int], dropped: dict[str, int], name: str = "label") -> shift.Shift:
    """What became of rows of which only labels are known."""
    return change(
        Figures(sum(before.values()), {name: Counter(before)}), Figures(sum(dropped.values()), {name: Counter(dropped)})
    )


@given(EXAMPLES, st.lists(st.integers(0, 25), max_size=4), st.randoms())
def test_it_does_not_matter_how_rows_are_cut_into_blocks(
    rows: list[Example], cuts: list[int], chance: random.Random
) -> None:
    dropped = [chance.random() < 0.4 for _ in rows]
    gone = [row for row, is_dropped in zip(rows, dropped, strict=True) if is_dropped]
    left = [row for row, is_dropped in zip(rows, dropped, strict=True) if not is_dropped]
    blocks = [rows[start:end] for start, end in pairwise([0, *sorted(cuts), len(rows)])]
    chance.shuffle(blocks)
    whole = summed(rows)
    assert encoded(summed(*blocks)) == encoded(whole)
    assert encoded(less(whole, summed(gone))) == encoded(summed(left))
    found = canonical_json(change(whole, summed(gone)).model_dump(mode="json"))
    assert found == canonical_json(change(summed(*blocks), summed(*([row] for row in gone))).model_dump(mode="json"))


@given(st.lists(st.sampled_from("abcdef"), max_size=20), st.lists(st.integers(0, 20), max_size=4), st.randoms())
def test_nor_where_there_are_too_many_labels(labels: list[str], cuts: list[int], chance: random.Random) -> None:
    rows = [example(label=label) for label in labels]
    blocks = [rows[start:end] for start, end in pairwise([0, *sorted(cuts), len(rows)])]
    chance.shuffle(blocks)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shift, "MOST", 3)
        whole, gone = summed(*blocks), summed(rows[::2])
        assert whole.counts.get("label", {}) == (Counter(labels) if len(set(labels)) <= 3 else {None: len(labels)})
        left = less(whole, gone).counts.get("label", Counter())
        assert left.total() == len(rows[1::2]) and min(left.values(), default=1) > 0


@given(EXAMPLES)
def test_counts_are_read_as_they_were_written(tmp_path_factory: pytest.TempPathFactory, rows: list[Example]) -> None:
    folder = tmp_path_factory.mktemp("counts")
    (folder / shift.COUNTS).write_text(encoded(summed(rows)), encoding="utf-8")
    assert shift.read(folder) == summed(rows)


@pytest.mark.parametrize("content", [None, b"", b"[]", b'{"rows": 1, "counts": {"label": [["a", "b"]]}}', b"\xff"])
def test_damaged_counts_are_one_line(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / shift.COUNTS).write_bytes(content)
    with pytest.raises(RunError, match=r"counts\.json: cannot be read .*audit"):
        shift.read(tmp_path)


def test_what_is_counted() -> None:
    rows = [
        example(label="sports", gold="Sports", rationale="four", input="abc", entropy=0.0, agreement=1.0),
        example(label="food", gold="sports", rationale=None, input="abcde", entropy=0.9183, agreement=2 / 3),
        example(label="food", gold=None, rationale="", input="ab", entropy=0.9183, agreement=2 / 3),
        example(label=None, gold="food", rationale="four", input="abcd", slices={"source": "wiki"}),
    ]
    found = change(summed(rows), summed(rows[1:2]))
    assert (found.rows.before, found.rows.after) == (4, 3)
    assert [value.model_dump() for value in found.values["label"].top] == [
        {"name": "food", "before": 2, "after": 1},
        {"name": "sports", "before": 1, "after": 1},
    ]
    assert (found.values["label"].before, found.values["label"].after, found.values["label"].moved) == (3, 2, None)
    assert [value.name for value in found.values["slices.source"].top] == ["wiki"]
    assert (found.told.before, found.right.before, found.told.after, found.right.after) == (2, 1, 1, 1)
    lengths = found.measures["input"]
    assert lengths.before.model_dump() == {"rows": 4, "mean": 3.5, "quartiles": (2.0, 3.0, 4.0)}
    assert lengths.after is not None and lengths.after.mean == 3.0
    assert lengths.dropped is not None and lengths.dropped.quartiles == (5.0, 5.0, 5.0)
    assert found.measures["rationale"].before.rows == 3
    assert found.measures["entropy"].before.mean == 0.612
    assert [(value.name, value.before, value.after) for value in found.difficulty] == [("0", 1, 1), ("0.5 to 1", 2, 1)]
    assert found.warnings == []


def test_labels_are_right_as_the_task_reads_them() -> None:
    sums = [example(label="8 - 3", gold="( 8.0 - 3.0 )"), example(label="8 - 4", gold="( 8.0 - 3.0 )")]
    assert measured(sums, Truth("equation")).counts["right"] == {True: 1, False: 1}
    letter = [example(label="bank", gold="(b)", choices=["river", "bank"])]
    assert measured(letter, Truth("choice")).counts["right"] == {True: 1}


def test_responses_are_counted_by_what_they_have() -> None:
    found = measured([response("So it is.", gold="food", slices={"source": "wiki"})], TRUTH)
    assert set(found.counts) == {"gold", "input", "text", "slices.source"}


@given(st.integers(4096, 10**9))
def test_long_texts_are_counted_almost_exactly(length: int) -> None:
    assert abs(shift._coarse(length) - length) <= length * 0.0003
    assert shift._coarse(4095) == 4095


def test_only_the_most_frequent_labels_are_named() -> None:
    found = labelled({f"label {n:03}": 100 - n // 2 for n in range(80)}, {"label 000": 30, "label 079": 10}).values[
        "label"
    ]
    assert [value.name for value in found.top] == [f"label {n:03}" for n in range(50)]
    assert found.others is not None
    assert found.others.before == sum(100 - n // 2 for n in range(50, 80))
    assert found.others.after == found.others.before - 10
    assert found.distinct == 80


def test_a_label_for_each_row_is_no_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shift, "MOST", 100)
    rows = [example(label=f"{n} + {n}") for n in range(150)]
    found = change(summed(rows[:70], rows[70:]), summed(rows[:60])).values["label"]
    assert (found.before, found.after, found.distinct, found.top, found.moved, found.p) == (
        150,
        90,
        None,
        [],
        None,
        None,
    )
    assert found.others is not None and (found.others.before, found.others.after) == (150, 90)


def test_free_responses_pass() -> None:
    rows = [example(label=None, rationale=None, gold=None) for _ in range(50)]
    found = change(summed(rows), summed(rows[:40]))
    assert found.warnings == [] and found.values == {} and found.difficulty == []
    assert change(Figures(), Figures()).warnings == []


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), min_size=2, max_size=8))
def test_the_test_is_that_of_scipy(cells: list[tuple[int, int]]) -> None:
    from scipy.stats import chi2_contingency

    found = shift._tested([(kept + gone, gone) for kept, gone in cells])
    kept, gone = sum(kept for kept, _ in cells), sum(gone for _, gone in cells)
    if min(kept, gone) < shift.ROWS:
        assert found is None
        return
    smallest = min(kept, gone)
    if all((left + lost) * smallest >= 5 * (kept + gone) for left, lost in cells):
        assert found is not None
        expected = chi2_contingency([list(side) for side in zip(*cells, strict=True)], correction=False)
        assert found[1] == pytest.approx(expected.pvalue, rel=0.06, abs=1e-300)
        assert found[2] == pytest.approx((expected.statistic / (kept + gone)) ** 0.5, abs=1e-4)
    elif found is not None:
        assert all(0 <= figure <= 1 for figure in found)


def dropped_at_random(before: dict[str, int], share: float, seed: int) -> dict[str, int]:
    chance = random.Random(seed)
    return {name: sum(chance.random() < share for _ in range(rows)) for name, rows in before.items()}


def test_a_planted_shift_is_told_from_a_random_drop_of_the_same_size() -> None:
    before = {"sports": 400, "food": 400, "business": 400, "technology": 400, "travel": 400}
    planted = dict.fromkeys(before, 20) | {"travel": 160}
    (warning,) = labelled(before, planted).warnings
    assert warning.startswith("the labels shift by 6.4 points (travel 20.0% -> 13.6%, ")
    (warning,) = labelled(before, planted, "gold").warnings
    assert warning.startswith("the true labels shift by ")
    for seed in range(200):
        assert labelled(before, dropped_at_random(before, 240 / 2000, seed)).warnings == []


def test_a_million_rows_do_not_cry_wolf() -> None:
    before = {"yes": 500_000, "no": 500_000}
    found = labelled(before, {"yes": 52_000, "no": 50_000})
    assert found.values["label"].p is not None and found.values["label"].p < 1e-9  # significant, but no matter
    assert found.warnings == []
    assert labelled(before, {"yes": 120_000, "no": 50_000}).warnings != []


def test_many_small_labels_do_not_cry_wolf_either() -> None:
    before = {f"label {n}": 1 + n % 40 for n in range(2000)}
    for seed in range(30):
        assert labelled(before, dropped_at_random(before, 0.35, seed)).warnings == []
    lost = dropped_at_random(before, 0.35, 0) | {"label 39": 40}
    assert labelled(before, lost).warnings == ["more than 50% of a label goes: label 39 (40 of 40)"]


def test_where_most_rows_go_no_label_is_singled_out() -> None:
    assert labelled({"a": 100, "b": 100}, {"a": 80, "b": 78}).warnings == []
    assert labelled({"a": 100, "b": 100}, {"a": 100, "b": 100}).warnings == []


def test_few_rows_tell_nothing() -> None:
    assert labelled({"a": 19, "b": 300}, {"a": 19}).warnings == []
    assert labelled({"a": 20, "b": 300}, {"a": 10}).warnings == []
    (warning,) = labelled({"a": 20, "b": 300}, {"a": 11}).warnings
    assert warning == "more than 50% of a label goes: a (11 of 20)"


def test_what_is_mostly_gone_is_named_the_worst_first() -> None:
    before = {f"s{n}": 100 for n in range(20)}
    found = labelled(before, {"s0": 60, "s1": 51, "s2": 90, "s3": 60, "s4": 50}, "slices.source")
    assert found.warnings == [
        "more than 50% of a slice by source goes: s2 (90 of 100), s0 (60 of 100), s3 (60 of 100) and 1 more"
    ]


def hardness(kept: dict[int, int], dropped: dict[int, int]) -> list[str]:
    """Warnings by how many rows of which entropy (thousandths of a bit) were kept and dropped."""
    gone = Figures(sum(dropped.values()), {"entropy": Counter(dropped)})
    return change(Figures(sum(kept.values()) + gone.rows, {"entropy": Counter(kept) + Counter(dropped)}), gone).warnings


def test_a_filter_that_keeps_only_easy_rows_is_named() -> None:
    assert hardness({0: 300, 971: 30}, {0: 10, 971: 60}) == [
        "mostly hard rows go: the dropped have a mean vote entropy of 0.83 bits, the kept of 0.09"
    ]
    assert hardness({0: 300, 971: 30}, {0: 60, 971: 10}) == []
    assert hardness({0: 30, 971: 300}, {0: 60, 971: 10}) == []  # easy ones go
    assert hardness({0: 300, 971: 30}, {971: 19}) == []
    assert hardness({0: 100}, {0: 100}) == []
    assert len(hardness({0: 100}, {971: 100})) == 1
    assert hardness({}, {0: 50, 971: 50}) == []


def test_names_cannot_forge_lines() -> None:
    (warning,) = labelled(
        {"\x1b[2J\nstepdistill: done": 50, "b": 500}, {"\x1b[2J\nstepdistill: done": 40, "b": 5}, "slices.a\nb"
    ).warnings
    assert warning.isprintable()
    assert len(shift._name("x" * 1000)) == 80


# Through the runner


def recounted(folder: Path) -> Figures:
    return measured(list(outputs.read(folder, Example)), TRUTH)


@pytest.mark.parametrize("size", [1, 1500, 1 << 20])
def test_each_stage_leaves_the_counts_of_what_it_kept(
    project: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write_text(project.read_text().replace("  gold: topic\n", "  gold: topic\n  slices: [topic]\n"))
    monkeypatch.setattr(runner, "cut", partial(cut, size=size))
    outcomes = {outcome.stage: outcome for outcome in run(project)}
    above = None
    for stage in ("parse", "dedup", "decontaminate", "quality"):
        folder = outcomes[stage].folder
        assert shift.read(folder) == recounted(folder)
        found = shift.of(outcomes[stage].manifest)
        assert found is not None
        assert found.rows.before - found.rows.after == outcomes[stage].manifest.counts.dropped
        if above is not None:
            gone = less(recounted(above), recounted(folder))
            assert found == change(recounted(above), gone)
        above = folder
    unparsed = shift.of(outcomes["parse"].manifest)
    responses = list(outputs.read(outcomes["sample"].folder, Response))
    assert unparsed == change(
        measured(responses, TRUTH), measured([row for row in responses if row.id == "r26#0"], TRUTH)
    )
    assert shift.of(outcomes["shard"].manifest) is None


def test_a_damaged_row_that_is_dropped_is_one_line() -> None:
    with pytest.raises(RunError, match="dedup: a row is no Example row .*audit"):
        judged(b'{"id": "r1", "input": 5}\n', [Drop(id="r1", reason="twin", evidence={})], "dedup")


def test_what_a_judge_drops_is_counted(project: Path) -> None:
    def judge(body: dict[str, Any]) -> Reply:
        sports = "Label: sports" in str(body["messages"][-1]["content"])
        return completion(score(5) if sports else "no score")

    with chat_server(judge) as chat:
        outcomes = {outcome.stage: outcome for outcome in run(add_judge(project, chat))}
    found = shift.of(outcomes["judge"].manifest)
    assert found is not None
    assert {value.name: value.after for value in found.values["label"].top}["food"] == 0
    assert shift.read(outcomes["judge"].folder) == recounted(outcomes["judge"].folder)


def test_the_warning_stands_on_the_command_line_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": f"r{n}", "text": f"row {n} " * 5, "topic": "food" if n % 4 else "sports"} for n in range(200)]
    said = [f"Words of {row['id']} say it. So the answer is {row['topic']}." for row in rows]
    said = [text if n % 4 or n % 3 == 0 else f"No. {text[-25:]}" for n, text in enumerate(said)]
    write_jsonl(project.parent / "inputs.jsonl", rows)
    write_jsonl(
        project.parent / "completions.jsonl",
        [{"id": row["id"], "completion": text} for row, text in zip(rows, said, strict=True)],
    )
    outcomes = run(project, until="quality", overrides=["dedup.near=null"])
    assert outcomes[-1].manifest.counts.reasons == {"min_words": 33}
    warned = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warned) == 4
    assert warned[0].startswith("quality: warning: the labels shift by ")
    assert warned[1] == "quality: warning: more than 50% of a label goes: sports (33 of 50)"
    run(project, until="quality", overrides=["dedup.near=null"])
    assert "warning" not in capsys.readouterr().err
