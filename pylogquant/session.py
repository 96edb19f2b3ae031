"""Sessions, each a mutable token history with its KV cache, and samplers, which pick a token from logits."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from pylogquant._copying import Uncopyable
from pylogquant._native import check, ffi, lib, path_bytes, whole_number
from pylogquant._running import Pace, run_cancellable
from pylogquant.errors import ArgumentError, ClosedError
from pylogquant.kv import KvOptions, KvUsage, KvView, bits_per_value, read_kv_options, read_kv_usage
from pylogquant.options import OnFull, SamplingOptions

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pylogquant.model import Model

__all__ = [
    "Choice",
    "LogitsMode",
    "MemoryPlan",
    "OnFull",
    "Sampler",
    "SamplingOptions",
    "Session",
    "SessionInfo",
    "TokenProb",
    "as_ids",
]

LogitsMode = Literal["last", "all", "none"]


@dataclass(frozen=True)
class TokenProb:
    """A token id and the natural log of its probability under the model itself (temperature 1, no bias or penalty)."""

    token: int
    logprob: float


@dataclass(frozen=True)
class Choice:
    """A sampled token. logprob is NaN unless top tokens or `SamplingOptions(logprobs=True)` asked for it."""

    token: int
    logprob: float
    top: list[TokenProb]


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes a session reserves. kv_global: layers that see the whole context; kv_sliding: rings of sliding layers;
    recurrent: states of recurrent layers; scratch: logits, token history and tables; workspace: growth of the memory in
    which all sessions of a model compute, 0 if another session needs as much already."""

    kv_global_bytes: int
    kv_sliding_bytes: int
    recurrent_bytes: int
    scratch_bytes: int
    workspace_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class SessionInfo:
    """A session's settings as resolved, and what it holds. Global layers are those that see the whole context."""

    kv: str
    """The KV cache type's name."""
    kv_bits: float
    """Bits per K or V element of the global layers with n_ctx tokens, all overheads counted."""
    n_ctx: int
    n_chunk: int
    n_tokens: int
    """Tokens of the history; those that were dropped count, too."""
    backend: str
    cpu_level: str
    kv_global_bytes: int
    """Bytes reserved for KV of the global layers."""
    kv_sliding_bytes: int
    """Bytes reserved for rings of layers with a sliding window."""
    kv_used_bytes: int
    """Bytes that n_tokens take in all layers."""
    scratch_bytes: int
    total_bytes: int
    kv_options: KvOptions
    """The type with all its settings resolved."""
    kv_usage: KvUsage
    """How many tokens are stored how, and kv_used_bytes by kind."""
    kv_values_per_token: int
    """K and V elements that a token has in the global layers."""
    recurrent_bytes: int = 0
    """Bytes of the states of recurrent layers. A checkpoint copies them, besides what it keeps of other layers."""
    workspace_bytes: int = 0
    """Bytes in which all sessions of its model compute; counted in total_bytes."""
    n_checkpoints: int = 0
    checkpoint_bytes: int = 0
    """Bytes of the checkpoints kept now; not counted in total_bytes. Forks share them."""

    @property
    def kv_bits_now(self) -> float:
        """Bits per K or V element of the global layers with the tokens held now; 0 without tokens."""
        return bits_per_value(self.kv_usage.global_bytes, self.kv_values_per_token * self.n_tokens)

    @property
    def kv_f16_bytes(self) -> int:
        """Bytes that the same tokens would take in f16, rings and recurrent states included."""
        fixed = self.kv_usage.ring_bytes + self.kv_usage.recurrent_bytes
        return 2 * self.kv_values_per_token * self.n_tokens + fixed

    @property
    def kv_reserved_bytes(self) -> int:
        """Bytes reserved in all layers: the most that kv_used_bytes can become."""
        return self.kv_global_bytes + self.kv_sliding_bytes + self.recurrent_bytes


class Sampler:
    """Picks tokens from logits. The same seed and the same logits give the same tokens.

    A copied or unpickled sampler draws as the original would have from there on. One thread at a time may use it;
    another gets SessionBusy. Raises ArgumentError for options out of range.
    """

    def __init__(self, options: SamplingOptions | None = None) -> None:
        self.options = SamplingOptions() if options is None else options
        if not isinstance(self.options, SamplingOptions):
            raise ArgumentError(f"sampling must be SamplingOptions, not {options!r}")
        self.seed = int.from_bytes(os.urandom(8), "little") if self.options.seed is None else self.options.seed
        raw = ffi.new("lq_sampler_options *")
        lib.lq_sampler_options_init(raw)
        for name in ("top_k", "penalty_last_n"):
            setattr(raw, name, whole_number(name.replace("_", "-"), getattr(self.options, name)))
        for name in (
            "temperature",
            "top_p",
            "min_p",
            "repeat_penalty",
            "frequency_penalty",
            "presence_penalty",
        ):
            try:
                setattr(raw, name, getattr(self.options, name))
            except TypeError:
                found = getattr(self.options, name)
                raise ArgumentError(f"{name.replace('_', '-')} must be a number, not {found!r}") from None
        if not hasattr(self.seed, "__index__") or not 0 <= self.seed < 2**64:
            raise ArgumentError(f"the seed must be between 0 and 2**64 - 1, not {self.seed!r}")
        raw.seed = self.seed
        raw.logprobs = bool(self.options.logprobs)
        bias = self.options.logit_bias
        if not isinstance(bias, Mapping):
            raise ArgumentError(f"logit bias: must be a mapping of token ids to numbers, not {bias!r}")
        if not all(hasattr(token, "__index__") and -(2**31) <= token < 2**31 for token in bias):
            raise ArgumentError("logit bias: token ids are 32-bit integers")
        if not all(hasattr(value, "__float__") or hasattr(value, "__index__") for value in bias.values()):
            raise ArgumentError("logit bias: what is added must be numbers")
        tokens, values = ffi.new("int32_t[]", list(bias)), ffi.new("float[]", list(bias.values()))
        raw.n_bias, raw.bias_tokens, raw.bias_values = len(bias), tokens, values  # copied by the call below
        out = ffi.new("lq_sampler **")
        check(lib.lq_sampler_create(raw, out))
        self._handle: Any = ffi.gc(out[0], _free_sampler)

    @property
    def state(self) -> int:
        """The sampler's whole state, 64 bits. Set to a value read earlier, it draws again as it did from there."""
        return int(lib.lq_sampler_get_state(self._handle))

    @state.setter
    def state(self, value: int) -> None:
        if not 0 <= value < 2**64:
            raise ArgumentError(f"a sampler's state must be between 0 and 2**64 - 1, not {value}")
        lib.lq_sampler_set_state(self._handle, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_sampler, (self.options, self.seed, self.state)


class Session(Uncopyable):
    """One token history with its KV cache and last logits. Made by Model.session(); one thread at a time may use it,
    others get SessionBusy. Callable from any thread at any time: cancel(), close(), and what only reads (n_tokens,
    tokens, checkpoints, extra, info())."""

    _instead = "use session.fork(), or session.save() and Model.load_session()"

    def __init__(self, model: Model, handle: Any) -> None:
        self._model = model  # keeps the Python object; C keeps the weights by itself
        self._handle: Any = ffi.gc(handle, _close_session)
        raw = self._raw_info(self._handle)
        self.n_ctx = int(raw.n_ctx)
        self.n_limit = int(raw.n_limit)
        """Most tokens of the history: n_ctx, or more where the oldest are dropped."""
        self._part_limits = (int(raw.n_chunk), int(raw.max_tentative))  # of tokens in a step, and of tentative ones
        shape = model.info()
        self.n_vocab = shape.n_vocab
        self._head_dim = shape.head_dim
        self._kv_values_per_token = shape.kv_values
        self._pace, self._lone_pace = Pace(4), Pace(4)  # for calls of several tokens, and of a single one

    # ---- evaluation

    def eval(self, ids: Sequence[int], logits: LogitsMode = "last") -> npt.NDArray[np.float32] | None:
        """Appends ids and evaluates them, chunk by chunk.

        Returns float32 logits: (n_vocab,) of the last token, (n_ids, n_vocab) for "all", None for "none". Raises
        ContextFull (nothing evaluated), ArgumentError (an id outside the vocabulary), Cancelled, SessionBusy.
        Ctrl-C and cancel() take effect within a chunk: tokens of complete chunks stay, those of this chunk are taken
        back (but pages that a full context dropped for it stay dropped). For that, types that select tokens take a
        checkpoint before a long chunk; if it does not fit in memory or in Model.session(checkpoint_bytes=), the chunk
        is finished first.
        """
        if logits not in ("last", "all", "none"):
            raise ArgumentError(f"logits must be 'last', 'all' or 'none', not {logits!r}")
        tokens = as_ids(ids)
        if logits == "none":
            self._evaluate(tokens, lib.LQ_LOGITS_NONE, None)
            return None
        self._check_room(tokens)
        import numpy as np

        if logits == "last":
            last = np.empty(self.n_vocab, dtype=np.float32)
            self._evaluate(tokens, lib.LQ_LOGITS_LAST, last)
            return last
        out = np.empty((len(tokens), self.n_vocab), dtype=np.float32)
        self._evaluate(tokens, lib.LQ_LOGITS_ALL, out)
        return out

    def append(self, token: int) -> None:
        """Appends one token and keeps its logits for sample(); nothing is copied to Python."""
        ids = ffi.new("int32_t[1]", [_as_id(token)])
        self._run(1, lambda: check(lib.lq_session_eval(self._open_handle(), ids, 1, lib.LQ_LOGITS_LAST, ffi.NULL, 0)))

    def prefill(self, ids: Sequence[int]) -> None:
        """Like eval(), but leaves the last logits in the session for sample() instead of copying them."""
        self._evaluate(as_ids(ids), lib.LQ_LOGITS_LAST, None)

    def commit(self, n_tokens: int) -> None:
        """Appends the first n_tokens of the tentative tokens that Model.step(tentative=True) left, 0 to all, and drops
        the others, which leave no trace in any bit of the session (but that a full context with on_full="drop" has made
        room for all of them). Its logits become those of the last one appended, if the step asked for them. Raises
        ArgumentError (more tokens than there are)."""
        if not 0 <= n_tokens < 2**31:
            raise ArgumentError(f"cannot commit {n_tokens} tokens")
        check(lib.lq_session_commit(self._open_handle(), n_tokens))

    def keep_prefix(self, ids: Sequence[int]) -> int:
        """Drops the tokens from the first on that differs from `ids`; returns how many remain, at most len(ids) - 1.

        Fewer remain, often none, if the KV cache has given up tokens that the shorter history would still hold in full
        precision (the logquant types), or a ring has overwritten them: then the session goes back to the last
        checkpoint before. Nothing is lost where nothing has to be dropped. To make ids the history:
        session.prefill(ids[session.keep_prefix(ids):]).
        """
        tokens = as_ids(ids)
        kept = ffi.new("size_t *")
        raw = ffi.from_buffer("int32_t[]", tokens, False)
        check(lib.lq_session_keep_prefix(self._open_handle(), raw, len(tokens), kept))
        return int(kept[0])

    def _evaluate(self, tokens: array[int], mode: int, out: npt.NDArray[np.float32] | None) -> None:
        room = ffi.NULL if out is None else ffi.from_buffer("float[]", out)
        n_room = 0 if out is None else out.size
        n, ids = len(tokens), ffi.from_buffer("int32_t[]", tokens, False)
        self._run(n, lambda: check(lib.lq_session_eval(self._open_handle(), ids, n, mode, room, n_room)))

    def _check_room(self, tokens: array[int]) -> None:
        """Raises the core's error for tokens that do not fit, before memory for their logits is allocated."""
        if len(tokens) > self.n_limit - self.n_tokens:
            self._evaluate(tokens, lib.LQ_LOGITS_NONE, None)

    def _run(self, n_tokens: int, call: Callable[[], object]) -> None:
        """Makes a call of the core that evaluates n_tokens; Ctrl-C cancels it if it takes long."""
        (self._lone_pace if n_tokens == 1 else self._pace).run(n_tokens, call, self.cancel)

    def sample(self, sampler: Sampler, top: int = 0) -> Choice:
        """Picks the next token from the last logits; append() it to go on. top: how many most probable tokens to list.

        Raises ArgumentError if there are no logits yet.
        """
        self._check_top(top)
        best = ffi.new("lq_token_prob[]", top) if top else ffi.NULL
        choice = ffi.new("lq_token_prob *")
        check(lib.lq_session_sample(self._open_handle(), sampler._handle, choice, best, top))
        listed = [TokenProb(int(best[i].token), float(best[i].logprob)) for i in range(top) if best[i].token >= 0]
        return Choice(int(choice.token), float(choice.logprob), listed)

    def _check_top(self, top: int) -> None:
        if not hasattr(top, "__index__") or not 0 <= top <= self.n_vocab:
            raise ArgumentError(f"top must be 0 to {self.n_vocab}, not {top!r}")

    # ---- going back

    def checkpoint(self, sampler: Sampler | None = None) -> None:
        """Saves what rewind() and keep_prefix() need to come back to the tokens held now without evaluating any.

        sampler: its state is saved as well, for rewind(). A session that would keep too many checkpoints drops those
        whose loss costs least. Raises OutOfMemory if not even one fits."""
        note = b"" if sampler is None else sampler.state.to_bytes(8, "little")
        check(lib.lq_session_checkpoint(self._open_handle(), note, len(note)))

    @property
    def checkpoints(self) -> list[int]:
        """The number of tokens at each checkpoint, rising."""
        n = int(lib.lq_session_get_checkpoints(self._open_handle(), ffi.NULL, 0))
        positions = ffi.new("uint32_t[]", n)
        found = int(lib.lq_session_get_checkpoints(self._open_handle(), positions, n))
        return list(positions)[:found]  # fewer, if another thread came in between

    def rewind(self, n: int, sampler: Sampler | None = None) -> int:
        """Goes back to the first n tokens, exactly; returns how many had to be evaluated again.

        The session is then, bit for bit, what a new one would be after the same tokens in the same chunks (those of
        each eval(), the last one cut short), its logits included; up to rounding if Model.step() appended some of them.
        It goes back to the last checkpoint at or before n and evaluates the tokens from there to n; Ctrl-C stops in
        between, as in eval(). sampler: gets the state that checkpoint() saved at n tokens, so that it draws again as it
        did from there.
        Raises ArgumentError (more tokens than are held, a sampler but no checkpoint with one at n), Cancelled,
        SessionBusy."""
        note = bytes(8)
        if not 0 <= n <= self.n_tokens:
            raise ArgumentError(f"cannot go back to {n} tokens: the session holds {self.n_tokens}")
        if sampler is not None and lib.lq_session_get_note(self._open_handle(), n, ffi.from_buffer(note), 8) != 8:
            raise ArgumentError(f"no checkpoint at {n} tokens has kept a sampler's state")
        evaluated = ffi.new("size_t *")
        run_cancellable(lambda: check(lib.lq_session_rewind(self._open_handle(), n, evaluated)), self.cancel)
        if sampler is not None:
            sampler.state = int.from_bytes(note, "little")
        return int(evaluated[0])

    def fork(self) -> Session:
        """A second session with the same contents, which goes its own way; either may be closed first.

        The two share complete pages and checkpoints and copy tokens in full precision, so that a fork of a logquant
        session costs little. Types without pages copy everything. Raises OutOfMemory, SessionBusy."""
        out = ffi.new("lq_session **")
        check(lib.lq_session_fork(self._open_handle(), out))
        return Session(self._model, out[0])

    def save(self, path: str | os.PathLike[str], extra: bytes = b"") -> None:
        """Writes the session to a file, whole or not at all: an existing file stays until the new one is complete.
        Links stay and are written through, an existing file keeps its permissions, only the owner can read a new one,
        and anything but a regular file is refused.

        Model.load_session() goes on from the file, bit for bit. extra: the caller's bytes to store with the session.
        Checkpoints are not written. Raises FileError (with the system's reason), OutOfMemory, SessionBusy,
        Cancelled."""
        raw = ffi.from_buffer("uint8_t[]", extra) if extra else ffi.NULL
        name = path_bytes(path)
        run_cancellable(lambda: check(lib.lq_session_save(self._open_handle(), name, raw, len(extra))), self.cancel)

    @property
    def extra(self) -> bytes:
        """The `extra` that was given to save(), in a session that was loaded from the file; else empty."""
        n = int(lib.lq_session_get_extra(self._open_handle(), ffi.NULL, 0))
        raw = ffi.new("uint8_t[]", n)
        lib.lq_session_get_extra(self._open_handle(), raw, n)
        return bytes(ffi.buffer(raw))

    def reset(self) -> None:
        """Forgets all tokens; the memory stays reserved."""
        check(lib.lq_session_reset(self._open_handle()))

    def cancel(self) -> None:
        """Makes an eval(), rewind() or save() running in another thread raise Cancelled; the session stays usable."""
        handle = self._handle
        if handle is not None:
            lib.lq_session_cancel(handle)

    # ---- looking

    @property
    def n_tokens(self) -> int:
        return int(lib.lq_session_get_tokens(self._open_handle(), ffi.NULL, 0))

    @property
    def tokens(self) -> list[int]:
        """The history's ids."""
        n = self.n_tokens
        ids = ffi.new("int32_t[]", n)
        held = int(lib.lq_session_get_tokens(self._open_handle(), ids, n))
        return list(ids)[:held]  # fewer, if another thread came in between

    def info(self) -> SessionInfo:
        """The session's settings as resolved, and what it holds: KV type, bits, bytes, tokens, backend, SIMD level."""
        handle = self._open_handle()
        raw = self._raw_info(handle)
        options, usage = read_kv_options(raw.kv), read_kv_usage(raw.kv_usage)
        return SessionInfo(
            kv=options.name,
            kv_bits=float(raw.kv_bits),
            n_ctx=int(raw.n_ctx),
            n_chunk=int(raw.n_chunk),
            n_tokens=int(raw.n_tokens),
            backend=ffi.string(raw.backend).decode(),
            cpu_level=ffi.string(raw.cpu_level).decode(),
            kv_global_bytes=int(raw.memory.kv_global_bytes),
            kv_sliding_bytes=int(raw.memory.kv_sliding_bytes),
            kv_used_bytes=usage.total_bytes,
            scratch_bytes=int(raw.memory.scratch_bytes),
            total_bytes=int(raw.memory.total_bytes),
            kv_options=options,
            kv_usage=usage,
            kv_values_per_token=self._kv_values_per_token,
            recurrent_bytes=int(raw.memory.recurrent_bytes),
            workspace_bytes=int(raw.memory.workspace_bytes),
            n_checkpoints=int(raw.n_checkpoints),
            checkpoint_bytes=int(raw.checkpoint_bytes),
        )

    @property
    def kv(self) -> KvView:
        """A view of the KV cache: usage, coded pages, tokens in full precision."""
        return KvView(self._open_handle, lib.lq_session_kv_cache, self._head_dim)

    def _raw_info(self, handle: Any) -> Any:
        """The lq_session_info. Its texts are the session's memory: keep the handle while you read them."""
        raw = ffi.new("lq_session_info *")
        raw.struct_size = ffi.sizeof("lq_session_info")
        check(lib.lq_session_get_info(handle, raw))
        return raw

    def _open_handle(self) -> Any:
        handle = self._handle
        if handle is None:
            raise ClosedError("this session is closed; make a new one with model.session()")
        return handle

    def close(self) -> None:
        """Frees the KV cache; may be called twice, from any thread at any time.

        An evaluation in another thread ends with Cancelled, within one layer of the model; a save() or fork() is
        finished. close() waits until that thread has left. Later calls raise ClosedError."""
        handle, self._handle = self._handle, None
        if handle is not None:
            lib.lq_session_end(handle)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _as_id(token: int) -> int:
    if not -(2**31) <= token < 2**31:
        raise ArgumentError(f"token {token} is outside the vocabulary")
    return token


def as_ids(ids: Sequence[int]) -> array[int]:
    """Converts ids to 32-bit integers. Raises ArgumentError."""
    if not isinstance(ids, (list, tuple)) or not all(type(token) is int for token in ids):
        return _array_as_ids(ids)
    try:
        found = array("i", ids)
    except OverflowError:
        return _array_as_ids(ids)
    if found and min(found) < 0:
        raise ArgumentError("a token id is outside the vocabulary")
    return found


def _array_as_ids(ids: Sequence[int]) -> array[int]:
    """Converts anything that NumPy takes for an array. Plain lists do not come here, so that they need no NumPy."""
    import numpy as np

    try:
        found = np.asarray(ids)
        if found.size == 0:
            return array("i")
        if found.ndim != 1 or found.dtype.kind not in "iu":
            raise ArgumentError("token ids must be a flat sequence of integers")
        if int(found.min()) < 0 or int(found.max()) >= 2**31:
            raise ArgumentError("a token id is outside the vocabulary")
        return array("i", found.astype(np.int32).tobytes())
    except (ValueError, TypeError, OverflowError) as cause:
        if isinstance(cause, ArgumentError):
            raise
        raise ArgumentError("token ids must be a flat sequence of integers") from cause


def _make_sampler(options: SamplingOptions, seed: int, state: int) -> Sampler:
    sampler = Sampler(replace(options, seed=seed))
    sampler.options, sampler.state = options, state
    return sampler


def _close_session(handle: Any) -> None:
    lib.lq_session_close(ffi.new("lq_session **", handle))


def _free_sampler(handle: Any) -> None:
    lib.lq_sampler_free(ffi.new("lq_sampler **", handle))
