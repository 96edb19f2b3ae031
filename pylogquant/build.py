"""Compiles the CUDA backend for this machine: finds nvcc, CMake and the devices, and tests the library.

The library goes into the user's data folder (devices.built_library()), where it is found from then on.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pylogquant._native import lib
from pylogquant.devices import built_library
from pylogquant.errors import ArgumentError, Unsupported

__all__ = ["Built", "Tools", "build_cuda", "choose_archs", "find_tools"]

MIN_TOOLKIT = (11, 2)
MIN_CMAKE = (3, 25)

Progress = Callable[[int, int], None]  # called as progress(steps_done, steps_in_all)

# Prints the compute capability of every device, "86" and so on. Jetson boards have no nvidia-smi.
_LOOK = """
#include <stdio.h>
int main() {
    int n = 0;
    cudaError_t error = cudaGetDeviceCount(&n);
    if (error != cudaSuccess) return fprintf(stderr, "%s\\n", cudaGetErrorString(error)), 1;
    for (int i = 0; i < n; i++) {
        cudaDeviceProp p;
        if (cudaGetDeviceProperties(&p, i) == cudaSuccess) printf("%d%d\\n", p.major, p.minor);
    }
    return 0;
}
"""

# Runs in a process of its own, because a library that is loaded already cannot be loaded anew.
_TEST = """
import json, sys
from pathlib import Path
from pylogquant.devices import check_cuda, look_at_cuda
found = look_at_cuda(Path(sys.argv[1]))
for index, device in enumerate(found.devices):
    if device.compiled:
        check_cuda(Path(sys.argv[1]), index)
print(json.dumps([f"{d.id}, {d.name}" for d in found.devices if d.compiled]))
"""


@dataclass(frozen=True)
class Tools:
    """The compilers that were found. toolkit: version of CUDA."""

    nvcc: Path
    toolkit: tuple[int, int]
    cmake: str


@dataclass(frozen=True)
class Built:
    """The library that was built. tested: devices that passed its test; empty if this machine has none."""

    library: Path
    archs: tuple[str, ...]
    tested: tuple[str, ...]


def source_folder() -> Path:
    """The folder that holds native/: beside this file in an installation, above it in a checkout."""
    here = Path(__file__).resolve().parent
    for folder in (here / "_source", here.parent):
        if (folder / "native" / "src" / "backends" / "cuda" / "CMakeLists.txt").is_file():
            return folder
    raise Unsupported(
        "this installation has no sources of the CUDA backend: pip install --force-reinstall . (in the checkout of"
        " pylogquant)"
    )


def find_tools() -> Tools:
    """nvcc and CMake, each new enough. Raises Unsupported, with what is missing and where it comes from."""
    nvcc = _find_nvcc()
    text = _output([nvcc, "--version"])
    found = re.search(r"release (\d+)\.(\d+)", text)
    if found is None:
        raise Unsupported(f"{nvcc} does not tell its version; is it CUDA's compiler?")
    toolkit = (int(found[1]), int(found[2]))
    if toolkit < MIN_TOOLKIT:
        raise Unsupported(
            f"{nvcc} is of CUDA {toolkit[0]}.{toolkit[1]}; {MIN_TOOLKIT[0]}.{MIN_TOOLKIT[1]} or newer is needed"
        )
    return Tools(nvcc, toolkit, _find_cmake())


def _find_nvcc() -> Path:
    override = os.environ.get("CUDACXX")
    if override:
        if shutil.which(override) is None:
            raise Unsupported(f"CUDACXX names {override}, which is no program here")
        return Path(str(shutil.which(override)))
    on_path = shutil.which("nvcc")
    if on_path is not None:
        return Path(on_path)
    folders = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders += [Path("/usr/local/cuda"), *sorted(Path("/usr/local").glob("cuda-*"), reverse=True)]
    for folder in folders:
        program = folder / "bin" / ("nvcc.exe" if os.name == "nt" else "nvcc")
        if program.is_file():
            return program
    raise Unsupported(
        "nvcc was not found: install NVIDIA's CUDA toolkit, 11.2 or newer (on a Jetson: apt install cuda-toolkit), or"
        " set CUDACXX to the path of nvcc"
    )


def _find_cmake() -> str:
    programs = [shutil.which("cmake"), str(Path(sys.executable).parent / "cmake")]
    for program in programs:
        if program is None or shutil.which(program) is None:
            continue
        found = re.search(r"version (\d+)\.(\d+)", _output([program, "--version"]))
        if found is not None and (int(found[1]), int(found[2])) >= MIN_CMAKE:
            return program
    raise Unsupported(f"CMake {MIN_CMAKE[0]}.{MIN_CMAKE[1]} or newer was not found: pip install cmake")


def _output(command: Sequence[str | Path]) -> str:
    try:
        return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False).stdout
    except OSError as cause:
        raise Unsupported(f"{command[0]} cannot be run: {cause.strerror or cause}") from cause


def choose_archs(asked: str, tools: Tools) -> tuple[str, ...]:
    """Compute capabilities to compile for, rising. asked: "native", or numbers as in "75,86". Raises ArgumentError (no
    such number), Unsupported (no device here; one that nvcc does not know)."""
    if asked == "native":
        archs = _native_archs(tools)
    else:
        archs = [part.strip() for part in asked.split(",")]
        if any(not re.fullmatch(r"[0-9]{2,3}", arch) for arch in archs):
            raise ArgumentError(f"--arch is native, or numbers such as 75,86, not {asked!r}")
    known = set(re.findall(r"compute_(\d+)", _output([tools.nvcc, "--list-gpu-arch"])))
    for arch in archs:
        if int(arch) < 72:
            raise Unsupported(f"compute capability {arch[:-1]}.{arch[-1]} is not supported: 7.2 or newer is needed")
        if known and arch not in known:
            raise Unsupported(
                f"{tools.nvcc} of CUDA {tools.toolkit[0]}.{tools.toolkit[1]} cannot compile for {arch}; it can for"
                f" {', '.join(sorted(known, key=int))}"
            )
    return tuple(sorted(set(archs), key=int))


def _native_archs(tools: Tools) -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "look.cu", Path(folder) / "look"
        source.write_text(_LOOK, encoding="utf-8")
        compiled = subprocess.run(
            [str(tools.nvcc), "-o", str(program), str(source)], capture_output=True, text=True, check=False
        )
        if compiled.returncode != 0:
            raise Unsupported(f"nvcc cannot compile: {_first_error(compiled.stdout + compiled.stderr)}")
        ran = subprocess.run([str(program)], capture_output=True, text=True, check=False)
    if ran.returncode != 0 or not ran.stdout.split():
        reason = " ".join(ran.stderr.split()) or "the driver lists none"
        raise Unsupported(
            f"no device to compile for was found ({reason}); name compute capabilities, as in --arch 75,86"
        )
    return ran.stdout.split()


def _first_error(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    wrong = [line for line in lines if re.search(r"\berror\b", line, re.IGNORECASE)]
    return (wrong or lines[-1:] or ["it says nothing"])[0][:300]


def build_cuda(tools: Tools, archs: Sequence[str], *, jobs: int = 0, progress: Progress | None = None) -> Built:
    """Compiles the library, tests it on every device here and puts it into the user's data folder.

    Raises Unsupported, with the first error and the path of the whole log, or with the test that failed; an earlier
    library then stays in place."""
    source = source_folder() / "native" / "src" / "backends" / "cuda"
    library = built_library()
    library.parent.mkdir(parents=True, exist_ok=True)
    log = library.parent / "build.log"
    with tempfile.TemporaryDirectory() as folder, log.open("w", encoding="utf-8", errors="replace") as sink:
        configure = [tools.cmake, "-S", str(source), "-B", folder, f"-DCMAKE_CUDA_COMPILER={tools.nvcc}"]
        configure += [f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(archs)}", "-DCMAKE_BUILD_TYPE=Release"]
        if shutil.which("ninja") is not None:
            configure += ["-G", "Ninja"]
        _run(configure, sink.write, log, None)
        parallel = str(jobs or int(lib.lq_cpu_cores()))  # in a container, only the cores that it may use
        _run([tools.cmake, "--build", folder, "--config", "Release", "-j", parallel], sink.write, log, progress)
        made = next((path for path in Path(folder).rglob(library.name) if path.is_file()), None)
        if made is None:
            raise Unsupported(f"nothing called {library.name} was made; the log is {log}")
        # Copied beside its place first, and tested there: whoever loads the library gets the old or the new one, whole.
        partial = library.with_name(library.name + ".new")
        shutil.copyfile(made, partial)
        try:
            tested = _test(partial)
        except Unsupported:
            partial.unlink()
            raise
        os.replace(partial, library)
    return Built(library, tuple(archs), tested)


def _run(command: Sequence[str], write: Callable[[str], int], log: Path, progress: Progress | None) -> None:
    """Runs one step; its output goes to the log, its counts to the progress."""
    text = []
    write(f"$ {shlex.join(command)}\n")
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            write(line)
            text.append(line)
            ninja, make = re.match(r"\[(\d+)/(\d+)\]", line), re.match(r"\[ *(\d+)%\]", line)
            if progress is not None and ninja is not None:
                progress(int(ninja[1]), int(ninja[2]))
            elif progress is not None and make is not None:
                progress(int(make[1]), 100)
    if child.returncode != 0:
        raise Unsupported(f"the CUDA backend could not be built: {_first_error(''.join(text))}; the log is {log}")


def _test(library: Path) -> tuple[str, ...]:
    ran = subprocess.run(
        [sys.executable, "-c", _TEST, str(library)], capture_output=True, text=True, check=False, cwd=library.parent
    )
    if ran.returncode != 0:
        last = (ran.stderr.strip().splitlines() or ["it ended without a word"])[-1]
        reason = re.sub(r"^pylogquant\.errors\.\w+: ", "", last)
        raise Unsupported(f"the CUDA backend was built, but does not work here, and was not put in place: {reason}")
    return tuple(json.loads(ran.stdout))
