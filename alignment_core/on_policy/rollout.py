"""What was sampled in one rollout, and what is learned from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from alignment_core.plugin_api import Rollout, Row, TokenLogps, TokenSequence

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sampled:
    """The responses of one rollout: `samples` per prompt, next to each other. Nothing here has a gradient."""

    rollouts: Sequence[Rollout]
    """The responses with their prompts."""
    samples: int
    """Responses per prompt."""
    old: TokenLogps
    """Log-probabilities under the policy that sampled them, at the sampling temperature."""
    reference_logps: Tensor
    """Those under the reference, shape (responses, longest), 0 at padding. If the optimizer needs no reference, those
    under the policy, so that every KL is 0."""
    scores: Tensor
    """Reward of each response with the penalties of the base: shape (responses,)."""

    @property
    def sequences(self) -> list[TokenSequence]:
        """The prompt and response of each, as tokens."""
        return [rollout.sequence for rollout in self.rollouts]

    def kl(self) -> Tensor:
        """Return log π - log ref of each response in nats, shape (responses,), an estimate of the KL."""
        return ((self.old.logps - self.reference_logps) * self.old.mask).sum(dim=1)

    def grouped(self, values: Tensor) -> Tensor:
        """Return one number per response as shape (prompts, samples)."""
        return values.view(-1, self.samples)

    def rows(self, values: Mapping[str, Tensor], keep: Sequence[bool] | None = None) -> list[Row]:
        """Return one row per response, whose sequence is called `response`.

        Args:
            values: numbers that stay constant while the rollout is learned from, by name: shape (responses,) or
                (responses, longest).
            keep: which responses to learn from. None: all.
        """
        tables = {name: tensor.tolist() for name, tensor in values.items()}
        rows = []
        for i, sequence in enumerate(self.sequences):
            if keep is not None and not keep[i]:
                continue
            of_row = {name: _of_row(table[i], len(sequence.completion)) for name, table in tables.items()}
            rows.append(Row(str(i), {"response": sequence}, of_row))
        return rows


@dataclass(frozen=True)
class Experience:
    """What an optimizer learns from one rollout."""

    rows: Sequence[Row]
    """The rows of the passes over the rollout. If there are none, the rollout is skipped."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the rollout that are reported with those of the base."""


def rows_to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the rows as plain JSON, so that training can resume from a checkpoint within a rollout."""
    return [
        {
            "id": row.id,
            "sequences": {name: [s.ids, s.start, s.mask] for name, s in row.sequences.items()},
            "values": dict(row.values),
        }
        for row in rows
    ]


def rows_from_json(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Return the rows that `rows_to_json` was given."""
    return [
        Row(
            row["id"],
            {name: _sequence(*parts) for name, parts in row["sequences"].items()},
            row["values"],
        )
        for row in rows
    ]


def _of_row(value: float | list[float], length: int) -> float | list[float]:
    """Return a number as it is, and numbers per token without their padding."""
    return value[:length] if isinstance(value, list) else value


def _sequence(ids: Sequence[int], start: int, mask: Sequence[bool] | None) -> TokenSequence:
    return TokenSequence(tuple(ids), start, None if mask is None else tuple(mask))
