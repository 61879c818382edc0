"""The optimizer stage: whichever plugin the settings name, on the roles and rows that it declares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from alignment_core.data.dataset import Dataset
from alignment_core.plugin_api import AlignmentOptimizer, Evaluator, Rollout
from alignment_core.registry import load_registry
from alignment_core.stages.base import Job, Stage
from alignment_core.stages.opened import Opened, need, open_data, write_history
from alignment_core.stages.plan import VERSIONS
from alignment_core.stages.reference import read_reference
from alignment_core.training.run import CachedReference, Rows


def run(job: Job) -> dict[str, Any]:
    """Train the policy; the artifact is its PEFT folder, with every other trained role in a folder of its name."""
    registry = load_registry()
    optimizer = registry.optimizer(job.call.config["optimizer"])
    data = open_data(job)
    opened = Opened.of(job)
    _add_roles(opened, optimizer)
    cached = read_reference(job.parents["reference"]) if "reference" in job.parents else {}
    training = opened.run(_rows(optimizer, data, job), cached)
    for setting, evaluator in registry.evaluators_of(optimizer).items():
        training.judges[setting] = _judge(evaluator, data)
    opened.train(optimizer, training)
    opened.save("policy", job.out)
    for role in optimizer.trains:
        if role != "policy":
            opened.save(role, job.out / role)
    metrics = write_history(training, job.out)
    if cached and isinstance(training.reference, CachedReference):
        metrics["reference_computed_live"] = training.reference.missed
    return metrics | opened.reward_metrics()


def _add_roles(opened: Opened, optimizer: AlignmentOptimizer) -> None:
    opened.add_trainable("policy")
    if optimizer.reference:
        opened.add_sft("reference")
    if optimizer.reward_model:
        opened.add_reward()
    if "value" in optimizer.trains:
        if opened.roles.has("reward"):
            opened.roles.add_copy("value", of="reward")
        else:
            opened.add_trainable("value")
            opened.roles.add_head("value")
    opened.roles.train_only(optimizer.trains)


def _judge(evaluator: Evaluator, data: Dataset) -> Callable[[Rollout], float]:
    """The evaluator on a response to a prompt of either split."""

    def score(rollout: Rollout) -> float:
        try:
            prompt = data.held_out.messages(rollout.prompt)
        except KeyError:
            prompt = data.train.messages(rollout.prompt)
        return evaluator.score(prompt, rollout.text)

    return score


def _rows(optimizer: AlignmentOptimizer, data: Dataset, job: Job) -> Rows:
    rows = Rows.undeclared()
    if optimizer.preferences:
        rows.preferences = need(data.train.preferences, "preference pairs", job)
    if optimizer.feedback:
        rows.feedback = need(data.train.feedback, "labelled responses", job)
    if optimizer.prompts:
        rows.prompts = need(data.train.prompts, "prompts", job)
        rows.held_out_prompts = data.held_out.prompts
    return rows


STAGE = Stage("optimize", VERSIONS["optimize"], run)
