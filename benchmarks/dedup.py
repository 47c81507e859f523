"""Near duplicates in a million rows of about 500 characters, file to file: rows a second, memory, growth, recall; and peers beside it.

    python benchmarks/dedup.py DATA [--rows 100000 1000000 3000000] [--processes 1 2] [--set KNOB=VALUE ..] [--unchecked] [--peer PYTHON]
                               [--peer-rows 50000] [--folder FOLDER]

DATA is a folder with `svamp/` and `cqa/`, each with `train.jsonl` and `palm540b-train.jsonl`. Rows are put together from the sentences of
their questions and completions. Of every hundred rows two repeat an earlier one but for case and punctuation, six have 1 to 12 of its
words exchanged, and one has another number in it.

``rows/s of CPU`` counts the processor time of all processes instead of the clock's, where others use the machine too.

What is timed is what the runner does for this stage, block by block over the same functions: lines read and checked, sketches, verdicts,
kept lines and drops written with their digests, SHA-256, synced. Compiling is not counted: a small run goes first. Memory is the peak
that this process and its children hold together. Recall is the share of planted pairs that were dropped, of those whose true Jaccard index
is at least the threshold and that no veto keeps apart; beside it, how many such pairs are left among the kept rows (each of 300 kept rows
with each of 100,000, counted with text.py alone). Of what was dropped for a twin, 2,000 similarities are recomputed the same way.

Peers: rensa (RMinHash and its LSH, row by row) and datasketch (bulk MinHash, LSH), 128 permutations, threshold 0.8, over the same shingles
of the same rows, without verification, on one core; with the Python that is given, in which they are installed.
"""

import argparse
import json
import os
import random
import re
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import msgspec
from curation_speed import watched
from ruamel.yaml import YAML

from pipeline import text
from pipeline.binding import bind
from pipeline.blocks import BYTES, Block, Span, Written, judged
from pipeline.dedup import CORPUS, dedup
from pipeline.files import read_jsonl
from pipeline.outputs import RowWriter
from pipeline.processes import WORTH_IT, Crew
from pipeline.records import Drop, Example, Vote

PARTS = ("sketch", "resolve", "write")
LABELS = ("park", "school", "office", "kitchen", "river")
PEERS = """
import json, sys, time
name, path = sys.argv[1:]
texts = [json.loads(line)["input"] for line in open(path)]
def shingles(text):
    words = text.lower().split()
    return [" ".join(words[k : k + 3]) for k in range(max(1, len(words) - 2))]
began = time.perf_counter()
dropped = 0
if name == "rensa":
    from rensa import RMinHash, RMinHashLSH
    index = RMinHashLSH(0.8, 128, 16)
    for place, text in enumerate(texts):
        signature = RMinHash(128, 1)
        signature.update(shingles(text))
        if index.query(signature):
            dropped += 1
        else:
            index.insert(place, signature)
else:
    from datasketch import MinHash, MinHashLSH
    index = MinHashLSH(params=(16, 8), num_perm=128)
    data = ([shingle.encode() for shingle in shingles(text)] for text in texts)
    for place, signature in enumerate(MinHash.generator(data, num_perm=128)):
        if index.query(signature):
            dropped += 1
        else:
            index.insert(place, signature)
print(json.dumps({"seconds": time.perf_counter() - began, "dropped": dropped}))
"""


def build(path: Path, data: Path, number: int, seed: int = 0) -> dict[int, int]:
    """Writes ``number`` examples; for each planted row the number of the one that it was made from."""
    chance = random.Random(seed)
    pool = sentences(data)
    words = [word for sentence in pool for word in sentence.split()]
    earlier: list[tuple[int, str, str]] = []
    planted = {}
    with path.open("wb") as file:
        for place in range(number):
            drawn = chance.random()
            if drawn < 0.09 and earlier:
                source, found, label = chance.choice(earlier)
                planted[place] = source
                found = changed(found, drawn, chance, words)
            else:
                parts: list[str] = []
                while sum(map(len, parts)) < 460:
                    parts.append(chance.choice(pool))
                found, label = " ".join(parts), chance.choice(LABELS)
                if len(earlier) < 100_000:
                    earlier.append((place, found, label))
            file.write(example(place, found, label).line() + b"\n")
    return planted


def changed(found: str, drawn: float, chance: random.Random, words: list[str]) -> str:
    """A copy of a text, edited as the draw says."""
    if drawn < 0.02:
        return found.upper().replace(".", " !")
    if drawn < 0.03 and (numbers := re.findall(r"\d+", found)):
        return found.replace(chance.choice(numbers), str(chance.randrange(100, 1000)))
    edited = found.split()
    for _ in range(chance.randint(1, 12)):
        edited[chance.randrange(len(edited))] = chance.choice(words)
    return " ".join(edited)


def sentences(data: Path) -> list[str]:
    found = set()
    for name, field in (("cqa", "question"), ("svamp", "input")):
        for file, column in (("train", field), ("palm540b-train", "completion")):
            for _, row in read_jsonl(data / name / f"{file}.jsonl"):
                found |= {part.strip() for part in re.split(r"(?<=[.?!])\s+|\n", row[column]) if len(part) > 15}
    return sorted(found)


def example(place: int, found: str, label: str) -> Example:
    id = f"row-{place:08d}"
    rationale = f"The answer must be a place that fits: {found[:80]}. Of the above choices, only {label} fits."
    return Example(
        id=id,
        input=found,
        label=label,
        rationale=rationale,
        response=f"{id}#0",
        text=f"{rationale} So the answer is {label}.",
        finish_reason="stop",
        votes=[Vote(response=f"{id}#0", request=f"{place:032x}", teacher="palm-540b", label=label)],
        gold=None,
        choices=None,
        agreement=1.0,
        entropy=0.0,
    )


def blocks(path: Path) -> Iterator[Block]:
    """The lines of a file in blocks as the runner cuts them."""
    size, start = path.stat().st_size, 0
    with path.open("rb") as file:
        while start < size:
            file.seek(min(size, start + BYTES))
            file.readline()
            yield Block((Span(path, start, file.tell()),))
            start = file.tell()


def sketch(settings: dict[str, Any], block: Block) -> tuple[int, Any]:
    rows = block.rows(CORPUS.view)
    return len(rows), CORPUS.sketch(rows, None, **settings)


def split(_: None, block: Block, verdicts: list[Drop | None]) -> Written:
    return judged(block.read(), verdicts, "dedup")


def measure(path: Path, folder: Path, settings: dict[str, Any], processes: int) -> dict[str, Any]:
    """One run from file to file, after a small one."""
    folder.mkdir(exist_ok=True)
    with Crew("local", processes) as crew:
        found = [*blocks(path)]
        through(crew, found[:processes], folder, settings)
        with watched() as peak:
            began, used = time.perf_counter(), busy()
            figures = through(crew, found, folder, settings)
            seconds, used = time.perf_counter() - began, busy() - used
    speed = {"rows/s": round(figures["rows"] / seconds), "rows/s of CPU": round(figures["rows"] / used)}
    return {
        "processes": processes,
        **speed,
        "GiB": round(peak.bytes / 2**30, 2),
        "seconds": round(seconds, 2),
        **figures,
    }


def through(crew: Crew, found: list[Block], folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What the runner does: rows, drops, and the seconds of each part."""
    times = [time.perf_counter()]
    done = [*crew.in_order(sketch, ((block,) for block in found), weight=WORTH_IT, shared=settings)]
    times.append(time.perf_counter())
    details: dict[str, Any] = {}
    parts = cut(CORPUS.resolve([one for _, one in done], None, **settings), [rows for rows, _ in done], details)
    first = [next(parts)]
    times.append(time.perf_counter())
    kept, drops = RowWriter(folder, "part", 100_000), RowWriter(folder, "dropped", None)
    for written in crew.in_order(split, zip(found, chain(first, parts), strict=True), weight=WORTH_IT):
        for lines in written.kept.values():
            kept.write_lines(lines.data, lines.digests, lines.rows)
        drops.write_lines(written.drops.data, written.drops.digests, written.drops.rows)
    kept.close()
    drops.close()
    times.append(time.perf_counter())
    parts_of_time = {name: round(end - start, 2) for name, (start, end) in zip(PARTS, pairwise(times), strict=True)}
    return {
        "rows": sum(rows for rows, _ in done),
        "dropped": drops.rows,
        "crowded": details["crowded"],
        **parts_of_time,
    }


def busy() -> float:
    """Seconds of CPU time that this process and the ones it started have used: what is left of the load of others."""
    found = 0.0
    children = [
        child for task in Path("/proc/self/task").iterdir() for child in (task / "children").read_text().split()
    ]
    for process in ("self", *children):
        fields = Path("/proc", process, "stat").read_text().rpartition(")")[2].split()
        found += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return found


def cut(verdicts: Any, counts: list[int], details: dict[str, Any]) -> Iterator[list[Drop | None]]:
    for count in counts:
        yield [next(verdicts) for _ in range(count)]
    try:
        next(verdicts)
    except StopIteration as end:
        details |= end.value


def check(path: Path, folder: Path, planted: dict[int, int], settings: dict[str, Any]) -> dict[str, Any]:
    """Recall and precision, with text.py alone."""
    chance = random.Random(1)
    lines = path.read_bytes().split(b"\n")[:-1]
    gone = {drop.id: drop for drop in map(Drop.read, (folder / "dropped.jsonl").read_bytes().splitlines())}
    decoder = msgspec.json.Decoder(CORPUS.view)

    def shingles(row: Any) -> set[str]:
        if settings["unit"] == "characters":
            return text.shingles(row.input, settings["shingle"])
        words = text.words(row.input)
        return set(text.ngrams(words, settings["shingle"])) or {" ".join(words)}

    def alike(first: Any, second: Any) -> float:
        left, right = shingles(first), shingles(second)
        return len(left & right) / len(left | right)

    def apart(row: Any) -> tuple[Any, ...]:
        from pipeline.minhash import NEGATIONS, NUMBER_WORDS

        found = text.words(row.input)
        told = [[word] if word in NUMBER_WORDS else text.numbers(word) for word in found]
        return row.label, [number for one in told for number in one], sum(word in NEGATIONS for word in found)

    pairs = Counter[str]()
    for place, source in chance.sample(sorted(planted.items()), min(len(planted), 20_000)):
        row, original = decoder.decode(lines[place]), decoder.decode(lines[source])
        similarity = alike(row, original)
        equal = text.normalise(row.input) == text.normalise(original.input)
        if similarity >= settings["near"] and (equal or apart(row) == apart(original)):
            pairs["planted"] += 1
            pairs["found"] += row.id in gone
    wrong = 0
    judged_drops = [drop for drop in gone.values() if drop.reason == "near_duplicate"]
    for drop in chance.sample(judged_drops, min(2_000, len(judged_drops))):
        row, twin = (decoder.decode(lines[int(id[4:])]) for id in (drop.id, drop.evidence["twin"]))
        wrong += abs(alike(row, twin) - drop.evidence["similarity"]) > 1e-4 or apart(row) != apart(twin)
    kept = [row for row in map(decoder.decode, lines[:100_000]) if row.id not in gone]
    sample = chance.sample(kept, min(300, len(kept)))
    holders: dict[str, list[int]] = {}
    for number, row in enumerate(sample):
        for shingle in shingles(row):
            holders.setdefault(shingle, []).append(number)
    sizes = [len(shingles(row)) for row in sample]
    left = 0
    for row in kept:
        found = shingles(row)
        common = Counter(number for shingle in found for number in holders.get(shingle, ()))
        for number, count in common.items():
            same = count / (len(found) + sizes[number] - count) >= settings["near"]
            left += same and sample[number].id != row.id and apart(sample[number]) == apart(row)
    return {
        "planted pairs at the threshold": pairs["planted"],
        "recall": round(pairs["found"] / max(1, pairs["planted"]), 4),
        "wrong of 2,000 near drops": wrong,
        "pairs left by brute force": left,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--set", nargs="*", default=[], metavar="KNOB=VALUE")
    parser.add_argument("--unchecked", action="store_true", help="speed alone")
    parser.add_argument("--peer", type=Path, help="a Python in which rensa and datasketch are installed")
    parser.add_argument("--peer-rows", type=int, default=50_000)
    parser.add_argument("--folder", type=Path, help="where rows are built, and found again; a temporary one by default")
    given = parser.parse_args()
    if not (given.data / "cqa" / "palm540b-train.jsonl").is_file():
        parser.error(f"{given.data}: holds no cqa/palm540b-train.jsonl; name the folder of real data")
    knobs = dict(knob.split("=", 1) for knob in given.set)
    settings = bind(
        dedup,
        {name: YAML(typ="safe").load(value) for name, value in knobs.items()},
        lookup={}.__getitem__,
        folder=Path(),
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        for number in given.rows:
            path = folder / f"rows-{number}.jsonl"
            truth = folder / f"planted-{number}.json"
            if not truth.is_file():
                truth.write_text(json.dumps(build(path, given.data, number)))
            planted = {int(place): source for place, source in json.loads(truth.read_text()).items()}
            for processes in given.processes:
                print(json.dumps(measure(path, folder / "out", settings, processes)), flush=True)
            if not given.unchecked:
                print(json.dumps(check(path, folder / "out", planted, settings)), flush=True)
        if given.peer:
            few = folder / "few.jsonl"
            with path.open("rb") as lines:
                few.write_bytes(b"".join(next(lines) for _ in range(given.peer_rows)))
            ours = measure(few, folder / "out", settings, 1)
            print(json.dumps(ours))
            for name in ("rensa", "datasketch"):
                done = subprocess.run([given.peer, "-c", PEERS, name, few], capture_output=True, text=True, check=True)
                found = json.loads(done.stdout)
                speed = given.peer_rows / found["seconds"]
                print(
                    json.dumps(
                        {
                            name: round(speed),
                            "dropped": found["dropped"],
                            "ours / theirs": round(ours["rows/s"] / speed, 1),
                        }
                    )
                )


if __name__ == "__main__":
    import dedup as this  # other processes find functions by their module, and it must not be __main__

    this.main()
