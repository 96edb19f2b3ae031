"""Speed by KV cache type: prompt and decode of one model, the types alternating, ratios against the first.

    python tools/bench_kv.py MODEL [--kv NAME[/SELECT] ...] [--depth 4096] [--decode 32] [--rounds 5] [--threads 0]

NAME/even and NAME/attention change a type's selection: `--kv logquant/even logquant/attention` shows what it costs to
know how much attention tokens have received. Medians over the rounds of tokens per second, and of each round's ratio
to the first type of the same round.
"""

from __future__ import annotations

import argparse
import time
from statistics import median

import numpy as np

from pylogquant import KvOptions, Model
from pylogquant.kv import kv_names


def options_of(text: str) -> KvOptions:
    name, _, select = text.partition("/")
    if select not in ("", "even", "attention"):
        raise SystemExit(f"bench_kv: '{text}': a selection is even or attention")
    return KvOptions(name, select=select or None)  # type: ignore[arg-type]


def one_round(model: Model, kv: KvOptions, ids: list[int], n_decode: int) -> tuple[float, float]:
    """Tokens per second of the prompt and of decoding after it."""
    with model.session(len(ids) + n_decode, kv, allow_long=True) as session:
        start = time.perf_counter()
        session.eval(ids, "none")
        middle = time.perf_counter()
        for token in ids[:n_decode]:
            session.append(token)
        end = time.perf_counter()
    return len(ids) / (middle - start), n_decode / (end - middle)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file, or a name that pylogquant knows")
    parser.add_argument("--kv", nargs="+", default=["f16", *(n for n in kv_names() if n != "f16")], metavar="NAME")
    parser.add_argument("--depth", type=int, default=4096, help="tokens of the prompt (default: %(default)s)")
    parser.add_argument("--decode", type=int, default=32, help="tokens after it (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    with Model(options.model, threads=options.threads) as model:
        ids = [int(i) for i in np.random.default_rng(0).integers(0, model.info().n_vocab, options.depth)]
        results: dict[str, list[tuple[float, float]]] = {kv: [] for kv in options.kv}
        for _ in range(options.rounds):
            for kv in options.kv:
                results[kv].append(one_round(model, options_of(kv), ids, options.decode))
    first = results[options.kv[0]]
    print(f"{'kv':<24}{'prompt, tok/s':>14}{'ratio':>8}{'decode, tok/s':>15}{'ratio':>8}")
    for kv, rounds in results.items():
        prompt, decode = (median(r[i] for r in rounds) for i in (0, 1))
        ratios = [median(r[i] / f[i] for r, f in zip(rounds, first, strict=True)) for i in (0, 1)]
        print(f"{kv:<24}{prompt:>14.1f}{ratios[0]:>8.3f}{decode:>15.1f}{ratios[1]:>8.3f}")


if __name__ == "__main__":
    main()
