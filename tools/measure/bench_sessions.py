"""Measures time and memory of a session's checkpoints, of going back to them, and of forking, saving and loading it.

    python tools/measure/bench_sessions.py MODEL [--depth 8000] [--kv TYPE...] [--rounds 5]

Fills a session with --depth tokens of real text, then takes the median of --rounds of each operation: checkpoint(),
rewind() to it after one more token, fork(), save(), Model.load_session(). For comparison it also times evaluating the
text anew, which these operations avoid.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pylogquant import Model, Session
from pylogquant.evaluate import read_text


def seconds(rounds: int, before: Callable[[], object], operation: Callable[[], object]) -> float:
    """Median time of an operation; what is done before each is not timed."""
    found = []
    for _ in range(rounds):
        before()
        start = time.perf_counter()
        operation()
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def measure(model: Model, session: Session, ids: Sequence[int], rounds: int, folder: Path) -> str:
    """A line of figures of one session, which is filled here."""
    start = time.perf_counter()
    session.prefill(ids)
    evaluate = time.perf_counter() - start
    n, path = len(ids), folder / "bench.session"
    forks: list[Session] = []

    def close_forks() -> None:
        for fork in forks:
            fork.close()
        forks.clear()

    checkpoint = seconds(rounds, lambda: forks.append(session.fork()), lambda: forks[-1].checkpoint())
    session.checkpoint()
    rewind = seconds(rounds, lambda: session.append(ids[0]), lambda: session.rewind(n))
    fork = seconds(rounds, close_forks, lambda: forks.append(session.fork()))
    close_forks()
    save = seconds(rounds, lambda: path.unlink(missing_ok=True), lambda: session.save(path))
    load = seconds(rounds, close_forks, lambda: forks.append(model.load_session(path)))
    close_forks()
    info = session.info()
    own = info.kv_usage.full_bytes + info.kv_usage.index_bytes + info.kv_usage.mask_bytes + info.kv_usage.ring_bytes
    sizes = [info.kv_used_bytes, path.stat().st_size, info.checkpoint_bytes, own]
    times = [checkpoint, rewind, fork, save, load]
    return (
        f"{info.kv:<16}{evaluate:>9.1f} s"
        + "".join(f"{1000 * t:>10.1f}" for t in times)
        + "".join(f"{size / 2**20:>10.1f}" for size in sizes)
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--depth", type=int, default=8000)
    parser.add_argument("--kv", nargs="+", default=["logquant", "logquant-small", "f16"])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{'':<16}{'evaluate':>11}{'':>4}milliseconds:{'':>37}MiB:")
    heads = ("check", "rewind", "fork", "save", "load", "cache", "file", "check", "own")
    print(f"{'KV type':<16}{'':>11}" + "".join(f"{head:>10}" for head in heads))
    with Model(options.model) as model, tempfile.TemporaryDirectory() as folder:
        ids = model.tokenizer.encode(read_text("stdlib:prose")[: 32 * options.depth])[: options.depth]
        for kv in options.kv:
            with model.session(options.depth + 64, kv) as session:
                print(measure(model, session, ids, options.rounds, Path(folder)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
