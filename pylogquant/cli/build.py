"""`build --cuda`: compiles the CUDA backend and reports the result."""

from __future__ import annotations

from pylogquant.cli.evaluate import progress_bar
from pylogquant.cli.output import print_note


def build_cuda(arch: str, jobs: int) -> None:
    """The whole command. Raises Unsupported, ArgumentError."""
    from pylogquant.build import build_cuda as build
    from pylogquant.build import choose_archs, find_tools

    tools = find_tools()
    archs = choose_archs(arch, tools)
    print_note(f"compiling for {', '.join(archs)} with {tools.nvcc} (CUDA {tools.toolkit[0]}.{tools.toolkit[1]})")
    with progress_bar("build") as progress:
        built = build(tools, archs, jobs=jobs, progress=progress)
    print(built.library)
    for device in built.tested:
        print_note(f"self-test passed on {device}")
    if not built.tested:
        print_note("not tested: no device that it was compiled for is here")
