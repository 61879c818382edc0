"""The rows that the stages of a plan will read, before any of them has run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment_core.artifacts import ArtifactStore
from alignment_core.data.dataset.splits import Split, read_dataset
from alignment_core.execution.stage import Job, StageCall
from alignment_core.planning.data_needs import check_data
from alignment_core.progress import Silent
from alignment_core.stages import ingest
from alignment_core.stages.shared.context import DATA, training_data

INGESTED = {"data": "ingest", "votes": "votes", "older_votes": "older_votes"}
"""For each role that is a data set: the name in the plan of the stage that makes it."""


class DataPreview:
    """The data sets of a plan. Those that are not in the store are ingested here into a temporary folder.

    Args:
        calls: the plan.
        scratch: the temporary folder.

    Raises:
        DataError: the data lack rows that a stage needs.

    Attributes:
        older: the data set of the run. In a retraining run, the data without the votes.
    """

    def __init__(self, calls: Mapping[str, StageCall], scratch: Path) -> None:
        self._calls, self._scratch = calls, scratch
        self._folders: dict[str, Path] = {}
        needed = [name for name in INGESTED.values() if name in calls]
        check_data(calls, {name: self._folder(name) for name in needed})
        self.older = read_dataset(self._folder("ingest"))

    def train(self, call: StageCall) -> Split:
        """Return the rows that a stage learns from, without ranked samples, which do not exist yet."""
        roles = [role for role in DATA if role in call.parents and role in INGESTED]
        return training_data(call.config, {role: self._folder(INGESTED[role]) for role in roles}).train

    def new_votes(self) -> Split:
        """Return the new votes of a retraining run that are on held-out prompts."""
        return read_dataset(self._folder("votes")).held_out

    def report(self) -> dict[str, Any]:
        """Return the data report of the run's data set."""
        found: dict[str, Any] = json.loads((self._folder("ingest") / "report.json").read_text(encoding="utf-8"))
        return found

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
