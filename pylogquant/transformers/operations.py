"""Operations that store, code and attend on a device: with the core on CPU tensors, with torch on any."""

from __future__ import annotations

from typing import Any

import torch

from pylogquant.errors import ArgumentError, Unsupported
from pylogquant.transformers.config import LogQuantConfig
from pylogquant.transformers.native import Worker
from pylogquant.transformers.pages import PAGE, hadamard
from pylogquant.transformers.store import Operations, Shape, Store

__all__ = ["NativeOperations", "Partial", "TorchOperations", "operations_for"]

_PAGES_AT_ONCE = 64  # pages that the torch path decodes at a time: 4,096 tokens


def operations_for(config: LogQuantConfig, device: torch.device) -> Operations:
    """The operations that a configuration chooses for tensors on a device. Raises ArgumentError, Unsupported."""
    chosen = config.kernels
    if chosen == "auto":
        chosen = {"cpu": "native", "cuda": "triton"}.get(device.type, "torch")  # type: ignore[assignment]
    if chosen == "native":
        if device.type != "cpu":
            raise ArgumentError(f"kernels='native' works on CPU tensors, not on {device}; choose 'triton' or 'torch'")
        return NativeOperations(config)
    if chosen == "torch":
        return TorchOperations()
    try:
        from pylogquant.transformers.triton_attention import TritonOperations
    except ImportError as cause:
        raise Unsupported(
            f"attention over packed pages on {device} needs Triton ({cause}); pip install triton, or choose"
            " LogQuantConfig(kernels='torch')"
        ) from cause
    return TritonOperations()


# ---- the core --------------------------------------------------------------------------------------------------------


class NativeOperations:
    """Passes addresses of CPU tensors to the core, row by row; the core's threads share the work of a row."""

    def __init__(self, config: LogQuantConfig) -> None:
        self._config = config
        self._workers: dict[tuple[int, int, int], Worker] = {}

    def __getstate__(self) -> dict[str, Any]:
        """State for a copy, in this process or another: without workers, as a copy makes its own."""
        return {"_config": self._config, "_workers": {}}

    def _worker(self, shape: Shape, n_heads: int = 0) -> Worker:
        for (heads, kv_heads, head_dim), worker in self._workers.items():
            if (kv_heads, head_dim) == (shape.n_kv_heads, shape.head_dim) and n_heads in (0, heads):
                return worker
        key = (n_heads or shape.n_kv_heads, shape.n_kv_heads, shape.head_dim)
        threads = self._config.threads or torch.get_num_threads()
        worker = Worker(*key, self._config.kv_options(), chunk=self._config.chunk, threads=threads)
        info, _ = worker.describe()
        if shape.form is not None:
            assert info.block_bytes == shape.form.block_bytes(shape.n_kv_heads)
        self._workers[key] = worker
        return worker

    def to_cells(self, shape: Shape, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        worker, chunk = self._worker(shape), self._config.chunk
        # transformers makes (rows, tokens, heads, head_dim) and transposes: usually no copy
        k, v = (x.detach().transpose(1, 2).float().contiguous() for x in (k, v))
        n_rows, n, n_heads, d = k.shape
        parts = []
        for start in range(0, n, chunk):
            m = min(chunk, n - start)
            cells = torch.empty(2, n_rows, n_heads, m, d, dtype=torch.float16)
            for row in range(n_rows):
                worker.store(k[row, start : start + m], v[row, start : start + m], cells[0, row], cells[1, row])
            parts.append(cells)
        every = parts[0] if len(parts) == 1 else torch.cat(parts, dim=3)
        return every[0], every[1]

    def pack(
        self, shape: Shape, k: torch.Tensor, v: torch.Tensor, order: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert shape.form is not None
        worker, n_rows, n_pages = self._worker(shape), k.shape[0], k.shape[2] // PAGE
        blocks = torch.zeros(n_rows, n_pages, shape.form.block_bytes(shape.n_kv_heads), dtype=torch.uint8)
        learn = order is None
        if order is None:
            order = torch.empty(n_rows, shape.n_kv_heads, shape.head_dim, dtype=torch.int16)
        for row in range(n_rows):
            worker.pack(k[row], v[row], order[row], blocks[row], learn_order=learn)
        return blocks, order

    def attend(
        self, store: Store, q: torch.Tensor, n_chunk: int, scale: float, softcap: float, *, want_accumulated: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        shape = store.shape
        worker = self._worker(shape, q.shape[2])
        q = q.detach().float().contiguous()
        out = torch.empty_like(q)
        cells = store.cells(n_chunk).all()
        accumulated = None
        if want_accumulated:
            n_cells = sum(k.shape[2] for k, _ in cells)
            accumulated = torch.empty(store.n_rows, shape.n_kv_heads, n_cells)
        for row in range(store.n_rows):
            pages = None
            if store.n_pages:
                assert store.order is not None
                pages = (store.pages[row], store.masks[row], store.order[row])
            worker.attend(
                q[row],
                out[row],
                [(k[row], v[row]) for k, v in cells],
                pages,
                None if accumulated is None else accumulated[row],
                scale=scale,
                softcap=softcap,
            )
        return out, accumulated


# ---- torch -----------------------------------------------------------------------------------------------------------


class Partial:
    """An online softmax over a part of the tokens: the largest score (..., rows), the sum of exp(score - largest), and
    the values weighted with exp(score - largest), (..., rows, head_dim)."""

    def __init__(self, top: torch.Tensor, total: torch.Tensor, values: torch.Tensor) -> None:
        self.top, self.total, self.values = top, total, values

    @staticmethod
    def of(scores: torch.Tensor, v: torch.Tensor) -> tuple[Partial, torch.Tensor]:
        """Makes a Partial from scores (..., rows, tokens), some perhaps -inf, and v (..., tokens, head_dim); also
        returns exp(score - largest)."""
        top = scores.amax(dim=-1).clamp(min=torch.finfo(torch.float32).min)
        weights = torch.exp(scores - top[..., None])
        return Partial(top, weights.sum(dim=-1), weights @ v), weights

    def merge(self, other: Partial) -> Partial:
        top = torch.maximum(self.top, other.top)
        mine, its = torch.exp(self.top - top), torch.exp(other.top - top)
        values = self.values * mine[..., None] + other.values * its[..., None]
        return Partial(top, self.total * mine + other.total * its, values)


class TorchOperations:
    """The specification of docs/format.md in torch operations, on any device."""

    def to_cells(self, shape: Shape, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        k, v = k.detach().float(), v.detach().float()
        if shape.recipe.rotates:
            v = hadamard(v)
        return k.half().contiguous(), v.half().contiguous()

    def pack(
        self, shape: Shape, k: torch.Tensor, v: torch.Tensor, order: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        assert shape.form is not None
        n_pages = k.shape[2] // PAGE
        pages_k, pages_v = (x.float().unflatten(2, (n_pages, PAGE)).transpose(1, 2) for x in (k, v))
        if order is None:
            order = shape.form.learn_order(pages_k[:, 0])
        every = order[:, None].expand(-1, n_pages, -1, -1)
        return shape.form.encode(pages_k, pages_v, every), order

    def attend(
        self, store: Store, q: torch.Tensor, n_chunk: int, scale: float, softcap: float, *, want_accumulated: bool
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        n_rows, n, n_heads, d = q.shape
        n_kv_heads = store.shape.n_kv_heads
        group = n_heads // n_kv_heads
        by_head = q.detach().float().unflatten(2, (n_kv_heads, group)).permute(0, 2, 1, 3, 4)
        rows = by_head.reshape(n_rows, n_kv_heads, n * group, d)
        cells = store.cells(n_chunk)
        keys, values = (
            torch.cat([cells.sinks[i].float(), overlay, cells.open[i].float(), cells.chunk[i].float()], dim=2)
            for i, overlay in enumerate(store.overlay())
        )
        scores = _scores(rows, keys, scale, softcap)
        if n > 1:
            of_chunk = scores[..., scores.shape[-1] - n_chunk :].unflatten(2, (n, group))
            places = torch.arange(n_chunk, device=q.device)
            late = places > torch.arange(n_chunk - n, n_chunk, device=q.device)[:, None]
            of_chunk.masked_fill_(late[:, None, :], -torch.inf)
        part, weights = Partial.of(scores, values)
        top = part.top
        if store.n_pages:
            part = part.merge(self.attend_pages(store, rows, scale, softcap))
        out = part.values / part.total[..., None]
        if store.shape.recipe.rotates:
            out = hadamard(out)
        accumulated = None
        if want_accumulated:
            accumulated = (weights * (torch.exp(top - part.top) / part.total)[..., None]).sum(dim=2)
        shaped = out.unflatten(2, (n, group)).permute(0, 2, 1, 3, 4)
        return shaped.reshape(n_rows, n, n_heads, d), accumulated

    def attend_pages(self, store: Store, rows: torch.Tensor, scale: float, softcap: float) -> Partial:
        """Attends queries (rows, heads, queries, head_dim), float32, to the packed tokens of all pages."""
        assert store.shape.form is not None
        assert store.order is not None
        total: Partial | None = None
        for start in range(0, store.n_pages, _PAGES_AT_ONCE):
            blocks = store.pages[:, start : start + _PAGES_AT_ONCE]
            masks = store.masks[..., start : start + _PAGES_AT_ONCE]
            order = store.order[:, None].expand(-1, blocks.shape[1], -1, -1)
            k, v = (x.movedim(1, 2).flatten(2, 3) for x in store.shape.form.decode(blocks, order))
            kept = (masks[..., None] >> torch.arange(PAGE, device=masks.device) & 1).flatten(2).bool()
            scores = _scores(rows, k, scale, softcap).masked_fill(kept[:, :, None], -torch.inf)
            part, _ = Partial.of(scores, v)
            total = part if total is None else total.merge(part)
        assert total is not None
        return total


def _scores(rows: torch.Tensor, keys: torch.Tensor, scale: float, softcap: float) -> torch.Tensor:
    scores = rows @ keys.transpose(-1, -2) * scale
    return softcap * torch.tanh(scores / softcap) if softcap > 0 else scores
