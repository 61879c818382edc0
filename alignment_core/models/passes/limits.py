"""Lengths at which an architecture may change its behavior, and a copy of a model on which they are small.

A window, a chunk or a switch of the positions is a number in the configuration. A trial below it sees nothing of it.
Real limits are thousands of tokens, so the trial runs on a copy that shares the weights and has small limits.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bitsandbytes.nn import Linear4bit, Linear8bitLt
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from alignment_core.models.base.layers import keep_layers

NAME = re.compile(
    r"window|chunk|block_size|block_multiple|^index_topk|budget|compress|local_att|sparse_att|compressed_att|max_distance|rel_extent"
    r"|floor|original_max_position"
)
"""Settings that name a length in tokens. All architectures of transformers 5.23 were looked through."""
POSITIONS = re.compile(r"position_embeddings|positions|seq_len|seq_length|context_len|model_max_length|n_ctx")
"""Settings that name the length for which positions were made."""
OTHER = re.compile(r"layer|pattern|expert|token_id|bucket|head|dim")
FIXED_ROPE = {"default", "linear", "llama3", "yarn", "proportional"}
"""Rotations whose frequencies do not depend on the tokens."""
KNOWN_ROPE = re.compile(r"rope_t|^type$|factor|beta_|mscale|original_max|truncate|finetuned|mrope|interleaved")
NEAR = 64
"""Limits up to this number of tokens are tried as they are. Larger ones are made small."""
LEAST = 24
"""The smallest limit on a copy."""
FEW_LAYERS = 4


def named_limits(config: PretrainedConfig) -> list[int]:
    """Return the lengths, ascending, that the configuration names and at which the model may change its behavior."""
    text = config.get_text_config()
    names = (NAME, POSITIONS) if not _fixed_positions(vars(text)) else (NAME,)
    return sorted({value for name, value in _numbers(vars(text)) if any(kind.search(name) for kind in names)})


def small_limits(limits: Iterable[int]) -> dict[int, int]:
    """Return a small value for each limit, in the same order. `limits` are ascending."""
    small: dict[int, int] = {}
    last = 0
    for limit in limits:
        last = limit if limit <= NEAR else max(LEAST, 4 * last)
        small[limit] = last
    return small


def copy_with_limits(model: PreTrainedModel, small: Mapping[int, int], *, whole: bool) -> PreTrainedModel:
    """Return a copy of the model that shares its weights, with these values in place of its limits.

    Args:
        whole: keep all layers, not only the first ones that include each type of layer.
    """
    shared = [*model.parameters(), *_states(model)]
    twin: PreTrainedModel = copy.deepcopy(model, {id(one): one for one in shared})
    config = twin.config.get_text_config()
    for part in (twin.config, config, *twin.modules()):
        _replace(vars(part), small)
    present = config.num_hidden_layers
    types = list(getattr(config, "layer_types", None) or [])
    kept = max([FEW_LAYERS, *(types.index(kind) + 1 for kind in set(types))])
    if not whole and present > kept:
        keep_layers(twin, present, kept)
    return twin


def _states(model: PreTrainedModel) -> Iterator[object]:
    """Yield what cannot or should not be copied: the last output of a recurrent layer, and what quantized layers keep.

    These keep scales and, in int8, the weights once more.
    """
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Tensor) and not value.is_leaf)
        if isinstance(module, Linear4bit | Linear8bitLt):
            yield from (
                state for name in ("state", "quant_state") if (state := getattr(module, name, None)) is not None
            )


def _numbers(settings: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _numbers({str(inner): found for inner, found in value.items()})
        elif not OTHER.search(name):
            values = value if isinstance(value, list) else [value]  # one for all layers, or one for each
            yield from ((name, number) for number in values if type(number) is int and number > 1)


def _fixed_positions(settings: Mapping[str, Any]) -> bool:
    """Return whether every rotation in the configuration is one whose frequencies never change."""
    for name, value in settings.items():
        if not isinstance(value, Mapping):
            continue
        if "rope" in name and "rope_type" in value:
            if value["rope_type"] not in FIXED_ROPE or not all(KNOWN_ROPE.search(key) for key in value):
                return False
        elif not _fixed_positions({f"rope {inner}": found for inner, found in value.items()}):
            return False
    return True


def _replace(settings: dict[Any, Any], small: Mapping[int, int]) -> None:
    """Replace limits by their small values in these attributes and in dictionaries inside them."""
    for name, value in settings.items():
        if not isinstance(name, str):  # a dictionary by layer
            continue
        if isinstance(value, dict) and not name.startswith("_"):
            _replace(value, small)
        elif type(value) is int and value in small and _is_limit(name):
            settings[name] = small[value]
        elif isinstance(value, list) and _is_limit(name):
            settings[name] = [small.get(one, one) if type(one) is int else one for one in value]


def _is_limit(name: str) -> bool:
    return bool(NAME.search(name) or POSITIONS.search(name)) and not OTHER.search(name)
