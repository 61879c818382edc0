"""Stages in other work pools: how they are planned, and what is checked on the machine that runs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment_core.artifacts import key_of
from alignment_core.config.pipeline import StageKind
from alignment_core.config_file import load_config
from alignment_core.errors import ConfigError, DataError, ModelError, PluginError
from alignment_core.execution.stage import StageCall, WorkPool
from alignment_core.planning.moved_inputs import check_moved
from alignment_core.planning.pipeline import VERSIONS, Plan, plan_pipeline
from alignment_core.registry import load_registry

WHERE = {"ingest": "cpu", "optimize": "gpu", "evaluate": "gpu"}


@pytest.fixture
def plan(write: Callable[..., Path], tmp_path: Path) -> Callable[..., Plan]:
    """Return a function that plans a small run with these settings."""
    (tmp_path / "remote").mkdir()

    def planned(**changes: Any) -> Plan:
        return plan_pipeline(load_config(write(**changes)), load_registry())

    return planned


def test_where_moves_stages_and_changes_no_key(plan: Callable[..., Plan], tmp_path: Path) -> None:
    moved = plan(where=WHERE, remote=f"file://{tmp_path}/remote", store="here").calls()
    pools = {name: call.runtime.pool for name, call in moved.items()}
    cpu, gpu = (WorkPool(name=name, store=Path("here")) for name in ("cpu", "gpu"))
    assert {name: pool for name, pool in pools.items() if pool} == {
        "ingest": cpu, "optimize": gpu, "evaluate_sft": gpu, "evaluate": gpu,
    }  # fmt: skip
    in_place = plan().calls()
    assert {name: call.key for name, call in moved.items()} == {name: call.key for name, call in in_place.items()}


def test_every_kind_of_stage_of_a_run_can_be_moved() -> None:
    kinds: tuple[str, ...] = StageKind.__args__  # type: ignore[attr-defined]
    elsewhere = {"base", "demo_world", "score"}  # they run before the plan, or in no pipeline
    assert set(kinds) == VERSIONS.keys() - elsewhere


def test_where_needs_a_remote_and_known_stages(plan: Callable[..., Plan]) -> None:
    with pytest.raises(ConfigError, match=r"no remote is set .* got ingest: cpu.* Set `remote`"):
        plan(where={"ingest": "cpu"})
    with pytest.raises(ConfigError, match=r"where\.dpo"):
        plan(where={"dpo": "cpu"})


def test_call_moves_into_the_store_of_the_other_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pool = WorkPool(name="far", store=Path("there"))
    planned = call(store="/here", pool=pool, remote="file:///shared")
    planned = planned.model_copy(update={"inputs": {"model": {"path": "/here/base/k/m"}, "sources": ["/hereafter/x"]}})
    monkeypatch.chdir(tmp_path)
    moved = planned.on_this_machine()
    assert (moved.runtime.store, moved.runtime.pool, moved.runtime.remote) == (
        tmp_path / "there",
        None,
        "file:///shared",
    )
    assert moved.inputs == {"model": {"path": f"{tmp_path}/there/base/k/m"}, "sources": ["/hereafter/x"]}
    assert moved.key == planned.key


def call(**runtime: Any) -> StageCall:
    fields: dict[str, Any] = {"stage": "gate", "config": {}, "parents": {}, "inputs": {}, "runtime": runtime}
    return StageCall(key=key_of(stage="gate", version=VERSIONS["gate"], config={}, parents={}), label="gate", **fields)


def test_same_machine_passes_the_check(plan: Callable[..., Plan]) -> None:
    evaluators = [{"name": "wordlist", "wanted": ["x"]}]
    calls = plan(evaluation={"max_prompts": 2, "max_new_tokens": 8, "evaluators": evaluators}, gate={}).calls()
    assert {call.stage for call in calls.values()} >= {"ingest", "sft", "optimize", "evaluate", "head_to_head", "gate"}
    for each in calls.values():
        check_moved(each, load_registry())


def test_other_data_models_and_versions_are_refused(plan: Callable[..., Plan], tmp_path: Path) -> None:
    registry, calls = load_registry(), plan().calls()
    optimize = calls["optimize"]
    with pytest.raises(ConfigError, match="different versions of Alignment Flows"):
        check_moved(optimize.model_copy(update={"key": "0" * 64}), registry)
    with pytest.raises(PluginError, match=r"dpo: .*another version of a plugin.* expected .*7\.7"):
        check_moved(with_config(optimize, plugin={**optimize.config["plugin"], "version": "7.7"}), registry)
    with pytest.raises(ModelError, match="the model on this machine differs"):
        check_moved(with_config(optimize, base="another digest"), registry)
    with pytest.raises(ModelError, match="the model on this machine differs"):
        check_moved(with_config(calls["ingest"], tokenizer="another digest"), registry)
    rows = tmp_path / "pairs.jsonl"
    rows.write_text(rows.read_text() * 2)
    with pytest.raises(DataError, match=r"pairs\.jsonl: the data on this machine differ"):
        check_moved(calls["ingest"], registry)
    check_moved(optimize, registry)  # it reads no raw data


def with_config(planned: StageCall, **changes: Any) -> StageCall:
    """Return the call as it would be planned with other settings."""
    config = {**planned.config, **changes}
    key = key_of(stage=planned.stage, version=VERSIONS[planned.stage], config=config, parents=planned.reads())
    return planned.model_copy(update={"config": config, "key": key})
