"""Sequences of unlike length side by side in one batch, with little padding between them.

    lengths 9, 4, 5, 2  ->  [[0], [1, 2], [3]]    with room for 9 in each row

A label row of 50 tokens and a rationale row of 90 would waste two fifths of a padded batch. Packed, several sequences share a row; a
model that is told each token's place in its own sequence (``position_ids``) keeps them apart. Limits: so it is for models whose only
memory is attention; the trainer asks the model itself, once, whether packing changes its answers.
"""

from collections.abc import Sequence


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which sequences share a row: positions in ``lengths``, every one once, each row's lengths adding up to ``room`` at most.

    First fit, longest first (Johnson 1973: at most 11/9 of the fewest rows possible, and one). Raises ValueError where one is longer than
    ``room``.
    """
    rows: list[list[int]] = []
    left: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        if lengths[place] > room:
            raise ValueError(f"a sequence of {lengths[place]} tokens in a row of {room}")
        row = next((row for row, free in enumerate(left) if free >= lengths[place]), len(rows))
        if row == len(rows):
            rows.append([])
            left.append(room)
        rows[row].append(place)
        left[row] -= lengths[place]
    return rows


def closest(lengths: Sequence[int], most: int = 512) -> list[list[int]]:
    """``pack`` into rows as wide as the longest sequence, or up to twice that, whichever leaves the fewest positions in all.

    Sequences of more than half of the longest would otherwise have a row each. Rows wider than ``most`` are not tried: what attention
    takes grows with the width.
    """
    longest = max(lengths, default=0)
    rooms = [longest * quarters // 4 for quarters in range(4, 9)]
    tried = [pack(lengths, room) for room in rooms if room <= max(most, longest)]
    return min(
        tried, key=lambda rows: len(rows) * max((sum(lengths[place] for place in row) for row in rows), default=0)
    )
