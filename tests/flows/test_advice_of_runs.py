"""The adviser on real runs of a tiny model: what goes wrong in each of them is what its advice names."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from alignment_core.config_file import load_config
from alignment_flows.pipeline import align
from alignment_flows.reports.result import advice_on_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800), pytest.mark.usefixtures("prefect_server")]

TEMPLATE = Path(__file__).resolve().parents[2] / "deployments" / "configs" / "stories260k.jinja"
NAMES = ["Lily", "Tom", "Ben", "Anna", "Max", "Sue"]
THINGS = ["ball", "cat", "dog", "tree", "bird", "car", "hat", "cake"]
PLACES = ["park", "house", "garden", "shop"]
LONG = "One day, {name} went to the {place} and saw a big {thing}. {name} was very happy and played all day."
LIKES_LONG = {"name": "length_band", "least": 10, "slack": 10}
"""A judge that likes what the raters dislike."""


def pairs(count: int, *, meaningless: bool = False) -> list[dict[str, Any]]:
    """Return pairs whose chosen answer is the short one, or either, drawn at random. One rater gave most of them."""
    drawn = random.Random(0)
    asked = [{"name": name, "thing": thing, "place": place} for name in NAMES for thing in THINGS for place in PLACES]
    rows = []
    for number, about in enumerate(drawn.sample(asked, count)):
        answers = ["The end.", LONG.format(**about)]
        if meaningless and drawn.random() < 0.5:
            answers.reverse()
        prompt = "Tell {name} about the {thing} in the {place}.".format(**about)
        rater = "Ann" if number % 4 else "Ben"
        rows.append({"prompt": prompt, "chosen": answers[0], "rejected": answers[1], "rater": rater})
    return rows


def without_meaning(count: int) -> list[dict[str, Any]]:
    """Return demonstrations of which nothing can be learned but the words themselves."""
    drawn = random.Random(0)
    return [
        {"prompt": f"Say {number}", "completion": " ".join(drawn.choices([*NAMES, *THINGS, *PLACES], k=12))}
        for number in range(count)
    ]


def rules_of(folder: Path, model: Path, sources: Mapping[str, list[dict[str, Any]]], **settings: Any) -> set[str]:
    """Run the pipeline on the rows of the files. Return the rules that speak at its end."""
    for name, rows in sources.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "model": {
            "base": str(model),
            "chat_template": str(TEMPLATE),
            "max_length": 128,
            "lora": {"rank": 16, "alpha": 32},
        },
        "data": {"sources": [{"path": str(folder / name)} for name in sources], "held_out_fraction": 0.3},
        "store": str(folder / "store"),
        "device": "cpu",
        "isolation": "inline",
        **settings,
    }
    file = folder / "run.yaml"
    file.write_text(json.dumps(config))
    return {each.rule for each in advice_on_run(align(load_config(file)))}


def test_model_that_learned_only_that_raters_like_short_answers(tmp_path: Path, stories260k: Path) -> None:
    found = rules_of(
        tmp_path,
        stories260k,
        {"pairs.jsonl": pairs(160)},
        reward={"epochs": 3, "batch_size": 16, "learning_rate": 2e-3},
        optimizer={"name": "dpo", "learning_rate": 1e-3, "batch_size": 8, "epochs": 2, "sft_weight": 1.0},
        evaluation={"max_prompts": 32, "max_new_tokens": 24, "reward_model": True, "evaluators": [LIKES_LONG]},
    )
    assert {"length-drifts", "judges-disagree", "worse-than-start", "one-rater"} <= found
    assert not {"hardly-moved", "reward-at-chance", "worse-on-held-out", "few-steps"} & found


def test_memorized_demonstrations_and_judgments_at_random(tmp_path: Path, stories260k: Path) -> None:
    found = rules_of(
        tmp_path,
        stories260k,
        {"pairs.jsonl": pairs(96, meaningless=True), "demonstrations.jsonl": without_meaning(40)},
        sft={"epochs": 40, "batch_size": 8, "learning_rate": 5e-3},
        reward={"epochs": 1, "batch_size": 16},
        optimizer={"name": "dpo", "epochs": 1},
        evaluation={"max_prompts": 4, "max_new_tokens": 8, "reward_model": True},
    )
    assert {"worse-on-held-out", "reward-at-chance", "few-steps", "few-held-out-prompts"} <= found
    assert not {"judges-disagree", "kl-runs-away"} & found


def test_model_that_ran_away_from_where_it_started(tmp_path: Path, stories260k: Path) -> None:
    found = rules_of(
        tmp_path,
        stories260k,
        {"pairs.jsonl": pairs(160)},
        optimizer={"name": "dpo", "learning_rate": 2e-3, "batch_size": 8, "epochs": 3, "beta": 0.01},
        evaluation={"max_prompts": 32, "max_new_tokens": 24},
    )
    assert "kl-runs-away" in found
    assert not {"hardly-moved", "few-steps", "judges-disagree"} & found
