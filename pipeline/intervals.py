"""How far figures can be trusted: intervals over rows, and the test whether two models differ. Pure functions, the same for the same seed.

    share(107, 150)                           ->  Share(rows=150, right=107, value=0.7133.., interval=(0.6364.., 0.7796..))
    bootstrap_mean([0.2, 0.9, 0.4], seed=0)   ->  Estimate(value=0.5, interval=(0.2, 0.9))
    mcnemar(12, 16)                           ->  0.5715..
    compare("student", "teacher", ..).sentence
        ->  "student 71.3% [63.6, 78.0], teacher 74.0%; difference -2.7 points [-10.0, +4.0], p = 0.57: the difference is not shown"

All intervals are 95% intervals over rows: drawn anew from the same source, other rows would give another figure, and 95 of 100 such
intervals hold the true one. They say nothing of other training seeds, other prompts or another source.

Limits, measured (docs/evaluation.md): the percentile bootstrap is too narrow where few rows speak. Its interval for macro-F1 held the true
value in 87 to 89 of 100 draws at 20 rows, in 89 to 94 at 50, in 93 to 96 from 100 on; that for a difference in 83 at 20 rows of which the
models differ on four, and in 94 to 96 at 150. Where all values are the same (both models have the same rows right, every text scores 1)
the interval has no width, which proves nothing.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

from pipeline.metrics import Comparison, Estimate, Interval, Share
from pipeline.scores import confusion

Z95: Final = 1.959963984540054  # the normal distribution's 97.5th percentile
P: Final = 0.05  # a difference is shown where McNemar's p lies below
CELLS: Final = 1 << 21  # numbers that a bootstrap holds at a time: 16 MiB


def accuracy_interval(correct: int, rows: int, z: float = Z95) -> Interval:
    """The Wilson score interval of a share, both ends in [0, 1]; ``z`` 1.96 for 95%.

    E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927). Raises ValueError unless
    ``0 <= correct <= rows`` and ``rows > 0``.
    """
    if not 0 <= correct <= rows or rows == 0:
        raise ValueError(f"{correct} correct of {rows} rows is no share")
    share = correct / rows
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * ((share * (1 - share) + z * z / (4 * rows)) / rows) ** 0.5
    return (max(0.0, centre - half) if correct else 0.0, min(1.0, centre + half) if correct < rows else 1.0)


def share(right: int, rows: int) -> Share:
    """``right`` of ``rows`` with its interval; without value and interval where there are no rows. Raises ValueError as above."""
    if right == rows == 0:
        return Share(rows=0, right=0, value=None, interval=None)
    interval = accuracy_interval(right, rows)
    return Share(rows=rows, right=right, value=right / rows, interval=interval)


def bootstrap_mean(values: Sequence[float], *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """The mean of a figure that each row has, and its 95% percentile bootstrap interval; the order of rows does not matter.

    B. Efron, Bootstrap methods: another look at the jackknife, Annals of Statistics 7 (1979). Holds 16 MiB at a time, or one resample
    where that is more. Raises ValueError where there are no values, or one is no finite number.
    """
    import numpy

    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"there is no mean of {len(values)} values, all finite")
    rows = len(values)
    kinds, counts = numpy.unique(numpy.asarray(values, dtype=numpy.float64), return_counts=True)
    chance = numpy.random.default_rng(seed)
    if len(kinds) * 8 <= rows:  # how often each value was drawn says all of a resample
        means = [drawn @ kinds / rows for drawn in _multinomial(chance, counts, resamples)]
    else:
        ordered = numpy.repeat(kinds, counts)
        means = [
            ordered[chance.integers(0, rows, size=(size, rows))].mean(axis=1) for size in _portions(resamples, rows)
        ]
    low, high = _middle(numpy.concatenate(means))
    smallest, largest = float(kinds[0]), float(kinds[-1])  # sums of floats may pass them by a hair
    return Estimate(
        value=min(max(math.fsum(values) / rows, smallest), largest),
        interval=(min(max(low, smallest), largest), max(min(high, largest), smallest)),
    )


def bootstrap_macro_f1(
    golds: Sequence[str], answers: Sequence[str | None], classes: Sequence[str], *, resamples: int = 2000, seed: int = 0
) -> Estimate:
    """``scores.macro_f1`` with its 95% percentile bootstrap interval over rows.

    A class that a resample lacks does not count in it, just as one that the rows lack does not count in them. With few rows the interval
    is too narrow, as the module says. Raises ValueError where there are no rows, or for a truth outside ``classes``.
    """
    import numpy

    if not golds:
        raise ValueError("there is no macro-F1 of no rows")
    matrix = numpy.asarray(confusion(golds, answers, classes))
    truths, given = matrix.nonzero()
    counts = matrix[truths, given]
    # F1 is 2 hits / (rows with this truth + rows with this answer): two products with how often each pair of truth and answer was drawn.
    known = numpy.eye(len(classes) + 1)[:, : len(classes)]
    present = (known[truths] + known[given]).any(axis=0)
    hits = (known[truths] * known[given])[:, present]
    seen = (known[truths] + known[given])[:, present]

    def scores(drawn: Any) -> Any:
        found = drawn @ seen
        return (2 * (drawn @ hits) / numpy.maximum(found, 1)).sum(axis=1) / (found > 0).sum(axis=1)

    drawn = [
        scores(part) for part in _multinomial(numpy.random.default_rng(seed), counts, resamples, wide=hits.shape[1])
    ]
    return Estimate(value=float(scores(counts[None])[0]), interval=_middle(numpy.concatenate(drawn)))


def paired_difference(
    first: Sequence[bool], second: Sequence[bool], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, Interval]:
    """The first's accuracy minus the second's on the same rows, and its 95% percentile bootstrap interval over rows.

    Pairs are drawn together, so what both have right or wrong takes nothing from the precision. Raises ValueError for lists that are
    empty or not equally long.
    """
    import numpy

    if len(first) != len(second) or not first:
        raise ValueError(f"{len(first)} and {len(second)} rows cannot be compared in pairs")
    differences = numpy.asarray(first, dtype=numpy.int64) - numpy.asarray(second, dtype=numpy.int64)
    # A resample's mean depends only on how often +1, 0 and -1 were drawn, so one multinomial draw stands for all its rows.
    counts = numpy.asarray([(differences == value).sum() for value in (1, 0, -1)])
    chance = numpy.random.default_rng(seed)
    means = [(drawn[:, 0] - drawn[:, 2]) / len(first) for drawn in _multinomial(chance, counts, resamples)]
    return float(differences.mean()), _middle(numpy.concatenate(means))


def mcnemar(only_first: int, only_second: int) -> float:
    """The p of McNemar's exact test, two-sided: how often a fair coin would split the rows as unevenly.

    ``only_first`` rows are right by the first model alone, ``only_second`` by the second alone; 1.0 where there are none.
    Q. McNemar, Note on the sampling error of the difference between correlated proportions or percentages, Psychometrika 12 (1947).
    Raises ValueError for a negative number.
    """
    from scipy.stats import binomtest

    if only_first < 0 or only_second < 0:
        raise ValueError(f"{only_first} and {only_second} rows are no counts")
    rows = only_first + only_second
    return float(binomtest(only_first, rows, 0.5).pvalue) if rows else 1.0


def compare(
    first_name: str,
    second_name: str,
    first_right: Sequence[bool],
    second_right: Sequence[bool],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Two models on the same rows, with the verdict in plain words; ``shown`` is that verdict as a bool.

    A difference that is not shown may well be there: the rows are too few to tell. One shown says nothing of other training seeds, and of
    twenty comparisons of equals one is "shown" by chance. Raises ValueError for lists that are empty or not equally long.
    """
    difference, interval = paired_difference(first_right, second_right, resamples=resamples, seed=seed)
    pairs = [(bool(one), bool(other)) for one, other in zip(first_right, second_right, strict=True)]
    only_first, only_second = pairs.count((True, False)), pairs.count((False, True))
    both, rows = pairs.count((True, True)), len(pairs)
    p = mcnemar(only_first, only_second)
    low, high = accuracy_interval(both + only_first, rows)
    return Comparison(
        first=first_name,
        second=second_name,
        difference=difference,
        interval=interval,
        only_first=only_first,
        only_second=only_second,
        both=both,
        neither=pairs.count((False, False)),
        p=p,
        sentence=f"{first_name} {(both + only_first) / rows:.1%} [{low * 100:.1f}, {high * 100:.1f}], "
        f"{second_name} {(both + only_second) / rows:.1%}; difference {_points(difference)} points "
        f"[{_points(interval[0])}, {_points(interval[1])}], {_told(p)}: "
        f"the difference is {'shown' if _shown(p, interval) else 'not shown'}",
    )


def shown(found: Comparison) -> bool:
    """Whether the rows show that the models differ: McNemar's p is below 0.05, and the interval leaves out zero."""
    return _shown(found.p, found.interval)


def _shown(p: float, interval: Interval) -> bool:
    return p < P and not interval[0] <= 0 <= interval[1]


def _points(difference: float) -> str:
    """A difference of shares in points, with its sign; what rounds to zero has none."""
    told = f"{difference * 100:+.1f}"
    return "0.0" if told in ("+0.0", "-0.0") else told


def _told(p: float) -> str:
    """The p with two digits behind the point, or to as many as it takes to stand on the same side of 0 and of 0.05 as it does."""
    if p < 0.001:
        return "p < 0.001"
    digits = 2
    while round(p, digits) == 0 or (round(p, digits) < P) != (p < P):
        digits += 1
    return f"p = {p:.{digits}f}"


def _middle(figures: Any) -> Interval:
    """What 95% of the resamples' figures lie between."""
    import numpy

    low, high = numpy.quantile(figures, [0.025, 0.975])
    return float(low), float(high)


def _multinomial(chance: Any, counts: Any, resamples: int, *, wide: int = 1) -> Iterator[Any]:
    """How often each kind of row was drawn, a row a resample, in portions; ``wide`` numbers are worked out of a resample afterwards."""
    rows = int(sum(counts))
    for size in _portions(resamples, max(len(counts), wide)):
        yield chance.multinomial(rows, counts / rows, size=size)


def _portions(resamples: int, cells: int) -> list[int]:
    """``resamples`` in portions of at most ``CELLS`` numbers, if each resample takes ``cells``; the draws are the same however cut.

    Raises ValueError where there are no resamples.
    """
    if resamples < 1:
        raise ValueError(f"{resamples} resamples give no interval")
    size = max(1, CELLS // max(1, cells))
    return [min(size, resamples - start) for start in range(0, resamples, size)]
