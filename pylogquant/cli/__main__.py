"""`python -m pylogquant.cli`."""

from __future__ import annotations

from pylogquant.cli import main

main()
