"""A whole run over many rows, from inputs to shards, for the benchmarks of audit, trace and proofs.

    python -m benchmarks.whole_run DATA FOLDER [--rows 1000000]

DATA as for curation_speed, whose rows these are; FOLDER becomes a project: inputs, recorded completions, eval set, and its run. A folder
that holds a finished one is left as it is.
"""

import argparse
from pathlib import Path

import jsonlines

from benchmarks.curation_speed import EVAL_ROWS, SETTINGS, Texts, responses
from pipeline.config import load
from pipeline.runner import run


def project(data: Path, folder: Path, rows: int, *, eval_rows: int = EVAL_ROWS) -> Path:
    """The settings file of the project in ``folder``, made where it is not there; nothing of it has run."""
    settings = folder / "stages.yaml"
    if not settings.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        held_out = Texts(data, "test", seed=1)
        leaks = [held_out.row()[0] for _ in range(eval_rows)]
        with jsonlines.open(folder / "eval.jsonl", "w") as file:
            file.write_all({"id": f"e{place}", "text": text, "choices": ["a", "b"]} for place, text in enumerate(leaks))
        with (
            jsonlines.open(folder / "inputs.jsonl", "w", compact=True) as inputs,
            jsonlines.open(folder / "completions.jsonl", "w", compact=True) as completions,
        ):
            for row in responses(Texts(data, "train", seed=0), rows, leaks):
                inputs.write({"id": row.prompt, "text": row.input, "choices": row.choices})
                completions.write({"id": row.prompt, "completion": row.text})
        settings.write_text(SETTINGS)
    return settings


def build(data: Path, folder: Path, rows: int) -> Path:
    """As ``project``, and it has run."""
    settings = project(data, folder, rows)
    run(load(settings))
    return settings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    given = parser.parse_args()
    print(build(given.data, given.folder, given.rows))


if __name__ == "__main__":
    main()
