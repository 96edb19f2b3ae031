"""A layer of the cache: implements transformers' interface with a Store for each group of rows with equal padding."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

from pylogquant.errors import ArgumentError, Unsupported
from pylogquant.kv import KvUsage
from pylogquant.transformers.config import LogQuantConfig, Recipe
from pylogquant.transformers.operations import operations_for
from pylogquant.transformers.store import Operations, Shape, Store

__all__ = ["ATTENTION", "KEY", "VALUE", "Group", "LogQuantLayer", "Shared", "Turn"]

ATTENTION = "logquant"
"""The name under which the attention is registered."""
KEY, VALUE = "_logquant_key", "_logquant_value"
"""Attributes of the tensors that update() returns for this attention. Their value is the Turn."""
_CUTTABLE = 64  # how many newest tokens are kept apart, so that they can be taken back
_RECORDS_ALWAYS = not hasattr(Cache, "activate_past_recording")  # transformers 4 does not say when it is needed


class Turn:
    """One update() of a layer. The tensors that it returned carry it: attention to both is attention to the layer."""

    def __init__(self, layer: LogQuantLayer) -> None:
        self.layer = layer


@dataclass
class Shared:
    """State that the layers of a cache share."""

    operations: dict[str, Operations] = field(default_factory=dict)
    """The operations for each kind of device."""
    waiting: LogQuantLayer | None = None
    """The layer whose update() no attention has followed yet."""


@dataclass
class Piece:
    """Tokens of a forward pass that the store appended at once, and the store as their queries saw it."""

    start: int
    end: int
    store: Store


@dataclass
class Group:
    """Rows of the batch with equal padding on the left, and their store."""

    rows: list[int]
    padding: int
    store: Store
    pieces: list[Piece] = field(default_factory=list)
    """Pieces of the last forward pass, for other layers that attend to them."""


class LogQuantLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer that sees the whole context. Positions count from a row's first token that is not padding, so that a
    row of a padded batch holds what it would hold alone.

    lends: other layers attend to this one's keys and values (config.kv_sharing_modes), so that it keeps the store as a
    forward pass saw it until the next one."""

    is_compileable = False
    is_croppable = True
    is_sliding = False
    layer_type = "full_attention"

    def __init__(
        self,
        config: PretrainedConfig,
        options: LogQuantConfig,
        recipe: Recipe,
        shared: Shared | None = None,
        *,
        lends: bool = False,
    ) -> None:
        super().__init__()
        self._config, self._options, self.recipe, self._lends = config, options, recipe, lends
        self._shared = shared if shared is not None else Shared()
        self._groups: list[Group] = []
        self._incoming: tuple[torch.Tensor, torch.Tensor] | None = None
        self._turn: Turn | None = None
        self._n_seen = 0
        self._checkpoint: int | None = None
        self._padding: list[int] | None = None
        self.record_past = _RECORDS_ALWAYS
        self._offloads = False

    # ---- what transformers asks

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor | None = None) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Appends a chunk. key_states (after rope), value_states: (batch, heads, n, head_dim).

        With attn_implementation="logquant" returns the same values, and that attention reads the cache. With any other
        one returns everything held, dequantized, (batch, heads, tokens, head_dim), padding as zeros, and raises
        Unsupported if the selection needs to see the queries. Raises Unsupported for heads that no layer can hold."""
        if key_states.requires_grad and torch.is_grad_enabled():
            raise Unsupported("a LogQuant cache passes no gradients on; use torch.no_grad(), or no cache in training")
        if key_states.shape != value_states.shape:
            raise Unsupported(
                f"keys {tuple(key_states.shape)} and values {tuple(value_states.shape)} must have the same shape; this"
                " model's attention does not fit a LogQuant cache"
            )
        if self._shared.waiting is not None:
            raise Unsupported(
                "the last keys and values never reached attn_implementation='logquant': this model's attention changes"
                " them, or does not use transformers' attention interface, or was interrupted; reset() the cache, and"
                " use LogQuantConfig(select='even') with another attention"
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.attends:
            self._incoming = (key_states, value_states)
            self._n_seen += key_states.shape[2]
            self._turn, self._shared.waiting = Turn(self), self
            # Returns new tensor objects: a model that attends with its own ones does not attend to the cache.
            handed = key_states.view_as(key_states), value_states.view_as(value_states)
            setattr(handed[0], KEY, self._turn)
            setattr(handed[1], VALUE, self._turn)
            return handed
        return self._update_dequantized(key_states, value_states, _padding_of(args, kwargs, *key_states.shape[::2]))

    def get_seq_length(self) -> int:
        """Tokens that were appended, padding and dropped ones included."""
        return self._n_seen

    def get_mask_sizes(self, query_length: int | torch.Tensor) -> tuple[int, int]:
        """Length and offset of the keys that attention will get. transformers 4 passes positions, not their number."""
        n = query_length if isinstance(query_length, int) else int(query_length.shape[0])
        n_gone = 0
        if self.recipe.drops and not self.attends and self._groups:
            n_gone = self._n_seen - self._n_returned()
        return self._n_seen - n_gone + n, n_gone

    def get_max_length(self) -> int:
        return -1

    def get_max_cache_shape(self) -> int:
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last -tokens_to_remove tokens; a positive number, as in transformers 4, is how many to keep.

        Exact, or raises ArgumentError. The tokens of the last forward pass can be taken back if there were at most 64;
        after activate_past_recording() the last 64 of any number, and with selection by attention also a part of
        several. Older tokens can be taken back while none were given up since; with selection by attention only to the
        end of a pass of several tokens. A checkpoint() can always be reached."""
        n = self.n_to_remove(tokens_to_remove)
        self.check_crop(n)
        if n == 0:
            return
        if n >= self._n_seen:
            self.reset()
            return
        self._forget_turn()
        n_keep = self._n_seen - n
        for group in self._groups:
            if n_keep == self._checkpoint:
                group.store.return_to_checkpoint()
            else:
                group.store.crop(n)
        self._n_seen = n_keep
        if self._checkpoint is not None and n_keep < self._checkpoint:
            self._checkpoint = None

    def n_to_remove(self, tokens_to_remove: int) -> int:
        """How many tokens crop() removes for this argument, 0 or more."""
        return -tokens_to_remove if tokens_to_remove <= 0 else max(self._n_seen - tokens_to_remove, 0)

    def check_crop(self, n: int) -> None:
        """Raises ArgumentError where the last n tokens cannot be taken back exactly."""
        if n == 0 or n >= self._n_seen or self._n_seen - n == self._checkpoint:
            return
        for group in self._groups:
            if n > group.store.n_held:
                raise ArgumentError(f"{n} tokens cannot be removed: a row of the batch holds {group.store.n_held}")
            group.store.check_crop(n)

    def checkpoint(self) -> None:
        """Saves what crop() needs to come back here, whatever follows. Replaces an earlier checkpoint."""
        for group in self._groups:
            group.store.set_checkpoint()
        self._checkpoint = self._n_seen if self._groups else None

    def activate_past_recording(self) -> None:
        """Makes crop() able to take back the newest 64 tokens of each later forward pass, whatever the selection."""
        self.record_past = True

    def reset(self) -> None:
        self._forget_turn()
        self._groups, self._n_seen, self._checkpoint = [], 0, None

    def _forget_turn(self) -> None:
        self._turn, self._incoming = None, None
        if self._shared.waiting is self:
            self._shared.waiting = None
        for group in self._groups:
            group.pieces = []

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self._groups:
            self._select(torch.arange(self.batch_size).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        if indices.dtype == torch.bool:
            indices = indices.nonzero()[:, 0]
        self._select(indices)

    @property
    def batch_size(self) -> int:
        return sum(len(group.rows) for group in self._groups)

    def offload(self) -> None:
        """Moves the layer to the CPU, from where attention fetches it for as long as it needs it."""
        self._offloads = True
        for group in self._groups:
            group.store.move(torch.device("cpu"))

    def prefetch(self) -> None:
        for group in self._groups:
            if group.store.device != self.device:
                group.store.move(self.device)

    # ---- attention

    @property
    def attends(self) -> bool:
        """Whether the model's attention is the one that reads this cache."""
        return getattr(self._config, "_attn_implementation", None) == ATTENTION

    def attend(
        self, turn: Turn, query: torch.Tensor, padding: Sequence[int] | None, scale: float, softcap: float
    ) -> torch.Tensor:
        """Attention to the chunk that update() appended, and to all tokens before. query (batch, query heads, n,
        head_dim), after rope: the last n queries of the chunk; padding: tokens on the left of each row, None = none.
        Returns (batch, n, query heads, head_dim), zeros for padding.

        Layers that borrow these keys may call it again for the same turn: they attend to the store as the first call
        saw it, and their attention does not count for the selection. Raises Unsupported for other turns."""
        if turn is not self._turn:
            raise Unsupported(
                "attention was asked for with keys of an earlier forward pass; pass them through the cache's update()"
            )
        q = query.transpose(1, 2)
        out = torch.zeros(q.shape, dtype=query.dtype, device=query.device)
        if self._incoming is None:
            if padding is not None:
                self._check_padding(padding)
            self._attend_again(q, out, scale, softcap)
            return out
        (k, v), self._incoming, self._shared.waiting = self._incoming, None, None
        n, first = k.shape[2], self._n_seen - k.shape[2]
        if query.shape[2] != n:
            raise Unsupported(
                f"{n} new keys came with {query.shape[2]} queries: cross attention, which a LogQuant cache is not for;"
                " use EncoderDecoderCache(LogQuantCache(config), DynamicCache()), or DynamicCache"
            )
        if not self._groups:
            self._begin(k, list(padding) if padding is not None else [0] * len(k))
        elif padding is not None:
            self._check_padding(padding)
        self.prefetch()
        for group in self._groups:
            skip = max(group.padding - first, 0)
            every = len(self._groups) == 1
            mine = [x if every else x[group.rows] for x in (q, k, v)]
            group.pieces = []
            for start, end in self._pieces(skip, n):
                group.store.append(mine[1][:, :, start:end], mine[2][:, :, start:end])
                by_query = self.record_past and end - start <= _CUTTABLE
                part = group.store.attend(mine[0][:, start:end], scale, softcap, by_query=by_query)
                settles = end - start > _CUTTABLE  # too long to be taken back, so packed at once
                if settles or end < n:
                    if self._lends:
                        group.pieces.append(Piece(start, end, group.store.as_seen()))
                else:
                    group.pieces.append(Piece(start, end, group.store))
                if settles:
                    group.store.settle()
                if every:
                    out[:, start:end] = part
                else:
                    out[group.rows, start:end] = part.to(out.dtype)
        if self._offloads:
            self.offload()
        return out

    def _attend_again(self, q: torch.Tensor, out: torch.Tensor, scale: float, softcap: float) -> None:
        """Attends again to the last forward pass. q: queries of its last tokens, (batch, n, query heads, head_dim);
        out: the same shape, written."""
        n = q.shape[1]
        for group in self._groups:
            rows = slice(None) if len(self._groups) == 1 else group.rows
            n_pass = group.pieces[-1].end if group.pieces else 0
            first, skip = n_pass - n, max(group.padding - (self._n_seen - n_pass), 0)
            if first < 0 or group.pieces[0].start > max(first, skip):
                raise Unsupported(
                    "attention was asked for again, and a part of the tokens is packed already: this model's layers"
                    " share keys in a way that its config does not say; pass at most 64 tokens at a time"
                )
            for piece in group.pieces:
                start = max(piece.start, first)
                if start < piece.end:
                    here = slice(start - first, piece.end - first)
                    piece.store.move(q.device)
                    out[rows, here] = piece.store.look(q[rows, here], scale, softcap).to(out.dtype)

    def _pieces(self, start: int, end: int) -> list[tuple[int, int]]:
        """Cuts a forward pass into chunks. If passes are recorded, the newest tokens become a chunk of their own."""
        pieces = []
        while start < end:
            stop = min(start + self._options.chunk, end)
            pieces.append((start, stop))
            start = stop
        if self.record_past and pieces and pieces[-1][1] - pieces[-1][0] > _CUTTABLE:
            start, end = pieces.pop()
            pieces += [(start, end - _CUTTABLE), (end - _CUTTABLE, end)]
        return pieces

    # ---- any other attention

    def _update_dequantized(
        self, k: torch.Tensor, v: torch.Tensor, padding: list[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.recipe.needs_accumulated:
            raise Unsupported(
                f"KV cache type '{self.recipe.name}' keeps tokens by the attention they receive (select="
                f"'{self.recipe.select}'), which needs attn_implementation=\"logquant\" (this model has"
                f" '{getattr(self._config, '_attn_implementation', None)}'): pass it to from_pretrained() or"
                ' model.set_attn_implementation(), or choose LogQuantConfig(select="even")'
            )
        n = k.shape[2]
        if not self._groups:
            self._begin(k, self._padding or padding)
        if self.recipe.drops and len(self._groups) > 1:
            raise Unsupported(
                f"KV cache type '{self.recipe.name}' drops tokens, and rows of this batch have different padding: only"
                ' attn_implementation="logquant" can tell them apart'
            )
        self.prefetch()
        first, n_past = self._n_seen, self._n_returned()
        self._n_seen += n
        every_k = k.new_zeros(*k.shape[:2], n_past + n, k.shape[3])
        every_v = torch.zeros_like(every_k)
        for group in self._groups:
            store, every = group.store, len(self._groups) == 1
            rows = slice(None) if every else group.rows
            store.settle()
            past_k, past_v = store.dequantize()
            m = past_k.shape[2]
            every_k[rows, :, n_past - m : n_past] = past_k.to(k.dtype)
            every_v[rows, :, n_past - m : n_past] = past_v.to(v.dtype)
            every_k[rows, :, n_past:], every_v[rows, :, n_past:] = k[rows], v[rows]
            skip = max(group.padding - first, 0)
            # Tokens that may be taken back stay in f16; the rest of a long prompt is packed at once.
            split = max(n - _CUTTABLE, skip) if self.record_past or n - skip <= _CUTTABLE else n
            for start, end in ((skip, split), (split, n)):
                if start < end:
                    store.append(k[rows, :, start:end], v[rows, :, start:end])
            if split == n:
                store.settle()
        if self._offloads:
            self.offload()
        return every_k, every_v

    def _n_returned(self) -> int:
        """Past tokens that update() returns, padding included."""
        if not self._groups:
            return 0
        if not self.recipe.drops:
            return self._n_seen
        group = self._groups[0]
        counts = group.store.counts_when_settled()
        return group.padding + counts.n_sinks + counts.n_overlay + counts.n_open

    # ---- rows

    def _begin(self, k: torch.Tensor, padding: list[int]) -> None:
        shape = Shape.of(self.recipe, k.shape[1], k.shape[3])
        if len(padding) != len(k):
            raise ArgumentError(f"the attention mask has {len(padding)} rows, the batch {len(k)}")
        if max(padding) >= k.shape[2]:
            raise Unsupported("a row of the batch begins with nothing but padding; pass its first tokens with it")
        shared = self._shared.operations
        if k.device.type not in shared:
            shared[k.device.type] = operations_for(self._options, k.device)
        operations = shared[k.device.type]
        for amount in sorted(set(padding)):
            rows = [row for row, its in enumerate(padding) if its == amount]
            self._groups.append(Group(rows, amount, Store(shape, len(rows), operations, k.device)))

    def _check_padding(self, padding: Sequence[int]) -> None:
        mine = [0] * self.batch_size
        for group in self._groups:
            for row in group.rows:
                mine[row] = group.padding
        if list(padding) != mine:
            raise ArgumentError(
                f"the attention mask hides {list(padding)} tokens on the left, at first it hid {mine}; a LogQuant cache"
                " cannot change that later"
            )

    def _select(self, indices: torch.Tensor) -> None:
        if not self._groups:
            return
        self._forget_turn()
        if len(self._groups) == 1:
            group = self._groups[0]
            rows = list(range(len(indices)))
            self._groups = [Group(rows, group.padding, group.store.select(indices))]
            return
        place = {row: (g, i) for g, group in enumerate(self._groups) for i, row in enumerate(group.rows)}
        wanted = [place[int(index)] for index in indices.tolist()]
        groups = []
        for g, group in enumerate(self._groups):
            rows = [row for row, (its, _) in enumerate(wanted) if its == g]
            if rows:
                chosen = torch.tensor([wanted[row][1] for row in rows])
                groups.append(Group(rows, group.padding, group.store.select(chosen)))
        self._groups = groups

    # ---- copies

    def __getstate__(self) -> dict[str, Any]:
        """What pickle writes. Raises Unsupported in the middle of a forward pass."""
        if self._incoming is not None:
            raise Unsupported("a LogQuant cache cannot be copied in the middle of a forward pass")
        groups = [Group(group.rows, group.padding, group.store) for group in self._groups]
        return {**self.__dict__, "_groups": groups, "_turn": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> LogQuantLayer:
        """A copy that shares the model's config only, which says what attention the model has at any time."""
        memo[id(self._config)] = self._config
        other = object.__new__(type(self))
        memo[id(self)] = other
        other.__dict__.update(deepcopy(self.__getstate__(), memo))
        return other

    # ---- looking

    def set_padding(self, padding: list[int]) -> None:
        """Sets how many tokens of each row are padding; call it before the first forward pass."""
        self._padding = padding

    @property
    def groups(self) -> list[Group]:
        """Groups of rows with equal padding, with settled chunks. They are the layer's own, so that the next update()
        changes them."""
        for group in self._groups:
            group.store.settle()
        return self._groups

    def usage(self) -> KvUsage:
        """Tokens of the first row, and bytes of all rows, as allocated; the last chunk counts as full."""
        fields = dict.fromkeys(
            ("code_bytes", "scale_bytes", "mask_bytes", "full_bytes", "index_bytes", "ring_bytes"), 0
        )
        for group in self._groups:
            for name, n_bytes in group.store.bytes_by_kind().items():
                fields[name] += n_bytes
        row = next((group.store for group in self._groups if 0 in group.rows), None)
        if row is None:
            return KvUsage(0, 0, 0, 0, 0, 0, **fields)
        return KvUsage(**row.tokens_by_kind(), **fields)


def _padding_of(args: tuple[Any, ...], kwargs: dict[str, Any], n_rows: int, n: int) -> list[int]:
    """The padding of each row in the first forward pass, from update()'s further arguments: the position of the last
    token, or, in transformers 4, which passes rope's sines, the first token with sines of 0, which is at position 0."""
    found = None
    inner = kwargs.get("kwargs")
    positions = (inner if isinstance(inner, dict) else kwargs).get("position_ids")
    rope = args[0] if args and isinstance(args[0], dict) else kwargs.get("cache_kwargs")
    sines = rope.get("sin") if isinstance(rope, dict) else None
    if isinstance(positions, torch.Tensor) and positions.ndim == 2 and positions.shape[1] == n:
        found = (n - 1 - positions[:, -1]).clamp(min=0).tolist()
    elif isinstance(sines, torch.Tensor) and sines.ndim == 3 and sines.shape[1] == n:
        found = (sines == 0).all(dim=-1).int().argmax(dim=-1).tolist()
    if found is None:
        return [0] * n_rows
    return [int(amount) for amount in (found * n_rows if len(found) == 1 else found)]
