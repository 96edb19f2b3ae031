"""Options of sessions, sampling and chats. Each option is declared once, with its default and its meaning.

A new option of sessions is a field of SessionOptions and, if it is a number, a line of _NUMBERS. Every method that
makes or plans a session then takes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal

from pylogquant._native import ffi, lib, whole_number
from pylogquant.errors import ArgumentError
from pylogquant.kv import DEFAULT_KV, KvOptions, fill_kv_options

__all__ = ["ChatOptions", "OnFull", "SamplingOptions", "SessionOptions", "fill_session_options"]

OnFull = Literal["stop", "drop"]
"""What happens when a session holds n_ctx tokens: it takes no more, or it drops the oldest."""


@dataclass(frozen=True)
class SamplingOptions:
    """How a token is picked. These defaults are for any model; Model.answer_defaults() has what suits one.

    temperature 0 is greedy; top_k 0, top_p 1, min_p 0, penalties 1, 0, 0 are off.
    The repeat penalty looks at prompt and answer, frequency and presence penalties at the answer alone: the tokens
    sampled one after the other since other text was evaluated. penalty_last_n: how many of the newest tokens penalties
    look at, 0 = all. seed None: a new random one each time. logit_bias: maps token ids to numbers added to their
    logits, -inf forbids a token. logprobs: report the chosen token's log probability.
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
    on_full: with n_ctx tokens held, "stop" takes no more (ContextFull); "drop" drops the oldest pages of 64 tokens, so
    that the session goes on up to the positions that the model was trained for, or beyond them if allow_long.
    watch_attention: record the attention that KvView.attention() returns (f16 KV only).
    max_tentative: tokens that a step may leave tentative, 0 to 64 (Session.commit()).
    budget: bytes that it may reserve; 0 = the free memory.
    checkpoints: how many it keeps at most.
    checkpoint_bytes: limit for all checkpoints together, outside the budget; while a prompt is read, one more
    checkpoint may take as many bytes again."""

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
    """Declares `system` in a base of its own, so that it is ChatOptions' first field."""

    system: str | None = None


@dataclass(frozen=True)
class ChatOptions(SessionOptions, _SystemFirst):
    """How a chat is made: the options of its session (SessionOptions), and its own.

    system: the system message; "" = none; None = as Model.answer_defaults() says.
    sampling: None = as Model.answer_defaults() says.
    template: a built-in template's name or a file, to use in place of the model's own.
    template_vars: variables that the template reads, as {"enable_thinking": False}; Chat.template.open_variables names
    them.
    skip_special: hide control tokens that the model writes, as some do around their thoughts.
    loop_guard: end an answer that repeats itself without end (finish "loop")."""

    _: KW_ONLY
    sampling: SamplingOptions | None = None
    template: str | None = None
    template_vars: Mapping[str, object] | None = None
    skip_special: bool = True
    loop_guard: bool = True


# Maps numeric fields to their name in lq_session_options, width in bits, and unit.
_NUMBERS = {
    "n_ctx": ("n_ctx", 32, " tokens"),
    "chunk": ("n_chunk", 32, " tokens"),
    "max_tentative": ("max_tentative", 32, " tokens"),
    "checkpoints": ("max_checkpoints", 32, ""),
    "budget": ("memory_budget", 64, " bytes"),
    "checkpoint_bytes": ("max_checkpoint_bytes", 64, " bytes"),
}


def fill_session_options(options: SessionOptions) -> tuple[Any, list[Any]]:
    """Makes an lq_session_options; returns it and the memory that it points into: keep both. Raises ArgumentError for
    values that C cannot express; the core checks all else."""
    raw = ffi.new("lq_session_options *")
    lib.lq_session_options_init(raw)
    for name, (c_name, n_bits, unit) in _NUMBERS.items():
        setattr(raw, c_name, whole_number(name, getattr(options, name), n_bits, unit))
    if options.on_full not in ("stop", "drop"):
        raise ArgumentError(f"on_full must be 'stop' or 'drop', not {options.on_full!r}")
    raw.on_full = lib.LQ_ON_FULL_DROP if options.on_full == "drop" else lib.LQ_ON_FULL_STOP
    for name in ("allow_long", "watch_attention"):
        if getattr(options, name) not in (False, True):
            raise ArgumentError(f"{name} must be True or False, not {getattr(options, name)!r}")
        setattr(raw, name, int(getattr(options, name)))
    return raw, fill_kv_options(raw.kv, options.kv)
