"""The tools that measure what a KV cache costs: kv_kl, kv_bytes, widen_gguf."""

from __future__ import annotations

from pathlib import Path

import gguf
import kv_bytes
import kv_kl
import numpy as np
import pytest
from make_tiny_gguf import make_tiny
from widen_gguf import widen

from pylogquant import Model
from pylogquant.evaluate import Score
from pylogquant.kv import KvLayer, kv_names

pytestmark = pytest.mark.tiny_model


def test_comparison_with_a_simulation(capsys: pytest.CaptureFixture[str]) -> None:
    score = Score("t", "logquant", 9, 5.0, 0.02, 0, 0, (0, 0, 0, 0), 1, 3, 1, 1)
    for simulated, good in ((0.02, True), (0.0219, True), (0.0236, False), (0.0170, False)):
        assert kv_kl.compare_means([score], {"t": {"logquant": {"kl": simulated}}}) == good, simulated
        assert ("too far off" in capsys.readouterr().out) != good


@pytest.mark.parametrize("kv", kv_names())
@pytest.mark.parametrize("shape", [(2, 2, 64), (1, 1, 80)])
def test_bytes_are_what_the_definition_adds_up_to(kv: str, shape: tuple[int, int, int]) -> None:
    for row in kv_bytes.fill(kv, shape, [2048]):
        assert abs(row.difference) <= kv_bytes.LIMIT, row
    with KvLayer(*shape, 2048, kv) as layer:  # and the definition's figure can be wrong
        assert kv_bytes.defined_bytes(layer.cache.options(), shape[1], shape[2] + 32, 2048) != row.defined


def test_a_widened_model_says_the_same(tmp_path: Path) -> None:
    packed, wide = tmp_path / "packed.gguf", tmp_path / "wide.gguf"
    make_tiny(packed, arch="gemma3", weight_type="Q4_0")
    widen(packed, wide)
    assert {tensor.tensor_type for tensor in gguf.GGUFReader(wide).tensors} == {gguf.GGMLQuantizationType.F32}
    logits = []
    for path in (packed, wide):
        with Model(path, threads=1) as model, model.session(0, "f16") as session:
            logits.append(session.eval(list(range(40)), "all"))
            tokens = model.tokenizer.encode("The cat sat on the mat.")
    assert logits[0] is not None
    assert logits[1] is not None
    assert np.linalg.norm(logits[0] - logits[1]) < 0.05 * np.linalg.norm(logits[1])
    with Model(packed) as model:
        assert model.tokenizer.encode("The cat sat on the mat.") == tokens
