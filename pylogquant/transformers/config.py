"""Settings of a cache: those of the core, and where its operations run."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Literal

from pylogquant.errors import ArgumentError
from pylogquant.kv import KvOptions, Overlay, Select
from pylogquant.transformers.native import Worker

__all__ = ["Kernels", "LogQuantConfig", "Recipe"]

Kernels = Literal["auto", "native", "torch", "triton"]


@dataclass(frozen=True)
class Recipe:
    """A cache type with every setting resolved. docs/format.md explains the terms."""

    name: str
    tiers: tuple[tuple[int, Fraction], ...]
    """Key widths in bits, falling, each with its share of the channels; () for types that drop tokens."""
    value_bits: int
    least_squares: bool
    f16_scales: bool
    rotates: bool
    drops: bool
    needs_accumulated: bool
    select: Select
    window: int
    sinks: int
    overlay: Overlay


@dataclass(frozen=True)
class LogQuantConfig:
    """A cache type by name and changes of its settings; None (or 0 for value_bits and window) keeps the type's own.

    The first seven fields have the same meaning as in pylogquant.KvOptions and on the command line. A setting that has
    no effect on the type raises ArgumentError when a cache is made."""

    preset: str = "logquant"
    """logquant, logquant-small, logquant-hq, logquant-paper, kivi, streaming or h2o."""
    keys: str | None = None
    """Bits of the key codes: "1" to "5", or tiers by channel range, widest first: "4:3/8,2:3/8,1:1/4"."""
    value_bits: int = 0
    """Bits of the value codes: 2, 3 or 4."""
    window: int = 0
    """W in tokens, a multiple of 64: at most 3W tokens are in full precision."""
    sinks: int | None = None
    """How many of the first tokens stay in full precision for ever, 0 to 64."""
    overlay: Overlay | None = None
    """How tokens in full precision are stored once their page is coded: "f16" or "q8_0"."""
    select: Select | None = None
    """Which tokens stay in full precision: "even", "newest", or by attention: "heaviest"."""
    chunk: int = 512
    """Most prompt tokens that see each other in full precision, 1 to 65536; for attn_implementation="logquant"."""
    threads: int = 0
    """Threads of the native kernels; 0 = torch.get_num_threads()."""
    kernels: Kernels = "auto"
    """The implementation of coding and attention: "native" (this package's core, CPU tensors only), "torch" (any
    device), "triton" (torch with a Triton kernel for attention over pages; CUDA tensors); "auto" = native on CPU,
    triton on CUDA, torch elsewhere."""

    def __post_init__(self) -> None:
        if self.kernels not in ("auto", "native", "torch", "triton"):
            raise ArgumentError(f"kernels must be 'auto', 'native', 'torch' or 'triton', not {self.kernels!r}")
        if not 1 <= self.chunk <= 65536:
            raise ArgumentError(f"chunk must be 1 to 65536 tokens, not {self.chunk}")
        if not 0 <= self.threads < 2**16:
            raise ArgumentError(f"threads must be 0 or more, not {self.threads}")

    def kv_options(self) -> KvOptions:
        """The first seven fields as KvOptions."""
        return KvOptions(self.preset, self.keys, self.value_bits, self.window, self.sinks, self.overlay, self.select)

    def resolve(self) -> Recipe:
        """Resolves every setting. Raises ArgumentError or Unsupported, with the core's text, for one that does not
        exist."""
        return _resolve(self.kv_options())


@lru_cache(maxsize=64)
def _resolve(options: KvOptions) -> Recipe:
    # The core resolves types; making a worker for one small head is the shortest way to ask it.
    info, resolved = Worker(1, 1, 64, options, chunk=1, threads=1).describe()
    assert resolved.select is not None
    assert resolved.overlay is not None
    return Recipe(
        name=resolved.name,
        tiers=_tiers(resolved.keys) if not info.drops else (),
        value_bits=resolved.value_bits,
        least_squares=bool(info.least_squares),
        f16_scales=bool(info.f16_scales),
        rotates=bool(info.rotates_values),
        drops=bool(info.drops),
        needs_accumulated=bool(info.needs_accumulated),
        select=resolved.select,
        window=resolved.window,
        sinks=resolved.sinks or 0,
        overlay=resolved.overlay,
    )


def _tiers(keys: str | None) -> tuple[tuple[int, Fraction], ...]:
    assert keys is not None
    if ":" not in keys:
        return ((int(keys), Fraction(1)),)
    parts = (tier.split(":") for tier in keys.split(","))
    return tuple((int(bits), Fraction(part)) for bits, part in parts)
