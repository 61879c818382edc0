"""Reference log-probabilities: what a killed stage goes on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from alignment_core.config import PipelineConfig
from alignment_core.models.packing import Arrangement
from alignment_core.models.roles import Roles
from alignment_core.progress import Silent, Stopped
from alignment_core.registry import load_registry
from alignment_core.stages.base import StageCall
from alignment_core.stages.build import run_here
from alignment_core.stages.plan import make_plan
from alignment_core.stages.reference import KEPT, TABLE


class _Impatient(Silent):
    """Asks to stop once so many sequences are read."""

    def __init__(self, after: float = float("inf")) -> None:
        self.after = after
        self.told: list[int] = []

    def step(self, done: int, total: int, metrics: object = None) -> None:
        self.told.append(done)
        self.stopping = done >= self.after


def test_a_stopped_stage_goes_on_where_it_was_and_finds_the_same(
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
        plan = make_plan(config, load_registry()).calls()
        return plan["ingest"], plan["reference"]

    ingest, reference = calls("unbroken")
    run_here(ingest, Silent())
    whole = _Impatient()
    unbroken, _ = run_here(reference, whole)
    _, second, *others = whole.told
    assert others

    ingest, reference = calls("stopped")
    run_here(ingest, Silent())
    with pytest.raises(Stopped):
        run_here(reference, _Impatient(after=second))
    (kept,) = (tmp_path / "stopped" / ".building").rglob(KEPT)
    lines = kept.read_text().splitlines(keepends=True)
    assert len(lines) == 2
    kept.write_text(lines[0] + lines[1][:-9])  # what a kill leaves

    passes: list[Any] = []
    hidden = Roles.hidden

    def counted(self: Roles, role: str, arrangement: Arrangement) -> Tensor:
        passes.append(arrangement)
        return hidden(self, role, arrangement)

    monkeypatch.setattr(Roles, "hidden", counted)
    going_on = _Impatient()
    resumed, _ = run_here(reference, going_on)
    assert going_on.told == whole.told[1:]
    assert len(passes) == len(whole.told) - 1
    assert (resumed.path / TABLE).read_bytes() == (unbroken.path / TABLE).read_bytes()
