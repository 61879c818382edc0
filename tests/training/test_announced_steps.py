"""What holds when `batches` ends before or after the steps that `total_steps` announces, and after a resume."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from misfit import LONE, good_batches, misfit, steps

from alignment_core.plugin_api import StepBatch
from alignment_core.testing.tiny_run import Watch, open_run, train_until_end
from alignment_core.training.loop import train


def rates(run: Any) -> list[float]:
    return [entry["learning_rate"] for entry in run.history]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [("constant", [1.0, 1.0, 1.0, 1.0]), ("linear", [1.0, 0.5, 0.0, 0.0]), ("cosine", [1.0, 0.55, 0.1, 0.1])],
)
def test_batches_may_go_on_after_the_announced_steps(tmp_path: Path, schedule: str, expected: list[float]) -> None:
    """Two steps are announced and four are yielded. The learning rate stays at the end of its schedule."""
    four = [StepBatch([LONE])] * 4
    optimizer = misfit(steps(*four), announced=2)(schedule=schedule, warmup_fraction=0, learning_rate=1.0)
    run = open_run(optimizer)
    train(optimizer, run, tmp_path, 1e9)
    assert run.step == 4
    assert rates(run) == pytest.approx(expected)


def test_batches_may_end_before_the_announced_steps(tmp_path: Path) -> None:
    """Four steps are announced and two are yielded. The learning rate is then halfway."""
    optimizer = misfit(steps(*[StepBatch([LONE])] * 2), announced=4)(schedule="linear", warmup_fraction=0)
    run = open_run(optimizer)
    train(optimizer, run, tmp_path, 1e9)
    assert run.step == 2
    assert rates(run) == pytest.approx([optimizer.learning_rate, 0.75 * optimizer.learning_rate])
    assert list(tmp_path.glob("checkpoint-*"))


def test_metrics_of_the_step_before_survive_a_resume(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    def looking(run: Any) -> Iterator[StepBatch]:
        for batch in good_batches(run):
            seen.append(dict(run.metrics))
            yield batch

    optimizer = misfit(looking)(batch_size=4, epochs=1)
    train_until_end(optimizer, open_run(optimizer, Watch(die_after=2)), tmp_path, save_every_step=True)
    resumed = open_run(optimizer)
    train_until_end(optimizer, resumed, tmp_path)
    # The killed process built the batches of steps 1 and 2, and was killed when step 2 was done but not saved.
    before_first, before_second, again, before_third = seen
    assert before_first == {}
    assert before_second == again == {name: value for name, value in resumed.history[0].items() if name != "step"}
    assert before_third == {name: value for name, value in resumed.history[1].items() if name != "step"}
