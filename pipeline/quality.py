"""quality: an ordered list of filters; the first that objects drops the example.

    filters: [label_in_set, {min_words: 4}]

    {"id": "b7..", "reason": "min_words", "evidence": {"why": "the rationale has 2 words, fewer than 4", "label": "sports",
     "rationale": "Sports, clearly.", "settings": {"minimum": 4}}}

The reason is the filter's name. Order matters only for which reason is counted where several hold. Filters that need several samples, a
judge, true labels or a choice of yours are no part of the default list; drops by what stands elsewhere in the example hold that as well:
the votes, the judgement, the true label. Where a filter of private data or secrets is named, drops of the rows that it objects to hold
none of their texts, whichever filter they were dropped by.

Where an earlier result over the same rows lies on disk, a row is not judged again by filters whose settings are the same (``known``): a row
that was kept passed all of them, one that was dropped passed those before the one that objected. The result is the same.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from pydantic import BaseModel, JsonValue

from pipeline.binding import Call, Calls, From
from pipeline.files import InputError
from pipeline.filters import ASKED_FOR, FILTERS, SILENT, lists, marked, substance
from pipeline.records import Drop, Example
from pipeline.text import excerpt

DEFAULT = tuple(Call(name, {}) for name in FILTERS if name not in ASKED_FOR)
HELD_BACK: Final = "not shown, since the row also holds private data or a secret"
_NEEDS: Final = {
    "min_judge_score": ("a judge", "add stages.judge"),
    "matches_gold": ("true labels", "set task.gold"),
    "mean_logprob": ("log-probabilities", "set stages.sample.logprobs: true"),
}
_BLANK: Final = Example(
    id="", input="", label="", rationale="", response="", text="", finish_reason="", votes=[], gold=None, choices=None
)


class Known(NamedTuple):
    """What an earlier result tells: why it dropped rows, by id, and for each reason (None: kept) which filters have to look again."""

    reasons: Mapping[str, str]
    again: Mapping[str | None, Sequence[int]]


def known(before: Mapping[str, Any], now: Mapping[str, Any], drops: Iterable[Drop]) -> Known | None:
    """``before`` and ``now`` are the stage's settings as manifests hold them. None where a filter is named twice: whose drop is it."""
    earlier, later = ([next(iter(call)) for call in settings["filters"]] for settings in (before, now))
    if len({*earlier}) < len(earlier) or len({*later}) < len(later):
        return None
    same = {next(iter(call)) for call in now["filters"] if call in before["filters"]}

    def still_to_ask(passed: Iterable[str]) -> list[int]:
        told = same & {*passed}
        return [place for place, name in enumerate(later) if name not in told]

    again: dict[str | None, Sequence[int]] = {None: still_to_ask(earlier)}
    again |= {reason: still_to_ask(earlier[:place]) for place, reason in enumerate(earlier)}
    return Known({drop.id: drop.reason for drop in drops}, again)


def quality(
    rows: Iterable[Example],
    known: Known | None = None,
    *,
    filters: Annotated[Sequence[Call], Calls(FILTERS)] = DEFAULT,
    judged: Annotated[bool, From("stages.judge.on")] = True,
    gold: Annotated[str | None, From("task.gold")] = "gold",
    logprobs: Annotated[bool, From("stages.sample.logprobs")] = True,
) -> Iterator[Drop | None]:
    """One verdict a row, from that row alone.

    ``filters``: names of filters, with their settings; where nothing is said, all but those in ``ASKED_FOR``. ``known``: what an
    earlier result over these rows tells. Raises InputError, before
    the first row, for a filter whose evidence the other stages do not give, or whose file cannot be used.
    """
    given = {"min_judge_score": judged, "matches_gold": gold is not None, "mean_logprob": logprobs}
    lists.listed.cache_clear()  # a file may have changed since it was read
    substance.examples_of.cache_clear()
    marked.bad.cache_clear()
    for place, call in enumerate(filters):
        if not given.get(call.name, True):
            what, advice = _NEEDS[call.name]
            raise InputError(f"stages.quality.filters: {call.name} needs {what}; {advice}, or remove the filter")
        try:
            FILTERS[call.name](_BLANK, **call.settings)  # reads its files
        except InputError as error:
            raise InputError(f"stages.quality.filters[{place}].{call.name}: {error}") from None
    return _verdicts(rows, filters, known or Known({}, {None: range(len(filters))}))


def _verdicts(rows: Iterable[Example], filters: Sequence[Call], known: Known) -> Iterator[Drop | None]:
    checks = [
        (partial(FILTERS[call.name], **call.settings) if call.settings else FILTERS[call.name], call)
        for call in filters
    ]
    again = {reason: [checks[place] for place in places] for reason, places in known.again.items()}
    silent = [check for check, call in checks if call.name in SILENT]
    for example in rows:
        for check, call in again[known.reasons.get(example.id)]:
            if check(example) is not None:
                hold = call.name not in SILENT and any(other(example) is not None for other in silent)
                yield judge(example, call, hold=hold)
                break
        else:
            yield None


def judge(example: Example, filter: Call, *, hold: bool = False) -> Drop | None:
    """The verdict of one filter. ``hold``: what the example says is private, and is held back from the evidence."""
    why = FILTERS[filter.name](example, **filter.settings)
    if why is None:
        return None
    settings: JsonValue = {
        name: _plain(value) for name, value in filter.settings.items() if not isinstance(value, BaseModel)
    }
    if filter.name in SILENT:
        return Drop(id=example.id, reason=filter.name, evidence={"why": why, "settings": settings})
    if hold:
        return Drop(id=example.id, reason=filter.name, evidence={"why": HELD_BACK, "settings": settings})
    evidence: dict[str, JsonValue] = {
        "why": why,
        "label": example.label,
        "rationale": None if example.rationale is None else excerpt(example.rationale),
        "settings": settings,
    }
    if field := ASKED_FOR.get(filter.name):
        evidence[field] = msgspec.to_builtins(getattr(example, field))
    return Drop(id=example.id, reason=filter.name, evidence=evidence)


def _plain(value: object) -> JsonValue:
    """A setting as evidence shows it: a file by its name, for its place may differ from machine to machine."""
    if isinstance(value, Path):
        return value.name
    found: JsonValue = msgspec.to_builtins(list(value) if isinstance(value, tuple) else value)
    return found
