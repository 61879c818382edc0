"""Describe the settings of a plugin, for tables, forms and the reference."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import or_
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from alignment_core.plugin_api import AlignmentOptimizer


def example_of(cls: type[AlignmentOptimizer]) -> AlignmentOptimizer:
    """Return the optimizer with its defaults and the settings of its `example`.

    Required settings that `example` does not give are absent. Only an attempt to read them fails.
    """
    try:
        return cls.model_validate(cls.example)
    except ValidationError:
        return cls.model_construct(**cls.example)


def choices_of(optimizer: AlignmentOptimizer, settings: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield what these settings choose, each with its place: `judge`, or `objectives.0` in a list."""
    for setting in settings:
        value = getattr(optimizer, setting)
        if isinstance(value, list | tuple):
            yield from ((f"{setting}.{index}", each) for index, each in enumerate(value))
        elif value is not None:
            yield setting, value


def describe_settings(model: type) -> Iterator[dict[str, Any]]:
    """Describe each field of a model as plain JSON: name, type with bounds, default and description."""
    for name, field in getattr(model, "model_fields", {}).items():
        default = None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
        yield {
            "name": name,
            "type": ", ".join([type_name(field.annotation), *filter(None, map(bound, field.metadata))]),
            "required": field.is_required(),
            "default": to_jsonable_python(default, fallback=str),
            "description": field.description or "",
        }


def type_name(annotation: Any) -> str:
    return inspect.formatannotation(_bare(annotation)).replace("typing.", "")


def _bare(annotation: Any) -> Any:
    """Return the type with all `Annotated` metadata removed, also from its type arguments."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _bare(parts[0])
    if origin in (list, dict, tuple, set):
        return origin[tuple(map(_bare, parts))]
    return reduce(or_, map(_bare, parts)) if origin in (Union, UnionType) else annotation


def bound(constraint: Any) -> str:
    """Format a constraint of annotated-types, for example `> 0`. A function that checks a value has no name here."""
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "min_length": "length ≥", "max_length": "length ≤"}
    if hasattr(constraint, "func"):
        return ""
    for attribute, sign in signs.items():
        if hasattr(constraint, attribute):
            return f"{sign} {getattr(constraint, attribute):g}"
    return str(constraint)
