"""What it gains to read a prompt in slices beside sessions that decode, and how long these wait.

    python tools/measure/bench_mixed.py MODEL [--prompt 512] [--decoding 7] [--slices 8,16,32,64,128] [--kv logquant]
        [--depth 0] [--rounds 5]

The same work three ways, alternating: a prompt of --prompt tokens, and as many steps of --decoding sessions as the
prompt has slices. `whole`: the prompt at once, then the steps (decoding waits for all of it); `apart`: after each one,
alone, a step; `mixed`: each slice in the pass of a step. Prints tokens/s of all together, the ratios of `mixed` to
both, and the longest time between two tokens of a decoding session, in milliseconds; medians of --rounds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence

from pylogquant import Model, Session
from pylogquant.evaluate import read_text

Steps = list[float]  # when each ended


def whole(model: Model, reading: Session, decoding: Sequence[Session], slices: Sequence[list[int]]) -> Steps:
    reading.prefill([token for part in slices for token in part])
    return [step(model, decoding) for _ in slices]


def apart(model: Model, reading: Session, decoding: Sequence[Session], slices: Sequence[list[int]]) -> Steps:
    ends = []
    for part in slices:
        reading.prefill(part)
        ends.append(step(model, decoding))
    return ends


def mixed(model: Model, reading: Session, decoding: Sequence[Session], slices: Sequence[list[int]]) -> Steps:
    ends = []
    for part in slices:
        model.step([reading, *decoding], [part, *([[7]] * len(decoding))], copy=False)
        ends.append(time.perf_counter())
    return ends


def step(model: Model, decoding: Sequence[Session]) -> float:
    model.step(decoding, [7] * len(decoding), copy=False)
    return time.perf_counter()


WAYS: dict[str, Callable[[Model, Session, Sequence[Session], Sequence[list[int]]], Steps]] = {
    "whole": whole,
    "apart": apart,
    "mixed": mixed,
}


def measure(
    model: Model, kv: str, ids: list[int], n_decoding: int, depth: int, size: int
) -> dict[str, tuple[float, float]]:
    """Of each way: seconds, and the longest pause of a decoding session."""
    found = {}
    for name, way in WAYS.items():
        n_ctx = depth + len(ids) + 16
        decoding = [model.session(n_ctx, kv) for _ in range(n_decoding)]
        with model.session(len(ids) + 16, kv) as reading:
            for session in decoding:
                session.prefill(ids[: max(depth, 1)])
            step(model, decoding)
            start = time.perf_counter()
            ends = way(model, reading, decoding, [ids[at : at + size] for at in range(0, len(ids), size)])
            pauses = [end - before for before, end in zip([start, *ends], ends, strict=False)]
            found[name] = (ends[-1] - start, max(pauses))
        for session in decoding:
            session.close()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decoding", type=int, default=7)
    parser.add_argument("--slices", default="8,16,32,64,128")
    parser.add_argument("--kv", default="logquant")
    parser.add_argument("--depth", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    print(
        f"{'slice':>6}" + "".join(f"{name + ' tok/s':>14}" for name in WAYS) + f"{'of whole':>10}{'of apart':>10}",
        end="",
    )
    print("".join(f"{name + ' ms':>11}" for name in WAYS))
    with Model(options.model, threads=options.threads) as model:
        text = model.tokenizer.encode(read_text("stdlib:prose")[: 16 * max(options.prompt, options.depth)])
        for size in map(int, options.slices.split(",")):
            rounds = [
                measure(model, options.kv, text[: options.prompt], options.decoding, options.depth, size)
                for _ in range(options.rounds)
            ]
            n_tokens = options.prompt + options.decoding * -(-options.prompt // size)
            seconds = {name: statistics.median(r[name][0] for r in rounds) for name in WAYS}
            pauses = {name: statistics.median(r[name][1] for r in rounds) for name in WAYS}
            of = [statistics.median(r[name][0] / r["mixed"][0] for r in rounds) for name in ("whole", "apart")]
            rates = "".join(f"{n_tokens / seconds[name]:>14.0f}" for name in WAYS)
            print(f"{size:>6}{rates}{of[0]:>10.2f}{of[1]:>10.2f}", end="")
            print("".join(f"{1000 * pauses[name]:>11.1f}" for name in WAYS), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
