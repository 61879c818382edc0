"""Run the optimizer that the settings name, with the roles and rows that it declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from alignment_core.data.dataset.prompt_index import PromptIndex
from alignment_core.data.dataset.splits import Dataset
from alignment_core.errors import PluginError
from alignment_core.evaluation.judging import Cases, preferences_of, scores_of
from alignment_core.execution.stage import Job, Stage
from alignment_core.models.base.saving import save_tensors
from alignment_core.planning.pipeline import VERSIONS
from alignment_core.planning.reward_parts import reward_parts
from alignment_core.plugin_api import Conversation, Evaluator, Needs, PairEvaluator, Rollout
from alignment_core.ranks import Ranks
from alignment_core.registry import Registry, load_registry
from alignment_core.stages.reference import read_reference
from alignment_core.stages.shared.context import DATA, StageContext, open_data, require_rows, write_history
from alignment_core.training.reference import CachedReference
from alignment_core.training.rewards import Judge, Part, Rewards
from alignment_core.training.rows import Rows
from alignment_core.training.run import PairJudge
from alignment_core.training.snapshots import role_of
from alignment_core.training.step.parameters import FILE, initial_parameters


def run(job: Job) -> dict[str, Any]:
    """Train the policy. The artifact is its PEFT folder. Every other trained role is in a subfolder with its name.

    The optimizer's own trained weights, if it has any, are in `parameters.safetensors`.
    """
    registry = load_registry()
    optimizer = registry.optimizer(job.call.config["optimizer"])
    data = open_data(job)
    context = StageContext.open(job)
    needs = optimizer.needs()
    _add_roles(context, needs)
    context.roles.add_parameters(initial_parameters(optimizer, context.roles.width, job.call.config["seed"]))
    cached = read_reference(job.parents["reference"]) if "reference" in job.parents else {}
    conversations = Conversations(data, job.parents)
    rewards = _rewards(job.call.config["reward"], registry, conversations, job.ranks) if needs.reward else None
    training = context.run(_rows(needs, data, job), cached, rewards, needs.snapshots)
    for setting, evaluator in registry.evaluators_of(optimizer).items():
        training.judges[setting] = _judge(evaluator, conversations, job.ranks)
    for setting, pair_evaluator in registry.pair_evaluators_of(optimizer).items():
        training.pair_judges[setting] = _pair_judge(pair_evaluator, conversations, job.ranks)
    context.train(optimizer, training)
    context.save("policy", job.out)
    for role in needs.trained:
        if role != "policy":
            context.save(role, job.out / role)
    if training.parameters:
        save_tensors(training.parameters, job.out / FILE)
    metrics = write_history(training, job.out)
    if cached and isinstance(training.reference, CachedReference):
        metrics["reference_computed_live"] = training.reference.all_missed()
    return metrics | context.reward_metrics()


def _add_roles(context: StageContext, needs: Needs) -> None:
    context.add_trainable("policy")
    if needs.reference:
        context.add_sft("reference")
    if needs.reward and context.rewarded:
        context.add_reward()
    if needs.value:
        if context.roles.has("reward"):
            context.roles.add_copy("value", of="reward")
        else:
            context.add_trainable("value")
            context.roles.add_head("value")
    for name in needs.snapshots:
        context.roles.add_copy(role_of(name), of="policy")
    context.roles.train_only(needs.trained)


def _rewards(settings: Mapping[str, Any], registry: Registry, conversations: Conversations, ranks: Ranks) -> Rewards:
    parts = [
        Part(part.label, None if part.evaluator is None else _judge(part.evaluator, conversations, ranks), part.weight)
        for part in reward_parts(settings["by"], registry)
    ]
    return Rewards(parts, normalise=settings["normalise"], clip=settings["clip"])


class Conversations:
    """The conversations that responses are to."""

    def __init__(self, data: Dataset, folders: Mapping[str, Path]) -> None:
        self._data = data
        self._index = PromptIndex(*(folders[role] for role in DATA if role in folders))

    def of(self, rollout: Rollout) -> Conversation:
        """Return the conversation before a response.

        Raises:
            PluginError: the response is to a prompt that no record has.
        """
        for split in (self._data.train, self._data.held_out):
            with suppress(KeyError):
                return split.messages(rollout.prompt)
        found = self._index.find(rollout.sequence.prompt)
        if found is None:
            raise PluginError(
                "an evaluator needs the text of the prompt, but no record has the prompt of this response",
                got=f"the row {rollout.prompt.id}",
                expected="a prompt from `run.prompts`, or the beginning of a row of the data",
            )
        return found


def _judge(evaluator: Evaluator, conversations: Conversations, ranks: Ranks) -> Judge:
    """Return a function that scores responses with the evaluator, on rank 0. Their prompts may be from either split."""

    def scores(rollouts: Sequence[Rollout]) -> list[float | None]:
        cases = Cases()
        for rollout in rollouts:
            cases.add(rollout.prompt.id, conversations.of(rollout), rollout.prompt.facts, rollout.text)
        return ranks.from_first("scores", lambda: scores_of(evaluator, cases))

    return scores


def _pair_judge(evaluator: PairEvaluator, conversations: Conversations, ranks: Ranks) -> PairJudge:
    def preferences(a: Sequence[Rollout], b: Sequence[Rollout]) -> list[float | None]:
        cases = Cases()
        for one, other in zip(a, b, strict=True):
            cases.add(one.prompt.id, conversations.of(one), one.prompt.facts, one.text, other.text)
        return ranks.from_first("preferences", lambda: preferences_of(evaluator, cases))

    return preferences


def _rows(needs: Needs, data: Dataset, job: Job) -> Rows:
    rows = Rows.undeclared()
    if needs.preferences:
        rows.preferences = require_rows(data.train.preferences, "preference pairs", job)
    if needs.feedback:
        rows.feedback = require_rows(data.train.feedback, "labelled responses", job)
    if needs.demonstrations:
        rows.demonstrations = require_rows(data.train.demonstrations, "demonstrations", job)
    if needs.prompts:
        rows.prompts = require_rows(data.train.prompts, "prompts", job)
        rows.held_out_prompts = data.held_out.prompts
    return rows


STAGE = Stage("optimize", VERSIONS["optimize"], run)
