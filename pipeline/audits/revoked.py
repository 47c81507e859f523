"""Nothing that was revoked is in a result in force."""

from collections.abc import Iterator

from pipeline import lineage
from pipeline.audits import Audited, Finding
from pipeline.files import InputError, RunError, plain
from pipeline.revocations import FILE, read


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
    if not revocations:
        return
    bad: dict[str, set[str]] = {}
    for one in revocations:
        bad.setdefault(one.kind, set()).add(one.id)
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
