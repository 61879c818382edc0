"""Every setting with every kind of wrong value is one paragraph that names the setting. Generated from the schema."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

from alignment_core.config import PipelineConfig
from alignment_core.config_file import check_config
from alignment_core.errors import ConfigError

BASE: dict[str, Any] = {
    "model": {"base": "x"},
    "data": {"sources": [{"path": "y"}]},
    "evaluation": {"endpoint": {"url": "http://localhost/v1", "model": "m"}, "lm_eval": {"tasks": ["t"]}},
    "rank": {"by": {"name": "judge"}},
}
FREE = {"optimizer", "listeners", "evaluation.evaluators", "rank.by"}
"""Settings of plugins, which are checked with the plugin."""
TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
VALUES: dict[str, Any] = {
    "text": "no such value",
    "empty text": "",
    "a switch": True,
    "a whole number": 7,
    "a fraction": 0.123,
    "a list": [[1]],
    "a mapping": {"no such key": 1},
    "an empty mapping": {},
}
ALWAYS_WRONG: dict[str, Any] = {
    "not a number": math.nan,
    "infinite": math.inf,
    "minus infinite": -math.inf,
    "too large": 2**70,
    "NUL": "a\0b",
}


def variants(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the alternatives of a schema, without references."""
    if "$ref" in schema:
        yield from variants(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    elif "anyOf" in schema:
        for one in schema["anyOf"]:
            yield from variants(one, definitions)
    else:
        yield schema


def settings(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], above: str = ""
) -> Iterator[tuple[str, list[Any]]]:
    """Yield the dotted path and the alternatives of every setting."""
    for name, field in schema.get("properties", {}).items():
        path, found = f"{above}{name}", list(variants(field, definitions))
        yield path, found
        for one in found:
            if path in FREE:
                continue
            yield from settings(one, definitions, f"{path}.")
            for item in variants(one.get("items", {}), definitions):
                yield from settings(item, definitions, f"{path}.0.")


def wrong_values(found: list[Any]) -> Iterator[tuple[str, Any]]:
    types = {one.get("type") for one in found} | {TYPES[type(one["const"])] for one in found if "const" in one}
    for name, value in VALUES.items():
        kind = TYPES[type(value)]
        fits = kind in types or (kind == "integer" and "number" in types)
        # Words for switches and whole numbers: YAML 1.1 and people write them in several ways.
        alike = {kind, *types} >= {"boolean", "integer"} or {kind, *types} >= {"boolean", "number"}
        if not fits and not alike:
            yield name, value
    yield from ALWAYS_WRONG.items()
    for one in found:
        for bound, step in (("minimum", -1), ("exclusiveMinimum", 0), ("maximum", 1), ("exclusiveMaximum", 0)):
            if bound in one and abs(one[bound]) < 2**53:
                yield f"beyond {bound}", one[bound] + step
        if one.get("minLength"):
            yield "too short", ""
        if one.get("minItems"):
            yield "too few", []
        if "enum" in one:
            yield "unknown choice", "no such choice"


def cases() -> Iterator[tuple[str, str, Any]]:
    schema = PipelineConfig.model_json_schema()
    for path, found in settings(schema, schema["$defs"]):
        for name, value in wrong_values(found):
            yield path, name, value


def with_value(path: str, value: Any) -> dict[str, Any]:
    raw: Any = deepcopy(BASE)
    place = raw
    *parents, last = path.split(".")
    for part in parents:
        if isinstance(place, list):
            place = place[int(part)]
            continue
        if place.get(part) is None:
            place[part] = {}
        place = place[part]
    place[last] = value
    return raw


def test_every_wrong_value_names_its_setting() -> None:
    count, wrong = 0, []
    for path, name, value in cases():
        count += 1
        try:
            check_config(with_value(path, value))
        except ConfigError as error:
            if path not in str(error) or error.exit_code != 2:
                wrong.append(f"{path} ({name}): {error}")
        except Exception as error:
            wrong.append(f"{path} ({name}): {error!r}")
        else:
            wrong.append(f"{path} ({name}): accepted")
    assert not wrong, "\n".join(wrong)
    assert count > 500
