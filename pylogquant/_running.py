"""Long calls of the core, which Ctrl-C ends at once.

Python hears a signal only between two of its own steps, in the main thread. A call that takes long is made in another
thread, for which the main thread waits; what interrupts the wait is passed on to the core, and raised again once the
core has been left."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["LONG_S", "Pace", "run_cancellable"]

LONG_S = 0.1
"""Calls that take less are not worth a thread: nobody notices that they were finished first."""

_AGAIN_S = 0.02  # cancel() concerns the call that runs: one that had not begun has not heard it
Result = TypeVar("Result")


class _Work(Generic[Result]):
    """A call in a thread, and what came of it."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call = call
        self._lock = threading.Lock()
        self._begun = self._given_up = False
        # Thread.join(), once interrupted, may take a thread that still runs for dead (CPython up to 3.12), and what
        # Event.wait() does in Python can be interrupted half way: a lock that is let go of at the end cannot.
        self.is_done = False
        self.ended = threading.Lock()
        self.ended.acquire()
        self.results: list[Result] = []
        self.error: BaseException | None = None

    def __call__(self) -> None:
        with self._lock:
            if self._given_up:
                return
            self._begun = True
        try:
            self.results.append(self._call())
        except BaseException as error:  # raised again in the caller's thread
            self.error = error
        self.is_done = True
        self.ended.release()

    def give_up(self) -> bool:
        """Whether it had not begun yet; it will not then."""
        with self._lock:
            self._given_up = not self._begun
            return self._given_up


def run_cancellable(call: Callable[[], Result], cancel: Callable[[], None] | None) -> Result:
    """Makes a call; what interrupts it (Ctrl-C) is raised once cancel() has ended it. cancel None: the call is left to
    end by itself, and its result is dropped. Other threads than the main one hear no signals: there it is just made."""
    if threading.current_thread() is not threading.main_thread():
        return call()
    work = _Work(call)
    worker = threading.Thread(target=work, name="pylogquant", daemon=cancel is None)
    interrupted: BaseException | None = None
    try:
        worker.start()
    except RuntimeError:  # no more threads, or the interpreter ends
        return call()
    except BaseException as error:
        if work.give_up():
            raise
        interrupted = error
    # On Windows a wait without an end is deaf.
    patience_s = -1.0 if os.name == "posix" else _AGAIN_S
    waits = True
    while waits:
        try:
            while not work.is_done and (interrupted is None or cancel is not None):
                if interrupted is not None and cancel is not None:
                    cancel()
                work.ended.acquire(timeout=patience_s if interrupted is None else _AGAIN_S)
            waits = False
        except BaseException as error:  # a second Ctrl-C must not leave the thread behind in the core
            interrupted = interrupted or error
    if interrupted is not None:
        raise interrupted
    if work.error is not None:
        raise work.error
    return work.results[0]


class Pace:
    """How long a token takes in calls of one kind, so that a call that ends soon costs no thread."""

    def __init__(self, n_short: int) -> None:
        """n_short: tokens of a call that is taken for short before any was timed."""
        self.token_s = 0.0
        self._n_short = n_short

    def run(self, n_tokens: int, call: Callable[[], object], cancel: Callable[[], None]) -> None:
        """Makes a call that evaluates n_tokens; run_cancellable() does where it may take long."""
        is_short = n_tokens * self.token_s < LONG_S if self.token_s else n_tokens <= self._n_short
        started = time.perf_counter()
        if is_short:
            call()
        else:
            run_cancellable(call, cancel)
        self.token_s = (time.perf_counter() - started) / max(n_tokens, 1)
