"""Kahneman–Tversky optimization (arXiv 2402.01306)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ConfigDict, Field

from alignment_core import losses
from alignment_core.plugin_api import (
    Advice,
    AlignmentOptimizer,
    AlignmentRun,
    DataError,
    LossOutput,
    MicroBatch,
    Needs,
    Row,
    StepBatch,
    hookimpl,
)
from alignment_plugins.falling_rewards import both_fall

if TYPE_CHECKING:
    from torch import Tensor


class KTO(AlignmentOptimizer):
    """Learns from labelled responses (thumbs up or down) without pairs, and weights gains and losses differently."""

    model_config = ConfigDict(title="KTO")

    kl_setting: ClassVar[str | None] = "beta"

    name: Literal["kto"] = "kto"
    batch_size: int = Field(32, ge=2)
    """Rows per optimizer step, of both classes. Peak memory does not depend on it."""
    beta: float = Field(0.1, gt=0)
    """How fast gains and losses saturate. Larger values stay closer to the SFT model."""
    desirable_weight: float | None = Field(None, gt=0)
    """λ_D, the weight of desirable responses. If unset, n_D·λ_D = n_U·λ_U and the larger weight is 1."""
    undesirable_weight: float | None = Field(None, gt=0)
    """λ_U, the weight of undesirable responses. If unset, it is balanced like `desirable_weight`."""

    def needs(self) -> Needs:
        return Needs(feedback=True, both_labels=True, reference=True)

    def batches(self, run: AlignmentRun) -> Iterator[StepBatch]:
        good = [row for row in run.feedback if row.number("desirable")]
        bad = [row for row in run.feedback if not row.number("desirable")]
        if not good or not bad:
            raise DataError(
                "KTO needs both desirable and undesirable responses",
                where="optimizer kto",
                got=f"{len(good)} desirable and {len(bad)} undesirable",
                do="Add feedback of the missing kind",
            )
        weights = self._weights(_votes(good), _votes(bad))
        per_epoch = -(-len(run.feedback) // self.batch_size)
        lacking = max(0, per_epoch - min(len(good), len(bad)))
        if lacking and "one_class_steps" not in run.state:
            run.state["one_class_steps"] = lacking
            run.warn(
                f"only one class in {lacking} of {per_epoch} steps per epoch, because the smaller class "
                "has too few rows"
            )
        for index in range(run.step, self.epochs * per_epoch):
            epoch, place = divmod(index, per_epoch)
            liked = _slice(run, good, "good", epoch, place, per_epoch)
            disliked = _slice(run, bad, "bad", epoch, place, per_epoch)
            rows = liked + disliked
            yield StepBatch(
                [_learned_from(row) for row in rows],
                denominators={"desirable": max(1, len(liked)), "undesirable": max(1, len(disliked))},
                constants={"z0": self._z0(run, rows), **weights},
            )

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        sequences = micro.sequences("response")
        logps = run.policy.logps(sequences)
        ratios = logps - run.reference.logps(sequences)
        desirable, votes = micro.values("desirable"), micro.values("weight")
        per_row = losses.kto(
            ratios,
            desirable,
            z0=micro.constants["z0"],
            beta=self.beta,
            weight_desirable=micro.constants["desirable_weight"],
            weight_undesirable=micro.constants["undesirable_weight"],
        )
        rows = micro.denominators["rows"]
        good = self.beta * (desirable * ratios).sum() / micro.denominators["desirable"]
        bad = self.beta * ((1 - desirable) * ratios).sum() / micro.denominators["undesirable"]
        metrics: dict[str, Tensor | float] = {
            "reward_margin": good - bad,
            "reward_desirable": good,
            "reward_undesirable": bad,
            "desirable_share": desirable.sum() / rows,
            "kl": micro.constants["z0"] * len(sequences) / rows,
            "logps": logps.sum() / rows,
            "length": sum(sequence.targets for sequence in sequences) / rows,
        }
        return LossOutput((votes * per_row).sum() / rows, metrics)

    def advice(self, trained: Mapping[str, Any], evaluated: Mapping[str, Any]) -> Sequence[Advice]:
        do = "raise `optimizer.beta`, or lower `optimizer.learning_rate`"
        return list(both_fall(trained, "reward_desirable", "reward_undesirable", do))

    def _z0(self, run: AlignmentRun, rows: Sequence[Row]) -> float:
        """Return the reference point: the mean log-ratio of prompts with responses to other prompts, at least 0."""
        mismatched = [row.sequences["mismatched"] for row in rows]
        ratios = run.policy.logps(mismatched) - run.reference.logps(mismatched)
        return max(0.0, float(ratios.mean()))

    def _weights(self, good: float, bad: float) -> dict[str, float]:
        smaller = min(good, bad)
        return {
            "desirable_weight": self.desirable_weight or smaller / good,
            "undesirable_weight": self.undesirable_weight or smaller / bad,
        }


def _votes(rows: Sequence[Row]) -> float:
    return sum(row.number("weight") for row in rows)


def _learned_from(row: Row) -> Row:
    """Return the row without the sequence that only z0 needs, which would take half of the token budget."""
    return Row(row.id, {"response": row.sequences["response"]}, row.values)


def _slice(run: AlignmentRun, rows: list[Row], name: str, epoch: int, place: int, steps: int) -> list[Row]:
    """Return the rows of one class for this step: an even share, in an order that is reshuffled each epoch."""
    order = list(range(len(rows)))
    run.random(f"{name} rows of epoch {epoch}").shuffle(order)
    return [rows[i] for i in order[place * len(rows) // steps : (place + 1) * len(rows) // steps]]


@hookimpl
def alignment_optimizers() -> list[type[AlignmentOptimizer]]:
    return [KTO]
