"""How good answers are, one eval set at a time: labels against true labels, free texts against true texts. Pure functions.

    macro_f1(["a", "a", "b"], ["a", "b", None], ["a", "b"])  ->  0.3333..
    confusion(["a", "a", "b"], ["a", "b", None], ["a", "b"])  ->  [[1, 1, 0], [0, 0, 1]]
    exact_match(" Late  GOAL", "late goal")                   ->  True
    rouge_l(["the cat sat"], ["the cat"])                     ->  [0.8]
    chrf(["the cat sat"], ["the cat"])                        ->  [0.8345..]
    copied("it says a goal was late", "A goal was late.", 3)  ->  0.5

Labels are scored by scikit-learn, ROUGE-L by rouge-score, chrF by sacrebleu. Texts are not stemmed.

Limits: ROUGE-L and chrF say how alike two texts are, not whether the first is true; a right answer in other words scores low. ROUGE-L's
time grows with the product of both lengths. A text without any letter or digit (":-)") has a ROUGE-L of 0, even against itself.
"""

import unicodedata
from collections.abc import Sequence
from functools import lru_cache

from pipeline.metrics import LabelScores
from pipeline.text import fold, ngrams, unspaced, words


def macro_f1(golds: Sequence[str], answers: Sequence[str | None], classes: Sequence[str]) -> float:
    """The mean F1 of the classes that are some row's truth or answer; an answer outside ``classes`` is simply wrong."""
    from sklearn.metrics import f1_score

    truths, given = _numbered(golds, answers, classes)
    present = sorted({*truths, *given} - {len(classes)})
    return float(f1_score(truths, given, labels=present, average="macro", zero_division=0))


def confusion(golds: Sequence[str], answers: Sequence[str | None], classes: Sequence[str]) -> list[list[int]]:
    """A row for each true class, a column for each answered one, and a last column for answers outside ``classes`` or none."""
    from sklearn.metrics import confusion_matrix

    truths, given = _numbered(golds, answers, classes)
    matrix = confusion_matrix(truths, given, labels=range(len(classes) + 1))
    return [[int(count) for count in row] for row in matrix[: len(classes)]]


def _numbered(
    golds: Sequence[str], answers: Sequence[str | None], classes: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Labels as positions in ``classes``; an answer that is none of them gets the position after the last.

    Raises ValueError for a truth outside ``classes``.
    """
    places: dict[str | None, int] = {name: place for place, name in enumerate(classes)}
    if strange := set(golds).difference(classes):
        raise ValueError(f"{min(strange)!r} is none of the classes")
    return [places[gold] for gold in golds], [places.get(answer, len(classes)) for answer in answers]


def label_scores(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> dict[str, LabelScores]:
    """Each class's precision and recall out of a confusion matrix."""
    scores = {}
    for index, name in enumerate(classes):
        gold, answered = sum(matrix[index]), sum(row[index] for row in matrix)
        hits = matrix[index][index]
        scores[name] = LabelScores(
            precision=hits / answered if answered else None,
            recall=hits / gold if gold else None,
            gold=gold,
            answered=answered,
        )
    return scores


def exact_match(text: str, gold: str) -> bool:
    """Whether both are the same, letter case, white space and Unicode's compatible forms (NFKC) apart; punctuation counts."""
    return fold(text) == fold(gold)


def rouge_l(texts: Sequence[str], golds: Sequence[str]) -> list[float]:
    """Each text's ROUGE-L F-measure against its gold, from 0 to 1: precision and recall of the longest common subsequence of words.

    C.-Y. Lin, ROUGE: A package for automatic evaluation of summaries (2004), as rouge-score reckons it without stemming. That library's
    own words are runs of a-z and 0-9, so that of "größer" only "gr" and "er" remain and of Russian nothing. Here words are runs of
    letters, marks and digits of any script (NFKC, case-folded), and each character of a script written without spaces (Han, Kana, Thai,
    ..) is a word: the same score on ASCII texts, a sensible one on others. Raises ValueError for lists that are not equally long.
    """
    from rouge_score.rouge_scorer import RougeScorer

    _in_pairs(texts, golds)
    scorer = RougeScorer(["rougeL"], use_stemmer=False, tokenizer=_Words())
    return [float(scorer.score(gold, text)["rougeL"].fmeasure) for text, gold in zip(texts, golds, strict=True)]


class _Words:
    """What rouge-score takes for a tokenizer."""

    def tokenize(self, text: str) -> list[str]:
        return "".join(map(_shown, fold(text))).split()


@lru_cache(maxsize=1 << 16)
def _shown(character: str) -> str:
    """What ROUGE-L makes of a character: itself, a word of its own, nothing, or the end of a word."""
    kind = unicodedata.category(character)
    if kind == "Cf":  # joiners and soft hyphens stand within words
        return ""
    if kind[0] == "L" and unspaced(character):
        return f" {character} "
    return character if kind[0] in "LMN" else " "


def chrf(texts: Sequence[str], golds: Sequence[str]) -> list[float]:
    """Each text's chrF2 against its gold, from 0 to 1: character n-grams up to 6, recall weighs twice; case counts, white space does not.

    M. Popović, chrF: character n-gram F-score for automatic MT evaluation (2015), as sacrebleu reckons it for single sentences, divided
    by 100. Raises ValueError for lists that are not equally long.
    """
    from sacrebleu.metrics import CHRF

    _in_pairs(texts, golds)
    scorer = CHRF()
    return [min(1.0, scorer.sentence_score(text, [gold]).score / 100) for text, gold in zip(texts, golds, strict=True)]


def _in_pairs(texts: Sequence[str], golds: Sequence[str]) -> None:
    if len(texts) != len(golds):
        raise ValueError(f"{len(texts)} texts and {len(golds)} true ones make no pairs")


def copied(text: str, source: str, n: int = 4) -> float | None:
    """The share of the text's word n-grams, repeated ones counted each time, that stand in ``source``; None where it has fewer words.

    Words are those of ``pipeline.text``: case and punctuation apart.
    """
    said = ngrams(words(text), n)
    known = set(ngrams(words(source), n))
    return sum(one in known for one in said) / len(said) if said else None


def distinct(texts: Sequence[str]) -> float | None:
    """Different texts as a share of all, letter case and white space apart; None where there are none."""
    return len(set(map(fold, texts))) / len(texts) if texts else None
