"""Merkle trees against RFC 6962's own definition, word for word, and Certificate Transparency's test vectors."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import merkle
from pipeline.merkle import Tree, climbed, leaf, leaves

# Certificate Transparency's reference leaves and the roots over the first 0, 1, .. 8 of them
# (certificate-transparency, python/ct/crypto/merkle_test.py and cpp/merkletree/merkle_tree_test.cc).
LINES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = """
e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d
fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125
aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77
d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7
4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4
76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef
ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c
5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328
""".split()
PATHS = {  # (leaf from 0, size): its audit path
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}


def split(size: int) -> int:
    """k: the largest power of two smaller than n."""
    power = 1
    while power * 2 < size:
        power *= 2
    return power


def tree_hash(lines: list[bytes]) -> bytes:
    """MTH of section 2.1."""
    if not lines:
        return hashlib.sha256().digest()
    if len(lines) == 1:
        return hashlib.sha256(b"\x00" + lines[0]).digest()
    k = split(len(lines))
    return hashlib.sha256(b"\x01" + tree_hash(lines[:k]) + tree_hash(lines[k:])).digest()


def audit_path(m: int, lines: list[bytes]) -> list[bytes]:
    """PATH of section 2.1.1."""
    if len(lines) == 1:
        return []
    k = split(len(lines))
    if m < k:
        return [*audit_path(m, lines[:k]), tree_hash(lines[k:])]
    return [*audit_path(m - k, lines[k:]), tree_hash(lines[:k])]


ANY_LINES = st.lists(st.binary(max_size=6), max_size=40)
SOME_LINES = st.lists(st.binary(max_size=6), min_size=1, max_size=40)


@pytest.mark.parametrize("size", range(9))
def test_known_roots(size: int) -> None:
    assert Tree(leaves(LINES[:size])).root.hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "size"), PATHS)
def test_known_paths(index: int, size: int) -> None:
    assert [item.hex() for item in Tree(leaves(LINES[:size])).path(index)] == PATHS[index, size]


@given(ANY_LINES)
def test_the_root_is_the_rfcs(lines: list[bytes]) -> None:
    assert Tree(leaves(lines)).root == tree_hash(lines)


@given(SOME_LINES, st.data())
def test_each_path_is_the_rfcs_and_leads_to_the_root(lines: list[bytes], data: st.DataObject) -> None:
    tree = Tree(leaves(lines))
    index = data.draw(st.integers(0, len(lines) - 1))
    assert tree.path(index) == audit_path(index, lines)
    assert climbed(leaf(lines[index]), index, len(lines), tree.path(index)) == tree.root


@given(SOME_LINES, st.data())
def test_one_bit_of_leaf_or_neighbour_leads_elsewhere(lines: list[bytes], data: st.DataObject) -> None:
    tree = Tree(leaves(lines))
    index = data.draw(st.integers(0, len(lines) - 1))
    hashes = [tree.leaves[index], *tree.path(index)]
    changed = data.draw(st.integers(0, len(hashes) - 1))
    flipped = int.from_bytes(hashes[changed]) ^ (1 << data.draw(st.integers(0, 255)))
    hashes[changed] = flipped.to_bytes(32)
    assert climbed(hashes[0], index, len(lines), hashes[1:]) != tree.root


@given(st.lists(st.binary(max_size=6), min_size=2, max_size=40, unique=True), st.data())
def test_another_place_leads_elsewhere(lines: list[bytes], data: st.DataObject) -> None:
    tree = Tree(leaves(lines))
    index = data.draw(st.integers(0, len(lines) - 1))
    other = data.draw(st.integers(-2, len(lines) + 2).filter(lambda other: other != index))
    assert climbed(tree.leaves[index], other, len(lines), tree.path(index)) != tree.root


@given(SOME_LINES, st.data())
def test_more_or_fewer_neighbours_lead_nowhere(lines: list[bytes], data: st.DataObject) -> None:
    tree = Tree(leaves(lines))
    index = data.draw(st.integers(0, len(lines) - 1))
    path = tree.path(index)
    assert climbed(tree.leaves[index], index, len(lines), [*path, b"\x00" * 32]) is None
    if path:
        assert climbed(tree.leaves[index], index, len(lines), path[1:]) is None


@given(SOME_LINES, st.data())
def test_another_size_leads_elsewhere_unless_the_way_up_looks_the_same(lines: list[bytes], data: st.DataObject) -> None:
    """RFC 6962's paths do not fix the size (its log signs it beside the root), so what uses them checks the size itself."""
    tree = Tree(leaves(lines))
    index, size = data.draw(st.integers(0, len(lines) - 1)), data.draw(st.integers(0, 80))
    reached = climbed(tree.leaves[index], index, size, tree.path(index))
    same = index < size and turns(index, size) == turns(index, len(lines))
    assert (reached == tree.root) == same


def turns(index: int, size: int) -> list[bool]:
    """On which side the neighbour stands at each step from the leaf to the root (the RFC's recursion)."""
    if size == 1:
        return []
    k = split(size)
    return [*turns(index, k), True] if index < k else [*turns(index - k, size - k), False]


@given(st.lists(st.binary(max_size=6), max_size=12), st.lists(st.binary(max_size=6), max_size=12))
def test_other_lines_have_another_root(one: list[bytes], other: list[bytes]) -> None:
    assert (Tree(leaves(one)).root == Tree(leaves(other)).root) == (one == other)


def test_an_inner_node_is_no_line() -> None:
    """The prefixes keep two lines' node apart from one line that holds their hashes (second preimages)."""
    first, second = leaves([b"a", b"b"])
    assert leaf(first + second) != Tree([first, second]).root


def test_there_is_no_path_to_what_is_not_there() -> None:
    for index in (-1, 3):
        with pytest.raises(IndexError, match="no leaf"):
            Tree(leaves([b"a", b"b", b"c"])).path(index)
    assert merkle.Tree([]).root == merkle.EMPTY
