"""parse: label and rationale out of responses, and the vote."""

import itertools
import math
import random
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import outputs
from pipeline.binding import Problem, bind
from pipeline.files import InputError
from pipeline.parse import Kept, parse
from pipeline.records import Drop, Example, Response
from pipeline.runner import run
from tests.chat_server import chat_server, completion
from tests.conftest import write_jsonl
from tests.rows import response

PATTERN = r"(?s)(?P<rationale>.*?)\s*So the answer is (?P<label>.+?)\.?"
LABELS = ["sports", "food"]
VALUES: dict[str, Any] = {
    "task.labels": LABELS,
    "task.targets": ["label", "rationale"],
    "stages.sample.teacher.names": ["large"],
    "stages.sample.logprobs": False,
    "stages.sample.rationalise": False,
}


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


def one(rows: Iterable[Response], **settings: Any) -> Example:
    """The only row that comes of them, which is an example."""
    (row,) = parse(rows, **({"pattern": PATTERN} | settings))
    assert isinstance(row, Example)
    return row


def by(*said: tuple[str, str]) -> list[Response]:
    """Responses of (teacher, label)."""
    return [
        response(f"{teacher} says. So the answer is {label}.", "r1", n, teacher=teacher)
        for n, (teacher, label) in enumerate(said)
    ]


def test_a_vote_leaves_its_figures() -> None:
    row = one(answers("food", "sports", "sports", "sports"))
    assert (row.agreement, row.entropy) == (0.75, pytest.approx(0.811278124, abs=1e-9))
    assert (one(answers("food")).agreement, one(answers("food")).entropy) == (1.0, 0.0)
    assert one(answers("food", "sports")).entropy == 1.0
    free = one(answers("food", "sports"), pattern=None, targets=["response"])
    assert (free.label, free.agreement, free.entropy, free.soft_labels) == (None, None, None, None)


def test_a_teacher_counts_what_it_weighs_and_every_vote_says_who_said_it() -> None:
    said = by(("small", "food"), ("small", "food"), ("large", "sports"))
    assert one(said).label == "food"
    row = one(said, vote="weighted", weights={"large": 2.5})
    assert (row.label, row.rationale, row.agreement) == ("sports", "large says.", 2.5 / 4.5)
    assert [(vote.teacher, vote.label, vote.weight) for vote in row.votes] == [
        ("small", "food", 1.0),
        ("small", "food", 1.0),
        ("large", "sports", 2.5),
    ]


def test_weights_that_add_up_to_the_same_are_a_tie_in_any_order() -> None:
    weights = {"a": 0.1, "b": 0.2, "c": 0.3}  # 0.1 + 0.2 is not 0.3 in floating point
    said = [("a", "food"), ("b", "food"), ("c", "sports")]
    for order in itertools.permutations(said):
        assert one(by(*order), vote="weighted", weights=weights).label == order[0][1]


@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from(["a", "b", "c"]), st.sampled_from(["food", "sports", "travel", "", "§"])),
            min_size=1,
            max_size=6,
        ),
        max_size=5,
    ),
    st.one_of(st.none(), st.dictionaries(st.sampled_from(["a", "b"]), st.floats(1e-3, 1e3))),
    st.sampled_from(["first", "shortest", "highest_logprob"]),
    st.randoms(use_true_random=False),
)
def test_laws_of_the_vote(
    prompts: list[list[tuple[str, str]]], weights: dict[str, float] | None, kept: Kept, chance: random.Random
) -> None:
    rows = [
        response(
            "no answer" if label == "§" else f"R{'!' * (n % 3)}. So the answer is {label} .",
            f"r{p}",
            n,
            teacher=teacher,
            mean_logprob=None if n == 1 else -0.5 * (n % 4),
        )
        for p, said in enumerate(prompts)
        for n, (teacher, label) in enumerate(said)
    ]
    settings: dict[str, Any] = {"vote": "majority" if weights is None else "weighted", "weights": weights}
    out = list(parse(rows, pattern=PATTERN, labels=LABELS, rationale=kept, **settings))
    voted = [vote.response for row in out if isinstance(row, Example) for vote in row.votes]
    dropped = [row.id for row in out if isinstance(row, Drop)]
    assert sorted(voted + dropped) == sorted(row.id for row in rows)  # conservation
    for row in out:
        if not isinstance(row, Example):
            continue
        totals: dict[str | None, Fraction] = {}
        for vote in row.votes:
            assert vote.weight == (weights or {}).get(vote.teacher, 1.0)
            totals[vote.label] = totals.get(vote.label, Fraction(0)) + Fraction(repr(vote.weight))
        assert totals[row.label] == max(totals.values())
        assert row.agreement is not None and 0 < row.agreement <= 1
        assert row.agreement == float(totals[row.label] / sum(totals.values()))
        assert row.entropy is not None and 0 <= row.entropy <= math.log2(len(totals)) + 1e-8
        assert (row.entropy == 0) == (len(totals) == 1) or row.entropy < 1e-1
        assert next(vote.label for vote in row.votes if vote.response == row.response) == row.label
        assert Example.read(row.line()) == row
        if list(totals.values()).count(max(totals.values())) == 1:  # no tie: the order of the responses says nothing
            shuffled = [given for given in rows if given.prompt == row.id]
            chance.shuffle(shuffled)
            other = next(
                again
                for again in parse(shuffled, pattern=PATTERN, labels=LABELS, rationale=kept, **settings)
                if isinstance(again, Example)
            )
            assert (other.label, other.agreement, other.entropy) == (row.label, row.agreement, row.entropy)


def test_which_rationale_is_kept_is_a_setting() -> None:
    said = [
        response("A long reason. So the answer is food.", sample=0, mean_logprob=-0.9),
        response("Wrong. So the answer is sports.", sample=1, mean_logprob=-0.1),
        response("So the answer is food.", sample=2, mean_logprob=None),
        response("A reason. So the answer is food.", sample=3, mean_logprob=-0.8),
        response("A better reason. So the answer is food.", sample=4, mean_logprob=-0.2),
    ]
    assert one(said).response == "r1#0"
    assert one(said, rationale="shortest").rationale == "A reason."  # an empty one would be no reason at all
    chosen = one(said, rationale="highest_logprob")
    assert (chosen.response, chosen.label) == ("r1#4", "food")
    assert [vote.mean_logprob for vote in chosen.votes] == [-0.9, -0.1, None, -0.8, -0.2]
    free = one(said[:2], rationale="shortest", pattern=None, targets=["response"])
    assert free.response == "r1#1"


def test_soft_labels_are_the_mean_over_the_responses_that_have_them() -> None:
    said = [
        response(
            "R. So the answer is food.", sample=0, label_logprobs={"food": math.log(0.3), "Sports ": math.log(0.1)}
        ),
        response("R. So the answer is food.", sample=1, label_logprobs={"sports": -7.0, "food": -7.0}),
        response("R. So the answer is food.", sample=2),
    ]
    row = one(said, labels=LABELS)
    assert row.soft_labels == {"sports": pytest.approx((0.25 + 0.5) / 2), "food": pytest.approx((0.75 + 0.5) / 2)}
    assert list(row.soft_labels) == LABELS
    assert one(said[2:], labels=LABELS).soft_labels is None


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["food", " Food", "sports", "SPORTS.", "travel"]),
            st.one_of(st.floats(-800, 0), st.sampled_from([-math.inf, math.inf, math.nan])),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_soft_labels_sum_to_one_whatever_the_log_probabilities(given: list[dict[str, float]]) -> None:
    said = [response("R. So the answer is food.", sample=n, label_logprobs=each) for n, each in enumerate(given)]
    found = one(said, labels=LABELS).soft_labels
    usable = any(math.isfinite(logprob) for each in given for logprob in each.values())
    assert (found is not None) == usable
    if found is not None:
        assert sum(found.values()) == pytest.approx(1, abs=1e-9)
        assert set(found) <= {*LABELS, "travel"} and all(0 <= share <= 1 for share in found.values())


def test_a_rationalised_response_has_the_true_label() -> None:
    told = {"gold": "Sports", "rationalised": True}
    row = one(
        [response(" A goal is scored. ", label_logprobs={"food": -1.0}, **told)],
        pattern=None,
        labels=LABELS,
        rationalise=True,
    )
    assert (row.label, row.rationale, row.rationalised) == ("sports", "A goal is scored.", True)
    assert [vote.label for vote in row.votes] == ["sports"]
    assert (row.agreement, row.entropy, row.soft_labels) == (1.0, 0.0, None)
    framed = one([response("Because a goal is scored.", **told)], pattern="Because (?P<rationale>.+)", rationalise=True)
    assert (framed.label, framed.rationale) == ("Sports", "a goal is scored.")
    asked_in_json = one([response('{"rationale": "A goal."}', **told)], pattern=None, format="json", rationalise=True)
    assert (asked_in_json.label, asked_in_json.rationale) == ("Sports", "A goal.")


def test_a_rationalised_response_that_ends_elsewhere_is_dropped() -> None:
    said = [
        response("It is eaten. So the answer is Food.", sample=0, gold="sports", rationalised=True),
        response("A goal. So the answer is sports!", sample=1, gold="sports", rationalised=True),
        response("A goal. So the answer is sports.", sample=2, gold=None, rationalised=True),
    ]
    dropped, unknown, kept = parse(said, pattern=PATTERN, labels=LABELS, rationalise=True)
    assert isinstance(dropped, Drop) and isinstance(unknown, Drop) and isinstance(kept, Example)
    assert (dropped.id, dropped.reason) == ("r1#0", "contradicts_gold")
    assert (dropped.evidence["label"], dropped.evidence["gold"]) == ("food", "sports")
    assert dropped.evidence["text"] == "It is eaten. So the answer is Food."
    assert (unknown.reason, unknown.evidence["problem"]) == (
        "unparsed",
        "the row has no true label, and the response was to explain that",
    )
    assert [vote.response for vote in kept.votes] == ["r1#1"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"rationale": "It is eaten.", "label": " Food "}', None),
        (' {"label": "food", "rationale": ""}\n', None),
        ('{"label": "food"}', "the field 'rationale' is missing"),
        ('{"rationale": "R", "label": ""}', "the label is empty"),
        ('{"rationale": "R", "label": "food", "sure": "yes"}', "unknown field 'sure'"),
        ('{"rationale": "R", "label": 3}', "the field 'label' is no text"),
        ('{"rationale": "R", "label": "a", "label": "b"}', "not JSON: key 'label' stands there twice"),
        ('{"rationale": "R", "label": "\\ud800"}', "not JSON: text that is not valid Unicode"),
        ('{"rationale": "cut', "not JSON: "),
        ("[" * 5000, "not JSON: nested too deeply"),
        ('["food"]', "no JSON object"),
        ('```json\n{"rationale": "R", "label": "food"}\n```', "not JSON: "),
        ("", "the text is empty"),
    ],
)
def test_json_is_read_strictly(text: str, problem: str | None) -> None:
    (row,) = parse([response(text)], format="json", labels=LABELS)
    if problem is None:
        assert isinstance(row, Example) and row.label == "food" and row.rationale is not None
    else:
        assert isinstance(row, Drop) and row.reason == "unparsed"
        assert str(row.evidence["problem"]).startswith(problem)


@given(
    st.text(max_size=60)
    | st.from_regex(r'\{"(label|rationale)": ?"[^"]*"(, ?"(label|x)": ?"?\w*"?)?\}', fullmatch=True)
)
def test_any_text_is_read_as_json_or_dropped(text: str) -> None:
    (row,) = parse([response(text)], format="json", targets=["label"])
    assert isinstance(row, Example) == (isinstance(row, Example) and bool(row.label))
    assert type(row).read(row.line()) == row


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
    ("settings", "message"),
    [
        ({"weights": {"large": 2.0}}, "stages.parse.weights: they count only with vote: weighted"),
        (
            {"vote": "weighted", "weights": {"larg": 2.0}, "teachers": ["large", "small"]},
            "stages.parse.weights.larg: no such teacher; did you mean 'large'?",
        ),
        (
            {"rationale": "highest_logprob", "logprobs": False},
            "stages.parse.rationale: highest_logprob needs stages.sample.logprobs: true",
        ),
        ({"format": "json"}, "stages.parse.pattern: format: json needs none"),
        (
            {"pattern": "(?P<label>.+)", "rationalise": True},
            "stages.parse.pattern: has no group 'rationale', and task.targets names rationale",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(iter(()), **({"pattern": PATTERN} | settings))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("settings", "where"),
    [
        ({"pattern": "(?P<label>"}, "pattern"),
        ({"pattern": "(?P<lable>.)"}, "pattern"),
        ({"pattern": PATTERN, "label_type": "txt"}, "label_type"),
        ({"pattern": PATTERN, "cut_at": "Q:"}, "cut_at"),
        ({"pattern": PATTERN, "cut_at": [""]}, "cut_at"),
        ({"pattern": PATTERN, "min_agreement": 0.5}, "min_agreement"),
        ({"pattern": PATTERN, "vote": "best"}, "vote"),
        ({"pattern": PATTERN, "vote": "weighted", "weights": {"a": 0}}, "weights"),
        ({"pattern": PATTERN, "weights": {"a": float("inf")}}, "weights"),
        ({"pattern": PATTERN, "rationale": "longest"}, "rationale"),
        ({"format": "yaml"}, "format"),
        ({"patern": PATTERN}, "patern"),
    ],
)
def test_settings_are_checked_where_they_stand(settings: dict[str, object], where: str) -> None:
    with pytest.raises(Problem) as caught:
        bind(parse, settings, lookup=VALUES.__getitem__, folder=Path())
    assert caught.value.where[0] == where


def test_good_settings_bind() -> None:
    settings = {"pattern": PATTERN, "cut_at": ["Q:"], "vote": "weighted", "weights": {"large": 2}}
    bound = bind(parse, settings, lookup=VALUES.__getitem__, folder=Path())
    (row,) = parse(answers("Food"), **bound)
    assert isinstance(row, Example) and row.label == "food"


def test_several_teachers_in_one_run_vote_by_their_weights(project: Path) -> None:
    folder = project.parent
    said = {name: ("food" if name in ("r0", "r2") else "sports") for name in ("r0", "r1", "r2", "r3")}
    reason = "It speaks of it and more. So the answer is"
    write_jsonl(folder / "large.jsonl", [{"id": name, "completion": f"{reason} {said[name]}."} for name in said])
    for name in ("small", "tiny"):
        write_jsonl(folder / f"{name}.jsonl", [{"id": row, "completion": f"{reason} sports."} for row in said])
    teachers = [f"{{backend: replay, name: {name}, completions: {name}.jsonl}}" for name in ("large", "small", "tiny")]
    project.write_text(
        project.read_text()
        .replace("{backend: replay, completions: completions.jsonl}", f"[{', '.join(teachers)}]")
        .replace("{min_words: 3}", "{min_agreement: 0.7}")
    )

    def labels(*settings: str) -> tuple[dict[str, str | None], dict[str, list[str]]]:
        outcomes = {outcome.stage: outcome.folder for outcome in run(project, until="quality", overrides=settings)}
        parsed = {row.id: row.label for row in outputs.read(outcomes["parse"], Example)}
        reasons: dict[str, list[str]] = {}
        for drop in outputs.read_drops(outcomes["quality"]):
            reasons.setdefault(drop.reason, []).append(drop.id)
            assert [vote["teacher"] for vote in drop.evidence["votes"]] == ["large", "small", "tiny"]  # type: ignore[union-attr,index,call-overload]
        return parsed, reasons

    assert labels() == (dict.fromkeys(said, "sports"), {"min_agreement": ["r0", "r2"]})
    weighted = ("parse.vote=weighted", "parse.weights={large: 2.5}")
    assert labels(*weighted) == (said, {"min_agreement": ["r0", "r2"]})  # 2.5 of 4.5
    assert labels(*weighted, "quality.filters=[{min_agreement: 0.5}]") == (said, {})
    assert labels(*weighted, "quality.filters=[{max_entropy: 0.5}]") == (said, {"max_entropy": ["r0", "r2"]})
    with pytest.raises(InputError, match="stages.parse.weights.larg: no such teacher; did you mean 'large'"):
        labels("parse.vote=weighted", "parse.weights={larg: 2}")
    with pytest.raises(InputError, match="stages.parse.rationale: highest_logprob needs stages.sample.logprobs: true"):
        labels("parse.rationale=highest_logprob")


def test_rationales_for_true_labels_in_one_run(project: Path) -> None:
    (project.parent / "why.jinja").write_text("{% block user %}{{ text }} is {{ gold }}. Why?{% endblock %}")
    with chat_server(lambda body: completion("Its words say so.")) as chat:
        teacher = f"{{backend: server, base_url: '{chat.url}', model: m}}"
        text = project.read_text().replace("{backend: replay, completions: completions.jsonl}", teacher)
        text = text.replace("    teacher:", "    rationalise: true\n    teacher:").replace(
            "  labels:", "  prompt: why.jinja\n  labels:"
        )
        start, end = text.index("  parse:"), text.index("  dedup:")
        project.write_text(text[:start] + text[end:])  # no pattern: the whole text is the rationale
        parsed = next(outcome for outcome in run(project, until="parse") if outcome.stage == "parse")
    rows = list(outputs.read(parsed.folder, Example))
    assert len(rows) == 29
    assert {(row.label == row.gold, row.rationale, row.rationalised) for row in rows} == {
        (True, "Its words say so.", True)
    }
