"""Measures how far a session's logits in a step of several sessions are from its logits alone, by KV cache type.

    python tools/measure/step_bounds.py MODEL... [--sessions 8] [--steps 24] [--depth 700] [--threads 2]

Prints per model and type: the largest difference of a logit as a part of the largest logit, mean and largest divergence
in nats, and how often the most probable token is the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from pylogquant import Model, Session
from pylogquant.evaluate import log_softmax

TYPES = ("f16", "q8_0", "q4_0", "logquant", "logquant-small", "logquant-hq", "kivi")
TEXT = Path(__file__).resolve().parents[2] / "docs" / "format.md"
APART = 61  # tokens between the beginnings of two sessions' texts
SHORTER = 17  # by so many tokens each next session's prompt is shorter


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares sessions in one step with the same sessions alone.")
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--depth", type=int, default=700, help="tokens of the first session's prompt")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    print("model  KV type  largest difference  mean KL  largest KL  same top")
    for name in options.models:
        with Model(name, threads=options.threads) as model:
            for kv in TYPES:
                row = measure(model, kv, options.sessions, options.steps, options.depth)
                print(f"{name}  {kv}  {row[0]:.3f}  {row[1]:.4f}  {row[2]:.3f}  {row[3]:.3f}", flush=True)


def measure(model: Model, kv: str, n_sessions: int, n_steps: int, depth: int) -> tuple[float, float, float, float]:
    """Largest difference, mean and largest divergence, share of the same most probable tokens."""
    ids = model.tokenizer.encode(TEXT.read_text(encoding="utf-8"))
    starts = [APART * i for i in range(n_sessions)]
    ends = [start + depth - SHORTER * i for i, start in enumerate(starts)]
    together, alone = (begin(model, kv, ids, starts, ends, n_steps) for _ in range(2))
    differences, divergences, same = [], [], []
    for at in range(n_steps):
        tokens = [ids[end + at] for end in ends]
        for row, session, token in zip(model.step(together, tokens), alone, tokens, strict=True):
            logits = session.eval([token])
            assert logits is not None
            p, q = log_softmax(logits), log_softmax(row)
            differences.append(float(np.abs(row - logits).max() / np.abs(logits).max()))
            divergences.append(float((np.exp(p) * (p - q)).sum()))
            same.append(bool(row.argmax() == logits.argmax()))
    for session in [*together, *alone]:
        session.close()
    return max(differences), float(np.mean(divergences)), max(divergences), float(np.mean(same))


def begin(model: Model, kv: str, ids: list[int], starts: list[int], ends: list[int], n_steps: int) -> list[Session]:
    """Sessions that have read their prompts."""
    sessions = []
    for start, end in zip(starts, ends, strict=True):
        sessions.append(model.session(end - start + n_steps, kv))
        sessions[-1].prefill(ids[start:end])
    return sessions


if __name__ == "__main__":
    main()
