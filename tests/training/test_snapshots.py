"""Snapshots of the policy and an optimizer's own weights: exact values, gradients, and kills at any moment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from engine import language, open_roles
from runs import PAD, STOP, Killed, Listener, WordTokenizer, World, learn, make_world, preference_rows, prompt_rows
from safetensors.torch import load_file
from torch import Tensor

from alignment_core import losses
from alignment_core.config import LoraConfig
from alignment_core.errors import PluginError
from alignment_core.models.roles.logps import Budget
from alignment_core.plugin_api import AlignmentOptimizer, LossOutput, MicroBatch, Needs, StepBatch
from alignment_core.progress import Stopped
from alignment_core.training.rows import Rows, Vocabulary
from alignment_core.training.run import Run
from alignment_core.training.snapshots import role_of
from alignment_core.training.step.parameters import initial_parameters

DORA = LoraConfig(rank=2, alpha=4, dora=True)


class Moving(AlignmentOptimizer):
    """DPO against a moving average of the policy, with a learned temperature and a head on hidden states."""

    name: Literal["moving"] = "moving"
    batch_size: int = 4
    epochs: int = 2
    learning_rate: float = 1e-2
    mix: float = 0.25
    own: bool = True

    def needs(self) -> Needs:
        return Needs(preferences=True, snapshots=("moving", "last"))

    def parameters(self, width: int) -> Mapping[str, Tensor | float]:
        return {"log_temperature": 0.5, "head": torch.randn(width)} if self.own else {}

    def batches(self, run: Any) -> Iterator[StepBatch]:
        for rows in run.shuffled(run.preferences, self.batch_size, self.epochs):
            if run.step:
                run.snapshot("moving", self.mix)
                run.snapshot("last")
            # Sampling after the move: a stop here finds the snapshots moved, but the step not done.
            rollouts = run.generate(prompt_rows(2), max_new_tokens=3, role="moving")
            yield StepBatch(rows, constants={"sampled": float(sum(sum(r.sequence.completion) for r in rollouts))})

    def loss(self, run: Any, micro: MicroBatch) -> LossOutput:
        sequences = micro.sequences("chosen") + micro.sequences("rejected")
        ratios = run.policy.logps(sequences) - run.role("moving").logps(sequences)
        chosen, rejected = ratios.chunk(2)
        pairs = micro.denominators["rows"]
        loss = losses.dpo(chosen, rejected, beta=0.1).sum() / pairs
        if self.own:
            temperature, head = run.parameters["log_temperature"].exp(), run.parameters["head"]
            states = run.policy.hidden(sequences).sum(dim=1).detach() / 100
            good, bad = (states @ head * temperature).chunk(2)
            loss = loss - torch.nn.functional.logsigmoid(good - bad).sum() / pairs
        return LossOutput(loss, {"sampled": micro.constants["sampled"] * len(micro.rows) / pairs})


@pytest.fixture(scope="module")
def world(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tiny_model, tmp_path_factory.mktemp("world"))


def open_run(world: World, optimizer: AlignmentOptimizer, progress: Listener | None = None) -> Run:
    """Open a run as the stage does, in a new process."""
    roles = open_roles(world.base)
    roles.add_saved("policy", world.sft)
    roles.add_parameters(initial_parameters(optimizer, roles.width, 5))
    for name in optimizer.needs().snapshots:
        roles.add_copy(role_of(name), of="policy")
    roles.train_only(["policy"])
    return Run(
        roles=roles,
        rows=Rows(preferences=preference_rows(10)),
        vocabulary=Vocabulary(WordTokenizer(), PAD, tuple(range(STOP, 40))),
        budget=Budget(130),
        seed=5,
        progress=progress or Listener(),
        snapshot_names=optimizer.needs().snapshots,
    )


def copied(run: Run, role: str) -> dict[str, Tensor]:
    """Return a copy of the adapter weights of a role."""
    return {name: weight.detach().clone() for name, weight in run.roles.adapter_weights(role).items()}


def everything(run: Run) -> dict[str, Tensor]:
    """Return all weights that training changes."""
    return {**run.roles.parameters(), **run.snapshots.tensors()}


@pytest.mark.parametrize("lora", [None, DORA], ids=["lora", "dora"])
def test_snapshots_are_copies_and_averages(world: World, tmp_path: Path, lora: LoraConfig | None) -> None:
    """The averages are computed here from copies of the policy before each step."""
    if lora is not None:
        world = make_world(world.base, tmp_path / "dora", lora)

    class Watched(Moving):
        def batches(self, run: Any) -> Iterator[StepBatch]:
            for batch in super().batches(run):
                policies.append(copied(run, "policy"))
                moved.append((copied(run, role_of("moving")), copied(run, role_of("last"))))
                yield batch

    policies: list[dict[str, Tensor]] = []
    moved: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    learn(Watched(), open_run(world, Moving()), tmp_path / "run")
    assert len(policies) == 6
    expected = policies[0]
    for step, (policy, (moving, last)) in enumerate(zip(policies, moved, strict=True)):
        if step:
            expected = {name: 0.75 * weight + 0.25 * policy[name] for name, weight in expected.items()}
        assert last.keys() == policy.keys()
        for name, weight in policy.items():
            assert torch.equal(last[name], weight)
            torch.testing.assert_close(moving[name], expected[name], rtol=1e-6, atol=1e-7)
    changed = [name for name in expected if not torch.equal(moved[0][0][name], moved[-1][0][name])]
    assert changed == list(expected)


def test_a_snapshot_answers_as_the_policy_did(world: World) -> None:
    run = open_run(world, Moving())
    sequences = [s for row in run.preferences for s in row.sequences.values()]
    before = run.policy.token_logps(sequences).logps
    with torch.no_grad():
        for weight in run.roles.parameters().values():
            weight += 0.1
    after = run.policy.token_logps(sequences).logps
    assert torch.equal(run.role("moving").token_logps(sequences).logps, before)
    assert not torch.allclose(before, after, atol=0.1)
    with torch.no_grad():
        run.snapshot("moving")
    assert torch.equal(run.role("moving").token_logps(sequences).logps, after)
    greedy = [
        [r.sequence for r in run.generate(prompt_rows(6), max_new_tokens=6, temperature=0, role=role)]
        for role in ("policy", "moving", "last")
    ]
    assert greedy[0] == greedy[1] != greedy[2]
    assert greedy[2] == [
        r.sequence for r in open_run(world, Moving()).generate(prompt_rows(6), max_new_tokens=6, temperature=0)
    ]
    # Equal weights give different samples, because each role has noise of its own.
    samples = [
        [r.sequence for r in run.generate(prompt_rows(6), max_new_tokens=6, role=r)] for r in ("policy", "moving")
    ]
    assert samples[0] != samples[1]


def test_gradients_reach_the_own_weights_and_no_snapshot(world: World) -> None:
    run = open_run(world, Moving())
    (batch, *_) = [next(iter(Moving().batches(run)))]
    micro = next(iter(_micros(run, batch)))
    Moving().loss(run, micro).loss.backward()  # type: ignore[no-untyped-call]
    assert {name for name, weight in run.parameters.items() if weight.grad is not None and weight.grad.any()} == {
        "log_temperature",
        "head",
    }
    for name in ("moving", "last"):
        weights = [weight for _, weight in run.roles.adapter_parameters([role_of(name)])]
        assert weights
        assert all(weight.grad is None and not weight.requires_grad for weight in weights)
    assert any(p.grad is not None and p.grad.any() for _, p in run.roles.adapter_parameters(["policy"]))


def _micros(run: Run, batch: StepBatch) -> Iterator[Any]:
    from alignment_core.training.loop import _micro_batches

    return _micro_batches(batch, run)


def test_policy_is_trained_as_without_own_weights(world: World, tmp_path: Path) -> None:
    """The head's loss has no gradient for the policy here, and its large gradient is clipped separately."""
    with_own, without = (
        learn(Moving(own=own, max_grad_norm=0.1), open_run(world, Moving(own=own)), tmp_path / str(own))
        for own in (True, False)
    )
    assert copied(with_own, "policy").keys() == copied(without, "policy").keys()
    for name, weight in copied(with_own, "policy").items():
        assert torch.equal(weight, copied(without, "policy")[name]), name
    assert "grad_norm_parameters" not in without.metrics
    assert with_own.metrics["grad_norm_parameters"] > 0
    start = open_run(world, Moving()).parameters
    assert start["log_temperature"].item() == 0.5
    assert start["head"].dtype == torch.float32
    for name, weight in with_own.parameters.items():
        assert not torch.equal(weight, start[name])


@pytest.fixture(scope="module")
def unbroken(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, int]:
    progress = Listener()
    return learn(Moving(), open_run(world, Moving(), progress), tmp_path_factory.mktemp("unbroken")), progress.looks


def assert_same(run: Run, other: Run) -> None:
    assert run.history == other.history
    others = everything(other)
    assert any(name.startswith("extra.") for name in others)
    assert any(name.startswith("moving.") for name in others)
    for name, weight in everything(run).items():
        assert torch.equal(weight, others[name]), name


def test_stopped_anywhere_ends_equal(world: World, tmp_path: Path, unbroken: tuple[Run, int]) -> None:
    """Among the moments is the sampling after the snapshots were moved, where a repeated move would be an error."""
    whole, looks = unbroken
    for stop_at in range(2, looks, looks // 5):
        folder = tmp_path / str(stop_at)
        with pytest.raises(Stopped):
            learn(Moving(), open_run(world, Moving(), Listener(stop_at=stop_at)), folder)
        assert_same(learn(Moving(), open_run(world, Moving()), folder), whole)


def test_killed_ends_equal(world: World, tmp_path: Path, unbroken: tuple[Run, int]) -> None:
    with pytest.raises(Killed):
        learn(Moving(), open_run(world, Moving(), Listener(kill_after_step=4)), tmp_path, every=0)
    assert_same(learn(Moving(), open_run(world, Moving()), tmp_path, every=0), unbroken[0])
    saved = load_file(max(tmp_path.glob("checkpoint-*")) / "tensors.safetensors")
    assert torch.equal(saved["weights.extra.head"], unbroken[0].parameters["head"])
    assert sum(name.startswith("snapshots.") for name in saved) == len(unbroken[0].snapshots.tensors())


def test_mistakes(world: World) -> None:
    run = open_run(world, Moving())
    with torch.no_grad():
        with pytest.raises(PluginError, match=r'did not declare.*`Needs\(snapshots=\("old",\), …\)`'):
            run.snapshot("old")
        for mix in (0.0, 1.5):
            with pytest.raises(PluginError, match="the share of the policy in a snapshot is out of range"):
                run.snapshot("moving", mix)
        run.snapshot("moving", 0.5)
        with pytest.raises(PluginError, match="moved twice before one step"):
            run.snapshot("moving", 0.5)
    with pytest.raises(PluginError, match="moved within `loss`"):
        run.snapshot("last")
    for use in (run.role, lambda name: run.generate(prompt_rows(1), max_new_tokens=1, role=name)):
        with pytest.raises(PluginError, match="a role that it did not declare"):
            use("old")
    with pytest.raises(PluginError, match=r"Return `Needs\(reference=True"):
        run.generate(prompt_rows(1), max_new_tokens=1, role="reference")
    for names in (("policy",), ("Mine",), ("one.two",), ("a", "a")):
        with pytest.raises(PluginError, match="need names of their own"):
            Needs(snapshots=names)
    with pytest.raises(PluginError, match="a name that cannot be used"):
        initial_parameters(_Dotted(), 4, 0)


class _Dotted(Moving):
    def parameters(self, width: int) -> Mapping[str, Tensor | float]:
        return {"a.b": 0.0}


def test_a_snapshot_may_have_the_name_of_a_module(world: World) -> None:
    """peft finds the weights of an adapter by its name, which would be found in `model.layers.0.mlp`, too."""

    class Mlp(Moving):
        def needs(self) -> Needs:
            return Needs(preferences=True, snapshots=("mlp", "layers"))

    run = open_run(world, Mlp())
    assert copied(run, role_of("mlp")).keys() == copied(run, "policy").keys()
    assert len(run.snapshots.tensors()) == 2 * len(copied(run, "policy"))
    assert language(run.roles, role_of("layers")).logps([run.preferences[0].sequences["chosen"]]).shape == (1,)
