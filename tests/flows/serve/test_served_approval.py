"""A worker's run waits for a person's approval without a process, and goes on in a new one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from browser import BrowserPage
from served import Served, processes_of, until

from alignment_core.artifacts import ArtifactStore

pytestmark = [pytest.mark.ci, pytest.mark.timeout(3600)]


def test_suspended_run_goes_on_with_the_model_that_it_asked_about(
    served: Served, write: Callable[..., Path], tmp_path: Path, prefect_page: BrowserPage
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
    page = prefect_page.open(f"{served.url}/runs/flow-run/{run}")
    page.get_by_role("button", name="Resume", exact=True).click()
    form = page.get_by_role("dialog")
    form.get_by_text("passed: the KL from the reference").wait_for()
    form.locator("input[type=checkbox]").locator("xpath=..").click()
    for field, text in enumerate(("Ann", "I tried it")):
        form.locator("textarea").nth(field).fill(text)
    form.get_by_role("button", name="Submit").click()
    form.wait_for(state="hidden")
    assert served.ended(run)["type"] == "COMPLETED", served.state_and_log(run)
    production = store.aliases.current("production")
    assert production is not None
    assert production.key == candidate.key
    assert production.by.startswith("Ann in flow run ")
    assert any("The model is now `candidate` and `production`." in report for report in served.reports(run))
