"""What filtering did: how the rows that a stage kept differ from those that came in, and when that is worth a warning.

    "shift": {"rows": {"before": 420, "after": 371}, "values": {"label": {"top": [{"name": "travel", "before": 90, "after": 51}, ..],
     "moved": 0.0771, "p": 1.1e-09, "cramers_v": 0.3004, ..}}, "measures": {"entropy": {..}}, "warnings": ["the labels shift: .."], ..}

A known harm of filters that verify is that only easy rows, or rows of some labels, stay. So each stage that gives examples records in its
manifest, before and after: how often each label, true label and slice occurs, how many labels are right, how long texts are (characters),
and how far the votes agreed. It warns where

1. labels shift: by a chi-square test of dropped against kept rows (p below ``P``) that also moved a share of ``MOVED`` of the rows from
   one label to another (the total variation distance), since among a million rows any difference is significant;
2. more than ``SHARE`` of a label or slice that at least ``ROWS`` rows have is gone, and that is no chance: where as large a share of all
   rows goes, or one of very many small labels by bad luck, nothing is said (binomial, p times the number of values below ``P``);
3. dropped rows are harder: their mean vote entropy lies ``HARDER`` standard deviations above that of the kept ones, and p is below ``P``.

Everything is a sum of counters over blocks of rows (``Figures``), in whole numbers, so that it is the same whatever stands in which block
and wherever that was counted. parse counts the examples that it makes. A filter starts from the counts of the stage before, counts what it
drops, and leaves the difference for the stage after (``counts.json`` in its folder): rows that are kept are not read for it.

Limits: of labels beyond the ``TOP`` most frequent there is only the sum, and of more than ``MOST`` different ones not even a test; names
are told apart by their first ``LONGEST_NAME`` characters. Lengths from 4,096 characters on are counted to 12 binary digits (0.03%),
entropy and agreement to a thousandth. The bounds are constants: a manifest is the same for the same key.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from pipeline import labels as label_forms
from pipeline.files import RunError, canonical_json, plain
from pipeline.labels import LabelType
from pipeline.records import Manifest, Record

P: Final = 0.001
MOVED: Final = 0.02
SHARE: Final = 0.5
ROWS: Final = 20  # of a value, to be warned of; and of dropped and of kept rows, to be tested
HARDER: Final = 0.5

TOP: Final = 50
MOST: Final = 1 << 16
LONGEST_NAME: Final = 80  # characters
EXPECTED: Final = 5  # rows that a cell of the chi-square test must be expected to have; smaller ones are pooled
THOUSANDTHS: Final = 1000
LEVELS: Final = (0, 500, 1000, 1500)  # ends of the classes of vote entropy, in thousandths of a bit

COUNTS: Final = "counts.json"  # in the stage's folder
SLICE: Final = "slices."  # before the column's name
NAMES: Final = ("label", "gold")
LENGTHS: Final = ("input", "rationale", "text")
DIFFICULTY: Final = ("entropy", "agreement")


class Seen(msgspec.Struct, frozen=True):
    """The fields of an Example that are counted."""

    input: str
    label: str | None
    rationale: str | None
    text: str
    gold: str | None
    choices: list[str] | None
    agreement: float | None
    entropy: float | None
    slices: dict[str, str] = msgspec.field(default_factory=dict)


class Truth(NamedTuple):
    """How a label is compared with the true one."""

    kind: LabelType = "text"
    labels: tuple[str, ...] | None = None


@dataclass
class Figures:
    """Counts over rows, by what is counted: labels, slices and lengths, each by value. ``add`` sums them."""

    rows: int = 0
    counts: dict[str, Counter[Any]] = field(default_factory=dict)


class Value(Record):
    """How many rows have a value, before and after."""

    name: str
    before: int
    after: int


class Values(Record):
    """A column's values, the most frequent first; ``others`` are the rest. ``distinct`` is None for more than ``MOST``.

    ``gone`` are those of which most rows were dropped. ``moved`` is the share of the rows that would have to change their value to undo the
    shift (total variation distance, 0 to 1), ``p`` and ``cramers_v`` are those of a chi-square test of dropped against kept rows; values
    of which fewer than ``EXPECTED`` rows would be dropped by chance are taken together. None where there are too few rows to tell.
    """

    before: int
    after: int
    distinct: int | None
    top: list[Value]
    others: Value | None
    gone: list[Value]
    moved: float | None
    p: float | None
    cramers_v: float | None


class Spread(Record):
    """Mean and quartiles of a measure, over the rows that have it."""

    rows: int
    mean: float
    quartiles: tuple[float, float, float]


class Measure(Record):
    """A measure in the rows that came, those that were kept and those that were dropped; None for no rows."""

    before: Spread
    after: Spread | None
    dropped: Spread | None


class Shift(Record):
    """What a stage did to its rows: ``details["shift"]`` of its manifest.

    ``values`` are by column: ``label``, ``gold``, ``slices.<column>``. ``right`` are labels that equal the true one, of those that can be
    compared with one (``told``). ``measures``: lengths in characters, ``entropy`` in bits, ``agreement`` as a share. ``difficulty``: rows
    by vote entropy.
    """

    rows: Value
    values: dict[str, Values]
    told: Value
    right: Value
    measures: dict[str, Measure]
    difficulty: list[Value]
    warnings: list[str]


def measured(rows: Sequence[Any], truth: Truth) -> Figures:
    """The counts over some rows of one type: Examples, Responses or ``Seen``."""
    if not rows:
        return Figures()
    has = type(rows[0]).__struct_fields__
    counts = {name: _folded(map(attrgetter(name), rows), _name) for name in NAMES if name in has}
    counts |= {name: _folded(_lengths(rows, name), _coarse) for name in LENGTHS if name in has}
    counts |= {name: _folded(map(attrgetter(name), rows), _thousandths) for name in DIFFICULTY if name in has}
    for column in {column for row in rows for column in row.slices}:
        counts[SLICE + column] = _folded((row.slices.get(column) for row in rows), _name)
    if "label" in has:
        right = lru_cache(maxsize=None)(_right)  # of these rows alone: texts are not held any longer
        counts["right"] = Counter(
            row.label == row.gold or right(row.label, row.gold, truth, tuple(row.choices or ()))
            for row in rows
            if row.label is not None and row.gold is not None
        )
    return Figures(len(rows), {name: _bounded(counter) for name, counter in counts.items() if counter})


def add(total: Figures, more: Figures) -> None:
    """Count ``more`` into ``total``."""
    total.rows += more.rows
    for name, counter in more.counts.items():
        sums = total.counts.setdefault(name, Counter())
        sums.update(counter)
        total.counts[name] = _bounded(sums)


def less(whole: Figures, part: Figures) -> Figures:
    """The counts over the rows of ``whole`` that are not among those of ``part``."""
    counts = {name: counter - _part(part, name, counter) for name, counter in whole.counts.items()}
    return Figures(whole.rows - part.rows, {name: counter for name, counter in counts.items() if counter})


def encoded(figures: Figures) -> str:
    """What ``counts.json`` holds."""
    counts = {name: sorted(counter.items()) for name, counter in figures.counts.items()}
    return canonical_json({"rows": figures.rows, "counts": counts}).decode() + "\n"


def read(folder: Path) -> Figures:
    """The counts over the rows that a finished stage kept. Raises RunError where there are none."""
    path = folder / COUNTS
    try:
        found = msgspec.json.decode(path.read_bytes(), type=_Stored)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read ({plain(str(error))}); run `stepdistill audit`") from None
    return Figures(found.rows, {name: Counter(dict(pairs)) for name, pairs in found.counts.items()})


def change(before: Figures, dropped: Figures) -> Shift:
    """What became of the rows ``before``, of which ``dropped`` are gone."""
    came = before.counts
    gone = {name: _part(dropped, name, counter) for name, counter in came.items()}
    names = [name for name in (*NAMES, *sorted(name for name in came if name.startswith(SLICE))) if name in came]
    values = {name: _values(came[name], gone[name]) for name in names}
    warnings = [
        line
        for name in names
        for line in (_shifted(name, values[name], came[name], gone[name]), _emptied(name, values[name].gone))
    ]
    warnings.append(_harder(came.get("entropy", Counter()), gone.get("entropy", Counter())))
    right = came.get("right", Counter())
    lost = gone.get("right", Counter())
    return Shift(
        rows=Value(name="rows", before=before.rows, after=before.rows - dropped.rows),
        values=values,
        told=Value(name="told", before=right.total(), after=right.total() - lost.total()),
        right=Value(name="right", before=right[True], after=right[True] - lost[True]),
        measures={name: _measure(name, came[name], gone[name]) for name in LENGTHS + DIFFICULTY if name in came},
        difficulty=_levels(came["entropy"], gone["entropy"]) if "entropy" in came else [],
        warnings=[line for line in warnings if line is not None],
    )


def of(manifest: Manifest) -> Shift | None:
    """What a finished stage did; None where it gives no examples, or was run by an earlier version."""
    try:
        return Shift.model_validate(manifest.details.get("shift"))
    except ValueError:
        return None


def warnings(manifest: Manifest) -> list[str]:
    """What a finished stage warns of."""
    found = of(manifest)
    return [] if found is None else found.warnings


def _folded(values: Iterable[Any], key: Callable[[Any], Any]) -> Counter[Any]:
    """How often each value occurs, by ``key``, which is taken once for each different value. None is no value."""
    raw = Counter(values)
    raw.pop(None, None)
    found: Counter[Any] = Counter()
    for value, number in raw.items():
        found[key(value)] += number
    return found


def _lengths(rows: Sequence[Any], name: str) -> Iterable[int | None]:
    return [None if text is None else len(text) for text in map(attrgetter(name), rows)]


def _name(value: str) -> str:
    return value if len(value) <= LONGEST_NAME else value[: LONGEST_NAME - 1] + "…"


def _coarse(length: int) -> int:
    """``length`` or, where it is long, the middle of the numbers that share its first 12 binary digits: at most 45,000 different ones."""
    shift = length.bit_length() - 12
    return length if shift <= 0 else (length >> shift << shift) + (1 << shift >> 1)


def _thousandths(value: float) -> int:
    return round(min(max(value, 0.0), 64.0) * THOUSANDTHS)


class _Stored(msgspec.Struct, frozen=True):
    rows: int
    counts: dict[str, list[tuple[str | int | bool | None, int]]]


def _right(label: str, gold: str, truth: Truth, choices: tuple[str, ...]) -> bool:
    true = label_forms.normalise(gold, truth.kind, truth.labels, choices)
    return true is not None and label_forms.same(label, true, truth.kind)


def _bounded(counter: Counter[Any]) -> Counter[Any]:
    """``counter``, or where it has too many different values only their sum, under None: so what is held stays small.

    What a sum holds does not depend on the order of adding: once a part has too many values, so has the whole.
    """
    return counter if len(counter) <= MOST and None not in counter else Counter({None: counter.total()})


def _part(part: Figures, name: str, whole: Counter[Any]) -> Counter[Any]:
    """The counter ``name`` of ``part``, a sum where that of the whole is one."""
    counter = part.counts.get(name, Counter())
    return Counter({None: counter.total()}) if None in whole else counter


def _values(before: Counter[Any], gone: Counter[Any]) -> Values:
    total, dropped = before.total(), gone.total()
    known = {} if None in before else before
    ordered = sorted(known, key=lambda name: (-before[name], name))
    top = [Value(name=name, before=before[name], after=before[name] - gone[name]) for name in ordered[:TOP]]
    shown, left = sum(value.before for value in top), sum(value.after for value in top)
    others = Value(name="others", before=total - shown, after=total - dropped - left) if total > shown else None
    moved, p, cramers_v = _tested([(number, gone[name]) for name, number in known.items()]) or (None, None, None)
    return Values(
        before=total,
        after=total - dropped,
        distinct=None if None in before else len(before),
        top=top,
        others=others,
        gone=_mostly_gone(known, gone, dropped / total)[:TOP],
        moved=moved,
        p=p,
        cramers_v=cramers_v,
    )


def _tested(cells: Sequence[tuple[int, int]]) -> tuple[float, float, float] | None:
    """``moved``, p and Cramér's V from (rows, dropped rows) of each value, rare ones pooled; None where there is too little to tell."""
    total, dropped = sum(rows for rows, _ in cells), sum(gone for _, gone in cells)
    kept = total - dropped
    if min(dropped, kept) < ROWS:
        return None
    large: list[tuple[int, int]] = []
    small: list[tuple[int, int]] = []
    for cell in sorted(cells, reverse=True):
        (large if cell[0] * min(dropped, kept) >= EXPECTED * total else small).append(cell)
    if small:
        pooled = (sum(rows for rows, _ in small), sum(gone for _, gone in small))
        if large and pooled[0] * min(dropped, kept) < EXPECTED * total:
            rows, gone = large.pop()
            pooled = (pooled[0] + rows, pooled[1] + gone)
        large.append(pooled)
    if len(large) < 2:
        return None
    from scipy.special import chdtrc

    statistic = math.fsum((gone * total - rows * dropped) ** 2 / (rows * dropped * kept) for rows, gone in large)
    p = float(chdtrc(len(large) - 1, statistic))
    moved = sum(abs(gone * total - rows * dropped) for rows, gone in large) / (2 * total * kept)
    return round(moved, 4), float(f"{p:.1e}"), round(math.sqrt(statistic / total), 4)


def _shifted(name: str, values: Values, before: Counter[Any], gone: Counter[Any]) -> str | None:
    """The warning that labels shift."""
    if name not in NAMES or values.p is None or values.moved is None or values.p >= P or values.moved < MOVED:
        return None
    total, kept = values.before, values.after
    steps = [((before[one] - gone[one]) / kept - before[one] / total, one) for one in before]
    most = sorted(steps, key=lambda step: (-abs(step[0]), step[1]))[:3]
    told = ", ".join(
        f"{plain(one, 40)} {before[one] / total:.1%} -> {(before[one] - gone[one]) / kept:.1%}" for _, one in most
    )
    return f"the {_one(name)}s shift by {values.moved * 100:.1f} points ({told}; p {values.p:.1g}, Cramér's V {values.cramers_v:.2f})"


def _mostly_gone(before: Mapping[Any, int], gone: Counter[Any], share: float) -> list[Value]:
    """The values of which most rows were dropped, more than chance would where ``share`` of all rows is; the worst first."""
    large = [Value(name=name, before=rows, after=rows - gone[name]) for name, rows in before.items() if rows >= ROWS]
    found = [value for value in large if value.before - value.after > SHARE * value.before]
    if found:
        from scipy.special import bdtrc

        found = [one for one in found if bdtrc(one.before - one.after - 1, one.before, share) * len(large) < P]
    return sorted(found, key=lambda one: (one.after / one.before, one.name))


def _emptied(name: str, found: Sequence[Value]) -> str | None:
    """The warning that most of a label or slice is gone."""
    if not found:
        return None
    told = ", ".join(f"{plain(one.name, 40)} ({one.before - one.after:,} of {one.before:,})" for one in found[:3])
    more = f" and {len(found) - 3:,} more" if len(found) > 3 else ""
    return f"more than {SHARE:.0%} of a {_one(name)} goes: {told}{more}"


def _harder(before: Counter[int], gone: Counter[int]) -> str | None:
    """The warning that mostly hard rows go."""
    kept = before - gone
    if min(gone.total(), kept.total()) < ROWS:
        return None
    (mean, variance), (other, other_variance), (_, whole) = _moments(gone), _moments(kept), _moments(before)
    if whole == 0 or mean - other < HARDER * math.sqrt(whole):
        return None
    error = math.sqrt(variance / gone.total() + other_variance / kept.total())
    if error and math.erfc(float(mean - other) / error / math.sqrt(2)) >= P:
        return None
    bits = [f"{float(value) / THOUSANDTHS:.2f}" for value in (mean, other)]
    return f"mostly hard rows go: the dropped have a mean vote entropy of {bits[0]} bits, the kept of {bits[1]}"


def _moments(counter: Counter[int]) -> tuple[Fraction, Fraction]:
    """Mean and variance."""
    rows = counter.total()
    mean = Fraction(sum(value * number for value, number in counter.items()), rows)
    return mean, Fraction(sum(value**2 * number for value, number in counter.items()), rows) - mean**2


def _one(name: str) -> str:
    """What a value of a column is called."""
    return {"label": "label", "gold": "true label"}.get(name) or f"slice by {plain(name.removeprefix(SLICE), 40)}"


def _measure(name: str, before: Counter[int], gone: Counter[int]) -> Measure:
    unit = THOUSANDTHS if name in DIFFICULTY else 1
    came = _spread(before, unit)
    assert came is not None
    return Measure(before=came, after=_spread(before - gone, unit), dropped=_spread(gone, unit))


def _spread(counter: Counter[int], unit: int) -> Spread | None:
    rows = counter.total()
    if not rows:
        return None
    mean = sum(value * number for value, number in counter.items()) / (rows * unit)
    quartiles: list[float] = []
    passed = 0
    for value in sorted(counter):
        passed += counter[value]
        while len(quartiles) < 3 and 4 * passed >= rows * (len(quartiles) + 1):
            quartiles.append(value / unit)
    first, middle, last = quartiles
    return Spread(rows=rows, mean=round(mean, 3), quartiles=(first, middle, last))


def _levels(before: Counter[int], gone: Counter[int]) -> list[Value]:
    """Rows by vote entropy."""
    ends = [f"{end / THOUSANDTHS:g}" for end in LEVELS]
    names = [ends[0], *(f"{low} to {high}" for low, high in pairwise(ends)), f"above {ends[-1]}"]
    came, left = [0] * len(names), [0] * len(names)
    for value, number in before.items():
        place = sum(value > end for end in LEVELS)
        came[place] += number
        left[place] += number - gone[value]
    return [Value(name=name, before=came[n], after=left[n]) for n, name in enumerate(names) if came[n]]
