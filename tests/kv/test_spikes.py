"""Where attention spikes: what the core shows, the selections played beside it, and `pylogquant spikes`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
from command_line import call
from make_tiny_gguf import make_tiny
from session_inputs import ids_for

from pylogquant import ArgumentError, KvOptions, Model, OutOfMemory
from pylogquant.spikes import SELECTIONS, SINKS, TOP, observe, play

pytestmark = pytest.mark.tiny_model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("spikes") / "m.gguf", n_ctx=1024)


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return Model(path, threads=2)


@pytest.mark.parametrize(
    "shape",
    [
        {"arch": "llama", "n_heads": 9, "n_kv_heads": 3, "n_embd": 144, "head_dim": 64},
        {"arch": "gemma2", "window": 5},  # softcap
        {"arch": "gemma3"},
        {"arch": "phi3", "window": 23},
        {"arch": "granite"},
    ],
    ids=lambda shape: shape["arch"],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_watched_attention_is_the_reference_s(shape: dict[str, Any], threads: int, tmp_path: Path) -> None:
    """Of long and short chunks and of single tokens, in every layer, where a layer slides too."""
    path = make_tiny(tmp_path / "m.gguf", **shape)
    with Model(path, threads=threads) as model, model.session(128, "f16", chunk=40, watch_attention=True) as s:
        info, ids = model.info(), ids_for(model, 90)
        wanted = reference.Reference(path).attention(ids)  # (n_layers, n_heads, n, n)
        wanted = wanted.reshape(info.n_layers, info.n_kv_heads, -1, len(ids), len(ids)).sum(axis=2)
        for start, end in ((0, 40), (40, 47), (47, 48), (48, 88), (88, 89), (89, 90)):
            s.eval(ids[start:end], "none")
            for layer, head in np.ndindex(info.n_layers, info.n_kv_heads):
                window = s.kv.window(layer)
                first, accumulated = s.kv.attention(layer, head)
                assert first == (max(start - window + 1, 0) if window else 0)
                assert first + len(accumulated) == end
                sums = wanted[layer, head, start:end, first:end].sum(axis=0)
                assert np.linalg.norm(accumulated - sums) < 3e-3 * np.linalg.norm(sums)
        # The reference must be able to tell: layers and heads differ by far more than the bound.
        last = wanted[:, :, -1].reshape(info.n_layers * info.n_kv_heads, -1)
        apart = np.linalg.norm(last[:, None] - last, axis=2) / np.linalg.norm(last, axis=1)
        assert apart[~np.eye(len(last), dtype=bool)].min() > 0.1


def test_watched_attention_adds_up(tmp_path: Path) -> None:
    """Of each chunk, over what a layer sees, it is one for each query head of the group and token."""
    with Model(make_tiny(tmp_path / "m.gguf", arch="gemma3", n_layers=6, window=24, n_ctx=512), threads=2) as model:
        shape = model.info()
        group = shape.n_heads // shape.n_kv_heads
        with model.session(300, "f16", chunk=32, watch_attention=True) as s:
            for n in (32, 32, 7, 1):
                s.eval(ids_for(model, n))
                for layer in range(shape.n_layers):
                    first, accumulated = s.kv.attention(layer, shape.n_kv_heads - 1)
                    assert accumulated.sum() == pytest.approx(n * group, rel=1e-4)
                    assert first + len(accumulated) == s.n_tokens
                    slides = layer % 6 != 5
                    assert first == (max(s.n_tokens - n - 24 + 1, 0) if slides else 0)
                    assert s.kv.window(layer) == (24 if slides else 0)


def test_watched_attention_is_what_tokens_have_accumulated(model: Model) -> None:
    """Chunk by chunk it adds up to the sums that a session which selects by attention keeps, by other code."""
    ids, shape = ids_for(model, 150), model.info()
    wide = KvOptions("logquant", window=192, overlay="f16")
    with model.session(512, "f16", watch_attention=True) as watched, model.session(512, wide) as other:
        total = np.zeros((shape.n_layers, shape.n_kv_heads, 150))
        for start in range(0, 150, 30):
            for s in (watched, other):
                s.eval(ids[start : start + 30])
            for layer in range(shape.n_layers):
                for head in range(shape.n_kv_heads):
                    _, accumulated = watched.kv.attention(layer, head)
                    total[layer, head, : len(accumulated)] += accumulated
        for layer in range(shape.n_layers):
            for head in range(shape.n_kv_heads):
                kept = other.kv.full(layer, head)
                assert list(kept.positions) == list(range(150))
                assert kept.accumulated[4:] == pytest.approx(total[layer, head, 4:], rel=1e-2)


def test_attention_of_tokens_that_are_gone(model: Model) -> None:
    """Going back takes the chunk away that was watched; the next one is watched again."""
    ids = ids_for(model, 60)
    with model.session(128, "f16", watch_attention=True) as s:
        assert len(s.kv.attention(0, 0)[1]) == 0
        s.eval(ids[:40])
        s.eval(ids[40:])
        assert len(s.kv.attention(0, 0)[1]) == 60
        with s.fork() as fork:
            assert len(fork.kv.attention(0, 0)[1]) == 0
            fork.eval(ids[:3])
            assert fork.kv.attention(0, 0)[1].sum() == pytest.approx(3 * 2, rel=1e-4)
        assert s.kv.attention(0, 0)[1].sum() == pytest.approx(20 * 2, rel=1e-4)
        assert s.keep_prefix([*ids[:50], ids[50] ^ 1, 0]) == 50
        first, accumulated = s.kv.attention(1, 0)
        assert (first, len(accumulated)) == (0, 0)
        s.eval(ids[50:52])
        first, accumulated = s.kv.attention(1, 0)
        assert (first, len(accumulated)) == (0, 52)
        assert s.rewind(45) > 0  # evaluates again
        assert len(s.kv.attention(1, 0)[1]) == 45
        s.reset()
        assert len(s.kv.attention(1, 0)[1]) == 0
        with pytest.raises(ArgumentError):
            s.kv.window(model.info().n_layers)
        with pytest.raises(ArgumentError):
            s.kv.attention(0, model.info().n_kv_heads)


def test_what_cannot_be_watched(model: Model) -> None:
    for kv in ("q8_0", "logquant"):
        with pytest.raises(ArgumentError, match=f"f16 KV only: '{kv}'"):
            model.session(256, kv, watch_attention=True)
    with pytest.raises(ArgumentError, match="drops its oldest tokens"):
        model.session(256, "f16", watch_attention=True, on_full="drop")
    with model.session(64, "f16") as s:
        s.eval([1])
        with pytest.raises(ArgumentError, match="not watched"):
            s.kv.attention(0, 0)
    plain, watching = (model.plan(512, kv="f16", watch_attention=watch) for watch in (False, True))
    shape = model.info()
    assert watching.scratch_bytes >= plain.scratch_bytes + shape.n_layers * shape.n_kv_heads * 512 * 4
    assert watching.kv_global_bytes == plain.kv_global_bytes
    with pytest.raises(OutOfMemory):
        model.session(512, "f16", watch_attention=True, budget=plain.total_bytes)


@pytest.mark.parametrize("select", ["even", "newest"])
def test_selections_are_those_of_the_core(model: Model, select: Any) -> None:
    listed = np.empty((2, 0), np.int64)
    ids = ids_for(model, 600)
    with model.session(600, KvOptions("logquant", window=64, select=select)) as s:
        for start, end in ((0, 100), (100, 101), (101, 350), (350, 600)):
            s.eval(ids[start:end])
            listed = play(select, 64, listed, max(start, SINKS), end, np.zeros((2, 600)))
            assert list(s.kv.full(0, 0).positions[SINKS:]) == list(listed[0])


def test_selection_by_attention_is_that_of_the_core(model: Model) -> None:
    """In the first layer, whose keys and queries no packed page has touched, as long as none is read."""
    ids = ids_for(model, 195 + 64)
    with (
        model.session(512, KvOptions("logquant", window=64, select="heaviest")) as s,
        model.session(512, "f16", watch_attention=True) as watched,
    ):
        accumulated = np.zeros((1, 512))
        for start, end in ((0, 150), (150, 195 + 64)):
            s.eval(ids[start:end])
            watched.eval(ids[start:end])
            given = watched.kv.attention(0, 1)[1]
            accumulated[0, : len(given)] += given
        listed = play("heaviest", 64, np.empty((1, 0), np.int64), SINKS, 150, accumulated)
        listed = play("heaviest", 64, listed, 150, end, accumulated)
        assert s.kv.usage().n_packed == 64
        core = set(s.kv.full(0, 1).positions[SINKS:].tolist())
        assert len(core ^ set(listed[0].tolist())) <= 2  # two that accumulated as good as the same


def test_shares_add_up(model: Model) -> None:
    found = observe(model, "text", ids_for(model, 700), prompt=128, stride=20)
    assert found.n_queries == 28
    assert sum(found.top) + found.sink_top == pytest.approx(1)
    assert sum(found.mass) + found.sink_mass == pytest.approx(1, rel=1e-4)
    assert found.ages[:4] == (0, 1, 2, 4)
    by_kind = {(row.select, row.window): row for row in found.coverage}
    assert by_kind["even", 64].n_kept < by_kind["even", 128].n_kept < by_kind["even", 256].n_kept
    for window in (64, 128):
        heavy, even = (by_kind[select, window] for select in ("heaviest", "even"))
        assert heavy.n_kept == even.n_kept
        assert 0 < even.mass < heavy.mass <= 1
        assert even.top < heavy.top <= 1
    with pytest.raises(ArgumentError, match="nothing to observe"):
        observe(model, "text", ids_for(model, 100), prompt=128)
    with pytest.raises(ArgumentError, match="multiples of 64"):
        observe(model, "text", ids_for(model, 300), prompt=2 * TOP, windows=(100,))


def test_a_model_that_slides_everywhere(tmp_path: Path) -> None:
    path = make_tiny(tmp_path / "m.gguf", arch="phi3", window=16, n_ctx=512)
    with Model(path, threads=1) as slides, pytest.raises(ArgumentError, match="no layer"):
        observe(slides, "text", ids_for(slides, 300), prompt=100)


def test_the_command(path: Path, tmp_path: Path) -> None:
    common = ("spikes", path, "--ctx", 300, "--prompt", 64, "--text", "stdlib:code")
    shown = call(*common, "--plot", tmp_path / "s.png")
    assert shown.status == 0
    assert "first 4 tokens" in shown.out
    assert "heaviest" in shown.out
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    found = call(*common, "--json").json()
    assert [one["text"] for one in found["texts"]] == ["stdlib:code"]
    assert len(found["texts"][0]["coverage"]) == len(SELECTIONS) * 3
    failed = call(*common, "--plot", tmp_path / "none" / "s.png")
    assert failed.status != 0
    assert "no folder" in failed.err


def test_layers_that_slide_are_left_out(tmp_path: Path) -> None:
    """A first chunk shorter than their window does not show which they are."""
    with Model(make_tiny(tmp_path / "m.gguf", arch="gemma3", n_layers=6, window=200, n_ctx=512), threads=2) as model:
        found = observe(model, "t", ids_for(model, 400), prompt=128, stride=16, windows=(64,))
    assert found.n_queries == 17
    assert sum(found.mass) + found.sink_mass == pytest.approx(1, rel=1e-3)
    assert sum(found.tokens) == pytest.approx(np.mean(np.arange(144, 401, 16)) - SINKS)
