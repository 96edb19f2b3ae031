"""Checkpoints, going back, forks: whatever a session went through, it is a new one that was fed the same pieces."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_tiny_gguf import make_tiny
from pairs import all_pairs
from session_inputs import CELLS, EVERY_TYPE, N_CTX, WITH_WINDOW, ids_for

import pylogquant
from pylogquant import Model, Sampler, SamplingOptions, Session
from pylogquant.kv import KvOptions, kv_names
from pylogquant.session import OnFull

pytestmark = pytest.mark.tiny_model  # once per SIMD level

CHUNK = 48
HOLDS = 460  # where the oldest make room
Pieces = list[list[int]]


def session_of(model: Model, kv: KvOptions | str, checkpoints: int = 8, *, on_full: OnFull = "stop") -> Session:
    n_ctx = N_CTX if on_full == "stop" else HOLDS
    return model.session(n_ctx, kv, chunk=CHUNK, allow_long=True, checkpoints=checkpoints, on_full=on_full)


def cut(pieces: Pieces, n: int) -> Pieces:
    """The pieces of the first n tokens, the last one cut short."""
    kept: Pieces = []
    for piece in pieces:
        kept.append(piece[: n - sum(map(len, kept))])
    return [piece for piece in kept if piece]


def check_like_new(
    session: Session, model: Model, kv: KvOptions | str, pieces: Pieces, *, on_full: OnFull = "stop"
) -> None:
    """Tokens, logits and what comes next, bit for bit."""
    with session_of(model, kv, on_full=on_full) as new, session.fork() as probe:
        for piece in pieces:
            wanted = new.eval(piece)
        assert session.tokens == new.tokens == list(itertools.chain.from_iterable(pieces))
        assert session.kv.usage() == new.kv.usage()
        if not pieces:
            return
        greedy = Sampler(SamplingOptions(temperature=0))
        assert probe.sample(greedy, top=5) == new.sample(greedy, top=5)
        room = min(3, new.n_limit - new.n_tokens)
        for token in ids_for(model, room, 99):
            found, wanted = probe.eval([token]), new.eval([token])
            assert found is not None
            assert wanted is not None
            assert np.array_equal(found, wanted)


class Timelines:
    """Sessions under test, each with the pieces that it should be the sum of."""

    def __init__(self, model: Model, kv: KvOptions | str, checkpoints: int, on_full: OnFull, folder: Path) -> None:
        self.folder = folder
        self.model, self.kv, self.on_full = model, kv, on_full
        self.limit = N_CTX if on_full == "stop" else 3 * N_CTX
        self.sessions: list[tuple[Session, Pieces]] = [(session_of(model, kv, checkpoints, on_full=on_full), [])]

    def step(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.sessions) - 1), "which")
        session, pieces = self.sessions[at]
        held = session.n_tokens
        kind = data.draw(
            st.sampled_from(
                ["eval", "eval", "eval", "point", "point", "back", "back", "fork", "prefix", "save", "close"]
            )
        )
        if kind == "eval":
            n = min(data.draw(st.integers(1, 5) | st.integers(1, 260), "tokens"), self.limit - held)
            ids = ids_for(self.model, n, data.draw(st.integers(0, 9)))
            if n:
                session.eval(ids)
                pieces += [ids[i : i + CHUNK] for i in range(0, n, CHUNK)]
        elif kind == "point":
            session.checkpoint()
            assert session.checkpoints[-1:] == ([held] if held else [])
        elif kind == "back":
            n = data.draw(st.sampled_from([0, *session.checkpoints]) | st.integers(0, held), "keep")
            evaluated = session.rewind(n)
            assert 0 <= evaluated <= n
            assert all(point <= n for point in session.checkpoints)
            pieces[:] = cut(pieces, n)
        elif kind == "fork":
            self.sessions.append((session.fork(), [list(piece) for piece in pieces]))
        elif kind == "prefix" and held and self.kv not in CELLS:  # those may be cut inside a piece
            n = data.draw(st.integers(0, held - 1), "common")
            kept = session.keep_prefix([*session.tokens[:n], (session.tokens[n] + 1) % self.model.info().n_vocab])
            assert kept <= n
            session.eval([1])
            pieces[:] = [*cut(pieces, kept), [1]]
        elif kind == "save":
            path = self.folder / "s.session"
            session.save(path)
            session.close()
            self.sessions[at] = (self.model.load_session(path), pieces)
        elif kind == "close" and len(self.sessions) > 1:
            self.sessions.pop(at)[0].close()

    def check(self) -> None:
        for session, pieces in self.sessions:
            check_like_new(session, self.model, self.kv, pieces, on_full=self.on_full)
            session.close()


def has_logits(session: Session) -> bool:
    try:
        session.sample(Sampler(SamplingOptions(temperature=0)))
    except pylogquant.ArgumentError:
        return False
    return True


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.parametrize(
    ("kv", "on_full", "name"), all_pairs(EVERY_TYPE, ("stop", "drop"), ("llama", "ring", "lfm2")), ids=str
)
def test_any_sequence_of_operations(
    name: str, on_full: OnFull, kv: KvOptions | str, data: st.DataObject, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    if on_full == "drop" and kv in (KvOptions("logquant-hq", window=64), KvOptions("h2o", window=64)):
        kv = KvOptions(str(getattr(kv, "name", kv)), window=64, select="even")  # more ways to select, for a change
    lines = Timelines(request.getfixturevalue(name), kv, data.draw(st.sampled_from([1, 2, 8])), on_full, tmp_path)
    for _ in range(data.draw(st.integers(1, 14))):
        lines.step(data)
    lines.check()


def test_every_type_is_among_them() -> None:
    assert {kv if isinstance(kv, str) else kv.name for kv in EVERY_TYPE} == set(kv_names())


# ---- one by one ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv", EVERY_TYPE, ids=str)
@pytest.mark.parametrize("name", ["llama", "ring", "lfm2"])
def test_back_to_a_checkpoint_evaluates_nothing(name: str, kv: KvOptions | str, request: pytest.FixtureRequest) -> None:
    model: Model = request.getfixturevalue(name)
    ids = ids_for(model, 600)
    with session_of(model, kv) as s:
        s.eval(ids[:330])
        s.checkpoint()
        s.eval(ids[330:])
        assert s.rewind(330) == 0
        assert s.checkpoints == [330]
        check_like_new(s, model, kv, [ids[i : min(i + CHUNK, 330)] for i in range(0, 330, CHUNK)])
        s.eval(ids[400:500])
        assert s.keep_prefix([*ids[:330], 1, 2, 3]) == 330  # also where a new history shares that much


@pytest.mark.parametrize("name", ["llama", "ring", "lfm2"])
def test_between_checkpoints_the_rest_is_evaluated_in_the_same_pieces(
    name: str, request: pytest.FixtureRequest
) -> None:
    model: Model = request.getfixturevalue(name)
    ids, kv = ids_for(model, 500), WITH_WINDOW[0]
    with session_of(model, kv) as s:
        s.eval(ids[:200])
        s.checkpoint()
        s.eval(ids[200:300])
        for token in ids[300:310]:
            s.append(token)
        s.eval(ids[310:])
        assert s.rewind(305) == 105
        pieces = [ids[i : min(i + CHUNK, 200)] for i in range(0, 200, CHUNK)]
        pieces += [ids[200:248], ids[248:296], ids[296:300], *([token] for token in ids[300:305])]
        check_like_new(s, model, kv, pieces)
        assert s.rewind(250) == 50
        check_like_new(s, model, kv, cut(pieces, 250))
        assert s.rewind(250) == 0
        with pytest.raises(pylogquant.ArgumentError, match="holds 250"):
            s.rewind(251)
        with pytest.raises(pylogquant.ArgumentError):
            s.rewind(-1)


def test_cells_are_cut_where_a_piece_begins(llama: Model) -> None:
    ids = ids_for(llama, 300)
    with session_of(llama, "f16") as s:
        s.eval(ids)
        assert s.rewind(100) == 100 - 2 * CHUNK  # the last whole pieces stay; its logits have to be made again
        check_like_new(s, llama, "f16", [ids[:48], ids[48:96], ids[96:100]])


def test_few_checkpoints_are_kept_where_they_save_most(llama: Model) -> None:
    ids = ids_for(llama, 700)
    with session_of(llama, "logquant", checkpoints=3) as s:
        for n in (100, 110, 300, 310, 500):
            s.eval(ids[s.n_tokens : n])
            s.checkpoint()
            assert len(s.checkpoints) <= 3
            assert s.checkpoints[-1] == n
        assert s.checkpoints == [100, 300, 500]
        info = s.info()
        assert info.n_checkpoints == 3
        assert 0 < info.checkpoint_bytes < 3 * (info.kv_usage.full_bytes + info.kv_usage.index_bytes + 10_000)


def test_limits_of_checkpoints(llama: Model) -> None:
    ids = ids_for(llama, 300)
    with llama.session(512, checkpoints=0) as s:
        s.checkpoint()  # nothing is held: nothing to keep
        s.eval(ids)
        with pytest.raises(pylogquant.OutOfMemory, match="a checkpoint takes"):
            s.checkpoint()
        assert s.checkpoints == []
        assert s.rewind(200) == 200
    with llama.session(512, checkpoint_bytes=100) as s:
        s.eval(ids)
        with pytest.raises(pylogquant.OutOfMemory, match=r"together 0\.1 KiB"):
            s.checkpoint()
    with pytest.raises(pylogquant.ArgumentError, match="checkpoints"):
        llama.session(512, checkpoints=100_000)
    for wrong in ({"checkpoints": -1}, {"checkpoint_bytes": -1}):
        with pytest.raises(pylogquant.ArgumentError):
            llama.session(512, **wrong)  # type: ignore[call-overload]


def test_a_checkpoint_gets_the_logits_that_come_later(llama: Model) -> None:
    ids = ids_for(llama, 120)
    with session_of(llama, "logquant") as s:
        s.eval(ids[:100], "none")
        s.checkpoint()
        assert s.rewind(100) == 100  # it is there already, but not its logits
        assert has_logits(s)
        assert s.rewind(100) == 0
        s.eval(ids[100:])
        assert s.rewind(100) == 100  # without logits in the checkpoint they have to be made
        assert has_logits(s)
        s.checkpoint()
        s.eval(ids[100:])
        assert s.rewind(100) == 0
        assert has_logits(s)


def test_forks_go_their_own_ways_in_threads(ring: Model) -> None:
    ids, kv = ids_for(ring, 400), WITH_WINDOW[0]
    with session_of(ring, kv) as s:
        s.eval(ids[:300])
        forks = [s.fork() for _ in range(4)]
        found: dict[int, Sequence[float]] = {}

        def run(index: int) -> None:
            for token in ids_for(ring, 80, index):
                out = forks[index].eval([token])
            assert out is not None
            found[index] = out.tolist()

        workers = [threading.Thread(target=run, args=(index,)) for index in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        s.close()
        for index, fork in enumerate(forks):
            pieces = [ids[i : min(i + CHUNK, 300)] for i in range(0, 300, CHUNK)]
            check_like_new(fork, ring, kv, [*pieces, *([token] for token in ids_for(ring, 80, index))])
            fork.close()


@pytest.mark.parametrize("checkpoint", [False, True])
@pytest.mark.parametrize("kv", ["logquant-small", "logquant-paper", "f16"])
def test_what_one_writes_the_other_does_not_read(llama: Model, kv: str, checkpoint: bool) -> None:
    """Pages are coded anew in memory of one's own, once they were shared."""
    ids, pieces = ids_for(llama, 500), [[*ids_for(llama, 500)[i : i + CHUNK]] for i in range(0, 480, CHUNK)]
    with session_of(llama, kv) as s:
        s.eval(ids[:48])
        if checkpoint:
            s.checkpoint()
        s.eval(ids[48:480])
        with s.fork() as first, s.fork() as second:
            first.rewind(48)
            first.eval(ids_for(llama, 450, 1))
            second.reset()
            second.eval(ids_for(llama, 450, 2))
            check_like_new(s, llama, kv, pieces)
            s.rewind(96)
            s.eval(ids_for(llama, 400, 3))
            others = [[*ids_for(llama, 450, 1)[i : i + CHUNK]] for i in range(0, 450, CHUNK)]
            check_like_new(first, llama, kv, [pieces[0], *others])


@pytest.mark.parametrize("kv", [WITH_WINDOW[0], "logquant-paper", "f16"], ids=str)
@pytest.mark.parametrize("name", ["llama", "ring", "lfm2"])
def test_the_oldest_make_room(name: str, kv: KvOptions | str, request: pytest.FixtureRequest) -> None:
    """A session goes on beyond its context, and back; a checkpoint whose pages are gone is none."""
    model: Model = request.getfixturevalue(name)
    ids = ids_for(model, 1200)
    with session_of(model, kv, on_full="drop") as s:
        assert s.n_ctx == HOLDS
        s.eval(ids[:400])
        s.checkpoint()
        s.eval(ids[400:900])
        assert s.checkpoints == []
        dropped = s.kv.usage().n_dropped
        assert 350 < dropped < 900 - HOLDS + 64
        s.checkpoint()
        s.eval(ids[900:920])
        s.rewind(900)
        assert s.kv.usage().n_dropped == dropped
        s.eval(ids[900:])
        first = [ids[i : min(i + CHUNK, 400)] for i in range(0, 400, CHUNK)]
        first += [ids[i : min(i + CHUNK, 900)] for i in range(400, 900, CHUNK)]
        whole = first + [ids[i : i + CHUNK] for i in range(900, 1200, CHUNK)]
        check_like_new(s, model, kv, whole, on_full="drop")
        assert s.rewind(500) == 500  # from the start, for all its pages are gone
        check_like_new(s, model, kv, cut(whole, 500), on_full="drop")


def test_as_far_as_the_model_was_trained(llama: Model) -> None:
    trained = llama.info().n_ctx_train
    with llama.session(300, "f16", on_full="drop") as s:
        assert s.n_limit == trained
        s.eval(ids_for(llama, trained))
        with pytest.raises(pylogquant.ContextFull, match=f"trained for {trained}"):
            s.append(1)
        assert s.n_tokens == trained
    with llama.session(300, "f16", on_full="drop", allow_long=True) as s:
        s.eval(ids_for(llama, trained + 100))
        assert len(s.tokens) == trained + 100
    with pytest.raises(pylogquant.ArgumentError, match="at least 644"):
        llama.session(300, "logquant", on_full="drop")
    with pytest.raises(pylogquant.ArgumentError, match="'stop' or 'drop'"):
        llama.session(300, on_full="shift")  # type: ignore[call-overload]


def test_a_forks_ring_has_what_it_needs_and_no_more(ring: Model) -> None:
    ids = ids_for(ring, 320)
    with session_of(ring, "f16") as s:
        s.eval(ids[:300])
        for token in ids[300:]:
            s.append(token)
        pieces = [ids[i : min(i + CHUNK, 300)] for i in range(0, 300, CHUNK)] + [[token] for token in ids[300:310]]
        with s.fork() as fork:
            fork.rewind(310)  # the fork's ring has not what the session's still has
            check_like_new(fork, ring, "f16", pieces)
        assert s.rewind(310) == 1
        check_like_new(s, ring, "f16", pieces)


def test_a_fork_outlives_its_session_and_model(tiny_llama_path: Path) -> None:
    ids = list(range(200))
    with Model(tiny_llama_path, threads=1) as model, model.session(512) as s:
        ids = ids_for(model, 200)
        wanted = s.eval(ids)
        fork = s.fork()
    found = fork.rewind(200)
    assert found == 0
    again = fork.eval(ids[:1])
    assert again is not None
    fork.rewind(200)
    assert wanted is not None
    fork.close()
    with pytest.raises(pylogquant.ClosedError):
        fork.fork()


def test_sampler_state() -> None:
    sampler = Sampler(SamplingOptions(seed=5))
    state = sampler.state
    sampler.state = 77
    assert sampler.state == 77
    sampler.state = state
    with pytest.raises(pylogquant.ArgumentError):
        sampler.state = -1


def test_sampling_from_a_state_again(llama: Model) -> None:
    sampler = Sampler(SamplingOptions(temperature=3.0, top_k=0, top_p=1.0, min_p=0.0, seed=1))
    with session_of(llama, "logquant") as s:
        s.eval(ids_for(llama, 100))
        state = sampler.state
        first = [s.sample(sampler).token for _ in range(20)]
        sampler.state = state
        assert [s.sample(sampler).token for _ in range(20)] == first
        assert [s.sample(sampler).token for _ in range(20)] != first


@pytest.mark.without_sanitizers
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads resident memory from /proc")
def test_a_thousand_forks_cost_their_overlays(tmp_path: Path) -> None:
    """Of an 8k session: pages and work areas are shared, so that what grows is what a fork has of its own."""
    model = Model(make_tiny(tmp_path / "m.gguf", n_layers=4, n_ctx=8192), threads=2)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with model.session(8192, "logquant", chunk=512) as s:
        s.eval(ids_for(model, 8100))
        usage = s.kv.usage()
        own = usage.full_bytes + usage.index_bytes + usage.mask_bytes
        other = 4 * 8192 + 4 * model.info().n_vocab + 2 * 8 * 128 + 32_768  # history, logits, tables, odds and ends
        forks = [s.fork() for _ in range(20)]  # what the allocator takes for itself
        before = resident()
        forks += [s.fork() for _ in range(1000)]
        each = (resident() - before) / 1000
        assert usage.code_bytes > 2 * own  # or there would be nothing to see
        assert 0.5 * own < each < own + other
        for fork in forks:
            fork.close()
        assert s.kv.usage() == usage


def test_a_checkpoint_keeps_a_sampler(llama: Model) -> None:
    """Going back to it, the same tokens are drawn again; elsewhere nothing is made up."""
    sampler, ids = Sampler(SamplingOptions(temperature=1.5, seed=7)), ids_for(llama, 90)

    def drawn(session: Session) -> list[int]:
        tokens = []
        for _ in range(6):
            tokens.append(session.sample(sampler).token)
            session.append(tokens[-1])
        return tokens

    with session_of(llama, "logquant-small") as session:
        session.eval(ids[:80])
        session.checkpoint(sampler)
        first = drawn(session)
        assert session.rewind(80) == 0
        assert drawn(session) != first  # it draws on
        session.rewind(80, sampler)
        assert drawn(session) == first
        with session.fork() as fork:
            fork.rewind(80, sampler)
            assert drawn(fork) == first
        before = sampler.state
        for n in (79, 81):
            with pytest.raises(pylogquant.ArgumentError, match=f"no checkpoint at {n} tokens"):
                session.rewind(n, sampler)
        assert (session.n_tokens, sampler.state) == (86, before)
        session.rewind(80)
        session.checkpoint()  # without one: the old state is not its
        with pytest.raises(pylogquant.ArgumentError, match="no checkpoint"):
            session.rewind(80, sampler)
        session.checkpoint(sampler)
        session.keep_prefix([*ids[:70], 0])
        session.eval(ids[:10])
        with pytest.raises(pylogquant.ArgumentError, match="no checkpoint"):
            session.rewind(min(80, session.n_tokens), sampler)
