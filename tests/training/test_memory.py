"""The choice of token budget and checkpointing, and the traced demand of each objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from runs import GROUP_OBJECTIVES, OBJECTIVES, demonstration_rows, feedback_rows, preference_rows, prompt_rows

from alignment_core.models.memory.architecture import Footprint, Pass
from alignment_core.plugin_api import LossOutput, Needs
from alignment_core.training.demand import Demand, Layout, trace_training
from alignment_core.training.memory import choose_memory_settings
from alignment_core.training.rows import Rows
from alignment_plugins.dpo import DPO

PACKED = Layout(packs=True, call_cost=0)


class FixedCosts:
    """A dry run with fixed costs: a kept token takes 100 bytes, a recomputed one 30."""

    layers = vocabulary = 1

    def footprint(self) -> Footprint:
        return Footprint(base=1000, loading=0, adapters=10, training=30, parameters=1, trainable=1, cache_per_token=0)

    def training(self, passes: list[Pass], *, checkpointing: int) -> int:
        share = 1 / checkpointing if checkpointing else 0
        return round(sum(one.tokens for one in passes) * (100 - 70 * share))


def of_budget(tokens: int) -> Demand:
    return Demand(largest=(Pass("policy", (), tokens),))


@pytest.mark.parametrize(
    ("available", "expected"),
    [
        (10**6, (4096, False, True)),
        (1040 + 4095 * 100, (2048, False, True)),
        (1040 + 1024 * 100, (1024, False, True)),
        (1040 + 1024 * 100 - 1, (1024, 4, True)),
        (1040 + 1024 * 82.5, (1024, 4, True)),
        (1040 + 1024 * 82.5 - 1, (1024, 2, True)),
        (1040 + 1024 * 65, (1024, 2, True)),
        (1040 + 1024 * 65 - 1, (2048, True, True)),
        (1040 + 64 * 30, (64, True, True)),
        (1040 + 64 * 30 - 1, (64, True, False)),
    ],
)
def test_activations_are_kept_while_passes_are_long_enough(available: float, expected: tuple[int, int, bool]) -> None:
    found = choose_memory_settings(FixedCosts(), of_budget, available, token_budget=None, gradient_checkpointing=None)  # type: ignore[arg-type]
    assert (found.token_budget, found.gradient_checkpointing, found.fits) == expected


@pytest.mark.parametrize(
    ("budget", "recompute", "expected"),
    [
        (512, None, (512, 2)),
        (256, None, (256, False)),
        (1024, None, (1024, True)),
        (None, False, (256, False)),
        (None, 4, (256, 4)),
        (None, 2, (512, 2)),
        (None, True, (1024, True)),
        (4096, False, (4096, False)),
    ],
)
def test_explicit_settings_are_kept(budget: int | None, recompute: int | None, expected: tuple[int, int]) -> None:
    dry_run: Any = FixedCosts()
    available = 1040 + 256 * 130
    found = choose_memory_settings(dry_run, of_budget, available, token_budget=budget, gradient_checkpointing=recompute)
    assert (found.token_budget, found.gradient_checkpointing) == expected


def test_loaded_weights_are_not_counted_twice() -> None:
    found = choose_memory_settings(
        FixedCosts(),  # type: ignore[arg-type]
        of_budget,
        4096 * 100 + 30,
        token_budget=None,
        gradient_checkpointing=None,
        present=lambda footprint: footprint.base + footprint.adapters,
    )
    assert (found.token_budget, found.gradient_checkpointing) == (4096, False)


def demand(kind: str, budget: int = 10**6, *, cached: bool = False) -> Demand:
    rows = Rows(demonstration_rows(10), preference_rows(10), feedback_rows(5, 5), prompt_rows(10))
    trained = {"reward": ("reward",), "ppo": ("policy", "value")}.get(kind, ("policy",))
    return trace_training(
        (OBJECTIVES | GROUP_OBJECTIVES)[kind](), rows, PACKED, budget, trained=trained, cached_reference=cached
    )


def test_demand_counts_learned_and_read_tokens() -> None:
    demonstrations = [row.sequences["demonstration"] for row in demonstration_rows(10)]
    sft = demand("sft")
    assert sft.learned == 2 * sum(len(s.ids) for s in demonstrations)
    assert (sft.steps, sft.read, sft.responses) == (6, 0, 0)
    assert demand("dpo", cached=True).read == 0
    assert demand("dpo").read > 0
    kto = demand("kto", cached=True)
    # The mismatched responses are read for z0 and not trained on.
    responses = sum(len(row.sequences["response"].ids) for row in feedback_rows(5, 5))
    assert kto.learned == 2 * responses
    assert kto.read > 0


def test_demand_of_ppo_includes_sampling() -> None:
    found = demand("ppo")
    assert found.responses == 3 * 6
    assert found.response_tokens == 6
    assert {one.role for one in found.largest} == {"policy", "value"}
    assert found.room == 6 + max(len(row.sequences["prompt"].ids) for row in prompt_rows(10)[:9] + prompt_rows(10))


@pytest.mark.parametrize(("kind", "learned"), [("grpo", 8), ("rloo", 8), ("online_dpo", 4)])
def test_demand_of_groups_includes_sampling_and_learning(kind: str, learned: int) -> None:
    """Three rollouts of eight responses of six tokens, in groups of four. Online DPO learns from two of each group."""
    found = demand(kind)
    assert found.responses == 3 * 8
    assert found.learned >= 3 * 2 * learned * 6
    assert {one.role for one in found.largest} == {"policy"}
    assert found.steps == 3 * 2 * 2


def test_demand_of_snapshots_and_hidden_states() -> None:
    """Snapshots and hidden states run forward passes, and an optimizer's own weights have their real width."""
    sequences = [s for row in preference_rows(10) for s in row.sequences.values()]
    tokens = 2 * sum(len(sequence.ids) for sequence in sequences)

    class Asking(DPO):
        def needs(self) -> Needs:
            return Needs(preferences=True, snapshots=("old",))

        def parameters(self, width: int) -> Mapping[str, Any]:
            return {"head": torch.ones(width)}

        def loss(self, run: Any, micro: Any) -> LossOutput:
            found = micro.sequences("chosen") + micro.sequences("rejected")
            gaps = (run.policy.logps(found) - run.role("old").logps(found)).sum()
            return LossOutput(gaps + (run.policy.hidden(found) @ run.parameters["head"]).sum())

    rows = Rows(preferences=preference_rows(10))
    layout = Layout(packs=False, call_cost=0, width=24)
    found = trace_training(Asking(batch_size=4, epochs=2), rows, layout, 10**6, trained=("policy",))
    assert found.learned >= 2 * tokens  # both passes of the policy, with padding
    assert found.read == found.learned / 2
    assert {(one.role, one.hidden) for one in found.largest} == {("policy", False), ("policy", True)}
    assert [one.role for one in found.reading] == ["snapshot_old"]


def test_the_budget_bounds_the_largest_micro_batch() -> None:
    whole, cut = demand("dpo"), demand("dpo", 60)
    assert sum(one.tokens for one in cut.largest) <= 60 < sum(one.tokens for one in whole.largest)
    assert replace(cut, largest=(), reading=()) == replace(whole, largest=(), reading=())
