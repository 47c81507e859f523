"""Signatures on a student's folder as OpenSSF model signing makes and checks them, for who is handed the student alone.

    model_signing verify key --public_key ada.public.pem --signature 2ab2e884...student.sig student/

The statement over the manifests covers the student's files as well; this is the same word in the form that tools for models read: a
Sigstore bundle with the SHA-256 of each file (github.com/sigstore/model-transparency, specification v1.0). The optional package
``model-signing`` does the work; of keys it takes P-256, not Ed25519.

Limits: ECDSA there takes random nonces, so that two signatures by one key differ in their bytes. Files named ``.git*`` are not covered.
"""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from pipeline.envelopes import PublicKey
from pipeline.files import InputError, plain

SUFFIX: Final = ".student.sig"
MOST_BYTES: Final = 16 << 20


def name(train_key: str, key: PublicKey) -> str:
    """The file name of this key's signature on the student of this result of train."""
    return f"{train_key}.{key.id[:16]}{SUFFIX}"


def signer(private_key: Path, passphrase: Callable[[], str | None]) -> Callable[[Path], bytes]:
    """What signs all files of a folder with the P-256 key in a PEM file; ``passphrase`` is asked where that is encrypted.

    Raises InputError, before anything is signed, where the package is missing or the key is of another kind.
    """
    signing, _ = _package()
    given = passphrase() if b"ENCRYPTED" in private_key.read_bytes() else None
    password: Any = given.encode() if given else None  # declared as a str there, but handed on to what takes bytes
    try:
        configured = signing.Config().use_elliptic_key_signer(private_key=private_key, password=password)
    except (ValueError, TypeError, AttributeError):
        raise InputError(
            f"{private_key}: model signing takes P-256 keys alone; make a pair with `stepdistill keygen --ec`"
        ) from None

    def signature(student: Path) -> bytes:
        with TemporaryDirectory() as folder:
            written = Path(folder) / "signature"
            configured.sign(student, written)
            return written.read_bytes()

    return signature


def problem(written: Path, student: Path, key: PublicKey) -> str | None:
    """Why a file is not this key's signature on what lies in the folder now; None where it is."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import serialization
    from google.protobuf.json_format import Error as JsonError  # type: ignore[import-untyped]

    _, verifying = _package()
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # it prints its warnings
        public = Path(folder) / "public.pem"
        public.write_bytes(key.key.public_bytes(serialization.Encoding.PEM, form))
        try:
            if written.stat().st_size > MOST_BYTES:
                return "larger than any signature"
            verifying.Config().use_elliptic_key_verifier(public_key=public).verify(student, written)
        except InvalidSignature:
            return f"not a signature by {key.id}"
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError, JsonError) as error:
            return f"not {key.id}'s signature on this student: {plain(str(error))}"
    return None


def _package() -> tuple[Any, Any]:
    """Raises InputError where it is not installed."""
    try:
        from model_signing import signing, verifying
    except ImportError:
        raise InputError(
            "a student's signature: the packages model-signing and pyOpenSSL are needed; `pip install model-signing pyOpenSSL`"
        ) from None
    return signing, verifying
