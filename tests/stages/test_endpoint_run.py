"""A judge endpoint in a complete run: its requests, the win rate from its verdicts, and the gate."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from judge import Judge, Reply, playing, reply_with

from alignment_core.config import PipelineConfig
from alignment_core.execution.build import build_here
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.progress import Silent
from alignment_core.registry import load_registry

PROMPTS = 8


@pytest.fixture
def judge() -> Iterator[tuple[Judge, str]]:
    with playing() as found:
        yield found


def shorter(first: str, second: str, number: int) -> Reply:
    """Prefer the shorter response in either position."""
    return reply_with("TIE" if len(first) == len(second) else "A" if len(first) < len(second) else "B")


@pytest.fixture
def run(tiny_model: Path, tmp_path: Path, judge: tuple[Judge, str]) -> Callable[[str], dict[str, Path]]:
    """Return a function that runs the pipeline into the named store and returns the folder of each stage."""
    rows = [{"prompt": f"What is {n} plus {n}?", "chosen": f"It is {2 * n}.", "rejected": "No!"} for n in range(24)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    step = {"batch_size": 8, "learning_rate": 1e-2}

    def make(store: str) -> dict[str, Path]:
        config = PipelineConfig.model_validate(
            {
                "model": {"base": str(tiny_model), "load_in": "fp32", "max_length": 128, "lora": {"rank": 2}},
                "data": {"sources": [{"path": str(tmp_path / "pairs.jsonl")}], "held_out_fraction": 0.5},
                "sft": step,
                "optimizer": {"name": "dpo", **step},
                "evaluation": {
                    "max_prompts": PROMPTS,
                    "max_new_tokens": 12,
                    "endpoint": {"url": judge[1], "model": "judge-1"},
                },
                "gate": {},
                "store": str(tmp_path / store),
                "device": "cpu",
            }
        )
        return {
            name: build_here(call, Silent())[0].path
            for name, call in plan_pipeline(config, load_registry()).calls().items()
        }

    return make


def metrics(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())["metrics"]
    return found


def test_verdicts_give_the_win_rate_and_the_gate_uses_the_endpoint(
    run: Callable[[str], dict[str, Path]], judge: tuple[Judge, str]
) -> None:
    server, _ = judge
    server.reply = shorter
    built = run("store")
    lines = [json.loads(line) for line in (built["over_sft"] / "verdicts.jsonl").read_text().splitlines()]
    assert len(lines) == PROMPTS
    for line in lines:
        ours, theirs = len(line["response"]), len(line["opponent"])
        assert line["verdicts"] == {"endpoint": (ours < theirs) - (ours > theirs)}
    # Each pair of responses was shown in both orders.
    asked = Counter(request["messages"][1]["content"].partition("\n\n[response A]\n")[2] for request in server.requests)
    shown = Counter[str]()
    for line in lines:
        for first, second in ((line["response"], line["opponent"]), (line["opponent"], line["response"])):
            shown[f"{first}\n\n[response B]\n{second}"] += 1
    assert asked == shown
    measured = metrics(built["over_sft"])
    wins = sum(line["verdicts"]["endpoint"] > 0 for line in lines)
    assert measured["win_rate"]["endpoint"]["wins"] == wins > 0
    none = dict.fromkeys(("disagreed", "bad_answer", "unreachable", "retries", "equal"), 0)
    assert measured["endpoint"] == {"agreed": PROMPTS, **none}
    assert metrics(built["gate"])["judge"] == "endpoint"


def test_judge_that_always_answers_a_gives_only_ties(
    run: Callable[[str], dict[str, Path]], judge: tuple[Judge, str]
) -> None:
    server, _ = judge
    server.reply = lambda first, second, number: reply_with("A")
    built = run("store")
    measured = metrics(built["over_sft"])
    rate = measured["win_rate"]["endpoint"]
    assert (rate["wins"], rate["ties"], rate["losses"]) == (0, PROMPTS, 0)
    assert measured["endpoint"]["disagreed"] == PROMPTS
    assert metrics(built["gate"])["passed"] is False
