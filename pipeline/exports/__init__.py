"""What a data set tells of itself in the formats of others: one format a file, picked by name in ``pipeline.export.FORMATS``.

A format is ``render(view) -> str``. It reads a ``View``, which is made from manifests alone (and from the figures file that evaluate's
manifest names by its SHA-256), so that the same manifests give the same bytes wherever and whenever they are rendered::

    view(Path("runs/topics")).results     {"ingest": (folder, manifest), .., "shard": .., "train": .., "evaluate": ..}

Texts out of manifests may be hostile: they pass through ``escaped`` (Markdown), ``quoted`` (YAML and JSON) or ``plain`` (text) on their
way. Values are taken by ``part``, which takes nothing for granted about what settings and details hold.

Limits: a view speaks of the shard stage's result in force and of what it was made from. Training and evaluation are part of it only where
they were made from that very result.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from pipeline import outputs
from pipeline.files import InputError, RunError, plain, sha256
from pipeline.records import Manifest, OutputFile, Source
from pipeline.shard import SPLITS
from pipeline.stages import STAGES

HUB: Final = "https://huggingface.co/datasets"
KEY: Final = re.compile(r"[0-9a-f]{32}")
LATER: Final = ("train", "evaluate")
SHARD_NAME: Final = re.compile(rf"({'|'.join(SPLITS)})-\d{{5,}}\.jsonl")
LICENCES: Final = (
    "Apache-2.0 MIT CC0-1.0 CC-BY-3.0 CC-BY-4.0 CC-BY-SA-3.0 CC-BY-SA-4.0 CC-BY-NC-4.0 CC-BY-NC-SA-4.0 CC-BY-ND-4.0 CC-BY-NC-ND-4.0 "
    "PDDL-1.0 ODC-By-1.0 ODbL-1.0 CDLA-Permissive-2.0"
).split()
"""SPDX identifiers under which inputs are often given. What else a source states is shown as the text that it is."""
HUB_NAMES: Final = {"PDDL-1.0": "pddl", "ODC-By-1.0": "odc-by", "ODbL-1.0": "odbl"}  # where the Hub's is not SPDX's


class Result(NamedTuple):
    """A finished folder and what its manifest says."""

    folder: Path
    manifest: Manifest


@dataclass(frozen=True)
class View:
    """The data set of a run: its shards, what they were made from and what was made from them, by stage.

    ``base`` is the way from where the export will lie to the shards; ``repository`` the data set's name on the Hub, where it has one.
    """

    results: Mapping[str, Result]
    base: str = ""
    repository: str | None = None

    @property
    def shard(self) -> Manifest:
        """The manifest of the shards."""
        return self.results["shard"].manifest

    def manifest_digest(self, stage: str) -> str:
        """SHA-256 of a stage's manifest, as its bytes lie on disk."""
        return hashlib.sha256(outputs.manifest_bytes(self.results[stage].manifest)).hexdigest()


class Model(NamedTuple):
    """A model that took part: what its stage's manifest says it is, and further facts."""

    name: str
    identity: Mapping[str, Any]
    facts: Mapping[str, Any]


def view(run: Path) -> View:
    """The data set in force of a run folder.

    Raises InputError where there are no shards, RunError where a manifest that they lead back to is missing, damaged or another than the
    one that is cited.
    """
    folder = outputs.current(run, "shard")
    if folder is None:
        raise InputError(f"{run}: no finished shards; run `stepdistill run --until shard` first")
    chain: dict[str, Result] = {}
    _add(run, "shard", folder.name, chain)
    later = [outputs.current(run, stage) for stage in LATER]
    return assembled(chain, [Result(one, outputs.read_manifest(one)) for one in later if one is not None])


def _add(run: Path, stage: str, key: str, found: dict[str, Result]) -> None:
    """A result and all that it was made from."""
    folder = run / stage / key
    manifest = outputs.read_manifest(folder)
    found[stage] = Result(folder, manifest)
    for parent, record in manifest.parents.items():
        if parent in found:
            continue
        path = run / parent / record.key / outputs.MANIFEST
        if parent not in STAGES or not KEY.fullmatch(record.key) or not path.is_file():
            raise RunError(
                f"{folder / outputs.MANIFEST}: parents.{plain(parent)}: not on disk; run `stepdistill audit`"
            )
        if sha256(path) != record.manifest:
            raise RunError(f"{path}: not the manifest that {stage} was made from; run `stepdistill audit`")
        _add(run, parent, record.key, found)


def assembled(chain: Mapping[str, Result], later: Iterable[Result]) -> View:
    """The view of shards and what they were made from, by stage, with those of ``later`` that were made from them.

    Raises RunError where the manifest of the shards names a file that no shard stage writes.
    """
    found = dict(chain)
    for result in later:
        parents = result.manifest.parents
        if all(name in found and found[name].folder.name == record.key for name, record in parents.items()):
            found[result.manifest.stage] = result
    folder, manifest = found["shard"]
    for file in shards(manifest):
        if not SHARD_NAME.fullmatch(file.path):
            raise RunError(f"{folder / outputs.MANIFEST}: outputs: {plain(file.path)} is no name of a shard")
    return View({stage: found[stage] for stage in STAGES if stage in found}, f"../shard/{folder.name}/")


def part(value: Any, *steps: str) -> Any:
    """What lies in nested objects under these names; None where there is no such thing."""
    for step in steps:
        value = value.get(step) if isinstance(value, dict) else None
    return value


def setting(shown: View, stage: str, *steps: str) -> Any:
    """A resolved setting of a stage; None where the stage did not run or has none of this name."""
    return part(shown.results[stage].manifest.settings, *steps) if stage in shown.results else None


def detail(shown: View, stage: str, *steps: str) -> Any:
    """As ``setting``, from the details that the stage's own function left."""
    return part(shown.results[stage].manifest.details, *steps) if stage in shown.results else None


def title(shown: View) -> str:
    """The task's name, as stages.yaml has it."""
    name = setting(shown, "shard", "task")
    return plain(name, 200) if isinstance(name, str) and name.strip() else "Training rows"


def shards(manifest: Manifest) -> list[OutputFile]:
    """The row files of a shard stage, in order."""
    return [file for file in manifest.outputs if file.root is not None]


def rows_by_split(shown: View) -> dict[str, int]:
    """How many rows each split holds, for those that hold any."""
    counted: dict[str, int] = dict.fromkeys(SPLITS, 0)
    for file in shards(shown.shard):
        counted[file.path.partition("-")[0]] += file.rows or 0
    return {split: rows for split, rows in counted.items() if rows}


def models(shown: View, stage: str) -> list[Model]:
    """The models that a stage used."""
    if stage not in shown.results:
        return []
    manifest = shown.results[stage].manifest
    return [Model(name, identity, manifest.models.get(name, {})) for name, identity in manifest.identities.items()]


def made_by(shown: View) -> list[str]:
    """The stages that made the shards, in order."""
    return [stage for stage in shown.results if stage not in LATER]


def inputs(shown: View) -> list[Source]:
    """Where the inputs came from, under the licence that was stated when the shards were made: it may have come after ingest ran."""
    found = shown.results["ingest"].manifest.sources if "ingest" in shown.results else []
    stated = setting(shown, "shard", "license")
    return [one.model_copy(update={"license": stated}) for one in found] if isinstance(stated, str) else list(found)


def named(model: Model) -> str:
    """A model's name for people: ``embedded (SmolLM2-135M-Instruct)``."""
    name = model.name.removeprefix("teacher ").removeprefix("judge ")
    of = model.identity.get("model")
    inner = of.get("name") if isinstance(of, dict) else of
    return f"{name} ({inner})" if isinstance(inner, str) and inner != name else name


def licences(shown: View) -> list[str | None]:
    """The licences that the inputs' sources state, each once; None for those that state none."""
    return sorted({source.license for source in inputs(shown)}, key=lambda one: (one is None, one or ""))


def known_licence(text: str | None) -> str | None:
    """The SPDX identifier meant, where it is one of LICENCES."""
    return next((one for one in LICENCES if text is not None and one.lower() == text.strip().lower()), None)


def hub_licence(shown: View) -> str:
    """What the Hub's field ``license`` is to say: the inputs' one licence where it is known, 'other' for several, 'unknown' without.

    A teacher's terms come on top of it; they stand in the card's text.
    """
    stated = licences(shown)
    if not stated or None in stated:
        return "unknown"
    known = known_licence(stated[0])
    return HUB_NAMES.get(known, known.lower()) if len(stated) == 1 and known else "other"
