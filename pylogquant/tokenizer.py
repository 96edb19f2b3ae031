"""Text <-> token ids, built from the metadata of a GGUF file; byte-pair encoding itself is bpe.py's.

There are two kinds of vocabulary: "gpt2" (byte-level BPE, merges listed in the file, text first split by the pattern
that tokenizer.ggml.pre names) and "llama" (SentencePiece BPE: a score per token, merges derived from the scores,
characters without a token spelled as <0xXX> bytes).

Control tokens (type 3) and the unknown token (2) are kept out of the BPE model, so that no text can merge into one.
They are found in text only where the caller says so, user-defined tokens (4) always. Both are split off before BPE,
longest first over the whole text.

Bytes for which a byte-level vocabulary has no token (SmolLM2 lacks six control characters) are dropped by encode().
"""

from __future__ import annotations

import codecs
import re
from array import array
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from pylogquant._copying import Uncopyable
from pylogquant.bpe import BYTE_CHARACTERS, SPACE, Bpe, ByteLevelBpe, ScoredBpe
from pylogquant.errors import ArgumentError, ModelFormatError, TokenizerError
from pylogquant.gguf import GGUFFile, Strings, marked
from pylogquant.pretokenizers import PRE_TOKENIZER_ALIASES, PRE_TOKENIZERS

__all__ = ["Decoder", "Tokenizer"]

# tokenizer.ggml.token_type
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = 1, 2, 3, 4, 5, 6
_BYTE_OF = {char: byte for byte, char in enumerate(BYTE_CHARACTERS)}
_SPLIT_OFF = bytes((_CONTROL, _UNKNOWN, _USER_DEFINED))  # found in text before BPE

_WHITE_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
# Tokens that end a turn or a text in common models. They are treated as control tokens, even though some files give
# them an ordinary type.
_END_NAMES = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<eos>",
    "</s>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)


def _mask(types: bytes) -> bytes:
    """A table for bytes.translate() that maps these types to 1 and all others to 0."""
    return bytes(kind in types for kind in range(256))


class Decoder:
    """Turns ids into text one by one: push() returns complete characters, flush() the rest. See Tokenizer.stream()."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._hidden: frozenset[int] = tokenizer.control_ids if skip_special else frozenset()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that this id completes: whole characters only, so often "" inside one."""
        if token_id in self._hidden:
            return ""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    @property
    def pending(self) -> bool:
        """True inside a character: bytes wait for the next id."""
        return bool(self._utf8.getstate()[0])

    def flush(self) -> str:
        """U+FFFD for a character that was begun and never completed, else ""; the decoder can be used again."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return text


class Tokenizer(Uncopyable):
    """A model's vocabulary. Immutable, usable from several threads. Build it with from_gguf(). copy.copy() returns the
    same object; it cannot be pickled."""

    _instead = "another process builds it from the file: Tokenizer.from_gguf()"

    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    add_bos: bool
    """Whether the file asks for BOS at the start of a text."""
    add_eos: bool
    """Whether the file asks for EOS at the end of a text."""
    add_space_prefix: bool
    """Whether a space is put in front of a text before it is tokenized ("llama" vocabularies only)."""
    eog_ids: frozenset[int]
    """Ids that end a generation."""
    control_ids: frozenset[int]
    """Ids that ordinary text never yields (control tokens and the unknown token)."""
    kind: str
    """tokenizer.ggml.model: "gpt2" or "llama"."""
    pre: str | None
    """The pre-tokenizer in use; None for "llama" vocabularies."""
    notes: list[str]
    """What was ignored in the file, a line each; empty for a well-formed file."""

    def __init__(self, gguf: GGUFFile, pre: str | None) -> None:
        self._meta: Mapping[str, Any] = gguf.metadata
        self.notes = []
        self.kind = str(self._get("model", str, "") or "")
        self._is_phi3 = self.kind == "llama" and self._meta.get("general.architecture") == "phi3"
        if self.kind not in ("gpt2", "llama"):
            what = f"has a tokenizer of kind {self.kind!r}" if self.kind else "has no tokenizer (tokenizer.ggml.model)"
            raise TokenizerError(f"the model file {what}; supported are gpt2 and llama")
        if "tokenizer.ggml.tokens" not in self._meta:
            raise TokenizerError("the model file has no vocabulary (tokenizer.ggml.tokens)")
        self._tokens = _strings(gguf, "tokenizer.ggml.tokens")
        types = self._token_types(gguf)
        self._read_special_ids(types)
        self._types = bytes(types)
        self._is_split_off = self._types.translate(_mask(_SPLIT_OFF))
        self.control_ids = frozenset(self._ids_of(bytes((_CONTROL, _UNKNOWN))))
        has_bos = self.bos_id is not None
        self._bpe: Bpe
        if self.kind == "gpt2":
            self.pre = _choose_pre(self._get("pre", str, None), pre)
            self.add_bos = bool(self._get("add_bos_token", bool, PRE_TOKENIZERS[self.pre].add_bos and has_bos))
            self.add_space_prefix = False
            self._bpe = self._build_gpt2(gguf, self.pre)
        else:
            if pre is not None:
                raise TokenizerError(f"pre={pre!r} (--pre) has no effect on a llama vocabulary; leave it out")
            self.pre = None
            self.add_bos = bool(self._get("add_bos_token", bool, has_bos))
            self.add_space_prefix = bool(self._get("add_space_prefix", bool, True))
            self._refuse_normalization()
            self._bpe = self._build_spm(gguf)
        self.add_eos = bool(self._get("add_eos_token", bool, False))
        for name, wanted, token_id in (("bos", self.add_bos, self.bos_id), ("eos", self.add_eos, self.eos_id)):
            if wanted and token_id is None:
                raise TokenizerError(
                    f"the model file asks for {name.upper()} but has no tokenizer.ggml.{name}_token_id"
                )

    @classmethod
    def from_gguf(cls, gguf: GGUFFile, *, pre: str | None = None) -> Tokenizer:
        """The tokenizer that a GGUF file describes; the file may be closed afterwards.

        pre: name of the pre-tokenizer to use in place of the file's (PRE_TOKENIZERS lists them).
        Errors: TokenizerError (nothing usable in the file, unknown pre-tokenizer)."""
        return cls(gguf, pre)

    def __copy__(self) -> Tokenizer:
        return self

    def __deepcopy__(self, memo: object) -> Tokenizer:
        return self

    # ---- building ---------------------------------------------------------------------------------------------------

    def _get(self, key: str, kind: type, default: object) -> object:
        value = self._meta.get(f"tokenizer.ggml.{key}")
        if value is None:
            return default
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise TokenizerError(f"tokenizer.ggml.{key} is a {type(value).__name__}, not a {kind.__name__}")
        return value

    def _numbers(self, gguf: GGUFFile, key: str) -> memoryview | None:
        """A numeric array with one item per token; None where the file has none."""
        try:
            found: memoryview | None = gguf.numbers(f"tokenizer.ggml.{key}")
        except KeyError:
            return None
        except ModelFormatError:
            found = None
        if found is None or len(found) != len(self._tokens):
            raise TokenizerError(f"tokenizer.ggml.{key} is not an array of one number per token ({len(self._tokens)})")
        return found

    def _refuse_normalization(self) -> None:
        """Raises TokenizerError if SentencePiece would rewrite text first, as no known "llama" vocabulary does: its
        text would be tokenized wrongly here."""
        charsmap = self._meta.get("tokenizer.ggml.precompiled_charsmap")
        wanted = {
            "precompiled_charsmap": charsmap is not None and len(charsmap) > 0,
            "remove_extra_whitespaces": self._get("remove_extra_whitespaces", bool, False),
        }
        for key, asked in wanted.items():
            if asked:
                raise TokenizerError(f"the model file has tokenizer.ggml.{key}; text is not rewritten in this way here")

    def _token_types(self, gguf: GGUFFile) -> bytearray:
        """The type of each token, a byte each; 0 for an unknown type."""
        found = self._numbers(gguf, "token_type")
        if found is None:
            return bytearray((_NORMAL,)) * len(self._tokens)
        raw, width = found.tobytes(), found.itemsize
        if found.format != "f" and all(raw[i::width].count(0) == len(found) for i in range(1, width)):
            return bytearray(raw[::width])  # little-endian; a hundred times as fast as number by number
        return bytearray(int(kind) if 0 <= kind < 256 else 0 for kind in found)

    def _special_id(self, name: str, types: bytearray, default: int | None = None) -> int | None:
        found = self._get(f"{name}_token_id", int, None)
        if found is None:
            return self._default_id(default, types)
        assert isinstance(found, int)
        if not 0 <= found < len(self._tokens):
            self.notes.append(
                f"tokenizer.ggml.{name}_token_id is {found}, but the vocabulary has {len(self._tokens)} tokens;"
                " it is ignored"
            )
            return self._default_id(default, types)
        return found

    def _default_id(self, default: int | None, types: bytearray) -> int | None:
        if default is None or default >= len(self._tokens):
            return None
        return default if types[default] in (_CONTROL, _UNKNOWN) else None

    def _read_special_ids(self, types: bytearray) -> None:
        """Reads bos_id, eos_id and the ids that end a generation, and makes those control tokens."""
        # A "llama" file that names no ids uses SentencePiece's default numbering.
        unk, bos, eos = (0, 1, 2) if self.kind == "llama" else (None, None, None)
        self.bos_id = self._special_id("bos", types, bos)
        self.eos_id = self._special_id("eos", types, eos)
        self.unk_id = self._special_id("unknown", types, unk)
        ends = {self.eos_id, self._special_id("eot", types), self._special_id("eom", types)}
        # Of several tokens with one text the last one counts.
        named = {text: token_id for token_id, text in self._tokens.find(_END_NAMES)}
        for name in _END_NAMES:
            token_id = named.get(name)
            if token_id is None:
                continue
            # "</s>" is an HTML tag as well: an ordinary token in Qwen's vocabulary, and a user-defined one in others
            # whose texts end with something else.
            is_tag = name == "</s>" and token_id not in ends
            if is_tag and self.kind == "gpt2" and types[token_id] == _NORMAL:
                continue
            if not is_tag or types[token_id] == _CONTROL:
                ends.add(token_id)
            types[token_id] = _CONTROL
        # In gpt-oss's format "<|end|>" ends only a message, after which the model goes on.
        if "<|return|>" in named and "<|call|>" in named and named.get("<|end|>") != self.eos_id:
            ends.discard(named.get("<|end|>"))
        self.eog_ids = frozenset(token_id for token_id in ends if token_id is not None)

    def _ids_of(self, types: bytes) -> list[int]:
        return [match.start() for match in re.finditer(b"[" + re.escape(types) + b"]", self._types)]

    def _build_gpt2(self, gguf: GGUFFile, pre: str) -> Bpe:
        key = "tokenizer.ggml.merges"
        if key not in self._meta:
            raise TokenizerError(f"the model file has no {key}")
        excluded = bytes((_CONTROL, _UNKNOWN))
        return ByteLevelBpe(self._tokens, self._types, excluded, _strings(gguf, key), PRE_TOKENIZERS[pre])

    def _build_spm(self, gguf: GGUFFile) -> Bpe:
        scores = self._numbers(gguf, "scores")
        if scores is None:
            raise TokenizerError("the model file has no tokenizer.ggml.scores")
        floats = array("f", scores.tobytes() if scores.format == "f" else map(float, scores))
        is_piece = self._types.translate(_mask(bytes((_NORMAL, _UNUSED))))
        return ScoredBpe(self._tokens, self._types, _SPLIT_OFF, floats, is_piece, self.unk_id)

    # ---- vocabulary -------------------------------------------------------------------------------------------------

    @property
    def n_vocab(self) -> int:
        """Number of tokens."""
        return len(self._tokens)

    def token(self, token_id: int) -> str:
        """A token as the file writes it (byte-level or with U+2581 for a space)."""
        self._check_id(token_id)
        return self._tokens[token_id]

    def id(self, token: str) -> int | None:
        """The id of a token as the file writes it; None where there is no such token."""
        return self._ids.get(token)

    @cached_property
    def _ids(self) -> dict[str, int]:
        return dict(zip(self._tokens, range(len(self._tokens)), strict=True))

    @property
    def control_tokens(self) -> list[str]:
        """The texts of control_ids, by id."""
        return [self._tokens[token_id] for token_id in sorted(self.control_ids)]

    def _check_id(self, token_id: int) -> None:
        if not 0 <= token_id < len(self._tokens):
            raise ArgumentError(f"token id {token_id} is outside 0..{len(self._tokens) - 1}")

    # ---- text to ids ------------------------------------------------------------------------------------------------

    def encode(
        self, text: str, *, special: bool = False, bos: bool | None = None, eos: bool | None = None
    ) -> list[int]:
        """The ids of a text.

        special: control tokens spelled in the text become control tokens; otherwise they are ordinary characters.
        bos, eos: put BOS in front, EOS at the end, unless the text has its own there; None: as the file says.
        Errors: ArgumentError (lone surrogates; BOS or EOS asked for where the vocabulary has none)."""
        return self.encode_segments([(text, not special)], bos=bos, eos=eos)

    def encode_segments(
        self,
        segments: Iterable[tuple[str, bool]],
        *,
        bos: bool | None = None,
        eos: bool | None = None,
        after: int | None = None,
    ) -> list[int]:
        """The ids of a text given in segments (text, plain): control tokens are found outside the plain segments only.

        Otherwise the segments are tokenized as one text, so that words may cross their borders.
        after: the id before this text, if it continues earlier ids; BOS and EOS are then added only if asked for."""
        parts = list(segments)
        text = "".join(part for part, _ in parts)
        # Every plain character is replaced by a noncharacter, which no control token can match.
        mask = "".join("\U0010ffff" * len(part) if plain else part for part, plain in parts)
        try:
            raw = text.encode()
        except UnicodeEncodeError:
            raise ArgumentError("the text has a lone surrogate, which UTF-8 cannot hold; replace it first") from None
        found: list[int | str] = []  # special tokens, and the ordinary text between them
        # The space prefix belongs at the start of a text and behind special tokens.
        fresh = after is None or self._types[after] in _SPLIT_OFF
        before = after
        for start, end, token_id in self._partition(text, mask, raw):
            if token_id is not None:
                found.append(token_id)
                fresh = True
            else:
                piece = text[start:end]
                if before in self._swallowing:
                    piece = piece.lstrip(_WHITE_SPACE)
                if piece:
                    found.append(" " + piece if fresh and self.add_space_prefix else piece)
                    fresh = False
            before = token_id
        encoded = iter(self._bpe.encode([part for part in found if isinstance(part, str)]))
        ids: list[int] = []
        for part in found:
            if isinstance(part, str):
                ids += next(encoded)
            else:
                ids.append(part)
        if self._wanted("bos", bos, self.add_bos and after is None, self.bos_id) and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id or 0)
        if self._wanted("eos", eos, self.add_eos and after is None, self.eos_id) and ids[-1:] != [self.eos_id]:
            ids.append(self.eos_id or 0)
        return ids

    @staticmethod
    def _wanted(name: str, asked: bool | None, default: bool, token_id: int | None) -> bool:
        if asked and token_id is None:
            raise ArgumentError(f"{name}=True, but the vocabulary names no {name.upper()} token")
        return default if asked is None else asked

    @cached_property
    def _swallowing(self) -> frozenset[int]:
        """Special tokens that include the white space behind them: those of Phi-3, as in its tokenizer.json (rstrip).
        GGUF files do not store this, so it depends on the architecture."""
        if not self._is_phi3:
            return frozenset()
        others = {token_id for token_id, _ in self._tokens.find(("<unk>", "<s>", "<|endoftext|>"))}
        return frozenset(self._ids_of(_SPLIT_OFF)) - others

    def _partition(self, text: str, mask: str, raw: bytes) -> list[tuple[int, int, int | None]]:
        """Cuts text into (start, end, id of a special token, or None for ordinary text). raw: the text in UTF-8."""
        candidates = []
        for token_id in marked(self._tokens.within(raw, self._is_split_off)):
            token = self._tokens[token_id]
            if token:
                candidates.append((-len(token.encode()), token_id, token, token_id in self.control_ids))
        candidates.sort()
        pieces: list[tuple[int, int, int | None]] = [(0, len(text), None)] if text else []
        for _, token_id, token, is_control in candidates:
            hay = mask if is_control else text
            if token not in hay:
                continue
            cut: list[tuple[int, int, int | None]] = []
            for piece in pieces:
                start, end, known = piece
                at = hay.find(token, start, end) if known is None else -1
                if at < 0:
                    cut.append(piece)
                    continue
                while at >= 0:
                    if at > start:
                        cut.append((start, at, None))
                    start = at + len(token)
                    cut.append((at, start, token_id))
                    at = hay.find(token, start, end)
                if start < end:
                    cut.append((start, end, None))
            pieces = cut
        return pieces

    # ---- ids to text ------------------------------------------------------------------------------------------------

    @cached_property
    def _bytes_of(self) -> dict[int, bytes]:
        """token_bytes() of the ids seen so far."""
        return {}

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for in a text; for a special token, its name."""
        found = self._bytes_of.get(token_id)
        if found is None:
            self._check_id(token_id)
            found = self._bytes_of[token_id] = self._spell(token_id)
        return found

    def _spell(self, token_id: int) -> bytes:
        text, kind = self._tokens[token_id], self._types[token_id]
        if kind in _SPLIT_OFF:
            return text.encode()
        if self.kind == "llama":
            if kind == _BYTE:
                try:
                    return bytes([int(text.removeprefix("<0x").removesuffix(">"), 16)])
                except ValueError:
                    raise TokenizerError(f"token {token_id} is of type byte but is written {text!r}") from None
            return text.replace(SPACE, " ").encode()
        if all(char in _BYTE_OF for char in text):
            return bytes(_BYTE_OF[char] for char in text)
        return text.encode()

    def decode(self, ids: Iterable[int], *, skip_special: bool = False) -> str:
        """The text of ids. This inverts encode(), except for space prefixes behind special tokens within the text,
        white space that Phi-3's special tokens include, and the composition of characters (PreTokenizer.nfc).
        Incomplete or invalid UTF-8 becomes U+FFFD.

        skip_special: leave control tokens out. Errors: ArgumentError (an id outside the vocabulary)."""
        pieces: list[bytes] = []
        strip = self.add_space_prefix
        for token_id in ids:
            piece = self.token_bytes(token_id)
            if token_id in self.control_ids:
                if not skip_special:
                    pieces.append(piece)
                continue
            if strip:
                piece = piece.removeprefix(b" ")
                strip = False
            pieces.append(piece)
        return b"".join(pieces).decode("utf-8", errors="replace")

    def stream(self, *, skip_special: bool = False) -> Decoder:
        """A decoder that takes ids one by one, as they are generated. It keeps a leading space, because generated text
        continues other text."""
        return Decoder(self, skip_special=skip_special)


def _choose_pre(found: object, override: str | None) -> str:
    name = override if override is not None else found
    if isinstance(name, str) and name in PRE_TOKENIZERS:
        return name
    known = ", ".join(sorted(PRE_TOKENIZERS.keys() - PRE_TOKENIZER_ALIASES.keys()))
    if override is not None:
        raise TokenizerError(f"unknown pre-tokenizer {override!r} (pre=, --pre); known are: {known}")
    what = f"names an unknown pre-tokenizer {name!r}" if name else "names no pre-tokenizer"
    raise TokenizerError(
        f"the model file {what} (tokenizer.ggml.pre); known are: {known};"
        " if one of them fits, choose it with pre= or --pre"
    )


def _strings(gguf: GGUFFile, key: str) -> Strings:
    found = gguf.strings(key)
    try:
        found.check_utf8()
    except ModelFormatError as cause:
        raise TokenizerError(f"{key} has a string that is not UTF-8 ({cause}); the file is damaged") from cause
    return found
