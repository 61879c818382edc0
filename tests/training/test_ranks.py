"""Ranks that share the steps of a training give the history of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine import ENOUGH
from forked_ranks import in_ranks
from runs import GROUP_OBJECTIVES, OBJECTIVES, World, learn, make_world, weights_of

from alignment_core.ranks.group import Group

ALL = OBJECTIVES | GROUP_OBJECTIVES


@pytest.fixture(scope="module")
def world(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tiny_model, tmp_path_factory.mktemp("world"))


def trained(
    world: World, kind: str, folder: Path, group: Group | None, budget: int
) -> tuple[list[Any], dict[str, Any]]:
    run = world.open(kind, budget=budget)
    if group is not None:
        run.budget.ranks = group
        folder = folder / f"{group.index}"
    learn(ALL[kind](), run, folder)
    return run.history, {name: weight.tolist() for name, weight in weights_of(run).items()}


def check(world: World, kind: str, folder: Path, size: int, budget: int) -> None:
    alone, weights = trained(world, kind, folder / "alone", None, budget)
    for history, found in in_ranks(size, lambda group: trained(world, kind, folder, group, budget)):
        assert [entry.keys() for entry in history] == [entry.keys() for entry in alone]
        worst = max(
            (abs(ours[name] - theirs[name]) / max(1.0, abs(theirs[name])), name, place)
            for place, (ours, theirs) in enumerate(zip(history, alone, strict=True))
            for name in theirs
        )
        print(kind, size, budget, worst)


@pytest.mark.parametrize("kind", list(ALL))
def test_history(world: World, tmp_path: Path, kind: str) -> None:
    check(world, kind, tmp_path, 2, 130)
