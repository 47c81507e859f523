"""Commands that tell and prove where rows come from."""

import sys
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline import printed
from pipeline.commands import DEFAULT, ConfigOption, JsonOption, app

if TYPE_CHECKING:
    from pipeline.config import Config

RunOption = Annotated[Path | None, typer.Option("--run", help="a run folder; by default the one of stages.yaml")]
SHOWN = 200  # findings that are printed; a file of a million changed rows needs no more


@app.command()
def trace(
    row: Annotated[
        str,
        typer.Argument(
            metavar="ID", help="of a row, a response, a request, a training row; train.jsonl:17; a student's folder"
        ),
    ],
    config: ConfigOption = DEFAULT,
    path: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Follow one row from its source to the shard and back, by any id it ever had, or a student to what it was trained on."""
    from dataclasses import asdict

    from pipeline.config import load
    from pipeline.stages import STAGES
    from pipeline.trace import origin
    from pipeline.trace import trace as follow

    run = path if path is not None else load(config).run
    student = origin(run, row)
    if student is not None:
        printed.as_json(student) if as_json else printed.fields(student)
        return
    events = follow(run, row)
    if as_json:
        printed.as_json([asdict(event) for event in events])
        return
    for index, event in enumerate(events):
        if index:
            print()
        print(f"{event.stage}: {event.verdict}  {event.place}")
        if event.verdict == "dropped" or STAGES[event.stage].kind != "filter":  # a filter keeps a row as it was
            printed.fields(event.row, indent="    ")


@app.command()
def revoke(
    source: Annotated[
        str | None,
        typer.Option(metavar="ID", help="an input row, by any id or as train.jsonl:17, or a source file's name"),
    ] = None,
    response: Annotated[
        str | None,
        typer.Option(metavar="KEY", help="a teacher's or judge's answer, by its request's key or response id"),
    ] = None,
    reason: Annotated[str | None, typer.Option(help="why; it stands in the drops")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what it reached; write nothing")] = False,
    undo: Annotated[str | None, typer.Option(metavar="ID", help="take a revocation back")] = None,
    show: Annotated[bool, typer.Option("--list", help="what is revoked, and the results that still hold it")] = False,
    config: ConfigOption = DEFAULT,
    path: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """List every row and student that a bad source or response reached; the next run builds without it."""
    from dataclasses import asdict

    from pipeline import revocations
    from pipeline import revoke as revoking
    from pipeline.config import load

    if sum((source is not None, response is not None, undo is not None, show)) != 1:
        raise typer.BadParameter("give one of --source, --response, --undo and --list")
    run = path if path is not None else load(config).run
    if undo is not None:
        taken = [one.model_dump() for one in revoking.undo(run, undo)]
        printed.as_json(taken) if as_json else print(f"{run}: taken back; `stepdistill run` uses it again")
    elif show:
        known = revocations.read(run)
        held = revoking.held(run, known)
        if as_json:
            unseen = revoking.not_looked_through(run)
            told = {"revoked": [one.model_dump() for one in known], "held": [asdict(one) for one in held]}
            printed.as_json({**told, "not_looked_through": unseen})
        else:
            printed.revoked(known, held, revoking.not_looked_through(run))
    else:
        found = revoking.reach(run, revoking.asked(run, source=source, response=response, reason=reason))
        recorded = not dry_run and revoking.record(run, found.revocation)
        if as_json:
            printed.as_json({**asdict(found), "revocation": found.revocation.model_dump(), "recorded": recorded})
        else:
            printed.reach(run, found, dry_run=dry_run)


@app.command()
def audit(
    path: Annotated[Path | None, typer.Argument(help="a run folder; by default the one of stages.yaml")] = None,
    config: ConfigOption = DEFAULT,
    full: Annotated[
        bool, typer.Option("--full", help="derive every row again; finished results that are no longer in force, too")
    ] = False,
    recompute: Annotated[
        bool, typer.Option("--recompute", help="as --full, and run the filters again that need the whole corpus")
    ] = False,
    sample: Annotated[
        int | None, typer.Option("--sample", min=1, help="follow only so many shard rows back to the store")
    ] = None,
    key: Annotated[
        list[Path] | None, typer.Option("--key", help="a public key that you trust to have signed this; repeatable")
    ] = None,
    resample: Annotated[
        int | None,
        typer.Option(
            "--resample", metavar="K", min=1, help="ask the teachers of stages.yaml K requests again, and report"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Verify manifests, files, rows, responses and the way back of training rows. Exit 0: whole, 1: something was found, 2: no audit."""
    from dataclasses import asdict

    from pipeline.audit import CHECKS, auditing, found_by
    from pipeline.audits import signature
    from pipeline.audits.manifests import UNPROVEN
    from pipeline.config import load
    from pipeline.files import InputError
    from pipeline.resample import resample as ask_again

    if sample is not None and (full or recompute):
        raise InputError("audit: --sample K follows some rows back, --full and --recompute all; give one of them")
    run = path if path is not None else load(config).run
    its_own = None if resample is None else _settings_of(config, run)
    found = []
    with auditing(run, full=full, recompute=recompute, sample=sample, keys=key or ()) as (audited, findings):
        for one in chain(findings, *(found_by(check, audited) for check in CHECKS)):
            found.append(one)
            if not as_json and len(found) <= SHOWN:
                print(one)
    asked = None if its_own is None or resample is None else ask_again(its_own, resample)
    signed = signature.told(run, key or ())
    if as_json:
        told = [{"path": str(one.path), "line": one.line, "problem": one.problem, "check": one.check} for one in found]
        notes = [str(note) for note in audited.notes]
        facts = {"checked": audited.covered, "notes": notes, "signature": signed, "unproven": UNPROVEN}
        again = {} if asked is None else {"resampled": asdict(asked)}
        printed.as_json({"run": str(run), "findings": told, **facts, **again})
        raise typer.Exit(1 if found else 0)
    if len(found) > SHOWN:
        print(f".. and {len(found) - SHOWN:,} more findings; --json has all of them")
    for note in audited.notes[:SHOWN]:
        print(f"not looked at: {note}")
    if signed != signature.UNSIGNED:
        print(f"{run}: {signed}")
    if asked is not None:
        printed.resampled(asked)
    covered = audited.covered
    print(
        f"{run}: {f'{len(found):,} findings' if found else 'whole'}; read {covered['files']:,} files, {covered['rows']:,} rows and "
        f"{covered['responses']:,} responses ({covered['bytes'] / 1e6:,.1f} MB)"
    )
    print(
        f"What this audit cannot prove: {'; '.join(UNPROVEN)}. Of these, a signature guards what stands in manifests (--key)."
    )
    raise typer.Exit(1 if found else 0)


def _settings_of(config: Path, run: Path) -> "Config":
    """The settings of a run. Raises InputError where stages.yaml belongs to another run."""
    from pipeline.config import load
    from pipeline.files import InputError

    loaded = load(config)
    if loaded.run.resolve() != run.resolve():
        raise InputError(
            f"{config}: its run is {loaded.run}, not {run}; name the stages.yaml of this run with --config"
        )
    return loaded


@app.command()
def repair(
    config: ConfigOption = DEFAULT,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be done; change nothing")] = False,
    train: Annotated[
        bool, typer.Option("--train", help="also train and evaluate again, where those results are damaged")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Rebuild what is damaged from what is intact, the stored responses first; says what was lost for good."""
    from dataclasses import asdict

    from pipeline.config import load
    from pipeline.damaged import FOLDER
    from pipeline.repair import repair as mend

    settings = load(config)
    done = mend(settings, dry_run=dry_run, train=train)
    left = [str(finding) for finding in done.findings]
    if as_json:
        steps = [asdict(step) for step in done.steps]
        printed.as_json({"run": str(settings.run), "steps": steps, "lost": done.lost, "problems": left})
    else:
        if done.steps:
            header = ("where", "what was wrong", "would be" if dry_run else "now", "")
            printed.table(header, ((step.place, step.damage, step.outcome, step.told) for step in done.steps))
        for name in done.lost:
            print(f"lost for good: {name}")
        for problem in left:
            print(problem)
        ended = f"{len(left)} problems" if left else "whole" if done.lost else "whole; nothing was lost"
        kept = settings.run / FOLDER
        print(f"{settings.run}: {ended}" + (f"; what was damaged lies in {kept}" if kept.is_dir() else ""))
    raise typer.Exit(1 if left else 0)


@app.command()
def keygen(
    place: Annotated[Path, typer.Argument(metavar="NAME", help="NAME.private.pem and NAME.public.pem; or a folder")],
    ec: Annotated[bool, typer.Option("--ec", help="P-256 in place of Ed25519: what `sign --student` needs")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a pair of keys: the private one signs data sets, the public one goes to those who audit them."""
    import os

    from pipeline.signing import PASSPHRASE, generate

    passphrase = os.environ.get(PASSPHRASE) or _asked("Passphrase (empty for none)", twice=True)
    pair = generate(place, passphrase, kind="p256" if ec else "ed25519")
    if as_json:
        printed.as_json(
            {"id": pair.id, "private": str(pair.private), "public": str(pair.public), "encrypted": bool(passphrase)}
        )
        return
    print(f"key {pair.id}")
    print(f"{pair.private}: private{'' if passphrase else ', not encrypted'}; keep it to yourself")
    print(f"{pair.public}: public; give it, or the key's id, to those who audit, by another way than the data")


@app.command()
def sign(
    key: Annotated[Path, typer.Option("--key", help="the private key, as `stepdistill keygen` made it")],
    path: Annotated[Path | None, typer.Argument(help="a run folder; by default the one of stages.yaml")] = None,
    student: Annotated[
        bool, typer.Option("--student", help="the student's folder as well, as OpenSSF model signing does; P-256 keys")
    ] = False,
    config: ConfigOption = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Sign what is in force in a run, if it passes the audit."""
    import os
    from functools import cache

    from pipeline import signing, student_signatures
    from pipeline.config import load

    @cache
    def passphrase() -> str | None:
        return os.environ.get(signing.PASSPHRASE) or _asked("Passphrase")

    run = path if path is not None else load(config).run
    signer = signing.private_key(key, passphrase)
    model_signer = student_signatures.signer(key, passphrase) if student else None
    written = signing.sign(run, signer, student=model_signer)
    if as_json:
        printed.as_json({"signatures": [str(file) for file in written], "key": signer.public.id})
        return
    for file in written:
        print(f"{file}: signed by {signer.public.id}")
    print(f"to check it: stepdistill audit {run} --key PUBLIC_KEY")


@app.command()
def prove(
    row: Annotated[str, typer.Argument(metavar="ID", help="of a training row, or of an example: all its rows")],
    config: ConfigOption = DEFAULT,
    path: RunOption = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="a file to write, in place of the terminal")] = None,
) -> None:
    """Write the proof that a training row belongs to the data set: one JSON object a row."""
    from pipeline import proofs
    from pipeline.config import load
    from pipeline.files import InputError, atomic

    found = proofs.prove(path if path is not None else load(config).run, row)
    if out is None:
        print(proofs.write(found).decode(), end="")
        return
    try:
        with atomic(out) as file:
            file.write(proofs.write(found))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); give another file") from None
    print(f"{out}: {len(found)} {'row' if len(found) == 1 else 'rows'} under root {found[0].root}")


@app.command()
def verify(
    proof: Annotated[Path, typer.Argument(help="a file that `stepdistill prove` wrote")],
    root: Annotated[
        str | None, typer.Option("--root", metavar="HEX", help="the data set's root, known to be right")
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option("--manifest", help="the shard stage's manifest.json, known to be right")
    ] = None,
    statement: Annotated[
        Path | None, typer.Option("--statement", help="a *.dsse.json that `stepdistill sign` wrote")
    ] = None,
    key: Annotated[list[Path] | None, typer.Option("--key", help="the signer's public key; repeatable")] = None,
    as_json: JsonOption = False,
) -> None:
    """Check a proof with nothing else at hand than what its root is known by."""
    import re

    from pipeline import envelopes, proofs
    from pipeline.files import InputError, plain

    if sum(given is not None for given in (root, manifest, statement)) > 1 or bool(key) != (statement is not None):
        raise InputError("verify: give one of --root, --manifest and --statement, and --key with --statement alone")
    if root is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", root):
        raise InputError(f"--root: {plain(root, 80)}: not a root; it has 64 hexadecimal digits")
    anchor = None
    if root is not None:
        anchor = proofs.Anchor("the root that you gave", root.lower())
    elif manifest is not None:
        anchor = proofs.anchor_of_manifest(manifest)
    elif statement is not None:
        anchor = proofs.anchor_of_statement(statement, [envelopes.public_key(path) for path in key or ()])
    found = proofs.read(proof)
    wrong = {number: problems for number, item in enumerate(found, 1) if (problems := [*proofs.flaws(item, anchor)])}
    proven = anchor is not None and not wrong
    rows = [] if wrong else [proofs.row_of(item) for item in found]
    if as_json:
        printed.as_json({"proven": proven, "problems": wrong, "rows": [item.plain() for item in rows]})
    for number, problems in wrong.items():
        print(*(f"{proof}:{number}: {problem}" for problem in problems), sep="\n", file=sys.stderr)
    if anchor is None and not wrong:
        raise InputError(
            f"{proof}: consistent in itself, which proves nothing yet; say what you know its data set by: "
            "--root HEX, --manifest FILE, or --statement ENVELOPE --key PUBLIC_KEY"
        )
    if not as_json and proven:
        for item, shown in zip(found, rows, strict=True):
            place = f"line {item.row_way.index + 1} of {item.row_way.size} of {plain(item.file.path)}"
            print(f"proven: {plain(shown.id)} is {place} in the data set with root {item.root}")
        if anchor is not None and anchor.manifest is None:
            print("(of key and manifest in the proof a root says nothing; --manifest or --statement do)")
    raise typer.Exit(0 if proven else 1)


def _asked(what: str, *, twice: bool = False) -> str | None:
    """A passphrase from the terminal; None where there is none, or nothing was typed."""
    if not sys.stdin.isatty():
        return None
    found: str = typer.prompt(
        what, default="", hide_input=True, show_default=False, confirmation_prompt=twice, err=True
    )
    return found or None


@app.command()
def export(
    name: Annotated[
        str, typer.Argument(metavar="FORMAT", help="croissant, data-card, model-card, statement, summary; or all")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="another file than the one in the run's exports/")
    ] = None,
    config: ConfigOption = DEFAULT,
    path: RunOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write what others' tools read about the data set, generated from its manifests."""
    from pipeline.config import load
    from pipeline.export import export as write

    run = path if path is not None else load(config).run
    found = write(run, name, output, tell=lambda told: print(told, file=sys.stderr))
    written = [str(file) for file in found]
    printed.as_json(written) if as_json else print("\n".join(written))


@app.command()
def push(
    repository: Annotated[str, typer.Argument(metavar="REPO", help="the data set's name on the Hub: owner/name")],
    model: Annotated[str | None, typer.Option("--model", help="also the student, under this name")] = None,
    private: Annotated[bool, typer.Option("--private", help="where the repository has to be made")] = False,
    revision: Annotated[str | None, typer.Option("--revision", help="the branch to commit to; made if need be")] = None,
    accept_terms: Annotated[
        str | None,
        typer.Option("--accept-terms", metavar="REASON", help="why to send what the teacher's terms forbid"),
    ] = None,
    key: Annotated[
        list[Path] | None, typer.Option("--key", help="a public key that must have signed this; repeatable")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only list what would be sent")] = False,
    config: ConfigOption = DEFAULT,
    as_json: JsonOption = False,
) -> None:
    """Send shards, cards, manifests and signatures to the Hugging Face Hub, if the audit passes."""
    from pipeline.config import load
    from pipeline.push import parcels, unaccepted
    from pipeline.push import push as send

    run = load(config).run
    if dry_run:
        listed = [
            {"repository": one.repository, "kind": one.kind, "file": name, "bytes": size}
            for one in parcels(run, repository, model)
            for name, size in one.sizes()
        ]
        if as_json:
            printed.as_json(listed)
        else:
            rows = [(str(one["repository"]), str(one["file"]), f"{one['bytes']:,}") for one in listed]
            printed.table(("repository", "file", "bytes"), rows, right=(2,))
        refused = unaccepted(run, accept_terms)
        if refused is not None:
            print(f"it would not be sent: {refused}", file=sys.stderr)
        print(f"nothing was sent; `stepdistill audit {run}`, which a push has to pass, was not run", file=sys.stderr)
        return
    sent = []
    for address in send(
        run,
        repository,
        model,
        private=private,
        revision=revision,
        accept_terms=accept_terms,
        keys=key or (),
        tell=lambda finding: print(finding, file=sys.stderr),
    ):
        sent.append(address)
        if not as_json:
            print(address)
    if as_json:
        printed.as_json(sent)
