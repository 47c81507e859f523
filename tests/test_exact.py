"""The trainer against the authors' formula, written out below: two forwards with all logits, whatever the shape that the work takes.

Micro-batches, packing, order, processes and kinds of models change nothing: same losses, same gradients, same weights.
"""

import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline import launch as launching
from pipeline import training_process
from pipeline.answering import load
from pipeline.files import InputError, RunError
from pipeline.records import TrainingRow
from tests.forked import Forked, waited
from tests.forked import forked as fork
from tests.models import make_model, make_t5
from tests.test_train import metrics, run, weights, write_shards

ALPHA, RATE, STEPS, EXAMPLES = 0.3, 1e-3, 3, 22
FIGURES = ("loss", "label_loss", "rationale_loss", "grad_norm", "learning_rate", "label_tokens", "rationale_tokens")
WORDS = "late goal soup bread keeper recipe trophy garlic".split()


pytestmark = pytest.mark.usefixtures("one_thread")


def pairs(examples: int = EXAMPLES) -> list[TrainingRow]:
    """Labels and rationales of very unlike lengths: a mean of means would be another loss."""
    said = {
        "label": lambda n: WORDS[n % 8][: 1 + n % 5],
        "rationale": lambda n: " ".join(WORDS[(n + k) % 8] for k in range(1 + n * n % 7)),
    }
    return [
        TrainingRow(
            id=f"r{number}/{task}",
            example=f"r{number}",
            task=task,
            split="train",
            prompt=f"[{task}] {' '.join(WORDS[number % 7 : number % 7 + 1 + number % 3])}",
            completion=said[task](number),
        )
        for number in range(examples)
        for task in ("label", "rationale")
    ]


class Step(NamedTuple):
    loss: float
    label_loss: float
    rationale_loss: float
    gradients: dict[str, Any]
    tokens: int  # that the model has read until then


def authors(student: Path, rows: Sequence[TrainingRow], steps: int = STEPS) -> tuple[list[Step], dict[str, Any]]:
    """Distilling Step-by-Step as its authors train: in each step a batch of labels and one of rationales, each with its own forward.

    Every step takes all rows. The losses are the means that transformers' models work out themselves, from all their logits.
    """
    import torch
    from transformers import get_linear_schedule_with_warmup

    checkpoint = load(str(student))
    model, tokenizer, asked = checkpoint.model.train(), checkpoint.tokenizer, checkpoint.format
    batches = {}
    for task in ("label", "rationale"):
        chosen = [row for row in rows if row.task == task]
        prompts = [asked.prompt_ids(tokenizer, row.prompt) for row in chosen]
        answers = [asked.completion_ids(tokenizer, row.completion) for row in chosen]
        if model.config.is_encoder_decoder:
            batches[task] = _padded(prompts, 0) | {"labels": _padded(answers, -100)["input_ids"]}
        else:
            whole = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
            masked = [[-100] * len(prompt) + answer for prompt, answer in zip(prompts, answers, strict=True)]
            batches[task] = _padded(whole, 0) | {"labels": _padded(masked, -100)["input_ids"]}
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, 1, steps)
    taken = []
    read = sum(int(batch["attention_mask"].sum()) for batch in batches.values())
    for step in range(steps):
        label, rationale = (model(**batches[task]).loss for task in ("label", "rationale"))
        loss = ALPHA * label + (1 - ALPHA) * rationale
        loss.backward()
        gradients = {name: values.grad.clone() for name, values in model.named_parameters()}
        taken.append(Step(loss.item(), label.item(), rationale.item(), gradients, read * (step + 1)))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return taken, {name: values.detach() for name, values in model.named_parameters()}


def _padded(sequences: list[list[int]], padding: int) -> dict[str, Any]:
    import torch

    width = max(map(len, sequences))
    return {
        "input_ids": torch.tensor([ids + [padding] * (width - len(ids)) for ids in sequences]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in sequences]),
    }


class Case(NamedTuple):
    """A student, all rows as shards, and what the authors' way makes of them."""

    student: Path
    shards: Path
    steps: list[Step]
    weights: dict[str, Any]


def case(folder: Path, student: Path) -> Case:
    return Case(student, write_shards(folder / "shards", pairs()), *authors(student, pairs()))


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("decoder")
    return case(folder, make_model(folder / "tiny"))


@pytest.fixture(scope="module")
def encoder_decoder(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("encoder_decoder")
    return case(folder, make_t5(folder / "tiny", dropout_rate=0.0))


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Those of each optimizer step of the trainings to come, before they are clipped."""
    from transformers import Trainer

    found: list[dict[str, Any]] = []
    clip = Trainer._clip_grad_norm

    def spy(trainer: Any, model: Any) -> Any:
        found.append({name: values.grad.clone() for name, values in model.named_parameters()})
        return clip(trainer, model)

    monkeypatch.setattr(Trainer, "_clip_grad_norm", spy)
    return found


SHAPES = {
    "whole": {"batch_size": 22},
    "micro-batches of 1": {"batch_size": 1, "accumulation": 22},
    "micro-batches of 2": {"batch_size": 2, "accumulation": 11},
    "micro-batches of 8, the last smaller": {"batch_size": 8, "accumulation": 3},
    "a step that is cut short by the end of the epoch": {"batch_size": 8, "accumulation": 4},
    "padded": {"batch_size": 22, "packing": False},
    "padded micro-batches": {"batch_size": 5, "accumulation": 5, "packing": False},
    "gradient checkpointing": {"batch_size": 22, "gradient_checkpointing": True},
    "fused attention": {"batch_size": 8, "accumulation": 3, "attention": "sdpa"},
    "other order": {"batch_size": 8, "accumulation": 3, "seed": 7},
}


def train_in(shape: dict[str, Any], case: Case, out: Path) -> None:
    whole = {"alpha": ALPHA, "learning_rate": RATE, "epochs": STEPS, "warmup": 1 / STEPS, "baseline": False}
    run(case.shards, out, case.student, **{**whole, **shape})


def compare(case: Case, out: Path, gradients: list[dict[str, Any]] | None = None, within: float = 1e-5) -> None:
    """Whether the training in ``out`` is the authors' one."""
    found = metrics(out)
    assert len(found) == len(case.steps)
    for step, taken in zip(found, case.steps, strict=True):
        for figure in ("loss", "label_loss", "rationale_loss"):
            assert step[figure] == pytest.approx(getattr(taken, figure), rel=1e-5), figure
        assert step["tokens"] == taken.tokens
    for given, taken in zip(gradients or (), case.steps, strict=gradients is not None):
        assert given.keys() == taken.gradients.keys()
        largest = max(values.abs().max() for values in taken.gradients.values())
        for name, values in given.items():
            assert (values - taken.gradients[name]).abs().max() < 1e-5 * largest, name
    kept = weights(out / "student")
    for name, values in kept.items():
        assert values.allclose(case.weights[name], atol=within, rtol=within), name


@pytest.mark.parametrize("shape", SHAPES)
def test_a_decoder_is_trained_as_the_authors_do_in_any_shape(
    shape: str, decoder: Case, tmp_path: Path, gradients: list[dict[str, Any]]
) -> None:
    train_in(SHAPES[shape], decoder, tmp_path / "out")
    compare(decoder, tmp_path / "out", gradients)


@pytest.mark.parametrize("shape", ["whole", "micro-batches of 2", "gradient checkpointing", "other order"])
def test_an_encoder_decoder_is_trained_as_the_authors_do_in_any_shape(
    shape: str, encoder_decoder: Case, tmp_path: Path, gradients: list[dict[str, Any]]
) -> None:
    train_in(SHAPES[shape], encoder_decoder, tmp_path / "out")
    compare(encoder_decoder, tmp_path / "out", gradients)


# Several processes

# 22 examples: the second process has none in its second micro-batch
NOTHING_FOR_ONE = {"batch_size": 20, "accumulation": 2, "processes": 2}
SHARED = {
    "packed": NOTHING_FOR_ONE,
    "padded": {**NOTHING_FOR_ONE, "packing": False},
    "padded, fused attention": {**NOTHING_FOR_ONE, "packing": False, "attention": "sdpa"},
    "small micro-batches": {"batch_size": 8, "accumulation": 3, "processes": 2},
}


def _forks(told: list[str], processes: int, environment: dict[str, str]) -> int:
    """Stands for torch's launcher: forks the processes here, which spares each of them the import of the libraries."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        where = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    os.environ |= {**where, "WORLD_SIZE": str(processes)}
    sys.argv = told[-2:]
    return waited([fork(_process, rank=str(rank)) for rank in range(processes)])


def _process(rank: str) -> None:
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank}
    training_process.main()


def fork_processes() -> None:
    """From now on processes that share a training are forked from this one."""
    launching._here = _forks


def train_shared(shape: dict[str, Any], student: str, shards: str, out: str) -> None:
    """Train as told, in processes that are forked here."""
    fork_processes()
    train_in(shape, Case(Path(student), Path(shards), [], {}), Path(out))


def stop_shared(said: str, **given: Any) -> None:
    """The same, where it cannot be done; the kind of error and its words go to the file ``said``."""
    try:
        train_shared(**given)
    except (InputError, RunError) as error:
        Path(said).write_text(f"{type(error).__name__}: {error}")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "shape"), [*(("decoder", shape) for shape in SHARED), ("encoder_decoder", "packed")])
def test_two_processes_train_as_the_authors_do(
    kind: str, shape: str, request: pytest.FixtureRequest, tmp_path: Path, forked: Forked
) -> None:
    case: Case = request.getfixturevalue(kind)
    places = {"student": str(case.student), "shards": str(case.shards), "out": str(tmp_path / "out")}
    assert forked(train_shared, shape=SHARED[shape], **places) == 0
    compare(case, tmp_path / "out")


@pytest.mark.slow
def test_processes_that_are_started_take_the_very_steps_of_one_and_lose_no_row(decoder: Case, tmp_path: Path) -> None:
    # 22 examples in steps of 8: the last step of an epoch has 3 for each process.
    uneven = {"batch_size": 8, "epochs": 2, "learning_rate": RATE, "baseline": False}
    run(decoder.shards, tmp_path / "one", decoder.student, **uneven)
    run(decoder.shards, tmp_path / "two", decoder.student, processes=2, **uneven)
    alone, shared = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert len(alone) == len(shared) == 6
    for one, two in zip(alone, shared, strict=True):
        assert one.keys() == two.keys()
        assert [one[figure] for figure in FIGURES] == pytest.approx([two[figure] for figure in FIGURES], rel=1e-5)
    trained, again = weights(tmp_path / "one" / "student"), weights(tmp_path / "two" / "student")
    assert all(trained[name].allclose(again[name], atol=1e-5) for name in trained)
    for task in ("label", "rationale"):
        there = sum(len(row.completion) + 1 for row in pairs() if row.task == task)
        for epoch in (shared[:3], shared[3:]):
            assert sum(step[f"{task}_tokens"] for step in epoch) == there


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "problem"),
    [
        (
            {"batch_size": 3},
            "InputError: train.batch_size: 3 examples do not divide among 2 processes",
        ),
        ({"learning_rate": 1e30}, "RunError: train: the gradient is no longer a number at step"),
    ],
)
def test_what_stops_one_of_several_processes_is_raised_as_in_one(
    shape: dict[str, Any], problem: str, decoder: Case, tmp_path: Path, forked: Forked
) -> None:
    places = {"student": str(decoder.student), "shards": str(decoder.shards), "out": str(tmp_path / "out")}
    assert forked(stop_shared, said=str(tmp_path / "said"), shape={**shape, "processes": 2}, **places) == 0
    assert (tmp_path / "said").read_text().startswith(problem)
