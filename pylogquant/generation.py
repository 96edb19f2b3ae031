"""A session's logits turned into text, piece by piece."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pylogquant.errors import ArgumentError, ContextFull
from pylogquant.loops import LoopGuard
from pylogquant.session import Sampler, Session, TokenProb
from pylogquant.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pylogquant.chat_stats import Finish

__all__ = ["Piece", "check_limits", "generate", "read_prompt"]


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
    """In the last piece, why it is the last: the model ended the text, a stop string, max_tokens, context full, a text
    that repeats itself without end."""


class Spelling:
    """What tokens spell, control tokens included, and what of it is shown: stop strings are looked for in all of it."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._hidden: frozenset[int] = tokenizer.control_ids if skip_special else frozenset()
        self._decoder = tokenizer.stream(skip_special=skip_special)
        self.text = ""
        """All that was spelled and not taken yet."""
        self._is_shown = ""  # "1" or "0" for each of its characters

    def push(self, token: int) -> None:
        """Adds what this token completes."""
        if token in self._hidden:
            self._add(self._tokenizer.token(token), "0")
        else:
            self._add(self._decoder.push(token), "1")

    def flush(self) -> None:
        """Adds U+FFFD for a character that was begun and is not complete."""
        self._add(self._decoder.flush(), "1")

    def _add(self, text: str, is_shown: str) -> None:
        self.text += text
        self._is_shown += is_shown * len(text)

    @property
    def pending(self) -> bool:
        """True inside a character."""
        return self._decoder.pending

    def shown(self, start: int, end: int) -> str:
        """What is shown of text[start:end]."""
        text, is_shown = self.text[start:end], self._is_shown[start:end]
        if "0" not in is_shown:
            return text
        return "".join(character for character, flag in zip(text, is_shown, strict=True) if flag == "1")

    def take(self, n: int) -> str:
        """Removes the first n characters; returns what is shown of them."""
        taken = self.shown(0, n)
        self.text, self._is_shown = self.text[n:], self._is_shown[n:]
        return taken


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
    loop_guard: bool = False,
) -> Generator[Piece, None, None]:
    """Samples token after token; the one that was yielded last is evaluated when the next is asked for.

    prompt_ids: the whole history, of which the session keeps what it has; None: go on from the session's logits.
    max_tokens: None = until the model ends or the context is full; a character of which only a part came by then is
    left out. stop: texts that end it and are not yielded; control tokens count by their names, shown or not.
    top: how many alternatives each piece lists. skip_special: control tokens that the model writes yield no text.
    loop_guard: ends a text that repeats itself without end, after some hundred tokens of it, all of which are yielded.
    Errors: ContextFull, after a piece with everything held back; ArgumentError, Cancelled, SessionBusy."""
    check_limits(max_tokens, stop)
    if prompt_ids is not None:
        read_prompt(session, prompt_ids)
    guard = LoopGuard() if loop_guard else None
    return _generate(session, tokenizer, sampler, max_tokens, stop, top, skip_special, guard)


def _generate(
    session: Session,
    tokenizer: Tokenizer,
    sampler: Sampler,
    max_tokens: int | None,
    stop: Sequence[str],
    top: int,
    skip_special: bool,
    guard: LoopGuard | None,
) -> Generator[Piece, None, None]:
    held = Spelling(tokenizer, skip_special=skip_special)  # perhaps the beginning of a stop string
    n_tokens = 0
    while True:
        choice = session.sample(sampler, top)
        n_tokens += 1
        finish: Finish | None = None
        at = -1
        if choice.token in tokenizer.eog_ids:
            finish = "eog"
            held.flush()  # what completes a character late can complete a stop string no more
        else:
            held.push(choice.token)
            at = find_stop(held.text, stop)
            if at >= 0:
                finish = "stop"
            elif guard is not None and guard.push(choice.token):
                finish = "loop"
            elif n_tokens == max_tokens:
                finish = "length"
        n_held = len(held.text)
        ready = held.take(at if at >= 0 else n_held if finish else n_held - _overlap(held.text, stop))
        yield Piece(ready, choice.token, choice.logprob, choice.top, finish)
        if finish:
            return
        try:
            session.append(choice.token)
        except ContextFull as cause:
            yield Piece(held.take(len(held.text)), None, math.nan, (), "context")
            raise ContextFull(f"the context of {session.n_limit} tokens is full; the text ends here.") from cause


def find_stop(text: str, stop: Sequence[str]) -> int:
    """Where the first of the stop strings in text begins; -1 without any."""
    return min((found for wanted in stop if (found := text.find(wanted)) >= 0), default=-1)


def check_limits(max_tokens: int | None, stop: Sequence[str]) -> None:
    """Raises ArgumentError where generate() would."""
    if max_tokens is not None and max_tokens < 1:
        raise ArgumentError(f"max_tokens must be at least 1, not {max_tokens}; None is no limit")
    if isinstance(stop, str) or not all(isinstance(text, str) and text for text in stop):
        raise ArgumentError("stop must be a sequence of strings, none of them empty")
    for text in stop:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ArgumentError(f"the stop string {text!r} has a lone surrogate, which no text can hold") from None


def _overlap(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of text that a stop string begins with."""
    longest = 0
    for candidate in stop:
        for n in range(min(len(candidate) - 1, len(text)), longest, -1):
            if text.endswith(candidate[:n]):
                longest = n
                break
    return longest


def read_prompt(session: Session, ids: Sequence[int]) -> int:
    """Makes ids the session's history; returns how many were there already."""
    if not ids:
        raise ArgumentError("the prompt is empty; give at least one token")
    if len(ids) >= session.n_limit:
        raise ContextFull(
            f"the prompt has {len(ids)} tokens, but the context holds {session.n_limit}, the answer included."
        )
    if len(ids) in session.checkpoints and session.tokens[: len(ids)] == list(ids):
        return len(ids) - session.rewind(len(ids))  # its logits are there as well
    n_kept = session.keep_prefix(ids)
    session.prefill(ids[n_kept:])
    return n_kept
