"""Names of artifacts for people: the run that built one, and what it is about."""

from __future__ import annotations

from pathlib import PurePath

from alignment_core.artifacts import Manifest
from alignment_core.outcome.leaderboard import sources_of


def name_of(manifest: Manifest) -> str:
    """Return the name of an artifact: its run, then its optimizer, its sources, what it evaluates or its base model."""
    optimizer = manifest.config.get("optimizer")
    if isinstance(optimizer, dict) and "name" in optimizer:
        about = str(optimizer["name"])
    elif sources := sources_of(manifest):
        about = ", ".join(sources)
    elif manifest.kind == "evaluate":
        about = "the aligned model" if "policy" in manifest.parents else "the model before"
    else:
        about = PurePath((manifest.inputs.get("model") or {}).get("path", "")).name
    return " · ".join(part for part in (manifest.run, about) if part)
