r"""Merkle trees over the lines of a file, as RFC 6962 (Certificate Transparency), section 2.1, builds them.

    leaf = SHA-256(0x00 || line)          the line's bytes without its newline
    node = SHA-256(0x01 || left || right)

A tree of n leaves splits at the largest power of two smaller than n, so that the root fixes every line, its place and their number.
The root over no lines is SHA-256 of nothing. ``path`` is what it takes, beside the line itself, to compute the root again::

    tree = Tree([leaf(line) for line in lines])
    climbed(leaf(lines[7]), 7, len(lines), tree.path(7)) == tree.root

Limits: a tree is held in memory, 64 bytes a line. A path fits several sizes where the way up looks the same (the RFC's log signs the size
beside the root): whoever climbs one takes the size from what is trusted.
"""

import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Final

EMPTY: Final = hashlib.sha256(b"").digest()


def leaf(line: bytes) -> bytes:
    """The hash of one line (32 bytes)."""
    return hashlib.sha256(b"\x00" + line).digest()


def leaves(lines: Iterable[bytes]) -> list[bytes]:
    """The hashes of many lines."""
    sha256 = hashlib.sha256
    return [sha256(b"\x00" + line).digest() for line in lines]


def node(left: bytes, right: bytes) -> bytes:
    """The hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class Tree:
    """The tree over these leaves, in order."""

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self.leaves = leaves

    @cached_property
    def levels(self) -> list[Sequence[bytes]]:
        """Its levels, leaves first; a last node without a neighbour is carried up as it is, which gives the RFC's tree."""
        levels: list[Sequence[bytes]] = [self.leaves]
        sha256 = hashlib.sha256
        while len(levels[-1]) > 1:
            below = levels[-1]
            level = [
                sha256(b"\x01" + left + right).digest() for left, right in zip(below[::2], below[1::2], strict=False)
            ]
            if len(below) % 2:
                level.append(below[-1])
            levels.append(level)
        return levels

    @property
    def root(self) -> bytes:
        """The hash that fixes all leaves."""
        return self.levels[-1][0] if self.leaves else EMPTY

    def path(self, index: int) -> list[bytes]:
        """The neighbours on the way from leaf ``index`` (from 0) to the root, lowest first. Raises IndexError."""
        if not 0 <= index < len(self.leaves):
            raise IndexError(f"no leaf {index} in a tree of {len(self.leaves)}")
        found = []
        for level in self.levels[:-1]:
            beside = index ^ 1
            if beside < len(level):
                found.append(level[beside])
            index //= 2
        return found


def climbed(hashed: bytes, index: int, size: int, path: Sequence[bytes]) -> bytes | None:
    """The root that this leaf has at place ``index`` of ``size`` with these neighbours; None where they are too few or too many."""
    if not 0 <= index < size:
        return None
    neighbours = list(reversed(path))
    while size > 1:
        if index ^ 1 < size:
            if not neighbours:
                return None
            beside = neighbours.pop()
            hashed = node(beside, hashed) if index % 2 else node(hashed, beside)
        index, size = index // 2, (size + 1) // 2
    return None if neighbours else hashed
