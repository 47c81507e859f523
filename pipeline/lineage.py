r"""lineage: where the rows of one input stand in a run, found by id, source place or request without reading every file.

    for hit in find(run, outputs.current(run, "sample"), "request", "c4.."):
        print(hit.place, hit.raw)        # runs/topics/sample/5d../part-00000.jsonl:17  b'{"id":"9f..#0", ...}\n'

A file of up to ``SMALL`` bytes is read through. Of a larger one, an index remembers where each line begins and in which order the lines
stand when sorted by their id (or source, or request), so that a name is looked up by bisection over the lines themselves: no name is in
the index, every hit is read from the file, and what is found are the very bytes that reading through would have found.

    <run>/index/<stage>/<key>/part-00000.jsonl.id       a line of JSON: of which file, how many rows, check; then
                                                        8 bytes a row, where its line begins; 4 bytes a row, the sorted order

An index is used only where its check fits its bytes and the file's size, inode and times of change are those it was made from, on this
machine: a file that was touched, and a run folder that was copied or handed over with an index in it, get a new one. Where the folder
cannot be written, the index is made in memory.

Limits: whoever can write into the folder while it lies on this machine can make an index that hides a row; ``audit`` uses none. An index
takes 12 bytes a row and kind; making one takes about two microseconds a row, once.
"""

import os
import re
import shutil
import sys
from array import array
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import msgspec
import xxhash

from pipeline import outputs, responses
from pipeline.files import RunError, canonical_json, plain, strict_json
from pipeline.progress import Advance, bar
from pipeline.records import Manifest

FOLDER: Final = "index"
SMALL: Final = 1 << 22  # bytes that are read through in a few hundredths of a second
FORMAT: Final = 1
ROW_BYTES: Final = 12
HEAD_BYTES: Final = 1000

_TEXT: Final = rb'[^"\\]*(?:\\.[^"\\]*)*'
KINDS: Final = {
    # the input row's id, also within a response's (<row>#0) and a training row's (<row>/label)
    "id": re.compile(rb'\{"id":"([^"\\/#]*(?:\\.[^"\\/#]*)*)'),
    # where ingest read the row, or what it dropped
    "source": re.compile(rb'\{"id":"%b",(?:"reason":"%b","evidence":\{)?"source":"(%b)"' % (_TEXT, _TEXT, _TEXT)),
    # of a response, or of what was revoked
    "request": re.compile(
        rb'\{"id":"%b",(?:"prompt":"%b","sample":\d+|"reason":"revoked","evidence":\{"source":"%b","teacher":"%b"),"request":"(%b)"'
        % (_TEXT, _TEXT, _TEXT, _TEXT, _TEXT)
    ),
    # of a judge's answer, also of one that was of no use
    "judgement": re.compile(
        rb'(?:.*"judgement":\{"score":-?\d+,"reason":"%b","judge":"%b"|\{"id":"%b","reason":"not_judged","evidence":'
        rb'\{"why":"%b",(?:"source":"%b",)?"teacher":"%b"),"request":"(%b)"'
        % (_TEXT, _TEXT, _TEXT, _TEXT, _TEXT, _TEXT, _TEXT)
    ),
    # of a record in the response store
    "key": re.compile(rb'\{"key":"([0-9a-f]{32})"'),
}
"""What a line can be looked up by: patterns whose group is the name, as it stands in the line's JSON."""

_VOTED: Final = re.compile(rb'"request":"([0-9a-f]{32})"')  # in an example: quotes within texts are escaped

Index = tuple[Sequence[int], Sequence[int]]
"""Where each line begins, and the numbers of the lines (from 0) in the order of their names."""

LOOKED_UP: Final = {"ingest": ("id", "source"), "sample": ("id", "request"), "judge": ("id", "judgement")}
"""The kinds of names by which the rows of a stage are looked up; of other stages it is the id alone."""


@dataclass(frozen=True)
class Hit:
    """A line that was found; ``line`` counts from 1."""

    path: Path
    line: int
    raw: bytes

    @property
    def place(self) -> str:
        """``path:line``."""
        return f"{self.path}:{self.line}"

    @property
    def dropped(self) -> bool:
        """Whether it is a drop."""
        return self.path.name == f"{outputs.DROPPED}.jsonl"

    @property
    def row(self) -> dict[str, Any]:
        """What the line holds. Raises RunError where that is no JSON object with an id, so that nobody takes damage for a row."""
        try:
            found = strict_json(self.raw)
            if not isinstance(found, dict) or not isinstance(found.get("id"), str):
                raise ValueError("not a row")
        except ValueError as error:
            raise RunError(f"{self.place}: {plain(str(error))}; run `stepdistill audit`") from None
        return found


def row_of(name: str) -> str:
    """The id of the input row within the id of a response (``<row>#0``) or of a training row (``<row>/label``)."""
    return re.split("[/#]", name, maxsplit=1)[0]


_ELSEWHERE: Final[dict[Path, Path]] = {}


@contextmanager
def elsewhere(run: Path, folder: Path) -> Iterator[None]:
    """Within the block, in all threads, indexes of ``run`` that are missing are made in ``folder``: the run itself is only read."""
    before = _ELSEWHERE.get(run)
    _ELSEWHERE[run] = folder
    try:
        yield
    finally:
        if before is None:
            del _ELSEWHERE[run]
        else:
            _ELSEWHERE[run] = before


def missing(run: Path, stages: list[str]) -> int:
    """How many indexes are missing for the results in force of these stages and for the response store."""
    return sum(_head(*wanted) is None for wanted in _wanted(run, stages))


def prepare(run: Path, stages: list[str]) -> None:
    """Make the indexes that are missing for the results in force of these stages and for the response store, with a progress bar."""
    missing = [wanted for wanted in _wanted(run, stages) if _head(*wanted) is None]
    if not missing:
        return
    with bar("index", sum(path.stat().st_size for path, _, _ in missing) >> 20, "MiB") as advance:
        for wanted in missing:
            _made(*wanted, run, advance)


def find(run: Path, folder: Path, kind: str, name: str, *, beginning: bool = False) -> Iterator[Hit]:
    """The lines of a result's row files and drops whose name of this kind is ``name``, or begins with it.

    By file, and in a file by name and line. Raises RunError where a file is missing or the manifest is damaged.
    """
    for path in row_files(folder):
        yield from find_in(run, path, kind, name, beginning=beginning)


def find_stored(run: Path, key: str) -> Iterator[Hit]:
    """The records of the response store with this key, in the order of their arrival. Raises RunError where the store is damaged."""
    for path in responses.segments(run / "responses"):
        yield from find_in(run, path, "key", key)


def scan(folder: Path, advance: Advance | None = None) -> Iterator[tuple[str, Hit]]:
    """Every line of a result's row files and drops, with the id of its input row (empty where the line has none).

    ``advance`` is told the lines of each file.
    """
    match = KINDS["id"].match
    for path in row_files(folder):
        number = 0
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                found = match(line)
                yield _decoded(found[1]) if found else "", Hit(path, number, line)
        if advance is not None:
            advance(number)


def reached(
    results: Iterable[tuple[Path, Manifest]], bad: Mapping[str, Collection[str]], advance: Advance | None = None
) -> Iterator[tuple[Path, Manifest, Hit]]:
    """Every line of these results that comes of what is ``bad``.

    ``results`` are finished folders and their manifests, parents before their children. ``bad`` names input rows, source files, and
    requests of responses and judgements, by the kinds of ``pipeline.revocations``. ``advance`` is told the lines that were read.
    """
    files, requests, judgements = (frozenset(bad.get(kind, ())) for kind in ("file", "response", "judgement"))
    rows: dict[tuple[str, str], set[str]] = {}  # by result: ids of input rows that are bad in it, and what comes of it
    said: dict[tuple[str, str], set[str]] = {}  # by result of sample: ids of its bad responses
    for folder, manifest in results:
        parents = [(name, parent.key) for name, parent in manifest.parents.items()]
        here = set(bad.get("row", ())).union(*(rows.get(parent, ()) for parent in parents))
        answers = set[str]().union(*(said.get(parent, ()) for parent in parents))
        stage = manifest.stage
        told = said[stage, manifest.key] = set()
        for row, hit in scan(folder, advance):
            if requests and stage == "sample" and name_in(hit, "request") in requests:
                told.add(hit.row["id"])
            elif row not in here:
                begins = (
                    (files and stage == "ingest" and name_in(hit, "source").rpartition(":")[0] in files)
                    or (requests and stage == "parse" and _rests_on(hit, answers, requests))
                    or (judgements and stage == "judge" and name_in(hit, "judgement") in judgements)
                )
                if not begins:
                    continue
                here.add(row)
            yield folder, manifest, hit
        rows[stage, manifest.key] = here


def name_in(hit: Hit, kind: str) -> str:
    """The name of this kind in a line; empty where it has none."""
    found = KINDS[kind].match(hit.raw)
    return _decoded(found[1]) if found else ""


def _rests_on(hit: Hit, answers: Collection[str], requests: Collection[str]) -> bool:
    """Whether an example, or a drop of parse, was made of one of these responses: drops know their ids, votes their requests."""
    if hit.dropped:
        return bool(answers) and hit.row["id"] in answers
    return any(found.decode() in requests for found in _VOTED.findall(hit.raw))


def row_files(folder: Path) -> list[Path]:
    """The files of kept rows of a finished folder, in order, and its drops. Raises RunError where one is missing or lies elsewhere."""
    names = [*(file.path for file in outputs.row_files(folder)), f"{outputs.DROPPED}.jsonl"]
    for name in names:
        if "/" in name or (folder / name).is_symlink() or not (folder / name).is_file():
            raise RunError(f"{folder / plain(name)}: missing, or not a file of its own; run `stepdistill audit`")
    return [folder / name for name in names]


def _wanted(run: Path, stages: list[str]) -> Iterator[tuple[Path, str, Path]]:
    """File, kind and place of each index that looking up rows of these stages takes."""
    for stage in stages:
        folder = outputs.current(run, stage)
        for path in [] if folder is None else row_files(folder):
            for kind in LOOKED_UP.get(stage, ("id",)):
                if path.stat().st_size > SMALL:
                    yield path, kind, _place(run, path, kind)
    for path in responses.segments(run / "responses"):
        if path.stat().st_size > SMALL:
            yield path, "key", _place(run, path, "key")


def _place(run: Path, path: Path, kind: str) -> Path:
    """Where the index lies, or is to be made: in the run, but for one that it has not where they are kept elsewhere."""
    name = path.relative_to(run).with_name(f"{path.name}.{kind}")
    own = run / FOLDER / name
    return own if run not in _ELSEWHERE or _head(path, kind, own) is not None else _ELSEWHERE[run] / name


def find_in(run: Path, path: Path, kind: str, name: str, *, beginning: bool = False) -> Iterator[Hit]:
    """As ``find``, in one file of a run."""
    try:
        text = msgspec.json.encode(name)[1:-1]  # as it stands in a line
    except UnicodeEncodeError:
        return  # no text that a row could hold
    if path.stat().st_size <= SMALL:
        yield from _read_through(path, kind, text, beginning=beginning)
        return
    place = _place(run, path, kind)
    offsets, order = _read(path, kind, place) or _made(path, kind, place, run)
    with path.open("rb") as file:
        name_at = _Names(file, kind, offsets, order)
        for position in range(bisect_left(range(len(order)), text, key=name_at), len(order)):
            found = name_at(position)
            if found != text and not (beginning and found.startswith(text)):
                return
            yield Hit(path, order[position] + 1, name_at.line)


class _Names:
    """The names of a file's lines in sorted order, each read when it is asked for; ``line`` is the last one that was read."""

    def __init__(self, file: IO[bytes], kind: str, offsets: Sequence[int], order: Sequence[int]) -> None:
        self.file, self.match, self.offsets, self.order = file, KINDS[kind].match, offsets, order
        self.line = b""

    def __call__(self, position: int) -> bytes:
        try:
            self.file.seek(self.offsets[self.order[position]])
        except (IndexError, OverflowError, OSError, ValueError):
            raise RunError(
                f"{self.file.name}: its index was tampered with; remove the run's folder {FOLDER}/"
            ) from None
        self.line = self.file.readline()
        found = self.match(self.line)
        return found[1] if found else b""


def _read_through(path: Path, kind: str, text: bytes, *, beginning: bool) -> Iterator[Hit]:
    match = KINDS[kind].match
    hits = []
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            name = found[1] if text in line and (found := match(line)) else None
            if name is not None and (name == text or (beginning and name.startswith(text))):
                hits.append((name, number, line))
    yield from (Hit(path, number, line) for _, number, line in sorted(hits))


def _made(path: Path, kind: str, place: Path, run: Path, advance: Advance | None = None) -> Index:
    """The index of a file, made from it, and written where that is possible."""
    of = _of(path, kind)
    match = KINDS[kind].match
    names: list[bytes] = []
    offsets = array("Q")
    position = shown = 0
    with path.open("rb") as lines:
        for line in lines:
            found = match(line)
            names.append(found[1] if found else b"")
            offsets.append(position)
            position += len(line)
            if advance is not None and position >> 20 > shown:
                advance((position >> 20) - shown)
                shown = position >> 20
    order = array("I", sorted(range(len(names)), key=names.__getitem__))
    body = offsets.tobytes() + order.tobytes()
    head = {"of": of, "rows": len(order), "check": xxhash.xxh3_128_hexdigest(body)}
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    try:
        _make_folder(_ELSEWHERE.get(run, run / FOLDER), place.parent)
        temporary.write_bytes(
            canonical_json(head) + b"\n" + body
        )  # not synced: what a power loss leaves fails its check
        temporary.replace(place)
    except OSError:
        pass  # a folder that can only be read: the index is good without a file
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return offsets, order


def _make_folder(top: Path, folder: Path) -> None:
    """The folder of an index; those of results that are no longer in force go. Raises OSError, also where it would lie outside ``top``."""
    if not folder.resolve().is_relative_to(top.parent.resolve() / top.name):
        raise OSError("a link leads out of the indexes' folder")
    if folder.is_dir():
        return
    for other in folder.parent.iterdir() if folder.parent.is_dir() and folder.parent != top else ():
        shutil.rmtree(other, ignore_errors=True)
    folder.mkdir(parents=True)


def _read(path: Path, kind: str, place: Path) -> Index | None:
    """The index of a file as it lies on disk; None where there is none that was made here of exactly this file, or it is damaged."""
    head = _head(path, kind, place)
    if head is None:
        return None
    try:
        with place.open("rb") as file:
            file.seek(len(head.line))
            body = memoryview(file.read(head.rows * ROW_BYTES))
    except OSError:
        return None
    if len(body) != head.rows * ROW_BYTES or xxhash.xxh3_128_hexdigest(body) != head.check:
        return None
    return body[: head.rows * 8].cast("Q"), body[head.rows * 8 :].cast("I")


class _Head(NamedTuple):
    """The first line of an index, and what it says."""

    line: bytes
    rows: int
    check: str


def _head(path: Path, kind: str, place: Path) -> _Head | None:
    """The head of an index; None where there is none that was made here of exactly this file."""
    try:
        if place.is_symlink() or not place.is_file():
            return None
        with place.open("rb") as file:
            line = file.readline(HEAD_BYTES)
        said = strict_json(line)
        head = _Head(line, said["rows"], said["check"])
        size = len(line) + head.rows * ROW_BYTES
        fits = type(head.rows) is int and type(head.check) is str and size == place.stat().st_size
        return head if fits and line.endswith(b"\n") and said["of"] == _of(path, kind) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _of(path: Path, kind: str) -> dict[str, Any]:
    """What an index must have been made of: the file as it lies here. No one who hands over a folder can foresee inode and times."""
    found = path.stat()
    times = [found.st_mtime_ns, found.st_ctime_ns]
    return {
        **{"format": FORMAT, "kind": kind, "bytes": found.st_size, "inode": found.st_ino, "times": times},
        "order": sys.byteorder,
    }


def _decoded(text: bytes) -> str:
    """A name as it stands in a line's JSON, as text."""
    if b"\\" not in text:
        return text.decode(errors="replace")
    try:
        return str(msgspec.json.decode(b'"' + text + b'"'))
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
