"""A run that is cancelled, in the terminal or in the browser, and what a retry or a fresh run makes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
from brake import Brake
from browser import BrowserPage
from playwright.sync_api import Page
from served import PREFECT, Served, alive, engine_of, processes_of, until

pytestmark = pytest.mark.timeout(3600)

STAGES = {
    "dpo": ("ingest", "sft", "sample", "rank", "reference", "dpo", "evaluate sft", "evaluate dpo"),
    "kto": ("kto",),
    "ppo": ("reward", "ppo", "evaluate ppo"),
}
"""Where a run of each optimizer is cancelled, by the beginnings of the stages' labels: one of them passes them all."""
TRAINING = {"sft", "reward", *STAGES}
CANCEL_SECONDS = 30
SMALL = 250_000_000
"""Bytes that a flow run's own process may take."""

STEP = {"batch_size": 4, "learning_rate": 1e-3}
ROLLOUTS = {"rollouts": 2, "rollout_size": 8, "max_new_tokens": 6, "kl_ceiling": 1e6, "step_kl": None}
LETTERS = [*"abcdefghijklmnopqrstuvwxyz"]


def chain(optimizer: str, store: Path) -> dict[str, Any]:
    """Settings with every stage that there is. A model of random weights says a letter now and then, and so wins."""
    return {
        "name": f"cancelled-{optimizer}",
        "store": str(store),
        "sft": STEP,
        "sample": {"max_new_tokens": 12, "max_prompts": 8},
        "rank": {"by": {"name": "wordlist", "wanted": LETTERS}},
        "reward": STEP,
        "optimizer": {"name": optimizer, **STEP, **(ROLLOUTS if optimizer == "ppo" else {})},
        "token_budget": 512,
    }


def cancel(served: Served, run: str, stage: int) -> float:
    """Cancel a run; seconds until its process and its stage's are gone. It is Cancelled then, and nothing is left."""
    engine = engine_of(run)
    done = served.run(PREFECT, "flow-run", "cancel", run)
    assert done.returncode == 0, done.stdout + done.stderr
    until(lambda: not alive(engine) and not alive(stage), lambda: served.told(run))
    gone = time.time()
    assert served.ended(run)["type"] == "CANCELLED", served.told(run)
    until(lambda: not processes_of(run), lambda: processes_of(run))
    asked = [state for state in served.states(run) if state["type"] == "CANCELLING"]
    return gone - datetime.fromisoformat(asked[-1]["timestamp"]).timestamp()


@pytest.mark.ci
def test_cancelled_and_retried_in_the_browser_it_goes_on_and_its_process_stays_small(
    served: Served, brake: Brake, write: Callable[..., Path], browser_page: BrowserPage
) -> None:
    deployment = served.deploy(write(name="clicked", sft=STEP))
    brake.hold("sft")
    run = served.start(deployment, job_variables=brake.job_variables)
    stage = brake.held(served, run)
    engine = engine_of(run)
    assert memory(engine) < SMALL
    assert not holds_torch(engine)
    assert holds_torch(stage), "or the line above would say nothing"

    page = browser_page.open(f"{served.url}/runs/flow-run/{run}")
    click(page, "Cancel", "This will put flow run", "Confirm")
    until(lambda: not alive(engine) and not alive(stage), lambda: served.told(run))
    page.get_by_role("button", name="Retry").wait_for()
    assert served.state(run)["type"] == "CANCELLED"
    assert processes_of(run) == []
    brake.release()
    click(page, "Retry", "This will retry flow run", "Retry")
    until(lambda: served.state(run)["type"] != "CANCELLED")
    assert served.ended(run)["type"] == "COMPLETED", served.told(run)
    check_nothing_was_lost(served, run, "sft", ("ingest",))

    cached = served.start(deployment, job_variables=brake.job_variables)
    assert served.ended(cached)["name"] == "Nothing new", served.told(cached)
    for ended in (run, cached):
        assert brake.loaded(ended)["torch"] is False
        assert brake.loaded(ended)["peak"] < SMALL
    # Prefect's own page asks its server for icons that are not there.
    browser_page.expected(r"404 .*/(favicon\.ico|ico/\w+\.svg)")
    browser_page.check()


def click(page: Page, action: str, question: str, answer: str) -> None:
    """A button of the run's page, and the one below the question whether that was meant."""
    page.get_by_role("button", name=action, exact=True).click()
    page.get_by_text(question).wait_for()
    page.get_by_role("button", name=answer, exact=True).last.click()


def memory(process: int) -> int:
    """Resident memory in bytes, of pages that are shared with others too."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) * 1024


def holds_torch(process: int) -> bool:
    return "libtorch" in Path(f"/proc/{process}/maps").read_text()


def retry(served: Served, run: str) -> None:
    done = served.run(PREFECT, "flow-run", "retry", run)
    assert done.returncode == 0, done.stdout + done.stderr


def begun_again(served: Served, brake: Brake, deployment: str, run: str) -> Iterator[str]:
    """The same run retried and a fresh run in turns; gives the run's id."""
    for fresh in cycle([False, True]):
        if fresh:
            run = served.start(deployment, job_variables=brake.job_variables)
        else:
            retry(served, run)
        yield run


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", STAGES)
def test_cancelled_at_any_stage_it_stops_in_time_and_goes_on(
    served: Served, brake: Brake, write: Callable[..., Path], shared_store: Path, optimizer: str
) -> None:
    deployment = served.deploy(write(**chain(optimizer, shared_store)))
    brake.hold(STAGES[optimizer][0])
    run = served.start(deployment, job_variables=brake.job_variables)
    runs = begun_again(served, brake, deployment, run)
    for here, following in zip(STAGES[optimizer], [*STAGES[optimizer][1:], None], strict=True):
        assert cancel(served, run, brake.held(served, run)) < CANCEL_SECONDS, here
        if following:
            brake.hold(following)
            run = next(runs)
            brake.held(served, run)
        else:
            brake.release()
            run = next(runs)
            assert served.ended(run)["type"] == "COMPLETED", served.told(run)
        check_nothing_was_lost(served, run, here, STAGES[optimizer][: STAGES[optimizer].index(here)])


def check_nothing_was_lost(served: Served, run: str, cancelled: str, earlier: tuple[str, ...]) -> None:
    """What was finished before the cancellation was found, and what was cancelled went on."""
    tasks = served.tasks(run)
    assert {stage: tasks[stage]["state"]["name"] for stage in earlier} == dict.fromkeys(earlier, "Cached")
    assert tasks[cancelled]["state"]["name"] == "Completed"
    if cancelled in TRAINING:
        assert "resumed after step" in served.log(run, task_run_id={"any_": [tasks[cancelled]["id"]]})
