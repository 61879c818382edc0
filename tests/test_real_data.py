"""The recipes for real data, run as a user would, and their adapters opened with third-party libraries."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment_core.config_file import load_config
from alignment_core.plugin_api import TokenSequence

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "deployments" / "configs"
Result = dict[str, Any]


@pytest.fixture(scope="module")
def align_run(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Result]:
    """Return a function that runs a recipe with `align run --json`, in one store per module, and returns the result."""
    store = tmp_path_factory.mktemp("store")

    def run(name: str) -> Result:
        command = [Path(sys.executable).with_name("align"), "run", CONFIGS / f"{name}.yaml"]
        done = subprocess.run(
            [*command, "--set", f"store={store}", "--json"],
            cwd=ROOT,
            env={**os.environ, "ALIGN_SHARED_DATA": str(shared_data)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-5000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


def stage(result: Result, name: str) -> Result:
    return next(stage for stage in result["stages"] if stage["name"] == name)


def folder(uri: str) -> Path:
    return Path(uri.removeprefix("file://"))


def check_adapter(result: Result, base: Path) -> None:
    """Check that the policy is a PEFT folder that loads its base, generates, and differs from the SFT model."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    model = AutoPeftModelForCausalLM.from_pretrained(folder(result["policy"]), adapter_name="policy")
    assert Path(model.peft_config["policy"].base_model_name_or_path).samefile(base)
    model.load_adapter(folder(stage(result, "sft")["uri"]), adapter_name="sft")
    inputs = AutoTokenizer.from_pretrained(base)("User: Tell me a story.\nAssistant:", return_tensors="pt")
    logits = {}
    for adapter in ("policy", "sft"):
        model.set_adapter(adapter)
        with torch.no_grad():
            logits[adapter] = model(**inputs).logits
    assert torch.isfinite(logits["policy"]).all()
    assert not torch.allclose(logits["policy"], logits["sft"], atol=1e-3)
    model.set_adapter("policy")
    generated = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert generated.shape[1] > inputs["input_ids"].shape[1]
    # No pickle: nothing in the folder can run code when it is loaded.
    assert not [path for path in folder(result["policy"]).rglob("*") if path.suffix in {".bin", ".pt", ".pth", ".pkl"}]


def check_offline(result: Result, base: Path) -> None:
    """Check the adapter, and that no reward model is trained, because nothing needs one."""
    check_adapter(result, base)
    names = [entry["name"] for entry in result["stages"]]
    assert names == ["ingest", "sft", "reference", "optimize", "evaluate_sft", "evaluate", "over_sft"]


@pytest.mark.ci
def test_kto_on_thumbs_and_a_cached_second_run(align_run: Callable[[str], Result], stories260k: Path) -> None:
    result = align_run("kto-stories260k")
    check_offline(result, stories260k)

    again = align_run("kto-stories260k")
    assert [entry["cached"] for entry in again["stages"]] == [True] * len(again["stages"])
    assert again["policy"] == result["policy"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_dpo_on_helpful_pairs(align_run: Callable[[str], Result], stories260k: Path) -> None:
    check_offline(align_run("hh-dpo-stories260k"), stories260k)


@pytest.mark.slow
def test_ppo_on_personas(align_run: Callable[[str], Result], stories260k: Path) -> None:
    result = align_run("ppo-stories260k")
    check_adapter(result, stories260k)
    # The task is whether a kind person would say a sentence. Guessing is right half of the time.
    assert stage(result, "reward")["metrics"]["held_out_accuracy"] > 0.7
    before, after = (stage(result, name)["metrics"]["reward_mean"] for name in ("evaluate_sft", "evaluate"))
    assert after > before


@pytest.mark.slow
def test_reward_model_is_a_plain_sequence_classifier(align_run: Callable[[str], Result], stories260k: Path) -> None:
    """`AutoPeftModelForSequenceClassification` gives our scores, on a padded batch of held-out completions."""
    import torch
    from peft import AutoPeftModelForSequenceClassification

    from alignment_core.data.dataset.splits import read_dataset

    result = align_run("ppo-stories260k")
    reward = folder(stage(result, "reward")["uri"])
    rows = read_dataset(folder(stage(result, "ingest")["uri"])).held_out.preferences[:16]
    sequences = [row.sequences[side] for row in rows for side in ("chosen", "rejected")]
    lengths = {len(sequence.ids) for sequence in sequences}
    assert len(lengths) > 1, "nothing would be padded"

    model = AutoPeftModelForSequenceClassification.from_pretrained(reward, num_labels=1)
    pad = model.config.pad_token_id
    ids = torch.full((len(sequences), max(lengths)), pad)
    for row, sequence in zip(ids, sequences, strict=True):
        row[: len(sequence.ids)] = torch.tensor(sequence.ids)
    with torch.no_grad():
        scores = model(input_ids=ids, attention_mask=(ids != pad).long()).logits.squeeze(-1)
    torch.testing.assert_close(scores.float(), our_scores(reward, stories260k, pad, sequences))


def our_scores(reward: Path, base: Path, pad: int, sequences: list[TokenSequence]) -> Any:
    import torch

    from alignment_core.models.base.loading import load_base
    from alignment_core.models.roles.logps import Budget, ScalarModel
    from alignment_core.models.roles.shared_base import Roles

    roles = Roles(load_base(str(base), revision=None, load_in="fp32", device=torch.device("cpu")), str(base))
    roles.add_saved("reward", reward)
    with torch.no_grad():
        return ScalarModel(roles, "reward", pad, Budget(4096)).scores(sequences)


def test_this_file_runs_every_recipe_for_real_data() -> None:
    recipes = {path.stem for path in CONFIGS.glob("*.yaml") if "ALIGN_SHARED_DATA" in path.read_text()}
    elsewhere = {"gsm8k-ppo-stories260k"}  # tests/stages/test_rule_rewards.py
    assert recipes == {"ppo-stories260k", "hh-dpo-stories260k", "kto-stories260k"} | elsewhere
    assert {load_config(CONFIGS / f"{name}.yaml").model.load_in for name in recipes} == {"nf4"}
