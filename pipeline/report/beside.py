"""Runs side by side: what they were set to, what became of their rows, and how their models did.

    side_by_side([report, other])  ->  SideBySide(runs=["topics", "other"], settings=[Differing("train", "alpha", ["0.5", "0.9"]), ..], ..)

Limits: a difference of accuracies has the interval of two independent samples of rows (Newcombe's, from both Wilson intervals). Where both
runs were measured on the same rows it is too wide; `stepdistill compare` pairs them. Settings that a file's content enters are compared by
their digests.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pipeline.metrics import Interval
from pipeline.report.shape import Beside, Counted, Differing, Measured, Report, SideBySide
from pipeline.report.written import flat

LONGEST: Final = 300  # characters of a setting's value


def side_by_side(reports: Sequence[Report]) -> SideBySide:
    """The reports' runs, the first of which the others are held against."""
    return SideBySide(
        runs=_told_apart([report.title for report in reports]),
        settings=_differing(reports),
        counts=_counts(reports),
        models=_models(reports),
    )


def difference(first: tuple[float, Interval], second: tuple[float, Interval]) -> Interval:
    """The interval of the first share minus the second, from the shares' own (R. G. Newcombe, Statistics in Medicine 17, 1998)."""
    (one, (one_low, one_high)), (other, (other_low, other_high)) = first, second
    low = one - other - math.hypot(one - one_low, other_high - other)
    high = one - other + math.hypot(one_high - one, other - other_low)
    return max(low, -1.0), min(high, 1.0)


def _told_apart(titles: Sequence[str]) -> list[str]:
    """Titles, numbered where two are alike."""
    return [title if titles.count(title) == 1 else f"{title} ({place})" for place, title in enumerate(titles, 1)]


def _differing(reports: Sequence[Report]) -> list[Differing]:
    by_run = [{stamp.stage: stamp.settings for stamp in report.stamps} for report in reports]
    found = []
    for stage in dict.fromkeys(stage for stages in by_run for stage in stages):
        if sum(stage in stages for stages in by_run) < 2:
            continue  # there is nothing to hold it against; the counts say who has it
        flats = [_leaves(stages[stage]) if stage in stages else {} for stages in by_run]
        if stage == "evaluate":  # it repeats what it asks the teacher by
            flats = [
                {name: value for name, value in leaves.items() if not name.startswith(("sample.", "parse."))}
                for leaves in flats
            ]
        for setting in dict.fromkeys(name for leaves in flats for name in leaves):
            values = [leaves.get(setting) for leaves in flats]
            if len(set(values)) > 1:
                found.append(Differing(stage=stage, setting=setting, values=values))
    return found


def _leaves(settings: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Each setting by its path, as a text: ``student.layers`` -> ``8``."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            found |= _leaves(value, f"{before}{name}.")
        else:
            text = flat(value)
            found[f"{before}{name}"] = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return found


def _counts(reports: Sequence[Report]) -> list[Counted]:
    by_run = [{bar.stage: (bar.rows_in, bar.kept) for bar in report.funnel} for report in reports]
    stages = dict.fromkeys(stage for bars in by_run for stage in bars)
    return [Counted(stage=stage, rows=[bars.get(stage) for bars in by_run]) for stage in stages]


def _models(reports: Sequence[Report]) -> list[Beside]:
    by_run = [
        {
            (name, model): (figures.accuracy, figures.accuracy_interval, figures.rows)
            for name, found in (report.metrics.eval_sets.items() if report.metrics is not None else ())
            for model, figures in found.models.items()
        }
        for report in reports
    ]
    besides = []
    for name, model in dict.fromkeys(key for figures in by_run for key in figures):
        first = by_run[0].get((name, model))
        row: list[Measured | None] = []
        for place, figures in enumerate(by_run):
            here = figures.get((name, model))
            if here is None:
                row.append(None)
                continue
            accuracy, interval, rows = here
            against = first if place else None
            row.append(
                Measured(
                    accuracy=accuracy,
                    interval=interval,
                    rows=rows,
                    difference=None if against is None else accuracy - against[0],
                    difference_interval=None if against is None else difference((accuracy, interval), against[:2]),
                )
            )
        besides.append(Beside(eval_set=name, model=model, figures=row))
    return besides
