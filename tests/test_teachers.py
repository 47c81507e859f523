"""The backends: what each asks, how it fails, and what of it counts for a request's key. The server is in test_server.py."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline import teachers
from pipeline.files import InputError
from pipeline.prompts import Message, Messages
from pipeline.teachers import Answer, Failure, Replay, Request, TeacherSettings, Vllm

SAMPLING: dict[str, Any] = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 20, "stop": [], "structured": None}


def request(name: str, sample: int = 0) -> Request:
    messages = Messages(messages=[Message(role="user", content=name)], assistant_prefix="")
    return Request(
        key=f"{name}#{sample}",
        family=name,
        prompt_id=name,
        prompt_digest="",
        sample=sample,
        seed=40 + sample,
        sampling=SAMPLING,
        messages=messages,
    )


def ask(settings: TeacherSettings, requests: list[Request], **sampling: Any) -> list[Answer | Failure]:
    """The results, in the order of the requests."""
    with teachers.connect(settings, {**SAMPLING, **sampling}) as teacher:
        found = {asked.key: result for asked, result in teacher(iter(requests))}
    return [found[asked.key] for asked in requests]


def recording(folder: Path, *lines: str) -> Replay:
    path = folder / "completions.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return Replay(backend="replay", completions=path, name="palm")


def test_settings_are_told_apart_by_their_backend() -> None:
    settings = TypeAdapter(TeacherSettings)
    assert isinstance(settings.validate_python({"backend": "vllm", "model": "embedded"}), Vllm)
    assert isinstance(settings.validate_python({"backend": "replay", "completions": "a.jsonl"}), Replay)
    with pytest.raises(ValidationError, match="vlm"):
        settings.validate_python({"backend": "vlm", "model": "embedded"})


def test_replay_answers_by_id_and_sample(tmp_path: Path) -> None:
    settings = recording(tmp_path, '{"id": "a", "completion": "one"}', '{"id": "b", "completion": ["two", "three"]}')
    requests = [request("b", 1), request("a"), request("a", 1), request("b"), request("c")]
    found = ask(settings, requests)
    assert [answer.text if isinstance(answer, Answer) else answer.reason for answer in found] == [
        "three", "one", "no_completion", "two", "no_completion",
    ]  # fmt: skip
    assert isinstance(found[0], Answer)
    assert found[0].finish_reason == "recorded"
    assert teachers.name(settings) == "palm"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"id": "a", "completion": "again"}', r"completions\.jsonl:2: id: 'a' stands in line 1 already"),
        ('{"id": 7, "completion": "x"}', r":2: id: expected text"),
        ('{"id": "b"}', r":2: completion: expected text"),
        ('{"id": "b", "completion": ["x", 1]}', r":2: completion: expected text"),
        ('{"id": "b", "completion": ', r":2: "),
    ],
)
def test_replay_refuses_what_it_cannot_use(tmp_path: Path, line: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        ask(recording(tmp_path, '{"id": "a", "completion": "one"}', line), [request("a")])


def test_replay_is_known_by_its_content(tmp_path: Path) -> None:
    settings = recording(tmp_path, '{"id": "a", "completion": "one"}')
    before = teachers.identity(settings)
    (tmp_path / "copy").mkdir()
    assert teachers.identity(recording(tmp_path / "copy", '{"id": "a", "completion": "one"}')) == before
    assert teachers.identity(recording(tmp_path, '{"id": "a", "completion": "two"}')) != before
    with pytest.raises(InputError, match=r"nosuch\.jsonl: cannot be read"):
        teachers.identity(Replay(backend="replay", completions=tmp_path / "nosuch.jsonl", name="palm"))
