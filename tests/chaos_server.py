"""A server of the chat completions protocol that misbehaves, the same way for the same seed: what a teacher's backend must survive.

    python -m tests.chaos_server --misbehaviour drip --seed 3 --port 8001
    python -m tests.chaos_server --misbehaviour each --share 0.01
    python -m tests.chaos_server --list

Each try of each request is answered honestly or, with the probability ``--share``, by the misbehaviour; which one it is depends on the
seed, the prompt, the request's seed and the number of the try alone. With ``each`` every one of them has that probability. Prompts that
hold ``HONEST`` are always answered honestly. ``given`` holds the digests of the texts that were honestly given for each prompt and seed:
an answer with another text was not this server's.
"""

import argparse
import gzip
import json
import random
import socket
import socketserver
import struct
import sys
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from email.utils import formatdate
from functools import cache
from typing import Any, Final

from pipeline.files import line_digest

HONEST: Final = "answer this one"
MiB: Final = 2**20


class Call:
    """One try of one request, and the means to answer it well or badly."""

    def __init__(
        self, chaos: "Chaos", connection: socket.socket, body: dict[str, Any], headers: dict[str, str], number: int
    ) -> None:
        self.chaos, self.connection, self.body, self.headers, self.number = chaos, connection, body, headers, number
        self.prompt = body["messages"][-1]["content"] if "messages" in body else body["prompt"]
        self.seed = int(body.get("seed", 0))
        with chaos.lock:
            chaos.tries[self.prompt, self.seed] += 1
            self.attempt = chaos.tries[self.prompt, self.seed]
        self.random = random.Random(f"{chaos.seed} {self.prompt} {self.seed} {self.attempt}")

    def send(self, content: bytes) -> None:
        self.connection.sendall(content)

    def respond(self, content: bytes, status: int = 200, **headers: str) -> None:
        """A whole response, as HTTP has it."""
        found = {"Content-Type": "application/json", "Content-Length": str(len(content)), "Connection": "close"}
        found |= {name.replace("_", "-"): value for name, value in headers.items()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in found.items())
        self.send(f"HTTP/1.1 {status} so\r\n{lines}\r\n".encode() + content)

    def answer(self, *, given: bool, text: str | None = None) -> dict[str, Any]:
        """An answer as the protocol has it. ``given``: it is one that may be believed."""
        if text is None:
            text = f"said of {self.prompt} with {self.seed} at try {self.attempt}"
        if given:
            with self.chaos.lock:
                self.chaos.given.setdefault((self.prompt, self.seed), set()).add(line_digest(text.encode()))
        words = text.split(" ")[:50]
        tokens = [{"token": f" {word}" if place else word, "logprob": -0.5} for place, word in enumerate(words)]
        return {
            "id": "answer",
            "model": self.body["model"],
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop",
                    "logprobs": {"content": [{**token, "top_logprobs": [token]} for token in tokens]},
                }
            ],
            "usage": {"prompt_tokens": 7, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 3}},
        }

    def honest(self) -> None:
        self.respond(json.dumps(self.answer(given=True)).encode())

    def changed(self, change: Callable[[dict[str, Any]], object], *, given: bool = False) -> None:
        """An answer that was changed."""
        answer = self.answer(given=given)
        change(answer)
        self.respond(json.dumps(answer).encode())

    def until_it_goes(self) -> None:
        """Wait until the one who asked closes the connection."""
        with suppress(OSError):
            while self.connection.recv(4096):
                pass


def server_errors(call: Call) -> None:
    later = {
        "Retry_After": call.random.choice(["0", "0.01", "-3", "soon", "1e400", "nan", formatdate(0), formatdate(9e9)])
    }
    status = call.random.choice([500, 502, 503, 504, 529, 408, 409])
    call.respond(b"try later", status, **(later if call.random.random() < 0.5 else {}))


def storm(call: Call) -> None:
    """Nobody is answered for as long as it lasts; see Chaos.judge."""
    later = call.random.choice([{}, {"Retry_After": "0"}, {"Retry_After": formatdate(9e9)}, {"Retry_After": "86400"}])
    call.respond(b'{"error": "slow down"}', 429, **later)


def refusal(call: Call) -> None:
    call.respond(b'{"error": {"message": "maximum context length"}}', call.random.choice([400, 413, 418, 422, 451]))


def hang(call: Call) -> None:
    call.until_it_goes()


def hang_midway(call: Call) -> None:
    call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")
    call.until_it_goes()


def drip(call: Call) -> None:
    call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
    while not call.chaos.closing.wait(0.005):
        call.send(b" ")


def drip_headers(call: Call) -> None:
    call.send(b"HTTP/1.1 200 OK\r\nX-So: ")
    while not call.chaos.closing.wait(0.005):
        call.send(b"a")


def early_hints(call: Call) -> None:
    while not call.chaos.closing.wait(0.001):
        call.send(b"HTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n")


def reset(call: Call) -> None:
    call.send(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"choices": [')
    call.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    call.connection.close()


def closed(call: Call) -> None:
    call.send(call.random.choice([b"", b"HTTP/1.1", b"HTTP/1.1 200 OK\r\nContent-Le"]))


def cut_body(call: Call) -> None:
    content = json.dumps(call.answer(given=False)).encode()
    start = content[: call.random.randrange(len(content))]
    call.respond(start, Content_Length=str(len(content)))


def truncated_json(call: Call) -> None:
    content = json.dumps(call.answer(given=False)).encode()
    call.respond(content[: call.random.randrange(len(content))])


def page(call: Call) -> None:
    call.respond(b"<!doctype html><title>Log in</title>", Content_Type="text/html")


def wrong_type(call: Call) -> None:
    kind = call.random.choice(["text/html", "image/png", "application/json; charset=utf-16", "\xff", ""])
    call.respond(json.dumps(call.answer(given=True)).encode(), Content_Type=kind)


def redirect(call: Call) -> None:
    where = call.random.choice(
        ["/elsewhere", "http://127.0.0.1:9/v1", "http://[", "//", "javascript:1", "http://a:99999/"]
    )
    call.respond(b"", call.random.choice([301, 302, 307, 308]), Location=where)


@cache
def bomb() -> bytes:
    return gzip.compress(b" " * (64 * MiB))


def gzip_bomb(call: Call) -> None:
    call.respond(bomb(), Content_Encoding="gzip")


def packed(call: Call) -> None:
    """Not asked for, but readable."""
    content = json.dumps(call.answer(given=True)).encode()
    coding, pack = call.random.choice([("gzip", gzip.compress), ("deflate", zlib.compress)])
    call.respond(pack(content), Content_Encoding=coding)


def badly_packed(call: Call) -> None:
    content = gzip.compress(json.dumps(call.answer(given=False)).encode())
    coding, bad = call.random.choice(
        [("gzip", content[:-9]), ("gzip", b"no" + content), ("br", content), ("gzip", b"")]
    )
    call.respond(bad, Content_Encoding=coding)


def endless_body(call: Call) -> None:
    call.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not call.chaos.closing.is_set():
        call.send(b"100000\r\n" + b" " * MiB + b"\r\n")


def bad_chunks(call: Call) -> None:
    bad = call.random.choice(
        [b"-5\r\nabcde\r\n", b"zz\r\n", b"ffffffffffffffffffff\r\n", b"3\r\n{}\r\n0\r\n\r\n", b"5\r\n{}"]
    )
    call.send(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + bad)


def bad_lengths(call: Call) -> None:
    content = json.dumps(call.answer(given=False)).encode()
    call.respond(
        content,
        Content_Length=call.random.choice(["-1", "many", "7", f"{len(content)}\r\nContent-Length: 3", "9" * 30]),
    )


def no_http(call: Call) -> None:
    call.send(
        call.random.choice([call.random.randbytes(300), b"SSH-2.0-so\r\n", b"HTTP/9.9 1000 \r\n\r\n", b"\r\n" * 50])
    )


def header_storm(call: Call) -> None:
    call.send(b"HTTP/1.1 200 OK\r\n")
    for number in range(20_000):
        call.send(b"Set-Cookie: a%d=%s\r\n" % (number, b"x" * 100))


def invalid_utf8(call: Call) -> None:
    call.respond(json.dumps(call.answer(given=False)).encode().replace(b"said", b"s\xff\xc3id"))


def lone_surrogates(call: Call) -> None:
    call.respond(json.dumps(call.answer(given=False)).encode().replace(b"said", rb"s\ud800id"))


def duplicate_keys(call: Call) -> None:
    call.respond(json.dumps(call.answer(given=False)).encode().replace(b'"id"', b'"choices": [], "id"'))


def no_json(call: Call) -> None:
    call.respond(
        call.random.choice(
            [b"", b"null", b"[]", b"7", b'"text"', b"{}", b"[" * 100_000, b'{"choices": NaN}', b"9" * 9999]
        )
    )


def wrong_counts(call: Call) -> None:
    wrong = [-1, 10**12, 1e30, "7", None, True, [], {}, 3.5, 10**400]
    usage: Any = {name: call.random.choice(wrong) for name in ("prompt_tokens", "completion_tokens")}
    usage["prompt_tokens_details"] = call.random.choice([{"cached_tokens": call.random.choice(wrong)}, *wrong])
    if call.random.random() < 0.3:
        usage = call.random.choice(wrong)
    call.changed(lambda answer: answer.update(usage=usage), given=True)


def wrong_logprobs(call: Call) -> None:
    wrong = [
        3.0,
        None,
        "0",
        [],
        {},
        True,
        -(10**400),
        -1e300,
        {"content": [{}]},
        {"content": [{"token": 1, "logprob": 0}]},
    ]
    if call.random.random() < 0.5:
        token = {"token": "a", "logprob": call.random.choice(wrong), "top_logprobs": call.random.choice(wrong)}
        call.changed(lambda answer: answer["choices"][0].update(logprobs={"content": [token] * 3}), given=True)
    else:
        call.changed(lambda answer: answer["choices"][0].update(logprobs=call.random.choice(wrong)), given=True)


def other_choices(call: Call) -> None:
    """The right one is among others, in any order."""
    answer = call.answer(given=True)
    others = [call.answer(given=False, text=f"another {place}")["choices"][0] | {"index": place} for place in (1, 2, 3)]
    answer["choices"] += others
    call.random.shuffle(answer["choices"])
    call.respond(json.dumps(answer).encode())


def no_first_choice(call: Call) -> None:
    wrong: list[Any] = [
        [],
        None,
        {},
        "a",
        [None],
        [7],
        [[]],
        [{}, {}],
        [{"index": 1}],
        [{"index": True}],
        [{"index": 0}] * 2,
    ]
    call.changed(lambda answer: answer.update(choices=call.random.choice(wrong)))


def no_message(call: Call) -> None:
    call.changed(lambda answer: answer["choices"][0].update(message=call.random.choice([None, [], "a", 7])))


def no_finish_reason(call: Call) -> None:
    wrong = [None, "", "because", 7, [], "content_filter", "function_call", "abort"]
    call.changed(lambda answer: answer["choices"][0].update(finish_reason=call.random.choice(wrong)))


def no_text(call: Call) -> None:
    call.changed(lambda answer: answer["choices"][0]["message"].update(content=call.random.choice([None, [], {}, 7])))


def tool_calls(call: Call) -> None:
    asked = {"id": "1", "type": "function", "function": {"name": "rm", "arguments": "{}"}}
    change = {"message": {"role": "assistant", "content": None, "tool_calls": [asked]}, "finish_reason": "tool_calls"}
    call.changed(lambda answer: answer["choices"][0].update(change))


def other_model(call: Call) -> None:
    call.changed(lambda answer: answer.update(model=call.random.choice(["cheaper", "mm", "m-mini", "", 7, ["m"]])))


def long_text(call: Call) -> None:
    text = f"said of {call.prompt}: " + "ü" * call.random.randrange(MiB)
    call.respond(json.dumps(call.answer(given=True, text=text), ensure_ascii=False).encode())


def odd_text(call: Call) -> None:
    odd = ["", "\0", "\n\n", "\x1b[2J", "\u2028", "﻿", "\U0010ffff", "a\r\nb", '{"key": "0"}', "😀" * 9]
    call.respond(json.dumps(call.answer(given=True, text=call.random.choice(odd))).encode())


def surplus(call: Call) -> None:
    """A second response behind the first, for whoever asks next on this connection."""
    content = json.dumps(call.answer(given=True)).encode()
    start = b"HTTP/1.1 200 OK\r\nContent-Length: "
    more = json.dumps(call.answer(given=False, text="meant for nobody")).encode()
    call.send(start + b"%d\r\n\r\n%s" % (len(content), content) + start + b"%d\r\n\r\n%s" % (len(more), more))
    call.until_it_goes()


def key_told(call: Call) -> None:
    """Says the key again, in a refusal or an answer."""
    key = call.headers.get("authorization", "no key").removeprefix("Bearer ")
    wrong = [{"index": 0, "message": {"content": f"it is {key}"}, "finish_reason": call.random.choice(["stop", key])}]
    if call.random.random() < 0.5:
        call.respond(json.dumps({"error": f"not with {key}"}).encode(), call.random.choice([400, 503]), X_Key=key)
    else:
        call.changed(
            lambda answer: answer.update(call.random.choice([{"choices": wrong}, {"choices": key}, {"model": key}]))
        )


def mixed(call: Call) -> None:
    """Any of the others that takes no time."""
    MISBEHAVIOURS[call.random.choice(sorted(MISBEHAVIOURS.keys() - TAKE_TIME - {"mixed", "storm", "endless_body"}))](
        call
    )


TAKE_TIME: Final = {"hang", "hang_midway", "drip", "drip_headers", "early_hints"}
"""What ends only when the one who asks has had enough of it."""
MISBEHAVIOURS: Final[dict[str, Callable[[Call], None]]] = {
    one.__name__: one
    for one in (
        *(server_errors, storm, refusal, hang, hang_midway, drip, drip_headers, early_hints, reset, closed, cut_body),
        *(truncated_json, page, wrong_type, redirect, gzip_bomb, packed, badly_packed, endless_body, bad_chunks),
        *(bad_lengths, no_http, header_storm, invalid_utf8, lone_surrogates, duplicate_keys, no_json, wrong_counts),
        *(wrong_logprobs, other_choices, no_first_choice, no_message, no_finish_reason, no_text, tool_calls),
        *(other_model, long_text, odd_text, surplus, key_told, mixed),
    )
}


EACH: Final = "each"
"""In place of a misbehaviour: any of them, ``mixed`` left out. A storm is then the one answer that says to slow down."""


class Chaos:
    """``requests`` counts the tries that came, ``misbehaved`` those that were answered badly, ``met`` the same by misbehaviour."""

    def __init__(self, misbehaviour: str | None, seed: int, share: float) -> None:
        self.misbehaviour, self.seed, self.share = misbehaviour, seed, share
        self.given: dict[tuple[str, int], set[str]] = {}
        self.tries: Counter[tuple[str, int]] = Counter()
        self.requests = self.misbehaved = 0
        self.met: Counter[str] = Counter()
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self.url = ""

    def take(self, connection: socket.socket, body: dict[str, Any], headers: dict[str, str]) -> None:
        with self.lock:
            self.requests += 1
            number = self.requests
        call = Call(self, connection, body, headers, number)
        badly = self.judge(call)
        if badly is None:
            call.honest()
            return
        with self.lock:
            self.misbehaved += 1
            self.met[badly.__name__] += 1
        badly(call)

    def judge(self, call: Call) -> Callable[[Call], None] | None:
        """The misbehaviour that this try meets."""
        if self.misbehaviour is None:
            return None
        if self.misbehaviour == "storm":  # nobody is spared: two of them, of 10 to 29 tries
            length = 10 + self.seed % 20
            return storm if call.number <= length or 40 <= call.number - length < 40 + length else None
        if HONEST in call.prompt:
            return None
        drawn = call.random.random()
        if self.misbehaviour == EACH:
            kinds = [*MISBEHAVIOURS.values()][:-1]
            return kinds[int(drawn / self.share)] if drawn < self.share * len(kinds) else None
        return MISBEHAVIOURS[self.misbehaviour] if drawn < self.share else None


@contextmanager
def chaos_server(misbehaviour: str | None, seed: int = 0, *, share: float = 0.5, port: int = 0) -> Iterator[Chaos]:
    """The server, on a (free) port of this machine; without a misbehaviour it is an honest one."""
    chaos = Chaos(misbehaviour, seed, share)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            headers = {}
            while line := self.rfile.readline().strip():
                name, _, value = line.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            content = self.rfile.read(int(headers.get("content-length", 0)))
            with suppress(OSError, ValueError):  # who asked has gone, or went before all of the request was sent
                chaos.take(self.request, json.loads(content), headers)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False
        allow_reuse_address = True
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            if not isinstance(sys.exception(), OSError):
                super().handle_error(request, client_address)  # type: ignore[arg-type]

    server = Server(("127.0.0.1", port), Handler)
    chaos.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield chaos
    finally:
        chaos.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos_server", description=__doc__.splitlines()[0])
    parser.add_argument("--misbehaviour", choices=[*sorted(MISBEHAVIOURS), EACH], default="mixed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=0.5, help="of the tries that are answered badly; of each kind")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--list", action="store_true", help="the names of all misbehaviours")
    options = parser.parse_args()
    if options.list:
        print(*MISBEHAVIOURS, sep="\n")
        return
    with chaos_server(options.misbehaviour, options.seed, share=options.share, port=options.port) as chaos:
        print(f"base_url: {chaos.url}   {options.misbehaviour}, seed {options.seed}; Ctrl-C ends it", flush=True)
        with suppress(KeyboardInterrupt):
            threading.Event().wait()
        print(f"{chaos.requests} tries, {chaos.misbehaved} of them answered badly")


if __name__ == "__main__":
    main()
