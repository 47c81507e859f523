"""The table of stages: what runs, in which order, what each reads and writes.

Adding a stage is one file, one row here, one entry in ``stages.yaml`` and one test. A change that alters what a stage puts out for the
same input raises its version, so that results of the old code are never taken for the new one's.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline import (
    balance,
    decontaminate,
    dedup,
    evaluate,
    ingest,
    judge,
    parse,
    quality,
    requests,
    sample,
    shard,
    train,
)
from pipeline.blocks import Corpus
from pipeline.records import Drop, Example, Prediction, Prompt, Response, Row, Trained, TrainingRow


@dataclass(frozen=True)
class Stage:
    """One row of the table.

    ``kind``: a ``map`` turns rows into rows, a ``filter`` gives one verdict a row, a ``job`` owns a folder beside its rows.
    ``unit`` is what the conservation law counts. ``per_row``: what becomes of a row depends on that row alone, or on those next to it
    that are equal in the field ``together``, so that blocks of rows can be worked on apart. ``corpus``: a filter's parts, where its
    verdicts need the whole corpus. ``again``: what an earlier result over the same rows with other settings saves, from both settings and
    its drops; the function takes it after the rows.
    """

    name: str
    kind: Literal["map", "filter", "job"]
    function: Callable[..., Any]
    reads: tuple[str, ...]
    takes: type[Row] | None
    gives: type[Row]
    version: int
    unit: str
    what: str
    per_row: bool = False
    together: str | None = None
    corpus: Corpus | None = None
    again: Callable[[Mapping[str, Any], Mapping[str, Any], Iterable[Drop]], Any] | None = None
    optional: bool = False  # may be switched off in stages.yaml with 'name: false'
    on: bool = True  # runs even where stages.yaml does not name it
    adds: tuple[
        str, ...
    ] = ()  # fields that it sets in rows which otherwise stay as they were read; for a job that judges
    units: Callable[[Mapping[str, Any]], int] = lambda settings: 1  # how many units one row read is
    stands_for: Callable[[Any], int] = lambda row: 1  # how many units that came in a written row stands for
    schema: Callable[..., Any] | None = None  # whose keyword-only parameters are the settings; None: the function's own
    prefix: Callable[[Any], str] = lambda row: "part"  # which row file a written row goes to
    check: Callable[[Mapping[str, Any]], object] = lambda settings: (
        None
    )  # what can be found wrong beyond single settings
    permitted: Callable[[Mapping[str, Any]], object] = lambda settings: None  # raises where it must not run like this
    before: Callable[[Mapping[str, Any]], object] = lambda settings: (
        None
    )  # as check, but takes a while: where stages are about to run
    identities: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda settings: {}  # models used, as they resolve now
    models: Callable[[Mapping[str, Any], Mapping[str, Any]], dict[str, Any]] = (
        lambda settings, identities: {}
    )  # further facts about them, for the manifest, from the settings and those identities
    tree: bool = False  # its row files have Merkle trees: what is handed to others

    @property
    def settings(self) -> Callable[..., Any]:
        """The function whose keyword-only parameters are the stage's settings."""
        return self.schema or self.function


STAGES = {
    stage.name: stage
    for stage in (
        Stage("ingest", "map", ingest.ingest, (), None, Prompt, 2, "rows", "validate, give each row its id"),
        Stage(
            "sample", "job", sample.sample, ("ingest",), Prompt, Response, 3, "requests",
            "ask the teacher (n samples per prompt); every response goes to the response store before it counts",
            schema=requests.resolve, check=sample.check, identities=sample.identities, models=sample.models,
        ),
        Stage(
            "parse", "map", parse.parse, ("sample",), Response, Example, 4, "responses",
            "label and rationale out of the text; vote over teachers and samples",
            per_row=True, together="prompt", check=lambda settings: parse.parse((), **settings),
            stands_for=lambda example: len(example.votes),
        ),
        Stage(
            "dedup", "filter", dedup.dedup, ("parse",), Example, Example, 4, "examples",
            "exact, near, optionally semantic duplicates (needs the whole corpus)", optional=True, corpus=dedup.CORPUS,
            identities=dedup.identities,
        ),
        Stage(
            "decontaminate", "filter", decontaminate.decontaminate, ("dedup",), Example, Example, 3, "examples",
            "drop what overlaps an eval set, with the evidence", optional=True, corpus=decontaminate.CORPUS,
            before=decontaminate.check, identities=decontaminate.identities,
        ),
        Stage(
            "judge", "job", judge.judge, ("decontaminate",), Example, Example, 1, "examples",
            "optional: a teacher scores each example from 1 to 5 by a rubric", optional=True, on=False, adds=("judgement",),
            schema=judge.resolve, check=judge.check, identities=judge.identities, models=judge.models,
        ),
        Stage(
            "quality", "filter", quality.quality, ("judge",), Example, Example, 5, "examples",
            "ordered list of filters", per_row=True, optional=True,
            check=lambda settings: quality.quality((), **settings), again=quality.known,
        ),
        Stage(
            "balance", "filter", balance.balance, ("quality",), Example, Example, 1, "examples",
            "optional: caps on the rows of a label or a group (needs the whole corpus)", optional=True, on=False,
            corpus=balance.CORPUS, check=lambda settings: balance.checked(**settings),
        ),
        Stage(
            "shard", "map", shard.shard, ("balance",), Example, TrainingRow, 3, "tasks",
            "`[label] ` and `[rationale] ` rows, splits, data card", per_row=True,
            check=lambda settings: shard.shard((), **settings),
            units=lambda settings: len(settings["targets"]), prefix=lambda row: row.split, tree=True,
        ),
        Stage(
            "train", "job", train.train, ("shard",), TrainingRow, Trained, 3, "training rows",
            "TRL SFT, both tasks in every step", optional=True,
            identities=lambda settings: {"student": train.identity(settings["student"])},
            models=train.models, permitted=train.permitted,
        ),
        Stage(
            "evaluate", "job", evaluate.evaluate, ("shard", "train"), None, Prediction, 2, "predictions",
            "student beside teacher and baselines", optional=True,
            identities=evaluate.identities,
            models=lambda settings, identities: sample.models(settings["sample"], identities),
        ),
    )
}  # fmt: skip

NOT_IN_KEY: dict[str, str] = {
    "sample.chunk": "how many answers are committed together changes nothing in them",
    "sample.teacher.price": "what asking costs changes no answer",
    "sample.teacher.output_terms": "what may be done with an answer changes nothing in it; the shards, and all after them, go by it",
    "sample.teacher.restarts": "how many deaths of the engine are borne changes no answer",
    "sample.budget": "it says when to stop, and a stage that was stopped has no result",
    "sample.engine": "where the teacher runs changes no request",
    "sample.workers": "as sample.engine",
    "sample.ray": "as sample.engine",
    "judge.chunk": "as sample.chunk",
    "judge.teacher.price": "as sample.teacher.price",
    "judge.teacher.output_terms": "what may be done with a judge's answer changes no score",
    "judge.teacher.restarts": "as sample.teacher.restarts",
    "judge.budget": "as sample.budget",
    "train.accept_terms": "why a training is done changes nothing in the student",
    "train.checkpoint_seconds": "how often an unfinished training is saved changes nothing in a finished one",
    "train.report_to": "where figures are sent besides",
    "evaluate.gates": "a gate judges a result and changes none of it",
    "evaluate.sample.chunk": "as sample.chunk",
    "evaluate.sample.teacher.price": "as sample.teacher.price",
    "evaluate.sample.teacher.output_terms": "as sample.teacher.output_terms",
    "evaluate.sample.teacher.restarts": "as sample.teacher.restarts",
    "evaluate.sample.budget": "as sample.budget",
    "evaluate.sample.engine": "as sample.engine",
    "evaluate.sample.workers": "as sample.engine",
    "evaluate.sample.ray": "as sample.engine",
    "evaluate.judge.chunk": "as sample.chunk",
    "evaluate.judge.teacher.price": "as sample.teacher.price",
    "evaluate.judge.teacher.output_terms": "as judge.teacher.output_terms",
    "evaluate.judge.teacher.restarts": "as sample.teacher.restarts",
    "evaluate.judge.budget": "as sample.budget",
}
"""Settings that a stage's key leaves out, each with its reason. Also left out everywhere: the paths of input files (their content
counts, not where it lies), package versions and hardware (a run that must not be shared between them has its own run folder), and
clock times and host names, which stand in ``run.json``, not in any data file."""
