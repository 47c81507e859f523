"""SIGKILL at random moments of sampling: nothing committed is lost or asked again, and the rows come out as if nothing had happened.

The long run is `KILLS=50 python -m pytest tests/test_kills.py`.
"""

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.responses import read_store, verify
from tests.chat_server import ChatServer, Reply, chat_server, completion
from tests.counting import counted

KILLS = int(os.environ.get("KILLS", "6"))
PROMPTS = 200

# Imports are paid once: this process forks a child for each run, tells its process id, and waits for it.
FORKING = """
import os, sys
import httpx, pipeline.cli, pipeline.runner, pipeline.sample, pipeline.teachers.server
from anyio.from_thread import start_blocking_portal
with start_blocking_portal():
    pass
for folder in sys.stdin:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.chdir(folder.strip())
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1), os.dup2(log, 2)
        sys.argv = ["stepdistill", "run", "--until", "parse"]
        pipeline.cli.main()
        os._exit(99)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
STAGES = """
run: run
task:
  name: echo
  inputs: rows.jsonl
  prompt: ask.jinja
  input: "{{ text }}"
stages:
  sample: {teacher: {backend: server, base_url: "URL", model: m, revision: "1", concurrency: 16}, chunk: 8}
  parse: {pattern: '(?P<rationale>.+) So (?P<label>.+)'}
  train: false
  evaluate: false
"""


class Killer:
    """Answers, and at the request that was named kills the process that asks; ``committed`` are texts that must not be asked again."""

    def __init__(self) -> None:
        self.kill_at: int | None = None
        self.victim = 0
        self.committed: set[str] = set()
        self.asked_again: list[str] = []

    def reply(self, body: dict[str, Any]) -> Reply:
        text = body["messages"][-1]["content"]
        if text in self.committed:
            self.asked_again.append(text)
        if self.kill_at is not None:
            self.kill_at -= 1
            if self.kill_at == 0:
                os.kill(self.victim, signal.SIGKILL)
        return completion(f"It reads {text}. So {len(text) % 7}")


@pytest.fixture(scope="module")
def killer() -> Killer:
    return Killer()


@pytest.fixture(scope="module")
def chat(killer: Killer) -> Iterator[ChatServer]:
    with chat_server(killer.reply) as server:
        yield server


@pytest.fixture(scope="module")
def forking() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", FORKING]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin
        process.stdin.close()


def run(forking: subprocess.Popen[str], folder: Path, killer: Killer, kill_at: int | None) -> int:
    """The exit status of `stepdistill run --until parse`, negative for a signal."""
    assert forking.stdin
    assert forking.stdout
    killer.kill_at = None
    print(folder, file=forking.stdin, flush=True)
    killer.victim = int(forking.stdout.readline())
    killer.kill_at = kill_at  # the child still has its settings to read
    return int(forking.stdout.readline())


def project(folder: Path, url: str) -> Path:
    folder.mkdir()
    (folder / "stages.yaml").write_text(STAGES.replace("URL", url))
    (folder / "ask.jinja").write_text("{% block user %}{{ text }}{% endblock %}")
    rows = (json.dumps({"text": f"row {number} of many"}) for number in range(PROMPTS))
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    return folder


def result(folder: Path) -> dict[str, bytes]:
    """What the stages wrote, but for times; the report shows what was asked in the last call, which is another after a kill."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted((folder / "run").rglob("*"))
        if path.is_file() and not {"responses", "report"} & set(path.parts) and not path.name.startswith(("run", "."))
    }


def texts_in_store(folder: Path) -> dict[str, str]:
    store = folder / "run" / "responses"
    return {record.key: record.text for _, _, record in read_store(store)} if store.is_dir() else {}


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, chat: ChatServer, killer: Killer, forking: subprocess.Popen[str]
) -> dict[str, bytes]:
    folder = project(tmp_path_factory.mktemp("undisturbed") / "project", chat.url)
    assert run(forking, folder, killer, None) == 0, (folder / "log").read_text()
    assert sum(path.startswith("run/parse") for path in result(folder)) > 1
    return result(folder)


@pytest.mark.parametrize("seed", range(KILLS))
def test_killed_at_any_moment_it_goes_on_as_if_nothing_had_happened(
    tmp_path: Path,
    chat: ChatServer,
    killer: Killer,
    forking: subprocess.Popen[str],
    undisturbed: dict[str, bytes],
    seed: int,
) -> None:
    chance = random.Random(seed)
    folder = project(tmp_path / "project", chat.url)
    killer.committed, killer.asked_again = set(), []
    before: dict[str, str] = {}
    for kill_at in [chance.randint(1, PROMPTS)] + [chance.randint(1, PROMPTS // 2)] * (seed % 3 == 0):
        status = run(forking, folder, killer, kill_at)
        assert status in (-signal.SIGKILL, 0), (folder / "log").read_text()  # 0: it needed fewer requests than that
        now = texts_in_store(folder)
        assert before.items() <= now.items()
        before = now
        killer.committed = {text.removeprefix("It reads ").rpartition(". So")[0] for text in now.values()}
    assert run(forking, folder, killer, None) == 0, (folder / "log").read_text()
    stored = [record.key for _, _, record in read_store(folder / "run" / "responses")]
    assert before.items() <= texts_in_store(folder).items()
    assert Counter(stored).most_common(1)[0][1] == 1
    assert len(stored) == PROMPTS
    assert killer.asked_again == []
    assert list(verify(folder / "run" / "responses")) == []
    assert result(folder) == undisturbed
    counted("killed at random while answers came in")
