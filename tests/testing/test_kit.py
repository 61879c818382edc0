"""The conformance kit passes correct optimizers and finds every seeded fault with the right check."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from faulty import FAULTS, Sound

from alignment_core.plugin_api import AlignmentOptimizer, Needs
from alignment_core.testing import check
from alignment_plugins.dpo import DPO
from alignment_plugins.kto import KTO
from alignment_plugins.ppo import PPO

ALIGN = [sys.executable, "-c", "from alignment_flows.cli.app import main; main()"]


QUICK = {"Sound", "MeanOverTheMicroBatch", "ForgetsWithinTheGenerator"}
"""Optimizers checked in the default tier. Each of the others takes about a second."""


def cases(optimizers: Iterable[type[AlignmentOptimizer]]) -> list[Any]:
    return [
        pytest.param(optimizer, id=optimizer.__name__, marks=[] if optimizer.__name__ in QUICK else pytest.mark.ci)
        for optimizer in optimizers
    ]


@pytest.mark.parametrize("optimizer", cases([Sound, DPO, KTO, PPO]))
def test_correct_optimizer_passes(optimizer: type[AlignmentOptimizer]) -> None:
    report = check(optimizer)
    report.assert_passed()
    assert {result.outcome for result in report.results} == {"passed"}
    assert len(report.results) == 14


@pytest.mark.parametrize("optimizer", cases(FAULTS))
def test_seeded_fault_is_found(optimizer: type[AlignmentOptimizer]) -> None:
    name, reason = FAULTS[optimizer]
    report = check(optimizer)
    failed = {result.check: result.detail for result in report.results if result.outcome == "failed"}
    assert reason in failed.get(name, ""), failed
    with pytest.raises(AssertionError, match=f"{optimizer.__name__} breaks the contract:\n"):
        report.assert_passed()


@pytest.mark.ci
def test_unused_need_is_a_warning() -> None:
    class Greedy(Sound):
        def needs(self) -> Needs:
            return Needs(preferences=True, reference=True, reward=True, snapshots=("old",))

    (warning,) = [result for result in check(Greedy).results if result.outcome == "warning"]
    assert (warning.check, warning.detail) == ("declared needs", "declared but never used: reward, the snapshot old")


@pytest.mark.ci
@pytest.mark.parametrize("name", ["dpo", "kto", "ppo"])
def test_command_prints_a_table(name: str) -> None:
    done = subprocess.run([*ALIGN, "plugins", "check", name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("passed") == 14


def test_command_reports_an_optimizer_that_is_not_installed() -> None:
    done = subprocess.run([*ALIGN, "plugins", "check", "dppo"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("align: optimizer.name: no installed optimizer has this name. got dppo, ")


@pytest.mark.ci
def test_command_exits_with_1_and_lists_the_reasons(install: Callable[..., None]) -> None:
    install("stranger-faulty", SOURCE)
    command = [*ALIGN, "plugins", "check", "mean", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    report = json.loads(done.stdout)
    assert not report["passed"]
    reasons = {result["check"]: result["detail"] for result in report["results"] if result["outcome"] == "failed"}
    assert reasons.keys() == {"micro-batches and padding"}


SOURCE = """
    from typing import Literal
    from alignment_core.plugin_api import AlignmentOptimizer, LossOutput, Needs, StepBatch, hookimpl

    class Mean(AlignmentOptimizer):
        'Makes the chosen completions likelier.'
        name: Literal["mean"] = "mean"

        def needs(self):
            return Needs(preferences=True)

        def batches(self, run):
            for rows in run.shuffled(run.preferences, self.batch_size, self.epochs):
                yield StepBatch(rows)

        def loss(self, run, micro):
            return LossOutput(-run.policy.logps(micro.sequences("chosen")).mean())

    @hookimpl
    def alignment_optimizers():
        return [Mean]
"""
