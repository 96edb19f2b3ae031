"""Writes the cffi declarations module from the public C headers, which are their only source.

    python tools/codegen/gen_ffi.py OUTPUT.py VERSION HEADER...

Headers come in the order in which they include each other; their #include lines are dropped. OUTPUT.py is cffi's
out-of-line ABI form: plain Python, no compiler, one file for every Python version. The ABI number, which one of the
headers defines, and the package version are written into it, for the handshake in pylogquant/_native.py.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from cffi import FFI


def declarations(header: str) -> str:
    """The C declarations of a header without its comments and preprocessor lines."""
    # Comments first: they may hold anything, also words that look like preprocessor lines.
    text = re.sub(r"/\*.*?\*/", " ", header, flags=re.DOTALL)
    # What only C++ sees is dropped whole, then every other preprocessor line; the headers promise to hold no macros.
    text = re.sub(r"^#ifdef __cplusplus$.*?^#endif$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^[ \t]*#.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\bLQ_API\b", "", text)
    return re.sub(r"\n\s*\n+", "\n", text).strip() + "\n"


def abi_version(headers: Sequence[str]) -> int:
    """The number in the one line `#define LQ_ABI_VERSION <number>`."""
    found = [int(n) for header in headers for n in re.findall(r"^#define LQ_ABI_VERSION (\d+)$", header, re.MULTILINE)]
    if len(found) != 1:
        raise SystemExit(
            f"gen_ffi.py: the headers have {len(found)} lines '#define LQ_ABI_VERSION <number>', one is needed"
        )
    return found[0]


def generate(output: Path, version: str, paths: Sequence[Path]) -> None:
    """Writes the module; an unreadable declaration ends with cffi's own error, which names the line."""
    headers = [path.read_text(encoding="utf-8") for path in paths]
    number = abi_version(headers)
    builder = FFI()
    for header in headers:
        builder.cdef(declarations(header))
    builder.set_source("pylogquant._logquant_ffi", None)
    output.parent.mkdir(parents=True, exist_ok=True)
    builder.emit_python_code(str(output))
    with output.open("a", encoding="utf-8") as module:
        module.write(f"\nABI_VERSION = {number}\nPACKAGE_VERSION = {version!r}\n")


def main() -> None:
    if len(sys.argv) < 4:
        raise SystemExit("usage: gen_ffi.py OUTPUT.py VERSION HEADER...")
    generate(Path(sys.argv[1]), sys.argv[2], [Path(name) for name in sys.argv[3:]])


if __name__ == "__main__":
    main()
