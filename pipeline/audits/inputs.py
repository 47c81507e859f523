"""Files that a run read and that lie outside it: where they are at hand, they are what the run's manifests say.

    decontaminate/4997..../manifest.json: eval_sets: 302a55c01b7e is the content of no file in sources

A file is looked for by the name that ``sources`` in the manifests has, from the folders above the run folder. It is taken only where its
size and SHA-256 are those of the manifest, so that no name leads to anything else. What is not found is noted.

Limits: names that are absolute, or lead out of those folders, are not followed.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from pipeline import outputs, sources
from pipeline.audits import Audited, Finding, kind
from pipeline.binding import contents
from pipeline.files import InputError, plain, sha256

ABOVE: Final = 3  # folders above the run folder in which stages.yaml may lie
COMPARED: Final = ("decontaminate", "evaluate")


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on eval sets that no source tells of, notes on those that are not at hand."""
    if not audited.full:
        return
    for stage in COMPARED:
        result = audited.results.get(stage)
        if result is None:
            continue
        place = result.folder / outputs.MANIFEST
        read = {source.sha256: source for source in result.manifest.sources if source.sha256 is not None}
        told = contents(result.manifest.settings.get("eval_sets"))
        for digest in sorted({digest for content in told for digest in content.values()}):
            source = read.get(digest)
            if source is None:
                yield Finding(place, f"eval_sets: {digest[:12]} is the content of no file in sources")
            elif at_hand(audited, digest) is None:
                shown = plain(source.uri, 120)
                other = any(kind(path) == "file" for path in _places(audited.run, source.uri))
                told_so = "lies beside the run with another content" if other else "is not at hand"
                audited.notes.append(Finding(place, f"sources: the eval set {shown}, as {stage} read it, {told_so}"))


def at_hand(audited: Audited, digest: str) -> Path | None:
    """A file with this SHA-256 that a manifest of the run names and that lies in its place, or None."""
    return next(_copies(audited, digest), None)


def place_of(audited: Audited, content: dict[str, str]) -> Path:
    """Where the file or folder with this content (``binding.is_content``) lies. Raises FileNotFoundError where it is not at hand."""
    name, digest = next(iter(content.items()))
    if name == "sha256" and len(content) == 1 and (found := at_hand(audited, digest)) is not None:
        return found
    for path in _copies(audited, digest):
        if path.name == name and _is_of(path.parent, content):
            return path.parent
    raise FileNotFoundError(2, "not at hand", f"file {plain(digest[:12])}")


def _is_of(folder: Path, content: dict[str, str]) -> bool:
    """Whether what is read of a folder are just these files."""
    try:
        there = sources.files(folder)
    except (InputError, OSError):
        return False
    return [path.name for path in there] == sorted(content) and all(
        kind(path) == "file" and sha256(path) == content[path.name] for path in there
    )


def _copies(audited: Audited, digest: str) -> Iterator[Path]:
    for _, manifest in audited.all:
        for source in manifest.sources:
            if source.sha256 == digest:
                for path in _places(audited.run, source.uri):
                    if kind(path) == "file" and path.stat().st_size == source.bytes and sha256(path) == digest:
                        yield path


def _places(run: Path, uri: str) -> Iterator[Path]:
    name = PurePosixPath(uri)
    if "\0" not in uri and not name.is_absolute() and ".." not in name.parts and name.parts:
        for folder in run.absolute().parents[:ABOVE]:
            yield folder / name
