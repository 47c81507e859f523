"""The loss of Distilling Step-by-Step: each task's mean over its own target tokens, weighted and added up.

    loss = alpha * (mean over label tokens) + (1 - alpha) * (mean over rationale tokens)

A mean over all tokens at once is another loss: with labels of 2 tokens and rationales of 17, the labels would weigh 10%.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def step_by_step(
    logits: "Tensor", targets: "Tensor", tasks: "Tensor", *, tokens: "Tensor", weights: "Tensor"
) -> tuple["Tensor", "Tensor"]:
    """The weighted loss, and each task's share of its mean without a gradient.

    ``logits`` (positions, vocabulary), ``targets`` (positions) the true tokens, -100 where there is none, ``tasks`` (positions) each
    position's task. ``tokens`` (tasks) counts the targets of each task in the whole optimizer step and ``weights`` (tasks) weighs them.
    Because the counts are the step's, the losses of its parts add up to the loss of the whole, however it is cut. A task without
    targets contributes 0. Computed in float32.
    """
    from torch import stack
    from torch.nn.functional import cross_entropy

    losses = cross_entropy(logits.float(), targets, reduction="none")
    sums = stack([losses[tasks == task].sum() for task in range(len(weights))])
    means = sums / tokens.clamp(min=1)
    return (weights * means).sum(), means.detach()
