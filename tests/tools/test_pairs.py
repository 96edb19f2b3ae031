"""tests/helpers/pairs.py: a table that leaves out a pair would weaken every test that goes by it."""

from __future__ import annotations

import itertools

import pytest
from pairs import all_pairs, pairs_of

pytestmark = pytest.mark.python_only


@pytest.mark.parametrize("sizes", [(12, 2, 2), (3, 2, 3), (5, 4, 3, 2), (2, 2), (1, 1, 1)])
def test_every_pair_is_in_the_table(sizes: tuple[int, ...]) -> None:
    axes = [[f"{axis}{value}" for value in range(size)] for axis, size in enumerate(sizes)]
    product, table = [*itertools.product(*axes)], all_pairs(*axes)
    assert set(table) <= set(product)
    assert set().union(*map(pairs_of, table)) == set().union(*map(pairs_of, product))
    assert len(table) <= len(product)


def test_it_is_shorter_than_the_product() -> None:
    assert len(all_pairs(range(12), range(2), range(2))) == 24  # of 48; 24 is the least that there can be
    assert len(all_pairs(range(5), range(4), range(3), range(2))) <= 24  # of 120
