"""An independent reference: a model file's weights, decoded to float32 by the gguf package, in a `transformers` model.

It uses no code of pylogquant. Needs the extra `oracle`. This module only translates between the two: how the file names
hyperparameters and tensors, and how it stores some of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from gguf import GGUFReader
from gguf.quants import dequantize

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_OWN_NAMES = {
    "gemma2": {"ffn_norm": "pre_feedforward_layernorm"},
    "gemma3": {"ffn_norm": "pre_feedforward_layernorm"},
    "phi3": {"ffn_up": "mlp.gate_up_proj"},
    "lfm2": {
        "attn_norm": "operator_norm",
        "attn_q_norm": "self_attn.q_layernorm",
        "attn_k_norm": "self_attn.k_layernorm",
        "attn_output": "self_attn.out_proj",
        "shortconv.conv": "conv.conv",
        "shortconv.in_proj": "conv.in_proj",
        "shortconv.out_proj": "conv.out_proj",
        "ffn_norm": "ffn_norm",
        "ffn_gate": "feed_forward.w1",
        "ffn_up": "feed_forward.w3",
        "ffn_down": "feed_forward.w2",
    },
}
# Architectures whose files hold q and k with the halves of each head interleaved.
_INTERLEAVED = ("llama", "granite", "smollm3")
_FACTORS = ("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight")
_PATTERN = "attention.sliding_window_pattern"
_KV_HEADS = "attention.head_count_kv"
_TOP_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "token_embd_norm": "model.embedding_norm",  # lfm2's files call the norm of the output so
    "output": "lm_head",
}


def _metadata(reader: GGUFReader) -> tuple[str, dict[str, Any]]:
    """The architecture, and its hyperparameters without the architecture's prefix; one number for all layers where the
    file has the same for each."""
    fields = reader.fields
    arch = str(fields["general.architecture"].contents())
    prefix = arch + "."
    values = {key[len(prefix) :]: field.contents() for key, field in fields.items() if key.startswith(prefix)}
    for key, value in values.items():
        if isinstance(value, list) and key != _PATTERN and len(set(value)) == 1:
            values[key] = value[0]
    return arch, values


def _head_dim(values: Mapping[str, Any]) -> int:
    return int(values.get("attention.key_length", values["embedding_length"] // values["attention.head_count"]))


def _common(values: Mapping[str, Any], n_vocab: int, tied: bool) -> dict[str, Any]:
    n_embd, n_heads = values["embedding_length"], values["attention.head_count"]
    n_kv_heads = values.get(_KV_HEADS, n_heads)
    return {
        "vocab_size": n_vocab,
        "hidden_size": n_embd,
        "intermediate_size": values["feed_forward_length"],
        "num_hidden_layers": values["block_count"],
        "num_attention_heads": n_heads,
        "num_key_value_heads": max(n_kv_heads) if isinstance(n_kv_heads, list) else n_kv_heads,
        "head_dim": _head_dim(values),
        "rms_norm_eps": values["attention.layer_norm_rms_epsilon"],
        "max_position_embeddings": values["context_length"],
        "tie_word_embeddings": tied,
        "attn_implementation": "eager",
    }


def _rope(arch: str, values: Mapping[str, Any], factors: Mapping[str, list[float]]) -> dict[str, Any]:
    """The rope parameters of layers that see the whole context."""
    bases = {"qwen3": 1e6, "qwen3moe": 1e6, "gemma3": 1e6, "olmo2": 5e5, "smollm3": 2e6, "lfm2": 1e6}
    base = values.get("rope.freq_base", values.get("rope.global.freq_base", bases.get(arch, 1e4)))
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": base}
    n_rot, head_dim = values.get("rope.dimension_count"), _head_dim(values)
    if n_rot is not None and n_rot != head_dim:
        rope["partial_rotary_factor"] = n_rot / head_dim
    kind = values.get("rope.scaling.type", "none")
    if "rope_factors_short.weight" in factors:
        rope |= {
            "rope_type": "longrope",
            "short_factor": factors["rope_factors_short.weight"],
            "long_factor": factors["rope_factors_long.weight"],
            "original_max_position_embeddings": values["rope.scaling.original_context_length"],
            "factor": values["context_length"] / values["rope.scaling.original_context_length"],
        }
    elif kind in ("linear", "yarn"):
        rope |= {"rope_type": kind, "factor": values["rope.scaling.factor"]}
        if kind == "yarn":
            rope["original_max_position_embeddings"] = values["rope.scaling.original_context_length"]
            rope["beta_fast"] = values.get("rope.scaling.yarn_beta_fast", 32.0)
            rope["beta_slow"] = values.get("rope.scaling.yarn_beta_slow", 1.0)
    stretch = values.get("rope.scaling.attn_factor")
    if stretch is not None:
        own = 0.1 * math.log(rope["factor"]) + 1.0 if rope["rope_type"] == "yarn" else 1.0
        rope["attention_factor"] = stretch * own
    return rope


def _scaled_dim(values: Mapping[str, Any], depth_27b: int) -> int:
    """What Gemma's files seldom hold: query_pre_attn_scalar, which is not the head size for the 27B models."""
    if "attention.scale" in values:
        return round(float(values["attention.scale"]) ** -2)
    wide = values["block_count"] == depth_27b
    return int(values["embedding_length"] // values["attention.head_count"]) if wide else _head_dim(values)


def _kinds(values: Mapping[str, Any], period: int) -> list[str]:
    layers = range(values["block_count"])
    pattern = values.get(_PATTERN, period)
    if isinstance(pattern, list):
        slides = [bool(flag) for flag in pattern]
    else:
        slides = [not pattern or (layer + 1) % pattern != 0 for layer in layers]
    has_window = values.get("attention.sliding_window") != 0
    return ["sliding_attention" if slides[layer] and has_window else "full_attention" for layer in layers]


def _make_model(
    arch: str,
    values: Mapping[str, Any],
    n_vocab: int,
    tied: bool,
    factors: Mapping[str, list[float]],
    has_biases: bool,
) -> Any:
    """An empty float32 model of the transformers library for these hyperparameters."""
    t, common, rope = transformers, _common(values, n_vocab, tied), _rope(arch, values, factors)
    window = values.get("attention.sliding_window")
    if arch == "gemma3" and window is None:  # as its files say that no layer slides
        values = {**values, "attention.sliding_window": 0}
    sliding = {"rope_type": "default", "rope_theta": values.get("rope.freq_base_swa", rope["rope_theta"])}
    both = {"full_attention": rope, "sliding_attention": sliding}
    if arch == "llama" and "expert_count" in values:
        experts = {"num_local_experts": values["expert_count"], "num_experts_per_tok": values["expert_used_count"]}
        return t.MixtralForCausalLM(t.MixtralConfig(**common, **experts, sliding_window=None, rope_parameters=rope))
    if arch == "llama":
        biases = {"attention_bias": has_biases, "mlp_bias": has_biases}
        return t.LlamaForCausalLM(t.LlamaConfig(**common, **biases, rope_parameters=rope))
    if arch == "granite":
        scales = {
            "embedding_multiplier": values["embedding_scale"],
            "residual_multiplier": values["residual_scale"],
            "attention_multiplier": values["attention.scale"],
            "logits_scaling": values["logit_scale"],
        }
        return t.GraniteForCausalLM(t.GraniteConfig(**common, **scales, rope_parameters=rope))
    if arch == "smollm3":
        return t.SmolLM3ForCausalLM(t.SmolLM3Config(**common, rope_parameters=rope, pad_token_id=0))
    if arch == "qwen2":
        return t.Qwen2ForCausalLM(t.Qwen2Config(**common, rope_parameters=rope))
    if arch == "qwen3":
        return t.Qwen3ForCausalLM(t.Qwen3Config(**common, rope_parameters=rope))
    if arch == "qwen3moe":
        config = t.Qwen3MoeConfig(
            **common,
            num_experts=values["expert_count"],
            num_experts_per_tok=values["expert_used_count"],
            moe_intermediate_size=values["expert_feed_forward_length"],
            norm_topk_prob=True,
            rope_parameters=rope,
        )
        return t.Qwen3MoeForCausalLM(config)
    if arch == "gemma2":
        config = t.Gemma2Config(
            **common,
            rope_parameters=rope,
            layer_types=_kinds(values, 2),
            sliding_window=window,
            query_pre_attn_scalar=_scaled_dim(values, 46),
            attn_logit_softcapping=values["attn_logit_softcapping"],
            final_logit_softcapping=values["final_logit_softcapping"],
        )
        return t.Gemma2ForCausalLM(config)
    if arch == "gemma3":
        sliding["rope_theta"] = values.get("rope.freq_base_swa", values.get("rope.local.freq_base", 10000.0))
        config = t.Gemma3TextConfig(
            **common,
            rope_parameters=both,
            layer_types=_kinds(values, 6),
            sliding_window=window,
            query_pre_attn_scalar=_scaled_dim(values, 62),
            attn_logit_softcapping=values.get("attn_logit_softcapping"),
            final_logit_softcapping=values.get("final_logit_softcapping"),
        )
        return t.Gemma3ForCausalLM(config)
    if arch == "phi3":
        original = values.get("rope.scaling.original_context_length", common["max_position_embeddings"])
        config = t.Phi3Config(
            **common,
            rope_parameters=rope,
            original_max_position_embeddings=original,
            sliding_window=window,
            pad_token_id=0,
        )
        return t.Phi3ForCausalLM(config)
    if arch == "olmo2" and window:
        config = t.Olmo3Config(**common, rope_parameters=both, layer_types=_kinds(values, 4), sliding_window=window)
        return t.Olmo3ForCausalLM(config)
    if arch == "olmo2":
        return t.Olmo2ForCausalLM(t.Olmo2Config(**common, rope_parameters=rope))
    if arch == "lfm2":
        n_kv_heads = values[_KV_HEADS]
        if not isinstance(n_kv_heads, list):
            n_kv_heads = [n_kv_heads] * values["block_count"]
        config = t.Lfm2Config(
            **{name: value for name, value in common.items() if name != "rms_norm_eps"},
            norm_eps=common["rms_norm_eps"],
            layer_types=["full_attention" if n else "conv" for n in n_kv_heads],
            conv_L_cache=values["shortconv.l_cache"],
            block_auto_adjust_ff_dim=False,  # files have the width that comes out
            rope_parameters=rope,
        )
        return t.Lfm2ForCausalLM(config)
    raise SystemExit(f"hf_reference: no model of the transformers library is described here for '{arch}'")


def _target_name(arch: str, name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    found = re.fullmatch(r"blk\.(\d+)\.([\w.]+)", stem)
    if found is None:
        return f"{_TOP_NAMES[stem]}.{kind}"
    layer_names = {**_LAYER_NAMES, **_OWN_NAMES.get(arch, {})}
    return f"model.layers.{found.group(1)}.{layer_names[found.group(2)]}.{kind}"


def _convert(
    arch: str, name: str, weight: npt.NDArray[np.float32], values: Mapping[str, Any]
) -> npt.NDArray[np.float32]:
    """Undoes what the file's writer did to a tensor: interleaved halves of q's and k's heads, so that rope turns
    neighbours; gemma's norms have their +1 already added."""
    if arch in _INTERLEAVED and re.search(r"\.attn_[qk]\.", name):
        heads = values["attention.head_count"]
        n_heads = heads if ".attn_q." in name else values.get(_KV_HEADS, heads)
        n_pairs = weight.shape[0] // n_heads // 2
        n_rot = values.get("rope.dimension_count", 2 * n_pairs)
        rows = weight.reshape(n_heads, 2 * n_pairs, *weight.shape[1:])
        by_pair = rows[:, :n_rot].reshape(n_heads, n_rot // 2, 2, *weight.shape[1:]).swapaxes(1, 2)
        turned = by_pair.reshape(n_heads, n_rot, *weight.shape[1:])
        return np.ascontiguousarray(np.concatenate([turned, rows[:, n_rot:]], axis=1)).reshape(weight.shape)
    if name.endswith("shortconv.conv.weight"):
        return weight[:, None]  # each channel is a group of one
    return weight - np.float32(1.0) if arch.startswith("gemma") and "norm" in name else weight


def _expert_weights(state: dict[str, torch.Tensor], tensors: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """The experts of a layer are two stacks in transformers: gate over up, and down."""
    for name in tensors:
        found = re.fullmatch(r"blk\.(\d+)\.ffn_gate_exps\.weight", name)
        if found is None:
            continue
        stem, target = f"blk.{found.group(1)}.ffn_", f"model.layers.{found.group(1)}.mlp.experts."
        gate_up = np.concatenate([tensors[stem + "gate_exps.weight"], tensors[stem + "up_exps.weight"]], axis=1)
        state[target + "gate_up_proj"] = torch.from_numpy(gate_up)
        state[target + "down_proj"] = torch.from_numpy(tensors[stem + "down_exps.weight"])


def load(path: Path) -> Any:
    """The transformers model with the file's weights in float32, ready to evaluate."""
    reader = GGUFReader(path)
    arch, values = _metadata(reader)
    tensors = {
        tensor.name: np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        for tensor in reader.tensors
    }
    for name in [name for name in tensors if name.endswith("scale")]:
        factor, stem = tensors.pop(name), name.removesuffix("scale")
        if not name.endswith("input_scale"):
            weight = tensors[stem + "weight"]
            tensors[stem + "weight"] = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
    factors = {name: tensors.pop(name).tolist() for name in _FACTORS if name in tensors}
    if "rope_freqs.weight" in factors:
        raise SystemExit("hf_reference: rope factors without a formula are not described here")
    state = {
        _target_name(arch, name): torch.from_numpy(_convert(arch, name, weight, values))
        for name, weight in tensors.items()
        if "_exps." not in name
    }
    _expert_weights(state, tensors)
    tied = "output.weight" not in tensors
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    n_vocab, has_biases = len(state["model.embed_tokens.weight"]), "blk.0.attn_q.bias" in tensors
    model = _make_model(arch, values, n_vocab, tied, factors, has_biases)
    model.load_state_dict(state, strict=True)
    return model.float().eval()


def logits(model: Any, ids: Sequence[int]) -> npt.NDArray[np.float32]:
    """Float32 logits (n_ids, n_vocab) of one forward pass of a loaded model over ids from position 0."""
    with torch.no_grad():
        out = model(torch.tensor([list(ids)])).logits[0]
    return np.asarray(out.numpy(), dtype=np.float32)
