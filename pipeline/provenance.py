"""What a result depends on: stage keys, what changed since the last run, and what would therefore run.

A stage's key is a digest over its name and version, its resolved settings with input files taken by content, the manifests it reads and
the models it uses. Same key, same bytes; ``stages.NOT_IN_KEY`` names what is left out and why.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline import outputs, prompts, sources
from pipeline.binding import Call
from pipeline.config import Config
from pipeline.files import canonical_json, digest, plain, private, sha256
from pipeline.records import Manifest, Parent, Source
from pipeline.stages import NOT_IN_KEY, STAGES


@dataclass(frozen=True)
class Ask:
    """Everything a stage's key is made of, resolved at one moment; ``asked`` are the settings as stages.yaml has them."""

    stage: str
    key: str
    asked: dict[str, Any]
    settings: dict[str, Any]
    sources: list[Source]
    parents: dict[str, Parent]
    identities: dict[str, Any]


@dataclass(frozen=True)
class Step:
    """One line of a plan. ``ask`` is None where the key is not known yet because a stage before it has to run."""

    stage: str
    runs: bool
    reasons: list[str] = field(default_factory=list)
    ask: Ask | None = None


def ask(config: Config, stage: str, settled: Mapping[str, Path] | None = None) -> Ask | None:
    """The stage's key and its parts, against the parents' results in force; None where a parent has none.

    ``settled`` names results that take the place of those in force. Raises InputError where an input file cannot be read.
    """
    parents: dict[str, Parent] = {}
    for parent in config.parents(stage):
        folder = (settled or {}).get(parent) or outputs.current(config.run, parent)
        if folder is None:
            return None
        parents[parent] = Parent(key=folder.name, manifest=sha256(folder / outputs.MANIFEST))
    settings, found, identities = _resolution(config, stage)
    key = key_of(stage, STAGES[stage].version, settings, parents, identities)
    return Ask(stage, key, private(config.given.get(stage, {})), settings, _distinct(found), parents, identities)


def likenesses(config: Config) -> dict[str, str]:
    """For each stage a digest that is the same for other settings exactly where they lead to the same result of this stage.

    It is the stage's key with the likenesses of the stages it reads in place of their manifests, so no result has to be there.
    Raises InputError where an input file cannot be read.
    """
    found: dict[str, str] = {}
    for stage in config.stages:
        settings, _, identities = _resolution(config, stage)
        parents = {parent: found[parent] for parent in config.parents(stage)}
        found[stage] = _key(stage, STAGES[stage].version, settings, parents, identities)
    return found


def _resolution(config: Config, stage: str) -> tuple[dict[str, Any], list[Source], dict[str, Any]]:
    """What a stage's key is made of beside its parents: settings with files by content, and models; and the files that were read."""
    found: list[Source] = []
    root = config.file.parent  # by which relative paths in the settings begin
    settings = {name: _resolved(value, found, root) for name, value in config.stages[stage].items()}
    if not STAGES[stage].reads:
        read: list[Source] = []
        settings["inputs"] = _resolved(_source(config.task.inputs), read, root)
        if config.task.inputs.startswith(sources.HUB):
            read.append(_hub(config.task.inputs))
        found += _licensed(read, config.task.license)
    return private(settings), found, private(STAGES[stage].identities(config.stages[stage]))


def key_of(
    stage: str,
    version: int,
    settings: Mapping[str, Any],
    parents: Mapping[str, Parent],
    identities: Mapping[str, Any],
) -> str:
    """A stage's key, from what its manifest holds: 32 hexadecimal digits."""
    return _key(stage, version, settings, {name: parent.manifest for name, parent in parents.items()}, identities)


def _key(
    stage: str,
    version: int,
    settings: Mapping[str, Any],
    parents: Mapping[str, str],
    identities: Mapping[str, Any],
) -> str:
    return digest(
        {
            "stage": stage,
            "version": version,
            "settings": _keyed(settings, stage),
            "parents": {**parents},
            "identities": identities,
        }
    )


def plan(config: Config, stages: list[str] | None = None, *, force: bool = False) -> list[Step]:
    """For each stage (all, or the named ones on what lies on disk): does it run, and why."""
    steps: list[Step] = []
    running: set[str] = set()
    settled: dict[str, Path] = {}
    for stage in config.stages:
        if stages is not None and stage not in stages:
            continue
        waiting = [parent for parent in config.parents(stage) if parent in running]
        asked = ask(config, stage, settled)
        reasons = [f"{parent} runs" for parent in waiting]
        last = outputs.current(config.run, stage)
        if last is not None:
            reasons += changes(outputs.read_manifest(last), stage, asked, set(waiting))
        elif not waiting:
            reasons.append("never run")
        finished = finished_folder(config, stage, asked.key) if asked is not None and not waiting else None
        if finished is not None:
            settled[stage] = finished
        runs = finished is None or force
        if runs and not reasons:
            reasons.append("forced" if finished else "its result is gone")
        if finished and not force and last is not None and asked is not None and last.name != asked.key:
            reasons = ["a result with these settings lies on disk", *reasons]
        elif not runs:
            reasons = []
        if runs:
            running.add(stage)
        steps.append(Step(stage, runs, reasons, None if waiting else asked))
    return steps


def finished_folder(config: Config, stage: str, key: str) -> Path | None:
    """The folder of a finished result with this key, or None."""
    folder = config.run / stage / key
    return folder if (folder / outputs.MANIFEST).is_file() else None


def changed(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str) -> list[str]:
    """One line for each setting that differs: ``quality.filters: [..] -> [..]``."""
    found = []
    for name in sorted({*before, *now}):
        old, new = before.get(name), now.get(name)
        if canonical_json(old) == canonical_json(new):
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found += changed(old, new, f"{prefix}.{name}")
        elif isinstance(old, list) and isinstance(new, list) and (moved := _moved(old, new)):
            found.append(f"{prefix}.{name}: {moved}")
        else:
            found.append(f"{prefix}.{name}: {_shown(old)} -> {_shown(new)}")
    return found


def _moved(old: list[Any], new: list[Any]) -> str:
    """What came into a list and what went out of it; nothing where only the order changed."""
    came = [f"+ {_shown(item)}" for item in new if item not in old]
    went = [f"- {_shown(item)}" for item in old if item not in new]
    return ", ".join(came + went)


def changes(manifest: Manifest, stage: str, asked: Ask | None, waiting: set[str]) -> list[str]:
    """What differs between a result and what would be made now, one line each; of parents but those that are ``waiting``."""
    reasons = []
    if manifest.version != STAGES[stage].version:
        reasons.append(f"{stage}: version {manifest.version} -> {STAGES[stage].version}")
    if asked is None:
        return reasons
    reasons += changed(_keyed(manifest.settings, stage), _keyed(asked.settings, stage), stage)
    reasons += changed(manifest.identities, asked.identities, stage)
    for parent in sorted({*manifest.parents, *asked.parents} - waiting):
        was, now_parent = manifest.parents.get(parent), asked.parents.get(parent)
        if was != now_parent:
            reasons.append(f"{parent} has another result")
    return reasons


def _keyed(settings: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The settings that count."""
    kept = {name: value for name, value in settings.items() if f"{prefix}.{name}" not in NOT_IN_KEY}
    return {name: _keyed_value(value, f"{prefix}.{name}") for name, value in kept.items()}


def _keyed_value(value: Any, prefix: str) -> Any:
    if isinstance(value, dict):
        return _keyed(value, prefix)
    return [_keyed_value(item, prefix) for item in value] if isinstance(value, list) else value


def _source(inputs: str) -> Path | str:
    return inputs if inputs.startswith(sources.HUB) else Path(inputs)


def _resolved(value: Any, found: list[Source], root: Path) -> Any:
    """A setting as JSON, with each input file in it replaced by its content's digest and noted in ``found``."""
    if isinstance(value, Path):
        return _file_digest(value, found, root)
    if isinstance(value, BaseModel):
        read: list[Source] = []
        fields = [(name, info) for name, info in type(value).model_fields.items() if not info.exclude]
        resolved = {info.alias or name: _resolved(getattr(value, name), read, root) for name, info in fields}
        found += _licensed(read, value.license if isinstance(value, sources.EvalSet) else None)
        return resolved
    if isinstance(value, Call):
        return {value.name: _resolved(value.settings, found, root)}
    if isinstance(value, Mapping):
        return {name: _resolved(item, found, root) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_resolved(item, found, root) for item in value]
    return value


def _file_digest(path: Path, found: list[Source], root: Path) -> Any:
    if path.suffix == ".jinja":
        found.append(_input(path, root))
        return {"prompt": prompts.digest(path)}
    if (path / "adapter_config.json").is_file():  # a model's adapter: all of its files
        files = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    else:
        files = [path] if path.is_file() else sources.files(path)
    read = [_input(file, root) for file in files]
    found += read
    return {"sha256": read[0].sha256} if path.is_file() else {Path(file.uri).name: file.sha256 for file in read}


def _input(path: Path, root: Path) -> Source:
    """A file that is read; shown as the settings give it, so that it reads the same in every copy of a project."""
    resolved, within = path.resolve(), root.resolve()
    if path.is_relative_to(root):
        shown = path.relative_to(root)
    else:
        shown = resolved.relative_to(within) if resolved.is_relative_to(within) else resolved
    return Source(uri=private(shown.as_posix()), bytes=path.stat().st_size, sha256=sha256(path))


def _hub(source: str) -> Source:
    name, revision, _ = sources.hub_name(source)
    return Source(uri=f"{sources.HUB}{name}", revision=revision)


def _licensed(found: list[Source], license: str | None) -> list[Source]:
    return [source.model_copy(update={"license": license}) for source in found] if license else found


def _distinct(found: list[Source]) -> list[Source]:
    return sorted({source.uri: source for source in found}.values(), key=lambda source: source.uri)


def _shown(value: Any) -> str:
    if isinstance(value, dict) and set(value) == {"sha256"}:
        return f"content {value['sha256'][:12]}"
    return plain(canonical_json(value).decode(), 120)
