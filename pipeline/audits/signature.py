"""Signatures are whole, and one of them covers exactly what is in force; with keys that the auditor trusts, one of these made it.

Trusted keys come from the auditor alone. A public key that lies in the run is worth nothing: whoever changed the data can change it too.
Without keys an envelope is checked for its form and for what it covers, which finds out who forgot to sign again, not who forged.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from pipeline import envelopes, student_signatures
from pipeline.audits import Audited, Finding, kind, opened
from pipeline.envelopes import PublicKey
from pipeline.files import RunError
from pipeline.stages import STAGES
from pipeline.train import STUDENT

UNSIGNED: Final = "not signed"


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on the envelopes in ``signatures/``. Raises InputError for a key of the auditor's that cannot be used."""
    keys = envelopes.trusted(audited.keys, audited.run)
    folder = audited.run / envelopes.FOLDER
    present = envelopes.statement(audited.results.values())
    uncovered: list[Finding] = []
    named: set[str] = set()
    covered = vouched = False
    if kind(folder) not in ("folder", None):
        yield Finding(folder, "not a folder; signatures lie in one")
    for path in _entries(folder):
        if path.name.endswith(student_signatures.SUFFIX) and kind(path) == "file":
            yield from _student(audited, path, keys)
            continue
        if not path.name.endswith(envelopes.SUFFIX):
            yield Finding(path, "not a signature; nothing else belongs here")
            continue
        try:
            signed = envelopes.read(path)
        except RunError as error:
            yield Finding(path, str(error).removeprefix(f"{path}: "))
            continue
        if path.name != envelopes.name(signed.payload):
            yield Finding(path, "what was signed is not what its name says: payload or name was changed")
        problems = [Finding(path, problem) for problem in envelopes.differences(signed, present)]
        covered |= not problems
        uncovered += problems
        if not problems:
            named |= signed.signatures.keys()
        for key, fits in envelopes.signers(signed, keys):
            if not fits:
                yield Finding(path, f"the signature by {key.id} does not fit what was signed")
            vouched |= fits and not problems
    if not covered:
        yield from uncovered
    if keys and not vouched:
        trusted = ", ".join(key.id for key in keys)
        said = f"signed by {', '.join(sorted(named))}" if named else "no signature covers what is in force"
        yield Finding(folder, f"{said}; the keys that you trust are {trusted}")


def _student(audited: Audited, path: Path, keys: Sequence[PublicKey]) -> Iterator[Finding]:
    """Findings on a trusted key's signature on the student in force; others can say nothing that the manifests do not."""
    trained = audited.results.get("train")
    for key in keys if trained is not None else ():
        if trained is not None and path.name == student_signatures.name(trained.folder.name, key):
            problem = student_signatures.problem(path, trained.folder / STUDENT, key)
            yield from [Finding(path, problem)] if problem is not None else []


def told(run: Path, keys: Sequence[Path] = ()) -> str:
    """One line for an audit's summary: by whom what is in force is signed, and whether that was checked."""
    results, _, _ = opened(run, list(STAGES), everything=False)
    present = envelopes.statement(results.values())
    trusted = envelopes.trusted(keys, run)
    vouched: set[str] = set()
    named: set[str] = set()
    for path in _entries(run / envelopes.FOLDER):
        try:
            signed = envelopes.read(path)
        except RunError:
            continue
        if not any(envelopes.differences(signed, present)):
            named |= signed.signatures.keys()
            vouched |= {key.id for key, fits in envelopes.signers(signed, trusted) if fits}
    if vouched:
        return f"signed by {', '.join(sorted(vouched))}, which you trust"
    if named and not keys:
        return f"signed by {', '.join(sorted(named))} (not checked: name the signer's public key with --key)"
    return f"signed by {', '.join(sorted(named))}, which you do not trust" if named else UNSIGNED


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if kind(folder) == "folder" else []
