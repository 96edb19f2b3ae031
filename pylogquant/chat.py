"""Conversations: messages to ids, ids to an answer, and what is kept of both.

generate() turns a session's logits into text, piece by piece. Chat holds a conversation over a session of its own. The
ids of earlier turns are kept as they were read and generated: for a new turn only what the template adds to the earlier
text is tokenized. Where a template rewrites earlier turns (as some do with reasoning), the whole conversation is
tokenized again, the session keeps the common prefix, and stats() says so.

The token that ends an answer is not kept: the template writes its own at the start of the next turn. Nor need the last
token of an answer be in the session yet; the next turn evaluates what is missing.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import tempfile
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from pylogquant.errors import ArgumentError, ContextFull, FileError, SessionBusy
from pylogquant.session import Sampler, SamplingOptions, Session, TokenProb
from pylogquant.templates import ChatTemplate, Message, Segment
from pylogquant.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pylogquant.kv import KvOptions, KvUsage
    from pylogquant.model import Model

__all__ = ["Chat", "ChatStats", "Finish", "Piece", "TurnStats", "generate"]

Finish = Literal["eog", "stop", "length", "context"]

_FORMAT, _VERSION = "pylogquant-chat", 1
_MAX_FILE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Piece:
    """One step of a generation. The texts of all pieces, joined, are the whole text."""

    text: str
    """Complete characters that can be shown; often empty (inside a character, or at what may become a stop string)."""
    token: int | None
    """The id that was sampled; None only where finish is "context"."""
    logprob: float
    """Its natural log probability; NaN where session.sample() was not asked for one."""
    top: Sequence[TokenProb]
    """The most probable tokens at this step, best first, as many as asked for."""
    finish: Finish | None
    """In the last piece, why it is the last: the model ended the text, a stop string, max_tokens, context full."""


def generate(
    session: Session,
    tokenizer: Tokenizer,
    sampler: Sampler,
    prompt_ids: Sequence[int] | None = None,
    *,
    max_tokens: int | None = None,
    stop: Sequence[str] = (),
    top: int = 0,
    skip_special: bool = True,
) -> Generator[Piece, None, None]:
    """Samples token after token; the one that was yielded last is evaluated when the next is asked for.

    prompt_ids: the whole history, of which the session keeps what it has; None: go on from the session's logits.
    max_tokens: None = until the model ends or the context is full. stop: texts that end it and are not yielded.
    top: how many alternatives each piece lists. skip_special: control tokens that the model writes yield no text.
    Errors: ContextFull, after a piece with everything held back; ArgumentError, Cancelled, SessionBusy."""
    check_limits(max_tokens, stop)
    if prompt_ids is not None:
        _read_prompt(session, prompt_ids)
    return _generate(session, tokenizer, sampler, max_tokens, stop, top, skip_special)


def _generate(
    session: Session,
    tokenizer: Tokenizer,
    sampler: Sampler,
    max_tokens: int | None,
    stop: Sequence[str],
    top: int,
    skip_special: bool,
) -> Generator[Piece, None, None]:
    decoder = tokenizer.stream(skip_special=skip_special)
    held = ""  # decoded, but perhaps the beginning of a stop string
    n_tokens = 0
    while True:
        choice = session.sample(sampler, top)
        n_tokens += 1
        finish: Finish | None = None
        if choice.token in tokenizer.eog_ids:
            finish = "eog"
        else:
            held += decoder.push(choice.token)
            at = min((found for text in stop if (found := held.find(text)) >= 0), default=-1)
            if at >= 0:
                finish, held = "stop", held[:at]
            elif n_tokens == max_tokens:
                finish = "length"
        if finish in ("eog", "length"):
            held += decoder.flush()
            # What completes a character late can complete a stop string no more: U+FFFD is in none that matters.
        n_ready = len(held) if finish else len(held) - _overlap(held, stop)
        ready, held = held[:n_ready], held[n_ready:]
        yield Piece(ready, choice.token, choice.logprob, choice.top, finish)
        if finish:
            return
        try:
            session.append(choice.token)
        except ContextFull as cause:
            yield Piece(held + decoder.flush(), None, math.nan, (), "context")
            raise ContextFull(f"the context of {session.n_ctx} tokens is full; the text ends here.") from cause


def check_limits(max_tokens: int | None, stop: Sequence[str]) -> None:
    """Raises ArgumentError where generate() would."""
    if max_tokens is not None and max_tokens < 1:
        raise ArgumentError(f"max_tokens must be at least 1, not {max_tokens}; None is no limit")
    if isinstance(stop, str) or not all(isinstance(text, str) and text for text in stop):
        raise ArgumentError("stop must be a sequence of strings, none of them empty")


def _overlap(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of text that a stop string begins with."""
    longest = 0
    for candidate in stop:
        for n in range(min(len(candidate) - 1, len(text)), longest, -1):
            if text.endswith(candidate[:n]):
                longest = n
                break
    return longest


def _read_prompt(session: Session, ids: Sequence[int]) -> int:
    """Makes ids the session's history; returns how many were there already."""
    if not ids:
        raise ArgumentError("the prompt is empty; give at least one token")
    if len(ids) >= session.n_ctx:
        raise ContextFull(
            f"the prompt has {len(ids)} tokens, but the context holds {session.n_ctx}, the answer included."
        )
    n_kept = session.keep_prefix(ids)
    session.prefill(ids[n_kept:])
    return n_kept


@dataclass(frozen=True)
class TurnStats:
    """What one turn took."""

    prompt_tokens: int = 0
    """Tokens that were evaluated before the answer; the rest of the conversation was in the session."""
    prompt_seconds: float = 0.0
    answer_tokens: int = 0
    answer_seconds: float = 0.0
    """Without the time that the caller took between two pieces."""
    finish: Finish | None = None
    """None for an answer that was interrupted."""
    retokenized: bool = False
    """The template rewrote earlier turns, so that the whole conversation was tokenized again."""


@dataclass(frozen=True)
class ChatStats:
    """A conversation in numbers. str() is meant for people."""

    turns: int
    total: TurnStats
    """Sums over all turns since the chat was made or reset; finish is None."""
    last: TurnStats
    retokenized_turns: int
    n_tokens: int
    """Tokens in the session now, of n_ctx."""
    n_ctx: int
    kv: str
    kv_options: KvOptions
    """Every setting that the KV cache type has."""
    kv_usage: KvUsage
    """Which tokens are stored how, and the bytes in parts."""
    kv_bits: float
    """Bits per K or V element of layers that see the whole context, when that is full."""
    kv_bits_now: float
    """The same with the tokens there are now; 0 without tokens."""
    kv_used_bytes: int
    kv_f16_bytes: int
    """What the same tokens would take in f16."""
    kv_bytes: int
    """Reserved for KV."""

    def __str__(self) -> str:
        usage = self.kv_usage
        used = f"{_size(self.kv_used_bytes)} of {_size(self.kv_bytes)} in use"
        bits = f"{self.kv_bits:.3g} bits per value at {self.n_ctx} tokens"
        if self.n_tokens:
            used += f", f16 would take {_size(self.kv_f16_bytes)}"
            bits = f"{self.kv_bits_now:.3g} bits per value now, {bits}"
        parts = {
            "codes": usage.code_bytes,
            "scales": usage.scale_bytes,
            "masks": usage.mask_bytes,
            "full precision": usage.full_bytes,
            "indices": usage.index_bytes,
            "rings": usage.ring_bytes,
        }
        lines = [
            f"turns    {self.turns}",
            f"prompts  {_speed(self.total.prompt_tokens, self.total.prompt_seconds)};"
            f" last turn {_speed(self.last.prompt_tokens, self.last.prompt_seconds)}",
            f"answers  {_speed(self.total.answer_tokens, self.total.answer_seconds)};"
            f" last turn {_speed(self.last.answer_tokens, self.last.answer_seconds)}",
            f"context  {self.n_tokens} of {self.n_ctx} tokens ({100 * self.n_tokens / self.n_ctx:.0f} %):"
            f" {usage.n_sinks} sinks, {usage.n_full} in full precision, {usage.n_packed} packed"
            + (f", {usage.n_dropped} dropped" if usage.n_dropped else ""),
            f"KV       {self.kv_options}",
            f"         {used}; {bits}",
            f"         {', '.join(f'{name} {_size(n_bytes)}' for name, n_bytes in parts.items())}",
        ]
        if self.retokenized_turns:
            lines.append(
                f"note     the template rewrites earlier turns: tokenized again in {self.retokenized_turns} of them"
            )
        return "\n".join(lines)


def _speed(n_tokens: int, seconds: float) -> str:
    return f"{n_tokens} tokens, {n_tokens / seconds:.1f} tokens/s" if seconds > 0 else f"{n_tokens} tokens"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.1f} MiB" if n_bytes >= 2**20 else f"{n_bytes / 1024:.1f} KiB"


class Chat:
    """A conversation. Made by Model.chat(); owns its session. Used by one thread at a time.

    model: kept open as long as the chat. system: the first message, where there is to be one."""

    def __init__(
        self,
        model: Model,
        session: Session,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        sampling: SamplingOptions,
        system: str | None = None,
    ) -> None:
        self.model = model
        self.session = session
        self.tokenizer = tokenizer
        self.template = template
        self.sampler = Sampler(sampling)
        self._streaming = False
        self._stopping = False
        self._forget(_system_messages(system))

    def _forget(self, messages: list[Message]) -> None:
        self._messages = messages
        self._ids: list[int] = []
        self._rendered: str | None = None  # the text of the last prompt, to which _answer and the next turn are added
        self._answer = ""
        self._turns = 0
        self._total = self._last = TurnStats()
        self._retokenized = 0

    # ---- looking

    @property
    def messages(self) -> list[Message]:
        """A copy of the conversation; every turn in it is complete, the last answer perhaps cut short."""
        return [{**message} for message in self._messages]

    @property
    def system(self) -> str | None:
        """The system message."""
        if self._messages and self._messages[0]["role"] == "system":
            return self._messages[0]["content"]
        return None

    @property
    def ids(self) -> list[int]:
        """Ids of the conversation so far. The session holds them all, or all but the newest few."""
        return list(self._ids)

    def stats(self) -> ChatStats:
        """Tokens, speeds and memory."""
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
            kv_bytes=info.kv_global_bytes + info.kv_sliding_bytes,
        )

    # ---- a turn

    def send(self, text: str, *, max_tokens: int | None = None, stop: Sequence[str] = ()) -> str:
        """The whole answer to a message. Raises as stream()."""
        return "".join(self.stream(text, max_tokens=max_tokens, stop=stop))

    def stream(
        self, text: str, *, max_tokens: int | None = None, stop: Sequence[str] = ()
    ) -> Generator[str, None, None]:
        """The answer to a message, in pieces of complete characters, as they are generated.

        max_tokens: None = until the model ends its answer. stop: texts that end the answer and are not part of it.
        Closing the generator, Ctrl-C or any error after the first token keep the answer so far in the conversation;
        before it, the turn is as if it had never been asked for.
        Errors: ContextFull (before the answer, or after all of it that was generated), TemplateError, ArgumentError,
        Cancelled, SessionBusy (an earlier answer is neither finished nor closed)."""
        check_limits(max_tokens, stop)
        _check_text(text)
        self._check_idle()
        return self._turn(text, max_tokens, tuple(stop))

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
        step.exception()  # whatever it is, the task ends with CancelledError

    def _check_idle(self) -> None:
        if self._streaming:
            raise SessionBusy("an answer is still being streamed; finish or close it first")

    def _turn(self, text: str, max_tokens: int | None, stop: Sequence[str]) -> Generator[str, None, None]:
        self._check_idle()
        self._streaming, self._stopping = True, False
        messages: list[Message] = [*self._messages, {"role": "user", "content": text}]
        answer: list[int] = []
        shown = ""
        stats = TurnStats()
        prompt: list[int] = []
        rendered = ""
        try:
            segments = self.template.render(messages)
            rendered = "".join(segment.text for segment in segments)
            prompt, retokenized = self._prompt_ids(segments, rendered)
            started = time.perf_counter()
            n_kept = _read_prompt(self.session, prompt)
            stats = replace(
                stats,
                prompt_tokens=len(prompt) - n_kept,
                prompt_seconds=time.perf_counter() - started,
                retokenized=retokenized,
            )
            pieces = generate(self.session, self.tokenizer, self.sampler, max_tokens=max_tokens, stop=stop)
            while not self._stopping:
                started = time.perf_counter()
                piece = next(pieces, None)
                stats = replace(stats, answer_seconds=stats.answer_seconds + time.perf_counter() - started)
                if piece is None:
                    break
                if piece.token is not None:
                    stats = replace(stats, answer_tokens=stats.answer_tokens + 1)
                    if piece.finish != "eog":
                        answer.append(piece.token)
                stats = replace(stats, finish=piece.finish)
                shown += piece.text
                if piece.text:
                    yield piece.text
        finally:
            self._streaming = False
            if answer or stats.finish is not None:
                self._keep(messages, rendered, prompt, answer, shown, stats)

    def _prompt_ids(self, segments: list[Segment], rendered: str) -> tuple[list[int], bool]:
        """Ids of the conversation with its new message, and whether earlier turns had to be tokenized again."""
        if self._rendered is not None:
            rest = _after_answer(rendered, self._rendered, self._answer)
            if rest is not None:
                tail = self.tokenizer.encode_segments(_cut(segments, rest), after=self._ids[-1])
                return self._ids + tail, False
        return self.tokenizer.encode_segments(segments, eos=False), self._rendered is not None

    def _keep(
        self,
        messages: list[Message],
        rendered: str,
        prompt: list[int],
        answer: list[int],
        shown: str,
        stats: TurnStats,
    ) -> None:
        """Adds a turn, whole or cut short, to the conversation."""
        if stats.finish == "stop":
            # The stop string's tokens were generated, but are no part of the answer.
            answer = self._ids_of_text(answer, shown, after=prompt[-1])
        elif stats.finish is None:
            # What was held back when the answer was interrupted was generated all the same.
            shown = _text_of(self.tokenizer, answer)
        self._messages = [*messages, {"role": "assistant", "content": shown}]
        self._ids = prompt + answer
        self._rendered, self._answer = rendered, shown
        self._turns += 1
        self._retokenized += stats.retokenized
        self._last = stats
        self._total = TurnStats(
            self._total.prompt_tokens + stats.prompt_tokens,
            self._total.prompt_seconds + stats.prompt_seconds,
            self._total.answer_tokens + stats.answer_tokens,
            self._total.answer_seconds + stats.answer_seconds,
        )

    def _ids_of_text(self, ids: list[int], text: str, after: int) -> list[int]:
        """The ids that spell the text, as far as they go; what is left of a token that the text cuts is tokenized."""
        decoder = self.tokenizer.stream(skip_special=True)
        spelled = ""
        n_ids = n_characters = 0
        for i, token_id in enumerate(ids):
            spelled += decoder.push(token_id)
            if not text.startswith(spelled):
                break
            if not decoder.pending:
                n_ids, n_characters = i + 1, len(spelled)
        kept = ids[:n_ids]
        if n_characters == len(text):
            return kept
        return kept + self.tokenizer.encode_segments([(text[n_characters:], True)], after=(kept or [after])[-1])

    # ---- the conversation as a whole

    def reset(self, system: str | None = None) -> None:
        """Starts over. system: a new system message, "" for none; None keeps the one there is."""
        self._check_idle()
        messages = _system_messages(self.system if system is None else system)
        self.session.reset()
        self._forget(messages)

    def save(self, path: str | Path) -> None:
        """Writes the messages to a JSON file, whole or not at all. Errors: FileError."""
        data = {"format": _FORMAT, "version": _VERSION, "messages": self._messages}
        _write_atomically(Path(path), json.dumps(data, ensure_ascii=False, indent=1).encode() + b"\n")

    def load(self, path: str | Path) -> None:
        """Goes on from a file that save() wrote; the next turn evaluates its messages. On an error nothing changes.

        Errors: FileError (cannot be read, or is not such a file)."""
        self._check_idle()
        messages = _read_transcript(Path(path))
        self.session.reset()
        self._forget(messages)

    def close(self) -> None:
        """Closes the session; may be called twice. The messages stay."""
        self.session.close()

    def __enter__(self) -> Chat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _system_messages(system: str | None) -> list[Message]:
    if not system:
        return []
    _check_text(system)
    return [{"role": "system", "content": system}]


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ArgumentError("the message has a lone surrogate, which UTF-8 cannot hold; replace it first") from None


def _text_of(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The whole characters that ids spell."""
    decoder = tokenizer.stream(skip_special=True)
    return "".join(map(decoder.push, ids))


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


def _write_atomically(path: Path, data: bytes) -> None:
    try:
        target = Path(os.path.realpath(path))
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name[:100]}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, target)
        except BaseException:
            os.unlink(name)
            raise
    except (OSError, ValueError) as cause:
        reason = getattr(cause, "strerror", None) or str(cause)
        raise FileError(f"cannot write {path}: {reason}") from cause


def _read_transcript(path: Path) -> list[Message]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as cause:
        reason = getattr(cause, "strerror", None) or str(cause)
        raise FileError(f"cannot read {path}: {reason}") from cause
    if len(data) > _MAX_FILE_BYTES:
        raise FileError(f"{path} is larger than {_MAX_FILE_BYTES // 2**20} MiB; a saved conversation is not")
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as cause:
        raise FileError(f"{path} is not a saved conversation: it is not JSON") from cause
    if not isinstance(found, dict) or found.get("format") != _FORMAT:
        raise FileError(f"{path} is not a saved conversation: it has no format {_FORMAT!r}")
    if found.get("version") != _VERSION:
        raise FileError(f"{path} has version {found.get('version')!r}; this release reads version {_VERSION}")
    return _check_transcript(path, found.get("messages"))


def _check_transcript(path: Path, found: object) -> list[Message]:
    if not isinstance(found, list):
        raise FileError(f"{path} is damaged: it has no list of messages")
    messages: list[Message] = []
    for i, item in enumerate(found):
        n_turns = len(messages) - (bool(messages) and messages[0]["role"] == "system")
        expected = ["system", "user"] if i == 0 else ["assistant" if n_turns % 2 else "user"]
        if not isinstance(item, dict) or set(item) != {"role", "content"} or not isinstance(item["content"], str):
            raise FileError(f"{path} is damaged: message {i} must have a role and a content, both text")
        if item["role"] not in expected:
            raise FileError(f"{path} is damaged: message {i} must be of role {' or '.join(expected)}")
        try:
            _check_text(item["content"])
        except ArgumentError as cause:
            raise FileError(f"{path} is damaged: message {i} holds a lone surrogate") from cause
        messages.append({"role": item["role"], "content": item["content"]})
    if messages and messages[-1]["role"] == "user":
        raise FileError(f"{path} is damaged: its last message has no answer")
    return messages
