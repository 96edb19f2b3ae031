"""Compares our token ids with llama.cpp's: a set of hard texts and random ones, control tokens parsed or not.

    python tools/checks/compare_tokenizers.py MODEL... [--random 2000] [--seed 1] [--pre NAME]
    python tools/checks/compare_tokenizers.py MODEL... --record tests/data/tokenizer_digests.json
    python tools/checks/compare_tokenizers.py MODEL --original tokenizer.json
    python tools/checks/compare_tokenizers.py --every-pre [--record tests/data/pre_tokenizers.json]

MODEL is a path or a name that pylogquant knows. --pre puts another pre-tokenizer in place of the file's, on both sides.
Prints every difference and exits 1 if there is one. --record writes a digest of llama.cpp's ids for each hard text,
against which tests compare without llama.cpp. --original compares with the tokenizer that the model was published with.
--every-pre does it for each pre-tokenizer, on the vocabulary made for that purpose (tests/helpers/pre_vocab.py), and
goes by the plain rules where llama.cpp is known to be wrong. Needs the packages of the extra `oracle`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pylogquant import GGUFFile, Tokenizer, hub

TEST_HELPERS = Path(__file__).resolve().parents[2] / "tests" / "helpers"
HARD_TEXTS = TEST_HELPERS.parent / "data" / "hard_texts.json"

__all__ = ["Peer", "differences", "digest", "hard_texts", "model_key", "random_texts"]


class Peer:
    """llama.cpp's tokenizer of the same file."""

    def __init__(self, path: Path, pre: str | None = None) -> None:
        import llama_cpp

        overrides: dict[str, Any] | None = {"tokenizer.ggml.pre": pre} if pre else None
        self._llama = llama_cpp.Llama(str(path), vocab_only=True, verbose=False, kv_overrides=overrides)

    def encode(self, text: str, *, special: bool, bos: bool) -> list[int]:
        """bos: BOS and EOS as the file asks for them; otherwise neither."""
        return list(self._llama.tokenize(text.encode(), add_bos=bos, special=special))

    def close(self) -> None:
        self._llama.close()


class Original:
    """The tokenizer of a tokenizer.json, in Peer's place; it always finds control tokens and has no BOS of its own."""

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer as Engine

        self._engine = Engine.from_file(str(path))

    def differences(self, ours: Tokenizer, texts: Sequence[str]) -> Iterator[str]:
        for text in texts:
            wanted = self._engine.encode(text, add_special_tokens=False)
            found = ours.encode(text, special=True, bos=False, eos=False)
            if found != wanted.ids:
                yield f"{text[:60]!r}: {[ours.token(i) for i in found][:20]}, the original {wanted.tokens[:20]}"


def hard_texts() -> list[str]:
    groups: dict[str, list[str]] = json.loads(HARD_TEXTS.read_text(encoding="utf-8"))
    return [text for texts in groups.values() for text in texts]


def random_texts(n: int, seed: int, words: Sequence[str]) -> Iterator[str]:
    """Texts mixed from characters of all planes, white space, the hard texts' beginnings and the vocabulary's words."""
    rng = random.Random(seed)
    hard = hard_texts()
    sources: list[Callable[[], str]] = [
        lambda: chr(rng.randrange(0x20, 0x7F)),
        lambda: rng.choice(" \n\t\r'"),
        lambda: chr(rng.randrange(1, 0x250)),
        lambda: chr(rng.choice((rng.randrange(0x250, 0xD800), rng.randrange(0xE000, 0x10000)))),
        lambda: chr(rng.randrange(0x10000, 0x110000)),
        lambda: rng.choice(hard)[:20],
        lambda: rng.choice(words),
    ]
    for _ in range(n):
        mix = rng.sample(sources, rng.choice((1, 2, 3, len(sources))))
        yield "".join(rng.choice(mix)() for _ in range(rng.randrange(1, 40)))


def differences(ours: Tokenizer, peer: Peer, texts: Sequence[str]) -> Iterator[str]:
    """One line per text and mode whose ids differ."""
    modes = [(False, False), (True, False)]
    if ours.bos_id is not None:  # llama.cpp makes up an id where the file names none
        modes.append((False, True))
    for text in texts:
        for special, bos in modes:
            wanted = peer.encode(text, special=special, bos=bos)
            found = ours.encode(text, special=special, bos=None if bos else False, eos=None if bos else False)
            if found != wanted:
                at = next(i for i in range(len(wanted) + 1) if found[: i + 1] != wanted[: i + 1])
                here, there = ([ours.token(i) for i in ids[at : at + 6]] for ids in (found, wanted))
                yield (f"{text[:60]!r} special={special} bos={bos}: from token {at} on {here}, llama.cpp {there}")


def digest(ids: Sequence[int]) -> str:
    """The number of ids and a hash of them, short enough to record many."""
    return f"{len(ids)}:{hashlib.sha256(repr(list(ids)).encode()).hexdigest()[:12]}"


def model_key(tokenizer: Tokenizer) -> str:
    """Names a vocabulary by its contents."""
    tokens = "\0".join(tokenizer.token(i) for i in range(tokenizer.n_vocab))
    return f"{tokenizer.kind}-{hashlib.sha256(tokens.encode()).hexdigest()[:16]}"


def _record(peer: Peer) -> dict[str, list[str]]:
    return {
        "plain": [digest(peer.encode(text, special=False, bos=False)) for text in hard_texts()],
        "special": [digest(peer.encode(text, special=True, bos=False)) for text in hard_texts()],
    }


def _every_pre(record: Path | None) -> int:
    sys.path.insert(0, str(TEST_HELPERS))
    import pre_vocab

    from pylogquant.pretokenizers import PRE_TOKENIZER_ALIASES, PRE_TOKENIZERS

    found = pre_vocab.record()
    found["digests"] = {}
    n_bad = 0
    with tempfile.TemporaryDirectory() as folder:
        path = pre_vocab.write(Path(folder) / "pre.gguf")
        for pre in sorted(PRE_TOKENIZERS):
            with GGUFFile(path) as file:
                ours = Tokenizer.from_gguf(file, pre=pre)
            peer = Peer(path, pre)
            texts = [text for text in pre_vocab.texts() if not pre_vocab.llamacpp_differs(pre, text)]
            bad = list(differences(ours, peer, texts))
            n_bad += len(bad)
            print("\n".join([*bad[:10], f"{pre}: {len(texts)} texts, {len(bad)} differences"]))
            if pre not in PRE_TOKENIZER_ALIASES:
                found["digests"][pre] = "".join(
                    pre_vocab.digest(
                        pre_vocab.plain_ids(pre, text)
                        if pre_vocab.llamacpp_differs(pre, text)
                        else peer.encode(text, special=False, bos=False)
                    )
                    for text in pre_vocab.texts()
                )
            peer.close()
    if record:
        record.write_text(json.dumps(found, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    return 1 if n_bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--random", type=int, default=2000, metavar="N", help="random texts (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the random texts (default: %(default)s)")
    parser.add_argument("--pre", help="pre-tokenizer to use in place of the file's")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write digests of llama.cpp's ids")
    parser.add_argument("--original", type=Path, metavar="FILE", help="compare with this tokenizer.json instead")
    parser.add_argument("--every-pre", action="store_true", help="every pre-tokenizer, on a vocabulary of our own")
    options = parser.parse_args()
    if options.every_pre == bool(options.models):
        parser.error("name a model, or give --every-pre")
    if options.every_pre:
        return _every_pre(options.record)
    n_bad = 0
    records: dict[str, dict[str, list[str]]] = {}
    for name in options.models:
        path = hub.resolve(name)
        with GGUFFile(path) as file:
            ours = Tokenizer.from_gguf(file, pre=options.pre)
        words = [ours.token(i) for i in range(ours.n_vocab)]
        texts = [*hard_texts(), *random_texts(options.random, options.seed, words)]
        if options.original:
            found = list(Original(options.original).differences(ours, texts))
            n_bad += len(found)
            print("\n".join([*found[:50], f"{name}: {len(texts)} texts, {len(found)} differences from the original"]))
            continue
        peer = Peer(path, options.pre)
        found = list(differences(ours, peer, texts))
        n_bad += len(found)
        print("\n".join([*found[:50], f"{name}: {len(texts)} texts, {len(found)} differences"]))
        records[model_key(ours)] = _record(peer)
        peer.close()
    if options.record:
        options.record.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    return 1 if n_bad else 0


if __name__ == "__main__":
    sys.exit(main())
