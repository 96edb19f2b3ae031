"""Generates a text with one session: evaluates the prompt, then samples token after token."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

from pylogquant.errors import ArgumentError, ContextFull
from pylogquant.text_stream import Piece, TextStream

if TYPE_CHECKING:
    from pylogquant.session import Sampler, Session
    from pylogquant.tokenizer import Tokenizer

__all__ = ["Piece", "generate", "pieces", "read_prompt"]


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

    prompt_ids: the whole history; what the session holds of it is kept. None: go on from the session's logits.
    max_tokens: None = until the model ends or the context is full. stop, skip_special, loop_guard: as in TextStream.
    top: how many alternatives each piece lists.
    Errors: ContextFull, after a piece with everything held back; ArgumentError, Cancelled, SessionBusy."""
    text = TextStream(tokenizer, max_tokens=max_tokens, stop=stop, skip_special=skip_special, loop_guard=loop_guard)
    if prompt_ids is not None:
        read_prompt(session, prompt_ids)
    return pieces(session, sampler, text, top=top)


def pieces(session: Session, sampler: Sampler, text: TextStream, *, top: int = 0) -> Generator[Piece, None, None]:
    """Continues a text from the session's logits to where the text ends; yields its pieces. Arguments and errors as in
    generate()."""
    while True:
        choice = session.sample(sampler, top)
        yield text.push(choice.token, choice.logprob, choice.top)
        if text.finish:
            return
        try:
            session.append(choice.token)
        except ContextFull as cause:
            yield text.flush()
            raise context_full(session) from cause


def context_full(session: Session) -> ContextFull:
    """The error that ends a text when the context is full."""
    return ContextFull(f"the context of {session.n_limit} tokens is full; the text ends here.")


def read_prompt(session: Session, ids: Sequence[int]) -> int:
    """Makes ids the session's history; returns how many of them it held already."""
    check_prompt(session, ids)
    n_kept = keep_prompt(session, ids)
    n_held = session.n_tokens
    if n_held < len(ids):
        session.prefill(ids[n_held:])
    return n_kept


def check_prompt(session: Session, ids: Sequence[int]) -> None:
    """Raises ArgumentError for an empty prompt, ContextFull for one that leaves no room for an answer."""
    if len(ids) == 0:  # of arrays, too
        raise ArgumentError("the prompt is empty; give at least one token")
    if len(ids) >= session.n_limit:
        raise ContextFull(
            f"the prompt has {len(ids)} tokens, but the context holds {session.n_limit}, the answer included."
        )


def keep_prompt(session: Session, ids: Sequence[int]) -> int:
    """Drops the session's tokens from the first on that differs from ids; returns how many of ids it held already. If
    it holds all of ids then, it has the logits of the last one, too."""
    if len(ids) in session.checkpoints and session.tokens[: len(ids)] == list(ids):
        return len(ids) - session.rewind(len(ids))
    return session.keep_prefix(ids)
