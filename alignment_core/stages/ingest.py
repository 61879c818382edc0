"""Raw feedback becomes a data set, a report and the rows that could not be used."""

from __future__ import annotations

from typing import Any

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import DataConfig, SourceConfig
from alignment_core.feedback.source import as_files
from alignment_core.registry import load_registry
from alignment_core.stages.base import Job, Stage
from alignment_core.stages.plan import VERSIONS

METRICS = (
    "rows",
    "conversions",
    "quarantined",
    "dropped",
    "votes",
    "duplicates",
    "balance",
    "fit",
    "targets",
    "overlap",
)
"""Parts of the report that are numbers; the rest is in the artifact's `report.json`."""


def run(job: Job) -> dict[str, Any]:
    """Ingest the sources of the call; the metrics are the report's counts."""
    from alignment_core.data.ingest import ingest
    from alignment_core.data.rendering import Renderer, generation_stops, load_tokenizer

    config, inputs = job.call.config, job.call.inputs
    sources = as_files([SourceConfig(**source) for source in inputs["sources"]], job.checkpoints)
    model = inputs["model"]
    renderer = Renderer(
        load_tokenizer(model["path"], model["revision"]),
        chat_template=config["chat_template"],
        max_length=config["max_length"],
        generation_stops=generation_stops(model["path"], model["revision"]),
    )
    data = DataConfig(sources=sources, **config["data"])
    identity = {name: config[name] for name in ("tokenizer", "chat_template", "max_length")}
    store = ArtifactStore(job.call.runtime.store)
    plugged = load_registry().formats()
    report = ingest(data, renderer, job.out, job.progress, store=store, identity=identity, plugged=plugged)
    return {name: value for name, value in report.items() if name in METRICS}


STAGE = Stage("ingest", VERSIONS["ingest"], run)
