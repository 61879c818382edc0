"""A person decides whether a model that passed the gate becomes `production`: in the browser, in a terminal, or not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import Pause
from prefect.flow_engine import run_flow
from prefect.flow_runs import resume_flow_run
from prefect.states import Scheduled
from shown import events_about
from stored import add, named

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import PipelineConfig
from alignment_core.config_file import check_config
from alignment_core.errors import ConfigError
from alignment_core.evaluation.promotion import Promotion
from alignment_core.execution.build import StageResult
from alignment_flows.promotion import promote_by_gate, promote_if_approved
from alignment_flows.promotion.approval import ASKED, LAUNCHED, stages_asked_about

A = named("a", optimizer={"name": "dpo"})
B = named("b", "gate")
C = named("c", "evaluate")
D = named("d", "evaluate")

pytestmark = pytest.mark.usefixtures("prefect_server")

SETTINGS = {"model": {"base": "some/model"}, "data": {"sources": [{"path": "rows.jsonl"}]}}
GATE = {"to_production": True, "approval": True, "approval_days": 2}


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


@pytest.fixture
def config(store: ArtifactStore) -> PipelineConfig:
    return check_config({**SETTINGS, "name": "talk", "gate": GATE, "store": str(store.root)})


@pytest.fixture
def built(store: ArtifactStore) -> dict[str, StageResult]:
    """Return the stages of a run whose model passed the gate."""
    found = {"passed": True, "judge": "words", "reasons": ["passed: better than before"]}
    files = {"gate.json": json.dumps({**found, "production": None, "checks": []})}
    gate = add(store, B, files=files, metrics=found)
    return {
        "optimize": StageResult(add(store, A), False, 1.0, {}),
        "evaluate": StageResult(add(store, C), False, 1.0, {}),
        "evaluate_sft": StageResult(add(store, D), False, 1.0, {}),
        "gate": StageResult(gate, False, 1.0, found),
    }


class Deployed:
    """A flow run of a deployment whose process a test starts, as a worker would."""

    def __init__(self, run: Callable[[], Promotion]) -> None:
        self._flow = flow(name="approval", persist_result=False)(run)
        with get_client(sync_client=True) as client:
            deployment = client.create_deployment(client.create_flow(self._flow), "approval")
            self.id: UUID = client.create_flow_run_from_deployment(deployment).id

    def start(self) -> State[Any]:
        return run_flow(self._flow, flow_run=self.shown(), return_type="state")

    def shown(self) -> FlowRun:
        with get_client(sync_client=True) as client:
            return client.read_flow_run(self.id)

    def input(self, key: str) -> Any:
        """Return an input of the run."""
        with get_client(sync_client=True) as client:
            return client.request("GET", f"/flow_runs/{self.id}/input/{key}").json()


@pytest.fixture
def deployed(
    config: PipelineConfig, built: dict[str, StageResult], monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Deployed]:
    monkeypatch.setenv(LAUNCHED, "some id")

    def run() -> Promotion:
        if (asked := stages_asked_about(config)) is not None:
            assert {name: stage.artifact for name, stage in asked.items()} == {
                name: stage.artifact for name, stage in built.items()
            }
            return promote_if_approved(config, asked)
        promotion = promote_by_gate(config, built)
        assert promotion is not None
        return promotion

    return lambda: Deployed(run)


def events_of(store: ArtifactStore, alias: str, count: int) -> list[dict[str, Any]]:
    return events_about(f"alignment.alias.{alias}.{store.root}", count)


def test_run_is_suspended_until_a_person_approves(deployed: Callable[[], Deployed], store: ArtifactStore) -> None:
    run = deployed()
    with pytest.raises(Pause):
        run.start()
    state = run.shown().state
    assert state is not None
    assert (state.type.value, state.name) == ("PAUSED", "Suspended")
    until = state.state_details.pause_timeout
    assert until is not None
    assert round((until - state.timestamp).total_seconds()) == 2 * 86400
    assert store.aliases.of(A) == ["candidate"]
    question = run.input("suspended-approval-1-description")
    assert f"The model `optimize/{A}` of the run talk passed the gate." in question
    assert "- passed: better than before" in question
    assert f"/runs/flow-run/{run.id})" in question
    assert run.input(ASKED)["optimize"] == A

    with pytest.raises(RuntimeError, match="'reason' is a required property"):
        resume_flow_run(run.id, {"approve": True, "name": "Ann"})
    store.aliases.promote("candidate", "optimize", B, by="a newer run", reason="meanwhile")
    resume_flow_run(run.id, {"approve": True, "name": "Ann", "reason": "I tried it"})
    promotion = run.start().result()
    assert promotion.aliases == ("candidate", "production")
    (change,) = store.aliases.history("production")
    assert (change.key, change.by) == (A, f"Ann in flow run {run.shown().name}")
    assert change.reason == "I tried it; passed: better than before"
    assert store.aliases.current("candidate").key == B  # type: ignore[union-attr]
    (event,) = events_of(store, "production", 1)
    assert (event["event"], event["payload"]["by"]) == ("alignment.model.promoted", change.by)
    assert event["payload"]["gate"]["judge"] == "words"


def test_person_refuses_and_is_not_asked_about_the_model_again(
    deployed: Callable[[], Deployed], store: ArtifactStore
) -> None:
    run = deployed()
    with pytest.raises(Pause):
        run.start()
    resume_flow_run(run.id, {"approve": False, "name": "Ann", "reason": "rude"})
    assert run.start().result().refused == "production"
    assert store.aliases.history("production") == []
    (refusal,) = store.aliases.history("refused")
    assert (refusal.key, refusal.by, refusal.reason) == (A, f"Ann in flow run {run.shown().name}", "rude")
    (event,) = events_of(store, "production", 1)
    assert (event["event"], event["payload"]["by"]) == ("alignment.model.refused", refusal.by)
    again = deployed().start().result()
    assert "refused it: rude. Run `align promote`" in again.reasons[-1]


def test_run_that_was_not_answered_in_time_asks_again_when_it_is_retried(
    deployed: Callable[[], Deployed], store: ArtifactStore
) -> None:
    run = deployed()
    with pytest.raises(Pause):
        run.start()
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, Scheduled(name="AwaitingRetry"), force=True)
    with pytest.raises(Pause):
        run.start()
    resume_flow_run(run.id, {"approve": True, "name": "Ann", "reason": "late"})
    assert run.start().result().aliases == ("candidate", "production")


def test_run_in_a_terminal_asks_there(
    config: PipelineConfig, built: dict[str, StageResult], store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("typer.confirm", lambda *args, **options: True)
    monkeypatch.setattr("typer.prompt", lambda *args, **options: "fine")
    flow(name="typed")(lambda: promote_by_gate(config, built))()
    assert store.aliases.history("production")[0].reason == "fine; passed: better than before"


def test_run_without_a_terminal_says_how_to_promote(
    config: PipelineConfig,
    built: dict[str, StageResult],
    store: ArtifactStore,
    caplog: pytest.LogCaptureFixture,
) -> None:
    flow(name="alone")(lambda: promote_by_gate(config, built))()
    assert store.aliases.of(A) == ["candidate"]
    assert f"Promote it with `align promote {A} --store {store.root}`" in caplog.text
    assert events_of(store, "production", 0) == []


def test_approval_needs_something_to_approve() -> None:
    with pytest.raises(ConfigError, match="there is nothing to approve"):
        check_config({**SETTINGS, "gate": {"approval": True}})
