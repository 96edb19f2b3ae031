"""What a KV cache type costs: KL of the next-token distribution against the same runtime's f16 KV, on real text.

    python tools/kv_kl.py MODEL [--text TEXT...] [--tokens 4096] [--prompt 512] [--stride 8] [--kv NAME...]
                          [--simulator FILE] [--json FILE]

TEXT is a file (a .jsonl file's question and answer fields are joined), or one of two texts that come with Python:
stdlib:prose (the help topics of pydoc) and stdlib:code (argparse.py). The first --prompt tokens are one chunk, in which
tokens see each other in full precision; the others come in blocks that end where tokens are given up, so that the cache
is what a session that decodes one token after the other would hold. Every --stride-th position after the prompt is
scored. Printed are mean KL in nats, its standard error, the 99th percentile, the share of positions with the same most
likely token, and the bits per key or value that the cache took at the end, all overheads counted.

--simulator FILE holds figures of an independent simulation of the same recipes, {text: {kv: {"kl": nats}}}: mean KLs
over all texts must agree within 15 % or 0.002, whichever is larger, else the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from parity import log_softmax

from pylogquant import Model, Session
from pylogquant.kv import bits_per_value, kv_names

_BLOCK = 64  # tokens at a time where a cache gives nothing up


@dataclass(frozen=True)
class Cost:
    """One cache type on one text."""

    text: str
    kv: str
    kl: float  # mean, nats
    kl_error: float  # standard error of the mean
    kl_p99: float
    top1: float
    bits: float  # per key or value of the layers that see the whole context


def read_text(source: str) -> str:
    if source == "stdlib:prose":
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name] for name in sorted(topics))
    if source == "stdlib:code":
        return Path(argparse.__file__).read_text(encoding="utf-8")
    if source.endswith(".jsonl"):
        rows = [json.loads(line) for line in Path(source).read_text(encoding="utf-8").splitlines()]
        return "\n\n".join(f"{row['question']}\n{row['answer']}" for row in rows)
    return Path(source).read_text(encoding="utf-8")


def label(source: str) -> str:
    """What a text is called in tables and in the simulator's file: a file by its stem."""
    return source if source.startswith("stdlib:") else Path(source).stem


def blocks(session: Session, n_tokens: int) -> Iterator[int]:
    """Lengths of the next blocks: each ends where the session gives tokens up, or with the text."""
    window = session.kv.options().window
    while session.n_tokens < n_tokens:
        room = 3 * window - session.kv.usage().n_full if window else _BLOCK
        yield min(room, n_tokens - session.n_tokens)


def kl_of_rows(reference: npt.NDArray[np.float32], found: npt.NDArray[np.float32]) -> tuple[list[float], list[bool]]:
    """Per position: KL(reference || found), and whether the most likely token is the same."""
    p, q = log_softmax(reference), log_softmax(found)
    kl = (np.exp(p) * (p - q)).sum(axis=-1)
    return kl.tolist(), (p.argmax(axis=-1) == q.argmax(axis=-1)).tolist()


def scored_logits(session: Session, ids: Sequence[int], prompt: int, stride: int) -> Iterator[npt.NDArray[np.float32]]:
    """Feeds a text as a decoding session would see it; yields the logits of the scored positions, block by block."""
    session.eval(ids[:prompt], "none")
    for n in blocks(session, len(ids)):
        start = session.n_tokens
        logits = session.eval(ids[start : start + n], "all")
        assert logits is not None
        yield logits[[i for i in range(n) if (start + i - prompt) % stride == 0]]


def measure(
    model: Model, text: str, ids: Sequence[int], names: Sequence[str], prompt: int, stride: int
) -> Iterator[Cost]:
    """The text once with f16 KV, of which the logits of the scored positions are kept, then with each candidate."""
    info = model.info()
    n_values = 2 * info.n_global_layers * info.n_kv_heads * info.head_dim * len(ids)
    with model.session(len(ids), "f16", chunk=prompt, allow_long=True) as session:
        exact = np.concatenate(list(scored_logits(session, ids, prompt, stride)))
    for kv in names:
        kl: list[float] = []
        same: list[bool] = []
        with model.session(len(ids), kv, chunk=prompt, allow_long=True) as session:
            for logits in scored_logits(session, ids, prompt, stride):
                block_kl, block_same = kl_of_rows(exact[len(kl) : len(kl) + len(logits)], logits)
                kl += block_kl
                same += block_same
            bits = bits_per_value(session.kv.usage().global_bytes, n_values)
        yield Cost(
            text=text,
            kv=kv,
            kl=float(np.mean(kl)),
            kl_error=float(np.std(kl) / len(kl) ** 0.5),
            kl_p99=float(np.quantile(kl, 0.99)),
            top1=float(np.mean(same)),
            bits=bits,
        )


def agrees(kl: float, simulated: float) -> bool:
    return abs(kl - simulated) <= max(0.15 * simulated, 0.002)


def print_table(costs: Sequence[Cost]) -> None:
    print(f"{'kv':<16}{'text':<14}{'KL':>9}{'+-':>9}{'p99':>9}{'top-1':>9}{'bits':>7}")
    for c in costs:
        print(
            f"{c.kv:<16}{c.text:<14}{c.kl:>9.4f}{c.kl_error:>9.4f}{c.kl_p99:>9.3f}{100 * c.top1:>8.1f}%{c.bits:>7.2f}",
            flush=True,
        )


def compare_means(costs: Sequence[Cost], simulator: Path) -> bool:
    """Prints the means over all texts beside the simulator's; False if one is too far off."""
    figures = json.loads(simulator.read_text(encoding="utf-8"))
    good = True
    print(f"\n{'kv':<16}{'KL':>9}{'simulated':>11}{'ratio':>7}")
    for kv in dict.fromkeys(c.kv for c in costs):
        mine = [c for c in costs if c.kv == kv]
        if not all(kv in figures.get(c.text, {}) for c in mine):
            raise SystemExit(f"kv_kl: {simulator} has no figure for {kv} on every text")
        mean = float(np.mean([c.kl for c in mine]))
        simulated = float(np.mean([figures[c.text][kv]["kl"] for c in mine]))
        good = good and agrees(mean, simulated)
        verdict = "" if agrees(mean, simulated) else "  too far off"
        print(f"{kv:<16}{mean:>9.4f}{simulated:>11.4f}{mean / simulated:>7.2f}{verdict}")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file, or a name that pylogquant knows")
    parser.add_argument("--text", nargs="+", default=["stdlib:prose", "stdlib:code"], metavar="TEXT")
    parser.add_argument("--tokens", type=int, default=4096, help="of each text (default: %(default)s)")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the exact prompt (default: %(default)s)")
    parser.add_argument("--stride", type=int, default=8, help="score every so many positions (default: %(default)s)")
    parser.add_argument("--kv", nargs="+", metavar="NAME", help="cache types (default: all but f16)")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--simulator", type=Path, metavar="FILE", help="figures to compare with")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    options = parser.parse_args()
    if not 0 < options.prompt < options.tokens or options.stride < 1:
        raise SystemExit("kv_kl: 0 < --prompt < --tokens and --stride >= 1 must hold")
    names = options.kv or [name for name in kv_names() if name != "f16"]
    costs = []
    with Model(options.model, threads=options.threads) as model:
        for text in options.text:
            ids = model.tokenizer.encode(read_text(text)[: 32 * options.tokens])[: options.tokens]
            if len(ids) < options.tokens:
                raise SystemExit(f"kv_kl: {text} has {len(ids)} tokens, {options.tokens} are asked for")
            for cost in measure(model, label(text), ids, names, options.prompt, options.stride):
                costs.append(cost)
                print(f"{cost.text} {cost.kv}: {cost.kl:.4f}", file=sys.stderr, flush=True)
    print_table(sorted(costs, key=lambda c: names.index(c.kv)))
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(c) for c in costs], indent=2) + "\n", encoding="utf-8")
    return 0 if options.simulator is None or compare_means(costs, options.simulator) else 1


if __name__ == "__main__":
    sys.exit(main())
