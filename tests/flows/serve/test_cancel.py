"""Runs that are cancelled in the terminal or in the browser, then retried or started again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
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
"""Stages at which each optimizer's run is cancelled, as prefixes of their labels. A test goes through all of a list."""
TRAINING = {"sft", "reward", *STAGES}
CANCEL_SECONDS = 30
SMALL = 250_000_000
"""Limit of the memory of a flow run's process, in bytes."""

STEP = {"batch_size": 4, "learning_rate": 1e-3}
ROLLOUTS = {"rollouts": 2, "rollout_size": 8, "max_new_tokens": 6, "kl_ceiling": 1e6, "step_kl": None}
LETTERS = [*"abcdefghijklmnopqrstuvwxyz"]


def chain(optimizer: str, store: Path) -> dict[str, Any]:
    """Return settings with every stage. The random model produces a letter now and then, so some responses win."""
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
    """Cancel a run. Return the seconds until its process and its stage's are gone, which must leave it Cancelled."""
    engine = engine_of(run)
    done = served.run(PREFECT, "flow-run", "cancel", run)
    assert done.returncode == 0, done.stdout + done.stderr
    until(lambda: not alive(engine) and not alive(stage), lambda: served.state_and_log(run))
    gone = time.time()
    assert served.ended(run)["type"] == "CANCELLED", served.state_and_log(run)
    until(lambda: not processes_of(run), lambda: processes_of(run))
    asked = [state for state in served.states(run) if state["type"] == "CANCELLING"]
    return gone - datetime.fromisoformat(asked[-1]["timestamp"]).timestamp()


@pytest.mark.ci
def test_run_cancelled_and_retried_in_the_browser_resumes_and_its_process_stays_small(
    served: Served, brake: Brake, write: Callable[..., Path], browser_page: BrowserPage
) -> None:
    deployment = served.deploy(write(name="clicked", sft=STEP))
    brake.hold("sft")
    run = served.start(deployment, job_variables=brake.job_variables)
    stage = brake.held(served, run)
    engine = engine_of(run)
    assert memory(engine) < SMALL
    assert not holds_torch(engine)
    assert holds_torch(stage), "otherwise the line above would prove nothing"

    page = browser_page.open(f"{served.url}/runs/flow-run/{run}")
    click(page, "Cancel", "This will put flow run", "Confirm")
    until(lambda: not alive(engine) and not alive(stage), lambda: served.state_and_log(run))
    page.get_by_role("button", name="Retry").wait_for()
    assert served.state(run)["type"] == "CANCELLED"
    assert processes_of(run) == []
    brake.release()
    click(page, "Retry", "This will retry flow run", "Retry")
    until(lambda: served.state(run)["type"] != "CANCELLED")
    assert served.ended(run)["type"] == "COMPLETED", served.state_and_log(run)
    check_nothing_was_lost(served, run, "sft", ("ingest",))

    cached = served.start(deployment, job_variables=brake.job_variables)
    assert served.ended(cached)["name"] == "Nothing new", served.state_and_log(cached)
    for ended in (run, cached):
        assert brake.loaded(ended)["torch"] is False
        assert brake.loaded(ended)["peak"] < SMALL
    # Prefect's page requests icons that its server does not have.
    browser_page.expected(r"404 .*/(favicon\.ico|ico/\w+\.svg)")
    browser_page.check()


def click(page: Page, action: str, question: str, answer: str) -> None:
    """Click a button of the run's page and confirm the question that follows."""
    page.get_by_role("button", name=action, exact=True).click()
    page.get_by_text(question).wait_for()
    page.get_by_role("button", name=answer, exact=True).last.click()


def memory(process: int) -> int:
    """Return the resident memory in bytes, including pages shared with other processes."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) * 1024


def holds_torch(process: int) -> bool:
    return "libtorch" in Path(f"/proc/{process}/maps").read_text()


def retry(served: Served, run: str) -> None:
    done = served.run(PREFECT, "flow-run", "retry", run)
    assert done.returncode == 0, done.stdout + done.stderr


def retried_or_new(served: Served, brake: Brake, deployment: str, run: str) -> Iterator[str]:
    """Retry the run and start a new one in turns. Yield the id of the run each time."""
    for fresh in cycle([False, True]):
        if fresh:
            run = served.start(deployment, job_variables=brake.job_variables)
        else:
            retry(served, run)
        yield run


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", STAGES)
def test_run_cancelled_at_any_stage_stops_in_time_and_resumes(
    served: Served, brake: Brake, write: Callable[..., Path], shared_store: Path, optimizer: str
) -> None:
    deployment = served.deploy(write(**chain(optimizer, shared_store)))
    brake.hold(STAGES[optimizer][0])
    run = served.start(deployment, job_variables=brake.job_variables)
    runs = retried_or_new(served, brake, deployment, run)
    for here, following in zip(STAGES[optimizer], [*STAGES[optimizer][1:], None], strict=True):
        assert cancel(served, run, brake.held(served, run)) < CANCEL_SECONDS, here
        if following:
            brake.hold(following)
            run = next(runs)
            brake.held(served, run)
        else:
            brake.release()
            run = next(runs)
            assert served.ended(run)["type"] == "COMPLETED", served.state_and_log(run)
        check_nothing_was_lost(served, run, here, STAGES[optimizer][: STAGES[optimizer].index(here)])


def check_nothing_was_lost(served: Served, run: str, cancelled: str, earlier: tuple[str, ...]) -> None:
    """Check that stages finished before the cancellation are cached and that the cancelled stage resumed."""
    tasks = served.tasks(run)
    assert {stage: tasks[stage]["state"]["name"] for stage in earlier} == dict.fromkeys(earlier, "Cached")
    assert tasks[cancelled]["state"]["name"] == "Completed"
    if cancelled in TRAINING:
        lines = partial(served.log, run, task_run_id={"any_": [tasks[cancelled]["id"]]})
        until(lambda: "resumed after step" in lines(), lines)  # a run that goes on sends its log every other second
