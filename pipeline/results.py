"""Read-only views of a run: the state of each stage, its rows, the models' figures, and what the next run will ask for."""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import gates, measure, outputs, provenance, sample, teachers, usage
from pipeline.ask_teachers import SPEEDS
from pipeline.binding import suggestion
from pipeline.config import Config
from pipeline.files import InputError, RunError, plain, strict_json
from pipeline.gates import Verdict
from pipeline.ingest import prompts
from pipeline.metrics import Costs, Metrics
from pipeline.records import Counts, Drop, Prompt
from pipeline.runner import RUN_FACTS, reasons_line
from pipeline.spending import Budget, cost, priced
from pipeline.stages import STAGES
from pipeline.teachers import Price


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
class TeacherEstimate:
    """What sampling will ask one teacher, and what that takes.

    Tokens are those of the requests still to be asked; ``prompt_tokens`` are exact where ``prompt_tokens_exact``, else reckoned from
    characters. ``completion_tokens`` is what to expect: the mean of the teacher's own answers in the store for ``foreseen`` requests,
    ``max_tokens`` for each of the others. ``seconds`` (without the teacher's start) is None before a first measured run. ``cost`` and
    ``cost_at_most`` are in the currency of the prices; None without a price, or where hours are priced and the time is not known.
    """

    teacher: str
    stored: int
    to_ask: int
    prompt_tokens: int
    prompt_tokens_exact: bool
    completion_tokens: int
    completion_tokens_at_most: int
    foreseen: int
    seconds: float | None
    cost: float | None
    cost_at_most: float | None


@dataclass(frozen=True)
class Allowance:
    """How far the budget of one call goes.

    ``requests`` is what the next call will about ask, ``runs`` how many calls all of them take; None where one request can take more than
    the whole budget. ``not_reckoned`` are the parts of the budget of which it is not known yet what a request takes of them.
    """

    budget: dict[str, float]
    requests: int
    runs: int | None
    not_reckoned: list[str]


@dataclass(frozen=True)
class Estimate:
    """What sampling will ask the teachers for, and what that takes: each of them, and all together as in ``TeacherEstimate``."""

    stored: int
    to_ask: int
    prompt_tokens: int
    prompt_tokens_exact: bool
    completion_tokens: int
    completion_tokens_at_most: int
    seconds: float | None
    cost: float | None
    cost_at_most: float | None
    teachers: list[TeacherEstimate]
    budget: Allowance | None


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
        counts = outputs.read_manifest(folder).counts
        if reason is not None and reason not in counts.reasons:
            close = suggestion(reason, counts.reasons).partition("; known: ")[0] if counts.reasons else ""
            told = f"{close or ';'} it was for: {reasons_line(counts)}" if counts.reasons else ", nor for anything else"
            raise InputError(f"{stage}: nothing was dropped for '{plain(reason, 80)}'{told}")
        for drop in outputs.read_drops(folder):
            if reason is None or drop.reason == reason:
                yield drop.plain()
        return
    for file in outputs.row_files(folder):
        path = folder / file.path
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = strict_json(line)
                    if not isinstance(row, dict):
                        raise ValueError("no JSON object")
                except ValueError as error:
                    raise RunError(
                        f"{path}:{number}: not a row ({plain(str(error))}); run `stepdistill audit`"
                    ) from None
                yield row


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


def metrics(run: Path) -> Metrics | None:
    """What evaluate measured, as ``metrics.json`` of its result in force holds it; None where it did not. Raises RunError."""
    folder = outputs.current(run, "evaluate")
    if folder is None:
        return None
    try:
        return Metrics.model_validate_json((folder / measure.METRICS).read_bytes())
    except (OSError, ValueError):
        raise RunError(
            f"{folder / measure.METRICS}: not the metrics of this version; run `stepdistill run evaluate`, or audit"
        ) from None


def costs(run: Path) -> Costs | None:
    """What answering took in evaluate's result in force; None where that is not known."""
    folder = outputs.current(run, "evaluate")
    try:
        return None if folder is None else Costs.model_validate_json((folder / SPEEDS).read_bytes())
    except (OSError, ValueError):  # no part of the result
        return None


def throughputs(found: Costs | None) -> dict[str, float]:
    """Rows a second of each model whose time was taken."""
    models = found.models if found is not None else {}
    return {model: cost.throughput for model, cost in models.items() if cost.throughput}


def verdicts(config: Config) -> list[Verdict]:
    """What becomes of ``stages.evaluate.gates`` on the figures in force; none without gates or figures."""
    found = metrics(config.run)
    wanted = config.stages.get("evaluate", {}).get("gates", {})
    return gates.judge(found, wanted) if found is not None else []


def sampling(folder: Path) -> dict[str, dict[str, Any]]:
    """What came of each teacher's requests in a finished sample folder, by the teacher's name.

    ``result`` counts all requests, whenever they were asked; ``asked`` (None where the store answered all) is what was measured of those
    that were asked for this result.
    """
    measured = usage.measured(folder)
    return {
        name: {
            "result": found.model_dump(),
            "asked": measured[name].model_dump() if name in measured and measured[name].requests else None,
        }
        for name, found in usage.figures(outputs.read_manifest(folder)).items()
    }


def source_rows(config: Config) -> Iterator[Prompt | Drop]:
    """The source rows as they are now, as ingest would accept or drop them."""
    task = config.task
    return prompts(
        task.inputs,
        input=task.input,
        gold=task.gold,
        choices=task.choices,
        id=task.id,
        slices=task.slices,
        on_bad_row=config.stages["ingest"]["on_bad_row"],
        revoked=config.stages["ingest"].get("revoked"),
    )


def estimate(config: Config) -> Estimate:
    """What the sample stage will ask for, over the source rows as they are now; rows that ingest drops are not counted."""
    settings = config.stages["sample"]
    rows = (row for row in source_rows(config) if isinstance(row, Prompt))
    pending = sample.pending(rows, settings=settings, responses=config.run / "responses")
    speeds = _measured(config.run)
    prices = {teachers.name(one): priced(one.price, settings["workers"]) for one in settings["teacher"]}
    found = [_estimate(name, one, prices[name], speeds.get(name)) for name, one in pending.teachers.items()]
    asked = [one for one in found if one.to_ask]
    return Estimate(
        stored=pending.stored,
        to_ask=pending.to_ask,
        prompt_tokens=sum(one.prompt_tokens for one in found),
        prompt_tokens_exact=all(one.prompt_tokens_exact for one in asked),
        completion_tokens=sum(one.completion_tokens for one in found),
        completion_tokens_at_most=sum(one.completion_tokens_at_most for one in found),
        seconds=_sum(one.seconds for one in asked),
        cost=_sum(one.cost for one in asked if prices[one.teacher]),
        cost_at_most=_sum(one.cost_at_most for one in asked if prices[one.teacher]),
        teachers=found,
        budget=None if settings["budget"] is None else _allowance(settings["budget"], pending, found, prices),
    )


def _estimate(name: str, asked: sample.ToAsk, price: Price | None, speed: usage.Facts | None) -> TeacherEstimate:
    seconds = at_most = None
    if not asked.completion_tokens_at_most:  # nothing to ask, or recorded completions
        seconds = at_most = 0.0
    elif speed is not None and speed.completion_tokens:
        seconds = asked.completion_tokens / speed.tokens_per_second
        at_most = asked.completion_tokens_at_most / speed.tokens_per_second
    elif speed is not None:
        seconds = at_most = asked.to_ask / speed.requests_per_second

    def money(completion_tokens: int, time: float | None) -> float | None:
        if price is None or (price.hour and time is None):
            return None
        return cost(price, asked.prompt_tokens, completion_tokens, time or 0.0)

    return TeacherEstimate(
        teacher=name,
        stored=asked.stored,
        to_ask=asked.to_ask,
        prompt_tokens=asked.prompt_tokens,
        prompt_tokens_exact=asked.counted,
        completion_tokens=asked.completion_tokens,
        completion_tokens_at_most=asked.completion_tokens_at_most,
        foreseen=asked.foreseen,
        seconds=seconds,
        cost=money(asked.completion_tokens, seconds),
        cost_at_most=money(asked.completion_tokens_at_most, at_most),
    )


def _allowance(
    budget: Budget, pending: sample.Pending, found: list[TeacherEstimate], prices: dict[str, Price | None]
) -> Allowance:
    """Spends the budget on mean requests, teacher by teacher, as the purse would, call after call."""
    limits = {name: float(value) for name, value in budget.model_dump().items() if value is not None}
    wanted = {"tokens", "usd", "hours"} & limits.keys()
    asked = [one for one in found if one.to_ask]
    means: list[dict[str, float | None]] = []
    mosts: list[dict[str, float]] = []
    for one in asked:
        read, written = pending.teachers[one.teacher].most
        has_price = prices[one.teacher] is not None
        means.append(
            {
                "tokens": (one.prompt_tokens + one.completion_tokens) / one.to_ask,
                "usd": (None if one.cost is None else one.cost / one.to_ask) if has_price else 0.0,
                "hours": None if one.seconds is None else one.seconds / one.to_ask / 3600,
            }
        )
        mosts.append({"tokens": read + written, "usd": cost(prices[one.teacher], read, written, 0.0), "hours": 0.0})
    unknown = sorted(part for part in wanted if any(mean[part] is None for mean in means))
    parts = sorted(wanted - set(unknown))
    counts = [one.to_ask for one in asked]
    first = runs = 0
    while any(counts):
        left = {part: limits[part] for part in parts}
        held = 0
        for place, count in enumerate(counts):
            fits = min([count, *(_fits(left[part], means[place][part], mosts[place][part]) for part in parts)])
            held += fits
            counts[place] -= fits
            for part in parts:
                left[part] -= fits * (means[place][part] or 0.0)
            if counts[place]:
                break
        if not held:
            return Allowance(limits, first, None, unknown)
        runs += 1
        first = first or held
    return Allowance(limits, first, runs, unknown)


def _fits(left: float, mean: float | None, most: float) -> int:
    """How many requests are sent one after the other, where each takes the mean and is sent only if the most it can take is left."""
    if most > left:
        return 0
    return sys.maxsize if not mean else int((left - most) / mean) + 1


def _sum(values: Iterable[float | None]) -> float | None:
    """The sum, or None where a part is not known or there is none."""
    found = list(values)
    known = [value for value in found if value is not None]
    return sum(known) if found and len(known) == len(found) else None


def _measured(run: Path) -> dict[str, usage.Facts]:
    """What the last sampling in this run that asked a teacher measured of it, by the teacher's name; also one that was stopped."""
    found: dict[str, usage.Facts] = {}
    files = sorted((run / "sample").glob(f"*/{usage.SPEED}"), key=lambda path: path.stat().st_mtime)
    for path in files:
        found |= {name: facts for name, facts in usage.measured(path.parent).items() if facts.requests}
    return found
