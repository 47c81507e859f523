"""Endurance: many rows from answers to shards, and many prompts asked of a server that misbehaves in every way; nothing may be lost.

    python -m benchmarks.endurance rows DATA [--rows 1000000] [--base 100000] [--folder FOLDER]
    python -m benchmarks.endurance sampling [--prompts 100000] [--kills 3] [--share 0.01] [--folder FOLDER]

``rows``: a project as whole_run makes it (DATA as for curation_speed) with recorded answers; then `stepdistill run --from parse` and
`stepdistill audit`, each in a process of its own. Memory is the proportional share (PSS) of it and all its children. FOLDER takes some
10 GB a million rows.

``sampling``: `stepdistill run --until sample` against tests/chaos_server.py in a process of its own, each kind of misbehaviour with the
probability ``share``; SIGKILL on the way, and once more each time. Then a run that has nothing to ask, one with ``--force`` that asks what
failed, and the audit. Memory is the resident set of the one process that samples.

Memory is read every second. What is printed is its first, median, last and highest reading in MiB, and the highest of the last third of the
readings over that of the middle third: 1 is flat. Every row is accounted for twice, by the manifests' counts and by the ids in the files;
what does not add up is an AssertionError. Seconds say little on a machine that others use as well.

Limits: five kinds of misbehaviour end only with the time-out, so that is one second here, and pauses between tries are short; a server that
is slow but honest may then lose a try to it. Answers of up to 2 MB, endless bodies and packed ones take most of the traffic.
"""

import argparse
import json
import math
import multiprocessing
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple

import jsonlines
import msgspec
import psutil

from benchmarks.curation_speed import EVAL_ROWS
from benchmarks.whole_run import project
from pipeline import outputs
from pipeline.audit import audit
from pipeline.files import line_digest, read_jsonl
from pipeline.records import Manifest, Response
from pipeline.responses import read_store, verify
from pipeline.stages import STAGES
from tests.chaos_server import EACH, chaos_server

ROOT: Final = Path(__file__).parents[1]
COMMAND: Final = [sys.executable, "-c", "from pipeline.cli import main; main()"]
KEY: Final = "sk-never-to-be-seen/0123456789"
QUIET: Final = 0.3  # seconds
UNHEARD: Final = {"timed_out", "connection_failed"}  # what becomes of tries that never came to the server
RUNNING: Final = re.compile(r"(\w+): running \(")
SETTINGS: Final = """\
run: run
task: {name: endurance, inputs: inputs.jsonl, prompt: ask.jinja, input: "{{ text }}", id: id}
stages:
  sample:
    teacher: {backend: server, base_url: "URL", model: m, revision: "1", api_key_env: ENDURANCE_KEY, concurrency: 64,
      timeout: TIMEOUT, retries: 2, pause: 0.01, longest_pause: 0.05}
    temperature: 0.7
    logprobs: true
    max_tokens: 20
  parse: {pattern: '(?P<rationale>said of .+) with (?P<label>.+)'}
  dedup: false
  decontaminate: false
  quality: false
  train: false
  evaluate: false
"""


# Processes and their memory -----------------------------------------------------------------------------------------------------------


class Ended(NamedTuple):
    """How a command ended: its exit code (negative: the signal), and its lines and bytes of memory, each with the second it came."""

    code: int
    lines: list[tuple[float, str]]
    memory: list[tuple[float, int]]

    @property
    def said(self) -> str:
        return "\n".join(line for _, line in self.lines[-20:])


def watched(
    folder: Path, *arguments: str, every: float, shared: bool = False, enough: Callable[[], bool] = lambda: False
) -> Ended:
    """Run `stepdistill` with these arguments in ``folder``; SIGKILL it where ``enough`` says so. ``shared``: PSS, of its children too."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ENDURANCE_KEY": KEY}
    began = time.monotonic()
    lines: list[tuple[float, str]] = []
    memory: list[tuple[float, int]] = []
    process = subprocess.Popen(
        [*COMMAND, *arguments], cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append((time.monotonic() - began, line.rstrip()))

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(every)
                break
            memory.append((time.monotonic() - began, held(process.pid, shared=shared)))
            if enough():
                process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
        listener.join()
    return Ended(process.returncode, lines, memory)


def held(process: int, *, shared: bool) -> int:
    """Bytes of a process: its resident set, or with ``shared`` its proportional share and those of all its children."""
    total = 0
    with suppress(psutil.Error):  # it may end at any moment
        whole = psutil.Process(process)
        for one in [whole, *whole.children(recursive=True)] if shared else [whole]:
            with suppress(psutil.Error):
                total += one.memory_full_info().pss if shared else one.memory_info().rss
    return total


def memory_figures(readings: list[tuple[float, int]]) -> dict[str, float]:
    """First, median, last and highest reading in MiB, and the highest of the last third over that of the middle third."""
    sizes = [size / 2**20 for _, size in readings if size]
    if not sizes:
        return {}
    third = math.ceil(len(sizes) / 3)
    middle, last = sizes[third : 2 * third] or sizes, sizes[-third:]
    found = {"first": sizes[0], "median": statistics.median(sizes), "last": sizes[-1], "peak": max(sizes)}
    return {name: round(size, 1) for name, size in found.items()} | {
        "last third over middle": round(max(last) / max(middle), 3)
    }


def by_stage(ended: Ended) -> dict[str, dict[str, float]]:
    """The same for the time of each stage, which begins with its line "running"."""
    starts = [(second, match[1]) for second, line in ended.lines if (match := RUNNING.match(line))]
    ends = [second for second, _ in starts[1:]] + [math.inf]
    return {
        stage: memory_figures([reading for reading in ended.memory if start <= reading[0] < end])
        for (start, stage), end in zip(starts, ends, strict=True)
    }


# Every row accounted for --------------------------------------------------------------------------------------------------------------


class Named(msgspec.Struct):
    """Of a row only its id."""

    id: str


def accounted(folder: Path) -> dict[str, Any]:
    """What became of the input rows, stage by stage; for one answer a prompt. Raises AssertionError where a row is lost or comes twice."""
    run = folder / "run"
    left = {row["id"] for _, row in read_jsonl(folder / "inputs.jsonl")}
    began = len(left)
    told: dict[str, Any] = {}
    before: Manifest | None = None
    for stage in STAGES.values():
        result = outputs.current(run, stage.name)
        if result is None:
            continue
        manifest = outputs.read_manifest(result)
        counts = manifest.counts
        units = stage.units(manifest.settings)
        came = began if before is None else before.counts.rows_out
        kept, dropped = lines_of(result, outputs.row_files(result)), ids(result / f"{outputs.DROPPED}.jsonl")
        assert counts.rows_in == came * units, (stage.name, counts, came)
        assert counts.rows_in == counts.kept + counts.dropped, (stage.name, counts)
        assert counts.dropped == len(dropped) == sum(counts.reasons.values()), (stage.name, counts, len(dropped))
        assert counts.rows_out == len(kept), (stage.name, counts, len(kept))
        if units == 1:
            gone = {own(id) for id in dropped}
            assert len(gone) == len(dropped), (stage.name, "a row was dropped twice")
            assert gone <= left, (stage.name, "a row was dropped that had not come", sorted(gone - left)[:5])
            left -= gone
            assert {own(id) for id in kept} == left, (stage.name, "others were kept than came and were not dropped")
            assert len(kept) == len(left), (stage.name, "a row was kept twice")
        else:
            each = Counter(map(own, kept + dropped))
            assert each.keys() == left, stage.name
            assert set(each.values()) == {units}, stage.name
        told[stage.name] = {"in": counts.rows_in, "kept": counts.kept, "dropped": counts.dropped} | (
            {"reasons": counts.reasons} if counts.reasons else {}
        )
        before = manifest
    return told


def lines_of(folder: Path, files: list[Any]) -> list[str]:
    """The ids of the kept rows."""
    return [id for file in files for id in ids(folder / file.path)]


def ids(path: Path) -> list[str]:
    with path.open("rb") as rows:
        return [DECODER.decode(line).id for line in rows]


DECODER: Final = msgspec.json.Decoder(Named)


def own(id: str) -> str:
    """The id of the input row that ``p7``, ``p7#0`` or ``p7/label`` stems from."""
    return re.split("[#/]", id, maxsplit=1)[0]


# Many rows ----------------------------------------------------------------------------------------------------------------------------


def many_rows(data: Path, folder: Path, rows: int, *, every: float = 1.0, eval_rows: int = EVAL_ROWS) -> dict[str, Any]:
    """Figures of parse .. shard and the audit over so many recorded answers. Raises AssertionError where something is amiss."""
    project(data, folder, rows, eval_rows=eval_rows)
    stored = watched(folder, "run", "--until", "sample", every=every, shared=True)
    assert stored.code == 0, stored.said
    worked = watched(folder, "run", "--from", "parse", every=every, shared=True)
    assert worked.code == 0, worked.said
    audited = watched(folder, "audit", "run", every=every, shared=True)
    assert audited.code == 0, audited.said
    became = accounted(folder)
    assert sum(1 for _ in read_store(folder / "run" / "responses")) == became["sample"]["kept"]
    return {
        "rows": became,
        "memory": {
            "ingest and sample": memory_figures(stored.memory),
            "parse .. shard": memory_figures(worked.memory),
            **by_stage(worked),
            "audit": memory_figures(audited.memory),
        },
        "seconds": {
            name: round(ended.memory[-1][0]) if ended.memory else 0
            for name, ended in (("ingest and sample", stored), ("parse .. shard", worked), ("audit", audited))
        },
    }


def growth(small: dict[str, Any], large: dict[str, Any]) -> dict[str, float]:
    """The peak over the larger number of rows by that over the smaller one, by stage."""
    return {
        name: round(figures["peak"] / small["memory"][name]["peak"], 2)
        for name, figures in large["memory"].items()
        if figures and small["memory"].get(name)
    }


# A server that misbehaves -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """What the server knows: tries and honest answers (their digests) by prompt, and how often it misbehaved in each way."""

    tries: dict[str, int]
    given: dict[str, set[str]]
    met: dict[str, int]


class Serving:
    """The server in its process. ``url`` is its address."""

    def __init__(self, ends: "Connection[Any, Any]") -> None:
        self._ends = ends
        self.url: str = ends.recv()

    def requests(self) -> int:
        """How many tries came."""
        self._ends.send("requests")
        found: int = self._ends.recv()
        return found

    def asked(self) -> Asked:
        """All that it knows, once it is quiet: a try that was given up can still be on its way to it."""
        before = -1
        while (now := self.requests()) != before:
            before = now
            time.sleep(QUIET)
        self._ends.send("asked")
        found: Asked = self._ends.recv()
        return found


@contextmanager
def serving(share: float, seed: int) -> Iterator[Serving]:
    """A misbehaving server in a process of its own for the time of the block."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=serve, args=(there, share, seed), daemon=True)
    process.start()
    there.close()
    try:
        yield Serving(here)
    finally:
        here.close()
        process.join(10)
        process.kill()


def serve(ends: "Connection[Any, Any]", share: float, seed: int) -> None:
    """What that process does; it ends with the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with chaos_server(EACH, seed, share=share) as chaos, suppress(EOFError):
        ends.send(chaos.url)
        while True:
            wanted = ends.recv()
            with chaos.lock:
                if wanted == "requests":
                    ends.send(chaos.requests)
                    continue
                tries = {prompt: number for (prompt, _), number in chaos.tries.items()}
                given = {prompt: set(texts) for (prompt, _), texts in chaos.given.items()}
                ends.send(Asked(tries, given, dict(sorted(chaos.met.items()))))


# Many prompts -------------------------------------------------------------------------------------------------------------------------


def many_prompts(
    folder: Path, prompts: int, *, kills: int, share: float, seed: int = 0, every: float = 1.0, timeout: float = 1.0
) -> dict[str, Any]:
    """Figures of asking so many prompts of the misbehaving server. Raises AssertionError where something is amiss."""
    folder.mkdir(parents=True, exist_ok=True)
    with jsonlines.open(folder / "inputs.jsonl", "w", compact=True) as rows:
        rows.write_all({"id": f"p{number}", "text": f"question {number}"} for number in range(prompts))
    (folder / "ask.jinja").write_text("{% block user %}{{ text }}{% endblock %}")
    store = folder / "run" / "responses"
    readings: list[Ended] = []
    committed: list[
        tuple[dict[str, str], Asked]
    ] = []  # at each kill: digests of the texts by key, and what had been asked
    with serving(share, seed) as server:
        settings = SETTINGS.replace("URL", server.url).replace("TIMEOUT", f"{timeout:g}")
        (folder / "stages.yaml").write_text(settings)
        for kill in range(kills):
            so_far = server.requests()
            ended = watched(
                *(folder, "run", "--until", "sample"),
                every=every,
                enough=lambda so_far=so_far: server.requests() >= so_far + prompts // 10,  # type: ignore[misc]
            )
            assert ended.code == -signal.SIGKILL, (kill, ended.code, ended.said)
            readings.append(ended)
            committed.append((texts_by_key(store), server.asked()))
        ended = watched(folder, "run", "--until", "sample", every=every)
        assert ended.code == 0, ended.said
        readings.append(ended)
        first, first_asked = responses_of(folder), server.asked()
        for known, asked in committed:
            now = {row.request: line_digest(row.text.encode()) for row in first.values()}
            assert known.items() <= now.items(), "an answer that was committed is not there, or another one"
            again = {row.input for row in first.values() if row.request in known}
            assert all(first_asked.tries[text] == asked.tries[text] for text in again), "asked again after its commit"
        idle = watched(folder, "run", every=every)
        assert idle.code == 0, idle.said
        assert server.asked().tries == first_asked.tries, "asked though nothing was to ask"
        became = accounted(folder)
        assert became["sample"]["in"] == prompts
        forced = watched(folder, "run", "--force", every=every)
        assert forced.code == 0, forced.said
        last, last_asked = responses_of(folder), server.asked()
    failed = {f"question {number}" for number in range(prompts)} - {row.input for row in first.values()}
    changed = {text for text, tries in last_asked.tries.items() if tries != first_asked.tries.get(text, 0)}
    assert changed <= failed, "the next run asked others than those that had failed"
    sampled = outputs.current(folder / "run", "sample")
    assert sampled is not None
    unheard = {drop.id for drop in outputs.read_drops(sampled) if drop.reason in UNHEARD}
    assert {text.replace("question ", "p") + "#0" for text in failed - changed} <= unheard, (
        "it asked not all that had failed"
    )
    assert first.items() <= last.items(), "an answer changed"
    for row in last.values():
        assert line_digest(row.text.encode()) in last_asked.given[row.input], (row, "nobody gave this answer")
    became_at_last = accounted(folder)
    records = Counter(texts_by_key(store).keys())
    assert records.keys() == {row.request for row in last.values()}
    assert sum(1 for _ in read_store(store)) == len(records) == len(last), "an answer is stored twice, or for nothing"
    assert list(verify(store)) == []
    assert not holds(folder / "run", KEY.encode()), "the key was written down"
    assert [str(finding) for finding in audit(folder / "run")] == []
    return {
        "prompts": prompts,
        "misbehaved": {"kinds": len(last_asked.met), "tries": sum(last_asked.met.values()), **last_asked.met},
        "tries": {
            "at the kills": [sum(asked.tries.values()) for _, asked in committed],
            "first result": sum(first_asked.tries.values()),
            "with --force": sum(last_asked.tries.values()) - sum(first_asked.tries.values()),
        },
        "committed at the kills": [len(known) for known, _ in committed],
        "first result": became,
        "with --force": became_at_last,
        "memory of each process": [memory_figures(one.memory) for one in readings],
        "seconds of each": [round(one.memory[-1][0]) if one.memory else 0 for one in readings],
    }


def texts_by_key(store: Path) -> dict[str, str]:
    return (
        {record.key: line_digest(record.text.encode()) for _, _, record in read_store(store)} if store.is_dir() else {}
    )


def responses_of(folder: Path) -> dict[str, Response]:
    """The rows of the sample stage by their ids."""
    result = outputs.current(folder / "run", "sample")
    assert result is not None
    return {row.id: row for row in outputs.read(result, Response)}


def holds(folder: Path, wanted: bytes) -> bool:
    """Whether a line of any file in a folder holds these bytes."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as lines:
                if any(wanted in line for line in lines):
                    return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    rows = parts.add_parser("rows")
    rows.add_argument("data", type=Path)
    rows.add_argument("--rows", type=int, default=1_000_000)
    rows.add_argument(
        "--base", type=int, default=100_000, help="rows of the run that growth is measured against; 0: none"
    )
    sampling = parts.add_parser("sampling")
    sampling.add_argument("--prompts", type=int, default=100_000)
    sampling.add_argument("--kills", type=int, default=3)
    sampling.add_argument("--share", type=float, default=0.01, help="of the tries that meet each kind of misbehaviour")
    sampling.add_argument("--seed", type=int, default=0)
    for part in (rows, sampling):
        part.add_argument("--folder", type=Path, help="where all is written; by default a temporary folder")
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=given.folder, prefix="endurance-"))  # stays there where something is amiss
    if given.part == "sampling":
        found = many_prompts(folder, given.prompts, kills=given.kills, share=given.share, seed=given.seed)
        print(json.dumps(found, indent=2))
    else:
        many_rows(given.data, folder / "warm", 2_000)  # all loops are compiled
        measured = {}
        for size in filter(None, (given.base, given.rows)):
            measured[size] = many_rows(given.data, folder / f"rows-{size}", size)
            print(json.dumps({f"{size:,} rows": measured[size]}, indent=2), flush=True)
            shutil.rmtree(folder / f"rows-{size}")
        if given.base:
            grown = growth(measured[given.base], measured[given.rows])
            print(json.dumps({f"peak, {given.base:,} -> {given.rows:,} rows": grown}, indent=2))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
