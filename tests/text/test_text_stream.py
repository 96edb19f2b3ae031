"""TextStream: tokens in, pieces out, without a session."""

from __future__ import annotations

import math
from typing import Any

import pytest
from fake_session import make_tokenizer, spelled
from hypothesis import given
from hypothesis import strategies as st

from pylogquant import ArgumentError, TextStream, Tokenizer
from pylogquant.session import TokenProb
from pylogquant.text_stream import Piece


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("text"))


def push_all(text: TextStream, ids: list[int]) -> list[Piece]:
    """The pieces of these tokens, up to where the text ends."""
    pieces: list[Piece] = []
    for token in ids:
        pieces.append(text.push(token))
        if text.finish:
            break
    return pieces


def test_characters_are_completed(tokenizer: Tokenizer) -> None:
    text = TextStream(tokenizer)
    ids = spelled(tokenizer, "é🙂")
    assert [piece.text for piece in push_all(text, ids)] == ["", "é", "", "", "", "🙂"]
    assert (text.ids, text.finish) == (ids, None)
    last = text.push(2)
    assert (last.text, last.token, last.finish, text.finish) == ("", 2, "eog", "eog")
    assert text.ids == ids


def test_what_is_known_of_a_token_is_passed_on(tokenizer: Tokenizer) -> None:
    text = TextStream(tokenizer)
    top = [TokenProb(5, -0.25)]
    piece = text.push(5, -0.25, top)
    assert (piece.logprob, piece.top) == (-0.25, top)
    assert math.isnan(text.push(5).logprob)


def test_each_end(tokenizer: Tokenizer) -> None:
    ids = spelled(tokenizer, "ab<end>")
    stopped = TextStream(tokenizer, stop=["<end>"])
    assert "".join(piece.text for piece in push_all(stopped, ids)) == "ab"
    assert (stopped.finish, stopped.stop, stopped.ids) == ("stop", ("<end>",), ids)
    cut = TextStream(tokenizer, stop=["<end>"], max_tokens=4)
    assert [piece.text for piece in push_all(cut, ids)] == ["a", "b", "", "<e"]
    assert cut.finish == "length"
    full = TextStream(tokenizer, stop=["<end>"])
    push_all(full, ids[:4])
    piece = full.flush()
    assert (piece.text, piece.token, piece.finish) == ("<e", None, "context")
    round_and_round = TextStream(tokenizer, loop_guard=True)
    push_all(round_and_round, spelled(tokenizer, "ab " * 400))
    assert round_and_round.finish == "loop"
    for ended in (stopped, cut, full, round_and_round):
        before = list(ended.ids)
        with pytest.raises(ArgumentError, match="the text has ended"):
            ended.push(5)
        with pytest.raises(ArgumentError, match="the text has ended"):
            ended.flush()
        assert ended.ids == before


def test_limits_are_checked_at_once(tokenizer: Tokenizer) -> None:
    limits: list[Any] = [0, 2.5, math.nan, "3"]
    for limit in limits:
        with pytest.raises(ArgumentError, match="max_tokens"):
            TextStream(tokenizer, max_tokens=limit)
    stops: list[Any] = ["end", None, b"end", [b"end"], [""], (text for text in ["end"])]
    for stop in stops:
        with pytest.raises(ArgumentError, match="stop must be"):
            TextStream(tokenizer, stop=stop)


@given(
    answer=st.text(st.sampled_from("ab<é🙂"), max_size=12),
    stop=st.lists(st.sampled_from(["ab<", "é<", "b🙂"]), max_size=2),
)
def test_pieces_are_the_text(tokenizer: Tokenizer, answer: str, stop: list[str]) -> None:
    """Joined, they are what was generated up to the first stop string; no piece ends inside a character."""
    text = TextStream(tokenizer, stop=stop)
    pieces = push_all(text, spelled(tokenizer, answer))
    if not text.finish:
        pieces.append(text.push(2))
    at = min((found for wanted in stop if (found := answer.find(wanted)) >= 0), default=len(answer))
    assert "".join(piece.text for piece in pieces) == answer[:at]
    assert all("\ufffd" not in piece.text for piece in pieces)
