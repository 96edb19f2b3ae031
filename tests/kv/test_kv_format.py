"""Pages of the LogQuant cache: sizes, bytes and codes of the core against the NumPy oracle, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import kv_oracle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kv_cache_oracle import Cache, compare, hard_values, random_tokens
from kv_oracle import (
    F32,
    PAGE,
    RECIPES,
    Bytes,
    Format,
    Recipe,
    as_cell,
    as_half,
    as_q8_0,
    decode_page,
    encode_page,
    hadamard,
    learn_order,
    parse_keys,
    plane,
    recipe_of,
    sixes,
)

from pylogquant.errors import ArgumentError
from pylogquant.kv import KvLayer, KvOptions

pytestmark = pytest.mark.tiny_model  # once per SIMD level: coding is compiled for each

PRESETS = ("logquant", "logquant-small", "logquant-hq", "logquant-paper", "kivi")
HEAD_DIMS = (16, 40, 64, 80, 96, 112, 128, 256)

COMBINATIONS = (
    *(KvOptions(keys=keys, value_bits=2 + index % 3) for index, keys in enumerate("12345")),
    *(KvOptions("logquant-paper", keys=keys, value_bits=4 - index % 3) for index, keys in enumerate("12345")),
    KvOptions(keys="5:1/5,4:1/5,3:1/5,2:1/5,1:1/5", value_bits=3, sinks=0),
    KvOptions(keys="4:1/64,3:1/2,1:31/64", value_bits=4, sinks=1),
    KvOptions("logquant-paper", keys="3:1/2,2:1/2", sinks=8),
    KvOptions("logquant-hq", value_bits=2, sinks=5),
)


def value_input(recipe: Recipe, v: F32) -> F32:
    """What the values' codes are made from."""
    return as_half(hadamard(v) if recipe.rotate else v)


def core_against_oracle(kv: KvOptions | str, k: F32, v: F32) -> list[str]:
    """Feeds k, v (n, heads, head_dim) and compares every complete page with its record made straight from them."""
    n, n_heads, head_dim = k.shape
    recipe = recipe_of(kv)
    form = Format(recipe, head_dim)
    wrong = []
    with KvLayer(n_heads, n_heads, head_dim, n, kv, chunk=100, threads=1) as layer:
        for start in range(0, n, 100):
            part = slice(start, start + 100)
            layer.attend(np.zeros_like(k[part]), k[part], v[part])
        n_pages = (n - recipe.sinks) // PAGE
        assert layer.cache.usage().n_pages == n_pages > 0
        in_pages = slice(recipe.sinks, recipe.sinks + PAGE * n_pages)
        for head in range(n_heads):
            keys = as_half(k[in_pages, head]).reshape(n_pages, PAGE, head_dim)
            values = value_input(recipe, v[in_pages, head]).reshape(n_pages, PAGE, head_dim)
            order = learn_order(form, keys[0])
            if not np.array_equal(layer.cache.order(0, head), order):
                wrong.append(f"head {head}: order")
            records = encode_page(form, keys, values, np.tile(order, (n_pages, 1)))
            for page in range(n_pages):
                found = np.frombuffer(layer.cache.page(0, head, page).record, np.uint8)
                if not np.array_equal(found, records[page]):
                    wrong.append(f"head {head}, page {page}: {np.count_nonzero(found != records[page])} bytes")
    return wrong


# ---- the oracle itself, against the words of the specification -------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("n", [8, 16, 40, 64])
def test_planes_field_by_field(bits: int, n: int) -> None:
    codes = np.random.default_rng(bits).integers(0, 2**bits, (n, 4), dtype=np.uint8)
    packed = plane(codes, bits)
    assert packed.size == n * bits // 2
    at = 0
    for shift, b in {1: [(0, 1)], 2: [(0, 2)], 3: [(0, 2), (2, 1)], 4: [(0, 4)], 5: [(0, 4), (4, 1)]}[bits]:
        length = n * b // 8
        for item in range(n):
            for stream in range(4):
                byte = int(packed[at + 4 * (item % length) + stream])
                assert byte >> b * (item // length) & (2**b - 1) == int(codes[item, stream]) >> shift & (2**b - 1)
        at += 4 * length


@pytest.mark.parametrize("k", [8, 40, 64, 112])
def test_packed_sixes_number_by_number(k: int) -> None:
    numbers = np.random.default_rng(k).integers(0, 64, k, dtype=np.uint8)
    packed = sixes(numbers)
    assert packed.size == 3 * k // 4
    for i, number in enumerate(numbers):
        low = packed[i % (k // 2)] >> (0 if i < k // 2 else 4) & 15
        high = packed[k // 2 + i % (k // 4)] >> 2 * (i // (k // 4)) & 3
        assert low + 16 * high == number


@pytest.mark.parametrize(("head_dim", "blocks"), [(64, [64]), (80, [64, 16]), (96, [64, 32]), (112, [64, 32, 16])])
def test_hadamard_is_the_sylvester_matrix(head_dim: int, blocks: list[int]) -> None:
    wanted = np.zeros((head_dim, head_dim))
    at = 0
    for n in blocks:
        block = np.array([[(-1) ** (i & j).bit_count() for j in range(n)] for i in range(n)]) / math.sqrt(n)
        wanted[at : at + n, at : at + n] = block
        at += n
    assert np.allclose(hadamard(np.eye(head_dim)), wanted, atol=1e-14)
    assert np.allclose(wanted @ wanted, np.eye(head_dim), atol=1e-13)


def test_tiers_of_odd_heads() -> None:
    """80 channels at 3/8, 3/8, 1/4: 32, 28, 20; a tier that rounds to nothing is left out, and its scales too."""
    widths = [(bits, end - start) for bits, start, end in Format(RECIPES["logquant"], 80).tiers]
    assert widths == [(4, 32), (2, 28), (1, 20)]
    assert Format(RECIPES["logquant"], 8).tiers == [(4, 0, 4), (2, 4, 8)]
    lone = Recipe(((4, Fraction(1, 8)), (2, Fraction(7, 8))), True, False, 2, True, "even", 64, "f16", 0)
    assert Format(lone, 8).tiers == [(2, 0, 8)]
    # 64 channels: 24 x 4 + 24 x 2 + 16 x 1 bits, values of 2, 3 tiers and 1 group, 2 x 48 for keys and 96 for values
    assert Format(RECIPES["logquant"], 64).record_bytes == 8 * (96 + 48 + 16) + 1024 + 4 * 4 + 96 + 96


@pytest.mark.parametrize("kv", [*PRESETS, *COMBINATIONS], ids=str)
@pytest.mark.parametrize("head_dim", [64, 112])
def test_codes_stand_for_what_was_coded(kv: KvOptions | str, head_dim: int) -> None:
    """Decoding comes within one step of every key and value, except where 6-bit scales cannot reach."""
    recipe = recipe_of(kv)
    form = Format(recipe, head_dim)
    rng = np.random.default_rng(3)
    k = as_half(rng.standard_normal((PAGE, head_dim)).astype(np.float32))
    v = as_half(rng.standard_normal((PAGE, head_dim)).astype(np.float32))
    order = learn_order(form, k)
    record = encode_page(form, k, v, order)
    found_k, found_v = decode_page(form, record, order)
    by_place = np.abs(found_k - k)[:, order]
    top = form.key_tops
    reach = (k.max(axis=0) - k.min(axis=0))[order] / 2
    # Least squares and 1 bit leave the outermost values outside; half a step and the rounding of scales elsewhere.
    slack = 0.25 if not recipe.least_squares else np.where(top == 1, 1.0, 0.5)
    assert np.all(by_place <= reach * (1 / top + slack))
    assert float(np.sqrt(((found_v - v) ** 2).mean())) < {2: 0.6, 3: 0.3, 4: 0.15}[recipe.value_bits]


def test_q8_0_cells() -> None:
    x = hard_values(np.random.default_rng(5), 50, 2, 80)
    halves = as_half(x)
    found = as_q8_0(halves)
    for start in (0, 32, 64):
        block = slice(start, start + 32)
        largest = np.abs(halves[..., block]).max(axis=-1, keepdims=True)
        assert np.all(np.abs(found - halves)[..., block] <= largest / 127 * 0.51 + 127 * 6e-8)


# ---- the core against the oracle -------------------------------------------------------------------------------------


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("kv", [*PRESETS, *COMBINATIONS], ids=str)
def test_records(kv: KvOptions | str, head_dim: int) -> None:
    rng = np.random.default_rng(head_dim)
    n = recipe_of(kv).sinks + 3 * PAGE + 7
    _, k, v = random_tokens(rng, n, 2, 2, head_dim)
    assert core_against_oracle(kv, k, v) == []
    assert core_against_oracle(kv, hard_values(rng, n, 2, head_dim), hard_values(rng, n, 2, head_dim)) == []


@pytest.mark.parametrize("kv", PRESETS)
def test_records_of_special_pages(kv: str) -> None:
    """Whole pages of one kind: nothing, one number, the largest halves, the smallest ones, channels of equal range."""
    n, head_dim = 2 * PAGE + 4, 80
    rng = np.random.default_rng(0)
    shape = (n, 1, head_dim)
    signs = rng.choice(np.array([-1.0, 1.0]), shape)
    for x in (
        np.zeros(shape),
        -np.zeros(shape),
        0.0 * signs,
        np.full(shape, 0.3),
        60000.0 * signs,
        6e-8 * signs,
        1e-9 * signs,  # zeros of both signs, as halves
        -2.6e-6 + 0.0 * signs,  # under a scale that is the smallest half, m is beyond -31
        5.3e-6 * signs,  # and s beyond 63
        signs,
        np.broadcast_to(np.arange(n)[:, None, None] % 7, shape).astype(float),
        100 + 0.1 * rng.standard_normal(shape),
        np.where(np.arange(n)[:, None, None] == 40, 1e4, rng.standard_normal(shape)),
    ):
        values = x.astype(np.float32)
        # Rotated values grow by the root of the head: keep them halves.
        assert core_against_oracle(kv, values, values * np.float32(0.1)) == []


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    kv=st.sampled_from([*PRESETS, *COMBINATIONS]),
    head_dim=st.integers(1, 20).map(lambda eighths: 8 * eighths),
    hard=st.booleans(),
)
def test_records_of_random_shapes(seed: int, kv: KvOptions | str, head_dim: int, hard: bool) -> None:
    rng = np.random.default_rng(seed)
    n = recipe_of(kv).sinks + PAGE + int(rng.integers(0, 70))
    if hard:
        k, v = hard_values(rng, n, 1, head_dim), hard_values(rng, n, 1, head_dim)
    else:
        _, k, v = random_tokens(rng, n, 1, 1, head_dim)
    assert core_against_oracle(kv, k, v) == []


@pytest.mark.parametrize("head_dim", [72, 320, 504, 512])
def test_the_largest_heads(head_dim: int) -> None:
    _, k, v = random_tokens(np.random.default_rng(head_dim), 70, 1, 1, head_dim)
    for kv in ("logquant-hq", "logquant-paper"):
        assert core_against_oracle(kv, k, v) == []


@pytest.mark.parametrize("kv", ["f16", "q8_0", "q4_0", "q4_0-plain"])
@pytest.mark.parametrize("head_dim", [16, 40, 64, 80, 112, 256])
def test_cells(kv: str, head_dim: int) -> None:
    rng = np.random.default_rng(head_dim)
    k, v = hard_values(rng, 90, 2, head_dim), hard_values(rng, 90, 2, head_dim)
    with KvLayer(2, 2, head_dim, 90, kv, threads=1) as layer:
        layer.attend(np.zeros_like(k), k, v)
        for head in range(2):
            full = layer.cache.full(0, head)
            assert list(full.positions) == list(range(90))
            for found, given_ in ((full.k, k), (full.v, v)):
                stored = hadamard(given_[:, head]) if kv == "q4_0" else given_[:, head]
                assert np.array_equal(found, as_cell(stored, kv.removesuffix("-plain")))


def test_q4_0_cells_are_those_of_model_files() -> None:
    import gguf

    x = np.random.default_rng(3).standard_normal((500, 64), dtype=np.float32)
    kind = gguf.GGMLQuantizationType.Q4_0
    assert np.array_equal(as_cell(x, "q4_0"), gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind))


# ---- what does not exist ---------------------------------------------------------------------------------------------


def test_pages_that_do_not_exist() -> None:
    _, k, v = random_tokens(np.random.default_rng(0), PAGE + 3, 1, 1, 64)
    with KvLayer(1, 1, 64, 200, "logquant") as layer:
        layer.attend(np.zeros_like(k), k, v)  # 4 sinks and 63 tokens: one short of a page
        assert layer.cache.usage().n_pages == 0
        with pytest.raises(ArgumentError):
            layer.cache.order(0, 0)
        with pytest.raises(ArgumentError):
            layer.cache.page(0, 0, 0)
        layer.attend(k[:1], k[:1], v[:1])
        assert len(layer.cache.page(0, 0, 0).record) == Format(RECIPES["logquant"], 64).record_bytes
        for place in ((0, 0, 1), (0, 1, 0), (1, 0, 0)):
            with pytest.raises(ArgumentError):
                layer.cache.page(*place)
        for layer_and_head in ((0, 1), (1, 0)):
            with pytest.raises(ArgumentError):
                layer.cache.order(*layer_and_head)
            with pytest.raises(ArgumentError):
                layer.cache.full(*layer_and_head)
    with KvLayer(1, 1, 64, 200, "f16") as layer:
        layer.attend(np.zeros_like(k), k, v)
        with pytest.raises(ArgumentError):
            layer.cache.page(0, 0, 0)


# ---- these tests can fail --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", PRESETS)
def test_one_wrong_bit_is_seen(kv: str) -> None:
    rng = np.random.default_rng(1)
    q, k, v = random_tokens(rng, 200, 2, 1, 64)
    cache = Cache(RECIPES[kv], 2, 1, 64, 200)
    with KvLayer(2, 1, 64, 200, kv) as layer:
        layer.attend(q, k, v)
        cache.attend(q, k, v)
        assert compare(layer.cache, cache) == []
        record: Bytes = cache.records[1]
        for at in rng.choice(record.size, 12, replace=False):
            record[0, at] ^= 1 << int(rng.integers(8))
            assert len(compare(layer.cache, cache)) == 1
            record[0, at] = np.frombuffer(layer.cache.page(0, 0, 1).record, np.uint8)[at]
        assert compare(layer.cache, cache) == []
        cache.k[0, 150] += 1e-3
        given_up, cache.listed = cache.listed, np.delete(cache.listed, 30, axis=1)
        wrong = compare(layer.cache, cache)
        assert any("mask" in line for line in wrong)
        assert any("positions" in line for line in wrong)
        cache.listed = given_up
        assert compare(layer.cache, cache) == []


def _half_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "rint", lambda x: np.floor(x + np.float32(0.5)))


def _one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_oracle, "ROUNDS", 1)


def _rising_index_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "argsort", lambda x, **_: np.lexsort((-np.arange(x.shape[-1]), x)))


@pytest.mark.parametrize("change", [_half_up, _one_round, _rising_index_last])
def test_another_rule_is_seen(change: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """The inputs are hard enough: an oracle that breaks ties otherwise, or fits once, has other records."""
    x = np.random.default_rng(6).integers(-5, 6, (3 * PAGE + 4, 2, 64)).astype(np.float32)
    assert core_against_oracle("logquant-hq", x, x) == []
    change(monkeypatch)
    assert core_against_oracle("logquant-hq", x, x) != []


def test_parsing_of_keys() -> None:
    assert parse_keys("2") == ((2, Fraction(1)),)
    assert parse_keys("4:3/8,2:5/8") == ((4, Fraction(3, 8)), (2, Fraction(5, 8)))
