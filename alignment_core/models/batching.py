"""Fill micro-batches to a token budget from length-sorted rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from alignment_core.models.counting import linear_layers
from alignment_core.plugin_api import Row, TokenSequence

T = TypeVar("T")


def by_budget(items: Sequence[T], budget: int, sequences_of: Callable[[T], Sequence[TokenSequence]]) -> list[list[int]]:
    """Split items into groups whose padded size stays within the budget.

    Items are taken longest first, so that a group holds similar lengths. An item that exceeds the budget alone makes a
    group of its own.

    Args:
        items: anything made of token sequences.
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
    """Split sequences into forward passes such that padding and the passes' own cost are least in sum.

    Args:
        lengths: length of each sequence in tokens.
        budget: tokens, padding included, in one pass; a sequence that exceeds it alone makes a pass of its own.
        call_cost: what a pass costs whatever is in it, expressed in tokens.

    Returns:
        Groups of indices into `lengths`, longest sequences first; each index appears once.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    # best[j]: least cost of the first j sequences; cut[j]: where the last of their groups begins.
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
    """Cost of running the body once, whatever is in the batch, in tokens: its launches against its arithmetic.

    A layer with adapters takes about a millisecond to launch; a token takes 6 operations per weight, at about
    50 GFLOP/s on a CPU core and 100 TFLOP/s on a GPU. Only the order of magnitude matters.
    """
    layers = max(1, getattr(model.config.get_text_config(), "num_hidden_layers", 1))
    weights = model.num_parameters() / layers
    operations = 5e10 if model.device.type == "cpu" else 1e14
    return int(1e-3 * operations / (6 * weights))


def cached_for_learned(
    model: PreTrainedModel, *, layers: int, features: float, trained: int, checkpointing: bool
) -> int:
    """Tokens that generation may hold in its cache where a micro-batch holds one, and take less memory.

    A token that waits for backward keeps at least what every linear layer gives and reads, or with checkpointing each
    layer's input. One in the cache keeps its keys and values, and while the prompt is read one layer's outputs.

    Args:
        model: tells the widths.
        layers: of the whole model.
        features: outputs of the linear layers of one of them.
        trained: roles that learn: each has a pass of the micro-batch that waits.
        checkpointing: whether training recomputes; where nothing learns, no more is kept than if it did.
    """
    width: int = model.config.get_text_config().hidden_size
    waiting = max(1, trained) * layers
    learned = waiting * width + 2 * features if checkpointing or not trained else 2 * waiting * features
    return max(1, int(learned / (layers * cache_width(model.config) + features)))


def cache_width(config: PretrainedConfig) -> int:
    """Numbers that one token's keys and values take in one layer."""
    config = config.get_text_config()
    if getattr(config, "num_attention_heads", None) is None:
        return 2 * int(config.hidden_size)  # a recurrent state, which grows with no token: a generous bound
    heads: int = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return 2 * heads * head


def linear_features(model: PreTrainedModel) -> int:
    """Outputs of all linear layers but the head."""
    return sum(m.nf if isinstance(m, Conv1D) else m.out_features for m in linear_layers(model))  # type: ignore[misc]


def row_sequences(row: Row) -> Sequence[TokenSequence]:
    """All sequences of a row, for `by_budget`."""
    return list(row.sequences.values())
