"""JSONL, digests and atomic writes."""

import errno
import fcntl
import json
import os
import platform
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.files import (
    InputError,
    RowError,
    RunError,
    atomic,
    canonical_json,
    clear,
    digest,
    held_alone,
    line_digest,
    make_folder,
    naming,
    place,
    plain,
    private,
    read_jsonl,
    regular,
    scan_jsonl,
    sha256,
    strict_json,
    sync_folder,
    write_json,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON)
def test_canonical_json_is_read_back_and_does_not_depend_on_key_order(value: object) -> None:
    assert strict_json(canonical_json(value)) == value
    if isinstance(value, dict):
        assert digest(dict(reversed(value.items()))) == digest(value)


@given(JSON, JSON)
def test_different_values_have_different_digests(one: object, other: object) -> None:
    assert (digest(one) == digest(other)) == (canonical_json(one) == canonical_json(other))


@given(rows=st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=8))
def test_rows_come_back_with_their_line_numbers(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_bytes(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n\n" for row in rows))
    assert list(read_jsonl(path)) == [(2 * index + 1, row) for index, row in enumerate(rows)]


@given(st.binary(max_size=200))
def test_any_bytes_are_rows_or_named_errors(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("bytes") / "rows.jsonl"
    path.write_bytes(content)
    found = list(scan_jsonl(path))
    assert [number for number, _ in found] == [
        index for index, line in enumerate(content.split(b"\n"), 1) if line.strip()
    ]
    assert all(
        str(row).startswith(f"{path}:{number}: ") and "\n" not in str(row)
        for number, row in found
        if isinstance(row, InputError)
    )


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"a": 1, "a": 2}', "stands there twice"),
        (b'{"a": NaN}', "NaN is no JSON number"),
        (b'{"a": "\\ud800"}', "not valid Unicode"),
        (b"[1]", "does not match requested type"),
        (b"null", "null"),
        (b'{"a": \xff}', "utf-8"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_what_json_leaves_open_is_refused(tmp_path: Path, line: bytes, problem: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    _, (number, error), after = scan_jsonl(path)
    assert (number, after) == (2, (3, {"a": 3}))
    assert isinstance(error, InputError)
    assert problem in str(error)
    with pytest.raises(InputError, match=r"rows\.jsonl:2: "):
        list(read_jsonl(path))


def test_line_separators_of_unicode_do_not_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes('{"a": "one\u2028two\x85three"}\n'.encode())
    assert list(read_jsonl(path)) == [(1, {"a": "one\u2028two\x85three"})]


def test_a_failed_atomic_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert [(child.name, child.read_bytes()) for child in tmp_path.iterdir()] == [("file", b"old")]
    with atomic(path) as file:
        file.write(b"new")
    assert [(child.name, child.read_bytes()) for child in tmp_path.iterdir()] == [("file", b"new")]


@given(st.text())
def test_plain_text_is_one_printable_line(text: str) -> None:
    assert plain(text).isprintable()


def test_a_folder_where_nothing_can_be_written_is_one_line(tmp_path: Path) -> None:
    (
        tmp_path / "lock"
    ).mkdir()  # as good as a folder without rights, which an administrator could write to all the same
    with (
        pytest.raises(RunError, match=r"run: cannot be written to \(Is a directory\); check"),
        held_alone(tmp_path / "lock", Path("run")),
    ):
        pass


def test_digests_are_those_that_stand_in_manifests_everywhere(tmp_path: Path) -> None:
    """Other ones would make every row, key and request a new one."""
    value = {"b": [1, None], "a": "ä"}
    assert canonical_json(value) == '{"a":"ä","b":[1,null]}'.encode()
    assert digest({}) == "dc7048f8f8747f561349cde127705c16"
    assert line_digest(b"") == "2d06800538d394c2"
    (tmp_path / "empty").touch()
    assert sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(float("inf"))


def test_a_place_is_a_path_and_a_line() -> None:
    assert (place(Path("a"), 3), place("a"), place(Path("a"))) == ("a:3", "a", "a")
    error = RowError("a:3", "no row; mend it")
    assert (str(error), error.problem) == ("a:3: no row; mend it", "no row; mend it")


def test_long_text_is_cut_and_control_characters_are_spelt() -> None:
    assert plain("x" * 300) == "x" * 300
    assert plain("x" * 301) == "x" * 299 + "…"
    assert (plain("abc", 3), plain("abcd", 3)) == ("abc", "ab…")
    assert plain("a\n\x1b[2Jä") == "a\\x0a\\x1b[2Jä"


def test_what_is_no_json_says_why_without_the_place_twice(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\n{"a": }\n')
    ((number, error),) = scan_jsonl(path)
    assert number == 2
    assert isinstance(error, RowError)
    assert str(error) == f"{path}:2: {error.problem}"
    assert error.problem.endswith("; each line must be one JSON object")
    assert "(line" not in error.problem
    for text, problem in [
        ('{"a": 1, "a": 1}', "key 'a' stands there twice"),
        ("[" * 100_000, "nested too deeply"),
        ('"\\ud800"', "text that is not valid Unicode"),
        ("[-Infinity]", "-Infinity is no JSON number"),
    ]:
        with pytest.raises(ValueError, match=f"^{problem}$"):
            strict_json(text)


def test_a_file_that_is_not_there_or_is_no_file_is_one_line(tmp_path: Path) -> None:
    missing, pipe = tmp_path / "nosuch", tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(InputError) as caught:
        list(read_jsonl(missing))
    assert str(caught.value) == f"{missing}: cannot be read (No such file or directory); check the path"
    with pytest.raises(InputError) as caught:
        list(scan_jsonl(pipe))
    assert str(caught.value) == f"{pipe}: cannot be read (not a regular file); check the path"
    assert [regular(path) for path in (missing, tmp_path)] == [missing, tmp_path]
    with pytest.raises(OSError, match="not a regular file") as refused:
        sha256(pipe)
    assert (refused.value.errno, refused.value.filename) == (errno.EINVAL, str(pipe))


def test_json_for_people_is_indented_and_sorted(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"b": ["ä"], "a": None})
    assert path.read_text(encoding="utf-8") == '{\n  "a": null,\n  "b": [\n    "ä"\n  ]\n}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(path, {"a": float("nan")})
    assert [child.name for child in tmp_path.iterdir()] == ["x.json"]


def test_an_error_that_names_no_file_gets_one() -> None:
    with pytest.raises(OSError, match="full") as caught, naming(Path("a")):
        raise OSError(errno.ENOSPC, "full")
    assert (caught.value.errno, caught.value.strerror, caught.value.filename) == (errno.ENOSPC, "full", "a")
    with pytest.raises(OSError, match="gone") as caught, naming(Path("a")):
        raise OSError(errno.ENOENT, "gone", "b")
    assert caught.value.filename == "b"
    with pytest.raises(OSError, match=r"^a message alone$"), naming(Path("a")):
        raise OSError("a message alone")


def test_a_disk_that_fails_to_sync_is_named_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(handle: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names alone
    with pytest.raises(OSError, match="Input/output") as caught, atomic(tmp_path / "file") as file:
        file.write(b"new")
    assert caught.value.filename == str(tmp_path / "file")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OSError, match="Input/output") as caught:
        sync_folder(tmp_path)
    assert caught.value.filename == str(tmp_path)
    with pytest.raises(OSError, match="Input/output") as caught:
        make_folder(tmp_path / "new")
    assert caught.value.filename == str(tmp_path / "new")
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_what_is_written_is_synced_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, synced = tmp_path / "file", []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append((os.fstat(handle).st_size, path.exists())))
    with atomic(path) as file:
        file.write(b"0123456789")
        names = [child.name for child in tmp_path.iterdir()]
    assert synced[0] == (10, False)
    assert [there for _, there in synced[1:]] == [True]
    assert names == [f".file.{os.getpid()}.tmp"]


def test_only_what_atomic_was_writing_is_cleared(tmp_path: Path) -> None:
    for name in (".a.jsonl.17.tmp", ".a.tmp", "a.17.tmp", ".a.17.tmp.more", ".a.seventeen.tmp"):
        (tmp_path / name).touch()
    (tmp_path / ".folder.17.tmp").mkdir()
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / ".a.17.tmp").touch()
    clear(tmp_path)
    left = {".a.tmp", "a.17.tmp", ".a.17.tmp.more", ".a.seventeen.tmp", ".folder.17.tmp", "below"}
    assert {path.name for path in tmp_path.iterdir()} == left
    assert (tmp_path / "below" / ".a.17.tmp").exists()
    clear(tmp_path / "nosuch")


def test_names_of_new_folders_are_synced_in_those_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    folder = tmp_path / "one" / "two" / "three"
    make_folder(folder)
    assert {tmp_path.stat().st_ino, *((tmp_path / name).stat().st_ino for name in ("one", "one/two"))} == set(synced)
    synced.clear()
    make_folder(folder)  # another process may have made it, and been killed before it synced
    assert synced == [folder.parent.stat().st_ino]


@pytest.mark.parametrize("another", [False, True])
def test_who_held_a_folder_that_is_gone_says_so_at_the_end(tmp_path: Path, another: bool) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with (
        pytest.raises(RunError, match="^the run: it was removed, .* run again"),
        held_alone(folder / "lock", Path("the run")),
    ):
        shutil.rmtree(folder)
        if another:
            folder.mkdir()
            (folder / "lock").touch()
    folder.mkdir(exist_ok=True)
    with pytest.raises(KeyError), held_alone(folder / "lock", Path("the run")):
        shutil.rmtree(folder)
        raise KeyError  # why the work failed counts more


def test_a_lock_says_who_holds_it_and_is_empty_afterwards(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("something longer than what will stand there: " + "x" * 200)
    with held_alone(lock, Path("run")):
        assert lock.read_text() == f"process {os.getpid()} on {platform.node()}\n"
        with pytest.raises(RunError) as caught, held_alone(lock, Path("run")):
            pass
        holder = f"process {os.getpid()} on {platform.node()}"
        assert str(caught.value) == f"run: {holder} is writing to it; wait until it is done or stop it"
    assert lock.read_text() == ""
    with held_alone(lock, Path("run")):
        pass


def test_who_takes_a_lock_is_waited_for_half_a_second_to_say_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, slept = tmp_path / "lock", []
    monkeypatch.setattr(time, "sleep", slept.append)
    with lock.open("a+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="^run: another process is writing to it;"), held_alone(lock, Path("run")):
            pass
        assert slept == [0.01] * 50

        def names_itself(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 3:
                lock.write_text("\n " + "y" * 100 + " \n")

        slept.clear()
        monkeypatch.setattr(time, "sleep", names_itself)
        with pytest.raises(RunError, match=f"^run: {'y' * 79}… is writing to it;"), held_alone(lock, Path("run")):
            pass
        assert len(slept) == 3

        def lets_go(seconds: float) -> None:
            fcntl.flock(other, fcntl.LOCK_UN)

        lock.write_text("")
        monkeypatch.setattr(time, "sleep", lets_go)
        with held_alone(lock, Path("run")):
            pass


def test_a_lock_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.symlink_to("/dev/full")
    with pytest.raises(OSError, match="Invalid argument") as caught, held_alone(lock, Path("run")):
        pass
    assert caught.value.filename == str(lock)


def test_home_folders_become_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.setenv("HOME", str(tmp_path / "link"))
    assert private([f"{tmp_path}/link/x", (f"{tmp_path}/real", 3)]) == ["~/x", ["~", 3]]
    for beside in ("linked/x", "link.old/x", "link-2"):
        assert private(f"{tmp_path}/{beside}") == f"{tmp_path}/{beside}"
    assert private({f"{tmp_path}/link": f"see {tmp_path}/link, there"}) == {"~": "see ~, there"}
    monkeypatch.setenv("HOME", "/")
    assert private("/a/b and /") == "/a/b and /"


def test_switches_and_empty_values_under_a_secrets_name_stay() -> None:
    shown = private({"token": True, "password": "", "secret": None, "api_key": False, "credentials": 1})
    assert shown == {"token": True, "password": "", "secret": None, "api_key": False, "credentials": "(hidden)"}


@pytest.mark.parametrize("lets_go", [False, True], ids=["names itself late", "lets go"])
def test_a_holder_that_is_not_named_yet_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lets_go: bool
) -> None:
    lock = tmp_path / "lock"
    with lock.open("w") as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)

        def meanwhile(seconds: float) -> None:
            fcntl.flock(holder, fcntl.LOCK_UN) if lets_go else lock.write_text("process 7 on here\n")

        monkeypatch.setattr("pipeline.files.time.sleep", meanwhile)
        if lets_go:
            with held_alone(lock, tmp_path):
                assert lock.read_text().startswith(f"process {os.getpid()} on ")
        else:
            with pytest.raises(RunError, match="process 7 on here is writing to it"), held_alone(lock, tmp_path):
                pass
