"""A GGUF file's metadata and tensor table, read by the native library from a read-only mapping."""

from __future__ import annotations

import re
import struct
from array import array
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from pylogquant._copying import Uncopyable
from pylogquant._native import check, ffi, lib, path_bytes
from pylogquant.errors import ClosedError, ModelFormatError

if TYPE_CHECKING:
    import numpy.typing as npt

    Value: TypeAlias = str | int | float | bool | list[str] | npt.NDArray[Any]
else:
    Value = object

__all__ = ["GGUFFile", "Strings", "TensorInfo", "marked"]

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


class Strings:
    """An immutable array of strings, kept as two buffers, as the file has it; a string is decoded when it is read.

    Hundreds of thousands of them, as vocabularies have, then need no Python object each."""

    def __init__(self, offsets: memoryview, chars: bytes | bytearray) -> None:
        self._offsets = offsets  # uint64: string i is chars[offsets[i] : offsets[i + 1]]
        self._chars = chars
        # The leading arguments of lq_strings_*; they keep the buffers alive.
        self._raw = (len(self), ffi.from_buffer("uint64_t[]", offsets), ffi.from_buffer("char[]", chars))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} strings")
        return self._chars[self._offsets[index] : self._offsets[index + 1]].decode("utf-8", errors="replace")

    def __iter__(self) -> Iterator[str]:
        for start, end in pairwise(self._offsets.tolist()):
            yield self._chars[start:end].decode("utf-8", errors="replace")

    def check_utf8(self) -> None:
        """Raises ModelFormatError if a string is not UTF-8. All other methods read invalid bytes as U+FFFD."""
        check(lib.lq_strings_check_utf8(*self._raw))

    def within(self, text: bytes, wanted: bytes | None = None, separator: bytes | None = None) -> bytes:
        """Which strings occur in a text (UTF-8): a byte for each, 1 or 0.

        wanted: a byte per string, 0 = do not look for it. separator: a byte that each string must hold exactly once
        (else ModelFormatError); the string is searched without it."""
        found = bytearray(len(self))
        mask = ffi.NULL if wanted is None else ffi.from_buffer("uint8_t[]", wanted)
        hay, room = ffi.from_buffer("char[]", text), ffi.from_buffer("uint8_t[]", found)
        check(lib.lq_strings_within(*self._raw, mask, -1 if separator is None else separator[0], hay, len(text), room))
        return bytes(found)

    def find(self, texts: Collection[str]) -> list[tuple[int, str]]:
        """(index, string) of every string that equals one of the texts, by rising index."""
        candidates = ((index, self[index]) for index in marked(self.within("\n".join(texts).encode())))
        return [(index, text) for index, text in candidates if text in texts]

    def merges(self, scores: array[float], is_piece: bytes) -> tuple[list[int], list[int], list[int]]:
        """The merges of a vocabulary that is ordered by scores: three lists of indices (token, left part, right part),
        in the order in which merges apply. scores: float32; is_piece: 0 keeps a token out."""
        if not len(scores) == len(is_piece) == len(self):
            raise ModelFormatError("the vocabulary's tokens, scores and types differ in number")
        n_pieces = len(is_piece) - is_piece.count(0)
        made = [ffi.new("int32_t[]", n_pieces) for _ in range(3)]
        n_merges = ffi.new("size_t *")
        raw_scores, raw_pieces = ffi.from_buffer("float[]", scores), ffi.from_buffer("uint8_t[]", is_piece)
        check(lib.lq_vocab_merges(*self._raw, raw_scores, raw_pieces, *made, n_merges))
        token, left, right = (ffi.unpack(ids, n_merges[0]) if n_merges[0] else [] for ids in made)
        return token, left, right


def marked(mask: bytes) -> list[int]:
    """The indices at which a mask has 1."""
    return [match.start() for match in re.finditer(b"\x01", mask)]


class GGUFFile(Uncopyable):
    """An open GGUF file. `metadata` maps keys to values, decoded when first asked for.

    Raises FileError (cannot be read) or ModelFormatError (not a valid GGUF file). Usable from several threads.
    """

    _instead = "open the file again: GGUFFile(path)"

    def __init__(self, path: str | Path) -> None:
        out = ffi.new("lq_gguf **")
        check(lib.lq_gguf_open(path_bytes(path), out))
        self._attach(ffi.gc(out[0], _close_handle))

    @classmethod
    def _borrowed(cls, handle: Any, owner: Any) -> GGUFFile:
        """A file whose handle belongs to another object, its owner."""
        self = cls.__new__(cls)
        self._attach(ffi.gc(handle, partial(_let_go, owner)))  # keeps the owner alive as long as the handle
        return self

    def _attach(self, handle: Any) -> None:
        self._handle: Any = handle
        self.metadata: Mapping[str, Value] = _Metadata(self)

    def _open_handle(self) -> Any:
        handle = self._handle
        if handle is None:
            raise ClosedError("this GGUFFile is closed; open the file again")
        return handle

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

    def strings(self, key: str) -> Strings:
        """The array of strings at a key; it may outlive the file.

        Raises KeyError if the key is absent and ModelFormatError if it holds something else.
        """
        handle, index, entry = self._entry(key)
        n_chars = ffi.new("uint64_t *")
        check(lib.lq_gguf_get_strings(handle, index, ffi.NULL, ffi.NULL, n_chars))
        offsets = memoryview(bytearray(8 * (entry.n_items + 1))).cast("Q")
        chars = bytearray(n_chars[0])
        raw_offsets, raw_chars = ffi.from_buffer("uint64_t[]", offsets), ffi.from_buffer("char[]", chars)
        check(lib.lq_gguf_get_strings(handle, index, raw_offsets, raw_chars, n_chars))
        return Strings(offsets.toreadonly(), chars)

    def numbers(self, key: str) -> memoryview:
        """The array of numbers (or bools) at a key, without NumPy, typed as in the file; it may outlive the file.

        Raises KeyError if the key is absent and ModelFormatError if it holds something else.
        """
        _handle, _, entry = self._entry(key)  # the handle keeps the memory of entry alive
        if entry.type != lib.LQ_GGUF_ARRAY or entry.item_type not in _SCALARS:
            raise ModelFormatError(f"key '{key}' is no array of numbers")
        letter: str = _SCALARS[entry.item_type][0][1]
        items: memoryview = memoryview(_raw_items(entry)).cast(letter)  # type: ignore[call-overload]
        return items

    def _find(self, key: str) -> int:
        """Index of a key, -1 where it is absent. A key with a zero is absent; C would look for the part before it."""
        handle = self._open_handle()
        return -1 if "\0" in key else int(lib.lq_gguf_find(handle, key.encode(errors="surrogatepass")))

    def _entry(self, key: str) -> tuple[Any, int, Any]:
        """(handle, index, entry) of a key; entry can be read while the handle is held. Raises KeyError."""
        handle = self._open_handle()
        index = self._find(key)
        if index < 0:
            raise KeyError(key)
        entry = ffi.new("lq_gguf_entry *")
        check(lib.lq_gguf_get_entry(handle, index, entry))
        return handle, index, entry

    def close(self) -> None:
        """Closes this object; may be called twice. The file itself stays open while other threads read it, and while
        the Model that it belongs to is open."""
        self._handle = None

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Metadata(Mapping[str, Value]):
    """Maps keys, in file order, to values, each of which is decoded once."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file
        self._values: dict[str, Value] = {}

    def __len__(self) -> int:
        return int(lib.lq_gguf_n_entries(self._file._open_handle()))

    def __iter__(self) -> Iterator[str]:
        handle = self._file._open_handle()
        entry = ffi.new("lq_gguf_entry *")
        for index in range(int(lib.lq_gguf_n_entries(handle))):
            check(lib.lq_gguf_get_entry(handle, index, entry))
            yield bytes(ffi.buffer(entry.key, entry.key_bytes)).decode("utf-8", errors="replace")

    def __contains__(self, key: object) -> bool:
        """Searches without decoding: Mapping's own method would read a whole vocabulary to answer."""
        return isinstance(key, str) and self._file._find(key) >= 0

    def __getitem__(self, key: str) -> Value:
        if key not in self._values:
            _handle, _, entry = self._file._entry(key)
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
            return list(self._file.strings(key))
        if entry.item_type not in _SCALARS:
            raise ModelFormatError(f"key '{key}' is an array of arrays, which nothing here reads")
        import numpy as np

        return np.frombuffer(_raw_items(entry), dtype=_SCALARS[entry.item_type][1])


def _raw_items(entry: Any) -> bytes:
    return bytes(ffi.buffer(entry.data, entry.data_bytes)) if entry.n_items else b""


def _let_go(owner: Any, handle: Any) -> None:
    pass


def _close_handle(handle: Any) -> None:
    lib.lq_gguf_close(ffi.new("lq_gguf **", handle))
