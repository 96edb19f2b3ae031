"""Measures where attention spikes and how much of it a cache's full-precision tokens cover: the observation behind
LogQuant (Chen et al. 2025), for any model.

A text is read with f16 KV. At every `stride`-th position one token is evaluated alone, so that its own attention can be
read, in every layer that sees the whole context and for every KV head (the mean over the query heads of its group). The
selections of docs/format.md are simulated alongside, with each token's accumulated attention.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pylogquant.errors import ArgumentError

if TYPE_CHECKING:
    from pylogquant.model import Model
    from pylogquant.session import Session

__all__ = ["SELECTIONS", "SINKS", "TOP", "Coverage", "Spikes", "observe", "play"]

TOP = 32  # how many tokens with the most attention of a query count as spikes
SINKS = 4
SELECTIONS = ("even", "newest", "heaviest")
Progress = Callable[[int, int], None]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Coverage:
    """The attention to one selection's full-precision tokens, on average over queries, layers and heads."""

    select: str
    window: int
    n_kept: float  # tokens in full precision, sinks and the query's own included
    top: float  # share of the TOP tokens with the most attention that are among them
    mass: float  # share of the query's attention that goes to them


@dataclass(frozen=True)
class Spikes:
    """Where the attention of a text's queries goes. A token's age is its distance to the query's token."""

    text: str
    n_queries: int
    ages: tuple[int, ...]  # first age of each bin: 0, 1, 2, 4, 8 ...; the last one ends with the text
    tokens: tuple[float, ...]  # how many tokens, sinks apart, a query sees in each bin: early ones see no old tokens
    top: tuple[float, ...]  # share of the TOP tokens, sinks apart, in each bin
    mass: tuple[float, ...]  # share of the attention, sinks apart, in each bin
    sink_top: float  # share of the TOP tokens that are sinks
    sink_mass: float  # share of the attention that sinks receive
    coverage: tuple[Coverage, ...]


def play(select: str, window: int, listed: Ints, first: int, end: int, accumulated: Floats) -> Ints:
    """Appends tokens first to end - 1 to the lists of full tokens, and removes tokens as docs/format.md says.

    listed: (n_heads, n) rising positions. accumulated: (n_heads, n_positions) accumulated attention, the appended
    tokens' chunk included. Returns the new lists."""
    while first < end:
        n = min(end - first, 3 * window - listed.shape[1])
        joining = np.broadcast_to(np.arange(first, first + n), (len(listed), n))
        listed, first = np.concatenate([listed, joining], axis=1), first + n
        if listed.shape[1] < 3 * window:
            continue
        oldest = listed[:, : 2 * window]
        got = np.take_along_axis(accumulated, oldest, axis=1)
        if select == "newest":
            kept = oldest[:, window:]
        elif select == "heaviest":
            best = np.argsort(-got, axis=1, kind="stable")[:, :window]
            kept = np.take_along_axis(oldest, np.sort(best, axis=1), axis=1)
        else:
            kept = oldest[:, ::2]
        listed = np.concatenate([kept, listed[:, 2 * window :]], axis=1)
    return listed


class _Watcher:
    """A session that reads the text, the accumulated attention of its tokens, and the simulated selections. Its heads
    are the KV heads of the layers that see the whole context, layer by layer."""

    def __init__(self, model: Model, session: Session, n: int, windows: Sequence[int]) -> None:
        kv = session.kv
        self.session = session
        n_heads = [(layer, kv.n_heads(layer)) for layer in range(model.info().n_layers)]
        layers = [(layer, n) for layer, n in n_heads if n and kv.window(layer) == 0]
        self.heads = [(layer, head) for layer, n in layers for head in range(n)]
        self.accumulated: Floats = np.zeros((len(self.heads), n))
        self.listed: dict[tuple[str, int], Ints] = {
            (select, window): np.empty((len(self.heads), 0), np.int64) for select in SELECTIONS for window in windows
        }

    def feed(self, ids: Sequence[int]) -> Floats:
        """Evaluates ids as one chunk; returns the attention of its queries, (n_heads, n_positions), summed over the
        queries and the query heads of each group."""
        first = self.session.n_tokens
        self.session.eval(ids, "none")
        given = np.stack([self.session.kv.attention(*head)[1] for head in self.heads]).astype(np.float64)
        self.accumulated[:, : given.shape[1]] += given
        end = self.session.n_tokens
        for (select, window), listed in self.listed.items():
            self.listed[select, window] = play(select, window, listed, max(first, SINKS), end, self.accumulated)
        return given


def observe(
    model: Model,
    text: str,
    ids: Sequence[int],
    *,
    prompt: int = 512,
    stride: int = 16,
    windows: Sequence[int] = (64, 128, 256),
    progress: Progress | None = None,
) -> Spikes:
    """Reads a text called `text`, tokenized as ids; its first `prompt` tokens are one chunk.

    Raises ArgumentError (a text too short, a window that is no multiple of 64, a model without layers that see the
    whole context), and what Model.session() raises."""
    if stride < 1 or prompt < 2 * TOP or len(ids) < prompt + stride:
        raise ArgumentError(
            f"{text}: {len(ids)} tokens leave nothing to observe after a prompt of {prompt} (at least {2 * TOP}), every"
            f" {stride} tokens"
        )
    if any(window < 64 or window % 64 for window in windows):
        raise ArgumentError("windows are multiples of 64 tokens")
    if model.info().n_global_layers == 0:
        raise ArgumentError("no layer of this model sees the whole context: there is nothing to select from")
    with model.session(len(ids), "f16", chunk=prompt, allow_long=True, watch_attention=True) as session:
        watcher = _Watcher(model, session, len(ids), windows)
        tally = _Tally(len(ids), windows)
        watcher.feed(ids[:prompt])
        for at in range(prompt, len(ids) - stride + 1, stride):
            last = at + stride - 1
            for start in range(at, last, prompt):
                watcher.feed(ids[start : min(start + prompt, last)])
            before = dict(watcher.listed)
            given = watcher.feed([ids[last]])  # the sum of one distribution per query head of the group
            tally.add(given / np.rint(given.sum(axis=1, keepdims=True)), before)
            if progress is not None:
                progress(last + 1 - prompt, len(ids) - prompt)
    return tally.result(text)


class _Tally:
    """Sums over queries of means over layers and heads."""

    def __init__(self, n: int, windows: Sequence[int]) -> None:
        self.edges = np.array([0, *(1 << i for i in range(n.bit_length()) if 1 << i < n)])
        self.tokens, self.top, self.mass = (np.zeros(len(self.edges)) for _ in range(3))
        self.sinks = np.zeros(2)
        self.covered = {(select, window): np.zeros(3) for select in SELECTIONS for window in windows}
        self.n_queries = 0

    def add(self, p: Floats, listed: dict[tuple[str, int], Ints]) -> None:
        """Adds one query. p: its attention (heads, n_positions), the last position its own; listed: the lists of full
        tokens before it."""
        n = p.shape[1]
        best = np.argpartition(-p, TOP, axis=1)[:, :TOP]
        spikes = np.zeros_like(p, dtype=bool)
        np.put_along_axis(spikes, best, True, axis=1)
        ages = n - 1 - np.arange(SINKS, n)
        bins = np.searchsorted(self.edges, ages, side="right") - 1
        size = len(self.edges)
        self.tokens += np.bincount(bins, minlength=size)
        self.top += np.bincount(bins, spikes[:, SINKS:].mean(axis=0), size) / TOP
        self.mass += np.bincount(bins, p[:, SINKS:].mean(axis=0), size)
        self.sinks += spikes[:, :SINKS].sum(axis=1).mean() / TOP, p[:, :SINKS].sum(axis=1).mean()
        always = [*range(SINKS), n - 1]
        for key, positions in listed.items():
            found, mass = (
                (x[:, always].sum(axis=1) + np.take_along_axis(x, positions, axis=1).sum(axis=1)).mean()
                for x in (spikes, p)
            )
            self.covered[key] += len(always) + positions.shape[1], found / TOP, mass
        self.n_queries += 1

    def result(self, text: str) -> Spikes:
        n = self.n_queries
        return Spikes(
            text=text,
            n_queries=n,
            ages=tuple(int(edge) for edge in self.edges),
            tokens=tuple((self.tokens / n).tolist()),
            top=tuple((self.top / n).tolist()),
            mass=tuple((self.mass / n).tolist()),
            sink_top=float(self.sinks[0] / n),
            sink_mass=float(self.sinks[1] / n),
            coverage=tuple(
                Coverage(select, window, *(float(x) for x in sums / n))
                for (select, window), sums in self.covered.items()
            ),
        )
