"""Mend the response store: damaged records are cut out, and those that a sampled row still tells of are written anew, to the byte.

    segment-00000.jsonl:7 is damaged
    -> cut out, to <run>/damaged/responses/segment-00000.jsonl
    -> the row of sample that was made from it is intact: text, finish reason, token counts, log-probabilities; what was asked follows
       from ingest's row and the snapshot of the prompt, and is proved right by the request's key; the record stands in its place again

A row counts as intact where its file fits the manifest, or its own line digest stands beside it. Teachers' identities are taken from the
manifests, or as they resolve now, where their digest is the name that is missing.

Limits: what a judge said, or a teacher was asked by evaluate, stands in no row as it was: those records cannot be made again. A record
whose line cannot be told any more goes to the end of the store, which changes nothing in what the store answers. A line digest is
protection against accidents, not against forgery; a row that was forged together with its digest is found by ``audit``.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from msgspec import DecodeError

from pipeline import damaged, requests, responses, sample
from pipeline.asking import record_of
from pipeline.audits import kind
from pipeline.config import Config
from pipeline.damaged import Step
from pipeline.files import (
    InputError,
    RunError,
    atomic,
    canonical_json,
    digest,
    held_alone,
    line_digest,
    plain,
    sha256,
    strict_json,
)
from pipeline.records import Manifest, Prompt, Response
from pipeline.requests import Asking
from pipeline.responses import Stored
from pipeline.stages import STAGES
from pipeline.teachers import Answer, Request

KEY: Final = re.compile(rb'"key":"([0-9a-f]{32})"')
CHECK: Final = re.compile(rb'"check":"([0-9a-f]{16})"')
LIMIT: Final = re.compile(rb'"max_tokens":(\d{1,10}),')
FIRST: Final = "segment-00000.jsonl"


@dataclass
class _Segment:
    """What is wrong in one segment: the damaged lines by number, and what takes their places."""

    path: Path
    bad: dict[int, bytes] = field(default_factory=dict)
    instead: dict[int, list[Stored]] = field(default_factory=lambda: defaultdict(list))


@dataclass
class _Known:
    """What the store's good records have: their keys, their teachers' digests, and every ``max_tokens`` that was asked with."""

    keys: set[bytes] = field(default_factory=set)
    teachers: set[str] = field(default_factory=set)
    limits: set[int] = field(default_factory=set)


def mend(config: Config, *, dry_run: bool = False) -> Iterator[Step]:
    """Mend the store of a run; one step for each thing that was wrong. With ``dry_run`` nothing is changed.

    Raises RunError where another process writes to the store.
    """
    store = config.run / "responses"
    if kind(store) is None and not dry_run:
        store.mkdir(parents=True)
    if kind(store) != "folder":
        yield Step("responses", "missing" if kind(store) is None else "not a folder", "left", "its records")
        return
    if dry_run:
        yield from _mend(config, store, dry_run=True)
        return
    with held_alone(store / "lock", store):
        yield from _mend(config, store, dry_run=False)


def _mend(config: Config, store: Path, *, dry_run: bool) -> Iterator[Step]:
    try:
        absent = responses.absent(store)
    except RunError:
        yield Step("responses/segments.json", "cannot be read", "rebuilt", "all segments that are there count")
        if dry_run:
            return
        damaged.put_away(config.run, store / responses.LIVE)
        responses.settle(store)
        absent = responses.absent(store)
    known = _Known()
    segments = [_examined(path, known) for path in responses.segments(store)]
    found = {record.key: record for record in _records(config, known)}
    named = known.teachers | {record.identity for record in found.values()}
    places = _placed(segments, dict(found))
    unplaced = [record for key, record in found.items() if key not in places]
    for segment in segments:
        yield from _told(segment, known)
    for path in absent:
        yield Step(
            f"responses/{path.name}", "missing", "rebuilt" if unplaced else "lost", f"{len(unplaced)} records of it"
        )
    if unplaced and not absent:
        last = segments[-1].path if segments else store / FIRST
        told = f"{len(unplaced)} records that rows tell of"
        yield Step(f"responses/{last.name}", "its records are missing at the end", "rebuilt", told)
    if not dry_run:
        _write(config.run, store, segments, absent, unplaced)
    yield from _teachers(config, store, named, dry_run=dry_run)


@dataclass(frozen=True)
class Mended:
    """What a store would answer once it is mended. An answer under a lower limit of tokens counts, though it may have been cut."""

    known: _Known

    def has(self, family: str, max_tokens: int) -> bool:
        """As that of ``responses.Answered``."""
        limits = (max_tokens, *(limit for limit in self.known.limits if limit < max_tokens))
        return any(bytes.fromhex(responses.request_key(family, limit)) in self.known.keys for limit in limits)

    def close(self) -> None:
        """Nothing is open."""


def mended(config: Config) -> Mended:
    """The store as ``mend`` would leave it, for a dry run. Raises RunError where its list of segments cannot be read."""
    known = _Known()
    for path in responses.segments(config.run / "responses"):
        _examined(path, known)
    known.keys.update([bytes.fromhex(record.key) for record in _records(config, known)])
    return Mended(known)


def _examined(path: Path, known: _Known) -> _Segment:
    """The damaged lines of a segment; ``known`` is told of the others."""
    segment = _Segment(path)
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                record = responses.record(raw, path.name)
            except RunError:
                segment.bad[number] = raw
                known.limits.update(int(match[1]) for match in LIMIT.finditer(raw))
                continue
            family = responses.family_key(
                identity=record.identity,
                prompt=record.prompt,
                sampling=record.sampling,
                seed=record.seed,
                sample=record.sample,
            )
            own = family == record.family and responses.request_key(family, record.max_tokens) == record.key
            if not own or bytes.fromhex(record.key) in known.keys:
                segment.bad[number] = raw
                continue
            known.keys.add(bytes.fromhex(record.key))
            known.teachers.add(record.identity)
            known.limits.add(record.max_tokens)
    return segment


def _placed(segments: list[_Segment], found: dict[str, Stored]) -> set[str]:
    """Put each record that was found in the place of the damaged line that has its key or its check; the keys of those."""
    places: set[str] = set()
    checks = {line_digest(record.line()): key for key, record in found.items()}
    for segment in segments:
        for number, raw in segment.bad.items():
            keys = [(match.start(), match[1].decode()) for match in KEY.finditer(raw)]
            keys += [(match.start(), checks.get(match[1].decode(), "")) for match in CHECK.finditer(raw)]
            for _, key in sorted(keys):
                if key in found and key not in places:
                    places.add(key)
                    segment.instead[number].append(found[key])
    return places


def _told(segment: _Segment, known: _Known) -> Iterator[Step]:
    for number, raw in segment.bad.items():
        place = f"responses/{segment.path.name}:{number}"
        if segment.instead[number]:
            told = ", ".join(record.key for record in segment.instead[number])
            yield Step(place, "damaged record", "rebuilt", told)
            continue
        keys = {match[1].decode() for match in KEY.finditer(raw)}
        gone = sorted(key for key in keys if bytes.fromhex(key) not in known.keys)
        told = "" if keys else "it cannot be told which answer it held"
        yield Step(place, "damaged record", "cut out", told, [f"response {key}" for key in gone])


def _write(run: Path, store: Path, segments: list[_Segment], absent: list[Path], unplaced: list[Stored]) -> None:
    """Damaged lines to the folder of damaged things first, then each segment anew."""
    for segment in segments:
        if segment.bad:
            damaged.keep(run, segment.path, segment.bad.values())
            with atomic(segment.path) as file, segment.path.open("rb") as before:
                for number, raw in enumerate(before, 1):
                    if number not in segment.bad:
                        file.write(raw)
                    file.writelines(map(responses.encoded, segment.instead.get(number, [])))
    for (
        path
    ) in absent:  # all that is left goes to the first of them; the others are there, empty, so that none seems lost
        with atomic(path) as file:
            file.writelines(map(responses.encoded, unplaced))
        unplaced = []
    if unplaced:
        path = segments[-1].path if segments else store / FIRST
        with atomic(path) as file:
            if segments:
                with path.open("rb") as before:
                    file.writelines(before)
            file.writelines(map(responses.encoded, unplaced))
    if responses.shorter(store):
        damaged.keep(run, store / responses.LIVE, [(store / responses.LIVE).read_bytes()])
        responses.settle(store)


def intact(folder: Path) -> Iterator[bytes]:
    """The lines of a result's kept rows that are as they were written, in order: by the manifest, else by the digests beside them."""
    manifest = damaged.manifest_of(folder)
    written = {file.path: file.sha256 for file in manifest.outputs} if manifest is not None else {}
    for path in sorted(folder.glob("part-*.jsonl")):
        if kind(path) != "file":
            continue
        beside = path.with_suffix(".xxh3")
        fits = written.get(path.name) == sha256(path)
        digests = set(beside.read_bytes().split(b"\n")) if not fits and kind(beside) == "file" else set()
        with path.open("rb") as file:
            for raw in file:
                line = raw.rstrip(b"\n")
                if fits or line_digest(line).encode() in digests:
                    yield line


def _records(config: Config, known: _Known) -> Iterator[Stored]:
    """The records that the store does not have, and that intact rows of any result of sample tell of."""
    done: set[str] = set()
    for folder in damaged.results(config.run, "sample"):
        missing: dict[str, list[Response]] = defaultdict(list)
        for line in intact(folder):
            with suppress(DecodeError, ValueError):
                row = Response.read(line)
                if bytes.fromhex(row.request) not in known.keys and row.request not in done:
                    missing[row.prompt].append(row)
        if not missing:
            continue
        for asking in _askings(config, folder):
            for prompt in _prompts(config.run):
                for record in _of_prompt(asking, prompt, missing.get(prompt.id, ()), known.limits):
                    if record.key not in done:
                        done.add(record.key)
                        yield record


def _of_prompt(asking: Asking, prompt: Prompt, rows: Iterable[Response], limits: set[int]) -> Iterator[Stored]:
    """The records behind the rows about one prompt, each proved by its key."""
    asked: list[tuple[requests.Respondent, Request]] = []
    for row in rows:
        with suppress(InputError):  # a template that does not fit this prompt: it was asked by another
            asked = asked or list(requests.all_requests(asking, prompt))
        for respondent, request in asked:
            if (respondent.name, request.sample) == (row.teacher, row.sample) and (
                proved := _proved(request, row, limits)
            ):
                said = Answer(
                    text=row.text,
                    finish_reason=row.finish_reason,
                    prompt_tokens=row.prompt_tokens,
                    completion_tokens=row.completion_tokens,
                    mean_logprob=row.mean_logprob,
                    label_logprobs=row.label_logprobs,
                )
                yield record_of(respondent, respondent.digest, proved, said)


def _proved(request: Request, row: Response, limits: set[int]) -> Request | None:
    """The request that gave the row its answer: this one, or the same with another limit of tokens. None where none has the row's key."""
    for limit in (request.max_tokens, *limits):
        if responses.request_key(request.family, limit) == row.request:
            return replace(request, key=row.request, sampling={**request.sampling, "max_tokens": limit})
    return None


def _askings(config: Config, folder: Path) -> Iterator[Asking]:
    """What may have been asked: as the result itself has it, and by the settings as they are now."""
    manifest = damaged.manifest_of(folder)
    with suppress(InputError, KeyError, TypeError, ValueError):  # where the result is damaged
        if manifest is not None:
            yield sample.asking_of(folder, manifest)
    with suppress(InputError):
        yield requests.resolve(**config.stages["sample"])


def _prompts(run: Path) -> Iterator[Prompt]:
    """The intact rows of ingest, of any of its results."""
    for folder in damaged.results(run, "ingest"):
        for line in intact(folder):
            with suppress(DecodeError):
                yield Prompt.read(line)


def _teachers(config: Config, store: Path, named: set[str], *, dry_run: bool) -> Iterator[Step]:
    """The identities that records name, and those that are there."""
    folder = store / "teachers"
    there = {path.stem for path in folder.glob("*.json")} if kind(folder) == "folder" else set()
    known = {digest(identity): identity for identity in _identities(config)}
    for name in sorted(named | there):
        path = folder / f"{name}.json"
        place = f"responses/teachers/{plain(path.name, 80)}"
        if kind(path) == "file" and _fits(path):
            continue
        problem = "missing" if kind(path) is None else "damaged"
        if kind(path) is not None and not dry_run:
            damaged.put_away(config.run, path)
        if name in known:
            yield Step(place, problem, "rebuilt")
            if not dry_run:
                folder.mkdir(exist_ok=True)
                with atomic(path) as file:
                    file.write(canonical_json(known[name]) + b"\n")
        else:
            yield Step(place, problem, "lost", "no manifest tells of this teacher", [place])


def _fits(path: Path) -> bool:
    try:
        raw = path.read_bytes()
        found = strict_json(raw)
        return digest(found) == path.stem and canonical_json(found) + b"\n" == raw
    except (OSError, ValueError):
        return False


def _identities(config: Config) -> Iterator[Mapping[str, Any]]:
    manifests: list[Manifest | None] = [
        damaged.manifest_of(folder) for stage in STAGES for folder in damaged.results(config.run, stage)
    ]
    for manifest in manifests:
        yield from manifest.identities.values() if manifest is not None else ()
    for stage, settings in config.stages.items():
        with suppress(InputError):
            yield from STAGES[stage].identities(settings).values()
