"""Filters, one by one, and the stage that runs them in order."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import filters
from pipeline.binding import Call, Problem, bind
from pipeline.files import InputError
from pipeline.filters import ASKED_FOR, FILTERS
from pipeline.quality import quality
from pipeline.records import Drop
from tests.rows import example, judgement, votes

VALUES: dict[str, Any] = {
    "task.labels": ["sports", "food"],
    "stages.parse.label_type": "text",
    "stages.judge.on": False,
}
SPLIT = votes("sports", "food", "sports", "\x1b[2J" * 30, "travel")
GOAL = "Late goal sinks the leaders"
LOOP = "The sacks were not harvested. " * 8


@pytest.mark.parametrize(
    ("name", "fields", "settings", "why"),
    [
        ("label_in_set", {"label": "football"}, {"labels": ["sports", "food"]}, "the label 'football' is not among sports, food"),
        ("label_in_set", {"label": "sports"}, {"labels": ["sports", "food"]}, None),
        ("label_in_set", {"label": "(b) banck", "choices": ["river", "bank"]}, {}, "the label '(b) banck' is not among river, bank"),
        ("label_in_set", {"label": "food", "choices": ["river", "bank"]}, {"labels": ["food"]}, "'food' is not among river, bank"),
        ("label_in_set", {"label": "bank", "choices": ["river", "bank"]}, {"labels": ["sports"]}, None),
        ("label_in_set", {"label": "anything"}, {}, None),
        ("label_in_set", {"label": None}, {"labels": ["sports"]}, None),
        ("label_has_value", {"label": "some - 8"}, {"label_type": "equation"}, "the label 'some - 8' is no equation that has a value"),
        ("label_has_value", {"label": "4 / 0"}, {"label_type": "equation"}, "the label '4 / 0' is no equation that has a value"),
        ("label_has_value", {"label": "(4 - 1) / 2"}, {"label_type": "equation"}, None),
        ("label_has_value", {"label": "twelve"}, {"label_type": "number"}, "the label 'twelve' is no number that has a value"),
        ("label_has_value", {"label": "-12.5"}, {"label_type": "number"}, None),
        ("label_has_value", {"label": "sports"}, {"label_type": "text"}, None),
        ("finish_reason", {"finish_reason": "length"}, {}, "the response ended with 'length', not with stop or recorded"),
        ("finish_reason", {"finish_reason": "recorded"}, {}, None),
        ("finish_reason", {"finish_reason": "length"}, {"allowed": ["length"]}, None),
        ("min_words", {"rationale": "Sports, clearly."}, {}, "the rationale has 2 words, fewer than 4"),
        ("min_words", {"rationale": ""}, {}, "the rationale has 0 words, fewer than 4"),
        ("min_words", {"rationale": "One two three four"}, {}, None),
        ("min_words", {"rationale": None}, {}, None),
        ("max_words", {"rationale": "one two three"}, {"maximum": 2}, "the rationale has 3 words, more than 2"),
        ("max_words", {"rationale": "one two"}, {"maximum": 2}, None),
        ("max_words", {"rationale": None}, {"maximum": 0}, None),
        ("repeats_label", {"rationale": "The answer is sports, so the topic is Sports."}, {}, "only repeats the label 'sports'"),
        ("repeats_label", {"rationale": "The topic is this."}, {}, "only repeats the label 'sports'"),
        ("repeats_label", {"rationale": "A goal is sports."}, {}, None),
        ("repeats_label", {"rationale": ""}, {}, None),
        ("repeats_input", {"input": GOAL, "rationale": "LATE goal sinks the leaders!"}, {}, "3 of the rationale's 3 runs of three"),
        ("repeats_input", {"input": GOAL, "rationale": "A late goal sinks the leaders"}, {}, None),
        ("repeats_input", {"input": GOAL, "rationale": "A late goal sinks the leaders"}, {"maximum": 0.75}, None),
        ("repeats_input", {"input": GOAL, "rationale": "A late goal sinks the leaders"}, {"maximum": 0.5}, "3 of the rationale's 4 runs"),
        ("repeats_input", {"rationale": "A goal"}, {"maximum": 0.0}, None),
        ("repeats_input", {"rationale": None}, {}, None),
        ("repetition", {"rationale": LOOP}, {}, "33 of 38 runs of three words repeat an earlier one, more than 50%"),
        ("repetition", {"rationale": "The sacks were not harvested, and so they stay."}, {}, None),
        ("repetition", {"label": None, "rationale": None, "text": LOOP}, {}, "33 of 38 runs"),
        ("refusal", {"rationale": "I’m sorry, but I cannot say."}, {}, "the teacher declines: 'i'm sorry, but'"),
        ("refusal", {"rationale": "As an AI model I have no view."}, {}, "the teacher declines: 'as an ai'"),
        ("refusal", {"rationale": "It was as an aid to the team."}, {}, None),
        ("refusal", {"rationale": "No comment on that one."}, {"phrases": ["no comment"]}, "the teacher declines: 'no comment'"),
        ("refusal", {"label": None, "rationale": None, "text": "I can't help with this."}, {}, "the teacher declines"),
        ("min_agreement", {"agreement": 0.4, "votes": SPLIT}, {}, "the label won 0.4 of the votes, less than 0.6: 'sports' 2, 'food' 1, '"),
        ("min_agreement", {"agreement": 0.6}, {}, None),
        ("min_agreement", {"agreement": 0.6}, {"minimum": 0.61}, "the label won 0.6 of the votes, less than 0.61"),
        ("min_agreement", {"agreement": None}, {}, None),
        ("max_entropy", {"entropy": 1.5, "votes": SPLIT}, {}, "the votes have an entropy of 1.5 bits, more than 1: 'sports' 2"),
        ("max_entropy", {"entropy": 1.0}, {}, None),
        ("max_entropy", {"entropy": 0.2}, {"maximum": 0}, "the votes have an entropy of 0.2 bits, more than 0"),
        ("max_entropy", {"entropy": None}, {"maximum": 0}, None),
        ("min_judge_score", {"judgement": judgement(2, "Vague.\x07")}, {}, "the judge gave 2, less than 3: 'Vague.\\x07'"),
        ("min_judge_score", {"judgement": judgement(3)}, {}, None),
        ("min_judge_score", {"judgement": judgement(4)}, {"minimum": 5}, "the judge gave 4, less than 5: 'It names what decides.'"),
        ("min_judge_score", {"judgement": None}, {"minimum": 1}, "it was not judged"),
    ],
)  # fmt: skip
def test_filters(name: str, fields: dict[str, Any], settings: dict[str, Any], why: str | None) -> None:
    found = FILTERS[name](example(**fields), **settings)
    assert found is None if why is None else found is not None and why in found


def test_every_filter_passes_a_good_row_and_is_tried_above() -> None:
    good = example(agreement=1.0, entropy=0.0, votes=votes("sports"), judgement=judgement())
    assert all(function(good) is None for function in FILTERS.values())
    tried = {case[0] for case in test_filters.pytestmark[0].args[1]}  # type: ignore[attr-defined]
    assert tried == set(FILTERS)


def test_every_public_function_of_the_module_is_a_filter() -> None:
    own = {
        name
        for name, value in vars(filters).items()
        if callable(value) and getattr(value, "__module__", "") == filters.__name__
    }
    assert {name for name in own if not name.startswith("_")} == set(FILTERS)


@given(st.text(max_size=80), st.text(max_size=80), st.one_of(st.none(), st.text(max_size=20)))
def test_any_text_gets_a_verdict_of_one_line(rationale: str, input: str, label: str | None) -> None:
    row = example(rationale=rationale, input=input, label=label)
    for name, function in FILTERS.items():
        why = function(row, **({"label_type": "equation"} if name == "label_has_value" else {}))
        assert why is None or (why.isprintable() and len(why) < 400)


def calls(entries: list[object]) -> list[Call]:
    found: list[Call] = bind(quality, {"filters": entries}, lookup=VALUES.__getitem__, folder=Path())["filters"]
    return found


def test_the_first_filter_that_objects_gives_the_reason() -> None:
    row = example(label="football", rationale="No.", finish_reason="length")
    (verdict,) = quality([row], filters=calls(["finish_reason", {"min_words": 2}, "label_in_set"]))
    assert verdict == Drop(
        id=row.id,
        reason="finish_reason",
        evidence={
            "why": "the response ended with 'length', not with stop or recorded",
            "label": "football",
            "rationale": "No.",
            "settings": {"allowed": ["stop", "recorded"]},
        },
    )
    (verdict,) = quality([row], filters=calls(["label_in_set"]))
    assert verdict is not None and (verdict.reason, verdict.evidence["settings"]) == (
        "label_in_set",
        {"labels": ["sports", "food"]},
    )


def test_one_verdict_a_row_in_order() -> None:
    rows = [example("a"), example("b", rationale="No."), example("c")]
    verdicts = list(quality(rows, filters=calls([{"min_words": 4}])))
    assert [verdict and verdict.id for verdict in verdicts] == [None, "b", None]
    assert list(quality(rows, filters=[])) == [None, None, None]


def test_what_is_dropped_by_votes_or_judge_shows_them() -> None:
    row = example(agreement=0.5, entropy=1.0, votes=votes("sports", "food"), judgement=judgement(1, "Wrong."))
    (verdict,) = quality([row], filters=calls(["min_agreement"]))
    assert verdict is not None and verdict.reason == "min_agreement"
    assert verdict.evidence["votes"] == [vote.plain() for vote in row.votes]
    (verdict,) = quality([row], filters=calls([{"min_judge_score": 2}]))
    assert verdict is not None and verdict.evidence["settings"] == {"minimum": 2}
    assert verdict.evidence["judgement"] == {
        "score": 1,
        "reason": "Wrong.",
        "judge": "a judge",
        "request": "request-j",
    }
    assert Drop.read(verdict.line()) == verdict


def test_a_threshold_on_scores_needs_a_judge() -> None:
    with pytest.raises(InputError, match="^stages.quality.filters: min_judge_score needs a judge; add stages.judge"):
        quality([], filters=calls(["min_judge_score"]), judged=False)
    assert list(quality([example()], filters=calls(["label_in_set"]), judged=False)) == [None]


def test_without_a_list_all_filters_run_that_need_no_votes_and_no_judge() -> None:
    bound = bind(quality, {}, lookup=VALUES.__getitem__, folder=Path())
    assert [call.name for call in bound["filters"]] == [name for name in FILTERS if name not in ASKED_FOR]
    assert set(ASKED_FOR) == {"min_agreement", "max_entropy", "min_judge_score"}
    assert [verdict and verdict.reason for verdict in quality([example(), example(label="x")], **bound)] == [
        None,
        "label_in_set",
    ]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["label_in_sets"], "unknown name; did you mean 'label_in_set'?"),
        ([{"min_words": {"minimun": 4}}], "unknown setting; did you mean 'minimum'?"),
        ([{"min_words": -1}], "greater than or equal to 0"),
        ([{"repetition": 1.5}], "less than or equal to 1"),
        ([{"min_agreement": 60}], "less than or equal to 1"),
        ([{"max_entropy": -1}], "greater than or equal to 0"),
        ([{"min_judge_score": 6}], "less than or equal to 5"),
        ([{"label_in_set": {"labels": ["a"]}}], "unknown setting"),
        ([{"refusal": "no"}], "found 'no'"),
        ("label_in_set", "expected a list"),
    ],
)
def test_bad_lists_are_refused(entries: Any, message: str) -> None:
    with pytest.raises(Problem) as caught:
        calls(entries)
    assert message in caught.value.message
