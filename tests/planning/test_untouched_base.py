"""The base model of the settings answers without anything having been trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from alignment_core.artifacts import ArtifactStore
from alignment_core.config_file import load_config
from alignment_core.errors import ArtifactError
from alignment_core.execution.build import build_here
from alignment_core.inference.loaded_model import UNFINISHED, LoadedModel
from alignment_core.inference.model_parts import trained_model
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.planning.sample import plan_sampling
from alignment_core.planning.untouched_base import untouched_base
from alignment_core.progress import Silent
from alignment_core.registry import load_registry


def test_it_answers_as_transformers_alone(write: Callable[..., Path], tiny_model: Path) -> None:
    config = load_config(write(), ["device=cpu", "model.load_in=fp32"])
    base = untouched_base(config, load_registry())
    assert base.label == f"base: {tiny_model.name}"
    loaded = LoadedModel(base.parts, "cpu")
    question: tuple[dict[str, Any], ...] = ({"role": "user", "content": "What is 1 plus 1?"},)
    ids = loaded._renderer.prompt(question).ids
    theirs = AutoModelForCausalLM.from_pretrained(tiny_model).generate(
        torch.tensor([ids]), max_new_tokens=12, do_sample=False
    )
    expected = loaded._renderer.decode(theirs[0, len(ids) :].tolist()).rstrip(UNFINISHED)
    assert loaded.answer(question, max_new_tokens=12, temperature=0).text == expected
    assert expected


def test_its_key_is_that_of_the_responses_that_are_sampled_from_it(write: Callable[..., Path]) -> None:
    config = load_config(write(), ["sft=null"])
    registry = load_registry()
    assert untouched_base(config, registry).key == plan_sampling(config, registry).model


def test_latest_is_a_model_that_answers(write: Callable[..., Path], tmp_path: Path) -> None:
    """The newest artifact of this store is a data set, and there is no model in it."""
    build_here(plan_pipeline(load_config(write()), load_registry()).ingest, Silent())
    with pytest.raises(ArtifactError, match="there is no aligned model in this store"):
        trained_model(ArtifactStore(tmp_path / "store"), "latest")
