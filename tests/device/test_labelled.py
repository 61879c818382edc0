"""Every stage on a card that is not there: nothing mixes devices, and how often the host waits is bounded.

A wait empties the queue of kernels of a GPU, so each one counts. Lower the limits with the code that waits less.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import runs
import torch
from engine import CPU
from labelled import CARD, Ledger, on_a_card
from runs import OBJECTIVES, Killed, Listener, World, learn, make_world
from small_run import small_run

from alignment_core.config_file import load_config
from alignment_core.execution.build import build
from alignment_core.export.targets import merged
from alignment_core.inference.trained_model import open_trained_model
from alignment_core.models.base.loading import load_base
from alignment_core.models.roles.shared_base import Roles
from alignment_core.planning.pipeline import plan_pipeline
from alignment_core.plugin_api import AlignmentOptimizer
from alignment_core.progress import Silent
from alignment_core.registry import load_registry
from alignment_core.testing import tiny_run
from alignment_core.training.run import Run

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
PER_PASS = 1
"""transformers looks for packed sequences in the positions of every packed row."""
PER_TOKEN = 1
"""Two to choose (is it a number, which one is it), one for the mask of padding, one for the noise of the rows left."""


@pytest.fixture(scope="module")
def world(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tiny_model, tmp_path_factory.mktemp("world"))


@contextmanager
def checked_card() -> Iterator[Ledger]:
    """A pretended card on which nothing mixes devices."""
    with on_a_card() as ledger:
        yield ledger
    assert not ledger.mixed


def opened(world: World, kind: str, ledger: Ledger, progress: Listener | None = None) -> Run:
    """Open a run on the card. What happened until then is forgotten, because it happens once."""

    def on_card(path: Path, load_in: Any = "fp32") -> Roles:
        return Roles(ledger.move(load_base(str(path), revision=None, load_in=load_in, device=CPU)), str(path))

    with patch.object(runs, "open_roles", on_card):
        run = world.open(kind, progress=progress)
    assert run.device.type == "cuda"
    ledger.reads.clear()
    ledger.uploads.clear()
    ledger.passes = 0
    return run


def assert_close(run: Run, plain: Run) -> None:
    """Check that both runs have the same history, up to the order of sums."""
    assert len(run.history) == len(plain.history)
    for found, expected in zip(run.history, plain.history, strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    ("kind", "per_step"),
    [
        ("sft", 2),  # the metrics, and the norm of the gradient
        ("reward", 2),
        ("dpo", 3),  # and the lengths of the completions
        ("kto", 3),  # and the reference point
    ],
)
def test_training(world: World, tmp_path: Path, kind: str, per_step: int, recompute: bool) -> None:
    with checked_card() as card:
        run = opened(world, kind, card)
        run.roles.checkpoint_layers(recompute)
        learn(OBJECTIVES[kind](), run, tmp_path / "card")
        assert card.passes >= run.step == 6
        waits = card.waits() - card.waits("alignment_core/models/base/saving.py")  # the checkpoint at the end
        assert waits <= per_step * run.step + PER_PASS * card.passes
    plain = world.open(kind)
    plain.roles.checkpoint_layers(recompute)
    assert_close(run, learn(OBJECTIVES[kind](), plain, tmp_path / "cpu"))


def test_ppo(world: World, tmp_path: Path) -> None:
    with checked_card() as card:
        run = opened(world, "ppo", card)
        learn(OBJECTIVES["ppo"](), run, tmp_path / "card")
        # the metrics, and the norms of the gradients of policy and value model
        assert card.waits("alignment_core/training/loop.py") <= 3 * run.step
    assert_close(run, learn(OBJECTIVES["ppo"](), world.open("ppo"), tmp_path / "cpu"))


def test_generation(world: World) -> None:
    """Waits per token, from responses of two lengths. No row ends early, because nothing stops it."""
    waits = []
    with checked_card() as card:
        run = opened(world, "ppo", card)
        run.vocabulary.stop_ids = ()
        run.generate(run.prompts, max_new_tokens=2)  # tries the ways of generating
        for length in (4, 12):
            before = card.waits()
            rollouts = run.generate(run.prompts, max_new_tokens=length)
            waits.append(card.waits() - before)
            assert all(len(rollout.sequence.completion) == length for rollout in rollouts)
    assert waits[1] - waits[0] <= PER_TOKEN * 8


def test_resumed(world: World, tmp_path: Path) -> None:
    with checked_card() as card:
        killed = opened(world, "kto", card, Listener(kill_after_step=3))
        with pytest.raises(Killed):
            learn(OBJECTIVES["kto"](), killed, tmp_path / "one", every=0.0)
        resumed = learn(OBJECTIVES["kto"](), opened(world, "kto", card), tmp_path / "one")
        whole = learn(OBJECTIVES["kto"](), opened(world, "kto", card), tmp_path / "two")
    assert resumed.history == whole.history


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("alignment_zoo.ipo", "IPO"),
        ("alignment_zoo.tr_dpo", "TRDPO"),
        ("alignment_zoo.dro", "DRO"),
        ("alignment_zoo.rmu", "RMU"),
        pytest.param("alignment_reinforce", "ReinforcePlusPlus", marks=pytest.mark.ci),
    ],
)
def test_example_plugins(tmp_path: Path, module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES / f"{module.partition('.')[0].replace('_', '-')}")
    optimizer: AlignmentOptimizer = getattr(importlib.import_module(module), name)()
    run = tiny_run.open_run(optimizer)
    with checked_card() as card:
        card.move(run.roles.model)
        card.move(run.roles.heads)
        card.move(run.roles.extra)
        run.roles.device = CARD
        tiny_run.train_until_end(optimizer, run, tmp_path)
    assert run.step > 0


def test_pipeline(tiny_model: Path, tmp_path: Path) -> None:
    """Ingestion, SFT, reward models, DPO, evaluations, comparisons by a judge, and the merged export."""
    step = {"batch_size": 8, "learning_rate": 1e-3}
    evaluation = {"max_prompts": 2, "max_new_tokens": 8, "judge_fraction": 0.5, "reward_model": True}
    changes = {"reward": step, "evaluation": evaluation, "isolation": "inline", "device": "cuda"}
    config = load_config(small_run(tmp_path, tiny_model, **changes))
    calls = plan_pipeline(config, load_registry()).calls()
    assert {"sft", "reward", "reference", "optimize", "judge", "evaluate", "over_sft"} <= calls.keys()
    (tmp_path / "merged").mkdir()
    with checked_card() as card:
        for call in calls.values():
            build(call, Silent())
        assert card.passes > 0
        merged.write(open_trained_model(config.store, calls["optimize"].key), tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").is_file()


def test_mixed_devices_are_seen() -> None:
    with on_a_card() as card:
        there = torch.ones(3, device="cuda")
        assert (there + 1).device.type == "cuda"
        assert not card.mixed
        there + torch.ones(3)
        (operation,) = card.mixed
        assert operation.startswith("add in ")


def test_waits_are_seen() -> None:
    with on_a_card() as card:
        there = torch.ones(3).to("cuda")
        torch.ones(3).to("cuda", non_blocking=True)
        assert card.waits() == 1
        assert there.sum().item() == 3
        there.tolist()
        there[there > 0]
        assert card.waits() == 4
