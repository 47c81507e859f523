"""decontaminate: what overlaps an eval set is dropped, with the eval row, the span in both texts, and how much of it was found."""

import itertools
import json
import pickle
import random
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import overlap, tokens
from pipeline.binding import Problem, bind
from pipeline.decontaminate import CORPUS, PRESETS, as_it_stands, check, decontaminate
from pipeline.dedup import Semantic
from pipeline.files import InputError, RunError, read_jsonl
from pipeline.records import Drop, Example
from pipeline.shots import FewShot
from pipeline.sources import EvalSet
from pipeline.text import normalise, words
from tests.rows import example

ROOT = Path(__file__).parents[1]
TOPICS = ROOT / "data" / "topics"
LONG = "The overnight ferry to the delta villages was restored in time for the flamingo season"
SHORT = "Still warm, a bit too sweet"
SETTINGS: dict[str, Any] = {
    "ngram": 8,
    "coverage": 0.5,
    "edited": 0.65,
    "shortest": 4,
    "numbers": "ignore",
    "shared_passages": "report",
    "fields": ("prompt", "input", "rationale"),
    "semantic": None,
    "preset": None,
    "prompt": None,
    "few_shot": None,
    "input": None,
}


def eval_set(folder: Path, *texts: str, name: str = "test") -> dict[str, EvalSet]:
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"id": f"t{n}", "text": text}) + "\n" for n, text in enumerate(texts)))
    return {name: EvalSet(path=path, input="{{ text }}", id="id")}


def judge(rows: Sequence[Example], eval_sets: dict[str, EvalSet], **knobs: Any) -> list[Drop | None]:
    return list(decontaminate(rows, eval_sets=eval_sets, **knobs))


def told(rows: Sequence[Example], eval_sets: dict[str, EvalSet], **knobs: Any) -> tuple[list[Drop | None], Any]:
    """The verdicts, and what goes into the manifest."""
    verdicts, found = CORPUS.judge(rows, SETTINGS | knobs | {"eval_sets": eval_sets}), []
    while True:
        try:
            found.append(next(verdicts))
        except StopIteration as end:
            return found, end.value


def method(verdict: Drop | None) -> str | None:
    return None if verdict is None else str(verdict.evidence["method"])


def test_the_evidence_names_the_eval_row_and_the_words_in_both_texts(tmp_path: Path) -> None:
    leaked = f"Seen in the paper: {LONG.upper()}, of next year."
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
        "method": "contained",
        "score": 1.0,
        "threshold": 1.0,
        "words_found": [15, 15],
        "numbers_differ": False,
        "overlap": LONG.upper() + ",",
        "eval_overlap": LONG,
        "settings": {"ngram": 8, "coverage": 0.5, "edited": 0.65, "shortest": 4, "numbers": "ignore"},
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LONG, "exact"),
        (LONG.upper() + "!!", "exact"),
        (SHORT + "...", "exact"),
        ("Kept for later: " + " ".join(LONG.split()[:11]), "runs"),
        ("Kept for later: " + " ".join(LONG.split()[3:12]), "runs"),
        ("Kept for later: " + " ".join(LONG.split()[4:11]), None),  # seven words in a run, and no half of the row
        (LONG.replace("ferry", "boat").replace("restored", "back"), "edited"),
        (LONG.replace("the delta ", "").replace("flamingo", "late summer"), "edited"),
        (" ".join(LONG.split()[7:] + LONG.split()[:7]), "runs"),  # in another order
        (" ".join(LONG.split()[10:] + LONG.split()[5:10] + LONG.split()[:5]), None),  # in no run of eight words
        ("The pie was " + SHORT.lower() + ", and gone in two bites at the end of it", "contained"),
        ("ferry to the delta villages", None),  # a third of the eval row says little
        ("The overnight bus to the hill villages was closed in time", None),
        ("Something else altogether, of which no word is shared", None),
        ("Too sweet!", "exact"),
        ("Oh, too sweet for my taste", None),  # the eval row is too short to be looked for inside texts
    ],
)
def test_what_overlaps(tmp_path: Path, text: str, expected: str | None) -> None:
    (verdict,) = judge([example(input=text, rationale="")], eval_set(tmp_path, LONG, SHORT, "Too sweet"))
    assert method(verdict) == expected


def test_short_eval_rows_are_looked_for_from_the_length_that_is_set_and_others_are_counted(tmp_path: Path) -> None:
    rows = [example(input="Oh, too sweet for my taste, that thing", rationale=None)]
    sets = eval_set(tmp_path, "Too sweet", LONG)
    verdicts, details = told(rows, sets)
    assert verdicts == [None]
    assert details["eval_sets"] == {"test": {"rows": 2, "too_short": 1, "found": 0, "dropped": 0}}
    verdicts, details = told(rows, sets, shortest=2)
    assert method(verdicts[0]) == "contained"
    assert details["eval_sets"] == {"test": {"rows": 2, "too_short": 0, "found": 1, "dropped": 1}}


def test_thresholds_are_settings(tmp_path: Path) -> None:
    sets = eval_set(tmp_path, LONG)
    part = [example(input=" ".join(LONG.split()[:11]), rationale=None)]
    assert method(*judge(part, sets)) == "runs"
    assert method(*judge(part, sets, coverage=0.9)) == "edited"
    assert judge(part, sets, coverage=0.9, edited=None) == [None]
    assert judge(part, sets, ngram=12, edited=0.9) == [None]


STORY = "{} has {} marbles and gives {} of them to his sister. How many marbles does he have left?"


def test_other_numbers_are_the_same_row_unless_numbers_matter(tmp_path: Path) -> None:
    rows = [
        example("same", input=STORY.format("Luke", 84, 2), rationale=None),
        example("other", input=STORY.format("Luke", 17, 5.5), rationale=None),
    ]
    sets = eval_set(tmp_path, STORY.format("Luke", 84, 2))
    verdicts = judge(rows, sets)
    assert [method(verdict) for verdict in verdicts] == ["exact", "exact"]
    assert [verdict and verdict.evidence["numbers_differ"] for verdict in verdicts] == [False, True]
    verdicts = judge(rows, sets, numbers="matter")
    assert [method(verdict) for verdict in verdicts] == ["exact", None]


NOUNS = (
    "apple boat candle drum eagle fence garden hammer island jacket kettle ladder mirror needle orange piano".split()
)


def test_rows_of_the_same_frame_about_something_else_are_kept(tmp_path: Path) -> None:
    def frame(noun: str, other: str) -> str:
        return f"Where would you look for a {noun} if you want to use it with a {other}?"

    theirs, ours = ([frame(*pair) for pair in itertools.permutations(nouns, 2)] for nouns in (NOUNS[:8], NOUNS[8:]))
    sets = eval_set(tmp_path, *theirs)
    rows = [example(f"r{n}", input=text, rationale=None) for n, text in enumerate([*ours, *theirs[::20]])]
    verdicts = judge(rows, sets)
    assert verdicts[: len(ours)] == [None] * len(ours)
    assert [verdict and verdict.evidence["eval_row"] for verdict in verdicts[len(ours) :]] == ["t0", "t20", "t40"]


PASSAGE = (
    "The harbour of the old town was closed for three winters after the storm, and the fishermen moved their boats along the coast to "
    "a bay that the charts of that time do not show. "
)
ASKED = [
    "Who closed it?",
    "Where did the boats go?",
    "How long was it shut?",
    "What did charts leave out?",
    "Why was it closed?",
]


def test_a_passage_that_rows_share_is_reported_and_not_dropped(tmp_path: Path) -> None:
    sets = eval_set(tmp_path, *(PASSAGE + question for question in ASKED[:3]))
    rows = [
        example("other", input=PASSAGE + ASKED[3], rationale=None),
        example("copy", input=PASSAGE + ASKED[1], rationale=None),
        example("none", input=LONG, rationale=None),
    ]
    verdicts, details = told(rows, sets)
    assert [verdict and verdict.evidence["eval_row"] for verdict in verdicts] == [None, "t1", None]
    assert details["shared_passages"]["rows"] == 1
    (seen,) = details["shared_passages"]["examples"]
    assert (seen["row"], seen["method"]) == ("other", "shared passage")
    assert seen["score"] < SETTINGS["edited"] and seen["overlap"] in PASSAGE
    verdicts, _ = told(rows, sets, shared_passages="drop")
    assert [verdict and verdict.reason for verdict in verdicts] == ["shared_passage", "contaminated", None]


def test_a_passage_that_many_training_rows_share_counts_little(tmp_path: Path) -> None:
    sets = eval_set(tmp_path, PASSAGE + ASKED[0] + " Was it for good?")
    rows = [example(f"r{n}", input=f"{PASSAGE} {ask}", rationale=None) for n, ask in enumerate(ASKED[1:])]
    assert judge(rows, sets) == [None] * len(rows)


def test_the_frame_of_an_eval_set_counts_little(tmp_path: Path) -> None:
    frame = "Read the following note with care and say in one word what it is about, without any further explanation: "
    texts = [str(row["text"]) for _, row in read_jsonl(TOPICS / "test.jsonl")]
    sets = eval_set(tmp_path, *(frame + text for text in texts[:30]))
    rows = [example(f"r{n}", input=frame + text, rationale=None) for n, text in enumerate(texts[30:60])]
    rows += [example("copy", input=texts[7], rationale=None)]
    verdicts = judge(rows, sets)
    assert verdicts[:-1] == [None] * 30
    assert verdicts[-1] is not None and verdicts[-1].evidence["eval_row"] == "t7"


def test_the_rationale_counts_as_well(tmp_path: Path) -> None:
    row = example(rationale=f"It says that {LONG}.")
    (verdict,) = judge([row], eval_set(tmp_path, LONG))
    assert verdict is not None and verdict.evidence["where"] == "rationale"
    assert judge([row], eval_set(tmp_path, LONG), fields=["input"]) == [None]
    assert judge([row], eval_set(tmp_path, LONG), fields=["prompt"]) == [None]


def test_every_eval_set_is_looked_at(tmp_path: Path) -> None:
    sets = eval_set(tmp_path, SHORT, name="first") | eval_set(tmp_path, LONG, name="second")
    (verdict,) = judge([example(input=LONG)], sets)
    assert verdict is not None
    assert (verdict.evidence["eval_set"], verdict.evidence["eval_row"]) == ("second", "t0")


def test_long_eval_rows_and_long_texts(tmp_path: Path) -> None:
    """An eval row that is too long to be aligned is found by its runs; one of ordinary length is found in the middle of a long text."""
    chance = random.Random(1)
    long = [chance.choice(VOCABULARY) + str(chance.randrange(50)) for _ in range(overlap.LONGEST + 200)]
    around = " ".join(f"page{number}" for number in range(3000))
    edited = LONG.replace("ferry", "boat").replace("restored", "back")
    rows = [
        example("long", input=" ".join(word for word in long if chance.random() > 0.03), rationale=None),
        example("inside", input=f"{around} {edited} {around}", rationale=None),
        example("none", input=around, rationale=None),
    ]
    verdicts = judge(rows, eval_set(tmp_path, " ".join(long), LONG))
    assert [method(verdict) for verdict in verdicts] == ["runs", "edited", None]
    assert verdicts[1] is not None and words(str(verdicts[1].evidence["overlap"])) == words(edited)


def test_without_eval_sets_all_rows_are_kept() -> None:
    assert judge([example(), example("r2")], {}) == [None, None]


# Properties ---------------------------------------------------------------------------------------------------------------------------

VOCABULARY = "amber birch cedar delta ember fjord glade heath isle jetty knoll lagoon mesa north oasis plain".split()
ROW = st.lists(st.sampled_from(VOCABULARY), min_size=4, max_size=14)
AROUND = st.lists(st.sampled_from([*VOCABULARY, "quay", "reef", "shoal"]), max_size=20)


def _full_width(text: str) -> str:
    return "".join(chr(ord(one) + 0xFEE0) if "!" <= one <= "~" else one for one in text)


STYLES = [
    str.upper,
    str.title,
    _full_width,
    lambda text: text.replace(" ", "\n\t "),
    lambda text: text.replace(" ", ", ") + "?!",
    lambda text: "«" + text.replace(" ", " – ") + "»",
    lambda text: unicodedata.normalize("NFD", text),
]


@settings(max_examples=60)
@given(st.lists(ROW, min_size=1, max_size=5), st.data())
def test_a_planted_eval_row_is_found_at_any_place_and_in_any_style(
    tmp_path_factory: pytest.TempPathFactory, tests: list[list[str]], data: st.DataObject
) -> None:
    place = data.draw(st.integers(0, len(tests) - 1))
    planted = data.draw(st.sampled_from(STYLES))(" ".join(tests[place]))
    text = " ".join([*data.draw(AROUND), planted, *data.draw(AROUND)])
    sets = eval_set(tmp_path_factory.mktemp("eval"), *map(" ".join, tests))
    (verdict,) = judge([example(input=text, rationale=None)], sets)
    assert verdict is not None and verdict.evidence["score"] == 1.0
    named = tests[int(str(verdict.evidence["eval_row"])[1:])]
    assert " ".join(named) in normalise(text)
    assert " ".join(named) in normalise(str(verdict.evidence["overlap"]))


@settings(max_examples=60)
@given(st.lists(ROW, min_size=1, max_size=6), st.lists(st.one_of(ROW, AROUND), max_size=12), st.data())
def test_verdicts_depend_on_no_cut_and_no_order_and_spans_stand_in_both_texts(
    tmp_path_factory: pytest.TempPathFactory, tests: list[list[str]], texts: list[list[str]], data: st.DataObject
) -> None:
    sets = eval_set(tmp_path_factory.mktemp("eval"), *map(" ".join, tests))
    rows = [example(f"r{n}", input=" ".join(text), rationale=None) for n, text in enumerate(texts)]
    whole = judge(rows, sets)
    kept = [row.id for row, verdict in zip(rows, whole, strict=True) if verdict is None]
    dropped = [verdict.id for verdict in whole if verdict is not None]
    assert sorted(kept + dropped) == sorted(row.id for row in rows)
    for row, verdict in zip(rows, whole, strict=True):
        if verdict is not None:
            assert verdict.id == row.id
            assert str(verdict.evidence["overlap"]) in row.input
            named = tests[int(str(verdict.evidence["eval_row"])[1:])]
            assert str(verdict.evidence["eval_overlap"]) in " ".join(named)
            assert verdict.evidence["score"] >= verdict.evidence["threshold"]

    order = data.draw(st.permutations(range(len(rows))))
    cut = data.draw(st.integers(0, len(rows)))
    knobs = SETTINGS | {"eval_sets": sets}
    prepared = pickle.loads(pickle.dumps(CORPUS.prepare(**knobs)))  # as it comes to another process
    mixed = [rows[place] for place in order]
    parts = (mixed[:cut], mixed[cut:])
    sketches = [pickle.loads(pickle.dumps(CORPUS.sketch(part, prepared, **knobs))) for part in parts]
    assert list(CORPUS.resolve(sketches, prepared, **knobs)) == [whole[place] for place in order]


@settings(max_examples=100)
@given(ROW, st.lists(st.sampled_from(VOCABULARY[:6]), max_size=30), ROW, st.integers(2, 6))
def test_runs_and_alignments_are_what_they_say(
    wanted: list[str], text: list[str], other: list[str], ngram: int
) -> None:
    index = overlap.build_any(tokens.pack([" ".join(wanted), " ".join(other)]), ngram=ngram)
    found = overlap.scan(tokens.pack([" ".join(text)]), index)
    for place, row in enumerate((wanted, other)):
        inside = {
            start + step
            for start in range(len(row) - ngram + 1)
            for at in range(len(text) - ngram + 1)
            if row[start : start + ngram] == text[at : at + ngram]
            for step in range(ngram)
        }
        mine = numpy.flatnonzero(found.row == place).tolist()
        assert bool(mine) == bool(inside)
        for candidate in mine:
            marks = found.marked(candidate)
            assert {number for number, mark in enumerate(marks) if mark & overlap.IN_RUN} == inside
            aligned = [row[number] for number, mark in enumerate(marks) if mark & overlap.ALIGNED]
            first, last, at, start, length = found.spans[candidate].tolist()
            left = iter(text[first:last])
            assert all(word in left for word in aligned)  # in order
            assert length >= ngram and row[start : start + length] == text[at : at + length]


@settings(max_examples=200)
@given(st.text(st.sampled_from("ab1 ,.-'$½é中 \n"), max_size=30), st.data())
def test_spans_are_shown_as_they_stand(text: str, data: st.DataObject) -> None:
    known = words(text)
    first = data.draw(st.integers(0, len(known)))
    last = data.draw(st.integers(first, len(known)))
    shown = as_it_stands(text, first, last)
    assert shown in text or shown == " ".join(known[first:last])
    assert _signless(known[first:last]) in _signless(words(shown))


def _signless(found: list[str]) -> str:
    """Without signs, which are words only between two digits: a span may begin or end with one."""
    return " ".join(word for word in found if word not in ("-", "*", "/"))


# Presets ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "shared"), [("open_r1", 8), ("datatrove", 12), ("lm_eval", 13), ("gpt3", 13)])
def test_any_run_of_so_many_words_is_enough_for_the_presets(tmp_path: Path, preset: str, shared: int) -> None:
    sets = eval_set(tmp_path, f"{PASSAGE} {LONG}")
    rows = [
        example(input="Seen here: " + " ".join(LONG.split()[:number]) + " and so on", rationale=None)
        for number in (shared, shared - 1)
    ]
    verdicts = judge(rows, sets, preset=preset)
    assert [method(verdict) for verdict in verdicts] == [preset, None]
    assert verdicts[0] is not None
    assert verdicts[0].evidence["settings"] == {"preset": preset, "ngram": PRESETS[preset].ngram}
    assert words(str(verdicts[0].evidence["overlap"])) == words(LONG)[:shared]


def test_gpt3_lets_runs_pass_that_more_than_ten_texts_have(tmp_path: Path) -> None:
    sets = eval_set(tmp_path, LONG)
    rows = [example(f"r{n}", input=f"{n} {LONG}", rationale=None) for n in range(11)]
    assert all(judge(rows[:10], sets, preset="gpt3"))
    assert not any(judge(rows, sets, preset="gpt3"))
    assert all(judge(rows, sets, preset="lm_eval"))


def test_open_instruct_wants_over_half_of_the_eval_row(tmp_path: Path) -> None:
    row = " ".join(f"word{number}" for number in range(20))
    texts = [" ".join(f"word{number}" for number in range(size)) for size in (10, 11)]
    verdicts = judge(
        [example(input=text, rationale=None) for text in texts], eval_set(tmp_path, row), preset="open_instruct"
    )
    assert [verdict and verdict.evidence["score"] for verdict in verdicts] == [None, 0.55]


# Before the first verdict ---------------------------------------------------------------------------------------------------------------


def test_an_index_that_finds_nothing_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = overlap.scan
    monkeypatch.setattr(overlap, "scan", lambda texts, index: whole(tokens.pack([""] * len(texts)), index))
    with pytest.raises(
        RunError, match=r"eval_sets\.test: row t0 was planted as it is to check the index and was not found"
    ):
        judge([example()], eval_set(tmp_path, LONG))


@pytest.mark.parametrize(
    "text", [":-)", "😀", "3", "½", "的士在哪里可以找到", "don't", "a-b - c", "STRASSE ß ı İ", "x " * 300]
)
def test_the_check_passes_for_odd_eval_rows(tmp_path: Path, text: str) -> None:
    sets = eval_set(tmp_path, text, text, LONG)
    assert method(*judge([example(input=text, rationale=None)], sets)) == "exact"
    for preset in PRESETS:
        judge([example(input=text, rationale=None)], sets, preset=preset)


def test_a_few_shot_example_that_is_an_eval_row_stops(tmp_path: Path) -> None:
    sets = eval_set(tmp_path, SHORT, LONG)
    prompt = tmp_path / "prompt.jinja"
    prompt.write_text(f"{{# {LONG} #}}{{% block user_1 %}}A note about bread.{{% endblock %}}{{% block assistant_1 %}}Food.{{% endblock %}}"
                      "{% block user %}{{ text }}{% endblock %}")  # fmt: skip
    assert judge([], sets, prompt=prompt) == []
    prompt.write_text(prompt.read_text().replace("A note about bread.", f"Note: {LONG.lower()}!"))
    with pytest.raises(
        InputError, match=r"prompt\.jinja: 'the overnight ferry .* season!' stands in eval_sets\.test, row t1"
    ):
        judge([], sets, prompt=prompt)
    with pytest.raises(InputError, match=r"prompt\.jinja"):
        check(SETTINGS | {"eval_sets": sets, "prompt": prompt})
    assert judge([], sets, prompt=prompt, fields=["input"]) == []
    check(SETTINGS | {"eval_sets": sets, "prompt": prompt, "fields": ["input"]})


def test_an_example_from_a_file_that_is_an_eval_row_stops(tmp_path: Path) -> None:
    sets = eval_set(tmp_path, SHORT, LONG)
    prompt, file = tmp_path / "prompt.jinja", tmp_path / "shots.jsonl"
    prompt.write_text("{% block user %}{% for shot in shots %}{{ shot.text }}{% endfor %}{{ text }}{% endblock %}")
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("A note about bread", LONG)))
    with pytest.raises(InputError, match=r"shots\.jsonl: example 2: .* stands in eval_sets\.test, row t1"):
        judge([], sets, prompt=prompt, few_shot=FewShot(path=file, k=1), input="{{ text }}")


def test_the_prompt_of_the_demo_holds_no_eval_row() -> None:
    sets = {"test": EvalSet(path=TOPICS / "test.jsonl", input="{{ text }}", gold="topic")}
    check(SETTINGS | {"eval_sets": sets, "prompt": ROOT / "prompts" / "topics.jinja"})


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


# Meaning, and the demo ------------------------------------------------------------------------------------------------------------------


def test_inputs_that_mean_the_same_are_dropped_where_a_model_is_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def nearest(queries: Sequence[str], texts: Sequence[str], **knobs: Any) -> tuple[Any, Any, Any]:
        asked.append((list(queries), list(texts), knobs))
        return numpy.array([0, 1, 1]), numpy.array([1, 1, 2]), numpy.array([0.91, 0.97, 0.93], numpy.float32)

    monkeypatch.setattr("pipeline.embeddings.nearest", nearest)
    rows = [example("r0"), example("r1", input="A boat goes again"), example("r2", input=LONG)]
    model = Semantic(model="a-model", at_least=0.9)
    verdicts, details = told(rows, eval_set(tmp_path, SHORT, LONG), semantic=model)
    assert [method(verdict) for verdict in verdicts] == [None, "meaning", "exact"]
    assert verdicts[1] is not None
    assert (verdicts[1].evidence["eval_row"], verdicts[1].evidence["score"]) == ("t1", 0.97)
    assert details["methods"] == {"exact": 1, "meaning": 1}
    assert asked == [
        ([SHORT, LONG], [row.input for row in rows], {"model": "a-model", "at_least": 0.9, "revision": None})
    ]


LEAKED = {47: 22, 50: 31, 74: 24, 99: 3, 158: 1, 232: 7, 276: 40, 356: 61, 415: 26, 416: 12}


def test_the_test_rows_leaked_into_the_demo_are_found_and_nothing_else() -> None:
    rows = [
        example(f"line {line}", input=str(row["text"]), rationale=None)
        for line, row in read_jsonl(TOPICS / "train.jsonl")
    ]
    sets = {"test": EvalSet(path=TOPICS / "test.jsonl", input="{{ text }}", gold="topic")}
    found = {drop.id: drop.evidence["eval_source"] for drop in judge(rows, sets) if drop is not None}
    assert found == {f"line {line}": f"test.jsonl:{source}" for line, source in LEAKED.items()}


def test_edited_copies_of_real_texts_are_found(tmp_path: Path) -> None:
    """One word in ten exchanged, dropped or added, at random places."""
    chance = random.Random(4)
    texts = [str(row["text"]) for _, row in read_jsonl(TOPICS / "test.jsonl")]
    other = [str(row["text"]) for line, row in read_jsonl(TOPICS / "train.jsonl") if line not in LEAKED]
    vocabulary = [word for text in other for word in text.split()]
    rows = [example(f"r{n}", input=text, rationale=None) for n, text in enumerate(other)]
    for text in texts:
        found = text.split()
        for place in chance.sample(range(len(found)), max(1, round(len(found) / 10))):
            new = chance.choice(vocabulary)
            found[place] = chance.choice([new, "", f"{found[place]} {new}"])
        rows.append(example(f"c{len(rows)}", input=re.sub(" +", " ", " ".join(found)), rationale=None))
    verdicts = judge(rows, eval_set(tmp_path, *texts))
    assert not any(verdicts[: len(other)])
    assert sum(verdict is not None for verdict in verdicts[len(other) :]) >= 0.97 * len(texts)


@pytest.mark.parametrize(
    "given",
    [
        {"ngram": 1}, {"ngram": 8.0}, {"shortest": 0}, {"coverage": 0}, {"coverage": 1.1}, {"edited": 0}, {"numbers": "some"},
        {"shared_passages": "keep"}, {"fields": ["label"]}, {"preset": "gpt4"}, {"semantic": {}}, {"eval_sets": {}},
    ],
)  # fmt: skip
def test_settings_have_ranges(given: dict[str, object]) -> None:
    values: dict[str, Any] = {
        "eval_sets": {},
        "task.prompt": None,
        "stages.sample.few_shot": None,
        "task.input": "{{ text }}",
    }
    bind(decontaminate, {"ngram": 8, "preset": "gpt3"}, lookup=values.__getitem__, folder=Path())
    with pytest.raises(Problem):
        bind(decontaminate, given, lookup=values.__getitem__, folder=Path())


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_passes_over_an_eval_set_of_short_rows(tmp_path: Path, preset: str) -> None:
    assert judge([example()], eval_set(tmp_path, "one"), preset=preset) == [None]


def test_letters_that_combine_across_the_marks_of_the_self_check_stop_nothing(tmp_path: Path) -> None:
    strange = "\u0327\u0196 \u00cd\u1ffe\u1fad\u0321\u0111 and some words beside"
    assert judge([example()], eval_set(tmp_path, strange)) == [None]
