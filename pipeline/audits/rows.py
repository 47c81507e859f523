"""Each training row leads back to its example, its response and the record in the store, and says what they say."""

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import xxhash

from pipeline import outputs, responses
from pipeline import shard as shards
from pipeline.audits import Audited, Finding
from pipeline.files import RunError, plain
from pipeline.records import Example, Response, Target, TrainingRow


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on training rows and their way back; ``audited.sample`` follows only so many."""
    if "shard" not in audited.results:
        return
    try:
        yield from _check_lineage(audited)
    except RunError as error:
        yield Finding(audited.results["shard"].folder, str(error))
    except FileNotFoundError as error:
        yield Finding(Path(error.filename), "missing")


def _check_lineage(audited: Audited) -> Iterator[Finding]:
    shard_folder, shard = audited.results["shard"]
    chain = {name: result.folder for name, result in audited.ancestors("shard")}
    if not {"parse", "sample"} <= set(chain):
        yield Finding(shard_folder, "its parse and sample results are not on disk; no row can be followed back")
        return
    store, sample = audited.store, audited.sample
    last_filter = next(iter(shard.parents))
    terms = shards.terms_of(shard.settings)
    examples = {example.id: _Known.of(example, terms) for example in outputs.read(chain[last_filter], Example)}
    answers = {answer.id: (answer.request, _short(answer.text)) for answer in outputs.read(chain["sample"], Response)}
    stored = {record.key: _short(record.text) for _, _, record in responses.read_store(store)} if store.is_dir() else {}
    rows: Iterable[TrainingRow] = outputs.read(shard_folder, TrainingRow)
    if sample is not None:
        found = list(rows)
        rows = random.Random(audited.seed).sample(found, min(sample, len(found)))
    for row in rows:
        where = f"row {plain(row.id)}"
        example = examples.get(row.example)
        if example is None:
            yield Finding(shard_folder, f"{where}: no example {plain(row.example)} in {last_filter}")
            continue
        request, text = answers.get(example.response, (None, None))
        if _short(row.completion) != example.targets.get(row.task):
            yield Finding(shard_folder, f"{where}: not the {row.task} of its example")
        elif _short(row.prompt[-example.input_length :]) != example.input:
            yield Finding(shard_folder, f"{where}: not the input of its example")
        elif request is None:
            yield Finding(shard_folder, f"{where}: no response {plain(example.response)} in sample")
        elif request not in stored:
            yield Finding(shard_folder, f"{where}: its response {request} is not in the store")
        elif stored[request] != text:
            yield Finding(shard_folder, f"{where}: its response {request} reads differently in the store")
        elif example.judgement is not None and example.judgement not in stored:
            yield Finding(shard_folder, f"{where}: its judgement {example.judgement} is not in the store")


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
