"""The process of a tracker. It reads events from stdin until the end, one JSON object per line.

Steps are sent as they arrive, until one is missing. Missing steps, and metrics that a stage reports outside its steps,
are sent from the stage's history when the stage finishes. The progress is saved after each step, so that a stage that
resumes from a checkpoint does not send a step twice.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import Any

from accelerate.state import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from alignment_plugins.tracker import SentLog


def main() -> None:
    opening = json.loads(sys.stdin.readline())
    file = Path(opening["sent"])
    file.parent.mkdir(parents=True, exist_ok=True)
    # The tracker process of an earlier, stopped run may still be sending.
    with file.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _track(opening, SentLog(file))


def _track(opening: dict[str, Any], sent: SentLog) -> None:
    PartialState(cpu=True)
    tracker = open_tracker(opening, sent)
    for line in sys.stdin:
        event = json.loads(line)
        if event["event"] == "step":
            _step(tracker, sent, event["step"], event["metrics"])
        else:
            _history(tracker, sent, Path(event["file"]))
    tracker.finish()


def open_tracker(opening: dict[str, Any], sent: SentLog) -> GeneralTracker:
    """Open the tracker's run of this stage: a new run with the stage's settings, or the one that was started before."""
    kind, name = LOGGER_TYPE_TO_CLASS[opening["to"]], f"{opening['run']}/{opening['stage']}-{opening['key'][:8]}"
    place = Path(opening["folder"])
    place.mkdir(parents=True, exist_ok=True)
    options, project = dict(opening["options"]), opening["project"]
    match opening["to"]:
        case "tensorboard":
            project = f"{project}/{name}"
        case "mlflow":
            os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{place / 'mlflow.db'}")
            tags = {"run": opening["run"], "stage": opening["stage"], "artifact": opening["key"]}
            options = {"run_name": name, "run_id": sent.value["run"], "tags": tags, **options}
        case "wandb":
            options = {"name": name, "group": opening["run"], "job_type": opening["stage"], **options}
            options |= {"id": opening["key"], "resume": "allow"}
    arguments = [project, str(place)] if kind.requires_logging_directory else [project]
    tracker: GeneralTracker = kind(*arguments, **options)
    tracker.start()
    if sent.value["run"] is None:
        tracker.store_init_configuration(opening["settings"])
        run = getattr(getattr(tracker.tracker, "info", None), "run_id", None)
        sent.value["run"] = run or name
        sent.save()
    return tracker


def _step(tracker: GeneralTracker, sent: SentLog, step: int, metrics: dict[str, float]) -> None:
    """Send a step if it directly follows the last one. Other steps are sent from the history if they are missing."""
    steps: dict[str, int] = sent.value["steps"]
    if step == max((steps.get(name, 0) for name in metrics), default=0) + 1:
        _log(tracker, sent, step, metrics)


def _history(tracker: GeneralTracker, sent: SentLog, file: Path) -> None:
    for line in file.read_text(encoding="utf-8").splitlines():
        metrics = json.loads(line)
        step = metrics.pop("step")
        # A metric that was sent up to a later step has also been sent for this one.
        left = {name: value for name, value in metrics.items() if sent.value["steps"].get(name, -1) < step}
        if left:
            _log(tracker, sent, step, left)
    sent.value["complete"] = True
    sent.save()


def _log(tracker: GeneralTracker, sent: SentLog, step: int, metrics: dict[str, float]) -> None:
    tracker.log(metrics, step=step)
    sent.value["steps"] |= dict.fromkeys(metrics, step)
    sent.save()


if __name__ == "__main__":
    main()
