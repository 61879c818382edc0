"""Promote a model according to the verdict of the gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alignment_core.artifacts import CANDIDATE, PRODUCTION, Artifact, ArtifactStore, Change
from alignment_core.errors import ArtifactError

REFUSED = "refused"
"""Alias of the model that a person refused last. Its history records every refusal: which model, who and why."""


@dataclass(frozen=True)
class Decision:
    """A person's decision on a model that passed the gate.

    Attributes:
        approved: whether the model may become `production`.
        by: who decided.
        reason: why.
    """

    approved: bool
    by: str
    reason: str


@dataclass(frozen=True)
class Promotion:
    """The result of applying a verdict.

    Attributes:
        passed: whether the model passed the gate.
        aliases: the aliases that the model was given or already had.
        reasons: the reasons of the gate, and why `production` was not given.
        changes: the changes that were made, by alias. An alias that the model already had is not among them.
        refused: the alias that the model was refused, None if it was refused none.
    """

    passed: bool
    aliases: tuple[str, ...]
    reasons: tuple[str, ...]
    changes: Mapping[str, Change]
    refused: str | None = None


def apply_verdict(
    store: ArtifactStore, model: Artifact, verdict: Mapping[str, Any], *, to_production: bool, by: str
) -> Promotion:
    """Give a model that passed the alias `candidate`, and also `production` if requested.

    The model does not become `production` if that alias has changed since the comparison, or if this model was rolled
    back before. A person must then decide.

    Args:
        store: the artifact store.
        model: the model.
        verdict: the content of its `gate.json`.
        to_production: whether to promote a model that passes to `production`.
        by: the run that promotes.

    Raises:
        ArtifactError: the store cannot be written.
    """
    reasons = list(verdict["reasons"])
    if not verdict["passed"]:
        if verdict["production"] == model.key:
            return Promotion(False, (), ("this model is already in production", *reasons), {})
        return Promotion(False, (), tuple(reasons), {}, refused=CANDIDATE)
    before = store.aliases.current(CANDIDATE)
    change = store.aliases.promote(CANDIDATE, model.kind, model.key, by=by, reason="; ".join(reasons))
    changes = {} if change == before else {CANDIDATE: change}
    promotion = Promotion(True, (CANDIDATE,), tuple(reasons), changes)
    if not to_production:
        return promotion
    return without_asking(store, model, verdict, promotion) or _to_production(
        store, model, verdict, promotion, by=by, reason="; ".join(reasons)
    )


def without_asking(
    store: ArtifactStore, model: Artifact, verdict: Mapping[str, Any], promotion: Promotion
) -> Promotion | None:
    """Return the result of a promotion to `production` that is already settled, or None if it is still open.

    Args:
        store: the artifact store.
        model: a model that passed the gate.
        verdict: the content of its `gate.json`.
        promotion: the result so far.
    """
    current = store.aliases.current(PRODUCTION)
    if current is not None and current.key == model.key:
        return replace(promotion, aliases=(*promotion.aliases, PRODUCTION))
    if rolled_back(store.aliases.history(PRODUCTION), model.key):
        return _refuse(promotion, "it was rolled back before. Run `align promote` to promote it again")
    refusals = [change for change in store.aliases.history(REFUSED) if change.key == model.key]
    if refusals:
        last = refusals[-1]
        return _refuse(
            promotion, f"{last.by} refused it: {last.reason}. Run `align promote` to promote it all the same"
        )
    return None


def apply_decision(
    store: ArtifactStore, model: Artifact, verdict: Mapping[str, Any], promotion: Promotion, decision: Decision
) -> Promotion:
    """Promote a model that passed the gate to `production`, or refuse it, as a person decided.

    It does not become `production` if that alias has changed since the comparison.

    Args:
        store: the artifact store.
        model: the model.
        verdict: the content of its `gate.json`.
        promotion: the result so far.
        decision: the decision.

    Raises:
        ArtifactError: the store cannot be written.
    """
    if decision.approved:
        reason = "; ".join([decision.reason, *promotion.reasons])
        return _to_production(store, model, verdict, promotion, by=decision.by, reason=reason)
    store.aliases.promote(REFUSED, model.kind, model.key, by=decision.by, reason=decision.reason)
    return _refuse(promotion, f"{decision.by} refused it: {decision.reason}")


def _to_production(
    store: ArtifactStore, model: Artifact, verdict: Mapping[str, Any], promotion: Promotion, *, by: str, reason: str
) -> Promotion:
    try:
        change = store.aliases.promote(
            PRODUCTION, model.kind, model.key, by=by, reason=reason, in_place_of=verdict["production"]
        )
    except ArtifactError as error:
        return _refuse(promotion, str(error))
    aliases, changes = (*promotion.aliases, PRODUCTION), {**promotion.changes, PRODUCTION: change}
    return replace(promotion, aliases=aliases, changes=changes)


def _refuse(promotion: Promotion, why: str) -> Promotion:
    reasons = (*promotion.reasons, f"not promoted to `{PRODUCTION}`: {why}")
    return replace(promotion, reasons=reasons, refused=PRODUCTION)


def rolled_back(history: Sequence[Change], key: str) -> bool:
    """Return whether the last change of this artifact in an alias history is a rollback."""
    for change in reversed(history):
        if change.key == key:
            return False
        if change.action == "rollback" and change.previous == key:
            return True
    return False
