"""Drawings of the page, as SVG text: funnel, intervals, lines, sweeps, reliability. Colours come from the page's CSS by class.

    str(interval_bar(0.5, (0.4, 0.6), "student"))  ->  '<svg class="interval" viewBox="-2 0 204 24" role="img" aria-label="50.0%, ..'

Whatever the numbers, points lie inside the view box: what is not finite is left out, and what is larger than ``LARGEST`` is drawn there.
Every text is escaped. Each drawing that says more than the figures beside it has a name for who cannot see it, and lines differ in their
marks as well as in their colours.
"""

import math
from collections.abc import Sequence
from typing import Final

from markupsafe import Markup, escape

from pipeline.metrics import Calibration, Comparison, Interval
from pipeline.report.shape import Chart, Curve, Line, Spot
from pipeline.report.written import is_number, percent, shown
from pipeline.shift import Spread, Value

LARGEST: Final = 1e12
KINDS: Final = ("teacher", "student", "baseline", "majority", "nearest", "base")
DOTS: Final = 14  # marks on a line; where it has more points, between them
WIDE: Final = 10.0  # from this ratio of the largest to the smallest value on, a sweep's axis is logarithmic
CURVES: Final = 6  # different looks of a sweep's curves


def style_of(model: str) -> str:
    """The class that colours a model: its own name, that of all teachers for one of several, or ``other``."""
    name = "teacher" if model.startswith("teacher:") else model
    return name if name in KINDS else "other"


def named(text: str) -> str:
    """A text for an attribute or inside of a ``text``: escaped, and without what cannot be seen."""
    return str(escape(shown(text)))


def limited(value: float) -> float:
    """``value`` between -``LARGEST`` and ``LARGEST``."""
    return min(max(float(value), -LARGEST), LARGEST)


def share(value: float) -> float:
    """``value`` between 0 and 1; 0 where it is no number."""
    return min(max(float(value), 0.0), 1.0) if is_number(value) else 0.0


def scaled(value: float, most: float) -> float:
    """``value`` as a share of ``most``, between 0 and 1."""
    return share(limited(value) / limited(most)) if is_number(value) and is_number(most) and most > 0 else 0.0


def usable(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that can be drawn."""
    return [(limited(x), limited(y)) for x, y in points if is_number(x) and is_number(y)]


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers, evenly spaced, from at most ``low`` to at least ``high``; about so many of them."""
    if high - low < 1e-6 * max(1.0, abs(low), abs(high)):
        high = low + max(1.0, abs(low))
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, max(last, first + 1) + 1)]


# Lines


class Frame:
    """A pair of axes inside a view box, with ticks; ``across`` and ``down`` give places, never outside of it."""

    height, left, right, top, bottom = 270, 50, 12, 12, 42

    def __init__(self, x: tuple[float, float], y: tuple[float, float], width: int = 440) -> None:
        self.x, self.y, self.width = x, y, width

    def across(self, x: float) -> float:
        """The horizontal place of a value."""
        return self._place(x, self.x, self.left, self.width - self.right)

    def down(self, y: float) -> float:
        """The vertical place of a value."""
        return self._place(y, self.y, self.height - self.bottom, self.top)

    @staticmethod
    def _place(value: float, ends: tuple[float, float], first: float, last: float) -> float:
        low, high = ends
        return round(first + share((value - low) / ((high - low) or 1.0)) * (last - first), 1)

    def axes(
        self, x: Sequence[tuple[float, str]], y: Sequence[tuple[float, str]], x_label: str, y_label: str
    ) -> list[str]:
        """Grid, ticks at these places with these texts, and both names."""
        parts = []
        for value, text in y:
            place = self.down(value)
            parts.append(
                f'<line class="grid" x1="{self.left}" x2="{self.width - self.right}" y1="{place}" y2="{place}"/>'
            )
            parts.append(f'<text x="{self.left - 7}" y="{place + 4}" text-anchor="end">{named(text)}</text>')
        low = self.height - self.bottom + 18
        for value, text in x:
            parts.append(f'<text x="{self.across(value)}" y="{low}" text-anchor="middle">{named(text)}</text>')
        centre, middle = (self.left + self.width - self.right) / 2, (self.top + self.height - self.bottom) / 2
        parts.append(
            f'<text class="axis" x="{centre}" y="{self.height - 6}" text-anchor="middle">{named(x_label)}</text>'
        )
        turned = f'transform="translate(11 {middle}) rotate(-90)"'
        parts.append(f'<text class="axis" {turned} text-anchor="middle">{named(y_label)}</text>')
        return parts

    def svg(self, parts: Sequence[str], label: str) -> Markup:
        """The drawing."""
        return Markup(
            f'<svg class="chart" viewBox="0 0 {self.width} {self.height}" role="img" aria-label="{named(label)}">'
            f"{''.join(parts)}</svg>"
        )


def mark(style: str, x: float, y: float, size: float = 3.2) -> str:
    """A mark whose form tells lines apart where colours do not."""
    classes = f'class="dot {style}"'
    form = "other" if style not in (*KINDS, *(f"curve-{n}" for n in range(CURVES))) else style
    if form in ("baseline", "curve-1"):
        return f'<rect {classes} x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size}" height="{2 * size}"/>'
    if form in ("teacher", "curve-2"):
        return f'<path {classes} d="M{x:.1f} {y - size:.1f}l{size} {2 * size}h{-2 * size}z"/>'
    if form in ("majority", "curve-3", "other"):
        return f'<path {classes} d="M{x:.1f} {y - size:.1f}l{size} {size}l{-size} {size}l{-size} {-size}z"/>'
    if form in ("nearest", "curve-4"):
        return f'<path {classes} d="M{x:.1f} {y + size:.1f}l{size} {-2 * size}h{-2 * size}z"/>'
    if form == "curve-5":
        return f'<rect {classes} x="{x - 1.4:.1f}" y="{y - size:.1f}" width="2.8" height="{2 * size}"/>'
    return f'<circle {classes} cx="{x:.1f}" cy="{y:.1f}" r="{size}"/>'


def line_chart(chart: Chart) -> Markup:
    """Lines over a common pair of axes; y starts at 0, or below where there are values below. Lines on validation rows are dashed."""
    drawn = [(line, usable(line.points)) for line in chart.lines]
    xs = [x for _, points in drawn for x, _ in points]
    ys = [y for _, points in drawn for _, y in points]
    x_ticks = ticks(min(xs, default=0.0), max(xs, default=1.0))
    y_ticks = ticks(min(0.0, *ys, 0.0), max(ys, default=1.0))
    frame = Frame((x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1]))
    parts = frame.axes([(x, f"{x:g}") for x in x_ticks], [(y, f"{y:g}") for y in y_ticks], chart.x, chart.y)
    for line, points in reversed(drawn):  # the first lies on top
        style = looks(line)
        places = [(frame.across(x), frame.down(y)) for x, y in points]
        parts.append(f'<polyline class="line {style}" points="{" ".join(f"{x},{y}" for x, y in places)}"/>')
        step = max(1, -(-len(places) // DOTS))
        parts += [mark(style_of(line.style), x, y, 2.6) for x, y in places[::step]]
    names = ", ".join(line.name for line in chart.lines)
    return frame.svg(parts, f"{chart.title}: {chart.y} over {chart.x} of {names}")


def looks(line: Line) -> str:
    """The classes of a line."""
    return f"{style_of(line.style)}{' validation' if line.name.endswith(', validation') else ''}"


def key(style: str) -> Markup:
    """What stands beside a line's name: a piece of it with its mark."""
    first = style.partition(" ")[0]
    return Markup(
        f'<svg viewBox="0 0 28 10" aria-hidden="true"><line class="line {escape(style)}" x1="0" x2="28" y1="5" y2="5"/>'
        f"{mark(first, 14, 5)}</svg>"
    )


def sweep_chart(curves: Sequence[Curve], axis: str, label: str) -> Markup:
    """Means with their intervals and single trainings; a line connects them where the axis has numbers."""
    curves = [
        curve.model_copy(update={"spots": [spot for spot in curve.spots if _can_be_placed(spot)]}) for curve in curves
    ]
    values = list(dict.fromkeys(spot.at for curve in curves for spot in curve.spots))
    numbers = sorted({limited(value) for value in values if not isinstance(value, str) and is_number(value)})
    is_scale = bool(numbers) and len(numbers) == len(values)
    log = is_scale and numbers[0] > 0 and numbers[-1] / numbers[0] >= WIDE
    scale = math.log10 if log else float
    places: dict[float | str, float]
    if is_scale:
        places = {value: scale(limited(float(value))) for value in values}
    else:
        places = {value: float(place) for place, value in enumerate(values)}
    low, high = min(places.values(), default=0.0), max(places.values(), default=1.0)
    room = 0.1 * (high - low) or 0.5
    ends = [end for curve in curves for spot in curve.spots for end in (*spot.interval, *spot.single, spot.mean)]
    heights = [share(end) for end in ends if is_number(end)]
    y_ticks = ticks(min(heights, default=0.0), max(heights, default=1.0))
    frame = Frame((low - room, high + room), (y_ticks[0], y_ticks[-1]))
    shown_values = [(place, value if isinstance(value, str) else f"{value:g}") for value, place in places.items()]
    if len(shown_values) > 8:
        shown_values = shown_values[:: -(-len(shown_values) // 8)]
    digits = 0 if y_ticks[-1] - y_ticks[0] > 0.1 else 1
    parts = frame.axes(
        [(place, text if len(text) <= 24 else f"{text[:23]}…") for place, text in shown_values],
        [(y, f"{y:.{digits}%}") for y in y_ticks if -1e-9 <= y <= 1 + 1e-9],
        axis,
        "accuracy",
    )
    for index, curve in enumerate(curves):
        style = f"curve-{index % CURVES}"
        aside = (index - (len(curves) - 1) / 2) * min(8.0, 40.0 / max(len(curves), 1))
        at = [_aside(frame, frame.across(places[spot.at]), aside) for spot in curve.spots]
        means = [frame.down(share(spot.mean)) for spot in curve.spots]
        if is_scale and len(at) > 1:
            points = " ".join(f"{x},{y}" for x, y in zip(at, means, strict=True))
            parts.append(f'<polyline class="line {style}" points="{points}"/>')
        for x, y, spot in zip(at, means, curve.spots, strict=True):
            first, last = (frame.down(share(end)) for end in spot.interval)
            parts.append(f'<path class="whisker {style}" d="M{x} {first}V{last}M{x - 3} {first}h6M{x - 3} {last}h6"/>')
            parts += [mark(f"{style}", x, frame.down(share(one)), 1.6) for one in spot.single]
            parts.append(mark(style, x, y, 4.0))
    return frame.svg(parts, label)


def _can_be_placed(spot: Spot) -> bool:
    return is_number(spot.mean) and (isinstance(spot.at, str) or is_number(spot.at))


def _aside(frame: Frame, x: float, aside: float) -> float:
    return round(min(max(x + aside, frame.left), frame.width - frame.right), 1)


def reliability(found: Calibration, style: str, label: str) -> Markup:
    """The reliability diagram: each bin's accuracy over its mean confidence, the larger the more rows it has; the diagonal is ideal."""
    frame = Frame((0.0, 1.0), (0.0, 1.0), width=300)
    at = [(value / 4, f"{value * 25}%") for value in range(5)]
    parts = frame.axes(at, at, "confidence", "accuracy")
    ends = (frame.across(0), frame.down(0), frame.across(1), frame.down(1))
    parts.append('<line class="ideal" x1="{}" y1="{}" x2="{}" y2="{}"/>'.format(*ends))
    most = max((bin.rows for bin in found.bins), default=0)
    for bin in found.bins:
        if not bin.rows or not is_number(bin.confidence) or not is_number(bin.accuracy):
            continue
        confidence, accuracy = share(bin.confidence or 0.0), share(bin.accuracy or 0.0)
        x, y, ideal = frame.across(confidence), frame.down(accuracy), frame.down(confidence)
        parts.append(f'<path class="gap {style}" d="M{x} {ideal}V{y}"/>')
        parts.append(mark(style, x, y, round(2.5 + 4.5 * math.sqrt(bin.rows / most), 1)))
    return frame.svg(parts, label)


# Bars


def funnel_bar(start: float, end: float) -> Markup:
    """A bar from 0 to ``end`` in the colour of what is kept, on to ``start`` in that of what is dropped; shares of the full width."""
    kept, came = share(end) * 1000, share(start) * 1000
    lost = (
        min(came, max(came - kept, 4.0)) if came > kept else 0.0
    )  # what was dropped can be seen, be it ever so little
    return Markup(
        '<svg class="bar" viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="1000" height="10"/>'
        f'<rect class="kept" width="{came - lost:.1f}" height="10"/>'
        f'<rect class="dropped" x="{came - lost:.1f}" width="{lost:.1f}" height="10"/></svg>'
    )


def interval_bar(value: float, interval: Interval, style: str) -> Markup:
    """A bar from 0 to ``value`` with its interval as a whisker, on a scale from 0 to 1 with a tick at each quarter."""
    low, high = (share(end) for end in interval)
    grid = "".join(f'<line class="grid" x1="{x}" x2="{x}" y1="0" y2="24"/>' for x in (0, 50, 100, 150, 200))
    label = f"{percent(share(value))}, {percent(low)} to {percent(high)}"
    return Markup(
        f'<svg class="interval" viewBox="-2 0 204 24" role="img" aria-label="{label}">{grid}'
        f'<rect class="fill {escape(style)}" y="6" width="{share(value) * 200:.1f}" height="12"/>'
        f'<path class="whisker" d="M{low * 200:.1f} 12H{high * 200:.1f}M{low * 200:.1f} 8v8M{high * 200:.1f} 8v8"/></svg>'
    )


def interval_dot(value: float | None, interval: Interval | None, style: str) -> Markup:
    """A mark at ``value`` with its interval, on a scale from 0 to 1 with a tick at each quarter; empty where there is no value."""
    if value is None or interval is None:
        return Markup('<svg class="interval" viewBox="-5 0 210 24" aria-hidden="true"></svg>')
    low, high = (share(end) for end in interval)
    grid = "".join(f'<line class="grid" x1="{x}" x2="{x}" y1="4" y2="20"/>' for x in (0, 50, 100, 150, 200))
    return Markup(
        f'<svg class="interval" viewBox="-5 0 210 24" aria-hidden="true">{grid}'
        f'<path class="whisker {escape(style)}" d="M{low * 200:.1f} 12H{high * 200:.1f}"/>'
        f"{mark(style, share(value) * 200, 12, 4.5)}</svg>"
    )


def difference_bar(value: float, interval: Interval) -> Markup:
    """A difference of two shares with its interval, on a scale from -50 to +50 points with zero in the middle; beyond lies at the ends."""
    place, low, high = (share(one + 0.5) * 200 for one in (value, *interval))
    grid = "".join(f'<line class="grid" x1="{x}" x2="{x}" y1="4" y2="20"/>' for x in (0, 50, 150, 200))
    return Markup(
        f'<svg class="interval" viewBox="-5 0 210 24" aria-hidden="true">{grid}<line class="zero" x1="100" x2="100" y1="0" y2="24"/>'
        f'<path class="whisker" d="M{low:.1f} 12H{high:.1f}M{low:.1f} 8v8M{high:.1f} 8v8"/>'
        f'<circle class="mean" cx="{place:.1f}" cy="12" r="4"/></svg>'
    )


def agreement_bar(found: Comparison) -> Markup:
    """Rows that both have right, the first alone, the second alone, and neither, as parts of one bar."""
    parts = (found.both, found.only_first, found.only_second, found.neither)
    total = sum(parts) or 1
    drawn, x = [], 0.0
    for count, style in zip(parts, ("both", "first", "second", "neither"), strict=True):
        width = 1000 * count / total
        drawn.append(f'<rect class="{style}" x="{x:.1f}" width="{width:.1f}" height="10"/>')
        x += width
    return Markup(
        f'<svg class="bar" viewBox="0 0 1000 10" preserveAspectRatio="none" aria-hidden="true">{"".join(drawn)}</svg>'
    )


def share_bar(value: float, style: str = "kept") -> Markup:
    """A bar as wide as a share."""
    return Markup(
        '<svg class="shares" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true"><rect class="track" y="3" width="100" '
        f'height="6"/><rect class="{escape(style)}" y="3" width="{share(value) * 100:.1f}" height="6"/></svg>'
    )


def share_bars(before: float, after: float, most: float) -> Markup:
    """Two bars, before above after, of shares on a scale from 0 to ``most``."""
    first, second = (scaled(one, most) * 100 for one in (before, after))
    return Markup(
        '<svg class="shares" viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="before" width="{first:.1f}" height="5"/><rect class="kept" y="6" width="{second:.1f}" height="5"/></svg>'
    )


def drop_bar(value: Value) -> Markup:
    """A bar as wide as the share of a value's rows that was dropped."""
    return share_bar(1 - value.after / value.before if value.before else 0.0, "dropped")


def spread_bar(spread: Spread, most: float, style: str) -> Markup:
    """A box from the first to the third quartile, with a line at the median and a dot at the mean, on a scale from 0 to ``most``."""
    first, median, third, mean = (scaled(place, most) * 200 for place in (*spread.quartiles, spread.mean))
    return Markup(
        '<svg class="spread" viewBox="-4 0 208 12" aria-hidden="true">'
        '<line class="grid" x1="0" x2="200" y1="6" y2="6"/>'
        f'<rect class="{escape(style)}" x="{first:.1f}" y="1" width="{max(third - first, 1.5):.1f}" height="10"/>'
        f'<path class="whisker" d="M{median:.1f} 1v10"/>'
        f'<circle class="mean" cx="{mean:.1f}" cy="6" r="2.5"/></svg>'
    )
