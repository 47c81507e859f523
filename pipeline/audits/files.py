"""Every file of a result is as its manifest says, and there are no others; a changed row is named by its line."""

from collections.abc import Iterator
from pathlib import Path

from pipeline import outputs
from pipeline.audits import Audited, Finding, Result
from pipeline.files import line_digest, plain, sha256
from pipeline.runner import is_run_fact


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on the bytes of every file."""
    for result in (*audited.results.values(), *audited.others):
        yield from _check(result)


def _check(result: Result) -> Iterator[Finding]:
    folder, manifest = result
    place = folder / outputs.MANIFEST
    listed = set()
    for file in manifest.outputs:
        path = folder / file.path
        listed.add(file.path)
        if not path.resolve().is_relative_to(folder.resolve()):
            yield Finding(place, f"outputs: {plain(file.path)} points out of the folder")
        elif not path.is_file():
            yield Finding(path, "missing")
        elif path.stat().st_size != file.bytes or sha256(path) != file.sha256:
            yield from _changed_rows(path)
        elif file.rows is not None and sum(1 for _ in path.open("rb")) != file.rows:
            yield Finding(path, f"has not the {file.rows} rows that the manifest says")
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_file() and name not in listed and name != outputs.MANIFEST and not is_run_fact(path.name):
            yield Finding(path, "not in the manifest")


def _changed_rows(path: Path) -> Iterator[Finding]:
    """Which rows of a changed file differ, by the digests beside it."""
    beside = path.with_suffix(".xxh3")
    if path.suffix != ".jsonl" or not beside.is_file():
        yield Finding(path, "changed since its manifest was written")
        return
    digests = beside.read_bytes().split(b"\n")
    found = False
    with path.open("rb") as rows:
        count = 0
        for count, line in enumerate(rows, 1):
            if count > len(digests) or line_digest(line.rstrip(b"\n")).encode() != digests[count - 1]:
                found = True
                yield Finding(path, "this row was changed since its manifest was written", count)
    if count != len(digests) - 1:
        yield Finding(path, f"has {count} rows, was written with {len(digests) - 1}")
    elif not found:
        yield Finding(path, "changed since its manifest was written (line endings)")
