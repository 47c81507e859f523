"""Small bars for a terminal, of block characters, or of ASCII where the terminal's encoding has none.

    share(0.75, 8)                   ██████░░      ######..
    interval(0.66, 0.74, 0.80, 16)   ░░░░░░░░░░▒█▒░░░      ..........=#=...

Pure text: colour is the caller's. Where there is no terminal nothing is drawn (``marks`` is None): figures say it there.
"""

import sys
from dataclasses import dataclass
from typing import TextIO


@dataclass(frozen=True)
class Marks:
    """The characters of a bar: what counts, what might, and what does not; ``parts`` are eighths of the first, where there are any."""

    full: str
    maybe: str
    empty: str
    parts: str = ""


BLOCKS = Marks("█", "▒", "░", "▏▎▍▌▋▊▉")
ASCII = Marks("#", "=", ".")


def marks(stream: TextIO | None = None) -> Marks | None:
    """What bars on a stream (stdout) are drawn with; None where it is no terminal."""
    stream = stream or sys.stdout
    if not stream.isatty():
        return None
    try:
        "█▒░▏".encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return BLOCKS


def share(value: float, width: int, drawn: Marks) -> str:
    """``width`` characters of which a share from 0 to 1 is full. Only all of it fills the bar, and only nothing leaves it empty."""
    steps = len(drawn.parts) + 1
    eighths = round(min(max(value, 0.0), 1.0) * width * steps)
    if value < 1.0:
        eighths = min(eighths, width * steps - 1)
    if value > 0.0:
        eighths = max(eighths, 1)
    whole, rest = divmod(eighths, steps)
    part = drawn.parts[rest - 1] if rest else ""
    return drawn.full * whole + part + drawn.empty * (width - whole - len(part))


def interval(low: float, value: float, high: float, width: int, drawn: Marks) -> str:
    """``width`` characters from 0 to 1, with the value as a full one and its interval around it."""

    def place(share: float) -> int:
        return min(int(min(max(share, 0.0), 1.0) * width), width - 1)

    return "".join(
        drawn.full if at == place(value) else drawn.maybe if place(low) <= at <= place(high) else drawn.empty
        for at in range(width)
    )
