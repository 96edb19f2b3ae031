"""Caches for generate(cache=...): LogQuant, and the types it is compared with, under the core's names."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from transformers import PretrainedConfig
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

from pylogquant.errors import ArgumentError, Unsupported
from pylogquant.kv import KvUsage
from pylogquant.transformers.config import LogQuantConfig
from pylogquant.transformers.layer import LogQuantLayer, Shared

__all__ = ["H2OCache", "KiViCache", "LogQuantCache", "LogQuantLayer", "StreamingCache"]


@dataclass
class Checkpoint:
    """A place to go back to: how many tokens the cache had seen, and copies of its other layers, by index."""

    n_tokens: int
    others: dict[int, Any]


class LogQuantCache(Cache):  # type: ignore[misc]
    """Keeps keys and values in 2-bit pages and selected tokens in full precision; docs/transformers.md.

        model.generate(**inputs, cache=LogQuantCache(model.config))

    config: the model's. Layers that see the whole context become LogQuant layers; all other layers, such as those with
    a sliding window, stay as in transformers' DynamicCache.
    options: a LogQuantConfig, or a preset's name; None = this class's preset.
    attention_mask: (batch, tokens) of the first forward pass, 0 for padding on the left. Needed only if the padding
    follows neither from attn_implementation="logquant", which gets the mask, nor from position_ids.
    offloading: layers are in CPU memory while the model does not use them.

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
        shared, layers = Shared(), list(DynamicCache(config=config).layers)
        n_layers = int(text_config.num_hidden_layers)
        layers += [DynamicLayer() for _ in range(n_layers - len(layers))] if not layers else []
        lends = lenders(text_config, len(layers))
        for index, layer in enumerate(layers):
            if type(layer) is DynamicLayer:
                layers[index] = LogQuantLayer(text_config, self.options, recipe, shared, lends=lends[index])
        if not any(isinstance(layer, LogQuantLayer) for layer in layers):
            kinds = sorted({type(layer).__name__ for layer in layers})
            raise Unsupported(
                f"a LogQuant cache has nothing to store of this model ({text_config.model_type}): it takes the place of"
                f" DynamicLayer, plain attention to the whole context, and the layers here are {', '.join(kinds)}; use"
                " DynamicCache"
            )
        super().__init__(layers=layers, offloading=offloading, offload_only_non_sliding=offload_only_non_sliding)
        self._checkpoint: Checkpoint | None = None
        if attention_mask is not None:
            padding = padding_of_mask(attention_mask)
            for layer in self.logquant_layers():
                layer.set_padding(padding)

    def logquant_layers(self) -> list[LogQuantLayer]:
        """The layers that see the whole context."""
        return [layer for layer in self.layers if isinstance(layer, LogQuantLayer)]

    # ---- going back

    def checkpoint(self) -> None:
        """Marks this place, so that crop() can come back to it however much follows. Replaces an earlier checkpoint.

        It takes memory for the present tokens in full precision (pages are shared) and for a copy of the layers that
        are not LogQuant's, up to their window."""
        seen = self.logquant_layers()[0].get_seq_length()
        others = {i: layer for i, layer in enumerate(self.layers) if not isinstance(layer, LogQuantLayer)}
        self._checkpoint = Checkpoint(seen, deepcopy(others)) if seen else None
        for layer in self.logquant_layers():
            layer.checkpoint()

    def crop(self, tokens_to_remove: int) -> None:
        """Forgets the last -tokens_to_remove tokens; a positive number, as in transformers 4, is how many to keep.

        Exact, as if they had never come; else raises ArgumentError and changes nothing. LogQuantLayer.crop() says what
        can be taken back; everything since the last checkpoint() can."""
        ours = self.logquant_layers()
        seen, n = ours[0].get_seq_length(), ours[0].n_to_remove(tokens_to_remove)
        if n >= seen > 0:
            self.reset()
            return
        for layer in ours:
            layer.check_crop(n)
        if n and self._checkpoint is not None and seen - n == self._checkpoint.n_tokens:
            for index, layer in deepcopy(self._checkpoint.others).items():
                self.layers[index] = layer
        else:
            self._crop_others(n)
        for layer in ours:
            layer.crop(-n)
        if self._checkpoint is not None and seen - n < self._checkpoint.n_tokens:
            self._checkpoint = None

    def _crop_others(self, n: int) -> None:
        """Crops the layers that are not LogQuant's, all or, on an error, none."""
        others = [layer for layer in self.layers if not isinstance(layer, LogQuantLayer)]
        before = [{k: dict(v) if isinstance(v, dict) else v for k, v in vars(layer).items()} for layer in others]
        try:
            for layer in others:
                layer.crop(-n)
        except (RuntimeError, ValueError) as cause:
            for layer, state in zip(others, before, strict=True):
                layer.__dict__.update(state)
            raise ArgumentError(
                f"{n} tokens cannot be taken back: a layer of this model is a {type(layer).__name__} ({cause}); call"
                " the cache's checkpoint() where you want to return to, or keep a copy.deepcopy() of it"
            ) from cause

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()
        self._checkpoint = None

    # ---- rows

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Replaces row i by a copy of row beam_idx[i]."""
        super().reorder_cache(beam_idx)
        for layer in self._kept_others():
            layer.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row, its copies one after the other."""
        super().batch_repeat_interleave(repeats)
        for layer in self._kept_others():
            layer.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keeps these rows, given by index or by a mask."""
        super().batch_select_indices(indices)
        for layer in self._kept_others():
            layer.batch_select_indices(indices)

    def _kept_others(self) -> list[Any]:
        return list(self._checkpoint.others.values()) if self._checkpoint is not None else []

    # ---- looking

    def usage(self) -> KvUsage:
        """Tokens of the first row of the batch; bytes of all rows and layers, as allocated now. ring_bytes counts the
        layers that are not LogQuant's."""
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
        others = [layer for layer in self.layers if not isinstance(layer, LogQuantLayer)] + self._kept_others()
        tensors = (x for layer in others for x in (getattr(layer, "keys", None), getattr(layer, "values", None)))
        ring_bytes = sum(x.numel() * x.element_size() for x in tensors if isinstance(x, torch.Tensor))
        return replace(total, ring_bytes=ring_bytes)


class KiViCache(LogQuantCache):
    """KIVI (Liu et al. 2024, arXiv 2402.02750): 2 bits, keys by channel, values by token, the newest tokens in full
    precision. The core's type "kivi"; works with any attention."""

    preset = "kivi"
    _presets = ("kivi",)


class H2OCache(LogQuantCache):
    """H2O (Zhang et al. 2023, arXiv 2306.14048): keeps the tokens with the most accumulated attention and the newest,
    drops the others. The core's type "h2o"; needs attn_implementation="logquant"."""

    preset = "h2o"
    _presets = ("h2o",)


class StreamingCache(LogQuantCache):
    """StreamingLLM (Xiao et al. 2023, arXiv 2309.17453): keeps the first tokens and the newest, drops the others;
    positions are not renumbered. The core's type "streaming"; works with any attention."""

    preset = "streaming"
    _presets = ("streaming",)


def lenders(config: PretrainedConfig, n_layers: int) -> list[bool]:
    """Whether other layers attend to each layer's keys and values. transformers 4 only says that there are such layers:
    then True for all."""
    modes = getattr(config, "kv_sharing_modes", None)
    if modes is not None:
        return [mode == "store" for mode in modes]
    return [bool(getattr(config, "num_kv_shared_layers", 0))] * n_layers


def padding_of_mask(attention_mask: torch.Tensor) -> list[int]:
    """How many tokens a mask (batch, tokens) hides on the left of each row. Raises ArgumentError for any other mask."""
    if attention_mask.ndim != 2:
        raise ArgumentError(f"attention_mask must have the shape (batch, tokens), not {tuple(attention_mask.shape)}")
    seen = attention_mask.bool()
    padding = (~seen).long().sum(dim=1)
    places = torch.arange(seen.shape[1], device=seen.device)
    if not torch.equal(seen, places >= padding[:, None]):
        raise ArgumentError("attention_mask hides tokens that are not padding on the left; pad on that side only")
    return [int(n) for n in padding.tolist()]
