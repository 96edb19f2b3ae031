"""attn_implementation="logquant": attention that reads packed pages, registered with transformers."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from pylogquant.errors import Unsupported
from pylogquant.transformers.layer import ATTENTION, MARK, LogQuantLayer

__all__ = ["logquant_attention", "register"]


def register() -> None:
    """Makes "logquant" known to transformers. Masks are those of sdpa: boolean, or None where they are causal."""
    AttentionInterface.register(ATTENTION, logquant_attention)
    AttentionMaskInterface.register(ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def logquant_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Shapes as transformers has them: query (batch, heads, n, head_dim); returns (batch, n, heads, head_dim).

    Layers that are not LogQuant's (with a sliding window, or no cache) get torch's attention."""
    layer: LogQuantLayer | None = getattr(key, MARK, None)
    if layer is None:
        if softcap is not None:
            return _capped_attention(module, query, key, value, attention_mask, scaling, softcap), None
        out, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return out, None
    delattr(key, MARK)
    if kwargs.get("s_aux") is not None or kwargs.get("position_bias") is not None:
        raise Unsupported('attn_implementation="logquant" has no learned attention sinks and no position bias')
    if dropout:
        raise Unsupported("a LogQuant cache is for inference; call model.eval()")
    padding = _padding(attention_mask, len(query), query.shape[2], layer.get_seq_length())
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return layer.attend(query, padding, scale, softcap or 0.0), None


def _padding(mask: torch.Tensor | None, n_rows: int, n: int, n_seen: int) -> list[int] | None:
    """Of each row, from a mask of n queries over n_seen tokens; Unsupported for all but causal ones with padding on the
    left. A mask is looked at once, not in every layer."""
    if mask is None:
        return None
    known: tuple[int, list[int]] | None = getattr(mask, "_logquant_padding", None)
    if known is not None and known[0] == n_seen:
        return known[1]
    if mask.shape[-1] != n_seen or mask.shape[-2] != n:
        raise Unsupported(f"an attention mask of {tuple(mask.shape)} does not fit {n} queries and {n_seen} tokens")
    seen = mask if mask.dtype == torch.bool else mask >= 0
    last = seen[:, 0, -1].expand(n_rows, n_seen)
    padding = (~last).long().sum(dim=-1)
    places = torch.arange(n_seen, device=mask.device)
    wanted = (places >= padding[:, None])[:, None] & (places <= places[n_seen - n :, None])
    real = places[n_seen - n :] >= padding[:, None]  # queries; what padding sees does not matter
    if not bool((torch.eq(seen, wanted[:, None]) | ~real[:, None, :, None]).all()):
        raise Unsupported(
            'attn_implementation="logquant" takes causal masks with padding on the left only; this one hides or shows'
            " other tokens"
        )
    found = [int(amount) for amount in padding.tolist()]
    mask._logquant_padding = (n_seen, found)
    return found


def _capped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float,
) -> torch.Tensor:
    """Scores become softcap tanh(score / softcap), which torch's own attention has not."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scale / softcap)
    n, n_keys = scores.shape[-2:]
    if mask is None and n > 1 and getattr(module, "is_causal", True):
        mask = torch.ones(n, n_keys, dtype=torch.bool, device=query.device).tril(n_keys - n)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).nan_to_num().to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous()
