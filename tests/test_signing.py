"""Signatures: what a key vouches for, what an auditor who trusts it finds out, and that any DSSE implementation can check it."""

import base64
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import envelopes, outputs, student_signatures
from pipeline.audit import audit
from pipeline.audits import Audited, Result, signature
from pipeline.audits.signature import told
from pipeline.files import InputError, RunError
from pipeline.runner import run
from pipeline.signing import PASSPHRASE, generate, private_key, sign
from tests.conftest import write_project


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pairs of two signers, ``ada`` and ``bob``, and one on P-256, ``eve``."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ada", "bob"):
        generate(folder / name)
    generate(folder / "eve", kind="p256")
    return folder


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Path:
    """The run folder of a small finished project that ada signed; not to be changed."""
    settings_file = write_project(tmp_path_factory.mktemp("signed") / "project")
    run(settings_file)
    folder = settings_file.parent / "runs/small"
    sign(folder, private_key(keys / "ada.private.pem"))
    return folder


@pytest.fixture
def changeable(signed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(signed, tmp_path / "run"))


def envelope_of(run_folder: Path) -> Path:
    (path,) = (run_folder / "signatures").iterdir()
    return path


def problems(run_folder: Path, *trusted: Path) -> list[str]:
    return [str(finding) for finding in audit(run_folder, keys=trusted)]


def rewrite(path: Path, **fields: object) -> None:
    """An envelope with other fields, in its one encoding."""
    found = json.loads(path.read_bytes()) | fields
    path.write_bytes(json.dumps(found, sort_keys=True, separators=(",", ":")).encode() + b"\n")


def resealed(run_folder: Path) -> None:
    """What an attacker can do who has no key: change rows of the shards and recompute every hash above them."""
    folder = outputs.current(run_folder, "shard")
    assert folder is not None
    manifest = outputs.read_manifest(folder)
    files = []
    for file in manifest.outputs:
        path = folder / file.path
        if file.root is not None:
            lines = path.read_bytes().replace(b"speaks", b"barks").splitlines()
            writer = outputs.RowWriter(folder, path.stem.rpartition("-")[0], 50_000, tree=True)
            for line in lines:
                writer.write(line)
            files += writer.close()
        elif not file.path.endswith(".xxh3") or file.path.startswith("dropped"):
            files.append(file)
    order = {file.path: place for place, file in enumerate(manifest.outputs)}
    files.sort(key=lambda file: order[file.path])
    forged = manifest.model_copy(update={"outputs": files, "root": outputs.root(files)})
    forged = forged.model_copy(update={"digest": outputs.manifest_digest(forged)})
    outputs.write_manifest(folder, forged)


def test_a_key_is_written_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    pair = generate(tmp_path / "ada")
    assert (pair.private, pair.public) == (tmp_path / "ada.private.pem", tmp_path / "ada.public.pem")
    assert stat.S_IMODE(pair.private.stat().st_mode) == 0o600
    assert len(list(tmp_path.iterdir())) == 2
    before = pair.private.read_bytes()
    with pytest.raises(InputError, match="there already"):
        generate(tmp_path / "ada")
    pair.public.unlink()
    with pytest.raises(InputError, match="there already"):
        generate(tmp_path / "ada")
    assert pair.private.read_bytes() == before
    assert generate(tmp_path).private.name == "signer.private.pem"
    with pytest.raises(InputError, match="cannot be written"):
        generate(tmp_path / "nowhere" / "ada")


def test_the_id_is_that_of_the_public_key_in_every_spelling(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    pair = generate(tmp_path / "ada")
    der = base64.b64decode("".join(pair.public.read_text().splitlines()[1:-1]))
    assert pair.id == hashlib.sha256(der).hexdigest()
    raw = serialization.load_der_public_key(der).public_bytes(
        serialization.Encoding.Raw, serialization.PublicFormat.Raw
    )
    for spelling in (raw.hex(), raw.hex().upper() + "\n", base64.b64encode(raw).decode()):
        (tmp_path / "key.txt").write_text(spelling)
        assert envelopes.public_key(tmp_path / "key.txt").id == pair.id
    assert private_key(pair.private).public.id == pair.id


def test_a_passphrase_protects_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = generate(tmp_path / "ada", "open sesame")
    assert b"ENCRYPTED" in pair.private.read_bytes()
    monkeypatch.delenv(PASSPHRASE, raising=False)
    with pytest.raises(InputError, match=f"give it in {PASSPHRASE}"):
        private_key(pair.private)
    with pytest.raises(InputError, match="does not open it"):
        private_key(pair.private, lambda: "sesame")
    monkeypatch.setenv(PASSPHRASE, "open sesame")
    assert private_key(pair.private).public.id == pair.id


def test_the_wrong_half_of_a_pair_is_refused_in_one_line(keys: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ada\.private\.pem: holds a private key"):
        envelopes.public_key(keys / "ada.private.pem")
    with pytest.raises(InputError, match=r"ada\.public\.pem: holds a public key"):
        private_key(keys / "ada.public.pem")
    with pytest.raises(InputError, match="cannot be read"):
        envelopes.public_key(tmp_path / "none.pem")


@given(st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_what_is_no_key_gives_one_line(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "key"
    for content in (raw, b"-----BEGIN PUBLIC KEY-----\n" + base64.b64encode(raw) + b"\n-----END PUBLIC KEY-----\n"):
        path.write_bytes(content)
        for read in (envelopes.public_key, private_key):
            with pytest.raises(InputError) as error:
                read(path)
            assert "\n" not in str(error.value)


def test_signing_again_gives_the_same_bytes(signed: Path, keys: Path) -> None:
    before = envelope_of(signed).read_bytes()
    assert sign(signed, private_key(keys / "ada.private.pem")) == [envelope_of(signed)]
    assert envelope_of(signed).read_bytes() == before


def test_the_statement_names_every_manifest_in_force(signed: Path) -> None:
    envelope = json.loads(envelope_of(signed).read_bytes())
    payload = base64.b64decode(envelope["payload"])
    assert envelope_of(signed).name == f"{hashlib.sha256(payload).hexdigest()[:16]}.dsse.json"
    said = json.loads(payload)
    assert (said["_type"], envelope["payloadType"]) == (
        "https://in-toto.io/Statement/v1",
        "application/vnd.in-toto+json",
    )
    stages = [subject["name"].split("/")[0] for subject in said["subject"]]
    assert stages == "ingest sample parse dedup decontaminate quality shard".split()
    for subject in said["subject"]:
        manifest = (signed / subject["name"]).read_bytes()
        assert subject["digest"] == {"sha256": hashlib.sha256(manifest).hexdigest()}
    manifest = json.loads((signed / said["subject"][-1]["name"]).read_bytes())
    assert said["predicate"]["root"] == manifest["root"]
    assert said["predicate"]["rows"] == manifest["counts"]["rows_out"]


def test_other_implementations_verify_it(signed: Path, keys: Path) -> None:
    """securesystemslib's DSSE (in-toto's and TUF's own), and the attestation framework's own statement."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from google.protobuf import json_format
    from in_toto_attestation.v1 import statement, statement_pb2
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer import SSlibKey

    def key(name: str, keyid: str) -> SSlibKey:
        return SSlibKey.from_crypto(load_pem_public_key((keys / f"{name}.public.pem").read_bytes()), keyid)

    ada = envelopes.public_key(keys / "ada.public.pem").id
    envelope = Envelope.from_dict(json.loads(envelope_of(signed).read_bytes()))
    assert envelope.pae() == envelopes.pae(envelopes.PAYLOAD_TYPE, envelope.payload)
    assert list(envelope.verify([key("ada", ada)], threshold=1)) == [ada]
    with pytest.raises(VerificationError):
        envelope.verify([key("bob", ada)], threshold=1)
    statement.Statement.copy_from_pb(json_format.Parse(envelope.payload, statement_pb2.Statement())).validate()


def test_the_encoding_before_signing_is_the_standards() -> None:
    """The example of protocol.md in DSSE's repository."""
    assert envelopes.pae("http://example.com/HelloWorld", b"hello world") == (
        b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_a_trusted_signature_is_no_finding(signed: Path, keys: Path) -> None:
    ada, bob = keys / "ada.public.pem", keys / "bob.public.pem"
    assert problems(signed) == problems(signed, ada) == problems(signed, bob, ada) == []
    name = envelopes.public_key(ada).id
    assert told(signed) == f"signed by {name} (not checked: name the signer's public key with --key)"
    assert told(signed, [ada]) == f"signed by {name}, which you trust"
    assert told(signed, [bob]) == f"signed by {name}, which you do not trust"


def test_several_sign_the_same_in_one_envelope(changeable: Path, keys: Path) -> None:
    for name in ("bob", "eve", "bob"):
        sign(changeable, private_key(keys / f"{name}.private.pem"))
    assert len(json.loads(envelope_of(changeable).read_bytes())["signatures"]) == 3
    for name in ("ada", "bob", "eve"):
        assert problems(changeable, keys / f"{name}.public.pem") == []


def test_only_the_auditors_keys_count(changeable: Path, keys: Path) -> None:
    shutil.copy(keys / "bob.public.pem", changeable / "bob.public.pem")
    with pytest.raises(InputError, match="lies in the run that it is to prove"):
        problems(changeable, changeable / "bob.public.pem")


def test_who_recomputes_every_hash_is_found_out_by_the_signature(changeable: Path, keys: Path) -> None:
    resealed(changeable)
    found = problems(changeable, keys / "ada.public.pem")
    assert any("covers another manifest of shard" in problem for problem in found)
    assert any("no signature covers what is in force; the keys that you trust" in problem for problem in found)
    shutil.rmtree(changeable / "signatures")
    found = problems(changeable, keys / "ada.public.pem")
    assert any("no signature covers what is in force" in problem for problem in found)


def test_a_forger_who_signs_it_himself_is_not_trusted(changeable: Path, keys: Path) -> None:
    shutil.rmtree(changeable / "signatures")
    (path,) = sign(changeable, private_key(keys / "bob.private.pem"))
    bob = envelopes.public_key(keys / "bob.public.pem").id
    (finding,) = problems(changeable, keys / "ada.public.pem")
    assert f"signed by {bob}; the keys that you trust" in finding
    ada = envelopes.public_key(keys / "ada.public.pem").id
    signature = json.loads(path.read_bytes())["signatures"][0]["sig"]
    rewrite(path, signatures=[{"keyid": ada, "sig": signature}])  # he says that it was ada
    assert any(
        f"the signature by {ada} does not fit" in problem for problem in problems(changeable, keys / "ada.public.pem")
    )


def test_a_signature_from_another_data_set_is_named(changeable: Path, keys: Path, tmp_path: Path) -> None:
    settings_file = write_project(tmp_path / "other")
    inputs = settings_file.parent / "inputs.jsonl"
    inputs.write_bytes(b"".join(inputs.read_bytes().splitlines(keepends=True)[:20]))
    run(settings_file)
    (other,) = sign(settings_file.parent / "runs/small", private_key(keys / "ada.private.pem"))
    envelope_of(changeable).unlink()
    shutil.copy(other, changeable / "signatures" / other.name)
    found = problems(changeable, keys / "ada.public.pem")
    assert any("another data set, or an earlier state of this one" in problem for problem in found)
    assert any("no signature covers" in problem for problem in found)


def test_a_stage_that_ran_after_signing_is_named(project: Path, keys: Path) -> None:
    folder = project.parent / "runs/small"
    run(project)
    sign(folder, private_key(keys / "ada.private.pem"))
    path = project.read_text()
    project.write_text(
        path.replace("shard: {validation: 0.2}", "balance: {most_per_label: 100}\n  shard: {validation: 0.2}")
    )
    run(project)
    found = problems(folder)
    assert any("does not cover balance: signed before it ran" in problem for problem in found)
    assert any("covers another result of shard" in problem for problem in found)
    sign(folder, private_key(keys / "ada.private.pem"))
    assert len(list((folder / "signatures").iterdir())) == 2
    assert problems(folder, keys / "ada.public.pem") == []  # the old one may lie there: it says what once was in force


def test_what_does_not_pass_the_audit_is_not_signed(changeable: Path, keys: Path) -> None:
    shutil.rmtree(changeable / "signatures")
    part = next((changeable / "quality").glob("*/part-00000.jsonl"))
    part.write_bytes(part.read_bytes().replace(b"speaks", b"speakz", 1))
    with pytest.raises(RunError, match="only what passes"):
        sign(changeable, private_key(keys / "ada.private.pem"))
    assert not (changeable / "signatures").exists()


def test_there_must_be_something_to_sign(project: Path, keys: Path) -> None:
    key = private_key(keys / "ada.private.pem")
    with pytest.raises(InputError, match="no run here"):
        sign(project.parent / "runs/small", key)
    run(project, until="parse")
    with pytest.raises(InputError, match="shard has no result yet"):
        sign(project.parent / "runs/small", key)
    with pytest.raises(InputError, match="shard has no result yet"):
        sign(project.parent, key)
    assert not (project.parent / ".lock").exists()


def tamperings(path: Path) -> Iterator[tuple[str, bytes]]:
    """Envelopes that are none, or not what was written, by what should be said of them."""
    raw = path.read_bytes()
    found = json.loads(raw)
    signature = found["signatures"][0]

    def encoded(**fields: object) -> bytes:
        return json.dumps(found | fields, sort_keys=True, separators=(",", ":")).encode() + b"\n"

    statement = json.loads(base64.b64decode(found["payload"]))

    def payload(**fields: object) -> str:
        said = json.dumps(statement | fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return base64.b64encode(said.encode()).decode()

    predicate = statement["predicate"]
    yield "payloadType", encoded(payloadType="application/json")
    yield "what was signed is not what its name says", encoded(payload=payload(predicate=predicate | {"rows": 1}))
    yield "what was signed is not what its name says", encoded(payload=payload(subject=statement["subject"][1:]))
    yield "_type", encoded(payload=payload(_type="https://in-toto.io/Statement/v0.1"))
    yield "predicateType", encoded(payload=payload(predicateType="https://slsa.dev/provenance/v1"))
    yield "more: Extra inputs", encoded(payload=payload(more=1))
    yield "predicate.rows", encoded(payload=payload(predicate=predicate | {"rows": "40"}))
    yield "payload: not base64", encoded(payload=found["payload"] + "=")
    yield "payload: not base64", encoded(payload=" " + found["payload"])
    yield "payload: not base64", encoded(payload="")
    yield "payload: not in its one encoding", encoded(payload=base64.b64encode(json.dumps(statement).encode()).decode())
    yield "sig: not base64", encoded(signatures=[signature | {"sig": "?"}])
    yield "keyid", encoded(signatures=[signature | {"keyid": "ada"}])
    yield "signatures", encoded(signatures=[])
    yield "signatures", encoded(signatures=[signature] * 101)
    yield "not one a key", encoded(signatures=[signature, signature])
    yield "more: Extra inputs", encoded(more=1)
    yield "stands there twice", raw.replace(b'{"payload"', b'{"payload":"","payload"', 1)
    yield "one encoding", raw + b"\n"
    yield "one encoding", raw.replace(b",", b", ", 1)
    yield "not a signature", b""
    yield "not a signature", b"[" * 100_000
    yield "not a signature", b'"' + b"\xff" + b'"'
    yield "not a signature", b"1" * 10_000
    yield "not a signature", b"null"


def test_whatever_is_not_an_envelope_is_named(changeable: Path, keys: Path) -> None:
    path = envelope_of(changeable)
    for expected, content in list(tamperings(path)):
        path.write_bytes(content)
        for trusted in ([], [keys / "ada.public.pem"]):
            found = [problem for problem in problems(changeable, *trusted) if problem.startswith(f"{path}: ")]
            assert any(expected in problem for problem in found), (expected, found)
            assert all("\n" not in problem for problem in found)


def test_what_else_lies_among_the_signatures_is_named(changeable: Path, tmp_path: Path) -> None:
    path = envelope_of(changeable)
    (path.parent / "notes.txt").write_text("hello")
    assert [problem for problem in problems(changeable) if "notes.txt" in problem]
    (path.parent / "notes.txt").unlink()
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert any(f"{path}: not a file" in problem for problem in problems(changeable))
    path.unlink()
    os.truncate(shutil.copy(tmp_path / "elsewhere", path), envelopes.MOST_BYTES + 1)
    assert any("larger than 64 MiB" in problem for problem in problems(changeable))


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_changed_byte_of_an_envelope_is_found(
    signed: Path, keys: Path, tmp_path: Path, data: st.DataObject
) -> None:
    """With the signer's key at hand: the envelope cannot be read any more, or its signature does not fit."""
    raw = bytearray(envelope_of(signed).read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path / envelope_of(signed).name
    path.write_bytes(raw)
    key = envelopes.public_key(keys / "ada.public.pem")
    try:
        read = envelopes.read(path)
    except RunError:
        return
    assert [fits for _, fits in envelopes.signers(read, [key])] != [True]


@pytest.fixture
def trained(changeable: Path) -> Path:
    """A run with a student, as far as signing looks: a result of train with a small folder of weights."""
    folder = changeable / "train" / ("0" * 32)
    (folder / "student").mkdir(parents=True)
    (folder / "student" / "config.json").write_text("{}")
    (folder / "student" / "model.safetensors").write_bytes(b"\0" * 1000)
    return folder


def test_a_students_folder_is_signed_as_models_are(trained: Path, keys: Path, tmp_path: Path) -> None:
    """By the real package, and checked by its own command."""
    eve, bob = (envelopes.public_key(keys / f"{name}.public.pem") for name in ("eve", "bob"))
    path = tmp_path / student_signatures.name(trained.name, eve)
    path.write_bytes(student_signatures.signer(keys / "eve.private.pem", lambda: None)(trained / "student"))
    command = [sys.executable, "-m", "model_signing", "verify", "key", "--signature", str(path), "--public_key"]
    for key, fits in (("eve", True), ("bob", False)):
        done = subprocess.run(
            [*command, str(keys / f"{key}.public.pem"), str(trained / "student")], capture_output=True, check=False
        )
        assert (done.returncode == 0) == fits, done.stderr
    assert student_signatures.problem(path, trained / "student", eve) is None
    assert student_signatures.problem(path, trained / "student", bob) is not None
    (trained / "student" / "model.safetensors").write_bytes(b"\1" * 1000)
    assert "model.safetensors" in str(student_signatures.problem(path, trained / "student", eve))
    for content in (b"", b"{}", b"null", b"[" * 50_000, path.read_bytes().replace(b'"payload":"', b'"payload":"A')):
        path.write_bytes(content)
        assert student_signatures.problem(path, trained / "student", eve) is not None


def test_an_audit_checks_the_signature_of_a_trusted_key_on_the_student(trained: Path, keys: Path) -> None:
    run_folder, path = trained.parents[1], keys / "eve.public.pem"
    shard = outputs.current(run_folder, "shard")
    assert shard is not None
    audited = Audited(run_folder, {"train": Result(trained, outputs.read_manifest(shard))}, keys=[path])
    written = run_folder / "signatures" / student_signatures.name(trained.name, envelopes.public_key(path))
    written.write_bytes(student_signatures.signer(keys / "eve.private.pem", lambda: None)(trained / "student"))
    assert [finding for finding in signature.check(audited) if finding.path == written] == []
    (trained / "student" / "more.bin").write_bytes(b"")
    assert [finding.path for finding in signature.check(audited)].count(written) == 1


def test_model_signing_takes_p256_keys_alone(tmp_path: Path, keys: Path) -> None:
    with pytest.raises(InputError, match=r"takes P-256 keys alone; .* keygen --ec"):
        student_signatures.signer(keys / "ada.private.pem", lambda: None)
    generate(tmp_path / "locked", "open sesame", kind="p256")
    student_signatures.signer(tmp_path / "locked.private.pem", lambda: "open sesame")


def test_a_student_must_be_there_to_be_signed(changeable: Path, keys: Path) -> None:
    path = keys / "eve.private.pem"
    with pytest.raises(InputError, match="there is no student yet"):
        sign(changeable, private_key(path), student=student_signatures.signer(path, lambda: None))
