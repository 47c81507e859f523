r"""The response store: every answer that a teacher gave, so that none is asked for, or paid for, twice.

    <run>/responses/
      lock                      held (flock) by the one process that may write; names its pid
      teachers/<digest>.json    who answered: the full identity; records name it by its digest
      segment-00000.jsonl       records, appended and never changed; a new segment begins after 256 MiB

A record is one line: the JSON of a ``Stored``, with the field ``check`` put in last::

    {"key":"c4..","teacher":"embedded",..,"text":"..","logprobs":null,"check":"0f1e2d3c4b5a6978"}\n

``check`` is the xxh3-64, in 16 hexadecimal digits, of the line as it is without ``,"check":"<16 digits>"`` and without the newline.
A commit is one write of all records of a chunk and one fsync: when ``append`` returns, they survive a power loss. What an interrupted
write leaves is, because files grow at the end only, a last line without its newline: the next writer cuts it off and says so. Any other
line that does not fit its check is damage: it stops the writer, and ``verify`` names it.

Limits: one writer at a time; readers need no lock and see what was committed before they came. The index is held in memory, about
150 bytes a record. A record whose newline alone is missing at the very end is taken for an interrupted write.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from pydantic import JsonValue, ValidationError

from pipeline.files import (
    RunError,
    atomic,
    canonical_json,
    digest,
    held_alone,
    line_digest,
    plain,
    strict_json,
    sync_folder,
)
from pipeline.progress import say_line
from pipeline.records import Record

SEGMENT_BYTES: Final = 1 << 28
SEGMENT: Final = re.compile(r"segment-(\d{5})\.jsonl")
CHECK: Final = re.compile(rb',"check":"([0-9a-f]{16})"\}\Z')
CHECK_BYTES: Final = len(b',"check":""}') + 16
KEY: Final = re.compile(rb'\{"key":"([0-9a-f]{32})"')
OFFSET_BITS: Final = 40

NOT_IN_REQUEST_KEY: Final = {
    "id and source of the row": "the same prompt gets the same answer, whichever row asks; duplicates are asked once",
    "chunk, concurrency, timeout, retries": "how requests are sent, not what is asked",
    "engine settings on memory and scheduling": "listed in pipeline/teachers/vllm.py: they change speed, and rounding at most",
    "versions of vLLM, torch and drivers, hardware": "they change rounding; an upgrade must not ask for everything again",
    "address of a server whose revision is given": "the revision says what answers, wherever it runs",
    "API key": "it says who pays",
}
"""What could differ between two requests with one key, and why it is left out. Everything else is in."""


class Stored(Record):
    """One answer of a teacher, with all that it was asked by."""

    key: str
    teacher: str
    identity: str
    prompt: str
    sampling: dict[str, JsonValue]
    seed: int
    sample: int
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    logprobs: JsonValue = None


def request_key(*, identity: str, prompt: str, sampling: Mapping[str, JsonValue], seed: int, sample: int) -> str:
    """The name of a request, 32 hexadecimal digits: equal exactly where all that can change the answer is equal.

    ``identity`` and ``prompt`` are digests of the teacher's identity and of the rendered messages; ``sampling`` holds every sampling
    parameter; ``seed`` is this sample's own. See NOT_IN_REQUEST_KEY for what does not count.
    """
    return digest({"identity": identity, "prompt": prompt, "sampling": dict(sampling), "seed": seed, "sample": sample})


class Store:
    """The store, open for writing. Made by ``open_store``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._index: dict[bytes, int] = {}  # key -> segment and byte offset in one number
        self._readers: dict[int, IO[bytes]] = {}
        self._writer: IO[bytes] | None = None
        self._segment = 0
        paths = _segments(folder)
        for path in paths:
            self._segment = _number(path)
            for line, offset, raw in _lines(path):
                body = _checked(raw)
                if body is not None:
                    self._index.setdefault(_key(body), self._segment << OFFSET_BITS | offset)
                elif path == paths[-1] and _interrupted(raw):
                    _cut(path, offset, len(raw))
                else:
                    raise RunError(
                        f"{path}:{line}: the record is damaged; restore the file, or delete this line and it is asked for again"
                    )

    def __contains__(self, key: str) -> bool:
        return bytes.fromhex(key) in self._index

    def __len__(self) -> int:
        return len(self._index)

    def get(self, key: str) -> Stored | None:
        """The answer to a request, or None where it was never given. Raises RunError where it changed since the store was opened."""
        found = self._index.get(bytes.fromhex(key))
        if found is None:
            return None
        number, offset = found >> OFFSET_BITS, found & ((1 << OFFSET_BITS) - 1)
        path = self._folder / _name(number)
        if number not in self._readers:
            self._readers[number] = path.open("rb")
        reader = self._readers[number]
        reader.seek(offset)
        body = _checked(reader.readline())
        if body is None:
            raise RunError(
                f"{path}: the record at byte {offset} was changed while the store was open; run `stepdistill audit`"
            )
        return _stored(body, f"{path} (byte {offset})")

    def append(self, records: Iterable[Stored]) -> None:
        """Commit the records: they are durable on return. A key that is there already keeps its first answer.

        Raises RunError where they cannot be written; then none of them counts.
        """
        lines: dict[bytes, bytes] = {}
        for record in records:
            body = record.line()
            if _key(body) not in self._index:
                lines.setdefault(_key(body), _framed(body))
        if not lines:
            return
        writer = self._open_segment()
        start = writer.seek(0, os.SEEK_END)
        data = b"".join(lines.values())
        try:
            written = 0
            while written < len(data):
                written += writer.write(data[written:]) or 0
            os.fsync(writer.fileno())
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(writer.fileno(), start)
            raise RunError(f"{self._folder / _name(self._segment)}: cannot be written ({error.strerror})") from None
        for key, line in lines.items():
            self._index[key] = self._segment << OFFSET_BITS | start
            start += len(line)

    def add_teacher(self, identity: Mapping[str, JsonValue]) -> str:
        """Keep a teacher's full identity; the digest by which records name it."""
        name = digest(dict(identity))
        path = self._folder / "teachers" / f"{name}.json"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            sync_folder(self._folder)
            with atomic(path) as file:
                file.write(canonical_json(dict(identity)) + b"\n")
        return name

    def close(self) -> None:
        """Close all files."""
        for file in [*self._readers.values(), *([self._writer] if self._writer else [])]:
            file.close()

    def _open_segment(self) -> IO[bytes]:
        """The segment that is appended to: the last one, or a new one where that is full."""
        if self._writer is not None and self._writer.seek(0, os.SEEK_END) >= SEGMENT_BYTES:
            self._writer.close()
            self._writer = None
            self._segment += 1
        if self._writer is None:
            path = self._folder / _name(self._segment)
            if path.exists() and path.stat().st_size >= SEGMENT_BYTES:
                self._segment += 1
                path = self._folder / _name(self._segment)
            self._writer = path.open("ab", buffering=0)
            sync_folder(self._folder)
        return self._writer


@contextmanager
def open_store(folder: Path) -> Iterator[Store]:
    """The store in ``folder``, made where it is absent, for this process alone to write until the block ends.

    Raises RunError at once where another process has it, and where a record is damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with held_alone(folder / "lock", folder):
        store = Store(folder)
        try:
            yield store
        finally:
            store.close()


def read_store(folder: Path) -> Iterator[tuple[Path, int, Stored]]:
    """Every record with its file and line number (from 1), in the order of their arrival; needs no lock.

    Raises RunError that names file and line of a damaged record. A record still being written, at the very end, is passed over.
    """
    paths = _segments(folder)
    for path in paths:
        for number, _, raw in _lines(path):
            body = _checked(raw)
            if body is None and path == paths[-1] and _interrupted(raw):
                return
            if body is None:
                raise RunError(f"{path}:{number}: the record is damaged; run `stepdistill audit`")
            yield path, number, _stored(body, f"{path}:{number}")


def stored_keys(folder: Path) -> set[bytes]:
    """The keys (16 bytes each) of all answers; needs no lock. Raises RunError as ``read_store`` does."""
    keys = set()
    paths = _segments(folder)
    for path in paths:
        for number, _, raw in _lines(path):
            body = _checked(raw)
            if body is not None:
                keys.add(_key(body))
            elif path != paths[-1] or not _interrupted(raw):
                raise RunError(f"{path}:{number}: the record is damaged; run `stepdistill audit`")
    return keys


def verify(folder: Path) -> Iterator[str]:
    """Every problem of the store, one line each with file and line. An interrupted write at the end of the last segment is none."""
    seen: set[bytes] = set()
    identities: set[str] = set()
    paths = _segments(folder)
    for expected, path in enumerate(paths):
        if path.name != _name(expected):
            yield f"{folder / _name(expected)}: missing, though {path.name} is there"
            break
    for path in paths:
        for number, _, raw in _lines(path):
            body = _checked(raw)
            if body is None:
                if path != paths[-1] or not _interrupted(raw):
                    yield f"{path}:{number}: the record does not fit its check; it was changed after it was written"
                continue
            try:
                record = _stored(body, f"{path}:{number}")
            except RunError as error:
                yield str(error)
                continue
            if _key(body) in seen:
                yield f"{path}:{number}: key {record.key} stands in the store twice"
            seen.add(_key(body))
            asked = request_key(
                identity=record.identity,
                prompt=record.prompt,
                sampling=record.sampling,
                seed=record.seed,
                sample=record.sample,
            )
            if asked != record.key:
                yield f"{path}:{number}: key: is not that of the request the record tells of"
            identities.add(record.identity)
    for identity in sorted(identities):
        path = folder / "teachers" / f"{plain(identity)}.json"
        if not re.fullmatch(r"[0-9a-f]{32}", identity) or not path.is_file():
            yield f"{path}: missing, though records name it"
    for path in sorted((folder / "teachers").glob("*.json")):
        try:
            raw = path.read_bytes()
            if digest(strict_json(raw)) != path.stem or canonical_json(strict_json(raw)) + b"\n" != raw:
                raise ValueError
        except (OSError, ValueError):
            yield f"{path}: does not fit its name; it was changed after it was written"


def _name(number: int) -> str:
    return f"segment-{number:05d}.jsonl"


def _number(path: Path) -> int:
    return int(path.stem.removeprefix("segment-"))


def _segments(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if SEGMENT.fullmatch(path.name)) if folder.is_dir() else []


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Line number (from 1), byte offset and bytes of each line, the newline included where there is one."""
    offset = 0
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            yield number, offset, raw
            offset += len(raw)


def _framed(body: bytes) -> bytes:
    return body[:-1] + b',"check":"' + line_digest(body).encode() + b'"}\n'


def _checked(raw: bytes) -> bytes | None:
    """The record's own JSON where the line is whole and fits its check; otherwise None."""
    if not raw.endswith(b"\n"):
        return None
    found = CHECK.match(raw, len(raw) - 1 - CHECK_BYTES, len(raw) - 1) if len(raw) > CHECK_BYTES else None
    if found is None:
        return None
    body = raw[: found.start()] + b"}"
    return body if KEY.match(body) and line_digest(body).encode() == found[1] else None


def _interrupted(raw: bytes) -> bool:
    """Whether the last line of the last segment is what an interrupted write leaves, and not a whole record whose newline was changed."""
    return not raw.endswith(b"\n") and _checked(raw[:-1] + b"\n") is None


def _key(body: bytes) -> bytes:
    found = KEY.match(body)
    assert found is not None
    return bytes.fromhex(found[1].decode())


def _stored(body: bytes, place: str) -> Stored:
    try:
        return Stored.model_validate_json(body)
    except ValidationError as error:
        problem = plain(error.errors(include_url=False)[0]["msg"])
        raise RunError(
            f"{place}: not a record of the response store ({problem}); was it written by another version?"
        ) from None


def _cut(path: Path, size: int, surplus: int) -> None:
    """Remove what an interrupted write left at the end."""
    with path.open("r+b") as file:
        file.truncate(size)
        os.fsync(file.fileno())
    say_line(f"{path}: cut {surplus} bytes that an interrupted write had left; that answer is asked for again")
