"""Normalised text, words, n-grams, shingles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.text import excerpt, ngrams, normalise, numbers, shingles, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It's  “Café” No. 1,200: 5-3!", "its café no 1200 5 - 3"),
        ("THE\tCat\n sat…", "the cat sat"),
        ("don't don’t dont", "dont dont dont"),
        ("ﬁve ＴＥＮ ½", "five ten 1 / 2"),
        ("zero\u200bwidth soft\u00adhyphen", "zerowidth softhyphen"),
        ("3.5 is not 3. 5", "3.5 is not 3 5"),
        ("1,200 but 1,20 and 1,2000", "1200 but 1 20 and 1 2000"),
        ("10 - 3, 10 * 3, 10/3, 10 + 3 = 13", "10 - 3 10 * 3 10 / 3 10 + 3 = 13"),
        ("well-known and/or state-of-the-art", "well known and or state of the art"),
        ("$5 < €6", "$ 5 < € 6"),
        ("你好 world", "你 好 world"),
        ("नमस्ते दुनिया", "नमस्ते दुनिया"),
        (":-)", ":-)"),
        ("   ", ""),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


@given(st.text())
def test_normalise_is_idempotent_and_keeps_something(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert bool(once) == bool("".join(text.split()))
    assert "  " not in once and once == once.strip()


@given(st.text(st.characters(max_codepoint=127)))
def test_ascii_is_normalised_like_any_text(text: str) -> None:
    assert words(f"{text} é") == [*words(f"a {text}")[1:], "é"]


@given(st.text(alphabet="abc DEF", max_size=40))
def test_letter_case_spaces_and_punctuation_do_not_count(text: str) -> None:
    shouted = "  ".join(text.upper().split(" ")) + " !"
    assert words(shouted) == words(text) or not words(text)


@given(
    st.integers(0, 999),
    st.integers(0, 999),
    st.sampled_from(["+", "-", "*", "/"]),
    st.sampled_from(["+", "-", "*", "/"]),
)
def test_sums_with_different_signs_stay_different(left: int, right: int, sign: str, other: str) -> None:
    assert (normalise(f"{left} {sign} {right}") == normalise(f"{left}{other}{right}")) == (sign == other)


def test_numbers() -> None:
    assert numbers("1,200 apples, 3.5 kg, version 2.0.1, no. 7.") == ["1200", "3.5", "2.0.1", "7"]
    assert numbers("two apples") == []


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 6))
def test_ngrams_are_all_runs_in_order(sequence: list[str], n: int) -> None:
    found = ngrams(sequence, n)
    assert len(found) == max(0, len(sequence) - n + 1)
    assert all(run.split() == sequence[start : start + n] for start, run in enumerate(found))


def test_shingles() -> None:
    assert shingles("The cat", 4) == {"the ", "he c", "e ca", " cat"}
    assert shingles("At!", 4) == {"at"}
    assert shingles("", 4) == {""}


@given(st.text(), st.integers(5, 50))
def test_excerpt_keeps_beginning_and_end(text: str, limit: int) -> None:
    short = excerpt(text, limit)
    assert len(short) <= limit
    assert (
        short == text
        if len(text) <= limit
        else text[: (limit - 3) // 2] == short[: (limit - 3) // 2] and short[-1] == text[-1]
    )
