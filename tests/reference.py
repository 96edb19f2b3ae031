"""The forward pass in NumPy, float64, on weights decoded by the gguf package: what our logits are held against.

Written for reading: one loop over layers, no cache, no batching. llama and gemma3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

__all__ = ["Reference", "forward"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Config:
    arch: str
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_rot: int
    window: int
    norm_eps: float
    rope_base: float
    rope_scale: float


def _read_config(reader: gguf.GGUFReader) -> _Config:
    def value(key: str, default: Any = None) -> Any:
        field = reader.get_field(key)
        if field is None and default is None:
            raise KeyError(key)
        return default if field is None else field.contents()

    arch = str(value("general.architecture"))
    if arch not in ("llama", "gemma3"):
        raise ValueError(f"no reference for architecture {arch!r}")
    n_heads = int(value(f"{arch}.attention.head_count"))
    head_dim = int(value(f"{arch}.attention.key_length", value(f"{arch}.embedding_length") // n_heads))
    scaling = str(value(f"{arch}.rope.scaling.type", "none"))
    if scaling not in ("none", "linear"):
        raise ValueError(f"no reference for rope scaling {scaling!r}")
    return _Config(
        arch=arch,
        n_layers=int(value(f"{arch}.block_count")),
        n_heads=n_heads,
        n_kv_heads=int(value(f"{arch}.attention.head_count_kv", n_heads)),
        head_dim=head_dim,
        n_rot=int(value(f"{arch}.rope.dimension_count", head_dim)),
        window=int(value(f"{arch}.attention.sliding_window")) if arch == "gemma3" else 0,
        norm_eps=float(value(f"{arch}.attention.layer_norm_rms_epsilon")),
        rope_base=float(value(f"{arch}.rope.freq_base", 1e6 if arch == "gemma3" else 1e4)),
        rope_scale=float(value(f"{arch}.rope.scaling.factor")) if scaling == "linear" else 1.0,
    )


def _rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """Over the last axis."""
    normed: Floats = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight
    return normed


def _silu(x: Floats) -> Floats:
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the right limit, 0
        activated: Floats = x / (1.0 + np.exp(-x))
    return activated


def _gelu_tanh(x: Floats) -> Floats:
    activated: Floats = 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3)))
    return activated


def _rotate(x: Floats, angles: Floats, halves: bool) -> Floats:
    """Rope on x (n, heads, head_dim) by angles (n, n_rot / 2).

    Pair i is made of values 2i and 2i + 1, or with `halves` of i and i + n_rot / 2; values from n_rot on stay.
    """
    n_rot = 2 * angles.shape[1]
    first = slice(0, n_rot // 2) if halves else slice(0, n_rot, 2)
    second = slice(n_rot // 2, n_rot) if halves else slice(1, n_rot, 2)
    cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
    rotated: Floats = x.copy()
    rotated[..., first] = x[..., first] * cos - x[..., second] * sin
    rotated[..., second] = x[..., first] * sin + x[..., second] * cos
    return rotated


def _attention(q: Floats, k: Floats, v: Floats, window: int) -> Floats:
    """Causal, grouped heads: q (n, n_heads, head_dim), k and v (n, n_kv_heads, head_dim) -> as q.

    window: how many positions a query sees, itself included; 0 = all before it.
    """
    n, n_heads, head_dim = q.shape
    position = np.arange(n)
    distance = position[:, None] - position[None, :]
    hidden = (distance < 0) | ((distance >= window) if window else False)
    out: Floats = np.empty_like(q)
    for head in range(n_heads):
        kv_head = head // (n_heads // k.shape[1])
        scores = q[:, head] @ k[:, kv_head].T / np.sqrt(head_dim)
        scores[hidden] = -np.inf
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        out[:, head] = weights / weights.sum(axis=-1, keepdims=True) @ v[:, kv_head]
    return out


class Reference:
    """One model file; __call__ evaluates a text. Weights are decoded when used and not kept, to stay small."""

    def __init__(self, path: str | Path) -> None:
        reader = gguf.GGUFReader(path)
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.config = _read_config(reader)
        self._is_gemma = self.config.arch == "gemma3"

    def _weight(self, name: str) -> Floats:
        tensor = self._tensors[name]
        return np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float64)

    def _embed(self, ids: npt.NDArray[np.int64]) -> Floats:
        tensor = self._tensors["token_embd.weight"]
        rows = np.asarray(gguf.quants.dequantize(tensor.data[ids], tensor.tensor_type), dtype=np.float64)
        return rows * np.sqrt(rows.shape[1]) if self._is_gemma else rows

    def _linear(self, x: Floats, name: str) -> Floats:
        y: Floats = x @ self._weight(name + ".weight").T
        return y + self._weight(name + ".bias") if name + ".bias" in self._tensors else y

    def _angles(self, n: int, sliding: bool) -> Floats:
        """(n, n_rot / 2): position times frequency."""
        config = self.config
        base = 10000.0 if sliding else config.rope_base
        frequencies = base ** -(np.arange(0, config.n_rot, 2) / config.n_rot)
        if "rope_freqs.weight" in self._tensors:
            frequencies /= self._weight("rope_freqs.weight")
        if not sliding:
            frequencies /= config.rope_scale
        return np.arange(n)[:, None] * frequencies[None, :]

    def _layer(self, x: Floats, index: int) -> Floats:
        config, prefix = self.config, f"blk.{index}."
        sliding = self._is_gemma and (index + 1) % 6 != 0
        normed = self._norm(x, prefix + "attn_norm")
        q, k, v = (
            self._linear(normed, prefix + name).reshape(len(x), -1, config.head_dim)
            for name in ("attn_q", "attn_k", "attn_v")
        )
        if self._is_gemma:
            q, k = self._norm(q, prefix + "attn_q_norm"), self._norm(k, prefix + "attn_k_norm")
        angles = self._angles(len(x), sliding)
        q, k = _rotate(q, angles, halves=self._is_gemma), _rotate(k, angles, halves=self._is_gemma)
        mixed = _attention(q, k, v, config.window if sliding else 0).reshape(len(x), -1)
        branch = self._linear(mixed, prefix + "attn_output")
        x = x + (self._norm(branch, prefix + "post_attention_norm") if self._is_gemma else branch)
        normed = self._norm(x, prefix + "ffn_norm")
        activate = _gelu_tanh if self._is_gemma else _silu
        gated = activate(self._linear(normed, prefix + "ffn_gate")) * self._linear(normed, prefix + "ffn_up")
        branch = self._linear(gated, prefix + "ffn_down")
        return x + (self._norm(branch, prefix + "post_ffw_norm") if self._is_gemma else branch)

    def _norm(self, x: Floats, name: str) -> Floats:
        return _rms_norm(x, self._weight(name + ".weight"), self.config.norm_eps)

    def _logits(self, x: Floats) -> Floats:
        """In slices of the vocabulary, so that a large head is never decoded whole."""
        head = self._tensors.get("output.weight", self._tensors["token_embd.weight"])
        slices = []
        for start in range(0, len(head.data), 16384):
            rows = gguf.quants.dequantize(head.data[start : start + 16384], head.tensor_type)
            slices.append(x @ np.asarray(rows, dtype=np.float64).T)
        return np.concatenate(slices, axis=1)

    def __call__(self, ids: Sequence[int]) -> Floats:
        """Logits (n, n_vocab) after each of the n ids."""
        x = self._embed(np.asarray(ids, dtype=np.int64))
        for index in range(self.config.n_layers):
            x = self._layer(x, index)
        return self._logits(self._norm(x, "output_norm"))


def forward(path: str | Path, ids: Sequence[int]) -> Floats:
    """Logits (n, n_vocab) of the model file after each of the n ids, float64.

    Raises ValueError for an architecture or a rope scaling that has no reference.
    """
    return Reference(path)(ids)
