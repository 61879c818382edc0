"""What the stages of a run will need, predicted in a process of its own: this one loads no torch.

Nothing is kept of the prediction's work, and no model is loaded before it is known to fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from alignment_core.errors import TrainingError
from alignment_core.own_process import ask
from alignment_core.stages.base import StageCall


class Prediction(BaseModel):
    """One stage before it runs; sizes in bytes.

    Attributes:
        rows: rows that it reads; of these, `tokens` tokens run through a model, each as often as they do.
        tokens: see above.
        steps: optimizer steps.
        token_budget: tokens in one forward pass, as chosen for the memory that is free.
        gradient_checkpointing: whether backward recomputes activations, as chosen.
        memory: predicted peak by what holds it: `process` (imports, on the CPU), `base`, `loading` (where that takes
            more than the stage's work), `adapters`, `external_reward` (`reward.model`), `training` (gradients and
            moments), `passes` (activations, logits, KV cache).
        available: what the stage may take.
        seconds: predicted wall time; None where the model was not loaded for it.
    """

    model_config = ConfigDict(frozen=True)

    rows: int
    tokens: int
    steps: int
    token_budget: int
    gradient_checkpointing: bool
    memory: dict[str, int]
    available: int
    seconds: float | None

    @property
    def peak(self) -> int:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.peak <= self.available


class Forecast(BaseModel):
    """The stages that are to be built, and the model that they share.

    Attributes:
        device: where they run, in words.
        parameters: weights of the base.
        trainable: weights of one adapter.
        stages: by the names of the plan; ingestion and ranking run no model.
        requests: to the judge behind `evaluation.endpoint`, by the names of the plan; what is tried again not counted.
    """

    model_config = ConfigDict(frozen=True)

    device: str
    parameters: int
    trainable: int
    rows: dict[str, int]
    stages: dict[str, Prediction]
    requests: dict[str, int]


def predict(calls: Mapping[str, StageCall], to_run: Sequence[str]) -> Forecast:
    """Predict the stages `to_run` of a plan.

    Raises:
        AlignmentError: what the data, the model or the optimizer has wrong; `StageCrashed` if the process died.
    """
    request = {"calls": {n: c.model_dump(mode="json") for n, c in calls.items()}, "to_run": list(to_run)}
    return Forecast.model_validate(ask("alignment_core.stages.predict", request, "the prediction"))


def refuse_what_does_not_fit(forecast: Forecast, calls: Mapping[str, StageCall]) -> None:
    """
    Raises:
        TrainingError: a stage needs more memory than there is, whatever is chosen for it.
    """
    for name, stage in forecast.stages.items():
        if not stage.fits:
            parts = ", ".join(f"{part} {_gib(size)}" for part, size in stage.memory.items() if size)
            raise TrainingError(
                f"the stage does not fit into the memory of {forecast.device}",
                where=calls[name].label,
                got=f"{_gib(stage.peak)} ({parts})",
                expected=f"at most {_gib(stage.available)}",
                do=_remedy(stage, calls[name]),
            )


def _remedy(stage: Prediction, call: StageCall) -> str:
    largest = max(stage.memory, key=lambda part: stage.memory[part])
    if largest in ("base", "loading"):
        smaller = "choose a smaller model"
        return f"Set `model.load_in: nf4`, or {smaller}" if call.config["load_in"] != "nf4" else smaller.capitalize()
    if largest == "passes":
        forced = [
            f"`{name}: auto`" for name in ("token_budget", "gradient_checkpointing")
            if getattr(call.runtime, name) != "auto"
        ]  # fmt: skip
        lower = "lower `model.max_length` or the tokens that are generated"
        return f"Set {' and '.join(forced)}, or {lower}" if forced else lower.capitalize()
    if largest == "external_reward":
        return "Choose a smaller `reward.model`, or train one: leave `reward.model` out"
    if largest == "process":
        return "Free some memory: the libraries alone fill it"
    return "Lower `model.lora.rank`, or set `adamw: paged_8bit`"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
