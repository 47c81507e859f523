"""Memory and speed of sampling against the number of prompts, with a teacher that answers at once.

    python benchmarks/sampling_memory.py

Each size runs in a process of its own; what is compared is the peak of its resident memory.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline import teachers
from pipeline.asking import ask
from pipeline.records import Prompt
from pipeline.requests import resolve
from pipeline.teachers import Answer, Request

SIZES = (1_000, 10_000, 100_000, 300_000)
TEMPLATE = "{% block system %}You label texts.{% endblock %}{% block user %}{{ text }}{% endblock %}"
TEXT = (
    "Officials said on Tuesday that the plan would be put before the council again in spring, after a year of talks. "
    * 3
)


def prompts(number: int) -> Iterator[Prompt]:
    for place in range(number):
        text = f"{place}: {TEXT}"
        yield Prompt(
            id=f"r{place}",
            source=f"rows.jsonl:{place + 1}",
            input=text,
            gold=None,
            choices=None,
            columns={"text": text},
        )


@contextmanager
def connect(*_: Any) -> Iterator[Any]:
    def answer(requests: Iterator[Request]) -> Iterator[tuple[Request, Answer]]:
        for request in requests:
            yield request, Answer(f"It says {request.key}, at some length. So the answer is yes.", "stop", 120, 20)

    yield answer


def measure(number: int) -> dict[str, float]:
    teachers.BACKENDS["server"] = SimpleNamespace(  # type: ignore[assignment]
        name=lambda settings: "fake",
        identity=lambda settings: {"backend": "fake"},
        counter=lambda settings: None,
        connect=connect,
    )
    with tempfile.TemporaryDirectory() as folder:
        template = Path(folder) / "ask.jinja"
        template.write_text(TEMPLATE)
        teacher = teachers.Server(backend="server", base_url="http://127.0.0.1:9/v1", model="fake")
        asking = resolve(teacher=[teacher], prompt=template)
        began = time.perf_counter()
        rows = sum(1 for _ in ask(asking, lambda: prompts(number), Path(folder) / "responses", total=number))
        seconds = time.perf_counter() - began
        began = time.perf_counter()
        rows += sum(1 for _ in ask(asking, lambda: prompts(number), Path(folder) / "responses", total=number))
        again = time.perf_counter() - began
    assert rows == 2 * number
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "prompts": number,
        "MiB": peak,
        "rows_per_second": number / seconds,
        "from_store_per_second": number / again,
    }


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
        sys.exit()
    found = []
    for size in SIZES:
        done = subprocess.run(
            [sys.executable, __file__, str(size)], check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        found.append(json.loads(done.stdout))
    base = found[0]
    print("prompts   peak MiB   bytes a prompt beyond the first size   rows/s asked   rows/s from the store")
    for one in found:
        grown = (one["MiB"] - base["MiB"]) * 2**20 / max(one["prompts"] - base["prompts"], 1)
        rates = f"{one['rows_per_second']:>12,.0f}   {one['from_store_per_second']:>21,.0f}"
        print(f"{one['prompts']:>7,}   {one['MiB']:>8.1f}   {grown:>36.0f}   {rates}")
