"""The Triton kernel of pylogquant.transformers: its numbers in the interpreter, and whether the compiler takes it for
GPUs that this machine need not have. Oracle tests: they need torch and Triton."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning"),  # Triton's own
]


def test_numbers_in_the_interpreter() -> None:
    script = Path(__file__).parents[1] / "helpers" / "triton_interpreted.py"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", str(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    errors = {name: float(error) for name, error in (line.split("\t") for line in done.stdout.splitlines())}
    assert len(errors) == 6
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize(
    ("preset", "head_dim", "capability"),
    [
        ("logquant", 64, 80),
        ("logquant", 128, 90),
        ("logquant-hq", 80, 80),
        ("logquant-hq", 256, 90),
        ("logquant-paper", 128, 80),
    ],
)
def test_compiles_for_gpus(preset: str, head_dim: int, capability: int) -> None:
    """To machine code: the interpreter lets pass what the compiler does not, a type that changes in a loop for one."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from pylogquant.transformers import triton_attention
    from pylogquant.transformers.config import LogQuantConfig
    from pylogquant.transformers.pages import PageFormat

    form = PageFormat(LogQuantConfig(preset).resolve(), head_dim)
    constants = triton_attention.constants_of(form, n_heads=3, n_queries=3, capped=head_dim == 80)
    meta = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    kinds = dict.fromkeys(("q", "top_out", "total_out", "values_out"), "*fp32")
    kinds |= {"data": "*u8", "halves": "*fp16", "masks": "*i64", "key_table": "*i32", "value_table": "*i32"}
    kinds |= {"scale": "fp32", "softcap": "fp32"}
    signature = {name: kinds.get(name, "i32") for name in triton_attention.attend_pages_kernel.arg_names}
    signature |= dict.fromkeys(constants, "constexpr")
    if head_dim == 64:  # one page, one query: the launcher makes constants of ones
        ones = dict.fromkeys(("n_pages", "pages_a_share", "mask_stride", "n_row_heads"), 1)
        constants |= ones
        signature |= dict.fromkeys(ones, "constexpr")
    source = ASTSource(triton_attention.attend_pages_kernel, signature, constexprs=constants)
    built: Any = compile(source, target=GPUTarget("cuda", capability, 32), options=meta)
    assert len(built.asm["cubin"]) > 0
    assert built.metadata.shared <= 99 * 1024  # what the smallest of sm_80 to sm_90 give a block
