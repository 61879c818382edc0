"""What a retrain is planned from: the votes that came in, the model that it goes on from, and whether it is time."""

from __future__ import annotations

from dataclasses import dataclass

from alignment_core.artifacts import PRODUCTION, ArtifactStore
from alignment_core.artifacts.catalogue import lineage, readable, resolve
from alignment_core.config import PipelineConfig, SourceConfig
from alignment_core.errors import ConfigError
from alignment_core.feedback import open_feedback
from alignment_core.feedback.schema import same_place
from alignment_core.feedback.source import check_is_there, is_store
from alignment_core.registry import Registry
from alignment_core.stages.calls import Calls
from alignment_core.stages.plan import Plan, Retraining, make_plan

RETRAINED = "retrained"
"""Alias of the model that the last successful retrain made, promoted or not: its lineage says which votes it used."""


@dataclass(frozen=True)
class TooFew:
    """Why there is no retrain yet."""

    votes: int
    wanted: int

    def __str__(self) -> str:
        return f"{self.votes} new vote{'' if self.votes == 1 else 's'}, {self.wanted} wanted"


def plan_retrain(config: PipelineConfig, registry: Registry) -> Plan | TooFew:
    """The calls of a retrain, or why there is none.

    New are the votes since the last retrain that ended well: one that failed used up none, and one that is repeated
    counts none twice. It learns from all votes that the model it starts from has not seen.

    Raises:
        ConfigError, DataError, FeedbackError, ModelError, PluginError: whatever the user got wrong.
        ArtifactError: the model in production is not in the store as it was.
    """
    if config.gate is None:
        raise ConfigError(
            "a retrain promotes through the gate, and there is none",
            where="gate",
            do="Set `gate: {to_production: true}`",
        )
    check_is_there(config.feedback)
    store = ArtifactStore(config.store)
    start = _start(config, store, registry)
    seen = 0 if start is None else votes_seen(store, start, config.feedback)
    last = store.aliases.current(RETRAINED)
    counted = max(seen, 0 if last is None else votes_seen(store, last.key, config.feedback))
    with open_feedback(config.feedback) as feedback:
        newest = feedback.newest()
        votes = feedback.count(after=counted, upto=newest)
        older = feedback.count(upto=newest) > feedback.count(after=seen, upto=newest)
    if votes < config.retrain.min_votes:
        return TooFew(votes, config.retrain.min_votes)
    return make_plan(_on_older_data(config), registry, Retraining(config.feedback, seen, newest, older, start))


def votes_seen(store: ArtifactStore, key: str, place: str) -> int:
    """Number of the newest vote in the feedback store at `place` that an artifact is made from; 0 if of none."""
    seen = 0
    for artifact in lineage(store, [key]).values():
        manifest = readable(artifact) if artifact is not None and artifact.kind == "ingest" else None
        for source in manifest.inputs.get("sources", ()) if manifest is not None else ():
            if is_store(SourceConfig(**source)) and same_place(source["path"], place):
                seen = max(seen, source["votes_upto"] or 0)
    return seen


def _start(config: PipelineConfig, store: ArtifactStore, registry: Registry) -> str | None:
    """Key of the adapter that the policy starts from; None: the SFT model.

    Raises:
        ConfigError: it was trained on another base model.
    """
    current = store.aliases.current(PRODUCTION)
    if config.retrain.start == "sft" or current is None:
        return None
    artifact = resolve(store, PRODUCTION).artifact
    Calls.of(config, registry).refuse_other_base(artifact)
    return artifact.key


def _on_older_data(config: PipelineConfig) -> PipelineConfig:
    """The settings without the feedback store among the data: what the SFT model learned from stays as it was."""
    sources = config.data.sources
    older = [source for source in sources if not (is_store(source) and same_place(source.path, config.feedback))]
    if not older:
        raise ConfigError(
            "a retrain needs older data, for replay and to measure what is forgotten, besides the feedback store",
            where="data.sources",
            do="Name the data that the model was trained on first",
        )
    return config.model_copy(update={"data": config.data.model_copy(update={"sources": older})})
