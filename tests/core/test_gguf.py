"""GGUFFile: what it reads agrees with the gguf package, and what is damaged is refused in one line."""

from __future__ import annotations

import os
import struct
from array import array
from itertools import accumulate
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from make_tiny_gguf import make_tiny

from pylogquant.errors import ClosedError, FileError, LogQuantError, ModelFormatError
from pylogquant.gguf import GGUFFile, Strings, marked


@pytest.fixture(scope="module")
def typed_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key of every type."""
    path = tmp_path_factory.mktemp("gguf") / "typed.gguf"
    writer = gguf.GGUFWriter(path, "none")
    writer.add_uint8("k.u8", 255)
    writer.add_int8("k.i8", -128)
    writer.add_uint16("k.u16", 65535)
    writer.add_int16("k.i16", -32768)
    writer.add_uint32("k.u32", 2**32 - 1)
    writer.add_int32("k.i32", -(2**31))
    writer.add_float32("k.f32", 0.1)
    writer.add_bool("k.true", True)
    writer.add_bool("k.false", False)
    writer.add_string("k.string", "Grüße \U0001f600\n")
    writer.add_uint64("k.u64", 2**64 - 1)
    writer.add_int64("k.i64", -(2**63))
    writer.add_float64("k.f64", 0.1)
    writer.add_array("a.int", [1, -2, 3])
    writer.add_array("a.float", [0.5, 1.5])
    writer.add_array("a.bool", [True, False])
    writer.add_array("a.string", ["eins", "\u00fc", "three"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def error_of(path: Path) -> LogQuantError:
    """The error that opening the file raises: one line that names the path."""
    with pytest.raises(LogQuantError) as caught:
        GGUFFile(path).close()
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return caught.value


def test_scalars(typed_path: Path) -> None:
    with GGUFFile(typed_path) as file:
        meta = file.metadata
        assert [meta[f"k.{name}"] for name in ("u8", "u16", "u32", "u64")] == [2**n - 1 for n in (8, 16, 32, 64)]
        assert [meta[f"k.{name}"] for name in ("i8", "i16", "i32", "i64")] == [-(2**n) for n in (7, 15, 31, 63)]
        assert (meta["k.f32"], meta["k.f64"]) == (float(np.float32(0.1)), 0.1)
        assert meta["k.true"] is True
        assert meta["k.false"] is False
        assert meta["k.string"] == "Grüße \U0001f600\n"
        assert type(meta["k.u64"]) is int
        assert type(meta["k.f32"]) is float


def test_arrays(typed_path: Path) -> None:
    with GGUFFile(typed_path) as file:
        whole = file.metadata["a.int"]
        assert isinstance(whole, np.ndarray)
        assert (whole.dtype, whole.tolist()) == (np.dtype("<i4"), [1, -2, 3])
        reals = file.metadata["a.float"]
        assert isinstance(reals, np.ndarray)
        assert (reals.dtype, reals.tolist()) == (np.dtype("<f4"), [0.5, 1.5])
        flags = file.metadata["a.bool"]
        assert isinstance(flags, np.ndarray)
        assert (flags.dtype, flags.tolist()) == (np.dtype(bool), [True, False])
        assert file.metadata["a.string"] == ["eins", "\u00fc", "three"]
        strings = file.strings("a.string")
        numbers = [file.numbers(f"a.{kind}") for kind in ("int", "float", "bool")]
    assert [(found.format, found.tolist()) for found in numbers] == [
        ("i", [1, -2, 3]),
        ("f", [0.5, 1.5]),
        ("?", [True, False]),
    ]
    assert list(strings) == [strings[i] for i in range(len(strings))] == ["eins", "\u00fc", "three"]
    for index in (-1, 3):
        with pytest.raises(IndexError):
            strings[index]
    strings.check_utf8()
    assert strings.within("zeins thr\u00fc".encode()) == bytes([1, 1, 0])
    assert strings.within("zeins thr\u00fc".encode(), wanted=bytes([0, 1, 1])) == bytes([0, 1, 0])
    assert strings.find(["thr", "eins", "three"]) == [(0, "eins"), (2, "three")]
    with pytest.raises(ModelFormatError, match="string 0 does not hold"):
        strings.within(b"", separator=b" ")
    assert marked(bytes([1, 0, 0, 1])) == [0, 3]


def test_missing_and_mistyped_keys(typed_path: Path) -> None:
    with GGUFFile(typed_path) as file:
        assert "no.such" not in file.metadata
        for key in ("k.u8\0", "k.u8\0x", "\ud800"):  # in C a text ends at its first zero
            assert key not in file.metadata
            with pytest.raises(KeyError):
                file.metadata[key]
        with pytest.raises(KeyError, match=r"no\.such"):
            file.metadata["no.such"]
        with pytest.raises(KeyError, match=r"no\.such"):
            file.strings("no.such")
        with pytest.raises(ModelFormatError, match=r"k\.u8.*array of strings"):
            file.strings("k.u8")
        with pytest.raises(ModelFormatError, match=r"a\.int.*array of strings"):
            file.strings("a.int")
        with pytest.raises(KeyError, match=r"no\.such"):
            file.numbers("no.such")
        for key in ("k.u8", "a.string"):
            with pytest.raises(ModelFormatError, match=rf"{key}.*array of numbers"):
                file.numbers(key)


@pytest.mark.parametrize("arch", ["llama", "gemma3"])
def test_agrees_with_the_gguf_package(arch: str, tmp_path: Path) -> None:
    path = make_tiny(tmp_path / "m.gguf", arch=arch, weight_type="Q4_1", tied=False)  # type: ignore[arg-type]
    reader = gguf.GGUFReader(path)
    with GGUFFile(path) as file:
        assert file.version == 3
        assert file.file_bytes == path.stat().st_size
        for tensor, found in zip(reader.tensors, file.tensors, strict=True):
            assert found.name == tensor.name
            assert found.type_name == tensor.tensor_type.name
            assert found.shape == tuple(int(n) for n in reversed(tensor.shape.tolist()))
            assert found.n_bytes == tensor.n_bytes
        keys = [key for key in reader.fields if not key.startswith("GGUF.")]
        assert list(file.metadata) == keys
        for key in keys:
            value = file.metadata[key]
            want = reader.fields[key].contents()
            assert (value.tolist() if isinstance(value, np.ndarray) else value) == want, key


def test_closed_files_raise(typed_path: Path) -> None:
    file = GGUFFile(typed_path)
    assert file.metadata["k.u8"] == 255
    file.close()
    file.close()
    with pytest.raises(ClosedError):
        file.tensors  # noqa: B018
    with pytest.raises(ClosedError):
        file.metadata["k.u16"]
    with pytest.raises(ClosedError):
        file.strings("a.string")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    error = error_of(tmp_path / "none.gguf")
    assert isinstance(error, FileError)
    assert "No such file" in str(error)
    error = error_of(tmp_path)
    assert isinstance(error, FileError)
    assert "directory" in str(error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs on this system")
def test_a_fifo_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert isinstance(error_of(tmp_path / "fifo"), FileError)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "empty"),
        (b"GG", "not a GGUF file"),
        (b"\x7fELF" + bytes(60), "not a GGUF file"),
        (struct.pack("<Q", 60) + b'{"__metadata__":{}}', "looks like safetensors: convert it"),
        (b"PK\x03\x04" + bytes(60), "PyTorch writes: convert it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a pointer of Git LFS: fetch"),
        (b"<!DOCTYPE html><html>", "looks like a web page"),
        (b"tjgg" + bytes(60), "a format before GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "keys"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63) + bytes(20), "key"),
        (b"GGUF" + struct.pack("<IQQQ1sI", 3, 0, 1, 1, b"k", 77) + bytes(20), "'k'.*type 77"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 9, 0), "'k'.*array of arrays"),
        (b"GGUF" + struct.pack("<IQQQ1sIB", 3, 0, 1, 1, b"k", 7, 2), "'k'.*bool"),
    ],
)
def test_damaged_files(content: bytes, text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(ModelFormatError, match=text):
        GGUFFile(tmp_path / "bad.gguf")
    assert isinstance(error_of(tmp_path / "bad.gguf"), ModelFormatError)


def test_truncation_names_the_tensor(tiny_llama_path: Path, tmp_path: Path) -> None:
    whole = tiny_llama_path.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: len(whole) // 2])
    error = error_of(cut)
    assert isinstance(error, ModelFormatError)
    assert "tensor 'blk." in str(error)
    assert "truncated" in str(error)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_bytes_give_a_file_or_an_error(typed_path: Path, tmp_path: Path, edits: list[tuple[int, int]]) -> None:
    content = bytearray(typed_path.read_bytes())
    for at, byte in edits:
        content[at % len(content)] = byte
    path = tmp_path / "edited.gguf"
    path.write_bytes(content)
    try:
        file = GGUFFile(path)
    except ModelFormatError:
        error_of(path)
        return
    with file:
        assert len(dict(file.metadata)) == len(file.metadata)  # every value decodes
        assert file.tensors == []


# ---- merges of a score-ordered vocabulary --------------------------------------------------------------------------


def strings_of(texts: list[str]) -> Strings:
    encoded = [text.encode() for text in texts]
    offsets = array("Q", accumulate(map(len, encoded), initial=0))
    return Strings(memoryview(offsets), b"".join(encoded))


def merges(pieces: list[str], scores: list[float]) -> list[tuple[int, int, int]]:
    made = strings_of(pieces).merges(array("f", scores), bytes([1]) * len(pieces))
    return list(zip(*made, strict=True))


def test_merges_follow_the_scores() -> None:
    pieces = ["a", "b", "c", "ab", "bc", "abc"]
    assert merges(pieces, [-9, -9, -9, -1, -2, -3]) == [(3, 0, 1), (4, 1, 2), (5, 3, 2)]
    assert merges(pieces, [-9, -9, -9, -2, -1, -3]) == [(4, 1, 2), (3, 0, 1), (5, 0, 4)]
    assert merges(pieces, [-9, -9, -9, float("nan"), -99, -3]) == [(5, 0, 4), (4, 1, 2), (3, 0, 1)]
    assert merges(["a", "aa", "ab", "b", "aab"], [0.0] * 5) == [(4, 1, 3), (1, 0, 0), (2, 0, 3)], "the longer first"
    assert merges(["a", "b"], [0.0, 0.0]) == merges([], []) == []


def test_merges_refuse_arrays_of_different_lengths() -> None:
    with pytest.raises(ModelFormatError, match="differ in number"):
        merges(["a", "b"], [0.0])


def test_every_piece_of_the_tiny_vocabulary_is_reachable(tiny_gemma_path: Path) -> None:
    with GGUFFile(tiny_gemma_path) as file:
        tokens = file.strings("tokenizer.ggml.tokens")
        scores = array("f", file.numbers("tokenizer.ggml.scores"))
        types = file.numbers("tokenizer.ggml.token_type")
    made, left, right = tokens.merges(scores, bytes(kind == 1 for kind in types))
    long_pieces = [i for i in range(len(tokens)) if types[i] == 1 and len(tokens[i]) > 1]
    assert len(long_pieces) > 30
    assert sorted(made) == long_pieces
    for token, a, b in zip(made, left, right, strict=True):
        assert tokens[a] + tokens[b] == tokens[token]
