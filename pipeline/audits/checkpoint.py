"""Each trained model says which shards it was trained on, and these are the shards of the run that it lies in.

    train/2ab2..../student/provenance.json: shards: names the manifest 5b0c77aa1c2d, but the stage was made from 9f31c0d2ab44

``pipeline.train`` leaves ``provenance.json`` in the folder of each model: the SHA-256 and key of the shards' manifest, and its root. Who is
handed such a folder alone can hold it against a run's shards; here that is done for the run's own.

Limits: that these weights came of these rows cannot be told from them; the record says so, and a signature over the manifest, which lists
the folder's files, vouches for it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pipeline import outputs
from pipeline.audits import Audited, Finding, Result, kind, misplaced
from pipeline.files import RunError, plain, strict_json
from pipeline.train import CITATION, MODELS, citation

FIRST: Final = 2  # version of train that leaves such a record
LARGEST: Final = 1 << 16  # bytes of such a record


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on the models' records of what they were trained on."""
    for result in audited.all:
        if result.manifest.stage == "train" and result.manifest.version < FIRST:
            problem = "trained before models said which shards they were trained on"
            audited.notes.append(Finding(result.folder / outputs.MANIFEST, problem))
        elif result.manifest.stage == "train":
            for name in MODELS:
                if kind(result.folder / name) == "folder":
                    yield from _check(audited, result, result.folder / name / CITATION)


def _check(audited: Audited, result: Result, path: Path) -> Iterator[Finding]:
    listed = {file.path for file in result.manifest.outputs}
    if kind(path) is None:
        if f"{path.parent.name}/{CITATION}" in listed:
            return  # missing, as the check of files says
        yield Finding(path, "missing: the model does not say which shards it was trained on")
        return
    shards = audited.parent(result, "shard")
    if misplaced(path) is not None or shards is None:
        return  # named by other checks
    try:
        found = strict_json(path.read_bytes()) if path.stat().st_size <= LARGEST else None
        wanted = citation(shards.folder)
    except (OSError, ValueError, RunError) as error:
        yield Finding(path, f"cannot be read ({plain(str(error))})")
        return
    if not isinstance(found, dict):
        yield Finding(path, "no record of what a model was trained on")
        return
    for name in sorted({*found, *wanted}):
        if found.get(name) != wanted.get(name):
            told, was = plain(str(found.get(name)), 80), plain(str(wanted.get(name)), 80)
            yield Finding(path, f"{name}: names {told}, but the stage was made from {was}")
