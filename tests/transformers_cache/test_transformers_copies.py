"""Caches of pylogquant.transformers that are copied, pickled and taken back: each then holds and answers, bit for bit,
what a fresh cache does that was given the same passes. Oracle tests: they need torch and transformers."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from test_transformers_generate import cache_argument, forward, generate, some_ids, tiny, with_attention
from test_transformers_store import state

from pylogquant.errors import ArgumentError, Unsupported

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

PRESETS = ("logquant", "logquant-small", "logquant-hq", "logquant-paper", "kivi", "h2o", "streaming")
PROMPT = 300  # tokens are given up on the way, and pages coded


def new_cache(preset: str, model: Any, **settings: Any) -> Any:
    from pylogquant.transformers import H2OCache, KiViCache, LogQuantCache, LogQuantConfig, StreamingCache

    kind = {"kivi": KiViCache, "h2o": H2OCache, "streaming": StreamingCache}.get(preset, LogQuantCache)
    return kind(model.config, LogQuantConfig(preset, window=64, threads=1, **settings))


def tell(model: Any, cache: Any, *passes: Any) -> Any:
    """Logits of the last pass."""
    import torch

    with torch.no_grad():
        for ids in passes:
            logits = forward(model, ids, cache).logits
    return logits


def steps(n: int, seed: int, n_rows: int = 1) -> list[Any]:
    """A question of 6 tokens, and single ones."""
    ids = some_ids(n_rows, 6 + n, seed=seed)
    return [ids[:, :6], *ids[:, 6:].split(1, dim=1)]


def assert_same_cache(a: Any, b: Any) -> None:
    import numpy as np

    assert a.get_seq_length() == b.get_seq_length()
    for one, other in zip(a.logquant_layers(), b.logquant_layers(), strict=True):
        for mine, its in zip(one.groups, other.groups, strict=True):
            ours, theirs = state(mine.store), state(its.store)
            assert ours.keys() == theirs.keys()
            for name, held in ours.items():
                assert np.array_equal(held, theirs[name]), name


def saved_by_pickle(cache: Any) -> Any:
    return pickle.loads(pickle.dumps(cache))


def saved_by_torch(cache: Any) -> Any:
    import torch

    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS: dict[str, Callable[[Any], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": saved_by_pickle,
    "torch.save": saved_by_torch,
}


@pytest.mark.parametrize("kernels", ["native", "torch"])
@pytest.mark.parametrize("preset", PRESETS)
def test_copies_go_their_own_way(preset: str, kernels: str) -> None:
    """transformers' recipe for a prompt that many questions share."""
    import torch

    model, prompt = with_attention("llama", "logquant"), some_ids(1, PROMPT)
    shared = new_cache(preset, model, kernels=kernels)
    tell(model, shared, prompt)
    copies = {way: make(shared) for way, make in WAYS.items()}
    for seed, (way, cache) in enumerate([*copies.items(), ("the original", shared)]):
        fresh = new_cache(preset, model, kernels=kernels)
        wanted = tell(model, fresh, prompt, *steps(70, seed))
        assert torch.equal(tell(model, cache, *steps(70, seed)), wanted), way
        assert_same_cache(cache, fresh)


def test_copies_in_inference_mode_and_of_other_layers() -> None:
    """generate() fills caches in no_grad(), others in inference_mode(); Gemma has layers of transformers' own."""
    import torch

    for name in ("llama", "gemma3"):
        model = with_attention(name, "logquant")
        shared = new_cache("logquant", model)
        with torch.inference_mode():
            forward(model, some_ids(1, PROMPT), shared)
        fresh = new_cache("logquant", model)
        wanted = tell(model, fresh, some_ids(1, PROMPT), *steps(3, 1))
        for make in WAYS.values():
            assert torch.equal(tell(model, make(shared), *steps(3, 1)), wanted)


def test_a_copy_follows_the_models_attention() -> None:
    """What the model's config says later holds for a deep copy too; a pickled one carries what it said then."""
    model = with_attention("llama", "sdpa")
    cache = new_cache("kivi", model)
    tell(model, cache, some_ids(1, 20))
    other, layer = copy.deepcopy(cache), saved_by_pickle(cache).layers[0]
    assert not other.layers[0].attends
    with_attention("llama", "logquant")
    assert other.layers[0].attends
    assert cache.layers[0].attends
    assert not layer.attends


def test_no_copy_in_the_middle_of_a_pass() -> None:
    import torch

    model = with_attention("llama", "logquant")
    cache = new_cache("logquant", model)
    cache.update(torch.zeros(1, 2, 3, 16), torch.zeros(1, 2, 3, 16), 0)
    for make in WAYS.values():
        with pytest.raises(Unsupported, match="in the middle of a forward pass"):
            make(cache)
    cache.reset()
    assert copy.deepcopy(cache).get_seq_length() == 0


# ---- going back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", ["native", "torch"])
@pytest.mark.parametrize("preset", PRESETS)
def test_back_to_a_checkpoint(preset: str, kernels: str) -> None:
    """However much came since: tokens were given up, pages coded, the room for pages grew."""
    import torch

    model, prompt = with_attention("llama", "logquant"), some_ids(1, PROMPT)
    cache = new_cache(preset, model, kernels=kernels)
    tell(model, cache, prompt)
    cache.checkpoint()
    for seed in range(2):
        tell(model, cache, some_ids(1, 600, seed=9), *steps(20, seed))
        cache.crop(PROMPT - cache.get_seq_length())
        assert cache.get_seq_length() == PROMPT
        fresh = new_cache(preset, model, kernels=kernels)
        tell(model, fresh, prompt)
        assert_same_cache(copy.deepcopy(cache), fresh)
        wanted = tell(model, fresh, *steps(70, seed))
        assert torch.equal(tell(model, cache, *steps(70, seed)), wanted)
        assert_same_cache(cache, fresh)
        cache.crop(PROMPT)  # a positive number is how many to keep


@pytest.mark.parametrize("n_prompt", [40, PROMPT])
def test_back_to_a_checkpoint_with_other_layers_and_rows(n_prompt: int) -> None:
    """Gemma's sliding layers past their window come back, too; rows that are repeated or chosen take theirs along."""
    import torch

    model = with_attention("gemma3", "logquant")
    prompt = some_ids(2, n_prompt)
    cache = new_cache("logquant", model)
    tell(model, cache, prompt)
    cache.checkpoint()
    tell(model, cache, *steps(80, 1, 2))
    cache.batch_repeat_interleave(2)
    cache.reorder_cache(torch.tensor([3, 0, 0, 1]))
    tell(model, cache, *steps(8, 1, 4))
    cache.batch_select_indices(torch.tensor([0, 1]))
    cache.crop(n_prompt - cache.get_seq_length())
    fresh = new_cache("logquant", model)
    tell(model, fresh, prompt[[1, 0]])
    assert torch.equal(tell(model, cache, *steps(40, 2, 2)), tell(model, fresh, *steps(40, 2, 2)))
    assert_same_cache(cache, fresh)


@pytest.mark.parametrize("preset", ["logquant", "logquant-hq", "h2o", "logquant-paper"])
def test_back_to_a_prompt_while_nothing_was_given_up(preset: str) -> None:
    """Without a checkpoint: what the prompt's queries gave is remembered at the end of each pass of several tokens."""
    import torch

    model, prompt = with_attention("llama", "logquant"), some_ids(1, 100)
    cache, fresh = new_cache(preset, model), new_cache(preset, model)
    tell(model, cache, prompt, *steps(50, 1), some_ids(1, 5, seed=3), some_ids(1, 1))
    tell(model, fresh, prompt)
    cache.crop(100 - cache.get_seq_length())
    assert torch.equal(tell(model, cache, *steps(30, 2)), tell(model, fresh, *steps(30, 2)))
    assert_same_cache(cache, fresh)


def test_what_cannot_be_undone_is_refused_and_changes_nothing() -> None:
    import torch

    for name in ("llama", "gemma3"):
        model, prompt = with_attention(name, "logquant"), some_ids(1, PROMPT)
        cache, fresh = new_cache("logquant", model), new_cache("logquant", model)
        for each in (cache, fresh):
            tell(model, each, prompt, *steps(100, 1))
        with pytest.raises(ArgumentError, match=r"checkpoint\(\) where you want to return to.*copy\.deepcopy"):
            cache.crop(-106)
        assert cache.get_seq_length() == fresh.get_seq_length()
        assert torch.equal(tell(model, cache, *steps(3, 1)), tell(model, fresh, *steps(3, 1)))
        assert_same_cache(cache, fresh)


def test_a_checkpoint_goes_with_what_it_stood_on() -> None:
    model = with_attention("llama", "logquant")
    cache = new_cache("logquant", model)
    cache.checkpoint()  # of nothing: nothing
    tell(model, cache, some_ids(1, 50))
    tell(model, cache, some_ids(1, 30))
    before = cache.usage().total_bytes
    cache.checkpoint()
    tell(model, cache, some_ids(1, 200))
    assert cache.usage().total_bytes > before
    cache.crop(80)
    cache.crop(50)  # before it
    tell(model, cache, some_ids(1, 30, seed=5), *steps(250, 1))
    with pytest.raises(ArgumentError, match="cannot be taken back"):
        cache.crop(80)
    cache.reset()
    tell(model, cache, some_ids(1, 400))
    with pytest.raises(ArgumentError, match="cannot be taken back"):
        cache.crop(80)


def test_a_prompt_read_once_in_generate() -> None:
    """By copies and by going back: the answers of caches of their own."""
    import torch

    model, prompt = tiny("llama"), some_ids(1, PROMPT)
    with_attention("llama", "logquant")
    questions = [torch.cat([prompt, some_ids(1, 6, seed=seed)], dim=1) for seed in (1, 2)]
    cache = new_cache("logquant", model)
    tell(model, cache, prompt)
    cache.checkpoint()
    found = []
    for ids in questions:
        found.append(generate(model, ids, copy.deepcopy(cache), max_new_tokens=40).tolist())
        found.append(generate(model, ids, cache, max_new_tokens=40).tolist())
        cache.crop(PROMPT - cache.get_seq_length())
    for i, ids in enumerate(questions):
        alone = new_cache("logquant", model)
        tell(model, alone, prompt)
        wanted = generate(model, ids, alone, max_new_tokens=40).tolist()
        assert found[2 * i] == found[2 * i + 1] == wanted
    assert cache_argument(model) in ("cache", "past_key_values")
