"""Split length-sorted rows into micro-batches within a token budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignment_core.models.base.layers import linear_layers
from alignment_core.plugin_api import Row, TokenSequence

T = TypeVar("T")


def group_by_budget(
    items: Sequence[T], budget: int, sequences_of: Callable[[T], Sequence[TokenSequence]]
) -> list[list[int]]:
    """Split items into groups whose padded size stays within the budget.

    Items are taken longest first, so each group holds similar lengths. An item that alone exceeds the budget forms its
    own group.

    Args:
        items: any objects that consist of token sequences.
        budget: tokens, padding included, in one forward pass.
        sequences_of: the sequences of one item.

    Returns:
        Groups of indices into `items`; each index appears once.
    """
    longest = [max((len(s.ids) for s in sequences_of(item)), default=0) for item in items]
    groups: list[list[int]] = []
    width = count = 0
    for index in sorted(range(len(items)), key=lambda i: (-longest[i], i)):
        added = len(sequences_of(items[index]))
        if not groups or (count + added) * width > budget:
            groups.append([])
            width, count = longest[index], 0
        groups[-1].append(index)
        count += added
    return groups


def least_padding(lengths: Sequence[int], budget: int, call_cost: int) -> list[list[int]]:
    """Split sequences into forward passes with the smallest sum of padding and fixed cost per pass.

    Args:
        lengths: length of each sequence in tokens.
        budget: tokens, padding included, in one pass; a sequence that alone exceeds it forms its own pass.
        call_cost: fixed cost of a pass, independent of its contents, in tokens.

    Returns:
        Groups of indices into `lengths`, longest sequences first; each index appears once.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    # best[j]: lowest cost of the first j sequences; cut[j]: where the last of their groups begins.
    best, cut = [0] + [0] * len(order), [0] * (len(order) + 1)
    for j in range(1, len(order) + 1):
        best[j], cut[j] = best[j - 1] + lengths[order[j - 1]] + call_cost, j - 1
        for i in range(j - 2, -1, -1):
            padded = (j - i) * lengths[order[i]]
            if padded > budget:
                break
            if best[i] + padded + call_cost < best[j]:
                best[j], cut[j] = best[i] + padded + call_cost, i
    groups: list[list[int]] = []
    end = len(order)
    while end:
        groups.append(order[cut[end] : end])
        end = cut[end]
    return groups[::-1]


def call_cost(model: PreTrainedModel) -> int:
    """Return the fixed cost of running the body once, in tokens: its launches relative to its arithmetic.

    A layer with adapters takes about a millisecond to launch. A token takes 6 operations per weight, at about
    50 GFLOP/s on a CPU core and 100 TFLOP/s on a GPU. Only the order of magnitude matters.
    """
    layers = max(1, getattr(model.config.get_text_config(), "num_hidden_layers", 1))
    weights = model.num_parameters() / layers
    operations = 5e10 if model.device.type == "cpu" else 1e14
    return int(1e-3 * operations / (6 * weights))


def generation_cache_factor(
    model: PreTrainedModel, *, layers: int, features: float, kept: float, trained: int, checkpointing: int
) -> int:
    """Return how many tokens the generation cache may hold per token of a micro-batch without taking more memory.

    A token that waits for backward keeps at least the outputs and inputs of every linear layer, except what a gated
    feed-forward part recomputes. Of a layer that is recomputed, it keeps only the input. A token in the cache keeps its
    keys and values and, while the prompt is read, the outputs of one layer.

    Args:
        model: provides the widths.
        layers: number of layers of the complete model.
        features: outputs of the linear layers of one layer.
        kept: elements that one layer keeps of a token for backward, at least.
        trained: number of trained roles: for each, a pass of the micro-batch waits for backward.
        checkpointing: which layers backward recomputes (`Roles.checkpoint_layers`); without trained roles, this makes
            no difference.
    """
    width: int = model.config.get_text_config().hidden_size
    every = checkpointing if trained else True
    recomputed = -(-layers // every) if every else 0
    waiting = kept * (layers - recomputed) + width * recomputed
    # A layer is recomputed when the layers above it are gone, so only the last one adds to what was kept.
    again = 2 * features if every and (layers - 1) % every == 0 else 0
    learned = max(1, trained) * waiting + again
    return max(1, int(learned / (layers * cache_width(model.config) + features)))


def cache_width(config: PretrainedConfig) -> int:
    """Return the number of elements that one token's keys and values take in one layer, at most."""
    config = config.get_text_config()
    attention = largest_setting(config, "num_attention_heads")
    if attention is None:
        return 2 * int(config.hidden_size)  # a recurrent state, which does not grow: a generous bound
    heads = largest_setting(config, "num_key_value_heads") or attention
    head = largest_setting(config, "head_dim") or config.hidden_size // attention
    return 2 * heads * head


def largest_setting(config: PretrainedConfig, name: str) -> int | None:
    """Return a setting that may differ from layer to layer: its largest value, or None if it does not exist."""
    try:
        found: int | None = getattr(config, name, None)
    except RuntimeError:  # transformers refuses to name one value for all layers
        layers = (getattr(config.per_layer_config[i], name, None) for i in range(config.num_hidden_layers))
        found = max((value for value in layers if value is not None), default=None)
    return found


def linear_features(model: PreTrainedModel) -> int:
    """Return the number of outputs of all linear layers except the head."""
    return sum(m.nf if isinstance(m, Conv1D) else m.out_features for m in linear_layers(model))  # type: ignore[misc]


def row_sequences(row: Row) -> Sequence[TokenSequence]:
    """Return all sequences of a row, for `group_by_budget`."""
    return list(row.sequences.values())
