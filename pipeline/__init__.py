"""stepdistill: synthetic data for response and rationale distillation.

In a notebook::

    import pipeline

    pipeline.run("stages.yaml", stages=["quality"])
    pipeline.rows("stages.yaml", "quality")        # datasets.Dataset
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.runner import Outcome


def run(
    config: Path | str = "stages.yaml",
    stages: Iterable[str] | None = None,
    *,
    start: str | None = None,
    until: str | None = None,
    overrides: Iterable[str] = (),
    force: bool = False,
) -> "list[Outcome]":
    """Run all stages or the named ones: see ``pipeline.runner.run``."""
    from importlib import import_module

    outcomes: list[Outcome] = import_module("pipeline.runner").run(
        config, stages, start=start, until=until, overrides=overrides, force=force
    )
    return outcomes


def rows(config: Path | str, stage: str) -> Any:
    """The kept rows of a stage as a ``datasets.Dataset``: see ``pipeline.results.dataset``."""
    from pipeline import results
    from pipeline.config import load

    return results.dataset(load(config), stage)
