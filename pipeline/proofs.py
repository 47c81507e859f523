r"""Prove to somebody who has nothing else at hand that a training row belongs to a data set.

A proof is one JSON object a row: the row's exact line, its place among the lines of its file with the neighbours on the way to the
file's root, and the file's entry with its own way to the data set's root (RFC 6962, section 2.1.1; ``pipeline.merkle``)::

    {"type": "urn:stepdistill:inclusion-proof:v1", "row": "{\"id\":\"9f../label\",..}",
     "row_way": {"index": 16, "size": 50000, "path": ["<hash>", ..]},
     "file": {"path": "train-00000.jsonl", "bytes": 24180311, "rows": 50000, "root": "<hash>"},
     "file_way": {"index": 0, "size": 4, "path": ["<hash>", "<hash>"]},
     "root": "<hash>", "stage": "shard", "key": "2d41..", "manifest": "<SHA-256 of the manifest>", "digest": "<SHA-256 of the rest>"}

Limits: a proof is worth what its root is worth. A root alone says nothing of which manifest it stands in, nor of how many files there
are: the manifest, or a signed statement, does. That a row is *not* in a data set cannot be proven this way. Proving reads the rows' file
once, in memory for its hashes (64 bytes a row).
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple

from msgspec import DecodeError
from pydantic import Field

from pipeline import envelopes, merkle, outputs
from pipeline.envelopes import FileEntry, PublicKey, Statement
from pipeline.files import InputError, RunError, canonical_json, plain
from pipeline.records import Manifest, OutputFile, Record, Sha256, TrainingRow

MOST_BYTES: Final = 64 << 20  # of a file of proofs
DEEPEST: Final = 64  # neighbours on one way: a tree of 2^64 leaves


class Way(Record):
    """A leaf's place in a tree, from 0, and its neighbours on the way to the root, lowest first."""

    index: int = Field(ge=0, lt=2**63)
    size: int = Field(ge=1, lt=2**63)
    path: Annotated[list[Sha256], Field(max_length=DEEPEST)]

    def root(self, leaf: bytes) -> str | None:
        """The root that this leaf has here; None where there are too few neighbours or too many."""
        found = merkle.climbed(leaf, self.index, self.size, [bytes.fromhex(item) for item in self.path])
        return None if found is None else found.hex()


class Proof(Record):
    """That a row stands in a data set."""

    type: Literal["urn:stepdistill:inclusion-proof:v1"] = "urn:stepdistill:inclusion-proof:v1"
    row: str
    row_way: Way
    file: FileEntry
    file_way: Way
    root: Sha256
    stage: Literal["shard"] = "shard"
    key: str
    manifest: Sha256
    digest: Sha256 = "0" * 64

    def encoded(self) -> bytes:
        """One line of JSON, without a newline; in ASCII, so that no text in a row can drive a terminal or break in a mail."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()

    def sealed(self) -> str:
        """What ``digest`` must hold: SHA-256 of the canonical JSON of all the rest."""
        return hashlib.sha256(canonical_json(self.model_dump(mode="json", exclude={"digest"}))).hexdigest()


class Anchor(NamedTuple):
    """What a verifier already trusts. ``name`` says where it is from, ``files`` is their number; what is None is not known."""

    name: str
    root: str
    key: str | None = None
    manifest: str | None = None
    files: int | None = None


def prove(run: Path, wanted: str) -> list[Proof]:
    """A proof for the training row with this id, or for all rows of the example with this id, in the order of the files.

    Raises InputError where there is none, and RunError where a file is not what its manifest says.
    """
    folder = outputs.current(run, "shard")
    if folder is None:
        raise InputError(f"{run}: shard has no result yet; run `stepdistill run` first")
    manifest = outputs.read_manifest(folder)
    files = [file for file in manifest.outputs if file.root is not None]
    proofs = [proof for place in range(len(files)) for proof in _proofs(folder, manifest, files, place, wanted)]
    if not proofs:
        raise InputError(
            f"{plain(wanted)}: no training row or example of this id in {folder}; `stepdistill trace` tells what became of it"
        )
    return proofs


def _proofs(folder: Path, manifest: Manifest, files: Sequence[OutputFile], place: int, wanted: str) -> Iterator[Proof]:
    """The proofs for one file's rows. Lines are searched as bytes, and only files with a find are hashed."""
    file = files[place]
    path = folder / file.path
    if not path.resolve().is_relative_to(folder.resolve()):
        raise RunError(f"{folder / outputs.MANIFEST}: {plain(file.path)} points out of the folder")
    found = [(index, line) for index, line in _lines_with(path, wanted) if _is(line, wanted)]
    if not found:
        return
    with path.open("rb") as rows:
        tree = merkle.Tree(merkle.leaves(line.removesuffix(b"\n") for line in rows))
    if tree.root.hex() != file.root:
        raise RunError(f"{path}: changed since its manifest was written; run `stepdistill audit`")
    whole = merkle.Tree(merkle.leaves(map(outputs.file_entry, files)))
    for index, line in found:
        proof = Proof(
            row=line.decode(),
            row_way=_way(tree, index),
            file=FileEntry.model_validate_json(outputs.file_entry(file)),
            file_way=_way(whole, place),
            root=whole.root.hex(),
            key=manifest.key,
            manifest=hashlib.sha256(outputs.manifest_bytes(manifest)).hexdigest(),
        )
        yield proof.model_copy(update={"digest": proof.sealed()})


def _lines_with(path: Path, wanted: str) -> Iterator[tuple[int, bytes]]:
    """Index and content of the lines that hold the id as a JSON string."""
    needle = TrainingRow(
        id=wanted, example="", task="label", split="train", prompt="", completion="", difficulty=None
    ).line()
    needle = needle[len(b'{"id":') : needle.index(b',"example":""')]
    try:
        with path.open("rb") as rows:
            for index, line in enumerate(rows):
                if needle in line:
                    yield index, line.removesuffix(b"\n")
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); run `stepdistill audit`") from None


def _is(line: bytes, wanted: str) -> bool:
    try:
        row = TrainingRow.read(line)
    except DecodeError:
        return False
    return wanted in (row.id, row.example)


def _way(tree: merkle.Tree, index: int) -> Way:
    return Way(index=index, size=len(tree.leaves), path=[item.hex() for item in tree.path(index)])


def write(proofs: Sequence[Proof]) -> bytes:
    """The proofs, one a line."""
    return b"".join(proof.encoded() + b"\n" for proof in proofs)


def read(path: Path) -> list[Proof]:
    """The proofs in a file. Raises InputError, in one line, where it is anything else."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"larger than {MOST_BYTES >> 20} MiB")
        lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
        return [envelopes.parsed(Proof, line) for line in lines]
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except ValueError as error:
        raise InputError(f"{path}: {plain(str(error))}; not what `stepdistill prove` writes") from None


def row_of(proof: Proof) -> TrainingRow:
    """The row that is proven. Raises RunError where the line holds none."""
    try:
        return TrainingRow.read(proof.row)
    except DecodeError as error:
        raise RunError(f"the proof's line is not a training row ({plain(str(error))})") from None


def flaws(proof: Proof, anchor: Anchor | None = None) -> Iterator[str]:
    """Why a proof does not hold, in itself and under what is trusted; nothing where it does."""
    if proof.digest != proof.sealed():
        yield "digest: does not fit the rest of the proof; it was changed or damaged"
    try:
        row_of(proof)
    except RunError as error:
        yield str(error)
    if "\n" in proof.row or proof.row_way.root(merkle.leaf(proof.row.encode())) != proof.file.root:
        yield "row: the line does not stand at this place of a file with this root"
    if proof.row_way.size != proof.file.rows:
        yield "row_way.size: not the number of rows of the file"
    if proof.file_way.root(merkle.leaf(canonical_json(proof.file.model_dump(mode="json")))) != proof.root:
        yield "file: the file does not stand at this place of a data set with this root"
    if anchor is None:
        return
    for name, said, known in (
        ("root", proof.root, anchor.root),
        ("key", proof.key, anchor.key),
        ("manifest", proof.manifest, anchor.manifest),
        ("file_way.size", proof.file_way.size, anchor.files),  # neighbours can fit several sizes (as for rows, above)
    ):
        if known is not None and said != known:
            yield f"{name}: {plain(str(said))}, but {anchor.name} says {plain(str(known))}"


def anchor_of_manifest(path: Path) -> Anchor:
    """A shard stage's manifest that is trusted. Raises InputError or RunError where it is none."""
    manifest = outputs.read_manifest_file(path)
    if manifest.stage != "shard" or manifest.root is None:
        raise InputError(f"{path}: a manifest of {plain(manifest.stage)}, not of shard; give that of the data set")
    digest = hashlib.sha256(outputs.manifest_bytes(manifest)).hexdigest()
    files = sum(file.root is not None for file in manifest.outputs)
    return Anchor(str(path), manifest.root, manifest.key, digest, files)


def anchor_of_statement(path: Path, keys: Sequence[PublicKey]) -> Anchor:
    """A statement that one of these keys signed. Raises RunError where none did, or it is none."""
    signed = envelopes.read(path)
    fitting = [key for key, fits in envelopes.signers(signed, keys) if fits]
    if not fitting:
        raise RunError(f"{path}: not signed by {' or '.join(key.id for key in keys)}; ask the signer for the right key")
    key, manifest = _shard(signed.statement)
    said = signed.statement.predicate
    if said.root is None or manifest is None:
        raise RunError(f"{path}: covers no shard result; nothing can be proven by it")
    return Anchor(f"what {fitting[0].id} signed", said.root, key, manifest, len(said.files))


def _shard(statement: Statement) -> tuple[str, str | None]:
    """Key and digest of the shard stage's manifest among the subjects."""
    for subject in statement.subject:
        stage, _, rest = subject.name.partition("/")
        if stage == "shard":
            return rest.removesuffix(f"/{outputs.MANIFEST}"), subject.digest.sha256
    return "", None
