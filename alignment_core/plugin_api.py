"""All that a plugin author imports.

An optimizer is a frozen pydantic model that *is* its hyperparameters, with two methods: `batches`, which yields one
`StepBatch` per optimizer step, and `loss`, which returns a sum over a micro-batch divided by the step's denominator.
The training loop alone calls `backward`, and asks for the next batch only after the weights were updated.

    class Hinge(AlignmentOptimizer):
        name: Literal["hinge"] = "hinge"
        preferences: ClassVar[bool] = True
        ...

    @hookimpl
    def alignment_optimizers():
        return [Hinge]

An entry point of the group `alignment_core` in the plugin's own `pyproject.toml` names the module. Record formats,
evaluators and listeners come in the same way. Nothing here imports torch: tensors appear in annotations only.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import pluggy

from alignment_core.config import Settings, SourceConfig, StepSettings
from alignment_core.errors import ConfigError, DataError
from alignment_core.record_format import BadRow, Dropped, Reading, RecordFormat
from alignment_core.records import Conversation, Demonstration, LabelledResponse, PreferencePair, Prompt
from alignment_core.token_rows import Row, TokenSequence

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "API_VERSION", "AlignmentOptimizer", "AlignmentRun", "BadRow", "ConfigError", "Conversation", "DataError",
    "Demonstration", "Dropped", "Evaluator", "LabelledResponse", "LanguageModelRole", "Listener", "LossOutput",
    "MicroBatch", "PreferencePair", "Prompt", "Reading", "RecordFormat", "RewardRole", "Rollout", "Row",
    "SourceConfig", "StageInfo", "StepBatch", "TokenLogps", "TokenSequence", "ValueRole", "hookimpl", "hookspec",
]  # fmt: skip

API_VERSION = 1
PROJECT = "alignment_core"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# --- what a step is made of ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StepBatch:
    """Everything that one optimizer step sees."""

    rows: Sequence[Row]
    """The step's rows; the loop splits them into micro-batches."""
    denominators: Mapping[str, float] = field(default_factory=dict)
    """What sums over the whole step are divided by; `rows`, the number of rows, is always there."""
    constants: Mapping[str, float] = field(default_factory=dict)
    """Numbers computed without gradient for the whole step (KTO's z0)."""


class MicroBatch(Protocol):
    """A part of a step's rows, with the denominators and constants of the whole step."""

    rows: Sequence[Row]
    denominators: Mapping[str, float]
    constants: Mapping[str, float]

    def sequences(self, name: str) -> list[TokenSequence]:
        """The rows' sequences of this name, in order."""

    def values(self, name: str) -> Tensor:
        """The rows' numbers of this name, shape (rows,), float32, on the run's device."""

    def token_values(self, name: str) -> Tensor:
        """The rows' per-token numbers of this name, shape (rows, longest completion), zero-padded, float32."""


@dataclass(frozen=True, slots=True)
class LossOutput:
    """What `loss` returns for one micro-batch."""

    loss: Tensor
    """Scalar: a sum over the micro-batch divided by the step's denominator."""
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)
    """Scalars made the same way, so that adding them up over micro-batches gives the step's value."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response."""

    prompt: Row
    sequence: TokenSequence
    """Prompt and response; the response ends with the stop token if one was sampled."""
    finished: bool
    """Whether it ended on a stop token rather than on the length limit."""
    text: str
    """The response, decoded without special tokens."""


# --- what a plugin is given ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TokenLogps:
    """Per-token log-probabilities of the completions, each of shape (sequences, longest completion), float32."""

    logps: Tensor
    """0 where `mask` is 0; nats."""
    mask: Tensor
    """1 at target tokens."""
    entropy: Tensor
    """The distribution's entropy in nats, without gradient."""


class LanguageModelRole(Protocol):
    """The policy or the reference."""

    def logps(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """Summed log-probability of each sequence's target tokens, shape (sequences,), float32, nats."""

    def token_logps(self, sequences: Sequence[TokenSequence], temperature: float = 1.0) -> TokenLogps:
        """Log-probabilities of each target token under logits divided by `temperature`."""


class RewardRole(Protocol):
    """The reward model."""

    def scores(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """Score read at the last token of each sequence, shape (sequences,), float32."""


class ValueRole(Protocol):
    """The value model: a scalar head on its own adapter, started from the reward model."""

    def values(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """Value of the state *before* each completion token, shape (sequences, longest completion), float32."""


class AlignmentRun(Protocol):
    """What an optimizer works with. Only `policy`, and `value` if trained, carry gradients, and only inside `loss`."""

    policy: LanguageModelRole
    reference: LanguageModelRole
    reward: RewardRole
    value: ValueRole
    preferences: Sequence[Row]
    feedback: Sequence[Row]
    prompts: Sequence[Row]
    held_out_prompts: Sequence[Row]
    tokenizer: Any
    device: Any
    step: int
    """Optimizer steps done so far."""
    state: MutableMapping[str, Any]
    """Tensors and JSON that `batches` needs to go on from `step`, saved with every checkpoint. Whenever `batches` has
    yielded or is about to go on, `state` and `step` must be enough to yield the same batches again."""
    metrics: Mapping[str, float]
    """Metrics of the step just finished; empty before the first."""

    def shuffled(self, rows: Sequence[Row], batch_size: int, epochs: int) -> Iterator[list[Row]]:
        """Batches of `epochs` shuffled passes over `rows`, starting at `step`; the last of an epoch may be smaller."""

    def generate(
        self,
        prompts: Sequence[Row],
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        samples: int = 1,
    ) -> list[Rollout]:
        """Sample from the policy; `samples` responses per prompt, adjacent. Noise is keyed by seed, step and row."""

    def random(self, name: str) -> Any:
        """A `random.Random` keyed by seed and `name`; put the step or epoch into the name where it should matter."""

    def judge(self, setting: str, rollouts: Sequence[Rollout]) -> list[float]:
        """The scores that the evaluator chosen by a setting gives; see `AlignmentOptimizer.evaluators`."""

    def keep(self) -> None:
        """Keep a copy of the trained weights as they are now, in place of the copy before; checkpoints hold it too."""

    def restore(self) -> None:
        """Put the kept copy back: at the end of `batches`, it is what the stage saves."""

    def report(self, metrics: Mapping[str, float]) -> None:
        """Metrics of something larger than a step (a rollout), shown and kept beside the loop's own."""

    def warn(self, message: str) -> None:
        """A warning that is shown at once, counted, and kept in the stage's report."""


class AlignmentOptimizer(StepSettings):
    """Base class of every optimizer: its fields are its hyperparameters.

    A subclass fixes `name` as `name: Literal["dpo"] = "dpo"`, declares what it needs, and defines `batches` and `loss`.
    """

    api_version: ClassVar[int] = API_VERSION
    preferences: ClassVar[bool] = False
    """Needs preference pairs."""
    feedback: ClassVar[bool] = False
    """Needs labelled responses."""
    prompts: ClassVar[bool] = False
    """Needs prompts and generation."""
    reward_model: ClassVar[bool] = False
    """Needs a trained reward model."""
    reference: ClassVar[bool] = False
    """Needs the frozen SFT model's log-probabilities; those of the data are a cached stage."""
    trains: ClassVar[tuple[str, ...]] = ("policy",)
    """Roles that `loss` trains: `policy`, and `value` where a value model is wanted."""
    evaluators: ClassVar[tuple[str, ...]] = ()
    """Names of settings (`dict[str, Any] | None`) that choose an installed evaluator, for `run.judge`."""

    name: str

    def batches(self, run: AlignmentRun) -> Iterator[StepBatch]:
        """Yield one `StepBatch` per optimizer step, starting from `run.step` and `run.state`."""
        raise NotImplementedError

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        """Loss of one micro-batch: a sum divided by the step's denominator."""
        raise NotImplementedError

    def total_steps(self, run: AlignmentRun) -> int:
        """Number of optimizer steps, for the learning-rate schedule and the progress bar."""
        rows = run.preferences if self.preferences else run.feedback if self.feedback else run.prompts
        return self.epochs * -(-len(rows) // self.batch_size)


class Evaluator(Settings):
    """Base class of a judgement on one response; a subclass fixes `name` as a `Literal` and defines `score`."""

    name: str

    def score(self, prompt: Conversation, response: str) -> float:
        """Higher is better; a yes/no rule returns 1.0 or 0.0."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class StageInfo:
    """Which stage of which run: the run's name, the stage's name, a label for people, and the artifact's key.

    `settings` decided the result (plain JSON); `folder` is where the artifact lies once it is finished.
    """

    run: str
    stage: str
    label: str
    key: str
    settings: Mapping[str, Any]
    folder: Path


class Listener(Settings):
    """Base class of what is told how stages go: metrics to anywhere. It changes no result and enters no cache key.

    A subclass fixes `name` as a `Literal` and defines what it wants to hear. It lives in the flow's process, one
    instance per stage. What it raises is shown as a warning, and it is then told no more of that stage.
    """

    name: str

    def started(self, stage: StageInfo) -> None:
        """The stage is about to be built; a stage found in the store is only `finished`."""

    def step(self, stage: StageInfo, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """`done` of `total` units are finished; `metrics` are the newest values."""

    def finished(self, stage: StageInfo, metrics: Mapping[str, Any], *, cached: bool) -> None:
        """The artifact is there, with what the stage measured when it was built (plain JSON)."""

    def failed(self, stage: StageInfo, error: str) -> None:
        """The stage failed or was stopped."""


# --- hooks --------------------------------------------------------------------------------------------------------


class Hooks(Protocol):
    """The hooks that a plugin module may implement, each returning a list of classes."""

    @hookspec
    def alignment_optimizers(self) -> list[type[AlignmentOptimizer]]:
        """Optimizers, chosen by `optimizer.name`."""

    @hookspec
    def alignment_formats(self) -> list[type[RecordFormat]]:
        """Record formats of raw feedback, recognised by their `matches` or chosen by `data.sources[].format`."""

    @hookspec
    def alignment_evaluators(self) -> list[type[Evaluator]]:
        """Evaluators, chosen by `name` in `rank.by` and `evaluation.evaluators`."""

    @hookspec
    def alignment_listeners(self) -> list[type[Listener]]:
        """Listeners, chosen by `name` in `listeners`."""
