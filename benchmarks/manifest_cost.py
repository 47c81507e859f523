"""What manifests and Merkle trees cost of a run's own time.

    python -m benchmarks.manifest_cost DATA [--rows 1000000] [--processes N]

DATA as for curation_speed, whose stored responses these are. The stages parse .. shard run once; the time within the functions that build
trees, gather facts about code and environment, and write manifests is summed (it is all spent in the process that writes) and given as
a share of the time of the stages.
"""

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

from benchmarks.curation_speed import build
from pipeline import environment, merkle, outputs, runner
from pipeline.config import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int)
    given = parser.parse_args()
    spent: Counter[str] = Counter()

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                spent[name] += time.perf_counter() - began

        return call

    facts = (environment.code, environment.environment)
    merkle.leaves = timed("leaves", merkle.leaves)
    merkle.Tree.root = property(timed("trees", merkle.Tree.root.fget))  # type: ignore[attr-defined,assignment,arg-type]
    outputs.write_manifest = timed("manifests", outputs.write_manifest)
    outputs.read_manifest = timed("manifests", outputs.read_manifest)
    environment.code = timed("code", environment.code)
    environment.environment = timed("environment", environment.environment)
    with tempfile.TemporaryDirectory() as folder:
        settings = build(Path(folder, "project"), given.data, given.rows)
        facts[0].cache_clear()
        facts[1].cache_clear()
        spent.clear()
        began = time.perf_counter()
        runner.run(replace(load(settings), processes=given.processes), start="parse")
        seconds = time.perf_counter() - began
    total = sum(spent.values())
    for name, part in spent.most_common():
        print(f"{name:12} {part:7.2f} s")
    print(
        f"{given.rows:,} rows, parse .. shard: {seconds:.1f} s, of which {total:.2f} s are these: {total / seconds:.1%}"
    )


if __name__ == "__main__":
    main()
