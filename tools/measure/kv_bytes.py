"""Compares the measured bytes of a KV cache with the sum that follows from docs/format.md.

    python tools/measure/kv_bytes.py [--tokens 8192 32768]

One attention layer per head shape (SmolLM2's: 3 KV heads of 64; Gemma 3's: 1 of 256) is filled with random keys and
values; the most that it takes in the last cycle of W tokens is compared with the sum of codes, scales, masks, full
tokens as allocated (3W, the open page among them), sinks and indices. The exit code is 1 if they differ by more than
2 %, or if heads of 64 take more bits than they may.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

import numpy as np

from pylogquant.kv import KvLayer, KvOptions, bits_per_value, kv_names

PAGE = 64
SHAPES = ((3, 3, 64), (1, 1, 256))  # query heads (as few as can be: they take no memory), KV heads, head_dim
GOALS = {"logquant-small": (2.55, 2.35), "logquant": (3.25, 2.7), "logquant-hq": (3.95, 3.4)}  # at 8192, 32768 tokens
LIMIT = 0.02


@dataclass(frozen=True)
class Row:
    kv: str
    shape: tuple[int, int, int]
    n_tokens: int
    measured: int  # bytes
    defined: int
    n_values: int

    @property
    def difference(self) -> float:
        return self.measured / self.defined - 1


def key_code_bytes(keys: str, head_dim: int) -> tuple[int, int]:
    """Bytes of a page's key codes, and its number of tiers; boundaries in fours, rounded half up."""
    if ":" not in keys:
        return PAGE * head_dim * int(keys) // 8, 1
    total, n_tiers, first, cumulative = 0, 0, 0, 0.0
    for tier in keys.split(","):
        bits, part = tier.split(":")
        numerator, denominator = part.split("/")
        cumulative += int(numerator) / int(denominator)
        end = min(head_dim, 4 * int(cumulative * head_dim / 4 + 0.5))
        n_tiers += end > first
        total += PAGE * (end - first) * int(bits) // 8
        first = end
    return total, n_tiers


def cell_bytes(overlay: str | None, head_dim: int) -> int:
    if overlay in (None, "f16"):
        return 2 * head_dim
    return 18 * -(-head_dim // 32) if overlay.startswith("q4_0") else head_dim + 2 * -(-head_dim // 32)


def page_bytes(kv: KvOptions, head_dim: int) -> int:
    """Of one page of a head, its mask included; 0 in types that drop tokens."""
    if kv.keys is None:
        return 0
    key_codes, n_tiers = key_code_bytes(kv.keys, head_dim)
    groups = -(-head_dim // PAGE)
    if kv.name in ("logquant-paper", "kivi"):
        scales = 4 * head_dim + 4 * PAGE * groups
    else:
        scales = 2 * head_dim * 6 // 8 + 4 * n_tiers + groups * (2 * PAGE * 6 // 8 + 4)
    return key_codes + PAGE * head_dim * kv.value_bits // 8 + scales + 8


def defined_bytes(kv: KvOptions, n_kv_heads: int, head_dim: int, n_tokens: int) -> int:
    """Of one layer; kv is resolved: every setting that the type has is given."""
    if not kv.window:
        return 2 * n_kv_heads * n_tokens * cell_bytes(kv.name, head_dim)
    sinks = kv.sinks or 0
    full = 2 * ((3 * kv.window - PAGE) * cell_bytes(kv.overlay, head_dim) + (PAGE + sinks) * 2 * head_dim)
    accumulated = 4 * (3 * kv.window + sinks) if kv.select == "heaviest" else 0
    order = 2 * head_dim if kv.keys is not None else 0
    indices = 4 * (3 * kv.window - PAGE) + accumulated + order
    return n_kv_heads * ((n_tokens - sinks) // PAGE * page_bytes(kv, head_dim) + full + indices)


def fill(kv: str, shape: tuple[int, int, int], lengths: list[int]) -> list[Row]:
    """One layer, filled to each length in turn; the queries see whatever there is."""
    n_heads, n_kv_heads, head_dim = shape
    rng, rows = np.random.default_rng(0), []
    with KvLayer(n_heads, n_kv_heads, head_dim, max(lengths), kv) as layer:
        held = 0
        for n_tokens in lengths:
            most = 0
            while held < n_tokens:
                n = min(512 if held + 1024 < n_tokens else PAGE, n_tokens - held)
                k = rng.standard_normal((n, n_kv_heads, head_dim), dtype=np.float32)
                q = rng.standard_normal((n, n_heads, head_dim), dtype=np.float32)
                layer.attend(q, k, k)
                held += n
                most = max(most, layer.cache.usage().global_bytes)
            defined = defined_bytes(layer.cache.options(), n_kv_heads, head_dim, n_tokens)
            rows.append(Row(kv, shape, n_tokens, most, defined, 2 * n_kv_heads * head_dim * n_tokens))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 32768])
    lengths = sorted(parser.parse_args().tokens)
    good = True
    print(f"{'kv':<16}{'KV heads':<12}{'tokens':>8}{'bytes':>12}{'defined':>12}{'':>9}{'bits':>7}{'at most':>9}")
    for kv in kv_names():
        for shape in SHAPES:
            for row in fill(kv, shape, lengths):
                bits = bits_per_value(row.measured, row.n_values)
                goals = dict(zip((8192, 32768), GOALS.get(kv, ()), strict=False)) if shape[2] == PAGE else {}
                goal = goals.get(row.n_tokens)
                good = good and abs(row.difference) <= LIMIT and (goal is None or bits <= goal)
                print(
                    f"{kv:<16}{f'{shape[1]} of {shape[2]}':<12}{row.n_tokens:>8,}{row.measured:>12,}{row.defined:>12,}"
                    f"{100 * row.difference:>+8.2f}%{bits:>7.3f}{'' if goal is None else goal:>9}",
                    flush=True,
                )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
