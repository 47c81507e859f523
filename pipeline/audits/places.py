"""Nothing lies in the run folder that has no business there: every file, folder, link and hidden name is accounted for.

    dedup/302a..../.part-00000.jsonl.tmp: not in the manifest

What is allowed where: at the top the names of ``AT_TOP``; in a stage's folder ``current`` and results by their keys; in a result the
files of its manifest, the manifest and run facts (``run.json``, ``run-*.json``), which hold times and are vouched for by nobody. A folder
without a manifest is what an interrupted run left; it is passed over only while a process holds the run folder.

Limits: what ``UNLISTED`` names holds views and remnants that nothing is made from; only links and devices in them are found.
"""

import fcntl
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from pipeline import marks, outputs
from pipeline.audits import CURRENT, Audited, Finding, kind
from pipeline.runner import LOCK, is_run_fact
from pipeline.stages import STAGES

AT_TOP: Final = {
    **dict.fromkeys(STAGES, "folder"),
    "responses": "folder",
    "report": "folder",
    "signatures": "folder",
    "exports": "folder",
    "answers": "folder",
    "sweeps": "folder",
    "index": "folder",
    "damaged": "folder",
    "revoked.jsonl": "file",
    marks.FILE: "file",
    LOCK: "file",
}
"""What may lie in a run folder, and what it is."""

UNLISTED: Final = {
    "report": "a page over the rest, made anew by every run",
    "index": "of trace, made anew from the rest",
    "damaged": "what repair moved out of the way",
    "signatures": "read by the check of signatures",
    "exports": "read by the check of exports",
    "answers": "what students said, so that they are not asked again; predictions hold what counts",
    "sweeps": "results.jsonl is read by the check of sweeps, the rest are views of it",
}
"""Folders whose files are not listed here, each with its reason."""


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on what lies in the run folder."""
    known = {folder: {file.path for file in manifest.outputs} for folder, manifest in audited.all}
    at_work = is_held(audited.run / LOCK)
    for path in _entries(audited.run):
        wanted = AT_TOP.get(path.name)
        if wanted is None:
            yield Finding(path, "nothing of this name belongs in a run folder")
        elif kind(path) != wanted:
            yield Finding(path, f"not a {wanted}; it was not opened")
        elif path.name in STAGES:
            yield from _stage(path, known, at_work=at_work)
        elif path.name in UNLISTED:
            yield from odd(path)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _stage(place: Path, known: dict[Path, set[str]], *, at_work: bool) -> Iterator[Finding]:
    for path in _entries(place):
        if path.name == CURRENT:
            continue  # was looked at when the results were opened
        if len(path.name) != 32 or set(path.name) - set("0123456789abcdef"):
            if not (at_work and path.name.startswith(f".{CURRENT}.")):
                yield Finding(path, f"not a result of {place.name}")
        elif kind(path) != "folder":
            yield Finding(path, "not a folder; it was not opened")
        elif path in known:
            yield from _result(path, known[path])
        elif kind(path / outputs.MANIFEST) is None and not at_work:
            yield Finding(path, "unfinished, and no process works on it; run again to finish it, or remove it")


def _result(folder: Path, listed: set[str]) -> Iterator[Finding]:
    """What lies in a result's folder beside what its manifest lists."""
    folders = {str(above) for name in listed for above in PurePosixPath(name).parents}
    waiting = [folder]
    while waiting:
        for path in _entries(waiting.pop()):
            name = path.relative_to(folder).as_posix()
            found = kind(path)
            if found == "folder" and name in folders:
                waiting.append(path)
            elif name in listed:
                continue
            elif found != "file":
                told = {"folder": "a folder", "link": "a symbolic link"}.get(found or "", "neither a file nor a folder")
                yield Finding(path, f"{told}; not in the manifest")
            elif name != outputs.MANIFEST and not ("/" not in name and is_run_fact(name)):
                yield Finding(path, "not in the manifest")


def odd(folder: Path) -> Iterator[Finding]:
    """Links, devices and pipes anywhere in a folder: none belongs there, and to open one can lead elsewhere or wait forever."""
    waiting = [folder]
    while waiting:
        for path in _entries(waiting.pop()):
            found = kind(path)
            if found == "folder":
                waiting += [path] if path != folder / "damaged" else []
            elif found != "file":
                yield Finding(
                    path, f"{'a symbolic link' if found == 'link' else 'neither a file nor a folder'}; remove it"
                )


def is_held(lock: Path) -> bool:
    """Whether a process holds this lock just now."""
    if kind(lock) != "file":
        return False
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
