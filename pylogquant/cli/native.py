"""Facts about the compiled core, as Python values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class CoreFacts:
    """Facts of the library about itself and this machine. Reading them raises NativeLibraryError or Unsupported."""

    version: str
    abi: int
    path: Path
    cpu_level: str
    cpu_levels: list[str]
    cores: int
    memory_available: int  # bytes; 0 = unknown
    kv_names: list[str]


def core_facts() -> CoreFacts:
    """Loads the library and reads its facts. Raises Unsupported where $LQ_CPU names a level this machine cannot run."""
    from pylogquant._native import check, ffi, lib, library_path
    from pylogquant.kv import kv_names

    level = ffi.new("const char **")
    check(lib.lq_cpu_level(level))
    return CoreFacts(
        version=ffi.string(lib.lq_version()).decode(),
        abi=int(lib.lq_abi_version()),
        path=library_path,
        cpu_level=ffi.string(level[0]).decode(),
        cpu_levels=ffi.string(lib.lq_cpu_levels()).decode().split(","),
        cores=int(lib.lq_cpu_cores()),
        memory_available=int(lib.lq_memory_available()),
        kv_names=kv_names(),
    )
