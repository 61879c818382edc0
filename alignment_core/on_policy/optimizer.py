"""The base class of on-policy optimizers: sample, score, and learn from each rollout in shuffled passes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from alignment_core.on_policy.guards import GuardedOptimizer
from alignment_core.on_policy.rollout import Experience, Sampled, rows_from_json, rows_to_json
from alignment_core.plugin_api import AlignmentRun, Rollout, Row, StepBatch


class OnPolicyOptimizer(GuardedOptimizer):
    """Samples rollouts from the policy, scores them with the reward, and learns from each in several passes.

    A subclass defines `experience` (what is learned from a rollout, such as advantages) and `loss`. It may override
    `rate` (what is maximized, if not the reward), `after_rollout`, `rows_per_rollout` and `refill_rounds`. If its loss
    reports the metric `step_kl`, passes end early at the setting of that name. Everything that is needed to resume
    within a rollout is in `run.state`.
    """

    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate of AdamW."""
    batch_size: int = Field(16, ge=1)
    """Responses per optimizer step (a minibatch of the rollout)."""
    rollouts: int = Field(20, ge=1)
    """Number of rollouts. In each one, responses are sampled and learned from."""
    rollout_size: int = Field(64, ge=1)
    """Responses sampled per rollout. A multiple of `samples`."""
    samples: int = Field(1, ge=1)
    """Responses sampled per prompt."""
    epochs: int = Field(4, ge=1)
    """Passes over each rollout."""
    schedule: Literal["cosine", "linear", "constant"] = "linear"
    """Learning rate after the warmup: cosine decay to 10 %, linear decay to 0, or constant."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Must be 1, because the log-probabilities are those of the full distribution."""
    top_k: int = Field(0, ge=0)
    """Must be 0, for the same reason as `top_p`."""
    step_kl: float | None = Field(0.1, gt=0)
    """End the passes over a rollout when the KL of a step to the sampling policy exceeds this, in nats per token."""
    missing_end_penalty: float = Field(1.0, ge=0)
    """Subtracted from the reward of a response that reaches the length limit without ending."""
    overlong_buffer: int = Field(0, ge=0)
    """Number of tokens before the length limit over which `missing_end_penalty` rises linearly from 0."""
    length_cost: float = 0.0
    """Subtracted from the reward for each token of the response. Negative: long responses are rewarded."""

    @field_validator("top_p", "top_k")
    @classmethod
    def _whole_distribution(cls, value: float, info: ValidationInfo) -> float:
        if value != (1 if info.field_name == "top_p" else 0):
            raise ValueError(
                "an on-policy optimizer must sample from the whole distribution: set top_p to 1 and top_k to 0"
            )
        return value

    @model_validator(mode="after")
    def _complete_groups(self) -> OnPolicyOptimizer:
        if self.rollout_size % self.samples:
            raise ValueError(
                f"rollout_size must be a multiple of samples, but is {self.rollout_size} with {self.samples} samples"
            )
        return self

    # --- what a subclass defines ----------------------------------------------------------------------------------

    def experience(self, run: AlignmentRun, sampled: Sampled) -> Experience:
        """Return what is learned from a rollout. Called once per rollout, without gradients."""
        raise NotImplementedError

    def after_rollout(self, run: AlignmentRun, kl: float) -> None:
        """Called once when a rollout is finished, to change `run.state`. `kl` is its mean KL per response in nats."""

    def rows_per_rollout(self) -> int:
        """Return the number of rows that `experience` gives at most."""
        return self.rollout_size

    def refill_rounds(self) -> int:
        """Return how often, at most, the groups of equal score are replaced by responses to new prompts."""
        return 0

    # --- the rollouts ---------------------------------------------------------------------------------------------

    def batches(self, run: AlignmentRun) -> Iterator[StepBatch]:
        state = run.state
        state.setdefault("rollouts_done", 0)
        state.setdefault("next_prompt", 0)
        state.setdefault("idle", 0)  # rollouts since the last step, because there was nothing to learn from
        while state["rollouts_done"] < self.rollouts and "stopped" not in state:
            if "rollout" not in state:
                state["rollout"] = self._collect(run)
            if "stopped" not in state:
                yield from self._minibatches(run, state["rollout"])
                state["rollouts_done"] += 1
                state["idle"] = 0 if run.step > state["rollout"]["first_step"] else state["idle"] + 1
            rollout = state.pop("rollout")
            state["next_prompt"] = rollout["next_prompt"]
            self.after_rollout(run, rollout["kl"])
        if not run.step and "stopped" not in state and "measured_last" not in state:
            run.warn("nothing was learned, because no rollout gave anything to learn from")
        self.restore_best(run)

    def total_steps(self, run: AlignmentRun) -> int:
        return self.rollouts * self.epochs * -(-self.rows_per_rollout() // self.batch_size)

    def _collect(self, run: AlignmentRun) -> dict[str, Any]:
        """Sample one rollout, and compute everything that stays constant while it is learned from."""
        rollouts, rates = self._rated(run)
        sequences = [rollout.sequence for rollout in rollouts]
        old = run.sampled_logps(rollouts, self.temperature)
        needs_reference = self.needs().reference
        reference = run.reference.token_logps(sequences, self.temperature) if needs_reference else old
        scores = old.logps.new_tensor(rates) - old.logps.new_tensor([self._penalty(rollout) for rollout in rollouts])
        sampled = Sampled(rollouts, self.samples, old, reference.logps, scores)
        experience = self.experience(run, sampled)
        kl, score, length = float(sampled.kl().mean()), float(scores.mean()), float(old.mask.sum(dim=1).mean())
        groups = len(rollouts) // self.samples
        run.report(
            {
                "score": score,
                **({"kl": kl} if needs_reference else {}),
                "response_length": length,
                "unfinished_share": sum(not rollout.finished for rollout in rollouts) / len(rollouts),
                "entropy": float((old.entropy * old.mask).sum() / old.mask.sum()),
                **({"refilled_groups": groups - self._groups()} if self.refill_rounds() else {}),
                **experience.metrics,
                **self.watch(run, score=score, kl=kl if needs_reference else None, length=length),
            }
        )
        next_prompt = run.state["next_prompt"] + groups
        return {"first_step": run.step, "kl": kl, "rows": rows_to_json(experience.rows), "next_prompt": next_prompt}

    def _rated(self, run: AlignmentRun) -> tuple[list[Rollout], list[float]]:
        """Sample the responses of one rollout. Return them with their ratings."""
        rollouts: list[Rollout] = []
        rates: list[float] = []
        wanted = self._groups()
        for again in range(1 + self.refill_rounds()):
            new = self._sample(run, run.state["next_prompt"] + len(rollouts) // self.samples, wanted, again)
            found = list(self.rate(run, new, held_out=False))
            rollouts, rates = [*rollouts, *new], [*rates, *found]
            scores = [rate - self._penalty(rollout) for rate, rollout in zip(found, new, strict=True)]
            wanted = sum(len(set(scores[i : i + self.samples])) == 1 for i in range(0, len(scores), self.samples))
            if not wanted:
                break
        return rollouts, rates

    def _groups(self) -> int:
        return self.rollout_size // self.samples

    def _sample(self, run: AlignmentRun, first: int, count: int, again: int) -> Sequence[Rollout]:
        """Sample responses to `count` prompts.

        Args:
            first: number of prompts that were used before.
            again: how many times this rollout has been sampled from before.
        """
        prompts, idle = self._prompts(run, first, count), run.state["idle"]
        # The noise depends on step and row: without a step, the same prompts would get the same responses again.
        mark = f" {idle}/{again}" if again else f" {idle}" if idle else ""
        asked = [replace(prompt, id=prompt.id + mark) for prompt in prompts]
        rollouts = run.generate(
            asked, max_new_tokens=self.max_new_tokens, temperature=self.temperature, samples=self.samples, logps=True
        )
        return [replace(rollout, prompt=prompts[i // self.samples]) for i, rollout in enumerate(rollouts)]

    def _prompts(self, run: AlignmentRun, first: int, count: int) -> list[Row]:
        """Return the next prompts. Passes over the prompts repeat, each in a different order."""
        prompts = sorted(run.prompts, key=lambda row: row.id)
        chosen: list[Row] = []
        for index in range(first, first + count):
            turn, place = divmod(index, len(prompts))
            if not chosen or place == 0:
                order = list(range(len(prompts)))
                run.random(f"prompts of pass {turn}").shuffle(order)
            chosen.append(prompts[order[place]])
        return chosen

    def _penalty(self, rollout: Rollout) -> float:
        """Return what is subtracted from the reward for the length and for a missing end."""
        length = len(rollout.sequence.completion)
        share = 0.0 if rollout.finished else 1.0
        if self.overlong_buffer and rollout.finished:
            share = max(0.0, (length - (self.max_new_tokens - self.overlong_buffer)) / self.overlong_buffer)
        return self.missing_end_penalty * share + self.length_cost * length

    def _minibatches(self, run: AlignmentRun, rollout: dict[str, Any]) -> Iterator[StepBatch]:
        """Yield the minibatches of `epochs` shuffled passes over the rollout, starting at `run.step`.

        Rows that share a prompt stay next to each other, because one pass then reads the prompt once for all of them.
        """
        rows = rows_from_json(rollout["rows"])
        groups = _with_equal_prompts(rows)
        per_epoch = -(-len(rows) // self.batch_size)
        for index in range(run.step - rollout["first_step"], self.epochs * per_epoch):
            if index and self.step_kl is not None and run.metrics.get("step_kl", 0.0) > self.step_kl:
                return
            epoch, place = divmod(index, per_epoch)
            run.random(f"rollout {run.state['rollouts_done']} epoch {epoch}").shuffle(shuffled := list(groups))
            order = [i for group in shuffled for i in group]
            chosen = [rows[i] for i in order[place * self.batch_size : (place + 1) * self.batch_size]]
            yield StepBatch(chosen, denominators={"tokens": _response_tokens(chosen)})


def _with_equal_prompts(rows: Sequence[Row]) -> list[list[int]]:
    """Return the indices of the rows in groups that have the same prompt and follow each other."""
    prompts = [next(iter(row.sequences.values())).prompt for row in rows]
    return [[i for i, _ in group] for _, group in groupby(enumerate(prompts), key=lambda pair: pair[1])]


def _response_tokens(rows: Sequence[Row]) -> int:
    return sum(sequence.targets for row in rows for sequence in row.sequences.values())
