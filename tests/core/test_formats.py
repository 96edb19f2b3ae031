"""Weight formats: every type of formats.def decodes to the bits that the gguf package decodes to."""

from __future__ import annotations

import re
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from pylogquant._native import check, ffi, lib
from pylogquant.errors import ArgumentError, Unsupported

_TABLE = Path(__file__).parents[2] / "native" / "src" / "formats" / "formats.def"
_LINE = re.compile(r"^LQ_FORMAT\((\w+), (\w+), (\d+), (\d+), (\d+)\)", re.MULTILINE)
# (NAME, number, values a block, bytes a block); a new line of the table is a new test.
FORMATS = [(name, *map(int, rest)) for _, name, *rest in _LINE.findall(_TABLE.read_text())]
_GUARD = np.float32(-123.5)
Bytes = npt.NDArray[np.uint8]


def decode(number: int, blocks: Bytes, n_values: int, *, src_bytes: int | None = None) -> npt.NDArray[np.float32]:
    """lq_dequantize from an odd address into a guarded buffer."""
    source = np.empty(blocks.size + 1, dtype=np.uint8)
    source[1:] = blocks.reshape(-1)
    out = np.full(n_values + 32, _GUARD, dtype=np.float32)
    src = ffi.from_buffer("char[]", source) + 1
    n_bytes = blocks.size if src_bytes is None else src_bytes
    check(lib.lq_dequantize(number, src, n_bytes, ffi.from_buffer("float[]", out), n_values))
    assert (out[n_values:] == _GUARD).all(), "values were written behind the end"
    return out[:n_values]


def expected(name: str, blocks: Bytes) -> npt.NDArray[np.float32]:
    """(n_blocks, values a block), by the gguf package."""
    kind = gguf.GGMLQuantizationType[name]
    with np.errstate(all="ignore"):
        if name in ("F32", "F16"):  # not quantized: the package hands them through
            return blocks.view("<f4" if name == "F32" else "<f2").astype(np.float32)
        return np.asarray(gguf.quants.dequantize(blocks, kind), dtype=np.float32)


def test_the_table_is_read() -> None:
    assert {"F32", "F16", "Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K"} <= {name for name, *_ in FORMATS}


@pytest.mark.parametrize(("name", "number", "block_len", "block_bytes"), FORMATS)
def test_sizes_are_those_of_the_file_format(name: str, number: int, block_len: int, block_bytes: int) -> None:
    kind = gguf.GGMLQuantizationType[name]
    assert (int(kind), *gguf.GGML_QUANT_SIZES[kind]) == (number, block_len, block_bytes)


@pytest.mark.parametrize(("name", "number", "block_len", "block_bytes"), FORMATS)
def test_random_blocks_decode_to_the_same_bits(name: str, number: int, block_len: int, block_bytes: int) -> None:
    """Every byte random: scales of any size and sign, subnormal ones too. Blocks of infinite scale are left out."""
    rng = np.random.default_rng(number)
    blocks = rng.integers(0, 256, size=(4096, block_bytes), dtype=np.uint8)
    want = expected(name, blocks)
    finite = np.isfinite(want).all(axis=1)
    assert finite.mean() > 0.8
    blocks, want = blocks[finite], want[finite]
    assert not (want == 0).all()
    got = decode(number, blocks, len(blocks) * block_len)
    np.testing.assert_array_equal(got.view(np.uint32), want.reshape(-1).view(np.uint32))


@pytest.mark.parametrize(("name", "number", "block_len", "block_bytes"), FORMATS)
@pytest.mark.parametrize("byte", [0x00, 0x80, 0x3B, 0x7B])
def test_uniform_blocks_decode_to_the_same_bits(
    name: str, number: int, block_len: int, block_bytes: int, byte: int
) -> None:
    """Zero, negative subnormal, medium and nearly the largest scales; a single block, so that no loop hides."""
    blocks = np.full((1, block_bytes), byte, dtype=np.uint8)
    got = decode(number, blocks, block_len)
    np.testing.assert_array_equal(got.view(np.uint32), expected(name, blocks).reshape(-1).view(np.uint32))


def test_every_half_float() -> None:
    halves = np.arange(65536, dtype=np.uint16)
    got = decode(1, halves.view(np.uint8), 65536)
    with np.errstate(all="ignore"):
        want = halves.view(np.float16).astype(np.float32)
    is_nan = np.isnan(want)
    np.testing.assert_array_equal(np.isnan(got), is_nan)
    np.testing.assert_array_equal(got[~is_nan].view(np.uint32), want[~is_nan].view(np.uint32))


@pytest.mark.parametrize(("name", "number", "block_len", "block_bytes"), FORMATS)
def test_wrong_sizes_are_refused(name: str, number: int, block_len: int, block_bytes: int) -> None:
    blocks = np.zeros((2, block_bytes), dtype=np.uint8)
    for n_values, src_bytes in ((block_len, 2 * block_bytes), (2 * block_len, block_bytes), (2 * block_len, 0)):
        with pytest.raises(ArgumentError, match=f"src_bytes.*{name}"):
            decode(number, blocks, n_values, src_bytes=src_bytes)
    if block_len > 1:
        with pytest.raises(ArgumentError, match=f"n_values.*{name}"):
            decode(number, blocks, block_len + 1)
    assert decode(number, blocks, 0, src_bytes=0).size == 0


@pytest.mark.parametrize("number", [-1, 4, 5, 31, 32, 9999, -(2**31), 2**31 - 1])
def test_unknown_types_are_refused(number: int) -> None:
    with pytest.raises(Unsupported, match=str(number)):
        decode(number, np.zeros(64, dtype=np.uint8), 32)
