"""The guards of an on-policy optimizer: keep the best policy, warn of reward hacking, and stop training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, ClassVar

from pydantic import Field

from alignment_core.config.base import Temperature
from alignment_core.plugin_api import AlignmentOptimizer, AlignmentRun, Needs, Rollout

SURE = 2.0
"""A measure has fallen significantly if its mean paired difference exceeds this many standard errors."""


class GuardedOptimizer(AlignmentOptimizer):
    """Evaluates the policy on held-out prompts, keeps the best one, and stops when the reward is being gamed.

    Each rule stops training at its limit and warns at half of the limit. The message says which setting to change.
    """

    evaluators: ClassVar[tuple[str, ...]] = ("held_out_measure",)

    max_new_tokens: int = Field(128, ge=1)
    """Maximum length of a response, in tokens."""
    temperature: Temperature = 1.0
    """Sampling temperature. Log-probabilities, KL and ratios use the same scaled logits."""
    kl_ceiling: float = Field(50.0, gt=0)
    """Training stops above this KL per response, in nats. A policy above it is never kept. Not judged without a
    reference."""
    length_drift: float | None = Field(4.0, gt=1)
    """Training stops when responses are this many times longer or shorter than the SFT model's. null: never stop."""
    held_out_every: int = Field(5, ge=1)
    """Rollouts between evaluations on held-out prompts. The best policy in these evaluations is kept."""
    held_out_prompts: int = Field(64, ge=2)
    """Maximum number of held-out prompts per evaluation."""
    held_out_measure: dict[str, Any] | None = None
    """Evaluator that scores held-out responses: its `name` and settings. null: the reward."""

    def needs(self) -> Needs:
        return Needs(prompts=True, reward=True, reference=True)

    def rate(self, run: AlignmentRun, rollouts: Sequence[Rollout], *, held_out: bool) -> Sequence[float]:
        """Return how good each response is, by default its reward. A higher mean on held-out prompts is better."""
        rewards: list[float] = run.rewards(rollouts, held_out=held_out).tolist()
        return rewards

    def watch(self, run: AlignmentRun, *, score: float, kl: float | None, length: float) -> dict[str, float]:
        """Check a new rollout by its means, and set `run.state["stopped"]` if training must stop.

        Args:
            run: the run.
            score: mean reward, with penalties.
            kl: mean KL per response in nats; None if the optimizer needs no reference.
            length: mean tokens per response.

        Returns:
            The metrics on held-out prompts if an evaluation was due, else nothing.
        """
        first_length = run.state.setdefault("first_length", length)
        if kl is not None:
            change = self._change("raise", "lower learning_rate")
            message = f"KL is {kl:.1f} nats per response (kl_ceiling {self.kl_ceiling:g}). {change}"
            self._judge(run, "KL", kl / self.kl_ceiling, message)
        if self.length_drift is not None:
            message = (
                f"responses have {length:.1f} tokens, those of the SFT model {first_length:.1f} "
                f"(length_drift {self.length_drift:g}). "
                f"{self._change('raise', 'use a reward in which length does not decide')}"
            )
            # In logarithms, half of the limit is its square root: twice as long for a limit of four times.
            self._judge(run, "length", abs(math.log(length / first_length)) / math.log(self.length_drift), message)
        due = run.state["rollouts_done"] % self.held_out_every == 0
        return self.measure(run, score) if due or "stopped" in run.state else {}

    def measure(self, run: AlignmentRun, score: float | None = None) -> dict[str, float]:
        """Evaluate the policy on the held-out prompts, and keep its weights if they are the best so far.

        Args:
            score: mean score of the same policy on training prompts, if a rollout has just been sampled.
        """
        prompts = run.held_out_prompts[: self.held_out_prompts]
        if len(prompts) < 2:
            return {}
        rollouts = run.generate(prompts, max_new_tokens=self.max_new_tokens, temperature=self.temperature, logps=True)
        sequences = [rollout.sequence for rollout in rollouts]
        scores = self.rate(run, rollouts, held_out=True)
        found = {
            "held_out_score": fmean(scores),
            "held_out_length": fmean(len(sequence.completion) for sequence in sequences),
        }
        kl = None
        if self.needs().reference:
            policy = run.sampled_logps(rollouts, self.temperature)
            reference = run.reference.token_logps(sequences, self.temperature)
            kl = found["held_out_kl"] = float((policy.logps - reference.logps).sum(dim=1).mean())
        measured = scores
        if self.held_out_measure is not None:
            measured = run.judge("held_out_measure", rollouts)
            found["held_out_measure"] = fmean(measured)
        self._compare(run, measured, kl, score)
        return found | {"kept_after_rollout": run.state["best"]["after"]}

    def restore_best(self, run: AlignmentRun) -> None:
        """Evaluate once more and restore the best policy. Call this at the end of `batches`."""
        if "measured_last" not in run.state:
            if "stopped" not in run.state and (found := self.measure(run)):
                run.report(found)
            run.state["measured_last"] = True
            if "best" not in run.state:
                run.warn("there are no held-out prompts for choosing the best policy, so the last policy is kept")
            elif run.state["best"]["after"] == 0:
                run.warn(
                    "no policy scored higher than the SFT model on held-out prompts, so the SFT model is kept. "
                    + self._change("lower", "raise rollouts or learning_rate, or check the reward on held-out data")
                )
        if "best" in run.state:
            run.restore()

    def _compare(self, run: AlignmentRun, measured: Sequence[float], kl: float | None, score: float | None) -> None:
        """Keep the best policy. Stop if the score has risen since then while the measure has fallen significantly."""
        best = run.state.get("best")
        allowed = kl is None or kl <= self.kl_ceiling
        if best is None or (fmean(measured) > fmean(best["measured"]) and allowed):
            run.keep()
            run.state["best"] = {"after": run.state["rollouts_done"], "measured": list(measured), "score": score}
        elif score is not None and score > best["score"]:
            fallen = [before - now for before, now in zip(best["measured"], measured, strict=True)]
            errors = fmean(fallen) / max(stdev(fallen) / math.sqrt(len(fallen)), 1e-12)
            message = (
                f"the score rose from {best['score']:.2f} to {score:.2f} while the held-out measure fell from "
                f"{fmean(best['measured']):.2f} to {fmean(measured):.2f}. "
                f"{self._change('raise', 'use a better reward, such as a reward model of more pairs')}"
            )
            self._judge(run, "held-out measure", errors / SURE, message)

    def _change(self, verb: str, otherwise: str) -> str:
        """Return what to do: with the setting that holds the policy to where it started if there is one, or else."""
        text = f"{verb} {self.kl_setting}, or {otherwise}" if self.kl_setting else otherwise
        return text[0].upper() + text[1:]

    def _judge(self, run: AlignmentRun, rule: str, share: float, message: str) -> None:
        """Stop if a rule exceeds its limit (`share` above 1). Warn once if it exceeds half of the limit."""
        done, warned = run.state["rollouts_done"], run.state.setdefault("warned", [])
        if share > 1 and "stopped" not in run.state:
            run.state["stopped"] = rule
            run.warn(f"training stopped after rollout {done}: {message}")
        elif share > 0.5 and rule not in warned:
            warned.append(rule)
            run.warn(f"more than half of a stopping limit reached after rollout {done}: {message}")
