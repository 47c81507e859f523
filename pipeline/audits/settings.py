"""The settings in a manifest are those of its stage, come from what was asked, and are what other stages of the chain were told, too.

    asked    {"filters": ["label_in_set", {"min_words": 4}]}
    settings {"filters": [{"label_in_set": {"labels": null}}, {"min_words": {"minimum": 4}}], "gold": null, ..}

What was asked is bound again as stages.yaml is (``pipeline.binding``) and compared. Each function yields problems, a line each.

Limits: of a file only that there is one is compared with what was asked; its content is in the settings and among the sources.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from pipeline import environment, evaluate, outputs, provenance, requests, teachers
from pipeline.audits import Audited, Finding, Result, kind
from pipeline.binding import Call, Calls, From, bind, contents, is_content, parameters, settled
from pipeline.files import canonical_json, digest, plain
from pipeline.records import Manifest
from pipeline.sources import HUB
from pipeline.stages import STAGES


def names(audited: Audited, result: Result) -> Iterator[str]:
    """All settings of the stage, and no others."""
    manifest, stage = result.manifest, STAGES[result.manifest.stage]
    marks = {name: _mark(annotation, From) for name, (annotation, _) in parameters(stage.settings).items()}
    known = {*marks, *(() if stage.reads else ("inputs",))}
    only_where_set = {name for name, mark in marks.items() if mark is not None and mark.path.startswith("revoked.")}
    for name in sorted(set(manifest.settings) - known):
        yield f"settings.{plain(name)}: {stage.name} has no such setting"
    if _same_code(manifest):
        for name in sorted(known - only_where_set - set(manifest.settings)):
            yield f"settings.{name}: missing"


def asked(audited: Audited, result: Result) -> Iterator[str]:
    """What was asked, with the defaults, resolves to the settings."""
    manifest, stage = result.manifest, STAGES[result.manifest.stage]
    bound = bind(stage.settings, manifest.asked, lookup=lambda path: None, folder=Path(), where=("asked",))
    same = _same_code(manifest)
    for name, value in _own(stage.settings, bound).items():
        if name in manifest.settings and not _resolves(value, manifest.settings[name], same_code=same):
            yield f"asked.{name}: not what settings.{name} came from"


def values(audited: Audited, result: Result) -> Iterator[str]:
    """Each is one that the stage takes; where it takes a file, there stands what was in it."""
    manifest, stage = result.manifest, STAGES[result.manifest.stage]
    if manifest.version != stage.version:
        return
    inputs = manifest.settings.get("inputs")
    if not stage.reads and not is_content(inputs) and not str(inputs).startswith(HUB):
        yield "settings.inputs: neither a digest nor a data set of the Hub"
    yield from _misfits(stage.settings, manifest.settings, "settings")


def _misfits(function: Callable[..., Any], given: Mapping[str, Any], where: str) -> Iterator[str]:
    for name, (annotation, _) in parameters(function).items():
        calls = _mark(annotation, Calls)
        if name in given and calls is not None:
            for entry in given[name]:
                for called, own in entry.items():
                    yield from _misfits(calls.functions[called], own, f"{where}.{name}.{plain(called, 60)}")
        elif name in given:
            try:
                settled(annotation, given[name], name, _somewhere)
            except ValueError as problem:
                yield f"{where}.{problem}"


def _somewhere(content: Mapping[str, str]) -> Path:
    """A place for a file with this content; it is not opened."""
    return Path("/", digest(content))


def _same_code(manifest: Manifest) -> bool:
    """Whether this code made it, so that it knows no more settings than that one did."""
    return manifest.code.modules == environment.code().modules


def _own(function: Callable[..., Any], bound: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not taken from elsewhere."""
    known = parameters(function)
    return {name: value for name, value in bound.items() if _mark(known[name][0], From) is None}


def _resolves(value: Any, settled: Any, *, same_code: bool) -> bool:
    """Whether a bound setting is the resolved one; of files only that there is one."""
    if isinstance(value, Path):
        return is_content(settled)
    if isinstance(value, Call):
        own = settled.get(value.name) if isinstance(settled, dict) and len(settled) == 1 else None
        return isinstance(own, dict) and all(
            (name in own or not same_code) and _resolves(item, own.get(name, item), same_code=same_code)
            for name, item in _own(_functions()[value.name], value.settings).items()
        )
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        value = {info.alias or name: getattr(value, name) for name, info in fields if not info.exclude}
        if isinstance(settled, dict) and not same_code:
            value = {name: item for name, item in value.items() if name in settled}
    if isinstance(value, Mapping):
        return (
            isinstance(settled, dict)
            and value.keys() == settled.keys()
            and all(_resolves(item, settled[name], same_code=same_code) for name, item in value.items())
        )
    if isinstance(value, list | tuple):
        return (
            isinstance(settled, list)
            and len(value) == len(settled)
            and all(_resolves(item, other, same_code=same_code) for item, other in zip(value, settled, strict=True))
        )
    return bool(canonical_json(value) == canonical_json(settled))


def _functions() -> Mapping[str, Callable[..., Any]]:
    """The functions that settings name in lists."""
    found: dict[str, Callable[..., Any]] = {}
    for stage in STAGES.values():
        for annotation, _ in parameters(stage.settings).values():
            calls = _mark(annotation, Calls)
            found |= {} if calls is None else calls.functions
    return found


def _mark(annotation: Any, kind: type[Any]) -> Any:
    return next((mark for mark in get_args(annotation)[1:] if isinstance(mark, kind)), None)


def agreements(audited: Audited, result: Result) -> Iterator[str]:
    """Whether judge ran is what its parents say, and whether a student is measured on the eval rows that its own were compared with.

    Noted is where a stage was told something else of the task than those before it: so it is where stages.yaml was changed and later
    stages alone were run. Each result was made by its own settings, and is compared with what these make.
    """
    mine = dict(_facts(result))
    before = list(audited.before(result))
    for name, other in before:
        for path, value in _facts(other):
            if path not in mine or _alike(path, mine[path], value):
                continue
            if path == "eval_sets":
                yield from _other_eval_sets(mine[path], value, name)
            told = f"settings: {path} is not what {name} was told, or has"
            audited.notes.append(Finding(result.folder / outputs.MANIFEST, told))
    on = mine.get("stages.judge.on")
    if on is not None and on != any(name == "judge" for name, _ in before):
        yield "settings.judged: whether judge ran is not what its parents say"


def _other_eval_sets(mine: Any, theirs: Any, name: str) -> Iterator[str]:
    """Eval sets of one name with other rows: what one of the two stages says of the other's rows is worth nothing."""
    for known in mine.keys() & theirs.keys():
        if mine[known]["path"] != theirs[known]["path"]:
            yield f"settings: eval_sets.{plain(known)} has not the content that {name} was told"


def _alike(path: str, one: Any, other: Any) -> bool:
    if path.count(".") == 1 and path.startswith("stages.") and isinstance(one, dict) and isinstance(other, dict):
        stage = path.partition(".")[2]  # all settings of a stage: those that count
        return provenance.key_of(stage, 1, one, {}, {}) == provenance.key_of(stage, 1, other, {}, {})
    return bool(canonical_json(one) == canonical_json(other))


def _facts(result: Result) -> Iterator[tuple[str, Any]]:
    """Path in the configuration and value: a stage's own settings, and those it takes from elsewhere."""
    settings, stage = result.manifest.settings, STAGES[result.folder.parent.name]
    yield f"stages.{stage.name}", settings
    for name, value in settings.items():
        yield f"stages.{stage.name}.{name}", value
    if stage.name == "sample":
        yield "stages.sample.teacher.names", [teachers.name_of(one) for one in settings["teacher"]]  # type: ignore[union-attr,arg-type]
    yield from _taken(stage.settings, settings)


def _taken(function: Callable[..., Any], settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, (annotation, _) in parameters(function).items():
        source, calls = _mark(annotation, From), _mark(annotation, Calls)
        if name not in settings:
            continue
        if source is not None:
            yield source.path, settings[name]
        elif calls is not None:
            for entry in settings[name]:
                for called, own in entry.items():
                    yield from _taken(calls.functions[called], own)


def identities(audited: Audited, result: Result) -> Iterator[str]:
    """The models are those of the settings, and the store knows the teachers among them."""
    manifest = result.manifest
    settings: Any = manifest.settings
    by_stage: dict[str, Callable[[], Any]] = {
        "sample": lambda: settings["teacher"],
        "judge": lambda: [settings["teacher"]],
        "evaluate": lambda: settings["sample"]["teacher"],
    }
    given = by_stage[manifest.stage]() if manifest.stage in by_stage else []
    wanted = {requests.TEACHER + teachers.name_of(one): one for one in given}
    named = set(manifest.identities)
    if manifest.stage == "train":
        wanted["student"] = None
    if manifest.stage == "evaluate":
        wanted |= dict.fromkeys(evaluate.MODEL + name for name in settings["models"])
    if (manifest.stage in (*by_stage, "train") and named != set(wanted)) or (
        not STAGES[manifest.stage].reads and named
    ):
        yield "identities: not those of the models in settings"
    if not set(manifest.models) <= named:
        yield f"models: {plain(', '.join(sorted(set(manifest.models) - named)))}: no model of identities"
    for name, one in wanted.items():
        identity: Any = manifest.identities.get(name, {})
        if one is None:
            continue
        if identity.get("backend") != one["backend"]:
            yield f"identities.{plain(name)}.backend: not that of settings.teacher"
        if "completions" in identity and [identity["completions"]] != [*digests(one.get("completions"))][:1]:
            yield f"identities.{plain(name)}.completions: not the file of settings.teacher"
        known = audited.store / "teachers" / f"{digest(identity)}.json"
        figures: Any = manifest.details.get("teachers", {})
        answered = figures.get(teachers.name_of(one), {}).get("responses")
        if answered and manifest.stage != "evaluate" and kind(known) != "file":
            yield f"identities.{plain(name)}: the response store knows no teacher with this identity ({known.stem})"


def texts(value: Any) -> Iterator[str]:
    """Every text inside a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from texts(item)


def digests(settings: Any) -> Iterator[str]:
    """The SHA-256 of each file in settings."""
    return (found for content in contents(settings) if set(content) != {"prompt"} for found in content.values())
