"""A base model whose logits are not simply its output head runs through the complete pipeline with a warning."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from architectures import save_model
from engine import open_roles, sequences
from runs import Listener
from transformers import AutoTokenizer

from alignment_core.config import PipelineConfig
from alignment_core.execution.build import build_here
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.registry import load_registry


def test_every_stage_trains_and_warns(tiny_model: Path, tmp_path: Path) -> None:
    base = save_model("bert", tmp_path / "bert", vocab_size=320, max_position_embeddings=512)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(base)
    rows = [{"prompt": f"{n} plus {n}?", "chosen": f"It is {2 * n}.", "rejected": "No!"} for n in range(16)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = {"batch_size": 4, "learning_rate": 1e-2}
    config = PipelineConfig.model_validate(
        {
            "model": {"base": str(base), "load_in": "fp32", "max_length": 64, "lora": {"rank": 2}},
            "data": {"sources": [{"path": str(tmp_path / "pairs.jsonl")}], "held_out_fraction": 0.3},
            "sft": step,
            "optimizer": {"name": "dpo", **step},
            "evaluation": {"max_prompts": 2, "max_new_tokens": 4},
            "store": str(tmp_path / "store"),
            "device": "cpu",
        }
    )
    built = {}
    for name, call in plan_pipeline(config, load_registry()).calls().items():
        artifact = build_here(call, Listener())[0]
        built[name] = artifact.path
        if name in ("sft", "reference", "optimize", "evaluate"):
            (warning,) = artifact.manifest().metrics["warnings"]
            assert warning.startswith("the logits of BertLMHeadModel are not simply its output head")
    steps = [json.loads(line)["loss"] for line in (built["sft"] / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1] < steps[0]
    trained, bare = open_roles(base), open_roles(base)
    trained.add_saved("policy", built["optimize"])
    ids = torch.tensor([sequences(1)[0].ids])
    with trained.use("policy"):
        assert not torch.equal(trained.model(ids).logits, bare.model(ids).logits)
