"""Plan the stage `base`, which unpacks the GGUF file that `model.base` names, and find what it has made.

It runs before the rest of a run is planned, because the plan reads the configuration and the tokenizer of the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment_core.artifacts import ArtifactStore, key_of
from alignment_core.config import ModelConfig, PipelineConfig
from alignment_core.errors import ModelError
from alignment_core.execution.stage import Runtime, StageCall
from alignment_core.models.base.gguf_file import GgufFile, find_gguf, names_gguf

WHERE = "model.base"
BASE = "base"
"""Name of the stage, and the role of its artifact for the stages that load the model."""
VERSION = 1
"""Version of the stage: of the way from a GGUF file to a folder."""


@dataclass(frozen=True)
class UnpackedBase:
    """A base model that came from a GGUF file.

    Attributes:
        key: key of the artifact that holds its folder.
        folder: the model folder.
        origin: file, digest and quantization of the GGUF file, for manifests and model cards.
    """

    key: str
    folder: Path
    origin: dict[str, Any]


def base_call(model: ModelConfig, runtime: Runtime) -> StageCall | None:
    """Return the call that unpacks the base model, or None if it is not a GGUF file.

    Raises:
        ModelError: there is no such file, or it cannot be used.
    """
    if not names_gguf(model.base):
        return None
    file = _find(model)
    key = _key(file)
    return StageCall(
        stage=BASE,
        key=key,
        label=f"{BASE} · {file.name} · {key[:4]}",
        config=_config(file),
        parents={},
        inputs={"reference": model.base, "gguf": file.place()},
        runtime=runtime,
    )


def base_of_run(config: PipelineConfig) -> StageCall | None:
    """Return the call that unpacks the base model of a run, or None if it is not a GGUF file.

    Raises:
        ModelError: there is no such file, or it cannot be used.
    """
    place = config.store.absolute()
    runtime = Runtime(store=place, remote=config.remote, isolation=config.isolation, run=config.name)
    return base_call(config.model, runtime)


def unpacked_base(model: ModelConfig, store: Path) -> UnpackedBase | None:
    """Return the unpacked base model from the store, or None if `model.base` is not a GGUF file.

    Raises:
        ModelError: there is no such file, or it has not been unpacked.
    """
    if not names_gguf(model.base):
        return None
    file = _find(model)
    artifact = ArtifactStore(store).find(_key(file))
    if artifact is None:
        raise ModelError(
            "the GGUF file has not been unpacked into this store",
            where=WHERE,
            got=f"{model.base}, store {store}",
            do="`align plan` and `align run` do this",
        )
    made = artifact.manifest().metrics
    facts = {name: made[name] for name in ("quantization", "license")}
    origin = {"file": file.name, "sha256": file.sha256, **facts}
    return UnpackedBase(artifact.key, artifact.path / made["folder"], origin)


def _find(model: ModelConfig) -> GgufFile:
    if model.revision is not None:
        raise ModelError("a GGUF file has no revisions", where="model.revision", got=model.revision, do="Remove it")
    return find_gguf(model.base, WHERE)


def _config(file: GgufFile) -> dict[str, Any]:
    return {"gguf": file.sha256}


def _key(file: GgufFile) -> str:
    return key_of(stage=BASE, version=VERSION, config=_config(file), parents={})
