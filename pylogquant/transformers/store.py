"""One layer's LogQuant cache of some rows of a batch that hold equally many tokens, in torch tensors.

The last chunk is kept apart until the next one comes. Only then it is settled: its tokens join the past, tokens are
given up and pages are coded. Until then it can be cut short exactly, as if the tokens had never come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from pylogquant.errors import ArgumentError, Unsupported
from pylogquant.transformers.config import Recipe
from pylogquant.transformers.pages import PAGE, PageFormat, from_q8_0, hadamard, q8_0_bytes, to_q8_0
from pylogquant.transformers.selection import Counts, choose, count, n_give_ups

__all__ = ["Cells", "Operations", "Shape", "Store"]

_TENSORS = (
    "sinks_k",
    "sinks_v",
    "overlay_k",
    "overlay_v",
    "open_k",
    "open_v",
    "chunk_k",
    "chunk_v",
    "positions",
    "accumulated",
    "gave",
    "blocks",
    "masks",
    "order",
)
"""Names of a Store's tensors. Their first dimension is the row."""
_MARKS = 8  # how many ends of passes crop() can go back to, the newest ones
_GROWTH = 8  # pages that are allocated ahead, at least; more if an eighth of the pages is more


@dataclass(frozen=True)
class Shape:
    """Settings that all layers of one kind share."""

    recipe: Recipe
    n_kv_heads: int
    head_dim: int
    form: PageFormat | None
    """None for types that drop tokens."""

    @staticmethod
    def of(recipe: Recipe, n_kv_heads: int, head_dim: int) -> Shape:
        if head_dim % 8 != 0 or head_dim > 512:
            raise Unsupported(
                f"heads of {head_dim} channels cannot be stored; a LogQuant cache needs a multiple of 8, at most 512"
            )
        return Shape(recipe, n_kv_heads, head_dim, None if recipe.drops else PageFormat(recipe, head_dim))

    def __deepcopy__(self, memo: dict[int, object]) -> Shape:
        return self


@dataclass
class Cells:
    """The cells that attention reads besides pages, in this order: (k, v), each (rows, heads, tokens, ...)."""

    sinks: tuple[torch.Tensor, torch.Tensor]
    overlay: tuple[torch.Tensor, torch.Tensor]
    open: tuple[torch.Tensor, torch.Tensor]
    chunk: tuple[torch.Tensor, torch.Tensor]

    def all(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [self.sinks, self.overlay, self.open, self.chunk]


class Operations(Protocol):
    """Operations on a device, implemented by the core, by torch, and by torch with Triton."""

    def to_cells(self, shape: Shape, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Converts k (after rope), v (rows, heads, n, head_dim) of any float type to contiguous f16 cells; rotates
        values if the type does."""

    def pack(
        self, shape: Shape, k: torch.Tensor, v: torch.Tensor, order: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes f16 cells (rows, heads, 64 pages, head_dim) into blocks, uint8 (rows, pages, block_bytes). Returns them
        and the order of key channels, int16 (rows, heads, head_dim), learnt from the first page if order is None."""

    def attend(
        self, store: Store, q: torch.Tensor, n_chunk: int, scale: float, softcap: float, *, want_accumulated: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Attends the last n of the first n_chunk tokens of the store's chunk. q: their queries (rows, n, query heads,
        head_dim) of any float type. Returns float32 of the same shape and, if wanted, the attention that each cell got
        from them, float32 (rows, heads, cells)."""


class Store:
    """The cache. Positions count from the row's own first token. crop() raises ArgumentError."""

    def __init__(self, shape: Shape, n_rows: int, operations: Operations, device: torch.device) -> None:
        self.shape, self.operations = shape, operations
        self.n_tokens = 0
        """Settled tokens; those of the chunk do not count."""
        recipe, d = shape.recipe, shape.head_dim
        lead = (n_rows, shape.n_kv_heads)
        half = {"dtype": torch.float16, "device": device}
        self.sinks_k, self.sinks_v = (torch.empty(*lead, 0, d, **half) for _ in range(2))
        overlay = (
            half | {"size": (*lead, 0, d)}
            if recipe.overlay == "f16"
            else {"dtype": torch.uint8, "device": device, "size": (*lead, 0, q8_0_bytes(d))}
        )
        self.overlay_k, self.overlay_v = (torch.empty(**overlay) for _ in range(2))
        self.open_k, self.open_v = (torch.zeros(*lead, PAGE, d, **half) for _ in range(2))
        self.chunk_k, self.chunk_v = (torch.empty(*lead, 0, d, **half) for _ in range(2))
        self.positions = torch.empty(*lead, 0, dtype=torch.int32, device=device)
        """(rows, heads, overlay)"""
        self.accumulated = torch.zeros(*lead, 0, device=device)
        """(rows, heads, sinks + overlay + open) accumulated attention before the chunk"""
        self.gave: torch.Tensor | None = None
        """(rows, heads, queries, sinks + overlay + open + chunk) attention that each query of the chunk gave, or, with
        1 in place of queries, the sum over all of them"""
        block_bytes = shape.form.block_bytes(shape.n_kv_heads) if shape.form is not None else 0
        self.blocks = torch.empty(n_rows, 0, block_bytes, dtype=torch.uint8, device=device)
        """(rows, room for pages, block_bytes)"""
        self.masks = torch.empty(*lead, 0, dtype=torch.int64, device=device)
        """(rows, heads, pages)"""
        self.order: torch.Tensor | None = None
        """int16 (rows, heads, head_dim), after the first page"""
        self.marks: list[tuple[int, torch.Tensor]] = []
        """(n_tokens, accumulated) at the ends of passes of several tokens, since tokens were last given up"""
        self.checkpoint: Store | None = None
        """The store to come back to; without blocks, because this store's only grow meanwhile"""

    # ---- looking

    @property
    def n_chunk(self) -> int:
        return int(self.chunk_k.shape[2])

    @property
    def n_held(self) -> int:
        """All tokens, those of the chunk included."""
        return self.n_tokens + self.n_chunk

    @property
    def n_rows(self) -> int:
        return int(self.sinks_k.shape[0])

    @property
    def n_pages(self) -> int:
        """Coded pages."""
        return int(self.masks.shape[2])

    @property
    def device(self) -> torch.device:
        return self.sinks_k.device

    @property
    def counts(self) -> Counts:
        """How the settled tokens are stored."""
        return count(self.shape.recipe, self.n_tokens)

    @property
    def pages(self) -> torch.Tensor:
        """The blocks of coded pages, uint8 (rows, pages, block_bytes)."""
        return self.blocks[:, : self.n_pages]

    def counts_when_settled(self) -> Counts:
        """How all tokens will be stored once the chunk is settled."""
        return count(self.shape.recipe, self.n_held)

    def cells(self, n_chunk: int) -> Cells:
        """The cells, with the first n_chunk tokens of the chunk."""
        n_open = self.counts.n_open
        return Cells(
            (self.sinks_k, self.sinks_v),
            (self.overlay_k, self.overlay_v),
            (self.open_k[:, :, :n_open], self.open_v[:, :, :n_open]),
            (self.chunk_k[:, :, :n_chunk], self.chunk_v[:, :, :n_chunk]),
        )

    def overlay(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The overlay's keys and values, float32 (rows, heads, overlay, head_dim)."""
        if self.shape.recipe.overlay == "f16":
            return self.overlay_k.float(), self.overlay_v.float()
        d = self.shape.head_dim
        return from_q8_0(self.overlay_k, d), from_q8_0(self.overlay_v, d)

    def tensors(self) -> list[torch.Tensor]:
        """All tensors that it holds."""
        return [tensor for name in _TENSORS if (tensor := getattr(self, name)) is not None]

    def tokens_by_kind(self) -> dict[str, int]:
        """Tokens by KvUsage's field names; the chunk counts as full."""
        recipe, counts = self.shape.recipe, self.counts
        n_full = counts.n_overlay + counts.n_open
        n_rest = self.n_tokens - counts.n_sinks - n_full
        return {
            "n_tokens": self.n_held,
            "n_sinks": counts.n_sinks,
            "n_full": n_full + self.n_chunk,
            "n_packed": 0 if recipe.drops else n_rest,
            "n_dropped": n_rest if recipe.drops else 0,
            "n_pages": self.n_pages,
        }

    def bytes_by_kind(self) -> dict[str, int]:
        """Allocated bytes by KvUsage's field names; memory for later pages counts as scales."""

        stores = [self] if self.checkpoint is None else [self, self.checkpoint]

        def of(*names: str) -> int:
            tensors = [getattr(store, name) for store in stores for name in names]
            if "accumulated" in names:
                tensors += [accumulated for store in stores for _, accumulated in store.marks]
            storages = {x.untyped_storage().data_ptr(): x.untyped_storage() for x in tensors if x is not None}
            return sum(storage.nbytes() for storage in storages.values())

        codes = 0
        if self.shape.form is not None:
            per_page = (self.shape.form.key_bytes + self.shape.form.value_bytes) * self.shape.n_kv_heads
            codes = self.n_rows * self.n_pages * per_page
        return {
            "code_bytes": codes,
            "scale_bytes": of("blocks") - codes,
            "mask_bytes": of("masks"),
            "full_bytes": of(*(f"{part}_{x}" for part in ("sinks", "overlay", "open", "chunk") for x in "kv")),
            "index_bytes": of("positions", "accumulated", "gave", "order"),
        }

    # ---- a chunk

    def append(self, k: torch.Tensor, v: torch.Tensor) -> None:
        """Settles the last chunk and appends a new one. k (after rope), v: (rows, heads, n, head_dim)."""
        self.settle()
        self.chunk_k, self.chunk_v = self.operations.to_cells(self.shape, k, v)

    def attend(self, q: torch.Tensor, scale: float, softcap: float, *, by_query: bool) -> torch.Tensor:
        """Attends the chunk. q (rows, n, query heads, head_dim): its queries. Returns float32 of that shape.

        by_query: keep the attention of each query apart, so that a part of the chunk can be taken back."""
        recipe, n = self.shape.recipe, self.n_chunk
        run = self.operations.attend
        if not (by_query and recipe.needs_accumulated and n > 1):
            out, accumulated = run(self, q, n, scale, softcap, want_accumulated=recipe.needs_accumulated)
            self.gave = None if accumulated is None else accumulated[:, :, None]
            return out
        outs, gave = [], []
        for i in range(n):
            out, accumulated = run(self, q[:, i : i + 1], i + 1, scale, softcap, want_accumulated=True)
            assert accumulated is not None
            outs.append(out)
            gave.append(torch.nn.functional.pad(accumulated, (0, n - i - 1)))
        self.gave = torch.stack(gave, dim=2)
        return torch.cat(outs, dim=1)

    def look(self, q: torch.Tensor, scale: float, softcap: float) -> torch.Tensor:
        """Like attend(), for the chunk's last queries q, but changes nothing in the store."""
        return self.operations.attend(self, q, self.n_chunk, scale, softcap, want_accumulated=False)[0]

    def as_seen(self) -> Store:
        """A store with the present contents, for look(). It shares memory with this one, which may still change."""
        other = object.__new__(Store)
        other.__dict__.update(self.__dict__)
        other.marks, other.checkpoint = list(self.marks), None
        other.open_k, other.open_v = self.open_k.clone(), self.open_v.clone()  # others are never overwritten
        return other

    def settle(self) -> None:
        """Makes the chunk past: its tokens join the list of full tokens, tokens are given up, pages are coded."""
        if self.n_chunk:
            # torch lets tensors be written in place only in the mode in which they were made, so it is always this one.
            with torch.inference_mode():
                self._settle(self.n_chunk)

    def _settle(self, n: int) -> None:
        recipe = self.shape.recipe
        before, after = self.counts, count(recipe, self.n_held)
        first = after.n_sinks - before.n_sinks
        accumulated = None
        if recipe.needs_accumulated:
            accumulated = torch.nn.functional.pad(self.accumulated, (0, n))
            if self.gave is not None:
                accumulated = accumulated + self.gave.sum(dim=2)
        if first:
            self.sinks_k = torch.cat([self.sinks_k, self.chunk_k[:, :, :first]], dim=2)
            self.sinks_v = torch.cat([self.sinks_v, self.chunk_v[:, :, :first]], dim=2)
        if after.n_pages == before.n_pages:
            here = slice(before.n_open, after.n_open)
            self.open_k[:, :, here] = self.chunk_k[:, :, first:]
            self.open_v[:, :, here] = self.chunk_v[:, :, first:]
        else:
            fresh_k = torch.cat([self.open_k[:, :, : before.n_open], self.chunk_k[:, :, first:]], dim=2)
            fresh_v = torch.cat([self.open_v[:, :, : before.n_open], self.chunk_v[:, :, first:]], dim=2)
            accumulated = self._complete_pages(before, after, fresh_k, fresh_v, accumulated)
        if accumulated is not None:
            self.accumulated = accumulated
        past = [max(n_tokens - recipe.sinks, 0) for n_tokens in (self.n_tokens, self.n_tokens + n)]
        if n_give_ups(past[0], recipe.window) != n_give_ups(past[1], recipe.window):
            self.marks = []
        self.n_tokens += n
        if recipe.needs_accumulated and n > 1:
            self.marks = [*self.marks[1 - _MARKS :], (self.n_tokens, self.accumulated)]
        self._drop_chunk()

    def _drop_chunk(self) -> None:
        empty = self.chunk_k.new_empty(*self.chunk_k.shape[:2], 0, self.shape.head_dim)
        self.chunk_k, self.chunk_v, self.gave = empty, empty, None  # new: a view would keep the memory

    def _complete_pages(
        self,
        before: Counts,
        after: Counts,
        fresh_k: torch.Tensor,
        fresh_v: torch.Tensor,
        accumulated: torch.Tensor | None,
    ) -> torch.Tensor | None:
        """Codes new pages and gives up tokens. fresh_k, fresh_v: the tokens after the last coded page. Returns the
        accumulated attention of the tokens that stay."""
        recipe, n_sinks = self.shape.recipe, after.n_sinks
        n_new = after.n_pages - before.n_pages
        if not recipe.drops:
            self._add_pages(fresh_k[:, :, : PAGE * n_new], fresh_v[:, :, : PAGE * n_new])
        n_list = before.n_overlay + fresh_k.shape[2]
        lead = (self.n_rows, self.shape.n_kv_heads)
        listed = accumulated[..., n_sinks:] if accumulated is not None else None
        kept = choose(recipe, n_list, listed, lead, self.device)
        start = recipe.sinks + PAGE * before.n_pages
        fresh_positions = torch.arange(start, start + fresh_k.shape[2], dtype=torch.int32, device=self.device)
        positions = torch.cat([self.positions, fresh_positions.expand(*lead, -1)], dim=-1)
        overlay = kept[..., : after.n_overlay]
        self.positions = torch.gather(positions, -1, overlay)
        self.overlay_k = self._gather(self.overlay_k, fresh_k, overlay)
        self.overlay_v = self._gather(self.overlay_v, fresh_v, overlay)
        n_closed = fresh_k.shape[2] - after.n_open
        self.open_k[:, :, : after.n_open] = fresh_k[:, :, n_closed:]
        self.open_v[:, :, : after.n_open] = fresh_v[:, :, n_closed:]
        self._set_masks(after.n_pages)
        if accumulated is None or listed is None:
            return None
        return torch.cat([accumulated[..., :n_sinks], torch.gather(listed, -1, kept)], dim=-1)

    def _gather(self, overlay: torch.Tensor, fresh: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """The cells at the indices kept, of the overlay followed by fresh, in the overlay's format."""
        cells = fresh if self.shape.recipe.overlay == "f16" else to_q8_0(fresh)
        every = torch.cat([overlay, cells], dim=2)
        return torch.gather(every, 2, kept[..., None].expand(*kept.shape, every.shape[-1]))

    def _add_pages(self, k: torch.Tensor, v: torch.Tensor) -> None:
        blocks, self.order = self.operations.pack(self.shape, k, v, self.order)
        n_before = self.n_pages
        n_after = n_before + blocks.shape[1]
        if n_after > self.blocks.shape[1]:
            room = n_after + max(_GROWTH, n_after // 8)
            grown = self.blocks.new_empty(self.n_rows, room, self.blocks.shape[2])
            grown[:, :n_before] = self.pages
            self.blocks = grown
        self.blocks[:, n_before:n_after] = blocks

    def _set_masks(self, n_pages: int) -> None:
        """Makes the masks of n_pages pages: bit t says that token t of the page is in the overlay."""
        if self.shape.recipe.drops:
            return
        lead = (self.n_rows, self.shape.n_kv_heads)
        bits = torch.zeros(*lead, n_pages * PAGE, dtype=torch.int64, device=self.device)
        bits.scatter_(-1, self.positions.long() - self.shape.recipe.sinks, 1)
        places = torch.arange(PAGE, device=self.device)
        self.masks = (bits.unflatten(-1, (n_pages, PAGE)) << places).sum(dim=-1)

    # ---- going back

    def check_crop(self, n: int) -> None:
        """Raises ArgumentError where the last n tokens cannot be taken back exactly."""
        n_keep = self.n_held - n
        if n_keep < 0:
            raise ArgumentError(f"the cache holds {self.n_held} tokens; {n} cannot be removed")
        if 0 < n < self.n_chunk and not self._chunk_divides():
            raise ArgumentError(
                f"{n} of the {self.n_chunk} tokens of the last forward pass cannot be taken back: selection"
                f" '{self.shape.recipe.select}' has counted what their queries attended to; call the cache's"
                " activate_past_recording() before it, or choose select='even'"
            )
        if n > self.n_chunk:
            self._check_rewind(n_keep)

    def crop(self, n: int) -> None:
        """Forgets the last n tokens. Raises as check_crop(), before anything has changed."""
        if n <= 0:
            return
        self.check_crop(n)
        n_keep = self.n_held - n
        if n < self.n_chunk:
            self._cut_chunk(self.n_chunk - n)
            return
        self._drop_chunk()
        if n_keep < self.n_tokens:
            with torch.inference_mode():
                self._rewind(n_keep)

    def set_checkpoint(self) -> None:
        """Saves the present contents except pages, which stay in this store."""
        self.checkpoint = None
        kept = self.as_seen()
        kept.blocks = self.blocks[:, :0].clone()
        self.checkpoint = kept

    def return_to_checkpoint(self) -> None:
        kept, blocks = self.checkpoint, self.blocks
        assert kept is not None
        self.__dict__.update(kept.as_seen().__dict__)
        self.blocks, self.checkpoint = blocks, kept

    def _chunk_divides(self) -> bool:
        return self.gave is None or self.gave.shape[2] == self.n_chunk

    def _cut_chunk(self, n_keep: int) -> None:
        n_cut = self.n_chunk - n_keep
        self.chunk_k, self.chunk_v = self.chunk_k[:, :, :n_keep], self.chunk_v[:, :, :n_keep]
        if self.gave is not None:
            self.gave = self.gave[:, :, :n_keep, :-n_cut]

    def _check_rewind(self, n_keep: int) -> None:
        recipe = self.shape.recipe
        held, keep = (max(n - recipe.sinks, 0) for n in (self.n_tokens, n_keep))
        if n_keep == 0:
            return
        reason = None
        if recipe.needs_accumulated and self._mark(n_keep) is None:
            reason = f"selection '{recipe.select}' has counted what their queries attended to"
        elif n_give_ups(held, recipe.window) != n_give_ups(keep, recipe.window):
            reason = "tokens have been given up since"
        elif recipe.overlay != "f16" and held // PAGE != keep // PAGE:
            reason = "a page that was coded since would need its tokens in f16"
        if reason is not None:
            raise ArgumentError(
                f"{self.n_held - n_keep} tokens cannot be taken back exactly: {reason}; at most the last"
                f" {self.n_chunk}, those of the last forward pass, can; call the cache's checkpoint() where you want to"
                " return to, or keep a copy.deepcopy() of it"
            )

    def _mark(self, n_tokens: int) -> torch.Tensor | None:
        return next((accumulated for n, accumulated in self.marks if n == n_tokens), None)

    def _rewind(self, n_keep: int) -> None:
        """Forgets tokens after n_keep where none were given up since: the overlay then ends with all tokens of the
        pages that are forgotten."""
        recipe, held, keep = self.shape.recipe, self.counts, count(self.shape.recipe, n_keep)
        if keep.n_pages < held.n_pages:
            again = slice(keep.n_overlay, keep.n_overlay + keep.n_open)
            if keep.n_open:
                self.open_k[:, :, : keep.n_open] = self.overlay_k[:, :, again]
                self.open_v[:, :, : keep.n_open] = self.overlay_v[:, :, again]
            self.overlay_k, self.overlay_v = (
                self.overlay_k[:, :, : keep.n_overlay].contiguous(),
                self.overlay_v[:, :, : keep.n_overlay].contiguous(),
            )
            self.positions = self.positions[..., : keep.n_overlay].contiguous()
            self._set_masks(keep.n_pages)
            if keep.n_pages == 0:
                self.order = None
        self.sinks_k, self.sinks_v = (
            self.sinks_k[:, :, : keep.n_sinks].contiguous(),
            self.sinks_v[:, :, : keep.n_sinks].contiguous(),
        )
        if recipe.needs_accumulated:  # either everything is forgotten, or there is a mark
            then = self._mark(n_keep)
            self.accumulated = self.accumulated[..., :0] if then is None else then
        self.marks = [(n, accumulated) for n, accumulated in self.marks if n <= n_keep]
        self.n_tokens = n_keep
        if self.checkpoint is not None and self.n_held < self.checkpoint.n_held:
            self.checkpoint = None

    # ---- rows and devices

    def select(self, rows: torch.Tensor) -> Store:
        """A store of these rows (int64 indices); a row may occur several times."""
        other = object.__new__(Store)
        other.__dict__.update(self.__dict__)
        rows = rows.to(self.device)
        for name in _TENSORS:
            tensor = getattr(self, name)
            setattr(other, name, None if tensor is None else tensor.index_select(0, rows))
        other.marks = [(n, accumulated.index_select(0, rows)) for n, accumulated in self.marks]
        other.checkpoint = None if self.checkpoint is None else self.checkpoint.select(rows)
        return other

    def move(self, device: torch.device) -> None:
        """Moves all tensors to a device."""
        for name in _TENSORS:
            tensor = getattr(self, name)
            if tensor is not None:
                setattr(self, name, tensor.to(device, non_blocking=True))
        self.marks = [(n, accumulated.to(device, non_blocking=True)) for n, accumulated in self.marks]
        if self.checkpoint is not None:
            self.checkpoint.move(device)

    # ---- what any attention can read

    def dequantize(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values as attention reads them, float32 (rows, heads, n, head_dim), by position and without the
        chunk; for types that drop tokens, those that are left."""
        shape, counts = self.shape, self.counts
        overlay_k, overlay_v = self.overlay()
        cells = self.cells(0)
        parts_k, parts_v = [self.sinks_k.float()], [self.sinks_v.float()]
        if shape.form is None:
            parts_k.append(overlay_k)
            parts_v.append(overlay_v)
        elif self.n_pages:
            assert self.order is not None
            paged_k, paged_v = (
                x.movedim(1, 2).flatten(2, 3)
                for x in shape.form.decode(self.pages, self.order[:, None].expand(-1, self.n_pages, -1, -1))
            )
            places = (self.positions.long() - shape.recipe.sinks)[..., None].expand_as(overlay_k)
            parts_k.append(paged_k.scatter(2, places, overlay_k))
            parts_v.append(paged_v.scatter(2, places, overlay_v))
        assert counts.n_open == cells.open[0].shape[2]
        parts_k.append(cells.open[0].float())
        parts_v.append(cells.open[1].float())
        k, v = torch.cat(parts_k, dim=2), torch.cat(parts_v, dim=2)
        return k, hadamard(v) if shape.recipe.rotates else v
