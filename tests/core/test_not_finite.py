"""Numbers that the model or its cache cannot hold: said when a token is to be chosen, in one line with the cause."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from make_tiny_gguf import make_tiny

from pylogquant import ArgumentError, Model, ModelFormatError, Sampler, SamplingOptions
from pylogquant.kv import kv_names

pytestmark = pytest.mark.tiny_model  # once per SIMD level

PROMPT = [1, 2, 3] + [5] * 100


def with_tensors(path: Path, name: str, factor: float) -> Path:
    """A model whose tensors of this name are multiplied by a factor."""
    make_tiny(path)
    reader = gguf.GGUFReader(path, "r+")
    for tensor in reader.tensors:
        if name in tensor.name:
            tensor.data[:] *= np.float32(factor)
    return path


@pytest.mark.parametrize("kv", ["f16", "logquant", "kivi", "q8_0"])
@pytest.mark.parametrize("name", ["attn_k.weight", "attn_v.weight"])
def test_keys_and_values_beyond_f16(name: str, kv: str, tmp_path: Path) -> None:
    greedy = Sampler(SamplingOptions(temperature=0))
    with Model(with_tensors(tmp_path / "m.gguf", name, 1e6)) as model, model.session(200, kv) as session:
        logits = session.eval(PROMPT)
        assert logits is not None
        if kv == "q8_0":  # whose scale holds them
            assert np.isfinite(logits).all()
            assert session.sample(greedy).token == logits.argmax()
            return
        assert np.isnan(logits).any()
        with pytest.raises(ModelFormatError, match="keys or values exceed the 65504 that f16 holds") as caught:
            session.sample(greedy)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kv", kv_names())
@pytest.mark.parametrize("name", ["attn_k.weight", "attn_v.weight"])
def test_weights_that_are_no_numbers_show_through_every_cache(name: str, kv: str, tmp_path: Path) -> None:
    """Codes of a cell pass over what is no number; its scale does not."""
    with Model(with_tensors(tmp_path / "m.gguf", name, float("nan"))) as model, model.session(200, kv) as session:
        session.prefill(PROMPT)
        with pytest.raises(ModelFormatError, match=rf"{name}' holds NaN or an infinity"):
            session.sample(Sampler(SamplingOptions(temperature=0)))
        session.append(1)
        with pytest.raises(ModelFormatError, match=rf"{name}' holds NaN or an infinity"):
            session.sample(Sampler(SamplingOptions(temperature=0)))


@pytest.mark.parametrize("options", [SamplingOptions(), SamplingOptions(temperature=0, logprobs=True)], ids=str)
def test_weights_that_are_no_numbers(options: SamplingOptions, tmp_path: Path) -> None:
    path = with_tensors(tmp_path / "m.gguf", "ffn_down.weight", float("nan"))
    with Model(path) as model, model.session(200, "f16") as session:
        session.prefill(PROMPT)
        with pytest.raises(ModelFormatError, match=r"ffn_down\.weight' holds NaN or an infinity in row 0"):
            session.sample(Sampler(options))


def test_biases_that_forbid_everything_are_not_the_weights(tmp_path: Path) -> None:
    with Model(make_tiny(tmp_path / "m.gguf")) as model, model.session(200, "f16") as session:
        session.prefill(PROMPT)
        forbid = dict.fromkeys(range(model.info().n_vocab), float("-inf"))
        with pytest.raises(ArgumentError, match="biases forbid"):
            session.sample(Sampler(SamplingOptions(temperature=0, logit_bias=forbid)))
