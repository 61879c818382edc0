"""Stages as Prefect tasks: Cached states, the task graph, error messages, and the stop at the first failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dies
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId
from prefect.client.schemas.objects import State, TaskRun
from shown import task_runs

from alignment_core.artifacts import ArtifactStore
from alignment_core.config_file import load_config
from alignment_core.errors import AlignmentError, DataError, StageCrashed
from alignment_core.execution.stage import StageCall
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.registry import load_registry
from alignment_flows.tasks import StageRunner, without_traceback

pytestmark = pytest.mark.usefixtures("prefect_server")

Probe = Callable[..., StageCall]


@flow(persist_result=False)
@without_traceback
def run_stages(graph: list[tuple[StageCall, list[StageCall]]]) -> list[bool]:
    """Run each call after its parents and return which were cached."""
    stage = StageRunner()
    for call, parents in graph:
        stage(call, *parents)
    return [stage.built(call).cached for call, _ in graph]


def run(*graph: tuple[StageCall, list[StageCall]], tasks: int) -> tuple[State[Any], dict[str, TaskRun]]:
    """Run the stages. Return the flow run's final state and its `tasks` task runs by name."""
    state = run_stages(list(graph), return_state=True)
    return state, {task.name: task for task in task_runs(state, tasks)}


def reports_of(state: State[Any]) -> list[str]:
    chosen = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id]))
    with get_client(sync_client=True) as client:
        return [str(artifact.data) for artifact in client.read_artifacts(artifact_filter=chosen)]


def test_second_run_is_shown_as_cached(probe: Probe) -> None:
    data = probe("write")
    child = probe("report", parents={"data": data.key})
    first, first_tasks = run((data, []), (child, [data]), tasks=2)
    second, second_tasks = run((data, []), (child, [data]), tasks=2)
    assert first.result() == [False, False]
    assert second.result() == [True, True]
    assert {name: task.state_name for name, task in first_tasks.items()} == {
        "probe · write": "Completed",
        "probe · report": "Completed",
    }
    assert {task.state_name for task in second_tasks.values()} == {"Cached"}
    parents = second_tasks["probe · report"].task_inputs["parents"]
    assert [str(source.id) for source in parents] == [str(second_tasks["probe · write"].id)]  # type: ignore[union-attr]


def test_every_stage_creates_a_report(probe: Probe) -> None:
    state, _ = run((probe("report"), []), tasks=1)
    (report,) = reports_of(state)
    assert report.startswith("# probe · report\n")
    assert "| this run | built |" in report
    assert "| starts | 1 |" in report
    assert "| seed | 3 |" in report
    assert f"- {'x' * 1000}" in report


@pytest.mark.parametrize(
    ("do", "kind", "message"),
    [
        ("user error", DataError, "data.jsonl: no rows. got 0, expected at least 1. Add some."),
        ("bug", StageCrashed, "probe · bug: the stage failed: KeyError: 'lost'."),
        ("exit", StageCrashed, "probe · exit: the stage's process exited with code 7."),
    ],
)
def test_failed_stage_stops_the_run_with_its_message(
    probe: Probe, caplog: pytest.LogCaptureFixture, do: str, kind: type[AlignmentError], message: str
) -> None:
    state, tasks = run((probe(do), []), (probe("write"), []), tasks=1)
    assert state.is_failed()
    assert (state.message or "").startswith(message)
    with pytest.raises(kind):
        state.result()
    assert list(tasks) == [f"probe · {do}"]
    assert tasks[f"probe · {do}"].state_name == "Failed"
    assert not any(record.exc_info for record in caplog.records)


def test_killed_stage_is_retried_and_reported(probe: Probe, caplog: pytest.LogCaptureFixture) -> None:
    die = probe("die once")
    state, tasks = run((die, []), (probe("write"), []), tasks=2)
    assert state.is_completed()
    task = tasks["probe · die once"]
    assert (task.state_name, task.run_count) == ("Completed", 2)
    assert any("| starts | 2 |" in report for report in reports_of(state))
    assert "killed by SIGKILL" in caplog.text
    assert "Retry 1/1 will start immediately" in caplog.text
    assert tasks["probe · write"].run_count == 1


@pytest.mark.parametrize(("do", "starts"), [("die by", 2), ("user error", 1), ("bug", 1), ("exit", 1)])
def test_only_a_killed_stage_is_retried_and_only_once(probe: Probe, do: str, starts: int) -> None:
    call = probe(do, signal=signal.SIGKILL)
    state, tasks = run((call, []), tasks=1)
    assert state.is_failed()
    assert tasks[f"probe · {do}"].run_count == starts
    checkpoints = call.runtime.store / ".building" / call.key / "checkpoints"
    assert len((checkpoints / "starts").read_text().split()) == starts


@pytest.mark.ci
@pytest.mark.timeout(1800)
def test_killed_training_is_retried_to_the_weights_of_an_uninterrupted_one(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kill comes in the second of two steps. The checkpoint contains the changes of the first."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(dies.SITE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=os.pathsep)
    weights = []
    for store, kind in (("unbroken", ""), ("killed", "pass")):
        settings = load_config(write(store=str(tmp_path / store), checkpoint_seconds=1e-3), ())
        plan = plan_pipeline(settings, load_registry())
        assert plan.sft is not None
        dies.order(tmp_path / "order", tmp_path / "counts", plan.sft.key, kind=kind, number=2, once=True)
        monkeypatch.setenv(dies.VARIABLE, str(tmp_path / "order"))
        state, tasks = run((plan.ingest, []), (plan.sft, [plan.ingest]), tasks=2)
        assert state.is_completed()
        assert tasks[plan.sft.label].run_count == (2 if kind else 1)
        artifact = ArtifactStore(settings.store).find(plan.sft.key)
        assert artifact is not None
        weights.append({name: file.sha256 for name, file in artifact.manifest().files.items()})
    assert weights[0] == weights[1]
    assert "adapter_model.safetensors" in weights[0]


def test_stage_that_several_plans_share_runs_once(probe: Probe) -> None:
    shared = probe("write")
    _, tasks = run((shared, []), (shared, []), tasks=1)
    assert len(tasks) == 1


def test_flow_that_forgets_a_parent_is_caught(probe: Probe) -> None:
    data = probe("write")
    state, _ = run((data, []), (probe("report", parents={"data": data.key}), []), tasks=1)
    assert state.is_failed()
    assert "reads stages that the flow does not pass to it" in (state.message or "")


UNREAD = """
import sys
from pathlib import Path
from rich.console import Console
import alignment_flows.tasks

sys.stdin.read()
for file in (sys.stdout, sys.stderr):
    Console(file=file).print("nobody reads this")
print("nor this", flush=True)
Path(sys.argv[1]).touch()
"""


def test_process_of_a_run_outlives_the_worker_that_reads_its_output(tmp_path: Path) -> None:
    run = subprocess.Popen(
        [sys.executable, "-P", "-c", UNREAD, tmp_path / "done"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PREFECT__FLOW_RUN_ID": "a worker's"},
    )
    for pipe in (run.stdout, run.stderr, run.stdin):  # the process prints once stdin, the last one, is closed
        assert pipe is not None
        pipe.close()
    assert run.wait() == 0
    assert (tmp_path / "done").exists()
