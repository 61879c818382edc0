"""The guards of an optimizer that samples: which policy is kept, what is warned of, and what ends the training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev
from typing import Any, ClassVar

from pydantic import Field

from alignment_core.plugin_api import AlignmentOptimizer, AlignmentRun

SURE = 2.0
"""Standard errors of the paired difference by which a measure has to fall to have fallen for sure."""


class Watched(AlignmentOptimizer):
    """Measures itself on held-out prompts, keeps the best policy, and stops when the reward model is being gamed.

    Each rule has a limit at which training stops with a sentence that says what to turn, and warns at half of it.
    """

    prompts: ClassVar[bool] = True
    reward_model: ClassVar[bool] = True
    reference: ClassVar[bool] = True
    evaluators: ClassVar[tuple[str, ...]] = ("held_out_measure",)

    max_new_tokens: int = Field(128, ge=1)
    """Longest response in tokens."""
    temperature: float = Field(1.0, gt=0)
    """Sampling temperature; log-probabilities, KL and ratios use the same scaled logits."""
    kl_ceiling: float = Field(50.0, gt=0)
    """KL per response in nats at which training stops, and above which no policy is kept."""
    length_drift: float | None = Field(4.0, gt=1)
    """Training stops when responses are this many times longer or shorter than the SFT model's; null: never."""
    held_out_every: int = Field(5, ge=1)
    """Rollouts between two measurements on held-out prompts, by which the policy that is kept is chosen."""
    held_out_prompts: int = Field(64, ge=2)
    """At most this many held-out prompts are answered at each measurement."""
    held_out_measure: dict[str, Any] | None = None
    """Installed evaluator by `name`, with its settings, that judges held-out responses; null: the reward model."""

    def watch(self, run: AlignmentRun, *, score: float, kl: float, length: float) -> dict[str, float]:
        """Judge a fresh rollout by its means; `run.state["stopped"]` tells whether nothing more should be learned.

        Returns:
            What was measured on held-out prompts, if it was time to.
        """
        first_length = run.state.setdefault("first_length", length)
        words = f"KL {kl:.1f} nats per response, kl_ceiling {self.kl_ceiling:g}; raise kl_coef or lower learning_rate"
        self._judge(run, "KL", kl / self.kl_ceiling, words)
        if self.length_drift is not None:
            words = (
                f"responses of {length:.1f} tokens, the SFT model's had {first_length:.1f}, length_drift "
                f"{self.length_drift:g}; raise kl_coef, or give the reward model pairs in which length does not decide"
            )
            # In logarithms, so that half of the limit is its square root: twice as long for a limit of four times.
            self._judge(run, "length", abs(math.log(length / first_length)) / math.log(self.length_drift), words)
        due = run.state["rollouts_done"] % self.held_out_every == 0
        return self.measure(run, score) if due or "stopped" in run.state else {}

    def measure(self, run: AlignmentRun, score: float | None = None) -> dict[str, float]:
        """Answer the held-out prompts; keep the weights if they are the best so far.

        Args:
            score: mean score on the training prompts, if the same policy has just been sampled on them.
        """
        prompts = run.held_out_prompts[: self.held_out_prompts]
        if len(prompts) < 2:
            return {}
        rollouts = run.generate(prompts, max_new_tokens=self.max_new_tokens, temperature=self.temperature)
        sequences = [rollout.sequence for rollout in rollouts]
        policy = run.policy.token_logps(sequences, self.temperature)
        reference = run.reference.token_logps(sequences, self.temperature)
        kl = float((policy.logps - reference.logps).sum(dim=1).mean())
        scores: list[float] = run.reward.scores(sequences).tolist()
        found = {
            "held_out_score": fmean(scores),
            "held_out_kl": kl,
            "held_out_length": float(policy.mask.sum(dim=1).mean()),
        }
        measured = scores
        if self.held_out_measure is not None:
            measured = run.judge("held_out_measure", rollouts)
            found["held_out_measure"] = fmean(measured)
        self._compare(run, measured, kl, score)
        return found | {"kept_after_rollout": run.state["best"]["after"]}

    def restore_best(self, run: AlignmentRun) -> None:
        """At the end of `batches`: measure once more, and let the best policy be the result."""
        if "measured_last" not in run.state:
            if "stopped" not in run.state and (found := self.measure(run)):
                run.report(found)
            run.state["measured_last"] = True
            if "best" not in run.state:
                run.warn("there are no held-out prompts to choose by, so the last policy is kept")
            elif run.state["best"]["after"] == 0:
                run.warn(
                    "no policy did better on held-out prompts than the SFT model, which is kept; look at the reward "
                    "model's held-out accuracy, lower kl_coef, or raise rollouts or learning_rate"
                )
        if "best" in run.state:
            run.restore()

    def _compare(self, run: AlignmentRun, measured: Sequence[float], kl: float, score: float | None) -> None:
        """Keep the best; stop where the score has risen since then while the measure has fallen for sure."""
        best = run.state.get("best")
        if best is None or (fmean(measured) > fmean(best["measured"]) and kl <= self.kl_ceiling):
            run.keep()
            run.state["best"] = {"after": run.state["rollouts_done"], "measured": list(measured), "score": score}
        elif score is not None and score > best["score"]:
            fallen = [before - now for before, now in zip(best["measured"], measured, strict=True)]
            errors = fmean(fallen) / max(stdev(fallen) / math.sqrt(len(fallen)), 1e-12)
            words = (
                f"the score rose from {best['score']:.2f} to {score:.2f} while the held-out measure fell from "
                f"{fmean(best['measured']):.2f} to {fmean(measured):.2f}; raise kl_coef, or give the reward model more "
                "pairs"
            )
            self._judge(run, "held-out measure", errors / SURE, words)

    def _judge(self, run: AlignmentRun, rule: str, share: float, words: str) -> None:
        """Stop where a rule's share of its limit is above 1; warn once where it is above one half."""
        done, warned = run.state["rollouts_done"], run.state.setdefault("warned", [])
        if share > 1 and "stopped" not in run.state:
            run.state["stopped"] = rule
            run.warn(f"stopped after rollout {done}: {words}")
        elif share > 0.5 and rule not in warned:
            warned.append(rule)
            run.warn(f"after rollout {done}, half way to a stop: {words}")
