"""KV caches: their options, what they hold, and one attention layer without a model. Terms, layouts: docs/format.md."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from pylogquant._copying import Uncopyable
from pylogquant._native import check, ffi, lib, whole_number
from pylogquant.errors import ArgumentError, ClosedError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = [
    "DEFAULT_KV",
    "KV_SETTINGS",
    "KvFull",
    "KvLayer",
    "KvOptions",
    "KvPage",
    "KvUsage",
    "KvView",
    "Overlay",
    "Select",
    "bits_per_value",
    "kv_names",
]

Overlay = Literal["f16", "q8_0"]
Select = Literal["even", "newest", "heaviest"]
DEFAULT_KV = "logquant"
KV_SETTINGS = {
    "keys": "keys",
    "values": "value_bits",
    "window": "window",
    "sinks": "sinks",
    "overlay": "overlay",
    "select": "select",
}
"""Maps the names that KvOptions.parse() reads to fields."""
_LEAST = {"value_bits": 1, "window": 1, "sinks": 0}  # smallest numbers that parse() takes; 0 bits or window = default


def kv_names() -> list[str]:
    """KV cache types this build has, the default first."""
    return str(ffi.string(lib.lq_kv_names()).decode()).split(",")


@dataclass(frozen=True)
class KvOptions:
    """A KV cache type and changes of its settings; None (or 0 for value_bits and window) keeps the type's own.

    Making or planning a cache raises ArgumentError for a setting that has no effect on the type."""

    name: str = DEFAULT_KV
    """One of kv_names()."""
    keys: str | None = None
    """Bits of the key codes: a width, "1" to "5", or tiers by channel range, widest first: "4:3/8,2:3/8,1:1/4"."""
    value_bits: int = 0
    """Bits of the value codes: 2, 3 or 4."""
    window: int = 0
    """W in tokens, a multiple of 64: at most 3W tokens, denser towards the newest, are in full precision."""
    sinks: int | None = None
    """How many of the very first tokens stay in full precision for ever: 0 to 64."""
    overlay: Overlay | None = None
    """How tokens in full precision are stored once their page is coded."""
    select: Select | None = None
    """Which tokens stay in full precision: of two neighbours the older one ("even"); of all candidates the newer
    half ("newest") or the half attended to most ("heaviest")."""

    def __str__(self) -> str:
        """The name and the settings that are given: "logquant, window 64, overlay q8_0"."""
        given = [self.name]
        given += [f"keys {self.keys}"] if self.keys is not None else []
        given += [f"values {self.value_bits} bits"] if self.value_bits else []
        given += [f"window {self.window}"] if self.window else []
        given += [f"sinks {self.sinks}"] if self.sinks is not None else []
        given += [f"overlay {self.overlay}"] if self.overlay is not None else []
        given += [f"select {self.select}"] if self.select is not None else []
        return ", ".join(given)

    def spec(self) -> str:
        """The name and the settings that are given, as parse() reads them: "logquant+window=64+overlay=q8_0"."""
        values = {word: getattr(self, field) for word, field in KV_SETTINGS.items()}
        usual = {word: getattr(KvOptions, field) for word, field in KV_SETTINGS.items()}
        return "+".join([self.name, *(f"{word}={value}" for word, value in values.items() if value != usual[word])])

    @classmethod
    def parse(cls, text: str) -> KvOptions:
        """The options that spec() writes: a type's name, and settings in any order, each at most once.

        Raises ArgumentError for text of another form. The core checks later whether the type and settings exist."""
        name, *settings = text.split("+")
        if not name or not set(name).isdisjoint("=, "):
            raise _unreadable(text, "it must begin with the name of one type")
        given: dict[str, Any] = {}
        for setting in settings:
            word, equals, value = setting.partition("=")
            field = KV_SETTINGS.get(word)
            if field is None or not equals or not value:
                raise _unreadable(text, f"{setting!r} sets nothing")
            if field in given:
                raise _unreadable(text, f"{word} comes twice")
            given[field] = _number(text, setting, value, _LEAST[field]) if field in _LEAST else value
        return cls(name, **given)


def _unreadable(text: str, reason: str) -> ArgumentError:
    return ArgumentError(
        f"KV cache type {text!r}: {reason}; write a name alone or with settings, as in"
        " logquant+window=64+overlay=q8_0+keys=4:1/4,2:3/4+values=2+sinks=4+select=even"
    )


def _number(text: str, setting: str, value: str, least: int) -> int:
    if not re.fullmatch("[0-9]{1,9}", value) or int(value) < least:
        raise _unreadable(text, f"{setting!r} needs a whole number from {least} on")
    return int(value)


@dataclass(frozen=True)
class KvUsage:
    """What a KV cache holds now. Tokens are counted once, as every layer and head holds as many; bytes of all layers.

    n_tokens = n_sinks + n_full + n_packed + n_dropped."""

    n_tokens: int
    n_sinks: int
    """First tokens, in full precision for ever."""
    n_full: int
    """Other tokens that attention reads in full precision: overlay and open page."""
    n_packed: int
    """Tokens that attention reads from their codes."""
    n_dropped: int
    """Tokens that attention no longer sees, in types that drop tokens."""
    n_pages: int
    """Coded pages of 64 tokens. Their tokens that are also in the overlay count in n_full."""
    code_bytes: int
    scale_bytes: int
    """Scales, and the padding of pages."""
    mask_bytes: int
    full_bytes: int
    """Overlay, open page and sinks, as allocated; in types without pages, all cells."""
    index_bytes: int
    """Positions, accumulated attention, channel orders."""
    ring_bytes: int
    """Rings of layers with a sliding window."""
    recurrent_bytes: int = 0
    """States of recurrent layers."""

    @property
    def total_bytes(self) -> int:
        return self.global_bytes + self.ring_bytes + self.recurrent_bytes

    @property
    def global_bytes(self) -> int:
        """Bytes of layers that see the whole context: all but rings and recurrent states."""
        return self.code_bytes + self.scale_bytes + self.mask_bytes + self.full_bytes + self.index_bytes


@dataclass(frozen=True)
class KvPage:
    """One coded page of a KV head: its record (key codes, value codes, scales), and its mask of 64 bits, in which bit t
    says that token t is read in full precision."""

    record: bytes
    mask: int


@dataclass(frozen=True)
class KvFull:
    """The tokens that a KV head holds in full precision, by rising position."""

    positions: npt.NDArray[np.uint32]
    """(n,)"""
    k: npt.NDArray[np.float32]
    """(n, head_dim), after rope, as stored."""
    v: npt.NDArray[np.float32]
    """(n, head_dim), as stored: rotated where the type rotates values."""
    accumulated: npt.NDArray[np.float32]
    """(n,) accumulated attention; 0 for sinks and where it is not kept."""


class KvView(Uncopyable):
    """A view of the KV cache of a session (Session.kv) or of a KvLayer (its .cache). Each call reads its present state.

    Raises ClosedError once its owner is closed, SessionBusy while another thread is inside the owner."""

    _instead = "take another one from its owner"

    def __init__(self, open_handle: Callable[[], Any], cache_of: Callable[[Any], Any], head_dim: int) -> None:
        self._open_handle = open_handle  # called each time, because a pointer kept here could outlive its cache
        self._cache_of = cache_of
        self._head_dim = head_dim

    def _look(self, function: Callable[..., int], *args: Any) -> None:
        handle = self._open_handle()  # referenced until the call has returned
        try:
            check(function(self._cache_of(handle), *args))
        finally:
            del handle  # else the traceback of an exception that somebody keeps would keep it alive

    def options(self) -> KvOptions:
        """The type with all its settings resolved."""
        raw = ffi.new("lq_kv_options *")
        handle = self._open_handle()  # referenced until the texts, whose memory is the cache's, have been read
        check(lib.lq_kv_get_options(self._cache_of(handle), raw))
        return read_kv_options(raw)

    def usage(self) -> KvUsage:
        """Counts of tokens and bytes."""
        raw = ffi.new("lq_kv_usage *")
        self._look(lib.lq_kv_get_usage, raw)
        return read_kv_usage(raw)

    def page(self, layer: int, kv_head: int, page: int) -> KvPage:
        """A coded page. Raises ArgumentError where there is none: a type without pages, a layer with a window."""
        place = _place(layer, kv_head)
        n_bytes, mask = ffi.new("size_t *"), ffi.new("uint64_t *")
        self._look(lib.lq_kv_get_page, *place, whole_number("page", page), ffi.NULL, 0, n_bytes, mask)
        record = ffi.new("uint8_t[]", n_bytes[0])
        self._look(lib.lq_kv_get_page, *place, page, record, len(record), n_bytes, mask)
        return KvPage(bytes(ffi.buffer(record)), int(mask[0]))

    def order(self, layer: int, kv_head: int) -> npt.NDArray[np.uint16]:
        """The key channel at each place of a page, (head_dim,). Raises ArgumentError before the first page."""
        import numpy as np

        order = np.empty(self._head_dim, dtype=np.uint16)
        place = _place(layer, kv_head)
        self._look(lib.lq_kv_get_order, *place, ffi.from_buffer("uint16_t[]", order), len(order))
        return order

    def full(self, layer: int, kv_head: int) -> KvFull:
        """Tokens held in full precision. Raises ArgumentError for a layer or head that does not exist."""
        import numpy as np

        place = _place(layer, kv_head)
        count = ffi.new("size_t *")
        self._look(lib.lq_kv_get_full, *place, ffi.NULL, ffi.NULL, ffi.NULL, ffi.NULL, 0, count)
        n = int(count[0])
        positions, accumulated = np.empty(n, dtype=np.uint32), np.empty(n, dtype=np.float32)
        k, v = (np.empty((n, self._head_dim), dtype=np.float32) for _ in range(2))
        rooms = (ffi.from_buffer("float[]", array) for array in (k, v, accumulated))
        self._look(lib.lq_kv_get_full, *place, ffi.from_buffer("uint32_t[]", positions), *rooms, n, count)
        n = int(count[0])  # fewer, if another thread came in between
        return KvFull(positions[:n], k[:n], v[:n], accumulated[:n])

    def n_heads(self, layer: int) -> int:
        """KV heads of this layer; 0 where it keeps no keys."""
        n_heads = ffi.new("uint32_t *")
        self._look(lib.lq_kv_get_heads, whole_number("layer", layer), n_heads)
        return int(n_heads[0])

    def window(self, layer: int) -> int:
        """How many positions a query of this layer sees, its own included; 0 = the whole context."""
        window = ffi.new("uint32_t *")
        self._look(lib.lq_kv_get_window, whole_number("layer", layer), window)
        return int(window[0])

    def attention(self, layer: int, kv_head: int) -> tuple[int, npt.NDArray[np.float32]]:
        """The attention that each cell got from the last chunk's queries: first cell's position, float32 (n_cells,).

        Softmax probabilities, summed over the chunk's tokens and the query heads of the group. (0, empty) where no
        chunk was evaluated yet, or none since the session went back or was forked. Raises ArgumentError where the
        session was not made with watch_attention."""
        import numpy as np

        place = _place(layer, kv_head)
        first, count = ffi.new("uint32_t *"), ffi.new("size_t *")
        self._look(lib.lq_kv_get_attention, *place, ffi.NULL, 0, first, count)
        accumulated = np.empty(int(count[0]), dtype=np.float32)
        room = ffi.from_buffer("float[]", accumulated)
        self._look(lib.lq_kv_get_attention, *place, room, len(accumulated), first, count)
        return int(first[0]), accumulated[: int(count[0])]


class KvLayer(Uncopyable):
    """One attention layer over a KV cache of its own, without a model: for tests, research and other runtimes.

    n_heads: query heads, a multiple of n_kv_heads. n_ctx: tokens it can hold. chunk: most tokens of one attend().
    limit: tokens that may be appended in all; if more than n_ctx, the oldest pages of 64 are dropped to make room.
    threads: 0 = physical cores. scale: of scores, 0 = 1 / sqrt(head_dim).
    Raises ArgumentError, Unsupported (KV type), OutOfMemory. Used by one thread at a time: SessionBusy."""

    _instead = "make another one, and attend the same tokens"

    def __init__(
        self,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        n_ctx: int,
        kv: KvOptions | str = DEFAULT_KV,
        *,
        chunk: int = 512,
        limit: int = 0,
        threads: int = 0,
        scale: float = 0.0,
    ) -> None:
        self._handle: Any = None
        self.n_heads, self.n_kv_heads, self.head_dim, self.n_ctx = n_heads, n_kv_heads, head_dim, n_ctx
        options = ffi.new("lq_kv_layer_options *")
        lib.lq_kv_layer_options_init(options)
        options.n_heads, options.n_kv_heads = whole_number("n_heads", n_heads), whole_number("n_kv_heads", n_kv_heads)
        options.head_dim, options.n_ctx = whole_number("head_dim", head_dim), whole_number("n_ctx", n_ctx)
        options.n_limit = whole_number("limit", limit)
        options.n_chunk, options.n_threads = whole_number("chunk", chunk), whole_number("threads", threads)
        options.scale = scale
        _keep = fill_kv_options(options.kv, kv)
        out = ffi.new("lq_kv_layer **")
        check(lib.lq_kv_layer_create(options, out))
        self._handle = ffi.gc(out[0], _close_layer)

    def attend(self, q: npt.ArrayLike, k: npt.ArrayLike, v: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """Appends n tokens as one chunk and computes their attention: causal within the chunk, which is in full
        precision, and to the past as it is stored. Afterwards the cache gives up tokens.

        q: (n, n_heads, head_dim). k (after rope), v: (n, n_kv_heads, head_dim). Arrays of any float type.
        Returns float32 (n, n_heads, head_dim). Raises ArgumentError (shapes, more than a chunk), ContextFull."""
        import numpy as np

        arrays = [
            _floats("q", q, self.n_heads, self.head_dim),
            _floats("k", k, self.n_kv_heads, self.head_dim),
            _floats("v", v, self.n_kv_heads, self.head_dim),
        ]
        n_tokens = len(arrays[0])
        if not n_tokens == len(arrays[1]) == len(arrays[2]):
            lengths = ", ".join(str(len(array)) for array in arrays)
            raise ArgumentError(f"q, k and v must have as many tokens each, not {lengths}")
        if n_tokens == 0:
            raise ArgumentError("q, k and v have no tokens; give at least one")
        out = np.empty((n_tokens, self.n_heads, self.head_dim), dtype=np.float32)
        pointers = [ffi.from_buffer("float[]", array, False) for array in arrays]
        check(lib.lq_kv_layer_attend(self._open_handle(), *pointers, n_tokens, ffi.from_buffer("float[]", out)))
        return out

    def rewind(self, n: int) -> int:
        """Forgets all but the first n tokens; returns how many remain: n, or the fewer (often 0) that can be kept
        exactly."""
        kept = ffi.new("uint32_t *")
        check(lib.lq_kv_layer_rewind(self._open_handle(), whole_number("n", n), kept))
        return int(kept[0])

    @property
    def cache(self) -> KvView:
        """A view of the layer's cache."""
        return KvView(self._open_handle, lib.lq_kv_layer_cache, self.head_dim)

    def _open_handle(self) -> Any:
        handle = self._handle
        if handle is None:
            raise ClosedError("this KV layer is closed; make a new one")
        return handle

    def close(self) -> None:
        """Frees the cache; may be called twice. If another thread is inside, it is freed when that thread has left."""
        self._handle = None

    def __enter__(self) -> KvLayer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def bits_per_value(n_bytes: int, n_values: int) -> float:
    """Bits per K or V element; 0 without elements."""
    return 8 * n_bytes / n_values if n_values else 0.0


# ---- between Python and C --------------------------------------------------------------------------------------------


def fill_kv_options(raw: Any, kv: KvOptions | str) -> list[Any]:
    """Writes options into an lq_kv_options. Returns the memory that raw points into: keep it as long as raw is used.
    Raises ArgumentError for values that C cannot express; the core checks all else."""
    options = KvOptions(kv) if isinstance(kv, str) else kv
    if not isinstance(options, KvOptions):
        raise ArgumentError(f"kv must be a name or KvOptions, not {type(kv).__name__}")
    lib.lq_kv_options_init(ffi.addressof(raw))
    kept = []
    for name in ("name", "keys", "overlay", "select"):
        text = getattr(options, name)
        if text is None and name != "name":
            continue
        if not isinstance(text, str) or "\0" in text:
            raise ArgumentError(f"the KV cache's {name} must be text without zeros, not {text!r}")
        # Escapes stand for characters that cannot be encoded: the core refuses such a value and names it in the error.
        kept.append(ffi.new("char[]", text.encode(errors="backslashreplace")))
        setattr(raw, name, kept[-1])
    raw.value_bits, raw.window = whole_number("value_bits", options.value_bits), whole_number("window", options.window)
    if options.sinks is not None:
        if not hasattr(options.sinks, "__index__") or not 0 <= options.sinks < 2**31:
            raise ArgumentError(f"sinks must be 0 to 64 tokens, not {options.sinks!r}")
        raw.sinks = options.sinks
    return kept


def read_kv_options(raw: Any) -> KvOptions:
    """The resolved options that the core reports."""

    def text(pointer: Any) -> Any:
        return None if pointer == ffi.NULL else ffi.string(pointer).decode()

    return KvOptions(
        name=text(raw.name),
        keys=text(raw.keys),
        value_bits=int(raw.value_bits),
        window=int(raw.window),
        sinks=int(raw.sinks) if raw.sinks >= 0 else None,
        overlay=text(raw.overlay),
        select=text(raw.select),
    )


def read_kv_usage(raw: Any) -> KvUsage:
    """Converts an lq_kv_usage."""
    return KvUsage(*(int(getattr(raw, field.name)) for field in fields(KvUsage)))


def _place(layer: int, kv_head: int) -> tuple[int, int]:
    return whole_number("layer", layer), whole_number("kv_head", kv_head)


def _floats(name: str, given: npt.ArrayLike, n_heads: int, head_dim: int) -> npt.NDArray[np.float32]:
    import numpy as np

    try:
        found = np.asarray(given)
    except ValueError as cause:  # nested lists of unequal lengths
        raise ArgumentError(f"{name} must be an array of floats: {cause}") from cause
    if found.dtype.kind != "f":
        raise ArgumentError(f"{name} must be an array of floats, not of {found.dtype}")
    if found.ndim != 3 or found.shape[1:] != (n_heads, head_dim):
        raise ArgumentError(f"{name} must have the shape (tokens, {n_heads}, {head_dim}), not {found.shape}")
    return np.ascontiguousarray(found, dtype=np.float32)


def _close_layer(handle: Any) -> None:
    lib.lq_kv_layer_close(ffi.new("lq_kv_layer **", handle))
