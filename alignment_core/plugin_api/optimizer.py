"""Optimizers: what a run learns with, and what an optimizer needs from the run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from alignment_core.config import StepSettings
from alignment_core.errors import PluginError
from alignment_core.plugin_api.advice import Advice
from alignment_core.plugin_api.run import AlignmentRun
from alignment_core.plugin_api.steps import LossOutput, MicroBatch, StepBatch

if TYPE_CHECKING:
    from torch import Tensor

API_VERSION = 1
TAKEN = ("policy", "reference")


@dataclass(frozen=True, slots=True)
class Needs:
    """What an optimizer needs. The pipeline builds only the stages, roles and rows that are needed."""

    preferences: bool = False
    """Preference pairs, in `run.preferences`."""
    feedback: bool = False
    """Labelled responses, in `run.feedback`."""
    both_labels: bool = False
    """Labelled responses of both classes, desirable and undesirable."""
    demonstrations: bool = False
    """Demonstrations, in `run.demonstrations`."""
    prompts: bool = False
    """Prompts, in `run.prompts` and `run.held_out_prompts`, or responses sampled with `run.generate`."""
    reward: bool = False
    """Rewards of responses, from `run.rewards`."""
    reference: bool = False
    """The frozen SFT model, in `run.reference`. Its log-probabilities of the data are computed in a cached stage."""
    value: bool = False
    """A value model, in `run.value`. `loss` trains it beside the policy."""
    snapshots: tuple[str, ...] = ()
    """Names of snapshots of the policy: frozen copies of its adapter, each in `run.role(name)`. They start equal to the
    policy. `run.snapshot(name)` moves them. A name consists of lowercase letters, digits and underscores."""

    def __post_init__(self) -> None:
        wrong = [name for name in self.snapshots if name in TAKEN or not re.fullmatch(r"[a-z][a-z0-9_]*", name)]
        if wrong or len(set(self.snapshots)) < len(self.snapshots):
            raise PluginError(
                "the snapshots of the policy need names of their own",
                where="Needs.snapshots",
                got=", ".join(self.snapshots),
                expected=f"different names of lowercase letters, digits and underscores, except {', '.join(TAKEN)}",
            )

    @property
    def trained(self) -> tuple[str, ...]:
        """The roles that `loss` trains: the policy, and the value model if it is needed."""
        return ("policy", "value") if self.value else ("policy",)


class AlignmentOptimizer(StepSettings):
    """Base class of every optimizer. Its fields are its hyperparameters.

    A subclass fixes its name, for example `name: Literal["dpo"] = "dpo"`, and defines `needs`, `batches` and `loss`.
    """

    api_version: ClassVar[int] = API_VERSION
    """Version of the plugin API that the optimizer was written for."""
    evaluators: ClassVar[tuple[str, ...]] = ()
    """Names of settings that choose an evaluator for `run.judge`, of type `dict[str, Any] | None`, or several, of type
    `list[dict[str, Any]]`."""
    pair_evaluators: ClassVar[tuple[str, ...]] = ()
    """Names of settings that choose installed pair evaluators for `run.prefer` in the same way."""
    kl_setting: ClassVar[str | None] = None
    """Name of the setting that holds the policy to where it started, for messages and advice: larger is closer."""
    example: ClassVar[Mapping[str, Any]] = {}
    """Settings that describe and check the optimizer where no user has chosen any: values of settings without a
    default, and others that the optimizer cannot do without."""

    name: str

    def needs(self) -> Needs:
        """Return what the optimizer needs with these settings. Other settings may need less."""
        raise NotImplementedError

    def parameters(self, width: int) -> Mapping[str, Tensor | float]:
        """Return the initial values of the optimizer's own trained weights by name, such as a learned temperature.

        They become float32 tensors in `run.parameters`. They are trained, clipped, checkpointed and resumed like the
        weights of the policy, and saved beside it in `parameters.safetensors`. PyTorch's random numbers are seeded
        before the call.

        Args:
            width: size of a hidden state of the base model.
        """
        return {}

    def batches(self, run: AlignmentRun) -> Iterator[StepBatch]:
        """Yield one `StepBatch` per optimizer step, starting from `run.step` and `run.state`."""
        raise NotImplementedError

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        """Return the loss of one micro-batch: a sum divided by the step's denominator."""
        raise NotImplementedError

    def total_steps(self, run: AlignmentRun) -> int:
        """Return the number of optimizer steps, for the learning-rate schedule and the progress bar.

        By default `epochs` passes over the first kind of rows that is needed: preferences, feedback, demonstrations or
        prompts.
        """
        needs = self.needs()
        kinds = {
            "preferences": needs.preferences,
            "feedback": needs.feedback,
            "demonstrations": needs.demonstrations,
        }
        kind = next((kind for kind, needed in kinds.items() if needed), "prompts")
        return self.epochs * -(-len(getattr(run, kind)) // self.batch_size)

    def advice(self, trained: Mapping[str, Any], evaluated: Mapping[str, Any]) -> Sequence[Advice]:
        """Return what the optimizer's own metrics say about a run, for its result and its report. By default nothing.

        Alignment Flows has rules for what holds for every optimizer: KL, length, win rates, the reward model.

        Args:
            trained: the metrics of the optimizer's stage: the mean of each over the last tenth of the steps. Empty if
                the run is only planned.
            evaluated: the metrics of the evaluation of the trained model, in the same way.
        """
        return []
