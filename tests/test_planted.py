"""The builder of the labelled benchmark: every edit does what its name says, and every planted row has its true label."""

import random
import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import planted
from benchmarks.curation_quality import any_hit, by_default, coverage, jaccard, percent, precision, wilson
from benchmarks.planted import Contamination, Real, Truth
from pipeline.text import normalise
from tests.rows import example

WORDS = st.from_regex(r"[a-z]{1,7}|[1-9][0-9]{0,3}", fullmatch=True)
TEXTS = st.lists(WORDS, min_size=1, max_size=40).flatmap(
    lambda words: st.lists(
        st.sampled_from([" ", " ", ", ", ". ", "\n", "? "]), min_size=len(words), max_size=len(words)
    ).map(lambda gaps: "".join(word + gap for word, gap in zip(words, gaps, strict=True)).strip())
)
SEEDS = st.integers(0, 2**32).map(random.Random)
NEW = ["Xaver", "Yvonne", "Zora"]  # no text of TEXTS holds these


@given(TEXTS, st.floats(0, 1), SEEDS)
def test_so_many_words_are_edited_and_the_others_stay_in_order(text: str, share: float, chance: random.Random) -> None:
    words = text.split()
    edits = min(len(words), max(1, round(share * len(words))))
    found = planted.edited(text, share, chance, NEW).split()
    old = [word for word in found if word not in NEW]
    assert len(words) - edits <= len(old) <= len(words)
    assert len(found) - len(old) <= edits
    assert found != words or edits == len(words)  # all words deleted: the text stays
    rest = iter(words)
    assert all(word in rest for word in old)


@given(TEXTS, SEEDS)
def test_numbers_and_negations_stay_where_they_are_protected(text: str, chance: random.Random) -> None:
    text += " It is not 5."
    found = planted.edited(text, 0.8, chance, [*NEW, "no", "7", "three"], planted.protected)
    assert [word for word in found.split() if planted.protected(word)] == [
        word for word in text.split() if planted.protected(word)
    ]


@given(TEXTS, SEEDS)
def test_every_number_becomes_another_of_its_length(text: str, chance: random.Random) -> None:
    new = planted.renumbered(text, chance)
    assert re.sub(r"\d", "#", new) == re.sub(r"\d", "#", text)
    pairs = list(zip(re.findall(r"\d+", text), re.findall(r"\d+", new), strict=True))
    assert all(old != found for old, found in pairs)
    assert len(set(pairs)) == len(dict(pairs))  # equal numbers stay equal


@given(TEXTS, SEEDS)
def test_restyled_texts_have_the_same_words(text: str, chance: random.Random) -> None:
    assert normalise(planted.restyled(text, chance)) == normalise(text)


@given(TEXTS, SEEDS)
def test_reordered_texts_have_the_same_words(text: str, chance: random.Random) -> None:
    words = text.split()
    assert Counter(planted.clauses_reordered(text, chance).split()) == Counter(words)
    shuffled = planted.words_shuffled(text, chance).split()
    for start in range(0, len(words), 4):
        was, now = words[start : start + 4], shuffled[start : start + 4]
        assert Counter(now) == Counter(was)
        assert now != was or len(set(was)) == 1


@given(TEXTS, SEEDS)
def test_a_half_is_the_beginning_or_the_end(text: str, chance: random.Random) -> None:
    words, found = text.split(), planted.half(text, chance).split()
    assert abs(2 * len(found) - len(words)) <= 1
    assert found in (words[: len(found)], words[len(words) - len(found) :])


@given(TEXTS)
def test_exchanging_two_numbers_twice_changes_nothing(text: str) -> None:
    once = planted.numbers_exchanged(text)
    assert planted.numbers_exchanged(once) == text
    assert (once != text) == (len(set(re.findall(r"\d+", text))) > 1)


@pytest.mark.parametrize(
    ("text", "negated"),
    [
        ("She is at home", "She is not at home"),
        ("She isn't at home", "She at home"),
        ("Take no bread", "Take bread"),
        ("Bread", "Bread not"),
    ],
)
def test_negations_come_and_go(text: str, negated: str) -> None:
    assert planted.negated(text, random.Random(0)) == negated


@given(SEEDS)
def test_a_template_is_filled_with_the_same_new_word_everywhere(chance: random.Random) -> None:
    content = {"s": ["apples", "pears", "plums"], "": ["tree", "house"]}
    text, exchanged = planted.other_content("Apples grow; 3 apples fall off the tree.", chance, content)
    match = re.fullmatch(r"(Pears|Plums) grow; ([12456789]) (pears|plums) fall off the house\.", text)
    assert match is not None and match[1].lower() == match[3]
    assert exchanged == 2


@given(SEEDS)
def test_one_result_is_wrong(chance: random.Random) -> None:
    text = "He had 3 + 4 = 7 apples. 7 * 2 = 14. The rest is 1 = 2 - 1."
    wrong = planted.miscalculated(text, chance)
    changed = [(old, new) for old, new in zip(text.split(), wrong.split(), strict=True) if old != new]
    assert len(changed) == 1 and changed[0][0] in ("7", "14.")
    assert planted.miscalculated("No sum at all", chance) == "No sum at all"


def test_brute_force_tells_variations_from_templates() -> None:
    problem = "Danny collects bottle caps. He found 22 bottle caps at the park.\nHow many bottle caps does Danny have?"
    common = frozenset("he at the how many does have found a is what where in to be".split())
    texts = [
        problem.replace("22", "5"),
        "Then: " + problem.upper(),
        problem.replace("caps", "tops").replace("park", "zoo"),
        "Faye collects wrappers. He found 22 bottle tops at the zoo.\nHow many wrappers does Faye have?",
        "Anna sells marbles. He found 22 marbles at the fair.\nHow many marbles does Anna have?",
    ]
    assert planted.overlaps(texts, ["Where is a squirrel?", problem], common) == [
        ("overlap", 1),
        ("overlap", 1),
        ("unclear", 1),
        ("clean", -1),
        ("clean", -1),
    ]


@given(TEXTS, TEXTS)
def test_alignment_is_a_share_of_the_other_text(text: str, other: str) -> None:
    assert 0 <= planted.aligned(text, other) <= 1
    assert planted.aligned(f"{other} {text}", other) == 1


def test_intervals_and_similarities_are_those_worked_out_by_hand() -> None:
    assert wilson(97, 100) == pytest.approx((0.9155, 0.9897), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert percent(97, 100) == "97.0 [91.5, 99.0]"
    assert jaccard("abcde", "ABCDF!", 4, of_words=False) == pytest.approx(1 / 3)
    assert jaccard("a b c", "a b d", 1, of_words=True) == 0.5


def test_precision_counts_what_is_clean_and_leaves_out_what_is_unclear() -> None:
    truths = [
        Truth("verbatim", "cqa", "leak", "e1"),
        Truth("real row", "cqa", "clean"),
        Truth("real row, unclear", "cqa", "unclear"),
    ]
    found = precision(["e1", "e1", "e1"], [*truths])
    assert (found["planted"], found["strict"]) == (0.5, pytest.approx(1 / 3))
    assert found["rare"] == pytest.approx(0.01)
    assert precision(["e1", None, None], truths)["rare"] == 1


def test_plain_rules_do_what_they_are_named_for() -> None:
    text = "one two three four five six seven eight nine ten"
    rows = [
        example(input=f"Seen: {text[:39]}"),
        example(input=text[:33]),
        example(input="nothing", rationale=text.upper()),
    ]
    case = Contamination(rows, {}, [], {}, {"test": {"e1": text}})
    assert any_hit(case, 8) == ["e1", None, "e1"]  # eight words, seven words, all of them
    assert any_hit(case, 11) == [None, None, None]
    assert any_hit(case, 8, most=1) == [None, None, "e1"]  # two rows have the first eight words
    assert coverage(case) == ["e1", "e1", "e1"]  # four, three, six of six runs of five words
    assert coverage(case, least=0.6) == ["e1", None, "e1"]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[Real]:
    monkeypatch.setattr(planted, "PER_KIND", 2)
    monkeypatch.setattr(planted, "PAIRS", 2)
    monkeypatch.setattr(planted, "EVAL_ROWS", {"svamp": 4, "cqa": 6})
    monkeypatch.setattr(planted, "FRAMED", 1)
    monkeypatch.setattr(planted, "PASSAGES", 2)
    monkeypatch.setattr(planted, "COMMON", 13)  # the words of the two templates below
    chance = random.Random(5)
    nouns = [
        "".join(chance.choices("bdfgklmnprst", k=2)) + ending
        for ending in ("ana", "olo", "iki", "unu")
        for _ in range(40)
    ]
    rows = []
    for number in range(60):
        one, two, place, who = chance.sample(nouns, 4)
        story = f"{who} had {number + 2} {one} and {number + 70} {two} in the {place}.\nHow many {one} has {who} now?"
        rows.append(
            Real(f"s{number}", "svamp", story, f"( {number} {'+-*/'[number % 4]} 2.0 )", None, "It is so.", "It is so.")
        )
    for number in range(120):
        one, two, three, four = chance.sample(nouns, 4)
        why = (
            f"The answer must be a {one} that any {two} would {three} when it is near the {four} and far from all else."
        )
        rows.append(
            Real(f"c{number}", "cqa", f"Where would a {one} {two} the {three} of {four}?", one, [one, two], why, why)
        )
    return rows


def test_every_row_has_its_truth(tiny: list[Real], tmp_path: Path) -> None:
    case = planted.contamination(tiny, 0, tmp_path)
    evals = {id: text for texts in case.eval_texts.values() for id, text in texts.items()}
    assert {row.id for row in case.rows} == set(case.truths) and len(case.rows) == len(case.truths)
    for row in case.rows:
        truth = case.truths[row.id]
        assert truth.kind in case.kinds
        if truth.label == "leak":
            assert truth.eval_row in evals
        if truth.kind == "verbatim":
            assert row.input == evals[str(truth.eval_row)]
        if truth.kind == "embedded":
            assert evals[str(truth.eval_row)] in row.input and row.input != evals[str(truth.eval_row)]
        if truth.kind == "in the rationale":
            assert evals[str(truth.eval_row)] in str(row.rationale) and evals[str(truth.eval_row)] not in row.input
        if truth.label == "clean":
            assert row.input not in evals.values()
    shared = [row for row in case.rows if case.truths[row.id].kind == "shared instruction, other row"]
    assert shared and all(row.input.startswith(planted.INSTRUCTION) for row in shared)


def test_a_seed_gives_the_same_rows_and_the_next_seed_other_eval_rows(tiny: list[Real], tmp_path: Path) -> None:
    first, again, other = (planted.contamination(tiny, seed, tmp_path) for seed in (0, 0, 1))
    assert first == again
    one, two = ({id for texts in case.eval_texts.values() for id in texts} for case in (first, other))
    assert one and two and not one & two


def test_edited_copies_have_the_similarity_of_their_bin(tiny: list[Real]) -> None:
    rows, pairs = planted.duplicates(tiny, 0, by_default)
    texts = {row.id: row.input for row in rows}
    assert len(texts) == len(rows)
    for pair in pairs:
        assert pair.similarity == by_default(texts[pair.first], texts[pair.second])
        if "Jaccard" in pair.kind:
            low, high = map(float, re.findall(r"\d\.\d", pair.kind))
            assert pair.same and low <= pair.similarity < high
    gold = {row.id: row.gold for row in rows}
    for pair in pairs:
        assert (gold[pair.first] != gold[pair.second]) == ("other label" in pair.kind)
