"""audit: is everything in a run folder what was written, and does every training row lead back to a stored response?

Checked: every manifest against its own digest and its parents', every file against its manifest (a changed row is named by its line),
the conservation law and the counts by reason, that a stage's kept and dropped ids are its input's, every record of the response
store, and each shard row's way back through example and response to the store.

Not checked: that a model really gave the stored answer, and that the source files still are what they were (``status`` tells that).
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

from pipeline.audits import Audited, Finding, chain, files, laws, opened, rows, store
from pipeline.files import InputError
from pipeline.stages import STAGES

CHECKS: Final[tuple[Callable[[Audited], Iterator[Finding]], ...]] = (
    chain.check,  # manifests, keys, parents
    files.check,  # bytes
    laws.check,  # nothing came or went without a word
    store.check,  # the teachers' answers
    rows.check,  # the way back of every training row
)


def audit(
    run: Path, *, full: bool = False, sample: int | None = None, seed: int = 0, keys: Sequence[Path] = ()
) -> Iterator[Finding]:
    """What is wrong in a run folder, with file and row; nothing when all is well.

    ``full`` also checks finished results that are no longer in force; ``sample`` follows only so many shard rows back (files are
    always hashed in full). ``keys`` are public keys that the auditor trusts. Raises InputError where there is no run.
    """
    if not any((run / stage).is_dir() for stage in STAGES):
        raise InputError(f"{run}: no run here; give the folder that `run:` in stages.yaml names")
    results, others, findings = opened(run, list(STAGES), everything=full)
    yield from findings
    audited = Audited(run, results, others, full=full, sample=sample, seed=seed, keys=keys)
    for check in CHECKS:
        yield from check(audited)
