"""Run by test_transformers_triton.py in a process of its own, with TRITON_INTERPRET=1 before Triton is imported: the
kernel against the torch path. Prints one line a case: its name and the relative error."""

from __future__ import annotations

import sys

import numpy as np
import torch
from kv_cache_oracle import random_tokens

from pylogquant.transformers.config import LogQuantConfig
from pylogquant.transformers.operations import TorchOperations
from pylogquant.transformers.store import Shape, Store
from pylogquant.transformers.triton_attention import TritonOperations

CASES: dict[str, tuple[LogQuantConfig, tuple[int, int, int], float]] = {
    "tiers, 2-bit values": (LogQuantConfig("logquant", window=64), (4, 2, 64), 0.0),
    "head 80, capped scores": (LogQuantConfig("logquant-small"), (3, 1, 80), 5.0),
    "5 bits, 3-bit values": (LogQuantConfig("logquant-hq", window=64), (4, 2, 16), 0.0),
    "f16 scales, head 128": (LogQuantConfig("logquant-paper"), (2, 2, 128), 0.0),
    "3 bits, 4-bit values": (LogQuantConfig(keys="3", value_bits=4, window=64), (2, 1, 96), 0.0),
    "head 256": (LogQuantConfig("logquant", window=64), (2, 1, 256), 0.0),
}


def outputs(case: str, operations: TorchOperations) -> list[torch.Tensor]:
    """Of a store of two rows, after 419 tokens, for a chunk of 19 and for one token."""
    config, (n_heads, n_kv_heads, head_dim), softcap = CASES[case]
    recipe = config.resolve()
    store = Store(Shape.of(recipe, n_kv_heads, head_dim), 2, operations, torch.device("cpu"))
    rng, found = np.random.default_rng(1), []
    for n in (300, 119, 19, 1):
        rows = [random_tokens(rng, n, n_heads, n_kv_heads, head_dim) for _ in range(2)]
        q, k, v = (torch.from_numpy(np.stack(parts)) for parts in zip(*rows, strict=True))
        store.append(k.transpose(1, 2), v.transpose(1, 2))
        if n < 100:  # the prompt's attention takes the interpreter minutes
            found.append(store.attend(q, head_dim**-0.5, softcap, by_query=False))
            if store.gave is not None:
                found.append(store.gave)
    return found


def main() -> None:
    with torch.inference_mode():
        for case in sys.argv[1:] or CASES:
            wanted, found = outputs(case, TorchOperations()), outputs(case, TritonOperations())
            error = max(float((a - b).norm() / a.norm()) for a, b in zip(wanted, found, strict=True))
            print(f"{case}\t{error:.3e}")


if __name__ == "__main__":
    main()
