"""Compile and render chat templates. A template is code of a stranger: it is confined, and so are its time and memory.

The environment offers what transformers offers to templates, with two differences: the date is always the same, and the
tag `generation` can write marks around what the assistant says. Imports no transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, time
from functools import cache
from typing import Any, NoReturn

from jinja2 import Environment, Template, nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from alignment_core.data.rendering.builtin_templates import BUILTIN_TEMPLATES, TEMPLATE_DATE
from alignment_core.data.rendering.engine.limits import Limits

GROWING = ("center", "format", "indent", "join", "list", "pprint", "replace", "string", "sum", "tojson", "wordwrap")
"""Filters whose result can be much larger than what they are given."""
GROWING_METHODS = frozenset(
    {"center", "expandtabs", "format", "format_map", "join", "ljust", "replace", "rjust", "zfill"}
)
"""Such methods of texts. Macros and the other functions that a template can call are limited by what is in them."""
CALL_STEPS, MACRO_STEPS = 5, 50
"""Steps that a call counts as, which takes that much longer than a step of a loop."""
GENERATION_MARKS = ("\U0010fffc", "\U0010fffd")
"""Characters that stand before and after a `generation` block if `mark_generation` is set."""


def render(template: str, variables: Mapping[str, Any]) -> str:
    """Render a chat template.

    Raises:
        Exception: whatever the template's code raises, and `SecurityError` if it needs too much time or memory.
    """
    compiled = _compiled(template)
    if isinstance(compiled.environment, _Environment):
        compiled.environment.limits.start()
    return compiled.render(variables)


@cache
def _compiled(template: str) -> Template:
    if template in BUILTIN_TEMPLATES.values():  # our own, which need no limits and are rendered in half the time
        trusted = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag])
        trusted.filters["tojson"] = _tojson
        return trusted.from_string(template)
    environment = _environment()
    tree = _Counting().visit(environment.parse(template))
    return environment.from_string(tree)


def parse(template: str) -> nodes.Template:
    """Return the code of a template.

    Raises:
        TemplateSyntaxError: the template has no valid code.
    """
    return _environment().parse(template)


def _environment() -> _Environment:
    return _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox of jinja2 with limits on everything that can take long or grow."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        self.limits = limits = Limits()
        super().__init__(**options, finalize=limits.shown)
        self.steps, self.joined, self.weighed = limits.steps, limits.joined, limits.weighed
        self.filters["tojson"] = _tojson
        filters, tests = dict[str, Any](self.filters), dict[str, Any](self.tests)
        self.filters = {name: limits.guarded(name, made, growing=name in GROWING) for name, made in filters.items()}
        self.tests = {name: limits.guarded(name, made, growing=False) for name, made in tests.items()}
        now = datetime.combine(TEMPLATE_DATE, time())
        self.globals |= {"raise_exception": _raise, "strftime_now": now.strftime}
        self.globals |= {"namespace": _PlainNamespace, "dict": _dict}
        del self.globals["lipsum"]  # writes as much text as it is asked for

    def concat(self, parts: Any) -> str:
        """Join the pieces of an output, which are texts."""
        return self.limits.concat(parts)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Compute an intercepted operation."""
        if operator == "+":
            return self.limits.added(left + right)
        self.limits.check_operation(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(*arguments: Any, **named: Any) -> Any:  # a template may pass an argument called `self`
        """Call a function or a method of a value."""
        limits, function = arguments[0].limits, arguments[2]
        owner = getattr(function, "__self__", None)
        if isinstance(owner, int | float | complex | bytes):
            raise SecurityError("a method of a number or of bytes, which no conversation has")
        if function not in (limits.steps, limits.joined, limits.weighed):
            limits.spend((MACRO_STEPS if isinstance(function, Macro) else CALL_STEPS) + len(named))
            for value in (owner, *arguments[3:]):
                limits.weighed(value)
        if getattr(arguments[2], "__name__", "") in GROWING_METHODS:
            arguments[0].limits.check_call(arguments[2], arguments[3:], named)
        return SandboxedEnvironment.call(*arguments, **named)


class _Counting(NodeTransformer):
    """Makes each step of a loop, each `~`, each comparison and each slice count."""

    def visit_For(self, node: nodes.For) -> nodes.For:  # named by jinja2
        self.generic_visit(node)
        node.iter = _calling("steps", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:  # named by jinja2
        self.generic_visit(node)
        return _calling("joined", *node.nodes)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:  # named by jinja2
        self.generic_visit(node)
        equal = all(operand.op in ("eq", "ne") for operand in node.ops)
        if equal and any(isinstance(one, nodes.Const) for one in (node.expr, *(operand.expr for operand in node.ops))):
            return node  # takes as long as the constant is
        node.expr = _weighed(node.expr)
        for operand in node.ops:
            operand.expr = _weighed(operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Getitem:  # named by jinja2
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _weighed(node.node)
        return node


def _weighed(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _calling("weighed", node)


def _calling(attribute: str, *arguments: nodes.Node) -> nodes.Call:
    line = arguments[0].lineno
    return nodes.Call(nodes.EnvironmentAttribute(attribute, lineno=line), [*arguments], [], None, None, lineno=line)


class _GenerationTag(Extension):
    """The tag in which a template writes what the assistant says."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares no class variable

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """Return the block between two optional marks."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        before, after = (self._mark(mark, line) for mark in GENERATION_MARKS)
        return [before, nodes.Scope(body, lineno=line), after]

    def _mark(self, mark: str, line: int) -> nodes.If:
        shown = nodes.Name("mark_generation", "load", lineno=line)
        return nodes.If(shown, [nodes.Output([nodes.TemplateData(mark)], lineno=line)], [], [], lineno=line)


class _PlainNamespace(Namespace):
    """A namespace without underscore names, with which a template could reach Python's internals."""

    def __init__(*arguments: Any, **named: Any) -> None:  # a template may pass an argument called `self`
        values = dict(*arguments[1:], **named)
        for name in values:
            _check_name(name)
        Namespace.__init__(arguments[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r}, because it starts with an underscore")


def _dict(*arguments: Any, **named: Any) -> dict[Any, Any]:
    """Make a `dict`. A function, unlike the class, has no further methods for a template to call."""
    return dict(*arguments, **named)


def _raise(message: Any) -> NoReturn:
    raise TemplateError(str(message))


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
