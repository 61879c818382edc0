"""An evaluation reports its progress: every sequence that is read, every response and every score counts as one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignment_core.config import PipelineConfig
from alignment_core.execution.build import build_here
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.progress import Silent, Work
from alignment_core.registry import load_registry


class Steps(Silent):
    """Progress that keeps what was reported."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def step(self, done: int, total: int, metrics: object = None) -> None:
        self.seen.append((done, total))


def test_every_unit_of_an_evaluation_is_counted(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 12 pairs, 3 are held out: as demonstrations, pairs, two labels each, and prompts.

    The policy reads the 3 demonstrations. Policy and reference read 6 sequences of pairs, 6 of labels and 3 responses.
    The policy samples the 3 responses, and one evaluator scores them: 3 + 2 · 15 + 3 + 3 = 39.
    """
    pairs = [{"prompt": f"What is {n} plus {n}?", "chosen": f"It is {2 * n}.", "rejected": "No!"} for n in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    config = PipelineConfig.model_validate(
        {
            "model": {"base": str(tiny_model), "load_in": "fp32", "max_length": 64, "lora": {"rank": 2}},
            "data": {
                "sources": [{"path": str(tmp_path / "pairs.jsonl")}],
                "held_out_fraction": 0.3,
            },
            "sft": {"batch_size": 9},
            "optimizer": {"name": "dpo"},
            "evaluation": {"evaluators": [{"name": "repetition"}], "max_new_tokens": 4},
            "store": str(tmp_path / "store"),
            "device": "cpu",
        }
    )
    plan, steps = plan_pipeline(config, load_registry()), Steps()
    assert plan.sft is not None
    data, _ = build_here(plan.ingest, Silent())
    held_out = data.manifest().metrics["rows"]["held_out"]
    assert held_out == {"demonstrations": 3, "preferences": 3, "feedback": 6, "prompts": 3}
    build_here(plan.sft, Silent())
    monkeypatch.setattr(Work, "end", lambda work: work.add(0))  # else it would fill up what the count lacks
    build_here(plan.evaluate_sft, steps)
    assert steps.seen[-1] == (39, 39)
    assert steps.seen == sorted(set(steps.seen)), "the bar never goes back, and nothing is told twice"
    assert len(steps.seen) > 5
