"""The definitions of tools that a row offers to the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

TOOL_COLUMNS = ("tools", "functions", "tool_definitions", "available_tools")
"""Names of columns with definitions of tools, as lists or as JSON."""
SCHEMAS = ("parameters", "input_schema", "inputSchema", "schema")
"""Names of the schema of a tool's arguments, ours first."""


class BadTools(ValueError):
    """Raised for a value that does not define tools. Its text says why."""


def tool_definitions(value: Any) -> list[dict[str, Any]]:
    """Return definitions of tools in the form `{type: function, function: {name, description, parameters}}`.

    Keys that a columnar file padded with null are left out.

    Raises:
        BadTools: the value is not a list of definitions with names, nor its JSON.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else []
        except (ValueError, RecursionError):
            raise BadTools("not valid JSON") from None
    if not value:
        return []
    if not isinstance(value, list):
        raise BadTools(f"it has type {type(value).__name__}, expected a list of definitions")
    return [_definition(tool) for tool in value]


def without_nulls(value: Any) -> Any:
    """Return a value without the keys whose value is null, also inside its objects and lists."""
    if isinstance(value, Mapping):
        return {str(key): without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(item) for item in value]
    return value


def _definition(tool: Any) -> dict[str, Any]:
    if isinstance(tool, str):
        try:
            tool = json.loads(tool)
        except (ValueError, RecursionError):
            raise BadTools(f"{tool[:80]!r} is only a name, expected a definition with a schema") from None
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise BadTools("a definition has no name")
    found = without_nulls(function)
    schema = next((found.pop(name) for name in SCHEMAS if name in found), None)
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except (ValueError, RecursionError):
            raise BadTools(f"the parameters of {name} are not valid JSON") from None
    found.pop("type", None) if function is tool else None
    return {"type": "function", "function": {**found, **({} if schema is None else {"parameters": schema})}}
