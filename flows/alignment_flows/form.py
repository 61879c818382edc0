"""The run form in Prefect's UI: every setting of every installed plugin as a typed field.

Prefect keeps a flow's form as a JSON schema, made when the flow is deployed, and its server checks a run against it.
Two user interfaces draw it. Both make tabs of `anyOf`, and neither understands `oneOf` with a discriminator.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from prefect.runtime import flow_run
from pydantic import GetJsonSchemaHandler
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from alignment_core.config import PipelineConfig, StepSettings
from alignment_core.config_file import check_config
from alignment_core.installed import Plugin
from alignment_core.registry import Registry, load_registry

JsonSchema = dict[str, Any]


class PluginTabs:
    """Annotates the settings of a run: where they choose a plugin, the form has one tab for each installed one."""

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        body = handler.resolve_ref_schema(schema)
        registry = load_registry()
        optimizers = _tabs(registry, "optimizer", handler)
        evaluators = _tabs(registry, "evaluator", handler)
        listeners = _tabs(registry, "listener", handler)
        body["properties"]["optimizer"] = {**_said_of(body, "optimizer"), "anyOf": list(optimizers.values())}
        body["dependentSchemas"] = {"optimizer": _checked_by_name("optimizer", optimizers)}
        if evaluators:
            rank = _definition(body["properties"]["rank"], handler)
            rank["properties"]["by"] = {**_said_of(rank, "by"), "anyOf": list(evaluators.values())}
            evaluation = _definition(body["properties"]["evaluation"], handler)
            evaluation["properties"]["evaluators"]["items"] = {"anyOf": list(evaluators.values())}
        if listeners:
            body["properties"]["listeners"]["items"] = {"anyOf": list(listeners.values())}
        _name_everything(body, handler)
        return schema


PipelineForm = Annotated[PipelineConfig, PluginTabs()]
"""The settings of a run, as a parameter of a flow."""


def settings_of(config: PipelineConfig | Mapping[str, Any], changes: Sequence[str]) -> PipelineConfig:
    """What a flow was given as settings, checked: the command line gives them whole, Prefect as plain values.

    Raises:
        ConfigError: a setting is missing, misspelt or out of range.
    """
    if isinstance(config, PipelineConfig):
        if not changes:
            return config
        config = config.model_dump(mode="json")
    return check_config(config, changes)


def run_name() -> str:
    """The name of the flow run that is starting: the one in its settings, and the stage it stops at, if at one."""
    given = flow_run.parameters
    config = given.get("config")
    name = config.get("name") if isinstance(config, Mapping) else getattr(config, "name", None)
    return " · ".join(filter(None, [given.get("until"), str(name or PipelineConfig.model_fields["name"].default)]))


def _tabs(registry: Registry, kind: str, handler: GetJsonSchemaHandler) -> dict[str, JsonSchema]:
    """The settings of each installed plugin of this kind, by its name."""
    tabs: dict[str, tuple[int, JsonSchema]] = {}
    for plugin in registry.plugins:
        if plugin.kind == kind:
            tab = _tab(plugin, handler)
            tabs[plugin.name] = (len(handler.resolve_ref_schema(tab)["properties"]), tab)
    # A form opens at the first tab that knows most of the given settings: the one that knows fewest others must come
    # first, or a plugin whose settings are a part of another's could never be opened.
    return {name: tab for name, (_, tab) in sorted(tabs.items(), key=lambda item: item[1][0])}


def _tab(plugin: Plugin, handler: GetJsonSchemaHandler) -> JsonSchema:
    try:
        schema = handler(plugin.cls.__pydantic_core_schema__)
    except PydanticInvalidForJsonSchema:
        # A setting of a type that JSON does not know: only the name is a field, the rest can be given as JSON.
        name = {"type": "string", "const": plugin.name, "default": plugin.name, "title": "Name"}
        return {"title": plugin.name, "type": "object", "properties": {"name": name}, "required": ["name"]}
    body = handler.resolve_ref_schema(schema)
    # Without it the server would take a run that names no optimizer, and the run would fail.
    body["required"] = ["name", *(name for name in body.get("required", ()) if name != "name")]
    # What is the plugin's own before what every training has.
    own = [name for name in body["properties"] if name != "name" and name not in StepSettings.model_fields]
    body["properties"] = {name: body["properties"][name] for name in ("name", *own, *body["properties"])}
    return schema


def _checked_by_name(setting: str, tabs: Mapping[str, JsonSchema]) -> JsonSchema:
    """The chosen plugin's schema once more, in a place that only the server reads.

    Of a value that fits no tab, `anyOf` says only that. Here the name decides which schema is meant, so that the
    error names the field. The server tells of the outermost error: an `anyOf` of one lifts this above the tabs'.
    """
    named = {"required": ["name"], "properties": {"name": {"enum": sorted(tabs)}}}
    checks: list[JsonSchema] = [{"properties": {setting: named}}]
    for name, tab in tabs.items():
        chosen = {"properties": {setting: {"properties": {"name": {"const": name}}}}}
        checks.append({"if": chosen, "then": {"properties": {setting: tab}}})
    return {"allOf": [{"anyOf": [check]} for check in checks]}


def _definition(schema: JsonSchema, handler: GetJsonSchemaHandler) -> JsonSchema:
    """The group of settings that a property holds, whether it may be null or not."""
    for branch in schema.get("anyOf", [schema]):
        if "$ref" in branch:
            return handler.resolve_ref_schema(branch)
    return schema


def _said_of(body: JsonSchema, name: str) -> JsonSchema:
    return {key: value for key, value in body["properties"][name].items() if key in ("description", "default")}


def _name_everything(body: JsonSchema, handler: GetJsonSchemaHandler) -> None:
    """Titles where pydantic gives none, and the order of the fields, which a database need not keep."""
    body["title"] = body.get("title", "").removesuffix("Config")
    for position, (name, schema) in enumerate(body.get("properties", {}).items()):
        schema.setdefault("title", name.replace("_", " ").title())
        schema["position"] = position
        for branch in (*schema.get("anyOf", ()), schema.get("items", {}), schema):
            for inner in (branch, *branch.get("anyOf", ())):
                group = handler.resolve_ref_schema({"$ref": inner["$ref"]}) if "$ref" in inner else inner
                if "properties" in group:
                    _name_everything(group, handler)
