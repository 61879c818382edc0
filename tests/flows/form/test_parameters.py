"""Secrets in the parameters of flow runs, which Prefect stores: hidden, or warned of where it is too late for that."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow

from alignment_core.config import PipelineConfig
from alignment_core.config_file import check_config, load_config
from alignment_flows.comparison import compare
from alignment_flows.form.parameters import hide_in_change, secret_flow
from alignment_flows.form.settings import read_settings
from alignment_flows.pipeline import align
from alignment_flows.quick import quick
from alignment_flows.retraining import retrain
from alignment_flows.sampling import sample
from alignment_flows.serve.deployments.deploy import secrets_warning
from alignment_flows.single_stage import stage

pytestmark = pytest.mark.usefixtures("prefect_server")

URL = "postgresql://ann:s e/c r3t@db/votes"
WARNING = "Prefect stores the parameters of this run in clear"


@secret_flow(name="reads-settings", persist_result=False, validate_parameters=False)
def reads(config: PipelineConfig, changes: Sequence[str] = ()) -> PipelineConfig:
    return read_settings(config, changes)


def settings(**changes: Any) -> dict[str, Any]:
    listener = {"name": "tracker", "options": {"api_key": "k3y"}}
    sources = [{"path": URL}, {"path": "https://host/rows.jsonl?sig=s1g"}]
    given = {"model": {"base": "some/model"}, "data": {"sources": sources}, "feedback": URL, "listeners": [listener]}
    return given | changes


def stored(run: UUID) -> dict[str, Any]:
    with get_client(sync_client=True) as client:
        return dict(client.read_flow_run(run).parameters)


def test_run_that_is_started_here_stores_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    changes = ["seed=1", f"data.sources=[{{path: '{URL}'}}]", "listeners.0.options.api_key=other"]
    state = reads(check_config(settings()), changes, return_state=True)
    found = state.result()
    assert (found.feedback, found.data.sources[0].path) == (URL, URL)
    assert found.listeners[0]["options"] == {"api_key": "other"}
    parameters = stored(state.state_details.flow_run_id)
    shown = "postgresql://ann:***@db/votes"
    config = parameters["config"]
    assert [source["path"] for source in config["data"]["sources"]] == [shown, "https://host/rows.jsonl?sig=***"]
    assert (config["feedback"], config["model"]["base"]) == (shown, "some/model")
    assert config["listeners"] == [{"name": "tracker", "options": {"api_key": "***"}}]
    assert parameters["changes"] == [
        "seed=1", f'data.sources=[{{"path": "{shown}"}}]', 'listeners.0.options.api_key="***"',
    ]  # fmt: skip
    assert WARNING not in caplog.text


def test_run_from_the_form_warns_once_of_what_prefect_has_stored(caplog: pytest.LogCaptureFixture) -> None:
    changes = [f"feedback={URL}"]
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(reads, parameters={})
        client.update_flow_run(run.id, parameters={"config": settings(), "changes": changes})
        run = client.read_flow_run(run.id)
    with caplog.at_level(logging.WARNING):
        found = run_flow(reads, flow_run=run, parameters=run.parameters)
    assert found.feedback == URL
    (warned,) = [record.getMessage() for record in caplog.records if WARNING in record.getMessage()]
    assert (
        "data.sources.0.path, data.sources.1.path, feedback, listeners.0.options.api_key in them hold passwords"
        in warned
    )
    assert "{{ prefect.blocks.secret.NAME }}" in warned
    assert "${NAME}" in warned
    assert not [secret for secret in ("r3t", "s1g", "k3y") if secret in caplog.text]


def test_references_are_no_secrets(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOTES_PASSWORD", "s3cret")
    with_variable = settings(feedback="postgresql://ann:${VOTES_PASSWORD}@db/votes", listeners=[])
    with_variable["data"] = {"sources": [{"path": "rows.jsonl"}]}
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(reads, parameters={"config": with_variable})
    assert stored(run.id)["config"]["feedback"] == with_variable["feedback"]
    assert run_flow(reads, flow_run=run, parameters=run.parameters).feedback == "postgresql://ann:s3cret@db/votes"
    assert WARNING not in caplog.text


@pytest.mark.parametrize("flow", [align, compare, quick, retrain, sample, stage])
def test_every_flow_with_settings_hides_them(flow: Flow[..., Any]) -> None:
    for each in (flow, flow.with_options(name="other")):
        assert "s e/c r3t" not in str(each.serialize_parameters({"config": check_config(settings()), "data": [URL]}))


def test_changes_without_a_secret_stay_as_they_are() -> None:
    for change in ("seed=1", "optimizer={name: kto}", "chat.system=Say 'a: b' @home", "feedback=./votes.db"):
        assert hide_in_change(change) == change
    assert hide_in_change("listeners=[{api_key: 'x") == "listeners=…"


def test_deploying_secrets_is_warned_of(write: Callable[..., Path]) -> None:
    warning = secrets_warning(write(feedback=URL))
    assert warning is not None
    assert "the parameters of these deployments in clear, and feedback in them holds a password" in warning
    assert secrets_warning(write(feedback="postgresql://ann:${VOTES_PASSWORD}@db/votes")) is None


@pytest.mark.ci
def test_password_in_the_settings_of_a_run_is_recorded_nowhere(
    write: Callable[..., Path], tmp_path: Path, postgres: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As `test_secret_is_stored_nowhere`, with the password in clear in the settings of `align run`."""
    password = postgres.partition("@")[0].rpartition(":")[2]
    path = write(isolation="inline", feedback=postgres)
    state = align(load_config(path), return_state=True)
    assert state.is_completed(), state.message
    files = [file for file in (tmp_path / "store").rglob("*") if file.is_file()]
    assert [file for file in files if password.encode() in file.read_bytes()] == []
    run = state.state_details.flow_run_id
    assert stored(run)["config"]["feedback"] == postgres.replace(password, "***")
    with get_client(sync_client=True) as client:
        shown = [client.request("POST", f"/{kind}/filter", json={}).text for kind in ("flow_runs", "artifacts", "logs")]
        shown.append(client.request("POST", "/events/filter", json={}).text)
    assert password not in "".join(shown) + caplog.text
