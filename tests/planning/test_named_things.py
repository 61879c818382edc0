"""Names in the settings of what is not there are found by the plan, before anything is trained."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from classifiers import edit_json

from alignment_core.config_file import check_config
from alignment_core.errors import AlignmentError, ConfigError
from alignment_core.models.base import target_names
from alignment_core.models.base.identity import ModelIdentity
from alignment_core.models.base.tensor_file import tensor_shapes
from alignment_core.planning import lm_eval
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.registry import load_registry


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path) -> dict[str, Any]:
    rows = [{"prompt": f"What is {n}?", "chosen": "Yes.", "rejected": "No."} for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": {"base": str(tiny_model), "load_in": "fp32", "max_length": 128},
        "data": {"sources": [{"path": str(tmp_path / "pairs.jsonl")}]},
        "store": str(tmp_path / "store"),
    }


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"format": "nope"}, r"data\.sources\[\]\.format: .*nope"),
        ({"columns": {"prompt": "question", "chosen": "chosen", "rejected": "rejected"}}, "question"),
    ],
)
def test_unknown_format_or_column(settings: dict[str, Any], source: dict[str, Any], problem: str) -> None:
    settings["data"]["sources"][0] |= source
    with pytest.raises(AlignmentError, match=problem) as error:
        plan_pipeline(check_config(settings), load_registry())
    assert error.value.exit_code == 2


def test_unknown_lm_eval_task(settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builtin, own = tmp_path / "builtin", tmp_path / "own"
    for folder, text in ((builtin / "deep", "task: arc_easy\n"), (own, "task: mine\ntag:\n  - some-group\n")):
        folder.mkdir(parents=True)
        (folder / "task.yaml").write_text(text)
    monkeypatch.setattr(lm_eval, "_own_tasks_of_lm_eval", lambda: [builtin])
    monkeypatch.setattr(lm_eval, "_installed", lambda: "0.4.9")
    settings["evaluation"] = {"lm_eval": {"tasks": ["arc_easy", "mine", "some-group"], "include_path": str(own)}}
    plan_pipeline(check_config(settings), load_registry())
    settings["evaluation"]["lm_eval"]["tasks"] = ["arc_eas", "mine", "group"]
    with pytest.raises(ConfigError, match=r"evaluation.lm_eval.tasks: lm-eval has no such task. got arc_eas, group."):
        plan_pipeline(check_config(settings), load_registry())


@pytest.mark.parametrize("targets", [["q_proj", "v_porj"], ["input_layernorm"], ["model.layers.0.self_attn.q"]])
def test_unknown_target_modules(settings: dict[str, Any], targets: list[str]) -> None:
    settings["model"]["lora"] = {"target_modules": targets}
    expected = (
        rf"model\.lora\.target_modules: a target module is not a linear layer of the base model\. got {targets[-1]}, "
        r"expected names from down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    )
    with pytest.raises(ConfigError, match=expected):
        plan_pipeline(check_config(settings), load_registry())


def test_known_target_modules(settings: dict[str, Any]) -> None:
    settings["model"]["lora"] = {"target_modules": ["q_proj", "mlp.down_proj", "layers.1.self_attn.o_proj"]}
    plan_pipeline(check_config(settings), load_registry())


def test_names_that_transformers_changes_are_left_to_the_stage(
    settings: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    """`mixtral` has other names in its files than in memory."""
    renamed = tmp_path / "renamed"
    shutil.copytree(tiny_model, renamed)
    edit_json(renamed / "config.json", model_type="mixtral")
    settings["model"] |= {"base": str(renamed), "lora": {"target_modules": ["gate_up_proj"]}}
    plan_pipeline(check_config(settings), load_registry())


def test_unknown_target_modules_of_a_model_on_the_hub(
    settings: dict[str, Any], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Hub is asked for the headers of the files. Where it cannot be asked, the stage decides."""
    model = ModelIdentity("m", "someone/m", "0" * 40, "someone/m@0", "someone/m@0")
    shapes = tensor_shapes(tiny_model / "model.safetensors", "")
    tensors = {name: SimpleNamespace(shape=list(shape)) for name, shape in shapes.items()}
    metadata = SimpleNamespace(files_metadata={"model.safetensors": SimpleNamespace(tensors=tensors)})
    monkeypatch.setattr(target_names, "model_file", lambda model, name: tiny_model / name)
    monkeypatch.setattr("huggingface_hub.HfApi.get_safetensors_metadata", lambda *_, **__: metadata)
    target_names.check_target_names(model, ["q_proj"])
    with pytest.raises(ConfigError, match="got q_porj, expected names from down_proj"):
        target_names.check_target_names(model, ["q_porj"])

    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.get_safetensors_metadata", unreachable)
    target_names.check_target_names(model, ["q_porj"])
