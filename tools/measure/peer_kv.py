"""Measures what llama.cpp's quantized KV caches cost against its own f16 KV, and what ours cost, in the same run.

    python tools/measure/peer_kv.py MODEL [--text FILE...] [--ctx 4096] [--prompt 512] [--stride 8] [--types q8_0 q4_0]
                            [--ours logquant q8_0] [--copies 8] [--batch 64] [--threads 2] [--json]

Both runtimes get the same ids, prompt length and scored positions as `pylogquant eval`; each is compared with itself
with f16 KV, so that the rounding of products with packed weights is on both sides of a comparison. KL in nats.

llama.cpp runs through the C interface of llama-cpp-python, one context per type, side by side and block by block.
Flash attention is on in all of them, also for f16, because a quantized V requires it. Keys and values have the same
type in every layer, sliding ones included. For quantized types llama.cpp rotates K and V (and Q, and what attention
returns) by a Hadamard matrix where head sizes are multiples of 64. That is its default, LLAMA_ATTN_ROT_DISABLE=1 in the
environment turns it off, and the heading of the table says what its log said of this run. A token is stored in its type
before anything attends to it, within a batch too: so no part of the prompt is exact, as it is in our types, and the
size of batches does not change what is stored. The prompt comes in batches of at most 512 tokens, the other tokens in
batches of --batch; --batch 1 is decoding, at several times the cost.

--copies N asks for retrieval as `pylogquant eval --copies` does, with the same passages. Ratio = KL / KL of llama.cpp's
q4_0 on the same text. Needs llama-cpp-python and gguf, from the extras `oracle` and `test`.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from pylogquant import Model, hub
from pylogquant.errors import ArgumentError, LogQuantError
from pylogquant.evaluate import (
    PASSAGE,
    SAMPLE_TEXTS,
    CopyScore,
    Score,
    Tally,
    check_positions,
    copy_score,
    evaluate,
    evaluate_copies,
    log_softmax,
    passages,
    read_text,
    text_name,
)

PEER, OURS = "llama.cpp", "pylogquant"
BASE = "q4_0"  # the peer's type that ratios are taken to
PROMPT_BATCH = 512
CHARS_PER_TOKEN = 32  # no tokenizer takes more on real text


def peer_type(name: str) -> gguf.GGMLQuantizationType:
    """A type of cells by its lower-case name. Raises ArgumentError for what ggml does not have."""
    try:
        return gguf.GGMLQuantizationType[name.upper()]
    except KeyError:
        raise ArgumentError(f"llama.cpp has no KV type {name}; q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl are some") from None


def bits_of(name: str) -> float:
    """Bits per key or value, scales included."""
    block_len, block_bytes = gguf.GGML_QUANT_SIZES[peer_type(name)]
    return 8 * block_bytes / block_len


class Peer:
    """A model in llama.cpp, and what its log said of the contexts made from it."""

    def __init__(self, path: Path) -> None:
        import llama_cpp

        self.lib: Any = llama_cpp
        self.log: list[str] = []
        # llama.cpp keeps the function: it must live as long as this.
        self._on_log = llama_cpp.llama_log_callback(lambda _, text, __: self.log.append(text.decode(errors="replace")))
        llama_cpp.llama_log_set(self._on_log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self.handle: Any = self.lib.llama_model_load_from_file(
            os.fsencode(path), llama_cpp.llama_model_default_params()
        )
        if not self.handle:
            self.close()
            raise ArgumentError(f"llama.cpp cannot load {path}: {self.last_words()}")
        self.rotations: dict[str, str] = {}  # by type: "K and V", "K", "V" or "neither"
        self.title = f"{PEER} {llama_cpp.__version__}"

    def last_words(self) -> str:
        """The last line of the log."""
        return next((line for line in reversed("".join(self.log).splitlines()) if line.strip()), "no reason given")

    def note_rotation(self, kv: str) -> None:
        """Reads from the log what was turned in the context that was made last."""
        said = dict(re.findall(r"attn_rot_([kv]) = (\d)", "".join(self.log)))
        turned = [name.upper() for name in ("k", "v") if said.get(name) == "1"]
        self.rotations[kv] = " and ".join(turned) or "neither"

    def close(self) -> None:
        """Frees the model; its contexts must be closed by then. May be called twice."""
        handle, self.handle = self.handle, None
        if handle:
            self.lib.llama_model_free(handle)
        # The log's function goes away with this object.
        self.lib.llama_log_set(self.lib.llama_log_callback(), ctypes.c_void_p(0))

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class PeerContext:
    """One KV cache of llama.cpp, on its way through a text."""

    def __init__(self, peer: Peer, kv: str, n_ctx: int, batch: int, threads: int) -> None:
        self.kv = kv
        self.seconds = 0.0
        self.tally = Tally()
        self._lib = peer.lib
        params = self._lib.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = params.n_ubatch = PROMPT_BATCH
        params.n_outputs_max = batch  # logits of a whole prompt would take gigabytes
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = self._lib.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.type_k = params.type_v = int(peer_type(kv))
        params.swa_full = False
        peer.log.clear()
        self._handle: Any = self._lib.llama_init_from_model(peer.handle, params)
        if not self._handle:
            raise ArgumentError(f"llama.cpp makes no context with {kv} KV: {peer.last_words()}")
        peer.note_rotation(kv)
        self._n_vocab = int(self._lib.llama_vocab_n_tokens(self._lib.llama_model_get_vocab(peer.handle)))
        self._batch: Any = self._lib.llama_batch_init(PROMPT_BATCH, 0, 1)
        self._n_held = 0

    def read(self, ids: Sequence[int]) -> None:
        """Appends a prompt."""
        for start in range(0, len(ids), PROMPT_BATCH):
            self._decode(ids[start : start + PROMPT_BATCH], ())

    def feed(self, ids: Sequence[int], rows: Sequence[int]) -> npt.NDArray[np.float64]:
        """Appends a block; log-probabilities after the tokens numbered by rows (n_rows, n_vocab)."""
        start = time.perf_counter()
        self._decode(ids, rows)
        logits = np.zeros((0, self._n_vocab), dtype=np.float32)
        if rows:
            found = self._lib.llama_get_logits(self._handle)
            logits = np.array(np.ctypeslib.as_array(found, shape=(len(rows), self._n_vocab)))
        self.seconds += time.perf_counter() - start
        return log_softmax(logits) if rows else logits.astype(np.float64)

    def _decode(self, ids: Sequence[int], rows: Sequence[int]) -> None:
        batch, wanted = self._batch, set(rows)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.logits[i] = token, self._n_held + i, i in wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        status = self._lib.llama_decode(self._handle, batch)
        if status != 0:
            raise ArgumentError(f"llama.cpp with {self.kv} KV fails to decode, status {status}")
        self._n_held += len(ids)

    def score(self, text: str, n_fed: int) -> Score:
        """n_fed: tokens after the prompt. The bytes are those of the cells in use as llama.cpp would save them."""
        return self.tally.score(
            text,
            self.kv,
            bits=bits_of(self.kv),
            kv_bytes=int(self._lib.llama_state_seq_get_size(self._handle, 0)),
            tokens_per_s=n_fed / self.seconds if self.seconds else 0.0,
        )

    def close(self) -> None:
        """Frees the context; may be called twice."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._lib.llama_batch_free(self._batch)
            self._lib.llama_free(handle)


def evaluate_peer(
    peer: Peer,
    text: str,
    ids: Sequence[int],
    types: Sequence[str],
    *,
    prompt: int,
    stride: int,
    batch: int,
    threads: int,
) -> list[Score]:
    """Scores of llama.cpp's f16 and of each type, as pylogquant.evaluate.evaluate() gives ours.

    Raises ArgumentError: too few tokens, a type that llama.cpp does not take."""
    check_positions(text, len(ids), prompt, stride)
    with ExitStack() as closing:
        contexts = []
        for kv in ("f16", *types):
            contexts.append(PeerContext(peer, kv, len(ids), batch, threads))
            closing.callback(contexts[-1].close)
        for context in contexts:
            context.read(ids[:prompt])
        for start in range(prompt, len(ids) - 1, batch):
            block = ids[start : min(start + batch, len(ids) - 1)]
            rows = [i for i in range(len(block)) if (start + i - prompt) % stride == 0]
            following = [ids[start + i + 1] for i in rows]
            reference = contexts[0].feed(block, rows)
            contexts[0].tally.add(reference, reference, following)
            for context in contexts[1:]:
                context.tally.add(reference, context.feed(block, rows), following)
        return [context.score(text, len(ids) - 1 - prompt) for context in contexts]


def copies_of_peer(
    peer: Peer, text: str, ids: Sequence[int], types: Sequence[str], *, n_passages: int, batch: int, threads: int
) -> list[CopyScore]:
    """Copy scores of llama.cpp's f16 and of each type, as evaluate_copies() gives ours. Raises ArgumentError."""
    by_passage = [
        evaluate_peer(
            peer, text, [*context, *context[:PASSAGE]], types, prompt=len(context), stride=1, batch=batch,
            threads=threads,
        )
        for context in passages(text, ids, n_passages)
    ]  # fmt: skip
    return [copy_score(scores) for scores in zip(*by_passage, strict=True)]


# ---- what is printed -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One cache type of one runtime on one text, or its mean over all of several texts."""

    runtime: str
    kv: str
    text: str  # "all" in means
    kl: float  # nats
    error: float  # its standard error; of copies half the 95 % interval
    top1: float
    ratio: float | None  # kl / that of the peer's BASE on the same text; None where that was not measured
    score: Score | CopyScore | None  # None in means


def make_rows(found: Sequence[tuple[str, Score | CopyScore]]) -> list[Row]:
    """Rows in the order of runtimes and types; where there are several texts each type's mean comes last."""
    rows = []
    for runtime, kv in dict.fromkeys((runtime, score.kv) for runtime, score in found):
        mine = [score for own, score in found if (own, score.kv) == (runtime, kv)]
        rows += [_row(runtime, score) for score in mine]
        if len(mine) > 1:
            rows.append(_mean_row(rows[-len(mine) :]))
    bases = {row.text: row.kl for row in rows if (row.runtime, row.kv) == (PEER, BASE)}
    return [replace(row, ratio=row.kl / bases[row.text] if bases.get(row.text) else None) for row in rows]


def _row(runtime: str, score: Score | CopyScore) -> Row:
    error = score.kl_error if isinstance(score, Score) else score.kl_interval
    return Row(runtime, score.kv, score.text, score.kl, error, score.top1, None, score)


def _mean_row(rows: Sequence[Row]) -> Row:
    kl, top1 = (float(np.mean(values)) for values in zip(*((row.kl, row.top1) for row in rows), strict=True))
    error = float(np.sqrt(np.sum(np.square([row.error for row in rows])))) / len(rows)
    return Row(rows[0].runtime, rows[0].kv, "all", kl, error, top1, None, None)


def table(rows: Sequence[Row]) -> Iterator[str]:
    """Lines of one kind of scores: of texts, or of copies."""
    copies = any(isinstance(row.score, CopyScore) for row in rows)
    line = "{:<12}{:<16}{:<14}{:>10}{:>9}{:>9}{:>9}{:>10}{:>9}".format
    columns = ("passages", "ppl") if copies else ("bits", "p99")
    yield line("runtime", "KV type", "text", columns[0], "KL", "+-", columns[1], "same top", "ratio")
    for row in rows:
        first = second = ""
        if isinstance(row.score, CopyScore):
            first, second = str(row.score.n_passages), f"{row.score.perplexity:.2f}"
        elif row.score is not None:
            first, second = f"{row.score.bits:.2f}", f"{row.score.kl_p99:.3f}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        top1 = f"{100 * row.top1:.1f} %"
        yield line(
            row.runtime, row.kv, row.text, first, f"{row.kl:.4f}", f"{row.error:.4f}", second, top1, ratio
        ).rstrip()


# ---- the command -----------------------------------------------------------------------------------------------------


def cut_ids(model: Model, name: str, text: str, n_ctx: int) -> list[int]:
    """The text's first n_ctx ids. Raises ArgumentError where it has fewer."""
    ids = model.tokenizer.encode(text[: CHARS_PER_TOKEN * n_ctx])[:n_ctx]
    if len(ids) < n_ctx:
        raise ArgumentError(f"{name} has {len(ids)} tokens, {n_ctx} are asked for; lower --ctx, or take a longer text")
    return ids


def measure(options: argparse.Namespace) -> tuple[str, list[Row], list[Row]]:
    """A heading, the scores and the copy scores. Raises LogQuantError."""
    path = hub.resolve(options.model)
    texts = [(text_name(source), read_text(source)) for source in options.text]
    found: list[tuple[str, Score | CopyScore]] = []
    copied: list[tuple[str, Score | CopyScore]] = []
    peer_options = {"batch": options.batch, "threads": options.threads}
    cuts = {"prompt": options.prompt, "stride": options.stride}
    with Model(path, threads=options.threads) as model, Peer(path) as peer:
        for name, text in texts if options.ctx else ():
            ids = cut_ids(model, name, text, options.ctx)
            found += [(PEER, score) for score in evaluate_peer(peer, name, ids, options.types, **cuts, **peer_options)]
            if options.ours:
                found += [(OURS, score) for score in evaluate(model, name, ids, options.ours, **cuts)]
        for name, text in texts if options.copies else ():
            # As many ids as `pylogquant eval --copies` takes its passages from.
            ids = model.tokenizer.encode(text[: 4096 * options.copies * CHARS_PER_TOKEN])
            n = options.copies
            peers = copies_of_peer(peer, name, ids, options.types, n_passages=n, **peer_options)
            copied += [(PEER, score) for score in peers]
            if options.ours:
                copied += [(OURS, score) for score in evaluate_copies(model, name, ids, options.ours, n_passages=n)]
        rotated = ", ".join(f"{kv} {turned}" for kv, turned in peer.rotations.items())
        heading = f"{path.name}, {peer.title}, flash attention on, rotated: {rotated}"
    return heading, make_rows(found), make_rows(copied)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file, or a name that pylogquant knows")
    parser.add_argument("--text", nargs="+", default=SAMPLE_TEXTS, metavar="FILE")
    parser.add_argument("--ctx", type=int, default=4096, help="tokens of each text, 0 = copies only (%(default)s)")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt (default: %(default)s)")
    parser.add_argument("--stride", type=int, default=8, help="score every so many positions (default: %(default)s)")
    parser.add_argument("--types", nargs="+", default=["q8_0", "q4_0"], metavar="TYPE", help="llama.cpp's KV types")
    parser.add_argument("--ours", nargs="+", default=[], metavar="TYPE", help="our KV types (default: none)")
    parser.add_argument("--copies", type=int, default=0, metavar="N", help="passages of each text that come again")
    parser.add_argument("--batch", type=int, default=64, help="tokens at a time after the prompt, in llama.cpp")
    parser.add_argument("--threads", type=int, default=2, help="of both runtimes (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args(arguments)
    if not 1 <= options.batch <= PROMPT_BATCH:
        parser.error(f"--batch must be 1 to {PROMPT_BATCH}, not {options.batch}")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    try:
        heading, scores, copies = measure(options)
    except LogQuantError as error:
        sys.exit(f"peer_kv: {error}")
    if options.json:
        setup = {name: getattr(options, name) for name in ("ctx", "prompt", "stride", "batch", "threads")}
        parts = {"scores": [asdict(row) for row in scores], "copies": [asdict(row) for row in copies]}
        print(json.dumps({"heading": heading, **setup, **parts}))
        return
    print(heading)
    if scores:
        print("\n".join(table(scores)))
    if copies:
        print("\n".join(["", "Copies; +- is half the 95 % interval over passages", *table(copies)]))


if __name__ == "__main__":
    main()
