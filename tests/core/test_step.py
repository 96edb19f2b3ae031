"""Steps of several sessions: what each would be alone, up to rounding; refused as a whole, or not at all."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import reference
from make_tiny_gguf import make_tiny
from session_inputs import EVERY_TYPE, eval_history, ids_for
from test_forward import SHAPES, long_enough, relative_error

import pylogquant
from pylogquant import Model, Sampler, SamplingOptions, Session
from pylogquant.kv import KvOptions

pytestmark = pytest.mark.tiny_model  # once per SIMD level

Logits = npt.NDArray[np.float32]
# Between a step and the same token alone: rounding only, against the largest logit. Three sessions and more are
# multiplied in another order, whose last bits are made larger where activations are rounded to 8 bits.
BOUND = 2e-3
MANY, MANY_BOUND = 3, 2e-2


@pytest.fixture(scope="module")
def llama(tiny_llama_path: Path) -> Model:
    return Model(tiny_llama_path, threads=2)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """gemma3 with rings of 24 tokens that wrap within a test, and two global layers."""
    path = tmp_path_factory.mktemp("ring") / "gemma3.gguf"
    make_tiny(path, arch="gemma3", n_layers=12, window=24, n_ctx=700)
    return Model(path, threads=2)


@pytest.fixture(scope="module")
def lfm2(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Short convolutions, before, between and after layers of attention."""
    path = tmp_path_factory.mktemp("lfm2") / "lfm2.gguf"
    make_tiny(path, arch="lfm2", n_layers=5, attention_layers=(1, 3), n_ctx=700)
    return Model(path, threads=2)


def alone(session: Session, tokens: Sequence[int]) -> Logits:
    logits = session.eval(tokens)
    assert logits is not None
    return logits


def check_close(found: Logits, wanted: Logits, bound: float = BOUND) -> None:
    largest = float(np.abs(wanted).max())
    assert np.abs(found - wanted).max() < bound * largest
    top, second = np.sort(wanted)[-1], np.sort(wanted)[-2]
    if top - second > 2 * bound * largest:
        assert found.argmax() == wanted.argmax()


@pytest.mark.parametrize("name", SHAPES)
def test_like_the_reference(name: str, tmp_path: Path) -> None:
    """Histories of different lengths, every step against NumPy in double precision."""
    path = make_tiny(tmp_path / "m.gguf", **SHAPES[name])
    lengths, n_steps = (1, 30, 9, 44), 12
    if SHAPES[name].get("n_ctx_original") == 64:
        lengths = (61, 90, 69, 104)  # the reference chooses the rope factors by what there is, not by what may come
    with Model(path, threads=2) as model:
        histories = [ids_for(model, n + n_steps, seed) for seed, n in enumerate(lengths)]
        sessions = [model.session(long_enough(name), "f16", chunk=16) for _ in lengths]
        for session, n, ids in zip(sessions, lengths, histories, strict=True):
            session.prefill(ids[:n])
        steps = [[ids[n + i] for n, ids in zip(lengths, histories, strict=True)] for i in range(n_steps)]
        found = np.stack([model.step(sessions, tokens) for tokens in steps])
        assert [session.tokens for session in sessions] == histories
    for which, (n, ids) in enumerate(zip(lengths, histories, strict=True)):
        wanted = reference.forward(path, ids)[n:]
        assert relative_error(found[:, which], wanted) < 2e-3
        # The bound can tell one session's logits from another's.
        assert relative_error(found[:, which - 1], wanted) > 0.1


def test_each_session_has_the_rope_of_its_own_context(tmp_path: Path) -> None:
    path = make_tiny(tmp_path / "m.gguf", **SHAPES["phi3, long rope factors"])
    with Model(path, threads=2) as model:
        together, apart = ([model.session(n_ctx, "f16") for n_ctx in (60, 256, 60, 256)] for _ in range(2))
        for i in range(50):
            found = model.step(together, [i] * 4)
            for which, session in enumerate(apart):
                check_close(found[which], alone(session, [i]))
        assert np.abs(found[0] - found[1]).max() > 0.1 * np.abs(found[0]).max()


@pytest.mark.parametrize("on_full", ["stop", "drop"])
@pytest.mark.parametrize("name", ["llama", "ring", "lfm2"])
def test_every_type_together_as_alone(name: str, on_full: Any, request: pytest.FixtureRequest) -> None:
    """All KV cache types in one step, at lengths on both sides of where pages are coded, tokens are given up, rings
    wrap and the oldest are dropped."""
    model: Model = request.getfixturevalue(name)
    # paged types that drop take their least context, which their window decides
    kinds = [kv for kv in EVERY_TYPE if on_full == "stop" or not isinstance(kv, str) or not kv.startswith("logquant")]
    n_ctx, start, n_steps = (500, 120, 200) if on_full == "stop" else (470, 440, 120)
    together, apart = (
        [model.session(n_ctx, kv, chunk=64, on_full=on_full, allow_long=True) for kv in kinds] for _ in range(2)
    )
    for i, (a, b) in enumerate(zip(together, apart, strict=True)):
        ids = ids_for(model, start + 3 * i if on_full == "stop" else start, i)
        a.prefill(ids)
        b.prefill(ids)
    streams = np.array([ids_for(model, n_steps, 100 + i) for i in range(len(kinds))])
    for i in range(n_steps):
        found = model.step(together, streams[:, i].tolist())
        for which, session in enumerate(apart):
            bound = MANY_BOUND if len(kinds) >= MANY else BOUND
            check_close(found[which], alone(session, [int(streams[which, i])]), bound)
    for a, b in zip(together, apart, strict=True):
        assert a.tokens == b.tokens
        assert a.kv.usage() == b.kv.usage()
        assert on_full == "stop" or a.info().kv_usage.n_dropped > 0


@pytest.mark.parametrize("kv", [KvOptions("logquant", window=64), "f16"], ids=str)
def test_forks_share_pages_in_one_step(llama: Model, kv: KvOptions | str) -> None:
    """Each goes its own way, across the end of a page, while the elder stays what it was."""
    prompt = ids_for(llama, 250)
    elder = llama.session(400, kv, chunk=64)
    elder.prefill(prompt)
    family = [elder, *(elder.fork() for _ in range(3))]
    streams = np.array([ids_for(llama, 80, 7 + i) for i in range(4)])
    found = [llama.step(family, streams[:, i].tolist()) for i in range(80)]
    for which, session in enumerate(family):
        with llama.session(400, kv, chunk=64) as single:
            single.prefill(prompt)
            for i in range(80):
                check_close(found[i][which], alone(single, [int(streams[which, i])]))
            assert session.tokens == single.tokens


def test_the_same_step_gives_the_same_bits(ring: Model) -> None:
    results = []
    for _ in range(2):
        sessions = [ring.session(400, kv, chunk=64) for kv in EVERY_TYPE]
        for i, session in enumerate(sessions):
            session.prefill(ids_for(ring, 40 + 20 * i, i))
        results.append(np.stack([ring.step(sessions, [i] * len(sessions)) for i in range(100)]))
    assert np.array_equal(results[0], results[1])


def test_logits_stay_in_the_sessions(llama: Model) -> None:
    sessions = [llama.session(64) for _ in range(3)]
    found = llama.step(sessions, [1, 2, 3])
    assert found.shape == (3, llama.info().n_vocab)
    assert found.dtype == np.float32
    greedy = Sampler(SamplingOptions(temperature=0))
    assert [s.sample(greedy).token for s in sessions] == found.argmax(axis=1).tolist()
    assert llama.step(sessions, [4, 5, 6], copy=False) is None
    assert [s.tokens for s in sessions] == [[1, 4], [2, 5], [3, 6]]
    again = [llama.session(64) for _ in range(3)]
    llama.step(again, [1, 2, 3], copy=False)
    wanted = llama.step(again, [4, 5, 6])
    assert [s.sample(greedy).token for s in sessions] == wanted.argmax(axis=1).tolist()


@pytest.mark.parametrize("kv", [KvOptions("logquant", window=64), "q8_0"], ids=str)
def test_going_back_after_steps(llama: Model, kv: KvOptions | str, tmp_path: Path) -> None:
    """A checkpoint, a saved session and a fork are exact; what is evaluated again is so up to rounding."""

    def step(sessions: Sequence[Session], tokens: Sequence[int]) -> Logits:
        return llama.step([*sessions, other], [*tokens, 1])[: len(sessions)]

    session, other = llama.session(400, kv, chunk=64), llama.session(400)
    session.prefill(ids_for(llama, 190))
    tokens = ids_for(llama, 40, 1)
    seen = [step([session], [token])[0] for token in tokens[:20]]
    session.checkpoint()
    session.save(tmp_path / "s")
    branch = session.fork()
    after = [step([session], [token])[0] for token in tokens[20:]]

    assert session.rewind(210) == 0
    other.rewind(20)
    assert np.array_equal([step([session], [token])[0] for token in tokens[20:]], after)
    other.rewind(20)
    assert np.array_equal([step([branch], [token])[0] for token in tokens[20:]], after)
    with llama.load_session(tmp_path / "s") as loaded:
        other.rewind(20)
        assert np.array_equal([step([loaded], [token])[0] for token in tokens[20:]], after)

    assert session.rewind(210) == 0
    continued = eval_history(session, [*session.tokens, 3])
    assert np.array_equal(continued, eval_history(session, [*session.tokens[:210], 3]))  # from the checkpoint again
    assert session.rewind(200) > 0
    check_close(alone(session, tokens[10:11]), seen[10])
    assert session.tokens == [*ids_for(llama, 190), *tokens[:11]]


def states(sessions: Sequence[Session]) -> list[tuple[list[int], int]]:
    greedy = Sampler(SamplingOptions(temperature=0))
    return [(s.tokens, s.sample(greedy).token) for s in sessions]


def test_refused_steps_change_nothing(llama: Model, ring: Model) -> None:
    a, b, full, stranger = llama.session(64), llama.session(64, "f16"), llama.session(8), ring.session(64)
    for session in (a, b, full, stranger):
        session.prefill([1, 2, 3])
    full.prefill([1] * 5)
    mine = [a, b, full]
    before = states(mine)
    n_vocab = llama.info().n_vocab
    refused: list[tuple[list[Session], list[Any], type[Exception], str]] = [
        ([], [], pylogquant.ArgumentError, "0 sessions"),
        ([a, b], [1], pylogquant.ArgumentError, "2 sessions need as many tokens, not 1"),
        ([a, b, a], [1, 2, 3], pylogquant.ArgumentError, "sessions 0 and 2 .* the same"),
        ([a, stranger], [1, 2], pylogquant.ArgumentError, "session 1 .* another model"),
        ([a, b], [1, n_vocab], pylogquant.ArgumentError, "session 1 of the step: token .* outside the vocabulary"),
        ([a, b], [1, -1], pylogquant.ArgumentError, "vocabulary"),
        ([a, b], [1, 0.5], pylogquant.ArgumentError, "integers"),
        ([a, full], [1, 2], pylogquant.ContextFull, "session 1 of the step: the context of 8 tokens is full"),
    ]
    for sessions, tokens, kind, text in refused:
        with pytest.raises(kind, match=text):
            llama.step(sessions, tokens)
        assert states(mine) == before
    many = [a] * 1025
    with pytest.raises(pylogquant.ArgumentError, match="1025"):
        llama.step(many, [1] * 1025)
    closed = llama.session(64)
    closed.close()
    with pytest.raises(pylogquant.ClosedError):
        llama.step([a, closed], [1, 2])
    assert states(mine) == before
    llama.step([a, b], [1, 2])


def test_a_session_that_another_thread_is_inside(llama: Model) -> None:
    a, b = llama.session(64, "f16"), llama.session(500, "f16")
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            try:
                b.reset()
                b.eval([1] * 400, "none")
            except pylogquant.LogQuantError:  # the step was first
                pass

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(100_000):
            held = a.n_tokens
            try:
                llama.step([a, b], [1, 2], copy=False)
                assert a.n_tokens == held + 1
            except pylogquant.SessionBusy:
                assert a.n_tokens == held
                break
            except pylogquant.ContextFull:
                assert a.n_tokens == held
                a.reset()
        else:
            pytest.fail("the other thread was never inside")
    finally:
        stop.set()
        reader.join()
    a.reset()
    llama.step([a], [1])


def test_threads_step_their_own_groups(llama: Model) -> None:
    prompt = ids_for(llama, 200)
    elder = llama.session(400, KvOptions("logquant", window=64))
    elder.prefill(prompt)
    groups = [[elder.fork() for _ in range(3)] for _ in range(4)]
    found: dict[int, Logits] = {}

    def run(which: int) -> None:
        for i in range(40):
            llama.step(groups[which], [i, i + 1, i + 2], copy=False)
        found[which] = llama.step(groups[which], [1, 2, 3])

    threads = [threading.Thread(target=run, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for which in range(1, 4):
        assert np.array_equal(found[which], found[0])


def test_steps_grow_and_end_with_the_model(tiny_llama_path: Path) -> None:
    model = Model(tiny_llama_path, threads=2)
    sessions = [model.session(16, "f16") for _ in range(40)]
    alone_logits = alone(model.session(16, "f16"), [3])
    for n in (1, 2, 7, 40, 3):
        for row in model.step(sessions[:n], [3] * n):
            assert row.shape == alone_logits.shape
        for session in sessions:
            session.reset()
    check_close(model.step(sessions, [3] * 40)[39], alone_logits, MANY_BOUND)
    model.close()
    with pytest.raises(pylogquant.ClosedError):
        model.step(sessions, [3] * 40)
    assert sessions[0].eval([1]) is not None  # sessions keep the weights


def divergence(found: Logits, wanted: Logits) -> float:
    """KL of the tokens' probabilities, in nats."""
    logs = [np.asarray(x, np.float64) - np.logaddexp.reduce(np.asarray(x, np.float64)) for x in (wanted, found)]
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum())


@pytest.mark.parametrize("n_sessions", [MANY - 1, MANY, 9])
@pytest.mark.parametrize("path", ["smollm2_path", "gemma_path"])
def test_conversations_of_a_real_model(path: str, n_sessions: int, request: pytest.FixtureRequest) -> None:
    """Text of different lengths and KV cache types. Two get the bits that each gets alone; three are multiplied
    together, in another order, whose last bits are made larger where activations are rounded to 8 bits.

    On one thread, which never splits attention: where it is split decides last bits, too."""
    texts = ["The capital of France is", "def fib(n):", "Once upon a time", "1, 2, 3, 4,"]
    with Model(request.getfixturevalue(path), threads=1) as model:
        kinds: list[KvOptions | str] = ["logquant", "f16", "q8_0", KvOptions("logquant-small", window=64)] * 3
        together = [model.session(1024, kv) for kv in kinds[:n_sessions]]
        for i, session in enumerate(together):
            session.prefill(model.tokenizer.encode(texts[i % 4] * (1 + 5 * i)))
        apart = [session.fork() for session in together]
        greedy = Sampler(SamplingOptions(temperature=0))
        tokens = [session.sample(greedy).token for session in together]
        divergences = []
        for _ in range(12):
            found = model.step(together, tokens)
            for which, twin in enumerate(apart):
                wanted = alone(twin, [tokens[which]])
                if n_sessions < MANY:
                    assert np.array_equal(found[which], wanted)
                divergences.append(divergence(found[which], wanted))
            tokens = found.argmax(axis=1).tolist()
    assert np.mean(divergences) < 0.004
    assert max(divergences) < 0.05
