"""The outside truth: a model file's weights, decoded to float32 by the gguf package, in a model of `transformers`.

Nothing of pylogquant takes part. Needs the extra `oracle`. Only what differs between the two sides is written here:
how the file names hyperparameters and tensors, and how it stores some of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_NORM_NAMES = {
    "llama": {"ffn_norm": "post_attention_layernorm"},
    "gemma3": {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}
_TOP_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def _metadata(reader: GGUFReader) -> tuple[str, dict[str, Any]]:
    """The architecture, and its scalar hyperparameters without the architecture's prefix."""
    fields = reader.fields
    arch = str(fields["general.architecture"].contents())
    prefix = arch + "."
    values = {key[len(prefix) :]: field.contents() for key, field in fields.items() if key.startswith(prefix)}
    return arch, values


def _common(values: Mapping[str, Any], n_vocab: int, tied: bool) -> dict[str, Any]:
    n_embd, n_heads = values["embedding_length"], values["attention.head_count"]
    return {
        "vocab_size": n_vocab,
        "hidden_size": n_embd,
        "intermediate_size": values["feed_forward_length"],
        "num_hidden_layers": values["block_count"],
        "num_attention_heads": n_heads,
        "num_key_value_heads": values.get("attention.head_count_kv", n_heads),
        "head_dim": values.get("attention.key_length", n_embd // n_heads),
        "rms_norm_eps": values["attention.layer_norm_rms_epsilon"],
        "max_position_embeddings": values["context_length"],
        "tie_word_embeddings": tied,
        "attn_implementation": "eager",
    }


def _make_model(arch: str, values: Mapping[str, Any], n_vocab: int, tied: bool) -> Any:
    """An empty float32 model of the transformers library for these hyperparameters."""
    common = _common(values, n_vocab, tied)
    base = values.get("rope.freq_base")
    if arch == "llama":
        rope = {"rope_type": "default", "rope_theta": base or 10000.0}
        return LlamaForCausalLM(LlamaConfig(**common, rope_parameters=rope))
    if arch == "gemma3":
        rope = {
            "full_attention": {"rope_type": "default", "rope_theta": base or 1000000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        }
        kinds = [
            "full_attention" if (layer + 1) % 6 == 0 else "sliding_attention" for layer in range(values["block_count"])
        ]
        config = Gemma3TextConfig(
            **common,
            rope_parameters=rope,
            layer_types=kinds,
            sliding_window=values["attention.sliding_window"],
            query_pre_attn_scalar=common["head_dim"],
        )
        return Gemma3ForCausalLM(config)
    raise SystemExit(f"hf_reference: no model of the transformers library is described here for '{arch}'")


def _target_name(arch: str, name: str) -> str:
    stem, kind = name.rsplit(".", 1)
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
    if found is None:
        return f"{_TOP_NAMES[stem]}.{kind}"
    layer_names = {**_LAYER_NAMES, **_NORM_NAMES[arch]}
    return f"model.layers.{found.group(1)}.{layer_names[found.group(2)]}.{kind}"


def _convert(
    arch: str, name: str, weight: npt.NDArray[np.float32], values: Mapping[str, Any]
) -> npt.NDArray[np.float32]:
    """Undoes what the file's writer did to a tensor: llama's q and k have the halves of each head interleaved, so that
    rope turns neighbours; gemma's norms have their +1 already added."""
    if arch == "llama" and re.search(r"\.attn_[qk]\.", name):
        heads = values["attention.head_count"]
        n_heads = heads if ".attn_q." in name else values.get("attention.head_count_kv", heads)
        n_pairs = weight.shape[0] // n_heads // 2
        by_pair = weight.reshape(n_heads, n_pairs, 2, *weight.shape[1:])
        return np.ascontiguousarray(by_pair.swapaxes(1, 2)).reshape(weight.shape)
    return weight - np.float32(1.0) if arch == "gemma3" and "norm" in name else weight


def load(path: Path) -> Any:
    """The transformers model with the file's weights in float32, ready to evaluate."""
    reader = GGUFReader(path)
    arch, values = _metadata(reader)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    tied = "output.weight" not in tensors
    state = {}
    for name, tensor in tensors.items():
        if name == "rope_freqs.weight":
            raise SystemExit("hf_reference: rope factors are not described here")
        weight = np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        state[_target_name(arch, name)] = torch.from_numpy(np.array(_convert(arch, name, weight, values)))
    n_vocab = state["model.embed_tokens.weight"].shape[0]
    if tied:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = _make_model(arch, values, n_vocab, tied)
    model.load_state_dict(state, strict=True)
    return model.float().eval()


def logits(path: Path, ids: Sequence[int]) -> npt.NDArray[np.float32]:
    """Float32 logits (n_ids, n_vocab) of one forward pass over ids from position 0."""
    with torch.no_grad():
        out = load(path)(torch.tensor([list(ids)])).logits[0]
    return np.asarray(out.numpy(), dtype=np.float32)
