"""What a student's rationales have to do with its labels: which label they argue for, and what the label becomes behind them.

    conclusion("The text is about a printer's firmware, which belongs to technology.", ["food", "technology"])  ->  "technology"
    rationale_scores(inputs=[..], golds=["food"], labels=["food"], rationales=["It is about soup, so food."], finished=[True], ..)
    -> {"rows": 1, "concludes": 1, "concludes_label": 1, "concludes_gold": 1, "changed": None, ..}

A student of two tasks writes its label without its rationale and its rationale without its label, so nothing makes them agree. That they
are associated is necessary for a rationale to be faithful, and not sufficient (Wiegreffe, Marasovic and Smith 2021, Measuring Association
Between Labels and Free-Text Rationales, arXiv 2010.12762). Two looks at it: whether the rationale concludes what the student answers, and
whether the student answers otherwise when its own rationale stands before it, after the interventions of Lanham et al. 2023 (Measuring
Faithfulness in Chain-of-Thought Reasoning, arXiv 2307.13702).

Limits: conclusions are read by words and not understood; what names no label, or several and none of them last, concludes nothing. That
labels and rationales agree does not say that either is right, nor that the label was given for that reason.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from pipeline import labels as label_forms
from pipeline.filters.contradictions import MOST_CONCLUSIONS, concluded
from pipeline.labels import LabelType, same
from pipeline.metrics import RationaleScores
from pipeline.shard import student_prompt
from pipeline.text import ngrams, normalise, words

TAKEN: Final = "\0"  # no normalised word holds it
RUN: Final = 4  # words: what is copied is counted by runs of so many

_THEREFORE = re.compile(
    r"\b(?:so|therefore|thus|hence|consequently|overall)\b"
    r"|\b(?:belong(?:s|ing)? (?:to|in|under|with)|(?:fall|fit)(?:s|ting|ing)? (?:best )?(?:under|in|into|within)"
    r"|(?:classified|categori[sz]ed|labell?ed|filed|counted|counts?) (?:as|under)|points? (?:to|towards?)|corresponds? to)\b"
)
_SENTENCE_END = re.compile(r"[\n!?;]|\.(?:\s|$)")
_LETTER = re.compile(r"\(([a-z])\)")
_NEGATIONS: Final = frozenset(
    "not no never neither nor without than isnt arent wasnt werent doesnt dont didnt cannot cant instead".split()
)
_FARTHEST: Final = 4  # words between "not" and the label that it denies
_RESULT = re.compile(r"=\s*(-?\s*[$€£¥₹]?\s*[0-9][0-9,]*(?:\.[0-9]+)?)(?!\s*[-+*/×÷x−]\s*[0-9(])(?![0-9,.]*[0-9])")
_NUMBER = re.compile(r"(?<![\w.])-?[$€£¥₹]?[0-9][0-9,]*(?:\.[0-9]+)?(?!\w)")


def label_after_rationale(text: str, rationale: str) -> str:
    """The prompt that asks for the label of the input ``text`` once more, with the student's own rationale at its end.

    It is the label's prompt of the input, a line break and the rationale: ``[label] <input>\\n<rationale>``. No student was trained on
    this, so it is a probe and no way to get better labels: an answer that stays the same can have passed over the rationale,
    and one that changes can have changed because the input looks strange.
    """
    return student_prompt("label", f"{text}\n{rationale}")


def conclusion(rationale: str, options: Sequence[str] = (), label_type: LabelType = "text") -> str | None:
    """The one label that a rationale comes to, in its one spelling; None where it comes to none, or to several.

    Of a closed set (``options``: the row's choices or the task's labels) that is, in this order: what "the answer is .." says; the only
    label named behind the last "so", "therefore", "belongs to" or the like; the only one named at all. Labels are compared as whole
    normalised words, the longest first ("machine learning" does not name "learning"); one letter alone names nothing but a choice in
    parentheses, "(b)"; a label behind "not" or "than" is not named. Without a set a number or an equation comes to what "the
    answer is .." says, to the last result behind "=", or to the last number. Other open answers have no conclusion.
    """
    if (said := concluded(rationale, options, label_type)) is not None:
        return said
    if options:
        return _closed(rationale, options, label_type)
    return _value(rationale) if label_type in ("number", "equation") else None


def _closed(rationale: str, options: Sequence[str], label_type: LabelType) -> str | None:
    lower = rationale.lower()
    for place in [match.end() for match in _THEREFORE.finditer(lower)][: -MOST_CONCLUSIONS - 1 : -1]:
        end = _SENTENCE_END.search(lower, place)
        found = _named(lower[place : end.start() if end else None], options, label_type)
        if found:
            return found.pop() if len(found) == 1 else None
    found = _named(lower, options, label_type)
    return found.pop() if len(found) == 1 else None


def _named(text: str, options: Sequence[str], label_type: LabelType) -> set[str]:
    """The options that stand in ``text`` as whole words, and are not denied there."""
    found = set()
    if label_type == "choice":
        for match in _LETTER.finditer(text):
            if ord(match[1]) - ord("a") < len(options):
                found.add(options[ord(match[1]) - ord("a")])
        text = _LETTER.sub(" ", text)
    rest = f" {normalise(text)} "
    for option in sorted(set(options), key=lambda option: (-len(option), option)):
        looked_for = f" {normalise(option)} "
        if not looked_for.strip() or (len(looked_for) == 3 and looked_for[1].isalpha()):
            continue
        place = rest.find(looked_for)
        while place >= 0:
            if not _denied(rest[:place]):
                found.add(option)
            end = place + len(looked_for) - 1
            taken = TAKEN * (end - place - 1)  # no shorter label is named by it
            rest = rest[: place + 1] + taken + rest[end:]
            place = rest.find(looked_for, end)
    return found


def _denied(before: str) -> bool:
    """Whether a "not" stands before, with nothing between that ends its reach."""
    for word in reversed(before.split()[-_FARTHEST:]):
        if word in _NEGATIONS:
            return True
        if word in ("but", "so", "because") or TAKEN in word:
            return False
    return False


def _value(rationale: str) -> str | None:
    """The last number behind "=", or the last one at all, as labels are written."""
    for pattern in (_RESULT, _NUMBER):
        for said in reversed([match[match.lastindex or 0] for match in pattern.finditer(rationale)]):
            found = label_forms.normalise(said.rstrip(","), "number")
            if found is not None and label_forms.value(found, "number") is not None:
                return found
    return None


def rationale_scores(
    *,
    inputs: Sequence[str],
    golds: Sequence[str],
    labels: Sequence[str | None],
    rationales: Sequence[str | None],
    finished: Sequence[bool],
    options: Sequence[Sequence[str]],
    label_type: LabelType,
    after: Mapping[int, str | None] | None = None,
    judged: Sequence[float | None] | None = None,
) -> RationaleScores:
    """The figures of the rationales that a model was asked for; all lists have an entry for each of these rows.

    ``labels`` are those that the model answers (None: none), ``options`` each row's closed set, empty where answers are open. ``after``:
    row -> the label that it answers to `label_after_rationale`, for the rows that were asked so; None where none was. ``judged``: a judge's
    scores from 1 to 5, None for a rationale that it did not score. A row without a rationale concludes nothing and has no words.
    Raises ValueError where the lists differ in length.
    """
    texts = [rationale or "" for rationale in rationales]
    rows = list(zip(inputs, golds, labels, texts, options, finished, strict=True))
    ends = [conclusion(text, choices, label_type) for _, _, _, text, choices, _ in rows]
    own = [words(text) if text.strip() else [] for text in texts]
    copies = [share for row, said in zip(rows, own, strict=True) if (share := _copied(said, row[0])) is not None]
    scores = [score for score in judged or () if score is not None]

    def agree(first: str | None, second: str | None) -> bool:
        return first is not None and second is not None and same(first, second, label_type)

    asked = None if after is None else sorted(after)
    return RationaleScores(
        rows=len(rows),
        finished=sum(bool(done) for *_, done in rows),
        concludes=sum(end is not None for end in ends),
        concludes_label=sum(agree(end, row[2]) for end, row in zip(ends, rows, strict=True)),
        concludes_gold=sum(agree(end, row[1]) for end, row in zip(ends, rows, strict=True)),
        asked_first=None if asked is None else len(asked),
        changed=None
        if after is None
        else sum(not same_answer(labels[row], label, label_type) for row, label in after.items()),
        right_before=None if asked is None else sum(agree(labels[row], golds[row]) for row in asked),
        right_after=None if after is None else sum(agree(label, golds[row]) for row, label in after.items()),
        words=sum(map(len, own)) / len(rows) if rows else None,
        copied=sum(copies) / len(copies) if copies else None,
        distinct=len({" ".join(said) for said in own}) / len(rows) if rows else None,
        judged=None if judged is None else len(scores),
        judge_score=sum(scores) / len(scores) if scores else None,
    )


def same_answer(first: str | None, second: str | None, label_type: LabelType) -> bool:
    """Whether two answers are the same one; two that are no label are."""
    if first is None or second is None:
        return first is second
    return first == second or same(first, second, label_type)


def _copied(said: Sequence[str], text: str) -> float | None:
    """The share of the runs of four words that stand in ``text``; None where there is no such run."""
    runs = ngrams(said, RUN)
    if not runs:
        return None
    known = set(ngrams(words(text), RUN))
    return sum(run in known for run in runs) / len(runs)
