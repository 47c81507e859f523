"""Text as the curation stages compare it: normalised, as words, as n-grams. Pure functions.

    normalise("It's  “Café” No. 1,200: 5-3!")  ->  "its café no 1200 5 - 3"
    ngrams(["the", "cat", "sat"], 2)           ->  ["the cat", "cat sat"]
    shingles("The cat", 4)                     ->  {"the ", "he c", "e ca", " cat"}

What ``normalise`` does, in this order:

1. Unicode NFKC (full-width letters, ligatures, "½" and the like take their plain form), then case folding.
2. Apostrophes, accents that stand alone, and invisible characters (zero-width, soft hyphen) vanish: "don't" is "dont".
3. Letters, marks, digits stay. Signs of mathematics and currency ("+", "=", "<", "$") become words of their own, and so does each
   character of a script that is written without spaces (Han, Kana, Thai, Lao, Khmer, Myanmar).
4. A point between two digits stays ("3.5"), a comma that groups thousands vanishes ("1,200" is "1200"), and "-", "*", "/" stay as
   words between two digits, so that sums which differ in their sign stay different. All other punctuation separates words.
5. White space becomes one space. A text of which nothing would remain (":-)") is only case-folded and stripped.

Limits: "a - b" and "a * b" over letters look the same; emoji are dropped; numbers written as words are words.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

NORMALISER: Final = "stepdistill.text.normalise 1"  # raise it when texts that were alike no longer are, or the reverse

_APART = (  # scripts without spaces between words: each character is a word
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
_BETWEEN_DIGITS = ".,-*/"  # what these become depends on their neighbours
_MINUS = "−‐‑‒–"  # minus sign, hyphens and the en dash that stands for either


class _Characters(dict[int, str]):
    """What each character becomes; worked out once a character, as ``str.translate`` asks for it."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind = unicodedata.category(character)
        if character in _BETWEEN_DIGITS:
            result = character
        elif character in _MINUS:
            result = "-"
        elif character in "×∙·":
            result = "*"
        elif character in "÷∕⁄":
            result = "/"
        elif character in "'’‘ʼ`´" or kind == "Cf":
            result = ""
        elif unspaced(character) and kind[0] == "L":
            result = f" {character} "
        elif kind[0] in "LMN":
            result = character
        elif kind in ("Sm", "Sc"):
            result = f" {character} "
        else:
            result = " "
        self[code] = result
        return result


def unspaced(character: str) -> bool:
    """Whether the character is of a script that is written without spaces between words."""
    return any(first <= ord(character) <= last for first, last in _APART)


_CHARACTERS = _Characters()
_SPACED = "$+<=>|~"  # of ASCII, what becomes a word of its own
_ASCII = {code: chr(code) if chr(code) in _SPACED else _CHARACTERS[code] for code in range(128)}
"""One character for one, which ``str.translate`` does many times as fast."""
_RARE = f"0123456789{_SPACED}".encode()  # of ASCII, what needs a look at its neighbours, or room around it
_GONE = "".join(chr(code) for code, shown in _ASCII.items() if not shown).encode()
_WORDS = bytes(ord(" " if shown in _BETWEEN_DIGITS else shown.lower()) for shown in _ASCII.values()) + bytes(128)
"""What each byte of an ASCII text without those becomes: a letter, in lower case, or a space."""
_GROUPED = re.compile(r"\d,\d{3}")
_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?!\d)")
_SIGNS = re.compile(r"\d(?:\.|\s*[-*/]\s*)(?=\d)")
_MARKS = str.maketrans(".-*/", "\1\2\3\4")  # what stays, for the moment in which all else becomes a space
_UNMARKED = str.maketrans("\1\2\3\4.,-*/", ".-*/     ")


def fold(text: str) -> str:
    """``text`` for comparing labels: NFKC, case-folded, white space as single spaces, stripped. Punctuation stays."""
    folded = (
        text.lower()
        if text.isascii()
        else unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    )
    return " ".join(folded.split())


@lru_cache(maxsize=1024)  # several filters look at the same row
def normalise(text: str) -> str:
    """``text`` for comparing inputs and rationales, as the module says. Idempotent; never empty unless ``text`` is blank."""
    if text.isascii():
        raw = text.encode()
        if len(raw.translate(None, _RARE)) == len(raw):  # words and punctuation alone, as most texts are
            return " ".join(raw.translate(_WORDS, _GONE).decode().split()) or fold(text)
        shown = text.lower().translate(_ASCII)
        for sign in _SPACED:
            if sign in shown:
                shown = shown.replace(sign, f" {sign} ")
    else:
        shown = fold(text).translate(_CHARACTERS)
    if not shown.isascii() or any(map(shown.__contains__, "0123456789")):
        if _GROUPED.search(shown):
            shown = _THOUSANDS.sub(lambda match: match[0].replace(",", ""), shown)
        shown = _SIGNS.sub(_marked, shown)
    return " ".join(shown.translate(_UNMARKED).split()) or fold(text)


def _marked(match: re.Match[str]) -> str:
    """A digit and the sign behind it, with its mark; a sign stands between spaces, a point does not."""
    found = match[0]
    sign = found[1:].strip().translate(_MARKS)
    return found[0] + (sign if sign == "\1" else f" {sign} ")


def words(text: str) -> list[str]:
    """The words of the normalised text."""
    return normalise(text).split()


def numbers(text: str) -> list[str]:
    """The numbers in ``text``, in order and as written but for grouping commas: "1,200 of 3.5" gives ["1200", "3.5"]."""
    return re.findall(r"\d+(?:\.\d+)*", normalise(text))


def ngrams(sequence: Sequence[str], n: int) -> list[str]:
    """All runs of ``n`` words, in order, each joined by spaces; none where there are fewer words."""
    return [" ".join(sequence[start : start + n]) for start in range(len(sequence) - n + 1)]


def shingles(text: str, n: int) -> set[str]:
    """All runs of ``n`` characters of the normalised text; a shorter text is its own only shingle. Never empty."""
    shown = normalise(text)
    return {shown[start : start + n] for start in range(max(1, len(shown) - n + 1))}


def excerpt(text: str, limit: int = 200) -> str:
    """At most ``limit`` characters of ``text`` for evidence: its beginning and, where it is longer, its end."""
    if len(text) <= limit:
        return text
    half = (limit - 3) // 2
    return f"{text[: limit - 3 - half]} … {text[-half:]}"
