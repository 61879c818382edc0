"""The base of on-policy optimizers, which is part of the plugin API. It does not import torch.

An on-policy plugin is its advantages and its loss:

    from alignment_core import losses
    from alignment_core.on_policy import Experience, OnPolicyOptimizer, Sampled
    from alignment_core.plugin_api import AlignmentRun, LossOutput, MicroBatch, hookimpl

    class Reinforce(OnPolicyOptimizer):
        name: Literal["reinforce"] = "reinforce"

        def experience(self, run: AlignmentRun, sampled: Sampled) -> Experience:
            return Experience(sampled.rows({"advantage": sampled.scores - sampled.scores.mean()}))

        def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
            logps = run.policy.logps(micro.sequences("response"))
            return LossOutput(-(micro.values("advantage") * logps).sum() / micro.denominators["rows"])
"""

from alignment_core.on_policy.optimizer import OnPolicyOptimizer
from alignment_core.on_policy.rollout import Experience, Sampled

__all__ = ["Experience", "OnPolicyOptimizer", "Sampled"]
