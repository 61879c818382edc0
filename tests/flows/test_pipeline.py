"""The whole pipeline on a tiny real model: run once, run again, change one thing."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from shown import task_runs

from alignment_core.artifacts import ArtifactStore
from alignment_core.artifacts.prune import prune
from alignment_core.config_file import load_config
from alignment_core.progress import Progress
from alignment_core.registry import load_registry
from alignment_core.stages.base import StageCall
from alignment_core.stages.build import Built, build
from alignment_core.stages.plan import make_plan
from alignment_flows.local import all_built
from alignment_flows.pipeline import align

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def _pruned_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before every stage somebody prunes the store."""

    def pruned(call: StageCall, progress: Progress) -> Built:
        prune(ArtifactStore(call.runtime.store))
        return build(call, progress)

    monkeypatch.setattr("alignment_flows.tasks.build", pruned)


@pytest.mark.usefixtures("_pruned_all_the_time")
def test_only_what_a_change_reaches_is_built_again(write: Callable[..., Path], tmp_path: Path) -> None:
    def cached(*changes: str) -> dict[str, bool]:
        """Which stages of a run came from the store; Prefect's task runs must say the same."""
        state = align(load_config(write(), ["isolation=inline", *changes]), return_state=True)
        built = state.result()
        assert all((stage.artifact.path / "manifest.json").is_file() for stage in built.values())
        shown = [task.state_name for task in task_runs(state, len(built))]
        assert sorted(shown) == sorted("Cached" if stage.cached else "Completed" for stage in built.values())
        return {name: stage.cached for name, stage in built.items()}

    pairs, elsewhere = tmp_path / "pairs.jsonl", tmp_path / "elsewhere.jsonl"
    first = cached()
    assert list(first) == ["ingest", "sft", "reference", "optimize", "evaluate_sft", "evaluate", "over_sft"]
    assert not any(first.values())
    with get_client(sync_client=True) as client:
        reports = [str(artifact.data) for artifact in client.read_artifacts()]
    assert any("# ingest · " in report and "# Data report" in report for report in reports)

    os.utime(pairs, (1, 1))
    elsewhere.write_bytes(pairs.read_bytes())
    assert all(cached().values())
    assert all(cached(f"data.sources.0.path={elsewhere}", "token_budget=128").values())

    plan = make_plan(load_config(write()), load_registry())
    assert all_built(plan)
    changed = make_plan(load_config(write(), ["optimizer.beta=0.2"]), load_registry())
    assert not all_built(changed)
    assert cached("optimizer.beta=0.2") == {
        **dict.fromkeys(first, True),
        "optimize": False,
        "evaluate": False,
        "over_sft": False,
    }
    assert all_built(changed)
    (tmp_path / "store" / "ingest" / plan.ingest.key / "report.json").write_text("{}")
    assert not all_built(changed), "one that is damaged is to be built again"

    elsewhere.write_text(pairs.read_text().replace("It is 6.", "It is six."))
    assert not any(cached(f"data.sources.0.path={elsewhere}").values())
