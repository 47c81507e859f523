"""What differs between two JSON values, place by place, so that the one can be made of the other.

    differences({"filters": [{"min_words": {"minimum": 4}}]}, {"filters": [{"min_words": {"minimum": 6}}, {"refusal": {}}]})
    filters[0].min_words.minimum: 4 -> 6
    filters[1]: absent -> {"refusal": {}}

Elements of lists are matched before they are told apart: equal ones first, then objects with the same names, so that an element put in at
the front is one difference and not a difference of everything behind it. What is the same under another name is not seen.

Pure; two values of JSON's types (dict, list, str, int, float, bool, None). 1, 1.0 and true differ.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipeline.files import canonical_json

Step = str | tuple[int | None, int | None]
"""A name, or an element of a list: its places in the first and in the second list, None where it is not in it."""
LONGEST = 512  # elements of a list that are matched; longer ones are held against each other place by place


class Absent:
    """What stands where one of two values has nothing."""

    def __repr__(self) -> str:
        return "absent"


ABSENT: Final = Absent()


@dataclass(frozen=True)
class Difference:
    """One place at which two values differ; ``ABSENT`` is on a side that has nothing there."""

    steps: tuple[Step, ...]
    first: Any
    second: Any

    @property
    def place(self) -> str:
        """``filters[2].min_words.minimum``; an element's number is that in the first list, where it is in it. Empty for the whole value."""
        shown = ""
        for step in self.steps:
            if isinstance(step, str):
                shown += f".{step}" if shown else step
            else:
                shown += f"[{step[1] if step[0] is None else step[0]}]"
        return shown

    def mirrored(self) -> "Difference":
        """The same difference seen from the second value."""
        steps = tuple(step if isinstance(step, str) else (step[1], step[0]) for step in self.steps)
        return Difference(steps, self.second, self.first)


def differences(first: Any, second: Any) -> list[Difference]:
    """Every place at which they differ, in the order of names and places; none where they are equal.

    Asked the other way round, the same differences mirrored.
    """
    if _text(first) > _text(second):  # one order for both ways round, so that ties in matching fall alike
        return [one.mirrored() for one in _differences((), second, first)]
    return _differences((), first, second)


def applied(first: Any, found: Sequence[Difference]) -> Any:
    """``second`` again, made of ``first`` and the differences between them."""
    whole = [one for one in found if not one.steps]
    if whole:
        return whole[0].second
    if not found:
        return first
    if isinstance(first, dict):
        named = {name: value for name, value in first.items() if name not in {one.steps[0] for one in found}}
        for name in dict.fromkeys(one.steps[0] for one in found):
            under = [_behind(one) for one in found if one.steps[0] == name]
            value = applied(first.get(name, ABSENT), under)
            if value is not ABSENT:
                named[str(name)] = value
        return named
    elements: list[Any] = []
    for place, value in enumerate(first):
        under = [_behind(one) for one in found if isinstance(one.steps[0], tuple) and one.steps[0][0] == place]
        elements.append(applied(value, under))
    elements = [value for value in elements if value is not ABSENT]
    added = {
        one.steps[0][1]: one.second for one in found if isinstance(one.steps[0], tuple) and one.steps[0][0] is None
    }
    for place in sorted(place for place in added if place is not None):
        elements.insert(place, added[place])
    return elements


def _behind(one: Difference) -> Difference:
    return Difference(one.steps[1:], one.first, one.second)


def _text(value: Any) -> bytes:
    """A value as text, by which values are equal or one comes before the other."""
    return b"" if value is ABSENT else canonical_json(value)


def _differences(steps: tuple[Step, ...], first: Any, second: Any) -> list[Difference]:
    if _text(first) == _text(second):
        return []
    found: list[Difference] = []
    if isinstance(first, dict) and isinstance(second, dict):
        for name in sorted(first.keys() | second.keys()):
            found += _differences((*steps, name), first.get(name, ABSENT), second.get(name, ABSENT))
        return found
    if isinstance(first, list) and isinstance(second, list):
        for here, there in _matched(first, second):
            one = ABSENT if here is None else first[here]
            other = ABSENT if there is None else second[there]
            found += _differences((*steps, (here, there)), one, other)
        return found
    return [Difference(steps, first, second)]


def _matched(first: list[Any], second: list[Any]) -> list[tuple[int | None, int | None]]:
    """Pairs of places of the elements that stand for each other, in order, and the places of those that stand for none."""
    if len(first) > LONGEST or len(second) > LONGEST:
        both = min(len(first), len(second))
        pairs: list[tuple[int | None, int | None]] = [(place, place) for place in range(both)]
        pairs += [(place, None) for place in range(both, len(first))]
        return pairs + [(None, place) for place in range(both, len(second))]
    worth = [[_likeness(one, other) for other in second] for one in first]
    best = [[0] * (len(second) + 1) for _ in range(len(first) + 1)]  # of what is left behind each pair of places
    for here in reversed(range(len(first))):
        for there in reversed(range(len(second))):
            paired = worth[here][there] + best[here + 1][there + 1] if worth[here][there] else 0
            best[here][there] = max(paired, best[here + 1][there], best[here][there + 1])
    pairs = []
    here = there = 0
    while here < len(first) and there < len(second):
        if worth[here][there] and best[here][there] == worth[here][there] + best[here + 1][there + 1]:
            pairs.append((here, there))
            here, there = here + 1, there + 1
        elif best[here][there] == best[here + 1][there]:
            pairs.append((here, None))
            here += 1
        else:
            pairs.append((None, there))
            there += 1
    pairs += [(place, None) for place in range(here, len(first))]
    return pairs + [(None, place) for place in range(there, len(second))]


def _likeness(first: Any, second: Any) -> int:
    """0 where they cannot stand for each other."""
    if _text(first) == _text(second):
        return 4
    if isinstance(first, dict) and isinstance(second, dict):
        return 2 if first.keys() == second.keys() else 0
    return 0 if isinstance(first, dict | list) or isinstance(second, dict | list) else 1
