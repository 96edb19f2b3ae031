"""Writes GGUF files that hold nothing but a small tokenizer, and tokenizes by the plain rules that define one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import gguf

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

Tokens = Sequence[tuple[str, int]]  # text, type


def byte_characters() -> list[str]:
    """The character by which a byte-level vocabulary writes each byte."""
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in shown]
    table = {byte: chr(byte) for byte in shown} | {byte: chr(0x100 + i) for i, byte in enumerate(others)}
    return [table[byte] for byte in range(256)]


def _words(text: str) -> list[str]:
    return text.split("|")


BPE_CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
BPE_MERGES = _words("h e|l l|he ll|hell o|Ġ t|Ġt h|Ġth e|a b|b a|ab a|ba b|Ġ Ġ|ĠĠ ĠĠ|Ċ Ċ|e r|u s|us er|- -|1 2|12 3")
BPE_TOKENS: Tokens = [
    *((text, CONTROL) for text in BPE_CONTROL),
    *((char, NORMAL) for char in byte_characters()),
    *((merge.replace(" ", ""), NORMAL) for merge in BPE_MERGES),
    ("<tool>", USER_DEFINED),
    ("<tool><tool>", USER_DEFINED),
]

SPM_PIECES = _words("▁t|he|▁th|▁the|ab|ba|aba|bab|ll|hell|hello|▁hello|▁▁|▁▁▁▁|us|er|user|▁user|in|ing|a<|</|/s")
SPM_CHARS = "▁abehilnorstu<>/|_x12é中"
SPM_TOKENS: Tokens = [
    ("<unk>", UNKNOWN),
    ("<s>", CONTROL),
    ("</s>", CONTROL),
    *((f"<0x{byte:02X}>", BYTE) for byte in range(256)),
    *((piece, NORMAL) for piece in [*SPM_PIECES, *SPM_CHARS]),
    ("<end_of_turn>", CONTROL),
    ("  ", USER_DEFINED),
    ("   ", USER_DEFINED),
    ("\n", USER_DEFINED),
    ("<tool>", USER_DEFINED),
]


def write_vocab(
    path: Path,
    kind: str | None,
    tokens: Tokens | None,
    *,
    merges: Sequence[str] | None = None,
    scores: Sequence[float] | None = None,
    extra: Mapping[str, str | int | bool | float | bytes] | None = None,
    arch: str = "llama",
) -> Path:
    """extra: keys without "tokenizer.ggml." in front, except those with a "." of their own."""
    writer = gguf.GGUFWriter(str(path), arch)
    if kind is not None:
        writer.add_tokenizer_model(kind)
    if tokens is not None:
        writer.add_token_list([text for text, _ in tokens])
        writer.add_token_types([kind for _, kind in tokens])
    if merges is not None:
        writer.add_token_merges(list(merges))
    if scores is not None:
        writer.add_token_scores(list(scores))
    for key, value in (extra or {}).items():
        key = key if "." in key else f"tokenizer.ggml.{key}"
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, bytes):
            writer.add_array(key, value)
        else:
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_bpe(path: Path, **extra: str | int | bool) -> Path:
    keys: dict[str, str | int | bool | float] = {"pre": "gpt-2", "bos_token_id": 1, "eos_token_id": 2, **extra}
    return write_vocab(path, "gpt2", BPE_TOKENS, merges=BPE_MERGES, extra=keys)


def spm_scores(tokens: Tokens = SPM_TOKENS) -> list[float]:
    """Falling by id among pieces, as files have it."""
    return [-float(i) if kind == NORMAL else 0.0 for i, (_, kind) in enumerate(tokens)]


def write_spm(path: Path, **extra: str | int | bool | bytes) -> Path:
    return write_vocab(path, "llama", SPM_TOKENS, scores=spm_scores(), extra=extra)


def plain_spm(text: str, tokens: Tokens = SPM_TOKENS) -> list[int]:
    """Ids of ordinary text without user-defined tokens: of all neighbours that make a piece, the best score is merged
    first, the leftmost where there are several; what is no piece is spelled in bytes."""
    scores = spm_scores(tokens)
    pieces = {token: i for i, (token, kind) in enumerate(tokens) if kind == NORMAL}
    parts = list(text.replace(" ", "▁"))
    while True:
        pairs = [(-scores[pieces[a + b]], i) for i, (a, b) in enumerate(pairwise(parts)) if a + b in pieces]
        if not pairs:
            break
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    ids: list[int] = []
    for part in parts:
        if part in pieces:
            ids.append(pieces[part])
        else:
            ids += [3 + byte for byte in part.encode()]
    return ids


def plain_bpe(word: str, tokens: Tokens = BPE_TOKENS, merges: Sequence[str] = BPE_MERGES) -> list[int]:
    """Ids of one word: the merge that stands first in the list is made first, the leftmost where there are several."""
    ids = {token: i for i, (token, kind) in enumerate(tokens) if kind == NORMAL}
    ranks = {tuple(line.split(" ")): rank for rank, line in enumerate(merges)}
    shown = byte_characters()
    parts = [shown[byte] for byte in word.encode()]
    while True:
        pairs = [(ranks[a, b], i) for i, (a, b) in enumerate(pairwise(parts)) if (a, b) in ranks]
        if not pairs:
            return [ids[part] for part in parts]
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
