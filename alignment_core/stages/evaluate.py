"""Evaluate one model on the held-out split: the aligned policy, or the SFT model that it started from."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from alignment_core.config import EvaluationConfig
from alignment_core.data.dataset.splits import Dataset, Split, read_dataset
from alignment_core.evaluation import held_out_metrics
from alignment_core.evaluation.judging import Cases, scores_of
from alignment_core.evaluation.response_metrics import (
    kl_from_reference,
    ordering_accuracy,
    response_statistics,
    reward_scores,
)
from alignment_core.execution.stage import Job, Stage
from alignment_core.planning.pipeline import VERSIONS
from alignment_core.plugin_api import Conversation, Rollout, Row, TokenSequence
from alignment_core.progress import Work
from alignment_core.registry import load_registry
from alignment_core.stages.head_to_head import RESPONSES, SAFETY
from alignment_core.stages.shared.context import StageContext, open_data, require_rows
from alignment_core.training.rows import Rows
from alignment_core.training.run import Run

NEW_VOTES = "new_votes"
"""Role of the new votes in a retraining run. The model is evaluated on those whose prompts are held out."""


def run(job: Job) -> dict[str, Any]:
    """Answer the held-out prompts. Write `responses.jsonl`, one line per response with its scores."""
    data = open_data(job)
    context = StageContext.open(job)
    if "policy" in job.parents:
        context.roles.add_saved("policy", job.parents["policy"])
    else:
        context.add_sft("policy")
    context.add_sft("reference")
    if context.rewarded:
        context.add_reward()
    running = context.run(Rows())
    votes = read_dataset(job.parents[NEW_VOTES]).held_out if NEW_VOTES in job.parents else None
    running.work = Work(job.progress, _all_work(data.held_out, votes, context))
    metrics = measure(running, data.held_out) | _on_prompts(running, data, context) | context.reward_metrics()
    if votes is not None:
        counts = {"preferences": len(votes.preferences), "feedback": len(votes.feedback)}
        metrics[NEW_VOTES] = counts | implicit_rewards(running, votes)
    running.work.end()
    return metrics


def _all_work(split: Split, votes: Split | None, context: StageContext) -> int:
    """Return how many sequences are read, responses are sampled and scores are given."""
    settings, evaluators = _settings(context.job), len(context.job.call.config["evaluators"])
    prompts = min(len(split.prompts), settings.max_prompts)
    if "safety" in context.job.parents:
        safety = read_dataset(context.job.parents["safety"])
        prompts_of_safety = len(safety.train.prompts) + len(safety.held_out.prompts)
    else:
        prompts_of_safety = 0
    by_two = sum(2 * len(each.preferences) + len(each.feedback) for each in (split, votes) if each is not None)
    per_response = 1 + int(context.rewarded) + evaluators
    # Policy and reference read judged responses, and those that were sampled.
    return len(split.demonstrations) + 2 * (by_two + prompts) + per_response * (prompts + prompts_of_safety)


def _settings(job: Job) -> EvaluationConfig:
    return EvaluationConfig.model_validate(job.call.config["evaluation"])


def measure(running: Run, split: Split) -> dict[str, Any]:
    """Return the perplexity on held-out demonstrations and the accuracy of the implicit reward on held-out feedback."""
    metrics: dict[str, Any] = {}
    if split.demonstrations:
        metrics["perplexity"] = math.exp(held_out_metrics.loss(running, split.demonstrations))
    return metrics | implicit_rewards(running, split)


def implicit_rewards(running: Run, judged: Split) -> dict[str, Any]:
    """Return how well the implicit reward log π/π_ref agrees with the feedback: pair accuracy and AUC of thumbs."""

    def implicit_reward(sequences: list[TokenSequence]) -> Tensor:
        return running.policy.logps(sequences) - running.reference.logps(sequences)  # type: ignore[no-any-return]

    metrics: dict[str, Any] = {}
    if judged.preferences:
        metrics["implicit_reward_accuracy"] = held_out_metrics.pair_accuracy(judged.preferences, implicit_reward)
    if judged.feedback and (auc := held_out_metrics.thumb_auc(judged.feedback, implicit_reward)) is not None:
        metrics["implicit_reward_auc"] = auc
    return metrics


def _on_prompts(running: Run, data: Dataset, context: StageContext) -> dict[str, Any]:
    job = context.job
    settings = _settings(job)
    prompts = require_rows(data.held_out.prompts, "held-out prompts", job)[: settings.max_prompts]
    answers = _answer(context, running, settings, prompts, data.held_out)
    metrics: dict[str, Any] = {"prompts": len(prompts)}
    metrics |= response_statistics(answers.rollouts) | kl_from_reference(
        running, answers.rollouts, settings.temperature
    )
    metrics |= answers.means()
    for name, values in answers.scores.items():
        if name != "reward" and "reward" in answers.scores:
            metrics[f"reward_orders_as_{name}"] = ordering_accuracy(answers.scores["reward"], values)
    answers.write(job.out / RESPONSES)
    if "safety" in job.parents:
        safety = read_dataset(job.parents["safety"])
        found = [_answer(context, running, settings, part.prompts, part) for part in (safety.train, safety.held_out)]
        both = found[0] + found[1]
        both.write(job.out / SAFETY)
        metrics["safety"] = {"prompts": len(both.texts), **both.means()}
    return metrics


@dataclass(frozen=True)
class _Answers:
    """Responses to prompts, with their scores from the reward model and every evaluator."""

    conversations: list[Conversation]
    rollouts: list[Rollout]
    texts: list[str]
    scores: dict[str, list[float | None]]

    def __add__(self, other: _Answers) -> _Answers:
        return _Answers(
            self.conversations + other.conversations,
            self.rollouts + other.rollouts,
            self.texts + other.texts,
            {name: values + other.scores[name] for name, values in self.scores.items()},
        )

    def means(self) -> dict[str, float]:
        """Return the mean score of the reward model and of every evaluator, and how many responses got none."""
        found = {name: [value for value in values if value is not None] for name, values in self.scores.items()}
        means = {f"{name}_mean": sum(values) / len(values) for name, values in found.items() if values}
        lost = {name: len(self.scores[name]) - len(values) for name, values in found.items()}
        return means | {f"{name}_unscored": count for name, count in lost.items() if count}

    def write(self, path: Path) -> None:
        """Write one line per response with its scores."""
        with path.open("w", encoding="utf-8") as file:
            for i, (conversation, text) in enumerate(zip(self.conversations, self.texts, strict=True)):
                judged = {name: values[i] for name, values in self.scores.items()}
                line = {"prompt": [dict(message) for message in conversation], "response": text, **judged}
                file.write(json.dumps(line, ensure_ascii=False) + "\n")


def _answer(
    context: StageContext, running: Run, settings: EvaluationConfig, prompts: Sequence[Row], split: Split
) -> _Answers:
    conversations = [split.messages(prompt) for prompt in prompts]
    rollouts: list[Rollout] = []
    if prompts:
        limit, temperature = settings.max_new_tokens, settings.temperature
        rollouts = running.generate(prompts, max_new_tokens=limit, temperature=temperature)
    texts = [context.renderer.decode(rollout.sequence.completion) for rollout in rollouts]
    answers = _Answers(conversations, rollouts, texts, {})
    if context.rewarded:
        answers.scores["reward"] = [*reward_scores(running, rollouts)] if rollouts else []
    registry = load_registry()
    for raw in context.job.call.config["evaluators"]:
        evaluator = registry.evaluator(raw)
        scores = context.job.ranks.from_first("scores", partial(scores_of, evaluator, _cases(prompts, answers)))
        answers.scores[evaluator.name] = scores
        if running.work is not None:
            running.work.add(len(scores))
        if lost := sum(score is None for score in scores):
            context.job.progress.warn(f"`{evaluator.name}` gave no score to {lost} of {len(scores)} responses")
    return answers


def _cases(prompts: Sequence[Row], answers: _Answers) -> Cases:
    cases = Cases()
    for row, conversation, text in zip(prompts, answers.conversations, answers.texts, strict=True):
        cases.add(row.id, conversation, row.facts, text)
    return cases


STAGE = Stage("evaluate", VERSIONS["evaluate"], run)
