"""A base class for objects that refuse to be copied, with an error that says what to do instead."""

from __future__ import annotations

from typing import ClassVar, NoReturn, SupportsIndex

from pylogquant.errors import CopyError

__all__ = ["Uncopyable"]


class Uncopyable:
    """Base of objects with a handle of the core's. Refuses copy.copy(), copy.deepcopy() and pickle: two objects would
    share a handle that one of them closes."""

    _instead: ClassVar[str]
    """What to do instead of copying."""

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        raise CopyError(f"a {type(self).__name__} cannot be copied or pickled; {self._instead}")
