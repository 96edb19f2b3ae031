"""A session's logits turned into text, piece by piece."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pylogquant.errors import ArgumentError, ContextFull
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
        read_prompt(session, prompt_ids)
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
            raise ContextFull(f"the context of {session.n_limit} tokens is full; the text ends here.") from cause


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
