"""Tracked metrics, read back with each tracker's own library and compared with the stage's history."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from served import until

from alignment_core.errors import ConfigError
from alignment_core.plugin_api import StageInfo
from alignment_core.registry import load_registry
from alignment_plugins.tracker import SentLog, Tracker, flatten

KEY = "a" * 32
STEPS = [{"step": n, "loss": 1 / n, "grad_norm": 2.0 * n} for n in range(1, 7)]
REPORT = {"step": 4, "rollout/kl": 0.25}
HISTORY = [*STEPS[:4], REPORT, *STEPS[4:]]
SETTINGS = {"optimizer": {"name": "ppo", "beta": 0.1}, "seed": 3, "chat_template": "x" * 500, "targets": ["q", "v"]}
EXPECTED = {
    "loss": [(entry["step"], entry["loss"]) for entry in STEPS],
    "grad_norm": [(entry["step"], entry["grad_norm"]) for entry in STEPS],
    "rollout/kl": [(4, 0.25)],
}


READ = """
import json, sys
from mlflow import MlflowClient
client = MlflowClient(sys.argv[1])
runs = client.search_runs([client.get_experiment_by_name("p").experiment_id])
print(json.dumps([{
    "name": run.info.run_name, "tags": run.data.tags, "params": run.data.params,
    "metrics": {
        name: [[m.step, m.value] for m in client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics
    },
} for run in runs]))
"""


@pytest.fixture
def stage(tmp_path: Path) -> StageInfo:
    folder = tmp_path / "store" / "optimize" / KEY
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in HISTORY))
    return StageInfo("mine", "optimize", "ppo · model · aaaa", KEY, SETTINGS, folder)


def tracker(to: str, tmp_path: Path) -> Tracker:
    """Return a new tracker with enough patience for a busy machine, as each stage of each run gets one."""
    return Tracker.model_validate({"to": to, "folder": str(tmp_path / "tracking"), "project": "p", "patience": 500})


def steps(listener: Tracker, stage: StageInfo, numbers: Iterable[int]) -> None:
    for n in numbers:
        entry = STEPS[n - 1]
        listener.step(stage, n, 6, {name: value for name, value in entry.items() if name != "step"})


def run_interrupted(to: str, stage: StageInfo, tmp_path: Path) -> None:
    """Run a stage that is killed after step 3 and resumes after step 1, then is killed again and resumes after step 5,
    so that step 5 is never reported.
    """
    first = tracker(to, tmp_path)
    steps(first, stage, [1, 2, 3])
    first.failed(stage, "killed")
    second = tracker(to, tmp_path)
    steps(second, stage, [2, 3, 4])
    second.failed(stage, "killed")
    third = tracker(to, tmp_path)
    steps(third, stage, [6])
    third.finished(stage, {}, cached=False)


def in_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_has_every_step_once(stage: StageInfo, tmp_path: Path) -> None:
    run_interrupted("tensorboard", stage, tmp_path)
    folder = tmp_path / "tracking" / "p" / "mine" / "optimize-aaaaaaaa"
    found = in_tensorboard(folder)
    assert found.keys() == EXPECTED.keys()
    for name, values in found.items():
        assert [step for step, _ in values] == [step for step, _ in EXPECTED[name]]
        assert [value for _, value in values] == pytest.approx([value for _, value in EXPECTED[name]])  # float32 there
    (settings,) = folder.glob("*/hparams.yml")
    assert "optimizer.beta: 0.1" in settings.read_text()
    # A tracker that meets the finished stage again starts no process.
    again = tracker("tensorboard", tmp_path)
    again.finished(stage, {}, cached=True)
    assert in_tensorboard(folder) == found


def test_steps_are_sent_while_the_stage_runs(stage: StageInfo, tmp_path: Path) -> None:
    listener = tracker("tensorboard", tmp_path)
    steps(listener, stage, [1, 2, 3])
    until(lambda: listener.sent_file(stage).value["steps"] == {"loss": 3, "grad_norm": 3})
    listener.failed(stage, "over")  # its process writes to disk when it ends
    folder = tmp_path / "tracking" / "p" / "mine" / "optimize-aaaaaaaa"
    until(lambda: [step for step, _ in in_tensorboard(folder).get("loss", [])] == [1, 2, 3])
    assert [value for _, value in in_tensorboard(folder)["loss"]] == pytest.approx([1, 1 / 2, 1 / 3])


@pytest.mark.ci
def test_mlflow_has_every_step_once_in_one_run(
    stage: StageInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run_interrupted("mlflow", stage, tmp_path)
    uri = f"sqlite:///{tmp_path / 'tracking' / 'mlflow.db'}"
    read = subprocess.run([sys.executable, "-c", READ, uri], capture_output=True, text=True, check=True)
    (run,) = json.loads(read.stdout.splitlines()[-1])
    assert run["name"] == "mine/optimize-aaaaaaaa"
    assert run["tags"]["stage"] == "optimize"
    assert run["params"]["optimizer.beta"] == "0.1"
    expected = {name: [list(value) for value in values] for name, values in EXPECTED.items()}
    assert run["metrics"] == expected


def test_untracked_stage_is_sent_from_its_history(stage: StageInfo, tmp_path: Path) -> None:
    listener = tracker("tensorboard", tmp_path)
    listener.finished(stage, {}, cached=True)
    assert listener.sent_file(stage).is_complete()
    assert in_tensorboard(tmp_path / "tracking" / "p" / "mine" / "optimize-aaaaaaaa").keys() == EXPECTED.keys()


def test_error_of_a_crashed_process_is_reported(stage: StageInfo, tmp_path: Path) -> None:
    (tmp_path / "tracking").write_text("a file where the folder should be")
    listener = tracker("tensorboard", tmp_path)
    steps(listener, stage, [1])
    with pytest.raises(RuntimeError, match=r"FileExistsError|NotADirectoryError"):
        listener.finished(stage, {}, cached=False)


def test_unresponsive_server_does_not_block_a_stage(
    stage: StageInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = "import time; time.sleep(600)"
    monkeypatch.setattr("alignment_plugins.tracker.COMMAND", [sys.executable, "-c", slow])
    listener = tracker("tensorboard", tmp_path).model_copy(update={"patience": 0.2})
    steps(listener, stage, [1, 2, 3] * 5000)
    with pytest.raises(RuntimeError, match=r"not all metrics were sent within 0\.2 s"):
        listener.finished(stage, {}, cached=False)


def test_tracker_that_is_not_installed_is_refused_before_anything_runs() -> None:
    with pytest.raises(ConfigError, match=r"`aim` is not installed\. Install it: pip install aim"):
        load_registry().listener({"name": "tracker", "to": "aim"})


def test_settings_become_flat_hyperparameters() -> None:
    assert flatten(SETTINGS) == {"optimizer.name": "ppo", "optimizer.beta": 0.1, "seed": 3, "targets": '["q", "v"]'}


def test_sent_log_survives_a_kill(tmp_path: Path) -> None:
    sent = SentLog(tmp_path / "a" / "b.json")
    sent.value["steps"]["loss"] = 4
    sent.save()
    loaded: dict[str, Any] = SentLog(tmp_path / "a" / "b.json").value
    assert loaded["steps"] == {"loss": 4}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["b.json"]
