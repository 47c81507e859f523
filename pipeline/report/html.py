"""The page: a ``Report`` as one HTML file, by the template report.jinja.

Jinja escapes every text, and before that each loses what cannot be seen (``finalize``), so neither depends on the template's care. What is
``Markup`` was made by charts.py, which escapes its own.
"""

from functools import cache
from importlib import resources
from typing import Any

from markupsafe import Markup

from pipeline.report import charts, tables, written
from pipeline.report.shape import Report

FILTERS = (
    written.number,
    written.percent,
    written.points,
    written.decimal,
    written.brief,
    written.compact,
    written.money,
    written.size,
    written.times,
    written.words,
    written.cut,
    written.flat,
    written.pretty,
)
STUDENTS = ("student", "teacher", "baseline")
MOST_CLASSES = 20  # in a confusion matrix


def page(report: Report) -> str:
    """The whole page; the same for the same report."""
    found: str = _template().render(
        report=report,
        sections=sections(report),
        tables=tables,
        charts=charts,
        STUDENTS=STUDENTS,
        CHECKS=written.CHECKS,
        MOST_CLASSES=MOST_CLASSES,
        drop_places=_drop_places(report),
    )
    return found


@cache
def _template() -> Any:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_seen
    )
    environment.filters |= {function.__name__: function for function in FILTERS}
    return environment.from_string(
        resources.files("pipeline.report").joinpath("report.jinja").read_text(encoding="utf-8")
    )


def sections(report: Report) -> dict[str, str]:
    """Anchor -> title of each part that the page has, in order."""
    sets = report.metrics.eval_sets.values() if report.metrics is not None else ()
    models = [model for found in sets for model in found.models.values()]
    found = {
        "gates": ("Gates", report.gates),
        "compare": ("Runs side by side", report.side_by_side),
        "models": ("The models", report.metrics),
        "slices": ("Where they are right", any(model.slices for model in models)),
        "confusion": ("What was taken for what", any(found.classes and found.models for found in sets)),
        "calibration": ("How sure they are", any(model.calibration for model in models)),
        "rationales": (
            "What the student says when asked why",
            report.rationales or any(model.rationales for model in models),
        ),
        "costs": ("What answering costs", report.costs is not None and report.costs.models),
        "safety": ("Safety", report.metrics is not None and report.metrics.safety),
        "funnel": ("Where the rows went", True),
        "shifts": ("What filtering did", report.shifts),
        "asked": ("What the teachers were asked", report.asked),
        "votes": ("Votes and soft labels", report.votes),
        "contamination": ("What overlaps the eval sets", report.contaminated),
        "training": ("The training", report.training),
        "sweeps": ("Sweeps", report.sweeps),
        "kept": ("Rows that were kept", report.kept),
        "dropped": ("Rows that were dropped", True),
        "provenance": ("Where it comes from", True),
    }
    return {anchor: title for anchor, (title, there) in found.items() if there}


def _seen(value: Any) -> Any:
    return written.shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _drop_places(report: Report) -> dict[tuple[str, str], str]:
    """Stage and reason -> the anchor of its examples: numbers, since a reason is a run's own text."""
    return {(group.stage, group.reason): f"drop-{place}" for place, group in enumerate(report.drops, 1)}
