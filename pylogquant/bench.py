"""Measures how fast a model runs on this machine, by KV cache type, and how near that is to what the machine can do.

A prompt is evaluated from an empty session, with the logits of its last token. Decoding evaluates one token after the
other behind `depth` others, each with its logits; nothing is sampled. The types take turns within a round, and who
begins changes from round to round, so that a noisy machine disturbs all of them. A depth is reached once for each type:
every round goes back to it (Session.rewind(), from a checkpoint). A batch decodes a token of each of several sessions
in one step (Model.step()), all from an empty context.

What the machine can do is measured, not looked up. A decoded token reads all weights that take part and the whole KV
cache: the bound is how fast memory can be read. A prompt's tokens share the weights that are read: the bound is how
many 8-bit products the CPU can do. Attention's own products are not counted.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from pylogquant._native import check, ffi, lib
from pylogquant.errors import ArgumentError
from pylogquant.kv import KvOptions

if TYPE_CHECKING:
    from pylogquant.model import Model, ModelInfo
    from pylogquant.session import Session

__all__ = ["Cost", "Machine", "Rate", "bench", "measure_machine", "random_ids", "token_cost"]

_WARM_PROMPT, _WARM_DECODE = 64, 2  # tokens that are evaluated before anything is timed
_MEMORY_BYTES = 2**30  # size of the buffer that is read to time memory rather than a cache
Work = Literal["prompt", "decode", "batch"]
_Item = TypeVar("_Item")
Progress = Callable[[int, int], None]
"""Called as progress(ms_done, ms_expected); the first call, with 0 done, gives the estimate."""


@dataclass(frozen=True)
class Rate:
    """One kind of work with one KV cache type."""

    work: Work
    kv: str
    n: int  # "prompt": its tokens; "decode": tokens before the decoded ones; "batch": sessions
    rounds: tuple[float, ...]  # tokens per second of each round, all sessions together
    kv_bytes: int  # bytes that n tokens take in the cache, sliding layers included; 0 for a batch
    kv_read_bytes: int  # how many of them the next token reads

    @property
    def median(self) -> float:
        return median(self.rounds)


@dataclass(frozen=True)
class Cost:
    """The least that one token costs, derived from the model's tensors."""

    weight_bytes: int  # weights read per decoded token: all but unused experts and an embedding that is not the head
    products: int  # multiplications of a weight and an activation per prompt token, without the head
    head_products: int  # multiplications of the head per token whose logits are asked for


@dataclass(frozen=True)
class Machine:
    """Measured limits of the CPU with a number of threads."""

    cpu: str
    cpu_level: str
    n_threads: int
    l3_bytes: int  # 0: unknown
    read_bytes: int  # size of a buffer that was read repeatedly: as much as a token reads of the weights
    read_per_s: float  # bytes per second
    memory_bytes: int  # size of a second buffer, which should fit no cache
    memory_per_s: float  # bytes per second
    products_per_s: float  # 8-bit multiplications, with the best instruction of cpu_level

    def bound(self, rate: Rate, cost: Cost) -> float:
        """The upper bound of tokens per second for this work."""
        if rate.work == "decode":
            return self.read_per_s / (cost.weight_bytes + rate.kv_read_bytes)
        if rate.work == "batch":  # weights are read once for all, but every session's products remain
            reading = rate.n * self.read_per_s / cost.weight_bytes
            return min(reading, self.products_per_s / (cost.products + cost.head_products))
        return self.products_per_s / (cost.products + cost.head_products / rate.n)


def random_ids(model: Model, n: int, seed: int = 0) -> list[int]:
    """n ids of the vocabulary, the same for the same seed; no control tokens."""
    ordinary = np.setdiff1d(np.arange(model.tokenizer.n_vocab), list(model.tokenizer.control_ids))
    return [int(i) for i in np.random.default_rng(seed).choice(ordinary, n)]


def token_cost(model: Model) -> Cost:
    """What a token of this model costs."""
    tensors = model.gguf.tensors
    has_head = any(tensor.name == "output.weight" for tensor in tensors)
    head = "output.weight" if has_head else "token_embd.weight"
    n_bytes = products = head_products = 0.0
    for tensor in tensors:
        if tensor.name == "token_embd.weight" and has_head:
            continue  # only one row of it is read
        share = _expert_share(model) if "_exps." in tensor.name else 1.0
        n_bytes += share * tensor.n_bytes
        if tensor.name == head:
            head_products += float(np.prod(tensor.shape))
        elif len(tensor.shape) > 1:
            products += share * float(np.prod(tensor.shape))
    return Cost(round(n_bytes), round(products), round(head_products))


def _expert_share(model: Model) -> float:
    """The fraction of a layer's experts that a token uses."""
    used, all_of_them = (model.gguf.metadata[f"{model.info().arch}.expert_{name}"] for name in ("used_count", "count"))
    return int(str(used)) / int(str(all_of_them))


def measure_machine(n_threads: int, n_bytes: int) -> Machine:
    """Measures for about two seconds. n_bytes: Cost.weight_bytes. Raises OutOfMemory, ArgumentError."""
    read, memory, products = (ffi.new("double *") for _ in range(3))
    level = ffi.new("char **")
    check(lib.lq_cpu_level(level))
    read_bytes = max(n_bytes, 2**20)
    available = int(lib.lq_memory_available()) or 4 * _MEMORY_BYTES
    memory_bytes = max(min(_MEMORY_BYTES, available // 4), read_bytes)
    check(lib.lq_measure_read(n_threads, read_bytes, read))
    check(lib.lq_measure_read(n_threads, memory_bytes, memory))
    check(lib.lq_measure_int8(n_threads, products))
    return Machine(
        cpu=_cpu_name(),
        cpu_level=ffi.string(level[0]).decode(),
        n_threads=n_threads,
        l3_bytes=_l3_bytes(),
        read_bytes=read_bytes,
        read_per_s=float(read[0]),
        memory_bytes=memory_bytes,
        memory_per_s=float(memory[0]),
        products_per_s=float(products[0]),
    )


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return " ".join(value.split())
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _l3_bytes() -> int:
    try:
        text = Path("/sys/devices/system/cpu/cpu0/cache/index3/size").read_text(encoding="ascii").strip()
        return int(text.removesuffix("K")) * 1024
    except (OSError, ValueError):  # a system or CPU without it
        return 0


def bench(
    model: Model,
    kvs: Sequence[str],
    *,
    prompts: Sequence[int] = (512, 4096),
    depths: Sequence[int] = (0, 4096),
    batches: Sequence[int] = (),
    rounds: int = 5,
    n_decode: int = 32,
    progress: Progress | None = None,
) -> list[Rate]:
    """Measures all prompts, then decoding at all depths, then batches of so many sessions; each with every type in kvs
    (as KvOptions.parse() reads them), in order. n_decode: tokens per session that are timed in one round.

    Raises ArgumentError (nothing to do, numbers below 1, more sessions than a step takes), Unsupported (a type that
    does not exist), OutOfMemory."""
    prompts, depths, batches = sorted(set(prompts)), sorted(set(depths)), sorted(set(batches))
    if not kvs or not (prompts or depths or batches):
        raise ArgumentError("there is nothing to measure: give KV cache types, and prompts, depths or batches")
    if min(prompts, default=1) < 1 or min(depths, default=0) < 0 or rounds < 1 or n_decode < 1:
        raise ArgumentError("prompts, rounds and decoded tokens are at least 1 each, depths at least 0")
    if min(batches, default=1) < 1 or max(batches, default=1) > lib.LQ_BATCH_MAX:
        raise ArgumentError(f"a batch has 1 to {lib.LQ_BATCH_MAX} sessions")
    n_ctx = max([*prompts, *(depth + _WARM_DECODE + n_decode for depth in depths), _WARM_PROMPT + _WARM_DECODE])
    ids = random_ids(model, n_ctx)
    with ExitStack() as stack:
        sessions = {
            kv: stack.enter_context(model.session(n_ctx, KvOptions.parse(kv), allow_long=True))
            for kv in dict.fromkeys(kvs)
        }
        clock = _Clock(model, sessions, ids, rounds, progress)
        clock.expect(prompts, depths, batches, n_decode)
        rates = [rate for n in prompts for rate in clock.prompt(n)]
        for session in sessions.values():
            session.reset()
        rates += [rate for depth in depths for rate in clock.decode(depth, n_decode)]
    return rates + [rate for n in batches for rate in clock.batch(n, n_decode)]


class _Clock:
    """Sessions of all types, and how far the work has come."""

    def __init__(
        self, model: Model, sessions: dict[str, Session], ids: Sequence[int], rounds: int, progress: Progress | None
    ) -> None:
        self.model, self.shape = model, model.info()
        self.sessions, self.ids, self.rounds = sessions, ids, rounds
        self.progress = progress or (lambda done, total: None)
        self.done = self.total = self.prompt_s = self.decode_s = 0.0

    def expect(self, prompts: Sequence[int], depths: Sequence[int], batches: Sequence[int], n_decode: int) -> None:
        """Warms every session up and estimates the time of everything, as if long contexts cost no more than short."""
        n = len(self.sessions)
        for session in self.sessions.values():
            start = time.perf_counter()
            session.prefill(self.ids[:_WARM_PROMPT])
            middle = time.perf_counter()
            for token in self.ids[:_WARM_DECODE]:
                session.append(token)
            self.prompt_s += (middle - start) / _WARM_PROMPT / n
            self.decode_s += (time.perf_counter() - middle) / _WARM_DECODE / n
        prompt_tokens = n * (self.rounds * sum(prompts) + max(depths, default=0))
        decoded_tokens = n * self.rounds * (len(depths) + len(batches)) * (_WARM_DECODE + n_decode)
        self.total = self.prompt_s * prompt_tokens + self.decode_s * decoded_tokens
        self.progress(0, _ms(self.total))

    def advance(self, seconds: float) -> None:
        self.done += seconds
        self.progress(min(_ms(self.done), _ms(self.total)), _ms(self.total))

    def turns(self) -> Iterator[tuple[str, Session]]:
        """Yields every type once per round; each round begins with another type."""
        return _turns(list(self.sessions.items()), self.rounds)

    def prompt(self, n: int) -> list[Rate]:
        rates: dict[str, list[float]] = {kv: [] for kv in self.sessions}
        for kv, session in self.turns():
            session.reset()
            rates[kv].append(n / _seconds(partial(session.prefill, self.ids[:n])))
            self.advance(n * self.prompt_s)
        return [
            Rate("prompt", kv, n, tuple(found), *_kv_bytes(self.shape, self.sessions[kv]))
            for kv, found in rates.items()
        ]

    def decode(self, depth: int, n_decode: int) -> list[Rate]:
        kv_bytes = {}
        for kv, session in self.sessions.items():
            held = session.n_tokens
            if depth > held:
                session.prefill(self.ids[held:depth])
                self.advance((depth - held) * self.prompt_s)
            session.checkpoint()
            kv_bytes[kv] = _kv_bytes(self.shape, session)
        rates: dict[str, list[float]] = {kv: [] for kv in self.sessions}
        warm, timed = np.split(np.asarray(self.ids[depth : depth + _WARM_DECODE + n_decode]), [_WARM_DECODE])
        for kv, session in self.turns():
            _append(session, warm.tolist())
            rates[kv].append(n_decode / _seconds(partial(_append, session, timed.tolist())))
            session.rewind(depth)
            self.advance((_WARM_DECODE + n_decode) * self.decode_s)
        return [Rate("decode", kv, depth, tuple(found), *kv_bytes[kv]) for kv, found in rates.items()]

    def batch(self, n_sessions: int, n_decode: int) -> list[Rate]:
        rates: dict[str, list[float]] = {kv: [] for kv in self.sessions}
        warm, timed = np.split(np.asarray(self.ids[: _WARM_DECODE + n_decode]), [_WARM_DECODE])
        with ExitStack() as stack:
            groups = {
                kv: [
                    stack.enter_context(self.model.session(_WARM_DECODE + n_decode, KvOptions.parse(kv)))
                    for _ in range(n_sessions)
                ]
                for kv in self.sessions
            }
            for kv, group in _turns(list(groups.items()), self.rounds):
                for session in group:
                    session.reset()
                _step(self.model, group, warm.tolist())
                rates[kv].append(n_sessions * n_decode / _seconds(partial(_step, self.model, group, timed.tolist())))
                self.advance((_WARM_DECODE + n_decode) * self.decode_s)
        return [Rate("batch", kv, n_sessions, tuple(found), 0, 0) for kv, found in rates.items()]


def _turns(items: Sequence[_Item], rounds: int) -> Iterator[_Item]:
    for index in range(rounds):
        first = index % len(items)
        yield from [*items[first:], *items[:first]]


def _kv_bytes(shape: ModelInfo, session: Session) -> tuple[int, int]:
    """Bytes that the session's tokens take, and how many of them the next token reads: not the cells that are allocated
    but empty, and in sliding layers only the window."""
    info = session.info()
    sliding = 2 * shape.kv_values_sliding * min(info.n_tokens, shape.window)  # in f16
    whole = min(info.kv_usage.global_bytes, 2 * info.kv_values_per_token * info.n_tokens)
    return info.kv_used_bytes, whole + sliding + info.kv_usage.recurrent_bytes


def _append(session: Session, ids: Sequence[int]) -> None:
    for token in ids:
        session.append(token)


def _step(model: Model, sessions: Sequence[Session], ids: Sequence[int]) -> None:
    """Appends ids to all sessions, one token per step."""
    for token in ids:
        model.step(sessions, [token] * len(sessions), copy=False)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _ms(seconds: float) -> int:
    return round(1000 * seconds)
