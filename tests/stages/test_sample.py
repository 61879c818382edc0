"""Responses for ranking: who gives them, and what a killed stage goes on from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import PipelineConfig
from alignment_core.errors import ArtifactError, ConfigError
from alignment_core.progress import Silent, Stopped
from alignment_core.registry import load_registry
from alignment_core.stages import sample
from alignment_core.stages.build import run_here
from alignment_core.stages.plan_sample import make_sample_plan


@pytest.fixture
def settings(tiny_model: Path, tmp_path: Path) -> Callable[..., PipelineConfig]:
    rows = [{"prompt": f"What is {n} plus {n}?", "completion": f"It is {2 * n}."} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def make(**changes: Any) -> PipelineConfig:
        return PipelineConfig.model_validate(
            {
                "model": {"base": str(tiny_model), "load_in": "fp32", "max_length": 64, "lora": {"rank": 2}},
                "data": {"sources": [{"path": str(tmp_path / "rows.jsonl")}], "held_out_fraction": 0.3},
                "sft": {"batch_size": 4, "learning_rate": 1e-3},
                "sample": {"responses_per_prompt": 3, "max_new_tokens": 6},
                "store": tmp_path / "store",
                "device": "cpu",
                **changes,
            }
        )

    return make


class _Impatient(Silent):
    """Asks to stop once so many prompts are answered."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.told: list[int] = []

    def step(self, done: int, total: int, metrics: object = None) -> None:
        self.told.append(done)
        self.stopping = done >= self.after


def test_a_stopped_stage_goes_on_where_it_was_and_says_the_same(
    settings: Callable[..., PipelineConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = make_sample_plan(settings(), load_registry())
    for call in (plan.ingest, plan.sft):
        assert call is not None
        run_here(call, Silent())
    monkeypatch.setattr(sample, "BATCH", 6)  # two prompts of three responses
    with pytest.raises(Stopped):
        run_here(plan.sample, _Impatient(4))
    (kept,) = (tmp_path / "store" / ".building").rglob("responses.jsonl")
    assert kept.read_text().count("\n") == 4
    with kept.open("a") as file:
        file.write('{"split": "train", "pro')  # what a kill leaves
    going_on = _Impatient(99)
    resumed, _ = run_here(plan.sample, going_on)
    assert going_on.told[0] == 4
    lines = [json.loads(line) for line in (resumed.path / "responses.jsonl").read_text().splitlines()]
    assert len({json.dumps(line["prompt"]) for line in lines}) == len(lines) == 12
    assert all(len(line["responses"]) == 3 for line in lines)
    assert any(len(set(line["responses"])) == 3 for line in lines)
    unbroken = plan.sample.model_copy(
        update={"runtime": plan.sample.runtime.model_copy(update={"store": tmp_path / "other"})}
    )
    for call in (plan.ingest, plan.sft):
        assert call is not None
        run_here(call.model_copy(update={"runtime": unbroken.runtime}), Silent())
    whole, _ = run_here(unbroken, Silent())
    assert (whole.path / "responses.jsonl").read_bytes() == (resumed.path / "responses.jsonl").read_bytes()


def test_a_promoted_model_answers_under_its_own_key(settings: Callable[..., PipelineConfig], tmp_path: Path) -> None:
    registry = load_registry()
    with pytest.raises(ArtifactError, match="production"):
        make_sample_plan(settings(), registry, "production")
    first = make_sample_plan(settings(), registry)
    assert first.sft is not None
    for call in (first.ingest, first.sft):
        run_here(call, Silent())
    ArtifactStore(tmp_path / "store").aliases.promote("production", "sft", first.sft.key, by="test", reason="test")
    plan = make_sample_plan(settings(sft=None), registry, "production")
    assert (plan.sft, plan.model, plan.sample.standing) == (None, first.sft.key, {"policy": first.sft.key})
    theirs, _ = run_here(plan.sample, Silent())
    ours, _ = run_here(first.sample, Silent())
    # The same model by another way says the same.
    assert (theirs.path / "responses.jsonl").read_bytes() == (ours.path / "responses.jsonl").read_bytes()
    other = settings().model.model_copy(update={"chat_template": "chatml"})
    with pytest.raises(ConfigError, match="another base model or chat template"):
        make_sample_plan(settings(model=other), registry, "production")
