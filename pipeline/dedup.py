"""dedup: drop examples whose input stood there before, exactly or nearly. The first in input order is kept.

    {"id": "b7..", "reason": "near_duplicate", "evidence": {"twin": "9f..", "twin_text": "Late goal sinks the leaders",
     "text": "Late goal sinks leaders!", "similarity": 0.84, "near": 0.5, "method": "MinHash, verified: Jaccard of 4-character shingles"}}

Rule: rows are taken in order; a row is dropped if it equals, or is at least ``near`` similar to, a row that was kept, and its twin is
the most similar one of those (the earlier of equals). So every twin is a kept row, each similarity can be checked by hand, and no chain
of small steps can drop a row that is unlike the one kept for it: A ~ B ~ C keeps A and C where those two differ.

Similarity is the exact Jaccard index of the sets of character shingles of the normalised texts (see text.py). Candidates come from
MinHash signatures (rensa, 128 permutations), in bands chosen so that a pair at the threshold is missed less than once in a thousand.
Exact duplicates are found by a digest of the normalised text. Rows whose numbers differ are never near duplicates unless ``differ_in``
is emptied: "3 apples and 5 pears" asks another question than "3 apples and 6 pears".

What a changed word costs, measured on 430 texts of 6 to 38 words: with one word exchanged the similarity has a median of 0.85 and is at
least 0.63 for 99 in 100 texts, with two a median of 0.72 and at least 0.61 for 95 in 100; no two different texts came above 0.14. So on
texts of a sentence or two the default 0.8 finds one exchanged word in 85 of 100 texts and two in 9; ``near: 0.5`` finds 99 and 97 and
dropped nothing wrongly there. Of 800 word problems 115 pairs are above 0.8: all of them differ in their numbers. Questions that
differ in one word alone ("an adult man", "an adult woman") are above 0.8 as well: where that matters, set ``near: null``.

Limits: kept texts and signatures stay in memory (about 5 kB a row); below 0.6 the number of candidates grows with the square of the
corpus; numbers written as words are not seen as numbers; a paraphrase is no near duplicate.
"""

import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
import xxhash
from pydantic import Field, JsonValue

from pipeline.blocks import Corpus
from pipeline.records import Drop, Example
from pipeline.text import excerpt, normalise, numbers, shingles

if TYPE_CHECKING:
    from rensa import RMinHash

PERMUTATIONS = 128
SEED = 1
MISSED = 0.001  # share of pairs exactly at the threshold that the bands may miss
MARGIN = 0.2  # 4.5 standard errors of the estimate that 128 permutations give: what estimates lower is not worth the exact count


def dedup(
    rows: Iterable[Example],
    *,
    near: Annotated[float, Field(gt=0, le=1)] | None = 0.8,
    shingle: Annotated[int, Field(ge=1, le=64)] = 4,
    over: Literal["input", "rationale"] = "input",
    differ_in: Sequence[Literal["numbers"]] = ("numbers",),
) -> Iterator[Drop | None]:
    """One verdict a row, as soon as it is read.

    near: the Jaccard similarity, above 0 and up to 1, from which a row is a near duplicate; null looks for exact ones only.
    shingle: characters in a shingle. over: the text that is compared; rows without it are kept. differ_in: what must not differ.
    """
    settings = {"near": near, "shingle": shingle, "over": over, "differ_in": differ_in}
    return CORPUS.judge(rows, settings)


class Text(msgspec.Struct, frozen=True):
    """What dedup looks at."""

    id: str
    input: str
    rationale: str | None


def _verdicts(
    rows: Iterable[Text],
    *,
    near: float | None,
    shingle: int,
    over: Literal["input", "rationale"],
    differ_in: Sequence[str],
) -> Generator[Drop | None, None, None]:
    kept = Nearest(near, shingle) if near is not None else None
    seen: dict[str, tuple[str, str]] = {}
    for row in rows:
        text = getattr(row, over)
        if text is None:
            yield None
            continue
        digest = xxhash.xxh3_128_hexdigest(normalise(text).encode())
        if digest in seen:
            twin, twin_text = seen[digest]
            yield _drop(row.id, "exact_duplicate", text, twin, twin_text, {"method": f"equal normalised {over}"})
            continue
        found = kept.most_similar(text, compare_numbers="numbers" in differ_in) if kept is not None else None
        if found is not None:
            twin, twin_text, similarity = found
            method = f"Jaccard of {shingle}-character shingles of the {over}, candidates by MinHash"
            evidence: dict[str, JsonValue] = {"similarity": round(similarity, 4), "near": near, "method": method}
            yield _drop(row.id, "near_duplicate", text, twin, twin_text, evidence)
            continue
        seen[digest] = (row.id, excerpt(text))
        if kept is not None:
            kept.add(row.id, text)
        yield None


def _drop(id: str, reason: str, text: str, twin: str, twin_text: str, evidence: dict[str, JsonValue]) -> Drop:
    return Drop(
        id=id,
        reason=reason,
        evidence={"twin": twin, "twin_text": excerpt(twin_text), "text": excerpt(text), **evidence},
    )


class Nearest:
    """Texts by id, and which of them is most like another text: at least ``near``, by shingles of ``shingle`` characters."""

    def __init__(self, near: float, shingle: int) -> None:
        from rensa import RMinHashLSH

        self.near, self.shingle = near, shingle
        self.rows: list[tuple[str, str, RMinHash]] = []
        self.index = RMinHashLSH(near, PERMUTATIONS, bands(near))

    def add(self, id: str, text: str) -> None:
        """Remember ``text``."""
        signature = _signature(shingles(text, self.shingle))
        self.index.insert(len(self.rows), signature)
        self.rows.append((id, text, signature))

    def most_similar(self, text: str, *, compare_numbers: bool) -> tuple[str, str, float] | None:
        """Id, text and similarity of the most similar text added before, the earlier of equals; None where none is similar enough."""
        found = shingles(text, self.shingle)
        signature = _signature(found)
        best: tuple[str, str, float] | None = None
        for place in sorted(self.index.query(signature)):
            id, other_text, other_signature = self.rows[place]
            if signature.jaccard(other_signature) < self.near - MARGIN:
                continue
            other = shingles(other_text, self.shingle)
            common = len(found & other)
            similarity = common / (len(found) + len(other) - common)
            if similarity < self.near or (best is not None and similarity <= best[2]):
                continue
            if compare_numbers and numbers(text) != numbers(other_text):
                continue
            best = (id, other_text, similarity)
        return best


def bands(near: float) -> int:
    """The fewest bands of equal height whose chance to miss a pair of Jaccard similarity ``near`` is at most ``MISSED``."""
    for count in (1, 2, 4, 8, 16, 32, 64):
        if (1 - near ** (PERMUTATIONS // count)) ** count <= MISSED:
            return count
    return PERMUTATIONS


def _signature(found: set[str]) -> "RMinHash":
    from rensa import RMinHash

    signature = RMinHash(PERMUTATIONS, SEED)
    signature.update(list(found))
    return signature


CORPUS = Corpus(
    view=Text,
    sketch=lambda rows, prepared, **settings: rows,
    resolve=lambda sketches, prepared, **settings: _verdicts(itertools.chain(*sketches), **settings),
)
