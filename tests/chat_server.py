"""A small real HTTP server that speaks as much of the chat completions protocol as the tests need."""

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HEARING = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"


def hearing(command: list[str]) -> list[str]:
    """The command, made to hear Ctrl-C: a shell's background job, which a test run may be, is born deaf to SIGINT and hands that on."""
    return [sys.executable, "-c", HEARING, *command]


Reply = tuple[int, dict[str, str], bytes]


def completion(text: str, finish_reason: str = "stop") -> Reply:
    """What a server answers where all is well."""
    body = {
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}],
        "usage": {"prompt_tokens": 7, "completion_tokens": len(text.split())},
    }
    return 200, {"Content-Type": "application/json"}, json.dumps(body).encode()


def echo(body: dict[str, Any]) -> Reply:
    """Answers with what was asked, the seed included, so that tests can tell answers apart."""
    return completion(f"about {body['messages'][-1]['content']} ({body['seed']})")


class ChatServer:
    """``requests`` holds every body that came, ``at_once`` the most that were under way together."""

    def __init__(self, reply: Callable[[dict[str, Any]], Reply]) -> None:
        self.reply = reply
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.under_way = 0
        self.lock = threading.Lock()
        self.url = ""

    def take(self, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        with self.lock:
            self.requests.append(body)
            self.headers.append(headers)
            self.under_way += 1
            self.at_once = max(self.at_once, self.under_way)
        try:
            return self.reply(body)
        finally:
            with self.lock:
                self.under_way -= 1


@contextmanager
def chat_server(reply: Callable[[dict[str, Any]], Reply] = echo) -> Iterator[ChatServer]:
    """The server, on a free port of this machine."""
    chat = ChatServer(reply)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, headers, content = chat.take(body, {"path": self.path, **dict(self.headers)})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that went away

    server = Server(("127.0.0.1", 0), Handler)
    chat.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield chat
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
