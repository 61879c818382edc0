"""An outside optimizer learns from demonstrations, with a snapshot of the policy and weights of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from runs import Listener
from safetensors.torch import load_file

from alignment_core.config_file import load_config
from alignment_core.data.dataset.splits import read_dataset
from alignment_core.errors import DataError
from alignment_core.execution.build import build_here
from alignment_core.execution.stage import StageCall
from alignment_core.forecast.data_preview import DataPreview
from alignment_core.forecast.workload import Workload
from alignment_core.planning.data_needs import check_data
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.registry import load_registry
from alignment_core.stages.reference import read_reference

IMITATOR = """
    from typing import Literal
    from alignment_core.plugin_api import AlignmentOptimizer, LossOutput, Needs, StepBatch, hookimpl

    class Imitator(AlignmentOptimizer):
        name: Literal["imitator"] = "imitator"
        against: Literal["reference", "snapshot"] = "reference"

        def needs(self):
            snapshots = ("first",) if self.against == "snapshot" else ()
            return Needs(demonstrations=True, reference=self.against == "reference", snapshots=snapshots)

        def parameters(self, width):
            return {"scale": 1.0, "head": [0.5] * width}

        def batches(self, run):
            for rows in run.shuffled(run.demonstrations, self.batch_size, self.epochs):
                yield StepBatch(rows)

        def loss(self, run, micro):
            found = micro.sequences("demonstration")
            other = run.reference if self.against == "reference" else run.role("first")
            gains = run.policy.logps(found) - other.logps(found)
            rest = (run.policy.hidden(found) @ run.parameters["head"]).sum()
            return LossOutput((-gains.sum() * run.parameters["scale"] + 0.01 * rest) / micro.denominators["rows"])

    @hookimpl
    def alignment_optimizers():
        return [Imitator]
"""


@pytest.fixture
def calls(write: Callable[..., Path], install: Callable[..., None]) -> Callable[..., dict[str, StageCall]]:
    install("stranger-imitator", IMITATOR)

    def planned(*changes: str) -> dict[str, StageCall]:
        own = ["optimizer={name: imitator, learning_rate: 1e-2, batch_size: 8}", "sft=null", *changes]
        return plan_pipeline(load_config(write(), own), load_registry()).calls()

    return planned


def test_reference_is_cached_and_own_weights_are_saved(calls: Callable[..., dict[str, StageCall]]) -> None:
    plan = calls()
    assert not {"reward", "sft"} & plan.keys()
    data, _ = build_here(plan["ingest"], Listener())
    reference, _ = build_here(plan["reference"], Listener())
    demonstrations = read_dataset(data.path).train.demonstrations
    cached = read_reference(reference.path)
    assert {row.sequences["demonstration"].digest() for row in demonstrations} == cached.keys()
    trained, _ = build_here(plan["optimize"], Listener())
    metrics = trained.manifest().metrics
    assert metrics["reference_computed_live"] == 0
    assert metrics["steps"] == -(-len(demonstrations) // 8)
    saved = load_file(trained.path / "parameters.safetensors")
    assert {name: tuple(weight.shape) for name, weight in saved.items()} == {"scale": (), "head": (32,)}
    assert saved["scale"] != 1
    assert saved["head"].ne(0.5).all()


def test_snapshot_takes_the_place_of_the_reference(calls: Callable[..., dict[str, StageCall]], tmp_path: Path) -> None:
    plan = calls("optimizer.against=snapshot")
    assert "reference" not in plan
    build_here(plan["ingest"], Listener())
    work = Workload(plan, DataPreview(plan, tmp_path / "scratch"), width=32).of(plan["optimize"])
    assert (work.adapters, work.trained) == (("policy", "snapshot_first"), ("policy",))
    assert (work.snapshots, work.parameters) == (("snapshot_first",), 33)
    demand = work.demand(10**6)
    assert demand.learned == 2 * demand.read > 0
    trained, _ = build_here(plan["optimize"], Listener())
    assert sorted(path.name for path in trained.path.iterdir() if path.is_dir()) == []


def test_missing_demonstrations_are_missed_before_anything_is_trained(
    calls: Callable[..., dict[str, StageCall]], tmp_path: Path
) -> None:
    rows = [f'{{"prompt": "What is {n}?", "completion": "No!", "label": false}}\n' for n in range(20)]
    (tmp_path / "thumbs.jsonl").write_text("".join(rows))
    plan = calls(f"data.sources.0.path={tmp_path / 'thumbs.jsonl'}")
    data, _ = build_here(plan["ingest"], Listener())
    with pytest.raises(DataError, match=r"imitator.*contain no demonstrations.*choose an optimizer that does not need"):
        check_data(plan, {"ingest": data.path})
