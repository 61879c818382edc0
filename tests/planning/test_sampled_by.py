"""Responses of another engine are other responses: the keys of the stages that sample say so, and not where it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from alignment_core.config import PipelineConfig
from alignment_core.execution.stage import StageCall
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.planning.sample import plan_sampling
from alignment_core.registry import load_registry


def config(tiny_model: Path, folder: Path, **changes: Any) -> PipelineConfig:
    row = {"prompt": "What is 1 plus 1?", "chosen": "It is 2.", "rejected": "No."}
    (folder / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    return PipelineConfig.model_validate(
        {
            "model": {"base": str(tiny_model), "load_in": "fp32", "max_length": 128},
            "data": {"sources": [{"path": str(folder / "pairs.jsonl")}]},
            "sample": {"max_new_tokens": 8},
            "rank": {"by": {"name": "wordlist", "wanted": ["yes"]}},
            "optimizer": {"name": "ppo", "max_new_tokens": 8},
            "evaluation": {"max_new_tokens": 8},
            **changes,
        }
    )


def calls(settings: PipelineConfig) -> dict[str, StageCall]:
    return plan_pipeline(settings, load_registry()).calls()


def test_keys_of_stages_that_sample_name_the_engine(tiny_model: Path, tmp_path: Path) -> None:
    own = calls(config(tiny_model, tmp_path))
    other = calls(config(tiny_model, tmp_path, vllm={"url": "http://a/v1"}))
    moved = calls(config(tiny_model, tmp_path, vllm={"url": "http://b/v1", "parallel": 8}))
    assert {name: call.key for name, call in other.items()} == {name: call.key for name, call in moved.items()}
    assert {name for name, call in other.items() if "sampled_by" in call.config} == {"sample", "optimize"}
    assert {name for name, call in other.items() if "vllm" in call.inputs} == {"sample", "optimize"}
    assert own["ingest"].key == other["ingest"].key
    assert own["sft"].key == other["sft"].key
    for name in ("sample", "optimize"):
        assert own[name].key != other[name].key
        assert moved[name].inputs["vllm"]["url"] == "http://b/v1"


def test_an_optimizer_that_samples_nothing_keeps_its_key(tiny_model: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"optimizer": {"name": "dpo"}, "sample": None, "rank": None}
    own = calls(config(tiny_model, tmp_path, **changes))
    other = calls(config(tiny_model, tmp_path, **changes, vllm={}))
    assert own["optimize"].key == other["optimize"].key
    assert "vllm" not in other["optimize"].inputs


def test_align_sample_uses_the_engine(tiny_model: Path, tmp_path: Path) -> None:
    own = plan_sampling(config(tiny_model, tmp_path), load_registry()).sample
    other = plan_sampling(config(tiny_model, tmp_path, vllm={}), load_registry()).sample
    assert own.key != other.key
    assert other.inputs["vllm"]["url"] == "http://localhost:8000/v1"


@pytest.mark.parametrize(("max_length", "sample", "longest"), [
    (1024, {}, 256), (512, {}, 256), (510, {}, 255), (128, None, 64), (128, {"max_new_tokens": 120}, 120),
])  # fmt: skip
def test_sampled_responses_leave_room_for_their_prompts(
    max_length: int, sample: dict[str, Any] | None, longest: int, tiny_model: Path, tmp_path: Path
) -> None:
    """A ranked response that does not fit into `model.max_length` with its prompt would be left out of training."""
    model = {"base": str(tiny_model), "load_in": "fp32", "max_length": max_length}
    settings = config(tiny_model, tmp_path, model=model, sample=sample, rank=None, optimizer={"name": "dpo"})
    assert plan_sampling(settings, load_registry()).sample.config["sample"]["max_new_tokens"] == longest


def test_adapters_that_vllm_does_not_load_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    model = {"base": str(tiny_model), "lora": {"dora": True}}
    with pytest.raises(ValidationError, match="vLLM loads no DoRA adapters"):
        config(tiny_model, tmp_path, model=model, vllm={})
