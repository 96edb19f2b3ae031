"""Ctrl-C and cancel(): whatever takes long ends soon, and leaves what it worked on as if the rest had never begun."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_session import FakeSession, make_chat, make_tokenizer
from make_tiny_gguf import make_tiny
from session_inputs import eval_history, ids_for

from pylogquant import Cancelled, Model, Session
from pylogquant._running import run_cancellable
from pylogquant.kv import kv_names
from pylogquant.session import OnFull

SOON_S = (
    1.5  # without a neighbour that takes the processor it is a tenth; what is ended would go on for ten times as long
)


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A chunk of 16,000 tokens takes it more than ten seconds."""
    path = tmp_path_factory.mktemp("interrupts") / "slow.gguf"
    with Model(make_tiny(path, n_layers=8, n_embd=512, n_ctx=20000, weight_type="Q8_0"), threads=1) as model:
        yield model


def interrupt(call: Callable[[], object], after_s: float = 0.7) -> float:
    """Ctrl-C in the middle of a call; how many seconds it takes to end."""
    sent: list[float] = []

    def send() -> None:
        sent.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(after_s, send)
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            call()
    finally:
        timer.cancel()
    assert sent, "the call ended by itself"
    return time.monotonic() - sent[0]


# ---- calls -----------------------------------------------------------------------------------------------------------


def test_results_and_errors_come_through() -> None:
    assert run_cancellable(lambda: 5, None) == 5
    with pytest.raises(ValueError, match="no"):
        run_cancellable(lambda: int("no"), None)
    threads: list[object] = []
    run_cancellable(lambda: threads.append(threading.current_thread()), None)
    assert threads != [threading.main_thread()]

    def elsewhere() -> None:  # hears no signals: there it costs no thread
        run_cancellable(lambda: threads.append(threading.current_thread()), None)

    other = threading.Thread(target=elsewhere)
    other.start()
    other.join()
    assert threads[1] is other


def test_a_second_ctrl_c_leaves_nothing_behind() -> None:
    ended, asked = threading.Event(), []

    def cancel() -> None:
        asked.append(1)
        if len(asked) < 4:
            signal.raise_signal(signal.SIGINT)
        ended.set()

    inside: list[bool] = []

    def work() -> None:
        inside.append(True)
        ended.wait(20)
        inside.clear()

    interrupt(lambda: run_cancellable(work, cancel), 0.1)
    assert len(asked) == 4
    assert not inside


class Interrupted:
    """A lock that Ctrl-C is pressed behind."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None:
        raise KeyboardInterrupt


def test_no_interrupt_locks_a_chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes when the turn has just been taken gives it back."""
    chat = make_chat(make_tokenizer(tmp_path), FakeSession([[5]]))
    with monkeypatch.context() as patch:
        patch.setattr(chat, "_turn_lock", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            chat.send("hello")
    assert chat.messages == []
    chat.send("hello")
    assert len(chat.messages) == 2


def test_what_cannot_be_cancelled_is_left_to_itself() -> None:
    ended = threading.Event()
    assert interrupt(lambda: run_cancellable(lambda: ended.wait(20), None), 0.1) < SOON_S
    ended.set()


# ---- a session -------------------------------------------------------------------------------------------------------


def next_logits(session: Session, ids: list[int]) -> np.ndarray:
    logits = session.eval(ids)
    assert logits is not None
    return logits


@pytest.mark.parametrize("kv", ["logquant", "q8_0"])
@pytest.mark.parametrize("call", ["eval", "prefill", "history", "all"])
def test_ctrl_c_ends_a_chunk_of_a_prompt(slow: Model, kv: str, call: str) -> None:
    ids = ids_for(slow, 16_500)
    with slow.session(17_000, kv, chunk=17_000) as s, slow.session(17_000, kv, chunk=17_000) as fresh:
        s.prefill(ids[:500])
        calls: dict[str, Callable[[], object]] = {
            "eval": lambda: s.eval(ids[500:]),
            "prefill": lambda: s.prefill(ids[500:]),
            "history": lambda: eval_history(s, ids),
            "all": lambda: s.eval(ids[500:12_000], "all"),
        }
        assert interrupt(calls[call]) < SOON_S
        assert s.tokens == ids[:500]
        fresh.prefill(ids[:500])
        assert np.array_equal(next_logits(s, ids[500:600]), next_logits(fresh, ids[500:600]))


def test_ctrl_c_ends_going_back(slow: Model) -> None:
    """Between where it could begin and where it should end."""
    ids = ids_for(slow, 3000)
    with slow.session(17_000, chunk=1000) as s:
        s.prefill(ids)
        assert interrupt(lambda: s.rewind(2999), 0.3) < SOON_S
        assert s.n_tokens < 2999
        assert s.tokens == ids[: s.n_tokens]
        n = s.n_tokens
        with slow.session(17_000, chunk=1000) as fresh:
            if n:
                fresh.prefill(ids[:n])
            assert np.array_equal(next_logits(s, ids[n : n + 10]), next_logits(fresh, ids[n : n + 10]))


@pytest.fixture(scope="module")
def long_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chunk takes it so long that another thread can tell it to stop."""
    return make_tiny(tmp_path_factory.mktemp("interrupts") / "long.gguf", n_ctx=4096, n_layers=3, n_embd=160)


@pytest.fixture(scope="module")
def long_lfm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with layers whose state a chunk of many tokens replaces."""
    path = tmp_path_factory.mktemp("interrupts") / "lfm2.gguf"
    return make_tiny(path, "lfm2", n_ctx=4096, n_layers=4, attention_layers=(1,), n_embd=160)


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Threads take turns often: what takes milliseconds is met in the middle."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("quick_switches")
@pytest.mark.parametrize("on_full", ["stop", "drop"])
@pytest.mark.parametrize(
    ("name", "kv"), [*(("long_path", kv) for kv in kv_names()), ("long_lfm2", "f16"), ("long_lfm2", "logquant-small")]
)
def test_a_cancelled_chunk_has_never_been(name: str, kv: str, on_full: OnFull, request: pytest.FixtureRequest) -> None:
    """Of every type, whatever it has given up so far, and within any layer; also where the oldest went to make room."""
    with Model(request.getfixturevalue(name), threads=1) as model:
        n_before, n_ctx = (225, 512) if on_full == "stop" else (690, 704)
        ids = ids_for(model, n_before + 275)

        def begin() -> Session:
            session = model.session(n_ctx, kv, chunk=512, on_full=on_full)
            for start in range(0, n_before, 15):  # pieces that tell nothing about how long others take
                session.prefill(ids[start : start + 15])
            return session

        with begin() as fresh:
            wanted = next_logits(fresh, ids[n_before:])
            after = next_logits(fresh, [1])
        n_cancelled = 0
        for _ in range(100):
            with begin() as s:
                raised: list[BaseException] = []

                def evaluate(s: Session = s, raised: list[BaseException] = raised) -> None:
                    try:
                        s.prefill(ids[n_before:])
                    except Cancelled as error:
                        raised.append(error)

                worker = threading.Thread(target=evaluate)
                worker.start()
                while worker.is_alive():
                    s.cancel()
                worker.join()
                if not raised:
                    continue  # it was done before it could be told
                n_cancelled += 1
                assert s.tokens == ids[:n_before]
                assert np.array_equal(next_logits(s, ids[n_before:]), wanted)
                assert np.array_equal(next_logits(s, [1]), after)
            if n_cancelled == 2:
                break
        assert n_cancelled > 0


def test_a_cancelled_save_leaves_the_old_file(tiny_llama_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "s.session"
    with Model(tiny_llama_path, threads=1) as model, model.session(512) as s:
        s.prefill(ids_for(model, 500))
        s.save(path, b"first")
        raised: list[BaseException] = []

        def save() -> None:
            try:
                while True:
                    s.save(path, b"other")
            except Cancelled as error:
                raised.append(error)

        worker = threading.Thread(target=save)
        worker.start()
        while worker.is_alive():
            s.cancel()
            time.sleep(0.0002)
        worker.join()
        assert raised
        assert [entry.name for entry in tmp_path.iterdir()] == ["s.session"]
        with model.load_session(path) as again:
            assert again.tokens == s.tokens
            assert again.extra in (b"first", b"other")


def test_a_step_that_takes_long_can_be_interrupted(tiny_llama_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Model(tiny_llama_path, threads=1) as model, model.session(64) as a, model.session(64) as b:
        model.step([a, b], [1, 2])
        wanted = model.step([a, b], [3, 4])
        for session in (a, b):
            session.reset()
        cancelled: list[Session] = []
        monkeypatch.setattr(Session, "cancel", lambda self: cancelled.append(self))
        model._steps._pace.token_s = 1.0
        model.step([a, b], [1, 2])
        model._steps._pace.token_s = 1.0
        assert np.array_equal(model.step([a, b], [3, 4]), wanted)
        assert model._steps._pace.token_s < 0.5, "measured anew"
        model._steps._pace.token_s = 1.0
        ended = threading.Event()
        assert interrupt(lambda: model._steps._run(lambda: ended.wait(0.5), [a, b], 2), 0.1) < SOON_S
        assert cancelled[:2] == [a, b]
