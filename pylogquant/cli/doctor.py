"""`doctor`: shows what is installed and what this machine offers, and checks that they work together."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path

from pylogquant.cli.output import bytes_text
from pylogquant.errors import LogQuantError, OutOfMemory

Rows = list[tuple[str, str]]

_IMPORT_NAMES = {"huggingface-hub": "huggingface_hub", "prompt-toolkit": "prompt_toolkit", "pylogquant": "pylogquant"}


class Broken(Exception):
    """A check that failed: one line with what to do."""


def doctor() -> int:
    """Prints all checks; returns the number of broken ones."""
    n_broken = 0
    checks: tuple[tuple[str, Callable[[], Rows]], ...] = (
        ("pylogquant", _package),
        ("core", _core),
        ("machine", _machine),
        ("GPUs", _gpus),
        ("cache", _cache),
        ("dependencies", _dependencies),
    )
    for title, check in checks:
        print(title)
        try:
            rows = check()
        except (Broken, LogQuantError) as failure:
            n_broken += 1
            rows = [("BROKEN", " ".join(str(failure).split()))]
        for name, value in rows:
            print(f"  {name:<16} {value}")
    print("all is well" if not n_broken else f"{n_broken} of {len(checks)} checks failed")
    return n_broken


def _package() -> Rows:
    return [
        ("version", metadata.version("pylogquant")),
        ("installed in", str(Path(__file__).resolve().parent.parent)),
        ("python", f"{platform.python_version()} ({sys.executable})"),
        ("system", platform.platform()),
    ]


def _core() -> Rows:
    from pylogquant.cli.native import core_facts

    facts = core_facts()
    forced = os.environ.get("LQ_CPU")
    return [
        ("library", str(facts.path)),
        ("version", f"{facts.version}, interface {facts.abi}"),
        ("SIMD level", f"{facts.cpu_level}{' (forced by LQ_CPU)' if forced else ''}, of {', '.join(facts.cpu_levels)}"),
        ("KV types", ", ".join(facts.kv_names)),
        ("self-test", _self_test()),
    ]


def _self_test() -> str:
    """Decodes one Q8_0 block (32 weights, scale 0.5, values -16..15) in the core and compares every weight."""
    from pylogquant._native import check, ffi, lib

    q8_0, n = 8, 32
    block = b"\x00\x38" + bytes((i - 16) % 256 for i in range(n))
    out = ffi.new("float[]", n)
    check(lib.lq_dequantize(q8_0, block, len(block), out, n))
    if list(out) != [(i - 16) * 0.5 for i in range(n)]:
        raise Broken("the core decodes a known Q8_0 block wrongly: this build does not fit this machine, reinstall it")
    return "passed"


def _machine() -> Rows:
    """What the machine has, and what the core may use. In a container this is less; psutil does not know that."""
    import psutil

    physical = psutil.cpu_count(logical=False) or 0
    rows = [
        ("processor", platform.processor() or platform.machine()),
        ("cores", f"{physical or '?'} physical, {psutil.cpu_count() or '?'} logical"),
        ("memory", bytes_text(psutil.virtual_memory().total)),
    ]
    try:
        from pylogquant.cli.native import core_facts

        facts = core_facts()
    except LogQuantError:
        return rows  # the check of the core reports it
    available = bytes_text(facts.memory_available) if facts.memory_available else "not told by the system"
    threads = f"{facts.cores} thread{'s' if facts.cores != 1 else ''}"
    return [*rows, ("for the core", f"{threads} by default, {available} of memory to plan with")]


def _gpus() -> Rows:
    """Having no GPU is no fault. A library that cannot be loaded is one, and so is a device with wrong results."""
    from pylogquant.devices import check_cuda, cuda_library, look_at_cuda

    path = cuda_library()
    if path is None:
        return [("CUDA", "not built; on a machine with an NVIDIA GPU 'pylogquant build --cuda' does that")]
    found = look_at_cuda(path)
    rows = [
        ("CUDA library", f"{path}, for compute capabilities {', '.join(found.archs)}, of toolkit {found.toolkit}"),
        ("driver", f"CUDA {found.driver}" if found.driver else "none"),
        ("prompts", f"by {found.blas}" if found.blas else "by the library's own kernels: cuBLAS is not found, or off"),
    ]
    if found.problem:
        return [*rows, ("devices", f"none: {found.problem}")]
    for index, device in enumerate(found.devices):
        memory = f"{bytes_text(device.total_bytes)}, {bytes_text(device.free_bytes)} free"
        if device.integrated:
            memory += ", shared with the CPU"
        fit = "not compiled for: build again with --arch native"
        if device.compiled:
            try:
                check_cuda(path, index)
                fit = "self-test passed"
            except OutOfMemory:
                fit = "not enough of it for a self-test"
        rows.append((device.id, f"{device.name}, compute capability {device.capability}, {memory}; {fit}"))
    return rows


def _cache() -> Rows:
    from pylogquant import hub

    folder = hub.cache_dir()
    existing = folder
    while not os.path.exists(existing):
        existing = existing.parent
    try:
        # The first pull creates the cache. Until then, whether its parent is writable tells if that will work.
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as cause:
        raise Broken(
            f"{existing} cannot be written ({cause.strerror or cause}): set PYLOGQUANT_CACHE to another folder"
        ) from cause
    models = [model for model in hub.list_models() if model.path is not None]
    used = sum(model.n_bytes for model in models)
    return [
        ("folder", f"{folder}{'' if os.path.exists(folder) else ' (not created yet)'}"),
        ("models", f"{len(models)}, {bytes_text(used)}"),
        ("free", bytes_text(shutil.disk_usage(existing).free)),
    ]


def _dependencies() -> Rows:
    """Checks that every declared dependency is installed, new enough, and importable."""
    rows, broken = [], []
    for requirement in metadata.requires("pylogquant") or []:
        if "extra ==" in requirement:
            continue
        match = re.match(r"([A-Za-z0-9._-]+)\s*(?:>=\s*([0-9.]+))?", requirement)
        assert match is not None, requirement
        name, wanted = match[1], match[2] or "0"
        try:
            found = metadata.version(name)
            import_module(_IMPORT_NAMES.get(name.lower(), name.lower()))
        except (metadata.PackageNotFoundError, ImportError) as cause:
            broken.append(f"{name} cannot be used ({cause})")
            continue
        if _numbers(found) < _numbers(wanted):
            broken.append(f"{name} {found} is older than {wanted}")
        rows.append((name, found))
    if broken:
        raise Broken(f"{'; '.join(broken)}: 'pip install --upgrade .' in the checkout of pylogquant brings it")
    return rows


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
