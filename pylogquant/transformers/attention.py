"""attn_implementation="logquant": attention that reads packed pages, registered with transformers."""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface

from pylogquant.errors import Unsupported
from pylogquant.transformers.layer import ATTENTION, KEY, VALUE, Turn

__all__ = ["logquant_attention", "logquant_mask", "register"]

_ELSEWHERE = "use another attention with LogQuantConfig(select='even'), or DynamicCache"
_NOT_HERE = {
    "s_aux": "learned attention sinks",
    "sinks": "learned attention sinks",
    "position_bias": "a bias by position",
    "head_mask": "a mask of heads",
    "indices": "sparse attention to chosen tokens",
    "block_indices": "sparse attention to chosen blocks",
}
"""Arguments that change the result but are not supported here, with their names in errors."""
_TORCHS_OWN = {"position_bias"} & set(signature(sdpa_attention_forward).parameters)
"""Those of them that torch's attention supports, in some versions of transformers."""
_HIDDEN = -1e4  # numbers in a mask up to this one hide a token, in every float type


def register() -> None:
    """Registers attention and masks as "logquant" with transformers."""
    AttentionInterface.register(ATTENTION, logquant_attention)
    AttentionMaskInterface.register(ATTENTION, logquant_mask)


def logquant_mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """sdpa's masks: boolean, or None for a causal mask with as many queries as keys, or with one query.

    sdpa also returns None for an empty static cache, where the queries are the first tokens. Here None always means
    that they are the last ones, also after a model has cut queries off (Gemma 4)."""
    n, n_keys = kwargs.get("q_length"), kwargs.get("kv_length")
    if n is None and isinstance(kwargs.get("cache_position"), torch.Tensor):  # transformers 4
        n = kwargs["cache_position"].shape[0]
    if n != 1 and n != n_keys:
        kwargs["allow_is_causal_skip"] = False
    mask: torch.Tensor | None = ALL_MASK_ATTENTION_FUNCTIONS["sdpa"](*args, **kwargs)
    return mask


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
    """Computes attention, with shapes as in transformers: query (batch, heads, n, head_dim); returns (batch, n, heads,
    head_dim).

    Keys and values that no LogQuant layer holds (no cache, a sliding window) get torch's attention. Raises Unsupported
    where a model asks for a feature that is missing here, or passes other keys and values than update() returned."""
    turn, its = getattr(key, KEY, None), getattr(value, VALUE, None)
    for name, what in _NOT_HERE.items():
        if kwargs.get(name) is not None and not (turn is its is None and name in _TORCHS_OWN):
            raise Unsupported(
                f'attn_implementation="{ATTENTION}" has not {what} ({name}), which this model uses; {_ELSEWHERE}'
            )
    if kwargs.get("output_attentions"):
        raise Unsupported(
            f'attn_implementation="{ATTENTION}" makes no matrix of attention weights; for output_attentions=True call'
            ' model.set_attn_implementation("eager") and use DynamicCache'
        )
    if turn is not its:
        raise Unsupported(
            f"{type(module).__name__} changes the {'keys' if turn is None else 'values'} after the cache took them in,"
            f" and attends with those: a LogQuant cache cannot; {_ELSEWHERE}"
        )
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    if turn is None:
        return _torchs(module, query, key, value, attention_mask, dropout, scaling, softcap, bool(causal), kwargs), None
    assert isinstance(turn, Turn)
    n = query.shape[2]
    if attention_mask is None and n > 1 and not causal:
        raise Unsupported(
            f"{type(module).__name__} lets tokens see later ones, which a LogQuant cache cannot; {_ELSEWHERE}"
        )
    if dropout:
        raise Unsupported("a LogQuant cache is for inference; call model.eval()")
    padding = _padding(attention_mask, len(query), n, turn.layer.get_seq_length())
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return turn.layer.attend(turn, query, padding, scale, softcap or 0.0), None


def _torchs(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    dropout: float,
    scaling: float | None,
    softcap: float | None,
    causal: bool,
    kwargs: dict[str, Any],
) -> torch.Tensor:
    """torch's attention to the given keys and values."""
    n, n_keys = query.shape[2], key.shape[2]
    if mask is None and causal and 1 < n < n_keys:  # torch's causal mask is for the first queries, these are the last
        mask = torch.ones(n, n_keys, dtype=torch.bool, device=query.device).tril(n_keys - n)[None, None]
    if softcap is None:
        out: torch.Tensor
        out, _ = sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)
        return out
    if dropout:
        raise Unsupported(
            f'attn_implementation="{ATTENTION}" has no dropout where scores are capped; call model.eval()'
        )
    return _capped_attention(query, key, value, mask, scaling, softcap, causal)


def _padding(mask: torch.Tensor | None, n_rows: int, n: int, n_seen: int) -> list[int] | None:
    """Tokens of padding on the left of each row, from a mask of n queries over n_seen tokens; None without a mask.
    Raises Unsupported unless the mask is causal with padding on the left. Keeps the result on the mask for other
    layers."""
    if mask is None:
        return None
    known: tuple[int, list[int]] | None = getattr(mask, "_logquant_padding", None)
    if known is not None and known[0] == n_seen:
        return known[1]
    if mask.shape[-1] < n_seen or mask.shape[-2] != n:
        raise Unsupported(f"an attention mask of {tuple(mask.shape)} does not fit {n} queries and {n_seen} tokens")
    seen = mask[..., :n_seen]  # transformers 4 makes longer ones for some models, and cuts them at this place
    if mask.dtype != torch.bool:
        if not bool(((seen == 0) | (seen <= _HIDDEN)).all()):
            raise Unsupported(
                f'attn_implementation="{ATTENTION}" takes masks that hide tokens; this one adds to scores'
            )
        seen = seen == 0
    last = seen[:, 0, -1].expand(n_rows, n_seen)
    padding = (~last).long().sum(dim=-1)
    places = torch.arange(n_seen, device=mask.device)
    wanted = (places >= padding[:, None])[:, None] & (places <= places[n_seen - n :, None])
    real = places[n_seen - n :] >= padding[:, None]  # queries that are no padding; the others do not matter
    if not bool((torch.eq(seen, wanted[:, None]) | ~real[:, None, :, None]).all()):
        raise Unsupported(
            'attn_implementation="logquant" takes causal masks with padding on the left only; this one hides or shows'
            " other tokens"
        )
    found = [int(amount) for amount in padding.tolist()]
    mask._logquant_padding = (n_seen, found)
    return found


def _capped_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    softcap: float,
    causal: bool,
) -> torch.Tensor:
    """Attention with scores softcap tanh(score / softcap), which torch's own attention does not offer."""
    group = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(group, dim=1), value.repeat_interleave(group, dim=1)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * scale / softcap)
    n, n_keys = scores.shape[-2:]
    if mask is None and n > 1 and causal:
        mask = torch.ones(n, n_keys, dtype=torch.bool, device=query.device).tril(n_keys - n)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).nan_to_num().to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous()
