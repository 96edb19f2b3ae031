"""The forward pass against NumPy in double precision, on tiny generated models of every shape that is supported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference
from make_tiny_gguf import make_tiny

from pylogquant import Model

pytestmark = pytest.mark.tiny_model

# Weights of these types meet float activations; the others meet int8 ones at the levels that have integer kernels.
FLOAT_TYPES = ("F32", "F16")
ALL_TYPES = ("F32", "F16", "Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K")

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"arch": "llama"},
    "llama, one KV head": {"arch": "llama", "n_heads": 8, "n_kv_heads": 1},
    "llama, GQA 3, head 64": {"arch": "llama", "n_heads": 9, "n_kv_heads": 3, "n_embd": 96, "head_dim": 64},
    "llama, no GQA, head 80": {"arch": "llama", "n_heads": 4, "n_kv_heads": 4, "head_dim": 80},
    "llama, head 96": {"arch": "llama", "head_dim": 96},
    "llama, head 128": {"arch": "llama", "head_dim": 128},
    "llama, head 256": {"arch": "llama", "head_dim": 256},
    "llama, untied": {"arch": "llama", "tied": False},
    "llama, rope factors": {"arch": "llama", "rope_freqs": True},
    "llama, linear rope": {"arch": "llama", "rope_scale": 4.0},
    "llama, biases": {"arch": "llama", "biases": True},
    "gemma3": {"arch": "gemma3"},
    "gemma3, window of 5": {"arch": "gemma3", "window": 5},
    "gemma3, linear rope, untied": {"arch": "gemma3", "rope_scale": 8.0, "tied": False},
    "gemma3, head 256": {"arch": "gemma3", "n_heads": 4, "n_kv_heads": 1, "head_dim": 256},
}


def both(path: Path, n: int, chunk: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    with Model(path, threads=2) as model:
        ids = [int(i) for i in np.random.default_rng(1).integers(0, model.info().n_vocab, n)]
        with model.session(0, "f16", chunk=chunk) as s:
            ours = s.eval(ids, "all")
    assert ours is not None
    return ours, reference.forward(path, ids)


def relative_error(ours: npt.NDArray[np.float32], wanted: npt.NDArray[np.float64]) -> float:
    return float(np.linalg.norm(ours - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("name", SHAPES)
def test_f32_weights(name: str, tmp_path: Path) -> None:
    """Only the cache's f16 stands between us and the reference."""
    path = make_tiny(tmp_path / "m.gguf", **SHAPES[name])
    ours, wanted = both(path, 70, chunk=24)
    assert relative_error(ours, wanted) < 1e-3
    # The reference must be able to tell: a token's logits differ from its neighbour's by far more than the bound.
    assert relative_error(ours[1:], wanted[:-1]) > 0.1


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
@pytest.mark.parametrize("weight_type", ALL_TYPES)
def test_weight_types(arch: Any, weight_type: Any, tmp_path: Path) -> None:
    path = make_tiny(tmp_path / "m.gguf", arch=arch, weight_type=weight_type)
    ours, wanted = both(path, 40, chunk=16)
    assert relative_error(ours, wanted) < (1e-3 if weight_type in FLOAT_TYPES else 5e-2)


def test_decoding_token_by_token(tmp_path: Path) -> None:
    path = make_tiny(tmp_path / "m.gguf", arch="gemma3", window=7)
    ours, wanted = both(path, 60, chunk=1)
    assert relative_error(ours, wanted) < 1e-3
