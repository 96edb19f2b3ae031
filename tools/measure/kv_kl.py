"""Checks the divergence of KV cache types (`pylogquant eval`) against an independent simulation of the same recipes.

    python tools/measure/kv_kl.py MODEL FIGURES [--text TEXT...] [--ctx 4096] [--prompt 512] [--stride 8]

FIGURES is {text: {kv: {"kl": nats}}} as JSON. For each type in it, mean KLs over all texts must agree within 15 % or
0.002, whichever is larger, else the exit code is 1. MODEL should have F32 weights (tools/models/widen_gguf.py):
products with packed weights round activations, which adds to any difference between two evaluations.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pylogquant import Model
from pylogquant.evaluate import SAMPLE_TEXTS, Score, evaluate, read_text, text_name

Figures = Mapping[str, Mapping[str, Mapping[str, float]]]


def agrees(kl: float, simulated: float) -> bool:
    return abs(kl - simulated) <= max(0.15 * simulated, 0.002)


def compare_means(scores: Sequence[Score], figures: Figures) -> bool:
    """Prints the means over all texts beside the simulation's; False if one is too far off."""
    good = True
    print(f"{'kv':<16}{'KL':>9}{'simulated':>11}{'ratio':>7}")
    for kv in dict.fromkeys(score.kv for score in scores):
        mine = [score for score in scores if score.kv == kv]
        if not all(kv in figures.get(score.text, {}) for score in mine):
            raise SystemExit(f"kv_kl: there is no figure for {kv} on every text")
        mean = float(np.mean([score.kl for score in mine]))
        simulated = float(np.mean([figures[score.text][kv]["kl"] for score in mine]))
        good = good and agrees(mean, simulated)
        verdict = "" if agrees(mean, simulated) else "  too far off"
        print(f"{kv:<16}{mean:>9.4f}{simulated:>11.4f}{mean / simulated:>7.2f}{verdict}", flush=True)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file, or a name that pylogquant knows")
    parser.add_argument("figures", type=Path)
    parser.add_argument("--text", nargs="+", default=SAMPLE_TEXTS, metavar="TEXT")
    parser.add_argument("--ctx", type=int, default=4096, help="tokens of each text (default: %(default)s)")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the exact prompt (default: %(default)s)")
    parser.add_argument("--stride", type=int, default=8, help="score every so many positions (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    figures: Figures = json.loads(options.figures.read_text(encoding="utf-8"))
    scores = []
    with Model(options.model, threads=options.threads) as model:
        for text in options.text:
            name = text_name(text)
            ids = model.tokenizer.encode(read_text(text)[: 32 * options.ctx])[: options.ctx]
            kvs = list(figures.get(name, {}))
            scores += evaluate(model, name, ids, kvs, prompt=options.prompt, stride=options.stride)[1:]
    return 0 if compare_means(scores, figures) else 1


if __name__ == "__main__":
    sys.exit(main())
