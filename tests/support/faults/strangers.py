"""Source of plugins of third parties, for tests to break."""

HINGE = """
    from typing import ClassVar, Literal
    from pydantic import Field
    from alignment_core.plugin_api import AlignmentOptimizer, Needs, hookimpl

    class Hinge(AlignmentOptimizer):
        'Learns by a hinge.'
        name: Literal["hinge"] = "hinge"
        slack: float = Field(1.0, gt=0, le=3)
        '''Width of the hinge.'''

        def needs(self): return Needs(preferences=True)
        def batches(self, run): yield from ()
        def loss(self, run, micro): ...

    @hookimpl
    def alignment_optimizers():
        return [Hinge]
"""

RUDE = """
    from typing import Literal
    from alignment_core.plugin_api import Evaluator, hookimpl

    class Polite(Evaluator):
        name: Literal["polite"] = "polite"
        def score(self, prompt, response, facts): return float("please" in response)

    @hookimpl
    def alignment_evaluators():
        return [Polite]
"""
