"""A distribution over a closed set of labels as a target: which answers a student learns, and how much each of them counts.

    {"sports": 0.7, "food": 0.3}   ->   cross-entropy = -(0.7 log q("sports") + 0.3 log q("food"))

with q(label) the student's probability of writing that label out, token by token, and ending there. Each label is one more row of the
label task, and its tokens count by its probability: that is the cross-entropy between the two distributions over texts.
Hinton et al., Distilling the Knowledge in a Neural Network (2015), section 2, for the temperature.
"""

from collections.abc import Mapping


def tempered(distribution: Mapping[str, float], temperature: float) -> dict[str, float]:
    """The distribution with each probability raised to 1 / ``temperature`` and all divided by their sum; 1 leaves it, more flattens it.

    Labels without any probability are left out. Raises ValueError where no label has any, or one has less than none.
    """
    if not temperature > 0:
        raise ValueError(f"a temperature of {temperature}; it must be above 0")
    if any(not 0 <= chance < float("inf") for chance in distribution.values()) or not any(distribution.values()):
        raise ValueError("no distribution: its probabilities must be finite, none below 0, and not all 0")
    top = max(distribution.values())
    raised = {label: (chance / top) ** (1 / temperature) for label, chance in distribution.items() if chance > 0}
    total = sum(raised.values())
    return {label: value / total for label, value in raised.items() if value > 0}
