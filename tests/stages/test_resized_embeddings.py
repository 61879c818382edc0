"""A tokenizer with more tokens than the embedding has rows: rows are added in every stage and in merged exports."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runs import Listener
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment_core.config_file import load_config
from alignment_core.errors import ModelError
from alignment_core.execution.build import build_here
from alignment_core.export.targets import adapter, merged
from alignment_core.inference.loaded_model import LoadedModel
from alignment_core.inference.model_parts import ModelParts
from alignment_core.inference.trained_model import open_trained_model
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.registry import load_registry


def test_added_tokens_are_learned_and_exported(write: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = len(tokenizer)
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>"], special_tokens=True)
    tokenizer.save_pretrained(base)
    settings = [f"model.base={base}", "model.chat_template=chatml", "sft.epochs=12", "sft.learning_rate=0.02"]
    with pytest.raises(ModelError, match=f"has {rows + 2} tokens, and the model's embedding has {rows} rows"):
        plan_pipeline(load_config(write(), settings), load_registry())
    plan = plan_pipeline(load_config(write(), [*settings, "model.resize_embeddings=true"]), load_registry())
    assert plan.sft is not None
    for call in (plan.ingest, plan.sft):
        artifact = build_here(call, Listener())[0]

    origin = open_trained_model(tmp_path / "store", artifact.key)
    loaded = LoadedModel(ModelParts.of_artifact(origin.folder), "cpu")
    answer = loaded.answer("What is 3 plus 3?", max_new_tokens=30, temperature=0)
    assert answer.end == "finished", "the added end token is learned"
    (tmp_path / "merged").mkdir()
    assert merged.write(origin, tmp_path / "merged")["same_greedy_answers"] >= 2
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert written.get_input_embeddings().weight.shape[0] == rows + 2
    ids = torch.tensor([[rows, 5, rows + 1]])
    with loaded._roles.use("policy"):
        assert torch.allclose(written.float()(ids).logits, loaded.model(ids).logits, atol=0.2)
    (tmp_path / "adapter").mkdir()
    with pytest.raises(ModelError, match=f"embedding with {rows + 2} rows.*--to merged"):
        adapter.write(origin, tmp_path / "adapter")
