"""tokens: the compiled normal form and its runs are those of text.py, for every text."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline import text, tokens

ASCII = st.text(st.characters(max_codepoint=127), max_size=60)
FIGURES = st.text(st.sampled_from("0123459.,-*/ '+=$ab\t"), max_size=40)
TEXTS = st.lists(st.one_of(ASCII, FIGURES, st.text(max_size=40)), max_size=8)


@settings(max_examples=400, deadline=None)
@given(TEXTS)
@example(["1,234,5678 12,345.6 1,23 0.1,234 5 - 3 5--3 a-b 1.2.3 :-) ''", "", " ", "½", "…"])
def test_the_normal_form_is_that_of_text(texts: list[str]) -> None:
    packed = tokens.pack(texts)
    assert len(packed) == len(texts)
    assert [packed[i] for i in range(len(texts))] == [text.normalise(one) for one in texts]


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.integers(1, 5))
def test_runs_are_equal_exactly_where_the_texts_are(texts: list[str], n: int) -> None:
    packed = tokens.pack(texts)
    for units, hashed in (
        ([text.words(one) for one in texts], tokens.words(packed)),
        ([list(text.normalise(one)) for one in texts], tokens.characters(packed)),
    ):
        expected = [" ".join(one[k : k + n]) for one in units for k in range(len(one) - n + 1)]
        found, ends = tokens.runs(*hashed, n)
        assert list(np.diff(ends, prepend=0)) == [max(0, len(one) - n + 1) for one in units]
        names: dict[str, int] = {}
        for run, value in zip(expected, found.tolist(), strict=True):
            assert names.setdefault(run, value) == value
        assert len(set(names.values())) == len(names)
