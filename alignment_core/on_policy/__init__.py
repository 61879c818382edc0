"""The base of on-policy optimizers, which is part of the plugin API. It does not import torch.

An on-policy plugin is its advantages and its loss:

    from alignment_core import losses
    from alignment_core.on_policy import Experience, OnPolicyOptimizer, Sampled
    from alignment_core.plugin_api import AlignmentRun, LossOutput, MicroBatch, hookimpl

    class Reinforce(OnPolicyOptimizer):
        name: Literal["reinforce"] = "reinforce"

        def experience(self, run: AlignmentRun, sampled: Sampled) -> Experience:
            advantage = sampled.scores - sampled.scores.mean()
            return Experience(sampled.rows({"advantage": advantage, "old": sampled.old.logps.sum(dim=1)}))

        def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
            now = run.policy.token_logps(micro.sequences("response"), self.temperature).logps.sum(dim=1)
            loss, _ = losses.clipped_policy(now, micro.values("old"), micro.values("advantage"), clip=0.2)
            return LossOutput(loss.sum() / micro.denominators["rows"])
"""

from alignment_core.on_policy.optimizer import OnPolicyOptimizer
from alignment_core.on_policy.rollout import Experience, Sampled

__all__ = ["Experience", "OnPolicyOptimizer", "Sampled"]
