"""trace: the same rows are found with an index as by reading through, whatever is wrong with the index."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import lineage, outputs
from pipeline.config import load
from pipeline.files import InputError, RunError
from pipeline.lineage import find, prepare, row_of
from pipeline.outputs import RowWriter
from pipeline.records import Drop, Prompt
from pipeline.runner import run
from pipeline.trace import FOLLOWED, origin, trace
from pipeline.trace import find as find_row
from tests.conftest import write_project


@pytest.fixture
def indexed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file is looked up by an index, however small."""
    monkeypatch.setattr(lineage, "SMALL", -1)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody damages."""
    return run(write_project(tmp_path_factory.mktemp("finished")))[0].folder.parents[1]


@pytest.fixture
def own(finished: Path, tmp_path: Path) -> Path:
    """A run of one's own, to damage."""
    shutil.copytree(finished, tmp_path / "own", symlinks=True)
    return tmp_path / "own"


def index_files(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / lineage.FOLDER).rglob("*") if path.is_file())


NAMES = ("r0", "r0#0", "r0/label", "r28", "r26#0", "inputs.jsonl:1", "inputs.jsonl:29")


@pytest.mark.parametrize("name", NAMES)
def test_an_index_changes_no_answer(own: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    through = trace(own, name)
    assert not index_files(own)  # a small run needs none
    monkeypatch.setattr(lineage, "SMALL", -1)
    assert trace(own, name) == through
    written = {path: path.read_bytes() for path in index_files(own)}
    assert any(path.name == "part-00000.jsonl.source" for path in written)
    assert any("responses" in path.parts for path in written)
    assert trace(own, name) == through
    assert {path: path.read_bytes() for path in index_files(own)} == written


def test_a_place_in_the_source_is_an_id_and_so_is_a_request(finished: Path) -> None:
    events = trace(finished, "inputs.jsonl:1")
    assert events[0].row["source"] == "inputs.jsonl:1"
    assert events == trace(finished, "r0")
    request = next(event.row["request"] for event in events if event.stage == "sample")
    assert trace(finished, request) == trace(finished, request[:8]) == events


@pytest.mark.parametrize("small", [-1, lineage.SMALL])
def test_what_begins_so_must_be_one_row(finished: Path, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "SMALL", small)
    for name, message in (
        ("inputs.jsonl:99", "no row of"),
        ("\ud800", "no row of"),
        ("", "no row of"),
        ("r", "no row of"),
    ):
        with pytest.raises(InputError, match=message):
            trace(finished, name)


def test_many_rows_that_begin_alike_are_named_but_for_the_rest(tmp_path: Path, indexed: None) -> None:
    folder = stage(tmp_path, [f"long{number:02}" for number in range(30)], [])
    assert find_row(tmp_path, "long07#0") == "long07"
    with pytest.raises(InputError, match=r"more than 3 rows begin so \(long00, long01, long02, \.\.\)"):
        find_row(tmp_path, "long")
    with pytest.raises(InputError, match=r"no row of"):
        find_row(tmp_path, "lon")
    assert [hit.line for hit in find(tmp_path, folder, "id", "long0", beginning=True)] == [1, 2, 3, 4, 5, 6, 7, 1, 2, 3]


def stage(run_folder: Path, kept: list[str], dropped: list[str]) -> Path:
    """A finished result of ingest with these rows, its manifest that of another run."""
    made = run(write_project(run_folder / "other"))[0]
    folder = run_folder / "ingest" / made.folder.name
    folder.mkdir(parents=True)
    writer, drops = RowWriter(folder, "part", 7), RowWriter(folder, outputs.DROPPED, None)
    for number, row in enumerate(kept, 1):
        prompt = Prompt(
            id=row, source=f"a.jsonl:{number}", input="text", gold=None, choices=None, columns={"n": number}
        )
        writer.write(prompt.line())
    for row in dropped:
        drops.write(Drop(id=row, reason="bad_row", evidence={"source": f"b.jsonl:{row}", "problem": row}).line())
    files = [*writer.close(), *drops.close()]
    manifest = made.manifest.model_copy(update={"outputs": files})
    manifest = manifest.model_copy(update={"digest": outputs.manifest_digest(manifest)})
    outputs.write_manifest(folder, manifest)
    outputs.point(run_folder, "ingest", folder.name)
    return folder


IDS = st.text('ab"\\é.', min_size=1, max_size=4)


@settings(max_examples=40)
@given(kept=st.lists(IDS, max_size=30), dropped=st.lists(IDS, max_size=5), wanted=st.lists(IDS, min_size=1, max_size=5))
def test_lookups_equal_reading_through(
    tmp_path_factory: pytest.TempPathFactory, kept: list[str], dropped: list[str], wanted: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    files = []
    for name, rows in (("part-00000", kept), ("dropped", dropped)):
        lines = [
            Prompt(id=row, source=f"{row}:1", input=row, gold=None, choices=None, columns={}).line() for row in rows
        ]
        path = folder / f"{name}.jsonl"
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        files.append((path, rows))
    for path, rows in files:
        for name in [*wanted, *rows]:
            for kind, text in (("id", name), ("source", f"{name}:1"), ("source", name)):
                for beginning in (False, True):
                    with pytest.MonkeyPatch.context() as patch:
                        through = list(lineage.find_in(folder, path, kind, text, beginning=beginning))
                        patch.setattr(lineage, "SMALL", -1)
                        found = list(lineage.find_in(folder, path, kind, text, beginning=beginning))
                    assert found == through
            expected = [number for number, row in enumerate(rows, 1) if row == name]
            assert [hit.line for hit in lineage.find_in(folder, path, "id", name)] == expected


def test_no_changed_byte_of_an_index_changes_an_answer(own: Path, indexed: None) -> None:
    request = next(event.row["request"] for event in trace(own, "r0") if event.stage == "sample")
    names = {".id": "r0", ".key": "r0", ".source": "inputs.jsonl:29", ".request": request}  # by what they are looked up
    right = {name: trace(own, name) for name in names.values()}
    draw = random.Random(0)
    for path in index_files(own):
        whole = path.read_bytes()
        head, place = whole.partition(b"\n")[0], draw.randrange(len(whole))
        damaged = whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :]
        others = (whole[:-1], whole + b"\0", b"", b"[]\n", b'{"rows":1e9}\n', b"{" * 2000, head + b"\n")
        for bad in (damaged, draw.choice(others)):
            path.write_bytes(bad)
            assert trace(own, names[path.suffix]) == right[names[path.suffix]]
            assert path.read_bytes() == whole  # made anew
    assert {name: trace(own, name) for name in names.values()} == right


def test_an_index_that_was_forged_here_does_not_crash(own: Path, indexed: None) -> None:
    """Only who can write here, on this machine, can do this."""
    prepare(own, FOLLOWED)
    for path in index_files(own):
        head, _, body = path.read_bytes().partition(b"\n")
        body = b"\xff" * len(body)
        forged = json.loads(head) | {"check": xxhash.xxh3_128_hexdigest(body)}
        path.write_bytes(json.dumps(forged, sort_keys=True, separators=(",", ":")).encode() + b"\n" + body)
    with pytest.raises(RunError, match="tampered"):
        trace(own, "r0")


def test_an_index_of_other_files_is_not_believed(own: Path, tmp_path: Path, indexed: None) -> None:
    """The one who hands over a folder with an index cannot know the inode and times that the files will have."""
    prepare(own, FOLLOWED)
    path = index_files(own)[0]
    head, _, body = path.read_bytes().partition(b"\n")
    for name, value in (
        ("inode", 1),
        ("times", [0, 0]),
        ("bytes", 0),
        ("kind", "key"),
        ("format", 0),
        ("order", "middle"),
    ):
        forged = json.loads(head)
        forged["of"][name] = value
        path.write_bytes(json.dumps(forged).encode() + b"\n" + body)
        prepare(own, FOLLOWED)
        assert path.read_bytes() == head + b"\n" + body
    part = outputs.current(own, "ingest") / "part-00000.jsonl"
    os.utime(part, ns=(1, 1))
    prepare(own, FOLLOWED)
    assert sum(json.loads(file.read_bytes().split(b"\n")[0])["of"]["times"][0] == 1 for file in index_files(own)) == 2


def test_an_index_does_not_lead_out_of_the_run(own: Path, tmp_path: Path, indexed: None) -> None:
    right = [(event.verdict, event.row) for event in trace(own, "r0")]
    prepared = (own / lineage.FOLDER).rename(tmp_path / "elsewhere")
    before = {path: path.read_bytes() for path in prepared.rglob("*") if path.is_file()}
    (own / lineage.FOLDER).symlink_to(prepared)
    next(iter(before)).write_bytes(b"")
    assert [(event.verdict, event.row) for event in trace(own, "r0")] == right
    assert next(iter(before)).read_bytes() == b""
    (own / lineage.FOLDER).unlink()
    (own / lineage.FOLDER).write_text("no folder")
    assert [(event.verdict, event.row) for event in trace(own, "r0")] == right


def test_indexes_of_results_no_longer_in_force_go(project: Path, indexed: None) -> None:
    config = load(project)
    run(config, until="parse")
    prepare(config.run, FOLLOWED)
    run(load(project, ["parse.rationale=shortest"]), until="parse")
    trace(config.run, "r0")
    assert [path.name for path in (config.run / lineage.FOLDER / "parse").iterdir()] == [
        outputs.current(config.run, "parse").name
    ]


@pytest.mark.parametrize("small", [-1, lineage.SMALL])
def test_damage_is_one_line_that_says_where(own: Path, small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lineage, "SMALL", small)
    part = outputs.current(own, "dedup") / "part-00000.jsonl"
    whole = part.read_bytes()
    part.write_bytes(whole.replace(b'"label":"sports"', b'"label":sports', 1))
    with pytest.raises(RunError, match=r"part-00000\.jsonl:1: .*audit"):
        trace(own, "r0")
    part.write_bytes(whole)
    part.rename(part.with_name("elsewhere"))
    part.symlink_to("/dev/zero")
    with pytest.raises(RunError, match="not a file of its own"):
        trace(own, "r0")


def test_a_student_leads_to_its_shards_and_sources(finished: Path, own: Path, tmp_path: Path) -> None:
    """The training is written by hand: what it trained on is told by its manifest, wherever the student lies."""
    shards = outputs.current(own, "shard")
    folder = own / "train" / ("0" * 32)
    (folder / "student").mkdir(parents=True)
    (folder / "student" / "model.safetensors").write_bytes(b"weights")
    writer, drops = RowWriter(folder, "part", 100), RowWriter(folder, outputs.DROPPED, None)
    for line in outputs.lines(shards):
        writer.write(line)
    shard = outputs.read_manifest(shards)
    weights = folder / "student" / "model.safetensors"
    extra = outputs.OutputFile(path="student/model.safetensors", bytes=7, rows=None, sha256=outputs.sha256(weights))
    parent = outputs.sha256(shards / outputs.MANIFEST)
    changes = {
        "stage": "train", "key": folder.name, "outputs": [*writer.close(), *drops.close(), extra], "root": None,
        "parents": {"shard": next(iter(shard.parents.values())).model_copy(update={"key": shards.name, "manifest": parent})},
    }  # fmt: skip
    manifest = shard.model_copy(update=changes)
    manifest = manifest.model_copy(update={"digest": outputs.manifest_digest(manifest)})
    outputs.write_manifest(folder, manifest)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "model.safetensors").write_bytes(b"weights")

    told = origin(own, str(folder))
    assert told is not None
    assert told["manifest of the shards"] == parent
    assert told["training rows"] == 48
    assert told["sources"] == {
        "inputs.jsonl": f"29 rows, SHA-256 {outputs.sha256(finished.parents[1] / 'inputs.jsonl')}"
    }
    assert list(told["first rows"]) == [json.loads(line)["id"] for line in list(outputs.lines(shards))[:3]]
    for name in (folder / "student", tmp_path / "copy", extra.sha256, folder.name, manifest.digest):
        assert origin(own, str(name)) == told
    assert origin(own, "r0") is None
    (tmp_path / "copy" / "model.safetensors").write_bytes(b"others")
    with pytest.raises(InputError, match="no training in"):
        origin(own, str(tmp_path / "copy"))
    with pytest.raises(InputError, match="no weights"):
        origin(own, str(tmp_path))
    (tmp_path / "copy" / "model.safetensors").write_bytes(b"weights")
    for name in (weights, tmp_path / "copy" / "model.safetensors"):
        assert origin(own, str(name)) == told
    with pytest.raises(InputError, match="an empty name"):
        origin(own, " ")


def test_a_folder_that_is_called_as_a_row_does_not_hide_it(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "r3").mkdir()
    (tmp_path / "model.safetensors").write_bytes(b"weights of another run")
    monkeypatch.chdir(tmp_path)
    assert origin(finished, "r3") is None
    assert trace(finished, "r3")
    with pytest.raises(InputError, match="no weights in this folder"):
        origin(finished, "./r3")
    with pytest.raises(InputError, match="no training in"):
        origin(finished, "model.safetensors")


def test_a_name_that_is_too_long_for_a_path_is_no_student(finished: Path) -> None:
    assert origin(finished, "r" * 5000) is None
    with pytest.raises(InputError, match="no row of"):
        trace(finished, "r" * 5000)


@pytest.mark.parametrize("name", ["r3/nonsense", "r3#77", "r3#0/label", "r26/label"])
def test_an_id_that_no_row_has_is_not_taken_for_its_row(finished: Path, name: str) -> None:
    row = row_of(name)
    with pytest.raises(InputError, match=f"{name}: no row of .* has this id; there are {row}, {row}#0"):
        trace(finished, name)
