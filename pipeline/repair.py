"""repair: rebuild what is damaged in a run folder from what is intact, and say what was lost for good.

    dedup/302a../part-00000.jsonl:7 was changed
    -> the result is moved to <run>/damaged/dedup/302a.., dedup runs again on the same rows, and what comes out is, byte for byte, what
       its manifest says; so every later result stays as it is

The order: what does not belong in the folder is moved away and what follows from files beside it is put back; then ingest, the response
store, and stage by stage the rest. A result whose manifest is whole gets that manifest again, where all its files come out as it says; one
whose manifest is gone gets the one that the next stage cites, where code and environment of its neighbours give it. A later stage runs
again only where the rebuilt result is another.

Nothing is deleted, no teacher is asked, and nothing is trained unless that is asked for. Interrupted at any moment, the next call goes on.

Limits: a stage is rebuilt only where stages.yaml still gives the key that it had. Where files are whole and contradict each other, the
stage that is found fault with runs again, once, and stays as it was where it comes out the same; where that does not settle it, repair
cannot tell which is right. What was revoked is for `run` to leave out. A damaged result of sample or judge with failed requests is left,
since they would be asked again. Signatures, exports and reports are left alone.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from pipeline import damaged, judge, outputs, provenance, response_repair, runner
from pipeline.audit import audit
from pipeline.audits import CURRENT, Audited, Finding, chain, files, kind, opened, places
from pipeline.config import Config, permit, verify
from pipeline.damaged import Step
from pipeline.files import (
    InputError,
    RunError,
    atomic,
    canonical_json,
    held_alone,
    line_digest,
    plain,
    sha256,
    strict_json,
)
from pipeline.records import Manifest, OutputFile, Prompt
from pipeline.requests import all_requests, resolve
from pipeline.responses import Answered
from pipeline.revocations import why_not
from pipeline.stages import STAGES

COSTLY: Final = ("train", "evaluate")
"""Stages that are run again only when that is asked for."""
ABOUT_OTHERS: Final = ("revoked", "exports", "signature", "terms")
"""Checks of the audit that say nothing against how a result was made: none is made again for their findings."""
REBUILDING: Final = "rebuilding.json"
"""In the folder of damaged things while a result is made again: which, so that an interrupted repair is finished by the next."""
SHOWN: Final = 5


@dataclass(frozen=True)
class Repaired:
    """What was done, in order, and what an audit found afterwards (of a dry run: before)."""

    steps: list[Step]
    findings: list[Finding]

    @property
    def lost(self) -> list[str]:
        """Rows and files that are gone for good; a response that a lost row names is not told of twice."""
        names = [name for step in self.steps for name in step.lost]
        told = {name.rpartition(" (")[2].removesuffix(")") for name in names if name.endswith(")")}
        return [name for name in names if name not in told]


def repair(config: Config, *, dry_run: bool = False, train: bool = False) -> Repaired:
    """Repair the run of ``config``. ``dry_run`` only says what would be done; ``train`` also runs damaged stages that are ``COSTLY``.

    Raises InputError where there is no run, and RunError where another process works on it.
    """
    settled = list(_settle(config.run, dry_run=dry_run))
    findings = list(audit(config.run))
    if not findings:
        return Repaired(settled, [])
    with held_alone(config.run / runner.LOCK, config.run):
        pass  # nobody else works on it
    tried: set[str] = set()
    steps = [*settled, *_repair(config, tried, dry_run=dry_run, train=train)]
    findings = findings if dry_run else list(audit(config.run))
    while (stage := _contradicted(config, findings, tried)) is not None:
        tried.add(stage)
        state = replace(_state(config.run), contradictions=findings)
        steps += _rebuild(config, stage, state, dry_run=dry_run, train=train)
        if not dry_run:
            steps += _stages(config, list(STAGES), tried, dry_run=False, train=train)
            findings = list(audit(config.run))
    return Repaired(steps, findings)


def _repair(config: Config, tried: set[str], *, dry_run: bool, train: bool) -> Iterator[Step]:
    """Everything that is damaged in itself; ``tried`` is filled with the stages that were."""
    yield from _out_of_place(config.run, dry_run=dry_run)
    yield from _pointers(config, tried, dry_run=dry_run)
    yield from _digests(config.run, dry_run=dry_run)
    yield from _stages(config, ["ingest"], tried, dry_run=dry_run, train=train)
    yield from response_repair.mend(config, dry_run=dry_run)
    yield from _stages(config, list(STAGES), tried, dry_run=dry_run, train=train)


@dataclass(frozen=True)
class _State:
    """What is in force, what is wrong in each stage's folder, and which manifests the results in force cite: stage -> key -> SHA-256.

    ``contradictions`` are findings on files that are as they were written.
    """

    audited: Audited
    flaws: Mapping[str, list[Finding]]
    cited: Mapping[str, dict[str, str]]
    contradictions: Sequence[Finding] = ()


def _state(run: Path, *, rows: bool = True) -> _State:
    """How things stand; without ``rows`` the bytes of files are not looked at, which takes a while for large ones."""
    results, others, findings = opened(run, list(STAGES), everything=False)
    audited = Audited(run, results, others)
    cited: dict[str, dict[str, str]] = defaultdict(dict)
    for result in results.values():
        for stage, parent in result.manifest.parents.items():
            cited[stage][parent.key] = parent.manifest
    flaws: dict[str, list[Finding]] = defaultdict(list)
    for finding in (*findings, *chain.check(audited), *(files.check(audited) if rows else ())):
        if not finding.problem.startswith("parents."):  # of which the parent is to be repaired
            flaws[finding.path.relative_to(run).parts[0]].append(finding)
    for stage, wanted in cited.items():
        for key in wanted:
            if stage in STAGES and _finished(run, stage, key) is None and not flaws.get(stage):
                flaws[stage].append(Finding(run / stage / key, "missing"))
    return _State(audited, flaws, cited)


def _finished(run: Path, stage: str, key: str | None) -> Path | None:
    if key is None or not chain.KEY.fullmatch(key):
        return None
    folder = run / stage / key
    return folder if kind(folder) == "folder" and kind(folder / outputs.MANIFEST) == "file" else None


def _out_of_place(run: Path, *, dry_run: bool) -> Iterator[Step]:
    """Move away what has no business in the folder, or is not what it was written as."""
    state = _state(run, rows=False)
    for finding in [*places.check(state.audited), *(one for flaws in state.flaws.values() for one in flaws)]:
        path = finding.path
        found = kind(path)
        unfinished = finding.problem.startswith("unfinished")
        if unfinished and STAGES[path.parent.name].kind == "job":
            told = "`stepdistill run` goes on from it"
            yield Step(_shown(run, path), finding.problem.partition(",")[0], "left", told)
        elif found in ("other", "link") or unfinished or finding.problem.endswith(_EXTRA):
            if found is None or found == "other":
                continue
            yield Step(_shown(run, path), plain(finding.problem), "moved away")
            if not dry_run:
                damaged.put_away(run, path)


_EXTRA: Final = (
    "not in the manifest",
    "nothing of this name belongs in a run folder",
    "it was not opened",
    *(f"not a result of {stage}" for stage in STAGES),
)


def _shown(run: Path, path: Path) -> str:
    return plain(str(path.relative_to(run)), 200)


def _pointers(config: Config, tried: set[str], *, dry_run: bool) -> Iterator[Step]:
    """Files that say which result is in force: where the result that they should name is there."""
    run = config.run
    state = _state(run, rows=False)
    for stage in STAGES:
        pointer = run / stage / CURRENT
        key = _named(run, stage)
        there = key is not None and (kind(run / stage / key) == "folder" or _was_put_away(run, stage, key))
        if there or not any(finding.path == pointer for finding in state.flaws.get(stage, ())):
            continue
        finished = [path.name for path in damaged.results(run, stage) if _finished(run, stage, path.name) == path]
        wanted = [*state.cited.get(stage, ())] or _keys_now(config, stage) or (finished if len(finished) == 1 else [])
        chosen = next((key for key in wanted if _finished(run, stage, key) is not None), None)
        if chosen is not None:
            yield Step(_shown(run, pointer), "names no result", "put back", chosen)
            if dry_run:
                tried.add(stage)
                continue
            if kind(pointer) is not None:
                damaged.put_away(run, pointer)
            outputs.point(run, stage, chosen)


def _named(run: Path, stage: str) -> str | None:
    """The key that a stage's pointer names, whether there is such a result or not."""
    pointer = run / stage / CURRENT
    if kind(pointer) != "file":
        return None
    key = pointer.read_bytes()[:100].decode(errors="replace").strip()
    return key if chain.KEY.fullmatch(key) else None


def _was_put_away(run: Path, stage: str, key: str) -> bool:
    return any((run / damaged.FOLDER / stage).glob(f"{key}*"))


def _keys_now(config: Config, stage: str) -> list[str]:
    asked, _ = _asked(config, stage)
    return [] if asked is None else [asked.key]


def _asked(config: Config, stage: str) -> tuple[provenance.Ask | None, str]:
    """What stages.yaml gives for a stage now; where nothing, why."""
    if stage not in config.stages:
        return None, "it is switched off in stages.yaml"
    try:
        asked = provenance.ask(config, stage)
    except (InputError, RunError) as error:
        return None, str(error)
    return asked, "" if asked is not None else "a stage that it reads has no result"


def _digests(run: Path, *, dry_run: bool) -> Iterator[Step]:
    """Digest files beside rows that are as they were written."""
    for folder, manifest in _state(run, rows=False).audited.all:
        for file in manifest.outputs:
            path = folder / file.path
            rows = path.with_suffix(".jsonl")
            if (
                path.suffix != ".xxh3"
                or _fits(path, file)
                or not any(_fits(rows, one) for one in _of(manifest, rows.name))
            ):
                continue
            with rows.open("rb") as lines:
                digests = b"".join(line_digest(line.rstrip(b"\n")).encode() + b"\n" for line in lines)
            yield Step(_shown(run, path), "missing" if kind(path) is None else "changed", "put back", "from its rows")
            if not dry_run:
                if kind(path) is not None:
                    damaged.put_away(run, path)
                with atomic(path) as written:
                    written.write(digests)


def _of(manifest: Manifest, name: str) -> list[OutputFile]:
    return [file for file in manifest.outputs if file.path == name]


def _fits(path: Path, file: OutputFile) -> bool:
    return kind(path) == "file" and path.stat().st_size == file.bytes and sha256(path) == file.sha256


def _stages(config: Config, stages: list[str], tried: set[str], *, dry_run: bool, train: bool) -> Iterator[Step]:
    """Rebuild what is damaged among the stages, each once, in order; then what no longer fits to what was rebuilt."""
    while True:
        state = _state(config.run)
        stage = next((name for name in stages if name not in tried and _is_to_do(config.run, state, name)), None)
        if stage is None:
            return
        tried.add(stage)
        yield from _rebuild(config, stage, state, dry_run=dry_run, train=train)


def _is_to_do(run: Path, state: _State, stage: str) -> bool:
    """Whether a stage's result is damaged, or was made from another result than there is now."""
    if state.flaws.get(stage):
        return True
    result = state.audited.results.get(stage)
    parents = {} if result is None else result.manifest.parents
    return any(
        (folder := _finished(run, name, _named(run, name))) is not None
        and damaged.manifest_of(folder) is not None
        and sha256(folder / outputs.MANIFEST) != parent.manifest
        and _was_put_away(run, name, parent.key)
        for name, parent in parents.items()
    )


def _contradicted(config: Config, findings: list[Finding], tried: set[str]) -> str | None:
    """The first stage whose rows are found fault with though every file is as it was written, and that costs little to run."""
    named = {_stage_of(config.run, finding) for finding in findings if finding.check not in ABOUT_OTHERS} - tried
    if not named or any(_state(config.run).flaws.values()):
        return None
    return next((name for name in config.stages if name in named and name not in COSTLY), None)


def _stage_of(run: Path, finding: Finding) -> str:
    """The folder of the run that a finding is about; empty where it is about the run."""
    return next(iter(finding.path.relative_to(run).parts), "")


def _rebuild(config: Config, stage: str, state: _State, *, dry_run: bool, train: bool) -> Iterator[Step]:
    """Put a stage's damaged result away and run it again, where that gives what was there."""
    run = config.run
    wanted = [key for key in (_named(run, stage), *state.cited.get(stage, ())) if key is not None]
    key = next((key for key in wanted if _finished(run, stage, key)), wanted[0] if wanted else None)
    asked, why_not = _asked(config, stage)
    key = key if key is not None or asked is None else asked.key
    place = f"{stage}/{key}" if key is not None else stage
    found = _brief(run, state.flaws.get(stage, ()))
    against = _brief(run, [one for one in state.contradictions if _stage_of(run, one) == stage])
    damage = found or (f"contradicts another result: {against}" if against else "made from rows that are others now")
    waiting = dry_run and stage in config.stages and any(state.flaws.get(name) for name in config.parents(stage))
    if asked is None:
        told = "once what it reads is" if waiting else f"cannot be rebuilt: {plain(why_not)}"
        yield Step(place, damage, "rebuilt" if waiting else "left", told)
        return
    if why_not := _differs(run / stage / str(key), stage, key, asked, stale=not found or waiting):
        yield Step(place, damage, "left", f"stages.yaml does not give this result any more: {why_not}")
        return
    if damaged_parents := [name for name in asked.parents if state.flaws.get(name) and not dry_run]:
        yield Step(place, damage, "left", f"it reads {damaged_parents[0]}, which is damaged")
        return
    if stage in COSTLY and not train:
        yield Step(place, damage, "left", f"{stage} must run again; `stepdistill repair --train` does that")
        return
    unanswered = _unanswered(config, stage, dry_run=dry_run)
    if unanswered:
        told = f"`stepdistill run {stage} --force` asks its teacher {len(unanswered):,} requests again"
        failed = _failed(run, stage)
        lost = [
            f"{stage}: the answer {name} (response {request})"
            for name, request in unanswered.items()
            if not {name, name.partition("#")[0]} & failed
        ]
        yield Step(place, damage, "left", told, lost)
        return
    config = _accepted(config, stage, str(key))
    try:
        verify(config, thorough=True)
        permit(config, [stage])
    except (InputError, RunError) as error:
        yield Step(place, damage, "left", f"cannot be rebuilt: {plain(str(error))}")
        return
    if dry_run:
        yield Step(place, damage, "rebuilt")
        return
    folder = run / stage / asked.key
    note = run / damaged.FOLDER / REBUILDING
    note.parent.mkdir(exist_ok=True)
    with atomic(note) as file:
        file.write(canonical_json({"stage": stage, "key": asked.key, "believed": bool(found)}) + b"\n")
    moved: dict[Path, Path] = {}
    if key is not None and kind(run / stage / key) is not None:
        moved[run / stage / key] = damaged.put_away(run, run / stage / key)
    if kind(folder) is not None and _finished(run, stage, asked.key) is None:
        moved[folder] = damaged.put_away(run, folder)
    try:
        runner.run(config, [stage])
    except (InputError, RunError) as error:
        if _finished(run, stage, asked.key) is None:
            for path, kept in moved.items():
                damaged.put_back(run, path, kept)
        note.unlink()
        yield Step(place, damage, "left", f"cannot be rebuilt: {plain(str(error))}")
        return
    told = _as_it_was(run, folder, state.cited.get(stage, {}).get(asked.key), believed=bool(found))
    note.unlink()
    yield Step(f"{stage}/{asked.key}", damage, "rebuilt", told)


def _settle(run: Path, *, dry_run: bool) -> Iterator[Step]:
    """Finish what an interrupted repair had made again, but not yet given the manifest that it had."""
    note = run / damaged.FOLDER / REBUILDING
    if kind(note) != "file":
        return
    with held_alone(run / runner.LOCK, run):
        stage, key, believed = _noted(note)
        folder = _finished(run, stage, key) if stage in STAGES and _named(run, stage) == key else None
        if folder is not None and damaged.manifest_of(folder) is not None:
            told = "" if dry_run else _as_it_was(run, folder, _cited(run, stage, key), believed=believed)
            yield Step(f"{stage}/{key}", "a repair of it was interrupted", "rebuilt", told)
        if not dry_run:
            note.unlink()


def _noted(note: Path) -> tuple[str, str, bool]:
    """Stage and key of what was being made again, and whether it was damaged, not suspected; empty where that cannot be read."""
    try:
        told: Any = strict_json(note.read_bytes())
        return str(told["stage"]), str(told["key"]), told["believed"] is True
    except (ValueError, TypeError, LookupError, RecursionError):
        return "", "", False


def _cited(run: Path, stage: str, key: str) -> str | None:
    return _state(run, rows=False).cited.get(stage, {}).get(key)


def _accepted(config: Config, stage: str, key: str) -> Config:
    """The settings with the reason for training that the result itself was made with, where stages.yaml has none."""
    settings = config.stages[stage]
    if "accept_terms" not in settings or settings["accept_terms"]:
        return config
    for folder in _copies(config.run, stage, key):
        manifest = damaged.manifest_of(folder)
        reason = None if manifest is None else manifest.settings.get("accept_terms")
        if isinstance(reason, str) and reason.strip():
            accepted = {"accept_terms": reason}
            given = {**config.given, stage: {**config.given.get(stage, {}), **accepted}}
            return replace(config, stages={**config.stages, stage: {**settings, **accepted}}, given=given)
    return config


def _copies(run: Path, stage: str, key: str) -> list[Path]:
    """The folders of the results that have or had a key, those that were put away last."""
    return [path for path in damaged.results(run, stage) if path.name.partition(".")[0] == key]


def _brief(run: Path, findings: Sequence[Finding]) -> str:
    """The first of the findings on one stage, by their places in a result."""

    def told(finding: Finding) -> str:
        place = "/".join(finding.path.relative_to(run).parts[2:])
        line = f":{finding.line}" if finding.line else ""
        return plain(f"{place}{line}: {finding.problem}" if place else finding.problem, 160)

    return "; ".join(dict.fromkeys(map(told, findings[:SHOWN])))


def _differs(folder: Path, stage: str, key: str | None, asked: provenance.Ask, *, stale: bool) -> str:
    """Why rebuilding would give another result than was there; empty where it gives that one, or where its parents are others now."""
    if key is None or key == asked.key:
        return ""
    manifest = damaged.manifest_of(folder)
    if manifest is None:
        return f"they give the key {asked.key}"
    parents = {*manifest.parents, *asked.parents} if stale else set()
    return plain("; ".join(provenance.changes(manifest, stage, asked, parents)), 400)


def _unanswered(config: Config, stage: str, *, dry_run: bool) -> dict[str, str]:
    """The responses that a stage would ask a teacher for now, by id, and the keys of their requests; in a dry run, with a mended store."""
    if stage not in ("sample", "judge"):
        return {}
    (above,) = config.parents(stage)
    folder = outputs.current(config.run, above)
    assert folder is not None
    try:
        asking = resolve(**config.stages[stage]) if stage == "sample" else None
        if asking is None:
            asking, prompts = judge.wanted(config.stages[stage], folder)
        else:
            prompts = outputs.read(folder, Prompt)
        store = response_repair.mended(config) if dry_run else Answered(config.run / "responses")
        found = {
            f"{prompt.id}#{number}": request.key
            for prompt in prompts
            for number, (_, request) in enumerate(all_requests(asking, prompt))
            if not store.has(request.family, request.max_tokens)
            and why_not(asking.revoked, key=request.key, family=request.family) is None
        }
        store.close()
        return found
    except (InputError, RunError, OSError):
        return {}  # running the stage tells why


def _failed(run: Path, stage: str) -> set[str]:
    """Responses that a teacher never gave, by id, as far as drops can be read: they were not lost."""
    found = set()
    for folder in damaged.results(run, stage):
        with suppress(RunError, OSError):
            for drop in outputs.read_drops(folder):
                found.add(drop.id)
    return found


def _as_it_was(run: Path, folder: Path, cited: str | None, *, believed: bool) -> str:
    """Give a rebuilt result the manifest that it had, where its files are what that one says; what was reached.

    ``cited`` is the SHA-256 of the manifest by which a later stage knows it. ``believed``: what was put away was damaged, and is not
    suspected of being forged; a suspect that comes out the same was right. Rows are taken from what was put away only where a later stage
    vouches for them.
    """
    stage, key = folder.parent.name, folder.name
    rebuilt = outputs.read_manifest(folder)
    olds = [path for path in _copies(run, stage, key) if path != folder]
    known = [manifest for path in olds if (manifest := damaged.manifest_of(path)) is not None and manifest.key == key]
    known = [one for one in known if believed or _is_same(one, rebuilt)]
    candidates = [*known, rebuilt, *_as_neighbours(run, rebuilt)]
    chosen = known[0] if known and cited is None else rebuilt
    if cited is not None:
        chosen = next((one for one in candidates if _sha256(one) == cited), rebuilt)
    new = {file.path: file for file in rebuilt.outputs}
    others = {*new} ^ {file.path for file in chosen.outputs}
    differing = [file for file in chosen.outputs if new.get(file.path) != file and file.path not in others]
    vouched = cited == _sha256(chosen)
    copies: dict[str, Path | None] = dict.fromkeys(file.path for file in differing)
    for file in differing:
        if vouched or (file.rows is None and not file.path.endswith(".xxh3")):
            copies[file.path] = next((old / file.path for old in olds if _fits(old / file.path, file)), None)
    others |= {name for name, copy in copies.items() if copy is None}
    if others:
        return f"it comes out otherwise than it was: {plain(', '.join(sorted(others)), 200)}"
    for name, copy in copies.items():
        assert copy is not None
        _copy(copy, folder / name)
    for old in reversed(olds):
        for path in sorted(old.iterdir()):
            if runner.is_run_fact(path.name) and kind(path) == "file":
                _copy(path, folder / path.name)
    if chosen is not rebuilt:
        outputs.write_manifest(folder, chosen)
    if cited is None and not known:
        if not believed and not olds:
            return "made of the rows that are there now"
        was = "damaged" if believed else "suspected"
        return f"its manifest was {was} and nothing cites it: nothing shows that it is byte for byte what it was"
    return (
        "byte for byte as it was"
        if cited in (None, _sha256(chosen))
        else "not the result that a later stage was made from"
    )


def _is_same(old: Manifest, rebuilt: Manifest) -> bool:
    """Whether two manifests tell of the same result, made by any code on any machine."""
    made_by = {"code": rebuilt.code, "environment": rebuilt.environment, "digest": rebuilt.digest}
    return old.model_copy(update=made_by) == rebuilt


def _sha256(manifest: Manifest) -> str:
    import hashlib

    return hashlib.sha256(outputs.manifest_bytes(manifest)).hexdigest()


def _as_neighbours(run: Path, rebuilt: Manifest) -> Iterator[Manifest]:
    """The manifest as it is if code and environment were those of another stage's result: mostly all were made by the same."""
    seen = set()
    for stage in STAGES:
        with suppress(RunError):
            folder = outputs.current(run, stage)
            if folder is None or folder.parent.name == rebuilt.stage:
                continue
            other = outputs.read_manifest(folder)
            made_by = {"code": other.code, "environment": other.environment}
            if repr(made_by) not in seen:
                seen.add(repr(made_by))
                found = rebuilt.model_copy(update=made_by)
                yield found.model_copy(update={"digest": outputs.manifest_digest(found)})


def _copy(source: Path, target: Path) -> None:
    import shutil

    with source.open("rb") as read, atomic(target) as written:
        shutil.copyfileobj(read, written)
