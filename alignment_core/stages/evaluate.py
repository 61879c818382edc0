"""Measure one model on the held-out split: the aligned policy, or the SFT model it started from."""

from __future__ import annotations

import json
import math
from typing import Any

from torch import Tensor

from alignment_core.config import EvaluationConfig
from alignment_core.data.dataset import Dataset
from alignment_core.evaluation import held_out
from alignment_core.evaluation.responses import describe, judge, kl_from_reference, ordering_accuracy, reward_scores
from alignment_core.plugin_api import TokenSequence
from alignment_core.registry import load_registry
from alignment_core.stages.base import Job, Stage
from alignment_core.stages.opened import Opened, need, open_data
from alignment_core.stages.plan import VERSIONS
from alignment_core.training.run import Rows, Run

RESPONSES = "responses.jsonl"


def run(job: Job) -> dict[str, Any]:
    """Answer the held-out prompts and write `responses.jsonl`, one line per response with every score."""
    data = open_data(job)
    opened = Opened.of(job)
    if "policy" in job.parents:
        opened.roles.add_saved("policy", job.parents["policy"])
    else:
        opened.add_sft("policy")
    opened.add_sft("reference")
    if opened.rewarded:
        opened.add_reward()
    running = opened.run(Rows())
    return _on_data(running, data) | _on_prompts(running, data, opened) | opened.reward_metrics()


def _on_data(running: Run, data: Dataset) -> dict[str, Any]:
    """Perplexity on held-out demonstrations, and how often the policy's implicit reward orders held-out pairs."""
    metrics: dict[str, Any] = {}
    if data.held_out.demonstrations:
        metrics["perplexity"] = math.exp(held_out.loss(running, data.held_out.demonstrations))
    if data.held_out.preferences:

        def implicit_reward(sequences: list[TokenSequence]) -> Tensor:
            return running.policy.logps(sequences) - running.reference.logps(sequences)  # type: ignore[no-any-return]

        metrics["implicit_reward_accuracy"] = held_out.pair_accuracy(data.held_out.preferences, implicit_reward)
    return metrics


def _on_prompts(running: Run, data: Dataset, opened: Opened) -> dict[str, Any]:
    job = opened.job
    settings = EvaluationConfig.model_validate(job.call.config["evaluation"])
    prompts = need(data.held_out.prompts, "held-out prompts", job)[: settings.max_prompts]
    rollouts = running.generate(prompts, max_new_tokens=settings.max_new_tokens, temperature=settings.temperature)
    texts = [opened.renderer.decode(rollout.sequence.completion) for rollout in rollouts]
    conversations = [data.held_out.messages(prompt) for prompt in prompts]
    scores: dict[str, list[float]] = {}
    if opened.rewarded:
        scores["reward"] = reward_scores(running, rollouts)
    registry = load_registry()
    for raw in job.call.config["evaluators"]:
        evaluator = registry.evaluator(raw)
        scores[evaluator.name] = judge(evaluator, conversations, texts)
    metrics: dict[str, Any] = {"prompts": len(prompts)}
    metrics |= describe(rollouts) | kl_from_reference(running, rollouts, settings.temperature)
    for name, values in scores.items():
        metrics[f"{name}_mean"] = sum(values) / len(values)
        if name != "reward" and "reward" in scores:
            metrics[f"reward_orders_as_{name}"] = ordering_accuracy(scores["reward"], values)
    with (job.out / RESPONSES).open("w", encoding="utf-8") as file:
        for i, (conversation, text) in enumerate(zip(conversations, texts, strict=True)):
            judged = {name: values[i] for name, values in scores.items()}
            line = {"prompt": [dict(message) for message in conversation], "response": text, **judged}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return metrics


STAGE = Stage("evaluate", VERSIONS["evaluate"], run)
