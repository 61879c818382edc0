"""The rows that the stages of a plan will read, before any of them has run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from alignment_core.artifacts import ArtifactStore
from alignment_core.data.dataset import Split, read_dataset
from alignment_core.progress import Silent
from alignment_core.stages import ingest
from alignment_core.stages.base import Job, StageCall
from alignment_core.stages.opened import DATA, data_of

INGESTED = {"data": "ingest", "votes": "votes", "older_votes": "older_votes"}
"""Name in the plan of the stage that makes what a stage reads under this role."""


class PlannedData:
    """Data sets from the store, and those that are not there ingested here and thrown away.

    Args:
        calls: the plan.
        scratch: a folder for what is thrown away.

    Attributes:
        older: what a run learns from; of a retrain, what there was before the votes.
    """

    def __init__(self, calls: Mapping[str, StageCall], scratch: Path) -> None:
        self._calls, self._scratch = calls, scratch
        self._folders: dict[str, Path] = {}
        self.older = read_dataset(self._folder("ingest"))

    def train(self, call: StageCall) -> Split:
        """What a stage may learn from, without ranked samples, which nobody knows yet."""
        roles = [role for role in DATA if role in call.parents and role in INGESTED]
        return data_of(call.config, {role: self._folder(INGESTED[role]) for role in roles}).train

    def new_votes(self) -> Split:
        """Of a retrain's votes, those on held-out prompts."""
        return read_dataset(self._folder("votes")).held_out

    def _folder(self, name: str) -> Path:
        if name not in self._folders:
            call = self._calls[name]
            found = ArtifactStore(call.runtime.store).find(call.key)
            self._folders[name] = found.path if found is not None else self._ingested(name, call)
        return self._folders[name]

    def _ingested(self, name: str, call: StageCall) -> Path:
        out, checkpoints = self._scratch / name / "data", self._scratch / name / "checkpoints"
        out.mkdir(parents=True)
        checkpoints.mkdir()
        inside = call.model_copy(update={"runtime": call.runtime.model_copy(update={"store": self._scratch / "store"})})
        ingest.run(Job(inside, {}, out, checkpoints, Silent()))
        return out
