"""The rows that the stages of a plan will read, before any of them has run."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import DataConfig, SourceConfig
from alignment_core.data.dataset.kinds import KINDS
from alignment_core.data.dataset.splits import Split, read_dataset
from alignment_core.errors import DataError
from alignment_core.execution.stage import Job, StageCall
from alignment_core.forecast.data_sample import Sample, sample_of
from alignment_core.planning.data_needs import RANKED, check_data
from alignment_core.plugin_api import Row
from alignment_core.progress import Silent
from alignment_core.stages import ingest
from alignment_core.stages.shared.context import DATA, training_data
from alignment_core.training.rows import Rows
from alignment_core.training.sampled_rows import SampledRows

INGESTED = {"data": "ingest", "votes": "votes", "older_votes": "older_votes"}
"""For each role that is a data set: the name in the plan of the stage that makes it."""


class DataPreview:
    """The data sets of a plan. Those that are not in the store are ingested here into a temporary folder.

    Of many records, a sample is ingested. If it lacks rows that a stage needs, all are.

    Args:
        calls: the plan.
        scratch: the temporary folder.

    Raises:
        DataError: the data lack rows that a stage needs.
    """

    def __init__(self, calls: Mapping[str, StageCall], scratch: Path) -> None:
        self._calls, self._scratch = calls, scratch
        self._folders: dict[str, Path] = {}
        self._samples: dict[str, Sample] = {}
        self._whole = False
        try:
            self._check()
        except DataError:
            if not self._samples:
                raise
            self._folders, self._samples, self._whole = {}, {}, True
            shutil.rmtree(scratch)
            self._check()
        self._older = read_dataset(self._folder("ingest"))

    def train(self, call: StageCall) -> Rows:
        """Return the rows that a stage learns from, without ranked samples, which do not exist yet.

        If only a sample of the data was read, they are `SampledRows`.
        """
        roles = [role for role in DATA if role in call.parents and role in INGESTED]
        train = training_data(call.config, {role: self._folder(INGESTED[role]) for role in roles}).train
        rows: dict[str, Sequence[Row]] = {}
        for kind in KINDS:
            # A retrain mixes old feedback into the new one, as a share of it.
            mixed = kind in RANKED and call.config.get("replay") is not None
            names = ["votes"] if mixed else [INGESTED[role] for role in roles]
            rows[kind] = _scaled(getattr(train, kind), self._times(kind, names))
        return Rows(**rows)

    def prompts(self) -> Rows:
        """Return the prompts of the run's data set, those for training and those held out.

        If only a sample of the data was read, they are `SampledRows`.
        """
        times = self._times_of("ingest")
        train, held_out = _scaled(self._older.train.prompts, times), self.held_out.prompts
        return Rows(prompts=train, held_out_prompts=_scaled(held_out, times))

    @property
    def held_out(self) -> Split:
        """The held-out rows of the run's data set that were read."""
        return self._older.held_out

    @property
    def held_out_times(self) -> float:
        """How many times as many held-out rows there are."""
        return self._times_of("ingest")

    def new_votes(self) -> tuple[Split, float]:
        """Return the new votes of a retraining run on held-out prompts, and how many times as many there are."""
        return read_dataset(self._folder("votes")).held_out, self._times_of("votes")

    def report(self) -> dict[str, Any]:
        """Return the data report of the run's data set, with its counts of used records and rows for all records."""
        found: dict[str, Any] = json.loads((self._folder("ingest") / "report.json").read_text(encoding="utf-8"))
        times = self._times_of("ingest")
        found["used"] = {name: round(count * times) for name, count in found["used"].items()}
        for counts in found["rows"].values():
            counts.update({kind: round(count * times) for kind, count in counts.items()})
        return found

    def sampled(self) -> dict[str, int] | None:
        """Return how many `records` of the sources were read, and `of` how many. None: all were."""
        if not self._samples:
            return None
        samples = self._samples.values()
        return {"records": sum(one.read for one in samples), "of": sum(one.of for one in samples)}

    def _check(self) -> None:
        needed = [name for name in INGESTED.values() if name in self._calls]
        check_data(self._calls, {name: self._folder(name) for name in needed})

    def _times(self, kind: str, names: Sequence[str]) -> float:
        """Return how many times as many rows of a kind there are in these data sets as were read."""
        if not self._samples:
            return 1.0
        read = {name: len(getattr(read_dataset(self._folder(name)).train, kind)) for name in names}
        count = sum(read.values())
        return sum(rows * self._times_of(name) for name, rows in read.items()) / count if count else 1.0

    def _times_of(self, name: str) -> float:
        self._folder(name)
        sample = self._samples.get(name)
        return 1.0 if sample is None else sample.of / max(1, sample.read)

    def _folder(self, name: str) -> Path:
        if name not in self._folders:
            call = self._calls[name]
            found = ArtifactStore(call.runtime.store).find(call.key)
            self._folders[name] = found.path if found is not None else self._ingested(name, call)
        return self._folders[name]

    def _ingested(self, name: str, call: StageCall) -> Path:
        folders = {what: self._scratch / name / what for what in ("data", "checkpoints", "sample")}
        for folder in folders.values():
            folder.mkdir(parents=True)
        inputs: dict[str, Any] = dict(call.inputs)
        sources = [SourceConfig(**source) for source in inputs["sources"]]
        data = DataConfig(sources=sources, **call.config["data"])
        sample = None if self._whole else sample_of(sources, data, folders["sample"])
        if sample is not None:
            self._samples[name] = sample
            inputs["sources"] = [source.model_dump(mode="json") for source in sample.sources]
        runtime = call.runtime.model_copy(update={"store": self._scratch / "store"})
        inside = call.model_copy(update={"runtime": runtime, "inputs": inputs})
        ingest.run(Job(inside, {}, folders["data"], folders["checkpoints"], Silent()))
        return folders["data"]


def _scaled(rows: Sequence[Row], times: float) -> Sequence[Row]:
    return rows if times == 1 else SampledRows(rows, round(len(rows) * times))
