"""Which words two texts have in common, to be shown in both.

    pair("I burned the caramel twice", "The caramel burned, twice")
    -> [Piece("I "), Piece("burned", shared), ..]

Words are compared without case. Words count where they stand in both texts in the same order (a short one not alone), or in a run of
``RUN`` words that both texts have, whatever the order. ``within`` (the evidence's overlap) keeps what stands outside of it unmarked.

Limits: texts of more than ``MOST`` words are compared by runs alone; words of scripts without spaces are compared as wholes.
"""

import difflib
import re
from collections.abc import Sequence
from typing import Final

from pipeline.records import Record

RUN: Final = 4  # words
MOST: Final = 400  # words
TELLING: Final = 4  # letters of a word that counts where none beside it does
_WORD = re.compile(r"\w+(?:['’]\w+)*")


class Piece(Record):
    """A stretch of a text, and whether the other text has it, too."""

    text: str
    shared: bool = False


def pair(
    one: str, other: str, *, within: str | None = None, other_within: str | None = None
) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces, which joined are the texts. Nothing is marked outside of ``within`` and ``other_within``, where they stand."""
    first, second = _words(one, within), _words(other, other_within)
    marked: tuple[set[int], set[int]] = set(), set()
    names, others = [word for word, _, _ in first], [word for word, _, _ in second]
    if max(len(names), len(others)) <= MOST:
        for block in difflib.SequenceMatcher(None, names, others, autojunk=False).get_matching_blocks():
            if block.size > 1 or (block.size and len(names[block.a]) >= TELLING):
                marked[0].update(range(block.a, block.a + block.size))
                marked[1].update(range(block.b, block.b + block.size))
    common = set(_runs(names)) & set(_runs(others))
    for side, own in zip(marked, (names, others), strict=True):
        for place, run in enumerate(_runs(own)):
            if run in common:
                side.update(range(place, place + RUN))
    return _pieces(one, first, marked[0]), _pieces(other, second, marked[1])


def _words(text: str, within: str | None) -> list[tuple[str, int, int]]:
    """Each word with its place; only those of ``within`` where the text has that."""
    start = text.find(within) if within else -1
    first, last = (start, start + len(within)) if within and start >= 0 else (0, len(text))
    return [
        (match[0].casefold(), match.start(), match.end())
        for match in _WORD.finditer(text)
        if first <= match.start() and match.end() <= last
    ]


def _runs(names: Sequence[str]) -> list[tuple[str, ...]]:
    return [tuple(names[place : place + RUN]) for place in range(len(names) - RUN + 1)]


def _pieces(text: str, words: Sequence[tuple[str, int, int]], marked: set[int]) -> list[Piece]:
    """Neighbours that are marked become one piece, with what stands between them."""
    pieces: list[Piece] = []
    end = 0
    place = 0
    while place < len(words):
        if place not in marked:
            place += 1
            continue
        last = place
        while last + 1 in marked:
            last += 1
        start, stop = words[place][1], words[last][2]
        if start > end:
            pieces.append(Piece(text=text[end:start]))
        pieces.append(Piece(text=text[start:stop], shared=True))
        end, place = stop, last + 1
    if end < len(text):
        pieces.append(Piece(text=text[end:]))
    return pieces
