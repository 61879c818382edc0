"""Read YAML such that a mistake or an attack in it is an error with a line, never a crash or a long wait."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

LONGEST = 1_000_000
"""Length of the longest text, in characters."""
MOST_VALUES = 100_000
"""Number of values in a text, each alias counted as what it stands for."""
DEEPEST = 50
"""Number of lists and mappings that can be inside each other."""

YAML = "tag:yaml.org,2002:"
PLAIN = {f"{YAML}{kind}" for kind in ("str", "int", "float", "bool", "null", "seq", "map", "merge", "value")}
"""The kinds of values that JSON has, too. A date, a set or bytes could not be stored with the run."""
NUMBERS = {
    f"{YAML}int": re.compile(r"[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0|[1-9][0-9_]*)$"),
    f"{YAML}float": re.compile(
        r"[-+]?(([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)([eE][-+][0-9]+)?|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"
    ),
}
"""What a number looks like: as in YAML 1.1, but without the numbers to the base 60 and 8."""


def parse(text: str) -> Any:
    """Return the plain values of a YAML text. Dates and times such as 1:30 stay text, and 010 is ten.

    Raises:
        yaml.YAMLError: the text is not valid, has a key twice, or is too long, too deep or too large.
    """
    if len(text) > LONGEST:
        raise yaml.YAMLError(f"the text has {len(text)} characters, expected at most {LONGEST}")
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML declares no class variable
        first: [(tag, NUMBERS.get(tag, pattern)) for tag, pattern in resolvers if tag != f"{YAML}timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a value, if it is not too deep."""
        self._depth += 1
        if self._depth > DEEPEST:
            raise yaml.MarkedYAMLError(problem=f"more than {DEEPEST} levels", problem_mark=self.get_mark())
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        """Compose the text, if its aliases do not make it too large."""
        node: yaml.Node | None = super().get_single_node()
        if node is not None and _size(node, {}) > MOST_VALUES:
            raise yaml.MarkedYAMLError(problem=f"more than {MOST_VALUES} values", problem_mark=node.start_mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return the value of a node."""
        if node.tag not in PLAIN:
            kind = node.tag.removeprefix(YAML)
            raise yaml.MarkedYAMLError(problem=f"values of the kind {kind} are not read", problem_mark=node.start_mark)
        try:
            return super().construct_object(node, deep=deep)
        except (ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:  # such as `!!int abc`
            kind = node.tag.rpartition(":")[2]
            raise yaml.MarkedYAMLError(problem=f"this is no valid {kind}", problem_mark=node.start_mark) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Return a mapping, if its keys are different names."""
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key is not plain text", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"`{key.value}` appears twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _size(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Return the number of values in a node. An alias to a node that contains it has no end."""
    if id(node) in known:
        size = known[id(node)]
        if size is None:
            raise yaml.MarkedYAMLError(problem="a value contains itself", problem_mark=node.start_mark)
        return size
    known[id(node)] = None
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    known[id(node)] = size = 1 + sum(_size(child, known) for child in children)
    return size
