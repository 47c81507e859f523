"""What a user does around a run: start a project, check it, train or measure a model alone."""

import shutil
from collections.abc import Iterable
from importlib import resources
from pathlib import Path, PurePath
from typing import Any, get_args

from pipeline import answering, evaluate, sample, terms, train
from pipeline.answering import Backend
from pipeline.binding import Problem, bind, located
from pipeline.config import Config, load, permit, read_yaml, verify
from pipeline.files import InputError, plain
from pipeline.ingest import prompts as read_prompts
from pipeline.metrics import Costs, Metrics
from pipeline.preview import Preview, preview_of_shards
from pipeline.records import Prompt
from pipeline.requests import all_requests
from pipeline.results import source_rows
from pipeline.revocations import REASON
from pipeline.sources import EvalSet
from pipeline.stages import STAGES

EXAMPLE = ("stages.yaml", "prompts", "data")


def init(folder: Path) -> None:
    """Copy the built-in example into ``folder``. Raises InputError where it already holds something: nothing is overwritten."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: already holds something; give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    with resources.as_file(resources.files("pipeline") / "example") as example:
        for name in EXAMPLE:
            source, target = example / name, folder / name
            shutil.copytree(source, target) if source.is_dir() else shutil.copyfile(source, target)


def check(path: Path | str, overrides: Iterable[str] = ()) -> str:
    """Read settings, prompt, every input row and every eval set, run nothing. One line that says what is there.

    Raises InputError at the first thing that cannot be used.
    """
    config = load(path, overrides)
    verify(config, thorough=True)
    permit(config, config.stages)
    task = config.task
    asking = sample.check(config.stages["sample"])
    rows = bad = revoked = 0
    for row in source_rows(config):
        if not isinstance(row, Prompt):
            revoked += row.reason == REASON
            bad += row.reason != REASON
            continue
        rows += 1
        for _ in all_requests(asking, row):  # each prompt is rendered
            pass
    if not rows:
        raise InputError(f"{task.inputs}: no rows")
    sets = []
    for name, eval_set in config.eval_sets.items():
        count = 0
        for item in read_prompts(
            eval_set.path,
            input=eval_set.input or task.input,
            gold=eval_set.gold,
            choices=eval_set.choices,
            id=eval_set.id,
        ):
            count += 1
            gold = item.gold if isinstance(item, Prompt) else None
            if task.labels is not None and gold is not None and gold not in task.labels:
                raise InputError(
                    f"{eval_set.path}: row {count}: {eval_set.gold}: {plain(gold)!r} is none of task.labels"
                )
        if not count:
            raise InputError(f"{eval_set.path}: no rows; eval set '{name}' would protect nothing")
        sets.append(f"{name} {count:,}")
    told = f", {bad:,} bad rows that ingest will drop" if bad else ""
    told += f", {revoked:,} revoked rows" if revoked else ""
    return f"ready: {rows:,} inputs{told}; eval sets: {', '.join(sets) or 'none'}; stages: {', '.join(config.stages)}"


def train_alone(
    shards: Path,
    student: str,
    out: Path,
    layers: int | None,
    settings: Iterable[str],
    accept_terms: str | None = None,
) -> dict[str, Any]:
    """SFT on any folder of shards. ``settings`` are ``knob=value`` of the train stage. Raises InputError."""
    bound = _alone(student, layers, settings, accept_terms)
    details: dict[str, Any] = train.train_on_shards(shards, out=out, **bound)
    return details


def preview_alone(
    shards: Path, student: str, layers: int | None, settings: Iterable[str], accept_terms: str | None = None
) -> Preview:
    """What `train_alone` would begin with; nothing is trained or written. Raises InputError."""
    bound = _alone(student, layers, settings, accept_terms)
    refused = None
    try:
        terms.permit(train.terms_of_shards(shards), bound["accept_terms"], str(shards))
    except InputError as error:
        refused = str(error)
    return preview_of_shards(shards, bound, refused=refused)


def _alone(student: str, layers: int | None, settings: Iterable[str], accept_terms: str | None) -> dict[str, Any]:
    """All settings of a training outside a project."""
    given: dict[str, Any] = {"student": {"from": student, "layers": layers}, "baseline": False}
    if accept_terms is not None:
        given["accept_terms"] = accept_terms
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"--set {plain(setting)}: write it as knob=value, for example alpha=0.3")
        given[name.strip()], _ = read_yaml(value, f"--set {plain(name)}", mapping=False)
    try:
        return bind(STAGES["train"].settings, given, lookup=lambda path: None, folder=Path.cwd())
    except Problem as problem:
        raise located(problem, "", "--set", {}) from None


def evaluate_alone(
    config: Config, models: Iterable[str], data: Path | None, *, backend: str | None = None
) -> tuple[Metrics, Costs]:
    """The models' figures on each eval set of the settings, or on a file whose rows look like theirs, and what answering took.

    A model is a folder, a Hub name or 'embedded', or ``NAME=MODEL``; without a name the last part of its path is one. Raises InputError.
    """
    if backend not in (None, *get_args(Backend)):
        raise InputError(f"--backend: {plain(str(backend))!r} is not known; known: {', '.join(get_args(Backend))}")
    named: dict[str, str] = {}
    for given in models:
        name, equals, source = given.partition("=")
        source = source if equals else given
        name = name if equals else PurePath(source.rstrip("/")).name
        if not name or name in named:
            raise InputError(
                f"--model {plain(given)}: another model is called {plain(repr(name))}; write it as NAME={plain(source)}"
            )
        named[name] = source
    task = config.task
    shape = {"input": task.input, "gold": task.gold, "choices": task.choices, "id": task.id}
    sets = config.eval_sets if data is None else {data.stem: EvalSet(path=data, **shape)}
    if not sets:
        raise InputError(f"{config.file}: eval_sets: there are none; add one, or name a file with --data")
    kind = config.stages["parse"]["label_type"]
    settings = config.stages.get("evaluate", {})
    known = ("batch_size", "max_new_tokens", "precision", "latency", "price_per_hour", "bootstrap", "seed")
    return evaluate.evaluate_models(
        named,
        sets,
        answers_in=config.run / answering.FOLDER if config.run.is_dir() else None,
        labels=task.labels,
        slices=task.slices if data is None else (),
        label_type=kind,
        targets=task.targets,
        backend=backend or settings.get("backend", "transformers"),  # type: ignore[arg-type]
        **{name: settings[name] for name in known if name in settings},
    )
