"""The checks of an audit: one a file, picked and ordered by ``pipeline.audit.CHECKS``.

A check is ``check(audited) -> Iterator[Finding]``. It never raises for what it audits: whatever is wrong, missing or hostile becomes a
finding, and a check that cannot go on says so in one. What it is given is safe to open: ``opened`` leaves out a result that names a
path out of its folder, or whose files are links, devices or the like.
"""

import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final, NamedTuple

from pipeline import outputs
from pipeline.files import RunError, plain, strict_json
from pipeline.processes import Crew
from pipeline.records import Manifest
from pipeline.runner import ASIDE, RUN_FACTS
from pipeline.stages import STAGES

if TYPE_CHECKING:
    from pipeline.audits.scan import Scan

LARGEST: Final = 256 << 20  # bytes of a manifest: far more than any has, so that none fills the memory
CURRENT: Final = "current"


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was written, or contradicts something else. ``line`` counts from 1; ``check`` names who found it."""

    path: Path
    problem: str
    line: int | None = None
    check: str = ""

    def __str__(self) -> str:
        """``path:line: problem``, on one line."""
        place = plain(str(self.path), 1000)
        return f"{place}:{self.line}: {self.problem}" if self.line else f"{place}: {self.problem}"


class Result(NamedTuple):
    """A finished folder and what its manifest says."""

    folder: Path
    manifest: Manifest


@dataclass(frozen=True)
class Audited:
    """What is audited, and how.

    ``results`` are in force, by stage, in order; ``others`` are finished ones besides. ``full`` also derives every row again.
    ``keys`` are the public keys that the auditor trusts. ``crew`` is where large work is done; ``scans`` is what one pass over each file
    gave, by its path: filled by the check of files, used by those after it. ``covered`` counts what was read. ``recompute``, with ``full``,
    also runs the filters again that need the whole corpus. ``notes`` is for what a check could not look at, which is no finding.
    ``barred``: links or devices lie in the run folder, so that nothing may be opened that was not looked at first.
    """

    run: Path
    results: dict[str, Result]
    others: Sequence[Result] = ()
    full: bool = False
    sample: int | None = None
    seed: int = 0
    keys: Sequence[Path] = field(default=())
    crew: Crew = field(default_factory=lambda: Crew(processes=1))
    scans: "dict[Path, Scan]" = field(default_factory=dict)
    recompute: bool = False
    notes: list[Finding] = field(default_factory=list)
    barred: bool = False
    covered: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("files", "rows", "bytes", "responses"), 0))

    @property
    def store(self) -> Path:
        """The response store's folder."""
        return self.run / "responses"

    @property
    def all(self) -> tuple[Result, ...]:
        """Every finished result that is audited, those in force first."""
        return (*self.results.values(), *self.others)

    def parent(self, result: Result, stage: str) -> Result | None:
        """The result of ``stage`` that ``result`` was made from, where it is there."""
        wanted = result.manifest.parents.get(stage)
        if wanted is None:
            return None
        places = (stage, wanted.key)
        candidates = (one for one in (self.results.get(stage), *self.others) if one is not None)
        return next((one for one in candidates if (one.folder.parent.name, one.folder.name) == places), None)

    def ancestors(self, stage: str) -> Iterator[tuple[str, Result]]:
        """The results that a stage's result in force was made from, nearest first, as far as they are there."""
        yield from self.before(self.results[stage])

    def before(self, result: Result) -> Iterator[tuple[str, Result]]:
        """The results that any result was made from, nearest first, as far as they are there."""
        seen = {result.folder}
        waiting = [result]
        while waiting:
            one = waiting.pop(0)
            for name in one.manifest.parents:
                found = self.parent(one, name)
                if found is not None and found.folder not in seen:
                    seen.add(found.folder)
                    waiting.append(found)
                    yield name, found


def kind(path: Path) -> str | None:
    """What lies there: 'file', 'folder', 'link', 'other' (a device, a pipe ..); None for nothing. Nothing is opened."""
    try:
        mode = path.lstat().st_mode
    except (OSError, ValueError):
        return None
    tests: tuple[tuple[str, Callable[[int], bool]], ...] = (
        ("file", stat.S_ISREG), ("folder", stat.S_ISDIR), ("link", stat.S_ISLNK),
    )  # fmt: skip
    return next((name for name, is_that in tests if is_that(mode)), "other")


def misplaced(path: Path) -> str | None:
    """Why a path cannot be read as a plain file; None where it can, or where nothing is there."""
    found = kind(path)
    return {
        None: None,
        "file": None,
        "folder": "a folder where a file was written",
        "link": "a symbolic link where a file was written",
    }.get(found, "neither a file nor a folder; it was not opened")


def opened(
    run: Path, stages: Sequence[str], *, everything: bool
) -> tuple[dict[str, Result], list[Result], list[Finding]]:
    """The finished results in force by stage, with ``everything`` those no longer in force, and what is wrong with their manifests.

    Besides those in force, results that they were made from are always among the others.
    """
    results: dict[str, Result] = {}
    others: list[Result] = []
    findings: list[Finding] = []
    tried: set[Path] = set()

    def opening(folder: Path) -> Result | None:
        tried.add(folder)
        try:
            result = _result(folder)
        except RunError as error:
            place = folder / outputs.MANIFEST
            findings.append(Finding(place, str(error).removeprefix(f"{place}: ")))
            return None
        unsafe = list(_unsafe(result))
        findings.extend(unsafe)
        return None if unsafe else result

    for stage in stages:
        if kind(run / stage) != "folder":
            continue
        folder = _current(run, stage)
        if isinstance(folder, Finding):
            findings.append(folder)
        elif folder is not None and (result := opening(folder)) is not None:
            results[stage] = result
    waiting = list(results.values())
    while waiting:
        for stage, parent in waiting.pop().manifest.parents.items():
            folder = run / stage / parent.key
            if stage in STAGES and _is_key(parent.key) and folder not in tried and _is_finished(folder):
                result = opening(folder)
                others += [result] if result is not None else []
                waiting += [result] if result is not None else []
    if everything:
        for stage in stages:
            for folder in sorted((run / stage).iterdir()) if kind(run / stage) == "folder" else ():
                if folder not in tried and _is_finished(folder) and (result := opening(folder)) is not None:
                    others.append(result)
    return results, others, findings


def _is_key(name: str) -> bool:
    return len(name) == 32 and set(name) <= set("0123456789abcdef")


def _is_finished(folder: Path) -> bool:
    return kind(folder) == "folder" and kind(folder / outputs.MANIFEST) is not None


def _made_aside(folder: Path) -> bool:
    """Whether a result says that it was made without being in force, as a sweep makes them."""
    facts = folder / RUN_FACTS
    try:
        known = strict_json(facts.read_bytes()) if kind(facts) == "file" and facts.lstat().st_size <= 1000 else None
    except (OSError, ValueError):
        return False
    return isinstance(known, dict) and known.get(ASIDE) is True


def _current(run: Path, stage: str) -> Path | Finding | None:
    """The folder in force of a stage, or what is wrong with the file that names it; None where a stage never had a result."""
    place = run / stage / CURRENT
    try:
        if kind(place) is None:
            unnamed = any(_is_finished(path) and not _made_aside(path) for path in (run / stage).iterdir())
            return (
                Finding(place, "missing, though there are results; restore the file, or run again") if unnamed else None
            )
        if (problem := misplaced(place)) is not None:
            return Finding(place, problem)
        raw = place.read_bytes() if place.lstat().st_size <= 1000 else b""
    except OSError as error:
        return Finding(place, f"cannot be read ({error.strerror})")
    name = raw.decode(errors="replace").removesuffix("\n")
    if not _is_key(name) or not _is_finished(run / stage / name):
        return Finding(place, f"names no finished result: {plain(name, 80)}")
    return run / stage / name


def _result(folder: Path) -> Result:
    """Raises RunError."""
    path = folder / outputs.MANIFEST
    if (problem := misplaced(path)) is not None:
        raise RunError(f"{path}: {problem}")
    try:
        if path.lstat().st_size > LARGEST:
            raise RunError(f"{path}: larger than any manifest; the manifest cannot be used")
        return Result(folder, outputs.read_manifest(folder))
    except (RecursionError, MemoryError, OSError):
        raise RunError(f"{path}: the manifest cannot be read") from None


def _unsafe(result: Result) -> Iterator[Finding]:
    """Paths of a manifest that must not be followed."""
    folder, manifest = result
    place = folder / outputs.MANIFEST
    seen: set[str] = set()
    for file in manifest.outputs:
        parts = PurePosixPath(file.path).parts
        plainly = "\0" not in file.path and "/".join(parts) == file.path and not {"..", "/"} & {*parts}
        if not plainly or not parts or file.path in (outputs.MANIFEST, CURRENT):
            yield Finding(place, f"outputs: {plain(file.path)} points out of the folder, or is no plain path to a file")
            continue
        if file.path in seen:
            yield Finding(place, f"outputs: {plain(file.path)} stands there twice")
        seen.add(file.path)
        for depth in range(1, len(parts)):
            above = folder.joinpath(*parts[:depth])
            if kind(above) not in ("folder", None):
                yield Finding(above, "not a folder, though files were written in it")
                break
        else:
            if (problem := misplaced(folder / file.path)) is not None:
                yield Finding(folder / file.path, problem)
