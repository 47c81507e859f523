"""trace: one row from its source to the shard and back, by any id it ever had; a student to what it was trained on.

An id is that of an input row, a response (``<row>#0``), a request in the response store, an example or a training row (``<row>/label``),
or the place in the source (``train.jsonl:17``); the first characters of an id will do where they are unambiguous. A student is named by
its folder, or its file of weights, wherever that lies, by the SHA-256 of its weights, or by the key of its training.

Limits: rows of eval sets and predictions are not followed. The first trace of a large run makes the indexes (see ``pipeline.lineage``).
"""

import os
import re
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from pipeline import judge, lineage, outputs, responses
from pipeline.files import InputError, RunError, plain, sha256
from pipeline.lineage import row_of
from pipeline.records import Example, Manifest, Prompt, Response
from pipeline.requests import TEACHER
from pipeline.sample import TEMPLATES, proof
from pipeline.stages import STAGES
from pipeline.train import BASELINE, STUDENT

SHORTEST = 4  # characters that an id may be shortened to
SHOWN = 3  # rows that are named where there are many
FOLLOWED = [stage for stage in STAGES if stage != "evaluate"]
WEIGHTS = re.compile(r"(model|adapter_model|pytorch_model)[\w.-]*\.(safetensors|bin)")


@dataclass(frozen=True)
class Event:
    """What happened to the row in one stage: ``verdict`` is 'kept', 'dropped' or 'stored', ``place`` the file and line that say so."""

    stage: str
    verdict: str
    place: str
    row: dict[str, Any]


def trace(run: Path, name: str) -> list[Event]:
    """Everything that lies on disk about one row, in the order of the stages.

    Raises InputError where no row, or more than one, has that id, and RunError where a file is missing or damaged.
    """
    lineage.prepare(run, FOLLOWED)
    row = find(run, name)
    events: list[Event] = []
    for stage in FOLLOWED:
        folder = outputs.current(run, stage)
        if folder is None:
            continue
        for hit in lineage.find(run, folder, "id", row):
            events.append(Event(stage, "dropped" if hit.dropped else "kept", hit.place, hit.row))
            if stage == "sample" and not hit.dropped:
                events += _stored(run, folder, hit.row)
            if stage == "judge" and hit.row.get("judgement") is not None:
                events += _judged(run, folder, hit.row)
    return events


def find(run: Path, name: str) -> str:
    """The id of the input row that ``name`` belongs to. Raises InputError."""
    there = {stage: folder for stage in FOLLOWED if (folder := outputs.current(run, stage)) is not None}
    asked = [(stage, kind) for stage in ("ingest", "sample", "judge") for kind in lineage.LOOKED_UP[stage]]
    asked = [(stage, kind) for stage, kind in asked if stage in there and (stage, kind) != ("judge", "id")]
    suffix = name.removeprefix(row_of(name))  # what makes it the id of a response or training row
    for stage, kind in asked:
        wanted = row_of(name) if kind == "id" else name
        found = {row_of(hit.row["id"]) for hit in islice(lineage.find(run, there[stage], kind, wanted), SHOWN + 1)}
        if found and kind == "id":
            return _having(run, there, _only(name, found, "rows share this id"), suffix)
        if found:
            return _only(name, found, "rows share this answer")
    wanted, found = row_of(name), set()
    for stage, kind in asked:
        if len(wanted) >= SHORTEST and kind != "source" and len(found) <= SHOWN:
            for hit in lineage.find(run, there[stage], kind, wanted, beginning=True):
                found.add(row_of(hit.row["id"]))
                if len(found) > SHOWN:
                    break
    if not found:
        raise InputError(
            f"{plain(name)}: no row of {run} has this id; `stepdistill show ingest` lists rows with their ids"
        )
    return _having(run, there, _only(name, found, "rows begin so"), suffix)


def _having(run: Path, there: dict[str, Path], row: str, suffix: str) -> str:
    """The row, if it has a response or training row whose id ends so. Raises InputError."""
    if ("sample" if suffix.startswith("#") else "shard") not in there or not suffix:
        return row  # nothing has given out such ids
    hits = (hit for folder in there.values() for hit in lineage.find(run, folder, "id", row))
    ids = dict.fromkeys(hit.row["id"] for hit in hits)
    if row + suffix not in ids:
        raise InputError(f"{plain(row + suffix)}: no row of {run} has this id; there are {plain(', '.join(ids), 400)}")
    return row


def _only(name: str, found: set[str], told: str) -> str:
    if len(found) > 1:
        first = sorted(found)
        many, more = (f"more than {SHOWN}", ", ..") if len(first) > SHOWN else (str(len(first)), "")
        raise InputError(
            f"{plain(name)}: {many} {told} ({plain(', '.join(first[:SHOWN]))}{more}); give more of the id, or one of theirs"
        )
    return found.pop()


def _stored(run: Path, folder: Path, found: dict[str, Any]) -> list[Event]:
    """The response store's own record of a response, and the prompt that it answered, proved by the request's key."""
    response = msgspec.convert(found, Response)
    prompt = _prompt(run, response.prompt)
    number = int(response.id.rpartition("#")[2])
    asked = proof(prompt, folder, outputs.read_manifest(folder), number) if prompt is not None else None
    return _proved(run, "sample", folder, response.request, asked)


def _judged(run: Path, folder: Path, found: dict[str, Any]) -> list[Event]:
    """The same for a judgement."""
    example = msgspec.convert(found, Example)
    assert example.judgement is not None
    asked = judge.proof(example, folder, outputs.read_manifest(folder))
    return _proved(run, "judge", folder, example.judgement.request, asked)


def _proved(
    run: Path, stage: str, folder: Path, request: str, asked: tuple[dict[str, Any], str, str] | None
) -> list[Event]:
    """What was ``asked`` (the prompt as it was sent, the request's family and key), and the answer in the store."""
    records = [
        (hit.place, responses.record(hit.raw, hit.place))
        for hit in lineage.find_stored(run, request)
        if hit.raw.endswith(b"\n")  # else it is being written just now
    ]
    families = {record.family for _, record in records}  # an answer may serve a request that only allows more tokens
    events = []
    if asked is not None:
        sent, family, key = asked
        proven = request == key or family in families
        said = "its key is the request's" if proven else "its key is NOT the request's: template or row changed"
        shown = (folder / TEMPLATES).is_file()
        events.append(Event(stage, "prompt", f"{folder / TEMPLATES} ({said})" if shown else said, sent))
    return events + [Event(stage, "stored", place, record.model_dump(mode="json")) for place, record in records]


def _prompt(run: Path, row: str) -> Prompt | None:
    folder = outputs.current(run, "ingest")
    if folder is None:
        raise RunError(f"{run}: ingest has no result")
    for hit in lineage.find(run, folder, "id", row):
        if not hit.dropped:
            return Prompt.read(hit.raw)
    return None


def origin(run: Path, name: str) -> dict[str, Any] | None:
    """What a student was trained on: its training, shards, their stages and sources, and the first rows; None where ``name`` is no student.

    ``name`` is a folder, a file of weights or its SHA-256, the key of a training, or the SHA-256 of its manifest. A folder without
    weights that is no path, but a bare name, may stand beside a row that is called so. Raises InputError for weights that no training of
    this run wrote, and for an empty name.
    """
    if not name.strip():
        raise InputError("trace: an empty name; give an id, or the folder of a student")
    wanted = name
    if WEIGHTS.fullmatch(Path(name).name) and Path(name).is_file():
        wanted = sha256(Path(name))
    elif os.path.isdir(name):  # noqa: PTH112 - an id may be too long for a path, which Path(name) raises for
        weights = sorted(path for path in Path(name).iterdir() if WEIGHTS.fullmatch(path.name))
        inside = Path(name).resolve()
        if not weights and inside.parent == (run / "train").resolve():
            wanted = inside.name
        elif weights:
            wanted = sha256(weights[0])
        elif os.sep in name or name in (os.curdir, os.pardir):
            raise InputError(f"{plain(name)}: no weights in this folder; name the folder of a student")
    if not re.fullmatch(r"[0-9a-f]{32}([0-9a-f]{32})?", wanted):
        return None
    for place in sorted((run / "train").glob(f"*/{outputs.MANIFEST}")):
        manifest = outputs.read_manifest(place.parent)
        files = [file for file in manifest.outputs if file.sha256 == wanted and WEIGHTS.fullmatch(Path(file.path).name)]
        if files or wanted in (manifest.key, manifest.digest, sha256(place)):
            models = [str(Path(file.path).parent) for file in files]
            return _origin(run, place.parent, manifest, models or [STUDENT, BASELINE])
    if wanted != name:
        raise InputError(f"{plain(name)}: no training in {run} wrote these weights; name its run's stages.yaml with -c")
    return None


def _origin(run: Path, folder: Path, manifest: Manifest, models: list[str]) -> dict[str, Any]:
    chain = [(folder, manifest)]
    while parents := [(name, parent) for name, parent in chain[-1][1].parents.items() if name in STAGES]:
        ((name, parent),) = parents
        before = run / name / plain(parent.key)
        if "/" in parent.key or not before.is_dir() or sha256(before / outputs.MANIFEST) != parent.manifest:
            raise RunError(f"{before}: not the result that {chain[-1][0]} was made from; run `stepdistill audit`")
        chain.append((before, outputs.read_manifest(before)))
    by_stage = {found.stage: (place, found) for place, found in chain}
    shards, shard = by_stage["shard"]
    trained = islice((hit for _, hit in lineage.scan(folder) if not hit.dropped), SHOWN)
    return {
        "checkpoints": [str(folder / model) for model in models if (folder / model).is_dir()],
        "trained by": str(folder / outputs.MANIFEST),
        "training rows": manifest.counts.kept,
        "dropped by train": manifest.counts.reasons,
        "shards": str(shards / outputs.MANIFEST),
        "manifest of the shards": manifest.parents["shard"].manifest,
        "root of the shards": shard.root,
        "teachers": [
            name.removeprefix(TEACHER)
            for name in (by_stage["sample"][1].identities if "sample" in by_stage else {})
            if name.startswith(TEACHER)
        ],
        "rows": {
            found.stage: f"{found.counts.rows_in:,} {found.counts.unit} in, {found.counts.kept:,} kept ({place})"
            for place, found in reversed(chain)
        },
        "sources": {
            source.uri: f"{'unknown' if source.rows is None else format(source.rows, ',')} rows, SHA-256 {source.sha256}"
            for source in (by_stage["ingest"][1].sources if "ingest" in by_stage else [])
        },
        "first rows": {hit.row["id"]: hit.place for hit in trained},
    }
