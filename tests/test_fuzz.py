"""Every reader, given anything: a value, or the error that it says it raises; and what a writer wrote is read back.

`NIGHTLY=1 python -m pytest tests/test_fuzz.py` tries 10,000 examples of each.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import envelopes, labels, outputs, parse, responses, revocations, sources
from pipeline.config import load, read_yaml
from pipeline.files import InputError, RunError, canonical_json, scan_jsonl, strict_json
from pipeline.records import Example, TrainingRow
from pipeline.responses import Stored
from pipeline.teachers.replay import recorded
from tests.counting import counted

tried = settings(
    max_examples=10_000 if os.environ.get("NIGHTLY") else 50,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(autouse=True)
def counted_at_the_end(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    counted(f"examples by hypothesis, {request.node.name.removeprefix('test_').replace('_', ' ')}", tried.max_examples)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
LIKELY = st.lists(
    st.sampled_from(
        [
            b"{",
            b"}",
            b"[",
            b"]",
            b'"',
            b":",
            b",",
            b"\n",
            b"\r",
            b"\x00",
            b"\\ud800",
            b"NaN",
            b"1e999",
            b"\xef\xbb\xbf",
            b"\xff",
            b'"id"',
            b'"completion"',
            b'"text"',
            b"null",
            b"true",
            b"-1",
            b"\xe2\x80\xa8",
        ]
    ),
    max_size=40,
).map(b"".join)
BYTES = (
    st.binary(max_size=200)
    | LIKELY
    | st.dictionaries(st.sampled_from(["id", "completion", "prompt_tokens", "kind"]), JSON).map(canonical_json)
)
TEXT = st.text(max_size=60) | st.text(alphabet="{}[]:-,&*!|>'\"#%@<= \n\tab1\0", max_size=60)


def one_line(error: Exception) -> None:
    assert str(error) and "\n" not in str(error)


@tried
@given(BYTES)
def test_json(content: bytes) -> None:
    try:
        value = strict_json(content)
    except ValueError:
        return
    assert strict_json(canonical_json(value)) == value


@tried
@given(TEXT)
def test_yaml(text: str) -> None:
    try:
        read_yaml(text, "stages.yaml", mapping=False)
    except InputError as error:
        one_line(error)


@tried
@given(JSON | TEXT)
def test_settings(tmp_path: Path, value: object) -> None:
    """Any value anywhere in the settings."""
    path = tmp_path / "stages.yaml"
    path.write_text(value if isinstance(value, str) else json.dumps(value), errors="replace")
    for overrides in ([], [f"dedup.near={json.dumps(value)}"]):
        try:
            load(path, overrides)
        except InputError as error:
            one_line(error)


@tried
@given(BYTES)
def test_jsonl(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    for _, row in scan_jsonl(path):
        if isinstance(row, InputError):
            one_line(row)


@tried
@given(BYTES | st.text(alphabet='ab,"\r\n\0;', max_size=60).map(str.encode))
def test_csv(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    try:
        for _, row in sources.read(path):
            assert isinstance(row, dict | InputError)
    except InputError as error:
        one_line(error)


@tried
@given(BYTES)
def test_recordings(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "completions.jsonl"
    path.write_bytes(content)
    try:
        recorded(path)
    except InputError as error:
        one_line(error)


@tried
@given(BYTES)
def test_manifests(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(RunError) as caught:
        outputs.read_manifest_file(path)
    one_line(caught.value)


@tried
@given(BYTES)
def test_revocations(tmp_path: Path, content: bytes) -> None:
    (tmp_path / revocations.FILE).write_bytes(content)
    try:
        revocations.read(tmp_path)
    except InputError as error:
        one_line(error)


@tried
@given(BYTES)
def test_envelopes(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.dsse.json"
    path.write_bytes(content)
    with pytest.raises(RunError) as caught:
        envelopes.read(path)
    one_line(caught.value)


@tried
@given(BYTES)
def test_the_response_store(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "segment-00000.jsonl").write_bytes(content)
    try:
        list(responses.read_store(tmp_path))
    except RunError as error:
        one_line(error)


@tried
@given(st.text(), st.text(), st.integers(0, 2**31))
def test_stored_records_are_read_back(tmp_path: Path, text: str, reason: str, tokens: int) -> None:
    name = "0" * 32
    record = Stored(
        key=name, family=name, max_tokens=5, finish_reason=reason, teacher="t", identity=name, prompt=name, sampling={},
        seed=0, sample=0, prompt_tokens=tokens, completion_tokens=tokens, text=text,
    )  # fmt: skip
    (tmp_path / "segment-00000.jsonl").write_bytes(responses.encoded(record))
    assert [one for _, _, one in responses.read_store(tmp_path)] == [record]


@tried
@given(BYTES)
def test_rows(content: bytes) -> None:
    for record in (TrainingRow, Example):
        try:
            row = record.read(content)
        except msgspec.DecodeError:
            continue
        assert record.read(row.line()) == row


@tried
@given(
    st.text() | st.text(alphabet="0123456789.,+-*/()= $ab"), st.sampled_from(["text", "choice", "number", "equation"])
)
def test_labels(text: str, kind: labels.LabelType) -> None:
    said = labels.normalise(text, kind, ["sports", "food"], None)
    assert said is None or said
    labels.value(text, kind)
    labels.key(text, kind)


@tried
@given(st.text(max_size=30) | st.text(alphabet="(?P<label>)[]*+.\\{}|^$", max_size=40), st.text(max_size=30))
def test_patterns(pattern: str, text: str) -> None:
    try:
        parse.checked_pattern(pattern)
    except ValueError as error:
        one_line(error)
    else:
        parse.spans(text, pattern=pattern)
