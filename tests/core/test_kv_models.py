"""Pages of real and generated models' keys and values: sessions of the core against the NumPy oracle, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kv_oracle import PAGE, RECIPES, Format, encode_page, learn_order
from make_tiny_gguf import make_tiny

from pylogquant import Model
from pylogquant.errors import ArgumentError
from pylogquant.kv import KvOptions, KvView

PRESETS = ("logquant", "logquant-small", "logquant-hq", "logquant-paper", "kivi")
N_TOKENS = 420  # above 3W of every preset


def global_layers(view: KvView, n_layers: int) -> list[int]:
    """Layers that have pages."""
    found = []
    for layer in range(n_layers):
        try:
            view.page(layer, 0, 0)
            found.append(layer)
        except ArgumentError:
            continue
    return found


def check_pages(model: Model, kv: str, ids: Sequence[int]) -> None:
    """Codes again what a session with a huge window still has. That must be its pages, and those of a session of the
    type itself, which got the same prompt in the same one chunk."""
    recipe, info, n = RECIPES[kv], model.info(), len(ids)
    form = Format(recipe, info.head_dim)
    n_pages = (n - recipe.sinks) // PAGE
    paged = slice(recipe.sinks, recipe.sinks + n_pages * PAGE)
    with model.session(n, KvOptions(kv, window=192, overlay="f16")) as whole, model.session(n, kv) as own:
        for session in (whole, own):
            session.prefill(ids)
        used = own.kv.usage()
        assert (used.n_tokens, used.n_sinks, used.n_pages) == (n, recipe.sinks, n_pages)
        assert used.n_full == 2 * recipe.window + (n - recipe.sinks) % recipe.window
        layers = global_layers(whole.kv, info.n_layers)
        assert len(layers) == info.n_global_layers
        for layer in layers:
            heads = range(info.n_kv_heads)
            full = [whole.kv.full(layer, head) for head in heads]
            assert all(np.array_equal(head.positions, np.arange(n)) for head in full)
            keys, values = (
                np.stack([x[paged].reshape(n_pages, PAGE, -1) for x in per_head])
                for per_head in ([head.k for head in full], [head.v for head in full])
            )
            order = learn_order(form, keys[:, 0])
            records = encode_page(form, keys, values, np.repeat(order[:, None], n_pages, axis=1))
            for head in heads:
                assert np.array_equal(whole.kv.order(layer, head), order[head])
                assert np.array_equal(own.kv.order(layer, head), order[head])
                kept = own.kv.full(layer, head).positions.astype(int)
                assert len(kept) == used.n_sinks + used.n_full
                assert np.all(np.diff(kept) > 0)
                for page in range(n_pages):
                    wanted, found = whole.kv.page(layer, head, page), own.kv.page(layer, head, page)
                    assert wanted.record == found.record == records[head, page].tobytes()
                    assert wanted.mask == 2**64 - 1
                    places = kept - recipe.sinks - page * PAGE
                    assert found.mask == sum(1 << int(t) for t in places if 0 <= t < PAGE)


def check_real_model(path: Path, presets: Sequence[str]) -> None:
    text = (Path(__file__).parents[1] / "data" / "prose.txt").read_text()
    with Model(path, threads=2) as model:
        ids = model.tokenizer.encode(text)[:N_TOKENS]
        assert len(ids) == N_TOKENS
        for kv in presets:
            check_pages(model, kv, ids)


def test_pages_of_smollm2(smollm2_path: Path) -> None:
    check_real_model(smollm2_path, PRESETS)


def test_pages_of_gemma(gemma_path: Path) -> None:
    check_real_model(gemma_path, ("logquant", "logquant-small"))


@pytest.mark.tiny_model
@pytest.mark.parametrize(
    "shape",
    [
        {"arch": "llama"},
        {"arch": "llama", "head_dim": 80, "n_heads": 6, "n_kv_heads": 2},
        {"arch": "gemma3"},
        {"arch": "gemma3", "head_dim": 256, "n_heads": 4, "n_kv_heads": 1, "window": 5},
    ],
    ids=lambda shape: f"{shape['arch']}-{shape.get('head_dim', 'default')}",
)
def test_pages_of_tiny_models(shape: dict[str, Any], tmp_path: Path) -> None:
    path = make_tiny(tmp_path / "m.gguf", **shape)
    with Model(path, threads=2) as model:
        ids = [int(i) for i in np.random.default_rng(1).integers(0, model.info().n_vocab, N_TOKENS)]
        for kv in PRESETS:
            check_pages(model, kv, ids)
