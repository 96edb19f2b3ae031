"""Tests which model families of transformers work with attn_implementation="logquant": builds each tiny, with random
weights, and compares its logits with a LogQuantCache and with a DynamicCache.

    python tools/measure/transformers_families.py [FAMILY...] [--json]

FAMILY: names of AutoModelForCausalLM's mapping; all of them by default (2 minutes). Each is tested with packed keys,
with dequantized ones and the model's own attention, and with logquant attention and no cache of ours. Results: `works`
if the logits of a prompt, of a pass of several tokens and of single tokens are those of DynamicCache with the model's
own attention, up to the 16-bit floats in which tokens are stored; `refused` if pylogquant says in one line why not;
`fails` if the model itself does; `wrong` or `breaks` otherwise, and then the exit status is 1.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from pylogquant.errors import LogQuantError
from pylogquant.transformers import LogQuantCache, LogQuantConfig

N_VOCAB = 160
PASSES = (70, 5, 1, 1, 1)  # tokens; the first is longer than what is kept to be taken back
LARGEST = 15_000_000  # parameters; more are a size whose name SMALL does not know
TOLERANCE = 0.01  # of the norm of the logits; f16 keys and values alone give up to 0.003
SENSITIVE = 0.05  # what forgetting the past must change at least, or the comparison says nothing

SMALL: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "n_vocab", "vocab_size_per_layer_input"), N_VOCAB),
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "word_embed_proj_dim", "embedding_size"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner", "ffn_hidden_size"), 96),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers"), 4),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "swa_num_key_value_heads", "global_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "global_head_dim", "swa_head_dim", "attention_head_dim"), 16),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), 512),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    # All of them: which experts are chosen changes in steps, and rounding to f16 is enough for one.
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_top_k", "top_k_experts", "num_experts_per_token"), 4),
    **dict.fromkeys(("n_group", "topk_group", "n_groups"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank"), 32),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 16),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 16),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("sliding_window", "attention_chunk_size"), 32),
    **dict.fromkeys(("mamba_d_head", "mamba_headdim", "mamba_head_dim"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads", "n_mamba_heads"), 8),
    "mamba_d_ssm": 128,
    "mamba_d_state": 8,
    "mamba_chunk_size": 16,
    "hidden_size_per_layer_input": 8,
    "num_kv_shared_layers": 2,
    "initializer_range": 0.12,
    "init_std": 0.12,
    "tie_word_embeddings": False,
    "is_decoder": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""By whatever name a family has for it."""
ALSO: dict[str, tuple[str, ...]] = {
    "half_sliding": ("gemma3_text", "gemma3n_text", "gemma4_text", "gemma4_unified_text"),
    "half_linear": ("granitemoehybrid", "kimi_linear", "bailing_hybrid"),
    "no_sliding": ("mistral", "mixtral", "ministral3", "phi3", "phimoe", "starcoder2"),
    "as_many_kv_heads": (
        *("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm4_moe_lite", "glm_moe_dsa", "minicpm3"),
        *("sarvam_mla", "youtu", "kimi_linear", "bailing_hybrid", "longcat_flash", "dory"),
    ),
    "small_rope": ("codegen", "gptj"),
    "ministral": ("ministral",),
    "lfm2_moe": ("lfm2_moe",),
    "bamba": ("bamba",),
    "jamba": ("jamba",),
    "gpt_neo": ("gpt_neo",),
    "zamba2": ("zamba2",),
}
"""Families that want more, by what."""
MORE: dict[str, dict[str, Any]] = {
    "half_sliding": {"layer_types": ["sliding_attention", "full_attention"] * 2},
    "half_linear": {"layer_types": ["linear_attention", "full_attention"] * 2},
    "no_sliding": {"sliding_window": None},
    "as_many_kv_heads": {"num_key_value_heads": 4},
    "small_rope": {"rotary_dim": 16},
    "ministral": {"layer_types": ["full_attention"] * 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "bamba": {"attn_layer_indices": [1, 3]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
}

Answer = Literal["works", "refused", "fails", "wrong", "breaks"]


Way = Literal["packed", "dequantized", "no cache of ours"]
"""logquant attention with a LogQuantCache; the model's own attention with one that selects without seeing queries;
logquant attention with a DynamicCache."""


@dataclass
class Outcome:
    """What became of a family, in one line of words."""

    family: str
    way: Way
    answer: Answer
    words: str = ""


def tiny_config(family: str) -> Any:
    kind = CONFIG_MAPPING[family]
    known = set(inspect.signature(kind.__init__).parameters) | set(getattr(kind, "__annotations__", {}))
    names = {
        name: value for name, value in SMALL.items() if name in known or name in getattr(kind, "attribute_map", {})
    }
    for what, families in ALSO.items():
        if family in families:
            names.update(MORE[what])
    return kind(**names)


def logits_of(model: Any, ids: torch.Tensor, cache: Any) -> torch.Tensor:
    """Float32 of all passes, (tokens, n_vocab)."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    parts, start = [], 0
    with torch.no_grad():
        for n in PASSES:
            out = model(ids[:, start : start + n], **{name: cache}, use_cache=True)
            parts.append(out.logits[0].float())
            start += n
    return torch.cat(parts)


def differs(a: torch.Tensor, b: torch.Tensor) -> float:
    """Of the pass that differs most, as part of its logits' norm."""
    pairs = zip(a.split(PASSES), b.split(PASSES), strict=True)
    return max(float((x - y).norm() / (y - y.mean()).norm()) for x, y in pairs)


def line_of(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def build(family: str) -> Any:
    """The model; raises whatever a family does with such a config, or without its packages."""
    torch.manual_seed(0)
    with torch.device("meta"):
        n_parameters = sum(x.numel() for x in AutoModelForCausalLM.from_config(tiny_config(family)).parameters())
    if n_parameters > LARGEST:
        raise ValueError(f"{n_parameters} parameters: not tiny")
    return AutoModelForCausalLM.from_config(tiny_config(family)).eval()


def ask(family: str) -> list[Outcome]:
    """Builds a family and compares, in every way. Never raises."""
    ids = torch.randint(3, N_VOCAB, (1, sum(PASSES)), generator=torch.Generator().manual_seed(1))
    try:
        model = build(family)
        right = logits_of(model, ids, DynamicCache(config=model.config))
        with torch.no_grad():
            alone = model(ids[:, -1:]).logits[0].float()
        if not (alone - right[-1:]).norm() > SENSITIVE * right[-1:].norm():
            raise ValueError("the tiny model does not heed its past")
    except Exception as error:
        return [Outcome(family, "packed", "fails", line_of(error))]
    found = [compare(family, "dequantized", model, ids, right, LogQuantConfig(select="even", window=1024, threads=1))]
    model.set_attn_implementation("logquant")
    found.append(compare(family, "packed", model, ids, right, LogQuantConfig(window=1024, threads=1)))
    if model._supports_sdpa:  # masks are sdpa's: None where they are causal, which other models do not expect
        found.append(compare(family, "no cache of ours", model, ids, right, None))
    return found


def compare(
    family: str, way: Way, model: Any, ids: torch.Tensor, right: torch.Tensor, settings: LogQuantConfig | None
) -> Outcome:
    try:
        config = model.config
        cache = DynamicCache(config=config) if settings is None else LogQuantCache(config, settings)
        distance = differs(logits_of(model, ids, cache), right)
    except LogQuantError as error:
        return Outcome(family, way, "refused", " ".join(str(error).split()))
    except Exception as error:
        return Outcome(family, way, "breaks", line_of(error))
    return Outcome(family, way, "works" if distance < TOLERANCE else "wrong", f"{distance:.4f}")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    outcomes: list[Outcome] = []
    for family in options.families or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        found = ask(family)
        outcomes += found
        if not options.json:
            for outcome in found:
                print(f"{family}, {outcome.way}: {outcome.answer}: {outcome.words}", flush=True)
    if options.json:
        print(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    return int(any(outcome.answer in ("wrong", "breaks") for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
