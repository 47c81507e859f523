"""The table of stages: what runs, in which order, what each reads and writes.

Adding a stage is one file, one row here, one entry in ``stages.yaml`` and one test. A change that alters what a stage puts out for the
same input raises its version, so that results of the old code are never taken for the new one's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline import decontaminate, dedup, evaluate, ingest, parse, quality, sample, shard, teachers, train
from pipeline.records import Example, Prediction, Prompt, Record, Response, Trained, TrainingRow


@dataclass(frozen=True)
class Stage:
    """One row of the table.

    ``kind``: a ``map`` turns rows into rows, a ``filter`` gives one verdict a row, a ``job`` owns a folder beside its rows.
    ``unit`` is what the conservation law counts. ``per_row``: the verdict on a row depends on that row alone.
    """

    name: str
    kind: Literal["map", "filter", "job"]
    function: Callable[..., Any]
    reads: tuple[str, ...]
    takes: type[Record] | None
    gives: type[Record]
    version: int
    unit: str
    what: str
    per_row: bool = False
    optional: bool = False  # may be switched off in stages.yaml with 'name: false'
    units: Callable[[Mapping[str, Any]], int] = lambda settings: 1  # how many units one row read is
    stands_for: Callable[[Any], int] = lambda row: 1  # how many units that came in a written row stands for
    prefix: Callable[[Any], str] = lambda row: "part"  # which row file a written row goes to
    check: Callable[[Mapping[str, Any]], object] = lambda settings: (
        None
    )  # what can be found wrong beyond single settings
    identities: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda settings: {}  # models used, as they resolve now


def _teacher(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {"teacher": teachers.identity(settings["teacher"])}


STAGES = {
    stage.name: stage
    for stage in (
        Stage("ingest", "map", ingest.ingest, (), None, Prompt, 1, "rows", "validate, give each row its id", per_row=False),
        Stage(
            "sample", "job", sample.sample, ("ingest",), Prompt, Response, 1, "requests",
            "ask the teacher (n samples per prompt); every response goes to the response store before it counts",
            check=sample.check, identities=_teacher,
        ),
        Stage(
            "parse", "map", parse.parse, ("sample",), Response, Example, 1, "responses",
            "label and rationale out of the text; vote over the samples",
            check=lambda settings: parse.parse((), **settings), stands_for=lambda example: len(example.votes),
        ),
        Stage(
            "dedup", "filter", dedup.dedup, ("parse",), Example, Example, 1, "examples",
            "exact and near duplicates (needs the whole corpus)", optional=True,
        ),
        Stage(
            "decontaminate", "filter", decontaminate.decontaminate, ("dedup",), Example, Example, 1, "examples",
            "drop what overlaps an eval set, with the evidence", per_row=True, optional=True,
        ),
        Stage(
            "quality", "filter", quality.quality, ("decontaminate",), Example, Example, 1, "examples",
            "ordered list of filters", per_row=True, optional=True,
        ),
        Stage(
            "shard", "map", shard.shard, ("quality",), Example, TrainingRow, 1, "tasks",
            "`[label] ` and `[rationale] ` rows, splits, data card", per_row=True,
            units=lambda settings: len(settings["targets"]), prefix=lambda row: row.split,
        ),
        Stage(
            "train", "job", train.train, ("shard",), TrainingRow, Trained, 1, "training rows",
            "TRL SFT, both tasks in every step", optional=True,
            identities=lambda settings: {"student": train.identity(settings["student"])},
        ),
        Stage(
            "evaluate", "job", evaluate.evaluate, ("shard", "train"), None, Prediction, 1, "predictions",
            "student beside teacher and baselines", optional=True,
            identities=lambda settings: _teacher(settings["sample"]),
        ),
    )
}  # fmt: skip

NOT_IN_KEY: dict[str, str] = {
    "sample.chunk": "how many prompts are submitted at once changes when answers come, not what was asked",
    "sample.price": "what asking costs changes no answer",
    "train.checkpoint_seconds": "how often an unfinished training is saved changes nothing in a finished one",
    "train.report_to": "where figures are sent besides",
    "evaluate.sample.chunk": "as sample.chunk",
    "evaluate.sample.price": "as sample.price",
}
"""Settings that a stage's key leaves out, each with its reason. Also left out everywhere: the paths of input files (their content
counts, not where it lies), package versions and hardware (a run that must not be shared between them has its own run folder), and
clock times and host names, which stand in ``run.json``, not in any data file."""
