"""A tokenizer's engine for the texts at hand gives the ids that the whole vocabulary's gives."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny_vocab as tiny
from compare_tokenizers import hard_texts, random_texts
from hypothesis import given, settings
from hypothesis import strategies as st

from pylogquant import GGUFFile, Tokenizer, TokenizerError
from pylogquant import bpe as bpe_module

ALWAYS_SMALL, ALWAYS_WHOLE = -(10**12), 10**12  # for bpe._PART_TOKENS


def load(path: Path, pre: str | None = None) -> Tokenizer:
    with GGUFFile(path) as file:
        return Tokenizer.from_gguf(file, pre=pre)


def encoded(tokenizer: Tokenizer, texts: list[str], cost: int) -> list[list[int]]:
    """Ids of texts, plain and with control tokens, with a small model for each or with the whole one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bpe_module, "_PART_TOKENS", cost)
        return [tokenizer.encode(text, special=special) for text in texts for special in (False, True)]


def check_small_models(path: Path, texts: list[str], pre: str | None = None) -> None:
    assert encoded(load(path, pre), texts, ALWAYS_SMALL) == encoded(load(path, pre), texts, ALWAYS_WHOLE)


PIECES = st.text(st.sampled_from("ab\u2581\u00e9<0x1>"), min_size=1, max_size=6)
KINDS = st.sampled_from([tiny.NORMAL] * 8 + [tiny.UNKNOWN, tiny.CONTROL, tiny.USER_DEFINED, tiny.UNUSED, 0, 77])
HARD = st.text(st.sampled_from("ab \u2581\u00e9e\u0301<0x1>\n\x04\u4e2d\U0001f642"), max_size=40)


@settings(max_examples=300, deadline=None)
@given(
    tokens=st.lists(st.tuples(PIECES, KINDS), min_size=1, max_size=60),
    ranks=st.randoms(use_true_random=False),
    byte_kind=st.sampled_from([tiny.BYTE, tiny.BYTE, tiny.NORMAL, None]),
    unk=st.booleans(),
    texts=st.lists(HARD, max_size=4),
)
def test_a_part_of_a_scored_vocabulary_is_enough(
    tmp_path_factory: pytest.TempPathFactory,
    tokens: list[tuple[str, int]],
    ranks: random.Random,
    byte_kind: int | None,
    unk: bool,
    texts: list[str],
) -> None:
    if byte_kind is not None:
        tokens = tokens + [(f"<0x{byte:02X}>", byte_kind) for byte in range(256)]
    tokens = tokens + [(char, tiny.NORMAL) for char in "ab\u2581"]
    scores = [float(ranks.randrange(-9, 9)) for _ in tokens]
    extra = {"add_bos_token": False, **({"unknown_token_id": 0} if unk else {})}
    path = tmp_path_factory.getbasetemp() / "scored.gguf"
    tiny.write_vocab(path, "llama", tokens, scores=scores, extra=extra)
    check_small_models(path, texts)


@pytest.mark.parametrize("byte_kind", [tiny.BYTE, tiny.NORMAL])
def test_no_byte_merges_into_text_that_names_it(tmp_path: Path, byte_kind: int) -> None:
    """The token for a line end is written <0x0A>, which a text may hold as well."""
    texts = [*"<0xA>b▁", "<0", "<0x", "<0x0", "<0x0A", "<0x0A>b"]
    tokens = [(f"<0x{byte:02X}>", byte_kind) for byte in range(256)] + [(text, tiny.NORMAL) for text in texts]
    extra = {"add_bos_token": False, "add_space_prefix": False}
    path = tiny.write_vocab(tmp_path / "named.gguf", "llama", tokens, scores=tiny.spm_scores(tokens), extra=extra)
    for cost in (ALWAYS_SMALL, ALWAYS_WHOLE):
        ids, others = encoded(load(path), ["\nb", "<0x0A>b"], cost)[::2]
        spelled = load(path).token
        assert [spelled(token_id) for token_id in ids] == ["<0x0A>", "b"]
        assert [spelled(token_id) for token_id in others] == ["<0x0A", ">", "b"]


@settings(max_examples=300, deadline=None)
@given(
    words=st.lists(
        st.lists(st.sampled_from(["a", "b", "\u0120", "\u010a", "\u00c3", "\u00a9", "<"]), min_size=2, max_size=6)
    ),
    cuts=st.randoms(use_true_random=False),
    holes=st.sets(st.integers(0, 255), max_size=200),
    pre=st.sampled_from(["gpt-2", "llama-bpe", "qwen2", "smollm"]),
    texts=st.lists(HARD, max_size=4),
)
def test_a_part_of_a_list_of_merges_is_enough(
    tmp_path_factory: pytest.TempPathFactory,
    words: list[list[str]],
    cuts: random.Random,
    holes: set[int],
    pre: str,
    texts: list[str],
) -> None:
    """Merges of anything, also of what is no token, makes none, or comes twice."""
    shown = tiny.byte_characters()
    tokens = [(char, tiny.NORMAL) for byte, char in enumerate(shown) if byte not in holes]
    merges = []
    for word in words:
        at = cuts.randrange(1, len(word))
        merges.append(f"{''.join(word[:at])} {''.join(word[at:])}")
        kind = cuts.choice([tiny.NORMAL] * 6 + [tiny.CONTROL, tiny.USER_DEFINED, 0])
        if cuts.random() < 0.9:
            tokens.append(("".join(word), kind))
    path = tmp_path_factory.getbasetemp() / "listed.gguf"
    tiny.write_vocab(path, "gpt2", tokens or [("a", tiny.NORMAL)], merges=merges or ["a b"], extra={"pre": pre})
    check_small_models(path, texts)


@pytest.mark.parametrize("name", ["smollm2_path", "gemma_path"])
def test_a_part_of_a_real_vocabulary_is_enough(name: str, request: pytest.FixtureRequest) -> None:
    path = request.getfixturevalue(name)
    tokenizer = load(path)
    words = [tokenizer.token(i) for i in range(0, tokenizer.n_vocab, 7)]
    texts = [*hard_texts(), *random_texts(150, 11, words), " ".join(words[::50])]
    small, whole = (encoded(load(path), texts, cost) for cost in (ALWAYS_SMALL, ALWAYS_WHOLE))
    assert [text for text, a, b in zip(texts, small[::2], whole[::2], strict=True) if a != b] == []
    assert small == whole


def test_many_texts_get_the_whole_vocabulary(smollm2_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first texts do not wait for it; later ones do not look through it again."""
    sizes: list[int] = []

    def engine_of(vocabulary: dict[str, int], merges: list[tuple[str, str]], options: dict[str, object]) -> object:
        sizes.append(len(vocabulary))
        return build(vocabulary, merges, options)

    build = bpe_module._engine_of
    monkeypatch.setattr(bpe_module, "_engine_of", engine_of)
    tokenizer = load(smollm2_path)
    ids = [tokenizer.encode("The sky is blue, because of this.") for _ in range(60)]
    assert len(set(map(tuple, ids))) == 1
    n_small = sum(size < 300 for size in sizes)
    assert 8 <= n_small < 40
    assert len(sizes) == n_small + 1
    assert sizes[-1] > 40_000
    sizes.clear()
    load(smollm2_path).encode("The sky is blue. " * 10_000)
    assert len(sizes) == 1
    assert sizes[0] > 40_000


def test_several_threads_tokenize_at_once(smollm2_path: Path) -> None:
    """Also while the whole vocabulary takes over."""
    tokenizer, texts = load(smollm2_path), [f"The sky is {n} times blue." for n in range(80)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(tokenizer.encode, texts))
    assert found == encoded(load(smollm2_path), texts, ALWAYS_WHOLE)[::2]


@pytest.mark.parametrize("cost", [-(10**12), 10**12])
def test_merges_into_what_is_no_token_are_left_out(
    tmp_path: Path, cost: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library panics where the product is longer than any token, and reports it on stderr."""
    tokens = [(char, tiny.NORMAL) for char in tiny.byte_characters()]
    path = tmp_path / "long.gguf"
    tiny.write_vocab(path, "gpt2", tokens, merges=["a b", "ab c", "a x"], extra={"pre": "gpt-2"})
    monkeypatch.setattr(bpe_module, "_PART_TOKENS", cost)
    assert load(path).encode("abc") == [tokens.index((char, tiny.NORMAL)) for char in "abc"]
    assert capfd.readouterr().err == ""


def test_a_panic_of_the_library_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import tokenizers

    class PanicException(BaseException):
        pass

    def panic(*_arguments: object, **_options: object) -> None:
        raise PanicException("index out\nof range")

    monkeypatch.setattr(tokenizers.models, "BPE", panic)
    with pytest.raises(TokenizerError, match="breaks the tokenizers library: index out of range"):
        bpe_module._engine_of({"a": 0}, [], {})

    def interrupt(*_arguments: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenizers.models, "BPE", interrupt)
    with pytest.raises(KeyboardInterrupt):
        bpe_module._engine_of({"a": 0}, [], {})
