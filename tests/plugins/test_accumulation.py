"""Each built-in optimizer's losses add up to the same total for any row order and any split into micro-batches."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from runs import feedback_rows, preference_rows
from scripted import Model, ScriptedRun, micro

from alignment_core.plugin_api import Row, StepBatch
from alignment_plugins.dpo import DPO
from alignment_plugins.grpo import GRPO
from alignment_plugins.kto import KTO
from alignment_plugins.online_dpo import OnlineDPO
from alignment_plugins.ppo import PPO
from alignment_plugins.rloo import RLOO


def models(rows: list[Row], seed: int) -> dict[str, Model]:
    """Return models with random numbers for every token of every sequence."""
    rng = random.Random(seed)
    sequences = {sequence.ids: sequence for row in rows for sequence in row.sequences.values()}

    def table() -> dict[tuple[int, ...], list[float]]:
        return {ids: [-3 * rng.random() for _ in s.completion] for ids, s in sequences.items()}

    return {name: Model(table()) for name in ("policy", "reference", "value")}


def rollout_rows(count: int, seed: int, per_token: tuple[str, ...]) -> list[Row]:
    rng, rows = random.Random(seed), []
    for i, row in enumerate(feedback_rows(count, 0, seed)):
        response = row.sequences["response"]
        values: dict[str, Any] = {name: [rng.uniform(-2, 2) for _ in response.completion] for name in per_token}
        rows.append(Row(str(i), {"response": response}, values | {"advantage": rng.uniform(-2, 2)}))
    return rows


def rollout_step(objective: Any, rows: list[Row]) -> tuple[Any, list[Row], StepBatch]:
    tokens = sum(sequence.targets for row in rows for sequence in row.sequences.values())
    return objective, rows, StepBatch(rows, {"tokens": tokens})


def dpo_step(count: int, seed: int) -> tuple[Any, list[Row], StepBatch]:
    rows = preference_rows(count, seed)
    tokens = sum(row.sequences["chosen"].targets for row in rows)
    return DPO(sft_weight=0.2, margin_scale=0.1), rows, StepBatch(rows, {"chosen_tokens": tokens})


def kto_step(count: int, seed: int) -> tuple[Any, list[Row], StepBatch]:
    rows = feedback_rows(count, 1, seed)
    constants = {"z0": 0.4, "desirable_weight": 0.5, "undesirable_weight": 1.0}
    return KTO(), rows, StepBatch(rows, {"desirable": count, "undesirable": 1}, constants)


def ppo_step(count: int, seed: int) -> tuple[Any, list[Row], StepBatch]:
    return rollout_step(PPO(), rollout_rows(count, seed, ("old_logps", "old_values", "advantages", "returns")))


def grpo_step(count: int, seed: int) -> tuple[Any, list[Row], StepBatch]:
    loss_mean: Any = ("sequence", "token", "constant")[seed % 3]
    return rollout_step(GRPO(loss_mean=loss_mean), rollout_rows(count, seed, ("old_logps", "reference_logps")))


def rloo_step(count: int, seed: int) -> tuple[Any, list[Row], StepBatch]:
    return rollout_step(RLOO(), rollout_rows(count, seed, ("old_logps",)))


def online_dpo_step(count: int, seed: int) -> tuple[Any, list[Row], StepBatch]:
    rng, rows = random.Random(seed), []
    for row in preference_rows(count, seed):
        values: dict[str, Any] = {}
        for side, sequence in row.sequences.items():
            values[f"{side}_old_logps"] = [rng.uniform(-2, 0) for _ in sequence.completion]
            values[f"{side}_reference"] = rng.uniform(-9, 0)
        rows.append(Row(row.id, row.sequences, values))
    return rollout_step(OnlineDPO(), rows)


STEPS = [dpo_step, kto_step, ppo_step, grpo_step, rloo_step, online_dpo_step]


@pytest.mark.parametrize("step", STEPS)
@given(count=st.integers(1, 7), seed=st.integers(0, 999), data=st.data())
def test_order_and_micro_batches_change_nothing(step: Any, count: int, seed: int, data: st.DataObject) -> None:
    objective, rows, batch = step(count, seed)
    run = ScriptedRun(**models(rows, seed))
    denominators = {"rows": float(len(rows)), **batch.denominators}
    whole = objective.loss(run, micro(rows, denominators, batch.constants))
    order = data.draw(st.permutations(rows))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(rows)))) | {0, len(rows)})
    parts = [
        objective.loss(run, micro(order[start:end], denominators, batch.constants)) for start, end in pairwise(cuts)
    ]
    torch.testing.assert_close(sum(part.loss for part in parts), whole.loss, rtol=1e-4, atol=1e-5)
    for name, value in whole.metrics.items():
        total = sum(float(part.metrics[name]) for part in parts)
        assert total == pytest.approx(float(value), rel=1e-4, abs=1e-5), name
