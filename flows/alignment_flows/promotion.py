"""Aliases in Prefect: by the gate at the end of a run, or by a person from the browser; their history as a page."""

import json
from collections.abc import Mapping
from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings

from alignment_core.artifacts import ArtifactStore, Change
from alignment_core.artifacts.catalogue import promote as give
from alignment_core.artifacts.catalogue import roll_back as take_back
from alignment_core.config import PipelineConfig
from alignment_core.evaluation.promotion import Promotion, apply_verdict
from alignment_core.stages.build import Built
from alignment_flows.progress import if_server_answers
from alignment_flows.report import escaped
from alignment_flows.tasks import told_in_words

NEWEST = 50
"""Changes that the page shows; Prefect keeps every version of it."""


def promote_by_gate(config: PipelineConfig, built: Mapping[str, Built]) -> Promotion | None:
    """What the gate's verdict leads to; None where the run has no gate."""
    if config.gate is None:
        return None
    store = ArtifactStore(config.store)
    verdict = json.loads((built["gate"].artifact.path / "gate.json").read_text(encoding="utf-8"))
    model = built["optimize"].artifact
    promotion = apply_verdict(store, model, verdict, to_production=config.gate.to_production, by=_this_run())
    for alias in promotion.aliases:
        publish_history(store, alias)
    return promotion


@flow(name="promote", flow_run_name="{alias} · {model}", persist_result=False)
@told_in_words
def promote(store: Path, model: str = "candidate", alias: str = "production", reason: str = "by hand") -> Change:
    """Give a trained model a name.

    Args:
        store: Folder of the artifact store.
        model: A key, the beginning of one, an alias, or `latest`.
        alias: The name that is given.
        reason: Why, for the alias's history.
    """
    opened = ArtifactStore(store)
    change = give(opened, model, alias, by=_this_run(), reason=reason)
    publish_history(opened, alias)
    return change


@flow(name="rollback", flow_run_name="{alias}", persist_result=False)
@told_in_words
def rollback(store: Path, alias: str = "production", reason: str = "by hand") -> Change:
    """Give a name back to the model that had it before the last promotion.

    Args:
        store: Folder of the artifact store.
        alias: The name that is given back.
        reason: Why, for the alias's history.
    """
    opened = ArtifactStore(store)
    change = take_back(opened, alias, by=_this_run(), reason=reason)
    publish_history(opened, alias)
    return change


def publish_history(store: ArtifactStore, alias: str) -> None:
    """Put an alias's history on a page of its own in Prefect, from a flow run."""
    page = _page(store, alias)
    with if_server_answers():
        create_markdown_artifact(page["data"], key=page["key"], description=page["description"])


def send_history(store: ArtifactStore, alias: str, api: str) -> None:
    """Put an alias's history on its page from outside of a flow run.

    Args:
        store: the store.
        alias: the name.
        api: the server's address.

    Raises:
        httpx.HTTPError: the server does not answer.
    """
    with temporary_settings({PREFECT_API_URL: api}), get_client(sync_client=True) as client:
        # Not `create_artifact`, which leaves an event to a thread that the command would have to wait for.
        client.request("POST", "/artifacts/", json={"type": "markdown", **_page(store, alias)})


def _page(store: ArtifactStore, alias: str) -> dict[str, str]:
    key = f"alias-{alias}".replace(".", "-").replace("_", "-")
    return {"key": key, "description": f"Which model is {alias}", "data": history_page(store, alias)}


def history_page(store: ArtifactStore, alias: str) -> str:
    """The history of an alias as markdown, the newest change first."""
    history = store.aliases.history(alias)
    current = history[-1]
    lines = ["| change | model | time | by | reason |", "| --- | --- | --- | --- | --- |"]
    for change in list(reversed(history))[:NEWEST]:
        by, reason = escaped(change.by), escaped(change.reason)
        lines.append(f"| {change.action} | `{change.kind}/{change.key}` | {change.time} | {by} | {reason} |")
    place = store.root / current.kind / current.key
    return f"# {alias}\n\n`{place}` has this name.\n\n" + "\n".join(lines) + "\n"


def _this_run() -> str:
    return f"flow run {flow_run.name}"
