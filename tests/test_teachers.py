"""The backends: what each asks, how it fails, and what of it counts for a request's key. The engine runs in test_sample.py."""

import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline import teachers
from pipeline.files import InputError, RunError
from pipeline.prompts import Message, Messages
from pipeline.teachers import Answer, Failure, Replay, Request, Server, TeacherSettings, Vllm
from tests.chat_server import Reply, chat_server, completion, echo

SAMPLING: dict[str, Any] = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 20, "stop": [], "regex": None}


def request(name: str, sample: int = 0, prefix: str = "") -> Request:
    messages = Messages(
        messages=[Message(role="system", content="s"), Message(role="user", content=name)], assistant_prefix=prefix
    )
    return Request(f"{name}#{sample}", name, "", sample, 40 + sample, messages)


def server(url: str, **settings: Any) -> Server:
    return Server(**{"backend": "server", "base_url": url, "model": "m", "pause": 0.01, "retries": 3, **settings})


def ask(settings: TeacherSettings, requests: list[Request], **sampling: Any) -> list[Answer | Failure]:
    with teachers.connect(settings, {**SAMPLING, **sampling}) as teacher:
        return teacher(requests)


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


def test_the_server_is_asked_in_its_own_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", "sk-1234")
    with chat_server() as chat:
        found = ask(
            server(chat.url, api_key_env="TEACHER_KEY"),
            [request("a", prefix="The text")],
            stop=["\n"],
            regex="(x|y)",
            top_k=5,
        )
        assert found == [Answer("about The text (40)", "stop", 7, 4)]
        assert chat.headers[0]["path"] == "/v1/chat/completions"
        assert chat.headers[0]["Authorization"] == "Bearer sk-1234"
        assert chat.requests[0] == {
            "model": "m",
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "The text"},
            ],
            "temperature": 0.5,
            "top_p": 0.9,
            "max_tokens": 20,
            "seed": 40,
            "top_k": 5,
            "stop": ["\n"],
            "structured_outputs": {"regex": "(x|y)"},
            "add_generation_prompt": False,
            "continue_final_message": True,
        }


def test_answers_come_in_the_order_of_the_requests_and_no_more_run_at_once_than_allowed() -> None:
    pairs = threading.Barrier(2)

    def in_pairs(body: dict[str, Any]) -> Reply:
        pairs.wait(30)
        return echo(body)

    with chat_server(in_pairs) as chat:
        requests = [request(f"r{number}") for number in range(60)]
        found = ask(server(chat.url, concurrency=4), requests)
        assert [answer.text for answer in found if isinstance(answer, Answer)] == [
            f"about r{n} (40)" for n in range(60)
        ]
        assert 1 < chat.at_once <= 4


def test_a_busy_server_is_asked_again() -> None:
    replies: list[Reply] = [
        (503, {}, b""),
        (429, {"Retry-After": "0"}, b"slow down"),
        (500, {"Retry-After": "soon"}, b""),
    ]

    def reply(body: dict[str, Any]) -> Reply:
        return replies.pop() if replies else echo(body)

    with chat_server(reply) as chat:
        assert ask(server(chat.url), [request("a")]) == [Answer("about a (40)", "stop", 7, 3)]
        assert len(chat.requests) == 4


def test_one_row_that_fails_is_a_failure_of_that_row() -> None:
    def reply(body: dict[str, Any]) -> Reply:
        return {
            "long": (400, {}, b'{"error": "maximum context length"}'),
            "broken": (503, {}, b"down"),
            "garbage": (200, {}, b"<html>"),
            "empty": (
                200,
                {},
                json.dumps({"choices": [{"message": {"content": None}, "finish_reason": "tool_calls"}]}).encode(),
            ),
            "surrogate": (200, {}, rb'{"choices": [{"message": {"content": "\ud800"}, "finish_reason": "stop"}]}'),
        }.get(body["messages"][-1]["content"], completion("fine"))

    names = ["long", "good", "broken", "garbage", "empty", "surrogate"]
    with chat_server(reply) as chat:
        found = ask(server(chat.url), [request(name) for name in names])
        assert [answer.reason if isinstance(answer, Failure) else answer.text for answer in found] == [
            "refused", "fine", "server_error", "unreadable_answer", "no_text", "unreadable_answer",
        ]  # fmt: skip
        assert isinstance(found[0], Failure)
        assert found[0].evidence["status"] == 400
        assert "maximum context length" in str(found[0].evidence["problem"])
        assert isinstance(found[2], Failure)
        assert found[2].evidence["tries"] == 4


def test_a_server_that_is_not_there_stops_the_run() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(RunError, match="no request could be delivered"):
        ask(server(url, retries=1), [request("a"), request("b")])


def test_a_key_or_model_that_the_server_refuses_stops_the_run() -> None:
    with chat_server(lambda body: (401, {}, b"who are you")) as chat:
        with pytest.raises(InputError, match="401: who are you"):
            ask(server(chat.url, concurrency=2), [request(f"r{number}") for number in range(50)])
        assert len(chat.requests) < 50  # the others were not sent for nothing


def test_the_key_is_named_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with pytest.raises(InputError, match="TEACHER_KEY is not set"):
        ask(server("http://127.0.0.1:1/v1", api_key_env="TEACHER_KEY"), [request("a")])
    for url in ("http://user:secret@host/v1", "http://host/v1?key=secret", "host:80", "ftp://host"):
        with pytest.raises(ValidationError) as error:
            server(url)
        assert "secret@" not in str(error.value)
        assert "key=secret" not in str(error.value)


@pytest.mark.parametrize("name", ["n", "seed", "stream", "logprobs", "structured_outputs"])
def test_sampling_parameters_with_a_place_of_their_own_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"sampling\.{name}: cannot be set here"):
        ask(server("http://127.0.0.1:1/v1"), [request("a")], **{name: 1})


def test_a_server_with_a_revision_is_known_by_it() -> None:
    one, other = "http://one/v1", "http://other/v1"
    assert teachers.identity(server(one)) != teachers.identity(server(other))
    assert teachers.identity(server(one, revision="a")) == teachers.identity(server(other, revision="a", timeout=5.0))
    assert teachers.identity(server(one, revision="a")) != teachers.identity(server(one, revision="b"))


def checkpoint(folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        (folder / name).write_text(name)
    return folder


def test_a_local_model_is_known_by_its_files(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    settings = Vllm(backend="vllm", model=str(folder), engine={"dtype": "bfloat16"})
    before = teachers.identity(settings)
    assert teachers.identity(settings.model_copy(update={"model": str(checkpoint(tmp_path / "copy"))})) == before
    (folder / "README.md").write_text("notes")
    faster = settings.model_copy(update={"engine": {"dtype": "bfloat16", "max_num_seqs": 8, "enforce_eager": True}})
    assert teachers.identity(faster) == before
    assert teachers.identity(settings.model_copy(update={"engine": {"dtype": "float32"}})) != before
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        (folder / name).write_text("other")
        changed = teachers.identity(settings)
        assert changed != before
        before = changed


def test_a_hub_model_is_known_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    settings = Vllm(backend="vllm", model="org/model")
    with pytest.raises(InputError, match="not in the local cache"):
        teachers.identity(settings)
    references = tmp_path / "models--org--model" / "refs"
    references.mkdir(parents=True)
    (references / "main").write_text("a" * 40)
    assert teachers.identity(settings)["model"] == {"repository": "org/model", "revision": "a" * 40}
    pinned = settings.model_copy(update={"revision": "b" * 40})
    assert teachers.identity(pinned)["model"] == {"repository": "org/model", "revision": "b" * 40}


@pytest.mark.parametrize(
    ("model", "revision", "problem"),
    [
        ("./nosuch", None, "no such folder"),
        ("/nosuch", None, "no such folder"),
        ("a b", None, "neither a folder nor"),
        ("org/model", "../../secret", "not the name of a branch"),
        ("embedded", "main", "only a hub repository has revisions"),
    ],
)
def test_models_that_cannot_be_found(model: str, revision: str | None, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        teachers.identity(Vllm(backend="vllm", model=model, revision=revision))


@pytest.mark.parametrize(
    ("engine", "problem"),
    [
        ({"trust_remote_code": True}, "is never run"),
        ({"hf_token": "x"}, "no place for secrets"),
        ({"model": "x"}, "beside 'engine'"),
    ],
)
def test_engine_settings_that_are_not_for_the_user(tmp_path: Path, engine: dict[str, Any], problem: str) -> None:
    settings = Vllm(backend="vllm", model=str(checkpoint(tmp_path / "model")), engine=engine)
    with pytest.raises(InputError, match=problem):
        ask(settings, [])


@pytest.mark.slow
def test_names_and_values_that_vllm_does_not_know_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    settings = Vllm(backend="vllm", model=str(checkpoint(tmp_path / "model")))
    misspelt = settings.model_copy(update={"engine": {"enforce_eagr": True}})
    with pytest.raises(InputError, match=r"engine\.enforce_eagr: unknown engine setting; did you mean 'enforce_eager'"):
        ask(misspelt, [])
    with pytest.raises(InputError, match=r"sampling\.repetition_penalti: unknown .*did you mean 'repetition_penalty'"):
        ask(settings, [], repetition_penalti=1.1)
    with pytest.raises(InputError, match=r"refuses the sampling parameters: .*repetition_penalty"):
        ask(settings, [], repetition_penalty=-1.0)
    with pytest.raises(InputError, match="refuses these settings"):
        ask(Vllm(backend="vllm", model="embedded", engine={"dtype": "float17"}), [])
    assert "VLLM_LOGGING_LEVEL" in os.environ
