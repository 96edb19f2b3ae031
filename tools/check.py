"""Installs what the tests need, builds, and runs the checks. Standard library only.

    python3 tools/check.py --quick     lints, wheel, native tests and tests on generated models, at one SIMD level
    python3 tools/check.py             also the real models, and the native tests with sanitizers
    python3 tools/check.py --change    what a change has to pass: everything that it can have broken, with the oracles
                                       (torch, transformers, and llama.cpp, compiled once: 5 minutes)
    python3 tools/check.py --all       everything, with minutes of fuzzing; before a release

--change compares the files with the commit named in .ci/full, the last one that passed --all, and leaves out the steps
whose files are as they were then (STEPS below, AREAS in checks/changed.py). Without such a commit every step runs. What
was left out, and why, is listed at the end, and the seconds of each part.

Works in .venv-check and build-check* in the checkout; nothing else is touched but the cache folders of pip, of the
models and of the compiled peer. Each step's output is kept in build-check/logs. Exit code 1 if any step failed.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "checks"))

from changed import AREAS, changed_areas, record_full_run

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv-check"
BUILD = ROOT / "build-check"
LOGS = BUILD / "logs"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
JOBS = str(os.cpu_count() or 1)
PROCESSES = str(min(os.cpu_count() or 1, 8))  # of a run of pytest: torch and a real model are 2 GB each
TORCH = "torch==2.13.0"
OLDER = ("transformers==4.57.6", "huggingface-hub==0.36.2", "tokenizers==0.22.2")
PEER = "llama-cpp-python==0.3.36"
PEER_PARTS_LEFT_OUT = (
    "LLAVA_BUILD",
    "LLAMA_BUILD_TOOLS",
    "LLAMA_BUILD_EXAMPLES",
    "LLAMA_BUILD_TESTS",
    "LLAMA_BUILD_SERVER",
)
CROSS_TOOLS = ("aarch64-linux-gnu-gcc", "qemu-aarch64")
CROSS_PACKAGES = ("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross", "qemu-user")
ARM_LEVELS = (("cortex-a57", "neon"), ("cortex-a76", "dotprod"), ("max", "i8mm"))  # QEMU's processor, its best level
EMULATOR = (CROSS_TOOLS[1], "-L", "/usr/aarch64-linux-gnu")
CUDA_ARCHS = ("75", "80", "90", "120")  # those of them that the toolkit knows; 86 to 89 compile what 80 does
CUDA_CHECKS = (
    *("check_ops", "check_ops_rows", "check_ops_together", "check_ops_select"),
    *("check_experts", "check_recurrent"),
)
MIN_CMAKE = (3, 25)
SHOWN_LINES = 60  # of a failed step's output
DEVICE_TESTS = ROOT / "tests" / "core" / "test_cuda.py"
TRANSFORMERS_TESTS = ROOT / "tests" / "transformers_cache"


class StepFailed(Exception):
    """A step that later ones depend on failed; it has been reported."""


@dataclass
class Report:
    """The steps done so far, and the tests they counted."""

    lines: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # of each part of the checks
    failed_steps: int = 0
    passed: int = 0
    failed: int = 0

    def add(self, name: str, seconds: float, ok: bool, note: str) -> None:
        line = f"{'ok' if ok else 'FAIL':4} {seconds:7.1f} s  {name:34} {note}".rstrip()
        self.lines.append(line)
        self.failed_steps += not ok
        print(line, flush=True)

    def count_tests(self, output: str, ok: bool) -> str:
        """Adds what pytest's or ctest's last lines say, and returns them in short."""
        pytest_line = re.findall(
            r"^=* ?(\d+ (?:passed|failed|error|skipped|deselected)[^\n=]*?)(?: in [^\n]*)?$", output, re.M
        )
        if pytest_line:
            counts = {word.rstrip("s"): int(n) for n, word in re.findall(r"(\d+) (\w+)", pytest_line[-1])}
            self.passed += counts.get("passed", 0)
            self.failed += counts.get("failed", 0) + counts.get("error", 0)
            return str(pytest_line[-1])
        ctest = re.search(r"(\d+) tests failed out of (\d+)", output)
        if ctest:
            failed, total = int(ctest.group(1)), int(ctest.group(2))
            self.passed += total - failed
            self.failed += failed
            return f"{total - failed} passed, {failed} failed"
        self.failed += not ok
        return ""

    def show_times(self, total: float) -> None:
        """What each part took, as a table, and all of them; their limits are in CONTRIBUTING.md."""
        print("seconds:")
        for name, seconds in self.seconds.items():
            print(f"    {seconds:7.0f}  {name}")
        print(f"    {total:7.0f}  in all ({total / 60:.1f} minutes)")


REPORT = Report()


@contextmanager
def timed(part: str) -> Iterator[None]:
    """Adds what happens inside to the times of a part."""
    start = time.monotonic()
    try:
        yield
    finally:
        REPORT.seconds[part] = time.monotonic() - start


def run(
    name: str,
    command: Sequence[str | Path],
    *,
    env: dict[str, str] | None = None,
    note: str = "",
    tests: bool = False,
    needed: bool = False,
) -> str:
    """Runs one step in the checkout and reports it; returns its output. needed: raises StepFailed if it fails."""
    LOGS.mkdir(parents=True, exist_ok=True)
    log = LOGS / (re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-") + ".log")
    start = time.monotonic()
    with log.open("w", encoding="utf-8", errors="replace") as sink:
        sink.write(f"$ {shlex.join(str(word) for word in command)}\n")
        sink.flush()
        try:
            code = subprocess.run(
                [str(word) for word in command],
                cwd=ROOT,
                env={**os.environ, "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1", **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        except OSError as cause:
            sink.write(f"{cause}\n")
            code = 127
    output = log.read_text(encoding="utf-8", errors="replace")
    ok = code == 0
    if tests:
        note = REPORT.count_tests(output, ok)
    if not ok:
        print("\n".join(output.splitlines()[-SHOWN_LINES:]), flush=True)
        note = f"exit code {code}{', ' + note if note else ''}; all of it: {log.relative_to(ROOT)}"
    REPORT.add(name, time.monotonic() - start, ok, note)
    if needed and not ok:
        raise StepFailed(name)
    return output


def run_together(commands: Mapping[str, Sequence[str | Path]], *, env: dict[str, str]) -> None:
    """Runs steps, named by the keys, as many at a time as there are processors."""
    with ThreadPoolExecutor(max_workers=int(JOBS)) as pool:
        list(pool.map(lambda name: run(name, commands[name], env=env), commands))


# ---- environment ----------------------------------------------------------------------------------------------------


def pip_install(name: str, *arguments: str | Path) -> None:
    run(name, [BIN / "python", "-m", "pip", "install", "--disable-pip-version-check", *arguments], needed=True)


def peer_wheel() -> Path:
    """The compiled peer, from the user's cache or built into it. Keyed by CPU: it is built for the one it runs on."""
    flags = ""
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"^(?:flags|Features)\s*:.*$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        flags = found.group(0) if found else ""
    cpu = hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pylogquant-check" / f"peer-{cpu}"
    pattern = PEER.replace("-", "_").replace("==", "-") + "-*.whl"
    if not list(cache.glob(pattern)):
        options = " ".join(f"-D{part}=OFF" for part in PEER_PARTS_LEFT_OUT)
        if " amx_int8" in flags:  # the peer uses it where the compiler can; virtual machines may show and not allow it
            options += " -DCMAKE_C_FLAGS=-mno-amx-int8 -DCMAKE_CXX_FLAGS=-mno-amx-int8"
        # Without pip's cache, which may hold a wheel that was built with other options.
        command: list[str | Path] = [BIN / "python", "-m", "pip", "wheel", "--no-deps", "--no-cache-dir"]
        command += ["--wheel-dir", cache, PEER]
        run("compile the peer, once", command, env={"CMAKE_ARGS": options}, needed=True)
    return sorted(cache.glob(pattern))[-1]


def install(*, oracle: bool) -> None:
    """Makes the virtual environment and installs this checkout into it, as a wheel that is built once."""
    if not (BIN / "python").exists() and not (BIN / "python.exe").exists():
        start = time.monotonic()
        venv.create(VENV, with_pip=True, clear=True)
        REPORT.add("virtual environment", time.monotonic() - start, True, str(VENV.relative_to(ROOT)))
    if oracle:
        # Pinned, and first: whatever else wants torch has to take this one.
        pip_install("install torch", TORCH)
        pip_install("install the peer", peer_wheel())
    wheels = BUILD / "wheel"
    shutil.rmtree(wheels, ignore_errors=True)
    command: list[str | Path] = [BIN / "python", "-m", "pip", "wheel", "--disable-pip-version-check", "--no-deps"]
    # The native tests are compiled along: they run the objects that the wheel's library is made of.
    settings = {"build-dir": BUILD, "cmake.define.LQ_BUILD_TESTS": "ON", "cmake.define.LQ_WERROR": "ON"}
    command += [f"--config-settings={key}={value}" for key, value in settings.items()]
    run("build the wheel and the native tests", [*command, "--wheel-dir", wheels, "."], needed=True)
    (wheel,) = wheels.glob("pylogquant-*.whl")
    pip_install("install it with its extras", f"{wheel}[{'test,oracle' if oracle else 'test'}]")
    # pip keeps an installed package of the same version on some paths; the core under test must be this checkout's.
    pip_install("install it again", "--force-reinstall", "--no-deps", wheel)


def cmake_tool(name: str) -> str:
    """cmake or ctest: the system's if new enough, else the wheel's."""
    system = shutil.which("cmake")
    if system is not None and shutil.which(name) is not None:
        text = subprocess.run([system, "--version"], capture_output=True, text=True, check=False).stdout
        found = re.search(r"version (\d+)\.(\d+)", text)
        if found and (int(found.group(1)), int(found.group(2))) >= MIN_CMAKE:
            return name
    if not (BIN / name).exists():
        pip_install("install cmake", f"cmake>={MIN_CMAKE[0]}.{MIN_CMAKE[1]}")
    return str(BIN / name)


def cpu_levels() -> list[str]:
    """The SIMD levels this machine runs, worst first, as the installed core tells."""
    program = "from pylogquant._native import ffi, lib; print(ffi.string(lib.lq_cpu_levels()).decode())"
    output = run("SIMD levels", [BIN / "python", "-I", "-c", program], needed=True)
    return output.splitlines()[-1].split(",")


# ---- checks ---------------------------------------------------------------------------------------------------------


def compiler(language: str) -> list[str] | None:
    """The C or C++ compiler's command; None if there is none."""
    command = shlex.split(os.environ.get({"c": "CC", "c++": "CXX"}[language], {"c": "cc", "c++": "c++"}[language]))
    return command if shutil.which(command[0]) else None


def lint() -> None:
    sources = sorted(
        path for suffix in ("c", "h", "cu", "cuh", "cpp") for path in (ROOT / "native").rglob(f"*.{suffix}")
    )
    run("ruff check", [BIN / "ruff", "check", "."])
    run("ruff format", [BIN / "ruff", "format", "--check", "."])
    run("mypy --strict", [BIN / "mypy"])
    run("clang-format", [BIN / "clang-format", "--dry-run", "--Werror", *sources], note=f"{len(sources)} files")
    run("includes and imports", [BIN / "python", ROOT / "tools" / "checks" / "check_includes.py"])
    standards = {"c": "c11", "c++": "c++17"}
    for header in sorted((ROOT / "native" / "include").glob("*.h")):
        for language, standard in standards.items():
            command = compiler(language)
            if command is None:
                REPORT.add(f"{header.name} alone, {standard}", 0.0, language != "c", f"no {language} compiler here")
                continue
            flags = [f"-std={standard}", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-x", language]
            run(f"{header.name} alone, {standard}", [*command, *flags, header])


def build_native(
    name: str, folder: Path, sanitizers: str, more: Mapping[str, str] | None = None, *, target: str = "all"
) -> None:
    options = {
        "CMAKE_BUILD_TYPE": "RelWithDebInfo" if sanitizers else "Release",
        "LQ_BUILD_TESTS": "ON",
        "LQ_WERROR": "ON",
        "LQ_SANITIZE": sanitizers,
        **(more or {}),
    }
    flags = [f"-D{key}={value}" for key, value in options.items()]
    configure: list[str | Path] = [cmake_tool("cmake"), "-S", ROOT, "-B", folder, *flags]
    run(f"configure {name}", configure, needed=True)
    build: list[str | Path] = [cmake_tool("cmake"), "--build", folder, "--parallel", JOBS, "--target", target]
    run(f"build {name}", build, needed=True)


def run_ctest(
    name: str, folder: Path, *, level: str, extra: Sequence[str] = (), env: Mapping[str, str] | None = None
) -> None:
    command: list[str | Path] = [cmake_tool("ctest"), "--test-dir", folder, "--output-on-failure", "-j", JOBS]
    env = {"LQ_CPU": level, **SANITIZER_ENV, **(env or {})}
    run(name, [*command, "--no-tests=error", *extra], env=env, tests=True)


SANITIZER_ENV = {
    # Tests ask for absurd amounts of memory on purpose: that has to be an error of ours, not the allocator's end.
    "ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


def native(plan: Plan) -> None:
    """The native tests, which install() has built with the wheel, at each SIMD level."""
    for level in plan.levels:
        run_ctest(f"native tests, {level}", BUILD, level=level, extra=once(plan, level))


def native_sanitized(plan: Plan) -> None:
    """Native tests with ASan and UBSan; those about threads with TSan."""
    asan, tsan = ROOT / "build-check-asan", ROOT / "build-check-tsan"
    build_native("with ASan, UBSan", asan, "address,undefined")
    for level in plan.levels:
        extra = ["--exclude-regex", "_cuda_reverse", *once(plan, level)]  # another order was tried without them
        run_ctest(f"native tests, ASan, {level}", asan, level=level, extra=extra)
    build_native("with TSan", tsan, "thread", target="lq_threads_programs")
    run_ctest("native tests, TSan", tsan, level=plan.levels[-1], extra=["--label-regex", "threads"])


def once(plan: Plan, level: str) -> list[str]:
    """Leaves out of all levels but the last what does not depend on the level, or tries every one by itself."""
    return [] if level == plan.levels[-1] else ["--label-regex", "levels"]


def cuda(plan: Plan) -> None:
    """Compiles the CUDA backend with nvcc, where there is one, loads what comes out, and runs its PTX on the CPU. What
    else is tested of it needs no GPU and no nvcc: it runs in emulation, with the others."""
    name, folder = "CUDA with nvcc", ROOT / "build-check-cuda"
    nvcc = os.environ.get("CUDACXX") or shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    if shutil.which(nvcc) is None:
        REPORT.add(name, 0.0, True, "skipped: no nvcc here; the kernels were compiled for emulation only")
        return
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=False).stdout
    archs = [arch for arch in CUDA_ARCHS if f"compute_{arch}\n" in listed]
    configure: list[str | Path] = [cmake_tool("cmake"), "-S", ROOT / "native" / "src" / "backends" / "cuda"]
    configure += ["-B", folder, "-DLQ_WERROR=ON", f"-DCMAKE_CUDA_ARCHITECTURES={';'.join(archs)}"]
    configure += ["-DLQ_CUDA_PTX=ON"]
    run("configure CUDA", [*configure, f"-DCMAKE_CUDA_COMPILER={nvcc}"], needed=True)
    run("build CUDA", [cmake_tool("cmake"), "--build", folder, "--parallel", JOBS], needed=True, note=" ".join(archs))
    program = "import sys; from pathlib import Path; from pylogquant.devices import look_at_cuda as look"
    program += "; print(look(Path(sys.argv[1])))"
    run("load CUDA library", [BIN / "python", "-I", "-c", program, folder / "liblogquant_cuda.so"])
    env = {"LQ_CUDA_LIBRARY": str(folder / "liblogquant_cuda_ptx.so"), "LQ_EMULATED_GUARD": "1"}
    programs = BUILD / "native" / "tests"
    run_together({f"{check}, nvcc's PTX": [programs / check, "cuda"] for check in CUDA_CHECKS}, env=env)


def emulated_cuda() -> dict[str, str]:
    """Where the tests find the emulated CUDA backend; nothing where it could not be built."""
    library = BUILD / "native" / "src" / "backends" / "cuda" / "liblogquant_cuda_emulated.so"
    return {"LQ_TEST_CUDA_LIBRARY": str(library)} if library.exists() else {}


def aarch64(plan: Plan) -> None:
    """Native tests for 64-bit ARM, cross-compiled and in QEMU: one processor for each level, its best one in use."""
    name, folder = "aarch64 in QEMU", ROOT / "build-check-aarch64"
    if platform.machine() in ("aarch64", "arm64"):
        REPORT.add(name, 0.0, True, "skipped: this machine is one, and has run them itself")
        return
    if not cross_tools():
        REPORT.add(name, 0.0, True, f"skipped: needs {' and '.join(CROSS_TOOLS)}, of {' '.join(CROSS_PACKAGES)}")
        return
    options = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_C_COMPILER": CROSS_TOOLS[0],
        "CMAKE_CROSSCOMPILING_EMULATOR": ";".join(EMULATOR),
    }
    build_native("for aarch64", folder, "", options)
    levels = [level for _, level in ARM_LEVELS]
    for cpu, level in ARM_LEVELS:
        extra = ["--exclude-regex", "fuzz|alloc_fail", *([] if level == levels[-1] else ["--label-regex", "levels"])]
        run_ctest(f"native tests, aarch64, {level}", folder, level=level, extra=extra, env={"QEMU_CPU": cpu})
    tool, program = ROOT / "tools" / "checks" / "same_tokens.py", folder / "native" / "tests" / "lq_run"
    command: list[str | Path] = [BIN / "python", tool, "--emulator", shlex.join(EMULATOR), program]
    command += ["scalar", *levels]
    run("same tokens, aarch64", command, env={"QEMU_CPU": "max"})


def cross_tools() -> bool:
    """Whether compiler and emulator are here. In CI, where root may install what is missing, they are installed."""
    if all(map(shutil.which, CROSS_TOOLS)):
        return True
    if os.environ.get("CI") != "true" or os.geteuid() != 0 or shutil.which("apt-get") is None:
        return False
    run("apt-get update", ["apt-get", "update"], needed=True)
    run("install cross compiler, QEMU", ["apt-get", "install", "--yes", *CROSS_PACKAGES], needed=True)
    return all(map(shutil.which, CROSS_TOOLS))


def run_pytest(name: str, *arguments: str, env: dict[str, str] | None = None) -> None:
    # The script, not `python -m pytest`, which would put the checkout (no core there) before the installed package.
    run(name, [BIN / "pytest", "-p", "no:cacheprovider", "-n", PROCESSES, *arguments], env=env, tests=True)


def python_tests(plan: Plan) -> None:
    chosen = "not real_model and not oracle" if plan.extent == Extent.QUICK else "not oracle"
    run_pytest("pytest", "-m", chosen, f"--ignore={DEVICE_TESTS}", env=emulated_cuda())


def device_tests(plan: Plan) -> None:
    run_pytest("pytest, CUDA in emulation", str(DEVICE_TESTS), env=emulated_cuda())


def oracles(plan: Plan) -> None:
    """The tests that ask llama.cpp and transformers, but for those of pylogquant.transformers."""
    run_pytest("pytest, oracles", "--oracle", "-m", "oracle", f"--ignore={TRANSFORMERS_TESTS}")


def newest_transformers(plan: Plan) -> None:
    run_pytest("pytest, transformers", "--oracle", "-m", "oracle", str(TRANSFORMERS_TESTS))


def python_levels(plan: Plan) -> None:
    """The tests that compute, on generated models, at the lower levels: the best one is what ran before."""
    chosen = "tiny_model and not real_model and not oracle and not without_sanitizers"
    for level in plan.levels[:-1]:
        run_pytest(f"pytest, generated models, {level}", "-m", chosen, env={"LQ_CPU": level})


def older_transformers(plan: Plan) -> None:
    """The tests of pylogquant.transformers and of downloads, with the oldest libraries laid over the others."""
    folder = BUILD / "transformers-4"
    pip_install("install transformers 4", "--no-deps", "--upgrade", "--target", folder, *OLDER)
    tests = (TRANSFORMERS_TESTS, ROOT / "tests" / "package" / "test_hub.py")
    triton = f"--ignore={TRANSFORMERS_TESTS / 'test_transformers_triton.py'}"  # imports torch and Triton alone
    run_pytest("pytest, transformers 4", "--oracle", triton, *map(str, tests), env={"PYTHONPATH": str(folder)})


def sanitized_python(plan: Plan) -> None:
    """The suite on generated models once more, with the library that was built with ASan and UBSan."""
    name = "pytest, ASan and UBSan"
    # The C++ library comes first, too: ASan finds no __cxa_throw in an interpreter written in C, and ends the process
    # where an extension module (matplotlib's) throws.
    preloaded = [found for found in map(compiler_library, ("libasan.so", "libstdc++.so.6")) if found]
    library = ROOT / "build-check-asan" / "native" / "liblogquant.so"
    if not preloaded or not library.exists():
        REPORT.add(name, 0.0, False, "needs gcc's libasan.so and the build with ASan")
        return
    env = {
        "LD_PRELOAD": " ".join(preloaded),
        "LOGQUANT_LIBRARY": str(library),
        # The interpreter's own leaks are not ours to find; the native tests look for leaks.
        "ASAN_OPTIONS": f"detect_leaks=0:allocator_may_return_null=1:log_path={LOGS / 'sanitizer'}",
        "UBSAN_OPTIONS": SANITIZER_ENV["UBSAN_OPTIONS"],
    }
    for report in LOGS.glob("sanitizer.*"):
        report.unlink()
    chosen = "not real_model and not oracle and not without_sanitizers and not python_only"
    run_pytest(name, "-m", chosen, env=env)
    for report in LOGS.glob("sanitizer.*"):  # pytest takes what goes to stderr with it when the process ends
        print("\n".join(report.read_text(errors="replace").splitlines()[:SHOWN_LINES]), flush=True)


def compiler_library(name: str) -> str:
    """Where the C compiler finds a library of its own, or nothing."""
    command = compiler("c")
    if command is None:
        return ""
    asked = subprocess.run([*command, f"-print-file-name={name}"], capture_output=True, text=True, check=False)
    found = asked.stdout.strip()
    return found if Path(found).is_absolute() else ""


def fuzz(plan: Plan) -> None:
    """Random damage for everything that reads what others wrote, two at a time; the core's under ASan."""
    asan, fuzzer = ROOT / "build-check-asan" / "native" / "tests", ROOT / "tools" / "checks" / "fuzz.py"
    seconds = "60" if plan.extent == Extent.ALL else "10"
    commands: dict[str, list[str | Path]] = {}
    if plan.wants("core"):
        for target in ("gguf", "model", "kv", "session"):
            commands[f"fuzz {target}, {seconds} s"] = [asan / f"fuzz_{target}", "--seconds", seconds]
    for target in ("tokenizer", "template"):
        commands[f"fuzz {target}, {seconds} s"] = [BIN / "python", fuzzer, target, "--seconds", seconds]
    run_together(commands, env=SANITIZER_ENV)


# ---- which of them --------------------------------------------------------------------------------------------------


class Extent(IntEnum):
    """How much is checked; each includes what comes before it."""

    QUICK = 0
    PLAIN = 1
    CHANGE = 2
    ALL = 3


@dataclass(frozen=True)
class Plan:
    """What this run is to check. levels: SIMD levels, worst first. areas: those of AREAS that changed."""

    extent: Extent
    levels: Sequence[str]
    areas: frozenset[str]

    def wants(self, *areas: str) -> bool:
        """Whether one of them is to be checked: of a change those that it touches, else all."""
        return self.extent != Extent.CHANGE or bool(self.areas.intersection(areas))

    @property
    def oracle(self) -> bool:
        """Whether torch, transformers and llama.cpp are needed."""
        return self.extent >= Extent.CHANGE and self.wants("oracles", "transformers")


@dataclass(frozen=True)
class Step:
    """A part of the checks: from which extent on it runs, and on which of AREAS it depends (none: on any file)."""

    name: str
    action: Callable[[Plan], None]
    least: Extent
    areas: tuple[str, ...] = ()

    def why_not(self, plan: Plan) -> str:
        """Why this run leaves it out, in words; empty if it does not."""
        if plan.extent < self.least:
            return (
                f"--{Extent(self.least).name.lower()} runs it"
                if self.least != Extent.PLAIN
                else "without --quick it runs"
            )
        return "" if not self.areas or plan.wants(*self.areas) else f"no file of {' or '.join(self.areas)} changed"


STEPS = (
    Step("native tests", native, Extent.QUICK, ("core",)),
    Step("native tests with sanitizers", native_sanitized, Extent.PLAIN, ("core",)),
    Step("CUDA with nvcc, its PTX on the CPU", cuda, Extent.CHANGE, ("cuda",)),
    Step("aarch64 in QEMU", aarch64, Extent.CHANGE, ("core",)),
    Step("pytest", python_tests, Extent.QUICK),
    Step("pytest of CUDA devices in emulation", device_tests, Extent.QUICK, ("devices",)),
    Step("pytest against llama.cpp and transformers", oracles, Extent.CHANGE, ("oracles",)),
    Step("pytest of pylogquant.transformers", newest_transformers, Extent.CHANGE, ("transformers",)),
    Step("pytest with transformers 4", older_transformers, Extent.CHANGE, ("transformers",)),
    Step("pytest at the lower SIMD levels", python_levels, Extent.CHANGE, ("core",)),
    Step("pytest with sanitizers", sanitized_python, Extent.CHANGE, ("core",)),
    Step("fuzzing", fuzz, Extent.CHANGE, ("core", "readers")),
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Installs what the tests need, builds, and runs the checks.")
    how_much = parser.add_mutually_exclusive_group()
    how_much.add_argument("--quick", action="store_true", help="one SIMD level, generated models only, no sanitizers")
    how_much.add_argument(
        "--change", action="store_true", help="what a change has to pass, with torch, transformers and llama.cpp"
    )
    how_much.add_argument("--all", action="store_true", help="everything, with minutes of fuzzing")
    options = parser.parse_args()
    extent = Extent.QUICK if options.quick else Extent.CHANGE if options.change else Extent.PLAIN
    extent = Extent.ALL if options.all else extent
    start = time.monotonic()
    try:
        plan = Plan(extent, (), changed_areas(ROOT) if extent == Extent.CHANGE else frozenset(AREAS))
        with timed("install and build"):
            install(oracle=plan.oracle)
            levels = cpu_levels()
        plan = replace(plan, levels=levels if extent >= Extent.CHANGE else levels[-1:])
        with timed("lint"):
            lint()
        for step in STEPS:
            why_not = step.why_not(plan)
            if why_not:
                REPORT.left_out.append(f"{step.name}: {why_not}")
            else:
                with timed(step.name):
                    step.action(plan)
        if extent < Extent.CHANGE and len(levels) > 1:
            REPORT.left_out.append(f"the tests at the SIMD levels {', '.join(levels[:-1])}: --change runs them")
        if extent == Extent.QUICK:
            REPORT.left_out.append("the tests on real models: without --quick they run")
    except StepFailed as failed:
        print(f"stopped: the rest needs the step '{failed}'")
    print(f"\n---- {len(REPORT.lines)} steps ----")
    print("\n".join(REPORT.lines))
    if REPORT.left_out:
        print("left out:\n" + "\n".join(f"    {line}" for line in REPORT.left_out))
    REPORT.show_times(time.monotonic() - start)
    if REPORT.failed_steps:
        print(f"{REPORT.failed_steps} steps failed")
    failed_any = bool(REPORT.failed_steps or REPORT.failed or not REPORT.passed)
    if extent == Extent.ALL and not failed_any:
        record_full_run(ROOT)
    print(f"{REPORT.passed} passed, {REPORT.failed} failed")
    sys.exit(1 if failed_any else 0)


if __name__ == "__main__":
    main()
