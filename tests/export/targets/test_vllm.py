"""Adapters for vLLM: the script that serves one, and those that vLLM would refuse or misread."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from exported import Make

from alignment_core.errors import ModelError
from alignment_core.export import process
from alignment_core.export.request import Exported, Request
from alignment_core.export.targets.serve_commands import vllm_adapter_command, vllm_refusal
from alignment_core.inference.trained_model import TrainedModel


def export(origin: TrainedModel, place: Path) -> Exported:
    return process.run(Request(store=origin.store, key=origin.artifact.key, target="vllm", place=place))


def test_vllm_folder_has_a_serve_script(trained: Make, tmp_path: Path) -> None:
    origin, out = trained(), tmp_path / "my model"
    export(origin, out)
    script = (out / "serve.sh").read_text().splitlines()
    assert script[0] == "#!/bin/sh"
    assert shlex.split(script[1]) == [
        "exec", "vllm", "serve", origin.base, "--enable-lora", "--max-lora-rank", "8",
        "--lora-modules", f"my model={out}", "--chat-template", f"{out}/chat_template.jinja",
        "--generation-config", str(out),
    ]  # fmt: skip
    assert os.access(out / "serve.sh", os.X_OK)


@pytest.mark.parametrize(("rank", "allowed"), [(2, 8), (8, 8), (24, 32), (257, 320), (512, 512)])
def test_vllm_command_uses_a_supported_rank(rank: int, allowed: int) -> None:
    command = shlex.split(vllm_adapter_command("o/base", "abc", "mine", Path("/m"), rank))
    assert command[command.index("--max-lora-rank") + 1] == str(allowed)
    assert command[3:5] == ["--revision", "abc"]


def test_dora_is_refused_for_vllm_and_nothing_is_left(trained: Make, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"vLLM does not support DoRA adapters.*--to merged"):
        export(trained(dora=True), tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"bias": "none", "target_parameters": None, "rank_pattern": {}, "init_lora_weights": True}, None),
        ({"use_dora": True}, "vLLM does not support DoRA adapters"),
        ({"target_parameters": ["experts.down_proj"]}, "vLLM does not support adapters on stacked experts"),
        ({"modules_to_save": ["lm_head"]}, "vLLM does not support adapters that also hold complete modules"),
        ({"rank_pattern": {"q_proj": 2}}, "vLLM does not support adapters with several ranks"),
        ({"alpha_pattern": {"q_proj": 2}}, "vLLM does not support adapters with several scales"),
        ({"bias": "all"}, "vLLM does not read `bias`, which this adapter uses"),
        ({"a_later_setting": [1]}, "vLLM does not read `a_later_setting`, which this adapter uses"),
        ({"r": 513}, "vLLM supports adapters up to rank 512, but this one has rank 513"),
    ],
)
def test_adapters_that_vllm_would_refuse_or_misread_are_named(changes: dict[str, object], reason: str | None) -> None:
    assert vllm_refusal({"peft_type": "LORA", "r": 8, "lora_alpha": 16} | changes) == reason
