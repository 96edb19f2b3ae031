"""A decorator for methods that take an options dataclass, or its fields as arguments: each option is written once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, Generic, ParamSpec, Protocol, TypeVar, cast, overload

__all__ = ["fields_of"]

Fields = ParamSpec("Fields")
Owner = TypeVar("Owner")
Options = TypeVar("Options")
Result = TypeVar("Result")
Owner_contra = TypeVar("Owner_contra", contravariant=True)
Options_contra = TypeVar("Options_contra", contravariant=True)
Result_co = TypeVar("Result_co", covariant=True)


class Bound(Protocol[Fields, Options_contra, Result_co]):
    """Type of a decorated method, bound to an object: it takes an options object, or its fields."""

    @overload
    def __call__(self, options: Options_contra, /) -> Result_co: ...
    @overload
    def __call__(self, *values: Fields.args, **named: Fields.kwargs) -> Result_co: ...


class Method(Protocol[Owner_contra, Fields, Options_contra, Result_co]):
    """Type of a decorated method in its class, for type checkers only. At run time it is a plain function."""

    @overload
    def __get__(self, owner: None, kind: type[Owner_contra]) -> Callable[..., Result_co]: ...
    @overload
    def __get__(
        self, owner: Owner_contra, kind: type[Owner_contra] | None = None
    ) -> Bound[Fields, Options_contra, Result_co]: ...


class fields_of(Generic[Fields, Options]):
    """With @fields_of(SessionOptions) above `def session(self, options: SessionOptions)` callers may write
    model.session(n_ctx=4096), or model.session(options). help() shows the method's docstring and the options'."""

    def __init__(self, options: Callable[Fields, Options]) -> None:
        self._options = options

    def __call__(self, method: Callable[[Owner, Options], Result]) -> Method[Owner, Fields, Options, Result]:
        make, kind = self._options, cast("type[Options]", self._options)

        @wraps(method)
        def call(self: Owner, *values: Any, **named: Any) -> Result:
            if len(values) == 1 and not named and isinstance(values[0], kind):
                return method(self, values[0])
            return method(self, make(*values, **named))

        call.__doc__ = f"{inspect.getdoc(method)}\n\n{kind.__name__}: {inspect.getdoc(kind)}"
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        call.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [own, *inspect.signature(make).parameters.values()]
        )
        return cast("Method[Owner, Fields, Options, Result]", call)
