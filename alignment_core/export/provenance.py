"""Lineage and evaluations of an adapter, read from the artifact store for the model card."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignment_core.artifacts import ArtifactStore, Manifest
from alignment_core.artifacts.catalogue import catalogue, lineage, readable_manifest
from alignment_core.inference.trained_model import TrainedModel


def ancestors(origin: TrainedModel) -> dict[str, Manifest]:
    """Return the manifests of all ancestors of the adapter that are still in the store, by role."""
    there = lineage(ArtifactStore(origin.store), origin.manifest.parents.values())
    found: dict[str, Manifest] = {}
    pending = dict(origin.manifest.parents)
    while pending:
        role, key = pending.popitem()
        artifact = there[key]
        if role not in found and artifact is not None and (manifest := readable_manifest(artifact)) is not None:
            found[role] = manifest
            pending |= {r: k for r, k in manifest.parents.items() if r not in found}
    return found


def evaluations_of(origin: TrainedModel) -> list[Manifest]:
    """Return the evaluations of the adapter, newest first."""
    role = "policy" if origin.artifact.kind == "optimize" else "sft"
    return [
        manifest
        for manifest in _evaluations(origin)
        if manifest.parents.get(role) == origin.artifact.key and (role == "policy" or "policy" not in manifest.parents)
    ]


def evaluation_before(origin: TrainedModel, after: Manifest) -> Manifest | None:
    """Return the same evaluation of the model that the training started from, or None if there is none."""
    parents = {role: key for role, key in after.parents.items() if role != "policy"}
    for manifest in _evaluations(origin):
        if manifest.parents == parents and manifest.config == after.config and manifest.key != after.key:
            return manifest
    return None


def _evaluations(origin: TrainedModel) -> list[Manifest]:
    """Return the evaluations of all models in the store, newest first."""
    entries = catalogue(ArtifactStore(origin.store))
    return [entry.manifest for entry in entries if entry.artifact.kind == "evaluate" and entry.manifest is not None]


def sources(data: Manifest) -> Iterator[dict[str, Any]]:
    """Yield the data sources: Hub data sets with name and revision, local files without their folder."""
    for source in data.inputs.get("sources", ()):
        path = str(source["path"])
        if path.startswith("hf://"):
            yield {"name": path.removeprefix("hf://"), "on_hub": True, "revision": source.get("revision")}
        else:
            yield {"name": Path(path).name, "on_hub": False, "revision": None}


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics that are plain numbers."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
