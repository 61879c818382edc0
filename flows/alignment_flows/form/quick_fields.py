"""The optimizers in the quick form: one tab per installed optimizer, with its most important settings.

It has no nullable field. A setting that is left out, or whose value is null, keeps its value from the config file.
"""

from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from alignment_core.config import StepSettings
from alignment_core.plugin_api import AlignmentOptimizer
from alignment_core.registry import load_registry
from alignment_flows.form.fields import without_bounds, without_null
from alignment_flows.form.off_tabs import JsonSchema
from alignment_flows.form.settings import checked_by_name, plugin_tabs, settings_at_start

COMMON = ("rollouts", "learning_rate", "epochs")
"""The settings that the quick form shows of every optimizer that has them."""

OWN = 5
"""How many of an optimizer's own settings the quick form shows, in the order in which its class declares them."""


class OptimizerTabs:
    """Gives a parameter one tab per installed optimizer in the form."""

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        handler(core_schema)
        registry = load_registry()
        complete = plugin_tabs(registry, "optimizer", handler)
        classes = {plugin.name: plugin.cls for plugin in registry.plugins if plugin.kind == "optimizer"}
        drawn = {name: without_bounds(tab, handler.resolve_ref_schema) for name, tab in complete.items()}
        tabs = [_short(tab, classes[name]) for name, tab in drawn.items()]
        shown: JsonSchema = {"anyOf": sorted(tabs, key=settings_at_start)}
        return {**shown, **checked_by_name(complete, shown, lambda schema: schema)}


def quick_settings(optimizer: type[AlignmentOptimizer]) -> list[str]:
    """Return the names of the settings of an optimizer that the quick form shows."""
    declared = vars(optimizer).get("__annotations__", {})
    shared = {"name", *COMMON, *StepSettings.model_fields}
    fields = [name for name in optimizer.model_fields if name not in shared]
    own = [*(name for name in declared if name in fields), *(name for name in fields if name not in declared)]
    return ["name", *own[:OWN], *(name for name in COMMON if name in optimizer.model_fields)]


def _short(tab: JsonSchema, optimizer: type[AlignmentOptimizer]) -> JsonSchema:
    fields = {name: tab["properties"][name] for name in quick_settings(optimizer) if name in tab["properties"]}
    placed = {name: {**without_null(field), "position": at} for at, (name, field) in enumerate(fields.items())}
    return {**tab, "properties": placed, "required": ["name"]}
