"""The report of a finished stage in Prefect: the facts of its manifest, and the report that the stage wrote."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from prefect.artifacts import create_markdown_artifact

from alignment_core.execution.build import StageResult
from alignment_core.execution.stage import StageCall
from alignment_core.markdown import code, code_block, message, plain, table
from alignment_core.reporting.svg import picture
from alignment_flows.progress import tolerate_server_outage
from alignment_flows.reports.curves import draw_curves, reliability
from alignment_flows.reports.numbers import numbers

REPORT_BYTES = 2**19
"""Prefect keeps every report in its database. Larger reports stay in the artifact's folder only."""

SAMPLES = 5
SAMPLE_CHARACTERS = 600


def publish_report(call: StageCall, built: StageResult) -> None:
    """Publish the report as a Prefect artifact of the task run."""
    report = stage_report(call, built)
    with tolerate_server_outage():
        # Prefect allows only lowercase letters, digits and dashes.
        key = f"{call.stage.replace('_', '-')}-report"
        create_markdown_artifact(report, key=key, description=f"{plain(call.label)} · {call.key}")


def stage_report(call: StageCall, built: StageResult) -> str:
    """Return the report of a stage as markdown."""
    manifest = built.artifact.manifest()
    facts = {
        "artifact": code(built.artifact.uri),
        "this run": "cached" if built.cached else "built",
        "built": manifest.created,
        "seconds": f"{manifest.seconds:.1f}",
        "peak memory": _gigabytes(manifest.peak_memory_bytes),
        "peak device memory": _gigabytes(manifest.peak_device_memory_bytes),
        "device memory beside it": _gigabytes(manifest.outside_device_memory_bytes),
        **{f"from {role}": code(key) for role, key in manifest.parents.items()},
    }
    warnings = manifest.metrics.get("warnings", [])
    parts = [f"# {plain(call.label)}", table("fact", {name: value for name, value in facts.items() if value})]
    if metrics := dict(numbers(manifest.metrics)):
        parts += ["## Metrics", table("metric", metrics)]
    if warnings:
        parts += ["## Warnings", "\n".join(f"- {message(warning)}" for warning in warnings)]
    # The curves of a cached stage are on the page of the run that built it. Drawing them again would take as long as
    # the rest of a cached run.
    history = built.artifact.path / "metrics.jsonl"
    if not built.cached and history.is_file() and (curves := draw_curves(history)):
        parts += ["## Curves", f"![curves]({curves})"]
    if (responses := built.artifact.path / "responses.jsonl").is_file():
        parts += ["## Samples", *_samples(responses)]
    if (calibration := built.artifact.path / "calibration.json").is_file():
        parts += ["## Calibration", f"![reliability]({picture([reliability(calibration)])})"]
    if (verdicts := built.artifact.path / "verdicts.jsonl").is_file():
        parts += ["## Side by side", *_side_by_side(verdicts)]
    parts += ["## Settings", table("setting", dict(numbers(manifest.config)))]
    own = built.artifact.path / "report.md"
    if own.is_file() and own.stat().st_size < REPORT_BYTES:
        parts.append(own.read_text(encoding="utf-8"))
    # A response may contain NUL, which PostgreSQL rejects. Prefect would then drop the event and its whole batch.
    return ("\n\n".join(parts) + "\n").replace("\0", "\N{REPLACEMENT CHARACTER}")


def _samples(responses: Path) -> Iterator[str]:
    """Yield the first response to each of the first prompts, with its scores."""
    with responses.open(encoding="utf-8") as lines:
        for line in islice(lines, SAMPLES):
            entry = json.loads(line)
            asked = entry["prompt"][-1]["content"] if entry["prompt"] else ""
            answers = entry.get("responses") or [entry["response"]]
            judged = ", ".join(f"{name} {value:.3g}" for name, value in entry.items() if isinstance(value, float))
            yield f"**Prompt** {_quoted(asked)}"
            yield f"**Response** {plain(judged)}{_quoted(str(answers[0]))}"


def _side_by_side(verdicts: Path) -> Iterator[str]:
    """Yield the responses of both models to the first prompts, and the verdict of each judge."""
    outcomes = {1: "the model", 0: "tie", -1: "the opponent", None: "no verdict"}
    with verdicts.open(encoding="utf-8") as lines:
        for line in islice(lines, SAMPLES):
            entry = json.loads(line)
            asked = entry["prompt"][-1]["content"] if entry["prompt"] else ""
            preferred = ", ".join(f"{outcomes[verdict]} ({judge})" for judge, verdict in entry["verdicts"].items())
            yield f"**Prompt** {_quoted(asked)}"
            yield f"**The model** {_quoted(entry['response'])}"
            yield f"**The opponent** {_quoted(entry['opponent'])}"
            if preferred:
                yield f"Preferred: {plain(preferred)}"


def _quoted(text: str) -> str:
    shown = text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + "…"
    return f"\n\n{code_block(shown)}"


def _gigabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**30:.2f} GiB"
