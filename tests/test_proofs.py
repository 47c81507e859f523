"""Inclusion proofs: each row proves itself under its root, manifest or signature, and nothing in a proof can be changed."""

import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import envelopes, outputs, proofs
from pipeline.cli import main
from pipeline.files import InputError, RunError, canonical_json
from pipeline.proofs import Anchor, flaws, prove, read, row_of, write
from pipeline.runner import run
from pipeline.signing import generate, private_key, sign
from tests.conftest import write_project

SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a small finished project with several files of rows; not to be changed."""
    settings_file = write_project(tmp_path_factory.mktemp("proven") / "project")
    run(settings_file, overrides=["shard.rows_per_shard=7"])
    return settings_file.parent / "runs/small"


@pytest.fixture(scope="module")
def known(finished: Path) -> Anchor:
    """What the shard's manifest says, as a verifier who trusts it knows it."""
    folder = outputs.current(finished, "shard")
    assert folder is not None
    return proofs.anchor_of_manifest(folder / outputs.MANIFEST)


@pytest.fixture(scope="module")
def proof(finished: Path) -> dict[str, Any]:
    """One proof, as JSON."""
    (found,) = prove(finished, "r9/label")
    made: dict[str, Any] = json.loads(found.encoded())
    return made


def as_read(folder: Path, value: object) -> proofs.Proof:
    """The proof in a file with this content."""
    path = folder / "proof.json"
    path.write_bytes(canonical_json(value))
    (found,) = read(path)
    return found


def resealed(value: dict[str, Any]) -> dict[str, Any]:
    """What somebody does who wants a changed proof to look whole: compute its digest again."""
    rest = {name: item for name, item in value.items() if name != "digest"}
    return rest | {"digest": proofs.Proof.model_validate(rest).sealed()}


def leaves_of(value: object, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the leaves of a JSON value stand."""
    if isinstance(value, dict | list):
        for name, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves_of(item, (*place, name))
    else:
        yield place


def changed(value: Any, place: tuple[Any, ...], leaf: object) -> Any:
    """A copy of a JSON value with another leaf at a place."""
    copy = json.loads(json.dumps(value))
    inner = copy
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = leaf
    return copy


def test_every_row_proves_itself(finished: Path, known: Anchor) -> None:
    folder = outputs.current(finished, "shard")
    assert folder is not None
    lines = list(outputs.lines(folder))
    assert len(lines) == 48
    for line in lines:
        (found,) = prove(finished, json.loads(line)["id"])
        assert found.row.encode() == line
        assert list(flaws(found, known)) == []
        assert json.loads(line)["id"] == row_of(found).id


def test_an_examples_rows_are_proven_together(finished: Path, known: Anchor, tmp_path: Path) -> None:
    found = prove(finished, "r9")
    assert [row_of(item).id for item in found] == ["r9/label", "r9/rationale"]
    (tmp_path / "proof.jsonl").write_bytes(write(found))
    assert read(tmp_path / "proof.jsonl") == found
    assert not any(problem for item in found for problem in flaws(item, known))


@pytest.mark.parametrize(
    "wanted", ["r", "r9/labels", "label", "r24", "sports", "", "\ud800".encode("utf-16", "surrogatepass").hex()]
)
def test_what_is_no_row_has_no_proof(finished: Path, wanted: str) -> None:
    with pytest.raises(InputError, match="no training row or example"):
        prove(finished, wanted)


def test_ids_of_any_kind_are_found(project: Path) -> None:
    """Quotes, backslashes, other scripts: what JSON escapes, or could."""
    odd = ['say "hi"', "back\\slash", "naïve 日本", "\U0001f600", "<script>"]
    inputs = project.parent / "inputs.jsonl"
    said = project.parent / "completions.jsonl"
    rows, answers = ([json.loads(line) for line in path.read_text().splitlines()] for path in (inputs, said))
    for row, answer, name in zip(rows, answers, odd, strict=False):
        row["id"] = answer["id"] = name
    for path, changed_rows in ((inputs, rows), (said, answers)):
        path.write_text("".join(json.dumps(row) + "\n" for row in changed_rows))
    run(project)
    for name in odd:
        assert [row_of(item).example for item in prove(project.parent / "runs/small", name)] == [name, name]


def test_a_changed_file_proves_nothing(finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    path = next(copy.glob("shard/*/train-00000.jsonl"))
    wanted = json.loads(path.read_bytes().splitlines()[0])["id"]
    path.write_bytes(path.read_bytes().replace(b"speaks", b"barks", 1))
    with pytest.raises(RunError, match="changed since its manifest was written"):
        prove(copy, wanted)
    path.unlink()
    with pytest.raises(RunError, match="cannot be read"):
        prove(copy, wanted)
    shutil.rmtree(copy / "shard")
    with pytest.raises(InputError, match="shard has no result"):
        prove(copy, wanted)


@given(st.data())
@SHARED
def test_no_leaf_of_a_proof_can_be_changed(
    proof: dict[str, Any], known: Anchor, tmp_path: Path, data: st.DataObject
) -> None:
    """Not by accident, under a root alone, nor by somebody who computes the digest again, under what a manifest says."""
    place = data.draw(st.sampled_from(list(leaves_of(proof))))
    value: Any = proof
    for name in place:
        value = value[name]
    if isinstance(value, int):
        other: object = data.draw(st.integers(0, 2**63 - 1).filter(lambda number: number != value))
    else:
        at = data.draw(st.integers(0, len(value) - 1))
        letters = "0123456789abcdef" if set(value) <= set("0123456789abcdef") else "abcxyz"
        letter = data.draw(st.sampled_from([letter for letter in letters if letter != value[at]]))
        other = value[:at] + letter + value[at + 1 :]
    wrong = changed(proof, place, other)
    for version, anchor in ((wrong, Anchor("a root", known.root)), (None, known)):
        try:
            found = as_read(tmp_path, version or resealed(wrong))
        except (InputError, ValueError):
            continue
        if version is not None or place != ("digest",):
            assert list(flaws(found, anchor)), (place, other)


@pytest.mark.parametrize("way", ["row_way", "file_way"])
def test_sizes_and_places_are_fixed_though_neighbours_fit_several(
    proof: dict[str, Any], known: Anchor, way: str
) -> None:
    given_size, given_index = proof[way]["size"], proof[way]["index"]
    fitting = 0
    for size in range(1, 20):
        for index in range(size):
            other = proof | {way: proof[way] | {"size": size, "index": index}}
            found = proofs.Proof.model_validate(resealed(other))
            fitting += not any(problem.startswith(("row:", "file:")) for problem in flaws(found))
            assert bool(list(flaws(found, known))) == ((size, index) != (given_size, given_index))
    assert fitting > 1  # so that the sizes are what tells them apart


@given(st.data())
@SHARED
def test_what_is_no_proof_gives_one_line(proof: dict[str, Any], tmp_path: Path, data: st.DataObject) -> None:
    places = [*leaves_of(proof), ("row_way",), ("row_way", "path"), ("file",)]
    place = data.draw(st.sampled_from(places))
    value: Any = proof
    for name in place:
        value = value[name]
    odd = st.sampled_from([None, True, -1, 1.5, 2**70, [], {}, "A" * 64, ["x"] * 3, ["0" * 64] * 65])
    if place in (("row",), ("file", "path"), ("key",)):
        odd = odd.filter(lambda item: not isinstance(item, str))
    if place[-1] in ("bytes", "rows"):
        odd = odd.filter(lambda item: item is True or not isinstance(item, int))
    if isinstance(value, list):
        odd = odd.filter(lambda item: item != [])
    with pytest.raises(InputError) as error:
        as_read(tmp_path, changed(proof, place, data.draw(odd)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"null", b"[]", b"[" * 100_000, b"\xff", b'{"type": NaN}', b'{"type": "x", "type": "y"}', b"1" * 5000],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "proof.json").write_bytes(content)
    with pytest.raises(InputError, match=r"proof\.json: .*not what `stepdistill prove` writes"):
        read(tmp_path / "proof.json")
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path / "none.json")


def test_more_fields_are_refused(proof: dict[str, Any], tmp_path: Path) -> None:
    for value in (proof | {"more": 1}, proof | {"file": proof["file"] | {"sha256": "0" * 64}}):
        with pytest.raises(InputError, match="Extra inputs"):
            as_read(tmp_path, value)
    for name in proof:
        rest = {other: item for other, item in proof.items() if other != name}
        if name in ("type", "stage"):  # the one value they can have
            continue
        try:
            found = as_read(tmp_path, rest)
        except InputError:
            continue
        assert any("digest" in problem for problem in flaws(found)), name


def test_a_row_of_another_data_set_is_not_proven(finished: Path, project: Path, known: Anchor) -> None:
    run(project)
    (other,) = prove(project.parent / "runs/small", "r9/label")
    assert list(flaws(other)) == []
    assert [problem.split(":")[0] for problem in flaws(other, known)] == ["root", "key", "manifest", "file_way.size"]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line in a folder: exit code, what it printed, and its messages."""

    def called(folder: Path, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["stepdistill", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return (int(end.value.code or 0), *capsys.readouterr())

    return called


def test_a_stranger_verifies_with_the_proof_alone(
    finished: Path, proof: dict[str, Any], tmp_path: Path, call: Callable[..., tuple[int, str, str]]
) -> None:
    """The whole way by commands: keys, signature, audit, proof; then, in an empty folder, every way to check it."""
    copy, empty = Path(shutil.copytree(finished, tmp_path / "run")), tmp_path / "empty"
    empty.mkdir()
    assert call(tmp_path, "keygen", "ada")[0] == 0
    code, shown, said = call(tmp_path, "sign", "run", "--key", "ada.private.pem", "--json")
    assert code == 0, said
    (made,) = json.loads(shown)["signatures"]
    code, shown, _ = call(tmp_path, "audit", "run", "--key", "ada.public.pem")
    assert code == 0
    assert ", which you trust" in shown
    assert call(tmp_path, "prove", "r9", "--run", "run", "-o", empty / "proof.json")[0] == 0
    assert call(tmp_path, "prove", "r9", "--run", "run")[1] == (empty / "proof.json").read_text()

    shutil.copy(tmp_path / made, empty / "statement.json")
    shutil.copy(tmp_path / "ada.public.pem", empty)
    shutil.copy(copy / "shard" / proof["key"] / "manifest.json", empty / "known.json")
    shutil.rmtree(copy)
    trusted = ("--statement", "statement.json", "--key", "ada.public.pem")
    for anchor in (("--root", proof["root"]), ("--root", proof["root"].upper()), ("--manifest", "known.json"), trusted):
        code, shown, said = call(empty, "verify", "proof.json", *anchor)
        assert (code, shown.count("proven: ")) == (0, 2), said
    assert json.loads(call(empty, "verify", "proof.json", *trusted, "--json")[1])["proven"] is True

    code, shown, said = call(empty, "verify", "proof.json")
    assert (code, shown, said.count("\n")) == (2, "", 1)
    assert "consistent in itself, which proves nothing yet" in said
    code, shown, said = call(empty, "verify", "proof.json", "--root", "0" * 64)
    assert (code, shown) == (1, "")
    assert "proof.json:1: root: " in said
    for wrong in (("--root", "abc"), ("--key", "ada.public.pem"), (*trusted[:2],), ("--root", "0" * 64, *trusted)):
        assert call(empty, "verify", "proof.json", *wrong)[0] == 2


def test_a_statement_counts_by_a_trusted_key_alone(finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "run"))
    ada, bob = (generate(tmp_path / name) for name in ("ada", "bob"))
    (path,) = sign(copy, private_key(ada.private))
    keys = [envelopes.public_key(pair.public) for pair in (bob, ada)]
    (found,) = prove(copy, "r9/label")
    assert list(flaws(found, proofs.anchor_of_statement(path, keys))) == []
    with pytest.raises(RunError, match="not signed by"):
        proofs.anchor_of_statement(path, keys[:1])
    with pytest.raises(InputError, match="not of shard"):
        proofs.anchor_of_manifest(next(copy.glob("quality/*/manifest.json")))
