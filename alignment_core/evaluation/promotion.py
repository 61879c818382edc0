"""What becomes of a model that the gate has judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alignment_core.artifacts import CANDIDATE, PRODUCTION, Artifact, ArtifactStore, Change
from alignment_core.errors import ArtifactError


@dataclass(frozen=True)
class Promotion:
    """What the gate's verdict led to.

    Attributes:
        passed: whether the model passed.
        aliases: the aliases that it was given, or had already.
        reasons: the gate's reasons, and why an alias was not given.
    """

    passed: bool
    aliases: tuple[str, ...]
    reasons: tuple[str, ...]


def apply_verdict(
    store: ArtifactStore, model: Artifact, verdict: Mapping[str, Any], *, to_production: bool, by: str
) -> Promotion:
    """Give a model that passed the alias `candidate`, and `production` as well if asked.

    It does not become `production` where that means another model than the one that it was compared with, or where
    somebody has rolled it back: that is then for a person to decide.

    Args:
        store: the store.
        model: the model.
        verdict: the content of its `gate.json`.
        to_production: whether a model that passes goes to production.
        by: which run does it.

    Raises:
        ArtifactError: the store cannot be written.
    """
    reasons = list(verdict["reasons"])
    if not verdict["passed"]:
        if verdict["production"] == model.key:
            reasons.insert(0, "it is the model in production")
        return Promotion(False, (), tuple(reasons))
    said = "; ".join(reasons)
    store.aliases.promote(CANDIDATE, model.kind, model.key, by=by, reason=said)
    if not to_production:
        return Promotion(True, (CANDIDATE,), tuple(reasons))
    if rolled_back(store.aliases.history(PRODUCTION), model.key):
        reasons.append("not in production: it was rolled back from there; `align promote` puts it back")
        return Promotion(True, (CANDIDATE,), tuple(reasons))
    try:
        store.aliases.promote(PRODUCTION, model.kind, model.key, by=by, reason=said, in_place_of=verdict["production"])
    except ArtifactError as error:
        reasons.append(f"not in production: {error}")
        return Promotion(True, (CANDIDATE,), tuple(reasons))
    return Promotion(True, (CANDIDATE, PRODUCTION), tuple(reasons))


def rolled_back(history: Sequence[Change], key: str) -> bool:
    """Whether the last that happened to an artifact in an alias's history is that it was rolled back."""
    for change in reversed(history):
        if change.key == key:
            return False
        if change.action == "rollback" and change.previous == key:
            return True
    return False
