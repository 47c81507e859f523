"""The command line: each command is a thin layer over a function that a notebook can call as well.

Exit codes: 0 done, 1 failed or the audit found something, 2 wrong usage or settings, 130 on Ctrl-C.
"""

import json
import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from pipeline.config import Config
    from pipeline.explore import DryRun, Suspects
    from pipeline.results import Allowance, Estimate
    from pipeline.runner import Outcome

app = typer.Typer(add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False, help=(
    "From a file of inputs to a small model you can trust: a teacher writes labels and rationales, the pipeline keeps what holds up, "
    "a student learns both, and every trained row leads back to the response it came from."
))  # fmt: skip

ConfigOption = Annotated[Path, typer.Option("-c", "--config", help="the settings file")]
JsonOption = Annotated[bool, typer.Option("--json", help="print JSON for a program")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="stage.knob=value, for this call only", metavar="KNOB=VALUE")
]
DEFAULT = Path("stages.yaml")
STOPPED = 130  # Ctrl-C
# vLLM warns of what a CPU lacks while it is imported, before it sets up its own logging; its engine's processes import this module first.
logging.getLogger("vllm").setLevel(logging.ERROR)
WrongUsage: Any = typer.BadParameter.__base__  # typer brings click along under one name or another, by release


def main() -> None:
    """Entry point of the ``stepdistill`` command."""
    from pipeline.files import InputError, RunError

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        code = app(standalone_mode=False) or 0
    except typer.Exit as end:
        code = end.exit_code
    except WrongUsage as error:
        error.show()
        code = error.exit_code
    except (InputError, RunError) as error:
        print(f"stepdistill: {error}", file=sys.stderr)
        code = 2 if isinstance(error, InputError) else 1
    except (KeyboardInterrupt, typer.Abort):
        code = STOPPED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    if code == STOPPED:
        print("stepdistill: stopped; what was finished is kept, run again to go on", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


@app.command()
def init(folder: Annotated[Path, typer.Argument(metavar="DIR", help="a new or empty folder")]) -> None:
    """Start a new project from the built-in example."""
    from pipeline.project import init as start

    start(folder)
    print(
        f"{folder}: a project with stages.yaml, prompts/ and data/; next: cd {folder} && stepdistill check && stepdistill run"
    )


@app.command()
def check(config: ConfigOption = DEFAULT, settings: SetOption = None) -> None:
    """Validate stages.yaml, prompts and inputs; run nothing."""
    from pipeline.project import check as validate

    print(f"{config}: {validate(config, settings or [])}")


@app.command()
def plan(config: ConfigOption = DEFAULT, settings: SetOption = None, as_json: JsonOption = False) -> None:
    """Say which stages would run and why, what the teachers would be asked, and what that takes."""
    from dataclasses import asdict

    from pipeline import provenance, results
    from pipeline.config import load, verify

    loaded = load(config, settings or [])
    verify(loaded)
    steps = provenance.plan(loaded)
    samples = any(step.stage == "sample" and step.runs for step in steps)
    estimate = results.estimate(loaded) if samples else None
    if as_json:
        _print_json(
            {
                "stages": [{"stage": step.stage, "runs": step.runs, "reasons": step.reasons} for step in steps],
                "teacher": asdict(estimate) if estimate else None,
            }
        )
        return
    _table(
        ("stage", "", "why"),
        [(step.stage, "runs" if step.runs else "unchanged", "; ".join(step.reasons)) for step in steps],
    )
    if estimate is None or not estimate.to_ask:
        stored = f"; {estimate.stored:,} requests are answered in the store" if estimate else ""
        print(f"teacher: nothing to ask{stored}")
        return
    _estimated(estimate)


@app.command()
def run(
    stages: Annotated[
        list[str] | None, typer.Argument(help="only these, on what lies on disk", metavar="[STAGE]...")
    ] = None,
    config: ConfigOption = DEFAULT,
    start: Annotated[str | None, typer.Option("--from", help="first stage", metavar="STAGE")] = None,
    until: Annotated[str | None, typer.Option("--until", help="last stage", metavar="STAGE")] = None,
    settings: SetOption = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="run even what is unchanged (stored responses are still not asked for again)"),
    ] = False,
    processes: Annotated[
        int | None,
        typer.Option(min=1, help="for the rows, at most so many at once; by default one for each core", metavar="N"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only say what the named filter stages would drop; write nothing")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run all stages, or the named ones; what is unchanged is passed over."""
    from pipeline import report as page
    from pipeline import results
    from pipeline.config import load
    from pipeline.runner import run as run_stages
    from pipeline.shift import warnings

    loaded = load(config, settings or [])
    if dry_run:
        if not stages or start or until or force:
            raise typer.BadParameter("--dry-run: name the filter stages alone: stepdistill run quality --dry-run")
        _dry_run(loaded, stages, settings or [], processes, as_json=as_json)
        return
    outcomes = run_stages(loaded, stages or None, start=start, until=until, force=force, processes=processes)
    report_page = loaded.run / "report" / "index.html"
    if any(outcome.ran for outcome in outcomes) or not report_page.is_file():
        report_page = page.build(loaded.run, loaded.task.name)
    figures = results.metrics(loaded.run) if any(outcome.stage == "evaluate" for outcome in outcomes) else None
    sampled = [outcome for outcome in outcomes if outcome.stage == "sample" and outcome.ran]
    asked = results.sampling(sampled[0].folder) if sampled else {}
    if as_json:
        rows = [
            {
                "stage": outcome.stage,
                "ran": outcome.ran,
                "key": outcome.manifest.key,
                "counts": outcome.manifest.counts.model_dump(),
                "warnings": warnings(outcome.manifest),
            }
            for outcome in outcomes
        ]
        _print_json({"stages": rows, "teachers": asked, "models": figures, "report": str(report_page)})
        return
    _summary(outcomes)
    _asked(asked)
    if figures is not None:
        _models(figures, results.speeds(loaded.run))
    print(f"report: {report_page}")


@app.command()
def status(config: ConfigOption = DEFAULT, as_json: JsonOption = False) -> None:
    """Show each stage: key in force, rows, age, and whether its settings still match."""
    from dataclasses import asdict

    from pipeline import results
    from pipeline.config import load
    from pipeline.progress import duration

    found = results.status(load(config))
    if as_json:
        _print_json(
            [{**asdict(stage), "counts": stage.counts.model_dump() if stage.counts else None} for stage in found]
        )
        return
    rows = []
    for stage in found:
        figures = (
            (f"{stage.counts.rows_in:,}", f"{stage.counts.kept:,}", f"{stage.counts.dropped:,}")
            if stage.counts
            else ("", "", "")
        )
        age = "" if stage.age_seconds is None else duration(stage.age_seconds)
        rows.append((stage.stage, stage.state, (stage.key or "")[:8], *figures, age, "; ".join(stage.reasons)))
    _table(("stage", "state", "key", "in", "kept", "dropped", "age", "changed"), rows, right=(3, 4, 5, 6))


@app.command()
def show(
    stage: str,
    config: ConfigOption = DEFAULT,
    dropped: Annotated[bool, typer.Option("--dropped", help="the dropped rows")] = False,
    reason: Annotated[str | None, typer.Option("--reason", help="rows dropped for this reason")] = None,
    number: Annotated[int, typer.Option("-n", min=1, help="how many rows")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Show rows of a stage's result, kept or dropped."""
    from itertools import islice

    from pipeline import results
    from pipeline.config import load

    found = list(islice(results.rows(load(config), stage, dropped=dropped, reason=reason), number))
    if as_json:
        for row in found:
            print(json.dumps(row, ensure_ascii=False))
        return
    for index, row in enumerate(found):
        if index:
            print()
        _fields(row)
    if not found:
        print(f"{stage}: no {'dropped' if dropped or reason else 'kept'} rows")


@app.command()
def suspects(
    stage: Annotated[
        str | None,
        typer.Argument(metavar="[STAGE]", help="whose result; by default the last filter stage that has one"),
    ] = None,
    config: ConfigOption = DEFAULT,
    model: Annotated[
        str | None,
        typer.Option(help="an embedding model: a folder or a Hub name; without one, words tell what is near"),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="branch, tag or commit of a Hub model")] = None,
    neighbours: Annotated[int, typer.Option("-k", min=1, help="how many neighbours are asked")] = 10,
    number: Annotated[int, typer.Option("-n", min=1, help="how many rows")] = 10,
    as_json: JsonOption = False,
) -> None:
    """Show rows whose label the rows most like them contradict; nothing is dropped."""
    from dataclasses import asdict

    from pipeline import explore
    from pipeline.config import load

    found = explore.suspects(load(config), stage, k=neighbours, model=model, revision=revision, number=number)
    if as_json:
        _print_json(asdict(found))
        return
    _suspects(found)


@app.command()
def trace(
    row: Annotated[str, typer.Argument(metavar="ID")], config: ConfigOption = DEFAULT, as_json: JsonOption = False
) -> None:
    """Follow one row from its source to the shard and back, by any id it ever had."""
    from dataclasses import asdict

    from pipeline.config import load
    from pipeline.stages import STAGES
    from pipeline.trace import trace as follow

    events = follow(load(config).run, row)
    if as_json:
        _print_json([asdict(event) for event in events])
        return
    for index, event in enumerate(events):
        if index:
            print()
        print(f"{event.stage}: {event.verdict}  {event.place}")
        if event.verdict == "dropped" or STAGES[event.stage].kind != "filter":  # a filter keeps a row as it was
            _fields(event.row, indent="    ")


@app.command()
def audit(
    path: Annotated[Path | None, typer.Argument(help="a run folder; by default the one of stages.yaml")] = None,
    config: ConfigOption = DEFAULT,
    full: Annotated[bool, typer.Option("--full", help="finished results that are no longer in force, too")] = False,
    sample: Annotated[
        int | None, typer.Option("--sample", min=1, help="follow only so many shard rows back to the store")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Verify manifests, files, rows, responses and the way back of every training row."""
    from pipeline.audit import audit as verify
    from pipeline.config import load

    run = path if path is not None else load(config).run
    problems = list(verify(run, full=full, sample=sample))
    if as_json:
        _print_json({"run": str(run), "problems": problems})
    else:
        for problem in problems:
            print(problem)
        print(
            f"{run}: {f'{len(problems)} problems' if problems else 'whole: every file, row, response and way back is as it was written'}"
        )
    raise typer.Exit(1 if problems else 0)


@app.command()
def train(
    shards: Annotated[Path, typer.Option(help="a folder of shards: train-*.jsonl, validation-*.jsonl")],
    student: Annotated[str, typer.Option(help="a checkpoint folder, a Hub name, or 'embedded'")],
    out: Annotated[Path, typer.Option(help="where the student goes; a new folder")],
    layers: Annotated[int | None, typer.Option(min=1, help="cut the student to so many evenly spaced layers")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="a setting of the train stage: alpha=0.3", metavar="KNOB=VALUE")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a student on any produced shards."""
    from pipeline.project import train_alone

    details = train_alone(shards, student, out, layers, settings or [])
    _print_json(details) if as_json else _fields(details)
    if not as_json:
        print(f"student: {out / 'student'}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Option(help="a checkpoint folder of a student")],
    data: Annotated[
        Path | None, typer.Option(help="rows with true labels; by default the eval sets of stages.yaml")
    ] = None,
    config: ConfigOption = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Measure any model on the task's eval sets, or on a file of the same shape."""
    from pipeline.config import load
    from pipeline.project import evaluate_alone

    found = evaluate_alone(load(config), model, data)
    if as_json:
        _print_json(found)
        return
    for figures in found:
        rows = {figures["model"]: figures}
        _models(
            {"eval_sets": {figures["eval_set"]: {"models": rows}}}, {figures["model"]: figures["examples_per_second"]}
        )


@app.command()
def report(config: ConfigOption = DEFAULT) -> None:
    """(Re)build the page of the run."""
    from pipeline import report as page
    from pipeline.config import load

    loaded = load(config)
    print(f"report: {page.build(loaded.run, loaded.task.name)}")


responses = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Look into the response store, move answers in and out.",
)
app.add_typer(responses, name="responses")
TeacherOption = Annotated[str | None, typer.Option("--teacher", help="of this teacher only", metavar="NAME")]
ReasonOption = Annotated[
    str | None, typer.Option("--finish-reason", help="those that ended so only: stop, length ..", metavar="REASON")
]
TargetArgument = Annotated[str, typer.Argument(metavar="FILE", help="a new file, or - for the standard output")]


@responses.command("list")
def responses_list(
    config: ConfigOption = DEFAULT,
    number: Annotated[int, typer.Option("-n", min=1, help="how many records")] = 10,
    first: Annotated[bool, typer.Option("--first", help="the oldest, not the newest")] = False,
    teacher: TeacherOption = None,
    finish_reason: ReasonOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the newest records of the store."""
    from pipeline import recordings

    store = _store(config)
    records = recordings.records(store, teacher=teacher, finish_reason=finish_reason)
    found = recordings.some(records, number, first=first)
    if as_json:
        for record in found:
            sys.stdout.write(record.line().decode() + "\n")
        return
    rows = []
    for record in found:
        tokens = (f"{record.prompt_tokens:,}", f"{record.completion_tokens:,}")
        excerpt = record.text if len(record.text) <= 60 else record.text[:59] + "…"
        rows.append((record.key[:12], record.teacher, str(record.sample), record.finish_reason, *tokens, excerpt))
    if rows:
        _table(("key", "teacher", "sample", "ended by", "tokens in", "out", "text"), rows, right=(2, 4, 5))
    else:
        print(f"{store}: no such records")


@responses.command("count")
def responses_count(config: ConfigOption = DEFAULT, as_json: JsonOption = False) -> None:
    """Count records by teacher and finish reason, and tokens."""
    from pipeline import recordings

    store = _store(config)
    figures = recordings.count(store)
    if as_json:
        names = ("records", "prompt_tokens", "completion_tokens", "finish_reasons")
        by_teacher = [
            {"teacher": name, "identity": identity, **{key: getattr(part, key) for key in names}}
            for (name, identity), part in figures.teachers.items()
        ]
        whole = {key: getattr(figures, key) for key in (*names, "families", "segments", "bytes")}
        _print_json({"store": str(store), **whole, "teachers": by_teacher})
        return
    rows = []
    for (name, identity), part in figures.teachers.items():
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in part.finish_reasons.most_common())
        tokens = (f"{part.prompt_tokens:,}", f"{part.completion_tokens:,}")
        rows.append((name, identity[:12], f"{part.records:,}", reasons, *tokens))
    if rows:
        _table(("teacher", "identity", "records", "ended by", "tokens in", "out"), rows, right=(2, 4, 5))
    print(
        f"{store}: {figures.records:,} records of {figures.families:,} families in {figures.segments} segments, "
        f"{figures.bytes:,} bytes; {figures.prompt_tokens:,} tokens in, {figures.completion_tokens:,} out"
    )


@responses.command("verify")
def responses_verify(config: ConfigOption = DEFAULT, as_json: JsonOption = False) -> None:
    """Check every record; exit 1 where one was changed."""
    from pipeline.responses import verify

    store = _store(config)
    problems = list(verify(store))
    if as_json:
        _print_json({"store": str(store), "problems": problems})
    else:
        for problem in problems:
            print(problem)
        print(f"{store}: {f'{len(problems)} problems' if problems else 'whole: every record is as it was written'}")
    raise typer.Exit(1 if problems else 0)


@responses.command("compact")
def responses_compact(
    config: ConfigOption = DEFAULT,
    keep_teacher: Annotated[
        list[str] | None,
        typer.Option(
            "--keep-teacher",
            help="keep this teacher's answers (by name or identity) and REMOVE all others'; may be given again",
            metavar="NAME",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Remove records that nothing can reach; safe to stop."""
    from dataclasses import asdict

    from pipeline.responses import compact

    store = _store(config)
    done = compact(store, teachers=keep_teacher or ())
    if as_json:
        _print_json({"store": str(store), **asdict(done)})
        return
    unwanted = f", {done.unwanted:,} of other teachers removed" if keep_teacher else ""
    print(
        f"{store}: {done.kept:,} records kept, {done.unreachable:,} that nothing can reach removed{unwanted}; "
        f"{done.bytes_before:,} bytes before, {done.bytes_after:,} now"
    )


@responses.command("export")
def responses_export(
    target: TargetArgument,
    config: ConfigOption = DEFAULT,
    completions: Annotated[
        bool,
        typer.Option("--completions", help="as recorded completions, {id, completion}, of the prompts of stages.yaml"),
    ] = False,
    teacher: TeacherOption = None,
    finish_reason: ReasonOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the records to a file, one JSON object a line."""
    from dataclasses import asdict

    from pipeline import recordings
    from pipeline.config import load

    loaded = load(config)
    said = sys.stderr if target == recordings.STDOUT else sys.stdout
    if not completions:
        number = recordings.export(loaded.run / recordings.STORE, target, teacher=teacher, finish_reason=finish_reason)
        print(json.dumps({"records": number}) if as_json else f"{target}: {number:,} records", file=said)
        return
    if finish_reason is not None:
        raise typer.BadParameter("--finish-reason: not with --completions, whose samples stand in order")
    done = recordings.export_completions(loaded, target, teacher=teacher)
    if as_json:
        print(json.dumps(asdict(done)), file=said)
        return
    left = f"; {done.unanswered:,} requests have no answer" if done.unanswered else ""
    left += f"; {done.behind_a_gap:,} answers left out, whose earlier sample has none" if done.behind_a_gap else ""
    print(f"{target}: {done.rows:,} prompts, {done.answers:,} completions{left}", file=said)


@responses.command("import")
def responses_import(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a JSONL of {id, completion}")],
    teacher: Annotated[
        str, typer.Option("--teacher", help="whose answers, by the name in stages.yaml", metavar="NAME")
    ],
    about: Annotated[
        str | None, typer.Option("--about", help="the teacher's description, to be that of stages.yaml", metavar="JSON")
    ] = None,
    config: ConfigOption = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Take recorded completions into the store."""
    from dataclasses import asdict

    from pipeline import recordings
    from pipeline.config import load

    described = None if about is None else recordings.description(about)
    told = recordings.import_completions(load(config), file, teacher=teacher, about=described)
    if as_json:
        _print_json(asdict(told))
        return
    for line in recordings.story(told):
        print(f"{file}: {line}")


def _store(config: Path) -> Path:
    from pipeline.config import load
    from pipeline.recordings import STORE

    return load(config).run / STORE


def _dry_run(config: "Config", stages: list[str], settings: list[str], processes: int | None, *, as_json: bool) -> None:
    from dataclasses import asdict

    from pipeline import explore

    found = [explore.dry_run(config, stage, settings, processes=processes) for stage in stages]
    if as_json:
        _print_json([asdict(one) for one in found])
        return
    for index, one in enumerate(found):
        if index:
            print()
        _would_drop(one)


def _would_drop(found: "DryRun") -> None:
    """One stage's dry run: counts in tables, then examples of each reason."""
    from pipeline.files import plain

    def share(rows: int) -> str:
        return f"{rows / found.rows:.1%}" if found.rows else ""

    print(
        f"{found.stage}: of {found.rows:,} rows of {found.reads}, {found.rows - found.dropped:,} would be kept and "
        f"{found.dropped:,} dropped{f' ({share(found.dropped)})' if found.dropped else ''}; nothing was written"
    )
    inside = [one for one in found.reasons if one.configured]
    outside = [one for one in found.reasons if not one.configured]
    if found.stage == "quality":
        _table(
            ("filter", "settings", "alone", "share", "first", "only"),
            [
                (
                    one.name,
                    _brief(one.settings),
                    f"{one.alone:,}",
                    share(one.alone or 0),
                    f"{one.first:,}",
                    f"{one.only:,}",
                )
                for one in inside
            ],
            right=(2, 3, 4, 5),
        )
        print(
            "alone: whatever the others do; first: as the run counts it, in this order; only: no other of these objects"
        )
    elif inside:
        _table(
            ("reason", "rows", "share"),
            [(one.name, f"{one.first:,}", share(one.first)) for one in inside],
            right=(1, 2),
        )
    if found.together:
        _table(
            ("both object", "rows", "share"),
            [(f"{one}, {other}", f"{rows:,}", share(rows)) for one, other, rows in found.together],
            right=(1, 2),
        )
    if outside:
        _table(
            ("not configured", "settings", "alone", "share", "besides"),
            [
                (one.name, _brief(one.settings), f"{one.alone:,}", share(one.alone or 0), f"{one.only:,}")
                for one in outside
            ],
            right=(2, 3, 4),
        )
        print("besides: rows that none of the configured filters drops, and this one would")
    for name, why in found.not_tried.items():
        print(f"not tried: {name}: {plain(why)}")
    for one in found.reasons:
        for drop in one.examples:
            if found.stage == "quality":
                print(f"{one.name}: {plain(drop['id'])}: {plain(drop['evidence']['why'])}")
            else:
                print(f"{one.name}: {plain(drop['id'])}")
                _fields(drop["evidence"], indent="    ")


def _brief(settings: dict[str, Any] | None) -> str:
    """``minimum 4``: the settings that are single values."""
    return ", ".join(f"{name} {value}" for name, value in (settings or {}).items() if isinstance(value, int | float))


def _suspects(found: "Suspects") -> None:
    from pipeline.files import plain

    for row in found.suspects:
        gold = f", gold {plain(row.gold)}" if row.gold is not None else ""
        print(
            f"{plain(row.id)}: score {row.score:.2f}: label {plain(row.label)}, "
            f"{row.votes} of {found.k} neighbours {plain(row.neighbours)}{gold}"
        )
        print(f"    {plain(row.input)}")
        for other in row.nearest:
            print(f"    {other.similarity:.2f} {plain(other.label)}: {plain(other.input)} ({plain(other.id)})")
        print()
    by = (
        "the words they share (weak evidence of short texts; an embedding model, --model, sees more)"
        if found.by == "words"
        else f"embeddings of {plain(found.by)}"
    )
    print(
        f"{found.stage}: {found.total:,} of {found.rows:,} rows are suspects by {by}: the {found.k} rows most like each speak for another "
        "label. That is evidence to look at; nothing was dropped."
    )
    told = found.agreement
    if told is None:
        return
    line = f"measured against gold: {told.wrong:.1%} of the {told.rows:,} rows that have it have another label"
    if told.suspects is not None and told.found is not None:
        line += f"; of the suspects {told.suspects:.1%}, and {told.found:.1%} of all such rows are among them"
    print(line)
    if told.first:
        print("    of the first " + ", ".join(f"{rank:,} {rate:.1%}" for rank, rate in told.first.items()))


def _summary(outcomes: Iterable["Outcome"]) -> None:
    from pipeline.runner import reasons_line

    rows = []
    for outcome in outcomes:
        counts = outcome.manifest.counts
        figures = (f"{counts.rows_in:,}", f"{counts.kept:,}", f"{counts.dropped:,}")
        when = f"{outcome.seconds:.1f} s" if outcome.ran else "unchanged"
        rows.append((outcome.stage, *figures, reasons_line(counts), counts.unit, when))
    _table(("stage", "in", "kept", "dropped", "reasons", "unit", "time"), rows, right=(1, 2, 3, 6))


def _estimated(estimate: "Estimate") -> None:
    """What sampling will take: a row for each teacher, and what the figures rest on."""
    from pipeline.files import plain
    from pipeline.progress import duration

    rows = []
    for one in estimate.teachers:
        known = one.completion_tokens < one.completion_tokens_at_most
        cost = "" if one.cost is None else f"about {one.cost:,.2f}"
        rows.append(
            (
                one.teacher,
                f"{one.to_ask:,}",
                f"{one.stored:,}",
                f"{'' if one.prompt_tokens_exact else 'about '}{one.prompt_tokens:,}",
                f"{f'about {one.completion_tokens:,}, ' if known else ''}at most {one.completion_tokens_at_most:,}",
                "not known" if one.seconds is None else f"about {duration(one.seconds)}",
                cost,
            )
        )
    _table(("teacher", "to ask", "stored", "prompt tokens", "completion tokens", "time", "cost"), rows, right=(1, 2, 3))
    needed = "not known before a first run" if estimate.seconds is None else f"about {duration(estimate.seconds)}"
    print(
        f"teacher: {estimate.to_ask:,} requests to ask ({estimate.stored:,} more are answered in the store), "
        f"{'' if estimate.prompt_tokens_exact else 'about '}{estimate.prompt_tokens:,} prompt tokens; time {needed}"
    )
    for one in estimate.teachers:
        if one.to_ask and not one.prompt_tokens_exact:
            print(f"{plain(one.teacher)}: has no tokenizer here, so prompt tokens are reckoned from characters")
        if one.foreseen < one.to_ask:
            print(
                f"{plain(one.teacher)}: no answer of known length in the store yet for {one.to_ask - one.foreseen:,} requests, "
                "so max_tokens is expected of them"
            )
    if estimate.cost is not None and estimate.cost_at_most is not None:
        print(
            f"cost: about {estimate.cost:,.2f}, at most {estimate.cost_at_most:,.2f} at the prices of stages.sample.teacher.price"
        )
    if estimate.budget is not None:
        print(_allowed(estimate.budget, estimate.to_ask))


def _allowed(allowance: "Allowance", to_ask: int) -> str:
    """``budget: 5 usd hold about 3,100 of the 5,000 requests; 2 runs``."""
    parts = " and ".join(f"{value:,g} {part}" for part, value in allowance.budget.items())
    if allowance.runs is None and not allowance.requests:
        told = "do not hold one request; raise stages.sample.budget or lower max_tokens"
    elif allowance.runs is None:
        told = f"hold about {allowance.requests:,} of the {to_ask:,} requests, but not one of some teacher; raise stages.sample.budget"
    elif allowance.runs == 1:
        told = f"hold all {to_ask:,} requests; 1 run"
    else:
        told = f"hold about {allowance.requests:,} of the {to_ask:,} requests; {allowance.runs:,} runs"
    if allowance.not_reckoned:
        told += f" (without {' and '.join(allowance.not_reckoned)}: not known before a first run)"
    return f"budget: {parts} {told}"


def _asked(teachers: dict[str, dict[str, Any]]) -> None:
    """What each teacher was asked for this result, and what that took."""
    rows = []
    for name, found in teachers.items():
        asked = found["asked"]
        if asked is None:
            continue
        failures = ", ".join(f"{reason} {number:,}" for reason, number in sorted(asked["failures"].items()))
        cached = f" ({asked['cached_tokens']:,} cached)" if asked["cached_tokens"] else ""
        rows.append(
            (
                name,
                f"{asked['requests']:,}",
                f"{asked['answers']:,}",
                failures,
                f"{asked['prompt_tokens']:,}{cached}",
                f"{asked['completion_tokens']:,}",
                f"{asked['tokens_per_second']:,.0f}",
                f"{asked['cost']:,.4g}" if asked["cost"] else "",
            )
        )
    if rows:
        header = ("teacher", "asked", "answered", "failed", "tokens in", "tokens out", "tokens/s", "cost")
        _table(header, rows, right=(1, 2, 4, 5, 6, 7))


def _models(figures: dict[str, Any], speeds: dict[str, float]) -> None:
    for name, eval_set in figures["eval_sets"].items():
        rows = []
        for model, found in eval_set["models"].items():
            low, high = found["accuracy_interval"]
            macro = "" if found["macro_f1"] is None else f"{found['macro_f1']:.3f}"
            size = f"{found['parameters'] / 1e6:,.0f} M" if found["parameters"] else ""
            speed = f"{speeds[model]:,.1f}" if model in speeds else ""
            rows.append(
                (
                    model,
                    f"{found['accuracy']:.1%}",
                    f"{low:.1%} to {high:.1%}",
                    macro,
                    speed,
                    size,
                    f"{found['rows']:,}",
                )
            )
        header = (f"on {name}", "accuracy", "95% interval", "macro-F1", "examples/s", "parameters", "rows")
        _table(header, rows, right=(1, 2, 3, 4, 5, 6))


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]], right: tuple[int, ...] = ()) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from pipeline.files import plain

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index in right else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(plain(cell)) for cell in row))
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def _fields(row: dict[str, Any], indent: str = "") -> None:
    """``name: value`` a line, values on one line and free of control characters; the fields of a value stand below it, further in."""
    from pipeline.files import plain

    for name, value in row.items():
        if isinstance(value, dict) and value:
            print(f"{indent}{plain(name)}:")
            _fields(value, indent=f"{indent}    ")
            continue
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        print(f"{indent}{plain(name)}: {plain(shown, 2000)}")


def _print_json(value: object) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2, default=str))
