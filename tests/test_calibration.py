"""Calibration against numbers worked out by hand and scikit-learn's, and temperatures against those that made the rows."""

import math
import random

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from sklearn.metrics import brier_score_loss

from pipeline.calibration import (
    TEMPERATURES,
    brier,
    calibration,
    expected_calibration_error,
    fit_temperature,
    reliability_bins,
    scaled,
)

LABELS = ["a", "b", "c"]
Row = dict[str, float]


def rows_of(logits: numpy.ndarray) -> list[Row]:
    return [dict(zip(LABELS, map(float, row), strict=False)) for row in softmax(logits, axis=1)]


LOGITS = st.lists(st.lists(st.floats(-30, 30), min_size=3, max_size=3), min_size=1, max_size=30).map(numpy.asarray)
GOLDS = st.lists(st.sampled_from([*LABELS, "none of them"]), min_size=30, max_size=30)


# Bins and ECE

FIVE: list[Row] = [{"a": 0.9, "b": 0.1}, {"a": 0.85, "b": 0.15}, {"a": 0.6, "b": 0.4}, {"a": 0.4, "b": 0.6}, {"a": 1.0}]
TRUE = ["a", "b", "a", "a", "a"]


def test_bins_and_ece_as_worked_out_by_hand() -> None:
    found = reliability_bins(FIVE, TRUE)
    assert [(one.low, one.high) for one in found] == [(place / 10, (place + 1) / 10) for place in range(10)]
    assert [one.rows for one in found] == [0, 0, 0, 0, 0, 2, 0, 0, 2, 1]
    assert (found[5].confidence, found[5].accuracy) == (0.6, 0.5)  # 0.6 belongs to (0.5, 0.6]
    assert (found[8].confidence, found[8].accuracy) == (0.875, 0.5)
    assert (found[9].confidence, found[9].accuracy) == (1.0, 1.0)
    assert (found[0].confidence, found[0].accuracy) == (None, None)
    assert expected_calibration_error(FIVE, TRUE) == pytest.approx((2 * 0.1 + 2 * 0.375 + 0) / 5)
    # in one bin: 3 of 5 are right, mean confidence 0.79
    assert expected_calibration_error(FIVE, TRUE, bins=1) == pytest.approx(0.19)


@pytest.mark.parametrize("bins", [1, 3, 10, 15, 100])
def test_an_edge_belongs_to_the_bin_below_it(bins: int) -> None:
    for place in range(bins + 1):
        found = reliability_bins([{"a": place / bins}], ["a"], bins)
        assert [one.rows for one in found].index(1) == max(0, place - 1)
        assert sum(one.rows for one in found) == 1


@given(LOGITS, GOLDS, st.integers(1, 20), st.randoms())
def test_ece_is_the_mean_gap_of_the_bins(
    logits: numpy.ndarray, golds: list[str], bins: int, chance: random.Random
) -> None:
    rows, golds = rows_of(logits), golds[: len(logits)]
    found = reliability_bins(rows, golds, bins)
    assert sum(one.rows for one in found) == len(rows)
    assert all(one.low <= (one.confidence or one.high) <= one.high + 1e-12 for one in found)
    # by numpy, bin by bin
    probabilities = softmax(logits, axis=1)
    confidence, right = probabilities.max(axis=1), numpy.asarray(LABELS)[probabilities.argmax(axis=1)] == golds
    expected = 0.0
    for low, high in zip(numpy.arange(bins) / bins, (numpy.arange(bins) + 1) / bins, strict=True):
        here = (confidence > low) & (confidence <= high + 1e-15)
        if here.any():
            expected += here.mean() * abs(right[here].mean() - confidence[here].mean())
    ece = expected_calibration_error(rows, golds, bins)
    assert 0 <= ece <= 1
    assert ece == pytest.approx(expected, abs=1e-9)
    order = chance.sample(range(len(rows)), len(rows))
    assert expected_calibration_error([rows[place] for place in order], [golds[place] for place in order], bins) == ece


# Brier


def test_brier_as_worked_out_by_hand() -> None:
    # 0.01 + 0.01; 0.7225 + 0.7225; 0.16 + 0.16; 0.36 + 0.36; 0
    assert brier(FIVE, TRUE) == pytest.approx((0.02 + 1.445 + 0.32 + 0.72 + 0) / 5)
    assert brier([{"a": 1.0}], ["b"]) == 2.0  # b has probability 0
    assert brier([{"a": 0.5, "b": 0.5}], ["c"]) == 1.5
    assert brier([{"a": 0.0, "b": 1.0}], ["b"]) == 0.0


@given(LOGITS, GOLDS, st.randoms())
@settings(max_examples=60)
def test_brier_is_that_of_scikit_learn(logits: numpy.ndarray, golds: list[str], chance: random.Random) -> None:
    rows, golds = rows_of(logits), [gold if gold in LABELS else "a" for gold in golds[: len(logits)]]
    found = brier(rows, golds)
    assert 0 <= found <= 2
    theirs = brier_score_loss(golds, softmax(logits, axis=1), labels=LABELS, scale_by_half=False)
    assert found == pytest.approx(theirs, abs=1e-9)
    order = chance.sample(range(len(rows)), len(rows))
    shuffled = [dict(chance.sample([*rows[place].items()], 3)) for place in order]
    assert brier(shuffled, [golds[place] for place in order]) == pytest.approx(found, abs=1e-15)


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=60)
def test_brier_of_two_labels_is_twice_the_usual_one(pairs: list[tuple[float, bool]]) -> None:
    rows = [{"yes": chance, "no": 1 - chance} for chance, _ in pairs]
    golds = ["yes" if truth else "no" for _, truth in pairs]
    theirs = brier_score_loss([truth for _, truth in pairs], [chance for chance, _ in pairs], labels=[False, True])
    assert brier(rows, golds) == pytest.approx(2 * theirs, abs=1e-9)


# Temperature


@pytest.mark.parametrize("truth", [0.4, 1.0, 2.5])
@pytest.mark.parametrize("labels", [2, 5])
def test_a_temperature_is_found_again(truth: float, labels: int) -> None:
    chance = numpy.random.default_rng(labels)
    logits = chance.normal(scale=2, size=(4000, labels))
    golds = (log_softmax(logits, axis=1) + chance.gumbel(size=logits.shape)).argmax(axis=1)  # drawn by the softmax
    found = fit_temperature((logits * truth).tolist(), golds.tolist())
    assert found == pytest.approx(truth, rel=0.06)
    # and it calibrates: ECE falls to what chance leaves
    rows = [{str(label): float(value) for label, value in enumerate(row)} for row in softmax(logits * truth, axis=1)]
    after = calibration(rows, [str(gold) for gold in golds], source="scores", temperature=found, temperature_rows=4000)
    assert after.scaled_ece is not None and after.scaled_brier is not None
    assert after.scaled_ece < 0.025
    if truth != 1:
        assert after.ece > 0.05 and after.scaled_brier < after.brier


@given(LOGITS, st.lists(st.integers(0, 2), min_size=30, max_size=30))
@settings(max_examples=60)
def test_no_other_temperature_makes_the_truths_likelier(logits: numpy.ndarray, golds: list[int]) -> None:
    logs, golds = log_softmax(logits, axis=1), golds[: len(logits)]

    def loss(temperature: float) -> float:
        floored = numpy.maximum(logs, math.log(1e-12))
        return float(-log_softmax(floored / temperature, axis=1)[range(len(golds)), golds].mean())

    found = fit_temperature(logs.tolist(), golds)
    assert TEMPERATURES[0] <= found <= TEMPERATURES[1]
    assert all(loss(found) <= loss(other) + 1e-5 for other in numpy.geomspace(0.0501, 19.99, 40))
    assert loss(found) <= loss(1.0) + 1e-12
    # unnormalised scores, and an order of rows, change nothing
    again = fit_temperature((logits[::-1] + 3).tolist(), golds[::-1])
    assert loss(again) == pytest.approx(loss(found), abs=1e-6)


def test_rows_may_have_choices_of_their_own() -> None:
    two, three = [-0.2, -1.8], [-0.5, -1.5, -1.9]
    rows = [two] * 6 + [three] * 6
    golds = [0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 2]
    found = fit_temperature(rows, golds)
    assert found > 1.2
    assert fit_temperature(rows, [*golds[:-1], 2]) == found
    assert fit_temperature([*rows, two, three], [*golds, -1, -1]) == found  # whose truth is no label: left out
    # a longer row, by which all temperatures are as good, takes nothing from the shorter ones
    alone = fit_temperature(rows[:6], golds[:6])
    assert fit_temperature([*rows[:6], [0.0, 0.0, 0.0]], [*golds[:6], 2]) == pytest.approx(alone, rel=1e-4)


def test_where_no_temperature_is_better_it_is_1() -> None:
    assert fit_temperature([[0.0], [0.0]], [0, 0]) == 1.0  # a single label
    assert fit_temperature([[-1.0, -1.0]], [1]) == 1.0  # all equally likely


def test_temperatures_have_bounds() -> None:
    assert 0.05 <= fit_temperature([[-0.1, -2.4]] * 9, [0] * 9) < 0.1  # below which nothing gets likelier
    assert 0.05 <= fit_temperature([[-0.1, -0.2]] * 9, [0] * 9) < 0.051
    assert fit_temperature([[-0.1, -2.4]] * 9, [1] * 9) == pytest.approx(20, rel=1e-3)
    sure = fit_temperature([[0.0, -math.inf]] * 9, [0] * 8 + [1])
    # 1/9 of the mass for a label that is floored to 1e-12: (1e-12)^(1/T) = 1/8
    assert sure == pytest.approx(math.log(1e12) / math.log(8), rel=1e-4)


@pytest.mark.parametrize(
    ("rows", "golds", "problem"),
    [
        ([], [], "no rows"),
        ([[0.0, 0.0]], [-1], "no rows"),
        ([[0.0, 0.0]], [0, 1], "1 rows and 2 true labels"),
        ([[0.0, 0.0]], [2], "row 0: label 2 of 2"),
        ([[0.0, math.nan]], [0], "row 0: no log-probabilities"),
        ([[0.0, math.inf]], [0], "row 0: no log-probabilities"),
        ([[-math.inf, -math.inf]], [0], "row 0: no log-probabilities"),
    ],
)
def test_what_no_temperature_can_be_fitted_on(rows: list[list[float]], golds: list[int], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        fit_temperature(rows, golds)


@given(LOGITS.map(lambda logits: logits * 0.4), st.floats(0.06, 19))  # all within 24: above the floor
@settings(max_examples=60)
def test_scaling_is_a_softmax_of_divided_logits(logits: numpy.ndarray, temperature: float) -> None:
    rows = rows_of(logits)
    expected = softmax(logits / temperature, axis=1)
    for row, wanted in zip(scaled(rows, temperature), expected, strict=True):
        assert [*row] == LABELS
        assert [*row.values()] == pytest.approx(wanted.tolist(), abs=1e-9)
    for row, same in zip(rows, scaled(rows, 1), strict=True):
        assert [*same.values()] == pytest.approx([*row.values()], abs=1e-11)


@given(
    st.lists(st.lists(st.just(0.0) | st.floats(0, 1), min_size=1, max_size=4), min_size=1, max_size=5),
    st.floats(0, 1),
    st.floats(1e-300, 1e300),
)
def test_scaling_keeps_sums_and_order(rows: list[list[float]], total: float, temperature: float) -> None:
    given_rows = [{str(place): value / (sum(row) or 1) * total for place, value in enumerate(row)} for row in rows]
    for before, after in zip(given_rows, scaled(given_rows, temperature), strict=True):
        assert math.fsum(after.values()) == pytest.approx(math.fsum(before.values()), abs=1e-9)
        assert all(0 <= value <= 1 + 1e-9 for value in after.values())
        if any(before.values()):
            assert after[max(before, key=before.__getitem__)] == max(after.values())
    for before, same in zip(given_rows, scaled(given_rows, 1), strict=True):
        assert [*same.values()] == pytest.approx([*before.values()], abs=1e-11)


def test_a_label_without_probability_can_be_scaled() -> None:
    (row,) = scaled([{"a": 1.0, "b": 0.0}], 2)
    assert row == {"a": pytest.approx(1 - 1e-6), "b": pytest.approx(1e-6, rel=1e-4)}
    assert scaled([{"a": 0.0, "b": 0.0}], 2) == [{"a": 0.0, "b": 0.0}]
    assert scaled([{"a": 1.0}], 7) == [{"a": 1.0}]


@pytest.mark.parametrize("temperature", [0, -1, math.nan, math.inf])
def test_no_temperature(temperature: float) -> None:
    with pytest.raises(ValueError, match="scales nothing"):
        scaled([{"a": 1.0}], temperature)


# All at once


def test_calibration_holds_all_of_it() -> None:
    found = calibration(FIVE, TRUE, source="votes", bins=2)
    assert (found.source, found.rows, found.bins) == ("votes", 5, reliability_bins(FIVE, TRUE, 2))
    assert (found.ece, found.brier) == (expected_calibration_error(FIVE, TRUE, 2), brier(FIVE, TRUE))
    assert (found.temperature, found.temperature_rows, found.scaled_ece, found.scaled_brier) == (None, 0, None, None)
    after = calibration(FIVE, TRUE, source="scores", bins=2, temperature=2.0, temperature_rows=70)
    assert (after.temperature, after.temperature_rows) == (2.0, 70)
    assert after.scaled_ece == expected_calibration_error(scaled(FIVE, 2.0), TRUE, 2)
    assert after.scaled_brier == brier(scaled(FIVE, 2.0), TRUE)
    assert (after.ece, after.bins) == (found.ece, found.bins)
    assert after.scaled_ece != expected_calibration_error(scaled(FIVE, 2.0), TRUE)  # ten bins


def test_a_row_whose_truth_is_no_label_is_wrong() -> None:
    found = calibration([{"a": 0.8, "b": 0.2}], ["z"], source="scores")
    assert found.ece == 0.8
    assert found.brier == pytest.approx(0.64 + 0.04 + 1)


def test_a_single_label() -> None:
    found = calibration([{"a": 1.0}] * 4, ["a", "a", "a", "b"], source="scores", temperature=3.0)
    assert (found.ece, found.brier) == (0.25, 0.5)
    assert (found.scaled_ece, found.scaled_brier) == (0.25, 0.5)


def test_vote_shares_may_leave_a_rest() -> None:
    assert calibration([{"a": 0.5, "b": 0.25}], ["a"], source="votes").brier == 0.25 + 0.0625
    assert reliability_bins([{"a": 0.0}], ["a"])[0].rows == 1


@pytest.mark.parametrize(
    ("rows", "golds", "problem"),
    [
        ([], [], "0 rows of probabilities"),
        ([{"a": 1.0}], ["a", "a"], "1 rows of probabilities and 2 true labels"),
        ([{}], ["a"], "holds no probabilities"),
        ([{"a": 1.2, "b": -0.2}], ["a"], "holds no probabilities"),
        ([{"a": 0.7, "b": 0.7}], ["a"], "holds no probabilities"),
        ([{"a": math.nan}], ["a"], "holds no probabilities"),
    ],
)
def test_what_gives_no_calibration(rows: list[Row], golds: list[str], problem: str) -> None:
    for figure in (brier, expected_calibration_error, reliability_bins):
        with pytest.raises(ValueError, match=problem):
            figure(rows, golds)  # type: ignore[operator]
    with pytest.raises(ValueError, match=problem):
        calibration(rows, golds, source="scores", temperature=2.0)


def test_no_bins() -> None:
    with pytest.raises(ValueError, match="0 bins"):
        reliability_bins(FIVE, TRUE, 0)
