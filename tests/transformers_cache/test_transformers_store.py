"""pylogquant.transformers without a model: pages, cells, selection against the core and the NumPy oracle, bit for bit;
going back; the official implementation's selection. Oracle tests: they need torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kv_cache_oracle import Cache, hard_values, random_tokens
from kv_oracle import PAGE, RECIPES, Format, as_q8_0, decode_page, encode_page, learn_order, recipe_of
from kv_oracle import hadamard as oracle_hadamard

from pylogquant.errors import ArgumentError, Unsupported
from pylogquant.kv import KvLayer, KvOptions

pytestmark = pytest.mark.oracle

CHUNKS = [300, 1, 1, 200, 64, 1, 130, 297, *[1] * 12]
TYPES: dict[str, dict[str, Any]] = {
    **{name: {"preset": name} for name in RECIPES if RECIPES[name].window},
    "even, f16": {"preset": "logquant", "select": "even"},
    "heaviest, q8_0": {"preset": "logquant", "overlay": "q8_0", "window": 64},
    "heaviest, no sinks": {"preset": "logquant", "sinks": 0, "window": 64},
    "3 bits, 7 sinks": {"preset": "logquant-hq", "keys": "3", "value_bits": 4, "sinks": 7, "window": 64},
    "5 bits, newest": {"preset": "logquant", "keys": "5", "value_bits": 3, "select": "newest"},
}
SHAPES = {"GQA 2, head 64": (4, 2, 64), "one KV head of 80": (3, 1, 80), "head 16": (4, 2, 16), "head 96": (2, 2, 96)}


def make(settings: dict[str, Any], shape: tuple[int, int, int], kernels: str, n_rows: int = 1) -> Any:
    """A store of the settings."""
    import torch

    from pylogquant.transformers.config import LogQuantConfig
    from pylogquant.transformers.operations import operations_for
    from pylogquant.transformers.store import Shape, Store

    torch.set_num_threads(1)  # more only wait for each other on tensors of this size
    config = LogQuantConfig(**settings, kernels=kernels, threads=1)  # type: ignore[arg-type]
    cpu = torch.device("cpu")
    return Store(Shape.of(config.resolve(), *shape[1:]), n_rows, operations_for(config, cpu), cpu)


def options_of(settings: dict[str, Any]) -> KvOptions:
    return KvOptions(**{("name" if key == "preset" else key): value for key, value in settings.items()})


def feed(store: Any, q: Any, k: Any, v: Any, *, by_query: bool = False) -> Any:
    """One chunk of NumPy tokens, (n, heads, head_dim) each, for all rows; returns float32 (n, heads, head_dim)."""
    import torch

    k, v = (torch.from_numpy(x).transpose(0, 1)[None].expand(store.n_rows, -1, -1, -1) for x in (k, v))
    store.append(k, v)
    queries = torch.from_numpy(q)[None].expand(store.n_rows, -1, -1, -1)
    return store.attend(queries, q.shape[-1] ** -0.5, 0.0, by_query=by_query)[0].numpy()


def state(store: Any) -> dict[str, Any]:
    """What a settled store holds."""
    store.settle()
    counts = store.counts
    held = {
        "sinks_k": store.sinks_k,
        "sinks_v": store.sinks_v,
        "overlay_k": store.overlay_k,
        "overlay_v": store.overlay_v,
        "open_k": store.open_k[:, :, : counts.n_open],
        "open_v": store.open_v[:, :, : counts.n_open],
        "positions": store.positions,
        "accumulated": store.accumulated,
        "pages": store.pages,
        "masks": store.masks,
    }
    if store.order is not None:
        held["order"] = store.order
    return {name: tensor.clone().numpy() for name, tensor in held.items()} | {"n_tokens": store.n_tokens}


def assert_same(ours: dict[str, Any], other: dict[str, Any], *, accumulated: float = 0.0) -> None:
    assert ours.keys() == other.keys()
    for name in ours:
        if name == "accumulated" and accumulated:
            assert np.allclose(ours[name], other[name], rtol=accumulated, atol=1e-6)
        else:
            assert np.array_equal(ours[name], other[name]), name


EVERY_WAY = [(settings, "GQA 2, head 64") for settings in TYPES] + [
    (settings, shape) for shape in SHAPES for settings in ("logquant", "logquant-hq", "kivi")
]


@pytest.mark.parametrize("kernels", ["native", "torch"])
@pytest.mark.parametrize(("settings", "shape"), dict.fromkeys(EVERY_WAY))
def test_holds_what_the_core_holds(settings: str, shape: str, kernels: str) -> None:
    n_heads, n_kv_heads, head_dim = SHAPES[shape]
    rng = np.random.default_rng(5)
    store = make(TYPES[settings], SHAPES[shape], kernels)
    recipe = store.shape.recipe
    with KvLayer(*SHAPES[shape], sum(CHUNKS), options_of(TYPES[settings]), threads=1) as layer:
        for n in CHUNKS:
            q, k, v = random_tokens(rng, n, n_heads, n_kv_heads, head_dim)
            wanted, found = layer.attend(q, k, v), feed(store, q, k, v)
            # The core rounds queries and probabilities to 8 bits where it meets codes; the torch path does not.
            bound = 0.12 if kernels == "torch" else 2e-3
            assert np.linalg.norm(found - wanted) < bound * np.linalg.norm(wanted)
        view, held = layer.cache, state(store)
        usage, tokens = view.usage(), store.tokens_by_kind()
        assert {name: getattr(usage, name) for name in tokens} == tokens
        first_open = recipe.sinks + PAGE * ((store.n_tokens - recipe.sinks) // PAGE)
        overlay_k, overlay_v = (x.numpy() for x in store.overlay())
        for head in range(n_kv_heads):
            full = view.full(0, head)
            n_open = held["open_k"].shape[2]
            positions = [np.arange(recipe.sinks), held["positions"][0, head], first_open + np.arange(n_open)]
            assert np.array_equal(np.concatenate(positions), full.positions)
            for name, overlay, theirs in (("k", overlay_k, full.k), ("v", overlay_v, full.v)):
                mine = [held[f"sinks_{name}"][0, head], overlay[0, head], held[f"open_{name}"][0, head]]
                assert np.array_equal(np.concatenate(mine).astype(np.float32), theirs)
            if usage.n_pages:
                assert np.array_equal(held["order"][0, head], view.order(0, head))
            for page in range(usage.n_pages):
                parts = store.shape.form.split(store.pages, n_kv_heads)
                record = b"".join(part[0, page, head].numpy().tobytes() for part in parts)
                theirs_page = view.page(0, head, page)
                assert record == theirs_page.record
                assert int(held["masks"][0, head, page]) % 2**64 == theirs_page.mask


@pytest.mark.parametrize("head_dim", [8, 64, 80, 112, 256])
@pytest.mark.parametrize("kv", [name for name in RECIPES if RECIPES[name].tiers])
def test_pages_of_hard_values_are_the_oracles(kv: str, head_dim: int) -> None:
    import torch

    rng = np.random.default_rng(7)
    store = make({"preset": kv}, (2, 2, head_dim), "torch")
    form, oracle = store.shape.form, Format(RECIPES[kv], head_dim)
    assert (form.key_bytes, form.value_bytes, form.scale_bytes) == (oracle.k_bytes, oracle.v_bytes, oracle.scale_bytes)
    assert [*form.tiers] == oracle.tiers
    for _ in range(2):
        k, v = (hard_values(rng, PAGE, 2, head_dim).swapaxes(0, 1).astype(np.float16).astype(np.float32) for _ in "kv")
        order = learn_order(oracle, k)
        assert np.array_equal(form.learn_order(torch.from_numpy(k)).numpy(), order)
        blocks = form.encode(*(torch.from_numpy(x) for x in (k, v)), torch.from_numpy(order.astype(np.int16)))
        assert blocks.dtype == torch.uint8
        assert len(blocks) % 64 == 0
        records = torch.cat(form.split(blocks, 2), dim=-1).numpy()
        assert np.array_equal(records, encode_page(oracle, k, v, order))
        found = form.decode(blocks, torch.from_numpy(order.astype(np.int16)))
        for mine, wanted in zip(found, decode_page(oracle, records, order), strict=True):
            assert np.allclose(mine.numpy(), wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("head_dim", [8, 32, 64, 72, 80, 128, 160])
def test_rotation_and_q8_0_cells_are_the_oracles(head_dim: int) -> None:
    import torch

    from pylogquant.transformers.pages import from_q8_0, hadamard, q8_0_bytes, to_q8_0

    x = hard_values(np.random.default_rng(3), 40, 2, head_dim).astype(np.float16).astype(np.float32)
    assert np.array_equal(hadamard(torch.from_numpy(x)).numpy(), oracle_hadamard(x))
    cells = to_q8_0(torch.from_numpy(x))
    assert cells.dtype == torch.uint8
    assert cells.shape[-1] == q8_0_bytes(head_dim)
    assert np.array_equal(from_q8_0(cells, head_dim).numpy(), as_q8_0(x))


@pytest.mark.parametrize("kernels", ["native", "torch"])
@pytest.mark.parametrize("settings", ["logquant", "logquant-small", "logquant-paper", "h2o"])
def test_attention_is_the_oracles(settings: str, kernels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if kernels == "torch":  # it rounds no weights, as the core's scalar level
        monkeypatch.setenv("LQ_CPU", "scalar")
    shape, rng = (4, 2, 64), np.random.default_rng(11)
    store = make(TYPES[settings], shape, kernels)
    oracle = Cache(recipe_of(options_of(TYPES[settings])), *shape, 1000)
    for n in (450, 1, 200, 1, 1, 40):
        q, k, v = random_tokens(rng, n, *shape)
        found = feed(store, q, k, v)
        store.settle()
        wanted = oracle.attend(q, k, v, lambda head: store.positions[0, head].numpy())
        error = np.linalg.norm(found - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)
        assert error.max() < (2e-3 if kernels == "native" else 1e-4)
        assert np.median(error) < 1e-4
        positions = oracle.full(0)[0]
        assert np.array_equal(
            positions[oracle.n_sinks : oracle.n_sinks + store.counts.n_overlay], store.positions[0, 0]
        )


# ---- going back ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernels", ["native", "torch"])
@pytest.mark.parametrize("settings", ["logquant", "logquant-small", "even, f16", "kivi", "streaming", "h2o"])
@pytest.mark.parametrize("n_kept", [0, 1, 7, 39, 40])
def test_a_chunk_that_was_cut_short_never_was_longer(settings: str, kernels: str, n_kept: int) -> None:
    """Whatever the selection, even where a page was completed and tokens given up by what is taken back."""
    shape, rng = (4, 2, 16), np.random.default_rng(2)
    first, chunk, last = (random_tokens(rng, n, *shape) for n in (370, 40, 3))
    ours, other = make(TYPES[settings], shape, kernels), make(TYPES[settings], shape, kernels)
    feed(ours, *first)
    feed(ours, *chunk, by_query=True)
    ours.crop(40 - n_kept)
    feed(other, *first)
    if n_kept:
        feed(other, *(x[:n_kept] for x in chunk), by_query=True)
    assert ours.n_held == other.n_held == 370 + n_kept
    assert np.allclose(feed(ours, *last), feed(other, *last), atol=1e-6)
    assert_same(state(ours), state(other))


def test_what_each_query_gave_adds_up() -> None:
    shape, rng = (4, 2, 16), np.random.default_rng(4)
    first, chunk = (random_tokens(rng, n, *shape) for n in (300, 50))
    stores = [make({"preset": "logquant"}, shape, "native") for _ in range(2)]
    outs = []
    for store, by_query in zip(stores, (True, False), strict=True):
        feed(store, *first)
        outs.append(feed(store, *chunk, by_query=by_query))
    assert np.allclose(outs[0], outs[1], atol=2e-3)
    assert np.allclose(stores[0].gave.sum(dim=2), stores[1].gave.sum(dim=2), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("n_keep", [599, 581, 580, 579, 517, 516, 515, 300])
def test_older_tokens_come_back_while_nothing_was_given_up(n_keep: int) -> None:
    """W = 128: tokens were given up last at 4 + 512; the page that ended at 4 + 576 is opened again."""
    shape, rng = (2, 2, 16), np.random.default_rng(2)
    settings = {"preset": "logquant", "select": "even"}
    tokens = random_tokens(rng, 600, *shape)
    store = make(settings, shape, "native")
    for start in range(0, 600, 50):
        feed(store, *(x[start : start + 50] for x in tokens))
    store.settle()
    if n_keep < 516:
        with pytest.raises(ArgumentError, match="given up since; at most the last 0"):
            store.crop(600 - n_keep)
        assert store.n_held == 600
        return
    store.crop(600 - n_keep)
    other = make(settings, shape, "native")
    for start in range(0, n_keep, 300):
        feed(other, *(x[start : min(start + 300, n_keep)] for x in tokens))
    assert_same(state(store), state(other))


def test_what_cannot_be_taken_back_is_refused() -> None:
    shape, rng = (2, 2, 16), np.random.default_rng(2)
    store = make({"preset": "logquant"}, shape, "native")
    feed(store, *random_tokens(rng, 100, *shape))
    with pytest.raises(ArgumentError, match=r"3 of the 100 tokens .* activate_past_recording"):
        store.crop(3)
    feed(store, *random_tokens(rng, 1, *shape))
    with pytest.raises(ArgumentError, match="2 tokens cannot be taken back exactly: selection 'heaviest'"):
        store.crop(2)
    with pytest.raises(ArgumentError, match="holds 101 tokens"):
        store.crop(102)
    store.crop(1)
    assert store.n_held == 100
    store.crop(100)
    assert store.n_held == 0
    small = make({"preset": "logquant-small", "select": "even"}, shape, "native")
    for _ in range(3):
        feed(small, *random_tokens(rng, 40, *shape))
    with pytest.raises(ArgumentError, match="in f16"):
        small.crop(60)


def test_rows_are_picked_and_repeated() -> None:
    import torch

    shape, rng = (2, 2, 16), np.random.default_rng(8)
    stores = [make({"preset": "logquant", "window": 64}, shape, "native", n_rows=n) for n in (1, 1, 2)]
    for n in (300, 1, 50):
        tokens = [random_tokens(rng, n, *shape) for _ in range(2)]
        for store, mine in zip(stores, tokens, strict=False):
            feed(store, *mine)
        q, k, v = (torch.from_numpy(np.stack(parts)) for parts in zip(*tokens, strict=True))
        stores[2].append(k.transpose(1, 2), v.transpose(1, 2))
        stores[2].attend(q, 0.25, 0.0, by_query=False)
    picked = stores[2].select(torch.tensor([1, 1, 0]))
    for store in (*stores, picked):
        store.settle()
    for row, source in enumerate((1, 1, 0)):
        every = state(picked)
        of_row = {name: (x[row : row + 1] if isinstance(x, np.ndarray) else x) for name, x in every.items()}
        assert_same(of_row, state(stores[source]))


# ---- bytes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", [name for name in RECIPES if RECIPES[name].window])
def test_storage_is_packed(kv: str) -> None:
    """The tensors' own bytes, against the core's figure for as many tokens."""
    shape, n = (2, 2, 64), 4000
    store = make({"preset": kv}, shape, "native")
    rng = np.random.default_rng(1)
    with KvLayer(*shape, n, kv, threads=1) as layer:
        for _ in range(n // 500):
            tokens = random_tokens(rng, 500, *shape)
            layer.attend(*tokens)
            feed(store, *tokens)
        wanted = layer.cache.usage()
    store.settle()
    held = sum(tensor.numel() * tensor.element_size() for tensor in store.tensors())
    assert store.blocks.numel() == 0 or store.blocks.dtype.itemsize == 1
    assert held == sum(store.bytes_by_kind().values())  # no view keeps more memory alive than it shows
    assert held < 1.10 * wanted.total_bytes
    assert store.bytes_by_kind()["code_bytes"] == wanted.code_bytes
    full_precision = 2 * shape[1] * shape[2] * 2 * n
    assert held < full_precision / 3


# ---- the official implementation's selection -------------------------------------------------------------------------


class Official:
    """Which tokens Concyclics/LogQuantKV keeps in full precision, from the behaviour of LogQuantizedCache: a sparse
    list, and a window of fewer than 2W. tensors: what its key tensors hold; lists: what its index lists say, which turn
    over one token later."""

    def __init__(self, window: int, prompt: int) -> None:
        self.window = window
        sparse: list[int] = []
        recent = list(range(prompt))
        while len(recent) >= 2 * window:
            every = sparse + recent
            sparse, recent = every[: 2 * window : 2], every[2 * window :]
        self.tensors, self.lists = (sparse, recent), (sparse, recent)
        self.n = prompt

    def step(self) -> None:
        w, new = self.window, [self.n]
        sparse, recent = self.tensors
        if len(recent) + 1 >= 2 * w:
            self.tensors = (sparse[::2] + recent[:w:2], recent[w:] + new)
        else:
            self.tensors = (sparse, recent + new)
        sparse, recent = self.lists[0], self.lists[1] + new
        if len(recent) > 2 * w:
            sparse, recent = sparse[::2] + recent[:w:2], recent[w:]
        self.lists = (sparse, recent)
        self.n += 1


@pytest.mark.parametrize("window", [64, 128])
@pytest.mark.parametrize("part", [0, 1, 63, 100])
@pytest.mark.parametrize("windows", [3, 6])
def test_keeps_what_the_official_implementation_keeps(window: int, windows: int, part: int) -> None:
    """Positions of logquant-paper after every token, from prompts of at least 3W tokens on. Between 2W and 3W the
    official one has given up W already; after a shorter prompt it starts with fewer, as its window turns over at 2W."""
    import torch

    prompt = windows * window + part
    store = make({"preset": "logquant-paper", "window": window}, (1, 1, 8), "native")
    official, n_late = Official(window, prompt), 0

    def kept() -> list[int]:
        first_open = PAGE * (store.n_tokens // PAGE)
        return [*store.positions[0, 0].tolist(), *range(first_open, store.n_tokens)]

    store.append(torch.randn(1, 1, prompt, 8), torch.randn(1, 1, prompt, 8))
    store.settle()
    before = kept()
    assert before == [*official.tensors[0], *official.tensors[1]] == [*official.lists[0], *official.lists[1]]
    for _ in range(3 * window):
        store.append(torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8))
        store.settle()
        official.step()
        assert kept() == [*official.tensors[0], *official.tensors[1]]
        lists = [*official.lists[0], *official.lists[1]]
        if lists != kept():
            assert lists == [*before, official.n - 1]  # one token late
            n_late += 1
        before = kept()
    assert n_late == 3


# ---- settings --------------------------------------------------------------------------------------------------------


def test_settings_that_do_not_exist() -> None:
    from pylogquant.transformers import LogQuantConfig

    bad: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"preset": "q4_1"}, Unsupported, "logquant-small"),
        ({"preset": "q8_0"}, Unsupported, "selects no tokens"),
        ({"window": 65}, ArgumentError, "64"),
        ({"select": "oldest"}, ArgumentError, "heaviest"),
        ({"preset": "h2o", "value_bits": 2}, ArgumentError, "no effect"),
        ({"kernels": "fast"}, ArgumentError, "'native'"),
        ({"chunk": 0}, ArgumentError, "1 to 65536"),
        ({"threads": -1}, ArgumentError, "threads"),
    ]
    for settings, error, words in bad:
        with pytest.raises(error, match=words):
            LogQuantConfig(**settings).resolve()
    with pytest.raises(Unsupported, match="multiple of 8"):
        make({"preset": "logquant"}, (1, 1, 20), "torch")
