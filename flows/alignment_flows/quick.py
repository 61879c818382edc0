"""The pipeline with a short form: the settings that change most often. All others are from a config file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from prefect.runtime import flow_run
from pydantic import Field

from alignment_core.config import ANOTHER_BASE, PipelineConfig
from alignment_core.config_file import check_config, load_config, read_config
from alignment_core.execution.build import StageResult
from alignment_flows.form.parameters import secret_flow, warn_of_stored_secrets
from alignment_flows.form.quick_fields import OptimizerTabs
from alignment_flows.form.recipes import config_file
from alignment_flows.form.references import resolve
from alignment_flows.form.run_names import given_name
from alignment_flows.pipeline import run_pipeline
from alignment_flows.tasks import without_traceback

DEVICE = r"^(auto|cpu|cuda(:\d+)?)?$"


def quick_name() -> str:
    """Return the name of the current flow run: the one that a person gave it, else one from its parameters."""
    given = flow_run.parameters
    return given_name() or str(given.get("name") or Path(str(given.get("config"))).stem)


@secret_flow(name="quick", flow_run_name=quick_name, persist_result=False, validate_parameters=False)
@without_traceback
def quick(
    *,
    name: str = "",
    data: Sequence[str] = (),
    model: str = "",
    optimizer: Annotated[dict[str, Any], OptimizerTabs()] = {},  # noqa: B006 (Prefect needs the value, not a factory)
    card: Annotated[str, Field(pattern=DEVICE)] = "",
    memory_gb: Annotated[float, Field(ge=0)] = 0,
    config: str,
) -> dict[str, StageResult]:
    """Train an aligned adapter for a language model from raw human feedback, with few settings.

    Args:
        name: Name of the run. Empty: the name in the config file.
        data: Files, folders, globs, URLs, or data sets on the Hub (hf://OWNER/NAME). Empty: as in the config file.
        model: Base model: a folder in Hugging Face format or a Hub id. Empty: as in the config file.
        optimizer: How the model learns from the feedback.
        card: Device to run on: auto, cpu, cuda or cuda:N. Empty: as in the config file.
        memory_gb: Memory in GiB that a stage may plan to use. 0: as in the config file, or 90 % of what is free.
        config: Source of all other settings: the name of a recipe, or the path of a config file.
    """
    warn_of_stored_secrets()
    settings = read_quick(config, data, model, optimizer, name=name, device=card, memory_gb=memory_gb)
    return run_pipeline(settings)


def read_quick(
    config: str,
    data: Sequence[str] | None = None,
    model: str | None = None,
    optimizer: Mapping[str, Any] | None = None,
    **chosen: Any,
) -> PipelineConfig:
    """Return the settings of a config file with the values of the quick form. Empty values change nothing.

    Sources that the file has, too, keep their other settings. So does the optimizer, if it is the one in the file.

    Args:
        config: the name of a recipe, or the path of a config file.
        data: paths of the sources.
        model: the base model.
        optimizer: its name and settings.
        chosen: other settings at the top level.

    Raises:
        ConfigError: there is no such config file, or a setting is missing, misspelled or out of range.
    """
    path = config_file(config)
    file = load_config(path)
    raw = read_config(path)
    if data:
        raw["data"]["sources"] = _sources(raw["data"]["sources"], data)
    if model and model != raw["model"]["base"]:
        raw["model"] |= {"base": model, **ANOTHER_BASE}
    if given := {setting: value for setting, value in (optimizer or {}).items() if value is not None}:
        same = given.get("name", file.optimizer["name"]) == file.optimizer["name"]
        raw["optimizer"] = {**file.optimizer, **given} if same else given
    raw |= {setting: value for setting, value in chosen.items() if value}
    return resolve(check_config(raw, file=path))


def _sources(known: Sequence[Mapping[str, Any]], data: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return a source for each of the data, or all sources of the config file that read the same."""
    found = [[source for source in known if source["path"] == entry] or [{"path": entry}] for entry in data]
    return [source for sources in found for source in sources]
