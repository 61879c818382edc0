"""Small artifacts in a store."""

from __future__ import annotations

from alignment_core.artifacts import Artifact, ArtifactStore, Manifest
from alignment_core.progress import Silent

A, B, C, D = "a" * 32, "ab" * 16, "c" * 32, "d" * 32


def add(
    store: ArtifactStore, key: str, kind: str = "optimize", created: str = "2026-01-01", **parents: str
) -> Artifact:
    """Publish an artifact with one file, `weights`, that contains its key."""
    with store.building(kind, key, Silent()) as building:
        (building.out / "weights").write_text(key)
        return building.publish(Manifest(kind=kind, key=key, version=1, config={}, parents=parents, created=created))
