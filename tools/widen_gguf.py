"""Writes a GGUF model again with every weight decoded to F32: the same model without rounding of activations.

    python tools/widen_gguf.py MODEL OUTPUT.gguf

Products with packed weights round their activations to 8 bits per block. Two evaluations that differ at all then differ
by that rounding too, which hides small differences of their KV caches. F32 weights meet float activations.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np

_OWN = ("GGUF.", "general.architecture")  # written by the writer itself


def widen(source: Path, target: Path) -> None:
    reader = gguf.GGUFReader(source)
    architecture = reader.get_field("general.architecture")
    if architecture is None:
        raise SystemExit(f"widen_gguf: {source} names no architecture")
    writer = gguf.GGUFWriter(target, architecture.contents())
    for name, field in reader.fields.items():
        if name.startswith(_OWN):
            continue
        item_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], item_type)
    for tensor in reader.tensors:
        wide = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.asarray(wide, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


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
