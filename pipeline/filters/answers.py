"""Filters of the label and of how the response ended."""

import re
from collections.abc import Sequence
from typing import Annotated, Final

from pipeline import labels as label_forms
from pipeline.binding import From
from pipeline.files import plain
from pipeline.filters.reading import quoted
from pipeline.labels import LabelType
from pipeline.records import Example


def label_in_set(example: Example, *, labels: Annotated[list[str] | None, From("task.labels")] = None) -> str | None:
    """The label is none of the row's own choices or, where it has none, of the task's labels."""
    options = example.choices or labels
    if options is None or example.label is None or example.label in options:
        return None
    return f"the label {quoted(example.label)} is not among {plain(', '.join(options))}"


def label_has_value(
    example: Example, *, label_type: Annotated[LabelType, From("stages.parse.label_type")] = "text"
) -> str | None:
    """The label of a number or equation task has no value: a name in it, a bracket left open, a division by zero."""
    if label_type not in ("number", "equation") or example.label is None:
        return None
    if _PLAIN[label_type].fullmatch(example.label):  # most labels, told without working their value out
        return None
    if label_forms.value(example.label, label_type) is not None:
        return None
    return f"the label {quoted(example.label)} is no {label_type} that has a value"


_NUMBER: Final = r"-?[0-9]{1,9}(?:\.[0-9]{1,9})?"
_PLAIN: Final = {
    "number": re.compile(_NUMBER),
    "equation": re.compile(rf"{_NUMBER}(?: [-+*] [0-9]{{1,9}}| / [1-9][0-9]{{0,8}}){{0,4}}"),
}


def matches_gold(
    example: Example, *, label_type: Annotated[LabelType, From("stages.parse.label_type")] = "text"
) -> str | None:
    """The label differs from the row's true label; numbers and equations are compared by their exact values.

    What is trained on is not changed by this. A row without a true label passes. It keeps the rows that the teacher can do: the hard
    ones are dropped, which shifts the data towards easy ones (rejection sampling, Zelikman et al. 2022, STaR, section 3.1).
    """
    if example.gold is None or example.label is None or label_forms.same(example.label, example.gold, label_type):
        return None
    return f"the label {quoted(example.label)} differs from the true label {quoted(example.gold)}"


def finish_reason(example: Example, *, allowed: Sequence[str] = ("stop", "recorded")) -> str | None:
    """The teacher did not end by itself, so that the text may be cut off ("length")."""
    if example.finish_reason in allowed:
        return None
    return f"the response ended with {quoted(example.finish_reason)}, not with {plain(' or '.join(allowed))}"
