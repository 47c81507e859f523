"""Sampling end to end, start-up included, beside curator's offline vLLM path and distilabel's vLLM class: same model, prompts, settings.

    python benchmarks/peers.py [PROMPTS] --curator PYTHON --distilabel PYTHON

Each tool runs in a process of its own, with the Python that is given for it: their packages do not fit into one environment (curator
0.1.31 pins datasets < 4 and, as its extra, vLLM < 0.7). Both were run over the vLLM of this project's environment. As it is, curator
fails there: it imports ``GuidedDecodingParams``, sets ``guided_decoding`` and in the end deletes ``llm_engine.model_executor``, which vLLM
dropped; distilabel 1.5.3 sets ``logits_processors``, which vLLM dropped too. All four are mended for them here.
Prints seconds, and answers a second relative to ours.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SYSTEM = "You are a careful editor. Say in one sentence what the text is about."
ENGINE = {"enforce_eager": True, "max_model_len": 1024}
MAX_TOKENS = 48

DISTILABEL = """
import json, sys
if __name__ == "__main__":
    import vllm
    made, _ = vllm.SamplingParams, vllm.LLM
    vllm.SamplingParams = lambda logits_processors=None, **given: made(**given)
    from distilabel.models.llms import vLLM
    given = json.load(open(sys.argv[1]))
    llm = vLLM(model=given["model"], extra_kwargs=given["engine"], disable_cuda_device_placement=True)
    llm.load()
    turns = [[{"role": "system", "content": given["system"]}, {"role": "user", "content": text}] for text in given["texts"]]
    found = llm.generate(inputs=turns, max_new_tokens=given["max_tokens"], temperature=0.0)
    json.dump([one["generations"][0] for one in found], open(sys.argv[2], "w"))
"""
CURATOR = """
import json, sys
if __name__ == "__main__":
    import vllm
    import vllm.sampling_params as parameters
    parameters.GuidedDecodingParams = parameters.StructuredOutputsParams
    made, _ = vllm.SamplingParams, vllm.LLM
    vllm.SamplingParams = lambda guided_decoding=None, **given: made(**given)
    from bespokelabs import curator
    from bespokelabs.curator.request_processor.offline import vllm_offline_request_processor as offline
    offline.VLLMOfflineRequestProcessor.destroy = lambda self: None
    given = json.load(open(sys.argv[1]))

    class Ask(curator.LLM):
        def prompt(self, row):
            return [{"role": "system", "content": given["system"]}, {"role": "user", "content": row["text"]}]
        def parse(self, row, response):
            return {"answer": response, "place": row["place"]}

    llm = Ask(
        model_name=given["model"], backend="vllm",
        backend_params={"max_model_length": 1024, "enforce_eager": True, "tensor_parallel_size": 1},
        generation_params={"max_tokens": given["max_tokens"], "temperature": 0.0},
    )
    found = llm([{"text": text, "place": place} for place, text in enumerate(given["texts"])])
    found = getattr(found, "dataset", found)
    json.dump([row["answer"] for row in sorted(found, key=lambda row: row["place"])], open(sys.argv[2], "w"))
"""
OURS = """
import json, sys
from pathlib import Path
import pipeline
if __name__ == "__main__":
    given = json.load(open(sys.argv[1]))
    folder = Path(sys.argv[2]).parent / "project"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps({"text": text}) + "\\n" for text in given["texts"]))
    ask = "{% block system %}" + given["system"] + "{% endblock %}{% block user %}{{ text }}{% endblock %}"
    (folder / "ask.jinja").write_text(ask)
    task = {"name": "peers", "inputs": "rows.jsonl", "prompt": "ask.jinja", "input": "{{ text }}", "targets": ["response"]}
    teacher = {"backend": "vllm", "model": "embedded", "engine": given["engine"]}
    stages = {"sample": {"teacher": teacher, "max_tokens": given["max_tokens"]}, "train": False, "evaluate": False}
    (folder / "stages.yaml").write_text(json.dumps({"run": "run", "task": task, "stages": stages}))
    pipeline.run(folder / "stages.yaml", until="sample")
    rows = pipeline.rows(folder / "stages.yaml", "sample")
    json.dump([row["text"] for row in rows], open(sys.argv[2], "w"))
"""


def texts(number: int) -> list[str]:
    rows = [json.loads(line)["text"] for line in Path("data/topics/train.jsonl").read_text().splitlines()]
    return [f"({place}) {rows[place % len(rows)]}" for place in range(number)]


def timed(python: str, code: str, given: Path, answers: Path) -> float:
    environment = {
        **os.environ, "HF_HUB_OFFLINE": "1", "TELEMETRY_ENABLED": "false", "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_LOGGING_LEVEL": "ERROR", "PYTHONPATH": str(Path(__file__).parents[1]),
        "CURATOR_CACHE_DIR": str(given.parent / "curator"), "CURATOR_DISABLE_CACHE": "1",
    }  # fmt: skip
    script = answers.with_name(f"ask_{answers.stem}.py")
    script.write_text(code)
    began = time.perf_counter()
    log = answers.with_suffix(".log").open("w")
    done = subprocess.run(
        [python, str(script), str(given), str(answers)], check=False, env=environment, stdout=log, stderr=log
    )
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{answers.stem} failed:\n{answers.with_suffix('.log').read_text()[-3000:]}")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", type=int, nargs="?", default=1000)
    parser.add_argument("--curator", help="the Python that has curator")
    parser.add_argument("--distilabel", help="the Python that has distilabel")
    arguments = parser.parse_args()
    from pipeline import embedded

    tools = {"stepdistill": (sys.executable, OURS)}
    tools |= {"curator": (arguments.curator, CURATOR)} if arguments.curator else {}
    tools |= {"distilabel": (arguments.distilabel, DISTILABEL)} if arguments.distilabel else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked = {
            "model": str(embedded.folder()), "engine": ENGINE, "system": SYSTEM, "texts": texts(arguments.prompts),
            "max_tokens": MAX_TOKENS,
        }  # fmt: skip
        (folder / "asked.json").write_text(json.dumps(asked))
        ours = 0.0
        words: dict[str, list[str]] = {}
        for tool, (python, code) in tools.items():
            seconds = timed(python, code, folder / "asked.json", folder / f"{tool}.json")
            words[tool] = json.loads((folder / f"{tool}.json").read_text())
            ours = ours or seconds
            characters = sum(map(len, words[tool]))
            same = sum(a.strip() == b.strip() for a, b in zip(words["stepdistill"], words[tool], strict=True))
            print(
                f"{tool:<12} {seconds:7.1f} s  {len(words[tool]) / seconds:6.2f} answers/s  {ours / seconds:5.2f} of ours"
                f"  {characters:,} characters, {same} of {len(words[tool])} answers as ours",
                flush=True,
            )


if __name__ == "__main__":
    main()
