"""Every key of a supported architecture that changes what a model computes is followed, or refused by name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
import numpy.typing as npt
import pytest
import reference
from gguf.constants import Keys
from gguf_copy import Typed, copy_gguf
from make_tiny_gguf import make_tiny

from pylogquant import Model
from pylogquant.errors import LogQuantError

ROOT = Path(__file__).parents[2]
U32, I32, F32, BOOL, STRING, ARRAY = (
    getattr(gguf.GGUFValueType, name) for name in ("UINT32", "INT32", "FLOAT32", "BOOL", "STRING", "ARRAY")
)
IDS = [int(i) for i in np.random.default_rng(1).integers(0, 250, 70)]
PATTERN = "attention.sliding_window_pattern"

Logits = npt.NDArray[Any]


class Followed(NamedTuple):
    """A model, keys to set in it, and who else follows them: transformers, llama.cpp, or only the NumPy reference."""

    model: dict[str, Any]
    keys: dict[str, Typed | None]
    peer: str = "transformers"


def flags(*values: int) -> Typed:
    return Typed([bool(value) for value in values], ARRAY)


def f32(value: float) -> Typed:
    return Typed(value, F32)


LFM2, L_CACHE = {"arch": "lfm2"}, "shortconv.l_cache"
GEMMA2, GEMMA3 = {"arch": "gemma2", "window": 9}, {"arch": "gemma3", "window": 9}
OLMO3 = {"arch": "olmo2", "n_layers": 5, "window": 9, "tied": False}
QWEN2_YARN = {"arch": "qwen2", "rope_scaling": "yarn", "rope_scale": 4.0, "head_dim": 64}

FOLLOWED: dict[str, Followed] = {
    "gemma2, every third is global": Followed(GEMMA2, {PATTERN: Typed(3, U32)}),
    "gemma2, flags": Followed(GEMMA2, {PATTERN: flags(1, 1, 0, 0)}),
    "gemma3, every second is global": Followed(GEMMA3, {PATTERN: Typed(2, U32)}),
    "gemma3, all slide": Followed(GEMMA3, {PATTERN: Typed(0, U32)}),
    "gemma3, none slides": Followed(GEMMA3, {PATTERN: Typed(1, U32)}),
    "gemma3, flags": Followed(GEMMA3, {PATTERN: flags(0, 1, 1, 0, 1, 1, 1)}),
    "gemma3, numbers for flags": Followed(GEMMA3, {PATTERN: Typed([0, 1, 1, 0, 1, 1, 1], ARRAY)}),
    "gemma3, flags, wide window": Followed(
        {"arch": "gemma3", "window": 512}, {PATTERN: Typed([0, 1, 1, 0, 1, 1, 1], ARRAY)}
    ),
    "olmo2, flags": Followed(OLMO3, {PATTERN: flags(1, 0, 0, 1, 1)}),
    "olmo2, every second is global": Followed(OLMO3, {PATTERN: Typed(2, U32)}),
    "phi3, every second is global": Followed({"arch": "phi3", "window": 9}, {PATTERN: Typed(2, U32)}, ""),
    "gemma3, no window": Followed(GEMMA3, {"attention.sliding_window": None}, "llama.cpp"),
    "gemma3, window 0": Followed(GEMMA3, {"attention.sliding_window": Typed(0, U32)}, "llama.cpp"),
    "gemma2, no window": Followed(GEMMA2, {"attention.sliding_window": None}, "llama.cpp"),
    "gemma3, base of sliding layers": Followed(GEMMA3, {"rope.freq_base_swa": f32(300.0)}),
    "gemma3, the names of bases in Ollama's files": Followed(
        GEMMA3,
        {"rope.freq_base": None, "rope.global.freq_base": f32(5000.0), "rope.local.freq_base": f32(300.0)},
    ),
    "gemma2, base of sliding layers": Followed(GEMMA2, {"rope.freq_base_swa": f32(300.0)}, "llama.cpp"),
    "olmo2, base of sliding layers": Followed(OLMO3, {"rope.freq_base_swa": f32(300.0)}),
    "gemma3, scale of scores": Followed(GEMMA3, {"attention.scale": f32(0.1)}),
    "smollm3, scale of scores": Followed({"arch": "smollm3"}, {"attention.scale": f32(0.1)}, ""),
    "gemma3, soft cap": Followed(GEMMA3, {"final_logit_softcapping": f32(2.0)}),
    "gemma3, soft cap of scores": Followed(GEMMA3, {"attn_logit_softcapping": f32(0.5)}, ""),
    "llama, multipliers": Followed(
        {"arch": "llama"},
        {"embedding_scale": f32(3.0), "residual_scale": f32(0.4), "logit_scale": f32(1.7)},
        "",
    ),
    "llama, old name of linear scaling": Followed({"arch": "llama"}, {"rope.scale_linear": f32(4.0)}, "llama.cpp"),
    "llama, factor without a kind": Followed({"arch": "llama"}, {"rope.scaling.factor": f32(4.0)}, "llama.cpp"),
    "qwen2, ends of yarn": Followed(
        QWEN2_YARN, {"rope.scaling.yarn_beta_fast": f32(2.0), "rope.scaling.yarn_beta_slow": f32(0.3)}
    ),
    "qwen2, stretch of yarn": Followed(QWEN2_YARN, {"rope.scaling.attn_factor": f32(1.3)}),
    "gemma3, stretch of yarn": Followed(
        {**GEMMA3, "rope_scaling": "yarn", "rope_scale": 4.0}, {"rope.scaling.attn_factor": f32(1.3)}
    ),
    "phi3, stretch of longrope": Followed(
        {"arch": "phi3", "rope_scaling": "longrope", "n_ctx": 256, "n_ctx_original": 64},
        {"rope.scaling.attn_factor": f32(1.6)},
    ),
    "granite, no rope": Followed({"arch": "granite"}, {"rope.scaling.finetuned": Typed(False, BOOL)}, "llama.cpp"),
    "llama, experts of a token": Followed({"arch": "llama", "n_experts": 5}, {"expert_used_count": Typed(3, U32)}),
    "llama, epsilon": Followed({"arch": "llama"}, {"attention.layer_norm_rms_epsilon": f32(0.3)}),
    "llama, base": Followed({"arch": "llama"}, {"rope.freq_base": f32(200.0)}),
    "lfm2, base": Followed(LFM2, {"rope.freq_base": f32(200.0)}),
    "lfm2, epsilon": Followed(LFM2, {"attention.layer_norm_rms_epsilon": f32(0.3)}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


def with_keys(folder: Path, model: dict[str, Any], keys: dict[str, Typed | None]) -> tuple[Path, Path]:
    """The model as it is made, and with the keys."""
    name = "-".join(str(value) for value in model.values())
    plain, changed = folder / f"{name}.gguf", folder / "changed.gguf"
    if not plain.exists():
        make_tiny(plain, **model)
    copy_gguf(plain, changed, keys={f"{model['arch']}.{suffix}": value for suffix, value in keys.items()})
    return plain, changed


def our_logits(path: Path, n_ctx: int = 0) -> Logits:
    with Model(path, threads=2) as model, model.session(n_ctx, "f16") as session:
        found = session.eval(IDS, "all")
    assert found is not None
    return found


def distance(found: Logits, wanted: Logits) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


@pytest.mark.tiny_model
@pytest.mark.parametrize("name", FOLLOWED)
def test_followed(name: str, folder: Path) -> None:
    plain, changed = with_keys(folder, FOLLOWED[name].model, FOLLOWED[name].keys)
    ours, wanted = our_logits(changed), reference.forward(changed, IDS)
    assert distance(ours, wanted) < 2e-3
    assert distance(our_logits(plain), wanted) > 1e-2, "the key must make a difference"


def read_by(peer: str) -> list[str]:
    return [name for name, case in FOLLOWED.items() if case.peer == peer]


@pytest.mark.oracle
@pytest.mark.parametrize("name", read_by("transformers"))
def test_followed_as_transformers_does(name: str, folder: Path) -> None:
    import hf_reference

    _, changed = with_keys(folder, FOLLOWED[name].model, FOLLOWED[name].keys)
    wanted = hf_reference.logits(hf_reference.load(changed), IDS).astype(np.float64)
    assert distance(reference.forward(changed, IDS), wanted) < 1e-5


@pytest.mark.oracle
@pytest.mark.parametrize("name", read_by("llama.cpp"))
def test_followed_as_llama_cpp_does(name: str, folder: Path) -> None:
    import parity

    _, changed = with_keys(folder, FOLLOWED[name].model, FOLLOWED[name].keys)
    _, wanted = parity.peer_logits(changed, IDS, 2, flash=False)
    assert distance(our_logits(changed), wanted.astype(np.float64)) < 2e-3


@pytest.mark.oracle
@pytest.mark.parametrize("weight_type", ["F32", "NVFP4"])
@pytest.mark.parametrize("arch", ["llama", "qwen3moe"])
def test_factors_are_llama_cpps(weight_type: Any, arch: Any, tmp_path: Path) -> None:
    """The tensors .scale. llama.cpp reads that of an output matrix only where it is NVFP4."""
    import parity

    path = make_tiny(tmp_path / "m.gguf", arch, weight_type=weight_type, factors=True, tied=weight_type == "F32")
    _, wanted = parity.peer_logits(path, IDS, 2, flash=False)
    assert distance(our_logits(path), wanted.astype(np.float64)) < (2e-3 if weight_type == "F32" else 6e-2)


@pytest.mark.tiny_model
@pytest.mark.parametrize("tied", [True, False])
def test_factors_of_the_embedding_and_the_head(tied: bool, tmp_path: Path) -> None:
    plain, path = make_tiny(tmp_path / "plain.gguf", tied=tied), tmp_path / "m.gguf"
    names = ["token_embd"] if tied else ["token_embd", "output"]
    scales = {f"{name}.scale": np.array([factor], np.float32) for name, factor in zip(names, (3.0, 0.02), strict=False)}
    f32_type = gguf.GGMLQuantizationType.F32
    copy_gguf(plain, path, tensors=lambda t: {**t, **{name: (value, f32_type) for name, value in scales.items()}})
    ours, wanted = our_logits(path), reference.forward(path, IDS)
    assert distance(ours, wanted) < 2e-3
    assert distance(our_logits(plain), wanted) > 0.1


# ---- the table -------------------------------------------------------------------------------------------------------


class Rule(NamedTuple):
    suffix: str
    kind: str
    neutral: float
    also_neutral: float


RULES = [
    Rule(suffix, kind, float(neutral), float(also))
    for suffix, kind, neutral, also in re.findall(
        r'^LQ_KEY\("([^"]+)", (\w+), (-?\d+), (-?\d+)\)',
        (ROOT / "native/src/model/keys.def").read_text(encoding="utf-8"),
        flags=re.MULTILINE,
    )
]
# An architecture that does not follow keys of a kind.
REFUSED_FOR = {
    "REFUSED": "llama",
    "OF_EXPERTS": "qwen3moe",
    "SOFTCAPS": "llama",
    "MULTIPLIERS": "qwen2",
    "EXPERTS": "qwen2",
    "SHORT_CONV": "llama",
    "WINDOW": "qwen2",
}


def known_keys(group: type) -> Iterator[str]:
    for name, value in vars(group).items():
        if isinstance(value, type):
            yield from known_keys(value)
        elif not name.startswith("_") and isinstance(value, str) and value.startswith("{arch}."):
            yield value.removeprefix("{arch}.")


def test_every_key_that_gguf_knows_is_in_the_table() -> None:
    known = set(known_keys(Keys)) - {"{dense}_feat_in", "{dense}_feat_out"}
    assert len(known) > 90
    assert known <= {rule.suffix for rule in RULES}
    assert len(RULES) == len({rule.suffix for rule in RULES})


def test_the_docs_have_the_same_table() -> None:
    text = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    section = text.partition("## Keys")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", section, flags=re.MULTILINE))
    words = {
        "read": {"READ"},
        "read by some architectures, refused for others": {
            "SOFTCAPS",
            "MULTIPLIERS",
            "EXPERTS",
            "SHORT_CONV",
            "WINDOW",
        },
        "refused": {"REFUSED"},
        "refused in mixtures of experts": {"OF_EXPERTS"},
        "no effect on logits": {"NO_EFFECT"},
    }
    for title, kinds in words.items():
        assert set(re.findall(r"`([^`]+)`", rows[title])) == {r.suffix for r in RULES if r.kind in kinds}, title


def numbers(value: float) -> list[Typed]:
    """A number as writers may store it."""
    found = [Typed(value, F32), Typed([value] * 2, ARRAY), Typed(int(value), I32)]
    return [*found, Typed(bool(value), BOOL)] if value in (0, 1) else found


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.kind in REFUSED_FOR], ids=lambda rule: rule.suffix)
def test_refused_by_name(rule: Rule, folder: Path) -> None:
    arch = REFUSED_FOR[rule.kind]
    for value in (rule.neutral, rule.also_neutral):
        for typed in numbers(value):
            _, path = with_keys(folder, {"arch": arch}, {rule.suffix: typed})
            Model(path).close()
    others = [Typed(7.0, F32), Typed([rule.neutral, 7.0], ARRAY), Typed(7, U32), Typed("seven", STRING)]
    if rule.neutral == rule.also_neutral:
        others.append(Typed(not rule.neutral, BOOL))
    for typed in others:
        _, path = with_keys(folder, {"arch": arch}, {rule.suffix: typed})
        with pytest.raises(LogQuantError, match=re.escape(f"'{arch}.{rule.suffix}', which this build does not run")):
            Model(path)


def test_keys_without_effect_have_none(folder: Path) -> None:
    for arch in ("llama", "qwen3", "lfm2"):
        plain, path = with_keys(
            folder, {"arch": arch}, {rule.suffix: Typed(7, U32) for rule in RULES if rule.kind == "NO_EFFECT"}
        )
        assert np.array_equal(our_logits(path), our_logits(plain))


@pytest.mark.parametrize(
    ("model", "keys", "words"),
    [
        (GEMMA3, {PATTERN: flags(1, 1, 0)}, f"'gemma3.{PATTERN}' holds 3 flags for 7 layers"),
        (GEMMA3, {PATTERN: Typed([1, 1, 2, 1, 1, 1, 1], ARRAY)}, f"'gemma3.{PATTERN}' must hold a flag for each layer"),
        (GEMMA3, {PATTERN: Typed(["yes"] * 7, ARRAY)}, f"'gemma3.{PATTERN}' must hold a flag for each layer"),
        (GEMMA3, {PATTERN: f32(2.0)}, f"'gemma3.{PATTERN}' is of type f32; an integer expected"),
        (GEMMA3, {"rope.freq_base_swa": f32(0.0)}, "'gemma3.rope.freq_base_swa' must be a positive number"),
        (GEMMA3, {"attention.key_length_swa": Typed(8, U32)}, "'gemma3.attention.key_length_swa', which"),
        (GEMMA3, {"rope.dimension_count_swa": Typed(8, U32)}, "'gemma3.rope.dimension_count_swa', which"),
        (GEMMA3, {"hidden_activation": Typed("silu", STRING)}, "'gemma3.hidden_activation', which"),
        ({"arch": "llama"}, {"hidden_activation": Typed("gelu", STRING)}, "'llama.hidden_activation', which"),
        ({"arch": "llama"}, {"embedding_length_out": Typed(32, U32)}, "'llama.embedding_length_out', which"),
        ({"arch": "llama"}, {"attention.sliding_window": Typed(511, U32)}, "'llama.attention.sliding_window', which"),
        (
            {"arch": "phi3", "rope_scaling": "longrope", "window": 9},
            {"rope.freq_base_swa": f32(300.0)},
            "'phi3.rope.freq_base_swa', which",
        ),
        (
            {"arch": "llama"},
            {"attention.head_count_kv": Typed([2, 1], ARRAY)},
            "tensor 'blk.1.attn_k.weight' has shape [64, 32, 1, 1], expected [64, 16]",
        ),
        (
            {"arch": "llama"},
            {"attention.head_count_kv": Typed([2, 0], ARRAY)},
            "head_count_kv' is 0 for layer 2; it must",
        ),
        (
            LFM2,
            {"attention.head_count_kv": Typed([0] * 4, ARRAY)},
            "no layer attends: key 'lfm2.attention.head_count_kv'",
        ),
        (
            LFM2,
            {"attention.head_count_kv": Typed([0, 0, 3, 0], ARRAY)},
            "4 attention heads cannot share 3 KV heads evenly",
        ),
        (LFM2, {"attention.head_count_kv": Typed([0, 0, 2, 2], ARRAY)}, "tensor 'blk.3.attn_q.weight' is missing"),
        (LFM2, {"attention.head_count_kv": Typed([0, 0, 0, 0, 2], ARRAY)}, "holds 5 numbers; one, or 4 expected"),
        (LFM2, {"attention.head_count_kv": Typed(2, U32)}, "tensor 'blk.0.attn_q.weight' is missing"),
        (LFM2, {L_CACHE: None}, f"key 'lfm2.{L_CACHE}' is missing"),
        (LFM2, {L_CACHE: Typed(1, U32)}, f"key 'lfm2.{L_CACHE}' is 1; it must be 2 to 16"),
        (LFM2, {L_CACHE: Typed(17, U32)}, f"key 'lfm2.{L_CACHE}' is 17; it must be 2 to 16"),
        (
            LFM2,
            {L_CACHE: Typed(4, U32)},
            "tensor 'blk.0.shortconv.conv.weight' has shape [3, 64, 1, 1], expected [4, 64]",
        ),
        (LFM2, {"attention.causal": Typed(False, BOOL)}, "'lfm2.attention.causal', which this build does not run"),
        (LFM2, {"attention.sliding_window": Typed(64, U32)}, "'lfm2.attention.sliding_window', which this build"),
        (
            LFM2,
            {"feed_forward_length": Typed(192, U32)},
            "tensor 'blk.0.ffn_gate.weight' has shape [64, 128, 1, 1], expected [64, 192]",
        ),
        ({"arch": "llama"}, {"block_count": Typed([2], ARRAY)}, "'llama.block_count' is of type array; an integer"),
        ({"arch": "llama"}, {"feed_forward_length": Typed([128] * 3, ARRAY)}, "holds 3 numbers; one, or 2 expected"),
        ({"arch": "llama"}, {"attention.head_count": Typed(["4"] * 2, ARRAY)}, "of type string; an integer expected"),
        (
            {"arch": "llama"},
            {"attention.head_count": Typed([4, -4], ARRAY)},
            "'llama.attention.head_count' is negative",
        ),
    ],
)
def test_bad_values(model: dict[str, Any], keys: dict[str, Typed | None], words: str, folder: Path) -> None:
    _, path = with_keys(folder, model, keys)
    with pytest.raises(LogQuantError) as caught:
        Model(path)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_values_that_say_nothing_new(folder: Path) -> None:
    cases: list[tuple[dict[str, Any], dict[str, Typed | None]]] = [
        (GEMMA3, {"hidden_activation": Typed("gelu_pytorch_tanh", STRING)}),
        (GEMMA3, {"attention.key_length_swa": Typed(16, U32), "attention.value_length_swa": Typed(16, U32)}),
        (GEMMA3, {"rope.dimension_count_swa": Typed(16, U32), "embedding_length_out": Typed(64, U32)}),
        ({"arch": "llama"}, {"hidden_activation": Typed("silu", STRING)}),
        ({"arch": "llama"}, {"attention.sliding_window": Typed(512, U32)}),
        ({"arch": "llama"}, {"rope.scaling.finetuned": Typed(False, BOOL)}),
    ]
    for model, keys in cases:
        plain, path = with_keys(folder, model, keys)
        assert np.array_equal(our_logits(path), our_logits(plain)), keys


def test_one_number_a_layer_where_all_are_equal(folder: Path) -> None:
    values = {"attention.head_count": 4, "attention.head_count_kv": 2, "feed_forward_length": 128}
    keys: dict[str, Typed | None] = {suffix: Typed([value] * 2, ARRAY) for suffix, value in values.items()}
    plain, path = with_keys(folder, {"arch": "llama"}, keys)
    assert np.array_equal(our_logits(path), our_logits(plain))


def test_a_window_counts_where_the_context_is_longer_than_trained(folder: Path) -> None:
    """Within 512 tokens it hides nothing, and layers are kept as if there were none; beyond them it does."""
    path = make_tiny(folder / "far.gguf", "gemma3", window=600, n_ctx=512)
    ids = [int(i) for i in np.random.default_rng(2).integers(0, 250, 700)]
    with Model(path, threads=2) as model:
        assert (model.info().n_global_layers, model.info().window) == (7, 0)
        with model.session(1024, "f16", allow_long=True) as session:
            ours = session.eval(ids, "all")
    assert ours is not None
    wanted = reference.forward(path, ids)
    assert distance(ours[650:], wanted[650:]) < 2e-3
    copy_gguf(path, folder / "wider.gguf", keys={"gemma3.attention.sliding_window": Typed(4096, U32)})
    assert distance(reference.forward(folder / "wider.gguf", ids)[650:], wanted[650:]) > 1e-2
