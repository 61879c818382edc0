"""Proximal policy optimization (arXiv 1707.06347; for language models 2203.02155 and 2403.17031)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from alignment_core import losses
from alignment_core.plugin_api import (
    AlignmentOptimizer,
    AlignmentRun,
    LossOutput,
    MicroBatch,
    Needs,
    Row,
    StepBatch,
    TokenSequence,
    hookimpl,
)
from alignment_plugins.guards import GuardedOptimizer

if TYPE_CHECKING:
    from torch import Tensor


class PPO(GuardedOptimizer):
    """Samples from the policy and maximizes the reward, with a KL penalty to the SFT model."""

    model_config = ConfigDict(title="PPO")

    name: Literal["ppo"] = "ppo"
    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate of AdamW."""
    batch_size: int = Field(16, ge=1)
    """Responses per optimizer step (a minibatch of the rollout)."""
    rollouts: int = Field(20, ge=1)
    """Number of rollouts. In each one, responses are sampled and learned from."""
    rollout_size: int = Field(64, ge=1)
    """Responses sampled per rollout."""
    epochs: int = Field(4, ge=1)
    """Passes over each rollout."""
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    """Learning rate after the warmup: cosine decay to 10 %, linear decay to 0, or constant."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Must be 1, because the log-probabilities are those of the full distribution."""
    top_k: int = Field(0, ge=0)
    """Must be 0, for the same reason as `top_p`."""
    kl_coef: float = Field(0.05, ge=0)
    """β, the weight of the per-token KL penalty in the reward. The initial value if `kl_target` is set."""
    kl_target: float | None = Field(None, gt=0)
    """Target KL per response in nats for an adaptive β (arXiv 1909.08593). If unset, β is fixed."""
    kl_horizon: int = Field(1000, ge=1)
    """Time scale of the adaptive β, in responses."""
    step_kl: float | None = Field(0.1, gt=0)
    """Passes over a rollout end early when the KL per token of a step to the sampling policy exceeds this, in nats."""
    clip: float = Field(0.2, gt=0, lt=1)
    """ε of the clipped policy ratio."""
    value_clip: float = Field(0.2, gt=0)
    """Clip range of the value loss: how far a value may usefully move from its value at sampling time."""
    value_weight: float = Field(0.5, gt=0)
    """Weight of the value loss."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount per token."""
    gae_lambda: float = Field(0.95, ge=0, le=1)
    """λ of generalized advantage estimation."""
    missing_end_penalty: float = Field(1.0, ge=0)
    """Subtracted from the reward of a response that reaches the length limit without ending."""

    @field_validator("top_p", "top_k")
    @classmethod
    def _whole_distribution(cls, value: float, info: ValidationInfo) -> float:
        if value != (1 if info.field_name == "top_p" else 0):
            raise ValueError("PPO must sample from the whole distribution: set top_p to 1 and top_k to 0")
        return value

    def needs(self) -> Needs:
        return Needs(prompts=True, reward=True, reference=True, value=True)

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
        """Sample one rollout, and compute everything that stays constant while it is learned from."""
        rollouts = run.generate(self._prompts(run), max_new_tokens=self.max_new_tokens, temperature=self.temperature)
        sequences = [rollout.sequence for rollout in rollouts]
        old = run.policy.token_logps(sequences, self.temperature)
        reference = run.reference.token_logps(sequences, self.temperature)
        scores = run.rewards(rollouts)
        scores = scores - self.missing_end_penalty * scores.new_tensor([not rollout.finished for rollout in rollouts])
        values = run.value.values(sequences)
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
        """Return the next `rollout_size` prompts. Passes over the prompts repeat, each in a different order."""
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

    def _minibatches(self, run: AlignmentRun, rollout: dict[str, Any]) -> Iterator[StepBatch]:
        """Yield the minibatches of `epochs` shuffled passes over the rollout, starting at `run.step`."""
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
            yield StepBatch(chosen, denominators={"tokens": tokens})

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
            run.value.values(sequences),
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
    """Return the rows of the rollout as JSON, so that training can resume from a checkpoint within a rollout."""
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
