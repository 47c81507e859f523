"""Commands that run stages, show what they left, and train and measure students."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import printed
from pipeline.commands import DEFAULT, ConfigOption, JsonOption, SetOption, app

if TYPE_CHECKING:
    from pipeline.config import Config


AcceptTermsOption = Annotated[
    str | None,
    typer.Option(
        "--accept-terms",
        help="why it is trained on a teacher's outputs though its terms forbid that or are unknown; recorded",
        metavar="REASON",
    ),
]


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
    from pipeline.config import load, permit, verify
    from pipeline.files import InputError

    loaded = load(config, settings or [])
    verify(loaded)
    steps = provenance.plan(loaded)
    refused = None
    try:
        permit(loaded, [step.stage for step in steps if step.runs])
    except InputError as error:
        refused = str(error)
    samples = any(step.stage == "sample" and step.runs for step in steps)
    estimate = results.estimate(loaded) if samples else None
    if as_json:
        printed.as_json(
            {
                "stages": [{"stage": step.stage, "runs": step.runs, "reasons": step.reasons} for step in steps],
                "teacher": asdict(estimate) if estimate else None,
                "refused": refused,
            }
        )
        return
    printed.table(
        ("stage", "", "why"),
        [(step.stage, "runs" if step.runs else "unchanged", "; ".join(step.reasons)) for step in steps],
    )
    if refused is not None:
        print(f"run would be refused: {refused}")
    if estimate is None or not estimate.to_ask:
        stored = f"; {estimate.stored:,} requests are answered in the store" if estimate else ""
        print(f"teacher: nothing to ask{stored}")
        return
    printed.estimated(estimate)


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
        bool,
        typer.Option(
            "--dry-run",
            help="only say what the named filter stages would drop, and what train would begin with; write nothing",
        ),
    ] = False,
    accept_terms: AcceptTermsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run all stages, or the named ones; what is unchanged is passed over."""
    from pipeline import report as page
    from pipeline import results
    from pipeline.config import load
    from pipeline.runner import run as run_stages
    from pipeline.shift import warnings

    loaded = load(config, settings or [], accept_terms=accept_terms)
    if dry_run:
        if not stages or start or until or force:
            raise typer.BadParameter("--dry-run: name filter stages or train alone: stepdistill run quality --dry-run")
        changed = [*_option("-c", config if config != DEFAULT else None), *_option("--set", *(settings or ()))]
        command = ["stepdistill", "run", "train", *changed, *_option("--accept-terms", accept_terms)]
        _dry_run(loaded, stages, settings or [], processes, command, as_json=as_json)
        return
    outcomes = run_stages(loaded, stages or None, start=start, until=until, force=force, processes=processes)
    report_page = loaded.run / "report" / "index.html"
    evaluated = any(outcome.stage == "evaluate" for outcome in outcomes)
    figures = results.metrics(loaded.run) if evaluated else None
    verdicts = results.verdicts(loaded) if evaluated else []
    if any(outcome.ran for outcome in outcomes) or not report_page.is_file():
        report_page = page.build(loaded.run, loaded.task.name, gates=verdicts)
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
        printed.as_json(
            {
                "stages": rows,
                "teachers": asked,
                "models": figures and figures.model_dump(mode="json"),
                "gates": [verdict.model_dump() for verdict in verdicts],
                "report": str(report_page),
            }
        )
    else:
        printed.summary(outcomes)
        printed.asked(asked)
        if figures is not None:
            printed.models(figures, results.throughputs(results.costs(loaded.run)))
            printed.compared(figures)
        printed.gates(verdicts)
        print(f"report: {report_page}")
    if not all(verdict.passed for verdict in verdicts):
        raise typer.Exit(1)


@app.command()
def sweep(
    over: Annotated[
        list[str],
        typer.Option(
            "--over", help="a setting and its values, a range as 0..4; every combination is a point", metavar="KNOB=V,V"
        ),
    ],
    config: ConfigOption = DEFAULT,
    settings: SetOption = None,
    name: Annotated[
        str | None, typer.Option(help="of the folder under sweeps/; by default it follows from the values")
    ] = None,
    plot: Annotated[
        str | None,
        typer.Option(
            help="the setting on the plot's axis; by default train.fraction, or the first with numbers", metavar="KNOB"
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only say what would run for each point; write nothing")
    ] = False,
    accept_terms: AcceptTermsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train and measure every combination of settings, with intervals over seeds and a plot; what is in force stays so."""
    from dataclasses import asdict

    from pipeline import sweeps

    if dry_run:
        grid = sweeps.prepare(config, over, overrides=settings or [], name=name, plot=plot, accept_terms=accept_terms)
        points = sweeps.plan(grid)
        printed.as_json([asdict(point) for point in points]) if as_json else printed.planned_sweep(grid.name, points)
        return
    found = sweeps.sweep(config, over, overrides=settings or [], name=name, plot=plot, accept_terms=accept_terms)
    printed.as_json(found.plain()) if as_json else printed.swept(found)
    if found.failures:
        raise typer.Exit(1)


@app.command()
def status(config: ConfigOption = DEFAULT, as_json: JsonOption = False) -> None:
    """Show each stage: key in force, rows, age, and whether its settings still match."""
    from dataclasses import asdict

    from pipeline import results
    from pipeline.config import load
    from pipeline.progress import duration

    found = results.status(load(config))
    if as_json:
        printed.as_json(
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
    printed.table(("stage", "state", "key", "in", "kept", "dropped", "age", "changed"), rows, right=(3, 4, 5, 6))


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
        printed.fields(row)
    if not found:
        print(f"{stage}: no {'dropped' if dropped or reason else 'kept'} rows")


@app.command()
def view(
    config: ConfigOption = DEFAULT,
    path: Annotated[Path | None, typer.Option("--run", help="a run folder; by default the one of stages.yaml")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="by default 8377, or any that is free; 0: any that is free")
    ] = None,
    no_browser: Annotated[bool, typer.Option("--no-browser", help="only print the address")] = False,
    export: Annotated[
        Path | None,
        typer.Option(help="write the marks to this file as JSONL, '-': print them; serve nothing", metavar="FILE"),
    ] = None,
) -> None:
    """Serve the run's rows on localhost: browse, search, follow a row, mark it good or bad. Ctrl-C ends it."""
    from pipeline import marks
    from pipeline.config import load
    from pipeline.files import atomic
    from pipeline.viewer.app import serve

    run = path if path is not None else load(config).run
    if export is None:
        serve(run, port=port, browser=not no_browser)
        return
    lines = marks.lines(marks.read(run / marks.FILE).values())
    if str(export) == "-":
        print(lines.decode(), end="")
    else:
        with atomic(export) as file:
            file.write(lines)


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, or the folder of one result in it")],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="the other one")],
    as_json: JsonOption = False,
) -> None:
    """Print what changed between two runs: settings, inputs, code, rows and figures."""
    from pipeline import printed_compare
    from pipeline.compare import compare as between

    found = between(first, second)
    printed.as_json(found.plain()) if as_json else printed_compare.compared(found)


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
        printed.as_json(asdict(found))
        return
    printed.suspects(found)


@app.command()
def train(
    shards: Annotated[Path, typer.Option(help="a folder of shards: train-*.jsonl, validation-*.jsonl")],
    student: Annotated[str, typer.Option(help="a checkpoint folder, a Hub name, or 'embedded'")],
    out: Annotated[Path, typer.Option(help="where the student goes; a new folder")],
    layers: Annotated[int | None, typer.Option(min=1, help="cut the student to so many evenly spaced layers")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="a setting of the train stage: alpha=0.3", metavar="KNOB=VALUE")
    ] = None,
    accept_terms: AcceptTermsOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="only show what would be trained first; write nothing")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a student on any produced shards."""
    from dataclasses import asdict

    from pipeline.project import preview_alone, train_alone

    if dry_run:
        found = preview_alone(shards, student, layers, settings or [], accept_terms)
        command = ["stepdistill", "train", "--shards", str(shards), "--student", student, "--out", str(out)]
        command += [*_option("--layers", layers), *_option("--set", *(settings or ()))]
        command += _option("--accept-terms", accept_terms)
        printed.as_json(asdict(found)) if as_json else printed.first_batch(found, command)
        return
    details = train_alone(shards, student, out, layers, settings or [], accept_terms)
    printed.as_json(details) if as_json else printed.fields(details)
    if not as_json:
        print(f"student: {out / 'student'}")


@app.command()
def evaluate(
    model: Annotated[
        list[str],
        typer.Option(
            help="a checkpoint folder, a Hub name or 'embedded'; several are compared on the same rows",
            metavar="[NAME=]MODEL",
        ),
    ],
    data: Annotated[
        Path | None, typer.Option(help="rows with true labels; by default the eval sets of stages.yaml")
    ] = None,
    config: ConfigOption = DEFAULT,
    backend: Annotated[
        str | None, typer.Option(help="transformers or vllm; by default that of stages.evaluate")
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            "--gate",
            help="what the first model must reach, or the exit code is 1: 'accuracy >= 0.7'; by default stages.evaluate.gates",
            metavar="CONDITION",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure any models on the task's eval sets, or on a file of the same shape."""
    from pipeline import gates, results
    from pipeline.config import load
    from pipeline.project import evaluate_alone

    loaded = load(config)
    wanted = gates.read(gate or ())
    found, costs = evaluate_alone(loaded, model, data, backend=backend)
    names = [*next(iter(found.eval_sets.values())).models]
    if not wanted:
        wanted = gates.among(loaded.stages.get("evaluate", {}).get("gates", {}), names)
    verdicts = gates.judge(found, wanted, names[0])
    if as_json:
        printed.as_json(
            {
                **found.model_dump(mode="json"),
                "costs": costs.model_dump(mode="json"),
                "gates": [verdict.model_dump() for verdict in verdicts],
            }
        )
    else:
        printed.models(found, results.throughputs(costs))
        printed.compared(found)
        printed.gates(verdicts)
    if not all(verdict.passed for verdict in verdicts):
        raise typer.Exit(1)


@app.command()
def predict(
    model: Annotated[str, typer.Option(help="the folder of a trained student")],
    data: Annotated[str, typer.Option(help="a .jsonl, .csv or .parquet file, a folder of them, or hub:<data set>")],
    out: Annotated[
        Path | None, typer.Option(help="a new JSONL file, gone on with where a call was stopped; by default stdout")
    ] = None,
    rationale: Annotated[bool, typer.Option("--rationale", help="ask for the rationale as well")] = False,
    task: Annotated[
        str | None, typer.Option(help="label, rationale or response; by default the task of stages.yaml, or label")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="transformers or vllm; by default vllm where it is installed and there is a GPU")
    ] = None,
    input: Annotated[
        str | None,
        typer.Option(
            help="what the student is to see: '{{ column }}'; by default task.input, or the column input or text",
            metavar="TEMPLATE",
        ),
    ] = None,
    labels: Annotated[
        str | None, typer.Option(help="the only labels there are; by default task.labels", metavar="A,B,..")
    ] = None,
    label_type: Annotated[
        str | None, typer.Option(help="text, choice, number or equation; by default that of stages.yaml, or text")
    ] = None,
    id: Annotated[str | None, typer.Option(help="column with a row's id; by default its digest")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="of an answer; by default 32, of a response 256, of a rationale 96")
    ] = None,
    max_rationale_tokens: Annotated[int, typer.Option(min=1, help="of what --rationale asks for")] = 96,
    batch_size: Annotated[int | None, typer.Option(min=1, help="rows that are computed at once")] = None,
    config: ConfigOption = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Label a file with a trained student, one row out for each row in; stages.yaml is read where it is there."""
    from pipeline.config import load
    from pipeline.predict import predict as label
    from pipeline.progress import say_line

    if as_json and out is None:
        raise typer.BadParameter("--json: without --out, stdout is for the rows; name a file with --out")
    loaded = load(config) if config != DEFAULT or config.is_file() else None
    found = label(
        model,
        data,
        out=out,
        config=loaded,
        task=task,
        rationale=rationale,
        input=input,
        labels=None if labels is None else [name.strip() for name in labels.split(",")],
        label_type=label_type,
        id=id,
        backend=backend,
        max_new_tokens=max_new_tokens,
        max_rationale_tokens=max_rationale_tokens,
        batch_size=batch_size,
    )
    if as_json:
        printed.as_json(found.model_dump(mode="json"))
    elif out is None:
        say_line(found.told())
    else:
        print(found.told())


@app.command()
def report(
    config: ConfigOption = DEFAULT,
    compare: Annotated[
        list[Path] | None, typer.Option("--compare", help="a run folder to put beside it; repeatable", metavar="RUN")
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", help="html, markdown, json; several with commas", metavar="F,F")
    ] = "html,markdown,json",
    out: Annotated[
        Path | None, typer.Option(help="the folder to write to; by default report/ in the run", metavar="DIR")
    ] = None,
    audit: Annotated[
        bool, typer.Option("--audit/--no-audit", help="audit the run first and tell the verdict; reads every file")
    ] = True,
) -> None:
    """(Re)build the page of the run, with other runs beside it if wanted."""
    from pipeline import report as page
    from pipeline import results
    from pipeline.config import load
    from pipeline.files import RunError

    loaded = load(config)
    try:
        gates = results.verdicts(loaded) if "evaluate" in loaded.stages else []
    except RunError:  # figures of an earlier version: the page says so; damaged ones stop it below
        gates = []
    verdict = page.audited(loaded.run) if audit else None
    built = page.build(
        loaded.run,
        loaded.task.name,
        compare=compare or (),
        gates=gates,
        audit=verdict,
        formats=[name.strip() for name in formats.split(",") if name.strip()],
        out=out,
    )
    if verdict is not None and not verdict.whole:
        print(f"audit: {verdict.findings:,} findings; `stepdistill audit` names them")
    print(f"report: {built}")


def _dry_run(
    config: "Config",
    stages: list[str],
    settings: list[str],
    processes: int | None,
    command: list[str],
    *,
    as_json: bool,
) -> None:
    """``command`` is what trains with the same settings."""
    from dataclasses import asdict

    from pipeline import explore
    from pipeline.preview import Preview

    found = [
        explore.first_batch(config)
        if stage == "train"
        else explore.dry_run(config, stage, settings, processes=processes)
        for stage in stages
    ]
    if as_json:
        printed.as_json([asdict(one) for one in found])
        return
    for index, one in enumerate(found):
        if index:
            print()
        printed.first_batch(one, command) if isinstance(one, Preview) else printed.would_drop(one)


def _option(name: str, *values: object) -> list[str]:
    """The option as it is written on a command line, once for each value that is there."""
    return [word for value in values if value is not None for word in (name, str(value))]
