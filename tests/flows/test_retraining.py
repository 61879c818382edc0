"""The retrain as a flow run: skipped with too few votes, and its deployment."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from alignment_core.feedback import Rater, open_feedback
from alignment_flows.retraining import retrain
from alignment_flows.serve import vote_events
from alignment_flows.serve.deployments.declared import own
from alignment_flows.serve.deployments.deploy import count_warning


@pytest.mark.usefixtures("prefect_server")
def test_too_few_votes_end_as_skipped(write: Callable[..., Path], tmp_path: Path) -> None:
    place = str(tmp_path / "feedback.db")
    with open_feedback(place) as store:
        response = store.add_response(({"role": "user", "content": "Hi"},), "Hello", "m")
        store.thumb(Rater("Ann"), response, True)
    config = json.loads(write(feedback=place, gate={}, retrain={"min_votes": 3}).read_text())
    state = retrain(config, return_state=True)
    assert (state.type.value, state.name, state.message) == ("COMPLETED", "Skipped", "1 new vote, 3 needed")
    failed = retrain({**config, "gate": None}, return_state=True)
    assert failed.is_failed()
    assert "through the gate" in (failed.message or "")


def test_server_that_forgets_votes_causes_a_warning(prefect_server: None) -> None:
    """The test server uses Prefect's default of one minute."""
    warning = count_warning()
    assert warning is not None
    assert "forgets the count of votes after 60 s" in warning
    assert "Start the server with PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER=P3650D" in warning


def test_settings_with_a_gate_are_deployed_with_a_retrain(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [declared.name for declared in own(write())] == ["align/small", "quick/small"]
    monkeypatch.chdir(tmp_path)
    pipeline, _, again = own(write(gate={}, feedback="votes.db", retrain={"min_votes": 7}))
    assert (pipeline.name, again.name) == ("align/small", "retrain/small")
    assert again.fixed["entrypoint"] == "alignment_flows.retraining.retrain"
    (trigger,) = again.settings["triggers"].values()
    # The trigger waits for the event that the pages of the same store emit for each vote.
    assert trigger["expect"] == [vote_events.RECORDED]
    with open_feedback("votes.db") as store:
        assert trigger["match"] == {"prefect.resource.id": vote_events.resource_of(store.place)}
    assert (trigger["threshold"], trigger["within"]) == (7, 0)
