"""Conversations over a session: a Conversation (messages and ids) and the Session that holds its ids.

For a new turn the session reads what the conversation added; where a template rewrote earlier turns, the session keeps
the common prefix, and stats() says so.

Checkpoints are taken where conversations are taken up again: at the end of a prompt, of a turn, and of the system
message. regenerate(), edit() and reset(), and the turn after undo(), go back to one instead of evaluating text again.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pylogquant._copying import Uncopyable
from pylogquant.chat_stats import ChatStats, TurnStats
from pylogquant.conversation import Conversation, ConversationState, Prompt, check_text
from pylogquant.errors import ArgumentError, Cancelled, ClosedError, FileError, OutOfMemory, SessionBusy
from pylogquant.generation import generate, pieces, read_prompt
from pylogquant.session import Sampler, SamplingOptions, Session
from pylogquant.templates import ChatTemplate, Message
from pylogquant.text_stream import Finish, Piece, TextStream, check_limits
from pylogquant.tokenizer import Tokenizer
from pylogquant.transcripts import check_messages, is_session_file, read_transcript, write_transcript

if TYPE_CHECKING:
    from pylogquant.model import Model

__all__ = ["Chat", "ChatStats", "Finish", "Piece", "TurnStats", "generate"]

_SESSION_FORMAT = "pylogquant-chat-session-1"


class Chat(Uncopyable):
    """A conversation. Made by Model.chat(); owns its session. Used by one thread at a time; close() from any.

    model: kept open as long as the chat. system: the system message, if there is to be one. skip_special: hide control
    tokens that the model writes. Text of a message never becomes a control token; the conversation's ids keep those
    that the model wrote."""

    _instead = "use chat.fork(), or chat.save_session() and load()"

    def __init__(
        self,
        model: Model,
        session: Session,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        sampling: SamplingOptions,
        system: str | None = None,
        *,
        skip_special: bool = True,
        loop_guard: bool = True,
    ) -> None:
        self.model = model
        self.skip_special = skip_special
        self.session = session
        self.tokenizer = tokenizer
        self.template = template
        self.sampler = Sampler(sampling)
        self.loop_guard = loop_guard
        """Whether to end an answer that repeats itself without end; may be changed between two turns."""
        self._turn_lock = threading.Lock()
        self._owner: object | None = None  # the turn in progress, from the first to the last piece of its answer
        self._stopping = self._closed = False
        self._begun: list[int] = []  # ids that prepare() has evaluated
        self._start_over(Conversation(tokenizer, template, system))

    def _start_over(self, conversation: Conversation) -> None:
        """Replaces the conversation and resets the figures. No call stands between the assignments, because Python
        handles Ctrl-C at calls and could stop half way."""
        stats = TurnStats()
        self.conversation = conversation
        self._turns = self._retokenized = 0
        self._total = self._last = stats

    # ---- looking

    @property
    def messages(self) -> list[Message]:
        """A copy of the conversation; every turn in it is complete, the last answer perhaps cut short."""
        return self.conversation.messages

    @property
    def system(self) -> str | None:
        """The system message."""
        return self.conversation.system

    @property
    def ids(self) -> list[int]:
        """Ids of the conversation so far. The session holds them all, or all but the newest few."""
        return self.conversation.ids

    def stats(self) -> ChatStats:
        """Counts of tokens, speeds and memory."""
        info = self.session.info()
        return ChatStats(
            turns=self._turns,
            total=self._total,
            last=self._last,
            retokenized_turns=self._retokenized,
            n_tokens=info.n_tokens,
            n_ctx=info.n_ctx,
            kv=info.kv,
            kv_options=info.kv_options,
            kv_usage=info.kv_usage,
            kv_bits=info.kv_bits,
            kv_bits_now=info.kv_bits_now,
            kv_used_bytes=info.kv_used_bytes,
            kv_f16_bytes=info.kv_f16_bytes,
            kv_bytes=info.kv_reserved_bytes,
        )

    # ---- a turn

    def send(self, text: str, *, max_tokens: int | None = None, stop: Sequence[str] = ()) -> str:
        """The whole answer to a message. Raises as stream()."""
        return "".join(self.stream(text, max_tokens=max_tokens, stop=stop))

    def stream(
        self, text: str, *, max_tokens: int | None = None, stop: Sequence[str] = ()
    ) -> Generator[str, None, None]:
        """The answer to a message, in pieces of complete characters, as they are generated.

        max_tokens: None = until the model ends its answer (or loop_guard does). stop: texts that end the answer and are
        not part of it.
        Closing the generator, Ctrl-C or any error after the first token keep the answer so far in the conversation;
        before it, the turn is as if it had never been asked for.
        Errors: ContextFull (before the answer, or after all of it that was generated), TemplateError, ArgumentError,
        Cancelled (also: another thread closed the chat), SessionBusy (an earlier answer is neither finished nor
        closed)."""
        return self._stream(None, text, max_tokens, stop)

    def regenerate(self, *, max_tokens: int | None = None, stop: Sequence[str] = ()) -> Generator[str, None, None]:
        """Another answer to the last message, in place of the one there is, which stays until the new one begins.

        The sampler draws on: at temperature 0 the answer is the same. Raises ArgumentError where there is no turn yet,
        and as stream()."""
        return self._stream(self.conversation.before(1), self.conversation.question(1), max_tokens, stop)

    def edit(
        self, text: str, *, turns: int = 1, max_tokens: int | None = None, stop: Sequence[str] = ()
    ) -> Generator[str, None, None]:
        """The answer to a message that takes the place of an earlier one, `turns` turns back (1: the last), and of all
        that came after it, once the answer begins. Raises as regenerate()."""
        return self._stream(self.conversation.before(turns), text, max_tokens, stop)

    def undo(self, turns: int = 1) -> str:
        """Forgets the last turns; returns the message that the first of them asked. Raises ArgumentError where there
        are not as many, SessionBusy."""
        self._check_idle()
        return self.conversation.undo(turns)

    def _stream(
        self, start: ConversationState | None, text: str, max_tokens: int | None, stop: Sequence[str]
    ) -> Generator[str, None, None]:
        check_limits(max_tokens, stop)
        check_text(text)
        self._check_idle()
        return self._turn(start, text, max_tokens, tuple(stop))

    async def astream(
        self, text: str, *, max_tokens: int | None = None, stop: Sequence[str] = ()
    ) -> AsyncGenerator[str, None]:
        """stream() for async code; each step runs in a worker thread. Cancelling the task ends the answer within one
        token or one chunk of the prompt, and keeps it so far."""
        pieces = self.stream(text, max_tokens=max_tokens, stop=stop)
        loop = asyncio.get_running_loop()
        try:
            while True:
                step = loop.run_in_executor(None, next, pieces, None)
                try:
                    piece = await asyncio.shield(step)
                except asyncio.CancelledError:
                    await self._await_stop(step)
                    raise
                if piece is None:
                    return
                yield piece
        finally:
            pieces.close()

    async def _await_stop(self, step: asyncio.Future[str | None]) -> None:
        """Waits for the worker thread to leave the session; it must not be left behind in it."""
        self._stopping = True
        while not step.done():
            self.session.cancel()
            try:
                await asyncio.wait([step], timeout=0.05)
            except asyncio.CancelledError:
                continue  # a second request to stop what is stopping already
        step.exception()  # marks it as retrieved; the task ends with CancelledError anyway

    def _check_idle(self) -> None:
        self._check_open()
        if self._owner is not None:
            raise SessionBusy("an answer is still being streamed; finish or close it first")

    def _check_open(self) -> None:
        if self._closed:
            raise ClosedError("this chat is closed; make a new one with model.chat()")

    def _begin(self, owner: object) -> None:
        """Takes the turn."""
        with self._turn_lock:
            self._check_idle()
            self._owner, self._stopping = owner, False

    def _turn(
        self, start: ConversationState | None, text: str, max_tokens: int | None, stop: Sequence[str]
    ) -> Generator[str, None, None]:
        owner = object()
        stats = TurnStats()
        prompt: Prompt | None = None
        answer = TextStream(
            self.tokenizer,
            max_tokens=max_tokens,
            stop=stop,
            skip_special=self.skip_special,
            loop_guard=self.loop_guard,
        )
        try:  # begins before the turn is taken, so that an interrupt right after that still gives it back
            self._begin(owner)
            prompt = self.conversation.ask(text, start)
            started = time.perf_counter()
            n_kept = read_prompt(self.session, prompt.ids)
            stats = replace(
                stats,
                prompt_tokens=len(prompt.ids) - n_kept,
                prompt_seconds=time.perf_counter() - started,
                retokenized=prompt.retokenized,
            )
            self._checkpoint()
            answering = pieces(self.session, self.sampler, answer)
            while not self._stopping:
                started = time.perf_counter()
                piece = next(answering, None)
                stats = replace(stats, answer_seconds=stats.answer_seconds + time.perf_counter() - started)
                if piece is None:
                    break
                if piece.text:
                    yield piece.text
        except ClosedError as cause:
            if not self._closed:
                raise
            raise Cancelled("the chat was closed while it answered") from cause
        finally:
            try:
                if prompt is not None and (answer.ids or answer.finish is not None):
                    self._keep(prompt, answer, stats)
                    self._checkpoint()
            finally:
                if self._owner is owner:
                    self._owner = None

    def _checkpoint(self) -> None:
        # A checkpoint that does not fit is no error: going back is slower without it. Nor is a session that was closed
        # meanwhile.
        with suppress(OutOfMemory, ClosedError):
            self.session.checkpoint()

    def _keep(self, prompt: Prompt, answer: TextStream, stats: TurnStats) -> None:
        """Adds a turn, whole or cut short, to the conversation."""
        stats = replace(stats, answer_tokens=len(answer.ids) + (answer.finish == "eog"), finish=answer.finish)
        self.conversation.answer(prompt, answer)
        self._turns += 1
        self._retokenized += stats.retokenized
        self._last = stats
        self._total = TurnStats(
            self._total.prompt_tokens + stats.prompt_tokens,
            self._total.prompt_seconds + stats.prompt_seconds,
            self._total.answer_tokens + stats.answer_tokens,
            self._total.answer_seconds + stats.answer_seconds,
        )

    # ---- the conversation as a whole

    def prepare(self) -> int:
        """Evaluates the ids that every conversation with this system message begins with, before anything is asked: the
        first answer comes sooner, and reset() and all forks go on from there. Returns how many tokens it evaluated, 0
        where there is nothing to do. Raises as stream()."""
        self._check_idle()
        if self._begun or self.ids or len(self.conversation.state.messages) > 1:
            return 0
        begun = self.conversation.system_ids()
        if not begun:
            return 0
        self._begun = begun
        n_kept = read_prompt(self.session, begun)
        self._checkpoint()
        return len(begun) - n_kept

    def fork(self) -> Chat:
        """A copy of the conversation that goes its own way; either may be closed first.

        The sessions share memory (Session.fork()). Raises SessionBusy, OutOfMemory."""
        self._check_idle()
        other = Chat(
            self.model,
            self.session.fork(),
            self.tokenizer,
            self.template,
            self.sampler.options,
            skip_special=self.skip_special,
            loop_guard=self.loop_guard,
        )
        other.sampler.state = self.sampler.state
        other.conversation, other._begun = self.conversation.fork(), list(self._begun)
        return other

    def reset(self, system: str | None = None) -> None:
        """Starts over. system: a new system message, "" for none; None keeps the one there is."""
        self._check_idle()
        conversation = Conversation(self.tokenizer, self.template, self.system if system is None else system)
        n_begun = len(self._begun)
        is_same = conversation.system == self.system
        if is_same and n_begun and self.session.tokens[:n_begun] == self._begun:
            self.session.rewind(n_begun)
        else:
            self.session.reset()
            self._begun = []
        self._start_over(conversation)

    def save(self, path: str | Path) -> None:
        """Writes the messages to a JSON file, whole or not at all. Errors: FileError."""
        write_transcript(Path(path), self.conversation.state.messages)

    def save_session(self, path: str | Path) -> None:
        """Writes the conversation with its session, so that load() goes on at once, without reading it again.

        Such a file belongs to the model file and KV options that it was made with. Errors: FileError, SessionBusy."""
        self._check_idle()
        state = vars(self.conversation.state)
        data = {"format": _SESSION_FORMAT, **state, "sampler": self.sampler.state}
        self.session.save(path, json.dumps(data).encode())

    def load(self, path: str | Path) -> None:
        """Goes on from a file that save() or save_session() wrote. save() has written messages only, so that the next
        turn evaluates them all. On an error nothing changes.

        Errors: FileError (cannot be read, or is not such a file); ArgumentError (a session of another model, or of
        other KV options than this chat's); ModelFormatError (a damaged session)."""
        self._check_idle()
        if is_session_file(Path(path)):
            self._load_session(Path(path))
            return
        conversation = self._of(ConversationState(tuple(read_transcript(Path(path)))))
        self.session.reset()
        self._begun = []
        self._start_over(conversation)

    def _of(self, state: ConversationState) -> Conversation:
        return Conversation.of(self.tokenizer, self.template, state)

    def _load_session(self, path: Path) -> None:
        session = self.model.load_session(path)
        try:
            data = _read_extra(path, session.extra, session.n_vocab)
            here, there = _terms(self.session), _terms(session)
            if here != there:
                apart = [pair for pair in zip(here, there, strict=True) if pair[0] != pair[1]]
                mine, its = (" and ".join(terms) for terms in zip(*apart, strict=True))
                raise ArgumentError(f"{path} was saved with {its}, this chat has {mine}; start one with the former")
            messages = check_messages(path, data["messages"])
            state = ConversationState(tuple(messages), tuple(data["ids"]), data["rendered"], data["answer"])
            conversation = self._of(state)
            self.sampler.state = data["sampler"]
        except BaseException:
            session.close()
            raise
        before, self.session, self._begun = self.session, session, []
        self._start_over(conversation)
        before.close()
        if self._closed:  # by another thread, meanwhile
            session.close()

    def close(self) -> None:
        """Closes the session; may be called twice, from any thread at any time. The messages stay, with as much of an
        answer as there was; where another thread streams it, that one gets Cancelled."""
        self._closed = True
        self.session.close()

    def __enter__(self) -> Chat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _terms(session: Session) -> tuple[str, str, str]:
    """The settings that a saved session must share with this chat's, in words, so that load() changes none silently."""
    info = session.info()
    full = "--on-full drop" if session.n_limit > info.n_ctx else "--on-full stop"
    return f"KV cache {info.kv_options}", f"a context of {info.n_ctx} tokens", full


def _read_extra(path: Path, extra: bytes, n_vocab: int) -> dict[str, Any]:
    """Reads what save_session() stored with a session. The file's checksum proves that it is as somebody wrote it, not
    that it makes sense: types, ids and dependencies are checked here."""
    kinds: dict[str, type | tuple[type, ...]]
    kinds = {"messages": list, "ids": list, "rendered": (str, type(None)), "answer": str, "sampler": int}
    try:
        data = json.loads(extra)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict) or data.get("format") != _SESSION_FORMAT:
        raise FileError(f"{path} is a saved session without a conversation; Model.load_session() reads it")
    fits = all(isinstance(data.get(name), kind) for name, kind in kinds.items())
    fits = fits and all(type(token) is int and 0 <= token < n_vocab for token in data["ids"])
    if not fits or (data["rendered"] is not None and not data["ids"]):
        raise FileError(f"{path} is damaged: its conversation does not add up")
    return data
