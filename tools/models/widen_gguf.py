"""Writes a GGUF model again with every weight decoded to F32: the same model without rounding of activations.

    python tools/models/widen_gguf.py MODEL OUTPUT.gguf

Products with packed weights round their activations to 8 bits per block. Two evaluations that differ at all then differ
by that rounding too, which hides small differences of their KV caches. F32 weights meet float activations.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
from gguf_copy import Tensors, copy_gguf


def widened(tensors: Tensors) -> Tensors:
    f32 = gguf.GGMLQuantizationType.F32
    return {
        name: (np.asarray(gguf.quants.dequantize(data, kind), dtype=np.float32), f32)
        for name, (data, kind) in tensors.items()
    }


def widen(source: Path, target: Path) -> None:
    copy_gguf(source, target, tensors=widened)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file, or a name that pylogquant knows")
    parser.add_argument("output", type=Path)
    options = parser.parse_args()
    source = Path(options.model)
    if not source.exists():
        from pylogquant import hub

        source = hub.resolve(options.model)
    widen(source, options.output)


if __name__ == "__main__":
    main()
