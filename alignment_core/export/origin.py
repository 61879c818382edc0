"""What is exported: a trained adapter, the base that it was trained on, and the words it was trained with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment_core.artifacts import Artifact, ArtifactStore, Manifest
from alignment_core.artifacts.catalogue import PROMOTABLE
from alignment_core.errors import ArtifactError, ModelError
from alignment_core.models.identity import model_identity

TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class Origin:
    """A finished adapter.

    Attributes:
        artifact: its artifact in the store.
        manifest: what the artifact says about itself.
        store: folder of the store.
        base: folder or hub id of the base model.
        revision: the hub commit; None for a folder.
    """

    artifact: Artifact
    manifest: Manifest
    store: Path
    base: str
    revision: str | None

    @property
    def folder(self) -> Path:
        """The PEFT folder."""
        return self.artifact.path

    @property
    def template(self) -> str:
        """Text of the chat template that it was trained with."""
        return (self.folder / TEMPLATE).read_text(encoding="utf-8")

    @property
    def adapter(self) -> dict[str, Any]:
        """The adapter's `adapter_config.json`."""
        config: dict[str, Any] = json.loads((self.folder / "adapter_config.json").read_text(encoding="utf-8"))
        return config

    @property
    def base_is_local(self) -> bool:
        """Whether the base is a folder of this machine rather than a model of the hub."""
        return self.revision is None


def open_origin(store: Path, key: str) -> Origin:
    """The adapter with this key, every file of it verified, and its base verified to be the one it was trained on.

    Raises:
        ArtifactError: there is no such artifact, or it is no model that answers.
        ModelError: the base is gone or has other weights now.
    """
    artifact = ArtifactStore(store).find(key)
    if artifact is None:
        raise ArtifactError("there is no such artifact, or it was damaged", where=str(store), got=key)
    if artifact.kind not in PROMOTABLE:
        raise ArtifactError(
            "only a model that answers can be exported",
            where=str(store),
            got=f"{artifact.kind}/{key}",
            expected=f"an artifact of kind {' or '.join(PROMOTABLE)}",
        )
    manifest = artifact.manifest()
    model = manifest.inputs["model"]
    identity = model_identity(model["path"], model["revision"])
    if identity.weights != manifest.config["base"] or identity.tokenizer != manifest.config["tokenizer"]:
        raise ModelError(
            "the base model is no longer the one that the adapter was trained on",
            where=str(model["path"]),
            do="Put its weights and tokenizer back, or train again",
        )
    return Origin(artifact, manifest, store, model["path"], model["revision"])
