"""The response store holds what it may hold, and every record fits its own check and has the key of the request that it tells of.

    responses/segment-00000.jsonl:17: the record is damaged; restore the file, or delete this line and it is asked for again

Segments are read once, in several processes where they are large. What a record must be is said in ``pipeline.responses``.

Limits: no manifest lists the store, which grows with every run. A record that no row names can be taken out unseen (the next run asks
again), and the order of records is vouched for by nobody.
"""

import re
from array import array
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import xxhash

from pipeline import responses
from pipeline.audits import Audited, Finding, kind
from pipeline.audits.places import is_held
from pipeline.files import RunError, canonical_json, digest, plain, strict_json
from pipeline.processes import WORTH_IT
from pipeline.progress import bar

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIECE: Final = 4 << 20
LONGEST: Final = 64 << 20  # bytes of a record
SHOWN: Final = 20  # damaged records that are named, of each segment
LOCK: Final = "lock"
TEACHERS: Final = "teachers"
DIGEST: Final = re.compile(r"[0-9a-f]{32}")


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A ``responses.Stored`` as it is read here: in a tenth of the time."""

    key: str
    family: str
    max_tokens: int
    finish_reason: str
    teacher: str
    identity: str
    prompt: str
    sampling: msgspec.Raw
    seed: int
    sample: int
    prompt_tokens: int
    completion_tokens: int
    text: str
    mean_logprob: float | None = None
    label_logprobs: dict[str, float] | None = None


@dataclass
class _Read:
    """What one pass over a segment gave: keys as 64 bits of each, who answered, and what is wrong, by line."""

    rows: int = 0
    bytes: int = 0
    keys: "NDArray[Any] | None" = None
    identities: set[str] = field(default_factory=set)
    problems: list[tuple[int, str]] = field(default_factory=list)
    more: int = 0
    torn: bool = False  # the last line is what an interrupted write leaves

    def wrong(self, line: int, problem: str) -> None:
        """Note a problem."""
        if len(self.problems) < SHOWN:
            self.problems.append((line, problem))
        else:
            self.more += 1


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on the response store."""
    store = audited.store
    if kind(store) != "folder":
        if any(stage in audited.results for stage in ("sample", "judge")):
            yield Finding(store, "missing, though there are results that were made from its answers")
        return
    unsafe = list(_places(store))
    yield from unsafe
    if unsafe:
        return
    try:
        paths = responses.segments(store)
    except RunError as error:
        yield _finding(store, str(error))
        return
    for problem in responses.missing(store):
        yield _finding(store, problem)
    yield from _records(audited, paths)


def _places(store: Path) -> Iterator[Finding]:
    """What lies in the store's folder and does not belong there; nothing of it is opened."""
    for path in sorted(store.iterdir()):
        wanted = "folder" if path.name == TEACHERS else "file"
        known = path.name in (LOCK, TEACHERS, responses.LIVE) or responses.SEGMENT.fullmatch(path.name)
        if not known or kind(path) != wanted:
            yield Finding(path, f"not a {wanted}" if known else "not a file of the response store")
    if kind(store / TEACHERS) == "folder":
        for path in sorted((store / TEACHERS).iterdir()):
            if kind(path) != "file" or path.suffix != ".json" or not DIGEST.fullmatch(path.stem):
                yield Finding(path, "not a file of the response store")


def _records(audited: Audited, paths: list[Path]) -> Iterator[Finding]:
    import numpy

    store = audited.store
    weight = sum(path.stat().st_size for path in paths)
    identities: set[str] = set()
    keys, places = [], []
    with bar("audit: responses", weight >> 20, "MiB") if weight >= WORTH_IT else nullcontext() as advance:
        for path, read in zip(
            paths, audited.crew.in_order(segment, ((path,) for path in paths), weight=weight), strict=True
        ):
            if advance is not None:
                advance(read.bytes >> 20)
            audited.covered["responses"] += read.rows
            audited.covered["bytes"] += read.bytes
            audited.covered["files"] += 1
            if read.torn and not (path == paths[-1] and is_held(store / LOCK)):
                read.wrong(
                    read.rows, "cut short, as an interrupted write leaves it; the next run cuts it off and asks again"
                )
            for line, problem in read.problems:
                yield Finding(path, problem, line)
            if read.more:
                yield Finding(path, f"so it is, or worse, with {read.more} more of its records")
            identities |= read.identities
            assert read.keys is not None
            keys.append(read.keys)
            places.append((path, len(read.keys)))
    found = numpy.concatenate([numpy.zeros(0, numpy.uint64), *keys])
    yield from _doubles(found, places)
    yield from _named(audited, found, paths)
    yield from _teachers(store, identities)


def _named(audited: Audited, keys: "NDArray[Any]", paths: list[Path]) -> Iterator[Finding]:
    """Every answer that a row names is in the store."""
    import numpy

    for result in audited.all:
        found = [audited.scans.get(result.folder / file.path) for file in result.manifest.outputs]
        named = [one.requests for one in found if one is not None and one.requests is not None]
        missing = [int(key) for one in named for key in numpy.unique(one[~numpy.isin(one, keys)])]
        if missing:
            place = paths[0] if len(paths) == 1 else audited.store
            shown = f"{missing[0]:016x}.."
            yield Finding(
                place,
                f"answers that rows of {result.folder.parent.name} name are not there: {len(missing)}, {shown} for one",
            )


def _doubles(keys: "NDArray[Any]", places: list[tuple[Path, int]]) -> Iterator[Finding]:
    """Records with the same key, by line; a line that is no record has the number 0 as its key."""
    import numpy

    order = numpy.argsort(keys, kind="stable")
    doubled = numpy.sort(order[1:][(keys[order][1:] == keys[order][:-1]) & (keys[order][1:] != 0)])
    ends = numpy.cumsum([0, *(rows for _, rows in places)])
    for place in doubled[:SHOWN]:
        number = int(numpy.searchsorted(ends, place, side="right")) - 1
        yield Finding(
            places[number][0],
            f"its key ({int(keys[place]):016x}..) stands in the store twice",
            int(place - ends[number]) + 1,
        )


def _teachers(store: Path, identities: set[str]) -> Iterator[Finding]:
    for identity in sorted(identities):
        path = store / TEACHERS / f"{plain(identity)}.json"
        if not DIGEST.fullmatch(identity) or kind(path) != "file":
            yield Finding(path, "missing, though records name it")
    for path in sorted((store / TEACHERS).glob("*.json")):
        try:
            raw = path.read_bytes()
            found = strict_json(raw)
            if digest(found) != path.stem or canonical_json(found) + b"\n" != raw:
                raise ValueError
        except (OSError, ValueError):
            yield Finding(path, "does not fit its name; it was changed after it was written")


def segment(_: None, path: Path) -> _Read:
    """One pass over a segment. Never raises for what it holds."""
    import numpy

    read = _Read()
    keys = array("Q")
    try:
        for lines, ended in _lines(path):
            for line in lines:
                read.rows += 1
                read.bytes += len(line) + ended
                if not ended and not _fits(line[:-1]):
                    read.torn = True
                    keys.append(0)
                else:
                    keys.append(_record(line, read, ended=ended))
    except (OSError, ValueError) as error:
        read.wrong(read.rows + 1, f"cannot be read ({plain(str(error))})")
    read.keys = numpy.array(keys, numpy.uint64)
    return read


def _lines(path: Path) -> Iterator[tuple[list[bytes], bool]]:
    """The segment's lines without their newlines, some at a time; False with a last one that has none. Raises ValueError."""
    rest = b""
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE):
            lines = (rest + piece).split(b"\n")
            rest = lines.pop()
            yield lines, True
            if len(rest) > LONGEST:
                raise ValueError(f"a record of more than {LONGEST >> 20} MiB")
    if rest:
        yield [rest], False


_CHECKED: Final = responses.CHECK_BYTES - 1  # of a line without its newline
_DECODER: Final = msgspec.json.Decoder(_Record)


def _fits(line: bytes) -> bool:
    """Whether the line is whole and fits its check."""
    body = line[:-_CHECKED] + b"}"
    return line[-_CHECKED:] == b',"check":"%s"}' % xxhash.xxh3_64_hexdigest(body).encode()


def _record(line: bytes, read: _Read, *, ended: bool) -> int:
    """Check one record; 64 bits of its key, 0 where it is none."""
    if not ended or not _fits(line):
        read.wrong(read.rows, "the record is damaged; restore the file, or delete this line and it is asked for again")
        return 0
    try:
        record = _DECODER.decode(line[:-_CHECKED] + b"}")
        key = int(record.key[:16], 16)
        if not (DIGEST.fullmatch(record.identity) and DIGEST.fullmatch(record.prompt)):
            raise ValueError("identity and prompt are named by their digests")
        told = responses.encoded_family_key(
            identity=record.identity,
            prompt=record.prompt,
            sampling=_canonical(bytes(record.sampling)),
            seed=record.seed,
            sample=record.sample,
        )
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        problem = f"not a record of the response store ({plain(str(error))}); was it written by another version?"
        read.wrong(read.rows, problem)
        return 0
    read.identities.add(record.identity)
    if (
        told != record.family
        or responses.HEAD.match(line) is None
        or responses.request_key(told, record.max_tokens) != record.key
    ):
        read.wrong(read.rows, "key: is not that of the request the record tells of")
    return key


@lru_cache(maxsize=4096)
def _canonical(raw: bytes) -> str:
    found = strict_json(raw)
    if not isinstance(found, dict):
        raise ValueError("sampling is no object")
    return canonical_json(found).decode()


def _finding(store: Path, problem: str) -> Finding:
    """A line of ``pipeline.responses``, which begins with a path."""
    place, _, told = problem.partition(": ")
    return Finding(store / place.rpartition("/")[2], told)
