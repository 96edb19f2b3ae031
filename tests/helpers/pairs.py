"""Tables of cases in place of a full product: every value of every axis, and every two values of different axes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

__all__ = ["all_pairs", "pairs_of"]


def pairs_of(row: Sequence[Any]) -> set[tuple[int, Any, int, Any]]:
    """The pairs of values that a row holds, each value with the number of its axis."""
    return {(a, row[a], b, row[b]) for a, b in itertools.combinations(range(len(row)), 2)}


def all_pairs(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """Rows of one (hashable) value of each axis, in which any two values of different axes meet at least once.

    Of the product that row comes next which holds most of the pairs that are missing, the first of several.
    """
    product = list(itertools.product(*axes))
    missing = set().union(*map(pairs_of, product))
    rows = []
    while missing:
        rows.append(max(product, key=lambda row: len(missing & pairs_of(row))))
        missing -= pairs_of(rows[-1])
    return rows
