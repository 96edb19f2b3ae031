"""attn_implementation="logquant" on models that attend in other ways than Llama: with another layer's keys, with fewer
queries, with values that are not the cached ones, with sinks and biases: the right logits, or one line that says what
is not had. Oracle tests: they need torch and transformers."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import pytest
from test_transformers_generate import (
    N_VOCAB,
    TRANSFORMERS,
    cache_argument,
    forward,
    generate,
    padded,
    some_ids,
    tiny,
    with_attention,
)

from pylogquant.errors import LogQuantError, Unsupported

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


@lru_cache(maxsize=4)
def sharing(name: str) -> Any:
    """A model of four layers of which the last two attend with keys of the first two."""
    import torch
    import transformers as t
    from transformers import AutoConfig, AutoModelForCausalLM

    import pylogquant.transformers  # registers

    assert pylogquant.transformers
    if TRANSFORMERS < 5 and name == "gemma4_text":
        pytest.skip("transformers 4 has no Gemma 4")
    torch.set_num_threads(1)
    torch.manual_seed(3)
    sizes: dict[str, Any] = {
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    sizes |= {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 32, "num_kv_shared_layers": 2}
    sizes |= {"vocab_size": N_VOCAB, "vocab_size_per_layer_input": N_VOCAB, "hidden_size_per_layer_input": 8}
    sizes |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
    more: dict[str, Any] = {"layer_types": ["sliding_attention", "full_attention"] * 2, "initializer_range": 0.12}
    more["tie_word_embeddings"] = False
    if name == "gemma4_text":
        more["global_head_dim"] = 16
    else:
        more |= {"activation_sparsity_pattern": [0.0] * 4, "laurel_rank": 8, "altup_num_inputs": 2}
    assert t.__version__
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes, **more)).eval()


SHARING = ["gemma4_text", "gemma3n_text"]


def settings(**more: Any) -> Any:
    from pylogquant.transformers import LogQuantConfig

    return LogQuantConfig(threads=1, **{"window": 1024, **more})


def logits(model: Any, cache: Any, *passes: Any, **more: Any) -> Any:
    """Of all passes, (rows, tokens, n_vocab)."""
    import torch

    with torch.no_grad():
        return torch.cat([forward(model, ids, cache, **more).logits for ids in passes], dim=1)


def dynamic_logits(model: Any, *passes: Any, **more: Any) -> Any:
    from transformers import DynamicCache

    model.set_attn_implementation("eager")
    right = logits(model, DynamicCache(config=model.config), *passes, **more)
    model.set_attn_implementation("logquant")
    return right


def assert_close(found: Any, right: Any, tolerance: float = 5e-3) -> None:
    assert found.shape == right.shape
    assert (found - right).norm() < tolerance * (right - right.mean()).norm()


# ---- layers that borrow keys -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [512, 16])
@pytest.mark.parametrize("name", SHARING)
def test_layers_that_share_keys(name: str, chunk: int) -> None:
    """A prompt in one piece and in several, a pass that waits, single tokens; both kinds of kernels."""
    from pylogquant.transformers import LogQuantCache

    model = sharing(name)
    passes = [some_ids(1, 90), some_ids(1, 40, seed=1), *some_ids(1, 4, seed=2).split(1, dim=1)]
    right = dynamic_logits(model, *passes)
    for kernels in ("native", "torch"):
        cache = LogQuantCache(model.config, settings(chunk=chunk, kernels=kernels))
        assert_close(logits(model, cache, *passes), right)


@pytest.mark.parametrize("way", ["greedy", "beams", "drafts"])
@pytest.mark.parametrize("name", SHARING)
def test_shared_keys_in_generate(name: str, way: str) -> None:
    """Padding, rows that are reordered, drafts that are taken back; generate() asks for the last logits only, and then
    Gemma 4 has fewer queries in layers that borrow than keys."""
    from transformers import DynamicCache

    from pylogquant.transformers import LogQuantCache

    if way == "drafts" and TRANSFORMERS < 5:
        pytest.skip("transformers 4 takes nothing back from sliding layers")
    model = sharing(name)
    ids, mask = padded(90, 71, 90) if way != "drafts" else (some_ids(1, 12).repeat(1, 8), None)
    options: dict[str, Any] = {"greedy": {}, "beams": {"num_beams": 3}, "drafts": {}}[way]
    model.set_attn_implementation("eager")
    wanted = generate(model, ids, DynamicCache(config=model.config), mask, **options)
    model.set_attn_implementation("logquant")
    if way == "drafts":
        options = {"prompt_lookup_num_tokens": 6}
    found = generate(model, ids, LogQuantCache(model.config, settings()), mask, **options)
    assert found.tolist() == wanted.tolist()
    assert len(set(found[0].tolist())) > 3


@pytest.mark.parametrize("n_logits", [1, 3])
def test_fewer_queries_than_keys(n_logits: int) -> None:
    """Masks are None where they are causal; with fewer queries they still are the last ones, in layers of ours and in
    sliding ones."""
    from pylogquant.transformers import LogQuantCache

    model = sharing("gemma4_text")
    for n in (30, 90):
        right = dynamic_logits(model, some_ids(1, n))[:, -n_logits:]
        for cache in (LogQuantCache(model.config, settings()), LogQuantCache(model.config, settings(chunk=16))):
            assert_close(logits(model, cache, some_ids(1, n), logits_to_keep=n_logits), right)


@pytest.mark.parametrize("name", SHARING)
def test_borrowers_see_what_the_lender_saw(name: str) -> None:
    """Once tokens are given up: a prompt in pieces is what the same pieces are as passes of their own."""
    import torch

    from pylogquant.transformers import LogQuantCache

    model = sharing(name)
    model.set_attn_implementation("logquant")
    ids = some_ids(1, 448)
    for preset in ("logquant", "logquant-small"):
        config = settings(preset=preset, window=64, chunk=64)
        whole, parts = (LogQuantCache(model.config, config) for _ in range(2))
        for cache in (whole, parts):
            cache.logquant_layers()[0].record_past = False  # transformers 4 makes other pieces of a pass
        found = logits(model, whole, ids)
        assert_close(found, logits(model, parts, *ids.split(64, dim=1)), 1e-4)
        stores = [cache.logquant_layers()[0].groups[0].store for cache in (whole, parts)]
        assert stores[0].n_pages > 3
        for name_of in ("blocks", "masks", "positions"):
            a, b = (getattr(store, name_of)[:, : store.n_pages] for store in stores)
            assert torch.equal(a, b)


def test_what_was_lent_is_let_go() -> None:
    """With the next pass, and it is not copied."""
    import copy

    from pylogquant.transformers import LogQuantCache

    model = sharing("gemma3n_text")
    model.set_attn_implementation("logquant")
    cache = LogQuantCache(model.config, settings())
    logits(model, cache, some_ids(1, 200))
    group = cache.logquant_layers()[0]._groups[0]
    assert [piece.end for piece in group.pieces][-1] == 200
    assert copy.deepcopy(cache).logquant_layers()[0]._groups[0].pieces == []
    logits(model, cache, some_ids(1, 1))
    assert [(piece.start, piece.end) for piece in group.pieces] == [(0, 1)]
    assert group.pieces[0].store is group.store


# ---- what attention is asked with ------------------------------------------------------------------------------------


def parts_of_a_layer(n: int = 4) -> tuple[Any, Any, Any, Any]:
    """A layer of a cache, a query and keys and values of n tokens."""
    import torch

    from pylogquant.transformers import LogQuantCache

    model = with_attention("llama", "logquant")
    layer = LogQuantCache(model.config, settings()).logquant_layers()[0]
    q, k, v = (torch.randn(1, heads, n, 16, generator=torch.Generator().manual_seed(7)) for heads in (4, 2, 2))
    return layer, q, k, v


def attention(q: Any, k: Any, v: Any, mask: Any = None, **more: Any) -> Any:
    import torch

    from pylogquant.transformers.attention import logquant_attention

    module = torch.nn.Module()
    module.num_key_value_groups = 2
    return logquant_attention(module, q, k, v, mask, **more)[0]


def test_keys_are_known_by_what_update_returned() -> None:
    """Nothing else means the cache: not the tensors that it was given, not one of the two, not an earlier pass's."""
    layer, q, k, v = parts_of_a_layer()
    got_k, got_v = layer.update(k, v)
    assert (attention(q, k, v) - attention(q, k.clone(), v.clone())).norm() == 0  # torch's attention
    for keys, values, which in ((got_k, v, "values"), (k, got_v, "keys"), (got_k, got_v * 1, "values")):
        with pytest.raises(Unsupported, match=f"changes the {which} after the cache took them in"):
            attention(q, keys, values)
    once, again = attention(q, got_k, got_v), attention(q, got_k, got_v)
    assert (once - again).abs().max() < 1e-6
    assert (once - attention(q, k, v)).norm() < 5e-3 * once.norm()
    new_k, new_v = layer.update(k[:, :, :1], v[:, :, :1])
    with pytest.raises(Unsupported, match="keys of an earlier forward pass"):
        attention(q, got_k, got_v)
    attention(q[:, :, :1], new_k, new_v)
    layer.crop(-1)
    with pytest.raises(Unsupported, match="keys of an earlier forward pass"):
        attention(q[:, :, :1], new_k, new_v)


def test_an_update_that_no_attention_follows() -> None:
    """Is found with the next layer's, in the same pass, and forgotten by reset()."""
    from pylogquant.transformers import LogQuantCache

    model = with_attention("llama", "logquant")
    cache = LogQuantCache(model.config, settings())
    _, _, k, v = parts_of_a_layer()
    cache.update(k, v, 0)
    for index in (1, 0):
        with pytest.raises(Unsupported, match=r"never reached attn_implementation='logquant'.* reset\(\) the cache"):
            cache.update(k, v, index)
    cache.reset()
    logits(model, cache, some_ids(1, 5))


def test_keys_shared_without_a_word_in_the_config() -> None:
    """A pass that still waits is attended to again; of a longer one a part is packed, and no answer is made up."""
    for n in (60, 100):
        layer, q, k, v = parts_of_a_layer(n)
        got_k, got_v = layer.update(k, v)
        once = attention(q, got_k, got_v)
        if n == 60:
            assert (once - attention(q, got_k, got_v)).norm() < 1e-3 * once.norm()
        else:
            with pytest.raises(Unsupported, match="share keys in a way that its config does not say"):
                attention(q, got_k, got_v)


@pytest.mark.parametrize("what", ["s_aux", "sinks", "indices", "block_indices", "position_bias", "head_mask"])
def test_what_changes_attention_is_refused(what: str) -> None:
    import torch

    layer, q, k, v = parts_of_a_layer()
    keys = [layer.update(k, v)]
    if what != "position_bias" or TRANSFORMERS < 5:  # which torch's attention has by now
        keys.append((k, v))
    for key, value in keys:
        with pytest.raises(Unsupported, match=f"has not .* \\({what}\\), which this model uses"):
            attention(q, key, value, **{what: torch.zeros(1)})
    attention(q, *keys[0], **{what: None})


def test_masks_of_numbers_and_attention_both_ways() -> None:
    import torch

    layer, q, k, v = parts_of_a_layer()
    key, value = layer.update(k, v)
    hides = torch.zeros(1, 1, 4, 4).masked_fill(torch.ones(4, 4).triu(1).bool(), torch.finfo(torch.float32).min)
    biased = hides + torch.tensor([0.0, 0.5, 0.0, 0.0])
    with pytest.raises(Unsupported, match="this one adds to scores"):
        attention(q, key, value, biased)
    with pytest.raises(Unsupported, match="lets tokens see later ones"):
        attention(q, key, value, is_causal=False)
    with pytest.raises(Unsupported, match="4 new keys came with 2 queries: cross attention"):
        attention(q[:, :, :2], key, value)
    layer.reset()
    key, value = layer.update(k, v)
    wider = torch.nn.functional.pad(hides, (0, 1))  # as transformers 4 makes them
    assert (attention(q, key, value, wider) - attention(q, k, v)).norm() < 5e-3


def test_output_attentions_is_refused() -> None:
    from pylogquant.transformers import LogQuantCache

    model = with_attention("llama", "logquant")
    cache = LogQuantCache(model.config, settings())
    with pytest.raises(Unsupported, match=r"output_attentions=True call model\.set_attn_implementation\(\"eager\"\)"):
        logits(model, cache, some_ids(1, 5), output_attentions=True)
    with pytest.raises(Unsupported, match="output_attentions"):
        generate(
            model,
            some_ids(1, 5),
            LogQuantCache(model.config, settings()),
            output_attentions=True,
            return_dict_in_generate=True,
        )


# ---- families --------------------------------------------------------------------------------------------------------

WORK = (
    *("llama", "qwen2", "qwen3_moe", "gemma2", "gemma3_text", "mistral", "phi3", "gpt2", "gpt_neox", "opt", "cohere2"),
    *("olmo2", "glm4", "granitemoe", "stablelm", "bamba", "jamba", "lfm2", "nemotron_h", "qwen3_next"),
)
REFUSED = {
    "gpt_oss": "learned attention sinks",
    "diffllama": "changes the values",
    "jetmoe": "never reached",
    "deepseek_v3": "must have the same shape",
    "glm_moe_dsa": "the layers here are DynamicIndexedLayer",
    "falcon_h1": "the layers here are LinearAttentionAndFullAttentionLayer",
    "mamba": "the layers here are LinearAttentionLayer",
    "bloom": "keeps tokens by the attention they receive",
}


@pytest.mark.skipif(TRANSFORMERS < 5, reason="the tool's sizes are for transformers 5")
@pytest.mark.parametrize("family", [*WORK, *REFUSED])
def test_families(family: str) -> None:
    """Each as tools/measure/transformers_families.py builds it."""
    import torch
    from transformers_families import ask

    torch.set_num_threads(1)
    outcomes = {outcome.way: outcome for outcome in ask(family)}
    assert len(outcomes) > 1, outcomes
    assert {outcome.answer for outcome in outcomes.values()} <= {"works", "refused"}, outcomes
    packed = outcomes["packed"]
    if family in REFUSED:
        assert packed.answer == "refused"
        assert REFUSED[family] in packed.words
    else:
        assert {outcome.answer for outcome in outcomes.values()} == {"works"}, outcomes


def test_encoders_and_decoders() -> None:
    """A cache of ours for the decoder's own tokens; by itself it is refused."""
    import torch
    import transformers as t

    from pylogquant.transformers import LogQuantCache

    torch.manual_seed(3)
    sizes = {"vocab_size": N_VOCAB, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "init_std": 0.12}
    sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "pad_token_id": 0, "bos_token_id": 1}
    sizes |= {"encoder_ffn_dim": 96, "decoder_ffn_dim": 96, "eos_token_id": 2, "decoder_start_token_id": 2}
    model = t.BartForConditionalGeneration(t.BartConfig(**sizes, forced_eos_token_id=None)).eval()
    ids = some_ids(2, 30)
    dynamic = t.EncoderDecoderCache(t.DynamicCache(), t.DynamicCache())
    options = {"max_new_tokens": 20, "do_sample": True, "num_beams": 2, "use_cache": True}
    name = cache_argument(model)
    torch.manual_seed(7)
    wanted = model.generate(ids, **{name: dynamic}, **options)
    model.set_attn_implementation("logquant")
    ours = t.EncoderDecoderCache(LogQuantCache(model.config, settings()), t.DynamicCache())
    torch.manual_seed(7)
    assert model.generate(ids, **{name: ours}, **options).tolist() == wanted.tolist()
    assert len(set(wanted[0].tolist())) > 3
    start = torch.full((2, 1), 2)
    with pytest.raises(LogQuantError, match="30 new keys came with 1 queries: cross attention"), torch.no_grad():
        model(ids, decoder_input_ids=start, use_cache=True, **{name: LogQuantCache(model.config, settings())})


# ---- names of arguments ----------------------------------------------------------------------------------------------


def test_both_names_of_the_cache() -> None:
    """cache=, and past_key_values= as transformers called it before: the same answer, and no warning of ours; of the
    newer name none at all."""
    import torch

    from pylogquant.transformers import LogQuantCache

    model, ids = tiny("llama"), some_ids(1, 20)
    with_attention("llama", "logquant")
    answers = []
    for name in dict.fromkeys((cache_argument(model), "past_key_values")):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            mask = torch.ones_like(ids)
            cache = LogQuantCache(model.config, settings())
            out = model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, **{name: cache})
        answers.append(out.tolist())
        texts = [str(warning.message) for warning in caught]
        assert not [text for text in texts if "logquant" in text.lower()]
        if name == "cache":
            assert texts == []
    assert answers[0] == answers[-1]
