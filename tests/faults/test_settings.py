"""Every setting with every kind of wrong value is one paragraph that names the setting. Generated from the schema."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel

from alignment_core.config import PipelineConfig
from alignment_core.config_file import check_config
from alignment_core.errors import AlignmentError, ConfigError
from alignment_core.registry import load_registry

BASE: dict[str, Any] = {
    "model": {"base": "x"},
    "data": {"sources": [{"path": "y"}]},
    "evaluation": {"endpoint": {"url": "http://localhost/v1", "model": "m"}, "lm_eval": {"tasks": ["t"]}},
    "rank": {"by": {"name": "judge"}},
    "reward": {"by": [{"name": "reward_model"}]},
    "listeners": [{"name": "jsonl"}],
}
FREE = {"optimizer", "listeners", "evaluation.evaluators", "rank.by"}
"""Settings of plugins, which are checked with the plugin."""
PLACES = {"optimizer": "optimizer", "evaluator": "reward.by.0", "listener": "listeners.0"}
"""Where a plugin of each kind is chosen."""
NOT_IN_FORMS = {"model.trust_remote_code": {"type": "boolean"}, "reward.trust_remote_code": {"type": "boolean"}}
"""Settings that the schema leaves out."""
NEEDED: dict[str, dict[str, Any]] = {"tracker": {"to": "mlflow"}, "llm_judge": {"url": "http://h/v1", "model": "m"}}
"""Settings without a default."""
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
        if "maxLength" in one:
            yield "too long", "a" * (one["maxLength"] + 1)
        if "enum" in one:
            yield "unknown choice", "no such choice"


def settings_of(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Yield the dotted path of every setting from the models themselves."""

    def inside(annotation: Any, path: str) -> Iterator[str]:
        parts = get_args(annotation)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from settings_of(annotation, f"{path}.")
        elif get_origin(annotation) is Annotated:
            yield from inside(parts[0], path)
        else:
            for part in parts:
                yield from inside(part, f"{path}.0" if get_origin(annotation) is list else path)

    for name, field in model.model_fields.items():
        yield f"{above}{name}"
        yield from inside(field.annotation, f"{above}{name}")


def cases() -> Iterator[tuple[str, str, Any]]:
    schema = PipelineConfig.model_json_schema()
    found = [*settings(schema, schema["$defs"]), *((path, [kind]) for path, kind in NOT_IN_FORMS.items())]
    for path, kinds in found:
        for name, value in wrong_values(kinds):
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
    if isinstance(place, list):
        place[int(last)] = value
    else:
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
    assert {path for path, _, _ in cases()} == set(settings_of(PipelineConfig))


def test_every_wrong_value_of_a_plugin_names_its_setting() -> None:
    """The settings of plugins are checked with what no number and no text can be, and then by the plugins."""
    registry, count, wrong = load_registry(), 0, []
    for plugin in registry.plugins:
        if (place := PLACES.get(plugin.kind)) is None:
            continue
        schema = plugin.cls.model_json_schema()
        for name, field in schema["properties"].items():
            found = list(variants(field, schema.get("$defs", {})))
            for what, value in wrong_values(found) if name != "name" else ():
                count += 1
                raw: Any = {"name": plugin.name, **NEEDED.get(plugin.name, {}), name: value}
                path = f"{place}.{name}"
                try:
                    config = check_config(with_value(place, raw))
                    registry.optimizer(raw) if place == "optimizer" else getattr(registry, plugin.kind)(raw, place)
                except AlignmentError as error:
                    if path not in str(error) or error.exit_code != 2:
                        wrong.append(f"{path} of {plugin.name} ({what}): {error}")
                except Exception as error:
                    wrong.append(f"{path} of {plugin.name} ({what}): {error!r}")
                else:
                    wrong.append(f"{path} of {plugin.name} ({what}): accepted in {config.name}")
    assert not wrong, "\n".join(wrong)
    assert count > 500
