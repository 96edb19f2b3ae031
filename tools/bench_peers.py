"""Tokens per second and start-up times, ours and llama.cpp's, alternating in one run on one machine.

    python tools/bench_peers.py MODEL [--threads 2] [--rounds 5] [--depth 0] [--no-flash] [--load] [--json]

pp: evaluates --prompt tokens of real text at depth 0, logits of the last. tg: evaluates --generate tokens one by one
after --depth tokens. Both sides get the same ids and no sampling, so only evaluation is timed. --load times, in fresh
processes: import, model load with tokenizer, and the first token after a prompt of 32. Medians over the rounds, with
the smallest and the largest; ratio = ours / llama.cpp's, the median of the rounds' ratios. Needs llama-cpp-python from
the extra `oracle`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pylogquant import Model, hub

PROSE = Path(__file__).resolve().parent.parent / "tests" / "data" / "prose.txt"
FIRST_PROMPT = 32

_LOAD_OURS = """
import json, sys, time
start = time.perf_counter()
import pylogquant
imported = time.perf_counter()
model = pylogquant.Model(sys.argv[1], threads=int(sys.argv[2]))
tokenizer = model.tokenizer
loaded = time.perf_counter()
session = model.session(n_ctx=512, kv="f16")
session.prefill(json.loads(sys.argv[3]))
session.sample(pylogquant.Sampler(pylogquant.SamplingOptions(temperature=0)))
print(json.dumps([imported - start, loaded - imported, time.perf_counter() - loaded]))
"""
_LOAD_PEER = """
import json, sys, time
start = time.perf_counter()
import llama_cpp
imported = time.perf_counter()
threads = int(sys.argv[2])
peer = llama_cpp.Llama(sys.argv[1], n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False)
loaded = time.perf_counter()
peer.eval(json.loads(sys.argv[3]))
peer.sample(temp=0.0)
print(json.dumps([imported - start, loaded - imported, time.perf_counter() - loaded]))
"""


@dataclass(frozen=True)
class Row:
    """One measurement of both sides; the unit is in the name."""

    name: str
    ours: float
    ours_range: tuple[float, float]
    peer: float
    peer_range: tuple[float, float]
    ratio: float


def make_row(name: str, ours: Sequence[float], peer: Sequence[float]) -> Row:
    """Medians of the rounds, which were taken pairwise."""
    ratios = [a / b for a, b in zip(ours, peer, strict=True)]
    return Row(
        name=name,
        ours=statistics.median(ours),
        ours_range=(min(ours), max(ours)),
        peer=statistics.median(peer),
        peer_range=(min(peer), max(peer)),
        ratio=statistics.median(ratios),
    )


class Ours:
    """Evaluates prompts and single tokens through the public interface."""

    def __init__(self, model: Model, n_ctx: int, kv: str) -> None:
        self.session = model.session(n_ctx=n_ctx, kv=kv, allow_long=True)
        info = self.session.info()
        self.title = f"pylogquant, {info.kv} KV, {info.cpu_level}"

    def reset(self) -> None:
        self.session.reset()

    def prefill(self, ids: Sequence[int]) -> None:
        self.session.prefill(ids)

    def step(self, token: int) -> None:
        self.session.append(token)


class Peer:
    """The same through llama.cpp's C interface, which costs less than its Python class."""

    def __init__(self, path: Path, n_ctx: int, threads: int, *, flash: bool) -> None:
        import llama_cpp

        self._lib: Any = llama_cpp
        self._llama: Any = llama_cpp.Llama(
            str(path), n_ctx=n_ctx, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads,
            flash_attn=flash, verbose=False,
        )  # fmt: skip
        self._context: Any = self._llama.ctx
        self.title = f"llama.cpp {llama_cpp.__version__}, f16 KV, flash attention {'on' if flash else 'off'}"

    def reset(self) -> None:
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def prefill(self, ids: Sequence[int]) -> None:
        for start in range(0, len(ids), 512):
            self._decode(ids[start : start + 512])

    def step(self, token: int) -> None:
        self._decode([token])

    def _decode(self, ids: Sequence[int]) -> None:
        tokens = (self._lib.llama_token * len(ids))(*ids)
        if self._lib.llama_decode(self._context, self._lib.llama_batch_get_one(tokens, len(ids))) != 0:
            raise SystemExit("bench_peers: llama.cpp failed to decode")
        # Reading a logit waits until they are there.
        ctypes.cast(self._lib.llama_get_logits(self._context), ctypes.POINTER(ctypes.c_float))[0]


def time_prompt(side: Ours | Peer, ids: Sequence[int]) -> float:
    """Tokens per second."""
    side.reset()
    start = time.perf_counter()
    side.prefill(ids)
    return len(ids) / (time.perf_counter() - start)


def time_decode(side: Ours | Peer, ids: Sequence[int], depth: int) -> float:
    """Tokens per second after depth tokens; one more is evaluated first, to warm up."""
    side.reset()
    side.prefill(ids[: depth + 1])
    start = time.perf_counter()
    for token in ids[depth + 1 :]:
        side.step(token)
    return (len(ids) - depth - 1) / (time.perf_counter() - start)


def alternate(rounds: int, ours: Callable[[], float], peer: Callable[[], float]) -> tuple[list[float], list[float]]:
    """Runs both sides in turn, who begins changing from round to round; the first, warming round is not kept."""
    results: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds + 1):
        order = (0, 1) if index % 2 else (1, 0)
        for side in order:
            value = (ours, peer)[side]()
            if index > 0:
                results[side].append(value)
    return results


def text_ids(model: Model, n_ids: int) -> list[int]:
    """n_ids ids of real text, from its start again where it ends."""
    ids = model.tokenizer.encode(PROSE.read_text(encoding="utf-8"))
    return (ids * (n_ids // len(ids) + 1))[:n_ids]


def bench_speed(path: Path, options: argparse.Namespace) -> tuple[str, str, list[Row]]:
    n_decode = options.depth + 1 + options.generate
    n_ctx = max(options.prompt, n_decode)
    with Model(path, threads=options.threads) as model:
        ids = text_ids(model, n_ctx)
        ours = Ours(model, n_ctx, options.kv)
        peer = Peer(path, n_ctx, options.threads, flash=not options.no_flash)
        prompt, decode = ids[: options.prompt], ids[:n_decode]
        rows = [
            make_row(
                f"pp{options.prompt}, tokens/s",
                *alternate(options.rounds, lambda: time_prompt(ours, prompt), lambda: time_prompt(peer, prompt)),
            ),
            make_row(
                f"tg{options.generate} at depth {options.depth}, tokens/s",
                *alternate(
                    options.rounds,
                    lambda: time_decode(ours, decode, options.depth),
                    lambda: time_decode(peer, decode, options.depth),
                ),
            ),
        ]
        return ours.title, peer.title, rows


def time_load(program: str, path: Path, threads: int, ids: Sequence[int]) -> list[float]:
    """Milliseconds: import, load, first token; in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program, str(path), str(threads), json.dumps(list(ids))],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"bench_peers: a start-up run failed: {done.stderr.strip().splitlines()[-1]}")
    return [1000 * seconds for seconds in json.loads(done.stdout.splitlines()[-1])]


def bench_load(path: Path, options: argparse.Namespace) -> list[Row]:
    with Model(path, threads=options.threads) as model:
        ids = text_ids(model, FIRST_PROMPT)
    ours, peer = [], []
    for index in range(options.rounds + 1):
        pair = (
            time_load(_LOAD_OURS, path, options.threads, ids),
            time_load(_LOAD_PEER, path, options.threads, ids),
        )
        if index > 0:  # the first fills the page cache
            ours.append(pair[0])
            peer.append(pair[1])
    names = ("import, ms", "load with tokenizer, ms", f"first token of a {FIRST_PROMPT}-token prompt, ms")
    return [make_row(name, [t[i] for t in ours], [t[i] for t in peer]) for i, name in enumerate(names)]


def print_table(rows: Sequence[Row]) -> None:
    print(f"{'':44} {'ours':>26} {'llama.cpp':>26} {'ratio':>7}")
    for row in rows:
        sides = [
            f"{value:.1f} ({low:.1f} .. {high:.1f})"
            for value, (low, high) in ((row.ours, row.ours_range), (row.peer, row.peer_range))
        ]
        print(f"{row.name:44} {sides[0]:>26} {sides[1]:>26} {row.ratio:7.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Tokens per second and start-up times, ours and llama.cpp's.")
    parser.add_argument("model", help="path of a GGUF file, or a name pylogquant knows")
    parser.add_argument("--threads", type=int, default=2, help="of both sides (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of each measurement (default: %(default)s)")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt (default: %(default)s)")
    parser.add_argument("--generate", type=int, default=64, help="tokens decoded one by one (default: %(default)s)")
    parser.add_argument("--depth", type=int, default=0, help="tokens before those (default: %(default)s)")
    parser.add_argument("--kv", default="f16", help="our KV cache type (default: %(default)s)")
    parser.add_argument("--no-flash", action="store_true", help="llama.cpp without flash attention")
    parser.add_argument("--load", action="store_true", help="start-up times instead of speed")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()

    path = hub.resolve(options.model)
    if options.load:
        titles, rows = ["pylogquant", "llama.cpp"], bench_load(path, options)
    else:
        ours, peer, rows = bench_speed(path, options)
        titles = [ours, peer]
    if options.json:
        content = {"model": path.name, "threads": options.threads, "sides": titles, "rows": [asdict(r) for r in rows]}
        print(json.dumps(content))
        return
    print(f"{path.name}, {options.threads} threads, medians of {options.rounds}: {titles[0]} | {titles[1]}")
    print_table(rows)


if __name__ == "__main__":
    main()
