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


@pytest.mark.parametrize("stop", ["the", ["the", ""], ["\ud800"]])
def test_stop_strings_that_cannot_be(tokenizer: Tokenizer, stop: Any) -> None:
    with pytest.raises(ArgumentError, match=r"stop must be|lone surrogate"):
        next(run(tokenizer, FakeSession([[5]]), [5], stop=stop))


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


@pytest.mark.parametrize(
    ("stop", "hidden", "shown"),
    [
        ("<|im_start|>", "ab", "ab"),
        ("start|>c", "ab", "ab<|im_"),  # begins inside a control token's text, goes on in the answer's
        ("b<|im_start|>", "a", "a"),
        ("b<|", "a", "a"),
        ("bc", "abcd", "ab<|im_start|>cd"),  # what is hidden stands between them all the same
        ("<|im_start|>d", "abcd", "ab<|im_start|>cd"),  # held back, and no stop string in the end
    ],
)
def test_stop_strings_are_looked_for_in_control_tokens_too(
    tokenizer: Tokenizer, stop: str, hidden: str, shown: str
) -> None:
    answer = [*spelled(tokenizer, "ab"), 1, *spelled(tokenizer, "cd")]
    for skip, wanted in ((True, hidden), (False, shown)):
        pieces = list(run(tokenizer, FakeSession([answer]), [5], stop=["never", stop], skip_special=skip))
        assert "".join(p.text for p in pieces) == wanted
        assert pieces[-1].finish == ("eog" if "cd" in wanted else "stop")


@pytest.mark.parametrize("n", [2, 3, 4])
def test_half_a_character_is_left_out(tokenizer: Tokenizer, n: int) -> None:
    session = FakeSession([spelled(tokenizer, "a🙂")])
    pieces = list(run(tokenizer, session, [5], max_tokens=n))
    assert ("".join(p.text for p in pieces), pieces[-1].finish, len(pieces)) == ("a", "length", n)
    assert "".join(p.text for p in run(tokenizer, session, [5, 6], max_tokens=5)) == "a🙂"
    full: list[Piece] = []
    with pytest.raises(ContextFull):
        collect(run(tokenizer, FakeSession(session.answers, n_ctx=n), [5]), full)
    assert ("".join(p.text for p in full), full[-1].finish) == ("a", "context")
    # What the model itself never completed is not hidden.
    cut = FakeSession([session.answers[0][:n]])
    assert "".join(p.text for p in run(tokenizer, cut, [5])) == "a\ufffd"


def test_prompts_are_checked(tokenizer: Tokenizer) -> None:
    with pytest.raises(ArgumentError, match="prompt is empty"):
        run(tokenizer, FakeSession([[5]]), [])
    with pytest.raises(ContextFull, match="4 tokens, but the context holds 4"):
        run(tokenizer, FakeSession([[5]], n_ctx=4), [5] * 4)
    with pytest.raises(ArgumentError, match="max_tokens"):
        run(tokenizer, FakeSession([[5]]), [5], max_tokens=-1)
