"""How long ``audit --full`` takes over a large run, by check, and what memory: training rows a second of the whole audit.

    python -m benchmarks.audit_full RUN [--processes 2] [--recompute]

RUN is a run folder as whole_run.py makes it; nothing is written. Memory is the largest that the audit's own process and any one of its
processes held, in MiB. Run it on a machine that does nothing else.
"""

import argparse
import json
import resource
import time
from pathlib import Path

from pipeline.audit import CHECKS, auditing, found_by
from pipeline.processes import Crew


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--recompute", action="store_true")
    given = parser.parse_args()
    seconds: dict[str, float] = {}
    began = time.monotonic()
    findings = 0
    with auditing(given.run, full=True, recompute=given.recompute) as (audited, found):
        assert isinstance(audited.crew, Crew)
        audited.crew.processes = given.processes
        findings += len(found)
        for check in CHECKS:
            start = time.monotonic()
            findings += sum(1 for _ in found_by(check, audited))
            seconds[check.__module__.rpartition(".")[2]] = round(time.monotonic() - start, 1)
        rows = audited.results["shard"].manifest.counts.rows_out
    took = time.monotonic() - began
    own, others = (resource.getrusage(who).ru_maxrss >> 10 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    figures = {
        "training_rows": rows,
        "seconds": round(took, 1),
        "rows_a_second": round(rows / took),
        "findings": findings,
    }
    print(json.dumps({**figures, "memory_mib": [own, others], "by_check": seconds}, indent=2))


if __name__ == "__main__":
    main()
