"""Intervals against scipy's, against numbers worked out by hand, and against simulations in which the truth is known."""

import math
import random

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from pipeline import intervals
from pipeline.intervals import (
    accuracy_interval,
    bootstrap_macro_f1,
    bootstrap_mean,
    compare,
    mcnemar,
    paired_difference,
    share,
    shown,
)
from pipeline.scores import macro_f1

DRAWS = 1000  # simulated eval sets behind a measured coverage
PAIRS = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)
ANSWERED = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from(["a", "b", "c", "z", None])), min_size=1, max_size=40
)
VALUES = st.lists(st.floats(-5, 5), min_size=1, max_size=40)


def covered(intervals_found: list[tuple[float, float]], truth: float) -> float:
    """The share of intervals that hold the truth, to a billionth: ends are sums of floats."""
    return sum(low - 1e-9 <= truth <= high + 1e-9 for low, high in intervals_found) / len(intervals_found)


# Wilson


def test_wilson_interval_as_worked_out_by_hand() -> None:
    # 8 of 10: centre (0.8 + 3.8415/20) / 1.38415, half width 1.95996 / 1.38415 * sqrt((0.16 + 3.8415/40) / 10)
    assert accuracy_interval(8, 10) == pytest.approx((0.49016, 0.94331), abs=1e-5)
    assert accuracy_interval(0, 10) == (0.0, pytest.approx(0.27753, abs=1e-5))
    assert accuracy_interval(10, 10) == (pytest.approx(0.72247, abs=1e-5), 1.0)


@given(st.integers(1, 3000), st.floats(0.5, 0.999), st.data())
def test_wilson_interval_is_that_of_scipy(rows: int, level: float, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, rows))
    theirs = stats.binomtest(right, rows).proportion_ci(level, method="wilson")
    z = float(stats.norm.ppf((1 + level) / 2))
    assert accuracy_interval(right, rows, z) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    plain = stats.binomtest(right, rows).proportion_ci(0.95, method="wilson")
    assert share(right, rows).interval == pytest.approx((plain.low, plain.high), abs=1e-9)
    assert share(right, rows).value == right / rows


def test_a_share_of_no_rows_has_no_value() -> None:
    assert share(0, 0).model_dump() == {"rows": 0, "right": 0, "value": None, "interval": None}


@pytest.mark.parametrize(("right", "rows"), [(3, 2), (-1, 5), (1, 0), (-1, -1)])
def test_what_is_no_share(right: int, rows: int) -> None:
    with pytest.raises(ValueError, match="no share"):
        share(right, rows)
    with pytest.raises(ValueError, match="no share"):
        accuracy_interval(0, 0)


@pytest.mark.parametrize("rows", [30, 150, 1000])
@pytest.mark.parametrize("truth", [0.1, 0.5, 0.74, 0.95])
def test_wilson_intervals_hold_the_truth_as_often_as_they_say(truth: float, rows: int) -> None:
    drawn = numpy.random.default_rng(rows).binomial(rows, truth, size=DRAWS)
    assert 0.92 <= covered([accuracy_interval(int(right), rows) for right in drawn], truth) <= 0.98


# Means


@pytest.mark.parametrize("kinds", [3, 200])  # few different values, or all different
def test_the_interval_of_a_mean_is_that_of_scipy(kinds: int) -> None:
    chance = numpy.random.default_rng(kinds)
    values = chance.choice(chance.exponential(size=kinds), size=200)
    theirs = stats.bootstrap(
        (values,), numpy.mean, n_resamples=20_000, method="percentile", rng=numpy.random.default_rng(1)
    )
    found = bootstrap_mean(values.tolist(), resamples=20_000)
    error = float(theirs.standard_error)
    assert found.value == pytest.approx(values.mean())
    # the 2.5th percentile of 20,000 normal draws has a standard error of about 0.019 standard deviations; both are drawn
    assert found.interval == pytest.approx(tuple(theirs.confidence_interval), abs=0.1 * error)


@given(VALUES, st.integers(0, 5), st.randoms())
def test_a_mean_and_its_interval(values: list[float], seed: int, chance: random.Random) -> None:
    found = bootstrap_mean(values, resamples=50, seed=seed)
    low, high = found.interval
    assert found.value == pytest.approx(sum(values) / len(values), abs=1e-12)
    assert min(values) <= low <= high <= max(values)
    shuffled = chance.sample(values, len(values))
    assert bootstrap_mean(shuffled, resamples=50, seed=seed) == found
    assert bootstrap_mean(values[:1] * len(values), resamples=50).interval == (values[0], values[0])


@given(VALUES | st.lists(st.sampled_from([0.0, 1.0]), min_size=16, max_size=40), st.integers(1, 100))
@settings(max_examples=50)
def test_how_draws_are_cut_into_portions_does_not_matter(values: list[float], cells: int) -> None:
    whole = bootstrap_mean(values, resamples=30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "CELLS", cells)
        assert bootstrap_mean(values, resamples=30).interval == pytest.approx(whole.interval, abs=1e-12)


def test_a_bootstrap_holds_a_bounded_number_of_draws() -> None:
    assert sum(intervals._portions(2000, 10_000_000)) == 2000
    assert max(intervals._portions(2000, 10_000_000)) == 1
    assert max(intervals._portions(2000, 10_000)) * 10_000 <= intervals.CELLS
    assert intervals._portions(2000, 3) == [2000]


@pytest.mark.parametrize("values", [[], [0.5, math.nan], [math.inf]])
def test_no_mean(values: list[float]) -> None:
    with pytest.raises(ValueError, match="no mean"):
        bootstrap_mean(values)


def test_no_resamples() -> None:
    for call in (
        lambda: bootstrap_mean([0.5], resamples=0),
        lambda: bootstrap_macro_f1(["a"], ["a"], ["a"], resamples=0),
        lambda: paired_difference([True], [True], resamples=0),
    ):
        with pytest.raises(ValueError, match="0 resamples"):
            call()


@pytest.mark.parametrize(("rows", "least"), [(50, 0.92), (200, 0.92)])
def test_intervals_of_a_mean_hold_the_truth_as_often_as_they_say(rows: int, least: float) -> None:
    """Of beta(2, 1), as scores between 0 and 1 with a bent towards 1: mean 2/3."""
    drawn = numpy.random.default_rng(rows).beta(2, 1, size=(DRAWS, rows))
    found = [bootstrap_mean(values.tolist(), resamples=500, seed=seed).interval for seed, values in enumerate(drawn)]
    assert least <= covered(found, 2 / 3) <= 0.98


def test_intervals_of_a_share_by_bootstrap_hold_the_truth_as_often_as_they_say() -> None:
    drawn = numpy.random.default_rng(3).random(size=(DRAWS, 150)) < 0.7
    found = [
        bootstrap_mean(values.astype(float).tolist(), resamples=500, seed=seed).interval
        for seed, values in enumerate(drawn)
    ]
    assert 0.92 <= covered(found, 0.7) <= 0.98


# Macro-F1


@given(ANSWERED, st.integers(0, 3), st.randoms())
@settings(max_examples=60)
def test_macro_f1_and_its_interval(answered: list[tuple[str, str | None]], seed: int, chance: random.Random) -> None:
    golds, answers = [gold for gold, _ in answered], [answer for _, answer in answered]
    found = bootstrap_macro_f1(golds, answers, "abcd", resamples=40, seed=seed)
    assert found.value == pytest.approx(macro_f1(golds, answers, "abcd"), abs=1e-12)
    assert 0 <= found.interval[0] <= found.interval[1] <= 1
    shuffled = chance.sample(answered, len(answered))
    assert found == bootstrap_macro_f1(
        [gold for gold, _ in shuffled], [answer for _, answer in shuffled], "abcd", resamples=40, seed=seed
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intervals, "CELLS", 20)
        assert found == bootstrap_macro_f1(golds, answers, "abcd", resamples=40, seed=seed)


def test_the_interval_of_macro_f1_is_that_of_rows_drawn_one_by_one() -> None:
    chance = random.Random(0)
    golds = chance.choices("aabc", k=60)
    answers = [gold if chance.random() < 0.6 else chance.choice(["a", "b", "c", "z", None]) for gold in golds]
    drawn = []
    for _ in range(400):
        rows = chance.choices(range(60), k=60)
        drawn.append(macro_f1([golds[row] for row in rows], [answers[row] for row in rows], "abc"))
    theirs = numpy.quantile(drawn, [0.025, 0.975])
    assert bootstrap_macro_f1(golds, answers, "abc").interval == pytest.approx(
        tuple(theirs), abs=0.3 * float(numpy.std(drawn))
    )


def test_macro_f1_of_no_rows() -> None:
    with pytest.raises(ValueError, match="no rows"):
        bootstrap_macro_f1([], [], ["a"])
    with pytest.raises(ValueError, match="'z' is none of the classes"):
        bootstrap_macro_f1(["z"], ["a"], ["a"])


@pytest.mark.parametrize(("rows", "least", "most"), [(20, 0.86, 0.93), (150, 0.92, 0.98)])  # too narrow, as it says
def test_intervals_of_macro_f1_hold_the_truth_as_often_as_they_say(rows: int, least: float, most: float) -> None:
    """Five labels, equally frequent, of which 70% are answered rightly; the rest is spread over all and over no answer."""
    chance = numpy.random.default_rng(rows)
    names = ["a", "b", "c", "d", "e"]
    golds = chance.choice(names, size=(DRAWS, rows))
    other = chance.choice([*names, "?"], size=(DRAWS, rows))
    answers = numpy.where(chance.random(size=(DRAWS, rows)) < 0.64, golds, other)  # 0.64 + 0.36 / 6 = 0.7
    # each label: hits 0.14, rows with it 0.2, answers with it 0.14 + 0.8 * 0.36 / 6 / 1 * .. = 0.14 + 4 * 0.2 * 0.06
    truth = 2 * 0.14 / (0.2 + 0.14 + 4 * 0.2 * 0.06)
    found = [
        bootstrap_macro_f1(golds[draw].tolist(), answers[draw].tolist(), names, resamples=500, seed=draw).interval
        for draw in range(DRAWS)
    ]
    assert least <= covered(found, truth) <= most


# Two models


def test_paired_difference_agrees_with_the_normal_approximation() -> None:
    first = [True] * 30 + [False] * 10 + [True] * 40 + [False] * 20
    second = [False] * 30 + [True] * 10 + [True] * 40 + [False] * 20
    difference, (low, high) = paired_difference(first, second, resamples=20_000)
    half = 1.96 * math.sqrt((0.4 - 0.2**2) / 100)  # variance of a difference that is +1 in 30%, -1 in 10% of the rows
    assert difference == pytest.approx(0.2)
    assert (low, high) == pytest.approx((0.2 - half, 0.2 + half), abs=0.015)


@given(PAIRS, st.integers(0, 5))
def test_paired_difference_is_seeded_and_holds_its_centre(pairs: list[tuple[bool, bool]], seed: int) -> None:
    first, second = [one for one, _ in pairs], [other for _, other in pairs]
    difference, (low, high) = paired_difference(first, second, resamples=200, seed=seed)
    assert paired_difference(first, second, resamples=200, seed=seed) == (difference, (low, high))
    assert -1 <= low <= high <= 1
    assert difference == pytest.approx(sum(first) / len(first) - sum(second) / len(second))
    assert paired_difference(first, first, resamples=200, seed=seed) == (0.0, (0.0, 0.0))


@pytest.mark.parametrize(("first", "second"), [([True], [True, False]), ([], [])])
def test_pairs_must_match(first: list[bool], second: list[bool]) -> None:
    with pytest.raises(ValueError, match="in pairs"):
        paired_difference(first, second)
    with pytest.raises(ValueError, match="in pairs"):
        compare("student", "teacher", first, second)


@pytest.mark.parametrize(
    ("rows", "only_first", "only_second"), [(150, 0.08, 0.1), (150, 0.15, 0.05), (500, 0.02, 0.02)]
)
def test_intervals_of_a_difference_hold_the_truth_as_often_as_they_say(
    rows: int, only_first: float, only_second: float
) -> None:
    drawn = numpy.random.default_rng(rows).random(size=(DRAWS, rows))
    found = []
    for seed, row in enumerate(drawn):
        first, second = row < only_first, (row >= only_first) & (row < only_first + only_second)
        found.append(paired_difference(first.tolist(), second.tolist(), resamples=500, seed=seed)[1])
    assert 0.92 <= covered(found, only_first - only_second) <= 0.98


@given(st.integers(0, 200), st.integers(0, 200))
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    p = mcnemar(first, second)
    assert p == mcnemar(second, first)
    assert 0 <= p <= 1
    # both tails of a fair coin, added up one by one
    rows, fewer = first + second, min(first, second)
    tail = sum(math.comb(rows, count) for count in range(fewer + 1)) / 2**rows
    assert p == pytest.approx(min(1.0, 2 * tail), rel=1e-9)
    if rows:
        assert p == pytest.approx(stats.binomtest(first, rows).pvalue)


def test_mcnemar_as_worked_out_by_hand() -> None:
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(1, 7) == pytest.approx(2 * (1 + 8) / 256)
    with pytest.raises(ValueError, match="no counts"):
        mcnemar(-1, 2)


def test_mcnemar_rejects_equals_at_most_as_often_as_it_says() -> None:
    chance = numpy.random.default_rng(0)
    drawn = chance.multinomial(150, [0.1, 0.1, 0.8], size=DRAWS)
    assert sum(mcnemar(int(first), int(second)) < 0.05 for first, second, _ in drawn) / DRAWS <= 0.06


def rights(only_first: int, only_second: int, both: int, neither: int) -> tuple[list[bool], list[bool]]:
    first = [True] * only_first + [False] * only_second + [True] * both + [False] * neither
    second = [False] * only_first + [True] * only_second + [True] * both + [False] * neither
    return first, second


def test_the_sentence_of_a_difference_that_is_not_shown() -> None:
    found = compare("student", "teacher", *rights(12, 16, 95, 27))
    assert (found.only_first, found.only_second, found.both, found.neither) == (12, 16, 95, 27)
    assert found.p == mcnemar(12, 16)
    assert found.sentence == (
        "student 71.3% [63.6, 78.0], teacher 74.0%; difference -2.7 points "
        f"[{found.interval[0] * 100:+.1f}, {found.interval[1] * 100:+.1f}], p = 0.57: the difference is not shown"
    )
    assert found.interval == paired_difference(*rights(12, 16, 95, 27))[1]
    assert not shown(found)


def test_the_sentence_of_a_difference_that_is_shown() -> None:
    found = compare("student", "baseline", *rights(40, 10, 70, 30), seed=1)
    assert shown(found)
    assert found.difference == pytest.approx(0.2)
    assert "; difference +20.0 points [+" in found.sentence
    assert found.sentence.endswith(", p < 0.001: the difference is shown")
    assert found == compare("student", "baseline", *rights(40, 10, 70, 30), seed=1)
    other = compare("baseline", "student", *rights(10, 40, 70, 30))
    assert other.sentence.startswith("baseline 53.3% [45.4, 61.1], student 73.3%; difference -20.0 points [-")


def test_a_difference_needs_both_the_test_and_the_interval() -> None:
    five = compare("student", "teacher", *rights(5, 0, 50, 50))  # the interval leaves out zero, p is 0.0625
    assert five.interval[0] > 0 and not shown(five)
    assert five.sentence.endswith(", p = 0.06: the difference is not shown")
    across = compare("student", "teacher", *rights(6, 0, 0, 0)).model_copy(update={"interval": (0.0, 0.1)})
    assert across.p < 0.05 and not shown(across)


def test_equal_models_differ_by_nothing() -> None:
    found = compare("student", "teacher", *rights(0, 0, 8, 2))
    assert found.sentence == (
        "student 80.0% [49.0, 94.3], teacher 80.0%; difference 0.0 points [0.0, 0.0], p = 1.00: the difference is not shown"
    )


@given(PAIRS, st.integers(0, 3))
def test_a_comparison_follows_from_its_rows(pairs: list[tuple[bool, bool]], seed: int) -> None:
    first, second = [one for one, _ in pairs], [other for _, other in pairs]
    found = compare("one", "two", first, second, resamples=50, seed=seed)
    assert found.both + found.neither + found.only_first + found.only_second == len(pairs)
    assert found.difference == pytest.approx((found.only_first - found.only_second) / len(pairs))
    assert found.sentence.endswith("is shown") == shown(found)
    assert "-0.0" not in found.sentence and "+0.0" not in found.sentence


@given(st.floats(0, 1))
def test_p_is_told_on_its_side_of_the_bound(p: float) -> None:
    told = intervals._told(p)
    if p < 0.001:
        assert told == "p < 0.001"
        return
    number = float(told.removeprefix("p = "))
    assert (number < 0.05) == (p < 0.05)
    assert number == pytest.approx(p, abs=0.005 + 1e-9)
    assert number > 0


@pytest.mark.parametrize(
    ("p", "told"),
    [(0.08, "p = 0.08"), (0.0496, "p = 0.0496"), (0.05, "p = 0.05"), (0.004, "p = 0.004"), (1.0, "p = 1.00")],
)
def test_p_has_as_many_digits_as_it_takes(p: float, told: str) -> None:
    assert intervals._told(p) == told


@given(st.integers(0, 20), st.integers(0, 100))
def test_a_resample_of_whole_numbers_is_their_mean(ones: int, seed: int) -> None:
    low, high = bootstrap_mean([1.0] * ones + [0.0] * (20 - ones), resamples=1, seed=seed).interval
    assert low == high
    assert low * 20 == pytest.approx(round(low * 20), abs=1e-9)
