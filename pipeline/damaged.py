"""What is damaged is moved to <run>/damaged/, under the path that it had, and never deleted; names do not collide.

    put_away(run, run / "dedup/302a..")     # -> <run>/damaged/dedup/302a.., or 302a...1, 302a...2 where that is taken

Beside it lies ``rebuilding.json`` while a result is made again; it names that result, for the case of an interruption.

Symbolic links are kept as text files that tell where they pointed, so that nothing in the folder leads out of it.

Limits: whatever lies there is kept until somebody deletes it; no command reads it but ``repair``.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from pipeline import outputs
from pipeline.audits import kind
from pipeline.files import RunError, atomic, sync_folder
from pipeline.records import Manifest

FOLDER: Final = "damaged"
Outcome = Literal["rebuilt", "put back", "moved away", "cut out", "lost", "left"]


@dataclass(frozen=True)
class Step:
    """One thing that was damaged and what became of it.

    ``place`` is relative to the run folder. ``outcome``: 'rebuilt' (made again from what is intact), 'put back' (a file as it was
    written), 'moved away', 'cut out' (both to damaged/), 'lost' for good, or 'left' as it is. ``lost`` names rows and files that are gone
    for good.
    """

    place: str
    damage: str
    outcome: Outcome
    told: str = ""
    lost: list[str] = field(default_factory=list)


def put_away(run: Path, path: Path) -> Path:
    """Move a file or folder of the run; where it lies now."""
    target = _free(run, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if kind(path) == "link":
        _keep_link(path, target)
        return target
    path.rename(target)
    for folder, folders, files in os.walk(target):
        for name in (*folders, *files):
            if kind(Path(folder, name)) == "link":
                _keep_link(Path(folder, name), Path(folder, f"{name}.link"))
    sync_folder(target.parent)
    sync_folder(path.parent)
    return target


def put_back(run: Path, path: Path, kept: Path) -> None:
    """Undo ``put_away``, where nothing could take its place; what was begun in its place is put away in turn."""
    if kind(path) is not None:
        put_away(run, path)
    kept.rename(path)
    sync_folder(path.parent)


def keep(run: Path, path: Path, lines: Iterable[bytes]) -> Path:
    """Keep lines that are about to be cut out of a file of the run; where they are."""
    target = _free(run, path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic(target) as file:
        file.writelines(lines)
    return target


def results(run: Path, stage: str) -> Iterator[Path]:
    """Every folder that is or was a result of a stage, whole or damaged, those that were put away last."""
    for place in (run / stage, run / FOLDER / stage):
        if kind(place) == "folder":
            yield from sorted(path for path in place.iterdir() if kind(path) == "folder")


def manifest_of(folder: Path) -> Manifest | None:
    """The manifest of a folder, where it is whole."""
    try:
        return outputs.read_manifest(folder) if kind(folder / outputs.MANIFEST) == "file" else None
    except RunError:
        return None


def _free(run: Path, path: Path) -> Path:
    above = run / FOLDER
    if kind(above) not in (None, "folder"):
        raise RunError(f"{above}: not a folder; damaged files are moved there: remove it")
    within = path.relative_to(run)
    wanted = above.joinpath(*within.parts[1:]) if within.parts[0] == FOLDER else above / within
    target, number = wanted, 0
    while kind(target) is not None:
        number += 1
        target = wanted.with_name(f"{wanted.name}.{number}")
    return target


def _keep_link(path: Path, target: Path) -> None:
    with atomic(target) as file:
        file.write(os.fsencode(os.readlink(path)) + b"\n")  # noqa: PTH115 - a text is wanted, not a path
    path.unlink()
