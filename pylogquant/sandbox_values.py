"""Operators, functions and methods that a template may use on values, and how each is bounded.

Nothing can be used that is not in a table here or in sandbox_filters.py. Each entry names its bound (explained in
BOUNDS), charges for the work, and then lets Python do it wherever it can.
"""

from __future__ import annotations

import datetime
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jinja2
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils

from pylogquant.errors import TemplateError
from pylogquant.sandbox_budget import ITEM, PIECE, STEP, Budget, LimitError

__all__ = [
    "BOUNDS",
    "GLOBALS",
    "METHODS",
    "OPERATORS",
    "Bounded",
    "Environment",
    "arithmetic",
    "numbers",
    "reserve_replace",
]

MAX_RANGE = 100_000

BOUNDS: Mapping[str, str] = {
    "step": "takes the same time whatever the value; charged as one step or not at all",
    "number": "numbers only, of at most 4096 bits",
    "text": "the characters of the value's text, before it is made, and of the result",
    "items": "the number of items, before they are walked, and what is done with each by its own rule",
    "compare": "the smaller of the two values, before they are compared",
    "search": "the text, times a part of what is looked for where Python's search is not linear, before it begins",
    "sort": "the size of everything that is sorted, times the logarithm of the number of items",
    "key": "texts and small numbers only, which cannot be made to collide; the characters",
    "size": "the size of the result, computed before it is made",
    "format": "the size of the result, before it is made; no widths above 99, no nested fields",
}


class Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The environment as functions of the tables see it."""

    budget: Budget


class Bounded(NamedTuple):
    """One entry of a table."""

    function: Callable[..., Any]
    bound: str  # a name in BOUNDS


def numbers(*values: Any) -> None:
    for value in values:
        if not isinstance(value, (int, float, complex)):
            raise TypeError(f"a number is needed here, not a {type(value).__name__}")


# ---- operators ------------------------------------------------------------------------------------------------------

OPERATORS: Mapping[str, str] = {
    **dict.fromkeys(("==", "!=", "<", "<=", ">", ">="), "compare"),
    **dict.fromkeys(("in", "not in"), "search"),
    **dict.fromkeys(("-", "/", "//", "**", "unary -", "unary +"), "number"),
    **dict.fromkeys(("+", "*", "~", "[a:b]"), "size"),
    "%": "format",
    **dict.fromkeys(("and", "or", "not", "if else", "a.b"), "step"),
    "a[b]": "key",
    **dict.fromkeys(("[a, b]", "(a, b)"), "items"),
    "{a: b}": "key",
    **dict.fromkeys(("{{ a }}",), "text"),
    **dict.fromkeys(("for", "macro", "call"), "items"),
}

_ARITHMETIC: Mapping[str, Callable[[Any, Any], Any]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "//": operator.floordiv,
    "**": operator.pow,
    "%": operator.mod,
}
# A field of the % operator of texts, where names in a field hold no brackets.
_FIELD = re.compile(r"%(?:\([^()%]*\))?[#0\- +]*([0-9]*)(?:\.([0-9]*))?[hlL]?[a-zA-Z%]")


def arithmetic(budget: Budget, name: str, left: Any, right: Any) -> Any:
    """Evaluates left + right and so on, charged."""
    if isinstance(left, str) and name == "%":
        _reserve_percent(budget, left, right)
    elif isinstance(left, (str, list, tuple)) or isinstance(right, (str, list, tuple)):
        if name == "*":
            for one, other in ((left, right), (right, left)):
                if isinstance(one, (str, list, tuple)) and isinstance(other, int):
                    budget.spend((len(one) if isinstance(one, str) else ITEM * len(one)) * max(other, 0))
        elif name == "+":
            for one in (left, right):
                if isinstance(one, (str, list, tuple)):
                    budget.spend(len(one) if isinstance(one, str) else ITEM * len(one))
        else:
            raise TypeError(f"{name} is of numbers, not of a {type(left).__name__} and a {type(right).__name__}")
    elif isinstance(left, int) and isinstance(right, int) and name in ("*", "**"):
        bits = left.bit_length() * right if name == "**" else left.bit_length() + right.bit_length()
        if bits > 4096:
            raise LimitError("it computes with numbers that are too large")
    elif not isinstance(left, jinja2.runtime.Undefined) and not isinstance(right, jinja2.runtime.Undefined):
        numbers(left, right)
    return budget.made(_ARITHMETIC[name](left, right))


def _reserve_percent(budget: Budget, text: str, values: Any) -> None:
    budget.spend(len(text))
    n_fields = 0
    for field in _FIELD.finditer(text):
        n_fields += 1
        if any(number and len(number) > 2 for number in field.groups()):
            raise LimitError("it formats text to a width that is too large")
    if "%" in _FIELD.sub("", text):
        raise LimitError("it formats text in an unusual way")
    budget.spend(n_fields * (STEP + budget.weigh(values)))


# ---- functions ------------------------------------------------------------------------------------------------------


def _range(*limits: int) -> range:
    found = range(*limits)
    if len(found) > MAX_RANGE:
        raise LimitError(f"it asks for a range of {len(found)} numbers; at most {MAX_RANGE} are allowed")
    return found


class Namespace(jinja2.utils.Namespace):
    """A namespace whose text does not show its values, because one of them may be the namespace itself."""

    def __repr__(self) -> str:
        return "<Namespace>"


@jinja2.pass_environment
def _namespace(env: Environment, *args: Any, **kwargs: Any) -> Namespace:
    return Namespace(_dict(env, *args, **kwargs))


@jinja2.pass_environment
def _dict(env: Environment, *args: Any, **kwargs: Any) -> Any:
    pairs: list[Any] = []
    for arg in args:
        pairs += arg.items() if isinstance(arg, dict) else env.budget.items(arg)
    found = {env.budget.key(key): value for key, value in pairs}
    return env.budget.made({**found, **kwargs})


def _cycler(*items: Any) -> jinja2.utils.Cycler:
    return jinja2.utils.Cycler(*items)


def _joiner(sep: str = ", ") -> jinja2.utils.Joiner:
    return jinja2.utils.Joiner(sep)


@jinja2.pass_environment
def _raise_exception(env: Environment, message: object = "") -> None:
    text = " ".join(env.budget.text(message).split())
    raise TemplateError(f"the chat template refuses these messages: {text[:300]}")


_DATE_FORMAT = re.compile(r"(?:[^%]|%[-]?[A-Za-z%])*")


def _strftime_now(form: str) -> str:
    if len(form) > 100 or not _DATE_FORMAT.fullmatch(form):
        raise LimitError("it formats the date in an unusual way")
    return datetime.datetime.now().strftime(form)


GLOBALS: Mapping[str, Bounded] = {
    "cycler": Bounded(_cycler, "items"),
    "dict": Bounded(_dict, "key"),
    "joiner": Bounded(_joiner, "step"),
    "namespace": Bounded(_namespace, "key"),
    "raise_exception": Bounded(_raise_exception, "text"),
    "range": Bounded(_range, "items"),
    "strftime_now": Bounded(_strftime_now, "step"),
}


# ---- methods --------------------------------------------------------------------------------------------------------
# The functions here only charge, as function(budget, owner, args); the method itself does the work.


def reserve_replace(budget: Budget, text: str, old: Any, new: Any) -> tuple[str, str]:
    """Charges text.replace(old, new); returns the two as texts."""
    old, new = budget.text(old), budget.text(new)
    budget.search(text, old)
    budget.spend(text.count(old) * len(new))
    return old, new


def _whole(budget: Budget, owner: Any, args: tuple[Any, ...]) -> None:
    budget.spend(len(owner) + sum(map(budget.weigh, args)))


def _found(budget: Budget, owner: str, args: tuple[Any, ...]) -> None:
    for part in args[:1]:
        budget.search(owner, part)


def _found_last(budget: Budget, owner: str, args: tuple[Any, ...]) -> None:
    for part in args[:1]:
        budget.search(owner, part, backwards=True)


def _split(budget: Budget, owner: str, args: tuple[Any, ...]) -> None:
    separator, most = (*args, None, None)[:2]
    n_pieces = len(owner) // 2 + 1
    if isinstance(separator, str) and separator:
        budget.search(owner, separator, backwards=True)  # as rsplit() does
        n_pieces = owner.count(separator) + 1
    if isinstance(most, int) and most >= 0:
        n_pieces = min(n_pieces, most + 1)
    budget.spend(len(owner) + PIECE * n_pieces)


def _split_lines(budget: Budget, owner: str, args: tuple[Any, ...]) -> None:
    budget.spend((1 + PIECE) * len(owner))


def _strip(budget: Budget, owner: str, args: tuple[Any, ...]) -> None:
    budget.strip(owner, (*args, None)[0])


def _replaced(budget: Budget, owner: str, args: tuple[Any, ...]) -> None:
    if len(args) >= 2:
        reserve_replace(budget, owner, args[0], args[1])


def _formatted(budget: Budget, owner: str, args: tuple[Any, ...]) -> None:
    # A width could hide in a nested field, so no format specification is allowed at all.
    if any(":" in field or "!" in field for field in re.findall(r"\{([^{}]*)", owner)):
        raise LimitError("it uses str.format() with more than plain fields")
    budget.spend(len(owner) + owner.count("{") * (STEP + max(map(budget.weigh, args), default=0)))


def _joined(budget: Budget, owner: str, args: tuple[Any, ...]) -> None:
    """Charges nothing: Sandbox.call() calls sandbox_filters.join() in place of this method."""


def _looked_up(budget: Budget, owner: Any, args: tuple[Any, ...]) -> None:
    budget.key((*args, None)[0])


def _scanned(budget: Budget, owner: Any, args: tuple[Any, ...]) -> None:
    # The error for an item that is not found shows it.
    budget.spend(sum(map(budget.weigh, args)))
    for item in args[:1]:
        budget.scan(owner, item)


def _methods(names: str, function: Callable[..., Any], bound: str) -> dict[str, Bounded]:
    return {name: Bounded(function, bound) for name in names.split()}


METHODS: Mapping[type, Mapping[str, Bounded]] = {
    str: {
        **_methods("capitalize casefold lower swapcase title upper", _whole, "text"),
        **_methods("endswith removeprefix removesuffix startswith", _whole, "text"),
        **_methods("isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric", _whole, "text"),
        **_methods("isprintable isspace istitle isupper", _whole, "text"),
        **_methods("count find index partition", _found, "search"),
        **_methods("rfind rindex rpartition", _found_last, "search"),
        **_methods("rsplit split", _split, "search"),
        **_methods("splitlines", _split_lines, "text"),
        **_methods("lstrip rstrip strip", _strip, "search"),
        **_methods("replace", _replaced, "size"),
        **_methods("join", _joined, "size"),
        **_methods("format", _formatted, "format"),
    },
    dict: {**_methods("get", _looked_up, "key"), **_methods("copy items keys values", _whole, "items")},
    list: {**_methods("copy", _whole, "items"), **_methods("count index", _scanned, "compare")},
    tuple: _methods("count index", _scanned, "compare"),
}
