"""The run that an optimizer works with: its models, data and services."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from alignment_core.plugin_api.steps import Rollout
from alignment_core.token_rows import Row, TokenSequence

if TYPE_CHECKING:
    from torch import Tensor


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
    """The policy, the reference or a snapshot of the policy."""

    def logps(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """Return the summed log-probability of each sequence's target tokens: shape (sequences,), float32, nats."""

    def token_logps(self, sequences: Sequence[TokenSequence], temperature: float = 1.0) -> TokenLogps:
        """Return the log-probability of each target token. The logits are divided by `temperature`."""

    def hidden(self, sequences: Sequence[TokenSequence]) -> Tensor:
        """Return the last hidden state at each completion token, which is the input of the vocabulary head.

        The result has shape (sequences, longest completion, hidden size). It is float32, and 0 at padding. The state at
        a token has read this token and all before it.
        """


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

    Only trained roles (`policy`, and `value` if it is needed) and `parameters` have gradients, and only inside `loss`.
    """

    policy: LanguageModelRole
    """The model that is aligned."""
    reference: LanguageModelRole
    """The frozen model that the policy started from."""
    value: ValueRole
    """The value model."""
    parameters: Mapping[str, Tensor]
    """The optimizer's own trained weights, by the names in `AlignmentOptimizer.parameters`."""
    preferences: Sequence[Row]
    """Training rows with preference pairs."""
    feedback: Sequence[Row]
    """Training rows with labelled responses."""
    demonstrations: Sequence[Row]
    """Training rows with demonstrations."""
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
        logps: bool = False,
        role: str = "policy",
    ) -> list[Rollout]:
        """Sample from a role (see `role`) and return `samples` responses per prompt, adjacent in the list.

        The random numbers depend only on the seed, the step, the row and the role. With `logps`, the rollouts have the
        log-probabilities that they were sampled with, if the engine knows them.
        """

    def sampled_logps(self, rollouts: Sequence[Rollout], temperature: float = 1.0) -> TokenLogps:
        """Return the log-probabilities of responses that the policy has just sampled, without gradient.

        Those of the sampling pass are taken if `generate` kept them and those of some of the responses equal
        `policy.token_logps` to 0.001 nats. Otherwise, as always in 16 bits, the policy reads all responses again.
        """

    def role(self, name: str) -> LanguageModelRole:
        """Return the `policy`, the `reference` or a snapshot in `Needs.snapshots` by its name."""

    def snapshot(self, name: str, mix: float = 1.0) -> None:
        """Set the weights of a snapshot to (1 - mix) · snapshot + mix · policy, where 0 < mix ≤ 1.

        The weights are those of the adapter. Call this in `batches`, at most once per step and snapshot. Snapshots have
        no gradient. They are saved in checkpoints.
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
        """Score responses with the evaluator that `setting` chooses; see `AlignmentOptimizer.evaluators`.

        If the setting is a list, its place is added: `judge("objectives.0", rollouts)`.
        """

    def prefer(self, setting: str, a: Sequence[Rollout], b: Sequence[Rollout]) -> list[float]:
        """Compare responses to the same prompts with the pair evaluator that `setting` chooses.

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
