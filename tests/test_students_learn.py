"""Decoders and encoder-decoders learn a toy task to the last row, and answer their two prefixes differently."""

from pathlib import Path

import pytest

from pipeline import answering
from pipeline.shard import student_prompt
from tests.models import make_bart, make_chat, make_model, make_t5
from tests.test_train import pair, run, write_shards

ROWS = 24
KINDS = {
    "decoder": (make_model, {"learning_rate": 1e-2}),
    "chat, prefixes as tokens": (make_chat, {"learning_rate": 1e-2, "template": "chat", "prefixes": "tokens"}),
    "t5": (make_t5, {"learning_rate": 1e-2}),
    "bart": (make_bart, {"learning_rate": 1e-2, "epochs": 60}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_student_learns_both_tasks_and_tells_them_apart(kind: str, tmp_path: Path) -> None:
    import torch

    make, settings = KINDS[kind]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [row for number in range(ROWS) for row in pair(number, "validation" if number >= 20 else "train")]
        shards = write_shards(tmp_path / "shards", rows)
        run(shards, tmp_path / "out", make(tmp_path / "model"), baseline=False, **{"epochs": 30, **settings})
        student = answering.load(str(tmp_path / "out" / "student"))
        inputs = [row.prompt.removeprefix("[label] ") for row in rows if row.task == "label"]
        for task in ("label", "rationale"):
            said = answering.generate(student, [student_prompt(task, text) for text in inputs], max_new_tokens=24)
            wanted = [row.completion for row in rows if row.task == task]
            assert [answer.text for answer in said] == wanted
            assert all(answer.finished for answer in said)
    finally:
        torch.set_num_threads(threads)
