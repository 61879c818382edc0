"""Make stage calls with their settings, cache keys and labels, for one base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignment_core.artifacts import Artifact, key_of
from alignment_core.artifacts.layout import described
from alignment_core.config import DataConfig, LoraConfig, PipelineConfig
from alignment_core.data.rendering.builtin_templates import TEMPLATE_DATE
from alignment_core.data.sources.inputs import check_hub, find_inputs
from alignment_core.data.sources.locate import is_hub
from alignment_core.errors import ConfigError
from alignment_core.execution.stage import Runtime, StageCall, WorkPool
from alignment_core.feedback.data_source import is_store, source_key
from alignment_core.models.base.adapter_identity import AdapterIdentity
from alignment_core.models.base.base_checks import check_positions
from alignment_core.models.base.gguf_file import ORIGIN
from alignment_core.models.base.identity import ModelIdentity
from alignment_core.own_code import OWN_CODE
from alignment_core.planning.base_model import find_base
from alignment_core.planning.external_reward import ExternalReward, external_reward
from alignment_core.planning.placement import check_placement
from alignment_core.planning.unpacked_base import BASE, VERSION, WHERE
from alignment_core.registry import Registry

VERSIONS = {
    BASE: VERSION,
    "adapter": 1,
    "ingest": 10,
    "sft": 1,
    "sample": 2,
    "rank": 3,
    "reward": 2,
    "reference": 1,
    "optimize": 3,
    "evaluate": 4,
    "head_to_head": 2,
    "gate": 1,
    "lm_eval": 1,
    "score": 1,
    "demo_world": 1,
}

ROWS = "embedding_rows"
"""Name of the number of rows in the settings of a stage. It is only there if rows are added."""


@dataclass(frozen=True)
class StageCalls:
    """Makes the stage calls on one base model.

    Attributes:
        config: the settings of the run.
        registry: the installed plugins.
        model: the base model.
        start: the adapter that the run goes on from, or None.
        lora: the shape of the adapters that are trained.
        rows: number of rows that the embedding is extended to, or None.
        chat_template: text of the chat template, or None for the tokenizer's template.
        thoughts: what becomes of thoughts under a template without a place for them.
        load_in: precision of the base model.
        max_length: maximum sequence length in tokens.
        external: the existing reward model in the settings, or None.
        base_key: key of the artifact that holds the base model, if it was unpacked from a GGUF file, or None.
        origin: what the base model was unpacked from, for the manifests; empty if it was not.
    """

    config: PipelineConfig
    registry: Registry
    model: ModelIdentity
    start: AdapterIdentity | None
    lora: LoraConfig
    rows: int | None
    chat_template: str | None
    thoughts: str
    load_in: str
    max_length: int
    external: ExternalReward | None
    base_key: str | None
    origin: Mapping[str, Any]

    @classmethod
    def from_config(cls, config: PipelineConfig, registry: Registry) -> StageCalls:
        """Create it for the base model in the settings.

        Raises:
            ModelError: the model, its adapter or its chat template does not exist, or cannot be used as the settings
                ask.
        """
        check_placement(config)
        model = config.model
        found = find_base(model, config.store)
        return cls(
            config,
            registry,
            model=found.model,
            start=found.start,
            lora=found.lora,
            rows=found.rows,
            chat_template=found.chat_template,
            thoughts=model.thoughts,
            load_in=model.load_in,
            max_length=model.max_length,
            external=external_reward(config.reward, model.load_in),
            base_key=None if found.unpacked is None else found.unpacked.key,
            origin={} if found.unpacked is None else {ORIGIN: found.unpacked.origin},
        )

    def check_positions(self, responses: Mapping[str, int]) -> None:
        """Check that the model has a position for every token of a row and of a sampled response.

        Args:
            responses: maximum length of a response in tokens, by the setting that names it.

        Raises:
            ModelError: it has fewer.
        """
        check_positions(self.model, self.max_length, responses, WHERE)

    @property
    def runtime(self) -> Runtime:
        """Where and how the stages run."""
        config = self.config
        return Runtime(
            store=config.store.absolute(),
            remote=config.remote,
            remote_checkpoint_seconds=config.remote_checkpoint_seconds,
            device=config.device,
            gpus=config.gpus,
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
        """Return the call that ingests `data` with the tokenizer of the model. The sources must be pinned.

        Raises:
            DataError: a source does not exist, or the format or a column that the settings name does not. A data set on
                the Hub that is still to be ingested cannot be read, or has no known format.
        """
        by_hand = [source for source in data.sources if (source.format or source.columns) and not is_store(source)]
        find_inputs(by_hand, self.registry.formats())
        config: dict[str, Any] = {
            "data": data.model_dump(mode="json", exclude={"sources"}),
            "sources": [source_key(source) for source in data.sources],
            "tokenizer": self.model.tokenizer,
            **self.template_settings(),
            "max_length": self.max_length,
            **self.model.code(),
        }
        if plugins := self._format_plugins(data):
            config["plugins"] = plugins
        inputs = {"sources": [source.model_dump(mode="json") for source in data.sources]}
        call = self.call("ingest", config, {}, name=name, inputs=inputs)
        if described(self.config.store / call.stage / call.key) is None:
            for source in data.sources:
                if is_hub(source.path):
                    check_hub(source, self.registry.formats())
        return call

    def adapter(self) -> StageCall | None:
        """Return the call that takes the adapter that the run goes on from into the store, or None if there is none."""
        if self.start is None:
            return None
        config = {
            "base": self.model.weights,
            "adapter": self.start.content,
            "dropout": self.lora.dropout,
            **self._resized(),
            **self.model.code(),
        }
        place = {"path": self.start.path, "revision": self.start.revision, "base": self.start.named_base}
        return self.call("adapter", config, {}, inputs={"adapter": place})

    def sft(self, ingest: StageCall, adapter: StageCall | None) -> StageCall | None:
        """Return the call of supervised fine-tuning, or None if the settings skip it.

        Args:
            ingest: the call that makes the demonstrations.
            adapter: the call of the adapter to go on from, or None.
        """
        if self.config.sft is None:
            return None
        settings = self.training_settings(sft=self.config.sft.model_dump(mode="json"))
        return self.call("sft", settings, {"data": ingest, "start": adapter})

    def check_same_base(self, artifact: Artifact) -> None:
        """Check that an adapter was trained on this base model, tokenizer and chat template.

        Raises:
            ConfigError: it was not.
        """
        trained, ours = artifact.manifest().config, self.model_settings()
        if any(trained.get(name) != ours.get(name) for name in ("base", "tokenizer", "chat_template", ROWS, OWN_CODE)):
            raise ConfigError(
                "the base model, tokenizer or chat template of this artifact differs from the settings",
                where="model",
                got=f"{artifact.kind}/{artifact.key}",
                do="Use the settings that it was trained with",
            )

    def _format_plugins(self, data: DataConfig) -> Sequence[Mapping[str, str]]:
        """Return the plugins whose record formats read the data. They are only looked up if plugins have formats."""
        plugged = self.registry.formats()
        if not plugged:
            return []
        items = find_inputs([source for source in data.sources if not is_store(source)], plugged)
        used = {tuple(sorted(plugin.items())) for item in items for plugin in item.plugins(plugged)}
        return [dict(plugin) for plugin in sorted(used)]

    def template_settings(self) -> dict[str, Any]:
        """Return what determines, besides the tokenizer, how a conversation becomes tokens."""
        return {
            "chat_template": self.chat_template,
            "thoughts": self.thoughts,
            "template_date": TEMPLATE_DATE.isoformat(),
        }

    def model_settings(self, **fields: Any) -> dict[str, Any]:
        """Return the settings of a stage that loads the base model."""
        return {
            "base": self.model.weights,
            "tokenizer": self.model.tokenizer,
            **self.template_settings(),
            "load_in": self.load_in,
            "max_length": self.max_length,
            **self._resized(),
            **self.model.code(),
            **fields,
        }

    def sampled(self) -> dict[str, str]:
        """Return which engine samples, for the settings of a stage that samples. Empty for the stage itself."""
        return {} if self.config.vllm is None else {"sampled_by": "vllm"}

    def sampled_at(self) -> dict[str, Any]:
        """Return where that engine is, for the inputs of the stage."""
        return {} if self.config.vllm is None else {"vllm": self.config.vllm.model_dump(mode="json")}

    def _resized(self) -> dict[str, int]:
        """Return the number of rows of the embedding, if it is extended."""
        return {} if self.rows is None else {ROWS: self.rows}

    def training_settings(self, **fields: Any) -> dict[str, Any]:
        """Return the settings of a stage that trains adapters."""
        return self.model_settings(lora=self.lora.model_dump(mode="json"), seed=self.config.seed, **fields)

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
        """Return the call of a stage.

        Args:
            stage: name of the stage.
            config: everything that determines its result, except the artifacts that it reads.
            parents: the calls whose artifacts it reads, by role. None if the run has no such stage.
            name: name in its label. None: the name of the stage.
            inputs: locations of the inputs whose content is in `config`.
            standing: keys of existing artifacts that it reads and that this run does not make, by role.
            external: the existing reward model that it loads, if any.
        """
        place = {**self.model.place(), **self.origin}
        inputs = {"model": place, **(inputs or {})}
        standing = {**(standing or {}), **({} if self.base_key is None else {BASE: self.base_key})}
        if external is not None:
            config, inputs = config | {"reward_model": external.key()}, inputs | {"reward_model": external.place()}
        keys = {role: parent.key for role, parent in parents.items() if parent is not None}
        runtime = self.runtime
        for kind, pool in self.config.where.items():
            if kind == stage:
                runtime = runtime.model_copy(update={"pool": WorkPool(name=pool, store=self.config.store)})
        key = key_of(stage=stage, version=VERSIONS[stage], config=config, parents={**keys, **standing})
        return StageCall(
            stage=stage,
            key=key,
            label=f"{name or stage} · {self.model.name} · {key[:4]}",
            config=config,
            parents=keys,
            inputs=inputs,
            runtime=runtime,
            standing=standing,
        )
