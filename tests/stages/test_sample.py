"""Responses for ranking: the model that is sampled, and the resume of an interrupted stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from vllm_standin import standing_in

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import PipelineConfig
from alignment_core.errors import ArtifactError, ConfigError
from alignment_core.execution.build import build_here
from alignment_core.planning.sample import plan_sampling
from alignment_core.progress import Silent, Stopped
from alignment_core.registry import load_registry
from alignment_core.stages import sample


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


class _StopAfter(Silent):
    """Progress that requests a stop after `after` prompts and records each step."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.steps: list[int] = []

    def step(self, done: int, total: int, metrics: object = None) -> None:
        self.steps.append(done)
        self.stopping = done >= self.after


def test_a_stopped_stage_resumes_with_the_same_responses(
    settings: Callable[..., PipelineConfig], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plan = plan_sampling(settings(), load_registry())
    for call in (plan.ingest, plan.sft):
        assert call is not None
        build_here(call, Silent())
    monkeypatch.setattr(sample, "BATCH", 6)  # two prompts with three responses each
    with pytest.raises(Stopped):
        build_here(plan.sample, _StopAfter(4))
    (partial,) = (tmp_path / "store" / ".building").rglob("responses.jsonl")
    assert partial.read_text().count("\n") == 4
    with partial.open("a") as file:
        file.write('{"split": "train", "pro')  # as after a kill during a write
    resuming = _StopAfter(99)
    resumed, _ = build_here(plan.sample, resuming)
    assert resuming.steps[0] == 4
    lines = [json.loads(line) for line in (resumed.path / "responses.jsonl").read_text().splitlines()]
    assert len({json.dumps(line["prompt"]) for line in lines}) == len(lines) == 12
    assert all(len(line["responses"]) == 3 for line in lines)
    assert any(len(set(line["responses"])) == 3 for line in lines)
    unbroken = plan.sample.model_copy(
        update={"runtime": plan.sample.runtime.model_copy(update={"store": tmp_path / "other"})}
    )
    for call in (plan.ingest, plan.sft):
        assert call is not None
        build_here(call.model_copy(update={"runtime": unbroken.runtime}), Silent())
    whole, _ = build_here(unbroken, Silent())
    assert (whole.path / "responses.jsonl").read_bytes() == (resumed.path / "responses.jsonl").read_bytes()


def test_a_promoted_model_is_sampled_by_its_key(settings: Callable[..., PipelineConfig], tmp_path: Path) -> None:
    registry = load_registry()
    with pytest.raises(ArtifactError, match="there is no artifact store"):
        plan_sampling(settings(), registry, "production")
    first = plan_sampling(settings(), registry)
    assert first.sft is not None
    for call in (first.ingest, first.sft):
        build_here(call, Silent())
    with pytest.raises(ArtifactError, match="production"):
        plan_sampling(settings(), registry, "production")
    ArtifactStore(tmp_path / "store").aliases.promote("production", "sft", first.sft.key, by="test", reason="test")
    plan = plan_sampling(settings(sft=None), registry, "production")
    assert (plan.sft, plan.model, plan.sample.standing) == (None, first.sft.key, {"policy": first.sft.key})
    by_alias, _ = build_here(plan.sample, Silent())
    trained_here, _ = build_here(first.sample, Silent())
    # The same model, selected by its alias, gives the same responses.
    assert (by_alias.path / "responses.jsonl").read_bytes() == (trained_here.path / "responses.jsonl").read_bytes()
    other = settings().model.model_copy(update={"chat_template": "chatml"})
    with pytest.raises(ConfigError, match="the base model, tokenizer or chat template of this artifact differs"):
        plan_sampling(settings(model=other), registry, "production")


def test_a_vllm_server_samples_if_the_settings_name_one(
    settings: Callable[..., PipelineConfig], tiny_model: Path
) -> None:
    with standing_in(str(tiny_model)) as (played, url):
        plan = plan_sampling(settings(vllm={"url": url}), load_registry())
        for call in (plan.ingest, plan.sft):
            assert call is not None
            build_here(call, Silent())
        artifact, _ = build_here(plan.sample, Silent())
        lines = (artifact.path / "responses.jsonl").read_text().splitlines()
        assert len(played.requests) == 3 * len(lines)
        assert len(played.loaded) >= 1
        assert len({request["seed"] for request in played.requests}) == len(played.requests)
