"""What Ray between driver and engine costs: `python benchmarks/workers.py [PROMPTS]` (default 20,000 for each engine).

The engine is one that sleeps: 256 requests at once, steps of 5 ms, 20 to 60 steps an answer, so that any request that comes late shows as
time lost and the processor is free for the rest. Everything else is as in a run: prompts are rendered and looked up, answers committed.
Prints the requests a second of the bare engine, then of a run with the engine inside the process and of runs with one and several workers,
as ratios to it.
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)  # the workers import this file

from pipeline import sample, teachers  # noqa: E402
from pipeline.records import Prompt  # noqa: E402
from pipeline.spending import Meter  # noqa: E402
from pipeline.teachers import Answer, Failure, Request, continuous  # noqa: E402
from pipeline.teachers.contract import Common  # noqa: E402

ROOM, STEP = 256, 0.005


class Sleeping(Common):
    backend: Literal["sleeping"] = "sleeping"


class Engine:
    room = ROOM

    def __init__(self) -> None:
        self.steps: dict[int, tuple[int, str]] = {}
        self.now = 0

    def submit(self, number: int, request: Request) -> Answer | Failure | None:
        self.steps[number] = self.now + 20 + int(request.prompt_id) * 7919 % 41, request.prompt_id
        return None

    def step(self) -> Iterable[tuple[int, Answer | Failure]]:
        time.sleep(STEP)
        self.now += 1
        done = [number for number, (end, _) in self.steps.items() if end <= self.now]
        return [(number, Answer(f"about {self.steps.pop(number)[1]}", "stop")) for number in done]

    def close(self) -> None:
        self.steps.clear()


@contextmanager
def connect(settings: Sleeping, sampling: Any) -> Iterator[Any]:
    def apart(deaths: int, error: str) -> Answer | Failure:
        return Failure("engine_died", {})

    with continuous.running(Engine, apart=apart) as answers:
        yield answers


teachers.BACKENDS["sleeping"] = SimpleNamespace(  # type: ignore[assignment]
    name=lambda settings: "sleeping",
    identity=lambda settings: {"backend": "sleeping"},
    counter=lambda settings: None,
    connect=connect,
)


def speed(prompts: int, **where: Any) -> float:
    """Requests a second, the start left out."""
    from benchmarks.workers import Sleeping as Importable

    rows = [
        Prompt(id=str(number), source="benchmark", input="", gold=None, choices=None, columns={"text": f"row {number}"})
        for number in range(prompts)
    ]
    with tempfile.TemporaryDirectory() as temporary:
        template = Path(temporary) / "prompt.jinja"
        template.write_text("{% block user %}Name the topic of: {{ text }}{% endblock %}")
        meters: dict[str, Meter] = {}
        found = sample.answers(
            rows, responses=Path(temporary) / "store", meters=meters, teacher=[Importable()], prompt=template, **where
        )
        assert len(list(found)) == prompts
    return meters["sleeping"].requests / meters["sleeping"].seconds


def bare(prompts: int) -> float:
    """Requests a second of the engine and nothing else."""
    began = time.perf_counter()
    with connect(Sleeping(), {}) as teacher:
        found = sum(1 for _ in teacher(iter([SimpleNamespace(prompt_id=str(number)) for number in range(prompts)])))
    assert found == prompts
    return prompts / (time.perf_counter() - began)


def main(prompts: int) -> None:
    alone = bare(prompts)
    print(f"bare engine: {alone:,.0f} requests/s")
    here = speed(prompts)
    print(f"in this process: {here:,.0f} requests/s, {here / alone:.2f} of the bare engine")
    for workers in (1, 2, 4):
        found = speed(prompts * workers, engine="ray", workers=workers)
        print(f"{workers} in Ray: {found:,.0f} requests/s, {found / alone / workers:.2f} of {workers} bare")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)
