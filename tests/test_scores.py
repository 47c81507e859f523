"""Scores against scikit-learn's, rouge-score's and sacrebleu's own, and against numbers worked out by hand."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import sentence_chrf
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support

from pipeline.scores import chrf, confusion, copied, distinct, exact_match, label_scores, macro_f1, rouge_l
from pipeline.text import ngrams, words

CLASSES = ["a", "b", "c", "never"]
ANSWERED = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["a", "b", "c", "z", None])), min_size=1, max_size=40
)
ASCII = st.text(st.sampled_from("abcdeABC019 .,!'-_\n\t"), max_size=40)
ANY = st.text(max_size=40) | st.text(st.sampled_from("aäß Ж日本がกำम्ह-.'\u00ad\u200b1½"), max_size=20)
GOLDS = ["a", "a", "b", "b", "c"]
ANSWERS = ["a", "b", "b", None, "c"]


# Labels


def test_macro_f1_as_worked_out_by_hand() -> None:
    # a: precision 1, recall 1/2, F1 2/3; b: 1/2, 1/2, F1 1/2; c: 1; d is nowhere and does not count
    assert macro_f1(GOLDS, ANSWERS, ["a", "b", "c", "d"]) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert macro_f1(["a"], ["d"], ["a", "d"]) == 0.0
    assert macro_f1(["a"], [None], ["a"]) == 0.0


def test_confusion_has_a_last_column_for_everything_else() -> None:
    matrix = confusion(GOLDS, ANSWERS, ["a", "b", "c", "d"])
    assert matrix == [[1, 1, 0, 0, 0], [0, 1, 0, 0, 1], [0, 0, 1, 0, 0], [0, 0, 0, 0, 0]]
    scores = label_scores(matrix, ["a", "b", "c", "d"])
    assert (scores["b"].precision, scores["b"].recall, scores["b"].gold, scores["b"].answered) == (0.5, 0.5, 2, 2)
    assert (scores["d"].precision, scores["d"].recall) == (None, None)


def test_a_truth_outside_the_classes_is_refused() -> None:
    for score in (confusion, macro_f1):
        with pytest.raises(ValueError, match="'z' is none of the classes"):
            score(["z"], ["a"], ["a"])


def test_a_label_named_other_is_a_label_like_any() -> None:
    assert confusion(["other", "a"], ["other", None], ["other", "a"]) == [[1, 0, 0], [0, 0, 1]]


@given(ANSWERED, st.randoms())
@settings(max_examples=60)
def test_label_figures_are_those_of_scikit_learn(answered: list[tuple[str, str | None]], chance: random.Random) -> None:
    golds, answers = [gold for gold, _ in answered], [answer for _, answer in answered]
    named = [answer if answer in CLASSES else "" for answer in answers]  # "" is none of the labels
    present = sorted({*golds, *named} - {""})
    expected = f1_score(golds, named, labels=present, average="macro", zero_division=0)
    assert macro_f1(golds, answers, CLASSES) == pytest.approx(expected)

    matrix = confusion(golds, answers, CLASSES)
    assert matrix == confusion_matrix(golds, named, labels=[*CLASSES, ""])[: len(CLASSES)].tolist()
    precisions, recalls, _, support = precision_recall_fscore_support(golds, named, labels=CLASSES, zero_division=0)
    for name, precision, recall, rows in zip(CLASSES, precisions, recalls, support, strict=True):
        found = label_scores(matrix, CLASSES)[name]
        assert (found.gold, found.answered) == (rows, named.count(name))
        assert (found.precision is None) == (name not in named) and (found.recall is None) == (rows == 0)
        assert (found.precision or 0.0, found.recall or 0.0) == pytest.approx((precision, recall))

    shuffled = chance.sample(answered, len(answered))
    again = [gold for gold, _ in shuffled], [answer for _, answer in shuffled]
    assert confusion(*again, CLASSES) == matrix
    assert macro_f1(*again, CLASSES[::-1]) == pytest.approx(macro_f1(golds, answers, CLASSES), abs=1e-12)


# Texts


@pytest.mark.parametrize(
    ("text", "gold", "same"),
    [
        (" Late\n GOAL ", "late goal", True),
        ("ｌａｔｅ ｇｏａｌ", "Late Goal", True),  # full width
        ("Straße", "STRASSE", True),
        ("late goal.", "late goal", False),
        ("lategoal", "late goal", False),
        ("cafe", "café", False),
        ("", "late goal", False),
    ],
)
def test_exact_match(text: str, gold: str, same: bool) -> None:
    assert exact_match(text, gold) is same
    assert exact_match(gold, text) is same


@given(ANY)
def test_a_text_matches_itself_in_other_spaces(text: str) -> None:
    assert exact_match(text, f" {text}\n")


@given(st.lists(st.tuples(ASCII, ASCII), max_size=5))
def test_texts_are_scored_as_the_libraries_do(pairs: list[tuple[str, str]]) -> None:
    texts, golds = [text for text, _ in pairs], [gold for _, gold in pairs]
    library = RougeScorer(["rougeL"], use_stemmer=False)
    assert rouge_l(texts, golds) == [library.score(gold, text)["rougeL"].fmeasure for text, gold in pairs]
    assert chrf(texts, golds) == pytest.approx([sentence_chrf(text, [gold]).score / 100 for text, gold in pairs])


@given(st.lists(st.tuples(ANY, ANY), max_size=4))
def test_scores_of_any_texts_lie_between_0_and_1(pairs: list[tuple[str, str]]) -> None:
    texts, golds = [text for text, _ in pairs], [gold for _, gold in pairs]
    for score in (rouge_l, chrf):
        found = score(texts, golds)
        assert all(0 <= one <= 1 for one in found)
        assert score(texts[::-1], golds[::-1]) == found[::-1]
    for text in texts:
        assert chrf([text], [text]) == ([pytest.approx(1)] if text.strip() else [0])
    assert rouge_l(texts, golds) == pytest.approx(rouge_l(golds, texts))


def test_scores_as_worked_out_by_hand() -> None:
    # "the cat" of "the cat sat": precision 2/3, recall 1; the order of words counts: of "sat cat the" only one word is in order
    assert rouge_l(["the cat sat", "sat cat the"], ["the cat", "the cat"]) == pytest.approx([0.8, 2 * 1 / 5])
    # one character of two: precision 1/2 and recall 1 for single ones, 0 of 1 for pairs, of which the truth has none: not counted
    assert chrf(["ab"], ["a"]) == pytest.approx([5 * 0.5 * 1 / (4 * 0.5 + 1)])


@pytest.mark.parametrize(
    ("text", "gold", "score"),
    [
        ("größer als früher", "größer als heute", 2 / 3),
        ("GRÖSSER", "größer", 1.0),
        ("Поздний гол решает", "поздний гол", 0.8),
        ("今天下雨", "今天下雪", 0.75),  # each character is a word
        ("हिन्दी भाषा", "हिन्दी", 2 / 3),  # marks belong to their word
        ("un\u00adpaid", "unpaid", 1.0),  # a soft hyphen
        ("don’t go", "don't go", 1.0),  # "don", "t", "go", as rouge-score has it
        ("gr er", "größer", 0.0),
        (":-)", ":-)", 0.0),
    ],
)
def test_rouge_l_reads_words_of_every_script(text: str, gold: str, score: float) -> None:
    assert rouge_l([text], [gold]) == pytest.approx([score])


@given(ANY.filter(lambda text: any(one.isalnum() for one in text)))
def test_a_text_with_words_is_all_of_itself(text: str) -> None:
    assert rouge_l([text], [text]) == [1.0]


@pytest.mark.parametrize("score", [rouge_l, chrf])
def test_texts_must_be_as_many(score: object) -> None:
    with pytest.raises(ValueError, match="2 texts and 1 true ones"):
        score(["a", "b"], ["a"])  # type: ignore[operator]


# What rationales repeat


def test_copied_as_worked_out_by_hand() -> None:
    source = "A late goal, by the keeper, decided the match."
    assert copied("A late goal by the keeper!", source) == 1.0
    assert copied("so a late goal by the striker", source) == 0.5  # of four: "a late goal by", "late goal by the"
    assert copied("late goal", source) is None
    assert copied("late goal", source, 2) == 1.0
    assert copied("late goal late goal", source, 2) == pytest.approx(2 / 3)  # each time counts
    assert copied("", source) is None
    assert copied("a b c d", "") == 0.0


@given(ANY, ANY, st.integers(1, 4))
def test_copied_is_a_share_and_all_of_itself(text: str, source: str, n: int) -> None:
    found = copied(text, source, n)
    if not ngrams(words(text), n):
        assert found is None
    else:
        assert found is not None and 0 <= found <= 1
        assert copied(text, text, n) == 1.0


@given(st.lists(ANY, min_size=1, max_size=8), st.randoms())
def test_distinct(texts: list[str], chance: random.Random) -> None:
    found = distinct(texts)
    assert found is not None and 1 / len(texts) <= found <= 1
    assert distinct(chance.sample(texts, len(texts))) == found
    assert distinct(texts + texts) == pytest.approx(found / 2)
    assert distinct(texts[:1] * 4) == 0.25


def test_distinct_leaves_case_and_spaces_apart() -> None:
    assert distinct(["A goal.", "a  goal. ", "a goal", "no"]) == 0.75
    assert distinct([]) is None
