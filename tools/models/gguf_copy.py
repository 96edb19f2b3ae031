"""Copies GGUF files with changes: other weights, other keys, in several parts. For tools and tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy.typing as npt

__all__ = ["Tensors", "Typed", "copy_gguf"]

_WRITTEN_BY_THE_WRITER = ("GGUF.", "general.architecture")


class Typed(NamedTuple):
    """A metadata value with its type in the file."""

    value: Any
    kind: gguf.GGUFValueType


Tensors = dict[str, tuple[npt.NDArray[Any], gguf.GGMLQuantizationType]]


def copy_gguf(
    source: Path,
    target: Path,
    *,
    keys: Mapping[str, Typed | None] | None = None,
    tensors: Callable[[Tensors], Tensors] | None = None,
    per_part: int = 0,
) -> None:
    """Writes source again as target.

    keys: added or in place of what is there; None leaves a key out. tensors: gets all of them, (data as gguf reads it,
    type) by name, and returns what to write. per_part: tensors of a part; 0 = one file, otherwise target.gguf becomes
    target-00001-of-0000N.gguf and so on.
    """
    reader = gguf.GGUFReader(source)
    changes = dict(keys or {})
    architecture = reader.get_field("general.architecture")
    if architecture is None:
        raise ValueError(f"{source} names no architecture")
    named = changes.pop("general.architecture", None)
    writer = gguf.GGUFWriter(target, named.value if named else architecture.contents(), split_max_tensors=per_part)
    for name, field in reader.fields.items():
        if name.startswith(_WRITTEN_BY_THE_WRITER) or name in changes:
            continue
        item_type = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], item_type)
    for name, change in changes.items():
        if change is not None:
            writer.add_key_value(name, change.value, change.kind)
    found: Tensors = {tensor.name: (tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    for name, (data, kind) in (tensors(found) if tensors else found).items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
