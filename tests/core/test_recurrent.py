"""What is told and measured of models some of whose layers keep a state of a fixed size in place of keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from command_line import call
from gguf_copy import copy_gguf
from make_tiny_gguf import make_tiny
from session_inputs import ids_for

from pylogquant import ArgumentError, KvOptions, Model
from pylogquant.errors import LogQuantError
from pylogquant.evaluate import evaluate
from pylogquant.spikes import SINKS, observe

ATTENTION, N_LAYERS, N_TAPS, N_EMBD, HEAD_DIM, N_KV_HEADS = (1, 3), 5, 4, 64, 16, 2
VALUES = len(ATTENTION) * 2 * N_KV_HEADS * HEAD_DIM  # of a token
STATE_BYTES = (N_LAYERS - len(ATTENTION)) * (N_TAPS - 1) * N_EMBD * 4


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recurrent") / "lfm2.gguf"
    return make_tiny(path, "lfm2", n_layers=N_LAYERS, attention_layers=ATTENTION, n_taps=N_TAPS, n_ctx=700)


@pytest.fixture(scope="module")
def model(path: Path) -> Model:
    return Model(path, threads=2)


def test_info_counts_keys_where_they_are(model: Model) -> None:
    facts = model.info()
    assert (facts.n_layers, facts.n_global_layers, facts.n_recurrent_layers) == (5, 2, 3)
    assert (facts.n_heads, facts.n_kv_heads, facts.head_dim, facts.window) == (4, N_KV_HEADS, HEAD_DIM, 0)
    assert (facts.kv_values, facts.kv_values_sliding) == (VALUES, 0)
    with model.session(100, "f16") as s:
        s.eval(ids_for(model, 10))
        info = s.info()
        assert info.kv_bits == info.kv_bits_now == 16.0
        assert info.kv_global_bytes == 100 * VALUES * 2
        assert info.kv_usage.full_bytes == 10 * VALUES * 2
        assert info.kv_usage.recurrent_bytes == info.recurrent_bytes == STATE_BYTES
        assert info.kv_used_bytes == info.kv_f16_bytes == 10 * VALUES * 2 + STATE_BYTES
        assert info.kv_reserved_bytes == info.kv_global_bytes + STATE_BYTES
        # A checkpoint costs the states, the logits, and in a type of cells nothing else but a few numbers.
        s.checkpoint()
        cost = s.info().checkpoint_bytes - STATE_BYTES - 4 * facts.n_vocab
        assert 0 <= cost < 200


@pytest.mark.parametrize("kv", ["logquant-small", "q8_0"])
def test_the_plan_is_what_is_allocated(model: Model, kv: str) -> None:
    plan = model.plan(512, kv=kv, chunk=64)
    with model.session(512, kv, chunk=64) as s, model.session(512, kv, chunk=64, max_tentative=8) as tentative:
        s.eval(ids_for(model, 500), "none")
        info = s.info()
        assert info.recurrent_bytes == plan.recurrent_bytes == STATE_BYTES
        assert info.kv_global_bytes == plan.kv_global_bytes
        assert info.kv_bits == pytest.approx(8 * plan.kv_global_bytes / VALUES / 512)
        # Rows of the tokens that may be taken back wait beside the state.
        assert tentative.info().recurrent_bytes == STATE_BYTES + (N_LAYERS - len(ATTENTION)) * 8 * N_EMBD * 4


def test_a_layer_without_keys_cannot_be_looked_into(model: Model) -> None:
    with model.session(300, KvOptions("logquant", window=64)) as s:
        s.eval(ids_for(model, 250))
        assert [s.kv.n_heads(layer) for layer in range(N_LAYERS)] == [0, 2, 0, 2, 0]
        assert len(s.kv.page(1, 1, 0).record) > 0
        assert s.kv.full(3, 0).k.shape[1] == HEAD_DIM
        calls: list[Any] = [
            lambda: s.kv.page(0, 0, 0),
            lambda: s.kv.full(2, 0),
            lambda: s.kv.order(4, 0),
            lambda: s.kv.window(0),
            lambda: s.kv.attention(0, 0),
        ]
        for look in calls:
            with pytest.raises(ArgumentError, match="does not attend: it has no keys and values"):
                look()
        with pytest.raises(ArgumentError, match="layer 5"):
            s.kv.n_heads(N_LAYERS)


def test_a_chunk_may_be_one_token_or_many(model: Model) -> None:
    """Bits may differ where products take other ways; the state that goes from chunk to chunk is the same text's."""
    ids = ids_for(model, 200)
    rows = []
    for chunk in (1, 3, 64, 200):
        with model.session(200, "f16", chunk=chunk) as s:
            found = s.eval(ids)
        assert found is not None
        rows.append(found)
    for found in rows[1:]:
        assert np.linalg.norm(found - rows[0]) < 2e-3 * np.linalg.norm(rows[0])


def test_measuring_attention_leaves_them_out(model: Model) -> None:
    ids = ids_for(model, 400)
    found = observe(model, "t", ids, prompt=128, stride=16, windows=(64,))
    assert sum(found.mass) + found.sink_mass == pytest.approx(1, rel=1e-3)
    assert sum(found.tokens) == pytest.approx(np.mean(np.arange(144, 401, 16)) - SINKS)
    exact, coded = evaluate(model, "t", ids, ["q8_0"], prompt=200, stride=16)
    assert (exact.bits, coded.bits) == (16.0, 9.0)
    assert exact.kv_bytes == 2 * VALUES * 399 + STATE_BYTES


def test_the_commands(path: Path) -> None:
    told = call("info", path).out
    assert "5, 3 of them have a state of a fixed size and no keys" in told
    assert "4 heads and 2 KV heads of 16" in told
    plans = {plan["kv"]: plan for plan in call("info", path, "--json", "--ctx", 512).json()["plans"]}
    assert plans["f16"]["bits"] == 16
    assert {plan["recurrent_bytes"] for plan in plans.values()} == {STATE_BYTES}
    ran = call("run", path, "--json", "-n", 4, "-p", "hello", "--kv", "f16").json()["kv"]
    assert ran["used_bytes"] == ran["f16_bytes"] == ran["n_tokens"] * VALUES * 2 + STATE_BYTES
    talk = call("chat", path, "--max-tokens", 4, "--temp", 0, stdin="hello\nand more\n/retry\n/stats\n/undo\nno\n")
    assert talk.status == 0
    assert re.search(rf"rings 0.0 KiB, recurrent states {STATE_BYTES / 1024:.1f} KiB\n", talk.out)


def refusal(path: Path) -> str:
    with pytest.raises(LogQuantError) as caught:
        Model(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


KERNEL = "blk.0.shortconv.conv.weight"
F32 = gguf.GGMLQuantizationType.F32


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        (KERNEL, None, f"tensor '{KERNEL}' is missing"),
        (KERNEL, lambda x: x[:, :3], "has shape [3, 64, 1, 1], expected [4, 64]"),
        (KERNEL, lambda x: x * np.float32(np.nan), f"tensor '{KERNEL}' holds NaN or an infinity at 0"),
        ("blk.0.shortconv.in_proj.weight", lambda x: x[:128], "has shape [64, 128, 1, 1], expected [64, 192]"),
        ("blk.0.attn_norm.weight", None, "tensor 'blk.0.attn_norm.weight' is missing"),
        ("token_embd_norm.weight", None, "tensor 'output_norm.weight' is missing"),
        ("output_norm.weight", lambda x: x, "does not use: 'output_norm.weight'"),
        ("dense_2.weight", lambda x: x, "does not use: 'dense_2.weight', of a model that embeds texts"),
        ("blk.1.shortconv.conv.weight", lambda x: x, "'blk.1.shortconv.conv.weight', of a short convolution, which"),
        ("blk.0.shortconv.in_proj.bias", lambda x: x, "biases that this architecture does not have"),
    ],
)
def test_tensors_are_checked(name: str, change: Any, words: str, path: Path, tmp_path: Path) -> None:
    def edit(tensors: Any) -> Any:
        found = dict(tensors)
        data = found.pop(name, (np.ones(N_EMBD, np.float32), F32))[0]
        return {**found, **({name: (np.ascontiguousarray(change(data)), F32)} if change is not None else {})}

    copy_gguf(path, tmp_path / "m.gguf", tensors=edit)
    assert words in refusal(tmp_path / "m.gguf")


def test_the_output_norm_has_two_names(path: Path, model: Model, tmp_path: Path) -> None:
    def rename(tensors: Any) -> Any:
        return {("output_norm.weight" if n == "token_embd_norm.weight" else n): v for n, v in tensors.items()}

    copy_gguf(path, tmp_path / "m.gguf", tensors=rename)
    ids = ids_for(model, 30)
    with Model(tmp_path / "m.gguf", threads=2) as other, other.session(64) as one, model.session(64) as two:
        found, wanted = one.eval(ids), two.eval(ids)
    assert found is not None
    assert wanted is not None
    assert np.array_equal(found, wanted)
