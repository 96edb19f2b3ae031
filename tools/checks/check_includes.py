"""Checks that includes and imports follow the house plan's arrows, which point one way only.

    python tools/checks/check_includes.py [CHECKOUT]

Prints one line per breach and exits 1. The plan: core <- gguf, formats, sampler, kv/policy; core, formats, kv/policy
<- backends <- kv/cache; gguf, formats, backends, kv <- model; all of these <- session. Outside backends/ only
backends/backend.h is known. No intrinsics outside backends/cpu/kernels/{x86,arm}, no CUDA outside backends/cuda.
Python's modules have their own table, and only _native.py may import cffi.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

# A part of native/src -> the parts its files may include besides itself; "backend.h" is backends/ less cpu/ and cuda/.
_C_ARROWS: dict[str, frozenset[str]] = {
    "core": frozenset(),
    "formats": frozenset({"core"}),
    "gguf": frozenset({"core", "formats"}),
    "sampler": frozenset({"core"}),
    "strings": frozenset({"core"}),
    "vocab": frozenset({"core"}),
    "kv/policy": frozenset({"core"}),
    "backend.h": frozenset({"core", "formats", "kv/policy"}),
    "backends/cpu": frozenset({"core", "formats", "kv/policy", "backend.h", "backends/cpu/kernels"}),
    "backends/cpu/kernels": frozenset({"core", "formats"}),
    "backends/cpu/kernels/x86": frozenset({"core", "formats", "backends/cpu/kernels"}),
    "backends/cpu/kernels/arm": frozenset({"core", "formats", "backends/cpu/kernels"}),
    "backends/cuda": frozenset({"core", "formats", "kv/policy", "backend.h"}),
    "kv": frozenset({"core", "formats", "backend.h", "kv/policy"}),
    "model": frozenset({"core", "formats", "gguf", "backend.h", "kv"}),
    "session": frozenset({"core", "formats", "gguf", "backend.h", "kv", "model", "sampler"}),
    "handshake": frozenset({"core"}),
}

# A module of pylogquant/ -> the modules it may import when it runs (imports for type checkers alone are free).
_PY_ARROWS: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "_copying": frozenset({"errors"}),
    "_native": frozenset({"errors", "_logquant_ffi"}),
    "gguf": frozenset({"errors", "_copying", "_native"}),
    "devices": frozenset({"errors", "_native"}),
    "build": frozenset({"errors", "_native", "devices"}),
    "_sources": frozenset(),
    "_download": frozenset({"errors", "_sources"}),
    "_names": frozenset(),
    "_advice": frozenset({"_names"}),
    "hub": frozenset({"errors", "_sources", "_download", "_names", "_advice"}),
    "sandbox_budget": frozenset(),
    "sandbox_values": frozenset({"errors", "sandbox_budget"}),
    "sandbox_filters": frozenset({"sandbox_budget", "sandbox_values"}),
    "sandbox": frozenset({"sandbox_budget", "sandbox_filters", "sandbox_values"}),
    "templates": frozenset({"errors", "_copying", "sandbox", "sandbox_budget"}),
    "kv": frozenset({"errors", "_copying", "_native"}),
    "transformers": frozenset({"errors", "_native", "kv"}),
    "_running": frozenset(),
    "_fields": frozenset(),
    "options": frozenset({"errors", "_native", "kv"}),
    "session": frozenset({"errors", "_copying", "_native", "_running", "kv", "options"}),
    "_stepping": frozenset({"errors", "_native", "_running", "session"}),
    "pretokenizers": frozenset(),
    "evaluate": frozenset({"errors", "kv", "session"}),
    "spikes": frozenset({"errors", "session"}),
    "bench": frozenset({"errors", "_native", "kv", "session"}),
    "plots": frozenset({"errors", "_native", "evaluate", "spikes"}),
    "bpe": frozenset({"errors", "gguf", "pretokenizers"}),
    "tokenizer": frozenset({"errors", "_copying", "bpe", "gguf", "pretokenizers"}),
    "chat_stats": frozenset(),
    "transcripts": frozenset({"errors", "_native"}),
    "loops": frozenset(),
    "defaults": frozenset({"hub", "options"}),
    "text_stream": frozenset({"errors", "loops"}),
    "generation": frozenset({"errors", "text_stream"}),
    "batch": frozenset({"errors", "_native", "generation", "text_stream"}),
    "conversation": frozenset({"errors", "templates", "text_stream"}),
    "chat": frozenset(
        {
            *("errors", "_copying", "session", "tokenizer", "templates", "chat_stats", "conversation", "generation"),
            *("text_stream", "transcripts"),
        }
    ),
    "model": frozenset(
        {
            *("errors", "_copying", "_fields", "_native", "_running", "_stepping", "defaults", "devices", "gguf"),
            *("hub", "kv", "options", "session", "tokenizer", "templates", "chat"),
        }
    ),
}

_INTRINSICS = re.compile(r"^(?:[a-z0-9]*mmintrin|[ix]mmintrin|x86intrin|x86gprintrin|avx\w*intrin|cpuid|arm_\w+)\.h$")
_SIMD = ("native/src/backends/cpu/kernels/x86/", "native/src/backends/cpu/kernels/arm/")
_CUDA = re.compile(r"^(?:cuda\w*|cublas\w*|curand\w*|cooperative_groups|mma|nvrtc)(?:\.h|/.*)?$|\.cuh$")
_NO_FILE = "no such file in native/include or native/src"
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(?:<([^>\n]+)>|"([^"\n]+)")', re.MULTILINE)


def _part(path: str) -> str | None:
    """The part a file under native/src belongs to, by its path there; None if the plan has no place for it."""
    folder, _, name = path.rpartition("/")
    if folder == "backends":
        return "backend.h"
    if folder == "kv":
        return "kv/policy" if name.startswith(("policy", "policies")) else "kv"
    if folder:
        return folder if folder in _C_ARROWS else None
    stem = name.split(".")[0]
    return stem if stem in _C_ARROWS else None


def _c_files(root: Path) -> Iterator[Path]:
    for pattern in ("*.c", "*.h", "*.cu", "*.cuh", "*.def"):
        yield from sorted((root / "native").rglob(pattern))


def _check_quoted(root: Path, path: Path, include: str) -> str | None:
    """What is wrong with one include of a file of this project, or None."""
    source = root / "native" / "src"
    if (root / "native" / "include" / include).is_file():
        return None
    is_private = (source / include).is_file()
    if not path.is_relative_to(source):  # tests may reach behind the public header, and have headers of their own
        return None if is_private or (path.parent / include).is_file() else _NO_FILE
    if not is_private:
        return f"{_NO_FILE} (paths start there, not at the including file)"
    own, other = _part(path.relative_to(source).as_posix()), _part(include)
    if other is None:
        return "the house plan has no such part"
    if own is None or own == other or other in _C_ARROWS[own]:
        return None
    return f"{own} must not know {other}"


def c_problems(root: Path) -> list[str]:
    """One line for each include that breaks a rule, in the sources under root/native."""
    problems = []
    for path in _c_files(root):
        place = path.relative_to(root).as_posix()
        if place.startswith("native/src/") and _part(place.removeprefix("native/src/")) is None:
            problems.append(f"{place}: the house plan has no place for this file")
        text = path.read_text(encoding="utf-8")
        for found in _INCLUDE.finditer(text):
            include = found.group(1) or found.group(2)
            fault = None
            if _INTRINSICS.search(include) and not place.startswith(_SIMD):
                fault = "intrinsics belong in backends/cpu/kernels/x86 or arm"
            elif _CUDA.search(include) and not place.startswith("native/src/backends/cuda/"):
                fault = "CUDA belongs in backends/cuda"
            elif found.group(2):
                fault = _check_quoted(root, path, include)
            if fault is not None:
                line = text.count("\n", 0, found.start()) + 1
                problems.append(f"{place}:{line}: includes {include}: {fault}")
    return problems


class _Imports(ast.NodeVisitor):
    """Absolute names a module imports when it runs: not those under `if TYPE_CHECKING`."""

    def __init__(self, package: str) -> None:
        self.package = package  # of the module, for relative imports: "pylogquant" or "pylogquant.cli"
        self.found: list[tuple[int, str]] = []

    def visit_If(self, node: ast.If) -> None:
        if "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                self.visit(child)
        else:
            self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [(node.lineno, alias.name) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            parents = self.package.split(".")[: len(self.package.split(".")) - node.level + 1]
            base = ".".join([*parents, base] if base else parents)
        if base == "pylogquant":
            self.found += [(node.lineno, f"pylogquant.{alias.name}") for alias in node.names]
        else:
            self.found.append((node.lineno, base))


def _check_import(module: str, name: str, modules: frozenset[str]) -> str | None:
    """What is wrong with one import by pylogquant.<module>, or None. modules: those that exist."""
    if name.split(".")[0] == "cffi":
        return None if module == "_native" else "only _native.py imports cffi"
    parts = name.split(".")
    if parts[0] != "pylogquant" or len(parts) < 2 or parts[1] not in modules:
        return None
    own, other = module.split(".")[0], parts[1]
    if own == other:
        return None
    if own == "cli":
        return None
    if own == "__init__":
        return None if other == "errors" else "the package imports lazily, all but errors"
    if own not in _PY_ARROWS:
        return None
    return None if other in _PY_ARROWS[own] else f"{own} must not know {other}"


def python_problems(root: Path) -> list[str]:
    """One line for each import that breaks a rule, in the modules under root/pylogquant."""
    package = root / "pylogquant"
    files = [path for path in sorted(package.rglob("*.py")) if path.name != "_logquant_ffi.py"]
    modules = frozenset({"_logquant_ffi", *(path.relative_to(package).parts[0].removesuffix(".py") for path in files)})
    problems = []
    for path in files:
        place = path.relative_to(root).as_posix()
        module = path.relative_to(package).with_suffix("").as_posix().replace("/", ".")
        top = module.split(".")[0]
        if top not in _PY_ARROWS and top not in ("cli", "__init__", "__main__"):
            problems.append(f"{place}: the house plan has no place for this module (tools/checks/check_includes.py)")
        parents = path.relative_to(root).parent.as_posix().replace("/", ".")
        visitor = _Imports(parents)
        visitor.visit(ast.parse(path.read_text(encoding="utf-8"), place))
        for line, name in visitor.found:
            fault = _check_import(module, name, modules)
            if fault is not None:
                problems.append(f"{place}:{line}: imports {name}: {fault}")
    return problems


def main() -> None:
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parents[2]
    problems = c_problems(root) + python_problems(root)
    for problem in problems:
        print(problem)
    if problems:
        raise SystemExit(f"{len(problems)} breaches of the house plan's arrows")
    print("includes and imports follow the house plan")


if __name__ == "__main__":
    main()
