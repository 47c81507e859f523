"""Who signed a data set, and what exactly: in-toto statements in DSSE envelopes, and the public keys to check them by.

A statement names the manifest of every stage in force by its SHA-256. A manifest names its files and parents by theirs, so that one
signature fixes every byte of every stage. ``<run>/signatures/<first 16 digits of the payload's SHA-256>.dsse.json`` holds one envelope::

    {"payload": "<base64 of the statement>", "payloadType": "application/vnd.in-toto+json",
     "signatures": [{"keyid": "<SHA-256 of the key>", "sig": "<base64>"}]}

Sources: DSSE 1.0 (github.com/secure-systems-lab/dsse, protocol.md and envelope.md), in-toto Attestation Framework, Statement v1. Any
DSSE implementation can check what is written here. This reader is stricter than the standard: no unknown fields, one encoding, so that
nothing in an envelope can be changed without a word.

Limits: a signature says who vouches for these bytes, not that a model wrote the texts in them. It has no date, for no clock is trusted
here: an older state that was signed once passes again when all of it is put back. What no manifest names is not signed: run.json, the
response store (the audit compares its answers with the signed ones), exports, the report. A stolen key looks like its owner.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeVar

from pydantic import Field, ValidationError

from pipeline import outputs
from pipeline.files import InputError, RunError, canonical_json, plain, strict_json
from pipeline.records import Manifest, Record, Sha256

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

FOLDER: Final = "signatures"
SUFFIX: Final = ".dsse.json"
PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
PREDICATE: Final = "urn:stepdistill:data-set:v1"
MOST_BYTES: Final = 64 << 20  # of an envelope: some 200,000 shards
MOST_SIGNATURES: Final = 100
STATES: Final = (
    "These are the manifests in force of one run, which passed its audit when it was signed. "
    "Nothing is said of whether the models that they name wrote the texts."
)

R = TypeVar("R", bound=Record)


class Digests(Record):
    """A subject's digests; SHA-256 alone."""

    sha256: Sha256


class Subject(Record):
    """A manifest in force: ``<stage>/<key>/manifest.json``."""

    name: str
    digest: Digests


class FileEntry(Record):
    """A row file as a leaf of its data set's tree (``outputs.file_entry``)."""

    path: str
    bytes: int
    rows: int
    root: Sha256


class Predicate(Record):
    """What is said of the subjects. All of it follows from the manifests; it stands here for who has the envelope alone."""

    root: Sha256 | None = Field(description="of the data set: the Merkle tree over ``files``; None before shard ran")
    rows: int
    files: list[FileEntry]
    manifestSchema: int = Manifest.model_fields["schema_version"].default
    states: str = STATES


class Statement(Record):
    """An in-toto Statement v1."""

    type: Literal["https://in-toto.io/Statement/v1"] = Field(default="https://in-toto.io/Statement/v1", alias="_type")
    subject: list[Subject]
    predicateType: Literal["urn:stepdistill:data-set:v1"] = PREDICATE
    predicate: Predicate

    def payload(self) -> bytes:
        """Its one encoding: what is signed."""
        return canonical_json(self.model_dump(mode="json", by_alias=True))


class Signature(Record):
    """One signature: by which key, and its base64."""

    keyid: Sha256
    sig: str = Field(max_length=1000)


class Envelope(Record):
    """A DSSE envelope. ``signatures`` are in the order of their key ids."""

    payload: str
    payloadType: Literal["application/vnd.in-toto+json"] = PAYLOAD_TYPE
    signatures: list[Signature] = Field(min_length=1, max_length=MOST_SIGNATURES)

    def encoded(self) -> bytes:
        """Its one encoding in a file."""
        return canonical_json(self.model_dump(mode="json")) + b"\n"


class Signed(NamedTuple):
    """An envelope that was read: what was signed, and the signatures by key id; nothing of it is verified yet."""

    payload: bytes
    statement: Statement
    signatures: dict[str, bytes]


@dataclass(frozen=True)
class PublicKey:
    """A key that somebody trusts. ``id`` is the SHA-256 of its DER SubjectPublicKeyInfo."""

    id: str
    key: "Ed25519PublicKey | EllipticCurvePublicKey"

    def fits(self, signature: bytes, message: bytes) -> bool:
        """Whether this key made this signature over this message."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            if isinstance(self.key, Ed25519PublicKey):
                self.key.verify(signature, message)
            else:
                self.key.verify(signature, message, ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: the bytes that are signed (protocol.md)."""
    name = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)


def statement(results: Iterable[tuple[Path, Manifest]]) -> Statement:
    """What there is to sign about these results in force (folder and manifest, in the order of the stages)."""
    manifests = [manifest for _, manifest in results]
    files = [file for manifest in manifests for file in manifest.outputs if None not in (file.root, file.rows)]
    entries = [FileEntry.model_validate(strict_json(outputs.file_entry(file))) for file in files]
    subjects = [
        Subject(
            name=f"{manifest.stage}/{manifest.key}/{outputs.MANIFEST}",
            digest=Digests(sha256=hashlib.sha256(outputs.manifest_bytes(manifest)).hexdigest()),
        )
        for manifest in manifests
    ]
    rows = sum(entry.rows for entry in entries)
    return Statement(subject=subjects, predicate=Predicate(root=outputs.root(files), rows=rows, files=entries))


def differences(signed: Signed, present: Statement) -> Iterator[str]:
    """How what was signed is not what is present; nothing where it is exactly that."""
    if signed.payload == present.payload():
        return
    was = {subject.name: subject.digest.sha256 for subject in signed.statement.subject}
    now = {subject.name: subject.digest.sha256 for subject in present.subject}
    if not was.keys() & now.keys():
        yield "for another data set, or an earlier state of this one: none of the manifests that it names is in force here"
        return
    stages = {name.partition("/")[0]: name for name in was}
    told = False
    for name, digest in now.items():
        stage = name.partition("/")[0]
        if stage not in stages:
            yield f"does not cover {plain(stage)}: signed before it ran"
        elif stages[stage] != name:
            yield f"covers another result of {plain(stage)} than the one in force"
        elif was[name] != digest:
            yield f"covers another manifest of {plain(stage)} than the one that lies in {plain(name)}"
        else:
            continue
        told = True
    here = {name.partition("/")[0] for name in now}
    for stage in stages.keys() - here:
        told = True
        yield f"covers {plain(stage)}, which has no result in force here"
    if not told:
        yield "its root, rows, files or statement do not follow from the manifests that it names"


def name(payload: bytes) -> str:
    """The file name of the envelope that holds this payload."""
    return f"{hashlib.sha256(payload).hexdigest()[:16]}{SUFFIX}"


def read(path: Path) -> Signed:
    """The envelope in a file. Raises RunError, in one line, for whatever is not exactly an envelope of such a statement."""
    try:
        if path.is_symlink() or not path.is_file():
            raise ValueError("not a file")
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"larger than {MOST_BYTES >> 20} MiB")
        raw = path.read_bytes()
        envelope = parsed(Envelope, raw)
        payload = _decoded(envelope.payload, "payload")
        signatures = {item.keyid: _decoded(item.sig, "sig") for item in envelope.signatures}
        if [item.keyid for item in envelope.signatures] != sorted(signatures):
            raise ValueError("signatures: not one a key in the order of their key ids")
        if envelope.encoded() != raw:
            raise ValueError("not in its one encoding: fields or spaces were changed")
        said = parsed(Statement, payload)
        if said.payload() != payload:
            raise ValueError("payload: not in its one encoding")
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: {plain(str(error))}; not a signature of a data set") from None
    return Signed(payload, said, signatures)


def parsed(record: type[R], raw: bytes | str) -> R:
    """A record from strict JSON: no duplicate keys, no unknown fields, no other types. Raises ValueError that names the field."""
    found = strict_json(raw)
    try:
        return record.model_validate(found, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(step) for step in first["loc"]) or "it"
        raise ValueError(f"{place}: {first['msg']}") from None


def signers(signed: Signed, keys: Iterable[PublicKey]) -> Iterator[tuple[PublicKey, bool]]:
    """Those of these keys that the envelope names, and whether their signatures fit."""
    message = pae(PAYLOAD_TYPE, signed.payload)
    for key in keys:
        if key.id in signed.signatures:
            yield key, key.fits(signed.signatures[key.id], message)


def public_key(path: Path) -> PublicKey:
    """The public key in a file: PEM (Ed25519 or P-256), or the 32 bytes of an Ed25519 key in hexadecimal or base64.

    Raises InputError, in one line, for everything else, a private key above all.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        with path.open("rb") as file:
            raw = file.read(20_000).strip()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the file of a public key") from None
    if b"PRIVATE KEY" in raw:
        raise InputError(f"{path}: holds a private key; give the public key beside it, and hand this one to nobody")
    try:
        if re.fullmatch(rb"[0-9a-fA-F]{64}", raw):
            key: Any = Ed25519PublicKey.from_public_bytes(bytes.fromhex(raw.decode()))
        elif re.fullmatch(rb"[A-Za-z0-9+/]{43}=", raw):
            key = Ed25519PublicKey.from_public_bytes(base64.b64decode(raw))
        else:
            key = serialization.load_pem_public_key(raw)
        return known(key)
    except (ValueError, UnsupportedAlgorithm):
        raise InputError(
            f"{path}: not the public key of a signer (PEM of Ed25519 or P-256, or 32 bytes in hexadecimal or base64); "
            "make a pair with `stepdistill keygen`"
        ) from None


def known(key: Any) -> PublicKey:
    """A key of ``cryptography`` with its id. Raises ValueError where it is of another kind."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        pass
    elif not isinstance(key, Ed25519PublicKey):
        raise ValueError("neither Ed25519 nor P-256")
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return PublicKey(hashlib.sha256(der).hexdigest(), key)


def trusted(paths: Iterable[Path], run: Path) -> list[PublicKey]:
    """The keys that an auditor trusts. Raises InputError for one that lies in the run itself, where its forger may have put it."""
    keys = []
    for path in paths:
        if path.resolve().is_relative_to(run.resolve()):
            raise InputError(f"{path}: lies in the run that it is to prove; get the signer's key from the signer")
        keys.append(public_key(path))
    return keys


def _decoded(text: str, field: str) -> bytes:
    """Standard base64, in its one spelling."""
    try:
        found = base64.b64decode(text, validate=True)
    except ValueError:
        found = b""
    if not found or base64.b64encode(found).decode() != text:
        raise ValueError(f"{field}: not base64")
    return found
