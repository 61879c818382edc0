"""The trained models of a store: how far each one has come, promotion and rollback."""

from __future__ import annotations

import logging
import os
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from alignment_core.artifacts.alias_history import Change
from alignment_core.artifacts.catalogue import ALIGNED, LATEST, PROMOTABLE, Entry, catalogue, resolve
from alignment_core.artifacts.layout import check_exists
from alignment_core.artifacts.manifest import Manifest
from alignment_core.artifacts.remote.objects import Unreachable
from alignment_core.artifacts.remote.remote import Remote
from alignment_core.artifacts.sharing import Logged, obtain_lineage
from alignment_core.artifacts.store import Artifact, ArtifactStore
from alignment_core.errors import ArtifactError

SHORT = 12
"""Digits of a key in a message or a command. They are enough to name the artifact."""
JUDGING = ("evaluate", "gate")
"""Kinds of the artifacts by which a gate's verdict belongs to a model."""

logger = logging.getLogger(__name__)


class Standing(StrEnum):
    """How far a model has come. The texts complete the sentence `the model …`."""

    UNALIGNED = "is an SFT model, and was not aligned"
    UNGATED = "was not judged by a gate"
    REFUSED = "did not pass the gate"
    PASSED = "passed the gate"


@dataclass(frozen=True)
class Model:
    """A trained model of a store.

    Attributes:
        entry: its artifact.
        standing: how far it has come.
    """

    entry: Entry
    standing: Standing

    @property
    def key(self) -> str:
        return self.entry.artifact.key

    @property
    def warning(self) -> str | None:
        """What a person should know who puts the model to use; None if it passed the gate."""
        if self.standing is Standing.PASSED:
            return None
        kind, run = self.entry.artifact.kind, self.entry.run
        return f"the model {kind}/{self.key[:SHORT]}{f' of the run `{run}`' if run else ''} {self.standing.value}"


def find_model(store: ArtifactStore, reference: str, *, run: str | None = None) -> Model:
    """Return the trained model that a reference names.

    Args:
        store: the artifact store.
        reference: as for `resolve`.
        run: as for `resolve`.

    Raises:
        ArtifactError: there is no store, no model matches, or several do.
    """
    entry = resolve(store, reference, PROMOTABLE, run=run)
    return Model(entry, _standing(store, entry))


def _standing(store: ArtifactStore, entry: Entry) -> Standing:
    if entry.artifact.kind != ALIGNED:
        return Standing.UNALIGNED
    verdict = _verdict([made.manifest for made in catalogue(store, JUDGING)], entry.artifact.key)
    if verdict is None and store.remote is not None:  # a model that was pulled comes without its verdict
        verdict = _verdict(_judging_manifests(store.remote), entry.artifact.key)
    if verdict is None:
        return Standing.UNGATED
    return Standing.PASSED if verdict.metrics.get("passed") else Standing.REFUSED


def _verdict(made: Iterable[Manifest | None], model: str) -> Manifest | None:
    """Return the manifest of the newest verdict on a model among manifests, newest first; None if there is none."""
    manifests = {manifest.key: manifest for manifest in made if manifest is not None}
    return next((manifest for manifest in manifests.values() if is_verdict_on(manifest, model, manifests)), None)


def _judging_manifests(remote: Remote) -> list[Manifest | None]:
    try:
        return [found.manifest for found in remote.artifacts()]
    except Unreachable as error:
        logger.warning("whether another machine's gate judged the model is not known: %s", error)
        return []


def is_verdict_on(verdict: Manifest, model: str, evaluations: Mapping[str, Manifest]) -> bool:
    """Return whether this is the manifest of a gate's verdict on the model with this key."""
    evaluation = _judged_evaluation(verdict, evaluations)
    return evaluation is not None and evaluation.parents.get("policy") == model


def verdicts_on(models: Container[str], manifests: Mapping[str, Manifest]) -> set[str]:
    """Return the keys of the gates' verdicts on models, and of the evaluations that they judged them by.

    Args:
        models: keys of the models.
        manifests: the manifests of a store by their keys.
    """
    found = set()
    for key, manifest in manifests.items():
        evaluation = _judged_evaluation(manifest, manifests)
        if evaluation is not None and evaluation.parents.get("policy") in models:
            found |= {key, evaluation.key}
    return found


def _judged_evaluation(verdict: Manifest, evaluations: Mapping[str, Manifest]) -> Manifest | None:
    return evaluations.get(verdict.parents.get("policy", "")) if verdict.kind == "gate" else None


def promote(store: ArtifactStore, reference: str, alias: str, *, by: str, reason: str) -> tuple[Change, Model]:
    """Verify every file of a model and give it an alias.

    Args:
        store: the artifact store.
        reference: as for `resolve`. `latest` must have passed the gate: any other model is named by its run or its key.
        alias: the alias to give, such as `production`.
        by: the person or run that promotes.
        reason: the reason, stored in the history.

    Returns:
        The change, and the model with how far it has come.

    Raises:
        ArtifactError: there is no such model, it is damaged, it is `latest` and has not passed the gate, or the alias
            is invalid.
    """
    check_exists(store.root)
    store.aliases.current(alias)  # report an invalid alias first
    model = find_model(store, reference)
    artifact = model.entry.artifact
    if artifact.kind not in PROMOTABLE:
        raise ArtifactError(
            "only SFT models and policies can be promoted",
            got=f"{artifact.kind}/{artifact.key}",
            expected=f"an artifact of kind {' or '.join(PROMOTABLE)}",
        )
    if reference == LATEST and model.warning is not None:
        raise ArtifactError(
            f"`{LATEST}` is promoted only if it passed the gate, but {model.warning}",
            where=str(store.root),
            do=f"To promote it all the same, name it: `align promote {artifact.key[:SHORT]}`",
        )
    with store.leases.held([artifact.key]):
        _refuse_damaged(store, artifact)
        return store.aliases.promote(alias, artifact.kind, artifact.key, by=by, reason=reason), model


def rollback(store: ArtifactStore, alias: str, *, by: str, reason: str) -> Change:
    """Move an alias back to the model that had it before the last promotion.

    Raises:
        ArtifactError: there is no earlier promotion, or its model is missing or damaged.
    """
    check_exists(store.root)
    before = store.aliases.before(alias)
    if before is None:
        raise ArtifactError(
            "there is no earlier promotion to roll back to",
            where=alias,
            got="no promotion" if store.aliases.current(alias) is None else "1 promotion that was not rolled back",
            expected="at least 2",
            do=f"List the aliases with `align artifacts list --store {store.root}`",
        )
    obtain_lineage(store, before.key, Logged())
    with store.leases.held([before.key]):
        _refuse_damaged(store, Artifact(before.kind, before.key, str(store.root / before.kind / before.key)))
        return store.aliases.rollback(alias, before, by=by, reason=reason)


def _refuse_damaged(store: ArtifactStore, artifact: Artifact) -> None:
    fault = store.fault(artifact) if os.path.lexists(artifact.path) else "it is no longer in the store"
    if fault is not None:
        raise ArtifactError(
            f"the model cannot be promoted: {fault}",
            where=str(artifact.path),
            do="Run its pipeline again to rebuild it, or promote another model",
        )
