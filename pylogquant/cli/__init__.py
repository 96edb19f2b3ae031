"""The command line: `pylogquant`, also `python -m pylogquant.cli`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Runs the command line; ends the process with its exit status."""
    # Asked for by scripts, often: answered before anything is loaded for it.
    if sys.argv[1:] == ["--version"]:
        from pylogquant.cli.output import print_version

        print_version()
        return
    from pylogquant.cli.app import app

    app(prog_name="pylogquant")
