"""Finds the CUDA backend's library and the GPUs that it can use.

The library is not part of the wheel: `pylogquant build --cuda` makes it, for the device at hand, in the user's data
folder. The environment variable LQ_CUDA_LIBRARY names another one instead.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from pylogquant._native import check, ffi, lib, path_bytes
from pylogquant.errors import ArgumentError

__all__ = ["CudaDevice", "CudaLibrary", "built_library", "check_cuda", "cuda_library", "look_at_cuda", "valid_device"]


@dataclass(frozen=True)
class CudaDevice:
    """A GPU. capability: compute capability as NVIDIA writes it, "8.6". compiled: the library holds code for it.
    integrated: it shares the system's memory. total_bytes, free_bytes: of its memory."""

    id: str
    name: str
    capability: str
    compiled: bool
    integrated: bool
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class CudaLibrary:
    """The library and the devices that it finds. toolkit, driver: versions of CUDA, "" = no driver. blas: the library
    that multiplies matrices of prompts, "" = this one. problem: why it finds no device, "" = it does."""

    path: str
    archs: tuple[str, ...]
    toolkit: str
    driver: str
    blas: str
    devices: tuple[CudaDevice, ...]
    problem: str


def built_library() -> Path:
    """Where `pylogquant build --cuda` puts the library of this version; it may not be there."""
    import platformdirs

    version = ffi.string(lib.lq_version()).decode()
    name = {"win32": "logquant_cuda.dll", "darwin": "liblogquant_cuda.dylib"}.get(sys.platform, "liblogquant_cuda.so")
    return Path(platformdirs.user_data_dir("pylogquant", appauthor=False)) / f"cuda-{version}" / name


def cuda_library() -> Path | None:
    """The library to use: the one that LQ_CUDA_LIBRARY names, else the one that was built; None without either."""
    override = os.environ.get("LQ_CUDA_LIBRARY")
    if override:
        return Path(override)
    built = built_library()
    return built if os.path.isfile(built) else None


def valid_device(device: str) -> str:
    """Returns the name if it is a device's: auto, cpu, cuda, cuda:0 and so on. Else raises ArgumentError."""
    name, colon, index = device.partition(":")
    if device in ("auto", "cpu", "cuda") or (name == "cuda" and colon and index.isdecimal() and len(index) <= 3):
        return device
    raise ArgumentError(f"device is auto, cpu, cuda, or cuda:0 and so on, not {device!r}")


def look_at_cuda(path: Path) -> CudaLibrary:
    """Loads the library and asks it for its devices. Raises FileError where it cannot be loaded, Unsupported where it
    belongs to another version."""
    text = path_bytes(path)
    info = ffi.new("lq_cuda_info *")
    info.struct_size = ffi.sizeof("lq_cuda_info")
    status = lib.lq_cuda_get_info(text, info)
    if status != 0 and info.archs == ffi.NULL:
        check(status)
    problem = "" if status == 0 else ffi.string(lib.lq_error_message()).decode(errors="replace")
    return CudaLibrary(
        str(path),
        tuple(ffi.string(info.archs).decode().split()),
        _version(int(info.toolkit)),
        _version(int(info.driver)),
        "" if info.blas == ffi.NULL else ffi.string(info.blas).decode(),
        tuple(_device(text, index) for index in range(int(info.n_devices))),
        problem,
    )


def check_cuda(path: Path, index: int = 0) -> None:
    """Computes on a device and on the CPU, and compares the results. Raises Unsupported, OutOfMemory, InternalError."""
    check(lib.lq_cuda_check(path_bytes(path), index))


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}" if number else ""


def _device(library: bytes, index: int) -> CudaDevice:
    raw = ffi.new("lq_cuda_device *")
    raw.struct_size = ffi.sizeof("lq_cuda_device")
    check(lib.lq_cuda_get_device(library, index, raw))
    return CudaDevice(
        f"cuda:{index}",
        ffi.string(raw.name).decode(errors="replace"),
        f"{raw.major}.{raw.minor}",
        bool(raw.compiled),
        bool(raw.integrated),
        int(raw.total_bytes),
        int(raw.free_bytes),
    )
