"""balance: caps on labels and groups, and the slices that tell groups apart."""

import json
from collections import Counter
from fractions import Fraction
from math import floor, inf
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from pipeline import outputs, provenance, results
from pipeline.audit import audit
from pipeline.balance import CORPUS, balance
from pipeline.binding import parameters
from pipeline.config import load, verify
from pipeline.files import InputError
from pipeline.records import Drop, Example, Prompt, TrainingRow
from pipeline.report import build
from pipeline.runner import run
from pipeline.shard import split
from pipeline.trace import trace
from tests.conftest import write_jsonl
from tests.rows import example, votes

SLICES = ["source", "author"]
LABELS = ["sports", "food", "travel"]


def row(number: int, label: str | None = "sports", **fields: Any) -> Example:
    given: dict[str, Any] = {"slices": {"source": "wiki", "author": "a"}, "votes": votes("x", "x")}
    return example(f"r{number}", label=label, **(given | {"entropy": 0.0, "agreement": 1.0} | fields))


ROWS = st.lists(
    st.builds(
        lambda label, source, author, entropy, voted: {
            "label": label,
            "slices": {"source": source, "author": author},
            "entropy": entropy,
            "agreement": 1 - entropy / 2,
            "votes": votes("x", "x") if voted else votes("x"),
        },
        st.sampled_from([*LABELS, "Sports", None]),
        st.sampled_from(["wiki", "news"]),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from([0.0, 0.5, 1.0]),
        st.booleans(),
    ),
    max_size=40,
).map(
    lambda found: [row(number, **(fields if number else fields | {"votes": votes("x", "x")}))
                   for number, fields in enumerate(found)]
)  # fmt: skip
CAPS = st.fixed_dictionaries(
    {
        "most_per_label": st.none() | st.integers(1, 8),
        "label_ratio": st.none() | st.sampled_from([1.0, 1.5, 2.3]),
        "most_per_group": st.dictionaries(st.sampled_from(SLICES), st.integers(1, 12)),
        "choose": st.sampled_from(["random", "hardest", "easiest", "highest_vote"]),
        "seed": st.integers(0, 2),
        "targets": st.sampled_from([["label", "rationale"], ["response"]]),
    }
).filter(lambda caps: any(caps[name] for name in ("most_per_label", "label_ratio", "most_per_group")))


def verdicts(rows: list[Example], **settings: Any) -> list[Drop | None]:
    return list(balance(rows, slices=SLICES, **settings))


def kept(rows: list[Example], **settings: Any) -> list[Example]:
    return [one for one, drop in zip(rows, verdicts(rows, **settings), strict=True) if drop is None]


def place(one: Example, caps: dict[str, Any]) -> tuple[float, int]:
    """Where the row stands in the order in which rows are chosen; lower is earlier."""
    known = {"random": 0.0, "hardest": one.entropy, "easiest": one.entropy, "highest_vote": one.agreement}[
        caps["choose"]
    ]
    score = known if caps["choose"] == "random" or len(one.votes) > 1 else None
    early = inf if score is None else score if caps["choose"] == "easiest" else -score  # unknown ones come last
    return early, xxhash.xxh3_64_intdigest(f"balance:{caps['seed']}:{one.id}".encode())


def groups(one: Example, caps: dict[str, Any]) -> set[tuple[str, str]]:
    """The groups that the row counts in."""
    if one.label is None and caps["targets"] != ["response"]:
        return set()  # shard will drop it
    found = {(column, one.slices[column]) for column in caps["most_per_group"]}
    return found if one.label is None else found | {("", one.label.lower())}


@given(ROWS, CAPS)
def test_caps_hold_exactly_and_the_rows_kept_of_a_group_are_its_first(rows: list[Example], caps: dict) -> None:
    found = verdicts(rows, **caps)
    assert [drop.id for drop in found if drop] == [one.id for one, drop in zip(rows, found, strict=True) if drop]
    stay = [one for one, drop in zip(rows, found, strict=True) if drop is None]
    sizes = Counter(group for one in stay for group in groups(one, caps))
    for (column, _), size in sizes.items():
        cap = caps["most_per_group"][column] if column else caps["most_per_label"]
        assert cap is None or size <= cap
    of_labels = [size for (column, _), size in sizes.items() if not column]
    if of_labels and caps["label_ratio"]:
        assert max(of_labels) <= floor(Fraction(str(caps["label_ratio"])) * min(of_labels))
    for one, drop in zip(rows, found, strict=True):
        if drop is None:
            continue
        said = drop.evidence
        group = ("", said["label"].lower()) if drop.reason == "over_label_cap" else (said["column"], said["group"])
        members = [other for other in stay if group in groups(other, caps)]
        assert group in groups(one, caps)
        assert all(place(other, caps) < place(one, caps) for other in members)
        assert said["rank"] > said["cap"] >= len(members)
        assert said["rows"] >= said["rank"]
        assert said["draw"] == f"{place(one, caps)[1]:016x}"
        if caps["label_ratio"] is None:
            assert len(members) == said["cap"]
        elif "label_ratio" in said:
            assert len(members) == said["cap"] == floor(Fraction(str(caps["label_ratio"])) * said["rarest_rows"])


@given(ROWS, CAPS, st.data())
def test_neither_order_nor_blocks_nor_a_second_time_change_anything(
    rows: list[Example], caps: dict, data: st.DataObject
) -> None:
    found = dict(zip([one.id for one in rows], verdicts(rows, **caps), strict=True))
    shuffled = data.draw(st.permutations(rows))
    assert dict(zip([one.id for one in shuffled], verdicts(shuffled, **caps), strict=True)) == found
    stay = [one for one in rows if found[one.id] is None]
    assert kept(stay, **caps) == stay
    plan = CORPUS.prepare(**{**defaults(), **caps, "slices": SLICES})
    cut = data.draw(st.integers(0, len(rows)))
    blocks = [CORPUS.sketch(part, plan) for part in (rows[:cut], rows[cut:])]
    assert list(CORPUS.resolve(blocks, plan)) == list(found.values())


def defaults() -> dict[str, Any]:
    return {name: default for name, (_, default) in parameters(balance).items()}


@given(ROWS.filter(bool), st.integers(1, 6), st.sampled_from(LABELS), st.integers(0, 3))
def test_another_row_takes_the_place_of_one_at_most(rows: list[Example], cap: int, label: str, seed: int) -> None:
    before = {one.id for one in kept(rows, most_per_label=cap, seed=seed)}
    after = {one.id for one in kept([row(len(rows), label), *rows], most_per_label=cap, seed=seed)}
    assert len(before - after) <= 1
    assert after - before <= {f"r{len(rows)}"}


def test_the_draw_is_another_one_than_that_of_the_splits() -> None:
    rows = [row(number) for number in range(8000)]
    stay = kept(rows, most_per_label=2000)
    assert len(stay) == 2000
    held_back = sum(split(one.id, validation=0.25, seed=0) == "validation" for one in stay)
    assert held_back == pytest.approx(500, abs=100)
    assert stay != kept(rows, most_per_label=2000, seed=1)


def test_the_stated_rule_chooses() -> None:
    rows = [row(n, entropy=n / 4, agreement=1 - n / 8) for n in range(4)] + [row(9, votes=votes("x"))]
    assert [one.id for one in kept(rows, most_per_label=2, choose="hardest")] == ["r2", "r3"]
    assert [one.id for one in kept(rows, most_per_label=2, choose="easiest")] == ["r0", "r1"]
    assert [one.id for one in kept(rows, most_per_label=2, choose="highest_vote")] == ["r0", "r1"]
    drop = verdicts(rows, most_per_label=4, choose="easiest")[-1]
    assert drop is not None
    assert drop.evidence["difficulty"] is None
    assert (drop.evidence["rows"], drop.evidence["cap"], drop.evidence["rank"]) == (5, 4, 5)
    with pytest.raises(InputError, match="hardest goes by the votes, and no row has more than one"):
        verdicts([row(1, votes=votes("x"))], most_per_label=2, choose="hardest")


def test_a_label_outside_the_set_is_not_the_rarest() -> None:
    rows = [row(n, LABELS[n % 3]) for n in range(30)] + [row(99, "gardening")]
    assert Counter(one.label for one in kept(rows, label_ratio=1)) == dict.fromkeys([*LABELS, "gardening"], 1)
    assert kept(rows, label_ratio=1, labels=LABELS) == rows


def test_the_ratio_is_of_what_is_left_and_exact() -> None:
    rows = [row(n, "food", slices={"source": "wiki", "author": "a"}) for n in range(110)]
    rows += [row(n, "sports", slices={"source": "news", "author": "a"}) for n in range(200, 600)]
    drops = [drop for drop in verdicts(rows, label_ratio=2.3, most_per_group={"source": 300}) if drop]
    assert Counter(drop.reason for drop in drops) == {"over_group_cap": 100, "over_label_cap": 47}
    drops = [drop for drop in verdicts(rows[10:], label_ratio=2.3) if drop]
    assert len(drops) == 400 - 230
    assert drops[0].evidence["rarest"] == "food"


def test_the_label_is_the_one_that_is_trained_on_and_rows_that_shard_drops_are_not_counted() -> None:
    rows = [row(n, "sports", gold="sports" if n % 2 else "food") for n in range(20)]
    labelled: dict[str, Any] = {"label": "gold", "targets": ["label"]}
    assert Counter(one.gold for one in kept(rows, most_per_label=4, **labelled)) == {"sports": 4, "food": 4}
    stay = kept(rows, most_per_label=4, label="gold")  # rationales argue for sports: shard drops the others
    assert Counter(one.gold for one in stay) == {"sports": 4, "food": 10}
    assert Counter(one.gold for one in kept(rows, most_per_label=4, label="gold", rationale_of_other_label="keep")) == {
        "sports": 4,
        "food": 4,
    }


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "stages.balance: no cap is set"),
        ({"most_per_group": {"sorce": 3}}, "stages.balance.most_per_group.sorce: .*; did you mean 'source'"),
    ],
)
def test_settings_that_cannot_be_used_are_one_line(settings: dict, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        balance([], slices=SLICES, **settings)


def test_a_row_without_the_column_is_named() -> None:
    with pytest.raises(InputError, match="row r1 has no value for 'source'"):
        verdicts([row(1, slices={})], most_per_group={"source": 1})


def sliced(project: Path, **columns: Any) -> Path:
    """The small project with the column ``source`` (wiki for three rows of four, else news), and a label that few rows have."""
    path = project.parent / "inputs.jsonl"
    rows = [json.loads(line) for line in path.read_bytes().splitlines()]
    write_jsonl(path, [{**one, "source": "wiki" if n % 4 else "news", **columns} for n, one in enumerate(rows)])
    text = project.read_text().replace("  id: id\n", "  id: id\n  slices: [source]\n")
    project.write_text(text.replace("  shard:", "  balance: {most_per_group: {source: 5}, label_ratio: 1}\n  shard:"))
    return project


def test_ingest_notes_the_slices_and_they_reach_the_examples(project: Path) -> None:
    config = load(sliced(project))
    run(config, until="parse")
    prompts = list(outputs.read(results.result(config, "ingest"), Prompt))
    assert [prompt.slices for prompt in prompts[:5]] == [{"source": name} for name in ("news", *["wiki"] * 3, "news")]
    told = {prompt.id: prompt.slices for prompt in prompts}
    assert all(one.slices == told[one.id] for one in outputs.read(results.result(config, "parse"), Example))


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("slices: [source]", "slices: [source, sorce]", r"inputs\.jsonl:1: sorce: no such column; the row has id, text, topic, source"),
        ("slices: [source]", "slices: [source, source]", r"stages\.yaml:\d+: task\.slices: stands there twice: source"),
        ("{source: 5}", "{sauce: 5}", r"stages\.yaml:\d+: stages\.balance\.most_per_group\.sauce: not among the columns"),
        ("{source: 5}", "{source: 0}", r"stages\.yaml:\d+: stages\.balance\.most_per_group\.source: .*greater than 0"),
        ("most_per_group: {source: 5}, label_ratio: 1", "seed: 1", r"stages\.yaml:\d+: stages\.balance: no cap is set"),
    ],
)  # fmt: skip
def test_columns_and_caps_that_cannot_be_used_are_one_line(project: Path, old: str, new: str, problem: str) -> None:
    path = sliced(project)
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=problem):
        if "balance" in problem:
            verify(load(path))
        run(path, ["ingest"])


def test_a_value_that_is_no_text_is_one_line(project: Path) -> None:
    with pytest.raises(InputError, match=r"inputs\.jsonl:1: source: expected text or a number, found None"):
        run(sliced(project, source=None), ["ingest"])


def test_a_run_with_balance_shows_up_everywhere(project: Path) -> None:
    run(project)
    assert "balance" not in load(project).stages
    config = load(sliced(project))
    outcomes = {outcome.stage: outcome for outcome in run(config)}
    assert list(outcomes)[-3:] == ["quality", "balance", "shard"]
    counts = outcomes["balance"].manifest.counts
    assert (counts.rows_in, counts.kept + counts.dropped) == (24, 24)
    assert set(counts.reasons) == {"over_group_cap", "over_label_cap"}
    assert [fact["by"] for fact in outcomes["balance"].manifest.details["caps"]] == ["source", "label"]  # type: ignore
    stay = list(outputs.read(outcomes["balance"].folder, Example))
    assert max(Counter(one.slices["source"] for one in stay).values()) <= 5
    assert len(set(Counter(one.label for one in stay).values())) == 1
    trained = {one.example for one in outputs.read(outcomes["shard"].folder, TrainingRow)}
    assert trained == {one.id for one in stay}

    assert list(audit(config.run)) == []
    assert {one.stage: one.state for one in results.status(config)}["balance"] == "done"
    assert not any(step.runs for step in provenance.plan(config))
    steps = {step.stage: step for step in provenance.plan(load(project, ["balance.seed=7"]))}
    assert [name for name, step in steps.items() if step.runs] == ["balance", "shard"]
    assert steps["balance"].reasons == ["balance.seed: 0 -> 7"]
    steps = {step.stage: step for step in provenance.plan(load(project, ["shard.label=gold"]))}
    assert [name for name, step in steps.items() if step.runs] == ["balance", "shard"]

    drop = next(outputs.read_drops(outcomes["balance"].folder))
    last = trace(config.run, drop.id)[-1]
    assert (last.stage, last.verdict, last.row) == ("balance", "dropped", drop.plain())
    assert [event.stage for event in trace(config.run, stay[0].id)][-3:] == ["balance", "shard", "shard"]
    page = build(config.run).read_text()
    assert "over group cap" in page
    assert stay[0].input.split()[0] in page

    off = load(project, ["balance=false"])  # and without it, shard reads quality again
    assert [outcome.stage for outcome in run(off) if outcome.ran] == ["shard"]
    assert list(audit(off.run)) == []
    assert "24 examples that passed every filter" in build(off.run, kept_rows=50).read_text()
