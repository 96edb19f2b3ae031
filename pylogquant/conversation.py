"""Conversations without a session: messages to ids, ids of an answer to a message, and what of them stays.

The ids of earlier turns are kept as they were read and generated: for a new turn only what the template adds to the
earlier text is tokenized. Where a template rewrites earlier turns (as some do with reasoning), the whole conversation
is tokenized again, and the prompt says so.

The token that ends an answer is not kept: the template writes its own at the start of the next turn. Nor need the last
token of an answer be in a session yet; the next turn evaluates what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pylogquant.errors import ArgumentError
from pylogquant.templates import ChatTemplate, Message, Segment
from pylogquant.text_stream import Spelling, TextStream, find_stop

if TYPE_CHECKING:
    from pylogquant.tokenizer import Tokenizer

__all__ = ["Conversation", "ConversationState", "Prompt"]


@dataclass(frozen=True)
class ConversationState:
    """A conversation between two turns."""

    messages: tuple[Message, ...]
    ids: tuple[int, ...] = ()
    """None where they have to be made from the messages."""
    rendered: str | None = None
    """The text of the last prompt, to which answer and the next turn are added; None before the first."""
    answer: str = ""


@dataclass(frozen=True)
class Prompt:
    """A message that waits for its answer. Made by Conversation.ask(); the conversation changes with its answer."""

    ids: list[int]
    """The whole history, from the first token to where the answer begins."""
    n_kept: int
    """How many of the first ids are those of the turns before, as they were; 0 where there are none, or all are
    new."""
    retokenized: bool
    """The template rewrote earlier turns, so that the whole conversation was tokenized again."""
    start: ConversationState
    """What the message follows."""
    messages: tuple[Message, ...]
    rendered: str


class Conversation:
    """Messages and their ids, turn by turn. Pure: it evaluates nothing, and any number of sessions may hold its ids.

    A turn is prompt = ask(text), then answer(prompt, stream) with what was generated from prompt.ids; until then the
    conversation is as it was. system: the first message, where there is to be one. Used by one thread at a time.

    Raises ArgumentError for text that UTF-8 cannot hold."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, system: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.template = template
        if system:
            check_text(system)
        messages: tuple[Message, ...] = ({"role": "system", "content": system},) if system else ()
        # What each turn began with, so that it can be taken back, and what there is now: changed by one assignment.
        self._states: tuple[ConversationState, ...] = (ConversationState(messages),)

    @classmethod
    def of(cls, tokenizer: Tokenizer, template: ChatTemplate, state: ConversationState) -> Conversation:
        """One that goes on from complete turns, as state has them."""
        found, messages = cls(tokenizer, template), state.messages
        starts = [i for i, message in enumerate(messages) if message["role"] == "user"]
        found._states = (*(ConversationState(messages[:i]) for i in starts), state)
        return found

    # ---- looking

    @property
    def state(self) -> ConversationState:
        """What there is now."""
        return self._states[-1]

    @property
    def messages(self) -> list[Message]:
        """A copy; every turn in it is complete, the last answer perhaps cut short."""
        return [{**message} for message in self.state.messages]

    @property
    def system(self) -> str | None:
        """The system message."""
        messages = self.state.messages
        return messages[0]["content"] if messages and messages[0]["role"] == "system" else None

    @property
    def ids(self) -> list[int]:
        """Ids of the conversation so far."""
        return list(self.state.ids)

    def before(self, turns: int) -> ConversationState:
        """What the last `turns` turns began with. Raises ArgumentError where there are not as many."""
        n = len(self._states) - 1
        if not 1 <= turns <= n:
            raise ArgumentError(f"cannot go back {turns} turn{'s' * (turns != 1)}: the conversation has {n}")
        return self._states[-1 - turns]

    def question(self, turns: int) -> str:
        """What was asked `turns` turns ago (1: the last one). Raises ArgumentError where there are not as many."""
        return self.state.messages[len(self.before(turns).messages)]["content"]

    # ---- a turn

    def ask(self, text: str, start: ConversationState | None = None) -> Prompt:
        """The prompt for an answer to a message; of start's ids none changes, unless the template rewrites turns.

        start: what the message follows, as before() gives it, so that its answer replaces all that came after; None:
        what there is now. Raises TemplateError, ArgumentError (start is not of this conversation any more)."""
        check_text(text)
        start = self.state if start is None else start
        self._find(start)
        messages: tuple[Message, ...] = (*start.messages, {"role": "user", "content": text})
        segments = self.template.render(list(messages))
        rendered = "".join(segment.text for segment in segments)
        rest = None if start.rendered is None else _after_answer(rendered, start.rendered, start.answer)
        if rest is None:
            ids = self.tokenizer.encode_segments(segments, eos=False)
            return Prompt(ids, 0, start.rendered is not None, start, messages, rendered)
        tail = self.tokenizer.encode_segments(_cut(segments, rest), after=start.ids[-1])
        return Prompt([*start.ids, *tail], len(start.ids), False, start, messages, rendered)

    def answer(self, prompt: Prompt, text: TextStream) -> str:
        """Adds a turn: the message of the prompt and what was generated from it, whole or cut short; returns the
        answer's text, which has no control tokens. Raises ArgumentError where the conversation has changed since."""
        n = self._find(prompt.start)
        ids, answer = self._kept(text, after=prompt.ids[-1])
        messages: tuple[Message, ...] = (*prompt.messages, {"role": "assistant", "content": answer})
        now = ConversationState(messages, (*prompt.ids, *ids), prompt.rendered, answer)
        self._states = (*self._states[: n + 1], now)
        return answer

    def undo(self, turns: int = 1) -> str:
        """Forgets the last turns; returns the message that the first of them asked. Raises as question()."""
        text = self.question(turns)
        self._states = self._states[:-turns]
        return text

    def fork(self) -> Conversation:
        """The same once more, to go on in another way."""
        other = Conversation(self.tokenizer, self.template)
        other._states = self._states
        return other

    def system_ids(self) -> list[int]:
        """The ids that every conversation with this system message begins with; none without one, and where templates
        do not begin alike. Raises TemplateError."""
        if self.system is None:
            return []
        messages = list(self.state.messages[:1])
        first, second = (
            self.tokenizer.encode_segments(
                self.template.render([*messages, {"role": "user", "content": text}]), eos=False
            )
            for text in ("a", "b")
        )
        n = next((i for i, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), 0)
        return first[: max(n - 1, 0)]  # the last one may become another token before another message

    def _find(self, state: ConversationState) -> int:
        """Its place among the states."""
        for i, other in enumerate(self._states):
            if other is state:
                return i
        raise ArgumentError("the conversation has changed since this answer was asked for; ask again")

    def _kept(self, text: TextStream, after: int) -> tuple[list[int], str]:
        """What is kept of an answer: its ids, and its text without control tokens. What was held back when it was
        interrupted was generated all the same; a stop string's tokens were, but are no part of it."""
        spelling = Spelling(self.tokenizer, skip_special=True)
        ends = [0]  # where each id's text ends; -1 inside a character
        for token in text.ids:
            spelling.push(token)
            ends.append(-1 if spelling.pending else len(spelling.text))
        if text.finish == "eog":
            spelling.flush()
        if text.finish != "stop":
            return list(text.ids), spelling.shown(0, len(spelling.text))
        at = find_stop(spelling.text, text.stop)
        n_ids = max(n for n, end in enumerate(ends) if 0 <= end <= at)
        kept, rest = text.ids[:n_ids], spelling.shown(ends[n_ids], at)
        if rest:  # of a token that the stop string cuts
            kept = kept + self.tokenizer.encode_segments([(rest, True)], after=(kept or [after])[-1])
        return kept, spelling.shown(0, at)


def check_text(text: str) -> None:
    """Raises ArgumentError for a message that UTF-8 cannot hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ArgumentError("the message has a lone surrogate, which UTF-8 cannot hold; replace it first") from None


def _after_answer(rendered: str, earlier: str, answer: str) -> int | None:
    """Where the text behind the last answer begins, if the text before it is what it was; else None."""
    if not rendered.startswith(earlier):
        return None
    # Templates trim answers; what was generated stays as it was.
    for spelled in (answer, answer.rstrip(), answer.lstrip(), answer.strip()):
        if rendered.startswith(spelled, len(earlier)):
            return len(earlier) + len(spelled)
    return None


def _cut(segments: Sequence[Segment], start: int) -> list[Segment]:
    """Segments without their first start characters."""
    rest = []
    for segment in segments:
        if start < len(segment.text):
            rest.append(Segment(segment.text[start:], segment.plain))
        start = max(start - len(segment.text), 0)
    return rest
