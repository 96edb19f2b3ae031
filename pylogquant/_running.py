"""Makes long calls of the core such that Ctrl-C ends them at once.

Python handles signals in the main thread only, between two bytecodes, so never inside a call of the core. So a long
call runs in another thread, for which the main thread waits. An exception that interrupts the wait (Ctrl-C) cancels the
call, and is raised again once the other thread has left the core."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["LONG_S", "Pace", "run_cancellable"]

LONG_S = 0.1
"""Shorter calls get no thread: nobody notices that Ctrl-C waited for them."""

_AGAIN_S = 0.02  # seconds between two cancel(): it has no effect on a call that has not entered the core yet
Result = TypeVar("Result")


class _Work(Generic[Result]):
    """A call to make in a thread, and its result or its exception."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call = call
        self._lock = threading.Lock()
        self._begun = self._given_up = False
        # A lock that the thread releases at its end says that it ended. Thread.join() would not do: after an interrupt
        # it may take a running thread for dead (CPython up to 3.12). Nor would Event.wait(), which is Python code and
        # can be interrupted half way.
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
        """Prevents the call if it has not begun yet; returns whether it did."""
        with self._lock:
            self._given_up = not self._begun
            return self._given_up


def run_cancellable(call: Callable[[], Result], cancel: Callable[[], None] | None) -> Result:
    """Makes a call and returns its result. Ctrl-C calls cancel() until the call has ended, and is raised then; with
    cancel None it is raised at once, the call ends by itself and its result is dropped. In other threads than the main
    one, which get no signals, the call is made directly."""
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
    # On Windows Ctrl-C does not interrupt a wait without a timeout.
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
    """Measures how long a token takes in calls of one kind, so that short calls are made without a thread."""

    def __init__(self, n_short: int) -> None:
        """n_short: until a call was timed, calls of at most n_short tokens count as short."""
        self.token_s = 0.0
        self._n_short = n_short

    def run(self, n_tokens: int, call: Callable[[], object], cancel: Callable[[], None]) -> None:
        """Makes a call that evaluates n_tokens, through run_cancellable() if it may take long."""
        is_short = n_tokens * self.token_s < LONG_S if self.token_s else n_tokens <= self._n_short
        started = time.perf_counter()
        if is_short:
            call()
        else:
            run_cancellable(call, cancel)
        self.token_s = (time.perf_counter() - started) / max(n_tokens, 1)
