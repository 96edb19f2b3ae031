"""Patterns that cut text into words before byte-level BPE, by the names that tokenizer.ggml.pre uses.

The patterns are the format: a model was trained on words cut by exactly these. Sources: the tokenizer.json files that
the models were published with, as far as they are known (Llama 3.1, Qwen 3, DeepSeek V3, gpt-oss; others as comments in
llama.cpp's src/llama-vocab.cpp quote them), else the patterns in that file. The names are that file's, too. Composition
(nfc) follows the model's class in transformers. Where a model's own tokenizer and llama.cpp disagree, the model's own
counts; tests/helpers/pre_vocab.py lists these cases.

Not supported, and refused by name: those of embedding models (jina-*, roberta-bpe, modern-bert, granite-embed-*,
whitespace), gemma4 and sarvam-moe (BPE on characters, not bytes), and afmoe (its pattern is known from a damaged copy).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["PRE_TOKENIZERS", "PRE_TOKENIZER_ALIASES", "PreTokenizer"]


class PreTokenizer(NamedTuple):
    """Patterns apply in turn, each to the pieces that the one before left. Text between two matches is a word, too."""

    patterns: tuple[str, ...]
    whole_words: bool = False  # a word that is a token becomes that token, whatever the merges give
    add_bos: bool = False  # the default for files without add_bos_token
    nfc: bool = False  # the text is first composed (Unicode's normalization form C)


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _newer(digits: str, letters: str = r"\p{L}+", contractions: str = _CONTRACTIONS + "|") -> str:
    """A pattern of the form that Llama 3 introduced."""
    return contractions + r"[^\r\n\p{L}\p{N}]?" + letters + "|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES


def _cased(digits: str, *, ending: str = "", other: str = "", last: str = r"[\r\n/]*|") -> str:
    """A pattern of the form that GPT-4o introduced: a capital in the middle of a word begins a new one.

    ending: what may follow a word; other: a further condition on letters; last: what may follow symbols."""
    upper, lower = rf"[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{other}]", rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{other}]"
    first = r"[^\r\n\p{L}\p{N}]?"
    words = f"{first}{upper}*{lower}+{ending}|{first}{upper}+{lower}*{ending}|"
    return words + digits + r"| ?[^\s\p{L}\p{N}]+" + last + _SPACES


_LLAMA3 = _newer(r"\p{N}{1,3}")
_QWEN2 = _newer(r"\p{N}")
_GPT4O = _cased(r"\p{N}{1,3}", ending=_CONTRACTIONS + "?")
_SINGLE_DIGITS = (r"\p{N}", _GPT2)
_BLOOM = r" ?[^(\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"

_CJK = r"[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK_EAST = r"[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# DeepSeek's letters: those that have upper and lower case, of Latin, Greek, Cyrillic and so on.
_DEEPSEEK_LETTERS = (
    r"A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    r"\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    r"\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    r"\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    r"\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    r"\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    r"\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    r"\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    r"\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\x{10400}-\x{1044f}\x{104b0}-\x{104d3}"
    r"\x{104d8}-\x{104fb}\x{10c80}-\x{10cb2}\x{10cc0}-\x{10cf2}\x{118a0}-\x{118df}\x{1e900}-\x{1e943}"
)
_DEEPSEEK3_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+"
)
_DEEPSEEK3 = (r"\p{N}{1,3}", _CJK, _DEEPSEEK3_WORDS + r"[\r\n]*|" + _SPACES)


def _cascade() -> str:
    """Jais 2's pattern, which cuts white space into powers of two."""
    steps = "".join(rf"\s{{{2**n}}}(?!\S)|" for n in range(9, 1, -1))
    return _LLAMA3.removesuffix(r"\s+(?!\S)|\s+") + steps + r"\s{1,2}(?!\S)|\s{1}"


PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "bloom": PreTokenizer((_BLOOM,)),
    "chameleon": PreTokenizer(
        (
            r"<sentinel:[0-9]+>",
            r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            r"\p{N}",
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        add_bos=True,
    ),
    "command-r": PreTokenizer(_SINGLE_DIGITS, nfc=True),
    "dbrx": PreTokenizer((_LLAMA3,)),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_EAST, r"\p{N}")),
    "deepseek-llm": PreTokenizer(
        (
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            r"\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+$",
            _DEEPSEEK_EAST,
            r"\p{N}+",
        )
    ),
    "deepseek-v3": PreTokenizer(_DEEPSEEK3),
    "exaone-moe": PreTokenizer(
        (
            _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "glm4": PreTokenizer((_LLAMA3,), whole_words=True),
    "gpt-2": PreTokenizer((_GPT2,)),
    "gpt-4o": PreTokenizer((_GPT4O,)),
    "jais-2": PreTokenizer((_cascade(),)),
    "kimi-k2": PreTokenizer(
        (r"[\p{Han}]+|" + _cased(r"\p{N}{1,3}", ending=_CONTRACTIONS + "?", other=r"&&[^\p{Han}]", last=r"[\r\n]*|"),)
    ),
    "laguna": PreTokenizer((r"[^\n]+|[\n]+", _QWEN2)),
    "llama-bpe": PreTokenizer((_LLAMA3,), whole_words=True, add_bos=True),
    "minicpm5": PreTokenizer((r"\p{N}{1,3}", _newer(r"\p{N}+")), whole_words=True),
    "mpt": PreTokenizer((_GPT2,), nfc=True),
    "qwen2": PreTokenizer((_QWEN2,), nfc=True),
    "qwen35": PreTokenizer(
        (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACES,),
        nfc=True,
    ),
    "seed-coder": PreTokenizer(
        (_CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+|" + _SPACES,)
    ),
    "smollm": PreTokenizer(_SINGLE_DIGITS),
    "spark2_5": PreTokenizer(
        (r"\p{N}{1,3}", _CJK, _DEEPSEEK3_WORDS + r"|[\r\n]|\s+(?!\S)|\s+", r"\p{N}"),
    ),
    "stablelm2": PreTokenizer((_QWEN2,)),
    "superbpe": PreTokenizer((r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
    "tekken": PreTokenizer((_cased(r"\p{N}"),), whole_words=True, add_bos=True),
    "tiny_aya": PreTokenizer((r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O)),
    "ufakzeka": PreTokenizer((_newer(r"\p{N}", contractions=""),)),
    "viking": PreTokenizer((_BLOOM, r"\p{N}")),
    "youtu": PreTokenizer(
        (
            r"[\uac00-\ud7a3\u3131-\u318e]+|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c"
            r"\u3001-\u303f\ufe30-\ufe4f]+|[\u3105-\u312f]+|" + _CJK,
            _cased(r"\p{N}", ending=_CONTRACTIONS + "?"),
        ),
        whole_words=True,
    ),
}

PRE_TOKENIZER_ALIASES: Mapping[str, str] = {
    **dict.fromkeys(("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"), "llama-bpe"),
    **dict.fromkeys(("phi-2", "jais", "exaone4", "trillion", "granite-docling", "gigachat"), "gpt-2"),
    **dict.fromkeys(("a.x-4.0", "mellum"), "gpt-2"),
    **dict.fromkeys(("starcoder", "refact", "codeshell", "exaone", "minerva-7b", "mellum2"), "smollm"),
    **dict.fromkeys(("megrez", "kormo", "hunyuan", "solar-open", "grok-2"), "stablelm2"),
    **dict.fromkeys(("hunyuan-dense", "joyai-llm", "hy_v4"), "deepseek-v3"),
    **dict.fromkeys(("llama4", "kanana2", "talkie", "minimax-m2"), "gpt-4o"),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe", "deepseek-r1-qwen"), "stablelm2"),
    **dict.fromkeys(("poro-chat", "gpt3-finnish"), "bloom"),
    **dict.fromkeys(("chatglm-bpe", "smaug-bpe"), "dbrx"),
    "olmo": "mpt",  # both have GPT-NeoX's tokenizer
    "glm5": "glm4",
    "cohere2moe": "tiny_aya",
}
PRE_TOKENIZERS.update({name: PRE_TOKENIZERS[same] for name, same in PRE_TOKENIZER_ALIASES.items()})
