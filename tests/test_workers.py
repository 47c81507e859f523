"""Sampling in Ray workers: the same rows and keys as one process, whoever dies on the way, and errors that say the same."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import sample, teachers, workers
from pipeline.files import InputError, RunError
from pipeline.records import Drop, Response
from pipeline.requests import RayCluster
from pipeline.responses import read_store
from tests.chat_server import Reply, chat_server, echo
from tests.conftest import write_jsonl
from tests.test_sample import NOWHERE, TEMPLATE, asked, rows

pytestmark = pytest.mark.slow
ALL_TAKE_PART = 60.0  # seconds; only a test that fails waits for so long


@pytest.fixture(scope="module", autouse=True)
def running_ray() -> Iterator[Any]:
    """A Ray that somebody else has started in this process, as in a notebook."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    ray.init(
        address="local",
        num_cpus=3,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=workers.OBJECT_STORE,
    )
    yield ray
    assert ray.is_initialized()
    ray.shutdown()


@pytest.fixture
def template(tmp_path: Path) -> Path:
    (tmp_path / "ask.jinja").write_text("Text: ")
    path = tmp_path / "topics.jinja"
    path.write_text(TEMPLATE)
    return path


def texts(number: int) -> list[str]:
    return [f"text {place}" for place in range(number)]


def content(body: dict[str, Any]) -> str:
    return str(body["messages"][-1]["content"])


def keys(store: Path) -> list[str]:
    return sorted(record.key for _, _, record in read_store(store))


def worker_processes() -> set[int]:
    """Those of this process's own Ray."""
    parents, names = {}, {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                names[int(folder.name)] = (folder / "cmdline").read_bytes()
            except OSError:
                pass  # gone meanwhile

    def ours(process: int) -> bool:
        while process in parents and process != os.getpid():
            process = parents[process]
        return process == os.getpid()

    return {process for process, name in names.items() if name.startswith(b"ray::_Worker") and ours(process)}


class Together:
    """Holds requests until so many are under way at once; then lets all through."""

    def __init__(self, number: int) -> None:
        self.barrier, self.passed = threading.Barrier(number), threading.Event()

    def __call__(self, body: dict[str, Any]) -> Reply:
        if not self.passed.is_set():
            self.barrier.wait(ALL_TAKE_PART)
            self.passed.set()
        return echo(body)


def test_two_workers_give_the_rows_and_keys_of_one_process(tmp_path: Path, template: Path) -> None:
    prompts = rows(*texts(60), "text 3", "text 3")
    with chat_server() as chat:
        settings = asked(chat.url, template, n=2, temperature=0.5, concurrency=4)
        alone = [row.line() for row in sample.answers(prompts, responses=tmp_path / "alone", **settings)]
    with chat_server(Together(8)) as chat:  # more than one worker asks at once
        settings = asked(chat.url, template, n=2, temperature=0.5, concurrency=4, engine="ray", workers=2)
        both = [row.line() for row in sample.answers(prompts, responses=tmp_path / "both", **settings)]
        assert len(chat.requests) == 120
        assert chat.at_once <= 8
    assert both == alone
    assert keys(tmp_path / "both") == keys(tmp_path / "alone")


def test_recorded_completions_too(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "said.jsonl", [{"id": f"r{n}", "completion": f"answer {n}"} for n in range(1000)])
    settings = {"teacher": [teachers.Replay(backend="replay", completions=tmp_path / "said.jsonl")]}
    prompts = rows(*texts(1001))
    alone = [row.line() for row in sample.answers(prompts, responses=tmp_path / "alone", **settings)]
    both = sample.answers(prompts, responses=tmp_path / "both", **settings, engine="ray", workers=3)
    assert [row.line() for row in both] == alone
    assert keys(tmp_path / "both") == keys(tmp_path / "alone")
    assert len(keys(tmp_path / "both")) == 1000


def test_a_killed_worker_costs_only_what_it_had_in_flight(
    tmp_path: Path, template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both workers hang in the middle; one is killed there, and nothing that was committed is asked again."""
    before, both_hang, go_on = 40, threading.Barrier(9), threading.Event()

    def reply(body: dict[str, Any]) -> Reply:
        if len(chat.requests) > before and not go_on.is_set():
            both_hang.wait(ALL_TAKE_PART)
            go_on.wait(ALL_TAKE_PART)
        return echo(body)

    committed: set[str] = set()
    asked_before = Counter[str]()

    def kill() -> None:
        both_hang.wait(ALL_TAKE_PART)
        while len(keys(tmp_path / "store")) < before - 8:  # they travel, and are committed by four
            go_on.wait(0.02)
        committed.update(record.text for _, _, record in read_store(tmp_path / "store"))
        asked_before.update(content(body) for body in chat.requests)
        os.kill(min(worker_processes()), signal.SIGKILL)
        go_on.set()

    with chat_server(reply) as chat:
        settings = asked(chat.url, template, concurrency=4, engine="ray", workers=2)
        killer = threading.Thread(target=kill)
        killer.start()
        found = list(sample.answers(rows(*texts(150)), responses=tmp_path / "store", **settings))
        killer.join()
        times = Counter(content(body) for body in chat.requests)
    assert [row.text for row in found if isinstance(row, Response)] == [
        f"about Text: {text} (0)" for text in texts(150)
    ]
    assert len(keys(tmp_path / "store")) == 150
    assert len(committed) >= before - 8
    assert all(times[text.removeprefix("about ").removesuffix(" (0)")] == 1 for text in committed)
    again = {text for text, number in times.items() if number > 1}
    assert 0 < len(again) <= 8 and again <= asked_before.keys()
    assert "a worker died" in capsys.readouterr().err


def test_a_request_that_kills_its_worker_is_set_apart(tmp_path: Path, template: Path) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        if content(body).endswith("poison"):
            for process in worker_processes():
                os.kill(process, signal.SIGKILL)
        return echo(body)

    with chat_server(reply) as chat:
        settings = asked(chat.url, template, concurrency=3, engine="ray", workers=1)
        found = list(sample.answers(rows("a", "b", "poison", "c"), responses=tmp_path / "store", **settings))
    failed = found.pop(2)
    assert isinstance(failed, Drop) and failed.reason == "worker_died" and int(str(failed.evidence["deaths"])) >= 3
    assert [row.text for row in found if isinstance(row, Response)] == [f"about Text: {text} (0)" for text in "abc"]


@pytest.mark.parametrize("wrong", ["key", "address"])
def test_a_workers_error_is_the_one_of_a_single_process(tmp_path: Path, template: Path, wrong: str) -> None:
    settings = asked(NOWHERE, template)
    if wrong == "key":
        server = settings["teacher"][0].model_copy(update={"api_key_env": "STEPDISTILL_KEY_THAT_IS_NOT_SET"})
        settings["teacher"] = [server]
    with pytest.raises(RunError if wrong == "address" else InputError) as alone:
        list(sample.answers(rows("a"), responses=tmp_path / "alone", **settings))
    with pytest.raises(type(alone.value)) as there:
        list(sample.answers(rows("a"), responses=tmp_path / "both", **settings, engine="ray", workers=2))
    assert type(there.value) is type(alone.value)
    assert str(there.value) == str(alone.value)


def test_a_node_with_another_teacher_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "said.jsonl", [{"id": "r0", "completion": "answer"}])
    settings = teachers.Replay(backend="replay", completions=tmp_path / "said.jsonl")
    identity = teachers.identity(settings) | {"completions": "0" * 64}
    with (
        pytest.raises(InputError, match="it is another one than on this machine"),
        workers.connect(settings, {}, 1, RayCluster(), identity=identity) as teacher,
    ):
        list(teacher(iter(())))


def test_workers_without_a_place_are_waited_for_aloud(
    tmp_path: Path, template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with chat_server() as chat:
        settings = asked(chat.url, template, engine="ray", workers=2, ray=RayCluster(num_cpus=2))  # of three
        found = list(sample.answers(rows("a", "b"), responses=tmp_path / "store", **settings))
    assert len(found) == 2
    said = capsys.readouterr().err
    assert "1 of 2 workers wait for a place: each needs 2 CPU, free in the whole cluster are 1 CPU" in said


def test_workers_need_ray() -> None:
    teacher = [teachers.Replay(backend="replay", completions=Path("said.jsonl"))]
    for changed in ({"workers": 2}, {"ray": RayCluster()}):
        with pytest.raises(InputError, match="needs `engine: ray`"):
            sample.check({"teacher": teacher, **changed})


CONNECTING = """
import json, sys
from pathlib import Path
if sys.argv[1] == "without":
    sys.modules["ray"] = None
from pipeline import teachers, workers
from pipeline.files import InputError
from pipeline.requests import RayCluster
settings = teachers.Replay(backend="replay", completions=Path("said.jsonl"))
number, clusters = json.loads(sys.argv[2])
if __name__ == "__main__":
    for cluster in clusters:
        try:
            with workers.connect(settings, {}, number, RayCluster(**cluster)) as teacher:
                print(list(teacher(iter(()))))
        except InputError as error:
            print(error)
    if sys.argv[1] == "with":
        import ray
        assert not ray.is_initialized()
"""


def connecting(ray: str, folder: Path, workers: int, *clusters: dict[str, Any]) -> tuple[list[str], list[str]]:
    """What another process says that connects to each of the clusters: its output, and its progress."""
    write_jsonl(folder / "said.jsonl", [])
    command = [sys.executable, "-c", CONNECTING, ray, json.dumps([workers, clusters])]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    return done.stdout.splitlines(), done.stderr.splitlines()


def test_without_the_package_it_says_what_to_install(tmp_path: Path) -> None:
    assert connecting("without", tmp_path, 1, {}) == (
        ["stages.sample.engine: ray needs the package ray; pip install 'stepdistill[ray]'"],
        [],
    )


def test_a_running_cluster_is_joined_and_left_running(tmp_path: Path, running_ray: Any) -> None:
    """Another process joins the Ray of this one; the path of the recording is taken from that process's folder."""
    address = running_ray.get_runtime_context().gcs_address
    said, progress = connecting("with", tmp_path, 1, {"address": address})
    progress = [line for line in progress if " wait for a place: " not in line]  # on a busy machine it takes its time
    assert (said, progress) == (["[]"], ["sample: starting 1 worker in Ray"])
    assert running_ray.cluster_resources()["CPU"] == 3


def test_a_cluster_that_cannot_be_used_is_one_clear_line_at_once(tmp_path: Path) -> None:
    (nobody, client, words, graphics), progress = connecting(
        "with",
        tmp_path,
        1000,
        {"address": "127.0.0.1:9"},
        {"address": "ray://127.0.0.1:10001"},
        {"address": "the cluster"},
        {"num_gpus": 1, "num_cpus": 0},
    )
    where = "stages.sample.ray.address:"
    assert nobody.startswith(f"{where} 127.0.0.1:9: nobody answers there") and "ray start --head" in nobody
    assert client.startswith(f"{where} ray://127.0.0.1:10001: expected host:port")
    assert words.startswith(f"{where} the cluster: expected host:port")
    assert graphics.startswith("stages.sample.workers: 1,000 workers with num_gpus: 1 need more than the")
    assert progress == []
