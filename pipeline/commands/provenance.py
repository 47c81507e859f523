"""Commands that tell and prove where rows come from."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline import printed
from pipeline.commands import DEFAULT, ConfigOption, JsonOption, app


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
        printed.as_json([asdict(event) for event in events])
        return
    for index, event in enumerate(events):
        if index:
            print()
        print(f"{event.stage}: {event.verdict}  {event.place}")
        if event.verdict == "dropped" or STAGES[event.stage].kind != "filter":  # a filter keeps a row as it was
            printed.fields(event.row, indent="    ")


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
    problems = [str(finding) for finding in verify(run, full=full, sample=sample)]
    if as_json:
        printed.as_json({"run": str(run), "problems": problems})
    else:
        for problem in problems:
            print(problem)
        print(
            f"{run}: {f'{len(problems)} problems' if problems else 'whole: every file, row, response and way back is as it was written'}"
        )
    raise typer.Exit(1 if problems else 0)
