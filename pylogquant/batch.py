"""Many texts at once: sessions of one model, generated together by Model.step() (continuous batching).

A step evaluates, in one pass, one token of every text that is being generated and a slice of one prompt: texts whose
prompts are still being read take turns, so that a long prompt delays the others by one chunk at a time. Texts join and
leave between any two steps.

What a step evaluates is planned as (generation, tokens), prompts and generated tokens alike, by _plan() alone. A slice
is what the session evaluates at once, its chunk, so that a prompt leaves the same bits as in Session.prefill().
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from pylogquant._native import lib
from pylogquant.errors import ArgumentError, Cancelled, LogQuantError, OutOfMemory, SessionBusy
from pylogquant.generation import check_prompt, context_full, keep_prompt
from pylogquant.text_stream import Finish, Piece, TextStream

if TYPE_CHECKING:
    from pylogquant.model import Model
    from pylogquant.session import LogitsMode, Sampler, Session

__all__ = ["Batch", "Generation"]


class Generation:
    """One text of a Batch, made by Batch.add(). The batch alone uses its session until is_done. cancel(), is_done and
    error may be used from any thread at any time."""

    def __init__(
        self,
        batch: Batch,
        session: Session,
        sampler: Sampler,
        text: TextStream,
        prompt: list[int] | None,
        top: int,
        *,
        checkpoint: bool,
    ) -> None:
        self.session = session
        self.sampler = sampler
        self.text = text
        self.error: LogQuantError | None = None
        """The exception that ended the text, if its finish is "context" or "error"."""
        self._batch = batch
        self._top = top
        self._takes_checkpoint = checkpoint
        self._prompt = prompt  # None once it was compared with the session's tokens
        self._is_reading = prompt is not None
        self._turn = 0  # of all generations that read a prompt, the one with the smallest number reads next
        # Tokens for the session to evaluate. It held n_before tokens before them, so the first n_tokens - n_before
        # are done.
        self._coming: list[int] = []
        self._n_before = 0
        self._n_slice = session.info().n_chunk
        self._is_cancelled = False
        self._is_inside = False  # the core is working on its prompt, where cancel() can interrupt it
        self._is_sampling = False  # if still True when a step starts, an interrupt left the text half changed

    @property
    def is_done(self) -> bool:
        """Whether the text has ended. text.finish says why; step() has returned its last piece, or is about to."""
        return self.text.finish is not None

    def cancel(self) -> None:
        """Ends the text with the next step, and the reading of its prompt at once; its last piece has the finish
        "cancelled". The session holds all that was evaluated, and can be used again once is_done."""
        self._is_cancelled = True
        if self._is_inside:
            self.session.cancel()
        self._batch._wake()

    def _ends_with(self, tokens: list[int]) -> bool:
        """Whether these tokens, the next ones, are all that the session has yet to evaluate."""
        return len(self._next(len(tokens) + 1)) == len(tokens)

    def _next(self, n_most: int) -> list[int]:
        """The first n_most of the tokens that the session has yet to evaluate."""
        start = self.session.n_tokens - self._n_before
        return self._coming[start : start + n_most]


class Batch:
    """Generates any number of texts together; each has a session of its own, of this model.

    One thread at a time steps (another gets SessionBusy); add(), cancel() and wait() may be called from any thread at
    any time. A text's tokens are those that generate() gives with the same session and sampler, up to the rounding that
    Model.step() states; prompts are read in the session's chunks, as generate() reads them.

        batch = Batch(model)
        for question in questions:
            ids = model.tokenizer.encode(question)
            batch.add(model.session(n_ctx=1024), Sampler(), TextStream(model.tokenizer, max_tokens=200), ids)
        for generation, piece in batch:
            print(piece.text)
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._changed = threading.Condition()
        self._active: list[Generation] = []  # replaced or appended to under the condition's lock
        self._stepping = threading.Lock()
        self._n_slices = 0  # slices of prompts that were read so far
        self._pieces: list[tuple[Generation, Piece]] = []  # not returned yet; they survive Ctrl-C within a step

    def add(
        self,
        session: Session,
        sampler: Sampler,
        text: TextStream,
        prompt_ids: Sequence[int] | None = None,
        *,
        top: int = 0,
        checkpoint: bool = False,
    ) -> Generation:
        """Adds a text, which joins with the next step. Nobody else may use the session or the sampler until is_done.

        prompt_ids: the whole history; what the session holds of it is kept. None: go on from the session's logits.
        top: how many alternatives each piece lists. checkpoint: take one at the end of the prompt, if it fits.
        Raises ArgumentError (a session of another model; a session or a text that is in the batch; a text that has
        ended; an empty prompt; top), ContextFull (a prompt that leaves no room for an answer), ClosedError."""
        if session._model is not self.model:
            raise ArgumentError("the session is of another model than the batch")
        if text.finish is not None:
            raise ArgumentError("the text has ended; start another TextStream")
        session._check_top(top)
        if prompt_ids is not None:
            check_prompt(session, prompt_ids)
        prompt = None if prompt_ids is None else list(prompt_ids)
        generation = Generation(self, session, sampler, text, prompt, top, checkpoint=checkpoint)
        with self._changed:
            if any(other.session is session for other in self.generations):
                raise ArgumentError(
                    "the session has a text in the batch already; fork() it, or wait until that is done"
                )
            if any(other.text is text for other in self.generations):
                raise ArgumentError("another session goes on with this text already; start another TextStream")
            generation._turn = self._n_slices  # after all others that wait for their turn
            self._active.append(generation)
            self._changed.notify_all()
        return generation

    @property
    def generations(self) -> list[Generation]:
        """The generations that are not done, in the order in which they joined."""
        with self._changed:
            return [generation for generation in self._active if not generation.is_done]

    def wait(self, timeout: float | None = None) -> bool:
        """Waits, at most timeout seconds, until step() has something to do; returns whether it has."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._active or self._pieces), timeout)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def __iter__(self) -> Iterator[tuple[Generation, Piece]]:
        """Steps until every text has ended, also those added meanwhile; yields the pieces. If a loop is left early, the
        next loop or step() begins with the pieces of the last step that it has not seen."""
        while self.wait(0):
            found = self.step()
            try:
                while found:
                    yield found.pop(0)
            finally:
                self._pieces[:0] = found

    def step(self) -> list[tuple[Generation, Piece]]:
        """Evaluates what every text needs for its next token, and samples it; returns the new pieces, at most one per
        text, and none while prompts are read or nothing is to be done.

        The last piece of a text has its finish. An error of one text ends that text only: ContextFull with the finish
        "context", any other with "error"; Generation.error has it. Raises SessionBusy (another thread steps) and
        KeyboardInterrupt; the next step() goes on after either."""
        if not self._stepping.acquire(blocking=False):
            raise SessionBusy("another thread is stepping this batch")
        try:
            with self._changed:
                active = list(self._active)
            self._end_cancelled(active)
            self._evaluate(self._plan(active))
            for generation in active:
                if not generation.is_done and not generation._is_reading:
                    self._sample(generation)
            with self._changed:
                self._active = [generation for generation in self._active if not generation.is_done]
            found, self._pieces = self._pieces, []
            return found
        finally:
            self._stepping.release()

    # ---- the stages of a step

    def _end_cancelled(self, active: list[Generation]) -> None:
        """Ends texts that were cancelled, or interrupted while they changed."""
        for generation in active:
            if generation._is_sampling and generation.is_done:  # add the last piece, unless it is in the list already
                if all(other is not generation for other, _ in self._pieces):
                    self._pieces.append((generation, Piece("", None, math.nan, (), generation.text.finish)))
            elif generation._is_cancelled or generation._is_sampling:
                self._end(generation, "cancelled")

    def _plan(self, active: list[Generation]) -> list[tuple[Generation, list[int]]]:
        """Plans the step: one token of every text, and one slice of the prompt whose turn it is."""
        parts: list[tuple[Generation, list[int]]] = []
        for generation in active:
            if generation.is_done or generation._is_reading:
                continue
            session = generation.session
            try:
                tokens = generation._next(1)
                if tokens and session.n_tokens >= session.n_limit:
                    self._end(generation, "context", context_full(session))
                elif tokens:
                    parts.append((generation, tokens))
            except LogQuantError as error:
                self._end(generation, "error", error)
        reading = [generation for generation in active if generation._is_reading and not generation.is_done]
        if reading:
            generation = min(reading, key=lambda one: one._turn)
            self._n_slices += 1
            generation._turn = self._n_slices
            with self._alone(generation):
                if generation._prompt is not None:
                    keep_prompt(generation.session, generation._prompt)
                    generation._coming, generation._n_before = generation._prompt, 0
                    generation._prompt = None
                parts.append((generation, generation._next(generation._n_slice)))
        return parts

    def _evaluate(self, parts: list[tuple[Generation, list[int]]]) -> None:
        """Evaluates the plan in one Model.step(), or in several where it exceeds the limits of one."""
        group: list[tuple[Generation, list[int]]] = []
        n_tokens = 0
        for generation, tokens in parts:
            if len(group) == lib.LQ_BATCH_MAX or n_tokens + len(tokens) > lib.LQ_BATCH_MAX_TOKENS:
                self._step(group)
                group, n_tokens = [], 0
            if tokens:  # empty if the session holds the whole prompt already
                group.append((generation, tokens))
                n_tokens += len(tokens)
        if group:
            self._step(group)
        for generation, _ in parts:
            if generation._is_reading:
                self._end_reading(generation)

    def _step(self, parts: list[tuple[Generation, list[int]]]) -> None:
        """Evaluates the given tokens in one Model.step(), with logits only for texts that sample next. An error does
        not say which session caused it: the list is halved until that one is alone."""
        reading = [generation for generation, _ in parts if generation._is_reading]
        try:
            modes: list[LogitsMode] = ["last" if one._ends_with(tokens) else "none" for one, tokens in parts]
            for generation in reading:
                generation._is_inside = True
            sessions = [generation.session for generation, _ in parts]
            self.model.step(sessions, [tokens for _, tokens in parts], logits=modes, copy=False)
        except Cancelled:
            pass  # a generation was cancelled: no session has changed, and the next step goes on with the others
        except LogQuantError as error:
            if len(parts) == 1:
                self._end(parts[0][0], "error", error)
                return
            half = len(parts) // 2
            self._step(parts[:half])
            self._step(parts[half:])
        finally:
            for generation in reading:
                generation._is_inside = False

    def _end_reading(self, generation: Generation) -> None:
        """Starts the text of a generation whose prompt has been read, and takes its checkpoint."""
        with self._alone(generation):
            if not generation.is_done and not generation._next(1):
                generation._is_reading = False
                if generation._takes_checkpoint:
                    with suppress(OutOfMemory):
                        generation.session.checkpoint(generation.sampler)

    @contextmanager
    def _alone(self, generation: Generation) -> Iterator[None]:
        """Surrounds work of the core for one text alone: an error in it ends that text."""
        generation._is_inside = True
        try:
            yield
        except Cancelled:
            self._end(generation, "cancelled")
        except LogQuantError as error:
            self._end(generation, "error", error)
        finally:
            generation._is_inside = False

    def _sample(self, generation: Generation) -> None:
        """Samples the next token and adds its piece, if the session has evaluated the token before."""
        session = generation.session
        try:
            if generation._next(1):
                return  # the step was cancelled
            generation._is_sampling = True
            choice = session.sample(generation.sampler, generation._top)
            generation._coming, generation._n_before = [choice.token], session.n_tokens
            self._pieces.append((generation, generation.text.push(choice.token, choice.logprob, choice.top)))
            generation._is_sampling = False
        except LogQuantError as error:
            generation._is_sampling = False
            self._end(generation, "error", error)

    def _end(self, generation: Generation, finish: Finish, error: LogQuantError | None = None) -> None:
        """Ends a text that has not ended by itself."""
        if generation.is_done:
            return
        generation.error = error
        self._pieces.append((generation, generation.text.flush(finish)))
