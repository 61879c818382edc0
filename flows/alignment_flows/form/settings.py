"""The run form in Prefect's user interface, with every setting of every installed plugin as a typed field.

Prefect stores the form of a flow as a JSON schema when the flow is deployed, and its server validates runs against it.
Two user interfaces draw the form. Both show `anyOf` as tabs, and neither supports `oneOf` with a discriminator.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from prefect.runtime import flow_run
from pydantic import GetJsonSchemaHandler
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from alignment_core.config import PipelineConfig, StepSettings
from alignment_core.config.training import REWARD_MODEL
from alignment_core.config_file import check_config
from alignment_core.discovery.installed import Plugin
from alignment_core.own_code import GROUPS, SETTING
from alignment_core.registry import Registry, load_registry
from alignment_flows.form.fields import annotate_fields, without_bounds
from alignment_flows.form.off_tabs import JsonSchema, with_off_tab, without_off
from alignment_flows.form.parameters import warn_of_stored_secrets
from alignment_flows.form.references import resolve
from alignment_flows.form.run_names import given_name
from alignment_flows.form.trust import refuse_trust


class PluginTabs:
    """Gives each setting that chooses a plugin one tab per installed plugin in the form."""

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        body = handler.resolve_ref_schema(schema)
        annotate_fields(body, handler.resolve_ref_schema, off_tabs=True)
        for name in GROUPS:  # the group has no such field here, so the server would refuse its default
            body["properties"][name].get("default", {}).pop(SETTING, None)
        registry = load_registry()
        _choose(body, "optimizer", plugin_tabs(registry, "optimizer", handler), handler)
        _choose(body, "listeners", plugin_tabs(registry, "listener", handler), handler)
        evaluators = plugin_tabs(registry, "evaluator", handler)
        _choose(_definition(body["properties"]["reward"], handler), "by", _weighted(evaluators), handler)
        _choose(_definition(body["properties"]["rank"], handler), "by", evaluators, handler)
        _choose(_definition(body["properties"]["evaluation"], handler), "evaluators", evaluators, handler)
        return schema


PipelineForm = Annotated[PipelineConfig, PluginTabs()]
"""The settings of a run as a parameter of a flow."""


def read_settings(config: PipelineConfig | Mapping[str, Any], changes: Sequence[str]) -> PipelineConfig:
    """Validate the settings that a flow received: an object from the command line, or plain values from Prefect.

    References to blocks and variables of Prefect are replaced by their values. A secret that Prefect stores in the
    parameters of the run is warned of.

    Raises:
        ConfigError: a setting is missing, misspelled or out of range, or Prefect does not have what it refers to. Plain
            values trust the code of a model.
    """
    warn_of_stored_secrets()
    if isinstance(config, PipelineConfig):
        return resolve(check_config(config.model_dump(mode="json"), changes) if changes else config)
    settings = check_config(without_off(config), changes)
    refuse_trust(settings)
    return resolve(settings)


def run_name() -> str:
    """Return the name of the current flow run: the one that a person gave it, else one from its parameters.

    This is the name in its settings, after the stage to build if there is one.
    """
    if name := given_name():
        return name
    given = flow_run.parameters
    config = given.get("config")
    name = config.get("name") if isinstance(config, Mapping) else getattr(config, "name", None)
    return " · ".join(filter(None, [given.get("until"), str(name or PipelineConfig.model_fields["name"].default)]))


def plugin_tabs(registry: Registry, kind: str, handler: GetJsonSchemaHandler) -> dict[str, JsonSchema]:
    """Return the schema of each installed plugin of this kind by name."""
    tabs = {plugin.name: _tab(plugin, handler) for plugin in registry.plugins if plugin.kind == kind}
    return dict(sorted(tabs.items(), key=lambda item: settings_at_start(item[1])))


def settings_at_start(tab: JsonSchema) -> tuple[int, int]:
    """Return the key to sort tabs by: how many of its settings have a value at the start, and how many there are.

    A form opens the first tab that has most of the given settings. A setting whose default is null is not given. With
    fewer settings first, a plugin whose settings are a subset of another plugin's can be opened, too.
    """
    fields = tab["properties"].values()
    return sum(field.get("default") is not None for field in fields), len(fields)


def _weighted(evaluators: Mapping[str, JsonSchema]) -> dict[str, JsonSchema]:
    """Return the tabs of the judges of a reward: the reward model and every evaluator, each with a weight."""
    weight = {"type": "number", "default": 1.0, "title": "Weight", "description": "Factor on its scores."}
    name = {"type": "string", "const": REWARD_MODEL, "default": REWARD_MODEL, "title": "Name"}
    model: JsonSchema = {"title": "Reward model", "type": "object", "properties": {"name": name}, "required": ["name"]}
    model["additionalProperties"] = False
    tabs = {REWARD_MODEL: model, **evaluators}
    return {key: {**tab, "properties": {**tab["properties"], "weight": weight}} for key, tab in tabs.items()}


def _tab(plugin: Plugin, handler: GetJsonSchemaHandler) -> JsonSchema:
    try:
        schema = handler(plugin.cls.__pydantic_core_schema__)
    except PydanticInvalidForJsonSchema:
        # A setting has a type that JSON lacks. Only the name becomes a field. The other settings are edited as JSON.
        name = {"type": "string", "const": plugin.name, "default": plugin.name, "title": "Name"}
        return {"title": plugin.name, "type": "object", "properties": {"name": name}, "required": ["name"]}
    body = handler.resolve_ref_schema(schema)
    # Otherwise the server would accept a run without an optimizer, which would then fail.
    body["required"] = ["name", *(name for name in body.get("required", ()) if name != "name")]
    # The plugin's own settings come before the settings that every training has.
    own = [name for name in body["properties"] if name != "name" and name not in StepSettings.model_fields]
    body["properties"] = {name: body["properties"][name] for name in ("name", *own, *body["properties"])}
    annotate_fields(body, handler.resolve_ref_schema)
    for kind in ("evaluator", "pair_evaluator"):
        for setting in getattr(plugin.cls, f"{kind}s", ()):
            field, tabs = body["properties"][setting], list(plugin_tabs(load_registry(), kind, handler).values())
            is_list = field.get("type") == "array"
            body["properties"][setting] = {**field, "items": {"anyOf": tabs}} if is_list else with_off_tab(field, tabs)
    return body


def _choose(body: JsonSchema, setting: str, tabs: Mapping[str, JsonSchema], handler: GetJsonSchemaHandler) -> None:
    """Make a setting, or each item of a list, a choice among tabs.

    The tabs are only what the forms draw, and they accept almost any value. The actual checks are in
    `dependentSchemas`, which V1's form does not see. Both forms first ask the server whether the form's own schema
    accepts the values. If it does not, V1 shows the reason elsewhere on the page and stops silently. If it does and the
    server then rejects the run, both forms show the server's message.
    """
    if not tabs:
        return
    field = body["properties"][setting]
    listed = field.get("type") == "array"
    shown = {"anyOf": [without_bounds(tab, handler.resolve_ref_schema) for tab in tabs.values()]}
    if listed:
        field["items"] = shown
    else:
        kept = {key: field[key] for key in ("title", "description", "default", "position") if key in field}
        body["properties"][setting] = {**kept, **shown}

    def at_setting(schema: JsonSchema) -> JsonSchema:
        return {"properties": {setting: {"items": schema} if listed else schema}}

    body.setdefault("dependentSchemas", {})[setting] = checked_by_name(tabs, shown, at_setting)


def checked_by_name(
    tabs: Mapping[str, JsonSchema], shown: JsonSchema, at_setting: Callable[[JsonSchema], JsonSchema]
) -> JsonSchema:
    """Return a schema that checks the settings of the plugin with the given name, so that an error names the field.

    If a value matches no tab, the error of `anyOf` says only that. The server reports the outermost error, and an
    `anyOf` with one branch moves this error above that of the tabs.
    """
    checks: list[JsonSchema] = [{"required": ["name"], "properties": {"name": {"enum": sorted(tabs)}}}]
    for name, tab in tabs.items():
        checks.append({"if": {"required": ["name"], "properties": {"name": {"const": name}}}, "then": tab})
    placed = [at_setting(check) for check in checks]
    return {"if": at_setting(shown), "then": {"allOf": placed}, "else": {"allOf": [{"anyOf": [c]} for c in placed]}}


def _definition(schema: JsonSchema, handler: GetJsonSchemaHandler) -> JsonSchema:
    """Return the schema of the group of settings that a property holds, whether or not it is nullable."""
    for branch in schema.get("anyOf", [schema]):
        if "$ref" in branch:
            return handler.resolve_ref_schema(branch)
    return schema
