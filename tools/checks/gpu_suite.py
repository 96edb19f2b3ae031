"""Runs everything that needs a GPU, in less than ten minutes: builds the CUDA backend for the device at hand, runs all
of its tests there, compute-sanitizer, and benchmarks; prints a short table at the end.

    python3 tools/check.py --quick && .venv-check/bin/python tools/checks/gpu_suite.py

Needs the virtual environment that tools/check.py makes, and its build of the native tests (build-check). The benchmarks
run on a model with the shape of Llama 3.1 8B and random weights (tools/models/make_random_gguf.py), or on --model.

    --library FILE   use this library instead of building one; with the emulated one of the checks and --small the suite
                     runs on a machine without a GPU, to test the suite itself
    --small          use a model of one small layer, and few tokens
    --long           also decode behind 100,000 tokens, which takes minutes more
    --peer FILE      llama.cpp's llama-bench, built with CUDA, to measure with the same model, depths and prompts
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "models"))

from check import CUDA_CHECKS
from make_random_gguf import Shape, make_random

from pylogquant import LogQuantError, Model
from pylogquant.bench import bench, random_ids, token_cost
from pylogquant.devices import look_at_cuda

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "build-check" / "native" / "tests"
# Of the models' tests, those that say most; all of them run on the device, by device="auto".
MODEL_TESTS = ("test_cuda.py", "test_forward.py", "test_kv_models.py", "test_step.py", "test_session_files.py")
SMALL = Shape(layers=1, embd=256, ff=512, heads=4, kv_heads=2, vocab=1000, ctx=4096)
KVS = ("logquant", "f16")

RATES = Path(__file__).with_name("gpu_rates.cu")


@dataclass
class Suite:
    """The steps so far, each a line of the table."""

    lines: list[str] = field(default_factory=list)
    failed: int = 0

    def add(self, name: str, seconds: float, ok: bool, note: str) -> None:
        line = f"{'ok' if ok else 'FAIL':4} {seconds:6.1f} s  {name:34} {note}".rstrip()
        self.lines.append(line)
        self.failed += not ok
        print(line, flush=True)

    def run(
        self, name: str, command: Sequence[str | Path], env: dict[str, str], timeout: float, *, cut: str = ""
    ) -> str:
        """One step; its output, of which the last lines are shown if it failed. cut: a pattern of what goes wrong, for
        steps that may be cut off: those have failed where their output has it."""
        start = time.monotonic()
        try:
            done = subprocess.run(
                [str(word) for word in command],
                cwd=ROOT,
                env={**os.environ, "NO_COLOR": "1", **env},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=timeout,
                check=False,
            )
            output, ok = done.stdout, done.returncode == 0
        except subprocess.TimeoutExpired as stopped:
            before = stopped.stdout
            text = before.decode(errors="replace") if isinstance(before, bytes) else before or ""
            output, ok = f"{text}\nnot done after {timeout:.0f} s", bool(cut) and re.search(cut, text) is None
        except OSError as cause:
            output, ok = str(cause), False
        lines = output.strip().splitlines()
        if not ok:
            print("\n".join(lines[-40:]), flush=True)
        self.add(name, time.monotonic() - start, ok, lines[-1][:80] if lines else "")
        return output


def tests(suite: Suite, library: Path) -> None:
    env = {"LQ_CUDA_LIBRARY": str(library)}
    for check in CUDA_CHECKS:
        suite.run(check, [NATIVE / check, "cuda"], env, 120)
    pytest: list[str | Path] = [Path(sys.executable).parent / "pytest", "-p", "no:cacheprovider", "-q", "-x"]
    files = [ROOT / "tests" / "core" / name for name in MODEL_TESTS]
    chosen = ["-m", "not real_model and not oracle"]
    suite.run("models", [*pytest, *chosen, *files], {**env, "LQ_TEST_CUDA_LIBRARY": str(library)}, 240)


def sanitizers(suite: Suite, library: Path) -> None:
    """Memory that is not the kernel's, and threads that race. What takes too long is cut off, with what it found."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        suite.add("compute-sanitizer", 0.0, True, "skipped: it is not installed")
        return
    found = r"^=========(?! COMPUTE-SANITIZER$| *$| ERROR SUMMARY: 0)"
    for tool in ("memcheck", "racecheck"):
        for check in CUDA_CHECKS:
            command = [program, "--tool", tool, "--error-exitcode", "9", NATIVE / check, "cuda"]
            suite.run(f"{tool}, {check}", command, {"LQ_CUDA_LIBRARY": str(library)}, 45, cut=f"(?m){found}")


def device_rates(folder: Path) -> tuple[float, float]:
    """Bytes read and F16 products of cuBLAS in a second (gpu_rates.cu); 0 = not to be had."""
    nvcc = shutil.which(os.environ.get("CUDACXX", "nvcc")) or shutil.which("/usr/local/cuda/bin/nvcc")
    program = folder / "rates"
    for options in (["-DWITH_CUBLAS", "-lcublas"], []):  # toolkits come without cuBLAS, too
        if nvcc is None or subprocess.run([nvcc, "-o", program, RATES, *options], capture_output=True).returncode != 0:
            continue
        done = subprocess.run([str(program)], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            read, dense = map(float, done.stdout.split())
            return read, dense
    return 0.0, 0.0


def benchmarks(
    suite: Suite, model_path: Path | None, folder: Path, *, small: bool, long: bool, program: Path | None
) -> None:
    start = time.monotonic()
    path = model_path or make_random(folder / "random.gguf", SMALL if small else None)
    suite.add("model", time.monotonic() - start, True, f"{path.name}, {path.stat().st_size / 1e9:.2f} GB")
    prompts, depths, batches = ([64], [0, 512], [8]) if small else ([512, 4096], [0, 4096, 32768], [8, 32])
    deepest = depths[-1]
    seconds: dict[tuple[str, int], float] = {}  # of a decoded token
    ours: dict[tuple[str, int], float] = {}  # tokens a second with logquant
    start = time.monotonic()
    memory, dense = device_rates(folder)
    try:
        with Model(path, device="cuda") as model:
            info = model.info()
            suite.add("device", time.monotonic() - start, True, f"{info.device}, {info.device_name}")
            products = token_cost(model).products
            for kv in KVS:
                start = time.monotonic()
                more = [100_000] if long and kv != "f16" else []
                rates = bench(
                    model, [kv], prompts=prompts, depths=[*depths, *more], batches=batches, rounds=2, n_decode=16
                )
                for rate in rates:
                    note = f"{rate.median:9.1f} tokens/s"
                    if kv == KVS[0]:
                        ours[rate.work, rate.n] = rate.median
                    if rate.work == "decode":
                        seconds[kv, rate.n] = 1.0 / rate.median
                        note += f", {100.0 * seconds[kv, 0] / seconds[kv, rate.n]:.0f} % of depth 0"
                    if rate.work == "decode" and memory > 0.0:
                        used = rate.median * (info.weight_bytes + rate.kv_read_bytes)
                        note += f", {100.0 * used / memory:.0f} % of {memory / 1e9:.0f} GB/s"
                    if rate.work == "prompt" and dense > 0.0:
                        share = 100.0 * rate.median * products / dense
                        note += f", {share:.0f} % of cuBLAS's {2e-12 * dense:.0f} TFLOPS"
                    suite.add(f"{rate.work} {kv} at {rate.n:,}", (time.monotonic() - start) / len(rates), True, note)
            longer, shorter = (seconds[kv, deepest] - seconds[kv, 0] for kv in ("f16", "logquant"))
            told = min(longer, shorter) > 0.0
            note = f"{longer / shorter:9.1f} times as fast as f16's" if told else "too short to tell"
            suite.add(f"attention logquant at {deepest:,}", 0.0, True, note)
            equal_memory(suite, model, small=small)
    except LogQuantError as error:
        suite.add("benchmarks", time.monotonic() - start, False, str(error))
        return
    if program is not None:
        peer(suite, program, path, ours)


def peer(suite: Suite, program: Path, path: Path, ours: Mapping[tuple[str, int], float]) -> None:
    """Decoding and prompts by llama-bench, with flash attention and all layers on the GPU, beside logquant's rates."""
    common = [program, "-m", path, "-ngl", "99", "-fa", "1", "-r", "2", "-o", "json"]
    depths = sorted(n for work, n in ours if work == "decode")
    prompts = sorted(n for work, n in ours if work == "prompt")
    runs = [["-p", "0", "-n", "16", "-d", ",".join(map(str, depths))], ["-n", "0", "-p", ",".join(map(str, prompts))]]
    for arguments in runs:
        start = time.monotonic()
        try:
            done = subprocess.run(
                [str(word) for word in [*common, *arguments]], capture_output=True, text=True, timeout=240, check=False
            )
            found = json.loads(done.stdout) if done.returncode == 0 else None
        except (OSError, ValueError, subprocess.TimeoutExpired) as cause:
            suite.add("llama.cpp", time.monotonic() - start, False, str(cause).splitlines()[0])
            return
        if found is None:
            suite.add(
                "llama.cpp", time.monotonic() - start, False, (done.stderr.strip().splitlines() or ["failed"])[-1]
            )
            return
        for one in found:
            work, n = ("decode", one["n_depth"]) if one["n_gen"] else ("prompt", one["n_prompt"])
            note = (
                f"{one['avg_ts']:9.1f} tokens/s ({one['backends']}); logquant {ours[work, n] / one['avg_ts']:.2f} times"
            )
            suite.add(f"{work} llama.cpp at {n:,}", (time.monotonic() - start) / len(found), True, note)


def equal_memory(suite: Suite, model: Model, *, small: bool) -> None:
    """As many sessions as fit into the KV memory of a few with f16, each with a context of its own, in one step."""
    n_ctx, n_f16, n_decode = (512, 2, 4) if small else (4096, 4, 16)
    ids = random_ids(model, n_ctx - n_decode - 1)
    memory = n_f16 * kv_bytes(model, "f16", n_ctx)
    for kv in ("f16", "logquant"):
        start, n = time.monotonic(), memory // kv_bytes(model, kv, n_ctx)
        with ExitStack() as stack:
            sessions = [stack.enter_context(model.session(n_ctx, kv)) for _ in range(n)]
            for session in sessions:
                session.prefill(ids)
            model.step(sessions, ids[:n], copy=False)  # reserves what steps need
            before = time.perf_counter()
            for token in ids[:n_decode]:
                model.step(sessions, [token] * n, copy=False)
            rate = n * n_decode / (time.perf_counter() - before)
        note = f"{rate:9.1f} tokens/s by {n} sessions of {n_ctx:,} tokens in {memory / 2**20:.0f} MiB"
        suite.add(f"batch {kv}, equal memory", time.monotonic() - start, True, note)


def kv_bytes(model: Model, kv: str, n_ctx: int) -> int:
    plan = model.plan(n_ctx, kv=kv)
    return plan.kv_global_bytes + plan.kv_sliding_bytes


def prompts_without_cublas(suite: Suite, path: Path, *, small: bool) -> None:
    """By the backend's own kernels, to see which of them is the better choice."""
    os.environ["LQ_CUDA_BLAS"] = "off"
    start = time.monotonic()
    try:
        with Model(path, device="cuda") as model:
            rate = bench(model, ["f16"], prompts=[64 if small else 512], depths=[], batches=[], rounds=2)[0]
        note, ok = f"{rate.median:9.1f} tokens/s", True
    except LogQuantError as error:
        note, ok = str(error), False
    suite.add(f"prompt f16 at {rate.n if ok else 0:,}, LQ_CUDA_BLAS=off", time.monotonic() - start, ok, note)
    del os.environ["LQ_CUDA_BLAS"]


def weights_in_place(suite: Suite, model_path: Path | None, folder: Path, library: Path) -> None:
    """Decoding with weights read in place, and copied: on devices that share the system's memory."""
    if not look_at_cuda(library).devices[0].integrated:
        return
    path = model_path or folder / "random.gguf"  # benchmarks() made it
    for how in ("copy", "map"):
        os.environ["LQ_CUDA_WEIGHTS"] = how
        start = time.monotonic()
        try:
            with Model(path, device="cuda") as model:
                loaded = time.monotonic() - start
                rate = bench(model, ["f16"], prompts=[], depths=[0], batches=[], rounds=2, n_decode=16)[0]
            note, ok = f"{rate.median:9.1f} tokens/s, loaded in {loaded:.1f} s", True
        except LogQuantError as error:  # a board may be unable to map files: that is a finding, no fault
            note, ok = str(error), how == "map"
        suite.add(f"decode f16, weights: {how}", time.monotonic() - start, ok, note)
    del os.environ["LQ_CUDA_WEIGHTS"]


def main() -> None:
    parser = argparse.ArgumentParser(description="Tests, sanitizers and benchmarks of the CUDA backend on a GPU.")
    parser.add_argument("--library", type=Path, help="use this library; nothing is built")
    parser.add_argument("--model", type=Path, help="measure this model")
    parser.add_argument("--small", action="store_true", help="small sizes, to try the suite out")
    parser.add_argument("--long", action="store_true", help="decode behind 100,000 tokens, too")
    parser.add_argument("--peer", type=Path, help="llama.cpp's llama-bench, to measure beside")
    parser.add_argument("--only", choices=("tests", "sanitizers", "benchmarks"), help="one part of it")
    options = parser.parse_args()
    if not (NATIVE / CUDA_CHECKS[0]).exists():
        parser.error("no native tests in build-check: run tools/check.py --quick first")
    suite, start = Suite(), time.monotonic()
    library: Path | None = options.library
    if library is None:
        program = Path(sys.executable).parent / "pylogquant"
        found = re.findall(r"^/.*|^[A-Z]:.*", suite.run("build", [program, "build", "--cuda"], {}, 300), re.MULTILINE)
        library = Path(found[-1]) if found and not suite.failed else None
    if library is not None:
        os.environ["LQ_CUDA_LIBRARY"] = str(library.resolve())
        if options.only in (None, "tests"):
            tests(suite, library.resolve())
        if options.only in (None, "sanitizers"):
            sanitizers(suite, library.resolve())
        if options.only in (None, "benchmarks"):
            with tempfile.TemporaryDirectory() as folder:
                sizes = {"small": options.small, "long": options.long}
                benchmarks(suite, options.model, Path(folder), **sizes, program=options.peer)
                made = options.model or Path(folder) / "random.gguf"
                prompts_without_cublas(suite, made, small=options.small)
                weights_in_place(suite, options.model, Path(folder), library.resolve())
    print(f"\n---- {len(suite.lines)} steps, {time.monotonic() - start:.0f} s ----")
    print("\n".join(suite.lines))
    sys.exit(1 if suite.failed else 0)


if __name__ == "__main__":
    main()
