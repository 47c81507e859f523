"""The response store at scale: `python benchmarks/responses.py [ROWS]` (default 1,000,000) in a temporary folder.

Each figure is taken in a process of its own, so that its peak memory is its own: appending 100,000 records in chunks of 256 with an fsync
each, against appending the same bytes to a plain file with as many fsyncs; opening a store of ROWS records, asking it for every record,
and reading and verifying them all, against ``json.loads`` over the same lines. TMPDIR names the disk.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.files import digest
from pipeline.responses import Answered, Stored, compact, family_key, open_store, read_store, request_key, verify

APPENDED = 100_000
CHUNK = 256
FILL_CHUNK = 10_000
IDENTITY = {"backend": "benchmark"}
SAMPLING = {"temperature": 0.0, "top_p": 1.0, "stop": [], "structured": None}


def stored(number: int, identity: str, finish_reason: str = "stop") -> Stored:
    prompt = digest(-number)
    family = family_key(identity=identity, prompt=prompt, sampling=SAMPLING, seed=0, sample=0)
    text = f"The text is about number {number}, {'which goes on for a while ' * 8}and belongs to food. So the answer is food."
    return Stored(
        key=request_key(family, 64),
        family=family,
        max_tokens=64,
        finish_reason=finish_reason,
        teacher="benchmark",
        identity=identity,
        prompt=prompt,
        sampling=SAMPLING,
        seed=0,
        sample=0,
        prompt_tokens=500,
        completion_tokens=30,
        text=text,
    )


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("segment-*.jsonl"))


def append(folder: Path, rows: int) -> float:
    records = [stored(number, digest(IDENTITY)) for number in range(rows)]
    with open_store(folder) as store:
        store.add_teacher(IDENTITY)
        began = time.perf_counter()
        for start in range(0, rows, CHUNK):
            store.append(records[start : start + CHUNK])
        return time.perf_counter() - began


def append_plainly(folder: Path, rows: int) -> float:
    """The bytes of the store that ``append`` made, to one file, with as many fsyncs."""
    lines = b"".join(path.read_bytes() for path in segments(folder)).splitlines(keepends=True)
    with (folder.parent / "plain").open("wb", buffering=0) as file:
        began = time.perf_counter()
        for start in range(0, rows, CHUNK):
            file.write(b"".join(lines[start : start + CHUNK]))
            os.fsync(file.fileno())
        return time.perf_counter() - began


def fill(folder: Path, rows: int) -> float:
    began = time.perf_counter()
    with open_store(folder) as store:
        identity = store.add_teacher(IDENTITY)
        for start in range(0, rows, FILL_CHUNK):
            store.append(stored(number, identity) for number in range(start, min(start + FILL_CHUNK, rows)))
    return time.perf_counter() - began


def opening(folder: Path, rows: int) -> float:
    began = time.perf_counter()
    with open_store(folder) as store:
        seconds = time.perf_counter() - began
        assert len(store) == rows
    return seconds


def looking(folder: Path, rows: int) -> float:
    """``has`` and ``get`` of every record, in the order of the store."""
    store = Answered(folder)
    families = [record.family for _, _, record in read_store(folder)]
    began = time.perf_counter()
    for family in families:
        assert store.has(family, 64)
    print(f"has: {rows / (time.perf_counter() - began):,.0f} a second")
    began = time.perf_counter()
    for family in families:
        assert store.get(family, 64) is not None
    return time.perf_counter() - began


def reading(folder: Path, rows: int) -> float:
    began = time.perf_counter()
    assert sum(1 for _ in read_store(folder)) == rows
    return time.perf_counter() - began


def verifying(folder: Path, rows: int) -> float:
    began = time.perf_counter()
    assert list(verify(folder)) == []
    return time.perf_counter() - began


def compacting(folder: Path, rows: int) -> float:
    began = time.perf_counter()
    assert compact(folder).kept == rows
    return time.perf_counter() - began


def scan(folder: Path, rows: int) -> float:
    """What reading the same lines as JSON takes, with nothing checked and nothing kept."""
    began = time.perf_counter()
    count = 0
    for path in segments(folder):
        with path.open("rb") as file:
            for line in file:
                json.loads(line)
                count += 1
    assert count == rows
    return time.perf_counter() - began


WORK: dict[str, Callable[[Path, int], float]] = {
    work.__name__: work
    for work in (append, append_plainly, fill, opening, looking, reading, verifying, compacting, scan)
}


def measured(work: Callable[[Path, int], float], folder: Path, rows: int, against: float | None = None) -> float:
    """Run it in a process of its own, print what it took, and return the seconds."""
    command = [sys.executable, __file__, work.__name__, str(folder), str(rows)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    *told, figures = done.stdout.splitlines()
    seconds, memory = map(float, figures.split())
    ratio = f"; {seconds / against:.2f} times" if against else ""
    print(
        f"{work.__name__}: {seconds:.2f} s, {rows / seconds:,.0f} rows/s, peak {memory:,.0f} MiB{ratio}",
        *told,
        sep="\n  ",
    )
    return seconds


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "appended"
        print(f"{APPENDED:,} records in chunks of {CHUNK}, one fsync each; the ratio is append over append_plainly")
        append_seconds = measured(append, folder, APPENDED)
        plainly = measured(append_plainly, folder, APPENDED)
        print(f"append over append_plainly: {append_seconds / plainly:.2f} times")
        folder = Path(temporary) / "responses"
        print(f"{rows:,} records; times are over scan")
        measured(fill, folder, rows)
        print(f"on disk: {sum(path.stat().st_size for path in segments(folder)) / 2**20:,.0f} MiB")
        scanned = measured(scan, folder, rows)
        for work in (opening, reading, looking, verifying, compacting):
            measured(work, folder, rows, scanned)


if __name__ == "__main__":
    if len(sys.argv) == 4:
        taken = WORK[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))
        print(taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
