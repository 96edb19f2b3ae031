"""The loop guard: what counts as a text that repeats itself without end, and what does not."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from command_line import call
from fake_session import FakeSession, check_agreement, make_chat, make_tokenizer, spelled
from hypothesis import given, settings
from hypothesis import strategies as st
from make_tiny_gguf import make_tiny

from pylogquant import SamplingOptions, Tokenizer
from pylogquant.generation import generate
from pylogquant.loops import LONG, LONGEST_PIECE, TIMES, LoopGuard
from pylogquant.session import Sampler


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("loops"))


def noticed(ids: Sequence[int]) -> int | None:
    """After how many ids the guard ends them."""
    guard = LoopGuard()
    return next((n for n, token in enumerate(ids, 1) if guard.push(token)), None)


def is_loop(ids: Sequence[int]) -> bool:
    """The rule in the plainest words: the end consists of one piece, long enough and often enough."""
    for size in range(1, LONGEST_PIECE + 1):
        n = max(LONG, TIMES * size)
        end = ids[-n:]
        if len(ids) >= n and all(end[i] == end[i - size] for i in range(size, n)):
            return True
    return False


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 80, LONGEST_PIECE])
@pytest.mark.parametrize("before", [0, 5, 1000])
def test_a_piece_again_and_again_is_a_loop(size: int, before: int) -> None:
    text = list(range(10_000, 10_000 + before))
    least = max(LONG, TIMES * size)
    at = noticed(text + list(range(size)) * (least // size + 10))
    assert at is not None
    assert before + least <= at <= before + least + 8
    assert noticed(text + (list(range(size)) * least)[: least - 1]) is None


def test_a_longer_piece_or_one_that_changes_is_none() -> None:
    assert noticed(list(range(LONGEST_PIECE + 1)) * 20) is None
    counting = [token for i in range(200) for token in (1, 2, 3, 4, 1000 + i)]
    assert noticed(counting) is None
    assert noticed((list(range(50)) * 3 + [99]) * 10) is None


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), min_size=1, max_size=12), st.integers(0, 400)
)
def test_the_guard_is_the_rule(before: list[int], piece: list[int], n: int) -> None:
    ids = before + (piece * (n // len(piece) + 1))[:n]
    at = noticed(ids)
    if at is None:
        assert not is_loop(ids[:-8])
    else:
        assert is_loop(ids[:at])
        assert not is_loop(ids[: at - 8])


WANTED = {
    "a hundred zeros": "[" + ", ".join(["0"] * 100) + "]",
    "a matrix of zeros": "[\n" + ",\n".join("    [" + ", ".join(["0"] * 10) + "]" for _ in range(10)) + "\n]",
    "a chess board": "| # | . | # | . | # | . | # | . |\n| . | # | . | # | . | # | . | # |\n" * 4,
    "laughter": "ha " * 100,
    "a punishment": "I will not talk in class.\n" * 30,
    "an empty table": "| | | | |\n" * 20,
    "a drawing": ("*" * 40 + "\n") * 10,
    "functions to fill in": "def f():\n    pass\n\n" * 12,
}


def test_what_is_repeated_on_purpose_is_not_cut(smollm2_path: Path) -> None:
    from pylogquant import GGUFFile

    with GGUFFile(smollm2_path) as file:
        tokenizer = Tokenizer.from_gguf(file)
    for what, text in WANTED.items():
        assert noticed(tokenizer.encode(text, bos=False)) is None, what
    standard = Path(sysconfig.get_paths()["stdlib"])
    for name in ("pydoc_data/topics.py", "html/entities.py", "encodings/cp437.py", "opcode.py", "turtle.py"):
        assert noticed(tokenizer.encode((standard / name).read_text(encoding="utf-8")[:200_000], bos=False)) is None, (
            name
        )
    assert noticed(tokenizer.encode("la Culture, " * 200, bos=False)) is not None


# ---- in a conversation -----------------------------------------------------------------------------------------------


def test_an_answer_in_a_loop_ends_and_the_conversation_goes_on(tokenizer: Tokenizer) -> None:
    loop = spelled(tokenizer, "ab " * 1000)
    session = FakeSession([loop, spelled(tokenizer, "hello")], n_ctx=10_000)
    chat = make_chat(tokenizer, session)
    answer = chat.send("go on")
    assert chat.stats().last.finish == "loop"
    assert LONG <= len(answer) <= LONG + 8
    assert ("ab " * 1000).startswith(answer)
    check_agreement(chat)
    assert chat.messages[-1]["content"] == answer
    assert chat.send("and now?") == "hello"
    assert chat.stats().last.finish == "eog"


def test_what_was_held_back_comes_with_the_last_piece(tokenizer: Tokenizer) -> None:
    session: Any = FakeSession([spelled(tokenizer, "ab " * 1000)], n_ctx=10_000)
    sampler = Sampler(SamplingOptions())
    pieces = list(generate(session, tokenizer, sampler, [5, 6], stop=["ab ab ab!"], loop_guard=True))
    assert pieces[-1].finish == "loop"
    assert len(pieces[-1].text) > 1
    assert "".join(piece.text for piece in pieces) == ("ab " * 1000)[: len(pieces)]


def test_a_fork_keeps_the_choice_and_without_the_guard_it_goes_on(tokenizer: Tokenizer) -> None:
    session = FakeSession([spelled(tokenizer, "ab " * 300)] * 3, n_ctx=10_000)
    chat = make_chat(tokenizer, session)
    chat.loop_guard = False
    assert chat.send("go on") == "ab " * 300
    assert not chat.fork().loop_guard
    chat.loop_guard = True
    assert chat.fork().loop_guard
    assert len(chat.send("go on")) < 900


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("loops") / "tiny.gguf", arch="gemma3")


def test_chat_says_so_and_run_does_it_only_if_asked(model: Path) -> None:
    """Models of random weights say one token again and again before long, at temperature 0."""
    loops = [model, "--temp", 0, "--ctx", 512, "-n", 450]
    said = call("chat", *loops, stdin="hello\n")
    assert said.err.count("went round in circles") == 1, "the model must loop here; take another prompt"
    assert "--no-loop-guard" in said.err
    on = call("chat", *loops, "--no-loop-guard", stdin="hello\n")
    assert "circles" not in on.err
    assert on.out.startswith(said.out.rstrip("\n"))
    assert len(on.out) > len(said.out)
    run = ["run", *loops, "--chat", "-p", "hello", "--json"]
    assert call(*run).json()["finish_reason"] == "length"
    assert call(*run, "--loop-guard").json()["finish_reason"] == "loop"
    assert call(*run[:-1]).err == ""
    assert call(*run[:-1], "--loop-guard").err.count("went round in circles") == 1
