"""lm-eval on the aligned model and the SFT model, compared with plain PEFT on the same texts, without a network."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment_core.artifacts import ArtifactStore
from alignment_core.config import PipelineConfig
from alignment_core.errors import ConfigError
from alignment_core.execution.build import build_here
from alignment_core.planning import lm_eval as lm_eval_planning
from alignment_core.planning.pipeline import Plan, plan_pipeline
from alignment_core.progress import Silent
from alignment_core.registry import load_registry

TASK = """
task: after_words
dataset_path: json
dataset_kwargs:
  data_files: {{test: {rows}}}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{asked}}}}"
doc_to_target: " {{{{answer}}}}"
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
DOCUMENTS = [
    {"asked": "Once upon a time there was a little", "answer": "dog"},
    {"asked": "The weather is sunny today, so we can walk to the", "answer": "river"},
    {"asked": "What is two plus three? Two plus three is", "answer": "five"},
]


class Steps(Silent):
    """Progress that keeps what was reported."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def step(self, done: int, total: int, metrics: object = None) -> None:
        self.seen.append((done, total))


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path) -> Callable[..., PipelineConfig]:
    pairs = [{"prompt": f"What is {n} plus {n}?", "chosen": f"It is {2 * n}.", "rejected": "No!"} for n in range(12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DOCUMENTS))
    (tasks / "after_words.yaml").write_text(TASK.format(rows=tasks / "rows.jsonl"))

    def make(**lm_eval: Any) -> PipelineConfig:
        step = {"batch_size": 8, "learning_rate": 3e-2}
        return PipelineConfig.model_validate(
            {
                "model": {"base": str(tiny_model), "load_in": "fp32", "max_length": 128, "lora": {"rank": 2}},
                "data": {"sources": [{"path": str(tmp_path / "pairs.jsonl")}], "held_out_fraction": 0.3},
                "sft": step,
                "optimizer": {"name": "dpo", **step},
                "evaluation": {"lm_eval": {"tasks": ["after_words"], "include_path": str(tasks), **lm_eval}},
                "store": str(tmp_path / "store"),
                "device": "cpu",
            }
        )

    return make


def planned(config: PipelineConfig) -> Plan:
    return plan_pipeline(config, load_registry())


def perplexity_by_peft(base: Path, adapter: Path) -> float:
    """Return exp of the mean negative log-likelihood of a complete answer, which is lm-eval's definition."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoPeftModelForCausalLM.from_pretrained(adapter).eval()
    total = 0.0
    for document in DOCUMENTS:
        start = len(tokenizer(document["asked"]).input_ids)
        ids = torch.tensor([tokenizer(f"{document['asked']} {document['answer']}").input_ids])
        with torch.no_grad():
            logps = model(input_ids=ids).logits.log_softmax(-1)
        total += sum(float(logps[0, place - 1, ids[0, place]]) for place in range(start, ids.shape[1]))
    return math.exp(-total / len(DOCUMENTS))


@pytest.mark.ci
@pytest.mark.timeout(1800)
def test_results_equal_those_of_plain_peft(
    settings: Callable[..., PipelineConfig], tiny_model: Path, tmp_path: Path
) -> None:
    plan = planned(settings(batch_size=2))
    store, found = ArtifactStore(tmp_path / "store"), {}
    for name, call in plan.calls().items():
        if name in ("ingest", "sft", "reference", "optimize", "lm_eval_sft", "lm_eval"):
            build_here(call, steps := Steps())
            found[name] = store.find(call.key)
    for name, adapter in (("lm_eval_sft", "sft"), ("lm_eval", "optimize")):
        measured, trained = found[name], found[adapter]
        assert measured is not None
        assert trained is not None
        expected = perplexity_by_peft(tiny_model, trained.path)
        assert measured.manifest().metrics["after_words"]["perplexity"] == pytest.approx(expected, rel=1e-4)
        assert json.loads((measured.path / "lm_eval.json").read_text())["n-samples"]["after_words"]["effective"] == 3
    assert steps.seen == [(2, 3), (3, 3)], "two requests at a time"
    with pytest.raises(ConfigError, match=r"lm-eval has no such task\. got no_such_task"):
        planned(settings(tasks=["after_words", "no_such_task"]))


def test_key_covers_what_changes_the_results(settings: Callable[..., PipelineConfig], tmp_path: Path) -> None:
    def keys(**lm_eval: Any) -> tuple[str, str]:
        plan = planned(settings(**lm_eval))
        assert plan.lm_eval_sft is not None
        assert plan.lm_eval is not None
        return plan.lm_eval_sft.key, plan.lm_eval.key

    first = keys()
    assert first[0] != first[1]
    assert keys(batch_size=3) == first
    assert not {*keys(limit=2), *keys(num_fewshot=1)} & {*first}
    (tmp_path / "tasks" / "rows.jsonl").write_text(json.dumps(DOCUMENTS[0]) + "\n")
    assert not {*keys()} & {*first}


def test_mistakes_are_reported(
    settings: Callable[..., PipelineConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="the folder of custom tasks does not exist"):
        planned(settings(include_path=str(tmp_path / "nowhere")))

    def absent(name: str) -> str:
        raise lm_eval_planning.PackageNotFoundError(name)

    monkeypatch.setattr(lm_eval_planning, "version", absent)
    with pytest.raises(ConfigError, match=r"not installed\. Run `pip install \"alignment-flows\[lm-eval\]\"`"):
        planned(settings())
