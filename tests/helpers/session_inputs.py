"""What the tests of sessions feed them with."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pylogquant import Model, Session
from pylogquant.kv import KvOptions

__all__ = ["CELLS", "EVERY_TYPE", "N_CTX", "WITH_WINDOW", "eval_history", "ids_for"]


def ids_for(model: Model, n: int, seed: int = 0) -> list[int]:
    """n random ids of the model's vocabulary."""
    return [int(i) for i in np.random.default_rng(seed).integers(0, model.info().n_vocab, n)]


def eval_history(session: Session, ids: Sequence[int]) -> npt.NDArray[np.float32]:
    """Makes ids the session's whole history; the logits of the last one."""
    logits = session.eval(ids[session.keep_prefix(ids) :])
    assert logits is not None
    return logits


# ---- sessions of tests/core that go back, fork and are saved

N_CTX = 700
WITH_WINDOW = tuple(KvOptions(name, window=64) for name in ("logquant", "logquant-hq", "kivi", "streaming", "h2o"))
CELLS = ("q4_0", "q4_0-plain", "q8_0", "f16")  # every token by itself
EVERY_TYPE: tuple[KvOptions | str, ...] = (
    *WITH_WINDOW, "logquant-small", "logquant-paper", KvOptions("logquant-small", select="even"), *CELLS,
)  # fmt: skip
