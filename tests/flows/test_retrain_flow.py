"""The retrain as a flow run: a polite refusal, and what is deployed for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.cli.deploy._models import PrefectYamlModel

from alignment_core.feedback import Rater, open_feedback
from alignment_flows import feedback_events
from alignment_flows.deployments import _own, count_warning
from alignment_flows.retrain import retrain


@pytest.mark.usefixtures("prefect_server")
def test_too_few_votes_end_as_skipped(write: Callable[..., Path], tmp_path: Path) -> None:
    place = str(tmp_path / "feedback.db")
    with open_feedback(place) as store:
        response = store.add_response(({"role": "user", "content": "Hi"},), "Hello", "m")
        store.thumb(Rater("Ann"), response, True)
    config = json.loads(write(feedback=place, gate={}, retrain={"min_votes": 3}).read_text())
    state = retrain(config, return_state=True)
    assert (state.type.value, state.name, state.message) == ("COMPLETED", "Skipped", "1 new vote, 3 wanted")
    failed = retrain({**config, "gate": None}, return_state=True)
    assert failed.is_failed()
    assert "through the gate" in (failed.message or "")


def test_a_server_that_forgets_votes_is_warned_of(prefect_server: None) -> None:
    """The test's own server has Prefect's default of a minute."""
    warning = count_warning()
    assert warning is not None
    assert "within 60 s: start it with PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER=P3650D" in warning


def test_settings_with_a_gate_are_deployed_with_a_retrain(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [deployment["entrypoint"].rpartition(".")[2] for deployment in _own(write())] == ["align"]
    monkeypatch.chdir(tmp_path)
    pipeline, again = _own(write(gate={}, feedback="votes.db", retrain={"min_votes": 7}))
    assert (pipeline["name"], again["name"]) == ("small", "small")
    assert again["entrypoint"] == "alignment_flows.retrain.retrain"
    PrefectYamlModel.model_validate({"deployments": [again]})
    (trigger,) = again["triggers"]
    # What the page of the same store says of each vote is what the trigger waits for.
    assert trigger["expect"] == [feedback_events.RECORDED]
    with open_feedback("votes.db") as store:
        assert trigger["match"] == {"prefect.resource.id": feedback_events.resource_of(store.place)}
    assert (trigger["threshold"], trigger["within"]) == (7, 0)
