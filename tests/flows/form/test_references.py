"""Settings that refer to blocks and variables of Prefect: replaced where the flow runs, and stored nowhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL
from prefect.variables import Variable

from alignment_core.config_file import check_config, load_config
from alignment_core.errors import ConfigError
from alignment_core.feedback import Rater, open_feedback
from alignment_flows.form.settings import read_settings
from alignment_flows.pipeline import align
from alignment_flows.serve.deployments.deploy import deploy

pytestmark = pytest.mark.usefixtures("prefect_server")

URL = "postgresql://ann:${s3cret}-{{ prefect.variables.beta }}@db/votes"
"""A secret may contain what looks like a variable."""


@pytest.fixture(scope="module", autouse=True)
def _known(prefect_server: None) -> None:
    Secret(value=URL).save("votes", overwrite=True)  # type: ignore[unused-coroutine]
    Secret(value="k3y").save("key", overwrite=True)  # type: ignore[unused-coroutine]
    Variable.set("beta", 0.25, overwrite=True)
    Variable.set("folder", "models", overwrite=True)


def settings(**changes: Any) -> dict[str, Any]:
    return {"model": {"base": "some/model"}, "data": {"sources": [{"path": "rows.jsonl"}]}, **changes}


def test_references_are_replaced() -> None:
    given = settings(
        feedback="{{ prefect.blocks.secret.votes }}",
        store="/data/{{prefect.variables.folder}}/store",
        optimizer={"name": "dpo", "beta": "{{ prefect.variables.beta }}"},
        listeners=[{"name": "tracker", "headers": {"key": "Bearer {{ prefect.blocks.secret.key }}"}}],
        model={"base": "some/model", "chat_template": "{{ bos_token }}"},
    )
    for found in (read_settings(given, ()), read_settings(check_config(given), ("seed=1",))):
        assert found.feedback == URL
        assert found.store == Path("/data/models/store")
        assert found.optimizer["beta"] == 0.25
        assert found.listeners[0]["headers"] == {"key": "Bearer k3y"}
        assert found.model.chat_template == "{{ bos_token }}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"store": "{{ prefect.variables.nowhere }}"}, r"store: Prefect has no such variable. got nowhere. Create it"),
        (
            {"feedback": "{{ prefect.blocks.secret.nobody }}"},
            r"feedback: Prefect has no such block. got prefect.blocks",
        ),
        (
            {"feedback": "{{ prefect.secret.votes }}"},
            r"feedback: unknown reference to Prefect. got prefect.secret.votes",
        ),
        ({"store": "{{ prefect.blocks.secret.key }}"}, r"store: the value of a block is a secret, but this setting"),
        ({"feedback": "{{ prefect.blocks.secret.key }}"}, r"feedback: the value of a block is a secret"),
        ({"device": "{{ prefect.variables.beta }}"}, r"device: invalid value. got 0.25, expected a valid string"),
    ],
)
def test_mistakes_are_reported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        read_settings(settings(**changes), ())
    assert "k3y" not in str(caught.value)


@pytest.mark.ci
def test_secret_is_stored_nowhere(
    write: Callable[..., Path], tmp_path: Path, postgres: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The password of a feedback store that the run reads: not in the store, in Prefect's database, or in the log."""
    user, _, rest = postgres.partition("://")[2].partition(":")
    password = rest.partition("@")[0]
    assert len(password) > 5
    with open_feedback(postgres) as store:
        for number in range(8):
            response = store.add_response(({"role": "user", "content": f"Hi {number}"},), "Hello", "m")
            store.thumb(Rater("Ann"), response, True)
    Secret(value=postgres).save("database", overwrite=True)  # type: ignore[unused-coroutine]
    path = write(isolation="inline", feedback="{{ prefect.blocks.secret.database }}", optimizer={"name": "kto"})
    more = [
        "data.sources=[{path: '{{ prefect.blocks.secret.database }}'}, {path: " + str(tmp_path / "pairs.jsonl") + "}]"
    ]
    state = align(load_config(path, more), return_state=True)
    assert state.is_completed(), state.message
    files = [file for file in (tmp_path / "store").rglob("*") if file.is_file()]
    assert [file for file in files if password.encode() in file.read_bytes()] == []
    assert any(f"{user}:***@" in file.read_text() for file in files if file.name == "manifest.json")
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(state.state_details.flow_run_id)
        assert run.parameters["config"]["feedback"] == "{{ prefect.blocks.secret.database }}"
        shown = [client.request("POST", f"/{kind}/filter", json={}).text for kind in ("flow_runs", "artifacts", "logs")]
        shown.append(client.request("POST", "/events/filter", json={}).text)
    assert password not in "".join(shown) + caplog.text


@pytest.mark.ci
def test_deployment_keeps_the_references(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """`prefect deploy` replaces references in the parameters of a prefect.yaml by their values."""
    monkeypatch.setenv("PREFECT_API_URL", str(PREFECT_API_URL.value()))
    listener = {"name": "jsonl", "path": "{{ prefect.blocks.secret.key }}"}
    path = write(name="referring", feedback="{{ prefect.blocks.secret.votes }}", listeners=[listener], gate={})
    deployed = [outcome.name for outcome in deploy([path])]
    assert deployed == ["align/referring", "quick/referring", "retrain/referring"]
    for name in ("align/referring", "retrain/referring"):
        with get_client(sync_client=True) as client:
            given = client.read_deployment_by_name(name).parameters["config"]
        assert given["feedback"] == "{{ prefect.blocks.secret.votes }}"
        assert given["listeners"] == [listener]
    with get_client(sync_client=True) as client:
        (rule,) = client.read_automations_by_name("retrain/referring: enough votes")
    assert "alignment.feedback.postgresql+psycopg://ann:***@db/votes" in str(rule.trigger)
