"""Runs and schedules that people start in the browser while another run is at work."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from brake import Brake
from browser import page_of
from playwright.sync_api import Browser
from prefect_pages import INTERFACES, OWN_FAULTS
from served import PREFECT, Served

pytestmark = pytest.mark.timeout(3600)

SECONDS = 2.0
"""Time until the server answers 95 % of the clicks, on a busy machine."""
SPIN = (sys.executable, "-c", "while True: pass")


@contextmanager
def busy(processes: int) -> Iterator[None]:
    """Keep the processors busy."""
    spinning = [subprocess.Popen(SPIN) for _ in range(processes)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("clicks", "spinning"),
    [
        pytest.param(2, 0, marks=pytest.mark.ci, id="a quiet machine"),
        pytest.param(10, 2, marks=pytest.mark.slow, id="a busy machine"),
    ],
)
def test_no_click_is_lost_while_a_run_is_at_work(
    served: Served,
    brake: Brake,
    write: Callable[..., Path],
    deployed_run: str,
    browser: Browser,
    tmp_path: Path,
    clicks: int,
    spinning: int,
) -> None:
    quick = deployed_run.replace("align/", "quick/")
    brake.hold("sft")
    at_work = served.start(served.deploy(write(name="at-work")), job_variables=brake.job_variables)
    brake.held(served, at_work)
    answers: list[tuple[int, float]] = []
    with busy(spinning):
        for name in INTERFACES:
            with page_of(browser, tmp_path, OWN_FAULTS) as opened:
                sent: dict[str, float] = {}
                opened.page.on("request", lambda asked, sent=sent: sent.setdefault(asked.url, time.perf_counter()))
                interface = INTERFACES[name](opened, served)
                for _ in range(clicks):
                    interface.open_form(quick)
                    sent.clear()
                    with opened.page.expect_response(lambda answer: "create_flow_run" in answer.url) as answer:
                        opened.page.get_by_role("button", name="Submit", exact=True).click()
                    answers.append((answer.value.status, time.perf_counter() - sent[answer.value.url]))
                    run = answer.value.json()["id"]
                    done = served.run(PREFECT, "flow-run", "cancel", run)
                    assert done.returncode == 0, done.stdout + done.stderr
                interface.schedule(quick, minutes=90 if name == "v1" else 95)
    assert [status for status, _ in answers] == [201] * 2 * clicks
    seconds = sorted(taken for _, taken in answers)
    print(f"seconds until the server answered: {[round(taken, 2) for taken in seconds]}")
    assert not spinning or seconds[int(0.95 * len(seconds)) - 1] < SECONDS
    schedules = served.deployment(quick)["schedules"]
    assert sorted(each["schedule"]["interval"] for each in schedules) == [90 * 60, 95 * 60]
    for each in schedules:
        served.delete(f"deployments/{served.deployment(quick)['id']}/schedules/{each['id']}")
    brake.release()
    assert served.ended(at_work)["type"] == "COMPLETED", served.state_and_log(at_work)
