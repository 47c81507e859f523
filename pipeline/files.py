"""JSONL in and out, atomic writes, digests, and errors that say where.

The order on disk is always: data, then drops, then manifest, then pointer; each by temporary file, fsync, rename, fsync of the
folder. A reader therefore never sees half a file under a final name.
"""

import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import jsonlines
import xxhash

BLOCK = 1 << 20
DIGITS = 4000  # of a whole number: msgspec, which reads rows back, takes 4,300 with the sign, Python without


class InputError(Exception):
    """Something the user gave cannot be used. The message is one line: place, problem, what to do. The command line exits with 2."""


class RowError(InputError):
    """One row that cannot be used, in a source that can. ``problem`` is the message without the place that it begins with."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(f"{place}: {problem}")
        self.problem = problem


class RunError(Exception):
    """Work that could not be finished though the settings are right. One line; the command line exits with 1."""


def place(path: Path | str, line: int | None = None) -> str:
    """``path:line`` as messages begin with."""
    return f"{path}:{line}" if line else str(path)


def plain(text: str, limit: int = 300) -> str:
    """``text`` on one line without control characters, so that hostile input can neither forge lines nor drive a terminal."""
    shown = "".join(character if character.isprintable() else f"\\x{ord(character):02x}" for character in text)
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


HIDDEN = "(hidden)"
_SECRET = r"(?:api|access|secret|private)[_-]?key|secret|password|passwd|credential|authorization"
_SECRET_NAME = re.compile(
    rf"(?:.*[_-])?(?:{_SECRET})s?|(?:hf|hub|api|auth|access|bearer|session)[_-]?tokens?|token", re.IGNORECASE
)
_SECRET_IN_QUERY = re.compile(
    rf"(?<=[?&;])((?:[\w-]*[_-])?(?:(?:{_SECRET})s?|token|key|signature|sig|auth|pwd))=[^&;#\s\"'<>]*", re.IGNORECASE
)
_USER_INFORMATION = re.compile(
    r"""(?<=://)(?:[^/?#\s@]*@  # what RFC 3986, section 3.2.1, allows
    |[^/?#\s@:\[]*:(?!\d+[/?#])[^\s"'<>]*@(?=[\w\[]))  # a password as it was typed, with '/', '?' or '#'; not a port and a path""",
    re.VERBOSE,
)
_HOME = re.compile(
    r"""(?:(?<![\w.~/-])|(?<=file://))(?:/var)?/(?:home|Users)/[^/\s"':]+|(?<!\w)[A-Za-z]:[\\/]+[Uu]sers[\\/]+[^\\/\s"':]+"""
)


def private(value: Any) -> Any:
    """A JSON value whose texts tell nobody's name or password.

    Addresses lose user information and the values of parameters such as ``api_key`` and ``token``, home folders become ``~``, and whatever
    stands under such a name (``hf_token``, ``passwords``) is hidden; what counts tokens (``tokens``, ``max_tokens``) is left alone.
    Limits: a secret under any other name, or in the middle of a text, is not recognised; nor is a password that begins like a port and a
    path (``8080/x``), and of a Windows user's name only its first word is.
    """
    if isinstance(value, dict):
        return {
            private(name): HIDDEN if _says(item) and _SECRET_NAME.fullmatch(str(name)) else private(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [private(item) for item in value]
    return _private_text(value) if isinstance(value, str) else value


def _says(value: Any) -> bool:
    """Whether a value under a secret's name can be the secret: not where it is empty, or switches something on or off."""
    return bool(value) and value is not True


def _private_text(text: str) -> str:
    """The text after which nothing more is taken out: each round takes at least one '@' or '/' away, or is the last."""
    home = os.path.expanduser("~")  # noqa: PTH111 - a text is wanted, and none where there is no home
    homes = [folder for folder in dict.fromkeys((home, os.path.realpath(home))) if folder not in ("~", "/", "")]
    before = None
    while before != text:
        before = text
        text = _SECRET_IN_QUERY.sub(rf"\1={HIDDEN}", _USER_INFORMATION.sub("", text))
        for folder in homes:
            text = re.sub(rf"{re.escape(folder)}(?=/|$|[^\w.-])", "~", text)
        text = _HOME.sub("~", text)
    return text


def canonical_json(value: object) -> bytes:
    """The one encoding that digests are taken over: sorted keys, no spaces, UTF-8.

    Raises ValueError for NaN and infinities and for text that is no Unicode (lone surrogates).
    """
    return _CANONICAL.encode(value).encode()


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: object) -> str:
    """xxh3-128 of the canonical JSON, 32 hexadecimal digits: names for rows, requests and stage keys."""
    return xxhash.xxh3_128_hexdigest(canonical_json(value))


def line_digest(line: bytes) -> str:
    """xxh3-64 of a line without its newline, 16 hexadecimal digits: what the ``.xxh3`` files beside row files hold."""
    return xxhash.xxh3_64_hexdigest(line)


def regular(path: Path) -> Path:
    """``path`` itself. Raises OSError where it is a pipe or a device: reading one may never end."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return path


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with regular(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def strict_json(text: str | bytes) -> Any:
    """``json.loads`` that refuses what JSON leaves open: duplicate keys, NaN and infinities, lone surrogates, endless nesting.

    Bytes are UTF-8, as JSON between programs is, and may begin with a byte order mark. Raises ValueError.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                raise ValueError(f"key {name!r} stands there twice")
            found[name] = value
        return found

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON number")

    try:
        if isinstance(text, bytes):
            text = text.decode().removeprefix("\ufeff")  # json.loads would take UTF-16 too
        value = json.loads(text, object_pairs_hook=unique, parse_constant=refuse, parse_int=_whole)
        canonical_json(value)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeError:
        raise ValueError("text that is not valid Unicode") from None
    return value


def _whole(digits: str) -> int:
    if len(digits) > DIGITS:
        raise ValueError(f"a whole number of {len(digits):,} characters, {DIGITS:,} are the most")
    return int(digits)


def scan_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any] | RowError]]:
    r"""Line number (from 1) and object of each line, or the error that tells why there is none; blank lines are passed over.

    Lines end at ``\n`` alone: U+2028 and its like are ordinary text. Raises InputError where the file cannot be read at all.
    """
    number = 0

    def lines(file: IO[bytes]) -> Iterator[bytes]:
        nonlocal number
        for raw in file:
            number += 1
            yield raw

    try:
        with regular(path).open("rb") as file:
            reader = jsonlines.Reader(lines(file), loads=strict_json)
            while True:
                row: dict[str, Any] | RowError
                try:
                    row = reader.read(type=dict, skip_empty=True)
                except jsonlines.InvalidLineError as error:
                    problem = plain(str(error).removesuffix(f" (line {error.lineno})"))
                    row = RowError(place(path, number), f"{problem}; each line must be one JSON object")
                except EOFError:
                    return
                yield number, row
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def read_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line. Raises InputError at the first line that is not one JSON object."""
    for number, row in scan_jsonl(path):
        if isinstance(row, InputError):
            raise row
        yield number, row


def write_json(path: Path, value: object) -> None:
    """Write ``value`` for people to read: indented, sorted, with a final newline; atomically."""
    with atomic(path) as file:
        file.write(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError from inside the block that names no file, as those of writing and syncing, names ``path``."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextmanager
def atomic(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name only when the block ends well, synced to disk; otherwise nothing is left."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


def clear(folder: Path) -> None:
    """Remove what ``atomic`` was writing in ``folder`` itself when its process was killed; only for who alone writes there."""
    for path in folder.glob(".*.tmp"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink()


@contextmanager
def held_alone(lock: Path, what: Path) -> Iterator[None]:
    """Hold ``what`` for this process alone by the file ``lock``; a killed holder leaves no lock behind, nor do its forked children.

    Raises RunError at once, naming the holder, where another process has it, or where nothing can be written; and at the end, where the
    lock's folder was removed meanwhile, so that another process may have held what stands there now.
    """
    try:
        file = lock.open("a+")
    except OSError as error:
        raise RunError(f"{what}: cannot be written to ({error.strerror}); check the path and its rights") from None
    with naming(lock), file:
        _take(file, what)
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        _HELD.add(file)
        try:
            yield
            if not _lies_at(lock, file):
                problem = "it was removed, or another was put in its place, while this process wrote to it"
                raise RunError(f"{what}: {problem}; run again, to see whether all is there")
        finally:
            _HELD.discard(file)
            with suppress(OSError):  # on a full disk the reason why the work failed counts
                file.seek(0)
                file.truncate()  # nobody holds it any more, and the host's name is nobody else's business


def _lies_at(path: Path, file: IO[str]) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except OSError:
        return False


def _take(lock: IO[str], what: Path) -> None:
    """Lock the open file ``lock``; raises RunError with the holder's name, which is in the file, where another process has it."""
    for _ in range(50):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            lock.seek(0)
            if holder := plain(lock.read().strip(), 80):
                break
            time.sleep(0.01)  # it has only just taken it and not written its name yet, or is letting it go
    else:
        holder = "another process"
    raise RunError(f"{what}: {holder} is writing to it; wait until it is done or stop it")


_HELD: set[IO[str]] = set()


def _let_go() -> None:
    """In a forked child: its copy of the lock must not outlive the parent, who holds it."""
    for file in _HELD:
        file.close()
    _HELD.clear()


os.register_at_fork(after_in_child=_let_go)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, so that their names survive a power loss; one that is there is well."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in missing or [folder]:  # its name may stem from a process that was killed before it was synced
        sync_folder(one.parent, one)


def sync_folder(folder: Path, new: Path | None = None) -> None:
    """Make renames and new names in ``folder`` survive a power loss; an error names ``new`` where it is given."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with naming(new or folder):
            os.fsync(handle)
    finally:
        os.close(handle)


def sync_files(folder: Path) -> None:
    """Make the files in ``folder``, and in folders there, written by whoever, survive a power loss, and their names."""
    for path in folder.iterdir():
        if path.is_dir():
            sync_files(path)
            continue
        with naming(path), path.open("rb") as file:
            os.fsync(file.fileno())
    sync_folder(folder)
