"""What Ctrl-C does in a conversation: it ends what is under way and can be ended, and never the program.

Between the prompt and an answer the terminal turns Ctrl-C into a signal, which Python raises wherever it happens to be:
in the line editor's event loop, in the middle of bookkeeping, in the handler of the one before. Here it is raised at
most once for a piece of work that said it can be interrupted; elsewhere it is remembered."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupts:
    """Takes SIGINT while it is entered; of the main thread."""

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
            self._may_raise = False  # one is enough: what it ends must be left to clean up
            raise KeyboardInterrupt
        self._pressed = True
        if self.elsewhere is not None:
            self.elsewhere()

    def forget(self) -> None:
        """What was pressed so far concerns nothing any more."""
        self._pressed = False

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Work that may be interrupted, once: by a Ctrl-C that comes meanwhile, or came since forget()."""
        if self._pressed:
            self._pressed = False
            raise KeyboardInterrupt
        self._may_raise = True
        try:
            yield
        finally:
            self._may_raise = False
