"""Which eval rows stand in which texts, wholly, in part or edited: arrays and compiled loops, for decontaminate.

    index = build(tokens.pack(["Where would you find a bald eagle?"]), ngram=8)
    found = scan(tokens.pack(["Tell me: where would you find a bald eagle? Say why."]), index)
    found.text[0], found.row[0]     # 0, 0: eval row 0 stands in text 0
    found.marked(0)                 # a mark for each word of that eval row: ALIGNED, IN_RUN or both

Texts are looked through once, by the words of their normal form. Words that no eval row has are passed over; each run of ``size`` words
is looked up in a table of the eval rows' runs. An eval row of which a text has some share of the runs is a candidate, and is laid beside
the text word for word:

- ALIGNED: the word is part of the best alignment, in order, inside one stretch of the text (Smith and Waterman, 1981, with rare words
  worth more, eval words that are left out free, and text words between them at a small price).
- IN_RUN: the word is part of a run of ``ngram`` or more words that stands anywhere in the text.

``weights`` says what each word of each eval row counts, from how many rows have it and have the runs around it, and ``shares`` how much of
an eval row was found. Which candidates overlap enough is for the caller to say, once all texts were looked through.

Limits: runs that more than ``SHARED_BY`` eval rows have lead to no candidate, unless a row has no others. A text has at most ``MOST``
candidates, those of which it has the largest shares. In a text much longer than an eval row the alignment looks at one stretch of it,
where most of the row's words are; eval rows of more than ``LONGEST`` words are compared by runs alone. To be imported where it is used.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numba
import numpy as np
import numpy.typing as npt

from pipeline.tokens import Ends, Hashes, Texts

Ids = npt.NDArray[np.int32]
Weights = npt.NDArray[np.float64]
Marks = npt.NDArray[np.uint8]
Counts = tuple[Ids, Ids]
"""Which, in order, and how many of each."""

SHARED_BY: Final = 64  # eval rows that may share a run which is looked for
MOST: Final = 8  # candidates of one text
LONGEST: Final = 1_000  # words of an eval row that is aligned
SIZE: Final = 3  # words in the runs by which candidates are found
SHARE: Final = 0.3  # of an eval row's runs that a candidate has
FLOOR: Final = 0.4  # of an eval row's weight that must be found for a candidate to be kept until all texts were seen,
MOST_WORDS: Final = 0.7  # or of its words
ALIGNED: Final = 1
IN_RUN: Final = 2
FEWEST: Final = 100  # rows as of which rarity is told: among fewer all words are about as rare
GAP: Final = 0.3  # what a text word inside an alignment costs, in mean words

_NUMBER: Final = np.uint64(0x9E3779B97F4A7C15)  # the hash of every number where numbers are all alike
_UPPER: Final = np.uint64(0xFFFFFFFF00000000)
_LOWER: Final = np.uint64(0x00000000FFFFFFFF)


@dataclass(frozen=True)
class Index:
    """The eval rows. Word i of row r has place ``ends[r - 1] + i`` in ``words``, and so has the run that begins there in ``runs``."""

    size: int
    ngram: int
    floors: tuple[float, float]  # shares of a candidate's weight or words, of which one must be found
    masked: bool
    hashes: Hashes  # of each word
    words: Ids  # its number in the vocabulary
    ends: Ends
    runs: Ids  # number of the run of ``ngram`` words that begins here; -1 where there is none
    number: npt.NDArray[np.bool_]  # which words of the vocabulary are numbers
    word_rows: Ids  # eval rows that have each word of the vocabulary
    run_rows: Ids  # eval rows that have each run
    vocabulary: Hashes  # tables: hash to number
    long: Hashes  # runs of ``ngram`` words
    short: Hashes  # runs of ``size`` words, and shorter rows as a whole
    filtered: Hashes  # a bit for each place that the lower bits of these runs' hashes name
    sizes: Ids  # words in these runs
    posted: Ids  # eval rows to look at for each of these
    posted_ends: Ends
    worth: npt.NDArray[np.float32]  # of each
    need: npt.NDArray[np.float32]  # what those that a text has must be worth for the row to be a candidate
    weights: Weights  # what each word counts, as far as the eval rows alone tell

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def lengths(self) -> Ends:
        """Words of each eval row."""
        return np.diff(self.ends, prepend=0)

    def place(self, row: int) -> slice:
        """Where the words of a row stand."""
        return slice(int(self.ends[row - 1]) if row else 0, int(self.ends[row]))


@dataclass(frozen=True)
class Found:
    """Candidates, one after the other by text, and how many texts have each word and run of the eval rows.

    ``marks[mark_ends[i - 1] : mark_ends[i]]`` are the marks of candidate i's eval words. ``spans[i]``: first and last (exclusive) word of
    the alignment in the text; then the longest common run: where it begins in the text, where in the eval row, and its words.
    """

    text: Ids
    row: Ids
    marks: Marks
    mark_ends: Ends
    spans: Ids
    lengths: Ids  # words of the text
    words: Counts
    runs: Counts

    def marked(self, candidate: int) -> Marks:
        """The marks of one candidate."""
        return self.marks[self.mark_ends[candidate - 1] if candidate else 0 : self.mark_ends[candidate]]


def build(texts: Texts, *, ngram: int = 8, masked: bool = True) -> Index:
    """An index of eval rows in which candidates are found by runs of up to ``SIZE`` words. ``masked``: all numbers are alike."""
    return _built(texts, min(SIZE, ngram), ngram, masked, SHARE, SHARED_BY)


def build_any(texts: Texts, *, ngram: int) -> Index:
    """An index in which every eval row that shares a run of ``ngram`` words with a text is a candidate; numbers count as words."""
    return _built(texts, ngram, ngram, False, 0.0, len(texts))


def _built(texts: Texts, size: int, ngram: int, masked: bool, share: float, shared_by: int) -> Index:
    hashes, ends, numeric = _hashed(texts, masked)
    known, first, numbered = np.unique(hashes, return_index=True, return_inverse=True)
    words = numbered.astype(np.int32)
    row_of = np.repeat(np.arange(len(ends), dtype=np.int32), np.diff(ends, prepend=0))
    short_hashes, sizes = _run_hashes(hashes, ends, size, share > 0)
    short_keys, short, short_rows = _numbered(short_hashes, row_of)
    long_hashes, _ = _run_hashes(hashes, ends, ngram, False)
    long_keys, runs, long_rows = _numbered(long_hashes, row_of)
    run, row = _pairs(short, row_of)
    led = short_rows[run] <= shared_by  # a row that has only runs which many share is looked for by all of them
    has_own = np.zeros(len(ends), np.bool_)
    has_own[row[led]] = True
    used = led | ~has_own[row]
    run, row = run[used], row[used]
    posted_ends = np.cumsum(np.bincount(run, minlength=len(short_keys)))
    worth = (1 / np.sqrt(short_rows)).astype(np.float32)
    need = (share * np.bincount(row, worth[run], len(ends)) - 1e-5).astype(np.float32)
    floors = (FLOOR, MOST_WORDS) if share else (0.0, 0.0)
    index = Index(
        size, ngram, floors, masked, hashes, words, ends, runs, numeric[first], _numbered(hashes, row_of)[2], long_rows,
        _table(known), _table(long_keys), _table(short_keys), _filtered(short_keys), np.unique(sizes[sizes > 0]).astype(np.int32),
        row.astype(np.int32), posted_ends, worth, need, np.empty(0),
    )  # fmt: skip
    return replace(index, weights=weights(index)[0])


def _numbered(hashes: Hashes, row_of: Ids) -> tuple[Hashes, Ids, Ids]:
    """The different hashes, sorted; the number of each among them, -1 for 0; and in how many rows each is."""
    here = np.flatnonzero(hashes)
    keys, numbers = np.unique(hashes[here], return_inverse=True)
    result = np.full(len(hashes), -1, np.int32)
    result[here] = numbers
    return keys, result, np.bincount(_pairs(result, row_of)[0], minlength=len(keys)).astype(np.int32)


def _pairs(numbers: Ids, row_of: Ids) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The different pairs of a number, from 0, and a row, in order."""
    here = np.flatnonzero(numbers >= 0)
    width = int(row_of[-1]) + 1 if len(row_of) else 1
    both = np.unique(numbers[here].astype(np.int64) * width + row_of[here])
    return both // width, both % width


def weights(index: Index, found: Sequence[Found] = (), texts: int = 0) -> tuple[Weights, Weights]:
    """What each word of each eval row counts, by its rarity and evenly, given what ``scan`` found in all ``texts`` texts.

    By its rarity it is the square of ln(1 + N / rows with the word), for N rows on both sides, as in the cosine of TF-IDF vectors; evenly
    it is 1. Of either a word inside runs of ``ngram`` words that k rows share has 1 / k²: k is that of the run that most rows have, eval
    rows or texts, whichever are more. So a passage that many share counts little beside what an eval row has to itself, and a row that
    has nothing to itself counts evenly.
    """
    word_rows = index.word_rows.astype(np.float64)
    for part in found:
        word_rows[part.words[0]] += part.words[1]
    rarity = np.log1p(max(FEWEST, len(index) + texts) / word_rows) ** 2
    run_rows = np.maximum(index.run_rows, texts_with(index, found)).astype(np.float64)
    own: Weights = _own(index.runs, index.ngram, run_rows)
    return rarity[index.words] * own, own


def texts_with(index: Index, found: Sequence[Found]) -> npt.NDArray[np.int64]:
    """In how many texts each run of ``ngram`` words of the eval rows was found."""
    result = np.zeros(len(index.run_rows), np.int64)
    for part in found:
        result[part.runs[0]] += part.runs[1]
    return result


def scan(texts: Texts, index: Index) -> Found:
    """The candidates in ``texts``."""
    hashes, ends, _ = _hashed(texts, index.masked)
    words, runs, text, row = _candidates(
        hashes, ends, index.vocabulary, index.short, index.filtered, index.sizes, index.long, index.size, index.ngram,
        index.posted, index.posted_ends,
        index.worth, index.need, index.words, index.ends, index.weights, len(index.word_rows), len(index.run_rows), MOST, *index.floors,
    )  # fmt: skip
    kept, marks, mark_ends, spans = _aligned(
        hashes, ends, text, row, index.hashes, index.ends, index.weights, index.ngram, LONGEST, *index.floors, GAP
    )
    lengths = np.diff(ends, prepend=0).astype(np.int32)[text[kept]]
    return Found(text[kept], row[kept], marks, mark_ends, spans, lengths, _counts(words), _counts(runs))


def _counts(texts: npt.NDArray[np.int64]) -> Counts:
    which = np.flatnonzero(texts)
    return which.astype(np.int32), texts[which].astype(np.int32)


def shares(index: Index, found: Found, weights: tuple[Weights, Weights]) -> npt.NDArray[np.float64]:
    """For each candidate three shares of its eval row: found, found by number of words, and in runs.

    The first and the last are the smaller of two, by each of ``weights``: of rare words alone, or of frequent ones alone, no row consists.
    """
    result: npt.NDArray[np.float64] = _shares(index.ends, found.row, found.marks, found.mark_ends, *weights)
    return result


@numba.njit(cache=True, nogil=True)
def _table(keys):  # type: ignore[no-untyped-def]
    """Hash to number, by open addressing: an entry has the upper half of the hash, and the number and one in the lower half."""
    size = 16
    while size < 3 * len(keys):
        size *= 2
    table = np.zeros(size, np.uint64)
    for i in range(len(keys)):
        at = keys[i] & np.uint64(size - 1)
        while table[at]:
            at = (at + np.uint64(1)) & np.uint64(size - 1)
        table[at] = (keys[i] & _UPPER) | np.uint64(i + 1)
    return table


@numba.njit(cache=True, nogil=True)
def _filtered(keys):  # type: ignore[no-untyped-def]
    """Bits, one in ten or fewer of them set, that say for nearly all other hashes that they are none of ``keys``."""
    size = 64
    while size < 10 * len(keys):
        size *= 2
    bits = np.zeros(size // 64, np.uint64)
    for key in keys:
        place = key & np.uint64(size - 1)
        bits[place >> np.uint64(6)] |= np.uint64(1) << (place & np.uint64(63))
    return bits


@numba.njit(cache=True, nogil=True, inline="always")
def _value(key, table):  # type: ignore[no-untyped-def]
    """The number of ``key``, or -1."""
    last = np.uint64(len(table) - 1)
    at = key & last
    while table[at]:
        if (table[at] ^ key) & _UPPER == 0:
            return np.int64(table[at] & _LOWER) - 1
        at = (at + np.uint64(1)) & last
    return -1


@numba.njit(cache=True, nogil=True, inline="always")
def _mixed(h):  # type: ignore[no-untyped-def]
    h ^= h >> np.uint64(32)
    h *= np.uint64(0x9E3779B97F4A7C15)
    h ^= h >> np.uint64(29)
    h *= np.uint64(0xBF58476D1CE4E5B9)
    return h ^ (h >> np.uint64(32))


def _hashed(texts: Texts, masked: bool) -> tuple[Hashes, Ends, npt.NDArray[np.bool_]]:
    """A hash for each word, one for all numbers where they are ``masked``; where each text's words end; which words are numbers."""
    padded = np.zeros(len(texts.data) // 8 * 8 + 16, np.uint8)
    padded[: len(texts.data)] = texts.data
    hashes, ends, numeric = _word_hashes(padded, padded.view(np.uint64), texts.ends, masked)
    return hashes, ends, numeric


@numba.njit(cache=True, nogil=True)
def _word_hashes(data, eights, ends, masked):  # type: ignore[no-untyped-def]
    """Eight bytes at a time, as ``eights`` holds them: words are found without branches, and most have eight characters or fewer."""
    hashes = np.empty(len(data) // 2 + len(ends) + 1, np.uint64)
    numeric = np.zeros(len(hashes), np.bool_)
    out_ends = np.empty(len(ends), np.int64)
    spaces = np.empty(1024, np.int64)
    at = 0
    start = 0
    for i in range(len(ends)):
        end = ends[i]
        if end - start >= len(spaces):
            spaces = np.empty(2 * (end - start), np.int64)
        count = 0
        for k in range(start, end):
            spaces[count] = k
            count += data[k] == 32
        spaces[count] = end
        first = start
        for j in range(count + 1):
            last = spaces[j]
            k = first
            h = np.uint64(last - first)
            high = np.uint64(0)
            while k < last:
                place = np.uint64(k) >> np.uint64(3)
                shift = (np.uint64(k) & np.uint64(7)) << np.uint64(3)
                part = (eights[place] >> shift) | (
                    (eights[place + np.uint64(1)] << np.uint64(1)) << (np.uint64(63) - shift)
                )
                if last - k < 8:
                    part &= (np.uint64(1) << np.uint64(8 * (last - k))) - np.uint64(1)
                high |= part
                h = _mixed(h ^ part)
                k += 8
            number = 48 <= data[first] <= 57 and high & np.uint64(0xC0C0C0C0C0C0C0C0) == 0
            numeric[at] = number
            hashes[at] = _NUMBER if masked and number else h
            at += last > first
            first = last + 1
        out_ends[i] = at
        start = end
    return hashes[:at], out_ends, numeric[:at]


@numba.njit(cache=True, nogil=True, inline="always")
def _run(hashes, start, size):  # type: ignore[no-untyped-def]
    """The hash of a run of words, never 0."""
    h = np.uint64(size)
    for j in range(start, start + size):
        h = (h + hashes[j]) * np.uint64(0x9E3779B97F4A7C15)
    return (h ^ (h >> np.uint64(32))) | np.uint64(1 << 63)


@numba.njit(cache=True, nogil=True)
def _run_hashes(words, ends, size, whole):  # type: ignore[no-untyped-def]
    """For each word the hash of the run that begins with it, 0 for none, and its length. ``whole``: a shorter row is one run."""
    hashes = np.zeros(len(words), np.uint64)
    sizes = np.zeros(len(words), np.int32)
    start = 0
    for i in range(len(ends)):
        own = min(size, ends[i] - start) if whole else size
        if own > 0:
            for k in range(start, ends[i] - own + 1):
                hashes[k] = _run(words, k, own)
                sizes[k] = own
        start = ends[i]
    return hashes, sizes


@numba.njit(cache=True, nogil=True)
def _own(runs, ngram, run_rows):  # type: ignore[no-untyped-def]
    """For each word 1 / k², k being the rows that share the most frequent of the runs around it."""
    most = np.ones(len(runs), np.float64)
    for k in range(len(runs)):
        if runs[k] >= 0:
            for j in range(k, k + ngram):
                most[j] = max(most[j], run_rows[runs[k]])
    return 1 / most**2


@numba.njit(cache=True, nogil=True)
def _candidates(  # type: ignore[no-untyped-def]
    hashes,
    ends,
    vocabulary,
    short,
    filtered,
    sizes,
    long,
    anchor,
    ngram,
    posted,
    posted_ends,
    worth,
    need,
    words,
    row_ends,
    weights,
    word_count,
    run_count,
    most,
    floor,
    most_words,
):
    """In how many texts each word and run occurs, and the pairs of text and eval row worth looking at."""
    word_texts = np.zeros(word_count + 1, np.int64)  # the last is for all other words
    run_texts = np.zeros(run_count, np.int64)
    word_last = np.full(word_count + 1, -1, np.int64)
    run_last = np.full(run_count, -1, np.int64)
    short_last = np.full(len(posted_ends), -1, np.int64)
    had = np.zeros(len(need), np.float32)
    had_last = np.full(len(need), -1, np.int64)
    touched = np.empty(len(need), np.int32)
    text = np.empty(1024, np.int32)
    row = np.empty(1024, np.int32)
    maybe = np.empty(1024, np.int64)
    runs = np.empty(1024, np.uint64)
    at = 0
    start = 0
    for t in range(len(ends)):
        end = ends[t]
        if end - start > len(maybe):
            maybe = np.empty(2 * (end - start), np.int64)
            runs = np.empty(2 * (end - start), np.uint64)
        for k in range(start, end):
            word = _value(hashes[k], vocabulary)
            word_texts[word] += word_last[word] != t
            word_last[word] = t
        count = 0
        for size in sizes:
            there = np.int64(0)
            for k in range(start, end - size + 1):  # no branches: most runs are those of no eval row
                run = _run(hashes, k, size)
                maybe[there] = k
                runs[there] = run
                place = run & np.uint64(64 * len(filtered) - 1)
                there += np.int64((filtered[place >> np.uint64(6)] >> (place & np.uint64(63))) & np.uint64(1))
            linked = 0
            before = -2
            for j in range(there):
                k = maybe[j]
                found = _value(runs[j], short)
                if found < 0:
                    continue
                linked = linked + 1 if k == before + 1 else 1
                before = k
                if size == anchor and linked > ngram - size:
                    run = _value(_run(hashes, k + size - ngram, ngram), long)
                    if run >= 0 and run_last[run] != t:
                        run_last[run] = t
                        run_texts[run] += 1
                if short_last[found] == t:
                    continue
                short_last[found] = t
                for p in range(posted_ends[found - 1] if found else 0, posted_ends[found]):
                    e = posted[p]
                    if had_last[e] != t:
                        had_last[e] = t
                        had[e] = 0
                        touched[count] = e
                        count += 1
                    had[e] += worth[found]
        kept = 0
        for j in range(count):
            e = touched[j]
            if had[e] < need[e]:
                continue
            total = held = 0.0
            words_held = 0
            for i in range(row_ends[e - 1] if e else 0, row_ends[e]):
                total += weights[i]
                if word_last[words[i]] == t:
                    held += weights[i]
                    words_held += 1
            if held >= floor * total or words_held >= most_words * (row_ends[e] - (row_ends[e - 1] if e else 0)):
                touched[kept] = e
                kept += 1
        if kept > most:
            share = np.empty(kept, np.float64)
            for j in range(kept):
                share[j] = -had[touched[j]] / max(need[touched[j]], 1e-5) + touched[j] * 1e-12  # the earlier of equals
            best = touched[:kept][np.argsort(share)[:most]]
            kept = most
            touched[:kept] = best
        if at + kept > len(text):
            text = np.concatenate((text, np.empty(len(text) + kept, np.int32)))
            row = np.concatenate((row, np.empty(len(row) + kept, np.int32)))
        for j in range(kept):
            text[at] = t
            row[at] = touched[j]
            at += 1
        start = end
    return word_texts[:word_count], run_texts, text[:at].copy(), row[:at].copy()


@numba.njit(cache=True, nogil=True)
def _stretch(hashes, start, end, row, weight):  # type: ignore[no-untyped-def]
    """The part of a text to align an eval row with: all of it, or where most of the row's weight is, with some around."""
    width = 2 * len(row) + 8
    if end - start <= 2 * width:
        return start, end
    order = np.argsort(row)
    ordered = row[order]
    there = np.zeros(end - start, np.float64)
    for k in range(start, end):
        i = np.searchsorted(ordered, hashes[k])
        if i < len(row) and ordered[i] == hashes[k]:
            there[k - start] = weight[order[i]]
    held = 0.0
    best = -1.0
    at = start
    for k in range(end - start):
        held += there[k]
        if k >= width:
            held -= there[k - width]
        if held > best + 1e-9:
            best = held
            at = start + k + 1
    return max(start, at - width - len(row)), min(end, at + len(row))


@numba.njit(cache=True, nogil=True)
def _aligned(hashes, ends, text, row, words, row_ends, weights, ngram, longest, floor, most_words, gap):  # type: ignore[no-untyped-def]
    """Lays each candidate's eval row beside its text; what is found too little of is left out."""
    kept = np.empty(len(text), np.int64)
    spans = np.empty((len(text), 5), np.int32)
    mark_ends = np.empty(len(text), np.int64)
    marks = np.empty(1 << 12, np.uint8)
    steps = np.empty(1, np.uint8)
    at = 0
    filled = 0
    for c in range(len(text)):
        first = row_ends[row[c] - 1] if row[c] else 0
        length = row_ends[row[c]] - first
        begin = ends[text[c] - 1] if text[c] else 0
        end = ends[text[c]]
        if filled + length > len(marks):
            marks = np.concatenate((marks, np.empty(len(marks) + length, np.uint8)))
        own = marks[filled : filled + length]
        own[:] = 0
        weight = weights[first : first + length]

        # Runs of ``ngram`` words, and the longest common run of any length: the ends of common runs, a text word at a time.
        ending = np.zeros(length, np.int32)
        run_text = run_row = run_length = 0
        for k in range(begin, end):
            before = 0
            for i in range(length):
                last = ending[i]
                if hashes[k] == words[first + i]:
                    ending[i] = before + 1
                    if ending[i] > run_length:
                        run_length = ending[i]
                        run_text = k + 1 - run_length - begin
                        run_row = i + 1 - run_length
                    if ending[i] == ngram:
                        for j in range(i + 1 - ngram, i + 1):
                            own[j] |= 2
                    elif ending[i] > ngram:
                        own[i] |= 2
                else:
                    ending[i] = 0
                before = last

        # The best alignment.
        low = high = 0
        if length <= longest:
            low, high = _stretch(hashes, begin, end, words[first : first + length], weight)
            width = high - low
            if len(steps) < (length + 1) * (width + 1):
                steps = np.empty((length + 1) * (width + 1), np.uint8)
            price = gap * weight.mean()
            above = np.zeros(width + 1, np.float64)
            for i in range(1, length + 1):
                left = 0.0
                diagonal = above[0]
                w = weight[i - 1] + 1e-6
                for j in range(1, width + 1):
                    up = above[j]
                    best = up
                    step = 0
                    if left - price > best:
                        best = left - price
                        step = 1
                    if hashes[low + j - 1] == words[first + i - 1] and diagonal + w >= best:
                        best = diagonal + w
                        step = 2
                    diagonal = up
                    above[j] = best
                    left = best
                    steps[i * (width + 1) + j] = step
            j = 0
            for k in range(1, width + 1):
                if above[k] > above[j] + 1e-9:
                    j = k
            i = length
            high = low
            last_low = low
            while i > 0 and j > 0:
                step = steps[i * (width + 1) + j]
                if step == 2:
                    own[i - 1] |= 1
                    if high == low:
                        high = low + j
                    last_low = low + j - 1
                    i -= 1
                    j -= 1
                elif step == 1:
                    j -= 1
                else:
                    i -= 1
            if high > low:
                low = last_low

        total = found = 0.0
        count = 0
        for i in range(length):
            total += weight[i]
            if own[i]:
                found += weight[i]
                count += 1
        if found >= floor * total or count >= most_words * length:
            kept[at] = c
            spans[at, 0] = low - begin
            spans[at, 1] = high - begin
            spans[at, 2] = run_text
            spans[at, 3] = run_row
            spans[at, 4] = run_length
            filled += length
            mark_ends[at] = filled
            at += 1
    return kept[:at].copy(), marks[:filled].copy(), mark_ends[:at].copy(), spans[:at].copy()


@numba.njit(cache=True, nogil=True)
def _shares(row_ends, row, marks, mark_ends, by_rarity, evenly):  # type: ignore[no-untyped-def]
    result = np.zeros((len(row), 3), np.float64)
    begin = 0
    for c in range(len(row)):
        first = row_ends[row[c] - 1] if row[c] else 0
        length = mark_ends[c] - begin
        found = np.zeros((3, 2), np.float64)
        words = 0
        for i in range(length):
            weight = np.array((by_rarity[first + i], evenly[first + i]))
            mark = marks[begin + i]
            found[0] += weight
            if mark:
                found[1] += weight
                words += 1
            if mark & 2:
                found[2] += weight
        if found[0].min() > 0:
            result[c, 0] = (found[1] / found[0]).min()
            result[c, 2] = (found[2] / found[0]).min()
        result[c, 1] = words / length
        begin = mark_ends[c]
    return result
