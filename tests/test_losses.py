import math

import pytest
import torch

from pipeline.losses.step_by_step import step_by_step

LABEL, RATIONALE = 0, 1


def test_the_loss_worked_out_by_hand() -> None:
    # Two words. Softmax of (log 3, 0) is (3/4, 1/4), of (0, 0) it is (1/2, 1/2).
    logits = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0], [0.0, 0.0], [0.0, 0.0], [math.log(3), 0.0]])
    targets = torch.tensor([0, 1, 0, 1, 1])
    tasks = torch.tensor([LABEL, LABEL, RATIONALE, RATIONALE, RATIONALE])
    label = (math.log(4 / 3) + math.log(4)) / 2
    rationale = (math.log(2) + math.log(2) + math.log(4)) / 3

    loss, means = step_by_step(
        logits, targets, tasks, torch.ones(5), tokens=torch.tensor([2, 3]), weights=torch.tensor([0.3, 0.7])
    )

    assert loss.item() == pytest.approx(0.3 * label + 0.7 * rationale, abs=1e-6)
    assert means.tolist() == pytest.approx([label, rationale], abs=1e-6)


def rows(count: int = 12, vocabulary: int = 7) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(count, vocabulary), torch.randint(vocabulary, (count,)), (torch.arange(count) % 3 > 0).long()


@pytest.mark.parametrize("size", [1, 2, 5, 11])
def test_the_parts_of_a_step_add_up_to_the_whole(size: int) -> None:
    logits, targets, tasks = rows()
    tokens, weights = torch.bincount(tasks), torch.tensor([0.5, 0.5])
    whole = logits.clone().requires_grad_()
    loss, means = step_by_step(whole, targets, tasks, torch.ones(len(tasks)), tokens=tokens, weights=weights)
    loss.backward()

    cut = logits.clone().requires_grad_()
    parts = [
        step_by_step(
            cut[start : start + size],
            targets[start : start + size],
            tasks[start : start + size],
            torch.ones(len(tasks[start : start + size])),
            tokens=tokens,
            weights=weights,
        )
        for start in range(0, len(logits), size)
    ]
    sum(part for part, _ in parts).backward()

    assert sum(part.item() for part, _ in parts) == pytest.approx(loss.item(), abs=1e-6)
    assert torch.allclose(sum(part for _, part in parts), means, atol=1e-6)
    assert torch.allclose(cut.grad, whole.grad, atol=1e-6)


def test_a_task_without_targets_contributes_nothing() -> None:
    logits, targets, _ = rows()
    logits.requires_grad_()
    only_labels = torch.zeros_like(targets)
    weights = torch.tensor([0.5, 0.5])
    loss, means = step_by_step(
        logits, targets, only_labels, torch.ones(len(targets)), tokens=torch.tensor([len(targets), 0]), weights=weights
    )
    assert loss.item() == pytest.approx(0.5 * means[LABEL].item())
    assert means[RATIONALE] == 0

    loss, means = step_by_step(
        logits,
        torch.full_like(targets, -100),
        only_labels,
        torch.ones(len(targets)),
        tokens=torch.tensor([0, 0]),
        weights=weights,
    )
    loss.backward()
    assert loss.item() == 0
    assert means.tolist() == [0, 0]
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_half_precision_logits_lose_nothing_on_the_way_to_the_loss() -> None:
    logits, targets, tasks = rows(2000, 50)
    settings = {"tokens": torch.bincount(tasks), "weights": torch.tensor([0.5, 0.5])}
    low = logits.bfloat16()
    assert torch.equal(
        step_by_step(low, targets, tasks, torch.ones(2000), **settings)[0],
        step_by_step(low.float(), targets, tasks, torch.ones(2000), **settings)[0],
    )
