"""Checks of an optimizer at work: real steps of a real, tiny model."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alignment_core.errors import AlignmentError
from alignment_core.plugin_api import AlignmentOptimizer, StepBatch
from alignment_core.testing.baseline import Baseline
from alignment_core.testing.observed import Observed
from alignment_core.testing.report import Fault, Report
from alignment_core.testing.world import Watch, live, open_run
from alignment_core.training.loop import accumulate
from alignment_core.training.run import Run

STEPS, SECONDS = 40, 3.0
"""The checked run is so many steps long, or as many as fit into so much time."""
TOLERANCE = 1e-3
"""Relative to the largest gradient or metric: float32 sums in another order differ by far less."""
MOST_TIME, MOST_MEMORY = 12.0, 6.0
"""How much more of each than DPO a loss may take per token."""
WAITED = Path("/proc/thread-self/schedstat")
"""The second number: nanoseconds of the calling thread in the queue for a processor."""
CHECKS = (
    "loss", "declared needs", "gradient", "weights", "micro-batches and padding", "repeats", "resumes", "cost",
)  # fmt: skip


def check_run(report: Report, optimizer: AlignmentOptimizer) -> None:
    """Add the results to `report`."""
    with tempfile.TemporaryDirectory(prefix="align-check-") as folder:
        checked = _Checked(report, optimizer, Path(folder))
        if checked.runs():
            checked.all_else()
        else:
            done = {result.check for result in report.results}
            for name in CHECKS:
                if name not in done:
                    report.add(name, "not run", "the optimizer does not get so far")


class _Checked:
    def __init__(self, report: Report, optimizer: AlignmentOptimizer, folder: Path) -> None:
        self.report, self.optimizer, self.folder = report, optimizer, folder
        self.observed = Observed(optimizer)
        self.steps = 0

    def runs(self) -> bool:
        """The first life: does it train at all, and how many steps are enough?"""
        watch = _Patient()
        self.first = open_run(self.optimizer, watch)
        self.observed.watch(self.first)
        try:
            live(self.observed, self.first, self.folder / "first")
        except AlignmentError as error:
            undeclared = "did not declare" in error.what
            self.report.add("declared needs" if undeclared else "loss", "failed", str(error))
            return False
        except Fault as error:
            self.report.add("loss", "failed", str(error))
            return False
        except Exception as error:
            self.report.add("loss", "failed", f"{type(error).__name__}: {error}")
            return False
        self.steps = self.first.step
        if not self.steps:
            self.report.add("loss", "failed", "`batches` yields no step")
            return False
        return True

    def all_else(self) -> None:
        report, observed = self.report, self.observed
        report.add("loss", "passed", f"{self.steps} steps, loss {self.first.metrics['loss']:.4g}")
        unused = observed.unused()
        if unused:
            report.add("declared needs", "warning", f"never used, yet built for it: {', '.join(unused)}")
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

    # --- the same result, however it is computed ------------------------------------------------------------------

    def _splits(self, batch: StepBatch) -> str:
        """Gradients and metrics of one step, computed at once, row by row and in between, padded and packed."""
        largest = 0.0
        run = open_run(self.optimizer)
        whole = self._step(run, batch)
        tokens = _tokens(batch.rows)
        for budget, packs in ((1, True), (max(1, tokens // 3), True), (10 * tokens, False), (tokens, False)):
            run.budget.tokens, run.roles.packs = budget, packs
            largest = max(largest, _difference(whole, self._step(run, batch)))
        if len(batch.rows) < 2:
            raise Fault("every step has a single row: nothing is shown; check it with settings that give more")
        return f"largest difference {largest:.1e}"

    def _step(self, run: Run, batch: StepBatch) -> dict[str, Tensor]:
        weights = run.roles.parameters()
        metrics = accumulate(self.optimizer, run, batch, weights.values())
        gradients = [weight.grad for weight in weights.values() if weight.grad is not None]
        return {name: torch.tensor(value) for name, value in metrics.items()} | {
            "the gradient": torch.cat([gradient.flatten() for gradient in gradients])
        }

    # --- lives ----------------------------------------------------------------------------------------------------

    def _repeats(self) -> None:
        """A second run in this process, with other global random numbers."""
        self.second = self._life("second", Watch(die_after=self.steps))
        _same_end(self.first, self.second, "two runs with one seed differ")

    def _resumes(self) -> str:
        """A life cut short, another run in between, and the rest: what is kept outside `run.state` is then another."""
        if self.steps < 2:
            raise Fault("the run has a single step: nothing to go on from; check it with settings that give more")
        stop, death = max(1, self.steps // 3), max(1, 2 * self.steps // 3)
        self._life("cut", Watch(stop_after=stop))
        self._life("between", Watch(die_after=self.steps))
        if death > stop:
            self._life("cut", Watch(die_after=death), save_every_step=True)
            self._life("after", Watch(die_after=1))
        resumed = self._life("cut", Watch(die_after=self.steps))
        _same_end(self.first, resumed, f"a run stopped after step {stop} and killed after step {death} ends otherwise")
        kept = [name for name, value in resumed.state.items() if isinstance(value, Tensor) and value.requires_grad]
        if kept:
            raise Fault(f"`run.state` keeps the graph of {', '.join(kept)}: detach it")
        return f"stopped after step {stop}, killed after step {death}: the same to the last bit"

    def _life(self, folder: str, watch: Watch, *, save_every_step: bool = False) -> Run:
        """A life of a process: its own copy of the settings, as read from the stage's call."""
        fresh = type(self.optimizer).model_validate_json(self.optimizer.model_dump_json())
        run = open_run(fresh, watch)
        live(fresh, run, self.folder / folder, save_every_step=save_every_step)
        return run

    # --- what it costs --------------------------------------------------------------------------------------------

    def _costs(self, batch: StepBatch) -> str:
        seconds, kept = _cost(self.optimizer, batch)
        baseline = Baseline()
        own_seconds, own_kept = _cost(baseline, _first_batch(baseline))
        time_ratio, memory_ratio = seconds / own_seconds, kept / own_kept
        said = f"{time_ratio:.1f} × DPO's time and {memory_ratio:.1f} × its memory per token of a loss"
        if time_ratio > MOST_TIME or memory_ratio > MOST_MEMORY:
            raise Fault(f"{said}; at most {MOST_TIME:g} × and {MOST_MEMORY:g} × are sensible")
        return said


class _Patient(Watch):
    """Ends the run once it has shown enough."""

    def __init__(self) -> None:
        super().__init__()
        self._started = _clock()

    def step(self, done: int, total: int, metrics: Any = None) -> None:
        if done > total:
            raise Fault(f"`batches` goes on after the {total} steps that `total_steps` promises")
        self.die_after = done if done >= STEPS or (done > 2 and _clock() - self._started > SECONDS) else None
        super().step(done, total, metrics)


def _difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest difference of two computations of a step, relative to its size.

    Raises:
        Fault: it is no rounding.
    """
    if one.keys() != other.keys():
        raise Fault(f"metrics come and go with the micro-batch: {', '.join(sorted(one.keys() ^ other.keys()))}")
    largest = 0.0
    for name, value in one.items():
        if value.shape != other[name].shape:
            raise Fault("which weights get a gradient depends on the micro-batch")
        scale = float(value.abs().max().clamp_min(1e-3))
        difference = float((value - other[name]).abs().max()) / scale
        if not difference <= TOLERANCE:
            raise Fault(
                f"{name} of one step depends on how it is split and padded (by {difference:.0%}): return sums over the "
                "micro-batch divided by `micro.denominators`, and leave padding out"
            )
        largest = max(largest, difference)
    return largest


def _same_end(one: Run, other: Run, what: str) -> None:
    advice = "keep in `run.state` all that `batches` needs, and draw from `run.random`"
    others = other.roles.parameters()
    for name, weight in one.roles.parameters().items():
        if not torch.equal(weight, others[name]):
            raise Fault(f"{what} in their weights: {advice}")
    if one.history != other.history:
        raise Fault(f"{what} in their metrics: {advice}")


def _first_batch(optimizer: Any) -> StepBatch:
    batch: StepBatch = next(optimizer.batches(open_run(optimizer)))
    return batch


def _tokens(rows: Sequence[Any]) -> int:
    return sum(len(sequence.ids) for row in rows for sequence in row.sequences.values())


def _cost(optimizer: AlignmentOptimizer, batch: StepBatch) -> tuple[float, float]:
    """Seconds, and bytes kept for backward, of the loss of a step, per token."""
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
    """Seconds that pass, less those that this thread waits for a processor, where the system tells them (Linux)."""
    try:
        waited = int(WAITED.read_text().split()[1]) / 1e9
    except OSError:
        waited = 0.0
    return time.perf_counter() - waited
