"""parse: label and rationale out of responses, and the vote."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.binding import Problem, bind
from pipeline.files import InputError
from pipeline.parse import parse
from pipeline.records import Drop, Example, Response
from tests.rows import response

PATTERN = r"(?s)(?P<rationale>.*?)\s*So the answer is (?P<label>.+?)\.?"
LABELS = ["sports", "food"]


def answers(*labels: str, prompt: str = "r1") -> list[Response]:
    return [response(f"Reason {n}. So the answer is {label}.", prompt, n) for n, label in enumerate(labels)]


def test_an_example_holds_what_its_response_said() -> None:
    given = response("A goal is\nscored.  So the answer is Sports.\n", gold="food", finish_reason="length")
    (row,) = parse([given], pattern=PATTERN, labels=LABELS)
    assert isinstance(row, Example)
    assert (row.label, row.rationale, row.text) == ("sports", "A goal is\nscored.", given.text.strip())
    assert (row.id, row.input, row.gold, row.response) == (given.prompt, given.input, "food", given.id)
    assert row.finish_reason == "length"
    assert [(vote.response, vote.request, vote.teacher, vote.label) for vote in row.votes] == [
        (given.id, given.request, given.teacher, "sports")
    ]


def test_text_that_runs_on_is_cut_at_the_earliest_mark() -> None:
    text = "It is eaten. So the answer is food.\n\nA: no\n\nQ: And now? So the answer is sports."
    (row,) = parse([response(text)], pattern=PATTERN, cut_at=["\n\nQ:", "\n\nA:"])
    assert isinstance(row, Example)
    assert (row.label, row.text) == ("food", "It is eaten. So the answer is food.")


def test_the_pattern_must_cover_the_whole_text() -> None:
    (row,) = parse(
        [response("It is eaten. So the answer is food. Or sports?")],
        pattern=r"(?P<rationale>.+) So the answer is (?P<label>\w+)\.",
    )
    assert isinstance(row, Drop)
    assert (row.id, row.reason) == ("r1#0", "unparsed")
    assert row.evidence["problem"] == "the pattern does not fit the text"
    assert row.evidence["text"] == "It is eaten. So the answer is food. Or sports?"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("I do not know.", "the pattern does not fit the text"),
        ("", "the text is empty"),
        ("Q: what?", "the text is empty"),
        ("It is eaten. So the answer is  .", "the label is empty"),
    ],
)
def test_what_cannot_be_read_is_dropped_with_its_text(text: str, problem: str) -> None:
    (row,) = parse([response(text)], pattern=PATTERN, cut_at=["Q:"])
    assert isinstance(row, Drop)
    assert (row.id, row.reason, row.evidence["problem"]) == ("r1#0", "unparsed", problem)


def test_a_label_outside_the_set_goes_on_to_quality() -> None:
    (row,) = parse(answers("football"), pattern=PATTERN, labels=LABELS)
    assert isinstance(row, Example) and row.label == "football"


def test_the_majority_wins_and_its_first_rationale_is_taken() -> None:
    (row,) = parse(answers("food", "Sports", "sports"), pattern=PATTERN, labels=LABELS)
    assert isinstance(row, Example)
    assert (row.label, row.rationale, row.response) == ("sports", "Reason 1.", "r1#1")
    assert [vote.label for vote in row.votes] == ["food", "sports", "sports"]


def test_a_tie_goes_to_the_label_said_first() -> None:
    (row,) = parse(answers("food", "sports", "sports", "food"), pattern=PATTERN)
    assert isinstance(row, Example) and row.label == "food"


def test_equations_of_equal_value_vote_together() -> None:
    (row,) = parse(answers("5 - 1", "2 * 3", "3*2", "some - 8", "some - 8"), pattern=PATTERN, label_type="equation")
    assert isinstance(row, Example)
    assert (row.label, row.response) == ("2 * 3", "r1#1")


def test_choices_are_those_of_the_row() -> None:
    given = response("A place for money. So the answer is (b) Bank.", choices=["river", "bank"])
    (row,) = parse([given], pattern=PATTERN, label_type="choice")
    assert isinstance(row, Example) and row.label == "bank"


def test_low_agreement_drops_every_response_of_the_prompt() -> None:
    rows = [
        *answers("food", "sports", "travel"),
        response("??", "r1", 3),
        *answers("food", "food", "sports", prompt="r2"),
    ]
    out = list(parse(rows, pattern=PATTERN, min_agreement=0.6))
    assert [(row.id, row.reason) for row in out if isinstance(row, Drop)] == [
        ("r1#3", "unparsed"),
        ("r1#0", "low_agreement"),
        ("r1#1", "low_agreement"),
        ("r1#2", "low_agreement"),
    ]
    assert out[1].model_dump()["evidence"] == {
        "votes": {"r1#0": "food", "r1#1": "sports", "r1#2": "travel"},
        "agreement": 0.3333,
        "min_agreement": 0.6,
    }
    assert [row.id for row in out if isinstance(row, Example)] == ["r2"]


def test_agreement_exactly_at_the_threshold_is_enough() -> None:
    (row,) = parse(answers("food", "sports"), pattern=PATTERN, min_agreement=0.5)
    assert isinstance(row, Example)


@given(
    st.lists(st.lists(st.sampled_from(["food", "sports", "", "§"]), min_size=1, max_size=5), max_size=6),
    st.sampled_from([0.0, 0.5, 0.8]),
)
def test_every_response_is_kept_or_dropped_once(prompts: list[list[str]], min_agreement: float) -> None:
    rows = [
        response("no answer" if label == "§" else f"R. So the answer is {label} .", f"r{p}", n)
        for p, said in enumerate(prompts)
        for n, label in enumerate(said)
    ]
    out = list(parse(rows, pattern=PATTERN, labels=LABELS, min_agreement=min_agreement))
    voted = [vote.response for row in out if isinstance(row, Example) for vote in row.votes]
    dropped = [row.id for row in out if isinstance(row, Drop)]
    assert sorted(voted + dropped) == sorted(row.id for row in rows)
    for row in out:
        if isinstance(row, Example):
            counts = [[vote.label for vote in row.votes].count(label) for label in LABELS]
            assert [vote.label for vote in row.votes].count(row.label) == max(counts)


def test_a_free_response_is_the_whole_text() -> None:
    (row,) = parse([response(" A poem.\n\nTwo lines. \nEND more")], cut_at=["END"], targets=["response"])
    assert isinstance(row, Example)
    assert (row.label, row.rationale, row.text) == (None, None, "A poem.\n\nTwo lines.")


def test_a_free_response_can_be_taken_out_of_a_frame() -> None:
    frame = r"(?s)<answer>(?P<response>.*)</answer>"
    rows = [response("<answer> yes </answer>"), response("<answer>  </answer>", "r2"), response("yes", "r3")]
    kept, empty, unframed = parse(rows, pattern=frame, targets=["response"])
    assert isinstance(kept, Example) and kept.text == "yes"
    assert isinstance(empty, Drop) and empty.evidence["problem"] == "the response is empty"
    assert isinstance(unframed, Drop) and unframed.evidence["problem"] == "the pattern does not fit the text"


def test_an_empty_rationale_is_not_a_missing_one() -> None:
    (asked,) = parse([response("So the answer is food.")], pattern=PATTERN)
    (not_asked,) = parse([response("food")], pattern="(?P<label>.+)", targets=["label"])
    assert isinstance(asked, Example) and asked.rationale == ""
    assert isinstance(not_asked, Example) and not_asked.rationale is None


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (None, "stages.parse.pattern: is missing, and task.targets names label; add (?P<label>..)"),
        ("(?P<label>.*)", "stages.parse.pattern: has no group 'rationale', and task.targets names rationale"),
        ("(?P<label>.*", "stages.parse.pattern: no regular expression (missing ), unterminated subpattern"),
        ("(?P<lable>.*)(?P<rationale>.*)", "stages.parse.pattern: unknown group 'lable'; did you mean 'label'?"),
        ("(.*)", "stages.parse.pattern: no named group"),
    ],
)
def test_a_pattern_that_cannot_serve_is_refused_before_the_first_row(pattern: str | None, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(iter(()), pattern=pattern)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"pattern": "(?P<label>"}, "pattern"),
        ({"pattern": "(?P<lable>.)"}, "pattern"),
        ({"pattern": PATTERN, "label_type": "txt"}, "label_type"),
        ({"pattern": PATTERN, "cut_at": "Q:"}, "cut_at"),
        ({"pattern": PATTERN, "cut_at": [""]}, "cut_at"),
        ({"pattern": PATTERN, "min_agreement": 1.5}, "min_agreement"),
        ({"patern": PATTERN}, "patern"),
    ],
)
def test_settings_are_checked_where_they_stand(settings: dict[str, object], where: str) -> None:
    values = {"task.labels": LABELS, "task.targets": ["label", "rationale"]}
    with pytest.raises(Problem) as caught:
        bind(parse, settings, lookup=values.__getitem__, folder=Path())
    assert caught.value.where[0] == where


def test_good_settings_bind() -> None:
    values = {"task.labels": LABELS, "task.targets": ["label", "rationale"]}
    bound = bind(parse, {"pattern": PATTERN, "cut_at": ["Q:"]}, lookup=values.__getitem__, folder=Path())
    (row,) = parse(answers("Food"), **bound)
    assert isinstance(row, Example) and row.label == "food"
