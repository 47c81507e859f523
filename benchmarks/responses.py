"""The response store at scale: `python benchmarks/responses.py [ROWS]` (default 1,000,000) writes and reads answers in a temporary folder.

Prints rows a second, for reading relative to copying the same files in the same run, and peak memory.
"""

import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

from pipeline.files import digest
from pipeline.responses import Stored, open_store, read_store, stored_keys

CHUNK = 10_000


def stored(number: int, identity: str) -> Stored:
    text = f"The text is about number {number}, {'which goes on for a while ' * 8}and belongs to food. So the answer is food."
    return Stored(
        key=digest(number),
        teacher="benchmark",
        identity=identity,
        prompt=digest(-number),
        sampling={"temperature": 0.0, "max_tokens": 64},
        seed=0,
        sample=0,
        text=text,
        finish_reason="stop",
        prompt_tokens=500,
        completion_tokens=30,
    )


def timed(name: str, rows: int, work: object, against: float | None = None) -> float:
    began = time.perf_counter()
    work()  # type: ignore[operator]
    seconds = time.perf_counter() - began
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ratio = f", {seconds / against:.1f} times the copy" if against else ""
    print(f"{name}: {seconds:.1f} s, {rows / seconds:,.0f} rows/s{ratio}; peak {memory:,.0f} MiB")
    return seconds


def main(rows: int) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "responses"

        def write() -> None:
            with open_store(folder) as store:
                identity = store.add_teacher({"backend": "benchmark"})
                for start in range(0, rows, CHUNK):
                    store.append([stored(number, identity) for number in range(start, min(start + CHUNK, rows))])

        def copy() -> None:
            shutil.copytree(folder, Path(temporary) / "copy")

        timed("write", rows, write)
        plain = timed("copy the files", rows, copy)
        timed("keys", rows, lambda: stored_keys(folder), plain)
        timed("read every record", rows, lambda: sum(1 for _ in read_store(folder)), plain)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
