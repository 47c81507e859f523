"""The nearest neighbour as a baseline: an eval row gets the label of the training row whose words are most like its own.

    labels(["late goal sinks leaders"], [("late goals sink the leaders", "sports"), ("bread is dear", "food")])   -> ["sports"]

Alike is the cosine of TF-IDF weights over words and pairs of words, as ``pipeline.text`` makes words; of equally similar training rows
the first counts, and a row that shares no word with any gets the first of all. A student that is no better than this has learned to look
things up.

Limits: eval rows are compared with all training rows, a few at a time: about 0.1 s for each of a million training rows and one core.
"""

from collections.abc import Sequence
from typing import Final

from pipeline.text import ngrams, words

AT_ONCE: Final = 16  # eval rows, whose similarities to all training rows are in memory
DIGITS: Final = 9  # of a similarity that count: what differs beyond them is a rounding error


def labels(inputs: Sequence[str], training: Sequence[tuple[str, str]]) -> list[str]:
    """For each input the label of the most similar of the ``training`` rows (input, label). Raises ValueError where there are none."""
    import numpy
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not training:
        raise ValueError("there are no training rows to be near to")
    if not any(_terms(text) for text, _ in training):
        return [training[0][1]] * len(inputs)
    vectorizer = TfidfVectorizer(analyzer=_terms, dtype=numpy.float32)
    known = vectorizer.fit_transform(text for text, _ in training).T.tocsr()
    found: list[str] = []
    for start in range(0, len(inputs), AT_ONCE):
        weights = vectorizer.transform(inputs[start : start + AT_ONCE])
        alike = (weights @ known).toarray().round(DIGITS)
        found += [training[place][1] for place in alike.argmax(axis=1).tolist()]
    return found


def _terms(text: str) -> list[str]:
    found = words(text)
    return found + ngrams(found, 2)
