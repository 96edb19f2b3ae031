"""Writes a small GGUF model with random weights and a working tokenizer: for tests, fuzzing and trying things out.

    python tools/models/make_tiny_gguf.py tiny.gguf --arch gemma3 --weight-type Q8_0

The weights are drawn so that activations keep their size from layer to layer, attention looks at positions, and the
logits differ from each other (standard deviation about 2). The same options give the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import gguf
import numpy as np
import numpy.typing as npt

__all__ = ["CHATML", "make_tiny"]

# fmt: off
Arch = Literal[
    "llama", "qwen2", "qwen3", "qwen3moe", "gemma2", "gemma3", "phi3", "olmo2", "smollm3", "granite", "lfm2",
]
# fmt: on
RopeScaling = Literal["linear", "yarn", "longrope"]
VocabKind = Literal["bpe", "spm"]
# fmt: off
WeightType = Literal[
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "MXFP4",
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "NVFP4",
]
# fmt: on
Floats = npt.NDArray[np.float32]

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class _Style(NamedTuple):
    """What an architecture's files hold, beyond a plain Llama's."""

    spm: bool = False  # vocabulary, where none is asked for
    n_layers: int = 2
    qkv_bias: bool = False
    norms: Literal["input", "output", "both"] = "input"
    qk_norm: Literal["", "head", "token"] = ""
    fused: bool = False  # q, k, v in one tensor, gate and up in another
    window: bool = False
    experts: bool = False
    rope_base: float = 10000.0
    norm_eps: float = 1e-5
    key_length: bool = False  # always written
    attention_period: int = 1  # layer i attends if (i + 1) is a multiple, the others have a short convolution
    output_norm: str = "output_norm"


_STYLES: dict[str, _Style] = {
    "llama": _Style(),
    "qwen2": _Style(qkv_bias=True, rope_base=1000000.0, norm_eps=1e-6),
    "qwen3": _Style(qk_norm="head", rope_base=1000000.0, norm_eps=1e-6, key_length=True),
    "qwen3moe": _Style(qk_norm="head", experts=True, rope_base=1000000.0, norm_eps=1e-6, key_length=True),
    "gemma2": _Style(spm=True, n_layers=4, norms="both", window=True, norm_eps=1e-6, key_length=True),
    # Six sliding and global, then one sliding.
    "gemma3": _Style(
        spm=True,
        n_layers=7,
        norms="both",
        qk_norm="head",
        window=True,
        rope_base=1000000.0,
        norm_eps=1e-6,
        key_length=True,
    ),
    "phi3": _Style(fused=True),
    "olmo2": _Style(norms="output", qk_norm="token", rope_base=500000.0, norm_eps=1e-6),
    "smollm3": _Style(n_layers=4, rope_base=2000000.0, norm_eps=1e-6),  # the fourth without rope
    "granite": _Style(),
    # Two convolutions, attention, then one convolution.
    "lfm2": _Style(n_layers=4, qk_norm="head", rope_base=1000000.0, attention_period=3, output_norm="token_embd_norm"),
}
# Granite's multipliers, far enough from 1 to be missed: embedding, residual, attention, logits.
_MULTIPLIERS = {"embedding_scale": 3.0, "residual_scale": 0.4, "attention.scale": 0.2, "logit_scale": 1.7}

# Token types of the file format.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 1, 2, 3, 4, 6

_BPE_MERGES = (
    "h e|l l|he ll|hell o|Ġ t|Ġ s|i n|e r|o n|a n|t h|o r|r e|Ġ a|Ġt he|in g|an d|Ġ and|w or|l d|wor ld|"
    "Ġ world|Ġ hello|Ġ Ġ|ĠĠ ĠĠ|Ċ Ċ|H e|He ll|Hell o|s t|o u|Ġ c|Ġc a|Ġca t|Ġs a|Ġsa t|Ġ on|Ġ m|Ġm a|Ġma t"
)
# Best first: each gets a score one lower than the one before.
_SPM_PIECES = (
    "▁t|he|an|in|er|▁the|▁a|▁s|on|re|or|th|ing|ll|hell|hello|▁hello|ld|wor|world|▁world|and|▁and|▁▁|▁▁▁▁|▁c|at|▁cat|"
    "▁sat|▁on|▁m|▁mat|ou|st|He|llo|Hello"
)
_SPM_CHARS = "▁etaoinshrdlucmfwypvbgkjqxzETAOINSHRDLUCMFWYPVBGKJQXZ0123456789.,!?'\"-:;()<>|_/\n=+*#äöüé"


class _Vocab(NamedTuple):
    model: str
    tokens: list[bytes]
    types: list[int]
    scores: list[float]  # empty for BPE
    merges: list[str]  # empty for SPM
    bos: int
    eos: int
    unknown: int


def _byte_characters() -> list[str]:
    """The character that byte-level BPE writes for each byte: itself where printable, else from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(shifted)) for byte in range(256)]


def _bpe_vocab() -> _Vocab:
    merges = _BPE_MERGES.split("|")
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*control, *_byte_characters(), *(merge.replace(" ", "") for merge in merges), "<tool>"]
    types = [_CONTROL] * len(control) + [_NORMAL] * (256 + len(merges)) + [_USER_DEFINED]
    return _Vocab("gpt2", [token.encode() for token in tokens], types, [], merges, bos=1, eos=2, unknown=0)


def _spm_vocab() -> _Vocab:
    control = ["<pad>", "<eos>", "<bos>", "<unk>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]
    pieces = [*_SPM_PIECES.split("|"), *_SPM_CHARS]
    tokens = [*control, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, "<tool>"]
    types = [_CONTROL] * len(control) + [_BYTE] * 256 + [_NORMAL] * len(pieces) + [_USER_DEFINED]
    types[3] = _UNKNOWN
    scores = [0.0] * (len(control) + 256) + [-float(rank) for rank in range(len(pieces))] + [0.0]
    return _Vocab("llama", [token.encode() for token in tokens], types, scores, [], bos=2, eos=1, unknown=3)


def _write_vocab(writer: gguf.GGUFWriter, vocab: _Vocab, arch: Arch) -> None:
    writer.add_tokenizer_model(vocab.model)
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocab.tokens)
    writer.add_token_types(vocab.types)
    if vocab.scores:
        writer.add_token_scores(vocab.scores)
        writer.add_add_space_prefix(not arch.startswith("gemma"))
    if vocab.merges:
        writer.add_token_merges(vocab.merges)
    writer.add_bos_token_id(vocab.bos)
    writer.add_eos_token_id(vocab.eos)
    writer.add_unk_token_id(vocab.unknown)
    writer.add_add_bos_token(vocab.model == "llama")


# ---- weights ---------------------------------------------------------------------------------------------------------

# Of the types that the gguf package decodes but does not encode: where in a block the half floats d and dmin lie, and
# the mean of the quants that dmin has to take away.
_RANDOM_BLOCKS: dict[str, tuple[int, int | None, float]] = {
    "Q2_K": (80, 82, 1.5),
    "Q3_K": (108, None, 0.0),
    "Q4_K": (0, 2, 7.5),
    "Q5_K": (0, 2, 15.5),
    "Q6_K": (208, None, 0.0),
    "IQ1_S": (0, None, 0.0),
    "IQ1_M": (-1, None, 0.0),  # in four pieces
    "IQ2_XXS": (0, None, 0.0),
    "IQ2_XS": (0, None, 0.0),
    "IQ2_S": (0, None, 0.0),
    "IQ3_XXS": (0, None, 0.0),
    "IQ3_S": (0, None, 0.0),
    "IQ4_NL": (0, None, 0.0),
    "IQ4_XS": (0, None, 0.0),
    "TQ1_0": (52, None, 0.0),
    "TQ2_0": (64, None, 0.0),
}


def _random_blocks(rng: np.random.Generator, name: str, n_rows: int, n_cols: int, std: float) -> npt.NDArray[np.uint8]:
    """Random valid blocks that decode to about the standard deviation: (n_rows, bytes of a row)."""
    d_at, dmin_at, quant_mean = _RANDOM_BLOCKS[name]
    kind = gguf.GGMLQuantizationType[name]
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, size=(n_rows * n_cols // block_len, block_bytes), dtype=np.uint8)

    def set_scale(scale: float) -> None:
        half = np.array([scale], dtype="<f2")
        if d_at < 0:  # a nibble on top of each of the last four words, the lowest first
            nibbles = half.view(np.uint16) >> np.array([0, 4, 8, 12], dtype=np.uint16) & 15
            blocks[:, -7::2] = blocks[:, -7::2] & 15 | nibbles.astype(np.uint8) << 4
        else:
            blocks[:, d_at : d_at + 2] = half.view(np.uint8)
        if dmin_at is not None:
            blocks[:, dmin_at : dmin_at + 2] = np.array([scale * quant_mean], dtype="<f2").view(np.uint8)

    set_scale(1.0)
    set_scale(std / float(gguf.quants.dequantize(blocks, kind).std()))
    return blocks.reshape(n_rows, -1)


def _random_nvfp4(rng: np.random.Generator, n_rows: int, n_cols: int, std: float) -> npt.NDArray[np.uint8]:
    """The same for NVFP4, whose four scales a block are E4M3 numbers: some of the eight nearest to the right one."""
    blocks = rng.integers(0, 256, size=(n_rows * n_cols // 64, 36), dtype=np.uint8)
    blocks[:, :4] = 0x38  # 1.0
    unit = float(gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.NVFP4).std())
    code = int(np.clip(8 * (np.log2(std / unit) + 7), 4, 0x7A))
    blocks[:, :4] = rng.integers(code - 4, code + 4, size=(len(blocks), 4))
    return blocks.reshape(n_rows, -1)


class _Weights:
    """Draws tensors and adds them to a file."""

    def __init__(self, writer: gguf.GGUFWriter, weight_type: WeightType, seed: int, factors: bool) -> None:
        self._writer = writer
        self._type = weight_type
        self._rng = np.random.default_rng(seed)
        self._factors = np.random.default_rng(seed + 1) if factors else None

    def matrix(self, name: str, n_rows: int, n_cols: int, gain: float = 1.0, n_stacked: int = 0) -> None:
        """(n_rows, n_cols) for inputs of n_cols values of size 1: outputs of size gain; n_stacked: how many of them."""
        std = gain / n_cols**0.5 / self._factor(name, n_stacked)
        kind = gguf.GGMLQuantizationType[self._type]
        block_len = gguf.GGML_QUANT_SIZES[kind][0]
        if n_cols % block_len != 0:
            raise ValueError(f"{name} has rows of {n_cols} values: {self._type} needs a multiple of {block_len}")
        if self._type in _RANDOM_BLOCKS or self._type == "NVFP4":
            n_packed = max(n_stacked, 1) * n_rows
            if self._type == "NVFP4":
                packed = _random_nvfp4(self._rng, n_packed, n_cols, std)
            else:
                packed = _random_blocks(self._rng, self._type, n_packed, n_cols, std)
            if n_stacked:
                packed = packed.reshape(n_stacked, n_rows, -1)
            self._writer.add_tensor(name, packed, raw_dtype=kind)
            return
        shape = (n_stacked, n_rows, n_cols) if n_stacked else (n_rows, n_cols)
        values = self._rng.normal(0.0, std, size=shape).astype(np.float32)
        if self._type in ("F32", "F16"):
            self._writer.add_tensor(name, values.astype(np.float32 if self._type == "F32" else np.float16))
        else:
            self._writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    def _factor(self, name: str, n_stacked: int) -> float:
        """Adds the factors of a matrix, where the file has them, and returns about what they are."""
        if self._factors is None or name == "token_embd.weight" or "ffn_gate_inp" in name:
            return 1.0
        middle, stem = 10 ** self._factors.uniform(-2.0, 0.5), name.removesuffix("weight")
        each = middle * self._factors.uniform(0.7, 1.3, size=n_stacked or 1)
        self._writer.add_tensor(stem + "scale", each.astype(np.float32))
        self._writer.add_tensor(stem + "input_scale", 1.0 / each.astype(np.float32))
        return float(middle)

    def kernels(self, name: str, n_channels: int, n_taps: int) -> None:
        """Of a convolution of each channel by itself; F32 whatever the type of matrices."""
        values = self._rng.normal(0.0, n_taps**-0.5, size=(n_channels, n_taps))
        self._writer.add_tensor(name, values.astype(np.float32))

    def vector(self, name: str, n: int, mean: float, std: float) -> None:
        self._writer.add_tensor(name, self._rng.normal(mean, std, size=n).astype(np.float32))


def _add_short_convolution(weights: _Weights, prefix: str, sizes: _Sizes) -> None:
    weights.matrix(prefix + "shortconv.in_proj.weight", 3 * sizes.n_embd, sizes.n_embd)
    weights.kernels(prefix + "shortconv.conv.weight", sizes.n_embd, sizes.n_taps)
    weights.matrix(prefix + "shortconv.out_proj.weight", sizes.n_embd, sizes.n_embd, 1.5)


def _add_attention(weights: _Weights, prefix: str, style: _Style, sizes: _Sizes, biases: bool) -> None:
    n_q, n_kv = sizes.n_heads * sizes.head_dim, sizes.n_kv_heads * sizes.head_dim
    if style.fused:
        weights.matrix(prefix + "attn_qkv.weight", n_q + 2 * n_kv, sizes.n_embd, 1.3)
    else:
        weights.matrix(prefix + "attn_q.weight", n_q, sizes.n_embd, 1.3)
        weights.matrix(prefix + "attn_k.weight", n_kv, sizes.n_embd, 1.3)
        weights.matrix(prefix + "attn_v.weight", n_kv, sizes.n_embd)
    weights.matrix(prefix + "attn_output.weight", sizes.n_embd, n_q, 1.5)
    if biases or style.qkv_bias:
        for name, n in (("attn_q", n_q), ("attn_k", n_kv), ("attn_v", n_kv)):
            weights.vector(prefix + name + ".bias", n, 0.0, 0.3)
    if biases:
        weights.vector(prefix + "attn_output.bias", sizes.n_embd, 0.0, 0.3)
    if style.qk_norm:
        whole = style.qk_norm == "token"
        weights.vector(prefix + "attn_q_norm.weight", n_q if whole else sizes.head_dim, 1.3, 0.1)
        weights.vector(prefix + "attn_k_norm.weight", n_kv if whole else sizes.head_dim, 1.3, 0.1)


def _add_feed_forward(weights: _Weights, prefix: str, style: _Style, sizes: _Sizes, biases: bool) -> None:
    if sizes.n_experts:
        weights.matrix(prefix + "ffn_gate_inp.weight", sizes.n_experts, sizes.n_embd, 2.0)
        weights.matrix(prefix + "ffn_gate_exps.weight", sizes.n_ff_expert, sizes.n_embd, n_stacked=sizes.n_experts)
        weights.matrix(prefix + "ffn_up_exps.weight", sizes.n_ff_expert, sizes.n_embd, n_stacked=sizes.n_experts)
        weights.matrix(prefix + "ffn_down_exps.weight", sizes.n_embd, sizes.n_ff_expert, 1.5, sizes.n_experts)
        return
    if style.fused:
        weights.matrix(prefix + "ffn_up.weight", 2 * sizes.n_ff, sizes.n_embd)
    else:
        weights.matrix(prefix + "ffn_gate.weight", sizes.n_ff, sizes.n_embd)
        weights.matrix(prefix + "ffn_up.weight", sizes.n_ff, sizes.n_embd)
    weights.matrix(prefix + "ffn_down.weight", sizes.n_embd, sizes.n_ff, 1.5)
    if biases:
        for name, n in (("ffn_gate", sizes.n_ff), ("ffn_up", sizes.n_ff), ("ffn_down", sizes.n_embd)):
            weights.vector(prefix + name + ".bias", n, 0.0, 0.3)


def _add_layer(weights: _Weights, style: _Style, index: int, sizes: _Sizes, biases: bool) -> None:
    prefix = f"blk.{index}."
    if style.norms != "output":
        weights.vector(prefix + "attn_norm.weight", sizes.n_embd, 1.0, 0.1)
        weights.vector(prefix + "ffn_norm.weight", sizes.n_embd, 1.0, 0.1)
    if style.norms != "input":
        # Branches outweigh a scaled embedding, or every token would predict itself.
        gain = sizes.n_embd**0.5 / 4 if style.norms == "both" else 1.0
        weights.vector(prefix + "post_attention_norm.weight", sizes.n_embd, gain, 0.1 * gain)
        weights.vector(prefix + "post_ffw_norm.weight", sizes.n_embd, gain, 0.1 * gain)
    if sizes.attends[index]:
        _add_attention(weights, prefix, style, sizes, biases)
    else:
        _add_short_convolution(weights, prefix, sizes)
    _add_feed_forward(weights, prefix, style, sizes, biases)


# ---- the file --------------------------------------------------------------------------------------------------------


class _Sizes(NamedTuple):
    n_layers: int
    n_embd: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    n_ff: int
    n_experts: int
    n_ff_expert: int
    attends: tuple[bool, ...]  # for each layer; the others have a short convolution
    n_taps: int  # of a short convolution


class _Rope(NamedTuple):
    scaling: RopeScaling | None
    scale: float
    n_ctx_original: int
    n_rot: int | None


def _write_rope(writer: gguf.GGUFWriter, arch: Arch, base: float, rope: _Rope, sizes: _Sizes) -> None:
    writer.add_rope_freq_base(base)
    if rope.n_rot or arch == "llama":
        writer.add_rope_dimension_count(rope.n_rot or sizes.head_dim)
    if rope.scaling == "longrope":
        writer.add_rope_scaling_orig_ctx_len(rope.n_ctx_original)
        pairs = np.arange((rope.n_rot or sizes.head_dim) // 2, dtype=np.float32)
        writer.add_tensor("rope_factors_short.weight", 1.0 + 0.02 * pairs)
        writer.add_tensor("rope_factors_long.weight", 1.5 + 0.5 * pairs)
    elif rope.scale != 1.0:
        kind = gguf.RopeScalingType.YARN if rope.scaling == "yarn" else gguf.RopeScalingType.LINEAR
        writer.add_rope_scaling_type(kind)
        writer.add_rope_scaling_factor(rope.scale)
        if rope.scaling == "yarn":
            writer.add_rope_scaling_orig_ctx_len(rope.n_ctx_original)


def _write_hyperparameters(
    writer: gguf.GGUFWriter, arch: Arch, sizes: _Sizes, n_ctx: int, window: int | None, rope: _Rope
) -> None:
    style = _STYLES[arch]
    writer.add_name(f"tiny {arch}")
    writer.add_context_length(n_ctx)
    writer.add_embedding_length(sizes.n_embd)
    writer.add_block_count(sizes.n_layers)
    writer.add_feed_forward_length(sizes.n_ff)
    writer.add_head_count(sizes.n_heads)
    if style.attention_period == 1:
        writer.add_head_count_kv(sizes.n_kv_heads)
    else:  # as llama.cpp's converter says which layers attend
        writer.add_head_count_kv([sizes.n_kv_heads if attends else 0 for attends in sizes.attends])
        writer.add_shortconv_l_cache(sizes.n_taps)
    writer.add_layer_norm_rms_eps(style.norm_eps)
    _write_rope(writer, arch, style.rope_base, rope, sizes)
    if style.key_length or sizes.head_dim * sizes.n_heads != sizes.n_embd:
        writer.add_key_length(sizes.head_dim)
        writer.add_value_length(sizes.head_dim)
    if window is not None:
        writer.add_sliding_window(window)
    if arch == "gemma2":  # small enough to bend what the real 50 and 30 would bend in a real model
        writer.add_attn_logit_softcapping(2.0)
        writer.add_final_logit_softcapping(3.0)
    if arch == "granite":
        for key, value in _MULTIPLIERS.items():
            writer.add_float32(f"{arch}.{key}", value)
    if sizes.n_experts:
        writer.add_expert_count(sizes.n_experts)
        writer.add_expert_used_count(2)
        if style.experts:
            writer.add_expert_feed_forward_length(sizes.n_ff_expert)


def make_tiny(
    path: str | Path,
    arch: Arch = "llama",
    *,
    n_layers: int | None = None,
    n_embd: int | None = None,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    head_dim: int | None = None,
    n_ff: int | None = None,
    vocab: VocabKind | None = None,
    n_ctx: int = 512,
    window: int | None = None,
    n_experts: int = 0,
    weight_type: WeightType = "F32",
    tied: bool = True,
    rope_freqs: bool = False,
    rope_scale: float = 1.0,
    rope_scaling: RopeScaling | None = None,
    n_ctx_original: int = 64,
    n_rot: int | None = None,
    attention_layers: Sequence[int] | None = None,
    n_taps: int = 3,
    biases: bool = False,
    factors: bool = False,
    chat_template: str | None = CHATML,
    alignment: int = 32,
    seed: int = 0,
) -> Path:
    """Writes a model of the given sizes to `path` and returns it.

    n_layers: None = enough for one period of layer kinds. n_embd: None = 64, or 256 where the weight type has blocks of
    256. head_dim: None = n_embd / n_heads. n_ff: None = 2 n_embd. vocab: None = what is usual for the architecture.
    window: tokens that sliding layers see, None = 16 for gemma2 and gemma3 and no sliding layers for others; phi3 and
    olmo2 can have them. n_experts: llama and qwen3moe, of which each token uses 2 (qwen3moe: 0 = 4). weight_type: of
    all matrices, the embedding included; vectors are F32. tied: no output matrix of its own. rope_freqs: llama only, a
    tensor of factors that divide the rotation frequencies. rope_scale: factor of rope_scaling; None = linear.
    n_ctx_original: yarn's and longrope's (phi3 only) original context. n_rot: values of a head that rope rotates, None
    = all. attention_layers, n_taps: lfm2 only, which layers attend (None = every third) and how many tokens the
    convolutions of the others see. biases: llama only, on all products of a layer. factors: tensors .scale and
    .input_scale beside all matrices but the embedding and routers, as NVFP4 files have them. chat_template: None = the
    file has none.

    Raises ValueError for sizes that do not fit together.
    """
    style = _STYLES[arch]
    if arch != "llama" and (rope_freqs or biases):
        raise ValueError("rope_freqs and biases are there for arch='llama' only")
    if n_experts and not (arch == "llama" or style.experts):
        raise ValueError(f"n_experts is there for llama and qwen3moe, not for {arch}")
    if window is not None and not (style.window or arch in ("phi3", "olmo2")):
        raise ValueError(f"{arch} has no sliding layers")
    if rope_scaling == "longrope" and arch != "phi3":
        raise ValueError("longrope is there for arch='phi3' only")
    if style.attention_period == 1 and (attention_layers is not None or n_taps != 3):
        raise ValueError(f"attention_layers and n_taps are there for arch='lfm2' only, not for {arch}")
    if n_heads % n_kv_heads != 0:
        raise ValueError(f"n_heads={n_heads} is no multiple of n_kv_heads={n_kv_heads}")
    n_embd = n_embd or max(64, gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[weight_type]][0])
    head_dim = head_dim or n_embd // n_heads
    if head_dim % 2 != 0:
        raise ValueError(f"head_dim={head_dim} is odd; rope rotates pairs")
    n_ff = n_ff or 2 * n_embd
    n_layers = n_layers or style.n_layers
    if attention_layers is None:
        attention_layers = range(style.attention_period - 1, n_layers, style.attention_period)
    sizes = _Sizes(
        n_layers=n_layers,
        n_embd=n_embd,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        n_ff=n_ff,
        n_experts=n_experts or (4 if style.experts else 0),
        n_ff_expert=n_embd if style.experts else n_ff,
        attends=tuple(index in attention_layers for index in range(n_layers)),
        n_taps=n_taps,
    )
    words = _spm_vocab() if (vocab or ("spm" if style.spm else "bpe")) == "spm" else _bpe_vocab()
    writer = gguf.GGUFWriter(path, arch)
    if alignment != 32:
        writer.add_custom_alignment(alignment)
    rope = _Rope(rope_scaling, rope_scale, n_ctx_original, n_rot)
    _write_hyperparameters(writer, arch, sizes, n_ctx, 16 if style.window and window is None else window, rope)
    if arch == "lfm2":
        writer.add_vocab_size(len(words.tokens))
    _write_vocab(writer, words, arch)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    weights = _Weights(writer, weight_type, seed, factors)
    weights.matrix("token_embd.weight", len(words.tokens), n_embd, 2.0)
    if not tied:
        weights.matrix("output.weight", len(words.tokens), n_embd, 2.0)
    weights.vector(style.output_norm + ".weight", n_embd, 1.0, 0.1)
    if rope_freqs:
        divisors = np.linspace(1.0, 4.0, head_dim // 2, dtype=np.float32)
        writer.add_tensor("rope_freqs.weight", divisors)
    for index in range(sizes.n_layers):
        _add_layer(weights, style, index, sizes, biases)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--arch", choices=get_args(Arch), default="llama")
    for name in ("n-layers", "n-embd", "head-dim", "n-ff"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("window", "n-rot"):
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--attention-layers", type=int, nargs="+")
    integers = (
        ("n-taps", 3),
        ("n-heads", 4),
        ("n-kv-heads", 2),
        ("n-ctx", 512),
        ("n-experts", 0),
        ("n-ctx-original", 64),
        ("seed", 0),
    )
    for name, default in integers:
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--vocab", choices=get_args(VocabKind))
    parser.add_argument("--weight-type", choices=get_args(WeightType), default="F32")
    parser.add_argument("--rope-scale", type=float, default=1.0)
    parser.add_argument("--rope-scaling", choices=get_args(RopeScaling))
    parser.add_argument("--untied", dest="tied", action="store_false", help="an output matrix of its own")
    parser.add_argument("--rope-freqs", action="store_true")
    parser.add_argument("--biases", action="store_true")
    parser.add_argument("--factors", action="store_true")
    parser.add_argument("--no-template", dest="chat_template", action="store_const", const=None, default=CHATML)
    try:
        path = make_tiny(**vars(parser.parse_args(arguments)))
    except ValueError as error:
        parser.error(str(error))
    print(f"{path}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
