"""Proximal policy optimization on a reward model (arXiv 1707.06347; for language models 2203.02155 and 2403.17031)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from alignment_core import losses
from alignment_core.plugin_api import (
    AlignmentOptimizer,
    AlignmentRun,
    LossOutput,
    MicroBatch,
    Rollout,
    Row,
    StepBatch,
    TokenSequence,
    hookimpl,
)
from alignment_plugins.watch import Watched

if TYPE_CHECKING:
    from torch import Tensor


class PPO(Watched):
    """Samples from the policy and maximises the reward model's score under a KL penalty to the SFT model."""

    model_config = ConfigDict(title="PPO")
    trains: ClassVar[tuple[str, ...]] = ("policy", "value")

    name: Literal["ppo"] = "ppo"
    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate of AdamW."""
    batch_size: int = Field(16, ge=1)
    """Responses in one optimizer step (a minibatch of the rollout)."""
    rollouts: int = Field(20, ge=1)
    """Times that responses are sampled and learned from."""
    rollout_size: int = Field(64, ge=1)
    """Responses sampled in one rollout."""
    epochs: int = Field(4, ge=1)
    """Passes over each rollout."""
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    """How the learning rate falls after the warm-up: to 10 % by a cosine, to 0 linearly, or not at all."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Must stay 1: a truncated distribution has no matching log-probabilities."""
    top_k: int = Field(0, ge=0)
    """Must stay 0, like `top_p`."""
    kl_coef: float = Field(0.05, ge=0)
    """β, the weight of the per-token KL penalty in the reward; the start value where `kl_target` is set."""
    kl_target: float | None = Field(None, gt=0)
    """KL per response in nats that an adaptive β steers to (arXiv 1909.08593); unset: β is fixed."""
    kl_horizon: int = Field(1000, ge=1)
    """Responses over which the adaptive β moves."""
    step_kl: float | None = Field(0.1, gt=0)
    """The passes over a rollout end early when a step's KL per token to the sampling policy exceeds this."""
    clip: float = Field(0.2, gt=0, lt=1)
    """ε of the clipped policy ratio."""
    value_clip: float = Field(0.2, gt=0)
    """Largest move of a value away from the one at sampling time that the value loss rewards."""
    value_weight: float = Field(0.5, gt=0)
    """Weight of the value loss."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """λ of generalised advantage estimation."""
    normalise_scores: bool = True
    """Scores are measured from the SFT model's mean in units of its standard deviation, both of the first rollout."""
    missing_end_penalty: float = Field(1.0, ge=0)
    """Taken off the (normalised) score of a response that reached the length limit without ending."""
    score_clip: float | None = Field(None, gt=0)
    """(Normalised) scores are cut to ± this; unset: not cut."""

    @field_validator("top_p", "top_k")
    @classmethod
    def _whole_distribution(cls, value: float, info: ValidationInfo) -> float:
        if value != (1 if info.field_name == "top_p" else 0):
            raise ValueError("PPO learns from the whole distribution that it samples from: top_p 1 and top_k 0")
        return value

    def batches(self, run: AlignmentRun) -> Iterator[StepBatch]:
        state = run.state
        state.setdefault("kl_coef", self.kl_coef)
        state.setdefault("rollouts_done", 0)
        while state["rollouts_done"] < self.rollouts and "stopped" not in state:
            if "rollout" not in state:
                state["rollout"] = self._collect(run)
            if "stopped" not in state:
                yield from self._minibatches(run, state["rollout"])
                state["rollouts_done"] += 1
            self._steer_kl(run, state.pop("rollout"))
        self.restore_best(run)

    def total_steps(self, run: AlignmentRun) -> int:
        return self.rollouts * self.epochs * -(-self.rollout_size // self.batch_size)

    def _collect(self, run: AlignmentRun) -> dict[str, Any]:
        """Sample one rollout and everything about it that stays constant while it is learned from."""
        rollouts = run.generate(self._prompts(run), max_new_tokens=self.max_new_tokens, temperature=self.temperature)
        sequences = [rollout.sequence for rollout in rollouts]
        old = run.policy.token_logps(sequences, self.temperature)
        reference = run.reference.token_logps(sequences, self.temperature)
        raw_scores = run.reward.scores(sequences)
        if "score_mean" not in run.state:
            mean, deviation = float(raw_scores.mean()), float(raw_scores.std(correction=0))
            known = self.normalise_scores and deviation > 0
            run.state["score_mean"], run.state["score_deviation"] = (mean, deviation) if known else (0.0, 1.0)
        scores = self._scores(run, raw_scores, rollouts)
        values = self._in_units(run.value.values(sequences), run.state)
        rewards = losses.token_rewards(scores, old.logps, reference.logps, old.mask, kl_coef=run.state["kl_coef"])
        advantages, returns = losses.gae(rewards, values, old.mask, gamma=self.gamma, lam=self.gae_lambda)
        constants = {
            "old_logps": old.logps,
            "old_values": values,
            "advantages": losses.whiten(advantages, old.mask),
            "returns": returns,
        }
        kl = float(((old.logps - reference.logps) * old.mask).sum(dim=1).mean())
        score, length = float(scores.mean()), float(old.mask.sum(dim=1).mean())
        run.report(
            {
                "score": score,
                "raw_score": float(raw_scores.mean()),
                "kl": kl,
                "kl_coef": run.state["kl_coef"],
                "response_length": length,
                "unfinished_share": sum(not rollout.finished for rollout in rollouts) / len(rollouts),
                "entropy": float((old.entropy * old.mask).sum() / old.mask.sum()),
                "explained_variance": float(losses.explained_variance(values, returns, old.mask)),
                **self.watch(run, score=score, kl=kl, length=length),
            }
        )
        return {"first_step": run.step, "kl": kl, "rows": _to_json(sequences, constants)}

    def _prompts(self, run: AlignmentRun) -> list[Row]:
        """The next `rollout_size` prompts of endless passes, each in an order of its own."""
        prompts = sorted(run.prompts, key=lambda row: row.id)
        chosen: list[Row] = []
        first = run.state["rollouts_done"] * self.rollout_size
        for index in range(first, first + self.rollout_size):
            turn, place = divmod(index, len(prompts))
            if not chosen or place == 0:
                order = list(range(len(prompts)))
                run.random(f"prompts of pass {turn}").shuffle(order)
            chosen.append(prompts[order[place]])
        return chosen

    def _in_units(self, scores: Tensor, units: Mapping[str, float]) -> Tensor:
        """Scores and values, which start from the same weights, measured from the SFT model's scores."""
        return (scores - units["score_mean"]) / units["score_deviation"]

    def _scores(self, run: AlignmentRun, raw_scores: Tensor, rollouts: Sequence[Rollout]) -> Tensor:
        unfinished = raw_scores.new_tensor([not rollout.finished for rollout in rollouts])
        scores = self._in_units(raw_scores, run.state) - self.missing_end_penalty * unfinished
        return scores if self.score_clip is None else scores.clamp(-self.score_clip, self.score_clip)

    def _minibatches(self, run: AlignmentRun, rollout: dict[str, Any]) -> Iterator[StepBatch]:
        """`epochs` shuffled passes over the rollout, starting where `run.step` says."""
        rows = _from_json(rollout["rows"])
        per_epoch = -(-len(rows) // self.batch_size)
        for index in range(run.step - rollout["first_step"], self.epochs * per_epoch):
            if index and self.step_kl is not None and run.metrics["step_kl"] > self.step_kl:
                return
            epoch, place = divmod(index, per_epoch)
            order = list(range(len(rows)))
            run.random(f"rollout {run.state['rollouts_done']} epoch {epoch}").shuffle(order)
            chosen = [rows[i] for i in order[place * self.batch_size : (place + 1) * self.batch_size]]
            tokens = sum(len(row.sequences["response"].completion) for row in chosen)
            units = {name: run.state[name] for name in ("score_mean", "score_deviation")}
            yield StepBatch(chosen, denominators={"tokens": tokens}, constants=units)

    def _steer_kl(self, run: AlignmentRun, rollout: dict[str, Any]) -> None:
        if self.kl_target is not None:
            error = min(max(rollout["kl"] / self.kl_target - 1, -0.2), 0.2)
            run.state["kl_coef"] *= 1 + error * self.rollout_size / self.kl_horizon

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        sequences = micro.sequences("response")
        now = run.policy.token_logps(sequences, self.temperature)
        old, advantages = micro.token_values("old_logps"), micro.token_values("advantages")
        policy, policy_clipped = losses.clipped_policy(now.logps, old, advantages, clip=self.clip)
        value, value_clipped = losses.clipped_value(
            self._in_units(run.value.values(sequences), micro.constants),
            micro.token_values("old_values"),
            micro.token_values("returns"),
            clip=self.value_clip,
        )
        tokens = micro.denominators["tokens"]

        def mean(per_token: Tensor) -> Tensor:
            return (per_token * now.mask).sum() / tokens

        policy_loss, value_loss = mean(policy), mean(value)
        log_ratio = now.logps - old
        metrics = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "policy_clipped_share": mean(policy_clipped),
            "value_clipped_share": mean(value_clipped),
            "step_kl": mean(log_ratio.exp() - 1 - log_ratio),
            "entropy": mean(now.entropy),
        }
        return LossOutput(policy_loss + self.value_weight * value_loss, metrics)


def _to_json(sequences: Sequence[TokenSequence], constants: dict[str, Tensor]) -> list[dict[str, Any]]:
    """The rollout's rows as JSON, so that a checkpoint in the middle of it can be gone on from."""
    tables = {name: tensor.tolist() for name, tensor in constants.items()}
    return [
        {
            "ids": list(sequence.ids),
            "start": sequence.start,
            "values": {name: table[i][: len(sequence.completion)] for name, table in tables.items()},
        }
        for i, sequence in enumerate(sequences)
    ]


def _from_json(rows: Sequence[dict[str, Any]]) -> list[Row]:
    return [
        Row(str(i), {"response": TokenSequence(tuple(row["ids"]), row["start"])}, row["values"])
        for i, row in enumerate(rows)
    ]


@hookimpl
def alignment_optimizers() -> list[type[AlignmentOptimizer]]:
    return [PPO]
