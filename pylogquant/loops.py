"""Notices text that repeats itself without end, as small models' answers do, by its token ids alone.

The end of the ids is a loop if it repeats one piece without a change, over at least LONG ids and at least TIMES pieces.
Both bounds leave room for what people and programs write on purpose, such as a hundred zeros
(docs/first-impression.md).
"""

from __future__ import annotations

__all__ = ["LoopGuard"]

LONGEST_PIECE = 96
LONG = 320
TIMES = 4
_KEPT = LONGEST_PIECE * TIMES
_EVERY = 8  # ids between two searches, each of which costs about LONGEST_PIECE comparisons


class LoopGuard:
    """Watches the ids of one text."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._n_unseen = 0

    def push(self, token: int) -> bool:
        """Adds the text's next token; True if the text now ends in a loop, perhaps since a few tokens."""
        self._ids.append(token)
        self._n_unseen += 1
        if self._n_unseen < _EVERY or len(self._ids) < LONG:
            return False
        self._n_unseen = 0
        del self._ids[:-_KEPT]
        return period(self._ids) > 0


def period(ids: list[int]) -> int:
    """The length of the piece that the end of ids repeats; 0 where it is no loop."""
    n = len(ids)
    for size in range(1, LONGEST_PIECE + 1):
        long = max(LONG, TIMES * size)
        if long > n:
            break
        # Each id must equal the one a piece before it. The last id is compared first: most candidates fail there.
        if ids[-1] == ids[-1 - size] and ids[n - long + size :] == ids[n - long : n - size]:
            return size
    return 0
