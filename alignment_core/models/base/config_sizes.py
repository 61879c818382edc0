"""Check that the sizes in a model's config.json are sizes that a model can have, before a library allocates them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from alignment_core.errors import ModelError
from alignment_core.texts import damaged

LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTHS = ("hidden_size", "n_embd", "d_model")
WORDS = ("vocab_size",)
OTHERS = (
    "intermediate_size", "n_inner", "ffn_dim", "moe_intermediate_size", "shared_expert_intermediate_size", "head_dim",
    "num_attention_heads", "n_head", "n_heads", "num_key_value_heads", "num_local_experts", "num_experts",
    "n_routed_experts", "num_experts_per_tok",
)  # fmt: skip
LARGEST = {
    **dict.fromkeys(LAYERS, 1000),
    **dict.fromkeys(WIDTHS, 2**20),
    **dict.fromkeys(WORDS, 2**24),
    **dict.fromkeys(OTHERS, 2**24),
}
"""The largest value of each size. The largest models that exist have less than a tenth of it."""
NEEDED = {*LAYERS, *WIDTHS, *WORDS}
"""Sizes that are not 0 in any language model."""
SHOWN = 80
"""Number of characters of a wrong value that are shown."""


def check_sizes(config: Mapping[str, Any], place: str) -> None:
    """Check the sizes in a configuration and in its parts, whichever of them it has.

    Args:
        config: the content of config.json.
        place: the path of the file.

    Raises:
        ModelError: one is no whole number, is negative or is larger than that of any model.
    """
    for name, value in _sizes(config):
        if type(value) is not int or value < (name in NEEDED):
            raise damaged(place, f"{name} {str(value)[:SHOWN]}")
        if value > LARGEST[name]:
            raise damaged(place, f"{name} {value:.3g}, which is more than the {LARGEST[name]} that a model may have")


def check_against_weights(config: Mapping[str, Any], shapes: Collection[tuple[int, ...]], place: str) -> None:
    """Check that the weights can be those of a model of these sizes.

    Args:
        config: the configuration of the language model, whose sizes `check_sizes` has checked.
        shapes: the shapes of all weights.
        place: the path of config.json.

    Raises:
        ModelError: it has more layers than weights, or is wider than all of them.
    """
    longest = max((size for shape in shapes for size in shape), default=0)
    for names, most, whose in ((LAYERS, len(shapes), "tensors"), (WIDTHS, longest, "values in a row of a tensor")):
        for name in names:
            if isinstance(value := config.get(name), int) and value > most:
                raise ModelError(
                    "the model is described as larger than its weights",
                    where=place,
                    got=f"{name} {value}, and weights with at most {most} {whose}",
                    do="Download the model again",
                )


def _sizes(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield every size with its name. One may be a list with a value for each layer, or null."""
    parts: list[Mapping[str, Any]] = [config]
    while parts:
        for name, value in parts.pop().items():
            if isinstance(value, Mapping):
                parts.append(value)
            elif name in LARGEST and value is not None:
                yield from (
                    (name, item) for item in (value if isinstance(value, list) else [value]) if item is not None
                )
