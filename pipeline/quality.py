"""quality: an ordered list of filters; the first that objects drops the example.

    filters: [label_in_set, {min_words: 4}]

    {"id": "b7..", "reason": "min_words", "evidence": {"why": "the rationale has 2 words, fewer than 4", "label": "sports",
     "rationale": "Sports, clearly.", "settings": {"minimum": 4}}}

The reason is the filter's name. Order matters only for which reason is counted where several hold. Filters of the votes and of the
judge's score are no part of the default list; their drops also hold the votes, or the judgement.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated

import msgspec
from pydantic import JsonValue

from pipeline.binding import Call, Calls, From
from pipeline.files import InputError
from pipeline.filters import ASKED_FOR, FILTERS
from pipeline.records import Drop, Example
from pipeline.text import excerpt

DEFAULT = tuple(Call(name, {}) for name in FILTERS if name not in ASKED_FOR)


def quality(
    rows: Iterable[Example],
    *,
    filters: Annotated[Sequence[Call], Calls(FILTERS)] = DEFAULT,
    judged: Annotated[bool, From("stages.judge.on")] = True,
) -> Iterator[Drop | None]:
    """One verdict a row, from that row alone.

    ``filters``: names of filters, with their settings; where nothing is said, all that need neither several votes nor a judge. Raises
    InputError, before the first row, for ``min_judge_score`` where no judge runs.
    """
    if not judged and any(call.name == "min_judge_score" for call in filters):
        raise InputError(
            "stages.quality.filters: min_judge_score needs a judge; add stages.judge, or remove the filter"
        )
    return _verdicts(rows, filters)


def _verdicts(rows: Iterable[Example], filters: Sequence[Call]) -> Iterator[Drop | None]:
    for example in rows:
        yield next((drop for call in filters if (drop := judge(example, call)) is not None), None)


def judge(example: Example, filter: Call) -> Drop | None:
    """The verdict of one filter."""
    why = FILTERS[filter.name](example, **filter.settings)
    if why is None:
        return None
    evidence: dict[str, JsonValue] = {
        "why": why,
        "label": example.label,
        "rationale": None if example.rationale is None else excerpt(example.rationale),
        "settings": {
            name: list(value) if isinstance(value, tuple) else value for name, value in filter.settings.items()
        },
    }
    if filter.name in ASKED_FOR:
        field = ASKED_FOR[filter.name]
        evidence[field] = msgspec.to_builtins(getattr(example, field))
    return Drop(id=example.id, reason=filter.name, evidence=evidence)
