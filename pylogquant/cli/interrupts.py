"""Handles Ctrl-C in a conversation: it ends the work in progress if that can be interrupted, and never the program.

Between the prompt and an answer Ctrl-C is a signal, for which Python raises KeyboardInterrupt wherever it happens to
be: in the line editor's event loop, in bookkeeping, in the handler of an earlier one. Here it is raised at most once
for a piece of work that declared itself interruptible; elsewhere it is remembered."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupts:
    """A context manager that handles SIGINT; for the main thread."""

    def __init__(self) -> None:
        self._may_raise = False
        self._pressed = False
        self._before: Any = None
        self.elsewhere: Callable[[], None] | None = None
        """Called in the signal's handler where nothing can be interrupted."""

    def __enter__(self) -> Interrupts:
        self._before = signal.signal(signal.SIGINT, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self._may_raise:
            self._may_raise = False  # only once, so that the interrupted work can clean up
            raise KeyboardInterrupt
        self._pressed = True
        if self.elsewhere is not None:
            self.elsewhere()

    def forget(self) -> None:
        """Forgets a Ctrl-C that was pressed before."""
        self._pressed = False

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Surrounds work that may be interrupted once, by a Ctrl-C during it or since forget()."""
        if self._pressed:
            self._pressed = False
            raise KeyboardInterrupt
        self._may_raise = True
        try:
            yield
        finally:
            self._may_raise = False
