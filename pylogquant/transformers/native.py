"""The core's workers (logquant_worker.h) on torch tensors: passes their addresses and copies nothing."""

from __future__ import annotations

from typing import Any

import torch

from pylogquant._native import check, ffi, lib
from pylogquant.kv import KvOptions, fill_kv_options, read_kv_options

__all__ = ["Worker"]


class Worker:
    """Threads and scratch memory for caches of one shape. Used by one thread at a time.

    Cells are f16 tensors (heads, tokens, head_dim), or uint8 ones (heads, tokens, bytes) of a q8_0 overlay, whose last
    two dimensions are contiguous. Raises ArgumentError, Unsupported, OutOfMemory."""

    def __init__(
        self, n_heads: int, n_kv_heads: int, head_dim: int, kv: KvOptions, *, chunk: int, threads: int
    ) -> None:
        options = ffi.new("lq_kv_worker_options *")
        lib.lq_kv_worker_options_init(options)
        options.n_heads, options.n_kv_heads, options.head_dim = n_heads, n_kv_heads, head_dim
        options.n_chunk, options.n_threads = chunk, threads
        _keep = fill_kv_options(options.kv, kv)
        out = ffi.new("lq_kv_worker **")
        check(lib.lq_kv_worker_create(options, out))
        self._handle = ffi.gc(out[0], _close)
        self._args = ffi.new("lq_kv_worker_attention *")
        self._args.struct_size = ffi.sizeof("lq_kv_worker_attention")

    def describe(self) -> tuple[Any, KvOptions]:
        """The worker's lq_kv_worker_info, and the options in it as KvOptions."""
        info = ffi.new("lq_kv_worker_info *")
        info.struct_size = ffi.sizeof("lq_kv_worker_info")
        check(lib.lq_kv_worker_get_info(self._handle, info))
        return info, read_kv_options(info.kv)

    def store(self, k: torch.Tensor, v: torch.Tensor, k_cells: torch.Tensor, v_cells: torch.Tensor) -> None:
        """Stores tokens as cells. k, v: float32 (n, heads, head_dim), contiguous; k_cells, v_cells: f16 (heads, n,
        head_dim), contiguous, written."""
        check(
            lib.lq_kv_worker_store(
                self._handle,
                _at("float *", k),
                _at("float *", v),
                len(k),
                _at("uint16_t *", k_cells),
                _at("uint16_t *", v_cells),
            )
        )

    def pack(
        self, k: torch.Tensor, v: torch.Tensor, order: torch.Tensor, blocks: torch.Tensor, *, learn_order: bool
    ) -> None:
        """Codes pages. k, v: f16 cells of whole pages. blocks: uint8 (pages, block_bytes), contiguous, written; order:
        int16 (heads, head_dim), written first if learn_order."""
        cells = ffi.new("lq_kv_worker_cells *")
        _fill(cells, k, v)
        check(
            lib.lq_kv_worker_pack(
                self._handle, cells, len(blocks), learn_order, _at("uint16_t *", order), _at("uint8_t *", blocks)
            )
        )

    def attend(
        self,
        q: torch.Tensor,
        out: torch.Tensor,
        cells: list[tuple[torch.Tensor, torch.Tensor]],
        pages: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
        accumulated: torch.Tensor | None,
        *,
        scale: float,
        softcap: float,
    ) -> None:
        """Computes attention. q: float32 (n, query heads, head_dim), out the same, both contiguous. cells: (k, v) of
        sinks, overlay, open page, chunk. pages: blocks uint8 (pages, block_bytes), masks int64 (heads, pages), order
        int16 (heads, head_dim). accumulated: float32 (heads, cells), contiguous."""
        args = self._args
        args.n_tokens, args.scale, args.softcap = len(q), scale, softcap
        args.q, args.out = _at("float *", q), _at("float *", out)
        for target, (k, v) in zip((args.sinks, args.overlay, args.open, args.chunk), cells, strict=True):
            _fill(target, k, v)
        args.n_pages = 0
        if pages is not None:
            blocks, masks, order = pages
            args.n_pages, args.mask_stride = len(blocks), masks.stride(0)
            args.pages, args.masks = _at("uint8_t *", blocks), _at("uint64_t *", masks)
            args.order = _at("uint16_t *", order)
        args.accumulated = ffi.NULL if accumulated is None else _at("float *", accumulated)
        check(lib.lq_kv_worker_attend(self._handle, args))


def _at(kind: str, tensor: torch.Tensor) -> Any:
    return ffi.cast(kind, tensor.data_ptr())


def _fill(target: Any, k: torch.Tensor, v: torch.Tensor) -> None:
    target.k, target.v = _at("void *", k), _at("void *", v)
    target.n_cells = k.shape[1]
    target.head_bytes = k.stride(0) * k.element_size()


def _close(handle: Any) -> None:
    lib.lq_kv_worker_close(ffi.new("lq_kv_worker **", handle))
