"""Aliases in Prefect: set by flows or by the gate at the end of a run, with their history as a page."""

from __future__ import annotations

import json
import math
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.settings import PREFECT_API_URL
from served import ALIGN
from shown import events_about, related_to
from stored import add, named

import alignment_flows as af
from alignment_core.artifacts import Artifact, ArtifactStore
from alignment_core.config_file import check_config, load_config
from alignment_core.evaluation.promotion import Promotion
from alignment_core.execution.build import StageResult
from alignment_flows.pipeline import align
from alignment_flows.promotion import history_page, promote, promote_by_gate, rollback

A = named("a")
B = named("b")

pytestmark = pytest.mark.usefixtures("prefect_server")


def pages(key: str) -> list[str]:
    chosen = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
    with get_client(sync_client=True) as client:
        return [str(artifact.data) for artifact in client.read_artifacts(artifact_filter=chosen)]


def events_of(alias: str, store: Path, count: int) -> list[dict[str, Any]]:
    return events_about(f"alignment.alias.{alias}.{store}", count)


def test_flows_send_an_event_for_each_change(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    add(store, A)
    add(store, B)
    state = promote(tmp_path, A, alias="news", return_state=True)
    promote(tmp_path, A, alias="news")  # changes nothing
    promote(tmp_path, B, alias="news", reason="better")
    rollback(tmp_path, alias="news", reason="rude")
    first, second, third = events_of("news", tmp_path, 3)
    names = [event["event"].removeprefix("alignment.model.") for event in (first, second, third)]
    assert names == ["promoted", "promoted", "rolled-back"]
    assert first["resource"].items() >= {"alignment.alias": "news", "alignment.store": str(tmp_path)}.items()
    assert (
        related_to(first).items()
        >= {
            "model": f"alignment.model.{A}",
            "flow-run": f"prefect.flow-run.{state.state_details.flow_run_id}",
        }.items()
    )
    assert related_to(second)["previous-model"] == f"alignment.model.{A}"
    changes = store.aliases.history("news")
    for event, change in zip((first, second, third), changes, strict=True):
        assert event["payload"] == {
            "alias": "news",
            "model": change.key,
            "kind": "optimize",
            "folder": f"{tmp_path}/optimize/{change.key}",
            "previous": change.previous,
            "reason": change.reason,
            "by": change.by,
            "store": str(tmp_path),
            "gate": None,
        }


def judged(store: ArtifactStore, key: str, *, passed: bool, cached: bool = False) -> dict[str, StageResult]:
    """Return the stages of a run whose gate has judged the model `key`, compared with the SFT model only."""
    rate = {"rate": 0.75, "low": 0.6, "high": 0.9}
    check = {"rule": "win rate", "measured": 0.6, "limit": 0.5, "passed": passed}
    gate = tmp_artifact(store, "gate", key)
    verdict = {"passed": passed, "judge": "words", "reasons": ["why"], "production": None, "checks": [check]}
    (gate.path / "gate.json").write_text(json.dumps(verdict))
    return {
        "optimize": StageResult(Artifact("optimize", key, str(store.root / "optimize" / key)), True, 0, {}),
        "evaluate": StageResult(gate, True, 0, {"kl": math.nan}),
        "over_sft": StageResult(gate, True, 0, {"win_rate": {"words": rate}}),
        "gate": StageResult(gate, cached, 0, {}),
    }


def tmp_artifact(store: ArtifactStore, kind: str, key: str) -> Artifact:
    folder = store.root / kind / key
    folder.mkdir(parents=True, exist_ok=True)
    return Artifact(kind, key, str(folder))


def decide(store: ArtifactStore, built: dict[str, StageResult], **gate: Any) -> Promotion:
    """Apply the gate's verdict inside a flow run."""
    settings = {"model": {"base": "some/model"}, "data": {"sources": [{"path": "rows.jsonl"}]}, "gate": gate}
    config = check_config({**settings, "store": str(store.root)})

    @flow(name="gate")
    def run() -> Promotion | None:
        return promote_by_gate(config, built)

    promotion = run()
    assert promotion is not None
    return promotion


def test_gate_sends_an_event_for_each_alias_and_refusal_but_not_twice(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    add(store, A)
    add(store, B)
    decide(store, judged(store, A, passed=True), to_production=True)
    decide(store, judged(store, A, passed=True, cached=True), to_production=True)  # changes nothing
    decide(store, judged(store, B, passed=False), to_production=True)
    decide(store, judged(store, B, passed=False, cached=True), to_production=True)  # the verdict is not new
    promoted, refused = events_of("candidate", tmp_path, 2)
    (production,) = events_of("production", tmp_path, 1)
    assert [event["event"] for event in (promoted, production, refused)] == [
        "alignment.model.promoted",
        "alignment.model.promoted",
        "alignment.model.refused",
    ]
    assert (refused["payload"]["model"], refused["payload"]["previous"], refused["payload"]["reason"]) == (B, A, "why")
    assert production["payload"]["gate"] == {
        "passed": True,
        "judge": "words",
        "win_rate_over_sft": {"rate": 0.75, "low": 0.6, "high": 0.9},
        "win_rate_over_production": None,
        "kl": None,  # JSON has no NaN
        "checks": [{"rule": "win rate", "measured": 0.6, "limit": 0.5, "passed": True}],
    }


def test_event_that_cannot_be_sent_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(**options: object) -> None:
        raise OSError("no route to the server")

    monkeypatch.setattr("alignment_flows.promotion.model_events.get_events_client", broken)
    add(ArtifactStore(tmp_path), A)
    assert promote(tmp_path, A, alias="quiet").key == A
    assert "1 event(s) could not be sent to Prefect (alignment.model.promoted): no route to the server" in caplog.text


def test_promote_and_rollback_as_flows(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    add(store, A)
    add(store, B)
    promote(tmp_path, A[:5], alias="pilot")
    assert promote(tmp_path, B, alias="pilot", reason="a | b").previous == A
    assert "| a \\| b |" in history_page(store, "pilot")
    assert rollback(tmp_path, alias="pilot").key == A
    assert "flow run" in store.aliases.history("pilot")[-1].by
    newest = next(page for page in pages("alias-pilot") if "| rollback |" in page)
    assert newest.startswith(f"# pilot\n\nThis alias points to `{store.root}/optimize/{A}`.")
    failed = promote(tmp_path, "latest", alias="no name", return_state=True)
    assert failed.is_failed()
    assert str(failed.message).startswith("this is not a valid alias. got no name")


def test_command_updates_the_page_if_there_is_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(ArtifactStore(tmp_path), A)
    api = PREFECT_API_URL.value()
    assert api is not None
    command = [*ALIGN, "promote", A, "typed", "--store", str(tmp_path)]
    warning = f"align: the model optimize/{A[:12]} was not judged by a gate\n"
    for address in (api, "http://127.0.0.1:9/api"):  # nothing listens on the discard port
        monkeypatch.setenv("PREFECT_API_URL", address)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, f"typed is now optimize/{A}\n")
        if address == api:
            assert done.stderr == warning
            assert [A in page for page in pages("alias-typed")] == [True]
            (event,) = events_of("typed", tmp_path, 1)
            assert (event["event"], related_to(event)) == (
                "alignment.model.promoted",
                {"model": f"alignment.model.{A}"},
            )
    assert done.stderr.startswith("align: could not update the alias's page in Prefect, and sent no event: ")
    assert done.stderr.endswith(f"\n{warning}")
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.ci
def test_gate_promotes_a_model_that_passes_but_not_twice(write: Callable[..., Path], tmp_path: Path) -> None:
    """Every model passes the first rule. No model passes the second one when compared with itself."""
    lenient: dict[str, Any] = {"win_rate_over_sft": None, "max_kl": 1e9, "to_production": True}
    evaluation = {
        "max_prompts": 2,
        "max_new_tokens": 8,
        "evaluators": [{"name": "wordlist", "unwanted": ["sorry"]}],
        "reward_model": True,
        "judge_fraction": 0.5,
        "safety": {"path": str(tmp_path / "pairs.jsonl")},
    }
    config = write(evaluation=evaluation, gate=lenient, isolation="inline")
    store = ArtifactStore(tmp_path / "store")

    def run(*changes: str) -> dict[str, Any]:
        state = align(load_config(config, changes), return_state=True)
        assert state.is_completed()
        found: dict[str, Any] = state.result()
        return found

    first = run()
    assert first["gate"].metrics["passed"]
    model = first["optimize"].artifact.key
    measured = first["over_sft"].metrics
    assert list(measured["win_rate"]) == ["judge", "wordlist", "reward"]
    assert first["evaluate"].metrics["safety"]["prompts"] == 24
    assert abs(measured["safety"]["wordlist"]["difference"]) <= 1
    assert first["judge"].artifact.key != first["reward"].artifact.key
    assert store.aliases.of(model) == ["candidate", "production"]
    assert any(model in page for page in pages("alias-production"))

    again = run()
    assert not again["gate"].metrics["passed"]
    assert (again["evaluate_production"].artifact, again["evaluate_production"].cached) == (
        first["evaluate"].artifact,
        True,
    )
    for rate in again["over_production"].metrics["win_rate"].values():
        assert (rate["wins"], rate["ties"], rate["losses"]) == (0, 2, 0)
    assert any("this model is already in production" in page for page in pages("run-report"))

    other = run("optimizer.beta=0.5", "gate.win_rate_over_production=null", "gate.to_production=false")
    assert other["evaluate_production"].cached, "the production model is measured once"
    assert store.aliases.of(other["optimize"].artifact.key) == ["candidate"]
    assert store.aliases.of(model) == ["production"]


@pytest.mark.filterwarnings("ignore:the model .* was not judged by a gate:UserWarning")
def test_python_api_sends_an_event_for_each_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ArtifactStore(tmp_path)
    add(store, A)
    add(store, B)
    monkeypatch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
    for key in (A, A, B):  # the second time changes nothing
        af.promote(key, "api", store=tmp_path)
    af.rollback("api", store=tmp_path)
    names = [event["event"].removeprefix("alignment.model.") for event in events_of("api", tmp_path, 3)]
    assert names == ["promoted", "promoted", "rolled-back"]


@pytest.mark.filterwarnings("ignore:the model .* was not judged by a gate:UserWarning")
def test_python_api_warns_if_prefect_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ArtifactStore(tmp_path)
    add(store, A)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    with pytest.warns(UserWarning, match="could not update the alias's page in Prefect, and sent no event"):
        af.promote(A, "unheard", store=tmp_path)
    change = store.aliases.current("unheard")
    assert change is not None
    assert change.key == A
