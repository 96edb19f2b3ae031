"""Notices text that repeats itself without end, as small models' answers do, by its token ids alone.

A stretch of ids is a loop if it consists of one piece again and again, without a change, and is long: LONG ids and
TIMES pieces at least. Both bounds leave room for what people and programs write on purpose, such as a hundred zeros:
docs/first-impression.md.
"""

from __future__ import annotations

__all__ = ["LoopGuard"]

LONGEST_PIECE = 96
LONG = 320
TIMES = 4
_KEPT = LONGEST_PIECE * TIMES
_EVERY = 8  # ids between two looks: a look costs as much as LONGEST_PIECE comparisons


class LoopGuard:
    """Watches one text grow."""

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._n_unseen = 0

    def push(self, token: int) -> bool:
        """Adds the text's next token; True where the text has become a loop, at most a few tokens ago."""
        self._ids.append(token)
        self._n_unseen += 1
        if self._n_unseen < _EVERY or len(self._ids) < LONG:
            return False
        self._n_unseen = 0
        del self._ids[:-_KEPT]
        return period(self._ids) > 0


def period(ids: list[int]) -> int:
    """How many ids the piece has that the end of ids repeats; 0 where it is no loop."""
    n = len(ids)
    for size in range(1, LONGEST_PIECE + 1):
        long = max(LONG, TIMES * size)
        if long > n:
            break
        # All but one piece equal what stands a piece before: compared at the end first, where most candidates fail.
        if ids[-1] == ids[-1 - size] and ids[n - long + size :] == ids[n - long : n - size]:
            return size
    return 0
