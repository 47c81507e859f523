"""Texts as arrays: the words and characters of text.py's normalised form, hashed in compiled loops, a block of texts at a time.

    texts = pack(["It's No. 1,200!", "Café"])      # one byte buffer, each text normalised
    hashes, ends = words(texts)                    # a 64-bit hash for each word; ends[i] is where text i's words end
    hashes, ends = runs(hashes, ends, 3)           # the same for each run of three words
    hashes, ends = runs(*characters(texts), 4)     # the same for each run of four characters

``pack`` gives the bytes of ``text.normalise``: ASCII texts take one compiled pass that follows its rules, others go through it, at
about a tenth of the speed. Equal runs have equal hashes; different ones are equal once in 2**64.

Limits: a block holds less than 2 GiB of text. Compiled code is kept in a cache beside this file, or in numba's own folder where that
cannot be written; the first use after an installation compiles for some seconds. To be imported where it is used: numba takes time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np

from pipeline.text import normalise

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Ends = np.ndarray[Any, np.dtype[np.int64]]
Hashes = np.ndarray[Any, np.dtype[np.uint64]]

_SPACE, _KEPT, _GONE, _APART, _BETWEEN = range(5)
_DIGITS = b"0123456789"


def _kinds() -> Bytes:
    kinds = np.full(128, _SPACE, np.uint8)
    for codes, kind in (
        (b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" + _DIGITS, _KEPT),
        (b"'`", _GONE),
        (b"+<=>|~$", _APART),
        (b".,-*/", _BETWEEN),
    ):
        kinds[list(codes)] = kind
    return kinds


_KINDS = _kinds()
_PLAIN = np.where(_KINDS == _KEPT, np.arange(128), np.where(_KINDS == _SPACE, 32, 0)).astype(np.uint8)
_PLAIN[ord("A") : ord("Z") + 1] += 32


@dataclass(frozen=True)
class Texts:
    """Normalised texts, one after the other: text i is ``data[ends[i - 1] : ends[i]]``, in UTF-8."""

    data: Bytes
    ends: Ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        """The normalised text number ``index``, from 0."""
        start = int(self.ends[index - 1]) if index else 0
        return self.data[start : int(self.ends[index])].tobytes().decode()


def pack(texts: Sequence[str], encoded: Sequence[bytes] | None = None) -> Texts:
    """The normalised forms of ``texts``. ``encoded`` is what they are in UTF-8, where that is at hand."""
    as_they_are = np.fromiter((text.isascii() for text in texts), np.bool_, len(texts))
    parts = [text.encode() for text in texts] if encoded is None else [*encoded]
    for index in np.flatnonzero(~as_they_are).tolist():
        parts[index] = normalise(texts[index]).encode()
    packed = _packed(parts, as_they_are)
    if not (blank := [i for i in _blank(packed.ends) if texts[i] and not texts[i].isspace()]):
        return packed
    for index in blank:  # nothing but punctuation: normalise keeps that
        parts[index], as_they_are[index] = normalise(texts[index]).encode(), False
    return _packed(parts, as_they_are)


def words(texts: Texts) -> tuple[Hashes, Ends]:
    """A hash for each word of each text."""
    hashes, ends = _words(texts.data, texts.ends)
    return hashes, ends


def characters(texts: Texts) -> tuple[Hashes, Ends]:
    """A hash for each character (code point) of each text."""
    hashes, ends = _characters(texts.data, texts.ends)
    return hashes, ends


def runs(hashes: Hashes, ends: Ends, n: int) -> tuple[Hashes, Ends]:
    """A hash for each run of ``n`` tokens that stand next to each other in a text; none for a text with fewer."""
    found, found_ends = _runs(hashes, ends, n)
    return found, found_ends


def _packed(parts: list[bytes], as_they_are: Any) -> Texts:
    data = np.frombuffer(b"".join(parts), np.uint8)
    ends = np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)))
    return Texts(*_normalised(data, ends, as_they_are, _KINDS, _PLAIN))


def _blank(ends: Ends) -> Any:
    return np.flatnonzero(np.diff(ends, prepend=0) == 0)


@numba.njit(cache=True, nogil=True, inline="always")
def _digit(code: int) -> bool:
    return 48 <= code <= 57


@numba.njit(cache=True, nogil=True)
def _normalised(data, ends, as_they_are, kinds, plain):  # type: ignore[no-untyped-def]
    """What text.normalise does to ASCII texts; those that are not ``as_they_are`` were normalised before and are copied.

    ``plain`` is what a letter, a digit or a separating character becomes; these take no branch. The others are looked at one by one.
    """
    out = np.empty(3 * len(data) + 1, np.uint8)
    out_ends = np.empty(len(ends), np.int64)
    at = 0
    start = 0
    for i in range(len(ends)):
        end = ends[i]
        begin = at
        if not as_they_are[i]:
            out[at : at + end - start] = data[start:end]
            at += end - start
        else:
            last = np.uint8(32)
            grouped = -1  # where the last comma stood that groups thousands
            for k in range(start, end):
                code = plain[data[k]]
                if code:
                    out[at] = code
                    at += (code != 32) | (last != 32)
                    last = code
                    continue
                code = data[k]
                kind = kinds[code]
                if kind == _GONE:
                    continue
                if code == 44 and _groups(data, start, end, k, grouped, kinds):
                    grouped = k
                    continue
                if code == 46 and _between_digits(data, start, end, k, kinds, _GONE, _GONE):
                    out[at] = last = code
                    at += 1
                    continue
                if last != 32:
                    out[at] = 32
                    at += 1
                last = np.uint8(32)
                sign = code == 45 or code == 42 or code == 47
                if kind == _APART or (sign and _between_digits(data, start, end, k, kinds, _GONE, _SPACE)):
                    out[at] = code
                    out[at + 1] = 32
                    at += 2
        if at > begin and as_they_are[i] and out[at - 1] == 32:
            at -= 1
        out_ends[i] = at
        start = end
    return out[:at], out_ends  # of what was set aside, no more is used than was written


@numba.njit(cache=True, nogil=True)
def _between_digits(data, start, end, k, kinds, gone, space):  # type: ignore[no-untyped-def]
    """Whether there are digits before and after place ``k``; characters of the kinds ``gone`` and ``space`` are passed over."""
    j = k - 1
    while j >= start and (kinds[data[j]] == gone or kinds[data[j]] == space):
        j -= 1
    if j < start or not _digit(data[j]):
        return False
    j = k + 1
    while j < end and (kinds[data[j]] == gone or kinds[data[j]] == space):
        j += 1
    return j < end and _digit(data[j])


@numba.njit(cache=True, nogil=True)
def _groups(data, start, end, k, grouped, kinds):  # type: ignore[no-untyped-def]
    r"""Whether the comma at ``k`` groups thousands: (?<![\d.])\d{1,3}(?:,\d{3})+(?!\d), ``grouped`` being the last one that did."""
    before = 0
    j = k - 1
    while j >= start and (_digit(data[j]) or kinds[data[j]] == _GONE):
        before += _digit(data[j])
        j -= 1
    if before == 0 or not ((j >= start and j == grouped) or (before <= 3 and (j < start or data[j] != 46))):
        return False
    after = 0
    j = k + 1
    while j < end and after <= 3 and (_digit(data[j]) or kinds[data[j]] == _GONE):
        after += _digit(data[j])
        j += 1
    return after == 3


@numba.njit(cache=True, nogil=True, inline="always")
def _mixed(h: np.uint64) -> np.uint64:
    """The finaliser of MurmurHash3: every bit of the result depends on every bit of ``h``."""
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xC4CEB9FE1A85EC53)
    return h ^ (h >> np.uint64(33))


@numba.njit(cache=True, nogil=True)
def _words(data, ends):  # type: ignore[no-untyped-def]
    """FNV-1a of each word's bytes, mixed."""
    hashes = np.empty(len(data) // 2 + len(ends) + 1, np.uint64)
    out_ends = np.empty(len(ends), np.int64)
    at = 0
    start = 0
    for i in range(len(ends)):
        h = np.uint64(0xCBF29CE484222325)
        inside = False
        for k in range(start, ends[i]):
            code = data[k]
            if code == 32:
                if inside:
                    hashes[at] = _mixed(h)
                    at += 1
                h = np.uint64(0xCBF29CE484222325)
                inside = False
            else:
                h = (h ^ np.uint64(code)) * np.uint64(0x100000001B3)
                inside = True
        if inside:
            hashes[at] = _mixed(h)
            at += 1
        out_ends[i] = at
        start = ends[i]
    return hashes[:at].copy(), out_ends


@numba.njit(cache=True, nogil=True)
def _characters(data, ends):  # type: ignore[no-untyped-def]
    """Each code point of the UTF-8, mixed."""
    hashes = np.empty(len(data), np.uint64)
    out_ends = np.empty(len(ends), np.int64)
    at = 0
    start = 0
    for i in range(len(ends)):
        point = np.uint64(0)
        for k in range(start, ends[i]):
            code = np.uint64(data[k])
            if code < np.uint64(128):
                hashes[at] = code + np.uint64(1)
                at += 1
            elif code < np.uint64(192):  # one more byte of the same code point
                hashes[at - 1] = (hashes[at - 1] << np.uint64(8)) | code
            else:
                point = code
                hashes[at] = point
                at += 1
        out_ends[i] = at
        start = ends[i]
    for k in range(at):
        hashes[k] = _mixed(hashes[k])
    return hashes[:at].copy(), out_ends


@numba.njit(cache=True, nogil=True)
def _runs(hashes, ends, n):  # type: ignore[no-untyped-def]
    found = np.empty(len(hashes), np.uint64)
    out_ends = np.empty(len(ends), np.int64)
    at = 0
    start = 0
    for i in range(len(ends)):
        for k in range(start, ends[i] - n + 1):
            h = np.uint64(n)
            for j in range(k, k + n):
                h = (h ^ hashes[j]) * np.uint64(0x9E3779B97F4A7C15)
                h ^= h >> np.uint64(32)
            found[at] = h
            at += 1
        out_ends[i] = at
        start = ends[i]
    return found[:at].copy(), out_ends
