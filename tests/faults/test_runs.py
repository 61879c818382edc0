"""Runs through the command line that are killed, share a store or find a full disk end as an unbroken run does.

The moments depend on the environment variable KILL_SEED (default 0) and are printed.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from campaign import (
    KINDS,
    World,
    check_same,
    finish,
    finish_whole,
    kill_once,
    left_overs,
    make_world,
    megabytes_of,
    run_at_once,
    start,
)
from small_disk import enlarge, small_disk

SEED = os.environ.get("KILL_SEED", "0")
pytestmark = [pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def world(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], World]:
    """Return a function that returns the unbroken run of a kind, made once."""
    made: dict[str, World] = {}

    def find(kind: str) -> World:
        if kind not in made:
            made[kind] = make_world(kind, tiny_model, tmp_path_factory.mktemp(kind))
        return made[kind]

    return find


@pytest.mark.ci
def test_run_whose_process_and_stage_are_killed(world: Callable[[str], World]) -> None:
    print(kill_once(world("kto"), "both", "optimize", random.Random(SEED)))


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["stage", "flow", "both"])
@pytest.mark.parametrize("kind", KINDS)
def test_killed_run(world: Callable[[str], World], kind: str, victim: str) -> None:
    unbroken = world(kind)
    rng = random.Random(f"{SEED} {kind} {victim}")
    stage = rng.choice([*unbroken.calls(unbroken.whole)])
    print(kill_once(unbroken, victim, stage, rng))


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4, 8])
def test_runs_at_once(world: Callable[[str], World], count: int) -> None:
    built = run_at_once(world("kto"), "ingest", count)
    assert set(built.values()) == {1}, built


@pytest.mark.slow
@pytest.mark.parametrize("part", range(1, 5))
def test_full_disk(world: Callable[[str], World], tmp_path: Path, part: int) -> None:
    """The disk is full at a random write. The run says so in one paragraph, and ends well once there is room."""
    unbroken = world("kto")
    share = (part - random.Random(f"{SEED} {part}").random()) / 4
    with small_disk(tmp_path / "disk", share * megabytes_of(unbroken.whole)) as disk:
        store = disk / "store"
        code, _, written = finish(start(unbroken.config(store)))
        print(f"disk full after {share:.0%} of the run")
        assert code != 0
        assert "No space left on device" in written or "disk is full" in written, written
        assert "Traceback" not in written, written
        enlarge(disk)
        finish_whole(unbroken, store)
        check_same(unbroken, unbroken.calls(store))
        assert left_overs(store) == set()
