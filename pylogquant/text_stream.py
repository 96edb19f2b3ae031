"""Turns generated tokens into text, without a session: decides what each token shows and where the text ends."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pylogquant.errors import ArgumentError
from pylogquant.loops import LoopGuard

if TYPE_CHECKING:
    from pylogquant.session import TokenProb
    from pylogquant.tokenizer import Tokenizer

__all__ = ["Finish", "Piece", "Spelling", "TextStream", "check_limits", "find_stop"]

Finish = Literal["eog", "stop", "length", "context", "loop", "cancelled", "error"]
"""Why a text ended: the model ended it, a stop string, max_tokens, a full context, endless repetition; in a Batch also
Generation.cancel() and Generation.error."""


@dataclass(frozen=True)
class Piece:
    """One step of a generation. The texts of all pieces, joined, are the whole text."""

    text: str
    """Complete characters to show; often empty (inside a character, or where a stop string may have begun)."""
    token: int | None
    """The sampled id; None in a last piece without one (finish "context", "cancelled", "error")."""
    logprob: float
    """Its natural log probability; NaN where session.sample() was not asked for one."""
    top: Sequence[TokenProb]
    """The most probable tokens at this step, best first, as many as asked for."""
    finish: Finish | None
    """In the last piece, why it is the last."""


class TextStream:
    """Turns sampled tokens into pieces of text: completes characters, holds back text that may become a stop string,
    hides control tokens, and decides where the text ends. It needs no session and evaluates nothing.

    max_tokens: None = no limit; a character that is incomplete by then is left out. stop: strings that end the text and
    are not part of it; they are also found in the names of control tokens, shown or not. skip_special: hide control
    tokens. loop_guard: end a text that repeats itself without end, after some hundred repeated tokens, which are all
    yielded. Raises ArgumentError. Used by one thread at a time."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        skip_special: bool = True,
        loop_guard: bool = False,
    ) -> None:
        check_limits(max_tokens, stop)
        self.stop = tuple(stop)
        self.ids: list[int] = []
        """The text's tokens so far, those of a stop string included, but without the token with which the model ends
        it."""
        self.finish: Finish | None = None
        """Why it has ended; None while it goes on."""
        self._eog_ids = tokenizer.eog_ids
        self._max_tokens = max_tokens
        self._held = Spelling(tokenizer, skip_special=skip_special)  # may hold a stop string's start
        self._guard = LoopGuard() if loop_guard else None

    def push(self, token: int, logprob: float = math.nan, top: Sequence[TokenProb] = ()) -> Piece:
        """Adds the text's next token. logprob, top: its figures, for the piece.

        Raises ArgumentError where the text has ended: after a piece with a finish there is no other."""
        self._check_goes_on()
        held, at = self._held, -1
        if token in self._eog_ids:
            self.finish = "eog"
            held.flush()  # this can only add U+FFFD, which no useful stop string contains: no need to search again
        else:
            self.ids.append(token)
            held.push(token)
            at = find_stop(held.text, self.stop)
            if at >= 0:
                self.finish = "stop"
            elif self._guard is not None and self._guard.push(token):
                self.finish = "loop"
            elif len(self.ids) == self._max_tokens:
                self.finish = "length"
        n_held = len(held.text)
        n_ready = n_held if self.finish else n_held - _overlap(held.text, self.stop)
        return Piece(held.take(at if at >= 0 else n_ready), token, logprob, top, self.finish)

    def flush(self, finish: Finish = "context") -> Piece:
        """Ends the text because no other token comes; returns a piece without a token, with the text that was held
        back. Raises ArgumentError where the text has ended."""
        self._check_goes_on()
        self.finish = finish
        return Piece(self._held.take(len(self._held.text)), None, math.nan, (), finish)

    def _check_goes_on(self) -> None:
        if self.finish is not None:
            raise ArgumentError(f"the text has ended (finish {self.finish!r}); start another TextStream")


class Spelling:
    """The text of tokens, control tokens included, and which characters are shown. Stop strings may be in all of it."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._hidden: frozenset[int] = tokenizer.control_ids if skip_special else frozenset()
        self._decoder = tokenizer.stream(skip_special=skip_special)
        self.text = ""
        """The text that was not taken yet."""
        self._is_shown = ""  # "1" or "0" for each character of text

    def push(self, token: int) -> None:
        """Adds the characters that this token completes."""
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
        """The characters of text[start:end] that are shown."""
        text, is_shown = self.text[start:end], self._is_shown[start:end]
        if "0" not in is_shown:
            return text
        return "".join(character for character, flag in zip(text, is_shown, strict=True) if flag == "1")

    def take(self, n: int) -> str:
        """Removes the first n characters; returns those of them that are shown."""
        taken = self.shown(0, n)
        self.text, self._is_shown = self.text[n:], self._is_shown[n:]
        return taken


def find_stop(text: str, stop: Sequence[str]) -> int:
    """The index of the first stop string in text; -1 without any."""
    return min((found for wanted in stop if (found := text.find(wanted)) >= 0), default=-1)


def check_limits(max_tokens: int | None, stop: Sequence[str]) -> None:
    """Raises ArgumentError for values of these arguments that generate() would refuse."""
    if max_tokens is not None and not (hasattr(max_tokens, "__index__") and max_tokens >= 1):
        raise ArgumentError(f"max_tokens must be an integer of at least 1, not {max_tokens!r}; None is no limit")
    is_text = isinstance(stop, (str, bytes))
    if is_text or not isinstance(stop, Collection) or not all(isinstance(text, str) and text for text in stop):
        raise ArgumentError("stop must be a sequence of strings, none of them empty")
    for text in stop:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ArgumentError(f"the stop string {text!r} has a lone surrogate, which no text can hold") from None


def _overlap(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of text that is the beginning of a stop string."""
    longest = 0
    for candidate in stop:
        for n in range(min(len(candidate) - 1, len(text)), longest, -1):
            if text.endswith(candidate[:n]):
                longest = n
                break
    return longest
