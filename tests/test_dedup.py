"""dedup: the first row of each kind stays, and every twin can be checked."""

import random
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.binding import Problem, bind
from pipeline.dedup import PERMUTATIONS, bands, dedup
from pipeline.files import read_jsonl
from pipeline.records import Drop, Example
from pipeline.text import normalise, numbers, shingles
from tests.rows import example

TOPICS = Path(__file__).parents[1] / "data" / "topics"


def rows(*texts: str) -> list[Example]:
    return [example(f"r{number}", input=text) for number, text in enumerate(texts)]


def dropped(verdicts: Iterable[Drop | None]) -> dict[str, tuple[str, object]]:
    return {drop.id: (drop.reason, drop.evidence["twin"]) for drop in verdicts if drop is not None}


def jaccard(first: str, second: str, n: int) -> float:
    left, right = shingles(first, n), shingles(second, n)
    return len(left & right) / len(left | right)


MATCH = "The captain scored twice in extra time and the whole away end lost its voice"


def test_exact_duplicates_differ_in_case_spaces_and_punctuation_only() -> None:
    given = rows(
        MATCH, "A recipe for onion soup", f"  {MATCH.upper()}!!", "A recipe - for onion soup.", "A recipe for leek soup"
    )
    assert dropped(dedup(given, near=None)) == {"r2": ("exact_duplicate", "r0"), "r3": ("exact_duplicate", "r1")}


def test_the_evidence_names_twin_and_figures() -> None:
    changed = MATCH.replace("captain", "striker")
    _, verdict = dedup(rows(MATCH, changed), near=0.5)
    assert verdict is not None
    assert (verdict.id, verdict.reason) == ("r1", "near_duplicate")
    assert verdict.evidence["twin"] == "r0"
    assert (verdict.evidence["twin_text"], verdict.evidence["text"]) == (MATCH, changed)
    assert verdict.evidence["similarity"] == round(jaccard(MATCH, changed, 4), 4)
    assert verdict.evidence["near"] == 0.5


def test_the_threshold_is_the_true_jaccard_index() -> None:
    changed = MATCH.replace("captain", "striker")
    similarity = jaccard(MATCH, changed, 4)
    assert dropped(dedup(rows(MATCH, changed), near=similarity))
    assert not dropped(dedup(rows(MATCH, changed), near=similarity + 1e-6))


def test_rows_whose_numbers_differ_are_different() -> None:
    given = rows(
        "Tom has 3 apples and buys 5 pears, how many fruits has he?",
        "Tom has 3 apples and buys 6 pears, how many fruits has he?",
    )
    assert not dropped(dedup(given, near=0.8))
    assert dropped(dedup(given, near=0.8, differ_in=[])) == {"r1": ("near_duplicate", "r0")}


def test_no_chain_drops_a_row_that_is_unlike_its_twin() -> None:
    steps = [
        MATCH,
        MATCH.replace("captain", "striker"),
        MATCH.replace("captain", "striker").replace("extra time", "the rain"),
    ]
    near = 0.7
    assert jaccard(steps[0], steps[1], 4) >= near and jaccard(steps[1], steps[2], 4) >= near > jaccard(
        steps[0], steps[2], 4
    )
    assert dropped(dedup(rows(*steps), near=near)) == {"r1": ("near_duplicate", "r0")}


def test_the_twin_is_the_most_similar_kept_row() -> None:
    other = "The captain scored twice in normal time and the whole home end found its voice"
    text = "The captain scored twice in normal time and the whole home end lost its voice"
    assert dropped(dedup(rows(MATCH, other, text), near=0.6, shingle=3))["r2"] == ("near_duplicate", "r1")


def test_texts_without_letters_are_not_all_the_same() -> None:
    assert dropped(dedup(rows(":-)", "?!", ":-)"))) == {"r2": ("exact_duplicate", "r0")}


def test_rationales_can_be_compared_instead() -> None:
    given = [
        example("a", rationale="It names a goal."),
        example("b", rationale="It names a goal"),
        example("c", rationale=None),
        example("d", rationale=None),
    ]
    assert dropped(dedup(given, over="rationale")) == {"b": ("exact_duplicate", "a")}


_WORDS = ["the", "a", "goal", "soup", "bread", "market", "laptop", "hotel", "3", "7", "won", "lost", "burned", "sold"]


@st.composite
def _edited(draw: st.DrawFn) -> list[str]:
    """Texts made from a few sentences by exchanging up to two words."""
    bases = draw(st.lists(st.lists(st.sampled_from(_WORDS), min_size=1, max_size=14), min_size=1, max_size=4))
    texts = []
    for _ in range(draw(st.integers(0, 20))):
        words = list(draw(st.sampled_from(bases)))
        for _ in range(draw(st.integers(0, 2))):
            words[draw(st.integers(0, len(words) - 1))] = draw(st.sampled_from(_WORDS))
        texts.append(" ".join(words))
    return texts


@settings(max_examples=100, deadline=None)
@given(_edited(), st.sampled_from([0.5, 0.8, 1.0]))
def test_kept_rows_are_unlike_each_other_and_dropped_ones_are_like_their_twin(
    sentences: list[str], near: float
) -> None:
    given = rows(*sentences)
    texts = {row.id: row.input for row in given}
    verdicts = list(dedup(given, near=near))
    assert len(verdicts) == len(given)
    kept = [row.id for row, verdict in zip(given, verdicts, strict=True) if verdict is None]
    for row, verdict in zip(given, verdicts, strict=True):
        if verdict is None:
            continue
        twin = verdict.evidence["twin"]
        assert verdict.id == row.id and twin in kept and list(texts).index(str(twin)) < list(texts).index(row.id)
        same = normalise(texts[str(twin)]) == normalise(row.input)
        assert same == (verdict.reason == "exact_duplicate")
        assert same or jaccard(texts[str(twin)], row.input, 4) >= near
    for index, first in enumerate(kept):
        for second in kept[:index]:
            similar = jaccard(texts[first], texts[second], 4)
            assert normalise(texts[first]) != normalise(texts[second])
            # MinHash may miss a pair just at the threshold; well above it, it does not
            assert similar < min(near + 0.15, 1) or numbers(texts[first]) != numbers(texts[second])
    assert list(dedup(given, near=near)) == verdicts


@given(st.floats(0.05, 1))
def test_bands_miss_less_than_one_pair_in_a_thousand(near: float) -> None:
    count = bands(near)
    assert PERMUTATIONS % count == 0
    assert (1 - near ** (PERMUTATIONS // count)) ** count <= 0.002


@pytest.mark.parametrize("near", [0.5, 0.8])
def test_edited_texts_are_found_among_many(near: float) -> None:
    """Of texts that were edited so that they stay above the threshold, at most one in a hundred is missed."""
    texts = [str(row["text"]) for _, row in read_jsonl(TOPICS / "test.jsonl")]
    generator = random.Random(7)
    edited = []
    for text in texts * 3:
        words = text.split()
        words[generator.randrange(len(words))] = generator.choice(["cheese", "laptop", "harbour", "won", "on"])
        if near <= jaccard(text, " ".join(words), 4) < 1 and numbers(text) == numbers(" ".join(words)):
            edited.append((text, " ".join(words)))
    assert len(edited) > 100
    originals = rows(*texts)
    verdicts = list(dedup([*originals, *(example(f"e{n}", input=new) for n, (_, new) in enumerate(edited))], near=near))
    assert not any(verdicts[: len(originals)])
    found = sum(verdict is not None for verdict in verdicts[len(originals) :])
    assert found >= 0.99 * len(edited)


PLANTED = {
    126: 27,
    288: 49,
    303: 33,
    305: 185,
    338: 41,
    355: 25,
    370: 121,
    381: 245,
    387: 139,
    394: 368,
    414: 334,
    439: 320,
}


@pytest.mark.parametrize("near", [0.5, 0.8])
def test_the_duplicates_planted_in_the_demo_are_found_and_nothing_else(near: float) -> None:
    given = [example(f"line {line}", input=str(row["text"])) for line, row in read_jsonl(TOPICS / "train.jsonl")]
    found = {name: twin for name, (_, twin) in dropped(dedup(given, near=near)).items()}
    assert found == {f"line {line}": f"line {twin}" for line, twin in PLANTED.items()}


@pytest.mark.parametrize(
    "given", [{"near": 0}, {"near": 1.2}, {"near": "0.8"}, {"shingle": 0}, {"over": "label"}, {"differ_in": ["names"]}]
)
def test_settings_have_ranges(given: dict[str, object]) -> None:
    with pytest.raises(Problem):
        bind(dedup, given, lookup={}.__getitem__, folder=Path())


def test_near_can_be_switched_off() -> None:
    assert bind(dedup, {"near": None}, lookup={}.__getitem__, folder=Path())["near"] is None
