"""The run used by the checks: a tiny model with every role, and rows of every kind."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignment_core.config import LoraConfig
from alignment_core.data.rendering.byte_tokenizer import EOS, PAD, byte_backend
from alignment_core.discovery.settings import choices_of
from alignment_core.models.roles.logps import Budget
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import AlignmentOptimizer, Needs, Rollout, Row, TokenSequence
from alignment_core.progress import Stopped
from alignment_core.training.contract import Objective
from alignment_core.training.loop import train
from alignment_core.training.rewards import Rewards
from alignment_core.training.rows import Rows, Vocabulary
from alignment_core.training.run import Run
from alignment_core.training.snapshots import role_of
from alignment_core.training.step.parameters import initial_parameters

ENOUGH = 1_000_000
"""A token budget that never splits a step."""
LONGEST_RESPONSE = 12
"""Maximum length of sampled responses in tokens, even if the plugin requests more."""
STOPS = tuple(range(2, 40))
"""Stop tokens: enough of them that some responses end before the limit and others do not."""
VOCABULARY = 258
NEVER = 1e9


class RunEnded(BaseException):
    """Ends a simulated process."""


@dataclass
class Watch:
    """Progress that ends the run: it simulates a kill after `die_after` steps or requests a stop after `stop_after`."""

    die_after: int | None = None
    stop_after: int | None = None
    stopping: bool = False
    warnings: list[str] = field(default_factory=list)

    def step(self, done: int, total: int, metrics: Mapping[str, float] | None = None) -> None:
        if done == self.die_after:
            raise RunEnded
        self.stopping = done == self.stop_after

    def log(self, message: str) -> None:
        pass

    def warn(self, message: str) -> None:
        self.warnings.append(message)


class ShortRun(Run):
    """A run with short responses."""

    def generate(self, prompts: Sequence[Row], *, max_new_tokens: int, **settings: Any) -> list[Rollout]:
        return super().generate(prompts, max_new_tokens=min(max_new_tokens, LONGEST_RESPONSE), **settings)


def open_run(optimizer: AlignmentOptimizer, progress: Watch | None = None, budget: int = ENOUGH) -> Run:
    """Return a new run with the roles and rows that the optimizer declares, as the stage would open it."""
    needs = optimizer.needs()
    roles = Roles(_model(), "tiny-llama")
    roles.add_new("policy", LoraConfig(rank=4, alpha=8), 0)
    _disturb(roles, "policy", 1)
    if needs.reference:
        roles.add_copy("reference", of="policy")
    if needs.reward:
        roles.add_copy("reward", of="policy")
        _disturb(roles, "reward", 2)
        roles.add_head("reward", torch.randn(1, 32, generator=torch.Generator().manual_seed(3)))
    if needs.value:
        roles.add_copy("value", of="reward" if needs.reward else "policy")
        if not needs.reward:
            roles.add_head("value")
    # Policy and reference must differ, otherwise half of a loss would be zero and hide its bugs.
    _disturb(roles, "policy", 4)
    roles.add_parameters(initial_parameters(optimizer, roles.width, 5))
    for name in needs.snapshots:
        roles.add_copy(role_of(name), of="policy")
    roles.train_only(needs.trained)
    return ShortRun(
        roles=roles,
        rows=_rows(needs),
        vocabulary=Vocabulary(_tokenizer(), 0, STOPS),
        budget=Budget(budget),
        seed=5,
        progress=progress or Watch(),
        judges={place: _judge for place, _ in choices_of(optimizer, optimizer.evaluators)},
        pair_judges={place: _pair_judge for place, _ in choices_of(optimizer, optimizer.pair_evaluators)},
        rewarded_by=Rewards() if needs.reward else None,
        snapshot_names=needs.snapshots,
    )


def _tokenizer() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=byte_backend(), pad_token=PAD, eos_token=EOS)


def train_until_end(optimizer: Objective, run: Run, folder: Path, *, save_every_step: bool = False) -> None:
    """Simulate one process: train until the end or until its `Watch` ends the run."""
    _unsettle_randomness()
    with suppress(RunEnded, Stopped):
        train(optimizer, run, folder, 0.0 if save_every_step else NEVER)


@contextmanager
def one_thread() -> Iterator[None]:
    """Use a single thread, because multi-threaded sums differ between runs, and restore PyTorch's random state."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)


def _unsettle_randomness() -> None:
    """Reseed the global generators, as in a new process. A plugin that draws from them cannot resume."""
    random.seed()
    np.random.seed()
    torch.seed()


def _model() -> Any:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=False,
        # The usual 0.02 gives almost uniform logits at this width, which would hide most mistakes.
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(config).eval().requires_grad_(False)
    model.name_or_path = "tiny-llama"  # otherwise PEFT warns that the base model has no name
    return model


def _judge(rollouts: Sequence[Rollout]) -> list[float]:
    """Stand-in for any evaluator that a setting selects."""
    return [float(sum(rollout.sequence.completion) % 7) for rollout in rollouts]


def _pair_judge(a: Sequence[Rollout], b: Sequence[Rollout]) -> list[float]:
    """Stand-in for any pair evaluator that a setting selects."""
    return [1 / (1 + math.exp(other - one)) for one, other in zip(_judge(a), _judge(b), strict=True)]


def _disturb(roles: Roles, role: str, seed: int) -> None:
    """Add noise to the role's adapter, like the effect of training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in roles.model.named_parameters():
            if f"lora_B.{role}." in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def _rows(needs: Needs) -> Rows:
    rows = Rows.undeclared()
    if needs.preferences:
        rows.preferences = _preferences(12)
    if needs.feedback:
        rows.feedback = _feedback(12)
    if needs.demonstrations:
        rows.demonstrations = [Row(f"demonstration-{i}", {"demonstration": s}) for i, s in enumerate(_sequences(12, 4))]
    if needs.prompts:
        prompts = [TokenSequence(found.prompt, found.start) for found in _sequences(12, 2)]
        rows.prompts = [Row(f"prompt-{i}", {"prompt": prompt}) for i, prompt in enumerate(prompts[:8])]
        rows.held_out_prompts = [Row(f"held-out-{i}", {"prompt": prompt}) for i, prompt in enumerate(prompts[8:])]
    return rows


def _sequences(count: int, seed: int) -> list[TokenSequence]:
    noise = random.Random(seed)
    found = []
    for _ in range(count):
        start, length = noise.randint(2, 10), noise.randint(1, 14)
        found.append(TokenSequence(tuple(noise.randrange(40, VOCABULARY) for _ in range(start + length)), start))
    return found


def _preferences(count: int) -> list[Row]:
    rows = []
    for i, (chosen, other) in enumerate(zip(_sequences(count, 0), _sequences(count, 1), strict=True)):
        rejected = TokenSequence((*chosen.prompt, *other.completion), chosen.start)
        rows.append(Row(f"pair-{i}", {"chosen": chosen, "rejected": rejected}, {"margin": float(i % 3)}))
    return rows


def _feedback(count: int) -> list[Row]:
    found = _sequences(count, 3)
    rows = []
    for i, response in enumerate(found):
        mismatched = TokenSequence((*response.prompt, *found[i - 1].completion), response.start)
        both = {"response": response, "mismatched": mismatched}
        rows.append(Row(f"feedback-{i}", both, {"desirable": float(i % 5 < 3), "weight": 1.0}))
    return rows
