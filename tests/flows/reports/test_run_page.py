"""The page of a run: the result first, responses with their verdicts, and whatever an optimizer of a stranger logs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment_core.artifacts import ArtifactStore, Manifest, key_of
from alignment_core.config import PipelineConfig
from alignment_core.evaluation.promotion import Promotion
from alignment_core.execution.build import StageResult
from alignment_core.progress import Silent
from alignment_flows.reports.places import page_of
from alignment_flows.reports.run_page import run_page, write_run_page

Built = dict[str, StageResult]
SETTINGS = {"model": {"base": "a/<model>"}, "data": {"sources": [{"path": "x.jsonl"}]}}


def config(name: str = "first-run") -> PipelineConfig:
    return PipelineConfig.model_validate({"name": name, **SETTINGS})


@pytest.fixture
def put(tmp_path: Path) -> Callable[..., StageResult]:
    """Return a function that puts an artifact with metrics and files into a store."""

    def put(
        kind: str, name: str, metrics: dict[str, Any], files: dict[str, Any] | None = None, **more: Any
    ) -> StageResult:
        setting = {"optimizer": {"name": "dpo", "beta": 0.1}, "of": name}
        key = key_of(stage=kind, version=1, config=setting, parents={})
        manifest = Manifest(kind=kind, key=key, version=1, config=setting, metrics=metrics, parents={}, **more)
        with ArtifactStore(tmp_path / "store").building(kind, key, Silent()) as building:
            for file, content in (files or {}).items():
                text = "".join(json.dumps(line) + "\n" for line in content) if isinstance(content, list) else content
                (building.out / file).write_text(text)
            return StageResult(building.publish(manifest), False, 1.0, metrics)

    return put


def answered(texts: list[str]) -> dict[str, Any]:
    prompts = [[{"role": "user", "content": f"Question {n}"}] for n in range(len(texts))]
    lines = [{"prompt": p, "response": text, "rule": len(text)} for p, text in zip(prompts, texts, strict=True)]
    return {"responses.jsonl": lines}


@pytest.fixture
def built(put: Callable[..., StageResult]) -> Built:
    """A run whose model wins one of two prompts and ties on the other."""
    before, after = answered(["a red dog", "same"]), answered(["a blue dog", "same"])
    verdicts = [
        {"prompt": b["prompt"], "response": a["response"], "opponent": b["response"], "verdicts": {"rule": verdict}}
        for a, b, verdict in zip(after["responses.jsonl"], before["responses.jsonl"], (1, 0), strict=True)
    ]
    rate = {"rate": 0.75, "low": 0.55, "high": 0.9, "wins": 1, "ties": 1, "losses": 0, "p_value": 1.0}
    over = {"win_rate": {"rule": rate}, "length_ratio": 1.08}
    history = [{"step": n, "reward_chosen": n, "reward_rejected": -n, "loss": 1 / n} for n in (1, 2, 3)]
    return {
        "ingest": put("ingest", "data", {"used": {"records": 70, "of": 99}}),
        "optimize": put("optimize", "policy", {}, {"metrics.jsonl": history}, seconds=200.0, peak_memory_bytes=2**30),
        "evaluate_sft": put("evaluate", "before", {"prompts": 2, "kl": 0.0}, before),
        "evaluate": put("evaluate", "after", {"prompts": 2, "kl": 1.5, "rule_mean": 7.0}, after),
        "over_sft": put("head_to_head", "over", over, {"verdicts.jsonl": verdicts}),
    }  # fmt: skip


def text_of(page: str) -> str:
    """Return the words of a page without its elements and its style."""
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]*>", " ", page, flags=re.DOTALL).split())


def test_result_comes_first_then_plots_responses_and_numbers(built: Built) -> None:
    promotion = Promotion(True, ("candidate",), ("passed: `win rate` of 0.55",), {})
    page = run_page(config(), built, promotion)
    shown = text_of(page)
    order = (
        "first-run", "dpo beats the base model on 75 % of 2 held-out prompts", "Promoted: the model is now candidate",
        "preferred to the base model 75 %", "KL from the base model 1.5", "length of the answers +8 %",
        "records used 70 of 99", "training time 3.3 min 1.00 GiB", "Preferred to the base model", "a red dog",
    )  # fmt: skip
    assert re.findall(r"<h2>([^<]*)", page) == ["Results", "Responses side by side", "Training", "Numbers"]
    places = [shown.index(part) for part in order]
    assert places == sorted(places)
    assert 'class="big good">75 %' in page
    assert "a <mark>red</mark> dog" in page
    assert "a <mark>blue</mark> dog" in page
    assert "preferred by rule · rule 10" in shown
    assert "a tie by rule · rule 4" in shown
    assert "a/&lt;model&gt;" in page


def test_curves_of_both_sides_are_one_chart(built: Built) -> None:
    page = run_page(config(), built, None)
    titles = re.findall(r"<figcaption><bdi>([^<]*)", page)
    assert titles == [
        "Preferred to the base model",
        "Mean rule against KL",
        "Length of the responses",
        "Loss",
        "Reward",
    ]


def test_run_without_evaluation_and_with_own_metrics(put: Callable[..., StageResult]) -> None:
    """A stranger's optimizer logs thirty metrics of its own, one of them not a number, and nothing is judged."""
    lines = [{"step": n, **{f"own_{k}": float(n * k) for k in range(30)}, "odd": float("nan")} for n in (1, 2)]
    empty = {"prompts": 0}
    stages = {
        "ingest": put("ingest", "data", {}),
        "optimize": put("optimize", "policy", {"warnings": ["`own` is <odd>"]}, {"metrics.jsonl": lines}),
        "evaluate_sft": put("evaluate", "before", empty, {"responses.jsonl": []}),
        "evaluate": put("evaluate", "after", empty, {"responses.jsonl": []}),
    }
    page = run_page(config(), stages, None)
    assert page.count("<figure>") == 30
    assert "24 more metrics" in page
    assert "<code>own</code> is &lt;odd&gt;" in page
    assert "side by side" not in page
    del stages["evaluate_sft"], stages["evaluate"]
    assert "Numbers" in run_page(config(), stages, None)


def test_long_and_right_to_left_responses(built: Built, put: Callable[..., StageResult]) -> None:
    long = "كلمة " * 2000
    built["evaluate"] = put("evaluate", "long", {"prompts": 2}, answered([long, ""]))
    page = run_page(config(), built, None)
    assert page.count('dir="auto"') >= 4
    assert "9,100 more characters" in page
    assert "(no text)" in page


def test_page_is_in_the_store_and_no_artifact(built: Built, tmp_path: Path) -> None:
    name = "first-run"
    key = built["optimize"].artifact.key[:12]
    place = page_of(name, built)
    assert place == tmp_path / "store" / "reports" / f"first-run-{key}.html"
    assert write_run_page(config(name), built, None) == place
    assert [file.name for file in place.parent.iterdir()] == [place.name]
    assert {artifact.kind for artifact in ArtifactStore(tmp_path / "store").artifacts()} == {
        "ingest", "optimize", "evaluate", "head_to_head",
    }  # fmt: skip
