"""Plan a run: from the settings to the stage calls, with their parents and cache keys.

Used by the flow, by `align plan` and by tests. This module does not import torch or load a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from alignment_core.artifacts import ArtifactStore
from alignment_core.artifacts.layout import check_store
from alignment_core.config import PipelineConfig, SourceConfig
from alignment_core.errors import ConfigError
from alignment_core.execution.stage import StageCall
from alignment_core.feedback.data_source import pin_data
from alignment_core.planning.evaluations import Evaluations, plan_evaluations
from alignment_core.planning.external_reward import FIELDS, MIXED
from alignment_core.planning.kept_facts import check_facts
from alignment_core.planning.reward_parts import reward_parts, uses_reward_model
from alignment_core.planning.stage_calls import VERSIONS, StageCalls
from alignment_core.plugin_api import AlignmentOptimizer, Needs
from alignment_core.registry import Registry

DATA_STAGES = ("ingest", "votes", "older_votes")
__all__ = ["VERSIONS", "Plan", "plan_pipeline"]


@dataclass(frozen=True)
class Plan:
    """The stage calls of one run, in pipeline order. A field is None if the run does not need the stage."""

    ingest: StageCall
    adapter: StageCall | None
    sft: StageCall | None
    sample: StageCall | None
    rank: StageCall | None
    votes: StageCall | None
    older_votes: StageCall | None
    reward: StageCall | None
    reference: StageCall | None
    optimize: StageCall
    judge: StageCall | None
    ingest_safety: StageCall | None
    ingest_production: StageCall | None
    ingest_production_safety: StageCall | None
    evaluate_sft: StageCall
    evaluate: StageCall
    evaluate_production: StageCall | None
    over_sft: StageCall
    over_production: StageCall | None
    gate: StageCall | None
    lm_eval_sft: StageCall | None
    lm_eval: StageCall | None

    def calls(self) -> dict[str, StageCall]:
        """Return every call of the run by the name of its field, parents before children."""
        calls = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: call for name, call in calls.items() if call is not None}

    def data_stages(self) -> list[str]:
        """Return the names of the calls that make the data which the run learns from."""
        return [name for name in DATA_STAGES if getattr(self, name) is not None]


@dataclass(frozen=True)
class Retraining:
    """The additional inputs of a retraining run.

    Attributes:
        feedback: the feedback store.
        after: number of the newest vote that the starting model has seen.
        upto: number of the newest vote that the run learns from.
        older: whether any votes that the starting model has seen are still current.
        start: key of the adapter that the policy starts from and that is its reference. None: the SFT model.
    """

    feedback: str
    after: int
    upto: int
    older: bool
    start: str | None


def plan_pipeline(config: PipelineConfig, registry: Registry, retraining: Retraining | None = None) -> Plan:
    """Plan every stage call of a run, or of a retraining run if `retraining` is given.

    Raises:
        ConfigError, DataError, ModelError, PluginError: a mistake of the user, found before anything is built.
        ArtifactError: the production model, with which the run is compared, is missing from the store or damaged, or
            the store cannot be used.
    """
    plan = _Planner(config, registry, retraining).plan()
    store = ArtifactStore(config.store, config.remote)
    store.aliases.check()
    check_store(store.root, [(call.stage, call.key) for call in plan.calls().values()])
    return plan


class _Planner:
    def __init__(self, config: PipelineConfig, registry: Registry, retraining: Retraining | None) -> None:
        self.config = config
        self.registry = registry
        self.retraining = retraining
        self.calls = StageCalls.from_config(config, registry)

    def plan(self) -> Plan:
        config = self.config
        if config.rank is not None and config.sample is None:
            raise ConfigError("there are no responses to rank", where="rank", do="Set `sample`, or remove `rank`")
        optimizer = self.registry.optimizer(config.optimizer)
        self.calls.check_positions(dict(_responses(config, optimizer)))
        data = pin_data(config.data)
        ingest = self.calls.ingest(data)
        adapter = self.calls.adapter()
        sft = self.calls.sft(ingest, adapter)
        start = sft or adapter
        sample = self._sample(ingest, start)
        rank = self._rank(sample)
        votes, older_votes = self._votes()
        rows = {"data": ingest, "ranked": rank, "votes": votes, "older_votes": older_votes}
        needs = optimizer.needs()
        scored = self._modelled(needs) or config.evaluation.reward_model
        check_facts(config, optimizer, self.registry)
        reward = self._reward(rows, start, "rest") if scored and self.calls.external is None else None
        judge = self._reward(rows, start, "judge") if config.evaluation.judge_fraction is not None else None
        reference = self._reference(needs, rows, start)
        optimize = self._optimize(optimizer, rows, start, reward, reference)
        external = self.calls.external if scored else None
        made = Evaluations(data, ingest, start, reward, external, optimize, judge, votes)
        return Plan(
            ingest=ingest,
            adapter=adapter,
            sft=sft,
            sample=sample,
            rank=rank,
            votes=votes,
            older_votes=older_votes,
            reward=reward,
            reference=reference,
            optimize=optimize,
            judge=judge,
            **plan_evaluations(self.calls, made, optimizer.name),
        )

    def _sample(self, ingest: StageCall, sft: StageCall | None) -> StageCall | None:
        if self.config.sample is None or self.config.rank is None:  # `align sample` makes the responses for raters
            return None
        settings = self.config.sample.to_stage(self.config.model.max_length)
        config = self.calls.model_settings(seed=self.config.seed, sample=settings, **self.calls.sampled())
        return self.calls.call("sample", config, {"data": ingest, "sft": sft}, inputs=self.calls.sampled_at())

    def _rank(self, sample: StageCall | None) -> StageCall | None:
        if self.config.rank is None:
            return None
        evaluator = self.registry.evaluator(self.config.rank.by, where="rank.by")
        config = {
            "seed": self.config.seed,
            "by": evaluator.model_dump(mode="json"),
            "plugin": self.registry.identity(evaluator),
            "label_noise": self.config.rank.label_noise,
            "tokenizer": self.calls.model.tokenizer,
            **self.calls.template_settings(),
            "max_length": self.config.model.max_length,
        }
        return self.calls.call("rank", config, {"samples": sample})

    def _votes(self) -> tuple[StageCall | None, StageCall | None]:
        """Return the calls that ingest the votes to learn from and the votes that the starting model has seen."""
        retraining = self.retraining
        if retraining is None:
            return None, None

        def ingest(name: str, **which: int) -> StageCall:
            source = SourceConfig(path=retraining.feedback, votes_upto=retraining.upto, **which)
            return self.calls.ingest(self.config.data.model_copy(update={"sources": [source]}), name=name)

        older = ingest("ingest older votes", votes_before=retraining.after) if retraining.older else None
        return ingest("ingest votes", votes_after=retraining.after), older

    def _mixed(self) -> dict[str, Any]:
        """Return how a retraining run mixes new votes and older data. Empty for other runs."""
        if self.retraining is None:
            return {}
        return {"replay": self.config.retrain.replay, "replay_seed": self.config.seed}

    def _start(self, sft: StageCall | None) -> tuple[StageCall | None, dict[str, str]]:
        """Return the call of the model that the policy starts from, and an existing artifact to start from instead.

        The policy's starting point is also its reference.
        """
        if self.retraining is None or self.retraining.start is None:
            return sft, {}
        return None, {"sft": self.retraining.start}

    def _reward(self, rows: Mapping[str, StageCall | None], sft: StageCall | None, part: str) -> StageCall:
        settings = self.config.reward.model_dump(mode="json", exclude={*FIELDS, *MIXED})
        config = self.calls.training_settings(reward=settings, **self._fold(part))
        name = "judge" if part == "judge" else None
        return self.calls.call("reward", config, {**rows, "sft": sft}, name=name)

    def _fold(self, part: str) -> dict[str, Any]:
        """Return which part of the feedback a stage learns from, if the judge gets a separate part."""
        fraction = self.config.evaluation.judge_fraction
        return {} if fraction is None else {"fold": {"judge_fraction": fraction, "part": part}}

    def _reference(self, needs: Needs, rows: Mapping[str, StageCall | None], sft: StageCall | None) -> StageCall | None:
        kinds = [name for name in ("preferences", "feedback", "demonstrations") if getattr(needs, name)]
        if not (needs.reference and kinds):
            return None
        start, standing = self._start(sft)
        config = self.calls.model_settings(rows=kinds, **self._fold("rest"), **self._mixed())
        return self.calls.call("reference", config, {**rows, "sft": start}, standing=standing)

    def _modelled(self, needs: Needs) -> bool:
        """Return whether the reward model rewards the responses of the optimizer."""
        return needs.reward and uses_reward_model(self.config.reward.by)

    def _rewarded(self, needs: Needs) -> dict[str, Any]:
        """Return what rewards responses, if the optimizer needs rewards."""
        if not needs.reward:
            return {}
        settings = self.config.reward.model_dump(mode="json", include=set(MIXED))
        parts = reward_parts(self.config.reward.by, self.registry)
        return {"reward": settings | {"by": [part.to_json(self.registry) for part in parts]}}

    def _optimize(
        self,
        optimizer: AlignmentOptimizer,
        rows: Mapping[str, StageCall | None],
        sft: StageCall | None,
        reward: StageCall | None,
        reference: StageCall | None,
    ) -> StageCall:
        needs = optimizer.needs()
        sampled, sampled_at = (self.calls.sampled(), self.calls.sampled_at()) if needs.prompts else ({}, {})
        config = self.calls.training_settings(
            optimizer=optimizer.model_dump(mode="json"),
            plugin=self.registry.identity(optimizer),
            evaluators={
                setting: self.registry.identity(evaluator)
                for setting, evaluator in (
                    *self.registry.evaluators_of(optimizer).items(),
                    *self.registry.pair_evaluators_of(optimizer).items(),
                )
            },
            **sampled,
            **self._rewarded(needs),
            **self._fold("rest"),
            **self._mixed(),
        )
        start, standing = self._start(sft)
        modelled = self._modelled(needs)
        external = self.calls.external if modelled else None
        parents = {
            **rows,
            "sft": start,
            "reward": reward if modelled else None,
            "reference": reference,
        }
        return self.calls.call(
            "optimize",
            config,
            parents,
            name=optimizer.name,
            inputs=sampled_at,
            external=external,
            standing=standing,
        )


def _responses(config: PipelineConfig, optimizer: AlignmentOptimizer) -> Iterator[tuple[str, int]]:
    """Yield the settings of a run that limit the length of sampled responses, with their values."""
    yield "evaluation.max_new_tokens", config.evaluation.max_new_tokens
    if config.sample is not None and config.rank is not None:
        yield "sample.max_new_tokens", config.sample.longest(config.model.max_length)
    if isinstance(limit := getattr(optimizer, "max_new_tokens", None), int):
        yield "optimizer.max_new_tokens", limit
