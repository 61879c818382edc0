"""The plugin API: everything that a plugin imports.

An optimizer is a frozen pydantic model whose fields are its hyperparameters. It has two methods. `batches` yields one
`StepBatch` per optimizer step. `loss` returns the loss of a micro-batch: a sum divided by the step's denominator.
The training loop calls `backward`, updates the weights, and only then asks for the next batch.

    class Hinge(AlignmentOptimizer):
        name: Literal["hinge"] = "hinge"
        preferences: ClassVar[bool] = True
        ...

    @hookimpl
    def alignment_optimizers():
        return [Hinge]

Register the module with an entry point of the group `alignment_core` in the `pyproject.toml` of the plugin. Record
formats, evaluators and listeners are registered in the same way. This module does not import torch. Tensors appear
only in annotations.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import pluggy

from alignment_core.chat_endpoint import ChatEndpoint
from alignment_core.config import ChatEndpointSettings, Settings, SourceConfig, StepSettings
from alignment_core.errors import ConfigError, DataError
from alignment_core.record_format import BadRow, Dropped, Reading, RecordFormat
from alignment_core.records import Conversation, Demonstration, Facts, LabelledResponse, PreferencePair, Prompt
from alignment_core.token_rows import Row, TokenSequence

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "API_VERSION", "AlignmentOptimizer", "AlignmentRun", "BadRow", "ChatEndpoint", "ChatEndpointSettings",
    "ConfigError", "Conversation", "DataError", "Demonstration", "Dropped", "Evaluator", "Facts", "LabelledResponse",
    "LanguageModelRole", "Listener", "LossOutput", "MicroBatch", "PairEvaluator", "PreferencePair", "Prompt",
    "Reading", "RecordFormat", "Rollout", "Row", "SourceConfig", "StageInfo", "StepBatch", "TokenLogps",
    "TokenSequence", "ValueRole", "hookimpl", "hookspec",
]  # fmt: skip

API_VERSION = 1
PROJECT = "alignment_core"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


# --- optimizer steps ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StepBatch:
    """The input of one optimizer step."""

    rows: Sequence[Row]
    """The rows of the step. The training loop splits them into micro-batches."""
    denominators: Mapping[str, float] = field(default_factory=dict)
    """Denominators of sums over the complete step, by name. The loop always adds `rows`, the number of rows."""
    constants: Mapping[str, float] = field(default_factory=dict)
    """Numbers for the complete step that were computed without gradient, by name (for example KTO's z0)."""


class MicroBatch(Protocol):
    """Some of a step's rows, with the denominators and constants of the complete step."""

    rows: Sequence[Row]
    denominators: Mapping[str, float]
    constants: Mapping[str, float]

    def sequences(self, name: str) -> list[TokenSequence]:
        """Return the sequence called `name` of each row, in order."""

    def values(self, name: str) -> Tensor:
        """Return the number called `name` of each row: shape (rows,), float32, on the run's device."""

    def token_values(self, name: str) -> Tensor:
        """Return the per-token numbers called `name`: shape (rows, longest completion), zero-padded, float32."""


@dataclass(frozen=True, slots=True)
class LossOutput:
    """The result of `loss` for one micro-batch."""

    loss: Tensor
    """Scalar: a sum over the micro-batch, divided by the step's denominator."""
    metrics: Mapping[str, Tensor | float] = field(default_factory=dict)
    """Scalars computed in the same way. The loop adds them up over the micro-batches to get the step's value."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response."""

    prompt: Row
    sequence: TokenSequence
    """Prompt and response. The response includes the stop token if one was sampled."""
    finished: bool
    """True if the response ended with a stop token, false if it reached the length limit."""
    text: str
    """The response, decoded without special tokens."""


# --- what a plugin receives ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TokenLogps:
    """Per-token log-probabilities of completions. Each tensor has shape (sequences, longest completion), float32."""

    logps: Tensor
    """Log-probabilities in nats, 0 where `mask` is 0."""
    mask: Tensor
    """1 at target tokens, 0 elsewhere."""
    entropy: Tensor
    """Entropy of the next-token distribution in nats, without gradient."""


class LanguageModelRole(Protocol):
    """The policy or the reference."""

    def logps(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """Return the summed log-probability of each sequence's target tokens: shape (sequences,), float32, nats."""

    def token_logps(self, sequences: Sequence[TokenSequence], temperature: float = 1.0) -> TokenLogps:
        """Return the log-probability of each target token. The logits are divided by `temperature`."""


class ValueRole(Protocol):
    """The value model: a scalar head on a separate adapter, in the units of `AlignmentRun.rewards`.

    It starts as a copy of the reward model if the run trains one that counts in the reward. Otherwise it starts from
    the SFT model with a head of zeros.
    """

    def values(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """Return the value of the state *before* each completion token.

        The result has shape (sequences, longest completion) and is float32.
        """


class AlignmentRun(Protocol):
    """The models, data and services that an optimizer works with.

    Only trained roles (`policy`, and `value` if listed in `trains`) have gradients, and only inside `loss`.
    """

    policy: LanguageModelRole
    """The model that is aligned."""
    reference: LanguageModelRole
    """The frozen model that the policy started from."""
    value: ValueRole
    """The value model."""
    preferences: Sequence[Row]
    """Training rows with preference pairs."""
    feedback: Sequence[Row]
    """Training rows with labelled responses."""
    prompts: Sequence[Row]
    """Training rows with prompts."""
    held_out_prompts: Sequence[Row]
    """Prompts of the held-out split. The policy does not learn from them."""
    tokenizer: Any
    """The tokenizer of the base model."""
    device: Any
    """The torch device that the models are on."""
    step: int
    """Number of optimizer steps done so far."""
    state: MutableMapping[str, Any]
    """Tensors and JSON values that `batches` needs to resume at `step`. They are saved with every checkpoint. Each time
    `batches` yields or is resumed, `state` and `step` must be enough to yield the following batches again."""
    metrics: Mapping[str, float]
    """Metrics of the last finished step. Empty before the first."""

    def shuffled(self, rows: Sequence[Row], batch_size: int, epochs: int) -> Iterator[list[Row]]:
        """Yield the batches of `epochs` shuffled passes over `rows`, starting at `step`.

        The last batch of an epoch may be smaller. The order depends only on the seed and the epoch.
        """

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
        """Sample from the policy and return `samples` responses per prompt, adjacent in the list.

        The random numbers depend only on the seed, the step and the row.
        """

    def rewards(self, rollouts: Sequence[Rollout], *, held_out: bool = False) -> Tensor:
        """Return the reward of each response: shape (responses,), float32, on the run's device.

        The setting `reward` says what the reward is: a reward model, evaluators, or a weighted sum of them. It is
        already weighted, normalized and clipped. The first call of a run sets the units of the normalization.

        The mean of the weighted sum before normalization (`raw_score`) and the means of its parts are added to the next
        `report`, or to the metrics of the step. With `held_out`, their names begin with `held_out_`.
        """

    def random(self, name: str) -> Any:
        """Return a `random.Random` seeded by the run's seed and `name`.

        The same name always gives the same numbers. To get new ones per step or epoch, include it in the name.
        """

    def judge(self, setting: str, rollouts: Sequence[Rollout]) -> list[float]:
        """Score responses with the evaluator that `setting` selects; see `AlignmentOptimizer.evaluators`."""

    def prefer(self, setting: str, a: Sequence[Rollout], b: Sequence[Rollout]) -> list[float]:
        """Compare responses to the same prompts with the pair evaluator that `setting` selects.

        Returns the probability that the response in `a` is better than the one in `b`, for each pair. A pair without a
        verdict is a tie, 0.5. See `AlignmentOptimizer.pair_evaluators`.
        """

    def keep(self) -> None:
        """Keep a copy of the current trained weights. It replaces the previous copy and is saved in checkpoints."""

    def restore(self) -> None:
        """Restore the kept copy of the weights. Called at the end of `batches`, it makes the stage save that copy."""

    def report(self, metrics: Mapping[str, float]) -> None:
        """Report metrics that span several steps, such as a rollout's. They are stored with the loop's metrics."""

    def warn(self, message: str) -> None:
        """Show a warning at once, count it, and store it in the stage's report."""


class AlignmentOptimizer(StepSettings):
    """Base class of every optimizer. Its fields are its hyperparameters.

    A subclass fixes its name, for example `name: Literal["dpo"] = "dpo"`, declares what it needs with the class
    variables below, and defines `batches` and `loss`.
    """

    api_version: ClassVar[int] = API_VERSION
    """Version of the plugin API that the optimizer was written for."""
    preferences: ClassVar[bool] = False
    """Needs preference pairs."""
    feedback: ClassVar[bool] = False
    """Needs labelled responses."""
    both_labels: ClassVar[bool] = False
    """Needs labelled responses of both classes, desirable and undesirable."""
    prompts: ClassVar[bool] = False
    """Needs prompts and generation."""
    reward_model: ClassVar[bool] = False
    """Needs `run.rewards`."""
    reference: ClassVar[bool] = False
    """Needs log-probabilities of the frozen SFT model. Those of the data are computed once, in a cached stage."""
    trains: ClassVar[tuple[str, ...]] = ("policy",)
    """Roles that `loss` trains: `policy`, and also `value` if the optimizer needs a value model."""
    evaluators: ClassVar[tuple[str, ...]] = ()
    """Names of settings of type `dict[str, Any] | None` that select an installed evaluator for `run.judge`."""
    pair_evaluators: ClassVar[tuple[str, ...]] = ()
    """Names of settings of type `dict[str, Any] | None` that select an installed pair evaluator for `run.prefer`."""

    name: str

    def batches(self, run: AlignmentRun) -> Iterator[StepBatch]:
        """Yield one `StepBatch` per optimizer step, starting from `run.step` and `run.state`."""
        raise NotImplementedError

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        """Return the loss of one micro-batch: a sum divided by the step's denominator."""
        raise NotImplementedError

    def total_steps(self, run: AlignmentRun) -> int:
        """Return the number of optimizer steps, for the learning-rate schedule and the progress bar."""
        rows = run.preferences if self.preferences else run.feedback if self.feedback else run.prompts
        return self.epochs * -(-len(rows) // self.batch_size)


class Evaluator(Settings):
    """Base class of a rule, program or service that scores responses.

    A subclass fixes `name` as a `Literal` and defines `score`, or `scores` if it judges several responses at once.
    """

    name: str

    def score(self, prompt: Conversation, response: str, facts: Facts) -> float:
        """Return the score of a response, a finite number. Higher is better. A yes/no rule returns 1.0 or 0.0.

        Args:
            prompt: the conversation before the response.
            response: the response, without special tokens.
            facts: the columns of the prompt's record that `data.sources[].keep` names, as plain JSON.
        """
        (score,) = self.scores([prompt], [response], [facts])
        if score is None:
            raise ConfigError("the evaluator gave no score", where=self.name)
        return score

    def scores(
        self, prompts: Sequence[Conversation], responses: Sequence[str], facts: Sequence[Facts]
    ) -> Sequence[float | None]:
        """Return the score of each response, in order. None: no score, because a service did not answer."""
        return [self.score(*case) for case in zip(prompts, responses, facts, strict=True)]

    def needed_facts(self) -> Sequence[str]:
        """Return the columns that a source must keep for this evaluator. A run without them is refused at its start."""
        return ()


class PairEvaluator(Settings):
    """Base class of a rule, program or service that compares two responses to one prompt.

    A subclass fixes `name` as a `Literal` and defines `prefer`, or `prefers` if it judges several pairs at once.
    """

    name: str

    def prefer(self, prompt: Conversation, a: str, b: str, facts: Facts) -> float:
        """Return the probability, from 0 to 1, that response `a` is better than response `b`. 0.5 is a tie."""
        (preference,) = self.prefers([prompt], [a], [b], [facts])
        if preference is None:
            raise ConfigError("the evaluator gave no verdict", where=self.name)
        return preference

    def prefers(
        self, prompts: Sequence[Conversation], a: Sequence[str], b: Sequence[str], facts: Sequence[Facts]
    ) -> Sequence[float | None]:
        """Return the probability of each pair, in order. None: no verdict, because a service did not answer."""
        return [self.prefer(*case) for case in zip(prompts, a, b, facts, strict=True)]

    def needed_facts(self) -> Sequence[str]:
        """Return the columns that a source must keep for this evaluator. A run without them is refused at its start."""
        return ()


@dataclass(frozen=True, slots=True)
class StageInfo:
    """Identifies one stage of one run."""

    run: str
    """Name of the run."""
    stage: str
    """Name of the stage."""
    label: str
    """Label to display."""
    key: str
    """Cache key, which is also the key of the artifact."""
    settings: Mapping[str, Any]
    """The settings that determine the result, as plain JSON."""
    folder: Path
    """Folder of the artifact. It exists once the stage is finished."""


class Listener(Settings):
    """Base class of a listener, which receives the progress and metrics of every stage.

    A listener can send them anywhere, for example to an experiment tracker. It does not affect results and does not
    enter cache keys. A subclass fixes `name` as a `Literal` and overrides the methods for the events that it needs.

    Listeners run in the flow's process, with one instance per stage. If one raises an exception, a warning is shown,
    and that instance receives no more events.
    """

    name: str

    def started(self, stage: StageInfo) -> None:
        """Called before the stage is built. Not called for a stage that is found in the artifact store."""

    def step(self, stage: StageInfo, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Called when `done` of `total` units are finished. `metrics` holds the latest values."""

    def finished(self, stage: StageInfo, metrics: Mapping[str, Any], *, cached: bool) -> None:
        """Called when the artifact exists.

        Args:
            stage: the stage.
            metrics: the stage's metrics from when it was built, as plain JSON.
            cached: whether the artifact was found in the store or built by another run.
        """

    def failed(self, stage: StageInfo, error: str) -> None:
        """Called when the stage failed or was stopped."""


# --- hooks --------------------------------------------------------------------------------------------------------


class Hooks(Protocol):
    """The hooks that a plugin module may implement. Each one returns a list of classes."""

    @hookspec
    def alignment_optimizers(self) -> list[type[AlignmentOptimizer]]:
        """Return optimizers. Users select one with `optimizer.name`."""

    @hookspec
    def alignment_formats(self) -> list[type[RecordFormat]]:
        """Return record formats of raw feedback. They are detected by `matches` or set in `data.sources[].format`."""

    @hookspec
    def alignment_evaluators(self) -> list[type[Evaluator]]:
        """Return evaluators. Users select them by `name` in `reward.by`, `rank.by` and `evaluation.evaluators`."""

    @hookspec
    def alignment_pair_evaluators(self) -> list[type[PairEvaluator]]:
        """Return pair evaluators. Users select them by `name` in the settings of optimizers that compare responses."""

    @hookspec
    def alignment_listeners(self) -> list[type[Listener]]:
        """Return listeners. Users select them by `name` in `listeners`."""
