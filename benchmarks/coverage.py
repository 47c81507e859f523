"""How often the intervals of `pipeline.intervals` hold the truth, where it is known; and the ECE of a perfectly calibrated model.

    python -m benchmarks.coverage [--draws 1000]

Each figure is the share of ``draws`` simulated eval sets whose 95% interval holds the true value; with 1,000 draws it is itself sure to
about 1.4 points. Wilson's is not drawn but added up over all outcomes. Bootstraps take 2,000 resamples, as `evaluate` does. The models of
"differences" are right alone on the shares of rows that the line names. Takes about two minutes on one core.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy
from scipy import stats

from pipeline.calibration import expected_calibration_error
from pipeline.intervals import accuracy_interval, bootstrap_macro_f1, bootstrap_mean, paired_difference

ROWS = (20, 50, 100, 150, 300, 1000)
Draw = Callable[[Any, int], tuple[float, float]]


def wilson(truth: float, rows: int) -> float:
    """The chance that the interval of a share holds ``truth``."""
    found = [accuracy_interval(right, rows) for right in range(rows + 1)]
    chances = stats.binom.pmf(range(rows + 1), rows, truth)
    return float(sum(chance for (low, high), chance in zip(found, chances, strict=True) if low <= truth <= high))


def held(interval: Draw, truth: float, rows: int, draws: int) -> float:
    """The share of ``draws`` intervals that hold ``truth``."""
    chance = numpy.random.default_rng(rows)
    found = [interval(chance, rows) for _ in range(draws)]
    return sum(low - 1e-9 <= truth <= high + 1e-9 for low, high in found) / draws


def difference(only_first: float, only_second: float) -> Draw:
    """Two models, each right alone on its share of the rows."""

    def interval(chance: Any, rows: int) -> tuple[float, float]:
        place = chance.random(rows)
        first, second = place < only_first, (place >= only_first) & (place < only_first + only_second)
        return paired_difference(first.tolist(), second.tolist(), seed=int(chance.integers(1 << 30)))[1]

    return interval


def mean(values: Callable[[Any, int], Any]) -> Draw:
    """Rows' scores drawn by ``values``."""
    return lambda chance, rows: (
        bootstrap_mean(values(chance, rows).tolist(), seed=int(chance.integers(1 << 30))).interval
    )


def labelled(shares: Sequence[float], kept: float) -> tuple[Draw, float]:
    """A model that answers the truth with chance ``kept``, else any label or none with equal chances; and its true macro-F1."""
    names = "abcdefgh"[: len(shares)]
    other = (1 - kept) / (len(shares) + 1)

    def interval(chance: Any, rows: int) -> tuple[float, float]:
        golds = chance.choice([*names], p=shares, size=rows)
        answers = numpy.where(chance.random(rows) < kept, golds, chance.choice([*names, "?"], size=rows))
        return bootstrap_macro_f1(golds.tolist(), answers.tolist(), names, seed=int(chance.integers(1 << 30))).interval

    scores = [2 * share * (kept + other) / (share + share * kept + other) for share in shares]
    return interval, float(numpy.mean(scores))


def calibrated(rows: int, draws: int) -> float:
    """The mean ECE, in ten bins, of a model whose confidence is right: five labels, softmax of normal draws."""
    chance = numpy.random.default_rng(rows)
    found = []
    for _ in range(draws):
        weights = numpy.exp(2 * chance.normal(size=(rows, 5)))
        shares = weights / weights.sum(axis=1, keepdims=True)
        golds = (numpy.log(shares) + chance.gumbel(size=shares.shape)).argmax(axis=1)
        told = [{str(label): float(value) for label, value in enumerate(row)} for row in shares]
        found.append(expected_calibration_error(told, [str(gold) for gold in golds]))
    return float(numpy.mean(found))


def main() -> None:
    reader = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    reader.add_argument("--draws", type=int, default=1000)
    draws = reader.parse_args().draws
    print("| what | " + " | ".join(f"{rows:,} rows" for rows in ROWS) + " |\n|" + "---|" * (len(ROWS) + 1))

    def line(name: str, figure: Callable[[int], str]) -> None:
        print(f"| {name} | " + " | ".join(map(figure, ROWS)) + " |", flush=True)

    for truth in (0.5, 0.74, 0.95):
        line(f"accuracy (Wilson), true value {truth:.0%}", lambda rows, truth=truth: f"{wilson(truth, rows):.1%}")
    for first, second in ((0.08, 0.1), (0.15, 0.05), (0.02, 0.02)):
        line(
            f"difference, right alone on {first:.0%} and {second:.0%}",
            lambda rows, first=first, second=second: (
                f"{held(difference(first, second), first - second, rows, draws):.1%}"
            ),
        )
    for name, shares, kept in (
        ("macro-F1, five equally frequent labels", [0.2] * 5, 0.64),
        ("macro-F1, labels of 80%, 15%, 5%", [0.8, 0.15, 0.05], 0.7),
    ):
        interval, truth = labelled(shares, kept)
        line(name, lambda rows, interval=interval, truth=truth: f"{held(interval, truth, rows, draws):.1%}")
    scores = mean(lambda chance, rows: chance.beta(2, 1, rows))
    line("mean of scores spread from 0 to 1", lambda rows: f"{held(scores, 2 / 3, rows, draws):.1%}")
    rare = mean(lambda chance, rows: chance.beta(2, 2, rows) * (chance.random(rows) < 0.1))
    line("mean of scores, 90% of them 0", lambda rows: f"{held(rare, 0.05, rows, draws):.1%}")
    line("ECE of a perfectly calibrated model", lambda rows: f"{calibrated(rows, max(1, draws // 10)):.3f}")


if __name__ == "__main__":
    main()
