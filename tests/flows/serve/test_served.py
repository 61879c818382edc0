"""`align up`, `align deploy` and `align down`: from an empty folder to a run by a worker."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from served import ALIGN, PREFECT, Served

from alignment_flows.serve.deployments.automations import ZOMBIES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).resolve().parents[3]
DECLARED = (
    "name", "entrypoint", "description", "parameters", "work_pool_name", "concurrency_options", "pull_steps",
    "parameter_openapi_schema", "enforce_parameter_schema", "job_variables", "paused", "path",
)  # fmt: skip


def deployed(served: Served) -> dict[str, dict[str, Any]]:
    """Return the declared fields of every deployment by its full name."""
    flows = {flow["id"]: flow["name"] for flow in served.post("flows/filter")}
    found = {}
    for deployment in served.post("deployments/filter"):
        schedules = [
            {key: schedule[key] for key in ("schedule", "active", "slug", "parameters")}
            for schedule in sorted(deployment["schedules"], key=lambda schedule: str(schedule["slug"]))
        ]
        fields = {key: deployment[key] for key in DECLARED}
        found[f"{flows[deployment['flow_id']]}/{deployment['name']}"] = {**fields, "schedules": schedules}
    return found


def test_align_deploy_and_prefect_deploy_agree(served: Served) -> None:
    ours = deployed(served)
    assert {"demo/demo", "align/gpu-8gb-all", "align/nightly", "stage/single-sft"} <= ours.keys()
    for deployment in served.post("deployments/filter"):
        served.delete(f"deployments/{deployment['id']}")
    assert deployed(served) == {}
    theirs = served.run(PREFECT, "deploy", "--all", "--prefect-file", ROOT / "deployments" / "prefect.yaml")
    assert theirs.returncode == 0, theirs.stdout + theirs.stderr
    # Earlier tests may have added other deployments.
    declared = deployed(served)
    assert declared == {name: ours[name] for name in declared}
    assert {"demo/demo", "retrain/retrain", "stage/single-sft"} <= declared.keys()


def test_deploying_again_changes_nothing_and_keeps_the_state_of_schedules(served: Served) -> None:
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
    assert served.automation(ZOMBIES) == zombies, "a changed automation would forget the runs in progress"
    kept = served.automation(votes["name"], "retrain/retrain")
    assert (kept["enabled"], kept["trigger"]["threshold"]) == (True, votes["trigger"]["threshold"])
    served.patch(f"automations/{kept['id']}", enabled=False)


def test_custom_settings_are_deployed_and_run_by_a_worker(served: Served, write: Callable[..., Path]) -> None:
    done = served.run(ALIGN, "deploy", write())
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "align/small: created"
    run = served.start("align/small")
    assert served.ended(run)["type"] == "COMPLETED", served.log(run)
    reports = served.reports(run)
    assert any(report.startswith("# evaluate dpo · ") for report in reports)
    assert any("AutoPeftModelForCausalLM" in report for report in reports)

    config = served.deployment("align/small")["parameters"]["config"]
    alone = served.start("stage/single-ingest", {"config": config, "until": "ingest"})
    assert served.ended(alone)["type"] == "COMPLETED", served.log(alone)
    assert [report.partition(" ·")[0] for report in served.reports(alone)] == ["# ingest"]
    missing = served.start("stage/single-rank", {"config": config, "until": "rank", "changes": []})
    assert "until: this run has no such stage. got rank" in (served.ended(missing)["message"] or "")
    again = served.start("align/small")
    assert served.ended(again)["name"] == "Nothing new", served.log(again)


def test_second_server_is_refused_and_the_first_is_used(served: Served, tmp_path: Path) -> None:
    """`align up` uses a server that it did not start, and `align down` does not stop it."""
    elsewhere = Served(served.url, tmp_path, tmp_path / "home")
    port = served.url.rpartition(":")[2]
    refused = elsewhere.run(["env", "-u", "PREFECT_API_URL", *ALIGN], "up", "--port", port)
    assert refused.returncode == 2
    assert "the port is in use by another program" in refused.stderr
    joined = elsewhere.run(ALIGN, "up")
    assert joined.returncode == 0, joined.stderr
    assert elsewhere.run(ALIGN, "down").stdout == "stopped: stages, gpu, cpu\n"
    assert served.get("health") is True
