"""The forward pass against NumPy in double precision, on tiny generated models of every shape that is supported."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import reference
from make_tiny_gguf import WeightType, make_tiny

from pylogquant import KvOptions, Model
from pylogquant.kv import kv_names

pytestmark = pytest.mark.tiny_model

# Weights of these types meet float activations, the others int8 ones at the levels that have integer kernels; TQ1_0
# has none on the CPU.
FLOAT_TYPES = ("F32", "F16", "BF16")

SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"arch": "llama"},
    "llama, one KV head": {"arch": "llama", "n_heads": 8, "n_kv_heads": 1},
    "llama, GQA 3, head 64": {"arch": "llama", "n_heads": 9, "n_kv_heads": 3, "n_embd": 144, "head_dim": 64},
    "llama, no GQA, head 80": {"arch": "llama", "n_heads": 4, "n_kv_heads": 4, "head_dim": 80},
    "llama, head 96": {"arch": "llama", "head_dim": 96},
    "llama, head 128": {"arch": "llama", "head_dim": 128},
    "llama, head 256": {"arch": "llama", "head_dim": 256},
    "llama, untied": {"arch": "llama", "tied": False},
    "llama, rope factors": {"arch": "llama", "rope_freqs": True},
    "llama, linear rope": {"arch": "llama", "rope_scale": 4.0},
    "llama, biases": {"arch": "llama", "biases": True},
    "llama, yarn": {"arch": "llama", "rope_scaling": "yarn", "rope_scale": 8.0, "head_dim": 64},
    "llama, rope over half a head": {"arch": "llama", "head_dim": 64, "n_rot": 32},
    "llama, experts": {"arch": "llama", "n_experts": 5},
    "granite": {"arch": "granite"},
    "qwen2": {"arch": "qwen2", "tied": False},
    "qwen2, one KV head of 128, yarn": {
        "arch": "qwen2",
        "n_heads": 6,
        "n_kv_heads": 1,
        "head_dim": 128,
        "rope_scaling": "yarn",
        "rope_scale": 4.0,
    },
    "qwen3": {"arch": "qwen3", "head_dim": 128},
    "qwen3moe": {"arch": "qwen3moe", "head_dim": 64, "n_experts": 9, "tied": False},
    "gemma2": {"arch": "gemma2"},
    "gemma2, window of 5, head 256": {"arch": "gemma2", "window": 5, "head_dim": 256, "n_kv_heads": 4},
    "gemma2, as deep as 27B": {"arch": "gemma2", "n_layers": 46, "head_dim": 32},
    "phi3, head 96": {"arch": "phi3", "head_dim": 96, "n_kv_heads": 4, "tied": False},
    "phi3, all layers slide": {"arch": "phi3", "window": 23},
    "phi3, short rope factors": {"arch": "phi3", "rope_scaling": "longrope", "n_ctx": 256, "n_ctx_original": 128},
    "phi3, long rope factors": {
        "arch": "phi3",
        "rope_scaling": "longrope",
        "n_ctx": 256,
        "n_ctx_original": 64,
        "n_embd": 256,
        "n_heads": 2,
        "n_kv_heads": 1,
        "n_rot": 96,
    },
    "olmo2": {"arch": "olmo2", "n_kv_heads": 4, "tied": False},
    "olmo2, sliding": {"arch": "olmo2", "n_layers": 5, "window": 9, "rope_scaling": "yarn", "rope_scale": 2.0},
    "smollm3": {"arch": "smollm3", "n_layers": 5, "head_dim": 80},
    "gemma3": {"arch": "gemma3"},
    "gemma3, window of 5": {"arch": "gemma3", "window": 5},
    "gemma3, linear rope, untied": {"arch": "gemma3", "rope_scale": 8.0, "tied": False},
    "gemma3, head 256": {"arch": "gemma3", "n_heads": 4, "n_kv_heads": 1, "head_dim": 256},
    "gemma3, window of the whole context": {"arch": "gemma3", "window": 512},
    "gemma2, linear rope": {"arch": "gemma2", "rope_scale": 4.0},
    "gemma2, yarn, wide window": {"arch": "gemma2", "rope_scale": 4.0, "rope_scaling": "yarn", "window": 600},
    "olmo2, yarn, wide window": {
        "arch": "olmo2",
        "n_layers": 5,
        "window": 4096,
        "rope_scaling": "yarn",
        "rope_scale": 4.0,
    },
    "llama, biases and factors": {"arch": "llama", "biases": True, "factors": True, "tied": False},
    "llama, experts with factors": {"arch": "llama", "n_experts": 5, "factors": True},
    "phi3, factors": {"arch": "phi3", "factors": True},
    "lfm2": {"arch": "lfm2"},
    "lfm2, as the 1.2B": {"arch": "lfm2", "n_layers": 16, "attention_layers": (2, 5, 8, 10, 12, 14)},
    "lfm2, attention first and last": {"arch": "lfm2", "n_layers": 3, "attention_layers": (0, 2), "tied": False},
    "lfm2, attention only": {"arch": "lfm2", "n_layers": 2, "attention_layers": (0, 1)},
    "lfm2, two taps": {"arch": "lfm2", "n_taps": 2},
    "lfm2, sixteen taps": {"arch": "lfm2", "n_taps": 16},
    "lfm2, five taps, GQA 3, head 64": {"arch": "lfm2", "n_taps": 5, "n_heads": 3, "n_kv_heads": 1, "n_embd": 192},
    "lfm2, F16": {"arch": "lfm2", "weight_type": "F16"},
}


def both(
    path: Path, n: int, chunk: int, *, kv: str = "f16", n_ctx: int = 0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    with Model(path, threads=2) as model:
        ids = [int(i) for i in np.random.default_rng(1).integers(0, model.info().n_vocab, n)]
        with model.session(n_ctx, kv, chunk=chunk) as s:
            ours = s.eval(ids, "all")
    assert ours is not None
    return ours, reference.forward(path, ids)


def relative_error(ours: npt.NDArray[np.float32], wanted: npt.NDArray[np.float64]) -> float:
    return float(np.linalg.norm(ours - wanted) / np.linalg.norm(wanted))


def long_enough(name: str) -> int:
    """A session's context: within a long-rope model's short one, where that is what is tested."""
    return 128 if SHAPES[name].get("n_ctx_original") == 128 else 0


@pytest.mark.parametrize("name", SHAPES)
def test_f32_weights(name: str, tmp_path: Path) -> None:
    """Only the cache's f16 stands between us and the reference."""
    path = make_tiny(tmp_path / "m.gguf", **SHAPES[name])
    ours, wanted = both(path, 70, chunk=24, n_ctx=long_enough(name))
    assert relative_error(ours, wanted) < 1e-3
    # The reference must be able to tell: a token's logits differ from its neighbour's by far more than the bound.
    assert relative_error(ours[1:], wanted[:-1]) > 0.1


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
@pytest.mark.parametrize("weight_type", get_args(WeightType))
def test_weight_types(arch: Any, weight_type: Any, tmp_path: Path) -> None:
    path = make_tiny(tmp_path / "m.gguf", arch=arch, weight_type=weight_type)
    ours, wanted = both(path, 40, chunk=16)
    with Model(path) as model:
        in_float = weight_type in FLOAT_TYPES or (weight_type == "TQ1_0" and model.info().device == "cpu")
    assert relative_error(ours, wanted) < (1e-3 if in_float else 5e-2)


def test_decoding_token_by_token(tmp_path: Path) -> None:
    path = make_tiny(tmp_path / "m.gguf", arch="gemma3", window=7)
    ours, wanted = both(path, 60, chunk=1)
    assert relative_error(ours, wanted) < 1e-3


# The library has no such thing, or describes it by a formula.
NOT_IN_TRANSFORMERS = ("llama, rope factors", "llama, rope over half a head")


@pytest.mark.oracle
@pytest.mark.parametrize("name", [name for name in SHAPES if name not in NOT_IN_TRANSFORMERS])
def test_like_transformers(name: str, tmp_path: Path) -> None:
    """The reference itself is held against the library that most models are published for."""
    import hf_reference

    path = make_tiny(tmp_path / "m.gguf", **SHAPES[name])
    ours, reference_logits = both(path, 70, chunk=24, n_ctx=long_enough(name))
    ids = [int(i) for i in np.random.default_rng(1).integers(0, ours.shape[1], 70)]
    wanted = hf_reference.logits(hf_reference.load(path), ids).astype(np.float64)
    assert relative_error(ours, wanted) < 1e-3
    assert np.linalg.norm(reference_logits - wanted) < 1e-5 * np.linalg.norm(wanted)


# llama.cpp (2026) aborts where no layer has a convolution.
@pytest.mark.oracle
@pytest.mark.parametrize("name", [n for n in SHAPES if SHAPES[n]["arch"] == "lfm2" and n != "lfm2, attention only"])
def test_lfm2_like_llama_cpp(name: str, tmp_path: Path) -> None:
    """It also finds all keys and tensors by their names."""
    import parity

    path = make_tiny(tmp_path / "m.gguf", **SHAPES[name])
    ours, _ = both(path, 70, chunk=24)
    ids = [int(i) for i in np.random.default_rng(1).integers(0, ours.shape[1], 70)]
    _, wanted = parity.peer_logits(path, ids, 2, flash=False)
    assert relative_error(ours, wanted.astype(np.float64)) < 2e-3


def median_error(ours: npt.NDArray[np.float32], wanted: npt.NDArray[Any]) -> float:
    """Of single tokens: where two experts are as good as equal, rounding decides, and such a token is far off."""
    errors = np.linalg.norm(ours - wanted, axis=1) / np.linalg.norm(wanted, axis=1)
    return float(np.median(errors))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kv", [kv for kv in kv_names() if kv != "f16"])
def test_every_kv_type(name: str, kv: str, tmp_path: Path) -> None:
    """A prompt in one piece sees itself in full precision, whatever becomes of it; in q8_0 and q4_0 as it is stored."""
    path = make_tiny(tmp_path / "m.gguf", **{**SHAPES[name], "n_ctx": 512, "n_ctx_original": 64})
    ours, wanted = both(path, 300, chunk=300, kv=kv, n_ctx=512)
    assert median_error(ours, wanted) < {"q8_0": 4e-2, "q4_0": 0.4, "q4_0-plain": 0.4}.get(kv, 1e-3)


@pytest.mark.parametrize("name", SHAPES)
def test_behind_packed_pages(name: str, tmp_path: Path) -> None:
    """Tokens whose past is packed, with five bits for keys and four for values: little is left but rounding."""
    path = make_tiny(tmp_path / "m.gguf", **{**SHAPES[name], "n_ctx": 512, "n_ctx_original": 64})
    kv = KvOptions("logquant-hq", keys="5", value_bits=4, window=64)
    with Model(path, threads=2) as model:
        ids = [int(i) for i in np.random.default_rng(1).integers(0, model.info().n_vocab, 500)]
        with model.session(512, kv) as s, model.session(512, "f16") as exact:
            for session in (s, exact):
                session.eval(ids[:400], "none")
            rows = [(s.eval([token]), exact.eval([token])) for token in ids[400:]]
            usage = s.kv.usage()
    sliding_only = SHAPES[name].get("arch") == "phi3" and "window" in SHAPES[name]
    assert usage.n_packed > 200 or sliding_only
    found, wanted = (np.array([row[i] for row in rows], dtype=np.float32) for i in (0, 1))
    assert median_error(found, wanted) < 0.15
