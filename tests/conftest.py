"""Fixtures and options of the whole suite: the models it runs on, and which tests run.

Tiny models are made on the spot, with random weights. The two real ones are fetched once through pylogquant.hub and
stay in the user's cache folder. Tests marked `oracle` need the extra of that name and run with --oracle only; then a
missing package is a failure, not a skip.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

# The oracle's products are small: NumPy's threads, which spin while they wait, would only take the core's processors.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from make_tiny_gguf import make_tiny
from session_inputs import N_CTX

from pylogquant import Model

_REAL_FIXTURES = frozenset({"smollm2_path", "gemma_path"})
_TINY_FIXTURES = frozenset({"tiny_llama_path", "tiny_gemma_path"})


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--oracle", action="store_true", help="also run tests against torch, transformers and llama.cpp")


def pytest_configure(config: pytest.Config) -> None:
    # In the background of a shell SIGINT is ignored, and every program started here would inherit that; a handler of
    # our own, even the usual one, makes them start with the default again.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Each of several processes (pytest -n) keeps to a processor of its own, and so do its children: threads that spin
    # would take it from the others.
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker.startswith("gw") and hasattr(os, "sched_setaffinity"):
        processors = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {processors[int(worker[2:]) % len(processors)]})


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    with_oracles = config.getoption("--oracle")
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if isinstance(item, pytest.Function) and hasattr(item, "callspec"):  # fixtures that are asked for by name
            fixtures |= {value for value in item.callspec.params.values() if isinstance(value, str)}
        if fixtures & _REAL_FIXTURES:
            item.add_marker(pytest.mark.real_model)
        elif fixtures & _TINY_FIXTURES:
            item.add_marker(pytest.mark.tiny_model)
        if not with_oracles and item.get_closest_marker("oracle") is not None:
            item.add_marker(pytest.mark.skip(reason="needs --oracle and: pip install '.[test,oracle]'"))


@pytest.fixture(scope="session")
def tiny_llama_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama model of a few layers with random weights and a small BPE vocabulary."""
    path = tmp_path_factory.mktemp("tiny") / "llama.gguf"
    make_tiny(path, arch="llama")
    return path


@pytest.fixture(scope="session")
def tiny_gemma_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gemma3 model of a few layers, sliding and global, with random weights and a small SPM vocabulary."""
    path = tmp_path_factory.mktemp("tiny") / "gemma3.gguf"
    make_tiny(path, arch="gemma3")
    return path


@pytest.fixture
def cuda_library(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The library of the CUDA backend that $LQ_TEST_CUDA_LIBRARY names, in use for a test: the emulated one in the
    checks (tools/check.py sets it), a real one on a GPU (tools/checks/gpu_suite.py)."""
    path = os.environ.get("LQ_TEST_CUDA_LIBRARY")
    if not path:
        pytest.skip("LQ_TEST_CUDA_LIBRARY names no library of the CUDA backend")
    monkeypatch.setenv("LQ_CUDA_LIBRARY", path)
    return Path(path)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct Q4_1: llama architecture, 94 MiB, fetched once."""
    from pylogquant import hub

    return hub.pull("smollm2-135m")


@pytest.fixture(scope="session")
def gemma_path() -> Path:
    """Gemma 3 270M Q4_K_M: gemma3 architecture, base model, 241 MiB, fetched once."""
    from pylogquant import hub

    return hub.pull("gemma3-270m")


# ---- every kind of layer state, for tests of sessions


@pytest.fixture(scope="module")
def llama(tiny_llama_path: Path) -> Model:
    return Model(tiny_llama_path, threads=2)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Rings of 24 tokens that wrap, and two global layers."""
    path = tmp_path_factory.mktemp("ring") / "gemma3.gguf"
    make_tiny(path, arch="gemma3", n_layers=12, window=24, n_ctx=N_CTX)
    return Model(path, threads=2)


@pytest.fixture(scope="module")
def lfm2(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Short convolutions, before, between and after layers of attention."""
    path = tmp_path_factory.mktemp("lfm2") / "lfm2.gguf"
    make_tiny(path, arch="lfm2", n_layers=5, attention_layers=(1, 3), n_taps=4, n_ctx=N_CTX)
    return Model(path, threads=2)
