"""Byte-pair encoding by the `tokenizers` library, with the whole vocabulary or the part of it that a text can use.

A text can only become tokens that occur in its spelling, and can only use merges whose product occurs there. A small
model of these alone gives the same ids, because it has the same merges in the same order. It is built in milliseconds,
whereas the model of a vocabulary of hundreds of thousands takes half a second: too long before a first prompt. So each
text gets a small model until these have together cost about as much as the whole one, which serves all from then on.
"""

from __future__ import annotations

import gc
import threading
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from pylogquant.errors import ModelFormatError, TokenizerError
from pylogquant.gguf import Strings, marked
from pylogquant.pretokenizers import PreTokenizer

__all__ = ["BYTE_CHARACTERS", "SPACE", "Bpe", "ByteLevelBpe", "ScoredBpe"]

SPACE = "\u2581"  # how SentencePiece writes a space
_MISSING = "\ue000missing"  # the unknown token; longer than one character, so that no character is looked up as it

# Building a small model takes as long as the whole one takes for 2000 tokens, and half a token for each byte of text.
_PART_TOKENS = 2000


def _byte_characters() -> str:
    """Printable Latin-1 stands for itself; the other bytes, in order, are U+0100 and on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(others)) for byte in range(256))


BYTE_CHARACTERS = _byte_characters()
"""How byte-level vocabularies write the 256 bytes."""


class Bpe(ABC):
    """Ordinary text to ids. Usable from several threads."""

    def __init__(self, tokens: Strings, types: bytes, excluded: bytes, missing_id: int | None) -> None:
        """types: one byte per token; excluded: types that no text may become. missing_id: the id for characters that
        cannot be spelled in tokens; None: they yield no id, but their neighbours are not merged across them."""
        self._tokens = tokens
        self._types = types
        self._excluded = excluded
        self._missing_id = missing_id
        self._whole: Any = None
        self._left = len(tokens)  # what small models may still cost, in tokens of the whole one
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        if not texts:
            return []
        ready = [self._prepare(text) for text in texts]
        engine = self._engine(ready)
        return [self._only_tokens(engine.encode(text, add_special_tokens=False).ids) for text in ready]

    @abstractmethod
    def _prepare(self, text: str) -> str:
        """The text as the engine takes it."""

    @abstractmethod
    def _spelled(self, text: str) -> str:
        """A prepared text in the characters that tokens are written in."""

    @abstractmethod
    def _model(self, text: bytes | None) -> Any:
        """An engine with the tokens and merges that this spelled text can use, or with all of them for None."""

    def _engine(self, texts: Sequence[str]) -> Any:
        if self._whole is not None:
            return self._whole
        text = self._spelled("\n".join(texts)).encode()
        with self._lock:
            self._left -= _PART_TOKENS + len(text) // 2
            if self._left < 0 and self._whole is None:
                with _no_collection():
                    self._whole = self._model(None)
            if self._whole is not None:
                return self._whole
        return self._model(text)

    def _only_tokens(self, ids: list[int]) -> list[int]:
        past_end = len(self._tokens)
        if past_end not in ids:
            return ids
        if self._missing_id is None:
            return [token_id for token_id in ids if token_id != past_end]
        return [self._missing_id if token_id == past_end else token_id for token_id in ids]

    def _vocabulary(self, texts: Strings | list[str], ids: Iterable[int]) -> dict[str, int]:
        """Maps the texts of some ids (rising) to these ids. Of several ids with one text the last counts; if no text
        may become that one, the text is left out. texts: indexed by id."""
        last = {texts[token_id]: token_id for token_id in ids}
        return {text: token_id for text, token_id in last.items() if self._types[token_id] not in self._excluded}


class ByteLevelBpe(Bpe):
    """Merges from a list; bytes without a token are dropped."""

    def __init__(self, tokens: Strings, types: bytes, excluded: bytes, lines: Strings, pre: PreTokenizer) -> None:
        """lines: the merges, as the file lists them. Raises TokenizerError."""
        super().__init__(tokens, types, excluded, None)
        self._lines = lines
        self._pre = pre
        try:
            lines.within(b"", separator=b" ")
        except ModelFormatError as cause:
            raise TokenizerError(
                f"tokenizer.ggml.merges has a line that is not two tokens with a space between ({cause})"
            ) from cause

    def _prepare(self, text: str) -> str:
        if not self._pre.nfc:
            return text
        from tokenizers import normalizers

        return str(normalizers.NFC().normalize_str(text))

    def _spelled(self, text: str) -> str:
        return text.encode().decode("latin-1").translate(BYTE_CHARACTERS)

    def _model(self, text: bytes | None) -> Any:
        tokens, lines = self._tokens, self._lines
        if text is None:
            vocabulary, chosen = self._vocabulary(list(tokens), range(len(tokens))), list(lines)
        else:
            vocabulary = self._vocabulary(tokens, marked(tokens.within(text)))
            chosen = [lines[index] for index in marked(lines.within(text, separator=b" "))]
        vocabulary[_MISSING] = len(tokens)
        merges = [(left, right) for left, _, right in (line.partition(" ") for line in chosen)]
        options = {"unk_token": _MISSING, "ignore_merges": self._pre.whole_words}
        engine = _engine_of(vocabulary, merges, options)
        engine.pre_tokenizer = self._pre_tokenizer
        return engine

    @cached_property
    def _pre_tokenizer(self) -> Any:
        from tokenizers import Regex, pre_tokenizers

        steps: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in self._pre.patterns]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
        return pre_tokenizers.Sequence(steps)


class ScoredBpe(Bpe):
    """Merges that follow from the pieces' scores; characters without a piece are spelled in byte tokens."""

    def __init__(
        self,
        tokens: Strings,
        types: bytes,
        excluded: bytes,
        scores: array[float],
        is_piece: bytes,
        missing_id: int | None,
    ) -> None:
        """scores: float32, one per token. is_piece: 1 for tokens that merges may involve, else 0."""
        super().__init__(tokens, types, excluded, missing_id)
        self._scores = scores
        self._bytes = [token_id for token_id, _ in tokens.find({f"<0x{byte:02X}>" for byte in range(256)})]
        # Byte tokens are no pieces, whatever their type: a token that stands for a byte cannot also stand for its text.
        pieces = bytearray(is_piece)
        for token_id in self._bytes:
            pieces[token_id] = 0
        self._is_piece = bytes(pieces)

    def _prepare(self, text: str) -> str:
        return text.replace(" ", SPACE)

    def _spelled(self, text: str) -> str:
        return text

    def _model(self, text: bytes | None) -> Any:
        tokens, is_piece = self._tokens, self._is_piece
        texts: Strings | list[str] = tokens
        if text is None:
            texts = list(tokens)
            vocabulary = self._vocabulary(texts, range(len(tokens)))
        else:
            ids = marked(tokens.within(text))
            vocabulary = self._vocabulary(tokens, sorted({*ids, *self._bytes}))
            here = bytearray(len(tokens))
            for token_id in ids:
                here[token_id] = is_piece[token_id]
            is_piece = bytes(here)
        _, left, right = tokens.merges(self._scores, is_piece)
        merges = [(texts[a], texts[b]) for a, b in zip(left, right, strict=True)]
        # Vocabularies without byte tokens need an unknown token. Its id is past the end: _only_tokens() replaces it.
        vocabulary[_MISSING] = len(tokens)
        return _engine_of(vocabulary, merges, {"unk_token": _MISSING, "byte_fallback": True})


def _engine_of(vocabulary: dict[str, int], merges: list[tuple[str, str]], options: dict[str, Any]) -> Any:
    from tokenizers import Tokenizer as Engine
    from tokenizers import models

    # Merges that lead to a token which is not ordinary text, or to none, cannot apply. The library refuses them, and
    # panics at one longer than every token (tokenizers 0.23), with a report on stderr that cannot be suppressed.
    known = [pair for pair in merges if pair[0] in vocabulary and pair[1] in vocabulary and "".join(pair) in vocabulary]
    try:
        return Engine(models.BPE(vocabulary, known, fuse_unk=False, **options))
    except Exception as cause:
        raise TokenizerError(
            f"no tokenizer can be built from the model file's vocabulary: {_one_line(cause)}"
        ) from cause
    except BaseException as cause:
        # pyo3 derives its panics from BaseException, and exports no name for them.
        if type(cause).__name__ != "PanicException":
            raise
        raise TokenizerError(
            f"the model file's vocabulary breaks the tokenizers library: {_one_line(cause)}"
        ) from cause


def _one_line(cause: BaseException) -> str:
    return " ".join(str(cause).split())[:200] or type(cause).__name__


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pauses the garbage collector. It would walk hundreds of thousands of new pairs, none of them garbage, over and
    over, which takes about a fifth of the whole time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
