"""Measures what going on with a full context costs: sessions that drop their oldest pages, against one that holds all.

    python tools/measure/on_full.py MODEL --text FILE... [--tokens 4096] [--ctx 1024] [--kv TYPE...] [--stride 8]
        [--json]

Each text's first --tokens tokens are fed, 64 at a time, to an f16 session that holds them all and to sessions of --ctx
tokens with on_full="drop". Every --stride-th position from --ctx on is scored: mean KL(f16 with everything || this),
its quarters in order, the share of positions with the same most likely token, perplexity, and bytes of KV at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from pylogquant import Model
from pylogquant.evaluate import log_softmax, read_text, text_name

_BLOCK = 64


@dataclass(frozen=True)
class Row:
    """One KV type on one text."""

    kv: str
    text: str
    kl: float
    kl_quarters: tuple[float, ...]
    top1: float
    perplexity: float
    kv_bytes: int


def measure(model: Model, text: str, ids: Sequence[int], kv: str, n_ctx: int, stride: int) -> Row:
    """ids: the whole text; kv "f16, all" is the reference itself."""
    kl, same, nll = [], [], []
    everything = kv == "f16, all"
    n = len(ids)
    with (
        model.session(n, "f16", allow_long=True) as whole,
        model.session(n if everything else n_ctx, "f16" if everything else kv, on_full="drop") as short,
    ):
        for start in range(0, n - 1, _BLOCK):
            block = ids[start : min(start + _BLOCK, n - 1)]
            rows = [i for i in range(len(block)) if start + i >= n_ctx and (start + i) % stride == 0]
            wanted, found = whole.eval(block, "all"), short.eval(block, "all")
            assert wanted is not None
            assert found is not None
            if rows:
                p, q = log_softmax(wanted[rows]), log_softmax(found[rows])
                kl += (np.exp(p) * (p - q)).sum(axis=-1).tolist()
                same += (p.argmax(axis=-1) == q.argmax(axis=-1)).tolist()
                nll += [-float(q[i, ids[start + row + 1]]) for i, row in enumerate(rows)]
        quarters = tuple(float(part.mean()) for part in np.array_split(np.array(kl), 4))
        n_bytes = short.kv.usage().total_bytes
    return Row(kv, text, float(np.mean(kl)), quarters, float(np.mean(same)), float(np.exp(np.mean(nll))), n_bytes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", nargs="+", required=True)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--ctx", type=int, default=1024)
    parser.add_argument(
        "--kv", nargs="+", default=["f16, all", "f16", "q8_0", "logquant", "logquant-small", "streaming"]
    )
    parser.add_argument("--stride", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with Model(options.model) as model:
        for source in options.text:
            ids = model.tokenizer.encode(read_text(source)[: 32 * options.tokens])[: options.tokens]
            if len(ids) < options.tokens:
                print(f"on_full: {source} has {len(ids)} tokens, {options.tokens} are asked for", file=sys.stderr)
                return 1
            for kv in options.kv:
                row = measure(model, text_name(source), ids, kv, options.ctx, options.stride)
                rows.append(row)
                if not options.json:
                    quarters = " ".join(f"{part:.4f}" for part in row.kl_quarters)
                    print(
                        f"{row.kv:<16}{row.text:<14} KL {row.kl:.4f} ({quarters})  same top {100 * row.top1:.1f} % "
                        f" perplexity {row.perplexity:.2f}  {row.kv_bytes / 2**20:.1f} MiB",
                        flush=True,
                    )
    if options.json:
        print(json.dumps([asdict(row) for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
