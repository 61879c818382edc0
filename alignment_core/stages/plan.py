"""From the settings to the stage calls: which stages run, on which parents, under which keys.

Used by the flow, `align plan` and the tests alike. Nothing here imports torch or loads a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from alignment_core.artifacts import key_of
from alignment_core.config import PipelineConfig
from alignment_core.data.chat_templates import resolve_chat_template
from alignment_core.data.inputs import find_inputs
from alignment_core.errors import ConfigError
from alignment_core.feedback.source import identity_of, is_store, pinned
from alignment_core.models.identity import ModelIdentity, model_identity
from alignment_core.plugin_api import AlignmentOptimizer
from alignment_core.registry import Registry
from alignment_core.stages.base import Runtime, StageCall
from alignment_core.stages.external_reward import FIELDS, ExternalReward, external_reward

VERSIONS = {
    "ingest": 4,
    "sft": 1,
    "sample": 1,
    "rank": 2,
    "reward": 1,
    "reference": 1,
    "optimize": 2,
    "evaluate": 1,
    "world": 1,
}


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
    evaluate_sft: StageCall
    evaluate: StageCall

    def calls(self) -> dict[str, StageCall]:
        """Every call of the run by its name here, parents before children."""
        calls = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: call for name, call in calls.items() if call is not None}


def make_plan(config: PipelineConfig, registry: Registry) -> Plan:
    """Decide every stage call of a run.

    Raises:
        ConfigError, DataError, ModelError, PluginError: whatever the user got wrong, before anything is built.
    """
    return _Planner(config, registry).plan()


class _Planner:
    def __init__(self, config: PipelineConfig, registry: Registry) -> None:
        self.config = config
        self.registry = registry
        self.model: ModelIdentity = model_identity(config.model.base, config.model.revision)
        self.chat_template: str | None = resolve_chat_template(config.model.chat_template)
        self.external = external_reward(config.reward)
        self.runtime = Runtime(
            store=config.store.absolute(),
            device=config.device,
            token_budget=config.token_budget,
            gradient_checkpointing=config.gradient_checkpointing,
            memory_gb=config.memory_gb,
            isolation=config.isolation,
            checkpoint_seconds=config.checkpoint_seconds,
            run=config.name,
            listeners=tuple(
                registry.listener(raw, where=f"listeners.{index}").model_dump(mode="json")
                for index, raw in enumerate(config.listeners)
            ),
        )

    def plan(self) -> Plan:
        config = self.config
        if (config.rank is None) != (config.sample is None):
            raise ConfigError("`sample` and `rank` come together", do="Set both, or neither")
        optimizer = self.registry.optimizer(config.optimizer)
        ingest = self._ingest()
        sft = self._sft(ingest)
        sample = self._sample(ingest, sft)
        rank = self._rank(sample)
        reward = self._reward(optimizer, ingest, rank, sft)
        reference = self._reference(optimizer, ingest, rank, sft)
        optimize = self._optimize(optimizer, ingest, rank, sft, reward, reference)
        return Plan(
            ingest=ingest,
            sft=sft,
            sample=sample,
            rank=rank,
            reward=reward,
            reference=reference,
            optimize=optimize,
            evaluate_sft=self._evaluate("sft", optimizer, ingest, sft, reward, None),
            evaluate=self._evaluate(optimizer.name, optimizer, ingest, sft, reward, optimize),
        )

    def _ingest(self) -> StageCall:
        data = self.config.data
        # Votes may come in while the run goes on: the stage will read those that the key was made of.
        sources = [pinned(source) for source in data.sources]
        config: dict[str, Any] = {
            "data": data.model_dump(mode="json", exclude={"sources"}),
            "sources": [identity_of(source) for source in sources],
            "tokenizer": self.model.tokenizer,
            "chat_template": self.chat_template,
            "max_length": self.config.model.max_length,
        }
        if plugins := self._format_plugins():
            config["plugins"] = plugins
        return self._call(
            "ingest",
            config,
            {},
            inputs={"sources": [source.model_dump(mode="json") for source in sources]},
        )

    def _format_plugins(self) -> list[dict[str, str]]:
        """The plugins whose formats read the data. Which these are is looked up only where there is a choice."""
        plugged = self.registry.formats()
        if not plugged:
            return []
        items = find_inputs([source for source in self.config.data.sources if not is_store(source)], plugged)
        used = {tuple(sorted(plugin.items())) for item in items for plugin in item.plugins(plugged)}
        return [dict(plugin) for plugin in sorted(used)]

    def _sft(self, ingest: StageCall) -> StageCall | None:
        if self.config.sft is None:
            return None
        return self._call("sft", self._trains(sft=self.config.sft.model_dump(mode="json")), {"data": ingest})

    def _sample(self, ingest: StageCall, sft: StageCall | None) -> StageCall | None:
        if self.config.sample is None:
            return None
        config = self._loads(seed=self.config.seed, sample=self.config.sample.model_dump(mode="json"))
        return self._call("sample", config, {"data": ingest, "sft": sft})

    def _rank(self, sample: StageCall | None) -> StageCall | None:
        if self.config.rank is None:
            return None
        evaluator = self.registry.evaluator(self.config.rank.by, where="rank.by")
        config = {
            "seed": self.config.seed,
            "by": evaluator.model_dump(mode="json"),
            "plugin": self.registry.identity(evaluator),
            "label_noise": self.config.rank.label_noise,
            "tokenizer": self.model.tokenizer,
            "chat_template": self.chat_template,
            "max_length": self.config.model.max_length,
        }
        return self._call("rank", config, {"samples": sample})

    def _reward(
        self, optimizer: AlignmentOptimizer, ingest: StageCall, rank: StageCall | None, sft: StageCall | None
    ) -> StageCall | None:
        settings = self.config.reward
        if settings.model is not None or not (optimizer.reward_model or self.config.evaluation.reward_model):
            return None
        config = self._trains(reward=settings.model_dump(mode="json", exclude=set(FIELDS)))
        return self._call("reward", config, {"data": ingest, "ranked": rank, "sft": sft})

    def _reference(
        self, optimizer: AlignmentOptimizer, ingest: StageCall, rank: StageCall | None, sft: StageCall | None
    ) -> StageCall | None:
        rows = [name for name in ("preferences", "feedback") if getattr(optimizer, name)]
        if not (optimizer.reference and rows):
            return None
        return self._call("reference", self._loads(rows=rows), {"data": ingest, "ranked": rank, "sft": sft})

    def _optimize(
        self,
        optimizer: AlignmentOptimizer,
        ingest: StageCall,
        rank: StageCall | None,
        sft: StageCall | None,
        reward: StageCall | None,
        reference: StageCall | None,
    ) -> StageCall:
        config = self._trains(
            optimizer=optimizer.model_dump(mode="json"),
            plugin=self.registry.identity(optimizer),
            evaluators={
                setting: self.registry.identity(evaluator)
                for setting, evaluator in self.registry.evaluators_of(optimizer).items()
            },
        )
        external = self.external if optimizer.reward_model else None
        parents = {
            "data": ingest,
            "ranked": rank,
            "sft": sft,
            "reward": reward if optimizer.reward_model else None,
            "reference": reference,
        }
        return self._call("optimize", config, parents, name=optimizer.name, external=external)

    def _evaluate(
        self,
        name: str,
        optimizer: AlignmentOptimizer,
        ingest: StageCall,
        sft: StageCall | None,
        reward: StageCall | None,
        policy: StageCall | None,
    ) -> StageCall:
        evaluation = self.config.evaluation
        scored = evaluation.reward_model or optimizer.reward_model
        evaluators = [
            self.registry.evaluator(raw, where=f"evaluation.evaluators.{index}")
            for index, raw in enumerate(evaluation.evaluators)
        ]
        config = self._loads(
            seed=self.config.seed,
            evaluation=evaluation.model_dump(mode="json", exclude={"evaluators"}),
            evaluators=[evaluator.model_dump(mode="json") for evaluator in evaluators],
            plugins=[self.registry.identity(evaluator) for evaluator in evaluators],
        )
        parents = {"data": ingest, "sft": sft, "reward": reward, "policy": policy}
        external = self.external if scored else None
        return self._call("evaluate", config, parents, name=f"evaluate {name}", external=external)

    def _loads(self, **fields: Any) -> dict[str, Any]:
        """Settings of a stage that loads the base model."""
        model = self.config.model
        return {
            "base": self.model.weights,
            "tokenizer": self.model.tokenizer,
            "chat_template": self.chat_template,
            "load_in": model.load_in,
            "max_length": model.max_length,
            **fields,
        }

    def _trains(self, **fields: Any) -> dict[str, Any]:
        """Settings of a stage that trains adapters."""
        return self._loads(lora=self.config.model.lora.model_dump(mode="json"), seed=self.config.seed, **fields)

    def _call(
        self,
        stage: str,
        config: dict[str, Any],
        parents: Mapping[str, StageCall | None],
        *,
        name: str | None = None,
        inputs: Mapping[str, Any] | None = None,
        external: ExternalReward | None = None,
    ) -> StageCall:
        inputs = {"model": {"path": self.model.path, "revision": self.model.revision}, **(inputs or {})}
        if external is not None:
            config, inputs = config | {"reward_model": external.key()}, inputs | {"reward_model": external.place()}
        keys = {role: parent.key for role, parent in parents.items() if parent is not None}
        key = key_of(stage=stage, version=VERSIONS[stage], config=config, parents=keys)
        return StageCall(
            stage=stage,
            key=key,
            label=f"{name or stage} · {self.model.name} · {key[:4]}",
            config=config,
            parents=keys,
            inputs=inputs,
            runtime=self.runtime,
        )
