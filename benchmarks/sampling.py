"""The whole way of an answer over the bare engine: `python benchmarks/sampling.py [PROMPTS]` (default 2,000) asks the embedded teacher.

Both sides use one engine, the same prompts and 32 tokens an answer. Bare is `LLM.generate` on the finished prompt texts; the pipeline
renders each row's template, looks the request up in the store, asks through the backend, commits, and gives the rows from the store.
Each side has every prompt once, in halves (bare, pipeline, pipeline, bare), with an empty prefix cache and an empty store.
Prints tokens a second and their ratio; 0.97 is wanted.
"""

import itertools
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipeline import embedded, sample, teachers
from pipeline.binding import parameters
from pipeline.records import Prompt, Response
from pipeline.requests import all_requests, resolve

ROOT = Path(__file__).parents[1]
TOKENS = 32
ENGINE: dict[str, Any] = {"enforce_eager": True, "max_model_len": 2048}


def prompts(number: int) -> list[Prompt]:
    """The rows of the demo over and over, none like another."""
    lines = (ROOT / "data" / "topics" / "train.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines]
    rows = []
    for count, text in zip(range(number), itertools.cycle(texts), strict=False):
        shown = f"{text} ({count})"
        rows.append(
            Prompt(
                id=f"p{count}",
                source=f"train.jsonl:{count}",
                input=shown,
                gold=None,
                choices=None,
                columns={"text": shown},
            )
        )
    return rows


def settings() -> dict[str, Any]:
    """Those of the stage sample: its defaults, and answers that are all of one length."""
    found = {name: default for name, (_, default) in parameters(resolve).items()}
    return found | {
        "teacher": [teachers.Vllm(backend="vllm", model="embedded", engine=ENGINE)],
        "prompt": ROOT / "prompts" / "topics.jinja",
        "labels": ["sports", "food", "business", "technology", "travel"],
        "choices": None,
        "gold": None,
        "max_tokens": TOKENS,
        "sampling": {"ignore_eos": True},
    }


def main(number: int) -> None:
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    import vllm

    llm = vllm.LLM(model=str(embedded.folder()), enable_prefix_caching=True, use_tqdm_on_load=False, **ENGINE)
    shutdown = llm.llm_engine.engine_core.shutdown
    llm.llm_engine.engine_core.shutdown = lambda *_: None  # one engine for all rounds

    class Kept(vllm.LLM):
        def __new__(cls, **_: Any) -> Any:
            return llm

    vllm.LLM = Kept

    def bare(rows: list[Prompt]) -> tuple[int, float]:
        tokenizer = llm.get_tokenizer()
        asking = resolve(**settings())
        texts = []
        for row in rows:
            (_, request), *_ = all_requests(asking, row)
            assert request.messages is not None
            turns = [message.model_dump() for message in request.messages.messages]
            texts.append(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        llm.reset_prefix_cache()
        wanted = vllm.SamplingParams(temperature=0.0, max_tokens=TOKENS, ignore_eos=True, seed=0)
        began = time.perf_counter()
        outputs = llm.generate(texts, wanted, use_tqdm=False)
        seconds = time.perf_counter() - began
        return sum(len(output.outputs[0].token_ids) for output in outputs), seconds

    def pipeline(rows: list[Prompt]) -> tuple[int, float]:
        llm.reset_prefix_cache()
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            found = list(sample.answers(rows, responses=Path(folder) / "responses", **settings()))
            seconds = time.perf_counter() - began
        assert [row.prompt for row in found if isinstance(row, Response)] == [row.id for row in rows]
        return sum(row.completion_tokens for row in found if isinstance(row, Response)), seconds

    try:
        rows = prompts(number + 100)
        for side in (bare, pipeline):
            side(rows[:50])  # what is compiled and imported at the first time
        rows = rows[100:]
        halves = [rows[: number // 2], rows[number // 2 :]]
        sides = {"bare": bare, "pipeline": pipeline}
        totals = {name: [0, 0.0] for name in sides}
        for name, half in (("bare", 0), ("pipeline", 1), ("pipeline", 0), ("bare", 1)):
            tokens, seconds = sides[name](halves[half])
            totals[name][0] += tokens
            totals[name][1] += seconds
            print(f"{name}: {tokens:,} tokens in {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s", flush=True)
        speed = {name: tokens / seconds for name, (tokens, seconds) in totals.items()}
        assert totals["bare"][0] == totals["pipeline"][0] == number * TOKENS
        print(
            f"{number:,} prompts, {TOKENS} tokens each: bare {speed['bare']:,.0f} tokens/s, pipeline {speed['pipeline']:,.0f} tokens/s, "
            f"ratio {speed['pipeline'] / speed['bare']:.3f}"
        )
    finally:
        shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2_000)
