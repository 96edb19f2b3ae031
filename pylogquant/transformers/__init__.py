"""LogQuant inside Hugging Face transformers: caches that drop in, and an attention that reads them packed.

    from transformers import AutoModelForCausalLM
    from pylogquant.transformers import LogQuantCache

    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="logquant")
    model.generate(**inputs, cache=LogQuantCache(model.config))

Importing this package registers `attn_implementation="logquant"`; it comes before from_pretrained(). transformers 4
calls the argument of generate() past_key_values. Needs torch and transformers (in the checkout: pip install
'.[transformers]'), which nothing else of pylogquant imports. docs/transformers.md.
"""

from __future__ import annotations

try:
    import torch as _torch
    import transformers as _transformers
except ImportError as cause:
    raise ImportError(
        f"pylogquant.transformers needs torch and transformers ({cause}); install them with:"
        " pip install 'transformers>=4.57' 'torch>=2.6'"
    ) from cause

from pylogquant.transformers.attention import register
from pylogquant.transformers.cache import H2OCache, KiViCache, LogQuantCache, LogQuantLayer, StreamingCache
from pylogquant.transformers.config import LogQuantConfig

__all__ = ["H2OCache", "KiViCache", "LogQuantCache", "LogQuantConfig", "LogQuantLayer", "StreamingCache"]

register()
del _torch, _transformers
