"""The events about models, on which automations in Prefect can act.

    alignment.model.promoted       a model was given an alias that it did not have
    alignment.model.refused        a model that wanted an alias did not get it
    alignment.model.rolled-back    an alias moved back to the model that had it before

The resource of an event is the alias in its store. The model is a related resource.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import anyio
from prefect.client.orchestration import get_client
from prefect.events import Event, RelatedResource, Resource
from prefect.events.clients import get_events_client
from prefect.events.related import related_resources_from_run_context
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.asyncutils import run_coro_as_sync

from alignment_core.artifacts import Artifact, ArtifactStore, Change
from alignment_core.execution.build import StageResult

PROMOTED = "alignment.model.promoted"
REFUSED = "alignment.model.refused"
ROLLED_BACK = "alignment.model.rolled-back"

SECONDS = 30
"""Time that the server has to accept the events."""


def change_event(store: ArtifactStore, alias: str, change: Change, gate: Mapping[str, Any] | None = None) -> Event:
    """Return the event about a change of an alias.

    Args:
        store: the artifact store.
        alias: the alias.
        change: the change, as it is in the alias's history.
        gate: the measurements of the gate, if a gate decided.
    """
    name = ROLLED_BACK if change.action == "rollback" else PROMOTED
    model = Artifact(change.kind, change.key, str(store.root / change.kind / change.key))
    return _event(name, store, alias, model, change.previous, change.by, change.reason, gate)


def refusal_event(
    store: ArtifactStore, alias: str, model: Artifact, *, by: str, reason: str, gate: Mapping[str, Any]
) -> Event:
    """Return the event about a model that did not get an alias.

    Args:
        store: the artifact store.
        alias: the alias that it did not get.
        model: the model.
        by: the person or run that refused it.
        reason: the reason.
        gate: the measurements of the gate.
    """
    current = store.aliases.current(alias)
    return _event(REFUSED, store, alias, model, None if current is None else current.key, by, reason, gate)


def gate_numbers(built: Mapping[str, StageResult], verdict: Mapping[str, Any]) -> dict[str, Any]:
    """Return the measurements of a run's gate. A value is None if it was not measured.

    Args:
        built: the stages of the run, by their names in the plan.
        verdict: the content of `gate.json`.
    """
    judge = verdict["judge"]

    def win_rate(stage: str) -> Any:
        rates = built[stage].metrics.get("win_rate", {}) if stage in built else {}
        return rates.get(judge)

    return {
        "passed": verdict["passed"],
        "judge": judge,
        "win_rate_over_sft": win_rate("over_sft"),
        "win_rate_over_production": win_rate("over_production"),
        "kl": built["evaluate"].metrics.get("kl") if "evaluate" in built else None,
        "checks": verdict["checks"],
    }


def emit(events: Sequence[Event]) -> None:
    """Send events from inside a flow run. They are related to the run and its deployment.

    A run never fails because of an event: a failure is a warning in its log.
    """
    if not events:
        return
    try:
        run_coro_as_sync(_send(events))
    except Exception as error:
        names = ", ".join(event.event for event in events)
        get_run_logger().warning("%d event(s) could not be sent to Prefect (%s): %s", len(events), names, error)


def emit_to(api: str, event: Event) -> None:
    """Send an event from outside a flow run to the server with this API URL.

    Raises:
        Exception: the server did not accept it. Prefect's client has no common class of errors.
    """
    with temporary_settings({PREFECT_API_URL: api}):
        run_coro_as_sync(_send([event]))


async def _send(events: Sequence[Event]) -> None:
    with anyio.fail_after(SECONDS):
        async with get_client() as client:
            related = await related_resources_from_run_context(client)
        # Waits after each event until the server has received it.
        async with get_events_client(reconnection_attempts=2, checkpoint_every=1) as sender:
            for event in events:
                event.related += related
                await sender.emit(event)


def _event(
    name: str,
    store: ArtifactStore,
    alias: str,
    model: Artifact,
    previous: str | None,
    by: str,
    reason: str,
    gate: Mapping[str, Any] | None,
) -> Event:
    root = str(store.root.resolve())
    resource = {
        "prefect.resource.id": f"alignment.alias.{alias}.{root}",
        "prefect.resource.name": alias,
        "alignment.alias": alias,
        "alignment.store": root,
    }
    payload = {
        "alias": alias,
        "model": model.key,
        "kind": model.kind,
        "folder": str(model.path),
        "previous": previous,
        "reason": reason,
        "by": by,
        "store": root,
        "gate": None if gate is None else _json(gate),
    }
    related = [_model(model.key, "model")] + ([_model(previous, "previous-model")] if previous else [])
    return Event(event=name, resource=Resource(resource), related=related, payload=payload)


def _model(key: str, role: str) -> RelatedResource:
    return RelatedResource({"prefect.resource.id": f"alignment.model.{key}", "prefect.resource.role": role})


def _json(value: Any) -> Any:
    """Return the value with None instead of numbers that JSON lacks. PostgreSQL would refuse them."""
    if isinstance(value, Mapping):
        return {name: _json(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
