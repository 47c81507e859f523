"""Every record of the response store fits its own check and its key."""

from collections.abc import Iterator

from pipeline import responses
from pipeline.audits import Audited, Finding


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on the response store."""
    if audited.store.is_dir():
        for problem in responses.verify(audited.store):
            yield _finding(audited, problem)


def _finding(audited: Audited, problem: str) -> Finding:
    place, _, told = problem.partition(": ")
    name, _, line = place.rpartition(":")
    if line.isdecimal():
        return Finding(audited.store / name.rpartition("/")[2], told, int(line))
    return Finding(audited.store, problem)
