"""pylogquant.transformers where its extra is not installed, and the rest of the package, which needs it never."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.python_only


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_the_error_says_what_to_install(missing: str) -> None:
    done = run(f"import sys; sys.modules[{missing!r}] = None\nimport pylogquant.transformers")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: pylogquant.transformers needs torch and transformers")
    assert last.endswith("pip install 'transformers>=4.57' 'torch>=2.6'")
    declared = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert 'transformers = ["transformers>=4.57", "torch>=2.6"]' in declared


def test_nothing_else_imports_them() -> None:
    done = run(
        "import sys, pylogquant, pylogquant.cli, pylogquant.model, pylogquant.kv, pylogquant.evaluate\n"
        "print(sorted({'torch', 'transformers', 'triton'} & set(sys.modules)))"
    )
    assert done.stdout == "[]\n", done.stderr
