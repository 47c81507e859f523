"""Nothing that was revoked is in a result in force."""

from collections.abc import Iterator
from typing import Final

from pipeline import lineage
from pipeline.audits import Audited, Finding
from pipeline.files import InputError, RunError, plain
from pipeline.outputs import MANIFEST
from pipeline.revocations import FILE, HANDLED_BY, by_kind, read

SHOWN: Final = 20  # revocations of a result that are named


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on rows that come of what ``revoked.jsonl`` names, and on that file itself."""
    place = audited.run / FILE
    if place.is_symlink() or (place.exists() and not place.is_file()):
        yield Finding(place, "not a file of its own")
        return
    try:
        revocations = read(audited.run)
    except InputError as error:
        yield Finding(place, str(error).removeprefix(f"{place}:").strip())
        return
    _note_forgotten(audited, {(one.kind, name) for one in revocations for name in (one.id, one.family) if name})
    if not revocations:
        return
    bad = by_kind(revocations, (result.manifest for result in audited.results.values()))
    results = [result for stage, result in audited.results.items() if stage != "evaluate"]
    try:
        for _, _, hit in lineage.reached(results, bad):
            if not hit.dropped:
                row = plain(str(hit.row["id"]), 80)
                yield Finding(
                    hit.path, f"row {row} comes of what was revoked; `stepdistill run` builds without it", hit.line
                )
    except RunError as error:
        yield Finding(audited.run, str(error))


def _note_forgotten(audited: Audited, known: set[tuple[str, str]]) -> None:
    """Revocations that a result in force was told of and the file no longer has: taken back since, or removed."""
    for stage in sorted({*HANDLED_BY.values()} & {*audited.results}):
        result = audited.results[stage]
        told = result.manifest.settings.get("revoked") or {}
        if not isinstance(told, dict):
            continue
        gone = [
            (kind, one)
            for kind, ids in told.items()
            if isinstance(ids, dict)
            for one in ids
            if (kind, one) not in known
        ]
        for kind, one in gone[:SHOWN]:
            problem = f"settings.revoked: {plain(kind, 20)} {plain(one, 80)}, which {FILE} no longer has"
            audited.notes.append(Finding(result.folder / MANIFEST, problem))
