"""New votes start a retrain automatically: event, automation, worker."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from served import ALIGN, Served, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

VOTES = """
import sys, time
from alignment_core.feedback import Rater, open_feedback
from alignment_flows.serve.vote_events import vote_notifier

place = sys.argv[1]
with open_feedback(place, vote_notifier(place)) as store:
    first, second = (store.add_response(({"role": "user", "content": "Hi"},), text, "m") for text in ("Hello", "Go"))
    store.thumb(Rater("Ann"), first, True)
    store.thumb(Rater("Ann"), second, False)
    store.withdraw(Rater("Ann"), first)
    time.sleep(5)  # events are sent a moment after the vote
"""


def test_enough_votes_start_a_retrain(served: Served, write: Callable[..., Path], tmp_path: Path) -> None:
    """Three votes arrive. One of them withdraws another, so one is active and three are needed."""
    place = str(tmp_path / "feedback.db")
    settings = {"name": "loop", "feedback": place, "gate": {}}
    deployed = served.run(ALIGN, "deploy", write(**settings, retrain={"min_votes": 9}))
    assert deployed.returncode == 0, deployed.stderr
    names = ("align/loop", "quick/loop", "retrain/loop")
    assert deployed.stdout.splitlines()[:3] == [f"{name}: created" for name in names]
    rule = served.automation("retrain/loop: enough votes")
    assert (rule["enabled"], rule["trigger"]["threshold"]) == (True, 9)
    served.patch(f"automations/{rule['id']}", enabled=False)
    served.deploy(write(**settings, retrain={"min_votes": 3}))  # does not create a second automation
    rule = served.automation("retrain/loop: enough votes")
    assert (rule["enabled"], rule["trigger"]["threshold"]) == (False, 3)
    served.patch(f"automations/{rule['id']}", enabled=True)

    def runs() -> list[dict[str, Any]]:
        return served.runs_of("retrain/loop")

    voted = served.run([sys.executable, "-P", "-c", VOTES], place)
    assert voted.returncode == 0, voted.stderr
    until(runs, lambda: served.post("events/filter", filter={"event": {"prefix": ["alignment."]}}))
    (run,) = runs()
    ended = served.ended(run["id"])
    assert (ended["type"], ended["name"], ended["message"]) == ("COMPLETED", "Skipped", "1 new vote, 3 needed")
    assert len(runs()) == 1
    # Votes may arrive over days. The server of `align up` keeps their count, so there is no warning.
    assert "warning" not in deployed.stderr
    events = served.get("admin/settings")["server"]["events"]
    assert events["expired_bucket_buffer"] == "P10Y"  # 3650 days, as the server writes them
