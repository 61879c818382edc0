"""Each recipe for a card fits that card, as far as a plan can say."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from shapes import save_shape

from alignment_core.config_file import load_config
from alignment_core.forecast.card import card_size
from alignment_core.forecast.process import Predictor
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.registry import load_registry

CONFIGS = Path(__file__).parent.parent.parent / "deployments" / "configs"
MODELS = {
    "gpu-8gb-ppo-qwen2.5-0.5b": "Qwen2.5-0.5B",
    "gpu-12gb-dpo-qwen2.5-1.5b": "Qwen2.5-1.5B",
    "gpu-16gb-kto-llama3.2-3b": "Llama-3.2-3B",
    "gpu-24gb-dpo-llama3.1-8b": "Llama-3.1-8B",
}


def test_every_recipe_is_planned() -> None:
    assert {path.stem for path in CONFIGS.glob("gpu-*.yaml")} == MODELS.keys()


@pytest.mark.ci
@pytest.mark.parametrize("name", MODELS)
def test_recipe_fits_its_card(name: str, tmp_path: Path) -> None:
    """Pairs of nearly the maximum length: a byte is a token, prompts have 200, completions 400."""
    noise = random.Random(0)
    words = ["".join(noise.choices("abcdefgh", k=400)) for _ in range(128)]
    rows = [
        {"prompt": one[:200], "chosen": one, "rejected": other}
        for one, other in zip(words[::2], words[1::2], strict=True)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = save_shape(MODELS[name], tmp_path / "base")
    sources = json.dumps([{"path": str(tmp_path / "pairs.jsonl")}])
    changes = [f"model.base={base}", f"data.sources={sources}", f"store={tmp_path / 'store'}"]
    config = load_config(CONFIGS / f"{name}.yaml", changes)
    assert config.token_budget == config.gradient_checkpointing == "auto"
    calls = plan_pipeline(config, load_registry()).calls()
    stages = Predictor(calls, list(calls), tmp_path, card_size(name.split("-")[1])).until_full(None)
    assert {"optimize", "evaluate"} <= stages.keys()
    for stage, predicted in stages.items():
        print(stage, f"{predicted.peak / 2**30:.2f}", predicted.token_budget, predicted.gradient_checkpointing)
        assert predicted.fits, stage
        assert predicted.token_budget >= 1024
