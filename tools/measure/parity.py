"""Measures how far our logits and llama.cpp's are from a float32 forward pass on the same decoded weights.

    python tools/measure/parity.py MODEL [--text FILE...] [--tokens 512] [--threads 2] [--limit 1.2]
    python tools/measure/parity.py MODEL --record tests/data/reference_NAME.json

MODEL is a path or a name that pylogquant knows. The reference is tools/models/hf_reference.py: the `transformers`
library on weights decoded by the `gguf` package. Every side gets the same ids of each text, evaluated from position 0.
It prints for each the mean of KL(reference || runtime) over all positions, in nats, and how often the most likely token
is the same. Several texts, because the effect of rounding on 512 positions varies by a tenth between them. With
--limit the exit code is 1 if our mean KL is more than that many times llama.cpp's. --record writes a summary of the
reference's logits, against which tests compare without the reference. Needs the extra `oracle`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pylogquant import Model, hub
from pylogquant.evaluate import log_softmax

FloatArray = npt.NDArray[np.float32]

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
PROSE = DATA / "prose.txt"
TEXTS = [PROSE, *(DATA / "parity" / f"{name}.txt" for name in ("document", "c_source", "python_source"))]
N_RECORDED = 8  # logits recorded per position: those of the most likely tokens


@dataclass(frozen=True)
class Distance:
    """How one runtime's distributions differ from the reference's, over all positions."""

    runtime: str
    mean_kl: float  # nats
    max_kl: float
    top1: float  # share of positions with the same most likely token
    rms_logit: float  # root mean square of the difference of logits, their mean per position taken out


class Sums:
    """A runtime's distances from the reference, text after text."""

    def __init__(self) -> None:
        self.kl: list[FloatArray] = []
        self.same: list[npt.NDArray[np.bool_]] = []
        self.squares: list[FloatArray] = []
        self.runtime = ""

    def add(self, result: tuple[str, FloatArray], reference: FloatArray) -> None:
        """Compares a runtime's (n, n_vocab) logits with the reference's, some positions at a time."""
        self.runtime, logits = result
        for start in range(0, len(reference), 64):
            rows = slice(start, start + 64)
            expected, found = log_softmax(reference[rows]), log_softmax(logits[rows])
            self.kl.append((np.exp(expected) * (expected - found)).sum(axis=-1))
            self.same.append(expected.argmax(axis=-1) == found.argmax(axis=-1))
            self.squares.append((logits[rows].astype(np.float64) - reference[rows]).var(axis=-1))

    def distance(self) -> Distance:
        kl = np.concatenate(self.kl)
        return Distance(
            runtime=self.runtime,
            mean_kl=float(kl.mean()),
            max_kl=float(kl.max()),
            top1=float(np.concatenate(self.same).mean()),
            rms_logit=float(np.sqrt(np.concatenate(self.squares).mean())),
        )


def text_ids(model: Model, text: Path, n_tokens: int) -> list[int]:
    """The first n_tokens ids of a text, BOS included where the model file asks for it."""
    ids = model.tokenizer.encode(text.read_text(encoding="utf-8"))
    if len(ids) < n_tokens:
        raise SystemExit(f"parity: {text} has {len(ids)} tokens, {n_tokens} are asked for; give a longer --text")
    return ids[:n_tokens]


def our_logits(model: Model, ids: Sequence[int], chunk: int) -> tuple[str, FloatArray]:
    """What ran, and (n_ids, n_vocab) logits."""
    with model.session(n_ctx=len(ids), kv="f16", chunk=chunk) as session:
        logits = session.eval(list(ids), logits="all")
        info = session.info()
    assert logits is not None
    return f"pylogquant, {info.kv} KV, {info.cpu_level}", logits


def peer_logits(path: Path, ids: Sequence[int], threads: int, *, flash: bool) -> tuple[str, FloatArray]:
    """llama.cpp's (n_ids, n_vocab) logits, f16 KV."""
    import llama_cpp

    peer: Any = llama_cpp.Llama(
        str(path), n_ctx=len(ids), n_batch=len(ids), n_threads=threads, n_threads_batch=threads,
        logits_all=True, flash_attn=flash, verbose=False,
    )  # fmt: skip
    peer.eval(list(ids))
    logits = np.array(peer.scores[: len(ids)], dtype=np.float32)
    peer.close()
    return f"llama.cpp {llama_cpp.__version__}, f16 KV, flash attention {'on' if flash else 'off'}", logits


def evaluate_references(path: Path, texts: Sequence[Path], n_tokens: int) -> Iterator[tuple[list[int], FloatArray]]:
    """Of each text the first ids, and the reference's (n_tokens, n_vocab) logits of them."""
    sys.path.insert(0, str(ROOT / "tools" / "models"))
    import hf_reference

    reference = hf_reference.load(path)
    with Model(path) as model:
        for text in texts:
            ids = text_ids(model, text, n_tokens)
            yield ids, hf_reference.logits(reference, ids)


def compare(
    path: Path, texts: Sequence[Path] = TEXTS, n_tokens: int = 512, *, threads: int, chunk: int = 512
) -> list[Distance]:
    """Distances from the reference: ours, then llama.cpp's without and with flash attention."""
    ours, plain, flash = Sums(), Sums(), Sums()
    for ids, reference in evaluate_references(path, texts, n_tokens):
        with Model(path, threads=threads) as model:
            ours.add(our_logits(model, ids, chunk), reference)
        plain.add(peer_logits(path, ids, threads, flash=False), reference)
        flash.add(peer_logits(path, ids, threads, flash=True), reference)
    return [sums.distance() for sums in (ours, plain, flash)]


def sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def summary(path: Path, text: Path, ids: Sequence[int], reference: FloatArray) -> dict[str, Any]:
    """What is kept of the reference: per position the likeliest tokens with their logits, and the log of the sum."""
    import gguf
    import torch
    import transformers

    order = np.argsort(-reference, axis=-1, kind="stable")[:, :N_RECORDED]
    shift = reference.max(axis=-1, keepdims=True).astype(np.float64)
    logsumexp = np.log(np.exp(reference.astype(np.float64) - shift).sum(axis=-1)) + shift[:, 0]
    return {
        "made_by": f"tools/measure/parity.py --record, {len(ids)} tokens of {text.name}",
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "gguf": getattr(gguf, "__version__", "unknown"),
        },
        "model_sha256": sha256_of_file(path),
        "text_sha256": sha256_of_file(text),
        "ids": list(ids),
        "top_tokens": order.tolist(),
        "top_logits": [[round(float(x), 5) for x in row] for row in np.take_along_axis(reference, order, axis=-1)],
        "logsumexp": [round(float(x), 5) for x in logsumexp],
    }


def write_record(record: Path, content: dict[str, Any]) -> None:
    """One key a line: long arrays stay diffable as whole lines."""
    lines = ",\n".join(f" {json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    record.write_text("{\n" + lines + "\n}\n", encoding="utf-8")


def print_table(distances: Sequence[Distance]) -> None:
    print(f"{'runtime':54} {'mean KL':>10} {'max KL':>9} {'top-1':>8} {'rms logit':>10}")
    for row in distances:
        print(f"{row.runtime:54} {row.mean_kl:10.6f} {row.max_kl:9.4f} {row.top1:8.2%} {row.rms_logit:10.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares logits with a float32 forward pass: ours, llama.cpp's.")
    parser.add_argument("model", help="path of a GGUF file, or a name pylogquant knows")
    parser.add_argument(
        "--text", type=Path, nargs="+", default=TEXTS, help="texts to evaluate (default: four in tests/data)"
    )
    parser.add_argument("--tokens", type=int, default=512, help="how many tokens of each (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of both runtimes (default: %(default)s)")
    parser.add_argument("--chunk", type=int, default=512, help="tokens evaluated at once, ours (default: %(default)s)")
    parser.add_argument("--limit", type=float, help="exit 1 if our mean KL is above this many times llama.cpp's")
    parser.add_argument("--record", type=Path, metavar="FILE", help="write the reference's summary and stop")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()

    path = hub.resolve(options.model)
    if options.record is not None:
        [(ids, reference)] = evaluate_references(path, options.text[:1], options.tokens)
        write_record(options.record, summary(path, options.text[0], ids, reference))
        print(f"recorded {len(ids)} positions in {options.record}")
        return
    ours, *peers = compare(path, options.text, options.tokens, threads=options.threads, chunk=options.chunk)
    ratios = [ours.mean_kl / peer.mean_kl for peer in peers]
    if options.json:
        print(json.dumps({"model": path.name, "rows": [asdict(row) for row in (ours, *peers)], "ratios": ratios}))
    else:
        texts = ", ".join(text.name for text in options.text)
        print(f"{path.name}, {options.tokens} tokens each of {texts}; KL(float32 reference || runtime) in nats")
        print_table([ours, *peers])
        print(f"ratio of mean KL, ours / llama.cpp: {ratios[0]:.3f} (flash off), {ratios[1]:.3f} (flash on)")
    # The smaller of llama.cpp's two figures is the bar.
    if options.limit is not None and max(ratios) > options.limit:
        sys.exit(f"parity: our mean KL is {max(ratios):.3f} times llama.cpp's, above the limit {options.limit}")


if __name__ == "__main__":
    main()
