"""Aliases in Prefect: by hand from the browser, by the gate at the end of a run, and their history as a page."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.settings import PREFECT_API_URL
from served import ALIGN
from stored import A, B, add

from alignment_core.artifacts import ArtifactStore
from alignment_core.config_file import load_config
from alignment_flows.pipeline import align
from alignment_flows.promotion import history_page, promote, rollback

pytestmark = pytest.mark.usefixtures("prefect_server")


def pages(key: str) -> list[str]:
    chosen = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
    with get_client(sync_client=True) as client:
        return [str(artifact.data) for artifact in client.read_artifacts(artifact_filter=chosen)]


def test_a_person_promotes_and_rolls_back_from_the_browser(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    add(store, A)
    add(store, B)
    promote(tmp_path, A[:5], alias="pilot")
    assert promote(tmp_path, B, alias="pilot", reason="a | b").previous == A
    assert "| a \\| b |" in history_page(store, "pilot")
    assert rollback(tmp_path, alias="pilot").key == A
    assert "flow run" in store.aliases.history("pilot")[-1].by
    newest = next(page for page in pages("alias-pilot") if "| rollback |" in page)
    assert newest.startswith(f"# pilot\n\n`{store.root}/optimize/{A}` has this name.")
    failed = promote(tmp_path, "latest", alias="no name", return_state=True)
    assert failed.is_failed()
    assert str(failed.message).startswith("this cannot be the name of an alias. got no name")


def test_the_command_brings_the_page_up_to_date_if_there_is_a_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(ArtifactStore(tmp_path), A)
    api = PREFECT_API_URL.value()
    assert api is not None
    command = [*ALIGN, "promote", "latest", "--alias", "typed", "--store", str(tmp_path)]
    for address in (api, "http://127.0.0.1:9/api"):  # the discard port: nobody listens
        monkeypatch.setenv("PREFECT_API_URL", address)
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, f"typed is optimize/{A}\n")
        if address == api:
            assert done.stderr == ""
            assert [A in page for page in pages("alias-typed")] == [True]
    assert done.stderr.startswith("align: not shown in Prefect: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.ci
def test_gate_promotes_what_passes_and_not_the_same_model_again(write: Callable[..., Path], tmp_path: Path) -> None:
    """A rule that everything passes, then one that no model passes beside itself."""
    lenient: dict[str, Any] = {"win_rate_over_sft": None, "max_kl": 1e9, "to_production": True}
    evaluation = {
        "max_prompts": 2,
        "max_new_tokens": 8,
        "evaluators": [{"name": "wordlist", "unwanted": ["sorry"]}],
        "reward_model": True,
        "judge_fraction": 0.5,
        "safety": {"path": str(tmp_path / "pairs.jsonl")},
    }
    config = write(evaluation=evaluation, gate=lenient, isolation="inline")
    store = ArtifactStore(tmp_path / "store")

    def run(*changes: str) -> dict[str, Any]:
        state = align(load_config(config, changes), return_state=True)
        assert state.is_completed()
        found: dict[str, Any] = state.result()
        return found

    first = run()
    assert first["gate"].metrics["passed"]
    model = first["optimize"].artifact.key
    measured = first["over_sft"].metrics
    assert list(measured["win_rate"]) == ["judge", "wordlist", "reward"]
    assert first["evaluate"].metrics["safety"]["prompts"] == 24
    assert abs(measured["safety"]["wordlist"]["difference"]) <= 1
    assert first["judge"].artifact.key != first["reward"].artifact.key
    assert store.aliases.of(model) == ["candidate", "production"]
    assert any(model in page for page in pages("alias-production"))

    again = run()
    assert not again["gate"].metrics["passed"]
    assert (again["evaluate_production"].artifact, again["evaluate_production"].cached) == (
        first["evaluate"].artifact,
        True,
    )
    for rate in again["over_production"].metrics["win_rate"].values():
        assert (rate["wins"], rate["ties"], rate["losses"]) == (0, 2, 0)
    assert any("it is the model in production" in page for page in pages("run-report"))

    other = run("optimizer.beta=0.5", "gate.win_rate_over_production=null", "gate.to_production=false")
    assert other["evaluate_production"].cached, "what is in production is measured once"
    assert store.aliases.of(other["optimize"].artifact.key) == ["candidate"]
    assert store.aliases.of(model) == ["production"]
