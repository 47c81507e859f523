"""What a disk may hold after the power went, worked out from the log of calls that tests/faults.c writes.

    calls = read(log)
    disk = Disk(start)                 # what lay there before the first call, all of it durable
    for call in calls[:number]:
        disk.apply(call)
    disk.lose_power(random.Random(7)).write(folder)

The model is harsher than a common file system. Of a file, only what was written before its last fsync is sure to be there; of the writes
after it any may be missing, and one may be torn. Of a folder, only names that were made, moved or removed before its last fsync are sure;
of the changes after it a beginning is there, the rest is not. A folder whose own name was not synced in the folder above can be missing
with all that is in it.

Limits: names in one folder change in order, as journals have it. A file's length can be there without its bytes only within torn writes.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class Call(NamedTuple):
    """One call that changed something."""

    name: str
    path: str
    second: str
    offset: int
    data: bytes


@dataclass
class File:
    """A file's bytes: those that are durable, and the writes since (offset, bytes); a cut is a write of None."""

    durable: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def now(self) -> bytes:
        return _written(self.durable, self.pending)


@dataclass
class Folder:
    """A folder's entries: those that are durable, and the changes since (name, what it names from then on, or None)."""

    durable: dict[str, "File | Folder"] = field(default_factory=dict)
    pending: list[dict[str, "File | Folder | None"]] = field(default_factory=list)

    def now(self) -> dict[str, "File | Folder"]:
        return _changed(self.durable, self.pending)


def read(log: Path) -> Iterator[Call]:
    """The calls of a log, in order."""
    data, place = log.read_bytes(), 0
    while place < len(data):
        end = data.index(b"\0", place)
        name, offset, size, path = data[place:end].decode().split(" ", 3)
        after = data.index(b"\0", end + 1)
        second = data[end + 1 : after].decode()
        place = after + 1 + int(size)
        yield Call(name, path, second, int(offset), data[after + 1 : place])


class Disk:
    """The folder ``root`` as the calls leave it, with what of it is durable."""

    def __init__(self, root: Path, start: Mapping[str, bytes]) -> None:
        self.root = PurePosixPath(root)
        self.top = Folder()
        for name, content in start.items():
            folder = self.top
            *above, last = PurePosixPath(name).parts
            for part in above:
                folder = folder.durable.setdefault(part, Folder())  # type: ignore[assignment]
            folder.durable[last] = File(content)

    def apply(self, call: Call) -> None:
        """Make the call. One that failed in truth (a folder that was there already) changes nothing here either."""
        if call.name == "fsync":
            found = self._find(call.path)
            if found is not None:
                found.durable, found.pending = found.now(), []  # type: ignore[assignment]
            return
        above, name = self._place(call.path)
        if above is None:
            return
        entries = above.now()
        known = entries.get(name)
        if call.name == "create" and known is None:
            above.pending.append({name: File()})
        elif call.name == "truncate" and isinstance(known, File):
            known.pending.append((0, None))
        elif call.name == "cut" and isinstance(known, File):
            known.pending.append((call.offset, None))
        elif call.name == "write" and isinstance(known, File):
            known.pending.append((call.offset if call.offset >= 0 else len(known.now()), call.data))
        elif call.name == "mkdir" and known is None:
            above.pending.append({name: Folder()})
        elif call.name in ("unlink", "rmdir") and known is not None:
            above.pending.append({name: None})
        elif call.name == "rename" and known is not None:
            to, new = self._place(call.second)
            if to is above:
                above.pending.append({name: None, new: known})
            elif to is not None:
                to.pending.append({new: known})
                above.pending.append({name: None})

    def lose_power(self, chance: random.Random) -> dict[str, bytes]:
        """What may be there when the power comes back: file -> bytes; folders without files have an entry that ends in '/'."""
        found: dict[str, bytes] = {}
        self._survive(self.top, "", chance, found)
        return found

    def _survive(self, folder: Folder, above: str, chance: random.Random, found: dict[str, bytes]) -> None:
        entries = _changed(folder.durable, folder.pending[: chance.randint(0, len(folder.pending))])
        if not entries and above:
            found[above] = b""
        for name, entry in entries.items():
            if isinstance(entry, Folder):
                self._survive(entry, f"{above}{name}/", chance, found)
                continue
            kept = (
                [write for write in entry.pending if chance.random() < 0.5] if chance.random() < 0.7 else entry.pending
            )
            if kept and chance.random() < 0.5 and (last := kept[-1])[1]:
                kept = [*kept[:-1], (last[0], last[1][: chance.randint(0, len(last[1]))])]
            found[f"{above}{name}"] = _written(entry.durable, kept)

    def _place(self, path: str) -> tuple[Folder | None, str]:
        inside = PurePosixPath(path).relative_to(self.root)
        if not inside.parts:
            return None, ""
        above = self._find(str(self.root / inside.parent))
        return (above if isinstance(above, Folder) else None), inside.name

    def _find(self, path: str) -> File | Folder | None:
        found: File | Folder | None = self.top
        for part in PurePosixPath(path).relative_to(self.root).parts:
            if not isinstance(found, Folder):
                return None
            found = found.now().get(part)
        return found


def _written(data: bytes, writes: list[tuple[int, bytes | None]]) -> bytes:
    for offset, written in writes:
        rest = b"" if written is None else data[offset + len(written) :]
        data = data[:offset].ljust(0 if written is None else offset, b"\0") + (written or b"") + rest
    return data


def _changed(
    entries: Mapping[str, File | Folder], changes: list[dict[str, File | Folder | None]]
) -> dict[str, File | Folder]:
    found = dict(entries)
    for change in changes:
        for name, entry in change.items():
            if entry is None:
                found.pop(name, None)
            else:
                found[name] = entry
    return found


def write(found: Mapping[str, bytes], folder: Path) -> None:
    """Lay these files into an empty folder."""
    for name, content in found.items():
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
