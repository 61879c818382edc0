"""What a finished stage shows on its page in Prefect: the facts of its manifest, and the report it wrote."""

import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact

from alignment_core.stages.base import StageCall
from alignment_core.stages.build import Built
from alignment_flows.curves import draw_curves, draw_reliability
from alignment_flows.progress import if_server_answers

REPORT_BYTES = 2**19
"""Prefect keeps every report in its database; a larger one is only linked by the artifact's folder."""

DIGEST = re.compile(r"^([0-9a-f]{12})[0-9a-f]{28,}$")

SAMPLES = 5
SAMPLE_CHARACTERS = 600


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
        **{f"from {role}": f"`{key}`" for role, key in manifest.parents.items()},
    }
    warnings = manifest.metrics.get("warnings", [])
    parts = [f"# {call.label}", table("fact", {name: value for name, value in facts.items() if value})]
    if metrics := dict(numbers(manifest.metrics)):
        parts += ["## Metrics", table("metric", metrics)]
    if warnings:
        parts += ["## Warnings", "\n".join(f"- {warning}" for warning in warnings)]
    # The picture of a stage that was there already stands on the page of the run that built it: drawing it once more
    # would take as long as all else that such a run does.
    history = built.artifact.path / "metrics.jsonl"
    if not built.cached and history.is_file() and (curves := draw_curves(history)):
        parts += ["## Curves", f"![curves]({curves})"]
    if (responses := built.artifact.path / "responses.jsonl").is_file():
        parts += ["## Samples", *_samples(responses)]
    if (calibration := built.artifact.path / "calibration.json").is_file():
        parts += ["## Calibration", f"![reliability]({draw_reliability(calibration)})"]
    if (verdicts := built.artifact.path / "verdicts.jsonl").is_file():
        parts += ["## Side by side", *_side_by_side(verdicts)]
    parts += ["## Settings", table("setting", dict(numbers(manifest.config)))]
    own = built.artifact.path / "report.md"
    if own.is_file() and own.stat().st_size < REPORT_BYTES:
        parts.append(own.read_text(encoding="utf-8"))
    # A model may say a NUL, which PostgreSQL does not keep: Prefect would drop the event, and all that came with it.
    return ("\n\n".join(parts) + "\n").replace("\0", "\N{REPLACEMENT CHARACTER}")


def _samples(responses: Path) -> Iterator[str]:
    """The first responses to the first prompts, with what each was judged."""
    with responses.open(encoding="utf-8") as lines:
        for line in islice(lines, SAMPLES):
            entry = json.loads(line)
            asked = entry["prompt"][-1]["content"] if entry["prompt"] else ""
            answers = entry.get("responses") or [entry["response"]]
            judged = ", ".join(f"{name} {value:.3g}" for name, value in entry.items() if isinstance(value, float))
            yield f"**Prompt** {_quoted(asked)}"
            yield f"**Response** {judged}{_quoted(str(answers[0]))}"


def _side_by_side(verdicts: Path) -> Iterator[str]:
    """The responses of both models to the first prompts, and which each judge prefers."""
    words = {1: "the model", 0: "neither", -1: "the opponent", None: "no verdict"}
    with verdicts.open(encoding="utf-8") as lines:
        for line in islice(lines, SAMPLES):
            entry = json.loads(line)
            asked = entry["prompt"][-1]["content"] if entry["prompt"] else ""
            said = ", ".join(f"{judge}: {words[verdict]}" for judge, verdict in entry["verdicts"].items())
            yield f"**Prompt** {_quoted(asked)}"
            yield f"**The model** {_quoted(entry['response'])}"
            yield f"**The opponent** {_quoted(entry['opponent'])}"
            if said:
                yield f"Preferred by {said}"


def _quoted(text: str) -> str:
    """As a block that no markup of the text's own can leave."""
    shown = text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + "…"
    return "\n\n" + "\n".join(f"    {line}" for line in shown.splitlines() or [""])


def _gigabytes(size: int | None) -> str:
    return "" if size is None else f"{size / 2**30:.2f} GiB"


def table(head: str, rows: Mapping[str, str]) -> str:
    """Names and values as a markdown table."""
    lines = [f"| {name} | {escaped(value)} |" for name, value in rows.items()]
    return "\n".join([f"| {head} | value |", "| --- | --- |", *lines])


def escaped(text: str) -> str:
    """A text that stays in its cell of a markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def numbers(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Numbers and short texts of nested JSON, by dotted name; lists are for the artifact's own files."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            yield f"{prefix}{name}", f"{value:.6g}"
        elif isinstance(value, bool | int) or (isinstance(value, str) and len(value) <= 80):
            # A whole digest is wider than the page, and stands in the manifest.
            yield f"{prefix}{name}", DIGEST.sub(r"\1…", str(value))
