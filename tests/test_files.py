"""JSONL, digests and atomic writes."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.files import (
    InputError,
    RunError,
    atomic,
    canonical_json,
    digest,
    held_alone,
    plain,
    read_jsonl,
    scan_jsonl,
    strict_json,
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
