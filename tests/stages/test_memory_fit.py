"""How much memory a training may still be planned to take when its models are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import make_world

from alignment_core.stages.shared.memory_fit import memory_left
from alignment_core.training import memory

GIB = 2**30


def test_limit_of_the_settings_includes_what_is_loaded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a stage could take the limit twice: for its models, and for the rest."""
    run = make_world(tiny_model, tmp_path).open("sft")
    held = sum(weight.nbytes for weight in run.roles.model.parameters())
    assert held > 100_000
    monkeypatch.setattr(memory, "_free_in_system", lambda: 100 * GIB)
    monkeypatch.setattr(memory, "_free_in_container", lambda: float("inf"))
    assert memory_left(run, None) == 90 * GIB
    assert memory_left(run, 2.0) == 2 * GIB - held
    assert memory_left(run, held / GIB / 2) == 0
