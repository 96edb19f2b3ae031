"""`run`: one prompt, one answer."""

from __future__ import annotations

import sys


def read_prompt(given: str | None) -> str | None:
    """The prompt: as given, or standard input for "-" or where something is piped in; None where there is none."""
    if given is not None and given != "-":
        return given
    if given is None and sys.stdin.isatty():
        return None
    return sys.stdin.read()
