"""Make keys, and sign a data set that passes its audit.

    generate(Path("keys/ada"))                     keys/ada.private.pem (mode 0600) and keys/ada.public.pem
    sign(Path("runs/topics"), private_key(Path("keys/ada.private.pem")))      runs/topics/signatures/2f61c3d09a77be15.dsse.json

Keys are Ed25519 (RFC 8032); P-256 ones (ECDSA with RFC 6979's nonces) sign as well, and are what OpenSSF model signing takes for the
student's folder. Signing the same data set twice with one key gives the same bytes. What is signed: ``pipeline.envelopes``.

Limits: a key is a file, protected by a passphrase or by its mode alone; there is no agent, no hardware token, no certificate.
"""

import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pipeline import envelopes, outputs, student_signatures
from pipeline.audit import audit
from pipeline.audits import opened
from pipeline.envelopes import Envelope, PublicKey, Signature
from pipeline.files import InputError, RunError, atomic, held_alone, sync_folder
from pipeline.runner import LOCK
from pipeline.stages import STAGES
from pipeline.train import STUDENT

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PASSPHRASE = "STEPDISTILL_KEY_PASSPHRASE"  # the environment variable that holds it


class Pair(NamedTuple):
    """The files of a pair of keys, and its id."""

    private: Path
    public: Path
    id: str


class PrivateKey(NamedTuple):
    """A key that signs, and its public half."""

    key: "Ed25519PrivateKey | EllipticCurvePrivateKey"
    public: PublicKey

    def sign(self, message: bytes) -> bytes:
        """The signature; the same message always gives the same one."""
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        if isinstance(self.key, Ed25519PrivateKey):
            return self.key.sign(message)
        return self.key.sign(message, ECDSA(hashes.SHA256(), deterministic_signing=True))


def generate(place: Path, passphrase: str | None = None, *, kind: Literal["ed25519", "p256"] = "ed25519") -> Pair:
    """Make a pair of keys: ``<place>.private.pem`` (PKCS8, mode 0600) and ``<place>.public.pem``; in a folder they are named ``signer``.

    Raises InputError where one of the files exists (keys are never overwritten), or nothing can be written there.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    place = place / "signer" if place.is_dir() else place
    private, public = (place.with_name(f"{place.name}.{half}.pem") for half in ("private", "public"))
    key: Any = Ed25519PrivateKey.generate() if kind == "ed25519" else generate_private_key(SECP256R1())
    encryption = (
        serialization.BestAvailableEncryption(passphrase.encode()) if passphrase else serialization.NoEncryption()
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    shown = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    if public.exists():
        raise InputError(f"{public}: there already; keys are never overwritten, give another name")
    try:
        handle = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        with atomic(public) as file:
            file.write(shown)
    except FileExistsError:
        raise InputError(f"{private}: there already; keys are never overwritten, give another name") from None
    except OSError as error:
        raise InputError(f"{private}: cannot be written ({error.strerror}); give a folder that exists") from None
    sync_folder(private.parent)
    return Pair(private, public, envelopes.known(key.public_key()).id)


def private_key(path: Path, passphrase: Callable[[], str | None] = lambda: os.environ.get(PASSPHRASE)) -> PrivateKey:
    """The private key in a PEM file; ``passphrase`` is asked where it is encrypted. Raises InputError in one line."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        with path.open("rb") as file:
            raw = file.read(20_000)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give the file of a private key") from None
    if b"PUBLIC KEY" in raw:
        raise InputError(f"{path}: holds a public key; sign with the private one beside it")
    encrypted = b"ENCRYPTED" in raw
    given = passphrase() if encrypted else None
    if encrypted and not given:
        raise InputError(f"{path}: is protected by a passphrase; give it in {PASSPHRASE}, or run in a terminal")
    try:
        key: Any = serialization.load_pem_private_key(raw, given.encode() if given else None)
        return PrivateKey(key, envelopes.known(key.public_key()))
    except (ValueError, TypeError, UnsupportedAlgorithm):
        problem = "the passphrase does not open it" if encrypted else "not a private key of Ed25519 or P-256 in PEM"
        raise InputError(f"{path}: {problem}; make a pair with `stepdistill keygen`") from None


def sign(run: Path, key: PrivateKey, *, student: Callable[[Path], bytes] | None = None) -> list[Path]:
    """Sign what is in force in a run, beside whoever signed the same before; the files that were written.

    ``student`` makes a signature on the student's folder besides. The audit comes first: raises RunError with its first finding where there
    is one (those on signatures aside, for old ones do not fit a new result). Raises InputError where there is nothing yet to sign.
    """
    folder = run / envelopes.FOLDER
    if not run.is_dir():
        raise InputError(f"{run}: no run here; give the folder that `run:` in stages.yaml names")
    if outputs.current(run, "shard") is None:  # before anything is written there, the lock too
        raise InputError(f"{run}: shard has no result yet; run `stepdistill run` before you sign")
    with held_alone(run / LOCK, run):
        findings = [found for found in audit(run) if folder not in (found.path, *found.path.parents)]
        if findings:
            raise RunError(f"{findings[0]} ({len(findings)} findings); only what passes `stepdistill audit` is signed")
        results, _, _ = opened(run, list(STAGES), everything=False)
        if student is not None and ("train" not in results or not (results["train"].folder / STUDENT).is_dir()):
            raise InputError(f"{run}: there is no student yet; run `stepdistill run train` before you sign it")
        written = [_envelope(folder, envelopes.statement(results.values()).payload(), key)]
        if student is not None:
            trained = results["train"].folder
            path = folder / student_signatures.name(trained.name, key.public)
            if not path.exists() or student_signatures.problem(path, trained / STUDENT, key.public) is not None:
                _write(path, student(trained / STUDENT))
            written.append(path)
    return written


def _envelope(folder: Path, payload: bytes, key: PrivateKey) -> Path:
    """The envelope of this payload, with this key's signature among those that it has."""
    path = folder / envelopes.name(payload)
    signatures = {key.public.id: key.sign(envelopes.pae(envelopes.PAYLOAD_TYPE, payload))}
    if path.exists():
        signatures = envelopes.read(path).signatures | signatures
    envelope = Envelope(
        payload=base64.b64encode(payload).decode(),
        signatures=[
            Signature(keyid=name, sig=base64.b64encode(made).decode()) for name, made in sorted(signatures.items())
        ],
    )
    _write(path, envelope.encoded())
    return path


def _write(path: Path, content: bytes) -> None:
    folder = path.parent
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)
    for left in folder.glob(".*.tmp"):  # by a process that was killed
        left.unlink()
    with atomic(path) as file:
        file.write(content)
