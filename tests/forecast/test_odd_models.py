"""A model that cannot be run as its config.json says is named in one line, whatever transformers makes of it."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from alignment_core.config_file import load_config
from alignment_core.errors import AlignmentError, ModelError
from alignment_core.forecast.process import Predictor
from alignment_core.models.base.loading import read_config
from alignment_core.models.memory.classifier_size import ClassifierSize
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.processes.module_call import answer_call
from alignment_core.registry import load_registry


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("hidden_act", "__import__", "KeyError: '__import__'"),
        ("pad_token_id", 10**9, "AssertionError: Padding_idx"),
        ("rope_scaling", {"rope_type": "zzz"}, "KeyError: 'zzz'"),
        ("num_attention_heads", 0, "ZeroDivisionError"),
        ("num_key_value_heads", 3, r"\w+Error: "),
    ],
)
def test_model_that_contradicts_itself(
    write: Callable[..., Path], tiny_model: Path, tmp_path: Path, field: str, value: Any, said: str
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    fields = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**fields, field: value}))
    settings = load_config(write(), [f"model.base={model}"])
    calls = plan_pipeline(settings, load_registry()).calls()
    with pytest.raises(ModelError, match=f"model.base {model}: .*got {said}"):
        Predictor(calls, ["optimize"], tmp_path / "scratch", None).forecast(0.0)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [("hidden_act", "__import__", "'__import__'"), ("pad_token_id", 10**9, "AssertionError")],
)
def test_reward_model_that_cannot_be_built(tiny_model: Path, field: str, value: Any, said: str) -> None:
    config = read_config(str(tiny_model), None)
    vars(config)[field] = value
    with pytest.raises(ModelError, match=f"reward.model {tiny_model}: .*does not load. got .*{said}"):
        ClassifierSize(config, None, "fp32", torch.device("cpu"))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_prediction_that_takes_too_much_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """What C++ appends to this error is so long that it hid how the process ended."""

    def run(request: dict[str, Any]) -> dict[str, Any]:
        raise error

    told = os.open(tmp_path / "told", os.O_WRONLY | os.O_CREAT)
    monkeypatch.setattr("sys.stdin", io.StringIO("{}"))
    monkeypatch.setattr("sys.argv", ["module", str(told)])
    answer_call(run)
    said = AlignmentError.from_json(json.loads((tmp_path / "told").read_text())["error"])
    assert said.what == "this takes more memory than there is"
    assert said.exit_code == 2
