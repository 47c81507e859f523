"""trace: one row from its source to the shard and back, by any id it ever had.

An id is that of an input row, a response (``<row>#0``), a request in the response store, an example or a shard row
(``<row>/label``); the first characters will do where they are unambiguous.

Limits: the files are searched line by line; a run of a million rows takes seconds.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pipeline import judge, outputs, responses
from pipeline.files import InputError, RunError, plain
from pipeline.records import Example, Prompt, Response
from pipeline.sample import TEMPLATES, proof
from pipeline.stages import STAGES

SHORTEST = 4  # characters that an id may be shortened to


@dataclass(frozen=True)
class Event:
    """What happened to the row in one stage: ``verdict`` is 'kept', 'dropped' or 'stored', ``place`` the file and line that say so."""

    stage: str
    verdict: str
    place: str
    row: dict[str, Any]


def trace(run: Path, name: str) -> list[Event]:
    """Everything that lies on disk about one row, in the order of the stages.

    Raises InputError where no row, or more than one, has that id.
    """
    row = find(run, name)
    events = []
    for stage in STAGES:
        folder = outputs.current(run, stage)
        if folder is None or stage == "evaluate":
            continue
        for path, number, line in _grep(folder, row):
            found = json.loads(line)
            if _belongs(found, row):
                dropped = path.name == f"{outputs.DROPPED}.jsonl"
                events.append(Event(stage, "dropped" if dropped else "kept", f"{path}:{number}", found))
                if stage == "sample" and not dropped:
                    events += _stored(run, folder, found)
                if stage == "judge" and found.get("judgement") is not None:
                    events += _judged(run, folder, found)
    return events


def find(run: Path, name: str) -> str:
    """The id of the input row that ``name`` belongs to. Raises InputError."""
    wanted = row_of(name)
    found: set[str] = set()
    for stage in ("ingest", "sample"):
        folder = outputs.current(run, stage)
        if folder is None:
            continue
        for _, _, line in _grep(folder, wanted):
            row = json.loads(line)
            own = row_of(str(row["id"]))
            if own == wanted:
                return wanted
            if len(wanted) >= SHORTEST and (own.startswith(wanted) or str(row.get("request", "")).startswith(wanted)):
                found.add(own)
    if not found:
        raise InputError(
            f"{plain(name)}: no row of {run} has this id; `stepdistill show ingest` lists rows with their ids"
        )
    if len(found) > 1:
        raise InputError(
            f"{plain(name)}: {len(found)} rows begin so ({', '.join(sorted(found)[:3])} ..); give more of the id"
        )
    return found.pop()


def row_of(name: str) -> str:
    """The id of the input row within the id of a response (``<row>#0``) or a shard row (``<row>/label``)."""
    return re.split("[/#]", name, maxsplit=1)[0]


def _grep(folder: Path, text: str) -> Iterator[tuple[Path, int, bytes]]:
    """Lines of a finished folder's row files and drops that hold ``text``, with file and line number."""
    wanted = json.dumps(text, ensure_ascii=False)[1:-1].encode()
    names = [file.path for file in outputs.row_files(folder)] + [f"{outputs.DROPPED}.jsonl"]
    for name in names:
        with (folder / name).open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if wanted in line:
                    yield folder / name, number, line


def _belongs(found: dict[str, Any], row: str) -> bool:
    return row_of(str(found["id"])) == row


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
        (f"{path}:{number}", record)
        for path, number, record in responses.read_store(run / "responses")
        if record.key == request
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
    for path, _, line in _grep(folder, row):
        if path.name != f"{outputs.DROPPED}.jsonl":
            prompt = Prompt.read(line)
            if prompt.id == row:
                return prompt
    return None
