"""A conversation in numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pylogquant.kv import KvOptions, KvUsage
    from pylogquant.text_stream import Finish

__all__ = ["ChatStats", "TurnStats"]


@dataclass(frozen=True)
class TurnStats:
    """What one turn took."""

    prompt_tokens: int = 0
    """Tokens that were evaluated before the answer; the rest of the conversation was in the session."""
    prompt_seconds: float = 0.0
    answer_tokens: int = 0
    answer_seconds: float = 0.0
    """The time that the caller took between two pieces does not count."""
    finish: Finish | None = None
    """None for an answer that was interrupted."""
    retokenized: bool = False
    """The template rewrote earlier turns, so that the whole conversation was tokenized again."""


@dataclass(frozen=True)
class ChatStats:
    """A conversation in numbers. str() is meant for people."""

    turns: int
    total: TurnStats
    """Sums over all turns since the chat was made or reset; finish is None."""
    last: TurnStats
    retokenized_turns: int
    n_tokens: int
    """Tokens in the session now, of n_ctx."""
    n_ctx: int
    kv: str
    kv_options: KvOptions
    """Every setting that the KV cache type has."""
    kv_usage: KvUsage
    """How many tokens are stored how, and the bytes by kind."""
    kv_bits: float
    """Bits per K or V element with n_ctx tokens, in layers that see the whole context."""
    kv_bits_now: float
    """Bits per K or V element with the tokens held now; 0 without tokens."""
    kv_used_bytes: int
    kv_f16_bytes: int
    """What the same tokens would take in f16."""
    kv_bytes: int
    """Bytes reserved for the KV cache."""

    def __str__(self) -> str:
        usage = self.kv_usage
        used = f"{_size(self.kv_used_bytes)} of {_size(self.kv_bytes)} in use"
        bits = f"{self.kv_bits:.3g} bits per value at {self.n_ctx} tokens"
        if self.n_tokens:
            used += f", f16 would take {_size(self.kv_f16_bytes)}"
            bits = f"{self.kv_bits_now:.3g} bits per value now, {bits}"
        parts = {
            "codes": usage.code_bytes,
            "scales": usage.scale_bytes,
            "masks": usage.mask_bytes,
            "full precision": usage.full_bytes,
            "indices": usage.index_bytes,
            "rings": usage.ring_bytes,
        }
        if usage.recurrent_bytes:
            parts["recurrent states"] = usage.recurrent_bytes
        lines = [
            f"turns    {self.turns}",
            f"prompts  {_speed(self.total.prompt_tokens, self.total.prompt_seconds)};"
            f" last turn {_speed(self.last.prompt_tokens, self.last.prompt_seconds)}",
            f"answers  {_speed(self.total.answer_tokens, self.total.answer_seconds)};"
            f" last turn {_speed(self.last.answer_tokens, self.last.answer_seconds)}",
            f"context  {_room(self.n_tokens, self.n_ctx)}:"
            f" {usage.n_sinks} sinks, {usage.n_full} in full precision, {usage.n_packed} packed"
            + (f", {usage.n_dropped} dropped" if usage.n_dropped else ""),
            f"KV       {self.kv_options}",
            f"         {used}; {bits}",
            f"         {', '.join(f'{name} {_size(n_bytes)}' for name, n_bytes in parts.items())}",
        ]
        if self.retokenized_turns:
            lines.append(
                f"note     the template rewrites earlier turns: tokenized again in {self.retokenized_turns} of them"
            )
        return "\n".join(lines)


def _room(n_tokens: int, n_ctx: int) -> str:
    if n_tokens > n_ctx:
        return f"{n_tokens} tokens came, room for {n_ctx}"
    return f"{n_tokens} of {n_ctx} tokens ({100 * n_tokens / n_ctx:.0f} %)"


def _speed(n_tokens: int, seconds: float) -> str:
    return f"{n_tokens} tokens, {n_tokens / seconds:.1f} tokens/s" if seconds > 0 else f"{n_tokens} tokens"


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.1f} MiB" if n_bytes >= 2**20 else f"{n_bytes / 1024:.1f} KiB"
