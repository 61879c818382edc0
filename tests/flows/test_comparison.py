"""Comparisons of optimizers as complete runs: one that fails among others, and what is refused before training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from alignment_core.artifacts import ArtifactStore
from alignment_core.config_file import load_config
from alignment_flows.comparison import compare

Write = Callable[..., Path]

SICK = """
    from typing import Literal
    from alignment_core.plugin_api import AlignmentOptimizer, DataError, Needs, hookimpl

    class Sick(AlignmentOptimizer):
        name: Literal["sick"] = "sick"
        def needs(self): return Needs(preferences=True)
        def batches(self, run):
            raise DataError("feeling ill")
            yield
        def loss(self, run, micro): ...

    @hookimpl
    def alignment_optimizers():
        return [Sick]
"""


@pytest.mark.ci
@pytest.mark.usefixtures("prefect_server")
def test_failed_optimizer_does_not_stop_the_others(write: Write, install: Callable[..., None], tmp_path: Path) -> None:
    install("stranger-sick", SICK)
    config = load_config(write(isolation="inline"))
    out = tmp_path / "comparison"
    state = compare(config, ["sick", "dpo"], [], out, return_state=True)
    assert state.is_failed()
    assert "sick: " in (state.message or "")
    assert "feeling ill" in (state.message or "")
    first = {model["model"]: model for model in json.loads((out / "report.json").read_text())["models"]}
    assert list(first) == ["sft", "sick", "dpo"]
    assert first["sick"]["artifact"] is None
    assert first["dpo"]["error"] is None
    assert first["dpo"]["scores"] == {}, "this run has no judge"
    state = compare(config, ["dpo"], [], out, return_state=True)
    assert state.is_completed()
    (again,) = [model for model in json.loads((out / "report.json").read_text())["models"] if model["model"] == "dpo"]
    assert again["cached"]
    assert again == {**first["dpo"], "cached": True}


@pytest.mark.ci
@pytest.mark.usefixtures("prefect_server")
def test_built_in_optimizers_are_in_one_report(write: Write, tmp_path: Path) -> None:
    """Four of them learn from a reward model that only they need. It scores the responses of all models."""
    on_policy, offline = ["ppo", "grpo", "rloo", "online_dpo"], ["dpo", "kto"]
    small = {"rollouts": 1, "rollout_size": 8, "epochs": 1, "max_new_tokens": 8, "held_out_prompts": 2}
    changes = [f"{name}.{setting}={value}" for name in on_policy for setting, value in small.items()]
    out = tmp_path / "comparison"
    compare(load_config(write(isolation="inline")), [*on_policy, *offline], changes, out)
    models = {model["model"]: model for model in json.loads((out / "report.json").read_text())["models"]}
    assert list(models) == ["sft", *on_policy, *offline]
    assert {model["error"] for model in models.values()} == {None}
    assert {tuple(model["scores"]) for model in models.values()} == {("reward",)}
    learnt_from = {name: set(models[name]["learnt_from"]) for name in models if name != "sft"}
    sampled = {name: {"preferences", "prompts"} for name in on_policy}
    assert learnt_from == {**sampled, "dpo": {"preferences"}, "kto": {"feedback"}}
    assert len({models[name]["seconds_before"] for name in on_policy}) == 1, "one reward model"
    assert len({model["artifact"] for model in models.values()}) == len(models)
    page = (out / "report.html").read_text()
    assert all(f"<bdi>{name}</bdi>" in page for name in (*on_policy, *offline))


@pytest.mark.usefixtures("prefect_server")
def test_nothing_is_trained_if_the_data_lack_what_one_optimizer_needs(write: Write, tmp_path: Path) -> None:
    """Thumbs without a pair: KTO could learn from them, DPO cannot."""
    thumbs = [
        {"prompt": f"What is {n} times {n + 7}?", "completion": f"{n * n}.", "label": n % 2 == 0} for n in range(24)
    ]
    (tmp_path / "thumbs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in thumbs))
    data = {"sources": [{"path": str(tmp_path / "thumbs.jsonl")}], "held_out_fraction": 0.25, "near_duplicates": None}
    config = load_config(write(isolation="inline", data=data, sft=None))
    state = compare(config, ["kto", "dpo"], [], tmp_path / "comparison", return_state=True)
    assert state.is_failed()
    assert "dpo" in (state.message or "")
    assert "the training data contain no preference pairs" in (state.message or "")
    kinds = {artifact.kind for artifact in ArtifactStore(config.store).artifacts()}
    assert kinds == {"ingest", "shard"}


@pytest.mark.ci
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("prefect_server")
def test_nothing_is_trained_if_a_stage_of_one_contender_does_not_fit_into_memory(write: Write, tmp_path: Path) -> None:
    """With 1 MiB, not even the base model can be loaded."""
    config = load_config(write(isolation="inline", memory_gb=2**-10, sft=None))
    state = compare(config, ["dpo", "kto"], [], tmp_path / "comparison", return_state=True)
    assert state.is_failed()
    assert "does not fit into the memory" in (state.message or "")
    kinds = {artifact.kind for artifact in ArtifactStore(config.store).artifacts()}
    assert kinds == {"ingest", "shard"}
