"""pylogquant.transformers on SmolLM2, made from its GGUF file by transformers' own loader: on one text a cache type
costs what it costs in the core. Oracle tests: they need torch and transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pylogquant import KvOptions, Model
from pylogquant.evaluate import Tally, evaluate, read_text

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

N_TOKENS, PROMPT, STRIDE = 900, 512, 4


def test_divergence_is_the_cores(smollm2_path: Path, tmp_path: Path) -> None:
    import torch
    import transformers_caches as tool
    from widen_gguf import widen

    # Products with packed weights round activations, and that would be in one of the two only.
    wide = tmp_path / "wide.gguf"
    widen(smollm2_path, wide)
    presets = ("logquant", "logquant-small", "kivi")
    with Model(wide) as model:
        ids = model.tokenizer.encode(read_text("stdlib:prose")[:20000])[:N_TOKENS]
        options = [KvOptions(name, window=64) for name in presets]
        core = evaluate(model, "prose", ids, options, prompt=PROMPT, stride=STRIDE)
    torch.set_num_threads(1)  # as many as are free on a busy machine: torch's wait for each other
    ours = tool.load_model(smollm2_path)
    ours.set_attn_implementation("sdpa")
    reference = tool.scored(ours, ids, tool.KINDS["DynamicCache"].make(ours.config), PROMPT, STRIDE)
    following = [ids[i + 1] for i in range(PROMPT, N_TOKENS - 1, STRIDE)]
    ours.set_attn_implementation("logquant")
    for preset, score in zip(presets, core[1:], strict=True):
        assert score.kv == f"{preset}+window=64"
        cache = tool.logquant(preset, window=64)(ours.config)
        for layer in cache.logquant_layers():
            layer.record_past = False  # a pass is one piece, as in the core; in transformers 4 it would be two
        found = tool.scored(ours, ids, cache, PROMPT, STRIDE)
        tally = Tally()
        tally.add(reference.astype(np.float64), found.astype(np.float64), following)
        kl = float(np.mean(tally.kl))
        assert len(tally.kl) == score.n_scored
        # Weights and positions are the same; products are added in another order, and of tokens that weigh nearly the
        # same another is kept. That alone moves it: logquant-small gave 0.0154 to 0.0178 with other instruction sets of
        # torch and of the core, the core by itself 0.0149 to 0.0152. The next preset is 0.6 times away.
        assert abs(kl - score.kl) <= max(0.3 * score.kl, 0.002), (preset, kl, score.kl)
        assert abs(float(np.mean(tally.same)) - score.top1) <= 0.06
        usage = cache.usage()
        assert usage.n_packed > 500
        assert usage.n_tokens == N_TOKENS - 1
