"""Options of sessions, of sampling and of chats: each one written once, with its default and its meaning.

A new option of sessions is a field of SessionOptions and, if it is a number, a line of _NUMBERS. Every method that
makes or plans a session then takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

from pylogquant._native import ffi, lib
from pylogquant.errors import ArgumentError
from pylogquant.kv import DEFAULT_KV, KvOptions, fill_kv_options

__all__ = ["ChatOptions", "OnFull", "SamplingOptions", "SessionOptions", "fill_session_options"]

OnFull = Literal["stop", "drop"]
"""What happens when a session holds n_ctx tokens: no more are taken, or the oldest go."""


@dataclass(frozen=True)
class SamplingOptions:
    """How a token is picked. These defaults are for any model; Model.answer_defaults() has what suits one.

    temperature 0 is greedy; top_k 0, top_p 1, min_p 0, penalties 1, 0, 0 are off.
    The repeat penalty looks at prompt and answer, frequency and presence penalties at the answer alone: at tokens that
    were sampled one after the other since other text was evaluated. penalty_last_n: at how many of the newest, 0 = all.
    seed None: a fresh one each time. logit_bias: token id -> number added to its logit, -inf forbids it. logprobs:
    report the chosen token's.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 64
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    logprobs: bool = False


@dataclass(frozen=True)
class SessionOptions:
    """How a session is made.

    n_ctx: tokens it can hold; 0 = what the model was trained for; more is refused unless allow_long.
    kv: KV cache type, one of kv_names(), or KvOptions to change its settings.
    chunk: prompt tokens evaluated at once.
    allow_long: n_ctx may be more than the model was trained for.
    on_full: with n_ctx tokens held, "stop" takes no more (ContextFull); "drop" lets the oldest pages of 64 tokens go,
    so that the session goes on up to the positions that the model was trained for, or beyond them if allow_long.
    watch_attention: keep what KvView.attention() shows (f16 KV only).
    max_tentative: tokens that a step may leave tentative, 0 to 64 (Session.commit()).
    budget: bytes that it may reserve; 0 = what is free.
    checkpoints: how many it keeps at most.
    checkpoint_bytes: of all checkpoints together, besides the budget; while a prompt is read, one more of at most as
    many bytes."""

    n_ctx: int = 0
    kv: KvOptions | str = DEFAULT_KV
    _: KW_ONLY
    chunk: int = 512
    allow_long: bool = False
    on_full: OnFull = "stop"
    watch_attention: bool = False
    max_tentative: int = 0
    budget: int = 0
    checkpoints: int = 8
    checkpoint_bytes: int = 2**28


@dataclass(frozen=True)
class _SystemFirst:
    """Chats have their system message before all other options."""

    system: str | None = None


@dataclass(frozen=True)
class ChatOptions(SessionOptions, _SystemFirst):
    """How a chat is made: the options of its session (SessionOptions), and its own.

    system: the system message; "" = none; None = as Model.answer_defaults() says.
    sampling: None = as Model.answer_defaults() says.
    template: a built-in template's name or a file, where the model's own is missing or unwanted.
    template_vars: variables that the template reads, as {"enable_thinking": False}; Chat.template.open_variables names
    them.
    skip_special: control tokens that the model writes, as some do around their thoughts, yield no text.
    loop_guard: an answer that repeats itself without end is ended (finish "loop")."""

    _: KW_ONLY
    sampling: SamplingOptions | None = None
    template: str | None = None
    template_vars: Mapping[str, object] | None = None
    skip_special: bool = True
    loop_guard: bool = True


# Numbers: field -> its name in lq_session_options, its width in bits, its unit.
_NUMBERS = {
    "n_ctx": ("n_ctx", 32, " tokens"),
    "chunk": ("n_chunk", 32, " tokens"),
    "max_tentative": ("max_tentative", 32, " tokens"),
    "checkpoints": ("max_checkpoints", 32, ""),
    "budget": ("memory_budget", 64, " bytes"),
    "checkpoint_bytes": ("max_checkpoint_bytes", 64, " bytes"),
}


def fill_session_options(options: SessionOptions) -> tuple[Any, list[Any]]:
    """An lq_session_options, and what it points into: keep both. Raises ArgumentError for what C cannot express; all
    else is the core's to judge."""
    raw = ffi.new("lq_session_options *")
    lib.lq_session_options_init(raw)
    for name, (c_name, n_bits, unit) in _NUMBERS.items():
        value = getattr(options, name)
        if not 0 <= value < 2**n_bits:
            raise ArgumentError(f"{name} must be 0 to {2**n_bits - 1}{unit}, not {value}")
        setattr(raw, c_name, value)
    if options.on_full not in ("stop", "drop"):
        raise ArgumentError(f"on_full must be 'stop' or 'drop', not {options.on_full!r}")
    raw.on_full = lib.LQ_ON_FULL_DROP if options.on_full == "drop" else lib.LQ_ON_FULL_STOP
    raw.allow_long, raw.watch_attention = int(options.allow_long), int(options.watch_attention)
    return raw, fill_kv_options(raw.kv, options.kv)
