"""The plot of a sweep: accuracy against one setting, a line for each combination of the others.

    spots = (Spot(0.25, 0.61, (0.52, 0.7), (0.6, 0.62)), Spot(1.0, 0.7, (0.6, 0.8), (0.69, 0.71)))
    draw(folder / "accuracy-test", "accuracy on test", "train.fraction", [Curve("train.alpha=0.5", spots)], "bars: ..")

writes ``accuracy-test.svg`` and ``accuracy-test.png``. Small dots are single trainings, large ones their means, bars the interval that the
note under the plot names. The same figures give the same bytes with the same matplotlib: no dates, no random names.

Limits: a setting whose values are no numbers has places side by side and no lines between them. From nine curves on colours repeat, told
apart by their marks. Which glyphs the PNG has depends on matplotlib's own font; the SVG holds text.
"""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pipeline.files import atomic, plain

COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#7f7f7f")
"""Okabe and Ito's, which people with any colour vision tell apart."""
MARKS: Final = ("o", "s", "^", "D", "v", "P", "X")
APART: Final = 5.0  # points between curves at the same place, so that their bars can be told apart
ACROSS: Final = 36.0  # points from the first to the last of them, at most
WIDE: Final = 10.0  # from this ratio of the largest to the smallest value on, the axis is logarithmic


@dataclass(frozen=True)
class Spot:
    """One place of a curve: a number, or the text of another value; the mean, its interval, and each training's accuracy."""

    at: float | str
    mean: float
    interval: tuple[float, float]
    single: tuple[float, ...]


@dataclass(frozen=True)
class Curve:
    """One combination of the other settings; its spots in the order of the axis."""

    label: str
    spots: tuple[Spot, ...]


def draw(target: Path, title: str, knob: str, curves: Sequence[Curve], note: str) -> list[Path]:
    """Write ``target`` with .svg and .png, and give both paths. Every text is shown as it is: none is a formula or markup."""
    import matplotlib
    from matplotlib import style
    from matplotlib.figure import Figure

    fixed = {
        "svg.hashsalt": "stepdistill",
        "svg.fonttype": "none",
        "text.parse_math": False,
        "font.size": 9.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    written = []
    with warnings.catch_warnings(), style.context("default"), matplotlib.rc_context(fixed):
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        named = [curve for curve in curves if curve.label]
        figure = Figure(figsize=(6.4, 4.2 + 0.19 * len(named)), layout="constrained")
        _curves(figure, title, knob, curves, note)
        nameless = {"svg": {"Date": None, "Creator": None}, "png": {"Software": None}}
        for kind, metadata in nameless.items():
            drawn = io.BytesIO()
            figure.savefig(drawn, format=kind, dpi=150, metadata=metadata)
            written.append(target.with_name(f"{target.name}.{kind}"))
            with atomic(written[-1]) as file:
                file.write(drawn.getvalue())
    return written


def _curves(figure: Any, title: str, knob: str, curves: Sequence[Curve], note: str) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator, PercentFormatter
    from matplotlib.transforms import ScaledTranslation

    axes = figure.add_subplot()
    values = list(dict.fromkeys(spot.at for curve in curves for spot in curve.spots))
    numbers = sorted(value for value in values if not isinstance(value, str))
    is_number = len(numbers) == len(values)
    places: dict[float | str, float] = {value: float(value) for value in numbers} if is_number else {}
    if not is_number:
        places = {value: float(place) for place, value in enumerate(values)}
    apart = min(APART, ACROSS / max(len(curves) - 1, 1))
    for index, curve in enumerate(curves):
        aside = ScaledTranslation((index - (len(curves) - 1) / 2) * apart / 72, 0, figure.dpi_scale_trans)
        look = {"color": COLOURS[index % len(COLOURS)], "transform": axes.transData + aside}
        mark = MARKS[index % len(MARKS)]
        across = [places[spot.at] for spot in curve.spots]
        for spot in curve.spots:
            single = [places[spot.at]] * len(spot.single)
            axes.plot(single, spot.single, linestyle="", marker=mark, markersize=3, alpha=0.45, **look)
            axes.plot([places[spot.at]] * 2, spot.interval, linewidth=1.4, **look)
        line = "-" if is_number else ""
        means = [spot.mean for spot in curve.spots]
        axes.plot(across, means, linestyle=line, marker=mark, markersize=6, label=plain(curve.label, 80), **look)
    first, last = min(places.values()), max(places.values())
    if is_number and first > 0 and last / first >= WIDE:
        axes.set_xscale("log")
        room = (last / first) ** 0.08
        axes.set_xlim(first / room, last * room)
    else:
        room = 0.12 * (last - first) or 0.5
        axes.set_xlim(first - room, last + room)
    axes.xaxis.set_major_locator(FixedLocator(sorted(places.values())))
    axes.xaxis.set_minor_locator(NullLocator())
    shown = [value if isinstance(value, str) else f"{value:g}" for value in (numbers if is_number else values)]
    axes.xaxis.set_major_formatter(FixedFormatter([plain(text, 24) for text in shown]))
    heights = [height for curve in curves for spot in curve.spots for height in (*spot.interval, *spot.single)]
    low, high = min(heights), max(heights)
    room = max(0.06 * (high - low), 0.025)  # so that ticks are a whole or half per cent apart
    low, high = max(low - room, -0.025), min(high + room, 1.025)
    axes.set_ylim(low, high)
    axes.set_yticks([tick for tick in axes.get_yticks() if max(low, 0) <= tick <= min(high, 1)])
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if high - low > 0.1 else 1))
    axes.grid(axis="y", linewidth=0.6, alpha=0.4)
    axes.set_axisbelow(True)
    axes.set_title(plain(title, 80), fontsize=11, loc="left", pad=18)
    axes.text(0, 1.02, plain(note), transform=axes.transAxes, fontsize=7.5, color="#555555")
    axes.set_ylabel("accuracy")
    axes.set_xlabel(plain(knob, 80))
    if any(curve.label for curve in curves):
        figure.legend(loc="outside lower left", frameon=False, fontsize=8)
