"""Sessions: what is evaluated, kept and refused, and who owns what."""

from __future__ import annotations

import gc
import math
import threading
from array import array
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_tiny_gguf import make_tiny
from session_inputs import eval_history, ids_for

import pylogquant
from pylogquant import ArgumentError, Model, Sampler, SamplingOptions, Session
from pylogquant.kv import KvOptions, KvUsage, kv_names

WINDOW = 24
# Types that give tokens up do so within a test: the first at 196 tokens, every 64 from there on.
PAGED = (KvOptions("logquant", window=64), KvOptions("logquant-small"), KvOptions("logquant-paper"))
DROPPING = (KvOptions("streaming", window=64), KvOptions("h2o", window=64))
EVERY_KIND = ("f16", "q8_0", "q4_0", *PAGED, *DROPPING)


@pytest.fixture(scope="module")
def llama(tiny_llama_path: Path) -> Model:
    return Model(tiny_llama_path, threads=2)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """gemma3 with a window so small that rings wrap within a test."""
    path = tmp_path_factory.mktemp("ring") / "gemma3.gguf"
    make_tiny(path, arch="gemma3", n_layers=7, window=WINDOW, n_ctx=512)
    return Model(path, threads=2)


@pytest.mark.parametrize("kv", ["f16", "q8_0", "logquant"])
def test_logits_modes_agree(llama: Model, kv: str) -> None:
    ids = ids_for(llama, 40)
    with llama.session(64, kv, chunk=16) as s:
        every = s.eval(ids, "all")
        assert every is not None
        assert every.shape == (40, llama.info().n_vocab)
        assert every.dtype == np.float32
    with llama.session(64, kv, chunk=16) as s:
        assert s.eval(ids[:-1], "none") is None
        last = s.eval(ids[-1:])
        assert last is not None
        assert last.shape == (llama.info().n_vocab,)
        assert s.tokens == ids
    assert np.allclose(last, every[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kv", ["f16", "q8_0", "logquant"])
@pytest.mark.parametrize("name", ["llama", "ring"])
def test_chunk_size_changes_rounding_only(name: str, kv: str, request: pytest.FixtureRequest) -> None:
    """Of logquant as long as no token is given up; a token's chunk is what it sees in full precision. Cells of q8_0
    that lie between two codes become either."""
    model: Model = request.getfixturevalue(name)
    ids = ids_for(model, 120)
    with model.session(128, kv, chunk=128) as s:
        whole = s.eval(ids, "all")
    for chunk in (1, 7, 32):
        with model.session(128, kv, chunk=chunk) as s:
            parts = s.eval(ids, "all")
        assert whole is not None
        assert parts is not None
        assert np.abs(parts - whole).max() < (5e-3 if kv == "q8_0" else 1e-3) * np.abs(whole).max()


@pytest.mark.parametrize("with_checkpoint", [False, True])
@pytest.mark.parametrize("kv", EVERY_KIND, ids=str)
def test_going_back_to_what_is_held_brings_its_logits(ring: Model, kv: KvOptions | str, with_checkpoint: bool) -> None:
    """Also where they were not asked for, or a cancelled evaluation took them: those of a new session, bit for bit."""
    ids = ids_for(ring, 100)
    with ring.session(256, kv, chunk=32) as s, ring.session(256, kv, chunk=32) as fresh:
        logits = fresh.eval(ids)
        if with_checkpoint:
            s.prefill(ids)
            s.checkpoint()
            s.append(3)
            s.rewind(100)
            s.keep_prefix(ids)  # of as many tokens it keeps one less
            s.eval(ids[s.n_tokens :], "none")
        else:
            s.eval(ids, "none")
        with pytest.raises(ArgumentError, match="no logits"):
            s.sample(Sampler())
        s.rewind(100)
        greedy = Sampler(SamplingOptions(temperature=0))
        assert logits is not None
        assert s.sample(greedy).token == logits.argmax()
        assert np.array_equal(s.eval([5]), fresh.eval([5]))  # type: ignore[arg-type]


@pytest.mark.parametrize("kv", EVERY_KIND, ids=str)
def test_same_input_same_bits(ring: Model, kv: KvOptions | str) -> None:
    ids = ids_for(ring, 300)
    results = []
    for _ in range(2):
        with ring.session(512, kv, chunk=32) as s:
            logits = s.eval(ids, "all")
            assert logits is not None
            results.append(logits)
    assert np.array_equal(results[0], results[1])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("name", ["llama", "ring"])
def test_keeping_a_prefix_equals_a_fresh_session(
    name: str, data: st.DataObject, request: pytest.FixtureRequest
) -> None:
    """Whatever histories a session went through, keeping a prefix gives what a fresh session gives."""
    model: Model = request.getfixturevalue(name)
    history: list[int] = []
    with model.session(200, "f16", chunk=8) as s:
        for _ in range(data.draw(st.integers(1, 5))):
            keep = data.draw(st.integers(0, len(history)))
            fresh_ids = ids_for(model, data.draw(st.integers(1, 60)), data.draw(st.integers(0, 9)))
            history = (history[:keep] + fresh_ids)[:200]
            logits = eval_history(s, history)
            assert s.tokens == history
            with model.session(200, "f16", chunk=8) as fresh:
                wanted = fresh.eval(history)
            assert wanted is not None
            assert np.abs(logits - wanted).max() < 2e-3 * np.abs(wanted).max()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("kv", [*EVERY_KIND, KvOptions("logquant-small", select="even")], ids=str)
@pytest.mark.parametrize("name", ["llama", "ring"])
def test_what_is_kept_is_exact(
    name: str, kv: KvOptions | str, data: st.DataObject, request: pytest.FixtureRequest
) -> None:
    """A type that has given tokens up may keep nothing of a prefix, but never one that is not what it was: the logits
    are, bit for bit, those of a fresh session that was fed in the same pieces."""
    model: Model = request.getfixturevalue(name)
    pieces: list[list[int]] = []
    with model.session(512, kv, chunk=64) as s:
        for _ in range(data.draw(st.integers(1, 5))):
            n_pieces, n_new = data.draw(st.integers(0, len(pieces))), data.draw(st.integers(1, 150))
            if sum(map(len, pieces[:n_pieces])) + n_new > 512:
                n_pieces = 0
            new = ids_for(model, n_new, data.draw(st.integers(0, 9)))
            if n_pieces < len(pieces):
                new[0] = (pieces[n_pieces][0] + 1) % model.info().n_vocab  # the common prefix ends here
            pieces = pieces[:n_pieces]
            held = [*chain.from_iterable(pieces)]
            kept = s.keep_prefix(held + new)
            assert kept == s.n_tokens
            assert kept in (0, len(held))
            pieces = [*pieces, new] if kept else [held + new]
            logits = s.eval((held + new)[kept:])
            with model.session(512, kv, chunk=64) as fresh:
                for piece in pieces:
                    wanted = fresh.eval(piece)
            assert logits is not None
            assert wanted is not None
            assert np.array_equal(logits, wanted)


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_the_prefix_stays(llama: Model, kv: str) -> None:
    ids = ids_for(llama, 50)
    with llama.session(64, kv) as s:
        s.eval(ids)
        assert s.keep_prefix([*ids[:30], (ids[30] + 1) % llama.info().n_vocab]) == 30
        assert s.n_tokens == 30
        assert s.keep_prefix(ids[:30]) == 29  # the last token is evaluated again, for its logits


@pytest.mark.parametrize("kv", EVERY_KIND, ids=str)
def test_a_history_that_goes_on_is_kept_whole(llama: Model, kv: KvOptions | str) -> None:
    ids = ids_for(llama, 400)
    with llama.session(512, kv) as s:
        for n in (1, 150, 300, 399):
            s.eval(ids[s.n_tokens : n])
            assert s.keep_prefix(ids[: n + 1]) == n


def test_a_prefix_without_what_was_given_up_is_not_kept(llama: Model) -> None:
    """It would need tokens in full precision that are there as codes only."""
    ids = ids_for(llama, 300)
    with llama.session(512, "logquant-small") as s:
        s.eval(ids)
        assert s.info().kv_usage.n_packed > 0
        logits = eval_history(s, ids[:250])
        with llama.session(512, "logquant-small") as fresh:
            wanted = fresh.eval(ids[:250])
        assert wanted is not None
        assert np.array_equal(logits, wanted)
        assert s.tokens == ids[:250]


def test_ring_that_lost_its_past_starts_over(ring: Model) -> None:
    ids = ids_for(ring, 200)
    with ring.session(256, "f16", chunk=8) as s:
        s.eval(ids)
        assert s.keep_prefix([*ids[:195], 1, 2]) >= 195  # still within the ring's slack
        s.eval(ids[195:])
        assert s.keep_prefix([*ids[:100], 1, 2]) == 0


def test_context_full_loses_nothing(llama: Model) -> None:
    ids = ids_for(llama, 33)
    with llama.session(32, chunk=8) as s:
        with pytest.raises(pylogquant.ContextFull, match="32"):
            s.eval(ids)
        assert s.n_tokens == 0
        s.eval(ids[:32])
        with pytest.raises(pylogquant.ContextFull):
            s.append(1)
        assert s.tokens == ids[:32]
        s.reset()
        assert s.n_tokens == 0
        assert s.eval(ids[:5]) is not None


@pytest.mark.parametrize("bad", [[-1], [10**6], [2**40], [1.5], [[1, 2]], ["a"]])
def test_bad_ids_are_refused(llama: Model, bad: list[object]) -> None:
    with llama.session(32) as s:
        s.eval([1])
        with pytest.raises(pylogquant.ArgumentError):
            s.eval([0, *bad])  # type: ignore[list-item]
        assert s.tokens == [1]
        empties: list[Any] = [[], (), np.zeros(0)]
        for empty in empties:
            with pytest.raises(pylogquant.ArgumentError, match="no tokens"):
                s.eval(empty)
        for flags in ([True, False], np.array([True, False])):
            with pytest.raises(pylogquant.ArgumentError, match="integers"):
                s.prefill(flags)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make", [list, tuple, np.array, lambda ids: np.array(ids, dtype=np.uint16), lambda ids: array("q", ids)]
)
def test_ids_come_in_many_forms(llama: Model, make: Callable[[list[int]], Any]) -> None:
    ids = ids_for(llama, 40)
    with llama.session() as session, llama.session() as other:
        expected = session.eval(ids)
        other.prefill(make(ids[:30]))
        assert other.keep_prefix(make(ids)) == 30
        found = other.eval(make(ids[30:]), "last")
        assert other.tokens == ids
        assert expected is not None
        assert found is not None
        assert np.abs(found - expected).max() < 1e-3


def test_unknown_kv_lists_what_exists(llama: Model) -> None:
    for name in kv_names():
        with pytest.raises(pylogquant.Unsupported, match=rf"{name}\b"):
            llama.session(32, kv="q3_weird")
    for bad in ("", "f16\0", "\udcff", 5, None):
        with pytest.raises(pylogquant.LogQuantError):
            llama.session(32, kv=bad)  # type: ignore[arg-type]


def test_every_name_is_a_type_and_the_first_is_the_default(llama: Model) -> None:
    for name in kv_names():
        with llama.session(64, name) as s:
            assert s.info().kv == s.info().kv_options.name == name
    with llama.session(64) as s:
        assert s.info().kv == kv_names()[0] == KvOptions().name


REFUSED: dict[str, tuple[KvOptions, str]] = {
    "keys of f16": (KvOptions("f16", keys="2"), "key widths"),
    "values of f16": (KvOptions("f16", value_bits=2), "value bits"),
    "window of q8_0": (KvOptions("q8_0", window=64), "window"),
    "sinks of q8_0": (KvOptions("q8_0", sinks=0), "sinks"),
    "overlay of q8_0": (KvOptions("q8_0", overlay="q8_0"), "overlay"),
    "window of q4_0": (KvOptions("q4_0", window=64), "window"),
    "keys of streaming": (KvOptions("streaming", keys="2"), "drops tokens"),
    "values of h2o": (KvOptions("h2o", value_bits=2), "drops tokens"),
    "selection of f16": (KvOptions("f16", select="even"), "selection"),
    "no width": (KvOptions(keys=""), "width"),
    "too wide": (KvOptions(keys="6"), "1 to 5"),
    "parts": (KvOptions(keys="4:1/2,2:1/4"), "add up"),
    "rising": (KvOptions(keys="2:1/2,4:1/2"), "fall"),
    "value bits": (KvOptions(value_bits=5), "2, 3 and 4"),
    "window": (KvOptions(window=100), "multiple of 64"),
    "sinks": (KvOptions(sinks=65), "0 to 64"),
    "below zero": (KvOptions(sinks=-1), "0 to 64"),
    "negative window": (KvOptions(window=-64), "window must be 0 to"),
    "overlay": (KvOptions(overlay="f32"), "q8_0"),  # type: ignore[arg-type]
    "selection": (KvOptions(select="odd"), "heaviest"),  # type: ignore[arg-type]
    "cut text": (KvOptions(keys="2\0,"), "zeros"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_cannot_be_are_refused(llama: Model, case: str) -> None:
    options, word = REFUSED[case]
    for refuse in (lambda: llama.plan(64, kv=options), lambda: llama.session(64, options)):
        with pytest.raises(pylogquant.ArgumentError, match=word) as caught:
            refuse()
        assert "\n" not in str(caught.value)


def test_settings_reach_the_cache(llama: Model) -> None:
    asked = KvOptions(
        "logquant-hq", keys="5:1/2,1:1/2", value_bits=4, window=192, sinks=7, overlay="q8_0", select="even"
    )
    with llama.session(64, asked) as s:
        assert s.info().kv_options == asked
    with llama.session(64, KvOptions("logquant-paper", sinks=2)) as s:
        paper = KvOptions("logquant-paper", "2", 2, 64, 2, "f16", "even")
        assert s.info().kv_options == paper
    with llama.session(64, "q8_0") as s:
        assert s.info().kv_options == KvOptions("q8_0")


def test_context_beyond_training_needs_consent(llama: Model) -> None:
    trained = llama.info().n_ctx_train
    with pytest.raises(pylogquant.ArgumentError, match=str(trained)):
        llama.session(trained + 1)
    with llama.session(trained + 1, allow_long=True) as s:
        assert s.n_ctx == trained + 1


@pytest.mark.parametrize("kv", ["f16", "logquant-small"])
def test_over_budget_is_refused_with_what_fits(llama: Model, kv: str) -> None:
    plan = llama.plan(512, kv=kv)
    with pytest.raises(pylogquant.OutOfMemory, match=r"try a context of \d+"):
        llama.session(512, kv, budget=plan.total_bytes - 1)
    with llama.session(512, kv, budget=plan.total_bytes) as s:
        assert s.info().total_bytes == plan.total_bytes
    with pytest.raises(pylogquant.OutOfMemory):
        llama.session(2**28, "f16", allow_long=True)


def test_info_counts_every_cell(llama: Model, ring: Model) -> None:
    m = llama.info()
    values = m.n_layers * m.n_kv_heads * m.head_dim * 2
    with llama.session(100, "f16", chunk=16) as s:
        s.eval(ids_for(llama, 10))
        info = s.info()
    assert info.kv == "f16"
    assert info.kv_bits == info.kv_bits_now == 16.0
    assert info.kv_global_bytes == 100 * values * 2
    assert info.kv_used_bytes == info.kv_f16_bytes == 10 * values * 2
    assert info.kv_sliding_bytes == 0
    assert info.backend == "cpu"
    r = ring.info()
    with ring.session(400, "f16", chunk=16) as s:
        s.eval(ids_for(ring, 100))
        info = s.info()
    cell = r.n_kv_heads * r.head_dim * 2 * 2
    assert info.kv_sliding_bytes == (r.n_layers - r.n_global_layers) * (WINDOW + 16) * cell
    assert info.kv_global_bytes == r.n_global_layers * 400 * cell
    assert info.kv_usage.ring_bytes == info.kv_sliding_bytes
    assert info.kv_used_bytes == info.kv_sliding_bytes + r.n_global_layers * 100 * cell


@pytest.mark.parametrize("kv", [*kv_names(), KvOptions(keys="3", value_bits=4, overlay="q8_0", sinks=0)], ids=str)
@pytest.mark.parametrize("name", ["llama", "ring"])
def test_the_plan_is_what_is_allocated_and_used(name: str, kv: KvOptions | str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(name)
    n_ctx = 4096
    plan = model.plan(n_ctx, kv=kv, chunk=256, allow_long=True)
    with model.session(n_ctx, kv, chunk=256, allow_long=True) as s:
        empty = s.info()
        s.eval(ids_for(model, n_ctx), "none")
        full = s.info()
    for info in (empty, full):
        assert info.kv_global_bytes == plan.kv_global_bytes
        assert info.kv_sliding_bytes == plan.kv_sliding_bytes
        assert info.scratch_bytes == plan.scratch_bytes
        assert info.total_bytes == plan.total_bytes
    assert full.kv_used_bytes == full.kv_usage.global_bytes + full.kv_usage.ring_bytes
    assert abs(full.kv_usage.global_bytes - plan.kv_global_bytes) < 0.02 * plan.kv_global_bytes
    assert full.kv_usage.ring_bytes == plan.kv_sliding_bytes
    assert abs(full.kv_bits_now - full.kv_bits) < 0.02 * full.kv_bits
    assert full.kv_bits == pytest.approx(8 * plan.kv_global_bytes / full.kv_values_per_token / n_ctx)


def test_usage_tells_where_the_tokens_are(llama: Model) -> None:
    """W = 64, 4 sinks: 128 to 191 tokens stay in full precision besides them."""
    m = llama.info()
    heads = m.n_layers * m.n_kv_heads
    with llama.session(512, "logquant-small") as s:
        assert s.info().kv_bits_now == 0
        seen: list[tuple[int, int, int, int, int]] = []
        for n in (3, 70, 195, 196, 259, 500):
            s.eval(ids_for(llama, n)[s.n_tokens :])
            usage = s.kv.usage()
            assert usage == s.info().kv_usage
            assert usage.n_tokens == n
            seen.append((usage.n_tokens, usage.n_sinks, usage.n_full, usage.n_packed, usage.n_pages))
            assert usage.mask_bytes == heads * usage.n_pages * 8
            # Keys in tiers of 4, 4 and 8 channels with 4, 2 and 1 bits, values with 2.
            assert usage.code_bytes == heads * usage.n_pages * 8 * (4 * 4 + 4 * 2 + 8 * 1 + 16 * 2)
            assert usage.ring_bytes == 0
        s.reset()
        assert s.kv.usage() == KvUsage(0, 0, 0, 0, 0, 0, 0, 0, 0, usage.full_bytes, usage.index_bytes, 0)
    assert seen == [
        (3, 3, 0, 0, 0),
        (70, 4, 66, 0, 1),
        (195, 4, 191, 0, 2),
        (196, 4, 128, 64, 3),
        (259, 4, 191, 64, 3),
        (500, 4, 176, 320, 7),
    ]


def test_the_view_shows_pages_and_full_tokens(llama: Model) -> None:
    m = llama.info()
    with llama.session(512, "logquant") as s:
        s.eval(ids_for(llama, 300))
        view = s.kv
        usage = view.usage()
        order = view.order(1, 1)
        assert sorted(order.tolist()) == list(range(m.head_dim))
        page = view.page(0, 1, 0)
        assert page.mask == 2**64 - 1  # nothing was given up
        assert len(page.record) > usage.code_bytes / (m.n_layers * m.n_kv_heads * usage.n_pages)
        full = view.full(1, 0)
        assert full.positions.tolist() == list(range(300))
        assert full.k.shape == full.v.shape == (300, m.head_dim)
        assert full.accumulated[:4].tolist() == [0, 0, 0, 0]
        assert (full.accumulated[4:] > 0).all()
        for call in (
            lambda: view.page(0, 0, usage.n_pages),
            lambda: view.page(m.n_layers, 0, 0),
            lambda: view.full(0, m.n_kv_heads),
            lambda: view.order(-1, 0),
        ):
            with pytest.raises(pylogquant.ArgumentError):
                call()
    with pytest.raises(pylogquant.ClosedError):
        view.usage()
    with llama.session(64, "q8_0") as s:
        s.eval([1, 2, 3])
        assert s.kv.full(0, 0).positions.tolist() == [0, 1, 2]
        with pytest.raises(pylogquant.ArgumentError, match="no pages"):
            s.kv.page(0, 0, 0)


def test_views_keep_their_session_alive(llama: Model) -> None:
    session = llama.session(64)
    session.eval([1, 2, 3])
    view = session.kv
    del session
    gc.collect()
    assert view.usage().n_tokens == 3


def test_second_thread_gets_session_busy(llama: Model) -> None:
    """While one thread is inside eval, any other entry raises; the first is not disturbed."""
    n = llama.info().n_ctx_train
    with llama.session(n, chunk=n) as s:
        ids = ids_for(llama, n)
        seen: list[BaseException] = []

        def evaluate() -> None:
            while not seen or s.n_tokens < n:  # again and again, until the other thread came at the wrong time
                try:
                    s.reset()
                    s.eval(ids, "none")
                except pylogquant.SessionBusy:
                    continue  # the other thread was first; it leaves at once

        worker = threading.Thread(target=evaluate)
        worker.start()
        while not seen:
            try:
                s.keep_prefix(ids)  # all of it: nothing changes if it gets in
            except pylogquant.SessionBusy as error:
                seen.append(error)
        worker.join()
        assert seen
        assert s.tokens == ids


@pytest.mark.parametrize("kv", ["f16", "logquant-small"])
def test_cancel_from_another_thread(llama: Model, kv: str) -> None:
    n = llama.info().n_ctx_train
    with llama.session(n, kv, chunk=n) as s:
        ids = ids_for(llama, n)
        raised: list[BaseException] = []

        def evaluate() -> None:
            try:
                while True:
                    s.eval(ids, "none")
                    s.reset()
            except pylogquant.Cancelled as error:
                raised.append(error)

        worker = threading.Thread(target=evaluate)
        worker.start()
        while worker.is_alive():
            s.cancel()
        worker.join()
        assert raised
        assert s.n_tokens == 0  # the one chunk was not finished
        logits = s.eval(ids[:20])
        with llama.session(n, kv, chunk=n) as fresh:
            wanted = fresh.eval(ids[:20])
        assert logits is not None
        assert wanted is not None
        assert np.array_equal(logits, wanted)


def test_sessions_of_one_model_run_in_parallel_threads(llama: Model) -> None:
    ids = ids_for(llama, 60)
    with llama.session(64, chunk=8) as s:
        wanted = s.eval(ids)
    assert wanted is not None
    results: list[bool] = []

    def evaluate() -> None:
        with llama.session(64, chunk=8) as own:
            got = own.eval(ids)
            results.append(got is not None and np.array_equal(got, wanted))

    threads = [threading.Thread(target=evaluate) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 6


def test_closing_in_any_order(tiny_llama_path: Path) -> None:
    model = Model(tiny_llama_path, threads=1)
    session = model.session(32)
    model.close()
    model.close()
    with pytest.raises(pylogquant.ClosedError):
        model.session(32)
    with pytest.raises(pylogquant.ClosedError):
        _ = model.tokenizer
    assert session.eval([1, 2, 3]) is not None  # the weights stay for open sessions
    session.close()
    session.close()
    with pytest.raises(pylogquant.ClosedError):
        session.eval([1])
    session.cancel()  # harmless
    del model, session
    gc.collect()


def test_sampling_is_seeded_and_reports_logprobs(llama: Model) -> None:
    def generate(seed: int) -> list[int]:
        sampler = Sampler(SamplingOptions(temperature=1.5, top_k=0, top_p=1.0, min_p=0.0, seed=seed))
        with llama.session(64) as s:
            s.prefill([1, 2, 3])
            for _ in range(30):
                s.append(s.sample(sampler).token)
            return s.tokens

    assert generate(5) == generate(5)
    assert generate(5) != generate(6)
    with llama.session(64) as s:
        logits = s.eval([1, 2, 3])
        assert logits is not None
        choice = s.sample(Sampler(SamplingOptions(temperature=0)), top=4)
        log_total = math.log(np.exp(logits.astype(np.float64) - logits.max()).sum()) + float(logits.max())
        order = np.argsort(-logits, kind="stable")[:4]
        assert choice.token == order[0]
        assert [t.token for t in choice.top] == order.tolist()
        for t in choice.top:
            assert abs(t.logprob - (float(logits[t.token]) - log_total)) < 1e-4
        assert math.isnan(s.sample(Sampler(SamplingOptions(temperature=0))).logprob)
        assert s.n_tokens == 3  # sampling changes nothing


@pytest.mark.parametrize(
    "options",
    [SamplingOptions(temperature=0, presence_penalty=1e3), SamplingOptions(temperature=0, frequency_penalty=1e3)],
)
def test_penalties_count_what_was_sampled(llama: Model, options: SamplingOptions) -> None:
    """As in OpenAI's interface: the answer so far, however it came to the session, and never the prompt."""
    with llama.session(256, "f16") as s:
        plain, penal = Sampler(SamplingOptions(temperature=0)), Sampler(options)
        n_vocab, ids = s.n_vocab, ids_for(llama, 40)
        s.prefill([*range(n_vocab)][-200:])  # would forbid most of them
        assert s.sample(penal).token == s.sample(plain).token
        answer = []
        for step in range(12):
            token = s.sample(penal).token
            assert token == s.sample(penal).token
            assert token not in answer, "an answer's tokens never come again"
            answer.append(token)
            if step % 2:
                llama.step([s], [token])
            else:
                s.append(token)
        with s.fork() as other:
            assert other.sample(penal).token == s.sample(penal).token
        # Other text begins another answer, be it a single token; so does going back.
        with s.fork() as other:
            other.append(ids[0])
            assert other.sample(penal).token == other.sample(plain).token
        s.rewind(s.n_tokens - 6)
        assert s.sample(penal).token == s.sample(plain).token
        s.reset()
        s.prefill(ids[:3])
        assert s.sample(penal).token == s.sample(plain).token


def test_a_repeat_penalty_knows_the_prompt(llama: Model) -> None:
    heavy = SamplingOptions(temperature=0, repeat_penalty=1000.0, penalty_last_n=0)
    with llama.session(256, "f16") as s:
        told = []
        for seed in range(20):  # some prompt is followed by a token that it has
            s.reset()
            s.prefill(ids_for(llama, 100, seed))
            if s.sample(Sampler(SamplingOptions(temperature=0))).token in s.tokens:
                told.append(s.sample(Sampler(heavy)).token not in s.tokens)
        assert told
        assert all(told)


def test_sampling_without_logits_is_refused(llama: Model) -> None:
    with llama.session(32) as s, pytest.raises(pylogquant.ArgumentError, match="evaluate"):
        s.sample(Sampler())


@pytest.mark.parametrize(
    "options",
    [
        SamplingOptions(temperature=-1),
        SamplingOptions(top_k=-1),
        SamplingOptions(top_p=0),
        SamplingOptions(min_p=1),
        SamplingOptions(repeat_penalty=0),
        SamplingOptions(seed=-1),
        SamplingOptions(logit_bias={1: math.nan}),
        SamplingOptions(logit_bias={2**40: 1.0}),
    ],
)
def test_bad_sampling_options(options: SamplingOptions) -> None:
    with pytest.raises(pylogquant.ArgumentError):
        Sampler(options)


def test_logit_bias_outside_the_vocabulary(llama: Model) -> None:
    with llama.session(32) as s:
        s.eval([1])
        with pytest.raises(pylogquant.ArgumentError, match="vocabulary"):
            s.sample(Sampler(SamplingOptions(logit_bias={llama.info().n_vocab: 1.0})))


def test_session_type_is_exported(llama: Model) -> None:
    with llama.session(32) as s:
        assert isinstance(s, Session)
