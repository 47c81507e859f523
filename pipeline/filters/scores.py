"""Filters of what is known about a response besides its text: the votes, its log-probability, the judge's score."""

import math
from collections import Counter
from typing import Annotated

from pydantic import Field

from pipeline.filters.reading import Share, quoted
from pipeline.records import Example


def min_agreement(example: Example, *, minimum: Share = 0.6) -> str | None:
    """The label won a smaller share of the votes (of their weight, in a weighted vote).

    Wang et al. 2023, Self-Consistency, section 3.4: agreement goes with being right.
    """
    if example.agreement is None or example.agreement >= minimum:
        return None
    return f"the label won {example.agreement:.4g} of the votes, less than {minimum:g}: {_votes(example)}"


def max_entropy(example: Example, *, maximum: Annotated[float, Field(ge=0)] = 1.0) -> str | None:
    """The votes are spread wider over the labels: their entropy, in bits, is higher (1 is two labels with half of the votes each)."""
    if example.entropy is None or example.entropy <= maximum:
        return None
    return f"the votes have an entropy of {example.entropy:.4g} bits, more than {maximum:g}: {_votes(example)}"


def mean_logprob(
    example: Example,
    *,
    minimum: Annotated[float, Field(le=0)] = -2.0,
    maximum: Annotated[float, Field(le=0)] = 0.0,
) -> str | None:
    """The mean log-probability (natural) of the tokens of the response whose rationale is kept is outside of the bounds, or not known.

    The perplexity under the teacher itself is exp(-mean): a ``minimum`` of -2 is a perplexity of at most 7.4. A ``maximum`` below 0
    drops what the teacher recites word for word, loops among it.
    """
    found = next((vote.mean_logprob for vote in example.votes if vote.response == example.response), None)
    if found is None or not math.isfinite(found):
        return f"the log-probability of the response {quoted(example.response)} is not known"
    if minimum <= found <= maximum:
        return None
    bound = f"less than {minimum:g}" if found < minimum else f"more than {maximum:g}"
    return f"the mean log-probability is {found:.4g}, {bound} (perplexity {math.exp(min(-found, 700)):.4g})"


def min_judge_score(example: Example, *, minimum: Annotated[int, Field(ge=1, le=5)] = 3) -> str | None:
    """The judge gave a lower score, or none at all."""
    found = example.judgement
    if found is None:
        return "it was not judged"
    if found.score >= minimum:
        return None
    return f"the judge gave {found.score}, less than {minimum}: {quoted(found.reason, 200)}"


def _votes(example: Example) -> str:
    """How often each label was said, the most frequent first: ``sports 3, food 1``."""
    counts = Counter(vote.label for vote in example.votes if vote.label is not None)
    shown = [f"{quoted(label, 40)} {count}" for label, count in counts.most_common(3)]
    return ", ".join(shown + ["others"] * (len(counts) > len(shown)))
