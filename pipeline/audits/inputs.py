"""Files that a run read and that lie outside it: where they are at hand, they are what the run's manifests say.

    decontaminate/4997..../manifest.json: eval.jsonl lies beside the run and is not the eval set that was compared with

A file is looked for by the name that ``sources`` in the manifests has, from the folders above the run folder. It is taken only where its
size and SHA-256 are those of the manifest, so that no name leads to anything else.

Limits: names that are absolute, or lead out of those folders, are not followed.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final

from pipeline import outputs
from pipeline.audits import Audited, Finding, kind
from pipeline.files import plain, sha256

ABOVE: Final = 3  # folders above the run folder in which stages.yaml may lie
COMPARED: Final = ("decontaminate", "evaluate")


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on eval sets that are at hand, notes on those that are not."""
    if not audited.full:
        return
    for stage in COMPARED:
        result = audited.results.get(stage)
        if result is None:
            continue
        place = result.folder / outputs.MANIFEST
        read = {source.sha256: source for source in result.manifest.sources if source.sha256 is not None}
        for digest in sorted(_digests(result.manifest.settings.get("eval_sets"))):
            source = read.get(digest)
            if source is None:
                yield Finding(place, f"eval_sets: {digest[:12]} is the content of no file in sources")
            elif at_hand(audited, digest) is None:
                shown = plain(source.uri, 120)
                if any(kind(path) == "file" for path in _places(audited.run, source.uri)):
                    yield Finding(
                        place, f"sources: {shown} lies beside the run and is not the eval set that {stage} read"
                    )
                else:
                    audited.notes.append(Finding(place, f"sources: the eval set {shown} is not at hand"))


def at_hand(audited: Audited, digest: str) -> Path | None:
    """A file with this SHA-256 that a manifest of the run names and that lies in its place, or None."""
    for _, manifest in audited.all:
        for source in manifest.sources:
            if source.sha256 == digest:
                for path in _places(audited.run, source.uri):
                    if kind(path) == "file" and path.stat().st_size == source.bytes and sha256(path) == digest:
                        return path
    return None


def _places(run: Path, uri: str) -> Iterator[Path]:
    name = PurePosixPath(uri)
    if "\0" not in uri and not name.is_absolute() and ".." not in name.parts and name.parts:
        for folder in run.absolute().parents[:ABOVE]:
            yield folder / name


def _digests(value: Any) -> set[str]:
    """Every ``{"sha256": digest}`` inside a setting, and the digests of the files of a folder."""
    if isinstance(value, list):
        return {digest for item in value for digest in _digests(item)}
    if not isinstance(value, dict):
        return (
            {value} if isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef") else set()
        )
    return {digest for item in value.values() for digest in _digests(item)}
