"""Aliases in Prefect: promotion by the gate, the flows `promote` and `rollback`, and the history page of an alias."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings

from alignment_core.artifacts import CANDIDATE, PRODUCTION, ArtifactStore, Change
from alignment_core.artifacts.models import promote as give
from alignment_core.artifacts.models import rollback as take_back
from alignment_core.config import PipelineConfig
from alignment_core.evaluation.promotion import Promotion, apply_decision, apply_verdict, without_asking
from alignment_core.execution.build import StageResult
from alignment_core.markdown import code, plain
from alignment_flows.form.run_names import named
from alignment_flows.progress import tolerate_server_outage
from alignment_flows.promotion.approval import ask
from alignment_flows.promotion.model_events import change_event, emit, gate_numbers, refusal_event
from alignment_flows.tasks import without_traceback

NEWEST = 50
"""Number of changes that the page shows. Prefect keeps every version of the page."""


def promote_by_gate(config: PipelineConfig, built: Mapping[str, StageResult]) -> Promotion | None:
    """Apply the gate's verdict and return the promotion, or None if the run has no gate."""
    if config.gate is None:
        return None
    store, model, verdict = ArtifactStore(config.store, config.remote), built["optimize"].artifact, _verdict(built)
    at_once = config.gate.to_production and not config.gate.approval
    promotion = apply_verdict(store, model, verdict, to_production=at_once, by=_this_run())
    # A run that finds its verdict in the store refuses nothing anew.
    _announce(store, built, promotion, by=_this_run(), refusal=not built["gate"].cached)
    if not (config.gate.approval and promotion.passed):
        return promotion
    settled = without_asking(store, model, verdict, promotion)
    return settled or promote_if_approved(config, built)


def promote_if_approved(config: PipelineConfig, built: Mapping[str, StageResult]) -> Promotion:
    """Promote a model that passed the gate to `production` if a person approves it. The run may be suspended."""
    store, model, verdict = ArtifactStore(config.store, config.remote), built["optimize"].artifact, _verdict(built)
    promotion = Promotion(True, (CANDIDATE,), tuple(verdict["reasons"]), {})
    decision = ask(config, built, promotion)
    if decision is None:
        reasons = (*promotion.reasons, f"not promoted to `{PRODUCTION}`: nobody was asked. Use `align promote`")
        return replace(promotion, reasons=reasons)
    promotion = apply_decision(store, model, verdict, promotion, decision)
    _announce(store, built, promotion, by=decision.by, refusal=True)
    return promotion


def _verdict(built: Mapping[str, StageResult]) -> dict[str, Any]:
    verdict: dict[str, Any] = json.loads((built["gate"].artifact.path / "gate.json").read_text(encoding="utf-8"))
    return verdict


def _announce(
    store: ArtifactStore, built: Mapping[str, StageResult], promotion: Promotion, *, by: str, refusal: bool
) -> None:
    """Update the pages of the aliases, and send the events about what changed and, if asked to, about a refusal."""
    for alias in promotion.aliases:
        publish_history(store, alias)
    numbers = gate_numbers(built, _verdict(built))
    events = [change_event(store, alias, change, numbers) for alias, change in promotion.changes.items()]
    if promotion.refused is not None and refusal:
        model, reason = built["optimize"].artifact, "; ".join(promotion.reasons)
        events.append(refusal_event(store, promotion.refused, model, by=by, reason=reason, gate=numbers))
    emit(events)


@flow(name="promote", flow_run_name=named("{alias} · {model}"), persist_result=False)
@without_traceback
def promote(store: Path, model: str = "candidate", alias: str = "production", reason: str = "by hand") -> Change:
    """Give a trained model an alias, such as `production`.

    Args:
        store: Folder of the artifact store.
        model: An alias, the name of a run, a key, a key prefix, or `latest` for the newest aligned model, which must
            have passed the gate.
        alias: The alias to give.
        reason: The reason, recorded in the alias's history.
    """
    opened = ArtifactStore(store)
    before = opened.aliases.current(alias)
    change, given = give(opened, model, alias, by=_this_run(), reason=reason)
    if given.warning is not None:
        get_run_logger().warning(given.warning)
    publish_history(opened, alias)
    if change != before:
        emit([change_event(opened, alias, change)])
    return change


@flow(name="rollback", flow_run_name=named("{alias}"), persist_result=False)
@without_traceback
def rollback(store: Path, alias: str = "production", reason: str = "by hand") -> Change:
    """Return an alias to the model that held it before the last promotion.

    Args:
        store: Folder of the artifact store.
        alias: The alias to roll back.
        reason: The reason, recorded in the alias's history.
    """
    opened = ArtifactStore(store)
    change = take_back(opened, alias, by=_this_run(), reason=reason)
    publish_history(opened, alias)
    emit([change_event(opened, alias, change)])
    return change


def publish_history(store: ArtifactStore, alias: str) -> None:
    """Publish the history of an alias as a Prefect artifact from inside a flow run."""
    page = _page(store, alias)
    with tolerate_server_outage():
        create_markdown_artifact(page["data"], key=page["key"], description=page["description"])


def send_history(store: ArtifactStore, alias: str, api: str) -> None:
    """Publish the history of an alias as a Prefect artifact from outside a flow run.

    Args:
        store: the artifact store.
        alias: the alias.
        api: the API URL of the server.

    Raises:
        httpx.HTTPError: the server did not answer or refused the request.
    """
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        # `create_artifact` also emits an event from a thread, which the command would have to wait for.
        client.request("POST", "/artifacts/", json={"type": "markdown", **_page(store, alias)})


def _page(store: ArtifactStore, alias: str) -> dict[str, str]:
    key = f"alias-{alias}".replace(".", "-").replace("_", "-")
    return {"key": key, "description": f"Which model is {alias}", "data": history_page(store, alias)}


def history_page(store: ArtifactStore, alias: str) -> str:
    """Return the history of an alias as markdown, newest change first."""
    history = store.aliases.history(alias)
    current = history[-1]
    lines = ["| change | model | time | by | reason |", "| --- | --- | --- | --- | --- |"]
    for change in list(reversed(history))[:NEWEST]:
        by, reason = plain(change.by), plain(change.reason)
        lines.append(f"| {change.action} | `{change.kind}/{change.key}` | {change.time} | {by} | {reason} |")
    place = store.root / current.kind / current.key
    return f"# {alias}\n\nThis alias points to {code(place)}.\n\n" + "\n".join(lines) + "\n"


def _this_run() -> str:
    return f"flow run {flow_run.name}"
