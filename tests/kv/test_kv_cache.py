"""Whole KV caches: what they keep, what attention reads and gives, going back; the core against the NumPy oracle."""

from __future__ import annotations

import copy
import itertools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kv_cache_oracle import Cache, compare, hard_values, random_tokens, relative_errors
from kv_oracle import F32, PAGE, RECIPES, Format, recipe_of

from pylogquant.errors import ArgumentError, ContextFull
from pylogquant.kv import KvLayer, KvOptions

pytestmark = pytest.mark.tiny_model  # once per SIMD level

PRESETS = ("logquant", "logquant-small", "logquant-hq", "logquant-paper")
CODED = (*PRESETS, "kivi")
DROPPING = ("streaming", "h2o")
TYPES = (*CODED, *DROPPING, "q4_0", "q4_0-plain", "q8_0", "f16")
# Of a query's output, relative, by norm. Many queries meet cells as numbers of 16 bits at some levels; 1e-3 is what
# that makes of hard_values().
BOUND = 5e-5 if os.environ.get("LQ_CPU") == "scalar" else 2e-3
# Levels above scalar round weights to integers, as the oracle does; one that lies between two integers may become
# either, and its query is off by about a hundredth of what that token is worth to it. This happens to few.
FEW, BOUND_OF_FEW = 0.03, 0.02


class Both:
    """A layer of the core and the oracle's, fed alike."""

    def __init__(
        self,
        kv: KvOptions | str,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        n_ctx: int,
        *,
        scale: float = 0.0,
        holds: int = 0,
    ) -> None:
        self.layer = KvLayer(
            n_heads, n_kv_heads, head_dim, holds or n_ctx, kv, chunk=n_ctx, limit=n_ctx, threads=2, scale=scale
        )
        self.cache = Cache(recipe_of(kv), n_heads, n_kv_heads, head_dim, n_ctx, scale=scale, holds=holds)
        self.n_queries = self.n_beyond = 0

    def feed(self, q: F32, k: F32, v: F32, chunks: Iterable[int]) -> F32:
        """Feeds all tokens, cut into chunks; the outputs must agree."""
        outputs, start = [], 0
        for n in chunks:
            part = slice(start, start + n)
            start += n
            ours = self.layer.attend(q[part], k[part], v[part])
            wanted = self.cache.attend(q[part], k[part], v[part], lambda head: self.layer.cache.full(0, head).positions)
            errors = relative_errors(ours, wanted)
            assert errors.max() < (BOUND if os.environ.get("LQ_CPU") == "scalar" else BOUND_OF_FEW)
            self.n_queries += errors.size
            self.n_beyond += int((errors > BOUND).sum())
            outputs.append(ours)
        assert start == len(q)
        assert self.n_beyond <= FEW * self.n_queries
        return np.concatenate(outputs)

    def check(self) -> None:
        assert compare(self.layer.cache, self.cache) == []

    def __enter__(self) -> Both:
        return self

    def __exit__(self, *_: object) -> None:
        self.layer.close()


def random_cut(rng: np.random.Generator, n: int, most: int) -> list[int]:
    """n as a sum of chunks of 1 to `most` tokens, short ones about as often as long ones."""
    chunks: list[int] = []
    while n > 0:
        chunks.append(min(n, int(np.exp(rng.uniform(0, np.log(most + 1))))))
        n -= chunks[-1]
    return chunks


# ---- state and output ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("kv", TYPES)
def test_state_and_output(kv: str, head_dim: int) -> None:
    """A prompt in uneven chunks, then single tokens; tokens are given up several times."""
    rng = np.random.default_rng(head_dim)
    n = 3 * max(RECIPES[kv].window, 64) + 300
    q, k, v = random_tokens(rng, n, 4, 2, head_dim)
    with Both(kv, 4, 2, head_dim, n) as both:
        both.feed(q[: n - 20], k[: n - 20], v[: n - 20], random_cut(rng, n - 20, 200))
        both.check()
        both.feed(q[n - 20 :], k[n - 20 :], v[n - 20 :], [1] * 20)
        both.check()
        assert (both.cache.n_given_up > 0) == both.cache.selects


@pytest.mark.parametrize("ratio", range(1, 9))
@pytest.mark.parametrize("kv", ["logquant", "logquant-paper"])
def test_query_heads_share_kv_heads(kv: str, ratio: int) -> None:
    rng = np.random.default_rng(ratio)
    kv = kv if kv == "logquant-paper" else KvOptions(kv, window=64)  # type: ignore[assignment]
    q, k, v = random_tokens(rng, 450, 3 * ratio, 3, 64)
    with Both(kv, 3 * ratio, 3, 64, 450) as both:
        both.feed(q, k, v, [200, 1, 130, 1, 1, 117])
        both.check()
        assert both.cache.n_given_up >= 128


SETTINGS = st.builds(
    KvOptions,
    name=st.sampled_from(CODED),
    keys=st.sampled_from([None, "1", "2", "3", "4", "5", "4:3/8,2:3/8,1:1/4", "5:1/8,3:1/2,1:3/8"]),
    value_bits=st.sampled_from([0, 2, 3, 4]),
    window=st.sampled_from([0, 64, 128, 192]),
    sinks=st.none() | st.integers(0, 8),
    overlay=st.sampled_from([None, "f16", "q8_0"]),
    select=st.sampled_from([None, "even", "newest", "heaviest"]),
) | st.builds(
    KvOptions,
    name=st.sampled_from(DROPPING),
    window=st.sampled_from([64, 128]),
    sinks=st.none() | st.integers(0, 8),
    overlay=st.sampled_from([None, "f16", "q8_0"]),
    select=st.sampled_from([None, "even", "newest", "heaviest"]),
)


@settings(max_examples=40, deadline=None)
@given(
    kv=SETTINGS,
    seed=st.integers(0, 2**32 - 1),
    head_dim=st.sampled_from([16, 40, 64, 80, 112]),
    ratio=st.integers(1, 8),
    n=st.integers(1, 700),
)
@example(kv=KvOptions(sinks=64, window=64), seed=1, head_dim=64, ratio=2, n=400)
@example(kv=KvOptions(sinks=63, window=64, overlay="q8_0"), seed=1, head_dim=64, ratio=2, n=400)
def test_free_combinations(kv: KvOptions, seed: int, head_dim: int, ratio: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    q, k, v = random_tokens(rng, n, ratio, 1, head_dim)
    with Both(kv, ratio, 1, head_dim, n) as both:
        both.feed(q, k, v, random_cut(rng, n, 400))
        both.check()


@pytest.mark.parametrize("kv", TYPES)
def test_hard_inputs(kv: str) -> None:
    """Constant, zero, tiny and huge channels; queries small enough that many tokens count."""
    rng = np.random.default_rng(7)
    n, head_dim = 500, 80
    k, v = hard_values(rng, n, 2, head_dim), hard_values(rng, n, 2, head_dim) * np.float32(0.01)
    q = rng.standard_normal((n, 4, head_dim)).astype(np.float32) / np.float32(np.abs(k).max())
    with Both(kv, 4, 2, head_dim, n) as both:
        both.feed(q, k, v, [150, 1, 99, 250])
        both.check()


def test_scale_of_scores() -> None:
    q, k, v = random_tokens(np.random.default_rng(0), 300, 2, 2, 64)
    outputs = []
    for scale in (0.0, 0.125, 0.25):
        with Both(KvOptions(window=64), 2, 2, 64, 300, scale=scale) as both:
            outputs.append(both.feed(q, k, v, [250, 1, 49]))
            both.check()
    assert np.array_equal(outputs[0], outputs[1])  # 1 / sqrt(64)
    assert float(np.abs(outputs[0] - outputs[2]).max()) > 0.1


@pytest.mark.parametrize("overlay", ["f16", "q8_0"])
@pytest.mark.parametrize("select", ["even", "newest", "heaviest"])
def test_token_by_token(select: Any, overlay: Any) -> None:
    """Decode alone, through two rounds of giving up."""
    q, k, v = random_tokens(np.random.default_rng(11), 330, 3, 1, 64)
    with Both(KvOptions(window=64, select=select, overlay=overlay), 3, 1, 64, 330) as both:
        for i in range(330):
            both.feed(q[i : i + 1], k[i : i + 1], v[i : i + 1], [1])
            if i in (3, 4, 66, 67, 68, 195, 196, 197, 259, 260, 261, 329):
                both.check()


# ---- which tokens stay -----------------------------------------------------------------------------------------------


class Prompt:
    """A prompt of the chunking tests and, from the oracle fed token by token, the cache after any part of it."""

    def __init__(self, kv: KvOptions, n: int) -> None:
        self.kv, self.head_dim = kv, 16
        self.q, self.k, self.v = random_tokens(np.random.default_rng(n), n, 2, 2, self.head_dim)
        self._caches = {0: Cache(recipe_of(self.kv), 2, 2, self.head_dim, n)}

    def by_tokens(self, n: int) -> Cache:
        if n not in self._caches:
            nearest = max(m for m in self._caches if m < n)
            self._caches[n] = copy.deepcopy(self._caches[nearest])
            for i in range(nearest, n):
                self._caches[n].attend(self.q[i : i + 1], self.k[i : i + 1], self.v[i : i + 1])
        return self._caches[n]


PROMPTS = [
    Prompt(KvOptions(window=64, select="even"), 900),
    Prompt(KvOptions("logquant-paper"), 900),
    Prompt(KvOptions(window=128, select="even", sinks=7, overlay="q8_0"), 900),
]
NEAR_MULTIPLES = sorted(
    {w * m + sinks + off for w in (64, 128) for m in range(1, 8) for sinks in (0, 4, 7) for off in (-1, 0, 1)}
    & set(range(1, 901))
)


@settings(max_examples=60, deadline=None)
@given(
    prompt=st.sampled_from(PROMPTS),
    n=st.sampled_from(NEAR_MULTIPLES) | st.integers(1, 900),
    seed=st.integers(0, 2**32 - 1),
    most=st.sampled_from([1, 5, 64, 128, 192, 500, 900]),
)
def test_even_keeps_the_same_tokens_however_the_prompt_is_cut(prompt: Prompt, n: int, seed: int, most: int) -> None:
    wanted = prompt.by_tokens(n)
    chunks = random_cut(np.random.default_rng(seed), n, most)
    with KvLayer(2, 2, prompt.head_dim, 900, prompt.kv, chunk=900, threads=1) as layer:
        for start, end in itertools.pairwise(itertools.accumulate(chunks, initial=0)):
            layer.attend(prompt.q[start:end], prompt.k[start:end], prompt.v[start:end])
        assert compare(layer.cache, wanted) == []


@pytest.mark.parametrize("w", [64, 128])
@pytest.mark.parametrize("chunk", [64, 192, 384, 600])
def test_even_thins_out_with_age(w: int, chunk: int) -> None:
    """W tokens of every density, the newest whole, then every second one, then every fourth ..."""
    n = 8 * w
    _, k, v = random_tokens(np.random.default_rng(0), n, 1, 1, 16)
    with KvLayer(1, 1, 16, n, KvOptions(window=w, select="even", sinks=0), chunk=chunk) as layer:
        for start in range(0, n, chunk):
            layer.attend(np.zeros_like(k[start : start + chunk]), k[start : start + chunk], v[start : start + chunk])
        positions = layer.cache.full(0, 0).positions.astype(int)
    assert len(positions) == 2 * w
    assert positions[0] == 0
    assert list(np.diff(positions[-w:])) == [1] * (w - 1)
    steps = np.diff(positions[: w + 1])
    assert np.all(steps[:-1] >= steps[1:])
    assert set(steps.tolist()) <= {2**i for i in range(8)}


def test_heaviest_keeps_every_second_token_if_those_are_looked_at() -> None:
    """All queries look at odd positions: these stay, and the first token, which its own query looked at alone; the
    older half where all receive as little."""
    n, w = 3 * 64, 64
    k = np.zeros((n, 2, 16), np.float32)
    k[1::2, 0, 0] = 8.0
    k[0, 1, 0] = 400.0  # head 1: all attention goes to the first token, the others get next to nothing
    q = np.zeros((n, 2, 16), np.float32)
    q[..., 0] = 4.0
    kv = KvOptions(window=w, select="heaviest", sinks=0)
    with KvLayer(2, 2, 16, n, kv) as layer:
        layer.attend(q, k, k)
        found = layer.cache.full(0, 0)
        assert list(found.positions) == [0, *range(1, 126, 2), *range(128, 192)]
        assert np.all(found.accumulated[1:60] > 0.1)
        nothing = layer.cache.full(0, 1)
        assert list(nothing.positions) == [*range(64), *range(128, 192)]
        assert nothing.accumulated[0] == 192.0
        assert np.all(nothing.accumulated[1:4] < 1e-26)


def test_heaviest_keeps_what_is_looked_at() -> None:
    """Queries look at the first 5 of each 16 tokens: of all candidates these 40 stay, and then the oldest."""
    n, w = 3 * 64, 64
    k = np.zeros((n, 1, 16), np.float32)
    k[:, 0, 0] = np.where(np.arange(n) % 16 < 5, 400.0 - np.arange(n) % 16, 0.0)
    q = np.zeros((n, 1, 16), np.float32)
    q[..., 0] = 0.1
    with KvLayer(1, 1, 16, n, KvOptions(window=w, select="heaviest", sinks=0)) as layer:
        layer.attend(q, k, k)
        positions = layer.cache.full(0, 0).positions
    looked_at = np.arange(n) % 16 < 5
    rest = np.flatnonzero(~looked_at[:128])[: 64 - looked_at[:128].sum()]
    assert list(positions) == [*np.union1d(np.flatnonzero(looked_at[:128]), rest), *range(128, 192)]


def test_heaviest_differs_from_even() -> None:
    """Guards the comparison above: with ordinary inputs the two selections keep different tokens, and so do heads."""
    q, k, v = random_tokens(np.random.default_rng(4), 500, 2, 2, 64)
    with Both(KvOptions(window=64, select="heaviest"), 2, 2, 64, 500) as both:
        both.feed(q, k, v, [300, 200])
        both.check()
        assert both.cache.n_ties <= 2  # the oracle decided nearly all by itself
        heads = [set(both.layer.cache.full(0, head).positions.tolist()) for head in range(2)]
    assert heads[0] != heads[1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
@pytest.mark.parametrize("kv", TYPES)
def test_keys_that_are_no_halves(kv: str, bad: float) -> None:
    """Broken inputs give broken outputs, but the cache keeps its order: as many tokens as ever, each of them once."""
    n = 700
    q, k, v = random_tokens(np.random.default_rng(0), n, 2, 2, 64)
    k[::50], v[::70], k[..., 3] = bad, bad, bad
    with KvLayer(2, 2, 64, n, kv) as layer:
        for part in (slice(0, 300), slice(300, n)):
            layer.attend(q[part], k[part], v[part])
        usage = layer.cache.usage()
        assert usage.n_tokens == n == usage.n_sinks + usage.n_full + usage.n_packed + usage.n_dropped
        for head in range(2):
            positions = layer.cache.full(0, head).positions.astype(int)
            assert len(positions) == usage.n_sinks + usage.n_full
            assert np.all(np.diff(positions) > 0)
            for page in range(usage.n_pages):
                places = positions - RECIPES[kv].sinks - page * PAGE
                assert layer.cache.page(0, head, page).mask == sum(1 << int(t) for t in places if 0 <= t < PAGE)
            if kv in CODED and usage.n_pages:
                assert sorted(layer.cache.order(0, head).tolist()) == list(range(64))


# ---- counts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", PRESETS)
def test_usage(kv: str) -> None:
    w, sinks, n = RECIPES[kv].window, RECIPES[kv].sinks, 1200
    _, k, v = random_tokens(np.random.default_rng(0), n, 2, 2, 64)
    form = Format(RECIPES[kv], 64)
    most, start = 0, 0
    with KvLayer(2, 2, 64, n, kv) as layer:
        for chunk in random_cut(np.random.default_rng(1), n, 90):
            part = slice(start, start + chunk)
            layer.attend(np.zeros_like(k[part]), k[part], v[part])
            start += chunk
            u = layer.cache.usage()
            assert u.n_tokens == start == u.n_sinks + u.n_full + u.n_packed
            assert u.n_sinks == min(start, sinks)
            assert u.n_full == min(start - u.n_sinks, 2 * w + (start - u.n_sinks) % w)
            assert u.n_pages == (start - u.n_sinks) // PAGE
            assert u.mask_bytes == 2 * 8 * u.n_pages
            assert u.code_bytes == 2 * u.n_pages * (form.k_bytes + form.v_bytes)
            block = -(-2 * form.record_bytes // 64) * 64
            assert u.code_bytes + u.scale_bytes == u.n_pages * block
            # open page and overlay hold 3W tokens less one, which is when W are given up; allocated once
            cells = (sinks + PAGE) * 2 * 64 + (3 * w - PAGE) * (2 * 64 if RECIPES[kv].overlay == "f16" else 64 + 2 * 2)
            assert u.full_bytes == 2 * 2 * cells
            assert 0 < u.index_bytes <= 2 * (8 * (sinks + 3 * w) + 2 * 64)
            assert u.ring_bytes == 0
            most = max(most, u.n_full)
    assert 2 * w < most < 3 * w


@pytest.mark.parametrize(("kv", "cell_bytes"), [("f16", 2 * 80), ("q8_0", 80 + 2 * 3), ("q4_0", 18 * 3)])
def test_usage_without_pages(kv: str, cell_bytes: int) -> None:
    _, k, v = random_tokens(np.random.default_rng(0), 150, 2, 2, 80)
    with KvLayer(2, 2, 80, 200, kv) as layer:
        layer.attend(np.zeros_like(k), k, v)
        u = layer.cache.usage()
    assert (u.n_tokens, u.n_sinks, u.n_full, u.n_packed, u.n_pages) == (150, 0, 150, 0, 0)
    assert u.full_bytes % (2 * 2 * cell_bytes) == 0
    assert u.full_bytes >= 150 * 2 * 2 * cell_bytes


def test_a_full_layer_refuses_more() -> None:
    q, k, v = random_tokens(np.random.default_rng(0), 300, 1, 1, 16)
    with Both("logquant", 1, 1, 16, 300) as both:
        both.feed(q[:299], k[:299], v[:299], [299])
        with pytest.raises(ContextFull):
            both.layer.attend(q[:2], k[:2], v[:2])
        both.check()
        both.feed(q[299:], k[299:], v[299:], [1])
        both.check()
        with pytest.raises(ContextFull):
            both.layer.attend(q[:1], k[:1], v[:1])
    with KvLayer(1, 1, 16, 300, chunk=10) as layer, pytest.raises(ArgumentError):
        layer.attend(q[:11], k[:11], v[:11])


# ---- the oldest make room --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kv", [*(KvOptions(name, window=64) for name in (*CODED, *DROPPING)), "q4_0", "q4_0-plain", "q8_0", "f16"], ids=str
)
def test_the_oldest_pages_make_room(kv: KvOptions | str) -> None:
    """Three times as many tokens as there is room for; sinks and overlay stay, and so do positions."""
    rng = np.random.default_rng(5)
    n, holds = 1500, 460
    q, k, v = random_tokens(rng, n, 4, 2, 64)
    with Both(kv, 4, 2, 64, n, holds=holds) as both:
        start = 0
        for chunk in random_cut(rng, n, holds // 2):
            part = slice(start, start + chunk)
            start += chunk
            both.feed(q[part], k[part], v[part], [chunk])
            both.check()
            usage = both.layer.cache.usage()
            assert usage.n_tokens - PAGE * both.cache.first_page <= holds or both.cache.recipe.window
            assert usage.n_pages <= holds // PAGE
        assert usage.n_dropped > 900
        assert both.layer.rewind(n - 1) in (0, n - 1)
        assert both.layer.rewind(0) == 0
        assert both.layer.cache.usage().n_dropped == 0


def test_too_little_room_to_drop_anything() -> None:
    for kv, least in (("logquant", 644), ("logquant-paper", 448), ("f16", 256)):
        with pytest.raises(ArgumentError, match=str(least)):
            KvLayer(1, 1, 16, least - 1, kv, limit=5000)
        with KvLayer(1, 1, 16, least, kv, limit=5000, chunk=5000) as layer:
            x = np.zeros((least // 2, 1, 16), np.float32)
            for _ in range(10):
                layer.attend(x, x, x)
            with pytest.raises(ArgumentError, match="at once"):
                layer.attend(*[np.zeros((least // 2 + 1, 1, 16), np.float32)] * 3)


# ---- going back ------------------------------------------------------------------------------------------------------


def cut_at(chunks: Sequence[int], n: int) -> list[int]:
    """The chunks of the first n tokens."""
    ends = [end for end in itertools.accumulate(chunks) if end < n]
    return [b - a for a, b in itertools.pairwise([0, *ends, n])] if n else []


@settings(max_examples=60, deadline=None)
@given(
    kv=st.sampled_from(TYPES)
    | st.builds(
        KvOptions,
        window=st.just(64),
        sinks=st.sampled_from([0, 4]),
        overlay=st.sampled_from(["f16", "q8_0"]),
        select=st.sampled_from(["even", "newest", "heaviest"]),
    )
    | st.builds(KvOptions, st.just("streaming"), window=st.just(64), sinks=st.sampled_from([0, 4])),
    n=st.integers(1, 420),
    back=st.integers(0, 60) | st.integers(0, 420),
    seed=st.integers(0, 2**32 - 1),
)
@example(kv=KvOptions(window=64, select="even"), n=190, back=140, seed=0)
@example(kv=KvOptions(window=64, select="even"), n=190, back=100, seed=0)  # a page is open again, another stays
@example(kv=KvOptions(window=64, select="even"), n=290, back=20, seed=0)  # the same after tokens were given up
@example(kv=KvOptions(window=64, select="even", overlay="q8_0"), n=190, back=30, seed=0)
@example(kv=KvOptions(window=64, select="even", overlay="q8_0"), n=190, back=100, seed=0)
@example(kv=KvOptions(window=128, select="even"), n=420, back=30, seed=0)
@example(kv=KvOptions(window=64, select="even"), n=250, back=50, seed=0)
@example(kv=KvOptions(window=64, select="even"), n=195, back=192, seed=0)
@example(kv="logquant", n=300, back=300, seed=0)
def test_rewind(kv: KvOptions | str, n: int, back: int, seed: int) -> None:
    """What remains, and all that follows, is as if the forgotten tokens had never been."""
    recipe, rng = recipe_of(kv), np.random.default_rng(seed)
    keep, more = max(n - back, 0), 100
    q, k, v = random_tokens(rng, n, 2, 1, 16)
    q2, k2, v2 = random_tokens(rng, more, 2, 1, 16)
    chunks, chunks2 = random_cut(rng, n, 200), random_cut(rng, more, 60)
    with Both(kv, 2, 1, 16, n + more) as went_back, Both(kv, 2, 1, 16, n + more) as fresh:
        went_back.feed(q, k, v, chunks)
        kept = went_back.layer.rewind(keep)
        assert kept in range(keep + 1)
        if not recipe.window or (recipe.select == "even" and recipe.overlay == "f16" and n - recipe.sinks < 3 * 64):
            assert kept == keep
        fresh.feed(q[:kept], k[:kept], v[:kept], cut_at(chunks, kept)) if kept else None
        assert compare(went_back.layer.cache, fresh.cache) == []
        went_back.cache = fresh.cache
        start = 0
        for chunk in chunks2:
            part = slice(start, start + chunk)
            start += chunk
            ours = went_back.layer.attend(q2[part], k2[part], v2[part])
            theirs = fresh.feed(q2[part], k2[part], v2[part], [chunk])
            assert np.array_equal(ours, theirs)
        fresh.check()
        assert compare(went_back.layer.cache, fresh.cache) == []


def test_rewind_to_where_it_is_changes_nothing() -> None:
    q, k, v = random_tokens(np.random.default_rng(0), 300, 2, 1, 64)
    with Both("logquant-small", 2, 1, 64, 300) as both:
        both.feed(q, k, v, [300])
        assert both.layer.rewind(300) == 300
        assert both.layer.rewind(500) == 300
        both.check()
        assert both.layer.rewind(0) == 0
        assert both.layer.cache.usage().n_tokens == 0
        assert len(both.layer.cache.full(0, 0).positions) == 0


# ---- the tests can fail ----------------------------------------------------------------------------------------------


def _give_one_up(cache: Cache) -> None:
    cache.listed = np.delete(cache.listed, 5, axis=1)
    cache._read_again()


def _mix_channels(cache: Cache) -> None:
    cache._k_coded = cache._k_coded[..., ::-1]
    cache._read_again()


def _turn_values(cache: Cache) -> None:
    cache.recipe = replace(cache.recipe, rotate=not cache.recipe.rotate)


@pytest.mark.parametrize(("change", "at_least"), [(_give_one_up, 2e-3), (_mix_channels, 0.05), (_turn_values, 0.5)])
@pytest.mark.parametrize("kv", ["logquant-small", "logquant-paper"])
def test_a_wrong_state_is_seen_in_the_output(kv: str, change: Callable[[Cache], None], at_least: float) -> None:
    """A token read from its code instead of its cell, key channels mixed up, values not turned back: beyond BOUND."""
    q, k, v = random_tokens(np.random.default_rng(9), 300, 2, 1, 64)
    with Both(kv, 2, 1, 64, 300) as both:
        both.feed(q[:280], k[:280], v[:280], [270, 10])
        change(both.cache)
        ours = both.layer.attend(q[280:], k[280:], v[280:])
        wanted = both.cache.attend(q[280:], k[280:], v[280:])
        errors = relative_errors(ours, wanted)
        assert errors.max() > at_least
        assert (errors > BOUND).mean() > FEW
