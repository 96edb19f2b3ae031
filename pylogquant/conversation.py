"""Conversations without a session: turns messages into ids, and the ids of an answer into a message.

The ids of earlier turns are kept as they were read and generated: for a new turn only what the template adds to the
earlier text is tokenized. Where a template rewrites earlier turns (as some do with reasoning), the whole conversation
is tokenized again, and the prompt says so.

The token that ends an answer is not kept: the template writes its own at the start of the next turn. A session may also
lack the last token of an answer; the next turn evaluates it.
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
    """Ids of all messages; empty where the next prompt has to make them from the messages."""
    rendered: str | None = None
    """The text of the last prompt, which answer and the next turn follow; None before the first."""
    answer: str = ""


@dataclass(frozen=True)
class Prompt:
    """A message that waits for its answer. Made by Conversation.ask(), which leaves the conversation unchanged."""

    ids: list[int]
    """The whole history, from the first token to where the answer begins."""
    n_kept: int
    """How many ids at the start are unchanged ids of earlier turns; 0 without earlier turns, or where all ids are
    new."""
    retokenized: bool
    """The template rewrote earlier turns, so that the whole conversation was tokenized again."""
    start: ConversationState
    """The state that the message follows."""
    messages: tuple[Message, ...]
    rendered: str


class Conversation:
    """Messages and their ids, turn by turn. Pure: it evaluates nothing, and any number of sessions may hold its ids.

    A turn is prompt = ask(text), then answer(prompt, stream) with what was generated from prompt.ids; until then the
    conversation is as it was. system: the system message, if there is to be one. Used by one thread at a time.

    Raises ArgumentError for text that UTF-8 cannot hold."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate, system: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.template = template
        if system:
            check_text(system)
        messages: tuple[Message, ...] = ({"role": "system", "content": system},) if system else ()
        # The state before each turn, to which undo() goes back, and the present one. One assignment changes them all.
        self._states: tuple[ConversationState, ...] = (ConversationState(messages),)

    @classmethod
    def of(cls, tokenizer: Tokenizer, template: ChatTemplate, state: ConversationState) -> Conversation:
        """A conversation that goes on from the complete turns in state."""
        found, messages = cls(tokenizer, template), state.messages
        starts = [i for i, message in enumerate(messages) if message["role"] == "user"]
        found._states = (*(ConversationState(messages[:i]) for i in starts), state)
        return found

    # ---- looking

    @property
    def state(self) -> ConversationState:
        """The conversation after its last turn."""
        return self._states[-1]

    @property
    def messages(self) -> list[Message]:
        """A copy of the messages. Every turn in it is complete; the last answer may be cut short."""
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
        """The state before the last `turns` turns. Raises ArgumentError where there are not as many."""
        n = len(self._states) - 1
        if not 1 <= turns <= n:
            raise ArgumentError(f"cannot go back {turns} turn{'s' * (turns != 1)}: the conversation has {n}")
        return self._states[-1 - turns]

    def question(self, turns: int) -> str:
        """The user's message `turns` turns ago (1: the last one). Raises ArgumentError where there are not as many."""
        return self.state.messages[len(self.before(turns).messages)]["content"]

    # ---- a turn

    def ask(self, text: str, start: ConversationState | None = None) -> Prompt:
        """The prompt for an answer to a message. It begins with start's ids, unless the template rewrites turns.

        start: the state that the message follows, from before(), so that its answer replaces all that came after; None:
        the present state. Raises TemplateError, ArgumentError (start no longer belongs to this conversation)."""
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
        """A copy that goes its own way."""
        other = Conversation(self.tokenizer, self.template)
        other._states = self._states
        return other

    def system_ids(self) -> list[int]:
        """The ids that every conversation with this system message begins with; empty without a system message, and
        where the template makes beginnings differ. Raises TemplateError."""
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
        """The index of a state. Raises ArgumentError where the conversation no longer has it."""
        for i, other in enumerate(self._states):
            if other is state:
                return i
        raise ArgumentError("the conversation has changed since this answer was asked for; ask again")

    def _kept(self, text: TextStream, after: int) -> tuple[list[int], str]:
        """The ids and the text (without control tokens) that are kept of an answer. Text that the stream held back when
        the answer was interrupted is kept, because it was generated; a stop string and its tokens are not."""
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
        if rest:  # the start of a token that the stop string cuts
            kept = kept + self.tokenizer.encode_segments([(rest, True)], after=(kept or [after])[-1])
        return kept, spelling.shown(0, at)


def check_text(text: str) -> None:
    """Raises ArgumentError for a message that is no text, or that UTF-8 cannot hold."""
    if not isinstance(text, str):
        raise ArgumentError(f"a message must be text, not {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ArgumentError("the message has a lone surrogate, which UTF-8 cannot hold; replace it first") from None


def _after_answer(rendered: str, earlier: str, answer: str) -> int | None:
    """The index in rendered behind the last answer, if the text up to there is unchanged; else None."""
    if not rendered.startswith(earlier):
        return None
    # Templates trim answers, but the kept ids are those that were generated, with their white space.
    for spelled in (answer, answer.rstrip(), answer.lstrip(), answer.strip()):
        if rendered.startswith(spelled, len(earlier)):
            return len(earlier) + len(spelled)
    return None


def _cut(segments: Sequence[Segment], start: int) -> list[Segment]:
    """Drops the first `start` characters of the segments."""
    rest = []
    for segment in segments:
        if start < len(segment.text):
            rest.append(Segment(segment.text[start:], segment.plain))
        start = max(start - len(segment.text), 0)
    return rest
