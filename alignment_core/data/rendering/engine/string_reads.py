"""Tell whether a template can write another text for a string with marks, by reading its code.

A template that only prints and trims the strings of a conversation writes the same text with marks as without. Its
marked text alone then says everything, which saves a second rendering. Whatever is not known to be harmless counts as
reading.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from jinja2 import TemplateSyntaxError, nodes

from alignment_core.data.rendering.engine.sandbox import parse

UNMARKED_KEYS = frozenset({"role", "type"})
"""Keys of turns and of content parts whose values never hold marks."""
LIST_KEYS = frozenset({"tool_calls", "tools"})
"""Keys whose values are lists."""
KEYS = UNMARKED_KEYS | LIST_KEYS | {"arguments", "content", "description", "function", "id", "name", "parameters"}
KEYS |= {"reasoning", "reasoning_content", "text", "thinking", "tool_call_id", "weight"}
"""Keys of turns, calls and tools. Other keys may be those of a call's arguments, which hold marks themselves."""
TYPE_TESTS = frozenset(
    {"boolean", "defined", "false", "iterable", "mapping", "none", "number", "sequence", "string", "true", "undefined"}
)
FUNCTIONS = frozenset({"namespace", "raise_exception", "range", "strftime_now"})
METHODS = frozenset({"get", "items", "keys", "values"})
TRIMS = frozenset({"lstrip", "rstrip", "strip"})
STRUCTURE = (
    nodes.Add,
    nodes.And,
    nodes.Assign,
    nodes.AssignBlock,
    nodes.Concat,
    nodes.CondExpr,
    nodes.Const,
    nodes.Dict,
    nodes.If,
    nodes.Keyword,
    nodes.List,
    nodes.Macro,
    nodes.NSRef,
    nodes.Name,
    nodes.Not,
    nodes.Operand,
    nodes.Or,
    nodes.Output,
    nodes.Pair,
    nodes.Scope,
    nodes.Slice,
    nodes.Template,
    nodes.TemplateData,
    nodes.Tuple,
    nodes.Break,
    nodes.Continue,
)
"""Nodes that print, join, choose by truth and name values. Marks are only around strings that are not blank."""


@cache
def reads_strings(template: str) -> bool:
    """Whether the template may look at what a string of the conversation holds."""
    try:
        return not _Reading(parse(template)).is_harmless()
    except (TemplateSyntaxError, RecursionError):  # nested without end, or names that stand for each other
        return True


class _Reading:
    def __init__(self, tree: nodes.Template) -> None:
        self._tree = tree
        self._macros = {macro.name for macro in tree.find_all(nodes.Macro)}
        self._assigned, self._looped, self._opaque = _bindings(tree)
        self._lists = self._only({name: values for name, values in self._assigned.items() if name not in self._looped})
        self._spaces = {name for name, values in self._assigned.items() if all(map(_is_namespace, values))}

    def is_harmless(self) -> bool:
        return all(self._allows(node) for node in _every(self._tree))

    def _only(self, values: Mapping[str, Sequence[nodes.Node]]) -> set[str]:
        """Return the names that only ever stand for the list of turns or a part of it."""
        self._lists = {"messages", *values} - self._opaque
        while wrong := {name for name in self._lists if not all(map(self._is_list, values.get(name, ())))}:
            self._lists -= wrong
        return self._lists

    def _is_list(self, node: nodes.Node | None) -> bool:
        if isinstance(node, nodes.CondExpr):
            return self._is_list(node.expr1) and self._is_list(node.expr2)
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            return self._is_list(node.node)
        return isinstance(node, nodes.Name) and node.name in self._lists

    def _is_turn(self, node: nodes.Node) -> bool:
        if isinstance(node, nodes.Name):
            assigned, looped = self._assigned.get(node.name, ()), self._looped.get(node.name, ())
            turns = all(self._is_list(value) for value in looped) and all(self._is_turn(value) for value in assigned)
            return turns and bool(assigned or looped) and node.name not in self._opaque
        return isinstance(node, nodes.Getitem) and not isinstance(node.arg, nodes.Slice) and self._is_list(node.node)

    def _allows(self, node: nodes.Node) -> bool:
        match node:
            case nodes.Filter():
                return self._allows_filter(node)
            case nodes.Test():
                return node.name in TYPE_TESTS or (node.name in ("odd", "even") and self._is_unmarked(node.node))
            case nodes.Compare():
                return self._allows_comparison(node)
            case nodes.Call():
                return self._allows_call(node)
            case nodes.Getitem() | nodes.Getattr():
                key = _key(node)
                if key is None:
                    return self._is_list(node.node) or _key(node.node) in LIST_KEYS
                return self._allows_key(node.node, key)
            case nodes.For():
                return self._allows_loop(node.iter)
            case nodes.Mod() | nodes.Sub() | nodes.Neg():
                return self._is_unmarked(node)
        return isinstance(node, STRUCTURE)

    def _allows_key(self, owner: nodes.Node, key: str) -> bool:
        if isinstance(owner, nodes.Name):
            if owner.name == "loop" or owner.name in self._spaces:
                return True
            if owner.name in self._opaque or self._holds_arguments(owner.name):
                return False
        return (key in KEYS or key in METHODS or key in TRIMS) and _key(owner) != "arguments"

    def _holds_arguments(self, name: str) -> bool:
        return any(_key(part) == "arguments" for value in self._values(name) for part in _every(value))

    def _values(self, name: str) -> Sequence[nodes.Node]:
        return (*self._assigned.get(name, ()), *self._looped.get(name, ()))

    def _allows_loop(self, values: nodes.Node) -> bool:
        """Whether a loop cannot be over the characters of a string."""
        if isinstance(values, nodes.Name) and values.name == "tools":
            return not self._values("tools") and "tools" not in self._opaque
        if isinstance(values, nodes.Call):
            return _key(values.node) in METHODS - {"get"} or values.node == nodes.Name("range", "load")
        return self._is_list(values) or _key(values) in LIST_KEYS

    def _allows_filter(self, node: nodes.Filter) -> bool:
        if node.node is None or self._is_unmarked(node.node):
            return node.node is not None
        plain = not (node.args or node.kwargs)
        if node.name in ("length", "count"):
            return self._is_list(node.node) or _key(node.node) in LIST_KEYS
        return node.name == "tojson" or (node.name == "trim" and plain)

    def _allows_comparison(self, node: nodes.Compare) -> bool:
        left = node.expr
        for operand in node.ops:
            right = operand.expr
            if operand.op in ("in", "notin"):
                if not (self._is_unmarked(left) and (self._is_unmarked(right) or self._is_turn(right))):
                    return False
            elif not (_is_blank(left) or _is_blank(right) or (self._is_unmarked(left) and self._is_unmarked(right))):
                return False
            left = right
        return True

    def _allows_call(self, node: nodes.Call) -> bool:
        if isinstance(node.node, nodes.Name):
            return node.node.name in FUNCTIONS or node.node.name in self._macros
        if not isinstance(node.node, nodes.Getattr):
            return False
        if node.node.attr in TRIMS:
            return all(isinstance(arg, nodes.Const) and not str(arg.value).strip() for arg in node.args)
        if node.node.attr == "get":
            key = node.args[0] if node.args else None
            return isinstance(key, nodes.Const) and self._allows_key(node.node.node, str(key.value))
        return node.node.attr in METHODS

    def _is_unmarked(self, node: nodes.Node | None) -> bool:
        """Whether an expression cannot be a string of the conversation."""
        match node:
            case nodes.Const() | nodes.Compare() | nodes.Not() | nodes.Test():
                return True
            case nodes.Name():
                values = self._assigned.get(node.name)
                known = node.name not in self._looped and node.name not in self._opaque
                return bool(values) and known and all(isinstance(value, nodes.Const) for value in values or ())
            case nodes.Getattr() | nodes.Getitem():
                loop = isinstance(node.node, nodes.Name) and node.node.name == "loop"
                return _key(node) in UNMARKED_KEYS or (loop and _key(node) not in ("previtem", "nextitem"))
            case nodes.Filter():
                return node.name in ("length", "count")
            case nodes.BinExpr() | nodes.And() | nodes.Or():
                return self._is_unmarked(node.left) and self._is_unmarked(node.right)
            case nodes.UnaryExpr():
                return self._is_unmarked(node.node)
            case nodes.List() | nodes.Tuple():
                return all(self._is_unmarked(item) for item in node.items)
        return False


def _bindings(
    tree: nodes.Template,
) -> tuple[dict[str, list[nodes.Node]], dict[str, list[nodes.Node]], set[str]]:
    """Return what names are assigned, what they loop over, and the names of other origin."""
    assigned: dict[str, list[nodes.Node]] = {}
    looped: dict[str, list[nodes.Node]] = {}
    opaque = {name.name for macro in tree.find_all(nodes.Macro) for name in macro.args}
    for node in _every(tree):
        if not isinstance(node, nodes.Assign | nodes.AssignBlock | nodes.For):
            continue
        if isinstance(node, nodes.AssignBlock) or not isinstance(node.target, nodes.Name):
            opaque |= {name.name for name in _every(node.target) if isinstance(name, nodes.Name)}
        elif isinstance(node, nodes.For):
            looped.setdefault(node.target.name, []).append(node.iter)
        else:
            assigned.setdefault(node.target.name, []).append(node.node)
    return assigned, looped, opaque


def _is_namespace(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name) and node.node.name == "namespace"


def _every(node: nodes.Node) -> Iterable[nodes.Node]:
    yield node
    for child in node.iter_child_nodes():
        yield from _every(child)


def _key(node: nodes.Node | None) -> str | None:
    """Return the name under which an expression takes a value from an object."""
    if isinstance(node, nodes.Getattr):
        return node.attr
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
        return node.arg.value
    if (
        isinstance(node, nodes.Call)
        and _key(node.node) == "get"
        and node.args
        and isinstance(node.args[0], nodes.Const)
    ):
        return str(node.args[0].value)
    return None


def _is_blank(node: nodes.Node) -> bool:
    """Whether an expression is a constant that no marked string equals: nothing, a number or blank text."""
    return isinstance(node, nodes.Const) and (not isinstance(node.value, str) or not node.value.strip())
