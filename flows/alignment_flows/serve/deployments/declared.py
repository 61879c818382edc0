"""What a deployment of this project declares: the fields that `prefect deploy` would send to the server."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml
from prefect import Flow
from prefect.client.schemas.schedules import SCHEDULE_TYPES
from prefect.utilities.templating import apply_values
from pydantic import TypeAdapter

from alignment_core.config import PipelineConfig
from alignment_core.config_file import load_config, read_config
from alignment_core.feedback.database import database_url, without_password
from alignment_core.own_code import trusted
from alignment_core.registry import load_registry
from alignment_flows.form.off_tabs import with_off
from alignment_flows.form.quick_fields import quick_settings
from alignment_flows.form.recipes import config_file, packaged_file
from alignment_flows.form.references import resolve
from alignment_flows.serve.vote_events import RECORDED, resource_of

_SCHEDULE: TypeAdapter[Any] = TypeAdapter(SCHEDULE_TYPES)
RULE = ("cron", "day_or", "interval", "anchor_date", "rrule", "timezone")


@dataclass(frozen=True)
class Declaration:
    """A deployment as it is declared.

    Attributes:
        name: `flow/deployment`.
        fixed: fields of the deployment that only a deploy sets, by their names in Prefect's API.
        settings: what a person can change on the server, too. `schedules` and `triggers` are by name.
    """

    name: str
    fixed: dict[str, Any]
    settings: dict[str, Any]

    @property
    def flow(self) -> str:
        """Name of its flow."""
        return self.name.partition("/")[0]


@cache
def recipe(name: str) -> dict[str, Any]:
    """Provide the recipe `name` to `prefect.yaml`. This is a build step of a deployment.

    `recipe.config` holds the settings for the complete form, and `recipe.quick` all values of the quick form.
    """
    path = config_file(name)
    return {"config": form_values(path), "quick": quick_values(path, name)}


def form_values(path: Path) -> dict[str, Any]:
    """Return the settings of a config file as initial values of the run form.

    Environment variables are not expanded here, but on the machine that runs the flow.

    Raises:
        ConfigError, PluginError: a setting is wrong.
    """
    chosen = load_registry().optimizer(load_config(path).optimizer)
    # Includes the defaults, because both forms find the optimizer's tab by the settings that are present. The form has
    # no null where it is the default.
    values = chosen.model_dump(mode="json")
    unset = {name for name, field in type(chosen).model_fields.items() if field.default is values[name] is None}
    shown = {name: values[name] for name in values if name not in unset}
    return with_off({**read_config(path), "optimizer": shown})


def quick_values(path: Path, config: str) -> dict[str, Any]:
    """Return the settings of a config file as initial values of the quick form.

    Args:
        path: the config file.
        config: how the form refers to it.

    Raises:
        ConfigError, PluginError: a setting is wrong.
    """
    raw, settings = read_config(path), load_config(path)
    chosen = load_registry().optimizer(settings.optimizer)
    values = chosen.model_dump(mode="json", exclude_none=True)
    return {
        "name": settings.name,
        "data": list(dict.fromkeys(source["path"] for source in raw["data"]["sources"])),
        "model": raw["model"]["base"],
        "optimizer": {name: values[name] for name in quick_settings(type(chosen)) if name in values},
        "card": raw.get("device", "auto"),
        "memory_gb": settings.memory_gb or 0,
        "config": config,
    }


def packaged() -> list[Declaration]:
    """Return the deployments of `prefect.yaml`.

    Raises:
        ConfigError, PluginError: a setting of a recipe is wrong.
    """
    declared = yaml.safe_load(packaged_file("prefect.yaml").read_text(encoding="utf-8"))
    return [_declaration(apply_values(entry, _built(entry))) for entry in declared["deployments"]]


def own(path: Path) -> list[Declaration]:
    """Declare two deployments with these settings, with the complete form and with the quick one.

    If the settings have a gate, a deployment of the retrain is declared, too. Settings that trust the code of a model
    are declared with the quick form alone, whose runs read the file.

    Raises:
        ConfigError, PluginError: a setting is wrong.
    """
    config = load_config(path)
    pipeline = {
        "name": config.name,
        "entrypoint": "alignment_flows.pipeline.align",
        "description": f"The pipeline with the settings of {path.name}. Every setting is in the form.",
        "tags": ["everything"],
        # A flow that waits for its optimizer in another pool must not hold a card.
        "work_pool": {"name": "cpu" if "optimize" in config.where else "gpu"},
        "parameters": {"config": form_values(path)},
    }
    quick = {
        **pipeline,
        "entrypoint": "alignment_flows.quick.quick",
        "description": f"The pipeline with the settings of {path.name}. The form is short.",
        "tags": ["start here"],
        "parameters": quick_values(path, str(path.resolve())),
    }
    if trusted(config):
        return [_declaration(quick)]
    if config.gate is None:
        return [_declaration(pipeline), _declaration(quick)]
    retrain = {
        **pipeline,
        "entrypoint": "alignment_flows.retraining.retrain",
        "description": f"Retrain on the new votes with the settings of {path.name}.",
        "tags": ["retrain"],
        "triggers": [_enough_votes(config)],
    }
    return [_declaration(pipeline), _declaration(quick), _declaration(retrain)]


def stages_in(pool: str) -> Declaration:
    """Declare the deployment that runs stages in a work pool, for runs with the setting `where`.

    Its runs start in the folder in which the worker was started: the machines of a pool need no folder in common.
    """
    entry = {
        "name": pool,
        "entrypoint": "alignment_flows.moved_stage.build_moved",
        "description": f"Builds the stages that runs with the setting `where` have in the work pool {pool}.",
        "tags": ["stage"],
        "work_pool": {"name": pool},
        "parameters": {},
    }
    declared = _declaration(entry)
    return replace(
        declared,
        fixed={**declared.fixed, "pull_steps": []},
        settings={**declared.settings, "job_variables": {"working_dir": "."}},
    )


def pools_of(path: Path) -> list[str]:
    """Return the work pools in which a config file lets stages run.

    Raises:
        ConfigError: a setting is wrong.
    """
    return sorted(set(load_config(path).where.values()))


def _enough_votes(config: PipelineConfig) -> dict[str, Any]:
    """Declare a trigger that fires after every `retrain.min_votes` votes.

    `within` is 0, because with a time window the trigger would ignore events until the window is over.
    """
    return {
        "type": "event",
        "name": f"retrain/{config.name}: enough votes",
        "match": {"prefect.resource.id": resource_of(without_password(database_url(resolve(config).feedback)))},
        "for_each": ["prefect.resource.id"],
        "expect": [RECORDED],
        "posture": "Reactive",
        "threshold": config.retrain.min_votes,
        "within": 0,
    }


def _built(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Run the build step of an entry of `prefect.yaml`, the only kind that the file has, and return its results."""
    return {
        arguments["id"]: recipe(arguments["name"]) for step in entry.get("build", ()) for arguments in step.values()
    }


def _declaration(entry: Mapping[str, Any]) -> Declaration:
    """Return the fields that `prefect deploy` would send for an entry of `prefect.yaml`."""
    module, _, function = entry["entrypoint"].rpartition(".")
    flow: Flow[..., Any] = getattr(import_module(module), function)
    here = {"prefect.deployments.steps.set_working_directory": {"directory": str(Path.cwd().resolve())}}
    return Declaration(
        name=f"{flow.name}/{entry['name']}",
        fixed={
            "entrypoint": entry["entrypoint"],
            "parameter_openapi_schema": flow.parameters.model_dump(mode="json", exclude_unset=True),
            "pull_steps": [here],
            "version": flow.version,
        },
        settings={
            "concurrency_limit": None,
            "description": entry["description"],
            "enforce_parameter_schema": True,
            "job_variables": {},
            "parameters": entry["parameters"],
            "paused": False,
            "tags": entry.get("tags", []),
            "work_queue": {"pool": entry["work_pool"]["name"], "queue": "default"},
            "schedules": _schedules(entry.get("schedules", ())),
            "triggers": {trigger["name"]: trigger for trigger in entry.get("triggers", ())},
        },
    )


def _schedules(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the schedules by their names, in the words of Prefect's API."""
    return {
        entry["slug"]: {
            "schedule": _SCHEDULE.validate_python({part: entry[part] for part in RULE if part in entry}).model_dump(
                mode="json"
            ),
            "active": entry.get("active", True),
            "parameters": entry.get("parameters", {}),
        }
        for entry in entries
    }
