"""A vocabulary that shows where text is cut into words, and where llama.cpp is known to cut otherwise than the models'
own tokenizers.

Its merges (data/pre_tokenizers.json) were learned from the hard texts without cutting them, so they reach across white
space, digits, punctuation and line ends: one boundary put wrongly changes the ids. Some words are tokens that no merge
makes, for the pre-tokenizers that take whole words.

The same file holds fragments for random texts: every class of characters that a pattern knows, in scripts with and
without case, with combining marks, digits of several kinds, white space inside and outside ASCII, contractions in every
case.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import tiny_vocab as tiny
from compare_tokenizers import hard_texts

from pylogquant.pretokenizers import PRE_TOKENIZER_ALIASES, PRE_TOKENIZERS

RECORD = Path(__file__).parents[1] / "data" / "pre_tokenizers.json"


def _marks_or_foreign_case(text: str) -> bool:
    return any(ord(char) > 127 and unicodedata.category(char) in ("Lu", "Ll", "Lt", "Mn", "Mc", "Me") for char in text)


def _any_case(text: str) -> bool:
    return any(char.isupper() for char in text) or _marks_or_foreign_case(text)


def _case_or_digits(text: str) -> bool:
    return _any_case(text) or any(char.isnumeric() for char in text)


def _wide_spaces(text: str) -> bool:
    return any(char.isspace() and char > "\x7f" for char in text)


def _foreign_digits(text: str) -> bool:
    return any(char.isdecimal() and char > "\x7f" for char in text)


# Texts (by a condition) that llama.cpp cuts otherwise than the tokenizer.json, and why. We follow the latter.
_EXCEPTIONS: Mapping[str, tuple[str, Callable[[str], bool]]] = {
    # It knows capitals of ASCII only: \p{Lu} and \p{Ll} are approximated by [^a-z] and [^A-Z]; \p{M} is left out.
    "gpt-4o": ("case outside ASCII, marks", _marks_or_foreign_case),
    "tekken": ("case outside ASCII, marks", _marks_or_foreign_case),
    # Here \p{Lu} and \p{Ll} are just \p{L}, so no word is cut at a capital.
    "kimi-k2": ("case, marks", _any_case),
    "youtu": ("case, marks", _any_case),
    # ... and digits are not cut from what precedes them, nor is the \b behind them looked at.
    "tiny_aya": ("case, marks, digits", _case_or_digits),
    # It puts U+000B in place of white space outside ASCII, which the range U+0800..U+4E00 then misses.
    "deepseek-coder": ("white space outside ASCII", _wide_spaces),
    "deepseek-llm": ("white space outside ASCII", _wide_spaces),
    # Its \d is [0-9].
    "superbpe": ("digits outside ASCII", _foreign_digits),
}


def llamacpp_differs(pre: str, text: str) -> bool:
    """Whether llama.cpp is known to give this text other ids than the model's own tokenizer."""
    if PRE_TOKENIZERS[pre].nfc and not unicodedata.is_normalized("NFC", text):
        return True  # it composes nothing
    if "'\u017f" in text and any("(?i:" in pattern for pattern in PRE_TOKENIZERS[pre].patterns):
        return True  # (?i:'s) is U+017F as well, in the Unicode sense of case; it writes '[sS]
    name = PRE_TOKENIZER_ALIASES.get(pre, pre)
    return name in _EXCEPTIONS and _EXCEPTIONS[name][1](text)


@lru_cache(1)
def record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def fragments() -> list[str]:
    found: list[str] = record()["fragments"]
    return found


def merges() -> list[str]:
    found: list[str] = record()["merges"]
    return found


@lru_cache(1)
def tokens() -> tiny.Tokens:
    texts = [*tiny.byte_characters(), *(line.replace(" ", "") for line in merges()), *record()["whole_words"]]
    return [*((text, tiny.NORMAL) for text in dict.fromkeys(texts)), ("<|endoftext|>", tiny.CONTROL)]


def write(path: Path, pre: str = "gpt-2") -> Path:
    last = len(tokens()) - 1
    extra: dict[str, str | int | bool | float] = {"pre": pre, "bos_token_id": last, "eos_token_id": last}
    return tiny.write_vocab(path, "gpt2", tokens(), merges=merges(), extra=extra)


@lru_cache(1)
def texts() -> list[str]:
    """The hard texts and some mixed from the fragments, in the order of the record."""
    rng = random.Random(1)
    mixed = ["".join(rng.choices(fragments(), k=rng.randrange(2, 12))) for _ in range(150)]
    return [*hard_texts(), *mixed]


def digest(ids: Sequence[int]) -> str:
    """Four digits: enough, as a boundary put wrongly shows in many texts."""
    return hashlib.sha256(repr(list(ids)).encode()).hexdigest()[:4]


def words(pre: str, text: str) -> list[str]:
    """The words that the patterns cut, by another engine of regular expressions than the product's."""
    import regex

    found = PRE_TOKENIZERS[pre]
    pieces = [unicodedata.normalize("NFC", text) if found.nfc else text]
    for pattern in found.patterns:
        # What Oniguruma, the engine of the original tokenizers, writes or means otherwise: $ is the end of a line, a
        # word (\b, only used behind digits) is of letters, marks, numbers of all kinds and connectors.
        pattern = re.sub(r"\\x\{(\w+)\}", lambda found: rf"\U{int(found[1], 16):08x}", pattern)
        pattern = pattern.replace(r"\b", r"(?![\p{L}\p{M}\p{N}\p{Pc}])")
        compiled = regex.compile(pattern, regex.V1 | regex.MULTILINE)  # V1 knows sets like [a&&[^b]]
        cut: list[str] = []
        for piece in pieces:
            at = 0
            for match in compiled.finditer(piece):
                cut += [piece[at : match.start()], match.group()]
                at = match.end()
            cut.append(piece[at:])
        pieces = [piece for piece in cut if piece]
    return pieces


@lru_cache(1)
def _tables() -> tuple[dict[str, int], dict[tuple[str, ...], int], list[str]]:
    ids = {token: i for i, (token, kind) in enumerate(tokens()) if kind == tiny.NORMAL}
    return ids, {tuple(line.split(" ")): rank for rank, line in enumerate(merges())}, tiny.byte_characters()


@lru_cache(100_000)
def _word_ids(word: str, whole_words: bool) -> tuple[int, ...]:
    ids, ranks, shown = _tables()
    parts = [shown[byte] for byte in word.encode()]
    if whole_words and "".join(parts) in ids:
        return (ids["".join(parts)],)
    while True:
        pairs = [(ranks[a, b], i) for i, (a, b) in enumerate(pairwise(parts)) if (a, b) in ranks]
        if not pairs:
            return tuple(ids[part] for part in parts)
        _, i = min(pairs)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def plain_ids(pre: str, text: str) -> list[int]:
    """Ids by the plain rules: words(), then the first merge of the list first, the leftmost where there are several."""
    return [i for word in words(pre, text) for i in _word_ids(word, PRE_TOKENIZERS[pre].whole_words)]
