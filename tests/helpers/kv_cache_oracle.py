"""A whole LogQuant cache in NumPy: which tokens stay, what attention reads, and its output in float64.

Plays one layer as docs/format.md says, chunk by chunk; pages and cells are kv_oracle's. compare() tells what differs
from the core's cache, and random_tokens() makes something to feed both with.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from kv_oracle import (
    F32,
    F64,
    PAGE,
    Bytes,
    Format,
    Lines,
    Recipe,
    as_cell,
    as_half,
    decode_page,
    encode_page,
    hadamard,
    learn_order,
    lines_of,
    rounded,
)

if TYPE_CHECKING:
    from pylogquant.kv import KvView

__all__ = ["Cache", "compare", "hard_values", "random_tokens", "relative_errors"]

Ints = npt.NDArray[np.int64]

# What accumulated attention may differ by, relative: at some SIMD levels many queries meet cells as numbers of 16 bits.
ACCUMULATED = 1e-3


# ---- the cache -------------------------------------------------------------------------------------------------------


class Cache:
    """One layer's cache and its attention. Arrays are by KV head, then position."""

    def __init__(
        self,
        recipe: Recipe,
        n_heads: int,
        n_kv_heads: int,
        head_dim: int,
        n_ctx: int,
        *,
        scale: float = 0.0,
        holds: int = 0,
    ) -> None:
        self.recipe = recipe
        self.selects, self.has_pages = recipe.window > 0, bool(recipe.tiers)
        self.form = Format(recipe, head_dim) if self.has_pages else None
        self.holds = holds or n_ctx  # beyond it the oldest pages go
        self.rounds = os.environ.get("LQ_CPU") != "scalar"  # levels above it multiply codes with rounded weights
        self.first_page = 0
        self.n_tokens = 0
        self.n_ties = 0  # choices that attention could not decide, decided as the core did
        self.n_given_up = 0
        self.listed: Ints = np.empty((n_kv_heads, 0), np.int64)  # positions of full tokens; sinks are not among them
        self.accumulated: F64 = np.zeros((n_kv_heads, n_ctx))
        self.gone = np.zeros((n_kv_heads, n_ctx), bool)  # dropped
        self.order: npt.NDArray[np.uint16] | None = None
        self.records: list[Bytes] = []  # of each page: (n_kv_heads, record_bytes)
        self.lines: list[Lines] = []  # and what its codes are multiplied with
        self._group = n_heads // n_kv_heads
        self._scale = scale or 1.0 / np.sqrt(head_dim)
        shape = (n_kv_heads, n_ctx, head_dim)
        self.k, self.v = np.zeros(shape, np.float32), np.zeros(shape, np.float32)  # f16 values, v rotated
        self._k_coded, self._v_coded = np.zeros(shape), np.zeros(shape)
        self._k_seen, self._v_seen = np.zeros(shape), np.zeros(shape)  # what attention reads

    def attend(self, q: F32, k: F32, v: F32, chosen: Callable[[int], npt.NDArray[np.integer]] | None = None) -> F64:
        """One chunk: q (n, n_heads, head_dim), k, v (n, n_kv_heads, head_dim); returns the queries' output.

        chosen: positions of a head's full tokens that the core has after this chunk; they decide where two tokens
        have accumulated as good as the same attention.
        """
        start, end = self.n_tokens, self.n_tokens + len(q)
        self._make_room(len(q))
        if self.recipe.rotate_keys:
            q, k = hadamard(q), hadamard(k)
        k, v = k.swapaxes(0, 1), (hadamard(v) if self.recipe.rotate else v).swapaxes(0, 1)
        self.k[:, start:end], self.v[:, start:end] = as_half(k), as_half(v)
        # Types of cells store a token for good before anyone reads it; quantized ones are made from the f32 values.
        kind = "f16" if self.selects else self.recipe.overlay
        self._k_seen[:, start:end], self._v_seen[:, start:end] = as_cell(k, kind), as_cell(v, kind)
        self.n_tokens = end
        out = self._attention(q, start)
        self._settle(start, chosen)
        return out

    def _make_room(self, n: int) -> None:
        too_many = self.n_tokens + n - PAGE * self.first_page - self.holds
        if too_many <= 0 or (self.selects and not self.has_pages):
            return
        self.first_page += -(-too_many // PAGE)
        self._forget_pages()

    def _forget_pages(self) -> None:
        """Tokens of dropped pages that are not in the overlay; types of cells keep 4 sinks."""
        sinks = self.recipe.sinks if self.selects else 4
        gone = np.zeros_like(self.gone)
        gone[:, sinks : sinks + PAGE * self.first_page] = True
        if self.selects:
            np.put_along_axis(gone, self.listed, False, axis=1)
        self.gone = gone

    def _attention(self, q: F32, start: int) -> F64:
        n, n_heads, head_dim = q.shape
        n_kv_heads, end = n_heads // self._group, start + n
        by_head = q.astype(np.float64).reshape(n, n_kv_heads, self._group, head_dim).transpose(1, 2, 0, 3)
        rows = by_head.reshape(n_kv_heads, -1, head_dim)
        scores = rows @ self._k_seen[:, :end].swapaxes(1, 2) * self._scale
        if self.rounds:
            self._round_scores(scores, rows)
        scores = scores.reshape(n_kv_heads, self._group, n, end)
        scores[..., np.arange(end) > np.arange(start, end)[:, None]] = -np.inf
        scores = np.where(self.gone[:, None, None, :end], -np.inf, scores)
        p = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        self.accumulated[:, :end] += p.sum(axis=(1, 2))
        out: F64 = p.reshape(n_kv_heads, -1, end) @ self._v_seen[:, :end]
        if self.rounds:
            self._round_values(out, p.reshape(n_kv_heads, -1, end))
        if self.recipe.rotate:
            out = hadamard(out)
        by_token: F64 = out.reshape(n_kv_heads, self._group, n, head_dim).transpose(2, 0, 1, 3).reshape(q.shape)
        return by_token

    def _packed_pages(self) -> Iterator[tuple[slice, F64, Lines]]:
        """The place, tokens read from codes (n_kv_heads, 64) as 1, others as 0, and lines of each page."""
        packed = np.ones(self.k.shape[:2])
        np.put_along_axis(packed, self.listed, 0, axis=1)
        for page, lines in enumerate(self.lines[self.first_page :], self.first_page):
            here = self._page_slice(page)
            yield here, packed[:, here], lines

    def _round_scores(self, scores: F64, rows: F64) -> None:
        """Of packed tokens, with queries that were rounded after the page's steps were folded in, tier by tier."""
        if not self.records:
            return
        assert self.form is not None
        for here, packed, lines in self._packed_pages():
            off = np.zeros_like(rows)
            for tier in range(len(self.form.tiers)):
                step = np.where(lines.key_tier == tier, lines.key_step, 0)[:, None]
                off += np.where(step > 0, rounded(rows, step) - rows, 0)
            levels = self._k_coded[:, here] - lines.key_middle[:, None]
            scores[:, :, here] += off @ levels.swapaxes(1, 2) * packed[:, None] * self._scale

    def _round_values(self, out: F64, p: F64) -> None:
        """What is added up from codes, with probabilities that were rounded after the page's steps were folded in."""
        if not self.records:
            return
        assert self.form is not None
        for here, packed, lines in self._packed_pages():
            weights = p[:, :, here] * packed[:, None]
            for group, (start, end) in enumerate(self.form.groups):
                off = rounded(weights, lines.value_step[:, group][:, None]) - weights
                levels = self._v_coded[:, here, start:end] - lines.value_middle[:, group][..., None]
                out[:, :, start:end] += off @ levels

    def _settle(self, start: int, chosen: Callable[[int], npt.NDArray[np.integer]] | None) -> None:
        """The end of a chunk that began at start."""
        recipe, given_up = self.recipe, False
        for position in range(max(start, recipe.sinks), self.n_tokens):
            self.listed = np.append(self.listed, np.full((len(self.listed), 1), position), axis=1)
            if self.selects and self.listed.shape[1] == 3 * recipe.window:
                self._give_up(chosen)
                given_up = True
        if not self.selects:
            return
        if not self.has_pages:
            self.gone[:, recipe.sinks : self.n_tokens] = True
            np.put_along_axis(self.gone, self.listed, False, axis=1)
            self._read_again()
            return
        n_coded = len(self.records)
        while recipe.sinks + PAGE * (len(self.records) + 1) <= self.n_tokens:
            self._code_page()
        if given_up or len(self.records) > n_coded:
            self._read_again()
        if self.first_page:
            self._forget_pages()

    def _give_up(self, chosen: Callable[[int], npt.NDArray[np.integer]] | None) -> None:
        w, select = self.recipe.window, self.recipe.select
        oldest = self.listed[:, : 2 * w]
        if select == "newest":
            kept = oldest[:, w:]
        elif select == "heaviest":
            kept = np.stack([self._heaviest(head, mine, chosen) for head, mine in enumerate(oldest)])
        else:
            kept = oldest[:, ::2]
        self.n_given_up += w
        self.listed = np.concatenate([kept, self.listed[:, 2 * w :]], axis=1)

    def _heaviest(self, head: int, oldest: Ints, chosen: Callable[[int], npt.NDArray[np.integer]] | None) -> Ints:
        """Of these tokens of a head the half that has accumulated most."""
        n_stay = len(oldest) // 2
        got = self.accumulated[head, oldest]
        stays = np.zeros(len(oldest), bool)
        stays[np.argsort(-got, kind="stable")[:n_stay]] = True
        if chosen is not None:  # near the least that stays, as the core has it
            least = got[stays].min()
            close = np.abs(got - least) <= ACCUMULATED * least
            theirs = np.where(close, np.isin(oldest, chosen(head)), stays)
            if theirs.sum() == n_stay:
                self.n_ties += int((theirs != stays).sum())
                stays = theirs
        return oldest[stays]

    def _page_slice(self, page: int) -> slice:
        start = self.recipe.sinks + PAGE * page
        return slice(start, start + PAGE)

    def _code_page(self) -> None:
        assert self.form is not None
        here = self._page_slice(len(self.records))
        k, v = self.k[:, here], self.v[:, here]
        if self.order is None:
            self.order = learn_order(self.form, k)
        record = encode_page(self.form, k, v, self.order)
        self._k_coded[:, here], self._v_coded[:, here] = decode_page(self.form, record, self.order)
        self.records.append(record)
        self.lines.append(lines_of(self.form, record, self.order))

    def _read_again(self) -> None:
        """What attention reads of complete pages: cells of the overlay, codes elsewhere."""
        n_pages = max(self.n_tokens - self.recipe.sinks, 0) // PAGE
        here = slice(self.recipe.sinks, self.recipe.sinks + PAGE * n_pages)
        full = np.zeros(self.k.shape[:2], bool)
        np.put_along_axis(full, self.listed, True, axis=1)
        cells_k, cells_v = (as_cell(x[:, here], self.recipe.overlay) for x in (self.k, self.v))
        self._k_seen[:, here] = np.where(full[:, here, None], cells_k, self._k_coded[:, here])
        self._v_seen[:, here] = np.where(full[:, here, None], cells_v, self._v_coded[:, here])

    # ---- looking

    @property
    def n_sinks(self) -> int:
        return min(self.recipe.sinks, self.n_tokens)

    @property
    def n_full(self) -> int:
        return int(self.listed.shape[1]) - (0 if self.selects else self.n_dropped)

    @property
    def n_packed(self) -> int:
        return self.n_tokens - self.n_sinks - self.n_full - self.n_dropped

    @property
    def n_dropped(self) -> int:
        return int(self.gone[0].sum())

    def mask(self, head: int, page: int) -> int:
        here = self._page_slice(page)
        return sum(1 << int(p - here.start) for p in self.listed[head] if here.start <= p < here.stop)

    def full(self, head: int) -> tuple[Ints, F64, F64, F64]:
        """Positions, k, v, accumulated of a head's full-precision tokens, sinks first."""
        positions = np.concatenate([np.arange(self.n_sinks), self.listed[head]])
        if not self.selects:
            positions = positions[~self.gone[head, positions]]
        accumulated = np.where(positions < self.n_sinks, 0.0, self.accumulated[head, positions])
        return positions, self._k_seen[head, positions], self._v_seen[head, positions], accumulated


# ---- comparing -------------------------------------------------------------------------------------------------------


def _different(what: str, ours: npt.NDArray[np.generic], theirs: npt.NDArray[np.generic]) -> list[str]:
    if ours.shape != theirs.shape:
        return [f"{what}: the core has shape {theirs.shape}, the oracle {ours.shape}"]
    wrong = np.argwhere(ours != theirs)
    if len(wrong) == 0:
        return []
    at = tuple(wrong[0])
    return [f"{what}: {len(wrong)} of {ours.size} differ, first at {at}: the core has {theirs[at]}, not {ours[at]}"]


def compare(view: KvView, cache: Cache, layer: int = 0) -> list[str]:
    """What differs between the core's layer and the oracle: nothing may, but accumulated attention by ACCUMULATED."""
    usage, wrong = view.usage(), []
    for name in ("n_tokens", "n_sinks", "n_full", "n_packed", "n_dropped"):
        if getattr(usage, name) != getattr(cache, name):
            wrong.append(f"{name}: the core has {getattr(usage, name)}, not {getattr(cache, name)}")
    n_pages = max(len(cache.records) - cache.first_page, 0)
    if usage.n_pages != n_pages:
        wrong.append(f"n_pages: the core has {usage.n_pages}, not {n_pages}")
    for head in range(len(cache.listed)):
        here = f"head {head}"
        full, (positions, k, v, accumulated) = view.full(layer, head), cache.full(head)
        wrong += _different(f"{here}, positions", positions, full.positions)
        wrong += _different(f"{here}, full keys", k, full.k) + _different(f"{here}, full values", v, full.v)
        if not cache.selects or cache.recipe.select != "heaviest":
            accumulated = np.zeros_like(accumulated)
        if full.accumulated.shape == accumulated.shape and not np.allclose(
            full.accumulated, accumulated, rtol=ACCUMULATED, atol=0
        ):
            wrong.append(f"{here}: accumulated attention differs")
        if cache.order is not None:
            wrong += _different(f"{here}, order", cache.order[head], view.order(layer, head))
        for index, record in enumerate(cache.records):
            if index < cache.first_page:
                continue
            page = view.page(layer, head, index)
            theirs = np.frombuffer(page.record, np.uint8)
            wrong += _different(f"{here}, record of page {index}", record[head], theirs)
            if page.mask != cache.mask(head, index):
                wrong.append(f"{here}, mask of page {index}: {page.mask:016x}, not {cache.mask(head, index):016x}")
    return wrong


def relative_errors(ours: F32, wanted: F64) -> F64:
    """Of each query's output, by norm."""
    errors: F64 = np.linalg.norm(ours - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)
    return errors


# ---- inputs ----------------------------------------------------------------------------------------------------------


def random_tokens(
    rng: np.random.Generator, n: int, n_heads: int, n_kv_heads: int, head_dim: int
) -> tuple[F32, F32, F32]:
    """q, k, v of n tokens. Key channels differ in size as they do after rope; a few tokens get much attention."""
    q = rng.standard_normal((n, n_heads, head_dim)) * 0.5
    k = rng.standard_normal((n, n_kv_heads, head_dim)) * np.exp(rng.standard_normal((n_kv_heads, head_dim)))
    k[rng.random((n, n_kv_heads)) < 0.05] *= 2
    v = rng.standard_normal((n, n_kv_heads, head_dim)) + rng.standard_normal((n_kv_heads, head_dim))
    return q.astype(np.float32), k.astype(np.float32), v.astype(np.float32)


def hard_values(rng: np.random.Generator, n: int, n_heads: int, head_dim: int) -> F32:
    """(n, n_heads, head_dim) of what breaks coders: constants, zeros, outliers, subnormal halves, ties."""
    size = rng.choice(np.array([1e-7, 3e-6, 1e-3, 0.1, 1, 30, 5000]), (n_heads, head_dim))
    x = rng.standard_normal((n, n_heads, head_dim)) * size
    kinds = rng.integers(0, 10, (n_heads, head_dim))
    x = np.where(kinds == 0, rng.standard_normal((n_heads, head_dim)), x)  # constant
    x = np.where(kinds == 1, 0.0, x)
    x = np.where(kinds == 2, 100 + 0.1 * rng.standard_normal(x.shape), x)
    x = np.where(kinds == 3, rng.integers(-2, 3, x.shape), x)  # many equal values, many ties between codes
    x = np.where(kinds == 4, 6e-8 * rng.integers(-3, 4, x.shape), x)  # the smallest halves, and zeros of both signs
    x[rng.random(n) < 0.05] = 0.0
    x[rng.random(n) < 0.05] = 1.0
    x[rng.random(n) < 0.05] *= 1e-4
    return x.astype(np.float32)
