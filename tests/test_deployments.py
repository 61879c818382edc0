"""The files of `deployments/`: their references exist, and Prefect, Docker and Kubernetes accept them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sysconfig
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import uuid4

import kubernetes_validate
import pytest
import yaml
from prefect.cli.deploy._models import PrefectYamlModel
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.settings.legacy import _get_settings_fields
from prefect.settings.models.root import Settings
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools.validation import validate
from prefect.utilities.templating import apply_values
from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

from alignment_flows.form.settings import read_settings
from alignment_flows.quick import quick, read_quick
from alignment_flows.serve.deployments.declared import recipe
from alignment_flows.serve.workers import POOLS

FOLDER = Path(__file__).resolve().parent.parent / "deployments"
DECLARED = yaml.safe_load((FOLDER / "prefect.yaml").read_text())
DEPLOYMENTS = {
    f"{deployment['entrypoint'].rpartition('.')[2]}/{deployment['name']}": deployment
    for deployment in DECLARED["deployments"]
}


def parameters(deployment: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters, including those that the build step adds."""
    built = [
        recipe(step["alignment_flows.serve.deployments.declared.recipe"]["name"])
        for step in deployment.get("build", ())
    ]
    given: dict[str, Any] = apply_values(deployment["parameters"], {"recipe": built[0]} if built else {})
    return given


@pytest.mark.parametrize("name", DEPLOYMENTS)
def test_deployment_starts_what_its_flow_accepts(name: str) -> None:
    deployment = DEPLOYMENTS[name]
    module, _, function = deployment["entrypoint"].rpartition(".")
    flow = getattr(import_module(module), function)
    assert flow.name == function, "`align deploy` finds a deployment by the function's name"
    assert deployment["work_pool"]["name"] in POOLS
    assert "concurrency_limit" not in deployment, "a restart of the server would end its runs"
    given = parameters(deployment)
    validate(given, parameter_schema(flow).model_dump(), raise_on_error=True)
    runs = [given, *({**given, **schedule.get("parameters", {})} for schedule in deployment.get("schedules", ()))]
    if flow is quick:
        read_quick(given["config"], given["data"], given["model"], given["optimizer"])
        return
    for run in runs if "config" in given else ():
        read_settings(run["config"], run.get("changes", ()))


def test_prefect_reads_the_file_and_every_schedule_is_off() -> None:
    PrefectYamlModel.model_validate(DECLARED)
    schedules = [schedule for deployment in DEPLOYMENTS.values() for schedule in deployment.get("schedules", ())]
    assert {"cron", "interval", "rrule"} <= {kind for schedule in schedules for kind in schedule}
    assert not any(schedule["active"] for schedule in schedules)


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("schedule", DEPLOYMENTS["align/nightly"]["schedules"], ids=lambda schedule: schedule["slug"])
def test_server_plans_the_runs_of_a_schedule_with_its_parameters(schedule: dict[str, Any]) -> None:
    """With SQLAlchemy 2.1 the server silently planned none."""
    rule = {
        part: schedule[part] for part in ("cron", "rrule", "interval", "anchor_date", "timezone") if part in schedule
    }
    active = {"schedule": rule, "active": True, "parameters": schedule.get("parameters", {})}
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow_from_name("planned"), schedule["slug"])
        client.request("POST", f"/deployments/{deployment}/schedules", json=[active]).raise_for_status()
        client.request("POST", f"/deployments/{deployment}/schedule", json={"min_runs": 3}).raise_for_status()
        chosen = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
        runs = client.read_flow_runs(deployment_filter=chosen, sort=FlowRunSort.EXPECTED_START_TIME_ASC)
    assert [run.parameters for run in runs[:3]] == [active["parameters"]] * 3
    due = [run.expected_start_time.timestamp() for run in runs[:3] if run.expected_start_time]
    apart = {"nightly": 24, "weekly-kto": 7 * 24, "every-six-hours": 6}[schedule["slug"]] * 3600
    assert [later - due[0] for later in due] == [0, apart, 2 * apart]
    assert due[0] % 3600 == 0


def test_every_card_and_every_stage_is_deployed() -> None:
    cards = ("gpu-8gb", "gpu-12gb", "gpu-16gb", "gpu-24gb")
    assert {name for card in cards for name in (f"quick/{card}", f"align/{card}-all")} <= DEPLOYMENTS.keys()
    stages = {"ingest", "sft", "sample", "rank", "reward", "reference", "optimize", "evaluate"}
    assert {f"stage/single-{stage}" for stage in stages} <= DEPLOYMENTS.keys()
    assert all(DEPLOYMENTS[f"stage/single-{stage}"]["parameters"]["until"] == stage for stage in stages)


def test_every_deployment_has_one_tag_and_a_description() -> None:
    tags = {name: deployment["tags"] for name, deployment in DEPLOYMENTS.items()}
    assert {tag for (tag,) in tags.values()} == {"start here", "everything", "stage", "retrain", "aliases", "compare"}
    first = {name for name, chosen in tags.items() if chosen == ["start here"]}
    assert first == {"demo/demo", *(name for name in DEPLOYMENTS if name.startswith("quick/"))}
    assert all(deployment["description"].endswith(".") for deployment in DEPLOYMENTS.values())


def test_container_files_refer_to_existing_files_and_settings() -> None:
    dockerfile = (FOLDER / "Dockerfile").read_text()
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE):
        assert all((FOLDER.parent / source).exists() for source in sources.split())
    compose = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    for service in compose["services"].values():
        if "build" in service:
            assert (FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    known = set(_get_settings_fields(Settings))
    named = set(
        re.findall(r"\bPREFECT_[A-Z_]+", "".join([dockerfile, *(file.read_text() for file in FOLDER.glob("compose*"))]))
    )
    assert named <= known
    assert "deployments/credentials.env" in (FOLDER.parent / ".dockerignore").read_text().split()
    assert {f"worker-{pool}" for pool in POOLS} <= compose["services"].keys()


def tool(name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment in which the tests run."""
    command = [str(Path(sysconfig.get_path("scripts")) / name), *arguments]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=FOLDER, env=environment, capture_output=True, text=True, check=False)


def test_linter_finds_nothing_in_the_dockerfile() -> None:
    linted = tool("hadolint", "--no-color", "Dockerfile")
    assert (linted.returncode, linted.stdout) == (0, ""), linted.stdout + linted.stderr


def test_docker_accepts_the_compose_file_and_asks_for_a_password() -> None:
    config = ("--file", "compose.yaml", "config", "--format", "json")
    resolved = tool("docker-compose", *config, POSTGRES_PASSWORD="a b")
    assert resolved.returncode == 0, resolved.stderr
    services = json.loads(resolved.stdout)["services"]
    assert services.keys() == {"database", "server", "deploy", "worker-gpu", "worker-cpu"}
    for name in ("server", "deploy", "worker-gpu", "worker-cpu"):
        assert services[name]["build"] == {"context": str(FOLDER.parent), "dockerfile": "deployments/Dockerfile"}
    for name in ("worker-gpu", "worker-cpu"):
        assert services[name]["depends_on"]["deploy"]["condition"] == "service_completed_successfully"
        assert [volume["target"] for volume in services[name]["volumes"]] == ["/srv/align"]
    assert services["server"]["ports"][0]["host_ip"] == "127.0.0.1"
    refused = tool("docker-compose", *config, POSTGRES_PASSWORD="")
    assert refused.returncode != 0
    assert "choose a password for the database" in refused.stderr


CLAIM = {"name": "work", "persistentVolumeClaim": {"claimName": "disk"}}


async def kubernetes_job(**values: Any) -> dict[str, Any]:
    """Return the job that Prefect's Kubernetes worker would start for a flow run."""
    template = json.loads((FOLDER / "kubernetes.json").read_text())
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == template["variables"]["properties"].keys()
    configuration = await KubernetesWorkerJobConfiguration.from_template_and_values(template, values)
    configuration.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="small · dpo"))
    assert configuration.pod_watch_timeout_seconds == 1800
    return dict(configuration.job_manifest)


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize(
    ("values", "gpus", "work"),
    [
        ({}, 1, {"name": "work", "emptyDir": {}}),
        ({"gpus": 0, "env": {"HF_HOME": "x"}, "secret": "s3", "work": CLAIM}, 0, CLAIM),
    ],
    ids=["no volume is shared", "a shared volume"],
)
def test_kubernetes_worker_makes_a_job_that_kubernetes_accepts(
    values: dict[str, Any], gpus: int, work: dict[str, Any]
) -> None:
    job = asyncio.run(kubernetes_job(**values))
    pod = job["spec"]["template"]["spec"]
    # Prefect requires these two fields at a place where Kubernetes does not know them and drops them.
    assert (pod.pop("parallelism"), pod.pop("completions")) == (1, 1)
    kubernetes_validate.validate(job, "1.31", strict=True)
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"memory": "32Gi", "nvidia.com/gpu": gpus}
    assert container["args"] == ["prefect", "flow-run", "execute"]
    given = {variable["name"]: variable["value"] for variable in container["env"]}
    assert values.get("env", {}).items() <= given.items()
    assert "PREFECT__FLOW_RUN_ID" in given
    assert [volume for volume in pod["volumes"] if volume["name"] == "work"] == [work]
    assert container["volumeMounts"][0] == {"name": "work", "mountPath": container["workingDir"]}
    secret = {"name": values.get("secret", "alignment-flows"), "optional": True}
    assert container["envFrom"] == [{"secretRef": secret}], "credentials come from a Secret, and are in no template"


def test_docker_accepts_the_worker_of_another_machine_which_shares_no_volume(tmp_path: Path) -> None:
    """`docker-compose config` resolves the file as `up` would: its schema, its variables and files of variables."""
    config = ("--file", "compose.worker.yaml", "config", "--format", "json")
    resolved = tool("docker-compose", *config, PREFECT_API_URL="http://server:4200/api", POOL="gpu-24gb")
    assert resolved.returncode == 0, resolved.stderr
    (worker,) = json.loads(resolved.stdout)["services"].values()
    assert worker["command"] == ["prefect", "worker", "start", "--pool", "gpu-24gb", "--limit", "1"]
    assert worker["environment"]["PREFECT_API_URL"] == "http://server:4200/api"
    assert [(volume["type"], volume["target"]) for volume in worker["volumes"]] == [("volume", "/srv/align")]
    assert worker["build"] == {"context": str(FOLDER.parent), "dockerfile": "deployments/Dockerfile"}
    for missing, message in (("PREFECT_API_URL", "address of the Prefect server"), ("POOL", "name the work pool")):
        given = {"PREFECT_API_URL": "http://server:4200/api", "POOL": "gpu", missing: ""}
        refused = tool("docker-compose", *config, **given)
        assert refused.returncode != 0
        assert message in refused.stderr
    # Credentials are read from a file that the repository does not have.
    folder = tmp_path / "deployments"
    folder.mkdir()
    (folder / "compose.worker.yaml").write_text((FOLDER / "compose.worker.yaml").read_text())
    (folder / "credentials.env").write_text("AWS_ACCESS_KEY_ID=id\n")
    path = str(folder / "compose.worker.yaml")
    resolved = tool("docker-compose", "--file", path, *config[2:], PREFECT_API_URL="http://server/api", POOL="gpu")
    (worker,) = json.loads(resolved.stdout)["services"].values()
    assert worker["environment"]["AWS_ACCESS_KEY_ID"] == "id"
