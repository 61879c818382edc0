"""What a model that answers is loaded from. Imports no torch, so that pages can name a model without loading it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from alignment_core.artifacts import ArtifactStore
from alignment_core.artifacts.manifest import read_manifest
from alignment_core.artifacts.models import find_model
from alignment_core.own_code import check_consent


class ModelParts(BaseModel):
    """A base model, how conversations are rendered for it, and the adapter in its layers.

    Attributes:
        place: the base model, as in the inputs of a stage.
        config: the configuration of a stage that loads it: precision, chat template, maximum length.
        adapter: folder of the adapter; None for the base model as it is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    place: Mapping[str, Any]
    config: Mapping[str, Any]
    adapter: Path | None

    @classmethod
    def of_artifact(cls, folder: Path) -> ModelParts:
        """Return the parts of a trained model.

        Args:
            folder: the folder of an `sft` or `optimize` artifact.
        """
        manifest = read_manifest(folder)
        return cls(place=manifest.inputs["model"], config=manifest.config, adapter=folder)


@dataclass(frozen=True)
class NamedModel:
    """A model that can be loaded to answer.

    Attributes:
        key: the key of a trained model, or the digest of a base model's weights.
        label: how a page names it.
        parts: what it is loaded from.
    """

    key: str
    label: str
    parts: ModelParts


def trained_model(store: ArtifactStore, reference: str, run: str | None = None, *, trusted: bool = False) -> NamedModel:
    """Return a trained model of the store.

    Args:
        store: the artifact store.
        reference: an alias, the name of a run, a key, a key prefix, or `latest`.
        run: `latest` is the newest aligned model of this run. None: of all runs.
        trusted: whether the settings trust the code that the base model brings along.

    Raises:
        ConfigError: the base model brings code of its own, which is not trusted.
        ArtifactError: there is no such model.
    """
    artifact = find_model(store, reference, run=run).entry.artifact
    parts = ModelParts.of_artifact(artifact.path)
    trained_by = parts.config.get("optimizer", {}).get("name", artifact.kind)
    label = f"{reference}: {trained_by} {artifact.key[:8]}"
    check_consent(parts.place, trusted=trusted, do="set `model.trust_remote_code: true`")
    return NamedModel(artifact.key, label, parts)
