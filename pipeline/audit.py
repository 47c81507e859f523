"""audit: is everything in a run folder what was written, and does every training row lead back to a stored response?

    for finding in audit(Path("runs/topics")):
        print(finding)                              # runs/topics/dedup/302a..../part-00000.jsonl:17: this row was changed since ..

Checked, one file each in ``pipeline/audits``: that nothing lies in the run folder that has no business there; every manifest against its
own digest, its parents and the rest of itself; signatures; terms; every file against its manifest (a changed row is named by its line);
the conservation law, and that what a filter kept and dropped are its input's rows; every record of the response store; and each shard
row's way back through example and response to the store. Anything found is a ``Finding``; exit codes are the command's.

Limits: ``UNPROVEN`` names what nothing in a run folder can give away, first of all that a model really gave the stored answer. Source files
are not in the run folder; ``status`` tells whether they still are what they were.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from msgspec import MsgspecError

from pipeline.audits import (
    Audited,
    Finding,
    chain,
    checkpoint,
    derivation,
    exports,
    figures,
    files,
    inputs,
    laws,
    manifests,
    opened,
    outcomes,
    places,
    revoked,
    rows,
    signature,
    store,
    sweeps,
    terms,
    verdicts,
)
from pipeline.binding import Problem
from pipeline.files import InputError, RunError, plain
from pipeline.processes import Crew
from pipeline.stages import STAGES

CHECKS: Final[tuple[Callable[[Audited], Iterator[Finding]], ...]] = (
    places.check,  # nothing lies there that has no business there
    chain.check,  # manifests, keys, parents
    manifests.check,  # what they say beside what else they say
    signature.check,  # who vouches for these manifests
    terms.check,  # may it have been trained on
    files.check,  # bytes
    laws.check,  # nothing came or went without a word
    store.check,  # the teachers' answers
    rows.check,  # the way back of training rows
    derivation.check,  # every row made again
    figures.check,  # counts over rows
    verdicts.check,  # what was dropped, by its evidence
    inputs.check,  # the eval sets
    outcomes.check,  # what was trained on and predicted
    checkpoint.check,  # what the student was trained on
    revoked.check,  # nothing that must no longer be used
    exports.check,  # what others' tools are told
    sweeps.check,  # figures of students that are not in force
)

STUMBLED: Final = (
    *(RunError, OSError, Problem, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError),
    *(RecursionError, TypeError, ValueError, MsgspecError),
)
"""What a check may raise over a hostile manifest: settings and details are free JSON there, and may have any form."""

WARY: Final = (places, chain, manifests, signature, terms, files, laws, store, exports)
"""The checks that look at what a thing is before they open it: where links or devices lie in a run folder, only these go on."""


def audit(
    run: Path,
    *,
    full: bool = False,
    recompute: bool = False,
    sample: int | None = None,
    seed: int = 0,
    keys: Sequence[Path] = (),
) -> Iterator[Finding]:
    """What is wrong in a run folder, with file and row; nothing when all is well.

    ``full`` also derives every row again, and checks finished results that are no longer in force; ``recompute`` does that and runs the
    filters again that need the whole corpus; ``sample`` follows only so many shard rows back (files are always read in full). ``keys`` are
    public keys that the auditor trusts. Raises InputError where there is no run.
    """
    with auditing(run, full=full, recompute=recompute, sample=sample, seed=seed, keys=keys) as (audited, findings):
        yield from findings
        for check in CHECKS:
            yield from found_by(check, audited)


@contextmanager
def auditing(
    run: Path,
    *,
    full: bool = False,
    recompute: bool = False,
    sample: int | None = None,
    seed: int = 0,
    keys: Sequence[Path] = (),
) -> Iterator[tuple[Audited, list[Finding]]]:
    """What ``audit`` hands to each of CHECKS, in order, and what was found in opening it."""
    try:
        if not any((run / stage).is_dir() for stage in STAGES):
            raise InputError(f"{run}: no run here; give the folder that `run:` in stages.yaml names")
        results, others, findings = opened(run, list(STAGES), everything=full or recompute)
    except OSError as error:
        raise InputError(f"{run}: cannot be read ({error.strerror}); no audit is possible") from None
    with Crew() as crew:
        audited = Audited(
            run,
            results,
            others,
            full=full or recompute,
            recompute=recompute,
            sample=sample,
            seed=seed,
            keys=keys,
            crew=crew,
            barred=any(places.odd(run)),
        )
        yield audited, [replace(finding, check="manifests") for finding in findings]


def found_by(check: Callable[[Audited], Iterator[Finding]], audited: Audited) -> Iterator[Finding]:
    """What one check finds. Where it stumbles over what it is to check, or a file goes away in its midst, that is a finding."""
    name = check.__module__.rpartition(".")[2]
    if audited.barred and check not in [one.check for one in WARY]:
        audited.notes.append(Finding(audited.run, f"the check of {name} waits until links and devices are gone"))
        return
    try:
        for finding in check(audited):
            yield replace(finding, check=name)
    except InputError as error:
        if check is signature.check:  # a key of the auditor's own that cannot be used
            raise
        yield Finding(audited.run, f"the check of {name} could not go on ({plain(str(error))})", check=name)
    except STUMBLED as error:
        told = str(error) if isinstance(error, RunError | OSError | Problem) else f"{type(error).__name__}: {error}"
        yield Finding(audited.run, f"the check of {name} could not go on ({plain(told)})", check=name)
