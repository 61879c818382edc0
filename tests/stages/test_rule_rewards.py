"""A run from a config file alone in which rules reward the responses: from kept columns to an evaluated policy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import Listener
from safetensors.torch import load_file

from alignment_core.config_file import load_config
from alignment_core.data.dataset.splits import read_dataset
from alignment_core.errors import PluginError
from alignment_core.execution.build import build_here
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.plugin_api import Rollout, Row, TokenSequence
from alignment_core.registry import load_registry
from alignment_core.stages.optimize import Conversations

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = """
name: rules
model: {base: BASE, load_in: fp32, max_length: 128, lora: {rank: 4}}
data:
  sources: [{path: ROWS, columns: {prompt: question}, keep: [answer]}]
  held_out_fraction: 0.3
sft: null
reward:
  by:
    - {name: numeric_match}
    - {name: regex, pattern: '[a-m]', weight: 0.5}
    - {name: regex, pattern: '[n-z]', weight: -0.25}
  normalise: false
optimizer: {name: ppo, rollouts: 2, rollout_size: 8, batch_size: 8, epochs: 1, max_new_tokens: 8, learning_rate: 1.0e-3,
            held_out_every: 1, held_out_prompts: 4, held_out_measure: {name: numeric_match}}
evaluation: {max_prompts: 4, max_new_tokens: 8, evaluators: [{name: numeric_match}, {name: regex, pattern: '[a-m]'}]}
store: STORE
device: cpu
isolation: inline
"""


def built(path: Path) -> tuple[dict[str, Path], Listener]:
    plan, progress = plan_pipeline(load_config(path), load_registry()), Listener()
    return {name: build_here(call, progress)[0].path for name, call in plan.calls().items()}, progress


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def config(tiny_model: Path, tmp_path: Path) -> Path:
    rows = [
        {"question": f"How many are {n} and {n + 1} x{n * n}?", "answer": f"so\n#### {2 * n + 1}"} for n in range(24)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = SETTINGS.replace("BASE", str(tiny_model)).replace("ROWS", str(tmp_path / "rows.jsonl"))
    (tmp_path / "rules.yaml").write_text(text.replace("STORE", str(tmp_path / "store")))
    return tmp_path / "rules.yaml"


def test_ppo_with_rules(config: Path) -> None:
    found, _ = built(config)
    assert "reward" not in found
    history = [entry for entry in lines(found["optimize"] / "metrics.jsonl") if "raw_score" in entry]
    assert len(history) == 2
    for entry in history:
        parts = [entry[f"raw_score_{name}"] for name in ("numeric_match", "regex", "regex_2")]
        assert entry["raw_score"] == pytest.approx(parts[0] + 0.5 * parts[1] - 0.25 * parts[2], abs=1e-6)
        assert all(0 <= part <= 1 for part in parts)
    assert history[0]["raw_score_regex"] > 0
    for name in ("evaluate", "evaluate_sft"):
        responses = lines(found[name] / "responses.jsonl")
        assert len(responses) == 4
        for line in responses:
            assert line["regex"] == float(any(letter in line["response"] for letter in "abcdefghijklm"))
            n = int(line["prompt"][-1]["content"].split()[3])
            if str(2 * n + 1) not in line["response"]:
                assert line["numeric_match"] == 0
    value = load_file(found["optimize"] / "value" / "adapter_model.safetensors")
    assert value["base_model.model.score.weight"].abs().max() < 0.1  # it started at zero


def test_the_value_model_starts_with_a_zero_head(config: Path) -> None:
    config.write_text(config.read_text().replace("1.0e-3", "1.0e-30"))
    found, _ = built(config)
    value = load_file(found["optimize"] / "value" / "adapter_model.safetensors")
    assert torch.count_nonzero(value["base_model.model.score.weight"].abs() > 1e-25) == 0


def test_a_row_without_the_answer_is_named(config: Path, tmp_path: Path) -> None:
    from alignment_core.errors import DataError

    rows = lines(tmp_path / "rows.jsonl")
    for row in rows[1:]:
        row["answer"] = "nothing"
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"numeric_match, row [0-9a-f]{16}: the fact `answer` gives no number"):
        built(config)


def test_ranked_responses_keep_the_facts(config: Path) -> None:
    ranked = "sample: {responses_per_prompt: 4, max_new_tokens: 8, max_prompts: 8}\n"
    ranked += "rank: {by: {name: regex, pattern: '[a-f]'}}\noptimizer: {name: dpo}\n"
    text = config.read_text()
    config.write_text(text[: text.index("reward:")] + ranked + text[text.index("store:") :])
    plan, progress = plan_pipeline(load_config(config), load_registry()), Listener()
    assert plan.sample is not None
    assert plan.rank is not None
    for call in (plan.ingest, plan.sample, plan.rank):
        folder = build_here(call, progress)[0].path
    rows = read_dataset(folder).train.preferences
    assert len(rows) > 0
    assert all(row.facts.keys() == {"answer"} for row in rows)


def test_evaluators_judge_responses_to_any_prompt_of_the_data(config: Path) -> None:
    """An optimizer may make prompts from demonstrations, as SPIN does, with ids that no prompt of the data has."""
    config.write_text(config.read_text().replace("{prompt: question}", "{prompt: question, completion: answer}"))
    folder = build_here(plan_pipeline(load_config(config), load_registry()).ingest, Listener())[0].path
    data = read_dataset(folder)
    conversations = Conversations(data, {"data": folder})
    sequence = data.train.demonstrations[0].sequences["demonstration"]
    asked = conversations.of(Rollout(Row("own", {}), sequence, True, ""))
    assert [turn["role"] for turn in asked] == ["user"]
    assert asked[0]["content"].startswith("How many are")
    with pytest.raises(PluginError, match=r"no record has the prompt of this response\. got the row own"):
        conversations.of(Rollout(Row("own", {}), TokenSequence((3, 4, 5), 2), True, ""))


@pytest.mark.ci
def test_the_recipe_for_arithmetic_runs(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recipe with fewer rows and steps. Which responses count is checked against the rules themselves."""
    monkeypatch.setenv("ALIGN_SHARED_DATA", str(shared_data))
    recipe = (ROOT / "deployments" / "configs" / "gsm8k-ppo-stories260k.yaml").read_text()
    for old, new in (
        ("max_records: 300", "max_records: 60"),
        ("epochs: 2", "epochs: 1"),
        ("rollouts: 8, rollout_size: 32", "rollouts: 2, rollout_size: 8"),
        ("max_prompts: 24", "max_prompts: 4"),
        ("load_in: nf4", "load_in: fp32"),
        ("./artifacts", str(tmp_path / "store")),
        ("deployments/configs/stories260k.jinja", str(ROOT / "deployments" / "configs" / "stories260k.jinja")),
    ):
        assert old in recipe
        recipe = recipe.replace(old, new)
    (tmp_path / "recipe.yaml").write_text(recipe + "isolation: inline\ndevice: cpu\n")
    found, _ = built(tmp_path / "recipe.yaml")
    history = [entry for entry in lines(found["optimize"] / "metrics.jsonl") if "raw_score" in entry]
    for entry in history:
        expected = entry["raw_score_numeric_match"] + 0.2 * entry["raw_score_regex"]
        assert entry["raw_score"] == pytest.approx(expected, abs=1e-6)
    # The first rollout sets the units: its mean is 0, minus 1 for each response without an end.
    assert history[0]["score"] == pytest.approx(-history[0]["unfinished_share"], abs=1e-5)
    for line in lines(found["evaluate"] / "responses.jsonl"):
        assert line["regex"] == float(any(digit in line["response"] for digit in "0123456789"))
