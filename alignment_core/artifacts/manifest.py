"""The manifest of an artifact: everything that determined its content, and its cost."""

from __future__ import annotations

import hashlib
import platform
import posixpath
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator

from alignment_core.addresses import hide_secrets
from alignment_core.artifacts.files import read_file
from alignment_core.artifacts.key import key_of

MANIFEST = "manifest.json"
PACKAGES = (
    "alignment-flows",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "gguf",
    "numpy",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
)


class FileRecord(BaseModel):
    """One file of an artifact."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    size: int


class Manifest(BaseModel):
    """The content of `manifest.json`. It is written last, so an artifact without it is unfinished.

    Attributes:
        kind: name of the stage that built the artifact.
        key: content address: `key_of` of kind, version, config and parents.
        version: version of the stage.
        config: the settings that the stage used. All of them are part of the key.
        parents: keys of the artifacts that the stage read, by role.
        inputs: locations of the inputs whose content is hashed into `config`. Secrets in addresses are hidden.
        seed: seed of the stage; None if it uses no randomness.
        run: name of the run that built it. Another run may reuse it.
        metrics: metrics of the stage.
        seconds: wall time of the stage in seconds.
        peak_memory_bytes: peak resident memory of the stage's process.
        peak_device_memory_bytes: peak memory that PyTorch reserved on the accelerator; None without one.
        outside_device_memory_bytes: memory of the accelerator outside of that at the end of the stage: the CUDA context
            and other programs.
        files: all other files of the artifact, by path relative to its folder.
        packages: versions of the installed packages.
        python: the Python version.
        created: time of creation, ISO 8601, UTC.
        digest: SHA-256 of the file `manifest.json` without these 64 digits.
    """

    model_config = ConfigDict(frozen=True)

    kind: str
    key: str
    version: int
    config: dict[str, Any]
    parents: dict[str, str]
    inputs: dict[str, Any] = Field(default_factory=dict)
    seed: int | None = None
    run: str = ""
    metrics: dict[str, Any] = Field(default_factory=dict)
    seconds: float = 0.0
    peak_memory_bytes: int | None = None
    peak_device_memory_bytes: int | None = None
    outside_device_memory_bytes: int | None = None
    files: dict[str, FileRecord] = Field(default_factory=dict)
    packages: dict[str, str] = Field(default_factory=lambda: dict(_installed()))
    python: str = Field(default_factory=platform.python_version)
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    digest: str = ""

    @field_validator("inputs", mode="before")
    @classmethod
    def _without_secrets(cls, inputs: Any) -> Any:
        return hide_secrets(inputs)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of the artifact in `folder`, with its digest."""
    text = manifest.model_copy(update={"digest": ""}).model_dump_json(indent=2) + "\n"
    written = f'"digest": "{hashlib.sha256(text.encode()).hexdigest()}"'
    (folder / MANIFEST).write_text(written.join(text.rsplit('"digest": ""', 1)), encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of the artifact in `folder`.

    Raises:
        OSError, ValueError: the manifest is missing or damaged, or its key does not follow from its content.
    """
    return parse_manifest(read_file(folder / MANIFEST))


def parse_manifest(content: bytes) -> Manifest:
    """Return the manifest in the content of a `manifest.json`.

    Raises:
        ValueError: it is damaged, its key does not follow from its content, or a name of a file leads elsewhere.
    """
    manifest = Manifest.model_validate_json(content)
    if hashlib.sha256(b"".join(content.rsplit(manifest.digest.encode(), 1))).hexdigest() != manifest.digest:
        raise ValueError("it was changed after the artifact was made")
    derived = key_of(stage=manifest.kind, version=manifest.version, config=manifest.config, parents=manifest.parents)
    if derived != manifest.key:
        raise ValueError(f"its settings and parents give the key {derived}, and not {manifest.key}")
    for name in manifest.files:
        if not _stays_inside(name):
            raise ValueError(f"{name!r} is no name of a file")
    return manifest


def _stays_inside(name: str) -> bool:
    """Return whether a name is that of a file in the folder of an artifact: readers and copies go where it leads."""
    if name.startswith(("/", "../")) or name in ("", ".", "..", MANIFEST) or "\\" in name or "\0" in name:
        return False
    return posixpath.normpath(name) == name


Found = TypeVar("Found")


def with_ancestors(
    keys: Iterable[str], find: Callable[[str], Found | None], manifest_of: Callable[[Found], Manifest | None]
) -> dict[str, Found | None]:
    """Return what `find` knows of artifacts and of all their ancestors, by key. None: it knows nothing of that one.

    Args:
        keys: the artifacts.
        find: looks for the artifact with a key.
        manifest_of: returns its manifest, which names the parents, or None if it has none that can be read.
    """
    found: dict[str, Found | None] = {}
    open_keys = list(keys)
    while open_keys:
        key = open_keys.pop()
        if key not in found:
            found[key] = artifact = find(key)
            manifest = None if artifact is None else manifest_of(artifact)
            open_keys += manifest.parents.values() if manifest else ()
    return found


def _installed() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
