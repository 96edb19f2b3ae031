"""Caches for generate(past_key_values=...): LogQuant, and what it is compared with, under the core's names."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any, ClassVar

import torch
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from pylogquant.errors import ArgumentError, Unsupported
from pylogquant.kv import KvUsage
from pylogquant.transformers.config import LogQuantConfig
from pylogquant.transformers.layer import LogQuantLayer

__all__ = ["H2OCache", "KiViCache", "LogQuantCache", "LogQuantLayer", "StreamingCache"]


class LogQuantCache(Cache):  # type: ignore[misc]
    """Keys and values in 2-bit pages, the tokens that matter in full precision; docs/transformers.md.

        model.generate(**inputs, past_key_values=LogQuantCache(model.config))

    config: the model's. Layers that see the whole context become LogQuant layers; those with a sliding window, and
    whatever else the model has, stay what they are in transformers' DynamicCache.
    options: a LogQuantConfig, or a preset's name; None = this class's preset.
    attention_mask: (batch, tokens) of the first forward pass, 0 for padding on the left. Needed only where neither
    attn_implementation="logquant" (which is given it) nor positions from 0 on (position_ids) tell.
    offloading: layers wait in CPU memory between their turns.

    Raises ArgumentError and Unsupported for settings that do not exist, and where no layer sees the whole context."""

    preset: ClassVar[str] = "logquant"
    _presets: ClassVar[tuple[str, ...]] = ("logquant", "logquant-small", "logquant-hq", "logquant-paper")

    def __init__(
        self,
        config: PretrainedConfig,
        options: LogQuantConfig | str | None = None,
        *,
        attention_mask: torch.Tensor | None = None,
        offloading: bool = False,
        offload_only_non_sliding: bool = True,
    ) -> None:
        if isinstance(options, str):
            options = LogQuantConfig(options)
        self.options = options if options is not None else LogQuantConfig(self.preset)
        recipe = self.options.resolve()
        if recipe.name not in self._presets:
            raise ArgumentError(
                f"{type(self).__name__} has no preset '{recipe.name}'; it has {', '.join(self._presets)}"
            )
        text_config = config.get_text_config(decoder=True)
        operations: dict[str, Any] = {}  # by kind of device, shared by all layers
        layers = list(DynamicCache(config=config).layers)
        n_layers = int(text_config.num_hidden_layers)
        layers += [DynamicLayer() for _ in range(n_layers - len(layers))] if not layers else []
        for index, layer in enumerate(layers):
            if type(layer) is DynamicLayer:
                layers[index] = LogQuantLayer(text_config, self.options, recipe, operations)
        if not any(isinstance(layer, LogQuantLayer) for layer in layers):
            raise Unsupported(
                f"no layer of this model ({text_config.model_type}) sees the whole context: there is nothing for a"
                " LogQuant cache to store; use DynamicCache"
            )
        super().__init__(layers=layers, offloading=offloading, offload_only_non_sliding=offload_only_non_sliding)
        if attention_mask is not None:
            padding = padding_of_mask(attention_mask)
            for layer in self.logquant_layers():
                layer.set_padding(padding)

    def logquant_layers(self) -> list[LogQuantLayer]:
        """The layers that see the whole context."""
        return [layer for layer in self.layers if isinstance(layer, LogQuantLayer)]

    def usage(self) -> KvUsage:
        """Tokens of the first row of the batch; bytes of all rows and layers, as allocated now. ring_bytes: of layers
        that are not LogQuant's."""
        total: KvUsage | None = None
        for layer in self.logquant_layers():
            its = layer.usage()
            if total is None:
                total = its
            else:
                sums = {
                    field.name: getattr(total, field.name) + getattr(its, field.name)
                    for field in fields(KvUsage)
                    if field.name.endswith("_bytes")
                }
                total = replace(total, **sums)
        assert total is not None
        others = (layer for layer in self.layers if not isinstance(layer, LogQuantLayer))
        tensors = (x for layer in others for x in (getattr(layer, "keys", None), getattr(layer, "values", None)))
        ring_bytes = sum(x.numel() * x.element_size() for x in tensors if isinstance(x, torch.Tensor))
        return replace(total, ring_bytes=ring_bytes)


class KiViCache(LogQuantCache):
    """KIVI (Liu et al. 2024, arXiv 2402.02750): 2 bits, keys by channel, values by token, the newest tokens in full
    precision. The core's type "kivi"; works with any attention."""

    preset = "kivi"
    _presets = ("kivi",)


class H2OCache(LogQuantCache):
    """H2O (Zhang et al. 2023, arXiv 2306.14048): the tokens that received most attention and the newest, the others are
    dropped. The core's type "h2o"; needs attn_implementation="logquant"."""

    preset = "h2o"
    _presets = ("h2o",)


class StreamingCache(LogQuantCache):
    """StreamingLLM (Xiao et al. 2023, arXiv 2309.17453): the first tokens and the newest, the others are dropped,
    positions stay what they were. The core's type "streaming"; works with any attention."""

    preset = "streaming"
    _presets = ("streaming",)


def padding_of_mask(attention_mask: torch.Tensor) -> list[int]:
    """How many tokens on the left of each row a mask (batch, tokens) hides. Raises ArgumentError for any other mask."""
    if attention_mask.ndim != 2:
        raise ArgumentError(f"attention_mask must have the shape (batch, tokens), not {tuple(attention_mask.shape)}")
    seen = attention_mask.bool()
    padding = (~seen).long().sum(dim=1)
    places = torch.arange(seen.shape[1], device=seen.device)
    if not torch.equal(seen, places >= padding[:, None]):
        raise ArgumentError("attention_mask hides tokens that are not padding on the left; pad on that side only")
    return [int(n) for n in padding.tolist()]
