"""decontaminate: what overlaps an eval set is dropped, with the row and the words it shares."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.binding import Problem, bind
from pipeline.decontaminate import decontaminate
from pipeline.files import InputError, read_jsonl
from pipeline.records import Drop, Example
from pipeline.sources import EvalSet
from pipeline.text import words
from tests.rows import example

TOPICS = Path(__file__).parents[1] / "data" / "topics"
LONG = "The overnight ferry to the delta villages was restored in time for the flamingo season"
SHORT = "Still warm, a bit too sweet"


def eval_set(folder: Path, *texts: str, name: str = "test") -> dict[str, EvalSet]:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"id": f"t{n}", "text": text}) + "\n" for n, text in enumerate(texts)))
    return {name: EvalSet(path=path, input="{{ text }}", id="id")}


def judge(rows: Sequence[Example], eval_sets: dict[str, EvalSet], **knobs: int) -> list[Drop | None]:
    return list(decontaminate(rows, eval_sets=eval_sets, **knobs))  # type: ignore[arg-type]


def test_the_evidence_names_the_eval_row_and_the_words(tmp_path: Path) -> None:
    leaked = f"Seen in the paper: {LONG.lower()} of next year."
    (verdict,) = judge([example("r7", input=leaked)], eval_set(tmp_path, SHORT, LONG))
    assert verdict is not None
    assert (verdict.id, verdict.reason) == ("r7", "contaminated")
    assert verdict.evidence == {
        "where": "input",
        "text": leaked,
        "eval_set": "test",
        "eval_row": "t1",
        "eval_source": "test.jsonl:2",
        "eval_text": LONG,
        "method": "8-gram",
        "overlap": " ".join(words(LONG)),
        "settings": {"ngram": 8, "shortest": 5},
    }


def test_the_whole_shared_run_is_shown(tmp_path: Path) -> None:
    shared = LONG.split()[2:13]
    (verdict,) = judge([example(input=f"Word: {' '.join(shared)} or not")], eval_set(tmp_path, LONG))
    assert verdict is not None and verdict.evidence["overlap"] == " ".join(shared)


@pytest.mark.parametrize(
    ("text", "method"),
    [
        (LONG, "exact"),
        (LONG.upper() + "!!", "exact"),
        (SHORT + "...", "exact"),
        ("Kept for later: " + " ".join(LONG.split()[4:12]), "8-gram"),
        ("Kept for later: " + " ".join(LONG.split()[4:11]), None),
        ("The pie was " + SHORT.lower() + ", and gone in two bites at the end of it", "contained"),
        ("ferry to the delta villages", "contained"),  # the whole row stands in an eval row
        ("to the delta villages", None),  # too short to say anything
        ("The overnight bus to the hill villages was restored in time", None),
        ("Something else altogether, of which no word is shared", None),
    ],
)
def test_what_overlaps(tmp_path: Path, text: str, method: str | None) -> None:
    (verdict,) = judge([example(input=text, rationale="")], eval_set(tmp_path, LONG, SHORT, "Too sweet"))
    assert (verdict.evidence["method"] if verdict else None) == method


def test_short_texts_count_from_the_length_that_is_set(tmp_path: Path) -> None:
    rows = [example(input="Oh, too sweet for my taste, that thing", rationale=None)]
    sets = eval_set(tmp_path, "Too sweet")
    assert judge(rows, sets) == [None]
    assert judge(rows, sets, shortest=2) != [None]


def test_the_rationale_counts_as_well(tmp_path: Path) -> None:
    row = example(rationale=f"It says that {LONG}.")
    (verdict,) = judge([row], eval_set(tmp_path, LONG))
    assert verdict is not None and verdict.evidence["where"] == "rationale"
    assert list(decontaminate([row], eval_sets=eval_set(tmp_path, LONG), fields=["input"])) == [None]


def test_every_eval_set_is_looked_at(tmp_path: Path) -> None:
    sets = eval_set(tmp_path, SHORT, name="first") | eval_set(tmp_path, LONG, name="second")
    (verdict,) = judge([example(input=LONG)], sets)
    assert verdict is not None
    assert (verdict.evidence["eval_set"], verdict.evidence["eval_row"]) == ("second", "t0")


_SENTENCE = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", "g", "h"]), min_size=1, max_size=14)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(_SENTENCE, min_size=1, max_size=4), st.lists(_SENTENCE, max_size=6), st.integers(2, 6), st.integers(1, 6)
)
def test_a_row_is_dropped_if_and_only_if_the_rule_holds(
    tmp_path_factory: pytest.TempPathFactory, tests: list[list[str]], trains: list[list[str]], ngram: int, shortest: int
) -> None:
    folder = tmp_path_factory.mktemp("eval")
    sets = eval_set(folder, *(" ".join(test) for test in tests))
    rows = [example(f"r{n}", input=" ".join(train), rationale=None) for n, train in enumerate(trains)]

    def stands_in(part: list[str], whole: list[str]) -> bool:
        return any(whole[start : start + len(part)] == part for start in range(len(whole) - len(part) + 1))

    for train, verdict in zip(trains, judge(rows, sets, ngram=ngram, shortest=shortest), strict=True):
        overlaps = False
        for test in tests:
            runs = [train[start : start + ngram] for start in range(len(train) - ngram + 1)]
            short = [(one, other) for one, other in ((train, test), (test, train)) if shortest <= len(one) < ngram]
            overlaps |= train == test or any(stands_in(run, test) for run in runs)
            overlaps |= any(stands_in(one, other) for one, other in short)
        assert (verdict is not None) == overlaps
        if verdict is not None:
            shared = str(verdict.evidence["overlap"]).split()
            named = tests[int(str(verdict.evidence["eval_row"])[1:])]
            assert stands_in(shared, train) and stands_in(shared, named)


def test_an_eval_set_that_cannot_be_read_stops(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.jsonl: no such file"):
        judge([example()], {"test": EvalSet(path=tmp_path / "missing.jsonl", input="{{ text }}")})


def test_an_empty_eval_set_stops(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"eval_sets\.test\.path: .* has no rows"):
        judge([example()], eval_set(tmp_path))


def test_a_broken_eval_row_stops_with_its_line(tmp_path: Path) -> None:
    sets = eval_set(tmp_path, LONG)
    sets["test"].path.write_text(json.dumps({"text": LONG}) + "\n{broken\n")
    with pytest.raises(InputError, match=r"test\.jsonl:2: "):
        judge([example()], {"test": EvalSet(path=sets["test"].path, input="{{ text }}")})


LEAKED = {47: 22, 50: 31, 74: 24, 99: 3, 158: 1, 232: 7, 276: 40, 356: 61, 415: 26, 416: 12}


def test_the_test_rows_leaked_into_the_demo_are_found_and_nothing_else() -> None:
    rows = [
        example(f"line {line}", input=str(row["text"]), rationale=None)
        for line, row in read_jsonl(TOPICS / "train.jsonl")
    ]
    sets = {"test": EvalSet(path=TOPICS / "test.jsonl", input="{{ text }}", gold="topic")}
    found = {drop.id: drop.evidence["eval_source"] for drop in judge(rows, sets) if drop is not None}
    assert found == {f"line {line}": f"test.jsonl:{source}" for line, source in LEAKED.items()}


@pytest.mark.parametrize(
    "given", [{"ngram": 1}, {"ngram": 8.0}, {"shortest": 0}, {"fields": ["label"]}, {"eval_sets": {}}]
)
def test_settings_have_ranges(given: dict[str, object]) -> None:
    with pytest.raises(Problem):
        bind(decontaminate, given, lookup={"eval_sets": {}}.__getitem__, folder=Path())
