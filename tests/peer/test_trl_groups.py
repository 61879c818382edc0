"""GRPO and RLOO compared with TRL: statements of its trainers, run on the same tensors as our plugins.

The statements are inside methods that also generate and log, so the tests take them from the source file, by how the
first and the last of them start, and execute them. TRL is not imported.

Differences of TRL: its KL in the loss and its ratios are the same, but it has no KL in GRPO's reward. It samples no new
groups for those of equal reward and does not leave them out either.
"""

from __future__ import annotations

import ast
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scripted import ScriptedRun, micro
from torch import Tensor

from alignment_core import losses
from alignment_core.plugin_api import Row, TokenLogps, TokenSequence
from alignment_plugins.grpo import GRPO
from alignment_plugins.rloo import RLOO

SPEC = find_spec("trl")
pytestmark = [
    pytest.mark.peer,
    pytest.mark.skipif(SPEC is None, reason="TRL is not installed: pip install 'alignment-flows[peer]'"),
]

LENGTHS = [2, 5, 7, 7, 1, 4]
GROUP = 3
BETA, CLIP, CLIP_HIGH, LIMIT = 0.3, 0.2, 0.28, 9
MASK = torch.tensor([[1.0] * length + [0.0] * (max(LENGTHS) - length) for length in LENGTHS])


def source_of(file: str) -> str:
    assert SPEC is not None
    assert SPEC.origin is not None
    return (Path(SPEC.origin).parent / "trainer" / file).read_text(encoding="utf-8")


def run_statements(file: str, method: str, first: str, last: str, space: dict[str, Any]) -> dict[str, Any]:
    """Execute the statements of a trainer's method from the one that starts with `first` to the one with `last`."""
    source = source_of(file)
    (found,) = (
        node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef) and node.name == method
    )
    for block in (node.body for node in ast.walk(found) if isinstance(getattr(node, "body", None), list)):
        starts = [ast.get_source_segment(source, statement) or "" for statement in block]
        begin = next((i for i, text in enumerate(starts) if text.startswith(first)), None)
        end = next((i for i, text in enumerate(starts) if begin is not None and i >= begin and last in text), None)
        if begin is not None and end is not None:
            exec(compile(ast.Module(block[begin : end + 1], []), file, "exec"), space)
            return space
    raise AssertionError(f"{file}: {method} has no statements from {first!r} to {last!r}")


def nanstd() -> Any:
    """TRL's standard deviation."""
    source = source_of("utils.py")
    (found,) = (n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef) and n.name == "nanstd")
    found.decorator_list = []
    space: dict[str, Any] = {"torch": torch}
    exec(compile(ast.Module([found], []), "utils.py", "exec"), space)
    return space["nanstd"]


def noise(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    """Log-probabilities of six responses, and their rewards in two groups."""
    old = -noise(len(LENGTHS), max(LENGTHS), seed=0).abs() * MASK
    return {
        "old": old,
        "now": (old + 0.3 * noise(*old.shape, seed=1)) * MASK,
        "reference": (old + 0.5 * noise(*old.shape, seed=2)) * MASK,
        "rewards": noise(len(LENGTHS), seed=3),
    }


def ours(objective: Any, tensors: dict[str, Tensor], advantages: Tensor) -> tuple[float, Tensor]:
    """Return the plugin's loss of all responses as one micro-batch, and the gradient of the log-probabilities."""
    now = tensors["now"].clone().requires_grad_()
    run = ScriptedRun()
    run.policy.token_logps = lambda *_: TokenLogps(now, MASK, torch.zeros_like(MASK))  # type: ignore[method-assign]
    rows = []
    for i, length in enumerate(LENGTHS):
        values: dict[str, Any] = {
            "advantage": float(advantages[i]),
            "old_logps": tensors["old"][i, :length].tolist(),
            "reference_logps": tensors["reference"][i, :length].tolist(),
        }
        rows.append(Row(str(i), {"response": TokenSequence((1,) * (1 + length), 1)}, values))
    denominators = {"tokens": float(sum(LENGTHS)), "rows": float(len(LENGTHS))}
    loss = objective.loss(run, micro(rows, denominators)).loss
    loss.backward()
    assert now.grad is not None
    return loss.item(), now.grad


@pytest.mark.parametrize(("scale", "divide"), [("group", True), ("none", False)])
def test_advantages_of_grpo_match_trl(tensors: dict[str, Tensor], scale: str, divide: bool) -> None:
    trainer = SimpleNamespace(
        multi_objective_aggregation="sum_then_normalize", scale_rewards=scale, reward_weights=torch.ones(1)
    )
    space = {
        "torch": torch, "nanstd": nanstd(), "self": trainer, "device": "cpu", "num_generations": GROUP,
        "rewards_per_func": tensors["rewards"].unsqueeze(1), "unscorable_mask": torch.zeros(len(LENGTHS)).bool(),
    }  # fmt: skip
    first = 'if self.multi_objective_aggregation == "sum_then_normalize"'
    theirs = run_statements("grpo_trainer.py", "_generate_and_score_completions", first, first, space)["advantages"]
    found = losses.group_advantages(tensors["rewards"].view(-1, GROUP), divide=divide)
    torch.testing.assert_close(found.flatten(), theirs)


@pytest.mark.parametrize(("loss_type", "loss_mean"), [("grpo", "sequence"), ("dapo", "token"), ("dr_grpo", "constant")])
@pytest.mark.parametrize("beta", [0.0, BETA])
def test_loss_and_gradient_of_grpo_match_trl(
    tensors: dict[str, Tensor], loss_type: str, loss_mean: Any, beta: float
) -> None:
    advantages = losses.group_advantages(tensors["rewards"].view(-1, GROUP), divide=True).flatten()
    now = tensors["now"].clone().requires_grad_()
    trainer = SimpleNamespace(
        importance_sampling_level="token", beta=beta, loss_type=loss_type, epsilon_low=CLIP, epsilon_high=CLIP_HIGH,
        off_policy_mask_threshold=None, use_vllm=False, max_completion_length=LIMIT,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        model=SimpleNamespace(training=True), current_gradient_accumulation_steps=1,
        accelerator=SimpleNamespace(num_processes=1),
    )  # fmt: skip
    space = {
        "torch": torch, "self": trainer, "per_token_logps": now, "old_per_token_logps": tensors["old"], "mask": MASK,
        "advantages": advantages.unsqueeze(1), "entropy_mask": None,
        "inputs": {"ref_per_token_logps": tensors["reference"], "num_items_in_batch": MASK.sum()},
    }  # fmt: skip
    last = 'if self.loss_type in ["grpo", "sapo"]'
    theirs = run_statements("grpo_trainer.py", "_compute_loss", "log_ratio = per_token_logps", last, space)["loss"]
    theirs.backward()
    objective = GRPO(loss_mean=loss_mean, kl_coef=beta, clip=CLIP, clip_high=CLIP_HIGH, max_new_tokens=LIMIT)
    loss, gradient = ours(objective, tensors, advantages)
    assert loss == pytest.approx(theirs.item(), rel=1e-5)
    torch.testing.assert_close(gradient, now.grad)


def rloo_advantages(tensors: dict[str, Tensor]) -> Tensor:
    kl = (tensors["old"] - tensors["reference"]).sum(dim=1)
    return losses.leave_one_out((tensors["rewards"] - BETA * kl).view(-1, GROUP)).flatten()


def test_advantages_of_rloo_match_trl(tensors: dict[str, Tensor]) -> None:
    trainer = SimpleNamespace(
        reward_weights=torch.ones(1), reward_clip_range=None, beta=BETA, normalize_advantages=False
    )
    space = {
        "torch": torch, "nanstd": nanstd(), "self": trainer, "device": "cpu", "num_generations": GROUP,
        "rewards_per_func": tensors["rewards"].unsqueeze(1), "unscorable_mask": torch.zeros(len(LENGTHS)).bool(),
        "old_per_token_logps": tensors["old"], "ref_per_token_logps": tensors["reference"], "completion_mask": MASK,
        "gather": lambda kl: kl,
    }  # fmt: skip
    first, last = "rewards = (rewards_per_func", "advantages = torch.nan_to_num"
    theirs = run_statements("rloo_trainer.py", "_generate_and_score_completions", first, last, space)["advantages"]
    torch.testing.assert_close(rloo_advantages(tensors), theirs)


def test_loss_and_gradient_of_rloo_match_trl(tensors: dict[str, Tensor]) -> None:
    advantages = rloo_advantages(tensors)
    now = tensors["now"].clone().requires_grad_()
    space = {
        "torch": torch, "self": SimpleNamespace(epsilon_low=CLIP, epsilon_high=CLIP), "per_token_logps": now,
        "completion_mask": MASK, "inputs": {"old_logps": tensors["old"].sum(dim=1), "advantages": advantages},
    }  # fmt: skip
    first, last = "logps = (per_token_logps", "loss = per_sequence_loss.mean()"
    theirs = run_statements("rloo_trainer.py", "_compute_loss", first, last, space)["loss"]
    theirs.backward()
    loss, gradient = ours(RLOO(clip=CLIP), tensors, advantages)
    assert loss == pytest.approx(theirs.item(), rel=1e-5)
    # The log-probabilities of a role are constant at padding.
    torch.testing.assert_close(gradient * MASK, now.grad)
    assert now.grad is not None
    assert (now.grad == 0).any()  # some are clipped, or past their end
