"""What an artifact says about itself: everything that decided it, and what it cost."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

MANIFEST = "manifest.json"
PACKAGES = (
    "alignment-flows",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "numpy",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)


PASSWORD = re.compile(r"(?<=://)([^/@:\s]*):[^/@\s]*@")


def hide_passwords(value: Any) -> Any:
    """The same JSON with `user:***@` in place of the password in every address."""
    if isinstance(value, str):
        return PASSWORD.sub(r"\1:***@", value)
    if isinstance(value, Mapping):
        return {name: hide_passwords(inner) for name, inner in value.items()}
    return [hide_passwords(inner) for inner in value] if isinstance(value, list | tuple) else value


class FileRecord(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    size: int


class Manifest(BaseModel):
    """The content of `manifest.json`, which is written last: an artifact without one was never finished.

    Attributes:
        kind: name of the stage that made it.
        key: content address.
        version: the stage's version.
        config: the settings that the stage read; all of it is in the key.
        parents: keys of the artifacts that it read, by role.
        inputs: where the things whose content is hashed into `config` lay; passwords in addresses are left out.
        seed: seed of the stage's random streams, if it has any.
        metrics: what the stage measured.
        seconds: wall time of the stage.
        peak_memory_bytes: largest resident memory of the stage's process.
        peak_device_memory_bytes: largest memory that tensors took on the accelerator; None without one.
        files: every other file of the artifact, by its path relative to the folder.
        packages: versions of the packages that made it.
        python: version of Python that made it.
        created: when it was made, ISO 8601, UTC.
    """

    model_config = ConfigDict(frozen=True)

    kind: str
    key: str
    version: int
    config: dict[str, Any]
    parents: dict[str, str]
    inputs: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    metrics: dict[str, Any] = Field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_bytes: int | None = None
    peak_device_memory_bytes: int | None = None
    files: dict[str, FileRecord] = Field(default_factory=dict)
    packages: dict[str, str] = Field(default_factory=lambda: dict(_installed()))
    python: str = Field(default_factory=platform.python_version)
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @field_validator("inputs", mode="before")
    @classmethod
    def _without_passwords(cls, inputs: Any) -> Any:
        return hide_passwords(inputs)


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the artifact in `folder`.

    Raises:
        OSError, ValueError: there is none, or it is damaged.
    """
    return Manifest.model_validate_json((folder / MANIFEST).read_bytes())


def _installed() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
