"""Writes the cffi declarations module from the public C header, which is their only source.

    python tools/gen_ffi.py native/include/logquant.h OUTPUT.py VERSION

OUTPUT.py is cffi's out-of-line ABI form: plain Python, no compiler, one file for every Python version. The header's
ABI number and the package version are written into it, for the handshake in pylogquant/_native.py.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from cffi import FFI


def declarations(header: str) -> tuple[str, int]:
    """The C declarations of the header without its preprocessor lines, and its LQ_ABI_VERSION."""
    found = re.search(r"^#define LQ_ABI_VERSION (\d+)$", header, re.MULTILINE)
    if found is None:
        raise SystemExit("gen_ffi.py: the header has no line '#define LQ_ABI_VERSION <number>'")
    # Comments first: they may hold anything, also words that look like preprocessor lines.
    text = re.sub(r"/\*.*?\*/", " ", header, flags=re.DOTALL)
    # What only C++ sees is dropped whole, then every other preprocessor line; the header promises to hold no macros.
    text = re.sub(r"^#ifdef __cplusplus$.*?^#endif$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^[ \t]*#.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\bLQ_API\b", "", text)
    return re.sub(r"\n\s*\n+", "\n", text).strip() + "\n", int(found.group(1))


def generate(header: Path, output: Path, version: str) -> None:
    """Writes the module; an unreadable declaration ends with cffi's own error, which names the line."""
    text, abi_version = declarations(header.read_text(encoding="utf-8"))
    builder = FFI()
    builder.cdef(text)
    builder.set_source("pylogquant._logquant_ffi", None)
    output.parent.mkdir(parents=True, exist_ok=True)
    builder.emit_python_code(str(output))
    with output.open("a", encoding="utf-8") as module:
        module.write(f"\nABI_VERSION = {abi_version}\nPACKAGE_VERSION = {version!r}\n")


def main() -> None:
    if len(sys.argv) != 4:
        raise SystemExit("usage: gen_ffi.py HEADER OUTPUT.py VERSION")
    generate(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])


if __name__ == "__main__":
    main()
