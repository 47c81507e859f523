"""dedup: of what is the same one row stays, nothing else goes, and every twin can be checked by hand."""

import json
import pickle
import random
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import minhash, outputs
from pipeline.binding import Problem, bind
from pipeline.dedup import CORPUS, Semantic, dedup
from pipeline.files import InputError, read_jsonl
from pipeline.records import Counts, Drop, Example, Manifest, TrainingRow, features
from pipeline.shard import shard
from pipeline.text import ngrams, normalise, numbers, shingles, words
from pipeline.tokens import pack
from tests.rows import MADE_BY, example

TOPICS = Path(__file__).parents[1] / "data" / "topics"
WORDS: dict[str, Any] = {"unit": "words", "shingle": 3}
MATCH = "The captain scored twice in extra time and the whole away end lost its voice"


def rows(*texts: str, **fields: Any) -> list[Example]:
    return [example(f"r{number}", input=text, **fields) for number, text in enumerate(texts)]


def dropped(verdicts: Iterable[Drop | None]) -> dict[str, tuple[str, object]]:
    return {drop.id: (drop.reason, drop.evidence["twin"]) for drop in verdicts if drop is not None}


def judged(given: Sequence[Example], **knobs: Any) -> tuple[list[Drop | None], dict[str, Any]]:
    """The verdicts, and what the manifest would say."""
    verdicts, found = dedup(given, **knobs), []
    while True:
        try:
            found.append(next(verdicts))
        except StopIteration as end:
            return found, end.value


def kept(given: Sequence[Example], **knobs: Any) -> list[str]:
    return [row.id for row, verdict in zip(given, dedup(given, **knobs), strict=True) if verdict is None]


def jaccard(first: str, second: str, unit: str = "characters", n: int = 5) -> float:
    left, right = (shingled(text, unit, n) for text in (first, second))
    return len(left & right) / len(left | right)


def shingled(text: str, unit: str, n: int) -> set[str]:
    if unit == "characters":
        return shingles(text, n)
    found = words(text)
    return set(ngrams(found, n)) or {" ".join(found)}


def negations(text: str) -> int:
    return sum(word in minhash.NEGATIONS for word in words(text))


def figures(text: str) -> list[str]:
    """Its numbers, in digits and in words, in order."""
    found = [[word] if word in minhash.NUMBER_WORDS else numbers(word) for word in words(text)]
    return [number for one in found for number in one]


# What is the same


def test_exact_duplicates_differ_in_case_spaces_and_punctuation_only() -> None:
    given = rows(
        MATCH, "A recipe for onion soup", f"  {MATCH.upper()}!!", "A recipe - for onion soup.", "A recipe for leek soup"
    )
    assert dropped(dedup(given, near=None)) == {"r2": ("exact_duplicate", "r0"), "r3": ("exact_duplicate", "r1")}


def test_the_evidence_names_twin_and_figures() -> None:
    changed = MATCH.replace("captain", "striker")
    _, verdict = dedup(rows(MATCH, changed), near=0.5)
    assert verdict == Drop(
        id="r1",
        reason="near_duplicate",
        evidence={
            "twin": "r0",
            "twin_text": MATCH,
            "text": changed,
            "similarity": round(jaccard(MATCH, changed), 4),
            "threshold": 0.5,
            "cluster": 2,
            "method": "Jaccard of 5-character shingles of the input",
        },
    )


@pytest.mark.parametrize(("unit", "n"), [("words", 3), ("words", 1), ("characters", 4)])
def test_the_threshold_is_the_true_jaccard_index(unit: str, n: int) -> None:
    changed = MATCH.replace("captain", "striker")
    similarity = jaccard(MATCH, changed, unit, n)
    knobs: dict[str, Any] = {"unit": unit, "shingle": n, "short": 0}
    assert dropped(dedup(rows(MATCH, changed), near=similarity, **knobs))
    assert not dropped(dedup(rows(MATCH, changed), near=similarity + 1e-6, **knobs))


def test_texts_shorter_than_a_shingle_are_compared() -> None:
    given = rows("Yes", "No way", "yes!", "no", "way no", "Way, no", "é")
    for unit in ("words", "characters"):
        found = dropped(dedup(given, unit=unit, shingle=8, near=0.5))
        assert found == {"r2": ("exact_duplicate", "r0"), "r5": ("exact_duplicate", "r4")}


def test_texts_without_letters_are_not_all_the_same() -> None:
    assert dropped(dedup(rows(":-)", "?!", ":-)"))) == {"r2": ("exact_duplicate", "r0")}


def test_no_chain_drops_a_row_that_is_unlike_its_twin() -> None:
    first = "a b c d e f g h i j k l m n o p"
    second, third = first.replace("a b", "x y"), first.replace("a b", "x y").replace("o p", "v w")
    near = 0.7
    assert min(jaccard(first, second, "words", 3), jaccard(second, third, "words", 3)) >= near
    assert jaccard(first, third, "words", 3) < near
    verdicts = list(dedup(rows(first, second, third), near=near, short=0, **WORDS))
    assert dropped(verdicts) == {"r1": ("near_duplicate", "r0")}


def test_the_twin_is_the_most_similar_kept_row() -> None:
    other = "The captain scored twice in normal time and the whole home end found its voice"
    text = "The captain scored twice in normal time and the whole home end lost its voice"
    assert dropped(dedup(rows(MATCH, other, text), near=0.5, short=0, unit="words", shingle=2))["r2"] == (
        "near_duplicate",
        "r1",
    )


def test_rationale_or_both_can_be_compared_and_a_row_without_text_stays() -> None:
    given = [
        example("a", input="One", rationale="It names a goal."),
        example("b", input="Two", rationale="It names a goal"),
        example("c", input="One", rationale=None),
        example("d", input="Two", rationale=" "),
        example("e", input="One", rationale="It names: a goal."),
    ]
    assert dropped(dedup(given, near=None, over="rationale")) == {
        "b": ("exact_duplicate", "a"),
        "e": ("exact_duplicate", "a"),
    }
    assert dropped(dedup(given, near=None, over="both")) == {"e": ("exact_duplicate", "a")}
    assert kept(given, over="input") == ["a", "b"]


# What is not


def test_rows_whose_numbers_differ_are_different() -> None:
    given = rows(
        "Tom has 3 apples and buys 5 pears on his way to school, how many fruits has he in his bag?",
        "Tom has 3 apples and buys 6 pears on his way to school, how many fruits has he in his bag?",
    )
    assert not dropped(dedup(given, near=0.7))
    assert dropped(dedup(given, near=0.7, differ_in=["labels"])) == {"r1": ("near_duplicate", "r0")}


COUNTED = "Mark was hungry but thought that {} was not enough to eat for lunch at the office on such a day"


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("two apples", "seven apples", False),
        ("Two apples", "two APPLES", True),
        ("two apples", "two pears", True),
        ("one apple", "two apples", False),
        ("one apple", "an apple", True),
        ("the first apple", "the third apple", False),
        ("twenty-two apples", "twenty apples", False),
        ("half an apple", "an apple", False),
        ("seven apples", "7 apples", False),
        ("two of 3 apples", "3 of two apples", False),
        ("two of 3.5 kg", "two of 3.6 kg", False),
        ("the weighty often-used", "the weighty often-used one", True),
    ],
)
def test_rows_whose_number_words_differ_are_different(first: str, second: str, same: bool) -> None:
    given = rows(COUNTED.format(first), COUNTED.format(second))
    assert bool(dropped(dedup(given, near=0.6))) == same
    assert dropped(dedup(given, near=0.6, differ_in=["labels", "negation"]))


_TOLD = st.lists(
    st.sampled_from([
        "two", "Seven", "twenty-two", "tenth", "two's", "twofold", "one", "first", "no", "isn't", "knot", "a", "apples", "3",
        "3.5", "1,200", "3rd", "b2b", "v2.0.1", "3..4", "5-3", ".5", "\u00d6l", "\u00bd", "...", "\uff17",
    ]), max_size=6,
).map(" ".join)  # fmt: skip


@settings(max_examples=400, deadline=None)
@given(st.lists(_TOLD, max_size=8), st.booleans(), st.booleans())
def test_numbers_and_negations_are_told_apart_as_a_plain_count_does(
    texts: list[str], by_number: bool, by_negation: bool
) -> None:
    hashes = minhash.told_apart(pack(texts), numbers=by_number, negation=by_negation).tolist()
    told = [(by_number and tuple(figures(text)), by_negation and negations(text)) for text in texts]
    for i, first in enumerate(told):
        for j, second in enumerate(told):
            assert (first == second) == (hashes[i] == hashes[j])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.sampled_from("0123459.,-*/ '+=$ab\t"), max_size=40), max_size=8))
def test_numbers_in_digits_are_those_of_text(texts: list[str]) -> None:
    hashes = minhash.told_apart(pack(texts), numbers=True, negation=True).tolist()
    told = [numbers(text) for text in texts]
    assert [[first == second for second in told] for first in told] == [
        [first == second for second in hashes] for first in hashes
    ]


@pytest.mark.parametrize("word", minhash.NUMBER_WORDS + minhash.NEGATIONS)
def test_each_number_word_and_negation_is_known(word: str) -> None:
    for numbers_count, negations_count in ((True, False), (False, True), (True, True)):
        plain, other = minhash.told_apart(
            pack(["the apples", f"the {word} apples"]), numbers=numbers_count, negation=negations_count
        ).tolist()
        counts = numbers_count if word in minhash.NUMBER_WORDS else negations_count
        assert (plain != other) == counts


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({"label": "sports"}, {"label": "food"}, False),
        ({"label": "sports"}, {"label": " Sports"}, True),
        ({"label": "sports"}, {"label": None}, True),
        ({"label": "sports", "gold": "food"}, {"label": "food"}, True),
        ({"label": "food", "gold": "sports"}, {"label": "food", "gold": "food"}, False),
    ],
)
def test_rows_whose_labels_differ_are_different(first: dict[str, Any], second: dict[str, Any], same: bool) -> None:
    given = [example("a", input=MATCH, **first), example("b", input=MATCH.replace("captain", "striker"), **second)]
    assert bool(dropped(dedup(given, near=0.6))) == same
    assert dropped(dedup(given, near=0.6, differ_in=["numbers", "negation"]))
    if not same:
        _, details = judged(given, near=0.6)
        assert details["near_with_other_label"] == {
            "pairs": 1,
            "examples": [{"rows": ["a", "b"], "similarity": round(jaccard(given[0].input, given[1].input), 4)}],
        }


def test_rows_that_differ_in_a_negation_are_different() -> None:
    whole = "Which of these things would a person usually keep in the kitchen and {} in the bedroom of a house?"
    given = rows(whole.format("rarely"), whole.format("never"), whole.format("often"))
    assert kept(given, near=0.6, shingle=2) == ["r0", "r1"]
    assert kept(given, near=0.6, shingle=2, differ_in=[]) == ["r0"]
    same = rows("It isn't the captain who scored twice in time", "It is not the captain who scored twice in time")
    assert kept(same, near=0.5, shingle=1) == ["r0"]


def test_in_short_texts_one_word_may_differ_where_the_label_vouches_for_it() -> None:
    changed = MATCH.replace("extra", "later")
    n = len(normalise(MATCH)) - 4
    limit = (n - 10) / (n + 10)
    assert limit < jaccard(MATCH, changed) < 0.8
    _, verdict = dedup(rows(MATCH, changed))
    assert verdict is not None and verdict.evidence["threshold"] == round(limit, 4)
    assert not any(dedup(rows(MATCH, changed), short=0))
    assert not any(dedup(rows(MATCH, changed, label=None)))
    assert not any(dedup(rows(MATCH, changed), short=0.01))
    assert not any(dedup(rows(MATCH, changed.replace("whole", "loud"))))


# Which row stays


def test_the_survivor_is_chosen_by_a_rule() -> None:
    given = [
        example("b", rationale="Short.", agreement=0.9),
        example("c", rationale="The longest of all.", agreement=0.5),
        example("a", rationale="Short.", agreement=0.9),
    ]
    assert kept(given) == ["b"]
    assert kept(given, survivor="longest_rationale") == ["c"]
    assert kept(given, survivor="highest_vote") == ["a"]


def labelled(*labels: str | None) -> list[Example]:
    return [example(f"r{number}", label=label) for number, label in enumerate(labels)]


def test_conflicting_labels_are_reported() -> None:
    given = [*labelled("sports", "food", "sports"), example("other", input="A recipe for soup")]
    verdicts, details = judged(given)
    assert dropped(verdicts) == {"r1": ("exact_duplicate", "r0"), "r2": ("exact_duplicate", "r0")}
    assert details["conflicting_labels"] == {
        "clusters": 1,
        "rows": 3,
        "examples": [{"labels": {"sports": 2, "food": 1}, "rows": ["r0", "r1", "r2"]}],
    }
    assert (details["clusters"], details["largest_cluster"]) == (1, 3)


def test_a_cluster_with_conflicting_labels_can_be_dropped() -> None:
    given = [*labelled("sports", None, "food"), *rows("A recipe for soup", "a recipe for soup")]
    verdicts = list(dedup(given, conflicts="drop"))
    assert [drop and drop.reason for drop in verdicts] == [
        "conflicting_labels", "conflicting_labels", "conflicting_labels", None, "exact_duplicate",
    ]  # fmt: skip
    assert verdicts[0] is not None
    assert verdicts[0].evidence == {
        "text": given[0].input,
        "label": "sports",
        "labels": {"food": 1, "sports": 1},
        "cluster": 3,
        "rows": ["r1", "r2"],
    }


def test_in_a_cluster_with_conflicting_labels_the_majority_can_decide() -> None:
    assert kept(labelled("food", "sports", "sports"), conflicts="vote") == ["r1"]
    assert kept(labelled("food", "sports"), conflicts="vote") == ["r0"]
    near = [
        example("a", label="food", input=MATCH),
        example("b", label="sports", input=MATCH.replace("captain", "striker")),
        example("c", label="sports", input=MATCH.replace("voice", "patience")),
    ]
    knobs: dict[str, Any] = {"near": 0.6, "differ_in": [], **WORDS}
    assert kept(near, **knobs) == ["a"]
    assert kept(near, conflicts="vote", **knobs) == ["b"]


# Earlier data


def write(path: Path, *given: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join((row if isinstance(row, bytes) else row.line()) + b"\n" for row in given))
    return path


def test_rows_of_an_earlier_data_set_survive(tmp_path: Path) -> None:
    earlier = write(tmp_path / "earlier.jsonl", b'{"id": "e1", "input": "%s"}' % MATCH.encode(), b"")
    given = rows("A recipe for soup", MATCH.upper(), MATCH.replace("captain", "striker"))
    verdicts = list(dedup(given, near=0.6, against=earlier, survivor="longest_rationale"))
    assert dropped(verdicts) == {"r1": ("earlier_exact_duplicate", "e1"), "r2": ("earlier_near_duplicate", "e1")}
    assert verdicts[1] is not None and verdicts[1].evidence["against"] == "earlier.jsonl"
    assert verdicts[1].evidence["twin_text"] == MATCH
    assert len([*dedup([], against=earlier)]) == 0


def test_earlier_data_can_be_a_stage_or_shards(tmp_path: Path) -> None:
    old = [
        example("old", input=MATCH, rationale="One reason.", label="food"),
        example("new", input="A recipe", label="food"),
    ]
    folder = tmp_path / "stage"
    folder.mkdir()
    part, gone = outputs.RowWriter(folder, "part", 10), outputs.RowWriter(folder, "dropped", None)
    part.write(old[0].line())
    gone.write(Drop(id="r9", reason="x", evidence={}).line())
    counts = Counts(unit="examples", rows_in=2, kept=1, dropped=1, reasons={"x": 1}, rows_out=1)
    manifest = Manifest(
        stage="parse", version=1, key="k", settings={}, parents={}, **MADE_BY, identities={}, counts=counts,
        outputs=[*part.close(), *gone.close()], features=features(Example), details={}, digest="0" * 64,
    )  # fmt: skip
    manifest = manifest.model_copy(update={"digest": outputs.manifest_digest(manifest)})
    outputs.write_manifest(folder, manifest)
    made = [*shard(old, targets=["label", "rationale"])]
    write(tmp_path / "shards" / "train-00000.jsonl", *(row for row in made if isinstance(row, TrainingRow)))
    near = MATCH.replace("captain", "striker")
    given = [
        example("a", input=MATCH.upper(), rationale="Two."),
        example("b", input="?", rationale="One reason"),
        example("c", input=near, label="food"),
        example("d", input=near, label="sports"),
    ]
    for path, name in ((folder, "part-00000.jsonl"), (tmp_path / "shards", "train-00000.jsonl")):
        verdicts = list(dedup(given, near=0.6, against=path))
        assert dropped(verdicts) == {"a": ("earlier_exact_duplicate", "old"), "c": ("earlier_near_duplicate", "old")}
        assert verdicts[0] is not None and verdicts[0].evidence["against"] == name
        assert dropped(dedup(given, over="rationale", against=path))["b"] == ("earlier_exact_duplicate", "old")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", r"earlier.jsonl:2: .*; rows need an id, and an input or a prompt"),
        (b'{"input": "x"}', r"earlier.jsonl:2: .*`id`; rows need an id, and an input or a prompt"),
        (b'{"id": "x"}', r"earlier.jsonl:2: has neither input nor prompt"),
        (None, r"earlier.jsonl: no such file"),
    ],
)
def test_earlier_data_that_cannot_be_read_is_named(tmp_path: Path, line: bytes | None, problem: str) -> None:
    path = tmp_path / "earlier.jsonl"
    if line is not None:
        write(path, b'{"id": "e1", "input": "text"}', line)
    with pytest.raises(InputError, match=problem):
        list(dedup(rows(MATCH), against=path))


def test_earlier_data_is_an_input_file(tmp_path: Path) -> None:
    bound = bind(dedup, {"against": "earlier.jsonl"}, lookup={}.__getitem__, folder=tmp_path)
    assert bound["against"] == tmp_path / "earlier.jsonl"  # a Path: its content goes into the stage's key


# By meaning


def test_what_means_the_same_is_dropped_after_the_near_duplicates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    from pipeline import embeddings

    asked = []

    def similar_pairs(texts: Sequence[str], *, model: str, at_least: float, revision: str | None = None) -> Any:
        asked.append((list(texts), model, at_least, revision))
        pairs = [(0, 1, 0.96), (0, 2, 0.97), (1, 3, 0.99), (0, 4, 0.98), (0, 5, 0.95)]
        first, second, cosine = zip(*pairs, strict=True)
        return np.array(first), np.array(second), np.array(cosine, np.float32)

    monkeypatch.setattr(embeddings, "similar_pairs", similar_pairs)
    earlier = write(tmp_path / "earlier.jsonl", b'{"id": "e1", "input": "Earlier"}')
    given = rows("goal", "match 7", "team", "coach", "soup", "GOAL")
    given[4] = example("r4", input="soup", label="food")
    verdicts, details = judged(given, against=earlier, semantic=Semantic(model="a-model"))
    assert asked == [(["Earlier", "goal", "match 7", "team", "coach", "soup"], "a-model", 0.95, None)]
    assert dropped(verdicts) == {
        "r0": (
            "earlier_semantic_duplicate",
            "e1",
        ),  # r1 has another number; r2's twin r0 is gone; r3 is kept by nothing
        "r3": ("earlier_semantic_duplicate", "e1"),
        "r4": ("earlier_semantic_duplicate", "e1"),
        "r5": ("exact_duplicate", "r0"),
    }
    assert verdicts[0] is not None
    assert verdicts[0].evidence["similarity"] == 0.96 and verdicts[0].evidence["threshold"] == 0.95
    assert details["semantic_pairs"] == {"pairs": 5, "kept_apart": 1}


# Laws

_WORDS = ["the", "a", "goal", "soup", "bread", "market", "laptop", "hotel", "3", "7", "two", "not", "burned", "Öl"]
_LABELS = st.sampled_from(["sports", "food", None])


@st.composite
def _examples(draw: st.DrawFn) -> list[Example]:
    """Texts made from a few sentences by exchanging up to two words, with labels, rationales and votes."""
    bases = draw(st.lists(st.lists(st.sampled_from(_WORDS), min_size=1, max_size=20), min_size=1, max_size=4))
    found = []
    for number in range(draw(st.integers(0, 20))):
        text = list(draw(st.sampled_from(bases)))
        for _ in range(draw(st.integers(0, 2))):
            text[draw(st.integers(0, len(text) - 1))] = draw(st.sampled_from(_WORDS))
        found.append(
            example(
                f"r{number}",
                input=" ".join(text),
                label=draw(_LABELS),
                rationale="x" * draw(st.integers(0, 2)),
                agreement=draw(st.sampled_from([0.5, 1.0])),
            )
        )
    return found


_KNOBS = st.fixed_dictionaries(
    {
        "near": st.sampled_from([0.5, 0.8, 1.0, None]),
        "short": st.sampled_from([0, 0.2]),
        "unit": st.sampled_from(["words", "characters"]),
        "shingle": st.integers(1, 5),
        "differ_in": st.sampled_from([("numbers", "labels", "negation"), ("labels",), ()]),
        "conflicts": st.sampled_from(["report", "drop", "vote"]),
        "survivor": st.sampled_from(["first", "longest_rationale", "highest_vote"]),
    }
)


@settings(max_examples=150)
@given(_examples(), _KNOBS)
def test_kept_rows_are_unlike_each_other_and_dropped_ones_are_like_their_twin(
    given: list[Example], knobs: dict[str, Any]
) -> None:
    by_id = {row.id: row for row in given}
    verdicts = list(dedup(given, **knobs))
    left = [row for row, verdict in zip(given, verdicts, strict=True) if verdict is None]
    near, n = knobs["near"], knobs["shingle"]

    def alike(first: Example, second: Example) -> float:
        return jaccard(first.input, second.input, knobs["unit"], n)

    def apart(first: Example, second: Example) -> bool:
        differ = knobs["differ_in"]
        return (
            ("numbers" in differ and figures(first.input) != figures(second.input))
            or ("negation" in differ and negations(first.input) != negations(second.input))
            or ("labels" in differ and None not in (first.label, second.label) and first.label != second.label)
        )

    for row, verdict in zip(given, verdicts, strict=True):
        if verdict is None or verdict.reason == "conflicting_labels":
            assert verdict is None or knobs["conflicts"] != "report"
            continue
        twin = by_id[str(verdict.evidence["twin"])]
        assert verdict.id == row.id and twin in left
        same = normalise(twin.input) == normalise(row.input)
        assert same == (verdict.reason == "exact_duplicate")
        if not same:
            assert verdict.evidence["similarity"] == round(alike(row, twin), 4) >= verdict.evidence["threshold"] - 1e-4
            assert verdict.evidence["threshold"] <= near and not apart(row, twin)
    for index, first in enumerate(left):
        for second in left[:index]:
            assert normalise(first.input) != normalise(second.input)
            # a sketch may miss a pair just at the threshold; well above it, it does not
            assert near is None or alike(first, second) < min(near + 0.15, 1) or apart(first, second)


@settings(max_examples=60)
@given(_examples(), _KNOBS)
def test_a_second_time_nothing_is_dropped(given: list[Example], knobs: dict[str, Any]) -> None:
    left = set(kept(given, **knobs))
    assert kept([row for row in given if row.id in left], **knobs) == [row.id for row in given if row.id in left]


@settings(max_examples=60)
@given(_examples(), _KNOBS, st.lists(st.integers(0, 20), max_size=4))
def test_the_result_does_not_depend_on_how_rows_are_cut_into_blocks(
    given: list[Example], knobs: dict[str, Any], cuts: list[int]
) -> None:
    whole = bind(dedup, knobs | {"differ_in": list(knobs["differ_in"])}, lookup={}.__getitem__, folder=Path())
    places = sorted({0, len(given), *(cut for cut in cuts if cut < len(given))})
    blocks = [given[start:end] for start, end in pairwise(places)] or [[]]
    sketches = [pickle.loads(pickle.dumps(CORPUS.sketch(block, None, **whole))) for block in blocks]  # as processes do
    assert list(CORPUS.resolve(sketches, None, **whole)) == list(dedup(given, **whole))


@settings(max_examples=100)
@given(_examples(), _KNOBS, st.randoms(use_true_random=False))
def test_all_rules_but_the_first_row_do_not_depend_on_the_order_of_rows(
    given: list[Example], knobs: dict[str, Any], chance: random.Random
) -> None:
    knobs = knobs | {"survivor": chance.choice(["longest_rationale", "highest_vote"])}
    mixed = chance.sample(given, len(given))
    assert sorted(kept(given, **knobs)) == sorted(kept(mixed, **knobs))


# What is found


@settings(max_examples=50)
@given(st.floats(0.05, 1), st.booleans(), st.integers(1, 32))
def test_bands_miss_few_pairs_at_the_threshold(near: float, unit: bool, n: int) -> None:
    count, height = minhash.bands(near, words=unit, n=n)
    assert count * height <= minhash.PLACES
    if near >= 0.5:
        assert minhash.missed(near, count, height) <= minhash.MISSED
        assert minhash.missed(min(1, near + 0.1), count, height) <= minhash.MISSED / 10


def texts_of_the_demo() -> list[str]:
    return [str(row["text"]) for name in ("train", "test") for _, row in read_jsonl(TOPICS / f"{name}.jsonl")]


@pytest.mark.parametrize(("unit", "n"), [("words", 3), ("characters", 5)])
@pytest.mark.parametrize("near", [0.5, 0.8])
def test_of_edited_texts_at_or_above_the_threshold_97_in_100_are_found(near: float, unit: str, n: int) -> None:
    chance = random.Random(7)
    pool = texts_of_the_demo()
    vocabulary = [word for text in pool for word in text.split() if not any(map(str.isdigit, word))]
    originals, edited = [], []
    for number in range(600):
        text = " ".join(chance.sample(pool, 4))
        found = text.split()
        for _ in range(chance.randint(1, 9)):
            found[chance.randrange(len(found))] = chance.choice(vocabulary)
        changed = " ".join(found)
        same = figures(text) == figures(changed) and negations(text) == negations(changed)
        if near <= jaccard(text, changed, unit, n) < 1 and same:
            originals.append(example(f"o{number}", input=text))
            edited.append(example(f"e{number}", input=changed))
    assert len(edited) > 100
    verdicts = list(dedup([*originals, *edited], near=near, unit=unit, shingle=n))
    found_ones = sum(verdict is not None for verdict in verdicts[len(originals) :])
    assert found_ones >= 0.97 * len(edited)


def test_rows_that_find_no_room_in_a_bucket_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    base = "one two five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen".split()
    chance = random.Random(1)
    given = []
    for number in range(60):
        text = list(base)
        text[chance.randrange(2, 13)] = f"word{'abcdefghij'[number % 10]}{'abcdef'[number // 10]}"
        given.append(example(f"r{number}", input=" ".join(text), label=None))
    verdicts, details = judged(given, **WORDS)
    assert not any(verdicts) and details["crowded"] == 0
    monkeypatch.setattr(minhash, "CROWDED", 1)
    verdicts, details = judged(given, **WORDS)
    assert not any(verdicts) and details["crowded"] > 0


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


@pytest.mark.parametrize("knobs", [{}, {"near": 0.5}, {"near": 0.5, **WORDS}], ids=["defaults", "near 0.5", "words"])
def test_the_duplicates_planted_in_the_demo_are_found_and_nothing_else(knobs: dict[str, Any]) -> None:
    given = [
        example(f"line {line}", input=str(row["text"]), label=str(row["topic"]))
        for line, row in read_jsonl(TOPICS / "train.jsonl")
    ]
    found = {name: twin for name, (_, twin) in dropped(dedup(given, **knobs)).items()}
    assert found == {f"line {line}": f"line {twin}" for line, twin in PLANTED.items()}


def real(folder: Path, name: str, field: str, label: str) -> list[Example]:
    lines = [json.loads(line) for part in ("train", "test") for line in (folder / name / f"{part}.jsonl").open()]
    return [example(row["id"], input=row[field], gold=row[label]) for row in lines]


def test_word_problems_and_questions_that_resemble_each_other_stay(recorded_data: Path) -> None:
    """SVAMP's problems are variations of each other, and CommonsenseQA's questions are short: the traps that defaults must not step in."""
    problems = real(recorded_data, "svamp", "input", "label")
    single: dict[str, Any] = {"near": 0.7, "unit": "words", "shingle": 1, "short": 0}
    assert len(problems) == 1000
    assert len(kept(problems, differ_in=[], **single)) < 570
    assert len(kept(problems, **single)) == 999
    assert len(kept(problems)) == 1000
    questions = real(recorded_data, "cqa", "question", "answer")
    found = {drop.evidence["text"]: drop.evidence["twin_text"] for drop in dedup(questions) if drop is not None}
    assert found == {
        "where do you throw garbage?": "Where do you throw garbage?",
        "What delta state is known for good bbq?": "What delta state is known for bbq?",
        "Where would you get a baseball if you do not have one?": "Where would you get a ball if you do not have one?",
    }


@pytest.mark.parametrize(
    "given",
    [
        {"near": 0}, {"near": 1.2}, {"near": "0.8"}, {"short": 1}, {"short": -0.1}, {"shingle": 0}, {"shingle": 33},
        {"unit": "letters"}, {"over": "label"}, {"differ_in": ["names"]}, {"conflicts": "keep"}, {"survivor": "last"},
        {"semantic": {"at_least": 0.9}}, {"semantic": {"model": "m", "at_least": 2.0}},
    ],
)  # fmt: skip
def test_settings_have_ranges(given: dict[str, object]) -> None:
    with pytest.raises(Problem):
        bind(dedup, given, lookup={}.__getitem__, folder=Path())


def test_near_can_be_switched_off() -> None:
    assert bind(dedup, {"near": None}, lookup={}.__getitem__, folder=Path())["near"] is None


def test_rows_of_an_earlier_data_set_may_share_an_id(tmp_path: Path) -> None:
    earlier = tmp_path / "old.jsonl"
    earlier.write_text(
        "".join(json.dumps({"id": "1", "input": text}) + "\n" for text in (MATCH, "Other words stand here"))
    )
    verdicts = list(dedup(rows("Other words stand here", MATCH), against=earlier))
    assert [verdict.reason for verdict in verdicts if verdict] == ["earlier_exact_duplicate"] * 2


def test_after_a_vote_evidence_counts_the_clusters_of_the_vote() -> None:
    generator = random.Random(3)
    words = ["goal", "soup", "market", "won", "lost"]
    for _ in range(300):
        given = [
            example(f"r{n}", input=" ".join(generator.choices(words, k=4)), label=generator.choice("xy"))
            for n in range(7)
        ]
        for verdict in dedup(given, near=0.5, shingle=2, conflicts="vote", differ_in=(), survivor="longest_rationale"):
            assert verdict is None or verdict.evidence["cluster"] >= 2  # type: ignore[operator]


def test_meaning_is_not_asked_where_no_row_is_left() -> None:
    given = [example("a", input="hello there", label="x"), example("b", input="hello there", label="y")]
    verdicts = dedup(given, conflicts="drop", semantic=Semantic(model="no such model"))
    assert [verdict.reason for verdict in verdicts if verdict] == ["conflicting_labels"] * 2
