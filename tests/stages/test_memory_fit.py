"""How much memory a training may still be planned to take when its models are loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from runs import make_world

from alignment_core.processes import free_memory
from alignment_core.stages.shared.memory_fit import memory_left, memory_left_on_all

GIB = 2**30


class Ranked:
    """The ranks of a stage, of which the others give these values."""

    index, apart = 0, False

    def __init__(self, size: int, others: Sequence[Any] = ()) -> None:
        self.size, self.others = size, others

    def gather(self, about: str, value: Any) -> list[Any]:
        return [value, *self.others]


def test_limit_of_the_settings_includes_what_is_loaded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a stage could take the limit twice: for its models, and for the rest."""
    run = make_world(tiny_model, tmp_path).open("sft")
    held = sum(weight.nbytes for weight in run.roles.model.parameters())
    assert held > 100_000
    monkeypatch.setattr(free_memory, "_free_in_system", lambda: 100 * GIB)
    monkeypatch.setattr(free_memory, "_free_in_container", lambda: float("inf"))
    assert memory_left(run, None) == 90 * GIB
    assert memory_left(run, 2.0) == 2 * GIB - held
    assert memory_left(run, held / GIB / 2) == 0
    # Two processes share the memory of the system. The limit is for each.
    run.budget.ranks = Ranked(2)  # type: ignore[assignment]
    assert memory_left(run, None) == 45 * GIB
    assert memory_left(run, 2.0) == 2 * GIB - held


def test_all_ranks_plan_with_the_memory_of_the_one_that_has_least(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_world(tiny_model, tmp_path).open("sft")
    run.budget.ranks = Ranked(2, others=[7 * GIB])  # type: ignore[assignment]
    monkeypatch.setattr(free_memory, "_free_in_system", lambda: 100 * GIB)
    monkeypatch.setattr(free_memory, "_free_in_container", lambda: float("inf"))
    assert memory_left_on_all(run, None) == 7 * GIB
