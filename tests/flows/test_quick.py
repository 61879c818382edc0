"""The quick flow runs what `align` runs with the same settings. What its form leaves out is from the config file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment_core.config import PipelineConfig
from alignment_core.config_file import load_config
from alignment_core.errors import ConfigError
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.registry import load_registry
from alignment_flows.pipeline import align
from alignment_flows.quick import quick, read_quick
from alignment_flows.serve.deployments.declared import quick_values, recipe


def keys(config: PipelineConfig) -> dict[str, str]:
    """Return the cache keys of the stages of a run."""
    return {name: call.key for name, call in plan_pipeline(config, load_registry()).calls().items()}


def read(given: dict[str, Any]) -> PipelineConfig:
    """Read the values of a form as the flow does."""
    more = {"name": given["name"], "device": given["card"], "memory_gb": given["memory_gb"]}
    return read_quick(given["config"], given["data"], given["model"], given["optimizer"], **more)


def test_form_as_it_opens_has_the_cache_keys_of_align(write: Callable[..., Path]) -> None:
    path = write(optimizer={"name": "kto", "beta": 0.3, "schedule": "linear", "batch_size": 8}, memory_gb=7)
    given = quick_values(path, str(path))
    assert "schedule" not in given["optimizer"]
    assert (given["card"], given["memory_gb"]) == ("cpu", 7)
    assert keys(read(given)) == keys(load_config(path))
    changed = {**given, "optimizer": {**given["optimizer"], "beta": 0.4}, "name": "other"}
    assert keys(read(changed)) == keys(load_config(path, ["optimizer.beta=0.4"])) != keys(load_config(path))


@pytest.mark.parametrize("name", ["gpu-8gb-ppo-qwen2.5-0.5b", "gpu-12gb-dpo-qwen2.5-1.5b", "gpu-16gb-kto-llama3.2-3b"])
def test_form_of_a_recipe_as_it_opens_has_its_settings(name: str) -> None:
    given, config = recipe(name)["quick"], read_quick(name)
    read_config, registry = read(given), load_registry()
    assert registry.optimizer(read_config.optimizer) == registry.optimizer(config.optimizer)
    assert read_config.model_copy(update={"optimizer": config.optimizer}) == config


@pytest.mark.usefixtures("prefect_server")
def test_run_finds_the_stages_of_align(write: Callable[..., Path]) -> None:
    path = write(isolation="inline")
    stages = align(load_config(path))
    again = quick(**quick_values(path, str(path)))
    assert again.keys() == stages.keys()
    assert all(stage.cached for stage in again.values())


@pytest.mark.parametrize("empty", [("", (), "", {}, "", 0), (None,) * 6])
def test_empty_values_are_from_the_config_file(empty: tuple[Any, ...], write: Callable[..., Path]) -> None:
    path = write(seed=3, memory_gb=7)
    given = dict(zip(("name", "data", "model", "optimizer", "card", "memory_gb"), empty, strict=True))
    assert read({**given, "config": str(path)}) == load_config(path)


def test_values_replace_those_of_the_config_file(write: Callable[..., Path]) -> None:
    sources = [{"path": "a.jsonl", "weight": 0.5}, {"path": "a.jsonl", "weight": 0.1}, {"path": "b.jsonl"}]
    model = {"base": "a/model", "revision": "old", "max_length": 64}
    path = write(data={"sources": sources, "held_out_fraction": 0.3})
    path.write_text(json.dumps({**json.loads(path.read_text()), "model": model}))
    config = read_quick(
        str(path), ["c.jsonl", "a.jsonl"], "b/model", {"name": "kto", "beta": 0.4, "desirable_weight": None},
        name="mine", device="cuda:1",
    )  # fmt: skip
    assert [(source.path, source.weight) for source in config.data.sources] == [
        *(("c.jsonl", 1), ("a.jsonl", 0.5), ("a.jsonl", 0.1)),
    ]
    assert config.data.held_out_fraction == 0.3
    assert (config.model.base, config.model.revision, config.model.max_length) == ("b/model", None, 64)
    assert config.optimizer == {"name": "kto", "beta": 0.4}
    assert (config.name, config.device) == ("mine", "cuda:1")
    assert read_quick(str(path), model="a/model").model.revision == "old"


def test_unknown_recipe_and_wrong_values_are_config_errors(write: Callable[..., Path]) -> None:
    with pytest.raises(ConfigError, match=r"no such recipe or config file.*Did you mean `gpu-8gb-ppo-qwen2.5-0.5b`"):
        read_quick("gpu-8gb-ppo")
    path = write()
    with pytest.raises(ConfigError, match="memory_gb: invalid value"):
        read_quick(str(path), memory_gb=-1)
    with pytest.raises(ConfigError, match="name: invalid value"):
        read_quick(str(path), name="my run")
    path.write_text(json.dumps({"model": {"base": "a/model"}}))
    with pytest.raises(ConfigError, match="data: this setting is missing"):
        read_quick(str(path), ["a.jsonl"])
