"""The demo: a small world of its own, and the whole pipeline in it with every built-in optimizer.

The world is made from nothing: a tokenizer, a base model, demonstrations, and a true rule that only the simulated
people know. What they say is ranked with a tenth of it wrong. The rule is then used once more, to measure.
"""

from pathlib import Path
from typing import Any

from prefect import flow

from alignment_core.artifacts import key_of
from alignment_core.config import PipelineConfig
from alignment_core.registry import load_registry
from alignment_core.stages.base import Runtime, StageCall
from alignment_core.stages.build import Built, leased
from alignment_core.stages.plan import VERSIONS, Plan, make_plan
from alignment_core.stages.world_text import TRUE_RULE
from alignment_flows.pipeline import pipeline
from alignment_flows.tasks import Stages, told_in_words

LENGTH = {"max_new_tokens": 40}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "dpo": {"name": "dpo", "learning_rate": 5e-4, "beta": 0.3, "epochs": 2},
    "kto": {"name": "kto", "learning_rate": 5e-4, "beta": 0.3, "epochs": 3},
    "ppo": {"name": "ppo", **LENGTH},
}
LABEL_NOISE = 0.1


def world_call(store: Path, seed: int) -> StageCall:
    """The stage that makes the world of this seed."""
    config = {"seed": seed, "documents": 12000}
    key = key_of(stage="world", version=VERSIONS["world"], config=config, parents={})
    return StageCall(
        stage="world",
        key=key,
        label=f"world · seed {seed} · {key[:4]}",
        config=config,
        parents={},
        inputs={},
        runtime=Runtime(store=store.absolute()),
    )


def demo_config(world: Path, store: Path, seed: int, optimizer: str) -> PipelineConfig:
    """The settings of the demo's pipeline, as a user would write them."""
    return PipelineConfig.model_validate(
        {
            "name": f"demo-{optimizer}",
            "model": {"base": str(world / "demo-llama"), "load_in": "fp32", "max_length": 96},
            "data": {"sources": [{"path": str(world / "demonstrations.jsonl")}], "held_out_fraction": 0.2},
            "sft": {"epochs": 2, "learning_rate": 2e-3},
            "sample": {"responses_per_prompt": 4, **LENGTH},
            "rank": {"by": TRUE_RULE, "label_noise": LABEL_NOISE},
            "reward": {"epochs": 2, "learning_rate": 1e-3},
            "optimizer": OPTIMIZERS[optimizer],
            "evaluation": {"reward_model": True, "max_prompts": 256, "evaluators": [TRUE_RULE], **LENGTH},
            "store": store,
            "seed": seed,
        }
    )


@flow(name="demo", flow_run_name="demo · seed {seed}", persist_result=False)
@told_in_words
def demo(store: Path, seed: int = 0) -> tuple[dict[str, Plan], dict[str, Built]]:
    """Align a tiny model in a small world of its own, with DPO, KTO and PPO, and measure all by the world's true rule.

    Args:
        store: folder of the artifact store.
        seed: seed of the world and of everything in it.
    """
    stage, world, registry = Stages(), world_call(store, seed), load_registry()
    with leased([world]):
        stage(world)
        folder = stage.built(world).artifact.path
        plans = {name: make_plan(demo_config(folder, store, seed, name), registry) for name in OPTIMIZERS}
        with leased(call for plan in plans.values() for call in plan.calls().values()):
            for plan in plans.values():
                pipeline(stage, plan)
    return plans, stage.all_built()
