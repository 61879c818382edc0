"""What a finished stage shows on its page in Prefect: the facts of its manifest, and the report it wrote."""

from collections.abc import Iterator, Mapping
from typing import Any

from prefect.artifacts import create_markdown_artifact

from alignment_core.stages.base import StageCall
from alignment_core.stages.build import Built
from alignment_flows.progress import if_server_answers

REPORT_BYTES = 2**19
"""Prefect keeps every report in its database; a larger one is only linked by the artifact's folder."""


def publish_report(call: StageCall, built: Built) -> None:
    """Put the stage's report on the page of its task run."""
    report = stage_report(call, built)
    with if_server_answers():
        create_markdown_artifact(report, key=f"{call.stage}-report", description=f"{call.label} · {call.key}")


def stage_report(call: StageCall, built: Built) -> str:
    """The facts of one stage as markdown."""
    manifest = built.artifact.manifest()
    facts = {
        "artifact": f"`{built.artifact.uri}`",
        "this run": "cached" if built.cached else "built",
        "built": manifest.created,
        "seconds": f"{manifest.seconds:.1f}",
        "peak memory": _gigabytes(manifest.peak_memory_bytes),
        "peak device memory": _gigabytes(manifest.peak_device_memory_bytes),
        "parents": ", ".join(f"{role} `{key}`" for role, key in manifest.parents.items()),
    }
    warnings = manifest.metrics.get("warnings", [])
    parts = [f"# {call.label}", _table("fact", {name: value for name, value in facts.items() if value})]
    if metrics := dict(_numbers(manifest.metrics)):
        parts += ["## Metrics", _table("metric", metrics)]
    if warnings:
        parts += ["## Warnings", "\n".join(f"- {warning}" for warning in warnings)]
    parts += ["## Settings", _table("setting", dict(_numbers(manifest.config)))]
    own = built.artifact.path / "report.md"
    if own.is_file() and own.stat().st_size < REPORT_BYTES:
        parts.append(own.read_text(encoding="utf-8"))
    return "\n\n".join(parts) + "\n"


def _gigabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**30:.2f} GiB"


def _table(head: str, rows: Mapping[str, str]) -> str:
    lines = [f"| {name} | {value.replace('|', chr(92) + '|')} |" for name, value in rows.items()]
    return "\n".join([f"| {head} | value |", "| --- | --- |", *lines])


def _numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Numbers and short texts of nested JSON, by dotted name; lists are for the artifact's own files."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            yield f"{prefix}{name}", f"{value:.6g}"
        elif isinstance(value, bool | int) or (isinstance(value, str) and len(value) <= 80):
            yield f"{prefix}{name}", str(value)
