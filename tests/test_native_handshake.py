"""A core that is missing, foreign or stale is refused with one clear line; statuses become the right exceptions.

The library is loaded once a process, so each case runs in a process of its own, with LOGQUANT_LIBRARY naming the core.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

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


def stale_core(folder: Path, *, abi: int, version: str, extra_bytes: int) -> Path:
    """A library with the handshake's functions only, answering as told; lq_session_info has extra_bytes more."""
    sizes = {name: _native.ffi.sizeof(f"lq_{name}") for name in _native._OPTION_STRUCTS}
    sizes["session_info"] += extra_bytes
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


def test_stale_struct(tmp_path: Path) -> None:
    library = stale_core(tmp_path, abi=abi(), version=pylogquant.__version__, extra_bytes=8)
    expected = _native.ffi.sizeof("lq_session_info")
    text = refusal(LOGQUANT_LIBRARY=str(library))
    assert f"lq_session_info has {expected + 8} bytes, this package expects {expected}" in text


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
