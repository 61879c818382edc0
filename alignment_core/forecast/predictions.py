"""What the stages of a run will need: memory, time and work. `predict` computes it."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

from alignment_core.errors import TrainingError
from alignment_core.execution.stage import StageCall


class Prediction(BaseModel):
    """The prediction for one stage. Sizes are in bytes.

    Attributes:
        rows: number of rows that the stage reads.
        tokens: number of tokens that run through a model, counted once per pass.
        steps: number of optimizer steps.
        token_budget: tokens in one forward pass, chosen to fit the free memory.
        gradient_checkpointing: whether the backward pass recomputes activations, chosen in the same way; n if only in
            every n-th layer.
        memory: predicted peak memory by component: `process` (imports, on the CPU), `base`, `loading` (if loading needs
            more than the work of the stage), `adapters`, `external_reward` (`reward.model`), `training` (gradients and
            AdamW's moments), `passes` (activations, logits, KV cache).
        available: memory that the stage may use.
        seconds: predicted wall time. None if the model was not loaded to measure its speed.
        ample: whether these are the settings that the stage gets if memory is ample. More memory then changes nothing.
    """

    model_config = ConfigDict(frozen=True)

    rows: int
    tokens: int
    steps: int
    token_budget: int
    gradient_checkpointing: bool | int
    memory: dict[str, int]
    available: int
    seconds: float | None
    ample: bool

    @property
    def peak(self) -> int:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.peak <= self.available


class Forecast(BaseModel):
    """The predictions for the stages that will be built, and facts about the model that they share.

    Attributes:
        device: name of the device that they run on.
        parameters: number of weights of the base model.
        trainable: number of weights of one adapter.
        notes: sentences about the weights that are not quantized, and those that no adapter trains.
        rows: number of training rows by kind.
        used: how many `records` of the sources are used, and `of` how many.
        sampled: how many `records` of the sources were read, and `of` how many. The numbers of rows, steps and tokens,
            the times and `used` are then estimates, because the others are taken to be like these. None: all were read.
        held_out: number of held-out rows by kind.
        raters: `count` of the raters that the records name, and the `largest` share of one of them.
        stages: predictions by the names of the plan. Ingestion and ranking run no model, so they have none.
        requests: number of requests to the judge at `evaluation.endpoint`, by the names of the plan, without retries.
        on_cpu: whether the stages run on the CPU of this machine.
        made: when the forecast was made and the speed measured, in seconds since 1970.
    """

    model_config = ConfigDict(frozen=True)

    device: str
    parameters: int
    trainable: int
    notes: list[str] = []
    rows: dict[str, int]
    used: dict[str, int]
    sampled: dict[str, int] | None
    held_out: dict[str, int]
    raters: dict[str, float]
    stages: dict[str, Prediction]
    requests: dict[str, int]
    on_cpu: bool
    made: float


def check_memory(stages: Mapping[str, Prediction], device: str, calls: Mapping[str, StageCall]) -> None:
    """Check that every stage that runs on this machine fits into its memory.

    Args:
        stages: the predictions by the names of the plan.
        device: name of the device.
        calls: the plan.

    Raises:
        TrainingError: a stage needs more memory than is available, with any memory settings that may be chosen.
    """
    for name, stage in stages.items():
        if not stage.fits and calls[name].runtime.pool is None:
            parts = ", ".join(f"{part} {_gib(size)}" for part, size in stage.memory.items() if size)
            raise TrainingError(
                f"the stage does not fit into the memory of {device}",
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
        lower = "lower `model.max_length` or the number of generated tokens"
        return f"Set {' and '.join(forced)}, or {lower}" if forced else lower.capitalize()
    if largest == "external_reward":
        return "Choose a smaller `reward.model`, or remove it to train a reward model"
    if largest == "process":
        return "Free some memory. The imported libraries alone need more than is available"
    return "Lower `model.lora.rank`, or set `adamw: paged_8bit`"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
