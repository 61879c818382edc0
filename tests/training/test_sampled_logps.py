"""Log-probabilities of the sampling pass are taken only if they are those of a fresh pass."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from engine import LORA, disturb, open_roles
from runs import Listener, make_world, prompt_rows
from scripted import Model

from alignment_core.errors import PluginError
from alignment_core.plugin_api import Rollout, Row, TokenSequence
from alignment_core.training.run import Run
from alignment_core.training.sampled_logps import CHECKED, TOLERANCE, sampled_logps


def rollouts(first: float, rest: float) -> list[Rollout]:
    """Return responses of 1 or 2 tokens. The first one was sampled at `first` nats per token, all others at `rest`."""
    found = []
    for i in range(CHECKED):
        sequence = TokenSequence((100 + i, *(5, 6)[: 1 + i % 2]), 1)
        logps = (first if i == 0 else rest,) * (1 + i % 2)
        found.append(Rollout(Row(f"{i}", {}), sequence, True, "", logps=logps, entropies=tuple(0.25 for _ in logps)))
    return found


def fresh_policy(found: list[Rollout]) -> Model:
    return Model({one.sequence.ids: [-1.0] * len(one.sequence.completion) for one in found}, entropy=0.7)


def test_equal_ones_are_taken_without_a_pass_over_the_rest() -> None:
    """Only the first of 16 is read again, so the others may say anything."""
    found, refused = rollouts(-1.0 + 0.9 * TOLERANCE, -3.0), list[str]()
    taken = sampled_logps(fresh_policy(found), found, 1.0, refused.append)
    assert taken.logps[0].tolist() == pytest.approx([-1.0 + 0.9 * TOLERANCE, 0.0])
    assert taken.logps[1:4].tolist() == [[-3.0, -3.0], [-3.0, 0.0], [-3.0, -3.0]]
    assert taken.mask[:2].tolist() == [[1.0, 0.0], [1.0, 1.0]]
    assert taken.entropy[1].tolist() == [0.25, 0.25]
    assert refused == []


def test_others_are_replaced_by_a_fresh_pass() -> None:
    found, refused = rollouts(-1.0 + 1.1 * TOLERANCE, -1.0), list[str]()
    taken = sampled_logps(fresh_policy(found), found, 1.0, refused.append)
    assert taken.logps[0].tolist() == [-1.0, 0.0]
    assert taken.entropy[1].tolist() == pytest.approx([0.7, 0.7])
    (message,) = refused
    assert "differ from those of a fresh pass by 0.0011 nats" in message


def test_an_engine_that_keeps_none_needs_a_pass() -> None:
    found, refused = rollouts(-1.0, -1.0), list[str]()
    found[5] = Rollout(found[5].prompt, found[5].sequence, True, "")
    assert sampled_logps(fresh_policy(found), found, 1.0, refused.append).entropy[0, 0] == pytest.approx(0.7)
    assert refused == []


def open_run(path: Path, folder: Path, load_in: str, progress: Listener) -> Run:
    run = make_world(path, folder).open("ppo", progress=progress)
    roles = open_roles(path, load_in)  # type: ignore[arg-type]
    roles.add_new("policy", LORA, 0)
    disturb(roles, "policy", 3)
    return Run(roles, run.rows, run.vocabulary, run.budget, 0, progress)


def test_a_float32_model_is_read_once_and_a_bf16_model_again(tiny_model: Path, tmp_path: Path) -> None:
    for load_in, read_again in (("fp32", False), ("bf16", True)):
        progress = Listener()
        run = open_run(tiny_model, tmp_path / load_in, load_in, progress)
        # Of 16 columns: the layout decides how bf16 rounds.
        found = run.generate(prompt_rows(4), max_new_tokens=16, temperature=0.8, samples=8, logps=True)
        for _ in range(2):
            taken = run.sampled_logps(found, 0.8)
        fresh = run.policy.token_logps([rollout.sequence for rollout in found], 0.8)
        assert torch.equal(taken.logps, fresh.logps.detach()) == read_again
        assert len(progress.logs) == int(read_again), "said once"
        assert run.take_side_metrics() == {"slow_responses_share": 0.0, "read_again_share": float(read_again)}
        torch.testing.assert_close(taken.logps, fresh.logps.detach(), atol=TOLERANCE, rtol=0)
        torch.testing.assert_close(taken.entropy, fresh.entropy, atol=TOLERANCE, rtol=0)
        assert torch.equal(taken.mask, fresh.mask)


def test_greedy_responses_have_none(tiny_model: Path, tmp_path: Path) -> None:
    run = open_run(tiny_model, tmp_path, "fp32", Listener())
    with pytest.raises(PluginError, match="greedy responses have no log-probabilities"):
        run.generate(prompt_rows(1), max_new_tokens=2, temperature=0, logps=True)


def test_responses_that_are_sampled_one_by_one_are_counted(tiny_model: Path, tmp_path: Path) -> None:
    run = open_run(tiny_model, tmp_path, "fp32", Listener())
    prompts = prompt_rows(3)
    lengths = sorted(len(prompt.sequences["prompt"].ids) for prompt in prompts)
    run.roles.reach = replace(run.roles.reach, batched=lengths[0] + 4)
    run.generate(prompts, max_new_tokens=4)
    slow = sum(length > lengths[0] for length in lengths)
    assert slow, "the prompts differ in length"
    run.report({})
    assert run.history == [{"step": 0, "slow_responses_share": pytest.approx(slow / 3)}]
    assert run.take_side_metrics() == {}
