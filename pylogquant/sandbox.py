"""The sandbox of chat templates: jinja2's, with a budget that all work of a template is charged to.

Three things ensure that nothing is free. Filters, tests, functions and methods come from the tables in
sandbox_values.py and sandbox_filters.py, which charge before they work. _Guard replaces operators that jinja2 compiles
to Python's own by calls that charge. And the optimizer is off, as it would evaluate constant expressions uncharged.
"""

from __future__ import annotations

import types
from typing import Any

import jinja2
import jinja2.compiler
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes as nodes
import jinja2.parser
import jinja2.runtime
import jinja2.sandbox
import jinja2.utils
import jinja2.visitor

from pylogquant.sandbox_budget import MAX_INT_BITS, STEP, Budget, LimitError
from pylogquant.sandbox_filters import FILTERS, TESTS, join
from pylogquant.sandbox_values import GLOBALS, METHODS, Environment, arithmetic

__all__ = ["LimitError", "Sandbox"]

_CALLABLE = (jinja2.runtime.Macro, jinja2.runtime.LoopContext, jinja2.runtime.BlockReference, jinja2.utils.Joiner)
_DATA = (str, dict, list, tuple)
# Methods that templates may call of objects that jinja2 itself makes.
_METHODS_OF_HELPERS = (
    (jinja2.runtime.LoopContext, frozenset({"cycle", "changed"})),
    (jinja2.utils.Cycler, frozenset({"next", "reset"})),
)


class Sandbox(Environment):
    """Compiles and renders templates. budget.start() before each use; one thread at a time."""

    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            extensions=[jinja2.ext.loopcontrols, _GenerationBlock],
        )
        self.code_generator_class = _CodeGenerator
        self.budget = Budget()
        self.globals = {name: entry.function for name, entry in GLOBALS.items()}
        self.filters = {name: entry.function for name, entry in FILTERS.items()}
        self.tests = {name: entry.function for name, entry in TESTS.items()}
        self._functions = frozenset(self.globals.values())
        # _Guard makes templates call these.
        self.made, self.key, self.compare = self.budget.made, self.budget.key, self.budget.compare

    def guarded(self, tree: nodes.Template) -> jinja2.Template:
        """Compiles a parsed template for this sandbox; changes the tree."""
        code = self.compile(_Guard().visit(tree))
        return jinja2.Template.from_code(self, code, self.make_globals(None))

    # -- called by the compiled template, put there by _Guard

    def step(self) -> bool:
        self.budget.spend(STEP)
        return True

    def joined(self, *values: Any) -> str:
        return "".join([str(self.budget.text(value)) for value in values])

    def emitted(self, value: Any) -> str:
        return str(self.budget.text(value))

    def compared(self, left: Any, *rest: Any) -> Any:
        """Evaluates a chain of comparisons: left, then operators and values in turn."""
        result: Any = True
        for operator, right in zip(rest[::2], rest[1::2], strict=True):
            result = self.budget.compare(operator, left, right)
            if not result:
                break
            left = right
        return result

    def sliced(self, value: Any, start: Any, stop: Any, step: Any) -> Any:
        return self.budget.made(value[start:stop:step])

    # -- called by jinja2 for every call, operator and look-up of the template

    def call(__self, __context: jinja2.runtime.Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        self, budget = __self, __self.budget
        budget.spend(STEP * (1 + len(args)))
        # jinja2 wraps str.format into a function of its own.
        method = __obj.__wrapped__ if type(__obj) is types.FunctionType and hasattr(__obj, "__wrapped__") else __obj
        owner = method.__self__ if isinstance(method, (types.BuiltinMethodType, types.MethodType)) else None
        if isinstance(owner, _DATA):
            named = {name: value for name, value in kwargs.items() if name not in ("_loop_vars", "_block_vars")}
            if isinstance(owner, str) and method.__name__ == "join" and len(args) == 1:
                return join(self, args[0], owner)
            self._charge_method(owner, method.__name__, (*args, *named.values()))
            return budget.made(super().call(__context, __obj, *args, **named))
        if not self._may_call(__obj, owner):
            raise jinja2.exceptions.SecurityError(f"a {type(__obj).__name__} cannot be called here")
        if isinstance(owner, jinja2.runtime.LoopContext):  # loop.changed() compares
            budget.spend(sum(map(budget.weigh, args)))
        return budget.made(super().call(__context, __obj, *args, **kwargs))

    def _charge_method(self, owner: Any, name: str, args: tuple[Any, ...]) -> None:
        for kind, methods in METHODS.items():
            if isinstance(owner, kind) and name in methods:
                methods[name].function(self.budget, owner, args)
                return
        raise jinja2.exceptions.SecurityError(f"{type(owner).__name__}.{name} is not available here")

    def _may_call(self, found: Any, owner: Any) -> bool:
        if isinstance(found, types.FunctionType):
            return found in self._functions
        if owner is not None:
            return any(isinstance(owner, kind) and found.__name__ in names for kind, names in _METHODS_OF_HELPERS)
        return isinstance(found, (*_CALLABLE, jinja2.runtime.Undefined))

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        return arithmetic(self.budget, operator, left, right)

    def call_filter(self, name: Any, *args: Any, **kwargs: Any) -> Any:
        self._check_name(name)
        return super().call_filter(name, *args, **kwargs)

    def call_test(self, name: Any, *args: Any, **kwargs: Any) -> Any:
        self._check_name(name)
        return super().call_test(name, *args, **kwargs)

    def _check_name(self, name: Any) -> None:
        """Charges the name of a filter or test given to map(), select() and so on: it is hashed and shown in errors."""
        if not isinstance(name, str):
            raise TypeError(f"the name of a filter or test is a text, not a {type(name).__name__}")
        self.budget.spend(len(name))

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(obj, self.budget.key(argument))


class _GenerationBlock(jinja2.ext.Extension):
    """{% generation %}...{% endgeneration %} marks the assistant's text for training; here it is just its body."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's type)

    def parse(self, parser: jinja2.parser.Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _CodeGenerator(jinja2.compiler.CodeGenerator):
    def visit_Call(self, node: nodes.Call, frame: jinja2.compiler.Frame, forward_caller: bool = False) -> None:
        """Compiles calls of the sandbox's own methods without the checks, and the cost, of the template's calls."""
        if not isinstance(node.node, nodes.EnvironmentAttribute):
            super().visit_Call(node, frame, forward_caller=forward_caller)
            return
        self.write(f"environment.{node.node.name}(")
        for argument in node.args:
            self.visit(argument, frame)
            self.write(", ")
        self.write(")")


class _Guard(jinja2.visitor.NodeTransformer):
    """Puts calls of Sandbox.step, made, key, compare, joined, emitted and sliced into a parsed template."""

    @staticmethod
    def _call(name: str, *arguments: nodes.Expr) -> nodes.Call:
        # EnvironmentAttribute cannot be written in a template, so no variable can take its place.
        return nodes.Call(nodes.EnvironmentAttribute(name), list(arguments), [], None, None)

    def _stepping(self, node: Any) -> Any:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(self._call("step")))
        return node

    visit_Macro = visit_CallBlock = _stepping

    def visit_For(self, node: nodes.For) -> nodes.For:
        self._stepping(node)
        if node.test is not None:
            # A filtered loop may pass over many items without ever running its body.
            node.test = nodes.And(self._call("step"), node.test)
        return node

    def _container(self, node: Any) -> Any:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else self._call("made", node)

    visit_List = visit_Tuple = visit_Dict = _container

    def visit_Pair(self, node: nodes.Pair) -> nodes.Pair:
        self.generic_visit(node)
        node.key = self._call("key", node.key)
        return node

    def visit_Const(self, node: nodes.Const) -> nodes.Const:
        if isinstance(node.value, int) and node.value.bit_length() > MAX_INT_BITS:
            raise jinja2.TemplateSyntaxError("a number is too large", node.lineno)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Expr:
        """Replaces comparisons by calls. In a chain (a < b < c) all values are computed, even if a < b is false."""
        self.generic_visit(node)
        if len(node.ops) == 1:
            return self._call("compare", nodes.Const(node.ops[0].op), node.expr, node.ops[0].expr)
        return self._call("compared", node.expr, *(part for op in node.ops for part in (nodes.Const(op.op), op.expr)))

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice) or node.ctx != "load":
            return node
        ends = (node.arg.start, node.arg.stop, node.arg.step)
        return self._call("sliced", node.node, *(nodes.Const(None) if end is None else end for end in ends))

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return self._call("joined", *node.nodes)

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        node.nodes = [self._call("emitted", child) for child in node.nodes]
        return node
