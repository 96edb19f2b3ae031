"""Models on a CUDA device: against the NumPy reference and the CPU, sessions that change devices, and every refusal.

With the emulated library (tools/check.py) the kernels run on the CPU; on a GPU tools/checks/gpu_suite.py runs the same
tests.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import reference
from command_line import call, one_error
from make_random_gguf import Shape, make_random
from make_tiny_gguf import Arch, WeightType, make_tiny
from test_forward import SHAPES, median_error, relative_error
from test_kv_models import check_pages
from test_native_handshake import compiler

from pylogquant import (
    ArgumentError,
    FileError,
    KvOptions,
    Model,
    OutOfMemory,
    Sampler,
    SamplingOptions,
    Session,
    Unsupported,
)
from pylogquant.devices import check_cuda, look_at_cuda, valid_device
from pylogquant.errors import InternalError
from pylogquant.model import ModelInfo

pytestmark = pytest.mark.usefixtures("cuda_library")

N_CTX = 512
FEW_SHAPES = (
    "llama, GQA 3, head 64",
    "llama, no GQA, head 80",
    "llama, experts",
    "qwen3moe",
    "gemma2, window of 5, head 256",
    "phi3, head 96",
    "gemma3",
    "lfm2",
)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("cuda") / "m.gguf", n_heads=6, n_kv_heads=2, head_dim=64, n_ctx=N_CTX)


def some_ids(model: Model, n: int, seed: int = 1) -> list[int]:
    return [int(i) for i in np.random.default_rng(seed).integers(0, model.info().n_vocab, n)]


def is_emulated() -> bool:
    name = Path(os.environ["LQ_TEST_CUDA_LIBRARY"]).name
    return "emulated" in name or "ptx" in name


def next_logits(session: Session, token: int) -> npt.NDArray[np.float32]:
    found = session.eval([token])
    assert found is not None
    return found


def logits_after(model: Model, kv: KvOptions | str, n_prompt: int, n_more: int) -> npt.NDArray[np.float32]:
    """Of single tokens behind a prompt that came in two chunks."""
    ids = some_ids(model, n_prompt + n_more)
    with model.session(N_CTX, kv, chunk=n_prompt // 2 + 7) as session:
        session.prefill(ids[:n_prompt])
        rows = [next_logits(session, token) for token in ids[n_prompt:]]
    return np.array(rows, dtype=np.float32)


FACTORS = ("llama, biases and factors", "llama, experts with factors", "phi3, factors")


@pytest.mark.parametrize("name", [*FEW_SHAPES, *FACTORS])
def test_like_the_reference(name: str, tmp_path: Path) -> None:
    path = make_tiny(tmp_path / "m.gguf", **SHAPES[name])
    with Model(path, device="cuda") as model, model.session(chunk=24, kv="f16") as session:
        assert (model.info().device, model.info().n_threads) == ("cuda:0", 0)
        assert session.info().backend == "cuda"
        ids = some_ids(model, 70)
        ours = session.eval(ids, "all")
    assert ours is not None
    assert relative_error(ours, reference.forward(path, ids)) < 1e-3


@pytest.mark.parametrize("weight_type", get_args(WeightType))
def test_weight_types(weight_type: Any, tmp_path: Path) -> None:
    """Prompts go through tiles, single tokens do not: both against the reference."""
    path = make_tiny(tmp_path / "m.gguf", weight_type=weight_type)
    with Model(path, device="cuda") as model, model.session(kv="f16", chunk=24) as session:
        ids = some_ids(model, 28)
        rows = [session.eval(ids[:24], "all"), *(session.eval([token], "all") for token in ids[24:])]
    ours = np.concatenate([row for row in rows if row is not None])
    assert relative_error(ours, reference.forward(path, ids)) < (
        1e-3 if weight_type in ("F32", "F16", "BF16") else 5e-2
    )


@pytest.mark.parametrize("shape", FEW_SHAPES[1:])
@pytest.mark.parametrize("weight_type", ["Q5_0", "Q8_0"])
def test_prompts_by_cublas(
    weight_type: Any, shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda_library: Path
) -> None:
    """Its activations are F16, those of the backend's own kernels 8 bits: nearer to the reference where it is used.
    Where it cannot be had, or is not wanted, the own kernels do all of it."""
    if not look_at_cuda(cuda_library).blas:
        pytest.skip("cuBLAS is not here")
    path = make_tiny(tmp_path / "m.gguf", **{**SHAPES[shape], "weight_type": weight_type, "n_ctx": 512})
    logits = {}
    for how in ("cublas", "off", *(["no memory"] if is_emulated() else [])):
        monkeypatch.setenv("LQ_CUDA_BLAS", "off" if how == "off" else "")
        monkeypatch.setenv("LQ_EMULATED_FAULT", "blas" if how == "no memory" else "")
        with Model(path, device="cuda") as model, model.session(kv="f16", chunk=260) as session:
            ids = some_ids(model, 260)  # a GPU uses it from 256 on
            found = session.eval(ids, "all")
            assert found is not None
            logits[how] = found
    wanted = reference.forward(path, ids)
    errors = {how: median_error(found, wanted) for how, found in logits.items()}
    assert np.array_equal(logits["off"], logits.get("no memory", logits["off"]))
    assert errors["off"] < 5e-2
    assert errors["cublas"] < 0.7 * errors["off"]


@pytest.mark.parametrize("capability", ["7.5", "7.2"])
@pytest.mark.parametrize("weight_type", ["F16", "BF16", "Q4_K"])
def test_older_devices(weight_type: Any, capability: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 7.5 there are no tensor cores for BF16, at 7.2 none at all: prompts go without."""
    if not is_emulated():
        pytest.skip("needs a device whose capability can be chosen")
    monkeypatch.setenv("LQ_EMULATED_CAPABILITY", capability)
    path = make_tiny(tmp_path / "m.gguf", weight_type=weight_type)
    with Model(path, device="cuda") as cuda, Model(path, device="cpu") as cpu:
        found, wanted = (logits_after(model, "f16", 40, 2) for model in (cuda, cpu))
    assert median_error(found, wanted) < (5e-2 if weight_type == "Q4_K" else 1e-3)


@pytest.mark.parametrize("weight_type", ["Q8_0", "F16", "BF16"])
def test_experts_by_tiles(weight_type: Any, tmp_path: Path) -> None:
    """Chunks large enough that an expert's rows become tiles, and single tokens."""
    path = make_tiny(tmp_path / "m.gguf", arch="qwen3moe", n_experts=4, weight_type=weight_type, n_ctx=N_CTX)
    with Model(path, device="cuda") as cuda, Model(path, device="cpu") as cpu:
        found, wanted = (logits_after(model, "f16", 120, 4) for model in (cuda, cpu))
    assert median_error(found, wanted) < (5e-2 if weight_type == "Q8_0" else 1e-3)


@pytest.mark.parametrize("kv", ["f16", "q8_0", "q4_0", "logquant", "logquant-small", "logquant-hq", "logquant-paper"])
def test_every_kind_of_cache_like_the_cpu(kv: str, path: Path) -> None:
    """Behind a past that is packed, in the overlay and in the open page. Over pages both round weights to 8 bits, the
    device not a prompt's. Cells that lie between two codes become either."""
    with Model(path, device="cuda") as cuda, Model(path, device="cpu", threads=2) as cpu:
        found, wanted = (logits_after(model, kv, 440, 12) for model in (cuda, cpu))
    assert median_error(found, wanted) < {"f16": 1e-3, "q8_0": 5e-3, "q4_0": 1e-2}.get(kv, 4e-2)


@pytest.mark.parametrize("shape", [{}, {"head_dim": 80, "n_heads": 6, "n_kv_heads": 2}])
def test_pages_are_the_oracles_bit_for_bit(shape: dict[str, Any], tmp_path: Path) -> None:
    with Model(make_tiny(tmp_path / "m.gguf", **shape), device="cuda") as model:
        for kv in ("logquant", "logquant-small", "logquant-hq", "logquant-paper"):
            check_pages(model, kv, some_ids(model, 420))


def test_a_session_goes_on_on_the_other_device(path: Path, tmp_path: Path) -> None:
    with Model(path, device="cuda") as cuda, Model(path, device="cpu", threads=2) as cpu:
        ids = some_ids(cuda, 450)
        for here, there in ((cuda, cpu), (cpu, cuda)):
            file = tmp_path / f"{here.info().device[:3]}.session"
            with here.session(N_CTX, "logquant") as session:
                session.prefill(ids[:440])
                session.save(file)
                wanted = np.array([next_logits(session, token) for token in ids[440:]])
            with there.load_session(file) as session:
                assert session.tokens == ids[:440]
                found = np.array([next_logits(session, token) for token in ids[440:]])
            assert median_error(found, wanted) < 2e-2


def test_going_back_and_forks_are_exact(path: Path, tmp_path: Path) -> None:
    with Model(path, device="cuda") as model, model.session(N_CTX, "logquant") as session:
        ids = some_ids(model, 440)
        session.prefill(ids[:400])
        session.checkpoint()
        with session.fork() as fork:
            wanted = np.array([next_logits(session, token) for token in ids[400:]])
            assert np.array_equal(np.array([next_logits(fork, token) for token in ids[400:]]), wanted)
        session.save(tmp_path / "s")
        assert session.rewind(400) == 0
        assert np.array_equal(np.array([next_logits(session, token) for token in ids[400:]]), wanted)
        with model.load_session(tmp_path / "s") as loaded:
            assert np.array_equal(next_logits(loaded, ids[0]), next_logits(session, ids[0]))


def check_together(model: Model, kinds: Sequence[str]) -> None:
    """One step of a session of each kind, of contexts of different lengths."""
    ids = some_ids(model, 300)
    sessions = [model.session(N_CTX, kv) for kv in kinds]
    alone = []
    for i, session in enumerate(sessions):
        session.prefill(ids[: 30 + 37 * i])
        with session.fork() as fork:
            alone.append(next_logits(fork, ids[-1]))
    together = model.step(sessions, [ids[-1]] * len(sessions))
    for found, wanted in zip(together, alone, strict=True):
        assert np.linalg.norm(found - wanted) < 1e-4 * np.linalg.norm(wanted)
    for session in sessions:
        session.close()


@pytest.mark.parametrize(
    ("arch", "kv", "n_kernels"), [("llama", "f16", 11), ("llama", "logquant", 13), ("qwen3", "q4_0", 11)]
)
def test_kernels_of_a_layer(arch: Arch, kv: str, n_kernels: int, tmp_path: Path, cuda_library: Path) -> None:
    """Each costs some microseconds, whatever it does: operations of next to no work are run together."""
    if not is_emulated():
        pytest.skip("a GPU does not count the kernels it starts")
    n_launches = ctypes.CDLL(str(cuda_library)).lq_emulated_launches
    n_launches.restype = ctypes.c_uint64
    counts = []
    for n_layers in (1, 3):
        sizes: dict[str, Any] = {"n_layers": n_layers, "n_embd": 256, "weight_type": "Q4_K", "head_dim": 64}
        file = make_tiny(tmp_path / f"{n_layers}.gguf", arch, **sizes)
        with Model(file, device="cuda") as model, model.session(N_CTX, kv) as session:
            session.prefill(some_ids(model, 400))
            before = n_launches()
            session.eval([5])
            counts.append(n_launches() - before)
    assert (counts[1] - counts[0]) / 2 == n_kernels


@pytest.mark.parametrize("kv", ["logquant", "logquant-small", "kivi"])
def test_a_prompt_stops_the_device_once_a_chunk(kv: str, path: Path, cuda_library: Path) -> None:
    """Which tokens stay is decided there: what comes back of a chunk is its logits, whatever the number of layers."""
    # Without checkpoints: a long chunk may take one, a copy for the host, to be cancelled by.
    if not is_emulated():
        pytest.skip("a GPU does not count the copies it makes")
    n_downloads = ctypes.CDLL(str(cuda_library)).lq_emulated_downloads
    n_downloads.restype = ctypes.c_uint64
    with Model(path, device="cuda") as model, model.session(N_CTX, kv, chunk=96, checkpoint_bytes=0) as session:
        ids = some_ids(model, 500)
        before = n_downloads()
        session.prefill(ids[:430])  # more than 3 windows: tokens are given up
        assert n_downloads() - before <= 5
        before = n_downloads()
        for token in ids[430:]:  # a page is completed on the way
            session.eval([token])
        assert n_downloads() - before <= 70


def test_many_sessions_in_one_step(path: Path) -> None:
    """More of them, of more kinds, than one launch of attention takes; each as it would be alone, up to rounding."""
    kinds = ("logquant", "f16", "logquant-small", "q8_0", "logquant-hq", "logquant", "h2o", "f16")
    with Model(path, device="cuda") as model:
        check_together(model, kinds)


SAMPLINGS = (
    SamplingOptions(temperature=0.0, seed=0),
    SamplingOptions(seed=1),  # the defaults: of 40 tokens
    SamplingOptions(seed=2, temperature=1.5, top_k=256, top_p=1.0, min_p=0.0),
    SamplingOptions(seed=3, temperature=1.5, top_k=0),  # these two look at all logits
    SamplingOptions(seed=4, repeat_penalty=1.3),
)


@pytest.mark.parametrize("options", SAMPLINGS)
@pytest.mark.parametrize("n", [0, 1, 99])
def test_tokens_are_those_of_all_logits(options: SamplingOptions, n: int, deep: Path) -> None:
    """Where a few of the best logits are all that comes from the device, it chooses as it would from all of them."""
    with Model(deep, device="cuda", gpu_layers=n) as model, model.session(N_CTX, "f16") as session:
        ids = some_ids(model, 20)
        session.prefill(ids)
        with session.fork() as other:  # its logits were copied
            few, all_ = Sampler(options), Sampler(options)
            for _ in range(40):
                token = session.sample(few).token
                assert other.sample(all_).token == token
                assert few.state == all_.state
                session.append(token)
                assert next_logits(other, token) is not None


def test_logits_come_when_they_are_asked_for(deep: Path, tmp_path: Path) -> None:
    """Checkpoints, forks and files have them, though nobody had copied them from the device."""
    with Model(deep, device="cuda") as model, model.session(N_CTX, "f16") as session:
        ids = some_ids(model, 12)
        with model.session(N_CTX, "f16") as other:
            wanted = [next_logits(other, token) for token in ids]
        for token in ids[:6]:
            session.append(token)
        session.checkpoint()
        session.append(ids[6])
        session.save(tmp_path / "s")
        sampler = Sampler(SamplingOptions(temperature=0.0, logprobs=True))
        with session.fork() as fork, model.load_session(tmp_path / "s") as loaded:
            for known in (session, fork, loaded):
                assert known.sample(sampler).token == int(np.argmax(wanted[6]))
        assert session.rewind(6) == 0
        choice = session.sample(sampler, top=3)
        assert choice.token == int(np.argmax(wanted[5]))
        assert [item.token for item in choice.top] == [int(i) for i in np.argsort(-wanted[5], kind="stable")[:3]]
        model.step([session], [ids[6]], copy=False)
        assert session.sample(sampler).token == int(np.argmax(wanted[6]))


def test_the_random_model_of_benchmarks(tmp_path: Path) -> None:
    """tools/models/make_random_gguf.py: neither all the same nor out of bounds, on both devices alike."""
    path = make_random(
        tmp_path / "m.gguf", Shape(layers=2, embd=256, ff=512, heads=4, kv_heads=2, vocab=600, ctx=N_CTX)
    )
    with Model(path, device="cuda") as cuda, Model(path, device="cpu") as cpu:
        assert cuda.tokenizer.decode(cuda.tokenizer.encode("héllo", bos=False)) == "héllo"
        found, wanted = (logits_after(model, "f16", 20, 2) for model in (cuda, cpu))
    assert 0.01 < float(wanted.std()) < 100.0
    assert median_error(found, wanted) < 5e-2


# ---- some of the layers on the device, the rest on the CPU

N_LAYERS = 4
ENDS = {0: "", 4: "all 4 layers, embedding and output head", 9: "all 4 layers, embedding and output head"}


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(
        tmp_path_factory.mktemp("cuda") / "m.gguf",
        n_layers=N_LAYERS,
        n_heads=6,
        n_kv_heads=2,
        head_dim=64,
        n_ctx=N_CTX,
    )


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As deep, of layers of short convolution before, between and after those that attend."""
    folder = tmp_path_factory.mktemp("cuda")
    return make_tiny(folder / "m.gguf", "lfm2", n_layers=N_LAYERS, attention_layers=(0, 2), n_taps=4, n_ctx=N_CTX)


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 9])
def test_plans(n: int, deep: Path) -> None:
    with Model(deep, device="cuda", gpu_layers=n) as model, model.session(64, "f16") as session:
        info = model.info()
        assert info.n_gpu_layers == min(n, N_LAYERS)
        assert info.device == ("cuda:0" if n else "cpu")
        assert session.info().backend == ("cpu" if not n else "cpu+cuda" if n < N_LAYERS else "cuda")
        assert (info.n_threads == 0) == (n >= N_LAYERS)
        wanted = f"the last {n} of 4 layers and the output head; on the CPU: embedding, the first {4 - n} layers"
        assert info.plan == ENDS.get(n, wanted)


@pytest.mark.parametrize("name", [*FEW_SHAPES, *FACTORS, "llama, untied", "gemma3, linear rope, untied"])
def test_splits_like_the_reference(name: str, tmp_path: Path) -> None:
    path = make_tiny(tmp_path / "m.gguf", **SHAPES[name])
    with Model(path, device="cpu") as model:
        n_layers, ids = model.info().n_layers, some_ids(model, 50)
    wanted = reference.forward(path, ids)
    for n in sorted({1, n_layers // 2, n_layers - 1}):
        with Model(path, device="cuda", gpu_layers=n) as model, model.session(chunk=24, kv="f16") as session:
            assert model.info().n_gpu_layers == n
            ours = session.eval(ids, "all")
        assert ours is not None
        assert relative_error(ours, wanted) < 1e-3


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "kv"),
    [*(("deep", kv) for kv in ("f16", "q8_0", "logquant", "logquant-paper", "h2o")), ("hybrid", "logquant")],
)
def test_split_caches_like_the_cpu(name: str, kv: str, n: int, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(name)
    with Model(path, device="cuda", gpu_layers=n) as split, Model(path, device="cpu", threads=2) as cpu:
        found, wanted = (logits_after(model, kv, 440, 4) for model in (split, cpu))
    assert median_error(found, wanted) < (1e-3 if kv in ("f16", "q8_0", "h2o") else 2e-2)


@pytest.mark.parametrize(("name", "kv"), [("deep", "logquant"), ("deep", "f16"), ("hybrid", "logquant")])
def test_sessions_go_from_one_split_to_another(
    name: str, kv: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Files are the same however layers are divided: what was saved under one plan goes on under any other."""
    plans = [0, 1, 3, 4]
    models = [Model(request.getfixturevalue(name), device="cuda", gpu_layers=n) for n in plans]
    ids = some_ids(models[0], 450)
    files = [tmp_path / f"{n}.session" for n in plans]
    for i, (model, file) in enumerate(zip(models, files, strict=True)):
        with model.session(N_CTX, kv) if i == 0 else model.load_session(files[i - 1]) as session:
            if i == 0:
                session.prefill(ids[:440])
            session.save(file)
    for file in files[1:]:  # loaded and saved again: not a bit has changed
        assert file.read_bytes() == files[0].read_bytes()
    rows = []
    for model in models:
        with model.load_session(files[-1]) as session:
            rows.append(np.array([next_logits(session, token) for token in ids[440:]]))
    for found in rows[1:]:
        assert median_error(found, rows[0]) < 2e-2
    for model in models:
        model.close()


@pytest.mark.parametrize(
    ("name", "kv"), [*(("deep", kv) for kv in ("logquant", "h2o", "f16")), ("hybrid", "logquant"), ("hybrid", "q8_0")]
)
def test_going_back_and_forks_of_a_split(name: str, kv: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(name)
    with Model(path, device="cuda", gpu_layers=2) as model, model.session(N_CTX, kv) as session:
        ids = some_ids(model, 410)
        session.prefill(ids[:400])
        session.checkpoint()
        with session.fork() as fork:
            wanted = np.array([next_logits(session, token) for token in ids[400:]])
            assert np.array_equal(np.array([next_logits(fork, token) for token in ids[400:]]), wanted)
        assert session.rewind(400) == 0
        assert np.array_equal(np.array([next_logits(session, token) for token in ids[400:]]), wanted)


def test_pages_of_a_split_are_the_oracles(deep: Path) -> None:
    with Model(deep, device="cuda", gpu_layers=2) as model:
        check_pages(model, "logquant", some_ids(model, 420))


def test_watched_attention_of_a_split(deep: Path) -> None:
    with Model(deep, device="cuda", gpu_layers=1) as split, Model(deep, device="cpu", threads=2) as cpu:
        seen = []
        for model in (split, cpu):
            with model.session(64, "f16", watch_attention=True) as session:
                session.eval(some_ids(model, 20))
                seen.append([session.kv.attention(layer, 1)[1] for layer in range(N_LAYERS)])
    for found, wanted in zip(*seen, strict=True):
        assert np.allclose(found, wanted, atol=1e-3)


@pytest.mark.parametrize("name", ["deep", "hybrid"])
def test_many_sessions_in_one_step_of_a_split(name: str, request: pytest.FixtureRequest) -> None:
    kinds = ("logquant", "f16", "q8_0", "h2o")
    with Model(request.getfixturevalue(name), device="cuda", gpu_layers=2) as model:
        check_together(model, kinds)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_tentative_tokens_of_a_split(n: int, hybrid: Path) -> None:
    """Three of five are taken in: what comes next is what it is after these three alone, bit for bit."""
    with Model(hybrid, device="cuda", gpu_layers=n) as model:
        ids, rows = some_ids(model, 40), []
        for proposed in (ids[30:35], ids[30:33]):
            with model.session(N_CTX, "logquant", max_tentative=8) as session:
                session.prefill(ids[:30])
                model.step([session], [proposed], tentative=True)
                session.commit(3)
                rows.append(np.array([next_logits(session, token) for token in ids[35:]]))
    assert np.array_equal(rows[0], rows[1])


def test_a_context_that_drops_its_oldest_on_a_split(deep: Path) -> None:
    with Model(deep, device="cuda", gpu_layers=2) as split, Model(deep, device="cpu", threads=2) as cpu:
        ids = some_ids(cpu, 420)
        rows = []
        for model in (split, cpu):
            with model.session(256, "f16", on_full="drop", chunk=50) as session:
                session.prefill(ids[:410])
                rows.append(np.array([next_logits(session, token) for token in ids[410:]]))
    assert median_error(rows[0], rows[1]) < 1e-3


def try_memory(monkeypatch: pytest.MonkeyPatch, path: Path, n_bytes: int) -> ModelInfo | None:
    """The plan for a device of so many bytes; None where there is no room for anything."""
    monkeypatch.setenv("LQ_EMULATED_BYTES", str(n_bytes))
    try:
        model = Model(path, device="cuda")
    except OutOfMemory:
        return None
    with model:
        return model.info()


def test_as_many_layers_as_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From all of them to none, and each plan works: it leaves room for the session that it counted on."""
    if not is_emulated():
        pytest.skip("needs a device whose memory can be chosen")
    path = make_tiny(tmp_path / "m.gguf", n_layers=6, n_embd=256, n_ff=1024, n_heads=4, n_kv_heads=4, head_dim=64)
    with Model(path, device="cuda") as model:
        assert model.info().plan == "all 6 layers, embedding and output head"
        ids = some_ids(model, 4)
        with model.session() as session:
            n_bytes = model.info().weight_bytes + session.info().total_bytes
    counts = []
    for part in range(20, 0, -1):
        info = try_memory(monkeypatch, path, n_bytes * 6 * part // 100)
        counts.append(info.n_gpu_layers if info is not None else 0)
        with Model(path) as automatic, automatic.session() as session:
            assert session.eval(ids) is not None
            assert automatic.info().n_gpu_layers in (0, counts[-1])  # takes the GPU only for a part that is worth it
            assert (automatic.info().device_note == "") == (automatic.info().n_gpu_layers != 0)
        if info is not None:
            with Model(path, device="cuda") as model, model.session() as session:
                assert session.eval(ids) is not None
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) > 3
    assert (counts[0], counts[-1]) == (6, 0)


def test_where_embedding_and_head_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With less and less memory; wherever they are, the model says the same."""
    if not is_emulated():
        pytest.skip("needs a device whose memory can be chosen")
    path = make_random(
        tmp_path / "m.gguf", Shape(layers=3, embd=256, ff=512, heads=4, kv_heads=2, vocab=4000, ctx=N_CTX)
    )
    with Model(path, device="cpu", threads=2) as model:
        wanted, weight_bytes = logits_after(model, "f16", 20, 2), model.info().weight_bytes
    plans: dict[str, int] = {}
    for n_bytes in range(12 * weight_bytes, weight_bytes // 2, -weight_bytes // 25):
        info = try_memory(monkeypatch, path, n_bytes)
        if info is not None:
            plans.setdefault(info.plan, n_bytes)
    assert {
        "all 3 layers, embedding and output head",
        "all 3 layers and the output head; on the CPU: embedding",
        "all 3 layers; on the CPU: embedding, output head",
    } < set(plans)
    for plan, n_bytes in plans.items():
        monkeypatch.setenv("LQ_EMULATED_BYTES", str(n_bytes))
        with Model(path, device="cuda") as model:
            assert model.info().plan == plan
            assert median_error(logits_after(model, "f16", 20, 2), wanted) < 5e-2


def test_layers_that_cannot_be(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArgumentError, match="gpu_layers must be 0 or more"):
        Model(deep, device="cuda", gpu_layers=-1)
    with pytest.raises(ArgumentError, match="2 layers on a GPU with the device 'cpu'"):
        Model(deep, device="cpu", gpu_layers=2)
    if not is_emulated():
        pytest.skip("needs a device that can be taken away")
    monkeypatch.setenv("LQ_EMULATED_BYTES", str(400 << 10))
    with pytest.raises(OutOfMemory, match=r"4 layers on cuda:0 need .* free"):
        Model(deep, device="cuda", gpu_layers=4)
    monkeypatch.setenv("LQ_EMULATED_FAULT", "device")
    with pytest.raises(Unsupported, match="no CUDA device"):
        Model(deep, gpu_layers=2)  # a number is no wish: "auto" does not take the CPU instead
    with Model(deep, gpu_layers=0) as model:
        assert (model.info().device, model.info().device_note) == ("cpu", "")


# ---- devices whose memory is the system's

LEAST_BYTES = 64 << 10  # of memory that the emulated device hands out: what a backend has for itself, no weights


def test_an_integrated_device(cuda_library: Path, deep: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It has what the system has, whatever CUDA calls free."""
    if not is_emulated():
        pytest.skip("needs a device that can be made integrated")
    monkeypatch.setenv("LQ_EMULATED_BYTES", str(LEAST_BYTES))
    assert look_at_cuda(cuda_library).devices[0].free_bytes == LEAST_BYTES
    monkeypatch.setenv("LQ_EMULATED_INTEGRATED", "1")
    device = look_at_cuda(cuda_library).devices[0]
    assert device.integrated
    assert device.free_bytes > 32 << 20
    assert "shared with the CPU; not enough of it for a self-test" in " ".join(call("doctor").out.split())
    with pytest.raises(OutOfMemory, match="cannot give"):  # that is what the emulated device says by then
        Model(deep, device="cuda")


@pytest.mark.parametrize("how", ["coherent", "map"])
def test_weights_in_place(how: str, deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With too little memory for a copy: the model is there, and says what it says elsewhere."""
    if not is_emulated():
        pytest.skip("needs a device that can be made integrated")
    monkeypatch.setenv("LQ_EMULATED_INTEGRATED", "coherent" if how == "coherent" else "1")
    monkeypatch.setenv("LQ_CUDA_WEIGHTS", "map" if how == "map" else "")
    monkeypatch.setenv("LQ_EMULATED_BYTES", str(LEAST_BYTES))
    models = [Model(deep, device="cuda") for _ in range(2)]  # each maps the file for itself
    monkeypatch.delenv("LQ_EMULATED_BYTES")
    with Model(deep, device="cpu", threads=2) as cpu:
        wanted = logits_after(cpu, "f16", 20, 2)
    for model in models:
        with model:
            assert model.info().plan == "all 4 layers, embedding and output head"
            assert median_error(logits_after(model, "f16", 20, 2), wanted) < 1e-3


def test_weights_that_cannot_be_mapped(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_emulated():
        pytest.skip("needs a device that can be made integrated")
    monkeypatch.setenv("LQ_EMULATED_INTEGRATED", "coherent")
    monkeypatch.setenv("LQ_EMULATED_FAULT", "map")
    with Model(deep, device="cuda") as copied, Model(deep, device="cpu", threads=2) as cpu:
        assert median_error(logits_after(copied, "f16", 20, 2), logits_after(cpu, "f16", 20, 2)) < 1e-3
    monkeypatch.setenv("LQ_CUDA_WEIGHTS", "map")
    with pytest.raises(Unsupported, match="cannot read the model's file in place"):
        Model(deep, device="cuda")
    monkeypatch.setenv("LQ_CUDA_WEIGHTS", "both")
    with pytest.raises(ArgumentError, match="LQ_CUDA_WEIGHTS is 'both': must be map or copy"):
        Model(deep, device="cuda")


@pytest.mark.parametrize("alignment", [1, 8])
def test_weights_in_place_that_lie_askew(alignment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files may align their tensors less than kernels read them: those are copied."""
    if not is_emulated():
        pytest.skip("needs a device that can be made integrated")
    path = make_tiny(tmp_path / "m.gguf", weight_type="Q4_K", alignment=alignment)
    monkeypatch.setenv("LQ_CUDA_WEIGHTS", "map")
    with Model(path, device="cuda") as model, Model(path, device="cpu", threads=2) as cpu:
        assert median_error(logits_after(model, "f16", 20, 2), logits_after(cpu, "f16", 20, 2)) < 5e-2


# ---- devices by name


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:1000", "CUDA", ""])
def test_names_that_are_no_device(name: str, path: Path) -> None:
    with pytest.raises(ArgumentError, match="device is auto, cpu, cuda"):
        valid_device(name)
    with pytest.raises(ArgumentError):
        Model(path, device=name)


def test_a_device_that_is_not_there(path: Path) -> None:
    with pytest.raises(ArgumentError, match="there is no device cuda:99"):
        Model(path, device="cuda:99")


def test_auto_takes_the_device(path: Path) -> None:
    with Model(path) as model:
        assert (model.info().device, model.info().device_note) == ("cuda:0", "")


@pytest.mark.parametrize("library", ["missing.so", "text.so", "other.so"])
def test_no_library(library: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pylogquant._native import library_path

    name = tmp_path / library if library != "other.so" else library_path  # a library, but not that one
    (tmp_path / "text.so").write_text("no library")
    monkeypatch.setenv("LQ_CUDA_LIBRARY", str(name))
    with pytest.raises((FileError, Unsupported)):
        Model(path, device="cuda")
    with Model(path) as model:
        info = model.info()
    assert info.device == "cpu"
    assert info.n_threads > 0
    assert str(name) in info.device_note


@pytest.mark.parametrize("answer", ["NULL", "(static_numbers)"])
def test_a_stale_library(answer: str, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that refuses the core, and one that the core refuses: both say so by name."""
    source, library = tmp_path / "stale.c", tmp_path / "stale.so"
    source.write_text(
        "#include <stddef.h>\nstatic const unsigned static_numbers[64] = {1, 2};\n"
        f"const void *lq_gpu_library_open(const void *core) {{ (void)core; static const void *at; at = {answer};"
        " return at; }\n"
    )
    subprocess.run([*compiler(), "-shared", "-fPIC", "-w", "-o", str(library), str(source)], check=True)
    monkeypatch.setenv("LQ_CUDA_LIBRARY", str(library))
    with pytest.raises(Unsupported, match=r"stale\.so: the CUDA backend's library is of another version"):
        Model(path, device="cuda")
    with pytest.raises(Unsupported, match="of another version"):
        look_at_cuda(library)


@pytest.mark.parametrize(("fault", "words"), [("driver", "driver is too old"), ("device", "no CUDA device")])
def test_no_device(fault: str, words: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_emulated():
        pytest.skip("needs a device that can be taken away")
    monkeypatch.setenv("LQ_EMULATED_FAULT", fault)
    with pytest.raises(Unsupported, match=words):
        Model(path, device="cuda")
    with Model(path) as model:
        assert model.info().device == "cpu"
        assert words in model.info().device_note


def test_too_little_memory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not is_emulated():
        pytest.skip("needs a device whose memory can be chosen")
    monkeypatch.setenv("LQ_EMULATED_BYTES", str(200 << 10))
    with pytest.raises(OutOfMemory, match=r"cuda:0 has .* free: not enough for one layer and a session"):
        Model(path, device="cuda")
    with Model(path) as model:
        assert model.info().device == "cpu"
        assert "cuda:0 has" in model.info().device_note
    monkeypatch.setenv("LQ_EMULATED_BYTES", str(4 << 20))
    with Model(path, device="cuda", gpu_layers=99) as model, pytest.raises(OutOfMemory, match="try a context of"):
        model.session(N_CTX, "f16", chunk=512)


# ---- looking


def test_what_the_library_says(cuda_library: Path) -> None:
    found = look_at_cuda(cuda_library)
    assert found.problem == ""
    assert found.archs
    assert found.blas == "emulated" or not is_emulated()
    assert found.devices[0].id == "cuda:0"
    assert 0 < found.devices[0].free_bytes <= found.devices[0].total_bytes
    check_cuda(cuda_library)
    with pytest.raises(ArgumentError):
        check_cuda(cuda_library, 99)


@pytest.mark.parametrize(
    ("fault", "words"), [("warps", r"Q8_0 weights \(tokens: 1\)"), ("products", r"\(tokens: (64|300)\)")]
)
def test_a_device_that_computes_wrongly(
    fault: str, words: str, cuda_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_emulated():
        pytest.skip("needs a device that can be broken")
    monkeypatch.setenv("LQ_EMULATED_FAULT", fault)
    with pytest.raises(InternalError, match=f"the device computes wrongly: .*{words}"):
        check_cuda(cuda_library)


def test_command_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = call("run", path, "-p", "a b c", "--json", "--temp", "0", "-n", "8", "--device", "cuda")
    assert found.json()["setup"]["device"] == "cuda:0"
    assert "note: on cuda:0" in found.err
    on_cpu = call("run", path, "-p", "a b c", "--json", "--temp", "0", "-n", "8", "--device", "cpu")
    assert on_cpu.json()["setup"]["device"] == "cpu"
    assert on_cpu.json()["tokens"] == found.json()["tokens"]
    split = call("run", path, "-p", "a b c", "--json", "--temp", "0", "-n", "8", "--gpu-layers", "1")
    assert split.json()["setup"]["gpu_layers"] == 1
    assert split.json()["tokens"] == found.json()["tokens"]
    assert "note: on cuda:0, " in split.err
    assert "the last 1 of " in split.err
    one_error(call("run", path, "-p", "a", "--device", "cpu", "--gpu-layers", "1"), "with the device 'cpu'")
    one_error(call("run", path, "-p", "a", "--device", "gpu"), "device is auto, cpu, cuda")
    text = call("doctor").out
    assert "cuda:0" in text
    assert "self-test passed" in text
    if is_emulated():
        monkeypatch.setenv("LQ_EMULATED_FAULT", "driver")
        assert "note: on the CPU: the NVIDIA driver is too old" in call("run", path, "-p", "a", "-n", "1").err
        assert "too old" in call("doctor").out
