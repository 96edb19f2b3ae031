"""Attention over packed pages as one Triton kernel: codes are unpacked in registers, nothing is dequantized to memory.

A program attends a block of query rows of one KV head to a share of the pages, with an online softmax (as
FlashAttention). Afterwards the shares are merged with each other and with the cells in full precision, which torch
attends to. Runs on CUDA tensors, and on CPU tensors under TRITON_INTERPRET=1.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import triton
import triton.language as tl

from pylogquant.transformers.operations import Partial, TorchOperations
from pylogquant.transformers.pages import PageFormat
from pylogquant.transformers.store import Store

__all__ = ["TritonOperations", "attend_pages_kernel", "constants_of"]

_MAX_ROWS = 32  # query rows of a program that fit in its registers; 16 where heads are wider than 64
_LEAST_ROWS = 16  # fewest rows that tl.dot takes
_TOKENS = 32  # tokens unpacked at a time
_SHARES = 64  # most shares into which the pages are divided, where there are few rows
_LEAST_PAGES = 4  # fewest pages of a share


class TritonOperations(TorchOperations):
    """TorchOperations, with a Triton kernel for attention over pages."""

    def attend_pages(self, store: Store, rows: torch.Tensor, scale: float, softcap: float) -> Partial:
        assert store.shape.form is not None
        assert store.order is not None
        form, n_pages = store.shape.form, store.n_pages
        n_rows, n_heads, n_queries, d = rows.shape
        by_place = torch.gather(rows, -1, store.order.long()[:, :, None].expand_as(rows)).contiguous()
        n_blocks = triton.cdiv(n_queries, _block_rows(d, n_queries))
        n_shares = max(1, min(_SHARES // n_blocks, triton.cdiv(n_pages, _LEAST_PAGES)))
        pages_a_share = triton.cdiv(n_pages, n_shares)
        lead = (n_shares, n_rows, n_heads, n_queries)
        top, total = (torch.empty(lead, device=rows.device) for _ in range(2))
        values = torch.empty(*lead, d, device=rows.device)
        attend_pages_kernel[(n_rows * n_heads, n_blocks, n_shares)](
            by_place,
            store.blocks,
            store.blocks.view(torch.float16),
            store.masks,
            *_tables(form, rows.device),
            top,
            total,
            values,
            scale,
            softcap,
            n_queries,
            n_pages,
            pages_a_share,
            store.blocks.stride(0),
            store.blocks.stride(1),
            store.masks.stride(1),
            n_rows * n_heads,
            **constants_of(form, n_heads=n_heads, n_queries=n_queries, capped=softcap > 0),
        )
        part = Partial(top[0], total[0], values[0])
        for share in range(1, n_shares):
            part = part.merge(Partial(top[share], total[share], values[share]))
        return part


def _block_rows(head_dim: int, n_queries: int) -> int:
    most = _MAX_ROWS if head_dim <= 64 else _LEAST_ROWS
    return min(most, max(_LEAST_ROWS, int(triton.next_power_of_2(n_queries))))


def constants_of(form: PageFormat, *, n_heads: int, n_queries: int, capped: bool) -> dict[str, Any]:
    """The constants that the kernel is compiled with."""
    d, recipe = form.head_dim, form.recipe
    return {
        "N_HEADS": n_heads,
        "D": d,
        "BD": max(16, triton.next_power_of_2(d)),
        "ROWS": _block_rows(d, n_queries),
        "TOKENS": _TOKENS if d <= 128 else _TOKENS // 2,
        "N_TIERS": len(form.tiers),
        "N_GROUPS": len(form.groups),
        "KEY_BYTES": form.key_bytes,
        "VALUE_BYTES": form.value_bytes,
        "SCALE_BYTES": form.scale_bytes,
        "V_LOW": 2 if recipe.value_bits == 3 else recipe.value_bits,
        "V_HIGH": recipe.value_bits == 3,
        "V_TOP": float(2**recipe.value_bits - 1),
        "K_HIGH": any(bits in (3, 5) for bits, _, _ in form.tiers),
        "F16_SCALES": recipe.f16_scales,
        "CAPPED": capped,
        "num_warps": 4,
        "num_stages": 1,  # deeper pipelines need more registers than there are
    }


@lru_cache(maxsize=32)
def _tables_on_host(form: PageFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """Tables that say where the codes of each key place and of each value channel are, and how to read them."""
    keys, at = [], 0
    for tier, (bits, start, end) in enumerate(form.tiers):
        low = {3: 2, 5: 4}.get(bits, bits)
        for place in range(end - start):
            four = at + place // 4 * 32 * bits
            high = four + 32 * low + place % 4 if low != bits else -1
            keys.append((four + place % 4, low, high, tier, 2**bits - 1))
        at += 8 * bits * (end - start)
    values, bits = [], form.recipe.value_bits
    low = {3: 2, 5: 4}.get(bits, bits)
    for start, end in form.groups:
        n = end - start
        n_low, n_high = n * low // 8, n // 8
        for c in range(n):
            high_at = n * low // 2 + 4 * (c % n_high)
            values.append((8 * bits * start, n * bits // 2, 4 * (c % n_low), low * (c // n_low), high_at, c // n_high))
    return (
        torch.tensor(keys, dtype=torch.int32).T.contiguous(),
        torch.tensor(values, dtype=torch.int32).T.contiguous(),
    )


@lru_cache(maxsize=32)
def _tables(form: PageFormat, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    keys, values = _tables_on_host(form)
    return keys.to(device), values.to(device)


@triton.jit
def _six(data, at, i, K: tl.constexpr, inside):
    """Element i of K packed 6-bit numbers, as float32."""
    low = tl.load(data + at + i % (K // 2), mask=inside, other=0).to(tl.int32) >> (4 * (i // (K // 2)))
    high = tl.load(data + at + K // 2 + i % (K // 4), mask=inside, other=0).to(tl.int32) >> (2 * (i // (K // 4)))
    return ((low & 15) | ((high & 3) << 4)).to(tl.float32)


@triton.jit
def attend_pages_kernel(
    q,
    data,
    halves,
    masks,
    key_table,
    value_table,
    top_out,
    total_out,
    values_out,
    scale,
    softcap,
    n_queries,
    n_pages,
    pages_a_share,
    row_bytes,
    block_bytes,
    mask_stride,
    n_row_heads,
    N_HEADS: tl.constexpr,
    D: tl.constexpr,
    BD: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    N_TIERS: tl.constexpr,
    N_GROUPS: tl.constexpr,
    KEY_BYTES: tl.constexpr,
    VALUE_BYTES: tl.constexpr,
    SCALE_BYTES: tl.constexpr,
    V_LOW: tl.constexpr,
    V_HIGH: tl.constexpr,
    V_TOP: tl.constexpr,
    K_HIGH: tl.constexpr,
    F16_SCALES: tl.constexpr,
    CAPPED: tl.constexpr,
):
    """q: (rows of the batch, heads, queries, D) by place; out: (shares, rows of the batch, heads, queries[, D])."""
    row_head, row_block, share = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row, head = row_head // N_HEADS, row_head % N_HEADS
    queries = row_block * ROWS + tl.arange(0, ROWS)
    d = tl.arange(0, BD)
    real, real_query = d < D, queries < n_queries
    q_at = (row_head.to(tl.int64) * n_queries + queries)[:, None] * D + d[None, :]
    q_rows = tl.load(q + q_at, mask=real_query[:, None] & real[None, :], other=0.0)

    low_at = tl.load(key_table + d, mask=real, other=0)
    low_bits = tl.load(key_table + D + d, mask=real, other=1)
    high_at = tl.load(key_table + 2 * D + d, mask=real, other=-1)
    tier = tl.load(key_table + 3 * D + d, mask=real, other=0)
    k_top = tl.load(key_table + 4 * D + d, mask=real, other=1).to(tl.float32)
    n_low = 8 * low_bits
    four_bytes = tl.load(value_table + D + d, mask=real, other=0)
    v_low_at = tl.load(value_table + d, mask=real, other=0) + tl.load(value_table + 2 * D + d, mask=real, other=0)
    v_low_shift = tl.load(value_table + 3 * D + d, mask=real, other=0)
    v_high_at = tl.load(value_table + d, mask=real, other=0) + tl.load(value_table + 4 * D + d, mask=real, other=0)
    v_high_shift = tl.load(value_table + 5 * D + d, mask=real, other=0)

    top = tl.full((ROWS,), -3.4028234e38, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    out = tl.zeros((ROWS, BD), tl.float32)
    first_page = share * pages_a_share
    block = row.to(tl.int64) * row_bytes + first_page.to(tl.int64) * block_bytes
    for page in range(first_page, tl.minimum(first_page + pages_a_share, n_pages)):
        k_base = block + head * KEY_BYTES
        v_base = block + N_HEADS * KEY_BYTES + head * VALUE_BYTES
        s_base = block + N_HEADS * (KEY_BYTES + VALUE_BYTES) + head * SCALE_BYTES
        s_half = s_base // 2
        kept = tl.load(masks + row_head.to(tl.int64) * mask_stride + page)

        # fold scale and offset of each place, in which its codes are linear, into the queries
        if F16_SCALES:
            k_s = tl.load(halves + s_half + d, mask=real, other=0.0).to(tl.float32)
            k_m = tl.load(halves + s_half + D + d, mask=real, other=0.0).to(tl.float32)
        else:
            sixes = s_base + 4 * N_TIERS + 4 * N_GROUPS
            pair_s = tl.load(halves + s_half + 2 * tier, mask=real, other=0.0).to(tl.float32)
            pair_m = tl.load(halves + s_half + 2 * tier + 1, mask=real, other=0.0).to(tl.float32)
            k_s = _six(data, sixes, d, D, real) * pair_s
            k_m = (_six(data, sixes + 3 * D // 4, d, D, real) - 32.0) * pair_m
        level = tl.sum(q_rows * tl.where(real, k_m - k_s, 0.0)[None, :], axis=1)
        folded = q_rows * (2.0 * k_s / k_top)[None, :]

        for part in range(0, 64, TOKENS):
            token = part + tl.arange(0, TOKENS)
            inside = real[None, :] & (token >= 0)[:, None]
            at = k_base + low_at[None, :] + 4 * (token[:, None] % n_low[None, :])
            code = tl.load(data + at, mask=inside, other=0).to(tl.int32)
            code = (code >> (low_bits[None, :] * (token[:, None] // n_low[None, :]))) & ((1 << low_bits[None, :]) - 1)
            if K_HIGH:
                has_high = inside & (high_at >= 0)[None, :]
                high = tl.load(data + k_base + high_at[None, :] + 4 * (token[:, None] % 8), mask=has_high, other=0)
                code = code | (((high.to(tl.int32) >> (token[:, None] // 8)) & 1) << low_bits[None, :])
            scores = tl.dot(folded, tl.trans(code.to(tl.float32)), input_precision="tf32") + level[:, None]
            scores = scores * scale
            if CAPPED:
                # compute tanh(x) from e^-2|x|, which cannot overflow
                x = scores / softcap
                e = tl.exp(-2.0 * tl.abs(x))
                scores = softcap * tl.where(x < 0, -1.0, 1.0) * (1.0 - e) / (1.0 + e)
            packed = ((kept >> token.to(tl.int64)) & 1) == 0
            scores = tl.where(packed[None, :], scores, float("-inf"))

            new_top = tl.maximum(top, tl.max(scores, axis=1))
            weights = tl.exp(scores - new_top[:, None])
            decay = tl.exp(top - new_top)
            total = total * decay + tl.sum(weights, axis=1)
            top = new_top

            at = v_base + four_bytes[None, :] * (token // 4)[:, None] + (token % 4)[:, None]
            code = tl.load(data + at + v_low_at[None, :], mask=inside, other=0).to(tl.int32)
            code = (code >> v_low_shift[None, :]) & ((1 << V_LOW) - 1)
            if V_HIGH:
                high = tl.load(data + at + v_high_at[None, :], mask=inside, other=0).to(tl.int32)
                code = code | (((high >> v_high_shift[None, :]) & 1) << V_LOW)
            values = code.to(tl.float32)
            for group in tl.static_range(N_GROUPS):
                every = token >= 0
                if F16_SCALES:
                    s_at = s_half + 2 * D + 128 * group + token
                    v_s = tl.load(halves + s_at).to(tl.float32)
                    v_m = tl.load(halves + s_at + 64).to(tl.float32)
                else:
                    sixes = s_base + 4 * N_TIERS + 4 * N_GROUPS + 2 * (3 * D // 4) + 96 * group
                    pair = s_half + 2 * N_TIERS + 2 * group
                    v_s = _six(data, sixes, token, 64, every) * tl.load(halves + pair).to(tl.float32)
                    v_m = (_six(data, sixes + 48, token, 64, every) - 32.0) * tl.load(halves + pair + 1).to(tl.float32)
                mine = (d // 64 == group)[None, :]
                values = tl.where(mine, (v_m - v_s)[:, None] + values * (2.0 * v_s / V_TOP)[:, None], values)
            out = out * decay[:, None] + tl.dot(weights, values, input_precision="tf32")
        block += block_bytes

    at = (share.to(tl.int64) * n_row_heads + row_head) * n_queries + queries
    tl.store(top_out + at, top, mask=real_query)
    tl.store(total_out + at, total, mask=real_query)
    tl.store(values_out + at[:, None] * D + d[None, :], out, mask=real_query[:, None] & real[None, :])
