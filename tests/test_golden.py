"""Golden loss curves: 20 steps of a toy decoder and of a toy encoder-decoder, which every refactoring must reproduce.

``tests/golden/<kind>.json`` are what `curve` returned when they were made. Where a training is meant to change, make them anew with

    python -m tests.test_golden

and say in the commit why: the difference of the files shows by how much. Every weight of the toys is drawn here, so that no library's way
of beginning a model matters; they have no dropout, so that no order of drawing does. The tolerance leaves room for other sums of another
processor, and for nothing else.
"""

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from pipeline.records import TrainingRow
from tests.models import make_model, make_t5
from tests.test_train import run, write_shards

GOLDEN = Path(__file__).parent / "golden"
KINDS: dict[str, Callable[[Path], Path]] = {
    "decoder": make_model,
    "encoder-decoder": lambda folder: make_t5(folder, dropout_rate=0.0),
}
SUBJECTS = "keeper soup striker bread coach garlic referee butter".split()


pytestmark = pytest.mark.usefixtures("one_thread")


def rows() -> list[TrainingRow]:
    """24 examples, the last 4 for validation; even ones are of sports, odd ones of food."""
    found = []
    for number in range(24):
        subject, other = SUBJECTS[number % 8], SUBJECTS[(number + 2 + number // 8) % 8]
        said = {
            "label": "food" if number % 2 else "sports",
            "rationale": f"It speaks of a {subject}" + f" and of a {other}" * (number % 3) + ".",
        }
        found += [
            TrainingRow(
                id=f"g{number}/{task}",
                example=f"g{number}",
                task=task,
                split="train" if number < 20 else "validation",
                prompt=f"[{task}] The {subject} {number}",
                completion=completion,
            )
            for task, completion in said.items()
        ]
    return found


def toy(kind: str, folder: Path) -> Path:
    """A tiny student whose weights are normal with a deviation of 0.1, those of norms 1, drawn in the order of their names."""
    import torch
    from safetensors.torch import load_file, save_file

    path = KINDS[kind](folder) / "model.safetensors"
    drawn = torch.Generator().manual_seed(0)
    weights = {
        name: torch.ones_like(values) if "norm" in name else torch.randn(values.shape, generator=drawn) * 0.1
        for name, values in sorted(load_file(path).items())
    }
    save_file(weights, path, {"format": "pt"})
    return folder


def curve(kind: str, folder: Path) -> list[dict[str, Any]]:
    """All figures of 20 steps of 4 examples, in micro-batches of 2, with a validation after every fifth."""
    shards = write_shards(folder / "shards", rows())
    shape = {"batch_size": 2, "accumulation": 2, "epochs": 4, "evaluate_every": 5}
    how = {"alpha": 0.3, "learning_rate": 3e-3, "warmup": 0.2, "seed": 1, "baseline": False, "keep": "last"}
    run(shards, folder / "out", toy(kind, folder / "toy"), **shape, **how)
    return [json.loads(line) for line in (folder / "out" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_curve_is_the_golden_one(kind: str, tmp_path: Path) -> None:
    golden = json.loads((GOLDEN / f"{kind}.json").read_text())["figures"]
    found = curve(kind, tmp_path)
    assert len(golden) == 20 + 4
    assert [step.keys() for step in found] == [step.keys() for step in golden]
    for step, true in zip(found, golden, strict=True):
        assert step.pop("model") == true.pop("model")
        assert step == pytest.approx(true, rel=1e-4, abs=0), true["step"]


def remake() -> None:
    import torch
    import transformers

    torch.set_num_threads(1)
    made = {"torch": torch.__version__, "transformers": transformers.__version__}
    GOLDEN.mkdir(exist_ok=True)
    for kind in KINDS:
        with TemporaryDirectory() as folder:
            steps = [json.dumps(step) for step in curve(kind, Path(folder))]
        text = f'{{"made_with": {json.dumps(made)}, "figures": [\n' + ",\n".join(steps) + "\n]}\n"
        (GOLDEN / f"{kind}.json").write_text(text)


if __name__ == "__main__":
    remake()
