"""Speed of decontaminate, file to file, beside a Python hash set of n-grams and the any-hit rule.

    python benchmarks/decontaminate.py DATA [--rows 1000000] [--eval-rows 10000] [--slow-rows 20000] [--folder FOLDER]

DATA is a folder with ``cqa`` and ``svamp``: CommonsenseQA, SVAMP and PaLM 540B's completions. Eval rows are real questions. Training
rows have about 500 characters, input and rationale together: real sentences of the completions, about the same things as the eval rows
but without the questions that the teacher went on to ask itself, and with every fourth word exchanged. One row in 500 quotes an eval row.

All work is done in this process: rows are read from a file in blocks of 8 MiB as the runner does, decoded, sketched, judged, and kept
lines, digests and drops are written to another. Seconds are those of this process's own core time and of the clock; the index, which the
eval rows cost once, is told apart. Compiled functions are compiled before. The Python rules do the same in the plainest way: JSON decoding,
lower-cased words, a set of 8-grams, and a file of the lines that are kept; they are timed on fewer rows.
"""

import argparse
import itertools
import json
import random
import re
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pipeline import blocks
from pipeline.binding import bind
from pipeline.decontaminate import CORPUS, decontaminate
from pipeline.files import read_jsonl
from pipeline.records import Drop, Example
from pipeline.sources import EvalSet

LENGTH = 500  # characters of a row's texts
QUOTES = 500  # one row in so many quotes an eval row


def sentences(data: Path) -> tuple[list[str], list[str]]:
    """Eval rows: real questions; and the sentences of the teacher's completions to all rows."""
    asked = [
        str(row.get("question") or row.get("input"))
        for name in ("cqa/train", "cqa/test", "svamp/test")
        for _, row in read_jsonl(data / f"{name}.jsonl")
    ]
    said = [
        str(row["completion"])
        for name in ("cqa/palm540b-train", "cqa/palm540b-test", "svamp/palm540b-train")
        for _, row in read_jsonl(data / f"{name}.jsonl")
    ]
    return asked, [
        one for text in said for one in re.split(r"(?<=[.?!])\s+|\n+", text) if len(one) > 20 and "?" not in one
    ]


def write(path: Path, number: int, asked: list[str], said: list[str], seed: int = 0) -> None:
    """The training rows, as parse would have written them."""
    chance = random.Random(seed)
    vocabulary = [word for text in said for word in text.split()]
    split = [text.split() for text in said]

    def text(length: int) -> str:
        parts: list[str] = []
        while sum(map(len, parts)) + len(parts) < length - 40:
            found = list(chance.choice(split))
            for place in range(chance.randrange(4), len(found), 4):
                found[place] = chance.choice(vocabulary)
            parts.append(" ".join(found))
        return " ".join(parts)

    with path.open("wb") as file:
        for place in range(number):
            quoted = chance.choice(asked) + " " if place % QUOTES == 0 else ""
            row = Example(
                id=f"row-{place:08d}",
                input=quoted + text(LENGTH // 2),
                label="yes",
                rationale=text(LENGTH // 2),
                response=f"row-{place:08d}#0",
                text="",
                finish_reason="stop",
                votes=[],
                gold=None,
                choices=None,
            )
            file.write(row.line() + b"\n")


def cut(path: Path) -> Iterator[blocks.Block]:
    """The blocks of one file of rows."""
    size, start = path.stat().st_size, 0
    with path.open("rb") as lines:
        while start < size:
            lines.seek(min(size, start + blocks.BYTES))
            lines.readline()
            yield blocks.Block((blocks.Span(path, start, lines.tell()),))
            start = lines.tell()


def file_to_file(source: Path, target: Path, eval_sets: dict[str, EvalSet], **knobs: Any) -> dict[str, Any]:
    """The stage as the runner works it: sketch all blocks, resolve, go through them again with the verdicts."""
    values: dict[str, Any] = {
        "eval_sets": eval_sets,
        "task.prompt": None,
        "stages.sample.few_shot": None,
        "task.input": None,
    }
    settings = bind(decontaminate, knobs, lookup=values.__getitem__, folder=Path())
    began = time.process_time()
    prepared = CORPUS.prepare(**settings)
    indexed = time.process_time() - began
    began, clock = time.process_time(), time.perf_counter()
    counts, sketches = [], []
    for block in cut(source):
        rows = block.rows(CORPUS.view)
        counts.append(len(rows))
        sketches.append(CORPUS.sketch(rows, prepared, **settings))
    sketched = time.process_time() - began
    verdicts = CORPUS.resolve(sketches, prepared, **settings)
    dropped = 0
    with target.open("wb") as kept, target.with_suffix(".digests").open("wb") as digests:
        for block, count in zip(cut(source), counts, strict=True):
            found: list[Drop | None] = list(itertools.islice(verdicts, count))
            written = blocks.judged(block.read(), found, "decontaminate")
            for lines in written.kept.values():
                kept.write(lines.data)
                digests.write(lines.digests)
            dropped += written.drops.rows
    spent = time.process_time() - began
    return {
        "rows": sum(counts),
        "dropped": dropped,
        "index, s": round(indexed, 2),
        "sketch, us a row": round(1e6 * sketched / sum(counts), 2),
        "core, us a row": round(1e6 * spent / sum(counts), 2),
        "rows/s of core time": round(sum(counts) / spent),
        "rows/s by the clock": round(sum(counts) / (time.perf_counter() - clock)),
    }


def plain(source: Path, target: Path, texts: list[str], limit: int, *, any_hit: bool) -> dict[str, Any]:
    """A Python set of 8-grams: any hit, or the share of each eval row's 8-grams that the row has."""
    found: dict[tuple[str, ...], list[int]] = {}
    sizes = []
    for place, text in enumerate(texts):
        runs = set(_runs(text))
        sizes.append(len(runs))
        for run in runs:
            found.setdefault(run, []).append(place)
    dropped = rows = 0
    began = time.process_time()
    with source.open("rb") as lines, target.open("wb") as kept:
        for line in itertools.islice(lines, limit):
            row = json.loads(line)
            rows += 1
            if any_hit:
                drop = any(run in found for name in ("input", "rationale") for run in _runs(row[name]))
            else:
                had: dict[int, int] = {}
                for run in {run for name in ("input", "rationale") for run in _runs(row[name])}:
                    for place in found.get(run, ()):
                        had[place] = had.get(place, 0) + 1
                drop = any(2 * number >= sizes[place] for place, number in had.items())
            dropped += drop
            if not drop:
                kept.write(line)
    spent = time.process_time() - began
    return {
        "rows": rows,
        "dropped": dropped,
        "core, us a row": round(1e6 * spent / rows, 2),
        "rows/s of core time": round(rows / spent),
    }


def _runs(text: str, n: int = 8) -> Iterator[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return zip(*(words[start:] for start in range(n)), strict=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--eval-rows", type=int, default=10_000)
    parser.add_argument("--slow-rows", type=int, default=20_000)
    parser.add_argument("--folder", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        source, target, small = (Path(folder) / name for name in ("rows.jsonl", "kept.jsonl", "small.jsonl"))
        asked, said = sentences(chosen.data)
        asked = asked[: chosen.eval_rows]
        write(source, chosen.rows, asked, said)
        write(small, 1_000, asked, said, seed=1)
        path = Path(folder) / "eval.jsonl"
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in asked), encoding="utf-8")
        sets = {"test": EvalSet(path=path, input="{{ text }}")}
        print(f"{chosen.rows:,} rows of {source.stat().st_size / chosen.rows:.0f} bytes, {len(asked):,} eval rows")
        ways: dict[str, Callable[[], dict[str, Any]]] = {
            "defaults": lambda: file_to_file(source, target, sets),
            "preset open_r1 (any 8-gram)": lambda: file_to_file(source, target, sets, preset="open_r1"),
            "Python, any 8-gram": lambda: plain(source, target, asked, chosen.slow_rows, any_hit=True),
            "Python, half of the 8-grams": lambda: plain(source, target, asked, chosen.slow_rows, any_hit=False),
        }
        for knobs in ({}, {"preset": "open_r1"}):
            file_to_file(small, target, sets, **knobs)
        figures = {}
        for name, way in ways.items():
            figures[name] = way()
            print(name, json.dumps(figures[name]), flush=True)
            if name == "defaults":
                print(
                    f"most memory so far: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB",
                    flush=True,
                )
        ours = figures["defaults"]["rows/s of core time"]
        for name, figure in list(figures.items())[1:]:
            print(f"defaults are {ours / figure['rows/s of core time']:.2f} times as fast as {name}")


if __name__ == "__main__":
    main()
