"""A stage's folder on disk: row files with their line digests, drops, and the manifest that is written last.

<run>/<stage>/<key>/part-00000.jsonl    kept rows, one JSON object a line
<run>/<stage>/<key>/part-00000.xxh3     one digest a line of it, so that an audit can name a changed row
<run>/<stage>/<key>/dropped.jsonl       dropped rows with reason and evidence (and dropped.xxh3)
<run>/<stage>/<key>/manifest.json       exists if and only if all the rest is complete
<run>/<stage>/current                   the key in force
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TypeVar

from msgspec import DecodeError
from pydantic import ValidationError

from pipeline import merkle
from pipeline.files import (
    RunError,
    atomic,
    canonical_json,
    line_digest,
    naming,
    plain,
    sha256,
    strict_json,
    sync_folder,
)
from pipeline.records import Drop, Manifest, OutputFile, Row

R = TypeVar("R", bound=Row)

MANIFEST = "manifest.json"
DROPPED = "dropped"
DIGEST = 17  # bytes of a line's digest with its newline


@dataclass(frozen=True)
class Job:
    """What a job stage is given beside its settings.

    ``folder`` is its own (``<run>/<stage>/<key>``): what lies there at the start was left by an interrupted try at the same key, to go on
    from or to overwrite. ``inputs`` are the finished folders of the stages it reads. ``responses`` is the response store's folder.
    """

    folder: Path
    inputs: Mapping[str, Path]
    responses: Path


@dataclass
class Totals:
    """What a job's generator returns at its end: how many rows it took (in its stage's unit), and facts for the manifest."""

    rows_in: int
    details: dict[str, object] = field(default_factory=dict)


class RowWriter:
    """Writes lines to ``<prefix>-00000.jsonl``, ``<prefix>-00001.jsonl`` ... and their digests beside them.

    Files appear under their names complete and synced; ``close`` returns them. Without ``rows_per_file`` there is one file,
    ``<prefix>.jsonl``, even for no rows. ``tree``: with the root of the Merkle tree over each file's lines.
    """

    def __init__(self, folder: Path, prefix: str, rows_per_file: int | None, *, tree: bool = False) -> None:
        self.folder, self.prefix, self.rows_per_file, self.tree = folder, prefix, rows_per_file, tree
        self.finished: list[OutputFile] = []
        self.rows = 0
        self._files: tuple[IO[bytes], IO[bytes]] | None = None

    def write(self, line: bytes) -> None:
        """Add one row; ``line`` is its encoding without the newline."""
        if self._files is None:
            self._open()
        assert self._files is not None
        rows, digests = self._files
        with naming(self.folder / f"{self._name}.jsonl"):
            rows.write(line + b"\n")
            digests.write(line_digest(line).encode() + b"\n")
        self._sha256.update(line + b"\n")
        if self.tree:
            self._leaves.append(merkle.leaf(line))
        self.rows += 1
        self._in_file += 1
        if self._in_file == self.rows_per_file:
            self._finish()

    def write_lines(self, data: bytes, digests: bytes, rows: int) -> None:
        """Add ``rows`` rows at once: their lines and the lines of their digests, with newlines."""
        done = start = 0
        while done < rows:
            if self._files is None:
                self._open()
            assert self._files is not None
            taken = rows - done if self.rows_per_file is None else min(rows - done, self.rows_per_file - self._in_file)
            end = len(data) if done + taken == rows else _after(data, start, taken)
            with naming(self.folder / f"{self._name}.jsonl"):
                self._files[0].write(memoryview(data)[start:end])
                self._files[1].write(memoryview(digests)[done * DIGEST : (done + taken) * DIGEST])
            self._sha256.update(memoryview(data)[start:end])
            if self.tree:
                self._leaves += merkle.leaves(data[start : end - 1].split(b"\n"))
            self.rows += taken
            self._in_file += taken
            done, start = done + taken, end
            if self._in_file == self.rows_per_file:
                self._finish()

    def close(self) -> list[OutputFile]:
        """Finish the last file; all files written, row files and digest files."""
        if self._files is None and self.rows_per_file is None and not self.finished:
            self._open()
        if self._files is not None:
            self._finish()
        return self.finished

    def _open(self) -> None:
        self._name = self.prefix if self.rows_per_file is None else f"{self.prefix}-{len(self.finished) // 2:05d}"
        self._in_file = 0
        self._sha256 = hashlib.sha256()
        self._leaves: list[bytes] = []
        self._files = (self._temporary("jsonl").open("wb"), self._temporary("xxh3").open("wb"))

    def _temporary(self, suffix: str) -> Path:
        return self.folder / f".{self._name}.{suffix}.tmp"

    def _finish(self) -> None:
        assert self._files is not None
        for file, suffix in zip(self._files, ("jsonl", "xxh3"), strict=True):
            path = self.folder / f"{self._name}.{suffix}"
            with naming(path):
                file.flush()
                os.fsync(file.fileno())
                file.close()
            self._temporary(suffix).replace(path)
            rows = suffix == "jsonl"
            self.finished.append(
                OutputFile(
                    path=path.name,
                    bytes=path.stat().st_size,
                    rows=self._in_file if rows else None,
                    sha256=self._sha256.hexdigest() if rows else sha256(path),
                    root=merkle.Tree(self._leaves).root.hex() if rows and self.tree else None,
                )
            )
        self._files = None
        sync_folder(self.folder)


def _after(data: bytes, start: int, lines: int) -> int:
    """Where the line begins that is ``lines`` lines after the one at ``start``."""
    for _ in range(lines):
        start = data.index(b"\n", start) + 1
    return start


def current(run: Path, stage: str) -> Path | None:
    """The finished folder in force of a stage, or None."""
    try:
        key = (run / stage / "current").read_text().strip()
    except (FileNotFoundError, NotADirectoryError):
        return None
    folder = run / stage / key
    return folder if key and "/" not in key and key not in (".", "..") and (folder / MANIFEST).is_file() else None


def point(run: Path, stage: str, key: str) -> None:
    """Make ``key`` the one in force."""
    with atomic(run / stage / "current") as file:
        file.write(key.encode() + b"\n")


def manifest_bytes(manifest: Manifest) -> bytes:
    """The one encoding of a manifest: canonical JSON and a newline."""
    return canonical_json(manifest.model_dump(mode="json")) + b"\n"


def manifest_digest(manifest: Manifest) -> str:
    """What the field ``digest`` must hold."""
    return hashlib.sha256(canonical_json(manifest.model_dump(mode="json", exclude={"digest"}))).hexdigest()


def root(files: Iterable[OutputFile]) -> str | None:
    """The root over all row files that have one themselves: what stands for a whole data set. None where no file has one."""
    entries = [file_entry(file) for file in files if file.root is not None]
    return merkle.Tree(merkle.leaves(entries)).root.hex() if entries else None


def file_entry(file: OutputFile) -> bytes:
    """The line by which a row file is a leaf of its data set's tree."""
    return canonical_json(file.model_dump(mode="json", include={"path", "bytes", "rows", "root"}))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write it last: its existence means that the folder is complete."""
    with atomic(folder / MANIFEST) as file:
        file.write(manifest_bytes(manifest))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as file:
        file.write(text.encode())


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a finished folder. Raises RunError, naming file and field, where it is not exactly what was written."""
    return read_manifest_file(folder / MANIFEST)


def read_manifest_file(path: Path) -> Manifest:
    """The manifest in a file, wherever it lies. Raises RunError as ``read_manifest`` does."""
    try:
        raw = path.read_bytes()
        found = strict_json(raw)
        if isinstance(found, dict) and found.get("schema_version") == 1:
            raise ValueError(
                "of an earlier version; move the stages' folders away and run again (responses/ stays good)"
            )
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        raise RunError(
            f"{path}: {plain(place)}: {plain(first['msg'])}; the manifest is damaged or of another version"
        ) from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: {plain(str(error))}; the manifest cannot be used") from None
    if manifest_bytes(manifest) != raw or manifest_digest(manifest) != manifest.digest:
        raise RunError(f"{path}: digest: does not fit the content; the manifest was changed after it was written")
    return manifest


def row_files(folder: Path) -> list[OutputFile]:
    """The kept rows' files of a finished folder, in order (extra files that a job wrote are not among them)."""
    written = read_manifest(folder).outputs
    names = {file.path for file in written}
    return [
        file
        for file in written
        if file.rows is not None
        and file.path != f"{DROPPED}.jsonl"
        and file.path.removesuffix(".jsonl") + ".xxh3" in names
    ]


def lines(folder: Path) -> Iterator[bytes]:
    """The kept rows' lines of a finished folder, without newlines, in order."""
    for file in row_files(folder):
        with (folder / file.path).open("rb") as rows:
            for line in rows:
                yield line.rstrip(b"\n")


def read(folder: Path, record: type[R]) -> Iterator[R]:
    """The kept rows of a finished folder, in order. Raises RunError that names file and line where one cannot be read."""
    for file in row_files(folder):
        yield from read_file(folder / file.path, record)


def read_drops(folder: Path) -> Iterator[Drop]:
    """The dropped rows of a finished folder."""
    return read_file(folder / f"{DROPPED}.jsonl", Drop)


def read_file(path: Path, record: type[R]) -> Iterator[R]:
    """The rows of one row file. Raises RunError that names the line where one is not a ``record``."""
    with path.open("rb") as rows:
        for number, line in enumerate(rows, 1):
            try:
                yield record.read(line)
            except DecodeError as error:
                raise RunError(
                    f"{path}:{number}: not a {record.__name__} row ({plain(str(error))}); run `stepdistill audit`"
                ) from None
