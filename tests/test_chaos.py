"""What a misbehaving server does to a run: nothing is lost, nothing is made up, and the next run completes it.

The default suite tries every misbehaviour with one or two seeds; `python -m tests.test_chaos --seeds 20` tries more, and tells what came.
"""

import argparse
import os
import tempfile
import time
from collections import Counter
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, Final

import pytest

from pipeline import sample
from pipeline.files import line_digest
from pipeline.records import Drop, Prompt, Response
from pipeline.responses import read_store, verify
from pipeline.spending import Meter
from pipeline.teachers import Server
from tests.chaos_server import HONEST, MISBEHAVIOURS, TAKE_TIME, chaos_server

SEEDS: Final = 2
LARGE: Final = {"endless_body", "gzip_bomb"}
PROMPTS, N = 12, 2
KEY: Final = "sk-never-to-be-seen/0123456789"
REASONS: Final = {
    "server_error": "server_errors",
    "refused": "refusal",
    "timed_out connection_failed": "hang hang_midway drip drip_headers early_hints",
    "connection_failed": "reset closed cut_body header_storm no_http",
    "unreadable_answer": "truncated_json page gzip_bomb badly_packed endless_body invalid_utf8 lone_surrogates duplicate_keys "
    "no_json no_first_choice no_message",
    "connection_failed unreadable_answer": "bad_chunks bad_lengths",
    "refused connection_failed": "redirect",
    "not_finished": "no_finish_reason tool_calls",
    "no_text": "no_text",
    "other_model": "other_model",
    "refused server_error key_in_answer not_finished unreadable_answer other_model": "key_told",
    "": "storm packed wrong_type wrong_counts wrong_logprobs other_choices long_text odd_text surplus",
}
"""The reasons that failures may have under each misbehaviour; none: it is survived without any. ``mixed`` may have all of them."""
EXPECTED: Final = {one: set(reasons.split()) for reasons, names in REASONS.items() for one in names.split()}


def prompts() -> list[Prompt]:
    """The first is always answered honestly: a server that never answers stops the run instead, which is another test."""
    texts = [f"the first; {HONEST}", *(f"question {number}" for number in range(1, PROMPTS))]
    return [
        Prompt(id=f"p{n}", source=f"in.jsonl:{n + 1}", input=text, gold=None, choices=None, columns={"text": text})
        for n, text in enumerate(texts)
    ]


def asked(url: str, folder: Path, timeout: float, retries: int = 2) -> dict[str, Any]:
    template = folder / "prompt.jinja"
    template.write_text("{% block user %}{{ text }}{% endblock %}")
    teacher = Server(
        backend="server",
        base_url=url,
        model="m",
        revision="1",
        api_key_env="CHAOS_KEY",
        concurrency=4,
        timeout=timeout,
        retries=retries,
        pause=0.001,
        longest_pause=0.02,
    )
    return {"teacher": [teacher], "prompt": template, "n": N, "temperature": 0.7, "logprobs": True, "max_tokens": 20}


def survive(misbehaviour: str, seed: int, folder: Path) -> Counter[str]:
    """Ask 24 requests of the misbehaving server, and then the failed ones of an honest one; what became of them."""
    store = folder / "responses"
    rows = prompts()
    ids = [f"p{number}#{sample}" for number in range(PROMPTS) for sample in range(N)]
    takes_time = misbehaviour in TAKE_TIME
    meters: dict[str, Meter] = {}
    with chaos_server(misbehaviour, seed, share=0.3 if takes_time else 0.5) as chaos:
        settings = asked(chaos.url, folder, *((0.4, 1) if takes_time else (60.0, 2)))
        found = list(sample.answers(rows, responses=store, meters=meters, **settings))
        assert chaos.misbehaved > 0
    responses = [row for row in found if isinstance(row, Response)]
    failures = [row for row in found if isinstance(row, Drop)]
    assert [row.id for row in found] == ids
    assert len(responses) + len(failures) == PROMPTS * N == meters["m"].requests
    assert meters["m"].prompt_tokens >= 0
    texts = {f"p{number}": rows[number].input for number in range(PROMPTS)}
    for row in responses:
        assert line_digest(row.text.encode()) in chaos.given[texts[row.prompt], row.sample], row
        assert 0 <= row.prompt_tokens <= 10**9
        assert 0 <= row.completion_tokens <= 10**9
        assert row.mean_logprob is None or row.mean_logprob <= 0
    reasons = Counter(row.reason for row in failures)
    if misbehaviour != "mixed":
        assert set(reasons) <= EXPECTED[misbehaviour], reasons
    assert list(verify(store)) == []
    assert KEY not in "".join(row.line().decode() for row in failures)
    assert all(KEY.encode() not in path.read_bytes() for path in store.rglob("*") if path.is_file())

    with chaos_server(None, seed) as honest:
        again = list(sample.answers(rows, responses=store, **asked(honest.url, folder, 60.0)))
        assert honest.requests == len(failures)
    assert [row.id for row in again] == ids
    assert all(isinstance(row, Response) for row in again)
    known = {row.id: row for row in again}
    assert all(known[row.id] == row for row in responses)
    assert list(verify(store)) == []
    assert len(list(read_store(store))) == PROMPTS * N
    return Counter(answered=len(responses), tries=chaos.requests, misbehaved=chaos.misbehaved) + Counter(
        {f"failed: {reason}": count for reason, count in reasons.items()}
    )


TRIED: Final = [
    (name, seed) for name in sorted(MISBEHAVIOURS) for seed in range(1 if name in TAKE_TIME or name in LARGE else SEEDS)
]


@pytest.mark.parametrize(("misbehaviour", "seed"), TRIED)
def test_a_misbehaving_server_is_survived(
    misbehaviour: str, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHAOS_KEY", KEY)
    survive(misbehaviour, seed, tmp_path)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.test_chaos")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--misbehaviour", choices=sorted(MISBEHAVIOURS), action="append")
    options = parser.parse_args()
    os.environ["CHAOS_KEY"] = KEY
    total: Counter[str] = Counter()
    began = time.monotonic()
    for misbehaviour in options.misbehaviour or sorted(MISBEHAVIOURS):
        counts: Counter[str] = Counter()
        for seed in range(options.seeds):
            with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):
                counts += survive(misbehaviour, seed, Path(folder))
        total += counts
        print(f"{misbehaviour}: {', '.join(f'{name} {count}' for name, count in sorted(counts.items()))}", flush=True)
    runs = len(options.misbehaviour or MISBEHAVIOURS) * options.seeds
    print(f"\n{runs} runs of {PROMPTS * N} requests in {time.monotonic() - began:.0f} s; nothing lost, nothing made up")
    print(", ".join(f"{name} {count:,}" for name, count in sorted(total.items())))


if __name__ == "__main__":
    main()
