"""A run keeps the name that a person gave it. A name that Prefect made up is replaced by one that says what it runs."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import prefect
import pytest
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import IntervalSchedule
from prefect.flow_engine import run_flow
from prefect.states import AwaitingRetry, Pending
from prefect.utilities.names import generate_slug
from stored import add, named

from alignment_core.artifacts import ArtifactStore
from alignment_flows.form import prefilled_names
from alignment_flows.form.run_names import is_made_up
from alignment_flows.promotion import promote, rollback
from alignment_flows.retraining import retrain
from alignment_flows.single_stage import stage

A = named("a")

SERVER = Path(prefect.__file__).parent / "server"


@pytest.mark.parametrize("name", ["Awesome-Ibex", "beta-orion", "beta12-orion-ring", "alpha-canis-majoris-b"])
def test_prefilled_names_of_both_forms_are_recognized(name: str) -> None:
    assert is_made_up(name)


@pytest.mark.parametrize(
    "name",
    [
        *("", "small", "dpo", "beta", "beta-sweep", "beta-0.1", "beta-orion-final", "calm-down", "my-otter", "alpha-"),
        *("Small-Batch", "calm-otter-2", "Calm-Otter", "calm otter", "stage · small", "beta1234-orion"),
    ],
)
def test_names_of_people_are_not(name: str) -> None:
    assert not is_made_up(name)


def test_every_slug_of_prefect_is_recognized() -> None:
    assert all(is_made_up(generate_slug(2)) for _ in range(5000))


def words(javascript: str) -> frozenset[str]:
    return frozenset(javascript.strip("`").split(".")) - {""}


def test_words_are_those_of_the_installed_forms() -> None:
    """After an upgrade of Prefect, update the lists or this test."""
    (v1,) = [text for file in SERVER.glob("ui/assets/*.js") if "andromedae." in (text := file.read_text())]
    stars, letters, places = (
        words(re.findall(rf"`({first}\.[^`]*)`", v1)[0]) for first in ("andromedae", r"alpha\.alpha2", r"a\.b\.c")
    )
    assert stars == prefilled_names.STARS
    assert places == prefilled_names.PLACES
    assert {re.sub(r"\d|RANDOM", "", letter) for letter in letters} == prefilled_names.LETTERS
    (v2,) = [text for file in SERVER.glob("ui-v2/assets/*run-*.js") if "maxCharCount:6" in (text := file.read_text())]
    animals = words(re.findall(r"`(Aardvark\.[^`]*)`", v2)[0])
    assert {animal for animal in animals if len(animal) <= 6} == prefilled_names.ANIMALS
    adjectives = re.findall(r"\[(`Awesome`,[^\]]*)\]", v2)[0]
    assert set(adjectives.replace("`", "").split(",")) == prefilled_names.ADJECTIVES


def run_as_worker(flow: Flow[..., Any], run: FlowRun) -> FlowRun:
    """Run a flow run that exists on the server, as a worker's process does, and return it from the server."""
    run_flow(flow, flow_run=run, return_type="state")
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run.id)


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("name", ["my run", None, "Awesome-Ibex"])
def test_given_name_is_kept_also_when_the_run_is_retried(name: str | None) -> None:
    parameters = {"config": {"name": "small"}, "until": "ingest"}
    expected = "my run" if name == "my run" else "ingest · small"
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(stage, parameters=parameters, name=name)
        ended = run_as_worker(stage, run)  # it fails, because the settings are incomplete
        assert ended.state is not None
        assert ended.state.is_failed()
        assert ended.name == expected
        for attempt, renamed in ((2, expected), (3, "renamed in the browser")):
            client.set_flow_run_name(run.id, renamed)
            client.set_flow_run_state(run.id, AwaitingRetry())
            again = run_as_worker(stage, client.read_flow_run(run.id))
            assert (again.run_count, again.name) == (attempt, renamed)


@pytest.mark.usefixtures("prefect_server")
def test_flows_about_an_alias_keep_a_given_name(tmp_path: Path) -> None:
    add(ArtifactStore(tmp_path), A)
    parameters = {"store": str(tmp_path), "model": A[:5], "alias": "pilot"}
    aliased = {"store": str(tmp_path), "alias": "pilot"}
    with get_client(sync_client=True) as client:
        ours = client.create_flow_run(promote, parameters=parameters, name="ours")
        assert run_as_worker(promote, ours).name == "ours"
        assert run_as_worker(promote, client.create_flow_run(promote, parameters=parameters)).name == f"pilot · {A[:5]}"
        assert run_as_worker(rollback, client.create_flow_run(rollback, parameters=aliased)).name == "pilot"


@pytest.mark.usefixtures("prefect_server")
def test_runs_of_a_deployment_and_of_a_schedule_are_named_after_their_settings() -> None:
    hourly = DeploymentScheduleCreate(schedule=IntervalSchedule(interval=timedelta(hours=1)), active=True)
    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(retrain)
        parameters = {"config": {"name": "small"}}
        deployment = client.create_deployment(flow_id, "names", parameters=parameters, schedules=[hourly])
        by_hand = client.create_flow_run_from_deployment(deployment, name="by hand")
        assert run_as_worker(retrain, by_hand).name == "by hand"
        assert run_as_worker(retrain, client.create_flow_run_from_deployment(deployment)).name == "small"
        client.request("POST", "/deployments/{id}/schedule", path_params={"id": deployment}, json={"max_runs": 1})
        chosen = DeploymentFilter(id=DeploymentFilterId(any_=[deployment]))
        runs = client.read_flow_runs(deployment_filter=chosen)
        scheduled = next(run for run in runs if run.auto_scheduled)
        client.set_flow_run_state(scheduled.id, Pending(), force=True)  # otherwise it waits for its time
        assert run_as_worker(retrain, client.read_flow_run(scheduled.id)).name == "small"
        client.delete_deployment(deployment)
