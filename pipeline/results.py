"""Read-only views of a run: the state of each stage, its rows, the models' figures, and what the next run will ask for."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import evaluate, outputs, provenance, sample
from pipeline.config import Config
from pipeline.files import InputError, plain
from pipeline.ingest import prompts
from pipeline.records import Counts, Prompt
from pipeline.runner import RUN_FACTS
from pipeline.stages import STAGES

CHARACTERS_A_TOKEN = 4  # English text and common tokenizers; only the estimate of a cost rests on it


@dataclass(frozen=True)
class Status:
    """One stage as it lies on disk. ``state`` is 'done', 'settings changed' (with the reasons), 'waiting' or 'never run'."""

    stage: str
    state: str
    key: str | None
    counts: Counts | None
    age_seconds: float | None
    seconds: float | None
    reasons: list[str]


@dataclass(frozen=True)
class Estimate:
    """What sampling will ask the teacher for, and what that takes.

    ``prompt_characters`` and ``completion_tokens_at_most`` are those of the requests still to be asked. ``seconds`` (without the teacher's
    start) is None before a first measured run. ``cost_at_most`` is in the currency of ``stages.sample.price``, with four characters taken
    for a token; None without a price, or where the time is not known and hours are priced.
    """

    stored: int
    to_ask: int
    prompt_characters: int
    completion_tokens_at_most: int
    seconds: float | None
    cost_at_most: float | None


def status(config: Config) -> list[Status]:
    """Each stage that is switched on: current key, counts, age, and whether its settings still match."""
    found = []
    for step in provenance.plan(config):
        folder = outputs.current(config.run, step.stage)
        if folder is None:
            found.append(Status(step.stage, "never run", None, None, None, None, step.reasons))
            continue
        facts = run_facts(folder)
        age = time.time() - (folder / outputs.MANIFEST).stat().st_mtime
        state = "done" if not step.runs and not step.reasons else "settings changed" if step.ask else "waiting"
        manifest = outputs.read_manifest(folder)
        found.append(Status(step.stage, state, manifest.key, manifest.counts, age, facts.get("seconds"), step.reasons))
    return found


def run_facts(folder: Path) -> dict[str, Any]:
    """Times, host and versions of the run that wrote a folder; empty where they are gone."""
    path = folder / RUN_FACTS
    return json.loads(path.read_bytes()) if path.is_file() else {}


def rows(config: Config, stage: str, *, dropped: bool = False, reason: str | None = None) -> Iterator[dict[str, Any]]:
    """Kept rows of a stage's result in force, or its drops (of one reason). Raises InputError where there is no result."""
    folder = result(config, stage)
    if dropped or reason is not None:
        known = outputs.read_manifest(folder).counts.reasons
        if reason is not None and reason not in known:
            raise InputError(
                f"{stage}: nothing was dropped for {plain(reason)!r}; reasons: {', '.join(sorted(known)) or 'none'}"
            )
        for drop in outputs.read_drops(folder):
            if reason is None or drop.reason == reason:
                yield drop.model_dump(mode="json")
        return
    for line in outputs.lines(folder):
        yield json.loads(line)


def result(config: Config, stage: str) -> Path:
    """The folder of a stage's result in force. Raises InputError where there is none."""
    if stage not in STAGES:
        raise InputError(f"{plain(stage)}: unknown stage; the stages are {', '.join(STAGES)}")
    folder = outputs.current(config.run, stage)
    if folder is None:
        raise InputError(f"{stage}: no result yet; run `stepdistill run --until {stage}`")
    return folder


def dataset(config: Config, stage: str) -> Any:
    """The kept rows of a stage as a ``datasets.Dataset``, with the features that its manifest names."""
    import datasets

    folder = result(config, stage)
    named = outputs.read_manifest(folder).features
    free = {name for name, kind in named.items() if kind == "json"}
    texts = datasets.List(datasets.Value("string"))
    columns = {
        name: texts if kind == "list<string>" else datasets.Value("string" if kind == "json" else kind)
        for name, kind in named.items()
    }
    found = [
        {name: json.dumps(value, ensure_ascii=False) if name in free else value for name, value in row.items()}
        for row in rows(config, stage)
    ]
    return datasets.Dataset.from_list(found, features=datasets.Features(columns))


def metrics(run: Path) -> dict[str, Any] | None:
    """What evaluate measured, or None: eval set -> model -> figures, as ``metrics.json`` holds them."""
    folder = outputs.current(run, "evaluate")
    return json.loads((folder / evaluate.METRICS).read_bytes()) if folder is not None else None


def speeds(run: Path) -> dict[str, float]:
    """Examples a second of each model that evaluate timed."""
    folder = outputs.current(run, "evaluate")
    path = folder / evaluate.SPEEDS if folder is not None else None
    if path is None or not path.is_file():
        return {}
    return {model: speed["examples_per_second"] for model, speed in json.loads(path.read_bytes())["models"].items()}


def estimate(config: Config) -> Estimate:
    """What the sample stage will ask for, over the source rows as they are now; rows that ingest drops are not counted."""
    task = config.task
    bad_rows = config.stages["ingest"]["on_bad_row"]
    source = prompts(
        task.inputs, input=task.input, gold=task.gold, choices=task.choices, id=task.id, on_bad_row=bad_rows
    )
    rows = (row for row in source if isinstance(row, Prompt))
    pending = sample.pending(rows, settings=config.stages["sample"], responses=config.run / "responses")
    rate = _measured_rate(config.run)
    seconds = pending.to_ask / rate if rate else None
    return Estimate(
        stored=pending.stored,
        to_ask=pending.to_ask,
        prompt_characters=pending.prompt_characters,
        completion_tokens_at_most=pending.completion_tokens_at_most,
        seconds=seconds,
        cost_at_most=_cost(config.stages["sample"]["price"], pending, seconds),
    )


def _cost(price: sample.Price | None, pending: sample.Pending, seconds: float | None) -> float | None:
    if price is None or (price.hour and seconds is None):
        return None
    tokens = pending.prompt_characters / CHARACTERS_A_TOKEN * price.prompt_tokens
    tokens += pending.completion_tokens_at_most * price.completion_tokens
    return tokens / 1e6 + (seconds or 0.0) / 3600 * price.hour


def _measured_rate(run: Path) -> float | None:
    """Requests a second of the last sampling in this run, or None."""
    folder = outputs.current(run, "sample")
    path = folder / sample.SPEED if folder is not None else None
    if path is None or not path.is_file():
        return None
    rate = json.loads(path.read_bytes()).get("requests_per_second")
    return float(rate) if rate else None
