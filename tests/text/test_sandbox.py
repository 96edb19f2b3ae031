"""The sandbox of chat templates: nothing that can be used in it is free, and what is not known to be bounded is refused.

Every filter, test, operator, function and method is tried, as the sandbox itself lists them, with values that are small
in memory and take practically for ever as text, in comparisons or as keys. Whoever forgot to charge takes seconds.
"""

# ruff: noqa: E501, RUF024 (templates in one line; lists that nobody changes)

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.filters
import jinja2.nodes
import jinja2.tests
import pytest

from pylogquant import sandbox_budget
from pylogquant.sandbox import LimitError, Sandbox
from pylogquant.sandbox_budget import Budget
from pylogquant.sandbox_filters import FILTERS, TESTS
from pylogquant.sandbox_values import BOUNDS, GLOBALS, METHODS, OPERATORS, Bounded

pytestmark = pytest.mark.python_only

WORK = 256 * 1024  # a hundredth of a second's
MOST_SECONDS = 1.5  # of CPU; what is not charged takes at least twice as long

DOUBLINGS = 27


def doubled(kind: type, start: Any) -> Any:
    """A list, tuple or dict that holds 2**DOUBLINGS values, and takes as many steps to write, compare or hash."""
    value = start
    for _ in range(DOUBLINGS):
        value = {"a": value, "b": value} if kind is dict else kind((value, value))
    return value


VALUES: dict[str, Any] = {
    "list": (doubled(list, ["x"]), doubled(list, ["y"])),
    "tuple": (doubled(tuple, ("x",)), doubled(tuple, ("y",))),
    "dict": (doubled(dict, {"x": 1}), doubled(dict, {"x": 2})),
    "text": ("ab <\n" * 50_000, "a" * 50_000 + "b" + "a" * 50_000),
    "lines": ("\x0b" * 100_000, "\u2028"),
    "texts": (["ab" * 5000] * 500, ["ab" * 5000] * 499 + ["c"]),
    "number": (2**4000, 2**4000 + 1),
    "numbers": ([(2**61 - 1) * i for i in range(1, 9000)], range(100_000)),
    "digits": ("9" * 1300, "8" * 1300),
}


def seconds(source: str, v: Any, w: Any) -> float:
    """CPU time that a template takes, however it ends."""
    box = Sandbox()
    started = time.process_time()
    box.budget.start(0, time.thread_time() + 1.0)
    try:
        template = box.guarded(box.parse(source))
        for _ in template.generate(v=v, w=w):
            pass
    except Exception:
        pass
    return time.process_time() - started


def check(sources: Iterable[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_budget, "MAX_WORK", WORK)
    for source in sources:
        for name, (v, w) in VALUES.items():
            taken = seconds(source, v, w)
            assert taken < MOST_SECONDS, f"{source} with {name}: {taken:.1f} s"


# ---- each is tried --------------------------------------------------------------------------------------------------

FILTER_ARGUMENTS: dict[str, list[str]] = {
    "default": ["(w, true)"],
    "groupby": ["('0')", "('a')", "('q', default=w)"],
    "indent": ["(256, true, true)", "(w)"],
    "int": ["(w)", "(w, 36)"],
    "join": ["", "(w)", "(attribute='a.b')"],
    "map": ["('upper')", "('string')", "(attribute='a')", "(w)", "('tojson', indent=2)"],
    "replace": ["('a', w)", "('', 'ab')", "(w, v)"],
    "round": ["(20, 'floor')", "(10 ** 9, 'ceil')", "(w)"],
    "sort": ["", "(attribute='a,a,a,a')", "(attribute=w)"],
    "sum": ["", "(start=[])", "(start=w)", "(attribute='a')"],
    "tojson": ["", "(indent=4)", "(sort_keys=true)", "(separators=(w, w))"],
    "trim": ["", "(w)"],
    "truncate": ["(10)", "(90000, true)", "(10, end=w)"],
    "dictsort": ["", "(by='value')"],
    "unique": ["", "(true, 'a')"],
}
FILTER_ARGUMENTS |= dict.fromkeys(("select", "reject"), ["", "('eq', w)", "('in', w)", "(w)"])
FILTER_ARGUMENTS |= dict.fromkeys(("selectattr", "rejectattr"), ["('a')", "('a', 'eq', w)", "('a', w)", "(w)"])


@pytest.mark.parametrize("name", sorted(Sandbox().filters))
def test_every_filter_is_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    uses = [f"v | {name}{arguments}" for arguments in FILTER_ARGUMENTS.get(name, [""])]
    check([f"{{{{ {use} }}}}{{% set x = {use} | list %}}" for use in uses], monkeypatch)
    check([f"{{% filter {name} %}}{{{{ v }}}}{{% endfilter %}}"], monkeypatch)


@pytest.mark.parametrize("name", sorted(Sandbox().tests))
def test_every_test_is_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check(
        [f"{{{{ [v] | select('{name}'{argument}) | list | length }}}}" for argument in ("", ", w", ", v")], monkeypatch
    )


@pytest.mark.parametrize("name", sorted(GLOBALS))
def test_every_function_is_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check([f"{{{{ {name}({arguments}) }}}}" for arguments in ("v", "v, w", "a=v", "*v", "[v, w]")], monkeypatch)


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in METHODS.items() for name in names])
def test_every_method_is_bounded(kind: type, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("", "v", "w", "w, v", "'a', w", "'<' ~ v ~ '<'")
    check([f"{{% set x = v.{name}({argument}) %}}" for argument in arguments], monkeypatch)
    if kind is str:
        check([f"{{% set x = '%s {{}} {{}}'.{name}(v, w) %}}{{{{ ('a' | safe).{name}(v, w) }}}}"], monkeypatch)


OPERATOR_USES: dict[str, tuple[str, ...]] = {
    "[a:b]": ("v[1:]", "v[::-1]", "w[v:]"),
    "a[b]": ("v[v]", "v[w]", "{}[v]", "v[0]"),
    "a.b": ("v.a", "v.items.b"),
    "{a: b}": ("{v: w}", "{'a': v, 'b': w}"),
    "[a, b]": ("[v, w]",),
    "(a, b)": ("(v, w)",),
    "if else": ("v if w else v",),
    "unary -": ("-v",),
    "unary +": ("+v",),
    "not": ("not v",),
    "%": (
        "v % w",
        "w % v",
        "'%s %s' % (v, w)",
        "'%(a)99999999d' % v",
        "'%r' % [v]",
        "'%*d' % (v, w)",
        "'%.999999d' % 3",
    ),
}
STATEMENTS = {
    "{{ a }}": "{{ v }}",
    "for": "{% for a in v %}{% for b in v if false %}{% endfor %}{% endfor %}",
    "macro": "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(v, *w) }}{{ m(a=v) }}",
    "call": "{% for i in range(9) %}{{ loop.changed(v if i is odd else w) }}{{ loop.cycle(v, w) }}{% endfor %}",
}


@pytest.mark.parametrize("name", sorted(OPERATORS))
def test_every_operator_is_bounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in STATEMENTS:
        check([STATEMENTS[name]], monkeypatch)
        return
    uses = OPERATOR_USES.get(name) or tuple(
        f"{a} {name} {b}" for a, b in ("vw", "wv", "vv", ("v", "3"), ("[v]", "[w]"))
    )
    check([f"{{% set x = {use} %}}{{{{ x }}}}" for use in uses], monkeypatch)
    if name in ("==", "<", "in"):
        check([f"{{{{ v {name} w {name} w }}}}"], monkeypatch)


def test_what_is_tried_can_take_for_ever() -> None:
    """Without a price the values above do what they are meant for."""

    class Free(Budget):
        def spend(self, work: int) -> None:
            """Nothing."""

        def weigh(self, value: Any) -> int:
            return 1

    box = Sandbox()
    box.budget = Free()
    left, right = VALUES["list"]
    started = time.process_time()
    assert box.budget.compare("eq", left[0][0][0], right[0][0][0]) is False
    assert box.budget.compare("eq", left[0][0][0], doubled(list, ["x"])[0][0][0]) is True
    assert time.process_time() - started > MOST_SECONDS / 32


# ---- nothing else is there ------------------------------------------------------------------------------------------


def test_what_is_in_no_table_is_refused() -> None:
    box = Sandbox()
    assert box.filters.keys() == FILTERS.keys()
    assert box.tests.keys() == TESTS.keys()
    assert box.globals.keys() == GLOBALS.keys()
    for name in jinja2.filters.FILTERS.keys() - FILTERS.keys():
        with pytest.raises(jinja2.TemplateError, match="No filter named"):
            box.guarded(box.parse(f"{{{{ 1 | {name} }}}}"))
    values: tuple[Any, ...] = ("", {}, [], (), 1, 1.5, range(3))
    for value in values:
        listed = [names for kind, names in METHODS.items() if isinstance(value, kind)]
        for name in dir(value):
            if callable(getattr(value, name)) and not any(name in names for names in listed):
                box.budget.start(0, time.thread_time() + 1.0)
                with pytest.raises(jinja2.TemplateError):
                    box.guarded(box.parse(f"{{{{ v.{name}() }}}}")).render(v=value)


def test_every_operator_of_jinja2_is_in_the_table() -> None:
    names = {"eq": "==", "ne": "!=", "gt": ">", "gteq": ">=", "lt": "<", "lteq": "<=", "in": "in", "notin": "not in"}
    assert jinja2.compiler.operators.keys() == names.keys()
    assert OPERATORS.keys() >= set(names.values())
    assert OPERATORS.keys() >= Sandbox.intercepted_binops == jinja2.nodes._binop_to_func.keys()
    assert OPERATORS.keys() >= {"not" if op == "not" else f"unary {op}" for op in jinja2.nodes._uaop_to_func}
    # A new kind of expression or statement needs a place in _Guard, or a reason why not.
    assert {kind.__name__ for kind in _kinds(jinja2.nodes.Expr)} == {
        "Add",
        "And",
        "BinExpr",
        "Call",
        "Compare",
        "Concat",
        "CondExpr",
        "Const",
        "ContextReference",
        "DerivedContextReference",
        "Dict",
        "Div",
        "EnvironmentAttribute",
        "ExtensionAttribute",
        "Filter",
        "FloorDiv",
        "Getattr",
        "Getitem",
        "ImportedName",
        "InternalName",
        "List",
        "Literal",
        "MarkSafe",
        "MarkSafeIfAutoescape",
        "Mod",
        "Mul",
        "NSRef",
        "Name",
        "Neg",
        "Not",
        "Or",
        "Pos",
        "Pow",
        "Slice",
        "Sub",
        "TemplateData",
        "Test",
        "Tuple",
        "UnaryExpr",
        "_FilterTestCommon",
    }
    assert {kind.__name__ for kind in _kinds(jinja2.nodes.Stmt)} == {
        "Assign",
        "AssignBlock",
        "Block",
        "Break",
        "CallBlock",
        "Continue",
        "EvalContextModifier",
        "ExprStmt",
        "Extends",
        "FilterBlock",
        "For",
        "FromImport",
        "If",
        "Import",
        "Include",
        "Macro",
        "Output",
        "OverlayScope",
        "Scope",
        "ScopedEvalContextModifier",
        "With",
    }


def _kinds(kind: type) -> Iterator[type]:
    below: type
    for below in kind.__subclasses__():
        yield below
        yield from _kinds(below)


# ---- limits ---------------------------------------------------------------------------------------------------------


def rendered(source: str, **variables: Any) -> str:
    box = Sandbox()
    box.budget.start(0, time.thread_time() + 2.0)
    return box.guarded(box.parse(source)).render(**variables)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% set n = namespace(a=1) %}{% for i in range(70) %}{% set n.a = [n.a] %}{% endfor %}", "more than 64 deep"),
        ("{% set n = namespace(a=1) %}{% for i in range(60) %}{% set n.a = [n.a, n.a] %}{% endfor %}", "too large"),
        (
            "{% set n = namespace(a=1) %}{% for i in range(60) %}{% set n.a = {'a': n.a, 'b': n.a} %}{% endfor %}",
            "large",
        ),
        ("{{ {(1, 2): 3} }}", "uses a tuple as a key"),
        ("{{ {}[(1, 2)] }}", "uses a tuple as a key"),
        ("{{ [2 ** 61] | unique | list }}", "too large a number as a key"),
        ("{{ '%(a)1000d' % {'a': 1} }}", "width that is too large"),
        ("{{ ('\\x0b' * 999999) | indent(256) }}", "too much work"),
        ("{{ 'a'.rfind('a' * 9999) }}{{ ('a' * 999999).rfind('ab' ~ 'a' * 99999) }}", "too much work"),
        ("{{ 1.5 | round(10 ** 9, 'floor') }}", "rounds to more than 20 digits"),
    ],
)
def test_limits_say_what_was_exceeded(source: str, message: str) -> None:
    with pytest.raises(LimitError, match=message):
        rendered(source)


@pytest.mark.parametrize(
    "source", ["{{ '%1000000000d' is even }}", "{{ ('a' | safe).escape(v) }}", "{{ {}.fromkeys([1]) }}"]
)
def test_ways_around_are_closed(source: str) -> None:
    with pytest.raises((TypeError, jinja2.TemplateError)):
        rendered(source, v=VALUES["list"][0])


def test_values_are_those_of_jinja2() -> None:
    """What the guard puts in place of operators gives what they give."""
    plain = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    for source in (
        "{{ 1 < 2 < 3 }}{{ 1 < 2 > 3 }}{{ 3 in [1, 2] }}{{ 'a' not in 'abc' }}{{ {'a': 1} == {'a': 1} }}{{ 1 in {1: 2} }}",
        "{{ (1, 2) + (3,) }}{{ [1] * 3 }}{{ 'a' ~ 1 ~ none }}{{ '%s-%03d' % ('x', 7) }}{{ -2 ** 2 }}{{ 7 // 2 % 2 }}",
        "{{ 'abcdef'[1:-1:2] }}{{ [1, 2, 3][:2] }}{{ [[1, [2]], {'k': (3,)}] }}{{ x is defined }}{{ x | default('d') }}",
        "{% set s = [3, 1, 2] | select('gt', 1) %}{{ 'yes' if s else 'no' }}{{ s | list }}{{ s | list }}",
        "{{ ['b', 'A', 'a'] | unique | join }}{{ ['b', 'A'] | sort | join }}{{ [[1], [2, 3]] | sum(start=[]) }}",
        "{% for k, v in {'b': 1, 'a': 2} | dictsort %}{{ k }}{{ v }}{{ loop.changed(v > 0) }}{% endfor %}",
        "{% for k, v in {'b': 1} | items %}{{ k }}{{ v }}{% endfor %}{{ 'a,b'.split(',') }}{{ 'a b'.split(maxsplit=1) }}",
        "{% filter replace('a', 'b' ~ 'c') %}banana{% endfilter %}{{ '{}-{x}'.format(1, x=2) }}{{ [1, 2] | reverse | list }}",
    ):
        assert rendered(source) == plain.from_string(source).render(), source


# ---- the table in the documentation ---------------------------------------------------------------------------------


def table() -> str:
    """The rows of docs/security.md."""
    kinds: list[tuple[str, dict[str, str]]] = [
        ("filters", _bounds(FILTERS)),
        ("tests", _bounds(TESTS)),
        ("operators and statements", dict(OPERATORS)),
        ("functions", _bounds(GLOBALS)),
    ]
    kinds += [(f"methods of {kind.__name__}", _bounds(methods)) for kind, methods in METHODS.items()]
    rows = []
    for title, bounds in kinds:
        for bound in sorted(set(bounds.values())):
            names = " ".join(f"`{name}`" for name in sorted(bounds) if bounds[name] == bound)
            rows.append(f"| {title} | {names} | {bound} |")
    words = [f"| {bound} | {text} |" for bound, text in BOUNDS.items()]
    return "\n".join(
        ["| bound | what is charged |", "|---|---|", *words, "", "| | names | bound |", "|---|---|---|", *rows]
    )


def _bounds(entries: Any) -> dict[str, str]:
    assert all(isinstance(entry, Bounded) and entry.bound in BOUNDS for entry in entries.values())
    return {name: entry.bound for name, entry in entries.items()}


def test_the_documentation_has_the_table() -> None:
    text = (Path(__file__).parents[2] / "docs" / "security.md").read_text(encoding="utf-8")
    assert table() in text, f"docs/security.md should hold:\n{table()}"
