"""What each quality filter drops and costs on the examples of a run, alone and as the default list.

    stepdistill run -c examples/cqa/stages.yaml --until parse
    python benchmarks/filters.py examples/cqa/runs/cqa/parse/<key> choice [WORDS]

The folder is that of a finished parse, the word behind it its label_type. Rationales of neighbouring rows are joined until each has WORDS
words (100; 0 leaves them as they are). A filter's microseconds, of processor time, are those of a row that it passes, words made anew;
the list's are with the decoding of the rows, each row's words made once. Best of three.
"""

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pipeline import outputs, text
from pipeline.binding import Call, parameters
from pipeline.filters import ASKED_FOR, FILTERS
from pipeline.quality import DEFAULT, quality
from pipeline.records import Example, decoder


def joined(rows: list[Example], words: int) -> Iterator[Example]:
    said: list[str] = []
    for row in rows:
        said.append(row.rationale or "")
        if sum(len(one.split()) for one in said) >= words:
            yield row.changed(rationale=" ".join(said))
            said = []


def settings(name: str, label_type: str) -> dict[str, Any]:
    return {"label_type": label_type} if "label_type" in parameters(FILTERS[name]) else {}


def best(work: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(3):
        text.normalise.cache_clear()
        began = time.process_time()
        work()
        seconds.append(time.process_time() - began)
    return min(seconds)


def main() -> None:
    label_type = sys.argv[2]
    words = int(sys.argv[3]) if len(sys.argv) > 3 else 100
    every = list(outputs.read(Path(sys.argv[1]), Example))
    rows = list(joined(every, words))
    mean = sum(len((row.rationale or "").split()) for row in rows) / len(rows)
    print(f"{len(every):,} rows; timed on {len(rows):,} of {mean:.0f} words")
    print(f"| filter | drops of {len(every):,} | us/row |  |\n|---|---:|---:|---|")
    for name, function in FILTERS.items():
        if name in ("tokens", "allow_list", "block_list"):  # they need settings of yours
            continue
        check = partial(function, **settings(name, label_type))
        drops = sum(check(row) is not None for row in every)
        passed = [row for row in rows if check(row) is None]
        spent = best(lambda check=check, passed=passed: [check(row) for row in passed])
        shown = f"{1e6 * spent / len(passed):.2f}" if passed else "-"
        print(f"| {name} | {drops:,} | {shown} | {'asked for' if name in ASKED_FOR else ''} |")
    calls = [Call(call.name, settings(call.name, label_type)) for call in DEFAULT]
    reasons = Counter(drop.reason for drop in quality(every, filters=calls) if drop is not None)
    kept = [row for row, drop in zip(rows, quality(rows, filters=calls), strict=True) if drop is None]
    data = b"".join(row.line() + b"\n" for row in kept)
    decoding = best(lambda: decoder(Example).decode_lines(data))
    whole = best(lambda: list(quality(decoder(Example).decode_lines(data), filters=calls)))
    print(f"default list: {sum(reasons.values()):,} of {len(every):,} dropped ({dict(reasons)})")
    print(f"{1e6 * whole / len(kept):.1f} us/row, of which decoding {1e6 * decoding / len(kept):.1f}")


if __name__ == "__main__":
    main()
