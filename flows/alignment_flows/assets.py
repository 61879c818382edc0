"""The data sets and models of a run as assets in Prefect.

An asset is a thing that is made again and again, such as the policy of the run `support-chat`. Each time it is made,
its materialization names the artifact in the store. Prefect draws the lineage from the task runs that a task reads.
"""

from typing import Any

from prefect.assets import Asset, AssetProperties
from prefect.context import AssetContext
from prefect.events import emit_event

from alignment_core.execution.build import StageResult
from alignment_core.execution.stage import StageCall
from alignment_flows.reports.numbers import numbers

REFERENCED = "prefect.asset.referenced"

_MODELS = {"sft": "sft-model", "optimize": "policy"}
_NAMED = {"ingest": "data-set", "ingest votes": "votes", "reward": "reward-model", "judge": "judge-model"}


def assets_of(call: StageCall) -> list[Asset]:
    """Return the asset that a stage makes, in a list. Empty if it makes none, such as an evaluation."""
    stage = call.label.partition(" · ")[0]
    kind = _MODELS.get(call.stage) or _NAMED.get(stage)
    if kind is None:
        return []
    run, folder = call.runtime.run, call.runtime.store / call.stage / call.key
    properties = AssetProperties(
        name=f"{run}: {kind.replace('-', ' ')}",
        description=f"`{stage}` of the run {run}. The newest artifact is {call.stage}/{call.key}.",
        url=folder.as_uri(),
    )
    return [Asset(key=f"alignment://{run}/{kind}", properties=properties)]


def describe_assets(call: StageCall, built: StageResult) -> None:
    """Describe the artifact to Prefect from inside the task of its stage.

    Prefect reports an asset as materialized when the task completes, unless it was cached. Then it is only referenced.
    """
    for asset in assets_of(call):
        if built.cached:
            emit_event(REFERENCED, resource=AssetContext.asset_as_resource(asset), payload=_facts(built))
        else:
            asset.add_metadata(_facts(built))


def _facts(built: StageResult) -> dict[str, Any]:
    return {
        "artifact": f"{built.artifact.kind}/{built.artifact.key}",
        "folder": built.artifact.uri,
        "seconds": round(built.seconds, 3),
        "metrics": dict(numbers(built.metrics)),
    }
