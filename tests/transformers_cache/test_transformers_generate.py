"""pylogquant.transformers in generate(), on tiny models of random weights: with a window larger than the text it says
what DynamicCache says; with any window, what the same rows say alone. Oracle tests: they need torch, transformers."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from pylogquant.errors import ArgumentError, Unsupported

pytestmark = [
    pytest.mark.oracle,
    # transformers' own: pieces of it that other pieces have declared old
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

TRANSFORMERS = int(version("transformers").partition(".")[0]) if find_spec("transformers") else 0
MODELS = ("llama", "qwen2", "qwen3", "gemma2", "gemma3")
N_VOCAB = 160


@lru_cache(maxsize=16)
def tiny(name: str) -> Any:
    """A model of two layers whose answers vary: random weights of a good size, and an output matrix of its own."""
    import torch
    import transformers as t

    torch.set_num_threads(1)  # more only wait for each other on models of this size
    torch.manual_seed(3)
    common = {
        "vocab_size": N_VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "initializer_range": 0.12,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
    }
    slides = {"head_dim": 16, "sliding_window": 32, "layer_types": ["sliding_attention", "full_attention"]}
    make = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(**common)),
        "qwen2": lambda: t.Qwen2ForCausalLM(t.Qwen2Config(**common)),
        "qwen3": lambda: t.Qwen3ForCausalLM(t.Qwen3Config(**common, head_dim=24)),
        "gemma2": lambda: t.Gemma2ForCausalLM(t.Gemma2Config(**common, **slides)),
        "gemma3": lambda: t.Gemma3ForCausalLM(t.Gemma3TextConfig(**common, **slides)),
        "mistral": lambda: t.MistralForCausalLM(t.MistralConfig(**common, sliding_window=32)),
    }
    return make[name]().eval()


def with_attention(name: str, attention: str) -> Any:
    import pylogquant.transformers  # registers

    assert pylogquant.transformers
    model = tiny(name)
    # torch's own attention has no cap of scores
    model.set_attn_implementation("eager" if attention == "sdpa" and name == "gemma2" else attention)
    return model


def some_ids(*shape: int, seed: int = 0) -> Any:
    import torch

    return torch.randint(2, N_VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def padded(*lengths: int) -> tuple[Any, Any]:
    """Ids and mask of rows of these lengths, padding on the left."""
    import torch

    n = max(lengths)
    ids = torch.zeros(len(lengths), n, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, n - length :] = some_ids(length, seed=row)
    return ids, (ids != 0).long()


def cache_argument(model: Any) -> str:
    """What the version of transformers calls it."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def generate(model: Any, ids: Any, cache: Any, mask: Any = None, **options: Any) -> Any:
    """Ids that follow."""
    import torch

    mask = torch.ones_like(ids) if mask is None else mask
    # transformers 4 takes drafts only from models that have some last token
    options = {"max_new_tokens": 24, "do_sample": False, "eos_token_id": 10 * N_VOCAB, **options}
    torch.manual_seed(7)
    with torch.no_grad():
        out = model.generate(ids, attention_mask=mask, **{cache_argument(model): cache}, **options)
    return out[:, ids.shape[1] :]


def dynamic(name: str, ids: Any, mask: Any = None, **options: Any) -> Any:
    """What DynamicCache says."""
    from transformers import DynamicCache

    model = with_attention(name, "eager")
    return generate(model, ids, DynamicCache(config=model.config), mask, **options)


def large(attention: str, preset: str = "logquant") -> Any:
    """Settings with a window larger than any text here."""
    from pylogquant.transformers import LogQuantConfig

    return LogQuantConfig(preset, window=1024, select=None if attention == "logquant" else "even")


WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 0.7},
    "beams": {"num_beams": 3},
    "several answers": {"do_sample": True, "num_return_sequences": 3},
}


@pytest.mark.parametrize("attention", ["logquant", "sdpa"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_says_what_dynamic_cache_says(name: str, way: str, attention: str) -> None:
    from pylogquant.transformers import LogQuantCache

    ids, mask = padded(70, 57, 70)
    wanted = dynamic(name, ids, mask, **WAYS[way])
    model = with_attention(name, attention)
    cache = LogQuantCache(model.config, large(attention))
    found = generate(model, ids, cache, mask, **WAYS[way])
    assert found.tolist() == wanted.tolist()
    assert len({tuple(row) for row in found.tolist()}) > 1
    assert len(set(found[0].tolist())) > 3  # the model says something
    assert cache.get_seq_length() == 70 + 23


@pytest.mark.parametrize("attention", ["logquant", "sdpa"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_assisted_generation(name: str, attention: str) -> None:
    """Drafts are taken back; the text and what the cache holds are those of greedy search."""
    from pylogquant.transformers import LogQuantCache

    if name == "gemma3" and TRANSFORMERS < 5:
        pytest.skip("transformers 4 takes nothing back from sliding layers")
    ids = some_ids(1, 12).repeat(1, 6)
    wanted = dynamic(name, ids)
    model = with_attention(name, attention)
    cache = LogQuantCache(model.config, large(attention))
    found = generate(model, ids, cache, prompt_lookup_num_tokens=6)
    assert found.shape[1] == 24 or TRANSFORMERS < 5  # which goes on past max_new_tokens with drafts that were right
    assert found[:, :24].tolist() == wanted.tolist()
    assert len(ids[0]) + 23 <= cache.get_seq_length() <= len(ids[0]) + 23 + 6


@pytest.mark.parametrize("attention", ["logquant", "sdpa"])
def test_assisted_generation_past_the_window(attention: str) -> None:
    """Tokens are given up and pages coded on the way: drafts that are rejected leave no trace."""
    from pylogquant.transformers import LogQuantCache, LogQuantConfig

    model = with_attention("llama", attention)
    settings = LogQuantConfig("logquant-small", select=None if attention == "logquant" else "even", kernels="native")
    ids = some_ids(1, 30).repeat(1, 8)
    cache = LogQuantCache(model.config, settings)
    found = generate(model, ids, cache, prompt_lookup_num_tokens=8, max_new_tokens=100)
    usage = cache.usage()
    assert found.shape[1] == 100 or TRANSFORMERS < 5
    # the last token never was fed; drafts that were right past the end may have been
    assert usage.n_tokens == cache.get_seq_length()
    assert 339 <= usage.n_tokens <= 348
    assert usage.n_tokens == usage.n_sinks + usage.n_full + usage.n_packed
    assert usage.n_packed == 192


@pytest.mark.parametrize("kernels", ["native", "torch"])
@pytest.mark.parametrize("preset", ["logquant", "logquant-small", "logquant-hq", "logquant-paper", "h2o", "streaming"])
def test_rows_of_a_padded_batch_are_what_they_are_alone(preset: str, kernels: str) -> None:
    """Sinks and pages count from a row's own first token. Long enough to pack and to drop."""
    from pylogquant.transformers import H2OCache, LogQuantCache, LogQuantConfig, StreamingCache

    kind = {"h2o": H2OCache, "streaming": StreamingCache}.get(preset, LogQuantCache)
    settings = LogQuantConfig(preset, window=64, kernels=kernels, threads=1)  # type: ignore[arg-type]
    model = with_attention("llama", "logquant")
    ids, mask = padded(300, 211, 300)
    together = kind(model.config, settings)
    found = generate(model, ids, together, mask)
    for row, length in enumerate((300, 211, 300)):
        alone = kind(model.config, settings)
        wanted = generate(model, ids[row : row + 1, 300 - length :], alone)
        assert found[row].tolist() == wanted[0].tolist(), row
        mine = next(group for group in together.logquant_layers()[0].groups if row in group.rows)
        at = mine.rows.index(row)
        theirs = alone.logquant_layers()[0].groups[0].store
        assert mine.padding == 300 - length
        assert mine.store.n_tokens == theirs.n_tokens == length + 23
        assert mine.store.positions[at].tolist() == theirs.positions[0].tolist()


@pytest.mark.parametrize("preset", ["logquant-paper", "kivi"])
def test_padding_is_found_by_positions_or_given(preset: str) -> None:
    """Any attention, a cache that gives tokens up: padding would shift every page."""
    from pylogquant.transformers import KiViCache, LogQuantCache, LogQuantConfig

    kind = KiViCache if preset == "kivi" else LogQuantCache
    model = with_attention("llama", "sdpa")
    ids, mask = padded(300, 211)
    for given in (None, mask):
        cache = kind(model.config, LogQuantConfig(preset), attention_mask=given)
        found = generate(model, ids, cache, mask)
        assert [group.padding for group in cache.logquant_layers()[0].groups] == [0, 89]
        for row, length in enumerate((300, 211)):
            alone = kind(model.config, LogQuantConfig(preset))
            assert found[row].tolist() == generate(model, ids[row : row + 1, 300 - length :], alone)[0].tolist()


@pytest.mark.parametrize("kind", ["LogQuantCache", "KiViCache", "StreamingCache"])
def test_both_ways_of_attention_agree(kind: str) -> None:
    """The same cache read packed, and dequantized for torch's attention: the same logits, up to 8-bit queries."""
    import torch

    from pylogquant import transformers as ours

    model, ids = tiny("llama"), some_ids(1, 420)
    preset = {"LogQuantCache": "logquant", "KiViCache": "kivi", "StreamingCache": "streaming"}[kind]
    select = "even" if kind == "LogQuantCache" else None
    logits = {}
    for attention, kernels in (("logquant", "native"), ("logquant", "torch"), ("sdpa", "torch")):
        with_attention("llama", attention)
        settings = ours.LogQuantConfig(preset, window=64, select=select, kernels=kernels)  # type: ignore[arg-type]
        cache = getattr(ours, kind)(model.config, settings)
        for layer in cache.logquant_layers():
            layer.record_past = False  # a pass is one piece; in transformers 4 its newest tokens would be another
        with torch.no_grad():
            for start, end in ((0, 400), (400, 401), (401, 420)):
                out = forward(model, ids[:, start:end], cache)
        logits[attention, kernels] = out.logits[0]
    exact = logits["sdpa", "torch"]
    assert (logits["logquant", "torch"] - exact).norm() < 5e-3 * exact.norm()
    assert (logits["logquant", "native"] - exact).norm() < 0.1 * exact.norm()


def forward(model: Any, ids: Any, cache: Any, **more: Any) -> Any:
    return model(ids, **{cache_argument(model): cache}, use_cache=True, **more)


def test_sliding_layers_keep_their_class() -> None:
    from transformers.cache_utils import DynamicSlidingWindowLayer

    from pylogquant.transformers import LogQuantCache, LogQuantLayer

    model = with_attention("gemma3", "logquant")
    cache = LogQuantCache(model.config)
    assert [type(layer) for layer in cache.layers] == [DynamicSlidingWindowLayer, LogQuantLayer]
    assert cache.is_sliding == [True, False]
    generate(model, some_ids(1, 40), cache)
    assert cache.usage().ring_bytes > 0
    with pytest.raises(
        Unsupported, match=r"nothing to store of this model \(mistral\): .* are DynamicSlidingWindowLayer;"
    ):
        LogQuantCache(tiny("mistral").config)


@pytest.mark.parametrize("attention", ["logquant", "sdpa"])
def test_reset_crop_repeat_and_select(attention: str) -> None:
    import torch

    from pylogquant.transformers import LogQuantCache

    model = with_attention("llama", attention)
    ids = some_ids(2, 90)
    cache = LogQuantCache(model.config, large(attention))
    with torch.no_grad():
        wanted = forward(model, ids, cache).logits[:, -1]
        assert (cache.get_seq_length(), cache.usage().n_tokens, cache.logquant_layers()[0].batch_size) == (90, 90, 2)
        cache.reset()
        assert (cache.get_seq_length(), cache.usage().total_bytes) == (0, 0)
        forward(model, ids[:, :89], cache)
        forward(model, some_ids(2, 1, seed=5), cache)
        cache.crop(-1)
        assert cache.get_seq_length() == 89
        assert torch.allclose(forward(model, ids[:, 89:], cache).logits[:, -1], wanted, atol=2e-2)
        cache.crop(-1)
        cache.batch_repeat_interleave(2)
        again = forward(model, ids[:, 89:].repeat_interleave(2, 0), cache).logits[:, -1]
        assert torch.allclose(again, wanted.repeat_interleave(2, 0), atol=2e-2)
        cache.crop(-1)
        cache.batch_select_indices(torch.tensor([2, 0]))
        assert torch.allclose(forward(model, ids[[1, 0], 89:], cache).logits[:, -1], wanted[[1, 0]], atol=2e-2)
        cache.crop(-1)
        cache.reorder_cache(torch.tensor([1, 1]))
        assert torch.allclose(forward(model, ids[[0, 0], 89:], cache).logits[:, -1], wanted[[0, 0]], atol=2e-2)
        cache.crop(-90)
        assert cache.get_seq_length() == 0


def test_inference_mode_comes_and_goes() -> None:
    """torch forbids to write in place what was made in inference mode: pages are completed in and outside of it."""
    import torch

    from pylogquant.transformers import LogQuantCache, LogQuantConfig

    model, ids = with_attention("llama", "logquant"), some_ids(1, 640)
    logits = []
    for modes in ((torch.no_grad,) * 4, (torch.inference_mode, torch.no_grad, torch.inference_mode, torch.no_grad)):
        cache = LogQuantCache(model.config, LogQuantConfig("logquant", window=64))
        for part, mode in zip(ids.split(160, dim=1), modes, strict=True):
            with mode():
                out = forward(model, part, cache).logits[:, -1]
        cache.logquant_layers()[0].groups[0].store.crop(0)
        logits.append(out)
    assert torch.equal(*logits)


def test_layers_wait_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offloading with one device only: a layer goes after each of its turns, and comes before the next."""
    import torch

    from pylogquant.transformers import LogQuantCache
    from pylogquant.transformers.store import Store

    model = with_attention("llama", "logquant")
    cache = LogQuantCache(model.config, large("logquant"))
    moves: list[str] = []
    with torch.no_grad():
        wanted = forward(model, some_ids(1, 81), LogQuantCache(model.config, large("logquant"))).logits[:, -1]
        forward(model, some_ids(1, 81)[:, :80], cache)
        monkeypatch.setattr(Store, "move", lambda self, device: moves.append(str(device)))
        cache.offload(0)
        assert moves == ["cpu"]
        found = forward(model, some_ids(1, 81)[:, 80:], cache).logits[:, -1]
        assert moves == ["cpu", "cpu"]
        monkeypatch.setattr(Store, "device", torch.device("meta"))
        cache.layers[0].prefetch()
        assert moves == ["cpu", "cpu", "cpu"]
    assert torch.allclose(found, wanted, atol=1e-2)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["logquant", "logquant-small", "h2o"])
def test_selection_by_attention_needs_queries(preset: str) -> None:
    from pylogquant.transformers import H2OCache, LogQuantCache

    model = with_attention("llama", "sdpa")
    cache = H2OCache(model.config) if preset == "h2o" else LogQuantCache(model.config, preset)
    with pytest.raises(Unsupported, match=r'attn_implementation="logquant" \(this model has \'sdpa\'\)'):
        generate(model, some_ids(1, 8), cache)


def test_masks_that_it_does_not_have() -> None:
    import torch

    from pylogquant.transformers import LogQuantCache, StreamingCache

    model = with_attention("llama", "logquant")
    ids = some_ids(2, 20)
    for hidden in ((0, 19), (1, 7)):
        mask = torch.ones_like(ids)
        mask[hidden] = 0
        with pytest.raises(Unsupported, match="padding on the left only"), torch.no_grad():
            forward(model, ids, LogQuantCache(model.config), attention_mask=mask)
    with pytest.raises(Unsupported, match="no gradients"):
        forward(model, ids, LogQuantCache(model.config))
    with pytest.raises(ArgumentError, match="on that side only"):
        LogQuantCache(model.config, attention_mask=torch.tensor([[1, 1, 0]]))
    with_attention("llama", "sdpa")
    padded_ids, mask = padded(20, 15)
    with pytest.raises(Unsupported, match="different padding"):
        generate(model, padded_ids, StreamingCache(model.config), mask)


def test_models_whose_attention_goes_another_way() -> None:
    import torch

    from pylogquant.transformers import LogQuantCache

    model = with_attention("llama", "logquant")
    layer = LogQuantCache(model.config).logquant_layers()[0]
    k = torch.randn(1, 2, 4, 16)
    layer.update(k, k.clone())
    with pytest.raises(Unsupported, match="never reached"):
        layer.update(k.clone(), k.clone())
    layer.reset()
    with pytest.raises(Unsupported, match="same shape"):
        layer.update(k.clone(), torch.randn(1, 2, 4, 8))


def test_presets_belong_to_their_cache() -> None:
    from pylogquant.transformers import H2OCache, KiViCache, LogQuantCache, LogQuantConfig, StreamingCache

    config = tiny("llama").config
    for kind, preset in ((KiViCache, "kivi"), (H2OCache, "h2o"), (StreamingCache, "streaming")):
        assert kind(config).options.preset == preset
        assert kind(config, LogQuantConfig(preset, window=64)).options.window == 64
        with pytest.raises(ArgumentError, match=f"{kind.__name__} has no preset 'logquant'; it has {preset}"):
            kind(config, "logquant")
        with pytest.raises(ArgumentError, match="LogQuantCache has no preset"):
            LogQuantCache(config, preset)


def test_attention_without_a_cache_is_torchs() -> None:
    import torch

    ids = some_ids(2, 50)
    for name in ("llama", "gemma2", "gemma3"):
        logits = []
        for attention in ("eager", "logquant"):
            model = with_attention(name, attention)
            with torch.no_grad():
                logits.append(model(ids, use_cache=False).logits)
        assert torch.allclose(*logits, atol=1e-3)


def test_triton_where_it_is_asked_for_on_the_cpu() -> None:
    """Without the interpreter Triton has no CPU: the error is Triton's own, nothing else runs in its place."""
    import torch

    from pylogquant.transformers.config import LogQuantConfig
    from pylogquant.transformers.operations import NativeOperations, TorchOperations, operations_for

    assert type(operations_for(LogQuantConfig(), torch.device("cpu"))) is NativeOperations
    assert type(operations_for(LogQuantConfig(), torch.device("mps"))) is TorchOperations
    assert type(operations_for(LogQuantConfig(), torch.device("cuda"))).__name__ == "TritonOperations"
    with pytest.raises(ArgumentError, match="works on CPU tensors, not on cuda"):
        operations_for(LogQuantConfig(kernels="native"), torch.device("cuda"))
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "from pylogquant.transformers.config import LogQuantConfig\n"
        "from pylogquant.transformers.operations import operations_for\n"
        "operations_for(LogQuantConfig(), torch.device('cuda'))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    assert "needs Triton" in done.stderr
    assert "kernels='torch'" in done.stderr


def test_the_example_runs_offline(tmp_path: Path) -> None:
    """On a tiny model in a folder, with a tokenizer of words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(N_VOCAB)}, unk_token="w2"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", bos_token="w1").save_pretrained(tmp_path)
    tiny("llama").save_pretrained(tmp_path)
    example = Path(__file__).resolve().parents[2] / "examples" / "transformers_generate.py"
    command = [sys.executable, "-I", "-W", "ignore", str(example), str(tmp_path), "--prompt", "w7 " * 500]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, "--tokens", "8"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "507 tokens: 379 in full precision, 128 packed;" in done.stdout
