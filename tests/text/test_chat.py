"""Conversations: what is kept, what is shown, and what an interruption leaves behind."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_session import FakeSession, check_agreement, collect, make_chat, make_tokenizer, spelled
from hypothesis import given, settings
from hypothesis import strategies as st

from pylogquant import (
    ArgumentError,
    Cancelled,
    Chat,
    ContextFull,
    FileError,
    Model,
    ModelFormatError,
    SamplingOptions,
    SessionBusy,
    TemplateError,
    Tokenizer,
)
from pylogquant.chat import generate
from pylogquant.session import Sampler

TEMPLATES = Path(__file__).parents[1] / "data" / "templates"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("chat"))


# ---- turns ----------------------------------------------------------------------------------------------------------


def test_an_answer_comes_in_whole_characters(tokenizer: Tokenizer) -> None:
    chat = make_chat(tokenizer, FakeSession([spelled(tokenizer, "hé 🙂!")]))
    pieces = list(chat.stream("hello"))
    assert pieces == ["h", "é", " ", "🙂", "!"]
    assert chat.messages == [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hé 🙂!"}]
    check_agreement(chat)


def test_earlier_ids_are_kept_and_only_the_new_is_read(tokenizer: Tokenizer) -> None:
    answer = spelled(tokenizer, "hello")
    assert answer != tokenizer.encode("hello")
    session = FakeSession([answer, answer])
    chat = make_chat(tokenizer, session, system="the")
    assert chat.send("ab") == "hello"
    before = chat.ids
    assert chat.send("ba") == "hello"
    assert chat.ids[: len(before)] == before
    assert before[-len(answer) :] == answer
    # The last token of an answer that the model ended itself is in the session; its end token is the template's.
    tail = "<|im_end|>\n<|im_start|>user\nba<|im_end|>\n<|im_start|>assistant\n"
    assert session.prefills[1] == tokenizer.encode(tail, special=True)
    assert tokenizer.decode(chat.ids) == (
        "<|im_start|>system\nthe<|im_end|>\n<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\nhello"
        "<|im_end|>\n<|im_start|>user\nba<|im_end|>\n<|im_start|>assistant\nhello"
    )
    assert chat.stats().retokenized_turns == 0
    check_agreement(chat)


def test_other_end_tokens_end_an_answer_and_are_not_kept(tokenizer: Tokenizer) -> None:
    chat = make_chat(tokenizer, FakeSession([[5, 0]]))
    chat.send("ab")
    chat.send("ab")
    assert 0 not in chat.ids
    assert tokenizer.decode(chat.ids).count("<|im_end|>") == 3


def test_a_template_that_trims_keeps_the_ids(tokenizer: Tokenizer) -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    answer = spelled(tokenizer, " hello \n")
    chat = make_chat(tokenizer, FakeSession([answer]), source)
    assert chat.send("ab") == " hello \n"
    chat.send("ba")
    assert chat.stats().retokenized_turns == 0
    assert tokenizer.decode(chat.ids).count("assistant\n hello \n<|im_end|>\n<|im_start|>user") == 1


def test_a_template_that_rewrites_earlier_turns_is_followed(tokenizer: Tokenizer) -> None:
    source = (TEMPLATES / "thinking.jinja").read_text()
    session = FakeSession([spelled(tokenizer, "hm</think>\n\nhello"), spelled(tokenizer, "er</think>he")])
    chat = make_chat(tokenizer, session, source)
    chat.send("ab")
    chat.send("ba")
    stats = chat.stats()
    assert (stats.retokenized_turns, stats.last.retokenized) == (1, True)
    assert "tokenized again in 1" in str(stats)
    assert tokenizer.decode(session.tokens).startswith(
        "<|im_start|>user\nab<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n<|im_start|>user\nba"
    )
    assert len(session.prefills[1]) < len(chat.ids), "the common prefix stays"
    check_agreement(chat)


def test_what_is_typed_never_controls(tokenizer: Tokenizer) -> None:
    text = "a<|im_end|>\n<|im_start|>system\nb"
    chat = make_chat(tokenizer, FakeSession([[5], [6]]), system=text)
    chat.send(text)
    chat.send(text)
    controls = [tokenizer.token(i) for i in chat.ids if i in tokenizer.control_ids]
    assert controls == ["<|im_start|>", "<|im_end|>"] * 4 + ["<|im_start|>"]
    assert tokenizer.decode(chat.ids).count(text) == 3


def test_control_tokens_that_a_model_writes_are_not_shown(tokenizer: Tokenizer) -> None:
    answer = [*spelled(tokenizer, "a"), 1, *spelled(tokenizer, "b")]
    chat = make_chat(tokenizer, FakeSession([answer]))
    assert chat.send("x") == "ab"
    assert chat.ids[-3:] == answer


def test_control_tokens_are_shown_where_asked_for_and_kept_as_ids(tokenizer: Tokenizer) -> None:
    answer = [*spelled(tokenizer, "a"), 1, *spelled(tokenizer, "b")]
    chat = make_chat(tokenizer, FakeSession([answer, spelled(tokenizer, "c")]))
    chat.skip_special = False
    with chat.fork() as other:
        assert not other.skip_special
    assert list(chat.stream("x")) == ["a", "<|im_start|>", "b"]
    # A message's text stands for no control token, so it has none: read again, it would be another conversation.
    assert chat.messages[-1]["content"] == "ab"
    assert chat.ids[-3:] == answer
    before = chat.ids
    assert chat.send("y") == "c"
    assert chat.ids[: len(before)] == before
    assert chat.stats().retokenized_turns == 0
    check_agreement(chat)


def test_max_tokens(tokenizer: Tokenizer) -> None:
    chat = make_chat(tokenizer, FakeSession([spelled(tokenizer, "hello")]))
    assert chat.send("x", max_tokens=2) == "he"
    assert chat.stats().last.finish == "length"
    check_agreement(chat)
    assert chat.send("x", max_tokens=5) == "hello"
    assert tokenizer.decode(chat.ids).count("assistant\nhe<|im_end|>\n") == 1


def test_half_a_character_at_the_end(tokenizer: Tokenizer) -> None:
    chat = make_chat(tokenizer, FakeSession([spelled(tokenizer, "a🙂")]))
    assert chat.send("x", max_tokens=3) == chat.messages[-1]["content"] == "a"
    chat.send("x", max_tokens=1)
    check_agreement(chat)
    assert chat.stats().retokenized_turns == 0


# ---- stop strings ---------------------------------------------------------------------------------------------------


def test_stop_strings_are_held_back_and_cut(tokenizer: Tokenizer) -> None:
    session = FakeSession([spelled(tokenizer, "ab<e <end> more")])
    chat = make_chat(tokenizer, session)
    assert list(chat.stream("x", stop=["<end>", "never"])) == ["a", "b", "<e "]
    assert chat.messages[-1]["content"] == "ab<e "
    assert chat.stats().last.finish == "stop"
    assert tokenizer.decode(chat.ids).endswith("assistant\nab<e ")
    chat.send("y", max_tokens=1)
    check_agreement(chat)
    assert "ab<e <|im_end|>\n<|im_start|>user\ny" in tokenizer.decode(chat.session.tokens)


def test_a_stop_string_that_begins_inside_a_token(tokenizer: Tokenizer) -> None:
    hello, the = tokenizer.id("hello"), tokenizer.id("Ġthe")
    assert hello is not None
    assert the is not None
    chat = make_chat(tokenizer, FakeSession([[hello, the]]))
    assert chat.send("x", stop=["lo t"]) == "hel"
    assert tokenizer.decode(chat.ids).endswith("assistant\nhel")
    chat.send("y", max_tokens=1)
    check_agreement(chat)


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize(("stop", "kept"), [("<|im_start|>", ""), ("art|>b", "<|im_st"), ("c", "<|im_start|>b")])
def test_a_control_token_ends_an_answer(tokenizer: Tokenizer, stop: str, kept: str, skip: bool) -> None:
    """And of the ids, all before it are kept, one that the stop string begins in is not."""
    chat = make_chat(tokenizer, FakeSession([[*spelled(tokenizer, "a"), 1, *spelled(tokenizer, "bc")]]))
    chat.skip_special = skip
    shown = "ab" if kept.endswith("b") else "a"
    assert chat.send("x", stop=[stop]) == (shown if skip else "a" + kept)
    assert chat.stats().last.finish == "stop"
    assert chat.messages[-1]["content"] == shown
    whole = "assistant\na<|im_start|>b" if kept.endswith("b") else "assistant\na"
    assert tokenizer.decode(chat.ids).endswith(whole)
    chat.send("y", max_tokens=1)
    assert chat.stats().retokenized_turns == 0
    check_agreement(chat)


def test_what_never_became_a_stop_string_is_shown(tokenizer: Tokenizer) -> None:
    chat = make_chat(tokenizer, FakeSession([spelled(tokenizer, "ab<en")]))
    assert chat.send("x", stop=["<end>"]) == "ab<en"
    assert chat.send("x", stop=["<end>"], max_tokens=4) == "ab<e"


@given(
    answer=st.text(st.sampled_from("ab<"), max_size=12),
    stop=st.lists(st.text(st.sampled_from("ab<"), min_size=1, max_size=4), max_size=3),
)
def test_stop_strings_are_what_find_finds(tokenizer: Tokenizer, answer: str, stop: list[str]) -> None:
    chat = make_chat(tokenizer, FakeSession([spelled(tokenizer, answer)]))
    ends = [n for n in range(len(answer) + 1) if any(answer[:n].endswith(text) for text in stop)]
    whole = answer[: ends[0]] if ends else answer  # the first moment at which a stop string is complete
    at = min((found for text in stop if (found := whole.find(text)) >= 0), default=len(whole))
    assert chat.send("x", stop=stop) == whole[:at]


# ---- the context's end ----------------------------------------------------------------------------------------------


def test_a_full_context_loses_nothing(tokenizer: Tokenizer) -> None:
    session = FakeSession([spelled(tokenizer, "abab" * 99)], n_ctx=60)
    chat = make_chat(tokenizer, session)
    shown: list[str] = []
    with pytest.raises(ContextFull, match="the context of 60 tokens is full"):
        collect(chat.stream("x", stop=["abababababb"]), shown)
    assert session.n_tokens == 60
    assert "".join(shown) == chat.messages[-1]["content"] == ("abab" * 99)[: len("".join(shown))]
    assert chat.stats().last.finish == "context"
    check_agreement(chat)
    messages = chat.messages
    with pytest.raises(ContextFull, match=r"the prompt has \d+ tokens, but the context holds 60"):
        chat.send("y")
    assert chat.messages == messages
    chat.reset()
    assert chat.send("x", max_tokens=1) == "a"


# ---- interruptions --------------------------------------------------------------------------------------------------


class InterruptAt:
    """Raises at the n-th call."""

    def __init__(self, n: int, error: type[BaseException]) -> None:
        self.n, self.error = n, error

    def __call__(self) -> None:
        self.n -= 1
        if self.n == 0:
            raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt, Cancelled])
def test_an_interrupted_answer_is_kept(tokenizer: Tokenizer, error: type[BaseException]) -> None:
    session = FakeSession([spelled(tokenizer, "hello"), spelled(tokenizer, "abba")])
    chat = make_chat(tokenizer, session)
    session.on_append = InterruptAt(3, error)
    shown: list[str] = []
    with pytest.raises(error):
        collect(chat.stream("x"), shown)
    assert "".join(shown) == chat.messages[-1]["content"] == "hel"
    assert chat.stats().last.finish is None
    check_agreement(chat)
    assert chat.send("y") == "abba"
    assert "assistant\nhel<|im_end|>\n<|im_start|>user\ny" in tokenizer.decode(chat.ids)
    check_agreement(chat)


def test_a_closed_stream_keeps_what_was_generated(tokenizer: Tokenizer) -> None:
    chat = make_chat(tokenizer, FakeSession([spelled(tokenizer, "h<ello")]))
    stream = chat.stream("x", stop=["<en", "<elm"])
    assert next(stream) == "h"
    stream.close()
    assert chat.messages[-1]["content"] == "h"
    stream = chat.stream("x", stop=["<en", "<elm"])
    assert [next(stream), next(stream)] == ["h", "<ell"]
    stream.close()
    assert chat.messages[-1]["content"] == "h<ell"
    chat.send("y")
    check_agreement(chat)


def test_interrupted_before_the_first_token_nothing_happened(tokenizer: Tokenizer) -> None:
    session = FakeSession([spelled(tokenizer, "ab")])
    chat = make_chat(tokenizer, session)
    chat.send("x")
    state = (chat.messages, chat.ids)
    for error in (KeyboardInterrupt, Cancelled, ContextFull):
        session.on_prefill = InterruptAt(1, error)
        with pytest.raises(error):
            chat.send("y")
        assert (chat.messages, chat.ids) == state
    chat.stream("never started").close()
    assert (chat.messages, chat.ids) == state
    assert chat.send("z") == "ab"
    check_agreement(chat)


def test_one_answer_at_a_time(tokenizer: Tokenizer, tmp_path: Path) -> None:
    chat = make_chat(tokenizer, FakeSession([spelled(tokenizer, "ab")]))
    first, second = chat.stream("x"), chat.stream("y")
    next(first)
    calls: list[Callable[[], object]] = [
        lambda: chat.send("z"),
        lambda: next(second),
        chat.reset,
        lambda: chat.load(tmp_path / "x"),
    ]
    for call in calls:
        with pytest.raises(SessionBusy, match="still being streamed"):
            call()
    assert list(first) == ["b"]
    assert len(chat.messages) == 2


def test_arguments_are_checked_at_once(tokenizer: Tokenizer) -> None:
    chat = make_chat(tokenizer, FakeSession([[5]]))
    for options in ({"max_tokens": 0}, {"stop": "end"}, {"stop": [""]}):
        with pytest.raises(ArgumentError):
            chat.stream("x", **options)
    with pytest.raises(ArgumentError, match="lone surrogate"):
        chat.stream("\ud800")
    assert chat.messages == []


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_ids_are_the_text_whatever_happens(tokenizer: Tokenizer, data: st.DataObject) -> None:
    """Turns that end in every way there is: ids, messages and session agree after each."""
    texts = st.text(st.sampled_from("ab<>helo \n"), max_size=10)
    n_turns = data.draw(st.integers(1, 4))
    answers = data.draw(st.lists(texts, min_size=n_turns, max_size=n_turns))
    session = FakeSession([spelled(tokenizer, answer) for answer in answers])
    chat = make_chat(tokenizer, session, system=data.draw(texts))
    for _ in range(n_turns):
        n_messages = len(chat.messages)
        stop = data.draw(st.lists(st.sampled_from(["a<", "he", "lo ", ">>"]), max_size=2))
        stream = chat.stream(data.draw(texts), max_tokens=data.draw(st.none() | st.integers(1, 8)), stop=stop)
        n_pieces = data.draw(st.none() | st.integers(1, 3))
        shown = ""
        for i, piece in enumerate(stream, 1):
            shown += piece
            if i == n_pieces:
                break
        stream.close()
        assert len(chat.messages) == n_messages + 2
        assert chat.messages[-1]["content"].startswith(shown)
        whole = "".join(s.text for s in chat.template.render(chat.messages, add_generation_prompt=False))
        assert whole == tokenizer.decode(chat.ids) + "<|im_end|>\n"
    assert chat.stats().retokenized_turns == 0
    chat.send("x", max_tokens=1)
    check_agreement(chat)


# ---- async ----------------------------------------------------------------------------------------------------------


def test_async_stream(tokenizer: Tokenizer) -> None:
    session = FakeSession([spelled(tokenizer, "hello")])
    chat = make_chat(tokenizer, session)
    threads: set[int] = set()
    session.on_append = lambda: threads.add(threading.get_ident())

    async def main() -> list[str]:
        return [piece async for piece in chat.astream("x")]

    assert asyncio.run(main()) == list("hello")
    assert threading.get_ident() not in threads
    check_agreement(chat)


def test_async_errors_arrive(tokenizer: Tokenizer) -> None:
    chat = make_chat(tokenizer, FakeSession([spelled(tokenizer, "a" * 99)], n_ctx=50))
    shown: list[str] = []

    async def main() -> None:
        async for piece in chat.astream("x"):
            shown.append(piece)

    with pytest.raises(ContextFull):
        asyncio.run(main())
    assert "".join(shown) == chat.messages[-1]["content"]


@pytest.mark.parametrize("times", [1, 3])
def test_a_cancelled_task_leaves_a_usable_chat(tokenizer: Tokenizer, times: int) -> None:
    """Cancelled while a step is under way in its thread: the task ends only when the thread has left the session."""
    session = FakeSession([spelled(tokenizer, "abab")])
    chat = make_chat(tokenizer, session)
    inside, left = threading.Event(), threading.Event()
    steps = iter([False, True])

    def slow() -> None:
        if next(steps, False):
            inside.set()
            assert session.cancelled.wait(20)
            left.set()
            raise Cancelled("cancelled")

    session.on_append = slow
    shown: list[str] = []

    async def consume() -> None:
        async for piece in chat.astream("x"):
            shown.append(piece)

    async def main() -> None:
        task = asyncio.create_task(consume())
        while not inside.is_set():
            await asyncio.sleep(0.001)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert left.is_set()

    asyncio.run(main())
    assert "".join(shown) == chat.messages[-1]["content"] == "ab"
    session.on_append = lambda: None
    assert chat.send("y") == "abab"
    check_agreement(chat)


def test_an_async_stream_that_is_left_keeps_the_answer(tokenizer: Tokenizer) -> None:
    chat = make_chat(tokenizer, FakeSession([spelled(tokenizer, "abab")]))

    async def main() -> None:
        stream = chat.astream("x")
        async for _ in stream:
            break
        await stream.aclose()

    asyncio.run(main())
    assert chat.messages[-1]["content"] == "a"
    assert chat.send("y") == "abab"


# ---- the whole conversation -----------------------------------------------------------------------------------------


def test_reset_and_system(tokenizer: Tokenizer) -> None:
    chat = make_chat(tokenizer, FakeSession([[5]]), system="the")
    chat.send("x")
    chat.reset()
    assert (chat.system, len(chat.messages), chat.ids, chat.session.tokens, chat.stats().turns) == ("the", 1, [], [], 0)
    chat.reset(system="he")
    assert chat.system == "he"
    chat.reset(system="")
    assert chat.system is None
    assert chat.messages == []
    chat.send("x")
    assert "system" not in tokenizer.decode(chat.ids)


def test_messages_are_a_copy(tokenizer: Tokenizer) -> None:
    chat = make_chat(tokenizer, FakeSession([[5]]), system="the")
    chat.messages[0]["content"] = "other"
    chat.messages.clear()
    assert chat.system == "the"


def test_a_refusing_template_changes_nothing(tokenizer: Tokenizer) -> None:
    chat = make_chat(tokenizer, FakeSession([[5]]), "{{ raise_exception('no') }}")
    with pytest.raises(TemplateError, match="refuses these messages: no"):
        chat.send("x")
    assert chat.messages == []


def test_stats_add_up(tokenizer: Tokenizer) -> None:
    session = FakeSession([spelled(tokenizer, "hello"), spelled(tokenizer, "ab")])
    chat = make_chat(tokenizer, session)
    chat.send("x")
    chat.send("y")
    stats = chat.stats()
    assert stats.turns == 2
    assert stats.total.prompt_tokens == sum(map(len, session.prefills))
    assert (stats.total.answer_tokens, stats.last.answer_tokens, stats.last.finish) == (9, 3, "eog")
    n = session.n_tokens
    assert (stats.n_tokens, stats.n_ctx, stats.kv, stats.kv_bytes) == (n, 1000, "tiers", 2**20)
    assert stats.kv_bits_now == 8 * (1024 + 512 + 256 + 2**21 + 64) / (1024 * n)  # rings are no part of it
    assert stats.kv_f16_bytes == 2 * 1024 * n + 128
    assert stats.total.answer_seconds >= stats.last.answer_seconds > 0
    text = str(stats)
    assert f"context  {n} of 1000 tokens ({n / 10:.0f} %): 1 sinks, {n - 1} in full precision, 0 packed" in text
    assert "KV       tiers, keys 3, window 64\n" in text
    assert f"512.0 KiB of 1.0 MiB in use, f16 would take {(2 * 1024 * n + 128) / 1024:.1f} KiB;" in text
    assert f"; {stats.kv_bits_now:.3g} bits per value now, 2.5 bits per value at 1000 tokens\n" in text
    assert (
        "codes 1.0 KiB, scales 0.5 KiB, masks 0.2 KiB, full precision 2.0 MiB, indices 0.1 KiB, rings 0.1 KiB" in text
    )
    assert "tokens/s" in text
    assert "note" not in text


def test_close(tokenizer: Tokenizer) -> None:
    session = FakeSession([[5]])
    with make_chat(tokenizer, session) as chat:
        chat.send("x")
    assert session.closed
    assert len(chat.messages) == 2


# ---- other answers, other ways --------------------------------------------------------------------------------------


def test_another_answer_takes_the_place_of_the_last(tokenizer: Tokenizer) -> None:
    session = FakeSession([spelled(tokenizer, text) for text in ("one", "two", "three")])
    chat = make_chat(tokenizer, session)
    chat.send("a")
    chat.send("b")
    prompt = session.tokens[: session.taken[-2]]
    assert "".join(chat.regenerate()) == "three"
    assert [m["content"] for m in chat.messages] == ["a", "one", "b", "three"]
    assert session.rewound == [len(prompt)]  # nothing of the prompt is read again
    assert session.tokens[: len(prompt)] == prompt
    check_agreement(chat)


def test_an_earlier_message_is_changed(tokenizer: Tokenizer) -> None:
    session = FakeSession([spelled(tokenizer, text) for text in ("one", "two", "three", "four")])
    chat = make_chat(tokenizer, session, system="the")
    for text in ("a", "b", "ab"):
        chat.send(text)
    assert "".join(chat.edit("ba", turns=2)) == "four"
    assert [m["content"] for m in chat.messages] == ["the", "a", "one", "ba", "four"]
    assert chat.undo() == "ba"
    assert chat.undo() == "a"
    assert chat.messages == [{"role": "system", "content": "the"}]
    with pytest.raises(ArgumentError, match="has 0"):
        chat.undo()
    for call in (chat.regenerate, lambda: chat.edit("x"), lambda: chat.undo(0), lambda: chat.undo(-1)):
        with pytest.raises(ArgumentError, match="cannot go back"):
            call()


def test_the_old_answer_stays_until_a_new_one_begins(tokenizer: Tokenizer) -> None:
    session = FakeSession([spelled(tokenizer, "one"), spelled(tokenizer, "two")])
    chat = make_chat(tokenizer, session)
    chat.send("a")
    before = (chat.messages, chat.ids)

    def fail() -> None:
        raise Cancelled("cancelled")

    session.on_prefill = fail
    with pytest.raises(Cancelled):
        list(chat.regenerate())
    assert (chat.messages, chat.ids) == before
    session.on_prefill = lambda: None
    pieces = chat.regenerate()
    next(pieces)
    pieces.close()
    assert chat.messages[-1]["content"] == "t"
    check_agreement(chat)


def test_branches_know_nothing_of_each_other(tokenizer: Tokenizer) -> None:
    session = FakeSession([spelled(tokenizer, text) for text in ("one", "two", "three")])
    chat = make_chat(tokenizer, session)
    chat.send("a")
    other = chat.fork()
    assert other.messages == chat.messages
    assert other.sampler.state == chat.sampler.state
    other.send("b")
    assert "".join(other.regenerate()) == "three"
    assert [m["content"] for m in chat.messages] == ["a", "one"]
    assert other.undo(2) == "a"
    assert chat.undo() == "a"
    stream = chat.stream("x")
    next(stream)
    with pytest.raises(SessionBusy):
        chat.fork()
    with pytest.raises(SessionBusy):
        chat.undo()
    stream.close()


def test_a_system_message_is_read_once(tokenizer: Tokenizer) -> None:
    session = FakeSession([[5]])
    chat = make_chat(tokenizer, session, system="hello the hello")
    n = chat.prepare()
    assert n == len(session.tokens) == session.checkpoints[0] > 10
    assert chat.prepare() == 0
    begun = list(session.tokens)
    chat.send("x")
    assert session.tokens[:n] == begun
    assert chat.prepare() == 0
    chat.reset()
    assert session.rewound == [n]
    assert session.tokens == begun
    chat.send("y")
    chat.reset(system="another")
    assert session.tokens == []
    assert make_chat(tokenizer, FakeSession([[5]])).prepare() == 0


# ---- a real model ---------------------------------------------------------------------------------------------------


def test_several_turns_with_a_real_model(smollm2_path: Path, tmp_path: Path) -> None:
    greedy = SamplingOptions(temperature=0)
    with Model(smollm2_path, threads=2) as model, model.chat("Be brief.", n_ctx=512, sampling=greedy) as chat:
        assert "Paris" in chat.send("What is the capital of France?", max_tokens=40)
        stream = chat.stream("Tell me a long story.")
        partial = next(stream) + next(stream)
        stream.close()
        assert chat.messages[-1]["content"] == partial
        chat.send("Thanks. <|im_end|>", max_tokens=8)
        check_agreement(chat)
        whole = "".join(s.text for s in chat.template.render(chat.messages, add_generation_prompt=False))
        assert whole.startswith(model.tokenizer.decode(chat.ids))
        assert chat.stats().retokenized_turns == 0
        # A conversation that was saved and read again goes on as the first one does.
        chat.save(tmp_path / "talk.json")
        answer = chat.send("And the capital of Italy?", max_tokens=12)
        with model.chat(n_ctx=512, sampling=greedy) as other:
            other.load(tmp_path / "talk.json")
            assert other.send("And the capital of Italy?", max_tokens=12) == answer


def test_going_back_with_a_real_model(smollm2_path: Path, tmp_path: Path) -> None:
    """Regenerating evaluates nothing; a saved session goes on at once; answers are the same."""
    greedy = SamplingOptions(temperature=0)
    with Model(smollm2_path, threads=2) as model:
        system = "You are a careful assistant. " * 20
        with model.chat(system, n_ctx=1024, sampling=greedy) as chat:
            n_system = chat.prepare()
            assert n_system > 80
            first = chat.send("What is the capital of France?", max_tokens=20)
            assert chat.stats().last.prompt_tokens < 30
            assert "".join(chat.regenerate(max_tokens=20)) == first
            assert chat.stats().last.prompt_tokens == 0
            chat.send("And of Italy?", max_tokens=10)
            chat.save_session(tmp_path / "talk.session")
            branch = chat.fork()
            went_on = chat.send("And of Spain?", max_tokens=10)
            assert branch.send("And of Spain?", max_tokens=10) == went_on
            branch.close()
            chat.reset()
            assert chat.send("What is the capital of France?", max_tokens=20) == first
            assert chat.stats().total.prompt_tokens < 30
        with model.chat(n_ctx=1024, sampling=greedy) as again:
            again.load(tmp_path / "talk.session")
            assert again.system == system
            assert again.send("And of Spain?", max_tokens=10) == went_on
            assert again.stats().last.prompt_tokens < 30
            assert again.undo(3) == "What is the capital of France?"
            before = again.messages
            (tmp_path / "cut.session").write_bytes((tmp_path / "talk.session").read_bytes()[:-5])
            with pytest.raises(ModelFormatError, match="were written; the file is damaged"):
                again.load(tmp_path / "cut.session")
            assert again.messages == before
        with model.chat(n_ctx=512, sampling=greedy) as other:
            with pytest.raises(ArgumentError, match=r"with a context of 1024 tokens, this chat has a context of 512 t"):
                other.load(tmp_path / "talk.session")
            other.session.save(tmp_path / "bare.session")
            with pytest.raises(FileError, match="without a conversation"):
                other.load(tmp_path / "bare.session")
            for change in (
                {"messages": [1]},
                {"ids": ["x"]},
                {"ids": [10**30]},
                {"ids": [-1]},
                {"sampler": "x"},
                {"answer": None},
            ):
                extra = {"messages": [], "ids": [], "rendered": None, "answer": "", "sampler": 1, **change}
                data = json.dumps({"format": "pylogquant-chat-session-1", **extra}).encode()
                other.session.save(tmp_path / "odd.session", data)
                with pytest.raises(FileError, match="damaged"):
                    other.load(tmp_path / "odd.session")
        with (
            model.chat(n_ctx=1024, kv="q8_0", on_full="drop") as dropping,
            pytest.raises(ArgumentError, match="on-full stop, this chat has KV cache q8_0 and --on-full drop; start"),
        ):
            dropping.load(tmp_path / "talk.session")


def test_a_base_model_completes_and_needs_a_template_to_chat(gemma_path: Path) -> None:
    with Model(gemma_path, threads=2) as model:
        with pytest.raises(TemplateError, match="--template"):
            model.chat()
        with model.session(64) as session:
            ids = model.tokenizer.encode("One, two, three, four,")
            sampler = Sampler(SamplingOptions(temperature=0))
            text = "".join(p.text for p in generate(session, model.tokenizer, sampler, ids, max_tokens=5))
            assert text.startswith(" five, six")
        with model.chat(n_ctx=256, sampling=SamplingOptions(temperature=0), template="gemma") as chat:
            chat.send("Hi", max_tokens=3)
            assert chat.ids[:2] == [model.tokenizer.bos_id, model.tokenizer.id("<start_of_turn>")]
            check_agreement(chat)


def test_an_answer_that_begins_late_goes_on_from_what_there_is(tokenizer: Tokenizer) -> None:
    """stream() begins when its first piece is asked for: the conversation is the one of that moment."""
    chat = make_chat(tokenizer, FakeSession([[5], [6], [7], [8]]))
    chat.send("first")
    late = chat.stream("third")
    chat.send("second")
    list(late)
    assert [message["content"] for message in chat.messages if message["role"] == "user"] == [
        "first",
        "second",
        "third",
    ]
    late = chat.stream("alone")
    chat.reset()
    list(late)
    assert [message["content"] for message in chat.messages if message["role"] == "user"] == ["alone"]


@pytest.mark.parametrize("ask", [Chat.regenerate, lambda chat: chat.edit("other")])
def test_another_answer_to_what_is_gone_is_refused(tokenizer: Tokenizer, ask: Callable[[Chat], Iterator[str]]) -> None:
    chat = make_chat(tokenizer, FakeSession([[5], [6]]))
    chat.send("first")
    late = ask(chat)
    chat.reset()
    with pytest.raises(ArgumentError, match="has changed since"):
        next(late)
    assert chat.messages == []
    assert chat.send("second") is not None
