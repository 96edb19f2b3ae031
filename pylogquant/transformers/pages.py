"""Pages and cells in torch, as docs/format.md specifies them: bit for bit what the core makes of the same values.

Every arithmetic step is an operation of its own on float32 tensors, in the order of the specification, so that no
device fuses two roundings into one. Leading dimensions (rows, heads, pages) are free everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch

from pylogquant.transformers.config import Recipe

__all__ = ["PAGE", "PageFormat", "Scales", "from_q8_0", "hadamard", "q8_0_bytes", "to_q8_0"]

PAGE = 64
"""Tokens of a page."""
GROUP = 64  # channels that share a value scale
ROUNDS = 2  # rounds of least squares
BLOCK = 32  # values of a q8_0 block


# ---- numbers ---------------------------------------------------------------------------------------------------------


def _half(x: torch.Tensor) -> torch.Tensor:
    return x.half().float()


def _clamp(x: torch.Tensor, lo: float, hi: torch.Tensor | float) -> torch.Tensor:
    """Clamps x to lo..hi. A NaN becomes lo; torch.clamp would leave it."""
    return torch.where(x > lo, torch.where(x < hi, x, hi), lo)


def _ratio(h: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
    """h / s, or 0 where s is not positive."""
    positive = s > 0
    return torch.where(positive, h / torch.where(positive, s, 1.0), 0.0)


def hadamard(x: torch.Tensor) -> torch.Tensor:
    """Applies the Hadamard rotation of docs/format.md, block by block, to the last axis (float32); its own inverse."""
    head_dim = x.shape[-1]
    parts, start = [], 0
    for n in _hadamard_blocks(head_dim):
        block, length = x[..., start : start + n], 1
        while length < n:
            pairs = block.reshape(*block.shape[:-1], n // (2 * length), 2, length)
            a, b = pairs[..., 0, :], pairs[..., 1, :]
            block = torch.stack([a + b, a - b], dim=-2).reshape(block.shape)
            length *= 2
        one = torch.ones((), dtype=torch.float32)
        parts.append(block * float(one / torch.sqrt(one * n)))
        start += n
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def _hadamard_blocks(head_dim: int) -> list[int]:
    if head_dim & (head_dim - 1) == 0:
        return [head_dim]
    return [64] * (head_dim // 64) + [1 << bit for bit in range(5, -1, -1) if head_dim % 64 >> bit & 1]


# ---- q8_0 cells ------------------------------------------------------------------------------------------------------


def q8_0_bytes(head_dim: int) -> int:
    """Bytes of one token: blocks of 32 values (the last one may be shorter), each an f16 scale and int8 numbers."""
    return head_dim + 2 * -(-head_dim // BLOCK)


def to_q8_0(x: torch.Tensor) -> torch.Tensor:
    """Quantizes (..., head_dim) of any float type to uint8 (..., q8_0_bytes)."""
    parts = []
    for block in x.float().split(BLOCK, dim=-1):
        d = (block.abs().amax(dim=-1, keepdim=True) / 127).half()
        inverse = torch.where(d == 0, 1.0, d.float())
        q = torch.where(d == 0, 0.0, torch.round(_clamp(block / inverse, -127.0, 127.0)))
        parts += [d.view(torch.uint8), q.to(torch.int8).view(torch.uint8)]
    return torch.cat(parts, dim=-1)


def from_q8_0(cells: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Dequantizes uint8 (..., q8_0_bytes) to float32 (..., head_dim)."""
    parts, at = [], 0
    for n in (min(BLOCK, head_dim - start) for start in range(0, head_dim, BLOCK)):
        d = cells[..., at : at + 2].contiguous().view(torch.float16).float()
        parts.append(d * cells[..., at + 2 : at + 2 + n].contiguous().view(torch.int8).float())
        at += 2 + n
    return torch.cat(parts, dim=-1)


# ---- planes and sixes ------------------------------------------------------------------------------------------------


def _low_bits(bits: int) -> int:
    """Bits of the first plane of codes of this width."""
    return {3: 2, 5: 4}.get(bits, bits)


def _one_plane(fields: torch.Tensor, bits: int) -> torch.Tensor:
    """Packs fields, uint8 (..., items, 4), into bytes (..., items bits / 2)."""
    *lead, n, _ = fields.shape
    length = n * bits // 8
    parts = fields.reshape(*lead, 8 // bits, length, 4)
    packed = parts[..., 0, :, :].clone()
    for i in range(1, 8 // bits):
        packed |= parts[..., i, :, :] << (bits * i)
    return packed.reshape(*lead, 4 * length)


def _plane(codes: torch.Tensor, bits: int) -> torch.Tensor:
    low = _low_bits(bits)
    first = _one_plane(codes & (2**low - 1), low)
    return first if low == bits else torch.cat([first, _one_plane(codes >> low, 1)], dim=-1)


def _read_plane(data: torch.Tensor, bits: int, n: int) -> torch.Tensor:
    """Unpacks bytes to uint8 codes (..., n, 4)."""
    low = _low_bits(bits)
    if low != bits:
        split = n * low // 2
        return _read_plane(data[..., :split], low, n) | _read_plane(data[..., split:], 1, n) << low
    columns = data.reshape(*data.shape[:-1], n * bits // 8, 4)
    parts = [columns >> (bits * i) & (2**bits - 1) for i in range(8 // bits)]
    return torch.cat(parts, dim=-2)


def _sixes(numbers: torch.Tensor) -> torch.Tensor:
    k = numbers.shape[-1]
    low, high = numbers & 15, numbers >> 4
    packed = high[..., : k // 4].clone()
    for i in range(1, 4):
        packed |= high[..., i * k // 4 : (i + 1) * k // 4] << (2 * i)
    return torch.cat([low[..., : k // 2] | low[..., k // 2 :] << 4, packed], dim=-1)


def _read_sixes(data: torch.Tensor, k: int) -> torch.Tensor:
    half, rest = data[..., : k // 2], data[..., k // 2 :]
    high = torch.cat([rest >> (2 * i) & 3 for i in range(4)], dim=-1)
    return torch.cat([half & 15, half >> 4], dim=-1) | high << 4


def _half_bytes(x: torch.Tensor) -> torch.Tensor:
    return x.half().contiguous().view(torch.uint8)


def _read_halves(data: torch.Tensor) -> torch.Tensor:
    return data.contiguous().view(torch.float16).float()


# ---- coding ----------------------------------------------------------------------------------------------------------


@dataclass
class Scales:
    """The scales of a page: a code stands for x = m + s (2 code - top) / top."""

    key_s: torch.Tensor
    """(..., head_dim), by place"""
    key_m: torch.Tensor
    value_s: torch.Tensor
    """(..., groups, 64)"""
    value_m: torch.Tensor


@dataclass
class _Stored:
    """The (s, m) of a super-block after rounding to the stored form, and the stored form itself."""

    s: torch.Tensor
    m: torch.Tensor
    cs: torch.Tensor
    cm: torch.Tensor
    pair: torch.Tensor


def _store_six(s: torch.Tensor, m: torch.Tensor) -> _Stored:
    top_s, top_m = _half(s.amax(dim=-1, keepdim=True) / 63), _half(m.abs().amax(dim=-1, keepdim=True) / 31)
    cs = torch.where(top_s == 0, 1.0, torch.round(_clamp(s / torch.where(top_s == 0, 1.0, top_s), 1.0, 63.0)))
    cm = torch.where(top_m == 0, 0.0, torch.round(_clamp(m / torch.where(top_m == 0, 1.0, top_m), -31.0, 31.0)))
    pair = torch.cat([top_s, top_m], dim=-1)
    return _Stored(cs * top_s, cm * top_m, cs.to(torch.uint8), (cm + 32).to(torch.uint8), pair)


def _float_codes(x: torch.Tensor, s: torch.Tensor, m: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    h = top / 2
    return torch.round(_clamp((x - m) * _ratio(h.expand_as(s), s) + h, 0.0, top))


def _codes(x: torch.Tensor, s: torch.Tensor, m: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
    return torch.where(s > 0, _float_codes(x, s, m, top), 0.0).to(torch.uint8)


def _least_squares(
    x: torch.Tensor, s: torch.Tensor, mid: torch.Tensor, top: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fits (s, m) to x (..., 64, places) by least squares, starting from s and mid; s, mid, top (..., places)."""
    m, y = mid, x - mid[..., None, :]
    for _ in range(ROUNDS):
        u = 2 * _float_codes(x, s[..., None, :], m[..., None, :], top) - top
        terms = torch.stack([y, u, y * u, u * u])
        sums = torch.zeros_like(terms[..., 0, :])
        for token in range(PAGE):
            sums = sums + terms[..., token, :]
        sum_y, sum_u, sum_yu, sum_uu = sums
        spread = 64 * sum_uu - sum_u * sum_u
        slope = torch.where(spread > 0, (64 * sum_yu - sum_y * sum_u) / torch.where(spread > 0, spread, 1.0), 0.0)
        better = slope * top > 0
        s = torch.where(better, slope * top, s)
        m = torch.where(better, mid + (sum_y - slope * sum_u) * (1 / 64), m)
    return s, m


class PageFormat:
    """Sizes and coding of a page of heads of head_dim channels."""

    def __init__(self, recipe: Recipe, head_dim: int) -> None:
        self.recipe, self.head_dim = recipe, head_dim
        self.tiers: list[tuple[int, int, int]] = []
        """(bits, first place, end)"""
        start, cumulative = 0, Fraction(0)
        for bits, part in recipe.tiers:
            cumulative += part
            end = head_dim if cumulative == 1 else 4 * int(cumulative * head_dim / 4 + Fraction(1, 2))
            if end > start:
                self.tiers.append((bits, start, end))
            start = end
        self.groups = [(start, min(start + GROUP, head_dim)) for start in range(0, head_dim, GROUP)]
        self.key_bytes = sum(8 * bits * (end - start) for bits, start, end in self.tiers)
        self.value_bytes = 8 * recipe.value_bits * head_dim
        if recipe.f16_scales:
            self.scale_bytes = 4 * head_dim + 4 * PAGE * len(self.groups)
        else:
            self.scale_bytes = 4 * len(self.tiers) + 100 * len(self.groups) + 2 * (3 * head_dim // 4)
        self.record_bytes = self.key_bytes + self.value_bytes + self.scale_bytes

    def block_bytes(self, n_heads: int) -> int:
        """Bytes of one page of all KV heads."""
        return (self.record_bytes * n_heads + 63) // 64 * 64

    def learn_order(self, k: torch.Tensor) -> torch.Tensor:
        """The key channel at each place, int16 (..., head_dim), from a first page k (..., 64, head_dim), float32."""
        if len(self.tiers) == 1:
            order = torch.arange(self.head_dim, dtype=torch.int16, device=k.device)
            return order.expand(*k.shape[:-2], -1).contiguous()
        width = k.amax(dim=-2) - k.amin(dim=-2)
        return torch.sort(width, dim=-1, descending=True, stable=True).indices.to(torch.int16)

    def encode(self, k: torch.Tensor, v: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
        """Codes k, v (..., heads, 64, head_dim), float32 that hold f16 values, into blocks, uint8 (..., block_bytes);
        order (..., heads, head_dim)."""
        key_codes, key_scales = self._encode_keys(k, order)
        value_codes, value_scales = self._encode_values(v)
        scales = self._scale_bytes(key_scales, value_scales)
        n_heads = k.shape[-3]
        lead = k.shape[:-3]
        parts = [part.reshape(*lead, -1) for part in (key_codes, value_codes, scales)]
        n_pad = self.block_bytes(n_heads) - n_heads * self.record_bytes
        return torch.cat([*parts, parts[0].new_zeros(*lead, n_pad)], dim=-1)

    def _tops(self, device: torch.device) -> torch.Tensor:
        tops = [2.0**bits - 1 for bits, start, end in self.tiers for _ in range(start, end)]
        return torch.tensor(tops, dtype=torch.float32, device=device)

    def _encode_keys(self, k: torch.Tensor, order: torch.Tensor) -> tuple[torch.Tensor, list[_Stored]]:
        x = torch.gather(k, -1, order.long()[..., None, :].expand_as(k))  # channels by place
        tops = self._tops(k.device)
        lo, hi = x.amin(dim=-2), x.amax(dim=-2)
        s, m = (hi - lo) * 0.5, (lo + hi) * 0.5 + 0.0
        if self.recipe.least_squares:
            s, m = _least_squares(x, s, m, tops)
        if self.recipe.f16_scales:
            stored = [_Stored(_half(s), _half(m), s, m, s)]
        else:
            stored = [_store_six(s[..., start:end], m[..., start:end]) for _, start, end in self.tiers]
        s, m = torch.cat([tier.s for tier in stored], dim=-1), torch.cat([tier.m for tier in stored], dim=-1)
        codes = _codes(x, s[..., None, :], m[..., None, :], tops)
        packed = []
        for bits, start, end in self.tiers:
            fours = codes[..., start:end].unflatten(-1, ((end - start) // 4, 4)).movedim(-2, -3)
            packed.append(_plane(fours, bits).flatten(-2))
        return torch.cat(packed, dim=-1), stored

    def _encode_values(self, v: torch.Tensor) -> tuple[torch.Tensor, list[_Stored]]:
        bits = self.recipe.value_bits
        top = torch.tensor(2.0**bits - 1, device=v.device)
        packed, stored = [], []
        for start, end in self.groups:
            x = v[..., start:end]
            lo, hi = x.amin(dim=-1), x.amax(dim=-1)
            s, m = (hi - lo) * 0.5, (lo + hi) * 0.5 + 0.0
            group = _Stored(_half(s), _half(m), s, m, s) if self.recipe.f16_scales else _store_six(s, m)
            codes = _codes(x, group.s[..., None], group.m[..., None], top)
            fours = codes.unflatten(-2, (PAGE // 4, 4)).transpose(-1, -2)  # (..., four, channel, stream)
            packed.append(_plane(fours, bits).flatten(-2))
            stored.append(group)
        return torch.cat(packed, dim=-1), stored

    def _scale_bytes(self, keys: list[_Stored], values: list[_Stored]) -> torch.Tensor:
        if self.recipe.f16_scales:
            return torch.cat([_half_bytes(x) for part in [*keys, *values] for x in (part.s, part.m)], dim=-1)
        parts = [_half_bytes(part.pair) for part in [*keys, *values]]
        parts.append(_sixes(torch.cat([tier.cs for tier in keys], dim=-1)))
        parts.append(_sixes(torch.cat([tier.cm for tier in keys], dim=-1)))
        parts += [_sixes(numbers) for group in values for numbers in (group.cs, group.cm)]
        return torch.cat(parts, dim=-1)

    # ---- decoding

    def split(self, blocks: torch.Tensor, n_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Splits blocks (..., block_bytes) into key codes, value codes and scales, uint8 (..., heads, bytes) each."""
        parts, at = [], 0
        for n_bytes in (self.key_bytes, self.value_bytes, self.scale_bytes):
            parts.append(blocks[..., at : at + n_heads * n_bytes].unflatten(-1, (n_heads, n_bytes)))
            at += n_heads * n_bytes
        return parts[0], parts[1], parts[2]

    def read_scales(self, data: torch.Tensor) -> Scales:
        """Reads scales from their bytes (..., scale_bytes)."""
        at, d, n_groups = 0, self.head_dim, len(self.groups)

        def take(n: int) -> torch.Tensor:
            nonlocal at
            at += n
            return data[..., at - n : at]

        if self.recipe.f16_scales:
            s, m = _read_halves(take(2 * d)), _read_halves(take(2 * d))
            values = _read_halves(take(4 * PAGE * n_groups)).unflatten(-1, (n_groups, 2, PAGE))
            return Scales(s, m, values[..., 0, :], values[..., 1, :])
        pairs = _read_halves(take(4 * len(self.tiers))).unflatten(-1, (len(self.tiers), 2))
        value_pairs = _read_halves(take(4 * n_groups)).unflatten(-1, (n_groups, 2))
        counts = torch.tensor([end - start for _, start, end in self.tiers], device=data.device)
        pairs = torch.repeat_interleave(pairs, counts, dim=-2, output_size=d)
        s = _read_sixes(take(3 * d // 4), d).float() * pairs[..., 0]
        m = (_read_sixes(take(3 * d // 4), d).float() - 32) * pairs[..., 1]
        packed = take(96 * n_groups).unflatten(-1, (n_groups, 2, 48))
        value_s = _read_sixes(packed[..., 0, :], PAGE).float() * value_pairs[..., :1]
        value_m = (_read_sixes(packed[..., 1, :], PAGE).float() - 32) * value_pairs[..., 1:]
        return Scales(s, m, value_s, value_m)

    def decode(self, blocks: torch.Tensor, order: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Decodes blocks (..., block_bytes) to keys and values, float32 (..., heads, 64, head_dim): keys in the model's
        order of channels, values still rotated. order: (..., heads, head_dim)."""
        key_codes, value_codes, scale_bytes = self.split(blocks, order.shape[-2])
        scales = self.read_scales(scale_bytes)
        places, at = [], 0
        for bits, start, end in self.tiers:
            n_bytes = 8 * bits * (end - start)
            fours = key_codes[..., at : at + n_bytes].unflatten(-1, ((end - start) // 4, 32 * bits))
            places.append(_read_plane(fours, bits, PAGE).movedim(-3, -2).flatten(-2))
            at += n_bytes
        tops = self._tops(blocks.device)
        codes = torch.cat(places, dim=-1).float()
        by_place = scales.key_m[..., None, :] + scales.key_s[..., None, :] * ((2 * codes - tops) / tops)
        inverse = torch.argsort(order.long(), dim=-1)
        k = torch.gather(by_place, -1, inverse[..., None, :].expand_as(by_place))
        bits, top, at, groups = self.recipe.value_bits, 2.0**self.recipe.value_bits - 1, 0, []
        for index, (start, end) in enumerate(self.groups):
            n = end - start
            fours = value_codes[..., at : at + 8 * bits * n].unflatten(-1, (PAGE // 4, n * bits // 2))
            codes = _read_plane(fours, bits, n).transpose(-1, -2).flatten(-3, -2).float()
            s, m = scales.value_s[..., index, :, None], scales.value_m[..., index, :, None]
            groups.append(m + s * ((2 * codes - top) / top))
            at += 8 * bits * n
        return k, torch.cat(groups, dim=-1)
