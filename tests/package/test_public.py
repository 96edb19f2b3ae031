"""The package's public names, what importing it costs, and the house plan's arrows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import check_includes
import pytest

import pylogquant

pytestmark = pytest.mark.python_only

PUBLIC = [
    "ArgumentError",
    "Batch",
    "Cancelled",
    "Chat",
    "ChatOptions",
    "ClosedError",
    "ContextFull",
    "Conversation",
    "CopyError",
    "DownloadError",
    "FileError",
    "ForkedError",
    "GGUFFile",
    "InternalError",
    "KvLayer",
    "KvOptions",
    "LogQuantError",
    "Model",
    "ModelFormatError",
    "NativeLibraryError",
    "OutOfMemory",
    "Sampler",
    "SamplingOptions",
    "Session",
    "SessionBusy",
    "SessionOptions",
    "TemplateError",
    "TextStream",
    "Tokenizer",
    "TokenizerError",
    "Unsupported",
    "__version__",
]
# Standard exceptions that code which knows nothing of this package would catch.
ALSO = {
    "ArgumentError": ValueError,
    "OutOfMemory": MemoryError,
    "FileError": OSError,
    "NativeLibraryError": ImportError,
}


def test_public_names_are_these_and_exist() -> None:
    assert pylogquant.__all__ == PUBLIC
    for name in PUBLIC:
        value = getattr(pylogquant, name)
        if isinstance(value, type):
            assert value.__name__ == name
    assert set(PUBLIC) <= set(dir(pylogquant))


KV_NAMES = {
    "KvFull": ["positions", "k", "v", "accumulated"],
    "KvOptions": ["name", "keys", "value_bits", "window", "sinks", "overlay", "select"],
    "KvPage": ["record", "mask"],
    "KvUsage": [
        "n_tokens",
        "n_sinks",
        "n_full",
        "n_packed",
        "n_dropped",
        "n_pages",
        "code_bytes",
        "scale_bytes",
        "mask_bytes",
        "full_bytes",
        "index_bytes",
        "ring_bytes",
        "recurrent_bytes",
    ],
}


def test_names_of_kv_caches() -> None:
    from pylogquant import _native, kv

    for name, names in KV_NAMES.items():
        assert list(getattr(kv, name).__dataclass_fields__) == names
    # The two structs that Python mirrors field by field have no other fields.
    for name in ("KvOptions", "KvUsage"):
        struct = {"KvOptions": "lq_kv_options", "KvUsage": "lq_kv_usage"}[name]
        assert [field for field, _ in _native.ffi.typeof(struct).fields] == KV_NAMES[name]
    assert {"KvLayer", "KvView", "kv_names", *KV_NAMES} <= set(kv.__all__)


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Modell'"):
        _ = pylogquant.Modell  # type: ignore[attr-defined]


def test_version_is_the_distributions() -> None:
    from importlib.metadata import version

    assert pylogquant.__version__ == version("pylogquant")


@pytest.mark.parametrize("name", [name for name in PUBLIC if isinstance(getattr(pylogquant.errors, name, None), type)])
def test_every_error_is_one_line_under_one_root(name: str) -> None:
    kind = getattr(pylogquant, name)
    error = kind("m.gguf: truncated; fetch it again")
    assert isinstance(error, pylogquant.LogQuantError)
    assert str(error) == "m.gguf: truncated; fetch it again"
    assert isinstance(error, ALSO.get(name, Exception))


def test_error_names_are_all_exported() -> None:
    assert set(pylogquant.errors.__all__) < set(PUBLIC)


def test_import_is_cheap() -> None:
    """What makes an import slow is what it pulls in, so that is pinned; a clock would only be flaky."""
    heavy = "numpy torch tokenizers jinja2 rich typer huggingface_hub prompt_toolkit psutil _cffi_backend ctypes"
    program = (
        "import sys; before = set(sys.modules); import pylogquant;"
        f"print(sorted(set({heavy.split()!r}) & (set(sys.modules) - before)), 'pylogquant._native' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[] False"


def test_package_is_typed() -> None:
    assert (Path(pylogquant.__file__).parent / "py.typed").is_file()


def test_sources_follow_the_arrows() -> None:
    root = Path(__file__).resolve().parents[2]
    assert check_includes.c_problems(root) + check_includes.python_problems(root) == []


C_BREACHES = {
    "core/a.c": ('#include "model/b.h"', "core must not know model"),
    "model/a.c": ('#include "backends/cpu/b.h"', "model must not know backends/cpu"),
    "kv/policy_a.c": ('#include "backends/b.h"', "kv/policy must not know backend.h"),
    "gguf/a.c": ("#include <immintrin.h>", "intrinsics belong in backends/cpu/kernels"),
    "backends/cpu/i.c": ("#include <immintrin.h>", "intrinsics belong in backends/cpu/kernels"),
    "backends/cpu/kernels/i.h": ("#include <arm_neon.h>", "intrinsics belong in backends/cpu/kernels"),
    "backends/cpu/kernels/a.c": ('#include "backends/cpu/b.h"', "backends/cpu/kernels must not know backends/cpu"),
    "backends/cpu/kernels/x86/a.c": (
        '#include "backends/cpu/kernels/arm/b.h"',
        "backends/cpu/kernels/x86 must not know backends/cpu/kernels/arm",
    ),
    "backends/cpu/a.c": ("#  include <cuda_runtime.h>", "CUDA belongs in backends/cuda"),
    "session.c": ('#include "absent.h"', "no such file"),
    "wherever/a.c": ("", "the house plan has no place for this file"),
}


@pytest.mark.parametrize("place", C_BREACHES)
def test_a_breach_in_c_is_found(tmp_path: Path, place: str) -> None:
    line, fault = C_BREACHES[place]
    source = tmp_path / "native" / "src"
    for other in ("core/ok.h", "model/b.h", "backends/b.h", "backends/cpu/b.h", "backends/cpu/kernels/arm/b.h"):
        (source / other).parent.mkdir(parents=True, exist_ok=True)
        (source / other).write_text("")
    (source / "model" / "ok.c").write_text('#include "core/ok.h"\n#include "backends/b.h"\n#include <stdio.h>\n')
    assert check_includes.c_problems(tmp_path) == []
    (source / place).parent.mkdir(parents=True, exist_ok=True)
    (source / place).write_text(f"/* a - a test. */\n{line}\n")
    (problem,) = check_includes.c_problems(tmp_path)
    assert fault in problem
    assert place in problem


PY_BREACHES = {
    "chat.py": ("from pylogquant.model import Model", "chat must not know model"),
    "session.py": ("import cffi", "only _native.py imports cffi"),
    "kv.py": ("from pylogquant.session import Session", "kv must not know session"),
    "cli/app.py": ("import cffi.api", "only _native.py imports cffi"),
    "tokenizer.py": ("from . import cli", "tokenizer must not know cli"),
    "__init__.py": ("import pylogquant.session", "the package imports lazily"),
    "helpers.py": ("", "the house plan has no place for this module"),
}


@pytest.mark.parametrize("place", PY_BREACHES)
def test_a_breach_in_python_is_found(tmp_path: Path, place: str) -> None:
    line, fault = PY_BREACHES[place]
    package = tmp_path / "pylogquant"
    (package / "cli").mkdir(parents=True)
    for other in ("__init__.py", "errors.py", "_native.py", "session.py"):
        (package / other).write_text("")
    typed_only = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from pylogquant.chat import Chat\n"
    (package / "model.py").write_text("from pylogquant import _native, session\n")
    (package / "chat.py").write_text("from pylogquant.session import Session\n")
    (package / "templates.py").write_text(typed_only)
    (package / "cli" / "__init__.py").write_text("")
    assert check_includes.python_problems(tmp_path) == []
    (package / place).write_text(f"{line}\n")
    (problem,) = check_includes.python_problems(tmp_path)
    assert fault in problem
    assert place in problem
