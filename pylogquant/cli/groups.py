"""Groups of options that several commands share. A command takes a group, a dataclass, as one argument; the command
line shows its options one by one."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Any, TypeVar, get_type_hints

__all__ = ["grouped"]

Result = TypeVar("Result")


def grouped(function: Callable[..., Result]) -> Callable[..., Result]:
    """Wraps a function for typer: each argument that is a dataclass is replaced by its fields, and a field that is a
    dataclass by its own.

    The fields must be annotated as typer's options, with types that can be resolved at run time."""
    groups: dict[str, Any] = {}
    flat: list[inspect.Parameter] = []
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        if is_dataclass(parameter.annotation):
            groups[parameter.name] = parameter.annotation
            flat += _options(parameter.annotation)
        else:
            flat.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(function)
    def command(**given: Any) -> Result:
        for name, group in groups.items():
            given[name] = _take(group, given)
        return function(**given)

    del command.__wrapped__  # else inspect.signature() would return the wrapped function's signature
    command.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return command


def _options(group: Any) -> list[inspect.Parameter]:
    """The parameters for a group's options, one by one."""
    hints = get_type_hints(group, include_extras=True)
    found: list[inspect.Parameter] = []
    for field in fields(group):
        if is_dataclass(hints[field.name]):
            found += _options(hints[field.name])
            continue
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        found.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hints[field.name])
        )
    return found


def _take(group: Any, given: dict[str, Any]) -> Any:
    """Makes a group from its options, and removes these from given."""
    hints = get_type_hints(group, include_extras=True)
    values = {
        field.name: _take(hints[field.name], given) if is_dataclass(hints[field.name]) else given.pop(field.name)
        for field in fields(group)
    }
    return group(**values)
