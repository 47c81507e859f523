"""How figures and texts are written, on the page and in Markdown.

    percent(0.6134) -> "61.3%"     compact(134_515_008) -> "134.5M"     shown("a\\x1b[2J\\u202eb") -> "a\\\\x1b[2J\\\\u202eb"

Every text of a run is foreign: what it holds besides visible characters is shown as escapes, so that it can neither drive a terminal nor
turn the order of what stands beside it. Markup in it is the affair of html.py and markdown.py.
"""

import json
import math
import re
from typing import Final

LONGEST_TEXT: Final = 1200  # characters of a text that are shown
DASH: Final = "–"
CHECKS: Final = (
    ("stepdistill audit", "every file against its manifest, every training row back to a stored response"),
    ("stepdistill audit --full", "and makes every row again from the stored responses"),
    ("stepdistill audit FOLDER --key NAME.public.pem", "as a stranger, with the public key of who signed it"),
    ("stepdistill trace ID", "one row, from its source to the shard and back"),
)
"""Commands with which a stranger checks a run, and what each looks at."""

_UNSEEN = re.compile(  # C0 but tab and newline, DEL, C1; marks of direction; line and paragraph separators; what has no width; tags
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)


def shown(text: str) -> str:
    """``text`` with what cannot be seen as escapes; spaces, tabs, newlines and the joiners that scripts need stay."""
    return _UNSEEN.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def number(value: float | None) -> str:
    """``12,345``, ``2.5``, or a dash for None."""
    if value is None:
        return DASH
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def percent(value: float | None) -> str:
    """``61.3%``, or a dash for None."""
    return DASH if value is None else f"{value * 100:.1f}%"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign: ``+3.3``."""
    return f"{value * 100:+.1f}".replace("-", "−")


def between(interval: tuple[float, float] | None) -> str:
    """``60.2% to 74.9%``, or nothing for None."""
    return "" if interval is None else f"{percent(interval[0])} to {percent(interval[1])}"


def brief(value: float) -> str:
    """Two or three digits: ``0.083``, ``157``, ``2e-09``."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 0.001 or not value else f"{value:.0e}"


def times(value: float) -> str:
    """A ratio: ``2.4``, ``31``, ``1,200``."""
    return f"{value:.2g}" if value < 10 else f"{value:,.0f}"


def compact(value: int | None) -> str:
    """``134.5M``, ``8.1B``, or a dash for None."""
    if value is None:
        return DASH
    for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if value >= size:
            return f"{value / size:.1f}{unit}"
    return str(value)


def size(value: int | None) -> str:
    """Bytes: ``227 MB``, ``1.3 GB``, or a dash for None."""
    if value is None:
        return DASH
    for unit_size, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if value >= unit_size:
            return f"{value / unit_size:.1f} {unit}" if value < 10 * unit_size else f"{value / unit_size:,.0f} {unit}"
    return f"{value} B"


def duration(seconds: float | None) -> str:
    """``12 ms``, ``1.4 s``, or a dash for None."""
    if seconds is None:
        return DASH
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:,.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"


def money(value: float) -> str:
    """``12.30``, or where it is little its first digits: ``0.0042``."""
    return f"{value:,.2f}" if value >= 0.1 or not value else f"{value:.2g}"


def decimal(value: float | None) -> str:
    """``0.613``, or a dash for None."""
    return DASH if value is None else f"{value:.3f}"


def part(some: int, of: int | None) -> str:
    """``12 of 40 (30.0%)``; without rows, or where they are not known, a dash."""
    return f"{some:,} of {of:,} ({percent(some / of)})" if of else DASH


def cut(text: str) -> str:
    """The text, or its beginning and how long it is."""
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} … (cut here; {len(text):,} characters in all)"


def words(name: str) -> str:
    """``near_duplicate`` as people write it."""
    return name.replace("_", " ")


def pretty(value: object) -> str:
    """JSON over several lines."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, indent=2)


def flat(value: object) -> str:
    """A JSON value as people read it."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def is_number(value: object) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
