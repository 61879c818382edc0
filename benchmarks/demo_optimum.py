"""Compare the models of a run of `align demo` with the best policies under the same KL.

python benchmarks/demo_optimum.py demo-0 [--seed 0] [--samples 1024]

Samples responses of the SFT model to the held-out prompts that the demo evaluates, scores them by the true rule and by
the reward model, and estimates the policy that is best at each optimizer's measured KL (`optimum.py`): by the rule
itself, and by the reward model, which only saw noisy comparisons. Writes `optimum.json` into the folder, which
`demo_table.py` reads.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from optimum import Array, Frontier

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import EvaluationConfig
from alignment_core.evaluation.judging import Cases, scores_of
from alignment_core.evaluation.response_metrics import reward_scores
from alignment_core.execution.stage import Job
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_core.stages.shared.context import StageContext, open_data
from alignment_core.stages.shared.demo_texts import TRUE_RULE
from alignment_core.training.rows import Rows
from alignment_flows.demo import demo_config, world_call

PROMPTS_AT_ONCE = 8
OPTIMUM = "optimum.json"


def evaluation_of_sft(folder: Path, seed: int) -> Job:
    """Return the demo's own evaluation of the SFT model as a job, to sample more of the same."""
    store = ArtifactStore(folder / "artifacts")
    world = store.find(world_call(store.root, seed).key)
    assert world is not None, f"{folder} is not a finished demo with seed {seed}"
    call = plan_pipeline(demo_config(world.path, store.root, seed, "ppo"), load_registry()).evaluate_sft
    artifacts = {role: store.find(key) for role, key in call.parents.items()}
    parents = {role: artifact.path for role, artifact in artifacts.items() if artifact is not None}
    assert parents.keys() == artifacts.keys(), "an artifact of the demo is gone: run it again"
    return Job(call, parents, Path(), Path(), Silent())


def sample(job: Job, samples: int) -> tuple[Array, Array]:
    """Return the true rule's verdicts and the reward model's scores of the SFT model's responses to each prompt.

    Both have the shape (prompts, samples).
    """
    data, context, registry = open_data(job), StageContext.open(job), load_registry()
    context.add_sft("policy")
    context.add_reward()
    running = context.run(Rows())
    settings = EvaluationConfig.model_validate(job.call.config["evaluation"])
    prompts, rule = data.held_out.prompts[: settings.max_prompts], registry.evaluator(TRUE_RULE)
    verdicts: list[list[float]] = []
    rewards: list[list[float]] = []
    for start in range(0, len(prompts), PROMPTS_AT_ONCE):
        part = prompts[start : start + PROMPTS_AT_ONCE]
        rollouts = running.generate(
            part, max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, samples=samples
        )
        cases = Cases()
        for rollout in rollouts:
            text = context.renderer.decode(rollout.sequence.completion)
            cases.add(rollout.prompt.id, data.held_out.messages(rollout.prompt), rollout.prompt.facts, text)
        judged = [score for score in scores_of(rule, cases) if score is not None]  # the rule judges every response
        for found, scores in ((verdicts, judged), (rewards, reward_scores(running, rollouts))):
            found += [scores[i : i + samples] for i in range(0, len(scores), samples)]
    return np.array(verdicts), np.array(rewards)


def references(rule: Array, reward: Array, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return, for each model of the demo's report, the optima to compare it with.

    `halved` repeats the estimate with half of the samples. The difference shows the bias that remains.
    """
    half = rule.shape[1] // 2
    by_rule, by_reward = Frontier(rule, rule), Frontier(reward, rule)
    half_rule, half_reward = Frontier(rule[:, :half], rule[:, :half]), Frontier(reward[:, :half], rule[:, :half])
    return {
        line["model"]: {
            "rule": asdict(by_rule.at_kl(line["kl"])),
            "reward": asdict(by_reward.at_kl(line["kl"])),
            "least_kl": by_rule.least_kl(line["rule"]),
            "halved": {name: asdict(f.at_kl(line["kl"])) for name, f in (("rule", half_rule), ("reward", half_reward))},
        }
        for line in lines
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="the seed that the demo ran with")
    parser.add_argument("--samples", type=int, default=1024, help="responses per prompt")
    given = parser.parse_args()
    started = time.process_time()
    rule, reward = sample(evaluation_of_sft(given.folder, given.seed), given.samples)
    lines = json.loads((given.folder / "report.json").read_text())
    found = {
        "samples": given.samples,
        "prompts": len(rule),
        "never_good": int((rule.max(axis=1) == 0).sum()),
        "cpu_seconds": time.process_time() - started,
        "models": references(rule, reward, lines),
    }
    (given.folder / OPTIMUM).write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
