"""push: hand a data set, and the student with it, to the Hugging Face Hub.

    stepdistill push ada/topics --model ada/topics-student

What is sent is a list made before anything is, and nothing else goes out: the shards under their own names, the data card as README.md,
``croissant.json``, the summary, the manifest of every stage, and the signatures where there are any. No response store, no dropped rows,
no ``run.json`` with times and the host. A run that its audit finds fault with is not sent, nor are rows of a teacher whose terms forbid it.

The token is found by huggingface_hub alone (``HF_TOKEN``, or the file that ``hf auth login`` wrote); it is neither read nor shown here.

Limits: a stranger who has only what was pushed can check files against manifests, manifests against each other and a signature; to follow
a row back to its response takes the run folder. What an earlier push left in the repository and this one does not send stays there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipeline import envelopes, export, outputs, student_signatures, terms
from pipeline.audit import audit
from pipeline.audits import kind, opened
from pipeline.exports import View, data_card, model_card, shards, summary, view
from pipeline.exports import croissant as croissant_format
from pipeline.files import InputError, RunError, plain
from pipeline.stages import STAGES
from pipeline.train import STUDENT

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CARD: Final = "README.md"
MANIFESTS: Final = "manifests"
MESSAGE: Final = "Data set and manifests"


@dataclass(frozen=True)
class Parcel:
    """What goes to one repository: by its name there, a file of the run or text that was generated for it."""

    repository: str
    kind: str
    files: Mapping[str, Path | str]

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Each file's name in the repository and its size in bytes."""
        for name, content in self.files.items():
            yield name, len(content.encode()) if isinstance(content, str) else content.stat().st_size


def parcels(run: Path, repository: str, model: str | None = None) -> list[Parcel]:
    """What would be sent of a run: the data set, and with ``model`` the student.

    Raises InputError for names that the Hub does not take and for a student that was not trained, RunError as ``view``.
    """
    for name in (repository, model):
        if name is not None:
            _check_name(name)
    shown = replace(view(run), base="", repository=repository)
    provenance: dict[str, Path | str] = {
        f"{MANIFESTS}/{stage}.json": result.folder / outputs.MANIFEST for stage, result in shown.results.items()
    }
    provenance |= {f"{envelopes.FOLDER}/{path.name}": path for path in _signatures(run)}
    folder = shown.results["shard"].folder
    found = [
        Parcel(
            repository,
            "dataset",
            {
                CARD: data_card.render(shown),
                export.FORMATS["croissant"].file: croissant_format.render(shown),
                export.FORMATS["summary"].file: summary.render(shown),
                **{file.path: folder / file.path for file in shards(shown.shard)},
                **provenance,
            },
        )
    ]
    if model is not None:
        found.append(Parcel(model, "model", {CARD: model_card.render(shown), **_student(shown), **provenance}))
    return found


def _signatures(run: Path) -> Iterator[Path]:
    """The signatures on what is in force; older ones stay where they are."""
    results, _, _ = opened(run, list(STAGES), everything=False)
    current = {envelopes.name(envelopes.statement(results.values()).payload())}
    folder = run / envelopes.FOLDER
    for path in sorted(folder.iterdir()) if kind(folder) == "folder" else ():
        trained = path.name.endswith(student_signatures.SUFFIX) and "train" in results
        of_student = trained and path.name.startswith(f"{results['train'].folder.name}.")
        if kind(path) == "file" and (path.name in current or of_student):
            yield path


def _student(shown: View) -> dict[str, Path | str]:
    folder, manifest = shown.results["train"]
    prefix = f"{STUDENT}/"
    return {
        file.path.removeprefix(prefix): folder / file.path
        for file in manifest.outputs
        if file.path.startswith(prefix) and file.path != f"{prefix}{CARD}"
    }


def push(
    run: Path,
    repository: str,
    model: str | None = None,
    *,
    private: bool = False,
    revision: str | None = None,
    accept_terms: str | None = None,
    keys: Sequence[Path] = (),
    endpoint: str | None = None,
    tell: Callable[[str], None] = print,
) -> Iterator[str]:
    """Send a run that passes its audit; the address of each commit, when it is there. Existing repositories get a new commit.

    ``private`` counts where a repository is made; ``revision`` is the branch to commit to. ``accept_terms`` is why rows are sent though
    their teacher's terms forbid training on them; it stands in the commit. ``tell`` is given what the audit finds. Raises
    RunError for a run that does not pass, and where the Hub cannot be reached or refuses; InputError for names and reasons that cannot be
    used.
    """
    prepared = parcels(run, repository, model)
    problem = unaccepted(run, accept_terms)
    if problem is not None:
        raise RunError(f"not sent: {problem}")
    findings = 0
    for finding in audit(run, keys=keys):
        tell(str(finding))
        findings += 1
    if findings:
        raise RunError(f"{run}: not sent, for its audit found {findings} problems; `stepdistill audit` lists them")
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint)
    for one in prepared:
        yield _send(api, one, private=private, revision=revision, accepted=accept_terms)


def _check_name(repository: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(repository)
    except HFValidationError:
        named = False
    else:
        named = "/" in repository  # without an owner the Hub makes it, and takes no commit to it
    if not named:
        raise InputError(f"{plain(repository)}: not a name of the Hub; give owner/name, as in ada/topics")


def unaccepted(run: Path, accepted: str | None) -> str | None:
    """Why the teachers' terms forbid to send this; None where they do not, or a reason was given. Raises InputError for an empty one."""
    if accepted is not None:
        if not accepted.strip():
            raise InputError("--accept-terms: give a reason; it stands in the commit")
        return None
    forbidden = {
        name: one for name, one in terms.of_manifest(view(run).shard.settings).items() if one.training == "forbidden"
    }
    problem = terms.refused(forbidden)
    return f"{problem}; give the reason why it may be all the same: --accept-terms REASON" if problem else None


def _send(api: "HfApi", parcel: Parcel, *, private: bool, revision: str | None, accepted: str | None) -> str:
    """One commit with all files. Raises RunError."""
    from huggingface_hub import CommitOperationAdd, errors

    try:
        api.create_repo(parcel.repository, repo_type=parcel.kind, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(parcel.repository, repo_type=parcel.kind, branch=revision, exist_ok=True)
        operations = [
            CommitOperationAdd(name, content.encode() if isinstance(content, str) else content)
            for name, content in parcel.files.items()
        ]
        sent = api.create_commit(
            parcel.repository,
            operations,
            commit_message=MESSAGE,
            commit_description=accepted and f"Sent in spite of the teacher's terms, because: {accepted}",
            repo_type=parcel.kind,
            revision=revision,
        )
    except (errors.HTTPError, ValueError, OSError) as error:  # type: ignore[attr-defined]
        told = plain(" ".join(str(error).split()))
        raise RunError(
            f"{parcel.repository}: the Hub at {api.endpoint} did not take it ({told}); check name, token and rights"
        ) from None
    return sent.commit_url
