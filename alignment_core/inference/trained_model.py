"""The model to export: a trained adapter with its base model and chat template."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment_core.artifacts import Artifact, ArtifactStore, Manifest
from alignment_core.artifacts.catalogue import PROMOTABLE
from alignment_core.artifacts.sharing import Logged, obtain
from alignment_core.errors import ArtifactError, ModelError
from alignment_core.models.base.identity import model_identity
from alignment_core.own_code import OWN_CODE, check_consent

TEMPLATE = "chat_template.jinja"
TRUST = "add `--trust-remote-code` (in Python: `trust_remote_code=True`)"


@dataclass(frozen=True)
class TrainedModel:
    """A finished adapter.

    Attributes:
        artifact: its artifact in the store.
        manifest: manifest of the artifact.
        store: folder of the artifact store.
        base: folder or Hub id of the base model.
        revision: the Hub commit; None for a folder.
        own_code: digest of the base model's own code that may run; None: none may.
    """

    artifact: Artifact
    manifest: Manifest
    store: Path
    base: str
    revision: str | None
    own_code: str | None

    @property
    def folder(self) -> Path:
        """The folder of the PEFT adapter."""
        return self.artifact.path

    @property
    def template(self) -> str:
        """The chat template that was used in training."""
        return (self.folder / TEMPLATE).read_text(encoding="utf-8")

    @property
    def adapter(self) -> dict[str, Any]:
        """The parsed `adapter_config.json` of the adapter."""
        config: dict[str, Any] = json.loads((self.folder / "adapter_config.json").read_text(encoding="utf-8"))
        return config

    @property
    def base_is_local(self) -> bool:
        """Whether the base model is a local folder rather than a Hub model."""
        return self.revision is None


def open_trained_model(store: Path, key: str, *, trusted: bool = False) -> TrainedModel:
    """Return the adapter with this key after verifying all its files and its base model.

    Args:
        store: folder of the artifact store.
        key: key of an `sft` or `optimize` artifact.
        trusted: whether the user trusts the code that the base model brings along.

    Raises:
        ArtifactError: there is no such artifact, or it is not an SFT model or a policy.
        ConfigError: the base model brings code of its own, which is not trusted.
        ModelError: the base model is missing or has changed.
    """
    artifact = obtain(ArtifactStore(store), key, Logged())
    if artifact is None:
        raise ArtifactError(
            "there is no such artifact, or it is damaged",
            where=str(store),
            got=key,
            do="Run its pipeline again to rebuild it, or choose another model from `align artifacts list`",
        )
    if artifact.kind not in PROMOTABLE:
        raise ArtifactError(
            "this artifact is not a model that answers",
            where=str(store),
            got=f"{artifact.kind}/{key}",
            expected=f"an artifact of kind {' or '.join(PROMOTABLE)}",
        )
    manifest = artifact.manifest()
    model = manifest.inputs["model"]
    check_consent(model, trusted=trusted, do=TRUST)
    identity = model_identity(model["path"], model["revision"], trusted=OWN_CODE in model)
    trained_on = (manifest.config["base"], manifest.config["tokenizer"], manifest.config.get(OWN_CODE))
    if (identity.weights, identity.tokenizer, identity.own_code) != trained_on:
        raise ModelError(
            "the base model is no longer the one that the adapter was trained on",
            where=str(model["path"]),
            do="Restore the weights, tokenizer and code, or train again",
        )
    return TrainedModel(artifact, manifest, store, model["path"], model["revision"], identity.own_code)
