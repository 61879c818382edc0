"""The last layer skips tokens whose outputs are not read, and the outputs that are read do not change."""

from pathlib import Path

import pytest
import torch
from architectures import ARCHITECTURES, save_model
from engine import LORA, disturb, language, open_roles, scalar, sequences
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from alignment_core.models.passes.packing import current_arrangement
from alignment_core.models.roles import shared_base as of_roles
from alignment_core.models.roles.shared_base import Roles

PARTS = ("mlp", "feed_forward")


def opened(path: Path) -> Roles:
    roles = open_roles(path)
    for seed, role in enumerate(("policy", "value")):
        roles.add_new(role, LORA, seed)
        disturb(roles, role, seed)
    roles.add_head("value", torch.ones(1, roles.model.config.get_text_config().hidden_size))
    roles.train_only(["policy", "value"])
    return roles


def learned(roles: Roles, checkpointing: bool) -> list[Tensor]:
    """Return all outputs for sequences with long, partly shared prompts, and the gradients of their sum."""
    found = sequences(5, prompt=40)
    found += [type(found[0])((*found[0].prompt, 9, 8, 7), found[0].start)]
    roles.checkpoint_layers(checkpointing)
    with roles.training():
        logps = language(roles, "policy").token_logps(found).logps
        value = scalar(roles, "value")
        scores, values = value.scores(found), value.values(found)
        (logps.sum() + scores.sum() + values.square().sum()).backward()
    gradients = [p.grad.clone() for p in roles.parameters().values() if p.grad is not None]
    for parameter in roles.parameters().values():
        parameter.grad = None
    return [logps.detach(), scores.detach(), values.detach(), *gradients]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_values_and_gradients_match_the_full_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, checkpointing: bool
) -> None:
    path = save_model(name, tmp_path)
    part = learned(opened(path), checkpointing)
    monkeypatch.setattr(of_roles, "skip_unread_tokens", lambda *_: None)
    whole = learned(opened(path), checkpointing)
    assert len(part) == len(whole)
    for one, other in zip(part, whole, strict=True):
        assert float((one - other).norm()) <= 1e-5 * float(other.norm()) + 1e-7


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "mistral", "phi", "phi3", "gpt2"])
def test_only_tokens_that_are_read_are_computed(tmp_path: Path, name: str) -> None:
    """Three sequences need 4 + 1 + 2 completion tokens. A score needs one token per sequence."""
    roles = opened(save_model(name, tmp_path))
    (*before, last), seen = parts(roles.model), []

    def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        if current_arrangement() is not None:
            seen.append(given[0].shape[:-1].numel())

    # The linear layers inside receive only the tokens that are read. The feed-forward module receives all.
    for part in (before[-1], last):
        next(module for module in part.modules() if isinstance(module, BaseTunerLayer)).register_forward_pre_hook(note)
    kind = type(sequences(1)[0])
    found = [kind(tuple(range(3, 3 + start + length)), start) for start, length in ((30, 4), (20, 1), (25, 2))]
    with torch.no_grad():
        language(roles, "policy").logps(found)
        scalar(roles, "value").scores(found)
    whole = sum(len(sequence.ids) for sequence in found)
    padded = 3 * max(len(sequence.ids) for sequence in found)
    assert seen[0] in (whole, padded)
    assert seen[1::2] == [7, 3]


def parts(model: nn.Module) -> list[nn.Module]:
    """Return the feed-forward module of each layer."""
    return [part for layer in model.modules() for name in PARTS if (part := getattr(layer, name, None)) is not None]
