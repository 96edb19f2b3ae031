"""`eval`: measures on texts what KV cache types cost on this model."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pylogquant.cli.engine import open_model
from pylogquant.cli.output import aligned, console, print_note, shown
from pylogquant.errors import ArgumentError

if TYPE_CHECKING:
    from pylogquant.cli.options import ModelSettings
    from pylogquant.evaluate import CopyScore, KeyScore, Progress, Score
    from pylogquant.model import Model


@dataclass(frozen=True)
class Measures:
    """The options of `eval`: what to measure besides plain text, and how to show it."""

    prompt: int
    stride: int
    n_passages: int = 0
    n_keys: int = 0
    by_position: bool = False
    plot: str | None = None
    as_json: bool = False


_CHARS_PER_TOKEN = 32  # more than the mean of any tokenizer on real text


@dataclass
class _Found:
    """The results so far, text by text."""

    n_ctx: int = 0
    scores: list[Score] = field(default_factory=list)
    copies: list[CopyScore] = field(default_factory=list)
    keys: list[KeyScore] = field(default_factory=list)


def evaluate(settings: ModelSettings, texts: Sequence[str], kvs: Sequence[str], measures: Measures) -> None:
    """Prints the scores of each type on each text, and with several texts their means. Ctrl-C ends the command, but
    prints the results of the texts that are done first, because they took long."""
    from pylogquant.evaluate import read_text, text_name
    from pylogquant.kv import KvOptions, kv_names
    from pylogquant.plots import check_plot_path

    if measures.plot is not None:
        check_plot_path(measures.plot)
    for kv in kvs:
        KvOptions.parse(kv)  # refuses a wrong one before a model is loaded
    sources = [(text_name(source), read_text(source)) for source in texts]
    chosen = list(kvs) or [name for name in kv_names() if name != "f16"]
    found = _Found()
    try:
        _measure(settings, sources, chosen, measures, found)
    except KeyboardInterrupt:
        if found.scores:
            print_note("stopped; these are the texts that were done by then")
            _show(settings, measures, found)
        raise
    _show(settings, measures, found)


def _measure(
    settings: ModelSettings, sources: Sequence[tuple[str, str]], kvs: Sequence[str], measures: Measures, found: _Found
) -> None:
    """Measures all texts and adds the results to found."""
    from pylogquant.evaluate import evaluate as score_text
    from pylogquant.evaluate import evaluate_copies, evaluate_keys

    prompt, stride, n_passages = measures.prompt, measures.stride, measures.n_passages
    with open_model(settings) as model:
        n_ctx = settings.session.length.tokens(model.info().n_ctx_train)
        found.n_ctx = n_ctx
        tokenized = [(name, text_tokens(model, name, text, n_ctx)) for name, text in sources]
        for name, ids in tokenized:
            with progress_bar(name) as progress:
                found.scores += score_text(model, name, ids, kvs, prompt=prompt, stride=stride, progress=progress)
        for name, text in sources if n_passages else ():
            ids = model.tokenizer.encode(text[: 4096 * n_passages * _CHARS_PER_TOKEN])
            with progress_bar(f"{name}, copies") as progress:
                found.copies += evaluate_copies(model, name, ids, kvs, n_passages=n_passages, progress=progress)
        for name, ids in tokenized if measures.n_keys else ():
            with progress_bar(f"{name}, pass keys") as progress:
                found.keys += evaluate_keys(
                    model, name, ids, kvs, n_keys=measures.n_keys, prompt=prompt, progress=progress
                )


def _show(settings: ModelSettings, measures: Measures, found: _Found) -> None:
    """Prints tables or JSON, and draws."""
    from pylogquant.evaluate import text_name
    from pylogquant.plots import plot_scores, save_figure

    prompt, n_ctx, scores = measures.prompt, found.n_ctx, found.scores
    if measures.as_json:
        setup = {"model": settings.model, "n_ctx": n_ctx, "prompt": prompt, "stride": measures.stride}
        parts: dict[str, list[Any]] = {"scores": [*scores], "copies": [*found.copies], "keys": [*found.keys]}
        print(json.dumps({**setup, **{name: [asdict(row) for row in rows] for name, rows in parts.items()}}))
    else:
        print("\n".join(_table(scores, prompt, n_ctx, by_position=measures.by_position)))
        for table in (_copy_table(found.copies) if found.copies else (), _key_table(found.keys) if found.keys else ()):
            if table:
                print("\n".join(["", *table]))
    if measures.plot is not None:  # after printing the figures, so that a full disk does not lose them
        names = list(dict.fromkeys(score.text for score in scores))
        n_texts = f"means over {len(names)} texts" if len(names) > 1 else names[0]
        title = f"What KV cache types cost: {text_name(settings.model)} at {n_ctx:,} tokens, {n_texts}"
        save_figure(plot_scores(scores, shown(title), (prompt, n_ctx)), measures.plot)


def text_tokens(model: Model, name: str, text: str, n_ctx: int) -> list[int]:
    """The first n_ctx tokens of a text. Raises ArgumentError for a text that has fewer."""
    ids = model.tokenizer.encode(text[: _CHARS_PER_TOKEN * n_ctx])[:n_ctx]
    if len(ids) < n_ctx:
        raise ArgumentError(f"{name} has {len(ids)} tokens, {n_ctx} are asked for; lower --ctx, or take a longer text")
    return ids


@contextmanager
def progress_bar(name: str) -> Iterator[Progress | None]:
    """A progress callback that draws a bar on a terminal; None elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import Progress as Bar

    with Bar(console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(shown(name), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _table(scores: Sequence[Score], prompt: int, n_ctx: int, *, by_position: bool) -> Iterator[str]:
    head: tuple[str, ...] = ("KV type", "text", "bits", "KL", "+-", "p99", "same top", "perplexity", "tokens/s")
    if by_position:
        quarter = (n_ctx - prompt) / 4
        head += tuple(f"KL from {round(prompt + i * quarter)}" for i in range(4))
    rows: list[tuple[str, ...]] = [head]
    for kv in dict.fromkeys(score.kv for score in scores):
        mine = [score for score in scores if score.kv == kv]
        rows += [_row(score) + (_quarters([score]) if by_position else ()) for score in mine]
        if len(mine) > 1:
            n = len(mine)
            kl, top1, bits = (sum(values) / n for values in zip(*((s.kl, s.top1, s.bits) for s in mine), strict=True))
            error = _of_mean([score.kl_error for score in mine])
            whole: tuple[str, ...] = (kv, "all", f"{bits:.2f}", f"{kl:.4f}", error, "", f"{100 * top1:.1f} %", "", "")
            rows.append(whole + (_quarters(mine) if by_position else ()))
    return aligned(rows, indent="")


def _of_mean(errors: Sequence[float]) -> str:
    """The standard error of a mean over texts, from the texts' standard errors."""
    return f"{sum(error**2 for error in errors) ** 0.5 / len(errors):.4f}"


def _quarters(scores: Sequence[Score]) -> tuple[str, ...]:
    return tuple(f"{sum(score.kl_quarters[i] for score in scores) / len(scores):.4f}" for i in range(4))


def _row(score: Score) -> tuple[str, ...]:
    return (
        score.kv,
        shown(score.text),
        f"{score.bits:.2f}",
        f"{score.kl:.4f}",
        f"{score.kl_error:.4f}",
        f"{score.kl_p99:.3f}",
        f"{100 * score.top1:.1f} %",
        f"{score.perplexity:.3f}",
        f"{score.tokens_per_s:.0f}",
    )


def _copy_table(copies: Sequence[CopyScore]) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [("KV type", "copied from", "passages", "KL", "95 %", "same top", "perplexity")]
    for kv in dict.fromkeys(copy.kv for copy in copies):
        mine = [copy for copy in copies if copy.kv == kv]
        rows += [
            (
                kv,
                shown(copy.text),
                str(copy.n_passages),
                f"{copy.kl:.4f}",
                f"+-{copy.kl_interval:.4f}",
                f"{100 * copy.top1:.1f} %",
                f"{copy.perplexity:.3f}",
            )
            for copy in mine
        ]
        if len(mine) > 1:
            n_passages, kl, top1 = (sum(c) for c in zip(*((c.n_passages, c.kl, c.top1) for c in mine), strict=True))
            interval = f"+-{_of_mean([copy.kl_interval for copy in mine])}"
            n = len(mine)
            rows.append((kv, "all", str(n_passages), f"{kl / n:.4f}", interval, f"{100 * top1 / n:.1f} %", ""))
    return aligned(rows, indent="")


def _key_table(keys: Sequence[KeyScore]) -> Iterator[str]:
    rows: list[tuple[str, ...]] = [("KV type", "hidden in", "keys", "found", "its tokens", "log-probability", "KL")]
    for kv in dict.fromkeys(key.kv for key in keys):
        rows += [
            (
                kv,
                shown(key.text),
                str(key.n_keys),
                f"{100 * key.found:.0f} %",
                f"{100 * key.tokens_found:.1f} %",
                f"{key.logprob:.3f}",
                f"{key.kl:.4f}",
            )
            for key in keys
            if key.kv == kv
        ]
    return aligned(rows, indent="")
