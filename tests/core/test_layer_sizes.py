"""Models whose layers differ in size, which files say with an array for a number: run as the NumPy reference has
them, and refused in one line where the array does not fit.

llama.cpp (2026) reads such arrays for these architectures, but takes the first number for the tensors of all layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from gguf_copy import Tensors, Typed, copy_gguf
from make_tiny_gguf import make_tiny
from session_inputs import ids_for
from test_forward import both, median_error, relative_error

from pylogquant import Model
from pylogquant.errors import LogQuantError, Unsupported
from pylogquant.evaluate import evaluate
from pylogquant.kv import kv_names
from pylogquant.spikes import observe

ARRAY, U32, F32, STRING = (getattr(gguf.GGUFValueType, name) for name in ("ARRAY", "UINT32", "FLOAT32", "STRING"))
N_LAYERS, N_EMBD, N_HEADS, HEAD_DIM, N_FF = 3, 64, 4, 16, 128  # of the models that are cut down
WIDTHS = (96, 32, 128)
HEADS = (4, 2, 2)  # of queries
KV_HEADS = (2, 1, 2)


def array(values: Sequence[Any]) -> Typed:
    return Typed(list(values), ARRAY)


def cut_width(name: str, data: npt.NDArray[Any], n_ff: int) -> npt.NDArray[Any]:
    """A tensor of an FFN with n_ff of its N_FF inner values; of fused models ffn_up holds the gate, too."""
    if "ffn_down.weight" in name or "ffn_down_exps" in name:
        return data[..., :n_ff]
    if "ffn_up.weight" in name and data.shape[0] == 2 * N_FF:
        return np.concatenate([data[:n_ff], data[N_FF : N_FF + n_ff]])
    if "ffn_gate_inp" in name or "ffn_down.bias" in name or "norm" in name:
        return data
    return data[..., :n_ff, :] if data.ndim > 1 else data[:n_ff]


def cut_heads(name: str, data: npt.NDArray[Any], n_heads: int, n_kv_heads: int) -> npt.NDArray[Any]:
    if "attn_q." in name:
        return data[: n_heads * HEAD_DIM]
    if "attn_k." in name or "attn_v." in name:
        return data[: n_kv_heads * HEAD_DIM]
    return data[:, : n_heads * HEAD_DIM] if "attn_output.weight" in name else data


def differing(
    path: Path,
    arch: Any,
    *,
    widths: Sequence[int] = (),
    heads: Sequence[int] = (),
    kv_heads: Sequence[int] = (2, 2, 2),
    keys: Any = None,
    **sizes: Any,
) -> Path:
    """A model of N_LAYERS layers, cut down to so many inner values, query heads and KV heads in each."""
    whole = make_tiny(path.with_name(f"whole-{path.name}"), arch, n_layers=N_LAYERS, n_ff=N_FF, **sizes)

    def cut(tensors: Tensors) -> Tensors:
        found = dict(tensors)
        for name, (data, kind) in tensors.items():
            if not name.startswith("blk."):
                continue
            layer = int(name.split(".")[1])
            if "ffn" in name and widths:
                found[name] = (np.ascontiguousarray(cut_width(name, data, widths[layer])), kind)
            elif "attn" in name and heads:
                found[name] = (np.ascontiguousarray(cut_heads(name, data, heads[layer], kv_heads[layer])), kind)
        return found

    changes: dict[str, Typed | None] = {}
    if widths:
        changes[f"{arch}.feed_forward_length"] = array(widths)
    if heads:
        changes[f"{arch}.attention.head_count"] = array(heads)
        changes[f"{arch}.attention.head_count_kv"] = array(kv_heads)
        changes[f"{arch}.attention.key_length"] = changes[f"{arch}.attention.value_length"] = Typed(HEAD_DIM, U32)
    copy_gguf(whole, path, keys={**changes, **(keys or {})}, tensors=cut)
    return path


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"widths": WIDTHS}),
    "llama, biases": ("llama", {"widths": WIDTHS, "biases": True}),
    "llama, experts": ("llama", {"widths": WIDTHS, "n_experts": 5}),
    "llama, experts of their own width": (
        "llama",
        {
            "widths": WIDTHS,
            "n_experts": 5,
            "keys": {"llama.feed_forward_length": Typed(7, U32), "llama.expert_feed_forward_length": array(WIDTHS)},
        },
    ),
    "phi3, fused": ("phi3", {"widths": WIDTHS}),
    "gemma2, sliding layers": ("gemma2", {"widths": WIDTHS, "window": 9}),
    "llama, query heads": ("llama", {"heads": HEADS}),
    "llama, KV heads": ("llama", {"heads": (4, 4, 4), "kv_heads": KV_HEADS}),
    "llama, heads of both kinds": ("llama", {"heads": HEADS, "kv_heads": KV_HEADS}),
    "gemma3, KV heads, sliding layers": ("gemma3", {"heads": HEADS, "kv_heads": (2, 2, 1), "window": 9}),
    "gemma3, query heads and widths": ("gemma3", {"heads": HEADS, "widths": WIDTHS, "window": 9}),
}


@pytest.mark.tiny_model
@pytest.mark.parametrize("name", MODELS)
def test_like_the_reference(name: str, tmp_path: Path) -> None:
    arch, sizes = MODELS[name]
    path = differing(tmp_path / "m.gguf", arch, **sizes)
    for chunk in (24, 1):
        ours, wanted = both(path, 50, chunk)
        assert relative_error(ours, wanted) < 1e-3
        assert relative_error(ours[1:], wanted[:-1]) > 0.1


def test_keys_and_values_are_counted_layer_by_layer(tmp_path: Path) -> None:
    path = differing(tmp_path / "m.gguf", "gemma3", heads=(4, 4, 2), kv_heads=(2, 1, 2), window=9)
    copy_gguf(
        path, tmp_path / "flags.gguf", keys={"gemma3.attention.sliding_window_pattern": array([False, True, False])}
    )
    with Model(tmp_path / "flags.gguf", threads=2) as model:
        facts = model.info()
        assert (facts.n_layers, facts.n_global_layers, facts.window) == (3, 2, 9)
        assert (facts.kv_values, facts.kv_values_sliding) == (2 * 4 * HEAD_DIM, 2 * HEAD_DIM)
        ids = ids_for(model, 400)
        with model.session(512, "f16", chunk=64) as session:
            session.eval(ids)
            info = session.info()
            assert [session.kv.n_heads(layer) for layer in range(3)] == [2, 1, 2]
        assert info.kv_bits == info.kv_bits_now == 16
        assert info.kv_used_bytes == info.kv_f16_bytes == 2 * (400 * facts.kv_values) + info.kv_usage.ring_bytes
        with model.session(512, "logquant-small", chunk=64) as session:
            session.eval(ids)
            assert session.info().kv_bits == pytest.approx(8 * session.info().kv_global_bytes / facts.kv_values / 512)
            assert [len(session.kv.page(layer, 1, 1).record) > 0 for layer in (0, 2)] == [True, True]
            with pytest.raises(LogQuantError, match="layer 1, KV head 1: there are 3 layers and 1 KV heads"):
                session.kv.full(1, 1)
        # Query heads per KV head differ, too: 2 and 1.
        found = observe(model, "t", ids, prompt=128, stride=16, windows=(64,))
        assert sum(found.mass) + found.sink_mass == pytest.approx(1, rel=1e-3)
        exact, coded = evaluate(model, "t", ids, ["q8_0"], prompt=200, stride=16)
        assert (exact.bits, coded.bits) == (16.0, 9.0)


def test_a_device_takes_only_so_many_shapes(tmp_path: Path) -> None:
    """Of paged layers; cells take any number."""
    n = 9
    path = make_tiny(tmp_path / "whole.gguf", "llama", n_layers=n, n_heads=12, n_kv_heads=12, head_dim=16, n_embd=64)

    def cut(tensors: Tensors) -> Tensors:
        found = dict(tensors)
        for name, (data, kind) in tensors.items():
            if "attn_" in name and "norm" not in name:
                size = (int(name.split(".")[1]) + 1) * HEAD_DIM
                found[name] = (np.ascontiguousarray(data[:, :size] if "output" in name else data[:size]), kind)
        return found

    counts = array(list(range(1, n + 1)))
    head_size = dict.fromkeys(("llama.attention.key_length", "llama.attention.value_length"), Typed(HEAD_DIM, U32))
    keys = {"llama.attention.head_count": counts, "llama.attention.head_count_kv": counts, **head_size}
    copy_gguf(path, tmp_path / "m.gguf", keys=keys, tensors=cut)
    ours, wanted = both(tmp_path / "m.gguf", 40, 16)
    assert relative_error(ours, wanted) < 1e-3
    with Model(tmp_path / "m.gguf") as model, pytest.raises(Unsupported, match="layers of more than 8 shapes"):
        model.session(64, "logquant")


@pytest.mark.tiny_model
@pytest.mark.parametrize("kv", [kv for kv in kv_names() if kv != "f16"])
def test_every_kv_type(kv: str, tmp_path: Path) -> None:
    path = differing(tmp_path / "m.gguf", "llama", heads=HEADS, kv_heads=KV_HEADS, widths=WIDTHS)
    ours, wanted = both(path, 300, 300, kv=kv)
    assert median_error(ours, wanted) < {"q8_0": 4e-2, "q4_0": 0.4, "q4_0-plain": 0.4}.get(kv, 1e-3)


def test_what_is_reported_is_the_first_layer(tmp_path: Path) -> None:
    path = differing(tmp_path / "m.gguf", "llama", heads=(2, 4, 4))
    with Model(path) as model:
        assert (model.info().n_heads, model.info().n_kv_heads, model.info().head_dim) == (2, 2, HEAD_DIM)


def refusal(path: Path) -> str:
    with pytest.raises(LogQuantError) as caught:
        Model(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


FF, HEAD_COUNT, KV_COUNT = "feed_forward_length", "attention.head_count", "attention.head_count_kv"


@pytest.mark.parametrize(
    ("suffix", "value", "words"),
    [
        (FF, array([96, 32]), "key 'llama.feed_forward_length' holds 2 numbers; one, or 3 expected"),
        (FF, array([96, 32, 128, 128]), "key 'llama.feed_forward_length' holds 4 numbers; one, or 3 expected"),
        (FF, array([96, 0, 128]), "key 'llama.feed_forward_length' is 0 for layer 2; it must be 1 to 4194304"),
        (FF, array([96, 32, 2**23]), "key 'llama.feed_forward_length' is 8388608 for layer 3; it must be"),
        (FF, array([96, 32, -1]), "key 'llama.feed_forward_length' is negative"),
        (FF, array([96.0, 32.0, 128.0]), "key 'llama.feed_forward_length' is of type f32; an integer expected"),
        (FF, array(["96", "32", "128"]), "key 'llama.feed_forward_length' is of type string; an integer expected"),
        (FF, Typed(96, U32), "tensor 'blk.1.ffn_gate.weight' has shape [64, 32, 1, 1], expected [64, 96]"),
        (FF, array([96, 64, 128]), "tensor 'blk.1.ffn_gate.weight' has shape [64, 32, 1, 1], expected [64, 64]"),
        (HEAD_COUNT, array([4, 0, 4]), "key 'llama.attention.head_count' is 0 for layer 2; it must be 1 to 4096"),
        (HEAD_COUNT, array([4, 3, 4]), "3 attention heads cannot share 2 KV heads evenly in layer 2"),
        (KV_COUNT, array([2, 8, 2]), "key 'llama.attention.head_count_kv' is 8 for layer 2; it must be 1 to 4"),
        (
            KV_COUNT,
            array([2, 2, 1]),
            "tensor 'blk.2.attn_k.weight' has shape [64, 32, 1, 1], expected [64, 16]",
        ),
        (KV_COUNT, array([2, 2]), "key 'llama.attention.head_count_kv' holds 2 numbers; one, or 3 expected"),
        (
            "attention.key_length",
            array([16, 16, 32]),
            "heads of 16 values in layer 1 and of 32 in layer 3; only models",
        ),
        (
            "embedding_length",
            array([64, 64, 32]),
            "'llama.embedding_length' is 64 for the first layer and 32 for layer 3",
        ),
    ],
)
def test_arrays_are_checked(suffix: str, value: Typed, words: str, tmp_path: Path) -> None:
    path = differing(tmp_path / "m.gguf", "llama", widths=WIDTHS, keys={f"llama.{suffix}": value})
    assert words in refusal(path)


def test_head_sizes_that_differ_are_refused(tmp_path: Path) -> None:
    """Without a key that gives their size, heads share the model's width: fewer of them are wider."""
    path = make_tiny(tmp_path / "whole.gguf", "llama", n_layers=N_LAYERS)
    copy_gguf(path, tmp_path / "m.gguf", keys={"llama.attention.head_count": array([4, 4, 2])})
    with pytest.raises(Unsupported, match="heads of 16 values in layer 1 and of 32 in layer 3; only models"):
        Model(tmp_path / "m.gguf")


def test_memory_is_that_of_the_widest_layer(tmp_path: Path) -> None:
    """Blocks run one after the other in the same memory."""
    found = {}
    for name, widths in {"narrow": (32, 32, 32), "one wide": (32, 128, 32), "wide": (128, 128, 128)}.items():
        path = differing(tmp_path / f"{name}.gguf", "llama", widths=widths)
        with Model(path, device="cpu", threads=1) as model, model.session(256, "f16") as session:
            found[name] = session.info().workspace_bytes
    assert found["narrow"] < found["one wide"] == found["wide"]
