"""`stepdistill responses`: look into the response store, move answers in and out."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipeline import printed
from pipeline.commands import DEFAULT, ConfigOption, JsonOption, app

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
        printed.table(("key", "teacher", "sample", "ended by", "tokens in", "out", "text"), rows, right=(2, 4, 5))
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
        printed.as_json({"store": str(store), **whole, "teachers": by_teacher})
        return
    rows = []
    for (name, identity), part in figures.teachers.items():
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in part.finish_reasons.most_common())
        tokens = (f"{part.prompt_tokens:,}", f"{part.completion_tokens:,}")
        rows.append((name, identity[:12], f"{part.records:,}", reasons, *tokens))
    if rows:
        printed.table(("teacher", "identity", "records", "ended by", "tokens in", "out"), rows, right=(2, 4, 5))
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
        printed.as_json({"store": str(store), "problems": problems})
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
        printed.as_json({"store": str(store), **asdict(done)})
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
    left += f"; {done.revoked:,} revoked answers left out" if done.revoked else ""
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
        printed.as_json(asdict(told))
        return
    for line in recordings.story(told):
        print(f"{file}: {line}")


def _store(config: Path) -> Path:
    from pipeline.config import load
    from pipeline.recordings import STORE

    return load(config).run / STORE
