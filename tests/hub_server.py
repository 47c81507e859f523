"""A stand-in for the Hugging Face Hub: what huggingface_hub calls to make a repository and to commit to it, kept in memory."""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REPOSITORY = r"(?:datasets/|models/)?([\w.-]+/[\w.-]+)"


@dataclass
class Hub:
    """What has arrived: files by repository and name, and how the repositories were made."""

    url: str = ""
    files: dict[str, dict[str, bytes]] = field(default_factory=dict)
    made: dict[str, dict] = field(default_factory=dict)
    branches: list[str] = field(default_factory=list)
    revisions: list[str] = field(default_factory=list)
    descriptions: list[str] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    refuse: int | None = None  # the status that every call gets
    _large: dict[str, bytes] = field(default_factory=dict)

    def answer(self, path: str, body: bytes) -> tuple[int, dict]:
        if self.refuse is not None:
            return self.refuse, {"error": "the stand-in was told to refuse"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            self.made[name] = asked
            return 200, {"url": f"{self.url}/{'datasets/' if asked.get('type') == 'dataset' else ''}{name}"}
        if found := re.fullmatch(rf"/api/{REPOSITORY}/branch/(\w+)", path):
            self.branches.append(found[2])
            return 200, {}
        if re.fullmatch(rf"/api/{REPOSITORY}/preupload/\w+", path):
            files = [
                {"path": one["path"], "uploadMode": self.mode(one["path"]), "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return 200, {"files": files}
        if re.fullmatch(rf"/{REPOSITORY}\.git/info/lfs/objects/batch", path):
            upload = [
                {**one, "actions": {"upload": {"href": f"{self.url}/large/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return 200, {"transfer": "basic", "objects": upload}
        if found := re.fullmatch(r"/large/(\w+)", path):
            self._large[found[1]] = body
            return 200, {}
        if found := re.fullmatch(rf"/api/{REPOSITORY}/commit/(\w+)", path):
            kept = self.files.setdefault(found[1], {})
            self.revisions.append(found[2])
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    self.descriptions.append(value["description"])
                elif line["key"] == "file":
                    kept[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    kept[value["path"]] = self._large[value["oid"]]
            return 200, {"commitUrl": f"{self.url}/{found[1]}/commit/1", "commitOid": "1" * 40, "pullRequestUrl": None}
        return 404, {"error": f"the stand-in knows no {path}"}

    @staticmethod
    def mode(path: str) -> str:
        return "lfs" if path.endswith((".jsonl", ".safetensors")) else "regular"


@contextmanager
def hub_server() -> Iterator[Hub]:
    """A hub on a port of its own, for as long as the block runs."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            hub.tokens.add(self.headers.get("Authorization", ""))
            size = int(self.headers.get("Content-Length") or 0)
            status, content = hub.answer(self.path.partition("?")[0], self._body(size))
            raw = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_PUT = do_POST

        def _body(self, size: int) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(size)
            found = b""
            while length := int(self.rfile.readline(), 16):
                found += self.rfile.read(length)
                self.rfile.readline()
            self.rfile.readline()
            return found

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
