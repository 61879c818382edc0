"""The pages of the reference that are made from docstrings: the plugin API and the Python API."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from itertools import pairwise
from typing import Any

from tables import cell

from alignment_core import on_policy, plugin_api, testing


def own_docstring(value: Any) -> str:
    text = inspect.cleandoc(value.__doc__ or "")
    # A dataclass without a docstring gets its signature as one, and a protocol's subclass its parent's.
    return "" if text.startswith(f"{getattr(value, '__name__', '')}(") else text


def sections(text: str) -> Iterator[str]:
    """A Google-style docstring as Markdown: each `Args:` becomes a list."""
    heading = False
    for line in text.splitlines():
        if re.fullmatch(r"(Args|Attributes|Returns|Raises|Yields):", line):
            yield ""
            yield f"**{line}**"
            yield ""
            heading = True
        elif heading and re.match(r"    \w[\w, ]*: ", line):
            name, _, rest = line.strip().partition(": ")
            yield f"- `{name}`: {rest}"
        elif heading and line.startswith("        "):
            yield f"  {line.strip()}"
        else:
            yield line.strip() if heading else line
            heading = heading and bool(line.strip() == "" or line.startswith(" "))


class Bare:
    """An annotation that is shown as it is written, without the quotes of a string."""

    def __init__(self, annotation: str) -> None:
        self.annotation = annotation

    def __repr__(self) -> str:
        return self.annotation


def bare(annotation: Any) -> Any:
    return Bare(annotation) if isinstance(annotation, str) else annotation


def signature(name: str, value: Any) -> str:
    try:
        found = inspect.signature(value)
    except (TypeError, ValueError):
        return name
    parameters = [each.replace(annotation=bare(each.annotation)) for each in found.parameters.values()]
    text = str(found.replace(parameters=parameters, return_annotation=bare(found.return_annotation)))
    text = text.replace("PosixPath", "Path")
    text = re.sub(r"(?:alignment_core|alignment_flows|pathlib|collections\.abc|typing)(?:\.\w+)*\.(?=\w)", "", text)
    text = re.sub(r"Annotated\[(\w+), <[^>]*>\]", r"\1", text)
    text = re.sub(r"<factory>|<class \w+>", "…", text)
    return f"{name}{text}"


def documented(name: str, value: Any) -> Iterator[str]:
    yield f"## `{name}`"
    yield ""
    if inspect.isroutine(value) or (is_dataclass(value) and fields(value)):
        yield "```text"
        yield signature(name, value)
        yield "```"
        yield ""
    yield from sections(own_docstring(value))
    yield ""
    if inspect.isclass(value):
        yield from class_members(value)


def class_members(value: type) -> Iterator[str]:
    for name, member in vars(value).items():
        routine = getattr(member, "fget", member)
        if name.startswith("_") or not inspect.isroutine(routine) or not own_docstring(routine):
            continue
        yield f"### `{value.__name__}.{name}`"
        yield ""
        if routine is member:
            yield "```text"
            yield signature(name, member)
            yield "```"
            yield ""
        yield from sections(own_docstring(routine))
        yield ""
    described = field_docstrings(value)
    if described:
        yield "| field | type | description |"
        yield "| --- | --- | --- |"
        for name, (kind, text) in described.items():
            yield f"| `{name}` | `{cell(kind)}` | {cell(text)} |"
        yield ""


def field_docstrings(value: type) -> dict[str, tuple[str, str]]:
    """Type and description of each field that has a docstring under it."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(value))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for node, after in pairwise(body.body):
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[ast.unparse(node.target)] = (ast.unparse(node.annotation), str(after.value.value))
    return found


def plugin_api_page() -> Iterator[str]:
    yield "# Plugin API"
    yield ""
    yield (
        "The contract of plugins is in `alignment_core.plugin_api`. The usual losses are in `alignment_core.losses`. "
        "The base class of on-policy optimizers (`alignment_core.on_policy`) and the conformance kit "
        "(`alignment_core.testing`) are at the end of this page. "
        "[Write a plugin](../how-to/write-a-plugin.md) is the guide."
    )
    yield ""
    values = [(name, getattr(module, name)) for module in (plugin_api, on_policy) for name in module.__all__]
    for name, value in values:
        if own_docstring(value) and (inspect.isclass(value) or inspect.isroutine(value)):
            yield from documented(name, value)
    yield "## The conformance kit"
    yield ""
    yield "In `alignment_core.testing`."
    yield ""
    for name in testing.__all__:
        yield from documented(name, getattr(testing, name))


def python_api_page() -> Iterator[str]:
    import alignment_flows

    yield "# Python API"
    yield ""
    yield (
        "`import alignment_flows as af` offers everything that the `align` command does. Names that are not listed "
        "here are private. [Use it from Python](../how-to/use-from-python.md) has examples."
    )
    yield ""
    for name in alignment_flows.__all__:
        yield from documented(name, getattr(alignment_flows, name))
