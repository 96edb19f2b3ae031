"""A template's limits: a budget of work, sizes of values, and the price of texts, comparisons and searches.

Lists that hold another list twice ([a, a], nested sixty times) are small in memory and practically endless as text. So
a price is never found by making the text. weigh() adds up the weights of a container's items, as often as they occur,
but looks at each container once: containers do not change in the sandbox, so their weights can be kept.

One unit of work is about the time of one character or 20 ns, whichever is more.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Iterable, Mapping
from typing import Any

import jinja2.runtime
import jinja2.utils

__all__ = ["MAX_DEPTH", "MAX_SECONDS", "MAX_WORK", "STEP", "Budget", "LimitError"]

MAX_WORK = 32 * 1024 * 1024  # units, beside 64 times the contents
MAX_SECONDS = 2.0  # of CPU, beside a microsecond for each character of the contents
MAX_DEPTH = 64  # of lists in lists
MAX_INT_BITS = 4096
STEP = 64  # work of one turn of a loop or one call
ITEM = 8  # work of handling an item of a list
PIECE = 16  # work of making an item that may need memory of its own

_OBJECT = 16  # weight of a number or None, whose texts are short
_TIME_CHECK = 64 * 1024  # units between two checks of the clock
_MAX_KEY_BITS = 60  # integers of up to 60 bits are their own hash, so nobody can make them collide
_VIEWS: tuple[Any, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_KEYS = (str, int, float, type(None), jinja2.runtime.Undefined)

_COMPARE: Mapping[str, Any] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "gt": operator.gt,
    "gteq": operator.ge,
    "lt": operator.lt,
    "lteq": operator.le,
}


class LimitError(Exception):
    """A limit of the sandbox was exceeded. The text is the end of a sentence that begins with "it", the template."""


class Budget:
    """The budget of one rendering, or of one compilation. start() refills it; one thread at a time."""

    def __init__(self) -> None:
        self._left = self._total = 0
        self._until_check = 0
        self._deadline = 0.0
        # Maps ids of containers to (container, weight, depth). Keeping the container keeps its id unique.
        self._known: dict[int, tuple[Any, int, int]] = {}

    def start(self, n_content: int, deadline: float) -> None:
        """Refills the budget. n_content: characters of all contents; deadline: a value of time.thread_time()."""
        self._left = self._total = MAX_WORK + 64 * n_content
        self._until_check = 0
        self._deadline = deadline
        self._known.clear()

    def spend(self, work: int) -> None:
        """Charges work. Raises LimitError when work or time is used up."""
        self._left -= work
        if self._left < 0:
            raise LimitError("it does too much work")
        self._until_check -= work
        if self._until_check < 0:
            self._until_check = _TIME_CHECK
            if time.thread_time() > self._deadline:
                raise LimitError(f"it takes more than {MAX_SECONDS:g} seconds")

    # -- sizes

    def weigh(self, value: Any) -> int:
        """About an upper bound of the characters of a value's text, and so of the work to compare or hash it."""
        if isinstance(value, str):
            return len(value)
        return self._measure(value, 0)[0]

    def _measure(self, value: Any, above: int) -> tuple[int, int]:
        """The weight of a value and the depth of containers in it. above: how many containers it is in."""
        if isinstance(value, str):
            return len(value), 0
        if isinstance(value, int):
            return _OBJECT + value.bit_length() // 3, 0
        if isinstance(value, range):
            return PIECE * len(value), 1
        if isinstance(value, _VIEWS):
            value = value.mapping
        if not isinstance(value, (list, tuple, dict)):
            return _OBJECT, 0
        known = self._known.get(id(value))
        if known is not None:
            return known[1], known[2]
        if above > MAX_DEPTH:
            raise LimitError(f"it builds lists in lists more than {MAX_DEPTH} deep")
        weight, depth = _OBJECT, 0
        parts: Iterable[Any] = value if isinstance(value, (list, tuple)) else (*value.keys(), *value.values())
        for part in parts:
            if isinstance(part, str):
                weight += ITEM + len(part)
            else:
                part_weight, part_depth = self._measure(part, above + 1)
                weight += ITEM + part_weight
                depth = max(depth, part_depth)
        # Adding up a short and flat one again is as fast as looking it up.
        if depth or len(value) > 32:
            self._know(value, weight, depth + 1)
        return weight, depth + 1

    def _know(self, value: Any, weight: int, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise LimitError(f"it builds lists in lists more than {MAX_DEPTH} deep")
        if weight > self._total:
            raise LimitError("it builds a value that is too large")
        self._known[id(value)] = (value, weight, depth)

    def made(self, value: Any) -> Any:
        """Charges a value that was just made."""
        if isinstance(value, str):
            self.spend(len(value))
        elif isinstance(value, (list, tuple, dict)):
            self.spend(STEP + ITEM * len(value))
            if self._measure(value, 0)[0] > self._total:
                raise LimitError("it builds a value that is too large")
        elif isinstance(value, int) and value.bit_length() > MAX_INT_BITS:
            raise LimitError("it computes with numbers that are too large")
        else:
            self.spend(1)
        return value

    def text(self, value: Any) -> str:
        """A value's text, charged before it is made."""
        if isinstance(value, str):
            self.spend(1 + len(value))
            return value
        self.spend(2 * self.weigh(value))
        return str(value)

    def items(self, value: Any) -> list[Any]:
        """The items that a loop over the value would give, charged."""
        if isinstance(value, str):
            self.spend(PIECE * len(value))
        elif isinstance(value, (list, tuple, dict, range, *_VIEWS)):
            self.spend(ITEM * len(value))  # type: ignore[arg-type]
        else:
            found = []
            for item in value:
                self.spend(ITEM)
                found.append(item)
            return found
        return list(value)

    # -- comparing and finding

    def key(self, value: Any) -> Any:
        """Charges and returns a key for a lookup by hash. Refuses values that could be made to collide."""
        if not isinstance(value, _KEYS):
            raise LimitError(f"it uses a {type(value).__name__} as a key")
        if isinstance(value, int) and value.bit_length() > _MAX_KEY_BITS:
            raise LimitError("it uses too large a number as a key")
        self.spend(1 + len(value) if isinstance(value, str) else 1)
        return value

    def compare(self, name: str, left: Any, right: Any) -> Any:
        """Evaluates left == right and so on. name: jinja2's name of the operator, as "eq" or "notin"."""
        if name == "in":
            return self.contains(right, left)
        if name == "notin":
            return not self.contains(right, left)
        if isinstance(left, str) or isinstance(right, str):
            self.spend(1 + (min(len(left), len(right)) if isinstance(left, str) and isinstance(right, str) else 0))
        else:
            self.spend(1 + min(self.weigh(left), self.weigh(right)))
        return _COMPARE[name](left, right)

    def contains(self, container: Any, item: Any) -> bool:
        """item in container."""
        if isinstance(container, str):
            self.search(container, item)
        elif isinstance(container, (dict, type({}.keys()))):
            self.key(item)
        else:
            if isinstance(container, range):
                self.spend(len(container))
            elif not isinstance(container, (list, tuple, *_VIEWS)):
                container = self.items(container)
            self.scan(container, item)
        return item in container

    def scan(self, container: Any, item: Any) -> None:
        """Charges comparing item with every item of a list."""
        n = len(container)
        self.spend(1 + n)
        if n and not isinstance(item, (int, float, type(None))):
            weight = self.weigh(item)
            self.spend(min(self.weigh(container), n * weight) if weight > 1 else n)

    def search(self, text: str, part: Any, *, backwards: bool = False) -> None:
        """Charges a search in a text. Python's search is linear, except in short texts and from the end."""
        if isinstance(part, str):
            per_character = len(part) // 16 if backwards else min(len(part), 128) // 32
            self.spend(1 + len(text) * (1 + per_character) + len(part))

    def strip(self, text: str, characters: Any) -> None:
        """Charges strip(characters)."""
        n = len(characters) if isinstance(characters, str) else 0
        self.spend(1 + len(text) * (1 + n // 16))

    def sort(self, items: list[Any], attribute: Any = None, default: Any = None) -> None:
        """Charges sorting, or finding an extreme, by an attribute (a path, or several with commas between)."""
        path = attribute if isinstance(attribute, str) else ""
        n = len(items)
        keys = self.weigh(items) + (0 if default is None else n * self.weigh(default))
        self.spend((keys * (1 + path.count(",")) + ITEM * n) * (1 + n.bit_length()) + n * len(path))
