"""The tools that measure what a KV cache costs: kv_kl, kv_bytes, widen_gguf."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import kv_bytes
import kv_kl
import numpy as np
import pytest
from make_tiny_gguf import make_tiny
from widen_gguf import widen

from pylogquant import Model
from pylogquant.kv import KvLayer, kv_names

pytestmark = pytest.mark.tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    path = tmp_path_factory.mktemp("kl") / "m.gguf"
    make_tiny(path, arch="llama", n_ctx=1024)
    return Model(path, threads=2)


def ids_for(model: Model, n: int) -> list[int]:
    return [int(i) for i in np.random.default_rng(3).integers(0, model.info().n_vocab, n)]


def test_costs_are_ordered(model: Model) -> None:
    """f16 against itself costs nothing but the order of its sums; fewer bits cost more."""
    ids = ids_for(model, 700)
    names = ["f16", "q8_0", "logquant-hq", "logquant", "logquant-paper"]
    costs = {cost.kv: cost for cost in kv_kl.measure(model, "text", ids, names, 128, 4)}
    assert costs["f16"].kl < 1e-6
    assert costs["f16"].kl < costs["q8_0"].kl < costs["logquant"].kl < costs["logquant-paper"].kl
    assert costs["logquant-hq"].kl < costs["logquant"].kl
    assert costs["f16"].top1 == 1.0
    assert costs["f16"].bits == 16.0


def test_blocks_end_where_tokens_are_given_up(model: Model) -> None:
    """After a block that is full, W tokens have just left: the list holds 2W."""
    with model.session(1024, "logquant-paper", chunk=100) as session:
        session.eval(ids_for(model, 100), "none")
        for n in kv_kl.blocks(session, 1000):
            session.eval(ids_for(model, n), "none")
            if session.n_tokens < 1000:
                assert session.kv.usage().n_full == 128
        assert session.n_tokens == 1000


def test_comparison_with_a_simulation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cost = kv_kl.Cost("t", "logquant", kl=0.02, kl_error=0, kl_p99=0, top1=1, bits=3)
    figures = tmp_path / "simulated.json"
    for simulated, good in ((0.02, True), (0.0219, True), (0.0236, False), (0.0170, False)):
        figures.write_text(json.dumps({"t": {"logquant": {"kl": simulated}}}))
        assert kv_kl.compare_means([cost], figures) == good, simulated
        assert ("too far off" in capsys.readouterr().out) != good


@pytest.mark.parametrize("kv", kv_names())
@pytest.mark.parametrize("shape", [(2, 2, 64), (1, 1, 80)])
def test_bytes_are_what_the_definition_adds_up_to(kv: str, shape: tuple[int, int, int]) -> None:
    for row in kv_bytes.fill(kv, shape, [2048]):
        assert abs(row.difference) <= kv_bytes.LIMIT, row
    with KvLayer(*shape, 2048, kv) as layer:  # and the definition's figure can be wrong
        assert kv_bytes.defined_bytes(layer.cache.options(), shape[1], shape[2], 1024) != row.defined


def test_a_widened_model_says_the_same(tmp_path: Path) -> None:
    packed, wide = tmp_path / "packed.gguf", tmp_path / "wide.gguf"
    make_tiny(packed, arch="gemma3", weight_type="Q4_0")
    widen(packed, wide)
    assert {tensor.tensor_type for tensor in gguf.GGUFReader(wide).tensors} == {gguf.GGMLQuantizationType.F32}
    logits = []
    for path in (packed, wide):
        with Model(path, threads=1) as model, model.session(0, "f16") as session:
            logits.append(session.eval(ids_for(model, 40), "all"))
            tokens = model.tokenizer.encode("The cat sat on the mat.")
    assert logits[0] is not None
    assert logits[1] is not None
    assert np.linalg.norm(logits[0] - logits[1]) < 0.05 * np.linalg.norm(logits[1])
    with Model(packed) as model:
        assert model.tokenizer.encode("The cat sat on the mat.") == tokens
