"""Ranks that share a training: the history of one process, faults on one of them, and resuming with another number."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import pytest
from engine import ENOUGH
from forked_ranks import in_ranks
from in_float64 import in_float64
from runs import (
    GROUP_OBJECTIVES,
    GROUPS,
    OBJECTIVES,
    STEPS,
    Listener,
    World,
    demonstration_rows,
    feedback_rows,
    held_out_rows,
    learn,
    make_world,
    preference_rows,
    prompt_rows,
    weights_of,
)

from alignment_core.errors import ModelError, PluginError
from alignment_core.models.generation import slot_batch
from alignment_core.plugin_api import AlignmentRun, LossOutput, MicroBatch, StepBatch
from alignment_core.progress import Stopped
from alignment_core.ranks.group import Group
from alignment_core.stages.reward import BradleyTerry
from alignment_core.stages.sft import SFT
from alignment_core.training.rows import Rows
from alignment_core.training.run import Run
from alignment_plugins.dpo import DPO
from alignment_plugins.kto import KTO
from alignment_plugins.online_dpo import OnlineDPO
from alignment_plugins.ppo import PPO
from alignment_plugins.rloo import RLOO

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
Outcome = dict[str, Any]


def example(name: str, module: str, **settings: Any) -> Any:
    """Return an optimizer of an example distribution, which is not installed."""
    with patch.object(sys, "path", [*sys.path, str(EXAMPLES / name)]):
        found = __import__(module, fromlist=["alignment_optimizers"])
    kinds = {kind.model_fields["name"].default: kind for kind in found.alignment_optimizers()}
    return kinds[settings.pop("kind")](**settings)


SHARED = {**OBJECTIVES, **GROUP_OBJECTIVES} | {
    "online_dpo": lambda: OnlineDPO(**GROUPS | {"batch_size": 2}),
    "reinforce": lambda: example("alignment-reinforce", "alignment_reinforce", kind="reinforce", **GROUPS),
    "bco": lambda: example("alignment-zoo", "alignment_zoo", kind="bco", **STEPS),
    "rmu": lambda: example("alignment-zoo", "alignment_zoo", kind="rmu", **STEPS),
}
LIKE = {"reinforce": "grpo", "bco": "kto", "rmu": "kto"}
"""The objective with the same roles."""
TIERS = {"dpo": (), "ppo": (), "grpo": (pytest.mark.ci,), "reinforce": (pytest.mark.ci,)}


@pytest.fixture(scope="module")
def world(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tiny_model, tmp_path_factory.mktemp("world"))


def trained(
    world: World,
    kind: str,
    folder: Path,
    group: Group | None = None,
    *,
    budget: int = 130,
    rows: Rows | None = None,
    float64: bool = False,
) -> Outcome:
    """Train, alone or as a rank, and return the run's facts. A rank that stops has no more than its checkpoint."""
    progress = Listener()
    run = world.open(LIKE.get(kind, kind), budget=budget, progress=progress, rows=rows)
    objective, seen = SHARED[kind](), list[tuple[int, str]]()
    if group is not None:
        run.budget.ranks = group
        folder = folder / f"{group.index}"
    plain = type(objective).loss

    def loss(self: Any, run: Run, micro: MicroBatch) -> LossOutput:
        seen.extend((run.step, row.id) for row in micro.rows)
        found: LossOutput = plain(self, run, micro)
        return found

    with in_float64(run) if float64 else nullcontext(), patch.object(type(objective), "loss", loss):
        learn(objective, run, folder)
    weights = {name: weight.tolist() for name, weight in weights_of(run).items()}
    facts = {"history": run.history, "weights": weights, "seen": seen, "budget": run.budget.tokens}
    return facts | {"warnings": run.warnings, "logs": progress.logs}


def assert_same_history(ours: Outcome, alone: Outcome, within: float = 5e-6) -> None:
    """Compare every metric of every step. Their sums have another order, which float32 rounds in another way."""
    assert [entry.keys() for entry in ours["history"]] == [entry.keys() for entry in alone["history"]]
    for mine, theirs in zip(ours["history"], alone["history"], strict=True):
        assert mine == pytest.approx(theirs, rel=within, abs=within)


def assert_equal_in_float64(ours: Outcome, alone: Outcome) -> None:
    """Compare the history and the weights."""
    assert_same_history(ours, alone, within=1e-10)
    assert ours["weights"].keys() == alone["weights"].keys()
    for name, weight in alone["weights"].items():
        np.testing.assert_allclose(ours["weights"][name], weight, rtol=1e-9, atol=1e-10, err_msg=name)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=TIERS.get(kind, (pytest.mark.slow,)), id=kind) for kind in SHARED]
)
def test_two_ranks_give_the_history_of_one_process(world: World, tmp_path: Path, kind: str) -> None:
    """Each row is learned on one rank, and both ranks end with the same weights."""
    alone = trained(world, kind, tmp_path / "alone", float64=True)
    first, second = in_ranks(2, partial(trained, world, kind, tmp_path, float64=True))
    assert_equal_in_float64(first, alone)
    assert (first["history"], first["weights"]) == (second["history"], second["weights"])
    assert sorted(first["seen"] + second["seen"]) == sorted(alone["seen"])
    assert all(rank["seen"] for rank in (first, second))


def test_a_step_that_fits_one_pass_is_shared_as_well(world: World, tmp_path: Path) -> None:
    """Three ranks and two rows in a step: the third has no part in it, and no gradient of its own."""
    kind = "sft"
    with patch.dict(SHARED, {kind: lambda: SFT(**STEPS | {"batch_size": 2})}):
        alone = trained(world, kind, tmp_path / "alone", budget=ENOUGH)
        found = in_ranks(3, partial(trained, world, kind, tmp_path, budget=ENOUGH))
    for rank in found:
        assert_same_history(rank, alone)
    of_step = [[row for step, row in rank["seen"] if step == 0] for rank in found]
    assert sorted(map(len, of_step)) == [0, 1, 1]


TINY = {"learning_rate": 1e-2, "batch_size": 2, "epochs": 2}
ONE_PROMPT = GROUPS | {"rollouts": 2, "rollout_size": 2, "samples": 2, "held_out_every": 1}
SMALL: dict[str, Callable[[], Any]] = {
    "reward": lambda: BradleyTerry(**TINY),
    "kto": lambda: KTO(**TINY),
    "ppo": lambda: PPO(
        **TINY | {"batch_size": 1}, rollouts=2, rollout_size=1, max_new_tokens=6, kl_target=3.0, step_kl=None,
        kl_ceiling=1e6, held_out_every=1,
    ),
    "rloo": lambda: RLOO(**ONE_PROMPT | {"batch_size": 2}),
    "online_dpo": lambda: OnlineDPO(**ONE_PROMPT | {"batch_size": 1}),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", SMALL)
def test_three_ranks_share_less_than_each_could_take(world: World, tmp_path: Path, kind: str) -> None:
    """Three rows in steps of two, so that the last step has one, and a single prompt: some ranks have nothing to do."""
    rows = Rows(demonstration_rows(3), preference_rows(3), feedback_rows(2, 1), prompt_rows(1), held_out_rows(1))
    with patch.dict(SHARED, {kind: SMALL[kind]}):
        alone = trained(world, kind, tmp_path / "alone", rows=rows, float64=True)
        for found in in_ranks(3, partial(trained, world, kind, tmp_path, rows=rows, float64=True)):
            assert_equal_in_float64(found, alone)


def test_responses_are_those_of_one_process(world: World) -> None:
    def sampled(group: Group | None) -> list[tuple[int, ...]]:
        run = world.open("dpo")
        if group is not None:
            run.budget.ranks = group
        found = run.generate(prompt_rows(5), max_new_tokens=8, samples=3, logps=True)
        return [rollout.sequence.ids for rollout in found]

    alone = sampled(None)
    assert in_ranks(2, sampled) == [alone, alone]


# --- faults on one rank ---------------------------------------------------------------------------------------------


def once(function: Callable[..., Any], group: Group, error: BaseException) -> Callable[..., Any]:
    """Return the function. On rank 1, its third call raises the error."""
    calls = 0

    def called(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if group.index == 1 and calls == 3:
            raise error
        return function(*arguments, **named)

    return called


@pytest.mark.parametrize("kind", ["dpo", pytest.param("ppo", marks=pytest.mark.ci)])
def test_all_ranks_halve_their_budget_if_one_runs_out_of_memory(world: World, tmp_path: Path, kind: str) -> None:
    """In a micro-batch, and while a token is chosen."""

    def rank(group: Group) -> Outcome:
        if kind == "ppo":
            failing = patch.object(slot_batch, "choose", once(slot_batch.choose, group, MemoryError("injected")))
        else:
            failing = patch.object(DPO, "loss", once(DPO.loss, group, MemoryError("injected")))
        with failing:
            return trained(world, kind, tmp_path, group)

    alone = trained(world, kind, tmp_path / "alone")
    for found in in_ranks(2, rank):
        assert found["budget"] == 65
        assert found["warnings"] == ["out of memory: token_budget is now 65"]
        assert_same_history(found, alone)


def test_an_error_of_one_rank_is_raised_by_all(world: World, tmp_path: Path) -> None:
    def rank(group: Group) -> Outcome:
        with patch.object(DPO, "loss", once(DPO.loss, group, ValueError("one bad row"))):
            return trained(world, "dpo", tmp_path, group)

    first, second = in_ranks(2, rank)
    assert isinstance(first, PluginError)
    assert "one bad row" in str(first)
    assert str(first) == str(second)


class Impatient(Listener):
    """Progress of a rank, of which one is asked to stop after a step."""

    def __init__(self, group: Group, after: int, which: int) -> None:
        super().__init__()
        self._group, self._after, self._which = group, after, which

    @property
    def stopping(self) -> bool:  # type: ignore[override]
        return self._group.stopping

    def step(self, done: int, total: int, metrics: Any = None) -> None:
        if done == self._after and self._group.index == self._which:
            self._group.asked = True


@pytest.mark.parametrize("which", [0, 1])
def test_a_stop_of_one_rank_stops_all_and_one_process_goes_on(world: World, tmp_path: Path, which: int) -> None:
    """Rank 0 alone writes the checkpoint, from which one process resumes."""

    def rank(group: Group) -> None:
        run = world.open("dpo", budget=130, progress=Impatient(group, 2, which))
        run.budget.ranks = group
        learn(OBJECTIVES["dpo"](), run, tmp_path / f"{group.index}")

    assert [type(found) for found in in_ranks(2, rank)] == [Stopped, Stopped]
    assert len(list((tmp_path / "0").glob("checkpoint-*"))) == 1
    assert not (tmp_path / "1").exists()
    resumed = trained(world, "dpo", tmp_path / "0")
    assert resumed["logs"] == ["resumed after step 2"]
    assert_same_history(resumed, trained(world, "dpo", tmp_path / "alone"))


def test_two_ranks_go_on_from_the_checkpoint_of_one_process(world: World, tmp_path: Path) -> None:
    """Rank 1 has an empty folder, and reads the checkpoint that rank 0 found."""
    kind = "ppo"
    with pytest.raises(Stopped):
        learn(OBJECTIVES[kind](), world.open(kind, budget=130, progress=Listener(stop_at=40)), tmp_path / "0")
    alone = trained(world, kind, tmp_path / "alone")
    for found in in_ranks(2, partial(trained, world, kind, tmp_path)):
        assert found["logs"][0].startswith("resumed after step ")
        assert_same_history(found, alone)


class Unsteady(DPO):
    """Chooses its rows by what differs between processes."""

    rank: ClassVar[int] = 0

    def batches(self, run: AlignmentRun) -> Iterator[StepBatch]:
        for batch in super().batches(run):
            yield StepBatch(batch.rows[self.rank :], batch.denominators, batch.constants)


class Chatty(DPO):
    """Reads more on one rank than on the other."""

    rank: ClassVar[int] = 0

    def batches(self, run: AlignmentRun) -> Iterator[StepBatch]:
        for batch in super().batches(run):
            if self.rank:
                run.policy.logps([batch.rows[0].sequences["chosen"]])
            yield batch


class Noting(DPO):
    """Keeps in its state what it sees in a micro-batch."""

    rank: ClassVar[int] = 0

    def loss(self, run: AlignmentRun, micro: MicroBatch) -> LossOutput:
        run.state["seen"] = run.state.get("seen", 0) + len(micro.rows)
        return super().loss(run, micro)


@pytest.mark.parametrize(
    ("kind", "message", "remedy"),
    [
        (Unsteady, "different rows", "run.random(name)"),
        (Chatty, "no longer do the same", "run.random(name)"),
        (Noting, "`loss` changes `run.state`", "Change it in `batches`"),
    ],
)
def test_ranks_that_differ_are_an_error_and_never_wait_for_each_other(
    world: World, tmp_path: Path, kind: Any, message: str, remedy: str
) -> None:
    def rank(group: Group) -> None:
        kind.rank = group.index
        run = world.open("dpo")
        run.budget.ranks = group
        learn(kind(**STEPS), run, tmp_path / f"{group.index}")

    for found in in_ranks(2, rank):
        assert isinstance(found, PluginError)
        assert message in str(found)
        assert remedy in str(found)


def test_work_of_rank_0_reaches_all_or_fails_on_all() -> None:
    def rank(group: Group) -> list[Any]:
        found: list[Any] = [group.from_first("a number", lambda: 10 + group.index)]
        try:
            group.from_first("a mistake", lambda: [][group.index])
        except Exception as error:
            found.append(type(error).__name__)

        def refuse() -> None:
            raise ModelError("no such model", where="model.base")

        try:
            group.from_first("an error", refuse)
        except ModelError as error:
            found.append(str(error))
        return found

    known = "model.base: no such model."
    assert in_ranks(2, rank) == [[10, "IndexError", known], [10, "RankLost", known]]
