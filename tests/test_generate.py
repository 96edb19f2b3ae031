"""generate(): the pieces of an answer, and where it ends."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from fake_session import FakeSession, collect, make_tokenizer, spelled

from pylogquant import ArgumentError, ContextFull, SamplingOptions, Tokenizer
from pylogquant.chat import Piece, generate
from pylogquant.session import Sampler


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("chat"))


def run(tokenizer: Tokenizer, session: FakeSession, prompt: Sequence[int] | None, **options: Any) -> Iterator[Piece]:
    fake: Any = session
    return generate(fake, tokenizer, Sampler(SamplingOptions()), prompt, **options)


def test_pieces_carry_tokens_and_probabilities(tokenizer: Tokenizer) -> None:
    session = FakeSession([spelled(tokenizer, "é")])
    pieces = list(run(tokenizer, session, [5, 6], top=3))
    assert [(p.text, p.token, p.finish) for p in pieces] == [
        ("", session.answers[0][0], None),
        ("é", session.answers[0][1], None),
        ("", 2, "eog"),
    ]
    assert all(p.logprob == -0.5 and len(p.top) == 3 for p in pieces)
    assert session.tokens == [5, 6, *session.answers[0]]


def test_generation_goes_on_from_the_session(tokenizer: Tokenizer) -> None:
    session = FakeSession([spelled(tokenizer, "hello")])
    assert "".join(p.text for p in run(tokenizer, session, [5, 6], max_tokens=2)) == "he"
    session.append(session.answers[0][1])
    assert "".join(p.text for p in run(tokenizer, session, None)) == "llo"


def test_the_last_piece_of_a_full_context_has_no_token(tokenizer: Tokenizer) -> None:
    session = FakeSession([spelled(tokenizer, "ab" * 9)], n_ctx=4)
    pieces: list[Piece] = []
    with pytest.raises(ContextFull):
        collect(run(tokenizer, session, [5, 6], stop=["bab!"]), pieces)
    assert "".join(p.text for p in pieces) == "aba"
    assert (pieces[-1].token, pieces[-1].finish, pieces[-1].text) == (None, "context", "ba")
    assert math.isnan(pieces[-1].logprob)


def test_prompts_are_checked(tokenizer: Tokenizer) -> None:
    with pytest.raises(ArgumentError, match="prompt is empty"):
        run(tokenizer, FakeSession([[5]]), [])
    with pytest.raises(ContextFull, match="4 tokens, but the context holds 4"):
        run(tokenizer, FakeSession([[5]], n_ctx=4), [5] * 4)
    with pytest.raises(ArgumentError, match="max_tokens"):
        run(tokenizer, FakeSession([[5]]), [5], max_tokens=-1)
