"""Types, pages and cells of the LogQuant cache in NumPy, written from docs/format.md: what the core is checked against.

Coding is float32 in the specified order, over all heads at once, so codes, scales and records must agree with the core
bit for bit. The cache that is made of them is in kv_cache_oracle.py.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pylogquant.kv import KvOptions

__all__ = [
    "PAGE",
    "RECIPES",
    "Format",
    "Lines",
    "Recipe",
    "as_cell",
    "as_half",
    "as_q4_0",
    "as_q8_0",
    "decode_page",
    "encode_page",
    "hadamard",
    "learn_order",
    "lines_of",
    "parse_keys",
    "plane",
    "recipe_of",
    "rounded",
    "sixes",
]

PAGE = 64
GROUP = 64  # channels that share a value scale
ROUNDS = 2  # of least squares

Bytes = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Float = TypeVar("Float", np.float32, np.float64)
Number = TypeVar("Number", np.float64, np.int64)


# ---- types -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """A row of the table of types. Without a window every token stays a cell of the overlay's format. With a window but
    without tiers, tokens that are given up are dropped."""

    tiers: tuple[tuple[int, Fraction], ...]
    least_squares: bool
    f16_scales: bool
    value_bits: int
    rotate: bool
    select: Literal["even", "newest", "heaviest"]
    window: int
    overlay: Literal["f16", "q8_0", "q4_0"]
    sinks: int
    rotate_keys: bool = False


def parse_keys(text: str) -> tuple[tuple[int, Fraction], ...]:
    """Key widths as options spell them: "2", or "4:3/8,2:3/8,1:1/4"."""
    if ":" not in text:
        return ((int(text), Fraction(1)),)
    return tuple((int(bits), Fraction(part)) for bits, part in (tier.split(":") for tier in text.split(",")))


RECIPES: dict[str, Recipe] = {
    "logquant": Recipe(parse_keys("4:3/8,2:3/8,1:1/4"), True, False, 2, True, "heaviest", 128, "f16", 4),
    "logquant-small": Recipe(parse_keys("4:1/4,2:1/4,1:1/2"), True, False, 2, True, "heaviest", 64, "q8_0", 4),
    "logquant-hq": Recipe(parse_keys("5:1/8,4:1/8,3:1/4,2:1/2"), True, False, 3, True, "heaviest", 128, "f16", 4),
    "logquant-paper": Recipe(parse_keys("2"), False, True, 2, False, "even", 64, "f16", 0),
    "kivi": Recipe(parse_keys("2"), False, True, 2, False, "newest", 64, "f16", 0),
    "streaming": Recipe((), False, False, 0, False, "newest", 256, "f16", 4),
    "h2o": Recipe((), False, False, 0, False, "heaviest", 256, "f16", 0),
    "q4_0": Recipe((), False, False, 0, True, "even", 0, "q4_0", 0, rotate_keys=True),
    "q4_0-plain": Recipe((), False, False, 0, False, "even", 0, "q4_0", 0),
    "q8_0": Recipe((), False, False, 0, False, "even", 0, "q8_0", 0),
    "f16": Recipe((), False, False, 0, False, "even", 0, "f16", 0),
}


def recipe_of(options: KvOptions | str) -> Recipe:
    """The recipe that options ask for."""
    if isinstance(options, str):
        return RECIPES[options]
    recipe = RECIPES[options.name]
    if options.keys is not None:
        recipe = replace(recipe, tiers=parse_keys(options.keys))
    if options.select is not None:
        assert options.select in ("even", "newest", "heaviest")
        recipe = replace(recipe, select=options.select)
    if options.overlay is not None:
        assert options.overlay in ("f16", "q8_0")
        recipe = replace(recipe, overlay=options.overlay)
    return replace(
        recipe,
        value_bits=options.value_bits or recipe.value_bits,
        window=options.window or recipe.window,
        sinks=recipe.sinks if options.sinks is None else options.sinks,
    )


class Format:
    """Sizes of a page's record for one head of head_dim channels."""

    def __init__(self, recipe: Recipe, head_dim: int) -> None:
        self.recipe = recipe
        self.head_dim = head_dim
        ends = []
        cumulative = Fraction(0)
        for _, part in recipe.tiers:
            cumulative += part
            ends.append(4 * int(cumulative * head_dim / 4 + Fraction(1, 2)))  # int() of a positive number: floor
        ends[-1] = head_dim
        starts = [0, *ends[:-1]]
        self.tiers = [  # (bits, first place, end)
            (bits, start, end) for (bits, _), start, end in zip(recipe.tiers, starts, ends, strict=True) if end > start
        ]
        self.groups = [(start, min(start + GROUP, head_dim)) for start in range(0, head_dim, GROUP)]
        self.k_bytes = sum(8 * bits * (end - start) for bits, start, end in self.tiers)
        self.v_bytes = 8 * recipe.value_bits * head_dim
        if recipe.f16_scales:
            self.scale_bytes = 4 * head_dim + 4 * PAGE * len(self.groups)
        else:
            self.scale_bytes = 4 * len(self.tiers) + 100 * len(self.groups) + 2 * (3 * head_dim // 4)
        self.record_bytes = self.k_bytes + self.v_bytes + self.scale_bytes

    @property
    def key_tops(self) -> F32:
        """Largest code of each place."""
        return np.concatenate([np.full(end - start, 2**bits - 1, np.float32) for bits, start, end in self.tiers])


# ---- numbers ---------------------------------------------------------------------------------------------------------


def as_half(x: npt.NDArray[np.floating]) -> F32:
    """Rounded to f16, to nearest, ties to even; as float32."""
    with np.errstate(over="ignore", under="ignore"):
        return x.astype(np.float32).astype(np.float16).astype(np.float32)


def clamp(x: F32, lo: float | F32, hi: float | F32) -> F32:
    low, high = np.asarray(lo, np.float32), np.asarray(hi, np.float32)
    clamped: F32 = np.where(x > low, np.where(x < high, x, high), low)  # a NaN is not above lo
    return clamped


def as_q8_0(x: F32) -> F32:
    """What q8_0 cells of x stand for; blocks of 32 along the last axis."""
    out = np.empty_like(x)
    for start in range(0, x.shape[-1], 32):
        block = x[..., start : start + 32]
        d = as_half(np.abs(block).max(axis=-1, keepdims=True) / np.float32(127))
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            q = np.where(d == 0, np.float32(0), np.rint(clamp(block / d, -127, 127)))
        out[..., start : start + 32] = d * q
    return out


def as_q4_0(x: F32) -> F32:
    """What q4_0 cells of x stand for; blocks of 32 along the last axis, the last one filled up with zeros."""
    out = np.empty_like(x)
    for start in range(0, x.shape[-1], 32):
        block = x[..., start : start + 32]
        first_largest = np.argmax(np.abs(block), axis=-1, keepdims=True)
        e = np.take_along_axis(block, first_largest, axis=-1) / np.float32(-8)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            inverse = np.where(e == 0, np.float32(0), np.float32(1) / e)
            q = np.floor(clamp(block * inverse + np.float32(8.5), 0, 15))
        out[..., start : start + 32] = as_half(e) * (q - np.float32(8))
    return out


def as_cell(x: F32, kind: str) -> F32:
    """What cells made from x stand for."""
    return {"q4_0": as_q4_0, "q8_0": as_q8_0, "f16": as_half}[kind](x)


def hadamard_blocks(head_dim: int) -> list[int]:
    if head_dim & (head_dim - 1) == 0:
        return [head_dim]
    rest = head_dim % 64
    return [64] * (head_dim // 64) + [1 << bit for bit in range(5, -1, -1) if rest >> bit & 1]


def hadamard(x: npt.NDArray[Float]) -> npt.NDArray[Float]:
    """Rotates the last axis, in the arithmetic of x's type."""
    out: npt.NDArray[Float] = x.copy()
    one = x.dtype.type(1)
    start = 0
    for n in hadamard_blocks(x.shape[-1]):
        block = out[..., start : start + n]
        length = 1
        while length < n:
            pairs = block.reshape(*block.shape[:-1], n // (2 * length), 2, length)
            a, b = pairs[..., 0, :], pairs[..., 1, :]
            block = np.stack([a + b, a - b], axis=-2).reshape(block.shape)
            length *= 2
        out[..., start : start + n] = block * (one / np.sqrt(x.dtype.type(n)))
        start += n
    return out


# ---- bytes -----------------------------------------------------------------------------------------------------------


def _one_plane(fields: Bytes, bits: int) -> Bytes:
    """Fields (..., items, 4 streams) of up to 4 bits to bytes (..., 4 L)."""
    *lead, n, streams = fields.shape
    length = n * bits // 8
    by_part = fields.reshape(*lead, 8 // bits, length, streams)  # item L i + l at [i, l]
    shifts = (bits * np.arange(8 // bits, dtype=np.uint8)).reshape(-1, 1, 1)
    packed: Bytes = np.bitwise_or.reduce(by_part << shifts, axis=-3)
    return packed.reshape(*lead, 4 * length)


def _low_bits(bits: int) -> int:
    """Bits of the first plane."""
    return {3: 2, 5: 4}.get(bits, bits)


def plane(codes: Bytes, bits: int) -> Bytes:
    """The planes of a width: codes (..., items, 4 streams) to bytes."""
    low = _low_bits(bits)
    first = _one_plane(codes & np.uint8(2**low - 1), low)
    if low == bits:
        return first
    return np.concatenate([first, _one_plane(codes >> np.uint8(low), 1)], axis=-1)


def _read_plane(data: Bytes, bits: int, n: int) -> Bytes:
    """The inverse of plane(): bytes to codes (..., n, 4)."""
    low = _low_bits(bits)
    if low != bits:
        split = n * low // 2
        high = _read_plane(data[..., split:], 1, n)
        both: Bytes = _read_plane(data[..., :split], low, n) | high << np.uint8(low)
        return both
    columns = data.reshape(*data.shape[:-1], 1, n * bits // 8, 4)
    shifts = (bits * np.arange(8 // bits, dtype=np.uint8)).reshape(-1, 1, 1)
    fields: Bytes = columns >> shifts & np.uint8(2**bits - 1)
    return fields.reshape(*data.shape[:-1], n, 4)


def sixes(numbers: Bytes) -> Bytes:
    """Packed sixes of the last axis."""
    k = numbers.shape[-1]
    half, quarter = k // 2, k // 4
    low, high = numbers & np.uint8(15), numbers >> np.uint8(4)
    first = low[..., :half] | low[..., half:] << np.uint8(4)
    parts = [high[..., i * quarter : (i + 1) * quarter] << np.uint8(2 * i) for i in range(4)]
    return np.concatenate([first, parts[0] | parts[1] | parts[2] | parts[3]], axis=-1)


def _read_sixes(data: Bytes, k: int) -> Bytes:
    low = np.concatenate([data[..., : k // 2] & np.uint8(15), data[..., : k // 2] >> np.uint8(4)], axis=-1)
    high = np.concatenate([data[..., k // 2 :] >> np.uint8(2 * i) & np.uint8(3) for i in range(4)], axis=-1)
    numbers: Bytes = low | high << np.uint8(4)
    return numbers


def _half_bytes(x: F32) -> Bytes:
    """Values that are halves, as their bytes, along the last axis."""
    halves = np.ascontiguousarray(x).astype("<f2")
    return halves.view(np.uint8)


def _read_halves(data: Bytes) -> F32:
    return np.ascontiguousarray(data).view("<f2").astype(np.float32)


# ---- coding ----------------------------------------------------------------------------------------------------------


@dataclass
class _Scales:
    """(s, m) of the last axis' members as they are stored, and what is stored: cs, cm + 32, S, M of the super-block."""

    s: F32
    m: F32
    cs: Bytes
    cm: Bytes
    pair: F32  # (..., 2)


def _store_six(s: F32, m: F32) -> _Scales:
    """6-bit form; the last axis is a super-block."""
    S = as_half(s.max(axis=-1, keepdims=True) / np.float32(63))
    M = as_half(np.abs(m).max(axis=-1, keepdims=True) / np.float32(31))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        cs = np.where(S == 0, np.float32(1), np.rint(clamp(s / S, 1, 63)))
        cm = np.where(M == 0, np.float32(0), np.rint(clamp(m / M, -31, 31)))
        stored_s, stored_m = cs * S, cm * M
    return _Scales(stored_s, stored_m, cs.astype(np.uint8), (cm + 32).astype(np.uint8), np.concatenate([S, M], axis=-1))


def _codes(x: F32, s: F32, m: F32, top: F32) -> F32:
    """code(x, s, m), with 0 for h / s where s is not positive."""
    h = top / np.float32(2)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.where(s > 0, h / s, np.float32(0))
        return np.rint(clamp((x - m) * ratio + h, np.float32(0), top))


def _stored_codes(x: F32, s: F32, m: F32, top: F32) -> Bytes:
    codes: Bytes = np.where(s > 0, _codes(x, s, m, top), np.float32(0)).astype(np.uint8)
    return codes


def _sum_in_order(x: F32) -> F32:
    """Sum over the second last axis, one after the other, from 0."""
    total = np.zeros(x.shape[:-2] + x.shape[-1:], np.float32)
    for i in range(x.shape[-2]):
        total = total + x[..., i, :]
    return total


def _extremes(x: F32, axis: int) -> tuple[F32, F32]:
    """Smallest and largest along an axis; of equal ones, 0 and -0, the first."""
    lo, hi = (np.expand_dims(find(x, axis=axis), axis) for find in (np.argmin, np.argmax))
    return np.take_along_axis(x, lo, axis=axis).squeeze(axis), np.take_along_axis(x, hi, axis=axis).squeeze(axis)


def _least_squares(x: F32, s: F32, mid: F32, top: F32) -> tuple[F32, F32]:
    """The rounds over x (..., 64, places)."""
    m = mid
    y = x - mid[..., None, :]
    for _ in range(ROUNDS):
        u = np.float32(2) * _codes(x, s[..., None, :], m[..., None, :], top) - top
        Y, U, YU, UU = _sum_in_order(y), _sum_in_order(u), _sum_in_order(y * u), _sum_in_order(u * u)
        spread = np.float32(64) * UU - U * U
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            slope = np.where(spread > 0, (np.float32(64) * YU - Y * U) / spread, np.float32(0))
            better = slope * top > 0
            s = np.where(better, slope * top, s)
            m = np.where(better, mid + (Y - slope * U) * np.float32(1 / 64), m)
    return s, m


def learn_order(form: Format, k: F32) -> npt.NDArray[np.uint16]:
    """Page order of the channels from a first page k (..., 64, head_dim)."""
    if len(form.tiers) == 1:
        return np.broadcast_to(np.arange(form.head_dim, dtype=np.uint16), k.shape[:-2] + k.shape[-1:])
    lo, hi = _extremes(k, -2)
    return np.argsort(-(hi - lo), axis=-1, kind="stable").astype(np.uint16)


def _encode_keys(form: Format, k: F32, order: npt.NDArray[np.uint16]) -> tuple[Bytes, list[_Scales] | tuple[F32, F32]]:
    x = np.take_along_axis(k, order[..., None, :].astype(np.int64), axis=-1)  # by place
    tops = form.key_tops
    lo, hi = _extremes(x, -2)
    s, m = (hi - lo) * np.float32(0.5), (lo + hi) * np.float32(0.5) + np.float32(0)
    if form.recipe.least_squares:
        s, m = _least_squares(x, s, m, tops)
    scales: list[_Scales] | tuple[F32, F32]
    if form.recipe.f16_scales:
        s, m = as_half(s), as_half(m)
        scales = (s, m)
    else:
        scales = [_store_six(s[..., start:end], m[..., start:end]) for _, start, end in form.tiers]
        s, m = (np.concatenate([getattr(tier, name) for tier in scales], axis=-1) for name in ("s", "m"))
    codes = _stored_codes(x, s[..., None, :], m[..., None, :], tops)
    out = []
    for bits, start, end in form.tiers:
        fours = codes[..., start:end].reshape(*codes.shape[:-1], (end - start) // 4, 4)  # (..., token, four, stream)
        packed = plane(np.moveaxis(fours, -2, -3), bits)
        out.append(packed.reshape(*packed.shape[:-2], -1))
    return np.concatenate(out, axis=-1), scales


def _encode_values(form: Format, v: F32) -> tuple[Bytes, list[_Scales] | list[tuple[F32, F32]]]:
    bits = form.recipe.value_bits
    top = np.float32(2**bits - 1)
    packed_groups, sixes_of, halves_of = [], [], []
    for start, end in form.groups:
        x = v[..., start:end]
        lo, hi = _extremes(x, -1)
        s, m = (hi - lo) * np.float32(0.5), (lo + hi) * np.float32(0.5) + np.float32(0)
        if form.recipe.f16_scales:
            s, m = as_half(s), as_half(m)
            halves_of.append((s, m))
        else:
            stored = _store_six(s, m)
            s, m = stored.s, stored.m
            sixes_of.append(stored)
        codes = _stored_codes(x, s[..., None], m[..., None], np.asarray(top))
        fours = codes.reshape(*codes.shape[:-2], PAGE // 4, 4, end - start)  # (..., four, stream, channel)
        packed = plane(np.swapaxes(fours, -1, -2), bits)
        packed_groups.append(packed.reshape(*packed.shape[:-2], -1))
    return np.concatenate(packed_groups, axis=-1), halves_of if form.recipe.f16_scales else sixes_of


def encode_page(form: Format, k: F32, v: F32, order: npt.NDArray[np.uint16]) -> Bytes:
    """Records of pages: k, v (..., 64, head_dim) float32 that hold f16 values, order (..., head_dim)."""
    key_codes, of_keys = _encode_keys(form, k, order)
    value_codes, of_values = _encode_values(form, v)
    parts = [key_codes, value_codes]
    if isinstance(of_keys, tuple):
        parts += [_half_bytes(x) for x in of_keys]
        parts += [_half_bytes(x) for pair in of_values if isinstance(pair, tuple) for x in pair]
    else:
        groups = [group for group in of_values if isinstance(group, _Scales)]
        parts += [_half_bytes(block.pair) for block in [*of_keys, *groups]]
        parts.append(sixes(np.concatenate([tier.cs for tier in of_keys], axis=-1)))
        parts.append(sixes(np.concatenate([tier.cm for tier in of_keys], axis=-1)))
        parts += [sixes(numbers) for group in groups for numbers in (group.cs, group.cm)]
    record = np.concatenate(parts, axis=-1)
    assert record.shape[-1] == form.record_bytes
    return record


# ---- decoding --------------------------------------------------------------------------------------------------------


class _Reader:
    """Takes bytes off the front of a record, along the last axis."""

    def __init__(self, record: Bytes) -> None:
        self._record = record
        self._at = 0

    def take(self, n: int) -> Bytes:
        self._at += n
        return self._record[..., self._at - n : self._at]

    def done(self) -> bool:
        return bool(self._at == self._record.shape[-1])


def _read_scales(form: Format, reader: _Reader) -> tuple[F32, F32, list[tuple[F32, F32]]]:
    """s and m of the keys by place (..., head_dim), and of the tokens of each value group (..., 64)."""
    d = form.head_dim
    if form.recipe.f16_scales:
        s, m = _read_halves(reader.take(2 * d)), _read_halves(reader.take(2 * d))
        return s, m, [(_read_halves(reader.take(128)), _read_halves(reader.take(128))) for _ in form.groups]
    tier_pairs = [_read_halves(reader.take(4)) for _ in form.tiers]
    group_pairs = [_read_halves(reader.take(4)) for _ in form.groups]
    widths = [end - start for _, start, end in form.tiers]

    def numbers(k: int) -> F32:
        return _read_sixes(reader.take(3 * k // 4), k).astype(np.float32)

    def spread(which: int) -> F32:
        return np.concatenate(
            [np.repeat(pair[..., which : which + 1], n, axis=-1) for pair, n in zip(tier_pairs, widths, strict=True)],
            axis=-1,
        )

    s = numbers(d) * spread(0)
    m = (numbers(d) - 32) * spread(1)
    values = [(numbers(PAGE) * pair[..., :1], (numbers(PAGE) - 32) * pair[..., 1:]) for pair in group_pairs]
    return s, m, values


def decode_page(form: Format, record: Bytes, order: npt.NDArray[np.uint16]) -> tuple[F64, F64]:
    """What records (..., record_bytes) stand for: keys and values (..., 64, head_dim), the model's channel order."""
    reader = _Reader(record)
    places = []
    for bits, start, end in form.tiers:
        data = reader.take(8 * bits * (end - start))
        fours = _read_plane(data.reshape(*data.shape[:-1], (end - start) // 4, 32 * bits), bits, PAGE)
        places.append(np.moveaxis(fours, -3, -2).reshape(*data.shape[:-1], PAGE, end - start))
    bits = form.recipe.value_bits
    groups = []
    for start, end in form.groups:
        n = end - start
        data = reader.take(8 * bits * n)
        fours = _read_plane(data.reshape(*data.shape[:-1], PAGE // 4, n * bits // 2), bits, n)
        groups.append(np.swapaxes(fours, -1, -2).reshape(*data.shape[:-1], PAGE, n))
    key_s, key_m, of_values = _read_scales(form, reader)
    assert reader.done()

    def level(codes: Bytes, s: F32, m: F32, top: F32) -> F64:
        return m.astype(np.float64) + s.astype(np.float64) * (2.0 * codes - top) / top

    by_place = level(np.concatenate(places, axis=-1), key_s[..., None, :], key_m[..., None, :], form.key_tops)
    k = np.empty_like(by_place)
    np.put_along_axis(k, np.broadcast_to(order[..., None, :].astype(np.int64), k.shape), by_place, axis=-1)
    top = np.asarray(2**bits - 1, np.float32)
    v = [level(codes, s[..., None], m[..., None], top) for codes, (s, m) in zip(groups, of_values, strict=True)]
    return k, np.concatenate(v, axis=-1)


# ---- integer attention -----------------------------------------------------------------------------------------------


@dataclass
class Lines:
    """What a page's codes are multiplied with: x = middle + step * (code - half the largest code)."""

    key_middle: F64  # (..., head_dim), the model's channel order
    key_step: F64
    key_tier: npt.NDArray[np.int64]
    value_middle: F64  # (..., groups, 64)
    value_step: F64


def lines_of(form: Format, record: Bytes, order: npt.NDArray[np.uint16]) -> Lines:
    reader = _Reader(record)
    reader.take(form.k_bytes + form.v_bytes)
    s, m, of_values = _read_scales(form, reader)
    tiers = np.repeat(np.arange(len(form.tiers)), [end - start for _, start, end in form.tiers])

    def by_channel(by_place: npt.NDArray[Number]) -> npt.NDArray[Number]:
        out = np.empty_like(by_place)
        np.put_along_axis(out, order.astype(np.int64), by_place, axis=-1)
        return out

    return Lines(
        key_middle=by_channel(m.astype(np.float64)),
        key_step=by_channel(s.astype(np.float64) * 2 / form.key_tops),
        key_tier=by_channel(np.broadcast_to(tiers, s.shape)),
        value_middle=np.stack([m for _, m in of_values], axis=-2).astype(np.float64),
        value_step=np.stack([s for s, _ in of_values], axis=-2).astype(np.float64)
        * 2
        / (2**form.recipe.value_bits - 1),
    )


def rounded(weights: F64, step: F64) -> F64:
    """Weights (..., n) as they are after weights * step was rounded to 127 parts of its largest, by rows."""
    folded = weights * step
    unit = np.abs(folded).max(axis=-1, keepdims=True) / 127
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((unit > 0) & (step > 0), np.rint(folded / unit) * unit / step, weights)
