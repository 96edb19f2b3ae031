"""The NumPy reference of architectures whose layers are not all alike, held against other libraries by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference
from make_tiny_gguf import make_tiny

LFM2: dict[str, dict[str, Any]] = {
    "lfm2": {},
    "lfm2, as the 1.2B": {"n_layers": 16, "attention_layers": (2, 5, 8, 10, 12, 14)},
    "lfm2, attention first and last": {"n_layers": 3, "attention_layers": (0, 2), "tied": False},
    "lfm2, attention only": {"n_layers": 2, "attention_layers": (0, 1)},
    "lfm2, two taps": {"n_taps": 2},
    "lfm2, five taps, GQA 3, head 64": {"n_taps": 5, "n_heads": 3, "n_kv_heads": 1, "n_embd": 192},
    "lfm2, F16": {"weight_type": "F16"},
}
IDS = [int(i) for i in np.random.default_rng(1).integers(0, 250, 70)]


def distance(found: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.oracle
@pytest.mark.parametrize("name", LFM2)
def test_lfm2_like_transformers(name: str, tmp_path: Path) -> None:
    import hf_reference

    path = make_tiny(tmp_path / "m.gguf", "lfm2", **LFM2[name])
    wanted = hf_reference.logits(hf_reference.load(path), IDS).astype(np.float64)
    found = reference.forward(path, IDS)
    assert distance(found, wanted) < 1e-5
    assert distance(found[1:], wanted[:-1]) > 0.1


@pytest.mark.oracle
@pytest.mark.parametrize("name", [name for name in LFM2 if name != "lfm2, attention only"])  # where it aborts
def test_lfm2_like_llama_cpp(name: str, tmp_path: Path) -> None:
    """It also finds all keys and tensors by their names."""
    import parity

    path = make_tiny(tmp_path / "m.gguf", "lfm2", **LFM2[name])
    _, wanted = parity.peer_logits(path, IDS, 2, flash=False)
    assert distance(reference.forward(path, IDS), wanted.astype(np.float64)) < 2e-3
