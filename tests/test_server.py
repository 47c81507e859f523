"""The server backend: what it sends, what it makes of answers and refusals, how it paces itself and stops."""

import asyncio
import json
import logging
import math
import os
import queue
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline import teachers
from pipeline.files import InputError, RunError
from pipeline.prompts import Message, Messages
from pipeline.teachers import Answer, Failure, Request, Server
from pipeline.teachers.completions import Token, label_logprobs
from tests.chat_server import Reply, chat_server, completion, echo

SAMPLING: dict[str, Any] = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 20, "stop": [], "structured": None}
KEY = "sk-1234/5678+abcdefgh"


def request(name: str, sample: int = 0, prefix: str = "", **sampling: Any) -> Request:
    messages = Messages(
        messages=[Message(role="system", content="s"), Message(role="user", content=name)], assistant_prefix=prefix
    )
    return Request(
        key=f"{name}#{sample}",
        family=name,
        prompt_id=name,
        prompt_digest="",
        sample=sample,
        seed=40 + sample,
        sampling={**SAMPLING, **sampling},
        messages=messages,
    )


def server(url: str, **settings: Any) -> Server:
    return Server(**{"backend": "server", "base_url": url, "model": "m", "pause": 0.01, "retries": 3, **settings})


def ask(settings: Server, requests: list[Request]) -> list[Answer | Failure]:
    """The results in the order of the requests; each came once."""
    with teachers.connect(settings, requests[0].sampling) as teacher:
        found = list(teacher(iter(requests)))
    assert Counter(one.key for one, _ in found) == Counter(one.key for one in requests)
    by_key = {one.key: result for one, result in found}
    return [by_key[one.key] for one in requests]


def said(found: list[Answer | Failure]) -> list[str]:
    return [result.text if isinstance(result, Answer) else result.reason for result in found]


def user(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def changed(**answer: Any) -> Reply:
    """An answer with other fields."""
    _, headers, content = completion("fine")
    return 200, headers, json.dumps({**json.loads(content), **answer}).encode()


# What is sent


def test_the_server_is_asked_in_its_own_terms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    with chat_server() as chat:
        asked = request("a", prefix="The text", stop=["\n"], structured={"regex": "(x|y)"}, top_k=5)
        found = ask(server(chat.url, api_key_env="TEACHER_KEY"), [asked])
        assert found == [Answer("about The text (40)", "stop", 7, 4)]
        assert chat.headers[0]["path"] == "/v1/chat/completions"
        assert chat.headers[0]["Authorization"] == f"Bearer {KEY}"
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


def test_completions_are_asked_with_one_text() -> None:
    answer = {"choices": [{"index": 0, "text": " it is", "finish_reason": "length"}], "usage": {"prompt_tokens": 3}}
    with chat_server(lambda body: (200, {}, json.dumps(answer).encode())) as chat:
        found = ask(server(chat.url, api="completions"), [request("a", prefix=" so")])
        assert found == [Answer(" it is", "length", 3, 0)]
        assert chat.headers[0]["path"] == "/v1/completions"
        assert chat.requests[0]["prompt"] == "sa so"
        assert not {"messages", "continue_final_message"} & set(chat.requests[0])


SCHEMA = {"type": "object", "properties": {"label": {"type": "string"}}}


@pytest.mark.parametrize("api", ["chat", "completions"])
@pytest.mark.parametrize(
    ("structured", "sent"),
    [
        (None, {}),
        ({"regex": "a+"}, {"structured_outputs": {"regex": "a+"}}),
        ({"choice": ["a", "b"]}, {"structured_outputs": {"choice": ["a", "b"]}}),
        (
            {"json": SCHEMA},
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True},
                }
            },
        ),
    ],
)
def test_a_form_is_sent_as_servers_know_it(api: str, structured: Any, sent: dict[str, Any]) -> None:
    with chat_server(lambda body: completion("fine")) as chat:
        ask(server(chat.url, api=api), [request("a", structured=structured)])
        assert {name: chat.requests[0].get(name) for name in ("structured_outputs", "response_format")} == {
            "structured_outputs": None,
            "response_format": None,
            **sent,
        }


@pytest.mark.parametrize(
    ("api", "wanted", "sent"),
    [
        ("chat", {}, {}),
        ("chat", {"logprobs": True}, {"logprobs": True}),
        ("chat", {"soft_labels": {"after": "", "labels": ["a"]}}, {"logprobs": True, "top_logprobs": 20}),
        ("completions", {"logprobs": True}, {"logprobs": 1}),
        ("completions", {"logprobs": True, "soft_labels": {"after": "", "labels": ["a"]}}, {"logprobs": 20}),
    ],
)
def test_log_probabilities_are_asked_for_where_they_are_wanted(
    api: str, wanted: dict[str, Any], sent: dict[str, Any]
) -> None:
    with chat_server(lambda body: completion("fine")) as chat:
        ask(server(chat.url, api=api), [request("a", **wanted)])
        names = ("logprobs", "top_logprobs", "soft_labels")
        assert {name: chat.requests[0][name] for name in names if name in chat.requests[0]} == sent


@pytest.mark.parametrize(
    "name", ["n", "seed", "stream", "structured_outputs", "top_logprobs", "response_format", "echo"]
)
def test_sampling_parameters_with_a_place_of_their_own_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"sampling\.{name}: cannot be set here"):
        ask(server("http://127.0.0.1:1/v1"), [request("a", **{name: 1})])


# What answers are taken for


def test_one_row_that_fails_is_a_failure_of_that_row() -> None:
    def reply(body: dict[str, Any]) -> Reply:
        return {
            "long": (400, {}, b'{"error": "maximum context length"}'),
            "broken": (503, {}, b"down"),
            "garbage": (200, {}, b"<html>"),
            "moved": (307, {"Location": "http://elsewhere/v1"}, b""),
            "filtered": changed(choices=[{"message": {"content": "half"}, "finish_reason": "content_filter"}]),
            "called": changed(choices=[{"message": {"content": None}, "finish_reason": "tool_calls"}]),
            "silent": changed(choices=[{"message": {"content": None}, "finish_reason": "stop"}]),
            "open": changed(choices=[{"message": {"content": "so"}}]),
            "surrogate": (200, {}, rb'{"choices": [{"message": {"content": "\ud800"}, "finish_reason": "stop"}]}'),
            "another": changed(model="m-mini"),
        }.get(user(body), completion("fine"))

    names = "long good broken garbage moved filtered called silent open surrogate another good2".split()
    with chat_server(reply) as chat:
        found = ask(server(chat.url), [request(name) for name in names])
    reasons = dict(zip(names, said(found), strict=True))
    assert reasons == {
        "long": "refused",
        "good": "fine",
        "broken": "server_error",
        "garbage": "unreadable_answer",
        "moved": "refused",
        "filtered": "not_finished",
        "called": "not_finished",
        "silent": "no_text",
        "open": "not_finished",
        "surrogate": "unreadable_answer",
        "another": "other_model",
        "good2": "fine",
    }
    evidence = {name: result.evidence for name, result in zip(names, found, strict=True) if isinstance(result, Failure)}
    assert evidence["long"]["status"] == 400
    assert "maximum context length" in str(evidence["long"]["problem"])
    assert evidence["broken"]["tries"] == 4
    assert evidence["moved"]["problem"] == "redirects to http://elsewhere/v1"
    assert evidence["filtered"]["finish_reason"] == "content_filter"
    assert "half" in str(evidence["filtered"]["answer"])
    json.dumps(evidence, ensure_ascii=False).encode()  # what is written to a row's drop must be text


@pytest.mark.parametrize(
    ("word", "meant"),
    [("stop", "stop"), ("eos_token", "stop"), ("end_turn", "stop"), ("length", "length"), ("max_tokens", "length")],
)
def test_an_end_is_known_by_other_words_too(word: str, meant: str) -> None:
    with chat_server(lambda body: completion("fine", word)) as chat:
        (found,) = ask(server(chat.url), [request("a")])
    assert isinstance(found, Answer)
    assert found.finish_reason == meant


def test_what_was_used_is_counted_for_failures_too() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
    with chat_server(lambda body: changed(usage=usage, **({"choices": []} if user(body) == "none" else {}))) as chat:
        found = ask(server(chat.url), [request("none"), request("a")])
    assert [(type(one), one.prompt_tokens, one.completion_tokens) for one in found] == [(Failure, 9, 5), (Answer, 9, 5)]
    assert isinstance(found[1], Answer)
    assert found[1].cached_tokens == 4


@pytest.mark.parametrize(
    ("asked", "answers_as", "answered", "right"),
    [
        ("gpt-4o", None, "gpt-4o-2024-08-06", True),
        ("gpt-4o", None, "gpt-4o-mini", False),
        ("org/Model-7B", None, "model-7b", True),
        ("model", None, "/models/model.gguf", True),
        ("large-latest", None, "large-2407", True),
        ("large-2407", None, "large-2411", False),
        ("m", None, "mm", False),
        ("mine", "theirs", "theirs", True),
        ("mine", "theirs", "mine", False),
    ],
)
def test_an_answer_of_another_model_is_a_failure(
    asked: str, answers_as: str | None, answered: str, right: bool
) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        return completion("fine") if user(body) == "first" else changed(model=answered)

    with chat_server(reply) as chat:
        found = ask(
            server(chat.url, model=asked, answers_as=answers_as, concurrency=1), [request("first"), request("a")]
        )
    assert said(found) == ["fine", "fine" if right else "other_model"]


def test_a_server_with_only_another_model_stops_the_run_and_says_what_to_do() -> None:
    with chat_server(lambda body: changed(model="theirs")) as chat:
        with pytest.raises(InputError, match="set answers_as: theirs"):
            ask(server(chat.url), [request(f"r{number}") for number in range(99)])
        assert len(chat.requests) < 40


# Log-probabilities


def as_chat(*tokens: tuple[str, float, dict[str, float]]) -> dict[str, Any]:
    content = [
        {"token": text, "logprob": value, "top_logprobs": [{"token": a, "logprob": b} for a, b in top.items()]}
        for text, value, top in tokens
    ]
    text = "".join(text for text, _, _ in tokens)
    choice = {"message": {"content": text}, "finish_reason": "stop", "logprobs": {"content": content}}
    return {"choices": [choice]}


def as_completion(*tokens: tuple[str, float, dict[str, float]]) -> dict[str, Any]:
    texts, values, tops = zip(*tokens, strict=True)
    logprobs = {"tokens": texts, "token_logprobs": values, "top_logprobs": tops, "text_offset": [0] * len(texts)}
    return {"choices": [{"text": "".join(texts), "finish_reason": "stop", "logprobs": logprobs}]}


@pytest.mark.parametrize(("api", "build"), [("chat", as_chat), ("completions", as_completion)])
def test_the_mean_and_the_labels_are_read_from_either_protocol(api: str, build: Any) -> None:
    tokens = [
        ("So", -0.1, {"So": -0.1}),
        (" it is", -0.3, {" it is": -0.3}),
        (" food", -0.5, {" food": -0.5, " sports": -1.5, " Food": -2.0, "food": -3.0}),
        (".", -0.1, {".": -0.1}),
    ]
    wanted = {"logprobs": True, "soft_labels": {"after": "it is ", "labels": ["sports", "food", "arts"]}}
    with chat_server(lambda body: changed(**build(*tokens))) as chat:
        (found,) = ask(server(chat.url, api=api), [request("a", **wanted)])
    assert isinstance(found, Answer)
    assert found.mean_logprob == pytest.approx(-0.25)
    assert found.label_logprobs == pytest.approx({"food": math.log(math.exp(-0.5) + math.exp(-3)), "sports": -1.5})


@pytest.mark.parametrize(
    "logprobs",
    [
        None,
        [],
        {"content": None},
        {"content": [{"token": "a", "logprob": 2.0}]},
        {"tokens": ["a"], "token_logprobs": []},
    ],
)
def test_log_probabilities_that_cannot_be_are_unknown(logprobs: Any) -> None:
    choice = {"message": {"content": "a"}, "finish_reason": "stop", "logprobs": logprobs}
    wanted = {"logprobs": True, "soft_labels": {"after": "", "labels": ["a", "b"]}}
    with chat_server(lambda body: changed(choices=[choice])) as chat:
        (found,) = ask(server(chat.url), [request("a", **wanted)])
    assert found == Answer("a", "stop", 7, 1)


def token(text: str, value: float = -1.0, **others: float) -> Token:
    return Token(text, value, {text: value, **{name.replace("_", " "): other for name, other in others.items()}})


def test_a_label_that_another_begins_with_is_told_by_the_next_token() -> None:
    labels = ["food", "food & drink", "sports"]
    first = token(" food", -1.0, _sports=-2.0)
    assert label_logprobs([first, token(" &", -0.25, **{".": -2.0})], " food &", "", labels) == pytest.approx(
        {"sports": -2.0, "food & drink": -1.25, "food": -3.0}
    )
    assert label_logprobs([first], " food", "", labels) == {"sports": -2.0, "food": -1.0}


def test_labels_with_the_same_first_token_are_told_by_the_next_one() -> None:
    tokens = [token(" s", -0.5, b=-3.0), token("port", -0.25, cience=-1.0, x=-2.0), token("s", -0.1)]
    found = label_logprobs(tokens, " sports", "", ["sports", "science", "business"])
    assert found == pytest.approx({"sports": -0.75, "science": -1.5, "business": -3.0})


@pytest.mark.parametrize(
    ("texts", "after", "expected"),
    [
        (["It is ", "a. It is ", "b"], "It is ", {"b": -1.0}),  # the last one
        (['{"label": "', "b", '"}'], '"label": "', {"b": -1.0}),
        (['{"label":', ' "b', '"}'], '"label": "', {"b": -1.0}),  # the token begins within `after`
        (["Itis", "b"], "It is ", {"b": -1.0}),  # a server that leaves spaces out of tokens
        (["It is ", "c"], "It is ", None),
        (["b"], "It is ", None),
        (["It is "], "It is ", None),
        (["b", "ee"], "", {"b": -1.0}),
        (["bee"], "", None),
    ],
)
def test_the_label_stands_behind_the_last_after(
    texts: list[str], after: str, expected: dict[str, float] | None
) -> None:
    text = "It is b" if texts == ["Itis", "b"] else "".join(texts)
    assert label_logprobs([token(one) for one in texts], text, after, ["a", "b"]) == expected


@given(st.dictionaries(st.text(max_size=4), st.floats(-20, 0), max_size=8), st.lists(st.text(max_size=4), max_size=5))
def test_labels_never_get_more_than_there_is(likeliest: dict[str, float], labels: list[str]) -> None:
    total = math.fsum(math.exp(value) for value in likeliest.values()) or 1.0
    likeliest = {name: value - math.log(total) for name, value in likeliest.items()} or {"a": 0.0}
    text, value = next(iter(likeliest.items()))
    found = label_logprobs([Token(text, value, likeliest)], text, "", labels) or {}
    assert set(found) <= set(labels)
    assert math.fsum(math.exp(value) for value in found.values()) <= 1 + 1e-9


# How it goes on


def test_a_request_that_is_held_back_does_not_hold_up_the_others() -> None:
    go_on = threading.Event()

    def reply(body: dict[str, Any]) -> Reply:
        if user(body) == "r0":
            assert go_on.wait(60)
        return echo(body)

    pulled = 0

    def endless() -> Iterator[Request]:
        nonlocal pulled
        while True:
            yield request(f"r{pulled}")
            pulled += 1

    with chat_server(reply) as chat, teachers.connect(server(chat.url, concurrency=3), SAMPLING) as teacher:
        results = teacher(endless())
        for answered in range(1, 50):
            asked, result = next(results)
            assert asked.prompt_id != "r0"
            assert said([result]) == [f"about {asked.prompt_id} (40)"]
            assert pulled <= answered + 3  # no further ahead than there is room
        go_on.set()
        while asked.prompt_id != "r0":
            asked, _ = next(results)
        assert 1 < chat.at_once <= 3


def test_it_can_be_asked_again_and_where_a_loop_is_running() -> None:
    async def in_a_notebook() -> list[str]:
        with chat_server() as chat, teachers.connect(server(chat.url, concurrency=2), SAMPLING) as teacher:
            return [result.text for name in "abc" for _, result in teacher(iter([request(name)]))]  # type: ignore[union-attr]

    assert asyncio.run(in_a_notebook()) == ["about a (40)", "about b (40)", "about c (40)"]


class Holding:
    """A server that answers the prompt "go" and holds all others; ``gone`` gets an item for each of them whose client went away."""

    def __init__(self) -> None:
        self.gone: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.held = threading.Semaphore(0)
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        while True:
            connection, _ = self.socket.accept()
            threading.Thread(target=self.serve, args=(connection,), daemon=True).start()

    def serve(self, connection: socket.socket) -> None:
        came = b""
        while not came.endswith(b"}"):
            came += connection.recv(4096)
        if b'"go"' in came:
            content = completion("gone on")[2]
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(content), content))
        else:
            self.held.release()
            self.gone.put(connection.recv(1))
        connection.close()


def test_closing_it_ends_what_is_under_way() -> None:
    holding = Holding()
    with teachers.connect(server(holding.url, concurrency=3), SAMPLING) as teacher:
        results = teacher(iter([request(name) for name in ("a", "b", "go", "c")]))
        assert said([next(results)[1]]) == ["gone on"]
        results.close()  # type: ignore[attr-defined]
        assert [holding.gone.get(timeout=60) for _ in "ab"] == [b"", b""]
        assert said([result for _, result in teacher(iter([request("go")]))]) == ["gone on"]
    with teachers.connect(server(holding.url, concurrency=3), SAMPLING) as teacher:
        next(teacher(iter([request("a"), request("go")])))
    assert holding.gone.get(timeout=60) == b""


def test_ctrl_c_ends_what_is_under_way() -> None:
    holding = Holding()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def interrupt() -> None:
        for _ in "ab":
            assert holding.held.acquire(timeout=60)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    try:
        with pytest.raises(KeyboardInterrupt), teachers.connect(server(holding.url), SAMPLING) as teacher:
            thread.start()
            list(teacher(iter([request("a"), request("b")])))
    finally:
        signal.signal(signal.SIGINT, before)
        thread.join()
    assert [holding.gone.get(timeout=60) for _ in "ab"] == [b"", b""]


# Trying again


@pytest.mark.parametrize(
    "retry_after", [None, "0", "0.01", "soon", "-7", "1e999", "86400", "Fri, 31 Dec 9999 23:59:59 GMT"]
)
@pytest.mark.parametrize("status", [408, 409, 429, 500, 503, 529])
def test_a_busy_server_is_asked_again(status: int, retry_after: str | None) -> None:
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    replies: list[Reply] = [(status, headers, b"")] * 2
    with chat_server(lambda body: replies.pop() if replies else echo(body)) as chat:
        settings = server(chat.url, pause=0.001, longest_pause=0.02, retries=2)
        assert ask(settings, [request("a")]) == [Answer("about a (40)", "stop", 7, 3)]
        assert len(chat.requests) == 3


def test_a_storm_costs_no_retries_and_halves_what_is_asked_at_once() -> None:
    eight, four = threading.Barrier(8), threading.Barrier(4)
    a_fifth = threading.Event()
    lock = threading.Lock()
    came = four_left = 0

    def reply(body: dict[str, Any]) -> Reply:
        nonlocal came, four_left
        with lock:
            came += 1
            number = came
        if number <= 8:
            eight.wait(60)
        elif number <= 12:
            four.wait(60)
            a_fifth.wait(0.1)  # it must not come
            with lock:
                four_left += 1
        elif not four_left:
            a_fifth.set()
        return (429, {"Retry-After": "0"}, b"slow down") if number <= 20 else completion("fine")

    with chat_server(reply) as chat:
        settings = server(chat.url, concurrency=8, retries=0, pause=0.001, longest_pause=0.01)
        found = ask(settings, [request(f"r{number}") for number in range(16)])
    assert said(found) == ["fine"] * 16
    assert not a_fifth.is_set()
    assert came == 20 + 16


def test_a_storm_without_end_is_a_failure_when_patience_ends() -> None:
    def reply(body: dict[str, Any]) -> Reply:
        return completion("fine") if user(body) == "good" else (429, {}, b"quota used up")

    with chat_server(reply) as chat:
        settings = server(chat.url, concurrency=1, retries=9, pause=0.001, longest_pause=0.01, patience=0.0)
        good, bad = ask(settings, [request("good"), request("bad")])
        assert said([good, bad]) == ["fine", "rate_limited"]
        assert isinstance(bad, Failure)
        assert bad.evidence == {"status": 429, "problem": "quota used up", "tries": 1}
        assert len(chat.requests) == 2
        # The pause that is asked for is longer than patience lasts: it is not waited for.
        settings = server(chat.url, concurrency=1, pause=1000.0, longest_pause=1000.0, patience=0.05)
        assert said(ask(settings, [request("good"), request("bad")])) == ["fine", "rate_limited"]


def test_a_storm_without_end_stops_the_run() -> None:
    def reply(body: dict[str, Any]) -> Reply:
        return completion("fine") if int(user(body)) < 10 else (429, {}, b"quota used up")

    with (
        chat_server(reply) as chat,
        teachers.connect(server(chat.url, concurrency=2, patience=0.0), SAMPLING) as teacher,
        pytest.raises(RunError, match=r"quota used up.*what was answered before is stored"),
    ):
        for number, _ in enumerate(teacher(request(f"{number}") for number in range(1000))):
            assert number < 20


def test_a_server_that_is_not_there_stops_the_run() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(RunError, match="no request could be delivered"):
        ask(server(url, retries=1), [request("a"), request("b")])
    taken = 0

    def endless() -> Iterator[Request]:
        nonlocal taken
        while True:
            taken += 1
            yield request(f"r{taken}")

    with (
        pytest.raises(RunError, match="no request could be delivered"),
        teachers.connect(server(url, retries=0, concurrency=8), SAMPLING) as teacher,
    ):
        list(teacher(endless()))
    assert taken <= 16


def test_a_server_that_goes_away_stops_the_run_in_the_end() -> None:
    def reply(body: dict[str, Any]) -> Reply:
        return completion("fine") if len(chat.requests) <= 50 else (502, {}, b"no upstream")

    with (
        chat_server(reply) as chat,
        teachers.connect(server(chat.url, retries=0, concurrency=2), SAMPLING) as teacher,
        pytest.raises(RunError, match=r"no upstream.*what was answered before is stored"),
    ):
        found = []
        for _, result in teacher(request(f"r{number}") for number in range(1000)):
            found.append(result)
    assert said(found[:49]) == ["fine"] * 49
    assert len(found) < 50 + 70


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_key_or_model_that_the_server_refuses_stops_the_run(status: int) -> None:
    with chat_server(lambda body: (status, {}, b"who are you")) as chat:
        with pytest.raises(InputError, match=f"{status}: who are you; check model, base_url and api_key_env"):
            ask(server(chat.url, concurrency=2), [request(f"r{number}") for number in range(50)])
        assert len(chat.requests) < 50  # the others were not sent for nothing


@pytest.mark.parametrize("url", ["http://127.0.0.1:1/v1\n", "http://[::1/v1", "http://host:99999/v1"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises((ValidationError, InputError)):
        ask(server(url), [request("a")])


# The key


def test_the_key_is_named_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    settings = server("http://127.0.0.1:1/v1", api_key_env="TEACHER_KEY")
    with pytest.raises(InputError, match="TEACHER_KEY is not set"):
        ask(settings, [request("a")])
    for key in (f"{KEY}\n", f"Bearer {KEY}", "sk-ü", "sk-\x00"[:-1] + "\x7f"):
        monkeypatch.setenv("TEACHER_KEY", key)
        with pytest.raises(InputError, match="a character that no key has") as refused:
            ask(settings, [request("a")])
        assert key.strip() not in str(refused.value)
    for url in ("http://user:secret@host/v1", "http://host/v1?key=secret", "host:80", "ftp://host"):
        with pytest.raises(ValidationError) as error:
            server(url)
        assert "secret@" not in str(error.value)
        assert "key=secret" not in str(error.value)


def test_the_key_is_in_no_log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    with chat_server() as chat:
        ask(server(chat.url, api_key_env="TEACHER_KEY"), [request("a")])
        assert KEY in chat.headers[0]["Authorization"]
    assert "httpcore" in caplog.text
    assert KEY not in caplog.text


def test_a_server_that_tells_the_key_does_not_get_it_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    quoted = json.dumps(KEY).replace("/", "\\/")

    def reply(body: dict[str, Any]) -> Reply:
        return {
            "refused": (400, {}, f"not with {KEY}".encode()),
            "quoted": (422, {}, f'{{"error": {quoted}}}'.encode()),
            "moved": (302, {"Location": f"http://a/?key={KEY.replace('/', '%2F').replace('+', '%2B')}"}, b""),
            "broken": (503, {}, b"x" * 280 + KEY.encode()),
            "garbage": (200, {}, b"<" + KEY.encode()),
            "twice": (200, {}, f"{{{quoted}: 1, {quoted}: 2}}".encode()),
            "model": changed(model=KEY),
            "finish": changed(choices=[{"message": {"content": "a"}, "finish_reason": KEY}]),
            "answer": completion(f"it is {KEY}"),
        }.get(user(body), completion("fine"))

    names = "refused quoted moved broken garbage twice model finish answer good".split()
    with chat_server(reply) as chat:
        found = ask(server(chat.url, api_key_env="TEACHER_KEY"), [request(name) for name in names])
    assert said(found)[-2:] == ["key_in_answer", "fine"]
    assert sum(isinstance(one, Failure) for one in found) == 9
    shown = " ".join(repr(one) for one in found)
    for part in (KEY, KEY[:10], KEY[-10:], KEY.replace("/", "%2F")[:12], KEY.replace("/", "\\/")[:12]):
        assert part not in shown

    with (
        chat_server(lambda body: (401, {}, f"no such key: {KEY}".encode())) as chat,
        pytest.raises(InputError, match=r"no such key: \[key\]"),
    ):
        ask(server(chat.url, api_key_env="TEACHER_KEY"), [request("a")])


def test_a_key_that_is_no_secret_may_stand_in_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", "EMPTY")
    with chat_server(lambda body: completion("The box is EMPTY.")) as chat:
        assert said(ask(server(chat.url, api_key_env="TEACHER_KEY"), [request("a")])) == ["The box is EMPTY."]


# Who it is, and what it will take


def test_a_server_with_a_revision_is_known_by_it() -> None:
    one, other = "http://one/v1", "http://other/v1"
    assert teachers.identity(server(one)) != teachers.identity(server(other))
    same = server(other, revision="a", timeout=5.0, concurrency=3, patience=1.0, tokenizer="t", api_key_env="K")
    assert teachers.identity(server(one, revision="a")) == teachers.identity(same)
    assert teachers.identity(server(one, revision="a")) != teachers.identity(server(one, revision="b"))
    assert teachers.identity(server(one, revision="a")) != teachers.identity(
        server(one, revision="a", api="completions")
    )


CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if think is defined %}?{% endif %}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every byte is a token, and there is one more in front where special tokens are added."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    fast = Tokenizer(models.BPE({"[B]": 0, **{one: place + 1 for place, one in enumerate(alphabet)}}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.post_processor = processors.TemplateProcessing(single="[B] $A", special_tokens=[("[B]", 0)])
    folder = tmp_path_factory.mktemp("tokenizer")
    made = PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="[B]", chat_template=CHAT_TEMPLATE)
    made.save_pretrained(folder)
    return folder


def test_prompt_tokens_are_counted_as_the_server_counts_them(tokenizer: Path) -> None:
    count = teachers.counter(server("http://a/v1", tokenizer=str(tokenizer)))
    assert count is not None
    turns = len("<system>s</s><user>ä</s>".encode())
    assert count(request("ä")) == turns + len("<assistant>")
    assert count(request("ä", prefix="So")) == turns + len("<assistant>So")
    assert count(request("ä", chat_template_kwargs={"think": True})) == turns + len("<assistant>?")
    count = teachers.counter(server("http://a/v1", tokenizer=str(tokenizer), api="completions"))
    assert count is not None
    assert count(request("ä", prefix=" so")) == 1 + len("sä so".encode())
    assert teachers.counter(server("http://a/v1")) is None
    with pytest.raises(InputError, match=r"teacher\.tokenizer: \./nosuch: no tokenizer there"):
        teachers.counter(server("http://a/v1", tokenizer="./nosuch"))


def test_a_row_that_spells_a_special_token_is_set_apart_where_the_tokenizer_is_known(tokenizer: Path) -> None:
    asked = [request(name) for name in ("a", "b[B]", "c")]
    with chat_server(lambda body: completion("fine")) as chat:
        settings = server(chat.url, tokenizer=str(tokenizer), concurrency=1)
        found = ask(settings, asked)
        assert said(found) == ["fine", "special_token", "fine"]
        assert found[1] == Failure("special_token", {"token": "[B]"})
        assert [user(body) for body in chat.requests] == ["a", "c"]
        count = teachers.counter(settings)
        assert count is not None
        assert count(asked[1]) == 0 < count(asked[0])
        assert said(ask(settings, asked[1:2])) == ["special_token"]
        assert said(ask(server(chat.url), asked)) == ["fine"] * 3  # it is for the server to read it as text


def test_a_prompt_that_the_chat_template_refuses_is_told(tokenizer: Path, tmp_path: Path) -> None:
    for file in tokenizer.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ raise_exception('no system turns') }}")
    count = teachers.counter(server("http://a/v1", tokenizer=str(tmp_path)))
    assert count is not None
    with pytest.raises(InputError, match="refuses the prompt: no system turns"):
        count(request("a"))


@pytest.mark.slow
def test_vllm_reads_the_requests_as_they_are_meant_and_counts_the_same_tokens(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own protocol and its own rendering of prompts; no engine is started."""
    monkeypatch.setenv("VLLM_LOGGING_LEVEL", "ERROR")
    from transformers import LlamaConfig
    from vllm.config import ModelConfig, VllmConfig
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.renderers.registry import renderer_from_config

    LlamaConfig(architectures=["LlamaForCausalLM"], vocab_size=257).save_pretrained(tmp_path)
    for file in tokenizer.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    renderer = renderer_from_config(VllmConfig(model_config=ModelConfig(model=str(tmp_path))))
    wanted = {"logprobs": True, "soft_labels": {"after": "", "labels": ["a", "b"]}}
    forms: list[dict[str, Any] | None] = [None, {"regex": "a+"}, {"choice": ["a", "b"]}, {"json": SCHEMA}]
    asked = [
        request(text, prefix=prefix, structured=form, **wanted)
        for text in ("Late goal", "ünï 😀\n\n x", " a  b ")
        for prefix in ("", " So", "It is ")
        for form in forms
    ]
    with chat_server(lambda body: completion("fine")) as chat:
        settings = server(chat.url, tokenizer=str(tmp_path), concurrency=1)
        ask(settings, asked)
        count = teachers.counter(settings)
        assert count is not None
        for one, body in zip(asked, chat.requests, strict=True):
            read = ChatCompletionRequest.model_validate(body)
            _, prompt = renderer.render_messages(body["messages"], read.build_chat_params(None, "auto"))
            assert len(prompt["prompt_token_ids"]) == count(one)
            _is_meant(read.to_sampling_params(20, {}), one)
    with chat_server(lambda body: completion("fine")) as chat:
        settings = server(chat.url, tokenizer=str(tmp_path), concurrency=1, api="completions")
        ask(settings, asked)
        count = teachers.counter(settings)
        assert count is not None
        for one, body in zip(asked, chat.requests, strict=True):
            read = CompletionRequest.model_validate(body)
            tokens = renderer.get_tokenizer().encode(read.prompt, add_special_tokens=read.add_special_tokens)
            assert len(tokens) == count(one)
            _is_meant(read.to_sampling_params(20, {}), one)


def _is_meant(read: Any, asked: Request) -> None:
    """vLLM's sampling parameters are those of the request."""
    assert (read.temperature, read.top_p, read.max_tokens, read.seed, read.n) == (0.5, 0.9, 20, 40, 1)
    assert read.logprobs == 20
    form = asked.sampling["structured"]
    found = read.structured_outputs
    assert form == (
        None if found is None else {n: getattr(found, n) for n in ("regex", "choice", "json") if getattr(found, n)}
    )
