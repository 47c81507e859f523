"""Speed and memory of `stepdistill audit` beside `sha256sum` over the same files.

    python -m benchmarks.audit RUN [--full] [--sample K]

RUN is a finished run folder, for example the one that `python -m benchmarks.whole_run DATA FOLDER` makes (a million rows). Its files are
read once before anything is timed, so that all find them in the page cache. Then come `sha256sum` over all of them, one process as it is,
and the audit: seconds of each check, the ratio of both times, and the peak of memory of the audit's processes together (PSS, read four
times a second). Python's own start, half a second, is not in it.
"""

import argparse
import json
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.curation_speed import watched
from pipeline.audit import CHECKS, auditing, found_by


def measure(run: Path, **how: Any) -> dict[str, Any]:
    """Figures of one audit, and of ``sha256sum``."""
    files = [path for path in sorted(run.rglob("*")) if path.is_file()]
    for path in files:
        path.read_bytes()
    began = time.perf_counter()
    subprocess.run(["sha256sum", "--", *map(str, files)], check=True, stdout=subprocess.DEVNULL)
    hashed = time.perf_counter() - began
    seconds: dict[str, float] = {}
    findings = 0
    with watched() as peak:
        began = time.perf_counter()
        with auditing(run, **how) as (audited, found):
            findings += len(found)
            seconds["opening"] = time.perf_counter() - began
            for check in CHECKS:
                start = time.perf_counter()
                findings += sum(1 for _ in found_by(check, audited))
                seconds[check.__module__.rpartition(".")[2]] = time.perf_counter() - start
        total = time.perf_counter() - began
    return {
        "files": len(files),
        "GB": round(sum(path.stat().st_size for path in files) / 1e9, 2),
        "rows": audited.covered["rows"],
        "findings": findings,
        "sha256sum, seconds": round(hashed, 1),
        "audit, seconds": round(total, 1),
        "ratio": round(total / hashed, 2),
        "GiB": round(peak.bytes / 2**30, 2),
        "seconds by check": {name: round(spent, 2) for name, spent in seconds.items() if spent >= 0.01},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--sample", type=int)
    given = parser.parse_args()
    print(json.dumps(measure(given.run, full=given.full, sample=given.sample), indent=2))


if __name__ == "__main__":
    main()
