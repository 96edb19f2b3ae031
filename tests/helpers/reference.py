"""The forward pass in NumPy, float64, on weights decoded by the gguf package: what our logits are held against.

Written for reading: one loop over layers, no cache, no batching.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import numpy.typing as npt

__all__ = ["Reference", "forward"]

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Arch:
    """How an architecture differs from a plain Llama, as the library `transformers` has it."""

    halves: bool = True  # rope turns (i, i + n_rot / 2), not (2i, 2i + 1)
    gelu: bool = False
    norms: Literal["input", "output", "both"] = "input"
    qk_norm: Literal["", "head", "token"] = ""
    scale_embedding: bool = False
    global_period: int = 0  # layer i sees everything if (i + 1) is a multiple; 0 = all do, -1 = none does
    no_rope_period: int = 0  # the same for layers without rope
    sliding_base: float = 0.0  # rope base of sliding layers; 0 = as the others, with their scaling
    scale_sliding: bool = True  # rope scaling concerns sliding layers too
    window: int = 0  # where the file does not say
    wide_scale_depth: int = 0  # with this many layers scores are scaled by n_embd / n_heads, not the head size


_ARCHS = {
    "llama": _Arch(halves=False),
    "granite": _Arch(halves=False),
    "smollm3": _Arch(halves=False, no_rope_period=4),
    "qwen2": _Arch(),
    "qwen3": _Arch(qk_norm="head"),
    "qwen3moe": _Arch(qk_norm="head"),
    "gemma2": _Arch(gelu=True, norms="both", scale_embedding=True, global_period=2, window=4096, wide_scale_depth=46),
    "gemma3": _Arch(
        gelu=True,
        norms="both",
        qk_norm="head",
        scale_embedding=True,
        global_period=6,
        sliding_base=10000.0,
        scale_sliding=False,
        wide_scale_depth=62,
    ),
    "phi3": _Arch(global_period=-1),
    "olmo2": _Arch(norms="output", qk_norm="token", global_period=4, scale_sliding=False),
    "lfm2": _Arch(qk_norm="head"),
}


@dataclass(frozen=True)
class _Config:
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_rot: int
    n_ctx: int
    window: int
    slides: tuple[bool, ...]
    norm_eps: float
    rope_base: float
    sliding_base: float
    has_rope: bool
    rope_scaling: str
    rope_scale: float
    n_ctx_original: int
    yarn_turns: tuple[float, float]
    stretch: float  # attn_factor
    attn_softcap: float
    final_softcap: float
    attn_scale: float
    embedding_scale: float
    residual_scale: float
    logit_scale: float
    n_experts_used: int


def _sliding_layers(arch: _Arch, window: int, pattern: Any, n_layers: int) -> tuple[bool, ...]:
    """pattern: a flag for each layer, every how manieth layer sees everything (0: none does), or None."""
    if not window or not arch.global_period:
        return (False,) * n_layers
    if isinstance(pattern, list):
        return tuple(bool(flag) for flag in pattern)
    period = arch.global_period if pattern is None else pattern
    return tuple(period <= 0 or (index + 1) % period != 0 for index in range(n_layers))


def _read_config(reader: gguf.GGUFReader) -> tuple[_Arch, _Config]:
    def text(key: str, default: Any = None) -> Any:
        field = reader.get_field(key)
        if field is None and default is None:
            raise KeyError(key)
        return default if field is None else field.contents()

    name = str(text("general.architecture"))
    if name not in _ARCHS:
        raise ValueError(f"no reference for architecture {name!r}")

    def value(key: str, default: Any = None) -> Any:
        found = text(f"{name}.{key}", default)
        return max(found) if isinstance(found, list) else found  # 0 where a layer has none, equal for all others

    n_heads, n_ctx = int(value("attention.head_count")), int(value("context_length"))
    head_dim = int(value("attention.key_length", value("embedding_length") // n_heads))
    has_factor = reader.get_field(f"{name}.rope.scale_linear") or reader.get_field(f"{name}.rope.scaling.factor")
    scaling = str(value("rope.scaling.type", "linear" if has_factor else "none"))
    if any(t.name == "rope_factors_long.weight" for t in reader.tensors):
        scaling = "longrope"
    if scaling not in ("none", "linear", "yarn", "longrope"):
        raise ValueError(f"no reference for rope scaling {scaling!r}")
    arch, n_layers = _ARCHS[name], int(value("block_count"))
    window = int(value("attention.sliding_window", arch.window))
    pattern = reader.get_field(f"{name}.attention.sliding_window_pattern")
    wide = n_layers == arch.wide_scale_depth
    base = float(value("rope.freq_base", value("rope.global.freq_base", 1e4)))
    scaled_dim = value("embedding_length") // n_heads if wide else head_dim
    return arch, _Config(
        n_layers=n_layers,
        n_heads=n_heads,
        n_kv_heads=int(value("attention.head_count_kv", n_heads)),
        head_dim=head_dim,
        n_rot=int(value("rope.dimension_count", head_dim)),
        n_ctx=n_ctx,
        window=window,
        slides=_sliding_layers(arch, window, None if pattern is None else pattern.contents(), n_layers),
        norm_eps=float(value("attention.layer_norm_rms_epsilon")),
        rope_base=base,
        sliding_base=float(value("rope.freq_base_swa", value("rope.local.freq_base", arch.sliding_base or base))),
        has_rope=name != "granite" or bool(value("rope.scaling.finetuned", True)),
        rope_scaling=scaling,
        rope_scale=float(value("rope.scaling.factor", value("rope.scale_linear", 1.0))),
        n_ctx_original=int(value("rope.scaling.original_context_length", n_ctx)),
        yarn_turns=(
            float(value("rope.scaling.yarn_beta_fast", 32.0)),
            float(value("rope.scaling.yarn_beta_slow", 1.0)),
        ),
        stretch=float(value("rope.scaling.attn_factor", 0.0)),
        attn_softcap=float(value("attn_logit_softcapping", 0.0)),
        final_softcap=float(value("final_logit_softcapping", 0.0)),
        attn_scale=float(value("attention.scale", scaled_dim**-0.5)),
        embedding_scale=float(value("embedding_scale", 1.0)),
        residual_scale=float(value("residual_scale", 1.0)),
        logit_scale=float(value("logit_scale", 1.0)),
        n_experts_used=int(value("expert_used_count", 0)),
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


def _rotate(x: Floats, angles: Floats, stretch: float, halves: bool) -> Floats:
    """Rope on x (n, heads, head_dim) by angles (n, n_rot / 2); rotated values are stretched.

    Pair i is made of values 2i and 2i + 1, or with `halves` of i and i + n_rot / 2; values from n_rot on stay.
    """
    n_rot = 2 * angles.shape[1]
    first = slice(0, n_rot // 2) if halves else slice(0, n_rot, 2)
    second = slice(n_rot // 2, n_rot) if halves else slice(1, n_rot, 2)
    cos, sin = stretch * np.cos(angles)[:, None, :], stretch * np.sin(angles)[:, None, :]
    rotated: Floats = x.copy()
    rotated[..., first] = x[..., first] * cos - x[..., second] * sin
    rotated[..., second] = x[..., first] * sin + x[..., second] * cos
    return rotated


def _softcap(x: Floats, cap: float) -> Floats:
    return cap * np.tanh(x / cap) if cap else x


def _softmax(x: Floats) -> Floats:
    weights: Floats = np.exp(x - x.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights


def _attention(
    q: Floats, k: Floats, v: Floats, window: int, scale: float, softcap: float
) -> tuple[Floats, list[Floats]]:
    """Causal, grouped heads: q (n, n_heads, head_dim), k and v (n, n_kv_heads, head_dim) -> as q, and each head's
    probabilities (n queries, n positions).

    window: how many positions a query sees, itself included; 0 = all before it.
    """
    n, n_heads, _ = q.shape
    position = np.arange(n)
    distance = position[:, None] - position[None, :]
    hidden = (distance < 0) | ((distance >= window) if window else False)
    out: Floats = np.empty_like(q)
    probabilities: list[Floats] = []
    for head in range(n_heads):
        kv_head = head // (n_heads // k.shape[1])
        scores = _softcap(q[:, head] @ k[:, kv_head].T * scale, softcap)
        scores[hidden] = -np.inf
        probabilities.append(_softmax(scores))
        out[:, head] = probabilities[-1] @ v[:, kv_head]
    return out, probabilities


def _yarn_part(n_rot: int, base: float, n_ctx: int, turns: tuple[float, float]) -> Floats:
    """How much of each pair is interpolated (arXiv 2309.00071): none that turns more often in n_ctx tokens than the
    first of turns, all below the second."""

    def pair(turns: float) -> float:
        return float(n_rot * np.log(n_ctx / (turns * 2 * np.pi)) / (2 * np.log(base)))

    low, high = max(np.floor(pair(turns[0])), 0.0), min(np.ceil(pair(turns[1])), n_rot - 1.0)
    part: Floats = np.clip((np.arange(n_rot // 2) - low) / max(high - low, 0.001), 0.0, 1.0)
    return part


def _short_convolution(bcx: Floats, kernels: Floats) -> Floats:
    """Causal, each channel by itself, gated before and after: bcx (n, 3 channels), kernels (channels, taps), whose last
    tap is the token itself -> (n, channels)."""
    b, c, x = np.split(bcx, 3, axis=1)
    n_taps = kernels.shape[1]
    padded = np.concatenate([np.zeros((n_taps - 1, x.shape[1])), b * x])
    mixed: Floats = np.zeros_like(x)
    for tap in range(n_taps):
        mixed += padded[tap : tap + len(x)] * kernels[:, tap]
    return c * mixed


class Reference:
    """One model file; __call__ evaluates a text. Weights are decoded when used and not kept, to stay small."""

    def __init__(self, path: str | Path) -> None:
        reader = gguf.GGUFReader(path)
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.arch, self.config = _read_config(reader)
        self._seen: list[Floats] | None = None

    def _weight(self, name: str) -> Floats:
        tensor = self._tensors[name]
        return np.asarray(gguf.quants.dequantize(tensor.data, tensor.tensor_type), dtype=np.float64)

    def _scaled(self, name: str) -> Floats:
        """A matrix times its factor, or a stack of matrices each times its own."""
        weight = self._weight(name + ".weight")
        return weight * self._factors(name).reshape(-1, *[1] * (weight.ndim - 1))

    def _factors(self, name: str) -> Floats:
        return self._weight(name + ".scale") if name + ".scale" in self._tensors else np.ones(1)

    def _embed(self, ids: npt.NDArray[np.int64]) -> Floats:
        tensor = self._tensors["token_embd.weight"]
        rows = np.asarray(gguf.quants.dequantize(tensor.data[ids], tensor.tensor_type), dtype=np.float64)
        rows = rows * self._factors("token_embd")
        return rows * (np.sqrt(rows.shape[1]) if self.arch.scale_embedding else self.config.embedding_scale)

    def _linear(self, x: Floats, name: str) -> Floats:
        y: Floats = x @ self._scaled(name).T
        return y + self._weight(name + ".bias") if name + ".bias" in self._tensors else y

    def _rotations(self, n: int, sliding: bool) -> tuple[Floats, float]:
        """Position times frequency (n, n_rot / 2), and how far rotated values are stretched."""
        config = self.config
        base = config.sliding_base if sliding else config.rope_base
        frequencies: Floats = base ** -(np.arange(0, config.n_rot, 2) / config.n_rot)
        stretch = 1.0
        if "rope_freqs.weight" in self._tensors:
            frequencies = frequencies / self._weight("rope_freqs.weight")
        if config.rope_scaling == "longrope":
            kind = "long" if n > config.n_ctx_original else "short"
            frequencies = frequencies / self._weight(f"rope_factors_{kind}.weight")
            stretch = np.sqrt(1 + np.log(config.n_ctx / config.n_ctx_original) / np.log(config.n_ctx_original))
        elif config.rope_scaling != "none" and not (sliding and not self.arch.scale_sliding):
            part: Floats = np.ones(config.n_rot // 2)
            if config.rope_scaling == "yarn":
                part = _yarn_part(config.n_rot, base, config.n_ctx_original, config.yarn_turns)
                stretch = 0.1 * np.log(config.rope_scale) + 1.0
            frequencies = frequencies * (part / config.rope_scale + 1 - part)
        if config.stretch and not (sliding and not self.arch.scale_sliding):
            stretch = stretch * config.stretch if config.rope_scaling == "yarn" else config.stretch
        return np.arange(n)[:, None] * frequencies[None, :], float(stretch)

    def _qkv(self, x: Floats, prefix: str) -> list[Floats]:
        config = self.config
        if prefix + "attn_qkv.weight" in self._tensors:
            n_q, n_kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
            qkv = np.split(self._linear(x, prefix + "attn_qkv"), [n_q, n_q + n_kv], axis=1)
        else:
            qkv = [self._linear(x, prefix + name) for name in ("attn_q", "attn_k", "attn_v")]
        if self.arch.qk_norm == "token":
            qkv[:2] = [self._norm(qkv[0], prefix + "attn_q_norm"), self._norm(qkv[1], prefix + "attn_k_norm")]
        heads = [part.reshape(len(x), -1, config.head_dim) for part in qkv]
        if self.arch.qk_norm == "head":
            heads[:2] = [self._norm(heads[0], prefix + "attn_q_norm"), self._norm(heads[1], prefix + "attn_k_norm")]
        return heads

    def _attend(self, x: Floats, index: int) -> Floats:
        config = self.config
        sliding = config.slides[index]
        q, k, v = self._qkv(x, f"blk.{index}.")
        if config.has_rope and (not self.arch.no_rope_period or (index + 1) % self.arch.no_rope_period):
            angles, stretch = self._rotations(len(x), sliding)
            q, k = (_rotate(part, angles, stretch, self.arch.halves) for part in (q, k))
        window = config.window if sliding else 0
        mixed, probabilities = _attention(q, k, v, window, config.attn_scale, config.attn_softcap)
        if self._seen is not None:
            self._seen.append(np.stack(probabilities))
        return self._linear(mixed.reshape(len(x), -1), f"blk.{index}.attn_output")

    def _convolve(self, x: Floats, prefix: str) -> Floats:
        bcx = self._linear(x, prefix + "in_proj")
        return self._linear(_short_convolution(bcx, self._weight(prefix + "conv.weight")), prefix + "out_proj")

    def _mix(self, x: Floats, index: int) -> Floats:
        prefix = f"blk.{index}.shortconv."
        return self._convolve(x, prefix) if prefix + "conv.weight" in self._tensors else self._attend(x, index)

    def _feed_forward(self, x: Floats, prefix: str) -> Floats:
        activate = _gelu_tanh if self.arch.gelu else _silu
        if prefix + "ffn_gate_inp.weight" in self._tensors:
            return self._experts(x, prefix)
        if prefix + "ffn_gate.weight" in self._tensors:
            gate, up = self._linear(x, prefix + "ffn_gate"), self._linear(x, prefix + "ffn_up")
        else:
            gate, up = np.split(self._linear(x, prefix + "ffn_up"), 2, axis=1)
        return self._linear(activate(gate) * up, prefix + "ffn_down")

    def _experts(self, x: Floats, prefix: str) -> Floats:
        logits = self._linear(x, prefix + "ffn_gate_inp")
        gate, up, down = (self._scaled(f"{prefix}ffn_{name}_exps") for name in ("gate", "up", "down"))
        out: Floats = np.zeros_like(x)
        for token, row in enumerate(x):
            chosen = np.argsort(-logits[token], kind="stable")[: self.config.n_experts_used]
            for expert, weight in zip(chosen, _softmax(logits[token, chosen]), strict=True):
                out[token] += weight * (down[expert] @ (_silu(gate[expert] @ row) * (up[expert] @ row)))
        return out

    def _layer(self, x: Floats, index: int) -> Floats:
        prefix, before = f"blk.{index}.", self.arch.norms != "output"
        branch = self._mix(self._norm(x, prefix + "attn_norm") if before else x, index)
        if self.arch.norms != "input":
            branch = self._norm(branch, prefix + "post_attention_norm")
        x = x + branch * self.config.residual_scale
        branch = self._feed_forward(self._norm(x, prefix + "ffn_norm") if before else x, prefix)
        if self.arch.norms != "input":
            branch = self._norm(branch, prefix + "post_ffw_norm")
        return x + branch * self.config.residual_scale

    def _norm(self, x: Floats, name: str) -> Floats:
        return _rms_norm(x, self._weight(name + ".weight"), self.config.norm_eps)

    def _logits(self, x: Floats) -> Floats:
        """In slices of the vocabulary, so that a large head is never decoded whole."""
        name = "output" if "output.weight" in self._tensors else "token_embd"
        head, factor = self._tensors[name + ".weight"], self._factors(name)
        slices = []
        for start in range(0, len(head.data), 16384):
            rows = gguf.quants.dequantize(head.data[start : start + 16384], head.tensor_type)
            slices.append(x @ np.asarray(rows, dtype=np.float64).T)
        return _softcap(np.concatenate(slices, axis=1) * factor / self.config.logit_scale, self.config.final_softcap)

    def __call__(self, ids: Sequence[int]) -> Floats:
        """Logits (n, n_vocab) after each of the n ids."""
        x = self._embed(np.asarray(ids, dtype=np.int64))
        for index in range(self.config.n_layers):
            x = self._layer(x, index)
        # lfm2's converter has another name for this norm; Ollama's does not.
        name = "token_embd_norm" if "token_embd_norm.weight" in self._tensors else "output_norm"
        return self._logits(self._norm(x, name))

    def attention(self, ids: Sequence[int]) -> Floats:
        """Probabilities (n_layers that attend, n_heads, n queries, n positions); for short texts."""
        self._seen = []
        self(ids)
        seen, self._seen = np.stack(self._seen), None
        return seen


def forward(path: str | Path, ids: Sequence[int]) -> Floats:
    """Logits (n, n_vocab) of the model file after each of the n ids, float64.

    Raises ValueError for an architecture or a rope scaling that has no reference.
    """
    return Reference(path)(ids)
