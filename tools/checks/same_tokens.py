"""Continues a prompt with lq_run on generated models at several SIMD levels, and compares the tokens.

    QEMU_CPU=max python tools/checks/same_tokens.py --emulator 'qemu-aarch64 -L /usr/aarch64-linux-gnu' \\
        build-check-aarch64/native/tests/lq_run scalar neon dotprod i8mm

Weights in F32 give the same tokens at every level as long as no page is packed. With packed weights or pages all levels
but scalar multiply numbers rounded to 8 bits, which decides near ties otherwise, so there they are compared with each
other: the levels of 64-bit ARM add up in one order (backends/cpu/kernels/arm/dot_neon.h). Exits 1 at the first
difference.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

MAKER = Path(__file__).resolve().parents[1] / "models" / "make_tiny_gguf.py"
SHAPE = {"n-layers": 1, "n-embd": 256, "n-heads": 4, "n-kv-heads": 2, "n-ff": 256, "n-ctx": 1024}
N_UNPACKED, N_PACKED = 100, 500  # tokens of a prompt that are all kept in full precision, and that are not
CASES = (("F32", N_UNPACKED), ("F32", N_PACKED), ("Q4_0", N_PACKED), ("Q4_K", N_PACKED), ("Q6_K", N_PACKED))
N_NEW, N_VOCAB = 12, 256


def continued(command: list[str], model: Path, prompt: list[str], level: str) -> list[int]:
    """The new tokens."""
    done = subprocess.run(
        [*command, str(model), str(N_NEW), *prompt],
        env={**os.environ, "LQ_CPU": level},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"{level}: exit code {done.returncode}: {done.stderr.strip()}")
    return [int(word) for word in done.stdout.split()]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares the tokens of lq_run at several SIMD levels.")
    parser.add_argument("program", help="lq_run")
    parser.add_argument("levels", nargs="+", metavar="level")
    parser.add_argument("--emulator", default="", help="command that runs the program")
    options = parser.parse_args()
    command = [*shlex.split(options.emulator), options.program]
    chosen = random.Random(7)
    ids = [str(chosen.randrange(N_VOCAB)) for _ in range(N_PACKED)]
    with tempfile.TemporaryDirectory() as folder:
        for weights, n_prompt in CASES:
            model = Path(folder) / f"{weights}.gguf"
            maker = [sys.executable, str(MAKER), str(model), f"--weight-type={weights}"]
            maker += [f"--{name}={value}" for name, value in SHAPE.items()]
            subprocess.run(maker, check=True, stdout=subprocess.DEVNULL)
            levels = [level for level in options.levels if n_prompt == N_UNPACKED or level != "scalar"]
            tokens = {level: continued(command, model, ids[:n_prompt], level) for level in levels}
            first = tokens[levels[0]]
            for level, own in tokens.items():
                if own != first or len(own) != N_NEW:
                    sys.exit(f"{weights}, {n_prompt} tokens: {levels[0]} continues with {first}, {level} with {own}")
            print(f"{weights}, {n_prompt} tokens: {', '.join(levels)}: {first}")


if __name__ == "__main__":
    main()
