"""A GGUF file's metadata and tensor table, read by the native library from a read-only mapping."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from pylogquant._native import check, ffi, lib
from pylogquant.errors import ClosedError, ModelFormatError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Value: TypeAlias = str | int | float | bool | list[str] | npt.NDArray[Any]
else:
    Value = object

__all__ = ["GGUFFile", "TensorInfo"]

# struct's letters and NumPy's type strings, both little-endian as the file is.
_SCALARS = {
    lib.LQ_GGUF_U8: ("<B", "u1"),
    lib.LQ_GGUF_I8: ("<b", "i1"),
    lib.LQ_GGUF_U16: ("<H", "<u2"),
    lib.LQ_GGUF_I16: ("<h", "<i2"),
    lib.LQ_GGUF_U32: ("<I", "<u4"),
    lib.LQ_GGUF_I32: ("<i", "<i4"),
    lib.LQ_GGUF_F32: ("<f", "<f4"),
    lib.LQ_GGUF_BOOL: ("<?", "?"),
    lib.LQ_GGUF_U64: ("<Q", "<u8"),
    lib.LQ_GGUF_I64: ("<q", "<i8"),
    lib.LQ_GGUF_F64: ("<d", "<f8"),
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the file. shape: as NumPy orders it, slowest dimension first. n_bytes is 0 for unknown types."""

    name: str
    type_name: str
    shape: tuple[int, ...]
    n_bytes: int


class GGUFFile:
    """An open GGUF file. `metadata` maps keys to values, decoded when first asked for.

    Raises FileError (cannot be read) or ModelFormatError (not a valid GGUF file).
    """

    def __init__(self, path: str | Path) -> None:
        out = ffi.new("lq_gguf **")
        check(lib.lq_gguf_open(os.fsencode(path), out))
        self._attach(ffi.gc(out[0], _close_handle), owner=None)

    @classmethod
    def _borrowed(cls, handle: Any, owner: object) -> GGUFFile:
        """A view of a handle that `owner` keeps open."""
        self = cls.__new__(cls)
        self._attach(handle, owner)
        return self

    def _attach(self, handle: Any, owner: object) -> None:
        self._handle: Any = handle
        self._owner = owner
        self.metadata: Mapping[str, Value] = _Metadata(self)

    def _open_handle(self) -> Any:
        if self._handle is None:
            raise ClosedError("this GGUFFile is closed; open the file again")
        return self._handle

    @property
    def version(self) -> int:
        """Version of the file format, 2 or 3."""
        return int(lib.lq_gguf_version(self._open_handle()))

    @property
    def file_bytes(self) -> int:
        return int(lib.lq_gguf_file_bytes(self._open_handle()))

    @property
    def tensors(self) -> list[TensorInfo]:
        """All tensors, in file order."""
        handle = self._open_handle()
        raw = ffi.new("lq_gguf_tensor *")
        found = []
        for index in range(lib.lq_gguf_n_tensors(handle)):
            check(lib.lq_gguf_get_tensor(handle, index, raw))
            name = bytes(ffi.buffer(raw.name, raw.name_bytes)).decode("utf-8", errors="replace")
            shape = tuple(int(raw.dims[i]) for i in reversed(range(raw.n_dims)))
            found.append(TensorInfo(name, ffi.string(raw.type_name).decode(), shape, int(raw.data_bytes)))
        return found

    def strings(self, key: str) -> tuple[npt.NDArray[np.uint32], bytes]:
        """An array of strings as (lengths in bytes (n,), all their bytes one after another).

        Raises KeyError if the key is absent and ModelFormatError if it holds something else.
        """
        import numpy as np

        handle = self._open_handle()
        index = lib.lq_gguf_find(handle, key.encode())
        if index < 0:
            raise KeyError(key)
        entry = ffi.new("lq_gguf_entry *")
        check(lib.lq_gguf_get_entry(handle, index, entry))
        n_chars = ffi.new("uint64_t *")
        check(lib.lq_gguf_get_strings(handle, index, ffi.NULL, ffi.NULL, n_chars))
        lengths = np.empty(entry.n_items, dtype=np.uint32)
        chars = bytearray(n_chars[0])
        check(
            lib.lq_gguf_get_strings(
                handle, index, ffi.from_buffer("uint32_t[]", lengths), ffi.from_buffer("char[]", chars), n_chars
            )
        )
        return lengths, bytes(chars)

    def spm_merges(
        self,
        lengths: npt.NDArray[np.uint32],
        chars: bytes,
        scores: npt.NDArray[np.float32],
        is_piece: npt.NDArray[np.uint8],
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """The pair of ids each token of a score-ordered vocabulary is merged from, -1 where there is none.

        lengths (n,), chars: as from strings(); scores (n,); is_piece (n,), 0 keeps a token out. Returns two (n,).
        """
        import numpy as np

        n = len(lengths)
        if not (len(scores) == len(is_piece) == n) or int(lengths.sum(dtype=np.uint64)) != len(chars):
            raise ModelFormatError("the vocabulary's tokens, scores and types differ in number")
        left, right = np.empty(n, dtype=np.int32), np.empty(n, dtype=np.int32)
        check(
            lib.lq_vocab_merges(
                n,
                ffi.from_buffer("uint32_t[]", np.ascontiguousarray(lengths, dtype=np.uint32)),
                ffi.from_buffer("char[]", chars),
                ffi.from_buffer("float[]", np.ascontiguousarray(scores, dtype=np.float32)),
                ffi.from_buffer("uint8_t[]", np.ascontiguousarray(is_piece, dtype=np.uint8)),
                ffi.from_buffer("int32_t[]", left),
                ffi.from_buffer("int32_t[]", right),
            )
        )
        return left, right

    def close(self) -> None:
        """Closes the file; may be called twice. A file that belongs to a Model stays open for it."""
        handle, self._handle = self._handle, None
        if handle is not None and self._owner is None:
            ffi.release(handle)
        self._owner = None

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Metadata(Mapping[str, Value]):
    """Keys in file order; values are decoded once."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        self._values: dict[str, Value] = {}

    def __len__(self) -> int:
        return int(lib.lq_gguf_n_entries(self._file._open_handle()))

    def __iter__(self) -> Iterator[str]:
        handle = self._file._open_handle()
        entry = ffi.new("lq_gguf_entry *")
        for index in range(len(self)):
            check(lib.lq_gguf_get_entry(handle, index, entry))
            yield bytes(ffi.buffer(entry.key, entry.key_bytes)).decode("utf-8", errors="replace")

    def __contains__(self, key: object) -> bool:
        """Looks without decoding: Mapping's own form would read a whole vocabulary to answer."""
        return isinstance(key, str) and lib.lq_gguf_find(self._file._open_handle(), key.encode()) >= 0

    def __getitem__(self, key: str) -> Value:
        if key not in self._values:
            handle = self._file._open_handle()
            index = lib.lq_gguf_find(handle, key.encode())
            if index < 0:
                raise KeyError(key)
            entry = ffi.new("lq_gguf_entry *")
            check(lib.lq_gguf_get_entry(handle, index, entry))
            self._values[key] = self._decode(key, entry)
        return self._values[key]

    def _decode(self, key: str, entry: Any) -> Value:
        if entry.type == lib.LQ_GGUF_STRING:
            raw = bytes(ffi.buffer(entry.data, entry.data_bytes)) if entry.data_bytes else b""
            return raw.decode("utf-8", errors="replace")
        if entry.type != lib.LQ_GGUF_ARRAY:
            value: Value = struct.unpack(_SCALARS[entry.type][0], bytes(ffi.buffer(entry.data, entry.data_bytes)))[0]
            return value
        if entry.item_type == lib.LQ_GGUF_STRING:
            lengths, chars = self._file.strings(key)
            texts, start = [], 0
            for length in lengths.tolist():
                texts.append(chars[start : start + length].decode("utf-8", errors="replace"))
                start += length
            return texts
        if entry.item_type not in _SCALARS:
            raise ModelFormatError(f"key '{key}' is an array of arrays, which nothing here reads")
        import numpy as np

        data = bytes(ffi.buffer(entry.data, entry.data_bytes)) if entry.n_items else b""
        return np.frombuffer(data, dtype=_SCALARS[entry.item_type][1])


def _close_handle(handle: Any) -> None:
    lib.lq_gguf_close(ffi.new("lq_gguf **", handle))
