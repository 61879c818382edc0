"""Makes stage calls: their settings, keys and labels, for one base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignment_core.artifacts import Artifact, key_of
from alignment_core.config import DataConfig, PipelineConfig
from alignment_core.data.chat_templates import resolve_chat_template
from alignment_core.data.inputs import find_inputs
from alignment_core.errors import ConfigError
from alignment_core.feedback.source import identity_of, is_store
from alignment_core.models.identity import ModelIdentity, model_identity
from alignment_core.registry import Registry
from alignment_core.stages.base import Runtime, StageCall
from alignment_core.stages.external_reward import ExternalReward, external_reward

VERSIONS = {
    "ingest": 4,
    "sft": 1,
    "sample": 1,
    "rank": 2,
    "reward": 2,
    "reference": 1,
    "optimize": 2,
    "evaluate": 3,
    "versus": 1,
    "gate": 1,
    "lm_eval": 1,
    "score": 1,
    "world": 1,
}


@dataclass(frozen=True)
class Calls:
    """Calls of stages on one base model.

    Attributes:
        config: the settings of the run.
        registry: the installed plugins.
        model: the base model.
        chat_template: text of the chat template; None: the tokenizer's own.
        load_in: precision of the base.
        max_length: longest sequence in tokens.
        external: the reward model that the settings name; None where one is trained.
    """

    config: PipelineConfig
    registry: Registry
    model: ModelIdentity
    chat_template: str | None
    load_in: str
    max_length: int
    external: ExternalReward | None

    @classmethod
    def of(cls, config: PipelineConfig, registry: Registry) -> Calls:
        """On the base model of the settings.

        Raises:
            ModelError: there is no such model, or its template does not compile.
        """
        model = config.model
        template = resolve_chat_template(model.chat_template)
        identity = model_identity(model.base, model.revision)
        external = external_reward(config.reward)
        return cls(config, registry, identity, template, model.load_in, model.max_length, external)

    @property
    def runtime(self) -> Runtime:
        """Where and how the stages run."""
        config = self.config
        return Runtime(
            store=config.store.absolute(),
            device=config.device,
            token_budget=config.token_budget,
            gradient_checkpointing=config.gradient_checkpointing,
            memory_gb=config.memory_gb,
            isolation=config.isolation,
            checkpoint_seconds=config.checkpoint_seconds,
            run=config.name,
            listeners=tuple(
                self.registry.listener(raw, where=f"listeners.{index}").model_dump(mode="json")
                for index, raw in enumerate(config.listeners)
            ),
        )

    def ingest(self, data: DataConfig, name: str = "ingest") -> StageCall:
        """Ingestion of `data`, whose sources are pinned, in the model's tokens."""
        config: dict[str, Any] = {
            "data": data.model_dump(mode="json", exclude={"sources"}),
            "sources": [identity_of(source) for source in data.sources],
            "tokenizer": self.model.tokenizer,
            "chat_template": self.chat_template,
            "max_length": self.max_length,
        }
        if plugins := self._format_plugins(data):
            config["plugins"] = plugins
        inputs = {"sources": [source.model_dump(mode="json") for source in data.sources]}
        return self.call("ingest", config, {}, name=name, inputs=inputs)

    def sft(self, ingest: StageCall) -> StageCall | None:
        """Supervised fine-tuning; None where the settings skip it."""
        if self.config.sft is None:
            return None
        return self.call("sft", self.trains(sft=self.config.sft.model_dump(mode="json")), {"data": ingest})

    def refuse_other_base(self, artifact: Artifact) -> None:
        """Raises: ConfigError if an adapter was trained on another base model, tokenizer or chat template."""
        trained, ours = artifact.manifest().config, self.loads()
        if any(trained.get(name) != ours[name] for name in ("base", "tokenizer", "chat_template")):
            raise ConfigError(
                "this model has another base model or chat template than these settings",
                where="model",
                got=f"{artifact.kind}/{artifact.key}",
                do="Take the settings that it was trained with",
            )

    def _format_plugins(self, data: DataConfig) -> Sequence[Mapping[str, str]]:
        """The plugins whose formats read the data. Which these are is looked up only where there is a choice."""
        plugged = self.registry.formats()
        if not plugged:
            return []
        items = find_inputs([source for source in data.sources if not is_store(source)], plugged)
        used = {tuple(sorted(plugin.items())) for item in items for plugin in item.plugins(plugged)}
        return [dict(plugin) for plugin in sorted(used)]

    def loads(self, **fields: Any) -> dict[str, Any]:
        """Settings of a stage that loads the base model."""
        return {
            "base": self.model.weights,
            "tokenizer": self.model.tokenizer,
            "chat_template": self.chat_template,
            "load_in": self.load_in,
            "max_length": self.max_length,
            **fields,
        }

    def trains(self, **fields: Any) -> dict[str, Any]:
        """Settings of a stage that trains adapters."""
        return self.loads(lora=self.config.model.lora.model_dump(mode="json"), seed=self.config.seed, **fields)

    def call(
        self,
        stage: str,
        config: dict[str, Any],
        parents: Mapping[str, StageCall | None],
        *,
        name: str | None = None,
        inputs: Mapping[str, Any] | None = None,
        standing: Mapping[str, str] | None = None,
        external: ExternalReward | None = None,
    ) -> StageCall:
        """The call of a stage.

        Args:
            stage: its name.
            config: all that decides its result, besides what it reads.
            parents: the calls whose artifacts it reads, by role; None where the run has no such stage.
            name: what it is called in its label; its own name unless given.
            inputs: where the things lie whose content is in `config`.
            standing: keys of artifacts it reads that this run does not make, by role.
            external: the reward model that it loads, where that is none of the run's own.
        """
        inputs = {"model": {"path": self.model.path, "revision": self.model.revision}, **(inputs or {})}
        if external is not None:
            config, inputs = config | {"reward_model": external.key()}, inputs | {"reward_model": external.place()}
        keys = {role: parent.key for role, parent in parents.items() if parent is not None}
        key = key_of(stage=stage, version=VERSIONS[stage], config=config, parents={**keys, **(standing or {})})
        return StageCall(
            stage=stage,
            key=key,
            label=f"{name or stage} · {self.model.name} · {key[:4]}",
            config=config,
            parents=keys,
            inputs=inputs,
            runtime=self.runtime,
            standing=dict(standing or {}),
        )
