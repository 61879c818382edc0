"""The files of `deployments/`: what they name exists, and what they would start is accepted."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.cli.deploy._models import PrefectYamlModel
from prefect.settings.legacy import _get_settings_fields
from prefect.settings.models.root import Settings
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate

from alignment_flows.deployments import POOLS, recipe
from alignment_flows.form import settings_of

FOLDER = Path(__file__).resolve().parent.parent / "deployments"
DECLARED = yaml.safe_load((FOLDER / "prefect.yaml").read_text())
DEPLOYMENTS = {deployment["name"]: deployment for deployment in DECLARED["deployments"]}


def parameters(deployment: dict[str, Any]) -> dict[str, Any]:
    """The parameters with what the build step puts into them."""
    given = dict(deployment["parameters"])
    if given.get("config") == "{{ recipe.config }}":
        (step,) = deployment["build"]
        given |= recipe(step["alignment_flows.deployments.recipe"]["name"])
    return given


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_deployment_starts_what_its_flow_accepts(name: str) -> None:
    deployment = DEPLOYMENTS[name]
    module, _, function = deployment["entrypoint"].rpartition(".")
    flow = getattr(import_module(module), function)
    assert flow.name == function, "`align deploy` finds a deployment by the function's name"
    assert deployment["work_pool"]["name"] in POOLS
    given = parameters(deployment)
    validate(given, parameter_schema(flow).model_dump(), raise_on_error=True)
    runs = [given, *({**given, **schedule.get("parameters", {})} for schedule in deployment.get("schedules", ()))]
    for run in runs if "config" in given else ():
        settings_of(run["config"], run.get("changes", ()))


def test_prefect_reads_the_file_and_every_schedule_is_off() -> None:
    PrefectYamlModel.model_validate(DECLARED)
    schedules = [schedule for deployment in DEPLOYMENTS.values() for schedule in deployment.get("schedules", ())]
    assert {"cron", "interval", "rrule"} <= {kind for schedule in schedules for kind in schedule}
    assert not any(schedule["active"] for schedule in schedules)


def test_every_card_and_every_stage_is_deployed() -> None:
    assert {"gpu-8gb", "gpu-12gb", "gpu-16gb", "gpu-24gb"} <= DEPLOYMENTS.keys()
    stages = {"ingest", "sft", "sample", "rank", "reward", "reference", "optimize", "evaluate"}
    assert stages <= DEPLOYMENTS.keys()
    assert all(DEPLOYMENTS[stage]["parameters"]["until"] == stage for stage in stages)


def test_container_files_name_what_exists() -> None:
    dockerfile = (FOLDER / "Dockerfile").read_text()
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE):
        assert all((FOLDER.parent / source).exists() for source in sources.split())
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    for service in compose["services"].values():
        if "build" in service:
            assert (FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    known = set(_get_settings_fields(Settings))
    named = set(re.findall(r"\bPREFECT_[A-Z_]+", dockerfile + (FOLDER / "compose.yaml").read_text()))
    assert named <= known
    assert {f"worker-{pool}" for pool in POOLS} <= compose["services"].keys()


def test_kubernetes_template_fills_in_what_it_declares() -> None:
    template = json.loads((FOLDER / "kubernetes.json").read_text())
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == template["variables"]["properties"].keys()
