"""The command line: `pylogquant`, also `python -m pylogquant.cli`."""

from __future__ import annotations

import io
import os
import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command line; ends the process with its exit status."""
    from pylogquant.cli.output import guard_output, open_streams, print_version

    open_streams()
    for stream in (sys.stdout, sys.stderr):
        # An answer may hold any character; a terminal of another encoding shows a substitute instead of failing.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    with guard_output():
        # Scripts ask for this often, so it is answered before anything is loaded.
        if sys.argv[1:] == ["--version"]:
            print_version()
            return
        # NumPy's linear algebra, which nothing here uses, would start a thread for each core when it is loaded.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        try:
            from pylogquant.cli.app import app

            app(prog_name="pylogquant")
        except KeyboardInterrupt:  # while modules are loaded; commands handle it themselves
            sys.exit(130)
