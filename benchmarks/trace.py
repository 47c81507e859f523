"""What `trace` takes on a large run: making the indexes, and then any id of the first, the middle and the last row.

    python -m benchmarks.trace FOLDER [--repeat 3]

FOLDER is a project that `benchmarks.whole_run` made. Its index is made anew (`<run>/index`; nothing else is written). Each id is looked
up as the command does it, in this process and once more as a command of its own, with Python's start.
"""

import argparse
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from pipeline import lineage, outputs
from pipeline.config import load
from pipeline.trace import FOLLOWED, trace


def ids(run: Path, place: float) -> dict[str, str]:
    """The ids of the row at this place of the run (0 the first, 1 the last one), by kind."""
    folder = outputs.current(run, "sample")
    assert folder is not None
    files = lineage.row_files(folder)[:-1]
    path = files[min(int(place * len(files)), len(files) - 1)]
    with path.open("rb") as file:
        lines = file.read().splitlines(keepends=True)
    hit = lineage.Hit(path, 0, lines[-1] if place == 1 else lines[0])
    row = hit.row["prompt"]
    ingest = outputs.current(run, "ingest")
    assert ingest is not None
    source = next(lineage.find(run, ingest, "id", row)).row["source"]
    return {
        "row": row,
        "place": source,
        "response": hit.row["id"],
        "request": hit.row["request"],
        "beginning of a request": hit.row["request"][:12],
        "training row": f"{row}/label",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    settings = given.folder / "stages.yaml"
    run = load(settings).run
    shutil.rmtree(run / lineage.FOLDER, ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    began = time.perf_counter()
    lineage.prepare(run, FOLLOWED)
    seconds = time.perf_counter() - began
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    files = [path for path in (run / lineage.FOLDER).rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) >> 20
    ingest = outputs.current(run, "ingest")
    rows = outputs.read_manifest(ingest).counts.rows_in if ingest else 0
    print(f"{rows:,} rows: {len(files)} indexes, {size:,} MiB, made in {seconds:.1f} s; memory {before} to {most} MiB")
    for name, place in (("first", 0.0), ("middle", 0.5), ("last", 1.0)):
        for kind, text in ids(run, place).items():
            times = []
            for _ in range(given.repeat):
                began = time.perf_counter()
                events = trace(run, text)
                times.append(time.perf_counter() - began)
            began = time.perf_counter()
            command = [Path(sys.executable).with_name("stepdistill"), "trace", text, "-c", settings]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            alone = time.perf_counter() - began
            print(
                f"{name} row, by its {kind}: {min(times):.2f} to {max(times):.2f} s, {len(events)} events; as a command {alone:.2f} s"
            )
    print(f"memory at the end: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10} MiB")


if __name__ == "__main__":
    main()
