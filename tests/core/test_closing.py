"""Closing from another thread, copies, garbage, forked processes: only errors of the package come of them."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_session import collect
from make_tiny_gguf import make_tiny
from session_inputs import eval_history

from pylogquant import (
    Cancelled,
    ClosedError,
    CopyError,
    GGUFFile,
    KvLayer,
    LogQuantError,
    Model,
    Sampler,
    SamplingOptions,
    Session,
    SessionBusy,
)

PROMPT = [i % 50 for i in range(300)]
GREEDY = SamplingOptions(temperature=0)
N_ROUNDS = 12


@pytest.fixture(scope="module")
def slow_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes a while for a prompt."""
    return make_tiny(tmp_path_factory.mktemp("slow") / "m.gguf", "llama", n_layers=12, n_ctx=2048)


@pytest.fixture
def model(slow_path: Path) -> Model:
    return Model(slow_path, threads=2)


class Running:
    """A call in another thread."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.result: object = None
        self.error: BaseException | None = None

        def run() -> None:
            try:
                self.result = call()
            except BaseException as error:  # looked at by the test
                self.error = error

        self.thread = threading.Thread(target=run)
        self.thread.start()

    def end(self) -> BaseException | None:
        self.thread.join(60)
        assert not self.thread.is_alive(), "it hangs"
        return self.error


def keep_evaluating(session: Session) -> None:
    while True:
        session.eval(PROMPT)
        if session.n_tokens > 1000:
            session.reset()


def wait_until_busy(call: Callable[[], object]) -> None:
    """Returns when the call was refused because another thread is inside."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            call()
        except SessionBusy:
            return
    raise AssertionError("nobody came")


# ---- closing


@pytest.mark.parametrize("kv", ["f16", "logquant"])  # with pages a chunk that was begun cannot be taken back
def test_closing_a_session_ends_its_evaluation(model: Model, kv: str) -> None:
    session = model.session(2048, kv, chunk=1024)
    session.prefill(PROMPT)
    running = Running(lambda: keep_evaluating(session))
    wait_until_busy(session.checkpoint)
    session.close()
    session.close()
    assert isinstance(running.end(), (Cancelled, ClosedError))
    with pytest.raises(ClosedError, match="closed"):
        session.append(1)
    model.session(64).eval([1])  # nobody has stayed in the model


def repeat(n: int, call: Callable[..., object], *args: object) -> None:
    for _ in range(n):
        call(*args)


def calls(session: Session, model: Model, folder: Path) -> dict[str, Callable[[], object]]:
    sampler = Sampler(GREEDY)
    return {
        "eval": lambda: session.eval(PROMPT),
        "append": lambda: repeat(50, session.append, 1),
        "sample": lambda: [session.sample(sampler, top=2) for _ in range(50)],
        "step": lambda: [model.step([session], [1]) for _ in range(50)],
        "fork": lambda: repeat(20, lambda: session.fork().close()),
        "save": lambda: repeat(3, session.save, folder / "s.session"),
        "rewind": lambda: session.rewind(70),
        "history": lambda: eval_history(session, [5, *PROMPT]),
        "kv": lambda: [session.kv.full(0, 0) for _ in range(50)],
        "info": lambda: [(session.info(), session.tokens, session.checkpoints) for _ in range(50)],
    }


@pytest.mark.parametrize("what", list(calls(*[None] * 3)))  # type: ignore[arg-type]
def test_a_session_can_be_closed_at_any_moment(model: Model, what: str, tmp_path: Path) -> None:
    rng = random.Random(what)
    for _ in range(N_ROUNDS):
        session = model.session(2048, chunk=64)
        session.prefill(PROMPT[:100])
        running = Running(calls(session, model, tmp_path)[what])
        time.sleep(rng.uniform(0, 0.01))
        session.close()
        assert isinstance(running.end(), (Cancelled, ClosedError, type(None))), running.error
        with pytest.raises(ClosedError):
            calls(session, model, tmp_path)[what]()


def test_a_model_can_be_closed_while_it_is_used(slow_path: Path) -> None:
    rng = random.Random(7)
    for _ in range(N_ROUNDS):
        model = Model(slow_path, threads=2)
        session = model.session(2048)

        def use(model: Model = model, session: Session = session) -> None:
            while True:
                if session.n_tokens == 2000:
                    session.reset()
                model.step([session], [1])
                model.session(64).close()
                model.gguf.strings("tokenizer.ggml.tokens").check_utf8()
                assert model.tokenizer.encode("hello")

        running = Running(use)
        time.sleep(rng.uniform(0, 0.02))
        model.close()
        assert isinstance(running.end(), ClosedError)
        held = session.n_tokens
        session.append(1)  # sessions go on
        assert session.n_tokens == held + 1
        with pytest.raises(ClosedError):
            model.step([session], [1])


def test_layers_and_files_can_be_closed_while_they_are_used(slow_path: Path) -> None:
    ones = np.ones((20, 2, 32), np.float32)
    for _ in range(N_ROUNDS):
        layer, file = KvLayer(2, 2, 32, 2000, "logquant", threads=2), GGUFFile(slow_path)

        def attend(layer: KvLayer = layer) -> None:
            while True:
                layer.attend(ones, ones, ones)
                layer.cache.full(0, 0)
                layer.rewind(0)

        def read(file: GGUFFile = file) -> None:
            while True:
                assert file.tensors[0].shape
                assert len(file.numbers("tokenizer.ggml.token_type")) == len(file.strings("tokenizer.ggml.tokens"))
                assert set(file.metadata) >= {"general.architecture"}

        both = Running(attend), Running(read)
        time.sleep(0.003)
        view = layer.cache
        layer.close()
        file.close()
        assert [type(running.end()) for running in both] == [ClosedError, ClosedError]
        with pytest.raises(ClosedError):
            view.usage()


def test_one_thread_at_a_time(model: Model) -> None:
    """A second one is refused: in a session, its cache, a layer, a sampler."""
    session = model.session(2048, chunk=1024)
    running = Running(lambda: keep_evaluating(session))
    wait_until_busy(lambda: session.kv.full(0, 0))
    wait_until_busy(session.kv.usage)
    assert session.info().n_ctx == 2048
    session.close()
    running.end()
    layer, ones = KvLayer(2, 2, 32, 2000, "f16", threads=1), np.ones((500, 2, 32), np.float32)
    sampler = Sampler(SamplingOptions(repeat_penalty=1.1))
    forks = [model.session(64) for _ in range(4)]
    for fork in forks:
        fork.append(1)

    def share(fork: Session) -> Counter[str]:
        seen: Counter[str] = Counter()
        for _ in range(200):
            for call in (lambda: fork.sample(sampler), lambda: layer.rewind(0)):
                try:
                    call()
                except SessionBusy as error:
                    seen[str(error).split(" is ")[0]] += 1
        for _ in range(10):
            try:
                layer.attend(ones, ones, ones)
                layer.rewind(0)
            except LogQuantError as error:
                seen[type(error).__name__] += 1
        return seen

    shares = [Running(lambda fork=fork: share(fork)) for fork in forks]  # type: ignore[misc]
    seen: Counter[str] = Counter()
    for running in shares:
        assert running.end() is None
        assert isinstance(running.result, Counter)
        seen += running.result
    assert seen.keys() <= {"the sampler", "the KV layer", "SessionBusy", "ContextFull"}
    assert seen


def test_closing_a_chat_ends_its_answer(model: Model) -> None:
    chat = model.chat("Be brief.", n_ctx=2000, template="chatml", sampling=GREEDY)
    pieces: list[str] = []
    running = Running(lambda: collect(chat.stream("hello"), pieces))
    deadline = time.monotonic() + 30
    while len(pieces) < 2 and time.monotonic() < deadline and running.thread.is_alive():
        time.sleep(0.001)
    with pytest.raises(SessionBusy):
        chat.send("another")
    chat.close()
    error = running.end()
    assert isinstance(error, Cancelled)
    assert [message["role"] for message in chat.messages] == ["system", "user", "assistant"]
    assert chat.messages[-1]["content"].startswith("".join(pieces))
    for call in (lambda: chat.send("more"), chat.fork, chat.prepare, chat.reset):
        with pytest.raises(ClosedError, match="closed"):
            call()


def test_closing_a_chat_between_two_pieces(model: Model) -> None:
    chat = model.chat(n_ctx=512, template="chatml", sampling=GREEDY)
    stream = chat.stream("hello")
    first = next(stream)
    chat.close()
    with pytest.raises(Cancelled, match="closed while it answered"):
        list(stream)
    assert chat.messages[-1]["content"].startswith(first)


# ---- garbage


def test_what_is_collected_on_another_thread(model: Model) -> None:
    """Elder and forks share memory for chunks, pages and checkpoints: whoever goes takes nothing with it."""
    elder = model.session(2048, chunk=64)
    elder.prefill(PROMPT)
    elder.checkpoint()
    alone = elder.fork().eval(PROMPT)
    forks = [elder.fork() for _ in range(2)]
    running = [Running(lambda fork=fork: fork.eval(PROMPT)) for fork in forks]  # type: ignore[misc]
    circle: list[Any] = [elder, *(elder.fork() for _ in range(3)), model]
    circle.append(circle)
    del elder, circle
    gc.collect()
    for one in running:
        assert one.end() is None
        assert np.array_equal(np.asarray(one.result), np.asarray(alone))


# ---- copies


def uncopyable(model: Model) -> dict[str, object]:
    session = model.session(64)
    return {
        "model": model,
        "session": session,
        "chat": model.chat(n_ctx=64, template="chatml"),
        "file": GGUFFile(model.path),
        "own file": model.gguf,
        "layer": KvLayer(2, 2, 32, 100),
        "view": session.kv,
        "template": model.chat(n_ctx=64, template="chatml").template,
    }


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps])
def test_handles_are_not_copied(model: Model, way: Callable[[Any], object]) -> None:
    for name, thing in uncopyable(model).items():
        with pytest.raises(CopyError) as caught:
            way(thing)
        assert f"a {type(thing).__name__} cannot be copied or pickled; " in str(caught.value), name
        assert isinstance(caught.value, TypeError)


def test_a_tokenizer_is_its_own_copy(model: Model) -> None:
    tokenizer = model.tokenizer
    assert copy.copy(tokenizer) is copy.deepcopy(tokenizer) is tokenizer
    with pytest.raises(CopyError, match="from_gguf"):
        pickle.dumps(tokenizer)


def test_samplers_are_copied(model: Model) -> None:
    session = model.session(64)
    session.append(1)
    options = SamplingOptions(temperature=5.0, top_k=0, top_p=1.0, min_p=0.0, logit_bias={3: -1.0})
    sampler = Sampler(options)
    session.sample(sampler)
    copies = [copy.copy(sampler), copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))]
    wanted = [session.sample(sampler).token for _ in range(10)]
    assert len(set(wanted)) > 1
    for other in copies:
        assert [session.sample(other).token for _ in range(10)] == wanted
        assert (other.options, other.seed) == (options, sampler.seed)


# ---- looking while memory grows


def test_looking_waits_for_no_evaluation(model: Model) -> None:
    """A session that needs more memory waits until the chunk of another is done: those that only look do not."""
    for _ in range(10):  # until the chunk takes longer than the threads to begin
        with model.session(2048, "f16", chunk=2000) as busy:

            def read(session: Session = busy) -> float:
                session.prefill([1] * 2000)
                return time.monotonic()

            reading = Running(read)
            growing = Running(lambda: model.session(2048, "f16", chunk=2048).close())
            time.sleep(0.05)
            assert (busy.info().n_ctx, model.plan(64).kv_sliding_bytes) == (2048, 0)
            looked = time.monotonic()
            assert (reading.end(), growing.end()) == (None, None)
            assert isinstance(reading.result, float)
            if reading.result - looked > 0.03:
                return
    raise AssertionError("looking waited for the chunk")


# ---- forks

FORKED = """
import json, os, signal, sys, threading
import pylogquant
from pylogquant import ForkedError, Model, Sampler

model = Model(sys.argv[1], threads=2)
idle, busy = model.session(512), model.session(2048)
idle.prefill([1, 2, 3]), model.step([idle], [1])
sampler = Sampler()
stop = threading.Event()

def evaluate():
    while not stop.is_set():
        busy.reset(), busy.prefill([1] * 300), model.step([busy], [1])

def grow():
    for chunk in range(513, 2048):
        if not stop.is_set():
            model.session(2048, chunk=chunk).close()

def child(how):
    signal.alarm(20)  # where it hangs
    refused = {"eval": lambda: idle.eval([1]), "busy": lambda: busy.eval([1]), "sample": lambda: idle.sample(sampler),
               "step": lambda: model.step([idle], [1]), "session": model.session, "fork": idle.fork,
               "reset": busy.reset, "kv": lambda: idle.kv.usage(), "save": lambda: idle.save(sys.argv[1] + ".session")}
    for name, call in refused.items():
        try:
            call()
        except ForkedError as error:
            assert "load the model after the fork" in str(error)
        else:
            raise AssertionError(name)
    assert idle.tokens == [1, 2, 3, 1] and busy.info().n_ctx == 2048 and model.tokenizer.encode("hello")
    assert model.plan(2048).total_bytes > 0
    if how == "after":
        with Model(sys.argv[1], threads=2) as own, own.session(64) as session:
            session.append(1), session.sample(sampler)
    elif how == "close":
        busy.close(), idle.close(), model.close()
    elif how == "cancel":
        busy.cancel(), model.close()

threads = [threading.Thread(target=call) for call in (evaluate, grow)]
for thread in threads:
    thread.start()
found = {}
for how in 2 * ["leave", "after", "close", "cancel"]:
    pid = os.fork()
    if pid == 0:
        child(how)
        sys.exit(0)
    found.setdefault(how, []).append(os.waitpid(pid, 0)[1])
stop.set()
for thread in threads:
    thread.join()
idle.append(2)
print(json.dumps(found))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a system without fork()")
def test_forked_children(slow_path: Path) -> None:
    """With a thread of the parent inside session, model and Python's lock of steps: nothing hangs, at exit either."""
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKED, str(slow_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, cwd=slow_path.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == {how: [0, 0] for how in ("leave", "after", "close", "cancel")}
    assert not Path(f"{slow_path}.session").exists()


# ---- all at once


def storm(path: Path, seconds: float, folder: Path) -> list[BaseException]:
    """Eight threads do whatever comes to their minds, with four sessions of two models; returns unexpected errors."""
    models = [Model(path, threads=1 + i) for i in range(2)]
    sessions = [models[i % 2].session(512, ("logquant", "f16")[i // 2], chunk=32) for i in range(4)]
    sampler, unexpected = Sampler(GREEDY), []
    end = time.monotonic() + seconds

    def one(rng: random.Random) -> None:
        i = rng.randrange(len(sessions))
        session, model = sessions[i], models[i % 2]
        what = rng.choice([*calls(session, model, folder), "close", "collect", "cancel", "checkpoint", "younger"])
        if what == "close":
            session.close()
            sessions[i] = model.session(512, chunk=32)
        elif what == "younger":
            sessions[i] = session.fork()
        elif what == "collect":
            gc.collect()
        elif what == "cancel":
            session.cancel()
        elif what == "checkpoint":
            session.checkpoint(sampler)
        else:
            calls(session, model, folder)[what]()

    def run(seed: int) -> None:
        rng = random.Random(seed)
        while time.monotonic() < end:
            try:
                one(rng)
            except LogQuantError:
                continue
            except BaseException as error:  # reported by the test
                unexpected.append(error)
                return

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return unexpected


def test_a_storm(slow_path: Path, tmp_path: Path) -> None:
    assert storm(slow_path, 2.0, tmp_path) == []
