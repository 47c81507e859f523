"""Run stages: stream rows through a stage's function, split kept from dropped, check the conservation law, write the manifest last.

A stage whose key has a finished folder is not run again. What an interrupted run left behind has no manifest: a map or filter starts
its folder anew, a job goes on from what it finds there, and responses in the store are never asked for again.
"""

import itertools
import os
import platform
import shutil
import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import environment, outputs, provenance, shard, shift, sources
from pipeline.blocks import Block, Verdicts, Written, cut, judged, mapped
from pipeline.config import Config, load, permit, verify
from pipeline.files import InputError, RunError, clear, held_alone, make_folder, plain, private, sha256, write_json
from pipeline.outputs import Job, RowWriter, Totals
from pipeline.processes import Crew
from pipeline.progress import Advance, bar, say_line
from pipeline.provenance import Ask
from pipeline.records import Counts, Drop, Example, Manifest, OutputFile, Row, Source, features
from pipeline.stages import STAGES, Stage

ROWS_PER_FILE = 100_000
LOCK = ".lock"
WRITTEN_IN = (
    ".",
    *STAGES,
    "exports",
    "signatures",
    *(f"{store}{inside}" for store in ("responses", "answers") for inside in ("", "/teachers")),
)  # folders of a run where a killed process can leave a temporary file
RUN_FACTS = "run.json"  # times and the host: what may differ between two runs with the same bytes
ASIDE = "aside"  # there: the result was made while another one, or none, stayed in force


@dataclass(frozen=True)
class Outcome:
    """What became of one stage: its manifest, whether it ran now, and for how many seconds."""

    stage: str
    folder: Path
    manifest: Manifest
    ran: bool
    seconds: float


def run(
    config: Config | Path | str,
    stages: Iterable[str] | None = None,
    *,
    start: str | None = None,
    until: str | None = None,
    overrides: Iterable[str] = (),
    force: bool = False,
    processes: int | None = None,
) -> list[Outcome]:
    """Run all stages, or the named ones on what lies on disk; stages whose key is unchanged are passed over.

    ``start`` and ``until`` bound the stages (both included); ``processes`` stands in for the setting of this name. Raises InputError for
    settings and inputs that cannot be used and RunError for work that failed; whatever was finished before stays and is not done again.
    """
    if not isinstance(config, Config):
        config = load(config, overrides)
    chosen = choose(config, stages, start, until)
    verify(config)
    _permit(config, chosen, force=force)
    outcomes: list[Outcome] = []
    with at_work(config, processes) as crew:
        for stage in chosen:
            verified = any(outcome.ran for outcome in outcomes)
            outcomes.append(_stage(config, stage, crew, force=force, verified=verified))
    return outcomes


@contextmanager
def at_work(config: Config, processes: int | None = None) -> Iterator[Crew]:
    """Hold the run folder alone, rid of what a killed process was writing in it. Raises RunError where another process has it."""
    make_folder(config.run)
    with (
        held_alone(config.run / LOCK, config.run),
        Crew(config.engine, processes or config.processes, config.ray) as crew,
    ):
        for name in WRITTEN_IN:
            clear(config.run / name)
        yield crew


def aside(config: Config, crew: Crew) -> Iterator[Outcome]:
    """All stages one after the other, while what is in force stays so: each reads the results made here, and no ``current`` is written.

    Only inside ``at_work``, and for settings that were verified and permitted. Raises as ``run`` does.
    """
    settled: dict[str, Path] = {}
    for stage in config.stages:
        outcome = _stage(config, stage, crew, settled=settled, verified=True)
        settled[stage] = outcome.folder
        yield outcome


def _stage(
    config: Config,
    stage: str,
    crew: Crew,
    *,
    verified: bool,
    force: bool = False,
    settled: Mapping[str, Path] | None = None,
) -> Outcome:
    """One stage, run or passed over; ``settled`` names the results it reads where these are not those in force."""
    began = time.monotonic()
    asked = provenance.ask(config, stage, settled)
    if asked is None:
        missing = [parent for parent in config.parents(stage) if outputs.current(config.run, parent) is None]
        raise InputError(f"{stage}: reads {missing[0]}, which has no result yet; run `stepdistill run --until {stage}`")
    folder = provenance.finished_folder(config, stage, asked.key)
    if folder is not None and not force:
        if settled is None:
            outputs.point(config.run, stage, asked.key)
            say_line(f"{stage}: unchanged ({asked.key[:8]})")
        return Outcome(stage, folder, outputs.read_manifest(folder), False, 0.0)
    if not verified:
        verify(config, thorough=True)
    say_line(f"{stage}: running ({asked.key[:8]})")
    if STAGES[stage].kind == "job":
        crew.rest()  # an engine or a training has the machine to itself
    folder = _execute(config, STAGES[stage], asked, crew, in_force=settled is None)
    if settled is None:
        outputs.point(config.run, stage, asked.key)
    outcome = Outcome(stage, folder, outputs.read_manifest(folder), True, time.monotonic() - began)
    say_line(f"{stage}: {counts_line(outcome.manifest.counts)} in {outcome.seconds:.1f} s")
    for warning in shift.warnings(outcome.manifest):
        say_line(f"{stage}: warning: {warning}")
    return outcome


def _permit(config: Config, chosen: list[str], *, force: bool) -> None:
    """Raises InputError where a stage must not run that would; what has its result already asks for no permission."""
    try:
        permit(config, chosen)
    except InputError:  # to plan reads every input, so it is done only where it can make a difference
        permit(config, [step.stage for step in provenance.plan(config, chosen, force=force) if step.runs])


def choose(config: Config, stages: Iterable[str] | None, start: str | None, until: str | None) -> list[str]:
    """The stages meant, in order. Raises InputError for names that are none, or are switched off."""
    named = None if stages is None else list(stages)
    for name in [*(named or ()), *(name for name in (start, until) if name)]:
        if name not in STAGES:
            raise InputError(f"{plain(name)}: unknown stage; the stages are {', '.join(STAGES)}")
        if name not in config.stages:
            advice = f"remove '{name}: false'" if STAGES[name].on else "write down its settings"
            raise InputError(f"{config.file}: stages.{name}: this stage is switched off; {advice} to run it")
    order = list(config.stages)
    first = order.index(start) if start else 0
    last = order.index(until) if until else len(order) - 1
    return [name for name in order[first : last + 1] if not named or name in named]


def counts_line(counts: Counts) -> str:
    """``420 rows in, 408 kept, 12 dropped (near_duplicate 12)``."""
    line = f"{counts.rows_in:,} {counts.unit} in, {counts.kept:,} kept, {counts.dropped:,} dropped"
    return f"{line} ({reasons_line(counts)})" if counts.reasons else line


def reasons_line(counts: Counts) -> str:
    """Why rows were dropped, the most frequent reason first: ``near_duplicate 12, contaminated 3``."""
    ordered = sorted(counts.reasons.items(), key=lambda item: -item[1])
    return ", ".join(f"{reason} {number:,}" for reason, number in ordered)


def _execute(config: Config, stage: Stage, asked: Ask, crew: Crew, *, in_force: bool) -> Path:
    """Run one stage into its folder and write the manifest; ``in_force``: its result is about to be the one in force."""
    folder = config.run / stage.name / asked.key
    finished = folder / outputs.MANIFEST
    known = None if finished.exists() else _known(config, stage, asked)
    if finished.exists() or (stage.kind != "job" and folder.exists()):
        finished.unlink(missing_ok=True)
        shutil.rmtree(folder)
    make_folder(folder)
    for left in [*folder.rglob(".*.tmp")]:  # by a process that was killed
        if left.is_dir():
            shutil.rmtree(left)
        else:
            left.unlink(missing_ok=True)  # it may have lain in such a folder
    began = time.time()
    settings = config.stages[stage.name]
    inputs = {name: config.run / name / parent.key for name, parent in asked.parents.items()}
    tally = _Tally()
    writers = _Writers(folder, settings.get("rows_per_shard", ROWS_PER_FILE), tree=stage.tree)
    if stage.kind == "job":
        job = Job(folder, inputs, config.run / "responses")
        _split_job(stage.function(job, **settings), stage, tally, writers)
    elif stage.takes is None:
        _read_sources(config, stage, tally, writers)
    else:
        (source,) = inputs.values()
        _work_through(stage, source, settings, known, _truth(config), crew, tally, writers)
    if tally.rows_in != tally.kept + sum(tally.reasons.values()):
        dropped = sum(tally.reasons.values())
        raise RunError(
            f"{stage.name}: {tally.rows_in} {stage.unit} in, but {tally.kept} kept and {dropped} dropped; a row is unaccounted for"
        )
    files = writers.close()
    if stage.name == "shard":
        outputs.write_text(folder / shard.CARD, shard.card(asked.settings, asked.key, files))
    if stage.gives is Example:
        (source,) = inputs.values()
        _write_counts(stage, folder, source, _truth(config), tally)
    known = {file.path for file in files}
    extra = [
        OutputFile(path=str(path.relative_to(folder)), bytes=path.stat().st_size, rows=None, sha256=sha256(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and str(path.relative_to(folder)) not in known and not is_run_fact(path.name)
    ]
    counts = Counts(
        unit=stage.unit,
        rows_in=tally.rows_in,
        kept=tally.kept,
        dropped=sum(tally.reasons.values()),
        reasons=dict(sorted(tally.reasons.items())),
        rows_out=tally.rows_out,
    )
    manifest = Manifest(
        stage=stage.name,
        version=stage.version,
        key=asked.key,
        asked=asked.asked,
        settings=asked.settings,
        parents=asked.parents,
        sources=[_with_rows(source, tally) for source in asked.sources],
        identities=asked.identities,
        models=private(stage.models(settings, asked.identities)),
        code=environment.code(),
        environment=environment.environment(),
        counts=counts,
        outputs=[*files, *extra],
        root=outputs.root(files),
        features=features(stage.gives),
        details=tally.details,
        digest="0" * 64,
    )
    write_json(folder / RUN_FACTS, {**_run_facts(began), **({} if in_force else {ASIDE: True})})
    manifest = manifest.model_copy(update={"digest": outputs.manifest_digest(manifest)})
    outputs.write_manifest(folder, manifest)
    return folder


def is_run_fact(name: str) -> bool:
    """Files that hold times or speeds: they are no part of the result and stand in no manifest."""
    return name == RUN_FACTS or (name.startswith("run-") and name.endswith(".json"))


class _Tally:
    """What went in and what became of it."""

    def __init__(self) -> None:
        self.rows_in = self.kept = self.rows_out = 0
        self.reasons: Counter[str] = Counter()
        self.details: dict[str, Any] = {}
        self.read: Counter[str] = Counter()  # rows of each source file, by its name
        self.came, self.made, self.dropped = shift.Figures(), shift.Figures(), shift.Figures()


class _Writers:
    """The row files of one stage, by prefix, and its drops."""

    def __init__(self, folder: Path, rows_per_file: int, *, tree: bool) -> None:
        self.folder, self.rows_per_file, self.tree = folder, rows_per_file, tree
        self.drops = RowWriter(folder, outputs.DROPPED, None)
        self.kept: dict[str, RowWriter] = {}

    def to(self, prefix: str) -> RowWriter:
        if prefix not in self.kept:
            self.kept[prefix] = RowWriter(self.folder, prefix, self.rows_per_file, tree=self.tree)
        return self.kept[prefix]

    def close(self) -> list[OutputFile]:
        """Data first, then drops."""
        files = [file for _, writer in sorted(self.kept.items()) for file in writer.close()]
        return files + self.drops.close()


def _with_rows(source: Source, tally: _Tally) -> Source:
    name = source.uri.removeprefix(sources.HUB)
    rows = tally.read.get(name if source.bytes is None else Path(name).name)
    return source if rows is None else source.model_copy(update={"rows": rows})


def _read_sources(config: Config, stage: Stage, tally: _Tally, writers: _Writers) -> None:
    """A map over the source rows."""
    settings = config.stages[stage.name]

    def rows() -> Iterator[sources.Row]:
        for row in sources.read(config.task.inputs):
            tally.rows_in += 1
            tally.read[row[0].rpartition(":")[0]] += 1
            advance()
            yield row

    with bar(stage.name, None) as advance:
        for row in stage.function(rows(), **settings):
            _take(row, stage, tally, writers)


def _known(config: Config, stage: Stage, asked: Ask) -> Any:
    """What the result in force saves, where it was made from the same rows by the same code and its drops are as they were written."""
    last = outputs.current(config.run, stage.name)
    if stage.again is None or last is None:
        return None
    manifest = outputs.read_manifest(last)
    if (manifest.version, manifest.parents, manifest.identities) != (stage.version, asked.parents, asked.identities):
        return None
    drops = last / f"{outputs.DROPPED}.jsonl"
    if not drops.is_file() or sha256(drops) not in {
        file.sha256 for file in manifest.outputs if file.path == drops.name
    }:
        return None
    return stage.again(manifest.settings, asked.settings, outputs.read_drops(last))


def _work_through(
    stage: Stage,
    source: Path,
    settings: dict[str, Any],
    known: Any,
    truth: shift.Truth,
    crew: Crew,
    tally: _Tally,
    writers: _Writers,
) -> None:
    """A map or filter over the rows of another stage, block by block."""
    blocks = list(cut(source, together=stage.together))
    weight = sum(map(len, blocks))
    total = outputs.read_manifest(source).counts.rows_out
    with bar(stage.name, total if stage.corpus is None else 2 * total) as advance:
        if stage.corpus is None:
            shared = (stage.name, settings, known, truth)
            found = crew.in_order(_apart, ((block,) for block in blocks), weight=weight, shared=shared)
        else:
            found = _together(stage, blocks, weight, settings, truth, crew, tally, advance)
        read = 0
        for written in found:
            read += written.rows_in
            for prefix, lines in sorted(written.kept.items()):
                writers.to(prefix).write_lines(lines.data, lines.digests, lines.rows)
                tally.rows_out += lines.rows
            writers.drops.write_lines(written.drops.data, written.drops.digests, written.drops.rows)
            tally.rows_in += written.rows_in * stage.units(settings)
            tally.kept += written.units
            tally.reasons += written.reasons
            shift.add(tally.came, written.came)
            shift.add(tally.made, written.made)
            shift.add(tally.dropped, written.dropped)
            advance(written.rows_in)
    if read != total:
        problem = f"{read:,} rows in its files, {total:,} in its manifest"
        raise RunError(f"{source}: {problem}; they were changed after they were written: run `stepdistill audit`")


def _apart(shared: tuple[str, dict[str, Any], Any, shift.Truth], block: Block) -> Written:
    """What becomes of the rows of one block, where that depends on no others."""
    name, settings, known, truth = shared
    stage = STAGES[name]
    assert stage.takes is not None
    data = block.read()
    rows: list[Any] = block.rows(stage.takes, data)
    if stage.kind == "filter":
        verdicts = stage.function(rows, **settings) if known is None else stage.function(rows, known, **settings)
        return judged(data, verdicts, name, truth)
    if stage.gives is not Example:
        return mapped(stage.function(rows, **settings), len(rows), stage.prefix, stage.stands_for)
    made = list(stage.function(rows, **settings))
    written = mapped(made, len(rows), stage.prefix, stage.stands_for)
    gone = {row.id for row in made if isinstance(row, Drop)}
    written.came = shift.measured(rows, truth)
    written.made = shift.measured([row for row in made if isinstance(row, Example)], truth)
    written.dropped = shift.measured([row for row in rows if row.id in gone], truth)
    return written


def _together(
    stage: Stage,
    blocks: list[Block],
    weight: int,
    settings: dict[str, Any],
    truth: shift.Truth,
    crew: Crew,
    tally: _Tally,
    advance: Advance,
) -> Iterator[Written]:
    """A filter that needs the whole corpus: sketch all blocks, resolve, and go through them again with the verdicts."""
    assert stage.corpus is not None
    prepared = stage.corpus.prepare(**settings)
    counts: list[int] = []
    sketches: list[Any] = []
    tasks = ((block,) for block in blocks)
    for rows, sketch in crew.in_order(_sketch, tasks, weight=weight, shared=(stage.name, settings, prepared)):
        counts.append(rows)
        sketches.append(sketch)
        advance(rows)
    verdicts = stage.corpus.resolve(sketches, prepared, **settings)
    parts = _parts(verdicts, counts, stage.name, tally)
    yield from crew.in_order(_split, zip(blocks, parts, strict=True), weight=weight, shared=(stage.name, truth))


def _sketch(shared: tuple[str, dict[str, Any], Any], block: Block) -> tuple[int, Any]:
    name, settings, prepared = shared
    corpus = STAGES[name].corpus
    assert corpus is not None
    rows = block.rows(corpus.view)
    return len(rows), corpus.sketch(rows, prepared, **settings)


def _split(shared: tuple[str, shift.Truth], block: Block, verdicts: list[Drop | None]) -> Written:
    name, truth = shared
    return judged(block.read(), verdicts, name, truth)


def _parts(verdicts: Verdicts, counts: list[int], name: str, tally: _Tally) -> Iterator[list[Drop | None]]:
    """The verdicts of each block, and at their end the facts for the manifest. Raises RunError where there are too few or too many."""
    given = _ended(verdicts, tally)
    for count in counts:
        yield list(itertools.islice(given, count))
    if next(given, _NOTHING) is not _NOTHING:
        raise RunError(f"{name}: as many verdicts as rows are needed, there were more")


def _ended(verdicts: Verdicts, tally: _Tally) -> Iterator[Drop | None]:
    tally.details = dict((yield from verdicts) or {})


def _split_job(rows: Generator[Any, None, Totals], stage: Stage, tally: _Tally, writers: _Writers) -> None:
    with closing(rows):  # an engine that a job has started ends here, also on Ctrl-C
        while True:
            try:
                row = next(rows)
            except StopIteration as end:
                totals: Totals = end.value
                break
            _take(row, stage, tally, writers)
    tally.rows_in = totals.rows_in
    tally.details = dict(totals.details)


_NOTHING: Any = object()


def _take(row: Row, stage: Stage, tally: _Tally, writers: _Writers) -> None:
    if isinstance(row, Drop):
        tally.reasons[row.reason] += 1
        writers.drops.write(row.line())
        return
    tally.kept += stage.stands_for(row)
    tally.rows_out += 1
    writers.to(stage.prefix(row)).write(row.line())


def _truth(config: Config) -> shift.Truth:
    labels = config.task.labels
    return shift.Truth(config.stages["parse"]["label_type"], None if labels is None else tuple(labels))


def _write_counts(stage: Stage, folder: Path, source: Path, truth: shift.Truth, tally: _Tally) -> None:
    """Counts over the examples kept, for the stage after, and what became of those that came, for the manifest."""
    if stage.kind == "map":
        before, kept = tally.came, tally.made
    else:
        if stage.kind == "job" and tally.reasons:
            gone = {drop.id for drop in outputs.read_drops(folder)}
            for block in cut(source):
                rows = [row for row in block.rows(Example) if row.id in gone]
                shift.add(tally.dropped, shift.measured(rows, truth))
        before = shift.read(source)
        kept = shift.less(before, tally.dropped)
    tally.details["shift"] = shift.change(before, tally.dropped).model_dump(mode="json")
    outputs.write_text(folder / shift.COUNTS, shift.encoded(kept))


def _run_facts(began: float) -> dict[str, Any]:
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began)),
        "seconds": round(time.time() - began, 3),
        "host": platform.node(),
        "cores": os.cpu_count(),
    }
