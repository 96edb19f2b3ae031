"""What cannot be copied says so."""

from __future__ import annotations

from typing import ClassVar, NoReturn, SupportsIndex

from pylogquant.errors import CopyError

__all__ = ["Uncopyable"]


class Uncopyable:
    """Of objects with a handle: copy.copy(), copy.deepcopy() and pickle are refused, where two objects would share what
    one of them closes."""

    _instead: ClassVar[str]
    """What to do instead of copying."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise CopyError(f"a {type(self).__name__} cannot be copied or pickled; {self._instead}")
