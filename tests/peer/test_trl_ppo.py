"""PPO's arithmetic compared with TRL 1.12, the last release with PPO: its source lines, run on the same tensors.

The lines are inside `PPOTrainer.train`, so the tests extract them from its source file, by how their first and last
lines start, and execute them. TRL 1.12 is not imported. It is installed next to the newer TRL of the other tests.

Differences of TRL, each shown below:

- A finished response has one more state in TRL, after its end token. The value model values that state, and it gets
  the score. Here the episode ends with the end token. Both agree once that state is part of our rows.
- TRL whitens with the sample variance, and we use the population variance: a factor of sqrt((n - 1) / n).
- TRL takes means over the tokens of a micro-batch, and micro-batches count equally. Ours are over the step's tokens.
- TRL counts a value as clipped if rounding makes the clipped branch larger. Here the value must leave the clip range.
"""

from __future__ import annotations

import ast
import math
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignment_core import losses

SOURCE = Path(sys.prefix) / "trl-1.12" / "trl" / "experimental" / "ppo" / "ppo_trainer.py"
pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(not SOURCE.is_file(), reason=f"TRL 1.12 is not in {Path(sys.prefix) / 'trl-1.12'}: make verify"),
]

SETTINGS = SimpleNamespace(
    kl_estimator="k1", kl_coef=0.07, whiten_rewards=False, gamma=0.97, lam=0.9, cliprange=0.2, cliprange_value=0.15,
    vf_coef=0.3, missing_eos_penalty=1.5,
)  # fmt: skip
LENGTHS = [2, 5, 7, 7, 1, 4]
"""Tokens per response, including the end token. The limit is 7, so two of them may have been cut."""
LONGEST = max(LENGTHS)


@pytest.fixture(scope="module")
def functions() -> dict[str, Any]:
    """TRL's functions for masked tensors."""
    tree = ast.parse(SOURCE.read_text())
    wanted = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("masked_")]
    assert {node.name for node in wanted} == {"masked_mean", "masked_var", "masked_whiten"}
    space: dict[str, Any] = {"torch": torch, "INVALID_LOGPROB": 1.0, "empty_cache": lambda: None, "args": SETTINGS}
    exec(compile(ast.Module(wanted, []), str(SOURCE), "exec"), space)
    return space


def run_lines(first: str, last: str, space: dict[str, Any]) -> dict[str, Any]:
    """Execute TRL's lines from the one that starts with `first` to the one that starts with `last`."""
    lines = SOURCE.read_text().splitlines()
    (start,) = (i for i, line in enumerate(lines) if line.strip().startswith(first))
    end = next(i for i, line in enumerate(lines) if i > start and line.strip().startswith(last))
    exec(textwrap.dedent("\n".join(lines[start : end + 1])), space)
    return space


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def rollout(functions: dict[str, Any]) -> dict[str, Any]:
    """TRL's masks, rewards, advantages and returns of a rollout, with the input tensors."""
    lengths = torch.tensor(LENGTHS)
    space = functions | {
        "responses": torch.zeros(len(LENGTHS), LONGEST),
        "logprobs": -noise(len(LENGTHS), LONGEST, seed=0).abs(),
        "ref_logprobs": -noise(len(LENGTHS), LONGEST, seed=1).abs(),
        "values": noise(len(LENGTHS), LONGEST, seed=2),
        "scores": noise(len(LENGTHS), seed=3),
        "sequence_lengths": lengths - 1,  # TRL's is the index of the last token
    }
    return run_lines("response_idxs = torch.arange", "advantages = torch.masked_fill", space)


def with_the_state_after_the_end(rollout: dict[str, Any]) -> Tensor:
    """Return our mask of the rows as TRL defines them, with one more position if there is room."""
    return (~rollout["padding_mask_p1"]).double()


def test_rewards_match_trl(rollout: dict[str, Any]) -> None:
    """TRL's padding has equal log-probabilities and hence no KL. Its score is on the state after the end."""
    ours = losses.token_rewards(
        rollout["scores"],
        rollout["logprobs"],
        rollout["ref_logprobs"],
        with_the_state_after_the_end(rollout),
        kl_coef=SETTINGS.kl_coef,
    )
    torch.testing.assert_close(ours, rollout["rewards"])
    mask = (~rollout["padding_mask"]).double()
    plain = losses.token_rewards(
        rollout["scores"], rollout["logprobs"], rollout["ref_logprobs"], mask, kl_coef=SETTINGS.kl_coef
    )
    for row, length in enumerate(LENGTHS):
        # Without that state, the sum of rewards is the same, with the score on the end token.
        assert plain[row].sum().item() == pytest.approx(rollout["rewards"][row].sum().item())
        assert (plain[row, length:] == 0).all()


def test_gae_matches_trl(rollout: dict[str, Any]) -> None:
    mask = with_the_state_after_the_end(rollout)
    advantages, returns = losses.gae(rollout["rewards"], rollout["values"], mask, gamma=0.97, lam=0.9)
    torch.testing.assert_close(returns, rollout["returns"] * mask)
    raw = torch.stack(rollout["advantages_reversed"][::-1], dim=1)
    torch.testing.assert_close(advantages, raw * mask)


def test_whitening_matches_trl_except_for_bessels_correction(rollout: dict[str, Any]) -> None:
    mask = ~rollout["padding_mask"]
    raw = torch.stack(rollout["advantages_reversed"][::-1], dim=1)
    count = int(mask.sum())
    assert count == sum(LENGTHS)
    ours = losses.whiten(raw, mask.double())
    torch.testing.assert_close(ours * math.sqrt((count - 1) / count), rollout["advantages"], rtol=1e-6, atol=1e-8)


@pytest.fixture
def step(rollout: dict[str, Any]) -> dict[str, Any]:
    """TRL's losses of the complete rollout as one micro-batch, after policy and values have changed."""
    space = rollout | {
        "new_logprobs": (rollout["logprobs"] + 0.3 * noise(len(LENGTHS), LONGEST, seed=4)).requires_grad_(),
        "vpred": (rollout["values"] + 0.3 * noise(len(LENGTHS), LONGEST, seed=5)).requires_grad_(),
        "mb_values": rollout["values"],
        "mb_return": rollout["returns"],
        "mb_logprobs": rollout["logprobs"],
        "mb_advantage": rollout["advantages"],
        "micro_batch_inds": torch.arange(len(LENGTHS)),
    }
    return run_lines("vpredclipped = torch.clamp(", "loss = pg_loss + args.vf_coef", space)


def test_losses_and_gradients_match_trl(step: dict[str, Any]) -> None:
    mask, longer = (~step["padding_mask"]).double(), with_the_state_after_the_end(step)
    logps, values = (step[name].detach().clone().requires_grad_() for name in ("new_logprobs", "vpred"))
    policy, policy_clipped = losses.clipped_policy(logps, step["mb_logprobs"], step["mb_advantage"], clip=0.2)
    value, value_clipped = losses.clipped_value(values, step["mb_values"], step["mb_return"], clip=0.15)
    policy_loss, value_loss = (policy * mask).sum() / mask.sum(), (value * longer).sum() / longer.sum()
    torch.testing.assert_close(policy_loss, step["pg_loss"])
    torch.testing.assert_close(value_loss, step["vf_loss"])
    torch.testing.assert_close((value_clipped * longer).sum() / longer.sum(), step["vf_clipfrac"].double())
    pg_clipped = (step["pg_losses2"] > step["pg_losses"]).double()
    assert torch.equal(policy_clipped * mask, pg_clipped * mask)
    assert 0 < (pg_clipped * mask).sum() < mask.sum()
    (policy_loss + SETTINGS.vf_coef * value_loss).backward()
    step["loss"].backward()
    torch.testing.assert_close(logps.grad, step["new_logprobs"].grad)
    torch.testing.assert_close(values.grad, step["vpred"].grad)


def test_penalty_for_a_missing_end_matches_trl() -> None:
    ended = torch.tensor([True, False, True])
    scores = torch.tensor([1.0, 2.0, 3.0])
    space = {
        "self": SimpleNamespace(args=SETTINGS, processing_class=SimpleNamespace(eos_token_id=2)),
        "torch": torch,
        "postprocessed_responses": torch.tensor([[5, 2], [5, 6], [2, 0]]),
        "scores": scores.clone(),
    }
    theirs = run_lines("contain_eos_token = torch.any", "scores[~contain_eos_token] -=", space)["scores"]
    assert torch.equal(theirs, scores - SETTINGS.missing_eos_penalty * ~ended)
