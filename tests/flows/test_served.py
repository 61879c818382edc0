"""`align up`, `align deploy`, `align down`: from nothing to a run that a worker carries out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from served import ALIGN, PREFECT, Served

from alignment_flows.deployments import ZOMBIES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[2]
DECLARED = (
    "name", "entrypoint", "description", "parameters", "work_pool_name", "concurrency_options", "pull_steps",
    "parameter_openapi_schema", "enforce_parameter_schema", "job_variables", "paused", "path",
)  # fmt: skip


def deployed(served: Served) -> dict[str, dict[str, Any]]:
    """What is declared of every deployment, by its full name."""
    flows = {flow["id"]: flow["name"] for flow in served.post("flows/filter")}
    found = {}
    for deployment in served.post("deployments/filter"):
        schedules = [
            {key: schedule[key] for key in ("schedule", "active", "slug", "parameters")}
            for schedule in sorted(deployment["schedules"], key=lambda schedule: str(schedule["slug"]))
        ]
        kept = {key: deployment[key] for key in DECLARED}
        found[f"{flows[deployment['flow_id']]}/{deployment['name']}"] = {**kept, "schedules": schedules}
    return found


def test_align_deploy_and_prefect_deploy_come_to_the_same(served: Served) -> None:
    ours = deployed(served)
    assert {"demo/demo", "align/gpu-8gb", "align/nightly", "stage/sft"} <= ours.keys()
    for deployment in served.post("deployments/filter"):
        served.delete(f"deployments/{deployment['id']}")
    assert deployed(served) == {}
    theirs = served.run(PREFECT, "deploy", "--all", "--prefect-file", ROOT / "deployments" / "prefect.yaml")
    assert theirs.returncode == 0, theirs.stdout + theirs.stderr
    # Tests before this one may have deployed settings of their own.
    declared = deployed(served)
    assert declared == {name: ours[name] for name in declared}
    assert {"demo/demo", "retrain/retrain", "stage/sft"} <= declared.keys()


def test_deploying_again_changes_nothing_and_keeps_a_schedule_as_it_was_set(served: Served) -> None:
    before, votes = deployed(served), served.automation("retrain/retrain: enough votes", "retrain/retrain")
    zombies = served.automation(ZOMBIES)
    assert (zombies["enabled"], votes["enabled"]) == (True, False)
    served.patch(f"automations/{votes['id']}", enabled=True)
    nightly = served.deployment("align/nightly")
    assert [schedule["active"] for schedule in nightly["schedules"]] == [False] * 3
    on = next(schedule for schedule in nightly["schedules"] if schedule["slug"] == "nightly")
    switched = served.run(PREFECT, "deployment", "schedule", "resume", "align/nightly", on["id"])
    assert switched.returncode == 0, switched.stderr
    again = served.run(ALIGN, "deploy")
    assert again.returncode == 0, again.stderr
    after = deployed(served)
    assert [schedule["active"] for schedule in after["align/nightly"]["schedules"]] == [False, True, False]
    served.run(PREFECT, "deployment", "schedule", "pause", "align/nightly", on["id"])
    assert deployed(served) == before
    assert served.automation(ZOMBIES) == zombies, "a changed automation would have forgotten the runs in progress"
    kept = served.automation(votes["name"], "retrain/retrain")
    assert (kept["enabled"], kept["trigger"]["threshold"]) == (True, votes["trigger"]["threshold"])
    served.patch(f"automations/{kept['id']}", enabled=False)


def test_settings_of_ones_own_are_deployed_and_run_by_a_worker(served: Served, write: Callable[..., Path]) -> None:
    done = served.run(ALIGN, "deploy", write())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "align/small"
    run = served.start("align/small")
    assert served.ended(run)["type"] == "COMPLETED", served.log(run)
    reports = served.reports(run)
    assert any(report.startswith("# evaluate dpo · ") for report in reports)
    assert any("AutoPeftModelForCausalLM" in report for report in reports)

    config = served.deployment("align/small")["parameters"]["config"]
    alone = served.start("stage/ingest", {"config": config, "until": "ingest"})
    assert served.ended(alone)["type"] == "COMPLETED", served.log(alone)
    assert [report.partition(" ·")[0] for report in served.reports(alone)] == ["# ingest"]
    missing = served.start("stage/rank", {"config": config, "until": "rank", "changes": []})
    assert "until: this run has no such stage. got rank" in (served.ended(missing)["message"] or "")
    again = served.start("align/small")
    assert served.ended(again)["name"] == "Nothing new", served.log(again)


def test_second_server_is_refused_and_the_first_is_used(served: Served, tmp_path: Path) -> None:
    """`align up` next to a server that it did not start leaves that one alone."""
    elsewhere = Served(served.url, tmp_path, tmp_path / "home")
    port = served.url.rpartition(":")[2]
    refused = elsewhere.run(["env", "-u", "PREFECT_API_URL", *ALIGN], "up", "--port", port)
    assert refused.returncode == 2
    assert "another program listens on this port" in refused.stderr
    beside = elsewhere.run(ALIGN, "up")
    assert beside.returncode == 0, beside.stderr
    assert elsewhere.run(ALIGN, "down").stdout == "ended: gpu, cpu\n"
    assert served.get("health") is True
