"""Plan a retraining run: count the new votes, decide whether there are enough, and choose the starting model."""

from __future__ import annotations

from dataclasses import dataclass

from alignment_core.artifacts import PRODUCTION, ArtifactStore
from alignment_core.artifacts.catalogue import lineage, readable_manifest, resolve
from alignment_core.config import PipelineConfig, SourceConfig
from alignment_core.errors import ConfigError
from alignment_core.feedback.data_source import check_exists, is_store
from alignment_core.planning.pipeline import Plan, Retraining, plan_pipeline
from alignment_core.planning.stage_calls import StageCalls
from alignment_core.registry import Registry

RETRAINED = "retrained"
"""Alias of the model of the last successful retraining, promoted or not. Its lineage records which votes it used."""


@dataclass(frozen=True)
class TooFewVotes:
    """There are too few new votes to retrain."""

    votes: int
    needed: int

    def __str__(self) -> str:
        return f"{self.votes} new vote{'' if self.votes == 1 else 's'}, {self.needed} needed"


def plan_retrain(config: PipelineConfig, registry: Registry) -> Plan | TooFewVotes:
    """Return the calls of a retraining run, or `TooFewVotes`.

    New votes are those since the last successful retraining. A failed retraining uses up no votes, and a repeated one
    counts no vote twice. The run learns from all votes that its starting model has not seen.

    Raises:
        ConfigError, DataError, FeedbackError, ModelError, PluginError: a mistake of the user.
        ArtifactError: the production model is missing from the store or damaged.
    """
    from alignment_core.feedback.store import open_feedback

    if config.gate is None:
        raise ConfigError(
            "retraining promotes models through the gate, but no gate is set",
            where="gate",
            do="Set `gate: {to_production: true}`",
        )
    check_exists(config.feedback)
    store = ArtifactStore(config.store, config.remote)
    start = _start(config, store, registry)
    seen = 0 if start is None else last_vote_used(store, start, config.feedback)
    last = store.aliases.current(RETRAINED)
    counted = max(seen, 0 if last is None else last_vote_used(store, last.key, config.feedback))
    with open_feedback(config.feedback) as feedback:
        newest = feedback.newest()
        votes = feedback.count(after=counted, upto=newest)
        older = feedback.count(upto=newest) > feedback.count(after=seen, upto=newest)
    if votes < config.retrain.min_votes:
        return TooFewVotes(votes, config.retrain.min_votes)
    return plan_pipeline(_on_older_data(config), registry, Retraining(config.feedback, seen, newest, older, start))


def last_vote_used(store: ArtifactStore, key: str, place: str) -> int:
    """Return the number of the newest vote in the feedback store at `place` that an artifact used, or 0 if none."""
    from alignment_core.feedback.database import same_database

    seen = 0
    for artifact in lineage(store, [key]).values():
        manifest = readable_manifest(artifact) if artifact is not None and artifact.kind == "ingest" else None
        for source in manifest.inputs.get("sources", ()) if manifest is not None else ():
            if is_store(SourceConfig(**source)) and same_database(source["path"], place):
                seen = max(seen, source["votes_upto"] or 0)
    return seen


def _start(config: PipelineConfig, store: ArtifactStore, registry: Registry) -> str | None:
    """Return the key of the adapter that the policy starts from, or None for the SFT model.

    Raises:
        ConfigError: the adapter was trained on another base model.
    """
    current = store.aliases.current(PRODUCTION)
    if config.retrain.start == "sft" or current is None:
        return None
    artifact = resolve(store, PRODUCTION).artifact
    StageCalls.from_config(config, registry).check_same_base(artifact)
    return artifact.key


def _on_older_data(config: PipelineConfig) -> PipelineConfig:
    """Return the settings without the feedback store as a data source, so the data of the SFT model does not change."""
    from alignment_core.feedback.database import same_database

    sources = config.data.sources
    older = [source for source in sources if not (is_store(source) and same_database(source.path, config.feedback))]
    if not older:
        raise ConfigError(
            "retraining needs a data source besides the feedback store, for replay and to measure forgetting",
            where="data.sources",
            do="Add the data that the model was first trained on",
        )
    return config.model_copy(update={"data": config.data.model_copy(update={"sources": older})})
