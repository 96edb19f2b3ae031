"""Every filter and test that a template may use, and how each is charged.

A filter that a later jinja2 adds is refused until somebody decides how it is charged. Filters that return generators in
jinja2 return an iterator over a complete list here: it can be used once and is always true, too, but no chain of
unfinished generators can build up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import jinja2
import jinja2.filters as library
import jinja2.runtime
import jinja2.tests

from pylogquant.sandbox_budget import ITEM, PIECE, STEP, Budget, LimitError
from pylogquant.sandbox_values import Bounded, Environment, arithmetic, numbers, reserve_replace

__all__ = ["FILTERS", "TESTS", "join"]

_MAX_PRECISION = 20
_MAX_NUMBER_CHARS = 1300


def _path(budget: Budget, items: list[Any], path: Any) -> None:
    """Charges looking up "a.b.c" in each of the items."""
    budget.spend(len(items) * (STEP + (len(path) if isinstance(path, str) else 0)))


# ---- filters --------------------------------------------------------------------------------------------------------


def _of_text(function: Callable[..., Any], *, factor: int = 1) -> Callable[..., Any]:
    """Wraps a filter that takes only a text; factor: its cost per character."""

    @jinja2.pass_environment
    def of_text(env: Environment, s: Any) -> Any:
        text = env.budget.text(s)
        env.budget.spend(len(text) * factor)
        return env.budget.made(function(text))

    return of_text


@jinja2.pass_environment
def _trim(env: Environment, value: Any, chars: str | None = None) -> str:
    text = env.budget.text(value)
    env.budget.strip(text, chars)
    return library.do_trim(text, chars)


@jinja2.pass_environment
def _truncate(
    env: Environment, s: Any, length: int = 255, killwords: bool = False, end: str = "...", leeway: int | None = None
) -> str:
    text = env.budget.text(s)
    env.budget.text(end)
    return library.do_truncate(env, text, length, killwords, end, leeway)


@jinja2.pass_environment
def _replace(env: Environment, s: Any, old: Any, new: Any, count: int | None = None) -> str:
    text = str(env.budget.text(s))
    old, new = reserve_replace(env.budget, text, old, new)
    return text.replace(old, new, -1 if count is None else count)


@jinja2.pass_environment
def _indent(env: Environment, s: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
    text = str(env.budget.text(s))
    if not isinstance(width, str) and not 0 <= width <= 256:
        raise LimitError("it indents too far")
    n_wide = len(width) if isinstance(width, str) else width
    # splitlines() also ends lines at other characters than the newline.
    n_lines = len(text.splitlines()) + 1
    env.budget.spend(len(text) + n_lines * (PIECE + n_wide))
    return library.do_indent(text, width, first, blank)


def join(env: Environment, value: Any, d: Any = "", attribute: str | int | None = None) -> str:
    """The filter join, and the method of texts of that name."""
    budget = env.budget
    items = budget.items(value)
    if attribute is not None:
        _path(budget, items, attribute)
        get = library.make_attrgetter(env, attribute)
        items = [get(item) for item in items]
    texts = [budget.text(item) for item in items]
    separator = str(budget.text(d))
    budget.spend(len(separator) * len(texts) + ITEM * len(texts))
    return separator.join(texts)


_join = jinja2.pass_environment(join)


@jinja2.pass_environment
def _tojson(
    env: Environment,
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON, without the escapes for HTML that jinja2's own filter adds."""
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= 16):
        raise LimitError("it indents JSON too far")
    if separators is not None:
        item, colon = separators
        if not (isinstance(item, str) and isinstance(colon, str) and len(item) + len(colon) <= 16):
            raise LimitError("it separates JSON in an unusual way")
    weight = env.budget.weigh(x)
    env.budget.spend((2 if indent is None else 8) * weight * (4 if sort_keys else 1))
    text = json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    env.budget.spend(len(text))
    return text


@jinja2.pass_environment
def _list(env: Environment, value: Any) -> Any:
    return env.budget.made(env.budget.items(value))


@jinja2.pass_environment
def _reverse(env: Environment, value: Any) -> Any:
    if isinstance(value, str):
        return env.budget.made(library.do_reverse(value))
    return reversed(env.budget.items(value))


@jinja2.pass_environment
def _items(env: Environment, value: Any) -> Iterator[Any]:
    found = list(library.do_items(value))
    env.budget.made(found)
    return iter(found)


def _of_each(function: Callable[..., Any], *, path: int | None = None) -> Callable[..., Any]:
    """Wraps map, select and similar filters. path: the index of the argument that names an attribute."""

    @jinja2.pass_context
    def of_each(context: jinja2.runtime.Context, value: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
        env = context.environment
        assert isinstance(env, Environment)
        if not value:
            return iter(())
        items = env.budget.items(value)
        _path(env.budget, items, kwargs.get("attribute") if path is None else (*args, None)[path])
        found = []
        for item in function(context, items, *args, **kwargs):
            env.budget.spend(ITEM)
            found.append(item)
        return iter(found)

    return of_each


@jinja2.pass_environment
def _sort(
    env: Environment,
    value: Any,
    reverse: bool = False,
    case_sensitive: bool = False,
    attribute: str | int | None = None,
) -> Any:
    items = env.budget.items(value)
    env.budget.sort(items, attribute)
    return env.budget.made(library.do_sort(env, items, reverse, case_sensitive, attribute))


def _extreme(function: Callable[..., Any]) -> Callable[..., Any]:
    @jinja2.pass_environment
    def extreme(env: Environment, value: Any, case_sensitive: bool = False, attribute: str | int | None = None) -> Any:
        items = env.budget.items(value)
        env.budget.sort(items, attribute)
        return function(env, items, case_sensitive, attribute)

    return extreme


@jinja2.pass_environment
def _groupby(
    env: Environment, value: Any, attribute: str | int, default: Any = None, case_sensitive: bool = False
) -> Any:
    items = env.budget.items(value)
    env.budget.sort(items, attribute, default)
    env.budget.spend(STEP * len(items))
    return env.budget.made(library.sync_do_groupby(env, items, attribute, default, case_sensitive))


@jinja2.pass_environment
def _dictsort(
    env: Environment, value: Any, case_sensitive: bool = False, by: Any = "key", reverse: bool = False
) -> Any:
    env.budget.sort(env.budget.items(value.items()))
    return env.budget.made(library.do_dictsort(value, case_sensitive, by, reverse))


@jinja2.pass_environment
def _unique(
    env: Environment, value: Any, case_sensitive: bool = False, attribute: str | int | None = None
) -> Iterator[Any]:
    items = env.budget.items(value)
    _path(env.budget, items, attribute)
    get = library.make_attrgetter(env, attribute, postprocess=None if case_sensitive else library.ignore_case)
    found: dict[Any, Any] = {}
    for item in items:
        found.setdefault(env.budget.key(get(item)), item)
    return iter(list(found.values()))


@jinja2.pass_environment
def _sum(env: Environment, iterable: Any, attribute: str | int | None = None, start: Any = 0) -> Any:
    items = env.budget.items(iterable)
    if attribute is not None:
        _path(env.budget, items, attribute)
        items = list(map(library.make_attrgetter(env, attribute), items))
    if isinstance(start, str):
        raise TypeError("sum() is of numbers or lists, not of texts")
    for item in items:
        start = arithmetic(env.budget, "+", start, item)
    return start


def _abs(x: Any) -> Any:
    numbers(x)
    return abs(x)


def _round(value: Any, precision: int = 0, method: Any = "common") -> Any:
    numbers(value, precision)
    if not -_MAX_PRECISION <= precision <= _MAX_PRECISION:
        raise LimitError(f"it rounds to more than {_MAX_PRECISION} digits")
    return library.do_round(value, precision, method)


def _number(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps the filters int and float."""

    @jinja2.pass_environment
    def number(env: Environment, value: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, str) and len(value) > _MAX_NUMBER_CHARS:
            raise LimitError("it computes with numbers that are too large")
        return env.budget.made(function(value, *args, **kwargs))

    return number


FILTERS: Mapping[str, Bounded] = {
    "abs": Bounded(_abs, "number"),
    "capitalize": Bounded(_of_text(library.do_capitalize), "text"),
    "count": Bounded(len, "step"),
    "d": Bounded(library.do_default, "step"),
    "default": Bounded(library.do_default, "step"),
    "dictsort": Bounded(_dictsort, "sort"),
    "e": Bounded(_of_text(library.FILTERS["e"]), "text"),
    "escape": Bounded(_of_text(library.FILTERS["e"]), "text"),
    "first": Bounded(library.sync_do_first, "step"),
    "float": Bounded(_number(library.do_float), "number"),
    "groupby": Bounded(_groupby, "sort"),
    "indent": Bounded(_indent, "size"),
    "int": Bounded(_number(library.do_int), "number"),
    "items": Bounded(_items, "items"),
    "join": Bounded(_join, "size"),
    "last": Bounded(library.do_last, "step"),
    "length": Bounded(len, "step"),
    "list": Bounded(_list, "items"),
    "lower": Bounded(_of_text(library.do_lower), "text"),
    "map": Bounded(_of_each(library.sync_do_map), "items"),
    "max": Bounded(_extreme(library.do_max), "sort"),
    "min": Bounded(_extreme(library.do_min), "sort"),
    "reject": Bounded(_of_each(library.sync_do_reject), "items"),
    "rejectattr": Bounded(_of_each(library.sync_do_rejectattr, path=0), "items"),
    "replace": Bounded(_replace, "size"),
    "reverse": Bounded(_reverse, "items"),
    "round": Bounded(_round, "number"),
    "safe": Bounded(_of_text(library.do_mark_safe), "text"),
    "select": Bounded(_of_each(library.sync_do_select), "items"),
    "selectattr": Bounded(_of_each(library.sync_do_selectattr, path=0), "items"),
    "sort": Bounded(_sort, "sort"),
    "string": Bounded(_of_text(library.FILTERS["string"]), "text"),
    "sum": Bounded(_sum, "items"),
    "title": Bounded(_of_text(library.do_title, factor=8), "text"),
    "tojson": Bounded(_tojson, "text"),
    "trim": Bounded(_trim, "search"),
    "truncate": Bounded(_truncate, "text"),
    "unique": Bounded(_unique, "key"),
    "upper": Bounded(_of_text(library.do_upper), "text"),
    "wordcount": Bounded(_of_text(library.do_wordcount, factor=8), "text"),
}


# ---- tests ----------------------------------------------------------------------------------------------------------


def _comparing(name: str) -> Bounded:
    @jinja2.pass_environment
    def comparing(env: Environment, a: Any, b: Any) -> Any:
        return env.budget.compare(name, a, b)

    return Bounded(comparing, "search" if name == "in" else "compare")


def _of_number(function: Callable[..., Any]) -> Bounded:
    def of_number(*values: Any) -> Any:
        numbers(*values)
        return function(*values)

    return Bounded(of_number, "number")


def _known(name: str) -> Bounded:
    @jinja2.pass_environment
    def known(env: Environment, value: Any) -> bool:
        return isinstance(value, str) and value in getattr(env, name)

    return Bounded(known, "step")


def _plain(name: str) -> Bounded:
    return Bounded(cast("Callable[..., Any]", jinja2.tests.TESTS[name]), "step")


_STEPS = "boolean callable defined escaped false float integer iterable mapping none number sameas sequence string true"

TESTS: Mapping[str, Bounded] = {
    **{name: _plain(name) for name in (*_STEPS.split(), "undefined")},
    **{name: _comparing("eq") for name in ("eq", "equalto", "==")},
    **{name: _comparing("ne") for name in ("ne", "!=")},
    **{name: _comparing("lt") for name in ("lt", "lessthan", "<")},
    **{name: _comparing("lteq") for name in ("le", "<=")},
    **{name: _comparing("gt") for name in ("gt", "greaterthan", ">")},
    **{name: _comparing("gteq") for name in ("ge", ">=")},
    "in": _comparing("in"),
    "divisibleby": _of_number(jinja2.tests.test_divisibleby),
    "even": _of_number(jinja2.tests.test_even),
    "odd": _of_number(jinja2.tests.test_odd),
    "lower": Bounded(_of_text(str.islower), "text"),
    "upper": Bounded(_of_text(str.isupper), "text"),
    "filter": _known("filters"),
    "test": _known("tests"),
}
