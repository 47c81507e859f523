"""audit: is everything in a run folder what was written, and does every training row lead back to a stored response?

Checked: every manifest against its own digest and its parents', every file against its manifest (a changed row is named by its line),
the conservation law and the counts by reason, that a stage's kept and dropped ids are its input's, every record of the response
store, and each shard row's way back through example and response to the store.

Not checked: that a model really gave the stored answer, and that the source files still are what they were (``status`` tells that).
"""

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import xxhash
from msgspec import DecodeError

from pipeline import outputs, responses
from pipeline import shard as shards
from pipeline.files import InputError, RunError, line_digest, plain, sha256
from pipeline.records import Example, Manifest, Response, Target, TrainingRow
from pipeline.runner import is_run_fact
from pipeline.stages import STAGES

KEY = re.compile(r"[0-9a-f]{32}")


def audit(run: Path, *, full: bool = False, sample: int | None = None, seed: int = 0) -> Iterator[str]:
    """Problems found in a run folder, one line each with file and row; nothing when all is well.

    ``full`` also checks finished results that are no longer in force; ``sample`` follows only so many shard rows back (files are
    always hashed in full). Raises InputError where there is no run.
    """
    if not any((run / stage).is_dir() for stage in STAGES):
        raise InputError(f"{run}: no run here; give the folder that `run:` in stages.yaml names")
    manifests: dict[str, tuple[Path, Manifest]] = {}
    for stage in STAGES:
        if not (run / stage).is_dir():
            continue
        folders = {outputs.current(run, stage)} - {None}
        if not folders and (run / stage / "current").exists():
            yield f"{run / stage / 'current'}: names no finished result"
        if full:
            folders |= {path.parent for path in (run / stage).glob(f"*/{outputs.MANIFEST}")}
        for folder in sorted(path for path in folders if path is not None):
            try:
                manifest = outputs.read_manifest(folder)
            except RunError as error:
                yield str(error)
                continue
            if folder == outputs.current(run, stage):
                manifests[stage] = (folder, manifest)
            yield from _check_folder(run, stage, folder, manifest)
    store = run / "responses"
    if store.is_dir():
        yield from responses.verify(store)
    yield from _check_rows(manifests, store, sample, seed)


def _check_folder(run: Path, stage: str, folder: Path, manifest: Manifest) -> Iterator[str]:
    place = folder / outputs.MANIFEST
    if manifest.stage != stage or manifest.key != folder.name:
        yield f"{place}: says {manifest.stage} {manifest.key}, but lies under {stage}/{folder.name}"
    for parent, record in manifest.parents.items():
        path = run / parent / record.key / outputs.MANIFEST
        if not KEY.fullmatch(record.key) or parent not in STAGES or not path.is_file():
            yield f"{place}: parents.{plain(parent)}: no result {plain(record.key)} on disk"
        elif sha256(path) != record.manifest:
            yield f"{path}: not the manifest that {stage} was made from"
    counts = manifest.counts
    if counts.rows_in != counts.kept + counts.dropped or counts.dropped != sum(counts.reasons.values()):
        yield f"{place}: counts: {counts.rows_in} in is not {counts.kept} kept + {counts.dropped} dropped"
    listed = set()
    for file in manifest.outputs:
        path = folder / file.path
        listed.add(file.path)
        if not path.resolve().is_relative_to(folder.resolve()):
            yield f"{place}: outputs: {plain(file.path)} points out of the folder"
        elif not path.is_file():
            yield f"{path}: missing"
        elif path.stat().st_size != file.bytes or sha256(path) != file.sha256:
            yield from _changed_rows(path)
        elif file.rows is not None and sum(1 for _ in path.open("rb")) != file.rows:
            yield f"{path}: has not the {file.rows} rows that the manifest says"
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and name not in listed and name != outputs.MANIFEST and not is_run_fact(path.name):
            yield f"{path}: not in the manifest"
    if stage in STAGES:
        yield from _check_drops(folder, manifest)


def _changed_rows(path: Path) -> Iterator[str]:
    """Which rows of a changed file differ, by the digests beside it."""
    beside = path.with_suffix(".xxh3")
    if path.suffix != ".jsonl" or not beside.is_file():
        yield f"{path}: changed since its manifest was written"
        return
    digests = beside.read_bytes().split(b"\n")
    found = False
    with path.open("rb") as rows:
        count = 0
        for count, line in enumerate(rows, 1):
            if count > len(digests) or line_digest(line.rstrip(b"\n")).encode() != digests[count - 1]:
                found = True
                yield f"{path}:{count}: this row was changed since its manifest was written"
    if count != len(digests) - 1:
        yield f"{path}: has {count} rows, was written with {len(digests) - 1}"
    elif not found:
        yield f"{path}: changed since its manifest was written (line endings)"


def _check_drops(folder: Path, manifest: Manifest) -> Iterator[str]:
    try:
        reasons = Counter(drop.reason for drop in outputs.read_drops(folder))
    except (RunError, OSError) as error:
        yield plain(str(error))
        return
    if dict(reasons) != manifest.counts.reasons:
        yield f"{folder / 'dropped.jsonl'}: counts by reason are not the manifest's"


def _check_rows(
    manifests: dict[str, tuple[Path, Manifest]], store: Path, sample: int | None, seed: int
) -> Iterator[str]:
    """Row by row: filters keep or drop exactly what they read; shard rows lead back to the store."""
    folders = {stage: folder for stage, (folder, _) in manifests.items()}
    try:
        for stage, (folder, manifest) in manifests.items():
            if STAGES[stage].kind == "filter" or STAGES[stage].adds:
                yield from _check_filter(
                    stage, folder, [folder.parents[1] / name / parent.key for name, parent in manifest.parents.items()]
                )
        if "shard" in folders:
            yield from _check_lineage(manifests, store, sample, seed)
    except RunError as error:
        yield str(error)
    except FileNotFoundError as error:
        yield f"{error.filename}: missing"


def _check_filter(stage: str, folder: Path, parents: list[Path]) -> Iterator[str]:
    """A filter passes lines through: kept lines are the input's lines in order, and the rest are its drops.

    In a stage that adds something, the same holds for the rows without it.
    """
    dropped = {drop.id for drop in outputs.read_drops(folder)}
    kept = outputs.lines(folder)
    added = STAGES[stage].adds
    if added:
        kept = (_without(added, line) for line in kept)
    for parent in parents:
        for line in outputs.lines(parent):
            try:
                row = Example.read(line).id
            except DecodeError:
                return  # a row that cannot be read was named already, with its line
            if row in dropped:
                dropped.remove(row)
            elif next(kept, None) != (_without(added, line) if added else line):
                yield f"{folder}: row {plain(row)} of {parent.parent.name} is neither kept as it was nor dropped"
                return
    if dropped or next(kept, None) is not None:
        yield f"{folder}: holds rows that {stage} never read"


def _without(fields: tuple[str, ...], line: bytes) -> bytes:
    """The line of an example without what a later stage sets in it."""
    try:
        return Example.read(line).changed(**dict.fromkeys(fields)).line()
    except DecodeError:
        return line


def _check_lineage(
    manifests: dict[str, tuple[Path, Manifest]], store: Path, sample: int | None, seed: int
) -> Iterator[str]:
    shard_folder, shard = manifests["shard"]
    chain = dict(_ancestors(shard_folder, shard))
    if not {"parse", "sample"} <= set(chain):
        yield f"{shard_folder}: its parse and sample results are not on disk; no row can be followed back"
        return
    last_filter = next(iter(shard.parents))
    terms = shards.terms_of(shard.settings)
    examples = {example.id: _Known.of(example, terms) for example in outputs.read(chain[last_filter], Example)}
    answers = {answer.id: (answer.request, _short(answer.text)) for answer in outputs.read(chain["sample"], Response)}
    stored = {record.key: _short(record.text) for _, _, record in responses.read_store(store)} if store.is_dir() else {}
    rows: Iterable[TrainingRow] = outputs.read(shard_folder, TrainingRow)
    if sample is not None:
        found = list(rows)
        rows = random.Random(seed).sample(found, min(sample, len(found)))
    for row in rows:
        where = f"{shard_folder}: row {plain(row.id)}"
        example = examples.get(row.example)
        if example is None:
            yield f"{where}: no example {plain(row.example)} in {last_filter}"
            continue
        request, text = answers.get(example.response, (None, None))
        if _short(row.completion) != example.targets.get(row.task):
            yield f"{where}: not the {row.task} of its example"
        elif _short(row.prompt[-example.input_length :]) != example.input:
            yield f"{where}: not the input of its example"
        elif request is None:
            yield f"{where}: no response {plain(example.response)} in sample"
        elif request not in stored:
            yield f"{where}: its response {request} is not in the store"
        elif stored[request] != text:
            yield f"{where}: its response {request} reads differently in the store"
        elif example.judgement is not None and example.judgement not in stored:
            yield f"{where}: its judgement {example.judgement} is not in the store"


@dataclass(frozen=True, slots=True)
class _Known:
    """What is remembered of an example: digests, not texts, so that a million rows fit."""

    response: str
    input: bytes
    input_length: int
    targets: Mapping[Target, bytes]
    judgement: str | None

    @classmethod
    def of(cls, example: Example, terms: shards.Terms) -> "_Known":
        found = shards.completions(example, terms)
        targets = {} if isinstance(found, shards.Refused) else {name: _short(text) for name, text in found.items()}
        judgement = None if example.judgement is None else example.judgement.request
        return cls(example.response, _short(example.input), len(example.input), targets, judgement)


def _short(text: str) -> bytes:
    return xxhash.xxh3_128_digest(text.encode())


def _ancestors(folder: Path, manifest: Manifest) -> Iterator[tuple[str, Path]]:
    for name, parent in manifest.parents.items():
        path = folder.parents[1] / name / parent.key
        yield name, path
        yield from _ancestors(path, outputs.read_manifest(path))
