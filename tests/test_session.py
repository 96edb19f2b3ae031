"""Sessions: what is evaluated, kept and refused, and who owns what."""

from __future__ import annotations

import gc
import math
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_tiny_gguf import make_tiny

import pylogquant
from pylogquant import Model, Sampler, SamplingOptions, Session
from pylogquant.model import kv_names

WINDOW = 24


@pytest.fixture(scope="module")
def llama(tiny_llama_path: Path) -> Model:
    return Model(tiny_llama_path, threads=2)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """gemma3 with a window so small that rings wrap within a test."""
    path = tmp_path_factory.mktemp("ring") / "gemma3.gguf"
    make_tiny(path, arch="gemma3", n_layers=7, window=WINDOW, n_ctx=512)
    return Model(path, threads=2)


def ids_for(model: Model, n: int, seed: int = 0) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, model.info().n_vocab, n)]


def test_logits_modes_agree(llama: Model) -> None:
    ids = ids_for(llama, 40)
    with llama.session(64, chunk=16) as s:
        every = s.eval(ids, "all")
        assert every is not None
        assert every.shape == (40, llama.info().n_vocab)
        assert every.dtype == np.float32
    with llama.session(64, chunk=16) as s:
        assert s.eval(ids[:-1], "none") is None
        last = s.eval(ids[-1:])
        assert last is not None
        assert last.shape == (llama.info().n_vocab,)
        assert s.tokens == ids
    assert np.allclose(last, every[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "ring"])
def test_chunk_size_changes_rounding_only(name: str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(name)
    ids = ids_for(model, 120)
    with model.session(128, chunk=128) as s:
        whole = s.eval(ids, "all")
    for chunk in (1, 7, 32):
        with model.session(128, chunk=chunk) as s:
            parts = s.eval(ids, "all")
        assert whole is not None
        assert parts is not None
        assert np.abs(parts - whole).max() < 1e-3 * np.abs(whole).max()


def test_same_input_same_bits(ring: Model) -> None:
    ids = ids_for(ring, 70)
    results = []
    for _ in range(2):
        with ring.session(128, chunk=32) as s:
            logits = s.eval(ids, "all")
            assert logits is not None
            results.append(logits)
    assert np.array_equal(results[0], results[1])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize("name", ["llama", "ring"])
def test_sync_equals_a_fresh_session(name: str, data: st.DataObject, request: pytest.FixtureRequest) -> None:
    """Whatever histories a session went through, sync gives what a fresh session gives."""
    model: Model = request.getfixturevalue(name)
    history: list[int] = []
    with model.session(200, chunk=8) as s:
        for _ in range(data.draw(st.integers(1, 5))):
            keep = data.draw(st.integers(0, len(history)))
            fresh_ids = ids_for(model, data.draw(st.integers(1, 60)), data.draw(st.integers(0, 9)))
            history = (history[:keep] + fresh_ids)[:200]
            logits = s.sync(history)
            assert s.tokens == history
            with model.session(200, chunk=8) as fresh:
                wanted = fresh.eval(history)
            assert wanted is not None
            assert np.abs(logits - wanted).max() < 2e-3 * np.abs(wanted).max()


def test_sync_keeps_the_prefix(llama: Model) -> None:
    ids = ids_for(llama, 50)
    with llama.session(64) as s:
        s.eval(ids)
        assert s.keep_prefix([*ids[:30], (ids[30] + 1) % llama.info().n_vocab]) == 30
        assert s.n_tokens == 30
        assert s.keep_prefix(ids[:30]) == 29  # the last token is evaluated again, for its logits


def test_ring_that_lost_its_past_starts_over(ring: Model) -> None:
    ids = ids_for(ring, 200)
    with ring.session(256, chunk=8) as s:
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
        with pytest.raises(pylogquant.ArgumentError):
            s.eval([])


def test_unknown_kv_lists_what_exists(llama: Model) -> None:
    with pytest.raises(pylogquant.Unsupported, match=kv_names()[0]):
        llama.session(32, kv="q3_weird")


def test_context_beyond_training_needs_consent(llama: Model) -> None:
    trained = llama.info().n_ctx_train
    with pytest.raises(pylogquant.ArgumentError, match=str(trained)):
        llama.session(trained + 1)
    with llama.session(trained + 1, allow_long=True) as s:
        assert s.n_ctx == trained + 1


def test_over_budget_is_refused_with_what_fits(llama: Model) -> None:
    plan = llama.plan(512)
    with pytest.raises(pylogquant.OutOfMemory, match=r"try a context of \d+"):
        llama.session(512, budget=plan.total_bytes - 1)
    with llama.session(512, budget=plan.total_bytes) as s:
        assert s.info().total_bytes == plan.total_bytes
    with pytest.raises(pylogquant.OutOfMemory):
        llama.session(2**28, allow_long=True)


def test_info_counts_every_cell(llama: Model, ring: Model) -> None:
    m = llama.info()
    per_token = m.n_layers * m.n_kv_heads * m.head_dim * 2 * 2
    with llama.session(100, chunk=16) as s:
        s.eval(ids_for(llama, 10))
        info = s.info()
    assert info.kv == "f16"
    assert info.kv_bits == 16.0
    assert info.kv_global_bytes == 100 * per_token
    assert info.kv_used_bytes == 10 * per_token
    assert info.kv_sliding_bytes == 0
    assert info.backend == "cpu"
    r = ring.info()
    with ring.session(400, chunk=16) as s:
        info = s.info()
    cell = r.n_kv_heads * r.head_dim * 2 * 2
    assert info.kv_sliding_bytes == (r.n_layers - r.n_global_layers) * (WINDOW + 16) * cell
    assert info.kv_global_bytes == r.n_global_layers * 400 * cell


def test_second_thread_gets_session_busy(llama: Model) -> None:
    """While one thread is inside eval, any other entry raises; the first is not disturbed."""
    n = llama.info().n_ctx_train
    with llama.session(n, chunk=n) as s:
        ids = ids_for(llama, n)
        seen: list[BaseException] = []

        def evaluate() -> None:
            while s.n_tokens < n:
                try:
                    s.eval(ids, "none")
                except pylogquant.SessionBusy:
                    continue  # the other thread was first; it leaves at once

        worker = threading.Thread(target=evaluate)
        worker.start()
        while worker.is_alive() and not seen:
            try:
                s.keep_prefix(ids[:1])
            except pylogquant.SessionBusy as error:
                seen.append(error)
        worker.join()
        assert seen
        assert s.tokens == ids


def test_cancel_from_another_thread(llama: Model) -> None:
    n = llama.info().n_ctx_train
    with llama.session(n, chunk=n) as s:
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
        with llama.session(n, chunk=n) as fresh:
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
