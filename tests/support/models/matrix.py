"""What one architecture gives here and in plain peft and transformers: the rows of the architecture matrix."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from engine import CPU, ENOUGH, LORA, PAD, STOP, disturb, language, naive_logps, open_roles, scalar
from every_architecture import save_small
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from torch import Tensor

from alignment_core.errors import AlignmentError
from alignment_core.models.generation.choice import Sampling
from alignment_core.models.generation.sampling import generate
from alignment_core.models.memory.architecture import Architecture, Pass
from alignment_core.models.memory.dry_run import DryRun
from alignment_core.models.roles.classifier_export import not_in_plain_peft
from alignment_core.models.roles.logps import Budget
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import TokenSequence

EQUAL = "equal"
LENGTHS = (4, 11, 12, 13, 14, 22, 37, 50)
"""Lengths on both sides of the windows of 12 tokens and of the switch of positions at 24 in small models."""
PROMPTS = (3, 9, 11, 17, 5, 44)
NEW = 12
TOLERANCE = 2e-3


@dataclass(frozen=True)
class Outcome:
    """`EQUAL` or a reason for each comparison, and how the model runs.

    Attributes:
        layout: how sequences share forward passes.
        left_out: the weights without an adapter; empty if there are none.
        logps: log-probabilities, packed and padded, beside plain peft's of each sequence alone.
        step: gradients of a DPO loss beside plain peft's.
        responses: greedy responses beside `generate`.
        scores: rewards beside plain peft's classifier.
        plan: whether the memory is predicted, in fp32 and nf4.
    """

    layout: str
    left_out: str
    logps: str
    step: str
    responses: str
    scores: str
    plan: str

    def differences(self) -> dict[str, str]:
        """Return the comparisons that differ without a reason."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: text for name, text in found.items() if text.startswith("DIFFERS")}


def examine(name: str, folder: Path) -> Outcome:
    """Return the outcome of one architecture or variant, on a small random model that is saved in the folder."""
    save_small(name, folder / "base")
    roles = open_roles(folder / "base")
    for role, seed in (("policy", 1), ("reward", 3)):
        roles.add_new(role, LORA, seed)
        disturb(roles, role, seed)
    width = roles.model.config.get_text_config().hidden_size
    roles.add_head("reward", torch.randn(1, width, generator=torch.Generator().manual_seed(2)))
    roles.train_only(["policy"])
    roles.save("policy", folder / "policy")
    roles.save("reward", folder / "reward")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)  # peft warns if it does not find a weight of the adapter
        plain = AutoPeftModelForCausalLM.from_pretrained(str(folder / "policy")).eval()
    found = examples()
    return Outcome(
        layout=_layout(roles),
        left_out=roles.left_out() or "",
        logps=_named(lambda: _logps(roles, plain, found)),
        step=_named(lambda: _step(roles, plain, found)),
        responses=_named(lambda: _responses(roles, plain)),
        scores=_named(lambda: _scores(roles, folder / "reward", found)),
        plan=_named(lambda: _plan(roles)),
    )


def examples() -> list[TokenSequence]:
    """Return sequences of many lengths, some of which share a prompt, in a random order."""
    source = random.Random(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(source.randrange(3, 250) for _ in range(count))

    prompt = tokens(18)
    found = [TokenSequence(tokens(length), max(1, length // 2)) for length in LENGTHS]
    found += [TokenSequence((*prompt, *tokens(length - 18)), 18) for length in LENGTHS if length > 18]
    source.shuffle(found)
    return found


def _named(compare: Callable[[], str]) -> str:
    """Return the result, or the sentence of a refusal."""
    try:
        return compare()
    except AlignmentError as error:
        return f"refused: {error.what}"


def _layout(roles: Roles) -> str:
    restricted = roles.reach.describe()
    return ("packed" if roles.packs else "padded") + (f"; {restricted}" if restricted else "")


def _compared(found: Tensor, expected: Tensor) -> str:
    error = float((found.double() - expected.double()).norm() / expected.double().norm().clamp_min(1))
    return EQUAL if error < TOLERANCE else f"DIFFERS by {error:.1e}"


@torch.no_grad()
def _logps(roles: Roles, plain: Any, found: Sequence[TokenSequence]) -> str:
    expected, packs = naive_logps(plain, found), roles.packs
    ours = language(roles, "policy").logps(found)
    roles.packs = False
    padded = language(roles, "policy").logps(found)
    roles.packs = packs
    return _compared(torch.cat([ours, padded]), torch.cat([expected, expected]))


def _dpo(logps: Tensor) -> Tensor:
    """Return DPO's loss of alternating chosen and rejected, beside a uniform reference."""
    pairs = logps.float()[: len(logps) // 2 * 2].view(-1, 2)
    return -torch.nn.functional.logsigmoid(0.1 * (pairs[:, 0] - pairs[:, 1])).mean()


def _step(roles: Roles, plain: Any, found: Sequence[TokenSequence]) -> str:
    roles.checkpoint_layers(True)
    with roles.training():
        _dpo(language(roles, "policy").logps(found)).backward()  # type: ignore[no-untyped-call]
    roles.checkpoint_layers(False)
    weights = {name: weight for name, weight in plain.named_parameters() if ".lora_" in name}
    for weight in weights.values():
        weight.requires_grad_(True)
    _dpo(naive_logps(plain, found)).backward()  # type: ignore[no-untyped-call]
    ours = {name.replace(".policy", ""): weight.grad for name, weight in roles.parameters().items()}
    theirs = {
        "model." + name.split("base_model.model.", 1)[1].replace(".default", ""): weight.grad
        for name, weight in weights.items()
    }
    if {name for name, grad in ours.items() if grad is not None} != {n for n, g in theirs.items() if g is not None}:
        return "DIFFERS in the weights that get a gradient"
    learned = [name for name, gradient in ours.items() if gradient is not None]
    return _compared(*(torch.cat([grads[name].flatten() * 100 for name in learned]) for grads in (ours, theirs)))  # type: ignore[union-attr]


def _responses(roles: Roles, plain: Any) -> str:
    source = random.Random(7)
    prompts = [TokenSequence(tuple(source.randrange(3, 250) for _ in range(n)), n) for n in PROMPTS]
    ours = generate(
        roles, "policy", prompts, noise_keys=[""] * len(prompts), sampling=Sampling(NEW, temperature=0),
        stop_ids=[STOP], pad_id=PAD, budget=Budget(ENOUGH), on_step=lambda _: None,
    )  # fmt: skip
    same = [list(a.sequence.completion) == _generated(plain, b.ids) for a, b in zip(ours, prompts, strict=True)]
    if all(same):
        return EQUAL
    if all(list(a.sequence.completion) == _without_cache(plain, b.ids) for a, b in zip(ours, prompts, strict=True)):
        return "as the model reads without a cache; `generate`, with its cache, differs or fails"
    return f"DIFFERS for prompts of {[n for n, one in zip(PROMPTS, same, strict=True) if not one]} tokens"


def _until_stop(ids: list[int]) -> list[int]:
    return ids[: ids.index(STOP) + 1] if STOP in ids else ids


def _generated(plain: Any, prompt: tuple[int, ...]) -> list[int] | None:
    """Return the response of `generate`; None if it fails in the model's own code."""
    ids = torch.tensor([prompt])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "do_sample": False, "max_new_tokens": NEW}
    try:
        found = plain.generate(**given, pad_token_id=PAD)
    except ValueError:
        return None
    return _until_stop(found.tolist()[0][len(prompt) :])


@torch.no_grad()
def _without_cache(plain: Any, prompt: tuple[int, ...]) -> list[int]:
    ids = torch.tensor([prompt])
    for _ in range(NEW):
        ids = torch.cat([ids, plain(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return _until_stop(ids.tolist()[0][len(prompt) :])


@torch.no_grad()
def _scores(roles: Roles, folder: Path, found: Sequence[TokenSequence]) -> str:
    if reason := not_in_plain_peft(roles.model):
        return f"refused: {reason}"
    plain = AutoPeftModelForSequenceClassification.from_pretrained(str(folder), num_labels=1).eval()
    plain.config.get_text_config().pad_token_id = PAD
    expected = torch.stack([plain(input_ids=torch.tensor([one.ids])).logits[0, 0] for one in found])
    return _compared(scalar(roles, "reward").scores(found), expected)


def _plan(roles: Roles) -> str:
    one = Pass("policy", (TokenSequence((0,) * 28, 14),) * 2, 56)
    for precision in ("fp32", "nf4"):
        roles_of = (("policy",), (), ("policy",))
        spec = Architecture(roles.model.config, precision, LORA, *roles_of, CPU, roles.packs, reach=roles.reach)  # type: ignore[arg-type]
        dry = DryRun(spec)
        if not min(dry.training([one], checkpointing=True), dry.prompting(2, 8), dry.footprint().base) > 0:
            return f"DIFFERS: nothing is counted in {precision}"
    return EQUAL
