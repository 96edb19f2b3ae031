"""KvLayer: attention over a KV cache without a model, as Python sees it. Its numbers: test_kv_*.py."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import pylogquant
from pylogquant import KvLayer, KvOptions

N_HEADS, N_KV_HEADS, HEAD_DIM = 4, 2, 16
Floats = npt.NDArray[np.float32]


def tokens(n: int, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    rng = np.random.default_rng(seed)
    heads = (N_HEADS, N_KV_HEADS, N_KV_HEADS)
    q, k, v = (rng.standard_normal((n, h, HEAD_DIM)).astype(np.float32) for h in heads)
    return q, k, v


def layer(n_ctx: int = 512, kv: KvOptions | str = "f16", **options: Any) -> KvLayer:
    return KvLayer(N_HEADS, N_KV_HEADS, HEAD_DIM, n_ctx, kv, threads=1, **options)


def reference(q: Floats, k: Floats, v: Floats, scale: float) -> npt.NDArray[np.float64]:
    """Causal attention from position 0 on."""
    k, v = (np.repeat(x, N_HEADS // N_KV_HEADS, axis=1) for x in (k, v))
    scores = np.einsum("ihd,jhd->hij", q.astype(np.float64), k) * scale
    scores += np.where(np.triu(np.ones(scores.shape[1:]), 1), -np.inf, 0.0)
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(np.einsum("hij,jhd->ihd", p / p.sum(axis=-1, keepdims=True), v))


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_attends_causally_and_remembers(scale: float) -> None:
    q, k, v = tokens(40)
    with layer(scale=scale, chunk=16) as one:
        parts = [one.attend(q[i : i + 16], k[i : i + 16], v[i : i + 16]) for i in (0, 16, 32)]
        assert one.cache.usage().n_tokens == 40
    out = np.concatenate(parts)
    assert out.dtype == np.float32
    assert out.shape == q.shape
    wanted = reference(q, k, v, scale or HEAD_DIM**-0.5)
    assert np.linalg.norm(out - wanted) < 2e-3 * np.linalg.norm(wanted)


def test_any_float_array_will_do() -> None:
    q, k, v = tokens(8)
    with layer() as one:
        wanted = one.attend(q, k, v)
    wide = np.zeros((8, N_HEADS, 2 * HEAD_DIM))
    wide[..., ::2] = q
    with layer() as one:
        assert np.array_equal(one.attend(wide[..., ::2], k.astype(np.float64), v.tolist()), wanted)
    with layer() as one:
        half = one.attend(q.astype(np.float16), k.astype(np.float16), v.astype(np.float16))
    assert np.allclose(half, wanted, atol=0.02)


def replaced(index: int, value: Any) -> tuple[Any, Any, Any]:
    given: list[Any] = list(tokens(8))
    given[index] = value
    return given[0], given[1], given[2]


BAD: dict[str, tuple[tuple[Any, Any, Any], str]] = {
    "too few heads": (replaced(0, np.zeros((8, 3, HEAD_DIM))), r"q must have the shape \(tokens, 4, 16\), not \(8, 3"),
    "query heads": (replaced(1, np.zeros((8, N_HEADS, HEAD_DIM))), r"k must have the shape \(tokens, 2, 16\)"),
    "flat": (replaced(2, np.zeros(8 * 2 * HEAD_DIM)), "v must have the shape"),
    "integers": (replaced(1, np.zeros((8, 2, HEAD_DIM), dtype=int)), "k must be an array of floats, not of int"),
    "ragged": (replaced(0, [[1.0], [1.0, 2.0]]), "q must be an array of floats"),
    "lengths": (replaced(2, np.zeros((7, 2, HEAD_DIM))), "as many tokens each, not 8, 8, 7"),
    "none": (tokens(0), "no tokens"),
    "a chunk and one": (tokens(17), "16|chunk"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_refused_and_change_nothing(case: str) -> None:
    given, words = BAD[case]
    with layer(chunk=16) as one:
        with pytest.raises(pylogquant.ArgumentError, match=words):
            one.attend(*given)
        assert one.cache.usage().n_tokens == 0


def test_a_full_layer_refuses_and_stays_as_it_is() -> None:
    with layer(20) as one:
        one.attend(*tokens(15))
        with pytest.raises(pylogquant.ContextFull):
            one.attend(*tokens(6))
        one.attend(*tokens(5))
        assert one.cache.usage().n_tokens == 20


BAD_LAYERS: dict[str, Callable[[], KvLayer]] = {
    "heads": lambda: KvLayer(3, 2, 16, 64),
    "no heads": lambda: KvLayer(0, 0, 16, 64),
    "no context": lambda: KvLayer(4, 2, 16, 0),
    "negative": lambda: KvLayer(4, 2, 16, -1),
    "options": lambda: KvLayer(4, 2, 16, 64, KvOptions("q8_0", window=64)),
    "kind": lambda: KvLayer(4, 2, 16, 64, 3),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", BAD_LAYERS)
def test_layers_that_cannot_be(case: str) -> None:
    with pytest.raises(pylogquant.ArgumentError):
        BAD_LAYERS[case]()


def test_head_sizes_and_types_that_do_not_exist() -> None:
    with pytest.raises(pylogquant.Unsupported, match="multiple of 8"):
        KvLayer(4, 2, 12, 64, "logquant")
    with pytest.raises(pylogquant.Unsupported, match="logquant-small"):
        KvLayer(4, 2, 16, 64, "q4_1")


def test_rewind() -> None:
    q, k, v = tokens(50)
    with layer() as one:
        wanted = one.attend(q, k, v)
        assert one.rewind(60) == 50
        assert one.rewind(30) == 30
        again = one.attend(q[30:], k[30:], v[30:])
        assert np.allclose(again, wanted[30:], atol=1e-5)
        assert one.rewind(0) == 0
        assert one.cache.usage().n_tokens == 0
        with pytest.raises(pylogquant.ArgumentError):
            one.rewind(-1)
    with layer(kv="logquant") as one:
        one.attend(q, k, v)
        assert one.rewind(30) == 0  # accumulated attention cannot be taken back
        assert np.array_equal(one.attend(q, k, v), wanted_of_a_fresh_one(q, k, v))


def wanted_of_a_fresh_one(q: Floats, k: Floats, v: Floats) -> Floats:
    with layer(kv="logquant") as one:
        return one.attend(q, k, v)


def test_the_default_is_logquant_and_gives_tokens_up() -> None:
    with KvLayer(N_HEADS, N_KV_HEADS, HEAD_DIM, 512, threads=1) as one:
        one.attend(*tokens(500))
        usage = one.cache.usage()
        assert (usage.n_sinks, usage.n_full, usage.n_packed) == (4, 368, 128)
        for head in range(N_KV_HEADS):
            full = one.cache.full(0, head)
            assert len(full.positions) == 4 + 368
            assert (np.diff(full.positions.astype(int)) > 0).all()
            kept = {int(p) for p in full.positions}
            for index in range(usage.n_pages):
                mask = one.cache.page(0, head, index).mask
                assert {4 + 64 * index + bit for bit in range(64) if mask >> bit & 1} <= kept


def test_use_after_close() -> None:
    one = layer()
    view = one.cache
    one.close()
    one.close()
    for call in (lambda: one.attend(*tokens(1)), lambda: one.rewind(0), view.usage, lambda: view.full(0, 0)):
        with pytest.raises(pylogquant.ClosedError):
            call()


def test_a_view_keeps_its_layer_alive() -> None:
    view = layer().cache
    gc.collect()
    assert view.usage().n_tokens == 0
