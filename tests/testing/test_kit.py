"""The conformance kit passes correct optimizers and finds every seeded fault with the right check."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, ClassVar

import pytest
from faulty import FAULTS, Sound
from grouped import Reinforce
from pydantic import Field

from alignment_core.plugin_api import AlignmentOptimizer, LossOutput, Needs, StepBatch
from alignment_core.testing import check, observer, run_checks
from alignment_plugins.dpo import DPO
from alignment_plugins.grpo import GRPO
from alignment_plugins.kto import KTO
from alignment_plugins.online_dpo import OnlineDPO
from alignment_plugins.ppo import PPO
from alignment_plugins.rloo import RLOO

ALIGN = [sys.executable, "-c", "from alignment_flows.cli.app import main; main()"]


QUICK = {"Sound", "MeanOverTheMicroBatch", "ForgetsWithinTheGenerator"}
"""Optimizers checked in the default tier. Each of the others takes about a second."""


def cases(optimizers: Iterable[type[AlignmentOptimizer]]) -> list[Any]:
    return [
        pytest.param(optimizer, id=optimizer.__name__, marks=[] if optimizer.__name__ in QUICK else pytest.mark.ci)
        for optimizer in optimizers
    ]


@pytest.mark.parametrize("optimizer", cases([Sound, DPO, KTO, PPO, GRPO, RLOO, OnlineDPO, Reinforce]))
def test_correct_optimizer_passes(optimizer: type[AlignmentOptimizer]) -> None:
    report = check(optimizer)
    report.assert_passed()
    assert {result.outcome for result in report.results} == {"passed"}
    assert len(report.results) == 17


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


class Waits(Sound):
    """Waits for something that never comes, and ignores exceptions."""

    def batches(self, run: Any) -> Iterator[StepBatch]:
        yield from list(super().batches(run))[:1]
        while True:
            with suppress(Exception):
                time.sleep(1000)


class Computes(Sound):
    """Computes without an end."""

    def loss(self, run: Any, micro: Any) -> LossOutput:
        while True:
            pass


@pytest.mark.parametrize(("endless", "method", "step"), [(Waits, "batches", 2), (Computes, "loss", 1)])
def test_method_that_never_returns_is_interrupted(
    monkeypatch: pytest.MonkeyPatch, endless: type[AlignmentOptimizer], method: str, step: int
) -> None:
    monkeypatch.setattr(observer, "CALL_SECONDS", 0.2)
    report = check(endless)
    failed = {result.check: result.detail for result in report.results if result.outcome == "failed"}
    assert failed == {
        "loss": f"`{method}` of the optimizer `sound` ({__name__}), step {step} has not returned after 0.2 seconds"
    }
    assert {result.check for result in report.results if result.outcome == "not run"} >= {"gradient", "resumes", "cost"}


def test_prints_are_a_warning_and_stay_out_of_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    class Talks(Sound):
        """Prints in every pass."""

        def loss(self, run: Any, micro: Any) -> LossOutput:
            print("\nloss of", len(micro.rows), "rows")
            return super().loss(run, micro)

    (warning,) = [result for result in check(Talks).results if result.check == "output"]
    first = "it prints, which nobody sees in a run. The first line: loss of 4 rows"
    assert (warning.outcome, warning.detail) == ("warning", first)
    out, err = capsys.readouterr()
    assert out == ""
    assert "loss of 4 rows" in err


def test_example_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Judged(Sound):
        """Cannot do without a setting, which has no default."""

        example: ClassVar[Mapping[str, Any]] = {"target": 0.5}
        target: float = Field(gt=0)
        """Target margin in nats."""

    monkeypatch.setattr(
        run_checks, "_check_run", lambda report, optimizer, heard: report.add("run", "passed", str(optimizer.target))
    )
    assert check(Judged).results[-1].detail == "0.5"
    assert check(Judged, target=2).results[-1].detail == "2.0"


@pytest.mark.ci
@pytest.mark.parametrize("name", ["dpo", "kto", "ppo"])
def test_command_prints_a_table(name: str) -> None:
    done = subprocess.run([*ALIGN, "plugins", "check", name], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("passed") == 17


def test_command_reports_a_plugin_that_is_not_installed() -> None:
    done = subprocess.run([*ALIGN, "plugins", "check", "kot"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("align: NAME: no installed plugin has this name. got kot, expected one of ")
    assert done.stderr.endswith("Did you mean `kto`?\n")


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
