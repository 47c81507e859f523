r"""The response store: every answer that a teacher gave, so that none is asked for, or paid for, twice.

    <run>/responses/
      lock                      held (flock) by the one process that may write; names its pid
      teachers/<digest>.json    who answered: the full identity; records name it by its digest
      segment-00000.jsonl       records, appended and never changed; a new segment begins after 256 MiB
      segments.json             which segments count, once the store was compacted

A record is one line: the JSON of a ``Stored``, with the field ``check`` put in last::

    {"key":"c4..","family":"9a..","max_tokens":256,"finish_reason":"stop",..,"text":"..","check":"0f1e2d3c4b5a6978"}\n

``check`` is the xxh3-64, in 16 hexadecimal digits, of the line as it is without ``,"check":"<16 digits>"`` and without the newline.
A commit is one write of all records of a chunk and one fsync: when ``append`` returns, they survive a power loss. What an interrupted
write leaves is, because files grow at the end only, a last line without its newline: the next writer cuts it off and says so. Any other
line that does not fit its check is damage: it stops the writer, and ``verify`` names it.

Requests that differ in ``max_tokens`` alone are one ``family``. An answer that ended by itself is the answer to every request of its
family that allows as many tokens or more; one that was cut (``finish_reason`` other than ``stop``) answers its own request only. Of
several records that answer a request the first does, so that an answer, once given, stays.

``compact`` writes the records that are kept to new segments behind the old ones. ``segments.json`` says, in one atomic step each, first
that what comes from there on does not count yet, and when all is on the disk, that only this counts. Segments that do not count are
deleted by the next writer, so that whenever it is interrupted, the old state or the new one is there, whole.

Limits: one writer at a time; readers need no lock and see what was committed before they came; one that is at work while the store is
compacted may have to start again, and is told so. The index is held in memory, about 200 bytes a record. A record whose newline alone is
missing at the very end is taken for an interrupted write.
"""

import os
import re
from binascii import unhexlify
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import xxhash
from pydantic import Field, FiniteFloat, JsonValue, ValidationError

from pipeline.files import (
    InputError,
    RunError,
    atomic,
    canonical_json,
    digest,
    held_alone,
    line_digest,
    make_folder,
    plain,
    regular,
    strict_json,
    sync_folder,
)
from pipeline.progress import Advance, bar, say_line
from pipeline.records import Record

SEGMENT_BYTES: Final = 1 << 28
SEGMENT: Final = re.compile(r"segment-(\d{5})\.jsonl")
LIVE: Final = "segments.json"
CHECK_BYTES: Final = len(b',"check":""}\n') + 16
BAR_BYTES: Final = 1 << 26  # smaller stores are read within a second
HEAD: Final = re.compile(
    rb'\{"key":"([0-9a-f]{32})","family":"([0-9a-f]{32})","max_tokens":(\d{1,10}),"finish_reason":"([^"\\]*(?:\\.[^"\\]*)*)"'
)
ENDED: Final = b"stop"  # the finish reason of an answer that ended by itself
OFFSET_BITS, SEGMENT_BITS = 40, 20

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
    family: str
    max_tokens: int
    finish_reason: str
    teacher: str
    identity: str
    prompt: str
    sampling: dict[str, JsonValue] = Field(description="every sampling parameter but max_tokens and the seed")
    seed: int
    sample: int
    prompt_tokens: int
    completion_tokens: int
    text: str
    mean_logprob: FiniteFloat | None = Field(
        None, description="mean log-probability of the answer's tokens, where it was asked for"
    )
    label_logprobs: dict[str, FiniteFloat] | None = Field(
        None, description="log-probability of each label at the label's place"
    )


def family_key(*, identity: str, prompt: str, sampling: Mapping[str, JsonValue], seed: int, sample: int) -> str:
    """What requests that differ in ``max_tokens`` alone have in common, 32 hexadecimal digits.

    ``identity`` and ``prompt`` are digests of the teacher's identity and of the rendered messages; ``sampling`` holds every other
    sampling parameter; ``seed`` is this sample's own. See NOT_IN_REQUEST_KEY for what does not count.
    """
    return digest({"identity": identity, "prompt": prompt, "sampling": dict(sampling), "seed": seed, "sample": sample})


def encoded_family_key(*, identity: str, prompt: str, sampling: str, seed: int, sample: int) -> str:
    """``family_key`` in a tenth of the time: ``sampling`` is its canonical JSON, which many requests share."""
    told = f'{{"identity":"{identity}","prompt":"{prompt}","sample":{sample},"sampling":{sampling},"seed":{seed}}}'
    return xxhash.xxh3_128_hexdigest(told.encode())


def request_key(family: str, max_tokens: int) -> str:
    """The name of a request, 32 hexadecimal digits: equal exactly where all that can change the answer is equal.

    It is the ``digest`` of ``{"family": family, "max_tokens": max_tokens}``, in a tenth of the time.
    """
    return xxhash.xxh3_128_hexdigest(f'{{"family":"{family}","max_tokens":{max_tokens}}}'.encode())


class Answered:
    """What a store that is only read has the answers to; needs no lock.

    ``has`` may be asked while another thread appends; ``get`` by one thread at a time. Raises RunError as ``read_store`` does.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._index = _Index()
        self._readers: dict[int, IO[bytes]] = {}
        with _reading(folder) as advance:
            for path, _, offset, found in _whole(folder, self._torn):
                self._index.add(found, _number(path), offset)
                advance(len(found.string) + CHECK_BYTES - 1)

    def __len__(self) -> int:
        return self._index.records

    def has(self, family: str | bytes, max_tokens: int) -> bool:
        """Whether a request of this family (hexadecimal, or the 16 bytes) with this ``max_tokens`` is answered."""
        return self._index.find(family, max_tokens) is not None

    def get(self, family: str | bytes, max_tokens: int) -> Stored | None:
        """The answer, or None where it was never given. Raises RunError where it changed since the store was opened."""
        found = self._index.find(family, max_tokens)
        if found is None:
            return None
        number, offset = found
        path = self._folder / _name(number)
        if number not in self._readers:
            self._readers[number] = _opened(path)
        reader = self._readers[number]
        reader.seek(offset)
        checked = _checked(reader.readline())
        if checked is None:
            raise RunError(
                f"{path}: the record at byte {offset} was changed while the store was open; run `stepdistill audit`"
            )
        return _stored(checked, f"{path} (byte {offset})")

    def close(self) -> None:
        """Close all files."""
        for file in self._readers.values():
            file.close()

    def _torn(self, path: Path, offset: int, raw: bytes) -> None:
        """What another process is writing just now, or was interrupted at, does not count."""


class Store(Answered):
    """The store, open for writing. Made by ``open_store``."""

    def __init__(self, folder: Path) -> None:
        _finish(folder)
        super().__init__(folder)
        paths = segments(folder)
        self._segment = _number(paths[-1]) if paths else 0
        self._writer: IO[bytes] | None = None
        self._failed: str | None = None

    def append(self, records: Iterable[Stored]) -> None:
        """Commit the records: they are durable on return. A request that is answered already keeps its first answer.

        Raises RunError where they cannot be written: then none of them counts, and no more can be appended to this open store.
        """
        if self._failed is not None:
            raise RunError(self._failed)
        batch = _Index()
        heads: list[re.Match[bytes]] = []
        for record in records:
            if not self.has(record.family, record.max_tokens) and batch.find(record.family, record.max_tokens) is None:
                head = HEAD.match(record.line())
                assert head is not None
                batch.add(head, 0, 0)
                heads.append(head)
        if not heads:
            return
        lines = [_framed(head.string) for head in heads]
        try:
            start = self._write(b"".join(lines))
        except OSError as error:
            self._failed = f"{self._folder / _name(self._segment)}: cannot be written ({error.strerror})"
            raise RunError(self._failed) from None
        for head, line in zip(heads, lines, strict=True):
            self._index.add(head, self._segment, start)
            start += len(line)

    def _write(self, data: bytes) -> int:
        """Add the bytes to the last segment, durably; where they begin. Where that fails, the file is cut back as far as that goes."""
        writer = self._open_segment()
        start = writer.seek(0, os.SEEK_END)
        try:
            written = 0
            while written < len(data):
                written += writer.write(data[written:]) or 0
            os.fsync(writer.fileno())
        except OSError:
            with suppress(OSError):
                os.ftruncate(writer.fileno(), start)
            raise
        return start

    def add_teacher(self, identity: Mapping[str, JsonValue]) -> str:
        """Keep a teacher's full identity; the digest by which records name it."""
        name = digest(dict(identity))
        path = self._folder / "teachers" / f"{name}.json"
        if not path.exists():
            make_folder(path.parent)
            with atomic(path) as file:
                file.write(canonical_json(dict(identity)) + b"\n")
        return name

    def close(self) -> None:
        """Close all files."""
        super().close()
        if self._writer is not None:
            self._writer.close()

    def _torn(self, path: Path, offset: int, raw: bytes) -> None:
        """Remove what an interrupted write left at the end."""
        with path.open("r+b") as file:
            file.truncate(offset)
            os.fsync(file.fileno())
        say_line(f"{path}: cut {len(raw)} bytes that an interrupted write had left; that answer is asked for again")

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


class _Index:
    """Where the answers of each family stand: segment, byte offset, ``max_tokens`` and whether it ended by itself, in one number."""

    def __init__(self) -> None:
        self._places: dict[bytes, int | list[int]] = {}
        self.records = 0

    def add(self, head: re.Match[bytes], segment: int, offset: int) -> None:
        """Note a record; of two with the same request the first stays."""
        family, max_tokens, ended = _asked(head)
        place = ((max_tokens << 1 | ended) << SEGMENT_BITS | segment) << OFFSET_BITS | offset
        before = self._places.get(family)
        if before is None:
            self._places[family] = place
        else:
            places = before if isinstance(before, list) else [before]
            if any(_allowed(other) == max_tokens for other in places):
                return
            self._places[family] = [*places, place]
        self.records += 1

    def find(self, family: str | bytes, max_tokens: int) -> tuple[int, int] | None:
        """Segment and offset of the first record that answers the request."""
        places = self._places.get(bytes.fromhex(family) if isinstance(family, str) else family)
        if places is None:
            return None
        for place in places if isinstance(places, list) else [places]:
            ended = place >> (OFFSET_BITS + SEGMENT_BITS) & 1
            if _allowed(place) == max_tokens or (ended and _allowed(place) < max_tokens):
                return place >> OFFSET_BITS & ((1 << SEGMENT_BITS) - 1), place & ((1 << OFFSET_BITS) - 1)
        return None


def _allowed(place: int) -> int:
    return place >> (OFFSET_BITS + SEGMENT_BITS + 1)


@contextmanager
def open_store(folder: Path) -> Iterator[Store]:
    """The store in ``folder``, made where it is absent, for this process alone to write until the block ends.

    Raises RunError at once where another process has it, and where a record is damaged.
    """
    try:
        make_folder(folder)
    except OSError as error:
        raise RunError(f"{folder}: cannot be made ({error.strerror})") from None
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
    for path, number, _, head in _whole(folder, lambda *_: None):
        yield path, number, _stored(head, f"{path}:{number}")


def encoded(record: Stored) -> bytes:
    """The line that holds a record, with its check and its newline."""
    return _framed(record.line())


def absent(folder: Path) -> list[Path]:
    """The segments that are not there, though one behind them is, or segments.json names them. Raises RunError where that is damaged."""
    live = _live(folder)
    there = {_number(path) for path in segments(folder)}
    last = max([*there, live.first + len(live.sizes) - 1])
    return [folder / _name(number) for number in range(live.first, last + 1) if number not in there]


def shorter(folder: Path) -> bool:
    """Whether a segment has fewer bytes than segments.json says, or is missing. Raises RunError where that is damaged."""
    return next(_short(folder, _live(folder)), None) is not None


def settle(folder: Path) -> None:
    """Write segments.json anew, to say that the segments which lie there are the store: after damage was cut out, or where it is gone."""
    paths = segments(folder)
    first = _number(paths[0]) if paths else 0
    _mark(folder, _live(folder).model_copy(update={"first": first, "sizes": [path.stat().st_size for path in paths]}))


def record(raw: bytes, place: str) -> Stored:
    """The record that a line of a segment holds. Raises RunError that names ``place`` where it is damaged."""
    head = _checked(raw)
    if head is None:
        raise RunError(f"{place}: {_damage(raw)}")
    return _stored(head, place)


@dataclass(frozen=True)
class Compacted:
    """What ``compact`` did: ``unreachable`` records could never be given as an answer, ``unwanted`` ones were another teacher's."""

    kept: int
    unreachable: int
    unwanted: int
    bytes_before: int
    bytes_after: int


def compact(folder: Path, *, teachers: Collection[str] = ()) -> Compacted:
    """Write the store anew without the records that can never be given as an answer; where there are none, it stays as it is.

    ``teachers``, by name or by the digest of their identity: only theirs are kept, of the others nothing is. Interrupted at any moment,
    the store is as before or as after. Raises RunError where another process has the store or a record is damaged, and InputError for
    a teacher that no record is of.
    """
    if not folder.is_dir():
        return Compacted(0, 0, 0, 0, 0)
    with held_alone(folder / "lock", folder):
        Store(folder).close()  # stops at damage, cuts what an interrupted write left
        paths = segments(folder)
        before = sum(path.stat().st_size for path in paths)
        dropped, kept, unreachable, unwanted = _choice(folder, frozenset(teachers))
        if not dropped:
            return Compacted(kept, 0, 0, before, before)
        live = _live(folder)
        start = _number(paths[-1]) + 1
        try:
            _mark(folder, live.model_copy(update={"until": start}))
            sizes = _rewrite(folder, start, dropped)
            sync_folder(folder)
            _mark(folder, _Live(first=start, sizes=sizes))
        except OSError as error:
            raise RunError(f"{folder}: cannot be compacted ({error.strerror}); no answer is lost") from None
        finally:
            with suppress(OSError):
                _finish(folder)  # otherwise the next writer does it
        return Compacted(kept, unreachable, unwanted, before, sum(sizes))


def _choice(folder: Path, teachers: frozenset[str]) -> tuple[set[tuple[int, int]], int, int, int]:
    """The records to leave out, as segment and offset; and how many are kept, unreachable and unwanted."""
    index = _Index()
    dropped: set[tuple[int, int]] = set()
    found: set[str] = set()
    names: set[str] = set()
    kept = unreachable = unwanted = 0
    with _reading(folder) as advance:
        for path, number, offset, head in _whole(folder, lambda *_: None):
            advance(len(head.string) + CHECK_BYTES - 1)
            family, max_tokens, _ = _asked(head)
            place = (_number(path), offset)
            if teachers:
                record = _stored(head, f"{path}:{number}")
                names.add(record.teacher)
                matching = teachers & {record.teacher, record.identity}
                found |= matching
                if not matching:
                    unwanted += 1
                    dropped.add(place)
                    continue
            if index.find(family, max_tokens) is not None:
                unreachable += 1
                dropped.add(place)
                continue
            index.add(head, *place)
            kept += 1
    for name in sorted(teachers - found):
        raise InputError(
            f"{folder}: {plain(name)}: no record is of this teacher; there are {plain(', '.join(sorted(names))) or 'none'}"
        )
    return dropped, kept, unreachable, unwanted


def _rewrite(folder: Path, start: int, dropped: Collection[tuple[int, int]]) -> list[int]:
    """The other records into new segments from ``start`` on, on the disk when it returns; the segments' sizes."""
    sizes: list[int] = []
    file: IO[bytes] | None = None
    try:
        with _reading(folder) as advance:
            for path, _, offset, head in _whole(folder, lambda *_: None):
                raw = _framed(head.string)
                advance(len(raw))
                if (_number(path), offset) in dropped:
                    continue
                if file is None or sizes[-1] >= SEGMENT_BYTES:
                    if file is not None:
                        _settle(file)
                    file = (folder / _name(start + len(sizes))).open("wb")
                    sizes.append(0)
                file.write(raw)
                sizes[-1] += len(raw)
        if file is not None:
            _settle(file)
    finally:
        if file is not None:
            file.close()
    return sizes


def _settle(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
    file.close()


def missing(folder: Path) -> Iterator[str]:
    """One line for each segment that should be there, and is not, or not all of it. Raises RunError where nobody can tell."""
    live = _live(folder)
    yield from _short(folder, live)
    for expected, path in enumerate(segments(folder), live.first):
        if path.name != _name(expected):
            yield f"{folder / _name(expected)}: missing, though {path.name} is there"
            break


def verify(folder: Path) -> Iterator[str]:
    """Every problem of the store, one line each with file and line. An interrupted write at the end of the last segment is none."""
    seen: set[bytes] = set()
    identities: set[str] = set()
    try:
        paths = segments(folder)
        yield from missing(folder)
    except RunError as error:
        yield str(error)
        return
    with _reading(folder) as advance:
        for path in paths:
            for number, _, raw in _lines(path):
                advance(len(raw))
                head = _checked(raw)
                if head is None:
                    if path != paths[-1] or not _interrupted(raw):
                        yield f"{path}:{number}: {_damage(raw)}"
                    continue
                try:
                    record = _stored(head, f"{path}:{number}")
                except RunError as error:
                    yield str(error)
                    continue
                key = unhexlify(head[1])
                if key in seen:
                    yield f"{path}:{number}: key {record.key} stands in the store twice"
                seen.add(key)
                family = family_key(
                    identity=record.identity,
                    prompt=record.prompt,
                    sampling=record.sampling,
                    seed=record.seed,
                    sample=record.sample,
                )
                if family != record.family or request_key(family, record.max_tokens) != record.key:
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


class _Live(Record):
    """Which segments count: those from ``first`` on, and below ``until`` where those behind are still being written.

    ``sizes`` are the least that the segments from ``first`` on must have, in bytes.
    """

    first: int = 0
    until: int | None = None
    sizes: list[int] = Field(default=[])

    def counts(self, path: Path) -> bool:
        return self.first <= _number(path) and (self.until is None or _number(path) < self.until)


def _live(folder: Path) -> _Live:
    try:
        return _Live.model_validate_json(regular(folder / LIVE).read_bytes())
    except FileNotFoundError:
        return _Live()
    except (OSError, ValidationError):
        raise RunError(f"{folder / LIVE}: cannot be read; restore the file") from None


def _mark(folder: Path, live: _Live) -> None:
    with atomic(folder / LIVE) as file:
        file.write(live.line() + b"\n")


def _all_segments(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if SEGMENT.fullmatch(path.name)) if folder.is_dir() else []


def segments(folder: Path) -> list[Path]:
    """Those that count, in order."""
    live = _live(folder)
    while True:
        paths = [path for path in _all_segments(folder) if live.counts(path)]
        now = _live(folder)
        if now == live:  # otherwise the store was compacted meanwhile, and some of these may be gone
            return paths
        live = now


def _short(folder: Path, live: _Live) -> Iterator[str]:
    """One line for each segment that was there when the store was compacted, and is not, or not all of it."""
    for number, size in enumerate(live.sizes, live.first):
        path = folder / _name(number)
        if not path.is_file():
            yield f"{path}: missing, though {LIVE} names it; restore the file"
        elif path.stat().st_size < size:
            yield f"{path}: has {path.stat().st_size} bytes, had {size} when the store was compacted; restore the file"


def _finish(folder: Path) -> None:
    """Delete the segments that do not count: what an interrupted compaction wrote, or what a finished one replaced."""
    live = _live(folder)
    for problem in _short(folder, live):
        raise RunError(problem)
    stale = [path for path in _all_segments(folder) if not live.counts(path)]
    for path in [*stale, *folder.glob(f".{LIVE}.*.tmp")]:
        path.unlink()
    if stale:
        sync_folder(folder)
    if live.until is not None:  # only now: a segment that is left would count from here on
        _mark(folder, live.model_copy(update={"until": None}))


@contextmanager
def _reading(folder: Path) -> Iterator[Advance]:
    """A progress bar for the store's bytes, where it is large enough for one."""
    total = sum(path.stat().st_size for path in segments(folder))
    if total < BAR_BYTES:
        yield _silent
        return
    done = 0
    with bar("reading the response store", total >> 20, "MiB") as advance:

        def read(amount: int = 1, note: str | Callable[[], str] = "") -> None:
            nonlocal done
            before, done = done, done + amount
            if done >> 20 > before >> 20:
                advance((done >> 20) - (before >> 20), note)

        yield read


def _silent(amount: int = 1, note: str | Callable[[], str] = "") -> None:
    """No bar at all."""


def _whole(folder: Path, torn: Callable[[Path, int, bytes], None]) -> Iterator[tuple[Path, int, int, re.Match[bytes]]]:
    """File, line number, byte offset and head of every record; ``torn`` is called for what an interrupted write left at the end.

    Raises RunError, with file and line, for a damaged one.
    """
    paths = segments(folder)
    for path in paths:
        for number, offset, raw in _lines(path):
            head = _checked(raw)
            if head is not None:
                yield path, number, offset, head
            elif path == paths[-1] and _interrupted(raw):
                torn(path, offset, raw)
            else:
                raise RunError(f"{path}:{number}: {_damage(raw)}")


def _opened(path: Path) -> IO[bytes]:
    try:
        return regular(path).open("rb")
    except FileNotFoundError:
        raise RunError(f"{path}: gone; the store was compacted while it was read; run the command again") from None


def _lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Line number (from 1), byte offset and bytes of each line, the newline included where there is one."""
    offset = 0
    with _opened(path) as file:
        for number, raw in enumerate(file, 1):
            yield number, offset, raw
            offset += len(raw)


def _framed(body: bytes) -> bytes:
    return body[:-1] + b',"check":"' + line_digest(body).encode() + b'"}\n'


def _checked(raw: bytes) -> re.Match[bytes] | None:
    """The head of the record, where the line is whole and fits its check; its ``string`` is the record's own JSON. Otherwise None."""
    body = raw[:-CHECK_BYTES] + b"}"
    return HEAD.match(body) if _framed(body) == raw else None


def _damage(raw: bytes) -> str:
    """Why a line is no record, and what to do."""
    if _framed(raw[:-CHECK_BYTES] + b"}") == raw:
        return "the record was written by another version; move the store away, and its answers are asked for again"
    return "the record is damaged; restore the file, or delete this line and it is asked for again"


def _interrupted(raw: bytes) -> bool:
    """Whether the last line of the last segment is what an interrupted write leaves, and not a whole record whose newline was changed."""
    return not raw.endswith(b"\n") and _checked(raw[:-1] + b"\n") is None


def _asked(head: re.Match[bytes]) -> tuple[bytes, int, bool]:
    """Family, ``max_tokens`` and whether the answer ended by itself."""
    return unhexlify(head[2]), int(head[3]), head[4] == ENDED


def _stored(head: re.Match[bytes], place: str) -> Stored:
    try:
        found = Stored.model_validate_json(head.string)
        if b"NaN" in head.string or b"Infinity" in head.string:  # pydantic takes them for numbers
            canonical_json(found.sampling)
    except ValueError as error:
        problem = plain(
            error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else f"sampling: {error}"
        )
        raise RunError(
            f"{place}: not a record of the response store ({problem}); was it written by another version?"
        ) from None
    family, max_tokens, ended = _asked(head)
    told = (found.key, found.family, found.max_tokens, found.finish_reason == ENDED.decode())
    if told != (head[1].decode(), family.hex(), max_tokens, ended):
        # a field that stands there twice: the index goes by the first, this by the last
        raise RunError(
            f"{place}: the record tells of two requests; restore the file, or delete this line and it is asked for again"
        )
    return found
