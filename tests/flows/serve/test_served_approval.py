"""A worker's run waits for a person's approval without a process, and goes on in a new one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from served import Served, processes_of, until

from alignment_core.artifacts import ArtifactStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


def test_suspended_run_goes_on_with_the_model_that_it_asked_about(
    served: Served, write: Callable[..., Path], tmp_path: Path
) -> None:
    gate = {"win_rate_over_sft": None, "win_rate_over_production": None, "max_kl": 1e9}
    path = write(name="approved", gate={**gate, "to_production": True, "approval": True}, isolation="inline")
    run = served.start(served.deploy(path))
    until(lambda: served.state(run)["name"] == "Suspended", lambda: served.state_and_log(run))
    until(lambda: not processes_of(run))
    store = ArtifactStore(tmp_path / "store")
    candidate = store.aliases.current("candidate")
    assert candidate is not None
    assert store.aliases.current("production") is None
    (tmp_path / "pairs.jsonl").write_text("the data are gone")  # the run does not read them again
    answer = {"approve": True, "name": "Ann", "reason": "I tried it"}
    assert served.post(f"flow_runs/{run}/resume", run_input=answer)["status"] == "ACCEPT"
    assert served.ended(run)["type"] == "COMPLETED", served.state_and_log(run)
    production = store.aliases.current("production")
    assert production is not None
    assert production.key == candidate.key
    assert production.by.startswith("Ann in flow run ")
    assert any("The model is now `candidate` and `production`." in report for report in served.reports(run))
