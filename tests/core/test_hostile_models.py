"""Models whose hyperparameters, tensors or sizes lie: each refused in one line that names what is wrong, soon."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_copy import Tensors, Typed, copy_gguf
from make_tiny_gguf import make_tiny

from pylogquant import GGUFFile, Model
from pylogquant.errors import LogQuantError, ModelFormatError
from pylogquant.session import Sampler, SamplingOptions

U32, I32, F32, STRING = (getattr(gguf.GGUFValueType, name) for name in ("UINT32", "INT32", "FLOAT32", "STRING"))
F32_TENSOR = gguf.GGMLQuantizationType.F32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


def tiny(folder: Path, arch: Any) -> Path:
    path = folder / f"{arch}.gguf"
    return path if path.exists() else make_tiny(path, arch=arch)


def refusal(path: Path) -> str:
    with pytest.raises(LogQuantError) as caught:
        Model(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.count(path.name) == 1
    return text


# Key without the architecture's name, value, what the message has to say.
BAD_KEYS: list[tuple[str, str, Typed | None, str]] = [
    ("llama", "block_count", Typed(0, U32), "'llama.block_count' is 0; it must be 1 to"),
    ("llama", "block_count", Typed(2**31, U32), "'llama.block_count' is 2147483648"),
    ("llama", "block_count", Typed(3, U32), "tensor 'blk.2.attn_norm.weight' is missing"),
    ("llama", "block_count", Typed(1, U32), "has 9 tensors that architecture llama does not use"),
    ("llama", "block_count", Typed(-2, I32), "llama.block_count"),
    ("llama", "block_count", Typed("two", STRING), "llama.block_count"),
    ("llama", "block_count", None, "'llama.block_count' is missing"),
    ("llama", "embedding_length", Typed(65, U32), "expected [65,"),
    ("llama", "embedding_length", Typed(2**32 - 1, U32), "'llama.embedding_length' is 4294967295"),
    ("llama", "feed_forward_length", Typed(127, U32), "expected [64, 127]"),
    ("llama", "attention.head_count", Typed(0, U32), "'llama.attention.head_count' is 0"),
    ("llama", "attention.head_count", Typed(5000, U32), "'llama.attention.head_count' is 5000"),
    ("llama", "attention.head_count", Typed(3, U32), "3 attention heads cannot share 2 KV heads"),
    ("llama", "attention.head_count", Typed(64, U32), "heads of 1 values"),
    ("llama", "attention.head_count_kv", Typed(0, U32), "'llama.attention.head_count_kv' is 0"),
    ("llama", "attention.head_count_kv", Typed(8, U32), "'llama.attention.head_count_kv' is 8; it must be 1 to 4"),
    ("llama", "attention.head_count_kv", Typed(1, U32), "expected [64, 16]"),
    ("llama", "attention.key_length", Typed(1 << 20, U32), "'llama.attention.key_length' is 1048576"),
    ("llama", "attention.value_length", Typed(8, U32), "only equal sizes are supported"),
    ("llama", "rope.dimension_count", Typed(15, U32), "must be even"),
    ("llama", "rope.dimension_count", Typed(18, U32), "'llama.rope.dimension_count' is 18; it must be 2 to 16"),
    ("llama", "rope.freq_base", Typed(0.0, F32), "'llama.rope.freq_base' must be a positive number"),
    ("llama", "rope.freq_base", Typed(float("nan"), F32), "'llama.rope.freq_base' must be a finite number"),
    ("llama", "rope.scaling.type", Typed("spiral", STRING), "rope scaling 'spiral' is not supported"),
    ("llama", "rope.scaling.type", Typed("longrope", STRING), "without the tensors rope_factors_short"),
    ("llama", "rope.scaling.factor", Typed(-1.0, F32), "'llama.rope.scaling.factor' must be a number from 0"),
    ("llama", "attention.layer_norm_rms_epsilon", Typed(1.5, F32), "must be between 0 and 1"),
    ("llama", "attention.layer_norm_rms_epsilon", Typed(float("nan"), F32), "must be between 0 and 1"),
    ("llama", "context_length", Typed(0, U32), "'llama.context_length' is 0"),
    ("llama", "expert_count", Typed(8, U32), "'llama.expert_used_count' is missing"),
    ("llama", "logit_scale", Typed(-1.0, F32), "'llama.logit_scale' must be a number from 0"),
    ("llama", "attn_logit_softcapping", Typed(30.0, F32), "does not run for llama"),
    ("gemma2", "attn_logit_softcapping", Typed(float("inf"), F32), "must be a finite number"),
    ("qwen3", "expert_count", Typed(4, U32), "does not run for qwen3"),
    ("qwen3moe", "expert_count", Typed(0, U32), "'qwen3moe.expert_count' is 0"),
    ("qwen3moe", "expert_count", Typed(5, U32), "expected [64, 5]"),
    ("qwen3moe", "expert_used_count", Typed(5, U32), "'qwen3moe.expert_used_count' is 5; it must be 1 to 4"),
    ("qwen3moe", "expert_feed_forward_length", Typed(65, U32), "expected [64, 65, 4]"),
    ("qwen3moe", "expert_gating_func", Typed(2, U32), "'qwen3moe.expert_gating_func', which this build does not run"),
    ("qwen3moe", "expert_shared_count", Typed(1, U32), "does not run for qwen3moe"),
    ("phi3", "attention.head_count_kv", Typed(4, U32), "expected [64, 192]"),
]


@pytest.mark.parametrize(("arch", "suffix", "value", "words"), BAD_KEYS)
def test_hyperparameters_are_checked(folder: Path, arch: str, suffix: str, value: Typed | None, words: str) -> None:
    path = folder / "bad.gguf"
    copy_gguf(tiny(folder, arch), path, keys={f"{arch}.{suffix}": value})
    assert words in refusal(path)


def test_an_unknown_architecture_lists_what_exists(folder: Path) -> None:
    path = folder / "bad.gguf"
    copy_gguf(tiny(folder, "llama"), path, keys={"general.architecture": Typed("mamba", STRING)})
    text = refusal(path)
    assert "architecture 'mamba' is not supported; this build runs: llama, gemma2" in text


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {other: tensor for other, tensor in tensors.items() if other != name}


def reshaped(name: str, *shape: int) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: (np.ones(shape, dtype=np.float32), F32_TENSOR)}


def filled(name: str, n: int, value: float) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: (np.full(n, value, dtype=np.float32), F32_TENSOR)}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without("output_norm.weight"), "tensor 'output_norm.weight' is missing"),
        (without("token_embd.weight"), "tensor 'token_embd.weight' is missing"),
        (without("blk.1.ffn_down.weight"), "tensor 'blk.1.ffn_down.weight' is missing"),
        (reshaped("blk.0.attn_q.weight", 64, 63), "'blk.0.attn_q.weight' has shape [63, 64, 1, 1], expected [64, 64]"),
        (reshaped("blk.0.attn_q.weight", 2, 64, 64), "'blk.0.attn_q.weight' has shape [64, 64, 2, 1]"),
        (reshaped("blk.0.attn_norm.weight", 63), "'blk.0.attn_norm.weight' has shape [63, 1, 1, 1], expected [64, 1]"),
        (reshaped("blk.0.attn_norm.weight", 1, 64), "'blk.0.attn_norm.weight' has shape"),
        (reshaped("token_embd.weight", 7, 64), "tokens but embeds 7"),
        (reshaped("blk.0.attn_k_norm.weight", 16), "does not use: 'blk.0.attn_k_norm.weight'"),
        (reshaped("blk.0.attn_q.scale", 2), "'blk.0.attn_q.scale' has shape [2, 1, 1, 1], expected [1, 1]"),
        (reshaped("blk.0.attn_q.scale", 1, 1), "'blk.0.attn_q.scale' has shape"),
        (filled("blk.0.attn_q.scale", 1, 0.0), "'blk.0.attn_q.scale' holds 0 at 0"),
        (filled("blk.0.attn_q.scale", 1, np.nan), "'blk.0.attn_q.scale' holds NaN or an infinity at 0: the file is"),
        (filled("blk.0.attn_norm.weight", 64, np.inf), "'blk.0.attn_norm.weight' holds NaN or an infinity at 0"),
        (filled("output_norm.weight", 64, np.nan), "'output_norm.weight' holds NaN or an infinity at 0"),
        (reshaped("rope_freqs.weight", 9), "'rope_freqs.weight' has shape [9, 1, 1, 1], expected [8, 1]"),
    ],
)
def test_tensors_are_checked(folder: Path, change: Callable[[Tensors], Tensors], words: str) -> None:
    path = folder / "bad.gguf"
    copy_gguf(tiny(folder, "llama"), path, tensors=change)
    assert words in refusal(path)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            ["v.blk.0.attn_q.weight", "v.blk.1.attn_q.weight", "mm.0.weight", "mm.1.weight"],
            "has 4 tensors that architecture llama does not use: 'v.blk.0.attn_q.weight', 'v.blk.1.attn_q.weight',"
            " 'mm.0.weight' and 1 more, of a vision encoder: the language part alone runs, from a file without them",
        ),
        (
            ["a.blk.0.attn_q.weight"],
            "has 1 tensor that architecture llama does not use: 'a.blk.0.attn_q.weight', of an",
        ),
        (["mm.input_projection.weight"], "of a projector of images or sound: the language part alone"),
        (["blk.2.nextn.eh_proj.weight"], "of a draft head, which guesses tokens ahead: the model alone runs"),
        (["blk.2.attn_norm.weight"], "of layers beyond the number that the file's keys give"),
        (["blk.0.attn_q.weight.lora_a"], "of a LoRA adapter: merge it"),
        (["blk.0.ffn_up_shexp.weight"], "of shared experts"),
        (["blk.0.ffn_gate_exps.weight"], "of experts, for which the file's keys give no number"),
        (["blk.0.ffn_gate.3.weight"], "of experts in a tensor each"),
        (["blk.0.attn_sinks.weight"], "attention sinks"),
        (["blk.0.ssm_in.weight"], "of state-space layers"),
        (["cls.weight"], "of a classifier"),
        (["blk.0.attn_x.scale", "blk.0.attn_x.input_scale"], "factors of weights that the file does not have"),
        (["output_norm.bias"], "biases that this architecture does not have"),
        (["something"], "does not use: 'something'"),
    ],
)
def test_unused_tensors_are_named(folder: Path, names: list[str], words: str) -> None:
    path = folder / "bad.gguf"
    vector = (np.ones(4, dtype=np.float32), F32_TENSOR)
    copy_gguf(tiny(folder, "llama"), path, tensors=lambda t: {**t, **dict.fromkeys(names, vector)})
    text = refusal(path)
    assert text.endswith(words) or words in text


@pytest.mark.parametrize(
    ("name", "place", "value", "words"),
    [
        ("blk.1.ffn_down.weight", 0, np.nan, "tensor 'blk.1.ffn_down.weight' holds NaN or an infinity in row 0; the"),
        ("blk.0.attn_v.weight", 3, np.inf, "tensor 'blk.0.attn_v.weight' holds NaN or an infinity in row 3; the file"),
        ("blk.0.ffn_up.weight", 5, 3e38, "no logit is a number, though all weights are: keys or values exceed"),
    ],
)
def test_matrices_that_hold_no_numbers_are_blamed(
    folder: Path, name: str, place: int, value: float, words: str
) -> None:
    """They are not looked through before there is a reason."""
    path = folder / "bad.gguf"

    def damage(tensors: Tensors) -> Tensors:
        data = np.array(tensors[name][0])
        data[place] = value
        return {**tensors, name: (data, tensors[name][1])}

    copy_gguf(tiny(folder, "llama"), path, tensors=damage)
    with Model(path) as model, model.session(64, "f16") as session:
        session.eval([1, 2, 3])
        with pytest.raises(LogQuantError) as caught:
            session.sample(Sampler(SamplingOptions()))
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)


def test_rope_factors_must_be_positive(folder: Path) -> None:
    path = folder / "bad.gguf"
    for value in (0.0, -1.0):
        factors = np.full(8, value, dtype=np.float32)
        copy_gguf(
            tiny(folder, "llama"),
            path,
            tensors=lambda t, f=factors: {**t, "rope_freqs.weight": (f, F32_TENSOR)},  # type: ignore[misc]
        )
        assert "tensor 'rope_freqs.weight' must be positive" in refusal(path)


# ---- how long a refusal takes ----------------------------------------------------------------------------------------


def many_keys(n: int) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, n)
    return head + b"".join(struct.pack("<Q", 12) + b"key.%08d" % i + struct.pack("<II", 4, i) for i in range(n))


def many_tensors(n: int) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, n, 0)
    infos = b"".join(struct.pack("<Q", 10) + b"t.%08d" % i + struct.pack("<IQIQ", 1, 1, 0, 32 * i) for i in range(n))
    return head + infos + bytes(32 * n + 32)


def many_tokens(n: int) -> bytes:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 21) + b"tokenizer.ggml.tokens"
    return head + struct.pack("<IIQ", 9, 8, n) + b"".join(struct.pack("<Q", 8) + b"%08d" % i for i in range(n))


@pytest.mark.without_sanitizers
@pytest.mark.parametrize("make", [many_keys, many_tensors, many_tokens])
def test_a_million_of_anything_is_read_soon(make: Callable[[int], bytes], tmp_path: Path) -> None:
    """A third of a second on an idle machine; were anything quadratic, it would be an hour."""
    path = tmp_path / "many.gguf"
    path.write_bytes(make(1_000_000))
    start = time.monotonic()
    GGUFFile(path).close()
    with pytest.raises(ModelFormatError, match=r"general\.architecture"):
        Model(path)
    assert time.monotonic() - start < 60
