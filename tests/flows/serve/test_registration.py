"""`align deploy` sends what differs, and keeps what a person changed on the server."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import PREFECT_API_URL
from served import PREFECT

from alignment_core.errors import ConfigError
from alignment_flows.form.recipes import packaged_file
from alignment_flows.serve.deployments.declared import Declaration, _declaration, own, packaged
from alignment_flows.serve.deployments.deploy import create_pools, deploy
from alignment_flows.serve.deployments.registration import RECORD, Outcome, register
from alignment_flows.serve.workers import POOLS

pytestmark = pytest.mark.usefixtures("prefect_server")

ENTRY = {
    "name": "kept",
    "entrypoint": "alignment_flows.promotion.rollback",
    "description": "A rollback.",
    "work_pool": {"name": "gpu"},
    "parameters": {"config": {"name": "kept", "optimizer": {"name": "dpo", "beta": 0.1, "epochs": 1}}},
    "schedules": [
        {"slug": "nightly", "cron": "0 3 * * *", "active": False},
        {"slug": "hourly", "interval": 3600, "anchor_date": "2026-01-01T00:00:00Z", "active": False},
        {"slug": "weekly", "cron": "0 3 * * 1", "active": False},
    ],
    "triggers": [
        {"type": "event", "name": "kept: votes", "expect": ["voted"], "posture": "Reactive", "threshold": 50},
        {"type": "event", "name": "kept: other", "expect": ["voted"], "posture": "Reactive", "threshold": 9},
    ],
}


def changed(schema: dict[str, Any] | None = None, **more: Any) -> Declaration:
    """Return a declaration with some changes. Its small schema keeps the tests fast."""
    declaration = _declaration({**deepcopy(ENTRY), **more})
    schema = schema or {"type": "object", "properties": {"config": {"type": "object"}}}
    return dataclasses.replace(declaration, fixed={**declaration.fixed, "parameter_openapi_schema": schema})


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    """A client of the server. The work pools exist, and the deployments are deleted afterwards."""
    with get_client(sync_client=True) as opened:
        create_pools(opened, POOLS)
        yield opened
        for each in opened.request("POST", "/deployments/filter", json={}).json():
            delete(opened, each["id"])


def delete(client: SyncPrefectClient, deployment: str) -> None:
    """Delete a deployment and its automations, which Prefect would leave."""
    client.delete_resource_owned_automations(f"prefect.deployment.{deployment}")
    client.delete_deployment(UUID(deployment))


def send(client: SyncPrefectClient, *declarations: Declaration) -> list[Outcome]:
    return list(register(client, declarations))


def row(client: SyncPrefectClient, name: str) -> dict[str, Any]:
    flow, _, deployment = name.partition("/")
    found: dict[str, Any] = client.request(
        "GET",
        "/deployments/name/{flow_name}/{deployment_name}",
        path_params={"flow_name": flow, "deployment_name": deployment},
    ).json()
    return found


def edit(client: SyncPrefectClient, name: str, **fields: Any) -> None:
    """Change a deployment as the user interface does."""
    client.request("PATCH", "/deployments/{id}", path_params={"id": row(client, name)["id"]}, json=fields)


def test_unchanged_deployments_get_no_request(client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [outcome.line() for outcome in send(client, changed())] == ["rollback/kept: created"]
    methods = []
    request = client.request

    def counted(method: Any, path: Any, **more: Any) -> Any:
        methods.append((method, path))
        return request(method, path, **more)

    monkeypatch.setattr(client, "request", counted)
    assert [outcome.line() for outcome in send(client, changed())] == ["rollback/kept: unchanged"]
    assert {(method, path.rpartition("/")[2]) for method, path in methods} == {("POST", "filter")}


def test_what_a_person_changed_stays_and_the_rest_is_updated(client: SyncPrefectClient) -> None:
    send(client, changed())
    before = row(client, "rollback/kept")
    edited = deepcopy(before["parameters"])
    edited["config"]["optimizer"]["beta"] = 0.3
    edit(
        client, "rollback/kept", tags=["mine"], parameters=edited, paused=True, concurrency_limit=3,
        job_variables={"env": {"A": "1"}}, description="Ours.",
        work_pool_name="gpu", work_queue_name="first",
    )  # fmt: skip
    optimizer = {"name": "dpo", "beta": 0.2, "epochs": 2}
    parameters = {"config": {"name": "kept", "optimizer": optimizer}}
    (outcome,) = send(client, changed(parameters=parameters, description="A better rollback."))
    assert outcome.updated == ("parameters",)
    assert {difference.path[0] for difference in outcome.kept} == {
        *("tags", "parameters", "paused", "concurrency_limit", "job_variables", "description", "work_queue")
    }
    assert 'kept: rollback/kept tags ["mine"], set on the server; declared is []' in outcome.notes()
    assert (
        "kept: rollback/kept parameters.config.optimizer.beta 0.3, set on the server; declared is 0.2"
        in outcome.notes()
    )
    after = row(client, "rollback/kept")
    assert after["parameters"]["config"]["optimizer"] == {"name": "dpo", "beta": 0.3, "epochs": 2}
    assert (after["tags"], after["paused"], after["description"]) == (["mine"], True, "Ours.")
    assert after["global_concurrency_limit"]["limit"] == 3
    assert (after["job_variables"], after["work_queue_name"]) == ({"env": {"A": "1"}}, "first")
    # What was declared last is known, also after a setting was kept.
    edit(client, "rollback/kept", description="A better rollback.")
    (again,) = send(client, changed(parameters=parameters, description="The best rollback."))
    assert again.updated == ("description",)
    assert row(client, "rollback/kept")["description"] == "The best rollback."


def schedules(client: SyncPrefectClient) -> dict[str, dict[str, Any]]:
    return {schedule["slug"]: schedule for schedule in row(client, "rollback/kept")["schedules"]}


def test_schedules_made_and_changed_in_the_browser_are_kept(client: SyncPrefectClient) -> None:
    send(client, changed())
    identity, there = row(client, "rollback/kept")["id"], schedules(client)
    mine = {"schedule": {"interval": 60.0}, "active": True}
    client.request("POST", "/deployments/{id}/schedules", path_params={"id": identity}, json=[mine])
    one = "/deployments/{id}/schedules/{schedule_id}"
    for method, slug, body in (("PATCH", "nightly", {"active": True}), ("DELETE", "weekly", {})):
        client.request(method, one, path_params={"id": identity, "schedule_id": there[slug]["id"]}, json=body)  # type: ignore[arg-type]
    declared = [
        {"slug": "nightly", "cron": "0 5 * * *", "active": False},
        {"slug": "weekly", "cron": "0 3 * * 1", "active": False},
        {"slug": "daily", "cron": "0 6 * * *", "active": False},
    ]
    (outcome,) = send(client, changed(schedules=declared))
    assert outcome.updated == ("schedules",)
    after = schedules(client)
    assert after.keys() == {None, "nightly", "daily"}
    assert after[None]["schedule"]["interval"] == 60.0  # type: ignore[index]
    assert (after["nightly"]["schedule"]["cron"], after["nightly"]["active"]) == ("0 5 * * *", True)
    assert after["daily"]["schedule"]["cron"] == "0 6 * * *"
    notes = "\n".join(outcome.notes())
    assert "schedules.nightly.active true, set on the server; declared is false" in notes
    assert "schedules.weekly nothing, set on the server" in notes
    assert send(client, changed(schedules=declared))[0].updated == ()


def test_automations_keep_what_a_person_set(client: SyncPrefectClient) -> None:
    send(client, changed())
    (votes,), (other,) = (client.read_automations_by_name(f"kept: {name}") for name in ("votes", "other"))
    assert votes.trigger.threshold == 50  # type: ignore[union-attr]
    client.delete_automation(other.id)
    client.request("PATCH", f"/automations/{votes.id}", json={"enabled": False})  # type: ignore[arg-type]
    triggers = [{**ENTRY["triggers"][0], "threshold": 20}, ENTRY["triggers"][1]]  # type: ignore[index]
    (outcome,) = send(client, changed(triggers=triggers))
    assert outcome.updated == ("triggers",)
    (after,) = client.read_automations_by_name("kept: votes")
    assert (after.id, after.enabled, after.trigger.threshold) == (votes.id, False, 20)  # type: ignore[union-attr]
    assert client.read_automations_by_name("kept: other") == []
    assert send(client, changed(triggers=triggers[:1]))[0].updated == ()
    assert send(client, changed(triggers=[]))[0].updated == ()
    assert client.read_automations_by_name("kept: votes"), "a person changed it"


def test_parameter_that_the_new_form_refuses_is_replaced(client: SyncPrefectClient) -> None:
    send(client, changed())
    edited = deepcopy(ENTRY["parameters"])
    edited["config"]["optimizer"] |= {"beta": 0.3, "epochs": 5}  # type: ignore[index]
    edit(client, "rollback/kept", parameters=edited)
    schema = {
        "type": "object",
        "properties": {
            "config": {
                "type": "object",
                "properties": {"optimizer": {"type": "object", "properties": {"beta": {"maximum": 0.2}}}},
            }
        },
    }
    (outcome,) = send(client, changed(schema))
    assert row(client, "rollback/kept")["parameters"]["config"]["optimizer"] == {
        "name": "dpo",
        "beta": 0.1,
        "epochs": 5,
    }
    assert outcome.notes() == [
        "kept: rollback/kept parameters.config.optimizer.epochs 5, set on the server; declared is 1",
        "replaced: rollback/kept parameters.config.optimizer.beta 0.3, set on the server, by 0.1",
    ]


def test_deployment_that_another_command_registered_is_kept(client: SyncPrefectClient) -> None:
    send(client, changed())
    for record in client.request("POST", "/artifacts/filter", json={"artifacts": {"type": {"any_": [RECORD]}}}).json():
        client.request("DELETE", "/artifacts/{id}", path_params={"id": record["id"]})
    (outcome,) = send(client, changed(description="Another."))
    assert (outcome.updated, [each.path for each in outcome.kept]) == ((), [("description",)])
    (outcome,) = send(client, changed(tags=[], description="A rollback."))
    assert (outcome.updated, outcome.kept) == ((), ())


def test_refused_deployment_is_named(client: SyncPrefectClient) -> None:
    with pytest.raises(ConfigError, match='Work pool "none" not found') as refused:
        send(client, changed(work_pool={"name": "none"}))
    assert refused.value.where == "rollback/kept"


def test_config_files_are_deployed_with_the_pools_and_the_automation(client: SyncPrefectClient, tmp_path: Path) -> None:
    path = tmp_path / "small.json"
    settings = {"name": "small", "gate": {}, "model": {"base": "a/model"}, "data": {"sources": [{"path": "x.jsonl"}]}}
    path.write_text(json.dumps(settings))
    names = ["align/small", "quick/small", "retrain/small"]
    assert [outcome.line() for outcome in deploy([path])] == [f"{name}: created" for name in names]
    assert [outcome.line() for outcome in deploy([path])] == [f"{name}: unchanged" for name in names]
    assert {pool.name: pool.concurrency_limit for pool in client.read_work_pools()}.items() >= {("gpu", 1)}
    assert [each.name for each in own(path)] == names
    tags = {name: row(client, name)["tags"] for name in names}
    assert tags == {"align/small": ["everything"], "quick/small": ["start here"], "retrain/small": ["retrain"]}


@pytest.mark.ci
def test_pages_that_sort_by_name_begin_with_the_demo_and_end_with_single_stages() -> None:
    stages = [entry for entry in packaged() if entry.flow == "stage"]
    names = sorted(entry.name.partition("/")[2] for entry in packaged())
    assert names[0] == "demo"
    assert all(name.startswith("gpu-") for name in names[1:9])
    assert all(name.startswith("single-") for name in names[-len(stages) :])


@pytest.mark.ci
def test_result_is_that_of_prefect_deploy(client: SyncPrefectClient, tmp_path: Path) -> None:
    """Two deployments that have everything that `prefect.yaml` uses: build step, schedules, trigger."""
    names = ("align/nightly", "retrain/retrain")

    def stored() -> list[Any]:
        rows = [row(client, name) for name in names]
        rules = client.request("POST", "/automations/filter", json={}).json()  # type: ignore[arg-type]
        return [without_ids(rows), without_ids([rule for rule in rules if rule["name"].startswith("retrain/retrain")])]

    send(client, *(declaration for declaration in packaged() if declaration.name in names))
    ours = stored()
    for name in names:
        delete(client, row(client, name)["id"])
    api = PREFECT_API_URL.value()
    file = tmp_path / "prefect.yaml"
    declared = yaml.safe_load(packaged_file("prefect.yaml").read_text())
    declared["deployments"] = [each for each in declared["deployments"] if each["name"] in ("nightly", "retrain")]
    file.write_text(yaml.safe_dump(declared))
    command = [*PREFECT, "deploy", "--all", "--prefect-file", str(file)]
    # In a clone with a remote, Prefect would take the commit for the version.
    environment = {"PREFECT_API_URL": str(api), "GIT_DIR": str(tmp_path / "no-repository")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout + done.stderr
    assert stored() == ours
    assert [outcome.updated for outcome in send(client, *(d for d in packaged() if d.name in names))] == [(), ()]


def without_ids(value: Any) -> Any:
    """Return rows of the server without ids, times and what differs from one registration to the next."""
    if isinstance(value, list):
        plain = [without_ids(each) for each in value]
        return sorted(plain, key=str) if all(isinstance(each, dict) for each in value) else plain
    if not isinstance(value, dict):
        return value
    skipped = {"id", "created", "updated", "flow_id", "deployment_id", "work_queue_id", "last_polled", "labels"}
    skipped |= {"owner_resource"}
    return {key: without_ids(each) for key, each in value.items() if key not in skipped}
