"""The demo: the complete pipeline with every built-in optimizer on a synthetic world.

The world is generated from a seed: a tokenizer, a base model, demonstrations, and a true rule that decides which
responses are good. Simulated raters rank sampled responses by this rule, with 10 % of the preferences flipped. The rule
then scores the results.
"""

from pathlib import Path
from typing import Any

from prefect import flow

from alignment_core.artifacts import key_of
from alignment_core.config import PipelineConfig
from alignment_core.execution.build import StageResult
from alignment_core.execution.stage import Runtime, StageCall
from alignment_core.planning.pipeline import VERSIONS, Plan, plan_pipeline
from alignment_core.registry import load_registry
from alignment_core.stages.shared.demo_texts import TRUE_RULE
from alignment_flows.form.run_names import named
from alignment_flows.pipeline import pipeline
from alignment_flows.tasks import StageRunner, without_traceback

LENGTH = {"max_new_tokens": 40}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "dpo": {"name": "dpo", "learning_rate": 5e-4, "beta": 0.3, "epochs": 2},
    "kto": {"name": "kto", "learning_rate": 5e-4, "beta": 0.3, "epochs": 3},
    "ppo": {"name": "ppo", **LENGTH},
}
LABEL_NOISE = 0.1


def world_call(store: Path, seed: int) -> StageCall:
    """Return the stage that generates the world of this seed."""
    config = {"seed": seed, "documents": 12000}
    key = key_of(stage="demo_world", version=VERSIONS["demo_world"], config=config, parents={})
    return StageCall(
        stage="demo_world",
        key=key,
        label=f"world · seed {seed} · {key[:4]}",
        config=config,
        parents={},
        inputs={},
        runtime=Runtime(store=store.absolute()),
    )


def demo_config(world: Path, store: Path, seed: int, optimizer: str) -> PipelineConfig:
    """Return the settings of the demo for one optimizer, as a user would write them."""
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


@flow(name="demo", flow_run_name=named("demo · seed {seed}"), persist_result=False)
@without_traceback
def demo(store: Path, seed: int = 0) -> tuple[dict[str, Plan], dict[str, StageResult]]:
    """Align a tiny model on synthetic data with DPO, KTO and PPO, and score the results by a known rule.

    Args:
        store: Folder of the artifact store.
        seed: Random seed of the demo.
    """
    stage, world, registry = StageRunner(), world_call(store, seed), load_registry()
    with stage.planned([world]):
        stage(world)
        folder = stage.built(world).artifact.path
        plans = {name: plan_pipeline(demo_config(folder, store, seed, name), registry) for name in OPTIMIZERS}
        with stage.planned(call for plan in plans.values() for call in plan.calls().values()):
            for plan in plans.values():
                pipeline(stage, plan)
    return plans, stage.all_built()
