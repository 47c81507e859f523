"""The response store: nothing committed is lost, nothing changed goes unseen, one writer at a time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pipeline import responses
from pipeline.files import RunError
from pipeline.responses import Stored, open_store, read_store, request_key, stored_keys, verify

IDENTITY = {"backend": "replay", "name": "test"}
TEXT = st.text(st.characters(codec="utf-8"), max_size=30)


def record(number: int, text: str = "yes") -> Stored:
    asked = {
        "identity": responses.digest(IDENTITY),
        "prompt": f"p{number}",
        "sampling": {"top_p": 1.0},
        "seed": 0,
        "sample": 0,
    }
    return Stored(
        key=request_key(**asked),
        teacher="test",
        **asked,
        text=text,
        finish_reason="stop",
        prompt_tokens=3,
        completion_tokens=1,
    )


def fill(folder: Path, commits: list[list[Stored]]) -> Path:
    with open_store(folder) as store:
        store.add_teacher(IDENTITY)
        for commit in commits:
            store.append(commit)
    return folder / "segment-00000.jsonl"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory):
    """A function that gives a new folder each time: hypothesis runs one test many times."""
    return lambda: tmp_path_factory.mktemp("store") / "responses"


@settings(deadline=None)
@given(st.lists(st.lists(TEXT, max_size=4), max_size=4))
def test_what_is_committed_is_read_back(scratch, commits: list[list[str]]) -> None:
    numbers = iter(range(100))
    records = [[record(next(numbers), text) for text in commit] for commit in commits]
    folder = scratch()
    segment = fill(folder, records)
    flat = [one for commit in records for one in commit]
    with open_store(folder) as store:
        assert [store.get(one.key) for one in flat] == flat
        assert len(store) == len(flat)
        assert store.get("0" * 32) is None
        assert "0" * 32 not in store
    assert [found for _, _, found in read_store(folder)] == flat
    assert stored_keys(folder) == {bytes.fromhex(one.key) for one in flat}
    assert list(verify(folder)) == []
    if flat:
        assert [json.loads(line)["text"] for line in segment.read_bytes().split(b"\n")[:-1]] == [
            one.text for one in flat
        ]


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_one_changed_byte_anywhere_is_found_and_named(scratch, data: st.DataObject) -> None:
    folder = scratch()
    segment = fill(folder, [[record(0, "äöü"), record(1)], [record(2, 'a "quoted" \\ text')]])
    content = bytearray(segment.read_bytes())
    place = data.draw(
        st.integers(0, len(content) - 1) | st.sampled_from([n for n, byte in enumerate(content) if byte == 10])
    )
    changed = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[place]))
    line = bytes(content[:place]).count(b"\n") + 1
    content[place] = changed
    segment.write_bytes(content)
    problems = list(verify(folder))
    assert any(problem.startswith(f"{segment}:{line}: ") for problem in problems), problems
    with pytest.raises(RunError, match=rf"{segment}:{line}: "), open_store(folder):
        pass


@settings(deadline=None)  # each example waits for the disk
@given(data=st.data())
def test_a_torn_tail_is_cut_before_the_next_append(scratch, data: st.DataObject) -> None:
    folder = scratch()
    records = [record(number, "text " * number) for number in range(3)]
    segment = fill(folder, [records[:1], records[1:]])
    content = segment.read_bytes()
    kept = data.draw(st.integers(0, len(content)))
    zeros = data.draw(st.integers(0, 3))  # what a power loss can leave of blocks that were never written
    assume(zeros != 1 or content[kept : kept + 1] != b"\n")  # a whole record whose newline became a zero byte is damage
    whole = content[:kept].count(b"\n")
    segment.write_bytes(content[:kept] + b"\0" * zeros)
    assert list(verify(folder)) == []
    assert [found for _, _, found in read_store(folder)] == records[:whole]
    with open_store(folder) as store:
        assert [store.get(one.key) for one in records] == records[:whole] + [None] * (3 - whole)
        store.append(records[whole:])
        assert [store.get(one.key) for one in records] == records
    assert segment.read_bytes() == content


def test_a_cut_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    segment = fill(tmp_path, [[record(0)]])
    segment.write_bytes(segment.read_bytes() + b'{"key":"')
    with open_store(tmp_path):
        assert f"{segment}: cut 8 bytes" in capsys.readouterr().err
    with open_store(tmp_path):
        assert capsys.readouterr().err == ""


def test_the_first_answer_stands(tmp_path: Path) -> None:
    fill(tmp_path, [[record(0, "first"), record(0, "second")], [record(0, "third")]])
    assert [found.text for _, _, found in read_store(tmp_path)] == ["first"]


def test_segments_roll_and_only_the_last_may_be_torn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "SEGMENT_BYTES", 1000)
    records = [record(number) for number in range(20)]
    fill(tmp_path, [[one] for one in records[:11]])
    fill(tmp_path, [[one] for one in records[11:]])
    segments = sorted(tmp_path.glob("segment-*.jsonl"))
    assert len(segments) > 3
    assert [found for _, _, found in read_store(tmp_path)] == records
    with open_store(tmp_path) as store:
        assert [store.get(one.key) for one in records] == records
    segments[1].write_bytes(segments[1].read_bytes()[:-5])
    assert [problem.split(": ")[0] for problem in verify(tmp_path)] == [
        f"{segments[1]}:{len(segments[1].read_bytes().splitlines())}"
    ]
    with pytest.raises(RunError, match="damaged"):
        list(read_store(tmp_path))
    segments[1].unlink()
    assert any(f"{segments[1]}: missing" in problem for problem in verify(tmp_path))


def test_a_second_writer_is_turned_away_at_once(tmp_path: Path) -> None:
    code = """if True:
        import sys
        from pathlib import Path
        from pipeline.responses import open_store
        with open_store(Path(sys.argv[1])):
            print("in", flush=True)
            input()
        """
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "in\n"
    with pytest.raises(RunError, match=f"process {other.pid} on .* is writing"), open_store(tmp_path):
        pass
    assert list(read_store(tmp_path)) == []  # readers need no lock
    other.kill()
    other.communicate()
    with open_store(tmp_path):  # a killed holder leaves no lock behind
        pass


def test_readers_see_what_is_committed_while_it_is_written(tmp_path: Path) -> None:
    with open_store(tmp_path) as store:
        store.append([record(0)])
        assert [found for _, _, found in read_store(tmp_path)] == [record(0)]
        store.append([record(1)])
        assert stored_keys(tmp_path) == {bytes.fromhex(record(number).key) for number in (0, 1)}


def test_a_full_disk_leaves_the_store_whole(tmp_path: Path) -> None:
    """A limit on file sizes makes the second commit's write stop half way, as a full disk does."""
    code = """if True:
        import resource, sys
        from pathlib import Path
        from pipeline.files import RunError
        from pipeline.responses import open_store
        from tests.test_responses import record
        with open_store(Path(sys.argv[1])) as store:
            store.append([record(0)])
            resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
            try:
                store.append([record(number) for number in range(1, 20)])
            except RunError as error:
                print(error)
            assert record(1).key not in store and store.get(record(0).key) == record(0)
        """
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert f"{tmp_path / 'segment-00000.jsonl'}: cannot be written" in done.stdout
    assert [found for _, _, found in read_store(tmp_path)] == [record(0)]


def test_teachers_are_kept_whole(tmp_path: Path) -> None:
    fill(tmp_path, [[record(0)]])
    (teacher,) = (tmp_path / "teachers").glob("*.json")
    assert json.loads(teacher.read_bytes()) == IDENTITY
    assert teacher.stem == record(0).identity
    teacher.write_bytes(teacher.read_bytes().replace(b"test", b"tent"))
    assert [problem.split(": ")[0] for problem in verify(tmp_path)] == [str(teacher)]
    teacher.unlink()
    assert [problem.split(": ")[0] for problem in verify(tmp_path)] == [str(teacher)]


def test_a_record_whose_key_is_another_requests_is_found(tmp_path: Path) -> None:
    segment = fill(tmp_path, [[record(0).model_copy(update={"seed": 1})]])
    assert [problem.split(" is not")[0] for problem in verify(tmp_path)] == [f"{segment}:1: key:"]


ASKED = {
    "identity": st.text(),
    "prompt": st.text(),
    "sampling": st.dictionaries(st.text(), st.integers() | st.text() | st.none()),
    "seed": st.integers(),
    "sample": st.integers(),
}


@given(st.fixed_dictionaries(ASKED), st.fixed_dictionaries(ASKED))
def test_keys_are_equal_exactly_where_requests_are(one: dict, other: dict) -> None:
    for name in ASKED:
        changed = {**one, name: other[name]}
        assert (request_key(**changed) == request_key(**one)) == (changed == one)


def test_an_absent_store_is_empty(tmp_path: Path) -> None:
    folder = tmp_path / "nosuch"
    assert (list(read_store(folder)), stored_keys(folder), list(verify(folder))) == ([], set(), [])
