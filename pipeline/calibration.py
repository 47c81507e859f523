"""Whether a model is right as often as it says: reliability bins, ECE, Brier score, temperature. Pure functions.

    rows = [{"sports": 0.9, "food": 0.1}, {"sports": 0.6, "food": 0.4}]
    calibration(rows, ["sports", "food"], source="scores")  ->  Calibration(ece=0.35, brier=0.37, bins=[.., Bin(low=0.8, high=0.9, ..)], ..)
    fit_temperature([[-0.1, -2.4], ..], [0, ..])            ->  1.7: divide log-probabilities by it, and confidence fits the validation rows

A row's probabilities are a mapping from labels to numbers from 0 to 1 that sum to at most 1; a label that it lacks has probability 0, so
rows may have choices of their own, and vote shares may leave a rest for samples that could not be read. The most likely label is the first
of those with the highest probability. A row whose true label it lacks is wrong whatever it says.

Limits: ECE depends on the number of bins and, with few rows, is above 0 for a perfectly calibrated model too (0.09 with 100 rows, 0.03 with
1,000); compare it only between models on the same rows. A temperature changes no answer. It is fitted on rows that the training did not
see, and is of little use with fewer than some hundred; where every row is right, it runs towards its lower bound.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, Literal

from pipeline.metrics import Bin, Calibration

FLOOR: Final = 1e-12  # probability that scaling gives a label at least: 0 has no logarithm
TEMPERATURES: Final = (0.05, 20.0)  # a fitted temperature lies between
Probabilities = Sequence[Mapping[str, float]]


def calibration(
    probabilities: Probabilities,
    golds: Sequence[str],
    *,
    source: Literal["scores", "votes"],
    bins: int = 10,
    temperature: float | None = None,
    temperature_rows: int = 0,
) -> Calibration:
    """Everything at once; ``temperature`` was fitted on ``temperature_rows`` other rows.

    Raises ValueError where there are no rows, not as many truths, or probabilities that are none.
    """
    found = reliability_bins(probabilities, golds, bins)
    after = None if temperature is None else scaled(probabilities, temperature)
    return Calibration(
        source=source,
        rows=len(golds),
        ece=_gap(found),
        brier=brier(probabilities, golds),
        bins=found,
        temperature=temperature,
        temperature_rows=temperature_rows,
        scaled_ece=None if after is None else expected_calibration_error(after, golds, bins),
        scaled_brier=None if after is None else brier(after, golds),
    )


def reliability_bins(probabilities: Probabilities, golds: Sequence[str], bins: int = 10) -> list[Bin]:
    """Rows by the probability of their most likely label, in ``bins`` of equal width: ``(low, high]``, the first with its 0.

    M. P. Naeini, G. F. Cooper, M. Hauskrecht, Obtaining well calibrated probabilities using Bayesian binning, AAAI 2015; C. Guo,
    G. Pleiss, Y. Sun, K. Q. Weinberger, On calibration of modern neural networks, ICML 2017, for the most likely of several labels.
    """
    _checked(probabilities, golds)
    if bins < 1:
        raise ValueError(f"{bins} bins hold no rows")
    edges = [place / bins for place in range(bins + 1)]
    sorted_rows: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, gold in zip(probabilities, golds, strict=True):
        label = max(row, key=row.__getitem__)
        confidence = min(row[label], 1.0)
        sorted_rows[bisect_left(edges, confidence, 1) - 1].append((confidence, label == gold))
    return [
        Bin(
            low=low,
            high=high,
            rows=len(rows),
            confidence=math.fsum(confidence for confidence, _ in rows) / len(rows) if rows else None,
            accuracy=sum(right for _, right in rows) / len(rows) if rows else None,
        )
        for (low, high), rows in zip(pairwise(edges), sorted_rows, strict=True)
    ]


def expected_calibration_error(probabilities: Probabilities, golds: Sequence[str], bins: int = 10) -> float:
    """The mean over rows of how far accuracy and confidence lie apart in their bin, from 0 to 1. Sources as above."""
    return _gap(reliability_bins(probabilities, golds, bins))


def _gap(bins: Sequence[Bin]) -> float:
    gaps = [one.rows * abs((one.accuracy or 0.0) - (one.confidence or 0.0)) for one in bins]
    return math.fsum(gaps) / sum(one.rows for one in bins)


def brier(probabilities: Probabilities, golds: Sequence[str]) -> float:
    """The mean over rows of the sum over labels of ``(probability - 1 for the true label, else 0)`` squared: 0 is best, 2 is worst.

    G. W. Brier, Verification of forecasts expressed in terms of probability, Monthly Weather Review 78 (1950): his own, for any number of
    labels. For two labels it is twice what scikit-learn gives by default.
    """
    _checked(probabilities, golds)
    return math.fsum(
        math.fsum((value - (label == gold)) ** 2 for label, value in row.items()) + (gold not in row)
        for row, gold in zip(probabilities, golds, strict=True)
    ) / len(golds)


def fit_temperature(log_probabilities: Sequence[Sequence[float]], golds: Sequence[int]) -> float:
    """The T by which ``softmax(log_probabilities / T)`` makes the true labels most likely: least negative log-likelihood.

    A row of ``log_probabilities`` holds one number a label, normalised or not (logits will do), and ``golds`` the place of its true one,
    -1 where that is none of them; such a row has no likelihood and is left out. Rows may be of different lengths. T lies between 0.05 and
    20, and is 1 where none is better. C. Guo et al. 2017 as above. Raises ValueError where no row is left, or for a number that is none.
    """
    import numpy
    from scipy.optimize import minimize_scalar

    if len(log_probabilities) != len(golds):
        raise ValueError(f"{len(log_probabilities)} rows and {len(golds)} true labels do not go together")
    rows = [(row, gold) for row, gold in zip(log_probabilities, golds, strict=True) if gold >= 0]
    if not rows:
        raise ValueError("there are no rows with a true label to fit a temperature on")
    matrix = numpy.full((len(rows), max(len(row) for row, _ in rows)), -numpy.inf)
    for place, (row, gold) in enumerate(rows):
        if gold >= len(row):
            raise ValueError(f"row {place}: label {gold} of {len(row)}")
        if any(math.isnan(value) or value == math.inf for value in row) or max(row) == -math.inf:
            raise ValueError(f"row {place}: no log-probabilities")
        matrix[place, : len(row)] = _floored(numpy.asarray(row, dtype=numpy.float64))
    matrix -= matrix.max(axis=1, keepdims=True)  # changes no softmax, and nothing overflows
    truths = matrix[numpy.arange(len(rows)), [gold for _, gold in rows]]

    def loss(log_temperature: float) -> float:
        inverse = math.exp(-log_temperature)
        return float(numpy.mean(numpy.log(numpy.exp(matrix * inverse).sum(axis=1)) - truths * inverse))

    # The loss is convex in 1/T, so it has one valley in log T as well.
    found = minimize_scalar(
        loss, bounds=tuple(map(math.log, TEMPERATURES)), method="bounded", options={"xatol": 1e-6, "maxiter": 200}
    )
    return float(math.exp(found.x)) if found.fun < loss(0.0) else 1.0


def scaled(probabilities: Probabilities, temperature: float) -> list[dict[str, float]]:
    """Each row's probabilities to the power ``1 / temperature``, with the same sum as before; at 1 nothing changes.

    Above 1 they come closer to each other, below 1 they move apart; their order stays. A label without probability counts as one of
    1e-12. Raises ValueError for a temperature that is not above 0, and for probabilities that are none.
    """
    import numpy

    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"a temperature of {temperature} scales nothing")
    found = []
    for row in probabilities:
        _checked_row(row)
        values = numpy.asarray(list(row.values()), dtype=numpy.float64)
        total = float(values.sum())
        if not total:
            found.append(dict(row))
            continue
        with numpy.errstate(divide="ignore"):
            logs = _floored(numpy.log(values))
        weights = numpy.exp((logs - logs.max()) / temperature)
        shares = weights / weights.sum() * total
        found.append({label: float(value) for label, value in zip(row, shares, strict=True)})
    return found


def _floored(logs: Any) -> Any:
    """Log-probabilities of one row, normalised, none below that of ``FLOOR``."""
    import numpy

    above = logs - logs.max()
    return numpy.maximum(above - numpy.log(numpy.exp(above).sum()), math.log(FLOOR))


def _checked(probabilities: Probabilities, golds: Sequence[str]) -> None:
    if len(probabilities) != len(golds) or not golds:
        raise ValueError(f"{len(probabilities)} rows of probabilities and {len(golds)} true labels give no calibration")
    for row in probabilities:
        _checked_row(row)


def _checked_row(row: Mapping[str, float]) -> None:
    total = math.fsum(row.values()) if row else math.nan
    if not (total <= 1.001 and min(row.values()) >= 0):  # they may have been rounded
        raise ValueError(f"{dict(row)} holds no probabilities: at least one, none below 0, a sum of at most 1")
