"""The run form in Prefect's UI: every setting of every installed plugin as a typed field.

Prefect keeps a flow's form as a JSON schema, made when the flow is deployed, and its server checks a run against it.
Two user interfaces draw it. Both make tabs of `anyOf`, and neither understands `oneOf` with a discriminator.
"""

from collections.abc import Callable, Mapping, Sequence
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
from alignment_flows.form_fields import JsonSchema, drawn, dress


class PluginTabs:
    """Annotates the settings of a run: where they choose a plugin, the form has one tab for each installed one."""

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        body = handler.resolve_ref_schema(schema)
        dress(body, handler.resolve_ref_schema)
        registry = load_registry()
        _choose(body, "optimizer", _tabs(registry, "optimizer", handler), handler)
        _choose(body, "listeners", _tabs(registry, "listener", handler), handler)
        evaluators = _tabs(registry, "evaluator", handler)
        _choose(_definition(body["properties"]["rank"], handler), "by", evaluators, handler)
        _choose(_definition(body["properties"]["evaluation"], handler), "evaluators", evaluators, handler)
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
    tabs = {plugin.name: _tab(plugin, handler) for plugin in registry.plugins if plugin.kind == kind}
    # A form opens at the first tab that knows most of the given settings: the one that knows fewest others must come
    # first, or a plugin whose settings are a part of another's could never be opened.
    return dict(sorted(tabs.items(), key=lambda item: len(item[1]["properties"])))


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
    dress(body, handler.resolve_ref_schema)
    return body


def _choose(body: JsonSchema, setting: str, tabs: Mapping[str, JsonSchema], handler: GetJsonSchemaHandler) -> None:
    """Make a setting, or each item of a list, a choice among tabs.

    The tabs are what the forms draw, and refuse hardly anything; what is checked stands beside them, in a place that
    V1's form leaves out. Both forms first ask the server whether the form's own schema takes the values. If it does
    not, V1 shows the reason somewhere on the page and stops there without a word; if it does, and the server then
    refuses the run, both forms show what the server says.
    """
    if not tabs:
        return
    field = body["properties"][setting]
    listed = field.get("type") == "array"
    shown = {"anyOf": [drawn(tab, handler.resolve_ref_schema) for tab in tabs.values()]}
    if listed:
        field["items"] = shown
    else:
        kept = {key: field[key] for key in ("title", "description", "default", "position") if key in field}
        body["properties"][setting] = {**kept, **shown}

    def at_setting(schema: JsonSchema) -> JsonSchema:
        return {"properties": {setting: {"items": schema} if listed else schema}}

    body.setdefault("dependentSchemas", {})[setting] = _checked_by_name(tabs, shown, at_setting)


def _checked_by_name(
    tabs: Mapping[str, JsonSchema], shown: JsonSchema, at_setting: Callable[[JsonSchema], JsonSchema]
) -> JsonSchema:
    """The chosen plugin's schema: the name decides which is meant, so that an error names the field.

    Of a value that fits no tab, `anyOf` says only that, and the server tells of the outermost error: an `anyOf` of one
    lifts this above the tabs'.
    """
    checks: list[JsonSchema] = [{"required": ["name"], "properties": {"name": {"enum": sorted(tabs)}}}]
    for name, tab in tabs.items():
        checks.append({"if": {"required": ["name"], "properties": {"name": {"const": name}}}, "then": tab})
    placed = [at_setting(check) for check in checks]
    return {"if": at_setting(shown), "then": {"allOf": placed}, "else": {"allOf": [{"anyOf": [c]} for c in placed]}}


def _definition(schema: JsonSchema, handler: GetJsonSchemaHandler) -> JsonSchema:
    """The group of settings that a property holds, whether it may be null or not."""
    for branch in schema.get("anyOf", [schema]):
        if "$ref" in branch:
            return handler.resolve_ref_schema(branch)
    return schema
