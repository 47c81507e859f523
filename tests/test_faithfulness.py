"""What rationales conclude, on sentences as students write them, and the figures against ones worked out by hand."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import labels as label_forms
from pipeline.faithfulness import conclusion, label_after_rationale, rationale_scores, same_answer
from pipeline.shard import student_prompt
from pipeline.text import numbers

TOPICS = ["sports", "food", "business", "technology", "travel"]


@pytest.mark.parametrize(
    ("rationale", "label"),
    [
        ("The text is about a printer's firmware and how it can do more, which belongs to technology.", "technology"),
        (
            "The text is about a company's decision to business is not a decision, which belongs to business.",
            "business",
        ),
        ("It mentions a business trip, but a hotel is what it is about, so it is travel.", "travel"),
        ("So the answer is food.", "food"),
        ("So the answer is food, because sports are only mentioned.", "food"),
        ("The answer is sports. No, the answer is food.", "food"),
        ("This falls under Travel; business is beside the point.", "travel"),
        ("A match is played. Therefore: sports, not food.", "sports"),
        ("It points to food rather than to travel.", "food"),
        ("This is not about sports but about food.", "food"),
        ("food", "food"),
        ("Soup is a kind of FOOD!", "food"),
        ("sports and food", None),
        ("It is about sports, so it could be food or travel.", None),
        ("This isn't about sports.", None),
        ("It is neither sports nor food.", None),
        ("The text is about a goal.", None),
        ("Seafoods and foodstuffs", None),
        ("So it is hard to say, and travel is named.", "travel"),
        ("", None),
    ],
)
def test_conclusions_of_a_closed_set(rationale: str, label: str | None) -> None:
    assert conclusion(rationale, TOPICS) == label


def test_a_longer_label_is_not_taken_for_a_shorter_one() -> None:
    names = ["learning", "machine learning", "C", "c++", "U.S."]
    assert conclusion("It is all machine learning here.", names) == "machine learning"
    assert conclusion("Learning, and more of it.", names) == "learning"
    assert conclusion("A template in C++ it is.", names) == "c++"
    assert conclusion("It is written in C.", names) is None  # one letter can be a word or a beginning
    assert conclusion("The answer is C.", names) == "C"
    assert conclusion("It happened in the U.S. last year.", names) == "U.S."


def test_conclusions_of_choices() -> None:
    banks = ["river", "bank", "a hill"]
    assert conclusion("A bank keeps money, so (b) it must be.", banks, "choice") == "bank"
    assert conclusion("Of these only a hill is high.", banks, "choice") == "a hill"
    assert conclusion("(a) is wet and (b) is not", banks, "choice") is None
    assert conclusion("So (z).", banks, "choice") is None


@pytest.mark.parametrize(
    ("rationale", "kind", "label"),
    [
        ("There are 7 boxes of 36, so 7 * 36 = 252 pencils.", "number", "252"),
        ("3 + 4 = 7, so 7 are left of the 10.", "number", "7"),
        ("It costs $1,200.50.", "number", "1200.5"),
        ("He paid 5 and got 2 back.", "number", "2"),
        ("84 / 2 = 42", "equation", "42"),
        ("The answer is 84 / 2.", "equation", "84 / 2"),
        ("10 = 2 * 5", "number", "5"),
        ("So he owes -5.", "number", "-5"),
        ("Version v2b of the x7 model", "number", None),
        ("It cannot be told.", "number", None),
        ("The answer is a place where 5 people live.", "text", None),
    ],
)
def test_conclusions_of_open_answers(rationale: str, kind: label_forms.LabelType, label: str | None) -> None:
    assert conclusion(rationale, (), kind) == label


pieces = st.lists(
    st.sampled_from(
        [*TOPICS, "so", "not", "the answer is", "belongs to", "(b)", "than", ".", ",", "\n", "5", "= 7", "\0"]
    )
    | st.text(max_size=6),
    max_size=14,
)


@given(pieces, st.lists(st.sampled_from([*TOPICS, "c++", "(", "5"]) | st.text(max_size=8), max_size=5))
def test_a_conclusion_is_never_invented(said: list[str], options: list[str]) -> None:
    text = " ".join(said)
    for kind in ("text", "choice"):
        found = conclusion(text, options, kind)
        assert found is None or found in options
    value = conclusion(text, (), "number")
    if value is not None:
        # as digits: a sign or a currency may stand before them
        assert value.lstrip("-") in {label_forms.normalise(one, "number") for one in numbers(text.translate(SIGNS))}


SIGNS = {ord(sign): " " for sign in "-+*/=×÷−–(),"} | {ord(","): None}


@given(st.sampled_from(TOPICS), st.sampled_from(["So the answer is {}.", "It belongs to {}.", "{}", "I see {} here."]))
def test_the_only_label_named_is_the_conclusion(label: str, frame: str) -> None:
    assert conclusion(frame.format(label.upper()), TOPICS) == label


def test_the_label_is_asked_again_behind_the_rationale() -> None:
    assert label_after_rationale("Soup of the day", "It is eaten.") == "[label] Soup of the day\nIt is eaten."
    assert label_after_rationale("a", "b").startswith(student_prompt("label", "a"))


def test_figures_as_worked_out_by_hand() -> None:
    found = rationale_scores(
        inputs=["late goal sinks the leaders again", "soup", "a bus to the coast", "stocks fell", "a phone"],
        golds=["sports", "food", "travel", "business", "technology"],
        labels=["sports", "sports", None, "business", "technology"],
        rationales=[
            "late goal sinks the leaders, so it belongs to sports.",  # concludes its label, the true one
            "It is eaten, so it is food.",  # concludes the true label, not its own
            "It is eaten, so it is food.",  # concludes, and the model answers nothing
            "sports and food",  # concludes nothing
            None,
        ],
        finished=[True, True, True, False, False],
        options=[TOPICS] * 5,
        label_type="text",
        after={0: "sports", 1: "food", 2: None, 3: "travel"},
        judged=[5, None, 2, None, None],
    )
    assert (found.rows, found.finished) == (5, 3)
    assert (found.concludes, found.concludes_label, found.concludes_gold) == (3, 1, 2)
    assert (found.asked_first, found.changed, found.right_before, found.right_after) == (4, 2, 2, 2)
    assert found.words == pytest.approx((10 + 7 + 7 + 3 + 0) / 5)
    # 7 runs of four words in the first, of which "late goal sinks the", "goal sinks the leaders" are copied; 4 in each of the others
    assert found.copied == pytest.approx((2 / 7 + 0 + 0) / 3)
    assert found.distinct == pytest.approx(4 / 5)
    assert (found.judged, found.judge_score) == (2, 3.5)
    assert json.loads(found.line())["asked_first"] == 4


def test_figures_of_what_was_not_asked_are_missing() -> None:
    found = rationale_scores(
        inputs=["x"],
        golds=["food"],
        labels=["food"],
        rationales=["a b"],
        finished=[True],
        options=[[]],
        label_type="text",
    )
    missing = (found.asked_first, found.changed, found.right_before, found.right_after, found.judged, found.copied)
    assert missing == (None,) * 6
    nothing = rationale_scores(
        inputs=[], golds=[], labels=[], rationales=[], finished=[], options=[], label_type="text", after={}, judged=[]
    )
    assert (nothing.rows, nothing.words, nothing.distinct, nothing.judge_score) == (0, None, None, None)
    assert (nothing.asked_first, nothing.changed, nothing.judged) == (0, 0, 0)
    with pytest.raises(ValueError, match="argument"):
        rationale_scores(
            inputs=["x"], golds=[], labels=[], rationales=[], finished=[], options=[], label_type="text"
        )  # fmt: skip


def test_numbers_agree_by_value() -> None:
    found = rationale_scores(
        inputs=["q"], golds=["252"], labels=["7 * 36"], rationales=["7 * 36 = 252"], finished=[True], options=[[]],
        label_type="equation", after={0: "36 * 7"},
    )  # fmt: skip
    assert (found.concludes_label, found.concludes_gold, found.changed, found.right_after) == (1, 1, 0, 1)


def test_answers_that_are_none_are_the_same_answer() -> None:
    assert same_answer(None, None, "text")
    assert not same_answer(None, "food", "text")
    assert same_answer("Food ", "food", "text")
    assert same_answer("1 / 0", "1 / 0", "equation")
