"""A run goes on from an adapter: it is the start of SFT, or of the optimizer and its reference if SFT is skipped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from classifiers import edit_json
from engine import disturb, open_roles
from peft import PeftModel
from runs import Listener
from transformers import AutoModelForCausalLM

from alignment_core.config import LoraConfig
from alignment_core.config_file import load_config
from alignment_core.data.dataset.splits import read_dataset
from alignment_core.errors import ConfigError, ModelError
from alignment_core.execution.build import build_here
from alignment_core.planning.pipeline import Plan, plan_pipeline
from alignment_core.planning.sample import plan_sampling
from alignment_core.registry import load_registry

LORA = LoraConfig(rank=3, alpha=5, target_modules=["q_proj", "down_proj"])


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    """Return the folder of an adapter that changes the tiny model's answers."""
    roles = open_roles(tiny_model)
    roles.add_new("policy", LORA, 1)
    disturb(roles, "policy", 1, scale=0.3)
    roles.save("policy", tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.fixture
def planned(write: Callable[..., Path], tiny_model: Path, adapter: Path) -> Callable[..., Plan]:
    """Return a function that plans the small run from the adapter, with changes."""

    def plan(*changes: str, base: Path = tiny_model, adapter: Path = adapter) -> Plan:
        model = {"base": str(base), "load_in": "fp32", "max_length": 128, "adapter": str(adapter)}
        return plan_pipeline(load_config(write(), [f"model={json.dumps(model)}", *changes]), load_registry())

    return plan


def build_until(plan: Plan, *until: str) -> dict[str, Path]:
    """Build the stages of a plan until the last of these. Return their folders."""
    built = {}
    for name, call in plan.calls().items():
        built[name] = build_here(call, Listener())[0].path
        if name == until[-1]:
            break
    return built


def first_metrics(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    return found


def plain_logps(base: Path, adapter: Path, ids: tuple[int, ...], start: int) -> float:
    """Return the log-probability of a completion by plain peft."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    with torch.no_grad():
        logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return float(sum(logps[place - 1, ids[place]] for place in range(start, len(ids))))


def test_sft_starts_from_the_adapter(planned: Callable[..., Plan], tiny_model: Path, adapter: Path) -> None:
    built = build_until(planned("sft.batch_size=1000"), "sft")
    rows = read_dataset(built["ingest"]).train.demonstrations
    sequences = [row.sequences["demonstration"] for row in rows]
    loss = -sum(plain_logps(tiny_model, adapter, one.ids, one.start) for one in sequences)
    assert first_metrics(built["sft"])["loss"] == pytest.approx(loss / sum(one.targets for one in sequences), rel=1e-5)
    saved = json.loads((built["sft"] / "adapter_config.json").read_text())
    assert (saved["r"], saved["lora_alpha"], saved["target_modules"]) == (3, 5, ["down_proj", "q_proj"])


def test_without_sft_policy_and_reference_are_the_adapter(
    planned: Callable[..., Plan], tiny_model: Path, adapter: Path
) -> None:
    plan = planned("sft=null", "optimizer.batch_size=1000")
    assert plan.sft is None
    assert plan.adapter is not None
    assert plan.optimize.parents["sft"] == plan.adapter.key
    built = build_until(plan, "optimize")
    first = first_metrics(built["optimize"])
    assert first["loss"] == pytest.approx(0.693147, abs=1e-5)  # ln 2: nothing has been learned yet
    rows = read_dataset(built["ingest"]).train.preferences
    chosen = [row.sequences["chosen"] for row in rows]
    logps = sum(plain_logps(tiny_model, adapter, one.ids, one.start) for one in chosen) / len(chosen)
    assert first["logps_chosen"] == pytest.approx(logps, rel=1e-5)


def test_its_own_template_is_used_unless_the_settings_name_one(planned: Callable[..., Plan], adapter: Path) -> None:
    (adapter / "chat_template.jinja").write_text("{{ 'adapter' }}")
    assert planned().ingest.config["chat_template"] == "{{ 'adapter' }}"
    assert "Assistant:" in planned("model.chat_template=plain").ingest.config["chat_template"]


def test_its_content_and_the_dropout_are_in_the_keys(planned: Callable[..., Plan], adapter: Path) -> None:
    first = planned().optimize.key
    shutil.copytree(adapter, adapter.parent / "elsewhere")
    assert planned(adapter=adapter.parent / "elsewhere").optimize.key == first
    assert planned("model.lora.dropout=0.1").optimize.key != first
    edit_json(adapter / "adapter_config.json", lora_alpha=6)
    assert planned().optimize.key != first


def test_its_shape_is_kept(planned: Callable[..., Plan]) -> None:
    assert planned("model.lora.rank=3").optimize.config["lora"] == LORA.model_dump(mode="json") | {
        "target_modules": ["down_proj", "q_proj"]
    }
    with pytest.raises(ConfigError, match=r"model\.lora\.rank.*got 8, expected 3"):
        planned("model.lora.rank=8")


def test_adapter_beside_the_weights(planned: Callable[..., Plan], tiny_model: Path, adapter: Path) -> None:
    both = Path(shutil.copytree(tiny_model, adapter.parent / "both"))
    shutil.copytree(adapter, both, dirs_exist_ok=True)
    one, other = (
        build_until(planned("sft=null", "optimizer.batch_size=1000", base=base, adapter=base_adapter), "optimize")
        for base, base_adapter in ((tiny_model, adapter), (both, both))
    )
    assert first_metrics(one["optimize"]) == first_metrics(other["optimize"])


def test_adapter_of_another_model_is_refused_before_the_weights_are_loaded(
    planned: Callable[..., Plan], tiny_model: Path, adapter: Path
) -> None:
    wide = Path(shutil.copytree(tiny_model, adapter.parent / "wide"))
    edit_json(wide / "config.json", hidden_size=64)
    call = planned(base=wide).adapter
    assert call is not None
    with pytest.raises(ModelError, match="does not fit the base model"):
        build_here(call, Listener())


@pytest.mark.parametrize("target", ["lm_head", "nonsense"])
def test_adapter_on_the_head_or_on_nothing_is_refused(planned: Callable[..., Plan], adapter: Path, target: str) -> None:
    edit_json(adapter / "adapter_config.json", target_modules=[target])
    call = planned().adapter
    assert call is not None
    with pytest.raises(ModelError, match="output head" if target == "lm_head" else "does not fit"):
        build_here(call, Listener())


def test_another_base_in_its_configuration_is_said(planned: Callable[..., Plan], adapter: Path) -> None:
    def warnings() -> Any:
        call = planned().adapter
        assert call is not None
        return build_here(call, Listener())[0].manifest().metrics["warnings"]

    assert warnings() == []
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="owner/other-model")
    assert "it was trained on owner/other-model" in warnings()[0]


def test_sampling_uses_the_adapter(write: Callable[..., Path], tiny_model: Path, adapter: Path) -> None:
    model = {"base": str(tiny_model), "load_in": "fp32", "adapter": str(adapter)}
    plan = plan_sampling(load_config(write(), [f"model={json.dumps(model)}", "sft=null"]), load_registry())
    assert plan.adapter is not None
    assert (plan.model, plan.sample.parents["sft"]) == (plan.adapter.key, plan.adapter.key)


def test_revision_without_an_adapter(write: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"needs `model\.adapter`"):
        plan_pipeline(load_config(write(), ["model.adapter_revision=main"]), load_registry())
