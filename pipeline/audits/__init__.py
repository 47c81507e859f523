"""The checks of an audit: one a file, picked and ordered by ``pipeline.audit.CHECKS``.

A check is ``check(audited) -> Iterator[Finding]``. It never raises for what it audits: whatever is wrong, missing or hostile becomes a
finding, and a check that cannot go on says so in one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pipeline import outputs
from pipeline.files import plain
from pipeline.records import Manifest


@dataclass(frozen=True)
class Finding:
    """Something that is not as it was written, or contradicts something else. ``line`` counts from 1."""

    path: Path
    problem: str
    line: int | None = None

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
    ``keys`` are the public keys that the auditor trusts.
    """

    run: Path
    results: dict[str, Result]
    others: Sequence[Result] = ()
    full: bool = False
    sample: int | None = None
    seed: int = 0
    keys: Sequence[Path] = field(default=())

    @property
    def store(self) -> Path:
        """The response store's folder."""
        return self.run / "responses"

    def ancestors(self, stage: str) -> Iterator[tuple[str, Result]]:
        """The results that a stage's result in force was made from, nearest first, as far as they are there."""
        for name, parent in self.results[stage].manifest.parents.items():
            found = next(
                (
                    result
                    for result in (self.results.get(name), *self.others)
                    if result is not None and result.manifest.stage == name and result.folder.name == parent.key
                ),
                None,
            )
            if found is not None:
                yield name, found
                if found is self.results.get(name):
                    yield from self.ancestors(name)


def opened(
    run: Path, stages: Sequence[str], *, everything: bool
) -> tuple[dict[str, Result], list[Result], list[Finding]]:
    """The finished results in force by stage, with ``everything`` those no longer in force, and what is wrong with their manifests."""
    from pipeline.files import RunError

    results: dict[str, Result] = {}
    others: list[Result] = []
    findings: list[Finding] = []
    for stage in stages:
        if not (run / stage).is_dir():
            continue
        current = outputs.current(run, stage)
        if current is None and (run / stage / "current").exists():
            findings.append(Finding(run / stage / "current", "names no finished result"))
        folders = {current} - {None}
        if everything:
            folders |= {path.parent for path in (run / stage).glob(f"*/{outputs.MANIFEST}")}
        for folder in sorted(path for path in folders if path is not None):
            try:
                result = Result(folder, outputs.read_manifest(folder))
            except RunError as error:
                path, problem = folder / outputs.MANIFEST, str(error).removeprefix(f"{folder / outputs.MANIFEST}: ")
                findings.append(Finding(path, problem))
                continue
            if folder == current:
                results[stage] = result
            else:
                others.append(result)
    return results, others, findings
