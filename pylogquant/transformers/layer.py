"""A layer of the cache: transformers' interface over stores of rows with equal padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin

from pylogquant.errors import ArgumentError, Unsupported
from pylogquant.kv import KvUsage
from pylogquant.transformers.config import LogQuantConfig, Recipe
from pylogquant.transformers.operations import operations_for
from pylogquant.transformers.store import Shape, Store

__all__ = ["ATTENTION", "MARK", "Group", "LogQuantLayer"]

ATTENTION = "logquant"
"""The name that attention is registered under."""
MARK = "_logquant_layer"
"""Attribute of the key tensors that update() hands on to this attention: the layer that holds the rest."""
_CUTTABLE = 64  # newest tokens that wait, so that they can be taken back
_RECORDS_ALWAYS = not hasattr(Cache, "activate_past_recording")  # older versions do not say when it is needed


@dataclass
class Group:
    """Rows of the batch with as much padding on the left, and what they hold."""

    rows: list[int]
    padding: int
    store: Store


class LogQuantLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer that sees the whole context. Positions count from a row's first token that is not padding, so that a
    row of a padded batch holds what it would hold alone."""

    is_compileable = False
    is_croppable = True
    is_sliding = False
    layer_type = "full_attention"

    def __init__(
        self, config: PretrainedConfig, options: LogQuantConfig, recipe: Recipe, operations: Any = None
    ) -> None:
        super().__init__()
        self._config, self._options, self.recipe = config, options, recipe
        self._shared_operations = operations if operations is not None else {}
        self._groups: list[Group] = []
        self._incoming: tuple[torch.Tensor, torch.Tensor] | None = None
        self._n_seen = 0
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
        """Takes a chunk in. key_states (after rope), value_states: (batch, heads, n, head_dim).

        With attn_implementation="logquant" they are handed on as they are, and that attention reads the cache. With any
        other one returns everything held, dequantized, (batch, heads, tokens, head_dim), padding as zeros. Raises
        Unsupported where the selection needs to see the queries, or a layer cannot hold such heads."""
        if key_states.requires_grad and torch.is_grad_enabled():
            raise Unsupported("a LogQuant cache passes no gradients on; use torch.no_grad(), or no cache in training")
        if key_states.shape != value_states.shape:
            raise Unsupported(
                f"keys {tuple(key_states.shape)} and values {tuple(value_states.shape)} must have the same shape; this"
                " model's attention does not fit a LogQuant cache"
            )
        if self._incoming is not None:
            raise Unsupported(
                "the last keys and values never reached attn_implementation='logquant': this model's attention changes"
                " them, or does not use transformers' attention interface; use select='even' with another attention"
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self.attends:
            self._incoming = (key_states, value_states)
            self._n_seen += key_states.shape[2]
            setattr(key_states, MARK, self)
            return key_states, value_states
        return self._update_dequantized(key_states, value_states, _padding_of(args, kwargs, *key_states.shape[::2]))

    def get_seq_length(self) -> int:
        """Tokens that came, padding and dropped ones included."""
        return self._n_seen

    def get_mask_sizes(self, query_length: int | torch.Tensor) -> tuple[int, int]:
        """Length and offset of the keys that attention will get. Older versions pass positions, not their number."""
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
        """Forgets the last -tokens_to_remove tokens; a positive number, as in older versions, is how many to keep.

        Exact, or ArgumentError. The tokens of the last forward pass can be taken back if there were at most 64; after
        activate_past_recording() the last 64 of any number, and also some of several where the selection is by
        attention. Older ones can where the selection is not by attention and nothing was given up since."""
        n = -tokens_to_remove if tokens_to_remove <= 0 else max(self._n_seen - tokens_to_remove, 0)
        if n == 0:
            return
        if n >= self._n_seen:
            self.reset()
            return
        for group in self._groups:
            if n > group.store.n_held:
                raise ArgumentError(f"{n} tokens cannot be removed: a row of the batch holds {group.store.n_held}")
        for group in self._groups:
            group.store.crop(n)
        self._n_seen -= n

    def activate_past_recording(self) -> None:
        """From now on the newest 64 tokens of a forward pass can be taken back, whatever the selection."""
        self.record_past = True

    def reset(self) -> None:
        self._groups, self._incoming, self._n_seen = [], None, 0

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
        """To the CPU; attention brings it back for as long as it needs it."""
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

    def attend(self, query: torch.Tensor, padding: Sequence[int] | None, scale: float, softcap: float) -> torch.Tensor:
        """Attention of the chunk that update() took in. query (batch, query heads, n, head_dim), after rope; padding:
        tokens of it on the left of each row, None = none. Returns (batch, n, query heads, head_dim), zeros for
        padding."""
        if self._incoming is None:
            raise Unsupported("attention was asked for twice, or before the cache's update()")
        (k, v), self._incoming = self._incoming, None
        n, first = k.shape[2], self._n_seen - k.shape[2]
        if not self._groups:
            self._begin(k, list(padding) if padding is not None else [0] * len(k))
        elif padding is not None:
            self._check_padding(padding)
        self.prefetch()
        q = query.transpose(1, 2)
        out = torch.zeros(q.shape, dtype=query.dtype, device=query.device)
        for group in self._groups:
            skip = max(group.padding - first, 0)
            every = len(self._groups) == 1
            mine = [x if every else x[group.rows] for x in (q, k, v)]
            for start, end in self._pieces(skip, n):
                group.store.append(mine[1][:, :, start:end], mine[2][:, :, start:end])
                by_query = self.record_past and end - start <= _CUTTABLE
                part = group.store.attend(mine[0][:, start:end], scale, softcap, by_query=by_query)
                if end - start > _CUTTABLE:  # not to be taken back: packed at once
                    group.store.settle()
                if every:
                    out[:, start:end] = part
                else:
                    out[group.rows, start:end] = part.to(out.dtype)
        if self._offloads:
            self.offload()
        return out

    def _pieces(self, start: int, end: int) -> list[tuple[int, int]]:
        """A forward pass in chunks. When it is recorded its newest tokens are a chunk of their own."""
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
        if self.recipe.needs_received:
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
            # What can be taken back waits in f16; the rest of a long prompt is packed at once.
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
        if k.device.type not in self._shared_operations:
            self._shared_operations[k.device.type] = operations_for(self._options, k.device)
        operations = self._shared_operations[k.device.type]
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

    # ---- looking

    def set_padding(self, padding: list[int]) -> None:
        """How many tokens of the first forward pass are padding, of each row; before it."""
        self._padding = padding

    @property
    def groups(self) -> list[Group]:
        """Rows with equal padding, settled: what is in them changes with the next update()."""
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
    """Of the first forward pass, from what the model's attention hands on: from the position of the last token, or, in
    transformers 4, which hands rope's sines on, from the first token whose sines are 0, the one at position 0."""
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
