"""stepdistill: synthetic data for response and rationale distillation.

In a notebook::

    import pipeline

    pipeline.run("stages.yaml", stages=["quality"])
    pipeline.rows("stages.yaml", "quality")        # datasets.Dataset
    pipeline.sweep("stages.yaml", {"train.alpha": [0.1, 0.5, 0.9], "train.seed": range(5)})
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.runner import Outcome
    from pipeline.sweeps import Swept


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


def sweep(
    config: Path | str = "stages.yaml",
    over: Mapping[str, Iterable[Any]] | Iterable[str] = (),
    *,
    overrides: Iterable[str] = (),
    name: str | None = None,
    plot: str | None = None,
) -> "Swept":
    """Train and measure every combination of the values of some settings: see ``pipeline.sweeps.sweep``."""
    from importlib import import_module

    swept: Swept = import_module("pipeline.sweeps").sweep(config, over, overrides=overrides, name=name, plot=plot)
    return swept


def rows(config: Path | str, stage: str) -> Any:
    """The kept rows of a stage as a ``datasets.Dataset``: see ``pipeline.results.dataset``."""
    from pipeline import results
    from pipeline.config import load

    return results.dataset(load(config), stage)
