"""How a model is read token by token is tried: whatever is chosen gives the logits of a complete read."""

import logging
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from engine import open_roles
from every_architecture import save_small

from alignment_core.models.generation import decoding
from alignment_core.models.generation.decoding import Decoding, choose_decoding
from alignment_core.models.passes.packing import outputs_agree, padded
from alignment_core.plugin_api import TokenSequence

CACHE = "past_key_values"


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("llama", Decoding(argument=CACHE, slots=True)),
        # A window in every layer, and in every second one, whose soft cap needs another attention.
        ("mistral", Decoding(argument=CACHE, slots=True)),
        ("gemma2", Decoding(argument=CACHE, slots=True)),
        # A mask longer than its input would multiply it, so it gets none, and no padding.
        ("mamba", Decoding(together=False, argument="cache_params")),
        # Accepts only a cache of its own.
        ("minimax", Decoding(cached=False, argument=CACHE)),
        ("openai-gpt", Decoding(cached=False)),
    ],
)
def test_the_fastest_way_that_agrees_is_chosen(tmp_path: Path, name: str, way: Decoding) -> None:
    roles = open_roles(save_small(name, tmp_path))
    assert choose_decoding(roles.model, roles.reach) == way


def test_slow_generation_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    roles = open_roles(save_small("llama", tmp_path))
    monkeypatch.setattr(decoding, "_agrees", lambda model, lengths, way: not way.cached)
    with caplog.at_level(logging.WARNING):
        assert choose_decoding(roles.model, roles.reach) == Decoding(cached=False, argument=CACHE)
    assert "LlamaForCausalLM are slow" in caplog.text


def test_rows_that_change_each_other_are_read_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    roles = open_roles(save_small("llama", tmp_path))
    forward = roles.model.forward

    @wraps(forward)
    def mixed(*given: Any, **named: Any) -> Any:
        output = forward(*given, **named)
        output.logits = output.logits + output.logits.std(dim=0, keepdim=True, correction=0)
        return output

    monkeypatch.setattr(roles.model, "forward", mixed)
    assert choose_decoding(roles.model, roles.reach) == Decoding(together=False, equal=False, argument=CACHE)
    assert "LlamaForCausalLM are slow: they are generated one by one" in caplog.text


def test_padding_is_tried_at_the_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roles = open_roles(save_small("mistral", tmp_path))
    tried: list[tuple[int, ...]] = []

    def note(model: torch.nn.Module, lengths: tuple[int, ...], way: Decoding) -> bool:
        tried.append(tuple(lengths))
        return True

    monkeypatch.setattr(decoding, "_agrees", note)
    choose_decoding(roles.model, roles.reach)
    # A window of 12: rows that reach it while they grow, and rows that are longer from the start.
    assert tried == [(7, 2), (10, 4), (25, 3)]


def test_memory_that_runs_out_in_a_trial_does_not_decide_about_the_architecture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a full card would make generation slow for good, or training pad its rows."""
    roles = open_roles(save_small("llama", tmp_path))

    def full(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(roles.model, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        choose_decoding(roles.model, roles.reach)
    row = padded([TokenSequence((1, 2), 1)], 0)
    with pytest.raises(torch.OutOfMemoryError):
        outputs_agree(roles.model, roles.model, row, [row])
