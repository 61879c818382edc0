"""The complete pipeline on a tiny real model: a first run, a second run, and a run with one change."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from shown import task_runs

from alignment_core.artifacts import ArtifactStore
from alignment_core.artifacts.prune import prune
from alignment_core.config_file import load_config
from alignment_core.execution.build import StageResult, build
from alignment_core.execution.stage import StageCall
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.progress import Progress
from alignment_core.registry import load_registry
from alignment_flows.pipeline import align
from alignment_flows.serve.cached_run import all_built

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def _pruned_before_every_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prune the store before every stage."""

    def pruned(call: StageCall, progress: Progress) -> StageResult:
        prune(ArtifactStore(call.runtime.store))
        return build(call, progress)

    monkeypatch.setattr("alignment_flows.tasks.build", pruned)


@pytest.mark.usefixtures("_pruned_before_every_stage")
def test_only_stages_that_a_change_affects_are_rebuilt(write: Callable[..., Path], tmp_path: Path) -> None:
    def cached(*changes: str) -> dict[str, bool]:
        """Return which stages of a run were cached. The states of Prefect's task runs must agree."""
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

    plan = plan_pipeline(load_config(write()), load_registry())
    assert all_built(plan)
    changed = plan_pipeline(load_config(write(), ["optimizer.beta=0.2"]), load_registry())
    assert not all_built(changed)
    assert cached("optimizer.beta=0.2") == {
        **dict.fromkeys(first, True),
        "optimize": False,
        "evaluate": False,
        "over_sft": False,
    }
    assert all_built(changed)
    (tmp_path / "store" / "ingest" / plan.ingest.key / "report.json").write_text("{}")
    assert not all_built(changed), "a damaged artifact must be rebuilt"

    elsewhere.write_text(pairs.read_text().replace("It is 6.", "It is six."))
    assert not any(cached(f"data.sources.0.path={elsewhere}").values())


def test_run_that_goes_on_from_an_adapter(write: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> None:
    first = align(load_config(write(), ["isolation=inline"]))
    model = {"base": str(tiny_model), "load_in": "fp32", "max_length": 128}
    model["adapter"] = str(first["optimize"].artifact.path)
    built = align(load_config(write(), ["isolation=inline", f"model={json.dumps(model)}", "sft=null"]))
    assert list(built) == ["ingest", "adapter", "reference", "optimize", "evaluate_sft", "evaluate", "over_sft"]
    before, after = (run["evaluate" if run is first else "evaluate_sft"].metrics for run in (first, built))
    # The model that was trained last is the one that training goes on from.
    assert after["perplexity"] == before["perplexity"]


def test_data_that_cannot_be_evaluated_are_refused_before_training(write: Callable[..., Path], tmp_path: Path) -> None:
    row = {"prompt": "What is 1 plus 1?", "chosen": "It is 2.", "rejected": "No."}
    path = write()
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    state = align(load_config(path, ["isolation=inline"]), return_state=True)
    assert "no prompt is held out" in str(state.message)
    assert [folder.name for folder in (tmp_path / "store").iterdir() if folder.name == "sft"] == []
