"""Training rows lead back to their example, their response and the record in the store, and say what they say.

    shard/690f..../train-00000.jsonl:17: row r17/label: not the label of its example

``--full`` makes every row again (``derivation``), so there is nothing left to follow. Otherwise ``--sample K`` rows are followed, or all of
a data set of at most ``FEW``; of a larger one none, which a note says. Limits: without ``--full`` a row's example is taken as it stands.
"""

import random
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from msgspec import DecodeError

from pipeline import outputs
from pipeline import shard as shards
from pipeline.audits import Audited, Finding, Result
from pipeline.audits.answers import LONGEST, Answer
from pipeline.blocks import cut
from pipeline.files import RunError, plain
from pipeline.records import Example, Response, TrainingRow, decoded
from pipeline.responses import HEAD, segments

FEW: Final = 20_000  # training rows that are all followed


class Named(msgspec.Struct, frozen=True):
    """What a row is found by."""

    id: str


class Place(NamedTuple):
    """A training row and where it stands."""

    path: Path
    line: int
    row: TrainingRow


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on training rows and their way back."""
    shard = audited.results.get("shard")
    if shard is None or audited.full:
        return
    total = sum(file.rows or 0 for file in outputs.row_files(shard.folder))
    if audited.sample is None and total > FEW:
        problem = f"none of {total:,} training rows was followed back; --sample K follows K of them, --full makes every row again"
        audited.notes.append(Finding(shard.folder, problem))
        return
    try:
        yield from _check(audited, shard, total)
    except (RunError, DecodeError, KeyError, TypeError) as error:
        yield Finding(shard.folder, f"its rows cannot be followed back: {plain(str(error))}")
    except FileNotFoundError as error:
        yield Finding(Path(error.filename), "missing")


def _check(audited: Audited, shard: Result, total: int) -> Iterator[Finding]:
    chain = dict(audited.before(shard))
    if not {"parse", "sample"} <= set(chain):
        yield Finding(shard.folder, "its parse and sample results are not on disk; no row can be followed back")
        return
    chosen = [*_chosen(shard.folder, total, audited.sample, audited.seed)]
    last = next(iter(shard.manifest.parents))
    terms = shards.terms_of(shard.manifest.settings)
    lines = _lines(chain[last].folder, {place.row.example for place in chosen})
    examples = {example.id: example for example in map(Example.read, lines)}
    lines = _lines(chain["sample"].folder, {example.response for example in examples.values()})
    responses = {response.id: response for response in map(Response.read, lines)}
    keys = {response.request for response in responses.values()}
    judged = {example.judgement.request for example in examples.values() if example.judgement is not None}
    stored = {answer.key: answer for answer in _stored(audited.store, keys | judged)}
    for path, line, row in chosen:
        example = examples.get(row.example)
        problem = (
            f"no example {plain(row.example)} in {last}"
            if example is None
            else _problem(row, example, terms, responses.get(example.response), stored)
        )
        if problem is not None:
            yield Finding(path, f"row {plain(row.id)}: {problem}", line)


def _problem(
    row: TrainingRow, example: Example, terms: shards.Terms, response: Response | None, stored: dict[str, Answer]
) -> str | None:
    found = shards.completions(example, terms)
    if isinstance(found, shards.Refused) or row.completion != found.get(row.task):
        return f"not the {row.task} of its example"
    if row.prompt != shards.student_prompt(row.task, example.input):
        return "not the input of its example"
    if response is None:
        return f"no response {plain(example.response)} in sample"
    if response.request not in stored:
        return f"its response {plain(response.request)} is not in the store"
    if stored[response.request].text != response.text:
        return f"its response {plain(response.request)} reads differently in the store"
    if example.judgement is not None and example.judgement.request not in stored:
        return f"its judgement {plain(example.judgement.request)} is not in the store"
    return None


def _chosen(folder: Path, total: int, sample: int | None, seed: int) -> Iterator[Place]:
    """So many rows of the shards, or all of them, with their places."""
    wanted = None if sample is None else {*random.Random(seed).sample(range(total), min(sample, total))}
    number = 0
    for file in outputs.row_files(folder):
        with (folder / file.path).open("rb") as lines:
            for line, raw in enumerate(lines, 1):
                if wanted is None or number in wanted:
                    yield Place(folder / file.path, line, TrainingRow.read(raw))
                number += 1


def _lines(folder: Path, ids: Collection[str]) -> Iterator[bytes]:
    """The rows with these ids, in order."""
    for block in cut(folder):
        data = block.read()
        for line, named in zip(data.split(b"\n"), block.rows(Named, data), strict=False):
            if named.id in ids:
                yield line


def _stored(store: Path, keys: Collection[str]) -> Iterator[Answer]:
    """The records with these keys."""
    wanted = {key.encode() for key in keys}
    for path in segments(store):
        with path.open("rb") as lines:
            while raw := lines.readline(LONGEST):
                head = HEAD.match(raw)
                if head is not None and head[1] in wanted:
                    yield decoded(Answer, raw)
