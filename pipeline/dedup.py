"""dedup: drop examples that stood there before, exactly or nearly, with the row that was kept for them.

    {"id": "b7..", "reason": "near_duplicate", "evidence": {"twin": "9f..", "twin_text": "Late goal sinks the leaders in the rain",
     "text": "Late goal sinks leaders in the rain!", "similarity": 0.7568, "threshold": 0.65, "cluster": 2,
     "method": "Jaccard of 5-character shingles of the input"}}

Rule: rows are taken in the order that ``survivor`` says; a row is dropped if it equals, or is similar enough to, a row that was kept, and
its twin is the most similar one of those. So every twin is a kept row, each similarity can be checked by hand from the two texts, and no
chain of small steps drops a row that is unlike the one kept for it: A ~ B ~ C keeps A and C where those two differ. Rows that such
pairs link are a cluster; ``cluster`` is its size.

Exact duplicates have the same normalised text (text.py), by its 128-bit digest. Near duplicates are found by sketches (minhash.py), which
decide what is compared; whether it is a duplicate is decided by the exact Jaccard index of the two sets of shingles. A pair at the
threshold is missed less than twice in a hundred, one 0.05 above it less than once in a thousand.

What makes near duplicates different rows, whatever their similarity (``differ_in``): other numbers, in digits or in words ("3 apples and
two pears", "3 apples and five pears"; minhash.NUMBER_WORDS), in their order; other labels (the true one, else the teacher's; a row without
a label differs from none); another count of negation words (minhash.NEGATIONS). Exact duplicates are always the same; where their labels
disagree, ``conflicts`` says what is to be done.

The threshold knows the length. One exchanged word changes about ``word`` shingles of either text: ``shingle`` + 5 of characters (90 of
100 exchanged words in real texts change at most so many), ``shingle`` of words. A text of n shingles so stays (n - word) / (n + word)
similar to itself with one word exchanged: 0.98 at 1,000 characters, 0.64 at 50. Where two rows have the same label, and only there, that
is the threshold of a short pair (n: the longer one's), at most ``near`` and at least ``near - short``. The label has to vouch for it: of
10,962 CommonsenseQA questions 80 resemble an earlier one by 0.65, and 77 of these have another answer. ``short: 0`` switches it off.

Measured with the defaults: of SVAMP's 1,000 problems none is dropped (57 without ``differ_in``, 54 of them with another answer than their
twin's), of CommonsenseQA's 10,962 questions 3 (10, 8 of them with another answer; one is dropped as a short text), of the demo's 592
texts 20, all of them copies or lightly edited (19 without ``short``).

Limits: negations and numbers in words are English ones; "7" and "seven" are different numbers; "one", "once" and "first", which mostly
count nothing, are none, so that "one or two" is "two or one". A paraphrase is no near duplicate (``semantic`` finds some). Below a
threshold of 0.7 many pairs are compared in vain. Where over 64 rows that differ share a bucket, such as a template with one word
exchanged, later rows are compared with the first 64: ``crowded`` in the manifest counts what was left out. All texts are held in memory,
as bytes, and about 2 kB for each row that is dropped. A cluster links rows to survivors, not dropped rows to each other. With ``semantic``
a twin can itself have been dropped, for a row that means the same.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import xxhash
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from pipeline import outputs, sources
from pipeline.binding import InputPath
from pipeline.blocks import Corpus, Verdicts
from pipeline.files import InputError, plain
from pipeline.records import Drop, Example, decoded
from pipeline.text import excerpt, fold

if TYPE_CHECKING:
    import numpy as np

    from pipeline.minhash import Settled

    Array = np.ndarray[Any, Any]

Over = Literal["input", "rationale", "both"]
Difference = Literal["numbers", "labels", "negation"]
LOWEST = 0.1  # no threshold is below
SHOWN = 10  # clusters, pairs, and rows of a cluster that are named in the manifest or in evidence
EARLIER_ROWS = 16_384  # rows of an earlier data set that are sketched together


class Semantic(BaseModel):
    """How duplicates by meaning are found."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str = Field(description="folder or name of a sentence-transformers model")
    at_least: float = Field(0.95, gt=0, le=1, description="cosine from which two texts are the same")
    revision: str | None = Field(None, description="of a model that is named")


def dedup(
    rows: Iterable[Example],
    *,
    near: Annotated[float, Field(gt=0, le=1)] | None = 0.8,
    short: Annotated[float, Field(ge=0, lt=1)] = 0.15,
    unit: Literal["characters", "words"] = "characters",
    shingle: Annotated[int, Field(ge=1, le=32)] = 5,
    over: Over = "input",
    differ_in: Sequence[Difference] = ("numbers", "labels", "negation"),
    conflicts: Literal["report", "drop", "vote"] = "report",
    survivor: Literal["first", "longest_rationale", "highest_vote"] = "first",
    against: InputPath | None = None,
    semantic: Semantic | None = None,
) -> Iterator[Drop | None]:
    """One verdict a row.

    near: the Jaccard similarity, above 0 and up to 1, from which a row is a near duplicate; null looks for exact ones only.
    short: how far below ``near`` the threshold of short texts with the same label may be; 0: not at all.
    unit, shingle: what a shingle is a run of, and of how many. over: the text that is compared; rows without it are kept.
    differ_in: what must not differ in near and semantic duplicates. conflicts: what becomes of a cluster whose rows have several labels:
    it is reported in the manifest; all of it is dropped; or a row with the most frequent label survives.
    survivor: which row of a cluster is kept. Ties go to the other of longest rationale and agreement of the votes, then to the id.
    against: an earlier data set (a .jsonl file, a folder of them, or the folder of a stage's result, shards too), whose rows count as kept.
    semantic: also drop what means nearly the same as a row that is left, by a model's vectors.

    Raises InputError where ``against`` cannot be read.
    """
    settings = {
        "near": near, "short": short, "unit": unit, "shingle": shingle, "over": over, "differ_in": differ_in,
        "conflicts": conflicts, "survivor": survivor, "against": against, "semantic": semantic,
    }  # fmt: skip
    return CORPUS.judge(rows, settings)


class Text(msgspec.Struct, frozen=True):
    """What dedup looks at."""

    id: str
    input: str
    rationale: str | None = None
    label: str | None = None
    gold: str | None = None
    agreement: float | None = None


class Earlier(msgspec.Struct, frozen=True):
    """A row of an earlier data set: an example, any row with an input, or a row of shards."""

    id: str
    input: str | None = None
    rationale: str | None = None
    label: str | None = None
    gold: str | None = None
    example: str | None = None
    task: str | None = None
    prompt: str | None = None
    completion: str | None = None


@dataclass(frozen=True)
class Strings:
    """Strings one after the other, in UTF-8: a hundredth of what as many objects take."""

    data: bytes
    ends: "Array"

    def __getitem__(self, index: int) -> str:
        return self.data[self.ends.item(index - 1) if index else 0 : self.ends.item(index)].decode()


@dataclass(frozen=True)
class Sketch:
    """One block: what is compared of those of its rows that have a text. ``places`` says which these are, of ``rows``.

    ``apart`` hashes what must not differ, ``labels`` the label, 0 where there is none; ``names`` says which. ``agreement`` and
    ``rationale`` (its characters) are there where the survivor is chosen by them. ``lengths`` counts shingles; ``keys`` and ``short_keys``
    hold a key for each band and row, the latter for the rows named in ``short``.
    """

    rows: int
    places: "Array"
    ids: Strings
    texts: Strings
    digests: "Array"
    apart: "Array"
    labels: "Array"
    names: dict[int, str]
    agreement: "Array"
    rationale: "Array"
    lengths: "Array"
    keys: "Array"
    short: "Array"
    short_keys: "Array"


def _sketch(rows: Sequence[Text], prepared: None, **settings: Any) -> Sketch:
    import numpy as np

    from pipeline import minhash, tokens

    compared = [_compared(row, settings["over"]) for row in rows]
    texts = [text for text in compared if text is not None]
    given = (
        rows if len(texts) == len(rows) else [row for row, text in zip(rows, compared, strict=True) if text is not None]
    )
    ranked = settings["survivor"] != "first"
    encoded = [text.encode() for text in texts]
    packed = tokens.pack(texts, encoded)
    labels, names = _labels(given)
    differ = settings["differ_in"]
    apart = minhash.told_apart(packed, numbers="numbers" in differ, negation="negation" in differ)
    lengths, keys, short, short_keys = _banded(packed, apart, labels, **settings)
    return Sketch(
        rows=len(rows),
        places=np.flatnonzero([text is not None for text in compared]).astype(np.int32),
        ids=_strings([row.id.encode() for row in given]),
        texts=_strings(encoded),
        digests=_digests(packed),
        apart=apart,
        labels=labels,
        names=names,
        agreement=np.array([row.agreement or 0.0 for row in given] if ranked else [], np.float32),
        rationale=np.array([len(row.rationale or "") for row in given] if ranked else [], np.int32),
        lengths=lengths,
        keys=keys,
        short=short,
        short_keys=short_keys,
    )


def _banded(
    packed: Any, apart: "Array", labels: "Array", *, near: float | None, short: float, unit: str, shingle: int, **_: Any
) -> tuple["Array", "Array", "Array", "Array"]:
    """Shingles of each text and its keys; then the short texts with a label, and their keys for a lower threshold."""
    import numpy as np

    from pipeline import minhash

    words = unit == "words"
    nobody, none = np.zeros(0, np.int32), np.zeros((0, len(labels)), np.uint32)
    if near is None:
        return np.zeros(len(labels), np.int32), none, nobody, none
    count, height = minhash.bands(near, words=words, n=shingle)
    lengths, keys = minhash.band_keys(packed, words=words, n=shingle, count=count, height=height, salt=apart)
    if _least(near, short) == near:
        return lengths, keys, nobody, none
    limit = _word(unit, shingle) * (1 + near) / (1 - near)
    chosen = np.flatnonzero((lengths < limit) & (labels != 0)).astype(np.int32)
    count, height = minhash.bands(_least(near, short), words=words, n=shingle)
    salt: Array = (apart ^ labels)[chosen]
    found = minhash.band_keys(packed, words=words, n=shingle, count=count, height=height, salt=salt, rows=chosen)
    return lengths, keys, chosen, found[1]


def _word(unit: str, shingle: int) -> int:
    """How many shingles of either text one exchanged word changes."""
    return shingle if unit == "words" else shingle + 5


def _least(near: float, short: float) -> float:
    """The lowest threshold of short texts."""
    return near if near == 1 else min(near, max(near - short, LOWEST))


def _compared(row: Text, over: Over) -> str | None:
    """The text that is compared; None where there is none, or nothing but white space."""
    if over == "input":
        text = row.input
    elif over == "rationale":
        text = row.rationale or ""
    else:
        text = f"{row.input}\n{row.rationale or ''}"
    return text if text and not text.isspace() else None


def _labels(rows: Sequence[Text]) -> tuple["Array", dict[int, str]]:
    """A hash for each row's label, and what the hashes stand for."""
    import numpy as np

    known: dict[str | None, int] = {None: 0}
    names: dict[int, str] = {}
    for label in {row.label if row.gold is None else row.gold for row in rows} - {None}:
        name = fold(label or "")
        value = xxhash.xxh3_64_intdigest(name.encode()) or 1
        known[label] = value
        names[value] = name
    hashes = (known[row.label if row.gold is None else row.gold] for row in rows)
    return np.fromiter(hashes, np.uint64, len(rows)), names


def _strings(parts: Sequence[bytes]) -> Strings:
    import numpy as np

    return Strings(b"".join(parts), np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts))))


def _digests(packed: Any) -> "Array":
    """A 128-bit digest of each normalised text, as two numbers."""
    import numpy as np

    data = packed.data.tobytes()
    ends = [0, *packed.ends.tolist()]
    found = b"".join([xxhash.xxh3_128_digest(data[start:end]) for start, end in pairwise(ends)])
    return np.frombuffer(found, np.uint64).reshape(-1, 2)


def identities(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The embedding model, where one is used."""
    if settings["semantic"] is None:
        return {}
    from pipeline import embeddings

    return {"semantic": embeddings.identity(settings["semantic"].model, settings["semantic"].revision)}


def _prepared(*, against: Path | None, **settings: Any) -> None:
    """Looks at the earlier data set before anything else is done. Raises InputError where it cannot be used."""
    if against is not None and next(_earlier(against), None) is None:
        raise InputError(f"{against}: has no rows; nothing can be compared with it")


def _earlier(path: Path) -> Iterator[tuple[str, list[Text]]]:
    """The rows of an earlier data set, some thousands at a time, with the name of their file."""
    if (path / outputs.MANIFEST).is_file():
        files = [path / file.path for file in outputs.row_files(path)]
    else:
        files = [file for file in sources.files(path) if file.suffix == ".jsonl"]
    if not files:
        raise InputError(f"{path}: holds no .jsonl file; other kinds are not read here")
    for file in files:
        held: dict[tuple[str, str], Text] = {}
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.isspace():
                    continue
                row = _earlier_row(line, f"{file}:{number}")
                place = (row.id, row.input)
                if place not in held and len(held) >= EARLIER_ROWS:
                    yield file.name, [*held.values()]
                    held = {}
                held[place] = _merged(held[place], row) if place in held else row
        if held:
            yield file.name, [*held.values()]


def _earlier_row(line: bytes, place: str) -> Text:
    """The row that a line holds. Raises InputError where it holds none."""
    try:
        row = decoded(Earlier, line)
    except msgspec.DecodeError as error:
        raise InputError(f"{place}: {plain(str(error))}; rows need an id, and an input or a prompt") from None
    if row.input is not None:
        return Text(row.id, row.input, row.rationale, row.label, row.gold)
    if row.prompt is None:
        raise InputError(f"{place}: has neither input nor prompt; rows need one of them to be compared")
    text = row.prompt.removeprefix(f"[{row.task}] ")
    rationale = row.completion if row.task == "rationale" else None
    return Text(row.example or row.id, text, rationale, row.completion if row.task == "label" else None)


def _merged(first: Text, second: Text) -> Text:
    """Two rows of shards about one example."""
    rationale = second.rationale if first.rationale is None else first.rationale
    return Text(first.id, first.input, rationale, second.label if first.label is None else first.label, first.gold)


class _Rows:
    """The rows of all blocks that have a text, by one number: first those of the earlier data set, then the others in order."""

    def __init__(self, earlier: Sequence[tuple[str, Sketch]], blocks: Sequence[Sketch]) -> None:
        self.blocks = [*(block for _, block in earlier), *blocks]
        self.files = [name for name, _ in earlier]
        self.starts = [0, *accumulate(len(block.places) for block in self.blocks)]
        self.earlier = self.starts[len(earlier)]
        self.count = self.starts[-1]

    def all(self, field: str) -> "Array":
        """One value a row."""
        import numpy as np

        return np.concatenate([getattr(block, field) for block in self.blocks])

    def _place(self, row: int) -> tuple[int, int]:
        block = bisect_right(self.starts, row) - 1
        return block, row - self.starts[block]

    def id(self, row: int) -> str:
        block, place = self._place(row)
        return self.blocks[block].ids[place]

    def text(self, row: int) -> str:
        block, place = self._place(row)
        return self.blocks[block].texts[place]

    def texts(self, rows: "Array") -> list[str]:
        return [self.text(row) for row in rows.tolist()]

    def file(self, row: int) -> str | None:
        """The file of an earlier row, None for the others."""
        return self.files[self._place(row)[0]] if row < self.earlier else None

    def label(self, value: int) -> str:
        return next(block.names[value] for block in self.blocks if value in block.names)


def _resolve(sketches: Sequence[Sketch], prepared: None, **settings: Any) -> Verdicts:
    found_earlier = _earlier(settings["against"]) if settings["against"] is not None else ()
    earlier = [(name, _sketch(found, None, **settings)) for name, found in found_earlier]
    rows = _Rows(earlier, sketches)
    details: dict[str, Any] = {}
    drops = _duplicates(rows, details, **settings) if rows.count else {}
    if settings["semantic"] is not None and rows.count:
        drops |= _semantic(rows, drops, details, **settings)
    start = rows.earlier
    for block in sketches:
        verdicts: list[Drop | None] = [None] * block.rows
        for k, place in enumerate(block.places.tolist(), start):
            verdicts[place] = drops.get(k)
        start += len(block.places)
        yield from verdicts
    return details


def _duplicates(
    rows: _Rows,
    details: dict[str, Any],
    *,
    near: float | None,
    short: float,
    unit: str,
    shingle: int,
    over: Over,
    differ_in: Sequence[Difference],
    conflicts: str,
    survivor: str,
    **_: Any,
) -> dict[int, Drop]:
    """Exact and near duplicates, and conflicting labels."""
    import numpy as np

    from pipeline import minhash, tokens

    first = minhash.same(rows.all("digests"))
    alike, buckets = _buckets(rows)
    chosen = np.zeros(rows.count, np.bool_)  # all other rows are like no other
    chosen[alike] = True
    repeated = first != np.arange(rows.count)
    chosen[first[repeated]] = True
    chosen |= repeated
    members = np.flatnonzero(chosen)
    number = (np.cumsum(chosen) - 1).astype(np.int32)
    fixed = members < rows.earlier
    labels = rows.all("labels")[members]
    given = minhash.Candidates(
        texts=tokens.pack(rows.texts(members)),
        first=number[first[members]],
        apart=rows.all("apart")[members],
        labels=labels,
        lengths=rows.all("lengths")[members],
        fixed=fixed,
    )
    settle = partial(
        minhash.settle,
        rows=number[alike],
        buckets=buckets,
        given=given,
        thresholds=minhash.Thresholds(near or 1.0, _least(near or 1.0, short), _word(unit, shingle)),
        words=unit == "words",
        n=shingle,
        labels_differ="labels" in differ_in,
    )
    order = _order(rows, members, survivor)
    settled = settle(order)
    clusters = _Clusters(rows, members, labels, settled.cluster)
    lost = np.zeros(len(members), np.bool_)
    if conflicts == "drop":
        lost = clusters.torn & ~fixed
    elif conflicts == "vote":
        minority = clusters.minority(order)
        order = order[np.argsort(minority[order] & ~fixed[order], kind="stable")]
        settled = settle(order)
        lost = minority & ~fixed & (settled.twin < 0)
        lost |= (settled.twin >= 0) & lost[settled.twin]
    sizes = np.bincount(settled.cluster, minlength=len(members))
    details |= _facts(rows, members, settled, clusters, sizes, near, short, unit, shingle)
    drops = {}
    for index in np.flatnonzero((settled.twin >= 0) | lost).tolist():
        row = int(members[index])
        if lost[index]:
            drops[row] = Drop(id=rows.id(row), reason="conflicting_labels", evidence=clusters.evidence(index))
            continue
        twin = int(members[settled.twin[index]])
        exact = given.first[index] == given.first[settled.twin[index]]
        evidence: dict[str, JsonValue] = {
            "similarity": round(float(settled.similarity[index]), 4),
            "threshold": round(float(settled.threshold[index]), 4),
            "cluster": int(sizes[settled.cluster[index]]),
            "method": f"equal normalised {_named(over)}"
            if exact
            else f"Jaccard of {shingle}-{unit[:-1]} shingles of the {_named(over)}",
        }
        drops[row] = _drop(rows, row, "exact_duplicate" if exact else "near_duplicate", twin, evidence)
    return drops


def _buckets(rows: _Rows) -> tuple["Array", "Array"]:
    """Side by side rows and the buckets they are in, of those that others are in as well."""
    import numpy as np

    from pipeline import minhash

    short = [start + block.short for start, block in zip(rows.starts, rows.blocks, strict=False)]
    alike, buckets = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)]
    count = 0
    for field, places in (("keys", None), ("short_keys", np.concatenate(short))):
        bands = max(len(getattr(block, field)) for block in rows.blocks)
        for band in range(bands if places is None or len(places) else 0):
            keys = np.concatenate([getattr(block, field)[band] for block in rows.blocks])
            found, numbers = minhash.shared(keys)
            alike.append(found if places is None else places[found])
            buckets.append(numbers + np.int32(count))
            count += int(numbers[-1]) + 1 if len(numbers) else 0
    return np.concatenate(alike), np.concatenate(buckets)


def _order(rows: _Rows, members: "Array", survivor: str) -> "Array":
    """Who is taken first: earlier rows, then by ``survivor``."""
    import numpy as np

    fixed = members < rows.earlier
    if survivor == "first":
        return np.arange(len(members))
    fields = ("rationale", "agreement") if survivor == "longest_rationale" else ("agreement", "rationale")
    best, next_best = (np.where(fixed, 0, rows.all(field)[members]) for field in fields)
    order: Array = np.lexsort((-next_best, -best, ~fixed))
    columns = [column[order] for column in (fixed, best, next_best)]
    new = np.flatnonzero(np.any([column[1:] != column[:-1] for column in columns], axis=0)) + 1
    for start, end in zip([0, *new.tolist()], [*new.tolist(), len(order)], strict=True):
        if end - start > 1 and not fixed[order[start]]:
            order[start:end] = sorted(order[start:end].tolist(), key=lambda index: rows.id(int(members[index])))
    return order


class _Clusters:
    """The clusters among the ``members``, and which of them are torn: their rows have several labels."""

    def __init__(self, rows: _Rows, members: "Array", labels: "Array", cluster: "Array") -> None:
        import numpy as np

        self.rows, self.members, self.labels, self.cluster = rows, members, labels, cluster
        self.sizes = np.bincount(cluster, minlength=len(cluster))
        order = np.lexsort((labels, cluster))
        order = order[labels[order] != 0]
        sorted_clusters, sorted_labels = cluster[order], labels[order]
        several = (sorted_clusters[1:] == sorted_clusters[:-1]) & (sorted_labels[1:] != sorted_labels[:-1])
        self.torn_clusters = np.unique(sorted_clusters[1:][several])
        self.torn = np.isin(cluster, self.torn_clusters)
        self.by_cluster: dict[int, list[int]] = {}
        for index in np.flatnonzero(self.torn).tolist():
            self.by_cluster.setdefault(int(cluster[index]), []).append(index)

    def counts(self, cluster: int) -> dict[str, int]:
        """How many rows of a torn cluster have which label, the most frequent first."""
        found = Counter(int(self.labels[index]) for index in self.by_cluster[cluster] if self.labels[index])
        named = {self.rows.label(value): count for value, count in found.items()}
        return dict(sorted(named.items(), key=lambda item: (-item[1], item[0])))

    def minority(self, order: "Array") -> "Array":
        """Which rows of torn clusters lack the most frequent label; where several are, that of the row which comes first counts."""
        import numpy as np

        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order))
        found = np.zeros(len(order), np.bool_)
        for inside in self.by_cluster.values():
            votes = Counter(int(self.labels[index]) for index in inside if self.labels[index])
            most = max(votes.values())
            winner = next(
                self.labels[index]
                for index in sorted(inside, key=rank.__getitem__)
                if votes[int(self.labels[index])] == most
            )
            found[inside] = self.labels[inside] != winner
        return found

    def evidence(self, index: int) -> dict[str, JsonValue]:
        """Why a row of a torn cluster is dropped."""
        cluster, value = int(self.cluster[index]), int(self.labels[index])
        others = [other for other in self.by_cluster[cluster] if other != index]
        return {
            "text": excerpt(self.rows.text(int(self.members[index]))),
            "label": self.rows.label(value) if value else None,
            "labels": dict(self.counts(cluster)),
            "cluster": int(self.sizes[cluster]),
            "rows": [self.rows.id(int(self.members[other])) for other in others[:SHOWN]],
        }


def _facts(
    rows: _Rows,
    members: "Array",
    settled: "Settled",
    clusters: _Clusters,
    sizes: "Array",
    near: float | None,
    short: float,
    unit: str,
    shingle: int,
) -> dict[str, Any]:
    """What the manifest says of all clusters."""
    import numpy as np

    from pipeline import minhash

    several = sizes[sizes > 1]
    found: dict[str, Any] = {
        "clusters": len(several),
        "largest_cluster": int(several.max()) if len(several) else 0,
        "conflicting_labels": {
            "clusters": len(clusters.torn_clusters),
            "rows": int(np.count_nonzero(clusters.torn)),
            "examples": [
                {
                    "labels": clusters.counts(cluster),
                    "rows": [rows.id(int(members[index])) for index in inside[:SHOWN]],
                }
                for cluster, inside in list(clusters.by_cluster.items())[:SHOWN]
            ],
        },
    }
    if near is None:
        return found
    found["near_with_other_label"] = {
        "pairs": settled.other_label,
        "examples": [
            {"rows": [rows.id(int(members[int(index)])) for index in pair[:2]], "similarity": round(float(pair[2]), 4)}
            for pair in settled.examples
        ],
    }
    found["crowded"] = settled.crowded
    for name, similarity in (("bands", near), ("short_bands", _least(near, short))):
        if name == "bands" or similarity < near:
            count, height = minhash.bands(similarity, words=unit == "words", n=shingle)
            share = round(minhash.missed(similarity, count, height), 6)
            found[name] = {"count": count, "height": height, "missed_at_the_threshold": share}
    return found


def _semantic(
    rows: _Rows,
    drops: Mapping[int, Drop],
    details: dict[str, Any],
    *,
    over: Over,
    differ_in: Sequence[Difference],
    survivor: str,
    semantic: Semantic,
    **_: Any,
) -> dict[int, Drop]:
    """Of the rows that are left, those that mean nearly the same as one taken before."""
    import numpy as np

    from pipeline import embeddings

    here = np.ones(rows.count, np.bool_)
    here[list(drops)] = False
    left = np.flatnonzero(here)
    if not len(left):
        return {}
    left = left[_order(rows, left, survivor)]
    apart, labels = rows.all("apart")[left], rows.all("labels")[left]
    texts = rows.texts(left)
    pairs = embeddings.similar_pairs(
        texts, model=semantic.model, at_least=semantic.at_least, revision=semantic.revision
    )
    first, second, cosine = map(np.asarray, pairs)
    other_label = (labels[first] != labels[second]) & (labels[first] != 0) & (labels[second] != 0)
    same = (apart[first] == apart[second]) & ~(other_label & ("labels" in differ_in))
    order = np.lexsort((first, -cosine, second))
    found: dict[int, Drop] = {}
    gone: set[int] = set()
    for pair in order[same[order]].tolist():
        twin, place = int(first[pair]), int(second[pair])
        row = int(left[place])
        if place in gone or twin in gone or row < rows.earlier:
            continue
        gone.add(place)
        evidence: dict[str, JsonValue] = {
            "similarity": round(float(cosine[pair]), 4),
            "threshold": semantic.at_least,
            "method": f"cosine of the vectors of the {_named(over)}, by {semantic.model}",
        }
        found[row] = _drop(rows, row, "semantic_duplicate", int(left[twin]), evidence)
    details["semantic_pairs"] = {"pairs": len(cosine), "kept_apart": int(np.count_nonzero(~same))}
    return found


def _named(over: Over) -> str:
    return "input and rationale" if over == "both" else over


def _drop(rows: _Rows, row: int, reason: str, twin: int, evidence: dict[str, JsonValue]) -> Drop:
    file = rows.file(twin)
    found: dict[str, JsonValue] = {
        "twin": rows.id(twin),
        "twin_text": excerpt(rows.text(twin)),
        "text": excerpt(rows.text(row)),
    }
    if file is None:
        return Drop(id=rows.id(row), reason=reason, evidence=found | evidence)
    return Drop(id=rows.id(row), reason=f"earlier_{reason}", evidence=found | evidence | {"against": file})


CORPUS = Corpus(view=Text, sketch=_sketch, resolve=_resolve, prepare=_prepared)
