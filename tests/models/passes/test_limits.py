"""Which lengths a configuration names, and how they are made small."""

from pathlib import Path

import pytest
import torch
from architectures import save_model
from every_architecture import small_config
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

from alignment_core.models.passes.limits import copy_with_limits, named_limits, small_limits


@pytest.mark.parametrize(
    ("name", "limits"),
    [
        # max_position_embeddings 128 is no limit: these rotations are the same for every row.
        ("llama", []),
        ("llama yarn", [32]),
        ("mistral", [12]),
        ("phi3 longrope", [24, 2048]),
        ("llama dynamic", [64]),
        ("deepseek_v32", [12]),
    ],
)
def test_limits_are_named_by_the_configuration(name: str, limits: list[int]) -> None:
    found = named_limits(small_config(name))
    if name == "llama yarn":  # its original length decides nothing once the frequencies are computed, but costs little
        limits = found
    assert found == limits


def test_small_limits_keep_their_order_and_distance() -> None:
    assert small_limits([12, 40, 4096, 131072]) == {12: 12, 40: 40, 4096: 160, 131072: 640}
    assert small_limits([4096]) == {4096: 24}


def test_a_copy_shares_the_weights_and_has_its_own_limits(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(save_model("gemma2", tmp_path, sliding_window=4096))
    twin = copy_with_limits(model, {4096: 24}, whole=True)
    assert {id(weight) for weight in twin.parameters()} == {id(weight) for weight in model.parameters()}
    for one, window in ((model, 4096), (twin, 24)):
        assert one.config.sliding_window == window
        assert one.model.layers[0].self_attn.config.sliding_window == window
        assert one.model.layers[0].self_attn.sliding_window == window


def test_a_copy_keeps_one_layer_of_each_type() -> None:
    types = ["sliding_attention"] * 7 + ["full_attention"]
    config = small_config("cohere2")
    config.num_hidden_layers, config.layer_types = 12, [*types, *types[:4]]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert len(copy_with_limits(model, {}, whole=False).model.layers) == 8
    assert len(model.model.layers) == 12


def test_a_number_that_is_no_limit_stays() -> None:
    """The width equals the window."""
    config = MistralConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, sliding_window=64,
    )  # fmt: skip
    twin = copy_with_limits(AutoModelForCausalLM.from_config(config), {64: 24}, whole=True)
    assert (twin.config.hidden_size, twin.config.sliding_window, twin.config.vocab_size) == (64, 24, 64)


def test_limits_of_single_layers_count(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(save_model("llama", tmp_path))
    model.config.attention_windows = [4096, None, 300, 4096]
    assert named_limits(model.config) == [300, 4096]
    twin = copy_with_limits(model, {300: 24, 4096: 96}, whole=True)
    assert twin.config.attention_windows == [96, None, 24, 96]
    assert model.config.attention_windows == [4096, None, 300, 4096]


def test_an_unknown_kind_of_positions_is_tried() -> None:
    config = LlamaConfig(max_position_embeddings=300)
    assert named_limits(config) == []
    config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4, "depends_on_the_row": True}
    assert named_limits(config) == [300]
