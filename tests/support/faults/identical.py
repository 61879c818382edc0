"""What two runs of the same stage must have in common."""

from __future__ import annotations

import json
from typing import Any

from alignment_core.artifacts import ArtifactStore
from alignment_core.execution.stage import StageCall


def digests(call: StageCall) -> dict[str, Any]:
    """Return the digest of every file of the stage's artifact (weights, settings, training history) and its metrics."""
    artifact = ArtifactStore(call.runtime.store).find(call.key)
    assert artifact is not None
    manifest = artifact.manifest()
    found: dict[str, Any] = {name: record.sha256 for name, record in manifest.files.items()}
    if call.stage == "ingest":
        # The report correctly marks files that were read before the kill and not read again.
        report = json.loads((artifact.path / "report.json").read_text())
        for file in report["files"]:
            del file["reused"]
        found |= {"report.json": report, "report.md": None, "report.html": None}
    return found | {"metrics": manifest.metrics}
