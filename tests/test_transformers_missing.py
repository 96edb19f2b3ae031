"""pylogquant.transformers where its extra is not installed, and the rest of the package, which needs it never."""

from __future__ import annotations

import subprocess
import sys

import pytest


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_the_error_names_the_extra(missing: str) -> None:
    done = run(f"import sys; sys.modules[{missing!r}] = None\nimport pylogquant.transformers")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: pylogquant.transformers needs torch and transformers")
    assert last.endswith("pip install 'pylogquant[transformers]'")


def test_nothing_else_imports_them() -> None:
    done = run(
        "import sys, pylogquant, pylogquant.cli, pylogquant.model, pylogquant.kv, pylogquant.evaluate\n"
        "print(sorted({'torch', 'transformers', 'triton'} & set(sys.modules)))"
    )
    assert done.stdout == "[]\n", done.stderr
