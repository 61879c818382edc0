"""Sequences share a pass only as far as that changes nothing, also where the configuration names a limit."""

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import language, naive_logps, open_roles
from every_architecture import VARIANTS, small_config
from matrix import examples
from transformers import AutoModelForCausalLM

from alignment_core.errors import ModelError
from alignment_core.models.passes import last_layer
from alignment_core.models.passes import reach as module
from alignment_core.models.passes.reach import Reach, find_reach
from alignment_core.models.roles.shared_base import Roles
from alignment_core.plugin_api import TokenSequence


def opened(folder: Path, name: str, **changes: Any) -> Roles:
    config = small_config(name)
    for key, value in changes.items():
        setattr(config, key, value)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    roles = open_roles(folder)
    roles.add_base("policy")
    return roles


@pytest.mark.parametrize(
    ("name", "changes", "reach"),
    [
        ("llama", {}, Reach()),
        ("mistral", {}, Reach()),
        # Its attention is not told the window, which is in the mask.
        ("phimoe", {"sliding_window": 24}, Reach(packed=24)),
        ("phimoe", {"sliding_window": 40}, Reach(packed=40)),
        # The frequencies of a row are those of its longest sequence.
        ("phi3 longrope", {}, Reach(packed=24, batched=24)),
        # They stay in use for the rows that follow.
        ("llama dynamic", {}, Reach(packed=64, batched=64, readable=64)),
    ],
)
def test_reach_is_the_limit_at_which_rows_change(
    tmp_path: Path, name: str, changes: dict[str, Any], reach: Reach
) -> None:
    roles = opened(tmp_path, name, **changes)
    assert roles.packs
    assert roles.reach == reach
    if reach.readable == math.inf:
        with torch.no_grad():
            expected = naive_logps(AutoModelForCausalLM.from_pretrained(tmp_path).eval(), examples())
            found = language(roles, "policy").logps(examples())
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-3)


def test_int8_layers_pack_though_they_round_rows_together(tmp_path: Path) -> None:
    opened(tmp_path, "mistral")
    roles = open_roles(tmp_path, "int8")
    assert roles.packs
    assert roles.reach == Reach()


def test_a_large_limit_is_found_without_long_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = 0

    def noting(body: Any, arrangement: Any, device: Any) -> torch.Tensor:
        nonlocal longest
        longest = max(longest, arrangement.ids.shape[-1])
        return run_body(body, arrangement, device)

    run_body = module.run_body
    monkeypatch.setattr(module, "run_body", noting)
    assert opened(tmp_path, "phimoe", sliding_window=4000).reach == Reach(packed=4000)
    assert 96 <= longest < 300


def test_limits_are_tried_once_per_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roles = opened(tmp_path, "phimoe", sliding_window=24)
    monkeypatch.setattr(module, "_search", None)
    assert find_reach(open_roles(tmp_path).model, True) == roles.reach


def test_a_model_without_limits_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_search", None)
    assert opened(tmp_path, "llama").reach == Reach()


def test_a_row_that_depends_on_earlier_rows_is_refused(tmp_path: Path) -> None:
    roles = opened(tmp_path, "llama dynamic")
    policy = language(roles, "policy")
    policy.logps([TokenSequence(tuple(range(3, 67)), 1)])
    with pytest.raises(ModelError, match=r"got 65 tokens, expected at most 64"):
        policy.logps([TokenSequence(tuple(range(3, 68)), 1)])


def test_the_last_layer_is_whole_if_its_trial_fails_at_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_search", lambda *_: Reach(skips=False))
    roles = opened(tmp_path, "mistral", sliding_window=13)
    assert not any(skips_tokens(layer.mlp) for layer in roles.model.model.layers)
    monkeypatch.undo()
    roles = opened(tmp_path, "llama")
    assert [skips_tokens(layer.mlp) for layer in roles.model.model.layers] == [False, False, False, True]


def skips_tokens(part: Any) -> bool:
    return isinstance(part.forward, partial) and part.forward.func is last_layer._forward


@pytest.mark.parametrize("name", VARIANTS)
def test_every_restriction_is_said(tmp_path: Path, name: str) -> None:
    roles = opened(tmp_path, name)
    assert (roles.reach.describe() is None) == (roles.reach == Reach())
    assert Reach(packed=3, batched=9, readable=20).describe() == (
        "sequences longer than 3 tokens run in padded batches, because packing would change them, and longer than 9 "
        "tokens run alone, because others in a batch would change them, and responses that may become so long are read "
        "anew for every token, and longer than 20 tokens are refused: the rows read before would change them"
    )
