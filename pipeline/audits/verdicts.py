"""With ``--full`` each drop of a filter that needs the whole corpus is held against the rows and the settings that it speaks of.

    dedup/302a..../dropped.jsonl:4: row r24: similarity 0.61 is below the threshold 0.8

- ``dedup``: the similarity reaches the threshold, and that is one which the settings allow; the twin is a row that was kept; both texts are
  those of the rows; where the evidence holds them whole, the similarity is theirs.
- ``decontaminate``: the score reaches the threshold of its method, the eval set is one of the settings', the text is the row's.
- ``balance``: the row's rank is beyond the cap, and the cap that of the settings.

Limits: that no drop is missing takes ``--recompute``, as does the similarity of texts that evidence holds in part.
The rows of the input are gone through once for each such stage, and about 300 bytes are held for a drop.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
import xxhash

from pipeline import outputs
from pipeline.audits import Audited, Finding, Result
from pipeline.blocks import Block, cut
from pipeline.files import RunError, plain
from pipeline.records import Drop
from pipeline.stages import STAGES
from pipeline.text import excerpt, normalise

EXCERPT: Final = 200  # characters of a text that evidence holds whole
ROUNDED: Final = 5e-5  # similarities and scores have four decimals
Texts = dict[str, dict[str, bytes]]
"""By row the digests of what the evidence may say of its texts."""


class Seen(msgspec.Struct, frozen=True):
    """The texts that evidence holds."""

    id: str
    input: str
    rationale: str | None


def check(audited: Audited) -> Iterator[Finding]:
    """Findings on drops whose evidence says otherwise."""
    if not audited.full:
        return
    for result in audited.all:
        stage = STAGES.get(result.manifest.stage)
        parent = next((audited.parent(result, name) for name in result.manifest.parents), None)
        if (
            stage is not None
            and stage.name in CHECKED
            and stage.version == result.manifest.version
            and parent is not None
        ):
            yield from _checked(audited, result, parent)


def _checked(audited: Audited, result: Result, parent: Result) -> Iterator[Finding]:
    stage = result.manifest.stage
    path = result.folder / f"{outputs.DROPPED}.jsonl"
    try:
        dropped = {drop.id for drop in outputs.read_drops(result.folder)}
        if not dropped:
            return
        twins = {str(drop.evidence.get("twin")) for drop in outputs.read_drops(result.folder)}
        texts = _texts(audited, parent.folder, frozenset(dropped | twins), str(result.manifest.settings.get("over")))
        for line, drop in enumerate(outputs.read_drops(result.folder), 1):
            try:
                problem = CHECKED[stage](drop, result.manifest.settings, texts, dropped)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                problem = f"its evidence is not that of a drop of {stage} ({plain(str(error), 80)})"
            if problem is not None:
                yield Finding(path, f"row {plain(drop.id, 120)}: {problem}", line)
    except RunError as error:
        yield Finding(result.folder, plain(str(error)))
    except OSError as error:
        yield Finding(Path(error.filename or path), f"cannot be read ({error.strerror})")


def _dedup(drop: Drop, settings: Mapping[str, Any], texts: Texts, dropped: set[str]) -> str | None:
    evidence = drop.evidence
    if drop.reason == "conflicting_labels":
        return (
            None if _is(texts, drop.id, "compared", evidence["text"]) else "the text in its evidence is not the row's"
        )
    similarity, threshold, twin = evidence["similarity"], evidence["threshold"], evidence["twin"]
    method = str(evidence["method"])
    if similarity < threshold - ROUNDED:
        return f"similarity {similarity} is below the threshold {threshold}"
    if method.startswith("Jaccard"):
        near = settings["near"]
        if not near - settings["short"] - ROUNDED <= threshold <= near + ROUNDED:
            return f"threshold {threshold} is none that near: {near} and short: {settings['short']} allow"
    elif "exact" in drop.reason and (similarity, threshold) != (1.0, 1.0):
        return f"an exact duplicate has similarity 1 and threshold 1, not {similarity} and {threshold}"
    if not _is(texts, drop.id, "compared", evidence["text"]):
        return "the text in its evidence is not the row's"
    if drop.reason.startswith("earlier_"):
        return None
    if twin == drop.id or twin not in texts:
        return f"its twin {plain(str(twin), 120)} is no other row that dedup read"
    if twin in dropped and settings["semantic"] is None:
        return f"its twin {plain(str(twin), 120)} was dropped itself"
    if not _is(texts, twin, "compared", evidence["twin_text"]):
        return f"the twin's text in its evidence is not that of {plain(str(twin), 120)}"
    pair = str(evidence["text"]), str(evidence["twin_text"])
    if max(map(len, pair)) >= EXCERPT:
        return None
    if method.startswith("equal"):
        return None if normalise(pair[0]) == normalise(pair[1]) else "its text is not that of its twin"
    if method.startswith("Jaccard"):
        exact = _jaccard(*pair, words=settings["unit"] == "words", n=settings["shingle"])
        return (
            None if abs(exact - similarity) <= ROUNDED else f"similarity {similarity}: the two texts have {exact:.4f}"
        )
    return None


def _jaccard(one: str, other: str, *, words: bool, n: int) -> float:
    """The Jaccard index of the shingles of two texts."""

    def shingles(text: str) -> set[Any]:
        units: Any = tuple(normalise(text).split()) if words else normalise(text)
        return {units[place : place + n] for place in range(max(1, len(units) - n + 1))}

    first, second = shingles(one), shingles(other)
    return len(first & second) / len(first | second)


def _decontaminate(drop: Drop, settings: Mapping[str, Any], texts: Texts, dropped: set[str]) -> str | None:
    evidence = drop.evidence
    score, threshold, method = evidence["score"], evidence["threshold"], evidence["method"]
    if score < threshold - ROUNDED:
        return f"score {score} is below the threshold {threshold}"
    set_to: dict[str, Any] = {"exact": 1.0, "contained": 1.0, "shared passage": settings["edited"]}
    set_to |= {"runs": settings["coverage"], "edited": settings["edited"]}
    if settings["preset"] is None and method in set_to and abs(threshold - set_to[method]) > ROUNDED:
        return f"threshold {threshold}: the settings say {set_to[method]} for {method}"
    if evidence["eval_set"] not in settings["eval_sets"]:
        return f"its eval set {plain(str(evidence['eval_set']), 60)} is none of the settings'"
    if not _is(texts, drop.id, str(evidence["where"]), evidence["text"]):
        return f"the text in its evidence is not the row's {plain(str(evidence['where']), 30)}"
    return None


def _balance(drop: Drop, settings: Mapping[str, Any], texts: Texts, dropped: set[str]) -> str | None:
    evidence = drop.evidence
    if evidence["rank"] <= evidence["cap"]:
        return f"rank {evidence['rank']} is within the cap {evidence['cap']}"
    if evidence["rows"] < evidence["rank"]:
        return f"rank {evidence['rank']} among {evidence['rows']} rows"
    allowed = (
        settings["most_per_label"]
        if drop.reason == "over_label_cap"
        else (settings["most_per_group"] or {}).get(evidence["column"])
    )
    if "label_ratio" not in evidence and evidence["cap"] != allowed:
        return f"cap {evidence['cap']}: the settings say {allowed}"
    return None if drop.id in texts else "balance read no such row"


CHECKED: Final[dict[str, Callable[[Drop, Mapping[str, Any], Texts, set[str]], str | None]]] = {
    "dedup": _dedup,
    "decontaminate": _decontaminate,
    "balance": _balance,
}


def _texts(audited: Audited, folder: Path, ids: frozenset[str], over: str) -> Texts:
    blocks = [*cut(folder)]
    weight = sum(map(len, blocks))
    found: Texts = {}
    for part in audited.crew.in_order(_seen, ((block,) for block in blocks), weight=weight, shared=(ids, over)):
        found |= part
    return found


def _seen(shared: tuple[frozenset[str], str], block: Block) -> Texts:
    ids, over = shared
    return {row.id: _digests(row, over) for row in block.rows(Seen) if row.id in ids}


def _digests(row: Seen, over: str) -> dict[str, bytes]:
    both = f"{row.input}\n{row.rationale or ''}"
    compared = {"rationale": row.rationale or "", "both": both}.get(over, row.input)
    return {"input": _short(row.input), "rationale": _short(row.rationale or ""), "compared": _short(compared)}


def _short(text: str) -> bytes:
    return xxhash.xxh3_128_digest(excerpt(text).encode())


def _is(texts: Texts, id: str, name: str, text: object) -> bool:
    return xxhash.xxh3_128_digest(str(text).encode()) == texts.get(id, {}).get(name)
