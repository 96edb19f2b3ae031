"""A core that is missing, foreign or stale is refused with one clear line; statuses become the right exceptions.

The library is loaded once a process, so each case runs in a process of its own, with LOGQUANT_LIBRARY naming the core.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import gen_ffi
import pytest

import pylogquant
from pylogquant import _native

_PROGRAM = "import pylogquant\ntry:\n    pylogquant.Model\nexcept pylogquant.NativeLibraryError as e:\n    print(e)"


def refusal(**environment: str) -> str:
    """What NativeLibraryError says when the first name that needs the core is touched."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(sys.executable).parent,  # not the checkout, whose package folder would be taken first
    )
    text = done.stdout.strip()
    assert text, "the core was accepted"
    assert "\n" not in text, "an error is one line"
    return text


def compiler() -> list[str]:
    command = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if shutil.which(command[0]) is None:
        command = ["cc"]
    if shutil.which(command[0]) is None:
        pytest.skip("no C compiler to make a stale core with")
    return command


def stale_core(folder: Path, *, abi: int, version: str, extra_bytes: int, struct: str = "session_info") -> Path:
    """A library with the handshake's functions only, answering as told; one struct has extra_bytes more."""
    sizes = {name: _native.ffi.sizeof(f"lq_{name}") for name in _native._OPTION_STRUCTS}
    sizes[struct] += extra_bytes
    lines = [
        "#include <stddef.h>",
        f"unsigned lq_abi_version(void) {{ return {abi}; }}",
        f'const char *lq_version(void) {{ return "{version}"; }}',
        *(f"size_t lq_sizeof_{name}(void) {{ return {size}; }}" for name, size in sizes.items()),
    ]
    source = folder / "core.c"
    source.write_text("\n".join(lines) + "\n")
    library = folder / "core.so"
    subprocess.run([*compiler(), "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library


def abi() -> int:
    return int(_native.lib.lq_abi_version())


def test_the_installed_core_is_accepted_and_found_beside_the_package() -> None:
    assert _native.library_path.is_file()
    if not os.environ.get("LOGQUANT_LIBRARY"):
        assert _native.library_path.parent == Path(_native._declarations.__file__).resolve().parent
    assert _native.ffi.string(_native.lib.lq_version()).decode() == pylogquant.__version__


def test_missing_file(tmp_path: Path) -> None:
    text = refusal(LOGQUANT_LIBRARY=str(tmp_path / "absent.so"))
    assert "missing: no file" in text
    assert "absent.so" in text
    assert "reinstall" in text


def test_file_that_is_no_library(tmp_path: Path) -> None:
    path = tmp_path / "core.so"
    path.write_bytes(b"not a library")
    text = refusal(LOGQUANT_LIBRARY=str(path))
    assert "cannot be loaded" in text
    assert "core.so" in text


def test_foreign_library(tmp_path: Path) -> None:
    source, library = tmp_path / "a.c", tmp_path / "foreign.so"
    source.write_text("int answer(void) { return 42; }\n")
    subprocess.run([*compiler(), "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    assert "foreign.so is not pylogquant's core, or a stale one" in refusal(LOGQUANT_LIBRARY=str(library))


def test_stale_interface(tmp_path: Path) -> None:
    library = stale_core(tmp_path, abi=abi() + 1, version=pylogquant.__version__, extra_bytes=0)
    text = refusal(LOGQUANT_LIBRARY=str(library))
    assert f"has interface {abi() + 1}, this package needs {abi()}" in text


def test_stale_version(tmp_path: Path) -> None:
    library = stale_core(tmp_path, abi=abi(), version="0.0.9", extra_bytes=0)
    assert f"is version 0.0.9, this package is {pylogquant.__version__}" in refusal(LOGQUANT_LIBRARY=str(library))


@pytest.mark.parametrize("struct", ["session_info", "kv_layer_options"])
def test_stale_struct(tmp_path: Path, struct: str) -> None:
    library = stale_core(tmp_path, abi=abi(), version=pylogquant.__version__, extra_bytes=8, struct=struct)
    expected = _native.ffi.sizeof(f"lq_{struct}")
    text = refusal(LOGQUANT_LIBRARY=str(library))
    assert f"lq_{struct} has {expected + 8} bytes, this package expects {expected}" in text


def header_declarations() -> list[str]:
    include = Path(__file__).resolve().parents[2] / "native" / "include"
    return [gen_ffi.declarations(header.read_text(encoding="utf-8")) for header in sorted(include.glob("*.h"))]


def test_every_struct_that_says_its_size_is_compared() -> None:
    """A struct with a struct_size is one that both sides fill: none may be left out of the handshake."""
    found = [re.findall(r"struct lq_(\w+) \{\s*uint32_t struct_size;", text) for text in header_declarations()]
    assert {name for names in found for name in names} == set(_native._OPTION_STRUCTS)


# ---- declarations ----------------------------------------------------------------------------------------------------

FIRST = """#ifndef A_H
#define LQ_ABI_VERSION 7
#ifdef __cplusplus
extern "C" {
#endif
/* #define NOT_THIS; LQ_API */
typedef struct lq_a { int n; } lq_a;
LQ_API int lq_f(const lq_a *a);
#endif
"""
SECOND = '#include "first.h"\nLQ_API lq_a lq_g(void);\n'


def test_declarations_of_several_headers_are_one_module(tmp_path: Path) -> None:
    for name, text in (("first.h", FIRST), ("second.h", SECOND)):
        (tmp_path / name).write_text(text)
    output = tmp_path / "made" / "declarations.py"
    gen_ffi.generate(output, "1.2.3", [tmp_path / "first.h", tmp_path / "second.h"])
    scope: dict[str, object] = {}
    exec(output.read_text(), scope)
    assert (scope["ABI_VERSION"], scope["PACKAGE_VERSION"]) == (7, "1.2.3")
    made: Any = scope["ffi"]
    assert made.sizeof("lq_a") == made.sizeof("int")
    assert gen_ffi.declarations(SECOND) == "lq_a lq_g(void);\n"
    library = made.dlopen(None)
    for name in ("lq_f", "lq_g"):
        assert name in dir(library)


@pytest.mark.parametrize("headers", [[SECOND], [FIRST, FIRST]])
def test_the_interface_has_one_number(headers: list[str]) -> None:
    with pytest.raises(SystemExit, match="one is needed"):
        gen_ffi.abi_version(headers)


def test_nothing_of_the_headers_is_missing() -> None:
    declared = {name for text in header_declarations() for name in re.findall(r"\b(lq_\w+)\(", text)}
    assert {"lq_model_open", "lq_kv_get_full"} <= declared
    assert declared == {name for name in dir(_native.lib) if name.startswith("lq_")}
    for name in sorted(declared):
        assert getattr(_native.lib, name)  # the library has it


def test_source_folder_without_a_core(tmp_path: Path) -> None:
    """Python started in a checkout takes the package's sources from there; the error says what to do."""
    package = tmp_path / "pylogquant"
    package.mkdir()
    (tmp_path / "native").mkdir()
    for path in Path(pylogquant.__file__).parent.glob("*.py"):
        if path.name != "_logquant_ffi.py":
            shutil.copy(path, package)
    text = refusal(PYTHONPATH=str(tmp_path))
    assert "holds no compiled core: run 'pip install .' there" in text


STATUSES = {
    "LQ_E_ARG": pylogquant.ArgumentError,
    "LQ_E_MEMORY": pylogquant.OutOfMemory,
    "LQ_E_IO": pylogquant.FileError,
    "LQ_E_FORMAT": pylogquant.ModelFormatError,
    "LQ_E_UNSUPPORTED": pylogquant.Unsupported,
    "LQ_E_FULL": pylogquant.ContextFull,
    "LQ_E_CANCELLED": pylogquant.Cancelled,
    "LQ_E_BUSY": pylogquant.SessionBusy,
    "LQ_E_INTERNAL": pylogquant.InternalError,
    "LQ_E_CLOSED": pylogquant.ClosedError,
    "LQ_E_FORKED": pylogquant.ForkedError,
}


@pytest.mark.parametrize("name", STATUSES)
def test_each_status_has_its_exception(name: str) -> None:
    with pytest.raises(pylogquant.LogQuantError) as caught:
        _native.check(getattr(_native.lib, name))
    assert type(caught.value) is STATUSES[name]


def test_the_header_has_no_other_status() -> None:
    header = set(_native.ffi.typeof("lq_status").relements)
    assert header == {"LQ_OK", *STATUSES}
    _native.check(_native.lib.LQ_OK)


def test_an_unknown_status_is_our_defect() -> None:
    with pytest.raises(pylogquant.InternalError):
        _native.check(-1000)


def test_text_comes_from_the_library(tmp_path: Path) -> None:
    """The text is that of the failing call on this thread: what, where, in one line."""
    path = tmp_path / "absent.gguf"
    with pytest.raises(pylogquant.FileError, match=r"absent\.gguf") as caught:
        pylogquant.GGUFFile(path)
    assert "\n" not in str(caught.value)
