"""Tentative chunks: what commit(n) leaves is what the first n tokens alone would have left, bit for bit; and passes
that mix parts of any number of tokens."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_tiny_gguf import make_tiny
from session_inputs import EVERY_TYPE, N_CTX, ids_for

import pylogquant
from pylogquant import Model, Sampler, SamplingOptions, Session
from pylogquant.kv import KvOptions, kv_names

pytestmark = pytest.mark.tiny_model  # once per SIMD level

CHUNK, MOST = 48, 64
# Tokens, and whether they came as a tentative chunk.
Piece = tuple[list[int], bool]


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A token's product with an expert must not depend on how many others chose the same."""
    path = tmp_path_factory.mktemp("experts") / "qwen3moe.gguf"
    make_tiny(path, arch="qwen3moe", n_ctx=N_CTX)
    return Model(path, threads=2)


def session_of(model: Model, kv: KvOptions | str) -> Session:
    return model.session(N_CTX, kv, chunk=CHUNK, allow_long=True, max_tentative=MOST)


def propose(session: Session, model: Model, ids: list[int]) -> npt.NDArray[np.float32]:
    rows = model.step([session], [ids], logits="all", tentative=True)[0]
    assert rows is not None
    return rows


def feed(session: Session, model: Model, piece: Piece) -> None:
    ids, tentative = piece
    if tentative:
        propose(session, model, ids)
        session.commit(len(ids))
    else:
        session.prefill(ids)


def cut(pieces: list[Piece], n: int) -> list[Piece]:
    """The pieces of the first n tokens, the last one cut short."""
    kept: list[Piece] = []
    for ids, tentative in pieces:
        kept.append((ids[: n - sum(len(some) for some, _ in kept)], tentative))
    return [piece for piece in kept if piece[0]]


def check_like_new(session: Session, model: Model, kv: KvOptions | str, pieces: list[Piece], folder: Path) -> None:
    """Every bit of a saved file, which holds all of the state; and what comes next."""
    with session_of(model, kv) as new, session.fork() as probe:
        for piece in pieces:
            feed(new, model, piece)
        assert session.tokens == new.tokens == list(itertools.chain.from_iterable(ids for ids, _ in pieces))
        assert session.kv.usage() == new.kv.usage()
        if not pieces:
            return
        session.save(folder / "one.lqs")
        new.save(folder / "two.lqs")
        assert (folder / "one.lqs").read_bytes() == (folder / "two.lqs").read_bytes()
        greedy = Sampler(SamplingOptions(temperature=0))
        assert probe.sample(greedy, top=5) == new.sample(greedy, top=5)
        found, wanted = probe.eval([3, 5]), new.eval([3, 5])
        assert found is not None
        assert wanted is not None
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("kv", EVERY_TYPE, ids=str)
@pytest.mark.parametrize("held", [0, 3, 66, 131, 255])
def test_what_stays_depends_on_what_is_taken_in_alone(
    llama: Model, kv: KvOptions | str, held: int, tmp_path: Path
) -> None:
    ids = ids_for(llama, 400, 1)
    pieces = [(ids[at : min(at + CHUNK, held)], False) for at in range(0, held, CHUNK)]
    with session_of(llama, kv) as session:
        for piece in pieces:
            feed(session, llama, piece)
        for n_proposed, n_taken in ((8, 0), (MOST, 7), (1, 1), (2, 1), (MOST, MOST), (33, 17), (5, 5)):
            proposed = ids_for(llama, n_proposed, n_proposed)
            rows = propose(session, llama, proposed)
            with session_of(llama, kv) as new:
                for piece in pieces:
                    feed(new, llama, piece)
                assert np.array_equal(rows[: max(n_taken, 1)], propose(new, llama, proposed[: max(n_taken, 1)]))
            session.commit(n_taken)
            if n_taken:
                pieces.append((proposed[:n_taken], True))
        check_like_new(session, llama, kv, pieces, tmp_path)


@pytest.mark.parametrize("kv", ["logquant-small", "f16"])
@pytest.mark.parametrize("name", ["ring", "experts", "lfm2"])
def test_every_kind_of_layer(name: str, kv: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model: Model = request.getfixturevalue(name)
    pieces: list[Piece] = [(ids_for(model, CHUNK, 1), False), (ids_for(model, 30, 2), False)]
    with session_of(model, kv) as session:
        for piece in pieces:
            feed(session, model, piece)
        for n_proposed, n_taken in ((MOST, 3), (16, 0), (40, 29), (1, 1), (MOST, 40)):
            proposed = ids_for(model, n_proposed, 7 * n_proposed)
            propose(session, model, proposed)
            session.commit(n_taken)
            if n_taken:
                pieces.append((proposed[:n_taken], True))
        check_like_new(session, model, kv, pieces, tmp_path)


actions = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["eval", "cancelled"]), st.integers(1, CHUNK)),
        st.tuples(st.just("propose"), st.integers(1, MOST), st.integers(0, MOST)),
        st.tuples(st.just("rewind"), st.integers(0, 1000)),
        st.tuples(st.sampled_from(["fork", "save", "checkpoint", "drop"]), st.integers(1, 9)),
    ),
    max_size=12,
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@pytest.mark.parametrize("name", ["llama", "ring", "lfm2"])
def test_any_history_is_that_of_a_new_session(
    name: str, request: pytest.FixtureRequest, tmp_path: Path, data: st.DataObject
) -> None:
    model: Model = request.getfixturevalue(name)
    kv = data.draw(st.sampled_from(EVERY_TYPE))
    session, pieces = session_of(model, kv), list[Piece]()
    for number, (action, *values) in enumerate(data.draw(actions)):
        n_held = session.n_tokens
        if action == "eval" and n_held + values[0] <= N_CTX - 80:
            pieces.append((ids_for(model, values[0], number), False))
            session.prefill(pieces[-1][0])
        elif action == "cancelled" and n_held + values[0] <= N_CTX - 80:
            piece = ids_for(model, values[0], number)
            canceller = threading.Thread(target=session.cancel)
            canceller.start()
            try:
                session.prefill(piece)
                pieces.append((piece, False))
            except pylogquant.Cancelled:
                session.rewind(n_held)  # a session that was cancelled has no logits before it goes back to where it is
            canceller.join()
            assert session.n_tokens == sum(len(ids) for ids, _ in pieces), "all of it, or as if it had never been"
        elif action in ("propose", "drop") and n_held + values[0] <= N_CTX - 80:
            ids = ids_for(model, values[0], number)
            propose(session, model, ids)
            if action == "drop":  # going back forgets it
                session.rewind(n_held)
            else:
                n_taken = min(values[0], values[1])
                session.commit(n_taken)
                pieces += [(ids[:n_taken], True)] if n_taken else []
        elif action == "rewind" and n_held:
            n_keep = values[0] % (n_held + 1)
            session.rewind(n_keep)
            pieces = cut(pieces, n_keep)
        elif action == "fork":
            with session:
                session = session.fork()
        elif action == "save":
            session.save(tmp_path / "session.lqs")
            session.close()
            session = model.load_session(tmp_path / "session.lqs")
        elif action == "checkpoint" and n_held:
            session.checkpoint()
    with session:
        check_like_new(session, model, kv, pieces, tmp_path)


def test_company_changes_nothing_of_a_tentative_part(llama: Model) -> None:
    ids, kinds = ids_for(llama, 300, 1), kv_names()
    alone = [session_of(llama, kv) for kv in kinds]
    together = [session_of(llama, kv) for kv in kinds]
    for session in (*alone, *together):
        session.prefill(ids[:70])
    wanted = [propose(session, llama, ids[70 : 74 + i]) for i, session in enumerate(alone)]
    flags = [True] * len(kinds) + [False, False]
    others = [session_of(llama, "f16"), session_of(llama, "logquant")]
    parts = [*(ids[70 : 74 + i] for i in range(len(kinds))), ids[:40], [7]]
    found = llama.step([*together, *others], parts, logits="all", tentative=flags)
    for one, other in zip(wanted, found, strict=False):
        assert other is not None
        assert np.array_equal(one, other)
    assert [session.n_tokens for session in together] == [70] * len(kinds)
    assert [session.n_tokens for session in others] == [40, 1]


def test_a_prompt_in_slices_beside_others_is_that_prompt(llama: Model) -> None:
    ids = ids_for(llama, 96, 1)
    for kv in EVERY_TYPE:
        with session_of(llama, kv) as one, session_of(llama, kv) as other, session_of(llama, "logquant") as decoding:
            decoding.prefill(ids[:5])
            for at in range(0, 96, 32):
                one.prefill(ids[at : at + 32])
                rows = llama.step([decoding, other], [[ids[at]], ids[at : at + 32]], logits=["last", "none"])
                assert rows[0] is not None
                assert rows[1] is None
            assert one.tokens == other.tokens
            wanted, found = one.eval([1, 2, 3]), other.eval([1, 2, 3])
            assert wanted is not None
            assert found is not None
            assert np.array_equal(wanted, found)


def test_tentative_tokens_are_no_history(llama: Model, tmp_path: Path) -> None:
    with session_of(llama, "logquant") as session:
        session.prefill([1, 2, 3])
        greedy = Sampler(SamplingOptions(temperature=0))
        before = session.sample(greedy).token
        propose(session, llama, [4, 5, 6])
        assert session.n_tokens == 3
        assert session.sample(greedy).token == before, "the logits are still those of the last token held"
        refused: list[Callable[[], object]] = [
            lambda: session.eval([1]),
            lambda: session.fork(),
            lambda: session.checkpoint(),
            lambda: session.save(tmp_path / "session.lqs"),
            lambda: session.keep_prefix([1, 2]),
            lambda: propose(session, llama, [4]),
        ]
        for call in refused:
            with pytest.raises(pylogquant.ArgumentError, match="3 tentative tokens wait: commit"):
                call()
        with pytest.raises(pylogquant.ArgumentError, match="cannot commit 4 tokens: 3 are tentative"):
            session.commit(4)
        for n in (-1, 2**31, 2**64):
            with pytest.raises(pylogquant.ArgumentError, match=f"cannot commit {n} tokens"):
                session.commit(n)
            with pytest.raises(pylogquant.ArgumentError, match=f"cannot go back to {n} tokens"):
                session.rewind(n, greedy)
        session.commit(0)
        assert session.sample(greedy).token == before
        with pytest.raises(pylogquant.ArgumentError, match=r"session 0 .* 65 tentative tokens; .* at most 64"):
            propose(session, llama, [1] * 65)
        with pytest.raises(pylogquant.ArgumentError, match=r"session 0 .* 49 tokens at once; .* at most 48"):
            llama.step([session], [[1] * 49])
        propose(session, llama, [1, 2])
        session.reset()
        assert session.n_tokens == 0
        session.prefill([1])
    with llama.session(64) as plain, pytest.raises(pylogquant.ArgumentError, match="at most 0"):
        llama.step([plain], [[1]], tentative=True)
    with pytest.raises(pylogquant.ArgumentError, match="65 tentative tokens are too many"):
        llama.session(64, max_tentative=65)
    with pytest.raises(pylogquant.ArgumentError, match="watched"):
        llama.session(64, "f16", max_tentative=1, watch_attention=True)


def test_a_step_with_all_the_room_there_is(llama: Model) -> None:
    """A tentative chunk up to the end of the context, and one more that does not fit."""
    for kv in ("logquant", "q8_0"):
        with llama.session(100, kv, max_tentative=MOST) as session:
            session.prefill(ids_for(llama, 60, 1))
            propose(session, llama, ids_for(llama, 40, 2))
            session.commit(39)
            with pytest.raises(pylogquant.ContextFull):
                propose(session, llama, [1, 2])
            propose(session, llama, [1])
            session.commit(1)
            assert session.n_tokens == 100


def test_a_step_that_is_refused_takes_no_memory(tiny_llama_path: Path) -> None:
    with Model(tiny_llama_path, threads=1) as model, session_of(model, "logquant") as session:
        before = session.info().workspace_bytes
        for n, flag in ((60000, False), (70000, False), (65, True)):
            with pytest.raises(pylogquant.ArgumentError, match=f"{n} .* at most {MOST if flag else CHUNK} "):
                model.step([session], [[1] * n], tentative=flag)
        with pytest.raises(pylogquant.ArgumentError, match="a step of 1025 sessions; at most 1024"):
            model.step([session] * 1025, [1] * 1025)
        assert session.info().workspace_bytes == before


def test_a_value_for_each_session_or_one_for_all(llama: Model) -> None:
    with llama.session(64) as one, llama.session(64) as other:
        for wrong in (None, 1, ["last"], ["last", "last", "last"]):
            with pytest.raises(pylogquant.ArgumentError, match="logits: 2 sessions need as many values"):
                llama.step([one, other], [[1], [2]], logits=wrong)  # type: ignore[arg-type]
            with pytest.raises(pylogquant.ArgumentError, match="tentative: 2 sessions need as many values"):
                llama.step([one, other], [[1], [2]], tentative=wrong)  # type: ignore[arg-type]
        with pytest.raises(pylogquant.ArgumentError, match="'none', 'last' or 'all', not 'best'"):
            llama.step([one, other], [[1], [2]], logits="best")  # type: ignore[arg-type]
        assert one.n_tokens == other.n_tokens == 0
