"""Ingest raw feedback: write a data set, a report and the quarantined rows."""

from __future__ import annotations

from typing import Any

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import DataConfig, SourceConfig
from alignment_core.execution.stage import Job, Stage
from alignment_core.feedback.data_source import write_stores_as_files
from alignment_core.planning.pipeline import VERSIONS
from alignment_core.registry import load_registry

METRICS = (
    "used",
    "rows",
    "conversions",
    "quarantined",
    "dropped",
    "ignored",
    "votes",
    "duplicates",
    "balance",
    "raters",
    "fit",
    "targets",
    "overlap",
)
"""The numeric parts of the report. The complete report is in the artifact's `report.json`."""


def run(job: Job) -> dict[str, Any]:
    """Ingest the sources of the call. The metrics are the counts of the report."""
    from alignment_core.data.ingestion.ingest import ingest
    from alignment_core.data.rendering.renderer import Renderer

    config, inputs = job.call.config, job.call.inputs
    sources = write_stores_as_files([SourceConfig(**source) for source in inputs["sources"]], job.checkpoints)
    model = inputs["model"]
    renderer = Renderer.of_stage(model, config)
    data = DataConfig(sources=sources, **config["data"])
    identity = {
        name: config[name] for name in ("tokenizer", "chat_template", "max_length", "thoughts", "template_date")
    }
    store = ArtifactStore(job.call.runtime.store)
    plugged = load_registry().formats()
    report = ingest(data, renderer, job.out, job.progress, store=store, identity=identity, plugged=plugged)
    return {name: value for name, value in report.items() if name in METRICS}


STAGE = Stage("ingest", VERSIONS["ingest"], run)
