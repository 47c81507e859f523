"""The response store: nothing committed is lost, nothing changed goes unseen, one writer at a time."""

import errno
import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline import responses
from pipeline.files import InputError, RunError
from pipeline.responses import Answered, Stored, compact, family_key, open_store, read_store, request_key, verify

IDENTITY = {"backend": "replay", "name": "test"}
TEXT = st.text(st.characters(codec="utf-8"), max_size=30)


def record(
    number: int, text: str = "yes", max_tokens: int = 20, finish_reason: str = "stop", teacher: str = "test"
) -> Stored:
    asked = {
        "identity": responses.digest({**IDENTITY, "name": teacher}),
        "prompt": f"p{number}",
        "sampling": {"top_p": 1.0},
        "seed": 0,
        "sample": 0,
    }
    family = family_key(**asked)
    return Stored(
        key=request_key(family, max_tokens),
        family=family,
        max_tokens=max_tokens,
        teacher=teacher,
        **asked,
        text=text,
        finish_reason=finish_reason,
        prompt_tokens=3,
        completion_tokens=1,
    )


def fill(folder: Path, commits: list[list[Stored]]) -> Path:
    with open_store(folder) as store:
        for name in {"test", *(one.teacher for commit in commits for one in commit)}:
            store.add_teacher({**IDENTITY, "name": name})
        for commit in commits:
            store.append(commit)
    return folder / "segment-00000.jsonl"


def got(store: Answered, record: Stored) -> Stored | None:
    """What the store gives for the request that the record answers; both ways of asking give the same."""
    found = store.get(record.family, record.max_tokens)
    assert store.get(bytes.fromhex(record.family), record.max_tokens) == found
    assert store.has(record.family, record.max_tokens) == (found is not None)
    return found


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
        assert [got(store, one) for one in flat] == flat
        assert len(store) == len(flat)
        assert got(store, record(100)) is None
    assert [found for _, _, found in read_store(folder)] == flat
    answered = Answered(folder)
    assert [got(answered, one) for one in flat] == flat
    assert got(answered, record(100)) is None
    assert len(answered) == len(flat)
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
    assert len(Answered(folder)) == whole
    with open_store(folder) as store:
        assert [got(store, one) for one in records] == records[:whole] + [None] * (3 - whole)
        store.append(records[whole:])
        assert [got(store, one) for one in records] == records
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
        assert [got(store, one) for one in records] == records
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
        assert [got(Answered(tmp_path), record(number)) for number in range(3)] == [record(0), record(1), None]


def test_a_full_disk_leaves_the_store_whole(tmp_path: Path) -> None:
    """A limit on file sizes makes the second commit's write stop half way, as a full disk does."""
    code = """if True:
        import resource, sys
        from pathlib import Path
        from pipeline.files import RunError
        from pipeline.responses import open_store
        from tests.test_responses import got, record
        with open_store(Path(sys.argv[1])) as store:
            store.append([record(0)])
            resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
            try:
                store.append([record(number) for number in range(1, 20)])
            except RunError as error:
                print(error)
            assert got(store, record(1)) is None and got(store, record(0)) == record(0) and len(store) == 1
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


def test_a_record_of_another_version_is_called_that(tmp_path: Path) -> None:
    line = record(0).model_dump_json(exclude={"family"}).encode()
    framed = line[:-1] + b',"check":"' + responses.line_digest(line).encode() + b'"}\n'
    (tmp_path / "segment-00000.jsonl").write_bytes(framed)
    with pytest.raises(RunError, match=r"segment-00000\.jsonl:1: the record was written by another version; move"):
        Answered(tmp_path)
    assert [problem.split("; ")[0][-34:] for problem in verify(tmp_path)] == [
        "record was written by another version"[-34:]
    ]


ASKED = {
    "identity": st.text(),
    "prompt": st.text(),
    "sampling": st.dictionaries(st.text(), st.integers() | st.text() | st.none()),
    "seed": st.integers(),
    "sample": st.integers(),
}


@given(st.fixed_dictionaries(ASKED), st.fixed_dictionaries(ASKED), st.integers(), st.integers())
def test_keys_are_equal_exactly_where_requests_are(one: dict, other: dict, few: int, many: int) -> None:
    family = family_key(**one)
    for name in ASKED:
        changed = {**one, name: other[name]}
        assert (family_key(**changed) == family) == (changed == one)
        assert (request_key(family_key(**changed), few) == request_key(family, few)) == (changed == one)
    assert (request_key(family, few) == request_key(family, many)) == (few == many)


def test_an_absent_store_is_empty(tmp_path: Path) -> None:
    folder = tmp_path / "nosuch"
    assert (list(read_store(folder)), len(Answered(folder)), list(verify(folder))) == ([], 0, [])
    assert compact(folder).kept == 0
    assert not folder.exists()


def test_an_answer_that_ended_by_itself_serves_whoever_allows_more(tmp_path: Path) -> None:
    fill(tmp_path, [[record(0, max_tokens=20)]])
    answered = Answered(tmp_path)
    for allowed, served in {1: False, 19: False, 20: True, 21: True, 2**31 - 1: True}.items():
        assert (got(answered, record(0, max_tokens=allowed)) == record(0, max_tokens=20)) == served
    with open_store(tmp_path) as store:  # what is served is not kept a second time
        store.append([record(0, "another", max_tokens=30)])
        assert len(store) == 1


@pytest.mark.parametrize("reason", ["length", "recorded", "content_filter", "stopped", "sto", 'a "stop"', ""])
def test_any_other_answer_serves_its_own_request_only(tmp_path: Path, reason: str) -> None:
    fill(tmp_path, [[record(0, max_tokens=20, finish_reason=reason)]])
    answered = Answered(tmp_path)
    assert [got(answered, record(0, max_tokens=allowed)) is not None for allowed in (19, 20, 21)] == [
        False,
        True,
        False,
    ]


def test_a_cut_answer_and_a_later_whole_one_stand_beside_each_other(tmp_path: Path) -> None:
    cut, whole = record(0, "I beg", 20, "length"), record(0, "I begin and end.", 40)
    fill(tmp_path, [[cut], [whole]])
    answered = Answered(tmp_path)
    found = [got(answered, record(0, max_tokens=allowed)) for allowed in (19, 20, 21, 39, 40, 41)]
    assert found == [None, cut, None, None, whole, whole]
    assert compact(tmp_path).unreachable == 0


STEPS = st.lists(
    st.lists(
        st.builds(
            record,
            st.integers(0, 2),
            st.sampled_from(["yes", "no", ""]),
            st.integers(1, 5),
            st.sampled_from(["stop", "length", "recorded"]),
        ),
        max_size=5,
    )
    | st.just("compact"),
    max_size=6,
)


@settings(max_examples=60)
@given(steps=STEPS)
def test_the_store_is_a_plain_dictionary_of_families(scratch, steps: list[list[Stored] | str]) -> None:
    """Against a model that could not be simpler, after every step, by the store that wrote, one opened anew, and a reader."""
    folder = scratch()
    model: dict[str, list[Stored]] = {}

    def answer(asked: Stored) -> Stored | None:
        for kept in model.get(asked.family, []):
            if kept.max_tokens == asked.max_tokens or (
                kept.finish_reason == "stop" and kept.max_tokens < asked.max_tokens
            ):
                return kept
        return None

    every = [record(number, max_tokens=allowed) for number in range(3) for allowed in range(1, 7)]
    for step in steps:
        if isinstance(step, str):
            assert compact(folder).unreachable == 0  # append lets nothing in that nothing can reach
        else:
            for one in step:
                if answer(one) is None:
                    model.setdefault(one.family, []).append(one)
            with open_store(folder) as store:
                store.add_teacher(IDENTITY)
                store.append(step)
                assert [got(store, one) for one in every] == [answer(one) for one in every]
        with open_store(folder) as store:
            assert len(store) == sum(map(len, model.values()))
            assert [got(store, one) for one in every] == [answer(one) for one in every]
        answered = Answered(folder)
        assert [got(answered, one) for one in every] == [answer(one) for one in every]
        by_family: dict[str, list[Stored]] = {}
        for _, _, found in read_store(folder):
            by_family.setdefault(found.family, []).append(found)
        assert by_family == model
        assert list(verify(folder)) == []


def test_every_commit_is_synced_before_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: dict[int, int] = {}
    fsync = os.fsync

    def noted(handle: int) -> None:
        fsync(handle)
        synced[os.fstat(handle).st_ino] = os.fstat(handle).st_size

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(responses, "SEGMENT_BYTES", 2000)
    with open_store(tmp_path) as store:
        for number in range(0, 20, 2):
            synced.clear()
            before = set(tmp_path.glob("segment-*"))
            store.append([record(number), record(number + 1)])
            now = sorted(tmp_path.glob("segment-*"))[-1].stat()
            assert synced[now.st_ino] == now.st_size
            assert (tmp_path.stat().st_ino in synced) == (set(tmp_path.glob("segment-*")) != before)
    assert len(list(tmp_path.glob("segment-*"))) > 2


def test_a_commit_that_cannot_be_synced_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(handle: int) -> None:
        if stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with open_store(tmp_path) as store:
        store.append([record(0)])
        segment = tmp_path / "segment-00000.jsonl"
        before = segment.read_bytes()
        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", refused)
            with pytest.raises(RunError, match=rf"{segment}: cannot be written \(Input/output error\)"):
                store.append([record(1), record(2)])
        assert segment.read_bytes() == before
        assert [got(store, record(number)) for number in range(3)] == [record(0), None, None]
        assert len(store) == 1
        with pytest.raises(RunError, match="cannot be written"):  # what a failed sync left on the disk is not known
            store.append([record(3)])
    with open_store(tmp_path) as store:
        store.append([record(1)])
    assert [found for _, _, found in read_store(tmp_path)] == [record(0), record(1)]


def test_it_can_be_asked_while_another_thread_appends(tmp_path: Path) -> None:
    chunks = [[record(number * 8 + one) for one in range(8)] for number in range(60)]
    with open_store(tmp_path) as store, ThreadPoolExecutor(1) as writer:
        writing = writer.submit(lambda: [store.append(chunk) for chunk in chunks])
        while not writing.done():
            found = [store.get(chunk[-1].family, 20) for chunk in chunks]
            committed = len([one for one in found if one is not None])
            assert found == [chunk[-1] for chunk in chunks[:committed]] + [None] * (len(chunks) - committed)
        writing.result()
        assert all(got(store, one) == one for chunk in chunks for one in chunk)


@pytest.mark.parametrize("left", [b"process 4194304 on nowhere\n", b"", b"\xff\x00 not text"])
def test_a_lock_file_of_a_dead_process_holds_nothing(tmp_path: Path, left: bytes) -> None:
    (tmp_path / "lock").write_bytes(left)
    with open_store(tmp_path):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_a_child_of_a_killed_writer_holds_nothing(tmp_path: Path) -> None:
    """An engine's forked process can outlive a killed run by a while."""
    code = """if True:
        import os, sys
        from pathlib import Path
        from pipeline.responses import open_store
        with open_store(Path(sys.argv[1])):
            if not os.fork():
                print("in", flush=True)
                sys.stdin.read()
                os._exit(0)
            os.wait()
        """
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        with pytest.raises(RunError, match=f"process {other.pid} on .* is writing"), open_store(tmp_path):
            pass
        other.kill()
        other.wait()
        with open_store(tmp_path):  # the child lives until this end of its input is closed
            pass


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_what_json_cannot_say_is_never_written(value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Stored.model_validate({**record(0).model_dump(), "label_logprobs": {"food": value}})
    with pytest.raises(ValidationError, match="finite"):
        Stored.model_validate({**record(0).model_dump(), "mean_logprob": value})


def merged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Stored]:
    """A store of several segments of two teachers, put together by hand from two: half of its records can never be given."""
    monkeypatch.setattr(responses, "SEGMENT_BYTES", 2000)
    records = [record(number, f"answer {number}", teacher="one" if number % 2 else "two") for number in range(12)]
    cut = [record(20 + number, "cut", 10, "length", teacher="one") for number in range(2)]
    fill(folder, [[one] for one in [*records, *cut]])
    other = folder.parent / f"{folder.name}-other"
    later = [record(number, "later", max_tokens=25, teacher="one" if number % 2 else "two") for number in range(12)]
    fill(other, [[one] for one in [*later, *cut]])
    count = len(list(folder.glob("segment-*")))
    for number, path in enumerate(sorted(other.glob("segment-*")), count):
        shutil.copyfile(path, folder / f"segment-{number:05d}.jsonl")
    shutil.rmtree(other)
    return [*records, *cut]


def test_compacting_removes_what_nothing_can_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "store"
    records = merged(folder, monkeypatch)
    assert [problem.split(": ")[1][:3] for problem in verify(folder)] == ["key", "key"]  # the two that are there twice
    done = compact(folder)
    assert (done.kept, done.unreachable, done.unwanted) == (14, 14, 0)
    assert [found for _, _, found in read_store(folder)] == records
    assert done.bytes_after == sum(path.stat().st_size for path in folder.glob("segment-*")) < done.bytes_before
    assert list(verify(folder)) == []
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "lock"}
    again = compact(folder)
    assert (again.kept, again.unreachable, again.bytes_after) == (14, 0, done.bytes_after)
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != "lock"} == before
    with open_store(folder) as store:
        store.append([record(50)])
    assert [found for _, _, found in read_store(folder)] == [*records, record(50)]


def test_what_is_compacted_is_synced_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "store"
    merged(folder, monkeypatch)
    synced: list[tuple[int, int, int]] = []  # inode, size, and the first segment that counted then
    bounds: list[int | None] = []  # from which segment on none counted then
    fsync = os.fsync

    def noted(handle: int) -> None:
        fsync(handle)
        live = folder / "segments.json"
        first = json.loads(live.read_text())["first"] if live.exists() else 0
        bounds.append(json.loads(live.read_text())["until"] if live.exists() else None)
        synced.append((os.fstat(handle).st_ino, os.fstat(handle).st_size, first))

    monkeypatch.setattr(os, "fsync", noted)
    before = len(responses.segments(folder))
    compact(folder)
    names = [folder, *responses.segments(folder)]
    wanted = {(path.stat().st_ino, path.stat().st_size, 0) for path in names[1:]}
    assert wanted <= set(synced)
    assert {bounds[synced.index(one)] for one in wanted} == {before}
    last = max(synced.index(one) for one in wanted)
    assert (folder.stat().st_ino, 0) in [(inode, first) for inode, _, first in synced[last:]]


def test_compacting_for_one_teacher_removes_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "store"
    records = merged(folder, monkeypatch)
    with pytest.raises(InputError, match="thre: no record is of this teacher; there are one, two"):
        compact(folder, teachers=["one", "thre"])
    assert len(Answered(folder)) > 14
    done = compact(folder, teachers=[records[0].identity])
    assert (done.kept, done.unreachable, done.unwanted) == (6, 6, 16)
    assert [found for _, _, found in read_store(folder)] == [one for one in records if one.teacher == "two"]
    assert list(verify(folder)) == []


def test_compacting_stops_at_damage_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "store"
    merged(folder, monkeypatch)
    second = folder / "segment-00001.jsonl"
    second.write_bytes(second.read_bytes().replace(b"answer", b"Answer", 1))
    before = {path: path.read_bytes() for path in folder.glob("segment-*")}
    with pytest.raises(RunError, match=rf"{second}:1: the record is damaged"):
        compact(folder)
    assert {path: path.read_bytes() for path in folder.glob("segment-*")} == before


def test_compacting_on_a_full_disk_leaves_the_store_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "store"
    records = merged(folder, monkeypatch)
    before = {path: path.read_bytes() for path in folder.glob("segment-*")}
    code = """if True:
        import resource, sys
        from pathlib import Path
        from pipeline.files import RunError
        from pipeline.responses import compact
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        try:
            compact(Path(sys.argv[1]))
        except RunError as error:
            print(error)
        """
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert f"{folder}: cannot be compacted (File too large); no answer is lost" in done.stdout
    assert {path: path.read_bytes() for path in folder.glob("segment-*")} == before
    assert [got(Answered(folder), one) for one in records] == records


WATCHED = """if True:
    import os, shutil, sys
    from pathlib import Path
    from pipeline import files, responses

    folder, scratch, *teachers = map(str, sys.argv[1:])
    responses.SEGMENT_BYTES = 2000
    os.fsync = lambda handle: None  # a killed process loses nothing that it wrote
    reads = {"_whole", "_lines", "_checked", "_framed", "_asked", "_interrupted", "_choice", "find", "add", "_reading", "_silent",
             "line_digest", "_name", "_number", "_allowed", "_live", "_short", "counts", "_all_segments", "segments"}
    lines, last = 0, None

    def trace(frame, event, _):
        global lines, last
        if frame.f_code.co_filename not in (responses.__file__, files.__file__) or frame.f_code.co_name in reads:
            return None
        sys.settrace(None)
        lines += 1
        found = {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.is_file() and path.name != "lock"}
        if found != last:
            shutil.copytree(folder, Path(scratch, str(lines)))
        last = found
        sys.settrace(trace)
        return trace

    sys.settrace(trace)
    responses.compact(Path(folder), teachers=teachers)
    sys.settrace(None)
    print(lines)
    """


@pytest.mark.parametrize("teachers", [[], ["two"]])
def test_compacting_can_be_killed_at_any_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, teachers: list[str]
) -> None:
    """The folder as it is before each line of code that is not about reading, which is what a kill at that moment leaves."""
    origin, scratch = tmp_path / "store", tmp_path / "killed"
    records = merged(origin, monkeypatch)
    scratch.mkdir()
    command = [sys.executable, "-c", WATCHED, str(origin), str(scratch), *teachers]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert int(lines) > 300
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    folders = sorted(scratch.iterdir(), key=lambda path: int(path.name))
    assert len(folders) > 12
    wanted = [one for one in records if not teachers or one.teacher in teachers]
    later = [record(number) for number in range(90, 98)]
    states = []
    for folder in folders:
        before = Answered(folder)  # a reader, before any writer has cleaned up
        assert [got(before, one) for one in wanted] == wanted
        rest = [got(before, one) for one in records if one not in wanted]
        assert rest in ([one for one in records if one not in wanted], [None] * len(rest))
        problems = list(verify(folder))
        with open_store(folder) as store:
            after = len(store) <= 14
            assert [got(store, one) for one in wanted] == wanted
            assert all("stands in the store twice" in problem for problem in problems)  # as the store was put together
            assert len(problems) == (0 if after else 2)
            for one in later:  # into several new segments
                store.append([one])
        states.append(after)
        if not after:
            assert compact(folder, teachers=[*teachers, "test"] if teachers else []).kept == len(wanted) + len(later)
        assert [found for _, _, found in read_store(folder)] == [*wanted, *later]
        names = {path.name for path in folder.iterdir()} - {"lock", "teachers", "segments.json"}
        assert names == {path.name for path in responses.segments(folder)}
    assert states == sorted(states)  # as before up to one moment, as after from there on
    assert {False, True} == set(states)


def test_what_was_replaced_is_kept_where_the_new_is_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "store"
    merged(folder, monkeypatch)
    saved = {path.name: path.read_bytes() for path in folder.glob("segment-*")}
    compact(folder)
    for name, content in saved.items():
        (folder / name).write_bytes(content)
    new = responses.segments(folder)
    new[0].write_bytes(new[0].read_bytes()[:-1])
    new[1].unlink()
    assert [problem.split(":")[0] for problem in itertools.islice(verify(folder), 2)] == [str(new[0]), str(new[1])]
    with pytest.raises(RunError, match=rf"{new[0]}: has \d+ bytes, had \d+ when"), open_store(folder):
        pass
    assert all((folder / name).read_bytes() == content for name, content in saved.items())
    (folder / "segments.json").write_text("{")
    with pytest.raises(RunError, match=r"segments\.json: cannot be read"), open_store(folder):
        pass
    assert [problem.split(": ")[1][:14] for problem in verify(folder)] == ["cannot be read"]


def test_a_reader_is_told_where_the_store_was_compacted_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "store"
    records = merged(folder, monkeypatch)
    answered, reading = Answered(folder), read_store(folder)
    next(reading)
    compact(folder)
    with pytest.raises(RunError, match="the store was compacted while it was read; run the command again"):
        list(reading)
    with pytest.raises(RunError, match="the store was compacted while it was read; run the command again"):
        answered.get(records[0].family, 20)


def test_keys_stay_what_they_are() -> None:
    """Another way of naming would ask, and pay, for every answer again."""
    one = record(0)
    assert (one.family, one.key) == ("9efadf11a1588e74a60dae895829ad03", "33ddd5dfc56c79c78dd87c71b957249f")
    about = {"identity": one.identity, "prompt": "p0", "seed": 0, "sample": 0}
    assert responses.encoded_family_key(sampling='{"top_p":1.0}', **about) == one.family  # type: ignore[arg-type]


def test_a_line_holds_a_record_and_its_check(tmp_path: Path) -> None:
    line = responses.encoded(record(0))
    assert fill(tmp_path, [[record(0)]]).read_bytes() == line
    assert responses.record(line, "x:1") == record(0)
    with pytest.raises(RunError) as caught:
        responses.record(line.replace(b"yes", b"yet"), "x:1")
    advice = "restore the file, or delete this line and it is asked for again"
    assert str(caught.value) == f"x:1: the record is damaged; {advice}"


def test_a_record_with_a_right_check_and_other_fields_is_named(tmp_path: Path) -> None:
    body = record(0).model_dump_json().replace('"seed":0', '"seed":"none"').encode()
    line = body[:-1] + b',"check":"' + responses.line_digest(body).encode() + b'"}\n'
    segment = tmp_path / "segment-00000.jsonl"
    segment.write_bytes(line)
    problem = (
        r"not a record of the response store \(Input should be a valid integer.*\); was it written by another version\?"
    )
    for reading in (
        lambda: responses.record(line, f"{segment}:1"),
        lambda: list(read_store(tmp_path)),
        lambda: compact(tmp_path, teachers=["test"]),
    ):
        with pytest.raises(RunError, match=f"^{segment}:1: {problem}$"):
            reading()
    with pytest.raises(RunError, match=rf"^{segment} \(byte 0\): {problem}$"):
        Answered(tmp_path).get(record(0).family, 20)
    (found,) = verify(tmp_path)
    assert found.startswith(f"{segment}:1: not a record of the response store (")


def test_a_record_that_changes_under_an_open_store_is_not_given(tmp_path: Path) -> None:
    segment = fill(tmp_path, [[record(0), record(1)]])
    answered = Answered(tmp_path)
    first = len(responses.encoded(record(0)))
    segment.write_bytes(segment.read_bytes()[:first] + responses.encoded(record(1)).replace(b"yes", b"yet"))
    assert got(answered, record(0)) == record(0)
    with pytest.raises(RunError) as caught:
        answered.get(record(1).family, 20)
    problem = f"the record at byte {first} was changed while the store was open; run `stepdistill audit`"
    assert str(caught.value) == f"{segment}: {problem}"


def handles(folder: Path) -> int:
    """How many files in the folder are open."""
    opened = (os.path.realpath(path) for path in Path("/proc/self/fd").iterdir())
    return sum(path.startswith(str(folder)) for path in opened)


def test_closing_leaves_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(responses, "SEGMENT_BYTES", 1000)
    records = [record(number) for number in range(8)]
    with open_store(tmp_path) as store:
        for one in records:
            store.append([one])
        assert [got(store, one) for one in records] == records
        assert handles(tmp_path) > 3
    assert handles(tmp_path) == 0
    answered = Answered(tmp_path)
    assert [got(answered, one) for one in records] == records
    answered.close()
    assert handles(tmp_path) == 0


def test_a_segment_is_full_at_its_limit_whoever_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(responses.encoded(record(0)))
    records = [record(number) for number in range(5)]
    for limit, sizes in ((2 * size, [2, 2, 1]), (2 * size + 1, [3, 2])):
        monkeypatch.setattr(responses, "SEGMENT_BYTES", limit)
        for at_once in (True, False):
            folder = tmp_path / f"{limit}-{at_once}"
            for commit in [[[one] for one in records]] if at_once else [[[one]] for one in records]:
                fill(folder, commit)
            assert [path.stat().st_size // size for path in responses.segments(folder)] == sizes
            assert [found for _, _, found in read_store(folder)] == records


def compacted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The segments of a store that was compacted, so that segments.json says which they are."""
    merged(folder, monkeypatch)
    compact(folder)
    live = json.loads((folder / "segments.json").read_bytes())
    paths = responses.segments(folder)
    names = [f"segment-{number:05d}.jsonl" for number in range(live["first"], live["first"] + len(live["sizes"]))]
    assert [path.name for path in paths] == names
    assert live == {
        "first": live["first"], "until": None, "sizes": [path.stat().st_size for path in paths],
    }  # fmt: skip
    assert live["first"] > 0
    assert len(paths) > 2
    return paths


def test_segments_that_should_be_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert responses.absent(tmp_path / "nosuch") == []
    assert not responses.shorter(tmp_path / "nosuch")
    paths = compacted(tmp_path / "store", monkeypatch)
    folder = tmp_path / "store"
    assert responses.absent(folder) == []
    assert not responses.shorter(folder)
    assert list(responses.missing(folder)) == []
    for gone in (paths[0], paths[1], paths[-1]):
        content = gone.read_bytes()
        gone.write_bytes(content[:-1])
        assert responses.shorter(folder)
        sizes = f"has {len(content) - 1} bytes, had {len(content)} when the store was compacted"
        assert list(responses.missing(folder)) == [f"{gone}: {sizes}; restore the file"]
        gone.unlink()
        assert responses.absent(folder) == [gone]
        assert responses.shorter(folder)
        problems = list(responses.missing(folder))
        assert problems[0] == f"{gone}: missing, though segments.json names it; restore the file"
        after = next((path for path in paths if path.name > gone.name), None)
        assert problems[1:] == ([] if after is None else [f"{gone}: missing, though {after.name} is there"])
        gone.write_bytes(content)
    with open_store(folder) as store:
        for number in range(30, 50):
            store.append([record(number)])
    new = [path for path in responses.segments(folder) if path not in paths]
    assert len(new) > 2
    new[0].unlink()  # of which segments.json knows nothing
    assert (responses.absent(folder), responses.shorter(folder)) == ([new[0]], False)
    assert list(responses.missing(folder)) == [f"{new[0]}: missing, though {new[1].name} is there"]


def test_what_lies_there_can_be_made_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "store"
    paths = compacted(folder, monkeypatch)
    paths[0].unlink()
    responses.settle(folder)
    live = json.loads((folder / "segments.json").read_bytes())
    number = int(paths[1].stem[-5:])
    assert live == {"first": number, "until": None, "sizes": [path.stat().st_size for path in paths[1:]]}
    assert list(responses.missing(folder)) == []
    for path in paths[1:]:
        path.unlink()
    responses.settle(folder)
    assert json.loads((folder / "segments.json").read_bytes()) == {"first": 0, "until": None, "sizes": []}
    assert (folder / "segments.json").read_bytes().endswith(b"}\n")


def test_what_an_interrupted_compaction_left_is_cleared_by_the_next_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "store"
    paths = compacted(folder, monkeypatch)
    kept = {path.name: path.read_bytes() for path in paths}
    live = json.loads((folder / "segments.json").read_bytes())
    behind = int(paths[-1].stem[-5:]) + 1
    (folder / "segments.json").write_text(json.dumps({**live, "until": behind}))
    for name in (f"segment-{behind:05d}.jsonl", "segment-00000.jsonl", ".segments.json.77.tmp"):
        (folder / name).write_bytes(b"half")
    assert [path.name for path in responses.segments(folder)] == list(kept)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    with open_store(folder):
        assert {path.name: path.read_bytes() for path in folder.glob("*segment-*")} == kept
        assert not list(folder.glob("*.tmp"))
        assert json.loads((folder / "segments.json").read_bytes()) == live
    assert folder.stat().st_ino in synced


def test_large_stores_are_read_with_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[object, ...]] = []
    moved: list[int] = []

    @contextmanager
    def noted(*about: object):
        told.append(about)
        yield lambda amount=1, note="": moved.append(amount)

    monkeypatch.setattr(responses, "bar", noted)
    records = [record(number, "x" * 900_000) for number in range(4)] + [record(9)]
    segment = fill(tmp_path, [records])
    size = segment.stat().st_size
    for limit, bars in ((size + 1, 0), (size, 1)):
        monkeypatch.setattr(responses, "BAR_BYTES", limit)
        assert len(Answered(tmp_path)) == 5
        assert told == [("reading the response store", 3, "MiB")] * bars
    assert moved == [1, 1, 1]
    assert (list(verify(tmp_path)), moved) == ([], [1] * 6)
    compact(tmp_path)  # read by the writer, and to choose
    assert (len(told), moved) == (4, [1] * 12)
    fill(tmp_path, [[record(10, teacher="other")]])
    compact(tmp_path, teachers=["test"])  # and to write the others anew
    assert (len(told), moved) == (8, [1] * 24)


def test_compacting_says_what_it_did_and_without_a_store_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert compact(tmp_path / "nosuch", teachers=["one"]) == responses.Compacted(0, 0, 0, 0, 0)
    folder = tmp_path / "store"
    merged(folder, monkeypatch)
    before = sum(path.stat().st_size for path in folder.glob("segment-*"))
    done = compact(folder, teachers=["one", "two"])
    after = sum(path.stat().st_size for path in folder.glob("segment-*"))
    assert done == responses.Compacted(14, 14, 0, before, after)
    assert compact(folder) == responses.Compacted(14, 0, 0, after, after)
    with pytest.raises(InputError) as caught:
        compact(folder, teachers=["no\nbody"])
    assert str(caught.value) == f"{folder}: no\\x0abody: no record is of this teacher; there are one, two"
    fill(tmp_path / "empty", [])
    with pytest.raises(InputError, match="one: no record is of this teacher; there are none$"):
        compact(tmp_path / "empty", teachers=["one"])


def test_a_store_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "responses"
    with pytest.raises(RunError) as caught, open_store(folder):
        pass
    assert str(caught.value) == f"{folder}: cannot be made (Not a directory)"


def test_teachers_that_are_missing_or_misnamed_are_found(tmp_path: Path) -> None:
    fill(tmp_path, [[record(0)]])
    (teacher,) = (tmp_path / "teachers").glob("*.json")
    content = teacher.read_bytes()
    assert content == b'{"backend":"replay","name":"test"}\n'
    changed = "does not fit its name; it was changed after it was written"
    for other in (content[:-1], b"{}\n", b"\xff", content.replace(b":", b": ", 1)):
        teacher.write_bytes(other)
        assert list(verify(tmp_path)) == [f"{teacher}: {changed}"]
    teacher.unlink()
    assert list(verify(tmp_path)) == [f"{teacher}: missing, though records name it"]
    forged = record(0).model_copy(update={"identity": "../x"})
    (tmp_path / "segment-00000.jsonl").write_bytes(responses.encoded(forged))
    (tmp_path / "x.json").touch()
    problems = [problem for problem in verify(tmp_path) if ": missing" in problem]
    assert problems == [f"{tmp_path}/teachers/../x.json: missing, though records name it"]


def test_a_key_that_stands_there_twice_is_named_at_its_second_place(tmp_path: Path) -> None:
    segment = fill(tmp_path, [[record(0), record(1)]])
    segment.write_bytes(segment.read_bytes() + responses.encoded(record(0)))
    assert list(verify(tmp_path)) == [f"{segment}:3: key {record(0).key} stands in the store twice"]
    damaged = responses.encoded(record(5)).replace(b"yes", b"yet")
    segment.write_bytes(damaged + responses.encoded(record(6)) + damaged)
    assert [problem.split(": ")[0] for problem in verify(tmp_path)] == [f"{segment}:1", f"{segment}:3"]
    wrong = record(2).model_copy(update={"max_tokens": 21})
    segment.write_bytes(responses.encoded(wrong) + responses.encoded(record(1)))
    assert list(verify(tmp_path)) == [f"{segment}:1: key: is not that of the request the record tells of"]
