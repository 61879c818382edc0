"""From the settings to the stage calls: which stages run, on which parents, under which keys.

Used by the flow, `align plan` and the tests alike. Nothing here imports torch or loads a model.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from alignment_core.config import PipelineConfig
from alignment_core.errors import ConfigError
from alignment_core.feedback.source import pinned
from alignment_core.plugin_api import AlignmentOptimizer
from alignment_core.registry import Registry
from alignment_core.stages.base import StageCall
from alignment_core.stages.calls import VERSIONS, Calls
from alignment_core.stages.external_reward import FIELDS
from alignment_core.stages.plan_evaluation import Evaluations, plan_evaluations

__all__ = ["VERSIONS", "Plan", "make_plan"]


@dataclass(frozen=True)
class Plan:
    """The stage calls of one run, in the order of the pipeline; None where the run does not need the stage."""

    ingest: StageCall
    sft: StageCall | None
    sample: StageCall | None
    rank: StageCall | None
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

    def calls(self) -> dict[str, StageCall]:
        """Every call of the run by its name here, parents before children."""
        calls = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: call for name, call in calls.items() if call is not None}


def make_plan(config: PipelineConfig, registry: Registry) -> Plan:
    """Decide every stage call of a run.

    Raises:
        ConfigError, DataError, ModelError, PluginError: whatever the user got wrong, before anything is built.
        ArtifactError: the model in production, which the run is to be compared with, is not in the store as it was.
    """
    return _Planner(config, registry).plan()


class _Planner:
    def __init__(self, config: PipelineConfig, registry: Registry) -> None:
        self.config = config
        self.registry = registry
        self.calls = Calls.of(config, registry)

    def plan(self) -> Plan:
        config = self.config
        if (config.rank is None) != (config.sample is None):
            raise ConfigError("`sample` and `rank` come together", do="Set both, or neither")
        optimizer = self.registry.optimizer(config.optimizer)
        # Votes may come in while the run goes on: the stages will read those that the keys were made of.
        data = config.data.model_copy(update={"sources": [pinned(source) for source in config.data.sources]})
        ingest = self.calls.ingest(data)
        sft = self._sft(ingest)
        sample = self._sample(ingest, sft)
        rank = self._rank(sample)
        scored = optimizer.reward_model or config.evaluation.reward_model
        reward = self._reward(ingest, rank, sft, "rest") if scored and self.calls.external is None else None
        judge = self._reward(ingest, rank, sft, "judge") if config.evaluation.judge_fraction is not None else None
        reference = self._reference(optimizer, ingest, rank, sft)
        optimize = self._optimize(optimizer, ingest, rank, sft, reward, reference)
        external = self.calls.external if scored else None
        made = Evaluations(data, ingest, sft, reward, external, optimize, judge)
        return Plan(
            ingest=ingest,
            sft=sft,
            sample=sample,
            rank=rank,
            reward=reward,
            reference=reference,
            optimize=optimize,
            judge=judge,
            **plan_evaluations(self.calls, made, optimizer.name),
        )

    def _sft(self, ingest: StageCall) -> StageCall | None:
        if self.config.sft is None:
            return None
        return self.calls.call("sft", self.calls.trains(sft=self.config.sft.model_dump(mode="json")), {"data": ingest})

    def _sample(self, ingest: StageCall, sft: StageCall | None) -> StageCall | None:
        if self.config.sample is None:
            return None
        config = self.calls.loads(seed=self.config.seed, sample=self.config.sample.model_dump(mode="json"))
        return self.calls.call("sample", config, {"data": ingest, "sft": sft})

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
            "chat_template": self.calls.chat_template,
            "max_length": self.config.model.max_length,
        }
        return self.calls.call("rank", config, {"samples": sample})

    def _reward(self, ingest: StageCall, rank: StageCall | None, sft: StageCall | None, part: str) -> StageCall:
        settings = self.config.reward.model_dump(mode="json", exclude=set(FIELDS))
        config = self.calls.trains(reward=settings, **self._fold(part))
        name = "judge" if part == "judge" else None
        return self.calls.call("reward", config, {"data": ingest, "ranked": rank, "sft": sft}, name=name)

    def _fold(self, part: str) -> dict[str, Any]:
        """Which of the people's judgements a stage learns from, where a part is kept for the judge."""
        fraction = self.config.evaluation.judge_fraction
        return {} if fraction is None else {"fold": {"judge_fraction": fraction, "part": part}}

    def _reference(
        self, optimizer: AlignmentOptimizer, ingest: StageCall, rank: StageCall | None, sft: StageCall | None
    ) -> StageCall | None:
        rows = [name for name in ("preferences", "feedback") if getattr(optimizer, name)]
        if not (optimizer.reference and rows):
            return None
        return self.calls.call(
            "reference", self.calls.loads(rows=rows, **self._fold("rest")), {"data": ingest, "ranked": rank, "sft": sft}
        )

    def _optimize(
        self,
        optimizer: AlignmentOptimizer,
        ingest: StageCall,
        rank: StageCall | None,
        sft: StageCall | None,
        reward: StageCall | None,
        reference: StageCall | None,
    ) -> StageCall:
        config = self.calls.trains(
            optimizer=optimizer.model_dump(mode="json"),
            plugin=self.registry.identity(optimizer),
            evaluators={
                setting: self.registry.identity(evaluator)
                for setting, evaluator in self.registry.evaluators_of(optimizer).items()
            },
            **self._fold("rest"),
        )
        external = self.calls.external if optimizer.reward_model else None
        parents = {
            "data": ingest,
            "ranked": rank,
            "sft": sft,
            "reward": reward if optimizer.reward_model else None,
            "reference": reference,
        }
        return self.calls.call("optimize", config, parents, name=optimizer.name, external=external)
