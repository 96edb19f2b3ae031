"""What the tests of sessions feed them with."""

from __future__ import annotations

import numpy as np

from pylogquant import Model

__all__ = ["ids_for"]


def ids_for(model: Model, n: int, seed: int = 0) -> list[int]:
    """n random ids of the model's vocabulary."""
    return [int(i) for i in np.random.default_rng(seed).integers(0, model.info().n_vocab, n)]
