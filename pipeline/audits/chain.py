"""Each manifest lies where it says, has the key that its settings and parents give, and its parents are those it was made from."""

import re
from collections.abc import Iterator
from itertools import product
from typing import Final

from pipeline import outputs, provenance
from pipeline.audits import Audited, Finding, Result, misplaced
from pipeline.files import plain, sha256
from pipeline.stages import STAGES

KEY: Final = re.compile(r"[0-9a-f]{32}")


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on manifests, without a look at rows."""
    bound = {result.folder for stage in audited.results for result in _behind(audited, stage)}
    for result in audited.all:
        folder, manifest = result
        place = folder / outputs.MANIFEST
        stage = folder.parent.name
        if manifest.stage != stage or manifest.key != folder.name:
            yield Finding(
                place, f"says {plain(manifest.stage)} {plain(manifest.key)}, but lies under {stage}/{folder.name}"
            )
        key = provenance.key_of(
            manifest.stage, manifest.version, manifest.settings, manifest.parents, manifest.identities
        )
        if manifest.key != key:
            yield Finding(place, f"key: its settings, parents and models give {key}")
        if manifest.root != outputs.root(manifest.outputs):
            yield Finding(place, "root: not that of its row files")
        yield from _parents(audited, result, in_force=folder in bound)


def _behind(audited: Audited, stage: str) -> Iterator[Result]:
    """A result in force and all that it was made from."""
    yield audited.results[stage]
    yield from (result for _, result in audited.ancestors(stage))


def _parents(audited: Audited, result: Result, *, in_force: bool) -> Iterator[Finding]:
    folder, manifest = result
    place = folder / outputs.MANIFEST
    stage = folder.parent.name
    if frozenset(manifest.parents) not in readings(stage):
        told = plain(", ".join(sorted(manifest.parents))) or "nothing"
        yield Finding(place, f"parents: {stage} cannot have been made from {told}")
    for parent, record in manifest.parents.items():
        path = audited.run / parent / record.key / outputs.MANIFEST
        if not KEY.fullmatch(record.key) or parent not in STAGES or misplaced(path) or not path.is_file():
            yield Finding(place, f"parents.{plain(parent)}: no result {plain(record.key)} on disk")
        elif sha256(path) != record.manifest:
            told = f"not the manifest that {stage} was made from"
            if in_force:
                yield Finding(path, told)
            else:  # a stage that was run anew, by `--force`, has the same key and may say more of its machine
                audited.notes.append(Finding(path, f"{told}; {folder.parent.name}/{folder.name} is no longer in force"))


def readings(stage: str) -> set[frozenset[str]]:
    """The sets of stages that a stage can have been made from: one that is switched off is stood in for by what it would have read."""
    choices = []
    for name in STAGES[stage].reads:
        choices.append({frozenset({name})} | (readings(name) if STAGES[name].optional else set()))
    return {frozenset().union(*chosen) for chosen in product(*choices)}
