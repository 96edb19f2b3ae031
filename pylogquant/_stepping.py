"""Steps: tokens of several sessions of a model, evaluated in one pass."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pylogquant._native import check, ffi, lib
from pylogquant._running import Pace
from pylogquant.errors import ArgumentError
from pylogquant.session import LogitsMode, Session, as_ids

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Rows = npt.NDArray[np.float32]

__all__ = ["Stepper"]

_MODES: dict[str, int] = {"none": lib.LQ_LOGITS_NONE, "last": lib.LQ_LOGITS_LAST, "all": lib.LQ_LOGITS_ALL}


class Stepper:
    """Runs steps, one at a time, in an lq_batch that is replaced by a larger one when a step needs it."""

    def __init__(self, n_vocab: int) -> None:
        self._n_vocab = n_vocab
        self._batch: Any = None
        self._room = (0, 0)  # sessions and tokens that the batch has room for
        self._lock = threading.Lock()
        self._pace = Pace(16)

    def step(
        self,
        model: Any,
        sessions: Sequence[Session],
        tokens: Sequence[Sequence[int]],
        logits: Sequence[LogitsMode],
        tentative: Sequence[bool],
        copy: bool,
    ) -> list[Rows | None]:
        """Evaluates one step. model(): returns the handle, or raises ClosedError. Every sequence has one entry per
        session. Returns float32 logits per session: (n_tokens, n_vocab) for "all", (n_vocab,) for "last", None for
        "none"; with copy False None for all."""
        for mode in logits:
            if mode not in _MODES:
                raise ArgumentError(f"logits must be 'none', 'last' or 'all', not {mode!r}")
        ids = [as_ids(some) for some in tokens]
        handles = [session._open_handle() for session in sessions]  # referenced until the step is done
        try:
            parts = ffi.new("lq_step_part[]", max(len(handles), 1))
            keep: list[Any] = []
            rows: list[Rows | None] = []
            for part, handle, some, mode, is_tentative in zip(parts, handles, ids, logits, tentative, strict=False):
                raw = ffi.from_buffer("int32_t[]", some, False) if some else ffi.NULL
                keep.append(raw)
                part.session, part.tokens, part.n_tokens = handle, raw, len(some)
                part.tentative, part.mode = int(is_tentative), _MODES[mode]
                if not copy and mode == "all" and not is_tentative:
                    raise ArgumentError('logits="all" of tokens that are not tentative are kept nowhere: copy them')
                rows.append(self._room_for(part, len(some), mode, keep) if copy else None)
            with self._lock:  # two steps would be evaluated one after the other anyway
                n_tokens = sum(map(len, ids))
                # what the core refuses for its length shall not have asked for memory before
                n_rows = sum(
                    min(len(some), s._part_limits[bool(flag)])
                    for some, s, flag in zip(ids, sessions, tentative, strict=False)
                )
                batch = self._batch_for(model, len(handles), n_rows)
                self._run(lambda: check(lib.lq_batch_step(batch, parts, len(handles))), sessions, n_tokens)
            return rows
        finally:
            handles.clear()  # else the traceback of an exception that somebody keeps would keep them alive

    def _room_for(self, part: Any, n_tokens: int, mode: LogitsMode, keep: list[Any]) -> Rows | None:
        if mode == "none":
            return None
        import numpy as np

        shape = (n_tokens, self._n_vocab) if mode == "all" else (self._n_vocab,)
        rows = np.empty(shape, dtype=np.float32)
        part.logits, part.n_logits = ffi.from_buffer("float[]", rows), rows.size
        keep.append(part.logits)
        return rows

    def _batch_for(self, model: Any, n_sessions: int, n_tokens: int) -> Any:
        """The lq_batch, with room for this step. Call it with the lock held; only close() may run meanwhile."""
        batch = self._batch
        most = (lib.LQ_BATCH_MAX, lib.LQ_BATCH_MAX_TOKENS)
        if n_sessions > most[0]:
            raise ArgumentError(f"a step of {n_sessions} sessions; at most {most[0]}")
        if n_tokens > most[1]:
            raise ArgumentError(f"a step of {n_tokens} tokens; at most {most[1]}")
        if batch is None or n_sessions > self._room[0] or n_tokens > self._room[1]:
            n_max = min(max(n_sessions, 2 * self._room[0] if n_sessions > self._room[0] else self._room[0], 1), most[0])
            n_rows = min(max(n_tokens, self._room[1], n_max), most[1])
            out = ffi.new("lq_batch **")
            check(lib.lq_batch_create(model(), n_max, n_rows, 0, out))
            batch = ffi.gc(out[0], _close_batch)
            self._batch, self._room = batch, (n_max, n_rows)
        try:
            model()
        except BaseException:
            self._batch = None  # the model is closed, and the batch would keep its weights
            raise
        return batch

    def _run(self, call: Any, sessions: Sequence[Session], n_tokens: int) -> None:
        """Makes the call of a step. Ctrl-C cancels it if it should take long, judged by the last step's speed."""

        def cancel() -> None:
            for session in sessions:
                session.cancel()

        self._pace.run(n_tokens, call, cancel)

    def close(self) -> None:
        self._batch = None


def per_session(value: Any, n: int, what: str) -> list[Any]:
    """A list with a value for each of n sessions, of as many values or of one (a str or bool) for all."""
    if isinstance(value, (str, bool)):
        return [value] * n
    values = list(value) if isinstance(value, Iterable) else [value]
    if len(values) != n:
        raise ArgumentError(f"{what}: {n} sessions need as many values, or one for all, not {len(values)}")
    return values


def _close_batch(handle: Any) -> None:
    lib.lq_batch_close(ffi.new("lq_batch **", handle))
