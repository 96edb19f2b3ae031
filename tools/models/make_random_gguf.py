"""Writes a GGUF model with the shape of a large one and random Q4_K weights, to measure speed where no such model is.

    python tools/models/make_random_gguf.py random-8b.gguf         as Llama 3.1 8B: 4.5 GB, made in seconds
    python tools/models/make_random_gguf.py small.gguf --layers 2 --embd 512 --ff 1024 --heads 8 --kv-heads 2 \\
        --vocab 1000

Every matrix is a part of one block of random bytes with sane scales: logits mean nothing, but all products, norms and
attention do what they would do.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

__all__ = ["Shape", "make_random"]

_BLOCK, _BLOCK_BYTES = 256, 144  # of Q4_K


@dataclass(frozen=True)
class Shape:
    """Sizes of a llama model; the default is Llama 3.1 8B's."""

    layers: int = 32
    embd: int = 4096
    ff: int = 14336
    heads: int = 32
    kv_heads: int = 8
    vocab: int = 128256
    ctx: int = 131072


def _random_blocks(n_bytes: int, n_cols: int) -> npt.NDArray[np.uint8]:
    """Q4_K blocks whose weights have mean 0 and a standard deviation of about 1 / sqrt(n_cols)."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (n_bytes // _BLOCK_BYTES + 1, _BLOCK_BYTES), dtype=np.uint8)
    # weight = d sc q - dmin min, with sc and min about 32 and q about 7.5
    d = 1.0 / (150.0 * n_cols**0.5)
    blocks[:, 0:4] = np.frombuffer(np.array([d, 7.5 * d], dtype="<f2").tobytes(), dtype=np.uint8)
    return blocks.reshape(-1)


def _tokens(n: int) -> tuple[list[bytes], list[int]]:
    """The characters of byte-level BPE, then names that no text contains."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = iter(range(0x100, 0x200))
    characters = [chr(byte) if byte in printable else chr(next(shifted)) for byte in range(256)]
    names = [*characters, *(f"<|reserved_{i}|>" for i in range(n - 256))]
    return [name.encode() for name in names], [1] * 256 + [3] * (n - 256)


def make_random(path: str | Path, shape: Shape | None = None) -> Path:
    """Writes the model and returns its path. Raises ValueError for sizes that Q4_K cannot have."""
    s = shape or Shape()
    head_dim = s.embd // s.heads
    if s.embd % _BLOCK or s.ff % _BLOCK or s.heads % s.kv_heads or s.embd % s.heads or s.vocab <= 256:
        raise ValueError(
            "embd and ff are multiples of 256, heads divide embd, kv-heads divide heads, vocab is above 256"
        )
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(f"random weights, {s.layers} layers of {s.embd}")
    writer.add_block_count(s.layers)
    writer.add_context_length(s.ctx)
    writer.add_embedding_length(s.embd)
    writer.add_feed_forward_length(s.ff)
    writer.add_head_count(s.heads)
    writer.add_head_count_kv(s.kv_heads)
    writer.add_rope_freq_base(500000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    tokens, types = _tokens(s.vocab)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["h e", "l l"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(257)

    largest = max(s.vocab * s.embd, s.ff * s.embd)
    random = _random_blocks(largest // _BLOCK * _BLOCK_BYTES, s.embd)

    def matrix(name: str, n_rows: int, n_cols: int) -> None:
        row_bytes = n_cols // _BLOCK * _BLOCK_BYTES
        data = random[: n_rows * row_bytes].reshape(n_rows, row_bytes)
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType.Q4_K)

    ones = np.ones(s.embd, dtype=np.float32)
    matrix("token_embd.weight", s.vocab, s.embd)
    matrix("output.weight", s.vocab, s.embd)
    writer.add_tensor("output_norm.weight", ones)
    for i in range(s.layers):
        writer.add_tensor(f"blk.{i}.attn_norm.weight", ones)
        writer.add_tensor(f"blk.{i}.ffn_norm.weight", ones)
        matrix(f"blk.{i}.attn_q.weight", s.embd, s.embd)
        matrix(f"blk.{i}.attn_k.weight", s.kv_heads * head_dim, s.embd)
        matrix(f"blk.{i}.attn_v.weight", s.kv_heads * head_dim, s.embd)
        matrix(f"blk.{i}.attn_output.weight", s.embd, s.embd)
        matrix(f"blk.{i}.ffn_gate.weight", s.ff, s.embd)
        matrix(f"blk.{i}.ffn_up.weight", s.ff, s.embd)
        matrix(f"blk.{i}.ffn_down.weight", s.embd, s.ff)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", type=Path)
    for name, value in vars(Shape()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    options = vars(parser.parse_args(arguments))
    path = options.pop("path")
    try:
        made = make_random(path, Shape(**options))
    except ValueError as error:
        parser.error(str(error))
    print(f"{made}: {made.stat().st_size} bytes")


if __name__ == "__main__":
    main()
