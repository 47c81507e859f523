"""revoke: what a bad source or response reached, and a run that does without it.

    found = reach(run, asked(run, source="train.jsonl:17", reason="the author withdrew it"))
    record(run, found.revocation)        # a line in <run>/revoked.jsonl; the next `run` drops the row and makes all that follows anew

Nothing is deleted: results of before, and the answer in the response store, stay on disk until somebody removes them. ``reach`` names
the folders. The answer in the store is what keeps the teacher from being asked again, so it is best left there.

Limits: a response is bad for every row that it answers. What was handed on already (pushed, exported elsewhere, signed) is not called
back; copies in this run folder are named. Rows that were dropped as duplicates of a revoked one come back, unless they are revoked too.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from pipeline import damaged, lineage, outputs, responses
from pipeline.files import InputError, RunError, held_alone, plain, private
from pipeline.progress import bar
from pipeline.records import Manifest, Source
from pipeline.revocations import FILE, Revocation, by_kind, read, write
from pipeline.runner import LOCK
from pipeline.sources import HUB
from pipeline.stages import STAGES
from pipeline.trace import SHORTEST, find
from pipeline.train import BASELINE, STUDENT

LISTED: Final = 1000  # rows of one result, and stored answers, that are named; all are counted
DOCUMENTS: Final = ("exports", "signatures")
DOCUMENT_BYTES: Final = 64 << 20  # larger ones are looked at so far
UNKNOWN: Final = "no reason given"


@dataclass
class Reached:
    """The rows of one finished result that come of what was revoked; ``rows`` are the first of them, with id, place and verdict."""

    stage: str
    folder: Path
    in_force: bool
    kept: int = 0
    dropped: int = 0
    rows: list[dict[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Reach:
    """All that a revocation concerns: results, the students and baselines trained on them, their evaluations, exports and signatures.

    ``known``: it was revoked before, and ``revocation`` is what the file says of it. ``stored`` are the places of the answers in the
    response store, ``stored_total`` their number. ``truncated``: rows of some result, or the stored answers, are more than LISTED, and
    only so many are named. ``duplicates`` are rows that were dropped for being like one of these: they come back in its place.
    ``not_looked_through`` are folders that may hold more of it.
    """

    revocation: Revocation
    known: bool
    results: list[Reached]
    checkpoints: list[Path]
    evaluations: list[Path]
    documents: list[Path]
    stored: list[str]
    stored_total: int
    truncated: bool
    duplicates: list[str]
    not_looked_through: list[Path]


def asked(
    run: Path, *, source: str | None = None, response: str | None = None, reason: str | None = None
) -> Revocation:
    """What is meant: ``source`` is a source file's name, or any id or place of a row; ``response`` a request's key or a response's id.

    Raises InputError where there is no such thing, or several.
    """
    why = private(plain(reason or UNKNOWN, 1000))
    if response is not None:
        return _response(run, response, why)
    assert source is not None
    folder = _current(run, "ingest")
    if source in map(_file_name, outputs.read_manifest(folder).sources):
        return Revocation(kind="file", id=source, reason=why)
    row = find(run, source)
    hits = [hit for hit in lineage.find(run, folder, "id", row) if hit.row["id"] == row]
    place = next((hit.row.get("source") or hit.row["evidence"].get("source") for hit in hits), None)
    if not any(not hit.dropped or hit.row["reason"] == "revoked" for hit in hits):
        raise InputError(f"{plain(source)}: ingest did not accept this row; there is nothing to revoke")
    return Revocation(kind="row", id=row, source=place, reason=why)


def _file_name(source: Source) -> str:
    """The name of a source in the places of its rows."""
    name = source.uri.removeprefix(HUB)
    return name if source.bytes is None else Path(name).name


def _response(run: Path, name: str, why: str) -> Revocation:
    if "#" in name:
        folder = _current(run, "sample")
        hits = [hit for hit in lineage.find(run, folder, "id", lineage.row_of(name)) if hit.row["id"] == name]
        given: str | None = name
        found = {("response", hit.row.get("request") or hit.row["evidence"].get("request", "")) for hit in hits}
        found.discard(("response", ""))
    elif len(name) >= SHORTEST:
        found, given = set(), None
        for stage, kind, told in (("sample", "request", "response"), ("judge", "judgement", "judgement")):
            folder_or_none = outputs.current(run, stage)
            if folder_or_none is not None:
                for hit in lineage.find(run, folder_or_none, kind, name, beginning=True):
                    found.add((told, lineage.name_in(hit, kind)))
                    if len(found) > 1:
                        break
    else:
        found, given = set(), None
    if not found:
        raise InputError(
            f"{plain(name)}: no response or judgement of {run} has this key or id; `stepdistill trace ID` shows a row's"
        )
    if len(found) > 1:
        raise InputError(f"{plain(name)}: several requests begin so; give more of the key")
    ((kind, key),) = found
    family = next((responses.record(hit.raw, hit.place).family for hit in lineage.find_stored(run, key)), None)
    return Revocation(kind=kind, id=key, family=family, source=given, reason=why)  # type: ignore[arg-type]


def _current(run: Path, stage: str) -> Path:
    folder = outputs.current(run, stage)
    if folder is None:
        raise InputError(f"{run}: {stage} has no result yet; there is nothing to revoke")
    return folder


def reach(run: Path, revocation: Revocation) -> Reach:
    """What lies on disk that comes of it, in all finished results, those in force or not. Raises RunError where files are damaged."""
    every = list(_finished(run))
    before = next((one for one in read(run) if (one.kind, one.id) == (revocation.kind, revocation.id)), None)
    named = _Named({revocation.id} if revocation.kind == "judgement" else set())
    found = _held(run, every, [before or revocation], named)
    holding = [one.folder for one in found if one.kept]
    keys = {(folder.parent.name, folder.name) for folder in holding}
    evaluations = [
        folder
        for folder, manifest in every
        if manifest.stage == "evaluate" and keys & {(name, parent.key) for name, parent in manifest.parents.items()}
    ]
    marks: set[str] = set()
    for folder, manifest in every:
        if folder in holding:
            marks |= {hashlib.sha256(outputs.manifest_bytes(manifest)).hexdigest(), manifest.digest}
            marks |= {manifest.root} if manifest.root else set()
    trained = [folder for folder in holding if folder.parent.name == "train"]
    stored = [hit.place for key in sorted(named.requests)[:LISTED] for hit in lineage.find_stored(run, key)]
    listed = len(named.requests) <= LISTED
    return Reach(
        revocation=before or revocation,
        known=before is not None,
        results=found,
        checkpoints=[
            folder / model for folder in trained for model in (STUDENT, BASELINE) if (folder / model).is_dir()
        ],
        evaluations=evaluations,
        documents=sorted(_documents(run, marks)),
        stored=stored,
        stored_total=len(stored) if listed else len(named.requests),
        truncated=not listed or any(one.kept + one.dropped > len(one.rows) for one in found),
        duplicates=[
            drop.id
            for one in found
            if one.stage == "dedup" and one.in_force
            for drop in outputs.read_drops(one.folder)
            if drop.evidence.get("twin") in named.deduplicated
        ],
        not_looked_through=not_looked_through(run),
    )


@dataclass
class _Named:
    """What all rows that are reached are called, not only the first: requests in sample, ids that the dedup in force kept."""

    requests: set[str]
    deduplicated: set[str] = field(default_factory=set)


def not_looked_through(run: Path) -> list[Path]:
    """Folders that may hold what was revoked and are not read: what repair moved away."""
    return [place for place in (run / damaged.FOLDER,) if place.is_dir()]


def held(run: Path, revocations: Iterable[Revocation]) -> list[Reached]:
    """The finished results that still hold rows of what was revoked."""
    return [one for one in _held(run, list(_finished(run)), list(revocations), _Named(set())) if one.kept]


def _held(run: Path, every: list[tuple[Path, Manifest]], revocations: list[Revocation], named: _Named) -> list[Reached]:
    bad = by_kind(revocations, (manifest for _, manifest in every))
    found: dict[Path, Reached] = {}
    results = [(folder, manifest) for folder, manifest in every if bad and manifest.stage != "evaluate"]
    total = sum(file.rows or 0 for _, manifest in results for file in manifest.outputs)
    with bar("revoke", total) as advance:
        for folder, manifest, hit in lineage.reached(results, bad, advance):
            if folder not in found:
                in_force = folder == outputs.current(run, manifest.stage)
                found[folder] = Reached(manifest.stage, folder, in_force)
            reached = found[folder]
            reached.dropped += hit.dropped
            reached.kept += not hit.dropped
            request = lineage.name_in(hit, "request") if manifest.stage == "sample" else ""
            if request:
                named.requests.add(request)
            if manifest.stage == "dedup" and reached.in_force and not hit.dropped:
                named.deduplicated.add(hit.row["id"])
            if len(reached.rows) < LISTED:
                verdict = "dropped" if hit.dropped else "kept"
                row = {"id": hit.row["id"], "place": hit.place, "verdict": verdict}
                reached.rows.append(row | ({"request": request} if manifest.stage == "sample" else {}))
    return list(found.values())


def _finished(run: Path) -> Iterator[tuple[Path, Manifest]]:
    """Every finished result, in the order of the stages. Raises RunError for a manifest that cannot be used."""
    for stage in STAGES:
        for place in sorted((run / stage).glob(f"*/{outputs.MANIFEST}")):
            manifest = outputs.read_manifest(place.parent)
            if (manifest.stage, manifest.key) != (stage, place.parent.name):
                raise RunError(f"{place}: is of another result; run `stepdistill audit`")
            yield place.parent, manifest


def _documents(run: Path, marks: set[str]) -> Iterator[Path]:
    """The exports and signatures that name one of these digests."""
    wanted = re.compile("|".join(map(re.escape, sorted(marks))).encode()) if marks else None
    for folder in DOCUMENTS if wanted is not None else ():
        for path in (run / folder).rglob("*"):
            if path.is_symlink() or not path.is_file():
                continue
            with path.open("rb") as file:
                text = file.read(DOCUMENT_BYTES)
            if wanted is not None and (wanted.search(text) or wanted.search(_payload(text))):
                yield path


def _payload(envelope: bytes) -> bytes:
    """What a DSSE envelope signs; nothing where it is none."""
    try:
        found: Any = json.loads(envelope)
        return base64.b64decode(found["payload"], validate=True)
    except (ValueError, TypeError, KeyError, RecursionError):
        return b""


def record(run: Path, revocation: Revocation) -> bool:
    """Add a line to the run's file; whether it had none on this before. Raises RunError where the run is at work."""
    with held_alone(run / LOCK, run):
        known = read(run)
        if any((one.kind, one.id) == (revocation.kind, revocation.id) for one in known):
            return False
        write(run, [*known, revocation])
        return True


def undo(run: Path, name: str) -> list[Revocation]:
    """Take back what was revoked by this id, key, place or file name, or by what an id or key begins with; what was taken back.

    Raises InputError where nothing was, and where several begin so.
    """
    with held_alone(run / LOCK, run):
        known = read(run)
        taken = _meant(known, name)
        if not taken:
            told = plain(", ".join(one.id for one in known)) or "nothing"
            raise InputError(f"{plain(name)}: not in {run / FILE}; revoked is {told}")
        write(run, [one for one in known if one not in taken])
    return taken


def _meant(known: Sequence[Revocation], name: str) -> list[Revocation]:
    """What a name stands for: what is called so, else the row that an answer or training row is of, else the one that begins so."""
    for names in (
        [one for one in known if name in (one.id, one.source)],
        [one for one in known if one.kind == "row" and one.id == lineage.row_of(name)],
        [one for one in known if one.id.startswith(name)] if len(name) >= SHORTEST else [],
    ):
        if names:
            break
    if len(names) > 1 and any(name not in (one.id, one.source) for one in names):
        raise InputError(f"{plain(name)}: several that are revoked begin so; give more of it")
    return names
