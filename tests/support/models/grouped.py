"""A scripted rollout of two prompts with two responses each, for optimizers that compare responses to one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, ClassVar, Literal

from scripted import Model, ScriptedRun

from alignment_core import losses
from alignment_core.on_policy import Experience, OnPolicyOptimizer, Sampled
from alignment_core.plugin_api import AlignmentRun, LossOutput, MicroBatch, Rollout, Row, TokenSequence
from alignment_core.training.rewards import Rewards

PROMPTS = [Row(name, {"prompt": TokenSequence((first,), 1)}) for name, first in (("a", 5), ("b", 7))]
SHORT, LONG, OTHER, CUT = (
    TokenSequence(ids, 1) for ids in ((5, 6, 2), (5, 8, 9, 2), (7, 6, 2), (7, 8, 9, 10))
)  # the last one did not end
SEQUENCES = (SHORT, LONG, OTHER, CUT)
LOGPS = {SHORT.ids: [-1.0, -2.0], LONG.ids: [-1.0] * 3, OTHER.ids: [-0.5, -0.5], CUT.ids: [-2.0, -1.0, -1.0]}
REFERENCE = {SHORT.ids: [-2.0, -1.0], LONG.ids: [-2.0, -1.0, -1.0], OTHER.ids: [-0.5, -1.5], CUT.ids: [-1.0] * 3}
"""KL of the responses: 1 - 1 = 0, 1, 1 and -1 nats."""
GROUPS: dict[str, Any] = {"rollout_size": 4, "samples": 2, "batch_size": 4, "rollouts": 1, "epochs": 1}


def grouped_run(scores: tuple[float, float, float, float], **more: Any) -> ScriptedRun:
    """Return a run that samples the four responses, which have these rewards."""
    prompts = [prompt for prompt in PROMPTS for _ in range(2)]
    return ScriptedRun(
        policy=Model(LOGPS, entropy=0.7),
        reference=Model(REFERENCE),
        reward=Model({sequence.ids: [score] for sequence, score in zip(SEQUENCES, scores, strict=True)}),
        rewarded_by=Rewards(normalise=False),
        prompts=PROMPTS,
        rollouts=[
            Rollout(prompt, sequence, sequence is not CUT, "")
            for prompt, sequence in zip(prompts, SEQUENCES, strict=True)
        ],
        **more,
    )


class Refilled(ScriptedRun):
    """Samples the four responses of `grouped_run` first, and then those of one prompt after another."""

    later: Sequence[tuple[TokenSequence, TokenSequence]] = ()

    @classmethod
    def of(
        cls, scores: tuple[float, float, float, float], later: Sequence[tuple[TokenSequence, TokenSequence]]
    ) -> Refilled:
        plain = grouped_run(scores)
        run = cls(**{field.name: getattr(plain, field.name) for field in fields(plain)})
        run.later = later
        return run

    def generate(self, prompts: Sequence[Row], **settings: Any) -> Sequence[Rollout]:
        number = len(self.asked_to_generate)
        first = super().generate(prompts, **settings)
        if not number:
            return first
        sequences = self.later[number - 1]
        assert len(prompts) == 1
        return [Rollout(prompts[0], sequence, True, "") for sequence in sequences]


class Reinforce(OnPolicyOptimizer):
    """The smallest on-policy optimizer, as a stranger writes it."""

    name: Literal["reinforce"] = "reinforce"
    nothing_in: ClassVar[set[int]] = set()
    """Rollouts from which nothing is learned."""

    def experience(self, run: AlignmentRun, sampled: Sampled) -> Experience:
        if run.state["rollouts_done"] in self.nothing_in:
            return Experience([])
        advantage = sampled.scores - sampled.scores.mean()
        return Experience(sampled.rows({"advantage": advantage, "old": sampled.old.logps.sum(dim=1)}))

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        now = run.policy.token_logps(micro.sequences("response"), self.temperature).logps.sum(dim=1)
        loss, _ = losses.clipped_policy(now, micro.values("old"), micro.values("advantage"), clip=0.2)
        return LossOutput(loss.sum() / micro.denominators["rows"])
