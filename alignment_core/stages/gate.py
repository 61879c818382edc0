"""Decide whether the model may become `candidate`, by applying the rules of `alignment_core.evaluation.gate`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from alignment_core.artifacts.manifest import read_manifest
from alignment_core.config import GateConfig
from alignment_core.evaluation.gate import Comparison, decide
from alignment_core.execution.stage import Job, Stage
from alignment_core.planning.pipeline import VERSIONS

VERDICT = "gate.json"


def run(job: Job) -> dict[str, Any]:
    """Write `gate.json`. A model that does not pass is a result, not an error."""
    config = job.call.config
    measured = {role: read_manifest(folder).metrics for role, folder in job.parents.items()}
    over_production = measured.get("over_production")
    verdict = decide(
        GateConfig.model_validate(config["gate"]),
        measured["policy"].get("kl"),
        _comparison(measured["over_sft"], config["judge"]),
        None if over_production is None else _comparison(over_production, config["judge"]),
    )
    found = {"passed": verdict.passed, "judge": config["judge"], "reasons": verdict.reasons}
    written = {**found, "production": config["production"], "checks": [check.to_json() for check in verdict.checks]}
    (job.out / VERDICT).write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for reason in verdict.reasons:
        job.progress.log(reason)
    return found


def _comparison(metrics: Mapping[str, Any], judge: str | None) -> Comparison:
    return Comparison(
        low=metrics["win_rate"].get(judge, {}).get("low"),
        length_ratio=metrics.get("length_ratio"),
        perplexity_ratio=metrics.get("perplexity_ratio"),
        safety={name: found["difference"] for name, found in metrics.get("safety", {}).items()},
    )


STAGE = Stage("gate", VERSIONS["gate"], run)
