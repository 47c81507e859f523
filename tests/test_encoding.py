"""Rows on their way to tokens: distributions, shares of the data, and rows that are too long. A token is a letter here."""

import json
import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.encoding import Encoded, Encoding, encode
from pipeline.files import InputError
from pipeline.losses.soft_labels import tempered
from pipeline.records import Drop, TrainingRow


def row(number: int, task: str = "label", completion: str = "a", **more: Any) -> TrainingRow:
    fields = {"split": "train", "prompt": "asked", **more}
    return TrainingRow(id=f"r{number}/{task}", example=f"r{number}", task=task, completion=completion, **fields)


def encoded(rows: list[TrainingRow], tasks: list[str] | None = None, **more: Any) -> Encoded:
    letters = lambda text: [ord(letter) for letter in text]  # noqa: E731
    ended = lambda text: [*letters(text), 0]  # noqa: E731
    return encode(rows, Encoding(letters, ended, tasks or ["label"], **more))


DISTRIBUTION = st.dictionaries(st.text(min_size=1), st.floats(0, 1), min_size=1, max_size=6).filter(
    lambda given: sum(given.values()) > 1e-9
)


@given(DISTRIBUTION, st.floats(0.1, 10))
def test_a_temperature_keeps_a_distribution_one(given: dict[str, float], temperature: float) -> None:
    found = tempered(given, temperature)
    assert math.fsum(found.values()) == pytest.approx(1)
    assert set(found) <= {label for label, chance in given.items() if chance > 0}
    order = sorted(found, key=lambda label: given[label])
    assert all(found[low] <= found[high] * (1 + 1e-12) for low, high in pairwise(order))


def test_temperatures_by_hand() -> None:
    assert tempered({"a": 0.9, "b": 0.1}, 1) == pytest.approx({"a": 0.9, "b": 0.1})
    assert tempered({"a": 0.9, "b": 0.1}, 2) == pytest.approx({"a": 0.75, "b": 0.25})
    assert tempered({"a": 3.0, "b": 1.0, "c": 0.0}, 1) == pytest.approx({"a": 0.75, "b": 0.25})
    for wrong in ({"a": 0.0}, {"a": -0.5, "b": 1.0}, {"a": math.nan}, {}):
        with pytest.raises(ValueError, match="no distribution"):
            tempered(wrong, 1)
    with pytest.raises(ValueError, match="temperature"):
        tempered({"a": 1.0}, 0)


def test_each_label_of_a_distribution_is_a_sequence_that_counts_by_its_probability() -> None:
    soft = row(1, completion="a", distribution=json.dumps({"a": 0.9, "bb": 0.1}))
    found = encoded([soft], temperature=2)
    (example,) = found.examples["train"]
    assert [(len(one.ids), one.targets) for one in example.sequences] == [(7, 2), (8, 3)]
    assert [one.share for one in example.sequences] == pytest.approx([0.75, 0.25])
    assert found.fates[0].tokens == 5
    for damaged in ("{", '{"a": "b"}', '{"a": NaN}', "[]", '{"a": -1}', "{}"):
        with pytest.raises(InputError, match="r1/label: distribution"):
            encoded([row(1, distribution=damaged)])


@given(st.integers(1, 60), st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 5))
def test_a_smaller_share_is_part_of_a_larger_one(rows: int, first: float, second: float, seed: int) -> None:
    given = [row(number) for number in range(rows)] + [row(99, split="validation")]
    few, many = sorted((first, second))
    used = {}
    for fraction in (few, many):
        found = encoded(given, fraction=fraction, seed=seed)
        used[fraction] = {one.id for one in found.examples["train"]}
        assert len(used[fraction]) == max(1, round(fraction * rows))
        assert {fate.reason for fate in found.fates if isinstance(fate, Drop)} <= {"outside_fraction"}
        assert len(found.examples["validation"]) == 1
        assert len(found.fates) == len(given)
    assert used[few] <= used[many]


def test_other_seeds_draw_other_shares() -> None:
    given = [row(number) for number in range(40)]
    drawn = {
        frozenset(one.id for one in encoded(given, fraction=0.25, seed=seed).examples["train"]) for seed in range(8)
    }
    assert len(drawn) == 8


def test_rows_that_are_too_long_are_dropped_or_cut_and_counted() -> None:
    given = [row(1, completion="abc"), row(2, completion="abcdefgh"), row(3, prompt="x" * 30)]
    dropped = encoded(given, max_length=10)
    assert [getattr(fate, "reason", None) for fate in dropped.fates] == [None, "too_long", "too_long"]
    assert dropped.fates[1].evidence == {"tokens": {"label": 14}, "max_length": 10}
    assert dropped.cut == 0
    cut = encoded(given, max_length=10, too_long="cut")
    assert [getattr(fate, "reason", None) for fate in cut.fates] == [None, None, "no_target_left"]
    assert cut.cut == 1
    assert [one.sequences[0].ids[-1] for one in cut.examples["train"]] == [0, ord("e")]  # the second has no end
    assert cut.fates[1].tokens == 5
    apart = encoded(given, max_length=10, apart=True)
    assert [getattr(fate, "reason", None) for fate in apart.fates] == [None, None, "too_long"]
