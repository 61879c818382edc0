"""The Python API: the same results as the commands on a small real run, and no heavy imports."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import alignment_flows as af
from alignment_core.feedback import Rater, open_feedback


@pytest.fixture
def settings(write: Callable[..., Path]) -> af.PipelineConfig:
    return af.load_settings(write(isolation="inline"))


def test_import_loads_nothing_heavy_and_every_name_exists() -> None:
    code = "import sys, alignment_flows; print({'torch', 'prefect', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    assert [name for name in af.__all__ if not hasattr(af, name)] == []
    assert set(af.__all__) <= set(dir(af))
    with pytest.raises(AttributeError, match="no attribute 'aling'"):
        _ = af.aling


def test_settings_from_a_file_a_mapping_and_changes(write: Callable[..., Path]) -> None:
    path = write()
    from_file = af.load_settings(path, {"optimizer.beta": 0.3, "sft": None})
    assert (from_file.optimizer["beta"], from_file.sft) == (0.3, None)
    assert af.load_settings(json.loads(path.read_text()), ["optimizer.beta=0.3", "sft=null"]) == from_file
    changed = af.change_settings(from_file, {"data.held_out_fraction": 0.5, "name": "other"})
    assert (changed.data.held_out_fraction, changed.name) == (0.5, "other")
    assert from_file.name == "small"
    with pytest.raises(af.AlignmentError, match="seeed"):
        af.change_settings(from_file, {"seeed": 1})


def test_data_check_without_training(write: Callable[..., Path], tmp_path: Path) -> None:
    write()
    report = af.check_data(tmp_path / "pairs.jsonl", held_out_fraction=0.25, out=tmp_path / "report")
    rows = report["rows"]
    assert rows["train"]["preferences"] + rows["held_out"]["preferences"] == 24
    assert (tmp_path / "report" / "report.html").is_file()
    with pytest.raises(af.AlignmentError, match="exists"):
        af.check_data(tmp_path / "pairs.jsonl", out=tmp_path / "report")


@pytest.mark.usefixtures("prefect_server")
def test_plan_run_generate_promote_export(settings: af.PipelineConfig, tmp_path: Path) -> None:
    planned = af.plan(settings)
    assert planned.to_build == list(planned.calls)
    planned.check_memory()
    run = af.run(settings)
    assert (run.adapter / "adapter_model.safetensors").is_file()
    assert run.metrics["prompts"] == 2
    assert af.plan(settings).to_build == []

    store = settings.store
    assert af.open_artifact("latest", store).path == run.adapter
    with pytest.raises(af.AlignmentError, match=r"`latest` is promoted only if it passed the gate.* was not judged"):
        af.promote("latest", store=store)
    with pytest.warns(UserWarning, match="of the run `small` was not judged by a gate"):
        change = af.promote("small", reason="a test", store=store)
    assert (change.kind, change.reason) == ("optimize", "a test")
    assert af.open_artifact("production", store).path == run.adapter
    model = af.load_model("production", store, device="cpu")
    first = model.generate("What is 2 plus 2?", max_new_tokens=5, seed=1)
    assert first == model.generate([{"role": "user", "content": "What is 2 plus 2?"}], max_new_tokens=5, seed=1)
    texts: list[str] = []
    answer = model.answer("Hello", max_new_tokens=4, temperature=0, on_text=texts.append)
    assert texts[-1] == answer.text
    assert answer.end == ("length" if len(texts) == 4 else "finished")
    assert model.answer("Hello", stopping=lambda: True).end == "stopped"

    exported = af.export("production", "adapter", tmp_path / "exported", store=store)
    assert Path(exported.place).is_dir()
    with pytest.raises(af.AlignmentError, match="alias"):
        af.rollback("no-such-alias", store=store)


@pytest.mark.usefixtures("prefect_server")
def test_answers_are_those_of_the_trained_policy(settings: af.PipelineConfig) -> None:
    """Greedy answers equal those of plain transformers and peft with the same tokens."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run = af.run(settings)
    model = af.load_model("latest", settings.store, device="cpu")
    answer = model.answer("What is 3 plus 3?", max_new_tokens=6, temperature=0)
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(settings.model.base), run.adapter)
    template = (run.adapter / "chat_template.jinja").read_text()
    text = model.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 3 plus 3?"}],
        chat_template=template,
        add_generation_prompt=True,
        tokenize=False,
    )
    ids = torch.tensor([model.tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        out = plain.generate(input_ids=ids, max_new_tokens=6, do_sample=False, eos_token_id=2, pad_token_id=0)
    assert answer.text == model.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True).lstrip(" ")


@pytest.mark.usefixtures("prefect_server")
def test_comparison_reports_each_optimizer(settings: af.PipelineConfig, tmp_path: Path) -> None:
    changes = {"kto.batch_size": 8, "seed": 1}
    comparison = af.compare(settings, ["dpo", "kto"], changes, tmp_path / "report")
    assert [(row.model, row.error) for row in comparison.rows] == [("sft", None), ("dpo", None), ("kto", None)]
    assert comparison.rows[2].settings["batch_size"] == 8
    assert (tmp_path / "report" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_comparison_of_every_built_in_optimizer(settings: af.PipelineConfig, tmp_path: Path) -> None:
    on_policy = ["ppo", "grpo", "rloo", "online_dpo"]
    short = {"rollouts": 2, "rollout_size": 8, "epochs": 1, "max_new_tokens": 4}
    changes = {f"{name}.{setting}": value for name in on_policy for setting, value in short.items()}
    names = [*on_policy, "dpo", "kto"]
    comparison = af.compare(settings, names, changes, tmp_path / "report")
    assert [(row.model, row.error) for row in comparison.rows] == [("sft", None), *((name, None) for name in names)]
    assert list(comparison.curves) == names
    assert all("reward" in row.scores for row in comparison.rows)
    page = (tmp_path / "report" / "report.html").read_text()
    assert all(f"name: &#34;{name}&#34;" in page or f'name: "{name}"' in page for name in names)


@pytest.mark.usefixtures("prefect_server")
def test_retraining_waits_for_votes(settings: af.PipelineConfig, tmp_path: Path) -> None:
    with_gate = af.change_settings(
        settings, {"gate": {}, "feedback": str(tmp_path / "votes.db"), "evaluation.reward_model": True}
    )
    with pytest.raises(af.AlignmentError, match=r"votes\.db"):
        af.retrain(with_gate)
    prompt = ({"role": "user", "content": "What is 1 plus 1?"},)
    with open_feedback(str(tmp_path / "votes.db")) as store:
        store.thumb(Rater("ann", "human"), store.add_response(prompt, "It is 2.", ""), up=True)
    for skipped in (af.plan_retraining(with_gate), af.retrain(with_gate)):
        assert isinstance(skipped, af.TooFewVotes)
        assert (skipped.votes, skipped.needed) == (1, 50)


@pytest.mark.usefixtures("prefect_server")
def test_flows_compose_in_a_custom_flow(settings: af.PipelineConfig) -> None:
    from prefect import flow, task

    @task
    def notify(uri: str) -> str:
        return f"new adapter: {uri}"

    @flow
    def nightly() -> Any:
        stages = af.align(settings)
        return notify(stages["optimize"].artifact.uri)

    assert nightly() == f"new adapter: {af.open_artifact('latest', settings.store).uri}"


@pytest.mark.usefixtures("prefect_server")
def test_run_inside_an_event_loop(settings: af.PipelineConfig) -> None:
    """A notebook runs its cells inside an event loop."""

    async def cell() -> Path:
        return af.run(settings).adapter

    assert asyncio.run(cell()).is_dir()
