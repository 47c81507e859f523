"""Near duplicates among many texts: sketches that similar texts share, and the exact similarity of those that do. Compiled loops.

    lengths, keys = band_keys(pack(texts), words=False, n=5, count=28, height=9, salt=..)   # 28 keys a text
    rows, buckets = shared(keys[0])                        # the texts that share one of the first band's keys with others
    settle(order, rows, buckets, ..)                       # which of them are the same, by their exact similarity

Similarity is the Jaccard index of the sets of shingles: runs of ``n`` words or characters; a shorter text is its own only shingle. Two
sketches agree in each of their places with a probability that equals it. A pair of similarity s therefore shares a key in one of
``count`` bands of ``height`` places with probability 1 - (1 - s**height)**count. That decides which pairs are looked at, nothing else:
``settle`` counts the shingles of each pair that it compares.

The sketch is that of Dahlgaard, Knudsen, Thorup, "Fast Similarity Sketching" (2017), its last empty places filled as in Shrivastava,
"Optimal Densification for Fast and Accurate Minwise Hashing" (2017): as good an estimate as so many separate permutations, for two or three
passes over the shingles. (128 multiply-add permutations, vectorised, took five times as long.) Shingles are hashed by a cyclic polynomial
that rolls over the text (Cohen, "Recursive hashing functions for n-grams", 1997), in 64 bits.

How many bands: unrelated English texts of 500 characters are 0.05 alike in 3-word shingles, 0.10 in 5-character and 0.14 in 4-character
ones, and of a million texts each meets a million others. So at 0.8 3-word shingles take 17 bands of 7 places, 5-character ones 28 of 9 and
4-character ones 36 of 10, for about as few pairs compared in vain.

Limits: two different shingles are taken for one with probability 2**-64. To be imported where it is used: numba takes time.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

import numba
import numpy as np

from pipeline.tokens import Hashes, Texts, pack

Array = np.ndarray[Any, Any]

PLACES: Final = 512  # of a sketch, at most
MISSED: Final = 0.02  # share of pairs exactly at the threshold that the bands may miss
UNRELATED: Final = {
    True: 0.2,
    False: 0.6,
}  # how alike unrelated texts of 500 characters are, times n: in words, in characters
IN_VAIN: Final = 2e-7  # share of unrelated pairs that may be compared
CROWDED: Final = 64  # kept texts of one bucket that others are compared with
EXAMPLES: Final = 10
EMPTY: Final = np.uint32(0xFFFFFFFF)


def bands(similarity: float, *, words: bool, n: int) -> tuple[int, int]:
    """Count and height of the bands that miss ``MISSED`` of the pairs of ``similarity``.

    The lowest, and so shortest sketch, for which few unrelated pairs are compared; where that takes over ``PLACES`` places, the highest
    that does not.
    """
    found = (1, 1)
    for height in range(1, 33):
        share = similarity**height
        count = math.ceil(math.log(MISSED) / math.log1p(-share)) if share < 1 - MISSED else 1
        if count * height > PLACES:
            break
        found = (count, height)
        if count * (UNRELATED[words] / n) ** height <= IN_VAIN:
            break
    return found


def missed(similarity: float, count: int, height: int) -> float:
    """The probability that a pair of this similarity shares no band."""
    return float((1 - similarity**height) ** count)


def band_keys(
    texts: Texts, *, words: bool, n: int, count: int, height: int, salt: Hashes, rows: Array | None = None
) -> tuple[Array, Array]:
    """For each text (or those named by ``rows``) how many shingles it has, repeated ones included, and a 32-bit key for each band.

    ``words``: shingles are runs of ``n`` words instead of characters; ``n`` is at most 32. Texts with another ``salt`` share no key, but
    by chance.
    """
    chosen = np.arange(len(texts)) if rows is None else rows
    lengths, keys = _band_keys(texts.data, texts.ends, chosen, words, n, count, height, salt)
    return lengths, keys


def shared(keys: Array) -> tuple[Array, Array]:
    """The rows whose key others have as well, and for each the number of its bucket, from 0."""
    rows, buckets = _shared(_sorted(keys))
    return rows, buckets


def same(digests: Hashes) -> Array:
    """For each row with a digest of two 64-bit halves the first row that has the same."""
    found: Array = _same(_sorted((digests[:, 0] >> np.uint64(32)).astype(np.uint32)), digests)
    return found


def told_apart(texts: Texts, *, numbers: bool, negation: bool) -> Hashes:
    """One hash for each text, over what keeps similar texts apart: equal where that is the same.

    ``numbers``: those of text.numbers in ASCII digits and the words ``NUMBER_WORDS``, together in their order; "7" is not "seven".
    ``negation``: how many of the words ``NEGATIONS`` there are.
    """
    table, kinds = _word_table(numbers, negation)
    found: Hashes = _told_apart(texts.data, texts.ends, table, kinds, numbers)
    return found


NEGATIONS: Final = """
no not non none nor never nobody nothing nowhere neither cannot cant without
aint arent couldnt didnt doesnt dont hadnt hasnt havent isnt mightnt mustnt neednt shant shouldnt wasnt werent wont wouldnt
""".split()
NUMBER_WORDS: Final = """
zero two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
twenty thirty forty fifty sixty seventy eighty ninety hundred hundreds thousand thousands million millions billion billions
dozen dozens half twice thrice double triple second third fourth fifth sixth seventh eighth ninth tenth
""".split()
"""English. "one", "once" and "first" are left out, since they mostly count nothing ("what might one do first?"); where another number takes
the place of one of them, that one tells the texts apart."""
_NEGATION, _NUMBER = 1, 2
_CODES = np.random.default_rng(1).integers(0, 2**64, 256, np.uint64)  # a hash for each byte


@lru_cache
def _word_table(numbers: bool, negation: bool) -> tuple[Hashes, Array]:
    """The words that tell texts apart, each in the slot that its hash says, and beside them of which kind each is; 0: a free slot."""
    kinds = dict.fromkeys(NUMBER_WORDS if numbers else (), _NUMBER) | dict.fromkeys(
        NEGATIONS if negation else (), _NEGATION
    )
    packed = pack(list(kinds))
    hashes = np.empty(len(kinds), np.uint64)
    for k, (start, end) in enumerate(pairwise([0, *packed.ends.tolist()])):
        unit, until, figures = np.empty(1, np.uint64), np.empty(1, np.int32), np.empty(1, np.uint8)
        _words(packed.data[start:end], unit, until, figures)
        hashes[k] = unit[0]
    room = 1024
    while len({_word_slot(value, room) for value in hashes}) < len(hashes):
        room *= 2
    table, kind_of = np.zeros(room, np.uint64), np.zeros(room, np.uint8)
    for value, kind in zip(hashes, kinds.values(), strict=True):
        slot = _word_slot(value, room)
        table[slot], kind_of[slot] = value, kind
    return table, kind_of


def _sorted(keys: Array) -> Hashes:
    """Keys with the numbers of their rows behind them, in order."""
    pairs: Hashes = (keys.astype(np.uint64) << np.uint64(32)) | np.arange(len(keys), dtype=np.uint64)
    pairs.sort()
    return pairs


@numba.njit(cache=True, nogil=True, inline="always")
def _turned(h, by):  # type: ignore[no-untyped-def]
    return (h << np.uint64(by)) | (h >> np.uint64(64 - by))


@numba.njit(cache=True, nogil=True, inline="always")
def _scattered(h):  # type: ignore[no-untyped-def]
    h *= np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(32)
    h *= np.uint64(0xC4CEB9FE1A85EC53)
    return h ^ (h >> np.uint64(29))


@numba.njit(cache=True, nogil=True, inline="always")
def _slot_of(table, shingle):  # type: ignore[no-untyped-def]
    """Where ``shingle`` stands in the table, or the free slot where it would."""
    value = max(shingle, np.uint64(1))
    last = np.uint64(len(table) - 1)
    slot = ((value * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) & last
    while table[slot] and table[slot] != value:
        slot = (slot + np.uint64(1)) & last
    return slot


@numba.njit(cache=True, nogil=True)
def _units(data, start, end, words, out):  # type: ignore[no-untyped-def]
    """A hash for each character (code point) or word of a text; how many there are."""
    m = 0
    if words:  # a cyclic polynomial again: this loop has no branches and waits for nothing
        h = np.uint64(0)
        for k in range(start, end):
            code = data[k]
            space = code == 32
            out[m] = h
            m += space
            h = (_turned(h, 9) ^ _CODES[code]) * np.uint64(not space)
        out[m] = h
        m += end > start
        for k in range(m):
            out[k] = _scattered(out[k])
        return m
    point = np.uint64(0)
    for k in range(start, end):
        code = np.uint64(data[k])
        if k > start and (code < np.uint64(128) or code >= np.uint64(192)):
            out[m] = _CODES[point] if point < np.uint64(128) else _scattered(point)
            m += 1
            point = np.uint64(0)
        point = (point << np.uint64(8)) | code
    out[m] = _CODES[point] if point < np.uint64(128) else _scattered(point)
    return m + 1


@numba.njit(cache=True, nogil=True, inline="always")
def _digit(code):  # type: ignore[no-untyped-def]
    return np.uint8(code - np.uint8(48)) < np.uint8(10)


@numba.njit(cache=True, nogil=True)
def _words(text, hashes, until, figures):  # type: ignore[no-untyped-def]
    """For each word of a text a hash, its end, and whether there is a digit in it; how many there are. Without branches, as above."""
    m = 0
    h = np.uint64(0)
    digits = np.uint8(0)
    for k in range(len(text)):
        code = text[k]
        inside = code != 32
        hashes[m] = h
        until[m] = k
        figures[m] = digits
        m += not inside
        digits = (digits | _digit(code)) & inside
        h = (_turned(h, 9) ^ _CODES[code]) * np.uint64(inside)
    hashes[m] = h
    until[m] = len(text)
    figures[m] = digits
    return m + (len(text) > 0)


@numba.njit(cache=True, nogil=True, inline="always")
def _word_slot(word, room):  # type: ignore[no-untyped-def]
    return ((word * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) & np.uint64(room - 1)


@numba.njit(cache=True, nogil=True)
def _told_apart(data, ends, table, kinds, numbers):  # type: ignore[no-untyped-def]
    longest = _longest(ends)
    hashes = np.empty(longest, np.uint64)
    until = np.empty(longest, np.int32)
    figures = np.empty(longest, np.uint8)
    found = np.empty(len(ends), np.uint64)
    start = 0
    for i in range(len(ends)):
        text = data[start : ends[i]]
        h = np.uint64(0)
        negations = 0
        for j in range(_words(text, hashes, until, figures)):
            slot = _word_slot(hashes[j], len(table))
            if kinds[slot] and table[slot] == hashes[j]:
                if kinds[slot] == _NEGATION:
                    negations += 1
                else:
                    h = _scattered(h ^ hashes[j])
            elif numbers and figures[j]:
                h = _figures(text[until[j - 1] + 1 if j else 0 : until[j]], h)
        found[i] = _scattered(h) + np.uint64(negations)
        start = ends[i]
    return found


@numba.njit(cache=True, nogil=True)
def _figures(word, h):  # type: ignore[no-untyped-def]
    """``h`` with the numbers of a word, as the expression \\d+(?:\\.\\d+)* finds them, one after the other."""
    inside = False
    for k in range(len(word)):
        code = word[k]
        point = code == 46 and inside and k + 1 < len(word) and _digit(word[k + 1])
        if _digit(code) or point:
            h = (h ^ np.uint64(code)) * np.uint64(0x100000001B3)
            inside = True
        elif inside:
            h = _scattered(h ^ np.uint64(32))
            inside = False
    return _scattered(h ^ np.uint64(32)) if inside else h


@numba.njit(cache=True, nogil=True)
def _plain(text):  # type: ignore[no-untyped-def]
    """Whether each byte is a character."""
    wide = np.uint8(0)
    for code in text:
        wide |= code
    return wide < 128


@numba.njit(cache=True, nogil=True)
def _shingles(data, start, end, words, n, units, out):  # type: ignore[no-untyped-def]
    """A hash for each shingle of a text, repeated ones included; how many there are: at least one."""
    if not words and end - start >= n and _plain(data[start:end]):  # as below, without a detour
        text = data[start:end]
        h = np.uint64(0)
        for k in range(n):
            h = _turned(h, 1) ^ _CODES[text[k]]
        out[0] = h
        for k in range(len(text) - n):
            h = _turned(h, 1) ^ _turned(_CODES[text[k]], n) ^ _CODES[text[k + n]]
            out[k + 1] = h
        return len(text) - n + 1
    m = _units(data, start, end, words, units)
    size = min(n, m)
    h = np.uint64(0)
    for k in range(size):
        h = _turned(h, 1) ^ units[k]
    if m < n:
        out[0] = h + np.uint64(m)
        return 1
    out[0] = h
    for k in range(m - n):
        h = _turned(h, 1) ^ _turned(units[k], n) ^ units[k + n]
        out[k + 1] = h
    return m - n + 1


@numba.njit(cache=True, nogil=True)
def _longest(ends):  # type: ignore[no-untyped-def]
    longest = 0
    start = 0
    for i in range(len(ends)):
        longest = max(longest, ends[i] - start)
        start = ends[i]
    return longest + 1


@numba.njit(cache=True, nogil=True)
def _sketch(shingles, out, filled):  # type: ignore[no-untyped-def]
    """Round after round each shingle goes to a place by chance, where the smallest stays, until few places are empty.

    A number holds its round above its hash, so that what came first stays. An empty place then takes its number from the first filled one
    on a way of its own, which is the same for all texts.
    """
    places = np.uint64(len(out))
    out[:] = EMPTY
    left = len(out)
    turn = 0
    while 8 * left > len(out) and turn < 2000:
        factor = _scattered(np.uint64(turn + 1)) | np.uint64(1)
        above = np.uint32(turn << 21)
        for shingle in shingles:
            h = shingle * factor
            place = (((h ^ (h >> np.uint64(32))) & np.uint64(0xFFFFFFFF)) * places) >> np.uint64(32)
            out[place] = min(out[place], above | np.uint32(h >> np.uint64(43)))
        turn += 1
        left = 0
        for k in range(len(out)):
            left += out[k] == EMPTY
    for k in range(len(out)):
        filled[k] = out[k] != EMPTY
    for k in range(len(out)):
        step = np.uint64(k)
        place = step
        while not filled[place]:
            step = _scattered(step + np.uint64(1))
            place = step % places
        out[k] = out[place]


@numba.njit(cache=True, nogil=True)
def _band_keys(data, ends, chosen, words, n, count, height, salt):  # type: ignore[no-untyped-def]
    longest = _longest(ends)
    units = np.empty(longest, np.uint64)
    shingles = np.empty(longest, np.uint64)
    sketch = np.empty(count * height, np.uint32)
    filled = np.empty(count * height, np.bool_)
    lengths = np.empty(len(chosen), np.int32)
    keys = np.empty((count, len(chosen)), np.uint32)
    for k in range(len(chosen)):
        i = chosen[k]
        m = _shingles(data, ends[i - 1] if i else 0, ends[i], words, n, units, shingles)
        lengths[k] = m
        _sketch(shingles[:m], sketch, filled)
        for band in range(count):
            h = salt[k]
            for place in range(height):
                h += np.uint64(sketch[band * height + place]) * _CODES[place]
            keys[band, k] = np.uint32(_scattered(h) >> np.uint64(32))
    return lengths, keys


@numba.njit(cache=True, nogil=True)
def _shared(pairs):  # type: ignore[no-untyped-def]
    n = len(pairs)
    total = 0
    for k in range(n):
        key = pairs[k] >> np.uint64(32)
        before = k > 0 and pairs[k - 1] >> np.uint64(32) == key
        after = k + 1 < n and pairs[k + 1] >> np.uint64(32) == key
        total += before or after
    rows = np.empty(total, np.int32)
    buckets = np.empty(total, np.int32)
    at = 0
    bucket = -1
    for k in range(n):
        key = pairs[k] >> np.uint64(32)
        before = k > 0 and pairs[k - 1] >> np.uint64(32) == key
        after = k + 1 < n and pairs[k + 1] >> np.uint64(32) == key
        if before or after:
            bucket += not before
            rows[at] = np.int32(pairs[k] & np.uint64(0xFFFFFFFF))
            buckets[at] = bucket
            at += 1
    return rows, buckets


@numba.njit(cache=True, nogil=True)
def _same(pairs, digests):  # type: ignore[no-untyped-def]
    first = np.arange(len(pairs)).astype(np.int32)
    begin = 0
    for k in range(len(pairs)):
        if pairs[k] >> np.uint64(32) != pairs[begin] >> np.uint64(32):
            begin = k
        row = pairs[k] & np.uint64(0xFFFFFFFF)
        for other in range(begin, k):
            twin = pairs[other] & np.uint64(0xFFFFFFFF)
            if digests[row, 0] == digests[twin, 0] and digests[row, 1] == digests[twin, 1]:
                first[row] = first[twin]
                break
    return first


@dataclass(frozen=True)
class Candidates:
    """What ``settle`` looks at: texts, and of each what tells it from others.

    ``first`` is the number of the first text that equals it. ``apart``: similar texts in which this differs are not the
    same. ``labels``: 0 is none and differs from nothing. ``lengths`` counts shingles. ``fixed``: kept whatever it resembles.
    """

    texts: Texts
    first: Array
    apart: Hashes
    labels: Hashes
    lengths: Array
    fixed: Array


@dataclass(frozen=True)
class Thresholds:
    """From which similarity two texts are the same: ``near``; down to ``least`` where both have the same label and are short.

    The limit of short texts is what one exchanged word leaves: (n - word) / (n + word), n being the shingles of the longer text.
    """

    near: float
    least: float
    word: int


@dataclass(frozen=True)
class Settled:
    """For each text its twin (the most similar text kept; -1: it is kept itself), their similarity, the threshold in force, its cluster.

    ``crowded``: how often a text that was kept found no room in a bucket, so that others were not compared with it for its sake.
    ``other_label``: how many pairs were the same but for their labels, and of the first some: the two texts and their similarity.
    """

    twin: Array
    similarity: Array
    threshold: Array
    cluster: Array
    crowded: int
    other_label: int
    examples: Array


def settle(
    order: Array,
    rows: Array,
    buckets: Array,
    given: Candidates,
    thresholds: Thresholds,
    *,
    words: bool,
    n: int,
    labels_differ: bool,
) -> Settled:
    """Take texts in ``order``; each is dropped for the most similar one kept before, if that is similar enough, or kept.

    ``rows`` and ``buckets`` say side by side which text is in which bucket; texts that share one are compared.
    ``labels_differ``: similar texts with different labels are not the same.
    """
    starts, inside = _inside(rows, buckets, len(order))
    sizes = np.bincount(buckets) if len(buckets) else np.zeros(0, np.int64)
    limits = (thresholds.near, thresholds.least, float(thresholds.word))
    room = np.cumsum(np.minimum(sizes, CROWDED))
    texts = (given.texts.data, given.texts.ends, given.first, given.apart, given.labels, given.lengths, given.fixed)
    return Settled(*_settle(order, starts, inside, room, texts, limits, words, n, labels_differ))


@numba.njit(cache=True, nogil=True)
def _inside(rows, buckets, n):  # type: ignore[no-untyped-def]
    """The buckets of each row, one row after the other, and where each begins."""
    starts = np.zeros(n + 1, np.int64)
    for row in rows:
        starts[row + 1] += 1
    for row in range(n):
        starts[row + 1] += starts[row]
    at = starts.copy()
    inside = np.empty(len(rows), np.int32)
    for k in range(len(rows)):
        inside[at[rows[k]]] = buckets[k]
        at[rows[k]] += 1
    return starts, inside


@numba.njit(cache=True, nogil=True)
def _settle(order, starts, inside, bucket_ends, given, limits, words, n, labels_differ):  # type: ignore[no-untyped-def]
    data, ends, first, apart, labels, lengths, fixed = given
    near, least, word = limits
    rows = len(order)
    longest = _longest(ends)
    units = np.empty(longest, np.uint64)
    shingles = np.empty(longest, np.uint64)
    table = np.empty(_room(longest), np.uint64)
    counted = np.zeros(len(table), np.int64)  # by slot, the last pair for which this shingle was counted
    pair = 0
    twin = np.full(rows, -1, np.int32)
    similarity = np.zeros(rows)
    threshold = np.zeros(rows)
    cluster = np.arange(rows).astype(np.int32)
    rank = np.empty(rows, np.int32)
    for k in range(rows):
        rank[order[k]] = k
    kept_equal = np.full(rows, -1, np.int32)  # of equal texts the one that was kept, by the number of the first
    distinct = np.zeros(rows, np.int32)
    members = np.empty(bucket_ends[-1] if len(bucket_ends) else 0, np.int32)
    held = np.zeros(len(bucket_ends), np.int32)
    compared = np.full(rows, -1, np.int32)
    examples = np.zeros((EXAMPLES, 3))
    other_label = 0
    crowded = 0
    for i in order:
        other = kept_equal[first[i]]
        if other >= 0 and not fixed[i]:
            twin[i] = other
            similarity[i] = threshold[i] = 1.0
            _join(cluster, i, other)
            continue
        if starts[i] < starts[i + 1]:
            m = _shingles(data, ends[i - 1] if i else 0, ends[i], words, n, units, shingles)
            own = table[: _room(m)]
            distinct[i] = _fill(own, shingles[:m])
        for k in range(starts[i], starts[i + 1] if not fixed[i] else starts[i]):
            begin = bucket_ends[inside[k] - 1] if inside[k] else 0
            for other in members[begin : begin + held[inside[k]]]:
                if compared[other] == i or apart[other] != apart[i]:
                    continue
                compared[other] = i
                limit = near
                if labels[i] and labels[i] == labels[other]:
                    longer = max(lengths[i], lengths[other])
                    limit = min(near, max(least, (longer - word) / (longer + word)))
                if min(distinct[i], distinct[other]) < limit * max(distinct[i], distinct[other]):
                    continue
                m = _shingles(data, ends[other - 1] if other else 0, ends[other], words, n, units, shingles)
                pair += 1
                common = 0
                for shingle in shingles[:m]:
                    slot = _slot_of(own, shingle)
                    if own[slot] and counted[slot] != pair:
                        counted[slot] = pair
                        common += 1
                found = common / (distinct[i] + distinct[other] - common)
                if found < limit:
                    continue
                if labels_differ and labels[i] and labels[other] and labels[i] != labels[other]:
                    if other_label < EXAMPLES:
                        examples[other_label, 0] = other
                        examples[other_label, 1] = i
                        examples[other_label, 2] = found
                    other_label += 1
                    continue
                _join(cluster, i, other)
                if found > similarity[i] or (found == similarity[i] and rank[other] < rank[twin[i]]):
                    twin[i] = other
                    similarity[i] = found
                    threshold[i] = limit
        if twin[i] >= 0:
            continue
        if kept_equal[first[i]] < 0:
            kept_equal[first[i]] = i
        for k in range(starts[i], starts[i + 1]):
            bucket = inside[k]
            at = (bucket_ends[bucket - 1] if bucket else 0) + held[bucket]
            if at == bucket_ends[bucket]:
                crowded += 1
                continue
            members[at] = i
            held[bucket] += 1
    for i in range(rows):
        cluster[i] = _root(cluster, i)
    return twin, similarity, threshold, cluster, crowded, other_label, examples[: min(other_label, EXAMPLES)]


@numba.njit(cache=True, nogil=True)
def _room(m):  # type: ignore[no-untyped-def]
    """Slots of a table for ``m`` shingles: a power of two, at least twice as many."""
    room = 16
    while room < 2 * m:
        room *= 2
    return room


@numba.njit(cache=True, nogil=True)
def _fill(table, shingles):  # type: ignore[no-untyped-def]
    """Puts shingles into a table; how many different ones there are."""
    table[:] = 0
    count = 0
    for shingle in shingles:
        slot = _slot_of(table, shingle)
        if not table[slot]:
            table[slot] = max(shingle, np.uint64(1))
            count += 1
    return count


@numba.njit(cache=True, nogil=True, inline="always")
def _root(cluster, i):  # type: ignore[no-untyped-def]
    while cluster[i] != i:
        cluster[i] = cluster[cluster[i]]
        i = cluster[i]
    return i


@numba.njit(cache=True, nogil=True)
def _join(cluster, i, other):  # type: ignore[no-untyped-def]
    first, second = _root(cluster, i), _root(cluster, other)
    cluster[max(first, second)] = min(first, second)
