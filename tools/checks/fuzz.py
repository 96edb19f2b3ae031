"""Feeds damaged vocabularies and chat templates to the Python code that reads them. The C core has its own targets.

    python tools/checks/fuzz.py tokenizer|template [--seconds 60] [--seed 1]

Every input has to end in a result or in one of the library's own errors with one line of text, within its limits of
time and memory. Otherwise the input is written to a file that is named, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

import gguf
from make_tiny_gguf import make_tiny

from pylogquant import bpe
from pylogquant.errors import LogQuantError
from pylogquant.gguf import GGUFFile
from pylogquant.pretokenizers import PRE_TOKENIZERS
from pylogquant.sandbox_budget import MAX_SECONDS
from pylogquant.templates import BUILTIN_TEMPLATES, ChatTemplate, Message
from pylogquant.tokenizer import Tokenizer

MAX_MEMORY = 4 << 30
TEXTS = ("", "Hello, wörld!\n\n  3.14 <|im_end|>", "\x00\u2581 ﷽ 🏳️‍🌈\r\n\t", "a" * 300)
INPUTS = [(text, special) for text in TEXTS for special in (False, True)]


class Found(Exception):
    """An input that did what it must not."""


# ---- vocabularies ----------------------------------------------------------------------------------------------------


def vocabulary_seeds(folder: Path) -> list[bytes]:
    """The metadata of files that hold each kind of vocabulary; tensors do not matter here."""
    seeds = []
    for vocab in ("bpe", "spm"):
        path = folder / f"{vocab}.gguf"
        make_tiny(path, n_layers=1, n_embd=8, n_heads=1, n_kv_heads=1, vocab=vocab)
        reader = gguf.GGUFReader(path)
        header = bytearray(path.read_bytes()[: reader.tensors[0].field.offset])
        header[8:16] = bytes(8)  # no tensors
        seeds.append(bytes(header))
    return seeds


def damage_bytes(rng: random.Random, data: bytes) -> bytes:
    """A few changes: bits, edge values over numbers, bytes moved, stretches repeated, other names in place of words."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, width = rng.randrange(24, len(out) - 8), 1 << rng.randrange(4)
        kind = rng.randrange(7)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            edge = rng.choice((0, 1, 2, 255, 65536, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 0x7FC00000, 0xFF800000))
            out[at : at + width] = edge.to_bytes(8, "little")[:width]
        elif kind == 2:
            out[at] = (out[at] + rng.randint(-3, 3)) & 255
        elif kind == 3:
            other = rng.randrange(24, len(out) - 8)
            out[at : at + width], out[other : other + width] = out[other : other + width], out[at : at + width]
        elif kind == 4:
            word = rng.choice((b"tokenizer.ggml.", b"default", b"gpt2", b"llama", b"<|im_end|>", b"<0x41>"))
            found = out.find(word)
            if found >= 0:
                out[found + rng.randrange(len(word))] = rng.randrange(32, 127)
        elif kind == 5:
            pre = rng.choice(sorted(PRE_TOKENIZERS)).encode()[:7].ljust(7, b"-")
            out = bytearray(bytes(out).replace(b"default", pre, 1))
        else:
            length = rng.randrange(1, 64)
            out[at : at + length] = bytes(rng.randrange(256) for _ in range(length))
    return bytes(out)


def fuzz_tokenizer(rng: random.Random, folder: Path) -> Callable[[], tuple[bytes, Callable[[], None]]]:
    seeds = vocabulary_seeds(folder)
    path = folder / "input.gguf"

    def make() -> tuple[bytes, Callable[[], None]]:
        data = damage_bytes(rng, rng.choice(seeds))
        path.write_bytes(data)

        def run() -> None:
            with GGUFFile(path) as file:
                pre = rng.choice((None, "default", "llama-bpe"))
                encoded = []
                for bpe._PART_TOKENS in (-(10**12), 10**12):  # always a part of the vocabulary, always the whole
                    tokenizer = Tokenizer.from_gguf(file, pre=pre)
                    encoded.append([tokenizer.encode(text, special=special) for text, special in INPUTS])
                for (text, _), ids, others in zip(INPUTS, *encoded, strict=True):
                    if ids != others:
                        raise Found(f"{text!r} has other ids with a part of the vocabulary than with the whole")
                    if any(not 0 <= i < tokenizer.n_vocab for i in ids):
                        raise Found(f"{text!r} has ids outside of the vocabulary")
                    tokenizer.decode(ids)
                tokenizer.decode([rng.randrange(tokenizer.n_vocab) for _ in range(50)])

        return data, run

    return make


# ---- templates -------------------------------------------------------------------------------------------------------

PIECES = (
    "{% for message in messages %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}",
    "{% endfor %}",
    "{% if message.content %}",
    "{% elif loop.first %}",
    "{% else %}",
    "{% endif %}",
    "{% set ns = namespace(x='a') %}",
    "{% set ns.x = ns.x ~ ns.x %}",
    "{% macro m(a, b=3) %}",
    "{% endmacro %}",
    "{% call m(1) %}{% endcall %}",
    "{% generation %}",
    "{% endgeneration %}",
    "{% break %}",
    "{%- raw -%}{{ x }}{% endraw %}",
    "{{ message['content'] | trim }}",
    "{{ message.role.upper() * 3 }}",
    "{{ messages[-1].content[1:-1] | tojson(indent=2) }}",
    "{{ 'a' * 99999999 }}",
    "{{ 9 ** 9 ** 9 }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '{:>999999999}'.format('x') }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ messages | map(attribute='content') | join(', ') }}",
    "{{ ns.x.replace('a', ns.x * 100) }}",
    "{{ raise_exception('no') }}",
    "{{ strftime_now('%Y-%m-%d %999Y') }}",
    "{{ bos_token }}{{ eos_token }}",
    "{{ message.content.split('</think>')[-1].lstrip('\\n') }}",
    "<|im_start|>",
    "{{ cycler('a', 'b').next() }}",
    "{{ lipsum(n=1000) }}",
    "{{ self }}{{ loop }}{{ caller }}",
    "{{ (messages * 999999) | length }}",
    "{% include 'x' %}{% import 'y' as y %}{% extends 'z' %}",
)
MESSAGES: tuple[tuple[Message, ...], ...] = (
    ({"role": "user", "content": "Hi <|im_end|> </think>"},),
    (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "x" * 200},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "{{ 7 * 7 }}"},
    ),
)


def damage_template(rng: random.Random) -> str:
    text = rng.choice((*BUILTIN_TEMPLATES.values(), "".join(rng.choice(PIECES) for _ in range(rng.randint(1, 12)))))
    for _ in range(rng.randint(0, 4)):
        at = rng.randrange(len(text) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            text = text[:at] + rng.choice(PIECES) + text[at:]
        elif kind == 1:
            text = text[:at] + text[at + rng.randrange(1, 20) :]
        elif kind == 2:
            end = min(len(text), at + rng.randrange(1, 60))
            text = text[:at] + text[at:end] * rng.randint(2, 4) + text[end:]
        else:
            text = (
                text[:at]
                + rng.choice(("{{", "}}", "{%", "%}", "'", "\\", "\x00", "\ud800", "\U0001d54f", "(" * 50))
                + text[at:]
            )
    return text


def own_ends(source: str, messages: Sequence[Message], add_generation_prompt: bool) -> int:
    """How often the template itself, not a message, is taken to write <|im_end|>."""
    control = ("<|im_start|>", "<|im_end|>", "<s>", "</s>")
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>", control_tokens=control)
    segments = template.render(messages, add_generation_prompt=add_generation_prompt)
    return sum(segment.text.count("<|im_end|>") for segment in segments if not segment.plain)


def fuzz_template(rng: random.Random, _folder: Path) -> Callable[[], tuple[bytes, Callable[[], None]]]:
    def make() -> tuple[bytes, Callable[[], None]]:
        source = damage_template(rng)
        messages = rng.choice(MESSAGES)
        add = rng.random() < 0.5

        def run() -> None:
            # Whatever a template pieces together, it does so without the token in a message, too.
            harmless: list[Message] = [
                {"role": m["role"], "content": m["content"].replace("<|im_end|>", "<|qq_end|>")} for m in messages
            ]
            if own_ends(source, messages, add) > own_ends(source, harmless, add):
                raise Found("a message's text was taken for the template's own")

        return source.encode(errors="surrogatepass"), run

    return make


# ---- driving ---------------------------------------------------------------------------------------------------------


def limit_memory() -> None:
    try:
        import resource
    except ImportError:  # no such limits on this system
        return
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def attempt(run: Callable[[], None]) -> str:
    """How it ended: an empty text for a result, "refused" for an error as it should be. Raises Found."""
    start = time.monotonic()
    try:
        run()
        outcome = ""
    except LogQuantError as error:
        if "\n" in str(error) or len(str(error)) < 5:
            raise Found(f"a poor text: {error!r}") from error
        outcome = "refused"
    except (Exception, RecursionError) as error:
        if isinstance(error, Found):
            raise
        raise Found(f"{type(error).__name__}: {error}") from error
    seconds = time.monotonic() - start
    if seconds > MAX_SECONDS + 5:
        raise Found(f"it took {seconds:.0f} s")
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=("tokenizer", "template"))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    limit_memory()
    rng = random.Random(options.seed)
    counts = {"": 0, "refused": 0}
    with tempfile.TemporaryDirectory() as folder:
        make = {"tokenizer": fuzz_tokenizer, "template": fuzz_template}[options.target](rng, Path(folder))
        end = time.monotonic() + options.seconds
        while time.monotonic() < end:
            data, run = make()
            try:
                counts[attempt(run)] += 1
            except Found as found:
                kept = Path(tempfile.gettempdir()) / f"fuzz-{options.target}-{options.seed}-{sum(counts.values())}"
                kept.write_bytes(data)
                print(f"fuzz {options.target}: {found}; the input is in {kept}", file=sys.stderr)
                return 1
    total = sum(counts.values())
    print(f"fuzz {options.target}: {total} inputs, {counts['refused']} refused, seed {options.seed}")
    # Neither all nor none, or the damage does not reach what it is meant for.
    return 0 if total * 0.02 < counts["refused"] < total * 0.98 else 1


if __name__ == "__main__":
    sys.exit(main())
