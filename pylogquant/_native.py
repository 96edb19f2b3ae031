"""The compiled core: loads the library, proves that it matches this package, and turns statuses into exceptions.

The only file that imports cffi. Importing it loads the library; `import pylogquant` alone does not.

`ffi` and `lib` are what cffi gives: declarations generated from the headers in native/include when the package was
built (pylogquant/_logquant_ffi.py), and the library that lies beside that file. The environment variable
LOGQUANT_LIBRARY names another build of the same library instead, for example one with sanitizers.

Handles: `ffi.gc` frees one when nothing refers to it any more. So that another thread can close an object at any time,
close() lets go of the handle and never frees it (no ffi.release), and every call into the core gets the handle itself,
which keeps it for as long as the call takes; whoever passes what a handle points to holds it in a variable meanwhile.
"""

from __future__ import annotations

import operator
import os
import sys
from pathlib import Path
from typing import Any

from pylogquant import errors

__all__ = ["check", "check_process", "ffi", "lib", "library_path", "path_bytes", "whole_number", "write_file"]

_REINSTALL = "reinstall with: pip install --force-reinstall . (in the checkout of pylogquant)"
_OPTION_STRUCTS = (
    "model_options",
    "model_info",
    "session_options",
    "session_info",
    "sampler_options",
    "kv_layer_options",
    "kv_worker_options",
    "kv_worker_info",
    "kv_worker_attention",
    "cuda_info",
    "cuda_device",
)


def _load_declarations() -> Any:
    try:
        from pylogquant import _logquant_ffi
    except ImportError as cause:
        here = Path(__file__).parent
        if not (here / "_logquant_ffi.py").exists() and (here.parent / "native").is_dir():
            hint = (
                f"Python took the source folder {here}, which holds no compiled core: run 'pip install .' there,"
                " then start Python in another folder"
            )
        else:
            hint = f"{cause}: {_REINSTALL}"
        raise errors.NativeLibraryError(f"pylogquant's compiled core cannot be loaded: {hint}") from cause
    return _logquant_ffi


def _library_path(declarations: Any) -> Path:
    override = os.environ.get("LOGQUANT_LIBRARY")
    if override:
        return Path(override)
    name = {"win32": "logquant.dll", "darwin": "liblogquant.dylib"}.get(sys.platform, "liblogquant.so")
    # Beside the declarations, not beside this file: in an editable install built files lie in another folder.
    return Path(declarations.__file__).resolve().parent / name


def _load_library(ffi: Any, path: Path) -> Any:
    if not path.is_file():
        raise errors.NativeLibraryError(f"pylogquant's compiled core is missing: no file {path}: {_REINSTALL}")
    try:
        return ffi.dlopen(str(path))
    except OSError as cause:
        text = " ".join(str(cause).split())
        raise errors.NativeLibraryError(f"pylogquant's compiled core cannot be loaded: {text}: {_REINSTALL}") from cause


def _handshake(declarations: Any, lib: Any, path: Path) -> None:
    """Refuses a library that was built from another header or another version of the package."""
    ffi = declarations.ffi
    try:
        found_abi = int(lib.lq_abi_version())
        found_version = ffi.string(lib.lq_version()).decode()
        sizes = {name: int(getattr(lib, f"lq_sizeof_{name}")()) for name in _OPTION_STRUCTS}
    except (AttributeError, ffi.error) as cause:  # ffi.error: a symbol is missing
        raise errors.NativeLibraryError(
            f"{path} is not pylogquant's core, or a stale one: it lacks functions: {_REINSTALL}"
        ) from cause
    if found_abi != declarations.ABI_VERSION:
        raise errors.NativeLibraryError(
            f"stale core: {path} has interface {found_abi}, this package needs {declarations.ABI_VERSION}: {_REINSTALL}"
        )
    if found_version != declarations.PACKAGE_VERSION:
        raise errors.NativeLibraryError(
            f"stale core: {path} is version {found_version}, this package is {declarations.PACKAGE_VERSION}:"
            f" {_REINSTALL}"
        )
    for name, found in sizes.items():
        expected = ffi.sizeof(f"lq_{name}")
        if found != expected:
            raise errors.NativeLibraryError(
                f"stale core: in {path} lq_{name} has {found} bytes, this package expects {expected}: {_REINSTALL}"
            )


_declarations = _load_declarations()
ffi: Any = _declarations.ffi
library_path: Path = _library_path(_declarations)
lib: Any = _load_library(ffi, library_path)
_handshake(_declarations, lib, library_path)

_ERRORS: dict[int, type[errors.LogQuantError]] = {
    lib.LQ_E_ARG: errors.ArgumentError,
    lib.LQ_E_MEMORY: errors.OutOfMemory,
    lib.LQ_E_IO: errors.FileError,
    lib.LQ_E_FORMAT: errors.ModelFormatError,
    lib.LQ_E_UNSUPPORTED: errors.Unsupported,
    lib.LQ_E_FULL: errors.ContextFull,
    lib.LQ_E_CANCELLED: errors.Cancelled,
    lib.LQ_E_BUSY: errors.SessionBusy,
    lib.LQ_E_INTERNAL: errors.InternalError,
    lib.LQ_E_CLOSED: errors.ClosedError,
    lib.LQ_E_FORKED: errors.ForkedError,
}


def check(status: int) -> None:
    """Returns on LQ_OK (0); otherwise raises the matching error with the library's text of this thread."""
    if status == 0:
        return
    # The text may hold a file name that is not UTF-8, which must not hide the error.
    text = ffi.string(lib.lq_error_message()).decode("utf-8", errors="replace")
    raise _ERRORS.get(status, errors.InternalError)(text)


def check_process(process: int) -> None:
    """Raises ForkedError unless this is the process with that id: in a forked child a lock may be held by a thread that
    stayed in the parent. The core checks this itself; call it before Python takes a lock of its own."""
    if os.getpid() != process:
        raise errors.ForkedError(
            "the model is from before this process was forked, and its threads stayed in the parent;"
            " load the model after the fork, in each process that uses it"
        )


def whole_number(name: str, value: Any, n_bits: int = 32, unit: str = "") -> int:
    """The value, if an unsigned integer of so many bits holds it; else ArgumentError."""
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if not 0 <= number < 2**n_bits:
        raise errors.ArgumentError(f"{name} must be 0 to {2**n_bits - 1}{unit}, not {value!r}")
    return number


def path_bytes(path: str | os.PathLike[str]) -> bytes:
    """A path as bytes for the core, where a zero ends it. Raises FileError for one that no file can have."""
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError as cause:
        raise errors.FileError(f"{os.fspath(path)!r}: the path holds a character that no file name can have") from cause
    if b"\0" in raw:
        raise errors.FileError(f"{os.fspath(path)!r}: a path cannot hold a zero character")
    return raw


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file whole or not at all, as sessions are saved. A link stays a link, anything but a regular file is
    refused, an existing file keeps its permissions, only the owner can read a new one. Raises FileError."""
    check(lib.lq_file_replace(path_bytes(path), data, len(data)))
