"""quality: an ordered list of filters; the first that objects drops the example.

    filters: [label_in_set, {min_words: 4}]

    {"id": "b7..", "reason": "min_words", "evidence": {"why": "the rationale has 2 words, fewer than 4", "label": "sports",
     "rationale": "Sports, clearly.", "settings": {"minimum": 4}}}

The reason is the filter's name. Order matters only for which reason is counted where several hold.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

from pipeline.binding import Call, Calls
from pipeline.filters import FILTERS
from pipeline.records import Drop, Example
from pipeline.text import excerpt

DEFAULT = tuple(Call(name, {}) for name in FILTERS)


def quality(
    rows: Iterable[Example], *, filters: Annotated[Sequence[Call], Calls(FILTERS)] = DEFAULT
) -> Iterator[Drop | None]:
    """One verdict a row, from that row alone. filters: names of filters, with their settings; all of them where nothing is said."""
    for example in rows:
        yield next((drop for call in filters if (drop := judge(example, call)) is not None), None)


def judge(example: Example, filter: Call) -> Drop | None:
    """The verdict of one filter."""
    why = FILTERS[filter.name](example, **filter.settings)
    if why is None:
        return None
    return Drop(
        id=example.id,
        reason=filter.name,
        evidence={
            "why": why,
            "label": example.label,
            "rationale": None if example.rationale is None else excerpt(example.rationale),
            "settings": {
                name: list(value) if isinstance(value, tuple) else value for name, value in filter.settings.items()
            },
        },
    )
