"""The automations on the server: those of deployments, and the one that ends runs without a sign of life."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events import DeploymentTriggerTypes
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import Automation, AutomationCore, EventTrigger, Posture
from pydantic import TypeAdapter

ZOMBIE_SECONDS = 600
"""A run without a heartbeat for this long is marked as crashed. This is three heartbeats at Prefect's default
frequency, twenty at ours, and longer than a restart of the server."""

ZOMBIES = "align: end runs without a sign of life"

_TRIGGER: TypeAdapter[DeploymentTriggerTypes] = TypeAdapter(DeploymentTriggerTypes)


def ensure_zombie_automation(client: SyncPrefectClient) -> None:
    """Register the automation that marks runs without a heartbeat as crashed.

    Otherwise a run whose worker was killed would be shown as running forever.
    """
    ended = [f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")]
    waiting = [f"prefect.flow-run.{state}" for state in ("Paused", "Suspended", "Scheduled", "AwaitingRetry")]
    automation = AutomationCore(
        name=ZOMBIES,
        description=f"Marks a flow run as Crashed if it sent no heartbeat for {ZOMBIE_SECONDS} s.",
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
                message=f"no heartbeat for {ZOMBIE_SECONDS} s: the worker or its machine is gone. Retry the run to "
                "resume from the last checkpoint",
            )
        ],
    )
    existing = client.read_automations_by_name(ZOMBIES)
    if not existing:
        client.create_automation(automation)
        return
    # Update only if the rule differs: an update makes Prefect forget the runs that the automation watches, such as runs
    # of a machine that crashed and now calls `align up`.
    declared, there = rule(automation), rule(existing[0])
    if declared != {**there, "enabled": declared["enabled"]}:
        client.update_automation(existing[0].id, automation)


def rule(automation: AutomationCore) -> dict[str, Any]:
    """Return what a person can change of an automation, as JSON, without what the server adds."""
    dumped = automation.model_dump(mode="json", include={"trigger", "actions", "description", "enabled"})
    trigger = {key: value for key, value in dumped["trigger"].items() if key != "id"}
    for unordered in ("after", "expect", "for_each"):
        trigger[unordered] = sorted(trigger[unordered])
    return {**dumped, "trigger": trigger}


def of_deployment(client: SyncPrefectClient, names: Mapping[str, Any], deployment: UUID) -> dict[str, Automation]:
    """Return the automations with these names that run the deployment.

    A deleted deployment may have left an automation of the same name.
    """
    found = (automation for name in names for automation in client.read_automations_by_name(name))
    return {
        automation.name: automation
        for automation in found
        if any(getattr(action, "deployment_id", None) == deployment for action in automation.actions)
    }


def declared_rule(trigger: Mapping[str, Any], deployment: UUID) -> dict[str, Any]:
    """Return the rule of the automation that Prefect makes of a trigger in `prefect.yaml`."""
    return rule(_automation(trigger, deployment))


def write(
    client: SyncPrefectClient, name: str, content: Mapping[str, Any], deployment: UUID, old: Automation | None
) -> None:
    """Create an automation of the deployment, or update the old one. An update restarts its count of events."""
    automation = AutomationCore.model_validate({**content, "name": name})
    if old is not None:
        client.update_automation(old.id, automation)
        return
    owner = f"prefect.deployment.{deployment}"
    client.create_automation(automation.model_copy(update={"owner_resource": owner}))


def _automation(trigger: Mapping[str, Any], deployment: UUID) -> AutomationCore:
    parsed = _TRIGGER.validate_python(dict(trigger))
    parsed.set_deployment_id(deployment)
    return parsed.as_automation()
