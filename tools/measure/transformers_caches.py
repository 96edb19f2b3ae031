"""Measures what caches cost in transformers: divergence from a full-precision cache, memory and speed, as a table.

    python tools/measure/transformers_caches.py MODEL [--text TEXT] [--ctx 4096] [--prompt 512] [--stride 8]
        [--decode 64] [--caches NAME...] [--threads N] [--json]

MODEL: a GGUF file, or a name that pylogquant knows; transformers' own GGUF loader makes a float32 model of it.
KL: of next-token distributions from those with DynamicCache, every `stride`-th token after a prompt of one chunk, the
rest in blocks that end where a cache gives tokens up, as in `pylogquant eval`. Bytes: of the tensors that a cache
holds after ctx tokens, all layers. Peak: how much more memory the process has at most, while it decodes behind ctx
tokens, than before the prompt. Each cache is timed in a process of its own. Needs the extra `transformers`; rows of
transformers' own QuantizedCache need optimum-quanto.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import inspect
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, QuantizedCache
from transformers.utils import logging

from pylogquant import hub
from pylogquant.evaluate import Tally, log_softmax, read_text
from pylogquant.transformers import H2OCache, KiViCache, LogQuantCache, LogQuantConfig, StreamingCache

BLOCK = 64  # tokens at a time when nothing is given up before


@dataclass(frozen=True)
class Kind:
    """A cache, and the attention that reads it."""

    attention: str
    make: Callable[[Any], Any]
    """of the model's config"""


def logquant(preset: str, **settings: Any) -> Callable[[Any], Any]:
    kind = {"kivi": KiViCache, "h2o": H2OCache, "streaming": StreamingCache}.get(preset, LogQuantCache)
    return lambda config: kind(config, LogQuantConfig(preset, **settings))


KINDS: dict[str, Kind] = {
    "DynamicCache": Kind("sdpa", lambda config: DynamicCache(config=config)),
    "QuantizedCache, 4 bits": Kind("sdpa", lambda config: QuantizedCache("quanto", config, nbits=4)),
    "QuantizedCache, 2 bits": Kind("sdpa", lambda config: QuantizedCache("quanto", config, nbits=2)),
    "KiViCache": Kind("logquant", logquant("kivi")),
    "H2OCache": Kind("logquant", logquant("h2o")),
    "StreamingCache": Kind("logquant", logquant("streaming")),
    "LogQuantCache logquant-paper": Kind("logquant", logquant("logquant-paper")),
    "LogQuantCache logquant-small": Kind("logquant", logquant("logquant-small")),
    "LogQuantCache logquant": Kind("logquant", logquant("logquant")),
    "LogQuantCache logquant-hq": Kind("logquant", logquant("logquant-hq")),
    "LogQuantCache logquant, select=even": Kind("logquant", logquant("logquant", select="even")),
    "the same, dequantized for sdpa": Kind("sdpa", logquant("logquant", select="even")),
}


@dataclass
class Row:
    """One line of the table; None where it was not measured."""

    cache: str
    attention: str
    kl: float | None = None
    top1: float | None = None
    cache_bytes: int | None = None
    bits: float | None = None
    """per key or value element"""
    peak_bytes: int | None = None
    tokens_per_s: float | None = None


def load_model(path: Path) -> Any:
    """A float32 model of a GGUF file, by transformers' own loader."""
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    return model.eval()


def load_ids(path: Path, text: str, n: int) -> list[int]:
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    ids = list(tokenizer(text[: 32 * n])["input_ids"])[:n]
    if len(ids) < n:
        raise SystemExit(f"transformers_caches: the text has {len(ids)} tokens, fewer than {n}; take a longer one")
    return ids


def step(model: Any, ids: Sequence[int], cache: Any, n_logits: int) -> torch.Tensor:
    """Feeds tokens; float32 (n_logits, n_vocab) of the last of them."""
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # transformers 4
    with torch.inference_mode():
        out = model(torch.tensor([list(ids)]), **{name: cache}, use_cache=True, logits_to_keep=max(n_logits, 1))
    return out.logits[0].float()


def room(cache: Any) -> int:
    """Tokens until the next are given up, at most a block."""
    if not isinstance(cache, LogQuantCache):
        return BLOCK
    layer = cache.logquant_layers()[0]
    counts = layer.groups[0].store.counts
    return min(BLOCK, 3 * layer.recipe.window - counts.n_overlay - counts.n_open)


def blocks(model: Any, ids: Sequence[int], cache: Any, prompt: int) -> Iterator[tuple[int, torch.Tensor]]:
    """Logits of all tokens after the prompt but the last: (position of the first, (n, n_vocab))."""
    step(model, ids[:prompt], cache, 1)
    start = prompt
    while start < len(ids) - 1:
        n = min(room(cache), len(ids) - 1 - start)
        yield start, step(model, ids[start : start + n], cache, n)
        start += n


def scored(model: Any, ids: Sequence[int], cache: Any, prompt: int, stride: int) -> npt.NDArray[np.float32]:
    """(scored positions, n_vocab) log-probabilities after every stride-th token behind the prompt."""
    rows = []
    for start, logits in blocks(model, ids, cache, prompt):
        wanted = [i for i in range(len(logits)) if (start + i - prompt) % stride == 0]
        if wanted:
            rows.append(log_softmax(logits[wanted].numpy()).astype(np.float32))
    return np.concatenate(rows)


def tensors_of(thing: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """Every tensor that an object holds, quantized ones by their parts."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, torch.Tensor) and type(thing) is torch.Tensor:
        yield thing
    elif isinstance(thing, dict):
        for value in thing.values():
            yield from tensors_of(value, seen)
    elif isinstance(thing, (list, tuple)):
        for value in thing:
            yield from tensors_of(value, seen)
    elif type(thing).__module__.startswith(("transformers.cache", "optimum", "pylogquant")):
        yield from tensors_of(vars(thing), seen)


def held_bytes(cache: Any) -> int:
    storages = {tensor.untyped_storage().data_ptr(): tensor for tensor in tensors_of(cache.layers, set())}
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def status_kib(word: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith(word)).split()[1])


def n_values(model: Any, n_tokens: int) -> int:
    """Elements of keys and values of so many tokens."""
    config = model.config.get_text_config(decoder=True)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * n_tokens * config.num_hidden_layers * config.num_key_value_heads * head_dim)


def measure(path: Path, name: str, text: str, n_ctx: int, n_decode: int, threads: int) -> Row:
    """Bytes, peak and speed, in this process."""
    torch.set_num_threads(threads or torch.get_num_threads())
    model, ids, kind = load_model(path), load_ids(path, read_text(text), n_ctx + n_decode), KINDS[name]
    model.set_attn_implementation(kind.attention)
    step(model, ids[:64], kind.make(model.config), 1)  # what is made once: threads, kernels
    trim()
    before, cache = status_kib("VmRSS"), kind.make(model.config)
    for start in range(0, n_ctx, 512):
        step(model, ids[start : min(start + 512, n_ctx)], cache, 1)
    trim()
    n_bytes = held_bytes(cache)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    began = time.perf_counter()
    for i in range(n_decode):
        step(model, ids[n_ctx + i : n_ctx + i + 1], cache, 1)
    seconds = time.perf_counter() - began
    peak = (status_kib("VmHWM") - before) * 1024
    return Row(
        name,
        kind.attention,
        cache_bytes=n_bytes,
        bits=8 * n_bytes / n_values(model, n_ctx),
        peak_bytes=peak,
        tokens_per_s=n_decode / seconds,
    )


def trim() -> None:
    """Gives free memory back, so that what a process has is what it needs."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def in_a_process(arguments: Sequence[str]) -> Row:
    command = [sys.executable, "-W", "ignore", __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"transformers_caches: {' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def divergences(path: Path, names: Sequence[str], text: str, n_ctx: int, prompt: int, stride: int) -> dict[str, Row]:
    """KL and agreement of each cache, against DynamicCache."""
    model, ids = load_model(path), load_ids(path, read_text(text), n_ctx)
    model.set_attn_implementation("sdpa")
    reference = scored(model, ids, DynamicCache(config=model.config), prompt, stride)
    following = [ids[i + 1] for i in range(prompt, n_ctx - 1, stride)]
    rows = {}
    for name in names:
        model.set_attn_implementation(KINDS[name].attention)
        cache = KINDS[name].make(model.config)
        found = scored(model, ids, cache, prompt, stride)
        tally = Tally()
        tally.add(reference.astype(np.float64), found.astype(np.float64), following)
        row = Row(name, KINDS[name].attention, float(np.mean(tally.kl)), float(np.mean(tally.same)))
        row.cache_bytes = held_bytes(cache)
        row.bits = 8 * row.cache_bytes / n_values(model, n_ctx - 1)
        rows[name] = row
        print(f"{name}: KL {row.kl:.4f}, {row.bits:.2f} bits", file=sys.stderr, flush=True)
    return rows


def table(rows: Sequence[Row]) -> str:
    lines = ["| cache | attention | KL | same top token | MiB held | bits per value | peak MiB | tokens/s |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [row.cache, row.attention]
        cells.append("" if row.kl is None else f"{row.kl:.4f}")
        cells.append("" if row.top1 is None else f"{row.top1:.3f}")
        cells.append("" if row.cache_bytes is None else f"{row.cache_bytes / 2**20:.1f}")
        cells.append("" if row.bits is None else f"{row.bits:.2f}")
        cells.append("" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.0f}")
        cells.append("" if row.tokens_per_s is None else f"{row.tokens_per_s:.1f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file, or a name that pylogquant knows")
    parser.add_argument("--text", default="stdlib:prose", help="a file, stdlib:prose or stdlib:code")
    parser.add_argument("--ctx", type=int, default=4096, help="tokens (default: %(default)s)")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the exact prompt (default: %(default)s)")
    parser.add_argument("--stride", type=int, default=8, help="score every so many positions (default: %(default)s)")
    parser.add_argument("--decode", type=int, default=64, help="tokens timed behind ctx; 0 = no timing")
    parser.add_argument("--caches", nargs="+", choices=list(KINDS), default=list(KINDS), metavar="NAME")
    parser.add_argument("--threads", type=int, default=0, help="0 = torch's default")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", choices=list(KINDS), help=argparse.SUPPRESS)  # in a process of its own
    options = parser.parse_args()
    path = Path(options.model) if options.model.endswith(".gguf") else hub.pull(options.model)
    if options.measure:
        row = measure(path, options.measure, options.text, options.ctx, options.decode, options.threads)
        print(json.dumps(asdict(row)))
        return
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = divergences(path, options.caches, options.text, options.ctx, options.prompt, options.stride)
    if options.decode:
        common = [str(path), "--text", options.text, "--ctx", str(options.ctx), "--decode", str(options.decode)]
        for name in options.caches:
            timed = in_a_process([*common, "--threads", str(options.threads), "--measure", name])
            timed.kl, timed.top1 = rows[name].kl, rows[name].top1
            rows[name] = timed
            print(f"{name}: {timed.tokens_per_s:.1f} tokens/s", file=sys.stderr, flush=True)
    found = list(rows.values())
    print(json.dumps([asdict(row) for row in found], indent=1) if options.json else table(found))


if __name__ == "__main__":
    main()
