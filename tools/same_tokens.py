"""Continues a prompt with lq_run on generated models at several SIMD levels, and compares the tokens.

    QEMU_CPU=max python tools/same_tokens.py --emulator 'qemu-aarch64 -L /usr/aarch64-linux-gnu' \\
        build-check-aarch64/native/tests/lq_run scalar neon dotprod i8mm

Weights in F32 give the same tokens at every level. With packed weights all levels but scalar multiply activations
rounded to 8 bits, which decides near ties otherwise, so there they are compared with each other: the levels of 64-bit
ARM add up in one order (backends/cpu/dot_neon.h). The prompt is long enough for packed pages. Exits 1 at the first
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

TOOLS = Path(__file__).resolve().parent
SHAPE = {"n-layers": 1, "n-embd": 256, "n-heads": 4, "n-kv-heads": 2, "n-ff": 256, "n-ctx": 1024}
WEIGHTS = ("F32", "Q4_0", "Q4_K", "Q6_K")
N_PROMPT, N_NEW, N_VOCAB = 500, 12, 256


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
    prompt = [str(chosen.randrange(N_VOCAB)) for _ in range(N_PROMPT)]
    with tempfile.TemporaryDirectory() as folder:
        for weights in WEIGHTS:
            model = Path(folder) / f"{weights}.gguf"
            maker = [sys.executable, str(TOOLS / "make_tiny_gguf.py"), str(model), f"--weight-type={weights}"]
            maker += [f"--{name}={value}" for name, value in SHAPE.items()]
            subprocess.run(maker, check=True, stdout=subprocess.DEVNULL)
            levels = [level for level in options.levels if weights == "F32" or level != "scalar"]
            tokens = {level: continued(command, model, prompt, level) for level in levels}
            first = tokens[levels[0]]
            for level, own in tokens.items():
                if own != first or len(own) != N_NEW:
                    sys.exit(f"{weights}: {levels[0]} continues with {first}, {level} with {own}")
            print(f"{weights}: {', '.join(levels)}: {first}")


if __name__ == "__main__":
    main()
