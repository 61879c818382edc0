"""Find settings with which a run fits a card, in a separate process, so this process does not load torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from alignment_core.config import PipelineConfig
from alignment_core.errors import TrainingError
from alignment_core.forecast.predictions import Prediction
from alignment_core.processes.module_call import call_module


class Attempt(BaseModel):
    """Settings that were tried.

    Attributes:
        model: the base model.
        changes: what differs from the attempt before, by dotted name. Empty for the settings as they are.
        costs: what the change costs.
        refused: why the run is not possible with the change, which was then taken back; None if it is.
        stages: the predictions until the first stage that does not fit.
        used: how many `records` of the sources are used, and `of` how many.
        parameters: number of weights of the base model.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    changes: dict[str, Any]
    costs: str
    refused: str | None = None
    stages: dict[str, Prediction] = {}
    used: dict[str, int] = {}
    parameters: int = 0

    @property
    def fits(self) -> bool:
        return self.refused is None and all(stage.fits for stage in self.stages.values())

    @property
    def largest(self) -> str:
        """Name of the stage that needs the most memory."""
        return max(self.stages, key=lambda name: self.stages[name].peak)


class Fit(BaseModel):
    """What was tried to make a run fit, in order.

    Attributes:
        device: name of the device.
        card: memory in GiB of the card that was planned for; None for the device of the settings.
        attempts: the attempts. The last one that was not refused is the result.
        changes: all changes of the result together, by dotted name.
    """

    model_config = ConfigDict(frozen=True)

    device: str
    card: float | None
    attempts: list[Attempt]
    changes: dict[str, Any]

    @property
    def result(self) -> Attempt:
        return next(attempt for attempt in reversed(self.attempts) if attempt.refused is None)


def fit(settings: PipelineConfig, card: float | None = None, models: Sequence[str] = ()) -> Fit:
    """Try settings that need less memory, those that lose least first, until every stage fits.

    Args:
        settings: the settings of the run.
        card: memory of the card in GiB; None for the device of the settings.
        models: further base models to try, in this order, if the settings' own does not fit.

    Raises:
        AlignmentError: a mistake in the settings, the data or the model.
    """
    request = {"settings": settings.model_dump(mode="json"), "card": card, "models": list(models)}
    return Fit.model_validate(call_module("alignment_core.forecast.fit_process", request, "the search for settings"))


def check_fit(found: Fit) -> None:
    """Check that the result fits.

    Raises:
        TrainingError: nothing that was tried fits.
    """
    result = found.result
    if result.fits:
        return
    name = result.largest
    stage = result.stages[name]
    size = result.parameters * stage.available / stage.peak / 1e9
    raise TrainingError(
        f"nothing that was tried fits into the memory of {found.device}",
        where=f"stage {name} with {result.model}",
        got=f"{stage.peak / 2**30:.2f} GiB with the smallest settings",
        expected=f"at most {stage.available / 2**30:.2f} GiB",
        do=f"Choose a base model of at most about {size:.1f} billion parameters, or offer smaller ones with `--models`",
    )
