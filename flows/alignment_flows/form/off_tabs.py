"""The tab `Off` of a group of settings that may be null.

For null, both of Prefect's interfaces draw the line 'Property is type "None"'. The tab holds a group with the one field
`state` instead, because they fill in the defaults of the groups in an opened tab, but no other default. `without_off`
makes it null again.
"""

import re
from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from alignment_core.config import PipelineConfig

JsonSchema = dict[str, Any]
OFF = {"state": "off"}
TAB = {
    "title": "Off",
    "type": "object",
    "properties": {"state": {"title": "State", "type": "string", "enum": ["off"], "default": "off", "position": 0}},
    "required": ["state"],
    "additionalProperties": False,
}
NULL = {"type": "null"}


def may_be_off(field: JsonSchema) -> bool:
    """Return whether a field is a group of settings or null."""
    branches = field.get("anyOf", ())
    return len(branches) == 2 and NULL in branches and any("$ref" in branch for branch in branches)


def give_off_tab(body: JsonSchema, name: str) -> None:
    """Replace the choice of null of a field by the tab.

    The server must still accept the null that scripts send. It adds null to a field that has a type and no default,
    but forgets the tabs then, so what they hold is checked in `dependentSchemas`.
    """
    field = body["properties"][name]
    group = next(branch for branch in field["anyOf"] if branch != NULL)
    body["properties"][name] = with_off_tab(field, [group])

    def at_field(schema: JsonSchema) -> JsonSchema:
        return {"properties": {name: schema}}

    off = {"anyOf": [NULL, TAB]}
    is_off = {"anyOf": [NULL, {"type": "object", "required": ["state"]}]}
    body.setdefault("dependentSchemas", {})[name] = {
        "if": at_field(is_off), "then": at_field(off), "else": at_field(group),
    }  # fmt: skip


def with_off_tab(field: JsonSchema, tabs: list[JsonSchema]) -> JsonSchema:
    """Return a field that is null or a group as a choice of these tabs and the tab `Off`."""
    kept = {key: value for key, value in field.items() if key != "default"}
    # A form opens the first tab if nothing is given.
    tabs = [TAB, *tabs] if field.get("default") is None else [*tabs, TAB]
    text = re.sub("[Nn]ull:", "Off:", field.get("description", "")).replace("default None", "default off")
    return {**kept, "description": text, "type": "object", "anyOf": tabs}


def with_off(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a config file as the form shows them, with the group of the tab where a group is null.

    Of an empty group, the interfaces would open the first tab. It therefore gets its defaults.
    """
    return _swapped(PipelineConfig, values, None, OFF)


def without_off(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that a form sent with null where it has the group of the tab."""
    found = _swapped(PipelineConfig, values, OFF, None)
    if isinstance(optimizer := found.get("optimizer"), Mapping):
        found["optimizer"] = {name: None if value == OFF else value for name, value in optimizer.items()}
    return found


def _swapped(model: type[BaseModel], values: Mapping[str, Any], old: Any, new: Any) -> dict[str, Any]:
    found = dict(values)
    for name in values.keys() & model.model_fields.keys():
        group, nullable = _group_of(model.model_fields[name])
        value = values[name]
        if group is None:
            continue
        if nullable and value == old:
            found[name] = new
        elif nullable and value == {}:
            found[name] = group().model_dump(mode="json")
        elif isinstance(value, Mapping):
            found[name] = _swapped(group, value, old, new)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            found[name] = [_swapped(group, each, old, new) if isinstance(each, Mapping) else each for each in value]
    return found


def _group_of(field: FieldInfo) -> tuple[type[BaseModel] | None, bool]:
    """Return the group of settings that a setting, or each item of its list, is, and whether it may be null."""
    kinds = _kinds(field.annotation)
    groups = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
    return (groups[0] if groups else None), NoneType in kinds


def _kinds(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, UnionType, Annotated, list):
        return [kind for part in get_args(annotation) for kind in _kinds(part)]
    return [annotation]
