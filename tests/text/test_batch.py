"""Batch: many texts by steps. Each is what it would be alone; they join, end, fail and are cancelled one by one."""

from __future__ import annotations

import asyncio
import importlib.util
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from make_tiny_gguf import make_tiny
from session_inputs import ids_for

from pylogquant import (
    ArgumentError,
    Batch,
    ClosedError,
    ContextFull,
    Conversation,
    Model,
    ModelFormatError,
    OutOfMemory,
    Sampler,
    SamplingOptions,
    Session,
    SessionBusy,
    TextStream,
)
from pylogquant.batch import Generation
from pylogquant.generation import generate
from pylogquant.templates import ChatTemplate
from pylogquant.text_stream import Piece

KINDS = ["logquant", "q8_0", "f16"]


@pytest.fixture(scope="module")
def model(tiny_llama_path: Path) -> Iterator[Model]:
    """One thread: two sessions of a step get the bits that each gets alone."""
    with Model(tiny_llama_path, threads=1) as found:
        yield found


class Request:
    """A text that is asked for, and its pieces."""

    def __init__(self, model: Model, seed: int, n_prompt: int, max_tokens: int, kv: str = "logquant") -> None:
        self.model, self.seed, self.max_tokens, self.kv = model, seed, max_tokens, kv
        self.ids = ids_for(model, n_prompt, seed)
        self.session = self.make_session()
        self.pieces: list[Piece] = []

    def make_session(self, **options: Any) -> Session:
        return self.model.session(512, self.kv, chunk=32, **options)

    def sampler(self) -> Sampler:
        never_ends = dict.fromkeys(self.model.tokenizer.eog_ids, -math.inf)
        return Sampler(SamplingOptions(temperature=1.2, seed=self.seed, logprobs=True, logit_bias=never_ends))

    def join(self, batch: Batch, **options: Any) -> Generation:
        text = TextStream(self.model.tokenizer, max_tokens=self.max_tokens)
        return batch.add(self.session, self.sampler(), text, self.ids, **options)

    def alone(self) -> list[Piece]:
        """The same with one session."""
        with self.make_session() as session:
            options: dict[str, Any] = {"max_tokens": self.max_tokens}
            return list(generate(session, self.model.tokenizer, self.sampler(), self.ids, **options))


def check_same(found: list[Piece], wanted: list[Piece]) -> None:
    """Up to rounding: a token in a pass with many others is multiplied in another order."""
    for one, other in zip(found, wanted, strict=True):
        assert (one.text, one.token, one.finish) == (other.text, other.token, other.finish)
        assert one.logprob == pytest.approx(other.logprob, abs=1e-2, nan_ok=True)


def drive(batch: Batch, requests: dict[Generation, Request]) -> None:
    for generation, piece in batch.step():
        requests[generation].pieces.append(piece)


# ---- texts


def test_two_texts_are_what_each_is_alone(model: Model) -> None:
    """Joining and leaving at any time, with prompts of several chunks; after a prompt bit for bit."""
    for seed in range(4):
        rng = random.Random(seed)
        batch, requests = Batch(model), {}
        waiting = [
            Request(model, 10 * seed + i, rng.randint(1, 200), rng.randint(1, 40), rng.choice(KINDS)) for i in range(6)
        ]
        every = list(waiting)
        while waiting or batch.generations:
            while waiting and len(batch.generations) < 2 and rng.random() < 0.6:
                request = waiting.pop()
                requests[request.join(batch)] = request
            drive(batch, requests)
        for request in every:
            wanted = request.alone()
            check_same(request.pieces, wanted)
            if len(request.ids) % 32 > 2:  # of one or two tokens, rounding depends on their company
                assert request.pieces[0] == wanted[0]
            assert [piece.finish for piece in request.pieces[:-1]] == [None] * (len(request.pieces) - 1)


def test_many_texts_are_what_steps_give(model: Model) -> None:
    """The same sessions in the same order: the bits of Model.step()."""
    batch = Batch(model)
    requests = [Request(model, i, 20 + i, 30, KINDS[i % 3]) for i in range(9)]
    found = {request.join(batch): request for request in requests}
    while any(generation._is_reading for generation in found):  # no text begins before all are read
        batch._evaluate([part for part in batch._plan(batch.generations) if part[0]._is_reading])
    while batch.generations:
        drive(batch, found)
    sessions = [request.make_session() for request in requests]
    samplers = [request.sampler() for request in requests]
    for session, request in zip(sessions, requests, strict=True):
        session.prefill(request.ids)
    for i in range(30):
        choices = [session.sample(sampler) for session, sampler in zip(sessions, samplers, strict=True)]
        for request, choice in zip(requests, choices, strict=True):
            assert (request.pieces[i].token, request.pieces[i].logprob) == (choice.token, choice.logprob)
        model.step(sessions, [choice.token for choice in choices], copy=False)


def test_a_prompt_may_be_an_array(model: Model) -> None:
    """As what evaluates ids takes them."""
    request = Request(model, 1, 50, 5)
    alone = request.alone()
    request.ids = np.array(request.ids)  # type: ignore[assignment]
    batch = Batch(model)
    for _ in range(2):  # the second time all of it but the last token is there
        request.join(batch)
        check_same([piece for _, piece in batch], alone)
    check_same(request.alone(), alone)


def test_a_session_keeps_what_it_has_of_a_prompt(model: Model) -> None:
    request = Request(model, 1, 150, 5)
    request.session.prefill(request.ids[:150])
    request.session.checkpoint()
    request.session.append(3)
    batch = Batch(model)
    generation = request.join(batch)
    generation._n_slice = 10**6
    pieces = [piece for _, piece in batch]
    assert [piece.token for piece in pieces] == [piece.token for piece in request.alone()]
    # Without a prompt it goes on from the session's logits.
    with request.make_session() as session:
        session.prefill(request.ids)
        batch.add(session, request.sampler(), TextStream(model.tokenizer, max_tokens=5))
        assert [piece for _, piece in batch] == pieces


def test_a_checkpoint_at_the_end_of_a_prompt(model: Model) -> None:
    batch = Batch(model)
    request = Request(model, 2, 100, 5)
    generation = request.join(batch, checkpoint=True)
    first = [piece for _, piece in batch]
    assert request.session.checkpoints == [100]
    assert request.session.rewind(100, generation.sampler) == 0
    batch.add(request.session, generation.sampler, TextStream(model.tokenizer, max_tokens=5))
    assert [piece for _, piece in batch] == first
    with request.make_session(checkpoints=0) as session:  # one that does not fit
        batch.add(session, request.sampler(), TextStream(model.tokenizer, max_tokens=5), request.ids, checkpoint=True)
        assert [piece for _, piece in batch] == first


def test_conversations(smollm2_path: Path) -> None:
    """Turns of several conversations at once, by way of what Chat is made of."""
    with Model(smollm2_path, threads=2) as model:
        template = ChatTemplate.from_gguf(model.gguf, model.tokenizer)
        talks = [Conversation(model.tokenizer, template, "Be brief.") for _ in range(3)]
        sessions = [model.session(512) for _ in talks]
        questions = [["What is the capital of France?", "And of Italy?"], ["Hi."], ["What is 2 + 2?", "Thank you."]]
        batch = Batch(model)
        under_way: dict[Generation, Any] = {}

        def ask(i: int) -> None:
            prompt = talks[i].ask(questions[i].pop(0))
            text = TextStream(model.tokenizer, max_tokens=24)
            under_way[batch.add(sessions[i], Sampler(SamplingOptions(temperature=0)), text, prompt.ids)] = (i, prompt)

        for i in range(3):
            ask(i)
        for generation, piece in batch:
            if piece.finish:
                i, prompt = under_way.pop(generation)
                talks[i].answer(prompt, generation.text)
                if questions[i]:
                    ask(i)
        assert [len(talk.messages) for talk in talks] == [5, 3, 5]
        assert "Paris" in talks[0].messages[2]["content"]
        assert "Rome" in talks[0].messages[4]["content"]
        for talk, session in zip(talks, sessions, strict=True):
            held = session.tokens
            assert held == talk.ids[: len(held)]
            assert len(talk.ids) - len(held) <= 1


# ---- fairness


def test_prompts_take_turns_beside_texts_that_go_on(model: Model) -> None:
    batch = Batch(model)
    going = [Request(model, i, 3, 100, "f16") for i in range(2)]
    requests = {request.join(batch): request for request in going}
    for _ in range(3):
        drive(batch, requests)
    long, short = (Request(model, 10 + i, n, 3, "f16") for i, n in enumerate((300, 60)))
    generations = [request.join(batch) for request in (long, short)]
    requests |= dict(zip(generations, (long, short), strict=True))
    held = []
    for _ in range(13):
        before = [len(request.pieces) for request in going]
        drive(batch, requests)
        assert [len(request.pieces) for request in going] == [n + 1 for n in before], "no text waits for a prompt"
        held.append((min(long.session.n_tokens, 300), min(short.session.n_tokens, 60)))
    assert held[:5] == [(32, 0), (32, 32), (64, 32), (64, 60), (96, 60)]
    assert held[10:] == [(288, 60), (300, 60), (300, 60)]
    assert len(short.pieces) == 3
    assert long.pieces


# ---- what ends one text


def test_a_full_context_ends_one_text(model: Model) -> None:
    batch = Batch(model)
    other = Request(model, 3, 5, 30)
    requests = {other.join(batch): other}
    with model.session(12) as small:
        text = TextStream(model.tokenizer, stop=["never there"])
        full = batch.add(small, Sampler(SamplingOptions(seed=1)), text, [1, 2, 3])
        found: list[Piece] = []
        for generation, piece in batch:
            (found if generation is full else requests[generation].pieces).append(piece)
        assert (found[-1].finish, found[-1].token, len(found)) == ("context", None, 11)
        assert isinstance(full.error, ContextFull)
        assert "the context of 12 tokens is full" in str(full.error)
        assert (full.is_done, small.n_tokens, len(full.text.ids)) == (True, 12, 10)
    check_same(other.pieces, other.alone())


def test_a_closed_session_ends_one_text(model: Model) -> None:
    batch = Batch(model)
    requests = [Request(model, i, 5, 20) for i in range(5)]
    found = {request.join(batch): request for request in requests}
    generations = list(found)
    for _ in range(8):
        drive(batch, found)
    requests[2].session.close()
    while batch.generations:
        drive(batch, found)
    assert requests[2].pieces[-1].finish == "error"
    assert isinstance(generations[2].error, ClosedError)
    for i in (0, 1, 3, 4):
        assert (requests[i].pieces[-1].finish, len(requests[i].pieces), generations[i].error) == ("length", 20, None)


@pytest.mark.parametrize("wrong", [0, 3, 6])
def test_an_error_of_a_step_ends_the_text_that_it_is_of(
    model: Model, wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose it is, the core does not say: it is found by leaving out the others."""
    requests = [Request(model, i, 5, 20) for i in range(7)]
    step = Model.step
    sizes: list[int] = []

    def fails(self: Model, sessions: list[Session], tokens: list[int], **options: Any) -> None:
        sizes.append(len(sessions))
        if requests[wrong].session in sessions and requests[wrong].session.n_tokens > 14:
            raise OutOfMemory("no page is free")
        step(self, sessions, tokens, **options)

    monkeypatch.setattr(Model, "step", fails)
    batch = Batch(model)
    found = {request.join(batch): request for request in requests}
    generations = list(found)
    while batch.generations:
        drive(batch, found)
    assert isinstance(generations[wrong].error, OutOfMemory)
    assert [request.pieces[-1].finish for request in requests] == [
        "error" if i == wrong else "length" for i in range(7)
    ]
    assert Counter(len(request.pieces) for request in requests) == {20: 6, len(requests[wrong].pieces): 1}
    assert 7 in sizes


def test_an_error_of_sampling_ends_one_text(model: Model) -> None:
    batch = Batch(model)
    other = Request(model, 1, 5, 10)
    requests = {other.join(batch): other}
    wrong = Sampler(SamplingOptions(logit_bias={10**6: 1.0}))
    with model.session(64) as session:
        failed = batch.add(session, wrong, TextStream(model.tokenizer), [1, 2])
        last: list[Piece] = []
        for generation, piece in batch:
            (last if generation is failed else requests[generation].pieces).append(piece)
    assert [piece.finish for piece in last] == ["error"]
    assert isinstance(failed.error, ArgumentError)
    assert not isinstance(failed.error, ModelFormatError)
    check_same(other.pieces, other.alone())


def test_what_is_cancelled_leaves_the_others_alone(model: Model) -> None:
    batch = Batch(model)
    stays, goes, reads = (Request(model, i, n, 30) for i, n in enumerate((5, 5, 400)))
    requests = {request.join(batch): request for request in (stays, goes, reads)}
    generations = list(requests)
    for _ in range(8):
        drive(batch, requests)
    n_pieces = len(goes.pieces)
    assert n_pieces > 0
    assert not reads.pieces
    for generation in generations[1:]:
        generation.cancel()
    while batch.generations:
        drive(batch, requests)
    for request, generation in ((goes, generations[1]), (reads, generations[2])):
        assert (request.pieces[-1].finish, request.pieces[-1].token) == ("cancelled", None)
        assert generation.error is None
    assert len(goes.pieces) == n_pieces + 1
    # What was read stays, so that another text may go on with it.
    held = reads.session.tokens
    assert held == reads.ids[: len(held)]
    assert len(held) % 32 == 0
    again = Request(model, 2, 400, 30)
    again.session.close()
    again.session = reads.session
    requests[again.join(batch)] = again
    while batch.generations:
        drive(batch, requests)
    check_same(again.pieces, again.alone())
    assert len(stays.pieces) == 30


def test_what_cannot_be_added(model: Model, tiny_gemma_path: Path) -> None:
    batch = Batch(model)
    text = TextStream(model.tokenizer)
    with model.session(16) as session, Model(tiny_gemma_path, threads=1) as other:
        with other.session(16) as stranger, pytest.raises(ArgumentError, match="another model"):
            batch.add(stranger, Sampler(), text, [1])
        with pytest.raises(ArgumentError, match="prompt is empty"):
            batch.add(session, Sampler(), text, [])
        with pytest.raises(ContextFull, match="prompt has 16 tokens"):
            batch.add(session, Sampler(), text, [1] * 16)
        ended = TextStream(model.tokenizer)
        ended.flush()
        with pytest.raises(ArgumentError, match="has ended"):
            batch.add(session, Sampler(), ended, [1])
        wrong: list[Any] = [-1, session.n_vocab + 1, 1.5, None]
        for top in wrong:
            with pytest.raises(ArgumentError, match="top must be"):
                batch.add(session, Sampler(), text, [1], top=top)
        assert batch.generations == []
        generation = batch.add(session, Sampler(), text, [1])
        with session.fork() as twin, pytest.raises(ArgumentError, match="this text already"):
            batch.add(twin, Sampler(), text, [1])
        for _ in range(2):
            with pytest.raises(ArgumentError, match="in the batch already"):
                batch.add(session, Sampler(), TextStream(model.tokenizer), [1])
            batch.step()
        generation.cancel()
        assert [piece.finish for _, piece in batch] == ["cancelled"]
        batch.add(session, Sampler(), TextStream(model.tokenizer, max_tokens=1), [1])
        assert len(list(batch)) == 1
    assert not batch.wait(0)
    assert batch.step() == []


def test_a_loop_that_is_left_early_loses_nothing(model: Model) -> None:
    """The last pieces of texts that have ended meanwhile come, too."""
    batch = Batch(model)
    requests = [Request(model, seed, 40, 6) for seed in range(4)]
    generations = {request.join(batch): request for request in requests}
    while batch.wait(0):
        for generation, piece in batch:
            generations[generation].pieces.append(piece)
            break
    for request in requests:
        check_same(request.pieces, request.alone())


# ---- threads and signals


def test_texts_come_from_other_threads(model: Model) -> None:
    """One thread steps; others add, cancel, and get what is theirs."""
    batch = Batch(model)
    n_threads, n_each = 4, 5
    requests: dict[Generation, Request] = {}
    cancelled: set[Generation] = set()
    lock, ready = threading.Lock(), threading.Event()
    closing = threading.Event()

    def step() -> None:
        while not closing.is_set() or batch.generations:
            if batch.wait(0.02):
                for generation, piece in batch.step():
                    with lock:
                        requests[generation].pieces.append(piece)

    def ask(which: int) -> None:
        rng = random.Random(which)
        ready.wait()
        for i in range(n_each):
            request = Request(model, 10 * which + i, rng.randint(1, 120), 12, KINDS[i % 3])
            with lock:
                generation = request.join(batch)
                requests[generation] = request
            if i % 2:
                time.sleep(rng.uniform(0, 0.01))
                generation.cancel()
                cancelled.add(generation)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(n_threads)]
    driver = threading.Thread(target=step)
    for thread in (driver, *threads):
        thread.start()
    ready.set()
    for thread in threads:
        thread.join(60)
    closing.set()
    driver.join(60)
    assert not driver.is_alive()
    assert len(requests) == n_threads * n_each
    for generation, request in requests.items():
        assert generation.is_done
        assert request.pieces[-1].finish in ("length", "eog", *(["cancelled"] if generation in cancelled else []))
        assert all(piece.finish is None for piece in request.pieces[:-1])
        assert generation.error is None


def test_one_thread_steps(model: Model) -> None:
    batch = Batch(model)
    with batch._stepping, pytest.raises(SessionBusy, match="another thread is stepping"):
        batch.step()
    batch.step()


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A chunk of 16,000 tokens takes it more than ten seconds."""
    path = tmp_path_factory.mktemp("batch") / "slow.gguf"
    with Model(make_tiny(path, n_layers=8, n_embd=512, n_ctx=20000, weight_type="Q8_0"), threads=1) as found:
        yield found


def test_a_prompt_is_cancelled_inside_a_chunk(slow: Model) -> None:
    batch = Batch(slow)
    with slow.session(17_000, chunk=17_000) as session:
        generation = batch.add(session, Sampler(), TextStream(slow.tokenizer), ids_for(slow, 16_500))
        started: list[float] = []

        def cancel() -> None:
            started.append(time.monotonic())
            generation.cancel()

        timer = threading.Timer(0.5, cancel)
        timer.start()
        assert [piece.finish for _, piece in batch] == ["cancelled"]
        assert time.monotonic() - started[0] < 1.5  # a tenth, without a neighbour that takes the processor
        assert session.n_tokens == 0


def test_ctrl_c_ends_a_step_and_the_next_one_goes_on(slow: Model) -> None:
    batch = Batch(slow)
    ids = ids_for(slow, 16_500)
    with slow.session(17_000, chunk=17_000) as session:
        generation = batch.add(session, Sampler(), TextStream(slow.tokenizer, max_tokens=2), ids)
        sent: list[float] = []

        def send() -> None:
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)

        timer = threading.Timer(0.5, send)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            batch.step()
        assert time.monotonic() - sent[0] < 1.5
        assert not generation.is_done
        generation._n_slice = 100
        batch.step()
        assert session.tokens == ids[:100]
        generation.cancel()
        assert [piece.finish for _, piece in batch] == ["cancelled"]


@pytest.mark.parametrize("n_calls", range(1, 31, 3))
def test_an_interrupt_anywhere_leaves_whole_texts(model: Model, n_calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raised by any call that a step makes: the texts go on as if it had not come, or end."""
    request, other = Request(model, 1, 70, 12), Request(model, 2, 5, 12)
    batch = Batch(model)
    requests = {one.join(batch): one for one in (request, other)}
    left = [n_calls]

    def interrupting(kind: type[Session] | type[Model], name: str) -> None:
        original = getattr(kind, name)

        def call(self: Session | Model, *given: Any, **named: Any) -> Any:
            found = original(self, *given, **named)
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt
            return found

        monkeypatch.setattr(kind, name, call)

    for name in ("sample", "keep_prefix"):
        interrupting(Session, name)
    interrupting(Model, "step")
    n_interrupts = 0
    while batch.generations:
        try:
            drive(batch, requests)
        except KeyboardInterrupt:
            n_interrupts += 1
    drive(batch, requests)
    assert n_interrupts == 1
    monkeypatch.undo()
    for one in (request, other):
        wanted = one.alone()
        if one.pieces[-1].finish == "cancelled":
            check_same(one.pieces[:-1], wanted[: len(one.pieces) - 1])
        else:
            check_same(one.pieces, wanted)


# ---- the example


def example() -> Any:
    """examples/many_conversations.py as a module."""
    path = Path(__file__).resolve().parents[2] / "examples" / "many_conversations.py"
    spec = importlib.util.spec_from_file_location("many_conversations", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_runs(smollm2_path: Path) -> None:
    path = Path(__file__).resolve().parents[2] / "examples" / "many_conversations.py"
    command = [sys.executable, str(path), str(smollm2_path), "--tokens", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "4 conversations, " in done.stdout
    assert done.stdout.count("assistant: ") == 6


def test_a_client_of_the_example_goes_away(smollm2_path: Path) -> None:
    """Its answer ends and is kept as far as it came; its session can be used again; the others notice nothing."""
    module = example()

    async def main(model: Model) -> None:
        engine = module.Engine(model)
        template = ChatTemplate.from_gguf(model.gguf, model.tokenizer)
        talks = [Conversation(model.tokenizer, template) for _ in range(2)]
        try:
            with model.session(512, chunk=64) as first, model.session(512) as second:

                async def stays() -> None:
                    async for _ in engine.answer(talks[1], second, "What is the capital of France?", 30):
                        pass

                other = asyncio.create_task(stays())
                answer = engine.answer(talks[0], first, "Tell me a long story.", 200)
                shown = ""
                async for piece in answer:
                    shown += piece
                    if len(shown) > 20:
                        break
                await answer.aclose()
                assert talks[0].messages[1]["content"].startswith(shown)
                await other
                assert talks[1].messages[1]["content"]
                async for _ in engine.answer(talks[0], first, "Thank you.", 5):
                    pass
                assert len(talks[0].messages) == 4
                assert engine._queues == {}
        finally:
            engine.close()

    with Model(smollm2_path, threads=2) as model:
        asyncio.run(main(model))
