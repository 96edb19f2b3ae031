"""Selects the tokens that stay in full precision, as docs/format.md specifies in "Which tokens stay"."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pylogquant.transformers.config import Recipe
from pylogquant.transformers.pages import PAGE

__all__ = ["Counts", "choose", "count", "n_give_ups"]


class Counts(NamedTuple):
    """How many of a cache's tokens are stored how."""

    n_sinks: int
    n_overlay: int
    n_open: int
    n_pages: int


def n_give_ups(n_past_sinks: int, window: int) -> int:
    """How many times W tokens have been given up, after n_past_sinks tokens behind the sinks."""
    return 0 if n_past_sinks < 3 * window else n_past_sinks // window - 2


def count(recipe: Recipe, n_tokens: int) -> Counts:
    """Counts after n_tokens, which follow from that number alone. Types that drop tokens count pages but keep none."""
    n_sinks = min(n_tokens, recipe.sinks)
    n = n_tokens - n_sinks
    n_open = n % PAGE
    n_overlay = n - n_give_ups(n, recipe.window) * recipe.window - n_open
    return Counts(n_sinks, n_overlay, n_open, n // PAGE)


def choose(
    recipe: Recipe, n: int, accumulated: torch.Tensor | None, shape: tuple[int, int], device: torch.device
) -> torch.Tensor:
    """Rising indices, int64 (*shape, kept), of the tokens that stay, of a list of n full tokens that grew one by one.

    accumulated: (*shape, n) accumulated attention of each; None where the selection needs none."""
    window = recipe.window
    kept = torch.empty((*shape, 0), dtype=torch.int64, device=device)
    at = 0
    while at < n:
        take = min(3 * window - kept.shape[-1], n - at)
        new = torch.arange(at, at + take, device=device).expand(*shape, take)
        kept, at = torch.cat([kept, new], dim=-1), at + take
        if kept.shape[-1] == 3 * window:
            kept = torch.cat([_keep(recipe, kept[..., : 2 * window], accumulated), kept[..., 2 * window :]], dim=-1)
    return kept


def _keep(recipe: Recipe, oldest: torch.Tensor, accumulated: torch.Tensor | None) -> torch.Tensor:
    """Of the 2W oldest tokens, the W that stay."""
    if recipe.select == "newest":
        return oldest[..., recipe.window :]
    if recipe.select == "even":
        return oldest[..., ::2]
    assert accumulated is not None
    got = torch.gather(accumulated, -1, oldest)
    heaviest = torch.sort(got, dim=-1, descending=True, stable=True).indices[..., : recipe.window]
    return torch.gather(oldest, -1, torch.sort(heaviest, dim=-1).values)
