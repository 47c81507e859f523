r"""One pass over a file: its SHA-256 and, where it holds rows, what the checks need to know of each row without holding it.

    scan(secret, Wanted(path, rows=True, tree=True)).sha256

Rows are told apart by ``marks``: 8 bytes of SHA-256 over a secret of this audit and the line. Whoever wrote the rows could not know the
secret, so that no two different lines were made to have the same mark. ``digests`` are the xxh3-64 of the lines, as the files beside row
files hold them; these are no protection, only a way to name a changed row.

A file is read in pieces of some megabytes, whatever its size. Limits: a line longer than ``LONGEST`` ends the pass; 28 bytes are held for
each row of a file.
"""

import hashlib
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import xxhash
from msgspec import DecodeError

from pipeline import merkle
from pipeline.files import plain
from pipeline.records import Drop, Example, decoded, decoder

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIECE: Final = 4 << 20
LONGEST: Final = 256 << 20  # bytes of one line
REQUEST: Final = re.compile(
    rb'"request":"([0-9a-f]{16})'
)  # 64 bits of a key; within a text its quotes would be escaped
LEAVES: Final = 1 << 16  # of a part of a Merkle tree; a power of two


@dataclass(frozen=True)
class Wanted:
    """A file, and what is to be known of it.

    ``rows``: it holds rows, and ``beside`` it may lie the file of their digests. ``tree``: the root of the Merkle tree over them.
    ``marked``: their marks; ``without`` names fields: marks of the rows without them, too. ``drops``: they are drops. ``requests``: the
    keys of the requests that rows name.
    """

    path: Path
    beside: Path | None = None
    rows: bool = False
    tree: bool = False
    marked: bool = False
    without: tuple[str, ...] = ()
    drops: bool = False
    requests: bool = False


@dataclass
class Scan:
    """What one pass over a file gave.

    ``digests_fit``: the file of digests beside it holds exactly those of its lines; None where there is none. ``digests`` and ``written``
    (what that file holds) are there only where they do not fit. ``lengths`` are those of the lines in bytes, newlines included, there with
    ``marks``. ``requests``: 64 bits of each key that rows name. ``problem``: what ended the pass, with its line.
    """

    bytes: int = 0
    sha256: str = ""
    rows: int = 0
    ended: bool = True  # the last line has its newline
    root: str | None = None
    digests_fit: bool | None = None
    beside_sha256: str | None = None
    digests: "NDArray[Any] | None" = None
    written: "NDArray[Any] | None" = None
    marks: "NDArray[Any] | None" = None
    bare: "NDArray[Any] | None" = None
    lengths: "NDArray[Any] | None" = None
    requests: "NDArray[Any] | None" = None
    reasons: Counter[str] = field(default_factory=Counter)
    ids: list[str] = field(default_factory=list)
    problem: tuple[str, int | None] | None = None


def scan(secret: bytes, wanted: Wanted) -> Scan:
    """What one pass over the file gives. Never raises for what it holds."""
    found = Scan()
    try:
        if wanted.rows:
            _rows(secret, wanted, found)
        else:
            for piece in _pieces(wanted.path, found):
                del piece
    except OSError as error:
        found.problem = (f"cannot be read ({error.strerror})", None)
    return found


def _pieces(path: Path, found: Scan) -> Iterator[bytes]:
    sha256 = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(PIECE):
            sha256.update(piece)
            found.bytes += len(piece)
            yield piece
    found.sha256 = sha256.hexdigest()


def _rows(secret: bytes, wanted: Wanted, found: Scan) -> None:
    import numpy

    digests, marks, bare, lengths, requests = array("Q"), array("Q"), array("Q"), array("I"), array("Q")
    roots: list[bytes] = []
    leaves: list[bytes] = []
    mark = _marker(secret)
    for lines in _lines(wanted.path, found):
        digests.extend(map(xxhash.xxh3_64_intdigest, lines))
        if wanted.tree:
            leaves += merkle.leaves(lines)
            while len(leaves) >= LEAVES:
                roots.append(merkle.Tree(leaves[:LEAVES]).root)
                del leaves[:LEAVES]
        if wanted.marked:
            marks.extend(map(mark, lines))
            lengths.extend([len(line) + 1 for line in lines])
        if wanted.without:
            bare.extend(mark(without(wanted.without, line)) for line in lines)
        if wanted.requests:
            requests.extend(int(key, 16) for line in lines for key in REQUEST.findall(line))
        if wanted.drops and found.problem is None:
            _drops(lines, found)
        found.rows += len(lines)
    if wanted.tree:
        if leaves:
            roots.append(merkle.Tree(leaves).root)
        found.root = merkle.Tree(roots).root.hex()  # parts are full but for the last: the same as over all leaves
    digested = numpy.frombuffer(digests, numpy.uint64) if digests else numpy.zeros(0, numpy.uint64)
    if wanted.beside is not None:
        _beside(wanted.beside, digested, found)
    if wanted.marked:
        found.marks, found.lengths = numpy.array(marks, numpy.uint64), numpy.array(lengths, numpy.uint32)
    if wanted.requests:
        found.requests = numpy.array(requests, numpy.uint64)
    if wanted.without:
        found.bare = numpy.array(bare, numpy.uint64)


def _lines(path: Path, found: Scan) -> Iterator[list[bytes]]:
    """The lines of the file, without newlines, some at a time."""
    rest = b""
    for piece in _pieces(path, found):
        if found.problem is not None:
            continue  # to the end for the file's SHA-256
        lines = (rest + piece).split(b"\n")
        rest = lines.pop()
        if len(rest) > LONGEST:
            found.problem = (f"a row of more than {LONGEST >> 20} MiB", found.rows + len(lines) + 1)
        yield lines
    if rest:
        found.ended = False
        yield [rest]


def _marker(secret: bytes) -> Callable[[bytes], int]:
    sha256, number = hashlib.sha256, int.from_bytes

    def mark(line: bytes) -> int:
        return number(sha256(secret + line).digest()[:8], "little")

    return mark


def without(fields: tuple[str, ...], line: bytes) -> bytes:
    """The line of an example without what a later stage sets in it."""
    try:
        return Example.read(line).changed(**dict.fromkeys(fields)).line()
    except (DecodeError, UnicodeEncodeError):
        return line


def _drops(lines: list[bytes], found: Scan) -> None:
    """Ids and reasons; drops that nobody can read end that."""
    try:
        drops = decoder(Drop).decode_lines(b"\n".join(lines))
        if len(drops) != len(lines):
            raise DecodeError("an empty line")
    except (DecodeError, UnicodeDecodeError, RecursionError):
        drops = []
        for number, line in enumerate(lines, found.rows + 1):
            try:
                drops.append(decoded(Drop, line))
            except DecodeError as error:
                found.problem = (f"not a Drop row ({plain(str(error))})", number)
                break
    found.ids += [drop.id for drop in drops]
    found.reasons.update(drop.reason for drop in drops)


def _beside(path: Path, digests: "NDArray[Any]", found: Scan) -> None:
    """Compare the lines' digests with the file of digests."""
    import numpy

    pieces = 1 << 20  # rows at a time
    sha256 = hashlib.sha256()
    fits = True
    with path.open("rb") as file:
        for start in range(0, len(digests), pieces):
            expected = encoded(digests[start : start + pieces])
            read = file.read(len(expected))
            sha256.update(read)
            fits = fits and read == expected
        while more := file.read(PIECE):
            sha256.update(more)
            fits = False
    found.beside_sha256, found.digests_fit = sha256.hexdigest(), fits
    if not fits:
        found.digests = numpy.array(digests)
        found.written = read_digests(path)


def encoded(digests: "NDArray[Any]") -> bytes:
    """What a file of these digests holds: 16 hexadecimal digits a line."""
    import numpy

    figures = numpy.frombuffer(digests.astype(">u8").tobytes().hex().encode(), numpy.uint8).reshape(-1, 16)
    lines = numpy.full((len(figures), 17), ord("\n"), numpy.uint8)
    lines[:, :16] = figures
    return lines.tobytes()


def read_digests(path: Path) -> "NDArray[Any] | None":
    """What a file of digests holds; None where it is no such file."""
    import numpy

    with path.open("rb") as file:
        raw = file.read(LONGEST + 1)
    if len(raw) % 17 or len(raw) > LONGEST:
        return None
    try:
        numbers = numpy.frombuffer(bytes.fromhex(raw.decode("ascii")), ">u8").astype(numpy.uint64)
    except ValueError:
        return None
    return numbers if encoded(numbers) == raw else None


def line_at(path: Path, lengths: "NDArray[Any]", places: "NDArray[Any]") -> Iterator[bytes]:
    """The lines at these places (from 0, rising) of a file whose lines have these lengths."""
    import numpy

    ends = numpy.cumsum(lengths, dtype=numpy.int64)
    with path.open("rb") as file:
        for place in places:
            file.seek(int(ends[place] - lengths[place]))
            yield file.read(int(lengths[place]) - 1)
