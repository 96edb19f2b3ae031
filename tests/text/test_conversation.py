"""Conversation: messages to ids and back, without a session."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_session import make_tokenizer, spelled

from pylogquant import ArgumentError, Conversation, TemplateError, TextStream, Tokenizer
from pylogquant.conversation import ConversationState, Prompt
from pylogquant.templates import BUILTIN_TEMPLATES, ChatTemplate, Message

TEMPLATES = Path(__file__).parents[1] / "data" / "templates"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("conversation"))


def make(tokenizer: Tokenizer, source: str = BUILTIN_TEMPLATES["chatml"], system: str | None = None) -> Conversation:
    template = ChatTemplate(
        source, bos_token="<|im_start|>", eos_token="<|im_end|>", control_tokens=tokenizer.control_tokens
    )
    return Conversation(tokenizer, template, system)


def said(tokenizer: Tokenizer, text: str, *, stop: tuple[str, ...] = (), ends: bool = True) -> TextStream:
    """What a model generated."""
    stream = TextStream(tokenizer, stop=stop)
    for token in spelled(tokenizer, text):
        stream.push(token)
        if stream.finish:
            return stream
    if ends:
        stream.push(2)
    return stream


def turn(conversation: Conversation, question: str, answer: str) -> Prompt:
    prompt = conversation.ask(question)
    assert conversation.answer(prompt, said(conversation.tokenizer, answer)) == answer
    return prompt


def test_a_turn(tokenizer: Tokenizer) -> None:
    conversation = make(tokenizer, system="the")
    prompt = conversation.ask("ab")
    assert tokenizer.decode(prompt.ids).endswith("user\nab<|im_end|>\n<|im_start|>assistant\n")
    assert (prompt.n_kept, prompt.retokenized) == (0, False)
    assert conversation.messages == [{"role": "system", "content": "the"}], "an answer makes the turn"
    assert conversation.answer(prompt, said(tokenizer, "hello")) == "hello"
    assert [message["role"] for message in conversation.messages] == ["system", "user", "assistant"]
    assert conversation.ids == [*prompt.ids, *spelled(tokenizer, "hello")]
    # The next prompt keeps all of these ids and adds the template's end of the answer.
    second = conversation.ask("ba")
    assert second.n_kept == len(conversation.ids)
    assert second.ids[: second.n_kept] == conversation.ids
    assert tokenizer.decode(second.ids[second.n_kept :]).startswith("<|im_end|>\n<|im_start|>user\nba")


def test_a_template_that_rewrites_turns_has_all_tokenized_again(tokenizer: Tokenizer) -> None:
    conversation = make(tokenizer, (TEMPLATES / "thinking.jinja").read_text())
    turn(conversation, "ab", "hm</think>\n\nhello")
    prompt = conversation.ask("ba")
    assert (prompt.n_kept, prompt.retokenized) == (0, True)
    assert "hm" not in tokenizer.decode(prompt.ids)


def test_an_answer_that_is_cut(tokenizer: Tokenizer) -> None:
    conversation = make(tokenizer)
    conversation.answer(conversation.ask("x"), said(tokenizer, "ab<end>", stop=("<end>",)))
    assert conversation.messages[-1]["content"] == "ab"
    assert tokenizer.decode(conversation.ids).endswith("assistant\nab")
    held_back = said(tokenizer, "ab<e", stop=("<end>",), ends=False)
    assert conversation.answer(conversation.ask("y"), held_back) == "ab<e"


def test_going_back(tokenizer: Tokenizer) -> None:
    conversation = make(tokenizer, system="the")
    for question in ("one", "two", "three"):
        turn(conversation, question, "hello")
    assert [conversation.question(n) for n in (1, 2, 3)] == ["three", "two", "one"]
    # A message in another's place: nothing changes before it is answered.
    prompt = conversation.ask("other", conversation.before(2))
    assert len(conversation.messages) == 7
    conversation.answer(prompt, said(tokenizer, "he"))
    assert [message["content"] for message in conversation.messages] == ["the", "one", "hello", "other", "he"]
    branch = conversation.fork()
    assert conversation.undo(2) == "one"
    assert conversation.messages == [{"role": "system", "content": "the"}]
    assert len(branch.messages) == 5
    for turns in (0, 1, -1):
        with pytest.raises(ArgumentError, match="cannot go back"):
            conversation.undo(turns)


def test_what_follows_nothing_is_refused(tokenizer: Tokenizer) -> None:
    conversation = make(tokenizer)
    turn(conversation, "one", "hello")
    start = conversation.before(1)
    conversation.undo()
    assert conversation.ask("again", start).messages[-1]["content"] == "again", "that is what there is now"
    prompt = conversation.ask("two")
    conversation.answer(prompt, said(tokenizer, "he"))
    second = conversation.ask("three")
    conversation.undo()
    before = conversation.state
    with pytest.raises(ArgumentError, match="has changed since"):
        conversation.answer(second, said(tokenizer, "he"))
    with pytest.raises(ArgumentError, match="has changed since"):
        conversation.ask("four", second.start)
    assert conversation.state is before


def test_what_is_known_before_a_question(tokenizer: Tokenizer) -> None:
    conversation = make(tokenizer, system="hello the hello")
    begun = conversation.system_ids()
    assert len(begun) > 10
    assert conversation.ask("x").ids[: len(begun)] == begun
    assert make(tokenizer).system_ids() == []


def test_a_conversation_from_messages(tokenizer: Tokenizer) -> None:
    conversation = make(tokenizer, system="the")
    turn(conversation, "ab", "hello")
    messages: tuple[Message, ...] = tuple(conversation.messages)
    read = Conversation.of(tokenizer, conversation.template, ConversationState(messages))
    assert read.ask("ba").ids == tokenizer.encode_segments(
        read.template.render([*messages, {"role": "user", "content": "ba"}]), eos=False
    )
    assert (read.question(1), read.ids) == ("ab", [])
    whole = Conversation.of(tokenizer, conversation.template, conversation.state)
    assert whole.ask("ba") == conversation.ask("ba")


def test_text_that_cannot_be(tokenizer: Tokenizer) -> None:
    conversation = make(tokenizer)
    for call in (lambda: conversation.ask("\ud800"), lambda: make(tokenizer, system="\ud800")):
        with pytest.raises(ArgumentError, match="lone surrogate"):
            call()
    with pytest.raises(TemplateError, match="refuses these messages"):
        make(tokenizer, "{{ raise_exception('no') }}").ask("x")
    assert conversation.messages == []
