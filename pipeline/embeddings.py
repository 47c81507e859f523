"""Texts as vectors of a small embedding model, and which of them mean nearly the same.

    vectors = embed(texts, model="models/all-MiniLM-L6-v2")                       # (n, d), float32, each of length 1
    first, second, cosine = similar_pairs(texts, model=.., at_least=0.9)           # indices of rows, first < second
    query, text, cosine = nearest(eval_rows, texts, model=.., at_least=0.9)

The model is one of sentence-transformers: a folder, or the name of a hub repository with a revision. No code that it brings is run
and only safetensors are read. A hub model is fetched once; where the hub cannot be reached, the local cache serves.

Up to ``EXACT`` rows all pairs are compared. Beyond, only rows of one k-means cluster are, as in SemDeDup (Abbas et al., 2023, "SemDeDup:
Data-efficient learning at web-scale through semantic deduplication"), with one change: each row stands in its ``PROBES`` nearest
clusters, so that a pair at a border between two is still found. Clusters hold some ``CLUSTER`` rows, so the work grows with n.

Limits: a pair that shares none of its clusters is missed. Of the pairs of 21,492 questions and rationales, cut into 214 clusters (of 100
rows, the worst case tried), 98.0% were found at a cosine of 0.75, 99.7% at 0.85 and all at 0.9; with one cluster a row 75%, 91% and 95%.
``nearest`` compares everything and misses none. Cosines are compared after rounding to ``DIGITS`` digits: a vector depends on the batch it
is computed in by some 3e-7, and on the hardware by about as much, so that a pair as near as that to where the rounding turns may fall
either way. A text longer than the model reads (256 tokens for all-MiniLM-L6-v2) is cut there. Vectors are held in memory (1.5 GB for 1M
rows of 384).
"""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from pipeline import foreign
from pipeline.files import InputError, RunError, plain, sha256
from pipeline.progress import bar

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

EXACT: Final = 50_000  # rows up to which all pairs are compared: that takes a small part of the time of embedding them
CLUSTER: Final = 1_000  # rows of a cluster, about
PROBES: Final = 3  # clusters that a row stands in
DIGITS: Final = 5  # of a cosine that count; what differs beyond them is rounding error
MOST_PAIRS: Final = 100_000_000  # 2 GB of arrays; more come only of a threshold at which everything is alike
BLOCK: Final = 1 << 24  # cosines computed at once: 64 MiB
CHUNK: Final = 4_096  # texts between two steps of the progress bar
FILES: Final = ("*.json", "*.txt", "*.model", "*.safetensors")  # what is read of a hub repository
REPOSITORY: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")

Vectors = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]
Pairs = tuple[Indices, Indices, Vectors]
"""Two arrays of row numbers and the cosine of each pair."""


def embed(texts: Sequence[str], *, model: str, revision: str | None = None) -> Vectors:
    """One row a text, of length 1, so that the product of two is their cosine; the same vector for the same text.

    ``model``: a folder, or a hub repository at ``revision`` (branch, tag or commit). Raises InputError where the package or the model
    is not there.
    """
    loaded = _loaded(model, revision)
    with bar("embed", len(texts), "texts") as advance:
        return _vectors(texts, loaded, advance)


def similar_pairs(texts: Sequence[str], *, model: str, at_least: float, revision: str | None = None) -> Pairs:
    """The pairs ``first < second`` whose cosine is ``at_least`` that, in order; all of them up to ``EXACT`` texts.

    Raises InputError as ``embed``; RunError for more than ``MOST_PAIRS``.
    """
    return pairs_above(embed(texts, model=model, revision=revision), at_least)


def nearest(
    queries: Sequence[str], texts: Sequence[str], *, model: str, at_least: float, revision: str | None = None
) -> Pairs:
    """For each query all texts whose cosine is ``at_least`` that, in order of query and text. Only the queries are held as vectors.

    Raises InputError as ``embed``; RunError for more than ``MOST_PAIRS``.
    """
    loaded = _loaded(model, revision)
    found: list[Pairs] = []
    with bar("embed", len(queries) + len(texts), "texts") as advance:
        asked = _vectors(queries, loaded, advance)
        for start in range(0, len(texts), 8 * CHUNK):
            vectors = _vectors(texts[start : start + 8 * CHUNK], loaded, advance)
            query, text, cosine = across(asked, vectors, at_least)
            found.append((query, text + start, cosine))
            _bounded(found, at_least)
    return _joined(found)


def identity(model: str, revision: str | None = None) -> dict[str, Any]:
    """What the model resolves to now: the commit on the hub, or each file's SHA-256. Raises InputError where it is not there."""
    folder = _folder(model, revision)
    if not Path(model).expanduser().is_dir():
        return {"repository": model, "revision": folder.name}
    files = sorted(file for pattern in FILES for file in folder.rglob(pattern))
    return {"files": {str(file.relative_to(folder)): sha256(file) for file in files}}


def pairs_above(vectors: Vectors, at_least: float, *, exact: int = EXACT, cluster: int = CLUSTER) -> Pairs:
    """``similar_pairs`` for vectors of length 1 that are at hand: exact up to ``exact`` rows, in clusters of about ``cluster`` beyond."""
    found: list[Pairs] = []
    for members, held, start, end in _compared(vectors, exact, cluster):
        first, second, cosine = _above(held[start:end], held[start:], at_least)
        later = second > first
        found.append((members[first[later] + start], members[second[later] + start], cosine[later]))
        _bounded(found, at_least)
    first, second, cosine = _joined(found)
    _, once = np.unique(first * len(vectors) + second, return_index=True)  # two rows may share several clusters
    return first[once], second[once], cosine[once]


def across(queries: Vectors, vectors: Vectors, at_least: float) -> Pairs:
    """``nearest`` for vectors of length 1 that are at hand."""
    found: list[Pairs] = []
    step = max(1, BLOCK // max(1, len(vectors)))
    for start in range(0, len(queries), step):
        query, text, cosine = _above(queries[start : start + step], vectors, at_least)
        found.append((query + start, text, cosine))
        _bounded(found, at_least)
    return _joined(found)


def neighbours(vectors: Vectors, k: int, *, exact: int = EXACT, cluster: int = CLUSTER) -> tuple[Indices, Vectors]:
    """For each row the ``k`` others of highest cosine, the nearest first: row numbers and cosines, (n, k) each.

    Exact up to ``exact`` rows, in clusters beyond. Where a row has fewer others, the number is -1 and the cosine 0.
    """
    rows = np.full((len(vectors), k), -1, np.int64)
    cosines = np.full((len(vectors), k), -np.inf, np.float32)
    for members, held, start, end in _compared(vectors, exact, cluster):
        here = members[start:end]
        found = held[start:end] @ held.T
        found[np.arange(len(here)), start + np.arange(len(here))] = -np.inf  # itself
        top = np.argpartition(-found, min(k, len(members)) - 1, axis=1)[:, :k]
        near, cosine = members[top], np.take_along_axis(found, top, axis=1).round(DIGITS)
        cosine[(near[:, :, None] == rows[here][:, None, :]).any(axis=2)] = -np.inf  # known from another cluster
        near, cosine = np.hstack([rows[here], near]), np.hstack([cosines[here], cosine])
        order = np.lexsort((near, -cosine), axis=1)[:, :k]
        rows[here] = np.take_along_axis(near, order, axis=1)
        cosines[here] = np.take_along_axis(cosine, order, axis=1)
    absent = np.isneginf(cosines)
    rows[absent], cosines[absent] = -1, 0
    return rows, cosines


def _compared(vectors: Vectors, exact: int, cluster: int) -> Iterator[tuple[Indices, Vectors, int, int]]:
    """The rows to be compared with each other, their vectors, and where in them a block starts and ends whose turn it is."""
    few = len(vectors) <= exact
    with bar("compare", len(vectors) * (1 if few else PROBES), "rows") as advance:
        for members in [np.arange(len(vectors))] if few else _clusters(vectors, cluster):
            held = vectors[members]
            step = max(1, BLOCK // max(1, len(members)))
            for start in range(0, len(members), step):
                end = min(start + step, len(members))
                yield members, held, start, end
                advance(end - start)


def _above(left: Vectors, right: Vectors, at_least: float) -> Pairs:
    cosines = left @ right.T
    first, second = np.nonzero(cosines > at_least - 10.0**-DIGITS)
    cosine = cosines[first, second].round(DIGITS)
    near = cosine >= np.float32(at_least)
    return first[near], second[near], cosine[near]


def _clusters(vectors: Vectors, size: int) -> Iterator[Indices]:
    """The rows of each cluster; a row stands in its ``PROBES`` nearest. Centres come from a sample, with a fixed seed."""
    from sklearn.cluster import MiniBatchKMeans

    count = max(2, len(vectors) // size)
    sample = np.random.default_rng(0).choice(len(vectors), min(len(vectors), 100 * count), replace=False)
    means = MiniBatchKMeans(count, batch_size=4 * size, max_iter=20, n_init=1, random_state=0).fit(
        vectors[np.sort(sample)]
    )
    centres = means.cluster_centers_.astype(np.float32)
    offset = (centres**2).sum(axis=1) / 2  # nearest is the largest x.c - |c|^2 / 2
    nearest = np.empty((len(vectors), min(PROBES, count)), np.int32)
    step = max(1, BLOCK // count)
    for start in range(0, len(vectors), step):
        closeness = vectors[start : start + step] @ centres.T - offset
        nearest[start : start + step] = np.argpartition(closeness, -nearest.shape[1], axis=1)[:, -nearest.shape[1] :]
    order = np.argsort(nearest, axis=None, kind="stable")
    starts = np.searchsorted(nearest.ravel()[order], np.arange(count + 1))
    for begin, end in itertools.pairwise(starts):
        yield np.sort(order[begin:end] // nearest.shape[1])


def _joined(found: list[Pairs]) -> Pairs:
    nothing = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    first, second, cosine = (np.concatenate(parts) for parts in zip(nothing, *found, strict=True))
    order = np.lexsort((second, first))
    return first[order], second[order], cosine[order]


def _bounded(found: list[Pairs], at_least: float) -> None:
    number = sum(len(first) for first, _, _ in found)
    if number > MOST_PAIRS:
        raise RunError(
            f"more than {MOST_PAIRS:,} pairs of texts have a cosine of at least {at_least:g}; raise the threshold"
        )


def _vectors(texts: Sequence[str], model: "SentenceTransformer", advance: Callable[[int], None]) -> Vectors:
    """Each different text once, those of like length together, so that little of a batch is padding."""
    import torch

    different, place = np.unique(np.array(texts, dtype=object), return_inverse=True)
    order = np.argsort([len(text) for text in different], kind="stable")[::-1]
    repeated = len(texts) - len(different)
    vectors = np.empty((len(different), model.get_embedding_dimension() or 0), np.float32)
    for start in range(0, len(order), CHUNK):
        chunk = order[start : start + CHUNK]
        with torch.inference_mode():
            vectors[chunk] = model.encode(
                [different[row] for row in chunk], normalize_embeddings=True, show_progress_bar=False
            )
        advance(len(chunk))
    advance(repeated)
    return vectors[place]


@lru_cache(maxsize=1)
def _loaded(model: str, revision: str | None) -> "SentenceTransformer":
    folder = _folder(model, revision)
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        raise InputError(
            f"embeddings need the package {plain(error.name or '')}; pip install 'stepdistill[semantic]'"
        ) from None
    from safetensors import SafetensorError
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    try:
        return SentenceTransformer(
            str(folder), trust_remote_code=False, local_files_only=True, model_kwargs={"use_safetensors": True}
        )
    except (OSError, ValueError, KeyError, ImportError, AttributeError, SafetensorError) as error:
        problem = foreign.told(error, folder) or foreign.weights(folder)
        if problem is not None:
            raise InputError(f"{plain(model)}: {problem}") from None
        raise InputError(
            f"{plain(model)}: cannot be loaded as an embedding model ({plain(str(error), 160)}); "
            "name a model of sentence-transformers with safetensors"
        ) from None


def _folder(model: str, revision: str | None) -> Path:
    """Where the model's files lie; the last part of a hub repository's is the commit. Raises InputError."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise InputError(f"{plain(model)}: a folder has no revision; leave it out")
        if not (folder / "config.json").is_file():
            raise InputError(f"{plain(model)}: no config.json in this folder; name the folder of an embedding model")
        return folder
    if model.startswith((".", "/", "~")) or not REPOSITORY.fullmatch(model):
        raise InputError(f"{plain(model)}: no such folder; name the folder of an embedding model, or a hub repository")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=list(FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = f" at revision {plain(revision)}" if revision else ""
        raise InputError(
            f"{plain(model)}: no such folder, and not to be had from the hub or its local cache{at} "
            f"({plain(str(error).splitlines()[0], 100)}); check the name, or name the folder of a model"
        ) from None
