"""Fuzzing led by coverage, with atheris: what reads foreign bytes is given inputs that reach ever more of its branches.

    python scripts/fuzz.py rows --seconds 1200
    -> rows: 812,345 inputs in 1,200 s (677/s), 2,104 features, nothing found; corpus build/fuzz/rows

The targets, and what must hold of each, are in tests/fuzz_targets.py. What breaks that, takes more than 10 s or more than 1.5 GB is
written to build/fuzz/TARGET-found, the last line says so, and the exit code is 1; `--input FILE` tries such a file again, without
atheris. The corpus is kept, and the next run begins with it.

Limits: C code (json's scanner, msgspec, csv, pyarrow) has no coverage; tests/fuzz_targets.py says what stands in for it. No two runs are
alike, but with the same `--seed`, `--executions` and an empty corpus.
"""

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # this checkout, whichever one is installed
MEGABYTES: Final = 1500
STATUS: Final = re.compile(r"^#(\d+)\t.* ft: (\d+) ", re.MULTILINE)
PASSED_OVER: Final = [  # imported, but no part of what is fuzzed: instrumenting them takes a second
    *(f"pipeline.{name}" for name in "binding embedded limits progress prompts revocations terms".split()),
    *(f"pipeline.teachers.{name}" for name in "continuous vllm vllm_engine vllm_prompts".split()),
]
INSIDE: Final = "--inside"  # the process that fuzzes: libFuzzer ends it as it likes


def main() -> None:
    """Run one target; the exit code is 1 where something was found."""
    if INSIDE in sys.argv:
        _fuzz(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), sys.argv[5:])
    from tests.counting import counted
    from tests.fuzz_targets import PLANTED, TARGETS

    parser = argparse.ArgumentParser(prog="python scripts/fuzz.py", description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seconds-each", type=int, default=10, help="the longest that one input may take")
    parser.add_argument("--executions", type=int, default=-1, help="the most inputs that are tried (-1: no limit)")
    parser.add_argument(
        "--corpus", type=Path, help="a folder of inputs to begin from, and to add to (default: build/fuzz/TARGET)"
    )
    parser.add_argument("--found", type=Path, help="a folder for what breaks it (default: build/fuzz/TARGET-found)")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers (0: another one each time)")
    parser.add_argument("--input", type=Path, help="try this file alone")
    options = parser.parse_args()
    name = options.target
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_memory()) as scratch:
        if options.input is not None:
            with ExitStack() as closing:
                TARGETS[name].begin(Path(scratch), closing)(options.input.read_bytes())
            print(f"{name}: {options.input}: as it should be")
            return
        corpus = options.corpus or ROOT / "build" / "fuzz" / name
        found = options.found or ROOT / "build" / "fuzz" / f"{name}-found"
        for folder in (corpus, found, Path(scratch) / "seeds"):
            folder.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(TARGETS[name].seeds()):
            (Path(scratch) / "seeds" / f"{number:03d}").write_bytes(seed)
        words = [
            '"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in dict.fromkeys(TARGETS[name].words)
        ]
        (Path(scratch) / "words").write_text("".join(words))
        now, began = time.time(), time.monotonic()
        done = subprocess.run(
            [
                *(sys.executable, __file__, INSIDE, name, scratch, str(found), str(corpus), f"{scratch}/seeds"),
                *([f"-dict={scratch}/words"] if words else []),
                *(f"-max_total_time={options.seconds}", f"-runs={options.executions}"),
                *(f"-artifact_prefix={found}/", f"-timeout={options.seconds_each}", f"-rss_limit_mb={MEGABYTES}"),
                *(f"-seed={options.seed}", "-print_final_stats=1"),
            ],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
    seconds = time.monotonic() - began
    statuses = STATUS.findall(done.stdout)
    executions, features = (int(number) for number in statuses[-1]) if statuses else (0, 0)
    told = re.search(r"number_of_executed_units:\s*(\d+)", done.stdout)
    executions = int(told[1]) if told else executions
    if name not in PLANTED:
        counted(f"inputs made by fuzzing that follows coverage: {name}", executions)
    new = sorted(path for path in found.iterdir() if path.stat().st_mtime >= now)
    if done.returncode:
        print(done.stdout[-6000:], file=sys.stderr)
    what = f"{name}: {executions:,} inputs in {seconds:,.0f} s ({executions / seconds:,.0f}/s), {features:,} features"
    if new:
        again = f"python scripts/fuzz.py {name} --input {_shown(new[0])}"
        print(f"{what}; found {', '.join(map(_shown, new))}; see it with `{again}`")
    elif done.returncode:
        print(f"{what}; stopped with exit code {done.returncode}")
    else:
        print(f"{what}, nothing found; corpus {_shown(corpus)}")
    sys.exit(bool(done.returncode))


def _shown(path: Path) -> str:
    """From where the checkout is, where that is possible."""
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def _memory() -> str | None:
    """A folder in memory, where there is one: each input is written to a file."""
    shared = Path("/dev/shm")
    return str(shared) if os.access(shared, os.W_OK) else None


def _fuzz(name: str, scratch: Path, found: Path, options: Sequence[str]) -> None:
    """In the process that fuzzes: never returns."""
    import hashlib
    import json.scanner

    import atheris

    for function in (
        json.decoder.JSONObject,  # type: ignore[attr-defined]
        json.decoder.JSONArray,  # type: ignore[attr-defined]
        json.decoder.py_scanstring,  # type: ignore[attr-defined]
        json.scanner.py_make_scanner,  # type: ignore[attr-defined]
    ):
        atheris.instrument_func(function)
    with atheris.instrument_imports(include=["pipeline", "tests", "jsonlines", "h11"], exclude=PASSED_OVER):
        from tests.fuzz_targets import TARGETS

        target = TARGETS[name]
        closing = ExitStack()  # never closed: libFuzzer ends the process
        attempt = target.begin(scratch, closing)
    words = list(target.words)
    tried = 0

    def judged(data: bytes) -> None:
        """Written down here: while atheris does it, at the end of a process, libFuzzer's alarm can end that before it is done."""
        nonlocal tried
        tried += 1
        try:
            attempt(data)
        except Exception:  # noqa: BLE001 - whatever it is, it is what was looked for
            (found / f"broken-{hashlib.sha1(data, usedforsecurity=False).hexdigest()}").write_bytes(data)
            traceback.print_exc()
            print(f"number_of_executed_units: {tried}", file=sys.stderr, flush=True)
            os._exit(1)

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.5:
            return bytes(atheris.Mutate(data, most))
        return _another_value(data, words, chance)[:most] or bytes(atheris.Mutate(data, most))

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + 2 * (MEGABYTES << 20)  # what asks for more gets a MemoryError
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    atheris.Setup([sys.argv[0], *options], judged, custom_mutator=mutated)
    atheris.Fuzz()


def _another_value(data: bytes, words: Sequence[bytes], chance: random.Random) -> bytes:
    """One line that is JSON with something else in one place: bytes alone would hardly ever keep the grammar. b'' where there is none."""
    lines = data.split(b"\n")
    number = chance.randrange(len(lines))
    start = lines[number].find(b"{")
    try:
        value = json.loads(lines[number][start:]) if start >= 0 else None
    except (ValueError, RecursionError):
        return b""
    if not isinstance(value, dict):
        return b""
    try:
        _change(value, [word.decode("utf-8", "replace").strip('"') for word in words] or ["a"], chance)
        text = json.dumps(value, ensure_ascii=chance.random() < 0.5)
    except RecursionError:
        return b""
    lines[number] = lines[number][:start] + text.encode("utf-8", "surrogatepass")
    return b"\n".join(lines)


def _change(value: dict[str, Any], words: list[str], chance: random.Random) -> None:
    """Another value, or none, somewhere inside."""
    places: list[tuple[Any, Any]] = []
    left: list[Any] = [value]
    while left:
        inside = left.pop()
        names = list(inside) if isinstance(inside, dict) else range(len(inside))
        places += [(inside, name) for name in names]
        left += [inside[name] for name in names if isinstance(inside[name], dict | list)]
    word = chance.choice(words)
    inside, name = chance.choice(places) if places else (value, word)
    before = inside[name] if places else None
    others: list[Any] = [
        None, True, False, 0, -1, 1, 2**31 - 1, 2**31, 10**9 + 1, 2**64, 0.5, -0.25, -1e-9, -0.0, 1e308, "", word, [], {}, [before],
        {word: before}, [before, before], str(before), inside, value.get(chance.choice(list(value))) if value else None,
    ]  # fmt: skip
    kind = chance.randrange(4)
    if kind == 0 and isinstance(inside, dict):
        inside.pop(name, None)
    elif kind == 1 and isinstance(inside, dict):
        inside[word] = json.loads(json.dumps(chance.choice(others)))
    elif kind == 2 and isinstance(before, str):
        place = chance.randint(0, len(before))
        inside[name] = before[:place] + word + before[place:]
    else:
        inside[name] = json.loads(json.dumps(chance.choice(others)))


if __name__ == "__main__":
    main()
