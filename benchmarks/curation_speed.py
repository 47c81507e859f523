"""Speed and memory of parse .. shard on many stored responses, of a rerun after one changed threshold, and of the rows' codec.

    python benchmarks/curation_speed.py DATA [--rows 1000000] [--base 100000] [--growth 3000000] [--processes N] [--engine local]
                                        [--folder FOLDER]

DATA is a folder with `cqa/train.jsonl`, `cqa/test.jsonl` and `cqa/palm540b-{train,test}.jsonl`: CommonsenseQA and PaLM 540B's completions.
From them come rows of about 500 characters, input and answer together: sentences of the real questions and rationales put together anew,
every fourth word exchanged for another of the same texts, so that rows are as unlike as those of a large real set; 3% repeat an earlier
row with two words edited, 1% repeat one as it was, 0.2% quote one of the 10,000 eval rows, which are made of the test questions. Answers
run on past their end, as the real ones do.

What is timed is the runner, as `stepdistill run --from parse` calls it: manifests, digests and the syncing of every file included. Memory
is the proportional share (PSS) of this process and all its children, read four times a second; the peak of all of them together. Growth
is the time for ROWS over that for BASE, over ROWS / BASE: 1 is linear. A small run goes first, so that all functions are compiled.
"""

import argparse
import gc
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Final

import jsonlines
import msgspec
from pydantic import BaseModel

from pipeline import outputs
from pipeline.blocks import cut, judged
from pipeline.config import load
from pipeline.environment import code, environment
from pipeline.files import read_jsonl
from pipeline.outputs import RowWriter
from pipeline.records import Counts, Example, Manifest, Response, features
from pipeline.runner import Outcome, run

EVAL_ROWS: Final = 10_000
CODEC_ROWS: Final = 200_000
READ_EVERY: Final = 0.25  # seconds
SETTINGS: Final = """\
run: run
task:
  name: speed
  inputs: inputs.jsonl
  input: "{{ text }}"
  id: id
  choices: choices
eval_sets:
  test: {path: eval.jsonl, input: "{{ text }}"}
stages:
  sample: {teacher: {backend: replay, completions: completions.jsonl}}
  parse:
    label_type: choice
    cut_at: ["\\n\\nQ"]
    pattern: '(?s)(?P<rationale>.*?)\\s*So the answer is (?P<label>[^()]*\\([a-e]\\).+?)\\.?'
  quality: {filters: [label_in_set, {min_words: 4}, repeats_label, repetition, refusal]}
  train: false
  evaluate: false
"""
CHANGED: Final = "quality.filters=[label_in_set, {min_words: 12}, repeats_label, repetition, refusal]"


class Texts:
    """Sentences of the real data, and new ones like them."""

    def __init__(self, data: Path, part: str, seed: int) -> None:
        self.chance = random.Random(seed)
        rows = [row for _, row in read_jsonl(data / "cqa" / f"{part}.jsonl")]
        said = {row["id"]: row["completion"] for _, row in read_jsonl(data / "cqa" / f"palm540b-{part}.jsonl")}
        self.questions = [row["question"].split() for row in rows]
        self.choices = [row["choices"] for row in rows]
        self.rationales = [said[row["id"]].partition(" So the answer is")[0].split() for row in rows]
        self.words = list(chain.from_iterable(self.questions))

    def row(self) -> tuple[str, list[str], str, str]:
        """Input, choices, rationale and the answer's letter."""
        pick = self.chance.randrange
        number = len(self.questions)
        sentences = [self.questions[pick(number)] for _ in range(3)]
        rationale = self.rationales[pick(number)] + self.rationales[pick(number)]
        choices = self.choices[pick(number)]
        return " ".join(map(self._changed, sentences)), choices, self._changed(rationale), "abcde"[pick(5)]

    def _changed(self, words: list[str], share: float = 0.25) -> str:
        drawn = self.chance.random
        new = self.chance.choice
        return " ".join([new(self.words) if drawn() < share else word for word in words])

    def edited(self, text: str) -> str:
        """With two of its words exchanged."""
        words = text.split(" ")
        for _ in range(2):
            words[self.chance.randrange(len(words))] = self.chance.choice(self.words)
        return " ".join(words)


def responses(texts: Texts, number: int, leaks: list[str]) -> Iterator[Response]:
    """What a teacher would have answered to ``number`` inputs, duplicates and quoted eval rows among them."""
    earlier: list[tuple[str, list[str], str, str]] = []
    for place in range(number):
        drawn = texts.chance.random()
        found = texts.chance.choice(earlier) if drawn < 0.04 and earlier else texts.row()
        if drawn < 0.03:
            found = (texts.edited(found[0]), *found[1:])
        elif 0.04 <= drawn < 0.042:
            found = (f"{found[0]} {texts.chance.choice(leaks)}", *found[1:])
        if len(earlier) < 50_000:
            earlier.append(found)
        text, choices, rationale, letter = found
        answer = choices["abcde".index(letter)]
        yield Response(
            id=f"row-{place:08d}#0",
            prompt=f"row-{place:08d}",
            sample=0,
            request=f"{texts.chance.getrandbits(128):032x}",
            teacher="palm-540b",
            text=f"{rationale} So the answer is ({letter}) {answer}.\n\nQ: {text[:60]}",
            finish_reason="stop",
            prompt_tokens=100,
            completion_tokens=60,
            input=text,
            gold=answer,
            choices=choices,
        )


def build(folder: Path, data: Path, number: int) -> Path:
    """A project whose responses lie there as the stage sample leaves them; its settings file."""
    folder.mkdir(parents=True)
    held_out = Texts(data, "test", seed=1)
    leaks = [held_out.row()[0] for _ in range(EVAL_ROWS)]
    with jsonlines.open(folder / "eval.jsonl", "w") as rows:
        rows.write_all({"id": f"e{place}", "text": text, "choices": ["a", "b"]} for place, text in enumerate(leaks))
    for name in ("inputs", "completions"):
        (folder / f"{name}.jsonl").write_bytes(b'{"id": "row-00000000", "text": "", "completion": ""}\n')
    (folder / "stages.yaml").write_text(SETTINGS)
    result = folder / "run" / "sample" / "built"
    result.mkdir(parents=True)
    writer = RowWriter(result, "part", 100_000)
    for row in responses(Texts(data, "train", seed=0), number, leaks):
        writer.write(row.line())
    manifest = Manifest(
        stage="sample",
        version=1,
        key="built",
        asked={},
        settings={},
        parents={},
        sources=[],
        identities={},
        models={},
        code=code(),
        environment=environment(),
        counts=Counts(unit="requests", rows_in=number, kept=number, dropped=0, reasons={}, rows_out=number),
        outputs=[*writer.close(), *RowWriter(result, outputs.DROPPED, None).close()],
        root=None,
        features=features(Response),
        details={},
        digest="0" * 64,
    )
    manifest = manifest.model_copy(update={"digest": outputs.manifest_digest(manifest)})
    outputs.write_manifest(result, manifest)
    outputs.point(folder / "run", "sample", "built")
    return folder / "stages.yaml"


class Peak:
    """The most memory that this process and its children held together, in bytes."""

    bytes = 0


@contextmanager
def watched() -> Iterator[Peak]:
    """The peak of memory for the time of the block."""
    peak, done = Peak(), threading.Event()

    def watch() -> None:
        while not done.wait(READ_EVERY):
            peak.bytes = max(peak.bytes, sum(map(_share, _family())))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    yield peak
    done.set()
    watcher.join()


def _family() -> list[Path]:
    found, front = [], [Path("/proc/self").resolve()]
    while front:
        found += front
        children: list[str] = []
        for process in front:
            for task in process.glob("task/*/children"):
                try:
                    children += task.read_text().split()
                except OSError:
                    continue  # ended meanwhile
        front = [Path("/proc", child) for child in children]
    return found


def _share(process: Path) -> int:
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:")), 0)


def measure(settings: Path, processes: int | None, engine: str) -> dict[str, Any]:
    """Seconds by stage and in all, and the peak of memory: parse .. shard, then again after one changed threshold."""
    figures: dict[str, Any] = {}
    for name, overrides, start in (("parse .. shard", [], "parse"), ("quality and shard again", [CHANGED], "quality")):
        config = replace(load(settings, overrides), processes=processes, engine=engine)  # type: ignore[arg-type]
        with watched() as peak:
            began, worked = time.perf_counter(), cpu_seconds()
            outcomes = run(config, start=start)
            seconds, worked = time.perf_counter() - began, cpu_seconds() - worked
        assert all(outcome.ran for outcome in outcomes)
        figures[name] = {
            "seconds": round(seconds, 1),
            "CPU seconds": round(worked, 1),
            "GiB": round(peak.bytes / 2**30, 2),
            "stages": by_stage(outcomes),
        }
    return figures


def cpu_seconds() -> float:
    """Of this process and its children that have ended: what a machine that others use as well changes little."""
    return sum(os.times()[:4])


def by_stage(outcomes: list[Outcome]) -> dict[str, float]:
    """Microseconds a row that the stage read."""
    return {
        one.stage: round(1e6 * one.seconds / outputs.read_manifest(_source(one)).counts.rows_out, 2) for one in outcomes
    }


def _source(outcome: Outcome) -> Path:
    (parent,) = outcome.manifest.parents
    return outcome.folder.parents[1] / parent / outcome.manifest.parents[parent].key


class Model(BaseModel):
    """An Example as pydantic reads it."""

    id: str
    input: str
    label: str | None
    rationale: str | None
    response: str
    text: str
    finish_reason: str
    votes: list[dict[str, Any]]
    gold: str | None
    choices: list[str] | None
    agreement: float | None
    entropy: float | None
    soft_labels: dict[str, float] | None
    rationalised: bool
    judgement: dict[str, Any] | None
    slices: dict[str, str]


def codec(parsed: Path, folder: Path) -> dict[str, int]:
    """Rows a second, in one process: file to file, every row checked. The first is what a filter that keeps all rows does, with a digest
    for each line, SHA-256 and syncing, which the others go without. The search for cycles is off for all, as the runner has it off."""
    folder.mkdir()
    source, target = folder / "rows.jsonl", folder / "copy.jsonl"
    rows, blocks = 0, []
    with source.open("wb") as file:
        for block in cut(parsed):
            rows += file.write(block.read()) and block.read().count(b"\n")
            blocks.append(block)
            if rows >= CODEC_ROWS:
                break

    def through_blocks() -> None:
        writer = RowWriter(folder, "part", 100_000)
        for block in blocks:
            data = block.read()
            written = judged(data, [None for _ in block.rows(Example, data)], "speed")
            lines = written.kept["part"]
            writer.write_lines(lines.data, lines.digests, lines.rows)
        writer.close()

    def bare(*, again: bool) -> None:
        decoder, encoder = msgspec.json.Decoder(Example), msgspec.json.Encoder()
        with source.open("rb") as lines, target.open("wb") as out:
            for line in lines:
                row = decoder.decode(line)
                out.write(encoder.encode(row) + b"\n" if again else line)

    def pydantic() -> None:
        with source.open("rb") as lines, target.open("wb") as out:
            for line in lines:
                out.write(Model.model_validate_json(line).model_dump_json().encode() + b"\n")

    def by_jsonlines() -> None:
        with jsonlines.open(source) as lines, jsonlines.open(target, "w", compact=True) as out:
            for row in lines:
                out.write(row)

    ways: dict[str, Callable[[], None]] = {
        "blocks (digests, sha256, fsync)": through_blocks,
        "msgspec, original bytes": lambda: bare(again=False),
        "msgspec, encoded again": lambda: bare(again=True),
        "pydantic": pydantic,
        "jsonlines (checks nothing)": by_jsonlines,
    }
    found = {}
    for name, way in ways.items():
        seconds = []
        for _ in range(3):
            gc.collect()
            gc.disable()
            began = time.perf_counter()
            way()
            seconds.append(time.perf_counter() - began)
            gc.enable()
        found[name] = round(rows / min(seconds))
    shutil.rmtree(folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--base", type=int, default=100_000, help="rows of the small run that growth is measured against; 0: none"
    )
    parser.add_argument("--growth", type=int, help="a third, larger number of rows")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--engine", default="local")
    parser.add_argument(
        "--folder", type=Path, help="where the rows are written, some 6 GB a million; by default a temporary folder"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name)
        measure(build(folder / "warm", given.data, 2_000), given.processes, given.engine)
        found: dict[str, Any] = {}
        for rows in filter(None, (given.base, given.rows, given.growth)):
            project = folder / f"rows-{rows}"
            settings = build(project, given.data, rows)
            found[f"{rows:,} rows"] = figures = measure(settings, given.processes, given.engine)
            print(json.dumps({f"{rows:,} rows": figures}, indent=2), flush=True)
            if rows == given.rows:
                parsed = outputs.current(project / "run", "parse")
                assert parsed is not None
                print(json.dumps({"rows/s, one process": codec(parsed, folder / "codec")}, indent=2), flush=True)
            shutil.rmtree(project)
        sizes = [rows for rows in (given.base, given.rows, given.growth) if rows]
        for small, large in pairwise(sizes):
            times = [found[f"{rows:,} rows"]["parse .. shard"]["seconds"] for rows in (small, large)]
            print(f"growth {small:,} -> {large:,} rows: {times[1] / times[0] / (large / small):.2f} times linear")


if __name__ == "__main__":
    sys.exit(main())
