"""Small artifacts in a store. Their keys follow from their manifests, as all keys do."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from alignment_core.artifacts import Artifact, ArtifactStore, Manifest, key_of
from alignment_core.execution.stage import StageCall
from alignment_core.planning.pipeline import VERSIONS
from alignment_core.progress import Silent

_manifests: dict[str, dict[str, Any]] = {}


def named(prefix: str, kind: str = "optimize", parents: Mapping[str, str] | None = None, **config: Any) -> str:
    """Return the key, with a prefix of up to three digits, of an artifact that `add` can put into a store."""
    for number in itertools.count():
        made = {"version": 1, "config": {**config, "number": number}, "parents": dict(parents or {})}
        if (key := key_of(stage=kind, **made)).startswith(prefix):
            _manifests[key] = {"kind": kind, "key": key, **made}
            return key
    raise AssertionError


def add(
    store: ArtifactStore,
    key: str,
    created: str = "2026-01-01",
    files: Mapping[str, str] | None = None,
    **fields: Any,
) -> Artifact:
    """Publish the artifact that `named` returned the key of.

    Args:
        store: the artifact store.
        key: the key.
        created: its time of creation.
        files: its files. None: the file `weights`, which contains the key.
        fields: other fields of its manifest.
    """
    manifest = Manifest(**_manifests[key], created=created, **fields)
    with store.building(manifest.kind, key, Silent()) as building:
        for name, text in ({"weights": key} if files is None else files).items():
            (building.out / name).write_text(text)
        return building.publish(manifest)


C = named("c", "ingest")
A = named("aaa", "sft", {"data": C})
B = named("aba", "optimize", {"data": C, "sft": A})
D = named("d", "optimize")
"""The data set C, the SFT model A trained on it, the policy B trained from both, and the policy D without parents."""


def add_placeholder(store: ArtifactStore, call: StageCall) -> Artifact:
    """Publish an artifact for a call, with a placeholder for its weights."""
    with store.building(call.stage, call.key, Silent()) as building:
        (building.out / "weights").write_text(call.key)
        return building.publish(
            Manifest(
                kind=call.stage,
                key=call.key,
                version=VERSIONS[call.stage],
                config=call.config,
                parents=call.reads(),
                inputs=call.inputs,
            )
        )
