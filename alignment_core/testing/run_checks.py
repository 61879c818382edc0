"""Checks that run the optimizer: real training steps of a tiny model."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignment_core.advice import own_advice
from alignment_core.errors import AlignmentError, PluginError
from alignment_core.plugin_api import AlignmentOptimizer, StepBatch
from alignment_core.plugin_calls import needs_of
from alignment_core.temporary import temporary_folder
from alignment_core.testing.baseline import Baseline
from alignment_core.testing.limits import Overheard, TookTooLong, overhearing
from alignment_core.testing.observer import Observer
from alignment_core.testing.report import Fault, Report, reason
from alignment_core.testing.settings_checks import check_settings
from alignment_core.testing.tiny_run import Watch, one_thread, open_run, train_until_end
from alignment_core.texts import percent
from alignment_core.training.loop import accumulate
from alignment_core.training.run import Run

SMALL = {"batch_size": 4, "epochs": 2, "learning_rate": 1e-2}
"""Common settings that give a few effective steps on the kit's few rows."""
STEPS, SECONDS = 40, 3.0
"""Maximum number of steps and duration in seconds of the checked run."""
TOLERANCE = 1e-3
"""Relative to the largest gradient or metric. Reordering float32 sums changes them by much less."""
SMALLEST = 1e-2
"""Gradients and metrics are compared as if they were this large. A loss may be a sum of terms that cancel."""
MOST_TIME, MOST_MEMORY = 12.0, 6.0
"""Maximum time and memory of a loss per token, as a multiple of DPO's."""
WAITED = Path("/proc/thread-self/schedstat")
"""The second number is the time in nanoseconds that the calling thread has waited for a CPU."""
CHECKS = (
    "loss", "declared needs", "gradient", "weights", "micro-batches and padding", "repeats", "resumes", "cost",
    "advice",
)  # fmt: skip


def check_optimizer(optimizer: type[AlignmentOptimizer], settings: dict[str, Any]) -> Report:
    """Run all checks on an optimizer with these settings."""
    report = Report(optimizer.__name__)
    with overhearing() as heard:
        if check_settings(report, optimizer, AlignmentOptimizer, settings):
            with one_thread():
                _check_run(report, _made(optimizer, settings), heard)
    return report


def _made(optimizer: type[AlignmentOptimizer], settings: dict[str, Any]) -> AlignmentOptimizer:
    try:
        return optimizer.model_validate({**SMALL, **settings})
    except ValueError:
        return optimizer.model_validate(settings)  # the optimizer does not allow the small values


def _check_run(report: Report, optimizer: AlignmentOptimizer, heard: Overheard) -> None:
    try:
        needs_of(optimizer)
    except PluginError as error:
        report.add("declared needs", "failed", str(error))
        return
    with temporary_folder("check") as folder:
        checked = _Checked(report, optimizer, folder)
        runs = checked.runs()
        report.add_output(heard)
        if runs:
            checked.all_else()
        else:
            done = {result.check for result in report.results}
            for name in CHECKS:
                if name not in done:
                    report.add(name, "not run", "the optimizer failed in an earlier check")


class _Checked:
    def __init__(self, report: Report, optimizer: AlignmentOptimizer, folder: Path) -> None:
        self.report, self.optimizer, self.folder = report, optimizer, folder
        self.observed = Observer(optimizer)
        self.steps = 0

    def runs(self) -> bool:
        """Run the training once. Return whether it works, and record the number of steps for the other checks."""
        watch = _Patient()
        self.first = open_run(self.optimizer, watch)
        self.observed.watch(self.first)
        try:
            train_until_end(self.observed, self.first, self.folder / "first")
        except AlignmentError as error:
            undeclared = "did not declare" in error.what
            self.report.add("declared needs" if undeclared else "loss", "failed", str(error))
            return False
        except (Exception, TookTooLong) as error:
            self.report.add("loss", "failed", reason(error))
            return False
        self.steps = self.first.step
        if not self.steps:
            self.report.add("loss", "failed", "`batches` ends before its first step. At `run.step` 0 it must yield one")
            return False
        return True

    def all_else(self) -> None:
        report, observed = self.report, self.observed
        report.add("loss", "passed", f"{self.steps} steps, loss {self.first.metrics['loss']:.4g}")
        unused = observed.unused()
        if unused:
            report.add("declared needs", "warning", f"declared but never used: {', '.join(unused)}")
        else:
            report.add("declared needs", "passed")
        with report.checking("gradient"):
            observed.check_gradients()
        with report.checking("weights"):
            observed.check_weights()
        batch = observed.batches_seen[len(observed.batches_seen) // 2]
        with report.checking("micro-batches and padding") as shown:
            shown.append(self._splits(batch))
        with report.checking("repeats"):
            self._repeats()
        with report.checking("resumes") as shown:
            shown.append(self._resumes())
        with report.checking("cost") as shown:
            shown.append(self._costs(batch))
        with report.checking("advice"):
            self._advises()

    # --- advice ---------------------------------------------------------------------------------------------------

    def _advises(self) -> None:
        """Ask for advice on the checked run, and on one of which nothing was measured."""
        setting = self.optimizer.kl_setting
        if setting is not None and setting not in type(self.optimizer).model_fields:
            raise Fault(f"`kl_setting` is {setting!r}, which is none of its settings")
        for trained in (self.first.metrics, {}):
            own_advice(self.optimizer, trained, {})

    # --- micro-batches and padding --------------------------------------------------------------------------------

    def _splits(self, batch: StepBatch) -> str:
        """Compare gradients and metrics of one step for different micro-batch sizes, padded and packed."""
        largest = 0.0
        run = open_run(self.optimizer)
        at_once = self._step(run, batch)
        tokens = _tokens(batch.rows)
        for budget, packs in ((1, True), (max(1, tokens // 3), True), (10 * tokens, False), (tokens, False)):
            run.budget.tokens, run.roles.packs = budget, packs
            largest = max(largest, _difference(at_once, self._step(run, batch)))
        if len(batch.rows) < 2:
            raise Fault(
                "every step has a single row, so splitting cannot be checked. Use settings that give more rows per step"
            )
        return f"largest difference {largest:.1e}"

    def _step(self, run: Run, batch: StepBatch) -> dict[str, Tensor]:
        weights = run.roles.parameters()
        metrics = accumulate(self.optimizer, run, batch, weights.values())
        gradients = [weight.grad for weight in weights.values() if weight.grad is not None]
        return {name: torch.tensor(value) for name, value in metrics.items()} | {
            "the gradient": torch.cat([gradient.flatten() for gradient in gradients])
        }

    # --- repeats and resumes --------------------------------------------------------------------------------------

    def _repeats(self) -> None:
        """Compare with a second run in this process that starts with different global random numbers."""
        self.second = self._run_process("second", Watch(die_after=self.steps))
        _same_end(self.first, self.second, "two runs with the same seed differ")

    def _resumes(self) -> str:
        """Stop a run, kill it, and resume it, with other runs in between that change any state outside `run.state`."""
        if self.steps < 2:
            raise Fault("the run has a single step, so resuming cannot be checked. Use settings that give more steps")
        stop, kill = max(1, self.steps // 3), max(1, 2 * self.steps // 3)
        self._run_process("cut", Watch(stop_after=stop))
        self._run_process("between", Watch(die_after=self.steps))
        if kill > stop:
            self._run_process("cut", Watch(die_after=kill), save_every_step=True)
            self._run_process("after", Watch(die_after=1))
        resumed = self._run_process("cut", Watch(die_after=self.steps))
        _same_end(
            self.first,
            resumed,
            f"a run stopped after step {stop} and killed after step {kill} differs from an uninterrupted one",
        )
        attached = [name for name, value in resumed.state.items() if isinstance(value, Tensor) and value.requires_grad]
        if attached:
            raise Fault(f"`run.state` keeps the autograd graph of {', '.join(attached)}. Detach it")
        return f"stopped after step {stop}, killed after step {kill}: bit-identical result"

    def _run_process(self, folder: str, watch: Watch, *, save_every_step: bool = False) -> Run:
        """Simulate one process. It gets its settings parsed from JSON, as the process of the stage does."""
        fresh = type(self.optimizer).model_validate_json(self.optimizer.model_dump_json())
        run = open_run(fresh, watch)
        train_until_end(fresh, run, self.folder / folder, save_every_step=save_every_step)
        return run

    # --- cost -----------------------------------------------------------------------------------------------------

    def _costs(self, batch: StepBatch) -> str:
        seconds, kept = _cost(self.optimizer, batch)
        baseline = Baseline()
        base_seconds, base_kept = _cost(baseline, _first_batch(baseline))
        time_ratio, memory_ratio = seconds / base_seconds, kept / base_kept
        cost = f"per token, the loss needs {time_ratio:.1f} × DPO's time and {memory_ratio:.1f} × its memory"
        if time_ratio > MOST_TIME or memory_ratio > MOST_MEMORY:
            raise Fault(f"{cost}. The limits are {MOST_TIME:g} × and {MOST_MEMORY:g} ×")
        return cost


class _Patient(Watch):
    """Ends the run after enough steps or enough time."""

    def __init__(self) -> None:
        super().__init__()
        self._started = _clock()

    def step(self, done: int, total: int, metrics: Any = None) -> None:
        if done > total:
            raise Fault(f"`batches` continues after the {total} steps that `total_steps` announces")
        self.die_after = done if done >= STEPS or (done > 2 and _clock() - self._started > SECONDS) else None
        super().step(done, total, metrics)


def _difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest relative difference between two computations of the same step.

    Raises:
        Fault: the difference is larger than rounding.
    """
    if one.keys() != other.keys():
        raise Fault(f"some metrics depend on how a step is split: {', '.join(sorted(one.keys() ^ other.keys()))}")
    largest = 0.0
    for name, value in one.items():
        if value.shape != other[name].shape:
            raise Fault("the set of weights that get a gradient depends on how a step is split")
        scale = float(value.abs().max().clamp_min(SMALLEST))
        difference = float((value - other[name]).abs().max()) / scale
        if not difference <= TOLERANCE:
            raise Fault(
                f"{name} of one step depends on how it is split and padded (by {percent(difference, 1)}). Return sums "
                "over the micro-batch divided by `micro.denominators`, and exclude padding"
            )
        largest = max(largest, difference)
    return largest


def _same_end(one: Run, other: Run, what: str) -> None:
    advice = "Keep everything that `batches` needs in `run.state`, and draw random numbers from `run.random`"
    others = {**other.roles.parameters(), **other.snapshots.tensors()}
    for name, weight in {**one.roles.parameters(), **one.snapshots.tensors()}.items():
        if not torch.equal(weight, others[name]):
            raise Fault(f"{what} in the weights. {advice}")
    if one.history != other.history:
        raise Fault(f"{what} in the metrics. {advice}")


def _first_batch(optimizer: Any) -> StepBatch:
    batch: StepBatch = next(optimizer.batches(open_run(optimizer)))
    return batch


def _tokens(rows: Sequence[Any]) -> int:
    return sum(len(sequence.ids) for row in rows for sequence in row.sequences.values())


def _cost(optimizer: AlignmentOptimizer, batch: StepBatch) -> tuple[float, float]:
    """Return the seconds and the bytes saved for the backward pass of one step, both per token."""
    run = open_run(optimizer)
    weights = run.roles.parameters()
    step: Callable[[], Any] = partial(accumulate, optimizer, run, batch, weights.values())
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        step()
    return min(_seconds(step)) / _tokens(batch.rows), kept / _tokens(batch.rows)


def _seconds(step: Callable[[], Any]) -> Iterator[float]:
    for _ in range(4):
        started = _clock()
        step()
        yield _clock() - started


def _clock() -> float:
    """Return a time in seconds without this thread's waits for a CPU, if the system reports them (Linux)."""
    try:
        waited = int(WAITED.read_text().split()[1]) / 1e9
    except OSError:
        waited = 0.0
    return time.perf_counter() - waited
