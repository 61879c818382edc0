"""Assets in Prefect: what a run makes, reads and finds in the store, with the lineage."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prefect import flow
from shown import events_about, related_to

from alignment_core.execution.stage import StageCall
from alignment_flows.tasks import StageRunner, without_traceback

pytestmark = pytest.mark.usefixtures("prefect_server")

Probe = Callable[..., StageCall]
MADE, READ, FAILED = (
    f"prefect.asset.{end}" for end in ("materialization.succeeded", "referenced", "materialization.failed")
)


def named(call: StageCall, stage: str, run: str) -> StageCall:
    """Return a call that is shown as this stage of a run."""
    runtime = call.runtime.model_copy(update={"run": run})
    return call.model_copy(update={"label": f"{stage} · model · 1234", "runtime": runtime})


@flow(persist_result=False)
@without_traceback
def make(*graph: StageCall) -> None:
    """Run the calls one after the other. Each reads the one before it."""
    stage = StageRunner()
    for number, call in enumerate(graph):
        stage(call, *graph[max(number - 1, 0) : number])


def chain(probe: Probe, run: str, last: str = "report") -> list[StageCall]:
    """Return a data set, a stage that makes no asset, and a reward model."""
    data = named(probe("write"), "ingest", run)
    middle = named(probe("write", step=2, parents={"data": data.key}), "rank", run)
    return [data, middle, named(probe(last, step=3, parents={"rows": middle.key}), "reward", run)]


def names(events: list[dict[str, Any]]) -> list[str]:
    return [event["event"] for event in events]


def test_stages_that_are_built_materialize_assets_with_their_lineage(probe: Probe) -> None:
    calls = chain(probe, "talk")
    make(*calls)
    made, read = events_about("alignment://talk/data-set", 2)
    (reward,) = events_about("alignment://talk/reward-model", 1)
    assert names([made, read, reward]) == [MADE, READ, MADE]
    # Also across the stage in between, which makes no asset.
    assert related_to(reward)["asset"] == "alignment://talk/data-set"
    assert {"flow-run", "task-run"} <= related_to(reward).keys()
    assert reward["payload"]["artifact"] == f"probe/{calls[2].key}"
    assert made["resource"]["prefect.resource.name"] == "talk: data set"
    assert made["resource"]["prefect.asset.url"] == f"file://{calls[0].runtime.store}/probe/{calls[0].key}"


def test_cached_stages_are_only_referenced(probe: Probe) -> None:
    first, *rest = chain(probe, "again")
    make(first)
    make(first, *rest)
    # One reference by the cached stage itself, and one by the reward model that was built from it.
    assert sorted(names(events_about("alignment://again/data-set", 3))) == sorted([MADE, READ, READ])
    (reward,) = events_about("alignment://again/reward-model", 1)
    assert (reward["event"], related_to(reward)["asset"]) == (MADE, "alignment://again/data-set")


def test_stage_that_fails_is_a_failed_materialization(probe: Probe) -> None:
    assert make(*chain(probe, "broken", last="user error"), return_state=True).is_failed()
    assert names(events_about("alignment://broken/reward-model", 1)) == [FAILED]
