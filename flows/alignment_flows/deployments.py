"""What Prefect's server holds for us: the deployments of `deployments/prefect.yaml`, the work pools and the automation.

Prefect's own `deploy` command does the work, so that both ways of deploying come to the same.
"""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound
from pydantic import TypeAdapter

from alignment_core.config import PipelineConfig
from alignment_core.config_file import load_config, read_config
from alignment_core.errors import ConfigError
from alignment_core.feedback.schema import database_url, shown
from alignment_core.registry import load_registry
from alignment_flows.feedback_events import COUNTS_KEPT, RECORDED, resource_of

POOLS = {"gpu": 1, "cpu": None}
"""Work pools with the number of runs that each takes at a time: one GPU holds no two runs."""

ZOMBIE_SECONDS = 600
"""A run is taken for dead after this long without a sign of life: three heartbeats of a worker with Prefect's own
settings, twenty of ours, and longer than a server's restart."""

COUNT_DAYS = timedelta(days=30)
"""A server that keeps the count of votes for less is warned of."""

ZOMBIES = "align: end runs without a sign of life"


def shipped(name: str) -> Path:
    """A file or folder of `deployments/`: inside the installed package, or in the checkout."""
    installed = Path(__file__).parent / "deployments" / name
    return installed if installed.exists() else Path(__file__).parents[2] / "deployments" / name


def recipe(name: str) -> dict[str, Any]:
    """A step of `prefect.yaml`: the recipe `name` as `recipe.config`."""
    return {"config": form_values(shipped("configs") / f"{name}.yaml")}


def form_values(path: Path) -> dict[str, Any]:
    """The settings of a file as a form's first values.

    Variables of the environment stay as they are: the machine that runs the flow decides them.

    Raises:
        ConfigError, PluginError: a mistake in the settings.
    """
    chosen = load_registry().optimizer(load_config(path).optimizer)
    # With all of its settings, because both forms find an optimizer's tab by the settings that are given.
    return {**read_config(path), "optimizer": chosen.model_dump(mode="json")}


def deploy(configs: Sequence[Path] = ()) -> list[str]:
    """Register or refresh the work pools, the automation and the deployments; returns the deployments' names.

    Runs find relative paths in the working directory of this call. Schedules of a deployment that is there already stay
    as they were set, and its automations as they were switched.

    Args:
        configs: settings of the user's own, each to become a deployment of the pipeline, and with a gate of the
            retrain, under the run's name; none: the deployments of `prefect.yaml`.

    Raises:
        ConfigError: a mistake in the settings, or in `prefect.yaml`.
    """
    declared = yaml.safe_load(shipped("prefect.yaml").read_text(encoding="utf-8"))
    if configs:
        declared["deployments"] = [deployment for path in configs for deployment in _own(path)]
    with get_client(sync_client=True) as client:
        for pool, limit in POOLS.items():
            _ensure_pool(client, pool, limit)
        for deployment in declared["deployments"]:
            _keep_what_was_set(client, deployment)
        _ensure_zombie_automation(client)
    _run_prefect_deploy(declared)
    return [_name(deployment) for deployment in declared["deployments"]]


def count_warning() -> str | None:
    """What is to be told where the server forgets votes before there are enough of them; None where it keeps them."""
    with get_client(sync_client=True) as client:
        answer = client.request("GET", "/admin/settings")
    kept = TypeAdapter(timedelta).validate_python(answer.json()["server"]["events"]["expired_bucket_buffer"])
    if kept >= COUNT_DAYS:
        return None
    variables = " ".join(f"{name}={value}" for name, value in COUNTS_KEPT.items())
    return (
        f"the Prefect server counts only votes that come in within {kept.total_seconds():.0f} s: start it with "
        f"{variables}, or give the retrain a schedule"
    )


def _own(path: Path) -> list[dict[str, Any]]:
    """The pipeline with these settings; with a gate also the retrain, by hand and once enough votes have come in."""
    config = load_config(path)
    own = {
        "name": config.name,
        "entrypoint": "alignment_flows.pipeline.align",
        "description": f"The settings of {path.name}.",
        "work_pool": {"name": "gpu"},
        "parameters": {"config": form_values(path)},
    }
    if config.gate is None:
        return [own]
    retrain = {
        **own,
        "entrypoint": "alignment_flows.retrain.retrain",
        "description": f"Learn from the votes that came in since, with the settings of {path.name}.",
        "triggers": [_enough_votes(config)],
    }
    return [own, retrain]


def _enough_votes(config: PipelineConfig) -> dict[str, Any]:
    """Fires each time that so many votes have come in. `within: 0`: with a time it would be deaf until that is over."""
    return {
        "type": "event",
        "name": f"retrain/{config.name}: enough votes",
        "match": {"prefect.resource.id": resource_of(shown(database_url(config.feedback)))},
        "for_each": ["prefect.resource.id"],
        "expect": [RECORDED],
        "posture": "Reactive",
        "threshold": config.retrain.min_votes,
        "within": 0,
    }


def _name(deployment: dict[str, Any]) -> str:
    """`flow/deployment`; a flow is called as its function is, the last part of the entrypoint."""
    return f"{deployment['entrypoint'].rpartition('.')[2]}/{deployment['name']}"


def _keep_what_was_set(client: SyncPrefectClient, deployment: dict[str, Any]) -> None:
    """Make a declaration say what was set in the browser since: schedules, and whether an automation is switched on.

    Prefect makes a deployment's automations anew each time, those that are not declared it takes away.
    """
    try:
        known = client.read_deployment_by_name(_name(deployment))
    except ObjectNotFound:
        return
    deployment.pop("schedules", None)
    for trigger in deployment.get("triggers", ()):
        for rule in client.read_automations_by_name(trigger["name"]):
            # One of a deployment that was deleted may be left over.
            if any(getattr(action, "deployment_id", None) == known.id for action in rule.actions):
                trigger["enabled"] = rule.enabled


def _ensure_pool(client: SyncPrefectClient, name: str, limit: int | None) -> None:
    """A pool that is there already keeps what its owner set, such as another type or limit."""
    try:
        client.read_work_pool(name)
    except ObjectNotFound:
        client.create_work_pool(WorkPoolCreate(name=name, type="process", concurrency_limit=limit))


def _ensure_zombie_automation(client: SyncPrefectClient) -> None:
    """A run whose worker was killed says nothing more; without this it would be shown as running for ever."""
    ended = [f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")]
    waiting = [f"prefect.flow-run.{state}" for state in ("Paused", "Suspended", "Scheduled", "AwaitingRetry")]
    automation = AutomationCore(
        name=ZOMBIES,
        description=f"A flow run that sent no heartbeat for {ZOMBIE_SECONDS} s is Crashed: its process is gone.",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *ended, *waiting},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=ZOMBIE_SECONDS),
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"no sign of life for {ZOMBIE_SECONDS} s: the worker or its machine is gone. Retry the run: it "
                "goes on from the last checkpoint",
            )
        ],
    )
    known = client.read_automations_by_name(ZOMBIES)
    if not known:
        client.create_automation(automation)
    # One that is as it should be must be left alone: Prefect forgets the runs that a changed one had heard of, such as
    # those of a machine that died and now calls `align up`.
    elif _rule(known[0]) != _rule(automation):
        client.update_automation(known[0].id, automation)


def _rule(automation: AutomationCore) -> dict[str, Any]:
    """What an automation does, without what the server has added."""
    rule = automation.model_dump(include={"trigger": True, "actions": True, "description": True})
    rule["trigger"].pop("id", None)
    return rule


def _run_prefect_deploy(declared: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prefect.yaml"
        file.write_text(yaml.safe_dump(declared), encoding="utf-8")
        command = [sys.executable, "-P", "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join(f"  {line}" for line in (done.stdout + done.stderr).splitlines()[-20:])
        raise ConfigError("Prefect refused to deploy", where=str(shipped("prefect.yaml")), do=f"It said:\n{said}")
