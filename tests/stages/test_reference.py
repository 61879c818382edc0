"""Resume of an interrupted `reference` stage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from alignment_core.config import PipelineConfig
from alignment_core.execution.build import build_here
from alignment_core.execution.stage import StageCall
from alignment_core.models.passes.packing import Arrangement
from alignment_core.models.roles.shared_base import Roles
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.progress import Silent, Stopped
from alignment_core.registry import load_registry
from alignment_core.stages.reference import KEPT, TABLE


class _StopAfter(Silent):
    """Progress that requests a stop after `after` sequences and records each step."""

    def __init__(self, after: float = float("inf")) -> None:
        self.after = after
        self.steps: list[int] = []

    def step(self, done: int, total: int, metrics: object = None) -> None:
        self.steps.append(done)
        self.stopping = done >= self.after


def test_a_stopped_stage_resumes_with_the_same_result(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"Is {n} even?", "chosen": f"{n % 2 == 0}.", "rejected": f"{n} what?"} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def calls(store: str) -> tuple[StageCall, StageCall]:
        config = PipelineConfig.model_validate(
            {
                "model": {"base": str(tiny_model), "load_in": "fp32", "max_length": 64, "lora": {"rank": 2}},
                "data": {"sources": [{"path": str(tmp_path / "rows.jsonl")}]},
                "sft": None,
                "optimizer": {"name": "dpo"},
                "store": tmp_path / store,
                "device": "cpu",
                "token_budget": 128,
            }
        )
        plan = plan_pipeline(config, load_registry()).calls()
        return plan["ingest"], plan["reference"]

    ingest, reference = calls("unbroken")
    build_here(ingest, Silent())
    uninterrupted = _StopAfter()
    unbroken, _ = build_here(reference, uninterrupted)
    _, second, *others = uninterrupted.steps
    assert others

    ingest, reference = calls("stopped")
    build_here(ingest, Silent())
    with pytest.raises(Stopped):
        build_here(reference, _StopAfter(after=second))
    (partial,) = (tmp_path / "stopped" / ".building").rglob(KEPT)
    lines = partial.read_text().splitlines(keepends=True)
    assert len(lines) == 2
    partial.write_text(lines[0] + lines[1][:-9])  # as after a kill during a write

    passes: list[Any] = []
    hidden = Roles.hidden

    def counted(self: Roles, role: str, arrangement: Arrangement) -> Tensor:
        passes.append(arrangement)
        return hidden(self, role, arrangement)

    monkeypatch.setattr(Roles, "hidden", counted)
    resuming = _StopAfter()
    resumed, _ = build_here(reference, resuming)
    assert resuming.steps == uninterrupted.steps[1:]
    assert len(passes) == len(uninterrupted.steps) - 1
    assert (resumed.path / TABLE).read_bytes() == (unbroken.path / TABLE).read_bytes()
