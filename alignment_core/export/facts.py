"""What an adapter was made from and what was measured on it, gathered from the store for people to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from alignment_core.artifacts import ArtifactStore, Manifest
from alignment_core.artifacts.catalogue import catalogue, lineage, readable
from alignment_core.export.origin import Origin


def ancestors(origin: Origin) -> dict[str, Manifest]:
    """The manifests of all that the adapter was made from, by the role it had, as far as they are still there."""
    there = lineage(ArtifactStore(origin.store), origin.manifest.parents.values())
    found: dict[str, Manifest] = {}
    pending = dict(origin.manifest.parents)
    while pending:
        role, key = pending.popitem()
        artifact = there[key]
        if role not in found and artifact is not None and (manifest := readable(artifact)) is not None:
            found[role] = manifest
            pending |= {r: k for r, k in manifest.parents.items() if r not in found}
    return found


def measured(origin: Origin) -> list[Manifest]:
    """The evaluations of the adapter, the newest first."""
    role = "policy" if origin.artifact.kind == "optimize" else "sft"
    return [
        manifest
        for manifest in _evaluations(origin)
        if manifest.parents.get(role) == origin.artifact.key and (role == "policy" or "policy" not in manifest.parents)
    ]


def before(origin: Origin, after: Manifest) -> Manifest | None:
    """The same evaluation of the model that the adapter started from."""
    parents = {role: key for role, key in after.parents.items() if role != "policy"}
    for manifest in _evaluations(origin):
        if manifest.parents == parents and manifest.config == after.config and manifest.key != after.key:
            return manifest
    return None


def _evaluations(origin: Origin) -> list[Manifest]:
    """Of every model in the store, the newest first."""
    entries = catalogue(ArtifactStore(origin.store))
    return [entry.manifest for entry in entries if entry.artifact.kind == "evaluate" and entry.manifest is not None]


def sources(data: Manifest) -> Iterator[dict[str, Any]]:
    """The data's sources: hub data sets by name and revision, files by their name alone, which tells no folder."""
    for source in data.inputs.get("sources", ()):
        path = str(source["path"])
        if path.startswith("hf://"):
            yield {"name": path.removeprefix("hf://"), "on_hub": True, "revision": source.get("revision")}
        else:
            yield {"name": Path(path).name, "on_hub": False, "revision": None}


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The plain numbers among the metrics."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
