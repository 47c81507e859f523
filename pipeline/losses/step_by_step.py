"""The loss of Distilling Step-by-Step: each task's mean over its own target tokens, weighted and added up.

    loss = alpha * (mean over label tokens) + (1 - alpha) * (mean over rationale tokens)

A mean over all tokens at once is another loss: with labels of 2 tokens and rationales of 17, the labels would weigh 10%.
Hsieh et al., Distilling Step-by-Step! (2023), equation 4.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def step_by_step(
    logits: "Tensor", targets: "Tensor", tasks: "Tensor", shares: "Tensor", *, tokens: "Tensor", weights: "Tensor"
) -> tuple["Tensor", "Tensor"]:
    """The weighted loss, and each task's part of its mean without a gradient.

    ``logits`` (positions, vocabulary), ``targets`` (positions) the true tokens, -100 where there is none, ``tasks`` (positions) each
    position's task, ``shares`` (positions) how much of a token each one counts: 1, or the probability of the answer it belongs to where
    a task's target is a distribution over answers. ``tokens`` (tasks) is the sum of the shares of each task in the whole optimizer step
    and ``weights`` (tasks) weighs the tasks. Because the sums are the step's, the losses of its parts add up to the loss of the whole,
    however it is cut. A task without targets contributes 0. Computed in float32.
    """
    from torch import stack
    from torch.nn.functional import cross_entropy

    losses = shares * cross_entropy(logits.float(), targets, reduction="none")
    sums = stack([losses[tasks == task].sum() for task in range(len(weights))])
    means = sums / tokens.where(tokens > 0, 1)
    return (weights * means).sum(), means.detach()
