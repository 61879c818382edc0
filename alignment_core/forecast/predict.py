"""Predict the memory and time of a run's stages in a separate process, so this process does not load torch.

The prediction stores no artifact, and it loads a model only if it fits into memory. It is remembered: see `remembered`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignment_core.execution.stage import StageCall
from alignment_core.forecast.predictions import Forecast, Prediction, check_memory
from alignment_core.forecast.remembered import Question
from alignment_core.processes.module_call import call_module


def predict(calls: Mapping[str, StageCall], to_run: Sequence[str], card: float | None = None) -> Forecast:
    """Predict the stages `to_run` of a plan.

    Args:
        calls: the plan.
        to_run: names of the stages.
        card: memory in GiB of a card to plan for, which this machine need not have. None: the device of the settings.

    Raises:
        AlignmentError: a problem with the data, the model or the optimizer. `StageCrashed` if the process crashed.
    """
    request = {"calls": _dumped(calls), "to_run": list(to_run), "card": card}
    question = Question(request, calls["optimize"].runtime)
    if (remembered := question.recall()) is not None:
        return remembered
    forecast = Forecast.model_validate(call_module("alignment_core.forecast.process", request, "the prediction"))
    question.remember(forecast)
    return forecast


def check_memory_of(plans: Sequence[tuple[Mapping[str, StageCall], Sequence[str]]]) -> list[str | None]:
    """Check that stages of several plans fit into the memory of this machine. Their time is not predicted.

    Args:
        plans: each plan, with the names of the stages to check.

    Returns:
        For each plan, why its stages could not be predicted. None: they fit.

    Raises:
        TrainingError: as for `check_memory`. `StageCrashed` if the process crashed.
    """
    request = {"plans": [{"calls": _dumped(calls), "names": list(names)} for calls, names in plans]}
    answer = call_module("alignment_core.forecast.plans_process", request, "the check of the memory")
    # The process stops at the first plan that does not fit, so those after it are missing.
    for (calls, _), found in zip(plans, answer["plans"], strict=False):
        stages = {name: Prediction.model_validate(stage) for name, stage in found["stages"].items()}
        check_memory(stages, answer["device"], calls)
    return [found["failed"] for found in answer["plans"]]


def _dumped(calls: Mapping[str, StageCall]) -> dict[str, Any]:
    return {name: call.model_dump(mode="json") for name, call in calls.items()}
